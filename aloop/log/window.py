"""The rows of a log that is kept in a file: the newest in memory, the others read when needed.

A row leaves memory when the file has all of it. One that somebody still holds stays the very
object that ``log[time]`` gives, and comes back when it is written again.
"""

import asyncio
import heapq
from collections.abc import AsyncGenerator, Iterator
from typing import Any, Final
from weakref import WeakValueDictionary, ref

from aloop.errors import JournalError
from aloop.log.readers import Readers
from aloop.log.reading import History
from aloop.log.records import RUN_START, Change, Changes, Row
from aloop.log.rows import Rows
from aloop.log.series import Series, merge
from aloop.log.values import measure
from aloop.turns import thread_at_work

__all__ = ["WindowedRows"]

WINDOW_ROWS: Final = 4096
"""How many rows the logs of one file keep in memory together, once they are in the file."""

WINDOW_BYTES: Final = 16 << 20
"""How many bytes of large values (texts, arrays and the like) they keep in memory together."""

LEAST_ROWS: Final = 16
"""How many rows each log keeps at least, however many share the window."""


class WindowedRows(Rows):
    """The rows of a log by time, of which this dictionary holds a window.

    `kept_until` is the latest time that has left it. What is later than that and not in here is
    nowhere, so that a run that goes on never looks into the file.
    """

    __slots__ = ("_count_outside", "_held", "_leaving", "_noted", "history")

    def __init__(self, changes: Changes, history: History) -> None:
        super().__init__(changes)
        self._noted = changes
        self.history = history
        """Where the rows are that have left."""
        self._held: WeakValueDictionary[int, Row] = WeakValueDictionary()
        # How many times have records and are not in here; None when that has to be counted.
        self._count_outside: int | None = 0
        # The times that leave while a thread reads the file, one set for each such read.
        self._leaving: list[set[int]] = []

    def __missing__(self, time: int) -> Row:
        if time > self.kept_until:
            row = self[time] = Row(time, self._noted)
            return row
        row = self._held.get(time)
        if row is None:
            row = self.hold(time, self.history.row(time))
        return row

    def hold(self, time: int, records: dict[str, Any]) -> Row:
        """Give the row of records that were read, unless somebody holds that row already.

        It is forgotten with the last who holds it, and stays when it is written.
        """
        row = self.get(time)
        if row is None:
            row = self._held.get(time)
        if row is None:
            row = self._held[time] = Row(time, None)
            row.restore(records)
            row.note_changes_in(_Outside(self, had_records=bool(records)))
        return row

    def look_in(self, history: History) -> None:
        """Look for what is not in here in a file that was just opened."""
        self.history, self.is_unread = history, False
        self.kept_until = history.last_time()
        self._count_outside = None
        for time, row in self.items():  # those that were written before the file was open
            row.restore(history.row(time))

    def fork(self, run: str, last_time: int) -> None:
        """Become the rows of a run that goes on from this one after `last_time`."""
        self.history = self.history.fork(run, last_time)

    def read_over(self, readers: Readers) -> None:
        """Read what is in the file over these connections."""
        self.history.readers = readers

    def trim(self, logs: int) -> None:
        """Let go of the oldest rows until no more are left than each of so many logs may keep.

        Called when what was handed over is in the file. A row that was written since then stays.
        """
        rows, size = max(WINDOW_ROWS // logs, LEAST_ROWS), WINDOW_BYTES // logs
        excess = len(self) - rows
        if excess < rows // 4 and self._noted.row_bytes <= size:
            return
        unwritten = set(self._noted[::3])
        for time in list(self):
            if excess <= 0 and self._noted.row_bytes <= size:
                return
            if time not in unwritten:
                self._let_go(time)
                excess -= 1

    def _let_go(self, time: int) -> None:
        for left in self._leaving:
            left.add(time)
        row = self.pop(time)
        if self._noted.row_bytes:
            self._noted.forget_row(time)
        had_records = bool(row)
        if had_records and self._count_outside is not None:
            self._count_outside += 1
        weak = ref(row)
        del row
        row = weak()
        if row is not None:
            row.note_changes_in(_Outside(self, had_records=had_records))
            self._held[time] = row
        if (had_records or row is not None) and time > self.kept_until:
            self.kept_until = time

    def come_back(self, time: int, *, had_records: bool) -> Changes:
        """Take a row that is written again back into memory, and give where it notes that."""
        row = self[time] = self._held.pop(time)
        if had_records and self._count_outside is not None:
            self._count_outside -= 1
        row.note_changes_in(self._noted)
        size = sum(map(measure, row.values()))
        if size:
            self._noted.count_row(time, size)
        return self._noted

    def _refuse_unread(self) -> None:
        if self.is_unread:
            raise JournalError(
                "the log was to be read before it was opened; expected it to be open, so that its "
                "run is known; open it first: async with log:, or use read_log"
            )

    def times(self) -> Iterator[int]:
        """Give the times that have records, in ascending order, reading the file piece by piece."""
        self._refuse_unread()
        here = {time: bool(row) for time, row in self.items()}
        return heapq.merge(
            (time for time in self._times_in_file() if time not in here),
            sorted(time for time, has_records in here.items() if has_records),
        )

    def _times_in_file(self) -> Iterator[int]:
        for first, last in self.history.ranges(0, self.kept_until):
            yield from self.history.times(first, last)

    def count(self) -> int:
        """Count the times that have records; slow the first time for a run that was opened."""
        self._refuse_unread()
        if self._count_outside is None:
            self._count_outside = sum(1 for time in self._times_in_file() if time not in self)
        return self._count_outside + super().count()

    async def read_between(self, first: int, last: int) -> AsyncGenerator[Row]:
        """Give the rows that have records from one time to another, old ones piece by piece."""
        self._refuse_unread()
        while first <= (outside := min(last, self.kept_until)):
            left = set[int]()
            self._leaving.append(left)
            try:
                with thread_at_work():
                    read = asyncio.to_thread(self.history.next_rows, first, outside)
                    up_to, found = await read
            finally:
                self._leaving = [other for other in self._leaving if other is not left]
            # What left meanwhile may have been written after it was read.
            rows = [self.hold(time, found[time]) for time in found.keys() - left]
            rows += [self[time] for time in left if first <= time <= up_to]
            rows += [row for row in self.between(first, up_to) if row.time not in found]
            by_time = {row.time: row for row in rows if row}
            for time in sorted(by_time):
                yield by_time[time]
            first = up_to + 1
        async for row in super().read_between(first, last):
            yield row

    def keys_of_records(self) -> list[str]:
        """Give the keys of all records."""
        self._refuse_unread()
        here = super().keys_of_records()
        return here if self.kept_until < 0 else list(dict.fromkeys([*self.history.keys(), *here]))

    def series(self, key: str) -> Series:
        """Give the times and values of a record, blocking while it reads."""
        self._refuse_unread()
        if self.kept_until < 0:
            return super().series(key)
        return merge(self.history.series(key), self._unwritten_values(key))

    async def read_series(self, key: str) -> Series:
        """Give the times and values of a record, reading them in a thread."""
        self._refuse_unread()
        if self.kept_until < 0:
            return super().series(key)
        # What is on its way may be read as well: it counts once, and as it is at this moment.
        unwritten, history = self._unwritten_values(key), self.history
        with thread_at_work():
            return await asyncio.to_thread(lambda: merge(history.series(key), unwritten))

    def _unwritten_values(self, key: str) -> list[tuple[int, Any]]:
        found: list[tuple[int, Any]] = []
        for time, k, value in self._noted.unwritten():
            if time == RUN_START:  # what came before is the earlier run's
                found = [pair for pair in found if pair[0] <= value.forked_at]
            elif k == key and time >= 0:
                found.append((time, value))
        return found

    def forget_after(self, last_time: int) -> None:
        """Let go of the rows after this time, wherever they are."""
        super().forget_after(last_time)
        for time, row in list(self._held.items()):
            if time > last_time:
                del self._held[time]
                row.note_changes_in(None)
        if last_time < self.kept_until:
            self.kept_until = last_time
            self._count_outside = None


class _Outside:
    """Where a row notes its changes while the log does not keep it: that brings it back."""

    __slots__ = ("_had_records", "_rows")

    def __init__(self, rows: WindowedRows, *, had_records: bool) -> None:
        self._rows = rows
        self._had_records = had_records

    def extend(self, change: Change) -> None:
        self._rows.come_back(change[0], had_records=self._had_records).extend(change)

    def note_size(self, time: int, size: int) -> None:
        self._rows.come_back(time, had_records=self._had_records).note_size(time, size)
