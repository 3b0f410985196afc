"""Files that cannot be made, written or read: said in aloop's words, and nothing is lost."""

import asyncio
import os
import shutil
import tempfile
import threading
import traceback
from pathlib import Path

import pytest
from fault_jobs import no_op, seeded, write_boundary
from fault_tools import beside, boundaries_of, do_job, is_sound, with_mount
from log_helpers import change, query

from aloop import FinishAfter, MainLoop, SQLiteLog, TrainingExtension, read_log
from aloop.errors import JournalError, LogFileError, LogInUseError, UnknownRunError
from aloop.log.connection import LogConnection

SEED = 20260102


def written(database, rows, size=10):
    """Make a log with so many boundaries; give the run."""

    async def write():
        log = SQLiteLog(database)
        async with log.session():
            for time in range(rows):
                write_boundary(log, time, "x" * size)
                if time % 1000 == 0:
                    await log.flush()
        return log.h_uuid

    return asyncio.run(write())


# ------------------------------------------------------------------ a full disk


def check_out_of_space(told, cause):
    """Check what `fault_jobs.run_out_of_space` told."""
    told = {line[0]: line[1:] for line in told}
    kind, message = told["failed"]
    assert (kind, cause in message) == ("JournalError", True), told["failed"]
    is_complete, last = told["memory"]
    assert is_complete, "rows are missing in memory"
    is_prefix, count, acknowledged = told["file"]
    assert is_prefix
    assert count > acknowledged
    assert acknowledged > 0
    assert told["flushed"] == [True, last + 1]
    return told


def test_run_on_a_disk_that_is_full_ends_and_loses_nothing(tmp_path):
    mount = with_mount("-t", "tmpfs", "-o", "size=1m", "none", tmp_path)
    told = do_job("fill_a_disk", prefix=mount, directory=tmp_path)
    told = check_out_of_space(told, "database or disk is full")
    assert told["beside"] == ["log.sqlite"]


def test_run_that_never_flushes_ends_on_a_disk_that_is_full_and_loses_nothing(tmp_path):
    mount = with_mount("-t", "tmpfs", "-o", "size=1m", "none", tmp_path)
    told = do_job("fill_a_disk", prefix=mount, directory=tmp_path, flush_every=10**9)
    told = {line[0]: line[1:] for line in told}
    assert told["failed"][0] == "JournalError"
    assert "database or disk is full" in told["failed"][1]
    assert (told["memory"][0], told["file"][0], told["flushed"][0]) == (True, True, True)


def test_log_on_a_full_disk_is_refused_leaves_nothing_and_opens_when_there_is_room(tmp_path):
    mount = with_mount("-t", "tmpfs", "-o", "size=1m", "none", tmp_path)
    told = do_job("open_on_a_full_disk", prefix=mount, directory=tmp_path)
    assert told[0][:2] == ["refused", "LogFileError"]
    assert "full" in told[0][2]
    assert told[1:] == [["beside", "ballast"], ["opened"], ["beside", "log.sqlite"]]


def test_run_whose_file_may_not_grow_ends_and_loses_nothing(database):
    told = do_job("exceed_file_size", database=database, limit=300_000)
    check_out_of_space(told, "disk I/O error")


async def test_run_that_exceeds_its_page_limit_ends_and_loses_nothing(database, monkeypatch):
    limit = 60

    class Limited(LogConnection):
        def write(self, groups, *, durable):
            self.execute(f"PRAGMA max_page_count = {limit}")
            super().write(groups, durable=durable)

    class Write(TrainingExtension):
        async def after_batch(self, batch):
            self.main_loop.log.current_row.update(batch=batch, text="x" * 1000)

    monkeypatch.setattr("aloop.log.thread.LogConnection", Limited)
    log = SQLiteLog(database)
    async with log:
        with pytest.raises(JournalError, match="database or disk is full"):
            await MainLoop(no_op, lambda: iter(range(10**6)), log=log, extensions=[Write()]).run()
        rows = {time: dict(log[time]) for time in log}
        assert [row["batch"] for row in rows.values()] == list(range(len(rows)))
        limit = 10**6
        await log.flush()
        with read_log(database) as reader:
            assert {time: dict(reader[time]) for time in reader} == rows
            assert len(rows) > 10


# ------------------------------------------------------------------ paths that cannot be used


async def refusal(database, run=None):
    with pytest.raises(LogFileError) as info:
        await SQLiteLog(database, run).open()
    assert str(database) in str(info.value)
    return str(info.value)


def refusal_to_read(database):
    with pytest.raises(LogFileError) as info:
        read_log(database)
    assert str(database) in str(info.value)


