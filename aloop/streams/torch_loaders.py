"""What there is to know of torch's data loaders, and how their states look in a checkpoint.

Nothing here imports torch.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from aloop.errors import StreamError

__all__ = [
    "GeneratorStates",
    "Rest",
    "as_states",
    "end_workers",
    "generators_of",
    "identity_of",
    "refuse_other_data",
    "samplers_of",
    "states_of",
    "with_tensors",
    "without_tensors",
]

GeneratorStates: TypeAlias = tuple[npt.NDArray[np.uint8], ...]

_TENSOR: Final = "__tensor__"
_BYTES: Final = "__bytes__"


class Rest(Iterable[Any]):
    """What a sampler gives after a number of batches."""

    def __init__(self, sampler: Iterable[Any], batches: int) -> None:
        self._sampler = sampler
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self._sampler), self._batches, None)


def samplers_of(loader: Any) -> list[Any]:
    """Give what orders the data of a loader."""
    batch_sampler = loader.batch_sampler
    return _unique([loader.sampler, batch_sampler, getattr(batch_sampler, "sampler", None)])


def generators_of(loader: Any) -> list[Any]:
    """Give the generators of torch that a loader and its samplers draw from."""
    found = [getattr(part, "generator", None) for part in (loader, *samplers_of(loader))]
    return _unique([each for each in found if hasattr(each, "initial_seed")])


def _unique(things: list[Any]) -> list[Any]:
    return list({id(each): each for each in things}.values())  # one may be in several roles


def states_of(generators: Iterable[Any]) -> GeneratorStates:
    """Give the states of generators, as arrays that nobody changes any more."""
    return tuple(generator.get_state().numpy().copy() for generator in generators)


def identity_of(loader: Any) -> dict[str, Any]:
    """Give what the number, the size and the order of the batches depend on."""
    return {
        "examples": _length_of(loader.dataset),
        "batch_size": loader.batch_size,
        "batches": _length_of(loader),
        "samplers": ", ".join(type(sampler).__name__ for sampler in samplers_of(loader)),
    }


def _length_of(thing: Any) -> int | None:
    try:
        return len(thing)
    except (TypeError, NotImplementedError):  # torch's own way to say that it has none
        return None


def refuse_other_data(state: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise `StreamError` if a state is not of the data that `identity_of` tells of."""
    words = {
        "examples": "{} examples in its data set",
        "batch_size": "batches of {}",
        "batches": "{} batches in an epoch",
        "samplers": "the samplers {}",
    }
    for name, form in words.items():
        if state.get(name) != own[name]:
            raise StreamError(
                f"the data or its order has changed: the stream's state is of a data loader with "
                f"{form.format(state.get(name))}, and this one has {form.format(own[name])}; "
                "expected the same batches of the same data; make the loader as it was, or call "
                "reset() to begin anew"
            )


def as_states(states: Any) -> GeneratorStates | None:
    """Give back what `states_of` gave, None if it is something else."""
    if not isinstance(states, (list, tuple)):
        return None
    return tuple(np.asarray(state, np.uint8) for state in cast("Iterable[Any]", states))


def end_workers(iterator: Any) -> None:
    """End the worker processes of a loader's iterator, if it has any."""
    # torch ends the workers of an iterator that nobody holds; but the traceback of an error holds
    # it for as long as somebody looks at the error.
    end = getattr(iterator, "_shutdown_workers", None)
    if end is not None:
        end()


def without_tensors(value: Any) -> Any:
    """Give a copy of a state with what a checkpoint can hold in place of tensors and bytes."""
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        return {key: without_tensors(item) for key, item in items}
    if isinstance(value, (list, tuple)):
        copies = [without_tensors(item) for item in cast("list[Any]", value)]
        return tuple(copies) if isinstance(value, tuple) else copies
    if isinstance(value, (bytes, bytearray)):
        return {_BYTES: np.frombuffer(value, np.uint8).copy()}
    if isinstance(value, np.ndarray):
        return cast("npt.NDArray[Any]", value).copy()
    if hasattr(value, "detach"):
        return {_TENSOR: value.detach().cpu().numpy().copy()}
    return value


def with_tensors(value: Any, from_numpy: Callable[[Any], Any]) -> Any:
    """Give a copy of a state as it was before `without_tensors`.

    Parameters:
        value: the state.
        from_numpy: makes a tensor of an array.
    """
    if isinstance(value, Mapping):
        state = cast("Mapping[Any, Any]", value)
        if set(state) == {_TENSOR}:
            return from_numpy(np.array(state[_TENSOR]))
        if set(state) == {_BYTES}:
            return np.asarray(state[_BYTES]).tobytes()
        return {key: with_tensors(item, from_numpy) for key, item in state.items()}
    if isinstance(value, (list, tuple)):
        copies = [with_tensors(item, from_numpy) for item in cast("list[Any]", value)]
        return tuple(copies) if isinstance(value, tuple) else copies
    return value
