"""The first stage of a chain: a stream of whatever kind, read in the way that suits it.

Its place is what the stream tells of it, or else the number of elements that were taken, as for a
stream that is trained on without any stages; see `aloop.streams.cursor`.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import deepcopy
from enum import Enum, auto
from inspect import isasyncgen
from typing import Any

from aloop.protocols import Stateful, Stream
from aloop.streams.base import DataStream, read_ahead_of
from aloop.streams.bridge import END, ENDING_S, Bridge
from aloop.streams.cursor import (
    SEQUENCE_ITERATORS,
    beginning_of,
    completed,
    enter,
    place_in,
    refuse_short,
)
from aloop.streams.stages.epochs import Deferred, Mode, Place, Stage, part_of
from aloop.streams.stages.functions import Thread
from aloop.tasks import STREAM_TASK

__all__ = ["Origin"]

_logger = logging.getLogger("aloop")


class _Way(Enum):
    """How the next element is come by."""

    DIRECT = auto()
    AWAITED = auto()
    BRIDGE = auto()  # in a thread that reads ahead
    DEFERRED = auto()  # in a thread, one at a time


class Origin(Stage):
    """Gives what a stream gives.

    Parameters:
        stream: the stream.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._thread = Thread()
        self._start: Place | None = None  # where the next epoch goes on
        self._is_begun = False
        self._iterator: Any = None
        self._tell: Callable[[], Place] = dict
        self._way: _Way | None = None
        self._bridge: Bridge | None = None
        self._crossing: asyncio.Future[None] | None = None  # done when the bridge has given
        self._is_resting = False
        self._task: asyncio.Task[Any] | None = None
        self._kept: Callable[[], Any] | None = None  # what makes the next element
        self._count = 0
        self._to_skip = 0
        self._beginning: Place | None = None  # the stream's state when the epoch began
        self._tells = False  # the place in the epoch
        self._before: Place | None = None  # the fetch that is under way
        self._has_failed = False

    @property
    def name(self) -> str:
        """What kind of chain this is."""
        return type(self.stream).__name__

    @property
    def begins_in_thread(self) -> bool:
        """True if to begin an epoch may take long."""
        return getattr(self.stream, "begins_in_thread", False)

    def begin(self, mode: Mode) -> None:
        """Begin an epoch."""
        self.mode = mode
        start = self._start
        self._drop()
        self._start = start
        self._is_begun = True
        if not (mode.is_async and self.begins_in_thread):
            self._enter()
            if hasattr(self._iterator, "__anext__"):
                mode.is_async = True

    def _enter(self) -> None:
        if self._iterator is not None:
            return  # by a call whose wait was cancelled
        start, stream = self._start, self.stream
        if start is not None and start.get("is_left") and isinstance(stream, Stateful):
            # As it was: an epoch is begun on top of one that has not ended.
            stream.load_state_dict(start["stream"])
            stream.get_epoch_iterator(as_dict=True)
        if start is None or start.get("is_left"):
            iterator = stream.get_epoch_iterator(as_dict=True)
            self._beginning = beginning_of(stream)
            self._count = self._to_skip = 0
        else:
            self._count = part_of(start, "count", int)
            place = completed(start, self._count, start.get("beginning"))
            iterator, self._to_skip, self._beginning = enter(
                stream, place, self._count, in_epoch=True
            )
        self._start = None
        self._iterator = iterator
        self._tell = self._teller()

    def _choose(self) -> _Way:
        iterator = self._iterator
        if hasattr(iterator, "__anext__"):
            return _Way.AWAITED
        is_quick = (
            getattr(self.stream, "where", "thread") == "inline"
            or type(iterator) in SEQUENCE_ITERATORS
        )
        if is_quick or not self.mode.is_async:
            return _Way.DIRECT
        return _Way.DEFERRED if hasattr(iterator, "defer") else _Way.BRIDGE

    async def advance(self) -> Any:
        """Give the next element, `END` after the last."""
        if self._way is _Way.DIRECT and not self._to_skip:
            element = next(self._iterator, END)
        else:
            element = await self._advance()
        if element is END:
            self._end()
        else:
            self._count += 1
        return element

    async def defer(self) -> Any:
        """Go on to the next element, and give what makes this one."""
        await self._get_ready()
        if self._to_skip or not hasattr(self._iterator, "defer"):
            return await super().defer()
        try:
            make = self._iterator.defer()
        except StopIteration:
            self._end()
            return END
        self._count += 1
        return Deferred(make=make)

    async def _get_ready(self) -> None:
        if self._is_begun and self._iterator is None:
            await self._thread.run(self._enter)
        if self._task is not None and _is_lost(self._task):
            self._task = None
        if self._task is None and self._is_cut_off:
            place = self.place() if self._before is None else self._before
            self._start, self._iterator, self._before = place, None, None
            self._enter()
        if self._way is None:
            self._way = self._choose()

    @property
    def _is_cut_off(self) -> bool:
        """True for a generator that was closed with the event loop of an earlier run."""
        iterator = self._iterator
        return isasyncgen(iterator) and iterator.ag_frame is None and not self._has_failed

    async def _advance(self) -> Any:
        while True:
            await self._get_ready()
            if not self._to_skip:
                return await self._read()
            if await self._read() is END:
                refuse_short(self.stream, self._count - self._to_skip, self._count)
            self._to_skip -= 1

    async def _read(self) -> Any:
        way, iterator = self._way, self._iterator
        if way is _Way.DIRECT:
            return next(iterator, END)
        if way is _Way.AWAITED:
            return await self._await()
        if way is _Way.BRIDGE:
            return await self._cross()
        make = self._kept
        if make is None:
            try:
                make = self._kept = iterator.defer()
            except StopIteration:
                return END
        try:
            element = await self._thread.run(make)
        except Exception:
            self._kept = None
            raise
        self._kept = None
        return element

    async def _await(self) -> Any:
        if self._before is None and isasyncgen(self._iterator):
            self._before = self.place()  # a generator that is cut off has moved on
        element = await self._anext()
        self._before = None
        return element

    async def _anext(self) -> Any:
        try:
            if not self.mode.is_ahead:
                return await anext(self._iterator, END)
            # Who fetches ahead is cancelled between two runs, which would end a generator.
            if self._task is None:
                self._task = asyncio.create_task(_next(self._iterator), name=STREAM_TASK)
            task = self._task
            if not task.done():
                await asyncio.wait([task])
            self._task = None
            return task.result()
        except Exception:
            self._has_failed = True
            raise

    async def _cross(self) -> Any:
        worker = self._thread.worker
        if self._bridge is None:
            self._bridge = Bridge(
                self._iterator,
                worker,
                name=f"the data stream {self.stream!r:.200}",
                read_ahead=read_ahead_of(self.stream),
                tell_place=self._tell,
            )
        else:
            self._bridge.go_on_in(worker)
        crossing = self._crossing = asyncio.get_running_loop().create_future()
        try:
            return await self._bridge.advance()
        finally:
            self._crossing = None
            if not crossing.done():
                crossing.set_result(None)
            if self._is_resting:
                self._end_thread()

    def place(self) -> Place:
        """Give the place after the element given last."""
        if self._start is not None:
            return self._start
        if self._iterator is None:
            return {"count": 0, **deepcopy(place_in(self.stream, None))}
        told = self._bridge.place if self._bridge is not None else None
        place = {"count": self._count, **(self._tell() if told is None else told)}
        if self._tells or "stream" not in place or "iterator" in place:
            return place
        if self._count and not completed(place, self._count, self._beginning)["is_counted"]:
            self._tells = True
            return place
        return place | {"beginning": self._beginning}

    def _teller(self) -> Callable[[], Place]:
        """Give what tells the place quickly, for it is asked for after each element."""
        stream, iterator = self.stream, self._iterator
        if isinstance(iterator, Stateful) or not isinstance(stream, DataStream):
            # A copy, for what they tell may be what they go by.
            return lambda: deepcopy(place_in(stream, iterator))
        if not isinstance(stream, Stateful):
            return dict
        tell = stream.state_dict
        return lambda: {"stream": tell()}

    def go_to(self, place: Mapping[str, Any]) -> None:
        """Go to a place."""
        part_of(place, "count", int)
        self._drop()
        self._start = dict(place)
        if "stream" in place and isinstance(self.stream, Stateful) and not self.begins_in_thread:
            self.stream.load_state_dict(place["stream"])  # which says what is wrong with it

    def leave(self) -> None:
        """Leave the epoch unfinished, if there is one."""
        if self._iterator is None:
            return  # it is as it was before, if it ever was begun
        place = self.place()
        self._drop()
        self._start = {"count": 0, "is_left": True}
        if "stream" in place:
            self._start["stream"] = place["stream"]

    def next_epoch(self) -> None:
        """Make the next epoch the one that follows this one."""
        if self._start is not None and isinstance(self.stream, Stateful):
            self.stream.load_state_dict(self._start["stream"])
        self._drop()
        self.stream.next_epoch()

    def reset(self) -> None:
        """Go back to the beginning of the first epoch."""
        self._drop()
        self.stream.reset()

    def _end(self) -> None:
        self._drop(is_over=True)

    def _drop(self, *, is_over: bool = False) -> None:
        """Forget the epoch."""
        if self._bridge is not None:
            self._bridge.let_go()
        if self._task is not None and not is_over:
            with suppress(RuntimeError):  # its event loop is closed
                self._task.cancel()
        self._start = self._iterator = self._way = self._bridge = self._task = self._kept = None
        self._before = None
        self._is_begun = self._has_failed = False
        self._count = self._to_skip = 0

    async def rest(self) -> None:
        """Let go of threads and tasks between two runs."""
        name = f"the data stream {self.stream!r:.200}"
        crossing = self._crossing
        if crossing is not None and crossing.get_loop() is asyncio.get_running_loop():
            # Somebody waits for the next element, and goes on to when there is another run.
            self._is_resting = True
            await asyncio.wait([crossing], timeout=ENDING_S)
            if not crossing.done():
                _logger.warning(
                    "%s gives no batch: the run ends without it, and its thread is left to wait "
                    "for it; what comes is kept for another run",
                    name,
                )
        elif self._bridge is not None:
            await self._bridge.rest()  # which says so if the thread is stuck
            self._thread.end()
        else:
            await self._thread.rest(name)

    def _end_thread(self) -> None:
        self._is_resting = False
        if self._bridge is not None:
            self._bridge.let_go()
        self._thread.end()

    def close(self) -> None:
        """Let go of all that is held open."""
        if self._task is not None:
            with suppress(RuntimeError):  # its event loop is closed
                self._task.cancel()  # or it would take an element for nobody
            self._task = None
        self._end_thread()
        self.stream.close()


def _is_lost(task: "asyncio.Task[Any]") -> bool:
    """Say whether nothing comes of a task any more, for its event loop has ended."""
    return task.cancelled() or (not task.done() and task.get_loop().is_closed())


async def _next(iterator: Any) -> Any:
    return await anext(iterator, END)
