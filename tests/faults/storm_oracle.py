"""What a run may have come to, given what happened in it: the endings table as a pure function.

A `Trace` is what happened, in order. A stop is in it twice: where it was sent and where, some
turns of the event loop later, it must have been heard. Between the two the run may have heard it
or not, and in which order it heard several is open too; everything else is exact.
"""

from dataclasses import dataclass, field

NONE, EPOCH, BATCH, ABANDON = range(4)
ENDINGS = ("on_interrupt", "after_training", "on_error")
CANCELS = {"cancel": "cancelled", "cancel_all": "cancelled", "scope": "scope", "timeout": "timeout"}
SIGNALS = ("SIGINT", "SIGTERM")
LOG_S = 1.0
"""What a run has for its log once its grace is over."""

MARGIN_S = 1.5
"""How much longer than promised anything may take on a busy machine."""

_NEVER = 1 << 60


@dataclass(frozen=True)
class Entry:
    """Something that happened: what, to what, the how manieth, and when."""

    what: str
    name: str = ""
    n: int = 0
    at: float = 0.0


@dataclass(frozen=True)
class State:
    """What a run has heard so far."""

    level: int = NONE
    is_cancelled: bool = False
    was_epoch: bool = False


@dataclass(frozen=True)
class Stop:
    action: str
    sent: int
    settled: int


@dataclass
class Facts:
    """What is the same for all of a schedule."""

    grace_s: float = 0.1
    is_heard: bool = True
    """Whether the run hears signals."""
    is_chained: bool = False
    """Whether a handler of the program hears them as well."""
    host_raises: bool = False
    exits: frozenset[str] = frozenset()
    """Where KeyboardInterrupt or SystemExit is raised, in place of an Exception."""


@dataclass
class Seen:
    """What came of a run."""

    outcome: str
    records: dict[str, object] = field(default_factory=dict)
    """The records of endings in the rows of the run, as they are in the file."""
    inherited: frozenset[str] = frozenset()
    """Those that were in the same rows, of the same run id, before."""
    is_complete: bool = False
    """Whether all epochs are done."""


class Trace:
    """The entries of one run, from its call to its end."""

    def __init__(self, facts: Facts, entries: list[Entry]) -> None:
        self.facts = facts
        self.entries = entries
        self.over = len(entries) - 1
        assert entries[-1].what == "over", entries[-3:]
        self.stops = [
            Stop(entry.name, index, self._settled(entry.n))
            for index, entry in enumerate(entries)
            if entry.what == "sent" and self._is_stop(entry.name)
        ]
        # The training is over somewhere between its last entry and the first one of the end.
        self.end = next((i for i, e in enumerate(entries) if _is_of_the_end(e)), self.over)
        self.last = max(
            (i for i, e in enumerate(entries[: self.end]) if e.what not in ("sent", "settled")),
            default=0,
        )
        self._reached = self._all_states()

    def _is_stop(self, action: str) -> bool:
        return action != "finish" and (self.facts.is_heard or action not in SIGNALS)

    def _settled(self, event: int) -> int:
        found = (i for i, e in enumerate(self.entries) if e.what == "settled" and e.n == event)
        return next(found, _NEVER)

    def begun(self, callback: str) -> list[int]:
        """Where a callback began."""
        return [i for i, e in enumerate(self.entries) if (e.what, e.name) == ("begin", callback)]

    def all_of(self, what: str) -> list[Entry]:
        return [entry for entry in self.entries if entry.what == what]

    # What may have been heard: a walk over the sets of stops, each with the states it can lead to.

    def _all_states(self) -> dict[int, set[State]]:
        reached = {0: {State()}}
        for mask in range(1, 1 << len(self.stops)):
            states: set[State] = set()
            for i, stop in enumerate(self.stops):
                before = mask & ~(1 << i)
                if mask & (1 << i) and self._may_follow(i, before):
                    for state in reached.get(before, ()):
                        states |= self._heard(state, stop)
            if states:
                reached[mask] = states
        return reached

    def _may_follow(self, i: int, before: int) -> bool:
        """Whether stop i can be heard when those of the mask were, and no other."""
        return not any(
            other.settled <= self.stops[i].sent and not before & (1 << j)
            for j, other in enumerate(self.stops)
            if j != i
        )

    def _heard(self, state: State, stop: Stop) -> set[State]:
        if stop.action != "SIGINT":
            level = EPOCH if stop.action == "request_epoch" else BATCH
            levels = {max(state.level, level)}
        else:
            sooner = min(state.level + 1, ABANDON)
            levels = set()
            if stop.sent < self.end and not self.facts.is_chained:
                levels.add(sooner)
            if stop.settled > self.last or self.facts.is_chained:
                levels.add(max(sooner, BATCH))  # the run is ending, or the program is
        return {
            State(
                level,
                state.is_cancelled or stop.action in CANCELS,
                state.was_epoch or level == EPOCH,
            )
            for level in levels
        }

    def states(self, at: int) -> set[State]:
        """The states that the run may be in at an entry."""
        sure = sum(1 << i for i, stop in enumerate(self.stops) if stop.settled <= at)
        maybe = sum(1 << i for i, stop in enumerate(self.stops) if stop.sent < at)
        found = {
            state
            for mask, states in self._reached.items()
            if mask & sure == sure and not mask & ~maybe
            for state in states
        }
        assert found, (at, self.stops)
        return found

    def levels(self, at: int) -> set[int]:
        return {state.level for state in self.states(at)}

    # Times.

    def may_be_at_batch(self) -> float | None:
        """The first time at which the grace can have begun."""
        for stop in self.stops:
            if max(self.levels(min(stop.settled, self.over))) >= BATCH:
                return self.entries[stop.sent].at
        return None

    def must_be_at_batch(self) -> float | None:
        """The first time at which the grace must have begun."""
        for settled in sorted(stop.settled for stop in self.stops if stop.settled < self.over):
            if min(self.levels(settled)) >= BATCH:
                return self.entries[settled].at
        return None


