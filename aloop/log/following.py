"""Waiting for the next commit point of a log, from whichever event loop of its thread."""

import asyncio
from typing import Final

__all__ = ["Followers"]

FOLLOW_S: Final = 0.02
"""How long those who follow a log wait for more to come together with what came."""


class Followers:
    """Those who wait for the next commit point of a log."""

    def __init__(self) -> None:
        self.waiting: list[asyncio.Future[None]] = []
        """Always the same list, at which a log looks at each commit point."""

    def wake(self) -> None:
        """Let them look."""
        waiting = self.waiting[:]
        self.waiting.clear()
        for commit in waiting:
            loop = commit.get_loop()
            if not loop.is_closed():
                loop.call_soon_threadsafe(_wake, commit)  # perhaps not the loop that runs now

    async def wait(self, *, is_behind: bool) -> None:
        """Wait for a commit point, unless there was one already, and a little for more."""
        if not is_behind:
            commit = asyncio.get_running_loop().create_future()
            self.waiting.append(commit)
            try:
                await commit
            finally:
                if commit in self.waiting:
                    self.waiting.remove(commit)
        await asyncio.sleep(FOLLOW_S)


def _wake(commit: "asyncio.Future[None]") -> None:
    if not commit.done():
        commit.set_result(None)
