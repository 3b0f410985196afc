"""Reading the log of a run from its file, live or after its end, without ever writing to it."""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, SupportsIndex, cast
from uuid import UUID

from aloop.errors import ArgumentError, LogTimeError, UnknownRunError
from aloop.log.files import as_path
from aloop.log.frames import as_dataframe
from aloop.log.readers import Readers
from aloop.log.reading import END_OF_TIME, Head, History
from aloop.log.series import Series, merge
from aloop.log.times import check_time, first_time, last_epoch_end
from aloop.log.values import FrozenDict, normalise_key
from aloop.protocols import Record

__all__ = ["ReadOnlyLog", "ReadOnlyRow", "RunSummary", "read_log"]

MAX_POLL_S: Final = 3600

POLL_S: Final = 0.1
"""How often those who follow a log from outside look whether there is more."""


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One run of a log file."""

    run: str
    """The hexadecimal id."""
    name: str | None
    started_at: str
    """ISO 8601, UTC."""
    ended_at: str | None
    """ISO 8601, UTC; None while it runs, or if it was killed and nobody has resumed it."""
    resumed_from: str | None
    """The hexadecimal id of the run before."""
    iterations_done: int


class ReadOnlyRow(Mapping[str, Record]):
    """The records of one time, as they were when they were read."""

    __slots__ = ("_records", "time")

    def __init__(self, time: int, records: Mapping[str, Record]) -> None:
        self.time = time
        """The number of iterations that were done when these records were made."""
        self._records = records

    def __getitem__(self, key: str) -> Record:
        return self._records[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def __repr__(self) -> str:
        return repr(self._records)


class ReadOnlyLog:
    """A run in a log file, with what counts of its ancestors; `read_log` makes it.

    Reads as a `TrainingLog` does. Everything is read from the file when it is asked for, as far
    as it is written there by then, and the run that writes it is never held up. Raises
    `LogFileError` when the file cannot be read (any more).
    """

    def __init__(self, readers: Readers, history: History) -> None:
        self._readers = readers
        self._history = history

    @property
    def database(self) -> Path:
        """The path of the file."""
        return self._readers.database

    @property
    def h_uuid(self) -> str:
        """The hexadecimal id of the run."""
        return self._history.lineage[0][0]

    @property
    def name(self) -> str | None:
        """What the run is called."""
        return self._head().name

    @property
    def hyperparameters(self) -> Mapping[str, Any] | None:
        """What the run is made with."""
        return self._head().hyperparameters

    @property
    def status(self) -> Mapping[str, Record]:
        """What held of the training at the last commit point in the file."""
        return FrozenDict(self._head().status)

    @property
    def has_ended(self) -> bool:
        """True once the run has ended; a run that was killed never says so."""
        return self._head().has_ended

    @property
    def runs(self) -> list[RunSummary]:
        """All runs of the file, in the order in which they started."""
        with self._readers.connection() as connection:
            found = connection.execute(
                "SELECT run, name, started_at, ended_at, resumed_from, COALESCE((SELECT value "
                "FROM stored_status WHERE run = runs.id AND key = (SELECT id FROM keys "
                "WHERE key = 'iterations_done')), 0) FROM runs ORDER BY id"
            ).fetchall()
        return [RunSummary(*columns) for columns in found]

    def __getitem__(self, time: SupportsIndex) -> ReadOnlyRow:
        number = check_time(time)
        return ReadOnlyRow(number, self._history.row(number))

    def __iter__(self) -> Iterator[int]:
        for first, last in self._history.ranges(0, END_OF_TIME):
            yield from self._history.times(first, last)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, time: object) -> bool:
        try:
            return bool(self._history.row(check_time(time)))
        except LogTimeError:
            return False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.h_uuid[:8]} of {self.database}>"

    def get_record(self, time: int, key: str, default: Record = None) -> Record:
        """Give the record ``log[time][key]``, `default` without one."""
        is_before_all = isinstance(cast("object", time), int) and time < 0
        return default if is_before_all else self[time].get(key, default)

    @property
    def current_row(self) -> ReadOnlyRow:
        """The row of the current time, ``status["iterations_done"]``."""
        return self[self.status["iterations_done"]]

    @property
    def previous_row(self) -> ReadOnlyRow:
        """The row of the time before the current one; `LogTimeError` at time 0."""
        return self[self.status["iterations_done"] - 1]

    @property
    def last_epoch_row(self) -> ReadOnlyRow:
        """The row of the time at which the last epoch ended; `NoEpochError` before that."""
        return self[last_epoch_end(self.status)]

    async def series(self, key: str) -> Series:
        """Give the times and values of a record; see `TrainingLog.series`."""
        key = normalise_key(key)
        return await asyncio.to_thread(self._series, key)

    def to_dataframe(self) -> Any:  # a pandas.DataFrame; pandas is optional
        """Give the records as a pandas DataFrame: a row for each time, a column for each key.

        Blocks while it reads. Raises `MissingDependencyError` where pandas is not installed.
        """
        return as_dataframe(self._history.keys(), self._series)

    async def follow(
        self, after: int = -1, *, poll_s: float = POLL_S
    ) -> AsyncGenerator[ReadOnlyRow]:
        """Give each row of a later time than `after` once it is complete, as long as the run lasts.

        As `TrainingLog.follow`, by looking into the file every `poll_s` seconds. When the run is
        resumed as another one, that is followed from the fork on. A run that was killed does not
        say that it ended: this goes on waiting for it to be resumed.
        """
        is_number = isinstance(cast("object", poll_s), int | float) and poll_s is not True
        if not is_number or not 0 < poll_s <= MAX_POLL_S:
            raise ArgumentError(
                f"poll_s is {poll_s!r}; expected seconds, more than 0 and at most {MAX_POLL_S}; "
                "leave it out"
            )
        next_time = first_time(after)
        history = self._history
        while True:
            step = await asyncio.to_thread(_next_step, history, next_time)
            for time, records in step.rows.items():
                yield ReadOnlyRow(time, records)
            if step.has_ended:
                return
            history, next_time = step.history, step.next_time
            if not step.is_behind:
                await asyncio.sleep(poll_s)

    def close(self) -> None:
        """Close the file; a later read opens it again."""
        self._readers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _head(self) -> Head:
        return self._history.head()

    def _series(self, key: str) -> Series:
        return merge(self._history.series(key), ())


@dataclass(slots=True)
class _Step:
    """What a look into the file gives to one who follows."""

    rows: dict[int, dict[str, Any]]
    next_time: int
    history: History
    has_ended: bool
    is_behind: bool


def _next_step(history: History, next_time: int) -> _Step:
    iterations_done, has_ended = history.progress()  # first: what is complete by now stays so
    successor = history.successor() if has_ended else None
    if successor is not None:
        # The row at which it was resumed has records of both.
        next_time = min(next_time, successor.lineage[1][1] + 1)
        return _Step({}, next_time, successor, has_ended=False, is_behind=True)
    last_time = END_OF_TIME if has_ended else iterations_done - 1
    up_to, rows = history.next_rows(next_time, last_time)
    if up_to < last_time:
        return _Step(rows, up_to + 1, history, has_ended=False, is_behind=True)
    return _Step(rows, max(next_time, last_time + 1), history, has_ended, is_behind=False)


def read_log(database: str | Path, run: str | UUID | None = None) -> ReadOnlyLog:
    """Open a run of a log file for reading.

    `run` is its id, or as much of the beginning as no other has, or its name (the latest of that
    name); the run that was started last by default. Raises `LogFileError` for a
    file that is not a log, `UnknownRunError` for a run that is not in it.
    """
    if str(database) == ":memory:":
        raise ArgumentError(
            "database is ':memory:'; expected the path of a file; a database in memory can be read "
            "by its own log alone"
        )
    readers = Readers(as_path(database))
    try:
        history, _ = History.of(readers, _find_run(readers, run))
    except BaseException:
        readers.close()
        raise
    return ReadOnlyLog(readers, history)


def _find_run(readers: Readers, run: str | UUID | None) -> str:
    """Give the id of the run that is meant."""
    with readers.connection() as connection:
        found_runs = connection.execute("SELECT run, name FROM runs ORDER BY id DESC").fetchall()
    # In a damaged file anything can stand in a column of texts.
    known: list[tuple[str, Any]] = [row for row in found_runs if isinstance(row[0], str)]
    if run is None:
        found = [known[0][0]] if known else []
    else:
        if not isinstance(cast("object", run), str | UUID):
            raise ArgumentError(
                f"run is {run!r}; expected the id of a run, the beginning of one, or a name; leave "
                "it out for the latest"
            )
        begin = str(run).replace("-", "").lower()
        begun = [h_uuid for h_uuid, _ in known if begin and h_uuid.startswith(begin)]
        named = [h_uuid for h_uuid, name in known if name == run]
        found = begun if begin in begun else named[:1] or begun
    if len(found) == 1:
        return found[0]
    if not known:
        raise UnknownRunError(
            f"{readers.database} has no runs yet; expected one to have been started; wait for its "
            "first commit point, or correct the path"
        )
    latest = ", ".join(f"{h_uuid} ({name})" if name else h_uuid for h_uuid, name in known[:3])
    raise UnknownRunError(
        f"{readers.database} has {len(found) or 'no'} runs for {run!r}; expected the id of one of "
        f"its runs, the beginning of one, or a name (the latest: {latest or 'none'}); leave run "
        "out for the latest"
    )
