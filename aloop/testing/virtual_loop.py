"""Event loops that count their turns and shuffle them, and one whose clock is virtual.

In a `SteppedLoop` a test can act between any two handles of its life, and what is ready in one
round runs in an order that a seed decides, some of it a few rounds late. So one test goes through
many interleavings, and the seed of a failure gives that failure again. In a `VirtualLoop` time
passes only when nothing else is left to do: then the clock jumps to the next timer, so that 30
seconds of grace cost nothing::

    @in_virtual_time(seeds=range(20))
    async def test_a_stop_is_heard() -> None: ...

    run_virtual(main(), seed=17)

The shuffle is harsher than what asyncio promises: `call_soon` keeps the order of its calls, and
these loops do not. CPython 3.11's own tests of tasks, locks, queues, timeouts, `wait_for` and task
groups, run on a `VirtualLoop`, say what that breaks: of 1,109 tests none fails with the order
kept, and with the shuffle in three seeds those which count turns ("it is waiting after one
run_briefly") or assert that waiters are served in the order in which they came. The state of a
task, a future, a lock or a timeout is sound in any order: a task has at most one step in the ready
queue, and two handles that are ready at the same time belong to different chains of wake-ups. So
all handles are shuffled, without a list of exceptions. What does lean on the order is a transport
(`connection_made` comes before the first byte because it was put into the queue first), so nothing
that has one is to be run in a shuffled loop. A failure found with the shuffle is a bug whenever a
chain of wake-ups that is longer or shorter by a turn would bring about the same order, since the
length of such a chain is nobody's promise.

What comes from outside of a `VirtualLoop` (a signal, a thread, a file descriptor) is waited for in
real time, for a moment before the clock jumps. Where a wait could not end, `DeadlockError` names
the tasks that wait instead of hanging; where the loop turns without end and no time passes,
`LivelockError` does.
"""

import asyncio
import heapq
import selectors
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from functools import wraps
from inspect import iscoroutinefunction
from operator import index
from random import Random
from typing import Any, Final, ParamSpec, TypeVar, cast

from aloop.errors import ArgumentError, seconds_of
from aloop.tasks import whereabouts

__all__ = [
    "DeadlockError",
    "LivelockError",
    "SteppedLoop",
    "VirtualLoop",
    "in_virtual_time",
    "run_virtual",
]

T = TypeVar("T")
P = ParamSpec("P")

START_S: Final = 1_000.0
"""What the clock shows at first."""

OUTSIDE_S: Final = 0.02
"""Real seconds that a thread has to wake the loop before the clock jumps."""

DEADLOCK_S: Final = 5.0
"""Real seconds that a thread has to wake a loop that has no timer."""

MAX_ROUNDS: Final = 20_000
"""How many rounds the loop may turn while no time passes."""


class DeadlockError(RuntimeError):
    """Nothing is ready, no timer runs, and nobody outside could wake the loop."""


class LivelockError(RuntimeError):
    """The loop turns and turns, and no time passes."""


class _Ready(deque[asyncio.Handle]):
    """The handles that are ready, counted as the loop takes them."""

    def __init__(self) -> None:
        super().__init__()
        self.turns = 0
        self.at_turn: dict[int, list[asyncio.Handle]] = {}

    def popleft(self) -> asyncio.Handle:
        """Give the next handle, when what was to be called before it has been."""
        for handle in self.at_turn.pop(self.turns + 1, ()):
            handle._run()  # noqa: SLF001 - as the loop runs all others
        self.turns += 1
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
        delay: the share of handles that are put off to the next round, 0 to less than 1.
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
            self._delay = _checked_delay(delay)
        except ArgumentError:
            self.close()  # or it would complain when it is collected
            raise

    @property
    def turns(self) -> int:
        """How many turns there have been, the one that is under way included."""
        return self._ready.turns

    def call_at_round(self, number: int, callback: Callable[[], object]) -> None:
        """Call something in the given round, among all that is ready there.

        Raises `ArgumentError` for a round that has been.
        """
        if index(number) < self.rounds:
            raise _past("round", number, self.rounds)
        self._at_round.setdefault(number, []).append(callback)

    def call_at_turn(self, number: int, callback: Callable[[], object]) -> None:
        """Call something right before the given turn, which is between any two handles.

        The first turn of the loop's life has the number 1. The call is no turn itself, and what it
        raises goes where the failures of handles go. Raises `ArgumentError` for a turn that has
        been.
        """
        if index(number) <= self.turns:
            raise _past("turn", number, self.turns + 1)
        handle = asyncio.Handle(callback, (), self)
        self._ready.at_turn.setdefault(number, []).append(handle)

    def _run_once(self) -> None:
        self._ready.extend(self._put_off)
        self._put_off.clear()
        super()._run_once()  # pyright: ignore[reportUnknownMemberType, reportAttributeAccessIssue]

    def _process_events(self, event_list: list[Any]) -> None:
        """Gather what this round has to do, and shuffle it; called once in each round."""
        super()._process_events(event_list)  # pyright: ignore[reportUnknownMemberType, reportAttributeAccessIssue]
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


