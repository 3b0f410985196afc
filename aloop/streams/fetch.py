"""Fetching the batches of an epoch, whichever way its iterator gives them.

While a batch is awaited nothing of the run is in flight, so a run that is to stop leaves a quiet
stream at once. What waits for the batch is a task of the stream's own, or its thread, which stays
where it is, because a cancellation would end a generator; and the next run finds the batch that
came to it.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from inspect import isasyncgen, isgenerator
from typing import Any, TypeVar

from aloop.faults import with_points
from aloop.offload import Worker
from aloop.protocols import Batch, Stream
from aloop.stalls import blames
from aloop.stopping import StopRequest
from aloop.streams.base import read_ahead_of
from aloop.streams.bridge import END, ENDING_S, Bridge
from aloop.streams.checks import check_of
from aloop.streams.cursor import SEQUENCE_ITERATORS
from aloop.streams.stages.epochs import AsyncEpochIterator
from aloop.tasks import STREAM_TASK, create_hidden_task, show_task
from aloop.turns import thread_at_work

__all__ = ["END", "Fetcher"]

T = TypeVar("T")

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
        self._has_failed = False  # with what was taken last
        self.place: Any = None
        """The place in the stream before the newest fetch, None if it was not told."""

    def ask(self, tell_place: Callable[[], Any] | None) -> "asyncio.Future[Batch]":
        """Give what will have the next batch; the same again until it is taken."""
        loop = asyncio.get_running_loop()
        if self._task is not None and self._task.get_loop() is not loop:
            self._wanted = self._task = None
        if self.is_lost:
            self._outcome = None
        if self._outcome is None:
            # The iterator has not moved yet; and what it tells may be what it goes by.
            self.place = None if tell_place is None else tell_place()
            self._has_failed = False
            self._outcome = loop.create_future()
            if self._wanted is not None:
                self._wanted.set_result(None)
            else:
                self._is_last = False
                self._task = create_hidden_task(self._read(), name=STREAM_TASK)
        return self._outcome

    def take(self, check: Callable[[Batch], Batch]) -> Batch:
        """Give the batch that was asked for, or raise what the stream did in its place.

        One that `check` refuses was not taken, as far as the place goes.
        """
        assert self._outcome is not None
        outcome, self._outcome = self._outcome, None
        self._has_failed = True
        batch = check(outcome.result())
        self._has_failed = False
        return batch

    @property
    def is_ahead(self) -> bool:
        """True when the iterator has moved, or may at any time, for what was not taken."""
        return self._outcome is not None or self._has_failed

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
            await asyncio.wait([self._task], timeout=ENDING_S)
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
                outcome.exception()  # it is told here
                _logger.warning("a data stream failed after its run had left it: %r", error)


class Fetcher:
    """Fetches for one run after the other, and keeps what an earlier one had to leave."""

    def __init__(self) -> None:
        self._reader: _Reader | None = None
        self._bridge: Bridge | None = None
        self._worker: Worker | None = None
        self._left_workers: list[Worker] = []
        self.is_left = False
        """Whether what was fetched last is no end, but the run is to stop."""
        self.has_news = False
        """Whether what was fetched last is no end, but something is to be done first."""

    async def call(self, function: Callable[[], T]) -> T:
        """Call a function in the thread that fetches."""
        return await self._thread().run(function)

    def of(
        self,
        stream: Stream,
        iterator: Any,
        stop: StopRequest,
        tell_place: Callable[[], Any] | None = None,
    ) -> tuple[Callable[[], Any], bool]:
        """Give what fetches the next batch, or `END`, and whether it has to be awaited.

        Parameters:
            stream: where the iterator is from.
            iterator: of the epoch.
            stop: what is asked of the run.
            tell_place: gives a copy of the place in the stream, where it can tell it, or None.
        """
        self.is_left = self.has_news = False
        check = check_of(stream)
        if hasattr(iterator, "__anext__"):
            return self._awaiting(iterator, stop, tell_place, check), True
        if getattr(stream, "where", "thread") == "inline" or type(iterator) in SEQUENCE_ITERATORS:
            self._let_go()
            return _advancing(stream, iterator, check), False
        return self._taking(stream, iterator, stop, tell_place, check), True

    def _awaiting(
        self,
        iterator: AsyncIterator[Batch],
        stop: StopRequest,
        tell_place: Callable[[], Any] | None,
        check: Callable[[Batch], Batch],
    ) -> Callable[[], Any]:
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
            if self._is_kept_from_taking(stop, is_there=outcome.done()):
                return END
            return reader.take(check)

        return wait

    def _taking(
        self,
        stream: Stream,
        iterator: Iterator[Batch],
        stop: StopRequest,
        tell_place: Callable[[], Any] | None,
        check: Callable[[Batch], Batch],
    ) -> Callable[[], Any]:
        worker = self._thread()
        bridge = self._bridge
        if bridge is None or bridge.iterator is not iterator:
            self._let_go()
            bridge = self._bridge = Bridge(
                iterator,
                worker,
                name=f"the data stream {stream!r:.200}",
                read_ahead=read_ahead_of(stream),
                tell_place=tell_place,
            )
        else:
            bridge.go_on_in(worker)
        taken = with_points(bridge.take, after="bridge.taken")

        async def take() -> Batch:
            self.has_news = False
            if not bridge.is_ready:
                with thread_at_work():
                    await stop.wait_with(bridge.ask())
                if self._is_kept_from_taking(stop, is_there=bridge.is_ready):
                    return END
            return taken(check)

        return take

    def _is_kept_from_taking(self, stop: StopRequest, *, is_there: bool) -> bool:
        self.is_left = stop.must_leave
        self.has_news = not self.is_left and (stop.is_paused or not is_there)
        return self.is_left or self.has_news

    def is_ahead(self, iterator: Any) -> bool:
        """Say whether an iterator has moved, or may at any time, for what nobody has taken."""
        bridge, reader = self._bridge, self._reader
        if bridge is not None and bridge.iterator is iterator:
            return bridge.is_ahead
        return reader is not None and reader.iterator is iterator and reader.is_ahead

    def place_ahead(self, iterator: Any) -> Any:
        """Give the place in the stream that was consumed, where the iterator may be further on.

        None where it is not, or where there is no place.
        """
        reader: _Reader | Bridge | None = self._bridge or self._reader
        return reader.place if reader is not None and self.is_ahead(iterator) else None

    def has_lost_its_place(self, iterator: Any) -> bool:
        """Say whether this is a generator that was closed, or cut off with its event loop."""
        reader, bridge = self._reader, self._bridge
        if isasyncgen(iterator) and reader is not None and reader.iterator is iterator:
            was_closed = iterator.ag_frame is None and not reader.has_ended
            if reader.is_lost or was_closed:
                _logger.warning(
                    "%r was cut off when the event loop of the last run ended; a new epoch begins",
                    iterator,
                )
                return True
        was_closed = isgenerator(iterator) and iterator.gi_frame is None
        if not was_closed or bridge is None or bridge.iterator is not iterator:
            return False
        if not bridge.has_stopped:
            _logger.warning("%r was closed in mid-epoch; a new epoch begins", iterator)
        return not bridge.has_stopped

    async def rest(self, stop: StopRequest) -> None:
        """Let the run go, when it has ended."""
        if self._reader is not None:
            await self._reader.rest(stop)
            if isinstance(self._reader.iterator, AsyncEpochIterator):
                await self._reader.iterator.rest()
        if self._bridge is not None:
            await self._bridge.rest()
        self._end_thread(is_idle=self._bridge is not None and not self._bridge.is_filling)

    @property
    def is_at_work(self) -> bool:
        """True while a thread is at work, perhaps for a run that has ended."""
        self._left_workers = [worker for worker in self._left_workers if worker.is_busy]
        return bool(self._left_workers) or (self._worker is not None and self._worker.is_busy)

    def _thread(self) -> Worker:
        if self._worker is None:
            self._worker = Worker("aloop stream")
        return self._worker

    def _end_thread(self, *, is_idle: bool = False) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close(is_idle=is_idle)
            if worker.is_busy:
                self._left_workers.append(worker)

    def _let_go(self) -> None:
        # What still waits would take a batch that another is to have.
        if self._reader is not None:
            self._reader.let_go()
            self._reader = None
        if self._bridge is not None:
            self._bridge.let_go()
            self._bridge = None

    def __del__(self) -> None:
        self._let_go()
        self._end_thread()


def _advancing(
    stream: Stream, iterator: Iterator[Batch], check: Callable[[Batch], Batch]
) -> Callable[[], Batch]:
    if not getattr(stream, "sources", ()):

        @blames("the data stream {iterator!r}")
        def advance() -> Batch:
            return next(iterator, END)

        return advance

    @blames("the data stream {iterator!r}")
    def advance_checked() -> Batch:
        return check(next(iterator, END))

    return advance_checked
