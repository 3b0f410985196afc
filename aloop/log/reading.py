"""What a log file holds of a run.

What counts for a run is its own records and those of its ancestors up to the fork, the nearest
run first; a `History` is that, as it is in the file.
"""

import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np

from aloop.errors import UnknownRunError
from aloop.log.carried import behind
from aloop.log.readers import Readers
from aloop.log.schema import LINEAGE
from aloop.log.series import Part
from aloop.log.values import DELETED, FrozenList, decode

__all__ = ["END_OF_TIME", "Head", "History", "Lineage"]

END_OF_TIME: Final = 2**63 - 1
"""The last time there can be."""

TIMES_AT_ONCE: Final = 4096
"""How many times a range has at most that is read in one go."""

_BYTES_AT_ONCE: Final = 4 << 20  # of texts, arrays and the like in the rows that are

Lineage: TypeAlias = tuple[tuple[str, int], ...]
"""A run and its ancestors, nearest first, by hexadecimal id, each with the last time at which its
rows count."""


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
        self._rows_at_once = 8  # more, as long as they are small
        self._line: str | None = None  # the lineage as SQL, once all its runs are in the file

    @classmethod
    def new(cls, readers: Readers, run: str) -> "History":
        """Give the history of a run without ancestors, which the file need not know yet."""
        return cls(readers, ((run, END_OF_TIME),))

    @classmethod
    def of(cls, readers: Readers, run: str) -> "tuple[History, Head]":
        """Give the history of the run of this hexadecimal id; `UnknownRunError` without one."""
        with readers.connection() as connection:
            head = _read_head(connection, run, readers.database)
        return cls(readers, head.lineage), head

    @classmethod
    def reaching(cls, readers: Readers, state: Mapping[str, Any]) -> "History":
        """Give the history of a run that a log's state is of, which has to be as far as that.

        Raises `LogBehindError` when it is not, or there is no such run.
        """
        try:
            history, head = cls.of(readers, state["run"])
        except UnknownRunError as error:
            raise behind(str(readers.database), state, None) from error
        if head.sequence < state["sequence"]:
            raise behind(str(readers.database), state, head.sequence)
        return history

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
            found = connection.execute(
                "SELECT COALESCE((SELECT value FROM stored_status WHERE run = runs.id AND key = "
                "(SELECT id FROM keys WHERE key = 'iterations_done')), 0), ended_at IS NOT NULL "
                "FROM runs WHERE run = ?",
                (self.lineage[0][0],),
            ).fetchone()
            if found is None:
                raise _unknown_run(connection, self.lineage[0][0], self.readers.database)
        return found[0], bool(found[1])

    def row(self, time: int) -> dict[str, Any]:
        """Read the records of one time."""
        with self.readers.connection() as connection:
            found = connection.execute(
                f"{self._keys_of_line(connection, '?')} SELECT keys.key, value FROM line_keys "
                "CROSS JOIN stored_entries ON stored_entries.run = line_keys.run "
                "AND stored_entries.key = line_keys.key AND time = ? "
                "CROSS JOIN keys ON keys.id = line_keys.key "
                "ORDER BY distance DESC, keys.id",
                (time, time),
            ).fetchall()
        # The furthest ancestor first, so that nearer ones write over it.
        records = dict(found)
        return {key: decode(value) for key, value in records.items() if value != DELETED}

    def rows(self, first: int, last: int) -> dict[int, dict[str, Any]]:
        """Read the records of the times from `first` to `last`, by time in ascending order.

        All are held in memory: see `ranges`.
        """
        rows: dict[int, dict[str, Any]] = {}
        size = 0
        with self.readers.connection() as connection:
            for time, key, value in connection.execute(
                f"{self._keys_of_line(connection, '?')} SELECT time, keys.key, value "
                "FROM line_keys CROSS JOIN stored_entries ON stored_entries.run = line_keys.run "
                "AND stored_entries.key = line_keys.key "
                "AND time BETWEEN ? AND MIN(last_time, ?) "
                "CROSS JOIN keys ON keys.id = line_keys.key "
                "ORDER BY distance DESC, keys.id",
                (first, first, last),
            ):
                if type(value) in (str, bytes):  # isinstance would be a seventh of the reading
                    size += len(value)
                if value != DELETED:
                    rows.setdefault(time, {})[key] = decode(value)
                elif time in rows:
                    rows[time].pop(key, None)
        if size > _BYTES_AT_ONCE:
            self._rows_at_once = max(self._rows_at_once // 2, 1)
        elif size < _BYTES_AT_ONCE // 4:
            self._rows_at_once = min(self._rows_at_once * 2, TIMES_AT_ONCE)
        return {time: rows[time] for time in sorted(rows) if rows[time]}

    def next_rows(self, first: int, last: int) -> tuple[int, dict[int, dict[str, Any]]]:
        """Read what can be read in one go of a range, and tell up to which time that is."""
        for begin, _ in self.ranges(first, last):
            end = min(begin + self._rows_at_once - 1, last)
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

    def series(self, key: str) -> list[Part]:
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

    def _keys_of_line(self, connection: sqlite3.Connection, since: str = "0") -> str:
        """Give SQL for the keys of each run of which any time from `since` on counts.

        A seek for each key, where DISTINCT would read all the records.
        """
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
            "(SELECT MIN(key) FROM stored_entries WHERE run = line.run) FROM line "
            f"WHERE last_time >= {since} UNION ALL "
            "SELECT run, last_time, distance, (SELECT MIN(key) FROM stored_entries "
            "WHERE run = line_keys.run AND key > line_keys.key) "
            "FROM line_keys WHERE key IS NOT NULL)"
        )


def _unknown_run(connection: sqlite3.Connection, run: str, database: Path) -> UnknownRunError:
    latest = connection.execute("SELECT run FROM runs ORDER BY id DESC LIMIT 3").fetchall()
    return UnknownRunError(
        f"{database} has no run {run!r}; expected the id of one of its runs (the latest: "
        f"{', '.join(name for (name,) in latest) or 'none'}); "
        "SELECT run, started_at FROM runs lists them"
    )


def _read_series(connection: sqlite3.Connection, run: str, key_id: int, last_time: int) -> Part:
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
    if lowest == highest and lowest in ("integer", "real") and count == not_null:
        # By far the most usual, and half as long when no tuple outlives its row.
        kind = "i8" if lowest == "integer" else "f8"
        array = np.fromiter(pairs, dtype=[("time", "i8"), ("value", kind)], count=count)
        return array["time"].copy(), array["value"].copy()
    found = pairs.fetchall()
    values = [value if value == DELETED else decode(value) for _, value in found]
    return [time for time, _ in found], values


def _read_head(connection: sqlite3.Connection, run: str, database: Path) -> Head:
    # One transaction, so that a run which is being written is seen at one of its boundaries.
    connection.execute("BEGIN")
    lineage = connection.execute(LINEAGE, (run,)).fetchall()
    if not lineage:
        raise _unknown_run(connection, run, database)
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
