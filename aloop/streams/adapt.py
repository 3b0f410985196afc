"""Streams out of what the user has: `as_stream`."""

import reprlib
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from importlib import import_module
from inspect import iscoroutine, isgenerator
from typing import Any, Final, TypeAlias, cast, overload
from weakref import ref

from aloop.errors import ArgumentError, StreamError, is_other
from aloop.protocols import Stateful, Stream
from aloop.streams.base import READ_AHEAD, DataStream, Where
from aloop.streams.cursor import OnResume

__all__ = [
    "CallableStream",
    "IterableStream",
    "as_stream",
    "exclusive_parts",
    "register_adapter",
]

_NEVER_WAIT: Final = (list, tuple, range)

_ADAPTING: Final = {
    "anyio": "aloop.streams.queues",
    "asyncio": "aloop.streams.queues",
    "datasets": "aloop.streams.huggingface",
    "torch": "aloop.streams.torch",
}
"""The modules that register adapters for the classes of other packages, which who has an object
of such a class has imported anyway. Those of Fuel cannot be had without theirs."""

Adapter: TypeAlias = Callable[[Any, OnResume], Stream]

_adapters: dict[type, Adapter] = {}


class _IteratingStream(DataStream):
    """Base of the streams over what somebody else iterates over."""

    _iterator: "ref[Any] | None" = None  # of the newest epoch; it may be its own to close

    def _begin(self, iterable: Iterable[Any] | AsyncIterable[Any]) -> Any:
        is_async = isinstance(iterable, AsyncIterable)
        iterator: Any = aiter(iterable) if is_async else iter(iterable)
        self._iterator = ref(iterator) if isgenerator(cast("object", iterator)) else None
        return iterator

    def close(self) -> None:
        """Close the generator of an epoch that was left before its end.

        Raises what its clean-up raises, and ValueError while a thread is in it.
        """
        generator = None if self._iterator is None else self._iterator()
        if generator is not None:
            generator.close()


class IterableStream(_IteratingStream):
    """Batches out of an iterable, sync or async; each epoch goes through it once."""

    def __init__(
        self, iterable: Iterable[Any] | AsyncIterable[Any], on_resume: OnResume = "replay"
    ) -> None:
        self._iterable = iterable
        self.on_resume = on_resume
        if isinstance(iterable, _NEVER_WAIT):
            self.where = "inline"
        self._used_up = False

    def __repr__(self) -> str:
        # Not the whole of it: a list may hold all data there is.
        return f"{type(self).__name__}({reprlib.repr(self._iterable)})"

    def get_epoch_iterator(self, *, as_dict: bool = True) -> Iterator[Any] | AsyncIterator[Any]:
        """Begin an epoch; batches come as they are, `as_dict` changes nothing."""
        iterable = self._iterable
        iterator = self._begin(iterable)
        if iterator is iterable:
            _refuse_second_epoch(iterable, self._used_up)
            self._used_up = True
        return iterator

    @property
    def begins_in_thread(self) -> bool:
        """True for a sync iterable that is read in a thread: to begin with it may take long too."""
        return self.where == "thread" and not isinstance(self._iterable, AsyncIterable)

    def parts(self) -> Iterator[object]:
        """Give the stream, and what it goes through where that remembers its place."""
        yield self
        if isinstance(self._iterable, (Iterator, AsyncIterator, Stateful)):
            yield self._iterable

    def __len__(self) -> int:
        """Give the number of batches in an epoch; TypeError if it cannot be known."""
        return len(cast("Sequence[Any]", self._iterable))


