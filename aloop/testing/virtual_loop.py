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

While a thread is known to be at work for a `VirtualLoop` its clock stands still, and real time is
waited, up to 60 s: for the jobs of `run_in_executor` and `asyncio.to_thread`, in any executor, and
for aloop's own threads where `aloop.turns.thread_at_work` tells of them: in a step, a batch or a
commit. So such a thread may not wait for a timer of the loop.
Any other thread that was started since, and a file descriptor that the loop reads, has a moment
before the clock jumps: 0.02 s where a timer runs, 5 s where none does. Signals are heard between
two handles, and not waited for. Where a wait could not end, `DeadlockError` names the tasks that
wait instead of hanging; where the loop turns 20,000 rounds, and no time passes and nothing comes
from outside, `LivelockError` does: more of them are allowed by ``max_rounds``.
"""

import asyncio
import selectors
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import Executor
from contextvars import Context
from functools import partial, wraps
from inspect import iscoroutine, iscoroutinefunction
from typing import Any, Final, ParamSpec, TypeVar, cast
from weakref import WeakKeyDictionary

from aloop.errors import ArgumentError
from aloop.tasks import whereabouts
from aloop.testing.stepped_loop import SteppedLoop, checked_delay
from aloop.turns import threads_at_work

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

THREAD_S: Final = 60.0
"""Real seconds that a thread which is known to be at work has to wake the loop."""

OUTSIDE_S: Final = 0.02
"""Real seconds that any other thread has to wake the loop before the clock jumps."""

DEADLOCK_S: Final = 5.0
"""Real seconds that any other thread has to wake a loop that has no timer."""

MAX_ROUNDS: Final = 20_000
"""How many rounds the loop may turn while no time passes, unless given."""


class DeadlockError(RuntimeError):
    """Nothing is ready, and no timer runs or a thread works on and on: nobody wakes the loop."""


class LivelockError(RuntimeError):
    """The loop turns and turns, and no time passes."""


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
        delay: the share of handles that are put off to the next round, 0 to less than 1; needs a
            seed.
        max_rounds: how many rounds it may turn while no time passes and nothing comes from
            outside, 1 or more.
    """

    def __init__(
        self, seed: object = None, delay: float = 0.0, *, max_rounds: int = MAX_ROUNDS
    ) -> None:
        self._now = START_S
        self._idle_rounds = 0
        self._threads = set(threading.enumerate())
        # Those of executors, which hold what is not done.
        self._jobs: WeakKeyDictionary[asyncio.Future[Any], str] = WeakKeyDictionary()
        self._outside = _Selector(self._nothing_is_ready)
        super().__init__(seed, delay, selector=self._outside)
        try:
            self._max_rounds = _checked_rounds(max_rounds)
        except ArgumentError:
            self.close()  # or it would complain when it is collected
            raise

    def time(self) -> float:
        """Give the virtual time, in seconds."""
        return self._now

    def run_in_executor(
        self, executor: Executor | None, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """Call a function in an executor, while the clock stands still."""
        future = super().run_in_executor(executor, func, *args)
        self._jobs[future] = _name_of(func)
        return future

    async def shutdown_default_executor(self, *args: Any) -> None:
        """Wait for the threads of the default executor, while the clock stands still."""
        ended: asyncio.Future[Any] = self.create_future()
        self._jobs[ended] = "the end of the default executor"
        try:
            await super().shutdown_default_executor(*args)
        finally:
            ended.cancel()

    def _process_events(self, event_list: list[Any]) -> None:
        super()._process_events(event_list)
        self._idle_rounds = 0 if event_list else self._idle_rounds + 1
        if self._idle_rounds > self._max_rounds:
            self._idle_rounds = -MAX_ROUNDS  # or those who clean up would never get a turn
            raise LivelockError(
                f"{self._max_rounds} rounds at {self._now:g} s, and nothing came from outside; "
                f"expected time to pass; give max_rounds where it takes more;\n{self._tasks()}"
            )

    def _nothing_is_ready(self) -> list[Any]:
        """Wait for what may come from outside, then let the time pass to the next timer."""
        at_work = self._at_work()
        if at_work:
            events = self._outside.wait(THREAD_S)
            if events:
                return events
            raise DeadlockError(
                f"nothing has come in {THREAD_S:g} s from {', '.join(at_work)}, for which the "
                f"clock stands still at {self._now:g} s; have it end by itself, or be cancelled;\n"
                f"{self._tasks()}"
            )
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

    def _at_work(self) -> list[str]:
        """Name what threads are known to be at work at for the loop, and are waited for."""
        # Looked at here rather than when they end: that would be a turn more.
        jobs = [name for job, name in self._jobs.items() if not job.done()]
        waits = threads_at_work()
        if not waits or jobs:
            return jobs
        return [f"the threads of {waits} wait{'s' if waits > 1 else ''} of aloop"]

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


def _name_of(func: Callable[..., Any]) -> str:
    if isinstance(func, partial):
        # Of `asyncio.to_thread`, which calls in a context.
        in_context = isinstance(getattr(func.func, "__self__", None), Context) and func.args
        return _name_of(func.args[0] if in_context else func.func)
    return getattr(func, "__qualname__", None) or repr(func)


def run_virtual(
    coroutine: Coroutine[Any, Any, T],
    *,
    seed: object = None,
    delay: float = 0.0,
    max_rounds: int = MAX_ROUNDS,
) -> T:
    """Run a coroutine as `asyncio.run` does, in a new `VirtualLoop` with these parameters."""
    try:
        checked_delay(delay, seed)
        _checked_rounds(max_rounds)
    except ArgumentError:
        if iscoroutine(coroutine):
            coroutine.close()  # or Python warns that it was never awaited, on top of this error
        raise
    with asyncio.Runner(
        loop_factory=lambda: VirtualLoop(seed, delay, max_rounds=max_rounds)
    ) as runner:
        return runner.run(coroutine)


def in_virtual_time(
    _function: None = None,
    /,
    *,
    seeds: Iterable[object] | None = None,
    delay: float = 0.0,
    max_rounds: int = MAX_ROUNDS,
) -> Callable[[Callable[P, Coroutine[Any, Any, object]]], Callable[P, None]]:
    """Make a sync test of an async one, which runs in a `VirtualLoop`, once for each seed.

    It takes the fixtures and parameters of the function, which all its runs share, and no mark of
    a plugin for async tests. What a run raises has a note that tells the seed.

    Parameters:
        seeds: of the runs; without, one run that keeps the order of asyncio.
        delay: the share of handles that are put off to the next round, 0 to less than 1; needs
            seeds.
        max_rounds: how many rounds a run may turn while no time passes and nothing comes from
            outside, 1 or more.

    Raises `ArgumentError` for seeds that are none, and for what is no coroutine function.
    """
    if _function is not None:
        raise ArgumentError(
            f"in_virtual_time was given {_function!r:.80}; expected arguments by name; write "
            "@in_virtual_time(), with parentheses"
        )
    each = _checked_seeds(seeds)
    for seed in each:
        checked_delay(delay, seed)
    _checked_rounds(max_rounds)

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
                    run_virtual(
                        function(*args, **kwargs), seed=seed, delay=delay, max_rounds=max_rounds
                    )
                except BaseException as error:
                    error.add_note(f"in virtual time, with the seed {seed!r}, delay={delay:g}")
                    raise

        return run_each

    return decorate


def _checked_seeds(seeds: object) -> tuple[object, ...]:
    if seeds is None:
        return (None,)
    if not isinstance(seeds, Iterable) or isinstance(seeds, (str, bytes, Mapping)):
        raise ArgumentError(
            f"seeds is {seeds!r:.80}; expected several, in a list; write seeds=range(10)"
        )
    each = tuple(cast("Iterable[object]", seeds))
    if not each:
        raise ArgumentError(
            f"seeds is {seeds!r}, which has none; expected one or more, or the test would run "
            "nothing; leave it out for one run in the order of asyncio"
        )
    return each


def _checked_rounds(rounds: object) -> int:
    if not isinstance(rounds, int) or rounds is True or rounds < 1:
        raise ArgumentError(
            f"max_rounds is {rounds!r:.80}; expected a whole number, 1 or more; leave it out for "
            f"{MAX_ROUNDS}"
        )
    return rounds
