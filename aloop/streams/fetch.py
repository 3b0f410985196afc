"""Fetching the batches of an epoch, whichever way its iterator gives them.

While a batch is awaited nothing of the run is in flight, so a run that is to stop leaves a quiet
stream at once. Its driver stays where it is, in the wait for that batch, because a cancellation
would end a generator; and the next run finds the batch that came to it.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from inspect import isasyncgen
from typing import Any, Final

from aloop.protocols import Batch
from aloop.stopping import LeftBehind, StopRequest

__all__ = ["END", "Fetcher"]

END: Final = object()
"""What comes after the last batch. A batch can be anything, None included."""


_logger = logging.getLogger("aloop")


class Fetcher:
    """Fetches for one run after the other, and keeps the batch that an earlier one had to leave."""

    def __init__(self) -> None:
        self._iterator: AsyncIterator[Batch] | None = None
        self._outcome: asyncio.Future[Batch] | None = None  # of the fetch that is under way
        self._driver: asyncio.Task[Any] | None = None  # which waits for it

    def of(self, iterator: Any, stop: StopRequest) -> tuple[Callable[[], Any], bool]:
        """Give what fetches the next batch, or `END`, and whether it has to be awaited."""
        if not hasattr(iterator, "__anext__"):
            return lambda: next(iterator, END), False
        if iterator is not self._iterator:
            self._forget()
            self._iterator = iterator

        async def wait() -> Batch:
            stop.is_waiting = True
            try:
                if self._outcome is not None:
                    return await self._left_batch(self._outcome, iterator, stop)
                return await self._next_batch(iterator, stop)
            finally:
                stop.is_waiting = False

        return wait, True

    def has_lost_its_place(self, iterator: Any) -> bool:
        """Say whether this is a generator that was cut off, with the event loop of its run."""
        is_lost = iterator is self._iterator and isasyncgen(iterator) and _is_lost(self._outcome)
        if is_lost:
            _logger.warning(
                "%r was cut off in its wait for a batch when the event loop of the last run "
                "ended; a new epoch begins",
                iterator,
            )
        return is_lost

    async def _next_batch(self, iterator: AsyncIterator[Batch], stop: StopRequest) -> Batch:
        self._driver = asyncio.current_task()
        outcome = self._outcome = asyncio.get_running_loop().create_future()
        try:
            batch = await anext(iterator, END)
        except asyncio.CancelledError:
            outcome.cancel()
            raise
        except GeneratorExit:
            raise  # with its event loop gone
        except BaseException as error:
            if stop.is_left:
                outcome.set_exception(error)
                outcome.exception()  # it may be that no run comes to hear of it
                _logger.warning("a data stream failed after its run had left it: %r", error)
                raise LeftBehind from error
            self._outcome = None
            raise
        if stop.is_left:
            outcome.set_result(batch)
            raise LeftBehind
        self._outcome = None
        return batch

    async def _left_batch(
        self, outcome: "asyncio.Future[Batch]", iterator: AsyncIterator[Batch], stop: StopRequest
    ) -> Batch:
        if not (outcome.done() or _is_lost(outcome)):
            # Not the future itself: it would be cancelled with its awaiter.
            await asyncio.wait([outcome])
            if stop.is_left:
                raise LeftBehind
        if _is_lost(outcome):
            return await self._next_batch(iterator, stop)
        self._outcome = None
        return outcome.result()

    def _forget(self) -> None:
        """Let go of the iterator; a driver that still waits there would take another's batch."""
        if self._outcome is not None and self._driver is not None and not _is_lost(self._outcome):
            self._driver.cancel()
        self._outcome = self._driver = None


def _is_lost(outcome: "asyncio.Future[Batch] | None") -> bool:
    """Say whether the fetch can no longer give its batch: its event loop has ended."""
    return outcome is not None and (
        outcome.cancelled() or (not outcome.done() and outcome.get_loop().is_closed())
    )
