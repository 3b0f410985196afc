"""The stall guard: who held up the event loop, and where.

A thread beside the event loop asks it again and again for an answer. When none comes it looks
twice at the stack of the event loop's thread, in the middle and at the end of the warning time:
what is in it both times holds the event loop. Nothing is added to what is watched, so that the
guard costs its questions and a thread that mostly sleeps. No timer of the event loop is needed,
whose clock may be any.
"""

import asyncio
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from types import CodeType, FrameType
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary, ref

from aloop.errors import ArgumentError, seconds_of

__all__ = ["blames", "check_warning_time", "watched"]

STEPS: Final = 2
"""How often the event loop is asked in the warning time. A hold that lasts half as long again as
that is noticed for sure, a shorter one perhaps."""

LEAST_S: Final = 0.001
"""The least warning time, below which the guard would be what holds the event loop."""

OTHER: Final = "code of the program, outside its runs,"

_MAX_FRAMES: Final = 10
_MAX_TEXT: Final = 200  # characters of what is to blame

_F = TypeVar("_F", bound=Callable[..., Any])

_marks: dict[CodeType, str] = {}

_logger = logging.getLogger("aloop")


def blames(what: str) -> Callable[[_F], _F]:
    """Say who is to blame when a function, or what it calls, holds the event loop.

    `what` is a format that is filled in from the local variables of the function. The innermost
    function that says so is believed.
    """

    def mark(function: _F) -> _F:
        _marks[function.__code__] = what
        return function

    return mark


def check_warning_time(stall_warning_s: object) -> float:
    """Give back the warning time in seconds, 0 to have none; `ArgumentError` if it is no such."""
    seconds = seconds_of(stall_warning_s)
    if seconds == 0 or (seconds is not None and LEAST_S <= seconds < float("inf")):
        return seconds
    raise ArgumentError(
        f"stall_warning_s is {stall_warning_s!r}; expected seconds, {LEAST_S:g} or more, or 0 to "
        "watch nothing; leave it out for the setting of that name"
    )


@dataclass
class _Blame:
    """What one culprit has done."""

    times: int = 0
    longest_s: float = 0.0


class _Guard:
    """Watches one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, warning_s: float) -> None:
        self.users = 0
        self._loop = ref(loop)  # one that is closed under its runs is to be collected
        self._warning_s = warning_s
        self._step_s = warning_s / STEPS
        self._watched_thread = threading.get_ident()
        self._answered_at: float | None = monotonic()
        self._blamed: dict[str, _Blame] = {}
        self._ending = threading.Lock()  # which is half the price of an event
        self._ending.acquire()
        self._thread = threading.Thread(target=self._watch, name="aloop stall guard", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and say how often the event loop was held."""
        self._ending.release()
        self._thread.join()
        for culprit, blame in self._blamed.items():
            if blame.times > 1:
                _logger.warning(
                    "%s held the event loop %d times, for %.3g s at the longest",
                    culprit,
                    blame.times,
                    blame.longest_s,
                )

    def _watch(self) -> None:
        asked_at = 0.0
        while not self._is_ended_in(self._step_s):
            if self._answered_at is not None:
                asked_at = monotonic()
                if not self._ask():
                    return
            elif self._is_running():
                first = _Look(self._watched_thread)
                left_s = asked_at + self._warning_s - monotonic()
                if self._is_ended_in(max(self._step_s, left_s)):  # it may be late itself
                    return
                if self._answered_at is None and self._is_running():
                    self._blame(first, asked_at)
                del first  # or what is in it would live on

    def _is_ended_in(self, seconds: float) -> bool:
        return self._ending.acquire(timeout=seconds)

    def _ask(self) -> bool:
        """Ask the event loop for an answer, and say whether it can ever give one."""
        self._answered_at = None
        loop = self._loop()
        try:
            if loop is not None:
                loop.call_soon_threadsafe(self._answer)
        except RuntimeError:  # it was closed under its runs
            return False
        return loop is not None

    def _answer(self) -> None:
        self._answered_at = monotonic()

    def _is_running(self) -> bool:
        loop = self._loop()
        return loop is not None and loop.is_running()

    def _blame(self, first: "_Look", asked_at: float) -> None:
        """Count who holds the event loop, and name them the first time."""
        second = _Look(self._watched_thread)
        held = second.held_since(first)
        if not held:
            return  # it is idle, or many have had their turns
        number, culprit = _to_blame(held)
        if culprit not in self._blamed:
            innermost = second.frames[number:][-_MAX_FRAMES:]
            frames = traceback.StackSummary.extract((f, f.f_lineno) for f in innermost)
            _logger.warning(
                "%s has held the event loop: nothing else could go on for more than %g s; it can "
                "await run_in_worker(…) for what takes long. It is at\n%s",
                culprit,
                self._warning_s,
                "".join(frames.format()).rstrip(),
            )
        del first, second, held
        ended = False
        while self._answered_at is None and not ended:
            ended = self._is_ended_in(self._step_s)
        if ended:
            self._ending.release()  # for those who look for the end after this
        blame = self._blamed.setdefault(culprit, _Blame())
        blame.times += 1
        blame.longest_s = max(blame.longest_s, (self._answered_at or monotonic()) - asked_at)


