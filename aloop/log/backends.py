"""The log backends by name."""

from collections.abc import Callable
from typing import Final

from aloop.config import config
from aloop.errors import ArgumentError, BackendError
from aloop.log.base import TrainingLog
from aloop.log.sqlite import SQLiteLog

__all__ = ["BACKENDS", "check_log", "create_log"]

BACKENDS: Final[dict[str, Callable[[], TrainingLog]]] = {"python": TrainingLog, "sqlite": SQLiteLog}
"""The log backends, by the names that `log_backend` takes."""


def create_log(backend: str | None = None) -> TrainingLog:
    """Make an empty log of the backend `backend`; `BackendError` lists the known ones.

    Without one it is that of the setting `log_backend`.
    """
    name: str = config.log_backend if backend is None else backend
    try:
        make = BACKENDS[name]
    except (KeyError, TypeError):
        raise BackendError(
            f"log_backend is {name!r}; expected one of {', '.join(map(repr, BACKENDS))}; "
            "to use a log of your own, give it as log="
        ) from None
    return make()


def check_log(log: object) -> TrainingLog:
    """Give back the log, or raise `ArgumentError` for what is none."""
    if not isinstance(log, TrainingLog):
        raise ArgumentError(
            f"log is {log!r}; expected a TrainingLog; for a file use log=SQLiteLog({log!r})"
        )
    return log
