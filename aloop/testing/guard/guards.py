"""The guard: what is run under it blocks no event loop, and leaves nothing behind."""

import asyncio
import gc
import threading
from collections.abc import Callable
from contextlib import ContextDecorator
from functools import partial, wraps
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from typing import Any, Final, TypeVar, cast

from aloop.errors import ArgumentError, seconds_of
from aloop.testing.guard.leftovers import (
    Children,
    Files,
    Handlers,
    Leftover,
    SignalHandlers,
    Threads,
)
from aloop.testing.guard.watching import Watch

__all__ = ["BLOCK_S", "PATIENCE_S", "Guard", "LeftBehindError", "add_to", "guarded", "listed"]

BLOCK_S: Final = 0.25
"""Seconds that one handle of an event loop may take, unless given."""

PATIENCE_S: Final = 5.0
"""Seconds that threads have to end, unless given."""

_AT_ONCE_S: Final = 0.05
"""How long threads may take to end before the garbage is collected."""

_Function = TypeVar("_Function", bound=Callable[..., Any])

_lock = threading.Lock()
_active: "list[Guard]" = []


class LeftBehindError(AssertionError):
    """An event loop was blocked, or something was left behind; the message names each."""


class Guard:
    """Looks at what is there when it is made, and at its end again; see `guarded`."""

    def __init__(
        self,
        *,
        block_s: float | None = BLOCK_S,
        tasks: bool = True,
        threads: bool = True,
        files: bool = True,
        processes: bool = True,
        signals: bool = True,
        patience_s: float = PATIENCE_S,
    ) -> None:
        for name, flag in (
            ("tasks", tasks),
            ("threads", threads),
            ("files", files),
            ("processes", processes),
            ("signals", signals),
        ):
            _check_flag(name, flag)
        self.watch = watch = Watch(_checked_block(block_s))
        """What it knows of the event loops."""
        self.thread = threading.current_thread()
        """The one that it is used in."""
        self._has_tasks = tasks
        self._patience_s = _checked_patience(patience_s)
        self.leftovers: list[Leftover] = []
        """What it looks at in the whole process."""
        if threads:
            self.leftovers.append(Threads(watch))
        if processes:
            self.leftovers.append(Children())
        if files:
            self.leftovers.append(Files())
        if signals:
            self.leftovers.append(Handlers())
        with _lock:
            _active.append(self)
        watch.start()

    def end(self) -> list[str]:
        """Give what was wrong, each in a line of its own; nothing where nothing was."""
        return self.end_of_loops() + self.end_of_process()

    def end_of_loops(self) -> list[str]:
        """Give what is wrong with the event loops, and look at them no more."""
        self.watch.stop()
        return self.watch.blocked + (self.watch.left_tasks() if self._has_tasks else [])

    def is_anything_left(self) -> bool:
        """Say whether there is anything elsewhere now; some of it may still end."""
        return any(leftover.left(_AT_ONCE_S) for leftover in self.leftovers)

    def end_of_process(self) -> list[str]:
        """Give what is left elsewhere, and look no more."""
        with _lock:
            _active.remove(self)
            beside = [guard for guard in _active if not self._is_nested_with(guard)]
            own = [leftover for leftover in self.leftovers if not _hand_over(leftover, beside)]
        if any(leftover.left(_AT_ONCE_S) for leftover in own):
            gc.collect()  # much ends with the garbage that it belongs to
        return [text for leftover in own for text in leftover.left(self._patience_s)]

    def allow(self, handlers: SignalHandlers) -> None:
        """Let these signal handlers be there at the end as well as those of the beginning."""
        for leftover in self.leftovers:
            if isinstance(leftover, Handlers):
                leftover.allow(handlers)

    def forget(self) -> None:
        """Look no more at what is left elsewhere."""
        with _lock:
            _active.remove(self)

    def _is_nested_with(self, other: "Guard") -> bool:
        return self.watch.covers(other.thread) or other.watch.covers(self.thread)


def _hand_over(leftover: Leftover, guards: list[Guard]) -> bool:
    """Let another guard look at what is left, where others are under way.

    What is there may be theirs: the last of them to end knows.
    """
    for guard in guards:
        for other in guard.leftovers:
            if type(other) is type(leftover):
                other.inherit(leftover)
                return True
    return False


