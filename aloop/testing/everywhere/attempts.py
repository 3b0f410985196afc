"""Runs of a training in this process, with all that is looked at while they run and after them."""

import asyncio
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from types import CodeType
from typing import Any, Final, Self, TypeAlias

from aloop.callbacks import CallbackName
from aloop.checkpoints import CheckpointDirectory
from aloop.errors import AloopError, brief
from aloop.extensions import Checkpoint
from aloop.faults import watched_points
from aloop.log import SQLiteLog, read_log
from aloop.main_loop import MainLoop
from aloop.signals import SIGNALS
from aloop.tasks import frames_of
from aloop.testing.everywhere.places import Place
from aloop.testing.everywhere.surroundings import forget_frames, handlers_kept, messages_kept
from aloop.testing.guard import LeftBehindError, guarded
from aloop.testing.outcomes import MakeLoop, Outcome, differences, is_same, loop_of, outcome_of
from aloop.testing.reports import beginning
from aloop.testing.stepped_loop import SteppedLoop

__all__ = ["Attempt", "Frames", "Trainings", "told"]

Frames: TypeAlias = tuple[tuple[CodeType, int], ...]
"""Where a task waits: its coroutines from the outermost to the innermost, each with the line."""

_CANCELLED_S: Final = 0.1
"""How long a task that is left has to end when it is cancelled."""


def told(frames: Frames) -> str:
    """Say where a task waits."""
    return " > ".join(f"{code.co_qualname}:{line}" for code, line in frames[-3:])


def _frames_of(task: "asyncio.Task[Any]") -> Frames:
    return tuple((frame.f_code, frame.f_lineno) for frame in frames_of(task.get_coro()))


class _WatchedLoop(SteppedLoop):
    """An event loop that knows its tasks, and calls `look` between any two turns."""

    def __init__(self, look: Callable[[], None]) -> None:
        super().__init__()
        self._look = look
        self.pending: list[asyncio.Task[Any]] = []
        self._factory: Any = None  # of the program's own
        super().set_task_factory(self._make)
        self.call_at_turn(1, self._look_at_each)

    def _look_at_each(self) -> None:
        self.call_at_turn(self.turns + 2, self._look_at_each)
        self._look()

    def set_task_factory(self, factory: Any) -> None:
        """Have tasks made by a factory of the program's, and know them all the same."""
        self._factory = factory

    def get_task_factory(self) -> Any:
        """Give the program's factory."""
        return self._factory

    def _make(
        self, _loop: asyncio.AbstractEventLoop, work: Any, **options: Any
    ) -> "asyncio.Task[Any]":
        if self._factory is None:
            task: asyncio.Task[Any] = asyncio.Task(work, loop=self, **options)
        else:
            task = self._factory(self, work, **options)
        self.pending.append(task)
        return task


