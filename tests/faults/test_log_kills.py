"""What is left of a log when the process that writes it is killed, at whatever moment."""

import asyncio
import os
from time import sleep

import pytest
from fault_jobs import seeded, write_boundary
from fault_tools import beside, boundaries_of, is_sound

from aloop import SQLiteLog, read_log

SEED = 20260101


async def go_on(database, run):
    """Resume a run that was killed, log five boundaries more, and give their times."""
    log = SQLiteLog(database, run)
    async with log:
        first = log.status["iterations_done"]
        log.resume()
        async with log.session():
            for time in range(first, first + 5):
                write_boundary(log, time, "more")
                await log.flush()
    assert len(log) == first + 5
    return log.h_uuid, list(range(first, first + 5))


def check_after_kill(database, run, acknowledged, seed):
    """Check the file of a run that was killed after these times were acknowledged."""
    with read_log(database, run) as reader:  # first, beside what the kill has left
        seen = list(reader)
        assert reader.status["iterations_done"] == len(seen), f"seed {seed}"
    assert is_sound(database), f"seed {seed}"
    times = boundaries_of(database, run)
    assert times == list(range(len(times))) == seen, f"seed {seed}"
    assert set(acknowledged) <= set(times), f"seed {seed}"
    resumed, more = asyncio.run(go_on(database, run))
    assert boundaries_of(database, resumed) == more, f"seed {seed}"
    assert boundaries_of(database, run) == times, f"seed {seed}"
    assert is_sound(database), f"seed {seed}"


def times_of(told):
    return [line[1] for line in told if line[0] == "flushed"]


def kill_writer(server, database, seed, run=None):
    """Kill a process that logs at a moment drawn from the seed; give the run and what it told."""
    random = seeded(seed)
    child = server.start(
        "write",
        database=database,
        seed=seed,
        run=run,
        size=random.choice([10, 3000, 100_000]),
        durability=random.choice(["normal", "full"]),
    )
    told = [child.line()]
    told += [child.line() for _ in range(random.randrange(12))]
    sleep(random.uniform(0, 0.006))  # the moment
    told += child.kill()
    return told[0][1], times_of(told)


def kill_writers(server, tmp_path, trials):
    for seed in range(SEED, SEED + trials):
        database = tmp_path / f"{seed}.sqlite"
        check_after_kill(database, *kill_writer(server, database, seed), seed)
        for path in tmp_path.iterdir():
            assert path == database, f"seed {seed}"
        database.unlink()


def test_what_was_flushed_before_a_kill_is_in_the_file(server, tmp_path):
    kill_writers(server, tmp_path, 25)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_what_was_flushed_before_each_of_200_kills_is_in_the_file(server, tmp_path):
    kill_writers(server, tmp_path, 200)


@pytest.mark.slow
def test_what_was_flushed_before_kills_during_checkpoints_is_in_the_file(server, tmp_path):
    for seed in range(SEED, SEED + 10):
        database = tmp_path / f"{seed}.sqlite"
        child = server.start("write", database=database, seed=seed, size=400_000, each=True)
        told = [child.line()]
        # The write-ahead log is moved into the file each thousand pages.
        while len(told) < 10 + seed % 10:
            told.append(child.line())
        sleep(seeded(seed).uniform(0, 0.006))
        told += child.kill()
        check_after_kill(database, told[0][1], times_of(told), seed)


def test_runs_of_one_file_outlive_the_kills_of_later_ones(server, database):
    expected = {}
    for seed in range(SEED, SEED + 8):
        run, acknowledged = kill_writer(server, database, seed)
        expected[run] = boundaries_of(database, run)
        assert set(acknowledged) <= set(expected[run]), f"seed {seed}"
    assert {run: boundaries_of(database, run) for run in expected} == expected
    assert is_sound(database)


def test_run_that_is_killed_each_time_it_goes_on_keeps_all_that_was_flushed(server, database):
    run, acknowledged = kill_writer(server, database, SEED)
    for seed in range(SEED + 1, SEED + 8):
        _, more = kill_writer(server, database, seed, run=run)
        acknowledged += more
    times = boundaries_of(database, run)
    assert set(acknowledged) <= set(times)
    assert times == list(range(len(times)))


# ------------------------------------------------------------------ opening and closing


def check_start(server, database, where):
    """Check that the next process opens the file, writes, and leaves it sound."""
    told, code = server.start("open_and_close", database=database).end()
    assert (code, told[-1][0]) == (0, "closed"), where
    with read_log(database) as reader:
        assert (reader.h_uuid, list(reader)) == (told[-1][1], [0]), where
    assert is_sound(database), where


