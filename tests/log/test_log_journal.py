"""One connection for each file and event loop, whole boundaries, nothing lost in a failure."""

import asyncio
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing

import pytest
from log_helpers import change, locked, query, until
from log_tools import (
    break_writing,
    connection_threads,
    entries_of,
    join_connection_threads,
    mend_writing,
    reopen,
    rows_of,
)

from aloop.errors import JournalError, LogFileError
from aloop.log.journal import Journal
from aloop.log.sqlite import SQLiteLog

# ------------------------------------------------------------------ sharing


async def test_logs_of_one_file_share_one_connection(database):
    async with SQLiteLog(database) as one, SQLiteLog(database) as two, SQLiteLog(database) as three:
        assert one._journal is two._journal is three._journal
        assert len(connection_threads()) == 1


async def test_logs_that_open_at_the_same_time_share_one_connection(database):
    logs = [SQLiteLog(database) for _ in range(10)]
    await asyncio.gather(*(log.open() for log in logs))
    assert (len({log._journal for log in logs}), len(connection_threads())) == (1, 1)
    await asyncio.gather(*(log.close() for log in logs))


async def test_logs_of_two_files_have_a_connection_each(tmp_path):
    async with SQLiteLog(tmp_path / "a.sqlite") as one, SQLiteLog(tmp_path / "b.sqlite") as two:
        assert one._journal is not two._journal
        assert len(connection_threads()) == 2


async def test_connection_stays_until_the_last_log_closes(database):
    one, two = SQLiteLog(database), SQLiteLog(database)
    async with one:
        async with two:
            pass
        assert one._journal in Journal._open.values()
        one[0]["cost"] = 0.5
        await one.flush()
    assert entries_of(database, one) == [(0, "cost", 0.5)]


async def test_connection_and_thread_are_gone_after_the_last_close(database):
    async with SQLiteLog(database), SQLiteLog(database):
        pass
    assert (Journal._open, join_connection_threads()) == ({}, [])


async def test_no_file_is_left_beside_the_database_after_the_last_close(database):
    async with SQLiteLog(database) as log:
        log[0]["cost"] = 0.5
    assert [path.name for path in database.parent.iterdir()] == [database.name]


async def test_connection_and_thread_are_gone_after_an_opening_that_failed(tmp_path):
    with pytest.raises(LogFileError):
        await SQLiteLog(tmp_path / "missing" / "log.sqlite").open()
    assert (Journal._open, join_connection_threads()) == ({}, [])


async def test_connection_and_thread_are_gone_after_an_opening_that_was_cancelled(database):
    task = asyncio.create_task(SQLiteLog(database).open())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (Journal._open, join_connection_threads()) == ({}, [])


async def test_failing_opening_fails_for_each_that_waits_for_it(tmp_path):
    logs = [SQLiteLog(tmp_path / "missing" / "log.sqlite") for _ in range(3)]
    errors = await asyncio.gather(*(log.open() for log in logs), return_exceptions=True)
    join_connection_threads()
    assert [type(error) for error in errors] == [LogFileError] * 3


def test_failed_opening_leaves_no_thread_that_fails(tmp_path, monkeypatch):
    failures = []
    monkeypatch.setattr(threading, "excepthook", failures.append)

    async def fail():
        with pytest.raises(LogFileError):
            await SQLiteLog(tmp_path / "missing" / "log.sqlite").open()

    for _ in range(200):
        asyncio.run(fail())
        join_connection_threads()
    assert [failure.exc_value for failure in failures] == []


async def test_many_logs_write_through_one_connection(database):
    logs = [SQLiteLog(database) for _ in range(20)]

    async def work(log, number):
        async with log.session():
            for time in range(20):
                log[time]["cost"] = number
                log.commit()
                await asyncio.sleep(0)

    await asyncio.gather(*(work(log, number) for number, log in enumerate(logs)))
    stories = [rows_of(await reopen(log)) for log in logs]
    assert stories == [{time: {"cost": number} for time in range(20)} for number in range(20)]


