"""Transformers of one stream: what they give, in which order, and the place that is kept."""

import asyncio
import threading
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_helpers import until
from stream_tools import (
    Async,
    Count,
    advance,
    check_every_stop,
    epoch,
    loop_of,
    plain,
    training,
    walk_with_stop,
)

from aloop import (
    ArrayStream,
    Checkpoint,
    ConcatenatedStream,
    DataStream,
    FinishAfter,
    MainLoop,
    as_stream,
    zip_streams,
)
from aloop.errors import CheckpointValueError, StreamError
from aloop.protocols import Stateful, Stream
from aloop.streams import SequentialScheme, ShuffledExampleScheme
from aloop.streams.bridge import END


def numbers(*values):
    return as_stream(list(values))


def batches(examples=7, batch_size=2):
    arrays = {"x": np.arange(examples), "y": np.arange(examples) * 10}
    return ArrayStream(arrays, iteration_scheme=SequentialScheme(examples, batch_size))


def shuffled(examples=7):
    return ArrayStream(
        {"x": np.arange(examples)}, iteration_scheme=ShuffledExampleScheme(examples, seed=3)
    )


def shuffled_epochs(epochs, examples=7):
    scheme = ShuffledExampleScheme(examples, seed=3)
    return [scheme.epoch_indices(number).tolist() for number in range(epochs)]


def double(number):
    return number * 2


async def double_later(number):
    await asyncio.sleep(0)
    return number * 2


class Doubler:
    async def __call__(self, number):
        return await double_later(number)

    async def method(self, number):
        return await double_later(number)

    def sync(self, number):
        return double(number)


async def multiply(factor, number):
    await asyncio.sleep(0)
    return factor * number


FUNCTIONS = {
    "function": double,
    "lambda": lambda number: number * 2,
    "sync method": Doubler().sync,
    "partial": partial(lambda factor, number: factor * number, 2),
    "class": str,
    "coroutine function": double_later,
    "object with async call": Doubler(),
    "async method": Doubler().method,
    "partial of a coroutine function": partial(multiply, 2),
    "partial of an object with async call": partial(Doubler()),
}


# ---- map and filter


@pytest.mark.parametrize("kind", FUNCTIONS)
async def test_map_gives_what_the_function_makes_of_each_element(kind) -> None:
    expected = ["1", "2", "3"] if kind == "class" else [2, 4, 6]
    assert await epoch(numbers(1, 2, 3).map(FUNCTIONS[kind])) == expected


@pytest.mark.parametrize("source", [lambda s: s, Async], ids=["sync", "async"])
@pytest.mark.parametrize("function", [double, double_later])
async def test_each_epoch_is_mapped(source, function) -> None:
    stream = source(numbers_with_state(3)).map(function)
    assert [await epoch(stream) for _ in range(3)] == [[0, 2, 4]] * 3


def numbers_with_state(length):
    return ArrayStream({"x": np.arange(length)}, iteration_scheme=SequentialScheme(length, 1)).map(
        lambda batch: int(batch["x"][0])
    )


def test_a_chain_in_which_nothing_waits_has_a_sync_iterator() -> None:
    iterator = numbers(1, 2).map(double).filter(bool).batch(2).get_epoch_iterator()
    assert [batch.tolist() for batch in iterator] == [[2, 4]]


async def test_a_sync_function_of_an_async_chain_is_called_in_a_thread() -> None:
    threads = []
    stream = Async(batches()).map(lambda batch: threads.append(threading.current_thread().name))
    await epoch(stream)
    assert set(threads) == {"aloop stream"}


async def test_a_sync_stream_of_an_async_chain_is_read_in_a_thread() -> None:
    threads = []

    class Noting(ArrayStream):
        where = "thread"

        def fetch(self, request):
            threads.append(threading.current_thread().name)
            return super().fetch(request)

    stream = Noting({"x": np.arange(4)}, iteration_scheme=SequentialScheme(4, 2)).map(as_it_is)
    assert await epoch(stream) == [{"x": [0, 1]}, {"x": [2, 3]}]

    def generated():
        threads.append(threading.current_thread().name)
        yield 1

    assert await epoch(as_stream(generated).map(double_later)) == [2]
    assert set(threads) == {"aloop stream"}


async def as_it_is(batch):
    return batch


async def test_threads_end_with_the_epoch() -> None:
    await epoch(Async(batches()).map(lambda batch: batch).filter(lambda batch: True))
    assert "aloop stream" not in {thread.name for thread in threading.enumerate()}


async def predicate_later(number):
    return number % 2


@pytest.mark.parametrize("predicate", [lambda number: number % 2, predicate_later])
async def test_filter_gives_the_elements_that_the_predicate_holds_for(predicate) -> None:
    assert await epoch(numbers(*range(6)).filter(predicate)) == [1, 3, 5]


async def test_filter_may_leave_nothing() -> None:
    assert await epoch(numbers(1, 2).filter(lambda number: False)) == []


async def test_an_epoch_of_which_nothing_is_left_ends_the_run(tmp_path) -> None:
    with pytest.raises(ValueError, match="yielded zero batches in epoch 1"):
        await loop_of(numbers(1, 2).filter(lambda n: False), tmp_path, [], 2).run()


