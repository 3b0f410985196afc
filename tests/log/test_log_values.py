"""Every kind of value comes back as what it was; anything else is refused where it is written."""

import asyncio
import collections
import copy
import datetime as dt
import enum
import math
import pickle
import threading
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from log_helpers import query
from log_tools import entries_of, exact, reopen

from aloop.config import config
from aloop.errors import LogKeyError, LogValueError
from aloop.log.base import TrainingLog
from aloop.log.sqlite import SQLiteLog
from aloop.log.values import MAX_VALUE_BYTES


class Colour(enum.IntEnum):
    RED = 3


class Name(enum.StrEnum):
    COST = "cost"


Pair = collections.namedtuple("Pair", "a b")  # noqa: PYI024 - a named tuple is a tuple, typed or not

# What is written, what it is afterwards, what people see in the view.
VALUES = {
    "int": (7, 7, 7),
    "negative int": (-7, -7, -7),
    "smallest int": (-(2**63), -(2**63), -(2**63)),
    "largest int": (2**63 - 1, 2**63 - 1, 2**63 - 1),
    "zero": (0, 0, 0),
    "float": (0.1, 0.1, 0.1),
    "whole float": (2.0, 2.0, 2.0),
    "negative zero": (-0.0, -0.0, -0.0),
    "smallest float": (5e-324, 5e-324, 5e-324),
    "largest float": (1.7976931348623157e308, 1.7976931348623157e308, 1.7976931348623157e308),
    "nan": (math.nan, math.nan, "NaN"),
    "inf": (math.inf, math.inf, math.inf),
    "-inf": (-math.inf, -math.inf, -math.inf),
    "True": (True, True, 1),
    "False": (False, False, 0),
    "None": (None, None, None),
    "np.float32": (np.float32(0.1), 0.10000000149011612, 0.10000000149011612),
    "np.float64": (np.float64(0.1), 0.1, 0.1),
    "np.float16": (np.float16(0.5), 0.5, 0.5),
    "np.float32 nan": (np.float32("nan"), math.nan, "NaN"),
    "np.int64": (np.int64(-5), -5, -5),
    "np.uint8": (np.uint8(255), 255, 255),
    "np.uint64 in range": (np.uint64(2**63 - 1), 2**63 - 1, 2**63 - 1),
    "np.bool_": (np.bool_(True), True, 1),
    "np.str_": (np.str_("text"), "text", "text"),
    "IntEnum": (Colour.RED, 3, 3),
    "StrEnum": (Name.COST, "cost", "cost"),
    "text": ("text", "text", "text"),
    "empty text": ("", "", ""),
    "quotes and semicolons": ("'); DROP TABLE runs;--\"",) * 3,
    "emoji": ("😀 é", "😀 é", "😀 é"),
    "NUL": ("a\0b", "a\0b", "a\0b"),
    "text NaN": ("NaN", "NaN", "NaN"),
    "text true": ("true", "true", "true"),
    "text of a number": ("1.0", "1.0", "1.0"),
    "list": ([1, 2.0, "x"], [1, 2.0, "x"], '[1,2.0,"x"]'),
    "empty list": ([], [], "[]"),
    "list of all": (
        [None, True, math.nan, -math.inf, [], {}, ()],
        [None, True, math.nan, -math.inf, [], {}, ()],
        '[null,true,NaN,-Infinity,[],{},{"$tuple":[]}]',
    ),
    "numpy scalars in a list": (
        [np.float32(0.5), np.int64(3), np.bool_(False)],
        [0.5, 3, False],
        "[0.5,3,false]",
    ),
    "tuple": ((1, (2, [3])), (1, (2, [3])), '{"$tuple":[1,{"$tuple":[2,[3]]}]}'),
    "empty tuple": ((), (), '{"$tuple":[]}'),
    "named tuple": (Pair(1, 2), (1, 2), '{"$tuple":[1,2]}'),
    "dict": ({"b": 1, "a": [2]}, {"b": 1, "a": [2]}, '{"b":1,"a":[2]}'),
    "empty dict": ({}, {}, "{}"),
    "dict with odd keys": (
        {"": 1, "é😀": 2, "'\";": 3},
        {"": 1, "é😀": 2, "'\";": 3},
        '{"":1,"é😀":2,"\'\\";":3}',
    ),
    "ordered dict": (collections.OrderedDict(b=1, a=2), {"b": 1, "a": 2}, '{"b":1,"a":2}'),
    "dict like a tuple": ({"$tuple": [1]}, {"$tuple": [1]}, '{"$dict":[["$tuple",[1]]]}'),
    "dict like an array": (
        {"$array": {"dtype": "<f8", "shape": [1], "data": [1.0]}},
        {"$array": {"dtype": "<f8", "shape": [1], "data": [1.0]}},
        '{"$dict":[["$array",{"dtype":"<f8","shape":[1],"data":[1.0]}]]}',
    ),
    "dict like a dict": (
        {"$dict": [["a", 1]]},
        {"$dict": [["a", 1]]},
        '{"$dict":[["$dict",[["a",1]]]]}',
    ),
    "dicts like tags in each other": (
        {"$dict": {"$tuple": {"$array": ()}}},
        {"$dict": {"$tuple": {"$array": ()}}},
        '{"$dict":[["$dict",{"$dict":[["$tuple",{"$dict":[["$array",{"$tuple":[]}]]}]]}]]}',
    ),
    "dict with a tag among others": (
        {"$tuple": [1], "x": 2},
        {"$tuple": [1], "x": 2},
        '{"$tuple":[1],"x":2}',
    ),
    "array 0-d": (np.array(0.25), 0.25, 0.25),
    "array 0-d bool": (np.array(True), True, 1),
    "array in a dict": (
        {"a": np.array([1], np.int8)},
        {"a": np.array([1], np.int8)},
        '{"a":{"$array":{"dtype":"|i1","shape":[1],"data":[1]}}}',
    ),
    "array <f8": (
        np.array([0.1, np.nan, -np.inf, -0.0]),
        np.array([0.1, np.nan, -np.inf, -0.0]),
        '{"$array":{"dtype":"<f8","shape":[4],"data":[0.1,NaN,-Infinity,-0.0]}}',
    ),
    "array 2-d": (
        np.array([[1, 2], [3, 4]], np.int16),
        np.array([[1, 2], [3, 4]], np.int16),
        '{"$array":{"dtype":"<i2","shape":[2,2],"data":[[1,2],[3,4]]}}',
    ),
    "array of booleans": (
        np.array([True, False]),
        np.array([True, False]),
        '{"$array":{"dtype":"|b1","shape":[2],"data":[true,false]}}',
    ),
    "array of uint64": (
        np.array([2**64 - 1], np.uint64),
        np.array([2**64 - 1], np.uint64),
        '{"$array":{"dtype":"<u8","shape":[1],"data":[18446744073709551615]}}',
    ),
    "array of float16": (
        np.array([0.1], np.float16),
        np.array([0.1], np.float16),
        '{"$array":{"dtype":"<f2","shape":[1],"data":[0.0999755859375]}}',
    ),
    "big-endian array": (
        np.array([1, 2], ">i4"),
        np.array([1, 2], ">i4"),
        '{"$array":{"dtype":">i4","shape":[2],"data":[1,2]}}',
    ),
    "empty array": (
        np.zeros(0, np.float32),
        np.zeros(0, np.float32),
        '{"$array":{"dtype":"<f4","shape":[0],"data":[]}}',
    ),
    "empty array 0x3": (
        np.zeros((0, 3), np.int64),
        np.zeros((0, 3), np.int64),
        '{"$array":{"dtype":"<i8","shape":[0,3],"data":[]}}',
    ),
    "empty array 2x0x1": (
        np.zeros((2, 0, 1), bool),
        np.zeros((2, 0, 1), bool),
        '{"$array":{"dtype":"|b1","shape":[2,0,1],"data":[[],[]]}}',
    ),
    "transposed array": (
        np.arange(6).reshape(2, 3).T,
        np.array([[0, 3], [1, 4], [2, 5]]),
        '{"$array":{"dtype":"<i8","shape":[3,2],"data":[[0,3],[1,4],[2,5]]}}',
    ),
    "strided array": (
        np.arange(6)[::-2],
        np.array([5, 3, 1]),
        '{"$array":{"dtype":"<i8","shape":[3],"data":[5,3,1]}}',
    ),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """All values, written as records and as status of one log, and read back."""
    database = tmp_path_factory.mktemp("values") / "log.sqlite"

    async def write():
        log = SQLiteLog(database)
        for time, (given, _, _) in enumerate(VALUES.values()):
            log[time]["value"] = given
            log.status[f"value {time}"] = given
        await log.flush()
        return log, await reopen(log)

    log, reopened = asyncio.run(write())
    return SimpleNamespace(
        database=database,
        log=log,
        reopened=reopened,
        shown=[value for _, _, value in entries_of(database, log)],
    )


def number(kind):
    return list(VALUES).index(kind)


@pytest.mark.parametrize("kind", VALUES)
def test_value_is_read_back_in_memory(written, kind):
    assert exact(written.log[number(kind)]["value"]) == exact(VALUES[kind][1])


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.aloop_guard(files=False)  # opened once for all
def test_value_is_read_back_from_the_file(written, kind):
    assert exact(written.reopened[number(kind)]["value"]) == exact(VALUES[kind][1])


@pytest.mark.parametrize("kind", VALUES)
def test_status_value_is_read_back_from_the_file(written, kind):
    status = written.reopened.status
    assert exact(status[f"value {number(kind)}"]) == exact(VALUES[kind][1])


@pytest.mark.parametrize("kind", VALUES)
def test_value_is_shown_to_users_of_sql(written, kind):
    assert exact(written.shown[number(kind)]) == exact(VALUES[kind][2])


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.aloop_guard(files=False)  # opened once for all
def test_status_view_shows_the_same_as_the_entries_view(written, kind):
    [(shown,)] = query(
        written.database, "SELECT value FROM status WHERE key = ?", f"value {number(kind)}"
    )
    assert exact(shown) == exact(VALUES[kind][2])


def test_sum_and_average_work_on_booleans_in_the_view(written):
    times = [number("True"), number("False")]
    assert query(
        written.database, "SELECT SUM(value), AVG(value) FROM entries WHERE time IN (?, ?)", *times
    ) == [(1, 0.5)]


# ------------------------------------------------------------------ what is refused


def cyclic_list():
    items = []
    items.append(items)
    return items


def cyclic_dict():
    mapping = {}
    mapping["self"] = mapping
    return mapping


# What is written, what the message says it is, what the message says to do.
REFUSED = {
    "object": (object(), "type object", "float("),
    "class": (SimpleNamespace, "type type", "str("),
    "2**63": (2**63, "9223372036854775808", "float("),
    "-2**63-1": (-(2**63) - 1, "-9223372036854775809", "str("),
    "np.uint64 out of range": (np.uint64(2**63), "9223372036854775808", "float("),
    "2**63 in a list": ([2**63], "9223372036854775808", "float("),
    "lone surrogate": ("a\ud800", "lone surrogate", "errors='replace'"),
    "lone surrogate in a list": (["\udfff"], "lone surrogate", "errors='replace'"),
    "lone surrogate in an inner key": ({"a": {"\ud800": 1}}, "lone surrogate", "errors='replace'"),
    "10 MB array": (np.zeros(1_310_720), "shape (1310720,)", "file of its own"),
    "10 MB array in a list": ([np.zeros(1_310_720)], "10485760 bytes", "file of its own"),
    "long text": ("x" * (MAX_VALUE_BYTES + 1), "a str of 1048577 bytes", "file of its own"),
    "text long in bytes": ("é" * (MAX_VALUE_BYTES // 2 + 1), "1048578 bytes", "file of its own"),
    "long list": (["x" * (MAX_VALUE_BYTES - 3)], "a list of 1048577 bytes", "file of its own"),
    "long dict": ({"k": "x" * MAX_VALUE_BYTES}, "a dict of 1048584 bytes", "file of its own"),
    "object array": (np.array([None]), "dtype object", ".astype("),
    "complex array": (np.zeros(2, complex), "dtype complex128", ".astype("),
    "text array": (np.array(["a"]), "dtype <U1", ".astype("),
    "structured array": (np.zeros(1, [("a", "i4")]), "'<i4'", ".astype("),
    "long double array": (np.zeros(1, np.longdouble), "dtype float128", ".astype("),
    "array of times": (np.zeros(1, "m8[s]"), "dtype timedelta64[s]", ".astype("),
    "complex": (1j, "type complex", "float("),
    "np.complex64": (np.complex64(1), "type numpy.complex64", "float("),
    "np.datetime64": (np.datetime64("2020-01-01"), "type numpy.datetime64", "str("),
    "np.timedelta64": (np.timedelta64(5, "s"), "type numpy.timedelta64", "float("),
    "datetime": (dt.datetime(2020, 1, 1), "type datetime.datetime", "str("),
    "bytes": (b"raw", "type bytes", "str("),
    "empty bytes": (b"", "type bytes", "str("),
    "bytearray": (bytearray(b"raw"), "type bytearray", "str("),
    "set": ({1}, "type set", "numpy.asarray("),
    "range": (range(3), "type range", "numpy.asarray("),
    "generator": ((i for i in ()), "type generator", "numpy.asarray("),
    "list that contains itself": (cyclic_list(), "a list that contains itself", "flatten it"),
    "dict that contains itself": (cyclic_dict(), "a dict that contains itself", "flatten it"),
    "inner int key": ({"a": {5: 1}}, "the key 5 of type int", "use '5'"),
    "inner None key": ({None: 1}, "the key None of type NoneType", "use 'None'"),
    "inner bytes key": ({b"k": 1}, "the key b'k' of type bytes", "expected strings as keys"),
    "object deep inside": ([({"a": [object()]},)], "type object", "float("),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refusal_names_key_value_and_remedy(kind):
    value, given, remedy = REFUSED[kind]
    row = TrainingLog()[0]
    with pytest.raises(LogValueError) as info:
        row["cost"] = value
    message = str(info.value)
    assert [part for part in ("record 'cost' is", given, remedy) if part not in message] == []


@pytest.mark.parametrize("kind", REFUSED)
async def test_refusal_leaves_row_and_file_as_they_were(kind, database):
    async with SQLiteLog(database) as log:
        log[0]["cost"] = 0.5
        with pytest.raises((LogValueError, TypeError)):
            log[0]["cost"] = REFUSED[kind][0]
        assert dict(log[0]) == {"cost": 0.5}
        await log.flush()
    assert entries_of(database, log) == [(0, "cost", 0.5)]


@pytest.mark.parametrize("kind", ["object", "2**63", "bytes", "10 MB array"])
def test_status_refuses_what_rows_refuse(kind):
    log = TrainingLog()
    with pytest.raises(LogValueError, match="record 'best' is"):
        log.status["best"] = REFUSED[kind][0]
    assert "best" not in log.status


@pytest.mark.parametrize("key", [5, None, 1.5, b"cost", ("a", "b"), True])
def test_key_that_is_no_string_is_refused_by_name_type_and_remedy(key):
    row = TrainingLog()[0]
    with pytest.raises(LogKeyError) as info:
        row[key] = 1
    message = str(info.value)
    parts = (f"record key {key!r} is of type {type(key).__name__}", f"use {str(key)!r}")
    assert [part for part in parts if part not in message] == []
    assert dict(row) == {}


def test_key_with_a_lone_surrogate_is_refused():
    row = TrainingLog()[0]
    with pytest.raises(LogKeyError, match=r"lone surrogate.*errors='replace'"):
        row["a\ud800"] = 1
    assert dict(row) == {}


def test_key_of_a_str_enum_becomes_plain_text():
    row = TrainingLog()[0]
    row[Name.COST] = 1
    assert [(type(key), key) for key in row] == [(str, "cost")]


ODD_KEYS = ["'); DROP TABLE runs;--", '"', "a;b", "", " ", "a\0b", "😀", "%s ? :x", "$tuple", "é"]


async def test_odd_keys_are_just_keys(database):
    log = SQLiteLog(database)
    for count, key in enumerate(ODD_KEYS):
        log[1][key] = log.status[key] = count
    await log.flush()
    again = await reopen(log)
    expected = {key: count for count, key in enumerate(ODD_KEYS)}
    assert dict(again[1]) == expected
    assert {key: again.status[key] for key in ODD_KEYS} == expected


async def test_odd_keys_are_shown_to_users_of_sql(database):
    log = SQLiteLog(database)
    log[1].update(dict.fromkeys(ODD_KEYS, 1))
    await log.flush()
    assert sorted(key for _, key, _ in entries_of(database, log)) == sorted(ODD_KEYS)


# ------------------------------------------------------------------ sizes


LARGEST = {
    "text": "x" * MAX_VALUE_BYTES,
    "array": np.zeros(MAX_VALUE_BYTES // 8),
    "list": ["x" * (MAX_VALUE_BYTES - 4)],
}


@pytest.mark.parametrize("kind", LARGEST)
async def test_largest_value_is_kept(kind, database):
    config.max_blob_size = 2 * MAX_VALUE_BYTES
    log = SQLiteLog(database)
    log[0]["value"] = LARGEST[kind]
    await log.flush()
    again = await reopen(log)
    assert exact(again[0]["value"]) == exact(LARGEST[kind])


def test_value_above_max_blob_size_warns_where_it_is_written():
    row = TrainingLog()[0]
    with pytest.warns(UserWarning, match="max_blob_size") as caught:
        row["history"] = "x" * 4097
    [warning] = caught
    message = str(warning.message)
    assert "record 'history' takes 4097 bytes, more than max_blob_size = 4096" in message
    assert warning.filename == __file__
    assert row["history"] == "x" * 4097


@pytest.mark.parametrize(
    "value", ["x" * 4096, np.zeros(512), [0] * 2046 + [10]], ids=["text", "array", "list"]
)
def test_value_of_max_blob_size_does_not_warn(value):
    row = TrainingLog()[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        row["history"] = value
    assert exact(row["history"]) == exact(value)


def test_max_blob_size_can_be_set():
    config.max_blob_size = 100
    with pytest.warns(UserWarning, match="more than max_blob_size = 100"):
        TrainingLog()[0]["history"] = np.zeros(13)


def test_reading_a_large_value_back_does_not_warn(database):
    async def write():
        log = SQLiteLog(database)
        log[0]["history"] = "x" * 5000
        await log.flush()
        return log

    with pytest.warns(UserWarning, match="max_blob_size"):
        log = asyncio.run(write())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = asyncio.run(reopen(log))
    assert again[0]["history"] == "x" * 5000


# ------------------------------------------------------------------ nesting


def nested(depth, kind):
    value = 0
    for _ in range(depth):
        value = [value] if kind is list else (value,) if kind is tuple else {"k": value}
    return value


def in_shallow_thread(work):
    """Run where the stack is as short as it can be, and give what came of it."""
    results = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join()
    return results[0]


@pytest.mark.parametrize("kind", [list, tuple, dict])
def test_nesting_is_either_kept_or_refused_by_name(kind):
    config.max_blob_size = MAX_VALUE_BYTES

    def outcomes():
        row = TrainingLog()[0]
        seen = set()
        for depth in range(470, 520):  # about where Python's stack ends
            try:
                row["cost"] = nested(depth, kind)
            except Exception as error:  # noqa: BLE001 - its type is what is tested
                seen.add(type(error))
        return seen

    assert in_shallow_thread(outcomes) == {LogValueError}


@pytest.mark.parametrize("kind", [list, tuple, dict])
def test_deepest_nesting_that_is_kept_is_written_and_read(kind, database):
    config.max_blob_size = MAX_VALUE_BYTES

    def write():
        log = SQLiteLog(database)
        kept, refused = 0, 600
        while refused - kept > 1:
            depth = (kept + refused) // 2
            try:
                log[0]["cost"] = nested(depth, kind)
            except (LogValueError, RecursionError):
                refused = depth
            else:
                kept = depth
        asyncio.run(log.flush())
        return log, kept

    log, depth = in_shallow_thread(write)
    assert depth > 10
    value = asyncio.run(reopen(log))[0]["cost"]
    levels = 0
    while value != 0:
        [value] = value.values() if kind is dict else value
        levels += 1
    assert levels == depth


# ------------------------------------------------------------------ no change in place


IN_PLACE = {
    "append": lambda items: items.append(1),
    "extend": lambda items: items.extend([1]),
    "insert": lambda items: items.insert(0, 1),
    "remove": lambda items: items.remove(3),
    "pop": lambda items: items.pop(),
    "clear": lambda items: items.clear(),
    "sort": lambda items: items.sort(),
    "reverse": lambda items: items.reverse(),
    "set item": lambda items: items.__setitem__(0, 1),
    "set slice": lambda items: items.__setitem__(slice(0, 1), [1]),
    "del item": lambda items: items.__delitem__(0),
    "*=": lambda items: items.__imul__(2),
}
IN_PLACE_DICT = {
    "update": lambda mapping: mapping.update(a=1),
    "setdefault": lambda mapping: mapping.setdefault("b", 1),
    "pop": lambda mapping: mapping.pop("a"),
    "popitem": lambda mapping: mapping.popitem(),
    "clear": lambda mapping: mapping.clear(),
    "set item": lambda mapping: mapping.__setitem__("a", 1),
    "del item": lambda mapping: mapping.__delitem__("a"),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_list_in_the_log_cannot_be_changed_in_place(name):
    row = TrainingLog()[0]
    row["items"] = [3, 2]
    with pytest.raises(TypeError, match=r"cannot be changed in place.*assign a new value"):
        IN_PLACE[name](row["items"])
    assert row["items"] == [3, 2]


@pytest.mark.parametrize("name", IN_PLACE_DICT)
def test_dict_in_the_log_cannot_be_changed_in_place(name):
    row = TrainingLog()[0]
    row["items"] = {"a": 0}
    with pytest.raises(TypeError, match=r"cannot be changed in place.*assign a new value"):
        IN_PLACE_DICT[name](row["items"])
    assert row["items"] == {"a": 0}


def test_list_inside_another_value_cannot_be_changed_in_place():
    row = TrainingLog()[0]
    row["items"] = {"a": ([1],)}
    with pytest.raises(TypeError, match="cannot be changed in place"):
        row["items"]["a"][0].append(2)


def test_array_in_the_log_cannot_be_changed_in_place():
    row = TrainingLog()[0]
    row["array"] = np.zeros(2)
    with pytest.raises(ValueError, match="read-only"):
        row["array"][0] = 1


async def test_array_read_back_cannot_be_changed_in_place(database):
    log = SQLiteLog(database)
    log[0]["array"] = np.zeros(2)
    await log.flush()
    again = await reopen(log)
    with pytest.raises(ValueError, match="read-only"):
        again[0]["array"][0] = 1


async def test_list_read_back_cannot_be_changed_in_place(database):
    log = SQLiteLog(database)
    log[0]["items"] = {"a": [1]}
    await log.flush()
    again = await reopen(log)
    with pytest.raises(TypeError, match="cannot be changed in place"):
        again[0]["items"]["a"].append(2)


@pytest.mark.parametrize("value", [[1], {"a": [1]}, ([1],)], ids=["list", "dict", "tuple"])
def test_change_of_what_was_assigned_does_not_reach_the_log(value):
    row = TrainingLog()[0]
    row["items"] = given = copy.deepcopy(value)
    inner = given if isinstance(given, list) else given["a" if isinstance(given, dict) else 0]
    inner.append(2)
    assert exact(row["items"]) == exact(value)


def test_change_of_an_array_that_was_assigned_does_not_reach_the_log():
    row = TrainingLog()[0]
    row["array"] = array = np.zeros(2)
    array[0] = 1
    assert exact(row["array"]) == exact(np.zeros(2))


def test_assigned_array_stays_writable_for_its_owner():
    array = np.zeros(2)
    TrainingLog()[0]["array"] = array
    assert array.flags.writeable


def test_array_of_a_subclass_is_kept_as_a_plain_array():
    row = TrainingLog()[0]
    row["array"] = np.zeros(2).view(np.recarray)
    assert type(row["array"]) is np.ndarray


async def test_plus_equals_on_a_list_is_kept_and_persisted(database):
    log = SQLiteLog(database)
    log[0]["items"] = [1]
    await log.flush()
    log[0]["items"] += [2]
    await log.flush()
    assert (log[0]["items"], (await reopen(log))[0]["items"]) == ([1, 2], [1, 2])


async def test_or_equals_on_a_dict_is_kept_and_persisted(database):
    log = SQLiteLog(database)
    log[0]["items"] = {"a": 1, "b": 1}
    await log.flush()
    log[0]["items"] |= {"b": 2}
    await log.flush()
    assert (log[0]["items"], (await reopen(log))[0]["items"]) == ({"a": 1, "b": 2},) * 2


def test_plus_equals_with_what_cannot_be_kept_leaves_the_list():
    row = TrainingLog()[0]
    row["items"] = [1]
    with pytest.raises(LogValueError, match="record 'items'"):
        row["items"] += [object()]
    assert row["items"] == [1]


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))],  # noqa: S301
    ids=["copy", "deepcopy", "pickle"],
)
def test_copies_of_lists_and_dicts_are_ordinary(copied):
    row = TrainingLog()[0]
    row.update(items=[1], mapping={"a": 1})
    assert [type(copied(value)) for value in row.values()] == [list, dict]
