"""Named parameters that are trained in place."""

import numpy as np
import pytest

from aloop.algorithms import ParameterDict
from aloop.errors import ParameterError
from aloop.protocols import Stateful


def make():
    return ParameterDict({"w": np.array([[1.0, 2.0], [3.0, 4.0]]), "b": np.array([5.0, 6.0])})


def contents(parameters):
    return {name: array.tolist() for name, array in parameters.items()}


START = {"w": [[1.0, 2.0], [3.0, 4.0]], "b": [5.0, 6.0]}


# ---- What it holds


def test_it_is_a_mapping_in_the_order_given():
    assert list(make()) == ["w", "b"]


def test_its_length_is_the_number_of_parameters():
    assert len(make()) == 2


def test_the_arrays_given_are_copied():
    given = np.array([1.0, 2.0])
    parameters = ParameterDict({"w": given})
    given[:] = 9
    assert parameters["w"].tolist() == [1.0, 2.0]


def test_an_item_is_the_array_itself_so_that_it_can_be_trained_in_place():
    parameters = make()
    parameters["b"][...] -= 1
    assert parameters["b"].tolist() == [4.0, 5.0]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64"])
def test_inexact_dtypes_are_kept(dtype):
    assert ParameterDict({"w": np.zeros(2, dtype)})["w"].dtype == np.dtype(dtype)


@pytest.mark.parametrize("dtype", ["int8", "int64", "uint8", "bool"])
def test_integers_become_64_bit_floats(dtype):
    assert ParameterDict({"w": np.ones(2, dtype)})["w"].dtype == np.float64


def test_a_single_number_is_a_parameter_without_axes():
    assert ParameterDict({"w": 3})["w"].shape == ()


def test_its_text_names_each_parameter_and_its_shape():
    assert repr(make()) == "ParameterDict(w: (2, 2), b: (2,))"


@pytest.mark.parametrize("value", ["text", [None], [{}]], ids=repr)
def test_what_is_no_number_is_refused_by_name(value):
    with pytest.raises(ParameterError, match="parameter 'w' has dtype"):
        ParameterDict({"w": value})


# ---- Getting


def test_the_values_are_those_of_all_parameters():
    assert contents(make().get_parameter_values()) == START


def test_values_that_were_taken_are_copies():
    parameters = make()
    parameters.get_parameter_values()["b"][:] = 9
    assert contents(parameters) == START


def test_a_state_that_was_taken_is_a_copy():
    parameters = make()
    state = parameters.state_dict()
    parameters["b"][...] = 9
    assert contents(state) == START


# ---- Setting


def test_setting_changes_the_arrays_in_place():
    parameters = make()
    held = parameters["b"]
    parameters.set_parameter_values({"w": np.zeros((2, 2)), "b": [7, 8]})
    assert held.tolist() == [7.0, 8.0]


def test_setting_keeps_the_dtype():
    parameters = ParameterDict({"w": np.zeros(2, np.float32)})
    parameters.set_parameter_values({"w": np.ones(2, np.float64)})
    assert parameters["w"].dtype == np.float32


def test_values_set_are_copies():
    parameters, values = make(), {"w": np.zeros((2, 2)), "b": np.zeros(2)}
    parameters.set_parameter_values(values)
    values["b"][:] = 9
    assert parameters["b"].tolist() == [0.0, 0.0]


def test_parameters_can_be_swapped_for_one_another():
    parameters = ParameterDict({"left": [1.0, 2.0], "right": [3.0, 4.0]})
    left, right = parameters["left"], parameters["right"]
    parameters.set_parameter_values({"left": right, "right": left})
    assert contents(parameters) == {"left": [3.0, 4.0], "right": [1.0, 2.0]}


def test_the_values_may_come_in_another_order():
    parameters = make()
    parameters.set_parameter_values({"b": [7, 8], "w": np.zeros((2, 2))})
    assert contents(parameters) == {"w": [[0.0, 0.0], [0.0, 0.0]], "b": [7.0, 8.0]}


def test_loading_a_state_puts_everything_back():
    parameters = make()
    state = parameters.state_dict()
    parameters["w"][...] = 0
    parameters["b"][...] = 0
    parameters.load_state_dict(state)
    assert contents(parameters) == START


def test_parameters_are_stateful_by_the_protocol():
    assert isinstance(make(), Stateful)


# ---- What is refused


def test_a_missing_value_is_refused_by_its_name():
    with pytest.raises(ParameterError, match=r"the values are named w; .* w, b; add b"):
        make().set_parameter_values({"w": np.zeros((2, 2))})


def test_an_unknown_value_is_refused_by_its_name():
    values = make().get_parameter_values() | {"c": np.zeros(2)}
    with pytest.raises(ParameterError, match=r"named w, b, c; .* w, b; leave out c"):
        make().set_parameter_values(values)


def test_no_values_at_all_are_refused():
    with pytest.raises(ParameterError, match="the values are named nothing"):
        make().set_parameter_values({})


def test_a_value_of_another_shape_is_refused_by_both_shapes():
    values = {"w": np.zeros((2, 2)), "b": np.zeros(3)}
    with pytest.raises(ParameterError, match=r"'b' has shape \(3,\); expected \(2,\)"):
        make().set_parameter_values(values)


def test_a_value_that_would_only_fit_by_broadcasting_is_refused():
    with pytest.raises(ParameterError, match=r"'b' has shape \(\); expected \(2,\)"):
        make().set_parameter_values({"w": np.zeros((2, 2)), "b": 0.0})


@pytest.mark.parametrize(
    "values",
    [
        {"w": np.zeros((2, 2))},
        {"w": np.zeros((2, 2)), "b": np.zeros(2), "c": np.zeros(2)},
        {"w": np.zeros((2, 2)), "b": np.zeros(3)},
        {"w": np.zeros((2, 2)), "b": ["x", "y"]},
    ],
    ids=["missing", "unknown", "shape", "no numbers"],
)
def test_values_that_are_refused_change_nothing(values):
    parameters = make()
    with pytest.raises(ValueError):
        parameters.set_parameter_values(values)
    assert contents(parameters) == START


def test_a_state_that_is_refused_changes_nothing():
    parameters = make()
    with pytest.raises(ParameterError):
        parameters.load_state_dict({"w": np.zeros((2, 2)), "b": np.zeros(3)})
    assert contents(parameters) == START
