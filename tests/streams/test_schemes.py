"""Iteration schemes: how many batches, of which examples, in which order."""

import json
from itertools import chain
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aloop.config import config
from aloop.errors import StreamError
from aloop.streams import (
    BatchScheme,
    ConcatenatedScheme,
    SequentialExampleScheme,
    SequentialScheme,
    ShuffledExampleScheme,
    ShuffledScheme,
)

SCHEMES = (SequentialScheme, ShuffledScheme)
EXAMPLE_SCHEMES = (SequentialExampleScheme, ShuffledExampleScheme)


def requests(scheme, epoch=0):
    """All that is asked for in an epoch, as lists and numbers."""
    order = scheme.epoch_indices(epoch)
    asked = [scheme.request(order, number) for number in range(len(scheme))]
    return [one if isinstance(one, int) else one.tolist() for one in asked]


@pytest.fixture
def default_seed():
    """Set the setting `default_seed` in code, and take it back afterwards."""

    def set_to(value):
        config.default_seed = value

    yield set_to
    del config.default_seed


# ---- Lengths


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("examples", "batch_size", "batches"),
    [(10, 5, 2), (10, 3, 4), (10, 10, 1), (10, 11, 1), (1, 1, 1), (9, 1, 9)],
)
def test_the_length_is_the_number_of_batches(scheme, examples, batch_size, batches):
    assert len(scheme(examples, batch_size)) == batches


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_number_of_examples_is_that_given(scheme):
    assert scheme(10, 3).num_examples == 10


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_number_of_examples_is_that_of_the_indices_given(scheme):
    assert scheme([4, 2, 9], 2).num_examples == 3


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_scheme_requests_batches_and_not_examples(scheme):
    assert scheme(3, 2).requests_examples is False


@pytest.mark.parametrize("scheme", SCHEMES)
def test_numpy_integers_count_as_whole_numbers(scheme):
    made = scheme(np.int64(7), np.int32(2))
    assert (made.num_examples, len(made)) == (7, 4)


# ---- Orders


def test_sequential_order_is_that_of_the_examples():
    assert SequentialScheme(5, 2).epoch_indices(0).tolist() == [0, 1, 2, 3, 4]


def test_sequential_order_keeps_the_indices_as_given():
    assert SequentialScheme([3, 1, 2], 2).epoch_indices(0).tolist() == [3, 1, 2]


def test_sequential_order_is_the_same_in_a_later_epoch():
    scheme = SequentialScheme([3, 1, 2], 2)
    assert scheme.epoch_indices(7).tolist() == [3, 1, 2]


@given(examples=st.integers(1, 200), seed=st.integers(0, 2**64), epoch=st.integers(0, 10**6))
def test_a_shuffled_epoch_has_every_example_once(examples, seed, epoch):
    order = ShuffledScheme(examples, 3, seed=seed).epoch_indices(epoch)
    assert sorted(order.tolist()) == list(range(examples))


def test_a_shuffled_epoch_has_exactly_the_indices_given():
    order = ShuffledScheme(range(10, 60, 5), 3, seed=3).epoch_indices(0)
    assert sorted(order.tolist()) == list(range(10, 60, 5))


def test_each_shuffled_epoch_has_an_order_of_its_own():
    scheme = ShuffledScheme(100, 10, seed=3)
    orders = {tuple(scheme.epoch_indices(epoch).tolist()) for epoch in range(50)}
    assert len(orders) == 50


def test_an_epoch_has_the_same_order_whatever_was_asked_before():
    asked = ShuffledScheme(100, 10, seed=3)
    for epoch in (0, 1, 9):
        asked.epoch_indices(epoch)
    fresh = ShuffledScheme(100, 10, seed=3)
    assert asked.epoch_indices(5).tolist() == fresh.epoch_indices(5).tolist()


def test_another_seed_gives_another_order():
    one, other = (ShuffledScheme(100, 10, seed=seed).epoch_indices(0) for seed in (3, 4))
    assert one.tolist() != other.tolist()


def test_the_order_does_not_depend_on_the_batch_size():
    one, other = (ShuffledScheme(100, size, seed=3).epoch_indices(2) for size in (10, 7))
    assert one.tolist() == other.tolist()


def test_the_order_is_that_of_the_documented_generator():
    expected = np.random.default_rng((3, 5)).permutation(20)
    assert ShuffledScheme(20, 4, seed=3).epoch_indices(5).tolist() == expected.tolist()


def test_the_order_leaves_the_global_generator_alone():
    before = np.random.get_state()[1].tolist()  # noqa: NPY002 - the generator services share
    ShuffledScheme(20, 4, seed=3).epoch_indices(0)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_indices_changed_after_the_scheme_was_made_do_not_reach_it():
    indices = np.array([0, 1, 2])
    scheme = SequentialScheme(indices, 2)
    indices[:] = 9
    assert scheme.epoch_indices(0).tolist() == [0, 1, 2]


# ---- Requests


