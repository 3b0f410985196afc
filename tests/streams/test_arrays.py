"""Streams over arrays: batches, epochs, and the place that is kept."""

import json
from zlib import crc32

import numpy as np
import pytest

from aloop.errors import StreamError
from aloop.protocols import Stateful, Stream
from aloop.streams import (
    ArrayStream,
    ConcatenatedScheme,
    SequentialExampleScheme,
    SequentialScheme,
    ShuffledExampleScheme,
    ShuffledScheme,
)


def make(examples=10, batch_size=4, **arrays):
    """A sequential stream whose source "x" holds 0, 10, 20, …"""
    data = arrays or {"x": np.arange(examples) * 10}
    return ArrayStream(data, iteration_scheme=SequentialScheme(examples, batch_size))


def shuffled(seed=3, examples=10, batch_size=4):
    scheme = ShuffledScheme(examples, batch_size, seed=seed)
    return ArrayStream({"x": np.arange(examples) * 10}, iteration_scheme=scheme)


def rows(iterator):
    """What is left of an epoch, as lists."""
    return [batch["x"].tolist() for batch in iterator]


def flat(iterator):
    """What is left of an epoch, as one list of examples."""
    return [example for batch in rows(iterator) for example in batch]


def epochs(stream, number):
    return [rows(stream.get_epoch_iterator()) for _ in range(number)]


def at(stream, epochs, batches):
    """Take whole epochs, then batches of the next one."""
    for _ in range(epochs):
        rows(stream.get_epoch_iterator())
    iterator = stream.get_epoch_iterator()
    for _ in range(batches):
        next(iterator)
    return stream


# ---- Batches


def test_an_epoch_is_all_examples_in_batches_with_a_short_one_last():
    assert epochs(make(), 1) == [[[0, 10, 20, 30], [40, 50, 60, 70], [80, 90]]]


def test_the_last_batch_is_whole_when_the_size_divides_the_examples():
    assert epochs(make(examples=4, batch_size=2), 1) == [[[0, 10], [20, 30]]]


def test_a_batch_size_beyond_the_examples_gives_one_batch_of_all():
    assert epochs(make(examples=3, batch_size=100), 1) == [[[0, 10, 20]]]


def test_a_sequential_stream_has_the_same_batches_in_each_epoch():
    first, second = epochs(make(), 2)
    assert first == second


def test_a_shuffled_stream_has_the_order_of_the_scheme_in_each_epoch():
    stream = shuffled()
    scheme = stream.iteration_scheme
    given_out = [flat(stream.get_epoch_iterator()) for _ in range(3)]
    assert given_out == [(scheme.epoch_indices(epoch) * 10).tolist() for epoch in range(3)]


def test_examples_stay_together_across_sources():
    scheme = ShuffledScheme(20, 3, seed=1)
    arrays = {"x": np.arange(20), "y": np.arange(20) * 2}
    for batch in ArrayStream(arrays, iteration_scheme=scheme).get_epoch_iterator():
        assert batch["y"].tolist() == (batch["x"] * 2).tolist()


def test_only_the_examples_of_the_scheme_are_given():
    stream = ArrayStream({"x": np.arange(9)}, iteration_scheme=SequentialScheme([8, 1, 4], 2))
    assert epochs(stream, 1) == [[[8, 1], [4]]]


def test_a_batch_is_a_dictionary_by_source_in_the_order_given():
    stream = make(examples=3, y=np.arange(3), x=np.arange(3))
    assert list(next(stream.get_epoch_iterator())) == ["y", "x"]


def test_without_as_dict_a_batch_is_a_tuple_in_the_order_of_the_sources():
    stream = make(examples=2, y=[1, 2], x=[3, 4])
    batch = next(stream.get_epoch_iterator(as_dict=False))
    assert type(batch) is tuple
    assert [array.tolist() for array in batch] == [[1, 2], [3, 4]]


@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "bool", "U3", "complex64"])
def test_a_batch_has_the_dtype_of_the_data(dtype):
    stream = make(examples=3, x=np.zeros(3, dtype))
    assert next(stream.get_epoch_iterator())["x"].dtype == np.dtype(dtype)


def test_a_batch_keeps_the_axes_after_the_first():
    stream = make(examples=3, batch_size=2, x=np.zeros((3, 4, 5)))
    assert next(stream.get_epoch_iterator())["x"].shape == (2, 4, 5)


