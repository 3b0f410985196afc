"""The times of rows: numbers of iterations."""

from collections.abc import Mapping, Sequence
from operator import index
from typing import Any, Final, SupportsIndex, cast

from aloop.errors import LogTimeError, NoEpochError

__all__ = ["MAX_TIME", "check_time", "first_time", "last_epoch_end"]

MAX_TIME: Final = 2**63
"""What times are below: it is where SQLite's integers end."""


def last_epoch_end(status: Mapping[str, Any]) -> int:
    """Give the time at which the last epoch ended; `NoEpochError` before that."""
    ends: Sequence[int] = status["_epoch_ends"]
    if not ends:
        raise NoEpochError(
            "last_epoch_row was read after 0 epochs; expected at least one epoch to have ended; "
            "look at log.status['epochs_done'] first"
        )
    return ends[-1]


def first_time(after: object) -> int:
    """Give the first time that is later than `after`, which is a time or -1."""
    return 0 if type(after) is int and after == -1 else check_time(after) + 1


def check_time(time: object) -> int:
    """Check the time of a row and give it as an int."""
    given = time
    if type(time) is not int:
        # numpy's integers are fine; booleans are integers for Python, but no time.
        try:
            time = None if isinstance(time, bool) else index(cast("SupportsIndex", time))
        except TypeError:
            time = None
        if time is None:
            raise LogTimeError(
                f"log time is {given!r} of type {type(given).__name__}; expected a whole number "
                "from 0 on, such as log.status['iterations_done']"
            )
    if time < 0:
        raise LogTimeError(
            f"log time is {time}; expected a whole number from 0 on; rows count from the first "
            "batch, there is no row before it"
        )
    if time >= MAX_TIME:
        raise LogTimeError(f"log time is {time}; expected less than 2**63")
    return time