def test_requests_are_the_order_cut_into_batches():
    assert requests(SequentialScheme(5, 2)) == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize(
    ("examples", "batch_size", "batches"), [(10, 5, 2), (10, 3, 3), (10, 10, 1), (9, 1, 9)]
)
def test_a_short_batch_at_the_end_can_be_left_out(examples, batch_size, batches):
    scheme = SequentialScheme(examples, batch_size, drop_last=True)
    asked = requests(scheme)
    assert (len(scheme), [len(batch) for batch in asked]) == (batches, [batch_size] * batches)


def test_what_is_left_out_at_the_end_is_another_each_epoch():
    scheme = ShuffledScheme(10, 4, seed=3, drop_last=True)
    left_out = [set(range(10)) - set(chain(*requests(scheme, epoch))) for epoch in range(5)]
    assert all(len(left) == 2 for left in left_out)
    assert len({frozenset(left) for left in left_out}) > 1


def test_leaving_out_the_only_batch_is_refused_by_both_numbers():
    with pytest.raises(StreamError, match="batch_size is 4 for 3 examples, with drop_last=True"):
        ShuffledScheme(3, 4, drop_last=True)


@pytest.mark.parametrize("scheme", EXAMPLE_SCHEMES)
def test_a_scheme_of_examples_asks_for_each_alone(scheme):
    made = scheme([4, 2, 9])
    assert (made.requests_examples, len(made), made.num_examples) == (True, 3, 3)
    assert sorted(requests(made)) == [2, 4, 9]
    assert {type(one) for one in requests(made)} == {int}


def test_shuffled_examples_have_the_order_of_the_batches_of_their_seed():
    batches = requests(ShuffledScheme(20, 6, seed=3), epoch=4)
    assert requests(ShuffledExampleScheme(20, seed=3), epoch=4) == list(chain(*batches))


# ---- One after the other


def concatenated():
    return ConcatenatedScheme(
        [SequentialScheme(5, 2), ShuffledScheme(range(5, 12), 3, seed=3, drop_last=True)]
    )


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_schemes_in_a_row_ask_for_what_each_asks_for(epoch):
    one, other = concatenated().schemes
    assert requests(concatenated(), epoch) == requests(one, epoch) + requests(other, epoch)


def test_lengths_of_schemes_in_a_row_are_sums():
    scheme = concatenated()
    assert (len(scheme), scheme.num_examples, scheme.requests_examples) == (5, 12, False)
    assert sorted(scheme.indices.tolist()) == list(range(12))


def test_schemes_of_examples_in_a_row_ask_for_examples():
    scheme = ConcatenatedScheme([SequentialExampleScheme(2), SequentialExampleScheme([7, 8])])
    assert (scheme.requests_examples, requests(scheme)) == (True, [0, 1, 7, 8])


def test_rows_of_schemes_can_be_in_a_row_themselves():
    scheme = ConcatenatedScheme([concatenated(), SequentialScheme([20, 21, 22], 2)])
    assert requests(scheme, 2) == [*requests(concatenated(), 2), [20, 21], [22]]


def test_the_state_of_schemes_in_a_row_has_that_of_each():
    scheme = concatenated()
    state = json.loads(json.dumps(scheme.state()))
    assert state["schemes"] == [one.state() for one in scheme.schemes]


@pytest.mark.parametrize("schemes", [[], None, 3, [3], "ab", SequentialScheme(3, 1)], ids=repr)
def test_what_are_no_schemes_is_refused(schemes):
    with pytest.raises(StreamError, match="expected a list of one or more schemes of aloop"):
        ConcatenatedScheme(schemes)


def test_schemes_that_ask_for_different_things_are_refused_by_their_names():
    with pytest.raises(
        StreamError, match="SequentialScheme for batches, ShuffledExampleScheme for examples"
    ):
        ConcatenatedScheme([SequentialScheme(3, 1), ShuffledExampleScheme(3)])


# ---- The seed


def test_the_seed_is_the_setting_unless_given(default_seed):
    default_seed(17)
    assert ShuffledScheme(5, 2).seed == 17


def test_the_setting_makes_the_same_order_as_the_seed_given(default_seed):
    default_seed(17)
    given_seed = ShuffledScheme(50, 2, seed=17)
    assert ShuffledScheme(50, 2).epoch_indices(1).tolist() == given_seed.epoch_indices(1).tolist()


def test_seed_zero_is_a_seed_and_not_a_missing_one(default_seed):
    default_seed(17)
    assert ShuffledScheme(5, 2, seed=0).seed == 0


def test_a_setting_changed_later_does_not_reach_the_scheme(default_seed):
    default_seed(17)
    scheme = ShuffledScheme(5, 2)
    default_seed(18)
    assert scheme.seed == 17


# ---- What identifies an order


def test_the_state_of_a_sequential_scheme_names_it_and_its_sizes():
    assert SequentialScheme(10, 3).state() == {
        "scheme": "SequentialScheme",
        "num_examples": 10,
        "batch_size": 3,
        "indices_crc32": crc32(np.arange(10, dtype="<i8").tobytes()),
    }