class _Guarded(ContextDecorator):
    """What `guarded` gives: a guard for each body, and each call of a function."""

    def __init__(self, make: Callable[[], Guard]) -> None:
        self._make = make
        self._guards: list[Guard] = []

    def __enter__(self) -> None:
        self._guards.append(self._make())

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        found = self._guards.pop().end()
        if error is not None:
            add_to(error, found)
        elif found:
            raise LeftBehindError(listed(found))

    def _recreate_cm(self) -> "_Guarded":  # for each call, which may be in several threads
        return _Guarded(self._make)

    def __call__(self, func: _Function) -> _Function:
        """Guard each call of a function, sync or async."""
        if isgeneratorfunction(func) or isasyncgenfunction(func):
            raise ArgumentError(
                f"guarded() was put on {func!r:.80}, a generator function; expected a function or "
                "a coroutine function; write with guarded(): in its body"
            )
        if not iscoroutinefunction(func):
            return super().__call__(func)

        @wraps(func)
        async def call(*args: Any, **kwargs: Any) -> Any:
            with _Guarded(self._make):
                # Handles are watched that begin, and end, while there is a guard.
                await asyncio.sleep(0)
                try:
                    result = await func(*args, **kwargs)
                except Exception:
                    await asyncio.sleep(0)
                    raise
                await asyncio.sleep(0)
                return result

        return cast("_Function", call)


def guarded(
    *,
    block_s: float | None = BLOCK_S,
    tasks: bool = True,
    threads: bool = True,
    files: bool = True,
    processes: bool = True,
    signals: bool = True,
    patience_s: float = PATIENCE_S,
) -> _Guarded:
    """Raise `LeftBehindError` when the body blocks an event loop, or leaves something behind.

    It is a context manager, and a decorator of functions and coroutine functions::

        with guarded():
            asyncio.run(main())

        @guarded(block_s=1)
        async def main() -> None: ...

    It looks at the event loops that run in this thread meanwhile, and in threads that are started
    meanwhile; not at those of uvloop. What is left of them are tasks that are not done. The rest
    is looked at in the whole process; of several guards side by side in threads, the last one to
    end has what all of them left. What goes with the garbage is not left. What the body raises
    goes up, with what was found as a note. In a coroutine ``with guarded()`` does not see the
    steps in which it begins and ends blocked, before the first await that waits and after the last
    one; as a decorator it does.

    Parameters:
        block_s: seconds that one handle of an event loop may take: a step of a task, from one
            await that waits to the next, or a callback. Time that the system gave to others is
            left out where it tells. None to have the loops blocked.
        tasks: whether tasks may not be left. Those that an event loop has cancelled at its end,
            as `asyncio.run` does, are not, nor are those in which one closes generators, nor those
            of aloop that wait for a batch which the next run of their loop will find.
        threads: whether threads may not be left, but for those of an event loop's own executor and
            the one that tqdm keeps for the life of the process.
        files: whether file descriptors, and event loops, may not be left open, on Linux.
        processes: whether child processes may not be left, running or not waited for, on Linux.
        signals: whether the handlers of SIGINT and SIGTERM may not be other ones at the end.
        patience_s: seconds that threads which were told to end have for it, 0 or more; they are
            waited for in this thread.

    Raises `ArgumentError`, when the body begins, for what is none of these.
    """
    return _Guarded(
        partial(
            Guard,
            block_s=block_s,
            tasks=tasks,
            threads=threads,
            files=files,
            processes=processes,
            signals=signals,
            patience_s=patience_s,
        )
    )


def add_to(error: BaseException, found: list[str]) -> None:
    """Add what a guard has found to an error that goes up, as a note."""
    if found:
        error.add_note(listed(found))


def listed(found: list[str]) -> str:
    """Give one text of all that a guard has found."""
    return "\n".join(f"the guard: {text}" for text in found)


def _check_flag(name: str, flag: object) -> None:
    if not isinstance(flag, bool):
        raise ArgumentError(
            f"{name} is {flag!r:.80}; expected True or False; give False to leave it out"
        )


def _checked_block(block_s: object) -> float:
    if block_s is None:
        return float("inf")
    seconds = seconds_of(block_s)
    if not seconds:
        raise ArgumentError(
            f"block_s is {block_s!r}; expected seconds, more than 0, or None; give None to let "
            "event loops be blocked"
        )
    return seconds


def _checked_patience(patience_s: object) -> float:
    seconds = seconds_of(patience_s)
    if seconds is None or seconds == float("inf"):
        raise ArgumentError(
            f"patience_s is {patience_s!r}; expected seconds, 0 or more; leave it out for "
            f"{PATIENCE_S:g}"
        )
    return seconds
