"""The loop as it was when something was triggered, for what is done about it beside the training.

The training goes on meanwhile. What works beside it still finds the row, the counters, the position
and the quantities of the moment it is about, and what it records goes there.
"""

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextvars import ContextVar
from typing import Any, Final

from aloop.errors import NoEpochError
from aloop.protocols import Log, Loop, Record
from aloop.stopping import LeftBehind

__all__ = ["Moment", "current_moment"]

_COUNTERS: Final = ("iterations_done", "epochs_done")


class LateRecords(MutableMapping[str, Record]):
    """A row, or the status, as it is written from beside the training.

    What is recorded may be persisted at once; see `TrainingLog.write_late`.
    """

    def __init__(
        self,
        records: MutableMapping[str, Record],
        log: Any,  # a TrainingLog; the protocol of extensions lacks what is needed here
        is_over: Callable[[], bool],
        counters: Mapping[str, Record] | None = None,
    ) -> None:
        self._records = records
        self._log = log
        self._is_over = is_over
        self._counters: Mapping[str, Record] = {} if counters is None else counters

    def _write(self, change: Callable[[], object]) -> None:
        if self._is_over():
            raise LeftBehind
        self._log.write_late(change)

    def __getitem__(self, key: str) -> Record:
        return self._counters[key] if key in self._counters else self._records[key]

    def __setitem__(self, key: str, value: Record) -> None:
        self._write(lambda: self._records.__setitem__(key, value))

    def __delitem__(self, key: str) -> None:
        self._write(lambda: self._records.__delitem__(key))

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def __repr__(self) -> str:
        return repr(dict(self))


class _LogThen:
    """The log, whose current row is that of the moment."""

    def __init__(self, log: Any, is_over: Callable[[], bool], counters: Mapping[str, Any]) -> None:
        self._log = log
        self._is_over = is_over
        self._time: int = counters["iterations_done"]
        ends: Sequence[int] = log.status["_epoch_ends"]
        self._epoch_end = ends[-1] if ends else None
        self._row = log.current_row  # held, so that it stays the very row
        self.status = LateRecords(log.status, log, is_over, counters)

    @property
    def current_row(self) -> MutableMapping[str, Record]:
        return self._late(self._row)

    @property
    def previous_row(self) -> MutableMapping[str, Record]:
        return self[self._time - 1]

    @property
    def last_epoch_row(self) -> MutableMapping[str, Record]:
        if self._epoch_end is None:
            raise NoEpochError(
                "last_epoch_row was read at a moment before an epoch had ended; look at "
                "status['epochs_done'] first"
            )
        return self[self._epoch_end]

    def __getitem__(self, time: int, /) -> MutableMapping[str, Record]:
        return self._late(self._log[time])

    def _late(self, row: MutableMapping[str, Record]) -> MutableMapping[str, Record]:
        return LateRecords(row, self._log, self._is_over)

    def __iter__(self) -> Iterator[int]:
        return iter(self._log)

    def __len__(self) -> int:
        return len(self._log)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)


class Moment:
    """The loop as it is now, for later: all that is not of the moment is the loop's own.

    Parameters:
        loop: the loop.
        is_over: says whether the run has ended, after which nothing can be recorded.
    """

    def __init__(self, loop: Loop, is_over: Callable[[], bool]) -> None:
        self._loop = loop
        counters = {key: loop.status[key] for key in _COUNTERS}
        self.log: Log = _LogThen(loop.log, is_over, counters)
        self.position = loop.position
        self.quantities = loop.quantities

    @property
    def status(self) -> MutableMapping[str, Record]:
        """The status: its counters as they were, all else as it is."""
        return self.log.status

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)


current_moment: Final[ContextVar[Any]] = ContextVar("aloop_moment", default=None)
"""The moment that the running task is about; None in the training itself."""
