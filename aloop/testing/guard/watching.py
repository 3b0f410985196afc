"""What event loops do while somebody watches: who blocks them, and which tasks they have.

Each handle that an event loop runs goes through a function of this module meanwhile. Beside it a
thread looks where a handle stands that takes long. It is none of `threading`'s, so that nobody who
looks at those finds it, and it ends before a fork. Event loops that do not run `asyncio.Handle`,
as uvloop's, are not seen.
"""

import _thread
import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable
from inspect import CORO_CREATED, getcoroutinestate, iscoroutine
from time import perf_counter
from types import CodeType, FrameType
from typing import Any, Final, cast
from weakref import WeakSet

from aloop.tasks import STREAM_TASK, whereabouts

__all__ = ["Watch"]

_LOOKS: Final = 4
"""How often the thread looks in the time that a handle may take."""

_SHORTEST_LOOK_S: Final = 0.005
_LONGEST_LOOK_S: Final = 0.1

_READ_EVERY_S: Final = 0.05
"""How old the time may be that a thread had waited for a processor when a handle begins."""

_MAX_FRAMES: Final = 4

_RUNNERS: Final = ("TestRunner._run_tests_and_fixtures",)
"""The coroutines of tasks in which plugins of pytest run tests and fixtures: anyio's."""


class _Thread:
    """What a thread's event loop is at."""

    def __init__(self, ident: int) -> None:
        self.ident = ident
        self.began: float | None = None  # the handle that runs, None while there is none
        self.where: str | None = None  # it stood when it had taken long
        self.kept_s = 0.0
        self.read_at = -1.0

    def begin(self) -> None:
        now = perf_counter()
        if now - self.read_at > _READ_EVERY_S:
            self.kept_s = _kept_waiting_s()
            self.read_at = now
        self.where = None
        self.began = now

    def took_s(self) -> float:
        """Give how long the handle has taken, without what the system gave to others."""
        assert self.began is not None
        seconds = perf_counter() - self.began
        return seconds if seconds <= _least_s else seconds - (_kept_waiting_s() - self.kept_s)


