"""Runs in a virtual loop that are ended at a moment of a seed's choosing, and what must hold then.

A `Scene` is one such run, with its extensions, its stream and other runs beside it. What happens
is written down as it happens; `Scene.check` holds it against the contract of the endings and gives
what was wrong. A run is told as a string, one letter for each thing that was called (`LETTERS`).
"""

import asyncio
import logging
import re
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from random import Random
from typing import Any
from unittest.mock import patch

import anyio

from aloop import FinishAfter, MainLoop, TrainingAlgorithm, TrainingExtension
from aloop.testing.virtual_loop import VirtualLoop, run_virtual

GRACE_S = 5.0
DELAY = 0.25

LETTERS = {
    "before_training": "T",
    "initialize": "i",
    "on_resumption": "R",
    "before_epoch": "E",
    "before_batch": "B",
    "step": "S",
    "after_batch": "A",
    "after_epoch": "F",
    "on_interrupt": "I",
    "after_training": "Z",
    "on_error": "X",
}

EPOCHS = r"Ti(?:E(?:BSA)+F)*"

TALES = {
    "finish": EPOCHS + r"(?:E(?:BSA)+)?Z",
    "epoch": EPOCHS + r"IZ",
    "batch": EPOCHS + r"(?:E(?:BSA)*)?IZ",
    "cancel": EPOCHS + r"(?:E(?:BSA)*)?I",
    "step fails": EPOCHS + r"E(?:BSA)*BSX",
    "stream fails": EPOCHS + r"E(?:BSA)*X",
    "extension fails": EPOCHS + r"E(?:BSA)*BSAX",
    "exit": EPOCHS + r"E(?:BSA)*BSI",
    "given up": EPOCHS + r"E(?:BSA)*BS",
}
"""What may happen in a run that is ended in these ways, from its beginning."""

SECOND = r"(?:Ti)?R?(?:(?:BSA)*F)?(?:E(?:BSA)+F)*(?:E?(?:BSA)*)?Z"
"""What may happen in a run that goes on from there, until its `FinishAfter`."""


class Trouble(Exception):  # noqa: N818 - it is no error of the library
    """What fails in these runs."""


class Witness(TrainingExtension):
    """Answers to every callback, with awaits in between, and writes it down."""

    def __init__(self, scene: "Scene", place: int) -> None:
        super().__init__(f"witness {place}")
        self.scene = scene
        self.place = place
        self.is_plain = {name for name in LETTERS if scene.random.random() < 0.2}

    def handler(self, callback):
        name = str(callback)
        if name in self.is_plain and (self.place, name) not in self.scene.troubles:

            def note(*args: object) -> None:
                self.scene.begin(self.place, name, *args)
                self.scene.end(self.place, name)

            return note

        async def answer(*args: object) -> None:
            await self.scene.do(self.place, name, *args)

        return answer


class Trained(TrainingAlgorithm):
    """A training of several awaits a batch."""

    def __init__(self, scene: "Scene") -> None:
        self.scene = scene

    async def initialize(self) -> None:
        await self.scene.do(0, "initialize")

    async def process_batch(self, batch: object) -> dict[str, Any]:
        await self.scene.do(0, "step", batch)
        return {"batch": batch}


class Epoch:
    """The async iterator of an epoch whose batches come through a queue."""

    def __init__(self, scene: "Scene") -> None:
        self.scene = scene

    def __aiter__(self) -> "Epoch":
        return self

    async def __anext__(self) -> int:
        self.scene.is_fetching = True
        try:
            batch = await self.scene.queue.get()
        finally:
            self.scene.is_fetching = False
        if batch is None:
            raise StopAsyncIteration
        return batch


_under_way: list["Scene"] = []
"""The scenes that are played, to look at should they never end."""


