"""An event loop that counts its turns, and shuffles what is ready; see `virtual_loop`."""

import asyncio
import heapq
import selectors
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from random import Random
from typing import Any

from aloop.errors import ArgumentError, seconds_of

__all__ = ["SteppedLoop", "checked_delay"]


class _Ready(deque[asyncio.Handle]):
    """The handles that are ready, counted as the loop takes them."""

    def __init__(self) -> None:
        super().__init__()
        self.turns = 0
        self.at_turn: dict[int, deque[Callable[[], object]]] = {}

    def popleft(self) -> asyncio.Handle:
        """Give the next handle, when what was to be called before it has been."""
        callbacks = self.at_turn.get(self.turns + 1)
        while callbacks:  # any of which may add another one
            callbacks.popleft()()
        self.turns += 1
        self.at_turn.pop(self.turns, None)
        return super().popleft()

    def drain(self) -> list[asyncio.Handle]:
        """Take out all there are, which is no turn."""
        # One by one: another thread may put something in meanwhile.
        return [super(_Ready, self).popleft() for _ in range(len(self))]


class SteppedLoop(asyncio.SelectorEventLoop):
    """An event loop that counts its rounds and turns, and shuffles what is ready; see the module.

    A turn is one handle that the loop takes out of those that are ready: it is run or, where it
    was cancelled meanwhile, dropped.

    Parameters:
        seed: decides the order of what is ready in a round; None keeps the order of asyncio.
        delay: the share of handles that are put off to the next round, 0 to less than 1; needs a
            seed.
    """

    rounds: int
    """How many rounds the loop has turned."""

    # Those of asyncio, which its types do not tell of.
    _clock_resolution: float
    _scheduled: list[asyncio.TimerHandle]
    _timer_cancelled_count: int

    def __init__(
        self,
        seed: object = None,
        delay: float = 0.0,
        *,
        selector: selectors.BaseSelector | None = None,
    ) -> None:
        self._random = None if seed is None else Random(repr(seed))  # noqa: S311 - no secret
        self._put_off: list[asyncio.Handle] = []
        self._at_round: dict[int, list[Callable[[], object]]] = {}
        self.rounds = 0
        super().__init__(selector)
        self._ready = _Ready()
        try:
            self._delay = checked_delay(delay, seed)
        except ArgumentError:
            self.close()  # or it would complain when it is collected
            raise

    @property
    def turns(self) -> int:
        """How many turns there have been, the one that is under way included."""
        return self._ready.turns

    def call_at_round(self, number: int, callback: Callable[[], object]) -> None:
        """Call something in the given round, among all that is ready there.

        What it raises goes where the failures of handles go. Raises `ArgumentError` for a round
        that has been, or is none, and for what cannot be called.
        """
        _check("round", number, self.rounds, callback)
        self._at_round.setdefault(number, []).append(callback)

    def call_at_turn(self, number: int, callback: Callable[[], object]) -> None:
        """Call something right before the given turn, which is between any two handles.

        The first turn of the loop's life has the number 1. The call is no turn itself; from within
        one of these calls the next turn is still the one that it comes before. What it raises goes
        up, out of what runs the loop. Raises `ArgumentError` for a turn that has been, or is none,
        and for what cannot be called.
        """
        _check("turn", number, self.turns + 1, callback)
        call = partial(copy_context().run, callback)
        self._ready.at_turn.setdefault(number, deque()).append(call)

    def _run_once(self) -> None:
        self._ready.extend(self._put_off)
        self._put_off.clear()
        super()._run_once()  # pyright: ignore[reportUnknownMemberType, reportAttributeAccessIssue] - not in its types

    def _process_events(self, event_list: list[Any]) -> None:
        """Gather what this round has to do, and shuffle it; called once in each round."""
        super()._process_events(event_list)  # pyright: ignore[reportUnknownMemberType, reportAttributeAccessIssue] - not in its types
        for callback in self._at_round.pop(self.rounds, ()):
            self.call_soon(callback)
        # Those that asyncio itself would take next: here, so that they are shuffled too.
        timers: list[asyncio.TimerHandle] = []
        end = self.time() + self._clock_resolution
        while self._scheduled and self._scheduled[0].when() < end:
            timers.append(self._pop_timer())
        self._ready.extend(timers)
        self.rounds += 1
        if self._random is not None:
            self._shuffle(self._random)

    def _pop_timer(self) -> asyncio.TimerHandle:
        handle = heapq.heappop(self._scheduled)
        if handle.cancelled():
            self._timer_cancelled_count -= 1
        handle._scheduled = False  # type: ignore[attr-defined]  # noqa: SLF001 - as asyncio does
        return handle

    def _shuffle(self, random: Random) -> None:
        handles = self._ready.drain()
        random.shuffle(handles)
        if self._delay:
            # By place: a signal that came twice has one and the same handle here twice.
            late = sum(random.random() < self._delay for _ in handles[1:])
            self._put_off, handles = handles[:late], handles[late:]
        self._ready.extend(handles)


def checked_delay(delay: object, seed: object) -> float:
    """Give the share of handles that are put off, which takes a seed.

    Raises `ArgumentError` for what is none, and without a seed.
    """
    share = seconds_of(delay)  # a number from 0 on
    if share is None or share >= 1:
        raise ArgumentError(
            f"delay is {delay!r}; expected a share of the handles, 0 to less than 1; leave it out "
            "to put off none"
        )
    if share and seed is None:
        raise ArgumentError(
            f"delay is {delay!r} without a seed; expected one, which decides what is put off; give "
            "seed=1, or seeds=range(10) to in_virtual_time"
        )
    return share


def _check(what: str, number: object, first: int, callback: object) -> None:
    if not isinstance(number, int) or number is True:
        raise ArgumentError(
            f"{what} is {number!r:.80}; expected a whole number; count from the loop's {what}s"
        )
    if number < first:
        raise ArgumentError(
            f"{what} {number} has been; expected {first} or a later one; count from the loop's "
            f"{what}s"
        )
    if not callable(callback):
        raise ArgumentError(
            f"the callback is {callback!r:.80}; expected a function without arguments; write "
            "lambda: …"
        )
