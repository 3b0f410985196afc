"""A training with all that a checkpoint has to carry, and what two of them must have in common."""

import asyncio
import io
import random
from pathlib import Path

import numpy as np

from aloop import (
    Adam,
    ArrayStream,
    Checkpoint,
    CompositeExtension,
    FinishAfter,
    GradientDescent,
    MainLoop,
    ParameterDict,
    Printing,
    ProgressBar,
    ShuffledScheme,
    SimpleExtension,
    SQLiteLog,
    Timestamp,
    TrainingAlgorithm,
    TrainingDataMonitoring,
    TrainingExtension,
    TrainingLog,
)

BATCHES = 7  # an epoch
EPOCHS = 3

BOOKKEEPING = {
    "saved_to",
    "checkpoint_seconds",
    "checkpoint_bytes",
    "loaded_from",
    "timestamp",
    "training_finished",
    "training_finish_requested",
    "got_exception",
    "interrupt_cause",
    "epoch_interrupt_received",
    "batch_interrupt_received",
}


class Losses(TrainingExtension):
    """Keeps the losses it has seen: plain state, and a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[float] = []
        self.random = random.Random(4)  # noqa: S311 - keeps no secret

    async def after_batch(self, batch: object) -> None:
        self.seen.append(float(self.main_loop.quantities["cost"]))
        row = self.main_loop.log.current_row
        row["cost"] = self.seen[-1]
        row["noise"] = self.random.random()

    async def after_epoch(self) -> None:
        self.main_loop.log.current_row["losses"] = len(self.seen)

    def state_dict(self):
        return {"seen": np.array(self.seen), "random": self.random.getstate()}

    def load_state_dict(self, state) -> None:
        self.seen = state["seen"].tolist()
        self.random.setstate(state["random"])


class Beside(SimpleExtension):
    """Records from beside the training, after the event loop has gone round."""

    async def do(self, which_callback, *args) -> None:
        row = self.main_loop.log.current_row
        await asyncio.sleep(0)
        row["beside"] = self.main_loop.status["iterations_done"]


class AsyncStep(TrainingAlgorithm):
    """The step of another algorithm, in the event loop."""

    def __init__(self, inner: GradientDescent) -> None:
        self.inner = inner
        self.parameters = inner.parameters
        self.state_dict = inner.state_dict
        self.load_state_dict = inner.load_state_dict
        self._generators = dict(inner.generators)

    async def process_batch(self, batch):
        await asyncio.sleep(0)
        return self.inner.step(batch)


def data(examples: int = 50):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(examples, 3))
    return {"x": x, "y": x @ np.array([1.0, 2.0, 3.0])}


def algorithm_of(parameters: ParameterDict, step: str):
    dropout = np.random.default_rng(5)

    def gradients(values, batch):
        error = batch["x"] @ values["w"] - batch["y"]
        error = error * (dropout.random(len(error)) > 0.2)
        return {"cost": (error**2).mean()}, {"w": batch["x"].T @ error / len(error)}

    where = "thread" if step == "thread" else "inline"
    inner = GradientDescent(
        parameters, gradients, Adam(0.1), where=where, generators={"dropout": dropout}
    )
    return AsyncStep(inner) if step == "async" else inner


def make_loop(
    directory: Path,
    *extensions: TrainingExtension,
    step: str = "thread",
    backend: str = "sqlite",
    epochs: int = EPOCHS,
    checkpoint: Checkpoint | None = None,
    signals="off",
) -> MainLoop:
    """Make the loop of a script that can be started again and again."""
    if checkpoint is None:
        checkpoint = Checkpoint(directory / "checkpoints", resume=True)
    parameters = ParameterDict({"w": np.zeros(3)})
    nowhere = io.StringIO()
    return MainLoop(
        algorithm_of(parameters, step),
        ArrayStream(data(), iteration_scheme=ShuffledScheme(50, 8, seed=1)),
        model=parameters,
        log=SQLiteLog(directory / "log.sqlite") if backend == "sqlite" else TrainingLog(),
        extensions=[
            checkpoint,
            Losses(),
            TrainingDataMonitoring(["cost"], prefix="train", after_epoch=True),
            TrainingDataMonitoring(["cost"], prefix="some", every_n_batches=4),
            Beside(every_n_batches=3, background=True),
            CompositeExtension([Timestamp(), TrainingDataMonitoring(["cost"], prefix="inner")]),
            ProgressBar(file=nowhere),
            Printing(file=nowhere),
            *extensions,
            FinishAfter(after_n_epochs=epochs),
        ],
        signals=signals,
        stall_warning_s=0,
    )


def rows_of(log) -> dict:
    """The visible log, without what tells of saving, stopping and the time of day."""
    rows = {time: {key: log[time][key] for key in log[time].keys() - BOOKKEEPING} for time in log}
    return {time: row for time, row in rows.items() if row}


def outcome(loop: MainLoop) -> dict:
    """All that has to be equal to the bit after a training, however often it was begun."""
    status = dict(loop.status)
    del status["resumed_from"]
    return {
        "weights": loop.model["w"].tobytes(),
        "rows": rows_of(loop.log),
        "status": status,
        "position": loop.position,
        "seen": loop.find_extension("Losses").seen,
    }


def checkpoints_in(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "checkpoints").iterdir())
