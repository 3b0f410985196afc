"""The file of a log: made whole or not at all, checked before use, owned by one connection.

SQLite's write-ahead log wants some care. It does not work across hosts, so a file on a network
file system gets a rollback journal. And in most versions of SQLite a checkpoint, which moves the
write-ahead log into the file, can damage the file when it meets a commit of another connection
(https://sqlite.org/wal.html#walresetbug). It cannot as long as one connection alone makes the
checkpoints, each right after a commit of its own: that one is the file's owner.
"""

import contextlib
import errno
import os
import re
import secrets
import socket
import sqlite3
import time
from pathlib import Path
from typing import Final

from aloop.errors import ArgumentError, LogFileError
from aloop.log.schema import APPLICATION_ID, CREATE, SCHEMA_VERSION

try:
    import fcntl
except ImportError:  # Windows, untested
    fcntl = None

__all__ = [
    "Ownership",
    "as_path",
    "check_size",
    "check_version",
    "has_checkpoint_fault",
    "make_tables",
    "may_exist",
    "network_file_system",
    "publish_new",
]

_NETWORK_FILE_SYSTEMS: Final = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4"}
    | {"smb3", "smbfs", "fuse.glusterfs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs"}
)
_OCTAL: Final = re.compile(r"\\([0-7]{3})")
_MOUNTS: Final = Path("/proc/self/mountinfo")
_LEAST_BYTES: Final = 512  # of a page of SQLite's
_STALE_S: Final = 60.0
"""After how long an unpublished file must be that of a process which was killed."""


def has_checkpoint_fault(version: tuple[int, int, int] = sqlite3.sqlite_version_info) -> bool:
    """Tell whether this version of SQLite has the fault of checkpoints that meet a commit."""
    repaired = (3, 44, 6) <= version < (3, 45, 0) or (3, 50, 7) <= version < (3, 51, 0)
    return version < (3, 51, 3) and not repaired


def network_file_system(path: Path, mounts: Path | None = None) -> str | None:
    """Give the type of the network file system that the path is on, None if it is on none.

    `mounts` is read instead of Linux's list of mounts. Elsewhere than on Linux there is none, and
    every path counts as local.
    """
    try:
        lines = (mounts or _MOUNTS).read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    resolved, found, kind = path.resolve(), Path(), None
    for line in lines:
        # Before the dash the mount point is the fifth field, its spaces and the like in octal.
        before, _, after = line.partition(" - ")
        point = Path(_OCTAL.sub(lambda code: chr(int(code[1], 8)), before.split()[4]))
        if resolved.is_relative_to(point) and len(point.parts) >= len(found.parts):
            found, kind = point, after.split()[0]
    return kind if kind in _NETWORK_FILE_SYSTEMS else None


