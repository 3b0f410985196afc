"""Going through streams whichever way their iterators go, stopped anywhere and gone on with."""

import asyncio
from collections.abc import Iterator

import numpy as np

from aloop import Checkpoint, DataStream, FinishAfter, MainLoop
from aloop.checkpoints.packing import pack, unpack
from aloop.streams.bridge import END


def plain(element):
    """An element as lists and numbers, to compare by ==."""
    if isinstance(element, dict):
        return {name: plain(value) for name, value in element.items()}
    if isinstance(element, np.ndarray):
        return [plain(value) for value in element] if element.dtype == object else element.tolist()
    if isinstance(element, tuple):
        return tuple(plain(value) for value in element)
    return element.item() if isinstance(element, np.generic) else element


async def advance(iterator):
    if hasattr(iterator, "__anext__"):
        return plain(await anext(iterator, END))
    return plain(next(iterator, END))


async def epoch(stream) -> list:
    """What is left of an epoch."""
    iterator = stream.get_epoch_iterator(as_dict=True)
    elements = []
    while (element := await advance(iterator)) is not END:
        elements.append(element)
    return elements


async def walk(stream, epochs: int):
    """Give every element of some epochs, and None at the end of each."""
    for _ in range(epochs):
        iterator = stream.get_epoch_iterator(as_dict=True)
        while (element := await advance(iterator)) is not END:
            yield element
        yield None


async def rest(stream) -> None:
    iterator = stream._iterator
    if hasattr(iterator, "rest"):
        await iterator.rest()


def kept(state):
    """A state as a checkpoint gives it back."""
    return unpack(*pack("a stream", state))


async def walk_with_stop(make, stop: int, epochs: int) -> list:
    """Go through a stream, and after so many steps go on in another one like it."""
    stream, seen = make(), []
    walking = walk(stream, epochs)
    for _ in range(stop):
        seen.append(await anext(walking))
    state = stream.state_dict()
    await walking.aclose()
    await rest(stream)
    stream.close()
    again = make()
    again.load_state_dict(kept(state))
    left = epochs - seen.count(None)
    seen += [element async for element in walk(again, left)]
    again.close()
    return seen


async def check_every_stop(make, expected: list[list]) -> None:
    """Look whether a stream gives what is expected, stopped and gone on with anywhere."""
    straight = [step for elements in expected for step in (*elements, None)]
    for stop in range(len(straight)):
        assert await walk_with_stop(make, stop, len(expected)) == straight, stop


def training(stream, trained, epochs) -> MainLoop:
    """Make a loop of so many epochs that notes what it trained on."""

    async def step(batch) -> None:
        trained.append(plain(batch))

    return MainLoop(step, stream, extensions=[FinishAfter(after_n_epochs=epochs)], signals="off")


def loop_of(stream, directory, trained, finish, *extensions) -> MainLoop:
    async def step(batch) -> None:
        trained.append(plain(batch))

    return MainLoop(
        step,
        stream,
        extensions=[
            *extensions,
            Checkpoint(directory, resume=True),
            FinishAfter(after_n_batches=finish),
        ],
        signals="off",
        stall_warning_s=0,
    )


class Async(DataStream):
    """Another stream, as an async one, and with its state."""

    def __init__(self, stream) -> None:
        self.stream = stream
        self.sources = stream.sources
        self.produces_examples = stream.produces_examples
        self.state_dict = stream.state_dict
        self.load_state_dict = stream.load_state_dict

    async def elements(self, iterator):
        for element in iterator:
            await asyncio.sleep(0)
            yield element

    def get_epoch_iterator(self, *, as_dict: bool = True):
        return self.elements(self.stream.get_epoch_iterator(as_dict=as_dict))

    def next_epoch(self) -> None:
        self.stream.next_epoch()

    def reset(self) -> None:
        self.stream.reset()

    def __len__(self) -> int:
        return len(self.stream)


class Count(Iterator):
    """An iterator that tells its place."""

    def __init__(self, end: int) -> None:
        self.at, self.end = 0, end

    def __next__(self) -> int:
        if self.at == self.end:
            raise StopIteration
        self.at += 1
        return self.at - 1

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state) -> None:
        self.at = state["at"]
