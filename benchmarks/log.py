"""What the log in SQLite costs: writing, reading, memory, and readers of a run under way.

- ``write``: records a second until they are on the disk, three floats a step. The time is that of
  the whole run, from opening a new file to its closing, with the barrier at the end. Measured for
  a `MainLoop` with an asynchronous step that does nothing, and for the log alone, with a commit
  point a step, giving way once a millisecond: by a bare ``asyncio.sleep(0)``, and as the main loop
  does it. Held against raw `sqlite3`, which puts the same rows into the same tables with
  ``executemany``, 1,000 steps a transaction, with a write-ahead log, ``synchronous=NORMAL`` and
  one ``FULL`` barrier at the end; with the time to make the tuples of its parameters out of the
  floats, and without. A ratio of 0.8 means 0.8 times as many records a second as raw.
- ``series``: one of the 10 series, of 100,000 points each, that are a log of 1 M records; by the
  open log that wrote them, by `read_log`, opening included, and by raw `sqlite3` with ``fetchall``
  and numpy.
- ``rows``: ``log[time]`` at random times whose rows have left memory, of 10 records each; in a run
  of its own, and in one with 10 ancestors it was resumed from.
- ``open``: opening the run of 1 M records by its id, and ``len(log)`` right after.
- ``memory``: what 1 M iterations of three records each add to a new process that has done 20,000
  before. The peak is that of these iterations, over what the process had at their beginning.
- ``readers``: 1,000 steps a second, of three records each, with 50 who follow the log in 5 other
  processes, and without. Time that a step loses is made up for by the next ones; a step is late
  by how long after its time it begins.

Every figure is the median over the rounds; cases that are held against each other run in the same
round, in an order shuffled anew, and a ratio is the median of those of the rounds. What was written
and read is compared, record by record, with what it has to be.

Run it from the root of the repository, in an environment with aloop::

    pip install -e .
    python benchmarks/log.py
    python benchmarks/log.py --quick --cases write series

The files are made in the directory for temporary files; set TMPDIR to measure another disk.
"""

import asyncio
import gc
import json
import logging
import random
import sqlite3
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import Any

import numpy as np
from figures import (
    SEED,
    Figure,
    make_parser,
    memory_mb,
    new_file,
    positive,
    report,
    rounds_of,
)

import aloop
from aloop.log.schema import CREATE
from aloop.turns import SLICE_S, Turn

RECORDS_A_STEP = 3
RECORDS_A_ROW = 10
STEPS_A_TRANSACTION = 1000
SERIES_A_ROUND = 5
ROWS_A_ROUND = 2000
ANCESTORS = 10
WARM_UP = 20_000
STEPS_A_SECOND = 1000
READER_PROCESSES = 5
FOLLOWERS_A_PROCESS = 10

KEYS = [f"record {n}" for n in range(RECORDS_A_ROW)]


@dataclass
class Sizes:
    """How much each case does."""

    iterations: int = 100_000
    """Steps of a run that is timed for writing."""
    records: int = 1_000_000
    """Records of the logs that are read."""
    memory_iterations: int = 1_000_000
    seconds: float = 20.0
    """How long a run with readers lasts."""
    rounds: int = 5
    memory_rounds: int = 3


QUICK = Sizes(3000, 100_000, 30_000, 1.0, 2, 1)


def value_at(time: int, place: int) -> float:
    """Give the record of a time under the key of this place: exact, and never the same twice."""
    return time * 0.25 + place * 1e6


def stored_series(path: Path, key: str) -> list[tuple[int, float]]:
    """Read what a file with one run has under a key, without aloop."""
    connection = sqlite3.connect(path)
    try:
        return connection.execute(
            "SELECT time, value FROM stored_entries "
            "WHERE key = (SELECT id FROM keys WHERE key = ?) ORDER BY time",
            (key,),
        ).fetchall()
    finally:
        connection.close()


