"""The base of aloop's own streams."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Literal, TypeAlias

import numpy.typing as npt

from aloop.streams.cursor import OnResume

__all__ = ["READ_AHEAD", "DataStream", "Where", "read_ahead_of", "register_transform"]

Where: TypeAlias = Literal["thread", "inline"]
"""Where the next batch of a sync iterator is fetched: in a thread, ahead of what is consumed, or
on the event loop's thread, when it is asked for."""

READ_AHEAD: Final = 2
"""How many batches a thread fetches before they are asked for, unless a stream says otherwise."""

_transforms: "dict[str, Callable[..., DataStream]]" = {}


class DataStream(ABC):
    """Base of aloop's own streams; the interface is that of Fuel's AbstractDataStream."""

    sources: tuple[str, ...] = ()
    """The names of what a batch holds; empty when batches are whatever they are."""

    produces_examples: bool = False
    """True if the stream yields single examples, False if it yields batches."""

    on_resume: OnResume = "replay"
    """What happens, to a stream without a `state_dict`, when a training is restored in the middle
    of an epoch; see `as_stream`."""

    where: Where = "thread"
    """Where the next batch is fetched, if the epoch iterators are sync ones."""

    read_ahead: int | None = None
    """How many batches a thread fetches before they are asked for, 0 or more. With None it is 2,
    and where batches take far less than a millisecond, a handful, unless the stream is live."""

    @property
    def begins_in_thread(self) -> bool:
        """True if the thread calls `get_epoch_iterator` and `load_state_dict` too."""
        return False

    iteration_scheme: Any = None
    """The scheme that orders the stream; its length is the number of batches in an epoch."""

    @abstractmethod
    def get_epoch_iterator(self, *, as_dict: bool = True) -> Any:
        """Begin an epoch and give its iterator, sync or async."""

    def next_epoch(self) -> None:  # noqa: B027 - a stream may have nothing to do here
        """Make the next iterator begin an epoch that follows this one."""

    def reset(self) -> None:  # noqa: B027 - a stream may have nothing to do here
        """Go back to the beginning of the first epoch."""

    def close(self) -> None:  # noqa: B027 - a stream may have nothing to do here
        """Let go of what the stream holds open."""

    def parts(self) -> Iterator[object]:
        """Give the stream and what in it remembers its place, which only one run can use."""
        yield self

    # What can be made of it. Each gives a new stream that goes through this one.

    def map(
        self,
        # Given an element and giving one, both of which are anything; or a coroutine function.
        function: Callable[[Any], Any],
        *,
        concurrency: int = 1,
        sources: tuple[str, ...] | None = None,
    ) -> "DataStream":
        """Give what a function makes of each element.

        Parameters:
            function: is called with an element, a dictionary by source where the stream has
                sources, and gives one. A coroutine function is awaited in the event loop, a sync
                one is called in a thread.
            concurrency: how many elements are made at once, in threads or in tasks; their order
                is kept.
            sources: the names of what the function's elements hold, if they are dictionaries;
                left out they are not declared, and not checked.
        """
        return _transforms["map"](self, function, concurrency=concurrency, sources=sources)

    def filter(
        self,
        # Given an element, which is anything, and giving what is true or false, or a coroutine.
        predicate: Callable[[Any], Any],
    ) -> "DataStream":
        """Give the elements for which a predicate, sync or async, is true."""
        return _transforms["filter"](self, predicate)

    def batch(self, batch_size: int, *, drop_last: bool = False) -> "DataStream":
        """Give batches of so many elements, each of which is a row of its batch.

        Dictionaries make a dictionary of arrays, tuples a tuple of arrays. Where rows differ in
        their first dimension alone, the column is an array of arrays, for `pad`.

        Parameters:
            batch_size: elements in a batch, 1 or more.
            drop_last: leave out the last batch of an epoch where it is shorter.
        """
        return _transforms["batch"](self, batch_size, drop_last=drop_last)

    def unbatch(self) -> "DataStream":
        """Give the rows of each batch, one at a time."""
        return _transforms["unbatch"](self)

    def pad(
        self,
        sources: tuple[str, ...] | list[str] | None = None,
        *,
        mask_dtype: npt.DTypeLike = "float32",
    ) -> "DataStream":
        """Pad sequences of different lengths with zeros, and add a mask of each source.

        A source ``x`` of arrays of shapes (length, …) becomes an array of shape (examples,
        longest, …), and ``x_mask`` of shape (examples, longest) is 1 where there is data.

        Parameters:
            sources: the names of those to pad; all, if left out.
            mask_dtype: the dtype of the masks.
        """
        return _transforms["pad"](self, sources, mask_dtype)

    def rename(self, names: Mapping[str, str]) -> "DataStream":
        """Give sources other names: the new ones by the old."""
        return _transforms["rename"](self, names)

    def select(self, *sources: str) -> "DataStream":
        """Give these sources alone, in this order."""
        return _transforms["select"](self, sources)

    def cache(self) -> "DataStream":
        """Keep the elements of the first epoch in memory, and give them again in later ones.

        Nothing is read twice. The arrays are the same each time: do not change them in place. The
        order is that of the first epoch. A training that goes on in a new process reads anew.
        """
        return _transforms["cache"](self)

    def prefetch(self, depth: int = 2, workers: int = 1) -> "DataStream":
        """Make elements before they are asked for; their order is kept.

        Parameters:
            depth: how many are made ahead, 0 or more.
            workers: how many are made at once, 1 or more, each in a thread, or in a task where a
                coroutine function takes part in it. More than one make all that is between here
                and the nearest `filter`, `unbatch`, `cache` or source of another kind side by
                side.
        """
        return _transforms["prefetch"](self, depth=depth, workers=workers)


def read_ahead_of(stream: Any) -> int | None:  # of whatever kind
    """Give how far ahead a thread reads a stream, None if it may do so by the handful."""
    read_ahead = getattr(stream, "read_ahead", None)
    is_live = getattr(stream, "on_resume", "replay") == "live"
    return READ_AHEAD if read_ahead is None and is_live else read_ahead


def register_transform(name: str, transform: "Callable[..., DataStream]") -> None:
    """Give what makes another stream of a stream, for the method of this name."""
    _transforms[name] = transform
