"""Twelve faults that trainings are known for, each in a training that would lose nothing otherwise.

Each is a function that makes the loop in a directory, for the kit to break; with ``mended=True`` it
makes the same without the fault. A fault of aloop's own is planted when the loop is made, and stays
in that process: only those of `crash_everywhere` and `power_cuts` may make such a loop.
"""

import asyncio
import os
import signal
import threading
import time
from collections import deque
from functools import partialmethod
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import aloop.checkpoints.published
import aloop.saving
from aloop import (
    ArrayStream,
    Checkpoint,
    DataStream,
    FinishAfter,
    MainLoop,
    ShuffledScheme,
    SQLiteLog,
    TrainingAlgorithm,
    TrainingDataMonitoring,
    TrainingExtension,
)
from aloop.checkpoints.directory import CheckpointDirectory
from aloop.checkpoints.published import FILES, MANIFEST, Contents, Packed
from aloop.faults import fault_point
from aloop.log.connection import LogConnection
from aloop.snapshots import take_model

BATCHES = 5  # an epoch


class Step(TrainingAlgorithm):
    """Fits a line, with momentum and dropout, in place and in the event loop."""

    def __init__(self, *, keeps_generator: bool = True) -> None:
        self.weights = np.zeros(3)
        self.velocity = np.zeros(3)
        self.dropout = np.random.default_rng(5)
        if keeps_generator:
            self.register_generator("dropout", self.dropout)

    async def process_batch(self, batch):
        await asyncio.sleep(0)
        cost, gradient = self.gradient(batch)
        self.descend(gradient)
        return {"cost": cost}

    def gradient(self, batch):
        error = batch["x"] @ self.weights - batch["y"]
        error *= self.dropout.random(len(error)) > 0.2
        return float((error**2).mean()), batch["x"].T @ error / len(error)

    def descend(self, gradient) -> None:
        self.velocity *= 0.9
        self.velocity -= 0.1 * gradient
        self.weights += self.velocity

    def state_dict(self):
        return {"velocity": self.velocity}

    def load_state_dict(self, state) -> None:
        self.velocity[...] = state["velocity"]


def data():
    x = np.random.default_rng(0).normal(size=(4 * BATCHES, 3))
    return {"x": x, "y": x @ np.array([1.0, 2.0, 3.0])}


def training(
    directory: Path,
    *extensions: TrainingExtension,
    step: Step | None = None,
    stream: DataStream | None = None,
    log: type[SQLiteLog] = SQLiteLog,
    epochs: int = 2,
) -> MainLoop:
    """Make the loop of a short training, which saves every other batch and goes on from there."""
    step = step or Step()
    scheme = ShuffledScheme(4 * BATCHES, 4, seed=1)
    return MainLoop(
        step,
        stream or ArrayStream(data(), iteration_scheme=scheme),
        model={"w": step.weights},
        log=log(directory / "log.sqlite"),
        extensions=[
            TrainingDataMonitoring(["cost"], after_batch=True),
            *extensions,
            Checkpoint(directory / "checkpoints", resume=True, every_n_batches=2),
            FinishAfter(after_n_epochs=epochs),
        ],
        stall_warning_s=0,
    )


# 1. A checkpoint taken while the next step runs.


def taken_late(directory: Path, *, mended: bool = False) -> MainLoop:
    """Hand the arrays themselves to the thread that writes them, in place of copies."""
    if not mended:
        aloop.saving._complete = lambda trained, packed: Contents.of(
            packed | Packed.of(take_model(trained), copies_up_to=0)
        )
    return training(directory)


# 2. An extension that swallows cancellation.


class Uploading(TrainingExtension):
    """Sends something beside the training, and cancels that when the run is told to stop."""

    def __init__(self, *, mended: bool) -> None:
        super().__init__()
        self.mended = mended

    async def before_training(self) -> None:
        self.is_over = asyncio.Event()
        self.task = asyncio.create_task(self.upload(), name="upload")

    async def upload(self) -> None:
        while not self.is_over.is_set():
            try:
                await self.is_over.wait()
            except asyncio.CancelledError:
                if self.mended:
                    raise

    async def after_training(self) -> None:
        self.is_over.set()
        await asyncio.wait([self.task])

    async def on_interrupt(self) -> None:
        self.task.cancel()