def test_the_state_of_a_shuffled_scheme_has_its_seed_too():
    assert ShuffledScheme(10, 3, seed=5).state() == {
        "scheme": "ShuffledScheme",
        "num_examples": 10,
        "batch_size": 3,
        "indices_crc32": crc32(np.arange(10, dtype="<i8").tobytes()),
        "seed": 5,
    }


def test_the_state_is_json_even_if_the_scheme_was_made_of_numpy_integers():
    scheme = ShuffledScheme(np.arange(4), np.int64(3), seed=np.int64(5))
    assert json.loads(json.dumps(scheme.state())) == scheme.state()


def test_the_state_says_that_a_short_batch_is_left_out_only_where_it_is():
    assert SequentialScheme(10, 3, drop_last=True).state()["drop_last"] is True
    assert "drop_last" not in SequentialScheme(10, 3).state()


def test_the_state_of_a_scheme_of_examples_names_it():
    assert ShuffledExampleScheme(4, seed=5).state() == {
        "scheme": "ShuffledExampleScheme",
        "num_examples": 4,
        "indices_crc32": crc32(np.arange(4, dtype="<i8").tobytes()),
        "seed": 5,
    }


def test_indices_cannot_be_changed_under_a_scheme():
    with pytest.raises(ValueError, match="read-only"):
        SequentialScheme([3, 1, 2], 2).indices[0] = 7


# ---- What is refused


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, 2.5, "2", None, True])
def test_a_bad_batch_size_is_refused_by_its_value(batch_size):
    with pytest.raises(StreamError) as caught:
        SequentialScheme(10, batch_size)
    assert f"batch_size is {batch_size!r}; expected a whole number" in str(caught.value)


@pytest.mark.parametrize("examples", [0, -3])
def test_a_bad_number_of_examples_is_refused_by_its_value(examples):
    with pytest.raises(StreamError, match=f"examples is {examples}; expected a whole number"):
        SequentialScheme(examples, 2)


@pytest.mark.parametrize(
    "examples",
    [
        [],
        2.5,
        True,
        None,
        "abc",
        [0.5, 1.0],
        [True, False],
        [[0, 1], [2, 3]],
        {0, 1},
        np.array(3),
        [2**70],
    ],
    ids=repr,
)
def test_examples_that_are_neither_a_number_nor_indices_are_refused(examples):
    with pytest.raises(StreamError, match=r"expected the number of examples, 1 or more, or a "):
        SequentialScheme(examples, 2)


def test_examples_of_uneven_depth_are_refused_like_others():
    with pytest.raises(StreamError, match="expected the number of examples"):
        SequentialScheme([[0], [1, 2]], 2)


def test_a_negative_index_is_refused_by_its_value():
    with pytest.raises(StreamError, match=r"the index -2; expected indices from 0 on"):
        SequentialScheme([0, -2, 1], 2)


@pytest.mark.parametrize("seed", [-1, 1.0, "1", True])
def test_a_bad_seed_is_refused_by_its_value(seed):
    with pytest.raises(StreamError) as caught:
        ShuffledScheme(10, 2, seed=seed)
    assert f"seed is {seed!r}; expected a whole number" in str(caught.value)


@pytest.mark.parametrize("argument", ["batch_size", "seed"])
def test_several_numbers_in_place_of_one_are_refused_by_their_value(argument):
    arguments = {"batch_size": 2, argument: np.array([1, 2])}
    with pytest.raises(StreamError, match=rf"{argument} is array\(\[1, 2\]\)"):
        ShuffledScheme(10, **arguments)


def test_the_base_of_the_schemes_has_no_order_of_its_own():
    with pytest.raises(TypeError, match="epoch_indices"):
        BatchScheme(10, 2)


# ---- What messages call it


@pytest.mark.parametrize(
    ("scheme", "name"),
    [
        (SequentialScheme(5, 2), "SequentialScheme(examples=5, batch_size=2)"),
        (SequentialScheme(range(5, 900), 2), "SequentialScheme(examples=895, batch_size=2)"),
        (
            ShuffledScheme(5, 2, seed=3, drop_last=True),
            "ShuffledScheme(examples=5, batch_size=2, drop_last=True, seed=3)",
        ),
        (SequentialExampleScheme(5), "SequentialExampleScheme(examples=5)"),
        (ShuffledExampleScheme(5, seed=3), "ShuffledExampleScheme(examples=5, seed=3)"),
        (
            ConcatenatedScheme([SequentialScheme(3, 1), SequentialScheme(2, 2)]),
            f"ConcatenatedScheme([{SequentialScheme(3, 1)!r}, {SequentialScheme(2, 2)!r}])",
        ),
    ],
)
def test_a_scheme_is_called_by_what_it_was_made_with(scheme, name):
    assert repr(scheme) == name


def test_many_schemes_in_a_row_are_counted_and_not_all_named():
    name = repr(ConcatenatedScheme([SequentialExampleScheme(1)] * 500))
    assert name.endswith("… 500 in all])")
    assert name.count("SequentialExampleScheme") == 3
