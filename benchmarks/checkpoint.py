"""What a checkpoint of 100 MB of parameters costs: the event loop, the training, and in time.

- ``heartbeat``: a `MainLoop` of which one checkpoint after another is requested, each when the one
  before is there. Beside it a heartbeat sleeps 5 ms again and again; it is late by how much longer
  that took. Only those beats count during which a checkpoint was under way. They are held against
  those of the same loop while nothing is saved, and while a thread writes the same arrays with
  `safetensors.numpy.save_file` and fsync. Once with steps that wait 1 ms each, as for what is
  computed elsewhere, and once with steps that never wait, which leave the threads that save only
  what the loop gives away of the interpreter lock.
- ``save``: the time of one checkpoint, from the request until its path is there, and what the log
  has of it as `checkpoint_seconds`, in a loop whose steps wait 1 ms. It is held against
  `safetensors.numpy.save_file` of the same arrays with fsync of the file and of its directory, and
  against `numpy.savez` with and without, during which the loop is paused. Besides, how long the
  training stands still: the longest time between the end of a step and the beginning of the next,
  from the request until the path is there, and over as long a time in which nothing is saved.

- ``resume``: the time from `run()` until the first batch of a training that goes on at iteration
  10,000,000, in its 10,000th epoch, with a million records in its log and the arrays as its model.

A checkpoint is more than the file of its parameters: the state beside them, their checksums, for
which all is read again, and the removal of the oldest one, once there are four. The parameters are
random numbers of 32 bits; the log is a SQLite file beside the checkpoints. A MB is 10^6 bytes.

Every figure is the median over the rounds; cases that are held against each other run in the same
round, in an order shuffled anew, and a ratio is the median of those of the rounds. The last
checkpoint of a run is read again and compared, array by array, with the parameters.

Run it from the root of the repository, in an environment with aloop::

    pip install -e .
    python benchmarks/checkpoint.py
    python benchmarks/checkpoint.py --cases save --megabytes 10 --directory /mnt/disk

The files are made in a new directory in the one for temporary files, or in the one that is given,
and take five times the size of the parameters.
"""

import asyncio
import logging
import os
import statistics
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import safetensors
from figures import SEED, Figure, make_parser, report, rounds_of, sizes_in
from safetensors.numpy import load_file, save_file

import aloop
from aloop.disk import sync_directory

HEARTBEAT_S = 0.005
WAIT_S = 0.001
BATCHES = range(1_000_000_000)  # more than anybody gets to
WARM_UP_S = 0.2
WARM_UP_ROUNDS = 3
"""What happens once in a process or a run is no part of the figures, and three checkpoints stay."""

OURS = "checkpoint"

Arrays = dict[str, np.ndarray]


@dataclass
class Sizes:
    """How much each case does."""

    megabytes: float = 100.0
    """Of parameters."""
    arrays: int = 10
    """How many of them there are, all of one size."""
    saves: int = 10
    """How many a run of the heartbeat sees."""
    quiet: float = 2.0
    """How many seconds a run of the heartbeat lasts that saves nothing."""
    rounds: int = 7
    save_rounds: int = 15


def make_arrays(sizes: Sizes) -> Arrays:
    """Make what is saved; random, for no disk to make less of it."""
    made, count = np.random.default_rng(SEED), round(sizes.megabytes * 1e6 / sizes.arrays / 4)
    return {f"weights {n}": made.random(count, dtype=np.float32) for n in range(sizes.arrays)}


class Step:
    """Trains on a batch: nothing, or nothing but a wait. Notes the pauses between the steps."""

    def __init__(self, *, waits: bool) -> None:
        self._waits = waits
        self._ended_at = perf_counter()
        self.done = 0
        self.longest_pause_s = 0.0
        """Since it was last set to 0."""

    async def __call__(self, batch: int) -> None:
        pause_s = perf_counter() - self._ended_at
        if pause_s > self.longest_pause_s:
            self.longest_pause_s = pause_s
        if self._waits:
            await asyncio.sleep(WAIT_S)
        self.done += 1
        self._ended_at = perf_counter()


