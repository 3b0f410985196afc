"""What can be told of a Fuel stream without reading it: its length, its layout, its requests.

Fuel is not typed, and is imported by `aloop.streams.fuel.compat` alone: its modules are looked up
here. Hence Any.
"""

from collections.abc import Sequence
from importlib import import_module
from operator import index
from typing import Any, Final, SupportsIndex, cast
from zlib import crc32

import numpy as np

from aloop.errors import StreamError
from aloop.protocols import Stateful
from aloop.streams.fuel.parts import is_dataset, is_scheme, is_stream, parts_of

__all__ = [
    "batches_of",
    "changing_parts",
    "check_batch_sizes",
    "close_all",
    "layout_of",
    "refuse_request",
    "requests_of",
    "servers_in",
    "workers_in",
]


def _fuel(module: str) -> Any:
    return import_module(f"fuel.{module}")


def _class_of(part: object) -> Any:
    return type(part)


def _is_as(part: object, method: str, *classes: Any) -> bool:
    """Say whether a part has the method of one of these classes."""
    return getattr(_class_of(part), method) in [getattr(cls, method) for cls in classes]


# Its length.


def batches_of(stream: Any) -> int | None:
    """Give how many batches, or examples, an epoch of a stream has; None where it is not known."""
    streams, transformers = _fuel("streams"), _fuel("transformers")
    if type(stream) is transformers.MultiProcessing:
        return batches_of(stream.data_stream)
    if not _is_as(stream, "get_epoch_iterator", streams.DataStream, transformers.Transformer):
        return _merged(stream) if type(stream) is transformers.Merge else None
    if _is_as(stream, "get_data", streams.DataStream):
        return _batches_of_data(stream)
    if _is_as(stream, "get_data", transformers.Batch):
        return _batched(batches_of(stream.data_stream), stream)
    if _is_as(stream, "get_data", transformers.Transformer, transformers.Mapping):
        return batches_of(stream.data_stream)
    return None


def _merged(stream: Any) -> int | None:
    lengths = [batches_of(each) for each in stream.data_streams]
    return (
        min((each for each in lengths if each is not None), default=None)
        if all(each is not None for each in lengths)
        else None
    )


def _batches_of_data(stream: Any) -> int | None:
    scheme = stream.iteration_scheme
    if scheme is None:
        is_iterable = type(stream.dataset) is _fuel("datasets").IterableDataset
        return _length(stream.dataset.iterables[0]) if is_iterable else None
    # A dataset that has a state may come to its end before the requests do.
    return _requests_in(scheme) if stream.data_state is None else None


