"""The owner of a log's file: of all connections that write to it, the one that makes checkpoints.

In most versions of SQLite a checkpoint, which moves the write-ahead log into the file, can damage
the file when it meets a commit of another connection (https://sqlite.org/wal.html#walresetbug). It
cannot as long as one connection alone makes the checkpoints, each right after a commit of its own.
"""

import contextlib
import errno
import os
import socket
import sqlite3
import time
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, untested
    fcntl = None

__all__ = ["Ownership", "has_checkpoint_fault"]


def has_checkpoint_fault(version: tuple[int, int, int] = sqlite3.sqlite_version_info) -> bool:
    """Tell whether this version of SQLite has the fault of checkpoints that meet a commit."""
    repaired = (3, 44, 6) <= version < (3, 45, 0) or (3, 50, 7) <= version < (3, 51, 0)
    return version < (3, 51, 3) and not repaired


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
