"""The state of a model: what a training changes.

A model gives its state by `state_dict` and `load_state_dict`; or its parameters, by
`get_parameter_values` and `set_parameter_values`, as those of Blocks do; or it is a dictionary of
arrays, perhaps of dictionaries of such, which are changed in place.
"""

import logging
from collections.abc import Mapping
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np

from aloop.algorithms.parameters import Array, ParameterDict
from aloop.errors import CheckpointValueError
from aloop.states import is_stateful, told

__all__ = ["has_state", "load_model_state", "model_of", "model_state"]

_logger = logging.getLogger("aloop")


@runtime_checkable
class _Parameterised(Protocol):
    """A model that gives its parameters, as those of Blocks do."""

    def get_parameter_values(self) -> Mapping[str, Any]: ...

    def set_parameter_values(self, values: Mapping[str, Any], /) -> None: ...


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
    current = model_state(model)
    _check_fit(current, state, "")
    with told("the model"):
        if is_stateful(model):
            model.load_state_dict(state)
        elif isinstance(model, _Parameterised):
            _check_names(current, state, "")
            model.set_parameter_values(state)
        else:
            _fill(model, state, "", for_real=False)
            _fill(model, state, "", for_real=True)


def _check_fit(current: Any, state: Any, name: str) -> None:
    """Refuse arrays of other shapes or kinds than a model has; another precision is said."""
    ours, saved = _items(current), _items(state)
    if ours is not None and saved is not None:
        for key in ours.keys() & saved.keys():
            _check_fit(ours[key], saved[key], _joined(name, key))
    elif isinstance(state, np.ndarray) and hasattr(current, "shape"):
        _check_array(current, cast("Array", state), name)


def _items(value: Any) -> dict[Any, Any] | None:
    """Give what is in a container by key or by number, None for what is none."""
    if isinstance(value, Mapping):
        return dict(cast("Mapping[Any, Any]", value))
    if isinstance(value, list | tuple):
        return dict(enumerate(cast("list[Any]", value)))
    return None


def _check_array(current: Any, saved: Array, name: str) -> None:
    if tuple(current.shape) != saved.shape:
        raise CheckpointValueError(
            f"the parameter {name!r} of the model has shape {tuple(current.shape)}, but "
            f"{saved.shape} in the checkpoint; expected the same; make the model as it was, or "
            "load another checkpoint"
        )
    if not isinstance(current, np.ndarray) or cast("Array", current).dtype == saved.dtype:
        return
    dtype = cast("Array", current).dtype
    if not np.can_cast(saved.dtype, dtype, "same_kind"):
        raise CheckpointValueError(
            f"the parameter {name!r} of the model has dtype {dtype}, but {saved.dtype} in the "
            "checkpoint; expected the same; make the model as it was"
        )
    _logger.warning(
        "the parameter %r of the model has dtype %s, but %s in the checkpoint: it is converted",
        name,
        dtype,
        saved.dtype,
    )


def _check_names(current: Mapping[Any, Any], state: Mapping[Any, Any], name: str) -> None:
    if current.keys() != state.keys():
        where = f"{name!r} in the model" if name else "the model"
        raise CheckpointValueError(
            f"{where} has {', '.join(map(str, current)) or 'nothing'}, but the checkpoint has "
            f"{', '.join(map(str, state)) or 'nothing'}; expected the same names; make the model "
            "as it was, or load another checkpoint"
        )


def _fill(model: Any, state: Any, name: str, *, for_real: bool) -> None:
    """Put values back where they were, for others may hold the arrays and what they are in.

    Without `for_real` only what would be raised is.
    """
    ours, saved = _items(model), _items(state)
    if ours is None or saved is None:
        raise _misfit(name, model, state)
    if isinstance(model, list) and not any(map(_is_held, cast("list[Any]", model))):
        if for_real:
            model[:] = list(saved.values())
        return
    _check_names(ours, saved, name)
    for key, value in ours.items():
        inner = _joined(name, key)
        if isinstance(value, np.ndarray):
            if not isinstance(saved[key], np.ndarray | np.generic | float | int):
                raise _misfit(inner, cast("Any", value), saved[key])
            if for_real:
                value[...] = saved[key]
        elif _is_held(value):
            _fill(value, saved[key], inner, for_real=for_real)
        elif isinstance(model, tuple):
            if value != saved[key]:
                raise _misfit(inner, value, saved[key])
        elif for_real:
            model[key] = saved[key]


def _is_held(value: object) -> bool:
    return isinstance(value, np.ndarray | Mapping | list | tuple)


def _misfit(name: str, ours: object, saved: object) -> CheckpointValueError:
    return CheckpointValueError(
        f"{name!r} in the model is {ours!r:.80}, but {saved!r:.80} in the checkpoint, which cannot "
        "be put in its place; expected the same kind of value; make the model as it was"
    )


def _joined(name: str, key: object) -> str:
    return f"{name}/{key}" if name else str(key)
