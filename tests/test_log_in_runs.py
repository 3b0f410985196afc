"""The log under runs that end at awkward moments: every record of memory is in the file."""

import asyncio
import sqlite3
from contextlib import closing

import pytest

from aloop import FinishAfter, MainLoop, SQLiteLog, TrainingExtension
from aloop.errors import JournalError


async def no_op(batch: object) -> None:
    """Train on nothing."""


class Write(TrainingExtension):
    """Records each batch."""

    async def after_batch(self, batch: object) -> None:
        self.main_loop.log.current_row["batch"] = batch


def batches_in(database) -> list[int]:
    with closing(sqlite3.connect(database)) as connection:
        query = "SELECT value FROM entries WHERE key = 'batch' ORDER BY time"
        return [value for (value,) in connection.execute(query)]


@pytest.fixture
def database(tmp_path):
    return tmp_path / "log.sqlite"


async def cancel_the_journal() -> None:
    for task in asyncio.all_tasks():
        if task.get_name().startswith("aloop journal"):
            task.cancel()


async def test_a_run_whose_journal_is_cancelled_writes_all_at_its_end(database) -> None:
    class Cancel(TrainingExtension):
        async def after_batch(self, batch: object) -> None:
            if batch == 3:
                await cancel_the_journal()

    loop = MainLoop(
        no_op,
        range(10),
        log=SQLiteLog(database),
        extensions=[Write(), Cancel(), FinishAfter(after_n_epochs=1)],
    )
    await loop.run()
    assert batches_in(database) == list(range(10))


async def test_a_run_that_comes_when_a_journal_is_ending_writes_all(database) -> None:
    earlier = await SQLiteLog(database).open()
    earlier[0]["batch"] = -1
    await cancel_the_journal()
    loop = MainLoop(
        no_op,
        range(5),
        log=SQLiteLog(database),
        extensions=[Write(), FinishAfter(after_n_epochs=1)],
    )
    await loop.run()
    await earlier.close()
    assert batches_in(database) == [-1, *range(5)]


def test_a_run_in_the_background_of_a_program_that_ends_writes_what_it_did(database) -> None:
    log = SQLiteLog(database)

    async def main() -> None:
        reached = asyncio.Event()

        class Tell(TrainingExtension):
            async def after_batch(self, batch: object) -> None:
                if batch == 5:
                    reached.set()

        loop = MainLoop(no_op, lambda: iter(range(10**9)), log=log, extensions=[Write(), Tell()])
        run = asyncio.create_task(loop.run())
        await reached.wait()
        assert not run.done()

    asyncio.run(main())
    done = log.status["iterations_done"]
    assert done >= 6
    assert batches_in(database) == [log[time]["batch"] for time in log if "batch" in log[time]]


@pytest.mark.parametrize("times", [1, 2])
async def test_closing_the_log_under_a_run_does_not_end_its_writing(database, times: int) -> None:
    log = SQLiteLog(database)

    class Close(TrainingExtension):
        async def after_batch(self, batch: object) -> None:
            if batch == 3:
                for _ in range(times):
                    await log.close()

    extensions = [Write(), Close(), FinishAfter(after_n_epochs=1)]
    await MainLoop(no_op, range(10), log=log, extensions=extensions).run()
    assert batches_in(database) == list(range(10))
    assert not log.is_open


async def test_each_run_of_a_training_has_the_number_of_its_last_commit_point(database) -> None:
    log = SQLiteLog(database)
    loop = MainLoop(no_op, range(2), log=log, extensions=[FinishAfter(every_n_epochs=1)])
    async with log:  # so that all three runs may come in one group
        sequences = []
        for _ in range(3):
            await loop.run()
            sequences.append(log.sequence)
    with closing(sqlite3.connect(database)) as connection:
        stored = connection.execute("SELECT sequence FROM runs ORDER BY id").fetchall()
    # A run's own flush at its end, and that of the log, are commit points too.
    assert [sequence for (sequence,) in stored] == sorted(sequence for (sequence,) in stored)
    assert stored[-1] == (log.sequence,)
    assert all(number >= wanted for (number,), wanted in zip(stored, sequences, strict=True))


async def test_a_log_whose_run_was_deleted_fails_alone(database) -> None:
    async with SQLiteLog(database) as other:
        log = await SQLiteLog(database).open()
        log[0]["batch"] = 1
        await log.flush()
        with closing(sqlite3.connect(database)) as connection, connection:
            connection.execute("DELETE FROM stored_entries")
            connection.execute("DELETE FROM stored_status")
            connection.execute("DELETE FROM runs WHERE run = ?", (log.h_uuid,))
        log[1]["batch"] = 2
        other[0]["batch"] = 3
        with pytest.raises(JournalError, match="no longer has the run"):
            await log.flush()
        await other.flush()
        with pytest.raises(JournalError):
            await log.close()
        log[1].note_changes_in(None)
        log._changes.clear()
    assert batches_in(database) == [3]


@pytest.mark.parametrize("backend", ["python", "sqlite"])
async def test_who_follows_a_run_from_its_first_moment_on_waits_for_its_rows(
    backend, database
) -> None:
    finish = FinishAfter(after_n_epochs=1)
    log = SQLiteLog(database) if backend == "sqlite" else None
    loop = MainLoop(no_op, range(5), log=log, log_backend="python", extensions=[Write(), finish])
    for epochs in (1, 2):
        finish.set_conditions(after_n_epochs=epochs)
        done = loop.status["iterations_done"]
        run = asyncio.create_task(loop.run())
        await asyncio.sleep(0)
        async with asyncio.timeout(10):
            followed = [row.time async for row in loop.log.follow(after=done)]
        await run
        assert followed == list(range(done + 1, done + 6))


async def test_who_follows_a_run_that_cannot_open_its_log_is_told(tmp_path) -> None:
    loop = MainLoop(no_op, range(5), log=SQLiteLog(tmp_path / "nowhere" / "log.sqlite"))
    run = asyncio.create_task(loop.run())
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        assert [row async for row in loop.log.follow()] == []
    with pytest.raises(OSError, match="nowhere"):
        await run
