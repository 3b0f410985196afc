"""Streams that are made of several: beside one another, one after the other, by chance."""

import asyncio
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_tools import Async, check_every_stop, epoch, kept, loop_of, walk_with_stop

from aloop import ArrayStream, ConcatenatedStream, MixtureStream, as_stream, zip_streams
from aloop.errors import ArgumentError, StreamError
from aloop.streams import SequentialScheme, ShuffledExampleScheme, ZippedStream


def column(name, examples=5):
    """A shuffled stream of examples of one source."""
    return ArrayStream(
        {name: np.arange(examples)}, iteration_scheme=ShuffledExampleScheme(examples, seed=3)
    )


def order(epoch, examples=5):
    return ShuffledExampleScheme(examples, seed=3).epoch_indices(epoch).tolist()


def numbered(examples=5, offset=0):
    return column("n", examples).map(lambda example: int(example["n"]) + offset)


async def later(element):
    await asyncio.sleep(0)
    return element


KINDS = {
    "sync": lambda stream: stream,
    "async": Async,
    "async function": lambda stream: stream.map(later),
    "made ahead": lambda stream: stream.map(later, concurrency=2),
    "generator": lambda stream: as_stream(lambda: (n for n in stream.get_epoch_iterator())),
}


# ---- zip


async def test_zipped_streams_have_the_sources_of_all() -> None:
    stream = zip_streams(column("x"), column("y"))
    assert stream.sources == ("x", "y")
    assert await epoch(stream) == [{"x": n, "y": n} for n in order(0)]


async def test_zipped_streams_that_declare_no_sources_are_zipped_by_what_comes() -> None:
    stream = zip_streams([{"x": 1}, {"x": 2}], lambda: ({"y": n} for n in (3, 4)))
    assert [await epoch(stream) for _ in range(2)] == [[{"x": 1, "y": 3}, {"x": 2, "y": 4}]] * 2


@pytest.mark.parametrize("kind", ["sync", "async", "async function", "made ahead"])
async def test_a_zipped_stream_goes_on_anywhere(kind) -> None:
    await check_every_stop(
        lambda: zip_streams(column("x"), KINDS[kind](column("y"))),
        [[{"x": n, "y": n} for n in order(e)] for e in range(3)],
    )


@pytest.mark.parametrize("kind", ["sync", "async", "made ahead"])
@pytest.mark.parametrize("lengths", [(5, 3), (3, 5)])
async def test_the_shortest_ends_the_epoch_where_they_may_differ(kind, lengths) -> None:
    first, second = lengths
    await check_every_stop(
        lambda: zip_streams(column("x", first), KINDS[kind](column("y", second)), strict=False),
        [
            [{"x": x, "y": y} for x, y in zip(order(e, first), order(e, second), strict=False)]
            for e in range(3)
        ],
    )


@pytest.mark.parametrize("lengths", [(5, 3), (3, 5)])
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_streams_that_end_one_before_another_are_named(kind, lengths) -> None:
    first, second = lengths
    stream = zip_streams(column("x", first), KINDS[kind](column("y", second).cache()))
    with pytest.raises(StreamError) as caught:
        await epoch(stream)
    names = ["ArrayStream", "ArrayStream.cache()" if kind == "sync" else "Async"]
    ended, other = (0, 1) if first < second else (1, 0)
    assert f"number {ended} ({names[ended]}) has ended, and number {other} ({names[other]})" in str(
        caught.value
    )


def test_a_source_that_two_streams_have_is_named_at_once() -> None:
    with pytest.raises(StreamError, match=r"several have the source 'x'; .*rename"):
        zip_streams(column("x"), column("y"), column("x"))


async def test_a_source_that_two_elements_have_is_named() -> None:
    with pytest.raises(StreamError, match="several have the source 'x'"):
        await epoch(zip_streams([{"x": 1, "z": 1}], [{"x": 1, "y": 2}]))


async def test_elements_that_are_no_mappings_cannot_be_zipped() -> None:
    with pytest.raises(StreamError, match="zip got 1 of type int; expected a mapping by source"):
        await epoch(zip_streams([1], [2]))


def test_a_zipped_stream_is_as_long_as_the_shortest() -> None:
    assert len(zip_streams(column("x", 5), column("y", 3), strict=False)) == 3


# ---- One after the other


