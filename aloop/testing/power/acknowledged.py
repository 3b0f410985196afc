"""What a training has acknowledged: marks of what a power cut may not take any more."""

import asyncio
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from aloop.checkpoints import CheckpointDirectory, SavedCheckpoint
from aloop.errors import CheckpointError, brief
from aloop.extensions.base import TrainingExtension
from aloop.faults import watched_points
from aloop.log import SQLiteLog, TrainingLog, read_log
from aloop.log.values import encode_json
from aloop.testing.outcomes import MakeLoop, Outcome, loop_of, outcome_of

__all__ = ["Acknowledged", "examine", "is_before_end", "train"]

_MAX_SHOWN: Final = 4


@dataclass(slots=True)
class Acknowledged:
    """What has to be there after a power cut. All paths are below the directory of the training."""

    rows: dict[str, str] = field(default_factory=dict[str, str])
    """The JSON of each record that has to be in the log by paths such as ``"rows/12/cost"``, empty
    where any value will do."""
    database: str = ""
    run: str = ""
    """The hexadecimal id of the run that the log is of."""
    checkpoints: dict[str, tuple[int, bool]] = field(default_factory=dict[str, tuple[int, bool]])
    """The number of the newest checkpoint of each directory, and whether it is a whole one."""

    @classmethod
    def of(cls, marks: Iterable[str], straight: Outcome) -> Self:
        """Give what these marks tell, in their order.

        Records that the straight run does not end with may be gone, and those to which it gave
        another value later may have it.
        """
        found = cls()
        parents = {  # of what is in dictionaries
            path[:end] for path in straight for end, letter in enumerate(path) if letter == "/"
        }
        for mark in map(json.loads, marks):
            if "end" in mark:
                continue
            if "number" in mark:
                found.checkpoints[mark["directory"]] = mark["number"], mark["is_whole"]
                continue
            if mark["run"] != found.run:  # it goes on from another, whose later rows are done anew
                found.run, found.database, found.rows = mark["run"], mark["database"], {}
            for path, text in mark["rows"].items():
                if path in straight:
                    found.rows[path] = text if encode_json(straight[path]) == text else ""
                elif path in parents:
                    found.rows[path] = ""
        return found

    def lost(self, directory: Path) -> list[str]:
        """Say what of it is not in a directory."""
        lost = [
            text
            for name, (number, is_whole) in self.checkpoints.items()
            if (text := _lost_checkpoint(directory / name, number, is_whole=is_whole))
        ]
        if self.rows:
            lost += self._lost_rows(directory / self.database)
        return lost

    def _lost_rows(self, database: Path) -> list[str]:
        lost: list[str] = []
        try:
            with read_log(database, self.run) as log:
                for path, text in self.rows.items():
                    _, time, key = path.split("/", 2)
                    row = log[int(time)]
                    if key not in row:
                        lost.append(f"{path} was acknowledged, and is not in the log")
                    elif text and encode_json(row[key]) != text:
                        lost.append(f"{path} was acknowledged as {text}, and is {row[key]!r}")
        except Exception as error:  # noqa: BLE001 - told
            return [f"the log cannot be read, of which rows were acknowledged: {brief(error)}"]
        if len(lost) > _MAX_SHOWN:
            lost[_MAX_SHOWN:] = [f"and {len(lost) - _MAX_SHOWN} more records"]
        return lost


def _lost_checkpoint(directory: Path, number: int, *, is_whole: bool) -> str:
    try:
        newest = CheckpointDirectory(directory).read_newest(whole=is_whole)
    except CheckpointError as error:
        return f"checkpoint {number} was published, and {error}"
    if newest is None or newest[0].number < number:
        instead = newest[0].path.name if newest else "none"
        return f"checkpoint {number} was published, and the newest whole one is {instead}"
    return ""


