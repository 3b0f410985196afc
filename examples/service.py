"""A service that learns handwritten digits from whoever sends them, while it tells them apart.

``POST /examples`` puts digits of 8 by 8 pixels, with their labels, into a queue that is trained on;
``POST /predict`` answers with the weights of that moment; ``GET /status`` says how far the training
is; ``POST /pause`` holds it still until ``POST /resume``. The log is in ``service.sqlite``.

``service_client.py`` beside this sends it real digits. Ctrl-C or SIGTERM drains the service: the
batch in flight is finished, and of each example that was acknowledged with 202, log and terminal
say whether it was trained on or left in the queue.

Started again, the service goes on after its last batch, or, where ``kill -9`` ended it, at its last
checkpoint: one is saved every 100 batches, at ``POST /checkpoint``, and whenever it is drained, in
``service-checkpoints``. The queue is in memory and is lost in any case; so the examples are counted
from 0 with each start, while all else goes on. To begin anew, move log and checkpoints away.
"""

import argparse
import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import uvicorn
from fastapi import Body, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, FailFast, Field

from aloop import (
    Adam,
    AloopError,
    Checkpoint,
    GradientDescent,
    MainLoop,
    ParameterDict,
    RunHandle,
    SimpleExtension,
    SQLiteLog,
    TrainingDataMonitoring,
    as_stream,
    run_in_worker,
)

LEARNING_RATE = 0.01
BATCH_SIZE = 32
BATCHES_PER_EPOCH = 50
BATCHES_PER_CHECKPOINT = 100
MAX_BODY = 1 << 20  # bytes: what is larger is refused before it is in memory

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]
# 1e300 would be a number, too, and spoil the weights for good.
Pixel = Annotated[float, Field(ge=0, le=16, allow_inf_nan=False, strict=True)]
Image = Annotated[list[Pixel], FailFast(), Field(min_length=64, max_length=64)]


class Example(BaseModel):
    """A digit, and which one it is."""

    pixels: Image
    label: Annotated[int, Field(ge=0, le=9, strict=True)]


Examples = Annotated[list[Example], FailFast(), Field(min_length=1, max_length=256)]
Images = Annotated[list[Image], FailFast(), Field(min_length=1, max_length=512)]


def log_probabilities(parameters: Arrays, images: Array) -> Array:
    """Give the logarithms of the class probabilities, by softmax regression."""
    scores = images / 16 @ parameters["weights"] + parameters["biases"]
    scores -= scores.max(axis=1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))


def gradients(parameters: Arrays, batch: Arrays) -> tuple[dict[str, float], dict[str, Array]]:
    """Give the mean cross-entropy of a batch and its gradients."""
    images, labels = batch["images"], batch["labels"]
    found, rows = log_probabilities(parameters, images), np.arange(len(labels))
    cost = -found[rows, labels].mean()
    d_scores = (np.exp(found) - np.eye(10)[labels]) / len(labels)
    return {"cost": cost}, {"weights": images.T / 16 @ d_scores, "biases": d_scores.sum(axis=0)}


class Inbox:
    """The examples that this process accepted, and how many of them have got how far."""

    def __init__(self, size: int) -> None:
        self.queue: asyncio.Queue[Example] = asyncio.Queue(size)
        self.accepted = self.collected = self.trained = 0

    def accept(self, examples: list[Example]) -> None:
        """Take all of these examples, or refuse all of them where some would have no room."""
        size = self.queue.maxsize
        if len(examples) > size:
            raise HTTPException(413, f"more examples than the {size} that the queue can hold")
        if len(examples) > size - self.queue.qsize():
            raise HTTPException(429, "the queue is full", headers={"Retry-After": "1"})
        for example in examples:
            self.queue.put_nowait(example)
        self.accepted += len(examples)

    async def batches(self) -> AsyncIterator[dict[str, Array]]:
        """Give the batches of an epoch: of one example at least, and of what there is beside it."""
        for _ in range(BATCHES_PER_EPOCH):
            examples = [await self.queue.get()]
            while len(examples) < BATCH_SIZE and not self.queue.empty():
                examples.append(self.queue.get_nowait())
            self.collected += len(examples)
            yield {
                "images": np.array([example.pixels for example in examples], float),
                "labels": np.array([example.label for example in examples]),
            }

    def count(self) -> dict[str, int]:
        """Give how many were accepted, trained on, and left: in the queue, or in a batch."""
        left = self.queue.qsize() + self.collected - self.trained
        return {"accepted": self.accepted, "trained": self.trained, "left": left}


class CountExamples(SimpleExtension):
    """Counts what was trained on, and records at the end what became of all that was accepted."""

    def __init__(self, inbox: Inbox) -> None:
        super().__init__(on_interrupt=True, after_training=True, on_error=True)
        self.inbox = inbox

    async def after_batch(self, batch: Arrays) -> None:
        """Count the batch."""
        self.inbox.trained += len(batch["labels"])
        self.main_loop.log.current_row["batch_examples"] = len(batch["labels"])

    async def do(self, which_callback: str, *args: object) -> None:
        """Record the count, which is final: nothing is accepted once the run is on its way out."""
        for name, number in self.inbox.count().items():
            self.main_loop.log.current_row[f"examples_{name}"] = number


