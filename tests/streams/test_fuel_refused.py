"""What a Fuel stream refuses, and what its messages say."""

import aloop.streams.fuel  # noqa: F401 - it makes Fuel importable

# isort: split
from collections import OrderedDict

import numpy as np
import pytest
from fuel.datasets import IndexableDataset, IterableDataset
from fuel.schemes import ConstantScheme, SequentialScheme, ShuffledScheme
from fuel.streams import DataStream
from fuel.transformers import (
    Batch,
    Cast,
    Filter,
    Flatten,
    Mapping,
    Merge,
    Rename,
    ScaleAndShift,
)
from fuel_cases import (
    Noise,
    examples,
    hdf5,
    indexable,
    is_kept,
    iterable,
    loop_of,
    negative,
    sequential,
    shuffled,
    tables_of,
)

from aloop import MainLoop, as_stream
from aloop.errors import ArgumentError, StreamError
from aloop.streams.fuel import FuelStream


def resumed(make, state):
    stream = FuelStream(make())
    stream.load_state_dict(state)
    return stream


def state_of(stream, batches: int = 2):
    stream = FuelStream(stream)
    iterator = stream.get_epoch_iterator()
    for _ in range(batches):
        next(iterator)
    state = stream.state_dict()
    stream.close()
    return state


def test_data_of_another_length_are_named_with_both(tmp_path) -> None:
    def make(number):
        return DataStream(indexable(number), iteration_scheme=SequentialScheme(20, 5))

    with pytest.raises(StreamError) as caught:
        resumed(lambda: make(21), state_of(make(23)))
    both = [f"dataset: IndexableDataset of {number} examples, sources (x y)" for number in (23, 21)]
    assert f"is of {both[0]}, but the stream has {both[1]}; expected the same" in str(caught.value)


OTHERS = {
    "scheme": lambda: sequential(size=5),
    "batch size": lambda: shuffled(size=4),
    "indices": lambda: DataStream(
        indexable(), iteration_scheme=ShuffledScheme(range(22, -1, -1), 5)
    ),
    "transformer": lambda: Flatten(shuffled()),
    "generators": lambda: Mapping(shuffled(), Noise()),
}


@pytest.mark.parametrize("other", OTHERS)
def test_stream_that_is_made_of_something_else_is_named(other) -> None:
    state = state_of(Mapping(shuffled(), negative) if other == "generators" else shuffled())
    with pytest.raises(StreamError, match="expected the same order of the same data"):
        resumed(OTHERS[other], state)


def hdf5_of(directory, **options):
    return sequential(hdf5(directory, **options))


LISTS = ([1, 2, 5, 7, 8, 11], [1, 2, 5, 7, 8, 12])
# Two streams of as many examples in the same order each, and what tells them apart.
ALIKE = {
    "slice": (
        lambda to: hdf5_of(to, subset=slice(0, 15)),
        lambda to: hdf5_of(to, subset=slice(5, 20)),
        "examples 5 to 20",
    ),
    "list": (
        lambda to: hdf5_of(to, subset=LISTS[0]),
        lambda to: hdf5_of(to, subset=LISTS[1]),
        r"of the file 6 examples \(CRC",
    ),
    "set": (
        lambda to: hdf5_of(to, sources=("x", "y"), subset=slice(0, 7)),
        lambda to: hdf5_of(to, sources=("x", "y"), which_sets=("test",)),
        r"which_sets \(test\)",
    ),
    "sources of a file": (
        lambda to: hdf5_of(to, sources=("x", "y")),
        lambda to: hdf5_of(to, sources=("y", "x")),
        r"sources \(y x\)",
    ),
    "sources": (
        lambda _: sequential(IndexableDataset(OrderedDict(x=np.arange(9), y=np.arange(9)))),
        lambda _: sequential(IndexableDataset(OrderedDict(q=np.arange(9), y=np.arange(9)))),
        r"sources \(q y\)",
    ),
    "names": (
        lambda _: Rename(sequential(), {"x": "a"}),
        lambda _: Rename(sequential(), {"x": "b"}),
        r"sources \(b y\)",
    ),
    "range of a table": (
        lambda to: sequential(tables_of(to, 2, 19)),
        lambda to: sequential(tables_of(to, 1, 18)),
        "start 1, stop 18",
    ),
    "sorted indices": (
        lambda _: shuffled(),
        lambda _: shuffled(sorted_indices=True),
        "sorted_indices True",
    ),
    "scale": (
        lambda _: ScaleAndShift(sequential(), 2, 0),
        lambda _: ScaleAndShift(sequential(), 2.5, 0),
        "scale 2.5, shift 0",
    ),
    "scales": (
        lambda _: ScaleAndShift(sequential(), np.arange(12.0), 0, which_sources=("x",)),
        lambda _: ScaleAndShift(sequential(), np.arange(12.0) + 1, 0, which_sources=("x",)),
        r"scale of shape \(12,\) \(CRC",
    ),
    "dtype": (
        lambda _: Cast(sequential(), "float32"),
        lambda _: Cast(sequential(), "float64"),
        "dtype float64",
    ),
    "sources that are changed": (
        lambda _: Flatten(sequential(), which_sources=("x",)),
        lambda _: Flatten(sequential()),
        r"which_sources \(x y\)",
    ),
}


@pytest.mark.parametrize("case", ALIKE)
def test_another_choice_of_as_many_examples_is_named(case, tmp_path) -> None:
    make, other, named = ALIKE[case]
    stream = FuelStream(make(tmp_path))
    stream.get_epoch_iterator()
    state = stream.state_dict()
    stream.close()
    resumed(lambda: make(tmp_path), state).close()
    another = FuelStream(other(tmp_path))
    with pytest.raises(StreamError, match=f"but the stream has .*{named}.*; expected the same"):
        another.load_state_dict(state)
    another.close()


