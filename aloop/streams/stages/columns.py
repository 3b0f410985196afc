"""Elements put together and taken apart: the columns of a batch, and its rows."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from aloop.errors import StreamError

__all__ = ["Rows", "mapping_of", "padded", "stacked"]

# What a stream gives, and what is in it, are whatever they are. Hence Any.
Element: TypeAlias = Any
Array: TypeAlias = npt.NDArray[Any]

_KEPT: Final = (str, bytes)  # sequences that are single values


def mapping_of(element: Element, stage: str) -> Mapping[str, Any]:
    """Give an element that has to be a mapping by source; `StreamError` for any other."""
    if isinstance(element, Mapping):
        return cast("Mapping[str, Any]", element)
    raise StreamError(
        f"{stage} got {element!r:.80} of type {type(element).__name__}; expected a mapping by "
        "source; give it that, perhaps with map(function) before it"
    )


def stacked(elements: Sequence[Element]) -> Element:
    """Make a batch of elements, one or more, each of which becomes a row of it.

    Mappings make a mapping by source, tuples a tuple, anything else an array. Where the rows
    differ in their first dimension alone, the column is an array of arrays, as in Fuel.
    """
    first = elements[0]
    if isinstance(first, Mapping):
        names = cast("Mapping[str, Any]", first)
        for element in elements:
            if not isinstance(element, Mapping) or element.keys() != names.keys():
                raise _unlike(first, element)
        return {name: _column(repr(name), [each[name] for each in elements]) for name in names}
    if isinstance(first, tuple):
        width = len(cast("tuple[Any, ...]", first))
        for element in elements:
            if not isinstance(element, tuple) or len(cast("tuple[Any, ...]", element)) != width:
                raise _unlike(first, element)
        return tuple(_column(str(i), [each[i] for each in elements]) for i in range(width))
    return _column(None, list(elements))


def _unlike(first: Element, element: Element) -> StreamError:
    return StreamError(
        f"batch() got {_kind(first)} and then {_kind(element)}; expected elements of one kind; "
        "make them so, perhaps with map(function) before it"
    )


def _kind(element: Element) -> str:
    if isinstance(element, Mapping):
        names = ", ".join(repr(name) for name in cast("Mapping[Any, Any]", element))
        return f"an element with the sources {names or '(none)'}"
    if isinstance(element, tuple):
        return f"a tuple of {len(cast('tuple[Any, ...]', element))}"
    return f"{element!r:.80} of type {type(element).__name__}"


def _column(name: str | None, values: list[Any]) -> Array:
    rows: list[Array] = []
    for value in values:
        try:
            rows.append(np.asarray(value))
        # Its own rows differ in length, or it is a tensor of which numpy makes no array.
        except (ValueError, TypeError, RuntimeError) as error:
            raise StreamError(
                f"batch() got {_of(name)}{value!r:.80}, which is no array ({error}); expected "
                "numbers, or arrays; make it one with map(function) before it"
            ) from error
    shape = rows[0].shape
    if all(row.shape == shape for row in rows):
        try:
            return np.stack(rows)
        except TypeError as error:
            raise StreamError(
                f"batch() got {_of(name)}{values[0]!r:.80} and {values[-1]!r:.80}, which make no "
                f"array ({error}); expected values of one type; make them so with map(function) "
                "before it"
            ) from None
    for row in rows:
        if row.ndim != len(shape) or row.shape[1:] != shape[1:]:
            raise StreamError(
                f"batch() got {_of(name)}arrays of the shapes {shape} and {row.shape}; expected "
                "one shape, or shapes that differ in their first dimension alone, for pad() to "
                "follow; make them so with map(function) before it"
            )
    return _ragged(rows)


def _of(name: str | None) -> str:
    return "" if name is None else f"source {name}: "


def _ragged(rows: Sequence[Any]) -> Array:
    column = np.empty(len(rows), dtype=object)
    for number, row in enumerate(rows):
        column[number] = row
    return column


class Rows:
    """The rows of a batch: a mapping or tuple of columns of one length, or a single column."""

    def __init__(self, batch: Element) -> None:
        batch = _by_column(batch)
        if isinstance(batch, Mapping):
            given = cast("Mapping[Any, Any]", batch)
            mapping = {name: _by_position(column) for name, column in given.items()}
            columns = {repr(name): column for name, column in mapping.items()}
            self._row: Callable[[int], Any] = lambda i: {
                name: _row(column, i) for name, column in mapping.items()
            }
        elif isinstance(batch, tuple):
            parts = tuple(map(_by_position, cast("tuple[Any, ...]", batch)))
            columns = {str(number): column for number, column in enumerate(parts)}
            self._row = lambda i: tuple(_row(column, i) for column in parts)
        else:
            column = _by_position(batch)
            columns = {"": column}
            self._row = lambda i: _row(column, i)
        self._length = _one_length(columns, batch)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> Element:
        return self._row(number)


def _row(column: Any, number: int) -> Any:  # whatever a batch holds
    """Give a row of a column; no view, which would keep the whole batch in memory."""
    row = column[number]
    if not isinstance(row, np.ndarray):
        return row
    array = cast("Array", row)
    return array if array.base is None else array.copy()


def _by_column(batch: Element) -> Element:
    """Give the columns by name of a table, as pandas has them; any other batch as it is."""
    if not (hasattr(batch, "iloc") and hasattr(batch, "columns")):
        return batch
    names = list(batch.columns)
    if len(set(names)) < len(names):
        raise StreamError(
            f"unbatch() got a table with the columns {', '.join(map(repr, names))}; expected names "
            "that differ; rename one"
        )
    return {name: batch[name] for name in names}


def _by_position(column: Any) -> Any:  # whatever a batch holds
    """Give what has its rows by position of what looks them up by label, as pandas does."""
    return np.asarray(column) if hasattr(column, "iloc") else column


def _one_length(columns: Mapping[str, Any], batch: Element) -> int:
    for name, column in columns.items():
        if isinstance(column, _KEPT) or not _has_rows(column):
            raise StreamError(
                f"unbatch() got {f'source {name}: ' if name else ''}{column!r:.80} of type "
                f"{type(column).__name__}, which has no rows; expected arrays or lists; leave it "
                "out with select(...), or make it one"
            )
    lengths = {name: len(column) for name, column in columns.items()}
    if not lengths:
        raise StreamError(
            f"unbatch() got {batch!r}, which has no sources; expected a batch with one at least"
        )
    shortest = min(lengths, key=lambda name: lengths[name])
    longest = max(lengths, key=lambda name: lengths[name])
    if lengths[shortest] != lengths[longest]:
        raise StreamError(
            f"unbatch() got source {shortest} of length {lengths[shortest]} and source {longest} "
            f"of length {lengths[longest]} in one batch; expected one length; look at what makes "
            "the batches"
        )
    return lengths[shortest]


def _has_rows(column: object) -> bool:
    if isinstance(column, np.ndarray):
        return bool(cast("Array", column).ndim)
    return hasattr(column, "__len__")


def padded(name: str, examples: Any, mask_dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """Pad the examples of a batch with zeros to the length of the longest.

    Parameters:
        name: of the source.
        examples: arrays that differ in their first dimension, its length, alone.
        mask_dtype: of the mask.

    Gives an array of shape (examples, length, …), and its mask of shape (examples, length), which
    is 1 where there is data and 0 where there is padding.
    """
    rows: list[Array] = [np.asarray(example) for example in examples]
    if not rows:
        raise StreamError(f"pad() got no examples of source {name!r}; expected one at least")
    rest = rows[0].shape[1:]
    for row in rows:
        if row.ndim == 0:
            raise StreamError(
                f"pad() got source {name!r} with single values as {row!r:.80}; expected sequences; "
                "name the sources to pad, as pad(['x'])"
            )
        if row.shape[1:] != rest:
            raise StreamError(
                f"pad() got source {name!r} with examples of the shapes {rows[0].shape} and "
                f"{row.shape}; expected shapes that differ in their first dimension alone; make "
                "them so with map(function) before it"
            )
    longest = max(len(row) for row in rows)
    column = np.zeros((len(rows), longest, *rest), dtype=np.result_type(*rows))
    mask = np.zeros((len(rows), longest), dtype=mask_dtype)
    for number, row in enumerate(rows):
        column[number, : len(row)] = row
        mask[number, : len(row)] = 1
    return column, mask