def fails(number):
    raise KeyError(number)


async def fails_later(number):
    raise KeyError(number)


@pytest.mark.parametrize("function", [fails, fails_later])
@pytest.mark.parametrize("method", ["map", "filter"])
async def test_an_error_names_the_function_that_raised_it(function, method) -> None:
    with pytest.raises(KeyError) as caught:
        await epoch(getattr(numbers(1), method)(function))
    assert caught.value.__notes__ == [f"raised by the function {function.__name__} of {method}()"]


@pytest.mark.parametrize("method", ["map", "filter"])
async def test_a_plain_function_that_returns_a_coroutine_is_refused(method) -> None:
    stream = getattr(numbers(1), method)(lambda number: double_later(number))
    with pytest.raises(StreamError, match=r"returned a coroutine; expected a value, .* async def"):
        await epoch(stream)


async def test_stop_iteration_of_a_function_is_no_end() -> None:
    with pytest.raises(StreamError, match="raised StopIteration"):
        await epoch(numbers(1).map(lambda number: next(iter([]))))


@pytest.mark.parametrize("function", [None, 3, "text"], ids=repr)
@pytest.mark.parametrize("method", ["map", "filter"])
def test_what_is_no_function_is_refused(method, function) -> None:
    with pytest.raises(StreamError, match=rf"{method}\(\) is given {function!r} of type"):
        getattr(numbers(1), method)(function)


@pytest.mark.parametrize("concurrency", [0, -1, 1.5, None, True], ids=repr)
def test_concurrency_is_a_number_from_1_on(concurrency) -> None:
    with pytest.raises(StreamError, match=f"concurrency of map.. is {concurrency!r}; expected"):
        numbers(1).map(double, concurrency=concurrency)


# ---- batch and unbatch


async def test_batch_stacks_the_examples_of_each_source() -> None:
    examples = as_stream([{"x": np.array([i, i]), "y": i} for i in range(3)])
    assert await epoch(examples.batch(2)) == [
        {"x": [[0, 0], [1, 1]], "y": [0, 1]},
        {"x": [[2, 2]], "y": [2]},
    ]


async def test_batch_of_tuples_is_a_tuple_and_of_numbers_an_array() -> None:
    assert await epoch(as_stream([(1, 2.5), (3, 4.5)]).batch(2)) == [([1, 3], [2.5, 4.5])]
    assert await epoch(numbers(1, 2, 3).batch(2)) == [[1, 2], [3]]


async def test_the_last_batch_can_be_left_out() -> None:
    stream = numbers(*range(5)).batch(2, drop_last=True)
    assert [await epoch(stream) for _ in range(2)] == [[[0, 1], [2, 3]]] * 2


async def test_a_batch_keeps_the_dtype_of_its_examples() -> None:
    stream = as_stream([np.float32(1), np.float32(2)]).batch(2)
    (batch,) = stream.get_epoch_iterator()
    assert batch.dtype == np.float32


async def test_examples_that_differ_in_length_are_batched_for_padding() -> None:
    stream = as_stream([{"x": [1]}, {"x": [2, 3]}]).batch(2)
    (batch,) = stream.get_epoch_iterator()
    assert batch["x"].dtype == object
    assert [row.tolist() for row in batch["x"]] == [[1], [2, 3]]


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ({"x": np.zeros(2)}, {"x": np.zeros((2, 1))}, r"source 'x'.*\(2,\) and \(2, 1\)"),
        ({"x": np.zeros((2, 3))}, {"x": np.zeros((2, 4))}, r"source 'x'.*\(2, 3\) and \(2, 4\)"),
        ({"x": 1}, {"x": [1]}, r"source 'x'.*shapes \(\) and \(1,\)"),
        ({"x": 1}, {"y": 1}, "the sources 'x' and then an element with the sources 'y'"),
        ({"x": 1}, 3, "the sources 'x' and then 3 of type int"),
        ((1, 2), (1, 2, 3), "a tuple of 2 and then a tuple of 3"),
        ({"x": [[1], [2, 3]]}, {"x": 1}, "source 'x': .* which is no array"),
        ({"x": np.datetime64(3, "D")}, {"x": 1.5}, "source 'x': .* which make no array"),
    ],
)
async def test_examples_that_make_no_batch_are_named(first, second, said) -> None:
    with pytest.raises(StreamError, match=said):
        await epoch(as_stream([first, second]).batch(2))


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, None, "2", True], ids=repr)
def test_batch_size_is_a_number_from_1_on(batch_size) -> None:
    with pytest.raises(StreamError, match=f"batch_size of batch.. is {batch_size!r}; expected"):
        numbers(1).batch(batch_size)


async def test_unbatch_gives_the_rows_of_each_batch() -> None:
    assert await epoch(batches(3).unbatch()) == [{"x": i, "y": 10 * i} for i in range(3)]
    assert await epoch(as_stream([([1, 2], [3, 4])]).unbatch()) == [(1, 3), (2, 4)]
    assert await epoch(as_stream([np.array([1, 2])]).unbatch()) == [1, 2]


