"""The records of one key over time, as numpy arrays."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np

__all__ = ["Series", "as_series", "merge"]

Series: TypeAlias = tuple["np.ndarray[Any, np.dtype[np.int64]]", "np.ndarray[Any, Any]"]
"""The times, in ascending order, and the values of a series: two arrays of the same length."""

_NUMBERS = frozenset({bool, int, float})


def as_series(times: Sequence[int], values: Sequence[Any]) -> Series:
    """Make arrays of times and values.

    Numbers give an array of numbers, booleans one of booleans; as soon as one value is something
    else the array holds the values as they are, as objects. `DELETED` is such a thing: bytes, which
    no log holds.
    """
    if set(map(type, values)) <= _NUMBERS:
        array = np.array(values) if values else np.empty(0)
    else:
        array = np.empty(len(values), dtype=object)
        for place, value in enumerate(values):  # a slice would take a list for a row of a matrix
            array[place] = value
    return np.array(times, dtype=np.int64), array


def merge(parts: Iterable[Series], unwritten: Iterable[tuple[int, Any]]) -> Series:
    """Put together what is stored, the furthest run first, and what is yet to be written.

    What comes later counts; `DELETED` takes a record out.
    """
    newest = dict(unwritten)
    changed = as_series(sorted(newest), [newest[time] for time in sorted(newest)])
    times, values = as_series((), ())
    for part in [*parts, changed]:
        if not len(part[0]):
            continue
        if not len(times) or part[0][0] > times[-1]:
            times = np.concatenate([times, part[0]]) if len(times) else part[0]
            values = np.concatenate([values, part[1]]) if len(values) else part[1]
        else:  # written again
            both = dict(_pairs(times, values)) | dict(_pairs(*part))
            times, values = as_series(sorted(both), [both[time] for time in sorted(both)])
    if values.dtype == object:
        pairs = [pair for pair in _pairs(times, values) if type(pair[1]) is not bytes]
        return as_series([time for time, _ in pairs], [value for _, value in pairs])
    return times, values


def _pairs(times: "np.ndarray[Any, Any]", values: "np.ndarray[Any, Any]") -> Iterable[Any]:
    return zip(times.tolist(), values.tolist(), strict=True)
