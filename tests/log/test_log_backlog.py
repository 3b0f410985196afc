"""What waits to be written is bounded: a run that is faster than its file waits for it."""

import asyncio
import contextlib

import pytest
from log_helpers import change, locked, query, until
from log_tools import (
    break_writing,
    entries_of,
    join_connection_threads,
    mend_writing,
    reopen,
    rows_of,
)

from aloop import FinishAfter, MainLoop, TrainingExtension
from aloop.errors import JournalError
from aloop.log.sqlite import SQLiteLog

MAX_RECORDS = 100
MAX_BYTES = 20_000

FAIL_FIRST_RUN = """
    CREATE TRIGGER fail BEFORE INSERT ON stored_entries WHEN NEW.run = 1
    BEGIN SELECT RAISE(ABORT, 'the disk is on fire'); END
"""
SLOW = """
    CREATE TRIGGER slow BEFORE INSERT ON stored_entries BEGIN SELECT (
        WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 1000)
        SELECT MAX(x) FROM c
    ); END
"""


@pytest.fixture(autouse=True)
def bounds(monkeypatch):
    """Let 100 records or 20,000 bytes be all that may wait."""
    monkeypatch.setattr("aloop.log.backlog.MAX_RECORDS", MAX_RECORDS)
    monkeypatch.setattr("aloop.log.backlog.MAX_BYTES", MAX_BYTES)


@pytest.fixture
def a_turn_for_each_batch(monkeypatch):
    """Let a run look after each batch how much waits."""
    monkeypatch.setattr("aloop.turns.SLICE_S", 0.0)


@pytest.fixture
def impatient(monkeypatch):
    """Let an attempt to write end soon, and what is said of many attempts be said soon."""
    monkeypatch.setattr("aloop.log.connection.WRITE_TIMEOUT_S", 0.02)
    monkeypatch.setattr("aloop.log.journal.BUSY_TIMEOUT_S", 0.2)


async def no_op(batch: object) -> None:
    """Train on nothing."""


class Write(TrainingExtension):
    """Records each batch, and how much waits to be written at most."""

    def __init__(self, value=None):
        super().__init__()
        self.value = value
        self.most_records = self.most_bytes = 0

    async def after_batch(self, batch: object) -> None:
        log = self.main_loop.log
        log.current_row["batch"] = batch if self.value is None else self.value
        self.most_records = max(self.most_records, log._unwritten.due_records)
        self.most_bytes = max(self.most_bytes, log._unwritten.due_bytes)


def training(log, batches, value=None):
    """Give the extension that writes, and the loop."""
    write = Write(value)
    extensions = [write, FinishAfter(after_n_epochs=1)]
    loop = MainLoop(no_op, range(batches), log=log, extensions=extensions, grace_s=1)
    return write, loop


def waits_for_room(log):
    return lambda: log._journal is not None and bool(log._journal._room_waiters)


async def begun(database, batches, value=None):
    """Give an open log, its lock on the file, the writing extension and the run, which waits."""
    log = await SQLiteLog(database).open()
    await log.flush()
    lock = contextlib.ExitStack()
    lock.enter_context(locked(database))
    write, loop = training(log, batches, value)
    run = asyncio.create_task(loop.run())
    await until(waits_for_room(log))
    return log, lock, write, run


async def ended(log, lock, run):
    lock.close()
    await run
    await log.close()


def batches_of(database, log):
    return [value for _, key, value in entries_of(database, log) if key == "batch"]


def said(caplog, text):
    return [record for record in caplog.records if text in record.getMessage()]


# ------------------------------------------------------------------ a run that waits


async def test_run_faster_than_its_file_waits(database):
    log, lock, _write, run = await begun(database, 10_000)
    done = log.status["iterations_done"]
    for _ in range(100):
        await asyncio.sleep(0)
    assert (log.status["iterations_done"], run.done(), done < 10_000) == (done, False, True)
    await ended(log, lock, run)


@pytest.mark.aloop_guard(block_s=5)  # it reads all rows
async def test_run_that_waited_goes_on_and_loses_nothing(database):
    log, lock, _write, run = await begun(database, 10_000)
    await ended(log, lock, run)
    assert batches_of(database, log) == list(range(10_000))
    assert rows_of(await reopen(log)) == rows_of(log)


