"""The watch over the write-ahead log, which the owner of the file alone moves into it."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

from aloop.log.ownership import Ownership, has_checkpoint_fault

__all__ = ["WALWatch"]

WAL_WATCH_S: Final = 10.0
"""How often the owner of the file looks whether others have filled the write-ahead log."""

WAL_BYTES: Final = 16 << 20
"""Above which size it moves the write-ahead log into the file though it has nothing to write."""


class WALWatch:
    """Sees to it that the owner of the file writes now and then when only others do."""

    def __init__(
        self, database: Path, ownership: Ownership | None, ask_for_checkpoint: Callable[[], None]
    ) -> None:
        self._wal = database.with_name(f"{database.name}-wal")
        self._ownership = ownership  # None for a database in memory
        self._ask_for_checkpoint = ask_for_checkpoint
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Look, now and from time to time until `stop`, where others make no checkpoints."""
        if self._ownership is None or not has_checkpoint_fault():
            return
        self._timer = asyncio.get_running_loop().call_later(WAL_WATCH_S, self.start)
        wal = self._wal
        if self._ownership.is_mine and wal.exists() and wal.stat().st_size > WAL_BYTES:
            self._ask_for_checkpoint()

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
