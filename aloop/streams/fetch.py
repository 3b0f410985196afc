"""Fetching the batches of an epoch, whichever way its iterator gives them.

While a batch is awaited nothing of the run is in flight, so a run that is to stop leaves a quiet
stream at once. What waits for the batch is a task of the stream's own, which stays where it is,
because a cancellation would end a generator; and the next run finds the batch that came to it.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from inspect import isasyncgen
from typing import Any, Final

from aloop.protocols import Batch
from aloop.stalls import blames
from aloop.stopping import StopRequest
from aloop.tasks import create_hidden_task, show_task

__all__ = ["END", "Fetcher"]

END: Final = object()
"""What comes after the last batch. A batch can be anything, None included."""

_ENDING_S: Final = 0.5  # what a generator has for its clean-up when the event loop ends

_logger = logging.getLogger("aloop")

_left: "set[_Reader]" = set()
"""Those that wait for a batch between two runs; nobody else need hold what they wait for."""


class _Reader:
    """Advances an async iterator, one batch at a time and for the length of a run in one task."""

    def __init__(self, iterator: AsyncIterator[Batch]) -> None:
        self.iterator = iterator
        self._outcome: asyncio.Future[Batch] | None = None  # of the fetch that is under way
        self._wanted: asyncio.Future[None] | None = None  # done when there is another
        self._task: asyncio.Task[None] | None = None
        self._is_last = False
        self.place: Any = None
        """The place in the stream before the fetch that is under way, None if it was not told."""

    def ask(self, tell_place: Callable[[], Any] | None) -> "asyncio.Future[Batch]":
        """Give what will have the next batch; the same again until it is taken."""
        loop = asyncio.get_running_loop()
        if self._task is not None and self._task.get_loop() is not loop:
            self._wanted = self._task = None
        if self.is_lost:
            self._outcome = None
        if self._outcome is None:
            # The iterator has not moved yet; and what it tells may be what it goes by.
            self.place = None if tell_place is None else deepcopy(tell_place())
            self._outcome = loop.create_future()
            if self._wanted is not None:
                self._wanted.set_result(None)
            else:
                self._is_last = False
                self._task = create_hidden_task(self._read(), name="aloop stream")
        return self._outcome

    def take(self) -> Batch:
        """Give the batch that was asked for, or raise what the stream did in its place."""
        assert self._outcome is not None
        outcome, self._outcome = self._outcome, None
        return outcome.result()

    @property
    def is_ahead(self) -> bool:
        """True while a batch is on its way, or there, that nobody has taken."""
        return self._outcome is not None

    @property
    def has_ended(self) -> bool:
        """True when what is there, and nobody has taken, is the end."""
        outcome = self._outcome
        if outcome is None or not outcome.done() or outcome.cancelled():
            return False
        return outcome.exception() is not None or outcome.result() is END

    @property
    def is_lost(self) -> bool:
        """True when the batch cannot come any more, for its event loop has ended."""
        outcome = self._outcome
        return outcome is not None and (
            outcome.cancelled() or (not outcome.done() and outcome.get_loop().is_closed())
        )

    async def rest(self, stop: StopRequest) -> None:
        """Let the run go: end the task, but not in the wait for a batch."""
        if self._task is None or self._task.done():
            return
        if self._wanted is not None and not self._wanted.done():
            self._task.cancel()
            self._wanted = None
        elif stop.is_swept:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=_ENDING_S)
        else:
            self._is_last = True
            show_task(self._task)  # which the end of the event loop has to find
            _left.add(self)

    def let_go(self) -> None:
        """Give up the fetch that is under way, from whichever thread."""
        if self._task is not None and not self._task.done():
            with suppress(RuntimeError):  # the event loop is closed
                self._task.get_loop().call_soon_threadsafe(self._task.cancel)

    async def _read(self) -> None:
        self._wanted = None
        try:
            while (outcome := self._outcome) is not None:
                await self._advance(outcome)
                if self._is_last or outcome.exception() or outcome.result() is END:
                    return
                wanted = self._wanted = asyncio.get_running_loop().create_future()
                await wanted
                self._wanted = None
        finally:
            _left.discard(self)

    @blames("the data stream {self.iterator!r}")
    async def _advance(self, outcome: "asyncio.Future[Batch]") -> None:
        try:
            outcome.set_result(await anext(self.iterator, END))
        except (asyncio.CancelledError, GeneratorExit):
            with suppress(RuntimeError):  # the event loop is closed
                outcome.cancel()
            raise
        except BaseException as error:  # noqa: BLE001 - raised where the batch is taken
            outcome.set_exception(error)
            if self in _left:
                _logger.warning("a data stream failed after its run had left it: %r", error)


def _advancing(iterator: Iterator[Batch]) -> Callable[[], Batch]:
    @blames("the data stream {iterator!r}")
    def advance() -> Batch:
        return next(iterator, END)

    return advance


class Fetcher:
    """Fetches for one run after the other, and keeps the batch that an earlier one had to leave."""

    def __init__(self) -> None:
        self._reader: _Reader | None = None
        self.is_left = False
        """Whether what was fetched last is no end, but the run is to stop."""
        self.has_news = False
        """Whether what was fetched last is no end, but something is to be done first."""

    def of(
        self, iterator: Any, stop: StopRequest, tell_place: Callable[[], Any] | None = None
    ) -> tuple[Callable[[], Any], bool]:
        """Give what fetches the next batch, or `END`, and whether it has to be awaited.

        Parameters:
            iterator: of the epoch.
            stop: what is asked of the run.
            tell_place: tells the place in the stream, where it has to be asked before a batch is
                fetched.
        """
        self.is_left = self.has_news = False
        if not hasattr(iterator, "__anext__"):
            return _advancing(iterator), False
        if self._reader is None or self._reader.iterator is not iterator:
            self._let_go()
            self._reader = _Reader(iterator)
        reader = self._reader

        async def wait() -> Batch:
            self.has_news = False
            outcome = reader.ask(tell_place)
            await stop.wait_with(outcome)
            if outcome.cancelled():
                stop.cancel()  # by whoever cancels every task, and the run in a moment
            if stop.must_leave:
                self.is_left = True
                return END
            if stop.is_paused or not outcome.done():
                self.has_news = True
                return END
            return reader.take()

        return wait, True

    def is_ahead(self, iterator: Any) -> bool:
        """Say whether a batch is on its way, or there, that nobody has taken."""
        reader = self._reader
        return reader is not None and reader.iterator is iterator and reader.is_ahead

    def place_ahead(self, iterator: Any) -> Any:
        """Give the place in the stream before that batch, None where there is none, or no place."""
        return self._reader.place if self._reader and self.is_ahead(iterator) else None

    def has_lost_its_place(self, iterator: Any) -> bool:
        """Say whether this is a generator that was cut off, with the event loop of its run."""
        reader = self._reader
        if not isasyncgen(iterator) or reader is None or reader.iterator is not iterator:
            return False
        was_closed = iterator.ag_frame is None and not reader.has_ended
        if not (reader.is_lost or was_closed):
            return False
        _logger.warning(
            "%r was cut off when the event loop of the last run ended; a new epoch begins",
            iterator,
        )
        return True

    async def rest(self, stop: StopRequest) -> None:
        """Let the run go, when it has ended."""
        if self._reader is not None:
            await self._reader.rest(stop)

    def _let_go(self) -> None:
        # A reader that still waits would take a batch that another is to have.
        if self._reader is not None:
            self._reader.let_go()

    def __del__(self) -> None:
        self._let_go()
