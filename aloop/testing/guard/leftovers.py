"""What of a process may be left behind: threads, child processes, open files, signal handlers."""

import asyncio
import gc
import os
import signal
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable
from concurrent.futures import Executor
from pathlib import Path
from time import monotonic
from typing import Any, Final, TypeAlias

from aloop.testing.guard.watching import Watch

__all__ = ["Children", "Files", "Handlers", "Leftover", "SignalHandlers", "Threads"]

_STANDARD: Final = (0, 1, 2)
"""The descriptors that are there in any case, and lead elsewhere while pytest captures them."""

_MAX_TEXT: Final = 200  # characters of what is named

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)

_FOR_LIFE: Final = ("tqdm_monitor",)
"""The threads that libraries keep for the life of the process, and that end by themselves."""

SignalHandlers: TypeAlias = dict[signal.Signals, Any]
"""Handlers by signal."""


class Leftover(ABC):
    """What there is of one kind, to be held against what there will be."""

    def __init__(self, before: Iterable[Any]) -> None:
        self.before = frozenset(before)
        """What was there."""

    @abstractmethod
    def left(self, patience_s: float) -> list[str]:
        """Name what is there now, and was not before.

        Parameters:
            patience_s: seconds in which what was told to end may end.
        """

    def inherit(self, other: "Leftover") -> None:
        """Take over from another one of this kind, which began at some other time."""
        self.before &= other.before


class Threads(Leftover):
    """The threads that live.

    Those with which an event loop runs functions end with it, and are left out until then.

    Parameters:
        watch: knows the event loops.
    """

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        super().__init__(threading.enumerate())

    def left(self, patience_s: float) -> list[str]:
        """Name the threads."""
        deadline = monotonic() + patience_s
        for thread in self._new():
            thread.join(max(0.0, deadline - monotonic()))
        return [
            f"the thread {thread.name!r}{' (daemon)' if thread.daemon else ''} lives; it is in "
            f"{_stack_of(thread)}; end it and join it"
            for thread in self._new()
        ]

    def _new(self) -> list[threading.Thread]:
        kept = _threads_of_executors(self._watch)
        threads = set(threading.enumerate()) - self.before - kept - {threading.current_thread()}
        new = [thread for thread in threads if thread.is_alive() and not _is_of_others(thread)]
        if new and "uvloop" in sys.modules:
            kept = _threads_of_uvloop()
            new = [thread for thread in new if thread not in kept]
        return sorted(new, key=lambda thread: thread.name)


def _threads_of_executors(watch: Watch) -> set[threading.Thread]:
    found: set[threading.Thread] = set()
    for loop in list(watch.loops):
        executor = getattr(loop, "_default_executor", None)
        if executor is not None and not loop.is_closed():
            found |= getattr(executor, "_threads", set[threading.Thread]())
    return found


def _threads_of_uvloop() -> set[threading.Thread]:
    """Give the threads of the executors that loops of uvloop have, which do not tell of them."""
    found: set[threading.Thread] = set()
    for loop in _loops_in_memory():
        if type(loop).__module__.partition(".")[0] == "uvloop" and not loop.is_closed():
            for part in gc.get_referents(loop):
                if isinstance(part, Executor):
                    found |= getattr(part, "_threads", set[threading.Thread]())
    return found


def _loops_in_memory() -> list[asyncio.AbstractEventLoop]:
    # By type: what is asked for its class otherwise may be anything, and do anything.
    return [what for what in gc.get_objects() if issubclass(type(what), asyncio.AbstractEventLoop)]


def _is_of_others(thread: threading.Thread) -> bool:
    """Say whether a thread is none of Python's, ends with a task of anyio, or is kept for life."""
    if thread.name in _FOR_LIFE:
        return True
    if isinstance(thread, threading._DummyThread):  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - the way there is
        return True
    task = getattr(thread, "root_task", None)
    return type(thread).__module__.startswith("anyio.") and task is not None and not task.done()


def _stack_of(thread: threading.Thread) -> str:
    frames = sys._current_frames()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - the way there is
    frame = frames.get(thread.ident or 0)
    places: list[str] = []
    while frame is not None:
        code = frame.f_code
        if not places or code.co_filename != threading.__file__:
            places.append(f"{code.co_qualname} ({code.co_filename}:{frame.f_lineno})")
        frame = frame.f_back
    return " < ".join(places[:3]) or "nowhere"


