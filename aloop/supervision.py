"""The one way out of a run: whatever comes, its training, its end and its log follow one another.

The parts of a run are tasks of their own, its drivers, and `Supervisor`, in the caller's task,
waits for them. A cancellation therefore never hits a driver in mid-step: the supervisor takes it,
asks for a stop, waits until the run has cleaned up, and raises it again. The states of a run, and
what takes it from one to the next::

    NEW -> STARTING -> RUNNING       run(); the driver of the training opens the log and trains
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
from contextlib import nullcontext, suppress
from numbers import Real
from typing import Final

import anyio

from aloop.callbacks import Position
from aloop.drivers import Driver, Failure, Work
from aloop.errors import AlreadyRunningError, ArgumentError, NoEventLoopError, brief
from aloop.offload import Worker, current_worker
from aloop.stopping import RunState, StopLevel, StopRequest

__all__ = ["Supervisor", "check_grace", "require_event_loop"]

ABANDONED_S: Final = 1.0
"""What a run has for its log once it is given up."""

_CANCELLED_S: Final = 0.5
"""How much of that it waits for what it has cancelled."""

_CANCEL_AGAIN_S: Final = 0.05

_logger = logging.getLogger("aloop")


def require_event_loop() -> None:
    """Raise `NoEventLoopError` unless an asyncio event loop is running in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise NoEventLoopError(
            "MainLoop.run() found no asyncio event loop; expected one to be running in this "
            "thread; start with asyncio.run(main()), or anyio.run(main) with its asyncio backend"
        ) from None


def check_grace(grace_s: object) -> float:
    """Give back the grace, or raise `ArgumentError` if it is no number of seconds."""
    if grace_s is not True and isinstance(grace_s, Real):
        with suppress(OverflowError):
            seconds = float(grace_s)
            if seconds >= 0:
                return seconds
    raise ArgumentError(f"grace_s is {grace_s!r}; expected seconds, 0 or more; leave it out")


class Supervisor:
    """Sees one run through: its training, its drain and the closing of its log.

    Parameters:
        stop: what is asked of the run.
        grace_s: seconds that the run has from a stop at batch level on.
        halt: keeps a part of the run that was left behind from doing anything more.
    """

    def __init__(self, stop: StopRequest, grace_s: float, halt: Callable[[], None]) -> None:
        self._stop = stop
        self._grace_s = grace_s
        self._halt = halt
        self._loop = asyncio.get_running_loop()
        self._worker = Worker()
        self._context = contextvars.copy_context()  # one for all parts of the run
        self._context.run(current_worker.set, self._worker)
        self._cancellation: asyncio.CancelledError | None = None
        self._cancellations = 0
        self._told = StopLevel.NONE
        self._grace_ends_at: float | None = None
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
        stop = self._stop
        if not self.is_running:
            return RunState.CLOSED
        if stop.level is StopLevel.ABANDON:
            return RunState.ABORTING
        if stop.is_ending:
            return RunState.FINALIZING
        if stop.level:
            return RunState.STOPPING
        return RunState.RUNNING if stop.has_started else RunState.STARTING

    def refuse_another(self, position: Position) -> None:
        """Raise `AlreadyRunningError` if another run would come on top of this one."""
        if self.is_running:
            raise AlreadyRunningError(
                f"run() was called while this loop is running (at {position}); expected "
                "one run at a time; await the first one, or make another loop"
            )
        if self._worker.is_busy or (self._hung is not None and not self._hung.is_done):
            raise AlreadyRunningError(
                "run() was called while what the last run gave up is still under way (at "
                f"{position}); expected it to have ended; wait for it, or make another loop"
            )

    def ask(self, level: StopLevel, cause: str) -> None:
        """Ask the run for a stop, from whichever thread."""
        if threading.get_ident() == self._thread:
            self._stop.ask(level, cause)
        else:
            self._loop.call_soon_threadsafe(self._stop.ask, level, cause)

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
            self._stop.is_ending = True
            failure = await self._attend(drain(failure), "aloop drain", failure)
            failure = await self._attend(close(failure), "aloop close", failure, may_cancel=False)
        finally:
            if self._worker.is_busy:
                _logger.error("%s is left behind at work in its thread", self._worker.at_work)
            self._worker.close()
            self._is_over = True
        seen = self._seen(failure)
        self._cancellation = None  # whose traceback holds the frames of all callers
        if seen is not None:
            raise seen

    async def _attend(
        self,
        work: Work,
        name: str,
        failure: Failure,
        *,
        may_cancel: bool = True,
    ) -> Failure:
        """Wait for a part of the run, as long as it has time; give what the run failed with."""
        stop = self._stop
        driver = Driver(work, name, self._context, stop)
        # What begins after the giving up is no more than what has to be done then.
        may_cancel = may_cancel and self._given_up_at is None
        least_until = self._loop.time() + ABANDONED_S - _CANCELLED_S
        while not (ended := driver.ended()).done():
            self._keep_time()
            if self._given_up_at is not None and not driver.is_done:
                given_up_for = self._loop.time() - self._given_up_at
                if may_cancel:
                    if not stop.is_awaited:  # or nothing is in flight, and it ends by itself
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
        """Wait until the driver is done, a sooner stop is asked for, or it is time to look."""
        sooner = self._stop.sooner_than(self._told)
        timeout: float | None = None
        if self._given_up_at is not None:
            timeout = _CANCEL_AGAIN_S
        elif self._grace_ends_at is not None:
            timeout = max(0.0, self._grace_ends_at - self._loop.time())
        try:
            # Without the shield, a cancelled anyio scope around the run would cancel each wait
            # anew, which is a loop that never sleeps. It is of no use before that, and anyio may
            # have to be loaded for it.
            with anyio.CancelScope(shield=True) if self._cancellations > 1 else nullcontext():
                await asyncio.wait(
                    [ended, sooner], timeout=timeout, return_when=asyncio.FIRST_COMPLETED
                )
        except asyncio.CancelledError as error:
            # Further cancellations are taken and forgotten: the first one goes up at the end.
            self._cancellation = self._cancellation or error
            self._cancellations += 1
            self._stop.cancel()

    def _keep_time(self) -> None:
        """Start what a stop starts: the grace, and the giving up at its end."""
        stop, now = self._stop, self._loop.time()
        if stop.level >= StopLevel.BATCH and self._grace_ends_at is None:
            self._grace_ends_at = now + self._grace_s
        self._say_so()
        is_over = self._grace_ends_at is not None and now >= self._grace_ends_at
        if is_over and stop.level is not StopLevel.ABANDON:
            self._is_grace_over = True
            stop.level = StopLevel.ABANDON  # for the same cause
            self._say_so()
        if stop.level is StopLevel.ABANDON and self._given_up_at is None:
            self._given_up_at = now

    def _say_so(self) -> None:
        stop = self._stop
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
        self._stop.is_given_up = self._stop.is_left = True
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
        stop = self._stop
        if self._cancellation is not None:
            seen = self._cancellation
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