async def test_committing_is_grouped(database, statements):
    async with SQLiteLog(database) as log, log.session():
        for time in range(100):
            log[time]["cost"] = time
            log.commit()
        await log.flush()
        assert statements.count("COMMIT") == 1


# ------------------------------------------------------------------ a database in memory


async def test_database_in_memory_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    async with SQLiteLog(":memory:") as log:
        log[0]["cost"] = 0.5
        await log.flush()
    assert list(tmp_path.iterdir()) == []


async def test_database_in_memory_keeps_its_rows_in_memory():
    async with SQLiteLog(":memory:") as log:
        log[0]["cost"] = 0.5
        await log.flush()
    assert rows_of(log) == {0: {"cost": 0.5}}


async def test_databases_in_memory_are_not_shared():
    async with SQLiteLog(":memory:") as one, SQLiteLog(":memory:") as two:
        assert one._journal is not two._journal
    assert join_connection_threads() == []


async def test_database_in_memory_can_be_resumed_and_opened_again():
    log = SQLiteLog(":memory:")
    async with log.session():
        log[0]["cost"] = 0.5
        log.commit()
    log.resume()
    async with log.session():
        log[1]["cost"] = 0.25
        log.commit()
    assert rows_of(log) == {0: {"cost": 0.5}, 1: {"cost": 0.25}}


# ------------------------------------------------------------------ several event loops


