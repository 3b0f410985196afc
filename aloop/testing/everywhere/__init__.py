"""Breaking a training everywhere it can be broken: by a crash, a cancellation, an error."""

from aloop.testing.everywhere.cancels import cancel_everywhere
from aloop.testing.everywhere.crashes import crash_everywhere
from aloop.testing.everywhere.raises import raise_everywhere

__all__ = ["cancel_everywhere", "crash_everywhere", "raise_everywhere"]
