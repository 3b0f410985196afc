"""Work that runs beside the training of a run, and belongs to it.

What fails here ends the run by the next batch boundary. Every ending of a run waits for what is
under way: as long as the grace allows, then it is cancelled, and what does not end by that is
named and left behind.
"""

import asyncio
import contextvars
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from inspect import isawaitable, iscoroutine
from typing import Any, Final, TypeAlias, cast

from aloop.errors import ArgumentError, NotRunningError, TrainingFinish, brief
from aloop.offload import Worker, current_worker
from aloop.stalls import blames
from aloop.stopping import LeftBehind, StopLevel, StopRequest
from aloop.tasks import CANCEL_AGAIN_S, create_hidden_task, current_part, whereabouts

__all__ = ["BackgroundWork", "current_moment"]

SHARE: Final = 0.9
"""How much of the grace of a run that is stopped it may use up: the callbacks need some too."""

CANCELLED_S: Final = 0.4
"""How long what was cancelled has to end: a little less than a part of the run has."""

HURRIED_PAUSE_S: Final = 0.1
"""How long a pause is at the most when the run is to stop."""

SAID_AFTER_S: Final = 1.0
"""After how long it is said what a checkpoint waits for."""

current_moment: Final[ContextVar[Any]] = ContextVar("aloop_moment", default=None)
"""The `Moment` that the running task is about; None in the training itself."""

# What takes the arguments that come with it, and returns something that can be awaited.
_Function: TypeAlias = Callable[..., Awaitable[Any]]

_logger = logging.getLogger("aloop")


@dataclass(eq=False, slots=True)
class _Job:
    """One piece of work."""

    name: str
    work: Awaitable[Any]
    changes_state: bool = False
    """Whether it belongs to a boundary, and to a checkpoint that is taken after it."""
    coroutine: Coroutine[Any, Any, None] | None = None
    is_cancelled: bool = False