def make_tables(connection: sqlite3.Connection) -> None:
    """Make an empty database a log, within a transaction of the caller."""
    for statement in CREATE:
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def publish_new(database: Path) -> None:
    """Make a new log file, unless there is a file; nobody ever sees half of one."""
    for left in database.parent.glob(f"{database.name}-new-*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE_S:
                left.unlink()
    if database.exists():
        return
    new = database.with_name(f"{database.name}-new-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with contextlib.closing(sqlite3.connect(new, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("BEGIN IMMEDIATE")
            make_tables(connection)
            connection.execute("COMMIT")
        with contextlib.suppress(FileExistsError):  # somebody else was faster
            _link(new, database)
    finally:
        new.unlink(missing_ok=True)
        Path(f"{new}-journal").unlink(missing_ok=True)
    _sync_directory(database.parent)


def _link(new: Path, database: Path) -> None:
    """Give the file its name, unless that is taken."""
    try:
        os.link(new, database)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if not database.exists():
            new.rename(database)


def _sync_directory(directory: Path) -> None:
    if os.name == "posix":
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def as_path(database: object) -> Path:
    """Give the path of a log's file, absolute; `ArgumentError` for what is no path."""
    if not isinstance(database, str | Path) or not str(database) or "\0" in str(database):
        raise ArgumentError(
            f"database is {database!r}; expected the path of a file, such as 'run.sqlite'"
        )
    return Path(database).expanduser().absolute()


def may_exist(path: Path) -> bool:
    """Say whether there is such a file, as far as this process may know."""
    try:
        return path.exists()
    except OSError:
        return True  # opening it will say more


def check_size(database: Path) -> None:
    """Refuse a file that is no database: it may be what is left of a log that got lost."""
    if may_exist(database) and database.is_dir():
        raise LogFileError(
            f"{database} is a directory; expected the path of a file; add a name, such as "
            f"{database / 'run.sqlite'}"
        )
    size = _size(database)
    if size is not None and size < _LEAST_BYTES:
        raise LogFileError(
            f"{database} is {'a file too short for a database' if size else 'an empty file'} "
            f"({size} bytes); expected a log or no file at all; restore it from a copy, or delete "
            "it to begin a new log"
        )


def _size(path: Path) -> int | None:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size
    return None


def check_version(connection: sqlite3.Connection, database: str | Path) -> int:
    """Give the schema version of a log, 0 for an empty database; `LogFileError` for others."""
    try:
        (application_id,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT COUNT(*) FROM sqlite_schema").fetchone()
    except sqlite3.DatabaseError as error:
        if "not a database" not in str(error):
            raise
        raise LogFileError(
            f"{database} is not a SQLite database; expected a log or no file at all; choose "
            "another path"
        ) from error
    if application_id == APPLICATION_ID and version <= SCHEMA_VERSION:
        size = _size(Path(database))
        if size and size % _LEAST_BYTES and not _size(Path(f"{database}-wal")):
            raise LogFileError(
                f"{database} is cut off ({size} bytes); expected a whole log; restore it from a "
                "copy, or choose another path"
            )
        return version
    if application_id == APPLICATION_ID:
        raise LogFileError(
            f"{database} has schema version {version}; expected at most {SCHEMA_VERSION}; "
            "upgrade aloop to use it"
        )
    if tables or version:
        raise LogFileError(
            f"{database} is a database of another program (application id {application_id}); "
            "expected a log or no file at all; choose another path"
        )
    return 0


class _Lock:
    """A lock on a small file, which the system lets go of when the process ends, however it ends.

    The file is there as long as somebody has the lock.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.handle: int | None = None

    def acquire(self, *, shared: bool = False) -> bool:
        """Lock the file unless another has it locked, and say whether it is."""
        while self.handle is None and fcntl is not None:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                if not _flock(handle, shared=shared):
                    return False
                # The one before may have removed the file after it was opened here.
                if os.fstat(handle).st_ino == _inode(self.path):
                    self.handle, handle = handle, None
            finally:
                if handle is not None:
                    os.close(handle)
        return True

    def is_only_one(self) -> bool:
        """Say whether nobody else shares the lock."""
        if self.handle is None:
            return True
        alone = _flock(self.handle, shared=False)
        while not _flock(self.handle, shared=True):
            time.sleep(0.001)  # another one is asking the same
        return alone

    def release(self) -> None:
        """Unlock the file, and remove it unless others share it."""
        if self.handle is not None:
            if _flock(self.handle, shared=False):
                self.path.unlink(missing_ok=True)
            self.abandon()

    def abandon(self) -> None:
        """Forget the lock without giving it up: after a fork it is the other process's."""
        if self.handle is not None:
            os.close(self.handle)
            self.handle = None


def _flock(handle: int, *, shared: bool) -> bool:
    """Lock an open file unless it is locked; one that cannot be locked counts as free."""
    assert fcntl is not None
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
    return True


def _inode(path: Path) -> int | None:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_ino
    return None


class Ownership:
    """Which of all connections that write to a file, of all processes, is its owner.

    Two small files beside it tell: one is locked by the owner, the other shared by all writers.
    """

    def __init__(self, database: Path) -> None:
        self._owner = _Lock(database.with_name(f"{database.name}-lock"))
        self._writer = _Lock(database.with_name(f"{database.name}-writers"))

    @property
    def is_mine(self) -> bool:
        """True after a `claim` that was granted, until `release`."""
        return self._owner.handle is not None or fcntl is None

    @property
    def is_alone(self) -> bool:
        """True while no other connection writes."""
        return self._writer.is_only_one()

    def claim(self) -> bool:
        """Become a writer, the owner too unless there is one, and say whether that is so now."""
        while not self._writer.acquire(shared=True):
            time.sleep(0.001)  # another one is looking whether it is alone
        if not self.is_mine and self._owner.acquire() and self._owner.handle is not None:
            os.ftruncate(self._owner.handle, 0)
            os.write(self._owner.handle, _name_of_this_process())
        return self.is_mine

    def holder(self) -> str:
        """Tell who the owner is, as far as that can be read."""
        with contextlib.suppress(OSError):
            return self._owner.path.read_text(errors="replace") or "another process"
        return "another process"

    def release(self) -> None:
        """Be the owner, and a writer, no more."""
        self._owner.release()
        self._writer.release()

    def abandon(self) -> None:
        """Forget the locks without giving them up: after a fork they are the other process's."""
        self._owner.abandon()
        self._writer.abandon()


def _name_of_this_process() -> bytes:
    return f"process {os.getpid()} on {socket.gethostname()}".encode()
