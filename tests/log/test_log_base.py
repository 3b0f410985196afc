"""Rows, times and status: a log is a mapping of times to dictionaries, in memory and in SQLite."""

import asyncio
import copy
import pickle
import uuid

import numpy as np
import pytest
from log_tools import exact, make_log, reopen, rows_of

from aloop.errors import (
    AlreadyRunningError,
    BackendError,
    LogKeyError,
    LogTimeError,
    LogValueError,
    NoEpochError,
)
from aloop.log.backends import BACKENDS, create_log
from aloop.log.base import TrainingLog
from aloop.log.sqlite import SQLiteLog

KINDS = ["memory", "sqlite"]


@pytest.fixture(params=KINDS)
def log(request, database):
    """An empty log of each backend, whose writes are not to be saved."""
    log = make_log(request.param, database)
    yield log
    if log._changes is not None:
        log._changes.clear()


# ------------------------------------------------------------------ times


@pytest.mark.parametrize(
    "time",
    [-1, -(2**70), 2**63, 1.0, -0.5, np.float64(1), "1", "", None, True, False, np.True_, b"1", 1j],
    ids=repr,
)
def test_time_that_is_no_whole_number_from_0_on_is_refused(log, time):
    with pytest.raises(LogTimeError, match=r"log time is .*expected"):
        log[time]


@pytest.mark.parametrize(
    "time",
    [slice(0, 2), [1], {}, np.array([1, 2]), np.array(1.5)],
    ids=["slice", "list", "dict", "array", "0-d array of floats"],
)
def test_time_that_cannot_be_hashed_is_refused(log, time):
    with pytest.raises(LogTimeError, match=r"log time is .*expected"):
        log[time]


@pytest.mark.parametrize("time", [True, 1.0, np.True_], ids=repr)
def test_time_that_equals_one_with_a_row_is_refused_just_the_same(log, time):
    log[1]["cost"] = 0.5
    with pytest.raises(LogTimeError):
        log[time]


def test_refusal_of_a_time_names_it(log):
    with pytest.raises(LogTimeError, match=r"log time is -3; expected a whole number from 0 on"):
        log[-3]


def test_refused_time_makes_no_row(log):
    with pytest.raises(LogTimeError):
        log[-1]
    assert (list(log), len(log)) == ([], 0)


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.int32])
def test_whole_numbers_of_numpy_are_times(log, kind):
    log[kind(3)]["cost"] = 0.5
    assert (log[3] is log[kind(3)], [type(time) for time in log]) == (True, [int])


def test_whole_numbers_of_numpy_are_found_by_in(log):
    log[3]["cost"] = 0.5
    assert np.int64(3) in log


def test_in_finds_no_times_that_the_log_refuses(log):
    log[1]["cost"] = log[0]["cost"] = 0.5
    assert [time for time in (True, False, 1.0, "1", None, -1) if time in log] == []


def test_largest_time_is_a_time(log):
    log[2**63 - 1]["cost"] = 0.5
    assert list(log) == [2**63 - 1]


def test_untouched_row_is_empty(log):
    assert dict(log[7]) == {}


def test_untouched_row_does_not_count(log):
    log[7]
    assert (len(log), list(log), 7 in log) == (0, [], False)


def test_untouched_row_can_be_written_later(log):
    row = log[7]
    row["cost"] = 0.5
    assert rows_of(log) == {7: {"cost": 0.5}}


def test_same_time_gives_the_same_row(log):
    assert log[7] is log[7]


def test_row_without_its_last_record_does_not_count(log):
    log[7]["cost"] = 0.5
    del log[7]["cost"]
    assert (len(log), list(log), 7 in log) == (0, [], False)


def test_times_come_in_ascending_order(log):
    for time in (5, 0, 30, 2):
        log[time]["cost"] = 0.5
    assert list(log) == [0, 2, 5, 30]


def test_row_holding_only_a_false_value_counts(log):
    log[3]["cost"] = None
    assert (len(log), list(log), 3 in log) == (1, [3], True)


def test_get_record_gives_the_record(log):
    log[3]["cost"] = 0.5
    assert log.get_record(3, "cost", "none") == 0.5


def test_get_record_gives_the_default_for_an_absent_key(log):
    log[3]["cost"] = 0.5
    assert log.get_record(3, "accuracy", "none") == "none"


def test_get_record_makes_no_row(log):
    assert (log.get_record(3, "cost"), log._rows) == (None, {})


def test_current_row_is_that_of_the_iterations_done(log):
    log.status["iterations_done"] = 4
    log.current_row["cost"] = 0.5
    assert rows_of(log) == {4: {"cost": 0.5}}


