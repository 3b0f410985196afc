"""What it takes to run a thousand main loops in one event loop, with one log file for all.

- ``sleep``: loops with a step that sleeps 50 ms and one record a step, each with a `SQLiteLog` of
  its own over the same file, held against bare asyncio tasks that await the same step and record
  nothing. Both start together, with `asyncio.gather`. Steps are counted in a window that opens
  when every one has done its first step, and closes before any is asked to stop. Beside them a
  heartbeat sleeps 5 ms again and again; it is late by how much longer that took. Starting is from
  making the first of them until the last one has done a step, 50 ms of it asleep; stopping is from
  the first ``request_finish("batch")`` until the last run has returned, its records on the disk.
- ``no sleep``: 64 loops with a step that does nothing and one record a step, with their logs in
  one file and in memory, and a window half as long: how evenly they share an event loop that each
  of them would fill alone.
- ``memory``: what the loops of ``sleep`` have added to a process when the window closes: to its
  resident memory, and to what Python has allocated, by `tracemalloc`; each in a new process,
  because tracing takes time and memory itself. A few loops have run there before, for what comes
  once in a process is no part of the figure.

The loops listen to signals as they do by default: with ``signals="off"`` the rates are the same.

Every figure is the median over the rounds; cases that are held against each other run in the same
round, in an order shuffled anew, and a ratio is the median of those of the rounds. What the file
has of each run is compared with the steps that were done.

Run it from the root of the repository, in an environment with aloop::

    pip install -e .
    python benchmarks/many.py
    python benchmarks/many.py --loops 100 --rounds 3

The files are made in the directory for temporary files; set TMPDIR to measure another disk.
"""

import asyncio
import gc
import json
import logging
import sqlite3
import statistics
import subprocess
import sys
import tracemalloc
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, Protocol, TypeAlias

from figures import Figure, make_parser, memory_mb, new_file, report, rounds_of, sizes_in

import aloop

STEP_S = 0.05
HEARTBEAT_S = 0.005
POLL_S = 0.005
BATCHES = range(1_000_000_000)  # more than anybody gets to
WARM_UP_LOOPS = 20
WARM_UP_S = 0.2


@dataclass
class Sizes:
    """How much each case does."""

    loops: int = 1000
    busy_loops: int = 64
    """Loops whose steps do not sleep."""
    window: float = 3.0
    """How many seconds the steps are counted."""
    rounds: int = 5
    memory_rounds: int = 3


class Step(Protocol):
    """A step that counts how often it was done."""

    done: int

    async def __call__(self, batch: int) -> None: ...


class Sleep:
    """Trains on a batch somewhere else: that takes a while, and nothing of this process."""

    def __init__(self) -> None:
        self.done = 0

    async def __call__(self, batch: int) -> None:
        await asyncio.sleep(STEP_S)
        self.done += 1


class Nothing:
    """Trains on a batch: nothing."""

    def __init__(self) -> None:
        self.done = 0

    async def __call__(self, batch: int) -> None:
        self.done += 1


class Recorder(aloop.TrainingExtension):
    """Writes one record after each batch."""

    async def after_batch(self, batch: int) -> None:
        self.main_loop.log.current_row["cost"] = batch * 0.25


@dataclass
class Seen:
    """What there was to see while all ran."""

    rate: float
    """Steps a second, of all together."""
    fairness: float
    """The steps of the slowest, over those of the fastest."""
    late_ms: float
    """How late the heartbeat was, 99th percentile."""
    cpu: float
    """What the process took, of the time of one core."""


@dataclass
class Measured:
    """What came of running many at once."""

    start_s: float
    seen: Any  # whatever the one who looked has to tell
    stop_s: float


Look: TypeAlias = Callable[[Sequence[Step]], Awaitable[Any]]


async def measure(
    steps: Sequence[Step],
    begin: float,
    running: "asyncio.Future[Any]",
    stop: Callable[[], None],
    look: Look,
) -> Measured:
    """Look when every one of those that run has done a step, then stop them.

    Parameters:
        steps: the step of each.
        begin: when the first of them was made.
        running: done when all of them have ended, or one has failed.
        stop: asks them to.
        look: gives what there is to see.
    """
    # An event would cost every step something.
    while not (running.done() or all(step.done for step in steps)):  # noqa: ASYNC110
        await asyncio.sleep(POLL_S)
    start_s = perf_counter() - begin
    seen = None if running.done() else await look(steps)
    begin = perf_counter()
    if not running.done():
        stop()
    await running
    return Measured(start_s, seen, perf_counter() - begin)


