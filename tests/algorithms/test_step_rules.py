"""Step rules, held against scikit-learn's optimisers on the same gradients."""

from math import sqrt

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.neural_network._stochastic_optimizers import AdamOptimizer, SGDOptimizer

from aloop.algorithms import Adam, Momentum, Scale, StepRule
from aloop.protocols import Stateful

SHAPES = {"w": (3, 4), "b": (4,), "bias": ()}
BATCHES = 300
RULES = {
    "scale": lambda: Scale(0.1),
    "momentum": lambda: Momentum(0.1, 0.9),
    "adam": lambda: Adam(0.01),
}


def gradients(dtype=np.float64, batches=BATCHES, seed=7):
    """Gradients of changing size and sign, the same for the same seed."""
    rng = np.random.default_rng(seed)
    return [
        {
            name: np.asarray(rng.normal(size=shape) * 10 ** rng.uniform(-3, 2), dtype)
            for name, shape in SHAPES.items()
        }
        for _ in range(batches)
    ]


def steps_of(optimizer, batches):
    """The steps of a scikit-learn optimiser, whose updates are added to the parameters."""
    for batch in batches:
        updates = optimizer._get_updates(list(batch.values()))
        yield {name: -update for name, update in zip(batch, updates, strict=True)}


def zeros(dtype):
    return [np.zeros(shape, dtype) for shape in SHAPES.values()]


def sgd(dtype, momentum):
    return SGDOptimizer(zeros(dtype), learning_rate_init=0.1, momentum=momentum, nesterov=False)


def assert_same_bits(left, right):
    assert {name: (step.dtype, step.tobytes()) for name, step in left.items()} == {
        name: (step.dtype, step.tobytes()) for name, step in right.items()
    }


# ---- Against scikit-learn


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_scale_is_gradient_descent_without_momentum(dtype):
    batches, rule = gradients(dtype), Scale(0.1)
    for batch, expected in zip(batches, steps_of(sgd(dtype, 0.0), batches), strict=True):
        steps = rule.compute_steps(batch)
        for name in batch:
            assert_array_equal(steps[name], expected[name])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.999])
def test_momentum_is_gradient_descent_with_momentum(dtype, momentum):
    batches, rule = gradients(dtype), Momentum(0.1, momentum)
    for batch, expected in zip(batches, steps_of(sgd(dtype, momentum), batches), strict=True):
        steps = rule.compute_steps(batch)
        for name in batch:
            assert_array_equal(steps[name], expected[name])


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-14), (np.float32, 1e-6)])
@pytest.mark.parametrize(
    "betas_and_epsilon", [(0.9, 0.999, 1e-8), (0.5, 0.9, 1e-3), (0.0, 0.99, 1e-8)]
)
def test_adam_without_decay_is_the_common_adam(dtype, rtol, betas_and_epsilon):
    batches, rule = gradients(dtype), Adam(0.01, *betas_and_epsilon, decay_factor=1.0)
    oracle = AdamOptimizer(zeros(dtype), 0.01, *betas_and_epsilon)
    for batch, expected in zip(batches, steps_of(oracle, batches), strict=True):
        steps = rule.compute_steps(batch)
        for name in batch:
            assert_allclose(steps[name], expected[name], rtol=rtol, atol=0)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_adam_remembers_the_means_that_scikit_learn_remembers(dtype):
    batches, rule = gradients(dtype), Adam(0.01, decay_factor=1.0)
    oracle = AdamOptimizer(zeros(dtype), 0.01)
    for batch, _ in zip(batches, steps_of(oracle, batches), strict=True):
        rule.compute_steps(batch)
    state = rule.state_dict()
    for name, mean, square in zip(SHAPES, oracle.ms, oracle.vs, strict=True):
        assert_array_equal(state["mean"][name], mean)
        assert_array_equal(state["square"][name], square)


# ---- By their definition


def test_scale_by_hand():
    steps = Scale(0.5).compute_steps({"w": np.array([2.0, -4.0])})
    assert steps["w"].tolist() == [1.0, -2.0]


def test_momentum_by_hand():
    rule, gradient = Momentum(0.5, 0.5), {"w": np.array([8.0])}
    assert [rule.compute_steps(gradient)["w"].item() for _ in range(3)] == [4.0, 6.0, 7.0]