def _kept_waiting_s() -> float:
    """Give how long this thread has waited for a processor; 0 where the system does not tell."""
    try:
        with open("/proc/thread-self/schedstat", "rb") as file:  # noqa: PTH123 - takes less time
            return int(file.read().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


_lock = threading.RLock()
_watches: "tuple[Watch, ...]" = ()
_threads: dict[int, _Thread] = {}
_least_s = float("inf")
"""The least of the times that the watches allow a handle."""

_run_handle: Callable[[asyncio.Handle], None] = asyncio.Handle._run  # noqa: SLF001 - asyncio's own
_is_in_place = False
"""Whether handles go through this module. They go on to if somebody has wrapped that meanwhile."""


class Watch:
    """Watches the event loops of this thread, and of those that are started from now on.

    Parameters:
        block_s: seconds that a handle may take.
    """

    def __init__(self, block_s: float) -> None:
        self.block_s = block_s
        self.blocked: list[str] = []
        """What took longer."""
        self.loops: WeakSet[asyncio.AbstractEventLoop] = WeakSet()
        """The event loops that were seen."""
        self._others = set(threading.enumerate()) - {threading.current_thread()}
        self._before: WeakSet[asyncio.Task[Any]] = WeakSet()
        self._seen: WeakSet[asyncio.Task[Any]] = WeakSet()
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            return
        self.loops.add(running)
        self._before.update(asyncio.all_tasks(running))

    def start(self) -> None:
        """Begin."""
        with _lock:
            _change((*_watches, self))

    def stop(self) -> None:
        """End."""
        with _lock:
            _change(tuple(watch for watch in _watches if watch is not self))

    def covers(self, thread: threading.Thread) -> bool:
        """Say whether this is the thread that watches, or one that was started since."""
        return thread not in self._others

    def see(self, handle: asyncio.Handle, callback: object) -> None:
        """Know a handle's event loop, and its task."""
        if not self.covers(threading.current_thread()):
            return
        loop: asyncio.AbstractEventLoop = handle._loop  # type: ignore[attr-defined]  # noqa: SLF001 - asyncio's own
        if loop not in self.loops:
            self.loops.add(loop)
            # What has not begun was made while somebody watched: no loop leaves it so.
            self._before.update(filter(_has_begun, asyncio.all_tasks(loop)))
        task = getattr(callback, "__self__", None)
        if isinstance(task, asyncio.Task):
            self._seen.add(cast("asyncio.Task[Any]", task))

    def left_tasks(self) -> list[str]:
        """Say which tasks are not done that were not there before."""
        tasks = set(self._seen).union(*map(asyncio.all_tasks, list(self.loops)))
        left = [task for task in tasks - set(self._before) if not task.done()]
        left.sort(key=lambda task: task.get_name())
        return [
            f"the task {task.get_name()!r} is not done; it is in {_whereabouts(task)}; await it, "
            "or cancel it and await that"
            for task in left
            if not _is_of_others(task)
        ]


def _coroutine_of(task: "asyncio.Task[Any]") -> Any:  # of whatever kind
    return task.get_coro()


def _has_begun(task: "asyncio.Task[Any]") -> bool:
    coroutine = _coroutine_of(task)
    return not iscoroutine(coroutine) or getcoroutinestate(coroutine) != CORO_CREATED


def _is_of_others(task: "asyncio.Task[Any]") -> bool:
    """Say whether this is a plugin's, or closes an async generator that nobody held any more.

    Or waits for a batch, which the next run of a loop will find: nothing of a run is under way.
    """
    if task.get_name() == STREAM_TASK:
        return True
    kind = type(_coroutine_of(task)).__name__
    return kind == "async_generator_athrow" or _code_of(task).co_qualname in _RUNNERS


def _code_of(task: "asyncio.Task[Any]") -> CodeType:
    coroutine = _coroutine_of(task)
    return getattr(coroutine, "cr_code", None) or getattr(coroutine, "gi_code", _NO_CODE)


_NO_CODE: Final = compile("", "unknown", "exec")


def _whereabouts(task: "asyncio.Task[Any]") -> str:
    return whereabouts(_coroutine_of(task))


def _change(watches: tuple[Watch, ...]) -> None:
    """Have other watches than before."""
    global _watches, _least_s, _run_handle, _is_in_place
    _watches = watches
    _least_s = min((watch.block_s for watch in watches), default=float("inf"))
    if watches and not _is_in_place:
        _run_handle = asyncio.Handle._run  # noqa: SLF001 - asyncio's own
        asyncio.Handle._run = _run_watched  # type: ignore[method-assign]  # noqa: SLF001 - asyncio's own
        _is_in_place = True
    elif not watches and asyncio.Handle._run is _run_watched:  # noqa: SLF001 - asyncio's own
        asyncio.Handle._run = _run_handle  # type: ignore[method-assign]  # noqa: SLF001 - asyncio's own
        _is_in_place = False
    if _least_s == float("inf"):
        _looker.stop()
    if not watches:
        _threads.clear()


def _run_watched(handle: asyncio.Handle) -> None:
    """Run a handle, and tell the watches."""
    watches = _watches
    if not watches:
        _run_handle(handle)
        return
    callback: object = handle._callback  # type: ignore[attr-defined]  # noqa: SLF001 - asyncio's own
    for watch in watches:
        watch.see(handle, callback)
    if _least_s == float("inf"):
        _run_handle(handle)
        return
    _looker.start()
    ident = threading.get_ident()
    thread = _threads.get(ident) or _threads.setdefault(ident, _Thread(ident))
    thread.begin()
    try:
        _run_handle(handle)
    finally:
        if thread.began is not None:  # a handle inside this one has ended, with its event loop
            seconds = thread.took_s()
            thread.began = None
            if seconds > _least_s:
                _tell(watches, callback, seconds, thread.where)


def _tell(watches: tuple[Watch, ...], callback: object, seconds: float, where: str | None) -> None:
    named = _named(callback, where)
    current = threading.current_thread()
    for watch in watches:
        if seconds > watch.block_s and watch.covers(current):
            watch.blocked.append(
                f"the event loop was blocked for {seconds:.2f} s by {named}; expected at most "
                f"{watch.block_s:g} s; have a thread do what takes long"
            )


def _named(callback: object, where: str | None) -> str:
    """Name what was called, and say where it stood."""
    task = getattr(callback, "__self__", None)
    if not isinstance(task, asyncio.Task):
        what = f"the callback {getattr(callback, '__qualname__', repr(callback))}"
        return what if where is None else f"{what}, which was in {where}"
    task = cast("asyncio.Task[Any]", task)
    what = f"the task {task.get_name()!r}"
    if where is not None:
        return f"{what}, which was in {where}"
    if not task.done():
        return f"{what}, which is in {_whereabouts(task)} now"
    code = _code_of(task)
    return f"{what} of {code.co_qualname} ({code.co_filename}:{code.co_firstlineno})"


class _Looker:
    """The thread that looks where what takes long stands."""

    def __init__(self) -> None:
        self._ending: Any = None  # a lock that is held while the thread runs
        self._ended: Any = None

    def start(self) -> None:
        """Have it run."""
        if self._ending is not None:
            return
        with _lock:
            if self._ending is None:
                self._ending, self._ended = _thread.allocate_lock(), _thread.allocate_lock()
                self._ending.acquire()
                self._ended.acquire()
                _thread.start_new_thread(self._look, (self._ending, self._ended))

    def stop(self) -> None:
        """End it, if it runs."""
        if self._ending is not None:
            self._ending.release()
            self._ended.acquire()
            self._ending = None

    @staticmethod
    def _look(ending: Any, ended: Any) -> None:
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            while not ending.acquire(
                timeout=min(max(_least_s / _LOOKS, _SHORTEST_LOOK_S), _LONGEST_LOOK_S)
            ):
                _note_places()
        finally:
            ended.release()


_looker = _Looker()

_PLAIN: Final = _run_handle.__code__


def _note_places() -> None:
    """Note where those handles stand that have taken half of the time that they may."""
    late = [
        (thread, began)
        for thread in list(_threads.values())
        if (began := thread.began) is not None and perf_counter() - began > _least_s / 2
    ]
    if not late:
        return
    frames = sys._current_frames()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - the way there is
    for thread, began in late:
        where = _place(frames.get(thread.ident))
        if thread.began == began and where is not None:
            thread.where = where


def _place(frame: FrameType | None) -> str | None:
    """Say where a handle stands, by the innermost frame of its thread."""
    names: list[str] = []
    innermost = frame
    while frame is not None and frame.f_code not in (_PLAIN, _run_watched.__code__):
        names.append(frame.f_code.co_qualname)
        frame = frame.f_back
    if frame is None or innermost is None or not names:
        return None
    if innermost.f_code.co_filename == __file__:  # it has ended, and its time is being taken
        return None
    place = f"{innermost.f_code.co_filename}:{innermost.f_lineno}"
    return f"{' > '.join(reversed(names[:_MAX_FRAMES]))} ({place})"


def _before_fork() -> None:
    _lock.acquire()
    _looker.stop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_lock.release, after_in_child=_lock.release
    )
