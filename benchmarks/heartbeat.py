"""What a main loop leaves of the event loop to the rest of a service, and what that takes.

- ``steps``: numpy steps of 1, 10 and 100 ms, as plain functions, which a `MainLoop` runs in its
  worker thread. Beside them a heartbeat sleeps 5 ms again and again; it is late by how much longer
  that took. Their rate is held against a bare ``for`` loop over the same function, without asyncio
  and without a heartbeat. Peers: the same loop with ``where="inline"``, and the bare ``for`` loop
  in one call of `asyncio.to_thread` beside the heartbeat, which is the best that a thread can do.
- ``hop``: a function that does nothing, through a worker of aloop and through `asyncio.to_thread`,
  awaited one after another; and as the step of a `MainLoop`, its iteration included.
- ``stall``: an extension that blocks the event loop for 200 ms in every tenth ``after_batch``, with
  what the stall guard says of it; and the same with the call in ``await run_in_worker(…)``.
- ``guard``: how much longer a run of steps that do nothing takes with the stall guard, with 0 and
  with 5 extensions; what its thread takes to begin and to end, once a run; and what processor time
  a run takes that waits for a quiet stream.

The matrices are sized so that their product takes the time that is asked for, here and now. A rate
is counted from the end of the first step to that of the last.

Every figure is the median over the rounds; cases that are held against each other run in the same
round, in an order shuffled anew, and a ratio is the median of those of the rounds.

Run it from the root of the repository, in an environment with aloop::

    pip install -e .
    python benchmarks/heartbeat.py
    python benchmarks/heartbeat.py --cases steps --rounds 15

With two cores, whatever else the machine does is in the figures of the heartbeat.
"""

import asyncio
import logging
import os
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter, process_time, sleep
from typing import Any

# Before numpy is imported, which reads it then. With threads of its own a product would take every
# core, and the heartbeat would tell who gets one of them, not whether the event loop was free.
os.environ |= dict.fromkeys(
    ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)

import numpy as np
from figures import SEED, Figure, make_parser, report, rounds_of, sizes_in

import aloop
from aloop.offload import Worker
from aloop.stalls import watched

HEARTBEAT_S = 0.005
LATE_MS = 2.5
RATE_BUDGETS = {1: 0.83, 10: 0.95, 100: 0.98}
"""By the milliseconds of a step."""

STALL_WARNING_S = 0.1  # the default
STALLS = 3  # a run
STALL_EVERY = 10  # batches
STALL_S = 0.2
STALL_STEP_S = 0.01
LATE_99 = "heartbeat late by, 99th percentile"


@dataclass
class Sizes:
    """How much each case does."""

    window: float = 0.6
    """How many seconds of steps a run has; short, for what is compared to meet the same machine."""
    hops: int = 500
    guard_batches: int = 300_000
    """Many: to start and end the thread of the guard takes a run some 0.3 ms, which is no part."""
    quiet: float = 2.0
    """How many seconds a run waits for its stream."""
    rounds: int = 11
    hop_rounds: int = 61
    """Many and short, for where the system puts the two threads is another matter each time."""
    stall_rounds: int = 7
    guard_rounds: int = 31
    quiet_rounds: int = 3


def make_loop(step: Any, stream: Any, *extensions: Any, **options: Any) -> aloop.MainLoop:
    """Make a loop of one epoch."""
    return aloop.MainLoop(
        step,
        stream,
        log=aloop.TrainingLog(),
        extensions=[*extensions, aloop.FinishAfter(after_n_epochs=1)],
        signals="off",
        **options,
    )


@asynccontextmanager
async def heartbeat() -> AsyncIterator[list[float]]:
    """Give how late each beat was, in milliseconds, of a heart that beats beside the body."""

    async def beat() -> None:
        while True:
            begin = perf_counter()
            await asyncio.sleep(HEARTBEAT_S)
            late_ms.append((perf_counter() - begin - HEARTBEAT_S) * 1000)

    late_ms: list[float] = []
    heart = asyncio.create_task(beat(), name="heartbeat")
    try:
        yield late_ms
    finally:
        await asyncio.sleep(2 * HEARTBEAT_S)  # a beat that was held up to the end is one, too
        heart.cancel()


def percentile_99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[98]


