"""The log backends by name."""

from collections.abc import Callable
from typing import Final

from aloop.errors import BackendError
from aloop.log.base import TrainingLog
from aloop.log.sqlite import SQLiteLog

__all__ = ["BACKENDS", "create_log"]

BACKENDS: Final[dict[str, Callable[[], TrainingLog]]] = {"python": TrainingLog, "sqlite": SQLiteLog}
"""The log backends, by the names that `log_backend` takes."""


def create_log(backend: str) -> TrainingLog:
    """Make an empty log of the backend `backend`; `BackendError` lists the known ones."""
    try:
        make = BACKENDS[backend]
    except (KeyError, TypeError):
        raise BackendError(
            f"log_backend is {backend!r}; expected one of {', '.join(map(repr, BACKENDS))}; "
            "to use a log of your own, give it as log="
        ) from None
    return make()