async def test_unbatch_passes_over_batches_without_rows() -> None:
    assert await epoch(as_stream([[], [1], [], []]).unbatch()) == [1]


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ({"x": [1, 2], "y": [1]}, "source 'y' of length 1 and source 'x' of length 2"),
        ({"x": [1], "y": 3}, "source 'y': 3 of type int, which has no rows"),
        ({"x": np.array(3)}, "which has no rows"),
        ("text", "'text' of type str, which has no rows"),
        ({}, "which has no sources"),
    ],
)
async def test_a_batch_that_has_no_rows_is_named(batch, said) -> None:
    with pytest.raises(StreamError, match=said):
        await epoch(as_stream([batch]).unbatch())


# ---- pad, rename, select


async def test_pad_fills_with_zeros_and_adds_a_mask() -> None:
    stream = as_stream([{"x": [1], "y": 5}, {"x": [2, 3], "y": 6}]).batch(2).pad(["x"])
    (batch,) = stream.get_epoch_iterator()
    assert plain(batch) == {"x": [[1, 0], [2, 3]], "x_mask": [[1, 0], [1, 1]], "y": [5, 6]}
    assert list(batch) == ["x", "x_mask", "y"]
    assert (batch["x"].dtype, batch["x_mask"].dtype) == (np.int64, np.float32)


async def test_pad_without_names_pads_all() -> None:
    rows = as_stream([{"x": [[1, 1]], "y": [2]}, {"x": [[3, 3], [4, 4]], "y": [5, 6]}])
    (batch,) = rows.batch(2).pad(mask_dtype=bool).get_epoch_iterator()
    assert batch["x"].tolist() == [[[1, 1], [0, 0]], [[3, 3], [4, 4]]]
    assert batch["y_mask"].tolist() == [[True, False], [True, True]]


async def test_pad_of_equal_lengths_has_a_mask_of_ones() -> None:
    (batch,) = as_stream([{"x": np.ones((2, 3))}]).pad().get_epoch_iterator()
    assert (batch["x"].shape, batch["x_mask"].tolist()) == ((2, 3), [[1] * 3] * 2)


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ({"x": [np.ones((1, 2)), np.ones((1, 3))]}, r"source 'x'.*\(1, 2\) and \(1, 3\)"),
        ({"x": np.ones(2)}, r"source 'x' with single values .* name the sources to pad"),
        ({"x": []}, "no examples of source 'x'"),
        ({"x": [[1]], "x_mask": 1}, "'x_mask', which is there already"),
        ([1], r"pad\(\) got \[1\] of type list; expected a mapping"),
    ],
)
async def test_what_cannot_be_padded_is_named(batch, said) -> None:
    with pytest.raises(StreamError, match=said):
        await epoch(as_stream([batch]).pad())


async def test_rename_gives_sources_other_names_in_their_order() -> None:
    stream = batches(1).rename({"x": "images"})
    assert stream.sources == ("images", "y")
    assert await epoch(stream) == [{"images": [0], "y": [0]}]


async def test_sources_can_swap_their_names() -> None:
    assert await epoch(batches(2).rename({"x": "y", "y": "x"})) == [{"y": [0, 1], "x": [0, 10]}]


async def test_select_gives_the_named_sources_in_that_order() -> None:
    stream = batches(1).select("y", "x")
    assert stream.sources == ("y", "x")
    assert [list(batch) for batch in stream.get_epoch_iterator()] == [["y", "x"]]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda s: s.rename({"z": "w"}), "source 'z', and there are 'x', 'y'"),
        (lambda s: s.rename({"x": "y"}), "the source 'y' twice"),
        (lambda s: s.rename({}), "rename.. is given {}; expected the new names"),
        (lambda s: s.rename("x"), "rename.. is given 'x'"),
        (lambda s: s.rename({"x": 3}), "rename.. is given"),
        (lambda s: s.select(), r"select.. is given the sources \(\); expected 1 or more"),
        (lambda s: s.select("z"), "source 'z', and there are 'x', 'y'"),
        (lambda s: s.select("x", "x"), "the source 'x' twice"),
        (lambda s: s.select(3), r"select.. is given the sources \(3,\)"),
        (lambda s: s.pad(["z"]), "source 'z', and there are 'x', 'y'"),
        (lambda s: s.pad([]), r"pad.. is given the sources \[\]"),
        (lambda s: s.pad(mask_dtype="nonsense"), "mask_dtype is 'nonsense'"),
        (lambda s: s.map(double, sources=3), "map.. is given the sources 3"),
    ],
)
def test_names_that_make_no_sense_are_refused_at_once(make, said) -> None:
    with pytest.raises(StreamError, match=said):
        make(batches())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda s: s.rename({"z": "w"}), "source 'z', and an element has 'x', 'y'"),
        (lambda s: s.rename({"x": "y"}), "'y', which is there already"),
        (lambda s: s.select("z"), "source 'z', and an element has 'x', 'y'"),
        (lambda s: s.pad(["z"]), "source 'z', and an element has 'x', 'y'"),
    ],
)
async def test_names_are_looked_for_in_elements_whose_sources_are_not_declared(make, said) -> None:
    with pytest.raises(StreamError, match=said):
        await epoch(make(as_stream([{"x": [1], "y": [2]}])))


# ---- What a stream tells of itself