def test_adam_lets_beta1_decay_as_in_the_paper():
    rate, beta1, beta2, epsilon, decay = 0.1, 0.9, 0.99, 1e-8, 0.8
    rule = Adam(rate, beta1, beta2, epsilon, decay)
    mean = square = 0.0
    for t, gradient in enumerate([3.0, -1.0, 4.0, 1.0, -5.0], start=1):
        beta1_t = beta1 * decay ** (t - 1)
        mean = beta1_t * mean + (1 - beta1_t) * gradient
        square = beta2 * square + (1 - beta2) * gradient**2
        unbiased = rate * sqrt(1 - beta2**t) / (1 - beta1**t)
        step = rule.compute_steps({"w": np.array([gradient])})["w"].item()
        assert step == pytest.approx(unbiased * mean / (sqrt(square) + epsilon), rel=1e-14)


def test_adam_by_default_lets_beta1_decay_by_one_in_a_hundred_million():
    rule, spelt_out = Adam(), Adam(0.002, 0.9, 0.999, 1e-8, 1.0 - 1e-8)
    for batch in gradients(batches=20):
        assert_same_bits(rule.compute_steps(batch), spelt_out.compute_steps(batch))


@pytest.mark.parametrize("make", [Scale, Momentum])
def test_the_default_step_is_the_gradient(make):
    rule = make()
    assert [rule.compute_steps({"w": np.array([3.0])})["w"].item() for _ in range(2)] == [3.0, 3.0]


@pytest.mark.parametrize("name", RULES)
def test_a_learning_rate_changed_between_batches_counts_from_then_on(name):
    rule = RULES[name]()
    rule.learning_rate = 0.0
    steps = rule.compute_steps(gradients(batches=1)[0])
    assert [step.any() for step in steps.values()] == [False, False, False]


# ---- Shapes, dtypes, ownership


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.complex64])
@pytest.mark.parametrize("name", RULES)
def test_a_step_has_the_dtype_of_its_gradient(name, dtype):
    rule = RULES[name]()
    for _ in range(3):
        step = rule.compute_steps({"w": np.ones(2, dtype)})["w"]
    assert step.dtype == np.dtype(dtype)


@pytest.mark.parametrize("name", RULES)
def test_a_learning_rate_of_numpy_does_not_change_the_dtype(name):
    rule = RULES[name]()
    rule.learning_rate = np.float64(0.1)
    for _ in range(3):
        step = rule.compute_steps({"w": np.ones(2, np.float32)})["w"]
    assert step.dtype == np.float32


@pytest.mark.parametrize("make", [Scale, Momentum, Adam])
def test_a_rule_made_with_a_learning_rate_of_numpy_keeps_the_dtype(make):
    steps = make(learning_rate=np.float64(0.1)).compute_steps({"w": np.ones(2, np.float32)})
    assert steps["w"].dtype == np.float32


@pytest.mark.parametrize("name", RULES)
def test_a_step_has_the_shape_of_its_gradient(name):
    steps = RULES[name]().compute_steps(gradients(batches=1)[0])
    assert {name: np.shape(step) for name, step in steps.items()} == SHAPES


