"""Predicates: functions of the log that say whether a condition holds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from aloop.protocols import Log

__all__ = ["Counter", "CounterIs", "CounterIsMultipleOf", "OnLogRecord", "Predicate"]

Predicate: TypeAlias = Callable[[Log], bool]

Counter: TypeAlias = Literal["epochs_done", "iterations_done"]


@dataclass(frozen=True)
class OnLogRecord:
    """Holds while the current row has a record of this name that is true."""

    record_name: str

    def __call__(self, log: Log) -> bool:
        return bool(log.current_row.get(self.record_name, False))


@dataclass(frozen=True)
class CounterIs:
    """Holds when a counter of the status is at the number."""

    counter: Counter
    number: int

    def __call__(self, log: Log) -> bool:
        return log.status[self.counter] == self.number


@dataclass(frozen=True)
class CounterIsMultipleOf:
    """Holds when a counter of the status is a multiple of the number."""

    counter: Counter
    number: int

    def __call__(self, log: Log) -> bool:
        return log.status[self.counter] % self.number == 0
