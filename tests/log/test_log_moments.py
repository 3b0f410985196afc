"""Odd moments: a close that is cancelled, a log that was not opened yet, values of many bytes."""

import asyncio

import numpy as np
import pytest
from log_helpers import locked, query
from log_tools import rows_of

from aloop import SQLiteLog, config, read_log
from aloop.errors import ArgumentError, JournalError, LogTimeError, LogValueError


async def test_close_that_is_cancelled_while_the_file_is_locked_ends_and_loses_nothing(
    database, monkeypatch
):
    monkeypatch.setattr("aloop.log.sqlite.CANCELLED_CLOSE_S", 0.05)
    monkeypatch.setattr("aloop.log.connection.WRITE_TIMEOUT_S", 0.02)
    log = await SQLiteLog(database).open()
    await log.flush()
    log[0]["cost"] = 0.5
    with locked(database), pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await log.close()
    await log.flush()  # waits for what is still being written
    assert query(database, "SELECT time, key, value FROM entries") == [(0, "cost", 0.5)]


@pytest.mark.parametrize("use", [len, list, lambda log: log.to_dataframe()])
async def test_run_that_was_not_read_yet_is_not_empty(database, use, monkeypatch):
    async with SQLiteLog(database) as log:
        log[0]["cost"] = 0.5
    other = SQLiteLog(database, log.uuid)
    with pytest.raises(JournalError, match="open it first"):
        use(other)
    with pytest.raises(JournalError, match="open it first"):
        await other.series("cost")
    with pytest.raises(JournalError, match="open it first"):
        await anext(other.follow())
    async with other:
        assert rows_of(other) == {0: {"cost": 0.5}}


async def test_database_in_memory_can_be_opened_again():
    log = SQLiteLog(":memory:")
    for time in range(3):
        async with log:
            log[time]["cost"] = 0.5
            await log.flush()
    assert list(log) == [0, 1, 2]


async def test_rows_of_many_bytes_are_read_a_few_at_a_time(database, monkeypatch):
    sizes = []
    monkeypatch.setattr(config, "max_blob_size", 1 << 20)
    async with SQLiteLog(database) as log:
        for time in range(100):
            log[time]["text"] = "x" * 500_000
        log.status["iterations_done"] = 100
    with read_log(database) as read:
        rows = type(read._history).rows

        def told(history, first, last):
            found = rows(history, first, last)
            sizes.append(len(found))
            return found

        monkeypatch.setattr("aloop.log.reading.History.rows", told)
        assert [row.time async for row in read.follow()] == list(range(100))
    assert max(sizes) <= 16


async def test_small_rows_are_read_many_at_a_time(database, monkeypatch):
    async with SQLiteLog(database) as log:
        for time in range(20_000):
            log[time]["cost"] = 0.5
        log.status["iterations_done"] = 20_000
    with read_log(database) as read:
        sizes = []
        ranges = type(read._history).next_rows

        def told(history, first, last):
            sizes.append(1)
            return ranges(history, first, last)

        monkeypatch.setattr("aloop.log.reading.History.next_rows", told)
        assert [row.time async for row in read.follow()] == list(range(20_000))
    assert len(sizes) < 25


def test_masked_array_is_refused(tmp_path):
    log = SQLiteLog(tmp_path / "log.sqlite")
    with pytest.raises(LogValueError, match="mask"):
        log[0]["masked"] = np.ma.array([1, 2], mask=[0, 1])


@pytest.mark.parametrize("poll_s", [0, -1, True, float("inf"), float("nan"), 1e300, "1", None])
async def test_interval_that_makes_no_sense_is_refused(database, poll_s):
    async with SQLiteLog(database):
        pass
    with read_log(database) as read, pytest.raises(ArgumentError, match="poll_s"):
        await anext(read.follow(poll_s=poll_s))


def test_database_in_memory_cannot_be_read_from_outside():
    with pytest.raises(ArgumentError, match="own log alone"):
        read_log(":memory:")


async def test_record_of_a_time_that_is_none_is_an_error(database):
    async with SQLiteLog(database) as log:
        pass
    with read_log(database) as read:
        for each in (log, read):
            with pytest.raises(LogTimeError, match="whole number"):
                each.get_record("x", "cost")
            assert each.get_record(-1, "cost", 5) == 5
