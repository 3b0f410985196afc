"""The training log that persists in SQLite."""

import asyncio
import uuid as uuid_module
import warnings
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

from aloop.config import config
from aloop.errors import JournalError, UnknownRunError
from aloop.log.base import TrainingLog
from aloop.log.connection import Group, Writer
from aloop.log.journal import MEMORY, Journal
from aloop.log.reading import load_run
from aloop.log.records import RUN_START, STATUS, Change
from aloop.log.values import DELETED

__all__ = ["SQLiteLog"]


class SQLiteLog(TrainingLog):
    """A training log whose records are kept in a SQLite file.

    Reads and writes are those of `TrainingLog`: in memory and synchronous. What the run commits
    is written by a task of its own, in transactions of whole boundaries, at most 20 ms later.
    The run opens and closes the log by itself; elsewhere use ``async with log:``. After the run
    it can still be read. The tables are described in the documentation's page on the log.

    Parameters:
        database: path of the file, created when missing, or ``":memory:"``; the setting
            `sqlite_database` by default. Many logs, of many processes, can share a file.
        uuid: the id of a run in the file, whose records become those of this log when it is
            opened; a new run by default.

    Opening raises `LogFileError` for a file that is not a log, `UnknownRunError` for an id that
    is not in it. When the file cannot be written, `JournalError` is raised at the next commit
    point, and by `flush` and `close`; the records are then still in memory.
    """

    def __init__(
        self,
        database: str | Path | None = None,
        uuid: "uuid_module.UUID | str | None" = None,
    ) -> None:
        super().__init__(uuid)
        name = config.sqlite_database if database is None else database
        self.database: str | Path = (
            MEMORY if str(name) == MEMORY else Path(name).expanduser().absolute()
        )
        self._written_sequence = 0
        # A run that was asked for is read when the log is first opened. A new one starts then,
        # so that its start tells what its status and name are by that time.
        self._unread = uuid is not None
        self._started = False
        self._writer = Writer()
        # How many of the pending changes are behind a commit point, and the count of iterations
        # there, which is noted as no change; None once it was handed over.
        self._committed = 0
        self._iterations_done: int | None = None
        self._failure: Exception | None = None  # of the last attempt to write
        self._is_noted = False  # whether the journal knows that there is something committed
        self._journal: Journal | None = None
        self._holders = 0  # how many have opened the log and not closed it
        self._opening: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None

    def _make_pending(self) -> list[Change] | None:
        return []

    @property
    def _changes(self) -> list[Change]:
        assert self._pending is not None
        return self._pending

    @property
    def is_open(self) -> bool:
        """True while the log has its file open."""
        return self._live_journal() is not None

    async def open(self) -> Self:
        """Open the file, and read the run that was asked for by `uuid`.

        Each `open` is to be answered by a `close`; the last one closes the file.
        """
        async with self._lock():
            if self._live_journal() is None:
                self._refuse_missing_file()
                journal = await Journal.acquire(self.database)
                try:
                    if self._unread:
                        await self._read()
                except BaseException:
                    await journal.release()
                    raise
                self._start_run_if_new()
                self._journal = journal
            self._holders += 1
        return self

    async def close(self) -> None:
        """Write what is left, and close the file if it was opened no more often than closed.

        Reading goes on from memory. A run that uses the log keeps it open.
        """
        async with self._lock():
            journal = self._live_journal()
            held_by_run = 1 if self._in_session else 0
            if self._holders <= held_by_run:
                return
            if journal is None:  # its task was cancelled, with all others perhaps
                journal = self._journal = await Journal.acquire(self.database)
            self._holders -= 1
            try:
                await self._write(journal)
            finally:
                if not self._holders:
                    self._journal = None
                    await journal.release()

    async def flush(self) -> None:
        """Wait until what was written up to the last commit point is on the disk.

        Outside a run everything written so far counts, and a log that is closed is opened for
        it. Raises `JournalError` if the file could not be written; another `flush` tries again.
        """
        journal = self._live_journal()
        if journal is not None:
            await self._write(journal)
        elif self._changes or self._unread:
            async with self:  # which writes everything when it closes
                pass

    async def _write(self, journal: Journal) -> None:
        if not self._in_session:
            self._mark()
        await journal.write(self)
        if self._failure is not None:
            raise self._journal_error() from self._failure

    def _journal_error(self) -> JournalError:
        return JournalError(
            f"the log {self.database} could not be written: {self._failure}; nothing is lost yet, "
            "its records are in memory; make room or mend the file, then await log.flush()"
        )

    def _live_journal(self) -> Journal | None:
        """Give the journal, unless there is none or it ended with its task or its event loop."""
        if self._journal is not None and not self._journal.is_usable:
            if self._journal.is_abandoned:
                self._holders = 0  # nobody of that event loop is there to close it
            self._journal = None
            self._is_noted = False
        return self._journal

    def _lock(self) -> asyncio.Lock:
        """Give the lock for opening and closing; an asyncio lock belongs to one event loop."""
        loop = asyncio.get_running_loop()
        if self._opening is None or self._opening[0] is not loop:
            self._opening = loop, asyncio.Lock()
        return self._opening[1]

    def _start_run_if_new(self) -> None:
        """Put the start of the run before all changes, so that it is written first."""
        if not self._started:
            self._started = True
            self._changes.insert(0, self._run_start(None, None))
            self._committed += bool(self._committed)

    def commit(self, *, durable: bool = False) -> None:
        """Mark a commit point; see `TrainingLog.commit`.

        Raises `JournalError` if what an earlier commit point marked could not be written.
        """
        self._mark()
        # The journal has to be told once for all that it takes at one time.
        if durable or not self._is_noted:
            if self._failure is not None:
                raise self._journal_error() from self._failure
            journal = self._live_journal()
            if journal is not None:
                journal.notify(self, durable=durable)
                self._is_noted = True

    def resume(self) -> None:
        """Go on under a new id; see `TrainingLog.resume`."""
        if self._unread:
            raise JournalError(
                f"the log of run {self.h_uuid} was to be resumed before it was read from "
                f"{self.database}; open it first: async with log:"
            )
        self._start_run_if_new()
        super().resume()

    @asynccontextmanager
    async def session(self) -> AsyncGenerator[None]:
        """Hold the log for one run, open."""
        async with self, super().session():
            yield

    def take_group(self) -> Group | None:
        """Hand over what is committed and not yet written; the journal calls this."""
        self._is_noted = False
        if not self._committed and self.sequence == self._written_sequence:
            return None
        if self._iterations_done is not None:
            counted = (STATUS, "iterations_done", self._iterations_done)
            self._changes.insert(self._committed, counted)
            self._committed += 1
            self._iterations_done = None  # until the next commit point
        changes = self._changes[: self._committed]
        # In place: rows and status append to this very list.
        del self._changes[: self._committed]
        self._committed = 0
        self._written_sequence = self.sequence
        return Group(self._writer, changes, self.sequence)

    def settle(self, group: Group) -> None:
        """Take back a group that could not be written; the journal calls this."""
        self._failure = group.failure
        if group.failure is not None:
            self._changes[:0] = group.changes
            self._committed += len(group.changes)
            self._written_sequence = -1
            self._is_noted = False

    def _mark(self) -> None:
        self.sequence += 1
        self._committed = len(self._changes)
        self._iterations_done = self.status.get("iterations_done")

    def _refuse_missing_file(self) -> None:
        """Raise rather than make a file for a run that cannot be in it."""
        if self._unread and isinstance(self.database, Path) and not self.database.exists():
            raise UnknownRunError(
                f"the log has no run {self.h_uuid!r}, for there is no file {self.database}; "
                "expected the file the run was written to; correct the path, or leave uuid out"
            )

    async def _read(self) -> None:
        """Fill rows and status from the file; what was written before the opening wins."""
        if isinstance(self.database, str):
            raise UnknownRunError(
                f"the log has no run {self.h_uuid!r}: a {MEMORY} database is empty when it is "
                "opened; leave uuid out, or give the path of a file"
            )
        loaded = await asyncio.to_thread(load_run, self.database, self.h_uuid)
        self._iterations_done = None  # a commit point before the reading counted nothing yet
        self._unread, self._started = False, True
        self._writer.run_id, self._writer.run = loaded.run_id, self.h_uuid
        self.sequence = self._written_sequence = loaded.sequence
        self.name, self.hyperparameters = loaded.name, loaded.hyperparameters
        gone = dict.fromkeys(self.status.keys() - loaded.status.keys(), DELETED)
        self.status.restore(gone | loaded.status)
        for time, records in loaded.rows.items():
            self[time].restore(records)
        for change in self._changes:
            time, key, value = change
            assert time != RUN_START, "an unread log cannot be resumed"
            records = self.status if time == STATUS else self[time]
            records.restore({key: value})

    def __del__(self) -> None:
        changes = getattr(self, "_pending", None) or ()
        lost = sum(1 for time, _, _ in changes if time >= 0)
        if lost:
            warnings.warn(
                f"{lost} records written to the log {self.database} outside a run were never "
                "saved; await log.flush() after the last of them",
                ResourceWarning,
                stacklevel=1,
                source=self,
            )
