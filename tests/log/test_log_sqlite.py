"""What is written to a log is in its file: by run, by boundary, along the lineage."""

import gc
import sqlite3
import uuid
import warnings
from contextlib import closing

import numpy as np
import pytest
from log_helpers import change, query
from log_tools import entries_of, exact, join_connection_threads, reopen, rows_of

from aloop.config import config
from aloop.errors import (
    AloopError,
    ArgumentError,
    JournalError,
    LogFileError,
    LogValueError,
    UnknownRunError,
)
from aloop.log.sqlite import SQLiteLog

# ------------------------------------------------------------------ opening


def test_constructor_makes_no_file(database):
    SQLiteLog(database)
    assert not database.exists()


async def test_opening_makes_the_file(database):
    async with SQLiteLog(database):
        assert database.exists()


async def test_database_may_be_given_as_text(database):
    async with SQLiteLog(str(database)) as log:
        assert log.database == database


async def test_database_defaults_to_the_setting(database):
    config.sqlite_database = str(database)
    async with SQLiteLog() as log:
        assert (log.database, database.exists()) == (database, True)


async def test_relative_path_stays_the_same_file_when_the_directory_changes(
    tmp_path, monkeypatch, database
):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    log = SQLiteLog("log.sqlite")
    monkeypatch.chdir(tmp_path / "elsewhere")
    async with log:
        pass
    assert database.exists()


async def test_home_directory_is_expanded(tmp_path, monkeypatch, database):
    monkeypatch.setenv("HOME", str(tmp_path))
    async with SQLiteLog("~/log.sqlite"):
        assert database.exists()


@pytest.mark.parametrize("name", ["a b.sqlite", "a?b#c%20.sqlite", "é😀.sqlite", "'\";.sqlite"])
async def test_file_of_an_odd_name_is_written_and_read(tmp_path, name):
    log = SQLiteLog(tmp_path / name)
    log[0]["cost"] = 0.5
    await log.flush()
    assert rows_of(await reopen(log)) == {0: {"cost": 0.5}}


async def test_a_log_that_was_opened_twice_is_closed_by_the_second_close(database):
    log = SQLiteLog(database)
    await log.open()
    journal = log._journal
    assert await log.open() is log
    assert log._journal is journal
    await log.close()
    assert log.is_open
    await log.close()
    assert not log.is_open


async def test_closing_twice_is_closing_once(database):
    log = SQLiteLog(database)
    await log.open()
    await log.close()
    await log.close()
    assert not log.is_open


async def test_log_reads_on_after_it_was_closed(database):
    async with SQLiteLog(database) as log:
        log[0]["cost"] = 0.5
    assert rows_of(log) == {0: {"cost": 0.5}}


async def test_log_can_be_opened_again(database):
    log = SQLiteLog(database)
    for time in range(3):
        async with log:
            log[time]["cost"] = time
    assert rows_of(await reopen(log)) == {0: {"cost": 0}, 1: {"cost": 1}, 2: {"cost": 2}}


async def test_opening_again_starts_no_second_run(database):
    log = SQLiteLog(database)
    for _ in range(3):
        async with log:
            pass
    assert query(database, "SELECT run FROM runs") == [(log.h_uuid,)]


async def test_inner_opening_does_not_close_the_outer_one(database):
    async with SQLiteLog(database) as log:
        async with log:
            pass
        log[0]["cost"] = 0.5
    lost = len(log._changes)
    log._changes.clear()
    assert (entries_of(database, log), lost) == ([(0, "cost", 0.5)], 0)


async def test_opening_inside_a_session_does_not_end_its_writing(database):
    log = SQLiteLog(database)
    async with log.session():
        async with log:
            pass
        log[0]["cost"] = 0.5
        log.commit()
    lost = len(log._changes)
    log._changes.clear()
    assert (entries_of(database, log), lost) == ([(0, "cost", 0.5)], 0)


async def test_existing_empty_file_is_refused_and_left_alone(database):
    database.touch()
    with pytest.raises(LogFileError, match=r"0 bytes.*delete it to begin a new log"):
        await SQLiteLog(database).open()
    assert database.stat().st_size == 0