def test_previous_row_is_that_of_the_time_before(log):
    log[3]["cost"] = 0.5
    log.status["iterations_done"] = 4
    assert log.previous_row is log[3]


def test_previous_row_at_time_0_is_an_error(log):
    with pytest.raises(LogTimeError, match="no row before it"):
        log.previous_row  # noqa: B018 - reading it is the test


def test_last_epoch_row_before_any_epoch_is_an_error(log):
    with pytest.raises(NoEpochError, match=r"after 0 epochs.*log\.status\['epochs_done'\]"):
        log.last_epoch_row  # noqa: B018 - reading it is the test


def test_last_epoch_row_is_that_of_the_last_epochs_end(log):
    for iterations in (10, 25):
        log.status["iterations_done"] = iterations
        log.status.end_epoch()
    log.status["iterations_done"] = 30
    log[25]["cost"] = 0.5
    assert log.last_epoch_row is log[25]


def test_end_epoch_counts_the_epoch_and_notes_its_end(log):
    for iterations in (10, 25):
        log.status["iterations_done"] = iterations
        log.status.end_epoch()
    assert (log.status["epochs_done"], log.status["_epoch_ends"]) == (2, [10, 25])


def test_epoch_ends_may_outgrow_what_a_record_may_hold(log):
    log.status.write_trusted("_epoch_ends", [10**18] * 60_000)
    log.status.end_epoch()
    assert len(log.status["_epoch_ends"]) == 60_001


def test_repr_tells_what_the_log_holds(log):
    log.status["iterations_done"] = 3
    log[3]["cost"] = 0.5
    name = type(log).__name__
    assert repr(log) == f"<{name} {log.h_uuid[:8]}: 3 iterations, 0 epochs>"


# ------------------------------------------------------------------ status


def test_status_of_a_new_log(log):
    assert exact(dict(log.status)) == exact(
        {"iterations_done": 0, "epochs_done": 0, "_epoch_ends": [], "resumed_from": None}
    )


def test_status_iterates_like_a_dict(log):
    log.status["best"] = 1
    expected = ["iterations_done", "epochs_done", "_epoch_ends", "resumed_from", "best"]
    assert (list(log.status), len(log.status)) == (expected, 5)


def test_status_deletes_like_a_dict(log):
    log.status["best"] = 1
    del log.status["best"]
    assert "best" not in log.status


def test_deleting_an_absent_status_is_a_key_error(log):
    with pytest.raises(KeyError, match="best"):
        del log.status["best"]


def test_declare_leaves_keys_that_are_there(log):
    log.status["best"] = 1
    log.status.declare({"best": 2, "worst": 3})
    assert (log.status["best"], log.status["worst"]) == (1, 3)


def test_declare_is_not_a_change(database):
    log = SQLiteLog(database)
    log.status.declare({"best": 2})
    assert log._changes == []


def test_declare_refuses_what_the_log_cannot_hold(log):
    with pytest.raises(LogValueError, match="record 'best'"):
        log.status.declare({"best": object()})


# ------------------------------------------------------------------ the dictionary's methods


def set_item(row):
    row["c"] = 3


def set_again(row):
    row["a"] = 9


def delete(row):
    del row["a"]


def delete_and_set(row):
    del row["a"]
    row["a"] = 4


def ior(row):
    row |= {"a": 9, "c": 3}


def ior_pairs(row):
    row |= [("c", 3)]


MUTATORS = {
    "set": (set_item, {"a": 1, "b": 2, "c": 3}),
    "set again": (set_again, {"a": 9, "b": 2}),
    "del": (delete, {"b": 2}),
    "del, then set": (delete_and_set, {"b": 2, "a": 4}),
    "|=": (ior, {"a": 9, "b": 2, "c": 3}),
    "|= pairs": (ior_pairs, {"a": 1, "b": 2, "c": 3}),
    "update dict": (lambda row: row.update({"a": 9, "c": 3}), {"a": 9, "b": 2, "c": 3}),
    "update keywords": (lambda row: row.update(c=3), {"a": 1, "b": 2, "c": 3}),
    "update both": (lambda row: row.update({"c": 3}, d=4), {"a": 1, "b": 2, "c": 3, "d": 4}),
    "update pairs": (lambda row: row.update([("c", 3)]), {"a": 1, "b": 2, "c": 3}),
    "update nothing": (lambda row: row.update(), {"a": 1, "b": 2}),
    "setdefault absent": (lambda row: row.setdefault("c", 3), {"a": 1, "b": 2, "c": 3}),
    "setdefault None": (lambda row: row.setdefault("c"), {"a": 1, "b": 2, "c": None}),
    "setdefault present": (lambda row: row.setdefault("a", 3), {"a": 1, "b": 2}),
    "pop": (lambda row: row.pop("a"), {"b": 2}),
    "pop absent": (lambda row: row.pop("z", None), {"a": 1, "b": 2}),
    "popitem": (lambda row: row.popitem(), {"a": 1}),
    "clear": (lambda row: row.clear(), {}),
}