def test_a_transformed_stream_is_a_stream_with_a_state() -> None:
    stream = numbers(1).map(double)
    assert isinstance(stream, Stream)
    assert isinstance(stream, Stateful)
    assert isinstance(stream, DataStream)


def test_a_map_declares_the_sources_that_it_is_told() -> None:
    assert batches().map(double).sources == ()
    assert batches().map(double, sources=("a", "b")).sources == ("a", "b")


@pytest.mark.parametrize(
    ("make", "length"),
    [
        (lambda s: s.map(double), 4),
        (lambda s: s.map(double, concurrency=2), 4),
        (lambda s: s.batch(3), 2),
        (lambda s: s.batch(3, drop_last=True), 1),
        (lambda s: s.rename({"x": "z"}).select("z").pad(), 4),
        (lambda s: s.cache().prefetch(), 4),
    ],
)
def test_the_length_of_an_epoch_follows_from_that_of_the_stream(make, length) -> None:
    assert len(make(batches(7, 2))) == length


@pytest.mark.parametrize("make", [lambda s: s.filter(bool), lambda s: s.unbatch()])
def test_a_length_that_cannot_be_known_is_none(make) -> None:
    with pytest.raises(TypeError, match="no length that could be known"):
        len(make(batches()))


def test_what_is_made_of_a_stream_without_a_length_has_none() -> None:
    with pytest.raises(TypeError, match="does not tell its length"):
        len(as_stream(lambda: [1]).map(double))


def test_examples_become_batches_and_batches_examples() -> None:
    assert not batches().unbatch().batch(2).produces_examples
    assert batches().unbatch().produces_examples


def test_without_as_dict_elements_are_tuples_in_the_order_of_the_sources() -> None:
    iterator = batches(2).select("y", "x").get_epoch_iterator(as_dict=False)
    assert [plain(batch) for batch in iterator] == [([0, 10], [0, 1])]


def test_sources_that_were_declared_and_are_not_there_are_named() -> None:
    stream = batches(2).map(lambda batch: {"a": 1}, sources=("a", "b"))
    with pytest.raises(StreamError, match="to use source 'b', and there are 'a'"):
        next(stream.get_epoch_iterator(as_dict=False))


def test_a_function_is_called_in_the_thread_and_what_is_light_is_done_inline() -> None:
    assert batches().map(double).where == "thread"
    assert batches().select("x").rename({"x": "y"}).where == "inline"
    assert as_stream(lambda: [1]).batch(2).where == "thread"


def test_what_takes_long_to_begin_is_begun_in_the_thread() -> None:
    assert as_stream({1: 0}.keys()).map(double).begins_in_thread
    assert not as_stream({1: 0}.keys()).map(double_later).begins_in_thread
    assert not batches().map(double).begins_in_thread


def test_the_name_of_a_stream_says_what_it_is_made_of() -> None:
    stream = numbers(1).map(double).batch(2).select("x")
    assert repr(stream) == "IterableStream([1]).map(double).batch(2).select('x')"


def test_parts_of_a_stream_are_those_of_all_it_is_made_of() -> None:
    iterator = iter([1])
    stream = as_stream(iterator)
    mapped = stream.map(double)
    made = mapped.batch(2)
    assert list(made.parts()) == [made, mapped, stream, iterator]


def test_close_closes_what_the_stream_is_made_of() -> None:
    closed = []

    class Closing(DataStream):
        def get_epoch_iterator(self, *, as_dict=True):
            return iter([])

        def close(self) -> None:
            closed.append("closed")

    Closing().map(double).batch(2).close()
    assert closed == ["closed"]


# ---- Epochs


async def test_reset_goes_back_to_the_first_epoch() -> None:
    stream = shuffled().map(lambda example: int(example["x"])).batch(3).unbatch()
    first, _ = await epoch(stream), await epoch(stream)
    stream.reset()
    assert await epoch(stream) == first


async def test_next_epoch_leaves_out_what_is_left() -> None:
    stream = shuffled().map(lambda example: int(example["x"])).batch(7).unbatch()
    iterator = stream.get_epoch_iterator()
    next(iterator)
    stream.next_epoch()
    assert await epoch(stream) == shuffled_epochs(2)[1]


async def test_an_epoch_that_is_begun_on_top_of_another_is_the_next() -> None:
    stream = shuffled().map(lambda example: int(example["x"])).batch(2)
    next(stream.get_epoch_iterator())
    assert [n for batch in await epoch(stream) for n in batch] == shuffled_epochs(2)[1]


async def test_an_iterator_that_was_left_for_a_later_one_is_refused() -> None:
    stream = numbers(1, 2).map(double)
    left = stream.get_epoch_iterator()
    stream.get_epoch_iterator()
    with pytest.raises(StreamError, match="this epoch iterator was left for a later one"):
        next(left)


async def test_an_async_iterator_that_was_left_for_a_later_one_is_refused() -> None:
    stream = numbers(1, 2).map(double_later)
    left = stream.get_epoch_iterator()
    assert await epoch(stream) == [2, 4]
    with pytest.raises(StreamError, match="this epoch iterator was left for a later one"):
        await anext(left)


