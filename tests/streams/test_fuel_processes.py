"""A stream that Fuel's MultiProcessing reads in another process."""

import aloop.streams.fuel  # noqa: F401 - it makes Fuel importable

# isort: split
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fuel.datasets import IterableDataset
from fuel.streams import DataStream
from fuel.transformers import Mapping, MultiProcessing
from fuel.transformers.image import Random2DRotation
from fuel_cases import by_hand, frozen, hdf5, images, loop_of, sequential, shuffled

from aloop.errors import StreamError
from aloop.streams.fuel import FuelStream


@pytest.fixture
def reading():
    """Makes streams that are read in processes, and closes them."""
    made = []

    def of(stream, **options):
        made.append(MultiProcessing(stream, **options))
        return made[-1]

    yield of
    for stream in made:
        stream.close()


def test_epoch_that_was_left_is_not_in_the_next_one(reading) -> None:
    stream = reading(shuffled(), max_store=2)
    first, second, third = by_hand(shuffled())
    iterator = stream.get_epoch_iterator()
    assert [frozen(dict(zip("xy", next(iterator), strict=True))) for _ in range(2)] == first[:2]
    assert by_hand(stream, 2) == [second, third]


def test_endless_epoch_can_be_left(reading) -> None:
    stream = reading(DataStream(IterableDataset(range(10**12))), max_store=2)
    for _ in range(2):
        iterator = stream.get_epoch_iterator()
        assert [next(iterator) for _ in range(3)] == [(0,), (1,), (2,)]


def test_no_more_is_read_ahead_than_was_said(reading, tmp_path) -> None:
    def read(data):
        with (tmp_path / "read").open("a") as file:
            file.write(f"{data[1][0]}\n")
        return data

    stream = reading(Mapping(sequential(size=1), read), max_store=2)
    iterator = stream.get_epoch_iterator()
    for _ in range(10):
        next(iterator)
    # Two in store, one that is sent, one that is read, and what fits into the pipe.
    assert len((tmp_path / "read").read_text().split()) <= 23
    stream.background.settle()


def test_end_of_an_epoch_repeats(reading) -> None:
    iterator = reading(sequential()).get_epoch_iterator()
    assert len(list(iterator)) == 5
    assert list(iterator) == []


def test_close_ends_the_process(reading) -> None:
    stream = reading(sequential())
    process = stream.proc
    assert process.is_alive()
    FuelStream(stream).close()
    assert not process.is_alive()
    stream.close()


def test_closed_stream_is_read_in_another_process_when_it_is_used_again(reading) -> None:
    stream = reading(shuffled())
    first, second, _ = by_hand(shuffled())
    assert by_hand(stream, 1) == [first]
    stream.close()
    assert by_hand(stream, 1) == [second]


def test_stream_that_nobody_has_any_more_takes_its_process_with_it() -> None:
    stream = MultiProcessing(sequential())
    process = stream.proc
    del stream
    gc.collect()
    assert not process.is_alive()


async def test_process_that_was_killed_is_an_error(reading) -> None:
    stream = reading(sequential(), max_store=1)

    async def step(batch) -> None:
        stream.proc.kill()

    loop = loop_of(stream, [], epochs=10**6)
    loop.algorithm.process_batch = step
    with pytest.raises(StreamError, match="has ended with exit code -9; expected it to read"):
        await loop.run()


def test_process_that_was_killed_is_an_error_until_another_epoch_begins(reading) -> None:
    stream = reading(sequential(size=1), max_store=1)
    iterator = stream.get_epoch_iterator()
    stream.proc.kill()
    for _ in range(2):
        with pytest.raises(StreamError, match="has ended"):
            list(iterator)
    assert len(list(stream.get_epoch_iterator())) == 23


def test_failure_in_the_process_is_an_error_that_says_where(reading) -> None:
    def fails(data):
        raise OSError("no disk")

    iterator = reading(Mapping(sequential(), fails)).get_epoch_iterator()
    with pytest.raises(StreamError, match=r"failed with OSError\('no disk'\)") as caught:
        next(iterator)
    assert "in fails" in caught.value.__notes__[0]


def test_batch_that_cannot_be_sent_is_an_error(reading) -> None:
    iterator = reading(
        Mapping(sequential(), lambda data: (lambda: None, data))
    ).get_epoch_iterator()
    with pytest.raises(StreamError, match="pickle"):
        next(iterator)


def test_states_of_generators_come_back_with_each_epoch(reading) -> None:
    inside, outside = (Random2DRotation(shuffled(images(), 3)) for _ in range(2))
    stream = reading(inside)
    by_hand(stream, 2)
    by_hand(outside, 2)
    assert frozen(inside.rng.get_state()) == frozen(outside.rng.get_state())


def test_interrupt_from_the_terminal_does_not_end_it(reading) -> None:
    stream = reading(sequential(), max_store=1)
    iterator = stream.get_epoch_iterator()
    next(iterator)
    os.kill(stream.proc.pid, signal.SIGINT)
    assert len(list(iterator)) == 4


def negative(data):
    return tuple(-np.asarray(each) for each in data)


@pytest.mark.slow
def test_process_can_be_spawned(tmp_path) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import aloop.streams.fuel, multiprocessing, pathlib, fuel_cases
from fuel.transformers import MultiProcessing
if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    here, there = (
        fuel_cases.shuffled(fuel_cases.hdf5(pathlib.Path({str(tmp_path)!r}))) for _ in range(2)
    )
    stream = MultiProcessing(there)
    assert fuel_cases.by_hand(stream) == fuel_cases.by_hand(here)
    stream.close()
    print("done")
"""
    program = tmp_path / "program.py"
    program.write_text(code)
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_reader_that_is_killed_takes_the_process_with_it(tmp_path) -> None:
    read, write = os.pipe()

    def killed() -> None:
        os.close(read)
        stream = MultiProcessing(sequential(hdf5(tmp_path)), max_store=1)
        next(stream.get_epoch_iterator())
        os.kill(os.getpid(), signal.SIGKILL)

    reader = multiprocessing.get_context("fork").Process(target=killed)
    reader.start()
    os.close(write)
    reader.join()
    assert os.read(read, 1) == b"", "all that had the pipe open are gone"
    os.close(read)