def count_steps(server, database):
    """Give how many steps opening and closing have, those of making the file included or not."""
    low, high = 0, 1
    was_there = database.exists()

    def ends(step):
        if not was_there:
            for path in database.parent.iterdir():
                path.unlink()
        return server.start("open_and_die", database=database, step=step).end()[1] == 0

    while not ends(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if ends(middle) else (middle, high)
    return high


def kill_at_steps(server, database, share, *, exists):
    if exists:
        server.start("open_and_close", database=database).end()
    steps = count_steps(server, database)
    assert steps > 30
    chosen = seeded(SEED).sample(range(steps), round(share * steps))
    for step in chosen:
        if not exists:
            for path in database.parent.iterdir():
                path.unlink()
        told, code = server.start("open_and_die", database=database, step=step).end()
        assert (code, told) == (-9, []), f"step {step}"
        assert not database.exists() or database.stat().st_size > 0, f"step {step}"
        check_start(server, database, f"step {step}")
        left = [name for name in beside(database) if "-new-" not in name]
        assert left == [], f"step {step}"


@pytest.mark.parametrize(
    "exists",
    [False, pytest.param(True, marks=pytest.mark.slow)],
    ids=["new file", "file that exists"],
)
def test_opening_that_is_killed_at_a_step_hinders_no_later_one(server, database, exists):
    kill_at_steps(server, database, 0.2, exists=exists)


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("exists", [False, True], ids=["new file", "file that exists"])
def test_opening_that_is_killed_at_any_step_hinders_no_later_one(server, database, exists):
    kill_at_steps(server, database, 1, exists=exists)


def test_opening_that_is_killed_at_any_moment_hinders_no_later_one(server, tmp_path):
    for seed in range(SEED, SEED + 25):
        database = tmp_path / f"{seed}.sqlite"
        child = server.start("open_and_close", database=database)
        child.line()
        sleep(seeded(seed).uniform(0, 0.02))
        child.kill()
        check_start(server, database, f"seed {seed}")


def test_leftover_of_a_killed_creation_is_removed_once_it_is_old(database):
    left = database.with_name(f"{database.name}-new-1-abcd")
    for name in (left, left.with_name(f"{left.name}-journal")):
        name.write_bytes(b"half")
        os.utime(name, (0, 0))

    async def start():
        async with SQLiteLog(database):
            pass

    asyncio.run(start())
    assert beside(database) == []


def test_leftover_of_a_killed_creation_is_removed_though_there_is_a_file_by_now(database):
    async def start():
        async with SQLiteLog(database):
            pass

    asyncio.run(start())
    left = database.with_name(f"{database.name}-new-1-abcd")
    left.write_bytes(b"half")
    os.utime(left, (0, 0))
    asyncio.run(start())
    assert beside(database) == []


# ------------------------------------------------------------------ two processes


def kill_one_of_two(server, database, seed, victim):
    """Kill the first or the second of two processes that write to a file; check both."""
    random = seeded(seed)
    children = [
        server.start("write", database=database, seed=seed + number, rows=rows, size=1000)
        for number, rows in enumerate([None, 60] if victim == 0 else [60, None])
    ]
    runs, told = [], [[], []]
    for child in children:
        runs.append(child.line()[1])
    for _ in range(random.randrange(8)):
        told[victim].append(children[victim].line())
    sleep(random.uniform(0, 0.004))
    told[victim] += children[victim].kill()
    rest, code = children[1 - victim].end()
    assert (code, rest[-1]) == (0, ["closed"]), f"seed {seed}"
    assert boundaries_of(database, runs[1 - victim]) == list(range(60)), f"seed {seed}"
    times = boundaries_of(database, runs[victim])
    assert set(times_of(told[victim])) <= set(times), f"seed {seed}"
    assert times == list(range(len(times))), f"seed {seed}"
    assert is_sound(database), f"seed {seed}"
    server.start("open_and_close", database=database).end()  # the kill may have come last
    assert beside(database) == [], f"seed {seed}"


@pytest.mark.parametrize("victim", [0, 1], ids=["the owner", "the other"])
def test_process_goes_on_when_another_that_writes_to_the_file_is_killed(server, database, victim):
    for seed in range(SEED, SEED + 5):
        kill_one_of_two(server, database, seed, victim)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1], ids=["the owner", "the other"])
def test_process_goes_on_whenever_another_that_writes_to_the_file_is_killed(
    server, database, victim
):
    for seed in range(SEED, SEED + 40):
        kill_one_of_two(server, database, seed, victim)
