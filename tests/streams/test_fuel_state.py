"""The place in a Fuel stream, and what it closes."""

import aloop.streams.fuel  # noqa: F401 - it makes Fuel importable

# isort: split
import random
from collections import OrderedDict
from functools import partial

import numpy as np
import pytest
from fuel.datasets import H5PYDataset, IndexableDataset
from fuel.schemes import ConstantScheme
from fuel.streams import AbstractDataStream, DataStream
from fuel.transformers import AgnosticTransformer, Filter, Flatten, Mapping, Merge
from fuel_cases import (
    Growing,
    Noise,
    batched,
    by_hand,
    examples,
    frozen,
    hdf5,
    indexable,
    is_kept,
    iterable,
    loop_of,
    negative,
    resumable,
    sequential,
    shuffled,
)

from aloop import MainLoop, as_stream
from aloop.checkpoints.packing import pack
from aloop.errors import AlreadyRunningError
from aloop.streams.fuel import FuelStream


def taken(iterator, number: int | None = None) -> list:
    found = []
    while len(found) != number:
        batch = next(iterator, None)
        if batch is None:
            break
        found.append(frozen(batch))
    return found


def resumed(make, state):
    stream = FuelStream(make())
    stream.load_state_dict(state)
    return stream


# The state.


def test_state_is_plain_data_and_does_not_change_later() -> None:
    stream = FuelStream(Mapping(shuffled(), Noise()))
    iterator = stream.get_epoch_iterator()
    next(iterator)
    state = stream.state_dict()
    before = pack("it", state)
    taken(iterator)
    taken(stream.get_epoch_iterator())
    assert frozen(pack("it", state)) == frozen(before)
    assert before[0]["batches"] == 1


def test_state_at_the_end_is_that_of_the_beginning_of_the_next_epoch() -> None:
    stream = FuelStream(shuffled())
    taken(stream.get_epoch_iterator())
    state = stream.state_dict()
    assert (state["epochs"], state["batches"], state["is_begun"]) == (1, 0, False)
    again = resumed(shuffled, state)
    assert taken(again.get_epoch_iterator()) == taken(stream.get_epoch_iterator())


def test_state_that_was_loaded_is_given_until_the_epoch_is_begun() -> None:
    stream = FuelStream(shuffled())
    taken(stream.get_epoch_iterator(), 2)
    state = stream.state_dict()
    again = resumed(shuffled, state)
    assert frozen(again.state_dict()) == frozen(state)
    again.get_epoch_iterator()
    assert frozen(again.state_dict()) == frozen(state)


def test_iterator_that_was_left_for_another_does_not_move_the_place() -> None:
    stream = FuelStream(examples())
    left = stream.get_epoch_iterator()
    taken(stream.get_epoch_iterator(), 2)
    taken(left, 3)
    assert stream.state_dict()["batches"] == 2


def test_all_generators_are_found_once_each() -> None:
    shared = np.random.RandomState(3)
    python, in_partial, in_closure = random.Random(1), Noise().rng, Noise().rng  # noqa: S311 - keeps no secret

    def draws(rng, data):
        return (data[0] * rng.normal() * in_closure.normal() * python.random(), data[1])

    stream = Mapping(shuffled(rng=shared), partial(draws, in_partial))
    stream = Mapping(Mapping(stream, Noise().__call__), Noise())
    stream = Merge((stream, shuffled(rng=shared)), ("a", "b", "c", "d"))
    inner = "data_streams.0.data_stream.data_stream"
    assert sorted(FuelStream(stream).state_dict()["now"]) == [
        f"{inner}.data_stream.iteration_scheme.rng",
        f"{inner}.mapping.args.0",
        f"{inner}.mapping.func.in_closure",
        f"{inner}.mapping.func.python",
        "data_streams.0.data_stream.mapping.rng",
        "data_streams.0.mapping.rng",
    ]


def test_generator_that_a_scheme_shares_with_a_mapping_goes_on_where_it_was() -> None:
    def make():
        rng = np.random.RandomState(3)
        return Mapping(shuffled(rng=rng), lambda data: (data[0] * rng.uniform(), data[1]))

    stream = FuelStream(make())
    iterator = stream.get_epoch_iterator()
    taken(iterator, 2)
    again = resumed(make, stream.state_dict())
    assert taken(again.get_epoch_iterator()) == taken(iterator)
    assert taken(again.get_epoch_iterator()) == taken(stream.get_epoch_iterator())


def test_epoch_that_was_left_is_resumed_as_one(caplog) -> None:
    stream = FuelStream(shuffled())
    taken(stream.get_epoch_iterator(), 2)
    iterator = stream.get_epoch_iterator()
    taken(iterator, 1)
    again = resumed(shuffled, stream.state_dict())
    assert taken(again.get_epoch_iterator()) == taken(iterator)


def test_next_epoch_leaves_the_rest_of_one_that_was_loaded() -> None:
    stream = FuelStream(shuffled())
    taken(stream.get_epoch_iterator(), 2)
    again = resumed(shuffled, stream.state_dict())
    stream.next_epoch()
    again.next_epoch()
    assert again.state_dict()["epochs"] == 1
    assert taken(again.get_epoch_iterator()) == taken(stream.get_epoch_iterator())


def test_reset_goes_back_to_the_first_epoch() -> None:
    stream = FuelStream(Mapping(shuffled(), Noise()))
    first = taken(stream.get_epoch_iterator())
    assert taken(stream.get_epoch_iterator()) != first
    stream.reset()
    assert taken(stream.get_epoch_iterator()) == first