@asynccontextmanager
async def training(directory: Path, arrays: Arrays, step: Step) -> AsyncIterator[aloop.MainLoop]:
    """Have a loop train beside the body, with checkpoints only when they are asked for.

    What there is in the directory is left there, so that old checkpoints are removed as ever.
    """
    with tempfile.TemporaryDirectory(dir=directory) as logs:
        main_loop = aloop.MainLoop(
            step,
            BATCHES,
            model=aloop.ParameterDict(arrays),
            log=aloop.SQLiteLog(Path(logs) / "log.sqlite"),
            extensions=[
                aloop.Checkpoint(
                    directory / "checkpoints", after_training=False, on_interrupt=False
                )
            ],
            signals="off",
        )
        async with main_loop.running() as handle:
            await asyncio.sleep(WARM_UP_S)
            yield main_loop
            main_loop.request_finish("batch")
            await handle.wait()


def check_checkpoint(path: Path, arrays: Arrays) -> None:
    """Compare, without aloop, the parameters in a checkpoint with what had to be saved."""
    saved = load_file(path / "model.safetensors")
    same = saved.keys() == arrays.keys()
    same = same and all(np.array_equal(saved[name], arrays[name]) for name in arrays)
    assert same, f"{path}: not what was saved"


# What others do


def sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_with_safetensors(arrays: Arrays, path: Path) -> None:
    save_file(arrays, path)
    sync_file(path)
    sync_directory(path.parent)


def save_with_numpy(arrays: Arrays, path: Path, *, synced: bool) -> None:
    np.savez(path, **arrays)
    if synced:
        sync_file(path)
        sync_directory(path.parent)


@contextmanager
def bare_file(directory: Path) -> Iterator[Path]:
    """Give the path of a file to write, which is gone afterwards."""
    path = directory / "bare.npz"  # a name to which numpy adds nothing
    try:
        yield path
    finally:
        # Or the next one to sync would wait for what this one has left to write.
        with suppress(FileNotFoundError):
            sync_file(path)
        path.unlink(missing_ok=True)
        sync_directory(directory)


# How free the event loop stays


@dataclass
class Watched:
    """What was seen of a run."""

    beats: list[tuple[float, float]] = field(default_factory=list)
    """When each began and when it ended."""
    busy: list[tuple[float, float]] = field(default_factory=list)
    """From when to when it counts."""
    steps: int = 0
    """That were done in those times."""

    def late_ms(self) -> list[float]:
        """Give how late those beats were that touch one of the times that count."""
        return [
            (ended - began - HEARTBEAT_S) * 1000
            for began, ended in self.beats
            if any(began < end and ended > begin for begin, end in self.busy)
        ]

    def rate(self) -> float:
        """Give how many steps there were a second, in the times that count."""
        return self.steps / sum(end - begin for begin, end in self.busy)


async def beat(beats: list[tuple[float, float]]) -> None:
    while True:
        begin = perf_counter()
        await asyncio.sleep(HEARTBEAT_S)
        beats.append((begin, perf_counter()))


Job = Callable[[aloop.MainLoop, Path], Awaitable[Any]]
"""What is done again and again beside a loop; it may write to a path."""


async def watch(job: Job, step: Step, arrays: Arrays, directory: Path, times: int) -> Watched:
    """Run a loop with a heartbeat and with a job, so many times."""
    watched, result = Watched(), None
    async with training(directory, arrays, step) as main_loop:
        heart = asyncio.create_task(beat(watched.beats), name="heartbeat")
        for _ in range(times):
            with bare_file(directory) as path:
                # A few beats before and after, so that none is late for what is cleaned up.
                await asyncio.sleep(2 * HEARTBEAT_S)
                done, begin = step.done, perf_counter()
                result = await job(main_loop, path)
                watched.busy.append((begin, perf_counter()))
                watched.steps += step.done - done
                await asyncio.sleep(2 * HEARTBEAT_S)
        heart.cancel()
    if isinstance(result, Path):
        check_checkpoint(result, arrays)
    return watched


def percentile_99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[98]


