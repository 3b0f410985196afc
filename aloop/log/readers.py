"""Connections for reading a log file, which cannot write and never hold up the writer."""

import os
import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from weakref import ref

from aloop.errors import LogFileError
from aloop.forks import at_work, close_before_fork
from aloop.log.files import check_size, check_version

__all__ = ["BUSY_TIMEOUT_S", "Readers"]

BUSY_TIMEOUT_S: Final = 10.0
"""How long opening and reading wait for what holds the whole file, such as a restored backup."""

_IDLE_CONNECTIONS: Final = 4
_IDLE_FILES: Final = 8


class _Snapshot(sqlite3.Connection):
    """A connection that would not notice if somebody wrote, and hence is used only once."""


class Readers:
    """Connections that can only read one log file, each lent to one thread at a time.

    Some stay open for the next use until `close`, as long as not too many other files are read.
    """

    def __init__(self, database: Path) -> None:
        self.database = database
        self._idle: list[sqlite3.Connection] = []
        close_before_fork(self)

    @contextmanager
    def connection(self) -> Generator[sqlite3.Connection]:
        """Lend a connection; what SQLite raises meanwhile becomes `LogFileError`."""
        with at_work():
            yield from self._lend()

    def _lend(self) -> Generator[sqlite3.Connection]:
        connection: sqlite3.Connection | None = None
        try:
            connection = self._idle.pop() if self._idle else self._open()
            yield connection
        except LogFileError:
            raise
        except (sqlite3.Error, OSError) as error:
            raise LogFileError(
                f"{self.database} cannot be read: {error}; expected an undamaged log that this "
                "process may read; restore the file from a copy, or look at its permissions"
            ) from error
        finally:
            if connection is not None:
                self._give_back(connection)

    def close(self) -> None:
        """Close the connections that are not lent."""
        with at_work():
            self.suspend()

    def suspend(self) -> None:
        """Do that while no other thread can lend one; see `aloop.forks`."""
        while self._idle:
            self._idle.pop().close()

    def _give_back(self, connection: sqlite3.Connection) -> None:
        if connection.in_transaction:
            connection.rollback()  # a read that does not end keeps the write-ahead log growing
        if len(self._idle) >= _IDLE_CONNECTIONS or isinstance(connection, _Snapshot):
            connection.close()
            return
        self._idle.append(connection)
        if _in_use[-1:] != [ref(self)]:
            _in_use[:] = [other for other in _in_use if other() not in (None, self)][-_IDLE_FILES:]
            _in_use.append(ref(self))
            if len(_in_use) > _IDLE_FILES and (oldest := _in_use[0]()) is not None:
                oldest.close()

    def _open(self) -> sqlite3.Connection:
        if not self.database.exists():
            raise LogFileError(
                f"there is no file {self.database}; expected the log that was written there; "
                "correct the path, or put the file back"
            )
        check_size(self.database)
        try:
            return self._connect("mode=ro")
        except sqlite3.OperationalError:
            # SQLite needs a file for what readers share, even to read. Where it cannot be made,
            # nobody writes at this moment, or it would be there.
            wal = self.database.with_name(f"{self.database.name}-wal")
            if os.access(self.database.parent, os.W_OK) or wal.exists():
                raise
            return self._connect("mode=ro&immutable=1", _Snapshot)

    def _connect(
        self, query: str, factory: type[sqlite3.Connection] = sqlite3.Connection
    ) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self.database.as_uri()}?{query}",
            uri=True,
            timeout=BUSY_TIMEOUT_S,
            isolation_level=None,
            check_same_thread=False,
            factory=factory,
        )
        try:
            self._refuse_empty(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _refuse_empty(self, connection: sqlite3.Connection) -> None:
        if not check_version(connection, self.database):
            raise LogFileError(
                f"{self.database} is an empty database; expected a log; correct the path, or wait "
                "until something is written to it"
            )

    def __del__(self) -> None:
        self.suspend()


_in_use: Final[list["ref[Readers]"]] = []
