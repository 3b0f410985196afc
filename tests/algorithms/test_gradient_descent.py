"""Gradient descent: its step, where it runs, and what it refuses."""

import threading

import numpy as np
import pytest

from aloop.algorithms import Adam, GradientDescent, Momentum, ParameterDict, Scale
from aloop.errors import ParameterError
from aloop.offload import Worker, current_worker
from aloop.protocols import Stateful


def make_parameters():
    return ParameterDict({"w": np.array([1.0, 2.0]), "b": np.array(0.5)})


def least_squares(parameters, batch):
    """Half the squared error of a line, summed over the batch, and its gradients."""
    error = batch["x"] @ parameters["w"] + parameters["b"] - batch["y"]
    return {"cost": (error**2).sum() / 2}, {"w": error @ batch["x"], "b": error.sum()}


BATCH = {"x": np.array([[1.0, 0.0], [0.0, 1.0]]), "y": np.array([0.5, 1.5])}
# By hand: both errors are 1.0, so the cost is 1.0 and the gradients are w: [1, 1], b: 2.


def given(**gradients):
    """Parameters, and an algorithm whose gradients are those given."""
    parameters = make_parameters()
    algorithm = GradientDescent(
        parameters, lambda parameters, batch: ({}, gradients), Scale(1.0), where="inline"
    )
    return parameters, algorithm


def contents(parameters):
    return {name: array.tolist() for name, array in parameters.items()}


START = {"w": [1.0, 2.0], "b": 0.5}


# ---- The step


@pytest.mark.parametrize("where", ["thread", "inline"])
async def test_a_step_is_the_scaled_gradient_taken_off(where):
    parameters = make_parameters()
    algorithm = GradientDescent(parameters, least_squares, Scale(0.25), where=where)
    await algorithm.process_batch(BATCH)
    assert contents(parameters) == {"w": [0.75, 1.75], "b": 0.0}


async def test_the_default_rule_takes_off_the_gradient():
    parameters = make_parameters()
    await GradientDescent(parameters, least_squares).process_batch(BATCH)
    assert contents(parameters) == {"w": [0.0, 1.0], "b": -1.5}


async def test_a_batch_gives_the_quantities_from_before_its_step():
    algorithm = GradientDescent(make_parameters(), least_squares, Scale(0.25))
    assert await algorithm.process_batch(BATCH) == {"cost": 1.0}


async def test_the_next_gradients_are_those_of_the_changed_parameters():
    algorithm = GradientDescent(make_parameters(), least_squares, Scale(0.25))
    await algorithm.process_batch(BATCH)
    # By hand: the errors are now 0.25 and 0.25.
    assert await algorithm.process_batch(BATCH) == {"cost": 0.0625}


async def test_the_rule_given_makes_the_steps():
    parameters = make_parameters()
    algorithm = GradientDescent(
        parameters,
        lambda parameters, batch: ({}, {"w": np.array([8.0, 8.0]), "b": 8.0}),
        Momentum(0.5, 0.5),
    )
    for _ in range(3):
        await algorithm.process_batch(None)
    assert contents(parameters) == {"w": [-16.0, -15.0], "b": -16.5}


async def test_parameters_are_changed_in_place():
    parameters = make_parameters()
    held = parameters["w"]
    await GradientDescent(parameters, least_squares, Scale(0.25)).process_batch(BATCH)
    assert held.tolist() == [0.75, 1.75]


async def test_parameters_may_be_a_plain_dictionary():
    parameters = {"w": np.array([1.0, 2.0]), "b": np.array(0.5)}
    await GradientDescent(parameters, least_squares, Scale(0.25)).process_batch(BATCH)
    assert contents(parameters) == {"w": [0.75, 1.75], "b": 0.0}


async def test_gradients_may_be_lists_and_come_in_another_order():
    parameters, algorithm = given(b=0.5, w=[1, 1])
    await algorithm.process_batch(None)
    assert contents(parameters) == {"w": [0.0, 1.0], "b": 0.0}


async def test_parameters_keep_their_dtype():
    parameters = ParameterDict({"w": np.array([1.0, 2.0], np.float32)})
    algorithm = GradientDescent(parameters, lambda *_: ({}, {"w": np.ones(2)}), Scale(0.25))
    await algorithm.process_batch(None)
    assert parameters["w"].dtype == np.float32


async def test_initialize_leaves_the_parameters_alone():
    parameters = make_parameters()
    await GradientDescent(parameters, least_squares).initialize()
    assert contents(parameters) == START


# ---- Where it runs


async def thread_of(where):
    """The thread that a step runs on."""
    seen = []

    def gradients(parameters, batch):
        seen.append(threading.current_thread())
        return least_squares(parameters, batch)

    await GradientDescent(make_parameters(), gradients, where=where).process_batch(BATCH)
    return seen.pop()


