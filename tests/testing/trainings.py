"""Trainings that are broken in the tests of the kit."""

import asyncio
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "resume"))

import numpy as np
from resume_tools import data, make_loop

from aloop import (
    ArrayStream,
    Checkpoint,
    FinishAfter,
    MainLoop,
    OnLogRecord,
    ShuffledScheme,
    SQLiteLog,
    TrainingAlgorithm,
    TrainingDataMonitoring,
    TrainingExtension,
)

EPOCHS = 2
BATCHES = 7


class Before(TrainingExtension):
    """Marks the best batch, and answers to what the others do not."""

    def __init__(self) -> None:
        super().__init__()
        self.best = float("inf")

    async def before_batch(self, batch: object) -> None:
        self.main_loop.log.current_row["before"] = self.main_loop.status["iterations_done"]

    async def after_batch(self, batch: object) -> None:
        cost = float(self.main_loop.quantities["cost"])
        if cost < self.best:
            self.best = cost
            self.main_loop.log.current_row["is_best"] = True

    def state_dict(self):
        return {"best": self.best}

    def load_state_dict(self, state) -> None:
        self.best = state["best"]


def every_extension(directory: Path) -> MainLoop:
    """Make a loop with every extension, its stream read in a thread."""
    checkpoint = Checkpoint(directory / "checkpoints", resume=True, keep=2, every_n_batches=3)
    checkpoint.add_condition(["after_epoch"], OnLogRecord("is_best"), [directory / "best"])
    loop = make_loop(
        directory, Before(), epochs=EPOCHS, checkpoint=checkpoint, signals="auto", step="thread"
    )
    stream = ArrayStream(data(), iteration_scheme=ShuffledScheme(50, 8, seed=1))
    stream.where = "thread"
    loop.data_stream = stream
    return loop


def in_memory(directory: Path) -> MainLoop:
    """Make the same with its log in the checkpoints, and async steps."""
    checkpoint = Checkpoint(directory / "checkpoints", resume=True, after_batch=True)
    return make_loop(
        directory,
        Before(),
        epochs=EPOCHS,
        checkpoint=checkpoint,
        signals="auto",
        step="async",
        backend="python",
    )


def short(directory: Path, *extensions: TrainingExtension) -> MainLoop:
    """Make the loop of a training of two epochs of two batches, all in the event loop."""

    class Step(TrainingAlgorithm):
        async def process_batch(self, batch: int) -> dict[str, float]:
            model["w"] *= 1 - 0.1 * batch
            await asyncio.sleep(0)
            return {"cost": float(model["w"].sum())}

    model = {"w": np.arange(1.0, 4.0)}
    return MainLoop(
        Step(),
        [1, 2],
        model=model,
        log=SQLiteLog(directory / "log.sqlite"),
        extensions=[
            TrainingDataMonitoring(["cost"], after_batch=True),
            *extensions,
            Checkpoint(directory / "checkpoints", resume=True, keep=1, after_batch=True),
            FinishAfter(after_n_epochs=2),
        ],
    )