async def test_empty_database_of_sqlite_becomes_a_log(database):
    change(database, "VACUUM")
    async with SQLiteLog(database) as log:
        log[0]["cost"] = 0.5
    assert rows_of(await reopen(log)) == {0: {"cost": 0.5}}


# ------------------------------------------------------------------ what cannot be opened


async def opening_error(database, run=None):
    """Give the message of the `LogFileError` that opening raises."""
    log = SQLiteLog(database, run)
    with pytest.raises(LogFileError) as info:
        await log.open()
    join_connection_threads()
    assert not log.is_open
    return str(info.value)


async def test_missing_directory_is_an_error_that_names_path_and_remedy(tmp_path):
    message = await opening_error(tmp_path / "missing" / "log.sqlite")
    assert (str(tmp_path / "missing" / "log.sqlite") in message, "directory" in message) == (
        True,
        True,
    )


async def test_directory_as_database_is_an_error(tmp_path):
    assert "is a directory; expected the path of a file" in await opening_error(tmp_path)


async def test_file_as_directory_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    assert "cannot be opened" in await opening_error(tmp_path / "file" / "log.sqlite")


@pytest.mark.parametrize("path", ["a\0b.sqlite", "", 3, b"log.sqlite"], ids=repr)
def test_what_is_no_path_is_an_error(path):
    with pytest.raises(ArgumentError, match="expected the path of a file"):
        SQLiteLog(path)


async def test_file_that_is_no_database_is_an_error(database):
    database.write_text("some notes, certainly more than a header's worth of text" * 100)
    message = await opening_error(database)
    assert f"{database} is not a SQLite database" in message
    assert "choose another path" in message


async def test_file_that_is_no_database_stays_as_it_was(database):
    database.write_text("notes" * 1000)
    await opening_error(database)
    assert database.read_text() == "notes" * 1000


async def test_database_of_another_program_is_an_error(database):
    change(database, "CREATE TABLE users (name TEXT)")
    message = await opening_error(database)
    assert f"{database} is a database of another program" in message
    assert "choose another path" in message


async def test_database_of_another_program_stays_as_it_was(database):
    change(database, "CREATE TABLE users (name TEXT)", "INSERT INTO users VALUES ('a')")
    before = database.read_bytes()
    await opening_error(database)
    assert database.read_bytes() == before


async def test_empty_database_with_a_version_of_another_program_is_an_error(database):
    change(database, "PRAGMA user_version = 5")
    assert "of another program" in await opening_error(database)


async def test_newer_schema_is_an_error_that_names_both_versions(database):
    async with SQLiteLog(database):
        pass
    change(database, "PRAGMA user_version = 7")
    message = await opening_error(database)
    parts = (str(database), "schema version 7", "at most 1", "upgrade aloop")
    assert [part for part in parts if part not in message] == []


async def test_damaged_file_is_an_error_when_a_run_is_read(database):
    log = SQLiteLog(database)
    for time in range(2000):
        log[time]["cost"] = float(time)
    await log.flush()
    content = database.read_bytes()
    database.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    assert str(database) in await opening_error(database, log.uuid)


async def test_log_can_be_opened_once_its_directory_is_there(tmp_path):
    log = SQLiteLog(tmp_path / "later" / "log.sqlite")
    log[0]["cost"] = 0.5
    with pytest.raises(LogFileError):
        await log.open()
    (tmp_path / "later").mkdir()
    await log.flush()
    assert rows_of(await reopen(log)) == {0: {"cost": 0.5}}


async def test_file_that_went_away_is_an_error_and_not_a_loss(database):
    log = SQLiteLog(database)
    log[0]["cost"] = 0.5
    await log.flush()
    for path in database.parent.glob("log.sqlite*"):
        path.unlink()
    log[1]["cost"] = 0.25
    try:
        with pytest.raises(AloopError):
            await log.flush()
    finally:
        log._changes.clear()


async def test_file_that_was_replaced_by_another_log_is_an_error_and_not_a_mix(database):
    log = SQLiteLog(database)
    log[0]["cost"] = 0.5
    await log.flush()
    for path in database.parent.glob("log.sqlite*"):
        path.unlink()
    other = SQLiteLog(database)
    other[0]["cost"] = 7
    await other.flush()
    log[1]["cost"] = 0.25
    try:
        with pytest.raises(AloopError):
            await log.flush()
    finally:
        log._changes.clear()
    assert entries_of(database, other) == [(0, "cost", 7)]