class StatefulIterableStream(IterableStream):
    """Batches out of an iterable that tells its place by `state_dict`, as a StatefulDataLoader.

    Once `load_state_dict` was called, the next epoch is the rest of the one that the state is of.
    """

    def state_dict(self) -> dict[str, Any]:
        """Give what the iterable tells."""
        return cast("Stateful", self._iterable).state_dict()

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Let the iterable have its state back."""
        cast("Stateful", self._iterable).load_state_dict(state)


class CallableStream(_IteratingStream):
    """Batches out of what a function without arguments returns, called anew for each epoch.

    The function is called on the event loop's thread, for it may need the event loop. What takes
    long belongs into a generator function, whose body runs in the thread that reads.
    """

    def __init__(self, function: Callable[[], object], on_resume: OnResume = "replay") -> None:
        self._function = function
        self.on_resume = on_resume

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._function!r})"

    def get_epoch_iterator(self, *, as_dict: bool = True) -> Iterator[Any] | AsyncIterator[Any]:
        """Call the function and begin with what it returned, a sync or an async iterable."""
        made = self._function()
        if isinstance(made, AsyncIterable) or _is_epoch(made):
            return self._begin(cast("Iterable[Any]", made))
        if iscoroutine(made):
            made.close()  # or Python warns that it was never awaited, on top of this error
        raise StreamError(
            f"the data stream's function {self._function!r} returned {made!r:.80} of type "
            f"{type(made).__name__}; expected an iterable or async iterable of batches; return "
            "one, or write the function as a generator"
        )


@overload
def as_stream(
    source: DataStream | Iterable[Any] | AsyncIterable[Any] | Callable[[], object],
    *,
    on_resume: OnResume = ...,
    where: Where | None = ...,
    read_ahead: int | None = ...,
) -> DataStream: ...


@overload
def as_stream(
    source: object,
    *,
    on_resume: OnResume = ...,
    where: Where | None = ...,
    read_ahead: int | None = ...,
) -> Stream: ...


def as_stream(
    source: Any,  # as said below
    *,
    on_resume: OnResume = "replay",
    where: Where | None = None,
    read_ahead: int | None = None,
) -> Stream:
    """Make a stream out of what there is.

    Takes a stream (anything with Fuel's `get_epoch_iterator`), which is given back as it is; a
    list, tuple or other iterable of batches; an async iterable of batches; or a function without
    arguments that returns an iterable or async iterable and is called for each epoch. An iterable
    with `state_dict` and `load_state_dict` tells its place by them. Torch's data loaders, Hugging
    Face's data sets, and the queues of asyncio and anyio have streams of their own.

    Parameters:
        source: what there is.
        on_resume: what happens when a training is restored in the middle of an epoch, and the
            stream cannot tell its place by `state_dict`: ``"replay"``: the epoch is begun anew, and
            as many batches as were consumed are left out; ``"live"``: none are, for those that
            come are new ones, as from a queue. A stream that is given back as it is has its own
            `on_resume`, or is replayed.
        where: where batches of a sync source are fetched: ``"thread"``: in a thread of their own,
            one after the other; ``"inline"``: on the event loop's thread, for what never waits,
            as lists, tuples and ranges, which are read so unless this says otherwise. A stream
            that is given back as it is has its own `where`, or is read in a thread.
        read_ahead: how many batches the thread fetches before they are asked for, 0 or more;
            unless given, 2, and where batches take far less than a millisecond, a handful, at
            most 32, unless the source is live.

    Raises `StreamError` for anything else, text and single dictionaries included.
    """
    is_other("on_resume", on_resume, "replay", "live")
    if where is not None:
        is_other("where", where, "thread", "inline")
    stream = _stream_of(source, on_resume)
    if where is None and read_ahead is None:
        return stream
    if stream is source or not isinstance(stream, DataStream):
        raise ArgumentError(
            f"where or read_ahead is given for {source!r:.200}, which is a stream and has its "
            "own; expected what is no stream yet; set its attributes `where` and `read_ahead`"
        )
    if where is not None:
        stream.where = where
    stream.read_ahead = _checked(read_ahead)
    return stream


def _checked(read_ahead: object) -> int | None:
    if read_ahead is None or (
        isinstance(read_ahead, int) and read_ahead is not True and read_ahead >= 0
    ):
        return read_ahead
    raise ArgumentError(
        f"read_ahead is {read_ahead!r}; expected a number of batches, 0 or more; leave it out for "
        f"{READ_AHEAD}"
    )


def register_adapter(kind: type, adapter: Adapter) -> None:
    """Let `as_stream` make streams out of things of a kind.

    Parameters:
        kind: the class of what there is.
        adapter: makes a stream out of one, and of the `on_resume` that `as_stream` was given.
    """
    _adapters[kind] = adapter


def _stream_of(source: Any, on_resume: OnResume) -> Stream:
    if isinstance(source, DataStream):
        return source
    for package in {kind.__module__.partition(".")[0] for kind in type(source).__mro__}:
        if package in _ADAPTING:
            import_module(_ADAPTING[package])
    for kind, adapter in _adapters.items():
        if isinstance(source, kind):
            return adapter(source, on_resume)
    if hasattr(source, "get_epoch_iterator") and not isinstance(source, type):
        return source
    what = cast("object", source)
    if isinstance(what, AsyncIterable) or _is_epoch(what):
        is_stateful = isinstance(what, Stateful)
        kind = StatefulIterableStream if is_stateful else IterableStream
        return kind(cast("Iterable[Any]", source), on_resume)
    if callable(what) and not isinstance(what, type):
        return CallableStream(what, on_resume)
    raise StreamError(
        f"the data stream is {what!r:.80} of type {type(what).__name__}; expected a stream, "
        "an iterable or async iterable of batches, or a function that returns one; wrap a single "
        "batch in a list, and arrays in ArrayStream"
    )


def exclusive_parts(stream: Stream) -> list[tuple[object, str]]:
    """Give what of a stream only one run at a time can use, each with how messages call it."""
    parts = stream.parts() if isinstance(stream, DataStream) else [stream]
    return [(part, f"the data stream {part!r:.200}") for part in parts]


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
