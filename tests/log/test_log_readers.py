"""A log is read whole: as series, by those who follow it, and from its file by others."""

import asyncio
import gc
import json
import math
import signal
import subprocess
import sys
import threading
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
from log_helpers import change, locked, query, until
from log_tools import exact, make_log, reopen, rows_of

from aloop import FinishAfter, MainLoop, SQLiteLog, TrainingExtension, TrainingLog, read_log
from aloop.errors import (
    ArgumentError,
    LogFileError,
    LogKeyError,
    LogTimeError,
    MissingDependencyError,
    NoEpochError,
    UnknownRunError,
)
from aloop.log.reading import History

KINDS = pytest.mark.parametrize("kind", ["memory", "sqlite"])
NAN = math.nan


@pytest.fixture
def small_window(monkeypatch):
    """Keep eight rows in memory."""
    monkeypatch.setattr("aloop.log.window.WINDOW_ROWS", 8)
    monkeypatch.setattr("aloop.log.window.LEAST_ROWS", 4)


async def push_out(log, *times):
    """Write so many other rows that those of these times leave memory."""
    first = max(log, default=-1) + 1
    for time in range(first, first + 20):
        log[time]["other"] = 0
    await log.flush()
    assert not [time for time in times if time in log._rows]


def as_lists(series):
    """Give what is to be equal of two series: dtypes and values, with their types."""
    times, values = series
    return str(times.dtype), times.tolist(), str(values.dtype), exact(values.tolist())


async def no_op(batch):
    """Train on nothing."""


class Write(TrainingExtension):
    """Records each batch, and at the end of an epoch its number."""

    async def after_batch(self, batch):
        self.main_loop.log.current_row["batch"] = batch

    async def after_epoch(self):
        self.main_loop.log.current_row["epoch"] = self.main_loop.status["epochs_done"]


class Call(TrainingExtension):
    """Calls functions at stages of the run."""

    def __init__(self, **functions):
        super().__init__()
        for stage, function in functions.items():
            setattr(self, f"_{stage}", function)

    async def before_training(self):
        await getattr(self, "_before_training", no_op)(None)

    async def after_batch(self, batch):
        await getattr(self, "_after_batch", no_op)(batch)


def loop_of(log, *extensions, batches=range(10), epochs=1, **arguments):
    extensions = [Write(), *extensions, FinishAfter(every_n_epochs=epochs)]
    return MainLoop(no_op, batches, log=log, extensions=extensions, **arguments)


async def follow_all(log, **arguments):
    """Give time and records of each row, as they were when the row was given."""
    return [(row.time, dict(row)) async for row in log.follow(**arguments)]


def all_rows(log):
    return list(rows_of(log).items())


def times_of(rows):
    return [time for time, _ in rows]


# ------------------------------------------------------------------ series


KEPT = ["memory", "unflushed", "flushed", "evicted", "half", "closed", "reopened", "read", "forked"]


@asynccontextmanager
async def kept(how, database, values):
    """Give a log that has the values at the times from 0 on, kept in this way."""
    log = make_log("memory" if how == "memory" else "sqlite", database)
    async with log:
        for time, value in enumerate(values[:-1]):
            log[time]["x"] = value
        if how == "half":
            log[len(values) - 1]["other"] = 0
            await push_out(log, *range(len(values)))
        if how == "forked":
            log.status["iterations_done"] = max(len(values) - 2, 0)
            log.resume()
        if values:
            log[len(values) - 1]["x"] = values[-1]
        if how in ("flushed", "evicted"):
            await log.flush()
        if how == "evicted":
            await push_out(log, *range(len(values)))
        if how in ("memory", "unflushed", "flushed", "evicted", "half"):
            yield log
            return
    if how == "closed":
        yield log
    elif how in ("reopened", "forked"):
        yield await reopen(log)
    else:
        with read_log(database) as reader:
            yield reader


@pytest.mark.parametrize("how", KEPT)
@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1, 2, -(2**63), 2**63 - 1, 2**53 + 1], "int64"),
        ([0.5, -0.0, math.inf, 1e300], "float64"),
        ([1, 2.5, 3], "float64"),
        ([0.5, NAN, 1.5], "float64"),
        ([NAN, 1, NAN], "float64"),
        ([True, False, True], "bool"),
        ([True, 2, 3.5], "float64"),
        ([False, 2], "int64"),
        (["a", "b", ""], "object"),
        ([1.5, None], "object"),
        ([None, None], "object"),
        ([[1], [2, 3], []], "object"),
        ([(1, 2), {"a": 1}], "object"),
        ([np.arange(3), np.arange(3)], "object"),
        ([0.5], "float64"),
        ([7], "int64"),
    ],
)
async def test_series_has_times_and_values_of_their_types(
    database, small_window, how, values, dtype
):
    async with kept(how, database, values) as log:
        times, found = await log.series("x")
    assert (times.dtype, times.tolist()) == (np.int64, list(range(len(values))))
    wanted = values
    if dtype != "object":
        wanted = np.array(values, dtype=dtype).tolist()
    assert (str(found.dtype), exact(found.tolist())) == (dtype, exact(wanted))


@pytest.mark.parametrize("how", KEPT)
async def test_series_of_numbers_and_something_else_keeps_each_number_as_it_is(
    database, small_window, how
):
    async with kept(how, database, [2**53 + 1, 2.5, True, "a"]) as log:
        _, values = await log.series("x")
    assert exact(values.tolist()) == exact([2**53 + 1, 2.5, True, "a"])


@pytest.mark.parametrize("how", [how for how in KEPT if how not in ("half", "forked")])
@pytest.mark.parametrize("key", ["y", "", "iterations_done"])
async def test_series_of_an_unknown_key_is_two_empty_arrays(database, small_window, how, key):
    async with kept(how, database, [1.5, 2.5]) as log:
        found = await log.series(key)
    assert as_lists(found) == ("int64", [], "float64", exact([]))


@pytest.mark.parametrize("how", ["memory", "unflushed", "evicted", "read"])
@pytest.mark.parametrize("key", [1, None, b"x", ("x",), "\ud800"])
async def test_series_of_what_is_no_text_is_an_error(database, small_window, how, key):
    async with kept(how, database, [1.5]) as log:
        with pytest.raises(LogKeyError):
            await log.series(key)


@KINDS
async def test_series_of_a_log_without_records_is_empty(kind, database):
    times, values = await make_log(kind, database).series("x")
    assert (times.tolist(), values.tolist()) == ([], [])


async def test_series_has_what_is_written_and_not_committed(database, small_window):
    log = SQLiteLog(database)
    async with log.session():
        log[0]["x"] = 0.5
        log.commit()
        for time in range(1, 30):
            log[time]["other"] = 0
        log.commit()
        await log.flush()
        log[30]["x"] = 1.5  # no commit point after it
        assert 0 not in log._rows
        found = await log.series("x")
    assert as_lists(found) == ("int64", [0, 30], "float64", exact([0.5, 1.5]))


async def test_series_has_what_is_on_its_way(database, small_window):
    async with SQLiteLog(database) as log:
        log[0]["x"] = 0.5
        await push_out(log, 0)
        with locked(database):
            log[0]["x"] = 0.75
            log[50]["x"] = 1.5
            flush = asyncio.create_task(log.flush())
            await until(lambda: log._unwritten.on_its_way)
            log[51]["x"] = 2.5
            found = await log.series("x")
        await flush
    assert as_lists(found) == ("int64", [0, 50, 51], "float64", exact([0.75, 1.5, 2.5]))


async def test_series_read_beside_a_commit_counts_each_record_once(
    database, small_window, monkeypatch
):
    """The group is written after the series looked at memory, and before it looks at the file."""
    read, may_read = threading.Event(), threading.Event()
    series = History.series

    def late_series(self, key):
        read.set()
        assert may_read.wait(20)
        return series(self, key)

    async with SQLiteLog(database) as log:
        log[0]["x"] = 0.5
        await push_out(log, 0)
        log[50]["x"] = 1.5
        monkeypatch.setattr(History, "series", late_series)
        found = asyncio.create_task(log.series("x"))
        await until(read.is_set)
        await log.flush()
        may_read.set()
        assert as_lists(await found) == ("int64", [0, 50], "float64", exact([0.5, 1.5]))