def test_batches_are_what_fuel_gives_without_as_dict() -> None:
    stream = FuelStream(sequential())
    assert isinstance(next(stream.get_epoch_iterator(as_dict=False)), tuple)


# Going on.


class Counting(IndexableDataset):
    """Counts how often it is read."""

    read = 0

    def get_data(self, state=None, request=None):
        self.read += 1
        return super().get_data(state, request)


def test_no_data_is_read_to_go_on_where_a_batch_is_a_request(caplog) -> None:
    def make():
        dataset = Counting(OrderedDict([("x", np.arange(20.0)), ("y", np.arange(20))]))
        return Flatten(Mapping(shuffled(dataset), negative))

    stream = FuelStream(make())
    iterator = stream.get_epoch_iterator()
    taken(iterator, 3)
    again = resumed(make, stream.state_dict())
    rest = again.get_epoch_iterator()
    assert again.data_stream.data_stream.data_stream.dataset.read == 0
    assert taken(rest) == taken(iterator)
    assert caplog.text == ""


@pytest.mark.parametrize(
    "make", [lambda: Filter(examples(), is_kept), batched, lambda: DataStream(iterable())]
)
def test_batches_that_are_fetched_again_are_counted(caplog, make) -> None:
    stream = FuelStream(make())
    iterator = stream.get_epoch_iterator()
    taken(iterator, 2)
    again = resumed(make, stream.state_dict())
    assert taken(again.get_epoch_iterator()) == taken(iterator)
    assert "not one request to its data: 2 batches are fetched again and left out" in caplog.text


def test_epochs_that_are_gone_through_again_are_counted_with_the_remedy(caplog) -> None:
    def make():
        return DataStream(Growing(), iteration_scheme=ConstantScheme(3, times=4))

    stream = FuelStream(make())
    taken(stream.get_epoch_iterator())
    taken(stream.get_epoch_iterator(), 1)
    iterator = stream.get_epoch_iterator()
    taken(iterator, 2)
    again = resumed(make, stream.state_dict())
    assert taken(again.get_epoch_iterator()) == taken(iterator)
    assert "Growing may begin each epoch in another way" in caplog.text
    assert "the 2 epochs before this one, of 5 batches, are fetched again" in caplog.text


def test_batch_that_failed_is_fetched_again_by_a_new_process() -> None:
    failing = {2}

    def reads(data):
        if data[1][0] // 5 in failing:
            raise OSError("no network")
        return data

    def make():
        return Mapping(sequential(), reads)

    stream = FuelStream(make())
    iterator = stream.get_epoch_iterator()
    first = taken(iterator, 2)
    with pytest.raises(OSError, match="no network"):
        next(iterator)
    failing.clear()
    again = resumed(make, stream.state_dict())
    [expected] = by_hand(make(), 1)
    assert first + taken(again.get_epoch_iterator()) == expected
    assert taken(iterator, 1) == expected[3:4]
    assert resumed(make, stream.state_dict()).state_dict()["batches"] == 4


# The stream.


async def test_fuel_stream_is_used_by_one_run_at_a_time() -> None:
    fuel_stream = shuffled()
    loop = loop_of(fuel_stream, [], epochs=10**6)
    async with loop.running() as handle:
        for other in (fuel_stream, Flatten(fuel_stream), Flatten(shuffled_by(fuel_stream))):
            with pytest.raises(AlreadyRunningError, match="is in use by"):
                await loop_of(other, []).run()
        handle.request_finish("batch")


def shuffled_by(stream):
    return DataStream(indexable(), iteration_scheme=stream.iteration_scheme)


def test_stream_tells_what_fuels_does() -> None:
    fuel_stream = shuffled()
    stream = as_stream(fuel_stream)
    assert isinstance(stream, FuelStream)
    assert stream.sources == ("x", "y")
    assert stream.produces_examples is False
    assert stream.iteration_scheme is fuel_stream.iteration_scheme
    assert stream.axis_labels == fuel_stream.axis_labels
    assert FuelStream(examples()).produces_examples is True


def test_loop_wraps_a_fuel_stream() -> None:
    assert isinstance(MainLoop(lambda batch: None, shuffled()).data_stream, FuelStream)


class Unclosable(AgnosticTransformer):
    def transform_any(self, data):
        return data

    def close(self) -> None:
        raise OSError(f"cannot close {self.sources}")


def test_what_cannot_be_closed_does_not_keep_the_rest_open(tmp_path) -> None:
    streams = [
        Unclosable(shuffled(hdf5(tmp_path, sources=(source,))), produces_examples=False)
        for source in ("x", "y")
    ]
    stream = FuelStream(Merge(streams, ("x", "y")))
    taken(stream.get_epoch_iterator(), 1)
    assert H5PYDataset._file_handles
    with pytest.raises(OSError, match=r"cannot close \('x',\)") as caught:
        stream.close()
    assert "cannot close ('y',)" in caught.value.__notes__[0]
    assert H5PYDataset._file_handles == {}


class Own(AbstractDataStream):
    """A stream of one's own that does not tell what it produces."""

    sources = ("x",)

    def get_data(self, request=None):
        self.left -= 1
        if self.left < 0:
            raise StopIteration
        return (self.left,)

    def get_epoch_iterator(self, **kwargs):
        self.left = 3
        return super().get_epoch_iterator(**kwargs)

    def reset(self) -> None:
        pass

    next_epoch = close = reset


async def test_stream_of_ones_own_is_trained_on_and_resumed(tmp_path) -> None:
    trained: list = []
    for stop in (5, None):
        await resumable(Own(), tmp_path, trained, stop).run()
    assert trained == [{"x": x} for x in (2, 1, 0)] * 3
