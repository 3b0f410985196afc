"""The base of the streams, and `as_stream`, which makes one out of what the user has."""

import reprlib
from abc import ABC, abstractmethod
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from inspect import iscoroutine
from typing import Any, cast

from aloop.errors import StreamError, is_other
from aloop.protocols import Stream
from aloop.streams.cursor import OnResume

__all__ = ["CallableStream", "DataStream", "IterableStream", "as_stream", "exclusive_parts"]


class DataStream(ABC):
    """Base of aloop's own streams; the interface is that of Fuel's AbstractDataStream."""

    sources: tuple[str, ...] = ()
    """The names of what a batch holds; empty when batches are whatever they are."""

    produces_examples: bool = False
    """True if the stream yields single examples, False if it yields batches."""

    on_resume: OnResume = "replay"
    """What happens, to a stream without a `state_dict`, when a training is restored in the middle
    of an epoch; see `as_stream`."""

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


class IterableStream(DataStream):
    """Batches out of an iterable, sync or async; each epoch goes through it once.

    A sync one is read on the event loop's thread, so it should not wait.
    """

    def __init__(
        self, iterable: Iterable[Any] | AsyncIterable[Any], on_resume: OnResume = "replay"
    ) -> None:
        self._iterable = iterable
        self.on_resume = on_resume
        self._used_up = False

    def __repr__(self) -> str:
        # Not the whole of it: a list may hold all data there is.
        return f"{type(self).__name__}({reprlib.repr(self._iterable)})"

    @property
    def iterator(self) -> object:
        """What it goes through, where that is an iterator and remembers its place, or None."""
        is_iterator = isinstance(self._iterable, (Iterator, AsyncIterator))
        return self._iterable if is_iterator else None

    def get_epoch_iterator(self, *, as_dict: bool = True) -> Iterator[Any] | AsyncIterator[Any]:
        """Begin an epoch; batches come as they are, `as_dict` changes nothing."""
        iterable = self._iterable
        iterator = aiter(iterable) if isinstance(iterable, AsyncIterable) else iter(iterable)
        if iterator is iterable:
            _refuse_second_epoch(iterable, self._used_up)
            self._used_up = True
        return iterator

    def __len__(self) -> int:
        """Give the number of batches in an epoch; TypeError if it cannot be known."""
        return len(cast("Sequence[Any]", self._iterable))


class CallableStream(DataStream):
    """Batches out of what a function without arguments returns, called anew for each epoch."""

    def __init__(self, function: Callable[[], object], on_resume: OnResume = "replay") -> None:
        self._function = function
        self.on_resume = on_resume

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._function!r})"

    def get_epoch_iterator(self, *, as_dict: bool = True) -> Iterator[Any] | AsyncIterator[Any]:
        """Call the function and begin with what it returned, a sync or an async iterable."""
        made = self._function()
        if isinstance(made, AsyncIterable):
            return aiter(cast("AsyncIterable[Any]", made))
        if _is_epoch(made):
            return iter(cast("Iterable[Any]", made))
        if iscoroutine(made):
            made.close()  # or Python warns that it was never awaited, on top of this error
        raise StreamError(
            f"the data stream's function {self._function!r} returned {made!r:.80} of type "
            f"{type(made).__name__}; expected an iterable or async iterable of batches; return "
            "one, or write the function as a generator"
        )


def as_stream(source: Any, *, on_resume: OnResume = "replay") -> Stream:
    """Make a stream out of what there is.

    Takes a stream (anything with Fuel's `get_epoch_iterator`), which is given back as it is; a
    list, tuple or other iterable of batches; an async iterable of batches; or a function without
    arguments that returns an iterable or async iterable and is called for each epoch. Sync
    sources are read on the event loop's thread.

    Parameters:
        source: what there is.
        on_resume: what happens when a training is restored in the middle of an epoch, and the
            stream cannot tell its place by `state_dict`: ``"replay"``: the epoch is begun anew, and
            as many batches as were consumed are left out; ``"live"``: none are, for those that
            come are new ones, as from a queue. A stream that is given back as it is has its own
            `on_resume`, or is replayed.

    Raises `StreamError` for anything else, text and single dictionaries included.
    """
    is_other("on_resume", on_resume, "replay", "live")
    if hasattr(source, "get_epoch_iterator") and not isinstance(source, type):
        return source
    what = cast("object", source)
    if isinstance(what, AsyncIterable) or _is_epoch(what):
        return IterableStream(cast("Iterable[Any]", source), on_resume)
    if callable(what) and not isinstance(what, type):
        return CallableStream(what, on_resume)
    raise StreamError(
        f"the data stream is {what!r:.80} of type {type(what).__name__}; expected a stream, "
        "an iterable or async iterable of batches, or a function that returns one; wrap a single "
        "batch in a list, and arrays in ArrayStream"
    )


def exclusive_parts(stream: Stream) -> list[tuple[object, str]]:
    """Give what of a stream only one run at a time can use, each with how messages call it."""
    parts: list[tuple[object, str]] = [(stream, f"the data stream {stream!r:.200}")]
    if isinstance(stream, IterableStream) and stream.iterator is not None:
        parts.append((stream.iterator, f"the data stream {stream.iterator!r:.200}"))
    return parts


def _is_epoch(value: object) -> bool:
    """Tell what can be gone through and is not surely a single batch, or a class of such."""
    return isinstance(value, Iterable) and not isinstance(
        value, (str, bytes, bytearray, Mapping, type)
    )


def _refuse_second_epoch(source: object, used_up: bool) -> None:
    if used_up:
        raise StreamError(
            f"the data stream {source!r:.80} is an iterator and was used up by its first epoch; "
            "expected something that can be gone through again; give the function that makes it "
            "instead of what it returned"
        )