def measure_heartbeat(sizes: Sizes, arrays: Arrays, directory: Path) -> list[Figure]:
    quiet, bare = "nothing saved", "save_file and fsync in a thread"
    jobs: dict[str, tuple[Job, int]] = {
        quiet: (lambda _loop, _path: asyncio.sleep(sizes.quiet / sizes.saves), sizes.saves),
        OURS: (lambda main_loop, _path: main_loop.request_checkpoint(), sizes.saves),
        # More often, because each is shorter.
        bare: (
            lambda _loop, path: asyncio.to_thread(save_with_safetensors, arrays, path),
            3 * sizes.saves,
        ),
    }
    steps = {"steps that wait": True, "steps that never wait": False}
    cases = [(kind, name) for kind in steps for name in jobs]
    found: dict[tuple[str, str], list[Watched]] = {case: [] for case in cases}
    for job, _ in jobs.values():  # what happens once in a process is no part of the figures
        asyncio.run(watch(job, Step(waits=True), arrays, directory, WARM_UP_ROUNDS))
    for kind, name in rounds_of(cases, sizes.rounds):
        job, times = jobs[name]
        run = watch(job, Step(waits=steps[kind]), arrays, directory, times)
        found[kind, name].append(asyncio.run(run))

    figures: list[Figure] = []
    for (kind, name), runs in found.items():
        late = [watched.late_ms() for watched in runs]
        for part, value in (
            ("median", statistics.median),
            ("99th percentile", percentile_99),
            ("most", max),
        ):
            what = f"{kind}, {name}: late by, {part}"
            figures.append(Figure("heartbeat", what, "ms", list(map(value, late))))
        if name != quiet:
            pairs = zip(runs, found[kind, quiet], strict=True)
            rates = [watched.rate() / without.rate() for watched, without in pairs]
            what = f"{kind}, {name}: rate of the steps, ratio to {quiet}"
            figures.append(Figure("heartbeat", what, "", rates))
    return figures


# How long it takes


@dataclass
class Saved:
    """What came of one checkpoint."""

    seconds: float
    """From the request until its path was there."""
    pause_s: float
    """The longest between two steps, meanwhile."""
    quiet_pause_s: float
    """The longest in a time as long right after it."""
    path: Path


async def save_checkpoint(main_loop: aloop.MainLoop, step: Step) -> Saved:
    await asyncio.sleep(10 * WAIT_S)  # it may have been paused until now
    step.longest_pause_s, begin = 0.0, perf_counter()
    path = await main_loop.request_checkpoint()
    seconds, pause_s = perf_counter() - begin, step.longest_pause_s
    step.longest_pause_s = 0.0
    await asyncio.sleep(seconds)
    return Saved(seconds, pause_s, step.longest_pause_s, path)


async def save_in_turns(
    others: dict[str, Callable[[Path], None]], sizes: Sizes, arrays: Arrays, directory: Path
) -> tuple[list[Saved], list[float], dict[str, list[float]]]:
    """Save with one loop and by other means, in rounds, the loop paused for these.

    Gives what came of the checkpoints, the `checkpoint_seconds` of each, and the seconds that the
    others took.
    """
    found: list[Saved] = []
    seconds: dict[str, list[float]] = {name: [] for name in others}
    step, rounds = Step(waits=True), WARM_UP_ROUNDS + sizes.save_rounds
    async with training(directory, arrays, step) as main_loop:
        for name in rounds_of([OURS, *others], rounds):
            if name == OURS:
                found.append(await save_checkpoint(main_loop, step))
                continue
            main_loop.pause()
            await main_loop.wait_paused()
            with bare_file(directory) as path:
                begin = perf_counter()
                others[name](path)
                seconds[name].append(perf_counter() - begin)
            main_loop.resume()
        _, recorded = await main_loop.log.series("checkpoint_seconds")
    assert len(recorded) == len(found) == rounds
    check_checkpoint(found[-1].path, arrays)
    for values in found, *seconds.values():
        del values[:WARM_UP_ROUNDS]
    return found, recorded[WARM_UP_ROUNDS:].tolist(), seconds


def measure_saving(sizes: Sizes, arrays: Arrays, directory: Path) -> list[Figure]:
    bare = "save_file and fsync"
    others: dict[str, Callable[[Path], None]] = {
        bare: partial(save_with_safetensors, arrays),
        "savez": partial(save_with_numpy, arrays, synced=False),
        "savez and fsync": partial(save_with_numpy, arrays, synced=True),
    }
    found, recorded_s, others_s = asyncio.run(save_in_turns(others, sizes, arrays, directory))
    describe_checkpoint(found[-1].path, arrays)
    seconds = {OURS: [saved.seconds for saved in found]} | others_s

    def figure(name: str, values: list[float]) -> Figure:
        return Figure("save", name, "ms", [value * 1000 for value in values])

    def ratio(name: str) -> Figure:
        pairs = zip(seconds[name], seconds[bare], strict=True)
        return Figure("save", f"{name}: ratio to {bare}", "", [a / b for a, b in pairs])

    pauses_s = [saved.pause_s for saved in found]
    return [
        *(figure(name, values) for name, values in seconds.items()),
        *(ratio(name) for name in seconds if name != bare),
        figure(f"{OURS}: checkpoint_seconds", recorded_s),
        figure(f"{OURS}: the training stands still", pauses_s),
        figure(f"{OURS}: the training stands still, most of all", [max(pauses_s)]),
        figure(
            "nothing saved: the training stands still", [saved.quiet_pause_s for saved in found]
        ),
    ]


