"""Memory holds the newest rows of a log; the others are the same, read back from the file."""

import asyncio
import gc

import numpy as np
import pytest
from log_helpers import query
from log_tools import break_writing, entries_of, exact, mend_writing, reopen, rows_of

from aloop import FinishAfter, MainLoop, TrainingExtension
from aloop.config import config
from aloop.errors import JournalError, LogTimeError, NoEpochError
from aloop.log.base import TrainingLog
from aloop.log.sqlite import SQLiteLog
from aloop.log.window import LEAST_ROWS, WINDOW_ROWS

ROWS = 8
BYTES = 8_000


@pytest.fixture
def window(monkeypatch):
    """Let the window be of 8 rows and 8,000 bytes, of which each log has at least 2 rows."""
    monkeypatch.setattr("aloop.log.window.WINDOW_ROWS", ROWS)
    monkeypatch.setattr("aloop.log.window.WINDOW_BYTES", BYTES)
    monkeypatch.setattr("aloop.log.window.LEAST_ROWS", 2)
    config.max_blob_size = 1 << 20


def in_memory(log):
    """Give the times whose rows are in memory, in the order in which they came."""
    return list(log._rows)


def written(log, count):
    """Write a row at each time before `count`, and go to the last of them."""
    for time in range(count):
        log[time].update(cost=time / 2, batch=time)
    log.status["iterations_done"] = count - 1


async def evicted(database, count=20):
    """Give an open log with so many rows, of which the newest 8 are in memory."""
    log = await SQLiteLog(database).open()
    written(log, count)
    await log.flush()
    assert in_memory(log) == list(range(count - ROWS, count))
    return log


def expected(count=20):
    return {time: {"cost": time / 2, "batch": time} for time in range(count)}


async def push_out(log):
    """Write so many new rows, and make them empty again, that all others leave memory."""
    first = max(1000, *in_memory(log), 0) + 1
    for time in range(first, first + 2 * ROWS):
        log[time]["filler"] = time
    await log.flush()
    for time in range(first, first + 2 * ROWS):
        log[time].clear()
    await log.flush()


# ------------------------------------------------------------------ what stays in memory


async def test_rows_beyond_the_window_leave_memory_once_they_are_written(window, database):
    log = await evicted(database)
    assert rows_of(log) == expected()
    await log.close()


async def test_rows_that_are_not_written_yet_stay_in_memory(window, database):
    async with SQLiteLog(database) as log:
        written(log, 100)
        assert len(in_memory(log)) == 100


async def test_reading_all_rows_leaves_memory_as_it_was(window, database):
    log = await evicted(database)
    before = in_memory(log)
    rows_of(log)
    assert in_memory(log) == before
    await log.close()


async def test_rows_that_were_read_leave_memory_with_the_last_who_holds_them(window, database):
    log = await evicted(database)
    held = [log[time] for time in range(5)]
    assert len(log._rows._held) == 5
    del held
    gc.collect()
    assert len(log._rows._held) == 0
    await log.close()


async def test_log_of_a_window_never_filled_reads_nothing(window, database, monkeypatch):
    log = await SQLiteLog(database).open()
    written(log, ROWS)
    await log.flush()

    def refuse(*_):
        raise AssertionError("the file was read")

    monkeypatch.setattr("aloop.log.readers.Readers.connection", refuse)
    assert (rows_of(log), len(log), log[10**6]) == (expected(ROWS), ROWS, {})
    await log.close()


async def test_new_rows_of_a_run_are_not_looked_for_in_the_file(window, database, monkeypatch):
    log = await evicted(database)

    def refuse(*_):
        raise AssertionError("the file was read")

    monkeypatch.setattr("aloop.log.readers.Readers.connection", refuse)
    log[20]["cost"] = 1
    assert (log.get_record(20, "cost"), log.get_record(21, "cost"), 22 in log) == (1, None, False)
    await log.close()


@pytest.mark.parametrize("make", [TrainingLog, lambda: SQLiteLog(":memory:")], ids=["-", "memory"])
async def test_log_that_no_file_keeps_keeps_everything(window, make):
    async with make() as log:
        written(log, 100)
        await log.flush()
        assert (len(in_memory(log)), rows_of(log)) == (100, expected(100))


