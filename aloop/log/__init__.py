"""The training log: in memory (`TrainingLog`) and persistent (`SQLiteLog`)."""

from aloop.log.backends import create_log
from aloop.log.base import TrainingLog
from aloop.log.sqlite import SQLiteLog

__all__ = ["SQLiteLog", "TrainingLog", "create_log"]
