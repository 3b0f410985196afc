"""What a log hands over to be written, and what it hears of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from aloop.errors import JournalError

__all__ = ["Group", "Source", "Writer", "not_written"]


def not_written(database: str | Path, failure: Exception) -> JournalError:
    """Give the error for a log that could not be written."""
    return JournalError(
        f"the log {database} could not be written: {failure}; its records are in memory; when the "
        "file can be written again, await log.flush()"
    )


@dataclass(slots=True)
class Writer:
    """Where a log's records go: its run in the file, once it is there."""

    run_id: int | None = None
    run: str | None = None


@dataclass(slots=True)
class Group:
    """What one log has to write, all of it or nothing."""

    writer: Writer
    changes: list[Any]
    """Time, key and value of each, in one list; see `aloop.log.records.Changes`."""
    iterations_done: int | None
    """As of the last commit point; noted as no change, for it comes with every batch."""
    sequence: int
    durable: bool
    has_ended: bool
    """True for the last group of a run."""
    failure: Exception | None = None


class Source(Protocol):
    """A log, as the journal sees it."""

    def take_group(self) -> Group | None:
        """Hand over what is committed and not yet written."""
        ...

    def settle(self, group: Group) -> None:
        """Hear what came of a group, and take it back if it could not be written."""
        ...

    def has_failed(self) -> bool:
        """Say whether the last group could not be written."""
        ...
