"""What is asked of a run from outside: to stop, how soon and why, or to hold still.

Asking only sets flags. The driver looks at them at the boundaries, and the supervisor while it
waits for the driver (see `aloop.supervision`).
"""

import asyncio
import signal
from enum import IntEnum, StrEnum
from typing import Any

from aloop.errors import ArgumentError, TrainingFinish
from aloop.protocols import Log

__all__ = ["LeftBehind", "RunState", "StopLevel", "StopRequest", "as_level"]


class LeftBehind(BaseException):
    """Ends a driver that its run has left, before it can do anything more."""


class StopLevel(IntEnum):
    """How soon a run is to stop; a later request can only make it sooner."""

    NONE = 0
    EPOCH = 1  # after the epoch
    BATCH = 2  # after the batch
    ABANDON = 3  # at once, giving up the step in flight


def as_level(at: object) -> StopLevel:
    """Give the level of a stop at the end of an ``"epoch"`` or a ``"batch"``."""
    if at not in ("epoch", "batch"):
        raise ArgumentError(
            f"at is {at!r}; expected 'epoch' or 'batch'; leave it out for the end of the epoch"
        )
    return StopLevel.EPOCH if at == "epoch" else StopLevel.BATCH


class RunState(StrEnum):
    """Where a loop is in the life of a run; `aloop.supervision` says what leads where."""

    NEW = "new"  # never run
    STARTING = "starting"  # opening the log, before_training, initialize
    RUNNING = "running"
    PAUSED = "paused"  # held still at a batch boundary
    STOPPING = "stopping"  # going on to the boundary that was asked for
    FINALIZING = "finalizing"  # the training is over, the run is on its way out
    ABORTING = "aborting"  # given up
    CLOSED = "closed"  # not running, until the next run


class StopRequest:
    """What was asked of one run so far, and what came of it."""

    def __init__(self) -> None:
        self.level = StopLevel.NONE
        self.cause: str | None = None
        self.hurried_at: float | None = None
        """When a stop after the batch, or sooner, was asked for, by the event loop's clock."""
        self.failure: BaseException | None = None
        """What failed beside the training and ends it; `TrainingFinish` asks for no more."""
        self.is_paused = False
        """Whether the run is to hold still at the next batch boundary."""
        self.is_checkpoint_due = False
        """Whether a checkpoint is to be taken at the next boundary."""
        self.is_due = False
        """Whether any of this is to be looked at at the next boundary."""
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
        self.part = object()
        """Stands for the training in `aloop.tasks.current_part`."""
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Future[None] | None = None
        self._waiter: asyncio.Future[None] | None = None

    def ask(self, level: StopLevel, cause: str) -> None:
        """Ask for a stop; the cause that is kept is that of the soonest stop."""
        if level > self.level:
            self.level = level
            self.cause = cause
            self.was_ending = self.is_ending
            if level >= StopLevel.BATCH and self.hurried_at is None:
                self.hurried_at = self._loop.time()
            self.is_paused = False  # or it would never get to where it is to stop
            self._changed()

    def fail(self, error: BaseException) -> None:
        """End the training at the next boundary with what failed beside it."""
        if self.failure is None or isinstance(self.failure, TrainingFinish):
            self.failure = error
            self._changed()

    def pause(self) -> None:
        """Ask the run to hold still; not, when it is to stop anyway."""
        if not (self.level or self.is_ending):
            self.is_paused = True
            self._changed()

    def resume(self) -> None:
        """Ask the run to go on."""
        self.is_paused = False
        self._changed()

    def want_checkpoint(self, is_wanted: bool = True) -> None:
        """Ask for a checkpoint at the next boundary, or for none any more."""
        if is_wanted != self.is_checkpoint_due:
            self.is_checkpoint_due = is_wanted
            self._changed()

    def _changed(self) -> None:
        self.is_due = bool(
            self.level or self.is_paused or self.is_checkpoint_due or self.failure is not None
        )
        self._wake()
        self.tell()

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

    @property
    def must_leave(self) -> bool:
        """True when no further batch is to be begun."""
        return self.level >= StopLevel.BATCH or self.failure is not None

    async def wait_with(self, future: "asyncio.Future[Any] | None" = None) -> None:
        """Wait until the future is done, if there is one, and the run is not paused.

        Returns as soon as no further batch is to be begun, or a checkpoint is due.
        """
        while not (self.must_leave or self.is_checkpoint_due) and (
            self.is_paused or (future and not future.done())
        ):
            # Not for the future itself, which would be cancelled with its awaiter.
            self._waiter = self._loop.create_future()
            if future is not None and not future.done():
                future.add_done_callback(self._wake)
            if self.is_paused:
                self.tell()
            try:
                await self._waiter
            finally:
                self._waiter = None
                if future is not None:
                    future.remove_done_callback(self._wake)

    @property
    def is_awaited(self) -> bool:
        """True while the driver waits between two batches, and hears of a stop without more."""
        return self._waiter is not None

    @property
    def is_holding(self) -> bool:
        """True while the run holds still, nothing of its training being under way."""
        return self.is_paused and self.is_awaited

    def _wake(self, _: object = None) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def news(self) -> "asyncio.Future[None]":
        """Give a future that is done when next anything of this changes."""
        # A future and not a task around an event, since a task takes a turn to end.
        if self._news is None or self._news.done():
            self._news = self._loop.create_future()
        return self._news

    def tell(self) -> None:
        """Wake those who wait for news."""
        if self._news is not None and not self._news.done():
            self._news.set_result(None)