async def run_bare(steps: Sequence[Step], look: Look) -> Measured:
    """Run tasks that await their steps, and that is all."""
    stopped = asyncio.Event()

    async def run(step: Step) -> None:
        for batch in BATCHES:
            if stopped.is_set():
                return
            await step(batch)

    begin = perf_counter()
    running = asyncio.gather(*map(run, steps))
    return await measure(steps, begin, running, stopped.set, look)


async def run_loops(steps: Sequence[Step], look: Look, *, in_sqlite: bool = True) -> Measured:
    """Run main loops with a record a step, and check what is in their logs."""
    with new_file() as path:
        begin = perf_counter()
        loops = [
            aloop.MainLoop(
                step,
                BATCHES,
                log=aloop.SQLiteLog(path) if in_sqlite else aloop.TrainingLog(),
                extensions=[Recorder()],
            )
            for step in steps
        ]

        def stop() -> None:
            for loop in loops:
                loop.request_finish("batch")

        running = asyncio.gather(*(loop.run() for loop in loops))
        measured = await measure(steps, begin, running, stop, look)
        done = {loop.log.h_uuid: step.done for loop, step in zip(loops, steps, strict=True)}
        assert {loop.log.h_uuid: loop.status["iterations_done"] for loop in loops} == done
        if in_sqlite:
            # The numbers from 0 on, a quarter of each: exact, and no two the same.
            expected = {run: (n, n * (n - 1) / 8) for run, n in done.items()}
            assert stored_records(path) == expected, f"{path}: not what was written"
    return measured


def stored_records(path: Path) -> dict[str, tuple[int, float]]:
    """Read, without aloop, how many records a file has of each run, and what they add up to."""
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute(
            "SELECT runs.run, COUNT(*), SUM(value) FROM stored_entries AS entries "
            "JOIN runs ON runs.id = entries.run "
            "WHERE key = (SELECT id FROM keys WHERE key = 'cost') GROUP BY entries.run"
        )
        return {run: (count, total) for run, count, total in found}


def count_for(seconds: float) -> Look:
    """Make what counts the steps for so long, beside a heartbeat."""

    async def beat(late_s: list[float]) -> None:
        while True:
            begin = perf_counter()
            await asyncio.sleep(HEARTBEAT_S)
            late_s.append(perf_counter() - begin - HEARTBEAT_S)

    async def look(steps: Sequence[Step]) -> Seen:
        late_s: list[float] = []
        heart = asyncio.create_task(beat(late_s))
        cpu_s, begin = process_time(), perf_counter()
        before = [step.done for step in steps]
        await asyncio.sleep(seconds)
        counts = [step.done - done for step, done in zip(steps, before, strict=True)]
        took_s, cpu_s = perf_counter() - begin, process_time() - cpu_s
        heart.cancel()
        return Seen(
            rate=sum(counts) / took_s,
            fairness=min(counts) / max(counts),
            late_ms=statistics.quantiles(late_s, n=100)[98] * 1000,
            cpu=cpu_s / took_s,
        )

    return look


PARTS: dict[str, tuple[str, Callable[[Measured], float]]] = {
    "steps": ("1/s", lambda measured: measured.seen.rate),
    "slowest / fastest": ("", lambda measured: measured.seen.fairness),
    "heartbeat late by, 99th percentile": ("ms", lambda measured: measured.seen.late_ms),
    "processor time": ("cores", lambda measured: measured.seen.cpu),
    "starting all": ("s", lambda measured: measured.start_s),
    "stopping all": ("s", lambda measured: measured.stop_s),
}


def figures_of(case: str, what: str, runs: list[Measured]) -> dict[str, Figure]:
    """Make the figures of what was run once a round, by what they tell."""
    return {
        part: Figure(case, f"{what}: {part}", unit, [value(run) for run in runs])
        for part, (unit, value) in PARTS.items()
    }