# ------------------------------------------------------------------ a run of the file


async def three_rows(database):
    log = SQLiteLog(database)
    for time in range(3):
        log[time].update(cost=time / 2, batch=time)
    log.status.update(iterations_done=2, best=0.5)
    await log.flush()
    return log


@pytest.mark.parametrize("form", [str, lambda u: u.hex, lambda u: u], ids=["text", "hex", "UUID"])
async def test_run_is_read_back_by_its_id(database, form):
    log = await three_rows(database)
    again = await reopen(log, form(log.uuid))
    assert exact(rows_of(again)) == exact(rows_of(log))


async def test_status_is_read_back_by_the_runs_id(database):
    log = await three_rows(database)
    again = await reopen(log)
    assert exact(dict(sorted(again.status.items()))) == exact(dict(sorted(log.status.items())))


async def test_id_of_the_run_stays_its_id(database):
    log = await three_rows(database)
    assert (await reopen(log)).uuid == log.uuid


async def test_run_that_was_read_goes_on_under_its_id(database):
    log = await three_rows(database)
    async with SQLiteLog(database, log.uuid) as again:
        again[3]["cost"] = 9
        del again[0]["cost"]
    assert rows_of(await reopen(log)) == {
        0: {"batch": 0},
        1: {"cost": 0.5, "batch": 1},
        2: {"cost": 1.0, "batch": 2},
        3: {"cost": 9},
    }


async def test_reading_a_run_starts_no_run(database):
    log = await three_rows(database)
    await reopen(log)
    assert query(database, "SELECT run FROM runs") == [(log.h_uuid,)]


async def test_row_that_was_held_before_reading_is_filled(database):
    log = await three_rows(database)
    again = SQLiteLog(database, log.uuid)
    row = again[1]
    async with again:
        assert (row is again[1], dict(row)) == (True, {"cost": 0.5, "batch": 1})


async def test_what_was_written_before_the_opening_wins_over_the_file(database):
    log = await three_rows(database)
    again = SQLiteLog(database, log.uuid)
    again[1]["cost"] = 7
    again.status["best"] = 8
    async with again:
        assert (again[1], again.status["best"]) == ({"cost": 7, "batch": 1}, 8)
    later = await reopen(log)
    assert (later[1], later.status["best"]) == ({"cost": 7, "batch": 1}, 8)


async def test_what_was_written_and_deleted_before_the_opening_is_deleted(database):
    log = await three_rows(database)
    again = SQLiteLog(database, log.uuid)
    again[1]["cost"] = 7
    del again[1]["cost"]
    await again.flush()
    assert (again[1], (await reopen(log))[1]) == ({"batch": 1}, {"batch": 1})


async def test_flush_reads_the_run_of_a_log_that_was_never_opened(database):
    log = await three_rows(database)
    again = SQLiteLog(database, log.uuid)
    await again.flush()
    assert rows_of(again) == rows_of(log)


async def test_unknown_run_is_an_error_that_names_it_and_the_latest(database):
    log = await three_rows(database)
    unknown = uuid.uuid4().hex
    with pytest.raises(UnknownRunError) as info:
        await reopen(log, unknown)
    message = str(info.value)
    assert [part for part in (str(database), unknown, log.h_uuid) if part not in message] == []


async def test_unknown_run_leaves_the_log_closed(database):
    await three_rows(database)
    log = SQLiteLog(database, uuid.uuid4())
    with pytest.raises(UnknownRunError):
        await log.open()
    assert not log.is_open


async def test_run_asked_of_a_database_in_memory_is_unknown():
    with pytest.raises(UnknownRunError, match="path of a file"):
        await SQLiteLog(":memory:", uuid.uuid4()).open()


async def test_resuming_a_run_before_it_is_read_is_an_error(database):
    log = await three_rows(database)
    again = SQLiteLog(database, log.uuid)
    with pytest.raises(JournalError, match="open it first"):
        again.resume()


async def test_commit_points_are_counted_on_across_sittings(database):
    log = await three_rows(database)
    before = log.sequence
    async with SQLiteLog(database, log.uuid) as again:
        assert again.sequence == before
        again.commit()
        assert again.sequence == before + 1