@pytest.mark.parametrize("how", ["memory", "flushed", "evicted", "closed", "reopened", "read"])
async def test_series_leaves_out_deleted_records(database, small_window, how):
    log = make_log("memory" if how == "memory" else "sqlite", database)
    async with log:
        for time in range(4):
            log[time]["x"] = time
        await log.flush()
        del log[2]["x"]
        if how == "evicted":
            await push_out(log, 0, 1, 2, 3)
        await log.flush()
        found = await log.series("x")
    if how == "reopened":
        found = await (await reopen(log)).series("x")
    elif how == "read":
        with read_log(database) as reader:
            found = await reader.series("x")
    elif how == "closed":
        found = await log.series("x")
    assert as_lists(found) == ("int64", [0, 1, 3], "int64", exact([0, 1, 3]))


@pytest.mark.parametrize("is_flushed", [False, True])
async def test_series_leaves_out_records_deleted_when_they_were_out_of_memory(
    database, small_window, is_flushed
):
    async with SQLiteLog(database) as log:
        log[0]["x"] = 1
        log[1]["x"] = 2.5
        await push_out(log, 0, 1)
        del log[1]["x"]
        if is_flushed:
            await log.flush()
        found = await log.series("x")
    assert as_lists(found) == ("int64", [0], "int64", exact([1]))


@pytest.mark.parametrize("is_flushed", [False, True])
async def test_series_has_the_type_of_what_rewrote_the_records(database, small_window, is_flushed):
    async with SQLiteLog(database) as log:
        log[0]["x"] = 1
        log[1]["x"] = 2.5
        await push_out(log, 0, 1)
        log[1]["x"] = 3
        if is_flushed:
            await log.flush()
        found = await log.series("x")
    assert as_lists(found) == ("int64", [0, 1], "int64", exact([1, 3]))


async def test_series_whose_records_were_all_deleted_is_empty(database, small_window):
    async with SQLiteLog(database) as log:
        log[0]["x"] = 1
        await push_out(log, 0)
        del log[0]["x"]
        assert as_lists(await log.series("x")) == ("int64", [], "float64", exact([]))
        await log.flush()
        assert as_lists(await log.series("x")) == ("int64", [], "float64", exact([]))


async def test_series_is_in_the_order_of_the_times(database, small_window):
    async with SQLiteLog(database) as log:
        for time in (9, 2, 7):
            log[time]["x"] = time
        await push_out(log, 9, 2, 7)
        for time in (5, 100, 0):
            log[time]["x"] = time
        found = await log.series("x")
    assert as_lists(found) == ("int64", [0, 2, 5, 7, 9, 100], "int64", exact([0, 2, 5, 7, 9, 100]))


async def test_series_is_a_copy(database):
    log = TrainingLog()
    log[0]["x"] = 0.5
    _, values = await log.series("x")
    values[0] = 1.5
    assert log[0]["x"] == 0.5


def fork(log):
    """Resume at time 2 a run that has x at the times from 0 to 4, and write 1 to 3 anew."""
    log.status["iterations_done"] = 2
    log.resume()
    for time in (1, 3, 4):
        log[time]["x"] = 10 + time
    del log[4]["x"]


FORKED = ("int64", [0, 1, 2, 3], "int64", exact([0, 11, 2, 13]))


@KINDS
async def test_series_across_a_resumption_has_the_nearest_records(kind, database):
    async with make_log(kind, database) as log:
        for time in range(5):
            log[time]["x"] = time
        fork(log)
        assert as_lists(await log.series("x")) == FORKED


@pytest.mark.parametrize("is_flushed", [False, True])
async def test_series_across_a_resumption_of_rows_out_of_memory(database, small_window, is_flushed):
    async with SQLiteLog(database) as log:
        for time in range(5):
            log[time]["x"] = time
        await push_out(log, *range(5))
        fork(log)
        if is_flushed:
            await log.flush()
        assert as_lists(await log.series("x")) == FORKED
    assert as_lists(await log.series("x")) == FORKED
    assert as_lists(await (await reopen(log)).series("x")) == FORKED
    with read_log(database) as reader:
        assert as_lists(await reader.series("x")) == FORKED


async def test_series_leaves_out_what_the_earlier_run_has_yet_to_write_after_the_fork(database):
    async with SQLiteLog(database) as first:
        first[0]["x"] = 0
    async with SQLiteLog(database, first.uuid) as log:
        log[1]["x"] = 1
        log[2]["x"] = 2
        log.status["iterations_done"] = 1
        log.resume()  # before anything of the two rows is in the file
        assert rows_of(log) == {0: {"x": 0}, 1: {"x": 1}}
        found = await log.series("x")
    assert as_lists(found) == ("int64", [0, 1], "int64", exact([0, 1]))


async def test_series_of_the_earlier_run_stays_as_it_was(database):
    async with SQLiteLog(database) as log:
        for time in range(5):
            log[time]["x"] = time
        first = log.h_uuid
        fork(log)
    with read_log(database, first) as reader:
        found = await reader.series("x")
    assert as_lists(found) == ("int64", [0, 1, 2, 3, 4], "int64", exact([0, 1, 2, 3, 4]))


async def test_series_across_many_resumptions(database):
    async with SQLiteLog(database) as log:
        for time in range(20):
            log[time]["x"] = time / 2
            log.status["iterations_done"] = time
            log.resume()
    with read_log(database) as reader:
        found = await reader.series("x")
    assert as_lists(found)[1:] == (list(range(20)), "float64", exact([t / 2 for t in range(20)]))


# ------------------------------------------------------------------ following in the process


@KINDS
async def test_follower_from_before_the_run_gets_each_row_once(kind, database):
    log = make_log(kind, database)
    followed = asyncio.create_task(follow_all(log))
    await until(lambda: log._followers.waiting)
    await loop_of(log, batches=range(100), epochs=3).run()
    rows = await followed
    assert rows == all_rows(log)
    assert times_of(rows) == list(range(1, 301))


@KINDS
async def test_follower_from_within_the_run_gets_each_row_once(kind, database):
    log, followers = make_log(kind, database), []

    async def begin(batch):
        followers.append(asyncio.create_task(follow_all(log)))

    await loop_of(log, Call(after_batch=begin)).run()
    found = await asyncio.gather(*followers)
    assert found == [all_rows(log)] * 10


@KINDS
async def test_follower_from_after_the_run_gets_all_rows_and_ends(kind, database):
    log = make_log(kind, database)
    await loop_of(log).run()
    assert await follow_all(log) == all_rows(log)


@KINDS
async def test_row_is_given_once_the_iteration_after_it_is_committed(kind, database):
    log, seen = make_log(kind, database), []

    async def follow():
        async for row in log.follow():
            seen.append((row.time, dict(row), log.status["iterations_done"]))

    followed = asyncio.create_task(follow())

    async def batches():
        for number in range(5):
            await until(lambda least=number - 1: len(seen) >= least)
            yield number

    await loop_of(log, batches=batches).run()
    await followed
    assert [(time, done) for time, _, done in seen] == [(1, 2), (2, 3), (3, 4), (4, 5), (5, 5)]
    assert [(time, row) for time, row, _ in seen] == all_rows(log)


@KINDS
async def test_last_row_of_an_epoch_is_given_with_what_was_recorded_after_the_epoch(kind, database):
    log, seen = make_log(kind, database), []

    async def follow():
        async for row in log.follow():
            seen.append(dict(row))

    followed = asyncio.create_task(follow())

    async def batches():  # the first epoch waits for its first row, the second for the last one
        yield 1
        yield 2
        await until(lambda: len(seen) > log.status["epochs_done"])

    await loop_of(log, batches=batches, epochs=2).run()
    await followed
    assert seen[1] == {"batch": 2, "epoch": 1}


@KINDS
async def test_rows_of_a_follower_are_those_of_the_log(kind, database):
    log = make_log(kind, database)
    await loop_of(log).run()
    async for row in log.follow():
        assert row is log[row.time]


@KINDS
@pytest.mark.parametrize("after", [-1, 0, 1, 4, 9, 10, 11, 2**63 - 1, np.int64(4)])
async def test_follower_gets_the_rows_after_a_time(kind, database, after):
    log = make_log(kind, database)
    followed = asyncio.create_task(follow_all(log, after=after))
    await until(lambda: log._followers.waiting)
    await loop_of(log).run()
    assert times_of(await followed) == [time for time in range(1, 11) if time > after]
    assert times_of(await follow_all(log, after=after)) == times_of(await followed)