async def test_file_in_a_missing_directory_is_refused_with_a_remedy(tmp_path):
    message = await refusal(tmp_path / "missing" / "log.sqlite")
    assert "directory that exists" in message
    assert list(tmp_path.iterdir()) == []


async def test_file_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("a")
    await refusal(tmp_path / "file" / "log.sqlite")
    refusal_to_read(tmp_path / "file" / "log.sqlite")


async def test_directory_is_refused_and_left_alone(tmp_path):
    (tmp_path / "directory").mkdir()
    await refusal(tmp_path / "directory")
    refusal_to_read(tmp_path / "directory")
    assert [path.name for path in tmp_path.rglob("*")] == ["directory"]


async def test_file_whose_name_is_too_long_is_refused(tmp_path):
    await refusal(tmp_path / ("x" * 300))
    refusal_to_read(tmp_path / ("x" * 300))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux's /proc")
async def test_file_in_a_directory_that_takes_none_is_refused_with_a_remedy():
    assert "can be written to" in await refusal("/proc/log.sqlite")


def test_new_file_in_a_read_only_directory_is_refused_with_a_remedy(tmp_path):
    mount = with_mount("-t", "tmpfs", "-o", "ro", "none", tmp_path)
    [told] = do_job("try_to_open", prefix=mount, database=tmp_path / "log.sqlite")
    assert told[:2] == ["refused", "LogFileError"]
    assert "can be written to" in told[2]


def read_only(directory):
    return with_mount(
        "--bind", directory, directory, "&&", "mount", "-o", "remount,ro,bind", directory
    )


def test_file_in_a_read_only_directory_is_refused_for_writing_with_a_remedy(database):
    written(database, 3)
    before = database.read_bytes()
    [told] = do_job("try_to_open", prefix=read_only(database.parent), database=database)
    assert told[:2] == ["refused", "LogFileError"]
    assert "can be written to" in told[2]
    assert (database.read_bytes(), beside(database)) == (before, [])


@pytest.mark.slow
def test_file_in_a_read_only_directory_can_be_read(tmp_path):
    database = tmp_path / "log.sqlite"
    do_job("end_a_run", database=database)
    [told] = do_job("try_to_read", prefix=read_only(tmp_path), database=database)
    assert told == ["read", *range(100)]


@pytest.fixture
def forbidden():
    """A log that no other user than the one who runs the tests may look at."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    (directory / "closed").mkdir()
    written(directory / "closed" / "log.sqlite", 3)
    yield directory / "closed" / "log.sqlite"
    (directory / "closed").chmod(0o700)
    shutil.rmtree(directory)


@pytest.mark.parametrize("run", [None, "0" * 32])
def test_file_in_a_directory_without_permission_is_refused(server, forbidden, run):
    forbidden.parent.chmod(0)
    child = server.start("as_nobody", what="try_to_open", database=forbidden, run=run)
    [told], _ = child.end()
    assert told[:2] == ["refused", "LogFileError"]
    assert str(forbidden) in told[2]


def test_file_in_a_directory_without_permission_is_refused_for_reading(server, forbidden):
    forbidden.parent.chmod(0)
    child = server.start("as_nobody", what="try_to_read", database=forbidden)
    [told], _ = child.end()
    assert told[:2] == ["refused", "LogFileError"]
    assert str(forbidden) in told[2]


def test_file_without_permission_is_refused(server, forbidden):
    forbidden.parent.chmod(0o755)
    forbidden.chmod(0)
    for job in ("try_to_open", "try_to_read"):
        [told], _ = server.start("as_nobody", what=job, database=forbidden).end()
        assert told[:2] == ["refused", "LogFileError"], job
        assert str(forbidden) in told[2], job


# ------------------------------------------------------------------ files that are no logs


def make_empty(database):
    database.write_bytes(b"")


def make_text(database):
    database.write_text("time,cost\n" * 1000)


def make_foreign(database):
    change(database, "CREATE TABLE t (x)", "INSERT INTO t VALUES (1)")


def make_newer(database):
    written(database, 3)
    change(database, "PRAGMA user_version = 99")


def make_cut(to):
    def make(database):
        written(database, 300, size=100)
        os.truncate(database, to if to > 0 else database.stat().st_size + to)

    return make


NO_LOGS = {
    "empty": make_empty,
    "text": make_text,
    "foreign": make_foreign,
    "newer": make_newer,
    **{f"cut to {to}": make_cut(to) for to in (1, 15, 50, 100, 512, 4095, 4096, 8192)},
    "cut by a page": make_cut(-4096),
    "cut by 100 bytes": make_cut(-100),
}


@pytest.mark.parametrize("kind", NO_LOGS)
@pytest.mark.filterwarnings("ignore:record")
async def test_file_that_is_no_log_is_refused_and_left_as_it_is(tmp_path, kind):
    database = tmp_path / "log.sqlite"
    await asyncio.to_thread(NO_LOGS[kind], database)
    before = database.read_bytes()
    await refusal(database)
    assert (database.read_bytes() == before, beside(database)) == (True, [])


@pytest.mark.parametrize("kind", NO_LOGS)
def test_file_that_is_no_log_is_refused_for_reading_and_left_as_it_is(database, kind):
    NO_LOGS[kind](database)
    before = database.read_bytes()
    refusal_to_read(database)
    assert database.read_bytes() == before


def test_what_reading_leaves_beside_the_file_goes_with_the_next_writer(database):
    run = written(database, 3)
    with read_log(database, run) as reader:
        assert list(reader) == [0, 1, 2]
    written(database, 3)
    assert beside(database) == []


async def test_log_whose_file_is_refused_keeps_its_records_and_goes_elsewhere(tmp_path):
    database = tmp_path / "log.sqlite"
    make_text(database)
    log = SQLiteLog(database)
    log[0]["a"] = 1
    with pytest.raises(LogFileError):
        await log.flush()
    assert dict(log[0]) == {"a": 1}
    database.unlink()
    await log.flush()
    assert query(database, "SELECT time, key, value FROM entries") == [(0, "a", 1)]


# ------------------------------------------------------------------ damaged files


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A log of several hundred pages, and its run."""
    database = tmp_path_factory.mktemp("large") / "log.sqlite"
    run = written(database, 4000, size=400)
    assert database.stat().st_size > 300 * 4096
    return database, run


