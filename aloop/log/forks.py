"""What becomes of open logs in a process that was forked from theirs.

gunicorn with preload and ``multiprocessing`` fork processes that hold open files, locks and
connections of their parent, without the threads that used them.
"""

import os
from typing import Final, Protocol
from weakref import WeakSet

from aloop.log.journal import Journal

__all__ = ["tell_after_fork"]


class Forked(Protocol):
    """What goes on in the new process."""

    def go_on_after_fork(self) -> None:
        """Let go of what is the parent's, and go on in this process."""
        ...


_to_tell: Final[WeakSet[Forked]] = WeakSet()


def tell_after_fork(log: Forked) -> None:
    """Have the log told, in the new process, when this one is forked."""
    _to_tell.add(log)


def _after_fork() -> None:
    Journal.leave_to_the_parent()
    for log in list(_to_tell):
        log.go_on_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
