"""The SQL of the log, run on a thread of its own.

Rows are written many to a statement: ``executemany`` lets go of the interpreter lock once per row
and crawls beside a busy main thread.
"""

import logging
import math
import sqlite3
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Final

from aloop.errors import LogFileError, LogInUseError
from aloop.faults import fault_point
from aloop.log.files import check_version, make_tables, network_file_system
from aloop.log.groups import Group
from aloop.log.ownership import Ownership, has_checkpoint_fault
from aloop.log.readers import BUSY_TIMEOUT_S
from aloop.log.records import EPOCH_END, RUN_START, STATUS, RunStart, each_change
from aloop.log.values import encode, encode_json

__all__ = ["WRITE_TIMEOUT_S", "LogConnection", "is_busy", "locked"]

WRITE_TIMEOUT_S: Final = 1.0
"""How long one attempt to write waits for a connection of another process to finish its own."""

_WAL_BYTES: Final = 64 << 20
"""What the write-ahead log is cut down to after readers have kept it from being moved."""

# Of four values each, well under SQLite's limit of 32,766 variables. The fewer statements, the
# less often this thread has to wait for the interpreter lock beside a busy event loop.
_ROWS_A_STATEMENT: Final = 4096

_NUMBERS: Final = frozenset({float, int})

_logger = logging.getLogger("aloop")


def is_busy(error: BaseException | None) -> bool:
    """Tell whether SQLite failed because another program has the file locked."""
    code = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def locked(database: str, waited_s: float) -> LogInUseError:
    """Make the error for a file that another program keeps locked."""
    return LogInUseError(
        f"another program has kept {database} locked for {waited_s:.0f} s; expected it to let go; "
        "end it, or wait until it is done"
    )


