"""cache(): nothing is read twice, and a training goes on anywhere."""

import asyncio

import numpy as np
import pytest
from stream_tools import Async, check_every_stop, epoch, kept, loop_of, training

from aloop import ArrayStream, as_stream
from aloop.errors import StreamError
from aloop.streams import ShuffledExampleScheme


def examples(number=5):
    return ArrayStream(
        {"x": np.arange(number)}, iteration_scheme=ShuffledExampleScheme(number, seed=3)
    )


def first_order(number=5):
    return ShuffledExampleScheme(number, seed=3).epoch_indices(0).tolist()


class Reads:
    """Counts what is read."""

    def __init__(self, number=3) -> None:
        self.seen, self.number = [], number

    def __call__(self):
        for number in range(self.number):
            self.seen.append(number)
            yield number


@pytest.mark.parametrize("kind", [lambda s: s, Async], ids=["sync", "async"])
async def test_each_epoch_gives_the_elements_of_the_first(kind) -> None:
    stream = kind(examples()).cache()
    assert [await epoch(stream) for _ in range(3)] == [[{"x": n} for n in first_order()]] * 3


async def test_nothing_is_read_twice() -> None:
    reads = Reads()
    stream = as_stream(reads).cache()
    assert [await epoch(stream) for _ in range(3)] == [[0, 1, 2]] * 3
    assert reads.seen == [0, 1, 2]


async def test_an_epoch_that_was_left_is_read_on_in_the_next() -> None:
    reads = Reads()
    stream = as_stream(reads).cache()
    assert next(stream.get_epoch_iterator()) == 0
    assert [await epoch(stream) for _ in range(2)] == [[0, 1, 2]] * 2
    assert reads.seen == [0, 1, 2]


async def test_nothing_is_read_before_it_is_asked_for() -> None:
    reads = Reads()
    next(as_stream(reads).cache().get_epoch_iterator())
    assert reads.seen == [0]


async def test_what_is_put_into_an_element_is_not_there_the_next_time() -> None:
    stream = examples(1).cache()
    (element,) = stream.get_epoch_iterator()
    element["y"] = 1
    assert await epoch(stream) == [{"x": 0}]


@pytest.mark.parametrize("kind", [lambda s: s, Async], ids=["sync", "async"])
async def test_a_cached_stream_goes_on_anywhere(kind) -> None:
    await check_every_stop(
        lambda: kind(examples()).cache().map(lambda e: int(e["x"])), [first_order()] * 3
    )


async def test_what_comes_after_the_cache_is_done_anew_in_each_epoch() -> None:
    calls = []
    stream = as_stream([1, 2]).cache().map(calls.append)
    for _ in range(2):
        await epoch(stream)
    assert calls == [1, 2, 1, 2]


async def test_a_new_process_reads_anew_what_it_has_to() -> None:
    stream = as_stream(Reads()).cache()
    iterator = stream.get_epoch_iterator()
    assert [next(iterator), next(iterator)] == [0, 1]
    reads = Reads()
    again = as_stream(reads).cache()
    again.load_state_dict(kept(stream.state_dict()))
    assert await epoch(again) == [2]
    assert await epoch(again) == [0, 1, 2]
    assert reads.seen == [0, 1, 2]


async def test_the_state_has_no_elements_in_it() -> None:
    stream = as_stream([np.zeros(1000)] * 3).cache()
    await epoch(stream)
    assert len(repr(stream.state_dict())) < 200


async def test_data_that_has_become_shorter_is_named_by_both_lengths() -> None:
    stream = as_stream(Reads()).cache()
    iterator = stream.get_epoch_iterator()
    for _ in range(3):
        next(iterator)
    again = as_stream(Reads(2)).cache()
    again.load_state_dict(stream.state_dict())
    with pytest.raises(StreamError, match="ended after 2 elements; expected the 3"):
        await epoch(again)


async def test_reset_reads_anew() -> None:
    reads = Reads()
    stream = as_stream(reads).cache()
    await epoch(stream)
    stream.reset()
    assert await epoch(stream) == [0, 1, 2]
    assert reads.seen == [0, 1, 2] * 2


async def test_next_epoch_begins_the_kept_one_again() -> None:
    stream = as_stream(Reads()).cache()
    next(stream.get_epoch_iterator())
    stream.next_epoch()
    assert await epoch(stream) == [0, 1, 2]


async def test_a_cancelled_wait_reads_nothing_twice() -> None:
    waits, seen = asyncio.Event(), []

    async def wait_once(number):
        seen.append(number)
        if len(seen) == 2:
            waits.set()
            await asyncio.Event().wait()
        return number

    stream = as_stream([1, 2, 3]).map(wait_once).cache()
    iterator = stream.get_epoch_iterator()
    assert await anext(iterator) == 1
    asking = asyncio.create_task(anext(iterator))
    await waits.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert [number async for number in iterator] == [2, 3]
    assert await epoch(stream) == [1, 2, 3]
    assert seen == [1, 2, 2, 3]  # what was cancelled is begun anew


@pytest.mark.parametrize("stop", [1, 4, 5, 6, 10])
async def test_a_training_on_a_cached_stream_goes_on_anywhere(tmp_path, stop) -> None:
    def make():
        return examples().map(lambda e: int(e["x"])).cache()

    trained = []
    for finish in (stop, 15):
        await loop_of(make(), tmp_path, trained, finish).run()
    assert trained == first_order() * 3


@pytest.mark.parametrize("kind", ["list", "generator", "async generator"])
async def test_nothing_is_missing_for_good_after_a_failure(kind):
    has_failed = []

    def fails_once(element):
        if element == 2 and not has_failed:
            has_failed.append(True)
            raise OSError
        return element

    def generate():
        yield from map(fails_once, range(5))

    async def generate_later():
        for element in generate():
            yield element

    sources = {"generator": generate, "async generator": generate_later}
    stream = as_stream(sources.get(kind) or [0, 1, 2, 3, 4])
    if kind == "list":
        stream = stream.map(fails_once)
    trained = []
    loop = training(stream.cache(), trained, 2)
    with pytest.raises(OSError):
        await loop.run()
    await loop.run()
    assert trained == [0, 1, *range(5), *range(5)]
