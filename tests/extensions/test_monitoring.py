"""TrainingDataMonitoring."""

import math

import numpy as np
import pytest
from extension_helpers import At, cost, loop_over, nothing

from aloop import (
    ArrayStream,
    CompositeExtension,
    DataStream,
    FinishAfter,
    SequentialScheme,
    ShuffledScheme,
    TrainingDataMonitoring,
)
from aloop.errors import QuantityError

SQUARES = np.arange(10.0) ** 2


class Batches(DataStream):
    """The batches given, with these sources, in each epoch."""

    def __init__(self, batches, sources=(), produces_examples=False):
        self.batches = batches
        self.sources = sources
        self.produces_examples = produces_examples

    def get_epoch_iterator(self, *, as_dict=True):
        return iter(self.batches)


async def mean_of_x(batch):
    return {"cost": batch["x"].mean()}


def step_of(*quantities):
    """A step that returns the quantities given, one for each batch."""
    remaining = iter(quantities)

    async def step(batch):
        return {"cost": next(remaining)}

    return step


async def records_of(loop, name="cost"):
    """Run the loop and give the records of this name by time."""
    log = await loop.run()
    return {time: log[time][name] for time in log if name in log[time]}


def one_epoch(monitoring, stream, step):
    return loop_over(stream, monitoring, FinishAfter(after_n_epochs=1), step=step)


# The mean


@pytest.mark.parametrize("batch_size", [1, 2, 4, 8, 10])
async def test_mean_is_that_over_all_examples_whatever_the_last_batch(batch_size):
    stream = ArrayStream({"x": SQUARES}, iteration_scheme=SequentialScheme(10, batch_size))
    loop = one_epoch(TrainingDataMonitoring(["cost"]), stream, mean_of_x)
    assert await records_of(loop) == {-(-10 // batch_size): 28.5}


async def test_mean_is_the_same_in_every_order():
    stream = ArrayStream({"x": SQUARES}, iteration_scheme=ShuffledScheme(10, 4, seed=3))
    monitoring = TrainingDataMonitoring(["cost"])
    loop = loop_over(stream, monitoring, FinishAfter(after_n_epochs=3), step=mean_of_x)
    assert await records_of(loop) == {3: 28.5, 6: 28.5, 9: 28.5}


async def test_mean_is_a_plain_number():
    loop = one_epoch(TrainingDataMonitoring(["cost"]), [1, 2], cost)
    assert type((await records_of(loop))[2]) is float


async def test_mean_of_arrays_is_taken_element_by_element():
    async def step(batch):
        return {"per_column": batch["x"].mean(axis=0)}

    columns = np.stack([SQUARES, -SQUARES, np.ones(10)], axis=1)
    stream = ArrayStream({"x": columns}, iteration_scheme=SequentialScheme(10, 4))
    loop = one_epoch(TrainingDataMonitoring(["per_column"]), stream, step)
    records = await records_of(loop, "per_column")
    assert records[3].tolist() == [28.5, -28.5, 1.0]


async def test_mean_does_not_change_with_an_array_that_the_step_uses_again():
    buffer = np.zeros(2)

    async def step(batch):
        buffer[:] = batch
        return {"cost": buffer}

    loop = one_epoch(TrainingDataMonitoring(["cost"]), [1.0, 2.0, 6.0], step)
    assert (await records_of(loop))[3].tolist() == [3.0, 3.0]


async def test_mean_of_booleans_is_the_share_of_the_true_ones():
    loop = one_epoch(TrainingDataMonitoring(["cost"]), [True, True, False, True], cost)
    assert await records_of(loop) == {4: 0.75}


@pytest.mark.parametrize(
    ("quantities", "examples", "mean"),
    [
        ([np.float16(1000), np.float16(1000)], 100, 1000.0),
        ([np.float32(2**24), np.float32(1)], 1, 2**23 + 0.5),
        ([np.uint8(200), np.uint8(100)], 2, 150.0),
        ([np.int8(-100), np.int8(100)], 300, 0.0),
    ],
)
async def test_mean_of_narrow_numbers_is_exact(quantities, examples, mean):
    batches = [np.zeros(examples)] * len(quantities)
    loop = one_epoch(TrainingDataMonitoring(["cost"]), batches, step_of(*quantities))
    assert await records_of(loop) == {2: mean}


async def test_mean_over_a_nan_is_nan_and_the_next_one_is_not():
    monitoring = TrainingDataMonitoring(["cost"])
    step = step_of(1.0, math.nan, 3.0, 5.0)
    loop = loop_over([0, 0], monitoring, FinishAfter(after_n_epochs=2), step=step)
    records = await records_of(loop)
    assert math.isnan(records[2])
    assert records[4] == 4.0


async def test_several_quantities_are_recorded_each():
    async def step(batch):
        return {"cost": batch, "double": 2 * batch, "unasked": 0}

    loop = one_epoch(TrainingDataMonitoring(["double", "cost"]), [1, 2], step)
    log = await loop.run()
    assert {name: log[2].get(name) for name in ("cost", "double", "unasked")} == {
        "cost": 1.5,
        "double": 3.0,
        "unasked": None,
    }


async def test_variables_may_be_any_iterable_of_names():
    loop = one_epoch(TrainingDataMonitoring(name for name in ["cost"]), [1, 2], cost)
    assert await records_of(loop) == {2: 1.5}


async def test_no_variables_record_nothing():
    loop = one_epoch(TrainingDataMonitoring([]), [1, 2], cost)
    log = await loop.run()
    assert dict(log[2]) == {"training_finish_requested": True, "training_finished": True}


# The weight of a batch


@pytest.mark.parametrize(
    ("light", "heavy"),
    [
        ({"x": [0]}, {"x": [0, 0, 0]}),
        ({"x": np.zeros((1, 5))}, {"x": np.zeros((3, 5))}),
        (np.zeros((1, 5)), np.zeros((3, 5))),
        ((np.zeros(1), np.zeros(7)), (np.zeros(3), np.zeros(7))),
        ([np.zeros(1), np.zeros(7)], [np.zeros(3), np.zeros(7)]),
    ],
    ids=["lists", "dicts", "arrays", "tuples", "list batches"],
)
async def test_batch_weighs_as_much_as_its_first_source_is_long(light, heavy):
    step = step_of(4.0, 8.0)
    loop = one_epoch(TrainingDataMonitoring(["cost"]), [light, heavy], step)
    assert await records_of(loop) == {2: 7.0}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (5, 50),
        (None, object()),
        (np.float64(5), np.float64(50)),
        (np.array(5.0), np.array(50.0)),
        ({"x": 5}, {"x": 50}),
        ((5, [0, 0, 0]), (50, [0])),
    ],
    ids=["numbers", "objects", "numpy numbers", "arrays of no axis", "dicts", "tuples"],
)
async def test_batch_without_a_length_weighs_one(first, second):
    loop = one_epoch(TrainingDataMonitoring(["cost"]), [first, second], step_of(4.0, 8.0))
    assert await records_of(loop) == {2: 6.0}