@dataclass
class Scene:
    """One run and what happened in it.

    Parameters:
        seed: decides everything.
        stream: "list", "generator", "queue" or "quiet"; the last gives `quiet_after` batches and
            then nothing until somebody wakes it.
    """

    seed: int
    stream: str = "list"
    quiet_after: int = 10**9
    batches: int = 3
    extensions: int = 2
    signals: Any = "auto"
    troubles: dict[tuple[int, str], Callable[..., Awaitable[None]]] = field(default_factory=dict)
    events: list[tuple[float, str, int, str, tuple[object, ...]]] = field(default_factory=list)
    runs: list[int] = field(default_factory=list)  # where in the events each run begins
    wrong: list[str] = field(default_factory=list)
    asked_at: float | None = None
    grace_from: float | None = None
    ended_at: float | None = None
    is_over: bool = False
    is_fetching: bool = False
    seen: BaseException | None = None
    outer: BaseException | None = None

    def __post_init__(self) -> None:
        _under_way.append(self)
        self.random = Random(f"scene {self.seed}")  # noqa: S311 - no secret
        self.clock: VirtualLoop = asyncio.get_running_loop()  # type: ignore[assignment] - where scenes are played
        self.queue: asyncio.Queue[int | None] = asyncio.Queue()
        self.awake = asyncio.Event()
        self.release = asyncio.Event()
        self.feeder: asyncio.Task[None] | None = None
        self.next_batch = 0
        self.finish = FinishAfter()
        self.is_to_finish = False
        self.on_start: Callable[[], None] = lambda: None
        self.waiter: asyncio.Task[None] | None = None  # or it would be collected
        self.hears_with_others = False
        self.may_leave = False  # a task that waits for a batch
        self.loop = MainLoop(
            Trained(self),
            self.epoch,
            extensions=[Witness(self, n) for n in range(self.extensions)] + [self.finish],
            log_backend="python",
            grace_s=GRACE_S,
            signals=self.signals,
            stall_warning_s=0,  # whose thread would wake the loop by the real clock
        )

    # What the run is made of.

    def begin(self, place: int, name: str, *args: object) -> None:
        self.events.append((self.clock.time(), "begin", place, name, args))
        if self.is_to_finish and name in ("before_batch", "after_batch", "after_epoch"):
            self.is_to_finish = False
            self.loop.log.current_row["training_finish_requested"] = True

    def end(self, place: int, name: str) -> None:
        self.events.append((self.clock.time(), "end", place, name, ()))

    async def do(self, place: int, name: str, *args: object) -> None:
        self.begin(place, name, *args)
        trouble = self.troubles.get((place, name))
        if trouble is not None:
            await trouble(*args)
        for _ in range(self.random.randrange(1, 4) if name == "step" else 1):
            await self.pause()
        self.end(place, name)

    async def pause(self) -> None:
        await asyncio.sleep(self.random.choice([0, 0, 0.01, 0.02]))

    def epoch(self) -> Any:
        if self.stream == "list":
            return self.numbers()
        if self.stream == "generator":
            return self.numbers_slowly()
        if self.feeder is None:
            self.feeder = asyncio.create_task(self.feed(), name="feeder")
        return Epoch(self)

    def numbers(self) -> Iterator[int]:
        for _ in range(self.batches):
            self.next_batch += 1
            yield self.next_batch - 1

    async def numbers_slowly(self):
        for batch in self.numbers():
            await self.pause()
            yield batch

    async def feed(self) -> None:
        while True:
            for batch in self.numbers():
                await asyncio.sleep(self.random.choice([0, 0.01, 0.05, 0.2]))
                if batch == self.quiet_after:
                    await self.awake.wait()
                self.queue.put_nowait(batch)
            self.queue.put_nowait(None)

    # What is done to it.

    def at_some_time(self, deliver: Callable[[], None], within_s: float = 0.4) -> None:
        """Do something at a moment of the seed's choosing: at a time, or in a round."""
        if self.random.random() < 0.5:
            when = self.clock.time() + self.random.randrange(int(within_s * 100) + 1) / 100
            self.clock.call_at(when, self.ask, deliver)
        else:
            number = self.clock.rounds + self.random.randrange(1, 250)
            self.clock.call_at_round(number, lambda: self.ask(deliver))

    def soon(self, deliver: Callable[[], None]) -> None:
        """Do something a few rounds or a moment later."""
        turns = self.random.randrange(6)
        if turns == 5:
            self.clock.call_later(0.005, self.ask, deliver)
        else:
            self.after_turns(turns, partial(self.ask, deliver))

    def after_turns(self, turns: int, deliver: Callable[[], None]) -> None:
        """Do something some rounds later, which the loop turns even if nothing else is ready."""
        if turns:
            self.clock.call_soon(self.after_turns, turns - 1, deliver)
        else:
            self.clock.call_soon(deliver)

    def ask(self, deliver: Callable[[], None]) -> None:
        if self.is_over:
            return
        self.asked_at = self.clock.time()
        deliver()

    async def run(self) -> None:
        """Run, and keep what the caller of `run()` sees."""
        self.is_over = False
        self.runs.append(len(self.events))
        if len(self.runs) == 1:
            self.on_start()
        try:
            log = await self.loop.run()
            assert log is self.loop.log
        except BaseException as error:
            self.seen = error
            raise
        finally:
            self.is_over = True
            self.ended_at = self.clock.time()

    def start(self, around: Callable[["Scene"], Awaitable[None]] | None = None) -> None:
        """Run in a task of its own."""

        async def caller() -> None:
            try:
                await (self.run() if around is None else around(self))
            except BaseException as error:  # noqa: BLE001 - kept; see the checks
                self.outer = error

        self.task = asyncio.create_task(caller(), name="caller")

    async def ended(self) -> None:
        await asyncio.wait([self.task])

    def wake(self) -> None:
        self.awake.set()

    async def run_again(self, batches: int) -> None:
        """Go on for that many batches, and for those that were left behind."""
        done = self.loop.status["iterations_done"]
        self.finish.set_conditions(after_n_batches=done + batches)
        if self.random.random() < 0.5:
            self.wake()
        else:
            self.clock.call_later(self.random.choice([0, 0.05]), self.wake)
        self.seen = self.outer = None
        self.start()
        await self.ended()
        self.expect(self.outer is None, f"the second run raised {self.outer!r}")
        self.expect_tale(SECOND, "the second run")

    # What must hold.

    def expect(self, holds: object, what: str) -> None:
        if not holds:
            self.wrong.append(what)

    def tale(self, run: int = -1) -> str:
        """Tell a run: a letter for each thing that the first extension, or the step, was called."""
        begin = self.runs[run]
        end = self.runs[run + 1] if run + 1 < len(self.runs) and run != -1 else len(self.events)
        return "".join(
            LETTERS[name]
            for _, what, place, name, _ in self.events[begin:end]
            if what == "begin" and place == 0
        )

    def expect_tale(self, pattern: str, which: str = "the run") -> None:
        self.expect(re.fullmatch(pattern, self.tale()), f"{which} was {self.tale()}")

    def expect_order(self) -> None:
        """One thing after another, extensions in their order; what has trouble may be cut off."""
        under_way: tuple[int, str] | None = None
        last: tuple[int, str] | None = None
        for number, (_, what, place, name, _) in enumerate(self.events):
            if number in self.runs:
                self.expect(
                    under_way is None or under_way in self.troubles,
                    f"{under_way} was under way when another run began",
                )
                under_way = last = None
            if what == "end":
                self.expect((place, name) == under_way, f"{name} of {place} ended in {under_way}")
                under_way = None
                continue
            if under_way is not None:
                self.expect(
                    under_way in self.troubles,
                    f"{name} of {place} began while {under_way} was under way",
                )
            elif not (last is None or last in self.troubles or last[1] in ("initialize", "step")):
                following = (last[0] + 1, last[1])
                is_first = place == 0 and last[0] == self.extensions - 1
                self.expect(
                    (place, name) == following or is_first, f"{(place, name)} came after {last}"
                )
            under_way = last = (place, name)

    def expect_each_batch_once(self) -> None:
        batches = [
            args[0]
            for _, what, place, name, args in self.events
            if what == "begin" and place == 0 and name == "before_batch"
        ]
        self.expect(batches == list(range(len(batches))), f"the batches were {batches}")

    def rows_with(self, key: str) -> list[int]:
        return [time for time in self.loop.log if key in self.loop.log[time]]

    def expect_records(self, stop: str | None, cause: str | None, *keys: str) -> None:
        """The kind of stop is on record once, with its cause, and these keys in the last row."""
        log = self.loop.log
        for kind in ("epoch", "batch"):
            key = f"{kind}_interrupt_received"
            rows = self.rows_with(key)
            is_asked = kind == stop
            self.expect(len(rows) == is_asked, f"{key} in rows {rows}")
            self.expect(log.status[key] is is_asked, f"{key} in status: {log.status[key]}")
            if rows and is_asked:
                row = log[rows[-1]]
                self.expect(row[key] is True, f"{key} is {row[key]!r}")
                self.expect(
                    row["interrupt_cause"] == cause, f"the cause is {row['interrupt_cause']!r}"
                )
        if stop is None:
            self.expect(not self.rows_with("interrupt_cause"), "there is a cause of no interrupt")
        for key in ("training_finished", "got_exception", "step_abandoned"):
            is_there = bool(log.current_row.get(key))
            self.expect(is_there == (key in keys), f"{key} is {log.current_row.get(key)!r}")

    def expect_nothing_new(self) -> None:
        """After a stop at batch level no batch is taken, and nothing is waited for."""
        assert self.asked_at is not None
        busy_until, is_busy = self.asked_at, False
        for time, what, place, name, args in self.events:
            if time > self.asked_at and place == 0 and name in ("before_epoch", "before_batch"):
                self.expect(what == "end", f"{name}{args} at {time}, {self.asked_at=}")
            if time > busy_until and not is_busy:
                self.expect(False, f"idle from {busy_until} to {time}, when {name} came")
            is_busy = what == "begin"
            busy_until = max(busy_until, time)

    def expect_no_time_lost(self) -> None:
        assert self.asked_at is not None
        assert self.ended_at is not None
        for before, (time, _, _, name, _) in pairwise(self.events):
            if name in ("on_interrupt", "after_training") and before[1] == "end":
                due = max(before[0], self.asked_at)
                self.expect(time <= due, f"{name} came at {time}, {time - due:g} s late")
        last = max([self.asked_at, *(event[0] for event in self.events)])
        self.expect(
            self.ended_at <= last + 1e-6,
            f"ended {self.ended_at - last:g} s after the last thing that was done",
        )


