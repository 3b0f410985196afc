"""The file of a log: network file systems, the owner who makes the checkpoints, durability."""

import asyncio
import logging
import os
import threading
from pathlib import Path

import pytest
from fault_jobs import seeded, write_boundary
from fault_tools import beside, boundaries_of, is_sound
from log_helpers import query, until

from aloop import SQLiteLog, read_log
from aloop.errors import ArgumentError
from aloop.log.connection import LogConnection
from aloop.log.files import network_file_system
from aloop.log.ownership import Ownership, has_checkpoint_fault

SEED = 20260103

# ------------------------------------------------------------------ versions


@pytest.mark.parametrize(
    ("version", "faulty"),
    [
        ((3, 40, 1), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 44, 9), False),
        ((3, 45, 0), True),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 50, 9), False),
        ((3, 51, 0), True),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((3, 52, 0), False),
        ((4, 0, 0), False),
    ],
)
def test_versions_of_sqlite_with_the_fault_of_checkpoints(version, faulty):
    assert has_checkpoint_fault(version) is faulty


# ------------------------------------------------------------------ network file systems

MOUNTS = r"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 253:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 27 0:40 / /net/home rw,relatime shared:3 master:1 - nfs4 server:/home rw,vers=4.2
31 27 0:41 / /net/share rw - cifs //server/share rw,vers=3.1.1
32 27 0:42 / /net/ssh rw - fuse.sshfs me@server:/ rw,user_id=0
33 30 253:1 / /net/home/scratch rw - ext4 /dev/vdb rw
34 33 0:43 / /net/home/scratch/far rw - nfs server:/far rw
35 27 0:44 / /net/with\040a\040space rw - nfs4 server:/x rw
36 27 0:45 / /net/tab\011and\134backslash rw - nfs4 server:/x rw
37 27 0:46 / /merged rw,relatime - overlay overlay rw,lowerdir=/a,upperdir=/b
38 27 0:47 / /over rw - nfs4 server:/over rw
39 38 253:2 / /over rw - ext4 /dev/vdc rw
40 27 0:48 / /under rw - ext4 /dev/vdd rw
41 40 0:49 / /under rw - nfs4 server:/under rw
42 27 0:50 / /dash rw - nfs4 server:/a\040-\040b rw
43 27 0:51 / /net/größe rw - nfs4 server:/x rw
44 27 0:52 / /net/caf\303\251 rw - nfs4 server:/x rw
"""


@pytest.fixture
def mounts(tmp_path):
    file = tmp_path / "mountinfo"
    file.write_text(MOUNTS)
    return file


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/log.sqlite", None),
        ("/net/log.sqlite", None),
        ("/net/home/log.sqlite", "nfs4"),
        ("/net/home/a/b/c/log.sqlite", "nfs4"),
        ("/net/homes/log.sqlite", None),
        ("/net/share/log.sqlite", "cifs"),
        ("/net/ssh/log.sqlite", "fuse.sshfs"),
        ("/net/home/scratch/log.sqlite", None),
        ("/net/home/scratch/far/log.sqlite", "nfs"),
        ("/net/with a space/log.sqlite", "nfs4"),
        ("/net/tab\tand\\backslash/log.sqlite", "nfs4"),
        ("/net/größe/log.sqlite", "nfs4"),
        ("/net/café/log.sqlite", "nfs4"),
        ("/merged/log.sqlite", None),
        ("/over/log.sqlite", None),
        ("/under/log.sqlite", "nfs4"),
        ("/dash/log.sqlite", "nfs4"),
    ],
)
def test_network_file_system_is_that_of_the_innermost_last_mount(mounts, path, kind):
    assert network_file_system(Path(path), mounts) == kind


def test_path_below_a_link_is_on_the_file_system_that_the_link_leads_to(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far")
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"1 0 0:1 / / rw - ext4 x rw\n2 1 0:2 / {tmp_path}/far rw - nfs4 x rw\n")
    assert network_file_system(tmp_path / "link" / "log.sqlite", mounts) == "nfs4"


def test_without_a_list_of_mounts_every_path_is_local(tmp_path):
    assert network_file_system(tmp_path, tmp_path / "missing") is None


def test_lines_with_any_number_of_optional_fields_are_read(tmp_path):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "1 0 0:1 / / rw - ext4 x rw\n2 1 0:2 / /far rw shared:1 master:2 - nfs x rw\n"
    )
    assert network_file_system(Path("/far/log.sqlite"), mounts) == "nfs"


@pytest.mark.parametrize("character", "\u00a0\u2028\x0b\x0c\r\x1c\x85\u3000\udcff")
def test_mount_points_may_have_what_looks_like_the_end_of_a_line_or_field(tmp_path, character):
    mounts = tmp_path / "mountinfo"
    line = f"1 0 0:1 / /net/a{character}b rw - nfs4 server:/x rw\n"
    mounts.write_bytes(os.fsencode(line))
    assert network_file_system(Path(f"/net/a{character}b/log.sqlite"), mounts) == "nfs4"


@pytest.fixture
def far(tmp_path, monkeypatch):
    """A database that counts as one on a network file system."""
    directory = tmp_path / "far"
    directory.mkdir()
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"1 0 0:1 / / rw - ext4 x rw\n2 1 0:2 / {directory} rw - nfs4 server:/x rw\n")
    monkeypatch.setattr("aloop.log.files._MOUNTS", mounts)
    return directory / "log.sqlite"


async def test_log_on_a_network_file_system_has_a_rollback_journal(far):
    async with SQLiteLog(far) as log:
        log[0]["a"] = 1
        await log.flush()
        assert query(far, "PRAGMA journal_mode") == [("delete",)]
        assert beside(far) == [f"{far.name}-lock", f"{far.name}-writers"]
    assert (query(far, "SELECT value FROM entries"), beside(far)) == ([(1,)], [])


async def test_log_on_a_network_file_system_says_so_once(far, caplog):
    with caplog.at_level(logging.WARNING, "aloop"):
        async with SQLiteLog(far) as one, SQLiteLog(far) as two:
            for log in (one, two):
                log[0]["a"] = 1
                await log.flush()
    [message] = [record.getMessage() for record in caplog.records if record.name == "aloop"]
    assert ("nfs4" in message, str(far) in message) == (True, True)


async def test_log_that_comes_to_a_network_file_system_loses_its_write_ahead_log(far, monkeypatch):
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("aloop.log.files._MOUNTS", far.parent / "missing")
        async with SQLiteLog(far) as log:
            log[0]["a"] = 1
    assert query(far, "PRAGMA journal_mode") == [("wal",)]
    async with SQLiteLog(far) as log:
        log[1]["a"] = 1
    assert query(far, "PRAGMA journal_mode") == [("delete",)]
    assert (is_sound(far), beside(far)) == (True, [])


async def test_log_on_a_network_file_system_can_be_read_while_it_is_written(far):
    log = SQLiteLog(far)
    seen = []
    is_there = asyncio.Event()

    async def write():
        async with log.session():
            log.commit()
            await log.flush()
            is_there.set()
            while len(seen) < 10:
                write_boundary(log, log.status["iterations_done"], "x" * 1000)
                await log.flush()

    writing = asyncio.create_task(write())
    await is_there.wait()
    with read_log(far, log.h_uuid) as reader:
        while len(seen) < 10:
            seen.append(await asyncio.to_thread(lambda: len(list(reader))))
    await writing
    assert seen == sorted(seen)
    assert boundaries_of(far, log.h_uuid) == list(range(log.status["iterations_done"]))


async def test_followers_read_a_log_on_a_network_file_system(far):
    log = SQLiteLog(far)
    async with log:
        log[0]["a"] = 0
        await log.flush()

        async def follow():
            with read_log(far, log.h_uuid) as reader:
                return [row.time async for row in reader.follow(poll_s=0.001)]

        following = asyncio.create_task(follow())
        async with log.session():
            for time in range(50):
                write_boundary(log, time, "x")
                await log.flush()
    assert await following == list(range(50))


# ------------------------------------------------------------------ one owner


@pytest.fixture
def lock(database):
    return database.with_name(f"{database.name}-lock")


@pytest.mark.aloop_guard(files=False)  # the writers' lock of one is not released
def test_first_claim_is_granted_and_the_second_is_not(database):
    one, two = Ownership(database), Ownership(database)
    assert (one.claim(), two.claim()) == (True, False)
    assert (one.is_mine, two.is_mine) == (True, False)
    one.release()


@pytest.mark.aloop_guard(files=False)  # the writers' lock of one is not released
def test_claim_is_granted_after_a_release(database):
    one, two = Ownership(database), Ownership(database)
    one.claim()
    one.release()
    assert (two.claim(), one.claim()) == (True, False)
    two.release()


def test_claim_that_was_granted_is_granted_again(database):
    one = Ownership(database)
    assert (one.claim(), one.claim()) == (True, True)
    one.release()


@pytest.mark.aloop_guard(files=False)  # the writers' lock of one is not released
def test_holder_is_named(database):
    one, two = Ownership(database), Ownership(database)
    one.claim()
    two.claim()
    assert f"process {os.getpid()} on " in two.holder()
    one.release()


def test_lock_file_is_gone_after_a_release(database, lock):
    one = Ownership(database)
    one.claim()
    assert lock.exists()
    one.release()
    assert not lock.exists()


@pytest.mark.aloop_guard(files=False)  # the writers' lock of one is not released
def test_release_by_another_than_the_owner_takes_nothing(database, lock):
    one, two, three = (Ownership(database) for _ in range(3))
    one.claim()
    two.claim()
    two.release()
    assert (lock.exists(), three.claim()) == (True, False)
    one.release()


@pytest.mark.aloop_guard(files=False)  # the writers' lock of one is not released
def test_lock_file_that_was_left_by_a_killed_process_is_taken_over(database, lock):
    lock.write_text("process 1 on elsewhere, with a name that is longer than that of this one")
    one, two = Ownership(database), Ownership(database)
    assert (one.claim(), two.claim()) == (True, False)
    assert two.holder().startswith(f"process {os.getpid()} on ")
    assert "longer" not in two.holder()
    one.release()


@pytest.mark.parametrize("how", ["close", "kill"])
def test_claim_is_granted_when_the_process_of_the_owner_has_left(server, database, how):
    child = server.start("stay_open", database=database)
    child.line()
    ownership = Ownership(database)
    assert not ownership.claim()
    if how == "close":
        child.go_on()
        child.end()
    else:
        child.kill()
    assert ownership.claim()
    ownership.release()
    assert beside(database) == (
        [] if how == "close" else [f"{database.name}-{x}" for x in ("shm", "wal")]
    )


def test_claims_that_race_with_releases_never_give_two_owners(database, lock):
    owners, most, granted = [], [], [0] * 4
    start = threading.Barrier(4)

    def work(number):
        random = seeded(SEED + number)
        ownership = Ownership(database)
        start.wait()
        while granted[number] < 50:
            if ownership.claim():
                owners.append(number)
                most.append(len(owners))
                granted[number] += 1
                for _ in range(random.randrange(200)):
                    pass
                most.append(len(owners))
                owners.remove(number)
                ownership.release()

    threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1, f"seed {SEED}"
    assert not lock.exists()


def test_claims_of_many_processes_never_give_two_owners(server, database, lock):
    children = [
        server.start("claim_and_release", database=database, seed=SEED + number, times=500)
        for number in range(4)
    ]
    ends = [child.end() for child in children]
    assert [code for _, code in ends] == [0] * 4
    assert [told[-1][1] for told, _ in ends] == [0] * 4, SEED
    assert sum(told[-1][2] for told, _ in ends) > 0
    assert not lock.exists()


# ------------------------------------------------------------------ checkpoints


class Loop:
    """An event loop in a thread of its own, which does what it is given until it is closed."""

    def __init__(self):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def do(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(50)

    def close(self):
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def loops():
    loops = [Loop(), Loop()]
    yield loops
    for loop in loops:
        loop.close()


@pytest.fixture
def faulty(monkeypatch):
    """Have this SQLite count as one with the fault of checkpoints."""
    for module in ("connection", "wal"):
        monkeypatch.setattr(f"aloop.log.{module}.has_checkpoint_fault", lambda: True)


@pytest.fixture
def sound(monkeypatch):
    """Have this SQLite count as one without it."""
    for module in ("connection", "wal"):
        monkeypatch.setattr(f"aloop.log.{module}.has_checkpoint_fault", lambda: False)


@pytest.fixture
def settings(monkeypatch):
    """The numbers of pages at which the connections of logs make checkpoints, at each commit."""
    seen = {}

    class Told(LogConnection):
        def write(self, groups, *, durable):
            super().write(groups, durable=durable)
            [pages] = self.execute("PRAGMA wal_autocheckpoint").fetchone()
            seen.setdefault(threading.current_thread(), []).append(pages)

    monkeypatch.setattr("aloop.log.thread.LogConnection", Told)
    return seen


async def write_one(log, time):
    log[time]["a"] = time
    await log.flush()


async def opened(database):
    return await SQLiteLog(database).open()


async def close(log):
    await log.close()


def thread_of(log):
    return log._journal._thread.thread


def test_only_the_owner_makes_checkpoints_where_sqlite_is_faulty(database, loops, faulty, settings):
    logs = [loop.do(opened(database)) for loop in loops]
    threads = [thread_of(log) for log in logs]
    for loop, log in zip(loops, logs, strict=True):
        loop.do(write_one(log, 0))
    assert [settings[thread][-1] for thread in threads] == [1000, 0]
    for loop, log in zip(loops, logs, strict=True):
        loop.do(close(log))


def test_everyone_makes_checkpoints_where_sqlite_is_sound(database, loops, sound, settings):
    logs = [loop.do(opened(database)) for loop in loops]
    threads = [thread_of(log) for log in logs]
    for loop, log in zip(loops, logs, strict=True):
        loop.do(write_one(log, 0))
    assert [settings[thread][-1] for thread in threads] == [1000, 1000]
    for loop, log in zip(loops, logs, strict=True):
        loop.do(close(log))


def test_another_becomes_the_owner_when_the_owner_has_left(database, loops, faulty, settings):
    logs = [loop.do(opened(database)) for loop in loops]
    thread = thread_of(logs[1])
    loops[1].do(write_one(logs[1], 0))
    loops[0].do(close(logs[0]))
    loops[1].do(write_one(logs[1], 1))
    assert settings[thread][-2:] == [0, 1000]
    loops[1].do(close(logs[1]))
    assert beside(database) == []


async def test_process_becomes_the_owner_when_the_owner_was_killed(
    server, database, faulty, settings
):
    child = server.start("stay_open", database=database)
    child.line()
    async with SQLiteLog(database) as log:
        thread = thread_of(log)
        await write_one(log, 0)
        child.kill()
        await write_one(log, 1)
        assert settings[thread][-2:] == [0, 1000]
    assert beside(database) == []


def fill(database, loops, commits, pause_s=0.0):
    """Have the first loop own the file and idle while the second writes 40 kB at each commit.

    Give the largest size of the write-ahead log.
    """
    logs = [loop.do(opened(database)) for loop in loops]
    wal = database.with_name(f"{database.name}-wal")
    sizes = []

    async def write(log):
        for time in range(commits):
            for key in range(10):
                log[time][f"text {key}"] = "x" * 4000
            await log.flush()
            sizes.append(wal.stat().st_size)
            if pause_s:
                await asyncio.sleep(pause_s)

    loops[1].do(write(logs[1]))
    for loop, log in zip(loops, logs, strict=True):
        loop.do(close(log))
    return max(sizes)


@pytest.fixture
def watched_closely(monkeypatch):
    monkeypatch.setattr("aloop.log.wal.WAL_WATCH_S", 0.01)
    monkeypatch.setattr("aloop.log.wal.WAL_BYTES", 1 << 20)


@pytest.mark.slow
@pytest.mark.usefixtures("faulty", "watched_closely")
def test_write_ahead_log_is_bounded_while_the_owner_is_idle(database, loops):
    assert fill(database, loops, 150, pause_s=0.01) < 8 << 20  # of more than 16 MB


@pytest.mark.slow
def test_write_ahead_log_grows_when_nobody_watches_it(database, loops, faulty, monkeypatch):
    # Which shows that the test before has anything to show.
    monkeypatch.setattr("aloop.log.wal.WAL_WATCH_S", 1000)
    assert fill(database, loops, 600) > 24 << 20


# ------------------------------------------------------------------ durability and arguments


def written(database, sequence):
    return query(database, "SELECT sequence FROM runs") == [(sequence,)]


async def levels_of(log, database, statements):
    """Commit thrice without asking for a barrier; give how each was synchronised."""
    levels = []
    async with log, log.session():
        for sequence in (1, 2, 3):
            log[sequence]["a"] = sequence
            log.commit()
            await until(lambda sequence=sequence: written(database, sequence))
            await until(lambda: log._journal._wake is not None and not log._unwritten.on_its_way)
            level = [s for s in statements if s.startswith("PRAGMA synchronous")][-1]
            levels.append((level[-6:].strip(" ="), statements.count("COMMIT")))
    return levels


async def test_every_commit_is_synchronised_with_full_durability(database, statements):
    log = SQLiteLog(database, durability="full")
    levels = await levels_of(log, database, statements)
    assert [level for level, _ in levels] == ["FULL"] * 3
    barriers = [s for s in statements if s.startswith("UPDATE barriers")]
    assert len(barriers) == statements.count("COMMIT")


async def test_plain_commits_are_not_synchronised_with_normal_durability(database, statements):
    levels = await levels_of(SQLiteLog(database), database, statements)
    assert [level for level, _ in levels] == ["NORMAL"] * 3


async def test_every_commit_is_synchronised_on_a_network_file_system(far, statements):
    levels = await levels_of(SQLiteLog(far), far, statements)
    assert [level for level, _ in levels] == ["FULL"] * 3


@pytest.mark.parametrize("name", ["durability", "if_in_use"])
@pytest.mark.parametrize("value", ["FULL", "", "no", None, True, 1, [], b"full"])
def test_unknown_value_is_refused_with_what_is_expected(database, name, value):
    with pytest.raises(ArgumentError) as info:
        SQLiteLog(database, **{name: value})
    message = str(info.value)
    expected = {"durability": ("'normal'", "'full'"), "if_in_use": ("'wait'", "'refuse'")}[name]
    parts = (name, repr(value), *expected)
    assert [part for part in parts if part not in message] == []
    assert not database.exists()
