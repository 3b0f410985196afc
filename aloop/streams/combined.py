"""Streams that are made of several others."""

from collections.abc import Mapping, Sequence
from math import isfinite
from numbers import Real
from typing import Any, cast

import numpy as np

from aloop.config import config
from aloop.errors import ArgumentError, StreamError, is_other
from aloop.protocols import Stream
from aloop.streams.adapt import as_stream
from aloop.streams.base import DataStream
from aloop.streams.reading import epoch_length
from aloop.streams.schemes import whole_number
from aloop.streams.stages.combining import Concatenate, Mix, Zip, clash
from aloop.streams.stages.epochs import Stage
from aloop.streams.transformed import StagedStream, stage_of, where_of

__all__ = ["ConcatenatedStream", "MixtureStream", "ZippedStream", "zip_streams"]

# What is combined is whatever `as_stream` makes a stream of. Hence Any in the signatures.


class _CombinedStream(StagedStream):
    """Base of the streams that are made of several."""

    def __init__(
        self,
        stage: Stage,
        streams: tuple[Stream, ...],
        *,
        sources: tuple[str, ...],
        produces_examples: bool,
    ) -> None:
        super().__init__(stage, streams, sources=sources, produces_examples=produces_examples)
        if all(where_of(stream) == "inline" for stream in streams):
            self.where = "inline"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self._streams))})"

    def _lengths(self) -> list[int]:
        lengths: list[int] = []
        for stream in self._streams:
            length = epoch_length(stream)
            if length is None:
                raise TypeError(f"the stream {stream!r:.200} does not tell its length")
            lengths.append(length)
        return lengths


class ZippedStream(_CombinedStream):
    """Elements whose sources come from several streams, an element of each for one of this.

    Parameters:
        streams: two or more streams, or what `as_stream` makes one of, whose elements are
            mappings. No source may be in two of them.
        strict: whether it is an error when one ends before another; otherwise the shortest ends
            the epoch, and what the others have left of theirs is left out.
    """

    def __init__(self, *streams: Any, strict: bool = True) -> None:
        made = _streams_of("zip_streams()", streams)
        sources = [name for stream in made for name in stream.sources]
        twice = [name for name in dict.fromkeys(sources) if sources.count(name) > 1]
        if twice:
            raise clash(twice)
        super().__init__(
            Zip([stage_of(stream) for stream in made], strict=bool(strict)),
            made,
            sources=tuple(sources) if all(stream.sources for stream in made) else (),
            produces_examples=_one_kind("zip_streams()", made),
        )

    def __len__(self) -> int:
        return min(self._lengths())


def zip_streams(*streams: Any, strict: bool = True) -> ZippedStream:
    """Make one stream of several, with the sources of all; see `ZippedStream`."""
    if len(streams) == 1 and isinstance(streams[0], list | tuple):
        raise StreamError(
            f"zip_streams() is given {streams[0]!r:.80}; expected the streams one by one, as "
            "zip_streams(a, b); put a * before the list"
        )
    return ZippedStream(*streams, strict=strict)


class ConcatenatedStream(_CombinedStream):
    """The elements of one stream after those of the other, each epoch through all of them.

    Parameters:
        streams: one or more streams, or what `as_stream` makes one of, with the same sources.
    """

    def __init__(self, streams: Sequence[Any], *others: object) -> None:
        if others:
            raise StreamError(
                f"ConcatenatedStream is given {len(others) + 1} arguments; expected one list, as "
                "ConcatenatedStream([a, b]); put the streams into one"
            )
        made = _streams_of("ConcatenatedStream", streams)
        super().__init__(
            Concatenate([stage_of(stream) for stream in made]),
            made,
            sources=_same_sources("ConcatenatedStream", made),
            produces_examples=_one_kind("ConcatenatedStream", made),
        )

    def __len__(self) -> int:
        return sum(self._lengths())


