"""Where the time of a run goes: a tree of named timers."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from inspect import isawaitable
from time import perf_counter
from typing import Any

__all__ = ["Profile"]


class Profile:
    """Adds up seconds under names that are nested in one another.

    `totals` gives the seconds by path: ``("training", "epoch", "train")`` for the steps.
    """

    def __init__(self) -> None:
        self.totals: dict[tuple[str, ...], float] = {}
        self._path: tuple[str, ...] = ()
        self._running: dict[tuple[str, ...], float] = {}

    @contextmanager
    def timer(self, name: str) -> Generator[None]:
        """Add the time that the body takes under this name, below the timer it runs in."""
        outer, self._path = self._path, (*self._path, name)
        # Entered at once, so that parents stand before their children.
        self.totals.setdefault(self._path, 0.0)
        path, begin = self._path, perf_counter()
        self._running[path] = begin
        try:
            yield
        finally:
            # A driver that its run has left may come to this when another runs.
            if self._running.get(path) is begin:
                self.totals[path] += perf_counter() - begin
                del self._running[path]
                self._path = outer

    def stop(self) -> None:
        """Stop the timers that are running: the run is over, even if they have not come to it."""
        now = perf_counter()
        for path, begin in self._running.items():
            self.totals[path] += now - begin
        self._running.clear()
        self._path = ()

    def timed(self, name: str, func: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function, sync or async, so that its calls are timed under this name."""

        async def call(*args: Any) -> Any:
            with self.timer(name):
                result = func(*args)
                return await result if isawaitable(result) else result

        return call

    def report(self) -> str:
        """Give the tree as text: seconds and the share of the whole, children under parents.

        ``Other`` is what the children of a timer leave of its time. Timers that are running count
        with the time they have had.
        """
        now = perf_counter()
        running = {path: now - begin for path, begin in self._running.items()}
        totals = {path: total + running.get(path, 0.0) for path, total in self.totals.items()}
        whole = sum(seconds for path, seconds in totals.items() if len(path) == 1)
        lines = [f"{'Section':<50}{'Time (s)':>12}{'Share':>9}", "-" * 71]
        _add_lines(lines, totals, (), whole)
        return "\n".join(lines)


def _add_lines(
    lines: list[str],
    totals: dict[tuple[str, ...], float],
    parent: tuple[str, ...],
    whole: float,
) -> None:
    children = [path for path in totals if path[:-1] == parent]
    for path in children:
        lines.append(_line(path, totals[path], whole))
        _add_lines(lines, totals, path, whole)
    if parent and children:
        left = totals[parent] - sum(totals[path] for path in children)
        lines.append(_line((*parent, "Other"), left, whole))


def _line(path: tuple[str, ...], seconds: float, whole: float) -> str:
    name = "  " * (len(path) - 1) + path[-1]
    share = seconds / whole if whole else 0.0
    return f"{name:<50}{seconds:>12.3f}{share:>9.1%}"
