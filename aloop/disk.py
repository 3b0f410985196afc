"""What files of more than one kind need: paths, locks between processes, synced directories."""

import contextlib
import errno
import os
import socket
import time
from pathlib import Path

from aloop.errors import ArgumentError

try:
    import fcntl
except ImportError:  # Windows, untested
    fcntl = None

__all__ = ["FileLock", "absolute_path", "sync_directory"]


class FileLock:
    """A lock on a small file, which the system lets go of when the process ends, however it ends.

    The file is there as long as somebody has the lock. Where the system has no such locks,
    everybody gets one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    @property
    def is_mine(self) -> bool:
        """True after an `acquire` that was granted, until `release`."""
        return self._handle is not None or fcntl is None

    @property
    def is_in_place(self) -> bool:
        """True while it is mine, and on the file of that name: not one that was removed since."""
        if fcntl is None:
            return True
        return self._handle is not None and os.fstat(self._handle).st_ino == _inode(self.path)

    def acquire(self, *, shared: bool = False) -> bool:
        """Lock the file unless another has it locked, and say whether it is."""
        while self._handle is None and fcntl is not None:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                if not _flock(handle, shared=shared):
                    return False
                # The one before may have removed the file after it was opened here.
                if os.fstat(handle).st_ino == _inode(self.path):
                    self._handle, handle = handle, None
            finally:
                if handle is not None:
                    os.close(handle)
        return True

    def sign(self) -> None:
        """Write into the file who has it locked, for others to read."""
        if self._handle is not None:
            os.ftruncate(self._handle, 0)
            os.write(self._handle, f"process {os.getpid()} on {socket.gethostname()}".encode())

    def holder(self) -> str:
        """Tell who has it locked, as far as that can be read."""
        with contextlib.suppress(OSError):
            return self.path.read_text(errors="replace") or "another process"
        return "another process"

    def is_only_one(self) -> bool:
        """Say whether nobody else shares the lock."""
        if self._handle is None:
            return True
        alone = _flock(self._handle, shared=False)
        while not _flock(self._handle, shared=True):
            time.sleep(0.001)  # another one is asking the same
        return alone

    def release(self) -> None:
        """Unlock the file, and remove it unless others share it."""
        if self._handle is not None:
            if _flock(self._handle, shared=False):
                self.path.unlink(missing_ok=True)
            self.abandon()

    def abandon(self) -> None:
        """Forget the lock without giving it up: after a fork it is the other process's."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


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


def absolute_path(name: str, path: object, expected: str) -> Path:
    """Give a path, absolute; `ArgumentError` for what is none.

    Parameters:
        name: of the argument.
        path: what was given.
        expected: what it is the path of, with an example.
    """
    if not isinstance(path, str | Path) or not str(path) or "\0" in str(path):
        raise ArgumentError(f"{name} is {path!r}; expected the path of {expected}")
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise ArgumentError(f"{name} is {path!r}: {error}; write out the home") from error


def sync_directory(directory: Path) -> None:
    """Have the names in a directory on the disk, and not just in the system's cache."""
    if os.name == "posix":
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
