"""The file of a log: made whole or not at all, and checked before use.

SQLite's write-ahead log does not work across hosts, so a file on a network file system is to get a
rollback journal.
"""

import contextlib
import os
import re
import secrets
import sqlite3
import time
from pathlib import Path
from typing import Final

from aloop.disk import absolute_path, sync_directory
from aloop.errors import LogFileError, UnknownRunError
from aloop.faults import fault_point
from aloop.log.schema import APPLICATION_ID, CREATE, SCHEMA_VERSION

__all__ = [
    "as_path",
    "check_size",
    "check_version",
    "make_tables",
    "may_exist",
    "network_file_system",
    "publish_new",
    "refuse_missing",
]

_NETWORK_FILE_SYSTEMS: Final = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4"}
    | {"smb3", "smbfs", "fuse.glusterfs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs"}
)
_OCTAL: Final = re.compile(rb"\\([0-3][0-7]{2})")
_MOUNTS: Final = Path("/proc/self/mountinfo")
_LEAST_BYTES: Final = 512  # of a page of SQLite's
_STALE_S: Final = 60.0
"""After how long an unpublished file must be that of a process which was killed."""


def network_file_system(path: Path, mounts: Path | None = None) -> str | None:
    """Give the type of the network file system that the path is on, None if it is on none.

    `mounts` is read instead of Linux's list of mounts. Elsewhere than on Linux there is none, and
    every path counts as local.
    """
    try:
        # As bytes: text would be cut at more than the newline and the space, which end the
        # lines and fields here, and octal codes stand for bytes.
        lines = (mounts or _MOUNTS).read_bytes().split(b"\n")
    except OSError:
        return None
    resolved, found, kind = path.resolve(), Path(), None
    for line in filter(None, lines):
        # Before the dash the mount point is the fifth field, its spaces and the like in octal.
        before, _, after = line.partition(b" - ")
        name = _OCTAL.sub(lambda code: bytes([int(code[1], 8)]), before.split(b" ")[4])
        point = Path(os.fsdecode(name))
        if resolved.is_relative_to(point) and len(point.parts) >= len(found.parts):
            found, kind = point, os.fsdecode(after.split(b" ")[0])
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
        fault_point("log.made")
        with contextlib.suppress(FileExistsError):  # somebody else was faster
            _link(new, database)
        fault_point("log.named")
    finally:
        new.unlink(missing_ok=True)
        Path(f"{new}-journal").unlink(missing_ok=True)
    sync_directory(database.parent)


def _link(new: Path, database: Path) -> None:
    """Give the file its name, unless that is taken."""
    try:
        os.link(new, database)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if not database.exists():
            new.rename(database)


def as_path(database: object) -> Path:
    """Give the path of a log's file, absolute; `ArgumentError` for what is no path."""
    return absolute_path("database", database, "a file, such as 'run.sqlite'")


def refuse_missing(database: str | Path, run: str) -> None:
    """Raise `UnknownRunError` rather than make a file for a run that cannot be in it."""
    if not isinstance(database, Path):
        raise UnknownRunError(
            f"the log has no run {run!r}: a {database} database is empty when it is opened; leave "
            "uuid out, or give the path of a file"
        )
    if not may_exist(database):
        raise UnknownRunError(
            f"the log has no run {run!r}, for there is no file {database}; expected the file the "
            "run was written to; correct the path, or leave uuid out"
        )


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