def damage(database, random, pages):
    """Flip bytes in some pages of the file; give the numbers of the pages."""
    count = database.stat().st_size // 4096
    chosen = random.sample(range(2, count + 1), pages)
    with database.open("r+b") as file:
        for page in chosen:
            for _ in range(random.choice([1, 8, 200])):
                # The head of a page, which says what is where, or its content.
                at = (page - 1) * 4096 + random.randrange(random.choice([16, 4096]))
                file.seek(at)
                [byte] = file.read(1)
                file.seek(at)
                file.write(bytes([byte ^ random.randrange(1, 256)]))
    return chosen


class Attempts:
    """Things that are to work or to raise aloop's errors, which name the file."""

    def __init__(self, database, story):
        self.database, self.story, self.errors, self.wrong = database, story, 0, []

    def check(self, error):
        self.errors += 1
        ours = isinstance(error, LogFileError | JournalError | UnknownRunError)
        if not (ours and str(self.database) in str(error)):
            where = traceback.extract_tb(error.__traceback__)[-1]
            self.wrong.append(
                f"{self.story}: {type(error).__name__}: {error} ({where.name}:{where.lineno})"
            )

    def __call__(self, function, *arguments):
        try:
            return function(*arguments)
        except Exception as error:  # noqa: BLE001 - that is the question
            self.check(error)

    async def wait_for(self, awaitable):
        try:
            return await awaitable
        except Exception as error:  # noqa: BLE001 - that is the question
            self.check(error)


async def use_damaged(database, run, story):
    """Read and write a damaged file in each way; give what was tried."""
    attempts = Attempts(database, story)
    reader = attempts(read_log, database, run)
    if reader is not None:
        attempts(list, reader)
        attempts(lambda: [dict(reader[time]) for time in range(0, 4000, 97)])
        attempts(lambda: (reader.runs, dict(reader.status)))
        for key in "abc":
            await attempts.wait_for(reader.series(key))
        reader.close()
    log = SQLiteLog(database, run)
    if await attempts.wait_for(log.open()) is None:
        return attempts
    attempts(lambda: [dict(log[time]) for time in range(0, 4000, 97)])
    attempts(lambda: (list(log), len(log)))
    for key in "abc":
        await attempts.wait_for(log.series(key))
    for time in range(4000, 4003):
        log[time]["a"] = time
        await attempts.wait_for(log.flush())
    assert [dict(log[time]) for time in range(4000, 4003)] == [
        {"a": time} for time in range(4000, 4003)
    ], story
    await attempts.wait_for(log.close())
    assert [log[time]["a"] for time in range(4000, 4003)] == [4000, 4001, 4002], story
    log._changes.clear()  # what could not be saved is not to be warned of
    return attempts


