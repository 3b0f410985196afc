"""The one way out of a run: whatever comes, its training, its end and its log follow one another.

The parts of a run are tasks of their own, its drivers, and `Supervisor`, in the caller's task,
waits for them. A cancellation therefore never hits a driver in mid-step: the supervisor takes it,
asks for a stop, waits until the run has cleaned up, and raises it again. The states of a run, and
what takes it from one to the next::

    NEW -> STARTING -> RUNNING       run(); the driver of the training opens the log and trains
        <-> PAUSED                   pause(), resume(): it holds still at a batch boundary
        -> STOPPING(epoch | batch)   something asked `StopRequest` for a stop; the driver goes on
                                     to the boundary, from the batch's stop on within `grace_s`
        -> FINALIZING                the training is over: `on_interrupt`, `after_training`,
                                     `on_error`; then the log
        -> CLOSED                    everything is written; the caller sees how it ended
    any -> ABORTING -> CLOSED        the grace is over, or a third press: what is under way is
                                     cancelled, what does not end by that is left behind, and the
                                     log has a second in all
"""

import asyncio
import contextvars
import logging
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from aloop.background import BackgroundWork, current_moment
from aloop.callbacks import Position
from aloop.drivers import Driver, Failure, Work
from aloop.errors import (
    AlreadyRunningError,
    ArgumentError,
    NoEventLoopError,
    brief,
    seconds_of,
)
from aloop.offload import Worker, current_worker
from aloop.stopping import RunState, StopLevel, StopRequest, as_level
from aloop.tasks import CANCEL_AGAIN_S, Patience, current_part

__all__ = ["Supervisor", "check_grace", "require_event_loop"]

ABANDONED_S: Final = 1.0
"""What a run has for its log once it is given up."""

_CANCELLED_S: Final = 0.5
"""How much of that it waits for what it has cancelled."""

_logger = logging.getLogger("aloop")


