"""What the tests of the extensions share: small algorithms, streams and extensions that note."""

from collections.abc import Callable
from typing import Any

import pytest

from aloop import (
    DataStream,
    FinishAfter,
    MainLoop,
    SimpleExtension,
    TrainingExtension,
    TrainingLog,
)

BACKSTOP = 100
"""Batches after which a test's run ends, should what it tests not have ended it."""


async def nothing(batch: Any) -> None:
    """A step that returns no quantities."""


async def cost(batch: Any) -> dict[str, Any]:
    """A step whose cost is the batch itself."""
    return {"cost": batch}


def loop_over(stream: Any, *extensions: TrainingExtension, step: Any = nothing) -> MainLoop:
    """A loop of these extensions that ends in any case."""
    backstop = FinishAfter(name="backstop", after_n_batches=BACKSTOP)
    return MainLoop(step, stream, extensions=[*extensions, backstop], signals="off")


class Noting(SimpleExtension):
    """Notes (name, callback, iterations done, arguments) in a list that several may share."""

    def __init__(self, events: list[Any], name: str | None = None, **triggers: Any) -> None:
        super().__init__(name, **triggers)
        self.events = events

    async def do(self, which_callback: str, *args: Any) -> None:
        self.events.append((self.name, which_callback, iterations(self), args))


class At(SimpleExtension):
    """Does something, given as a function of the loop, where its triggers say."""

    def __init__(self, action: Callable[[Any], object], **triggers: Any) -> None:
        super().__init__(**triggers)
        self.action = action

    async def do(self, which_callback: str, *args: Any) -> None:
        self.action(self.main_loop)


class CountingStream(DataStream):
    """Yields the numbers below `length` in each epoch and keeps those that were fetched."""

    where = "inline"

    def __init__(self, length: int) -> None:
        self.length = length
        self.fetched: list[int] = []

    def get_epoch_iterator(self, *, as_dict: bool = True) -> Any:
        for batch in range(self.length):
            self.fetched.append(batch)
            yield batch


class FailingStep:
    """A step that raises at its calls of these numbers, counted from 1."""

    def __init__(self, *failing_calls: int) -> None:
        self.failing_calls = failing_calls
        self.calls = 0

    async def __call__(self, batch: Any) -> None:
        self.calls += 1
        if self.calls in self.failing_calls:
            raise ArithmeticError(f"call {self.calls}")


def iterations(extension: TrainingExtension) -> int:
    """How many iterations the loop of an extension has done."""
    return extension.main_loop.status["iterations_done"]


async def live(*extensions: TrainingExtension) -> TrainingLog:
    """Train four epochs of four batches: interrupted after batch 6, failing in the ninth step.

    The batch that failed is gone, so that the third epoch has three iterations and all is over
    after the fifteenth; the callbacks that come but once a run come at 0, 6, 8 and 15.
    """
    interrupt = At(lambda loop: loop.request_finish("batch"), after_n_batches=6)
    finish = FinishAfter(after_n_epochs=4)
    step = FailingStep(9)
    loop = loop_over(list("abcd"), *extensions, interrupt, finish, step=step)
    await loop.run()
    with pytest.raises(ArithmeticError):
        await loop.run()
    return await loop.run()