async def test_what_waits_is_bounded_by_the_maximum_and_a_turn(database):
    log, lock, write, run = await begun(database, 10_000)
    await ended(log, lock, run)
    assert MAX_RECORDS <= write.most_records < MAX_RECORDS + 5000


async def test_what_waits_is_bounded_by_the_maximum_and_a_batch(a_turn_for_each_batch, database):
    log, lock, write, run = await begun(database, 2000)
    await ended(log, lock, run)
    # A batch makes one record; the beginning and the end of a training some of the status.
    assert MAX_RECORDS <= write.most_records <= MAX_RECORDS + 10


async def test_slow_file_bounds_what_waits(a_turn_for_each_batch, database):
    log = await SQLiteLog(database).open()
    change(database, SLOW)
    write, loop = training(log, 1000)
    await loop.run()
    await log.close()
    assert MAX_RECORDS <= write.most_records <= MAX_RECORDS + 10
    assert batches_of(database, log) == list(range(1000))


async def test_large_values_that_wait_are_bounded_by_their_bytes(a_turn_for_each_batch, database):
    log, lock, write, run = await begun(database, 200, "x" * 1000)
    assert log._unwritten.due_records < MAX_RECORDS
    await ended(log, lock, run)
    assert MAX_BYTES <= write.most_bytes <= MAX_BYTES + 2100
    assert batches_of(database, log) == ["x" * 1000] * 200


async def test_bytes_and_records_that_wait_are_none_in_the_end(a_turn_for_each_batch, database):
    log, lock, _write, run = await begun(database, 200, "x" * 1000)
    lock.close()
    await run
    await log.flush()
    backlog = log._journal.backlog
    assert (backlog._records, backlog._bytes, backlog.is_full) == (0, 0, False)
    await log.close()
    assert backlog._by_log == {}


async def test_others_of_the_event_loop_go_on_while_a_run_waits(database):
    log, lock, _write, run = await begun(database, 10_000)
    turns = 0
    async with asyncio.timeout(5):
        while turns < 1000:
            turns += 1
            await asyncio.sleep(0)
    assert not run.done()
    await ended(log, lock, run)


async def test_run_that_is_slower_than_its_file_never_waits(database, caplog):
    log = SQLiteLog(database)

    class Flush(TrainingExtension):
        async def after_batch(self, batch):
            await log.flush()

    loop = MainLoop(
        no_op, range(200), log=log, extensions=[Write(), Flush(), FinishAfter(after_n_epochs=1)]
    )
    await loop.run()
    assert said(caplog, "come faster") == []


async def test_log_in_a_database_of_memory_is_bounded_too(a_turn_for_each_batch):
    write, loop = training(SQLiteLog(":memory:"), 2000)
    await loop.run()
    assert write.most_records <= MAX_RECORDS + 10


# ------------------------------------------------------------------ what is said of it


async def test_waiting_is_said_once(a_turn_for_each_batch, database, caplog):
    log, lock, _write, run = await begun(database, 2000)
    done = log.status["iterations_done"]
    lock.close()
    await until(lambda: log.status["iterations_done"] > done)
    with locked(database):
        await until(waits_for_room(log))
    await run
    await log.close()
    [record] = said(caplog, "come faster")
    assert (record.name, record.levelname) == ("aloop", "WARNING")
    assert str(database) in record.getMessage()
    assert str(MAX_RECORDS) in record.getMessage()


# ------------------------------------------------------------------ several logs of a file


async def test_two_runs_of_a_file_are_bounded_together(a_turn_for_each_batch, database):
    logs = [await SQLiteLog(database).open() for _ in range(2)]
    most = 0

    class Count(TrainingExtension):
        async def after_batch(self, batch):
            nonlocal most
            most = max(most, sum(log._unwritten.due_records for log in logs))

    trainings = [training(log, 1000) for log in logs]
    for log in logs:
        await log.flush()
    with locked(database):
        runs = []
        for _, loop in trainings:
            loop.extensions.append(Count())
            runs.append(asyncio.create_task(loop.run()))
        await until(lambda: all(log.status["iterations_done"] for log in logs))
        await until(waits_for_room(logs[0]))
    await asyncio.gather(*runs)
    assert MAX_RECORDS < most <= MAX_RECORDS + 20
    for log in logs:
        await log.close()
        assert batches_of(database, log) == list(range(1000))


