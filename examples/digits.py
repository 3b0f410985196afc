"""Train a network on handwritten digits inside an asyncio program.

The data are the 1,797 real images of 8 by 8 pixels that come with scikit-learn. A network of two
layers, written in numpy, is trained on shuffled minibatches in the run's worker thread, so that
the event loop stays free. Every batch's cost is recorded in ``digits.sqlite`` in the working
directory. Press Ctrl-C once to stop after the epoch, twice to stop after the batch.

Every 25 batches, and at the end, all of it is saved in ``digits-checkpoints``. With ``--resume`` a
run that was stopped, or killed, goes on from there, and ends as if nothing had happened.
"""

import argparse
import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from aloop import (
    Adam,
    ArrayStream,
    Checkpoint,
    FinishAfter,
    GradientDescent,
    MainLoop,
    ParameterDict,
    Printing,
    ProgressBar,
    ShuffledScheme,
    SimpleExtension,
    SQLiteLog,
    TrainingDataMonitoring,
    TrainingExtension,
    run_in_worker,
)

Array = npt.NDArray[Any]


def make_parameters(seed: int, hidden: int = 64) -> ParameterDict:
    """Draw the weights of a network of 64 inputs, one hidden layer and 10 classes."""
    rng = np.random.default_rng(seed)
    return ParameterDict(
        {
            "w1": rng.normal(0, np.sqrt(2 / 64), (64, hidden)),
            "b1": np.zeros(hidden),
            "w2": rng.normal(0, np.sqrt(2 / hidden), (hidden, 10)),
            "b2": np.zeros(10),
        }
    )


def forward(parameters: Mapping[str, Array], images: Array) -> tuple[Array, Array]:
    """Give the hidden layer, and the logarithms of the class probabilities."""
    hidden = np.maximum(0, images @ parameters["w1"] + parameters["b1"])
    scores = hidden @ parameters["w2"] + parameters["b2"]
    scores -= scores.max(axis=1, keepdims=True)
    return hidden, scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))


def gradients(
    parameters: Mapping[str, Array], batch: Mapping[str, Array]
) -> tuple[dict[str, float], dict[str, Array]]:
    """Give the mean cross-entropy of a batch and its gradients."""
    images, labels = batch["images"], batch["labels"]
    hidden, log_probabilities = forward(parameters, images)
    rows = np.arange(len(labels))
    cost = -log_probabilities[rows, labels].mean()
    d_scores = np.exp(log_probabilities)
    d_scores[rows, labels] -= 1
    d_scores /= len(labels)
    d_hidden = (d_scores @ parameters["w2"].T) * (hidden > 0)
    return {"cost": cost}, {
        "w1": images.T @ d_hidden,
        "b1": d_hidden.sum(axis=0),
        "w2": hidden.T @ d_scores,
        "b2": d_scores.sum(axis=0),
    }


class RecordCost(TrainingExtension):
    """Records the cost of each batch."""

    async def after_batch(self, batch: Mapping[str, Array]) -> None:
        """Record what the algorithm returned for the batch."""
        self.main_loop.log.current_row["batch_cost"] = self.main_loop.quantities["cost"]


class RecordAccuracy(SimpleExtension):
    """Records how many of the test images the network gets right, after each epoch."""

    def __init__(self, images: Array, labels: Array) -> None:
        super().__init__(after_epoch=True)
        self.images = images
        self.labels = labels

    async def do(self, which_callback: str, *args: object) -> None:
        """Classify the test images in the worker thread, and record the share that is right."""
        row = self.main_loop.log.current_row
        row["test_accuracy"] = await run_in_worker(self.accuracy, self.main_loop.model)

    def accuracy(self, parameters: ParameterDict) -> float:
        """Give the share of the test images that the network gets right."""
        _, log_probabilities = forward(parameters, self.images)
        return float(np.mean(log_probabilities.argmax(axis=1) == self.labels))


def make_loop(directory: Path, epochs: int, *, resume: bool) -> MainLoop:
    """Make the loop of a training of so many epochs, with its log and checkpoints in a directory.

    With `resume` it goes on from the newest checkpoint there.
    """
    digits = load_digits()
    x_train, x_test, y_train, y_test = train_test_split(
        digits.data / 16, digits.target, test_size=0.2, random_state=0, stratify=digits.target
    )
    learning_rate, batch_size, seed = 0.005, 32, 1
    model = make_parameters(seed)
    return MainLoop(
        GradientDescent(model, gradients, Adam(learning_rate)),
        ArrayStream(
            {"images": x_train, "labels": y_train},
            iteration_scheme=ShuffledScheme(len(x_train), batch_size, seed=seed),
        ),
        model=model,
        log=SQLiteLog(directory / "digits.sqlite"),
        extensions=[
            RecordCost(),
            TrainingDataMonitoring(["cost"], prefix="train", after_epoch=True),
            RecordAccuracy(x_test, y_test),
            Checkpoint(directory / "digits-checkpoints", resume=resume, every_n_batches=25),
            FinishAfter(after_n_epochs=epochs),
            ProgressBar(),
            Printing(after_epoch=False, on_resumption=False),
        ],
        name="digits",
        hyperparameters={
            "learning_rate": learning_rate,
            "batch_size": batch_size,
            "seed": seed,
            "epochs": epochs,
        },
    )


async def main(epochs: int, resume: bool) -> None:
    """Train for so many epochs, and say where the log is and how good the network has become."""
    directory = Path.cwd()
    log = await make_loop(directory, epochs, resume=resume).run()
    print(f"\nevery record of this run {log.h_uuid} is in {directory / 'digits.sqlite'}")
    if log.status["epochs_done"]:
        row = log.last_epoch_row
        print(f"training cost {row['train_cost']!r}")
        print(f"test accuracy {row['test_accuracy'] * 100:.1f} %")
    else:
        print("stopped before the first epoch ended: no test accuracy")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train a network on handwritten digits.")
    parser.add_argument("--epochs", type=int, default=20, help="how many epochs (20)")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run that was stopped, if there is one"
    )
    options = parser.parse_args()
    asyncio.run(main(options.epochs, options.resume))
