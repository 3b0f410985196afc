"""Gradient descent in numpy."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from aloop.algorithms.base import Quantities, TrainingAlgorithm, Where, check_where
from aloop.algorithms.parameters import Array, check_like
from aloop.algorithms.step_rules import Scale, StepRule
from aloop.checkpoints.generators import check_generators
from aloop.errors import ParameterError
from aloop.offload import run_in_worker
from aloop.protocols import Batch

__all__ = ["GradientDescent"]

Gradients: TypeAlias = Callable[
    [Mapping[str, Array], Batch], tuple[Mapping[str, Any], Mapping[str, Array]]
]


class GradientDescent(TrainingAlgorithm):
    """Changes parameters, in place, by steps that a rule makes out of their gradients.

    Parameters:
        parameters: the arrays to train, by name; a `ParameterDict` for example.
        gradients: a function of the parameters and a batch. It returns the quantities of the
            batch by name (``{"cost": …}``, which is what monitoring sees) and the gradients by
            the names of the parameters and in their shapes.
        step_rule: how gradients become steps; `Scale` unless given.
        where: ``"thread"``: a step runs on the run's worker thread; ``"inline"``: on the event
            loop's, for steps far below 0.1 ms.
        generators: the random generators that `gradients` draws from, by name, whose states belong
            to a checkpoint; see `TrainingAlgorithm.register_generator`.

    Raises `ParameterError` when the gradients do not match the parameters; these are then as
    they were.
    """

    def __init__(
        self,
        parameters: Mapping[str, Array],
        gradients: Gradients,
        step_rule: StepRule | None = None,
        *,
        where: Where = "thread",
        generators: Mapping[str, Any] | None = None,
    ) -> None:
        self.parameters = parameters
        self.gradients = gradients
        self.step_rule = Scale() if step_rule is None else step_rule
        self.where = check_where(where)
        self._generators = check_generators(generators)

    async def process_batch(self, batch: Batch) -> Quantities:
        """Take one step and give the quantities of the batch, as they were before the step."""
        if self.where == "inline":
            return self.step(batch)
        return await run_in_worker(self.step, batch)

    def step(self, batch: Batch) -> Quantities:
        """Take one step, synchronously, on the thread that calls."""
        quantities, gradients = self.gradients(self.parameters, batch)
        arrays = {name: np.asarray(gradient) for name, gradient in gradients.items()}
        check_like("gradient", arrays, self.parameters)
        for name, step in self.step_rule.compute_steps(arrays).items():
            self.parameters[name][...] -= step
        return quantities

    def state_dict(self) -> dict[str, Any]:
        """Give what the step rule remembers. The parameters are the model's to give."""
        rule = self.step_rule
        return {"rule": type(rule).__name__, "step_rule": rule.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Put back what `state_dict` gave; `ParameterError` if it was another rule that gave it."""
        if state["rule"] != type(self.step_rule).__name__:
            raise ParameterError(
                f"the step rule is {type(self.step_rule).__name__}, but the state is of "
                f"{state['rule']}; expected the rule that it was; make it as it was"
            )
        self.step_rule.load_state_dict(state["step_rule"])
