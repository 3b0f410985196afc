"""Train on an HDF5 file that Fuel reads, stop in the middle of an epoch, and go on from there.

The digits of scikit-learn are written to a file in the layout of Fuel's H5PYDataset. Fuel shuffles,
flattens and scales them, and the network of ``digits.py`` is trained on what comes. A training that
is stopped after 100 batches, in its third epoch, is resumed by a second run, with a stream and a
network made anew; its weights are those of a training that nobody stopped, to the bit.
"""

import asyncio
import tempfile
from pathlib import Path

import aloop.streams.fuel  # noqa: F401 - it makes Fuel importable

# isort: split
import h5py
import numpy as np
from digits import RecordAccuracy, gradients, make_parameters
from fuel.datasets import H5PYDataset
from fuel.schemes import ShuffledScheme
from fuel.streams import DataStream
from fuel.transformers import Cast, Flatten, ScaleAndShift
from sklearn.datasets import load_digits

from aloop import (
    Adam,
    Checkpoint,
    FinishAfter,
    GradientDescent,
    MainLoop,
    SQLiteLog,
    TrainingDataMonitoring,
)

EPOCHS = 6
TRAINING = 1437  # of the 1,797 images


def write_digits(path: Path) -> None:
    """Write the images and their labels as Fuel wants them, with a split into two sets."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    with h5py.File(path, "w") as file:
        file["images"] = digits.images[order].astype(np.uint8)
        file["labels"] = digits.target[order]
        for source, labels in (("images", ("batch", "height", "width")), ("labels", ("batch",))):
            for dimension, label in enumerate(labels):
                file[source].dims[dimension].label = label
        sources = ("images", "labels")
        splits = {"train": (0, TRAINING), "test": (TRAINING, len(order))}
        file.attrs["split"] = H5PYDataset.create_split_array(
            {name: dict.fromkeys(sources, split) for name, split in splits.items()}
        )


def make_stream(path: Path) -> Flatten:
    """Make the stream of shuffled batches, by Fuel alone."""
    dataset = H5PYDataset(str(path), which_sets=("train",))
    scheme = ShuffledScheme(dataset.num_examples, batch_size=32, rng=np.random.RandomState(1))
    stream = DataStream(dataset, iteration_scheme=scheme)
    images = {"which_sources": ("images",)}
    return Flatten(ScaleAndShift(Cast(stream, "float64", **images), 1 / 16, 0, **images), **images)


def test_set(path: Path) -> RecordAccuracy:
    """Make the extension that classifies the test images after each epoch."""
    dataset = H5PYDataset(str(path), which_sets=("test",), load_in_memory=True)
    images, labels = dataset.get_data(None, slice(0, dataset.num_examples))
    return RecordAccuracy(images.reshape(len(images), -1) / 16, labels)


async def train(data: Path, directory: Path, stop: int | None = None) -> MainLoop:
    """Train in a directory, or go on there, until the last epoch or so many batches are done."""
    model = make_parameters(seed=1)
    loop = MainLoop(
        GradientDescent(model, gradients, Adam(0.005)),
        make_stream(data),  # as Fuel made it
        model=model,
        log=SQLiteLog(directory / "log.sqlite"),
        extensions=[
            TrainingDataMonitoring(["cost"], prefix="train", after_epoch=True),
            test_set(data),
            Checkpoint(directory / "checkpoints", resume=True),
            FinishAfter(after_n_epochs=EPOCHS)
            if stop is None
            else FinishAfter(after_n_batches=stop),
        ],
    )
    try:
        await loop.run()
    finally:
        loop.data_stream.close()
    return loop


def report(what: str, loop: MainLoop) -> None:
    """Print where a training is."""
    status = loop.status
    print(f"{what}: {status['iterations_done']} batches, {status['epochs_done']} epochs")


async def main(data: Path) -> None:
    """Train once straight on and once in two runs, and compare."""
    straight = await train(data, data.parent / "straight")
    report("never stopped", straight)
    stopped = await train(data, data.parent / "resumed", stop=100)
    report("stopped in the middle of an epoch", stopped)
    resumed = await train(data, data.parent / "resumed")
    report("resumed", resumed)

    print(f"test accuracy {resumed.log.last_epoch_row['test_accuracy'] * 100:.1f} %")
    are_equal = all(
        np.array_equal(straight.model[name], resumed.model[name]) for name in straight.model
    )
    print("weights equal to the bit:", "yes" if are_equal else "no")
    costs = [
        [loop.log[time]["train_cost"] for time in loop.log if "train_cost" in loop.log[time]]
        for loop in (straight, resumed)
    ]
    print("training cost of each epoch equal:", "yes" if costs[0] == costs[1] else "no")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        for name in ("straight", "resumed"):
            Path(made, name).mkdir()
        write_digits(Path(made, "digits.hdf5"))
        asyncio.run(main(Path(made, "digits.hdf5")))
