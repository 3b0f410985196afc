"""What can be a data stream, and how its epochs go."""

from collections import OrderedDict
from types import MappingProxyType

import numpy as np
import pytest

from aloop.errors import StreamError
from aloop.protocols import Stream
from aloop.streams import ArrayStream, DataStream, SequentialScheme, as_stream


async def gather(iterator):
    return [batch async for batch in iterator]


class Reusable:
    """An async iterable that can be gone through many times."""

    def __aiter__(self):
        return generated()


async def generated():
    yield 1
    yield 2


# ---- Sync sources


@pytest.mark.parametrize(
    "source",
    [[1, 2, 3], (1, 2, 3), range(1, 4), {1: 0, 2: 0, 3: 0}.keys(), np.array([1, 2, 3])],
    ids=["list", "tuple", "range", "view", "array"],
)
def test_an_iterable_is_gone_through_once_an_epoch(source):
    stream = as_stream(source)
    assert [list(stream.get_epoch_iterator()) for _ in range(2)] == [[1, 2, 3]] * 2


def test_batches_of_an_iterable_come_as_they_are():
    batch = {"x": 1}
    assert next(as_stream([batch]).get_epoch_iterator(as_dict=True)) is batch


def test_as_dict_changes_nothing_about_an_iterable():
    assert list(as_stream([1, 2]).get_epoch_iterator(as_dict=False)) == [1, 2]


def test_an_iterable_stream_is_a_stream_by_the_protocol():
    assert isinstance(as_stream([1]), Stream)


def test_a_stream_of_a_list_is_as_long_as_the_list():
    assert len(as_stream([1, 2, 3])) == 3


def test_a_stream_of_a_generator_has_no_length():
    with pytest.raises(TypeError):
        len(as_stream(batch for batch in (1, 2)))


def test_a_generator_gives_its_batches_in_the_first_epoch():
    assert list(as_stream(batch for batch in (1, 2)).get_epoch_iterator()) == [1, 2]


def test_a_second_epoch_of_a_generator_is_refused():
    stream = as_stream(batch for batch in (1, 2))
    stream.get_epoch_iterator()
    with pytest.raises(StreamError, match=r"was used up by its first epoch; .* give the function"):
        stream.get_epoch_iterator()


def test_an_iterable_that_grows_is_read_as_it_is_then():
    batches = [1]
    stream = as_stream(batches)
    batches.append(2)
    assert list(stream.get_epoch_iterator()) == [1, 2]


# ---- Async sources


async def test_an_async_iterable_is_gone_through_once_an_epoch():
    stream = as_stream(Reusable())
    assert [await gather(stream.get_epoch_iterator()) for _ in range(2)] == [[1, 2]] * 2


async def test_an_async_generator_gives_its_batches_in_the_first_epoch():
    assert await gather(as_stream(generated()).get_epoch_iterator()) == [1, 2]


async def test_a_second_epoch_of_an_async_generator_is_refused():
    stream = as_stream(generated())
    await gather(stream.get_epoch_iterator())
    with pytest.raises(StreamError, match=r"was used up by its first epoch; .* give the function"):
        stream.get_epoch_iterator()


async def test_what_is_both_is_read_as_async():
    class Both(Reusable):
        def __iter__(self):
            return iter([3])

    assert await gather(as_stream(Both()).get_epoch_iterator()) == [1, 2]


# ---- Functions


async def test_an_async_generator_function_is_called_for_each_epoch():
    stream = as_stream(generated)
    assert [await gather(stream.get_epoch_iterator()) for _ in range(2)] == [[1, 2]] * 2


def test_a_generator_function_is_called_for_each_epoch():
    def generate():
        yield 1
        yield 2

    stream = as_stream(generate)
    assert [list(stream.get_epoch_iterator()) for _ in range(2)] == [[1, 2]] * 2


def test_a_function_is_not_called_before_its_epoch_begins():
    calls = []
    stream = as_stream(lambda: calls.append("called") or [1])
    before = list(calls)
    stream.get_epoch_iterator()
    assert (before, calls) == ([], ["called"])


def test_a_function_may_return_an_iterable():
    assert list(as_stream(lambda: [1, 2]).get_epoch_iterator()) == [1, 2]


async def test_a_function_may_return_an_async_iterable():
    assert await gather(as_stream(lambda: Reusable()).get_epoch_iterator()) == [1, 2]