class _Selector(selectors.DefaultSelector):
    """Never waits by itself; the loop says how long nothing happens."""

    def __init__(self, nothing_is_ready: Callable[[], list[Any]]) -> None:
        super().__init__()
        self._nothing_is_ready = nothing_is_ready

    def select(self, timeout: float | None = None) -> list[Any]:
        events = self.wait(0)
        if events or (timeout is not None and timeout <= 0):
            return events
        return self._nothing_is_ready()

    def wait(self, seconds: float) -> list[Any]:
        """Wait for what comes from outside, in real time."""
        return super().select(seconds)


class VirtualLoop(SteppedLoop):
    """An event loop with a virtual clock; see the module.

    Parameters:
        seed: decides the order of what is ready in a round; None keeps the order of asyncio.
        delay: the share of handles that are put off to the next round, 0 to less than 1.
    """

    def __init__(self, seed: object = None, delay: float = 0.0) -> None:
        self._now = START_S
        self._idle_rounds = 0
        self._threads = set(threading.enumerate())
        self._outside = _Selector(self._nothing_is_ready)
        super().__init__(seed, delay, selector=self._outside)

    def time(self) -> float:
        """Give the virtual time, in seconds."""
        return self._now

    def _process_events(self, event_list: list[Any]) -> None:
        super()._process_events(event_list)
        self._idle_rounds += 1
        if self._idle_rounds > MAX_ROUNDS:
            self._idle_rounds = 0  # or those who clean up would never get a turn
            raise LivelockError(f"{MAX_ROUNDS} rounds at {self._now:g} s;\n{self._tasks()}")

    def _nothing_is_ready(self) -> list[Any]:
        """Wait for what may come from outside, then let the time pass to the next timer."""
        seconds = OUTSIDE_S if self._scheduled else DEADLOCK_S
        # A thread may have woken the loop, and ended, since the loop has looked.
        events = self._outside.wait(seconds if self._can_be_woken() else 0)
        if events:
            return events
        if not self._scheduled:
            if self._at_round:
                return []
            raise DeadlockError(f"nothing will ever happen at {self._now:g} s;\n{self._tasks()}")
        self._now = max(self._now, self._scheduled[0].when())
        self._idle_rounds = 0
        return []

    def _can_be_woken(self) -> bool:
        own = 1  # the pipe by which threads and signals wake the loop
        if len(self._outside.get_map()) > own:
            return True
        return any(thread not in self._threads for thread in threading.enumerate())

    def _tasks(self) -> str:
        tasks = sorted(asyncio.all_tasks(self), key=lambda task: task.get_name())
        where = [
            f"{task.get_name()!r} in {whereabouts(cast('Any', task.get_coro()))}" for task in tasks
        ]
        return "pending: " + ("\n".join(where) or "no task at all")


def run_virtual(coroutine: Coroutine[Any, Any, T], *, seed: object = None, delay: float = 0.0) -> T:
    """Run a coroutine as `asyncio.run` does, in a new `VirtualLoop`."""
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(seed, delay)) as runner:
        return runner.run(coroutine)


def in_virtual_time(
    *, seeds: Iterable[object] | None = None, delay: float = 0.0
) -> Callable[[Callable[P, Coroutine[Any, Any, object]]], Callable[P, None]]:
    """Make a sync test of an async one, which runs in a `VirtualLoop`, once for each seed.

    It takes the fixtures and parameters of the function, which all its runs share, and no mark of
    a plugin for async tests. What a run raises has a note that tells the seed.

    Parameters:
        seeds: of the runs; without, one run that keeps the order of asyncio.
        delay: the share of handles that are put off to the next round, 0 to less than 1; needs
            seeds.

    Raises `ArgumentError` for seeds that are none, and for what is no coroutine function.
    """
    each = (None,) if seeds is None else tuple(seeds)
    if not each:
        raise ArgumentError(
            f"seeds is {seeds!r}, which has none; expected one or more, or the test would run "
            "nothing; leave it out for one run in the order of asyncio"
        )
    if _checked_delay(delay) and seeds is None:
        raise ArgumentError(
            f"delay is {delay!r} without seeds; expected some, which say what is put off; give "
            "seeds=range(10)"
        )

    def decorate(function: Callable[P, Coroutine[Any, Any, object]]) -> Callable[P, None]:
        if not iscoroutinefunction(function):
            raise ArgumentError(
                f"in_virtual_time was put on {function!r:.80}; expected a coroutine function; "
                "write async def"
            )

        @wraps(function)
        def run_each(*args: P.args, **kwargs: P.kwargs) -> None:
            for seed in each:
                try:
                    run_virtual(function(*args, **kwargs), seed=seed, delay=delay)
                except BaseException as error:
                    error.add_note(f"in virtual time, with the seed {seed!r}, delay={delay:g}")
                    raise

        return run_each

    return decorate


def _checked_delay(delay: object) -> float:
    share = seconds_of(delay)  # a number from 0 on
    if share is None or share >= 1:
        raise ArgumentError(
            f"delay is {delay!r}; expected a share of the handles, 0 to less than 1; leave it out "
            "to put off none"
        )
    return share


def _past(what: str, number: int, first: int) -> ArgumentError:
    return ArgumentError(
        f"{what} {number} has been; expected {first} or a later one; count from the loop's {what}s"
    )
