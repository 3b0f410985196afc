"""Reading a log file, over connections that cannot write and never hold up the writer.

What counts for a run is its own records and those of its ancestors up to the fork, the nearest
run first; a `History` is that, as it is in the file.
"""

import os
import sqlite3
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias
from weakref import ref

import numpy as np

from aloop.errors import LogFileError, UnknownRunError
from aloop.log.files import check_not_empty, check_version
from aloop.log.schema import LINEAGE
from aloop.log.series import Series, as_series
from aloop.log.values import DELETED, FrozenList, decode

__all__ = ["BUSY_TIMEOUT_S", "END_OF_TIME", "Head", "History", "Lineage", "Readers"]

BUSY_TIMEOUT_S: Final = 10.0
"""How long opening and reading wait for what holds the whole file, such as a restored backup."""

END_OF_TIME: Final = 2**63 - 1
"""The last time there can be."""

TIMES_AT_ONCE: Final = 4096
"""How many times a range has at most that is read in one go."""

_IDLE_CONNECTIONS: Final = 4
_IDLE_FILES: Final = 8

Lineage: TypeAlias = tuple[tuple[str, int], ...]
"""A run and its ancestors, nearest first, by hexadecimal id, each with the last time at which its
rows count."""


class Readers:
    """Connections that can only read one log file, each lent to one thread at a time.

    Some stay open for the next use until `close`, as long as not too many other files are read.
    """

    def __init__(self, database: Path) -> None:
        self.database = database
        self._idle: list[sqlite3.Connection] = []
        self._process = os.getpid()

    @contextmanager
    def connection(self) -> Generator[sqlite3.Connection]:
        """Lend a connection; what SQLite raises meanwhile becomes `LogFileError`."""
        connection: sqlite3.Connection | None = None
        try:
            connection = self._take()
            yield connection
        except sqlite3.Error as error:
            raise LogFileError(
                f"{self.database} cannot be read: {error}; expected an undamaged log that this "
                "process may read; restore the file from a copy, or look at its permissions"
            ) from error
        finally:
            if connection is not None:
                self._give_back(connection)

    def close(self) -> None:
        """Close the connections that are not lent."""
        self._leave_to_the_parent()
        while self._idle:
            self._idle.pop().close()

    def _take(self) -> sqlite3.Connection:
        self._leave_to_the_parent()
        return self._idle.pop() if self._idle else self._open()

    def _give_back(self, connection: sqlite3.Connection) -> None:
        if connection.in_transaction:
            connection.rollback()  # a read that does not end keeps the write-ahead log growing
        if len(self._idle) >= _IDLE_CONNECTIONS:
            connection.close()
            return
        self._idle.append(connection)
        if _in_use[-1:] != [ref(self)]:
            _in_use[:] = [other for other in _in_use if other() not in (None, self)][-_IDLE_FILES:]
            _in_use.append(ref(self))
            if len(_in_use) > _IDLE_FILES and (oldest := _in_use[0]()) is not None:
                oldest.close()

    def _leave_to_the_parent(self) -> None:
        """Forget, without closing them, connections that were open when this process was forked."""
        if self._process != os.getpid():
            _inherited.append(self._idle)
            self._idle, self._process = [], os.getpid()

    def _open(self) -> sqlite3.Connection:
        if not self.database.exists():
            raise LogFileError(
                f"there is no file {self.database}; expected the log that was written there; "
                "correct the path, or put the file back"
            )
        check_not_empty(self.database)
        try:
            return self._connect("mode=ro")
        except sqlite3.OperationalError:
            # SQLite needs a file for what readers share, even to read; where it cannot be made,
            # nobody writes.
            wal = self.database.with_name(f"{self.database.name}-wal")
            if os.access(self.database.parent, os.W_OK) or wal.exists():
                raise
            return self._connect("mode=ro&immutable=1")

    def _connect(self, query: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self.database.as_uri()}?{query}",
            uri=True,
            timeout=BUSY_TIMEOUT_S,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            check_version(connection, self.database)
        except BaseException:
            connection.close()
            raise
        return connection

    def __del__(self) -> None:
        self.close()


_in_use: Final[list["ref[Readers]"]] = []
_inherited: Final[list[list[sqlite3.Connection]]] = []


@dataclass(slots=True)
class Head:
    """What the file says of a run, its rows apart."""

    run_id: int
    run: str
    sequence: int
    name: str | None
    hyperparameters: dict[str, Any] | None
    has_ended: bool
    lineage: Lineage
    status: dict[str, Any]