@KINDS
@pytest.mark.parametrize("after", [-2, 0.5, -1.0, "1", None, True, 2**63])
async def test_bad_after_is_an_error(kind, database, after):
    with pytest.raises(LogTimeError):
        async with asyncio.timeout(2):
            await follow_all(make_log(kind, database), after=after)


@KINDS
async def test_times_without_records_are_left_out(kind, database):
    async with make_log(kind, database).session() as _:
        pass
    log = TrainingLog() if kind == "memory" else SQLiteLog(database)

    async def sparse(batch):
        if batch % 3 == 0:
            log.current_row["third"] = batch

    await MainLoop(
        no_op,
        range(10),
        log=log,
        extensions=[Call(after_batch=sparse), FinishAfter(after_n_epochs=1)],
    ).run()
    assert times_of(await follow_all(log)) == [1, 4, 7, 10]


@KINDS
async def test_follower_ends_when_the_run_fails(kind, database):
    log = make_log(kind, database)
    followed = asyncio.create_task(follow_all(log))
    await until(lambda: log._followers.waiting)

    async def fail(batch):
        if batch == 5:
            raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        await loop_of(log, Call(after_batch=fail)).run()
    rows = await followed
    assert rows == all_rows(log)
    assert "no more" in rows[-1][1]["got_exception"]


@KINDS
async def test_follower_ends_when_the_run_is_cancelled(kind, database):
    log, reached = make_log(kind, database), asyncio.Event()
    followed = asyncio.create_task(follow_all(log))

    async def batches():
        yield 0
        yield 1
        reached.set()
        await asyncio.Event().wait()

    run = asyncio.create_task(loop_of(log, batches=batches, grace_s=0).run())
    await reached.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert await followed == all_rows(log)


async def test_follower_ends_when_a_log_without_a_run_is_closed(database):
    log = await SQLiteLog(database).open()
    followed = asyncio.create_task(follow_all(log))
    await until(lambda: log._followers.waiting)
    log[3]["x"] = 1
    await log.close()
    assert await followed == [(3, {"x": 1})]


@KINDS
async def test_many_followers_get_all_rows(kind, database):
    log = make_log(kind, database)
    followers = [asyncio.create_task(follow_all(log, after=n % 3 - 1)) for n in range(30)]
    await until(lambda: len(log._followers.waiting) == 30)
    await loop_of(log, batches=range(500)).run()
    for number, rows in enumerate(await asyncio.gather(*followers)):
        assert times_of(rows) == list(range(max(number % 3, 1), 501))


@KINDS
async def test_follower_that_breaks_off_leaves_nothing_behind(kind, database):
    log, tasks = make_log(kind, database), asyncio.all_tasks()

    async def follow_three(batch):
        seen = 0
        async with aclosing(log.follow()) as rows:
            async for _ in rows:
                seen += 1
                if seen == 3:
                    break

    async def begin(batch):
        if batch == 0:
            begun.append(asyncio.create_task(follow_three(None)))

    begun = []
    await loop_of(log, Call(after_batch=begin), batches=range(50)).run()
    await begun[0]
    gc.collect()
    await until(lambda: asyncio.all_tasks() == tasks)
    assert log._followers.waiting == []


@KINDS
async def test_follower_that_is_dropped_in_its_middle_leaves_nothing_behind(kind, database):
    log = make_log(kind, database)
    await loop_of(log).run()
    async for row in log.follow():
        assert row.time == 1
        break
    gc.collect()
    await until(lambda: len(asyncio.all_tasks()) == 1)
    assert log._followers.waiting == []


@KINDS
async def test_follower_that_is_cancelled_leaves_nothing_behind(kind, database):
    log, tasks = make_log(kind, database), asyncio.all_tasks()
    followed = asyncio.create_task(follow_all(log))
    await until(lambda: log._followers.waiting)
    followed.cancel()
    with pytest.raises(asyncio.CancelledError):
        await followed
    assert (log._followers.waiting, asyncio.all_tasks() - tasks) == ([], set())


@KINDS
async def test_follower_that_was_cancelled_does_not_disturb_the_run_or_others(kind, database):
    log = make_log(kind, database)
    followers = [asyncio.create_task(follow_all(log)) for _ in range(4)]
    await until(lambda: len(log._followers.waiting) == 4)
    for follower in followers[:2]:
        follower.cancel()
    await loop_of(log).run()
    found = await asyncio.gather(*followers, return_exceptions=True)
    assert [isinstance(rows, asyncio.CancelledError) for rows in found[:2]] == [True, True]
    assert found[2:] == [all_rows(log)] * 2


async def test_follower_cancelled_while_it_reads_old_rows_leaves_no_connection_lent(
    database, small_window
):
    log = SQLiteLog(database)
    await loop_of(log, batches=range(100)).run()
    followed = asyncio.create_task(follow_all(log))
    await asyncio.sleep(0)  # it has handed its read to a thread
    followed.cancel()
    with pytest.raises(asyncio.CancelledError):
        await followed
    assert times_of(await follow_all(log)) == list(range(1, 101))


@pytest.mark.usefixtures("small_window")
async def test_slow_follower_gets_rows_that_left_memory(database):
    log, rows, go_on = SQLiteLog(database), [], asyncio.Event()

    async def follow():
        async for row in log.follow():
            rows.append((row.time, dict(row)))
            await go_on.wait()

    followed = asyncio.create_task(follow())

    async def wait(batch):
        if batch == 5:
            await until(lambda: rows)
        if batch == 150:
            await until(lambda: 50 not in log._rows)
            go_on.set()

    await loop_of(log, Call(after_batch=wait), batches=range(200)).run()
    await followed
    assert rows == all_rows(log)
    assert times_of(rows) == list(range(1, 201))


@pytest.mark.usefixtures("small_window")
async def test_row_out_of_memory_is_given_with_what_was_written_while_it_was_read(
    database, monkeypatch
):
    """The row is rewritten, written and out of memory again between the read and its use."""
    was_read, may_go_on = threading.Event(), threading.Event()
    next_rows = History.next_rows

    def slow_next_rows(self, first, last):
        found = next_rows(self, first, last)
        was_read.set()
        assert may_go_on.wait(20)
        return found

    log = SQLiteLog(database)
    await loop_of(log).run()
    async with log:
        await push_out(log, *range(1, 11))
        monkeypatch.setattr(History, "next_rows", slow_next_rows)
        log.status["iterations_done"] = 11
        async with aclosing(log.follow()) as rows:
            given = asyncio.create_task(anext(rows))
            await until(was_read.is_set)
            log[1]["late"] = 1
            await push_out(log, 1)
            may_go_on.set()
            row = await given
            assert (row.time, dict(row)) == (1, {"batch": 0, "late": 1})
            assert dict(log[1]) == {"batch": 0, "late": 1}


@KINDS
async def test_follower_after_a_second_run_sees_one_history(kind, database):
    log = make_log(kind, database)
    loop = loop_of(log)
    await loop.run()
    await loop.run()
    rows = await follow_all(log)
    assert rows == all_rows(log)
    assert times_of(rows) == list(range(1, 21))


@KINDS
async def test_follower_of_the_second_run_begins_with_the_first_one(kind, database):
    log = make_log(kind, database)
    followers = []

    async def begin(batch):
        followers.append(asyncio.create_task(follow_all(log)))

    loop = loop_of(log)
    await loop.run()
    loop.extensions.append(Call(after_batch=begin))
    loop.callbacks_changed()
    await loop.run()
    assert await followers[0] == all_rows(log)


@KINDS
async def test_follower_that_goes_on_through_a_resumption_gets_later_rows_anew(kind, database):
    log = make_log(kind, database)
    async with log:
        for time in range(4):
            log[time]["x"] = time
            log.status["iterations_done"] = time
        log.commit()
        async with aclosing(log.follow()) as rows:
            found = [(row.time, dict(row)) for row in [await anext(rows) for _ in range(3)]]
            log.status["iterations_done"] = 1
            log.resume()
            for time in range(2, 5):
                log[time]["x"] = 10 * time
                log.status["iterations_done"] = time
            log.commit()
            found += [(row.time, dict(row)) for row in [await anext(rows) for _ in range(2)]]
    wanted = [(0, 0), (1, 1), (2, 2), (2, 20), (3, 30)]
    assert found == [(time, {"x": value}) for time, value in wanted]


