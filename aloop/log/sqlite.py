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
from aloop.log.base import STATUS, Change, RunStart, TrainingLog
from aloop.log.connection import Group, Writer
from aloop.log.journal import MEMORY, Journal
from aloop.log.reading import load_run

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
        self.sequence = 0
        """The number of commit points so far, in all sittings of this run."""
        self._written_sequence = 0
        # A run that was asked for is read when the log is first opened. A new one starts then,
        # so that its start tells what its status and name are by that time.
        self._unread = uuid is not None
        self._started = False
        self._writer = Writer()
        self._committed = 0  # how many of the pending changes are behind a commit point
        self._is_noted = False  # whether the journal knows that there is something committed
        self._journal: Journal | None = None
        self._opening = asyncio.Lock()

    def _make_pending(self) -> list[Change] | None:
        return []

    @property
    def _changes(self) -> list[Change]:
        assert self._pending is not None
        return self._pending

    @property
    def is_open(self) -> bool:
        """True while the log has its file open."""
        return self._journal is not None

    async def open(self) -> Self:
        """Open the file, unless it is open, and read the run that was asked for by `uuid`."""
        async with self._opening:
            if self._journal is None:
                journal = await Journal.acquire(self.database)
                try:
                    if self._unread:
                        await self._read()
                except BaseException:
                    await journal.release()
                    raise
                if not self._started:
                    self._started = True
                    self._changes.insert(0, self._run_start(None, None))
                    self._committed += bool(self._committed)
                self._journal = journal
        return self

    async def close(self) -> None:
        """Write what is left and close the file, unless it is closed; reading goes on."""
        async with self._opening:
            if self._journal is None:
                return
            journal = self._journal
            if not self._in_session:
                self._mark()
            journal.notify(self)
            try:
                await journal.flush()
            finally:
                self._journal = None
                await journal.release()

    async def flush(self) -> None:
        """Wait until what was written up to the last commit point is on the disk.

        Outside a run everything written so far counts, and a log that is closed is opened for
        it. Raises `JournalError` if the file could not be written; another `flush` tries again.
        """
        if self._journal is None:
            if self._changes or self._unread:
                async with self:  # which writes everything when it closes
                    pass
            return
        if not self._in_session:
            self._mark()
        self._journal.notify(self)
        await self._journal.flush()

    def commit(self, *, durable: bool = False) -> None:
        """Mark a commit point; see `TrainingLog.commit`.

        Raises `JournalError` if what an earlier commit point marked could not be written.
        """
        self._mark()
        # The journal has to be told once for all that it takes at one time.
        if self._journal is not None and (durable or not self._is_noted):
            if self._journal.failure is not None:
                raise self._journal.failure
            self._journal.notify(self, durable=durable)
            self._is_noted = True

    def resume(self) -> None:
        """Go on under a new id; see `TrainingLog.resume`."""
        if self._unread:
            raise JournalError(
                f"the log of run {self.h_uuid} was to be resumed before it was read from "
                f"{self.database}; open it first: async with log:"
            )
        super().resume()

    @asynccontextmanager
    async def session(self) -> AsyncGenerator[None]:
        """Hold the log for one run, opening it for as long unless it is open already."""
        was_open = self.is_open
        await self.open()
        try:
            async with super().session():
                yield
        finally:
            await (self.flush() if was_open else self.close())

    def take_group(self) -> Group | None:
        """Hand over what is committed and not yet written; the journal calls this."""
        self._is_noted = False
        if not self._committed and self.sequence == self._written_sequence:
            return None
        changes = self._changes[: self._committed]
        # In place: rows and status append to this very list.
        del self._changes[: self._committed]
        self._committed = 0
        self._written_sequence = self.sequence
        return Group(self._writer, changes, self.sequence)

    def put_back(self, group: Group) -> None:
        """Take back a group that could not be written; the journal calls this."""
        self._changes[:0] = group.changes
        self._committed += len(group.changes)
        self._written_sequence = -1
        self._is_noted = False

    def _mark(self) -> None:
        self.sequence += 1
        self._committed = len(self._changes)

    async def _read(self) -> None:
        """Fill rows and status from the file; what was written before the opening wins."""
        if isinstance(self.database, str):
            raise UnknownRunError(
                f"the log has no run {self.h_uuid!r}: a {MEMORY} database is empty when it is "
                "opened; leave uuid out, or give the path of a file"
            )
        loaded = await asyncio.to_thread(load_run, self.database, self.h_uuid)
        self._unread, self._started = False, True
        self._writer.run_id = loaded.run_id
        self.sequence = self._written_sequence = loaded.sequence
        self.name, self.hyperparameters = loaded.name, loaded.hyperparameters
        self.status.restore(loaded.status)
        for time, records in loaded.rows.items():
            self[time].restore(records)
        for change in self._changes:
            assert not isinstance(change, RunStart), "an unread log cannot be resumed"
            time, key, value = change
            records = self.status if time == STATUS else self[time]
            records.restore({key: value})

    def __del__(self) -> None:
        changes = getattr(self, "_pending", None) or ()
        lost = sum(1 for c in changes if not isinstance(c, RunStart) and c[0] != STATUS)
        if lost:
            warnings.warn(
                f"{lost} records written to the log {self.database} outside a run were never "
                "saved; await log.flush() after the last of them",
                ResourceWarning,
                stacklevel=1,
                source=self,
            )