@pytest.mark.parametrize("kind", KINDS)
async def test_concatenated_streams_come_one_after_the_other_and_go_on_anywhere(kind) -> None:
    if kind == "generator":
        expected = [[*range(3), 10, 11]] * 2

        def make():
            return ConcatenatedStream([[0, 1, 2], lambda: (n for n in (10, 11))])
    else:
        expected = [[*order(e, 3), *(n + 10 for n in order(e, 2))] for e in range(3)]

        def make():
            return ConcatenatedStream([KINDS[kind](numbered(3)), numbered(2, offset=10)])

    await check_every_stop(make, expected)


async def test_an_epoch_begun_on_top_of_another_goes_through_all_again() -> None:
    stream = ConcatenatedStream([numbered(3), numbered(2, offset=10)])
    iterator = stream.get_epoch_iterator()
    for _ in range(4):
        next(iterator)
    state = stream.state_dict()
    assert await epoch(stream) == [*order(1, 3), *(n + 10 for n in order(1, 2))]
    stream.load_state_dict(kept(state))
    assert len(await epoch(stream)) == 1


def test_a_concatenated_stream_is_as_long_as_all_together() -> None:
    assert len(ConcatenatedStream([numbered(3), numbered(2)])) == 5


# ---- A mixture


def make_mixture(stop="all", kind="sync", weights=(1, 3), seed=5):
    streams = [KINDS[kind](numbered(3)), numbered(6, offset=10)]
    return MixtureStream(streams, weights, seed=seed, stop=stop)


def mixed(epochs, stop, weights=(1, 3), seed=5):
    """What a mixture is by its definition."""
    result = []
    for e in range(epochs):
        left = [order(e, 3), [n + 10 for n in order(e, 6)]]
        draws = np.random.default_rng((seed, e, 0)).random(1024)
        elements = []
        for draw in draws:
            ends = [weight if numbers else 0 for weight, numbers in zip(weights, left, strict=True)]
            if stop == "first":
                ends = list(weights)
            if not sum(ends):
                break
            chosen = left[0] if draw * sum(ends) < ends[0] else left[1]
            if not chosen:
                break
            elements.append(chosen.pop(0))
        result.append(elements)
    return result


@pytest.mark.parametrize("kind", ["sync", "async", "async function", "made ahead"])
@pytest.mark.parametrize("stop", ["all", "first"])
async def test_a_mixture_is_chosen_by_chance_and_goes_on_anywhere(stop, kind) -> None:
    await check_every_stop(lambda: make_mixture(stop, kind), mixed(3, stop))


async def test_every_element_of_a_mixture_is_given_once_an_epoch() -> None:
    stream = make_mixture()
    for _ in range(5):
        assert sorted(await epoch(stream)) == [0, 1, 2, 10, 11, 12, 13, 14, 15]


async def test_epochs_and_seeds_mix_differently() -> None:
    def of_first(elements):
        return [element < 10 for element in elements]

    stream, other = make_mixture(), make_mixture(seed=6)
    epochs = [of_first(await epoch(stream)) for _ in range(4)]
    assert len({tuple(choices) for choices in [*epochs, of_first(await epoch(other))]}) > 3


async def test_streams_are_chosen_as_often_as_they_weigh() -> None:
    many = [lambda: iter([0] * 20_000), lambda: iter([1] * 20_000), lambda: iter([2] * 20_000)]
    stream = MixtureStream(many, [1, 0, 3], seed=1, stop="first")
    elements = (await epoch(stream))[:20_000]
    assert elements.count(1) == 0
    assert abs(elements.count(2) / 20_000 - 0.75) < 4 * math.sqrt(0.75 * 0.25 / 20_000)


async def test_choices_beyond_the_first_block_go_on_too() -> None:
    def make():
        return MixtureStream([range(1500), range(5000, 6500)], seed=2)

    straight = await walk_with_stop(make, 0, 1)
    for stop in (1023, 1024, 1025, 2048, 2500):
        assert await walk_with_stop(make, stop, 1) == straight


async def test_a_stream_of_no_weight_is_left_out() -> None:
    stream = MixtureStream([[1, 2], [3]], [1, 0])
    assert [await epoch(stream) for _ in range(2)] == [[1, 2]] * 2
    assert len(stream) == 2


