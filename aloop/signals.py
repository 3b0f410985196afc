"""Signals of the process, heard through the event loop.

All runs of an event loop share one handler for each signal, and every one of them hears every
press. The first one in keeps the handler that was there, the last one out puts that very object
back. Handlers only set flags; the runs look at them.
"""

import asyncio
import logging
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, Literal, TypeAlias, cast, get_args

from aloop.errors import ArgumentError

__all__ = ["SIGNALS", "SignalMode", "check_mode", "subscribed"]

SignalMode: TypeAlias = Literal["auto", "off"]
"""``"auto"``: listen unless the program has handlers of its own; ``"off"``: never listen."""

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
"""The signals that stop a run."""

_Listener: TypeAlias = Callable[[signal.Signals], None]

_logger = logging.getLogger("aloop")


def check_mode(mode: object) -> SignalMode:
    """Give back the mode, or raise `ArgumentError` naming those that exist."""
    if mode in get_args(SignalMode):
        return cast("SignalMode", mode)
    raise ArgumentError(
        f"signals is {mode!r}; expected one of {', '.join(map(repr, get_args(SignalMode)))}; "
        "leave it out for 'auto'"
    )


class _HeardElsewhere:
    """A handler that does nothing, one of its own for each switchboard."""

    def __call__(self, number: int, frame: FrameType | None) -> None:
        pass


class _Switchboard:
    """The handler of one signal in one event loop, and the runs that listen to it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, number: signal.Signals) -> None:
        self._loop = loop
        self._number = number
        self._listeners: list[_Listener] = []
        self._earlier: Any = None  # whatever signal.getsignal gives
        self._ours: Any = None

    def add(self, listener: _Listener) -> None:
        if not self._listeners:
            self._earlier = signal.getsignal(self._number)
            self._loop.add_signal_handler(self._number, self._ring)
            # asyncio leaves one and the same function there for everybody. In its place one that
            # can be told from others; the event loop hears of signals all the same, by its pipe.
            self._ours = _HeardElsewhere()
            signal.signal(self._number, self._ours)
            signal.siginterrupt(self._number, False)
        self._listeners.append(listener)

    def remove(self, listener: _Listener) -> bool:
        """Take a listener out; True if it was the last one."""
        self._listeners.remove(listener)
        if self._listeners:
            return False
        still_ours = signal.getsignal(self._number) is self._ours
        if still_ours and not self._loop.is_closed():
            # Removal alone would leave Python's default, not what was there before.
            self._loop.remove_signal_handler(self._number)
            signal.signal(self._number, _still_wanted(self._earlier))
        return True

    def _ring(self) -> None:
        for listener in tuple(self._listeners):
            listener(self._number)


_switchboards: dict[tuple[asyncio.AbstractEventLoop, signal.Signals], _Switchboard] = {}


@contextmanager
def subscribed(mode: SignalMode, listener: _Listener) -> Generator[None]:
    """Call `listener` with each SIGINT and SIGTERM while the body runs.

    Off the main thread, on event loops that have no signal handlers, and where the program has a
    handler of its own, nothing is heard and one message says so.
    """
    loop = asyncio.get_running_loop()
    joined: list[signal.Signals] = []
    try:
        for number in SIGNALS if mode == "auto" else ():
            reason = _reason_to_stay_out(loop, number)
            if reason is not None:
                _logger.info("%s does not stop this run: %s", number.name, reason)
                continue
            key = (loop, number)
            board = _switchboards.get(key) or _Switchboard(*key)
            try:
                board.add(listener)
            except (NotImplementedError, RuntimeError) as error:
                _logger.info("%s does not stop this run: %s", number.name, error or "no support")
                continue
            _switchboards[key] = board
            joined.append(number)
        yield
    finally:
        for number in joined:
            if _switchboards[loop, number].remove(listener):
                del _switchboards[loop, number]


def _reason_to_stay_out(loop: asyncio.AbstractEventLoop, number: signal.Signals) -> str | None:
    if threading.current_thread() is not threading.main_thread():
        return "signals reach the main thread alone"
    if (loop, number) in _switchboards:
        return None
    handler = signal.getsignal(number)
    if handler in (signal.SIG_DFL, signal.default_int_handler):
        return None
    if handler is None:
        return "it has a handler that was not set from Python"
    # asyncio.run has a handler for SIGINT, which cancels the main task; a run knows better.
    if _is_from_runner(handler):
        return None
    return f"the program has a handler of its own, {handler!r}"


def _still_wanted(handler: Any) -> Any:
    """Give the handler, or Python's own in place of that of an asyncio.run which is over."""
    task = getattr(handler, "keywords", {}).get("main_task")
    is_over = _is_from_runner(handler) and isinstance(task, asyncio.Task) and task.done()
    return signal.default_int_handler if is_over else handler


def _is_from_runner(handler: Any) -> bool:
    function = getattr(handler, "func", handler)  # asyncio.Runner sets a functools.partial
    return isinstance(getattr(function, "__self__", None), asyncio.Runner)
