"""What it takes to get a batch from a stream to a step, beside numpy alone.

A batch is 32 of 51,200 examples of 784 numbers, float32 (100 kB), in an order that was shuffled,
unless a case says otherwise. Each case is a run of a `MainLoop` over so many batches, its step a
coroutine that does nothing, its log in memory and without an extension but the one that ends it;
the iteration itself, a microsecond or two, is in its time. Those marked *by hand* are a ``for``
loop. A ratio is to numpy's fancy indexing in a ``for`` loop, which is what a batch costs at least.

- a list of batches that are there already; the same through the thread, and one number a batch;
- `ArrayStream`, on the event loop's thread as by default, and in the thread;
- a chain of transformers over it: ``map``, ``filter``, ``rename``; ``unbatch`` and ``batch``;
- `HDF5Stream`, out of a file that the system has in memory, where h5py is installed;
- Fuel's `IndexableDataset` with its `ShuffledScheme`, by hand, and in the loop, where it is there.

Every figure is the median over the rounds, in an order shuffled anew.

Run it from the root of the repository, in an environment with aloop::

    python benchmarks/streams.py
    python benchmarks/streams.py --cases arrays fuel --rounds 15
"""

import asyncio
import importlib.util
import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from figures import SEED, Figure, make_parser, report, rounds_of, sizes_in

from aloop import ArrayStream, FinishAfter, MainLoop, ShuffledScheme, as_stream

EXAMPLES, WIDTH, BATCH = 51_200, 784, 32
BASE = "numpy, fancy indexing, by hand"

Case = Callable[[int], Any]
"""Goes through so many batches; a coroutine where it is a run."""


@dataclass
class Sizes:
    """How much each case does."""

    batches: int = 4_000
    rounds: int = 9


def by_hand(make: Callable[[], Iterator[Any]]) -> Case:
    def go_through(batches: int) -> None:
        for _ in itertools.islice(make(), batches):
            pass

    return go_through


def trained(make: Callable[[], Any]) -> Case:
    async def step(batch: Any) -> None:
        """Do nothing."""

    async def train(batches: int) -> None:
        finish = FinishAfter(after_n_batches=batches)
        loop = MainLoop(step, make(), extensions=[finish], log_backend="python", signals="off")
        await loop.run()

    return train


def epochs_of(stream: Any) -> Iterator[Any]:
    while True:
        yield from stream.get_epoch_iterator(as_dict=True)


def indexed(array: np.ndarray) -> Iterator[Any]:
    generator = np.random.default_rng(SEED)
    while True:
        order = generator.permutation(len(array))
        for begin in range(0, len(order), BATCH):
            yield array[order[begin : begin + BATCH]]


def cases_of(names: Iterable[str], directory: Path) -> dict[str, Case]:
    array = np.random.default_rng(SEED).random((EXAMPLES, WIDTH), dtype=np.float32)
    ready = [{"x": array[begin : begin + BATCH]} for begin in range(0, EXAMPLES, BATCH)]

    def arrays() -> ArrayStream:
        scheme = ShuffledScheme(EXAMPLES, BATCH, seed=SEED)
        return ArrayStream({"x": array}, iteration_scheme=scheme)

    cases: dict[str, Case] = {BASE: by_hand(lambda: indexed(array))}
    if "lists" in names:
        cases["list of batches"] = trained(lambda: ready)
        cases["list of batches, in the thread"] = trained(lambda: as_stream(ready, where="thread"))
        cases["generator of numbers, in the thread"] = trained(lambda: lambda: iter(range(1 << 30)))
    if "arrays" in names:
        cases["ArrayStream, by hand"] = by_hand(lambda: epochs_of(arrays()))
        cases["ArrayStream"] = trained(arrays)
        cases["ArrayStream, in the thread"] = trained(lambda: in_thread(arrays()))
    if "transformers" in names:
        cases["ArrayStream, map, filter, rename"] = trained(
            lambda: arrays().map(same).filter(always).rename({"x": "features"})
        )
        cases["ArrayStream, unbatch, batch"] = trained(lambda: arrays().unbatch().batch(BATCH))
    if "hdf5" in names and importlib.util.find_spec("h5py"):
        cases["HDF5Stream"] = trained(hdf5(array, directory / "data.h5"))
    if "fuel" in names and importlib.util.find_spec("fuel"):
        fuel = fuel_of(array)
        cases["Fuel ShuffledScheme, by hand"] = by_hand(lambda: epochs_of(fuel()))
        cases["Fuel ShuffledScheme"] = trained(fuel)
    return cases


def same(batch: Any) -> Any:
    return batch


def always(batch: Any) -> bool:  # noqa: ARG001 - as a predicate is called
    return True


def in_thread(stream: Any) -> Any:
    stream.where = "thread"
    return stream


def hdf5(array: np.ndarray, path: Path) -> Callable[[], Any]:
    import h5py

    from aloop.streams.hdf5 import HDF5Stream

    with h5py.File(path, "w") as file:
        file["x"] = array
    scheme = ShuffledScheme(EXAMPLES, BATCH, seed=SEED)
    return lambda: HDF5Stream(path, iteration_scheme=scheme)


def fuel_of(array: np.ndarray) -> Callable[[], Any]:
    import aloop.streams.fuel  # noqa: F401 - makes Fuel importable

    from fuel.datasets import IndexableDataset  # isort: skip
    from fuel.schemes import ShuffledScheme as FuelShuffledScheme  # isort: skip
    from fuel.streams import DataStream  # isort: skip

    dataset = IndexableDataset({"x": array})
    return lambda: DataStream(dataset, iteration_scheme=FuelShuffledScheme(EXAMPLES, BATCH))


async def measure(names: Iterable[str], sizes: Sizes) -> list[Figure]:
    with tempfile.TemporaryDirectory() as directory:
        cases = cases_of(names, Path(directory))
        spent = {name: Figure(name, "a batch", "µs") for name in cases}
        ratios = {name: Figure(name, "ratio to numpy", "") for name in cases if name != BASE}
        for name in rounds_of(cases, sizes.rounds):
            begin = perf_counter()
            going = cases[name](sizes.batches)
            if going is not None:
                await going
            spent[name].values.append((perf_counter() - begin) / sizes.batches * 1e6)
    for name, ratio in ratios.items():
        pairs = zip(spent[name].values, spent[BASE].values, strict=True)
        ratio.values.extend(took / base for took, base in pairs)
    return [
        figure
        for name in cases
        for figure in (spent[name], *([ratios[name]] if name in ratios else []))
    ]


def main() -> None:
    parser = make_parser(
        __doc__ or "", ["lists", "arrays", "transformers", "hdf5", "fuel"], Sizes()
    )
    arguments = parser.parse_args()
    sizes = sizes_in(arguments, Sizes())
    figures = asyncio.run(measure(arguments.cases, sizes))
    note = f"Medians of {sizes.rounds} rounds of {sizes.batches:,} batches"
    report(figures, sizes, note, arguments.json, numpy=np.__version__)


if __name__ == "__main__":
    main()