@KINDS
async def test_follower_that_misses_two_resumptions_gets_all_later_rows_anew(kind, database):
    log = make_log(kind, database)
    async with log:
        for time in range(5):
            log[time]["x"] = time
        log.status["iterations_done"] = 4
        log.commit()
        async with aclosing(log.follow()) as rows:
            for _ in range(4):
                await anext(rows)  # 0 to 3
            for forked_at in (0, 2):
                log.status["iterations_done"] = forked_at
                log.resume()
                for time in range(forked_at + 1, 5):
                    log[time]["x"] = 10 * forked_at + time + 100
                log.status["iterations_done"] = 4
                log.commit()
            async with asyncio.timeout(5):
                found = [(row.time, dict(row)) for row in [await anext(rows) for _ in range(3)]]
    assert found == [(1, {"x": 101}), (2, {"x": 102}), (3, {"x": 123})]


# ------------------------------------------------------------------ read_log: which run


async def write_runs(database, *names):
    """Write runs of these names, one after the other, and give their ids."""
    ids = []
    for name in names:
        log = SQLiteLog(database)
        log.describe(name)
        log[0]["run"] = len(ids)
        await log.flush()
        ids.append(log.h_uuid)
    return ids


async def test_latest_run_is_read_by_default(database):
    ids = await write_runs(database, None, "b", None)
    with read_log(database) as log:
        assert (log.h_uuid, log[0]["run"]) == (ids[2], 2)


async def test_run_is_read_by_its_id(database):
    for number, h_uuid in enumerate(await write_runs(database, None, "b", None)):
        for form in (h_uuid, h_uuid.upper()):
            with read_log(database, form) as log:
                assert (log.h_uuid, log[0]["run"]) == (h_uuid, number)


async def test_run_is_read_by_the_beginning_of_its_id(database):
    (h_uuid,) = await write_runs(database, None)
    for length in range(1, 32):
        with read_log(database, h_uuid[:length]) as log:
            assert log.h_uuid == h_uuid


async def test_run_is_read_by_its_name_the_latest_of_several(database):
    ids = await write_runs(database, "a", "b", "a", "c")
    found = []
    for name in "abc":
        with read_log(database, name) as log:
            found.append(log.h_uuid)
    assert found == [ids[2], ids[1], ids[3]]


async def test_database_of_read_log_may_be_text(database, monkeypatch):
    await write_runs(database, None)
    monkeypatch.chdir(database.parent)
    with read_log("log.sqlite") as log:
        assert log.database == database


async def test_home_directory_of_read_log_is_expanded(database, monkeypatch):
    await write_runs(database, None)
    monkeypatch.setenv("HOME", str(database.parent))
    with read_log("~/log.sqlite") as log:
        assert log.database == database


async def test_beginning_that_several_ids_have_is_an_error_that_names_the_latest(database):
    for h_uuid in ("aa0", "aa1", "bb0", "cc0"):
        log = SQLiteLog(database, None)
        log.uuid = type(log.uuid)(h_uuid + "0" * 29)
        log.describe(f"run {h_uuid}")
        await log.open()
        await log.close()
    with pytest.raises(UnknownRunError) as info:
        read_log(database, "aa")
    message = str(info.value)
    assert f"{database} has 2 runs for 'aa'" in message
    assert f"cc0{'0' * 29} (run cc0), bb0{'0' * 29} (run bb0), aa1{'0' * 29} (run aa1)" in message
    assert "aa00" not in message


@pytest.mark.parametrize("run", ["unknown", "0" * 32, "é", "%", "' OR 1"])
async def test_unknown_run_is_an_error_that_names_the_latest(database, run):
    ids = await write_runs(database, None, "b")
    with pytest.raises(UnknownRunError) as info:
        read_log(database, run)
    assert f"no runs for {run!r}" in str(info.value)
    assert f"{ids[1]} (b), {ids[0]}" in str(info.value)
    assert "leave run out for the latest" in str(info.value)


async def test_log_without_runs_is_an_error(database):
    ids = await write_runs(database, None)
    change(database, "DELETE FROM stored_entries", "DELETE FROM stored_status", "DELETE FROM runs")
    for run in (None, ids[0]):
        with pytest.raises(UnknownRunError, match="no runs yet"):
            read_log(database, run)


@pytest.mark.parametrize("run", [1, b"abc", ("a",), 0.5, True])
async def test_run_that_is_no_text_is_an_error(database, run):
    await write_runs(database, None)
    with pytest.raises(ArgumentError, match="expected the id of a run") as info:
        read_log(database, run)
    assert repr(run) in str(info.value)


# ------------------------------------------------------------------ read_log: which file


def error_of_reading(database):
    with pytest.raises(LogFileError) as info:
        read_log(database)
    assert str(database) in str(info.value)
    return str(info.value)


def test_missing_file_is_an_error_and_is_not_made(database):
    assert "there is no file" in error_of_reading(database)
    assert "expected the log that was written there" in error_of_reading(database)
    assert list(database.parent.iterdir()) == []


def test_missing_directory_is_an_error(tmp_path):
    assert "there is no file" in error_of_reading(tmp_path / "missing" / "log.sqlite")


def test_directory_is_no_log(tmp_path):
    assert "expected" in error_of_reading(tmp_path)


def test_path_with_a_nul_is_no_log(tmp_path):
    with pytest.raises(ArgumentError, match="expected the path of a file"):
        read_log(tmp_path / "a\0b")


def test_database_of_another_program_is_no_log(database):
    change(database, "CREATE TABLE things (x)", "INSERT INTO things VALUES (1)")
    message = error_of_reading(database)
    assert "is a database of another program" in message
    assert "expected a log" in message
    assert query(database, "SELECT x FROM things") == [(1,)]


def test_empty_database_of_sqlite_is_no_log(database):
    change(database, "VACUUM")
    content = database.read_bytes()
    assert "expected" in error_of_reading(database)
    assert database.read_bytes() == content


def test_text_file_is_no_log(database):
    database.write_text("some notes " * 1000)
    assert "is not a SQLite database; expected a log" in error_of_reading(database)
    assert database.read_text() == "some notes " * 1000


def test_short_text_file_is_no_log(database):
    database.write_text("notes")
    assert "too short for a database (5 bytes); expected a log" in error_of_reading(database)


def test_file_of_0_bytes_is_no_log(database):
    database.touch()
    assert "empty file (0 bytes); expected a log" in error_of_reading(database)
    assert database.stat().st_size == 0


async def test_log_of_a_newer_version_is_an_error_that_names_both_versions(database):
    await write_runs(database, None)
    change(database, "PRAGMA user_version = 7")
    message = error_of_reading(database)
    assert "has schema version 7; expected at most 1; upgrade aloop" in message


