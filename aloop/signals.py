"""Signals of the process, heard through the event loop, beside whatever else listens to them.

All runs of an event loop share one switchboard for each signal, and every one of them hears every
press. The first one in keeps the handler that was there, the last one out puts that very object
back. There are two ways in:

- *taking over*, where the signal belongs to nobody but Python: `loop.add_signal_handler`;
- *chaining*, where the program has a handler of its own: over it, a handler that tells the event
  loop and calls the other one. A host that used `loop.add_signal_handler` itself could not be told
  from an event loop's own: it hears by the event loop's pipe all the same, because that is filled
  by the interpreter, whatever handler is in place.

What runs of it hear is a flag; besides that, a handler does no more than call the other one.
"""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Any, Final, Literal, TypeAlias, cast, get_args
from weakref import WeakMethod

from aloop.errors import ArgumentError
from aloop.faults import fault_point

__all__ = ["SIGNALS", "SignalMode", "check_mode", "subscribed"]

SignalMode: TypeAlias = Literal["auto", "chain", "replace", "off"]
"""``"auto"``: chain to a handler of the program, otherwise take over; ``"chain"``: chain to what
there is, Python's own included; ``"replace"``: take over, unless the handler is one that an event
loop could not be given back; ``"off"``: never listen."""

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
"""The signals that stop a run."""

_Listener: TypeAlias = Callable[[signal.Signals, bool], bool]

_Handler: TypeAlias = Any  # what signal.getsignal gives

_logger = logging.getLogger("aloop")


def check_mode(mode: object) -> SignalMode:
    """Give back the mode, or raise `ArgumentError` naming those that exist."""
    if isinstance(mode, str) and mode in get_args(SignalMode):
        return cast("SignalMode", mode)
    raise ArgumentError(
        f"signals is {mode!r}; expected one of {', '.join(map(repr, get_args(SignalMode)))}; "
        "leave it out for 'auto'"
    )


class _Switchboard:
    """The handler of one signal in one event loop, and the runs that listen to it.

    It is itself what is put in place, so that it can be told from any other handler.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, number: signal.Signals) -> None:
        self._loop = loop
        self._number = number
        # Weakly: a run whose event loop was closed under it can be collected, and leave.
        self._listeners: dict[int, WeakMethod[_Listener]] = {}
        self._earlier: _Handler = None
        self._is_chained = False
        self._is_heard_by_loop = False
        self._is_wanted = False  # by what was there before: a signal that no run took
        self._pressed = 0  # signals that came, and are still on their way through the event loop
        self._was_rung = False
        self._raised: BaseException | None = None  # by the handler it is chained to

    def plug_in(self, mode: SignalMode) -> None:
        """Take the place of the handler that is there."""
        self._earlier = _still_wanted(signal.getsignal(self._number))
        self._is_chained = mode == "chain" or (mode == "auto" and not _may_go(self._earlier))
        if not self._is_chained and _is_of_a_loop(self._earlier):
            self._is_chained = True
            _logger.info(
                "%s is heard by the program as well: what add_signal_handler has put in place "
                "could not be put back",
                self._number.name,
            )
        if not self._is_chained:
            # Where event loops have no handlers (on Windows, where this is untested), the one
            # below tells the event loop itself.
            with suppress(NotImplementedError):
                self._loop.add_signal_handler(self._number, self._on_pipe)
                self._is_heard_by_loop = True
        signal.signal(self._number, self)
        if hasattr(signal, "siginterrupt"):
            signal.siginterrupt(self._number, False)
        fault_point("signal.plugged")

    def add(self, key: int, listener: _Listener) -> None:
        self._listeners[key] = WeakMethod(listener)

    def remove(self, key: int) -> bool:
        """Take a listener out; True if it was the last one, and the earlier handler is back."""
        del self._listeners[key]
        if not self._listeners:
            self._give_back()
        return not self._listeners

    def pass_on(self) -> None:
        """Let happen what else the signal is for, now that the runs have settled."""
        if self._raised is not None:
            raise self._raised
        if self._is_chained:
            is_wanted = self._was_rung and self._earlier is signal.SIG_DFL
        else:
            is_wanted = self._is_wanted or self._pressed > 0
        if is_wanted:
            signal.raise_signal(self._number)

    @property
    def is_over(self) -> bool:
        """True when nobody listens any more, or nobody ever will again."""
        return not self._listeners or self._loop.is_closed()

    @property
    def earlier(self) -> _Handler:
        """The handler whose place this one took."""
        return self._earlier

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Hear the signal, in the main thread and between any two of its instructions."""
        if self._is_heard_by_loop:
            self._pressed += 1
            return
        try:
            self._loop.call_soon_threadsafe(self._ring)
        except RuntimeError:  # the event loop was closed under its runs
            if signal.getsignal(self._number) is self:
                self._give_back()
                signal.raise_signal(self._number)
                return
        if self._is_chained and callable(self._earlier):
            try:
                self._earlier(number, frame)
            except BaseException as error:  # noqa: BLE001 - raised when the runs have settled
                self._raised = self._raised or error

    def _on_pipe(self) -> None:
        # The event loop hears of a signal even if another handler was put over this one since, as
        # a notebook does for its next cell. Then it is meant for that one.
        if signal.getsignal(self._number) is self:
            self._pressed = max(0, self._pressed - 1)
            self._ring()

    def _ring(self) -> None:
        self._was_rung = True
        fault_point("signal.heard")
        listeners = [reference() for reference in self._listeners.values()]
        taken = [
            listener(self._number, self._is_chained)
            for listener in listeners
            if listener is not None
        ]
        self._is_wanted = self._is_wanted or not any(taken)

    def go_on_after_fork(self) -> None:
        """Leave the signals of this process alone, which was forked from that of the runs."""
        self._listeners.clear()
        if signal.getsignal(self._number) is not self:
            return
        if self._is_heard_by_loop:
            signal.set_wakeup_fd(-1)  # or the parent's event loop would hear of this one's signals
        signal.signal(self._number, _still_wanted(self._earlier))

    def _give_back(self) -> None:
        """Put the earlier handler back, unless the program has put another over this one."""
        now = signal.getsignal(self._number)
        is_closed = self._loop.is_closed()
        if now is self and self._is_heard_by_loop and not is_closed:
            self._loop.remove_signal_handler(self._number)
        # An event loop that is closed leaves Python's handlers in place of its own.
        if now is self or (self._is_heard_by_loop and is_closed and now in _PYTHONS):
            with suppress(ValueError):  # a run that is collected as garbage, in another thread
                signal.signal(self._number, _still_wanted(self._earlier))
        fault_point("signal.restored")