def test_data_may_be_given_as_lists():
    stream = make(examples=2, batch_size=2, x=[[1, 2], [3, 4]])
    assert next(stream.get_epoch_iterator())["x"].tolist() == [[1, 2], [3, 4]]


def test_changing_a_batch_does_not_change_the_data():
    data = np.arange(4)
    for batch in make(examples=4, batch_size=4, x=data).get_epoch_iterator():
        batch["x"][:] = -1
    assert data.tolist() == [0, 1, 2, 3]


def test_changing_the_data_does_not_change_a_batch_that_was_given():
    data = np.arange(4)
    batch = next(make(examples=4, batch_size=4, x=data).get_epoch_iterator())
    data[:] = -1
    assert batch["x"].tolist() == [0, 1, 2, 3]


# ---- The interface


def test_the_sources_are_the_names_of_the_arrays_in_order():
    assert make(examples=2, y=[1, 2], x=[3, 4]).sources == ("y", "x")


def test_a_stream_of_arrays_produces_batches():
    assert make().produces_examples is False


def test_a_stream_of_arrays_is_a_stream_by_the_protocol():
    assert isinstance(make(), Stream)


def test_a_stream_of_arrays_is_stateful_by_the_protocol():
    assert isinstance(make(), Stateful)


def test_the_length_of_the_scheme_is_the_number_of_batches_given():
    stream = make(examples=11, batch_size=3)
    assert len(stream.iteration_scheme) == len(epochs(stream, 1)[0])


def test_the_length_of_a_stream_is_that_of_its_scheme():
    assert len(make(examples=11, batch_size=3)) == 4


def test_closing_a_stream_of_arrays_leaves_it_usable():
    stream = make(examples=2)
    stream.close()
    assert epochs(stream, 1) == [[[0, 10]]]


# ---- Epochs


def test_an_exhausted_iterator_stays_exhausted():
    iterator = make().get_epoch_iterator()
    rows(iterator)
    assert [next(iterator, "end") for _ in range(3)] == ["end"] * 3


def test_asking_an_exhausted_iterator_again_does_not_skip_an_epoch():
    stream = shuffled()
    iterator = stream.get_epoch_iterator()
    rows(iterator)
    next(iterator, None)
    assert epochs(stream, 1) == epochs(shuffled(), 2)[1:]


def test_an_iterator_asked_for_in_mid_epoch_begins_the_next_epoch():
    stream = at(shuffled(), epochs=0, batches=2)
    assert epochs(stream, 1) == epochs(shuffled(), 2)[1:]


def test_an_iterator_asked_for_before_the_first_batch_begins_the_next_epoch():
    stream = at(shuffled(), epochs=0, batches=0)
    assert epochs(stream, 1) == epochs(shuffled(), 2)[1:]


def test_an_iterator_left_for_a_later_one_does_not_move_the_stream():
    stream = shuffled()
    left = stream.get_epoch_iterator()
    next(left)
    next(stream.get_epoch_iterator())
    next(left)
    next(left)
    assert (stream.state_dict()["epoch"], stream.state_dict()["batch"]) == (1, 1)


def test_an_iterator_that_ends_after_it_was_left_does_not_end_the_later_epoch():
    stream = shuffled()
    left = stream.get_epoch_iterator()
    next(stream.get_epoch_iterator())
    rows(left)
    assert (stream.state_dict()["epoch"], stream.state_dict()["batch"]) == (1, 1)


def test_next_epoch_in_mid_epoch_leaves_out_the_rest():
    stream = at(shuffled(), epochs=0, batches=2)
    stream.next_epoch()
    assert epochs(stream, 1) == epochs(shuffled(), 2)[1:]


def test_next_epoch_before_the_first_leaves_it_out():
    stream = shuffled()
    stream.next_epoch()
    assert epochs(stream, 1) == epochs(shuffled(), 2)[1:]


def test_reset_in_mid_epoch_goes_back_to_the_first_epoch():
    stream = at(shuffled(), epochs=2, batches=1)
    stream.reset()
    assert epochs(stream, 2) == epochs(shuffled(), 2)


@pytest.mark.parametrize("go_back", ["reset", "load_state_dict"])
def test_an_iterator_from_before_going_back_does_not_move_the_stream(go_back):
    stream = shuffled()
    beginning = stream.state_dict()
    left = stream.get_epoch_iterator()
    next(left)
    if go_back == "reset":
        stream.reset()
    else:
        stream.load_state_dict(beginning)
    next(stream.get_epoch_iterator())
    next(left)
    next(left)
    assert (stream.state_dict()["epoch"], stream.state_dict()["batch"]) == (0, 1)