@pytest.fixture(params=["row", "status"])
def place(request):
    """Both kinds of dictionaries that a log has."""

    def get(log):
        if request.param == "row":
            return log[3]
        if "resumed_from" in log.status:
            dict.clear(log.status)
        return log.status

    return get


@pytest.mark.parametrize("name", MUTATORS)
def test_mutator_changes_memory_like_a_dict(log, place, name):
    mutate, expected = MUTATORS[name]
    records = place(log)
    records.update(a=1, b=2)
    mutate(records)
    assert list(records.items()) == list(expected.items())


@pytest.mark.parametrize("saved", [False, True], ids=["unsaved", "saved"])
@pytest.mark.parametrize("name", MUTATORS)
async def test_mutator_of_a_row_is_persisted(database, name, saved):
    mutate, expected = MUTATORS[name]
    async with SQLiteLog(database) as log:
        log[3].update(a=1, b=2)
        if saved:
            await log.flush()
        mutate(log[3])
    assert rows_of(await reopen(log)) == ({3: expected} if expected else {})


@pytest.mark.parametrize("name", MUTATORS)
async def test_mutator_of_the_status_is_persisted(database, name):
    mutate, expected = MUTATORS[name]
    declared = {"iterations_done": 0, "epochs_done": 0, "_epoch_ends": [], "resumed_from": None}
    async with SQLiteLog(database) as log:
        log.status.update(a=1, b=2)
        await log.flush()
        mutate(log.status)
    if name == "clear":
        declared = {}
    assert dict((await reopen(log)).status) == declared | expected


async def test_deleted_declared_status_stays_deleted(database):
    async with SQLiteLog(database) as log:
        del log.status["resumed_from"]
    assert "resumed_from" not in (await reopen(log)).status


GIVEN = {
    "pop": (lambda row: row.pop("a"), 1),
    "pop absent": (lambda row: row.pop("z", 5), 5),
    "pop absent None": (lambda row: row.pop("z", None), None),
    "popitem": (lambda row: row.popitem(), ("b", 2)),
    "setdefault absent": (lambda row: row.setdefault("c", np.int64(3)), 3),
    "setdefault present": (lambda row: row.setdefault("a", 3), 1),
    "get": (lambda row: row.get("a"), 1),
    "get absent": (lambda row: row.get("z", 5), 5),
    "|": (lambda row: row | {"c": 3}, {"a": 1, "b": 2, "c": 3}),
    "copy": (lambda row: row.copy(), {"a": 1, "b": 2}),
}


@pytest.mark.parametrize("name", GIVEN)
def test_method_gives_what_that_of_a_dict_gives(log, place, name):
    method, expected = GIVEN[name]
    records = place(log)
    records.update(a=1, b=2)
    assert exact(method(records)) == exact(expected)


def test_pop_of_an_absent_key_without_default_is_a_key_error(log):
    with pytest.raises(KeyError, match="z"):
        log[3].pop("z")


def test_popitem_of_an_empty_row_is_a_key_error(log):
    with pytest.raises(KeyError):
        log[3].popitem()


@pytest.mark.parametrize(
    ("mutate", "error"),
    [
        (lambda row: row.update(a=9, c=object()), LogValueError),
        (lambda row: row.update({"a": 9, 5: 1}), LogKeyError),
        (lambda row: row.__ior__({"a": 9, "c": 2**63}), LogValueError),
        (lambda row: row.update([("a", 9), ("c", {1})]), LogValueError),
        (lambda row: row.update(5), TypeError),
        (lambda row: row.setdefault("c", object()), LogValueError),
        (lambda row: row.setdefault(5, 1), LogKeyError),
    ],
    ids=["value", "key", "|=", "pairs", "no mapping", "setdefault value", "setdefault key"],
)
async def test_refused_mutation_changes_nothing_anywhere(database, mutate, error):
    async with SQLiteLog(database) as log:
        log[3].update(a=1, b=2)
        with pytest.raises(error):
            mutate(log[3])
        assert dict(log[3]) == {"a": 1, "b": 2}
    assert rows_of(await reopen(log)) == {3: {"a": 1, "b": 2}}


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda row: pickle.loads(pickle.dumps(row))],  # noqa: S301
    ids=["copy", "deepcopy", "pickle"],
)
def test_copy_of_a_row_is_an_ordinary_dict(log, copied):
    log[3]["a"] = 1
    copied_row = copied(log[3])
    copied_row["b"] = object()
    assert (type(copied_row), dict(log[3])) == (dict, {"a": 1})