@pytest.mark.parametrize("function", [double, double_later])
async def test_the_end_of_an_epoch_comes_as_often_as_it_is_asked_for(function) -> None:
    stream = numbers(1).map(function)
    iterator = stream.get_epoch_iterator()
    assert [await advance(iterator) for _ in range(4)] == [2, END, END, END]


@pytest.mark.parametrize("concurrency", [1, 2])
async def test_next_epoch_after_a_state_is_the_one_after_its(concurrency) -> None:
    def make():
        return shuffled().map(lambda e: int(e["x"]), concurrency=concurrency)

    stream = make()
    await advance(stream.get_epoch_iterator())
    again = make()
    again.load_state_dict(stream.state_dict())
    again.next_epoch()
    assert await epoch(again) == shuffled_epochs(2)[1]
    again.reset()
    assert await epoch(again) == shuffled_epochs(1)[0]
    stream.close()


async def test_an_error_of_a_fetch_in_a_thread_comes_at_its_batch() -> None:
    class Failing(ArrayStream):
        where = "thread"

        def fetch(self, request):
            batch = super().fetch(request)
            if batch["x"][0] == 2:
                raise OSError("no disk")
            return batch

    stream = Failing({"x": np.arange(6)}, iteration_scheme=SequentialScheme(6, 2)).map(as_it_is)
    iterator = stream.get_epoch_iterator()
    assert await advance(iterator) == {"x": [0, 1]}
    with pytest.raises(OSError, match="no disk"):
        await advance(iterator)
    assert await advance(iterator) == {"x": [4, 5]}
    assert await advance(iterator) is END


async def test_an_error_of_an_async_generator_is_no_cut_off() -> None:
    async def fails():
        yield 1
        raise OSError("no disk")

    iterator = as_stream(fails).map(double).get_epoch_iterator()
    assert await advance(iterator) == 2
    with pytest.raises(OSError, match="no disk"):
        await advance(iterator)
    assert await advance(iterator) is END


async def test_an_async_iterator_is_asked_for_one_element_at_a_time() -> None:
    waits = asyncio.Event()

    async def wait(number):
        waits.set()
        await asyncio.Event().wait()

    iterator = numbers(1, 2).map(wait).get_epoch_iterator()
    asking = asyncio.create_task(anext(iterator))
    await waits.wait()
    with pytest.raises(StreamError, match="while another is awaited; expected one at a time"):
        await anext(iterator)
    asking.cancel()


async def test_an_iterator_goes_on_after_a_cancellation_with_nothing_lost() -> None:
    waits, calls = asyncio.Event(), []

    async def wait_once(batch):
        calls.append(batch)
        if len(calls) == 2:
            waits.set()
            await asyncio.Event().wait()
        return batch

    stream = numbers(*range(6)).map(double_later).batch(2).map(wait_once).unbatch()
    iterator = stream.get_epoch_iterator()
    seen = [plain(await anext(iterator)) for _ in range(2)]
    asking = asyncio.create_task(anext(iterator))
    await waits.wait()
    before = stream.state_dict()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert stream.state_dict() == before
    assert seen + [plain(element) async for element in iterator] == [0, 2, 4, 6, 8, 10]


def test_an_epoch_of_an_async_generator_goes_on_in_another_event_loop(caplog) -> None:
    async def generated():
        for number in range(4):
            yield number

    iterator = as_stream(generated).map(double).get_epoch_iterator()

    async def some(number):
        return [await anext(iterator) for _ in range(number)]

    assert asyncio.run(some(2)) + asyncio.run(some(2)) == [0, 2, 4, 6]
    assert "this one is begun anew, and 2 batches are fetched and left out" in caplog.text


# ---- The place


async def generated_async():
    for number in range(5):
        await asyncio.sleep(0)
        yield number


def generated():
    yield from range(5)


class Foreign:
    """A stream of another package: without a state, with what the protocol asks for."""

    sources = ()
    produces_examples = False
    iteration_scheme = None

    def get_epoch_iterator(self, as_dict=False):
        return iter(range(5))

    def next_epoch(self):
        pass

    reset = close = next_epoch


STREAMS = {
    "list": lambda: as_stream([0, 1, 2, 3, 4]),
    "view": lambda: as_stream(dict.fromkeys(range(5)).keys()),
    "generator function": lambda: as_stream(generated),
    "async generator function": lambda: as_stream(generated_async),
    "iterator with a state": lambda: as_stream(lambda: Count(5)),
    "stream of aloop's": lambda: numbers_with_state(5),
    "async stream with a state": lambda: Async(numbers_with_state(5)),
    "foreign": lambda: ConcatenatedStream([Foreign()]),
}


@pytest.mark.parametrize("function", [double, double_later])
@pytest.mark.parametrize("kind", STREAMS)
async def test_a_stream_goes_on_anywhere(kind, function) -> None:
    def make():
        return STREAMS[kind]().map(function).batch(2)

    await check_every_stop(make, [[[0, 2], [4, 6], [8]]] * 2)


