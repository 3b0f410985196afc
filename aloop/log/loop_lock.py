"""A lock for tasks, whichever event loop they are in; asyncio's belongs to one event loop."""

import asyncio

__all__ = ["LoopLock"]


class LoopLock:
    """A lock for the tasks of one event loop at a time, and then of another."""

    def __init__(self) -> None:
        self._held: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None

    def held(self) -> asyncio.Lock:
        """Give the lock of the event loop that runs now, for ``async with``."""
        loop = asyncio.get_running_loop()
        if self._held is None or self._held[0] is not loop:
            self._held = loop, asyncio.Lock()
        return self._held[1]