class MixtureStream(_CombinedStream):
    """Each element from one of several streams, chosen at random by weight.

    Choice number i of epoch e depends on the seed, e and i alone, so that going on anywhere costs
    no more than beginning.

    Parameters:
        streams: one or more streams, or what `as_stream` makes one of, with the same sources; or
            a mapping of names to such.
        weights: of each stream, 0 or more, how often it is chosen beside the others; in their
            order, or by name; all the same, if left out.
        seed: a whole number from 0 on; the setting `default_seed` unless given.
        stop: when an epoch ends. ``"all"``: a stream that has ended leaves, and the epoch ends
            when all have, so that each of their elements is given once; ``"first"``: it ends when
            a stream is chosen that has no more, and what the others have left is left out.
    """

    def __init__(
        self,
        streams: Mapping[str, Any] | Sequence[Any],
        weights: Mapping[str, float] | Sequence[float] | None = None,
        *,
        seed: int | None = None,
        stop: str = "all",
    ) -> None:
        names: tuple[str, ...] | None = None
        if isinstance(streams, Mapping):
            names, streams = tuple(streams), list(streams.values())
        made = _streams_of("MixtureStream", streams)
        numbers = _weights_of(weights, names, len(made))
        until_all = not is_other("stop", stop, "all", "first")
        stage = Mix(
            [stage_of(stream) for stream in made],
            numbers,
            whole_number("seed", config.default_seed if seed is None else seed, least=0),
            until_all=until_all,
        )
        super().__init__(
            stage,
            made,
            sources=_same_sources("MixtureStream", made),
            produces_examples=_one_kind("MixtureStream", made),
        )
        self._weights = numbers
        self._until_all = until_all

    def __len__(self) -> int:
        if not self._until_all and len(self._streams) > 1:
            raise TypeError("a MixtureStream that stops with the first stream has no known length")
        return sum(
            length for length, weight in zip(self._lengths(), self._weights, strict=True) if weight
        )


def _streams_of(call: str, streams: Any) -> tuple[Stream, ...]:
    if isinstance(streams, str | bytes) or not isinstance(streams, Sequence):
        raise StreamError(
            f"{call} is given {streams!r:.80} of type {type(streams).__name__}; expected a list of "
            "streams; put them in one"
        )
    made = tuple(as_stream(stream) for stream in cast("Sequence[Any]", streams))
    if not made:
        raise StreamError(f"{call} is given no streams; expected one at least")
    parts: list[object] = []
    for stream in made:
        parts += stream.parts() if isinstance(stream, DataStream) else [stream]
    for part in parts:
        if sum(part is other for other in parts) > 1:
            raise StreamError(
                f"{call} is given {part!r:.200} twice, perhaps inside others; expected streams "
                "that have nothing in common, for each remembers one place; make another one"
            )
    return made


def _same_sources(call: str, streams: tuple[Stream, ...]) -> tuple[str, ...]:
    first = tuple(streams[0].sources)
    for stream in streams[1:]:
        if first and stream.sources and set(stream.sources) != set(first):
            raise StreamError(
                f"{call} is given streams with the sources {', '.join(map(repr, first))} and "
                f"{', '.join(map(repr, stream.sources))}; expected the same; make them so with "
                "rename({...}) and select(...)"
            )
    return first if all(stream.sources for stream in streams) else ()


def _one_kind(call: str, streams: tuple[Stream, ...]) -> bool:
    kinds = {stream.produces_examples for stream in streams if stream.sources}
    if len(kinds) > 1:
        raise StreamError(
            f"{call} is given streams of batches and streams of examples; expected one or the "
            "other; make them so with batch(batch_size) or unbatch()"
        )
    return kinds.pop() if kinds else streams[0].produces_examples


def _weights_of(weights: object, names: tuple[str, ...] | None, number: int) -> list[float]:
    if weights is None:
        return [1.0] * number
    given: list[Any] | None = None
    if isinstance(weights, Mapping):
        by_name = cast("Mapping[Any, Any]", weights)
        if names is not None and set(by_name) == set(names):
            given = [by_name[name] for name in names]
    elif isinstance(weights, Sequence | np.ndarray) and not isinstance(weights, str | bytes):
        given = list(cast("Sequence[Any]", weights))
    if given is None or len(given) != number:
        wanted = "in a list" if names is None else f"in a list, or by the names {names}"
        raise ArgumentError(
            f"weights is {weights!r:.200}; expected {number} numbers, one of each stream, {wanted}"
        )
    if any(not isinstance(each, Real) or not isfinite(each) or each < 0 for each in given):
        raise ArgumentError(
            f"weights is {weights!r:.200}; expected numbers from 0 on, none of them NaN or "
            "infinite; correct them"
        )
    numbers = [float(each) for each in given]
    if not sum(numbers):
        raise ArgumentError(
            f"weights is {weights!r:.200}; expected one at least above 0, or nothing is ever "
            "chosen; leave them out to weigh all the same"
        )
    return numbers
