"""What a state can hold comes back from a checkpoint as what it was."""

import enum
import json
import math
import random
from collections import OrderedDict, defaultdict
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from aloop.checkpoints.packing import MAX_DEPTH, pack, unpack
from aloop.checkpoints.published import Contents, Packed, SavedCheckpoint
from aloop.errors import CheckpointValueError

ARRAYS = {
    "float64": np.linspace(0, 1, 7).reshape(7, 1),
    "float32": np.float32([[1.5, -0.0], [math.inf, math.nan]]),
    "float16": np.float16([1, 2]),
    "complex128": np.array([1 + 2j, math.nan]),
    "complex64": np.complex64([1j]),
    "longdouble": np.longdouble(["1.1", "2"]),
    "int8": np.int8([-128, 127]),
    "uint64": np.uint64([2**64 - 1]),
    "bool": np.array([True, False]),
    "text": np.array(["a", "longer", ""]),
    "bytes": np.array([b"a", b"bc"]),
    "dates": np.array(["2026-01-02", "NaT"], dtype="datetime64[D]"),
    "durations": np.timedelta64(5, "s") * np.arange(3),
    "big-endian": np.arange(5, dtype=">i4"),
    "scalar array": np.array(3.5),
    "nothing": np.zeros((0, 3)),
    "no text": np.array([], dtype="U3"),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "view": np.arange(20)[::-3],
    "transposed": np.arange(6).reshape(2, 3).T,
    "broadcast": np.broadcast_to(np.float64(2), (3, 2)),
    "read-only": np.frombuffer(b"12345678", np.float64),
}


def same(a, b) -> bool:
    """Whether two states are the same, their types, dtypes and bits included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray | np.generic):
        return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    if isinstance(a, dict):
        return list(a) == list(b) and all(map(same, a.values(), b.values()))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


def there_and_back(state):
    skeleton, arrays = pack("it", state)
    return unpack(json.loads(json.dumps(skeleton)), arrays)


@pytest.mark.parametrize("name", ARRAYS)
def test_array_comes_back(name) -> None:
    array = ARRAYS[name]
    back = there_and_back({"a": array})["a"]
    assert same(back, np.ascontiguousarray(array).reshape(array.shape))
    assert back.flags.writeable
    assert not np.shares_memory(back, array)


@pytest.mark.parametrize(
    "state",
    [
        {},
        [],
        (),
        None,
        True,
        2**200,
        -0.0,
        math.nan,
        -math.inf,
        "\ud800 lone",
        "zero\0byte",
        {"": {"": []}},
        {3: "a", 2.5: "b", None: "c", True: "d", (1, "x"): "e"},
        {"$array": 1},
        {"$dict": [], "$tuple": []},
        {"$scalar": {"$array": "x"}},
        [(1, [2, (3,)])],
        np.float32(0.1),
        np.int64(2**63 - 1),
        np.bool_(True),
        np.datetime64("2026-01-01"),
        {"a": {"b": np.zeros(1)}, "a/b": np.ones(1), "a/b#2": np.ones(2)},
        {"__metadata__": np.zeros(1), "": np.ones(1)},
        {"\ud800": np.zeros(1), "é": np.ones(1), "x" * 5000: np.ones(2)},
        random.Random(1).getstate(),  # noqa: S311 - keeps no secret
        np.random.Generator(np.random.MT19937(1)).bit_generator.state,
    ],
    ids=lambda state: repr(state)[:30],
)
def test_value_comes_back(state, tmp_path) -> None:
    assert same(there_and_back(state), state)


class Colour(enum.StrEnum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


class Pair(NamedTuple):
    a: int
    b: int


@pytest.mark.parametrize(
    ("state", "plain"),
    [
        (Colour.RED, "red"),
        (Number.ONE, 1),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (defaultdict(int, a=1), {"a": 1}),
        (Pair(1, 2), (1, 2)),
        ({Colour.RED: 1}, {"red": 1}),
        ({"red": Colour.RED, 1: np.zeros(0)}, {"red": "red", 1: np.zeros(0)}),
    ],
)
def test_relative_of_a_plain_value_comes_back_plain(state, plain) -> None:
    assert same(there_and_back(state), plain)


@pytest.mark.parametrize(
    "value",
    [
        {1, 2},
        b"bytes",
        object(),
        1j,
        np.array([object()]),
        np.zeros(2, dtype=[("a", "i4")]),
        np.ma.masked_array([1, 2], [True, False]),
        lambda: 1,
        range(3),
        {b"key": 1},
        {frozenset(): 1},
        10**4000,
    ],
    ids=repr,
)
def test_what_cannot_be_kept_is_named_with_its_place(value) -> None:
    with pytest.raises(CheckpointValueError, match=r"the state of it has at \['a'\]\[1\]"):
        pack("it", {"a": [0, value]})


def test_what_goes_too_deep_is_refused() -> None:
    deep: list = []
    for _ in range(MAX_DEPTH + 1):
        deep = [deep]
    with pytest.raises(CheckpointValueError, match="no more than 64 deep"):
        pack("it", deep)


def test_what_contains_itself_is_refused() -> None:
    around: dict = {}
    around["again"] = around
    with pytest.raises(CheckpointValueError, match="no more than 64 deep"):
        pack("it", around)


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
arrays = hnp.arrays(
    hnp.boolean_dtypes()
    | hnp.integer_dtypes(endianness="?")
    | hnp.floating_dtypes(endianness="?")
    | hnp.complex_number_dtypes(endianness="?")
    | hnp.unicode_string_dtypes(endianness="?"),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0),
)
states = st.recursive(
    plain | arrays,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)


def contents_of(state) -> Contents:
    position = {"epochs_done": 0, "iterations_done": 1, "batch": 1, "stage": "batch_done"}
    log = {"run": "0" * 32, "sequence": 3}
    return Contents.of(
        Packed.of(
            {
                "position": position,
                "log": log,
                "extensions": {"it": state},
                "model": {"state": state},
            }
        )
    )


@given(states)
def test_any_state_comes_back_from_files(tmp_path_factory, state) -> None:
    directory = tmp_path_factory.mktemp("checkpoint")
    contents_of(state).write(directory, 1)
    back = SavedCheckpoint.at(directory).read()
    assert same(back["extensions"]["it"], state)
    assert same(back["model"]["state"], state)


def test_state_is_copied_when_it_is_packed() -> None:
    array = np.zeros(3)
    contents = contents_of({"a": array})
    array[...] = 1
    assert contents.state()["model"]["state"]["a"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", ["$array", "$dict", "$tuple", "$scalar", "../x", ""])
def test_extension_may_be_called_anything(tmp_path, name) -> None:
    contents = Contents.of(
        Packed.of(
            {
                "position": contents_of(1).position.to_dict(),
                "log": {"run": "0" * 32, "sequence": 3},
                "extensions": {name: {"a": np.ones(2)}},
                "model": None,
            }
        )
    )
    contents.write(tmp_path, 1)
    assert same(SavedCheckpoint.at(tmp_path).read()["extensions"], {name: {"a": np.ones(2)}})