async def test_damaged_log_is_an_error(database):
    log = SQLiteLog(database)
    await loop_of(log, batches=range(3000)).run()
    content = bytearray(database.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    database.write_bytes(content)
    assert "expected an undamaged log" in error_of_reading(database)


async def test_log_that_went_away_is_an_error_when_it_is_read_again(database):
    await write_runs(database, None)
    log = read_log(database)
    log.close()
    database.unlink()
    with pytest.raises(LogFileError, match="there is no file"):
        log[0]


@pytest.mark.parametrize("name", ["a b.sqlite", "a?b#c%20.sqlite", "é😀.sqlite", "'\";.sqlite"])
async def test_log_of_an_odd_name_is_read(tmp_path, name):
    (h_uuid,) = await write_runs(tmp_path / name, None)
    with read_log(tmp_path / name) as log:
        assert (log.h_uuid, rows_of(log)) == (h_uuid, {0: {"run": 0}})


# ------------------------------------------------------------------ read_log: what it gives


async def write_log(database):
    """Write a training of two runs with records of all kinds."""

    async def record(batch):
        row = log.current_row
        row["cost"] = 1 / (batch + 1)
        if batch % 2:
            row.update(text="é", nothing=None, yes=True, items=[1, (2, 3)], nan=NAN, array=[0.5])
            row["array"] = np.arange(3)

    log = SQLiteLog(database)
    hyperparameters = {"lr": 0.5, "sizes": [1, 2]}
    loop = loop_of(
        log, Call(after_batch=record), epochs=2, name="a run", hyperparameters=hyperparameters
    )
    await loop.run()
    await loop.run()
    return log


READS = {
    "rows": rows_of,
    "iteration": list,
    "len": len,
    "row": lambda log: dict(log[4]),
    "row of a numpy integer": lambda log: dict(log[np.int64(4)]),
    "empty row": lambda log: dict(log[1000]),
    "in": lambda log: [time in log for time in (0, 4, 40, 41, -1, "4", None, True, 4.0, 2**63)],
    "record": lambda log: log.get_record(4, "cost"),
    "array": lambda log: log.get_record(4, "array"),
    "no record": lambda log: [log.get_record(4, "x"), log.get_record(1000, "cost", 7)],
    "current row": lambda log: dict(log.current_row),
    "previous row": lambda log: dict(log.previous_row),
    "row of the last epoch": lambda log: dict(log.last_epoch_row),
    "times": lambda log: [
        log.current_row.time,
        log.previous_row.time,
        log.last_epoch_row.time,
        log[1000].time,
    ],
    "status": lambda log: sorted((k, exact(v)) for k, v in log.status.items()),
    "name": lambda log: log.name,
    "hyperparameters": lambda log: log.hyperparameters,
    "database": lambda log: log.database,
    "id": lambda log: log.h_uuid,
    "row repr": lambda log: repr(log[4]),
}


async def test_all_that_is_read_is_what_the_writer_has(database):
    log = await write_log(database)
    with read_log(database) as reader:
        for name, read in READS.items():
            assert (name, exact(read(reader))) == (name, exact(read(log)))
        for key in ("cost", "text", "nothing", "yes", "items", "nan", "array", "unknown"):
            assert as_lists(await reader.series(key)) == as_lists(await log.series(key))
        assert exact(await follow_all(reader)) == exact(all_rows(log))
        assert len(reader) == 40


async def test_all_that_is_read_while_the_run_goes_on_is_what_was_flushed(database):
    differences = []

    async def compare(batch):
        await log.flush()  # what was committed; the rows of this batch are not
        with read_log(database) as reader:
            times = [time for time in log if time != log.status["iterations_done"]]
            done = log.status["iterations_done"] - 1
            found = rows_of(reader), reader.status["iterations_done"], reader.has_ended
            wanted = {time: dict(log[time]) for time in times}, done, False
            if found != wanted:
                differences.append((found, wanted))

    log = SQLiteLog(database)
    await loop_of(log, Call(after_batch=compare)).run()
    assert differences == []


async def test_reader_sees_what_was_written_since_it_was_opened(database):
    async with SQLiteLog(database) as log:
        await log.flush()
        with read_log(database) as reader:
            for time in range(5):
                log[time]["x"] = time
                log.status["iterations_done"] = time
                await log.flush()
                assert rows_of(reader) == rows_of(log)
                assert reader.current_row == {"x": time}


async def test_another_process_reads_what_the_writer_has(database):
    log = await write_log(database)
    script = """if True:
        import asyncio, json, sys
        from aloop import read_log

        def plain(value):
            return value.tolist()

        with read_log(sys.argv[1]) as log:
            series = asyncio.run(log.series("cost"))
            found = {
                "rows": [[time, dict(log[time])] for time in log],
                "len": len(log), "in": [4 in log, 41 in log], "record": log.get_record(4, "cost"),
                "current": dict(log.current_row), "previous": dict(log.previous_row),
                "epoch": dict(log.last_epoch_row), "status": log.status, "name": log.name,
                "hyperparameters": log.hyperparameters, "ended": log.has_ended, "id": log.h_uuid,
                "database": str(log.database), "runs": [run.run for run in log.runs],
                "series": series,
            }
        print(json.dumps(found, default=plain))
    """
    found = json.loads(
        await asyncio.to_thread(
            subprocess.check_output, [sys.executable, "-c", script, str(database)]
        )
    )
    wanted = {
        "rows": [[time, dict(log[time])] for time in log],
        "len": 40,
        "in": [True, False],
        "record": log.get_record(4, "cost"),
        "current": dict(log.current_row),
        "previous": dict(log.previous_row),
        "epoch": dict(log.last_epoch_row),
        "status": dict(log.status),
        "name": "a run",
        "hyperparameters": {"lr": 0.5, "sizes": [1, 2]},
        "ended": True,
        "id": log.h_uuid,
        "database": str(database),
        "runs": [log.status["resumed_from"], log.h_uuid],
        "series": await log.series("cost"),
    }
    wanted = json.loads(json.dumps(wanted, default=lambda array: array.tolist()))
    assert exact(found.pop("status").items() >= wanted.pop("status").items())
    assert exact(found) == exact(wanted)


async def test_reader_of_many_rows_iterates_in_order(database):
    log = SQLiteLog(database)
    for time in (*range(0, 10_000, 3), 2**40, 2**63 - 1):
        log[time]["x"] = 1
    await log.flush()
    with read_log(database) as reader:
        assert list(reader) == list(log)
        assert len(reader) == len(log)


async def test_runs_are_listed_in_the_order_in_which_they_started(database):
    log = await write_log(database)
    await write_runs(database, None)
    live = await SQLiteLog(database).open()
    await live.flush()
    with read_log(database) as reader:
        first, second, third, fourth = reader.runs
    assert (first.run, first.name, first.resumed_from) == (
        log.status["resumed_from"],
        "a run",
        None,
    )
    assert (second.run, second.name, second.resumed_from) == (log.h_uuid, "a run", first.run)
    assert (third.name, third.resumed_from, third.iterations_done) == (None, None, 0)
    assert (first.iterations_done, second.iterations_done) == (20, 40)
    assert first.started_at <= first.ended_at <= second.ended_at <= third.ended_at
    assert (fourth.run, fourth.ended_at) == (live.h_uuid, None)
    await live.close()


async def test_runs_say_what_the_table_says(database):
    await write_log(database)
    columns = "SELECT run, name, started_at, ended_at, resumed_from FROM runs ORDER BY id"
    with read_log(database) as reader:
        found = [(r.run, r.name, r.started_at, r.ended_at, r.resumed_from) for r in reader.runs]
    assert found == query(database, columns)


async def test_run_has_ended_once_its_log_is_closed(database):
    async with SQLiteLog(database) as log:
        await log.flush()
        with read_log(database) as reader:
            assert reader.has_ended is False
    with read_log(database) as reader:
        assert reader.has_ended is True


async def test_run_has_ended_though_its_log_stays_open(database):
    async with SQLiteLog(database) as log:
        await loop_of(log).run()
        await log.flush()
        with read_log(database) as reader:
            assert reader.has_ended is True


async def test_run_that_goes_on_has_not_ended(database):
    log = SQLiteLog(database)
    await loop_of(log).run()
    async with SQLiteLog(database, log.uuid) as again:
        again[11]["x"] = 1
        await again.flush()
        with read_log(database) as reader:
            assert reader.has_ended is False


async def test_rows_before_the_first_are_errors(database):
    await write_runs(database, None)
    with read_log(database) as reader:
        with pytest.raises(LogTimeError):
            reader[-1]
        with pytest.raises(LogTimeError):
            _ = reader.previous_row
        with pytest.raises(NoEpochError, match="epochs_done"):
            _ = reader.last_epoch_row


async def test_bad_times_are_errors(database):
    await write_runs(database, None)
    with read_log(database) as reader:
        for time in (0.5, "0", None, True, 2**63):
            with pytest.raises(LogTimeError):
                reader[time]


async def test_rows_that_were_read_cannot_be_written(database):
    await write_runs(database, None)
    with read_log(database) as reader:
        with pytest.raises(TypeError):
            reader[0]["run"] = 1
        with pytest.raises(TypeError):
            del reader[0]["run"]
        with pytest.raises(TypeError):
            reader[0] = {}
        assert rows_of(reader) == {0: {"run": 0}}


async def test_values_that_were_read_cannot_be_changed(database):
    log = SQLiteLog(database)
    log[0]["items"], log[0]["array"] = [1], np.arange(3)
    await log.flush()
    with read_log(database) as reader:
        with pytest.raises(TypeError):
            reader[0]["items"].append(2)
        with pytest.raises(ValueError, match="read-only"):
            reader[0]["array"][0] = 1


async def test_status_that_was_read_cannot_be_changed(database):
    await write_runs(database, None)
    with read_log(database) as reader, pytest.raises(TypeError):
        reader.status["iterations_done"] = 7


async def test_row_that_was_read_is_a_mapping_with_a_time(database):
    await write_log(database)
    with read_log(database) as reader:
        row = reader[1]
        assert (row.time, list(row), len(row), "cost" in row) == (1, ["batch", "cost"], 2, True)
        assert row == {"batch": 0, "cost": 1.0}
        assert row.get("x", 5) == 5
        with pytest.raises(KeyError):
            row["x"]


async def test_reader_says_what_it_reads(database):
    (h_uuid,) = await write_runs(database, None)
    with read_log(database) as reader:
        assert repr(reader) == f"<ReadOnlyLog {h_uuid[:8]} of {database}>"


async def test_reader_can_be_closed_twice_and_read_after_it(database):
    await write_runs(database, None)
    reader = read_log(database)
    reader.close()
    reader.close()
    assert rows_of(reader) == {0: {"run": 0}}
    reader.close()


def open_files(database):
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # it was closed meanwhile
            found.append(str(link.readlink()))
    return [name for name in found if name.startswith(str(database))]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
async def test_closing_a_reader_closes_its_files(database):
    await write_runs(database, None)
    with read_log(database) as reader:
        rows_of(reader)
        assert open_files(database)
    assert open_files(database) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
async def test_reading_many_logs_keeps_few_files_open(tmp_path):
    readers = []
    for number in range(30):
        database = tmp_path / f"{number}.sqlite"
        await write_runs(database, None)
        readers.append(read_log(database))
    assert [rows_of(reader) for reader in readers] == [{0: {"run": 0}}] * 30
    assert len({name.split(".sqlite")[0] for name in open_files(tmp_path)}) <= 8
    for reader in readers:
        reader.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
async def test_failed_reading_leaves_no_file_open(database):
    await write_runs(database, None)
    with pytest.raises(UnknownRunError):
        read_log(database, "unknown")
    assert open_files(database) == []


# ------------------------------------------------------------------ reading beside writing


async def test_log_is_read_at_once_while_another_holds_the_write_lock(database):
    log = await write_log(database)
    with locked(database):
        begun = perf_counter()
        with read_log(database) as reader:
            assert rows_of(reader).keys() == rows_of(log).keys()
            assert times_of(await follow_all(reader)) == list(log)
            assert (await reader.series("batch"))[0].tolist() == list(log)
        assert perf_counter() - begun < 5


async def test_log_is_read_while_the_run_cannot_write(database):
    async with SQLiteLog(database) as log:
        log[0]["x"] = 1
        await log.flush()
        with locked(database):
            log[1]["x"] = 2
            flush = asyncio.create_task(log.flush())
            await until(lambda: log._unwritten.on_its_way)
            with read_log(database) as reader:
                assert rows_of(reader) == {0: {"x": 1}}
        await flush
        with read_log(database) as reader:
            assert rows_of(reader) == {0: {"x": 1}, 1: {"x": 2}}


async def test_follower_that_pauses_does_not_hold_up_the_writer(database):
    async with SQLiteLog(database) as log:
        log[0]["x"] = 0
        log.status["iterations_done"] = 1
        await log.flush()
        with read_log(database) as reader:
            async with aclosing(reader.follow()) as rows:
                assert (await anext(rows)).time == 0
                for time in range(1, 200):
                    log[time]["x"] = time
                    await log.flush()
                # Nothing of the reader keeps the write-ahead log from being moved to the file.
                moved = query(database, "PRAGMA wal_checkpoint(TRUNCATE)")
                assert moved == [(0, 0, 0)]


async def test_iteration_that_pauses_does_not_hold_up_the_writer(database):
    async with SQLiteLog(database) as log:
        log[0]["x"] = 0
        await log.flush()
        with read_log(database) as reader:
            times = iter(reader)
            assert next(times) == 0
            log[1]["x"] = 1
            await log.flush()
            assert query(database, "PRAGMA wal_checkpoint(TRUNCATE)") == [(0, 0, 0)]


async def test_writer_goes_on_while_a_reader_is_in_a_transaction(database):
    async with SQLiteLog(database) as log:
        log[0]["x"] = 0
        await log.flush()
        with read_log(database) as reader, reader._readers.connection() as connection:
            connection.execute("BEGIN")
            connection.execute("SELECT * FROM stored_entries").fetchall()
            for time in range(1, 50):
                log[time]["x"] = time
                await log.flush()
        assert len(query(database, "SELECT time FROM entries")) == 50


async def test_reader_does_not_change_the_file(database):
    await write_log(database)
    content = database.read_bytes()
    with read_log(database) as reader:
        rows_of(reader)
        await follow_all(reader)
    assert database.read_bytes() == content


async def test_reader_of_a_log_at_rest_leaves_at_most_an_empty_write_ahead_log(database):
    await write_log(database)
    with read_log(database) as reader:
        rows_of(reader)
    beside = {path.name: path.stat().st_size for path in database.parent.iterdir()}
    assert beside.keys() <= {"log.sqlite", "log.sqlite-wal", "log.sqlite-shm"}
    assert beside.get("log.sqlite-wal", 0) == 0


async def test_followers_in_threads_share_a_reader(database):
    log = await write_log(database)
    with read_log(database) as reader:
        found = await asyncio.gather(*[follow_all(reader) for _ in range(20)])
    assert [times_of(rows) for rows in found] == [list(log)] * 20


# Everything is mounted read-only for one process; the run may write outside of it.
READ_ONLY = """
mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"
"""


def in_read_only(directory, *command):
    shell = ["sh", "-c", READ_ONLY, "sh", str(directory)]
    return ["unshare", "--mount", "--map-root-user", *shell, *command]


def can_mount(directory):
    try:
        command = in_read_only(directory, "sh", "-c", f"! touch {directory}/x 2>/dev/null")
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except OSError:
        return False


READ_SCRIPT = """
import asyncio, json, sys
from aloop import read_log

async def main():
    with read_log(sys.argv[1]) as log:
        followed = [row.time async for row in log.follow()] if log.has_ended else []
        rows = [[time, dict(log[time])] for time in log]
        print(json.dumps([rows, log.has_ended, followed]))

asyncio.run(main())
"""


async def read_in_read_only(database):
    if not await asyncio.to_thread(can_mount, database.parent):
        pytest.skip("no read-only mounts can be made here")
    command = in_read_only(database.parent, sys.executable, "-c", READ_SCRIPT, str(database))
    done = await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)
    return json.loads(done.stdout)