async def test_name_and_hyperparameters_are_kept_with_the_run(database):
    log = SQLiteLog(database)
    log.describe("a run", {"rate": np.float32(0.5), "layers": (1, 2)})
    await log.open()
    await log.close()
    again = await reopen(log)
    assert (again.name, exact(again.hyperparameters)) == (
        "a run",
        exact({"rate": 0.5, "layers": (1, 2)}),
    )


async def test_hyperparameters_are_json_for_users_of_sql(database):
    log = SQLiteLog(database)
    log.describe("a run", {"rate": 0.5, "sizes": [1, 2]})
    await log.open()
    await log.close()
    assert query(
        database,
        "SELECT name, hyperparameters ->> '$.rate', hyperparameters ->> '$.sizes[1]' FROM runs",
    ) == [("a run", 0.5, 2)]


def test_hyperparameters_are_held_to_what_a_record_may_be(database):
    log = SQLiteLog(database)
    with pytest.raises(LogValueError, match="'hyperparameters' is of type object"):
        log.describe(hyperparameters={"model": object()})
    assert log.hyperparameters is None


@pytest.mark.parametrize("name", [["a"], {"a": 1}, np.zeros(2)], ids=repr)
def test_name_that_is_no_text_is_refused(database, name):
    with pytest.raises(LogValueError, match="name"):
        SQLiteLog(database).describe(name)


# ------------------------------------------------------------------ lineage


async def resumed_at(log, time):
    """Go on from `time` under a new id, with a row on it that tells which run wrote it."""
    log.status["iterations_done"] = time
    log.resume()
    log[time + 1]["run"] = log.h_uuid
    await log.flush()
    return log.uuid


async def test_resumed_run_sees_its_ancestors_rows_up_to_the_fork(database):
    log = await three_rows(database)
    new = await resumed_at(log, 1)
    assert rows_of(await reopen(log)) == {
        0: {"cost": 0.0, "batch": 0},
        1: {"cost": 0.5, "batch": 1},
        2: {"run": new.hex},
    }


async def test_ancestor_keeps_its_rows_after_the_fork(database):
    log = await three_rows(database)
    before, old = rows_of(log), log.uuid
    await resumed_at(log, 0)
    assert rows_of(await reopen(log, old)) == before


async def test_ancestors_status_stays_as_it_was_at_the_fork(database):
    log = await three_rows(database)
    old = log.uuid
    await resumed_at(log, 2)
    log.status["best"] = 0.1
    await log.flush()
    assert (await reopen(log, old)).status["best"] == 0.5


async def test_resumed_run_carries_the_status_in_the_file(database):
    log = await three_rows(database)
    old = log.h_uuid
    await resumed_at(log, 2)
    again = await reopen(log)
    assert (again.status["best"], again.status["resumed_from"]) == (0.5, old)


async def test_runs_table_tells_where_a_run_was_resumed(database):
    log = await three_rows(database)
    old = log.h_uuid
    await resumed_at(log, 1)
    assert query(database, "SELECT run, resumed_from, forked_at FROM runs ORDER BY id") == [
        (old, None, None),
        (log.h_uuid, old, 1),
    ]


async def test_nearest_ancestor_wins(database):
    log = await three_rows(database)
    await resumed_at(log, 1)
    log[1]["cost"] = "second run"
    await resumed_at(log, 2)
    assert (await reopen(log))[1] == {"cost": "second run", "batch": 1}


async def test_own_record_wins_over_the_ancestors(database):
    log = await three_rows(database)
    await resumed_at(log, 1)
    log[0]["cost"] = "own"
    await log.flush()
    assert (await reopen(log))[0] == {"cost": "own", "batch": 0}


async def test_overwriting_an_ancestors_record_leaves_the_ancestor_alone(database):
    log = await three_rows(database)
    old = log.uuid
    await resumed_at(log, 1)
    log[0]["cost"] = "own"
    await log.flush()
    assert (await reopen(log, old))[0] == {"cost": 0.0, "batch": 0}


async def test_deleting_an_ancestors_record_hides_it(database):
    log = await three_rows(database)
    await resumed_at(log, 1)
    del log[0]["cost"]
    log[1].clear()
    await log.flush()
    assert rows_of(await reopen(log)) == {0: {"batch": 0}, 2: {"run": log.h_uuid}}


