"""What a log can hold, and how it looks in SQLite.

`normalise` runs at the assignment of a record, so that a value which cannot be stored is refused
where it comes from and cannot poison the transaction that would have written it. It turns numpy
scalars into numbers and takes a read-only copy of lists, dictionaries and arrays: what is in
memory is then for good what is in the file. To change such a record, assign a new value.

In SQLite numbers, text and None are stored as themselves. Everything else is stored as a BLOB
that holds JSON text: ``true``, ``NaN``, ``[1,2]``, ``{"a":1}``, and with one tag key
``{"$tuple":[…]}``, ``{"$array":{"dtype":…,"shape":…,"data":…}}`` and, for a dictionary that looks
like a tag, ``{"$dict":[[key,value],…]}``. The JSON is the one Python writes, in which ``NaN`` and
``Infinity`` are numbers. An empty BLOB stands for a record that was deleted.
"""

import json
import math
import warnings
from collections.abc import Mapping
from typing import Any, Final, NoReturn, TypeAlias, cast

import numpy as np

from aloop.config import config
from aloop.errors import LogKeyError, LogValueError

__all__ = [
    "DELETED",
    "MAX_DEPTH",
    "MAX_VALUE_BYTES",
    "decode",
    "encode",
    "encode_json",
    "measure",
    "normalise",
    "normalise_key",
]

MAX_VALUE_BYTES: Final = 1 << 20
"""The most that one value may take: bytes of an array, of UTF-8 text, or of a container's JSON."""

MAX_DEPTH: Final = 64
"""How deep lists, tuples and dictionaries may be nested; more would depend on Python's stack."""

DELETED: Final = b""
"""What is stored for a record that was deleted; it hides the record of an earlier run."""

Stored: TypeAlias = int | float | str | bytes | None
"""What SQLite has types for."""

_INT64 = range(-(2**63), 2**63)
_NUMPY_FLOATS = frozenset({np.float16, np.float32, np.float64})  # what most steps compute
_TAGS = ("$array", "$tuple", "$dict")
_HOLDABLE = (
    "numbers, text, booleans, None, and lists, tuples, dictionaries and small arrays of those"
)


def _refuse_change(*_: object, **__: object) -> NoReturn:
    raise TypeError(
        "a value in the log cannot be changed in place, since its row has to be written again; "
        "assign a new value, for example with log.current_row[key] += [item]"
    )


# The types of list and dict promise methods that change them, and pyright notes each one that is
# taken away; taking them away is what these two classes are for.


class FrozenList(list[Any]):
    """A list in the log: reads, compares and serialises as a list, but cannot be changed."""

    __slots__ = ()
    append = extend = insert = remove = pop = clear = sort = reverse = _refuse_change  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
    __setitem__ = __delitem__ = __imul__ = _refuse_change  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    def __iadd__(self, other: Any) -> "FrozenList":  # noqa: PYI034  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
        # ``row[key] += [item]`` assigns the result, so a new list is all it takes.
        return FrozenList([*self, *other])

    def __reduce__(self) -> tuple[type[list[Any]], tuple[list[Any]]]:
        return list, (list(self),)  # a copy is the user's own, hence an ordinary list


class FrozenDict(dict[str, Any]):
    """A dictionary in the log: reads, compares and serialises as one, but cannot be changed."""

    __slots__ = ()
    update = setdefault = pop = popitem = clear = _refuse_change  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
    __setitem__ = __delitem__ = _refuse_change  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    def __ior__(self, other: Any) -> "FrozenDict":  # noqa: PYI034  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
        return FrozenDict({**self, **dict(other)})

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        return dict, (dict(self),)


def normalise_key(key: object) -> str:
    """Check the key of a record and give it as a plain string."""
    if not isinstance(key, str):
        raise LogKeyError(
            f"record key {key!r} is of type {type(key).__name__}; expected a string; "
            f"use {str(key)!r}"
        )
    plain = str.__str__(key)  # members of a StrEnum are strings with a face of their own
    if not _is_storable_text(plain):
        raise LogKeyError(
            f"record key {key!r} has a lone surrogate, which is no character and cannot be "
            "stored as UTF-8; remove it, or encode with errors='replace'"
        )
    return plain