# ---- The place


def test_the_state_is_the_place_and_what_identifies_the_order():
    assert at(shuffled(), epochs=2, batches=1).state_dict() == {
        "epoch": 2,
        "batch": 1,
        "scheme": "ShuffledScheme",
        "num_examples": 10,
        "batch_size": 4,
        "indices_crc32": crc32(np.arange(10, dtype="<i8").tobytes()),
        "seed": 3,
    }


def test_the_state_of_another_selection_of_as_many_examples_is_refused():
    def over(indices):
        return ArrayStream({"x": np.arange(10)}, iteration_scheme=SequentialScheme(indices, 2))

    with pytest.raises(StreamError, match="indices_crc32"):
        over([0, 1, 2]).load_state_dict(over([3, 4, 5]).state_dict())


@pytest.mark.parametrize("change", [{"epoch": None}, {"batch": -1}, {"batch": 4}, {"epoch": 0.5}])
def test_a_state_that_is_no_place_is_refused(change):
    with pytest.raises(StreamError, match="expected whole numbers from 0 on"):
        shuffled().load_state_dict(shuffled().state_dict() | change)


@pytest.mark.parametrize("state", [None, 3, [("epoch", 0)]], ids=repr)
def test_a_state_that_is_no_mapping_is_refused_by_its_value(state):
    with pytest.raises(StreamError, match="expected a mapping; give what state_dict"):
        shuffled().load_state_dict(state)


def test_the_state_of_an_ended_epoch_is_the_beginning_of_the_next():
    stream = shuffled()
    rows(stream.get_epoch_iterator())
    assert (stream.state_dict()["epoch"], stream.state_dict()["batch"]) == (1, 0)


def test_a_state_that_was_taken_does_not_move_with_the_stream():
    stream = shuffled()
    state = stream.state_dict()
    rows(stream.get_epoch_iterator())
    assert (state["epoch"], state["batch"]) == (0, 0)


@pytest.mark.parametrize("batches", range(4))
@pytest.mark.parametrize("ended", [0, 2])
def test_a_fresh_stream_goes_on_from_any_batch(ended, batches):
    state = json.loads(json.dumps(at(shuffled(), ended, batches).state_dict()))
    resumed = shuffled()
    resumed.load_state_dict(state)
    straight = epochs(shuffled(), ended + 2)
    assert epochs(resumed, 2) == [straight[ended][batches:], straight[ended + 1]]


def test_a_fresh_stream_goes_on_from_between_two_epochs():
    stream = shuffled()
    rows(stream.get_epoch_iterator())
    resumed = shuffled()
    resumed.load_state_dict(stream.state_dict())
    assert epochs(resumed, 2) == epochs(shuffled(), 3)[1:]


def test_a_used_stream_goes_back_to_a_state():
    stream = at(shuffled(), epochs=0, batches=1)
    state = stream.state_dict()
    epochs(stream, 4)
    stream.load_state_dict(state)
    assert rows(stream.get_epoch_iterator()) == epochs(shuffled(), 1)[0][1:]


def test_a_stream_gives_back_the_state_that_it_was_given():
    state = at(shuffled(), epochs=1, batches=2).state_dict()
    resumed = shuffled()
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state


def test_a_resumed_stream_counts_batches_from_where_it_was():
    resumed = shuffled()
    resumed.load_state_dict(at(shuffled(), epochs=1, batches=1).state_dict())
    next(resumed.get_epoch_iterator())
    assert (resumed.state_dict()["epoch"], resumed.state_dict()["batch"]) == (1, 2)


def test_a_late_epoch_is_resumed_without_going_through_those_before():
    resumed = shuffled()
    resumed.load_state_dict(shuffled().state_dict() | {"epoch": 10**9, "batch": 1})
    order = resumed.iteration_scheme.epoch_indices(10**9) * 10
    assert flat(resumed.get_epoch_iterator()) == order[4:].tolist()


@pytest.mark.parametrize(
    ("other", "key", "was", "has"),
    [
        (make(), "scheme", "'SequentialScheme'", "'ShuffledScheme'"),
        (shuffled(seed=4), "seed", "4", "3"),
        (shuffled(batch_size=5), "batch_size", "5", "4"),
    ],
    ids=["scheme", "seed", "batch_size"],
)
def test_the_state_of_another_order_is_refused_by_both_values(other, key, was, has):
    with pytest.raises(StreamError) as caught:
        shuffled().load_state_dict(other.state_dict())
    assert f"the stream's state has {key} {was}, but the stream has {has}" in str(caught.value)