class Files(Leftover):
    """The file descriptors that are open; none are known where there is no /proc/self/fd."""

    def __init__(self) -> None:
        super().__init__(_open_files())

    def left(self, patience_s: float) -> list[str]:
        """Name the file descriptors, and the event loops to which some of them belong."""
        found = {key: what for key, what in _open_files().items() if key not in self.before}
        if not found:
            return []
        numbers = {key[0] for key in found}
        loops: list[str] = []
        for loop in _loops_in_memory():
            own = set(_files_of(loop))
            if own and own <= numbers:
                numbers -= own
                loops.append(f"the event loop {loop!r:.{_MAX_TEXT}} is open; close it")
        return loops + [
            f"the file descriptor {key[0]} is open, and leads to {found[key]}; close it"
            for key in found
            if key[0] in numbers
        ]


def _files_of(loop: asyncio.AbstractEventLoop) -> list[int]:
    """Give the descriptors that an event loop has by itself: of its selector, and what wakes it."""
    if loop.is_closed():
        return []
    parts: list[Any] = [getattr(loop, name, None) for name in ("_selector", "_ssock", "_csock")]
    return [part.fileno() for part in parts if hasattr(part, "fileno")]


def _open_files() -> dict[tuple[int, int, int], str]:
    """Give the open file descriptors, each with its device and inode, and what it leads to."""
    found: dict[tuple[int, int, int], str] = {}
    directory = Path("/proc/self/fd")
    try:
        names = os.listdir(directory)  # noqa: PTH208 - as text, and at once
    except OSError:
        return found
    kept = _of_multiprocessing()[1]
    for number in sorted(map(int, names)):
        if number in kept or number in _STANDARD:
            continue
        try:
            status = os.fstat(number)
            what = os.readlink(directory / str(number))  # noqa: PTH115 - no path, it may be
        except OSError:  # that of the listing
            continue
        found[number, status.st_dev, status.st_ino] = what[:_MAX_TEXT]
    return found


class Children(Leftover):
    """The child processes; none are known where the system does not tell them."""

    def __init__(self) -> None:
        super().__init__(_children())

    def left(self, patience_s: float) -> list[str]:
        """Name the child processes."""
        return [
            f"the child process {pid} {_told(pid)}; wait for it"
            for pid in sorted(_children() - self.before)
        ]


def _children() -> set[int]:
    found: set[int] = set()
    for thread in Path("/proc/self/task").glob("*/children"):
        try:
            found.update(map(int, thread.read_text().split()))
        except OSError:  # the thread has ended
            continue
    return found - _of_multiprocessing()[0]


def _told(pid: int) -> str:
    directory = Path(f"/proc/{pid}")
    try:
        state = (directory / "stat").read_text().rpartition(")")[2].split()[0]
        command = (directory / "cmdline").read_bytes()
    except OSError:
        state, command = "Z", b""
    if state == "Z":
        return "has ended, and was not waited for"
    text = command.replace(b"\0", b" ").decode(errors="replace").strip()
    return f"runs {text:.{_MAX_TEXT}}".rstrip()


def _of_multiprocessing() -> tuple[set[int], set[int]]:
    """Give the processes, and the files, that `multiprocessing` keeps for the life of this one."""
    children: set[int] = set()
    files: set[int] = set()
    tracker = getattr(
        sys.modules.get("multiprocessing.resource_tracker"), "_resource_tracker", None
    )
    server = getattr(sys.modules.get("multiprocessing.forkserver"), "_forkserver", None)
    for helper in (tracker, server):
        for name, kind in (
            ("_pid", children),
            ("_forkserver_pid", children),
            ("_fd", files),
            ("_forkserver_alive_fd", files),
        ):
            number = getattr(helper, name, None)
            if number is not None:
                kind.add(number)
    return children, files


def _handlers_now() -> SignalHandlers:
    """Give the handlers of SIGINT and SIGTERM."""
    return {number: signal.getsignal(number) for number in _SIGNALS}


class Handlers(Leftover):
    """The handlers of SIGINT and SIGTERM."""

    def __init__(self) -> None:
        super().__init__(())
        self.began = monotonic()
        self.handlers = _handlers_now()
        self.allowed: list[SignalHandlers] = [self.handlers]
        """Any of which may be there."""

    def allow(self, handlers: SignalHandlers) -> None:
        """Let these be there as well."""
        self.allowed.append(handlers)

    def left(self, patience_s: float) -> list[str]:
        """Name the signals whose handlers are other ones."""
        now = _handlers_now()
        return [
            f"the handler of {number.name} is {now[number]!r:.{_MAX_TEXT}}; expected "
            f"{before!r:.{_MAX_TEXT}}; put it back"
            for number, before in self.handlers.items()
            if now[number] not in [handlers.get(number, before) for handlers in self.allowed]
        ]

    def inherit(self, other: Leftover) -> None:
        """Take over from another one of this kind, the older of them counts."""
        assert isinstance(other, Handlers)
        if other.began < self.began:
            self.began, self.handlers, self.allowed = other.began, other.handlers, other.allowed
