"""The SQL of the log, run on the connection's own thread.

`LogConnection` is given to aiosqlite as the connection factory. Handing over a whole group and
writing it in `commit` makes a group one call on that thread, where a call per statement would be
a hop each, and ``executemany`` would let go of the interpreter lock once per row and crawl beside
a busy main thread.
"""

import sqlite3
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, islice
from time import monotonic, sleep
from typing import Any, Final

from aloop.errors import LogFileError
from aloop.log.records import RUN_START, STATUS, Change, RunStart
from aloop.log.schema import APPLICATION_ID, CREATE, SCHEMA_VERSION
from aloop.log.values import encode, encode_json

__all__ = ["BUSY_TIMEOUT_S", "Group", "LogConnection", "Writer"]

BUSY_TIMEOUT_S: Final = 10.0
"""How long a write waits for a connection of another process or event loop to finish its own."""

# Of four values each, well under SQLite's limit of 32,766 variables. The fewer statements, the
# less often this thread has to wait for the interpreter lock beside a busy event loop.
_ROWS_A_STATEMENT: Final = 4096


@dataclass(slots=True)
class Writer:
    """Where a log's records go: its run in the file, once it is there."""

    run_id: int | None = None
    run: str | None = None


@dataclass(slots=True)
class Group:
    """What one log has to write, all of it or nothing."""

    writer: Writer
    changes: list[Change]
    sequence: int
    failure: Exception | None = None


