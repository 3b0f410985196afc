"""The stage that makes elements before they are asked for, several at once, and keeps their order.

What is upstream is advanced by one task, for one thing comes after the other there. It gives what
makes each element; the elements are then made side by side, and given in their order, each with
the place after it.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final, TypeAlias

from aloop.errors import StreamError
from aloop.streams.bridge import END, ENDING_S
from aloop.streams.stages.epochs import Deferred, Following, Mode, Place, Stage
from aloop.streams.stages.functions import Thread
from aloop.tasks import create_hidden_task, show_task

__all__ = ["Prefetch"]

# What a stream gives is whatever it is. Hence Any.
Element: TypeAlias = Any

_NO_PLACE: Final[Place] = {}

_logger = logging.getLogger("aloop")


class _Flight:
    """An element that is on its way, or the end, or an error in the place of one."""

    __slots__ = ("deferred", "error", "place", "task")

    def __init__(
        self,
        deferred: Deferred | None = None,
        place: Place = _NO_PLACE,
        error: Exception | None = None,
    ) -> None:
        self.deferred = deferred
        self.place = place
        """The place after it."""
        self.error = error
        self.task: asyncio.Task[Element] | None = None

    @property
    def is_there(self) -> bool:
        """True when nothing has to be made."""
        return self.deferred is None or self.deferred.value is not END

    @property
    def is_under_way(self) -> bool:
        """True while it is being made."""
        return self.task is not None and not self.task.done()


class Prefetch(Following):
    """Makes up to so many elements ahead.

    Where nothing upstream waits, and there is one worker, it passes on what it gets: the thread
    that reads the stream reads ahead.

    Parameters:
        depth: how many elements are made ahead.
        workers: how many are made at once, sync ones in a thread each.
    """

    def __init__(self, stage: Stage, *, depth: int, workers: int) -> None:
        super().__init__(stage)
        self._depth = depth
        self._workers = workers
        self._flights: deque[_Flight] = deque()
        self._reader: asyncio.Task[None] | None = None
        self._room: asyncio.Future[None] | None = None  # for the reader
        self._news: asyncio.Future[None] | None = None  # of the reader
        self._loop: asyncio.AbstractEventLoop | None = None
        self._idle: list[Thread] = []
        self._place: Place | None = None  # after what was given last
        self._has_all = False
        self._is_asked = False
        self._is_resting = False

    @property
    def name(self) -> str:
        """What kind of chain this is."""
        return self._stage.name  # for it changes nothing of what comes

    @property
    def is_async(self) -> bool:
        """True where it is known that something waits."""
        return self._workers > 1 or super().is_async

    def begin(self, mode: Mode) -> None:
        """Begin an epoch."""
        self._drop()
        mode.is_ahead = True
        super().begin(mode)

    def place(self) -> Place:
        """Give the place after the element given last."""
        return self._stage.place() if self._place is None else self._place

    def go_to(self, place: Mapping[str, Any]) -> None:
        """Go to a place."""
        self._drop()
        super().go_to(place)

    def leave(self) -> None:
        """Leave the epoch unfinished, if there is one."""
        self._drop()
        super().leave()

    def next_epoch(self) -> None:
        """Make the next epoch the one that follows this one."""
        place = self.place() if self._flights or self._has_all else None
        self._drop()
        if place is not None:
            super().go_to(place)  # upstream it may be another epoch already
        super().next_epoch()

    def reset(self) -> None:
        """Go back to the beginning of the first epoch."""
        self._drop()
        super().reset()

    async def advance(self) -> Element:
        """Give the next element, `END` after the last."""
        if not self.mode.is_async:
            return await self._stage.advance()
        self._get_going()
        self._is_asked = True
        try:
            flight = await self._next()
        finally:
            self._is_asked = False
        self._flights.popleft()
        self._make_room()
        if flight.error is not None:
            raise flight.error
        if flight.deferred is None:
            self._place = None
            self._has_all = False
            return END
        element = flight.deferred.value if flight.task is None else flight.task.result()
        self._place = flight.place
        return element

    def _get_going(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._forget_loop()
            self._loop = loop
        if self._place is None:
            self._place = self._stage.place()
        self._is_resting = False
        if self._reader is not None and self._reader.done():
            self._reader = None
        has_failed = bool(self._flights) and self._flights[-1].error is not None
        if self._reader is None and not (self._has_all or has_failed):
            # Nobody need hear of it if it is dropped with the stream.
            self._reader = create_hidden_task(self._read(), name="aloop prefetch")
            show_task(self._reader)
        self._make_room()
        self._start_some()

    def _forget_loop(self) -> None:
        """Have nothing under way, for the event loop that it was under way in has ended."""
        self._loop = self._reader = self._room = self._news = None
        for flight in self._flights:
            if flight.is_under_way:
                flight.task = None

    async def _next(self) -> _Flight:
        """Wait for the next element to be made."""
        flights = self._flights
        while True:
            if not flights:
                self._news = asyncio.get_running_loop().create_future()
                await self._news
                self._refuse_dropped(flights)
                continue
            flight = flights[0]
            if flight.is_there:
                return flight
            task = flight.task
            if task is None:
                self._start(flight)
            elif not task.done():
                await asyncio.wait([task])
                self._refuse_dropped(flights)
            elif not task.cancelled():
                return flight
            elif task.cancelling():
                flight.task = None  # between two runs
            else:
                flight.error = StreamError(
                    f"what makes an element of {self._stage.name} ahead has cancelled itself; "
                    "expected a function that gives an element or fails; look at what it cancels"
                )
                return flight

    def _refuse_dropped(self, flights: deque[_Flight]) -> None:
        if self._flights is not flights:
            raise StreamError(
                f"{self._stage.name} was closed, or went elsewhere, while its next element was "
                "awaited; expected it to be left alone meanwhile; close it after the run"
            )

    # Upstream.

    async def _read(self) -> None:
        while not self._has_all:
            while self._is_full:
                self._room = asyncio.get_running_loop().create_future()
                await self._room
            try:
                deferred = await self._stage.defer()
                flight = self._flight_of(deferred)
            except Exception as error:  # noqa: BLE001 - raised where the element is asked for
                flight = _Flight(error=error)
            self._flights.append(flight)
            self._start_some()
            if self._news is not None and not self._news.done():
                self._news.set_result(None)
            if flight.error is not None:
                return  # until somebody asks again

    def _flight_of(self, deferred: Any) -> _Flight:  # or END, which has no type of its own
        if deferred is END:
            self._has_all = True
            return _Flight()
        return _Flight(deferred, self._stage.place())

    @property
    def _is_full(self) -> bool:
        if self._is_resting:
            return bool(self._flights) or not self._is_asked
        return len(self._flights) >= self._depth

    def _make_room(self) -> None:
        if self._room is not None and not self._room.done() and not self._is_full:
            self._room.set_result(None)

    # The making.

    def _start_some(self) -> None:
        if self._is_resting:
            return
        number = sum(flight.is_under_way for flight in self._flights)
        for flight in self._flights:
            if number >= self._workers:
                return
            if flight.task is None and not flight.is_there:
                self._start(flight)
                number += 1

    def _start(self, flight: _Flight) -> None:
        assert flight.deferred is not None
        flight.task = asyncio.get_running_loop().create_task(
            flight.deferred.made(self._run), name="aloop prefetch"
        )
        flight.task.add_done_callback(self._end_one)

    def _end_one(self, task: "asyncio.Task[Element]") -> None:
        if task.cancelled():
            return
        task.exception()  # raised where the element is asked for, or nobody wants it any more
        if task.get_loop() is self._loop:
            self._start_some()

    async def _run(self, function: Callable[[], Any]) -> Any:  # what the function returns
        thread = self._idle.pop() if self._idle else Thread()
        try:
            return await thread.run(function)
        except asyncio.CancelledError:
            thread.end()  # when the function has
            raise
        finally:
            if thread.is_started:
                self._idle.append(thread)
            if self._is_resting:
                self._end_threads()

    # Between two runs.

    async def rest(self) -> None:
        """Let go of threads and tasks, and keep what the elements are made of.

        What somebody waits for is still made. Functions that are being called are waited for, but
        not for long; those that never return are named, and their threads left.
        """
        self._is_resting = True
        if self._loop is not asyncio.get_running_loop():
            self._forget_loop()
        kept = self._flights[0] if self._is_asked and self._flights else None
        ending: list[asyncio.Task[Any]] = []
        if self._reader is not None and (kept is not None or not self._is_asked):
            self._reader.cancel()
            ending.append(self._reader)
            self._reader = None
        for flight in self._flights:
            if flight is not kept and flight.task is not None and flight.is_under_way:
                if flight.deferred is not None and flight.deferred.is_async:
                    flight.task.cancel()
                ending.append(flight.task)
        if ending:
            _, stuck = await asyncio.wait(ending, timeout=ENDING_S)
            for task in stuck:
                task.cancel()
            if stuck:
                _logger.warning(
                    "%d of the elements that %s makes ahead do not come: the run ends without "
                    "them, and what makes them is left behind; they are begun anew when the "
                    "training goes on",
                    len(stuck),
                    self._stage.name,
                )
        if kept is not None and kept.task is not None and kept.is_under_way:
            await asyncio.wait([kept.task], timeout=ENDING_S)
            if kept.is_under_way:
                _logger.warning(
                    "the element of %s that is waited for does not come: the run ends without it, "
                    "and what makes it goes on; what comes is kept for another run",
                    self._stage.name,
                )
        self._end_threads()
        await super().rest()

    def _end_threads(self) -> None:
        for thread in self._idle:
            thread.end()
        self._idle = []

    def close(self) -> None:
        """Let go of all that is held open."""
        self._drop()
        super().close()

    def _drop(self) -> None:
        """Forget the epoch, and what was made ahead."""
        tasks = [flight.task for flight in self._flights if flight.task is not None]
        if self._reader is not None:
            tasks.append(self._reader)
        with suppress(RuntimeError):  # the event loop is closed
            for task in tasks:
                task.cancel()
            if self._news is not None and not self._news.done():
                self._news.set_result(None)
        self._is_resting = True  # for threads that are still at work
        self._end_threads()
        self._flights = deque()
        self._reader = self._room = self._news = self._place = self._loop = None
        self._has_all = False