async def test_runs_of_two_files_do_not_wait_for_each_other(tmp_path):
    log, lock, _write, run = await begun(tmp_path / "a.sqlite", 2000)
    other = SQLiteLog(tmp_path / "b.sqlite")
    async with asyncio.timeout(10):
        await training(other, 2000)[1].run()
    assert batches_of(tmp_path / "b.sqlite", other) == list(range(2000))
    assert not run.done()
    await ended(log, lock, run)


async def test_log_that_cannot_be_written_does_not_hold_up_another(database):
    log = await SQLiteLog(database).open()
    await log.flush()  # its run is the first of the file
    change(database, FAIL_FIRST_RUN)
    for time in range(3 * MAX_RECORDS):
        log[time]["cost"] = time
    with pytest.raises(JournalError):
        await log.flush()
    async with asyncio.timeout(10):
        other = SQLiteLog(database)
        await training(other, 1000)[1].run()
    assert batches_of(database, other) == list(range(1000))
    mend_writing(database)
    await log.close()
    assert len(entries_of(database, log)) == 3 * MAX_RECORDS


async def test_log_that_was_closed_does_not_hold_up_another(database):
    log = await SQLiteLog(database).open()
    async with SQLiteLog(database) as other:
        await log.flush()
        change(database, FAIL_FIRST_RUN)
        for time in range(3 * MAX_RECORDS):
            log[time]["cost"] = time
        with pytest.raises(JournalError):
            await log.close()
        async with asyncio.timeout(10):
            await training(other, 1000)[1].run()
    mend_writing(database)
    await log.flush()
    assert batches_of(database, other) == list(range(1000))


async def test_records_behind_no_commit_point_do_not_hold_up_another_run(database):
    """They cannot be written, however long one waits."""
    log = SQLiteLog(database)
    async with log.session():
        log.commit()
        for time in range(3 * MAX_RECORDS):  # as a long callback of one batch does
            log[time]["cost"] = time
        await log.flush()
        other = SQLiteLog(database)
        run = asyncio.create_task(training(other, 1000)[1].run())
        done, _ = await asyncio.wait([run], timeout=1)
        log.commit()
        await run
        assert done == {run}


# ------------------------------------------------------------------ failures and cancellation


async def test_run_whose_writing_fails_while_it_waits_ends_with_an_error(database):
    log, lock, _write, run = await begun(database, 10_000)
    done = log.status["iterations_done"]
    lock.close()
    await until(lambda: log.status["iterations_done"] > done)
    break_writing(database)
    with pytest.raises(JournalError, match="the disk is on fire"):
        await run
    mend_writing(database)
    await log.close()
    done = log.status["iterations_done"]
    assert done < 10_000
    assert batches_of(database, log) == list(range(done))


async def test_run_that_waits_for_a_file_that_is_broken_ends_with_an_error(database):
    log = await SQLiteLog(database).open()
    await log.flush()
    break_writing(database)
    with locked(database):
        _, loop = training(log, 10_000)
        run = asyncio.create_task(loop.run())
        await until(waits_for_room(log))
    with pytest.raises(JournalError, match="the disk is on fire"):
        await run
    mend_writing(database)
    await log.close()
    assert batches_of(database, log) == list(range(log.status["iterations_done"]))


async def test_cancelled_run_that_waits_ends_and_loses_nothing(database):
    log, lock, _write, run = await begun(database, 10_000)
    run.cancel()
    await asyncio.sleep(0)
    lock.close()
    with pytest.raises(asyncio.CancelledError):
        await run
    await log.close()
    done = log.status["iterations_done"]
    assert batches_of(database, log) == list(range(done))


