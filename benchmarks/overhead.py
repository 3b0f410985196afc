"""What the main loop itself costs: microseconds an iteration around a step that does nothing.

Measured side by side in one process, over the same number of batches:

- aloop with 0 and with 5 extensions that have an asynchronous `after_batch`, with the log in
  memory and in SQLite, and with 5 extensions one of which writes a record a step. The time is
  that of the whole `MainLoop.run`: with SQLite it includes opening a new file and, at the end,
  waiting until every record is on the disk;
- a bare ``async for`` over an asynchronous generator that awaits the same step;
- PyTorch-Ignite's `Engine`, with 0 and with 5 handlers of ``ITERATION_COMPLETED`` and no record.

Every round runs every case once, in an order shuffled anew. A case's time is the median over the
rounds. Its ratio is to Ignite with as many handlers as the case has extensions: the median of the
ratios taken within each round, which a machine that is slower for a while does not move. The
budget is the ratio that aloop must not exceed.

Run it from the root of the repository, in an environment with aloop and pytorch-ignite (which
brings torch)::

    pip install -e . pytorch-ignite
    python benchmarks/overhead.py

Without pytorch-ignite the ratios are left out. The SQLite files are made in the directory for
temporary files; set TMPDIR to measure another disk.
"""

import argparse
import asyncio
import gc
import json
import os
import platform
import random
import sqlite3
import statistics
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import aloop

try:
    from ignite.engine import Engine, Events
except ImportError:
    Engine = Events = None

SEED = 1
DEFAULT_BATCHES = 30_000
DEFAULT_ROUNDS = 15


@dataclass
class Case:
    """One line of the table: what is timed, and what it is held against."""

    name: str
    run: Callable[[int], float]
    """Runs this many batches and gives the seconds they took."""
    baseline: str | None = None
    """The name of the case that the ratio is taken to."""
    budget: float | None = None
    """The ratio that must not be exceeded."""
    us: list[float] = field(default_factory=list)
    """Microseconds an iteration, one figure a round."""

    @property
    def median_us(self) -> float:
        return statistics.median(self.us)

    @property
    def quartiles_us(self) -> tuple[float, float]:
        """The first and the third quartile of the rounds."""
        if len(self.us) < 2:
            return self.us[0], self.us[0]
        low, _, high = statistics.quantiles(self.us, method="inclusive")
        return low, high


async def step(batch: int) -> None:
    """Train on a batch: nothing."""


class Watcher(aloop.TrainingExtension):
    """Is called after each batch and does nothing."""

    async def after_batch(self, batch: int) -> None:
        pass


class Recorder(aloop.TrainingExtension):
    """Writes one record after each batch."""

    async def after_batch(self, batch: int) -> None:
        self.main_loop.log.current_row["cost"] = 0.5


def make_extensions(count: int, *, records: bool) -> list[aloop.TrainingExtension]:
    """Make so many extensions with `after_batch`; with `records` the first of them records."""
    extensions: list[aloop.TrainingExtension] = [Watcher(f"watcher {n}") for n in range(count)]
    if records:
        extensions[0] = Recorder("recorder")
    return extensions


def time_aloop(
    batches: int, log: aloop.TrainingLog, extensions: list[aloop.TrainingExtension]
) -> float:
    """Time one run of one epoch."""
    main_loop = aloop.MainLoop(
        step,
        range(batches),
        log=log,
        # FinishAfter acts after the epoch alone, so it costs nothing after a batch.
        extensions=[*extensions, aloop.FinishAfter(after_n_epochs=1)],
        signals="off",
    )

    async def run() -> float:
        begin = perf_counter()
        await main_loop.run()
        return perf_counter() - begin

    seconds = asyncio.run(run())
    assert log.status["iterations_done"] == batches
    return seconds


def aloop_in_memory(extension_count: int, *, records: bool = False) -> Callable[[int], float]:
    """Make the case of so many extensions and the log in memory."""

    def run(batches: int) -> float:
        log = aloop.TrainingLog()
        extensions = make_extensions(extension_count, records=records)
        return time_aloop(batches, log, extensions)

    return run


def aloop_in_sqlite(extension_count: int, *, records: bool = False) -> Callable[[int], float]:
    """Make the case of so many extensions and the log in a new SQLite file."""

    def run(batches: int) -> float:
        with tempfile.TemporaryDirectory() as directory:
            database = Path(directory) / "log.sqlite"
            log = aloop.SQLiteLog(database)
            extensions = make_extensions(extension_count, records=records)
            seconds = time_aloop(batches, log, extensions)
            assert count_records(database, "cost") == (batches if records else 0)
            return seconds

    return run


def count_records(database: Path, key: str) -> int:
    """Count the records of a key in a log file."""
    connection = sqlite3.connect(database)
    try:
        query = "SELECT COUNT(*) FROM entries WHERE key = ?"
        return connection.execute(query, (key,)).fetchone()[0]
    finally:
        connection.close()


def bare_async_for(batches: int) -> float:
    """Time the loop that a user would write without a library."""

    async def generate() -> AsyncIterator[int]:
        for batch in range(batches):
            yield batch

    async def run() -> float:
        begin = perf_counter()
        async for batch in generate():
            await step(batch)
        return perf_counter() - begin

    return asyncio.run(run())


