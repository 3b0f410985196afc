"""What a Fuel stream is made of: the streams, schemes and datasets in it, and what they draw from.

A part has a name, the way to it through the attributes, as ``data_stream.iteration_scheme.rng``.
Fuel is not typed, and is not imported here. Hence Any, and parts are known by what they can do.
"""

import random
from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import partial
from itertools import islice
from types import FunctionType, MethodType, ModuleType
from typing import Any, Final, cast

import numpy as np

from aloop.protocols import Stateful

__all__ = [
    "drawn_from_in_epochs",
    "generators_in",
    "is_dataset",
    "is_scheme",
    "is_stream",
    "parts_of",
]

_MAX_ITEMS: Final = 100  # of a container that is looked into; longer ones hold data


def is_stream(part: object) -> bool:
    """Say whether a part is a stream or a transformer."""
    return hasattr(type(part), "get_epoch_iterator")


def is_scheme(part: object) -> bool:
    """Say whether a part is an iteration scheme."""
    return hasattr(type(part), "get_request_iterator")


def is_dataset(part: object) -> bool:
    """Say whether a part is a dataset."""
    return hasattr(type(part), "provides_sources")


def parts_of(stream: Any) -> dict[str, Any]:
    """Give the streams, schemes, datasets and functions that a stream is made of, by name.

    The stream itself is the first, and its name is empty. What is there twice has its first name.
    """
    found: dict[str, Any] = {}
    seen: set[int] = set()
    _find("", stream, found, seen)
    return found


def _find(name: str, part: Any, found: dict[str, Any], seen: set[int]) -> None:
    if id(part) in seen:
        return
    seen.add(id(part))
    found[name] = part
    function: object = part
    if isinstance(function, partial):
        _find(f"{name}.func", cast("partial[Any]", function).func, found, seen)
    if not (is_stream(part) or is_scheme(part) or is_dataset(part)):
        return  # a function, which may be a method of the whole program
    for attribute, value in _values(part):
        # The example scheme of a dataset is not the one that a stream goes by.
        is_ours = is_stream(value) or is_dataset(value) or _is_function(value)
        if is_ours or (is_scheme(value) and not is_dataset(part)):
            _find(f"{name}.{attribute}" if name else attribute, value, found, seen)


def _is_function(value: object) -> bool:
    return callable(value) and not isinstance(value, (type, ModuleType))


def _values(part: Any) -> Iterator[tuple[str, Any]]:
    """Give what a part holds, and what the containers in it do."""
    if isinstance(part, partial):
        function = cast("partial[Any]", part)
        held = {"func": function.func, "args": function.args, **function.keywords}
    elif isinstance(part, MethodType):
        held = vars(part.__self__) if hasattr(part.__self__, "__dict__") else {}
    elif isinstance(part, FunctionType):
        held = dict(
            zip(part.__code__.co_freevars, map(_contents, part.__closure__ or ()), strict=True)
        )
    else:
        held: dict[str, Any] = getattr(part, "__dict__", {})
    # A copy, for a thread may read the stream meanwhile.
    for name, value in list(held.items()):
        yield name, value
        if isinstance(value, dict):
            items = list(islice(cast("dict[Any, Any]", value).items(), _MAX_ITEMS + 1))
        elif isinstance(value, (list, tuple)):
            items = list(enumerate(cast("list[Any]", value)[: _MAX_ITEMS + 1]))
        else:
            continue
        if len(items) <= _MAX_ITEMS:
            for key, item in items:
                yield f"{name}.{key}", item


def _contents(cell: Any) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # it has none yet
        return None


def generators_in(stream: Any) -> dict[str, Any]:
    """Give what of a stream has a state, by name.

    That is the random generators that its streams, schemes, datasets and functions hold, and those
    of the former that have a `state_dict` and a `load_state_dict`, each as something that
    `generator_states` takes. A generator that is held twice has its first name.
    """
    return _once(_held(stream))


def drawn_from_in_epochs(stream: Any) -> dict[str, Any]:
    """Give those of them that may change while an epoch is under way.

    Fuel's own schemes draw when an epoch begins, and the state of a RandomState takes 40 us.
    """
    held = _held(stream)
    changing = {id(generator) for _, generator, is_of_scheme in held if not is_of_scheme}
    return {name: each for name, each in _once(held).items() if id(each) in changing}


def _once(held: list[tuple[str, Any, bool]]) -> dict[str, Any]:
    first: dict[int, tuple[str, Any]] = {}
    for name, generator, _ in held:
        first.setdefault(id(generator), (name, generator))
    return dict(first.values())


def _held(stream: Any) -> list[tuple[str, Any, bool]]:
    """Give generators, each with its name, and whether one of Fuel's own schemes holds it."""
    found: list[tuple[str, Any, bool]] = []
    for name, part in parts_of(stream).items():
        if (is_stream(part) or is_scheme(part) or is_dataset(part)) and isinstance(part, Stateful):
            found.append((f"{name}.state_dict" if name else "state_dict", _Told(part), False))
        is_of_scheme = is_scheme(part) and type(part).__module__ == "fuel.schemes"
        found += [
            (f"{name}.{attribute}" if name else attribute, value, is_of_scheme)
            for attribute, value in _values(part)
            if _is_generator(value)
        ]
    return found


def _is_generator(value: object) -> bool:
    if isinstance(value, random.Random):
        return not isinstance(value, random.SystemRandom)  # whose numbers come from outside
    return isinstance(value, (np.random.Generator, np.random.RandomState))


class _Told:
    """Tells its state by its own `state_dict`, as a random generator does."""

    def __init__(self, part: Stateful) -> None:
        self._part = part

    def getstate(self) -> dict[str, Any]:
        return deepcopy(self._part.state_dict())  # which may be what it goes by

    def setstate(self, state: Mapping[str, Any], /) -> None:
        self._part.load_state_dict(state)
