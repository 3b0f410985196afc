"""The one way out of a run: who may ask for a stop, and who waits for it.

A run is driven by a task of its own, and `supervise`, in the caller's task, waits for it. A
cancellation therefore never hits the driver in mid-step: the supervisor takes it, asks for a stop,
waits until the driver has cleaned up, and raises it again.
"""

import asyncio
import logging
import signal
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from enum import IntEnum
from typing import Any, Final, TypeVar

import anyio

from aloop.callbacks import CallbackName
from aloop.errors import AloopError, NoEventLoopError, TrainingFinish
from aloop.log.base import TrainingLog
from aloop.protocols import Log, Record

__all__ = [
    "FINISH_REQUESTED",
    "StopLevel",
    "StopRequest",
    "drain",
    "finish_reason",
    "forget_last_ending",
    "require_event_loop",
    "supervise",
]

T = TypeVar("T")

FINISH_REQUESTED: Final = "training_finish_requested"
"""The record by which an extension asks for the end of the training."""

_CANCEL_AGAIN_S: Final = 1.0  # what a driver that was cancelled has for the flush

_MAX_TRACEBACK: Final = 65_536  # characters; the last of them tell the most

_logger = logging.getLogger("aloop")


class StopLevel(IntEnum):
    """How soon a run is to stop; a later request can only make it sooner."""

    NONE = 0
    EPOCH = 1  # after the epoch
    BATCH = 2  # after the batch
    ABANDON = 3  # at once, giving up the step in flight


class StopRequest:
    """What was asked of a run from outside. Asking only sets flags; the driver looks at them."""

    def __init__(self) -> None:
        self.level = StopLevel.NONE
        self.cause: str | None = None
        self.is_cancelled = False
        """Whether the run was cancelled, which its caller is to hear of."""
        self._sooner: asyncio.Future[None] | None = None

    def ask(self, level: StopLevel, cause: str) -> None:
        """Ask for a stop; the cause that is kept is that of the soonest stop."""
        if level > self.level:
            self.level = level
            self.cause = cause
            if self._sooner is not None and not self._sooner.done():
                self._sooner.set_result(None)

    def on_signal(self, number: signal.Signals) -> None:
        """Ask for what the signal means: SIGTERM the batch's end, SIGINT one step sooner."""
        sooner = StopLevel(min(self.level + 1, StopLevel.ABANDON))
        self.ask(sooner if number == signal.SIGINT else StopLevel.BATCH, number.name)

    def record(self, log: Log) -> None:
        """Record in status and current row what was asked, once for each kind of stop."""
        if not self.level:
            return
        at = "epoch" if self.level is StopLevel.EPOCH else "batch"
        key = f"{at}_interrupt_received"
        if not log.status[key]:
            log.status[key] = True
            log.current_row[key] = True
            log.current_row["interrupt_cause"] = self.cause

    def raised_for(self, failure: BaseException) -> BaseException:
        """Give what the caller of a run that failed is to see."""
        was_pressed = self.level is StopLevel.ABANDON and self.cause == signal.SIGINT.name
        if isinstance(failure, asyncio.CancelledError) and was_pressed:
            # The user pressed until the step was given up, which is what Ctrl-C means elsewhere.
            return KeyboardInterrupt()
        return failure

    def sooner_than(self, level: StopLevel) -> "asyncio.Future[None]":
        """Give a future that is done once a stop sooner than this is asked for."""
        # A future and not a task around an event, since a task takes a turn to end.
        self._sooner = asyncio.get_running_loop().create_future()
        if self.level > level:
            self._sooner.set_result(None)
        return self._sooner


_MESSAGES: Final = {
    StopLevel.EPOCH: "%s: stopping after this epoch",
    StopLevel.BATCH: "%s: stopping after this batch",
    StopLevel.ABANDON: "%s: giving up what is under way",
}
_HINTS: Final = {
    StopLevel.EPOCH: "; a second Ctrl-C stops after this batch",
    StopLevel.BATCH: "; one more Ctrl-C gives it up",
}


def finish_reason(
    status: Mapping[str, Record], requested: Record, *, at_epoch_end: bool
) -> str | None:
    """Give the reason to finish at this boundary, or None to go on.

    Parameters:
        status: the status of the log.
        requested: the record `training_finish_requested` of the current row.
        at_epoch_end: whether the boundary is the end of an epoch.
    """
    if requested:
        return FINISH_REQUESTED
    if status["batch_interrupt_received"]:
        return "batch_interrupt_received"
    if at_epoch_end and status["epoch_interrupt_received"]:
        return "epoch_interrupt_received"
    return None


def forget_last_ending(log: Log) -> None:
    """Clear what was asked of an earlier run and what its end left: it does not hold now."""
    for key in ("epoch_interrupt_received", "batch_interrupt_received"):
        log.status[key] = False
    for key in (FINISH_REQUESTED, "training_finished"):
        log.current_row.pop(key, None)