class LogConnection(sqlite3.Connection):
    """A connection that writes groups of changes."""

    def __init__(
        self, database: str, *args: Any, ownership: Ownership | None, **kwargs: Any
    ) -> None:
        super().__init__(database, *args, **kwargs)
        self._database = database
        self._ownership = ownership  # None for a database in memory
        self._key_ids: dict[str, int] = {}
        self._synchronous = ""
        self._is_rollback = False
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> None:
        """Check that the file is a log, and set how it is written."""
        if self._ownership is None:
            with self._transaction():
                make_tables(self)
            return
        with self._transaction("DEFERRED"):
            version = check_version(self, self._database)
        if not version:  # an empty database, made by another program
            with self._transaction():
                if not check_version(self, self._database):
                    make_tables(self)
        network = network_file_system(Path(self._database))
        self._use_journal("delete" if network else "wal")
        if network:
            _logger.warning(
                "the log %s is on a network file system (%s), where SQLite cannot share a "
                "write-ahead log: it is written with a rollback journal, more slowly, and readers "
                "can hold up the writer for a moment",
                self._database,
                network,
            )
        self._is_rollback = network is not None
        self._become_owner()
        self.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
        self.execute(f"PRAGMA busy_timeout = {int(WRITE_TIMEOUT_S * 1000)}")

    def _use_journal(self, mode: str) -> None:
        """Keep what is to be written in a file of its own, so that readers do not wait."""
        deadline = monotonic() + BUSY_TIMEOUT_S
        while self.execute("PRAGMA journal_mode").fetchone() != (mode,):
            try:
                self.execute(f"PRAGMA journal_mode = {mode}")
                return
            except sqlite3.OperationalError:
                # The switch is not waited for by SQLite while another connection makes the file.
                if monotonic() > deadline:
                    raise
                sleep(0.005)

    def _become_owner(self) -> None:
        """Make the checkpoints if nobody else does; see `aloop.log.ownership`."""
        assert self._ownership is not None
        if self._ownership.claim():
            self.execute("PRAGMA wal_autocheckpoint = 1000")
        elif has_checkpoint_fault():
            self.execute("PRAGMA wal_autocheckpoint = 0")

    def write(self, groups: list[Group], *, durable: bool) -> None:
        """Write the groups in one transaction, with `durable` one that is synced to the disk.

        Raises what that failed with as a whole; a group that alone cannot be written is left out,
        and its `failure` tells why.
        """
        written: list[tuple[Group, int, str]] = []
        try:
            if durable and self._ownership is not None and not self._ownership.is_mine:
                self._become_owner()  # the one before may be gone
            self._synchronise(durable or self._is_rollback)
            with self._transaction():
                fault_point("log.begun")
                for group in groups:
                    with self._savepoint(group):
                        written.append((group, *self._write_group(group)))
                if durable:
                    self.execute("UPDATE barriers SET number = number + 1")
                fault_point("log.written")
            fault_point("log.committed")
        except Exception:
            self._key_ids.clear()  # those that were new in this transaction are gone with it
            raise
        for group, run_id, run in written:
            group.writer.run_id, group.writer.run = run_id, run

    def checkpoint(self) -> None:
        """Move the write-ahead log into the file, while others that write wait."""
        # Not the passive kind, which others that write without a pause keep from its end.
        with suppress(sqlite3.OperationalError):
            self.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    @contextmanager
    def _savepoint(self, group: Group) -> Generator[None]:
        """Take back what the body wrote when it raises, and go on, if SQLite can."""
        self.execute("SAVEPOINT one_group")
        try:
            yield
        except Exception as error:
            self._key_ids.clear()
            if not self.in_transaction:
                raise  # a full disk, say, takes the whole transaction back
            self.execute("ROLLBACK TO one_group")
            group.failure = error
        self.execute("RELEASE one_group")

    def _synchronise(self, fully: bool) -> None:
        level = "FULL" if fully else "NORMAL"
        if level != self._synchronous:
            self.execute(f"PRAGMA synchronous = {level}")
            self._synchronous = level

    @contextmanager
    def _transaction(self, kind: str = "IMMEDIATE") -> Generator[None]:
        """Begin a transaction; commit it, or take it back when the body or the commit raises.

        By default it may write: one that asks for that later can be refused in its middle.
        """
        self.execute(f"BEGIN {kind}")
        try:
            yield
            self.execute("COMMIT")
        except BaseException:
            # SQLite takes some transactions back by itself, that of a full disk for example.
            if self.in_transaction:
                self.execute("ROLLBACK")
            raise

    def _write_group(self, group: Group) -> tuple[int, str]:
        """Write a group and give the id and name of the run that its log has afterwards."""
        run_id, run = group.writer.run_id, group.writer.run
        changes, done = group.changes, 0
        times = changes[::3]
        for _ in range(times.count(RUN_START)):
            at = 3 * times.index(RUN_START, done // 3)
            self._write(run_id, changes[done:at])
            start: RunStart = changes[at + 2]
            if run_id is not None:
                self._end_run(run_id, start)
            run_id, run, done = self._start_run(start), start.run, at + 3
            self._write_status(run_id, start.status)
        self._write(run_id, changes[done:] if done else changes)
        assert run_id is not None
        assert run is not None
        if group.iterations_done is not None:
            self._write_status(run_id, {"iterations_done": group.iterations_done})
        updated = self.execute(
            "UPDATE runs SET sequence = ?, ended_at = ? WHERE id = ? AND run = ?",
            (group.sequence, _now() if group.has_ended else None, run_id, run),
        )
        if not updated.rowcount:
            raise LogFileError(
                f"{self._database} no longer has the run {run}; expected the file that the log "
                "was opened with; it was deleted or replaced: put it back"
            )
        return run_id, run

    def _end_run(self, run_id: int, successor: RunStart) -> None:
        """Write how far a run came that another goes on from."""
        self._write_status(run_id, {"iterations_done": successor.forked_at})
        self.execute(
            "UPDATE runs SET sequence = ?, ended_at = COALESCE(ended_at, ?) WHERE id = ?",
            (successor.sequence, _now(), run_id),
        )

    def _start_run(self, start: RunStart) -> int:
        hyperparameters = start.hyperparameters
        cursor = self.execute(
            "INSERT INTO runs (run, name, hyperparameters, started_at, resumed_from, forked_at, "
            "sequence) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                start.run,
                start.name,
                None if hyperparameters is None else encode_json(hyperparameters),
                _now(),
                start.resumed_from,
                start.forked_at,
                start.sequence,
            ),
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def _write(self, run_id: int | None, changes: list[Any]) -> None:
        """Write the changes that belong to one run.

        Slices and maps, for the steps of a loop would take this thread longer than SQLite does,
        and the interpreter lock with it.
        """
        if not changes:
            return
        assert run_id is not None, "the first change of a log starts its run"
        if min(changes[::3]) < 0:
            records: list[Any] = []
            for change in each_change(changes):
                if change[0] >= 0:
                    records.extend(change)
            self._write_all_but_records(run_id, changes)
            changes = records
        times, keys, values = changes[::3], changes[1::3], changes[2::3]
        kinds = set(map(type, values))
        if not kinds <= _NUMBERS or math.isnan(sum(values)):
            values = [encode(value) for value in values]
        self._insert(
            "stored_entries (run, key, time, value)", run_id, self._ids(keys), times, values
        )

    def _write_all_but_records(self, run_id: int, changes: list[Any]) -> None:
        # Of a status many values may have come and gone since; the last is what counts.
        status: dict[str, Any] = {}
        epochs: list[tuple[int, int]] = []
        for time, key, value in each_change(changes):
            if time == EPOCH_END:
                epochs.append(value)
            elif time == STATUS:
                status[key] = value
                if key == "_epoch_ends":  # assigned as a whole
                    epochs.clear()
        self._write_status(run_id, status)
        if "_epoch_ends" in status:
            self.execute("DELETE FROM stored_epochs WHERE run = ?", (run_id,))
        numbers, times = [number for number, _ in epochs], [time for _, time in epochs]
        self._insert("stored_epochs (run, epoch, time)", run_id, numbers, times)

    def _write_status(self, run_id: int, status: Mapping[str, Any]) -> None:
        values = [encode(value) for value in status.values()]
        self._insert("stored_status (run, key, value)", run_id, self._ids(list(status)), values)

    def _insert(self, table: str, run_id: int, *columns: list[Any]) -> None:
        """Write rows, given by columns without the first, which is the run."""
        width = 1 + len(columns)
        row = f"({', '.join('?' * width)})"
        for begin, size in _chunks(len(columns[0])):
            parameters = [run_id] * (width * size)
            for place, column in enumerate(columns, 1):
                parameters[place::width] = column[begin : begin + size]
            self.execute(f"REPLACE INTO {table} VALUES {', '.join([row] * size)}", parameters)

    def _ids(self, keys: list[str]) -> list[int]:
        """Give the ids of keys, new ones if need be."""
        ids = self._key_ids
        # In the order in which they came first: rows are read back in the order of the ids.
        for key in dict.fromkeys(keys):
            if key not in ids:
                ids[key] = self._key_id(key)
        return list(map(ids.__getitem__, keys))

    def _key_id(self, key: str) -> int:
        """Give the id of a key, a new one if need be."""
        self.execute("INSERT OR IGNORE INTO keys (key) VALUES (?)", (key,))
        return self.execute("SELECT id FROM keys WHERE key = ?", (key,)).fetchone()[0]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _chunks(rows: int) -> Iterator[tuple[int, int]]:
    """Cut so many rows into lengths that are powers of two, so that few statements are prepared."""
    begin = 0
    while begin < rows:
        size = min(_ROWS_A_STATEMENT, 1 << ((rows - begin).bit_length() - 1))
        yield begin, size
        begin += size
