"""What aiosqlite takes for its connection: it commits what the logs hand over."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from aloop.errors import LogFileError
from aloop.forks import at_work, close_before_fork
from aloop.log.connection import LogConnection
from aloop.log.groups import Group
from aloop.log.ownership import Ownership

__all__ = ["Committer"]


class Committer:
    """Keeps a connection to the file, and lets it write groups in `commit`.

    Handing over whole groups and writing them in `commit` makes a transaction one call on the
    connection's thread, where a call per statement would be a hop each. The connection is closed
    while the process is forked (see `aloop.forks`), and opened again when it is needed.
    """

    def __init__(
        self,
        database: str,
        connect: Callable[[], LogConnection],
        ownership: Ownership | None,
    ) -> None:
        # Set by the event loop's thread before it asks for a commit, one commit at a time.
        self.groups: list[Group] = []
        self.durable = False
        self.wants_checkpoint = False
        # What came of the last commit; kept here because its awaiter may have been cancelled.
        self.failure: Exception | None = None
        self._database = database
        self._connect = connect
        self._ownership = ownership
        try:
            self._connection: LogConnection | None = connect()
        except BaseException:
            self._release()
            raise
        self._opened = _identity(database)
        if self._opened is not None:  # a database in memory would be gone
            close_before_fork(self)

    def commit(self) -> None:
        """Write the groups in one transaction.

        `failure` tells whether that failed as a whole; a group that alone cannot be written is
        left out, and its own `failure` tells why.
        """
        self.failure = None
        with at_work():
            try:
                self._check_identity()
                if self._connection is None:
                    self._connection = self._connect()
                self._connection.write(self.groups, durable=self.durable)
                if self.wants_checkpoint:
                    self._connection.checkpoint()
            except Exception as error:  # noqa: BLE001 - kept for the journal to report
                self.failure = error

    def rollback(self) -> None:
        """Do nothing; awaited to know that what was asked of the thread before has ended."""

    def suspend(self) -> None:
        """Close the connection until the next commit; see `aloop.forks`."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def close(self) -> None:
        """Close the connection for good, and leave the file to another owner."""
        with at_work():
            self.suspend()
        self._release()

    def _release(self) -> None:
        if self._ownership is not None:
            self._ownership.release()

    def _check_identity(self) -> None:
        """Fail when the path is no longer that of the open file: SQLite would not notice."""
        if self._opened is not None and _identity(self._database) != self._opened:
            raise LogFileError(
                f"{self._database} is no longer the file that the log was opened with; it was "
                "deleted, moved or replaced: put it back"
            )


def _identity(database: str) -> tuple[int, int] | None:
    """Tell files apart that have had the same path."""
    with suppress(OSError):
        found = Path(database).stat()
        return found.st_dev, found.st_ino
    return None
