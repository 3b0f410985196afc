"""An event loop whose clock is virtual and whose turns are shuffled.

Time passes only when nothing else is left to do: then the clock jumps to the next timer, so that
30 seconds of grace cost nothing. What is ready in one round of the loop runs in an order that a
seed decides, and some of it a few rounds late, so that one test goes through many interleavings
and the seed of a failure gives that failure again::

    virtual_loop.run(main(), seed=17)

The shuffle is harsher than what asyncio promises: `call_soon` keeps the order of its calls, and
this loop does not. CPython 3.11's own tests of tasks, locks, queues, timeouts, `wait_for` and task
groups, run on this loop, say what that breaks: of 1,109 tests none fails with the order kept, and
with the shuffle in three seeds those which count turns ("it is waiting after one run_briefly") or
assert that waiters are served in the order in which they came. The state of a task, a future, a
lock or a timeout is sound in any order: a task has at most one step in the ready queue, and two
handles that are ready at the same time belong to different chains of wake-ups. So all handles are
shuffled, without a list of exceptions. What does lean on the order is a transport
(`connection_made` comes before the first byte because it was put into the queue first), so nothing
that has one is to be run here. A failure found with the shuffle is a bug whenever a chain of
wake-ups that is longer or shorter by a turn would bring about the same order, since the length of
such a chain is nobody's promise.

What comes from outside of the loop (a signal, a thread, a file descriptor) is waited for in real
time, for a moment before the clock jumps. Where a wait could not end, `DeadlockError` names the
tasks that wait instead of hanging; where the loop turns without end and no time passes,
`LivelockError` does.
"""

import asyncio
import heapq
import selectors
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from random import Random
from typing import Any, TypeVar

T = TypeVar("T")

START_S = 1_000.0
"""What the clock shows at first."""

OUTSIDE_S = 0.02
"""Real seconds that a thread has to wake the loop before the clock jumps."""

DEADLOCK_S = 5.0
"""Real seconds that a thread has to wake a loop that has no timer."""

MAX_ROUNDS = 20_000
"""How many rounds the loop may turn while no time passes."""


class DeadlockError(RuntimeError):
    """Nothing is ready, no timer runs, and nobody outside could wake the loop."""


class LivelockError(RuntimeError):
    """The loop turns and turns, and no time passes."""


class _Selector(selectors.DefaultSelector):
    """Never waits by itself; the loop says how long nothing happens."""

    loop: "VirtualLoop"

    def select(self, timeout: float | None = None) -> list[Any]:
        events = super().select(0)
        if events or (timeout is not None and timeout <= 0):
            return events
        return self.loop._nothing_is_ready(super().select)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop with a virtual clock; see the module.

    Parameters:
        seed: decides the order of what is ready in a round; None keeps the order of asyncio.
        delay: the share of handles that are put off to the next round, 0 to less than 1.
    """

    def __init__(self, seed: object = None, delay: float = 0.0) -> None:
        self._now = START_S
        self._random = None if seed is None else Random(repr(seed))  # noqa: S311 - no secret
        self._delay = delay
        self._put_off: list[asyncio.Handle] = []
        self._at_round: dict[int, list[Callable[[], object]]] = {}
        self._idle_rounds = 0
        self._threads = set(threading.enumerate())
        self.rounds = 0
        """How many rounds the loop has turned."""
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        """Give the virtual time, in seconds."""
        return self._now

    def call_at_round(self, number: int, callback: Callable[[], object]) -> None:
        """Call something in the given round, among all that is ready there."""
        self._at_round.setdefault(number, []).append(callback)

    def _run_once(self) -> None:
        self._ready.extend(self._put_off)
        self._put_off.clear()
        super()._run_once()

    def _process_events(self, event_list: list[Any]) -> None:
        """Gather what this round has to do, and shuffle it; called once in each round."""
        super()._process_events(event_list)
        for callback in self._at_round.pop(self.rounds, ()):
            self.call_soon(callback)
        # Those that asyncio itself would take next: here, so that they are shuffled too.
        timers: list[asyncio.TimerHandle] = []
        while self._scheduled and self._scheduled[0]._when < self._now + self._clock_resolution:
            timers.append(self._pop_timer())
        self._ready.extend(timers)
        self.rounds += 1
        self._idle_rounds += 1
        if self._idle_rounds > MAX_ROUNDS:
            self._idle_rounds = 0  # or those who clean up would never get a turn
            raise LivelockError(f"{MAX_ROUNDS} rounds at {self._now:g} s;\n{self._tasks()}")
        if self._random is not None:
            self._shuffle(self._random)

    def _pop_timer(self) -> asyncio.TimerHandle:
        handle = heapq.heappop(self._scheduled)
        if handle._cancelled:
            self._timer_cancelled_count -= 1
        handle._scheduled = False
        return handle

    def _shuffle(self, random: Random) -> None:
        # Taken out one by one: another thread may put something in meanwhile.
        handles = [self._ready.popleft() for _ in range(len(self._ready))]
        random.shuffle(handles)
        if self._delay:
            # By place: a signal that came twice has one and the same handle here twice.
            late = sum(random.random() < self._delay for _ in handles[1:])
            self._put_off, handles = handles[:late], handles[late:]
        self._ready.extend(handles)

    def _nothing_is_ready(self, wait: Callable[[float], list[Any]]) -> list[Any]:
        """Wait for what may come from outside, then let the time pass to the next timer."""
        if self._can_be_woken():
            events = wait(OUTSIDE_S if self._scheduled else DEADLOCK_S)
            if events:
                return events
        if not self._scheduled:
            if any(number >= self.rounds for number in self._at_round):
                return []
            raise DeadlockError(f"nothing will ever happen at {self._now:g} s;\n{self._tasks()}")
        self._now = max(self._now, self._scheduled[0]._when)
        self._idle_rounds = 0
        return []

    def _can_be_woken(self) -> bool:
        own = 1  # the pipe by which threads and signals wake the loop
        if len(self._selector.get_map()) > own:
            return True
        return any(thread not in self._threads for thread in threading.enumerate())

    def _tasks(self) -> str:
        tasks = sorted(asyncio.all_tasks(self), key=lambda task: task.get_name())
        return "pending: " + ("\n".join(map(_where, tasks)) or "no task at all")


def _where(task: "asyncio.Task[Any]") -> str:
    """Say where a task waits, as deep as its coroutines go."""
    coroutine: Any = task.get_coro()
    place = "not begun"
    while coroutine is not None:
        name = "ag" if hasattr(coroutine, "ag_frame") else "cr"
        frame = getattr(coroutine, f"{name}_frame", None)
        if frame is not None:
            code = frame.f_code
            place = f"{code.co_qualname} ({Path(code.co_filename).name}:{frame.f_lineno})"
        coroutine = getattr(coroutine, f"{name}_await", None)
    return f"{task.get_name()!r} in {place}"


def run(main: Coroutine[Any, Any, T], *, seed: object = None, delay: float = 0.0) -> T:
    """Run a coroutine as `asyncio.run` does, in a virtual loop; see `VirtualLoop`."""
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(seed, delay)) as runner:
        return runner.run(main)