async def test_deleting_an_ancestors_record_leaves_the_ancestor_alone(database):
    log = await three_rows(database)
    old = log.uuid
    await resumed_at(log, 1)
    del log[0]["cost"]
    await log.flush()
    assert (await reopen(log, old))[0] == {"cost": 0.0, "batch": 0}


async def test_record_that_a_grandparents_heir_deleted_stays_hidden(database):
    log = await three_rows(database)
    await resumed_at(log, 1)
    del log[0]["cost"]
    await resumed_at(log, 2)
    assert (await reopen(log))[0] == {"batch": 0}


async def test_record_written_again_after_its_deletion_is_seen(database):
    log = await three_rows(database)
    await resumed_at(log, 1)
    del log[0]["cost"]
    await resumed_at(log, 2)
    log[0]["cost"] = 3
    await log.flush()
    assert (await reopen(log))[0] == {"cost": 3, "batch": 0}


async def test_lower_fork_further_down_limits_the_grandparent(database):
    log = await three_rows(database)
    await resumed_at(log, 2)
    await resumed_at(log, 0)
    assert rows_of(await reopen(log)) == {
        0: {"cost": 0.0, "batch": 0},
        1: {"run": log.h_uuid},
    }


async def test_higher_fork_further_down_does_not_lift_the_grandparents_limit(database):
    log = await three_rows(database)
    second = (await resumed_at(log, 0)).hex
    log[3]["cost"] = "second run"
    await resumed_at(log, 3)
    assert rows_of(await reopen(log)) == {
        0: {"cost": 0.0, "batch": 0},
        1: {"run": second},
        3: {"cost": "second run"},
        4: {"run": log.h_uuid},
    }


async def test_memory_and_file_tell_the_same_story_over_many_runs(database):
    log = await three_rows(database)
    for time in (2, 1, 3, 2, 0, 5):
        await resumed_at(log, time)
    assert rows_of(await reopen(log)) == rows_of(log)


async def test_two_runs_forked_from_one_ancestor_do_not_mix(database):
    log = await three_rows(database)
    other = await reopen(log)
    await resumed_at(log, 1)
    await resumed_at(other, 1)
    assert [(await reopen(each))[2] for each in (log, other)] == [
        {"run": log.h_uuid},
        {"run": other.h_uuid},
    ]


async def test_resumed_run_that_was_read_can_be_resumed_again(database):
    log = await three_rows(database)
    await resumed_at(log, 1)
    again = await reopen(log)
    await resumed_at(again, 2)
    assert rows_of(await reopen(again)) == rows_of(again)


async def test_resuming_before_the_first_opening_is_written_as_two_runs(database):
    log = SQLiteLog(database)
    old = log.h_uuid
    log[0]["cost"] = 0.5
    log.resume()
    log[1]["cost"] = 0.25
    try:
        await log.flush()
    finally:
        log._changes.clear()
    assert query(database, "SELECT run, resumed_from FROM runs ORDER BY id") == [
        (old, None),
        (log.h_uuid, old),
    ]
    assert rows_of(await reopen(log)) == {0: {"cost": 0.5}, 1: {"cost": 0.25}}


async def test_resuming_twice_without_a_write_between_keeps_the_line(database):
    log = await three_rows(database)
    log.resume()
    log.resume()
    await log.flush()
    assert rows_of(await reopen(log)) == rows_of(log)


async def test_resuming_in_a_session_is_written_at_the_next_commit_point(database):
    log = await three_rows(database)
    old = log.h_uuid
    async with log.session():
        log.resume()
        await log.flush()
        before = query(database, "SELECT run FROM runs ORDER BY id")
        log.commit()
        await log.flush()
        after = query(database, "SELECT run FROM runs ORDER BY id")
    assert (before, after) == ([(old,)], [(old,), (log.h_uuid,)])


# ------------------------------------------------------------------ commit points


async def test_flush_in_a_session_writes_what_is_behind_a_commit_point(database):
    log = SQLiteLog(database)
    async with log.session():
        log[1]["cost"] = 0.5
        log.commit()
        await log.flush()
        assert entries_of(database, log) == [(1, "cost", 0.5)]