def test_the_state_of_data_of_another_length_is_refused_by_both_lengths():
    with pytest.raises(StreamError, match="with 9 examples in an epoch, and the stream has 10 now"):
        shuffled().load_state_dict(shuffled(examples=9).state_dict())


@pytest.mark.parametrize("drop_last", [True, False])
def test_the_state_of_an_order_with_another_end_is_refused(drop_last):
    def over(drop_last):
        scheme = SequentialScheme(10, 4, drop_last=drop_last)
        return ArrayStream({"x": np.arange(10)}, iteration_scheme=scheme)

    with pytest.raises(StreamError, match="the stream's state has drop_last"):
        over(drop_last).load_state_dict(over(not drop_last).state_dict())


def test_the_state_of_other_schemes_in_a_row_is_refused_by_what_differs():
    def over(seed):
        schemes = [SequentialScheme(10, 4), ShuffledScheme(10, 3, seed=seed)]
        return ArrayStream({"x": np.arange(10)}, iteration_scheme=ConcatenatedScheme(schemes))

    with pytest.raises(StreamError, match="the stream's state has seed 3, but the stream has 4"):
        over(4).load_state_dict(over(3).state_dict())


def test_the_state_of_more_schemes_in_a_row_is_refused():
    def over(*examples):
        schemes = [SequentialScheme(number, 2) for number in examples]
        return ArrayStream({"x": np.arange(10)}, iteration_scheme=ConcatenatedScheme(schemes))

    with pytest.raises(StreamError, match="the stream's state has schemes"):
        over(4, 4).load_state_dict(over(4, 2, 2).state_dict())


def test_a_state_that_is_refused_does_not_move_the_stream():
    stream = at(shuffled(), epochs=1, batches=2)
    before = stream.state_dict()
    with pytest.raises(StreamError):
        stream.load_state_dict(at(shuffled(seed=4), epochs=3, batches=1).state_dict())
    assert stream.state_dict() == before


# ---- Single examples


def examples_of(scheme, **arrays):
    return ArrayStream(arrays or {"x": np.arange(10) * 10}, iteration_scheme=scheme)


def test_a_scheme_of_examples_gives_them_one_at_a_time():
    stream = examples_of(SequentialExampleScheme(3))
    assert [example["x"] for example in stream.get_epoch_iterator()] == [0, 10, 20]


def test_a_stream_of_single_examples_says_so():
    assert examples_of(SequentialExampleScheme(3)).produces_examples is True


def test_an_example_has_no_batch_axis():
    stream = examples_of(SequentialExampleScheme(3), x=np.zeros((3, 4, 5)), y=np.zeros(3))
    example = next(stream.get_epoch_iterator())
    assert (example["x"].shape, np.shape(example["y"])) == ((4, 5), ())


def test_changing_an_example_does_not_change_the_data():
    data = np.zeros((3, 2))
    next(examples_of(SequentialExampleScheme(3), x=data).get_epoch_iterator())["x"][:] = 1
    assert data.sum() == 0


def test_shuffled_examples_come_in_the_order_of_shuffled_batches():
    stream = examples_of(ShuffledExampleScheme(10, seed=3))
    singles = [int(example["x"]) for example in stream.get_epoch_iterator()]
    assert singles == flat(shuffled().get_epoch_iterator())


@pytest.mark.parametrize("taken", [0, 4, 10])
def test_a_stream_of_examples_goes_on_from_any_of_them(taken):
    def make():
        return examples_of(ShuffledExampleScheme(10, seed=3))

    straight = [int(example["x"]) for example in make().get_epoch_iterator()]
    stopped, resumed = make(), make()
    iterator = stopped.get_epoch_iterator()
    for _ in range(taken):
        next(iterator)
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    assert [int(e["x"]) for e in resumed.get_epoch_iterator()] == straight[taken:]


# ---- Schemes in a row