ROUNDS_TO_SETTLE = 60


async def settle() -> None:
    """Let everything run that is ready, late handles included."""
    for _ in range(ROUNDS_TO_SETTLE):
        await asyncio.sleep(0)


@contextmanager
def handler_of_a_host(number: signal.Signals | None, heard: list[int]) -> Iterator[None]:
    """Have a host's own handler in place, as an ASGI server has."""
    if number is None:
        yield
        return

    def handler(number: int, frame: object) -> None:
        heard.append(number)

    before = signal.signal(number, handler)
    try:
        yield
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)


class Messages(logging.Handler):
    """Keeps the messages of aloop."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@dataclass
class Played:
    """What came of playing a scene."""

    wrong: list[str]
    complaints: list[str]  # of the event loop; more may come when garbage is collected
    scenes: list[Scene]


def play(
    act: Callable[[int, Messages], Awaitable[list[Scene]]],
    seed: int,
    *,
    shuffled: bool = True,
    delay: float = DELAY,
    complaints_allowed: str | None = None,
) -> Played:
    """Play the scenes of an act in a loop of their own, and give what was wrong."""
    complaints: list[str] = []
    messages = Messages()
    _under_way.clear()
    logger = logging.getLogger("aloop")

    def complain(loop: object, context: dict[str, Any]) -> None:
        text = f"{context['message']}: {context.get('exception')!r}"
        if complaints_allowed is None or not re.search(complaints_allowed, text):
            complaints.append(text)

    async def main() -> Played:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(complain)
        with patch("aloop.turns.perf_counter", loop.time):
            scenes = await act(seed, messages)
            for scene in scenes:
                if scene.feeder is not None:
                    scene.feeder.cancel()
            await settle()
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        wrong = [text for scene in scenes for text in scene.wrong]
        if left and not any(scene.may_leave for scene in scenes):
            wrong.append(f"left: {left}")
        return Played(wrong, complaints, scenes)

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    logger.addHandler(messages)
    propagates, logger.propagate = logger.propagate, False  # or a failure shows thousands
    try:
        played = run_virtual(
            main(), seed=seed if shuffled else None, delay=delay if shuffled else 0.0
        )
    except Exception as error:  # noqa: BLE001 - a deadlock, or an act that could not go on
        wrong = [text for scene in _under_way for text in scene.wrong]
        played = Played([*wrong, repr(error)], complaints, list(_under_way))
    finally:
        logger.removeHandler(messages)
        logger.propagate = propagates
    now = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    if now != handlers:
        played.wrong.append(f"the signal handlers are {now}")
    return played


async def beside(scene: Scene, number: int) -> tuple[MainLoop, "asyncio.Task[object]"]:
    """Start another run in the same event loop; its task gives what it failed with."""

    async def step(batch: int) -> None:
        await asyncio.sleep(0.01 * (batch % 3))

    other = MainLoop(
        step,
        range(4),
        extensions=[FinishAfter(after_n_epochs=2 + number)],
        log_backend="python",
        signals=scene.signals,
        grace_s=GRACE_S,
        stall_warning_s=0,
    )

    async def run() -> object:
        try:
            await other.run()
        except BaseException as error:  # noqa: BLE001 - given
            return error
        return None

    return other, asyncio.create_task(run(), name=f"other {number}")


# Callers of different kinds: what a cancellation of the run can come from.


async def with_a_timeout(scene: Scene, seconds: float) -> None:
    """Run under `asyncio.timeout`."""
    scene.clock.call_later(seconds, scene.ask, lambda: None)
    async with asyncio.timeout(seconds):
        await scene.run()


async def with_a_scope(scene: Scene) -> None:
    """Run in an anyio scope that is cancelled from outside."""
    with anyio.CancelScope() as scope:
        scene.at_some_time(scope.cancel)
        await scene.run()
    scene.expect(scope.cancelled_caught, "the scope did not get its cancellation back")


async def with_a_sibling(scene: Scene) -> None:
    """Run in a task group where another task fails."""
    failed = asyncio.Event()

    async def sibling() -> None:
        await failed.wait()
        raise Trouble("sibling")

    async with asyncio.TaskGroup() as group:
        group.create_task(sibling(), name="sibling")
        scene.at_some_time(failed.set)
        await scene.run()


async def linger(scene: Scene) -> None:
    """Wait until the run was asked to stop, and a little longer."""
    while scene.asked_at is None:
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.01)  # in no time at all the run might not have heard of it


async def hang(scene: Scene) -> None:
    """Wait for ever, until cancelled or released."""
    await scene.release.wait()


async def swallow(scene: Scene) -> None:
    """Wait until released, whoever cancels."""
    while not scene.release.is_set():
        with suppress(asyncio.CancelledError):
            await scene.release.wait()