async def use_damaged_files(large, tmp_path, seeds, pages):
    original, run = large
    refused, wrong = 0, []
    for seed in seeds:
        database = tmp_path / f"{seed}.sqlite"
        shutil.copyfile(original, database)
        chosen = damage(database, seeded(seed), pages)
        attempts = await use_damaged(database, run, f"seed {seed}, pages {chosen[:5]}")
        refused += attempts.errors
        wrong += attempts.wrong
        for path in tmp_path.iterdir():
            path.unlink()
    assert (wrong, refused > 0) == ([], True), "\n".join(wrong)


@pytest.mark.parametrize("pages", [3, 100])
async def test_damaged_pages_are_said_in_aloops_errors_or_not_noticed(large, tmp_path, pages):
    await use_damaged_files(large, tmp_path, range(SEED, SEED + 8), pages)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("pages", [1, 3, 20, 100])
async def test_damaged_pages_of_many_files_are_said_in_aloops_errors(large, tmp_path, pages):
    await use_damaged_files(large, tmp_path, range(SEED, SEED + 40), pages)


@pytest.mark.parametrize("page", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])
async def test_zeroed_page_is_said_in_aloops_errors(large, tmp_path, page):
    original, run = large
    database = tmp_path / "log.sqlite"
    shutil.copyfile(original, database)
    with database.open("r+b") as file:
        file.seek((page - 1) * 4096 + (100 if page == 1 else 0))
        file.write(bytes(4096 if page > 1 else 3996))
    assert (await use_damaged(database, run, f"page {page}")).wrong == []


async def test_damage_to_a_file_that_is_open_is_said_in_aloops_errors(large, tmp_path):
    original, run = large
    refused = 0
    for seed in range(SEED, SEED + 5):
        database = tmp_path / f"{seed}.sqlite"
        shutil.copyfile(original, database)
        attempts = Attempts(database, f"seed {seed}")
        log = await SQLiteLog(database, run).open()
        damage(database, seeded(seed), 150)
        attempts(lambda log=log: [dict(log[time]) for time in range(0, 4000, 97)])
        await attempts.wait_for(log.series("a"))
        log[4000]["a"] = 1
        await attempts.wait_for(log.flush())
        await attempts.wait_for(log.close())
        assert dict(log[4000]) == {"a": 1}, f"seed {seed}"
        log._changes.clear()  # what could not be saved is not to be warned of
        refused += attempts.errors
        assert attempts.wrong == []
    assert refused


# ------------------------------------------------------------------ a file that is gone


async def flush_after(database, act):
    """Log, do something to the file, log more, flush; give the log, and the error if any."""
    log = await SQLiteLog(database).open()
    log[0]["a"] = 0
    await log.flush()
    act()
    log[1]["a"] = 1
    error = None
    try:
        await log.flush()
    except (JournalError, LogFileError) as caught:
        error = caught
    assert [dict(log[time]) for time in log] == [{"a": 0}, {"a": 1}]
    return log, error


async def close_whatever(log):
    """Close a log whose file is lost."""
    try:
        await log.close()
    except (JournalError, LogFileError):
        log._changes.clear()
    log._changes.clear()


def remove(database):
    for name in (database.name, *beside(database)):
        database.with_name(name).unlink()


async def test_file_that_is_deleted_under_an_open_log_is_an_error_at_flush(database):
    log, error = await flush_after(database, database.unlink)
    await close_whatever(log)
    assert isinstance(error, JournalError)
    assert str(database) in str(error)


async def test_files_that_are_all_deleted_under_an_open_log_are_an_error_at_flush(database):
    log, error = await flush_after(database, lambda: remove(database))
    await close_whatever(log)
    assert isinstance(error, JournalError)


async def test_file_that_is_put_back_takes_what_was_logged_meanwhile(database):
    away = database.with_name("away")
    log, error = await flush_after(database, lambda: database.rename(away))
    away.rename(database)
    await log.flush()
    await log.close()
    assert query(database, "SELECT time, value FROM entries") == [(0, 0), (1, 1)]
    assert isinstance(error, JournalError)


async def test_file_that_is_replaced_under_an_open_log_is_an_error_at_flush(database, tmp_path):
    other = tmp_path / "other" / "log.sqlite"
    other.parent.mkdir()
    await asyncio.to_thread(written, other, 3)
    before = other.read_bytes()
    log, error = await flush_after(database, lambda: other.replace(database))
    await close_whatever(log)
    assert isinstance(error, JournalError)
    # Not even the write-ahead log of the file before may get into this one.
    assert (database.read_bytes() == before, is_sound(database)) == (True, True)