def normalise(key: str, value: Any) -> Any:
    """Check the value of the record `key` and give it in the form in which the log keeps it.

    Raises `LogValueError`, naming key, type and remedy, for anything the log cannot hold.
    """
    kind = cast("type[object]", type(value))
    if kind is float or kind is bool or value is None:
        return value
    if kind is int:
        return value if value in _INT64 else _refuse_int(key, value)
    if kind in _NUMPY_FLOATS:
        return float(value)
    try:
        value = _normalise(key, value, 0)
    except RecursionError:
        raise LogValueError(
            f"record {key!r} is a {kind.__name__} that contains itself or is nested more than "
            f"{MAX_DEPTH} deep; expected plain data; flatten it"
        ) from None
    if not isinstance(value, int | float):  # numbers, which numpy's scalars have become
        _check_size(key, value)
    return value


def measure(value: Any) -> int:
    """Give about how many bytes a normalised value takes, 0 for a number."""
    match value:
        case str():
            return len(value)
        case np.ndarray():
            return cast("np.ndarray[Any, Any]", value).nbytes
        case list() | tuple():
            items = cast("list[Any]", value)
            return 8 * len(items) + sum(map(measure, items))
        case dict():
            pairs = cast("dict[str, Any]", value).items()
            return sum([64 + len(key) + measure(item) for key, item in pairs])
        case _:
            return 0


def encode(value: Any) -> Stored:
    """Turn a normalised value into what SQLite stores for it."""
    kind = cast("type[object]", type(value))
    if kind is float:
        return b"NaN" if math.isnan(value) else value
    if kind is int or kind is str or value is None or value is DELETED:
        return value
    return _to_json(value)


def encode_json(value: Any) -> str:
    """Turn a normalised value into JSON text, whatever kind of value it is."""
    return _to_json(value).decode()


def decode(stored: Stored) -> Any:
    """Turn what SQLite stored back into the value; the inverse of `encode`."""
    if not isinstance(stored, bytes):
        return stored
    return _normalise("", json.loads(stored, object_hook=_from_tags), 0)