async def test_streams_can_be_mixed_by_name() -> None:
    stream = MixtureStream({"a": [1, 2], "b": [3, 4]}, {"b": 1, "a": 0})
    assert await epoch(stream) == [3, 4]


def test_a_mixture_that_ends_with_the_first_has_no_length() -> None:
    assert len(make_mixture()) == 9
    with pytest.raises(TypeError, match="no known length"):
        len(make_mixture("first"))


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ([1], "expected 2 numbers, one of each stream"),
        ([1, 2, 3], "expected 2 numbers"),
        (3, "weights is 3; expected 2 numbers"),
        ("ab", "weights is 'ab'; expected 2 numbers"),
        ({"a": 1, "b": 2}, "expected 2 numbers, one of each stream, in a list"),
        ([1, -1], r"\[1, -1\]; expected numbers from 0 on"),
        ([1, math.nan], "none of them NaN or infinite"),
        ([1, math.inf], "none of them NaN or infinite"),
        ([1, "2"], "expected numbers from 0 on"),
        ([0, 0], "expected one at least above 0"),
    ],
)
def test_weights_that_make_no_sense_are_refused(weights, said) -> None:
    with pytest.raises(ArgumentError, match=said):
        MixtureStream([[1], [2]], weights)


def test_weights_by_names_that_are_others_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"or by the names \('a', 'b'\)"):
        MixtureStream({"a": [1], "b": [2]}, {"a": 1, "c": 1})


@pytest.mark.parametrize("seed", [-1, 1.5, "3"], ids=repr)
def test_a_seed_is_a_number_from_0_on(seed) -> None:
    with pytest.raises(StreamError, match=f"seed is {seed!r}; expected a whole number, 0 or more"):
        MixtureStream([[1]], seed=seed)


def test_an_epoch_stops_with_the_first_or_with_all() -> None:
    with pytest.raises(ArgumentError, match="stop is 'last'; expected 'all' or 'first'"):
        MixtureStream([[1]], stop="last")


@pytest.mark.parametrize("other", [{"weights": (1, 2)}, {"seed": 6}, {"stop": "first"}], ids=str)
def test_a_state_of_another_mixture_is_refused(other) -> None:
    state = make_mixture().state_dict()
    with pytest.raises(StreamError, match=r"is that of 'mix\(.*, but the stream is 'mix\("):
        make_mixture(**other).load_state_dict(state)


# ---- All of them


COMBINATIONS = {
    "zip": lambda streams: zip_streams(*streams),
    "mixture": MixtureStream,
    "concatenated": ConcatenatedStream,
}


@pytest.mark.parametrize("kind", COMBINATIONS)
@pytest.mark.parametrize("inside", [lambda s: s, lambda s: s.batch(2)], ids=["itself", "inside"])
def test_a_stream_that_is_in_it_twice_is_refused(kind, inside) -> None:
    stream = column("x")
    with pytest.raises(StreamError, match=r"twice, perhaps inside others; .* make another one"):
        COMBINATIONS[kind]([stream, inside(stream)])


@pytest.mark.parametrize("kind", COMBINATIONS)
def test_no_streams_are_refused(kind) -> None:
    with pytest.raises(StreamError, match="given no streams; expected one at least"):
        COMBINATIONS[kind]([])


@pytest.mark.parametrize("kind", ["mixture", "concatenated"])
def test_what_is_no_list_of_streams_is_refused(kind) -> None:
    with pytest.raises(StreamError, match="expected a list of streams"):
        COMBINATIONS[kind](column("x"))


@pytest.mark.parametrize("kind", COMBINATIONS)
def test_what_is_no_stream_is_refused(kind) -> None:
    with pytest.raises(StreamError, match="the data stream is 3 of type int"):
        COMBINATIONS[kind]([[1], 3])


@pytest.mark.parametrize("kind", ["mixture", "concatenated"])
def test_streams_of_other_sources_are_refused(kind) -> None:
    with pytest.raises(StreamError, match="with the sources 'x' and 'y'; expected the same"):
        COMBINATIONS[kind]([column("x"), column("y")])


@pytest.mark.parametrize("kind", COMBINATIONS)
def test_batches_and_examples_are_not_combined(kind) -> None:
    batches = ArrayStream({"x": np.arange(4)}, iteration_scheme=SequentialScheme(4, 2))
    with pytest.raises(StreamError, match="streams of batches and streams of examples"):
        COMBINATIONS[kind]([batches, column("y" if kind == "zip" else "x")])