async def test_flush_in_a_session_writes_nothing_else(database):
    log = SQLiteLog(database)
    async with log.session():
        log[1]["cost"] = 0.5
        log.commit()
        log[1]["accuracy"] = 0.9
        log.status["best"] = 0.5
        await log.flush()
        assert entries_of(database, log) == [(1, "cost", 0.5)]
        assert query(database, "SELECT value FROM status WHERE key = 'best'") == []


async def test_run_itself_is_not_in_the_file_before_its_first_commit_point(database):
    log = SQLiteLog(database)
    async with log.session():
        log[1]["cost"] = 0.5
        await log.flush()
        assert query(database, "SELECT * FROM runs") == []


async def test_flush_outside_a_session_writes_everything(database):
    async with SQLiteLog(database) as log:
        log[1]["cost"] = 0.5
        await log.flush()
        assert entries_of(database, log) == [(1, "cost", 0.5)]


async def test_flush_of_a_closed_log_writes_everything_and_leaves_it_closed(database):
    log = SQLiteLog(database)
    log[1]["cost"] = 0.5
    await log.flush()
    assert (entries_of(database, log), log.is_open) == ([(1, "cost", 0.5)], False)


async def test_flush_of_a_closed_log_without_changes_makes_no_file(database):
    await SQLiteLog(database).flush()
    assert not database.exists()


async def test_end_of_a_session_writes_the_rest(database):
    log = SQLiteLog(database)
    async with log.session():
        log[1]["cost"] = 0.5
        log.commit()
        log[2]["cost"] = 0.25
        log.commit()
    assert entries_of(database, log) == [(1, "cost", 0.5), (2, "cost", 0.25)]
    assert not log.is_open


async def test_session_leaves_a_log_open_that_was_open(database):
    async with SQLiteLog(database) as log:
        async with log.session():
            log[1]["cost"] = 0.5
            log.commit()
        assert (entries_of(database, log), log.is_open) == ([(1, "cost", 0.5)], True)


async def test_session_that_ends_with_an_error_is_written(database):
    log = SQLiteLog(database)

    async def failing_run():
        async with log.session():
            log[1]["cost"] = 0.5
            log.commit()
            raise KeyError

    with pytest.raises(KeyError):
        await failing_run()
    assert (entries_of(database, log), log.is_open) == ([(1, "cost", 0.5)], False)


async def test_commits_before_the_opening_count(database):
    log = SQLiteLog(database)
    log[1]["cost"] = 0.5
    log.commit()
    log[1]["accuracy"] = 0.9
    async with log.session():
        await log.flush()
        assert entries_of(database, log) == [(1, "cost", 0.5)]


async def test_number_of_the_last_commit_point_is_in_the_file(database):
    log = SQLiteLog(database)
    async with log.session():
        for time in range(5):
            log[time]["cost"] = time
            log.commit()
        log[9]["cost"] = 9
        await log.flush()
        assert query(database, "SELECT sequence FROM runs") == [(5,)]


async def test_last_of_many_writes_of_a_record_counts(database):
    async with SQLiteLog(database) as log:
        for value in range(1000):
            log[1]["cost"] = log.status["best"] = value
    again = await reopen(log)
    assert (again[1], again.status["best"]) == ({"cost": 999}, 999)


@pytest.mark.parametrize("count", [1, 2, 3, 255, 256, 257, 511, 1000])
async def test_any_number_of_records_fits_in_a_commit(database, count):
    async with SQLiteLog(database) as log:
        for time in range(count):
            log[time]["cost"] = time
    assert entries_of(database, log) == [(time, "cost", time) for time in range(count)]


async def test_many_keys_fit_in_a_commit(database):
    async with SQLiteLog(database) as log:
        log[0].update({f"key {number}": number for number in range(1000)})
        log.status.update({f"key {number}": number for number in range(1000)})
    again = await reopen(log)
    assert (len(again[0]), len(again.status)) == (1000, 1004)


async def test_latest_times_are_written_and_read(database):
    async with SQLiteLog(database) as log:
        log[2**63 - 1]["cost"] = 0.5
    assert rows_of(await reopen(log)) == {2**63 - 1: {"cost": 0.5}}


# ------------------------------------------------------------------ plain SQL


