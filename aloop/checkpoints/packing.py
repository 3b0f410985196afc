"""What a state is made of, and how it looks in a checkpoint: JSON, and arrays beside it.

A state is made of numbers, text, booleans, None, lists, tuples, dictionaries and numpy arrays.
`pack` cuts it into a skeleton, which JSON can hold, and the arrays, copied. What JSON has no form
for is an object with one tag key: ``{"$array": name}``, an array of that name; with a ``dtype``
and a ``shape`` one of whose bytes alone are kept, for safetensors has no such dtype;
``{"$scalar": name}``, a numpy scalar; ``{"$tuple": [...]}``; and ``{"$dict": [[key, value], ...]}``
for a dictionary whose keys are not all text, or that looks like a tag itself.
"""

from collections.abc import Mapping
from typing import Any, Final, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from aloop.errors import CheckpointValueError

__all__ = ["Array", "as_mapping", "pack", "unpack"]

Array: TypeAlias = npt.NDArray[Any]

MAX_DEPTH: Final = 64
"""How deep a state may be nested; more would depend on Python's stack."""

MAX_BITS: Final = 10_000
"""How many bits a whole number has at the most; Python refuses to write out much larger ones."""

_PLAIN: Final = frozenset({bool, int, float, str, type(None)})
_TAGS: Final = frozenset({"$array", "$scalar", "$tuple", "$dict"})
_NATIVE: Final = frozenset(
    {"bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"}
    | {"float16", "float32", "float64"}
)
"""The names of the dtypes that safetensors has and numpy reads back."""

_HOLDABLE: Final = "numbers, text, booleans, None, lists, tuples, dictionaries and numpy arrays"

_OPAQUE: Final = "OV"  # kinds of dtypes: Python objects, and bytes that only another package knows
_RESERVED: Final = "__metadata__"  # by safetensors


def pack(
    what: str, state: Any, under: str = "", *, copies_up_to: int | None = None
) -> tuple[Any, dict[str, Array]]:
    """Cut a state into what JSON can hold and the arrays.

    Parameters:
        what: how messages call what the state is of.
        state: the state.
        under: what the names of the arrays begin with.
        copies_up_to: the bytes of the largest array that is copied; larger ones are those of the
            state for now; None for all.

    Raises `CheckpointValueError`, naming the place and the type, for a value that no checkpoint
    can hold.
    """
    packer = _Packer(what, copies_up_to)
    return packer.pack(state, (), under), packer.arrays