async def test_other_run_goes_on_when_one_that_waits_is_cancelled(a_turn_for_each_batch, database):
    log, lock, _write, run = await begun(database, 1000)
    other = await SQLiteLog(database).open()
    other_run = asyncio.create_task(training(other, 1000)[1].run())
    await until(lambda: other.status["iterations_done"])
    run.cancel()
    await asyncio.sleep(0)
    lock.close()
    with pytest.raises(asyncio.CancelledError):
        await run
    await other_run
    await other.close()
    await log.close()
    assert batches_of(database, other) == list(range(1000))


async def test_run_that_waits_is_stopped_by_a_request(database):
    log = await SQLiteLog(database).open()
    await log.flush()
    _, loop = training(log, 10_000)
    with locked(database):
        run = asyncio.create_task(loop.run())
        await until(waits_for_room(log))
        loop.request_finish("batch")
        done = log.status["iterations_done"]
    await run
    assert log.status["iterations_done"] == done
    await log.close()
    assert batches_of(database, log) == list(range(done))


# ------------------------------------------------------------------ a file that others lock


async def test_lock_of_another_program_is_waited_for(impatient, database, caplog):
    log = await SQLiteLog(database).open()
    await log.flush()
    log[0]["cost"] = 0.5
    with locked(database):
        flush = asyncio.create_task(log.flush())
        await until(lambda: said(caplog, "another program has kept"))
        assert not flush.done()
    await flush
    await log.close()
    assert entries_of(database, log) == [(0, "cost", 0.5)]


async def test_lock_of_another_program_is_said_once(impatient, database, caplog, monkeypatch):
    attempts = []
    log = await SQLiteLog(database).open()
    await log.flush()
    connection = log._journal._thread.committer._connection
    begin = type(connection)._synchronise
    monkeypatch.setattr(
        type(connection), "_synchronise", lambda *args: (attempts.append(1), begin(*args))
    )
    log[0]["cost"] = 0.5
    with locked(database):
        flush = asyncio.create_task(log.flush())
        await until(lambda: said(caplog, "another program has kept"))
        attempts.clear()
        await until(lambda: len(attempts) > 5)
    await flush
    await log.close()
    [record] = caplog.records
    assert (record.name, record.levelname, str(database) in record.getMessage()) == (
        "aloop",
        "WARNING",
        True,
    )


async def test_run_waits_for_the_lock_of_another_program(impatient, database, caplog):
    log, lock, _write, run = await begun(database, 5000)
    await until(lambda: said(caplog, "another program has kept"))
    await ended(log, lock, run)
    assert batches_of(database, log) == list(range(5000))
    assert said(caplog, "database is locked") == []


async def test_log_goes_on_at_once_after_the_lock_was_waited_for(impatient, database, caplog):
    log, lock, _write, run = await begun(database, 1000)
    await until(lambda: said(caplog, "another program has kept"))
    await ended(log, lock, run)
    await log.open()
    log[10**6]["late"] = 1
    await log.flush()
    await log.close()
    assert (10**6, "late", 1) in entries_of(database, log)


def test_end_of_the_event_loop_does_not_wait_for_ever_for_a_lock(impatient, database):
    async def main():
        log = await SQLiteLog(database).open()
        await log.flush()
        lock.enter_context(locked(database))
        log[0]["cost"] = 0.5
        log.commit()
        return log

    with contextlib.ExitStack() as lock:
        log = asyncio.run(main())
    assert join_connection_threads() == []
    asyncio.run(log.flush())
    assert entries_of(database, log) == [(0, "cost", 0.5)]


def test_end_of_the_event_loop_ends_a_run_that_waits_for_a_lock(impatient, database):
    runs = []

    async def main():
        log, lock, _, run = await begun(database, 10_000)
        locks.push(lock)
        runs.append(run)
        return log

    with contextlib.ExitStack() as locks:
        log = asyncio.run(main())
        assert runs[0].done()
    assert join_connection_threads() == []
    asyncio.run(log.flush())
    assert batches_of(database, log) == list(range(log.status["iterations_done"]))


async def test_opening_waits_for_the_lock_of_another_program(database):
    async with SQLiteLog(database):
        pass
    with locked(database):
        log = SQLiteLog(database)
        async with asyncio.timeout(5):
            await log.open()  # which writes nothing
        log[0]["cost"] = 0.5
    await log.close()
    assert query(database, "SELECT time, key, value FROM entries") == [(0, "cost", 0.5)]
