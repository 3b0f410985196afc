"""The training log in memory.

Memory is the truth: rows and status are read and written synchronously. A backend that persists
is told of every write through one list, `TrainingLog._pending`, and of every commit point by
`commit`; see `aloop.log.sqlite`.
"""

import uuid as uuid_module
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from operator import index
from typing import Any, Final, Self, SupportsIndex, TypeAlias, cast

from aloop.errors import AlreadyRunningError, LogTimeError, LogValueError, NoEpochError
from aloop.log.values import DELETED, FrozenList, normalise, normalise_key
from aloop.protocols import Record

__all__ = ["RUN_START", "STATUS", "Change", "RunStart", "TrainingLog"]

# dict's own assignment, which checks nothing and notes nothing; super() takes twice as long.
_set: Final = dict[str, Any].__setitem__

_MAX_TIME: Final = 2**63  # what SQLite's integers end before

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


class TrainingLog:
    """The record of a training, kept in memory.

    ``log[time][key]`` is a record, ``log.current_row`` the row of `iterations_done`, and
    ``log.status`` what holds of the training now. A time nobody has written at has an empty row
    that can be written. Iterating gives the times that have records, in ascending order, ``len``
    their number.

    Reads and writes take about a microsecond and never wait. Values are numbers, text, booleans,
    None, and lists, tuples, dictionaries and small arrays of those; anything else raises
    `LogValueError` at the assignment. Lists, dictionaries and arrays are copied, and the copy in
    the log cannot be changed in place.

    Parameters:
        uuid: the id of this log, new and random unless given.
    """

    def __init__(self, uuid: "uuid_module.UUID | str | None" = None) -> None:
        self.uuid = as_uuid(uuid)
        self.name: str | None = None
        self.hyperparameters: Mapping[str, Any] | None = None
        # The changes a backend has yet to write; None means that nobody will.
        self._pending: list[Change] | None = self._make_pending()
        self._in_session = False
        self.sequence = 0
        """The number of commit points so far, those of the runs it was resumed from included."""
        self._rows: dict[int, Row] = {}
        self.status = Status(self._pending)
        self.status.declare(
            {"iterations_done": 0, "epochs_done": 0, "_epoch_ends": [], "resumed_from": None}
        )

    def _make_pending(self) -> list[Change] | None:
        return None

    @property
    def h_uuid(self) -> str:
        """The id of the log in hexadecimal."""
        return self.uuid.hex

    def __getitem__(self, time: SupportsIndex) -> Row:
        if type(time) is not int or not 0 <= time < _MAX_TIME:
            time = check_time(time)
        row = self._rows.get(time)
        if row is None:
            row = self._rows[time] = Row(time, self._pending)
        return row

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(time for time, row in self._rows.items() if row))

    def __len__(self) -> int:
        return sum(1 for row in self._rows.values() if row)

    def __contains__(self, time: object) -> bool:
        try:
            return bool(self._rows.get(check_time(time)))
        except LogTimeError:
            return False

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self.h_uuid[:8]}: {self.status['iterations_done']} "
            f"iterations, {self.status['epochs_done']} epochs, {len(self)} rows>"
        )

    def get_record(self, time: int, key: str, default: Record = None) -> Record:
        """Give the record ``log[time][key]`` without making the row, `default` without one."""
        row = self._rows.get(time)
        return default if row is None else row.get(key, default)

    @property
    def current_row(self) -> Row:
        """The row of the current time, ``status["iterations_done"]``."""
        time = self.status["iterations_done"]
        row = self._rows.get(time)
        if row is None:
            row = self._rows[time] = Row(time, self._pending)
        return row

    @property
    def previous_row(self) -> Row:
        """The row of the time before the current one; `LogTimeError` at time 0."""
        return self[self.status["iterations_done"] - 1]

    @property
    def last_epoch_row(self) -> Row:
        """The row of the time at which the last epoch ended; `NoEpochError` before that."""
        ends: Sequence[int] = self.status["_epoch_ends"]
        if not ends:
            raise NoEpochError(
                "last_epoch_row was read after 0 epochs; expected at least one epoch to have "
                "ended; look at log.status['epochs_done'] first"
            )
        return self[ends[-1]]

    def resume(self) -> None:
        """Go on under a new id.

        `status["resumed_from"]` becomes the id so far; the status is carried over. Rows up to
        the current time stay visible, rows after it belong to the earlier id alone.
        """
        forked_at: int = self.status["iterations_done"]
        for time in [time for time in self._rows if time > forked_at]:
            # A row that somebody still holds must not write under the new id.
            self._rows.pop(time).detach()
        resumed_from = self.h_uuid
        self.uuid = uuid_module.uuid4()
        # The status travels with the start of the run, so no change is noted here.
        self.status.restore({"resumed_from": resumed_from})
        if self._pending is not None:
            self._pending.append(self._run_start(resumed_from, forked_at))

    def _run_start(self, resumed_from: str | None, forked_at: int | None) -> Change:
        start = RunStart(
            run=self.h_uuid,
            name=self.name,
            hyperparameters=self.hyperparameters,
            resumed_from=resumed_from,
            forked_at=forked_at,
            sequence=self.sequence,
            status=dict(self.status),
        )
        return RUN_START, "", start

    def describe(
        self, name: str | None = None, hyperparameters: Mapping[str, Any] | None = None
    ) -> None:
        """Say what the runs of this log are called and what they are made with.

        The hyperparameters are held to the same kinds of values as the records. Takes effect for
        the run ids that start afterwards.
        """
        if name is not None:
            if not isinstance(cast("object", name), str):
                raise LogValueError(f"name is {name!r}; expected text; use {str(name)!r}")
            self.name = normalise("name", name)
        if hyperparameters is not None:
            self.hyperparameters = normalise("hyperparameters", hyperparameters)

    def commit(self, *, durable: bool = False) -> None:
        """Mark a commit point: what was written so far may be persisted, and only together.

        With `durable` it is to be on the disk and not just in the system's cache. Does not wait;
        `flush` does. A log in memory only counts.
        """
        self.sequence += 1

    async def flush(self) -> None:
        """Wait until what was written up to the last commit point is on the disk.

        Outside a run everything written so far counts. A log in memory returns at once.
        """

    async def open(self) -> Self:
        """Open what the log is kept in, unless that is open; the run does this by itself."""
        return self

    async def close(self) -> None:
        """Write what is left and close what the log is kept in; what is in memory stays."""

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    @asynccontextmanager
    async def session(self) -> AsyncGenerator[None]:
        """Hold the log for one run: within it only `commit` makes commit points."""
        if self._in_session:
            raise AlreadyRunningError(
                f"{self!r} is in use by another run; expected a log of its own for each run; "
                "leave log= out, or give each loop a new log (they can share a database)"
            )
        self._in_session = True
        try:
            yield
        finally:
            self._in_session = False