def _is_of_the_end(entry: Entry) -> bool:
    return entry.what == "final" or (entry.what == "begin" and entry.name in ENDINGS)


class Judgement:
    """Holds what is seen of a run against what its trace permits."""

    def __init__(self, facts: Facts, entries: list[Entry], seen: Seen) -> None:
        self.facts = facts
        self.trace = trace = Trace(facts, entries)
        self.seen = seen
        self.wrong: list[str] = []
        raised = [entry.name for entry in trace.all_of("raise")]
        self.failed_training = next((name for name in raised if _place(name) not in ENDINGS), None)
        ending = [name for name in raised if _place(name) in ("on_interrupt", "after_training")]
        self.failed_ending = None if self.failed_training else next(iter(ending), None)
        self.hung = [entry.name for entry in trace.all_of("hang")]
        began, over = trace.may_be_at_batch(), entries[-1].at
        self.may_run_out = began is not None and over - began >= facts.grace_s - 0.005
        self.may_be_pressed = ABANDON in trace.levels(trace.over)
        self.may_abandon = self.may_run_out or self.may_be_pressed

    def differences(self) -> list[str]:
        """Say what is not as it may be."""
        self._check_time()
        self._check_outcome()
        self._check_callbacks()
        self._check_boundaries()
        self._check_records()
        return self.wrong

    def _expect(self, holds: object, message: str) -> None:
        if not holds:
            self.wrong.append(message)

    def permitted_outcomes(self) -> set[str]:
        """What the caller may see."""
        trace, facts = self.trace, self.facts
        cancels = [stop for stop in trace.stops if stop.action in CANCELS]
        forms = {CANCELS[stop.action] for stop in cancels}
        # Nothing can keep a task from hearing of its own cancel(); a scope or a timeout that
        # comes to its end first has nothing to cancel any more.
        must = any(
            stop.settled < trace.over or stop.action in ("cancel", "cancel_all") for stop in cancels
        )
        signals = [entry for entry in trace.all_of("sent") if entry.name in SIGNALS]
        if facts.host_raises and facts.is_chained and signals:
            return forms | {"host"}
        if must:
            return forms
        failure = self.failed_training or self.failed_ending
        permitted = set(forms)
        if failure:
            permitted.add(f"fault {failure}")
        elif not self.hung:
            permitted.add("returned")
        if self.may_be_pressed:
            permitted.add("cancelled" if facts.is_chained else "keyboard")
        if self.may_run_out:
            permitted.add("cancelled")
        return permitted

    def _check_time(self) -> None:
        began = self.trace.must_be_at_batch()
        if began is not None:
            took, budget = self.trace.entries[-1].at - began, self.facts.grace_s + LOG_S + MARGIN_S
            self._expect(took <= budget, f"ended {took:.2f} s after the stop, budget {budget:.2f}")

    def _check_outcome(self) -> None:
        permitted = self.permitted_outcomes()
        outcome = self.seen.outcome
        self._expect(outcome in permitted, f"outcome {outcome!r}, permitted {sorted(permitted)}")

    def _check_callbacks(self) -> None:
        trace = self.trace
        counts = {name: len(trace.begun(name)) for name in ENDINGS}
        for name, count in counts.items():
            self._expect(count <= 1, f"{name} was called {count} times")
        for entry in (trace.entries[i] for i in trace.begun("on_error")):
            self._expect(
                self.failed_training or self.failed_ending, f"on_error without an error: {entry}"
            )
        for index in trace.begun("after_training"):
            self._expect(
                any(not state.is_cancelled for state in trace.states(index)),
                "after_training though the run was cancelled before it",
            )
        for name in ENDINGS:
            for index in trace.begun(name):
                self._expect(
                    min(trace.levels(index)) < ABANDON, f"{name} though the run was given up before"
                )
                is_ended = ("end", name) in {(e.what, e.name) for e in trace.entries[index:]}
                if name != "after_training" and not self.may_abandon:
                    self._expect(is_ended, f"not every extension was called with {name}")
        if not self.may_abandon:
            self._check_counts(counts)

    def _check_counts(self, counts: dict[str, int]) -> None:
        trace = self.trace
        found = tuple(counts[name] for name in ENDINGS)
        if self.failed_training:
            expected = (1, 0, 0) if self.failed_training in self.facts.exits else (0, 0, 1)
            self._expect(
                found == expected,
                f"{ENDINGS} were called {found} times after {self.failed_training} failed, "
                f"expected {expected}",
            )
            return
        interrupted, finished, told = found
        if interrupted:
            levels = trace.levels(trace.begun("on_interrupt")[0])
            self._expect(max(levels) > NONE, "on_interrupt though nothing was asked from outside")
        else:
            levels = trace.levels(trace.end)
            self._expect(min(levels) == NONE, f"no on_interrupt at level {levels}")
        if not finished:
            until = next((i for i, e in enumerate(trace.entries) if e.what == "final"), trace.over)
            is_cancelled = any(state.is_cancelled for state in trace.states(until))
            self._expect(
                is_cancelled or self.failed_ending, "no after_training, and nobody cancelled"
            )
        if self.failed_ending and not any(s.is_cancelled for s in trace.states(trace.over)):
            self._expect(told, f"no on_error after {self.failed_ending} failed")

    def _check_boundaries(self) -> None:
        """Look at where the run went on, and where it stopped."""
        trace = self.trace
        requested = [i for i, entry in enumerate(trace.entries) if entry.what == "finish"]
        for index in trace.begun("before_batch"):
            self._expect(
                min(trace.levels(index)) < BATCH,
                f"batch {trace.entries[index].n} was begun after a stop at the batch",
            )
            self._expect(
                not requested or index < requested[0],
                f"batch {trace.entries[index].n} was begun after training_finish_requested",
            )
        for index in trace.begun("before_epoch"):
            self._expect(
                min(trace.levels(index)) < EPOCH,
                f"epoch {trace.entries[index].n} was begun after a stop",
            )
        if self.may_abandon or self.failed_training:
            return
        ended = {e.n for e in trace.entries if (e.what, e.name) == ("end", "after_batch")}
        for index in trace.begun("before_batch"):
            batch = trace.entries[index].n
            self._expect(batch in ended, f"batch {batch} was begun and did not settle")
        levels = trace.levels(trace.end)
        last = trace.entries[trace.last]
        is_after_epoch = (last.what, last.name) == ("end", "after_epoch")
        at_epoch = is_after_epoch or not trace.begun("before_batch")
        self._expect(
            self.seen.is_complete
            or requested
            or max(levels) >= BATCH
            or (max(levels) == EPOCH and at_epoch),
            f"the training ended after {last} for no reason",
        )

    def _check_records(self) -> None:
        trace, records = self.trace, self.seen.records
        failure = self.failed_training or self.failed_ending
        was_epoch = any(state.was_epoch for state in trace.states(trace.over))
        at_end, at_last = trace.levels(trace.end), trace.levels(trace.over)
        cancels = any(stop.action in CANCELS for stop in trace.stops)
        given_up = self.seen.outcome == "keyboard" or (
            self.seen.outcome == "cancelled" and not cancels
        )
        # What has raised has come to an end, too.
        ended = {(e.name, e.n) for e in trace.all_of("end")}
        ended |= {_end_of_fault(e.name) for e in trace.all_of("raise")}
        is_cut = any(
            ("after_batch" if e.name == "before_batch" else e.name, e.n) not in ended
            for e in trace.all_of("begin")
            if e.name not in ("initialize", "after_batch")
        )
        finished = bool(trace.begun("after_training"))
        asked = {"batch_interrupt_received", "epoch_interrupt_received"} & records.keys()
        # Each with whether it must, and whether it may, be there.
        for key, must, may in (
            ("training_finished", finished, finished),
            ("got_exception", failure and not self.may_abandon, failure),
            ("batch_interrupt_received", min(at_end) >= BATCH, max(at_last) >= BATCH),
            ("epoch_interrupt_received", at_end == {EPOCH}, was_epoch),
            ("interrupt_cause", asked, asked),
            ("step_abandoned", self.hung or (given_up and is_cut), self.may_abandon),
        ):
            if not trace.all_of("begin"):
                must = False  # the log was never open
            if must:
                self._expect(key in records, f"no record {key}")
            elif not may and key not in self.seen.inherited:
                self._expect(key not in records, f"record {key} = {records.get(key)!r}")
        cause = str(records.get("interrupt_cause", ""))
        causes = {_cause(stop.action) for stop in trace.stops}
        if cause and "interrupt_cause" not in self.seen.inherited:
            self._expect(cause.split(", and ")[0] in causes, f"cause {cause}, heard {causes}")


def _place(fault: str) -> str:
    return fault.split(" ")[0]


def _end_of_fault(fault: str) -> tuple[str, int]:
    """Give the callback that a fault ended, with its number; a step is of its batch."""
    place, number = fault.split(" ")
    return "after_batch" if place == "step" else place, int(number)


def _cause(action: str) -> str:
    if action in CANCELS:
        return "cancelled"
    if action.startswith("request_"):
        return f"request_finish({action.removeprefix('request_')!r})"
    return action
