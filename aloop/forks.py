"""What becomes of open connections, and of the logs that use them, when the process is forked.

SQLite must not be carried across a fork: the new process would take the locks of its parent for
its own. So all connections of this process are closed before it is forked, when none of them is at
work, and opened again when they are needed. gunicorn with preload and ``multiprocessing`` fork.
"""

import os
import threading
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Final, Protocol
from weakref import WeakSet

__all__ = ["at_work", "close_before_fork", "tell_after_fork"]


class Connected(Protocol):
    """What has connections."""

    def suspend(self) -> None:
        """Close them until they are needed again; nobody is using them."""
        ...


class Forked(Protocol):
    """What is to know that it is in a new process."""

    def go_on_after_fork(self) -> None:
        """Let go of what is the parent's."""
        ...


class _Gate:
    """Keeps forks and the use of connections apart."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._is_forking = False
        self._at_work = 0
        self._mine = threading.local()

    @contextmanager
    def passed(self) -> Generator[None]:
        """Hold up a fork while the body uses a connection."""
        depth: int = getattr(self._mine, "depth", 0)
        with self._changed:
            while self._is_forking and not depth:
                self._changed.wait()
            self._at_work += 1
        self._mine.depth = depth + 1
        try:
            yield
        finally:
            self._mine.depth = depth
            with self._changed:
                self._at_work -= 1
                self._changed.notify_all()

    def close(self) -> None:
        """Wait until nobody uses a connection, and let nobody begin to."""
        with self._changed:
            while self._is_forking:
                self._changed.wait()
            self._is_forking = True
            while self._at_work > getattr(self._mine, "depth", 0):
                self._changed.wait()

    def open(self) -> None:
        """Let connections be used again."""
        with self._changed:
            self._is_forking = False
            self._changed.notify_all()


_gate = _Gate()
_connected: Final[WeakSet[Connected]] = WeakSet()
_to_tell: Final[WeakSet[Forked]] = WeakSet()


def at_work() -> AbstractContextManager[None]:
    """Use a connection in the body: a fork waits for its end, and the body for that of a fork."""
    return _gate.passed()


def close_before_fork(connected: Connected) -> None:
    """Have these connections closed when the process is about to be forked."""
    _connected.add(connected)


def tell_after_fork(log: Forked) -> None:
    """Have this told, in the new process, when this one is forked."""
    _to_tell.add(log)


def _before_fork() -> None:
    _gate.close()
    for connected in list(_connected):
        connected.suspend()


def _after_fork_in_parent() -> None:
    _gate.open()


def _after_fork_in_child() -> None:
    global _gate  # its lock may be held by a thread that is not here
    _gate = _Gate()
    for log in list(_to_tell):
        log.go_on_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
