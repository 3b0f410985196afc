"""Rows and status: dictionaries that check what is put into them and note each change."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self, TypeAlias

from aloop.log.values import DELETED, FrozenList, normalise, normalise_key
from aloop.protocols import Record

__all__ = ["RUN_START", "STATUS", "Change", "Row", "RunStart", "Status"]

# dict's own assignment, which checks nothing and notes nothing; super() takes twice as long.
_set: Final = dict[str, Any].__setitem__

STATUS: Final = -1
"""Stands in a `Change` where the time would be, for a change of the status."""

RUN_START: Final = -2
"""Stands in a `Change` where the time would be, for the start of a run."""


@dataclass(frozen=True, slots=True)
class RunStart:
    """The beginning of a run id, among the changes that are to be written."""

    run: str
    name: str | None
    hyperparameters: Mapping[str, Any] | None
    resumed_from: str | None
    forked_at: int | None
    sequence: int
    """The number of commit points of the runs before it."""
    status: Mapping[str, Any]


Change: TypeAlias = tuple[int, str, Any]
"""A record ``(time, key, value)``, its value perhaps `DELETED`; one of the status, with `STATUS` as
its time; or the start of a run, with `RUN_START` as its time and a `RunStart` as its value."""


class _Records(dict[str, Any]):
    """A dictionary that checks what is put into it and notes each change for the backend."""

    __slots__ = ("__weakref__", "_pending", "_time")

    def __init__(self, time: int, pending: list[Change] | None) -> None:
        self._time = time
        self._pending = pending

    def __setitem__(self, key: str, value: Record) -> None:
        if type(key) is not str or not key.isascii():
            key = normalise_key(key)
        # Nearly every record is a float, and checking for it here saves the call.
        if type(value) is not float:
            value = normalise(key, value)
        _set(self, key, value)
        if self._pending is not None:
            self._pending.append((self._time, key, value))

    def detach(self) -> None:
        """Note no more changes: these records no longer belong to the log."""
        self._pending = None

    def write_trusted(self, key: str, value: Record) -> None:
        """Write a value that is known to be in the log's own form, whatever its size."""
        super().__setitem__(key, value)
        if self._pending is not None:
            self._pending.append((self._time, key, value))

    def __delitem__(self, key: str) -> None:
        super().__delitem__(key)
        if self._pending is not None:
            self._pending.append((self._time, key, DELETED))

    def restore(self, records: Mapping[str, Record]) -> None:
        """Put in records that a backend has read, without noting them as changes.

        `DELETED` as a value takes the record out.
        """
        for key, value in records.items():
            if value is DELETED:
                super().pop(key, None)
            else:
                super().__setitem__(key, value)

    # dict's own versions of the following do not call the two methods above.

    def setdefault(self, key: str, default: Record = None) -> Record:
        if key not in self:
            self[key] = default
        return self[key]

    def update(self, *args: Any, **kwargs: Record) -> None:
        # All or nothing: a value that is refused leaves the row as it was.
        checked = {
            normalise_key(key): normalise(key, value)
            for key, value in dict(*args, **kwargs).items()
        }
        for key, value in checked.items():
            self[key] = value

    def __ior__(self, other: Any) -> Self:
        self.update(other)
        return self

    # dict declares three overloads; this one takes the same calls.
    def pop(self, key: str, /, *default: Record) -> Record:  # pyright: ignore[reportIncompatibleMethodOverride]
        if key not in self and default:
            return default[0]
        value = self[key]
        del self[key]
        return value

    def popitem(self) -> tuple[str, Record]:
        key, value = super().popitem()
        super().__setitem__(key, value)
        del self[key]
        return key, value

    def clear(self) -> None:
        for key in list(self):
            del self[key]

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        return dict, (dict(self),)  # a copy belongs to no log


class Row(_Records):
    """The records of one time: a dictionary from text to values."""

    __slots__ = ()


class Status(_Records):
    """What holds of the training now: a dictionary from text to values."""

    __slots__ = ()

    def __init__(self, pending: list[Change] | None) -> None:
        super().__init__(STATUS, pending)

    def declare(self, defaults: Mapping[str, Record]) -> None:
        """Give keys that are absent a value, without noting it as a change."""
        self.restore({k: normalise(k, v) for k, v in defaults.items() if k not in self})

    def advance(self) -> int:
        """Count an iteration, and give how many are done.

        Noted as no change, since it comes with every batch: a backend looks at the counter.
        """
        iterations_done = self["iterations_done"] + 1
        _set(self, "iterations_done", iterations_done)
        return iterations_done

    def end_epoch(self) -> None:
        """Count an epoch that ended at the current iteration."""
        self["epochs_done"] = self["epochs_done"] + 1
        # Not through __setitem__: the list of a long training outgrows what users may store.
        ends = FrozenList([*self["_epoch_ends"], self["iterations_done"]])
        self.write_trusted("_epoch_ends", ends)