class _Look:
    """What a thread was at: its frames from the outermost to the innermost.

    Of functions that call one thing after the other, and say who is to blame for it, it keeps what
    they said then.
    """

    def __init__(self, thread: int) -> None:
        # Public, as its documentation says.
        frame = sys._current_frames().get(thread)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        self.frames: list[FrameType] = []
        while frame is not None:
            self.frames.insert(0, frame)
            frame = frame.f_back
        self._said = {
            id(frame): (frame.f_lasti, _blame(frame))
            for frame in self.frames
            if frame.f_code in _marks
        }

    def held_since(self, first: "_Look") -> list[FrameType]:
        """Give the frames that were there at an earlier look too; none if nothing was held."""
        same = 0
        while same < min(len(first.frames), len(self.frames)) and (
            first.frames[same] is self.frames[same]
        ):
            same += 1
        held = self.frames[:same]
        if not held or _is_event_loops(held[-1]):
            return []
        key = id(held[-1])
        if key in self._said and self._said[key] != first._said[key]:  # noqa: SLF001 - its own class
            return []  # it has called one after the other
        return held


def _is_event_loops(frame: FrameType) -> bool:
    module = str(frame.f_globals.get("__name__", ""))
    return module.partition(".")[0] in ("asyncio", "selectors", "uvloop")


def _blame(frame: FrameType) -> str:
    try:
        text = _marks[frame.f_code].format_map(frame.f_locals)
    except Exception:  # noqa: BLE001 - somebody's own representation fails
        return frame.f_code.co_qualname
    return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "…"


def _to_blame(held: list[FrameType]) -> tuple[int, str]:
    """Give the place, in a stack that holds the event loop, of who is to blame, and who that is."""
    for number in reversed(range(len(held))):
        if held[number].f_code in _marks:
            return number, _blame(held[number])
    # What the event loop has called is the first that is not its own.
    number = len(held) - 1
    while number and not _is_event_loops(held[number - 1]):
        number -= 1
    return number, OTHER


_guards: "WeakKeyDictionary[asyncio.AbstractEventLoop, dict[float, _Guard]]" = WeakKeyDictionary()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _guards.clear())  # whose threads are the parent's


@contextmanager
def watched(warning_s: float) -> Generator[None]:
    """Watch the running event loop while the body runs; 0 watches nothing.

    What holds it for longer than this is named, with the stack at the time, the first time at
    once. How often that was, and for how long, is said when the last body has ended.
    """
    if not warning_s:
        yield
        return
    loop = asyncio.get_running_loop()
    guards = _guards.setdefault(loop, {})
    guard = guards.get(warning_s)
    if guard is None:
        guard = _Guard(loop, warning_s)
        guard.start()
        guards[warning_s] = guard
    guard.users += 1
    try:
        yield
    finally:
        guard.users -= 1
        if not guard.users and guards.get(warning_s) is guard:
            del guards[warning_s]
            guard.stop()