def _requests_in(scheme: Any) -> int | None:
    schemes = _fuel("schemes")
    kind = _class_of(scheme)
    if kind in (schemes.SequentialScheme, schemes.ShuffledScheme):
        examples = _length(scheme.indices)
        return None if examples is None else -(-examples // scheme.batch_size)
    if kind in (schemes.SequentialExampleScheme, schemes.ShuffledExampleScheme):
        return _length(scheme.indices)
    if kind is schemes.ConstantScheme:
        if scheme.times:
            return scheme.times
        return -(-scheme.num_examples // scheme.batch_size) if scheme.num_examples else None
    if kind is schemes.ConcatenatedScheme:
        lengths = [_requests_in(each) for each in scheme.schemes]
        return sum(cast("list[int]", lengths)) if None not in lengths else None
    return _length(scheme)


def _batched(examples: int | None, stream: Any) -> int | None:
    """Give how many batches the transformer Batch makes out of so many examples."""
    scheme = stream.iteration_scheme
    if examples is None or type(scheme) is not _fuel("schemes").ConstantScheme:
        return None
    whole, rest = divmod(examples, scheme.batch_size)
    asked = _requests_in(scheme)
    is_enough = scheme.num_examples and scheme.num_examples <= examples
    if asked is not None and (asked <= whole or is_enough):
        return asked
    if rest and stream.strictness > 1:
        return None  # it is an error when it comes to that
    found = whole + (rest > 0 and not stream.strictness)
    return found if asked is None else min(asked, found)


def _length(of: object) -> int | None:
    try:
        return len(cast("Sequence[Any]", of))
    except TypeError:
        return None


# Its layout.

# What Fuel's own transformers go by, and do not change.
_PARAMETERS: Final = (
    "which_sources",
    "add_sources",
    "scale",
    "shift",
    "dtype",
    "strictness",
    "mask_sources",
    "mask_dtype",
    "ngram_order",
    "window_shape",
    "minimum_shape",
    "maximum_rotation",
    "resample",
    "color_mode",
)
_MAX_NUMBERS: Final = 8  # that are told one by one


def layout_of(parts: dict[str, Any]) -> str:
    """Give what identifies a stream, its order and its data, as lines of text.

    Parameters:
        parts: what `parts_of` gave.
    """
    lines: list[str] = []
    for name, part in parts.items():
        if is_stream(part) or is_scheme(part) or is_dataset(part):
            what = type(part).__name__ + _details(part)
            lines.append(f"{name}: {what}" if name else what)
    return "\n".join(lines)


def _details(part: Any) -> str:
    details: list[str] = []
    if hasattr(part, "indices") and is_scheme(part):
        details.append(f"of {_chosen(part.indices)}")
    if is_scheme(part):
        details += _told(part, "batch_size", "num_examples", "times", "sorted_indices")
    if is_dataset(part):
        details += _details_of_dataset(part)
    if is_stream(part) or is_dataset(part):
        sources: Any = getattr(part, "sources", None)
        details += [f"sources {_text(tuple(sources))}"] if sources else []
    if is_stream(part) and type(part).__module__.startswith("fuel.transformers"):
        details += _told(part, *_PARAMETERS)
    return " " + ", ".join(details) if details else ""


def _details_of_dataset(part: Any) -> list[str]:
    examples = getattr(part, "num_examples", None)
    details = [f"of {index(examples)} examples"] if isinstance(examples, SupportsIndex) else []
    hdf5 = _fuel("datasets.hdf5")
    if isinstance(part, (_fuel("datasets").IndexableDataset, hdf5.PytablesDataset)):
        details += _told(part, "start", "stop")
    if isinstance(part, hdf5.H5PYDataset):
        details += _told(part, "which_sets")
        # Which of the file they are, by which_sets and subset; mostly the same for all sources.
        chosen = [_chosen(subset.list_or_slice) for subset in part.subsets]
        details.append("of the file " + " and ".join(dict.fromkeys(chosen)))
    return details


def _told(part: object, *names: str) -> list[str]:
    """Tell those of a part's attributes that it has, and that are plain numbers or text."""
    values = {name: getattr(part, name, None) for name in names}
    return [
        f"{name} {text}"
        for name, value in values.items()
        if value is not None and (text := _text(value)) is not None
    ]


def _text(value: Any) -> str | None:
    """Give plain numbers or text as text that is the same for what is equal, or None."""
    if isinstance(value, (set, frozenset)):
        value = sorted(cast("set[Any]", value), key=str)
    if isinstance(value, (type, np.dtype)):
        value = np.dtype(cast("Any", value)).name
    try:
        array = np.asarray(value)
    except ValueError:  # of rows of different lengths
        return None
    if array.dtype.kind not in "biufUS":
        return None
    if array.size > _MAX_NUMBERS and array.dtype.kind not in "US":
        return f"of shape {array.shape} (CRC {crc32(array.astype('<f8').tobytes()):08x})"
    items = [f"{item:.15g}" if isinstance(item, float) else str(item) for item in array.flat]
    return "(" + " ".join(items) + ")" if array.ndim else items[0]


def _chosen(examples: Any) -> str:
    """Tell a choice of examples: another one of as many is other data."""
    if isinstance(examples, slice):
        return f"examples {cast('Any', examples).start} to {cast('Any', examples).stop}"
    if isinstance(examples, range):
        examples = np.arange(examples.start, examples.stop, examples.step)
    array = np.asarray(list(examples))
    return f"{len(array)} examples (CRC {crc32(array.astype('<i8').tobytes()):08x})"


def refuse_request(stream: Any, error: Exception) -> None:
    """Raise `StreamError` for what a dataset says by an empty ValueError to a wrong request."""
    if type(error) is not ValueError or error.args:
        return
    hdf5, datasets = _fuel("datasets.hdf5"), _fuel("datasets")
    indexed = (datasets.IndexableDataset, hdf5.H5PYDataset, hdf5.PytablesDataset)
    for part in parts_of(stream).values():
        if not isinstance(part, _fuel("streams").DataStream):
            continue
        dataset, scheme = part.dataset, part.iteration_scheme
        if scheme is None and _is_as(dataset, "get_data", *indexed):
            raise StreamError(
                f"the DataStream over {type(dataset).__name__} has no iteration_scheme; expected "
                "one, which says what examples are asked for; make it as DataStream(dataset, "
                "iteration_scheme=SequentialScheme(dataset.num_examples, batch_size=…))"
            ) from error
        if scheme is not None and _is_as(dataset, "get_data", datasets.IterableDataset):
            raise StreamError(
                f"the DataStream over {type(dataset).__name__} has a {type(scheme).__name__}; "
                "expected no iteration_scheme, for an iterable gives one example after the other; "
                "leave it out, and make batches by Batch(stream, iteration_scheme="
                "ConstantScheme(…))"
            ) from error


def check_batch_sizes(parts: dict[str, Any]) -> None:
    """Raise `StreamError` for a scheme whose batches are empty, for there is no end to them."""
    for name, part in parts.items():
        size: Any = getattr(part, "batch_size", 1) if is_scheme(part) else 1
        if not isinstance(size, SupportsIndex) or isinstance(size, bool) or index(size) < 1:
            raise StreamError(
                f"the batch_size of {name}, a {type(part).__name__}, is {size!r}; expected a "
                "number of examples, 1 or more; make the scheme with one"
            )


def changing_parts(parts: dict[str, Any]) -> list[str]:
    """Name what may begin each epoch in a way of its own, and does not tell its state."""
    return [
        type(part).__name__
        for part in parts.values()
        if (is_stream(part) or is_dataset(part))
        and not isinstance(part, Stateful)
        and any(
            not getattr(_class_of(part), method).__module__.startswith(
                ("fuel.", "aloop.streams.fuel")
            )
            for method in ("get_epoch_iterator", "next_epoch")
            if hasattr(_class_of(part), method)
        )
    ]


# What of it has something open.


def servers_in(parts: dict[str, Any]) -> list[Any]:
    """Give the streams among the parts that are received from a server."""
    server = _fuel("streams").ServerDataStream
    return [part for part in parts.values() if isinstance(part, server)]


def workers_in(parts: dict[str, Any]) -> list[Any]:
    """Give the streams among the parts that are read in a process of their own."""
    worker = _fuel("transformers").MultiProcessing
    return [part for part in parts.values() if isinstance(part, worker)]


def close_all(stream: Any) -> list[Exception]:
    """Close a stream and those below it, each once, and give the errors."""
    transformers = _fuel("transformers")
    children: list[Any] = []
    if isinstance(stream, transformers.Transformer):
        children = [stream.data_stream]
    elif isinstance(stream, transformers.Merge):
        children = list(stream.data_streams)
    failures: list[Exception] = []
    if not _is_as(stream, "close", transformers.Transformer, transformers.Merge):
        try:
            stream.close()
        except Exception as error:  # noqa: BLE001 - raised when the rest is closed
            failures.append(error)
        else:
            return []  # it closes those below it
    for child in children:
        failures += close_all(child)
    return failures


# Its requests.


def requests_of(stream: Any, iterator: Any) -> list[Any] | None:
    """Give the iterators of the requests of an epoch, one of each for each batch.

    None if a batch may take more or less than one request, or what is read depends on what was
    read before.

    Parameters:
        stream: the Fuel stream.
        iterator: of its epoch, which has just begun.
    """
    streams, transformers = _fuel("streams"), _fuel("transformers")
    if type(iterator) is not _fuel("iterator").DataIterator:
        return None  # as that of Filter
    requests = iterator.request_iterator
    if requests is not None:
        is_stateless = _is_as(stream, "get_data", streams.DataStream) and stream.data_state is None
        return [requests] if is_stateless else None
    if _is_as(stream, "get_data", transformers.Merge):
        children = list(zip(stream.data_streams, stream.child_epoch_iterators, strict=True))
    elif _is_as(stream, "get_data", transformers.Transformer, transformers.Mapping):
        children = [(stream.data_stream, stream.child_epoch_iterator)]
    else:
        return None
    found: list[Any] = []
    for child, child_iterator in children:
        its = requests_of(child, child_iterator)
        if its is None:
            return None
        found += its
    return found
