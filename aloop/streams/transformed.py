"""Streams that are made of other streams, and the methods of every stream that make them."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeAlias, cast

from aloop.errors import StreamError
from aloop.protocols import Stream
from aloop.streams.base import READ_AHEAD, DataStream, Where, read_ahead_of, register_transform
from aloop.streams.reading import epoch_length
from aloop.streams.schemes import whole_number
from aloop.streams.stages.cached import Cache
from aloop.streams.stages.epochs import (
    AsyncEpochIterator,
    Mode,
    Stage,
    SyncEpochIterator,
    iterator_of,
    part_of,
)
from aloop.streams.stages.functions import Function
from aloop.streams.stages.operations import (
    Apply,
    Batch,
    Filter,
    Map,
    Unbatch,
    padding,
    renaming,
    selecting,
)
from aloop.streams.stages.origin import Origin
from aloop.streams.stages.prefetched import Prefetch

__all__ = ["StagedStream", "Transformed", "stage_of", "where_of"]

Names: TypeAlias = tuple[str, ...]
Length: TypeAlias = Callable[[int], int]

_NO_NAMES: Final[Names] = ()


class StagedStream(DataStream):
    """Base of the streams that are made of other streams; resumable at any element.

    Parameters:
        stage: gives the elements.
        streams: what it is made of.
        sources: the names of what an element holds, where they are known.
        produces_examples: whether the elements are examples.

    The iterator of an epoch is a sync one if nothing in the chain waits. It is an async one if a
    stream or a function in it is async, or several elements are made at once.
    """

    def __init__(
        self,
        stage: Stage,
        streams: tuple[Stream, ...],
        *,
        sources: Names,
        produces_examples: bool,
    ) -> None:
        self.stage = stage
        """What gives the elements; of aloop's own use."""
        self.sources = sources
        self.produces_examples = produces_examples
        self._streams = streams
        self._chain = stage.name
        self._iterator: SyncEpochIterator | AsyncEpochIterator | None = None

    @property
    def begins_in_thread(self) -> bool:
        """True if the thread calls `get_epoch_iterator` and `load_state_dict` too."""
        return self.stage.begins_in_thread and not self.stage.is_async

    def get_epoch_iterator(self, *, as_dict: bool = True) -> SyncEpochIterator | AsyncEpochIterator:
        """Begin the next epoch and give its iterator.

        After `load_state_dict` it is the rest of the epoch that the state is from. Without
        `as_dict` an element that is a mapping is a tuple in the order of `sources`, where these
        are known.
        """
        convert = None if as_dict or not self.sources else self._tuple
        self._iterator = iterator_of(self.stage, convert)
        return self._iterator

    def _tuple(self, element: Any) -> Any:  # elements are whatever they are
        if not isinstance(element, Mapping):
            return element
        columns = cast("Mapping[str, Any]", element)
        _look_for(f"the stream {self!r:.200}", self.sources, tuple(columns))
        return tuple(columns[name] for name in self.sources)

    def state_dict(self) -> dict[str, Any]:
        """Give the place consumed: that of each stream in it, and no data."""
        iterator = self._iterator
        place = self.stage.place() if iterator is None else iterator.place()
        return {"chain": self._chain, "place": place}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Go to a place that `state_dict` gave; the next iterator goes on from there.

        Raises `StreamError` when the state is from a stream that is made another way.
        """
        given = cast("object", state)
        if not isinstance(given, Mapping):
            raise StreamError(
                f"the stream's state is {given!r:.80} of type {type(given).__name__}; expected the "
                "dictionary that state_dict() gave; give it that"
            )
        chain, name = state.get("chain"), self._chain
        if chain != name:
            raise StreamError(
                f"the stream's state is that of {chain!r:.1000}, but the stream is {name!r:.1000}; "
                "expected the same transformers of the same streams; make the stream as it was, or "
                "call reset() to begin anew"
            )
        self._leave_iterator()
        self.stage.go_to(part_of(state, "place", Mapping))

    def next_epoch(self) -> None:
        """Make the next iterator begin the epoch after the present one."""
        self._leave_iterator()
        self.stage.next_epoch()

    def reset(self) -> None:
        """Go back to the beginning of the first epoch."""
        self._leave_iterator()
        self.stage.reset()

    def _leave_iterator(self) -> None:
        self._iterator = None
        self.stage.mode = Mode(is_async=False)

    def close(self) -> None:
        """Close the streams that it is made of, and end threads."""
        self.stage.close()

    def parts(self) -> Iterator[object]:
        """Give the stream and what in it remembers its place, which only one run can use."""
        yield self
        for stream in self._streams:
            if isinstance(stream, DataStream):
                yield from stream.parts()
            else:
                yield stream


class Transformed(StagedStream):
    """A stream that is made of a single other one, by a method of it.

    Parameters:
        stream: the other one.
        stage: gives the elements.
        call: how the method was called.
        sources: the names of what an element holds, where they are known; the stream's if None.
        produces_examples: whether the elements are examples; as the stream's if None.
        length: gives the number of elements in an epoch, of that of the stream's; None where it
            cannot be known.
        takes_long: whether it may, because a function of the user's is called, or data copied.
    """

    def __init__(
        self,
        stream: Stream,
        stage: Stage,
        call: str,
        *,
        sources: Names | None = None,
        produces_examples: bool | None = None,
        length: Length | None = lambda length: length,
        takes_long: bool = False,
    ) -> None:
        super().__init__(
            stage,
            (stream,),
            sources=stream.sources if sources is None else sources,
            produces_examples=(
                stream.produces_examples if produces_examples is None else produces_examples
            ),
        )
        self._stream = stream
        self._call = call
        self._length = length
        self.where = "thread" if takes_long else where_of(stream)
        self.read_ahead = read_ahead_of(stream)

    def __repr__(self) -> str:
        return f"{self._stream!r}.{self._call}"

    def __len__(self) -> int:
        if self._length is None:
            raise TypeError(
                f"the stream {self!r:.200} has no length that could be known; expected one whose "
                f"elements are not counted by {self._call}; go through an epoch and count"
            )
        length = epoch_length(self._stream)
        if length is None:
            raise TypeError(f"the stream {self._stream!r:.200} does not tell its length")
        return self._length(length)


def stage_of(stream: Stream) -> Stage:
    """Give what gives the elements of a stream."""
    return stream.stage if isinstance(stream, StagedStream) else Origin(stream)


def where_of(stream: Stream) -> Where:
    """Give where the elements of a stream are fetched."""
    return getattr(stream, "where", "thread")


# The methods of DataStream, which is documented there.


def _map(
    stream: DataStream,
    function: object,
    *,
    concurrency: int,
    sources: Names | None,
) -> DataStream:
    number = whole_number("the concurrency of map()", concurrency, least=1)
    called = Function(function, "map")
    mapped = Transformed(
        stream,
        Map(stage_of(stream), called),
        f"map({called.name})",
        sources=_NO_NAMES if sources is None else _names("map()", sources, least=0),
        takes_long=True,
    )
    if number == 1:
        return mapped
    stage = Prefetch(mapped.stage, depth=number, workers=number)
    call = f"map({called.name}, concurrency={number})"
    return Transformed(stream, stage, call, sources=mapped.sources, takes_long=True)


def _filter(stream: DataStream, predicate: object) -> DataStream:
    called = Function(predicate, "filter")
    return Transformed(
        stream,
        Filter(stage_of(stream), called),
        f"filter({called.name})",
        length=None,
        takes_long=True,
    )


def _batch(stream: DataStream, batch_size: int, *, drop_last: bool) -> DataStream:
    size = whole_number("the batch_size of batch()", batch_size, least=1)
    made = Transformed(
        stream,
        Batch(stage_of(stream), size, drop_last=drop_last),
        f"batch({size}{', drop_last=True' if drop_last else ''})",
        produces_examples=False,
        length=lambda length: length // size if drop_last else -(-length // size),
        takes_long=True,
    )
    if made.read_ahead:  # as many elements are read ahead as before
        made.read_ahead = max(READ_AHEAD, -(-made.read_ahead // size))
    return made


def _unbatch(stream: DataStream) -> DataStream:
    stage = Unbatch(stage_of(stream))
    return Transformed(
        stream, stage, "unbatch()", produces_examples=True, length=None, takes_long=True
    )


def _pad(stream: DataStream, sources: Names | str | None, mask_dtype: Any) -> DataStream:
    if stream.produces_examples:
        raise StreamError(
            f"pad() is called on {stream!r:.200}, which gives single examples; expected batches of "
            "examples that differ in length; call batch(batch_size) before it"
        )
    chosen = _NO_NAMES if sources is None else _names("pad()", sources)
    _look_for("pad()", chosen, stream.sources)
    names: list[str] = []
    for name in stream.sources:
        names += [name, f"{name}_mask"] if name in chosen or not chosen else [name]
    _refuse_twice("pad()", names)
    try:
        pad = padding(chosen, mask_dtype)
    except TypeError as error:
        raise StreamError(
            f"mask_dtype is {mask_dtype!r:.80} ({error}); expected a dtype, as numpy.float32; "
            "leave it out for that"
        ) from None
    call = f"pad({', '.join(map(repr, chosen))})"
    stage = Apply(stage_of(stream), pad, call)
    return Transformed(stream, stage, call, sources=tuple(names), takes_long=True)


def _rename(stream: DataStream, names: Mapping[str, str]) -> DataStream:
    pairs = _pairs(names)
    _look_for("rename()", tuple(pairs), stream.sources)
    renamed = tuple(pairs.get(name, name) for name in stream.sources)
    _refuse_twice("rename()", [*renamed] if renamed else [*pairs.values()])
    call = f"rename({pairs!r})"
    stage = Apply(stage_of(stream), renaming(pairs), call)
    return Transformed(stream, stage, call, sources=renamed)


def _pairs(names: object) -> dict[str, str]:
    pairs = dict(cast("Mapping[Any, Any]", names)) if isinstance(names, Mapping) else {}
    if not pairs or not all(isinstance(name, str) for pair in pairs.items() for name in pair):
        raise StreamError(
            f"rename() is given {names!r:.80}; expected the new names by the old, as {{'x': 'y'}}; "
            "correct it"
        )
    return pairs


def _select(stream: DataStream, sources: Names) -> DataStream:
    chosen = _names("select()", sources)
    _look_for("select()", chosen, stream.sources)
    call = f"select({', '.join(map(repr, chosen))})"
    return Transformed(
        stream, Apply(stage_of(stream), selecting(chosen), call), call, sources=chosen
    )


def _cache(stream: DataStream) -> DataStream:
    return Transformed(stream, Cache(stage_of(stream)), "cache()")


def _prefetch(stream: DataStream, *, depth: int, workers: int) -> DataStream:
    number = whole_number("the workers of prefetch()", workers, least=1)
    depth = whole_number("the depth of prefetch()", depth, least=0)
    stage = Prefetch(stage_of(stream), depth=max(depth, number), workers=number)
    made = Transformed(stream, stage, f"prefetch({depth}, workers={number})", takes_long=True)
    made.read_ahead = depth
    return made


def _names(call: str, names: object, *, least: int = 1) -> Names:
    given = (names,) if isinstance(names, str) else names
    if isinstance(given, tuple | list):
        found = tuple(cast("list[object]", given))
        if len(found) >= least and all(isinstance(name, str) for name in found):
            found = cast("Names", found)
            _refuse_twice(call, found)
            return found
    raise StreamError(
        f"{call} is given the sources {names!r:.80}; expected {least} or more names of sources, "
        "as text; correct them"
    )


def _refuse_twice(call: str, names: list[str] | Names) -> None:
    for name in names:
        if names.count(name) > 1:
            raise StreamError(
                f"{call} is to make the source {name!r} twice, of {', '.join(map(repr, names))}; "
                "expected names that differ; rename one, or leave it out with select(...)"
            )


def _look_for(call: str, names: Names, sources: Names) -> None:
    for name in names:
        if sources and name not in sources:
            raise StreamError(
                f"{call} is to use source {name!r}, and there are "
                f"{', '.join(map(repr, sources))}; expected one of these; correct the name"
            )


for _name, _transform in {
    "map": _map,
    "filter": _filter,
    "batch": _batch,
    "unbatch": _unbatch,
    "pad": _pad,
    "rename": _rename,
    "select": _select,
    "cache": _cache,
    "prefetch": _prefetch,
}.items():
    register_transform(_name, _transform)
