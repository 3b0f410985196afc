"""What came of breaking a training again and again."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aloop.errors import AloopError

__all__ = [
    "FaultFoundError",
    "Report",
    "Trial",
    "beginning",
    "finished",
    "going_on",
    "never_broken",
]

_MAX_SHOWN: Final = 10


@dataclass(frozen=True, slots=True)
class Trial:
    """One training that was broken, and what was wrong after it."""

    what: str
    """What was done to it."""
    wrong: tuple[str, ...] = ()
    """Each thing that should not be; none where all is well."""
    was_broken: bool = True
    """False if it ended before it came to where it was to be broken."""
    point: str | None = None
    """The fault point at which it was broken, if it was at one."""


def going_on(times: int) -> Trial:
    """Say it if no training has gone on from a checkpoint, for then nothing is proven.

    Parameters:
        times: how often one has.
    """
    what = "stopped and started again"
    if times:
        return Trial(what)
    wrong = (
        "the training has begun anew each time; it should go on from a checkpoint: have it end "
        "with a Checkpoint(directory / 'checkpoints', resume=True) among its extensions"
    )
    return Trial(what, (wrong,))


def beginning(times: int) -> list[str]:
    """Say it if a training in a new directory has gone on from a checkpoint, which is not there.

    Parameters:
        times: how often it has.
    """
    text = (
        "it has gone on from a checkpoint where there was none: make_loop should have the loop "
        "keep its log and its checkpoints in the directory that it is given"
    )
    return [text] if times else []


class FaultFoundError(AloopError, AssertionError):
    """A training that was broken did not come out as it should."""

    def __init__(self, message: str, report: "Report") -> None:
        super().__init__(message)
        self.report = report
        """All the trials."""


@dataclass(frozen=True, slots=True)
class Report:
    """The trials of one kind over one training."""

    title: str
    """What was done, such as ``"crash_everywhere"``."""
    trials: tuple[Trial, ...]
    directory: Path | None = None
    """Where the files of the trials are; None once they are removed."""

    @property
    def failed(self) -> list[Trial]:
        """The trials after which something was wrong."""
        return [trial for trial in self.trials if trial.wrong]

    @property
    def points(self) -> set[str]:
        """The fault points at which a training was broken."""
        return {trial.point for trial in self.trials if trial.point and trial.was_broken}

    def raise_if_failed(self) -> None:
        """Raise `FaultFoundError`, which tells what was wrong, if anything was."""
        failed = self.failed
        if not failed:
            return
        lines = [f"{self.title}: {len(failed)} of {len(self.trials)} trials found something wrong"]
        for trial in failed[:_MAX_SHOWN]:
            lines.append(f"- {trial.what}")
            lines.extend(f"    {text}" for text in trial.wrong)
        if len(failed) > _MAX_SHOWN:
            lines.append(f"- and {len(failed) - _MAX_SHOWN} more, see .report")
        if self.directory is not None:
            lines.append(f"the files are in {self.directory}")
        raise FaultFoundError("\n".join(lines), self)


def never_broken(points: Iterable[str], trials: Iterable[Trial]) -> list[Trial]:
    """Name the fault points at which the training was to be broken, and never was."""
    broken = {trial.point for trial in trials if trial.was_broken}
    return [
        Trial(
            f"never broken at {point}",
            ("the training passes it in some runs and not in others; expected the same in each",),
            was_broken=False,
            point=point,
        )
        for point in dict.fromkeys(points)
        if point not in broken
    ]


def finished(title: str, trials: Sequence[Trial], directory: Path) -> Report:
    """Give the report of trials that have ended, or raise `FaultFoundError`."""
    Report(title, tuple(trials), directory).raise_if_failed()
    return Report(title, tuple(trials))
