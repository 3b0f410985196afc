"""What a Fuel stream is made of: the streams, schemes and datasets in it, and what they draw from.

A part has a name, the way to it through the attributes, as ``data_stream.iteration_scheme.rng``.
Fuel is not typed, and is not imported here. Hence Any, and parts are known by what they can do.
"""

import logging
import random
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from functools import partial
from itertools import islice
from types import BuiltinMethodType, FunctionType, MemberDescriptorType, MethodType, ModuleType
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
_MAX_OBJECTS: Final = 2000  # that are looked into for the generators of one part, the nearest first
_MAX_DEPTH: Final = 30

_PLAIN: Final = (str, bytes, int, float, complex, type(None), np.ndarray, np.generic, ModuleType)

_CLOSED: Final = {"aloop", "asyncio", "h5py", "logging", "multiprocessing", "tables", "threading"}
"""The packages whose objects are not looked into, nor those of classes on top of theirs: they may
hold the whole program, as a main loop does."""

_OF_AN_EPOCH: Final = ("child_epoch_iterator", "child_epoch_iterators")

_logger = logging.getLogger("aloop")


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
    """Give the streams, schemes and datasets that a stream is made of, by name.

    The stream itself is the first, and its name is empty. What is there twice has its first name.
    """
    found: dict[str, Any] = {}
    _find("", stream, found, set())
    return found


def _find(name: str, part: Any, found: dict[str, Any], seen: set[int]) -> None:
    if id(part) in seen:
        return
    seen.add(id(part))
    found[name] = part
    for attribute, value in _held_by(part):
        items = [(attribute, value)]
        if _is_container(value):
            items = [(f"{attribute}.{key}", item) for key, item in _items(value)]
        for key, item in items:
            # The example scheme of a dataset is not the one that a stream goes by.
            is_ours = is_stream(item) or is_dataset(item)
            if is_ours or (is_scheme(item) and not is_dataset(part)):
                _find(_under(name, key), item, found, seen)


def _under(name: str, attribute: str) -> str:
    return f"{name}.{attribute}" if name else attribute


# What an object holds.


def _held_by(holder: object) -> Iterator[tuple[str, object]]:
    """Give what an object, a function, a class or a container holds, by name."""
    if isinstance(holder, type):
        yield from _of_class(holder, set())
        return
    if isinstance(holder, partial):
        function = cast("partial[Any]", holder)
        yield from [("func", function.func), ("args", function.args), *function.keywords.items()]
    elif isinstance(holder, FunctionType):
        yield from _held_by_function(holder)
    elif isinstance(holder, BuiltinMethodType):
        yield "__self__", holder.__self__
    elif _is_container(holder):
        yield from _items(holder)
    # A copy, for a thread may read the stream meanwhile.
    own: dict[str, object] = dict(getattr(cast("object", holder), "__dict__", {}))
    yield from own.items()
    if not isinstance(holder, FunctionType):
        yield from _in_slots(cast("object", holder))
        yield from _of_class(_class_of(cast("object", holder)), set(own))


def _held_by_function(function: FunctionType) -> Iterator[tuple[str, object]]:
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        yield name, _contents(cell)
    defaults = function.__defaults__ or ()
    names = code.co_varnames[: code.co_argcount]
    yield from zip(names[len(names) - len(defaults) :], defaults, strict=False)
    yield from (function.__kwdefaults__ or {}).items()


def _contents(cell: Any) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # it has none yet
        return None


def _in_slots(holder: object) -> Iterator[tuple[str, object]]:
    for kind in type(holder).__mro__:
        if "__slots__" in vars(kind):
            for name, slot in list(vars(kind).items()):
                if isinstance(slot, MemberDescriptorType):
                    with suppress(AttributeError):  # it is empty
                        yield name, slot.__get__(holder)


def _of_class(cls: type, hidden: set[str]) -> Iterator[tuple[str, object]]:
    """Give what the classes of an object hold, which may be the defaults of a method."""
    for kind in cls.__mro__:
        if _top(kind) in sys.stdlib_module_names or _top(kind) == "fuel":
            continue
        for name, value in list(vars(kind).items()):
            if name not in hidden:
                hidden.add(name)
                is_wrapped = isinstance(value, (staticmethod, classmethod))
                yield name, cast("Any", value).__func__ if is_wrapped else value


def _class_of(value: object) -> type:
    return type(value)


def _top(kind: type) -> str:
    """Name the package of a class."""
    return kind.__module__.partition(".")[0]


def _is_container(value: object) -> bool:
    return isinstance(value, (dict, list, tuple, deque))


def _items(container: Any) -> list[tuple[str, object]]:
    is_dict = isinstance(container, dict)
    pairs = cast("dict[Any, Any]", container).items() if is_dict else enumerate(container)
    items = list(islice(pairs, _MAX_ITEMS + 1))
    if len(items) > _MAX_ITEMS:
        return []
    # The text of other keys may be another one in another process.
    return [
        (f"{key}" if isinstance(key, (str, int, float)) else f"#{number}", item)
        for number, (key, item) in enumerate(items)
    ]