async def test_file_that_is_replaced_between_two_openings_is_an_error_at_flush(database, tmp_path):
    other = tmp_path / "other" / "log.sqlite"
    other.parent.mkdir()
    await asyncio.to_thread(written, other, 3)
    log = SQLiteLog(database)
    async with log:
        log[0]["a"] = 0
    other.replace(database)
    log[1]["a"] = 1
    with pytest.raises(JournalError, match="deleted or replaced"):
        await log.flush()
    assert [dict(log[time]) for time in log] == [{"a": 0}, {"a": 1}]
    log._changes.clear()


# ------------------------------------------------------------------ two processes


@pytest.mark.parametrize("each", [True, False], ids=["flushed each", "flushed now and then"])
def test_two_processes_write_the_same_file_at_the_same_time(server, database, each):
    children = [
        server.start("write", database=database, seed=SEED + n, rows=300, each=each)
        for n in range(2)
    ]
    runs = [child.line()[1] for child in children]
    ends = [child.end() for child in children]
    assert [(told[-1], code) for told, code in ends] == [(["closed"], 0)] * 2
    assert [boundaries_of(database, run) for run in runs] == [list(range(300))] * 2
    assert (is_sound(database), beside(database)) == (True, [])


def test_six_processes_write_the_same_file_at_the_same_time(server, database):
    children = [
        server.start("write", database=database, seed=SEED + n, rows=60, each=True)
        for n in range(6)
    ]
    runs = [child.line()[1] for child in children]
    ends = [child.end() for child in children]
    assert [(told[-1], code) for told, code in ends] == [(["closed"], 0)] * 6
    assert [boundaries_of(database, run) for run in runs] == [list(range(60))] * 6
    assert (is_sound(database), beside(database)) == (True, [])


@pytest.fixture
def other(server, database):
    """A process that has the file open, and its id."""
    child = server.start("stay_open", database=database)
    child.line()
    yield child
    if child.is_running:
        child.kill()


async def open_alone(database):
    async with SQLiteLog(database, if_in_use="refuse") as log:
        log[0]["a"] = 1
    return log


async def test_file_that_another_process_writes_is_refused_when_asked(database, other):
    with pytest.raises(LogInUseError, match=rf"\b{other.pid}\b") as info:
        await open_alone(database)
    assert str(database) in str(info.value)


async def test_refused_opening_disturbs_neither_process_nor_file(database, other):
    with pytest.raises(LogInUseError):
        await open_alone(database)
    other.go_on()
    assert other.end() == ([["closed"]], 0)
    assert (is_sound(database), beside(database)) == (True, [])


async def test_file_that_another_process_writes_is_shared_unless_asked(database, other):
    async with SQLiteLog(database) as log:
        log[0]["a"] = 1
        await log.flush()
    assert query(database, "SELECT COUNT(*) FROM runs") == [(2,)]


async def test_file_is_not_refused_once_the_other_process_closed_it(database, other):
    other.go_on()
    other.end()
    await open_alone(database)


async def test_file_is_not_refused_once_the_other_process_was_killed(database, other):
    other.kill()
    await open_alone(database)
    assert beside(database) == []


async def test_file_is_refused_when_the_first_of_two_other_processes_ended(server, database, other):
    second = server.start("stay_open", database=database)
    second.line()
    other.go_on()
    other.end()
    try:
        with pytest.raises(LogInUseError):
            await open_alone(database)
    finally:
        second.kill()


def test_file_that_another_event_loop_writes_is_refused_when_asked(database):
    is_open, is_refused = threading.Event(), threading.Event()

    async def stay_open():
        async with SQLiteLog(database):
            is_open.set()
            await asyncio.to_thread(is_refused.wait)

    thread = threading.Thread(target=lambda: asyncio.run(stay_open()))
    thread.start()
    is_open.wait()
    try:
        with pytest.raises(LogInUseError, match=rf"\b{os.getpid()}\b"):
            asyncio.run(open_alone(database))
    finally:
        is_refused.set()
        thread.join()
    asyncio.run(open_alone(database))


async def test_logs_of_one_event_loop_do_not_refuse_each_other(database):
    async with SQLiteLog(database, if_in_use="refuse"), SQLiteLog(database, if_in_use="refuse"):
        pass


async def test_nothing_is_left_beside_the_file_after_a_run(database):
    log = SQLiteLog(database)
    loop = MainLoop(no_op, range(100), log=log, extensions=[FinishAfter(after_n_epochs=1)])
    await loop.run()
    assert beside(database) == []
