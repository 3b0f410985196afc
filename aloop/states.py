"""The state of what takes part in a training, by one protocol: `state_dict`, `load_state_dict`.

A model may give its parameters instead, by `get_parameter_values` and `set_parameter_values`, or be
a dictionary of arrays.
"""

from collections.abc import Mapping, MutableMapping
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np

from aloop.algorithms.base import FunctionAlgorithm
from aloop.algorithms.parameters import ParameterDict
from aloop.checkpoints.generators import generator_states, load_generator_states
from aloop.errors import CheckpointValueError
from aloop.protocols import Stateful

__all__ = [
    "algorithm_state",
    "has_state",
    "is_stateful",
    "load_algorithm_state",
    "load_model_state",
    "load_state",
    "model_of",
    "model_state",
    "state_keeper",
]


@runtime_checkable
class _Parameterised(Protocol):
    """A model that gives its parameters, as those of Blocks do."""

    def get_parameter_values(self) -> Mapping[str, Any]: ...

    def set_parameter_values(self, values: Mapping[str, Any], /) -> None: ...


def is_stateful(thing: object) -> bool:
    """Say whether this is an object whose state can be taken out and put back."""
    return isinstance(thing, Stateful) and not isinstance(thing, type)


def state_keeper(algorithm: Any) -> Any:
    """Give what has the state of an algorithm: itself, or what its function is a method of."""
    if is_stateful(algorithm):
        return algorithm
    if isinstance(algorithm, FunctionAlgorithm):
        for keeper in (algorithm.function, getattr(algorithm.function, "__self__", None)):
            if is_stateful(keeper):
                return keeper
    return None


def load_state(what: str, thing: Any, state: Any) -> None:
    """Put back a state that was saved.

    Raises `CheckpointValueError` when it does not fit, naming what it is of.
    """
    if not is_stateful(thing):
        raise CheckpointValueError(
            f"the checkpoint has a state of {what}, which has no load_state_dict() now; expected "
            "what it was saved with; make it as it was"
        )
    try:
        thing.load_state_dict(state)
    except Exception as error:
        error.add_note(f"raised when the state of {what} was loaded from a checkpoint")
        raise


def model_of(model: Any, algorithm: Any) -> Any:
    """Give what a training changes: its model, or the parameters of its algorithm, or None."""
    return getattr(algorithm, "parameters", None) if model is None else model


def has_state(model: Any) -> bool:
    """Say whether a model has a state, without taking it, which may take long."""
    return is_stateful(model) or isinstance(model, _Parameterised | Mapping)


def model_state(model: Any) -> Any:
    """Give the state of a model, not always a copy, or None if it has none."""
    if type(model) is ParameterDict:
        return dict(model)  # whose own state is a copy, and what is taken here is copied anyway
    if is_stateful(model):
        return model.state_dict()
    if isinstance(model, _Parameterised):
        return dict(model.get_parameter_values())
    if isinstance(model, Mapping):
        return dict(cast("Mapping[Any, Any]", model))
    return None


def load_model_state(model: Any, state: Any) -> None:
    """Put back the state of a model.

    Raises `CheckpointValueError` when there is none in the checkpoint, or it does not fit: then
    the model is as it was, where that can be known.
    """
    if state is None:
        raise CheckpointValueError(
            "the checkpoint has no state of a model, but the loop has a model; expected one that "
            "was saved with it; leave model= out, or load another checkpoint"
        )
    if not has_state(model):
        raise CheckpointValueError(
            f"the checkpoint has the state of a model, but the loop's is {model!r:.80}; expected "
            "one with load_state_dict() or set_parameter_values(); give it as MainLoop(…, model=…)"
        )
    _check_shapes(model_state(model), state)
    if is_stateful(model):
        load_state("the model", model, state)
    elif isinstance(model, _Parameterised):
        model.set_parameter_values(state)
    else:
        _load_mapping(model, state)


def _check_shapes(current: Any, state: Any) -> None:
    if not (isinstance(current, Mapping) and isinstance(state, Mapping)):
        return
    saved = cast("Mapping[Any, Any]", state)
    for name, value in cast("Mapping[Any, Any]", current).items():
        if name not in saved or not isinstance(saved[name], np.ndarray):
            continue
        shape, was = np.shape(value), np.shape(saved[name])
        if shape != was:
            raise CheckpointValueError(
                f"the parameter {name!r} of the model has shape {shape}, but {was} in the "
                "checkpoint; expected the same; make the model as it was, or load another "
                "checkpoint"
            )


def _load_mapping(model: Mapping[Any, Any], state: Mapping[Any, Any]) -> None:
    if model.keys() != state.keys():
        raise CheckpointValueError(
            f"the model has {', '.join(map(str, model)) or 'nothing'}, but the checkpoint has "
            f"{', '.join(map(str, state)) or 'nothing'}; expected the same names; make the model "
            "as it was, or load another checkpoint"
        )
    for name, value in state.items():
        if isinstance(model[name], np.ndarray):
            model[name][...] = value  # in place, for others may hold it
        else:
            cast("MutableMapping[Any, Any]", model)[name] = value


def algorithm_state(algorithm: Any, model: Any) -> dict[str, Any]:
    """Give the state of an algorithm, and of the random generators that it has registered."""
    keeper = state_keeper(algorithm)
    return {
        # A model that trains itself is saved once.
        "state": None if keeper is None or keeper is model else keeper.state_dict(),
        "generators": generator_states(getattr(algorithm, "generators", {})),
    }


def load_algorithm_state(algorithm: Any, state: Mapping[str, Any]) -> None:
    """Put back what `algorithm_state` gave."""
    load_generator_states(getattr(algorithm, "generators", {}), state["generators"])
    if state["state"] is not None:
        load_state(f"the algorithm {algorithm!r:.80}", state_keeper(algorithm), state["state"])
