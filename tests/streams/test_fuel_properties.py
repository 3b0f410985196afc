"""Chains of Fuel's transformers, drawn at random and stopped anywhere, go on as they were."""

import aloop.streams.fuel  # noqa: F401 - it makes Fuel importable

# isort: split
import json
import random

import pytest
from fuel.schemes import (
    ConcatenatedScheme,
    ConstantScheme,
    SequentialScheme,
    ShuffledExampleScheme,
    ShuffledScheme,
)
from fuel.streams import DataStream
from fuel.transformers import (
    Batch,
    Cache,
    Filter,
    FilterSources,
    Mapping,
    Merge,
    ScaleAndShift,
    Unpack,
)
from fuel_cases import (
    Halved,
    Noise,
    Pairs,
    examples,
    frozen,
    indexable,
    is_kept,
    iterable,
    negative,
    sequential,
    shuffled,
)

from aloop.checkpoints.packing import pack, unpack
from aloop.streams.fuel import FuelStream

OF_BOTH = [
    lambda stream, draw: Mapping(stream, negative),
    lambda stream, draw: Mapping(stream, Noise()),
    lambda stream, draw: ScaleAndShift(stream, 2.0, 1),
]
OF_EXAMPLES = [
    lambda stream, draw: Filter(stream, is_kept),
    lambda stream, draw: Batch(
        stream, ConstantScheme(draw.randint(1, 5)), strictness=draw.randrange(2)
    ),
    lambda stream, draw: merged(stream, examples(ShuffledExampleScheme)),
]
OF_BATCHES = [
    lambda stream, draw: Unpack(stream),
    lambda stream, draw: Halved(stream),
    lambda stream, draw: Pairs(stream),
    lambda stream, draw: Cache(stream, ConstantScheme(draw.randint(1, 2))),
    lambda stream, draw: merged(stream, shuffled()),
]


def merged(stream, other):
    return FilterSources(Merge((stream, other), ("x", "y", "x2", "y2")), ("x", "y"))


def drawn(seed: int):
    """Make a stream, the same for the same seed."""
    draw = random.Random(seed)  # noqa: S311 - keeps no secret
    number, size = draw.randint(1, 30), draw.randint(1, 7)
    schemes = [ShuffledScheme(number, size), SequentialScheme(number, size)]
    stream = draw.choice(
        [
            lambda: shuffled(indexable(number), size),
            lambda: sequential(indexable(number), size),
            lambda: examples(ShuffledExampleScheme, indexable(number)),
            lambda: DataStream(indexable(number), iteration_scheme=ConcatenatedScheme(schemes)),
            lambda: DataStream(iterable()),
        ]
    )()
    for _ in range(draw.randint(0, 5)):
        own = OF_EXAMPLES if stream.produces_examples else OF_BATCHES
        stream = draw.choice([*OF_BOTH, *own])(stream, draw)
    return stream


def resumed(seed: int, state):
    """Take a state through all that a checkpoint does to it, to a stream made anew."""
    skeleton, arrays = pack("the stream", state)
    stream = FuelStream(drawn(seed))
    stream.load_state_dict(unpack(json.loads(json.dumps(skeleton)), arrays))
    return stream


def gone_through(seed: int, epochs: list[int], stops: set[int]) -> list:
    """Give what epochs of at most so many batches give, with stops after some of them all."""
    found: list = []
    stream = FuelStream(drawn(seed))
    for most in epochs:
        iterator = stream.get_epoch_iterator()
        for _ in range(most):
            batch = next(iterator, None)
            found.append(frozen(batch))
            if batch is None:
                break
            if len(found) in stops:
                stream = resumed(seed, stream.state_dict())
                iterator = stream.get_epoch_iterator()
    found.append(frozen(stream.state_dict()["now"]))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(150))
def test_stopped_stream_goes_on_as_it_was(seed) -> None:
    draw = random.Random(1000 + seed)  # noqa: S311 - keeps no secret
    epochs = [draw.choice([99, 99, draw.randint(0, 6)]) for _ in range(4)]
    stops = {draw.randint(1, 40) for _ in range(draw.randint(1, 6))}
    assert gone_through(seed, epochs, stops) == gone_through(seed, epochs, set())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(150))
def test_length_that_is_known_is_right(seed) -> None:
    stream = FuelStream(drawn(seed))
    try:
        length = len(stream)
    except TypeError:
        return
    assert sum(1 for _ in stream.get_epoch_iterator()) == length