# What it draws from.


def generators_in(stream: Any, *, warns: bool = False) -> dict[str, Any]:
    """Give what of a stream has a state, by name.

    That is the random generators that its streams, schemes and datasets hold, themselves or in
    what they hold: functions, their closures, defaults and attributes, and other objects. And
    those of the former that have a `state_dict` and a `load_state_dict`, each as something that
    `generator_states` takes. A generator that is held twice has its first name.

    Parameters:
        stream: a stream, or a part of one.
        warns: whether there is a warning if a part holds so much that not all is looked into.
    """
    return _once(_held(stream, warns=warns))


def drawn_from_in_epochs(stream: Any) -> dict[str, Any]:
    """Give those of them that may change while an epoch is under way.

    Fuel's own schemes draw when an epoch begins, and the state of a RandomState takes 40 us.
    """
    held = _held(stream)
    changing = {id(generator) for _, generator, is_of_scheme in held if not is_of_scheme}
    return {name: each for name, each in _once(held).items() if id(each) in changing}


def _once(held: list[tuple[str, Any, bool]]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    seen: set[int] = set()
    for name, generator, _ in held:
        if id(generator) not in seen:
            seen.add(id(generator))
            while name in named:  # as that of a keyword and of an attribute
                name += "'"
            named[name] = generator
    return named


def _held(stream: Any, *, warns: bool = False) -> list[tuple[str, Any, bool]]:
    """Give generators, each with its name, and whether one of Fuel's own schemes holds it."""
    found: list[tuple[str, Any, bool]] = []
    parts = parts_of(stream)
    search = _Search(parts, warns=warns)
    for name, part in parts.items():
        if isinstance(part, Stateful):
            found.append((_under(name, "state_dict"), _Told(part), False))
        is_of_scheme = is_scheme(part) and type(part).__module__ == "fuel.schemes"
        for way, generator, is_its_own in search.generators_of(name, part):
            found.append((way, generator, is_of_scheme and is_its_own))
    return found


class _Search:
    """Looks for generators, a part after the other, in what each of them holds."""

    def __init__(self, parts: Mapping[str, Any], *, warns: bool) -> None:
        self._warns = warns
        # With the objects, for the id of one that is gone becomes another one's.
        self._seen: dict[int, object] = {id(part): part for part in parts.values()}

    def generators_of(self, name: str, part: Any) -> Iterator[tuple[str, Any, bool]]:
        """Give the generators of a part, each with its name, and whether the part has it itself."""
        waiting: deque[tuple[str, Any, int]] = deque([(name, part, 0)])
        for _ in range(_MAX_OBJECTS):
            if not waiting:
                return
            way, holder, depth = waiting.popleft()
            for attribute, value in _held_by(holder):
                its = _under(way, attribute)
                if _is_generator(value):
                    yield its, value, holder is part
                elif isinstance(value, MethodType):
                    if _is_generator(value.__self__):
                        yield f"{its}.__self__", value.__self__, False
                        continue
                    # What it draws from has the name that it has in its object.
                    for each in (value.__self__, value.__func__):
                        if self._is_new(each, depth, is_of_method=True):
                            waiting.append((its, each, depth + 1))
                elif attribute not in _OF_AN_EPOCH and self._is_new(value, depth):
                    waiting.append((its, value, depth + 1))
        if waiting and self._warns:
            _logger.warning(
                "%.200r, of a Fuel stream, holds more than %d objects: random generators that are "
                "farther in are not looked for, and would draw other numbers after a stop; hold "
                "them in attributes of the function that draws",
                part,
                _MAX_OBJECTS,
            )

    def _is_new(self, value: object, depth: int, *, is_of_method: bool = False) -> bool:
        """Say whether something is to be looked into, and not to be after that."""
        if id(value) in self._seen or depth >= _MAX_DEPTH or isinstance(value, _PLAIN):
            return False
        if isinstance(value, type) and not is_of_method:
            return False
        if _is_container(value) and all(isinstance(item, _PLAIN) for _, item in _items(value)):
            return False  # as most data
        # What a function reads by itself, or what lasts an epoch.
        kind = _class_of(value)
        if is_stream(value) or is_scheme(value) or hasattr(kind, "__next__"):
            return False
        # Whatever a function is a method of has been given to the stream; but nothing beyond.
        is_given = is_of_method and not depth
        if not is_given and any(_top(each) in _CLOSED for each in kind.__mro__):
            return False
        self._seen[id(value)] = value
        return True


class _Told:
    """Tells its state by its own `state_dict`, as a random generator does."""

    def __init__(self, part: Stateful) -> None:
        self._part = part

    def getstate(self) -> dict[str, Any]:
        return deepcopy(self._part.state_dict())  # which may be what it goes by

    def setstate(self, state: Mapping[str, Any], /) -> None:
        self._part.load_state_dict(state)


def _is_generator(value: object) -> bool:
    if isinstance(value, random.Random):
        return not isinstance(value, random.SystemRandom)  # whose numbers come from outside
    return isinstance(value, (np.random.Generator, np.random.RandomState))
