"""Running synchronous work off the event loop: the run's own worker thread.

A run has one worker, and everything it offloads goes there, one call at a time and in order, so
that frameworks with thread-local state are safe. The thread is a daemon: a call that never ends
does not hold up the interpreter's exit, as one in the default executor would.
"""

import asyncio
import contextvars
import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from queue import SimpleQueue
from typing import Any, Final, ParamSpec, TypeAlias, TypeVar

from aloop.errors import NotRunningError
from aloop.turns import thread_at_work

__all__ = ["Worker", "current_worker", "run_in_worker"]

P = ParamSpec("P")
T = TypeVar("T")

_Call: TypeAlias = "tuple[asyncio.Future[Any] | None, Callable[..., Any], Callable[[], Any]] | None"


class Worker:
    """One daemon thread that runs synchronous calls for an event loop.

    The thread starts at the first call. Parameters:
        name: the name of the thread, for debuggers and logs.
        on_end: called when it is closed and all calls have ended, on the thread if there is one.
    """

    def __init__(
        self, name: str = "aloop worker", on_end: Callable[[], None] | None = None
    ) -> None:
        self._name = name
        self._on_end = on_end
        self._calls: SimpleQueue[_Call] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._asked = 0  # how many calls, counted by those who ask
        self._done = 0  # how many of them have ended, counted by the thread
        self._is_closed = False
        self._function: Callable[..., Any] | None = None

    async def run(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call the function on the thread and give what it returned, or raise what it raised.

        Context variables are carried over. Cancelling the wait does not stop the function: the
        thread goes on with it, and later calls wait for their turn.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._put(future, func, partial(_shielded(func), *args, **kwargs))
        with thread_at_work():
            return await future

    def post(self, func: Callable[[], None]) -> None:
        """Call the function on the thread, and tell nobody what came of it; it must not raise."""
        self._put(None, func, func)

    def _put(
        self,
        future: "asyncio.Future[Any] | None",
        func: Callable[..., Any],
        call: Callable[[], Any],
    ) -> None:
        if self._is_closed:
            raise NotRunningError(
                f"{self._name} is closed, for its run has ended; expected a call during the run; "
                "await what uses the worker before the run ends"
            )
        if self._thread is None:
            thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            thread.start()
            self._thread = thread
        self._asked += 1
        context = contextvars.copy_context()
        context.run(current_worker.set, None)  # which a call on this thread could wait for forever
        self._calls.put((future, func, partial(context.run, call)))

    @property
    def is_busy(self) -> bool:
        """True while a call is running or waiting."""
        # By what the thread has done, of which an event loop that is closed never hears.
        return self._asked > self._done and self._thread is not None and self._thread.is_alive()

    @property
    def at_work(self) -> str:
        """The name of the function that is being called."""
        function = self._function
        return str(getattr(function, "__qualname__", type(function).__name__))

    @property
    def is_closed(self) -> bool:
        """True once its run has ended."""
        return self._is_closed

    def close(self, *, is_idle: bool = False) -> None:
        """End the thread when it is idle; leave it behind, as a daemon, when it is stuck.

        Parameters:
            is_idle: whether it is known to have nothing to do, though it may not say so yet.
        """
        if self._is_closed:
            return
        self._is_closed = True
        if self._thread is None:
            if self._on_end is not None:
                self._on_end()
            return
        self._calls.put(None)
        # At once, for nothing is left for it to do; but no daemon runs any more at the very end.
        if (is_idle or not self.is_busy) and not sys.is_finalizing():
            self._thread.join()

    def _work(self) -> None:
        try:
            self._serve()
        finally:
            if self._on_end is not None:
                self._on_end()

    def _serve(self) -> None:
        while (item := self._calls.get()) is not None:
            future, self._function, call = item
            if future is None:
                call()
                self._function = None
                del item, call  # whose end may close this worker
                self._done += 1
                continue
            try:
                # What was cancelled while it waited for its turn is not wanted any more.
                result = None if future.cancelled() else call()
            except BaseException as error:  # noqa: BLE001 - it goes to whoever awaits the call
                outcome = partial(self._settle, future, None, error)
            else:
                outcome = partial(self._settle, future, result, None)
            self._done += 1
            try:
                future.get_loop().call_soon_threadsafe(outcome)
            except RuntimeError:
                return  # the event loop was closed while the call ran: nobody waits any more
            result = None
            self._function = None
            del item, future, call, outcome  # or they live until the next call

    @staticmethod
    def _settle(future: "asyncio.Future[Any]", result: object, error: BaseException | None) -> None:
        """Bring what came of a call to its awaiter; runs in the event loop."""
        if future.done():
            return  # its awaiter was cancelled
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)


def _shielded(func: Callable[P, T]) -> Callable[P, T]:
    """Turn a StopIteration into an error: a future cannot hold it, and its awaiter would hang."""

    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return func(*args, **kwargs)
        except StopIteration as error:
            raise RuntimeError(
                "the function called in the worker thread raised StopIteration; use "
                "next(iterator, default) in it"
            ) from error

    return call


current_worker: Final[ContextVar[Worker | None]] = ContextVar("aloop_worker", default=None)
"""The worker of the run that the running task belongs to."""


async def run_in_worker(func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a synchronous function on the worker thread of the run that this is called from.

    Outside a run it runs on a thread of asyncio's default executor.
    """
    worker = current_worker.get()
    if worker is None or worker.is_closed:
        return await asyncio.to_thread(_shielded(func), *args, **kwargs)
    return await worker.run(func, *args, **kwargs)
