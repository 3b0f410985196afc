"""The states of random generators, which belong to what a training goes on from."""

import random
from collections.abc import Mapping
from typing import Any, Final, Protocol, cast

import numpy as np

from aloop.errors import ArgumentError, CheckpointValueError

__all__ = [
    "check_generators",
    "generator_states",
    "global_states",
    "load_generator_states",
    "load_global_states",
]

_EXPECTED: Final = (
    "a numpy.random.Generator, BitGenerator or RandomState, a random.Random, or an object with "
    "getstate() and setstate()"
)


class _HasState(Protocol):
    def getstate(self) -> Any: ...

    def setstate(self, state: Any, /) -> None: ...


def check_generators(generators: object) -> dict[str, Any]:
    """Give random generators by name, or raise `ArgumentError` for what is none."""
    if generators is None:
        return {}
    if not isinstance(generators, Mapping):
        raise ArgumentError(
            f"generators is {generators!r:.80}; expected a dictionary of random generators by "
            "name, such as {'dropout': numpy.random.default_rng(3)}"
        )
    checked = dict(cast("Mapping[Any, Any]", generators))
    for name, generator in checked.items():
        if not isinstance(name, str):
            raise ArgumentError(f"generators has the name {name!r}; expected text")
        if _source(generator) is None:
            raise ArgumentError(
                f"the generator {name!r} is {generator!r:.80}; expected {_EXPECTED}"
            )
    return checked


def _source(generator: Any) -> Any:
    """Give what has the state: a numpy BitGenerator, or what has getstate; None without one."""
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator
    if isinstance(generator, np.random.RandomState):
        return _RandomState(generator)
    if isinstance(generator, np.random.BitGenerator):
        return generator
    if isinstance(generator, random.SystemRandom):
        return None  # its numbers come from outside
    has_state = hasattr(generator, "getstate") and hasattr(generator, "setstate")
    return generator if has_state and not isinstance(generator, type) else None


class _RandomState:
    # As text, or numpy.random would be imported with aloop.
    def __init__(self, generator: "np.random.RandomState") -> None:
        self._generator = generator

    def getstate(self) -> Any:
        return self._generator.get_state(legacy=False)

    def setstate(self, state: Any, /) -> None:
        self._generator.set_state(state)


def _state(generator: Any) -> Any:
    source = _source(generator)
    if isinstance(source, np.random.BitGenerator):
        return source.state
    return cast("_HasState", source).getstate()


def _load(name: str, generator: Any, state: Any) -> None:
    source = _source(generator)
    try:
        if isinstance(source, np.random.BitGenerator):
            source.state = state
        else:
            cast("_HasState", source).setstate(state)
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise CheckpointValueError(
            f"the random generator {name!r} is {generator!r:.80}, and cannot take the state that "
            f"was saved: {error}; expected the kind of generator that it was; make it as it was"
        ) from error


def generator_states(generators: Mapping[str, Any]) -> dict[str, Any]:
    """Give the states of random generators by name."""
    return {name: _state(generator) for name, generator in generators.items()}


def load_generator_states(generators: Mapping[str, Any], states: Mapping[str, Any]) -> None:
    """Put back the states of random generators.

    Raises `CheckpointValueError` when one is not there that has a state, or has no state.
    """
    if generators.keys() != states.keys():
        raise CheckpointValueError(
            f"the checkpoint has the random generators {', '.join(states) or 'none'}; the "
            f"algorithm has {', '.join(generators) or 'none'}; register those that it had"
        )
    for name, state in states.items():
        _load(name, generators[name], state)


def global_states() -> dict[str, Any]:
    """Give the states of the generators that the modules `random` and ``numpy.random`` share."""
    return {
        "random": random.getstate(),
        "numpy": np.random.get_state(legacy=False),  # noqa: NPY002 - whoever uses it has asked
    }


def load_global_states(states: Mapping[str, Any]) -> None:
    """Put back the states that `global_states` gave."""
    random.setstate(states["random"])
    np.random.set_state(states["numpy"])  # noqa: NPY002 - whoever uses it has asked