def as_uuid(uuid: "uuid_module.UUID | str | None") -> uuid_module.UUID:
    """Give the id as a UUID: a new one for None, parsed for text."""
    if uuid is None:
        return uuid_module.uuid4()
    if isinstance(uuid, uuid_module.UUID):
        return uuid
    try:
        return uuid_module.UUID(uuid)
    except (ValueError, AttributeError, TypeError):
        raise ValueError(
            f"log uuid is {uuid!r}; expected a UUID or its 32 hexadecimal digits, as log.h_uuid "
            "gives them"
        ) from None


def check_time(time: object) -> int:
    """Check the time of a row and give it as an int."""
    given = time
    if type(time) is not int:
        # numpy's integers are fine; booleans are integers for Python, but no time.
        try:
            time = None if isinstance(time, bool) else index(cast("SupportsIndex", time))
        except TypeError:
            time = None
        if time is None:
            raise LogTimeError(
                f"log time is {given!r} of type {type(given).__name__}; expected a whole number "
                "from 0 on, such as log.status['iterations_done']"
            )
    if time < 0:
        raise LogTimeError(
            f"log time is {time}; expected a whole number from 0 on; rows count from the first "
            "batch, there is no row before it"
        )
    if time >= _MAX_TIME:
        raise LogTimeError(f"log time is {time}; expected less than 2**63")
    return time