def test_parameters_that_are_equal_are_the_same() -> None:
    state = state_of(ScaleAndShift(Cast(sequential(), "float32"), 2, np.float32(0.5)))
    resumed(lambda: ScaleAndShift(Cast(sequential(), np.float32), 2.0, 0.5), state)


def without(name):
    state = state_of(shuffled())
    del state[name]
    return state


@pytest.mark.parametrize(
    "make",
    [
        lambda: {"epoch": 1},
        lambda: {"layout": state_of(shuffled())["layout"], "batches": 2},
        lambda: 5,
        lambda: None,
        lambda: without("now"),
        lambda: without("history"),
        lambda: state_of(shuffled()) | {"batches": -1},
        lambda: state_of(shuffled()) | {"history": [3]},
        lambda: state_of(shuffled()) | {"before": []},
        lambda: state_of(shuffled()) | {"is_begun": 1},
    ],
)
def test_what_is_no_state_is_refused(make) -> None:
    with pytest.raises(StreamError, match=r"the stream's state is .*expected what state_dict"):
        FuelStream(shuffled()).load_state_dict(make())


def test_states_of_other_generators_are_refused() -> None:
    state = state_of(shuffled()) | {"now": {}}
    with pytest.raises(StreamError, match="is of nothing random, but the stream has iteration_"):
        FuelStream(shuffled()).load_state_dict(state)


def test_epoch_that_has_become_shorter_is_named_with_both_numbers() -> None:
    def make(predicate):
        return Filter(examples(), predicate)

    state = state_of(make(is_kept), 5)
    with pytest.raises(StreamError, match="has ended after 2 batches; expected the 5"):
        resumed(lambda: make(lambda data: data[1] < 2), state).get_epoch_iterator()


def test_what_is_no_fuel_stream_is_refused() -> None:
    with pytest.raises(StreamError, match="wrap a dataset in DataStream"):
        FuelStream(indexable())


@pytest.mark.parametrize("given", [as_stream, lambda dataset: MainLoop(negative, dataset)])
def test_dataset_is_refused_with_the_remedy(given) -> None:
    for dataset in (indexable(), iterable()):
        with pytest.raises(StreamError, match=r"wrap it in DataStream\(dataset, iteration_scheme="):
            given(dataset)


@pytest.mark.parametrize(
    "make",
    [
        lambda to: Mapping(DataStream(indexable()), negative),
        lambda to: DataStream(hdf5(to)),
        lambda to: DataStream(hdf5(to, load_in_memory=True)),
        lambda to: DataStream(tables_of(to)),
    ],
)
def test_stream_that_lacks_a_scheme_is_refused_with_the_remedy(make, tmp_path) -> None:
    stream = FuelStream(make(tmp_path))
    with pytest.raises(StreamError, match=r"has no iteration_scheme; .*SequentialScheme\("):
        next(stream.get_epoch_iterator())
    stream.close()


def test_scheme_over_an_iterable_is_refused_with_the_remedy() -> None:
    stream = DataStream(IterableDataset(range(9)), iteration_scheme=SequentialScheme(9, 3))
    with pytest.raises(StreamError, match=r"IterableDataset has a SequentialScheme; .*by Batch\("):
        next(FuelStream(stream).get_epoch_iterator())


def test_other_errors_of_a_dataset_come_as_they_are() -> None:
    def fails(data):
        raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        next(FuelStream(Mapping(shuffled(), fails)).get_epoch_iterator())


@pytest.mark.parametrize(
    "make",
    [
        lambda: sequential(size=0),
        lambda: shuffled(size=-1),
        lambda: Batch(DataStream(iterable()), iteration_scheme=ConstantScheme(0)),
    ],
)
def test_batch_size_that_gives_no_batch_is_refused(make) -> None:
    with pytest.raises(StreamError, match=r"the batch_size of iteration_scheme, a .* is (0|-1);"):
        FuelStream(make())


async def test_empty_data_are_an_epoch_without_batches() -> None:
    loop = loop_of(sequential(IndexableDataset(OrderedDict(x=np.zeros(0)))), [])
    with pytest.raises(ValueError, match="yielded zero batches"):
        await loop.run()


def test_batch_of_another_number_of_sources_is_refused() -> None:
    stream = FuelStream(Mapping(sequential(), lambda data: data[:1]))
    with pytest.raises(StreamError, match=r"a batch of 1 items; expected 2, .*\('x', 'y'\)"):
        next(stream.get_epoch_iterator())


def test_batch_that_is_no_tuple_is_refused() -> None:
    stream = FuelStream(Mapping(sequential(size=2), lambda data: data[0]))
    with pytest.raises(StreamError, match="of type ndarray; expected a tuple of 2 items"):
        next(stream.get_epoch_iterator())


def test_sources_of_one_name_are_refused() -> None:
    with pytest.raises(StreamError, match="expected names that differ"):
        FuelStream(Merge((sequential(), sequential()), ("x", "y", "x", "z")))


def test_arrays_of_different_lengths_are_refused_by_fuel() -> None:
    with pytest.raises(ValueError, match="sources have different lengths"):
        IndexableDataset(OrderedDict(x=np.zeros(3), y=np.zeros(4)))


@pytest.mark.parametrize("timeout_s", [0, -1, "1", True])
def test_what_is_no_timeout_is_refused(timeout_s) -> None:
    with pytest.raises(ArgumentError, match=r"timeout_s is .*; expected a number of seconds"):
        FuelStream(shuffled(), timeout_s=timeout_s)