async def test_log_that_ended_is_read_from_a_read_only_mount(database):
    log = SQLiteLog(database)
    await loop_of(log).run()
    rows = [[time, dict(log[time])] for time in log]
    assert await read_in_read_only(database) == [rows, True, list(log)]
    assert [path.name for path in database.parent.iterdir()] == [database.name]


async def test_log_that_is_being_written_is_read_from_a_read_only_mount(database):
    async with SQLiteLog(database) as log:
        log[0]["x"] = 1
        await log.flush()
        assert await read_in_read_only(database) == [[[0, {"x": 1}]], False, []]


async def test_reader_in_a_read_only_mount_sees_a_run_that_was_resumed_outside(database):
    if not await asyncio.to_thread(can_mount, database.parent):
        pytest.skip("no read-only mounts can be made here")
    log = SQLiteLog(database)
    loop = loop_of(log)
    await loop.run()
    script = """if True:
        import sys
        from aloop import read_log
        with read_log(sys.argv[1]) as log:
            print(len(log.runs), flush=True)
            sys.stdin.readline()
            print(len(log.runs), flush=True)
            sys.stdin.readline()
            print(len(log.runs), flush=True)
    """
    command = in_read_only(database.parent, sys.executable, "-c", script, str(database))
    async with process(*command) as reader:
        found = [await line_of(reader)]
        await loop.run()
        async with log:
            log[100]["x"] = 1
            await log.flush()
            tell(reader)
            found.append(await line_of(reader))
        tell(reader)
        found.append(await line_of(reader))
    assert found == [1, 2, 2]