async def test_inline_a_step_runs_on_the_thread_of_the_event_loop():
    assert await thread_of("inline") is threading.current_thread()


async def test_a_step_runs_off_the_thread_of_the_event_loop():
    assert await thread_of("thread") is not threading.current_thread()


async def test_in_a_run_a_step_runs_on_the_worker_of_the_run():
    worker = Worker()
    token = current_worker.set(worker)
    try:
        assert await thread_of("thread") is await worker.run(threading.current_thread)
    finally:
        current_worker.reset(token)
        worker.close()


def test_a_bad_place_is_refused_by_what_there_is():
    with pytest.raises(ValueError, match="where is 'gpu'; expected one of 'thread', 'inline'"):
        GradientDescent(make_parameters(), least_squares, where="gpu")


# ---- What is refused


async def test_a_missing_gradient_is_refused_by_its_name():
    _, algorithm = given(w=[1.0, 1.0])
    with pytest.raises(ParameterError, match=r"the gradients are named w; .* w, b; add b"):
        await algorithm.process_batch(None)


async def test_an_unknown_gradient_is_refused_by_its_name():
    _, algorithm = given(w=[1.0, 1.0], b=1.0, c=1.0)
    with pytest.raises(ParameterError, match=r"named w, b, c; .* w, b; leave out c"):
        await algorithm.process_batch(None)


async def test_a_gradient_of_another_shape_is_refused_by_both_shapes():
    _, algorithm = given(w=[1.0, 1.0, 1.0], b=1.0)
    with pytest.raises(ParameterError, match=r"'w' has shape \(3,\); expected \(2,\)"):
        await algorithm.process_batch(None)


async def test_a_gradient_that_would_only_fit_by_broadcasting_is_refused():
    _, algorithm = given(w=1.0, b=1.0)
    with pytest.raises(ParameterError, match=r"'w' has shape \(\); expected \(2,\)"):
        await algorithm.process_batch(None)


@pytest.mark.parametrize(
    "gradients",
    [
        {"w": [1.0, 1.0]},
        {"w": [1.0, 1.0], "b": 1.0, "c": 1.0},
        {"w": [1.0, 1.0], "b": [1.0, 1.0]},
        {"w": [1.0, 1.0], "b": 1j},
    ],
    ids=["missing", "unknown", "shape", "complex"],
)
async def test_gradients_that_do_not_match_leave_all_parameters_unchanged(gradients):
    parameters, algorithm = given(**gradients)
    with pytest.raises((ValueError, TypeError)):
        await algorithm.process_batch(None)
    assert contents(parameters) == START


async def test_gradients_that_do_not_match_do_not_reach_the_rule():
    rule = Adam()
    algorithm = GradientDescent(make_parameters(), lambda *_: ({}, {"w": np.ones(2)}), rule)
    with pytest.raises(ParameterError):
        await algorithm.process_batch(None)
    assert rule.state_dict()["time"] == 0


@pytest.mark.parametrize("where", ["thread", "inline"])
async def test_an_error_of_the_gradients_goes_up_as_it_is(where):
    def fails(parameters, batch):
        raise ZeroDivisionError("no cost")

    algorithm = GradientDescent(make_parameters(), fails, where=where)
    with pytest.raises(ZeroDivisionError, match="no cost"):
        await algorithm.process_batch(None)


# ---- What is remembered


@pytest.mark.parametrize("stop", [0, 1, 9])
@pytest.mark.parametrize("make_rule", [Adam, lambda: Momentum(0.01, 0.9)], ids=["adam", "momentum"])
def test_going_on_in_a_fresh_algorithm_equals_never_stopping(make_rule, stop):
    rng = np.random.default_rng(5)
    batches = [{"x": rng.normal(size=(4, 2)), "y": rng.normal(size=4)} for _ in range(20)]
    straight = GradientDescent(make_parameters(), least_squares, make_rule())
    for batch in batches:
        straight.step(batch)

    stopped = GradientDescent(make_parameters(), least_squares, make_rule())
    for batch in batches[:stop]:
        stopped.step(batch)
    resumed = GradientDescent(make_parameters(), least_squares, make_rule())
    resumed.load_state_dict(stopped.state_dict())
    resumed.parameters.load_state_dict(stopped.parameters.state_dict())
    for batch in batches[stop:]:
        resumed.step(batch)
    assert contents(resumed.parameters) == contents(straight.parameters)


def test_the_state_is_that_of_the_rule_and_not_the_parameters():
    algorithm = GradientDescent(make_parameters(), least_squares, Adam())
    assert algorithm.state_dict() == {
        "rule": "Adam",
        "step_rule": {"time": 0, "mean": {}, "square": {}},
    }


def test_gradient_descent_is_stateful_by_the_protocol():
    assert isinstance(GradientDescent(make_parameters(), least_squares), Stateful)