def in_threads(*works):
    """Run each in a thread of its own; give what came of them."""
    outcomes = [None] * len(works)

    def run(number, work):
        try:
            outcomes[number] = work()
        except BaseException as error:  # noqa: BLE001 - it is looked at by the test
            outcomes[number] = error

    threads = [threading.Thread(target=run, args=item) for item in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def test_two_event_loops_write_the_same_file(database):
    start = threading.Barrier(2)

    def work():
        async def run():
            log = SQLiteLog(database)
            async with log.session():
                start.wait()
                for time in range(100):
                    log[time].update(cost=time, twice=2 * time)
                    log.commit()
                    await log.flush()
            return log

        return asyncio.run(run())

    expected = {time: {"cost": time, "twice": 2 * time} for time in range(100)}
    logs = in_threads(work, work)
    assert [rows_of(asyncio.run(reopen(log))) for log in logs] == [expected] * 2


def test_event_loops_that_make_the_same_file_at_once_all_succeed(tmp_path):
    def opening(database, start):
        async def run():
            start.wait()
            async with SQLiteLog(database):
                pass

        return lambda: asyncio.run(run())

    outcomes = []
    for number in range(30):
        start = threading.Barrier(4)
        database = tmp_path / f"{number}.sqlite"
        outcomes += in_threads(*(opening(database, start) for _ in range(4)))
    join_connection_threads()
    assert [outcome for outcome in outcomes if outcome is not None] == []


# ------------------------------------------------------------------ whole boundaries


def test_reader_never_sees_half_a_boundary(database):
    ended = threading.Event()

    def write():
        async def run():
            log = SQLiteLog(database)
            async with log.session():
                for time in range(300):
                    log[time]["a"] = 1
                    await asyncio.sleep(0)
                    log[time]["b"] = 1
                    log.status["iterations_done"] = time
                    await asyncio.sleep(0)
                    log.commit()
                    if time % 10 == 0:
                        await log.flush()

        try:
            asyncio.run(run())
        finally:
            ended.set()

    def read():
        seen = set()
        with closing(sqlite3.connect(database, timeout=10)) as connection:
            while True:
                last = ended.is_set()
                try:
                    [(a, b, time)] = connection.execute(
                        "SELECT (SELECT COUNT(*) FROM entries WHERE key = 'a'), "
                        "(SELECT COUNT(*) FROM entries WHERE key = 'b'), "
                        "(SELECT value FROM status WHERE key = 'iterations_done')"
                    )
                except sqlite3.OperationalError:  # the tables are not there yet
                    continue
                seen.add((a, b, time))
                if last:
                    return seen

    async def make():
        async with SQLiteLog(database):
            pass

    asyncio.run(make())
    change(database, "DELETE FROM stored_status")
    _, seen = in_threads(write, read)
    halves = [
        (a, b, time) for a, b, time in seen if a != b or a != (0 if time is None else time + 1)
    ]
    assert ((300, 300, 299) in seen, halves) == (True, [])


async def test_boundaries_are_seen_by_another_connection_one_after_another(database):
    log = SQLiteLog(database)
    seen = []
    async with log.session():
        for time in range(3):
            log[time]["a"] = time
            await log.flush()
            log[time]["b"] = time
            log.commit()
            await log.flush()
            seen.append(len(entries_of(database, log)))
    assert seen == [2, 4, 6]


async def test_committed_boundary_is_written_without_a_flush(database):
    log = SQLiteLog(database)
    async with log.session():
        log[0]["cost"] = 0.5
        log.commit()
        await until(lambda: entries_of(database, log))
        assert entries_of(database, log) == [(0, "cost", 0.5)]


# ------------------------------------------------------------------ durability


def barriers(database):
    [(number,)] = query(database, "SELECT number FROM barriers")
    return number


async def test_plain_commit_is_no_barrier(database):
    log = SQLiteLog(database)
    async with log.session():
        before = barriers(database)
        log[0]["cost"] = 0.5
        log.commit()
        await until(lambda: entries_of(database, log))
        assert barriers(database) == before


async def test_durable_commit_is_a_barrier(database):
    log = SQLiteLog(database)
    async with log.session():
        before = barriers(database)
        log[0]["cost"] = 0.5
        log.commit(durable=True)
        await until(lambda: entries_of(database, log))
        assert barriers(database) == before + 1


async def test_flush_after_a_plain_commit_was_written_is_a_barrier(database):
    log = SQLiteLog(database)
    async with log.session():
        log[0]["cost"] = 0.5
        log.commit()
        await until(lambda: entries_of(database, log))
        before = barriers(database)
        await log.flush()
        assert barriers(database) == before + 1


async def test_flush_with_nothing_new_after_a_barrier_is_none(database):
    log = SQLiteLog(database)
    async with log.session():
        log[0]["cost"] = 0.5
        log.commit(durable=True)
        await log.flush()
        before = barriers(database)
        await log.flush()
        assert barriers(database) == before


async def test_close_is_a_barrier(database):
    async with SQLiteLog(database) as log:
        before = barriers(database)
        log[0]["cost"] = 0.5
    assert barriers(database) == before + 1


@pytest.mark.parametrize(("durable", "level"), [(True, "FULL"), (False, "NORMAL")])
async def test_synchronous_is_full_for_durable_commits_only(database, statements, durable, level):
    def written(sequence):
        return lambda: query(database, "SELECT sequence FROM runs") == [(sequence,)]

    async with SQLiteLog(database) as log, log.session():
        log.commit(durable=not durable)
        await until(written(1))
        statements.clear()
        log.commit(durable=durable)
        await until(written(2))
        assert statements[:2] == [f"PRAGMA synchronous = {level}", "BEGIN IMMEDIATE"]


# ------------------------------------------------------------------ failures


async def broken(database):
    """Give an open log whose file refuses new records, with one record before that."""
    log = await SQLiteLog(database).open()
    log[0]["cost"] = 0.5
    await log.flush()
    break_writing(database)
    log[1]["cost"] = 0.25
    return log


async def failing_flush(log):
    with pytest.raises(JournalError) as info:
        await log.flush()
    return str(info.value)


async def mended(database, log):
    mend_writing(database)
    await log.flush()
    await log.close()


async def test_failure_is_an_error_at_flush_that_names_file_cause_and_remedy(database):
    log = await broken(database)
    message = await failing_flush(log)
    parts = (str(database), "the disk is on fire", "in memory", "await log.flush()")
    assert [part for part in parts if part not in message] == []
    await mended(database, log)


async def test_failure_has_the_databases_error_as_its_cause(database):
    log = await broken(database)
    with pytest.raises(JournalError) as info:
        await log.flush()
    assert isinstance(info.value.__cause__, sqlite3.IntegrityError)
    await mended(database, log)


async def test_failure_is_an_error_at_the_next_commit(database):
    log = await broken(database)
    await failing_flush(log)
    with pytest.raises(JournalError, match="the disk is on fire"):
        log.commit()
    await mended(database, log)


async def test_failure_without_a_flush_is_an_error_at_the_next_commit(database):
    log = await broken(database)
    async with log.session():
        log.commit()
        await until(lambda: log._failure is not None)
        with pytest.raises(JournalError, match="the disk is on fire"):
            log.commit()
        mend_writing(database)
    await log.close()
    assert entries_of(database, log) == [(0, "cost", 0.5), (1, "cost", 0.25)]


async def test_failure_keeps_the_records_in_memory(database):
    log = await broken(database)
    await failing_flush(log)
    assert rows_of(log) == {0: {"cost": 0.5}, 1: {"cost": 0.25}}
    await mended(database, log)


@pytest.mark.parametrize("how", ["ABORT", "ROLLBACK", "FAIL"])
async def test_failing_transaction_leaves_nothing_half_written(database, how):
    log = await SQLiteLog(database).open()
    await log.flush()
    before = query(database, "SELECT * FROM runs"), query(database, "SELECT * FROM status")
    break_writing(database, how)
    log.status["best"] = 1
    log[0]["new key"] = 1
    await failing_flush(log)
    after = query(database, "SELECT * FROM runs"), query(database, "SELECT * FROM status")
    assert (after, query(database, "SELECT * FROM keys WHERE key = 'new key'")) == (before, [])
    await mended(database, log)


@pytest.mark.parametrize("how", ["ABORT", "ROLLBACK", "FAIL"])
async def test_flush_after_mending_writes_everything(database, how):
    log = await SQLiteLog(database).open()
    break_writing(database, how)
    for time in range(3):
        log[time]["cost"] = time
        await failing_flush(log)
    log[3]["cost"] = 3
    await mended(database, log)
    assert rows_of(await reopen(log)) == {time: {"cost": time} for time in range(4)}


async def test_commit_works_again_after_mending(database):
    log = await broken(database)
    await failing_flush(log)
    mend_writing(database)
    await log.flush()
    log[2]["cost"] = 1
    log.commit()
    await log.close()
    assert rows_of(await reopen(log)) == rows_of(log)


async def test_deletions_and_status_survive_a_failure(database):
    log = await broken(database)
    del log[0]["cost"]
    log.status["best"] = 1
    await failing_flush(log)
    log.status["best"] = 2
    await mended(database, log)
    again = await reopen(log)
    assert (rows_of(again), again.status["best"]) == ({1: {"cost": 0.25}}, 2)


async def test_resuming_survives_a_failure(database):
    log = await broken(database)
    old = log.h_uuid
    log.status["iterations_done"] = 1
    log.resume()
    log[2]["cost"] = 2
    await failing_flush(log)
    await mended(database, log)
    again = await reopen(log)
    assert (rows_of(again), again.status["resumed_from"]) == (rows_of(log), old)


async def test_failure_at_close_is_an_error(database):
    log = await broken(database)
    with pytest.raises(JournalError, match="the disk is on fire"):
        await log.close()
    assert (log.is_open, Journal._open, join_connection_threads()) == (False, {}, [])
    mend_writing(database)
    await log.flush()


async def test_flush_after_a_failed_close_writes_everything(database):
    log = await broken(database)
    with pytest.raises(JournalError):
        await log.close()
    mend_writing(database)
    await log.flush()
    assert entries_of(database, log) == [(0, "cost", 0.5), (1, "cost", 0.25)]


async def test_failure_is_reported_to_logging_once(database, caplog):
    log = await broken(database)
    for _ in range(3):
        await failing_flush(log)
    assert [record.name for record in caplog.records if "on fire" in record.message] == ["aloop"]
    await mended(database, log)


async def test_failure_of_a_shared_file_keeps_the_records_of_all_its_logs(database):
    logs = [await SQLiteLog(database).open() for _ in range(3)]
    break_writing(database)
    for number, log in enumerate(logs):
        log[0]["cost"] = number
    for log in logs:
        await failing_flush(log)
    mend_writing(database)
    for log in logs:
        await log.close()
    assert [entries_of(database, log) for log in logs] == [
        [(0, "cost", number)] for number in range(3)
    ]


async def test_missing_table_is_a_failure_until_it_is_back(database):
    log = await SQLiteLog(database).open()
    log[0]["cost"] = 0.5
    await log.flush()
    change(database, "ALTER TABLE stored_entries RENAME TO elsewhere")
    log[1]["cost"] = 0.25
    assert "stored_entries" in await failing_flush(log)
    change(database, "ALTER TABLE elsewhere RENAME TO stored_entries")
    await log.flush()
    await log.close()
    assert entries_of(database, log) == [(0, "cost", 0.5), (1, "cost", 0.25)]


async def test_bad_file_of_one_log_does_not_trouble_another_file(database, tmp_path):
    log = await broken(database)
    await failing_flush(log)
    async with SQLiteLog(tmp_path / "other.sqlite") as other:
        other[0]["cost"] = 1
        await other.flush()
    assert entries_of(tmp_path / "other.sqlite", other) == [(0, "cost", 1)]
    await mended(database, log)


# ------------------------------------------------------------------ cancellation


async def test_cancelling_a_flush_loses_nothing(database):
    log = await SQLiteLog(database).open()
    log[0]["cost"] = 0.5
    with locked(database):
        task = asyncio.create_task(log.flush())
        await until(lambda: not log._changes)  # the record is on its way
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    log[1]["cost"] = 0.25
    await log.flush()
    assert entries_of(database, log) == [(0, "cost", 0.5), (1, "cost", 0.25)]
    await log.close()


async def test_cancelling_one_flush_leaves_the_others_waiting_for_theirs(database):
    log = await SQLiteLog(database).open()
    log[0]["cost"] = 0.5
    with locked(database):
        one, two = asyncio.create_task(log.flush()), asyncio.create_task(log.flush())
        await until(lambda: not log._changes)
        one.cancel()
        await asyncio.wait([one])
        assert not two.done()
    await two
    assert entries_of(database, log) == [(0, "cost", 0.5)]
    await log.close()


async def test_cancelling_a_close_loses_nothing(database):
    log = await SQLiteLog(database).open()
    log[0]["cost"] = 0.5
    with locked(database):
        task = asyncio.create_task(log.close())
        await until(lambda: not log._changes)
        task.cancel()
        await asyncio.sleep(0)
    await asyncio.wait([task])
    await log.flush()
    assert entries_of(database, log) == [(0, "cost", 0.5)]
    assert join_connection_threads() == []


async def test_timeout_of_a_flush_is_a_timeout(database):
    log = await SQLiteLog(database).open()
    log[0]["cost"] = 0.5
    with locked(database), pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await log.flush()
    await log.close()
    assert entries_of(database, log) == [(0, "cost", 0.5)]


async def test_writing_waits_for_the_lock_of_another_connection(database):
    log = await SQLiteLog(database).open()
    log[0]["cost"] = 0.5
    with locked(database):
        task = asyncio.create_task(log.flush())
        await until(lambda: not log._changes)
    await task
    assert entries_of(database, log) == [(0, "cost", 0.5)]
    await log.close()


async def test_file_that_is_written_does_not_stop_the_event_loop(database):
    async with SQLiteLog(database) as log:
        log[0]["cost"] = 0.5
        with locked(database):
            task = asyncio.create_task(log.flush())
            for _ in range(100):
                await asyncio.sleep(0)
            assert not task.done()
        await task


async def test_log_can_be_opened_when_its_journals_task_was_cancelled(database):
    first = await SQLiteLog(database).open()
    task = first._journal._task
    task.cancel()
    await asyncio.wait([task])
    second = SQLiteLog(database)
    second[0]["cost"] = 0.5
    try:
        await second.flush()
    finally:
        second._changes.clear()
    assert entries_of(database, second) == [(0, "cost", 0.5)]


async def test_flush_goes_on_when_the_journals_task_was_cancelled(database):
    log = await SQLiteLog(database).open()
    task = log._journal._task
    task.cancel()
    await asyncio.wait([task])
    log[0]["cost"] = 0.5
    try:
        await log.flush()
    finally:
        log._changes.clear()
    assert entries_of(database, log) == [(0, "cost", 0.5)]


async def test_cancelled_as_its_last_log_leaves_it_ends_though_a_run_has_not_ended(database):
    journal = await Journal.acquire(database)
    journal.begin_run()
    leaving = asyncio.create_task(journal.release())
    await asyncio.sleep(0)
    journal._task.cancel()  # after it was told to close, and before it has woken up to it
    try:
        async with asyncio.timeout(5):
            await leaving
    finally:
        journal.end_run()
    assert join_connection_threads() == []


# ------------------------------------------------------------------ the end of an event loop


async def left_open(database):
    log = await SQLiteLog(database).open()
    log[0]["cost"] = 0.5
    log.commit()
    return log


def test_end_of_the_event_loop_writes_what_was_committed(database):
    log = asyncio.run(left_open(database))
    assert entries_of(database, log) == [(0, "cost", 0.5)]


def test_end_of_the_event_loop_leaves_no_thread(database):
    asyncio.run(left_open(database))
    assert join_connection_threads() == []


def test_end_of_the_event_loop_leaves_no_journal(database):
    asyncio.run(left_open(database))
    assert Journal._open == {}


def test_end_of_the_event_loop_writes_what_was_committed_while_the_file_was_locked(database):
    async def run():
        log = await SQLiteLog(database).open()
        await log.flush()
        lock = locked(database)
        lock.__enter__()
        log[0]["cost"] = 0.5
        log.commit()
        log._journal._wake.set()
        await until(lambda: not log._changes)
        asyncio.get_running_loop().call_later(0.01, lock.__exit__, None, None, None)
        return log

    log = asyncio.run(run())
    assert entries_of(database, log) == [(0, "cost", 0.5)]


@pytest.mark.parametrize("way", ["flush", "with", "session"])
def test_log_left_open_by_one_event_loop_goes_on_in_the_next(database, way):
    log = asyncio.run(left_open(database))
    log[1]["cost"] = 0.25

    async def go_on():
        if way == "flush":
            await log.flush()
        elif way == "with":
            async with log:
                pass
        else:
            async with log.session():
                log.commit()

    try:
        asyncio.run(go_on())
    finally:
        log._changes.clear()
    assert entries_of(database, log) == [(0, "cost", 0.5), (1, "cost", 0.25)]


def test_process_that_closes_nothing_ends_and_leaves_what_it_committed(database):
    program = """
import asyncio, sys
from aloop.log.sqlite import SQLiteLog

async def main():
    log = await SQLiteLog(sys.argv[1]).open()
    log[0]["cost"] = 0.5
    log.commit()

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program, database], capture_output=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert query(database, "SELECT time, key, value FROM entries") == [(0, "cost", 0.5)]


async def test_log_that_is_forgotten_while_open_is_still_written(database):
    log = await left_open(database)
    run = log.h_uuid
    journal = log._journal
    del log
    await until(lambda: query(database, "SELECT * FROM entries"))
    assert query(database, "SELECT run, time, key, value FROM entries") == [(run, 0, "cost", 0.5)]
    await journal.release()