def require_event_loop() -> None:
    """Raise `NoEventLoopError` unless an asyncio event loop is running in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise NoEventLoopError(
            "MainLoop.run() found no asyncio event loop; expected one to be running in this "
            "thread; start with asyncio.run(main()), or anyio.run(main) with its asyncio backend"
        ) from None


async def drain(
    failure: BaseException | None,
    stop: StopRequest,
    log: TrainingLog,
    call: Callable[..., Awaitable[None]],
) -> BaseException | None:
    """Let the extensions end what they have begun, and commit the last boundary.

    Parameters:
        failure: what the training failed with, None when it was finished.
        stop: what was asked from outside.
        log: the log of the run.
        call: calls the extensions, with a callback and its arguments.

    Gives what the run as a whole failed with; failures are returned, not raised.
    """
    stop.record(log)  # what was asked since the last boundary
    if failure is None:
        failure = await _end_in_order(stop, log, call)
    if failure is not None:
        await _end_in_failure(failure, stop, log, call)
    try:
        log.commit(durable=True)
    except AloopError as error:
        return failure or error
    return failure


async def _end_in_order(
    stop: StopRequest, log: TrainingLog, call: Callable[..., Awaitable[None]]
) -> BaseException | None:
    try:
        if stop.level:
            await call(CallbackName.ON_INTERRUPT)
        if not stop.is_cancelled:
            log.current_row["training_finished"] = True
            await call(CallbackName.AFTER_TRAINING)
    except TrainingFinish:
        return None  # which is what is happening
    except BaseException as error:  # noqa: BLE001 - returned, whatever it is
        return error
    return None


async def _end_in_failure(
    failure: BaseException,
    stop: StopRequest,
    log: TrainingLog,
    call: Callable[..., Awaitable[None]],
) -> None:
    row = log.current_row
    if isinstance(failure, asyncio.CancelledError) and stop.level:
        row["step_abandoned"] = True
        if stop.level is StopLevel.ABANDON:
            return  # nothing more has time
    else:
        text = "".join(traceback.format_exception(failure))[-_MAX_TRACEBACK:]
        row.write_trusted("got_exception", text.encode(errors="backslashreplace").decode())
        _logger.error("the training was ended by %s: %s", type(failure).__name__, failure)
    try:
        if isinstance(failure, Exception):
            await call(CallbackName.ON_ERROR, failure)
        else:
            await call(CallbackName.ON_INTERRUPT)
    except BaseException:
        # The first failure is what the caller has to know.
        _logger.exception("an extension failed while the training was ended by an error")


async def supervise(driver: Coroutine[Any, Any, T], stop: StopRequest, grace_s: float) -> T:
    """Run the driver in a task of its own and give what it returned.

    Cancelling this coroutine asks for a stop at batch level, and the cancellation is raised when
    the driver has ended. From a stop at batch level on the driver has `grace_s` seconds; then, or
    when `stop` asks for `ABANDON`, the driver is cancelled.
    """
    loop = asyncio.get_running_loop()
    task = loop.create_task(driver, name="aloop driver")
    cancellation: asyncio.CancelledError | None = None
    deadline: float | None = None
    cancelled_at: float | None = None
    told = StopLevel.NONE
    while not task.done():
        sooner = stop.sooner_than(told)
        try:
            # Without the shield, a cancelled anyio scope around the run would cancel each wait
            # in this loop anew.
            with anyio.CancelScope(shield=cancellation is not None):
                timeout = None if deadline is None else max(0.0, deadline - loop.time())
                await asyncio.wait(
                    [task, sooner], timeout=timeout, return_when=asyncio.FIRST_COMPLETED
                )
        except asyncio.CancelledError as error:
            # Further cancellations are taken and forgotten: the first one goes up at the end.
            cancellation = cancellation or error
            stop.is_cancelled = True
            stop.ask(StopLevel.BATCH, "cancelled")
        if stop.level > told:
            told = stop.level
            # Only who is at the terminal waits for a word, and can press again.
            by_key = stop.cause == signal.SIGINT.name
            message = _MESSAGES[told] + (_HINTS.get(told, "") if by_key else "")
            _logger.log(logging.WARNING if by_key else logging.INFO, message, stop.cause)
        if stop.level >= StopLevel.BATCH and deadline is None:
            deadline = loop.time() + grace_s
        if deadline is not None and loop.time() >= deadline and not task.done():
            stop.ask(StopLevel.ABANDON, f"{stop.cause}, and {grace_s:g} s of grace")
        if stop.level is StopLevel.ABANDON and not task.done():
            if cancelled_at is None or loop.time() >= cancelled_at + _CANCEL_AGAIN_S:
                # Again and again, for a step or an extension may swallow a cancellation.
                task.cancel()
                cancelled_at = loop.time()
            deadline = cancelled_at + _CANCEL_AGAIN_S
    if cancellation is not None:
        failure = None if task.cancelled() else task.exception() or task.result()
        if isinstance(failure, BaseException):
            cancellation.add_note(f"while the run ended for it, it failed: {failure!r}")
        raise cancellation
    return task.result()