def check_file(path: Path, steps: int) -> None:
    """Compare what is in a file with the records that so many steps had to write."""
    for place, key in enumerate(KEYS[:RECORDS_A_STEP]):
        expected = [(time, value_at(time, place)) for time in range(1, steps + 1)]
        assert stored_series(path, key) == expected, f"{path}: {key!r} is not what was written"


# Writing


async def step(batch: int) -> None:
    """Train on a batch: nothing."""


class Recorder(aloop.TrainingExtension):
    """Writes three records after each batch."""

    async def after_batch(self, batch: int) -> None:
        row = self.main_loop.log.current_row
        time = row.time
        row["record 0"] = time * 0.25
        row["record 1"] = time * 0.25 + 1e6
        row["record 2"] = time * 0.25 + 2e6


def make_loop(log: aloop.TrainingLog, steps: int, algorithm: Any = step) -> aloop.MainLoop:
    """Make the loop that writes three records a step."""
    return aloop.MainLoop(
        algorithm,
        range(steps),
        log=log,
        extensions=[Recorder("recorder"), aloop.FinishAfter(after_n_epochs=1)],
        signals="off",
    )


def write_with_loop(path: Path, steps: int) -> float:
    """Time a run of the main loop."""

    async def run() -> float:
        main_loop = make_loop(aloop.SQLiteLog(path), steps)
        begin = perf_counter()
        await main_loop.run()
        return perf_counter() - begin

    return asyncio.run(run())


def write_with_log(*, like_the_loop: bool) -> Callable[[Path, int], float]:
    """Make the case of the log alone; `like_the_loop` gives way as the main loop does."""

    async def write(log: aloop.SQLiteLog, steps: int) -> None:
        status = log.status
        ends_at = perf_counter() + SLICE_S
        with Turn() as turn:
            for time in range(1, steps + 1):
                status.advance()
                row = log.current_row
                row["record 0"] = time * 0.25
                row["record 1"] = time * 0.25 + 1e6
                row["record 2"] = time * 0.25 + 2e6
                log.commit()
                if like_the_loop:
                    if turn.is_over():
                        await log.keep_up()
                        await turn.give_way()
                elif perf_counter() >= ends_at:
                    await log.keep_up()
                    await asyncio.sleep(0)
                    ends_at = perf_counter() + SLICE_S

    async def run(path: Path, steps: int) -> float:
        log = aloop.SQLiteLog(path)
        begin = perf_counter()
        async with log.session():
            await write(log, steps)
        return perf_counter() - begin

    return lambda path, steps: asyncio.run(run(path, steps))


def write_raw(*, building: bool) -> Callable[[Path, int], float]:
    """Make the case of raw sqlite3; without `building` its parameters are made beforehand."""

    def rows(first: int, last: int) -> list[tuple[int, int, int, float]]:
        made: list[tuple[int, int, int, float]] = []
        append = made.append
        for time in range(first, last):
            append((1, 1, time, time * 0.25))
            append((1, 2, time, time * 0.25 + 1e6))
            append((1, 3, time, time * 0.25 + 2e6))
        return made

    def run(path: Path, steps: int) -> float:
        ranges = [
            (first, min(first + STEPS_A_TRANSACTION, steps + 1))
            for first in range(1, steps + 1, STEPS_A_TRANSACTION)
        ]
        made = [] if building else [rows(*times) for times in ranges]
        begin = perf_counter()
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA journal_mode = wal")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("BEGIN")
        for statement in CREATE:
            connection.execute(statement)
        connection.execute("INSERT INTO runs (id, run, started_at, sequence) VALUES (1, '', '', 0)")
        connection.executemany(
            "INSERT INTO keys (key) VALUES (?)", [(key,) for key in KEYS[:RECORDS_A_STEP]]
        )
        connection.execute("COMMIT")
        for place, times in enumerate(ranges):
            parameters = rows(*times) if building else made[place]
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(
                "INSERT INTO stored_entries (run, key, time, value) VALUES (?, ?, ?, ?)",
                parameters,
            )
            connection.execute("COMMIT")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("UPDATE barriers SET number = number + 1")
        connection.close()
        return perf_counter() - begin

    return run