CHAINS = {
    "filter": (
        lambda s: s.filter(lambda n: n % 2),
        lambda numbers: [n for n in numbers if n % 2],
    ),
    "batch": (
        lambda s: s.batch(3),
        lambda numbers: [numbers[:3], numbers[3:6], numbers[6:]],
    ),
    "batch, last one dropped": (
        lambda s: s.batch(3, drop_last=True),
        lambda numbers: [numbers[:3], numbers[3:6]],
    ),
    "whole batches": (lambda s: s.batch(7), lambda numbers: [numbers]),
    "unbatch": (lambda s: s.batch(3).unbatch(), list),
    "all": (
        lambda s: s.batch(4).map(double).unbatch().filter(lambda n: n > 2).batch(2),
        lambda numbers: pairs([2 * n for n in numbers if n > 1]),
    ),
}


def pairs(numbers):
    return [numbers[at : at + 2] for at in range(0, len(numbers), 2)]


@pytest.mark.parametrize("source", [lambda s: s, Async], ids=["sync", "async"])
@pytest.mark.parametrize("kind", CHAINS)
async def test_a_chain_goes_on_anywhere(kind, source) -> None:
    make, of = CHAINS[kind]
    await check_every_stop(
        lambda: make(source(shuffled()).map(lambda example: int(example["x"]))),
        [of(numbers) for numbers in shuffled_epochs(3)],
    )


async def test_a_state_does_not_change_when_the_stream_goes_on() -> None:
    stream = batches().unbatch().batch(2)
    iterator = stream.get_epoch_iterator()
    states, copies = [], []
    for _ in iterator:
        states.append(stream.state_dict())
        copies.append(repr(states[-1]))
    assert [repr(state) for state in states] == copies
    assert len(set(copies)) == len(copies)


async def test_a_state_has_no_data_in_it() -> None:
    stream = as_stream([np.zeros(1000)] * 4).batch(2).unbatch()
    next(stream.get_epoch_iterator())
    assert len(repr(stream.state_dict())) < 200


def test_a_state_of_another_chain_is_refused_by_both() -> None:
    state = batches().unbatch().batch(2).state_dict()
    with pytest.raises(
        StreamError, match=r"'ArrayStream.unbatch\(\).batch\(2\)', .* 'ArrayStream.batch\(3\)'"
    ):
        batches().batch(3).load_state_dict(state)


@pytest.mark.parametrize("state", [{}, {"chain": "IterableStream.batch(2)"}], ids=str)
def test_what_is_no_state_is_refused(state) -> None:
    with pytest.raises(StreamError, match="the stream's state"):
        numbers(1).batch(2).load_state_dict(state)


@pytest.mark.parametrize("place", [{}, {"stage": {}}, {"stage": {"count": -1}}], ids=str)
def test_what_is_no_place_is_refused(place) -> None:
    state = {"chain": "IterableStream.batch(2)", "place": place}
    with pytest.raises(StreamError, match="the stream's state has a place with"):
        numbers(1).batch(2).load_state_dict(state)


def test_data_that_changed_its_length_is_named_by_both_lengths() -> None:
    state = batches(7).unbatch().state_dict()
    with pytest.raises(StreamError, match=r"7 examples .* the stream has 6"):
        batches(6).unbatch().load_state_dict(state)


@pytest.mark.parametrize("make", [list, lambda values: lambda: (n for n in values)])
async def test_an_epoch_that_is_too_short_to_go_on_in_is_named_by_both_lengths(make) -> None:
    def stream(length):
        return as_stream(make(range(length))).map(double)

    longer = stream(5)
    iterator = longer.get_epoch_iterator()
    for _ in range(4):
        next(iterator)
    again = stream(3)
    again.load_state_dict(longer.state_dict())
    with pytest.raises(StreamError, match=r"ended after 3 batches; expected the 4"):
        await epoch(again)


async def test_a_batch_that_has_fewer_rows_than_were_given_is_named() -> None:
    stream = as_stream([[1, 2, 3]]).unbatch()
    iterator = stream.get_epoch_iterator()
    assert [next(iterator) for _ in range(3)] == [1, 2, 3]
    state = stream.state_dict()
    state["place"] = {"stage": {"count": 0}, "given": 3}
    again = as_stream([[1, 2]]).unbatch()
    again.load_state_dict(state)
    with pytest.raises(StreamError, match="has 2 rows; expected the 3"):
        await epoch(again)


def test_a_stream_that_has_lost_its_state_is_refused() -> None:
    state = batches().batch(2).state_dict()
    del state["place"]["stage"]["stream"]
    again = batches().batch(2)
    again.load_state_dict(state)
    with pytest.raises(CheckpointValueError, match="expected the stream that it was saved with"):
        again.get_epoch_iterator()


async def test_a_live_source_is_not_replayed(caplog) -> None:
    live = iter(range(100))
    stream = as_stream(lambda: live, on_resume="live").map(double)
    iterator = stream.get_epoch_iterator()
    assert [next(iterator) for _ in range(2)] == [0, 2]
    again = as_stream(lambda: live, on_resume="live").map(double)
    again.load_state_dict(stream.state_dict())
    assert next(again.get_epoch_iterator()) == 4
    assert caplog.text == ""


