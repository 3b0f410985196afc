"""What a training reads of its stream, and its place in it, in one run after the other."""

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from aloop.errors import CheckpointError, brief
from aloop.protocols import Stateful, Stream
from aloop.stalls import blames
from aloop.stopping import StopRequest
from aloop.streams.cursor import (
    Place,
    beginning_of,
    completed,
    copied,
    enter,
    place_in,
    refuse_short,
)
from aloop.streams.fetch import Fetcher

__all__ = ["Reading", "epoch_length"]

_logger = logging.getLogger("aloop")


class Reading:
    """The reading of a stream, epoch after epoch.

    Parameters:
        stream: what is read.
        is_saved: says whether there is somebody who saves the place; without, an async iterator
            is not asked for it before each batch.
    """

    _stop: StopRequest

    def __init__(self, stream: Stream, is_saved: Callable[[], bool]) -> None:
        self.stream = stream
        self._is_saved = is_saved
        self.iterator: Any = None
        """The iterator of the epoch under way, None before the first."""
        self.to_skip = 0
        """How many batches of the epoch were trained on before it was begun anew."""
        self._fetcher = Fetcher()
        self._beginning: Place | None = None  # the stream's state when the epoch began
        self._origin = stream  # which the iterator is from
        self._fetched: Any = None  # the iterator that is read in this run
        self._untold: Exception | None = None  # why the stream did not tell its place
        self._short: object = None  # what was named because an epoch of it ended early

    def begin(self, stop: StopRequest) -> None:
        """Get ready for a run, of which `stop` says what is asked."""
        self._stop = stop

    @property
    def is_left_to_come(self) -> bool:
        """True when the run leaves the stream alone, and what was fetched last is no end."""
        return self._fetcher.is_left

    @property
    def has_news(self) -> bool:
        """True when something is to be done first, and what was fetched last is no end."""
        return self._fetcher.has_news

    @property
    def is_at_work(self) -> bool:
        """True while a thread reads, perhaps for a run that has ended."""
        return self._fetcher.is_at_work

    @property
    def has_lost_its_place(self) -> bool:
        """True for a generator that was cut off, with the event loop of its run, or was closed."""
        return self._fetcher.has_lost_its_place(self.iterator)

    async def begin_epoch(self) -> None:
        """Begin the next epoch."""
        begin = partial(_begun, self.stream, is_saved=self._is_saved())
        begun = await self._fetcher.call(begin) if self._begins_in_thread else begin()
        self.iterator, self._beginning = begun
        self._fetched = None
        self._origin = self.stream

    @property
    def _begins_in_thread(self) -> bool:
        return getattr(self.stream, "begins_in_thread", False)

    def fetching(self) -> tuple[Callable[[], Any], bool]:
        """Give what fetches the next batch, or `END`, and whether it has to be awaited."""
        stream, iterator = self.stream, self.iterator

        def tell_place() -> Place:
            return copied(place_in(stream, iterator))  # for what it tells may be what it goes by

        def tell_place_if_saved() -> Place | None:
            return tell_place() if self._is_saved() else None

        def tell_place_in_thread() -> Place | None:
            try:
                return tell_place()
            except Exception as error:
                error.add_note(f"raised when the data stream {stream!r:.200} was to tell its place")
                if self._is_saved():
                    raise
                self._untold = error
                return None  # which nobody may want

        self._fetched = iterator
        self._untold = None
        if not self._can_tell_place:
            return self._fetcher.of(stream, iterator, self._stop)
        tell = tell_place_if_saved if hasattr(iterator, "__anext__") else tell_place_in_thread
        return self._fetcher.of(stream, iterator, self._stop, tell)

    def end_epoch(self, batches: int) -> None:
        """Look whether an epoch that has ended has had all its batches.

        Raises `StreamError` if it has fewer than were trained on in it before.
        """
        refuse_short(self.stream, batches - self.to_skip, batches)
        length = epoch_length(self.stream)
        if length is not None and 0 < batches < length and self._short is not self.stream:
            self._short = self.stream
            _logger.warning(
                "an epoch of the data stream %.200r has ended after %d batches; expected the %d "
                "that its length says; look at what it is made of",
                self.stream,
                batches,
                length,
            )

    def leave_epoch(self) -> None:
        """Be between two epochs."""
        self.to_skip = 0

    async def rest(self) -> None:
        """Let the run go, when it has ended."""
        await self._fetcher.rest(self._stop)
        self._fetched = None

    def replace(self, iterator: Any) -> None:
        """Take another iterator of an epoch of the stream, for the next run to go on with."""
        self.iterator = iterator
        self._origin = self.stream

    # Its place.

    def place(self, batches: int, *, in_epoch: bool) -> Place:
        """Tell the place in the stream that was consumed, though a fetch may be under way.

        Raises `CheckpointError` where that is not known.
        """
        iterator = self.iterator if in_epoch else None
        place = self._place_ahead() if in_epoch else None
        if place is None:
            place = place_in(self.stream, iterator)
        return completed(place, batches, self._beginning)

    def _place_ahead(self) -> Place | None:
        """Give the place that was consumed, where the iterator is further on; None where not."""
        iterator = self.iterator
        if self.stream is not self._origin or self._fetched not in (None, iterator):
            raise CheckpointError(
                f"the loop was given the data stream {self.stream!r:.200}, or another iterator, in "
                f"the middle of an epoch of {self._origin!r:.200}, which goes on to its end; "
                "expected one stream in an epoch; save at the end of the epoch, or change the "
                "stream between two"
            )
        place = self._fetcher.place_ahead(iterator)
        if place is None and self._can_tell_place and self._fetcher.is_ahead(iterator):
            if self._untold is not None:
                raise CheckpointError(
                    f"the data stream {self.stream!r:.200} is ahead of what was trained on, and "
                    f"could not tell its place before: {brief(self._untold)}; expected its "
                    "state_dict() to give JSON values and arrays; mend it"
                ) from self._untold
            raise CheckpointError(
                f"the data stream {self.stream!r:.200} is ahead by the batch that is "
                "awaited; expected a Checkpoint among the extensions, for which it is asked "
                "for its place before; add one, or wait for the batch"
            )
        return place

    @property
    def _can_tell_place(self) -> bool:
        return isinstance(self.stream, Stateful) or isinstance(self.iterator, Stateful)

    async def go_to(self, place: Mapping[str, Any], batches: int, *, in_epoch: bool) -> None:
        """Go to a place that `place` gave, after so many batches of an epoch."""
        entering = partial(enter, self.stream, place, batches, in_epoch=in_epoch)
        entered = await self._fetcher.call(entering) if self._begins_in_thread else entering()
        self.iterator, self.to_skip, self._beginning = entered
        self._fetched = None
        self._origin = self.stream


@blames("the data stream {stream!r}")
def _begun(stream: Stream, *, is_saved: bool) -> tuple[Any, Place | None]:
    """Begin an epoch; give its iterator, and the state of the stream then, if that is saved."""
    iterator: Any = stream.get_epoch_iterator(as_dict=True)
    return iterator, beginning_of(stream) if is_saved else None


def epoch_length(stream: Any) -> int | None:
    """Give the number of batches in an epoch of a stream, or None where it is not known."""
    scheme: Any = getattr(stream, "iteration_scheme", None)
    for what in (stream, scheme):
        with suppress(Exception):  # it has no length, or cannot tell it, in whatever way it says so
            return len(what)
    return None