async def test_large_values_leave_memory_by_their_bytes(window, database):
    async with SQLiteLog(database) as log:
        for time in range(6):
            log[time]["text"] = str(time) * 3000
        await log.flush()
        assert in_memory(log) == [4, 5]
        assert rows_of(log) == {time: {"text": str(time) * 3000} for time in range(6)}


async def test_large_arrays_leave_memory_by_their_bytes(window, database):
    values = {time: {"array": np.arange(400.0) + time} for time in range(6)}  # 3,200 bytes each
    async with SQLiteLog(database) as log:
        for time, row in values.items():
            log[time].update(row)
        await log.flush()
        assert in_memory(log) == [4, 5]
        assert exact(rows_of(log)) == exact(values)


async def test_bytes_of_rows_that_left_count_no_longer(window, database):
    async with SQLiteLog(database) as log:
        for time in range(50):
            log[time]["text"] = "x" * 3000
            await log.flush()
        for time in range(50, 50 + ROWS):
            log[time]["cost"] = time
        await log.flush()
        assert (in_memory(log), log._unwritten.row_bytes) == (list(range(50, 58)), 0)


async def test_large_value_alone_is_larger_than_the_window_and_is_read_back(window, database):
    async with SQLiteLog(database) as log:
        log[0]["text"] = "x" * 2 * BYTES
        await log.flush()
        assert (in_memory(log), log[0]) == ([], {"text": "x" * 2 * BYTES})


async def test_large_value_written_again_and_again_keeps_its_row_right(window, database):
    async with SQLiteLog(database) as log:
        for number in range(20):
            log[0]["text"] = str(number) * 3000
            await log.flush()
        assert (rows_of(log), len(log)) == ({0: {"text": "19" * 3000}}, 1)


