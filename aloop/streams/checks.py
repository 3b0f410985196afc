"""What batches have to be: mappings of the sources that their stream declares."""

from collections.abc import Callable, Mapping
from typing import Any, cast

from aloop.errors import StreamError
from aloop.protocols import Batch, Stream
from aloop.streams.bridge import END

__all__ = ["check_of"]


def check_of(stream: Stream) -> Callable[[Batch], Batch]:
    """Give what gives a batch of a stream back, or `END`.

    It raises `StreamError` for what has not the sources that the stream declares.
    """
    sources: tuple[str, ...] = tuple(getattr(stream, "sources", ()))
    names: frozenset[object] = frozenset(sources)
    if not names:
        return lambda batch: batch

    def check(batch: Batch) -> Batch:
        if batch is END:
            return batch
        given: object = batch
        if isinstance(given, Mapping):
            found = cast("Mapping[object, Any]", given)
            if len(found) == len(names) and names.issuperset(found):
                return batch
        raise _unlike(stream, sources, batch)

    return check


def _unlike(stream: Stream, sources: tuple[str, ...], batch: object) -> StreamError:
    if isinstance(batch, Mapping):
        found = ", ".join(map(repr, cast("Mapping[object, Any]", batch)))
        what = f"a batch with the sources {found or '(none)'}"
    else:
        what = f"{batch!r:.80} of type {type(batch).__name__}, which is no mapping"
    return StreamError(
        f"the data stream {stream!r:.200} gave {what}; expected a mapping of the sources that it "
        f"declares, {', '.join(map(repr, sources))}; let each batch have them all, or declare none"
    )