@pytest.mark.parametrize("name", RULES)
def test_the_gradients_are_left_as_they_were(name):
    rule, batch = RULES[name](), {"w": np.array([1.0, 2.0])}
    for _ in range(3):
        rule.compute_steps(batch)
    assert batch["w"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("name", RULES)
def test_a_step_changed_by_its_receiver_does_not_reach_the_rule(name):
    touched, left_alone = RULES[name](), RULES[name]()
    for batch in gradients(batches=5):
        steps = touched.compute_steps(batch)
        expected = left_alone.compute_steps(batch)
        assert_same_bits(steps, expected)
        steps["w"][...] = 9


@pytest.mark.parametrize("name", RULES)
def test_a_gradient_changed_afterwards_does_not_reach_the_rule(name):
    touched, left_alone = RULES[name](), RULES[name]()
    for batch in gradients(batches=5):
        expected = left_alone.compute_steps(batch)
        changed = {name: gradient.copy() for name, gradient in batch.items()}
        assert_same_bits(touched.compute_steps(changed), expected)
        changed["w"][...] = 9


# ---- What is remembered


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("stop", [0, 1, 17])
@pytest.mark.parametrize("name", RULES)
def test_going_on_in_a_fresh_rule_equals_never_stopping(name, stop, dtype):
    batches = gradients(dtype, batches=40)
    straight = RULES[name]()
    expected = [straight.compute_steps(batch) for batch in batches]

    stopped = RULES[name]()
    for batch in batches[:stop]:
        stopped.compute_steps(batch)
    resumed = RULES[name]()
    resumed.load_state_dict(stopped.state_dict())
    for batch, steps in zip(batches[stop:], expected[stop:], strict=True):
        assert_same_bits(resumed.compute_steps(batch), steps)


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_a_state_that_was_taken_does_not_move_with_the_rule(name):
    rule, batches = RULES[name](), gradients(batches=6)
    for batch in batches[:3]:
        rule.compute_steps(batch)
    state = rule.state_dict()
    expected = [rule.compute_steps(batch) for batch in batches[3:]]
    rule.load_state_dict(state)
    for batch, steps in zip(batches[3:], expected, strict=True):
        assert_same_bits(rule.compute_steps(batch), steps)


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_a_state_that_was_loaded_can_be_loaded_again(name):
    rule, batches = RULES[name](), gradients(batches=6)
    for batch in batches[:3]:
        rule.compute_steps(batch)
    state = rule.state_dict()
    runs = []
    for _ in range(2):
        rule.load_state_dict(state)
        runs.append(b"".join(rule.compute_steps(batch)["w"].tobytes() for batch in batches[3:]))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("name", ["momentum", "adam"])
@pytest.mark.parametrize("when", ["taken", "loaded"])
def test_a_state_changed_afterwards_does_not_reach_the_rule(name, when):
    rule, left_alone, batches = RULES[name](), RULES[name](), gradients(batches=2)
    for each in (rule, left_alone):
        each.compute_steps(batches[0])
    state = rule.state_dict()
    if when == "loaded":
        rule.load_state_dict(state)
    for value in state.values():
        if isinstance(value, dict):
            value["w"][...] = 9
    assert_same_bits(rule.compute_steps(batches[1]), left_alone.compute_steps(batches[1]))


def test_plain_scaling_remembers_nothing():
    rule = Scale()
    rule.compute_steps({"w": np.ones(2)})
    assert rule.state_dict() == {}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_stateful_by_the_protocol(name):
    assert isinstance(RULES[name](), Stateful)


# ---- What is refused


@pytest.mark.parametrize("rate", [-0.1, float("nan")])
@pytest.mark.parametrize("make", [Scale, Momentum, Adam])
def test_a_bad_learning_rate_is_refused_by_its_value(make, rate):
    with pytest.raises(ValueError, match=f"learning_rate is {rate}; expected"):
        make(learning_rate=rate)


@pytest.mark.parametrize("value", [-0.1, 1.0, 2, float("nan")])
def test_a_bad_momentum_is_refused_by_its_value(value):
    with pytest.raises(ValueError, match=f"momentum is {value}; expected"):
        Momentum(0.1, value)


@pytest.mark.parametrize("value", [-0.1, 1.0, 2, float("nan")])
@pytest.mark.parametrize("argument", ["beta1", "beta2"])
def test_a_bad_beta_is_refused_by_its_value(argument, value):
    with pytest.raises(ValueError, match=f"{argument} is {value}; expected"):
        Adam(**{argument: value})


@pytest.mark.parametrize("value", [-1e-8, float("nan")])
def test_a_bad_epsilon_is_refused_by_its_value(value):
    with pytest.raises(ValueError, match=f"epsilon is {value}; expected"):
        Adam(epsilon=value)


@pytest.mark.parametrize("value", [-0.5, 1.5, float("nan")])
def test_a_bad_decay_factor_is_refused_by_its_value(value):
    with pytest.raises(ValueError, match=f"decay_factor is {value}; expected"):
        Adam(decay_factor=value)


def test_the_base_of_the_rules_cannot_be_made():
    with pytest.raises(TypeError):
        StepRule()