async def test_documented_columns_are_there(database):
    async with SQLiteLog(database):
        pass
    with closing(sqlite3.connect(database)) as connection:
        columns = {
            name: [column[0] for column in connection.execute(f"SELECT * FROM {name}").description]  # noqa: S608
            for name in ("runs", "entries", "status", "epochs")
        }
    assert columns == {
        "runs": [
            "id",
            "run",
            "name",
            "hyperparameters",
            "started_at",
            "resumed_from",
            "forked_at",
            "sequence",
            "ended_at",
        ],
        "entries": ["run", "time", "key", "value"],
        "status": ["run", "key", "value"],
        "epochs": ["run", "epoch", "time"],
    }


async def test_entries_hold_run_time_key_and_value(database):
    log = await three_rows(database)
    assert query(database, "SELECT * FROM entries WHERE key = 'cost' ORDER BY time") == [
        (log.h_uuid, 0, "cost", 0.0),
        (log.h_uuid, 1, "cost", 0.5),
        (log.h_uuid, 2, "cost", 1.0),
    ]


async def test_status_holds_run_key_and_value(database):
    log = await three_rows(database)
    assert query(database, "SELECT * FROM status ORDER BY key") == [
        (log.h_uuid, "best", 0.5),
        (log.h_uuid, "epochs_done", 0),
        (log.h_uuid, "iterations_done", 2),
        (log.h_uuid, "resumed_from", None),
    ]


async def test_deleted_records_are_not_shown(database):
    log = await three_rows(database)
    del log[0]["cost"]
    del log.status["best"]
    await log.flush()
    assert (0, "cost", 0.0) not in entries_of(database, log)
    assert query(database, "SELECT * FROM status WHERE key = 'best'") == []


async def test_record_of_none_is_shown(database):
    log = SQLiteLog(database)
    log[0]["cost"] = None
    await log.flush()
    assert entries_of(database, log) == [(0, "cost", None)]


async def test_start_of_a_run_is_a_time_in_utc(database):
    await three_rows(database)
    [(age,)] = query(
        database, "SELECT (julianday('now') - julianday(started_at)) * 86400 FROM runs"
    )
    assert -1 < age < 60


async def test_file_is_marked_as_a_log(database):
    async with SQLiteLog(database):
        pass
    assert query(database, "PRAGMA application_id") == [(int.from_bytes(b"ALOP"),)]
    assert query(database, "PRAGMA user_version") == [(1,)]


async def test_series_is_one_range_scan(database):
    await three_rows(database)
    plan = query(
        database,
        "EXPLAIN QUERY PLAN SELECT time, value FROM entries WHERE run = 'r' AND key = 'cost'",
    )
    scans = [detail for *_, detail in plan]
    assert [scan for scan in scans if scan.startswith("SCAN")] == []


async def test_file_is_sound(database):
    log = await three_rows(database)
    await resumed_at(log, 1)
    assert query(database, "PRAGMA integrity_check") == [("ok",)]
    assert query(database, "PRAGMA foreign_key_check") == []


# ------------------------------------------------------------------ nothing is lost silently


def warnings_of_forgetting(log_of):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        log_of()
        gc.collect()
    return [str(warning.message) for warning in caught]


def test_records_never_saved_are_warned_about(database):
    def log_of():
        log = SQLiteLog(database)
        log[0].update(cost=0.5, accuracy=0.9)

    [message] = warnings_of_forgetting(log_of)
    parts = ("2 records", str(database), "await log.flush()")
    assert [part for part in parts if part not in message] == []


def test_log_that_was_never_written_is_not_warned_about(database):
    assert warnings_of_forgetting(lambda: SQLiteLog(database)) == []


def test_status_alone_is_not_warned_about(database):
    def log_of():
        SQLiteLog(database).status["best"] = 1

    assert warnings_of_forgetting(log_of) == []


async def test_saved_records_are_not_warned_about(database):
    log = SQLiteLog(database)
    log[0]["cost"] = 0.5
    await log.flush()
    forgotten = [log]
    del log
    assert warnings_of_forgetting(forgotten.clear) == []


def test_log_with_a_bad_id_is_not_warned_about(database):
    def log_of():
        with pytest.raises(ValueError, match="log uuid"):
            SQLiteLog(database, "bad")

    assert warnings_of_forgetting(log_of) == []