class FirstBatch(aloop.TrainingExtension):
    """Notes when the first batch is there."""

    at: float | None = None

    async def before_batch(self, batch: object) -> None:
        self.at = self.at or perf_counter()


async def resume_far_out(arrays: Arrays, directory: Path, rounds: int) -> list[float]:
    """Make a training that is far out, and resume it so often; give the seconds it took."""
    await asyncio.to_thread(directory.mkdir)
    examples, batch_size, iterations = 64_000, 64, 10_000_000
    epoch = examples // batch_size

    def loop_until(finish: int) -> tuple[FirstBatch, aloop.MainLoop]:
        first = FirstBatch()
        stream = aloop.ArrayStream(
            {"x": np.zeros(examples)},
            iteration_scheme=aloop.ShuffledScheme(examples, batch_size, seed=SEED),
        )
        checkpoint = aloop.Checkpoint(directory / "resumed", resume=True)
        return first, aloop.MainLoop(
            Step(waits=True),
            stream,
            model=dict(arrays),
            log=aloop.SQLiteLog(directory / "resumed.sqlite"),
            extensions=[first, checkpoint, aloop.FinishAfter(after_n_batches=finish)],
            signals="off",
        )

    _, loop = loop_until(iterations)
    for time in range(0, iterations - epoch, 10):
        loop.log[time]["cost"] = 1.0
    loop.status["iterations_done"] = iterations - epoch
    loop.status["epochs_done"] = (iterations - epoch) // epoch
    loop.status["_epoch_ends"] = list(range(epoch, iterations, epoch))
    await loop.run()
    found = []
    for number in range(1, rounds + 1):
        first, loop = loop_until(iterations + number)
        begun = perf_counter()
        await loop.run()
        assert first.at is not None
        found.append(first.at - begun)
    return found


def measure_resuming(sizes: Sizes, arrays: Arrays, directory: Path) -> list[Figure]:
    small = {"w": np.zeros(1000)}
    return [
        Figure(
            "resume",
            f"{name}: until the first batch",
            "ms",
            [s * 1000 for s in asyncio.run(resume_far_out(model, directory / name, sizes.rounds))],
            budget=budget,
        )
        for name, model, budget in (("8 kB", small, 200.0), (f"{sizes.megabytes} MB", arrays, None))
    ]


def describe_checkpoint(path: Path, arrays: Arrays) -> None:
    """Print what the bytes of a checkpoint are."""
    parameters = sum(array.nbytes for array in arrays.values())
    sizes = {file.name: file.stat().st_size for file in sorted(path.iterdir())}
    files = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
    print(f"A checkpoint of {parameters:,} bytes of parameters has {sum(sizes.values()):,} bytes:")
    print(f"{files}.\n")


# Results


def main() -> None:
    cases = {"heartbeat": measure_heartbeat, "save": measure_saving, "resume": measure_resuming}
    parser = make_parser(__doc__, cases, Sizes())
    parser.add_argument("--directory", type=Path, metavar="PATH", help="on the disk to measure")
    arguments = parser.parse_args()
    sizes = sizes_in(arguments, Sizes())

    arrays = make_arrays(sizes)
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        figures = [
            figure
            for case in arguments.cases
            for figure in cases[case](sizes, arrays, Path(directory))
        ]
    note = f"Medians of {sizes.rounds} rounds, of {sizes.save_rounds} for save"
    versions = {"numpy": np.__version__, "safetensors": safetensors.__version__}
    report(figures, sizes, note, arguments.json, **versions)


if __name__ == "__main__":
    aloop.config.max_blob_size = 1 << 20  # for the ends of the epochs, which are set by hand
    aloop.config.profile = False  # whatever the settings of this user and machine are
    # What the stall guard says of a checkpoint is in the figures of the heartbeat.
    logging.getLogger("aloop").setLevel(logging.ERROR)
    main()