class _Acknowledging(TrainingExtension):
    """Flushes the log now and then, and tells what is on the disk.

    Parameters:
        tell: takes a mark; None tells nobody, but the log is flushed.
        directory: of the training.
        every_n_batches: how often the log is flushed.
    """

    def __init__(
        self,
        tell: Callable[[Mapping[str, Any]], None] | None,
        directory: Path,
        every_n_batches: int,
    ) -> None:
        super().__init__("aloop.testing.power")
        self._tell = tell
        self._directory = directory
        self._every_n_batches = every_n_batches
        self._rows: dict[str, str] = {}
        self._copied = self._saved = 0  # up to which time was looked

    async def after_batch(self, batch: object) -> None:
        if self.main_loop.status["iterations_done"] % self._every_n_batches:
            return
        await self._training_log.flush()
        # What was there the last time was committed since; this batch is not yet.
        self._acknowledge()
        self._copy_rows()

    def end(self) -> None:
        """Acknowledge all that there is, when the run has ended."""
        self._mark(end=True)
        self._copied = 0
        self._copy_rows()
        self._acknowledge()

    @property
    def _training_log(self) -> TrainingLog:
        log = self.main_loop.log
        assert isinstance(log, TrainingLog)
        return log

    def _log(self) -> SQLiteLog | None:
        log = self._training_log
        if self._tell is None or not isinstance(log, SQLiteLog):
            return None
        return log if Path(log.database).is_relative_to(self._directory) else None

    def _copy_rows(self) -> None:
        log = self._log()
        if log is None:
            return
        last = log.status["iterations_done"]
        self._rows = {
            f"rows/{time}/{key}": encode_json(value)
            for time in range(self._copied, last + 1)
            if time in log
            for key, value in log[time].items()
        }
        self._copied = last

    def _acknowledge(self) -> None:
        log = self._log()
        if log is not None and self._rows:
            path = os.path.relpath(log.database, self._directory)
            self._mark(database=path, run=log.h_uuid, rows=self._rows)
        last: int = self.main_loop.status["iterations_done"]
        for time in range(self._saved, last + 1):
            saved: Any = self._training_log.get_record(time, "saved_to", ())
            for path in filter(None, saved):
                self._saved = time
                self._acknowledge_checkpoint(Path(path))

    def _acknowledge_checkpoint(self, path: Path) -> None:
        try:
            checkpoint = SavedCheckpoint.at(path)
        except CheckpointError:
            return  # removed since, for there are newer ones
        self._mark(
            directory=os.path.relpath(checkpoint.path.parent, self._directory),
            number=checkpoint.number,
            iteration=checkpoint.position.iterations_done,
            is_whole=checkpoint.is_whole,
        )

    def _mark(self, **mark: Any) -> None:
        if self._tell is not None:
            self._tell(mark)


def train(
    make_loop: MakeLoop, directory: Path, every_n_batches: int, marks: Path | None = None
) -> Outcome:
    """Run a training to its end, and tell a file what it has acknowledged, a mark to a line."""

    async def main(tell: Callable[[Mapping[str, Any]], None] | None) -> Outcome:
        loop = await loop_of(make_loop, directory)
        acknowledging = _Acknowledging(tell, directory, every_n_batches)
        loop.extensions.append(acknowledging)
        await loop.run()
        acknowledging.end()
        return outcome_of(loop)

    if marks is None:
        return asyncio.run(main(None))
    with marks.open("ab", buffering=0) as file:  # each mark is one call of the system
        return asyncio.run(main(lambda mark: _write(file.write, mark)))


def _write(write: Callable[[bytes], object], mark: Mapping[str, Any]) -> None:
    write(f"{json.dumps(mark)}\n".encode())


def is_before_end(marks: Sequence[str]) -> bool:
    """Say whether anything was acknowledged before the end of a run."""
    return bool(marks) and "end" not in json.loads(marks[0])


def examine(
    make_loop: MakeLoop, directory: Path, every_n_batches: int, acknowledged: Acknowledged
) -> tuple[list[str], Outcome | str, bool]:
    """Look what a power cut has left, and run the training to its end from there.

    Gives what was lost, what the training ends with, or why it fails, and whether it went on from
    a checkpoint.
    """
    lost = acknowledged.lost(directory)
    passed: list[str] = []
    try:
        with watched_points(passed.append):
            outcome = train(make_loop, directory, every_n_batches)
    except Exception as error:  # noqa: BLE001 - told
        return lost, brief(error), True
    return lost, outcome, "restore.done" in passed
