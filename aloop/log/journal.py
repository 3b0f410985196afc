"""The journal: one writer task and one connection for each database file.

Logs hand over what is committed; the writer commits what has come together in 20 ms as one
transaction, in one call on the connection's thread. All logs of one event loop that write to the
same file share one journal. What cannot be written goes back to its log, which keeps it and raises.
"""

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import ClassVar, Final
from weakref import WeakSet

from aloop.errors import JournalError, LogInUseError
from aloop.faults import fault_point
from aloop.forks import tell_after_fork
from aloop.log.backlog import Backlog
from aloop.log.committing import Committer
from aloop.log.connection import is_busy, locked
from aloop.log.groups import Group, Source
from aloop.log.ownership import Ownership
from aloop.log.readers import BUSY_TIMEOUT_S, Readers
from aloop.log.thread import WriterThread
from aloop.log.wal import WALWatch
from aloop.tasks import create_hidden_task
from aloop.turns import thread_at_work

__all__ = ["GROUP_COMMIT_S", "MEMORY", "Journal"]

GROUP_COMMIT_S: Final = 0.02
"""How long a record waits at most for others to be committed together with it."""

CANCELLED_OPEN_S: Final = 1.0
"""How long the opening of a file holds up an event loop that is about to end."""

MEMORY: Final = ":memory:"
"""The name of a database that is nowhere but in memory."""

_logger = logging.getLogger("aloop")


