"""Tasks that the rest of the program does not know of, where they are, and waiting for them."""

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Iterable
from contextlib import nullcontext
from contextvars import ContextVar
from types import FrameType
from typing import Any, Final, TypeVar

import anyio

__all__ = [
    "CANCEL_AGAIN_S",
    "STREAM_TASK",
    "Patience",
    "create_hidden_task",
    "current_part",
    "frames_of",
    "show_task",
    "whereabouts",
]

CANCEL_AGAIN_S: Final = 0.05
"""How long what was cancelled is waited for before it is cancelled again: some swallow it."""

STREAM_TASK: Final = "aloop stream"
"""The name of a task that waits for a batch, and may do so from one run to the next."""

current_part: Final[ContextVar[object]] = ContextVar("aloop_part", default=None)
"""What of a run the running task is: a token of the request to stop for its training and its
drain, one of the background work for what is beside it; None outside of runs. A token, for timers
and other tasks keep the context."""

T = TypeVar("T")


def create_hidden_task(
    work: Coroutine[Any, Any, T], *, name: str, context: contextvars.Context | None = None
) -> asyncio.Task[T]:
    """Make a task that `asyncio.all_tasks` does not list.

    `asyncio.run`, and many a program, cancels every task at its end. A task that has something to
    settle first is cancelled by its owner, who hears of the end and decides.
    """
    task = asyncio.get_running_loop().create_task(work, name=name, context=context)
    if not task.done():
        # Public to those who extend asyncio, as its documentation says under that title.
        asyncio.tasks._unregister_task(task)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    # When its event loop is dropped with it, the task of its owner tells.
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001
    return task


def show_task(task: asyncio.Task[Any]) -> None:
    """List a task that was hidden, for it is nobody's any more."""
    asyncio.tasks._register_task(task)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def frames_of(work: object) -> list[FrameType]:
    """Give the frames of a coroutine, from its beginning to what it awaits."""
    frames: list[FrameType] = []
    what: Any = work
    while (frame := getattr(what, "cr_frame", None)) is not None:
        frames.append(frame)
        what = what.cr_await
    return frames


def whereabouts(work: Coroutine[Any, Any, Any]) -> str:
    """Say what a coroutine is at, from its beginning to what it awaits."""
    frames = frames_of(work)
    names = " > ".join(frame.f_code.co_qualname for frame in frames[-4:])
    place = f"{frames[-1].f_code.co_filename}:{frames[-1].f_lineno}" if frames else "nowhere"
    return f"{names} ({place})"


class Patience:
    """Waits though the waiting task is cancelled, and keeps the first cancellation.

    Parameters:
        on_cancel: called at each cancellation.
    """

    def __init__(self, on_cancel: Callable[[], None] | None = None) -> None:
        self.cancellation: asyncio.CancelledError | None = None
        """The first cancellation, which is to go up at the end; further ones are forgotten."""
        self._on_cancel = on_cancel
        self._cancellations = 0

    async def wait(self, futures: "Iterable[asyncio.Future[Any]]", timeout: float | None) -> None:  # noqa: ASYNC109 - as asyncio.wait has
        """Wait until one of the futures is done, the time is over, or there is a cancellation."""
        try:
            # Without the shield, a cancelled anyio scope around the waiting would cancel each wait
            # anew, which is a loop that never sleeps. It is of no use before that.
            with anyio.CancelScope(shield=True) if self._cancellations > 1 else nullcontext():
                await asyncio.wait(futures, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError as error:
            self.cancellation = self.cancellation or error
            self._cancellations += 1
            if self._on_cancel is not None:
                self._on_cancel()
