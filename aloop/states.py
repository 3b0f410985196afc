"""The state of what takes part in a training, by one protocol: `state_dict`, `load_state_dict`."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

from aloop.algorithms.base import FunctionAlgorithm
from aloop.checkpoints.generators import generator_states, load_generator_states
from aloop.errors import CheckpointValueError
from aloop.protocols import Stateful

__all__ = [
    "algorithm_state",
    "is_stateful",
    "load_algorithm_state",
    "load_state",
    "state_keeper",
    "state_of",
    "told",
]


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


def state_of(what: str, thing: Stateful) -> Any:
    """Give the state of a thing; what that raises is told what it was the state of."""
    try:
        return thing.state_dict()
    except Exception as error:
        error.add_note(f"raised when the state of {what} was taken for a checkpoint")
        raise


def load_state(what: str, thing: Any, state: Any) -> None:
    """Put back a state that was saved.

    Raises `CheckpointValueError` when it does not fit, naming what it is of.
    """
    if not is_stateful(thing):
        raise CheckpointValueError(
            f"the checkpoint has a state of {what}, which has no load_state_dict() now; expected "
            "what it was saved with; make it as it was"
        )
    with told(what):
        thing.load_state_dict(state)


@contextmanager
def told(what: str) -> Generator[None]:
    """Tell what the body raises of what the state was that it loads."""
    try:
        yield
    except Exception as error:
        error.add_note(f"raised when the state of {what} was loaded from a checkpoint")
        raise


def algorithm_state(algorithm: Any, model: Any) -> dict[str, Any]:
    """Give the state of an algorithm, and of the random generators that it has registered."""
    keeper = state_keeper(algorithm)
    return {
        # A model that trains itself is saved once.
        "state": None if keeper is None or keeper is model else state_of("the algorithm", keeper),
        "generators": generator_states(getattr(algorithm, "generators", {})),
    }


def load_algorithm_state(algorithm: Any, state: Mapping[str, Any]) -> None:
    """Put back what `algorithm_state` gave."""
    load_generator_states(getattr(algorithm, "generators", {}), state["generators"])
    if state["state"] is not None:
        load_state(f"the algorithm {algorithm!r:.80}", state_keeper(algorithm), state["state"])