class LogConnection(sqlite3.Connection):
    """A connection that writes groups of changes in `commit`, used on one thread only."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Set by the event loop's thread before it asks for a commit, one commit at a time.
        self.groups: list[Group] = []
        self.durable = False
        # What came of the last commit; kept here because its awaiter may have been cancelled.
        self.failure: Exception | None = None
        self._key_ids: dict[str, int] = {}
        self._is_full = False
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> None:
        """Check that the file is a log, or make it one."""
        with self._transaction("DEFERRED"):
            version = self._checked_version()
        self._use_wal()
        self.execute("PRAGMA synchronous = NORMAL")
        if version:
            return
        with self._transaction():
            # Another process may have been faster.
            if not self._checked_version():
                for statement in CREATE:
                    self.execute(statement)
                self.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                self.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _use_wal(self) -> None:
        """Keep the journal in a file of its own, so that readers and the writer do not wait."""
        deadline = monotonic() + BUSY_TIMEOUT_S
        while self.execute("PRAGMA journal_mode").fetchone() != ("wal",):
            try:
                self.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError:
                # The switch is not waited for by SQLite while another connection makes the file.
                if monotonic() > deadline:
                    raise
                sleep(0.005)

    def commit(self) -> None:
        """Write the groups in one transaction.

        `failure` tells whether that failed as a whole; a group that alone cannot be written is
        left out, and its own `failure` tells why.
        """
        self.failure = None
        written: list[tuple[Group, int, str]] = []
        try:
            self._set_full(self.durable)
            with self._transaction():
                for group in self.groups:
                    with self._savepoint(group):
                        written.append((group, *self._write_group(group)))
                if self.durable:
                    self.execute("UPDATE barriers SET number = number + 1")
        except Exception as error:  # noqa: BLE001 - kept for the journal to report
            self._key_ids.clear()  # those that were new in this transaction are gone with it
            self.failure = error
            return
        for group, run_id, run in written:
            group.writer.run_id, group.writer.run = run_id, run

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

    def _checked_version(self) -> int:
        try:
            (application_id,) = self.execute("PRAGMA application_id").fetchone()
            (version,) = self.execute("PRAGMA user_version").fetchone()
            (tables,) = self.execute("SELECT COUNT(*) FROM sqlite_schema").fetchone()
        except sqlite3.DatabaseError as error:
            if "not a database" not in str(error):
                raise
            raise LogFileError(
                f"{self._file_name()} is not a SQLite database; expected a log or no file at "
                "all; choose another path"
            ) from error
        if application_id == APPLICATION_ID and version <= SCHEMA_VERSION:
            return version
        if application_id == APPLICATION_ID:
            raise LogFileError(
                f"{self._file_name()} has schema version {version}; expected at most "
                f"{SCHEMA_VERSION}; upgrade aloop to read it"
            )
        if tables or version:
            raise LogFileError(
                f"{self._file_name()} is a database of another program (application id "
                f"{application_id}); expected a log or no file at all; choose another path"
            )
        return 0

    def _file_name(self) -> str:
        return self.execute("PRAGMA database_list").fetchone()[2] or ":memory:"

    def _set_full(self, is_full: bool) -> None:
        if is_full != self._is_full:
            self.execute(f"PRAGMA synchronous = {'FULL' if is_full else 'NORMAL'}")
            self._is_full = is_full

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
        for at in [at for at, (time, _, _) in enumerate(changes) if time == RUN_START]:
            self._write(run_id, changes[done:at])
            start: RunStart = changes[at][2]
            if run_id is not None:
                self._end_run(run_id, start)
            run_id, run, done = self._start_run(start), start.run, at + 1
            self._write(run_id, [(STATUS, key, value) for key, value in start.status.items()])
        self._write(run_id, changes[done:])
        assert run_id is not None
        assert run is not None
        updated = self.execute(
            "UPDATE runs SET sequence = ? WHERE id = ? AND run = ?", (group.sequence, run_id, run)
        )
        if not updated.rowcount:
            raise LogFileError(
                f"{self._file_name()} no longer has the run {run}; expected the file that the log "
                "was opened with; it was deleted or replaced: put it back"
            )
        return run_id, run

    def _end_run(self, run_id: int, successor: RunStart) -> None:
        """Write how far a run came that another goes on from."""
        self._write(run_id, [(STATUS, "iterations_done", successor.forked_at)])
        self.execute("UPDATE runs SET sequence = ? WHERE id = ?", (successor.sequence, run_id))

    def _start_run(self, start: RunStart) -> int:
        hyperparameters = start.hyperparameters
        cursor = self.execute(
            "INSERT INTO runs (run, name, hyperparameters, started_at, resumed_from, forked_at, "
            "sequence) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                start.run,
                start.name,
                None if hyperparameters is None else encode_json(hyperparameters),
                datetime.now(UTC).isoformat(timespec="milliseconds"),
                start.resumed_from,
                start.forked_at,
                start.sequence,
            ),
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def _write(self, run_id: int | None, changes: list[Change]) -> None:
        """Write the changes that belong to one run."""
        if not changes:
            return
        assert run_id is not None, "the first change of a log starts its run"
        ids = self._key_ids
        # In the order in which they came first: rows are read back in the order of the ids.
        for key in dict.fromkeys([key for _, key, _ in changes]):
            if key not in ids:
                ids[key] = self._key_id(key)
        # Of a status many values may have come and gone since; the last is what counts.
        status = {key: value for time, key, value in changes if time == STATUS}
        self._insert(
            "stored_status (run, key, value)",
            [(run_id, ids[key], encode(value)) for key, value in status.items()],
        )
        self._insert(
            "stored_entries (run, key, time, value)",
            [
                # Nearly every record is a float that is stored as it is.
                (
                    run_id,
                    ids[key],
                    time,
                    value if type(value) is float and value == value else encode(value),
                )
                for time, key, value in changes
                if time != STATUS
            ],
        )

    def _insert(self, columns: str, rows: Sequence[tuple[Any, ...]]) -> None:
        for size, chunk in _chunks(rows):
            one = f"({', '.join('?' * len(chunk[0]))})"
            self.execute(
                f"REPLACE INTO {columns} VALUES {', '.join([one] * size)}",
                list(chain.from_iterable(chunk)),
            )

    def _key_id(self, key: str) -> int:
        """Give the id of a key, a new one if need be."""
        self.execute("INSERT OR IGNORE INTO keys (key) VALUES (?)", (key,))
        return self.execute("SELECT id FROM keys WHERE key = ?", (key,)).fetchone()[0]


def _chunks(rows: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, list[tuple[Any, ...]]]]:
    """Cut the rows into lengths that are powers of two, so that few statements are prepared."""
    iterator = iter(rows)
    left = len(rows)
    while left:
        size = min(_ROWS_A_STATEMENT, 1 << (left.bit_length() - 1))
        yield size, list(islice(iterator, size))
        left -= size