class _Packer:
    def __init__(self, what: str, copies_up_to: int | None) -> None:
        self._what = what
        self._copies_up_to = copies_up_to
        self.arrays: dict[str, Array] = {}

    def pack(self, value: Any, place: tuple[object, ...], name: str) -> Any:
        kind = cast("type[object]", type(value))
        if kind in _PLAIN:
            if _is_huge(value):
                raise self._refusal(place, kind, f"whole numbers of at most {MAX_BITS} bits")
            return value
        if len(place) > MAX_DEPTH:
            raise self._refusal(place, value, f"nested no more than {MAX_DEPTH} deep")
        if isinstance(value, np.ndarray):
            return self._pack_array(cast("Array", value), place, name)
        if isinstance(value, np.generic):
            scalar = cast("np.generic[Any]", value)
            packed = self._pack_array(np.asarray(scalar), place, name)
            return packed | {"$scalar": packed.pop("$array")}
        if isinstance(value, Mapping):
            return self._pack_mapping(cast("Mapping[Any, Any]", value), place, name)
        if isinstance(value, list | tuple):
            items = self._pack_items(cast("list[Any]", value), place, name)
            return {"$tuple": items} if isinstance(value, tuple) else items
        for plain in (bool, int, float, str):  # a member of an enumeration, say
            if isinstance(value, plain):
                return plain(value)
        raise self._refusal(place, value, f"{_HOLDABLE} of those")

    def _pack_items(self, items: Any, place: tuple[object, ...], name: str) -> list[Any]:
        if all(type(item) in _PLAIN for item in items) and not any(map(_is_huge, items)):
            return list(items)
        return [
            self.pack(item, (*place, number), _joined(name, number))
            for number, item in enumerate(items)
        ]

    def _pack_mapping(self, value: Mapping[Any, Any], place: tuple[object, ...], name: str) -> Any:
        packed = [
            (
                self._pack_key(key, place),
                self.pack(item, (*place, key), _joined(name, key)),
            )
            for key, item in value.items()
        ]
        if all(type(key) is str for key, _ in packed):
            return as_mapping(dict(packed))
        return {"$dict": [[key, item] for key, item in packed]}

    def _pack_key(self, key: Any, place: tuple[object, ...]) -> Any:
        kind = cast("type[object]", type(key))
        if kind in _PLAIN:
            return key
        if isinstance(key, tuple):
            return {"$tuple": [self._pack_key(part, place) for part in cast("tuple[Any]", key)]}
        if isinstance(key, str):
            return str.__str__(key)
        raise self._refusal((*place, key), key, "keys that are text, numbers, or tuples of those")

    def _pack_array(self, array: Array, place: tuple[object, ...], name: str) -> dict[str, Any]:
        dtype = array.dtype
        if dtype.kind in _OPAQUE or isinstance(array, np.ma.MaskedArray):
            raise self._refusal(place, array, "arrays of numbers, booleans, text or times")
        name = self._free_name(name)
        # In C's order, for safetensors goes by the address; and a copy, for the training goes on.
        is_copied = self._copies_up_to is None or array.nbytes <= self._copies_up_to
        copied = np.array(array, order="C", copy=True if is_copied else None, subok=False)
        if dtype.name in _NATIVE and dtype.isnative:
            self.arrays[name] = copied
            return {"$array": name}
        self.arrays[name] = copied.reshape(-1).view(np.uint8)
        return {"$array": name, "dtype": dtype.str, "shape": list(array.shape)}

    def _free_name(self, name: str) -> str:
        name = name if name not in ("", _RESERVED) else f"{name}value"
        free, number = name, 2
        while free in self.arrays:
            free, number = f"{name}#{number}", number + 1
        return free

    def _refusal(
        self, place: tuple[object, ...], value: object, expected: str
    ) -> CheckpointValueError:
        where = "".join(f"[{key!r}]" for key in place[:MAX_DEPTH]) or "itself"
        kind = type(value).__name__
        if isinstance(value, np.ndarray):
            kind = f"array of dtype {cast('Array', value).dtype}"
        return CheckpointValueError(
            f"the state of {self._what} has at {where:.200} a value of type {kind}: "
            f"{value!r:.80}; expected {expected}; change its state_dict() to give those, and its "
            "load_state_dict() to take them"
        )


def _joined(name: str, key: object) -> str:
    # A name is text that JSON and safetensors can hold, whatever the key is.
    part = str(key).encode(errors="backslashreplace").decode()
    return f"{name}/{part}" if name else part


def _is_huge(value: Any) -> bool:
    return type(value) is int and value.bit_length() > MAX_BITS


def as_mapping(packed: dict[str, Any]) -> dict[str, Any]:
    """Give a dictionary of packed values in a form that is not taken for a tag."""
    if _looks_like_tag(packed):
        return {"$dict": [[key, value] for key, value in packed.items()]}
    return packed


def _looks_like_tag(value: Mapping[Any, Any]) -> bool:
    return bool(_TAGS & value.keys())


def unpack(skeleton: Any, arrays: Mapping[str, Array]) -> Any:
    """Put a state together again out of what `pack` has made.

    Raises ValueError, KeyError or TypeError when the skeleton or the arrays are something else.
    """
    if isinstance(skeleton, list):
        items = cast("list[Any]", skeleton)
        if all(type(item) in _PLAIN for item in items):
            return list(items)
        return [unpack(item, arrays) for item in items]
    if not isinstance(skeleton, dict):
        return skeleton
    packed = cast("dict[str, Any]", skeleton)
    if not _looks_like_tag(packed):
        return {key: unpack(value, arrays) for key, value in packed.items()}
    if "$tuple" in packed:
        return tuple(unpack(packed["$tuple"], arrays))
    if "$dict" in packed:
        return {unpack(key, arrays): unpack(value, arrays) for key, value in packed["$dict"]}
    array = arrays[packed["$array"] if "$array" in packed else packed["$scalar"]]
    if "dtype" in packed:
        dtype = np.dtype(packed["dtype"])
        if dtype.kind in _OPAQUE:
            raise ValueError(f"an array has dtype {dtype}")
        array = array.view(dtype).reshape(packed["shape"])
    return array.copy() if "$array" in packed else array[()]