def ignite_engine(handler_count: int) -> Callable[[int], float]:
    """Make the case of Ignite's engine with so many handlers."""

    def process(engine: Any, batch: int) -> None:
        pass

    def handler(engine: Any) -> None:
        pass

    def run(batches: int) -> float:
        engine = Engine(process)
        for _ in range(handler_count):
            engine.add_event_handler(Events.ITERATION_COMPLETED, handler)
        data = range(batches)
        begin = perf_counter()
        engine.run(data, max_epochs=1)
        seconds = perf_counter() - begin
        assert engine.state.iteration == batches
        return seconds

    return run


def make_cases() -> list[Case]:
    """Give the cases, in the order of the table."""
    bare = Case("bare `async for`", bare_async_for)
    without, with_5 = "Ignite, 0 handlers", "Ignite, 5 handlers"
    ours = [
        Case("aloop, 0 extensions, memory", aloop_in_memory(0), without, 0.2),
        Case("aloop, 5 extensions, memory", aloop_in_memory(5), with_5, 0.25),
        Case("aloop, 5 extensions, 1 record, memory", aloop_in_memory(5, records=True), with_5),
        Case("aloop, 0 extensions, SQLite", aloop_in_sqlite(0), without),
        Case("aloop, 5 extensions, SQLite", aloop_in_sqlite(5), with_5),
        Case(
            "aloop, 5 extensions, 1 record, SQLite", aloop_in_sqlite(5, records=True), with_5, 0.6
        ),
    ]
    if Engine is None:
        for case in ours:
            case.baseline = None
        return [bare, *ours]
    return [bare, Case(without, ignite_engine(0)), Case(with_5, ignite_engine(5)), *ours]


def measure(cases: list[Case], batches: int, rounds: int) -> None:
    """Run every case once a round, interleaved."""
    shuffled = random.Random(SEED)
    for case in cases:
        case.run(batches // 10 + 1)  # what happens once in a process is no part of the figures
    # torch brings a million objects that no case uses; collecting them takes 0.1 s each time.
    gc.collect()
    gc.freeze()
    for _ in range(rounds):
        for case in shuffled.sample(cases, len(cases)):
            gc.collect()
            case.us.append(case.run(batches) / batches * 1e6)


def ratio(case: Case, cases: list[Case]) -> float | None:
    """Give the ratio of a case to its baseline, None for a case that has none."""
    for other in cases:
        if other.name == case.baseline:
            return statistics.median(a / b for a, b in zip(case.us, other.us, strict=True))
    return None


def describe_environment() -> dict[str, str | int]:
    """Tell what the figures depend on besides the code."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    environment: dict[str, str | int] = {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": cores,
        "aloop": aloop.__version__,
    }
    if Engine is not None:
        environment |= {"ignite": version("pytorch-ignite"), "torch": version("torch")}
    return environment


def format_table(cases: list[Case]) -> str:
    """Give the results as a Markdown table."""
    lines = [
        "| case | µs an iteration | quartiles | ratio to Ignite | budget |",
        "|---|--:|--:|--:|--:|",
    ]
    for case in cases:
        low, high = case.quartiles_us
        cells = [case.name, f"{case.median_us:.2f}", f"{low:.2f}-{high:.2f}"]
        measured = ratio(case, cases)
        cells.append("" if measured is None else f"{measured:.3f}")
        if case.budget is None:
            cells.append("")
        elif measured is None:
            cells.append(f"{case.budget:g}")
        else:
            cells.append(f"{case.budget:g} {'met' if measured <= case.budget else 'missed'}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def as_data(cases: list[Case], batches: int, rounds: int) -> dict[str, Any]:
    """Give the results, every round of them, as plain data."""
    results = []
    for case in cases:
        data = asdict(case)
        del data["run"]
        results.append(data | {"median_us": case.median_us, "ratio": ratio(case, cases)})
    return {
        "environment": describe_environment(),
        "batches": batches,
        "rounds": rounds,
        "cases": results,
    }


def at_least_one(text: str) -> int:
    """Read a whole number from 1 on from the command line."""
    number = int(text)
    if number < 1:
        raise ValueError(f"{number} is less than 1")
    return number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--batches", type=at_least_one, default=DEFAULT_BATCHES, help="default: %(default)s"
    )
    parser.add_argument(
        "--rounds", type=at_least_one, default=DEFAULT_ROUNDS, help="default: %(default)s"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all figures there")
    arguments = parser.parse_args()

    aloop.config.profile = False  # whatever the settings of this user and machine are
    if Engine is None:
        print("pytorch-ignite cannot be imported: no comparison, no ratios.\n")
    cases = make_cases()
    measure(cases, arguments.batches, arguments.rounds)
    print(format_table(cases))
    print(f"\nMedians of {arguments.rounds} rounds of {arguments.batches:,} batches; seed {SEED}.")
    print(", ".join(f"{name} {value}" for name, value in describe_environment().items()))
    if arguments.json is not None:
        data = as_data(cases, arguments.batches, arguments.rounds)
        arguments.json.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
