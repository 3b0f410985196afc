"""A task that does a part of a run, hidden from the program it runs in."""

import asyncio
import contextvars
from collections.abc import Coroutine
from typing import Any, TypeAlias

from aloop.stopping import StopRequest
from aloop.tasks import create_hidden_task, whereabouts

__all__ = ["Driver", "Failure", "Work"]

Failure: TypeAlias = BaseException | None
"""What a run, or a part of it, failed with, if anything."""

Work: TypeAlias = Coroutine[Any, Any, Failure]
"""A part of a run, which returns what it failed with."""


class Driver:
    """A task that does a part of a run, and another that stands in for it before the world.

    The step in flight has to settle also when the program ends by cancelling every task, so the
    one that is in it is hidden, and the other waits for it and takes a cancellation for a request
    to stop. The work returns what it failed with: a task that raises KeyboardInterrupt or
    SystemExit takes the event loop down.
    """

    def __init__(
        self, work: Work, name: str, context: contextvars.Context, stop: StopRequest
    ) -> None:
        self.name = name
        self._work = work
        self._stop = stop
        self._is_dropped = False
        self._task = create_hidden_task(work, name=name, context=context)
        self._ended = self._new_stand_in()

    def ended(self) -> asyncio.Task[None]:
        """Give a task that ends when the work ends, or is dropped."""
        if self._ended.cancelled():  # before it had begun
            self._on_swept()
            self._ended = self._new_stand_in()
        return self._ended

    def _new_stand_in(self) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(self._stand_in(), name=self.name)
        # Of a run that is dropped with its event loop, the caller's task tells.
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001
        return task

    async def _stand_in(self) -> None:
        while not (self._task.done() or self._is_dropped):
            try:
                await asyncio.wait([self._task])
            except asyncio.CancelledError:
                if not self._is_dropped:
                    self._on_swept()

    def _on_swept(self) -> None:
        self._stop.is_swept = True
        self._stop.cancel()

    @property
    def is_done(self) -> bool:
        """True when the work has ended."""
        return self._task.done()

    def outcome(self) -> Failure:
        """Give what the work failed with, if anything; CancelledError if it never began."""
        if self._task.cancelled():
            return asyncio.CancelledError()
        return self._task.exception() or self._task.result()

    def cancel(self) -> None:
        """Cancel what the work is at."""
        self._task.cancel()

    def drop(self) -> None:
        """Let it be: nobody shall wait for it, at the end of the event loop neither."""
        self._is_dropped = True
        self._ended.cancel()

    def whereabouts(self) -> str:
        """Say what the driver is at, from the loop to what it awaits."""
        return whereabouts(self._work)