def measure_writing(sizes: Sizes) -> list[Figure]:
    raw, raw_built = "raw sqlite3", "raw sqlite3, its tuples made beforehand"
    loop = "main loop, whole run"
    alone, alone_as_loop = "log alone, asyncio.sleep(0)", "log alone, giving way as the loop does"
    cases: dict[str, Callable[[Path, int], float]] = {
        raw: write_raw(building=True),
        raw_built: write_raw(building=False),
        loop: write_with_loop,
        alone: write_with_log(like_the_loop=False),
        alone_as_loop: write_with_log(like_the_loop=True),
    }
    speeds = {name: Figure("write", name, "records/s") for name in cases}
    steps = sizes.iterations
    for run in cases.values():
        with new_file() as path:  # what happens once in a process is no part of the figures
            run(path, steps // 10 + 1)
    for name in rounds_of(cases, sizes.rounds):
        with new_file() as path:
            seconds = cases[name](path, steps)
            check_file(path, steps)
        speeds[name].values.append(steps * RECORDS_A_STEP / seconds)

    def ratio(name: str, baseline: str, budget: float | None) -> Figure:
        pairs = zip(speeds[name].values, speeds[baseline].values, strict=True)
        what = f"{name}: ratio to {baseline}"
        return Figure("write", what, "", [a / b for a, b in pairs], budget, at_least=True)

    ours = loop, alone, alone_as_loop
    return [
        *speeds.values(),
        *(ratio(name, raw, 0.8) for name in ours),
        *(ratio(name, raw_built, None) for name in ours),
    ]


# Reading


@asynccontextmanager
async def filled_log(path: Path, times: int, ancestors: int) -> AsyncIterator[aloop.SQLiteLog]:
    """Give an open log with rows at so many times, that was resumed so often on its way."""
    log = aloop.SQLiteLog(path)
    forks = {times * n // (ancestors + 1) for n in range(1, ancestors + 1)}
    async with log:
        async with log.session():
            with Turn() as turn:
                for time in range(1, times + 1):
                    log.status.advance()
                    row = log.current_row
                    for place, key in enumerate(KEYS):
                        row[key] = value_at(time, place)
                    log.commit()
                    if time in forks:
                        log.resume()
                        log.commit()
                    if turn.is_over():
                        await log.keep_up()
                        await turn.give_way()
        await log.flush()
        assert log._rows.kept_until >= times // 2, "too few rows have left memory"
        connection = sqlite3.connect(path)
        (count,) = connection.execute("SELECT COUNT(*) FROM stored_entries").fetchone()
        (runs,) = connection.execute("SELECT COUNT(*) FROM runs").fetchone()
        connection.close()
        assert (count, runs) == (times * RECORDS_A_ROW, ancestors + 1)
        yield log


async def time_series(
    log: aloop.SQLiteLog, path: Path, times: int, rounds: int, ancestors: int
) -> list[Figure]:
    async def by_log(key: str) -> Any:
        return await log.series(key)

    async def by_read_log(key: str) -> Any:
        with aloop.read_log(path) as reading:
            return await reading.series(key)

    async def by_raw(key: str) -> Any:
        found = connection.execute(
            "SELECT time, value FROM stored_entries WHERE run = 1 "
            "AND key = (SELECT id FROM keys WHERE key = ?) ORDER BY time",
            (key,),
        ).fetchall()
        seen, values = zip(*found, strict=True)
        return np.array(seen, dtype=np.int64), np.array(values)

    connection = sqlite3.connect(path)
    points = f"{times:,} points"
    if ancestors:
        name = f"log.series, {points} of a run and its {ancestors} ancestors"
        cases = {name: (by_log, None)}
    else:
        cases = {
            f"log.series, {points}": (by_log, 60),
            f"read_log(path).series, {points}": (by_read_log, 60),
            f"raw sqlite3 and numpy, {points}": (by_raw, None),
        }
    figures = {
        name: Figure("series", name, "ms", [], budget) for name, (_, budget) in cases.items()
    }
    chosen = random.Random(SEED)
    for name in rounds_of(cases, rounds):
        taken = []
        for _ in range(SERIES_A_ROUND):
            place = chosen.randrange(RECORDS_A_ROW)
            begin = perf_counter()
            seen, values = await cases[name][0](KEYS[place])
            taken.append((perf_counter() - begin) * 1000)
            expected = np.arange(1, times + 1)
            assert seen.dtype == np.int64
            assert np.array_equal(seen, expected)
            assert np.array_equal(values, expected * 0.25 + place * 1e6)
        figures[name].values.append(statistics.median(taken))
    connection.close()
    return list(figures.values())


def time_rows(log: aloop.SQLiteLog, rounds: int, ancestors: int) -> list[Figure]:
    where = f"a run with {ancestors} ancestors" if ancestors else "a run of its own"
    median = Figure("rows", f"log[time], {where}: median", "µs", [], 200)
    high = Figure("rows", f"log[time], {where}: 99th percentile", "µs")
    chosen = random.Random(SEED)
    kept_until = log._rows.kept_until
    for _ in range(rounds):
        gc.collect()
        taken = []
        for _ in range(ROWS_A_ROUND):
            time = chosen.randint(1, kept_until)
            begin = perf_counter_ns()
            row = log[time]
            taken.append((perf_counter_ns() - begin) / 1000)
            assert row == {key: value_at(time, place) for place, key in enumerate(KEYS)}
        median.values.append(statistics.median(taken))
        high.values.append(statistics.quantiles(taken, n=100)[98])
    return [median, high]


async def time_opening(path: Path, run: str, times: int, rounds: int) -> list[Figure]:
    opening = Figure("open", f"opening a run of {times * RECORDS_A_ROW:,} records by its id", "ms")
    counting = Figure("open", f"len(log) right after, {times:,} rows", "ms")
    for _ in range(rounds):
        gc.collect()
        begin = perf_counter()
        log = aloop.SQLiteLog(path, run)
        await log.open()
        opened = perf_counter()
        count = len(log)
        counted = perf_counter()
        assert count == times
        assert log.status["iterations_done"] == times
        assert log[times // 2] == {key: value_at(times // 2, n) for n, key in enumerate(KEYS)}
        await log.close()
        opening.values.append((opened - begin) * 1000)
        counting.values.append((counted - opened) * 1000)
    return [opening, counting]


async def measure_reading(sizes: Sizes, cases: list[str]) -> list[Figure]:
    """Measure the cases `series`, `rows` and `open`, as far as they are asked for."""
    figures: list[Figure] = []
    times, rounds = sizes.records // RECORDS_A_ROW, sizes.rounds
    for ancestors in 0, ANCESTORS:
        with new_file() as path:
            async with filled_log(path, times, ancestors) as log:
                if "series" in cases:
                    figures += await time_series(log, path, times, rounds, ancestors)
                if "rows" in cases:
                    figures += time_rows(log, rounds, ancestors)
            if "open" in cases and not ancestors:
                figures += await time_opening(path, log.h_uuid, times, rounds)
    return figures


# Memory


def forget_peak() -> None:
    """Let the peak be what the process has now, where the system can do that."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        print("the peak includes the warm-up", file=sys.stderr)


async def use_memory(iterations: int) -> None:
    """Be the process whose memory is measured: print what it had before and after."""
    with new_file() as path:
        await make_loop(aloop.SQLiteLog(path), WARM_UP).run()
    with new_file() as path:
        main_loop = make_loop(aloop.SQLiteLog(path), iterations)
        gc.collect()
        rss, warm_up_peak = memory_mb()
        forget_peak()
        log = await main_loop.run()
        peak = memory_mb()[1]
        gc.collect()
        grown = {
            "rss": memory_mb()[0] - rss,
            "peak": peak - rss,
            "peak over that of the warm-up": max(peak - warm_up_peak, 0),
        }
        assert log.status["iterations_done"] == iterations
        check_file(path, iterations)
    print(json.dumps(grown))


def measure_memory(sizes: Sizes) -> list[Figure]:
    what = f"{sizes.memory_iterations:,} iterations:"
    figures = {
        "rss": Figure("memory", f"{what} growth of RSS", "MB", [], 20),
        "peak": Figure("memory", f"{what} peak RSS over RSS at the beginning", "MB", [], 20),
        "peak over that of the warm-up": Figure("memory", f"{what} growth of peak RSS", "MB"),
    }
    for _ in range(sizes.memory_rounds):
        command = [sys.executable, __file__, "_memory", str(sizes.memory_iterations)]
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        for name, grown in json.loads(found.stdout).items():
            figures[name].values.append(grown)
    return list(figures.values())


# Readers


class Pace:
    """A step that begins so many times a second, and catches up when it was late."""

    def __init__(self) -> None:
        self.late_s: list[float] = []
        self.begun = self.ended = 0.0

    async def __call__(self, batch: int) -> None:
        now = perf_counter()
        if not self.begun:
            self.begun = now
        due = self.begun + batch / STEPS_A_SECOND
        if now < due:
            await asyncio.sleep(due - now)
            now = perf_counter()
        self.late_s.append(now - due)
        self.ended = now


async def follow(path: Path) -> dict[str, Any]:
    """Follow a log to its end, and tell what there was to see."""
    seen, wrong, last, error = 0, 0, 0, None
    try:
        with aloop.read_log(path) as log:
            async for row in log.follow():
                seen += row.time == last + 1
                last = row.time
                wrong += any(
                    row.get(key) != value_at(last, place)
                    for place, key in enumerate(KEYS[:RECORDS_A_STEP])
                )
    except Exception as caught:  # noqa: BLE001 - counted
        error = repr(caught)
    return {"seen": seen, "wrong": wrong, "error": error}


async def follow_many(path: Path) -> None:
    """Be a process that reads: begin when told so, print what every follower saw."""
    print("ready", flush=True)
    sys.stdin.readline()
    tasks = [asyncio.create_task(follow(path)) for _ in range(FOLLOWERS_A_PROCESS)]
    print(json.dumps(await asyncio.gather(*tasks)))


async def run_with_readers(steps: int, processes: int) -> tuple[Pace, list[dict[str, Any]]]:
    """Run so many steps beside so many processes that follow."""
    pipe = asyncio.subprocess.PIPE
    with new_file() as path:
        readers = [
            await asyncio.create_subprocess_exec(
                sys.executable, __file__, "_readers", str(path), stdin=pipe, stdout=pipe
            )
            for _ in range(processes)
        ]
        try:
            for reader in readers:
                assert await reader.stdout.readline() == b"ready\n"
            log, pace = aloop.SQLiteLog(path), Pace()
            async with log:
                log.commit()
                await log.flush()  # the run is in the file, for the readers to find
                for reader in readers:
                    reader.stdin.write(b"\n")
                    await reader.stdin.drain()
                if readers:
                    await asyncio.sleep(0.5)  # by which time all of them wait for rows
                await make_loop(log, steps, pace).run()
            async with asyncio.timeout(60):
                found = [json.loads((await reader.communicate())[0]) for reader in readers]
        finally:
            for reader in readers:
                if reader.returncode is None:
                    reader.kill()
                    await reader.wait()
        check_file(path, steps)
    return pace, [follower for process in found for follower in process]


async def measure_readers(sizes: Sizes) -> list[Figure]:
    steps = round(sizes.seconds * STEPS_A_SECOND)
    followers = READER_PROCESSES * FOLLOWERS_A_PROCESS
    names = {0: "no readers", READER_PROCESSES: f"{followers} readers"}
    rates = {n: Figure("readers", f"{name}: steps", "1/s") for n, name in names.items()}
    late = {
        (n, part): Figure("readers", f"{name}: late by, {part}", "ms")
        for n, name in names.items()
        for part in ("median", "99th percentile", "most")
    }
    missed = Figure("readers", f"rows missed by any of {followers} readers", "", [], 0)
    wrong = Figure("readers", "rows with other records than were written", "", [], 0)
    errors = Figure("readers", "errors of readers", "", [], 0)
    for processes in rounds_of(names, sizes.rounds):
        pace, found = await run_with_readers(steps, processes)
        assert len(pace.late_s) == steps
        assert len(found) == processes * FOLLOWERS_A_PROCESS
        rates[processes].values.append((steps - 1) / (pace.ended - pace.begun))
        late_ms = [seconds * 1000 for seconds in pace.late_s]
        late[processes, "median"].values.append(statistics.median(late_ms))
        percentile = statistics.quantiles(late_ms, n=100)[98]
        late[processes, "99th percentile"].values.append(percentile)
        late[processes, "most"].values.append(max(late_ms))
        for follower in found:
            if follower["error"] is not None:
                print(follower["error"], file=sys.stderr)
        if processes:
            missed.values.append(sum(steps - follower["seen"] for follower in found))
            wrong.values.append(sum(follower["wrong"] for follower in found))
            errors.values.append(sum(follower["error"] is not None for follower in found))
    for figure in missed, wrong, errors:
        figure.values = [sum(figure.values)]  # of all rounds: one is too many
    pairs = zip(rates[READER_PROCESSES].values, rates[0].values, strict=True)
    ratio = Figure("readers", "ratio of the rates", "", [a / b for a, b in pairs], 0.9, True)
    return [*rates.values(), ratio, *late.values(), missed, wrong, errors]


# Results


def measure(sizes: Sizes, cases: list[str]) -> list[Figure]:
    figures: list[Figure] = []
    if "write" in cases:
        figures += measure_writing(sizes)
    if {"series", "rows", "open"} & set(cases):
        found = asyncio.run(measure_reading(sizes, cases))
        figures += sorted(found, key=lambda figure: CASES.index(figure.case))
    if "memory" in cases:
        figures += measure_memory(sizes)
    if "readers" in cases:
        figures += asyncio.run(measure_readers(sizes))
    return figures


CASES = ["write", "series", "rows", "open", "memory", "readers"]


def main() -> None:
    if sys.argv[1:2] == ["_memory"]:  # the processes that the cases start
        asyncio.run(use_memory(int(sys.argv[2])))
        return
    if sys.argv[1:2] == ["_readers"]:
        asyncio.run(follow_many(Path(sys.argv[2])))
        return
    parser = make_parser(__doc__, CASES)
    parser.add_argument("--quick", action="store_true", help="small sizes: seconds, no figures")
    for name, size in asdict(Sizes()).items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=positive(type(size)),
            help=f"default: {size:,}, {getattr(QUICK, name):,} with --quick",
        )
    arguments = parser.parse_args()
    given = {name: value for name in asdict(QUICK) if (value := getattr(arguments, name))}
    sizes = Sizes(**asdict(QUICK if arguments.quick else Sizes()) | given)
    if sizes.records < 100_000:
        parser.error("--records has to be 100,000 at least, for rows to leave memory")

    figures = measure(sizes, arguments.cases)
    note = f"Medians of {sizes.rounds} rounds, of {sizes.memory_rounds} for memory"
    report(figures, sizes, note, arguments.json)


if __name__ == "__main__":
    aloop.config.profile = False  # whatever the settings of this user and machine are
    # That records come faster than the disk takes them is what is measured here.
    logging.getLogger("aloop").setLevel(logging.ERROR)
    main()
