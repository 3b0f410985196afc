"""What it costs to run a thousand main loops in one event loop, with one log file for all.

- ``sleep``: loops with a step that sleeps 50 ms and one record a step, each with a `SQLiteLog` of
  its own over the same file, held against bare asyncio tasks that await the same step and record
  nothing. Both start at once, with `asyncio.gather`. Steps are counted in a window that opens when
  every loop has done its first step, and closes before any of them is asked to stop. A heartbeat
  sleeps 5 ms again and again meanwhile; it is late by what it slept longer. Starting is from
  making the first loop until the last one has done a step, 50 ms of it asleep; stopping is from
  the first ``request_finish("batch")`` until the last run has returned, its records on the disk.
- ``no sleep``: 64 loops with a step that does nothing, with the log in SQLite and in memory: how
  evenly they share an event loop that all of them could fill alone.
- ``memory``: what the loops of ``sleep`` add to a process by the end of the window, over what it
  had before they were made: of its resident memory, and of what Python has allocated as
  `tracemalloc` counts it; each in a new process, because tracing takes memory and time itself. A
  few loops have run there before, for what happens once in a process is no part of the figure.

The loops listen to signals as they do by default, so that starting and stopping has all its parts.

Every figure is the median over the rounds; cases that are held against each other run in the same
round, in an order shuffled anew, and a ratio is the median of those of the rounds. What the file
has of each run is compared with the steps that the run has done.

Run it from the root of the repository, in an environment with aloop::

    pip install -e .
    python benchmarks/many.py
    python benchmarks/many.py --loops 100 --rounds 3

The files are made in the directory for temporary files; set TMPDIR to measure another disk.
"""

import argparse
import asyncio
import gc
import json
import logging
import sqlite3
import statistics
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Coroutine, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, Protocol

from log import (
    SEED,
    Figure,
    describe_environment,
    format_table,
    memory_mb,
    new_file,
    positive,
    rounds_of,
)

import aloop

STEP_S = 0.05
HEARTBEAT_S = 0.005
POLL_S = 0.005
BATCHES = range(1_000_000_000)  # more than anybody gets to
WARM_UP_LOOPS = 20
WARM_UP_S = 0.3


@dataclass
class Sizes:
    """How much each case does."""

    loops: int = 1000
    loops_without_sleep: int = 64
    window: float = 3.0
    """How many seconds steps are counted."""
    rounds: int = 5
    memory_rounds: int = 3


class Step(Protocol):
    """A step that counts how often it was done."""

    done: int

    async def __call__(self, batch: int) -> None: ...


class Sleep:
    """Trains on a batch somewhere else: it takes its time, and nothing of this process."""

    def __init__(self) -> None:
        self.done = 0

    async def __call__(self, batch: int) -> None:
        await asyncio.sleep(STEP_S)
        self.done += 1


class Nothing:
    """Does nothing, and never waits."""

    def __init__(self) -> None:
        self.done = 0

    async def __call__(self, batch: int) -> None:
        self.done += 1


class Recorder(aloop.TrainingExtension):
    """Writes one record after each batch."""

    async def after_batch(self, batch: int) -> None:
        self.main_loop.log.current_row["cost"] = batch * 0.25


@dataclass
class Window:
    """What was seen while all ran."""

    rate: float
    """Steps a second, of all together."""
    fairness: float
    """The steps of the slowest over those of the fastest."""
    late_ms: float
    """How late the heartbeat was: the 99th percentile."""
    cpu: float
    """Of the time of one core, what the process took."""


@dataclass
class Measured:
    """What came of running many at once."""

    start_s: float
    window: Window
    stop_s: float


async def beat(late_s: list[float]) -> None:
    """Sleep again and again, and note how much too long that was."""
    while True:
        begin = perf_counter()
        await asyncio.sleep(HEARTBEAT_S)
        late_s.append(perf_counter() - begin - HEARTBEAT_S)


async def look(steps: Sequence[Step], seconds: float) -> Window:
    """Count for so many seconds what those do that are under way."""
    late_s: list[float] = []
    heart = asyncio.create_task(beat(late_s))
    cpu_s, begin = process_time(), perf_counter()
    before = [step.done for step in steps]
    await asyncio.sleep(seconds)
    counts = [step.done - done for step, done in zip(steps, before, strict=True)]
    took_s, cpu_s = perf_counter() - begin, process_time() - cpu_s
    heart.cancel()
    return Window(
        rate=sum(counts) / took_s,
        fairness=min(counts) / max(counts),
        late_ms=statistics.quantiles(late_s, n=100)[98] * 1000,
        cpu=cpu_s / took_s,
    )


async def all_begun(steps: Sequence[Step], runs: "asyncio.Future[Any]") -> None:
    """Wait until every one has done a step."""
    while not all(step.done for step in steps):
        if runs.done():
            await runs  # raises what one of them failed with
        await asyncio.sleep(POLL_S)


async def run_bare(
    new_step: Callable[[], Step], count: int, look: Callable[[Sequence[Step]], Coroutine[Any, Any, Any]]
) -> tuple[float, Any, float]:
    """Run so many tasks that await a step again and again; give how long they took to start."""


async def run_bare_(new_step: Callable[[], Step], count: int, seconds: float) -> Measured:
    """Run so many tasks that do nothing but await a step again and again."""
