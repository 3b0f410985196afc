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
import secrets
import socket
import sqlite3
import time
from pathlib import Path
from typing import Final

from aloop.errors import LogFileError
from aloop.log.schema import APPLICATION_ID, CREATE, SCHEMA_VERSION

try:
    import fcntl
except ImportError:  # Windows, untested
    fcntl = None

__all__ = [
    "Ownership",
    "check_not_empty",
    "check_version",
    "has_checkpoint_fault",
    "make_tables",
    "network_file_system",
    "publish_new",
]

_NETWORK_FILE_SYSTEMS: Final = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4"}
    | {"smb3", "smbfs", "fuse.glusterfs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs"}
)
_MOUNTS: Final = Path("/proc/self/mountinfo")
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
        lines = (mounts or _MOUNTS).read_text(errors="replace").splitlines()
    except OSError:
        return None
    resolved, found, kind = path.resolve(), Path(), None
    for line in lines:
        # Before the dash the mount point is the fifth field, its spaces and the like in octal.
        before, _, after = line.partition(" - ")
        point = Path(before.split()[4].encode().decode("unicode_escape"))
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
    if database.exists():
        return
    for left in database.parent.glob(f"{database.name}-new-*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE_S:
                left.unlink()
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


def check_not_empty(database: Path) -> None:
    """Refuse a file of 0 bytes: it may be what is left of a log that got lost."""
    if database.exists() and database.stat().st_size == 0:
        raise LogFileError(
            f"{database} is an empty file (0 bytes); expected a log or no file at all; restore it "
            "from a copy, or delete it to begin a new log"
        )


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


def _lock(handle: int) -> bool:
    """Lock an open file unless it is locked; one that cannot be locked counts as free."""
    assert fcntl is not None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
    """Which of all connections to a file, of all processes, is its owner.

    Kept by a lock on a small file beside it, which the system lets go of when the process ends,
    however it ends. The small file says who the owner is.
    """

    def __init__(self, database: Path) -> None:
        self._path = database.with_name(f"{database.name}-lock")
        self._handle: int | None = None

    @property
    def is_mine(self) -> bool:
        """True after a `claim` that was granted, until `release`."""
        return self._handle is not None or fcntl is None

    def claim(self) -> bool:
        """Become the owner unless there is one, and say whether that is so now."""
        while not self.is_mine:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                if not _lock(handle):
                    return False
                # The owner before may have removed the file after it was opened here.
                if os.fstat(handle).st_ino == _inode(self._path):
                    os.ftruncate(handle, 0)
                    os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
                    self._handle, handle = handle, None
            finally:
                if handle is not None:
                    os.close(handle)
        return True

    def holder(self) -> str:
        """Tell who the owner is, as far as that can be read."""
        with contextlib.suppress(OSError):
            return self._path.read_text(errors="replace") or "another process"
        return "another process"

    def release(self) -> None:
        """Be the owner no more."""
        if self._handle is not None:
            self._path.unlink(missing_ok=True)
            self.abandon()

    def abandon(self) -> None:
        """Forget the lock without giving it up: after a fork it is the other process's."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