@dataclass
class Attempt:
    """One run of a training in an event loop of its own, in this thread.

    Parameters:
        make_loop: makes the loop.
        directory: where it trains.
        cancel_at: where it is cancelled: where one of its tasks waits, the first time, or after so
            many turns of the event loop.
        on_point: called when a fault point is passed, with the loop and the point.
        timeout_s: seconds after which it counts as stuck.
    """

    make_loop: MakeLoop
    directory: Path
    cancel_at: Frames | int | None = None
    on_point: Callable[[MainLoop, Place], None] | None = None
    timeout_s: float = 60.0

    passed: Counter[str] = field(default_factory=Counter[str])
    """How often each fault point was passed."""
    places: dict[Frames, None] = field(default_factory=dict[Frames, None])
    """Where its tasks have waited, in the order of the first time."""
    turns: int = 0
    """How many things the event loop has done while it ran."""
    was_cancelled: bool = False
    """Whether it came to where it is cancelled."""
    error: BaseException | None = None
    """What `run` raised."""
    outcome: Outcome | None = None
    """What it ended with, where `run` returned."""
    wrong: list[str] = field(default_factory=list[str])
    """What should not be."""

    def __post_init__(self) -> None:
        self._counting = threading.Lock()
        self._events: _WatchedLoop | None = None
        self._loop: MainLoop | None = None
        self._run: asyncio.Task[Any] | None = None

    def run(self) -> Self:
        """Do it."""
        try:
            with (
                guarded(block_s=None, signals=False),
                handlers_kept(),
                messages_kept(self.wrong),
                redirect_stdout(StringIO()),
                redirect_stderr(StringIO()),
                watched_points(self._pass),
                asyncio.Runner(loop_factory=lambda: _WatchedLoop(self._look)) as runner,
            ):
                runner.run(self._main())
                runner.run(self._end_left())
                self._events = self._loop = self._run = None
                forget_frames(self.error)  # for what is in them would be held open
        except LeftBehindError as error:
            self.wrong.append(str(error))
        return self

    async def _main(self) -> None:
        events = asyncio.get_running_loop()
        assert isinstance(events, _WatchedLoop)
        events.set_exception_handler(self._complain)
        try:
            async with asyncio.timeout(self.timeout_s):
                self._loop = loop = await loop_of(self.make_loop, self.directory)
        except Exception as error:  # noqa: BLE001 - told
            self.error = error
            return
        self._events = events
        before = [signal.getsignal(number) for number in SIGNALS]
        run = self._run = asyncio.create_task(loop.run(), name="run()")
        await asyncio.wait([run], timeout=self.timeout_s)
        self._run = None
        if not run.done():
            places = "; ".join(told(_frames_of(task)) for task in events.pending)
            self.wrong.append(f"it has not ended after {self.timeout_s:g} s, but waits in {places}")
            self.error = TimeoutError(self.wrong[-1])
            return
        await asyncio.sleep(0)
        self.error = asyncio.CancelledError() if run.cancelled() else run.exception()
        if [signal.getsignal(number) for number in SIGNALS] != before:
            self.wrong.append("the signal handlers from before are not back")
        main = asyncio.current_task()
        self.wrong += [
            f"the task {task.get_name()!r} is left, in {told(_frames_of(task))}"
            for task in events.pending
            if task is not main and not task.done()
        ]
        if self.was_cancelled and not run.cancelled():
            how = "returned" if self.error is None else f"raised {brief(self.error)}"
            self.wrong.append(f"run() was cancelled, and {how}; it should raise CancelledError")
        if self.error is not None and self.passed["run.started"]:
            await loop.log.flush()  # what could not be written when the run ended, if it was that
        self._check_log(loop)
        if self.error is None:
            try:
                self.outcome = outcome_of(loop)
            except AloopError as error:
                self.error = error
        elif self.was_cancelled:
            self._check_last_checkpoint(loop)

    async def _end_left(self) -> None:
        """Cancel what is left, and have the event loop end though some of it swallows that."""
        pending = () if self._events is None else self._events.pending
        left = [task for task in pending if not task.done() and task is not asyncio.current_task()]
        for task in left:
            task.cancel()
        for task in (await asyncio.wait(left, timeout=_CANCELLED_S))[1] if left else ():
            # Public to those who extend asyncio, as its documentation says.
            asyncio.tasks._unregister_task(task)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - as above

    def _complain(self, _events: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        why = "" if error is None else f": {brief(error)}"
        self.wrong.append(f"the event loop complains: {context['message']}{why}")

    def _pass(self, name: str) -> None:
        with self._counting:
            self.passed[name] += 1
            place = Place(name, self.passed[name])
        if self.on_point is not None and self._loop is not None:
            self.on_point(self._loop, place)

    def _look(self) -> None:
        run, events = self._run, self._events
        if run is None or events is None:
            return
        self.turns += 1
        events.pending = [task for task in events.pending if not task.done()]
        # The first one is the task that waits for the run.
        here = [frames for task in events.pending[1:] if (frames := _frames_of(task))]
        self.places.update(dict.fromkeys(here))
        if not self.was_cancelled and (self.cancel_at == self.turns or self.cancel_at in here):
            self.was_cancelled = run.cancel()

    def _check_log(self, loop: MainLoop) -> None:
        """See that the file of the log has what the log has in memory."""
        log = loop.log
        if not isinstance(log, SQLiteLog) or not isinstance(log.database, Path):
            return
        if not self.passed["run.started"]:
            return  # a run that is refused leaves nothing there
        with read_log(log.database, log.h_uuid) as file:
            written = {time: dict(file[time]) for time in file}
        for time in log:
            row, other = dict(log[time]), written.get(time, {})
            for key in row.keys() | other.keys():
                if not is_same(row.get(key), other.get(key)):
                    self.wrong.append(
                        f"the file of the log has {other.get(key)!r:.80} as {key} at {time}; it "
                        f"should have {row.get(key)!r:.80}"
                    )

    def _check_last_checkpoint(self, loop: MainLoop) -> None:
        """See that the end of a run that was cancelled was saved, once in each place for it."""
        if not self.passed["run.started"]:
            return
        for each in loop.extensions:
            # One that does not save on an interrupt is as its owner wants it.
            if isinstance(each, Checkpoint) and each.handler(CallbackName.ON_INTERRUPT):
                self._check_last_of(each.path, loop)

    def _check_last_of(self, path: Path, loop: MainLoop) -> None:
        found, broken = CheckpointDirectory(path).published()
        self.wrong += [f"a checkpoint is broken: {brief(error)}" for error in broken]
        last = [each for each in found if each.position == loop.position]
        if len(last) != 1:
            there = ", ".join(each.path.name for each in found) or "none"
            self.wrong.append(
                f"the end of the run, at {loop.position}, was saved {len(last)} times in "
                f"{path.name}; it should be once; the checkpoints are {there}"
            )


@dataclass(slots=True)
class Trainings:
    """One training that is begun again and again, each time in a directory of its own."""

    make_loop: MakeLoop
    directory: Path
    ignore: Sequence[str]
    timeout_s: float
    restored: int = 0
    """How often it has gone on from a checkpoint."""

    def straight(self) -> Attempt:
        """Run it without breaking it; `AloopError` if that does not come to its end."""
        attempt = self.attempt("straight")
        if attempt.error is not None:
            raise AloopError(
                f"the training fails when nothing breaks it: {brief(attempt.error)}; expected it "
                "to come to its end; mend it first"
            ) from attempt.error
        assert attempt.outcome is not None
        return attempt

    def attempt(
        self,
        name: str,
        cancel_at: Frames | int | None = None,
        on_point: Callable[[MainLoop, Place], None] | None = None,
    ) -> Attempt:
        """Begin it in a directory, or go on with it there."""
        directory = self.directory / name
        is_new = not directory.exists()
        directory.mkdir(exist_ok=True)
        attempt = Attempt(self.make_loop, directory, cancel_at, on_point, self.timeout_s).run()
        if is_new:
            attempt.wrong += beginning(attempt.passed["restore.done"])
        return attempt

    def go_on(self, name: str, straight: Attempt) -> list[str]:
        """Start it again, and say what is wrong at its end."""
        again = self.attempt(name)
        self.restored += again.passed["restore.done"]
        wrong = again.wrong
        if again.error is not None:
            wrong.append(f"it failed: {brief(again.error)}")
        else:
            wrong += differences(straight.outcome or {}, again.outcome or {}, self.ignore)
        return [f"started again: {text}" for text in wrong]

    def forget(self, name: str) -> None:
        """Remove what is left of a trial."""
        shutil.rmtree(self.directory / name)
