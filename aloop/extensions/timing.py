"""Extensions that record times."""

from datetime import datetime
from typing import Any, Unpack

from aloop.errors import ArgumentError
from aloop.extensions.simple import Options, SimpleExtension

__all__ = ["Timestamp"]


class Timestamp(SimpleExtension):
    """Records the local date and time, with its offset from UTC, in ISO 8601.

    By default before the training, on its resumption, after each epoch, on an interrupt, on an
    error, and after the training.

    Parameters:
        log_record: the name of the record.
        separator: what stands between date and time.
        name, options: as for `SimpleExtension`.
    """

    DEFAULT_LOG_RECORD = "timestamp"

    def __init__(
        self,
        log_record: str = DEFAULT_LOG_RECORD,
        separator: str = " ",
        name: str | None = None,
        **options: Unpack[Options],
    ) -> None:
        if len(separator) != 1:
            raise ArgumentError(f"separator is {separator!r}; expected one character; leave it out")
        self.log_record = log_record
        self.separator = separator
        by_default: Options = {
            "before_training": True,
            "after_epoch": True,
            "on_error": True,
            "on_interrupt": True,
            "on_resumption": True,
            "after_training": True,
        }
        super().__init__(name, **(by_default | options))

    async def do(self, which_callback: str, *args: Any) -> None:
        """Record the time."""
        now = datetime.now().astimezone()
        self.main_loop.log.current_row[self.log_record] = now.isoformat(self.separator)
