"""The loop as it was when something was triggered, for what is done about it beside the training.

The training goes on meanwhile. What works beside it still finds the row, the counters, the position
and the quantities of the moment it is about, and what it records goes there.
"""

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, Final, Self, cast

from aloop.background import current_moment
from aloop.callbacks import Position
from aloop.log.times import last_epoch_end
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

    @property
    def time(self) -> int:
        """The time of the row."""
        return cast("Any", self._records).time

    def copy(self) -> dict[str, Record]:
        """Give the records as a dictionary of their own."""
        return dict(self)

    def __or__(self, others: Mapping[str, Record]) -> dict[str, Record]:
        return dict(self) | dict(others)

    def __ior__(self, others: Mapping[str, Record]) -> Self:
        self.update(others)
        return self


class _LogThen:
    """The log, whose current row is that of the moment."""

    def __init__(self, log: Any, is_over: Callable[[], bool], counters: Mapping[str, Any]) -> None:
        self._log = log
        self._is_over = is_over
        self._time: int = counters["iterations_done"]
        self._last_end: dict[str, Sequence[int]] = {"_epoch_ends": log.status["_epoch_ends"][-1:]}
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
        return self[last_epoch_end(self._last_end)]

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

    loop: Loop
    log: Log
    position: Position
    quantities: Mapping[str, Any]

    def __init__(self, loop: Loop, is_over: Callable[[], bool]) -> None:
        counters = {key: loop.status[key] for key in _COUNTERS}
        # Not by assignment: what is assigned to a main loop is meant for it.
        self.__dict__["loop"] = loop
        self.__dict__["log"] = _LogThen(loop.log, is_over, counters)
        self.__dict__["position"] = loop.position
        self.__dict__["quantities"] = loop.quantities

    @property
    def status(self) -> MutableMapping[str, Record]:
        """The status: its counters as they were, all else as it is."""
        return self.log.status

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loop, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self.loop, name, value)