class RecentAccuracy(SimpleExtension):
    """Records how many of the last 500 examples the weights get right, beside the training."""

    def __init__(self) -> None:
        super().__init__(after_epoch=True, background=True)
        self.recent: deque[tuple[Array, int]] = deque(maxlen=500)

    async def after_batch(self, batch: Arrays) -> None:
        """Keep the examples of the batch."""
        self.recent.extend(zip(batch["images"], batch["labels"], strict=True))

    async def do(self, which_callback: str, *args: object) -> None:
        """Record the share that is right, in the row of the epoch and in the status."""
        images, labels = (np.array(column) for column in zip(*self.recent, strict=True))
        # Copies: while the worker thread computes, the steps go on changing the weights.
        weights = self.main_loop.model.get_parameter_values()
        found = await run_in_worker(log_probabilities, weights, images)
        share = np.mean(found.argmax(axis=1) == labels)
        self.main_loop.log.current_row["recent_accuracy"] = share
        self.main_loop.status["recent_accuracy"] = share


def create_app(database: str, checkpoints: str | Path, queue_size: int) -> FastAPI:
    """Make the service, with this log file and directory, and a queue of so many examples."""
    inbox = Inbox(queue_size)
    model = ParameterDict({"weights": np.zeros((64, 10)), "biases": np.zeros(10)})
    log = SQLiteLog(database)
    loop = MainLoop(
        # Inline, on the event loop's thread: a step takes some 40 µs, less than half of what the
        # way to the worker thread and back would.
        GradientDescent(model, gradients, Adam(LEARNING_RATE), where="inline"),
        # Live: what was taken out of a queue does not come again, so nothing is left out.
        as_stream(inbox.batches, on_resume="live"),
        model=model,
        log=log,
        grace_s=5,
        extensions=[
            CountExamples(inbox),  # first: whatever the others do, the batch was trained on
            TrainingDataMonitoring(["cost"], after_batch=True),
            TrainingDataMonitoring(["cost"], prefix="epoch", after_epoch=True),
            RecentAccuracy(),
            Checkpoint(checkpoints, resume=True, every_n_batches=BATCHES_PER_CHECKPOINT),
        ],
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with log:  # before the run, so that a file that is no log fails the start
            try:
                async with loop.running() as app.state.handle:
                    # Until its weights are those of the checkpoint; or it fails, and the start too.
                    await app.state.handle.wait_started()
                    yield
            finally:
                # Flushed, for uvicorn ends the process by the signal that it was sent.
                what = "accepted {accepted} examples: trained on {trained}, left {left}"
                print(what.format_map(inbox.count()), flush=True)

    app = FastAPI(title="Digits", lifespan=lifespan, max_body_size=MAX_BODY)

    @app.exception_handler(RequestValidationError)
    async def refuse(_: Request, error: RequestValidationError) -> JSONResponse:
        # FastAPI would send the input back, which can be NaN, for which JSON has no word.
        found = [{"loc": one["loc"], "msg": one["msg"]} for one in error.errors()]
        return JSONResponse({"detail": found}, status_code=422)

    def running() -> RunHandle:
        handle: RunHandle = app.state.handle
        if handle.state in ("running", "paused"):
            return handle
        raise HTTPException(503, f"the training is {handle.state}")

    @app.post("/examples", status_code=202)
    async def learn(examples: Annotated[Examples, Body(embed=True)]) -> dict[str, int]:
        # Nothing is awaited from here on: the run cannot end between the check and the acceptance.
        running()
        inbox.accept(examples)
        return {"accepted": len(examples)}

    @app.post("/predict")
    async def predict(images: Annotated[Images, Body(embed=True)]) -> dict[str, list[Any]]:
        # No step is half applied: inline, it is done before the event loop turns to anything else.
        # (Without async, FastAPI would call this in a thread, in the midst of a step perhaps.)
        found = np.exp(log_probabilities(model, np.array(images, float)))
        return {"labels": found.argmax(axis=1).tolist(), "probabilities": found.tolist()}

    @app.get("/status")
    async def status() -> dict[str, Any]:
        # Out of single rows: `await log.series("cost")` would read the whole training each time.
        done, epochs_done = log.status["iterations_done"], log.status["epochs_done"]
        return {
            "state": app.state.handle.state,
            "iterations_done": done,
            "epochs_done": epochs_done,
            "last_cost": log.get_record(done, "cost"),
            "epoch_cost": log.last_epoch_row.get("epoch_cost") if epochs_done else None,
            "recent_accuracy": log.status.get("recent_accuracy"),
            "examples": inbox.count(),
        }

    @app.post("/pause", status_code=204)
    async def pause() -> None:
        running().pause()
        await app.state.handle.wait_paused()

    @app.post("/resume", status_code=204)
    async def resume() -> None:
        running().resume()

    @app.post("/checkpoint")
    async def checkpoint() -> dict[str, Any]:
        try:
            saved = await running().request_checkpoint()
        except AloopError as error:
            # The error itself, which has paths in it, is for the terminal.
            raise HTTPException(503, "the checkpoint could not be saved") from error
        # Out of its name, ckpt-<iterations>-<run>, for the training may be further on by now.
        return {"checkpoint": saved.name, "iterations_done": int(saved.name.split("-")[1])}

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Learn handwritten digits from who sends them.")
    parser.add_argument("--port", type=int, default=8000, help="where it listens (8000)")
    parser.add_argument("--database", default="service.sqlite", help="the log (service.sqlite)")
    parser.add_argument("--checkpoints", help="a directory (beside the log)")
    parser.add_argument("--queue", type=int, default=1024, help="how many examples wait (1024)")
    options = parser.parse_args()
    if options.queue < 1:
        parser.error(f"--queue is {options.queue}; expected 1 or more")
    # Named after the log, because a checkpoint can only go on with the log that it was saved with.
    log_file = Path(options.database)
    checkpoints = options.checkpoints or log_file.with_name(f"{log_file.stem}-checkpoints")
    app = create_app(options.database, checkpoints, options.queue)
    # A request that is half sent when the service stops has one second.
    uvicorn.run(app, port=options.port, access_log=False, timeout_graceful_shutdown=1)
