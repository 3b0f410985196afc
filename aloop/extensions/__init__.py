"""Extensions: what people plug into the loop."""

from aloop.extensions.base import TrainingExtension
from aloop.extensions.display import Printing, ProgressBar
from aloop.extensions.monitoring import TrainingDataMonitoring
from aloop.extensions.predicates import OnLogRecord
from aloop.extensions.saveload import Checkpoint, Load
from aloop.extensions.simple import CompositeExtension, SimpleExtension
from aloop.extensions.stopping import FinishAfter
from aloop.extensions.timing import Timestamp

__all__ = [
    "Checkpoint",
    "CompositeExtension",
    "FinishAfter",
    "Load",
    "OnLogRecord",
    "Printing",
    "ProgressBar",
    "SimpleExtension",
    "Timestamp",
    "TrainingDataMonitoring",
    "TrainingExtension",
]