def _normalise(key: str, value: Any, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise RecursionError
    match value:
        case None | bool():
            return value
        case np.bool_():
            return bool(value)
        case np.timedelta64():  # an integer to numpy, a duration to everybody else
            return _refuse(key, value)
        case int() | np.integer():
            number = int(cast("int", value))
            return number if number in _INT64 else _refuse_int(key, number)
        case float() | np.floating():
            return float(cast("float", value))
        case str():
            text = str.__str__(value)
            return text if _is_storable_text(text) else _refuse_text(key, text)
        case np.ndarray():
            return _normalise_array(key, cast("np.ndarray[Any, Any]", value))
        case list():
            return FrozenList(
                [_normalise(key, item, depth + 1) for item in cast("list[Any]", value)]
            )
        case tuple():
            return tuple(
                [_normalise(key, item, depth + 1) for item in cast("tuple[Any, ...]", value)]
            )
        case Mapping():
            items = cast("Mapping[Any, Any]", value).items()
            return FrozenDict({_inner_key(key, k): _normalise(key, v, depth + 1) for k, v in items})
        case _:
            return _refuse(key, value)


def _normalise_array(key: str, array: "np.ndarray[Any, Any]") -> Any:
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise LogValueError(
            f"record {key!r} is an array of dtype {array.dtype}; expected booleans, integers or "
            "floats of at most 64 bits; convert it with .astype(...) or record a summary of it"
        )
    if type(array) is not np.ndarray and isinstance(array, np.ma.MaskedArray):
        raise LogValueError(
            f"record {key!r} is a masked array, of which the log would lose the mask; expected an "
            "array; use .filled(…) or .compressed()"
        )
    if array.ndim == 0:
        return _normalise(key, array.item(), 0)
    if array.nbytes > MAX_VALUE_BYTES:
        _refuse_size(key, f"an array of shape {array.shape}", array.nbytes)
    # A plain ndarray that nobody else can write to; the copy drops subclasses and bases.
    copy = np.array(array, copy=True, subok=False)
    copy.flags.writeable = False
    return copy


def _inner_key(key: str, inner: object) -> str:
    if not isinstance(inner, str):
        raise LogValueError(
            f"record {key!r} is a dictionary with the key {inner!r} of type "
            f"{type(inner).__name__}; expected strings as keys; use {str(inner)!r}"
        )
    return _normalise(key, inner, 0)


def _check_size(key: str, value: Any) -> None:
    if isinstance(value, np.ndarray):
        size = cast("np.ndarray[Any, Any]", value).nbytes  # in bounds, or refused above
    else:
        size = len(value.encode() if isinstance(value, str) else _to_json(value))
        if size > MAX_VALUE_BYTES:
            _refuse_size(key, f"a {_public_name(value)}", size)
    if size > 64 and size > config.max_blob_size:
        warnings.warn(
            f"record {key!r} takes {size} bytes, more than max_blob_size = "
            f"{config.max_blob_size}; large records make the log slow; keep them in files of "
            "their own, or raise the setting",
            stacklevel=4,
        )


def _is_storable_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _to_json(value: Any) -> bytes:
    return json.dumps(_to_tags(value), ensure_ascii=False, separators=(",", ":")).encode()


def _to_tags(value: Any) -> Any:
    match value:
        case np.ndarray():
            array = cast("np.ndarray[Any, Any]", value)
            content = {"dtype": array.dtype.str, "shape": array.shape, "data": array.tolist()}
            return {"$array": content}
        case tuple():
            return {"$tuple": [_to_tags(item) for item in cast("tuple[Any, ...]", value)]}
        case list():
            return [_to_tags(item) for item in cast("list[Any]", value)]
        case dict():
            mapping = cast("dict[str, Any]", value)
            items = {k: _to_tags(v) for k, v in mapping.items()}
            if len(items) == 1 and next(iter(items)) in _TAGS:
                return {"$dict": [[k, v] for k, v in items.items()]}
            return items
        case _:
            return value


def _from_tags(mapping: dict[str, Any]) -> Any:
    if len(mapping) == 1:
        match mapping:
            case {"$array": {"dtype": dtype, "shape": shape, "data": data}}:
                return np.array(data, dtype=dtype).reshape(shape)
            case {"$tuple": items}:
                return tuple(items)
            case {"$dict": pairs}:
                return dict(pairs)
            case _:
                pass
    return mapping


def _public_name(value: Any) -> str:
    if isinstance(value, FrozenList | FrozenDict):
        return "list" if isinstance(value, FrozenList) else "dict"
    return type(value).__name__


def _refuse(key: str, value: Any) -> NoReturn:
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    raise LogValueError(
        f"record {key!r} is of type {kind}; expected {_HOLDABLE}; "
        "convert it first, for example with float(…), str(…) or numpy.asarray(…)"
    )


def _refuse_int(key: str, value: int) -> NoReturn:
    raise LogValueError(
        f"record {key!r} is {value}; expected an integer from -2**63 to 2**63 - 1; "
        "record it as float(…) or as text with str(…)"
    )


def _refuse_text(key: str, text: str) -> NoReturn:
    raise LogValueError(
        f"record {key!r} is {text!r:.80}, which has a lone surrogate and cannot be stored as "
        "UTF-8; remove it, or encode with errors='replace'"
    )


def _refuse_size(key: str, what: str, size: int) -> NoReturn:
    raise LogValueError(
        f"record {key!r} is {what} of {size} bytes; expected at most {MAX_VALUE_BYTES}; "
        "save it to a file of its own and record the path, or record a summary of it"
    )