async def test_first_source_is_that_of_the_stream_not_of_the_dictionary():
    batches = [{"a": [0], "b": [0]}, {"a": [0], "b": [0, 0, 0]}]
    stream = Batches(batches, sources=("b", "a"))
    loop = one_epoch(TrainingDataMonitoring(["cost"]), stream, step_of(4.0, 8.0))
    assert await records_of(loop) == {2: 7.0}


async def test_first_entry_counts_where_the_stream_has_no_sources():
    batches = [{"a": [0], "b": [0]}, {"a": [0, 0, 0], "b": [0]}]
    loop = one_epoch(TrainingDataMonitoring(["cost"]), batches, step_of(4.0, 8.0))
    assert await records_of(loop) == {2: 7.0}


async def test_example_of_a_stream_of_examples_weighs_one():
    examples = [{"x": np.zeros(1)}, {"x": np.zeros(3)}]
    stream = Batches(examples, sources=("x",), produces_examples=True)
    loop = one_epoch(TrainingDataMonitoring(["cost"]), stream, step_of(4.0, 8.0))
    assert await records_of(loop) == {2: 6.0}


async def test_batch_without_examples_weighs_nothing():
    batches = [np.zeros(2), np.zeros(0)]
    loop = one_epoch(TrainingDataMonitoring(["cost"]), batches, step_of(4.0, 8.0))
    assert await records_of(loop) == {2: 4.0}


async def test_nothing_is_recorded_where_no_batch_had_examples():
    loop = one_epoch(TrainingDataMonitoring(["cost"]), [np.zeros(0)], step_of(4.0))
    assert await records_of(loop) == {}


# When it is recorded


async def test_records_after_each_epoch_by_default():
    monitoring = TrainingDataMonitoring(["cost"])
    loop = loop_over([1, 2], monitoring, FinishAfter(after_n_epochs=3), step=cost)
    assert await records_of(loop) == {2: 1.5, 4: 1.5, 6: 1.5}


async def test_mean_goes_over_the_batches_since_the_last_time():
    monitoring = TrainingDataMonitoring(["cost"], every_n_batches=2)
    loop = one_epoch(monitoring, [1, 2, 3, 4, 5, 6, 7], cost)
    assert await records_of(loop) == {2: 1.5, 4: 3.5, 6: 5.5}


async def test_batches_since_the_last_time_may_be_of_two_epochs():
    monitoring = TrainingDataMonitoring(["cost"], every_n_batches=2)
    loop = loop_over([1, 2, 4], monitoring, FinishAfter(after_n_epochs=2), step=cost)
    assert await records_of(loop) == {2: 1.5, 4: 2.5, 6: 3.0}