class BackgroundWork:
    """What runs beside the training of one run.

    Parameters:
        stop: what is asked of the run; told of what fails.
        grace_s: seconds that an ending waits for the work.
    """

    def __init__(self, stop: StopRequest, grace_s: float) -> None:
        self._stop = stop
        self._grace_s = grace_s
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._jobs: dict[asyncio.Task[None], _Job] = {}
        self._left: dict[asyncio.Task[None], _Job] = {}  # those that would not end
        self._last: dict[int, asyncio.Task[None]] = {}  # by owner's id, of those that take turns
        self._slow: dict[int, object] = {}  # the owners that were waited for
        self._failures: list[BaseException] = []  # that no ending has been told of
        self._given_up_at: float | None = None  # when all was cancelled with the run
        self._idle: asyncio.Future[None] | None = None
        self.part = object()
        """Stands for it in `aloop.tasks.current_part`."""
        self.worker: Worker | None = None
        """The worker of the run, in which `run_in_worker` calls from here too."""
        self.has_failed_turn = False
        """Whether anything that changes the state of a boundary failed, or never began."""
        self.has_cut_turn = False
        """Whether any such was cancelled."""
        self.is_finishing = False
        """Whether an ending waits for it, and hears of a stop without more."""
        self.is_over = False
        """Whether the run has ended: nothing begins any more, and nothing counts."""

    @property
    def is_left(self) -> bool:
        """True while something that would not end is still under way."""
        return bool(self._left)

    def start_soon(self, func: _Function, *args: Any, name: str | None = None) -> None:
        """Run a coroutine function beside the training; see `MainLoop.start_soon`."""
        self._refuse_if_over()
        if not callable(cast("object", func)):
            if iscoroutine(func):
                func.close()  # or Python warns that it was never awaited, on top of this error
            raise ArgumentError(
                f"start_soon was given {func!r:.80}; expected a coroutine function and its "
                "arguments; leave out the parentheses behind its name"
            )
        name = f"the background work {_name_of(func) if name is None else str(name)!r}"
        if threading.get_ident() == self._thread:
            self._start(_made(func, args), name)
        else:
            self._loop.call_soon_threadsafe(
                self._start_from_elsewhere, func, args, name, context=contextvars.copy_context()
            )

    async def start_in_turn(
        self, owner: object, func: _Function, *args: Any, name: str, changes_state: bool = True
    ) -> None:
        """Run a coroutine function beside the training, when what its owner began has ended.

        Waits for that, unless the run is to stop, so that no work piles up. With `changes_state`
        no checkpoint is taken without what it does.
        """
        self._refuse_if_over()
        stop = self._stop
        while (before := self._last.get(id(owner))) is not None and not stop.must_leave:
            if id(owner) not in self._slow:
                self._slow[id(owner)] = owner
                _logger.warning(
                    "%s is due again before it has ended; the training waits for it", name
                )
            await asyncio.wait([before, stop.news()], return_when=asyncio.FIRST_COMPLETED)
        if not (stop.failure is None or isinstance(stop.failure, TrainingFinish)):
            self.has_failed_turn |= changes_state
            return  # perhaps its own
        work = func(*args) if before is None else _after(before, func, args)
        task = self._last[id(owner)] = self._start(work, name, changes_state=changes_state)
        task.add_done_callback(partial(self._forget_last, owner))

    @property
    def is_settled(self) -> bool:
        """True while nothing is under way that was begun in turn."""
        return not self._last

    async def settle(self, owner: object | None = None) -> None:
        """Wait until what was begun in turn so far, by one or by all, has ended; name what is slow.

        Not, when the run is to stop: that has its own time.
        """
        begun = [t for key, t in self._last.items() if owner is None or key == id(owner)]
        is_said = False
        while not self._stop.must_leave and (left := [t for t in begun if not t.done()]):
            timeout = None if is_said else SAID_AFTER_S
            news = self._stop.news()
            done, _ = await asyncio.wait(
                [*left, news], timeout=timeout, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                is_said = True
                names = ", ".join(self._jobs[task].name for task in left if task in self._jobs)
                _logger.warning("a checkpoint is due, and the training waits for %s", names)

    async def finish_turns(self) -> None:
        """Wait for what was begun in turn, as long as the grace allows."""
        begun = self._loop.time()
        self.is_finishing = True
        try:
            while self._last and (left_s := self._ends_at(begun) - self._loop.time()) > 0:
                await asyncio.wait(
                    [*self._last.values(), self._stop.news()],
                    timeout=left_s,
                    return_when=asyncio.FIRST_COMPLETED,
                )
        finally:
            self.is_finishing = False

    def _forget_last(self, owner: object, task: asyncio.Task[None]) -> None:
        if self._last.get(id(owner)) is task:
            del self._last[id(owner)]

    async def pause(self, seconds: float) -> bool:
        """Wait so many seconds, or until the run is to stop, and give whether that came to be.

        Short, when the run is to stop already.
        """
        job = self._jobs.get(cast("Any", asyncio.current_task()))
        if job is not None and job.is_cancelled:
            raise asyncio.CancelledError  # which it has made an error of its own out of
        stop = self._stop
        if stop.must_leave:
            await asyncio.sleep(min(seconds, HURRIED_PAUSE_S))
            return False
        ends_at = self._loop.time() + seconds
        while not stop.must_leave and (left_s := ends_at - self._loop.time()) > 0:
            await asyncio.wait([stop.news()], timeout=left_s)
        return stop.must_leave

    def _refuse_if_over(self) -> None:
        if self.is_over:
            raise NotRunningError(
                "work was to be started beside a run that has ended; expected a run under way; "
                "start it from a callback, or while run() is awaited"
            )

    def _start_from_elsewhere(self, func: _Function, args: tuple[Any, ...], name: str) -> None:
        """Start what another thread asked for, where nobody can be told that it is refused."""
        try:
            self._refuse_if_over()
            self._start(_made(func, args), name)
        except BaseException as error:  # noqa: BLE001 - it counts as a failure of the work
            self._on_failure(error, name)

    def _start(
        self, work: Awaitable[Any], name: str, *, changes_state: bool = False
    ) -> asyncio.Task[None]:
        job = _Job(name, work, changes_state)
        job.coroutine = self._see_through(job, name)
        context = contextvars.copy_context()
        for variable, value in (
            (current_worker, self.worker),
            (current_part, self.part),
            (current_moment, None),
        ):
            context.run(cast("ContextVar[Any]", variable).set, value)
        task = create_hidden_task(job.coroutine, name=f"aloop: {name}", context=context)
        self._jobs[task] = job
        task.add_done_callback(self._on_end)
        return task

    @blames("{name}")
    async def _see_through(self, job: _Job, name: str) -> None:
        # Nothing may come out of the task: KeyboardInterrupt would take the event loop down.
        try:
            await job.work
        except asyncio.CancelledError:
            self.has_cut_turn |= job.changes_state
            if not job.is_cancelled:
                _logger.warning("%s was cancelled, and not by its run", name)
        except LeftBehind:
            pass  # it has noticed by itself that it is of no use any more
        except BaseException as error:
            if isinstance(error, GeneratorExit) and not self._loop.is_running():
                raise  # with its event loop gone
            is_finish = isinstance(error, TrainingFinish)  # when all that it does is done
            self.has_failed_turn |= job.changes_state and not is_finish
            if job.is_cancelled and not self.is_over:
                _logger.warning("%s failed when it was cancelled: %s", name, brief(error))
            else:
                self._on_failure(error, name)

    def _on_failure(self, error: BaseException, name: str) -> None:
        if self.is_over:
            _logger.error("%s failed when its run was over: %s", name, brief(error), exc_info=error)
            return
        if not isinstance(error, TrainingFinish):
            error.add_note(f"raised by {name}, beside the training")
            self._failures.append(error)
        self._stop.fail(error)

    def _on_end(self, task: asyncio.Task[None]) -> None:
        job = self._jobs.pop(task, None) or self._left.pop(task)
        if task.cancelled() and iscoroutine(job.work):
            job.work.close()  # it had not begun
        if not self._jobs and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    async def finish(self) -> BaseException | None:
        """Wait for all that is under way, as long as the grace allows, and end what is left.

        Gives what failed of it since the last time, further failures as notes on the first.
        """
        begun = self._loop.time()
        self.is_finishing = True
        try:
            await self._wait_and_give_up(begun)
        finally:
            self.is_finishing = False
        failures, self._failures = self._failures, []
        for other in failures[1:]:
            failures[0].add_note(f"beside the training this was raised, too: {brief(other)}")
        return failures[0] if failures else None

    async def _wait_and_give_up(self, begun: float) -> None:
        while self._jobs and (left_s := self._ends_at(begun) - self._loop.time()) > 0:
            await asyncio.wait(
                [self._until_idle(), self._stop.news()],
                timeout=left_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
        if self._jobs:
            await self._give_up(begun)

    def _until_idle(self) -> "asyncio.Future[None]":
        if self._idle is None or self._idle.done():
            self._idle = self._loop.create_future()
        return self._idle

    def _ends_at(self, begun: float) -> float:
        if self._stop.level is StopLevel.ABANDON:
            return begun
        hurried_at = self._stop.hurried_at
        if hurried_at is None:
            return begun + self._grace_s
        return min(begun + self._grace_s, hurried_at + SHARE * self._grace_s)

    async def _give_up(self, begun: float) -> None:
        now = self._loop.time()
        if self._stop.level is StopLevel.ABANDON:
            self._stop.is_given_up = True
        _logger.warning(
            "cancelling what did not end within %.2f s of the training: %s",
            now - begun,
            ", ".join(job.name for job in self._jobs.values()),
        )
        ends_at = (now if self._given_up_at is None else self._given_up_at) + CANCELLED_S
        while True:
            self._cancel()  # again and again, for some swallow a cancellation
            if not self._jobs or (left_s := ends_at - self._loop.time()) <= 0:
                break
            await asyncio.wait([self._until_idle()], timeout=min(CANCEL_AGAIN_S, left_s))
        self._leave()

    def abandon(self) -> None:
        """Cancel all that is under way, with the whole run."""
        if self._given_up_at is None:
            self._given_up_at = self._loop.time()
        if self._jobs:
            self._stop.is_given_up = True
        self._cancel()

    def _cancel(self) -> None:
        for task, job in self._jobs.items():
            job.is_cancelled = True
            task.cancel()

    def _leave(self) -> None:
        """Name what would not end, and let it be."""
        for job in self._jobs.values():
            assert job.coroutine is not None
            _logger.error(
                "%s would not stop, and is left behind in %s", job.name, whereabouts(job.coroutine)
            )
        self._left |= self._jobs
        self._jobs.clear()
        self._last.clear()

    def end(self) -> None:
        """Be over: nothing begins any more, and what is under way all the same is left behind."""
        self.is_over = True
        self._leave()


def _made(func: _Function, args: tuple[Any, ...]) -> Awaitable[Any]:
    made = cast("object", func(*args))
    if isawaitable(made):
        return made
    raise ArgumentError(
        f"start_soon was given {func!r:.80}, which returned {made!r:.80}; expected a coroutine "
        "function; give asyncio.to_thread and the function, to run it in a thread"
    )


async def _after(before: asyncio.Task[None], func: _Function, args: tuple[Any, ...]) -> None:
    """Do one thing after the other."""
    await asyncio.wait([before])
    await func(*args)


def _name_of(func: Callable[..., object]) -> str:
    while isinstance(func, partial):
        func = cast("partial[object]", func).func
    return str(getattr(func, "__qualname__", type(func).__name__))
