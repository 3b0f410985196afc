"""What is done in a storm, and to what: a schedule, drawn from a seed and nothing else."""

from dataclasses import dataclass, field
from random import Random

from storm_oracle import CANCELS, Facts

WHERE = ("after_batch", "on_interrupt", "on_error", "after_training", "before_epoch", "step")


@dataclass(frozen=True)
class Event:
    """Something done to a run: at the n-th moment of a name, so many turns later."""

    moment: str
    n: int
    turns: int
    action: str
    by: str = "raise_signal"


@dataclass(frozen=True)
class Fault:
    """What an extension or a step does wrong, once: at its n-th call or batch."""

    where: str
    n: int
    how: str  # raises, exits, hangs, hangs on: and swallows each cancellation

    @property
    def name(self) -> str:
        return f"{self.where} {self.n}"


@dataclass
class Schedule:
    """All that is drawn from a seed."""

    seed: int
    step: str
    stream: str
    batches: int
    epochs: int
    quiet: tuple[int, int] | None
    is_fed: bool
    grace_s: float
    mode: str
    host: str
    wrap: str
    runs: int
    slow: dict[str, int]
    flushes: list[int]
    order: list[str]
    faults: list[Fault] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    @property
    def is_chained(self) -> bool:
        """Whether the program hears signals too, while a run does."""
        if self.mode == "replace":
            return self.host == "loop"  # whose handler could not be put back
        return self.host != "none" and self.mode != "off"

    @property
    def facts(self) -> Facts:
        return Facts(
            grace_s=self.grace_s,
            is_heard=self.mode != "off",
            is_chained=self.is_chained,
            host_raises=self.host == "raising",
            exits=frozenset(fault.name for fault in self.faults if fault.how == "exits"),
        )


def draw(seed: int) -> Schedule:
    """Draw the schedule of a seed."""
    random = Random(seed)  # noqa: S311 - keeps no secret
    mode = random.choice(["auto"] * 5 + ["chain", "replace", "off"])
    host = random.choice(["none", "none", "function", "loop", "raising"])
    if mode == "chain" and host == "none":
        host = "function"  # chained to Python's own handlers a signal ends the harness
    if mode != "off" and host == "raising" and random.random() < 0.5:
        host = "function"
    if mode == "off" and host == "raising":
        host = "none"
    stream = random.choice(["list", "generator", "queue", "queue"])
    batches, epochs = random.randint(2, 5), random.randint(1, 3)
    schedule = Schedule(
        seed=seed,
        step=random.choice(["async", "async", "worker", "inline"]),
        stream=stream,
        batches=batches,
        epochs=epochs,
        quiet=(random.randrange(epochs), random.randrange(batches)) if stream != "list" else None,
        is_fed=random.random() < 0.4,
        grace_s=random.choice([0.05, 0.1, 0.2, 0.3]),
        mode=mode,
        host=host,
        wrap=random.choice(["none", "none", "scope", "timeout"]),
        runs=random.choice([1, 2, 2, 3]),
        slow={
            where: random.randint(1, 8)
            for where in ("after_batch", "on_interrupt", "after_training", "on_error")
            if random.random() < 0.4
        },
        flushes=[n for n in range(1, 100) if random.random() < 0.4],
        order=random.sample(["faulty", "slow", "flush", "finish"], 4),
    )
    _draw_faults(random, schedule)
    _draw_events(random, schedule)
    return schedule


def _draw_faults(random: Random, schedule: Schedule) -> None:
    for _ in range(random.choice([0, 0, 0, 0, 1, 1, 2])):
        where = random.choice(WHERE)
        most = {"after_batch": 6, "step": 6, "before_epoch": 2}.get(where, 1)
        hows = ["raises", "raises", "raises", "hangs", "hangs on"]
        if where == "step":
            hows.append("exits")
            if schedule.step == "inline":
                hows = ["raises", "exits"]
        fault = Fault(where, random.randint(1, most), random.choice(hows))
        if fault.name not in [other.name for other in schedule.faults]:
            schedule.faults.append(fault)


def _draw_events(random: Random, schedule: Schedule) -> None:
    actions = ["cancel", "cancel", "request_epoch", "request_batch", "finish"]
    decisive = [["cancel"], ["request_batch"]]
    if schedule.wrap != "none":
        actions += [schedule.wrap] * 3
        decisive.append([schedule.wrap])
    if schedule.runs == 1:
        actions += ["cancel_all"] * 3
    if schedule.mode != "off" or schedule.host != "none":
        actions += ["SIGINT", "SIGINT", "SIGINT", "SIGTERM", "SIGTERM"]
    if schedule.mode != "off":
        decisive += [["SIGTERM"], ["SIGINT"] * 3]
    moments = [(name, 1) for name in ("start", "before_training", "initialize", "final")]
    moments += [(name, n) for name in ("on_interrupt", "final", "start") for n in (1, 2)]
    moments += [("on_resumption", 1), ("after_training", 1), ("on_error", 1), ("between", 1)]
    moments += [("quiet", 1)] if schedule.quiet else []
    for name in ("before_batch", "step", "step", "after_batch", "after_batch"):
        moments += [(name, n) for n in range(1, 1 + schedule.batches * schedule.epochs)]
    for name in ("before_epoch", "after_epoch"):
        moments += [(name, n) for n in range(1, 1 + schedule.epochs)]
    event = None
    for _ in range(random.choice([0, 1, 1, 1, 2, 2, 2, 3, 3, 4, 5, 6])):
        if event is None or random.random() < 0.5:
            moment, turns = random.choice(moments), random.choice([0, 0, 0, 1, 2, 3, 5])
        else:
            moment, turns = (event.moment, event.n), event.turns
        action = random.choice(actions)
        if action == "finish":
            # It is a record that an extension makes; what it means elsewhere is not said.
            places = [m for m in moments if m[0] in ("after_batch", "before_batch", "after_epoch")]
            moment, turns = random.choice(places), 0
        if moment[0] == "start" and action not in CANCELS:
            turns = turns or 1  # before run() was called there is no run to hear of it
        event = Event(*moment, turns, action, random.choice(["raise_signal", "kill"]))
        schedule.events.append(event)
    # What would wait for ever is ended by something that cannot be overheard.
    waits = [("hang", n + 1) for n, f in enumerate(schedule.faults) if f.how.startswith("hangs")]
    if schedule.quiet and not schedule.is_fed:
        waits.append(("quiet", 1))
    for moment in waits:
        turns = random.choice([0, 0, 1, 3])
        schedule.events += [Event(*moment, turns, action) for action in random.choice(decisive)]
