"""How much of a fetch goes on while the batch before it is trained on, against the ideal.

A batch takes 5 ms to fetch and 5 ms to train on, each by sleeping: constantly, or exponentially
distributed about that mean, drawn by a seed, the same for all. Fetched one after another by

- a generator that blocks (`time.sleep`), in the thread of the loop, 0 to 4 batches ahead;
- an async generator (`asyncio.sleep`), through ``prefetch(depth)``, and without;
- peers, where they are installed: a torch ``DataLoader`` with 2 worker processes, which has two
  batches fetched at once, gone through by a bare loop, and by aloop in its thread.

Beside them the ideal: how long the same fetches and steps take where a fetch begins as soon as
there is room and the one before it is done, and a step as soon as its batch is there and the step
before it is done, without anything in between. It is computed out of sleeps that were measured in
the same round, for a timer is late by itself. A ratio is the ideal divided by the time of the run.
The ideal of two processes at once is another one, that of two fetches at a time.

Every figure is the median over the rounds, in an order shuffled anew.

Run it from the root of the repository, in an environment with aloop, and torch for its case::

    python benchmarks/overlap.py
    python benchmarks/overlap.py --cases thread --rounds 15
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from figures import SEED, Figure, make_parser, report, rounds_of, sizes_in

from aloop import FinishAfter, MainLoop, as_stream

try:
    import torch
    from torch.utils.data import DataLoader, Dataset
except ImportError:
    torch = None

MEAN_S = 0.005
BUDGET = 0.96  # with 2 batches read ahead, at constant times
DEPTHS = (0, 1, 2, 3, 4)
WORKERS = 2


@dataclass
class Sizes:
    """How much each case does."""

    batches: int = 120
    rounds: int = 7


@dataclass
class Times:
    """How long each fetch and each step is to take, in seconds."""

    fetches: list[float]
    steps: list[float]


def draw(kind: str, number: int) -> Times:
    """Draw the times of so many batches."""
    if kind == "constant":
        return Times([MEAN_S] * number, [MEAN_S] * number)
    numbers = random.Random(SEED)
    fetches = [numbers.expovariate(1 / MEAN_S) for _ in range(number)]
    return Times(fetches, [numbers.expovariate(1 / MEAN_S) for _ in range(number)])


def ideal(fetches: list[float], steps: list[float], ahead: int, at_once: int = 1) -> float:
    """Give how long it takes when nothing takes time but fetches and steps.

    Parameters:
        fetches, steps: how long each takes.
        ahead: how many batches may be fetched, or under way, beyond the one that is trained on.
        at_once: how many fetches there may be at a time.
    """
    fetched: list[float] = []
    begun: list[float] = []
    now = 0.0
    for number, (fetch, step) in enumerate(zip(fetches, steps, strict=True)):
        # There is room once the step of the batch `ahead` places before has begun; without any,
        # once the step before has ended.
        begun_enough = begun[number - ahead] if ahead and number >= ahead else 0.0
        room = begun_enough if ahead else now
        free = fetched[number - at_once] if number >= at_once else 0.0
        fetched.append(max(room, free) + fetch)
        begun.append(max(now, fetched[-1]))
        now = begun[-1] + step
    return now


async def measured(times: Times, *, is_async: bool) -> Times:
    """Give how long the same sleeps take, each by itself."""
    steps = await slept(times.steps)
    if is_async:
        return Times(await slept(times.fetches), steps)

    def block() -> list[float]:
        fetches = []
        for seconds in times.fetches:
            begin = perf_counter()
            time.sleep(seconds)
            fetches.append(perf_counter() - begin)
        return fetches

    return Times(await asyncio.to_thread(block), steps)


async def slept(seconds: list[float]) -> list[float]:
    """Sleep in the event loop, one after the other, and give how long it took."""
    took = []
    for second in seconds:
        begin = perf_counter()
        await asyncio.sleep(second)
        took.append(perf_counter() - begin)
    return took


def blocking(times: Times) -> Callable[[], Iterable[int]]:
    def fetch() -> Iterable[int]:
        for number, seconds in enumerate(times.fetches):
            time.sleep(seconds)
            yield number

    return fetch


def waiting(times: Times) -> Callable[[], Any]:
    async def fetch():
        for number, seconds in enumerate(times.fetches):
            await asyncio.sleep(seconds)
            yield number

    return fetch


async def trained(stream: Any, times: Times) -> float:
    """Train on all batches, and give how long it took."""

    async def step(number: Any) -> None:
        await asyncio.sleep(times.steps[int(number)])

    finish = FinishAfter(after_n_epochs=1)
    loop = MainLoop(step, stream, extensions=[finish], log_backend="python", signals="off")
    begin = perf_counter()
    await loop.run()
    return perf_counter() - begin


if torch is not None:

    class Slow(Dataset):  # pyright: ignore[reportMissingTypeArgument, reportUntypedBaseClass]
        """A torch dataset of batches that take their time."""

        def __init__(self, times: Times) -> None:
            self.fetches = times.fetches

        def __len__(self) -> int:
            return len(self.fetches)

        def __getitem__(self, number: int) -> int:
            time.sleep(self.fetches[number])
            return number


def loader_of(times: Times) -> Any:
    return DataLoader(Slow(times), batch_size=None, num_workers=WORKERS)


async def gone_through(loader: Any, times: Times) -> float:
    """Go through a loader in a bare loop, and give how long that took once it had begun."""
    iterator = iter(loader)  # which makes its processes
    begin = perf_counter()
    for number in iterator:
        await asyncio.sleep(times.steps[int(number)])
    return perf_counter() - begin


def cases_of(names: Iterable[str]) -> dict[str, tuple[str, Any, int, int]]:
    """Give the cases: what is timed of some times, how far ahead it is, how many at once."""
    cases: dict[str, tuple[str, Any, int, int]] = {}
    for kind in ("constant", "exponential"):
        for depth in DEPTHS:
            if "thread" in names:
                cases[f"{kind}, in a thread, {depth} ahead"] = (
                    kind,
                    lambda times, depth=depth: trained(
                        as_stream(blocking(times), read_ahead=depth), times
                    ),
                    depth,
                    1,
                )
            if "async" in names:
                cases[f"{kind}, async, prefetch({depth})"] = (
                    kind,
                    lambda times, depth=depth: trained(
                        as_stream(waiting(times)).prefetch(depth) if depth else waiting(times),
                        times,
                    ),
                    depth,
                    1,
                )
        if "torch" in names and torch is not None:
            ahead = 2 * WORKERS  # its prefetch_factor is 2
            cases[f"{kind}, DataLoader, {WORKERS} workers, bare loop"] = (
                kind,
                lambda times: gone_through(loader_of(times), times),
                ahead,
                WORKERS,
            )
            cases[f"{kind}, DataLoader, {WORKERS} workers, aloop"] = (
                kind,
                lambda times: trained(loader_of(times), times),
                ahead,
                WORKERS,
            )
    return cases


async def measure(names: Iterable[str], sizes: Sizes) -> list[Figure]:
    cases = cases_of(names)
    ratios = {
        name: Figure(
            name,
            "share of the ideal",
            "",
            budget=BUDGET if name.startswith("constant") and " 2 ahead" in name else None,
            at_least=True,
        )
        for name in cases
    }
    spent = {name: Figure(name, "a batch", "ms") for name in cases}
    for name in rounds_of(cases, sizes.rounds):
        kind, run, ahead, at_once = cases[name]
        times = draw(kind, sizes.batches)
        took = await run(times)
        alone = await measured(times, is_async=" async," in name)
        best = ideal(alone.fetches, alone.steps, ahead, at_once)
        ratios[name].values.append(best / took)
        spent[name].values.append(took / sizes.batches * 1e3)
    return [figure for name in cases for figure in (ratios[name], spent[name])]


def main() -> None:
    parser = make_parser(__doc__ or "", ["thread", "async", "torch"], Sizes())
    arguments = parser.parse_args()
    sizes = sizes_in(arguments, Sizes())
    figures = asyncio.run(measure(arguments.cases, sizes))
    note = f"Medians of {sizes.rounds} rounds of {sizes.batches} batches"
    torch_version = "not installed" if torch is None else torch.__version__
    report(figures, sizes, note, arguments.json, torch=torch_version)


if __name__ == "__main__":
    main()