def swallowing(directory: Path, *, mended: bool = False) -> MainLoop:
    """Go on beside the training when that is cancelled."""
    return training(directory, Uploading(mended=mended), epochs=1)


# 3. A generator left out of the state.


def generator_left_out(directory: Path, *, mended: bool = False) -> MainLoop:
    """Draw from a generator that no checkpoint knows of."""
    return training(directory, step=Step(keeps_generator=mended))


# 4. A log write that nobody awaits.


class HastyLog(SQLiteLog):
    """A log whose flush returns before anything is written."""

    async def flush(self) -> None:
        super().flush()  # nobody awaits it


def unawaited(directory: Path, *, mended: bool = False) -> MainLoop:
    """Forget an await, so that checkpoints are published before their rows are written."""
    return training(directory, log=SQLiteLog if mended else HastyLog)


# 5. The barrier taken out.


def without_barrier(directory: Path, *, mended: bool = False) -> MainLoop:
    """Let no commit of the log wait for the disk."""
    if not mended:
        write = LogConnection.write
        LogConnection.write = lambda self, groups, *, durable: write(self, groups, durable=False)
    return training(directory)


# 6. A save without fsync.


class _OSWithoutSync:
    """The module ``os``, in which syncing does nothing."""

    def __getattr__(self, name: str):
        return getattr(os, name)

    def fsync(self, handle: int) -> None:
        """Leave it to the system."""


def unsynced(directory: Path, *, mended: bool = False) -> MainLoop:
    """Rename checkpoints whose files are in the system's cache alone."""
    if not mended:
        aloop.checkpoints.published.os = _OSWithoutSync()
    return training(directory)


# 7. A read-ahead cursor that counts fetched batches.


class ReadAhead:
    """Goes through batches, of which it fetches some before they are asked for."""

    def __init__(self, batches, *, mended: bool) -> None:
        self.batches = batches
        self.mended = mended
        self.fetched = 0
        self.waiting = deque()

    def __iter__(self):
        return self

    def __next__(self):
        while self.fetched < len(self.batches) and len(self.waiting) < 3:
            self.waiting.append(self.batches[self.fetched])
            self.fetched += 1
        if not self.waiting:
            raise StopIteration
        return self.waiting.popleft()

    def state_dict(self):
        return {"place": self.fetched - len(self.waiting) if self.mended else self.fetched}

    def load_state_dict(self, state) -> None:
        self.fetched = state["place"]
        self.waiting.clear()


class ReadingAhead(DataStream):
    """Gives the same batches in each epoch."""

    where = "inline"

    def __init__(self, *, mended: bool) -> None:
        self.mended = mended

    def get_epoch_iterator(self, *, as_dict: bool = True):
        x, y = data().values()
        places = range(0, len(x), 4)
        batches = [{"x": x[place : place + 4], "y": y[place : place + 4]} for place in places]
        return ReadAhead(batches, mended=self.mended)


def counting_fetched(directory: Path, *, mended: bool = False) -> MainLoop:
    """Go on behind what was fetched, and not behind what was trained on."""
    return training(directory, stream=ReadingAhead(mended=mended))


# 8. A handler not put back.


class Farewell(TrainingExtension):
    """Says something when the program is to end."""

    def __init__(self, *, mended: bool) -> None:
        super().__init__()
        self.mended = mended

    def _say(self, number: int, frame: object) -> None:
        print("farewell")

    async def before_training(self) -> None:
        self.before = signal.signal(signal.SIGTERM, self._say)

    async def after_training(self) -> None:
        if self.mended and signal.getsignal(signal.SIGTERM) == self._say:
            signal.signal(signal.SIGTERM, self.before)

    async def on_interrupt(self) -> None:
        await self.after_training()

    async def on_error(self, error: BaseException) -> None:
        await self.after_training()


def handler_left(directory: Path, *, mended: bool = False) -> MainLoop:
    """Leave the program with another handler than it had."""
    return training(directory, Farewell(mended=mended))


