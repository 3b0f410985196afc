"""The records of one key over time, as numpy arrays."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np

from aloop.log.values import DELETED, decode

__all__ = ["Series", "as_series", "merge"]

Series: TypeAlias = tuple["np.ndarray[Any, np.dtype[np.int64]]", "np.ndarray[Any, Any]"]
"""The times, in ascending order, and the values of a series: two arrays of the same length."""

_NUMBERS = frozenset({bool, int, float})


def as_series(times: Sequence[int], values: Sequence[Any]) -> Series:
    """Make arrays of times and values.

    Numbers give an array of numbers, booleans one of booleans; as soon as one value is something
    else the array holds the values as they are, as objects.
    """
    if set(map(type, values)) <= _NUMBERS:
        array = np.array(values) if values else np.empty(0)
    else:
        array = np.empty(len(values), dtype=object)
        for place, value in enumerate(values):  # a slice would take a list for a row of a matrix
            array[place] = value
    return np.array(times, dtype=np.int64), array


def merge(
    stored: Iterable[Sequence[tuple[int, Any]]], unwritten: Iterable[tuple[int, Any]]
) -> Series:
    """Make arrays of what is stored, the furthest run first, and of what is yet to be written.

    What comes later counts; `DELETED` takes a record out.
    """
    parts: list[Sequence[tuple[int, Any]]] = [part for part in stored if part]
    first: list[tuple[int, Any]] = list(parts[0]) if parts else []
    newer: dict[int, Any] = {}
    for part in parts[1:]:
        newer.update(part)
    if newer and min(newer) <= first[-1][0]:
        newer, first = dict(first) | newer, []
    fresh = dict(unwritten)
    pairs: list[tuple[int, Any]] = [*first, *sorted(newer.items())]
    if fresh and pairs and min(fresh) <= pairs[-1][0]:
        pairs = sorted((dict(pairs) | fresh).items())
    else:
        pairs += sorted(fresh.items())
    if bytes in {type(value) for _, value in pairs}:
        pairs = [(time, decode(value)) for time, value in pairs if value != DELETED]
    return as_series([time for time, _ in pairs], [value for _, value in pairs])
