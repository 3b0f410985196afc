"""What is asked of a run from outside: how soon it is to stop, and why.

Asking only sets flags. The driver looks at them at the boundaries, and the supervisor while it
waits for the driver (see `aloop.supervision`).
"""

import asyncio
import signal
from enum import IntEnum, StrEnum
from typing import Any

from aloop.protocols import Log

__all__ = ["LeftBehind", "RunState", "StopLevel", "StopRequest"]


class LeftBehind(BaseException):
    """Ends a driver that its run has left, before it can do anything more."""


class StopLevel(IntEnum):
    """How soon a run is to stop; a later request can only make it sooner."""

    NONE = 0
    EPOCH = 1  # after the epoch
    BATCH = 2  # after the batch
    ABANDON = 3  # at once, giving up the step in flight


class RunState(StrEnum):
    """Where a loop is in the life of a run; `aloop.supervision` says what leads where."""

    NEW = "new"  # never run
    STARTING = "starting"  # opening the log, before_training, initialize
    RUNNING = "running"
    STOPPING = "stopping"  # going on to the boundary that was asked for
    FINALIZING = "finalizing"  # the training is over, the run is on its way out
    ABORTING = "aborting"  # given up
    CLOSED = "closed"  # not running, until the next run


class StopRequest:
    """What was asked of one run so far, and what came of it."""

    def __init__(self) -> None:
        self.level = StopLevel.NONE
        self.cause: str | None = None
        self.is_cancelled = False
        """Whether the run was cancelled, which its caller is to hear of."""
        self.is_pressed = False
        """Whether somebody at the terminal, and nobody else, gave up the run."""
        self.is_swept = False
        """Whether the run was cancelled with every other task, as the event loop's end does."""
        self.has_started = False
        """Whether the training has begun, or gone on."""
        self.is_ending = False
        """Whether the training is over and the run is on its way out."""
        self.was_ending = False
        """Whether that was so already when the soonest stop was asked for."""
        self.is_recorded = False
        """Whether the log has been told how the run ended."""
        self.is_left = False
        """Whether the run went on without something that would not end."""
        self.is_given_up = False
        """Whether anything was cancelled or left behind before it had settled."""
        self._sooner: asyncio.Future[None] | None = None
        self._waiter: asyncio.Future[None] | None = None

    def ask(self, level: StopLevel, cause: str) -> None:
        """Ask for a stop; the cause that is kept is that of the soonest stop."""
        if level > self.level:
            self.level = level
            self.cause = cause
            self.was_ending = self.is_ending
            if self._sooner is not None and not self._sooner.done():
                self._sooner.set_result(None)
            if level >= StopLevel.BATCH:
                self._wake()

    def cancel(self) -> None:
        """Ask for what a cancellation means: a stop after the batch that the caller hears of."""
        self.is_cancelled = True
        self.ask(StopLevel.BATCH, "cancelled")

    def on_signal(self, number: signal.Signals, has_host: bool = False) -> bool:
        """Ask for what the signal means: SIGTERM the batch's end, SIGINT one step sooner.

        Gives whether the run does as it is told: not, when all that it has to do is written.

        A signal that a host hears as well ends the whole program, and so the batch; so does one
        that comes when the training is over.
        """
        level = StopLevel.BATCH
        if number == signal.SIGINT:
            level = StopLevel(min(self.level + 1, StopLevel.ABANDON))
            if has_host or self.is_ending:
                level = max(level, StopLevel.BATCH)
        if level is StopLevel.ABANDON > self.level:
            self.is_pressed = not has_host
        self.ask(level, number.name)
        return not self.is_recorded or self.level is StopLevel.ABANDON

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

    def record_ending(self, log: Log) -> None:
        """Record what was asked since the last boundary, and whether the run was given up."""
        self.record(log)
        self.is_recorded = True
        if self.is_given_up:
            log.current_row["step_abandoned"] = True

    async def wait_with(self, future: "asyncio.Future[Any]") -> None:
        """Wait until the future is done, or the run is to stop after the batch or sooner."""
        if future.done() or self.level >= StopLevel.BATCH:
            return
        # Not for the future itself, which would be cancelled with its awaiter.
        self._waiter = asyncio.get_running_loop().create_future()
        future.add_done_callback(self._wake)
        try:
            await self._waiter
        finally:
            self._waiter = None
            future.remove_done_callback(self._wake)

    @property
    def is_awaited(self) -> bool:
        """True while the driver waits for a batch, so that it hears of a stop without more."""
        return self._waiter is not None

    def _wake(self, _: object = None) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def sooner_than(self, level: StopLevel) -> "asyncio.Future[None]":
        """Give a future that is done once a stop sooner than this is asked for."""
        # A future and not a task around an event, since a task takes a turn to end.
        self._sooner = asyncio.get_running_loop().create_future()
        if self.level > level:
            self._sooner.set_result(None)
        return self._sooner