def measure_sleeping(sizes: Sizes) -> list[Figure]:
    cases = {"bare tasks": run_bare, "main loops": run_loops}
    found: dict[str, list[Measured]] = {name: [] for name in cases}
    for name in rounds_of(cases, sizes.rounds):
        steps = [Sleep() for _ in range(sizes.loops)]
        found[name].append(asyncio.run(cases[name](steps, count_for(sizes.window))))

    figures = {
        name: figures_of("sleep", f"{sizes.loops:,} {name}", runs) for name, runs in found.items()
    }
    bare, ours = figures.values()
    for figure, budget, at_least in (
        (ours["slowest / fastest"], 0.95, True),
        (ours["heartbeat late by, 99th percentile"], 25, False),
    ):
        figure.budget, figure.at_least = budget, at_least
    nominal = sizes.loops / STEP_S
    rates = {name: parts["steps"].values for name, parts in figures.items()}
    pairs = zip(ours["steps"].values, bare["steps"].values, strict=True)
    return [
        *(
            Figure(
                "sleep",
                f"{sizes.loops:,} {name}: ratio to nominal",
                "",
                [r / nominal for r in rate],
            )
            for name, rate in rates.items()
        ),
        Figure(
            "sleep",
            f"{sizes.loops:,} main loops: ratio to bare tasks",
            "",
            [a / b for a, b in pairs],
            0.9,
            at_least=True,
        ),
        *bare.values(),
        *ours.values(),
    ]


def measure_busy(sizes: Sizes) -> list[Figure]:
    cases = {"SQLite": True, "memory": False}
    found: dict[str, list[Measured]] = {name: [] for name in cases}
    for name in rounds_of(cases, sizes.rounds):
        steps = [Nothing() for _ in range(sizes.busy_loops)]
        look = count_for(sizes.window / 2)
        found[name].append(asyncio.run(run_loops(steps, look, in_sqlite=cases[name])))

    shown = "steps", "slowest / fastest", "heartbeat late by, 99th percentile"
    return [
        parts[part]
        for name, runs in found.items()
        for parts in [figures_of("no sleep", f"{sizes.busy_loops} main loops, {name}", runs)]
        for part in shown
    ]


# Memory


async def use_memory(kind: str, loops: int, seconds: float) -> None:
    """Be the process whose memory is measured: print what each loop added to it, in kB."""

    def used_kb() -> float:
        gc.collect()
        if kind == "traced":
            return tracemalloc.get_traced_memory()[0] / 1000
        return memory_mb()[0] * 1024 * 1024 / 1000

    async def look(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return used_kb()

    await run_loops([Sleep() for _ in range(WARM_UP_LOOPS)], lambda _: look(WARM_UP_S))
    if kind == "traced":
        tracemalloc.start()
    before = used_kb()
    measured = await run_loops([Sleep() for _ in range(loops)], lambda _: look(seconds))
    print(json.dumps((measured.seen - before) / loops))


def measure_memory(sizes: Sizes) -> list[Figure]:
    what = f"{sizes.loops:,} main loops, each:"
    figures = {
        "resident": Figure("memory", f"{what} growth of RSS", "kB", [], 50),
        "traced": Figure("memory", f"{what} allocated by Python", "kB"),
    }
    for kind in rounds_of(figures, sizes.memory_rounds):
        command = [sys.executable, __file__, "_memory", kind, str(sizes.loops), str(sizes.window)]
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        figures[kind].values.append(json.loads(found.stdout))
    return list(figures.values())


# Results


def main() -> None:
    if sys.argv[1:2] == ["_memory"]:  # the processes that the case starts
        kind, loops, seconds = sys.argv[2:]
        asyncio.run(use_memory(kind, int(loops), float(seconds)))
        return
    cases = {"sleep": measure_sleeping, "no sleep": measure_busy, "memory": measure_memory}
    parser = make_parser(__doc__, cases, Sizes())
    arguments = parser.parse_args()
    sizes = sizes_in(arguments, Sizes())
    figures = [figure for case in arguments.cases for figure in cases[case](sizes)]
    note = f"Medians of {sizes.rounds} rounds, of {sizes.memory_rounds} for memory"
    report(figures, sizes, note, arguments.json)


if __name__ == "__main__":
    aloop.config.profile = False  # whatever the settings of this user and machine are
    # That loops which never wait make more records than the disk takes is no news here.
    logging.getLogger("aloop").setLevel(logging.ERROR)
    main()
