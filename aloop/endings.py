"""How a training finishes, and what the extensions are called with at its end."""

import asyncio
import logging
import traceback
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol

from aloop.callbacks import CallbackName
from aloop.errors import TrainingFinish, brief
from aloop.faults import fault_point
from aloop.log.base import TrainingLog
from aloop.protocols import Log, Record
from aloop.stopping import LeftBehind, StopLevel, StopRequest

__all__ = [
    "FINISH_REQUESTED",
    "Callbacks",
    "drain",
    "finish_reason",
    "forget_last_ending",
    "joined",
]

FINISH_REQUESTED: Final = "training_finish_requested"
"""The record by which an extension asks for the end of the training."""

_MAX_TRACEBACK: Final = 65_536  # characters; the last of them tell the most

_logger = logging.getLogger("aloop")


class Callbacks(Protocol):
    """Calls the extensions."""

    async def call(self, callback: CallbackName, *args: object) -> None:
        """Call one after another, up to the first that fails."""
        ...

    async def call_all(self, callback: CallbackName, *args: object) -> Exception | None:
        """Call all of them, whichever fails, and give what the first of these failed with."""
        ...


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


async def drain(
    failure: BaseException | None,
    stop: StopRequest,
    log: TrainingLog,
    extensions: Callbacks,
    finish_background: Callable[[], Awaitable[BaseException | None]],
    save: Callable[[], Awaitable[BaseException | None]],
) -> BaseException | None:
    """Let the extensions end what they have begun.

    Parameters:
        failure: what the training failed with, None when it was finished.
        stop: what was asked from outside.
        log: the log of the run.
        extensions: calls the extensions.
        finish_background: waits for what runs beside the training, and gives what failed of it.
        save: saves the checkpoint that is still wanted, and gives what it failed with.

    Gives what the run as a whole failed with; failures are returned, not raised. Cancelled when
    the grace is over, it leaves out what has not begun.
    """
    fault_point("drain.begun")
    stop.record(log)  # what was asked since the last boundary
    was_interrupted = False
    try:
        # First, for what it records belongs to what the extensions are called with.
        failure = joined(failure, await finish_background())
        fault_point("drain.settled")
        if failure is None and stop.level is not StopLevel.ABANDON:
            was_interrupted = bool(stop.level)
            failure = await _end_in_order(stop, log, extensions)
            failure = joined(failure, await finish_background())
            fault_point("drain.called")
            if failure is None:
                failure = await save()
    except asyncio.CancelledError as error:  # in the wait for the background
        failure = joined(failure, error)
    if failure is not None and not _is_giving_up(failure, stop):
        _record(failure, log)
        if stop.level is not StopLevel.ABANDON:
            await _tell(failure, extensions, was_interrupted=was_interrupted)
            failure = joined(failure, await finish_background())
            fault_point("drain.told")
            failure = joined(failure, await save())
    fault_point("drain.done")
    return failure


def joined(first: BaseException | None, second: BaseException | None) -> BaseException | None:
    """Give the first of two failures, the second as a note on it."""
    if first is None or second is None:
        return first or second
    if second is not first:
        first.add_note(f"while the run was ended for it, this was raised: {brief(second)}")
    return first


def _is_giving_up(failure: BaseException, stop: StopRequest) -> bool:
    return stop.is_given_up and isinstance(failure, asyncio.CancelledError | LeftBehind)


async def _end_in_order(
    stop: StopRequest, log: TrainingLog, extensions: Callbacks
) -> BaseException | None:
    try:
        if stop.level:
            failure = await extensions.call_all(CallbackName.ON_INTERRUPT)
            if failure is not None:
                return failure
        if not stop.is_cancelled:
            log.current_row["training_finished"] = True
            await extensions.call(CallbackName.AFTER_TRAINING)
    except TrainingFinish:
        return None  # which is what is happening
    except BaseException as error:  # noqa: BLE001 - returned, whatever it is
        return error
    return None


def _record(failure: BaseException, log: TrainingLog) -> None:
    text = "".join(traceback.format_exception(failure))[-_MAX_TRACEBACK:]
    text = text.encode(errors="backslashreplace").decode()
    log.current_row.write_trusted("got_exception", text)
    _logger.error("the training was ended by %s", brief(failure))


async def _tell(failure: BaseException, extensions: Callbacks, *, was_interrupted: bool) -> None:
    """Tell the extensions of the failure; what they fail with in turn becomes a note on it."""
    second: BaseException | None = None
    try:
        if isinstance(failure, Exception):
            second = await extensions.call_all(CallbackName.ON_ERROR, failure)
        elif not was_interrupted:
            second = await extensions.call_all(CallbackName.ON_INTERRUPT)
    except BaseException as error:  # noqa: BLE001 - noted, whatever it is
        second = error
    joined(failure, second)  # the first failure is what the caller has to know