# ------------------------------------------------------------------ ids, runs, sessions


def test_new_log_has_a_new_id():
    assert TrainingLog().uuid != TrainingLog().uuid


def test_h_uuid_is_the_id_in_hexadecimal():
    log = TrainingLog()
    assert log.h_uuid == log.uuid.hex


@pytest.mark.parametrize("form", [str, lambda u: u.hex, lambda u: u, lambda u: u.urn])
def test_id_may_be_given_in_any_form_of_a_uuid(form):
    given = uuid.uuid4()
    assert TrainingLog(form(given)).uuid == given


@pytest.mark.parametrize("given", ["", "abc", "z" * 32, 5, b"x", 1.5, ["a"]], ids=repr)
@pytest.mark.parametrize("make", [TrainingLog, lambda u: SQLiteLog("x.sqlite", u)], ids=KINDS)
def test_what_is_no_id_is_refused(make, given):
    with pytest.raises(ValueError, match=r"log uuid is .*32 hexadecimal digits"):
        make(given)


def test_resume_goes_on_under_a_new_id(log):
    old = log.h_uuid
    log.resume()
    assert (log.h_uuid != old, log.status["resumed_from"]) == (True, old)


def test_resume_carries_the_status_over(log):
    log.status.update(iterations_done=3, best=0.5)
    log.resume()
    assert (log.status["iterations_done"], log.status["best"]) == (3, 0.5)


def test_resume_keeps_rows_up_to_the_current_time_only(log):
    for time in range(6):
        log[time]["cost"] = time
    log.status["iterations_done"] = 3
    log.resume()
    assert rows_of(log) == {time: {"cost": time} for time in range(4)}


def test_row_after_the_fork_is_new_and_writable(log):
    log[5]["cost"] = 1
    log.resume()
    log[5]["other"] = 2
    assert rows_of(log) == {5: {"other": 2}}


def test_row_held_from_after_the_fork_does_not_write_into_the_new_run(log):
    held = log[5]
    log.resume()
    held["cost"] = 1
    assert dict(log[5]) == {}


async def test_row_held_from_after_the_fork_does_not_write_into_the_new_runs_file(database):
    async with SQLiteLog(database) as log:
        held = log[5]
        held["cost"] = 1
        log.resume()
        held["cost"] = 2
    assert rows_of(await reopen(log)) == {}


async def test_memory_log_commits_flushes_and_opens_for_nothing():
    log = TrainingLog()
    async with log:
        log[0]["cost"] = 0.5
        log.commit(durable=True)
        await log.flush()
    assert rows_of(log) == {0: {"cost": 0.5}}


async def test_second_session_at_a_time_is_refused(log):
    async with log.session():
        with pytest.raises(AlreadyRunningError, match="in use by another run"):
            async with log.session():
                pytest.fail("entered twice")


async def test_refused_second_session_leaves_the_first_one_alone(database):
    log = SQLiteLog(database)
    async with log.session():
        with pytest.raises(AlreadyRunningError):
            async with log.session():
                pytest.fail("entered twice")
        log[0]["cost"] = 0.5
        assert (log.is_open, log._in_session) == (True, True)
    assert rows_of(await reopen(log)) == {0: {"cost": 0.5}}


async def test_session_can_be_held_again_after_an_error(log):
    with pytest.raises(KeyError):
        async with log.session():
            raise KeyError
    async with log.session():
        assert log._in_session


# ------------------------------------------------------------------ backends


def test_backends_make_their_logs():
    assert {name: type(create_log(name)) for name in BACKENDS} == {
        "python": TrainingLog,
        "sqlite": SQLiteLog,
    }


@pytest.mark.parametrize("backend", ["mongodb", "", "SQLite", 5, ["sqlite"]], ids=repr)
def test_unknown_backend_error_lists_the_known_ones(backend):
    with pytest.raises(BackendError) as info:
        create_log(backend)
    message = str(info.value)
    parts = (f"log_backend is {backend!r}", "'python'", "'sqlite'", "log=")
    assert [part for part in parts if part not in message] == []


def test_writing_takes_no_event_loop(database):
    log = SQLiteLog(database)
    log[0]["cost"] = 0.5
    log.commit()
    log.resume()
    assert not database.exists()
    log._changes.clear()


def test_flush_of_a_memory_log_returns_at_once():
    log = TrainingLog()
    log[0]["cost"] = 0.5
    assert asyncio.run(log.flush()) is None
