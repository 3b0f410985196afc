"""Power cuts: what a disk may hold after one, and what a training makes of that."""

from aloop.testing.power.cuts import power_cuts
from aloop.testing.power.strace import TraceError

__all__ = ["TraceError", "power_cuts"]