async def test_window_is_shared_by_the_logs_of_a_file(window, database):
    logs = [await SQLiteLog(database).open() for _ in range(2)]
    for log in logs:
        written(log, 20)
    for log in logs:
        await log.flush()
    assert [len(in_memory(log)) for log in logs] == [ROWS // 2] * 2
    for log in logs:
        assert rows_of(log) == expected()
        await log.close()


async def test_each_of_very_many_logs_of_a_file_keeps_its_newest_rows(window, database):
    logs = [await SQLiteLog(database).open() for _ in range(20)]
    for log in logs:
        written(log, 10)
    for log in logs:
        await log.flush()
    assert [in_memory(log) for log in logs] == [[8, 9]] * 20
    for log in logs:
        await log.close()


async def test_windows_of_two_files_are_two(window, tmp_path):
    logs = [await SQLiteLog(tmp_path / f"{name}.sqlite").open() for name in "ab"]
    for log in logs:
        written(log, 20)
        await log.flush()
    assert [len(in_memory(log)) for log in logs] == [ROWS] * 2
    for log in logs:
        await log.close()


def test_window_is_as_large_as_is_documented():
    assert (WINDOW_ROWS, LEAST_ROWS) == (4096, 16)


# ------------------------------------------------------------------ failures


async def test_rows_that_could_not_be_written_stay_in_memory(window, database):
    log = await SQLiteLog(database).open()
    break_writing(database)
    written(log, 100)
    with pytest.raises(JournalError):
        await log.flush()
    assert (len(in_memory(log)), rows_of(log)) == (100, expected(100))
    mend_writing(database)
    await log.close()


async def test_nothing_is_lost_when_writing_fails_and_is_mended(window, database):
    log = await evicted(database)
    break_writing(database)
    log[2]["cost"] = "again"
    written_later = {time: {"late": time} for time in range(20, 60)}
    for time, row in written_later.items():
        log[time].update(row)
    for _ in range(3):
        with pytest.raises(JournalError):
            await log.flush()
    story = expected() | written_later | {2: {"cost": "again", "batch": 2}}
    assert rows_of(log) == story
    mend_writing(database)
    await log.flush()
    assert (len(in_memory(log)), rows_of(log), rows_of(await reopen(log))) == (ROWS, story, story)
    await log.close()


async def test_row_written_while_it_is_on_its_way_stays_in_memory(window, database):
    log = await evicted(database)
    log[3]["cost"] = "first"
    task = asyncio.create_task(log.flush())
    while log._unwritten:
        await asyncio.sleep(0)
    log[3]["cost"] = "second"
    await task
    assert (3 in in_memory(log), log[3]["cost"]) == (True, "second")
    await log.close()
    assert (await reopen(log))[3] == {"cost": "second", "batch": 3}


# ------------------------------------------------------------------ reading, wherever rows are


@pytest.fixture(params=["open", "closed", "reopened", "another", "another, closed"])
async def old_and_new(request, window, database):
    """A log of 20 rows, of which the oldest are out of memory, by how it came to be so."""
    log = await evicted(database)
    log[7].clear()
    log.status["_epoch_ends"] = [2, 5]
    await log.flush()
    if request.param == "open":
        yield log
        await log.close()
        return
    await log.close()
    if request.param == "closed":
        yield log
        return
    if request.param == "reopened":
        async with log:
            yield log
        return
    other = SQLiteLog(database, log.uuid)
    await other.open()
    if request.param == "another, closed":
        await other.close()
    yield other
    await other.close()


TIMES = [time for time in range(20) if time != 7]


async def test_rows_are_right_wherever_they_are(old_and_new):
    story = {time: row for time, row in expected().items() if time != 7}
    assert rows_of(old_and_new) == story


async def test_iteration_gives_each_time_once_in_order(old_and_new):
    assert list(old_and_new) == TIMES


async def test_len_counts_rows_wherever_they_are(old_and_new):
    assert len(old_and_new) == 19


async def test_in_looks_wherever_rows_are(old_and_new):
    assert [time for time in range(-1, 25) if time in old_and_new] == TIMES


async def test_get_record_looks_wherever_rows_are(old_and_new):
    found = [old_and_new.get_record(time, "batch", "none") for time in range(22)]
    assert found == [time if time in TIMES else "none" for time in range(22)]


async def test_get_record_of_a_key_that_an_old_row_lacks_is_the_default(old_and_new):
    assert old_and_new.get_record(0, "unheard of", 7) == 7


async def test_current_row_may_be_an_old_one(old_and_new):
    old_and_new.status["iterations_done"] = 3
    assert old_and_new.current_row == {"cost": 1.5, "batch": 3}


async def test_previous_row_may_be_an_old_one(old_and_new):
    old_and_new.status["iterations_done"] = 3
    assert old_and_new.previous_row == {"cost": 1.0, "batch": 2}


async def test_last_epoch_row_may_be_an_old_one(old_and_new):
    assert old_and_new.last_epoch_row == {"cost": 2.5, "batch": 5}


async def test_previous_row_at_the_beginning_is_an_error(old_and_new):
    old_and_new.status["iterations_done"] = 0
    with pytest.raises(LogTimeError):
        _ = old_and_new.previous_row


async def test_last_epoch_row_before_any_epoch_is_an_error(old_and_new):
    old_and_new.status["_epoch_ends"] = []
    with pytest.raises(NoEpochError):
        _ = old_and_new.last_epoch_row


async def test_series_is_of_all_rows_wherever_they_are(old_and_new):
    old_and_new[3]["batch"] = 33
    times, values = await old_and_new.series("batch")
    assert dict(zip(times.tolist(), values.tolist(), strict=True)) == {
        time: time if time != 3 else 33 for time in TIMES
    }
    await old_and_new.flush()


async def test_old_row_that_is_written_is_found(old_and_new):
    old_and_new[3]["late"] = 1
    await old_and_new.flush()
    again = await reopen(old_and_new)
    assert old_and_new[3] == again[3] == {"cost": 1.5, "batch": 3, "late": 1}


async def test_old_row_that_is_cleared_is_no_more(old_and_new):
    old_and_new[3].clear()
    counted = len(old_and_new)
    await old_and_new.flush()
    again = await reopen(old_and_new)
    assert (counted, len(old_and_new), len(again)) == (18, 18, 18)
    assert (3 in old_and_new, 3 in again) == (False, False)


async def test_past_time_that_was_never_written_is_empty_and_writable(old_and_new):
    assert (7 in old_and_new, old_and_new[7]) == (False, {})
    old_and_new[7]["late"] = 1
    assert (7 in old_and_new, len(old_and_new)) == (True, 20)
    await old_and_new.flush()
    assert (await reopen(old_and_new))[7] == {"late": 1}


async def test_values_of_every_kind_are_read_back_as_they_were(window, database):
    row = {
        "float": -0.0,
        "nan": float("nan"),
        "inf": float("inf"),
        "int": -(2**63),
        "bool": True,
        "none": None,
        "text": "é😀\0",
        "list": [1, [2.5, None]],
        "tuple": (1, (2,)),
        "dict": {"a": {"$tuple": [1]}},
        "array": np.zeros((2, 0, 3), dtype=np.float32),
        "empty": "",
    }
    async with SQLiteLog(database) as log:
        log[0].update(row)
        kept = exact(dict(log[0]))
        await log.flush()
        await push_out(log)
        assert (0 in in_memory(log), exact(dict(log[0]))) == (False, kept)


# ------------------------------------------------------------------ identity


async def test_row_that_somebody_holds_stays_the_very_object(window, database):
    log = await SQLiteLog(database).open()
    written(log, 20)
    held = [log[time] for time in range(20)]
    await log.flush()
    await push_out(log)
    assert set(in_memory(log)).isdisjoint(range(20))
    assert [log[time] is row for time, row in enumerate(held)] == [True] * 20
    await log.close()


async def test_row_that_was_read_twice_is_one_object(window, database):
    log = await evicted(database)
    one, two = log[3], log[3]
    assert one is two
    await log.close()


async def test_row_that_is_followed_is_the_object_that_is_held(window, database):
    log = await evicted(database)
    held = log[3]
    await log.close()
    assert [row is held async for row in log.follow() if row.time == 3] == [True]


async def test_row_held_over_close_and_opening_is_one_object(window, database):
    log = await evicted(database)
    held = log[3]
    await log.close()
    closed = log[3]
    async with log:
        assert held is closed is log[3]


async def test_row_that_is_held_stays_one_object_over_many_evictions(window, database):
    log = await evicted(database)
    held = log[3]
    for number in range(5):
        held["number"] = number
        await log.flush()
        await push_out(log)
        assert (3 in in_memory(log), log[3] is held) == (False, True)
    assert (await reopen(log))[3]["number"] == 4
    await log.close()


async def test_held_row_that_is_written_after_it_left_is_in_the_file(window, database):
    log = await SQLiteLog(database).open()
    written(log, 20)
    held = log[3]
    await log.flush()
    held["late"] = 1
    assert (log[3] is held, len(log)) == (True, 20)
    await log.close()
    assert entries_of(database, log)[6:9] == [(3, "batch", 3), (3, "cost", 1.5), (3, "late", 1)]


async def test_row_that_is_written_and_dropped_at_once_is_in_memory_until_written(window, database):
    log = await evicted(database)
    log[5]["late"] = 1
    gc.collect()
    assert (5 in in_memory(log), log[5]) == (True, {"cost": 2.5, "batch": 5, "late": 1})
    await log.close()
    assert (await reopen(log))[5] == {"cost": 2.5, "batch": 5, "late": 1}


async def test_row_made_empty_and_dropped_at_once_stays_empty(window, database):
    log = await evicted(database)
    log[5].clear()
    gc.collect()
    assert (log[5], 5 in log) == ({}, False)
    await log.close()
    assert (await reopen(log))[5] == {}


async def test_deleting_a_record_of_an_old_row_hides_it_in_file_and_memory(window, database):
    log = await evicted(database)
    del log[5]["cost"]
    await log.flush()
    await push_out(log)
    assert (5 in in_memory(log), log[5], (await reopen(log))[5]) == (
        False,
        {"batch": 5},
        {"batch": 5},
    )
    await log.close()


async def test_row_rewritten_flushed_evicted_and_read_again_is_right(window, database):
    log = await evicted(database)
    for number in range(3):
        log[5].update(cost=number, number=number)
        await log.flush()
        await push_out(log)
        assert (5 in in_memory(log), log[5]) == (
            False,
            {"cost": number, "batch": 5, "number": number},
        )
    assert len(log) == 20
    await log.close()


@pytest.mark.parametrize("change", ["write", "clear", "write anew"])
async def test_len_stays_right_while_old_rows_change(window, database, change):
    log = await evicted(database)
    assert len(log) == 20
    for time in range(5):
        if change != "write":
            log[time].clear()
        if change != "clear":
            log[time]["late"] = 1
    await log.flush()
    await push_out(log)
    count = 15 if change == "clear" else 20
    assert (len(log), len(await reopen(log)), len(list(log))) == (count,) * 3
    await log.close()


async def test_empty_row_that_is_held_while_it_leaves_stays_the_very_object(window, database):
    log = await SQLiteLog(database).open()
    held = log[100]  # for what comes at the end of the training
    written(log, 20)
    await log.flush()
    assert log[100] is held
    await log.close()


async def test_empty_row_that_is_held_while_it_leaves_does_not_hide_what_others_write(
    window, database
):
    log = await SQLiteLog(database).open()
    held = log[100]
    written(log, 20)
    await log.flush()
    log[100]["by another"] = 1
    held["by the holder"] = 2
    assert log[100] == {"by another": 1, "by the holder": 2}
    await log.close()
    assert (await reopen(log))[100] == {"by another": 1, "by the holder": 2}


async def test_empty_rows_that_were_looked_at_leave_memory(window, database):
    async with SQLiteLog(database) as log:
        for time in range(100):
            _ = log[time]
        log[100]["cost"] = 1
        await log.flush()
        assert (len(in_memory(log)) <= ROWS, rows_of(log)) == (True, {100: {"cost": 1}})


# ------------------------------------------------------------------ times out of order


async def test_row_of_the_far_future_written_first_does_not_hide_the_others(window, database):
    log = await SQLiteLog(database).open()
    log[10**9]["cost"] = -1
    for time in range(50):
        log[time]["cost"] = time
        if time % 7 == 0:
            await log.flush()
    await log.flush()
    story = {time: {"cost": time} for time in range(50)} | {10**9: {"cost": -1}}
    assert (rows_of(log), len(log)) == (story, 51)
    assert len(in_memory(log)) <= ROWS + ROWS // 4
    await log.close()
    assert rows_of(await reopen(log)) == story


async def test_run_whose_far_future_was_written_goes_on(window, database):
    log = SQLiteLog(database)
    log[10**9]["cost"] = -1
    loop = MainLoop(no_op, range(50), log=log, extensions=[Write(), FinishAfter(after_n_epochs=1)])
    await loop.run()
    assert [log[time]["batch"] for time in range(1, 51)] == list(range(50))
    assert [(await reopen(log))[time]["batch"] for time in range(1, 51)] == list(range(50))


async def test_rows_written_backwards_are_all_there(window, database):
    async with SQLiteLog(database) as log:
        for time in reversed(range(50)):
            log[time]["cost"] = time
            await log.flush()
        assert rows_of(log) == {time: {"cost": time} for time in range(50)}
        assert len(log) == 50


# ------------------------------------------------------------------ resuming


def tell(log, story):
    """Do with a log what a story says, without waiting."""
    for step, *arguments in story:
        if step == "write":
            first, last, name = arguments
            for time in range(first, last + 1):
                log[time].update({name: time, "by": name})
        elif step == "delete":
            time, key = arguments
            log[time].pop(key, None)
        elif step == "clear":
            log[arguments[0]].clear()
        elif step == "resume":
            log.status["iterations_done"] = arguments[0]
            log.resume()


STORIES = {
    "one fork": [("write", 0, 29, "a"), ("resume", 15), ("write", 16, 20, "b")],
    "forks ever later": [
        ("write", 0, 29, "a"),
        ("resume", 10),
        ("write", 11, 20, "b"),
        ("resume", 15),
        ("write", 16, 30, "c"),
        ("resume", 25),
        ("write", 26, 40, "d"),
    ],
    "a fork below that of an ancestor": [
        ("write", 0, 29, "a"),
        ("resume", 20),
        ("write", 15, 29, "b"),
        ("resume", 5),
        ("write", 8, 10, "c"),
        ("resume", 9),
        ("write", 12, 25, "d"),
    ],
    "ancestors' rows written over": [
        ("write", 0, 29, "a"),
        ("resume", 25),
        ("write", 3, 6, "b"),
        ("resume", 25),
        ("write", 5, 8, "a"),
    ],
    "deletions": [
        ("write", 0, 29, "a"),
        ("resume", 20),
        ("delete", 3, "a"),
        ("delete", 4, "a"),
        ("delete", 4, "by"),
        ("clear", 5),
        ("resume", 20),
        ("write", 5, 5, "c"),
        ("delete", 6, "by"),
    ],
    "deletions above a later fork come back": [
        ("write", 0, 29, "a"),
        ("resume", 25),
        ("clear", 18),
        ("write", 26, 40, "b"),
        ("resume", 30),
        ("clear", 28),
        ("resume", 27),
        ("write", 35, 36, "c"),
    ],
    "a fork at 0": [("write", 0, 29, "a"), ("resume", 0), ("write", 20, 29, "b"), ("resume", 25)],
}


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
@pytest.mark.parametrize("way", ["as it goes", "at the end", "reopened"])
async def test_rows_after_resumes_are_those_of_a_log_in_memory(window, database, story, way):
    log, model = await SQLiteLog(database).open(), TrainingLog()
    for step in story:
        tell(log, [step])
        tell(model, [step])
        if way != "at the end":
            await log.flush()
            assert rows_of(log) == rows_of(model)
    await log.flush()
    assert (len(in_memory(log)) <= ROWS + ROWS // 4, len(log)) == (True, len(model))
    if way == "reopened":
        await log.close()
        log = await SQLiteLog(database, log.uuid).open()
    assert rows_of(log) == rows_of(model)
    assert [dict(log[time]) for time in range(45)] == [dict(model[time]) for time in range(45)]
    assert (len(log), list(log)) == (len(model), list(model))
    await log.close()


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
async def test_series_after_resumes_are_those_of_a_log_in_memory(window, database, story):
    log, model = await SQLiteLog(database).open(), TrainingLog()
    tell(log, story)
    tell(model, story)
    await log.flush()
    for key in "abcd":
        times, values = await log.series(key)
        model_times, model_values = await model.series(key)
        assert (times.tolist(), values.tolist()) == (model_times.tolist(), model_values.tolist())
    await log.close()


async def test_ancestor_has_its_own_rows_after_the_resume(window, database):
    log = await evicted(database)
    old = log.h_uuid
    tell(log, [("resume", 10), ("write", 3, 15, "b"), ("clear", 2)])
    await log.close()
    assert rows_of(await reopen(log, old)) == expected()


async def test_rows_above_the_fork_that_somebody_holds_write_nothing(window, database):
    log = await evicted(database)
    read, near = log[12 - ROWS], log[19]
    await push_out(log)
    tell(log, [("resume", 2)])
    read["late"] = near["late"] = 1
    assert rows_of(log) == expected(3)
    await log.close()
    assert rows_of(await reopen(log)) == expected(3)


async def test_held_row_that_left_memory_below_the_fork_writes_under_the_new_id(window, database):
    log = await evicted(database)
    held, old = log[1], log.h_uuid
    tell(log, [("resume", 2)])
    assert log[1] is held
    held["late"] = 1
    await log.close()
    assert entries_of(database, log) == [(1, "late", 1)]
    assert rows_of(await reopen(log, old)) == expected()


async def test_row_above_the_fork_is_another_object_afterwards(window, database):
    log = await evicted(database)
    held = log[5]
    tell(log, [("resume", 2)])
    assert (log[5] is held, log[5]) == (False, {})
    await log.close()


# ------------------------------------------------------------------ runs


async def no_op(batch: object) -> None:
    """Train on nothing."""


class Write(TrainingExtension):
    """Records each batch."""

    async def after_batch(self, batch: object) -> None:
        self.main_loop.log.current_row["batch"] = batch


def run_of(log, batches, epochs=1):
    extensions = [Write(), FinishAfter(every_n_epochs=epochs)]
    return MainLoop(no_op, range(batches), log=log, extensions=extensions)


async def test_long_run_keeps_no_more_rows_than_the_window_and_a_quarter(database):
    log = SQLiteLog(database)
    async with log:
        await run_of(log, 20_000).run()
        assert len(in_memory(log)) <= WINDOW_ROWS + WINDOW_ROWS // 4
        assert [log[time]["batch"] for time in range(1, 20_001, 999)] == list(range(0, 20_000, 999))
        assert len(log) == 20_000


async def test_run_with_a_tiny_window_writes_every_batch(window, database):
    log = SQLiteLog(database)
    await run_of(log, 2000).run()
    assert query(database, "SELECT value FROM entries WHERE key = 'batch' ORDER BY time") == [
        (batch,) for batch in range(2000)
    ]


async def test_extension_reads_old_rows_while_the_run_goes_on(window, database):
    wrong = []

    class Look(TrainingExtension):
        async def after_batch(self, batch):
            log = self.main_loop.log
            for ago in (1, 20, 100):
                if batch >= ago and log.get_record(batch + 1 - ago, "batch") != batch - ago:
                    wrong.append((batch, ago))

    log = SQLiteLog(database)
    loop = run_of(log, 300)
    loop.extensions.append(Look())
    await loop.run()
    assert wrong == []


async def test_training_of_many_runs_sees_all_its_rows(window, database):
    log = SQLiteLog(database)
    loop = run_of(log, 50)
    for _ in range(4):
        await loop.run()
    again = await reopen(log)
    batches = [batch for _ in range(4) for batch in range(50)]
    for each in (log, again):
        assert [each[time]["batch"] for time in range(1, 201)] == batches


# ------------------------------------------------------------------ the ends of epochs

EPOCHS = 3000


async def many_epochs(database):
    log = await SQLiteLog(database).open()
    for _ in range(EPOCHS):
        log.status["iterations_done"] += 2
        log.status.end_epoch()
    await log.flush()
    return log


def ends(count):
    return list(range(2, 2 * count + 1, 2))


def end_epochs(log, count=1):
    for _ in range(count):
        log.status["iterations_done"] += 2
        log.status.end_epoch()


async def test_ends_of_thousands_of_epochs_are_read_back(database):
    log = await many_epochs(database)
    await log.close()
    again = await reopen(log)
    assert log.status["_epoch_ends"] == again.status["_epoch_ends"] == ends(EPOCHS)
    assert again.status["epochs_done"] == EPOCHS


async def test_ends_of_epochs_are_in_the_view(database):
    log = await many_epochs(database)
    await log.close()
    assert query(database, "SELECT * FROM epochs ORDER BY epoch") == [
        (log.h_uuid, epoch + 1, time) for epoch, time in enumerate(ends(EPOCHS))
    ]


async def test_ends_of_epochs_go_on_over_reopenings_and_resumes(database):
    log = await many_epochs(database)
    await log.close()
    for number in range(1, 4):
        log = await SQLiteLog(database, log.uuid).open()
        end_epochs(log)
        await log.flush()
        log.resume()
        end_epochs(log)
        await log.close()
        again = await reopen(log)
        assert log.status["_epoch_ends"] == again.status["_epoch_ends"] == ends(EPOCHS + 2 * number)


async def test_ends_of_an_ancestors_epochs_stay_its_own(database):
    log = await many_epochs(database)
    old = log.h_uuid
    log.resume()
    end_epochs(log, 5)
    await log.close()
    assert (await reopen(log, old)).status["_epoch_ends"] == ends(EPOCHS)


@pytest.mark.parametrize("flushed", [True, False])
async def test_ends_of_epochs_that_were_assigned_as_a_whole_go_on(database, flushed):
    log = await many_epochs(database)
    end_epochs(log)
    log.status["_epoch_ends"] = [1, 2, 3]
    if flushed:
        await log.flush()
    end_epochs(log, 2)
    await log.close()
    again = await reopen(log)
    last = 2 * EPOCHS + 6
    assert log.status["_epoch_ends"] == again.status["_epoch_ends"] == [1, 2, 3, last - 2, last]


async def test_ends_of_epochs_assigned_before_the_opening_replace_those_of_the_file(database):
    log = await many_epochs(database)
    await log.close()
    other = SQLiteLog(database, log.uuid)
    other.status["_epoch_ends"] = [7]
    async with other:
        assert other.status["_epoch_ends"] == [7]
        end_epochs(other)
    assert (await reopen(log)).status["_epoch_ends"] == [7, 2 * EPOCHS + 2]


async def test_ends_of_epochs_are_those_of_a_run(database):
    log = SQLiteLog(database)
    loop = run_of(log, 2, epochs=1000)
    await loop.run()
    await loop.run()
    again = await reopen(log)
    assert log.status["_epoch_ends"] == again.status["_epoch_ends"] == ends(2000)


async def test_status_with_the_ends_of_epochs_cannot_be_changed_in_place(database):
    log = await many_epochs(database)
    with pytest.raises(TypeError):
        log.status["_epoch_ends"].append(1)
    await log.close()
