"""Rows and status: dictionaries that check what is put into them and note each change."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, Protocol, Self, TypeAlias

from aloop.log.values import DELETED, FrozenList, measure, normalise, normalise_key
from aloop.protocols import Record

__all__ = [
    "EPOCH_END",
    "RUN_START",
    "STATUS",
    "Change",
    "Changes",
    "Row",
    "RunStart",
    "Status",
    "each_change",
]

# dict's own assignment, which checks nothing and notes nothing; super() takes twice as long.
_set: Final = dict[str, Any].__setitem__

STATUS: Final = -1
"""Stands in a `Change` where the time would be, for a change of the status."""

RUN_START: Final = -2
"""Stands in a `Change` where the time would be, for the start of a run."""

EPOCH_END: Final = -3
"""Stands in a `Change` where the time would be, for an epoch that ended."""

_SMALL: Final = frozenset({float, int, bool, type(None)})

LARGE: Final = 256
"""Bytes above which a value counts by its size, and not just as one record."""


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
its time; the start of a run, with `RUN_START` and a `RunStart` as its value; or an epoch that
ended, with `EPOCH_END` and as its value the number of the epoch and the time."""


def each_change(flat: Iterable[Any]) -> Iterator[Change]:
    """Give the changes one by one that a list holds as time, key, value, time, key, value, …."""
    parts = iter(flat)
    return zip(parts, parts, parts, strict=True)


class Changes(list[Any]):
    """What was written to a log and nobody has handed over yet, in the order in which it came.

    A flat list of time, key and value of each change: a tuple for each would keep the garbage
    collector as busy as all the rest of writing. A commit point marks how far it may be handed
    over: what follows belongs to a boundary that is still in the making. What was handed over is
    `on_its_way` until it is known to be written.
    """

    __slots__ = (
        "_at_mark",
        "_noted",
        "_sizes",
        "_taken",
        "_written",
        "marked",
        "on_its_way",
        "row_bytes",
    )

    def __init__(self) -> None:
        super().__init__()
        self.marked = 0
        """How much of this list is behind the last commit point."""
        self.on_its_way: list[Any] = []
        """The changes that were handed over and may not be written yet."""
        self.row_bytes = 0
        """The bytes of the large values in the rows that are in memory."""
        self._sizes: dict[int, int] = {}  # the same by time
        # Bytes of large values, since the beginning: noted, at the last commit point, handed over,
        # and written.
        self._noted = self._at_mark = self._taken = self._written = 0

    @property
    def due_records(self) -> int:
        """How many changes are behind a commit point and not known to be written."""
        return (self.marked + len(self.on_its_way)) // 3

    @property
    def due_bytes(self) -> int:
        """The bytes of the large values among them."""
        return self._at_mark - self._written

    def unwritten(self) -> Iterator[Change]:
        """Give the changes that are not known to be written, in the order in which they came."""
        return each_change(chain(self.on_its_way, self))

    def note_size(self, time: int, size: int) -> None:
        """Count a large value that was noted for this time."""
        self._noted += size
        if time >= 0:
            self.count_row(time, size)

    def count_row(self, time: int, size: int) -> None:
        """Count so many more bytes for the row of this time."""
        self._sizes[time] = self._sizes.get(time, 0) + size
        self.row_bytes += size

    def forget_row(self, time: int) -> None:
        """Count the row of this time no longer: it is out of memory."""
        if self._sizes:
            self.row_bytes -= self._sizes.pop(time, 0)

    def mark(self) -> None:
        """Mark a commit point behind all that was noted so far."""
        self.marked = len(self)
        self._at_mark = self._noted

    def put_first(self, change: Change) -> None:
        """Put a change before all others; it belongs to what the last commit point covers."""
        self[:0] = change
        self.marked += len(change) if self.marked else 0

    def take(self) -> list[Any]:
        """Hand over what is behind the last commit point."""
        self.on_its_way = self[: self.marked]
        # In place: rows and status append to this very list.
        del self[: self.marked]
        self.marked = 0
        self._taken = self._at_mark
        return self.on_its_way

    def drop(self) -> None:
        """Forget what nobody has handed over yet."""
        self.clear()
        self.marked = 0
        self._noted = self._at_mark = self._taken
        self._sizes.clear()
        self.row_bytes = 0

    def unwritten_records(self) -> int:
        """Count the records that nobody has handed over yet, of rows and not of the status."""
        times: list[int] = self[::3]
        return sum(1 for time in times if time >= 0)

    def settle(self) -> None:
        """Hear that what was handed over is written."""
        self.on_its_way = []
        self._written = self._taken

    def put_back(self) -> None:
        """Take back what was handed over: it could not be written."""
        self[:0] = self.on_its_way
        self.marked += len(self.on_its_way)
        self.on_its_way = []
        self._taken = self._written