def _go_on_after_fork() -> None:
    boards = list(_switchboards.values())
    _switchboards.clear()
    for board in boards:
        board.go_on_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_go_on_after_fork)

_Key: TypeAlias = tuple[asyncio.AbstractEventLoop, signal.Signals]

_switchboards: dict[_Key, _Switchboard] = {}


@contextmanager
def subscribed(mode: SignalMode, listener: _Listener) -> Generator[None]:
    """Call `listener` with each SIGINT and SIGTERM while the body runs.

    It is a method, given the signal and whether a handler of the program hears it too; it says
    whether it will do as the signal tells. One that nobody does, because it comes when the runs
    are over, is raised anew for the earlier handler. What
    the handler raises is raised when the last body that listens has ended. Off the main thread,
    and where there is no handler to come back to, nothing is heard and a message says so.
    """
    loop = asyncio.get_running_loop()
    joined: list[_Key] = []
    reason = _reason_to_stay_out(mode)
    if reason is not None:
        _logger.info("signals do not stop this run: %s", reason)
    try:
        for number in SIGNALS if reason is None else ():
            key = (loop, number)
            reason = None if key in _switchboards else _open_switchboard(mode, key)
            if reason is not None:
                _logger.info("%s does not stop this run: %s", number.name, reason)
                continue
            _switchboards[key].add(id(joined), listener)
            joined.append(key)
        yield
    finally:
        ended = [_switchboards.pop(key) for key in joined if _switchboards[key].remove(id(joined))]
        with ExitStack() as last:
            for board in ended:
                last.callback(board.pass_on)


_PYTHONS: Final = (signal.SIG_DFL, signal.default_int_handler)


def _reason_to_stay_out(mode: SignalMode) -> str | None:
    if mode == "off":
        return "signals='off'"
    if threading.current_thread() is not threading.main_thread():
        return "they reach the main thread alone"
    return None


def _open_switchboard(mode: SignalMode, key: _Key) -> str | None:
    """Open a switchboard in place of the handler that is there, or give the reason not to."""
    handler = signal.getsignal(key[1])
    if handler is None:
        return "it has a handler that was not set from Python"
    if mode == "auto" and handler is signal.SIG_IGN:
        return "the program ignores it"
    board = _Switchboard(*key)
    try:
        board.plug_in(mode)
    except (RuntimeError, ValueError, OSError) as error:
        return str(error)
    _switchboards[key] = board
    return None


def _may_go(handler: _Handler) -> bool:
    """Tell the handlers that a run does the work of: it knows better how to stop itself."""
    module = str(getattr(handler, "__module__", ""))
    is_notebooks = module.partition(".")[0] == "ipykernel"  # cancels the cell
    return handler in _PYTHONS or _is_from_runner(handler) or is_notebooks


def _still_wanted(handler: _Handler) -> _Handler:
    """Give the handler, or what to put in its place when what it belongs to is over."""
    if isinstance(handler, _Switchboard) and handler.is_over:
        return _still_wanted(handler.earlier)
    if _is_from_runner(handler):
        task = getattr(handler, "keywords", {}).get("main_task")
        if isinstance(task, asyncio.Task) and task.done():
            return signal.default_int_handler
    return handler


def _is_of_a_loop(handler: _Handler) -> bool:
    """Tell what an event loop puts in place for a handler of the program, which it alone knows."""
    module = str(getattr(handler, "__module__", ""))
    return module.partition(".")[0] in ("asyncio", "uvloop") and not _is_from_runner(handler)


def _is_from_runner(handler: _Handler) -> bool:
    function = getattr(handler, "func", handler)  # asyncio.Runner sets a functools.partial
    return isinstance(getattr(function, "__self__", None), asyncio.Runner)