# ------------------------------------------------------------------ following in another process


@asynccontextmanager
async def process(*command):
    """Run a program that can be told and that answers; at the end it is gone."""
    pipe = asyncio.subprocess.PIPE
    started = await asyncio.create_subprocess_exec(*map(str, command), stdin=pipe, stdout=pipe)
    try:
        yield started
    finally:
        if started.returncode is None:
            with suppress(ProcessLookupError):
                started.kill()
        await started.communicate()


async def line_of(started):
    """Give what the program says next, None at its end."""
    line = await started.stdout.readline()
    return json.loads(line) if line else None


async def lines_of(started):
    """Give all that the program says until its end, which is to be a good one."""
    found = []
    while (line := await line_of(started)) is not None:
        found.append(line)
    assert await started.wait() == 0
    return found


def tell(started, what=""):
    started.stdin.write(f"{what}\n".encode())


# Trains on as many batches as it is told, until it is told to end the epoch and with it the run.
WRITER = """
import asyncio, json, sys
from aloop import FinishAfter, MainLoop, SQLiteLog, TrainingExtension

class Write(TrainingExtension):
    async def before_epoch(self):
        await self.main_loop.log.flush()
        print(json.dumps(self.main_loop.log.h_uuid), flush=True)

    async def after_batch(self, batch):
        self.main_loop.log.current_row["batch"] = batch

    async def after_epoch(self):
        self.main_loop.log.current_row["epoch"] = self.main_loop.status["epochs_done"]

async def batches():
    while (line := await asyncio.to_thread(sys.stdin.readline)) not in ("", "end\\n"):
        for number in range(int(line)):
            yield number

log = SQLiteLog(sys.argv[1])
loop = MainLoop(
    lambda batch: None, batches, log=log, extensions=[Write(), FinishAfter(every_n_epochs=1)]
)
asyncio.run(loop.run())
"""

# Says its run and then each row; waits at the row of a given time to be told to go on.
READER = """
import asyncio, json, sys
from aloop import read_log

async def main(database, run, pause_at, after):
    with read_log(database, run or None) as log:
        print(json.dumps(log.h_uuid), flush=True)
        async for row in log.follow(int(after), poll_s=0.01):
            print(json.dumps([row.time, dict(row)]), flush=True)
            if row.time == int(pause_at):
                sys.stdin.readline()

asyncio.run(main(*sys.argv[1:]))
"""


@asynccontextmanager
async def writing(database):
    """Run a writer in a process of its own, and give it and the id of its run."""
    async with process(sys.executable, "-c", WRITER, database) as writer:
        yield writer, await line_of(writer)


@asynccontextmanager
async def following(database, run="", pause_at=-1, after=-1):
    """Run a follower in a process of its own, which has opened the log by then."""
    async with process(sys.executable, "-c", READER, database, run, pause_at, after) as reader:
        reader.run = await line_of(reader)
        yield reader


def as_said(log):
    return [[time, dict(log[time])] for time in log]


async def test_reader_in_another_process_follows_a_run_row_by_row(database):
    async with writing(database) as (writer, run), following(database) as reader:
        assert reader.run == run
        tell(writer, 2)
        rows = [await line_of(reader)]  # the second row may still get records
        for time in range(2, 6):
            tell(writer, 1)
            rows.append(await line_of(reader))
            assert rows[-1][0] == time
        tell(writer, "end")
        rows += await lines_of(reader)
        await writer.wait()
    with read_log(database) as log:
        assert rows == as_said(log)
        assert rows[-1][0] == 6
        assert rows[-1][1]["training_finished"] is True


async def test_reader_in_another_process_gets_the_rows_after_a_time(database):
    async with writing(database) as (writer, _), following(database, after=3) as reader:
        tell(writer, 6)
        tell(writer, "end")
        rows = await lines_of(reader)
        await writer.wait()
    assert times_of(rows) == [4, 5, 6]


@pytest.mark.slow
async def test_readers_in_another_process_gets_many_rows_in_order(database):
    async with writing(database) as (writer, _), following(database) as reader:
        tell(writer, 20_000)
        tell(writer, "end")
        rows = await lines_of(reader)
        await writer.wait()
    assert times_of(rows) == list(range(1, 20_001))
    assert [row.get("batch") for _, row in rows] == list(range(20_000))


async def test_reader_of_a_run_that_ended_ends(database):
    log = await write_log(database)
    with read_log(database) as reader:
        assert exact(await follow_all(reader)) == exact(all_rows(log))
        assert times_of(await follow_all(reader, after=38)) == [39, 40]
        assert await follow_all(reader, after=40) == []
        assert await follow_all(reader, after=2**63 - 1) == []


async def resume_at(database, run, extensions=()):
    """Go on with a run of the file for three batches, in this process."""
    log = SQLiteLog(database, run)
    async with log:
        await loop_of(log, *extensions, batches=range(10, 13)).run()
    return log


async def run_and_follow_through_a_resumption(database, end, *extensions):
    """End a run of three batches in this way and resume it; give what its follower got."""
    async with (
        writing(database) as (writer, run),
        following(database, run, pause_at=2) as reader,
    ):
        tell(writer, 3)
        rows = [await line_of(reader), await line_of(reader)]
        await end(writer)  # the reader waits and does not see this end as the last
        log = await resume_at(database, run, extensions)
        tell(reader)
        rows += await lines_of(reader)
    return log, rows


async def end_in_order(writer):
    tell(writer, "end")
    assert await writer.wait() == 0


async def kill(writer):
    writer.send_signal(signal.SIGKILL)
    await writer.wait()


ENDS = pytest.mark.parametrize("end", [end_in_order, kill])


@ENDS
async def test_follower_goes_on_with_the_run_that_was_resumed(database, end):
    log, rows = await run_and_follow_through_a_resumption(database, end)
    assert times_of(rows) == [1, 2, 3, 4, 5, 6]
    assert rows[3:] == as_said(log)[3:]


class Note(TrainingExtension):
    """Records that the run was resumed, at the time at which it was."""

    async def on_resumption(self):
        self.main_loop.log.current_row["resumed"] = True


@ENDS
async def test_row_at_which_a_run_was_resumed_is_given_with_all_of_its_records(database, end):
    log, rows = await run_and_follow_through_a_resumption(database, end, Note())
    assert rows[2][1]["resumed"] is True
    assert rows == as_said(log)


async def test_follower_waits_for_a_killed_run_to_be_resumed(database):
    async with writing(database) as (writer, run), following(database, run) as reader:
        tell(writer, 3)
        rows = [await line_of(reader), await line_of(reader)]
        await kill(writer)
        log = await resume_at(database, run)
        rows += await lines_of(reader)
    assert rows == as_said(log)


async def test_follower_gets_rows_after_an_earlier_fork_anew(database):
    async with writing(database) as (writer, run), following(database, run) as reader:
        tell(writer, 5)
        rows = [await line_of(reader) for _ in range(4)]
        await kill(writer)
        async with SQLiteLog(database, run) as log:
            log.status["iterations_done"] = 2
            await loop_of(log, batches=range(10, 13)).run()
        rows += await lines_of(reader)
    assert times_of(rows) == [1, 2, 3, 4, 3, 4, 5]
    assert rows[4:] == as_said(log)[2:]


async def test_follower_goes_on_through_several_resumptions(database):
    log = SQLiteLog(database)
    loop = loop_of(log, batches=range(3))
    await loop.run()
    first = log.h_uuid
    for _ in range(3):
        await loop.run()
    with read_log(database, first) as reader:
        assert times_of(await follow_all(reader)) == list(range(1, 13))


async def test_follower_goes_on_with_the_latest_of_several_resumptions(database):
    log = SQLiteLog(database)
    await loop_of(log, batches=range(3)).run()
    for value in (1, 2):
        async with SQLiteLog(database, log.uuid) as again:
            again.resume()
            again[4]["x"] = value
    with read_log(database, log.h_uuid) as reader:
        assert (await follow_all(reader))[-1] == (4, {"x": 2})