async def test_trigger_takes_the_place_of_the_default():
    monitoring = TrainingDataMonitoring(["cost"], after_training=True)
    loop = loop_over([1, 2], monitoring, FinishAfter(after_n_epochs=3), step=cost)
    assert await records_of(loop) == {6: 1.5}


async def test_two_triggers_at_once_record_once():
    monitoring = TrainingDataMonitoring(["cost"], every_n_batches=2, after_epoch=True)
    loop = loop_over([1, 2, 3, 4], monitoring, FinishAfter(after_n_epochs=1), step=cost)
    assert await records_of(loop) == {2: 1.5, 4: 3.5}


async def test_two_triggers_at_one_callback_record_once():
    monitoring = TrainingDataMonitoring(["cost"], every_n_batches=2, after_n_batches=2)
    loop = one_epoch(monitoring, [1, 2], cost)
    assert await records_of(loop) == {2: 1.5}


async def test_nothing_is_recorded_before_the_first_batch():
    monitoring = TrainingDataMonitoring(["cost"], before_training=True, before_epoch=True)
    loop = loop_over([1, 2], monitoring, FinishAfter(after_n_epochs=2), step=cost)
    assert await records_of(loop) == {2: 1.5}


async def test_record_is_there_for_the_extensions_after_it():
    seen = []
    read = At(lambda loop: seen.append(loop.log.current_row["cost"]), after_epoch=True)
    loop = one_epoch(CompositeExtension([TrainingDataMonitoring(["cost"]), read]), [1, 2], cost)
    await loop.run()
    assert seen == [1.5]


async def test_mean_goes_on_over_an_interrupt_in_mid_epoch():
    monitoring = TrainingDataMonitoring(["cost"])
    stop = At(lambda loop: loop.request_finish("batch"), after_n_batches=2)
    loop = loop_over([1, 2, 3, 6], monitoring, stop, FinishAfter(after_n_epochs=1), step=cost)
    await loop.run()
    assert await records_of(loop) == {4: 3.0}


async def test_two_monitorings_keep_their_own_windows():
    batches = TrainingDataMonitoring(["cost"], prefix="batches", every_n_batches=2)
    epochs = TrainingDataMonitoring(["cost"], prefix="epochs", after_epoch=True)
    loop = loop_over([1, 2, 3, 4], batches, epochs, FinishAfter(after_n_epochs=1), step=cost)
    log = await loop.run()
    assert {time: dict(log[time]) for time in log} == {
        2: {"batches_cost": 1.5},
        4: {
            "batches_cost": 3.5,
            "epochs_cost": 2.5,
            "training_finish_requested": True,
            "training_finished": True,
        },
    }


# The names of the records


@pytest.mark.parametrize(
    ("prefix", "suffix", "record"),
    [
        (None, None, "cost"),
        ("train", None, "train_cost"),
        (None, "mean", "cost_mean"),
        ("train", "mean", "train_cost_mean"),
        ("", "", "cost"),
    ],
)
async def test_record_is_named_by_prefix_and_suffix(prefix, suffix, record):
    monitoring = TrainingDataMonitoring(["cost"], prefix, suffix)
    loop = one_epoch(monitoring, [1, 2], cost)
    assert await records_of(loop, record) == {2: 1.5}


# What is refused


async def test_unknown_quantity_is_named_with_those_there_are():
    async def step(batch):
        return {"cost": 1.0, "accuracy": 0.5}

    with pytest.raises(QuantityError) as raised:
        await one_epoch(TrainingDataMonitoring(["kost"]), [1], step).run()
    assert str(raised.value) == (
        "variable 'kost' is to be monitored, but the algorithm returned 'cost', 'accuracy'; "
        "expected it among the quantities that process_batch returns; correct the name or return "
        "it"
    )


async def test_algorithm_that_returns_nothing_has_no_quantity():
    with pytest.raises(QuantityError, match="but the algorithm returned nothing; expected"):
        await one_epoch(TrainingDataMonitoring(["cost"]), [1], nothing).run()


async def test_quantity_that_comes_with_some_batches_only_is_refused():
    async def step(batch):
        return {"cost": batch} if batch < 2 else {}

    loop = one_epoch(TrainingDataMonitoring(["cost"]), [1, 2], step)
    with pytest.raises(QuantityError):
        await loop.run()
    assert loop.status["iterations_done"] == 2


async def test_quantity_error_is_a_lookup_error():
    with pytest.raises(LookupError):
        await one_epoch(TrainingDataMonitoring(["kost"]), [1], cost).run()


def test_bare_string_is_refused_with_the_list_to_write():
    with pytest.raises(ValueError, match=r"variables is 'cost'; expected a list of names; write"):
        TrainingDataMonitoring("cost")
