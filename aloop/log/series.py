"""The records of one key over time, as numpy arrays."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np

__all__ = ["Part", "Series", "as_series", "merge"]

Series: TypeAlias = tuple["np.ndarray[Any, np.dtype[np.int64]]", "np.ndarray[Any, Any]"]
"""The times, in ascending order, and the values of a series: two arrays of the same length."""

_NUMBERS = frozenset({bool, int, float})

Part: TypeAlias = tuple[Any, Any]
"""Times and values of one run: two arrays where the values are all of the same kind of number, or
two lists, in which `DELETED` may stand for a value."""


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


def merge(parts: Iterable[Part], unwritten: Iterable[tuple[int, Any]]) -> Series:
    """Put together what is stored, the furthest run first, and what is yet to be written.

    What comes later counts; `DELETED` takes a record out.
    """
    newest = dict(unwritten)
    changed = sorted(newest), [newest[time] for time in sorted(newest)]
    given = [_as_arrays(part) for part in (*parts, changed) if len(part[0])]
    if given and _follow_each_other(given):
        times, values = zip(*given, strict=True)
        return np.concatenate(times), np.concatenate(values)
    found: dict[int, Any] = {}
    for times, values in given:
        found.update(zip(_listed(times), _listed(values), strict=True))
    found = dict(sorted(found.items()))
    kept = {time: value for time, value in found.items() if type(value) is not bytes}
    return as_series(list(kept), list(kept.values()))


def _as_arrays(part: Part) -> Part:
    """Make arrays of values that are all of the same kind of number, and leave others alone."""
    times, values = part
    if isinstance(values, np.ndarray) or set(map(type, values)) not in ({int}, {float}):
        return part
    return as_series(times, values)


def _follow_each_other(parts: Sequence[Part]) -> bool:
    """Say whether these are arrays of one kind, and each begins after the end of the one before."""
    return all(isinstance(values, np.ndarray) for _, values in parts) and all(
        one[0][-1] < other[0][0] and type(one[1][0]) is type(other[1][0])
        for one, other in pairwise(parts)
    )


def _listed(given: Any) -> list[Any]:
    return given.tolist() if isinstance(given, np.ndarray) else given
