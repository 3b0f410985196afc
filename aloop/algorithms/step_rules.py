"""Step rules: how gradients become steps.

A rule turns the gradients of one batch into steps, and a parameter then becomes
``parameter - step``. A rule's numbers are attributes that may be set during the training; they are
used as Python's floats, so that steps keep the dtype of their gradients.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from math import inf, sqrt
from typing import Any

import numpy as np

from aloop.algorithms.parameters import Array
from aloop.errors import ParameterError

__all__ = ["Adam", "Momentum", "Scale", "StepRule"]


class StepRule(ABC):
    """Base of the step rules."""

    @abstractmethod
    def compute_steps(self, gradients: Mapping[str, Array]) -> dict[str, Array]:
        """Give the step of each parameter, in the shape and dtype of its gradient."""

    def state_dict(self) -> dict[str, Any]:
        """Give what the rule remembers between batches, as JSON values and arrays."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:  # noqa: B027 - need not
        """Put back what `state_dict` gave."""


class Scale(StepRule):
    """Plain gradient descent: ``step = learning_rate * gradient``."""

    def __init__(self, learning_rate: float = 1.0) -> None:
        self.learning_rate = _rate("learning_rate", learning_rate)

    def compute_steps(self, gradients: Mapping[str, Array]) -> dict[str, Array]:
        """Scale the gradients."""
        rate = float(self.learning_rate)
        return {name: rate * gradient for name, gradient in gradients.items()}


class Momentum(StepRule):
    """Gradient descent with momentum: the step is the velocity, which carries on.

    ``velocity = momentum * velocity + learning_rate * gradient``. See Polyak, "Some methods of
    speeding up the convergence of iteration methods", 1964.
    """

    def __init__(self, learning_rate: float = 1.0, momentum: float = 0.0) -> None:
        self.learning_rate = _rate("learning_rate", learning_rate)
        self.momentum = _fraction("momentum", momentum)
        self._velocity: dict[str, Array] = {}

    def compute_steps(self, gradients: Mapping[str, Array]) -> dict[str, Array]:
        """Move the velocities along and give a copy of them."""
        rate, momentum = float(self.learning_rate), float(self.momentum)
        for name, gradient in gradients.items():
            push = rate * gradient
            velocity = self._velocity.get(name)
            self._velocity[name] = push if velocity is None else momentum * velocity + push
        return {name: self._velocity[name].copy() for name in gradients}

    def state_dict(self) -> dict[str, Any]:
        """Give the velocities."""
        return {"velocity": _copies(self._velocity)}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Put the velocities back."""
        self._velocity = _copies(state["velocity"])


class Adam(StepRule):
    """Adam, in the efficient order of the end of section 2 of the paper.

    See Kingma and Ba, "Adam: A Method for Stochastic Optimization", arXiv:1412.6980; the decay of
    beta1 by ``decay_factor ** (t - 1)`` is that of version 8 of the paper, section 4.

    Parameters:
        learning_rate: the step size, alpha in the paper.
        beta1: how much of the mean of the gradients stays at each step.
        beta2: how much of the mean of their squares stays at each step.
        epsilon: added to the root of the mean of the squares, against division by zero.
        decay_factor: how much of `beta1` stays at each step; 1 for the common form of Adam.
    """

    def __init__(
        self,
        learning_rate: float = 0.002,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        decay_factor: float = 1.0 - 1e-8,
    ) -> None:
        self.learning_rate = _rate("learning_rate", learning_rate)
        self.beta1 = _fraction("beta1", beta1)
        self.beta2 = _fraction("beta2", beta2)
        self.epsilon = _rate("epsilon", epsilon)
        if not 0 <= decay_factor <= 1:
            raise ParameterError(f"decay_factor is {decay_factor!r}; expected a number from 0 to 1")
        self.decay_factor = decay_factor
        self._time = 0
        self._mean: dict[str, Array] = {}
        self._square: dict[str, Array] = {}

    def compute_steps(self, gradients: Mapping[str, Array]) -> dict[str, Array]:
        """Move both means along and give the steps."""
        self._time += 1
        t, beta2, epsilon = self._time, float(self.beta2), float(self.epsilon)
        rate = float(self.learning_rate) * sqrt(1 - beta2**t) / (1 - float(self.beta1) ** t)
        beta1 = float(self.beta1) * float(self.decay_factor) ** (t - 1)
        steps: dict[str, Array] = {}
        for name, gradient in gradients.items():
            if name not in self._mean:
                self._mean[name] = np.zeros_like(gradient)
                self._square[name] = np.zeros_like(gradient)
            mean = self._mean[name] = beta1 * self._mean[name] + (1 - beta1) * gradient
            square = self._square[name] = beta2 * self._square[name] + (1 - beta2) * gradient**2
            steps[name] = rate * mean / (np.sqrt(square) + epsilon)
        return steps

    def state_dict(self) -> dict[str, Any]:
        """Give the number of steps taken and both means."""
        return {
            "time": self._time,
            "mean": _copies(self._mean),
            "square": _copies(self._square),
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Put the number of steps and both means back."""
        self._time = int(state["time"])
        self._mean = _copies(state["mean"])
        self._square = _copies(state["square"])


def _copies(arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name: np.array(array) for name, array in arrays.items()}


def _rate(name: str, value: float) -> float:
    if not 0 <= value < inf:
        raise ParameterError(f"{name} is {value!r}; expected a number from 0 on")
    return value


def _fraction(name: str, value: float) -> float:
    if not 0 <= value < 1:
        raise ParameterError(f"{name} is {value!r}; expected a number from 0 to below 1")
    return value
