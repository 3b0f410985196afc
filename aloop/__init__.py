"""The training main loop for asyncio: stop it anywhere, resume exactly, inside your service."""

from aloop.algorithms import (
    Adam,
    FunctionAlgorithm,
    GradientDescent,
    Momentum,
    ParameterDict,
    Scale,
    StepRule,
    TrainingAlgorithm,
    as_algorithm,
)
from aloop.callbacks import CallbackName, Position, Stage
from aloop.config import config
from aloop.errors import AloopError, TrainingFinish
from aloop.extensions import (
    Checkpoint,
    CompositeExtension,
    FinishAfter,
    Load,
    OnLogRecord,
    Printing,
    ProgressBar,
    SimpleExtension,
    Timestamp,
    TrainingDataMonitoring,
    TrainingExtension,
)
from aloop.handle import RunHandle
from aloop.log import ReadOnlyLog, SQLiteLog, TrainingLog, read_log
from aloop.main_loop import MainLoop
from aloop.offload import run_in_worker
from aloop.stopping import RunState
from aloop.streams import (
    ArrayStream,
    ConcatenatedStream,
    DataStream,
    MixtureStream,
    SequentialScheme,
    ShuffledScheme,
    ZippedStream,
    as_stream,
    zip_streams,
)

__version__ = "0.1.0"

__all__ = [
    "Adam",
    "AloopError",
    "ArrayStream",
    "CallbackName",
    "Checkpoint",
    "CompositeExtension",
    "ConcatenatedStream",
    "DataStream",
    "FinishAfter",
    "FunctionAlgorithm",
    "GradientDescent",
    "Load",
    "MainLoop",
    "MixtureStream",
    "Momentum",
    "OnLogRecord",
    "ParameterDict",
    "Position",
    "Printing",
    "ProgressBar",
    "ReadOnlyLog",
    "RunHandle",
    "RunState",
    "SQLiteLog",
    "Scale",
    "SequentialScheme",
    "ShuffledScheme",
    "SimpleExtension",
    "Stage",
    "StepRule",
    "Timestamp",
    "TrainingAlgorithm",
    "TrainingDataMonitoring",
    "TrainingExtension",
    "TrainingFinish",
    "TrainingLog",
    "ZippedStream",
    "as_algorithm",
    "as_stream",
    "config",
    "read_log",
    "run_in_worker",
    "zip_streams",
]
