"""Resuming a stream at any batch of any epoch equals never having stopped."""

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from aloop.streams import ArrayStream, SequentialScheme, ShuffledScheme

EPOCHS = 3


@st.composite
def makers(draw):
    """A function that makes a fresh stream, the same one each time."""
    length = draw(st.integers(1, 30))
    examples = draw(
        st.one_of(
            st.integers(1, length),
            st.lists(st.integers(0, length - 1), min_size=1, max_size=30),
        )
    )
    batch_size = draw(st.integers(1, 35))
    seed = draw(st.none() | st.integers(0, 2**32))

    def make():
        if seed is None:
            scheme = SequentialScheme(examples, batch_size)
        else:
            scheme = ShuffledScheme(examples, batch_size, seed=seed)
        arrays = {"x": np.arange(length), "y": np.arange(2.0 * length).reshape(length, 2)}
        return ArrayStream(arrays, iteration_scheme=scheme)

    return make


def walk(stream, iterator, epochs):
    """Yield every batch of some epochs, and None at each epoch's end, as plain lists.

    The first epoch is the one that the iterator is in.
    """
    for epoch in range(epochs):
        if epoch:
            iterator = stream.get_epoch_iterator()
        for batch in iterator:
            yield {source: array.tolist() for source, array in batch.items()}
        yield None


@settings(deadline=None)
@given(make=makers(), data=st.data())
def test_going_on_in_a_fresh_stream_equals_never_stopping(make, data):
    stream = make()
    straight = list(walk(stream, stream.get_epoch_iterator(), EPOCHS))
    stop = data.draw(st.integers(0, len(straight) - 1), label="batches and ends before the stop")

    stopped = make()
    first = walk(stopped, stopped.get_epoch_iterator(), EPOCHS)
    seen = [next(first) for _ in range(stop)]
    state = json.loads(json.dumps(stopped.state_dict()))

    resumed = make()
    resumed.load_state_dict(state)
    rest = walk(resumed, resumed.get_epoch_iterator(), EPOCHS - seen.count(None))
    assert seen + list(rest) == straight


@settings(deadline=None)
@given(make=makers(), stops=st.lists(st.integers(1, 12), max_size=6))
def test_stopping_many_times_equals_never_stopping(make, stops):
    stream = make()
    straight = list(walk(stream, stream.get_epoch_iterator(), EPOCHS))

    seen = []
    state = make().state_dict()
    for batches in [*stops, len(straight)]:
        resumed = make()
        resumed.load_state_dict(json.loads(json.dumps(state)))
        left = EPOCHS - seen.count(None)
        for _, item in zip(range(batches), walk_if(resumed, left), strict=False):
            seen.append(item)
        state = resumed.state_dict()
    assert seen == straight


def walk_if(stream, epochs):
    """Walk through what is left; nothing, if no epoch is."""
    return walk(stream, stream.get_epoch_iterator(), epochs) if epochs else ()


@settings(deadline=None)
@given(make=makers())
def test_each_epoch_has_every_example_of_the_scheme_once(make):
    stream = make()
    wanted = sorted(stream.iteration_scheme.indices.tolist())
    for _ in range(EPOCHS):
        given_out = [value for batch in stream.get_epoch_iterator() for value in batch["x"]]
        assert sorted(given_out) == wanted
