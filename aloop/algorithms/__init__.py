"""Training algorithms: what the main loop does with a batch."""

from aloop.algorithms.base import FunctionAlgorithm, TrainingAlgorithm, as_algorithm
from aloop.algorithms.gradient_descent import GradientDescent
from aloop.algorithms.parameters import ParameterDict
from aloop.algorithms.step_rules import Adam, Momentum, Scale, StepRule

__all__ = [
    "Adam",
    "FunctionAlgorithm",
    "GradientDescent",
    "Momentum",
    "ParameterDict",
    "Scale",
    "StepRule",
    "TrainingAlgorithm",
    "as_algorithm",
]
