"""What is wanted at the next boundary, and those who wait for it."""

import asyncio
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aloop.background import current_moment
from aloop.checkpoints.published import Contents
from aloop.checkpoints.wishes import SaveWish
from aloop.errors import ArgumentError, CheckpointError
from aloop.stopping import StopRequest
from aloop.tasks import current_part

__all__ = ["Copied", "Due", "Request"]


class Request:
    """What `MainLoop.request_checkpoint` gives: it can be awaited, and need not be."""

    def __init__(self, stop: StopRequest) -> None:
        self.future: asyncio.Future[Path] = asyncio.get_running_loop().create_future()
        self.future.add_done_callback(_forget_failure)
        self._stop = stop

    def __await__(self) -> Generator[Any, None, Path]:
        if current_part.get() is self._stop.part or current_moment.get() is not None:
            raise ArgumentError(
                "a checkpoint was awaited in a callback, a step or a background extension of the "
                "run itself, which waits for that; expected it to be awaited outside the run, or "
                "in start_soon(); leave out the await: it is taken at the next boundary"
            )
        # Shielded, for several may wait for it.
        return asyncio.shield(self.future).__await__()


def _forget_failure(future: "asyncio.Future[Path]") -> None:
    if not future.cancelled():
        future.exception()  # or asyncio complains where nobody awaits it


@dataclass(slots=True)
class Due:
    """What is wanted at the next boundary."""

    wishes: dict[Path, SaveWish] = field(default_factory=dict[Path, SaveWish])
    requests: list[Request] = field(default_factory=list[Request])

    def __bool__(self) -> bool:
        return bool(self.wishes or self.requests)

    def put_back(self, earlier: "Due") -> None:
        """Want what was wanted earlier, too."""
        self.wishes = earlier.wishes | self.wishes
        self.requests = earlier.requests + self.requests

    def settle(self, path: Path) -> None:
        """Tell those who wait for it where it is."""
        for request in self.requests:
            if not request.future.done():
                request.future.set_result(path)

    def fail(self, error: BaseException) -> None:
        """Tell those who wait for it that it is not to be had."""
        for request in self.requests:
            if not request.future.done():
                # Of its own: the error is the run's, and goes another way.
                failure = CheckpointError(f"there is no checkpoint as was asked for: {error}")
                failure.__cause__ = error
                request.future.set_exception(failure)


@dataclass(frozen=True, slots=True)
class Copied:
    """The state of a training, copied."""

    contents: Contents
    begun: float
    """When, by ``time.perf_counter``."""
