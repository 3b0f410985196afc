"""When a run gives way to the rest of the event loop.

A loop whose steps never wait would keep the event loop to itself. Giving way at each batch costs
more than the iteration, so it is done by time; and because slices of time alone are unfair
between runs of different speed, runs that share an event loop also give way every so many
batches.
"""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from time import perf_counter, sleep
from typing import Final, Self
from weakref import WeakKeyDictionary

__all__ = ["MAX_BATCHES", "SLICE_S", "Turn", "thread_at_work", "threads_at_work"]

SLICE_S: Final = 0.001
"""How long a run keeps the event loop: a timer plus its wake-up takes several turns, so this is
well below the lateness that others can stand."""

MAX_BATCHES: Final = 32
"""How many batches a turn has at most while other runs share the event loop."""

_LOCK_HANDOVER_S: Final = 1e-6
"""Asked of the system, which makes it as long as it takes a thread to wake up."""

_threads_at_work = 0
_handed_over_at = 0.0

_runs: "WeakKeyDictionary[asyncio.AbstractEventLoop, set[Turn]]" = WeakKeyDictionary()


class Turn:
    """One run's turns in its event loop; a context manager around the run."""

    __slots__ = ("_batches", "_ends_at", "_runs")

    def __enter__(self) -> Self:
        self._runs = _runs.setdefault(asyncio.get_running_loop(), set())
        self._runs.add(self)
        self._begin()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._runs.discard(self)

    def _begin(self) -> None:
        self._batches = 0
        self._ends_at = perf_counter() + SLICE_S

    def is_over(self) -> bool:
        """Count a batch and say whether the turn has ended with it."""
        self._batches += 1
        if perf_counter() >= self._ends_at:
            return True
        return self._batches >= MAX_BATCHES and len(self._runs) > 1

    async def give_way(self) -> None:
        """Let the event loop do what else is due, and begin the next turn."""
        global _handed_over_at  # of the process, as the interpreter lock is
        now = perf_counter()
        if _threads_at_work and now - _handed_over_at >= SLICE_S:
            # A loop that never waits starves them otherwise: each time the event loop looks for
            # events it lets go of the interpreter lock and takes it again before a thread that
            # waits for it has woken up, and that thread begins to wait anew. Once in a slice, or a
            # thousand runs would do little else.
            sleep(_LOCK_HANDOVER_S)  # noqa: ASYNC251 - blocks on purpose, for some 60 µs
            _handed_over_at = perf_counter()
        # A batch that blocked the event loop may have kept a signal waiting, which takes one turn
        # to be read and one to be handled. Beside such a batch three turns cost nothing; where
        # other runs have theirs, it is handled in these.
        blocked = now > self._ends_at + SLICE_S and len(self._runs) == 1
        for _ in range(3 if blocked else 1):
            await asyncio.sleep(0)
        self._begin()


@contextmanager
def thread_at_work() -> Generator[None]:
    """Say, while the body runs, that another thread works for an event loop of this process."""
    global _threads_at_work  # of the process, as the interpreter lock is
    _threads_at_work += 1
    try:
        yield
    finally:
        _threads_at_work -= 1


def threads_at_work() -> int:
    """Give how many waits for other threads are under way in this process."""
    return _threads_at_work
