"""The training log that persists in SQLite."""

import asyncio
import uuid as uuid_module
import warnings
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, Self

from aloop.config import config
from aloop.errors import JournalError, is_other
from aloop.forks import tell_after_fork
from aloop.log.base import TrainingLog
from aloop.log.carried import put_on_top
from aloop.log.files import as_path, refuse_missing
from aloop.log.groups import Group, Writer, not_written
from aloop.log.journal import MEMORY, Journal
from aloop.log.loop_lock import LoopLock
from aloop.log.readers import Readers
from aloop.log.reading import History
from aloop.log.records import Changes
from aloop.log.rows import Rows
from aloop.log.values import DELETED
from aloop.log.window import WindowedRows

__all__ = ["SQLiteLog"]

CANCELLED_CLOSE_S: Final = 1.0
"""How long a close that is cancelled waits for what is being written."""


class SQLiteLog(TrainingLog):
    """A training log whose records are kept in a SQLite file.

    Reads and writes are those of `TrainingLog`: in memory and synchronous. What the run commits
    is written by a task of its own, in transactions of whole boundaries, at most 20 ms later.
    Memory keeps the newest rows; older ones are read back from the file when they are asked for.
    The run opens and closes the log by itself; elsewhere use ``async with log:``. After the run
    it can still be read. The tables are described in the documentation's page on the log.

    Parameters:
        database: path of the file, created when missing, or ``":memory:"``; the setting
            `sqlite_database` by default. Many logs, of many processes, can share a file.
        uuid: the id of a run in the file, whose records become those of this log when it is
            opened; a new run by default.
        durability: ``"normal"``: a power cut can take what was written since the last barrier (the
            end of an epoch or of the run, a `flush`); ``"full"``: every commit is a barrier. The
            end of the process, even by ``kill -9``, takes nothing that was written either way.
        if_in_use: what opening does while another process, or another event loop, writes to the
            file: ``"wait"``: both write, and each waits for the other's transactions; ``"refuse"``:
            raise `LogInUseError`.

    Opening raises `LogFileError` for a file that is not a log, `UnknownRunError` for an id that
    is not in it. When the file cannot be written, `JournalError` is raised at the next commit
    point, and by `flush` and `close`; the records are then still in memory.

    In a process that was forked from the log's own, the log goes on as a run of its own, which is
    resumed from the one before.
    """

    def __init__(
        self,
        database: str | Path | None = None,
        uuid: "uuid_module.UUID | str | None" = None,
        *,
        durability: Literal["normal", "full"] = "normal",
        if_in_use: Literal["wait", "refuse"] = "wait",
    ) -> None:
        self._is_durable = is_other("durability", durability, "normal", "full")
        self._refuses_others = is_other("if_in_use", if_in_use, "wait", "refuse")
        name = config.sqlite_database if database is None else database
        self.database: str | Path = MEMORY if str(name) == MEMORY else as_path(name)
        self._unwritten = Changes()
        super().__init__(uuid)
        self._written_sequence = 0
        # Whether a run was asked for, and not read yet; a new one starts when it is first opened.
        self._unread = self._rows.is_unread = uuid is not None
        self._started = False
        self._writer = Writer()
        # The count of iterations at the last commit point, until it is handed over.
        self._iterations_done: int | None = None
        self._has_written = False  # since it was opened
        self._failure: Exception | None = None  # of the last attempt to write
        self._is_noted = False  # whether the journal knows that there is something committed
        self._journal: Journal | None = None
        self._holders = 0  # how many have opened the log and not closed it
        self._opening = LoopLock()  # or closing
        self._inherited = 0  # how many records are another process's to write, after a fork
        tell_after_fork(self)

    def _note_changes(self) -> Changes:
        return self._unwritten

    def _make_rows(self) -> Rows:
        if self.database == MEMORY:
            return Rows(self._unwritten)  # for which there is no second connection
        history = History.new(Readers(Path(self.database)), self.h_uuid)
        return WindowedRows(self._unwritten, history)

    @property
    def is_open(self) -> bool:
        """True while the log has its file open."""
        return self._live_journal() is not None

    async def open(self) -> Self:
        """Open the file, and read the run that was asked for by `uuid`.

        Each `open` is to be answered by a `close`; the last one closes the file.
        """
        async with self._opening.held():
            if self._live_journal() is None:
                if self._unread:
                    refuse_missing(self.database, self.h_uuid)
                journal = await Journal.acquire(self.database, alone=self._refuses_others)
                try:
                    if self._unread:
                        await self._read(journal)
                except BaseException:
                    await journal.release()
                    raise
                self._start_run_if_new()
                self._journal = journal
                self._rows.read_over(journal.readers)
            if not self._holders:
                self._has_ended = False
            self._holders += 1
        return self

    async def close(self) -> None:
        """Write what is left, and close the file if it was opened no more often than closed.

        Reading goes on. A run that uses the log keeps it open.
        """
        async with self._opening.held():
            journal = self._live_journal()
            held_by_run = 1 if self._in_session else 0
            if self._holders <= held_by_run:
                return
            if journal is None:  # its task was cancelled, with all others perhaps
                journal = self._journal = await Journal.acquire(self.database)
            # In an event loop that ends nobody would close the journal that was just made.
            self._holders = 0 if journal.is_ending else self._holders - 1
            if not self._holders:
                self._end()
            within_s = None
            try:
                await self._write(journal)
            except asyncio.CancelledError:
                within_s = CANCELLED_CLOSE_S  # the journal goes on by itself
                raise
            finally:
                if not self._holders:
                    self._leave(journal)
                    await journal.release(within_s)

    def _leave(self, journal: Journal) -> None:
        """Let go of the journal; what has left memory is read over connections of the log's own."""
        self._journal = None
        self._is_noted = self._has_written = False
        if self.database == MEMORY:  # the next one is another, where the run starts anew
            self._started, self._writer = False, Writer()
        journal.backlog.forget(self)
        self._rows.read_over(Readers(journal.readers.database))

    async def flush(self) -> None:
        """Wait until what was written up to the last commit point is on the disk.

        Outside a run everything written so far counts, and a log that is closed is opened for
        it. Raises `JournalError` if the file could not be written; another `flush` tries again.
        """
        journal = self._live_journal()
        if journal is not None:
            await self._write(journal)
        elif any(self._unwritten.unwritten()) or self._unread:
            async with self:  # which writes everything when it closes
                pass

    async def keep_up(self) -> None:
        """Wait while so much is to be written that memory would fill up.

        Raises `JournalError` if the file could not be written.
        """
        journal = self._live_journal()
        if journal is None:
            return
        self._count(journal)
        if journal.backlog.is_full:
            await journal.make_room(self)
            if self._failure is not None:
                raise not_written(self.database, self._failure) from self._failure

    def _count(self, journal: Journal) -> None:
        """Tell the journal how much is to be written; what failed does not hold up others."""
        changes = self._unwritten
        if self._failure is None:
            journal.backlog.count(self, changes.due_records, changes.due_bytes)
        else:
            journal.backlog.count(self, 0, 0)

    async def _write(self, journal: Journal) -> None:
        # A log that was opened only to be read leaves its run as it is.
        if not self._in_session and (self._unwritten or self._has_written):
            self._mark()
        await journal.write(self)
        if self._failure is not None:
            raise not_written(self.database, self._failure) from self._failure

    def _live_journal(self) -> Journal | None:
        """Give the journal, unless there is none or it ended with its task or its event loop."""
        if self._journal is not None and not self._journal.is_usable:
            if self._journal.is_abandoned:
                self._holders = 0  # nobody of that event loop is there to close it
            self._journal = None
            self._is_noted = False
        return self._journal

    def _start_run_if_new(self) -> None:
        """Put the start of the run before all changes, so that it is written first."""
        if not self._started:
            self._started = True
            self._unwritten.put_first(self._run_start(None, None))

    def commit(self, *, durable: bool = False) -> None:
        """Mark a commit point; see `TrainingLog.commit`.

        Raises `JournalError` if what an earlier commit point marked could not be written.
        """
        self._mark()
        # The journal has to be told only once for all that it takes at one time.
        if durable or not self._is_noted:
            self._tell_journal(durable=durable)

    def write_late(self, change: Callable[[], object]) -> None:
        """Make a change from beside the training; see `TrainingLog.write_late`."""
        is_between = len(self._unwritten) == self._unwritten.marked
        super().write_late(change)
        if is_between:
            self._unwritten.mark()  # but not how far the run is, which its boundaries say
            if not self._is_noted:
                self._tell_journal(durable=False)

    def _tell_journal(self, *, durable: bool) -> None:
        if self._failure is not None:
            raise not_written(self.database, self._failure) from self._failure
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
        self._rows.fork(self.h_uuid, self._forks[-1])

    def columns(self) -> dict[str, Any] | None:
        """Give all rows of a database in memory; None for a file, which has them."""
        return super().columns() if self.database == MEMORY else None

    async def recall(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """Check that this log can go on from a state; see `TrainingLog.recall`."""
        journal = self._live_journal()
        assert journal is not None, "a log is recalled by the run that has it open"
        if self.database == MEMORY:
            return await super().recall(state)
        history = History.new(journal.readers, state["run"])
        if state["rows"] is None:
            history = await asyncio.to_thread(History.reaching, journal.readers, state)
        return partial(self._go_on_from, state, partial(self._look_back, history))

    def _look_back(self, history: History) -> None:
        """Forget the run that has begun, and look for what counts in the file."""
        assert isinstance(self._rows, WindowedRows), "a database in memory has no run in a file"
        self._unwritten.drop()
        self._started, self._unread = True, False
        self._rows.look_in(history)

    def forget_beginning(self) -> None:
        """Leave no trace of a run that was refused when it started, and is not in the file."""
        super().forget_beginning()
        if self._writer.run_id is None and self.database != MEMORY:
            self._unwritten.drop()
            self._started = False

    @asynccontextmanager
    async def session(self) -> AsyncGenerator[None]:
        """Hold the log for one run, open."""
        await self.open()
        journal = self._journal
        assert journal is not None
        journal.begin_run()
        self._failure = None  # of an earlier run; the next attempt may succeed
        try:
            async with super().session():
                yield
        finally:
            try:
                await self.close()
            finally:
                journal.end_run()

    def take_group(self) -> Group | None:
        """Hand over what is committed and not yet written; the journal calls this."""
        self._is_noted = False
        if not self._unwritten.marked and self.sequence == self._written_sequence:
            return None
        iterations_done, self._iterations_done = self._iterations_done, None
        self._has_written = True
        self._written_sequence = self.sequence
        return Group(
            self._writer,
            self._unwritten.take(),
            iterations_done,
            self.sequence,
            durable=self._is_durable,
            has_ended=self._has_ended,
        )

    def settle(self, group: Group) -> None:
        """Hear that a group was written, or take it back; the journal calls this."""
        self._failure = group.failure
        if group.failure is None:
            self._unwritten.settle()
            self._inherited = 0
        else:
            self._unwritten.put_back()
            if self._iterations_done is None:
                self._iterations_done = group.iterations_done
            self._written_sequence = -1
            self._is_noted = False
        if self._journal is not None:
            self._count(self._journal)
            if isinstance(self._rows, WindowedRows):
                self._rows.trim(self._journal.users)

    def has_failed(self) -> bool:
        """Say whether the last attempt to write failed; the journal calls this."""
        return self._failure is not None

    def _mark(self) -> None:
        self.sequence += 1
        self._unwritten.mark()
        self._iterations_done = self.status.get("iterations_done")
        if self._following:
            self._followers.wake()

    async def _read(self, journal: Journal) -> None:
        """Take over the run from the file; what was written before the opening wins."""
        assert isinstance(self._rows, WindowedRows), "a database in memory has no run to be read"
        history, head = await asyncio.to_thread(History.of, journal.readers, self.h_uuid)
        self._iterations_done = None  # a commit point before the reading counted nothing yet
        self._unread, self._started = False, True
        self._writer.run_id, self._writer.run = head.run_id, head.run
        self.sequence = self._written_sequence = head.sequence
        self.name, self.hyperparameters = head.name, head.hyperparameters
        gone = dict.fromkeys(self.status.keys() - head.status.keys(), DELETED)
        self.status.restore(gone | head.status)
        self._rows.look_in(history)
        put_on_top(self._unwritten, self.status, self._rows)

    def go_on_after_fork(self) -> None:
        """Become a log of this process, which was forked from the log's own.

        What was to be written there is written here as well, as records of a run of its own: the
        other process may not have come to it.
        """
        self._journal, self._opening, self._holders = None, LoopLock(), 0
        self._session = None
        self._is_noted = self._has_written = False
        self._failure, self._writer = None, Writer()
        self._unwritten.put_back()
        if self._started:
            changes = [change for change in self._unwritten.unwritten() if change[0] >= 0]
            self._unwritten.drop()
            self.resume()
            for change in changes:
                if change[0] <= self._forks[-1]:
                    self._unwritten.extend(change)
        elif not self._unread and isinstance(self._rows, WindowedRows):
            self.uuid = uuid_module.uuid4()
            self._rows.history = History.new(self._rows.history.readers, self.h_uuid)
        self._inherited = self._unwritten.unwritten_records()

    def __del__(self) -> None:
        inherited: int | None = getattr(self, "_inherited", None)  # None if it was refused
        if inherited is not None and (lost := self._unwritten.unwritten_records() - inherited) > 0:
            warnings.warn(
                f"{lost} records written to the log {self.database} outside a run were never "
                "saved; await log.flush() after the last of them",
                ResourceWarning,
                stacklevel=1,
                source=self,
            )
