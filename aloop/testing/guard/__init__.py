"""The guard of a test, which blocks no event loop and leaves nothing behind."""

from aloop.testing.guard.guards import Guard, LeftBehindError, add_to, guarded, listed
from aloop.testing.guard.leftovers import SignalHandlers

__all__ = [
    "Guard",
    "LeftBehindError",
    "SignalHandlers",
    "add_to",
    "guarded",
    "listed",
]
