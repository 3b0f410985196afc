"""A Fuel stream that is closed in the middle of an epoch goes on from there."""

import aloop.streams.fuel  # noqa: F401 - it makes Fuel importable

# isort: split
import asyncio
import threading
from itertools import chain

import pytest
from fuel.datasets import H5PYDataset
from fuel.schemes import ConstantScheme
from fuel.streams import DataStream
from fuel.transformers import Filter, Mapping, MultiProcessing
from fuel_cases import (
    Growing,
    Noise,
    by_hand,
    examples,
    frozen,
    hdf5,
    is_kept,
    iterable,
    loop_of,
    shuffled,
    tables_of,
    text_of,
)

from aloop import FinishAfter
from aloop.errors import StreamError
from aloop.streams.fuel import FuelStream

CASES = {
    "memory": lambda to: shuffled(),
    "HDF5": lambda to: shuffled(hdf5(to, sources=("x", "y"))),
    "HDF5 and a generator": lambda to: Mapping(shuffled(hdf5(to, sources=("x", "y"))), Noise()),
    "tables": lambda to: shuffled(tables_of(to), size=2),
    "text": lambda to: DataStream(text_of(to)),
    "iterable": lambda to: DataStream(iterable()),
    "filter": lambda to: Filter(examples(), is_kept),
    "own dataset that goes on": lambda to: DataStream(
        Growing(), iteration_scheme=ConstantScheme(3, times=4)
    ),
    "multi-processing": lambda to: MultiProcessing(shuffled(), max_store=2),
}


def straight(case, to) -> list[list]:
    stream = CASES[case](to)
    epochs = by_hand(stream, 2)
    stream.close()
    return epochs


def rest_of(iterator) -> list:
    return [frozen(batch) for batch in iterator]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.aloop_guard(files=False)  # the log records hold streams
def test_iterator_goes_on_after_its_stream_was_closed(case, tmp_path) -> None:
    first, second = straight(case, tmp_path)
    stream = FuelStream(CASES[case](tmp_path))
    assert rest_of(stream.get_epoch_iterator()) == first
    iterator = stream.get_epoch_iterator()
    found = []
    for batch in iterator:
        found.append(frozen(batch))
        stream.close()
        state = stream.state_dict()
        stream.close()
        assert frozen(stream.state_dict()) == frozen(state)
    assert found == second
    assert list(iterator) == []
    stream.close()
    assert list(iterator) == [], "its end repeats"


@pytest.mark.parametrize("case", CASES)
@pytest.mark.aloop_guard(files=False)  # the log records hold streams
def test_next_iterator_is_the_rest_of_the_epoch_that_was_closed(case, tmp_path) -> None:
    first, second = straight(case, tmp_path)
    stream = FuelStream(CASES[case](tmp_path))
    iterator = stream.get_epoch_iterator()
    begun = [frozen(next(iterator)) for _ in range(2)]
    stream.close()
    assert begun + rest_of(stream.get_epoch_iterator()) == first
    stream.close()
    assert rest_of(stream.get_epoch_iterator()) == second
    stream.close()


@pytest.mark.parametrize("case", ["HDF5", "multi-processing"])
@pytest.mark.aloop_guard(files=False)  # the log records hold streams
async def test_training_that_was_stopped_and_closed_goes_on(case, tmp_path) -> None:
    trained: list = []
    loop = loop_of(CASES[case](tmp_path), trained, finish=3)
    await loop.run()
    loop.data_stream.close()
    assert H5PYDataset._file_handles == {}
    loop.extensions = [FinishAfter(after_n_epochs=2)]
    await loop.run()
    loop.data_stream.close()
    assert trained == list(chain(*straight(case, tmp_path)))


def test_place_at_the_closing_is_that_of_a_new_process(tmp_path) -> None:
    first, _ = straight("HDF5 and a generator", tmp_path)
    stream = FuelStream(CASES["HDF5 and a generator"](tmp_path))
    iterator = stream.get_epoch_iterator()
    begun = [frozen(next(iterator)) for _ in range(2)]
    stream.close()
    again = FuelStream(CASES["HDF5 and a generator"](tmp_path))
    again.load_state_dict(stream.state_dict())
    assert begun + rest_of(again.get_epoch_iterator()) == first
    again.close()


def test_reset_after_the_closing_begins_anew(tmp_path) -> None:
    first, _ = straight("HDF5", tmp_path)
    stream = FuelStream(CASES["HDF5"](tmp_path))
    next(stream.get_epoch_iterator())
    stream.close()
    stream.reset()
    assert rest_of(stream.get_epoch_iterator()) == first
    stream.close()


def test_iterator_that_was_left_before_the_closing_is_refused(tmp_path) -> None:
    stream = FuelStream(CASES["HDF5"](tmp_path))
    left = stream.get_epoch_iterator()
    stream.get_epoch_iterator()
    stream.close()
    with pytest.raises(StreamError, match=r"was left; expected its newest iterator"):
        next(left)


class Waiting:
    """A mapping whose second batch waits until it is let go, and may fail then."""

    def __init__(self, error: Exception | None = None) -> None:
        self.waits, self.goes = threading.Event(), threading.Event()
        self.noise, self.calls, self.error = Noise(), 0, error

    def __call__(self, data):
        self.calls += 1
        if self.calls == 2:
            self.waits.set()
            assert self.goes.wait(30)
            if self.error is not None:
                raise self.error
        return self.noise(data)


async def closed_while_fetching(mapping):
    """Close a stream while its second batch is fetched; give it, its iterator and the batches."""
    stream = FuelStream(Mapping(shuffled(), mapping))
    iterator = stream.get_epoch_iterator()
    found = [frozen(next(iterator))]
    fetching = asyncio.create_task(asyncio.to_thread(next, iterator))
    await asyncio.to_thread(mapping.waits.wait)
    stream.close()
    mapping.goes.set()
    return stream, iterator, found, fetching


async def test_batch_that_comes_after_the_closing_counts() -> None:
    _, iterator, found, fetching = await closed_while_fetching(Waiting())
    found.append(frozen(await fetching))
    [first] = by_hand(Mapping(shuffled(), Noise()), 1)
    assert found + rest_of(iterator) == first


async def test_batch_that_fails_after_the_closing_says_so_and_is_fetched_again() -> None:
    failing = Waiting(OSError("no open handle"))
    _, iterator, found, fetching = await closed_while_fetching(failing)
    with pytest.raises(StreamError, match="was closed while a batch of it was fetched") as caught:
        await fetching
    assert caught.value.__cause__ is failing.error
    [first] = by_hand(Mapping(shuffled(), Noise()), 1)
    assert found + rest_of(iterator) == first
