"""The thread that writes to a log's file, with the connection that is opened on it."""

import sqlite3
import threading
from pathlib import Path
from typing import Any

import aiosqlite

from aloop.errors import LogFileError
from aloop.faults import fault_point
from aloop.forks import at_work
from aloop.log.committing import Committer
from aloop.log.connection import LogConnection, is_busy, locked
from aloop.log.files import check_size, publish_new
from aloop.log.ownership import Ownership
from aloop.log.readers import BUSY_TIMEOUT_S

__all__ = ["WriterThread"]


class WriterThread:
    """Opens a file, made if need be, and commits to it, on a thread of its own.

    The thread is a daemon: at its exit the interpreter waits for others, but an event loop may be
    given up without ending the task that ends the thread.
    """

    def __init__(self, database: str, ownership: Ownership | None) -> None:
        self._database = database
        self._ownership = ownership  # None for a database in memory
        self._connection: aiosqlite.Connection | None = None
        self.thread: threading.Thread | None = None
        """None until it is at work."""
        self.committer: Committer | None = None
        """What writes the groups, once the file is open."""
        self._is_abandoned = False

    async def open(self) -> Committer:
        """Open the file, and give what takes the groups for `commit`.

        Raises `LogFileError` if the file is not a log or cannot be made one, `LogInUseError` if
        another program keeps it locked.
        """
        try:
            self._connection = self._make_connection()
            await self._connection
        except LogFileError:
            raise
        except Exception as error:
            raise self._refusal(error) from error
        assert self.committer is not None
        return self.committer

    async def commit(self) -> None:
        """Have the committer write its groups; its `failure` tells what came of it."""
        assert self._connection is not None
        await self._connection.commit()

    async def catch_up(self) -> None:
        """Wait until all that the thread was asked for before has ended."""
        assert self._connection is not None
        await self._connection.rollback()  # which does nothing, see `Committer`

    async def close(self) -> None:
        """Close the file, and tell the thread to end."""
        assert self._connection is not None
        await self._connection.close()

    def join(self) -> None:
        """Wait until the thread has ended, unless it was abandoned."""
        if self.thread is not None and not self._is_abandoned:
            self.thread.join()

    def abandon(self) -> None:
        """Let the thread end by itself; after a fork it is not there at all."""
        self._is_abandoned = True

    def _make_connection(self) -> aiosqlite.Connection:
        """Make the connection, and its thread as a daemon, which it is when it is made in one."""
        made: list[aiosqlite.Connection] = []

        def make() -> None:
            made.append(
                aiosqlite.connect(
                    self._database,
                    timeout=BUSY_TIMEOUT_S,
                    isolation_level=None,
                    check_same_thread=False,  # it is closed by whoever forks
                    factory=self._connect,
                )
            )

        maker = threading.Thread(target=make, daemon=True)
        maker.start()
        maker.join()
        return made[0]

    def _connect(self, *args: Any, **kwargs: Any) -> Any:  # what aiosqlite takes for a connection
        """Make the file and the connection, on its thread; keep it for handing over groups."""
        self.thread = threading.current_thread()
        with at_work():
            if self._ownership is not None:
                fault_point("log.opening")
                check_size(Path(self._database))
                publish_new(Path(self._database))
            self.committer = Committer(
                self._database,
                lambda: LogConnection(*args, ownership=self._ownership, **kwargs),
                self._ownership,
            )
        return self.committer

    def _refusal(self, error: Exception) -> LogFileError:
        """Make the error for a file that could not be opened."""
        if is_busy(error):
            return locked(self._database, BUSY_TIMEOUT_S)
        if isinstance(error, sqlite3.DatabaseError) and "malformed" in str(error):
            return LogFileError(
                f"the log {self._database} cannot be opened: {error}; expected an undamaged log; "
                "restore the file from a copy, or choose another path"
            )
        return LogFileError(
            f"the log {self._database} cannot be opened: {error}; expected a path in a directory "
            "that exists and can be written to"
        )
