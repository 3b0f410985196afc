"""Trainings whose power is cut, and such as have a planted fault."""

import itertools
import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "resume"))
import numpy as np
import resume_tools

import aloop.checkpoints.directory
import aloop.checkpoints.published
from aloop import Checkpoint, FinishAfter, MainLoop, TrainingExtension
from aloop.log.connection import LogConnection


def honest(directory: Path) -> MainLoop:
    """Make the loop of a training with every extension, which saves every few batches."""
    saving = Checkpoint(directory / "checkpoints", resume=True, every_n_batches=4)
    return resume_tools.make_loop(directory, checkpoint=saving)


def short(directory: Path) -> MainLoop:
    """Make the loop of a training that ends sooner."""
    saving = Checkpoint(directory / "checkpoints", resume=True, every_n_batches=3)
    return resume_tools.make_loop(directory, checkpoint=saving, epochs=2, step="inline")


class Filling(TrainingExtension):
    """Records so much that SQLite moves its write-ahead log into the file meanwhile."""

    async def after_batch(self, batch: object) -> None:
        done = self.main_loop.status["iterations_done"]
        self.main_loop.log.current_row["text"] = f"{done:07d}" * 60_000


def filling(directory: Path) -> MainLoop:
    """Make the loop of a training with a large log, and two places for its checkpoints."""
    saving = Checkpoint(directory / "deep" / "er", resume=True, every_n_batches=4, keep=1)
    saving.add_condition(["after_epoch"], None, [directory / "best"])
    return resume_tools.make_loop(directory, Filling(), checkpoint=saving)


def without_barrier(directory: Path) -> MainLoop:
    """Plant the fault that no commit is synced to the disk."""
    write = LogConnection.write
    LogConnection.write = lambda self, groups, *, durable: write(self, groups, durable=False)
    return short(directory)


def with_few_barriers(directory: Path) -> MainLoop:
    """Plant the fault that of the commits which are to be synced few are."""
    write, asked = LogConnection.write, itertools.count()

    def write_now_and_then(self, groups, *, durable):
        write(self, groups, durable=durable and next(asked) % 8 == 0)

    LogConnection.write = write_now_and_then
    return short(directory)


class _NoSync:
    """The module ``os``, in which syncing does nothing."""

    def __getattr__(self, name: str):
        return getattr(os, name)

    def fsync(self, handle: int) -> None:
        """Leave it to the system."""


def without_synced_files(directory: Path) -> MainLoop:
    """Plant the fault that the files of a checkpoint are not synced."""
    aloop.checkpoints.published.os = _NoSync()
    return short(directory)


def without_synced_names(directory: Path) -> MainLoop:
    """Plant the fault that the directory is not synced in which a checkpoint gets its name."""
    aloop.checkpoints.directory.sync_directory = lambda directory: None
    return short(directory)


def beginning_anew(directory: Path) -> MainLoop:
    """Make the loop of a training that never goes on from its checkpoints."""
    saving = Checkpoint(directory / "checkpoints", every_n_batches=3)
    return resume_tools.make_loop(directory, checkpoint=saving, epochs=2, step="inline")


class Keeping(TrainingExtension):
    """Writes to a file of its own, and waits for no disk."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    async def after_batch(self, batch: object) -> None:
        with self.path.open("ab") as file:
            file.write(b"x")


def acknowledging_nothing(directory: Path) -> MainLoop:
    """Make the loop of a training that keeps nothing that anybody is told of."""
    extensions = [Keeping(directory / "file"), FinishAfter(after_n_epochs=1)]
    return MainLoop(_nothing, range(8), extensions=extensions, log_backend="python", signals="off")


class Drawing(TrainingExtension):
    """Records what nobody can draw twice."""

    async def after_batch(self, batch: object) -> None:
        self.main_loop.log.current_row["drawn"] = int.from_bytes(os.urandom(4))


def unseeded(directory: Path) -> MainLoop:
    """Make the loop of a training that never ends the same."""
    return resume_tools.make_loop(directory, Drawing(), epochs=1)


def broken(directory: Path) -> MainLoop:
    """Fail to make a loop."""
    raise ValueError("no such training")


class Mapping(TrainingExtension):
    """Writes to a file through memory."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    async def before_training(self) -> None:
        np.memmap(self.path, np.uint8, "w+", shape=8)[:] = 1


def mapped(directory: Path) -> MainLoop:
    """Make the loop of a training that writes to a file through memory."""
    return resume_tools.make_loop(directory, Mapping(directory / "array"), epochs=1)


async def _nothing(batch: object) -> None:
    """Train on nothing."""


def outside(directory: Path) -> MainLoop:
    """Make the loop of a training that keeps nothing."""
    return MainLoop(_nothing, [1, 2], extensions=[FinishAfter(after_n_epochs=1)], signals="off")