# ---- Trained on


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 6, 7])
@pytest.mark.parametrize("source", [lambda s: s, Async], ids=["sync", "async"])
@pytest.mark.parametrize("function", [double, double_later])
async def test_a_training_goes_on_anywhere(tmp_path, source, function, stop) -> None:
    def stream():
        return source(shuffled()).map(lambda e: int(e["x"])).map(function).batch(3)

    trained = []
    for finish in (stop, 9):
        await loop_of(stream(), tmp_path, trained, finish).run()
    expected = [[2 * n for n in numbers] for numbers in shuffled_epochs(3)]
    assert trained == [
        batch for numbers in expected for batch in (numbers[:3], numbers[3:6], numbers[6:])
    ]


async def test_a_training_that_is_run_again_goes_on_with_what_was_read(tmp_path) -> None:
    trained = []
    stream = Async(numbers_with_state(6)).map(double).batch(2)
    loop = loop_of(stream, tmp_path, trained, 2)
    await loop.run()
    loop.find_extension("FinishAfter").set_conditions(after_n_batches=4)
    await loop.run()
    assert trained == [[0, 2], [4, 6], [8, 10], [0, 2]]


async def test_a_transformed_stream_and_its_source_are_not_trained_on_at_once() -> None:
    waits, let = asyncio.Event(), asyncio.Event()

    async def step(batch) -> None:
        waits.set()
        await let.wait()

    def make(stream):
        return MainLoop(step, stream, extensions=[FinishAfter(after_n_batches=1)], signals="off")

    source = batches()
    running = asyncio.create_task(make(source.batch(2)).run())
    await waits.wait()
    with pytest.raises(RuntimeError, match="the data stream"):
        await make(source).run()
    let.set()
    await running


# ---- Any chain


def odd(number):
    return bool(np.sum(number) % 2)


async def odd_later(number):
    await asyncio.sleep(0)
    return odd(number)


STAGES = {
    "map": lambda s: s.map(double),
    "map async": lambda s: s.map(double_later),
    "map 3": lambda s: s.map(double, concurrency=3),
    "map async 3": lambda s: s.map(double_later, concurrency=3),
    "filter": lambda s: s.filter(odd),
    "filter async": lambda s: s.filter(odd_later),
    "batch and unbatch": lambda s: s.batch(3).unbatch(),
    "batch, drop, unbatch": lambda s: s.batch(2, drop_last=True).unbatch(),
    "cache": lambda s: s.cache(),
    "prefetch": lambda s: s.prefetch(2),
    "prefetch 2": lambda s: s.prefetch(3, workers=2),
}


@pytest.mark.filterwarnings("error")
@settings(deadline=None, max_examples=25)
@given(
    source=st.sampled_from(["stream of aloop's", "async stream with a state", "list"]),
    stages=st.lists(st.sampled_from(list(STAGES)), max_size=5),
    data=st.data(),
)
def test_any_chain_goes_on_anywhere(source, stages, data) -> None:
    def make():
        stream = STREAMS[source]()
        for stage in stages:
            stream = STAGES[stage](stream)
        return stream.batch(2)

    async def check() -> None:
        straight = await walk_with_stop(make, 0, 3)
        stop = data.draw(st.integers(0, len(straight) - 1))
        assert await walk_with_stop(make, stop, 3) == straight

    asyncio.run(check())


# ---- What a function or a source does wrong


@pytest.mark.parametrize("error", [StopIteration, StopAsyncIteration])
@pytest.mark.parametrize("make", ["map", "filter", "map at once"])
async def test_the_end_that_a_function_raises_is_no_end_of_the_epoch(error, make):
    def function(element):
        if element == 3:
            raise error
        return True

    async def later(element):
        return function(element)

    chosen = later if error is StopAsyncIteration else function
    stream = as_stream(list(range(9)))
    stream = (
        stream.filter(chosen)
        if make == "filter"
        else stream.map(chosen, concurrency=2 if make == "map at once" else 1)
    )
    with pytest.raises(StreamError, match=f"raised {error.__name__}, which is the end of an itera"):
        await training(stream, [], 1).run()


def test_unbatch_takes_the_rows_of_pandas_by_position():
    class Labelled:
        """As a Series: looked up by label."""

        iloc = None

        def __len__(self):
            return 3

        def __array__(self, dtype=None, copy=None):
            return np.array([10, 20, 30])

        def __getitem__(self, label):
            raise KeyError(label)

    stream = as_stream([{"x": Labelled()}]).unbatch()
    assert [element["x"] for element in stream.get_epoch_iterator()] == [10, 20, 30]


@pytest.mark.parametrize("where", ["inline", "thread"])
async def test_a_place_after_a_failure_is_that_of_the_last_batch(where, tmp_path):
    def make(trained, *fails_at):
        def fails(element):
            if element in fails_at:
                raise OSError
            return element

        stream = as_stream(list(range(9))).map(fails).batch(2)
        stream.where = where
        loop = training(stream, trained, 1)
        loop.extensions.insert(0, Checkpoint(tmp_path / "saved", resume=True, on_error=True))
        return loop

    trained = []
    with pytest.raises(OSError):
        await make(trained, 5).run()
    await make(trained).run()
    assert trained == plain([[0, 1], [2, 3], [4, 5], [6, 7], [8]])


