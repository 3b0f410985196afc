"""How much the logs of one file have that is not written yet."""

import logging
from typing import Final

__all__ = ["MAX_BYTES", "MAX_RECORDS", "Backlog"]

MAX_RECORDS: Final = 16_384
"""How many records may wait to be written before the runs that make them are slowed down."""

MAX_BYTES: Final = 32 << 20
"""How many bytes of large values (texts, arrays and the like) may wait to be written."""

_logger = logging.getLogger("aloop")


class Backlog:
    """What waits to be written to a file, all logs together, and whether that is too much."""

    def __init__(self, database: str) -> None:
        self._database = database
        self._by_log: dict[object, tuple[int, int]] = {}  # records and bytes of large values
        self._records = self._bytes = 0
        self._is_said = False

    @property
    def is_full(self) -> bool:
        """True while so much waits that no more should come."""
        return self._records > MAX_RECORDS or self._bytes > MAX_BYTES

    def count(self, log: object, records: int, size: int) -> None:
        """Hear how many records, and bytes of large values, of a log wait now."""
        records_before, size_before = self._by_log.get(log, (0, 0))
        self._by_log[log] = records, size
        self._records += records - records_before
        self._bytes += size - size_before

    def forget(self, log: object) -> None:
        """Count a log no longer: it is closed."""
        self.count(log, 0, 0)
        del self._by_log[log]

    def say_so(self) -> None:
        """Say, the first time, that a run is slowed down."""
        if not self._is_said:
            self._is_said = True
            _logger.warning(
                "records come faster than %s takes them: %d, with %d bytes of texts, arrays and "
                "the like, are yet to be written; while more than %d, or %d bytes, are, the run "
                "waits",
                self._database,
                self._records,
                self._bytes,
                MAX_RECORDS,
                MAX_BYTES,
            )
