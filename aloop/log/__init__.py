"""The training log: in memory (`TrainingLog`), persistent (`SQLiteLog`), read (`read_log`)."""

from aloop.log.backends import create_log
from aloop.log.base import TrainingLog
from aloop.log.read_only import ReadOnlyLog, ReadOnlyRow, RunSummary, read_log
from aloop.log.sqlite import SQLiteLog

__all__ = [
    "ReadOnlyLog",
    "ReadOnlyRow",
    "RunSummary",
    "SQLiteLog",
    "TrainingLog",
    "create_log",
    "read_log",
]