async def test_the_next_epoch_of_a_chain_made_ahead_is_the_next_one():
    async def same(element):
        return element

    for taken in range(1, 4):
        stream = ArrayStream(
            {"x": np.arange(4)}, iteration_scheme=ShuffledExampleScheme(4, seed=1)
        ).map(same, concurrency=3)
        iterator = stream.get_epoch_iterator()
        for _ in range(taken):
            await anext(iterator)
        await until(lambda made=stream.stage: made._has_all or made._is_full)  # ahead
        stream.next_epoch()
        await iterator.rest()
        assert stream.state_dict()["place"]["stream"]["epoch"] == 1


async def test_closing_a_chain_takes_nothing_from_its_queue(caplog):
    async def same(element):
        return element

    queue = asyncio.Queue()
    stream = as_stream(queue).map(same, concurrency=2)
    loop = training(stream, [], 1)
    task = asyncio.create_task(loop.run())
    await until(lambda: queue._getters)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    loop.data_stream.close()
    await until(lambda: not queue._getters)
    queue.put_nowait(1)
    assert queue.qsize() == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda s: s.pad(),
            r"pad\(\) is called on .*, which gives single examples; expected batch",
        ),
        (lambda s: zip_streams([s, s]), r"expected the streams one by one, as zip_streams\(a, b\)"),
        (
            lambda s: ConcatenatedStream(s, s),
            r"expected one list, as ConcatenatedStream\(\[a, b\]\)",
        ),
    ],
    ids=["pad", "zip", "concatenated"],
)
def test_what_is_called_in_another_way_than_meant_is_refused_at_once(make, message) -> None:
    scheme = ShuffledExampleScheme(4, seed=1)
    with pytest.raises(StreamError, match=message):
        make(ArrayStream({"x": np.arange(4)}, iteration_scheme=scheme))


def test_streams_are_shown_as_they_were_called() -> None:
    stream = numbers(1, 2)
    assert repr(stream.map(double, concurrency=4)).endswith(".map(double, concurrency=4)")
    assert repr(stream.batch(5, drop_last=True)).endswith(".batch(5, drop_last=True)")


@pytest.mark.parametrize("method", ["unbatch", "pad", "batch"])
def test_what_copies_much_is_read_in_a_thread(method) -> None:
    scheme = SequentialScheme(4, 2)
    stream = ArrayStream({"x": np.zeros((4, 2))}, iteration_scheme=scheme)
    assert stream.where == "inline"
    assert getattr(stream, method)(*([3] if method == "batch" else [])).where == "thread"


# ---- What is refused at once, and rows


@pytest.mark.parametrize("state", [None, 3, "text"], ids=repr)
def test_a_state_that_is_no_mapping_is_refused(state) -> None:
    with pytest.raises(StreamError, match=r"expected the dictionary that state_dict\(\) gave"):
        as_stream([1]).batch(2).load_state_dict(state)


def _generator(element):
    yield element


async def _async_generator(element):
    yield element


class _Generating:
    def __call__(self, element):
        yield element


@pytest.mark.parametrize(
    "function", [_generator, _async_generator, _Generating(), partial(_generator)]
)
@pytest.mark.parametrize("method", ["map", "filter"])
def test_a_generator_function_is_refused(function, method) -> None:
    with pytest.raises(StreamError, match="is given the generator function"):
        getattr(as_stream([1]), method)(function)


@pytest.mark.parametrize("raised", [TypeError, RuntimeError])
async def test_what_numpy_makes_no_array_of_is_named_with_its_source(raised) -> None:
    class Tensor:
        def __array__(self, dtype=None, copy=None):
            raise raised("it requires grad")

    with pytest.raises(StreamError, match=r"source 'x': .*it requires grad"):
        await epoch(as_stream([{"x": Tensor()}] * 2).batch(2))


class Table:
    """What looks rows up by label, as a DataFrame of pandas does."""

    iloc = None

    def __init__(self, columns) -> None:
        self.columns = list(columns)
        self._columns = columns

    def __getitem__(self, name):
        return self._columns[name]

    def __len__(self) -> int:
        return len(self._columns[self.columns[0]])

    def __array__(self, dtype=None, copy=None):
        return np.stack([self._columns[name] for name in self.columns], axis=1)


async def test_the_rows_of_a_table_in_a_batch_are_its_rows_and_not_its_columns() -> None:
    table = Table({0: np.array([1, 2, 3]), 1: np.array([4, 5, 6])})
    rows = await epoch(as_stream([{"a": table}]).unbatch())
    assert rows == [{"a": [1, 4]}, {"a": [2, 5]}, {"a": [3, 6]}]


async def test_a_table_whose_columns_have_one_name_is_refused() -> None:
    table = Table({"a": np.arange(2)})
    table.columns = ["a", "a"]
    with pytest.raises(StreamError, match="expected names that differ"):
        await epoch(as_stream([table]).unbatch())


@pytest.mark.parametrize("batch", [np.ones((4, 2)), (np.ones((4, 2)),), {"x": np.ones((4, 2))}])
def test_a_row_does_not_keep_its_batch_in_memory(batch) -> None:
    row = next(as_stream([batch]).unbatch().get_epoch_iterator())
    array = row["x"] if isinstance(row, dict) else row[0] if isinstance(row, tuple) else row
    assert array.base is None