# 9. A rename across file systems.


def _write_elsewhere(self, contents, path, is_wanted, *, mended: bool) -> None:
    """Write it to another directory, and move it as is done from one file system to another."""
    copy = path.with_name(f".tmp-{path.name}") if mended else path
    with TemporaryDirectory(dir=self.path.parent) as name:
        elsewhere = Path(name)
        contents.write(elsewhere, self._number)
        copy.mkdir()
        for file in (MANIFEST, *FILES):
            fault_point("copy.next")
            (copy / file).write_bytes((elsewhere / file).read_bytes())
    copy.rename(path)


def moved_across(directory: Path, *, mended: bool = False) -> MainLoop:
    """Copy the files of a checkpoint to where it has its name already."""
    CheckpointDirectory._write = partialmethod(_write_elsewhere, mended=mended)
    return training(directory)


# 10. A thread that goes on mutating.


class Overlapping(Step):
    """Changes the weights in a thread, while the next batch is fetched."""

    def __init__(self, *, mended: bool) -> None:
        super().__init__()
        self.mended = mended
        self.thread = threading.Thread()

    async def process_batch(self, batch):
        if self.thread.ident is not None:
            self.thread.join()
        cost, gradient = self.gradient(batch)
        self.thread = threading.Thread(target=self.descend, args=(gradient,))
        self.thread.start()
        if self.mended:
            self.thread.join()
        return {"cost": cost}

    def descend(self, gradient) -> None:
        time.sleep(0.005)  # as long as it takes where there are more weights
        super().descend(gradient)


def mutating_thread(directory: Path, *, mended: bool = False) -> MainLoop:
    """Call a step done that a thread is still at work on."""
    return training(directory, step=Overlapping(mended=mended))


# 11. State keyed by list position.


class Sum:
    """A part that adds up a quantity."""

    def __init__(self, name: str, start: float) -> None:
        self.name = name
        self.sum = start

    def see(self, cost: float) -> dict[str, float]:
        self.sum += cost
        return {self.name: self.sum}


class Announcing:
    """A part without a state, which there is in a run that goes on from another."""

    name = "announcing"

    def see(self, cost: float) -> dict[str, float]:
        return {}


class Parts(TrainingExtension):
    """Keeps the states of its parts by their places in the list, or by name."""

    def __init__(self, parts, *, mended: bool) -> None:
        super().__init__()
        self.keyed = {part.name if mended else str(place): part for place, part in enumerate(parts)}

    async def after_batch(self, batch: object) -> None:
        for part in self.keyed.values():
            self.main_loop.log.current_row.update(part.see(self.main_loop.quantities["cost"]))

    def state_dict(self):
        return {key: part.sum for key, part in self.keyed.items() if isinstance(part, Sum)}

    def load_state_dict(self, state) -> None:
        for key, part in self.keyed.items():
            if isinstance(part, Sum) and key in state:
                part.sum = state[key]


def keyed_by_place(directory: Path, *, mended: bool = False) -> MainLoop:
    """Put one part in front of the others when the training is started again."""
    parts = [Sum("low", 0.0), Sum("high", 100.0)]
    if any(directory.glob("checkpoints/ckpt-*")):
        parts.insert(0, Announcing())
    return training(directory, Parts(parts, mended=mended))


# 12. A flag inherited on resume.


class Stopping(TrainingExtension):
    """Finishes the training at the next batch when it was told to, and remembers that."""

    def __init__(self, *, mended: bool) -> None:
        super().__init__()
        self.mended = mended
        self.is_told = False

    async def on_interrupt(self) -> None:
        self.is_told = True

    async def after_batch(self, batch: object) -> None:
        if self.is_told:
            self.main_loop.request_finish("batch")

    def state_dict(self):
        return {"is_told": self.is_told and not self.mended}

    def load_state_dict(self, state) -> None:
        self.is_told = state["is_told"]


def inheriting(directory: Path, *, mended: bool = False) -> MainLoop:
    """Obey in a new run what the last one was told."""
    return training(directory, Stopping(mended=mended))