def test_combined_streams_are_read_inline_where_all_are() -> None:
    assert zip_streams(column("x"), column("y")).where == "inline"
    assert zip_streams(column("x"), column("y").map(later)).where == "thread"


def test_parts_of_a_combined_stream_are_those_of_all() -> None:
    x, y = column("x"), column("y")
    stream = ZippedStream(x, y)
    assert list(stream.parts()) == [stream, x, y]


@pytest.mark.parametrize("kind", COMBINATIONS)
async def test_reset_and_next_epoch_go_through_all(kind) -> None:
    stream = COMBINATIONS[kind]([column("x"), column("y" if kind == "zip" else "x")])
    epochs = [await epoch(stream) for _ in range(3)]
    stream.reset()
    stream.next_epoch()
    assert await epoch(stream) == epochs[1]
    stream.next_epoch()
    stream.reset()
    assert await epoch(stream) == epochs[0]


def test_streams_that_do_not_tell_their_length_have_none_together() -> None:
    with pytest.raises(TypeError, match="does not tell its length"):
        len(ConcatenatedStream([[1], lambda: [2]]))


async def test_what_is_made_ahead_of_a_left_epoch_is_left_too() -> None:
    def make():
        ahead = numbered(5).map(later, concurrency=3)
        return zip_streams(
            numbered(2).map(lambda n: {"a": n}), ahead.map(lambda n: {"b": n}), strict=False
        )

    expected = [
        [{"a": a, "b": b} for a, b in zip(order(e, 2), order(e), strict=False)] for e in range(3)
    ]
    await check_every_stop(make, expected)


@pytest.mark.parametrize("stop", [1, 4, 5, 9, 10])
@pytest.mark.parametrize("kind", ["sync", "made ahead"])
async def test_a_training_on_combined_streams_goes_on_anywhere(tmp_path, kind, stop) -> None:
    def make():
        both = [KINDS[kind](numbered(3)), numbered(2, offset=10)]
        return zip_streams(
            MixtureStream(both, [2, 1], seed=1).map(lambda n: {"mixed": n}),
            ConcatenatedStream([numbered(2), numbered(3)]).map(lambda n: {"n": n}),
        )

    straight, trained = [], []
    await loop_of(make(), tmp_path / "straight", straight, 15).run()
    for finish in (stop, 15):
        await loop_of(make(), tmp_path / "run", trained, finish).run()
    assert trained == straight
    assert len(trained) == 15


BASES = {
    "sync": lambda: numbered(4),
    "async": lambda: Async(numbered(3)),
    "list": lambda: as_stream([7, 8, 9]),
    "batched": lambda: numbered(5).batch(2).unbatch(),
    "made ahead": lambda: numbered(4).map(later, concurrency=2),
    "cached": lambda: numbered(3).cache(),
}


@st.composite
def makers(draw, depth=2):
    """A function that makes a stream of streams of streams."""
    kind = draw(st.sampled_from([*BASES] if not depth else ["mix", "first", "join", "zip", *BASES]))
    if kind in BASES:
        return BASES[kind]
    inside = draw(st.lists(makers(depth=depth - 1), min_size=1, max_size=3))

    def make():
        streams = [stream() for stream in inside]
        if kind == "mix":
            return MixtureStream(streams, seed=1)
        if kind == "first":
            return MixtureStream(streams, seed=2, stop="first")
        if kind == "join":
            return ConcatenatedStream(streams)
        named = [as_named(stream, number) for number, stream in enumerate(streams)]
        return zip_streams(*named, strict=False).map(lambda element: sum(element.values()))

    return make


def as_named(stream, number):
    return stream.map(lambda n: {f"x{number}": n})


@settings(deadline=None, max_examples=25)
@given(make=makers(), data=st.data())
def test_any_combination_goes_on_anywhere(make, data) -> None:
    def make_whole():
        return ConcatenatedStream([make()])

    async def check() -> None:
        straight = await walk_with_stop(make_whole, 0, 3)
        stop = data.draw(st.integers(0, len(straight) - 1))
        assert await walk_with_stop(make_whole, stop, 3) == straight

    asyncio.run(check())