class _Noting(Protocol):
    """Where a row notes its changes."""

    def extend(self, change: Change, /) -> None: ...

    def note_size(self, time: int, size: int, /) -> None: ...


class _Records(dict[str, Any]):
    """A dictionary that checks what is put into it and notes each change for the backend."""

    __slots__ = ("__weakref__", "_pending", "_time")

    def __init__(self, time: int, pending: _Noting | None) -> None:
        self._time = time
        self._pending = pending

    def __setitem__(self, key: str, value: Record) -> None:
        if type(key) is not str or not key.isascii():
            key = normalise_key(key)
        # Nearly every record is a float, and checking for it here saves the call.
        if type(value) is not float:
            value = normalise(key, value)
            if type(value) not in _SMALL:
                self._note_size(value)
        _set(self, key, value)
        if self._pending is not None:
            self._pending.extend((self._time, key, value))

    def _note_size(self, value: Record) -> None:
        if self._pending is not None and (size := measure(value)) > LARGE:
            self._pending.note_size(self._time, size)

    def write_trusted(self, key: str, value: Record) -> None:
        """Write a value that is known to be in the log's own form, whatever its size."""
        super().__setitem__(key, value)
        if self._pending is not None:
            self._pending.extend((self._time, key, value))

    def note_changes_in(self, pending: _Noting | None) -> None:
        """Note changes there from now on; nowhere when the records left the log for good."""
        self._pending = pending

    def __delitem__(self, key: str) -> None:
        super().__delitem__(key)
        if self._pending is not None:
            self._pending.extend((self._time, key, DELETED))

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

    @property
    def time(self) -> int:
        """The number of iterations that were done when these records were made."""
        return self._time


class Status(_Records):
    """What holds of the training now: a dictionary from text to values."""

    __slots__ = ("_growing",)

    def __init__(self, pending: Changes | None) -> None:
        super().__init__(STATUS, pending)
        self._growing: FrozenList | None = None  # the list of epochs' ends, when it is our own

    def declare(self, defaults: Mapping[str, Record]) -> None:
        """Give keys that are absent a value, without noting it as a change."""
        self.restore({k: normalise(k, v) for k, v in defaults.items() if k not in self})

    def snapshot(self) -> dict[str, Any]:
        """Give a copy that stays as it is."""
        return {k: FrozenList(v) if k == "_epoch_ends" else v for k, v in self.items()}

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
        change = self.append_epoch_end(self["iterations_done"])
        if self._pending is not None:
            self._pending.extend(change)

    def append_epoch_end(self, time: int) -> Change:
        """Add the time at which an epoch ended, and give the change that says so.

        The list grows in place: copying it at each epoch would make many epochs slow.
        """
        ends = self["_epoch_ends"]
        if ends is not self._growing:  # what was assigned may be on its way to the file
            ends = self._growing = FrozenList(ends)
            _set(self, "_epoch_ends", ends)
        list[int].append(ends, time)
        return EPOCH_END, "_epoch_ends", (len(ends), time)