def test_an_object_that_can_be_called_is_a_function_too():
    class Epochs:
        def __init__(self):
            self.calls = 0

        def __call__(self):
            self.calls += 1
            return [self.calls]

    stream = as_stream(Epochs())
    assert [list(stream.get_epoch_iterator()) for _ in range(2)] == [[1], [2]]


@pytest.mark.parametrize("returned", [None, 3, object()], ids=["None", "int", "object"])
def test_a_function_that_returns_nonsense_is_refused_by_what_it_returned(returned):
    stream = as_stream(lambda: returned)
    with pytest.raises(StreamError) as caught:
        stream.get_epoch_iterator()
    assert f"returned {returned!r:.80} of type {type(returned).__name__}" in str(caught.value)


@pytest.mark.parametrize("returned", ["text", b"bytes", {"x": 1}], ids=repr)
def test_a_function_that_returns_what_no_source_may_be_is_refused_too(returned):
    stream = as_stream(lambda: returned)
    with pytest.raises(StreamError, match=f"of type {type(returned).__name__}"):
        stream.get_epoch_iterator()


def test_an_error_of_the_function_goes_up_as_it_is():
    def fails():
        raise OSError("no disk")

    with pytest.raises(OSError, match="no disk"):
        as_stream(fails).get_epoch_iterator()


# ---- Streams


def test_a_stream_is_given_back_as_it_is():
    stream = ArrayStream({"x": [1]}, iteration_scheme=SequentialScheme(1, 1))
    assert as_stream(stream) is stream


def test_anything_with_an_epoch_iterator_is_a_stream():
    class Foreign:
        def get_epoch_iterator(self, as_dict=False):
            return iter([])

    stream = Foreign()
    assert as_stream(stream) is stream


def test_the_base_of_the_streams_has_no_batches():
    with pytest.raises(TypeError, match="get_epoch_iterator"):
        DataStream()


@pytest.mark.parametrize("method", ["next_epoch", "reset", "close"])
def test_the_base_of_the_streams_answers_to_the_whole_interface(method):
    assert getattr(as_stream([1]), method)() is None


# ---- What is refused


@pytest.mark.parametrize(
    "source", ["text", b"bytes", {"x": [1]}, OrderedDict(x=[1]), 3, None, 2.5], ids=repr
)
def test_what_holds_no_batches_is_refused_by_value_and_type(source):
    with pytest.raises(StreamError) as caught:
        as_stream(source)
    assert f"the data stream is {source!r:.80} of type {type(source).__name__}" in str(caught.value)


@pytest.mark.parametrize(
    "source", [MappingProxyType({"x": [1]}), bytearray(b"bytes")], ids=["mapping", "bytearray"]
)
def test_kin_of_text_and_dictionaries_are_refused_too(source):
    with pytest.raises(StreamError, match="wrap a single batch in a list"):
        as_stream(source)


@pytest.mark.parametrize("source", [list, dict, Reusable])
def test_a_class_is_refused(source):
    with pytest.raises(StreamError, match="of type type"):
        as_stream(source)


def test_a_stream_class_that_was_not_instantiated_is_refused():
    with pytest.raises(StreamError, match=r"is <class .*ArrayStream'> .* expected a stream"):
        as_stream(ArrayStream)


def test_the_stream_of_a_long_list_is_described_in_a_line():
    assert len(repr(as_stream([{"x": number} for number in range(100_000)]))) < 200


# ---- Closing


@pytest.mark.parametrize("make", [lambda function: function, lambda function: function()])
def test_closing_ends_the_generator_of_an_epoch_that_was_left(make):
    ends = []

    def source():
        try:
            yield from range(5)
        finally:
            ends.append("closed")

    stream = as_stream(make(source))
    iterator = stream.get_epoch_iterator()
    next(iterator)
    stream.close()
    assert ends == ["closed"]


def test_what_the_clean_up_of_a_generator_raises_comes_out_of_closing():
    def source():
        try:
            yield 1
        finally:
            raise OSError("cannot be closed")

    stream = as_stream(source)
    iterator = stream.get_epoch_iterator()
    next(iterator)
    with pytest.raises(OSError, match="cannot be closed"):
        stream.close()


@pytest.mark.parametrize("source", [[1, 2], lambda: [1, 2], generated, Reusable()])
def test_closing_what_has_nothing_to_close_does_nothing(source):
    stream = as_stream(source)
    stream.close()
    stream.get_epoch_iterator()
    stream.close()
