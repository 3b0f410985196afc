"""The rows of a log by time."""

from collections.abc import AsyncGenerator, Iterator
from typing import Any

from aloop.log.records import Changes, Row
from aloop.log.series import Series, as_series

__all__ = ["Rows"]


class Rows(dict[int, Row]):
    """The rows of a log by time; looking up a time that has none makes an empty one."""

    __slots__ = ("_changes", "is_unread", "kept_until")

    def __init__(self, changes: Changes | None) -> None:
        super().__init__()
        self._changes = changes
        self.is_unread = False
        """True while it is not known what is kept elsewhere: the log was not opened yet."""
        self.kept_until = -1
        """The latest time whose row may be kept elsewhere than in this dictionary."""

    def __missing__(self, time: int) -> Row:
        row = self[time] = Row(time, self._changes)
        return row

    def times(self) -> Iterator[int]:
        """Give the times that have records, in ascending order."""
        return iter(sorted(time for time, row in self.items() if row))

    def count(self) -> int:
        """Count the times that have records."""
        return sum(1 for row in self.values() if row)

    def between(self, first: int, last: int) -> list[Row]:
        """Give the rows that are in here and have records, from one time to another."""
        if last - first < len(self):
            found = [self.get(time) for time in range(first, last + 1)]
        else:
            found = [self[time] for time in sorted(self) if first <= time <= last]
        return [row for row in found if row]

    async def read_between(self, first: int, last: int) -> AsyncGenerator[Row]:
        """Give the rows that have records, wherever they are, from one time to another."""
        for row in self.between(first, last):
            yield row

    def keys_of_records(self) -> list[str]:
        """Give the keys of all records, in the order in which they came."""
        return list(dict.fromkeys(key for row in self.values() for key in row))

    def series(self, key: str) -> Series:
        """Give the times and values of a record, blocking while it reads."""
        times = sorted(time for time, row in self.items() if key in row)
        return as_series(times, [self[time][key] for time in times])

    async def read_series(self, key: str) -> Series:
        """Give the times and values of a record."""
        return self.series(key)

    def forget_after(self, last_time: int) -> None:
        """Let go of the rows after this time; one that somebody still holds notes no more."""
        for time in [time for time in self if time > last_time]:
            self.pop(time).note_changes_in(None)

    def fork(self, run: str, last_time: int) -> None:
        """Become the rows of a run that goes on from this one after `last_time`."""

    def read_over(self, readers: Any) -> None:  # Readers, which is a floor above
        """Read what is kept elsewhere over these connections."""