def require_event_loop(method: str) -> None:
    """Raise `NoEventLoopError` unless an asyncio event loop is running in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise NoEventLoopError(
            f"MainLoop.{method} found no asyncio event loop; expected one to be running in this "
            "thread; start with asyncio.run(main()), or anyio.run(main) with its asyncio backend"
        ) from None


def check_grace(grace_s: object) -> float:
    """Give back the grace, or raise `ArgumentError` if it is no number of seconds."""
    seconds = seconds_of(grace_s)
    if seconds is not None:
        return seconds
    raise ArgumentError(f"grace_s is {grace_s!r}; expected seconds, 0 or more; leave it out")


class Supervisor:
    """Sees one run through: its training, its drain and the closing of its log.

    Parameters:
        stop: what is asked of the run.
        background: what runs beside its training.
        grace_s: seconds that the run has from a stop at batch level on.
        halt: keeps a part of the run that was left behind from doing anything more.
    """

    def __init__(
        self,
        stop: StopRequest,
        background: BackgroundWork,
        grace_s: float,
        halt: Callable[[], None],
    ) -> None:
        self.stop = stop
        """What is asked of the run."""
        self.background = background
        """What runs beside the training, and belongs to the run."""
        self._grace_s = grace_s
        self._halt = halt
        self._loop = asyncio.get_running_loop()
        self._worker = Worker()
        self._context = contextvars.copy_context()  # one for all parts of the run
        self._context.run(current_worker.set, self._worker)
        self._context.run(current_part.set, stop.part)
        self._context.run(current_moment.set, None)  # where it is run from a background extension
        background.worker = self._worker
        self._patience = Patience(stop.cancel)
        self._told = StopLevel.NONE
        self._given_up_at: float | None = None
        self._is_grace_over = False
        self._is_late = False  # whether the failure came of the giving up
        self._hung: Driver | None = None
        self._thread = threading.get_ident()
        self._is_over = False

    @property
    def is_running(self) -> bool:
        """True until the caller has been told how the run ended."""
        # An event loop that was closed under a run has ended it.
        return not (self._is_over or self._loop.is_closed())

    @property
    def state(self) -> RunState:
        """Where the run is."""
        stop = self.stop
        if not self.is_running:
            return RunState.CLOSED
        if stop.level is StopLevel.ABANDON:
            return RunState.ABORTING
        if stop.is_ending:
            return RunState.FINALIZING
        if stop.level:
            return RunState.STOPPING
        if stop.is_holding:
            return RunState.PAUSED
        return RunState.RUNNING if stop.has_started else RunState.STARTING

    def is_part(self, part: object) -> bool:
        """Say whether this, which `current_part` gives, is of this run."""
        return part in (self.stop.part, self.background.part)

    @property
    def has_let_go(self) -> bool:
        """True when nothing of the run is under way any more."""
        return not (self.is_running or self.has_left_something)

    @property
    def has_left_something(self) -> bool:
        """True while something of the run that was given up is still under way."""
        is_hung = self._hung is not None and not self._hung.is_done
        return self._worker.is_busy or is_hung or self.background.is_left

    def refuse_another(self, position: Position) -> None:
        """Raise `AlreadyRunningError` if another run would come on top of this one."""
        if self.is_running:
            raise AlreadyRunningError(
                f"a run was to begin while this loop is running (at {position}); expected "
                "one run at a time; await the first one, or make another loop"
            )
        if self.has_left_something:
            raise AlreadyRunningError(
                "a run was to begin while what the last run gave up is still under way (at "
                f"{position}); expected it to have ended; wait for it, or make another loop"
            )

    def request_finish(self, at: str, cause: str | None = None) -> None:
        """Ask the run to stop after the epoch or the batch, from whichever thread."""
        level = as_level(at)
        self._do(self.stop.ask, level, f"request_finish({at!r})" if cause is None else cause)

    def pause(self) -> None:
        """Ask the run to hold still at the next batch boundary, from whichever thread."""
        self._do(self.stop.pause)

    def resume(self) -> None:
        """Ask the run to go on, from whichever thread."""
        self._do(self.stop.resume)

    async def wait_started(self) -> bool:
        """Wait until the training has begun, or gone on; give whether it ever did."""
        while self.is_running and not self.stop.has_started:
            await asyncio.wait([self.stop.news()])
        return self.stop.has_started

    async def wait_paused(self) -> bool:
        """Wait until the run holds still; give whether it does, or is to do something else."""
        stop = self.stop
        if current_part.get() is stop.part:
            raise AlreadyRunningError(
                "wait_paused() was awaited in a callback or step of the run that is to hold still, "
                "which waits for it; expected another task; use start_soon"
            )
        while self.is_running and stop.is_paused and not stop.is_holding:
            if stop.is_ending or stop.must_leave:
                return False
            await asyncio.wait([stop.news()])
        return self.is_running and stop.is_holding

    def _do(self, request: Callable[..., None], *args: object) -> None:
        if threading.get_ident() == self._thread:
            request(*args)
        else:
            with suppress(RuntimeError):  # the event loop is closed, and so the run is over
                self._loop.call_soon_threadsafe(request, *args)

    async def see_through(
        self,
        train: Callable[[], Work],
        drain: Callable[[Failure], Work],
        close: Callable[[Failure], Work],
    ) -> None:
        """Do the parts of the run one after another, each given what the run failed with so far.

        Each returns what the run failed with. Raises what the caller is to see: the failure, or
        the cancellation of the calling task, at the end and with the failure as a note.
        """
        try:
            failure = await self._attend(train(), "aloop training", None)
            self.stop.is_ending = True
            self.stop.tell()
            failure = await self._attend(drain(failure), "aloop drain", failure)
            failure = await self._attend(close(failure), "aloop close", failure, may_cancel=False)
        finally:
            if self._worker.is_busy:
                _logger.error("%s is left behind at work in its thread", self._worker.at_work)
            self._worker.close()
            self.end()
        seen = self._seen(failure)
        # Their tracebacks hold the frames of all callers.
        self._patience.cancellation = self.stop.failure = None
        if seen is not None:
            raise seen

    def end(self) -> None:
        """Be over, though it may not have begun."""
        self.background.end()
        self._is_over = True
        self.stop.tell()

    async def _attend(
        self,
        work: Work,
        name: str,
        failure: Failure,
        *,
        may_cancel: bool = True,
    ) -> Failure:
        """Wait for a part of the run, as long as it has time; give what the run failed with."""
        stop = self.stop
        driver = Driver(work, name, self._context, stop)
        # What begins after the giving up is no more than what has to be done then.
        may_cancel = may_cancel and self._given_up_at is None
        least_until = self._loop.time() + ABANDONED_S - _CANCELLED_S
        while not (ended := driver.ended()).done():
            self._keep_time()
            if self._given_up_at is not None and not driver.is_done:
                given_up_for = self._loop.time() - self._given_up_at
                if may_cancel:
                    self.background.abandon()
                    # While either is waited for nothing is in flight, and it ends by itself.
                    if not (stop.is_awaited or self.background.is_finishing):
                        stop.is_given_up = True
                        driver.cancel()  # again and again, for some swallow a cancellation
                    is_over = given_up_for >= _CANCELLED_S
                else:
                    is_over = given_up_for >= ABANDONED_S and self._loop.time() >= least_until
                if is_over:
                    self._leave(driver)
                    return failure
            await self._wait(ended)
        found = driver.outcome()
        if stop.is_given_up and found is not failure:
            if isinstance(found, asyncio.CancelledError):
                return failure
            self._is_late = True
        return found

    async def _wait(self, ended: asyncio.Task[None]) -> None:
        """Wait until the driver is done, anything is asked for, or it is time to look."""
        if self.stop.level > self._told:
            return
        timeout: float | None = None
        if self._given_up_at is not None:
            timeout = CANCEL_AGAIN_S
        elif (grace_ends_at := self._grace_ends_at) is not None:
            timeout = max(0.0, grace_ends_at - self._loop.time())
        await self._patience.wait([ended, self.stop.news()], timeout)

    @property
    def _grace_ends_at(self) -> float | None:
        hurried_at = self.stop.hurried_at
        return None if hurried_at is None else hurried_at + self._grace_s

    def _keep_time(self) -> None:
        """Say what was asked for, and give up at the end of the grace."""
        stop, now, grace_ends_at = self.stop, self._loop.time(), self._grace_ends_at
        self._say_so()
        is_over = grace_ends_at is not None and now >= grace_ends_at
        if is_over and stop.level is not StopLevel.ABANDON:
            self._is_grace_over = True
            stop.level = StopLevel.ABANDON  # for the same cause
            self._say_so()
        if stop.level is StopLevel.ABANDON and self._given_up_at is None:
            self._given_up_at = now

    def _say_so(self) -> None:
        stop = self.stop
        if stop.level <= self._told:
            return
        self._told = stop.level
        # Only who is at the terminal waits for a word, and can press again.
        by_key = stop.cause == signal.SIGINT.name
        message = _MESSAGES[stop.level]
        if stop.was_ending and stop.level is not StopLevel.ABANDON:
            message = "%s: the run is ending already"
        if self._is_grace_over:
            message = f"%s: the grace of {self._grace_s:g} s is over, giving up what is under way"
        if by_key:
            message += _HINTS.get(stop.level, "")
        is_urgent = by_key or stop.level is StopLevel.ABANDON
        _logger.log(logging.WARNING if is_urgent else logging.INFO, message, stop.cause)

    def _leave(self, driver: Driver) -> None:
        self.stop.is_given_up = self.stop.is_left = True
        self._hung = driver
        self._halt()
        driver.drop()
        _logger.error(
            "%s did not end within %g s of being given up, and is left behind in %s",
            driver.name,
            self._loop.time() - (self._given_up_at or 0.0),
            driver.whereabouts(),
        )

    def _seen(self, failure: Failure) -> Failure:
        """Give what the caller is to see."""
        stop = self.stop
        if self._patience.cancellation is not None:
            seen = self._patience.cancellation
        elif stop.is_cancelled:
            seen = asyncio.CancelledError("a task of the run was cancelled")
        elif stop.is_pressed:
            seen = KeyboardInterrupt()  # which is what Ctrl-C means elsewhere
        elif failure is not None and not self._is_late:
            return failure
        elif stop.is_given_up:
            after = f", and {self._grace_s:g} s of grace" if self._is_grace_over else ""
            seen = asyncio.CancelledError(f"the run was given up: {stop.cause}{after}")
        else:
            return None
        if failure is not None:
            seen.add_note(f"while the run ended for it, it failed: {brief(failure)}")
        return seen


_MESSAGES: Final = {
    StopLevel.EPOCH: "%s: stopping after this epoch",
    StopLevel.BATCH: "%s: stopping after this batch",
    StopLevel.ABANDON: "%s: giving up what is under way",
}
_HINTS: Final = {
    StopLevel.EPOCH: "; a second Ctrl-C stops after this batch",
    StopLevel.BATCH: "; one more Ctrl-C gives it up",
}
