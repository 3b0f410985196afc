"""Fuel's own streams in a training: the same batches, and on from any of them."""

import pickle
import subprocess
import sys
from functools import cache
from itertools import chain
from pathlib import Path

import pytest
from fuel_cases import CASES, EPOCHS, by_hand, loop_of, resumable

from aloop.streams.fuel import FuelStream

pytestmark = pytest.mark.aloop_guard(files=False)  # pipes of the processes that are collected


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tmp_path_factory.mktemp("fuel")


@pytest.fixture(scope="module")
def straight(files):
    """The epochs of each case, as Fuel gives them."""

    @cache
    def of(case):
        stream = CASES[case](files)
        try:
            return by_hand(stream)
        finally:
            stream.close()

    return of


async def run(stream, trained, *args, **options):
    loop = loop_of(stream, trained, *args, **options)
    try:
        await loop.run()
    finally:
        loop.data_stream.close()
    return loop


@pytest.mark.parametrize("case", CASES)
async def test_training_sees_what_fuel_gives(case, files, straight) -> None:
    trained: list = []
    loop = await run(CASES[case](files), trained)
    assert trained == list(chain(*straight(case)))
    ends = [sum(map(len, straight(case)[: epoch + 1])) for epoch in range(EPOCHS)]
    assert loop.status["_epoch_ends"] == ends


@pytest.mark.parametrize("case", CASES)
def test_length_is_that_of_an_epoch_or_is_not_known(case, files, straight) -> None:
    stream = FuelStream(CASES[case](files))
    try:
        if case in UNKNOWN:
            with pytest.raises(TypeError, match=r"the number of batches .* is not known"):
                len(stream)
        else:
            assert {len(stream)} == set(map(len, straight(case)))
    finally:
        stream.close()


UNKNOWN = {
    "filter",
    "cache",
    "unpack",
    "batch of filtered",
    "n-grams",
    "text",
    "own transformer of pairs",
    "own dataset that goes on",
    "own dataset that tells its place",
}


async def resumed(case, files, directory, stops):
    """Stop and go on after each of some numbers of batches, and give what was trained on."""
    trained: list = []
    for stop in [*stops, None]:
        stream = CASES[case](files)
        loop = resumable(stream, directory, trained, stop)
        try:
            await loop.run()
        finally:
            loop.data_stream.close()
    return trained


USUAL = [
    "shuffled",
    "sequential examples",
    "concatenated",
    "mapping with a generator",
    "filter",
    "batch of filtered",
    "merge",
    "own dataset that goes on",
    "own dataset that tells its place",
    "rotation",
    "HDF5",
    "multi-processing of rotations",
]
"""What of the cases goes each its own way."""


def usual_or_slow(cases):
    return [case if case in USUAL else pytest.param(case, marks=pytest.mark.slow) for case in cases]


@pytest.mark.parametrize("case", usual_or_slow(CASES))
@pytest.mark.aloop_guard(files=False)  # the log records hold streams
async def test_stopped_training_goes_on_with_the_next_batch(
    case, files, straight, tmp_path
) -> None:
    epoch = len(straight(case)[0])
    trained = await resumed(case, files, tmp_path, [epoch + 2])
    assert trained == list(chain(*straight(case)))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
async def test_training_stopped_after_any_batch_goes_on_with_the_next(
    case, files, straight, tmp_path
) -> None:
    expected = list(chain(*straight(case)))
    for stop in range(1, len(expected) + 1):
        assert await resumed(case, files, tmp_path / str(stop), [stop]) == expected


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
async def test_training_stopped_after_each_batch_sees_them_all(
    case, files, straight, tmp_path
) -> None:
    expected = list(chain(*straight(case)))
    assert await resumed(case, files, tmp_path, range(1, len(expected))) == expected


IN_A_NEW_PROCESS = """
import asyncio, pathlib, pickle, sys
sys.path.insert(0, {here!r})
from fuel_cases import CASES, resumable

async def main():
    trained = []
    loop = resumable(CASES[{case!r}](pathlib.Path({files!r})), pathlib.Path({to!r}), trained)
    await loop.run()
    loop.data_stream.close()
    pathlib.Path({to!r}, "trained").write_bytes(pickle.dumps(trained))

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    ["shuffled", "HDF5", "HDF5 in memory", "filter", "rotation", "multi-processing of rotations"],
)
async def test_training_goes_on_in_a_new_process(case, files, straight, tmp_path) -> None:
    expected = list(chain(*straight(case)))
    stop = len(straight(case)[0]) + 2
    trained: list = []
    loop = resumable(CASES[case](files), tmp_path, trained, stop)
    await loop.run()
    loop.data_stream.close()
    here = str(Path(__file__).parent)
    code = IN_A_NEW_PROCESS.format(here=here, case=case, files=str(files), to=str(tmp_path))
    subprocess.run([sys.executable, "-c", code], check=True, timeout=50)
    rest = pickle.loads((tmp_path / "trained").read_bytes())  # noqa: S301 - its own
    assert trained + rest == expected