async def test_follower_of_a_run_that_is_deleted_from_the_file_fails(database):
    (h_uuid,) = await write_runs(database, None)
    # As if it had been killed after the first iteration.
    change(database, "UPDATE runs SET ended_at = NULL", "UPDATE stored_status SET value = 1")
    with read_log(database) as reader:
        async with aclosing(reader.follow(poll_s=0.01)) as rows:
            assert (await anext(rows)).time == 0
            change(database, "DELETE FROM stored_entries", "DELETE FROM stored_status")
            change(database, "DELETE FROM runs")
            with pytest.raises(UnknownRunError, match=h_uuid):
                await anext(rows)


async def test_follower_of_a_run_does_not_see_others_of_the_file(database):
    ids = await write_runs(database, "a", "b")
    with read_log(database, "a") as reader:
        assert await follow_all(reader) == [(0, {"run": 0})]
    with read_log(database, ids[1]) as reader:
        assert await follow_all(reader) == [(0, {"run": 1})]


async def test_follower_of_the_file_follows_a_run_of_this_process(database):
    log, begun = SQLiteLog(database), []

    async def begin(batch):
        if batch == 0 and not begun:
            await log.flush()
            begun.append(asyncio.create_task(follow_all(reader := read_log(database), poll_s=0.01)))
            readers.append(reader)

    readers = []
    await loop_of(log, Call(after_batch=begin), batches=range(1000), epochs=2).run()
    assert await begun[0] == all_rows(log)
    readers[0].close()


async def test_follower_of_the_file_can_be_cancelled(database):
    log, is_there = SQLiteLog(database), asyncio.Event()

    async def follow():
        async for _ in reader.follow(poll_s=1000):
            is_there.set()

    async with log:
        log[0]["x"] = 1
        log.status["iterations_done"] = 1
        await log.flush()
        with read_log(database) as reader:
            followed = asyncio.create_task(follow())
            await is_there.wait()
            followed.cancel()
            with pytest.raises(asyncio.CancelledError):
                await followed
    with read_log(database) as reader:
        assert await follow_all(reader) == [(0, {"x": 1})]


@pytest.mark.parametrize("poll_s", [0, -1, NAN, "1", None, [1]])
async def test_bad_poll_s_is_an_error(database, poll_s):
    await write_runs(database, None)
    with read_log(database) as reader, pytest.raises(ArgumentError, match=r"poll_s is .*expected"):
        await follow_all(reader, poll_s=poll_s)


@pytest.mark.parametrize("after", [-2, 0.5, -1.0, "1", None, True, 2**63])
async def test_bad_after_is_an_error_for_a_reader_too(database, after):
    await write_runs(database, None)
    with read_log(database) as reader, pytest.raises(LogTimeError):
        await follow_all(reader, after=after)


# ------------------------------------------------------------------ many followers

FOLLOWERS = """
import asyncio, json, sys
from aloop import read_log

async def follow(database):
    times, is_sound = [], True
    with read_log(database) as log:
        async for row in log.follow():
            times.append(row.time)
            is_sound = is_sound and dict(row).get("batch") == row.time - 1
    return [len(times), times == list(range(1, len(times) + 1)), is_sound]

async def main(database, count):
    print(json.dumps("ready"), flush=True)
    for found in await asyncio.gather(*[follow(database) for _ in range(int(count))]):
        print(json.dumps(found), flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize(("seconds", "processes", "each"), [(1, 1, 3), (20, 5, 10)])
async def test_many_followers_of_a_fast_run_miss_no_row(database, seconds, processes, each):
    log, count = SQLiteLog(database), 1000 * seconds
    may_begin = asyncio.Event()

    async def batches():
        await may_begin.wait()
        begun = perf_counter()
        for number in range(count):
            if number % 10 == 0:
                await asyncio.sleep(max(0, begun + number / 1000 - perf_counter()))
            yield number

    async def in_this_process(follow):
        return [(row.time, row["batch"]) async for row in follow]

    run = asyncio.create_task(loop_of(log, batches=batches).run())
    await until(lambda: log.status["epoch_started"])
    await log.flush()
    async with AsyncExitStack() as stack:
        readers = [
            await stack.enter_async_context(
                process(sys.executable, "-c", FOLLOWERS, database, each)
            )
            for _ in range(processes)
        ]
        assert [await line_of(reader) for reader in readers] == ["ready"] * processes
        logs = [stack.enter_context(read_log(database)) for _ in range(2)]
        here = [
            asyncio.create_task(in_this_process(follow))
            for follow in [log.follow(), log.follow(), *[reader.follow() for reader in logs]]
        ]
        may_begin.set()
        await run
        wanted = [(number + 1, number) for number in range(count)]
        for rows in await asyncio.gather(*here):
            assert rows == wanted
        for reader in readers:
            assert await lines_of(reader) == [[count, True, True]] * each


# ------------------------------------------------------------------ pandas


@KINDS
async def test_data_frame_without_pandas_is_an_error_that_says_what_to_install(
    kind, database, monkeypatch
):
    monkeypatch.setitem(sys.modules, "pandas", None)
    log = make_log(kind, database)
    log[0]["x"] = 1
    await log.flush()
    with pytest.raises(MissingDependencyError, match=r"install aloop\[pandas\]"):
        log.to_dataframe()
    if kind == "sqlite":
        with (
            read_log(database) as reader,
            pytest.raises(MissingDependencyError, match=r"install aloop\[pandas\]"),
        ):
            reader.to_dataframe()


def of_frame(frame):
    """Give the records of a frame, those that are missing left out."""
    return {
        time: {
            key: value
            for key, value in row.items()
            if not (isinstance(value, float) and math.isnan(value))
        }
        for time, row in frame.to_dict("index").items()
    }


@pytest.mark.readers
@pytest.mark.parametrize("how", ["memory", "unflushed", "evicted", "closed", "reopened", "read"])
async def test_data_frame_has_a_row_for_each_time_and_a_column_for_each_key(
    database, small_window, how
):
    async with kept(how, database, [0.5, 1.5, 2.5]) as log:
        frame = log.to_dataframe()
        assert frame.index.name == "time"
        assert list(frame.index) == list(log)
        assert of_frame(frame) == rows_of(log)
        assert str(frame.index.dtype) == "int64"


@pytest.mark.readers
async def test_data_frame_of_a_training_is_the_rows_of_its_log(database):
    log = TrainingLog()
    for time, text in ((2, "a"), (0, "b"), (7, None)):
        log[time]["number"] = time
        log[time]["text"] = text
        log[time]["items"] = [time]
    log[9]["other"] = True
    frame = log.to_dataframe()
    assert list(frame.columns) == ["number", "text", "items", "other"]
    assert list(frame.index) == [0, 2, 7, 9]
    assert frame["number"].dropna().to_dict() == {0: 0, 2: 2, 7: 7}
    assert frame["text"].to_dict()[2] == "a"
    assert frame["items"].to_dict()[7] == [7]
    assert frame["other"].dropna().to_dict() == {9: True}


@pytest.mark.readers
@pytest.mark.parametrize("how", ["memory", "read"])
async def test_data_frame_of_whole_columns_has_their_dtypes(database, how):
    log = make_log("memory" if how == "memory" else "sqlite", database)
    for time in range(3):
        log[time].update(i=time, f=time / 2, b=True, t="a")
    await log.flush()
    frame = (read_log(database) if how == "read" else log).to_dataframe()
    assert [str(dtype) for dtype in frame.dtypes[:3]] == ["int64", "float64", "bool"]
    assert list(frame["t"]) == ["a"] * 3


@pytest.mark.readers
@KINDS
async def test_data_frame_of_an_empty_log_is_empty(kind, database):
    async with make_log(kind, database) as log:
        frame = log.to_dataframe()
    assert (len(frame), len(frame.columns), frame.index.name) == (0, 0, "time")


@pytest.mark.readers
async def test_data_frame_leaves_out_what_was_deleted(database):
    async with SQLiteLog(database) as log:
        log[0].update(x=1, y=2)
        log[1]["x"] = 3
        await log.flush()
        del log[0]["y"]
        del log[1]["x"]
    with read_log(database) as reader:
        frame = reader.to_dataframe()
    assert (list(frame.columns), list(frame.index), list(frame["x"])) == (["x"], [0], [1])
