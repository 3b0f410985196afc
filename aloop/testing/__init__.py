"""The test kit: breaks a training wherever it can break, and finds what was lost by it.

For the tests of who trains with aloop, as for aloop's own.
"""

from aloop.testing.everywhere import cancel_everywhere, crash_everywhere, raise_everywhere
from aloop.testing.guard import LeftBehindError, guarded
from aloop.testing.outcomes import PlannedError
from aloop.testing.power import TraceError, power_cuts
from aloop.testing.recorder import Recorder
from aloop.testing.reports import FaultFoundError, Report, Trial
from aloop.testing.scripted import Gate, ScriptedAlgorithm, ScriptedStream, Wait
from aloop.testing.virtual_loop import (
    DeadlockError,
    LivelockError,
    SteppedLoop,
    VirtualLoop,
    in_virtual_time,
    run_virtual,
)

__all__ = [
    "DeadlockError",
    "FaultFoundError",
    "Gate",
    "LeftBehindError",
    "LivelockError",
    "PlannedError",
    "Recorder",
    "Report",
    "ScriptedAlgorithm",
    "ScriptedStream",
    "SteppedLoop",
    "TraceError",
    "Trial",
    "VirtualLoop",
    "Wait",
    "cancel_everywhere",
    "crash_everywhere",
    "guarded",
    "in_virtual_time",
    "power_cuts",
    "raise_everywhere",
    "run_virtual",
]
