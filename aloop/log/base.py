"""The training log in memory.

Memory is the truth: rows and status are read and written synchronously. A backend that persists
is told of every write through one list, `TrainingLog._changes`, and of every commit point by
`commit`; see `aloop.log.sqlite`.
"""

import asyncio
import uuid as uuid_module
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any, Self, SupportsIndex, cast

from aloop.errors import (
    AlreadyRunningError,
    ArgumentError,
    LogTimeError,
    LogValueError,
)
from aloop.log.carried import as_columns, behind, put_back_row, put_rows
from aloop.log.following import Followers
from aloop.log.frames import as_dataframe
from aloop.log.records import RUN_START, Change, Changes, Row, RunStart, Status
from aloop.log.rows import Rows
from aloop.log.series import Series
from aloop.log.times import MAX_TIME, check_time, first_time, last_epoch_end
from aloop.log.values import DELETED, FrozenList, normalise, normalise_key
from aloop.protocols import Record
from aloop.tasks import current_part

__all__ = ["TrainingLog"]


class TrainingLog:
    """The record of a training, kept in memory.

    ``log[time][key]`` is a record, ``log.current_row`` the row of `iterations_done`, and
    ``log.status`` what holds of the training now. A time nobody has written at has an empty row
    that can be written. Iterating gives the times that have records, in ascending order, ``len``
    their number.

    Reads and writes take about a microsecond and never wait. Values are numbers, text, booleans,
    None, and lists, tuples, dictionaries and small arrays of those; anything else raises
    `LogValueError` at the assignment. Lists, dictionaries and arrays are copied, and the copy in
    the log cannot be changed in place.

    Parameters:
        uuid: the id of this log, new and random unless given.
    """

    def __init__(self, uuid: "uuid_module.UUID | str | None" = None) -> None:
        self.uuid = as_uuid(uuid)
        self.name: str | None = None
        self.hyperparameters: Mapping[str, Any] | None = None
        # The changes a backend has yet to write; None means that nobody will.
        self._changes = self._note_changes()
        self._rows = self._make_rows()
        self._session: asyncio.AbstractEventLoop | None = None  # of the run that holds the log
        self._has_ended = False
        self._is_training_over = False  # and the run on its way out
        self._forks: list[int] = []  # the times at which this log was resumed
        self._followers = Followers()
        self._following = self._followers.waiting
        self.sequence = 0
        """The number of commit points so far, those of the runs it was resumed from included, and
        of changes from beside the training."""
        self.status = Status(self._changes)
        self.status.declare(
            {"iterations_done": 0, "epochs_done": 0, "_epoch_ends": [], "resumed_from": None}
        )

    def _note_changes(self) -> Changes | None:
        return None

    def _make_rows(self) -> Rows:
        return Rows(self._changes)

    @property
    def h_uuid(self) -> str:
        """The id of the log in hexadecimal."""
        return self.uuid.hex

    def __getitem__(self, time: SupportsIndex) -> Row:
        if type(time) is not int or not 0 <= time < MAX_TIME:
            time = check_time(time)
        return self._rows[time]

    def __iter__(self) -> Iterator[int]:
        return self._rows.times()

    def __len__(self) -> int:
        return self._rows.count()

    def __contains__(self, time: object) -> bool:
        try:
            time = check_time(time)
        except LogTimeError:
            return False
        return (time in self._rows or time <= self._rows.kept_until) and bool(self._rows[time])

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self.h_uuid[:8]}: {self.status['iterations_done']} "
            f"iterations, {self.status['epochs_done']} epochs>"
        )

    def get_record(self, time: int, key: str, default: Record = None) -> Record:
        """Give the record ``log[time][key]`` without making the row, `default` without one."""
        row = self._rows.get(time)
        if row is None:
            if type(time) is not int:
                time = check_time(time)
            if time > self._rows.kept_until or time < 0:
                return default
            row = self._rows[time]
        return row.get(key, default)

    @property
    def current_row(self) -> Row:
        """The row of the current time, ``status["iterations_done"]``."""
        return self._rows[self.status["iterations_done"]]

    @property
    def previous_row(self) -> Row:
        """The row of the time before the current one; `LogTimeError` at time 0."""
        return self[self.status["iterations_done"] - 1]

    @property
    def last_epoch_row(self) -> Row:
        """The row of the time at which the last epoch ended; `NoEpochError` before that."""
        return self[last_epoch_end(self.status)]

    def resume(self) -> None:
        """Go on under a new id.

        `status["resumed_from"]` becomes the id so far; the status is carried over. Rows up to
        the current time stay visible, rows after it belong to the earlier id alone.
        """
        forked_at: int = self.status["iterations_done"]
        self._forks.append(forked_at)
        self._rows.forget_after(forked_at)  # such a row must not write under the new id
        resumed_from = self.h_uuid
        self.uuid = uuid_module.uuid4()
        # The status travels with the start of the run, so no change is noted here.
        self.status.restore({"resumed_from": resumed_from})
        if self._changes is not None:
            self._changes.extend(self._run_start(resumed_from, forked_at))

    def head(self) -> dict[str, Any]:
        """Give the log as it is now but for its earlier rows, for a checkpoint; see `recall`."""
        return {
            "run": self.h_uuid,
            "sequence": self.sequence,
            "status": self.status.snapshot(),
            "row": dict(self.current_row),
        }

    def columns(self) -> dict[str, Any] | None:
        """Give all rows by key, for a checkpoint; None where they are kept in a file."""
        return as_columns(self._rows)

    async def recall(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """Check that this log can go on from a `head` and its rows, and give what makes it do so.

        It becomes the log of that run as of then, and is resumed under a new id; what was written
        to it and not committed is dropped. Raises `LogBehindError` if it lacks what it would have
        to go on from.
        """
        if state["rows"] is None:
            raise behind(f"{self!r}, which is in memory,", state, sequence=None)
        return partial(self._go_on_from, state)

    def _go_on_from(self, state: Mapping[str, Any], look: Callable[[], None] | None = None) -> None:
        self._rows.forget_after(-1)
        if look is not None:
            look()
        self.uuid, self.sequence = as_uuid(state["run"]), state["sequence"]
        status: dict[str, Any] = {
            # The ends of epochs may be more than a value can be: the log keeps them one by one.
            key: FrozenList(value) if key == "_epoch_ends" else normalise(key, value)
            for key, value in state["status"].items()
        }
        self.status.restore(dict.fromkeys(self.status.keys() - status.keys(), DELETED) | status)
        self.resume()
        put_rows(self._rows, state["rows"] or {})
        put_back_row(self.current_row, state["row"])

    def forget_beginning(self) -> None:
        """Leave no trace of a run that was refused when it started."""
        self.current_row.pop("got_exception", None)

    def _run_start(self, resumed_from: str | None, forked_at: int | None) -> Change:
        start = RunStart(
            run=self.h_uuid,
            name=self.name,
            hyperparameters=self.hyperparameters,
            resumed_from=resumed_from,
            forked_at=forked_at,
            sequence=self.sequence,
            status=self.status.snapshot(),
        )
        return RUN_START, "", start

    def describe(
        self, name: str | None = None, hyperparameters: Mapping[str, Any] | None = None
    ) -> None:
        """Say what the runs of this log are called and what they are made with.

        The hyperparameters are held to the same kinds of values as the records. Takes effect for
        the run ids that start afterwards.
        """
        if name is not None:
            if not isinstance(cast("object", name), str):
                raise LogValueError(f"name is {name!r}; expected text; use {str(name)!r}")
            self.name = normalise("name", name)
        if hyperparameters is not None:
            if not isinstance(cast("object", hyperparameters), Mapping):
                raise LogValueError(
                    f"hyperparameters is {hyperparameters!r:.80}; expected a dictionary of names "
                    "and values; use {'name': value}"
                )
            self.hyperparameters = normalise("hyperparameters", hyperparameters)

    def commit(self, *, durable: bool = False) -> None:
        """Mark a commit point: what was written so far may be persisted, and only together.

        With `durable` it is to be on the disk and not just in the system's cache. Does not wait;
        `flush` does. A log in memory only counts.
        """
        self.sequence += 1
        if self._following:
            self._followers.wake()

    def write_late(self, change: Callable[[], object]) -> None:
        """Make a change from beside the training, which may be persisted at once.

        Unless the training is in the midst of a boundary, which must not be split: then the change
        is persisted with that. Does not wait.
        """
        change()
        self.sequence += 1
        if self._following:
            self._followers.wake()

    async def keep_up(self) -> None:
        """Wait while so much is to be written that memory would fill up; the run calls this."""

    async def flush(self) -> None:
        """Wait until what was written up to the last commit point is on the disk.

        Outside a run everything written so far counts. A log in memory returns at once.
        """

    async def open(self) -> Self:
        """Open what the log is kept in, unless that is open; the run does this by itself."""
        return self

    async def close(self) -> None:
        """Write what is left and close what the log is kept in; what is in memory stays."""

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    @asynccontextmanager
    async def session(self) -> AsyncGenerator[None]:
        """Hold the log for one run: within it only `commit` makes commit points."""
        if self._in_session:
            raise AlreadyRunningError(
                f"{self!r} is in use by another run; expected a log of its own for each run; "
                "leave log= out, or give each loop a new log (they can share a database)"
            )
        self._session = asyncio.get_running_loop()
        self.announce_run()
        try:
            yield
        finally:
            self._session = None
            self._end()

    @property
    def _in_session(self) -> bool:
        # An event loop that was closed under a run has ended it.
        return self._session is not None and not self._session.is_closed()

    def _end(self) -> None:
        self._has_ended = True
        self._followers.wake()

    def announce_run(self) -> None:
        """Say that a run begins, which will open the log: those who follow it wait for that."""
        self._has_ended = self._is_training_over = False

    def end_run(self) -> None:
        """Say that the run has ended, though it may never have come to open the log."""
        if not self._in_session:
            self._end()

    def end_training(self) -> None:
        """Say that the run is on its way out, to those who follow from beside its training."""
        self._is_training_over = True
        self._followers.wake()

    async def series(self, key: str) -> Series:
        """Give the times, in ascending order, and the values of a record, as numpy arrays.

        The times are of dtype int64. The values have the dtype that numpy gives to numbers and to
        booleans; where there is anything else among them they are objects. Both are empty when
        nothing was recorded under this key.
        """
        return await self._rows.read_series(normalise_key(key))

    def to_dataframe(self) -> Any:  # a pandas.DataFrame; pandas is optional
        """Give the records as a pandas DataFrame: a row for each time, a column for each key.

        Blocks while it reads. Raises `MissingDependencyError` where pandas is not installed.
        """
        return as_dataframe(self._rows.keys_of_records(), self._rows.series)

    async def follow(self, after: int = -1) -> AsyncGenerator[Row]:
        """Give each row of a later time than `after` once it is complete, as long as the run lasts.

        A row is complete when an iteration after it was committed, or the run has ended; with the
        run this ends too. Times without records are left out, and so is what is written at an
        earlier time than the last row that was given. If the log is resumed at an earlier time,
        the rows after that are given anew. A log that no run uses ends when it is closed.

        Followed from background work of the run, it ends with the training already: the run waits
        for that work.

        Many can follow, in the thread in which the log is written; elsewhere use `read_log`.
        """
        next_time, forks = first_time(after), len(self._forks)
        is_of_run = current_part.get() is not None
        while True:
            next_time = min([next_time, *(time + 1 for time in self._forks[forks:])])
            has_ended = self._has_ended or (is_of_run and self._is_training_over)
            seen, forks = self.sequence, len(self._forks)
            last_time = MAX_TIME - 1 if has_ended else self.status["iterations_done"] - 1
            async with aclosing(self._rows.read_between(next_time, last_time)) as rows:
                async for row in rows:
                    yield row
                    next_time = row.time + 1
            if has_ended and len(self._forks) == forks:
                return
            next_time = max(next_time, last_time + 1)
            has_ended = self._has_ended or (is_of_run and self._is_training_over)
            await self._followers.wait(is_behind=self.sequence != seen or has_ended)


def as_uuid(uuid: "uuid_module.UUID | str | None") -> uuid_module.UUID:
    """Give the id as a UUID: a new one for None, parsed for text."""
    if uuid is None:
        return uuid_module.uuid4()
    if isinstance(uuid, uuid_module.UUID):
        return uuid
    try:
        return uuid_module.UUID(uuid)
    except (ValueError, AttributeError, TypeError):
        raise ArgumentError(
            f"log uuid is {uuid!r}; expected a UUID or its 32 hexadecimal digits, as log.h_uuid "
            "gives them"
        ) from None
