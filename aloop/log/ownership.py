"""The owner of a log's file: of all connections that write to it, the one that makes checkpoints.

In most versions of SQLite a checkpoint, which moves the write-ahead log into the file, can damage
the file when it meets a commit of another connection (https://sqlite.org/wal.html#walresetbug). It
cannot as long as one connection alone makes the checkpoints, each right after a commit of its own.
"""

import sqlite3
import time
from pathlib import Path

from aloop.disk import FileLock

__all__ = ["Ownership", "has_checkpoint_fault"]


def has_checkpoint_fault(version: tuple[int, int, int] = sqlite3.sqlite_version_info) -> bool:
    """Tell whether this version of SQLite has the fault of checkpoints that meet a commit."""
    repaired = (3, 44, 6) <= version < (3, 45, 0) or (3, 50, 7) <= version < (3, 51, 0)
    return version < (3, 51, 3) and not repaired


class Ownership:
    """Which of all connections that write to a file, of all processes, is its owner.

    Two small files beside it tell: one is locked by the owner, the other shared by all writers.
    """

    def __init__(self, database: Path) -> None:
        self._owner = FileLock(database.with_name(f"{database.name}-lock"))
        self._writer = FileLock(database.with_name(f"{database.name}-writers"))

    @property
    def is_mine(self) -> bool:
        """True after a `claim` that was granted, until `release`."""
        return self._owner.is_mine

    @property
    def is_alone(self) -> bool:
        """True while no other connection writes."""
        return self._writer.is_only_one()

    def claim(self) -> bool:
        """Become a writer, the owner too unless there is one, and say whether that is so now."""
        while not self._writer.acquire(shared=True):
            time.sleep(0.001)  # another one is looking whether it is alone
        if not self.is_mine and self._owner.acquire():
            self._owner.sign()
        return self.is_mine

    def holder(self) -> str:
        """Tell who the owner is, as far as that can be read."""
        return self._owner.holder()

    def release(self) -> None:
        """Be the owner, and a writer, no more."""
        self._owner.release()
        self._writer.release()

    def abandon(self) -> None:
        """Forget the locks without giving them up: after a fork they are the other process's."""
        self._owner.abandon()
        self._writer.abandon()