class Warnings(logging.Handler):
    """Keeps what aloop warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextmanager
def warnings_of_aloop() -> Iterator[list[logging.LogRecord]]:
    """Give what aloop warns of in the body, of which the terminal sees nothing."""
    logger, handler = logging.getLogger("aloop"), Warnings()
    logger.addHandler(handler)
    try:
        yield handler.records
    finally:
        logger.removeHandler(handler)


# Steps


class Product:
    """A step: the product of two matrices of this size. Notes when it ended."""

    def __init__(self, size: int) -> None:
        made = np.random.default_rng(SEED)
        self.size = size
        self._left, self._right = made.random((2, size, size))
        # Given, or allocating it would be a part of the step that holds the interpreter lock.
        self._product = np.empty((size, size))
        self.ended_at: list[float] = []

    def __call__(self, batch: int) -> None:
        np.matmul(self._left, self._right, out=self._product)
        self.ended_at.append(perf_counter())

    @property
    def rate(self) -> float:
        """How many there were in a second, since the end of the first one."""
        return (len(self.ended_at) - 1) / (self.ended_at[-1] - self.ended_at[0])


def product_of(seconds: float) -> Product:
    """Find the size of matrices whose product takes so long, to a twentieth where it can.

    What counts is the fastest of some, which is what it takes when nothing comes between.
    """
    size = 64
    for _ in range(10):
        product = Product(size)
        for batch in range(max(4, round(0.2 / seconds))):
            product(batch)
        ends = product.ended_at
        taken = min(b - a for a, b in pairwise(ends))
        if abs(taken / seconds - 1) < 0.05:
            break
        size = max(8, round(size * min(4.0, (seconds / taken) ** (1 / 3))))
    return Product(size)


def run_bare(step: Product, steps: int) -> None:
    """Do the steps as a program without asyncio does."""
    for batch in range(steps):
        step(batch)


async def run_loop(step: Product, steps: int) -> None:
    await make_loop(step, range(steps)).run()


async def run_inline(step: Product, steps: int) -> None:
    await make_loop(aloop.as_algorithm(step, where="inline"), range(steps)).run()


async def run_in_one_call(step: Product, steps: int) -> None:
    await asyncio.to_thread(run_bare, step, steps)


Run = Callable[[Product, int], Awaitable[None]]


async def beside_heartbeat(run: Run, step: Product, steps: int) -> list[float]:
    """Do the steps beside a heartbeat; gives by how much it was late."""
    async with heartbeat() as late_ms:
        await run(step, steps)
    return late_ms


def measure_steps(sizes: Sizes) -> list[Figure]:
    return [
        figure
        for ms, budget in RATE_BUDGETS.items()
        for figure in measure_steps_of(ms, budget, sizes)
    ]


def measure_steps_of(ms: int, budget: float, sizes: Sizes) -> list[Figure]:
    """Measure steps of so many milliseconds."""
    bare, ours = "bare `for` loop", "main loop"
    runs: dict[str, Run | None] = {
        bare: None,
        ours: run_loop,
        "main loop, inline": run_inline,
        "one call in a thread": run_in_one_call,
    }
    size, steps = product_of(ms / 1000).size, max(3, round(sizes.window * 1000 / ms))
    rates: dict[str, list[float]] = {name: [] for name in runs}
    late: dict[str, list[list[float]]] = {name: [] for name in runs}
    with warnings_of_aloop():  # of steps that are inline; the case "stall" looks at them
        for name in rounds_of(runs, sizes.rounds):
            step, run = Product(size), runs[name]
            if run is None:
                run_bare(step, steps)
            else:
                late[name].append(asyncio.run(beside_heartbeat(run, step, steps)))
            assert len(step.ended_at) == steps
            rates[name].append(step.rate)

    def figure(name: str, part: str, unit: str, values: list[float]) -> Figure:
        return Figure("steps", f"{ms} ms, {name}: {part}", unit, values)

    def ratio(name: str) -> Figure:
        pairs = zip(rates[name], rates[bare], strict=True)
        return figure(name, "ratio of the rates", "", [a / b for a, b in pairs])

    def late_by(name: str, part: str, value: Callable[[list[float]], float]) -> Figure:
        return figure(name, f"heartbeat late by, {part}", "ms", list(map(value, late[name])))

    found = [figure(bare, "steps", "1/s", rates[bare])]
    for name in list(runs)[1:]:
        found += [
            ratio(name),
            late_by(name, "median", statistics.median),
            late_by(name, "99th percentile", percentile_99),
        ]
    ours_ratio, ours_late = found[1], found[3]
    ours_ratio.budget, ours_ratio.at_least = budget, True
    ours_late.budget = LATE_MS
    return found


# The worker hop


def nothing(batch: int) -> None:
    """Train on a batch: nothing."""


async def hop_through_worker(hops: int) -> None:
    worker = Worker()
    for hop in range(hops):
        await worker.run(nothing, hop)
    worker.close()


async def hop_through_to_thread(hops: int) -> None:
    for hop in range(hops):
        await asyncio.to_thread(nothing, hop)


async def hop_as_step(hops: int) -> None:
    await make_loop(nothing, range(hops)).run()


async def timed(work: Awaitable[None]) -> float:
    """Give the seconds that it takes."""
    begin = perf_counter()
    await work
    return perf_counter() - begin


def measure_hop(sizes: Sizes) -> list[Figure]:
    theirs, ours, step = "asyncio.to_thread", "Worker.run", "MainLoop, an iteration"
    cases = {theirs: hop_through_to_thread, ours: hop_through_worker, step: hop_as_step}
    figures = {name: Figure("hop", name, "µs") for name in cases}
    for run in cases.values():
        asyncio.run(run(sizes.hops // 10 + 1))  # what happens once is no part of the figures
    for name in rounds_of(cases, sizes.hop_rounds):
        seconds = asyncio.run(timed(cases[name](sizes.hops)))
        figures[name].values.append(seconds / sizes.hops * 1e6)

    def ratio(name: str, budget: float | None = None) -> Figure:
        pairs = zip(figures[name].values, figures[theirs].values, strict=True)
        return Figure("hop", f"{name}: ratio to {theirs}", "", [a / b for a, b in pairs], budget)

    return [*figures.values(), ratio(ours, 0.6), ratio(step)]


# Who blocks the event loop


class Uploader(aloop.SimpleExtension):
    """Calls what blocks its thread, as one does who copies a file somewhere far away."""

    def __init__(self, *, in_worker: bool) -> None:
        super().__init__("uploader", every_n_batches=STALL_EVERY)
        self._in_worker = in_worker

    async def do(self, which_callback: Any, *args: Any) -> None:
        if self._in_worker:
            await aloop.run_in_worker(sleep, STALL_S)
        else:
            sleep(STALL_S)  # noqa: ASYNC251 - which is what is measured


@dataclass
class Stalled:
    """What came of a run with such an extension."""

    late_ms: float
    named: float
    """How many of the times that it was called the guard has counted against it."""
    others: int
    """How often it has said anything else."""


async def run_stalled(step: Product, *, in_worker: bool) -> Stalled:
    with warnings_of_aloop() as records:
        async with heartbeat() as late_ms:
            await make_loop(step, range(STALLS * STALL_EVERY), Uploader(in_worker=in_worker)).run()
    culprit = "the extension 'uploader' in after_batch "
    ours = [record for record in records if record.getMessage().startswith(culprit)]
    # The first time is said at once, with where it was; more than one are counted at the end.
    named = ours[-1].args[1] if len(ours) > 1 else len(ours)
    return Stalled(percentile_99(late_ms), named / STALLS, len(records) - len(ours))


def measure_stall(sizes: Sizes) -> list[Figure]:
    cases = {"blocks the event loop": False, "in the worker": True}
    size = product_of(STALL_STEP_S).size
    found: dict[str, list[Stalled]] = {name: [] for name in cases}
    for name in rounds_of(cases, sizes.stall_rounds):
        found[name].append(asyncio.run(run_stalled(Product(size), in_worker=cases[name])))

    def figure(name: str, part: str, unit: str, value: Callable[[Stalled], float]) -> Figure:
        return Figure("stall", f"{name}: {part}", unit, [value(run) for run in found[name]])

    blocks, offloaded = (
        (
            figure(name, LATE_99, "ms", lambda run: run.late_ms),
            figure(name, "named, of the times it was called", "", lambda run: run.named),
            figure(name, "others named", "", lambda run: run.others),
        )
        for name in cases
    )
    offloaded[0].budget = LATE_MS
    blocks[1].budget, blocks[1].at_least = 1, True
    for never in blocks[2], *offloaded[1:]:
        never.values = [sum(never.values)]  # of all rounds: one is too many
        never.budget = 0
    return [*blocks, *offloaded]


# What the stall guard costs


async def no_op(batch: int) -> None:
    """Train on a batch: nothing."""


class Watcher(aloop.TrainingExtension):
    """Is called after each batch and does nothing."""

    async def after_batch(self, batch: int) -> None:
        pass


async def time_guarded(extensions: int, batches: int, warning_s: float) -> float:
    """Time a run of steps that do nothing."""
    watchers = [Watcher(f"watcher {n}") for n in range(extensions)]
    return await timed(make_loop(no_op, range(batches), *watchers, stall_warning_s=warning_s).run())


async def use_processor(quiet_s: float, warning_s: float) -> float:
    """Give the processor time, in milliseconds a second, of a run that waits for its stream."""

    async def quiet_stream() -> AsyncIterator[int]:
        await asyncio.sleep(quiet_s)
        yield 0

    main_loop = make_loop(no_op, quiet_stream, stall_warning_s=warning_s)
    cpu_s, begin = process_time(), perf_counter()
    await main_loop.run()
    return (process_time() - cpu_s) * 1000 / (perf_counter() - begin)


async def time_guard() -> float:
    """Give the microseconds that beginning and ending to watch an event loop take."""
    guard = watched(STALL_WARNING_S)
    begin = perf_counter()
    guard.__enter__()
    begun = perf_counter()
    await asyncio.sleep(STALL_WARNING_S / 4)  # by which time its thread is at work
    end = perf_counter()
    guard.__exit__(None, None, None)
    return (perf_counter() - end + begun - begin) * 1e6


def measure_guard(sizes: Sizes) -> list[Figure]:
    guards = {"without": 0.0, "with": STALL_WARNING_S}
    cases = [(extensions, guard) for extensions in (0, 5) for guard in guards]
    us: dict[tuple[int, str], list[float]] = {case: [] for case in cases}
    batches = sizes.guard_batches
    for extensions, guard in rounds_of(cases, sizes.guard_rounds):
        seconds = asyncio.run(time_guarded(extensions, batches, guards[guard]))
        us[extensions, guard].append(seconds / batches * 1e6)
    found = [
        Figure("guard", f"{extensions} extensions, {guard}: an iteration", "µs", values)
        for (extensions, guard), values in us.items()
    ]
    for extensions in 0, 5:
        pairs = zip(us[extensions, "with"], us[extensions, "without"], strict=True)
        added = [(a / b - 1) * 100 for a, b in pairs]  # of a ratio too few digits would be shown
        found.append(Figure("guard", f"{extensions} extensions: added by the guard", "%", added, 1))
    beginning = [asyncio.run(time_guard()) for _ in range(sizes.guard_rounds)]
    found.append(Figure("guard", "begin and end of the guard, once a run", "µs", beginning))

    processor: dict[str, list[float]] = {guard: [] for guard in guards}
    for guard in rounds_of(guards, sizes.quiet_rounds):
        used = asyncio.run(use_processor(sizes.quiet, guards[guard]))
        processor[guard].append(used)
    return found + [
        Figure("guard", f"a quiet stream, {guard}: processor time", "ms/s", values)
        for guard, values in processor.items()
    ]


# Results


def main() -> None:
    cases = {
        "steps": measure_steps,
        "hop": measure_hop,
        "stall": measure_stall,
        "guard": measure_guard,
    }
    parser = make_parser(__doc__, cases, Sizes())
    arguments = parser.parse_args()
    sizes = sizes_in(arguments, Sizes())
    figures = [figure for case in arguments.cases for figure in cases[case](sizes)]
    note = (
        f"Medians of {sizes.rounds} rounds for steps, {sizes.hop_rounds} for the hop, "
        f"{sizes.stall_rounds} for stalls, {sizes.guard_rounds} for the guard, "
        f"{sizes.quiet_rounds} for a quiet stream"
    )
    report(figures, sizes, note, arguments.json)


if __name__ == "__main__":
    # Whatever the settings of this user and machine are.
    aloop.config.profile = False
    aloop.config.stall_warning_s = STALL_WARNING_S
    main()