class Journal:
    """Writes the changes of many logs into one database file."""

    _open: ClassVar[dict[tuple[str, asyncio.AbstractEventLoop], "Journal"]] = {}
    _ending_loops: ClassVar[WeakSet[asyncio.AbstractEventLoop]] = WeakSet()

    def __init__(self, database: str, key: tuple[str, asyncio.AbstractEventLoop] | None) -> None:
        self._database = database
        self._key = key
        self._users = 0
        self._loop = asyncio.get_running_loop()
        self._dirty: dict[Source, None] = {}  # a set that keeps its order
        self._waiters: list[asyncio.Future[None]] = []
        self._wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._want_durable = False
        self._want_checkpoint = False
        self._unsynced = False
        self._closing = False
        # Cancelled, or made where another journal was.
        self._is_cancelled = self._loop in self._ending_loops
        self._is_orphaned = False
        self._failed = False
        self._runs = 0  # those that will give it back whatever comes
        self.backlog = Backlog(database)
        """How much waits to be written."""
        self._room_waiters: list[asyncio.Future[None]] = []
        self._ownership = None if key is None else Ownership(Path(database))
        self.readers = Readers(Path(database))
        """Connections for reading the file, open as long as the journal is."""
        self._thread = WriterThread(database, self._ownership)
        self._wal_watch = WALWatch(Path(database), self._ownership, self._ask_for_checkpoint)
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._context = contextvars.Context()  # of its own: it outlives whoever came first
        self._task = self._loop.create_task(
            self._run(), name=f"aloop journal {database}", context=self._context
        )
        self._task.add_done_callback(self._on_end)
        tell_after_fork(self)

    @classmethod
    async def acquire(cls, database: str | Path, *, alone: bool = False) -> "Journal":
        """Give the journal of this file for the running event loop, opened.

        Each `acquire` is to be answered by one `release`. Raises `LogFileError` if the file is
        not a log or cannot be made one, with `alone` `LogInUseError` if another process or event
        loop writes to it.
        """
        while True:
            journal = await cls._find(str(database))
            try:
                await journal._join(alone)  # noqa: SLF001 - its own class
            except asyncio.CancelledError:
                task = asyncio.current_task()
                was_swept = journal._opened.cancelled()  # noqa: SLF001 - its own class
                if not was_swept or task is None or task.cancelling():
                    raise
                # Every task was cancelled, the journal's too, but not the one that needs it.
            else:
                return journal

    @classmethod
    async def _find(cls, database: str) -> "Journal":
        if database == MEMORY:
            return cls(MEMORY, None)  # each has its own
        key = (database, asyncio.get_running_loop())
        while (found := cls._open.get(key)) is not None and found._closing:  # noqa: SLF001 - its own class
            # What it has taken is written before anybody else writes to the file.
            await asyncio.wait([found._task])  # noqa: SLF001 - its own class
        journal = cls._open[key] = found or cls(database, key)
        return journal

    async def _join(self, alone: bool) -> None:
        self._users += 1
        try:
            # Shielded, because others may be waiting for the same opening.
            await asyncio.shield(self._opened)
            if alone:
                self._refuse_others()
        except BaseException:
            await self.release()
            raise

    def _refuse_others(self) -> None:
        if self._ownership is not None and not self._ownership.is_alone:
            holder = "others" if self._ownership.is_mine else self._ownership.holder()
            raise LogInUseError(
                f"{self._database} is being written by {holder}; expected to be its only writer, "
                "as if_in_use='refuse' asks for; wait for the other to end, "
                "choose another file, or share this one with if_in_use='wait'"
            )

    async def release(self, within_s: float | None = None) -> None:
        """Give the journal back; the last one out closes it, when everything is written.

        Waits for that, with `within_s` no longer than so many seconds.
        """
        self._users -= 1
        if self._users:
            return
        self._closing = True
        self._wake.set()
        # wait() leaves the task alone when the caller is cancelled: it goes on to the end.
        await asyncio.wait([self._task], timeout=within_s)

    def begin_run(self) -> None:
        """Say that a run writes here until it calls `end_run`."""
        self._runs += 1

    def end_run(self) -> None:
        """Say that a run has ended; in an event loop that ends, the last one ends the journal."""
        self._runs -= 1
        if self._is_cancelled and not self._runs:
            self._closing = True
            self._wake.set()

    def go_on_after_fork(self) -> None:
        """End at once: the thread and what it was to write are the parent's."""
        self._is_orphaned = self._closing = True
        if self._ownership is not None:
            self._ownership.abandon()
        self._thread.abandon()
        if self._key is not None and self._open.get(self._key) is self:
            del self._open[self._key]

    @property
    def is_usable(self) -> bool:
        """False once the writer ends or has ended, and in another event loop than its own."""
        return not (self._closing or self._task.done() or self.is_abandoned)

    @property
    def is_ending(self) -> bool:
        """True when its event loop is about to be closed, as far as a task can know."""
        return self._is_cancelled

    @property
    def is_abandoned(self) -> bool:
        """True when its event loop is closed, or is not the one that runs now."""
        if self._loop.is_closed():
            return True
        try:
            return asyncio.get_running_loop() is not self._loop
        except RuntimeError:
            return False  # the event loop is between two of its runs

    @property
    def users(self) -> int:
        """How many logs use it, the last one counts until it has left."""
        return max(self._users, 1)

    async def make_room(self, source: Source) -> None:
        """Wait until there is room in memory for more, or the log cannot be written."""
        self.backlog.say_so()
        while self.backlog.is_full and not source.has_failed() and self.is_usable:
            written: asyncio.Future[None] = self._loop.create_future()
            self._room_waiters.append(written)
            self._dirty[source] = None
            self._wake.set()
            await written

    def notify(self, source: Source, *, durable: bool = False) -> None:
        """Say that a log has something committed to write."""
        self._dirty[source] = None
        self._want_durable |= durable
        if self._timer is None:
            self._timer = self._loop.call_later(
                GROUP_COMMIT_S, self._wake.set, context=self._context
            )

    async def write(self, source: Source) -> None:
        """Wait until an attempt was made to bring what the log has committed to the disk.

        The log hears by its `settle` what came of it.
        """
        written: asyncio.Future[None] = self._loop.create_future()
        self._dirty[source] = None
        self._waiters.append(written)
        self._wake.set()
        await written

    async def _run(self) -> None:
        """Own the thread: have it open the file, write until told to close, end it."""
        try:
            with thread_at_work():
                committer = await self._open_file()
            try:
                self._opened.set_result(None)
                self._wal_watch.start()
                while not self._closing or self._dirty or self._waiters:
                    await self._wait()
                    await self._write(committer)
            except GeneratorExit:
                self._is_orphaned = True  # its event loop was closed, nothing can be awaited
                raise
            finally:
                if not self._is_orphaned:
                    self.readers.close()  # what reads keeps SQLite from tidying up
                    fault_point("log.closing")
                    with thread_at_work():
                        await self._thread.close()
                    fault_point("log.closed")
        except asyncio.CancelledError:
            # While it was opening: the thread may be waiting for a lock, and ends after that.
            self._thread.abandon()
            raise
        except GeneratorExit:
            self._thread.abandon()
            self._waiters, self._room_waiters = [], []  # with their event loop gone
            raise
        except Exception as error:  # noqa: BLE001 - it goes to those who open or wait
            self._fail(error)
        finally:
            self._closing = True
            self._wal_watch.stop()
            if self._timer is not None:
                self._timer.cancel()
            self._thread.join()  # it was told to end, and nothing is left for it to do
            self._settle_all(
                self._waiters,
                JournalError(
                    f"the journal of {self._database} ended while records were to be written; "
                    "they are in memory: await log.flush()"
                ),
            )
            self._settle_all(self._room_waiters)

    async def _open_file(self) -> Committer:
        """Have the thread open the file, when the event loop is about to end only for a moment."""
        opening = create_hidden_task(self._thread.open(), name=f"aloop opening {self._database}")
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            self._expect_the_end()
            ends_at = monotonic() + CANCELLED_OPEN_S
            while not opening.done() and (left_s := ends_at - monotonic()) > 0:
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([opening], timeout=left_s)
            if not opening.done():
                opening.cancel()
                raise
            return opening.result()

    def _on_end(self, task: asyncio.Task[None]) -> None:
        """Leave nobody waiting, though the task may have been cancelled before it began."""
        self._closing = True
        if self._key is not None and self._open.get(self._key) is self:
            del self._open[self._key]
        if not self._opened.done():
            self._opened.cancel()

    def _ask_for_checkpoint(self) -> None:
        self._want_checkpoint = self._want_durable = self._unsynced = True
        self._wake.set()

    async def _wait(self) -> None:
        if self._closing:
            return
        try:
            await self._wake.wait()
        except asyncio.CancelledError:
            # The event loop is about to be closed (asyncio.run cancels what is left at its end).
            # What was committed is written first; the task ends right after.
            self._expect_the_end()
        self._wake.clear()

    def _expect_the_end(self) -> None:
        if self._is_orphaned:
            raise asyncio.CancelledError  # nothing here is to be waited for
        self._is_cancelled = True
        self._ending_loops.add(self._loop)
        if not self._runs:  # a run comes to its end by itself, and has more to write
            self._closing = True

    async def _write(self, committer: Committer) -> None:
        """Commit what the logs hand over as one transaction, and tell them what came of it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        sources, self._dirty = self._dirty, {}
        waiters, self._waiters = self._waiters, []
        room_waiters, self._room_waiters = self._room_waiters, []
        taken = [(source, group) for source in sources if (group := source.take_group())]
        durable = self._want_durable or bool(waiters) or self._closing
        durable = durable or any(group.durable for _, group in taken)
        self._want_durable = False
        if taken or (durable and self._unsynced):
            fault_point("log.taken")
            committer.groups = [group for _, group in taken]
            committer.durable = durable
            committer.wants_checkpoint, self._want_checkpoint = self._want_checkpoint, False
            await self._commit(committer)
            self._unsynced = not durable or committer.failure is not None
            for source, group in taken:
                group.failure = committer.failure or group.failure
                source.settle(group)
            fault_point("log.settled")
            self._report([group for _, group in taken if group.failure is not None])
        self._settle_all(waiters)
        self._settle_all(room_waiters)

    async def _commit(self, committer: Committer) -> None:
        """Have it commit, again and again while another program locks the file."""
        begun, is_said = monotonic(), False
        while True:
            with thread_at_work():
                await self._call(self._thread.commit)
            waited_s = monotonic() - begun
            if not is_busy(committer.failure):
                return
            if self._is_cancelled and waited_s > BUSY_TIMEOUT_S:
                # The event loop is about to end; this cannot hold it up for ever.
                committer.failure = locked(self._database, waited_s)
                return
            if not is_said and waited_s > BUSY_TIMEOUT_S / 2:
                is_said = True
                _logger.warning(
                    "another program has kept %s locked for %.0f s; records wait in memory until "
                    "it lets go",
                    self._database,
                    waited_s,
                )

    async def _call(self, call: Callable[[], Awaitable[None]]) -> None:
        """Wait until a call has ended on the thread, through cancellation."""
        while True:
            try:
                await call()
                return
            except asyncio.CancelledError:
                # Cancelling the wait does not cancel the call. The thread takes one call after
                # another, so once this one has ended the first one has too.
                self._expect_the_end()
                call = self._thread.catch_up

    @staticmethod
    def _settle_all(waiters: list[asyncio.Future[None]], error: Exception | None = None) -> None:
        for waiter in waiters:
            if not waiter.done():  # its awaiter may have been cancelled
                if error is None:
                    waiter.set_result(None)
                else:
                    waiter.set_exception(error)

    def _report(self, failed: list[Group]) -> None:
        """Say it once when writing begins to fail."""
        if failed and not self._failed:
            _logger.error("the log %s could not be written: %s", self._database, failed[0].failure)
        self._failed = bool(failed)

    def _fail(self, error: Exception) -> None:
        """Report that the file could not be opened, or closed."""
        if self._opened.done():
            _logger.error("the log %s could not be closed: %s", self._database, error)
        else:
            self._opened.set_exception(error)