@pytest.mark.parametrize("taken", range(6))
@pytest.mark.parametrize("ended", [0, 2])
def test_a_stream_of_schemes_in_a_row_goes_on_from_any_batch(ended, taken):
    def make():
        schemes = [ShuffledScheme(6, 4, seed=1), SequentialScheme([9, 7, 8, 1, 3], 2)]
        return examples_of(ConcatenatedScheme(schemes))

    state = json.loads(json.dumps(at(make(), ended, taken).state_dict()))
    resumed = make()
    resumed.load_state_dict(state)
    straight = epochs(make(), ended + 2)
    assert epochs(resumed, 2) == [straight[ended][taken:], straight[ended + 1]]


# ---- Batches that are made later


def test_a_batch_can_be_made_after_those_that_follow_it():
    iterator = shuffled().get_epoch_iterator()
    makers = [iterator.defer() for _ in range(3)]
    made = [make()["x"].tolist() for make in reversed(makers)]
    assert made[::-1] == epochs(shuffled(), 1)[0]


def test_the_place_is_behind_a_batch_that_is_yet_to_be_made():
    stream = shuffled()
    stream.get_epoch_iterator().defer()
    assert stream.state_dict()["batch"] == 1


def test_a_batch_can_be_made_again():
    make_batch = shuffled().get_epoch_iterator().defer()
    assert make_batch()["x"].tolist() == make_batch()["x"].tolist()


def test_a_batch_that_is_made_later_is_a_tuple_without_as_dict():
    assert type(shuffled().get_epoch_iterator(as_dict=False).defer()()) is tuple


def test_no_batch_can_be_made_after_the_last():
    stream = shuffled()
    iterator = stream.get_epoch_iterator()
    for _ in range(3):
        iterator.defer()
    with pytest.raises(StopIteration):
        iterator.defer()
    assert (stream.state_dict()["epoch"], stream.state_dict()["batch"]) == (1, 0)


# ---- What messages call it


def test_a_stream_is_called_by_the_shapes_of_its_data_and_its_scheme():
    stream = make(examples=4, x=np.zeros((4, 2)), y=np.arange(4))
    scheme = repr(stream.iteration_scheme)
    assert repr(stream) == f"ArrayStream({{'x': (4, 2), 'y': (4,)}}, iteration_scheme={scheme})"


# ---- What is refused


def test_no_arrays_are_refused():
    with pytest.raises(StreamError, match="arrays is empty"):
        ArrayStream({}, iteration_scheme=SequentialScheme(1, 1))


@pytest.mark.parametrize("arrays", [np.arange(3), (np.arange(3),), None], ids=repr)
def test_arrays_without_names_are_refused_with_how_to_name_them(arrays):
    with pytest.raises(StreamError, match=r"expected a mapping of arrays by source; name each"):
        ArrayStream(arrays, iteration_scheme=SequentialScheme(3, 1))


def test_rows_of_different_lengths_are_refused_by_the_name_of_their_source():
    with pytest.raises(
        StreamError, match=r"array 'y' is \[\[1\], \[1, 2\]\] of type list, of which"
    ):
        make(examples=2, x=np.zeros(2), y=[[1], [1, 2]])


def test_arrays_of_different_lengths_are_refused_by_both_lengths():
    with pytest.raises(StreamError, match=r"'x' has 3, 'y' has 4"):
        make(examples=3, x=np.zeros(3), y=np.zeros(4))


def test_a_single_value_in_place_of_an_array_is_refused_by_its_name():
    with pytest.raises(StreamError, match=r"array 'y' is the single value 7"):
        make(examples=3, x=np.zeros(3), y=7)


def test_a_scheme_that_asks_beyond_the_arrays_is_refused_by_both_numbers():
    with pytest.raises(StreamError, match=r"asks for example 9, but the arrays have 4"):
        make(examples=10, x=np.zeros(4))


def test_arrays_without_examples_are_refused():
    with pytest.raises(StreamError, match=r"the arrays have no examples; expected one or more"):
        make(examples=1, x=np.zeros((0, 3)))


def test_an_index_beyond_the_arrays_is_refused_though_the_examples_are_few():
    with pytest.raises(StreamError, match=r"asks for example 4, but the arrays have 4"):
        ArrayStream({"x": np.zeros(4)}, iteration_scheme=SequentialScheme([0, 4], 1))


@pytest.mark.parametrize("scheme", [None, 3, range(3), SequentialScheme], ids=repr)
def test_what_is_no_scheme_is_refused_by_its_value(scheme):
    with pytest.raises(StreamError, match="expected a SequentialScheme, ShuffledScheme or another"):
        ArrayStream({"x": np.zeros(4)}, iteration_scheme=scheme)