class History:
    """The records that count for a run, as they are in the file at each call."""

    def __init__(self, readers: Readers, lineage: Lineage) -> None:
        self.readers = readers
        self.lineage = lineage
        self._line: str | None = None  # the lineage as SQL, once all its runs are in the file

    @classmethod
    def of(cls, readers: Readers, run: str) -> "tuple[History, Head]":
        """Give the history of the run of this hexadecimal id; `UnknownRunError` without one."""
        with readers.connection() as connection:
            head = _read_head(connection, run, readers.database)
        return cls(readers, head.lineage), head

    def fork(self, run: str, last_time: int) -> "History":
        """Give the history of a run that goes on from this one after `last_time`."""
        past = [(name, min(time, last_time)) for name, time in self.lineage]
        return History(self.readers, ((run, END_OF_TIME), *past))

    def successor(self) -> "History | None":
        """Give the history of the run that was resumed from this one, the latest of several."""
        with self.readers.connection() as connection:
            found = connection.execute(
                "SELECT run, forked_at FROM runs WHERE resumed_from = ? ORDER BY id DESC LIMIT 1",
                (self.lineage[0][0],),
            ).fetchone()
        return None if found is None else self.fork(*found)

    def head(self) -> Head:
        """Read what the file says of the run."""
        with self.readers.connection() as connection:
            return _read_head(connection, self.lineage[0][0], self.readers.database)

    def progress(self) -> tuple[int, bool]:
        """Read how many iterations are done, and whether the run has ended."""
        with self.readers.connection() as connection:
            return connection.execute(
                "SELECT COALESCE((SELECT value FROM stored_status WHERE run = runs.id AND key = "
                "(SELECT id FROM keys WHERE key = 'iterations_done')), 0), ended_at IS NOT NULL "
                "FROM runs WHERE run = ?",
                (self.lineage[0][0],),
            ).fetchone()

    def row(self, time: int) -> dict[str, Any]:
        """Read the records of one time."""
        with self.readers.connection() as connection:
            found = connection.execute(
                f"{self._keys_of_line(connection)} SELECT keys.key, value FROM line_keys "
                "CROSS JOIN stored_entries ON stored_entries.run = line_keys.run "
                "AND stored_entries.key = line_keys.key AND time = ?1 "
                "CROSS JOIN keys ON keys.id = line_keys.key "
                "WHERE last_time >= ?1 ORDER BY distance DESC, keys.id",
                (time,),
            ).fetchall()
        # The furthest ancestor first, so that nearer ones write over it.
        records = dict(found)
        return {key: decode(value) for key, value in records.items() if value != DELETED}

    def rows(self, first: int, last: int) -> dict[int, dict[str, Any]]:
        """Read the records of the times from `first` to `last`, by time in ascending order.

        All are held in memory: see `ranges`.
        """
        rows: dict[int, dict[str, Any]] = {}
        with self.readers.connection() as connection:
            for time, key, value in connection.execute(
                f"{self._keys_of_line(connection)} SELECT time, keys.key, value FROM line_keys "
                "CROSS JOIN stored_entries ON stored_entries.run = line_keys.run "
                "AND stored_entries.key = line_keys.key "
                "AND time BETWEEN ? AND MIN(last_time, ?) "
                "CROSS JOIN keys ON keys.id = line_keys.key "
                "ORDER BY distance DESC, keys.id",
                (first, last),
            ):
                if value != DELETED:
                    rows.setdefault(time, {})[key] = decode(value)
                elif time in rows:
                    rows[time].pop(key, None)
        return {time: rows[time] for time in sorted(rows) if rows[time]}

    def next_rows(self, first: int, last: int) -> tuple[int, dict[int, dict[str, Any]]]:
        """Read what can be read in one go of a range, and tell up to which time that is."""
        for begin, end in self.ranges(first, last):
            return end, self.rows(begin, end)
        return last, {}

    def ranges(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Cut a range into such as can be read in one go, leaving out where there is nothing."""
        while first <= last:
            with self.readers.connection() as connection:
                (found,) = connection.execute(
                    f"{self._keys_of_line(connection)} SELECT MIN(time) FROM ("
                    "SELECT last_time, (SELECT MIN(time) FROM stored_entries WHERE run = "
                    "line_keys.run AND key = line_keys.key AND time >= ?) AS time "
                    "FROM line_keys) WHERE time <= last_time",
                    (first,),
                ).fetchone()
            if found is None or found > last:
                return
            first = found + TIMES_AT_ONCE
            yield found, min(first - 1, last)

    def times(self, first: int, last: int) -> list[int]:
        """Give the times from `first` to `last` that have records, in ascending order."""
        with self.readers.connection() as connection:
            found = connection.execute(
                f"{self._keys_of_line(connection)} SELECT DISTINCT time FROM ("
                "SELECT time, MIN(distance), value FROM line_keys "
                "CROSS JOIN stored_entries ON stored_entries.run = line_keys.run "
                "AND stored_entries.key = line_keys.key "
                "AND time BETWEEN ? AND MIN(last_time, ?) "
                "GROUP BY time, stored_entries.key) WHERE value IS NOT x'' ORDER BY time",
                (first, last),
            ).fetchall()
        return [time for (time,) in found]

    def last_time(self) -> int:
        """Give the latest time anything was written at, -1 if there is none."""
        with self.readers.connection() as connection:
            (found,) = connection.execute(
                f"{self._keys_of_line(connection)} SELECT MAX((SELECT MAX(time) "
                "FROM stored_entries WHERE run = line_keys.run AND key = line_keys.key "
                "AND time <= last_time)) FROM line_keys"
            ).fetchone()
        return -1 if found is None else found

    def series(self, key: str) -> list[Series]:
        """Read the times and values of a key for each run, the nearest last, `DELETED` included."""
        with self.readers.connection() as connection:
            connection.execute("BEGIN")  # what is looked at twice is to be the same
            found = connection.execute("SELECT id FROM keys WHERE key = ?", (key,)).fetchone()
            return (
                []
                if found is None
                else [
                    _read_series(connection, run, found[0], last_time)
                    for run, last_time in reversed(self.lineage)
                ]
            )

    def keys(self) -> list[str]:
        """Give the keys under which anything was recorded."""
        with self.readers.connection() as connection:
            found = connection.execute(
                f"{self._keys_of_line(connection)} SELECT DISTINCT keys.key FROM line_keys "
                "JOIN keys ON keys.id = line_keys.key ORDER BY keys.id"
            ).fetchall()
        return [key for (key,) in found]

    def _keys_of_line(self, connection: sqlite3.Connection) -> str:
        """Give SQL for the keys of each run: a seek for each key, where DISTINCT reads them all."""
        line = self._line
        if line is None:
            ids = [
                (found[0], last_time, distance)
                for distance, (run, last_time) in enumerate(self.lineage)
                if (
                    found := connection.execute(
                        "SELECT id FROM runs WHERE run = ?", (run,)
                    ).fetchone()
                )
            ]
            line = "VALUES " + ", ".join(map(str, ids or [(-1, -1, 0)]))
            if len(ids) == len(self.lineage):
                self._line = line
        return (
            f"WITH RECURSIVE line(run, last_time, distance) AS ({line}), "
            "line_keys(run, last_time, distance, key) AS ("
            "SELECT run, last_time, distance, "
            "(SELECT MIN(key) FROM stored_entries WHERE run = line.run) FROM line UNION ALL "
            "SELECT run, last_time, distance, (SELECT MIN(key) FROM stored_entries "
            "WHERE run = line_keys.run AND key > line_keys.key) "
            "FROM line_keys WHERE key IS NOT NULL)"
        )


def _read_series(connection: sqlite3.Connection, run: str, key_id: int, last_time: int) -> Series:
    which = "WHERE run = (SELECT id FROM runs WHERE run = ?) AND key = ? AND time <= ?"
    bounds = run, key_id, last_time
    lowest, highest, count, not_null = connection.execute(
        "SELECT MIN(typeof(value)), MAX(typeof(value)), COUNT(*), COUNT(value) "
        f"FROM stored_entries {which}",
        bounds,
    ).fetchone()
    pairs = connection.execute(
        f"SELECT time, value FROM stored_entries {which} ORDER BY time", bounds
    )
    if {lowest, highest} <= {"integer", "real"} and count == not_null:
        # By far the most usual, and half as long when no tuple outlives its row.
        kind = "i8" if highest == "integer" else "f8"
        array = np.fromiter(pairs, dtype=[("time", "i8"), ("value", kind)], count=count)
        return array["time"].copy(), array["value"].copy()
    found = pairs.fetchall()
    values = [value if value == DELETED else decode(value) for _, value in found]
    return as_series([time for time, _ in found], values)


def _read_head(connection: sqlite3.Connection, run: str, database: Path) -> Head:
    # One transaction, so that a run which is being written is seen at one of its boundaries.
    connection.execute("BEGIN")
    lineage = connection.execute(LINEAGE, (run,)).fetchall()
    if not lineage:
        latest = connection.execute("SELECT run FROM runs ORDER BY id DESC LIMIT 3").fetchall()
        raise UnknownRunError(
            f"{database} has no run {run!r}; expected the id of one of its runs (the latest: "
            f"{', '.join(name for (name,) in latest) or 'none'}); "
            "SELECT run, started_at FROM runs lists them"
        )
    run_id = lineage[0][0]
    name, hyperparameters, sequence, ended_at = connection.execute(
        "SELECT name, hyperparameters, sequence, ended_at FROM runs WHERE id = ?", (run_id,)
    ).fetchone()
    stored = connection.execute(
        "SELECT keys.key, value FROM stored_status "
        "JOIN keys ON keys.id = stored_status.key WHERE run = ?",
        (run_id,),
    )
    status = {key: decode(value) for key, value in stored if value != DELETED}
    ends = connection.execute(
        "SELECT time FROM stored_epochs WHERE run = ? ORDER BY epoch", (run_id,)
    ).fetchall()
    if ends:
        before = status.get("_epoch_ends", ())
        status["_epoch_ends"] = FrozenList([*before, *(time for (time,) in ends)])
    connection.execute("COMMIT")
    return Head(
        run_id=run_id,
        run=run,
        sequence=sequence,
        name=name,
        hyperparameters=None if hyperparameters is None else decode(hyperparameters.encode()),
        has_ended=ended_at is not None,
        lineage=tuple((name, last_time) for _, name, last_time in lineage),
        status=status,
    )
