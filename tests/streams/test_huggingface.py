"""Streams over Hugging Face's data sets: batches in the order of a scheme, or as they come."""

import json
import sys
import warnings

import numpy as np
import pytest

from aloop import Checkpoint, FinishAfter, MainLoop, TrainingLog, as_stream
from aloop.errors import MissingDependencyError, StreamError
from aloop.protocols import Stateful, Stream
from aloop.streams import ArrayStream, SequentialExampleScheme, SequentialScheme, ShuffledScheme

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    datasets = pytest.importorskip("datasets")

from aloop.streams.huggingface import (
    HuggingFaceIterableStream,
    HuggingFaceStream,
)

pytestmark = [
    pytest.mark.huggingface,
    pytest.mark.aloop_guard(threads=False, files=False),  # what datasets keeps
    pytest.mark.usefixtures("no_threads_of_aloop"),
]

EXAMPLES = 20
COLUMNS = {"x": [[n, n + 1] for n in range(EXAMPLES)], "y": list(range(EXAMPLES))}


def dataset(examples=EXAMPLES):
    return datasets.Dataset.from_dict({name: data[:examples] for name, data in COLUMNS.items()})


def streamed(**options):
    return dataset().to_iterable_dataset(num_shards=4)


def buffered(seed=3):
    return streamed().shuffle(seed=seed, buffer_size=8)


def numbers():
    for n in range(EXAMPLES):
        yield {"y": n}


def shuffled(examples=EXAMPLES, seed=3, data=None):
    scheme = ShuffledScheme(examples, 6, seed=seed)
    return HuggingFaceStream(data or dataset(examples), iteration_scheme=scheme)


STREAMS = {
    "scheme": shuffled,
    "arrays": lambda: shuffled(data=dataset().with_format("numpy")),
    "iterable": lambda: HuggingFaceIterableStream(streamed(), batch_size=6),
    "iterable, single examples": lambda: HuggingFaceIterableStream(streamed()),
    "iterable, arrays": lambda: HuggingFaceIterableStream(
        streamed().with_format("numpy"), batch_size=6
    ),
    "iterable, the last left out": lambda: HuggingFaceIterableStream(
        streamed(), batch_size=6, drop_last=True
    ),
    "iterable, mapped": lambda: HuggingFaceIterableStream(
        streamed().map(lambda row: {"y": row["y"] * 2}).filter(lambda row: row["y"] % 3),
        batch_size=4,
    ),
    "iterable, generated": lambda: HuggingFaceIterableStream(
        datasets.IterableDataset.from_generator(numbers), batch_size=6
    ),
    "buffered": lambda: HuggingFaceIterableStream(buffered(), batch_size=6),
    "buffered, single examples": lambda: HuggingFaceIterableStream(buffered()),
    "buffered, mapped": lambda: HuggingFaceIterableStream(
        buffered().map(lambda row: {"y": row["y"] * 2}), batch_size=6
    ),
    "interleaved": lambda: HuggingFaceIterableStream(
        datasets.interleave_datasets([streamed(), streamed()], probabilities=[0.4, 0.6], seed=2),
        batch_size=6,
    ),
}


def look(batch):
    return np.asarray(batch["y"]).tolist()


def straight(make, epochs):
    stream = make()
    return [[look(batch) for batch in stream.get_epoch_iterator()] for _ in range(epochs)]


def flat(epochs):
    return [batch for epoch in epochs for batch in epoch]


def loop_of(stream, directory, trained, batches=None, epochs=None) -> MainLoop:
    async def step(batch) -> None:
        trained.append(look(batch))

    return MainLoop(
        step,
        stream,
        log=TrainingLog(),
        extensions=[
            Checkpoint(directory, resume=True),
            FinishAfter(after_n_batches=batches, after_n_epochs=epochs),
        ],
        signals="off",
        stall_warning_s=0,
    )


async def stopped(make, directory, stops) -> list:
    """What trainings are trained on that are stopped, and resumed in a new stream."""
    trained: list = []
    for stop in stops:
        await loop_of(make(), directory, trained, stop).run()
    return trained


# ---- Batches


def test_batches_are_those_of_the_same_scheme_over_arrays() -> None:
    def in_memory():
        scheme = ShuffledScheme(EXAMPLES, 6, seed=3)
        return ArrayStream({"y": COLUMNS["y"]}, iteration_scheme=scheme)

    assert straight(shuffled, 3) == straight(in_memory, 3)


def test_batch_is_a_dictionary_of_columns() -> None:
    batch = next(shuffled().get_epoch_iterator())
    assert (list(batch), len(batch["x"])) == (["x", "y"], 6)


def test_batch_has_the_format_of_the_data_set() -> None:
    batch = next(STREAMS["arrays"]().get_epoch_iterator())
    assert (batch["x"].shape, batch["x"].dtype) == ((6, 2), np.int64)


def test_sources_are_the_columns() -> None:
    assert shuffled().sources == HuggingFaceIterableStream(streamed()).sources == ("x", "y")


def test_sources_are_the_columns_of_the_format() -> None:
    stream = shuffled(data=dataset().with_format("numpy", columns=["y"]))
    assert stream.sources == ("y",) == tuple(next(stream.get_epoch_iterator()))


@pytest.mark.parametrize("name", ["scheme", "iterable"])
def test_without_as_dict_a_batch_is_a_tuple(name) -> None:
    x, y = next(STREAMS[name]().get_epoch_iterator(as_dict=False))
    assert (len(x), len(y)) == (6, 6)


def test_iterable_is_cut_into_batches() -> None:
    assert [len(batch) for batch in straight(STREAMS["iterable"], 1)[0]] == [6, 6, 6, 2]
    assert [len(b) for b in straight(STREAMS["iterable, the last left out"], 1)[0]] == [6, 6, 6]


def test_iterable_gives_single_examples_unless_it_is_cut() -> None:
    assert straight(STREAMS["iterable, single examples"], 1) == [list(range(EXAMPLES))]


def test_iterable_that_is_shuffled_is_shuffled_anew_each_epoch() -> None:
    by_hand = buffered().batch(6)
    expected = []
    for epoch in range(3):
        by_hand.set_epoch(epoch)
        expected.append([batch["y"] for batch in by_hand])
    assert straight(STREAMS["buffered"], 3) == expected
    assert expected[0] != expected[1]


# ---- Resumed


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5, 8, 11])
@pytest.mark.parametrize("name", STREAMS)
async def test_resumed_training_sees_what_it_would_have_seen(tmp_path, name, stop) -> None:
    expected = flat(straight(STREAMS[name], 5))[:14]
    assert await stopped(STREAMS[name], tmp_path, [stop, 14]) == expected


@pytest.mark.parametrize("name", STREAMS)
async def test_training_that_is_stopped_again_and_again_sees_the_same(tmp_path, name) -> None:
    expected = flat(straight(STREAMS[name], 5))[:14]
    assert await stopped(STREAMS[name], tmp_path, [1, 2, 4, 7, 9, 14]) == expected


@pytest.mark.parametrize("name", STREAMS)
def test_stream_goes_on_from_between_two_epochs(name) -> None:
    expected = straight(STREAMS[name], 3)
    state = None
    given = []
    for _ in range(3):
        stream = STREAMS[name]()
        if state is not None:
            stream.load_state_dict(state)
        given.append([look(batch) for batch in stream.get_epoch_iterator()])
        state = json.loads(json.dumps(stream.state_dict()))
    assert given == expected


async def test_nothing_is_read_again_without_a_shuffle_buffer(tmp_path, caplog) -> None:
    await stopped(STREAMS["iterable"], tmp_path, [2, 3])
    assert "left out" not in caplog.text


async def test_what_is_read_again_is_counted(tmp_path, caplog) -> None:
    await stopped(STREAMS["buffered"], tmp_path, [2, 3])
    assert "2 batches are read and left out" in caplog.text


def test_reset_begins_with_the_first_epoch_again() -> None:
    stream = STREAMS["buffered"]()
    first = [look(batch) for batch in stream.get_epoch_iterator()]
    next(stream.get_epoch_iterator())
    stream.reset()
    assert [look(batch) for batch in stream.get_epoch_iterator()] == first


def test_reset_after_a_resume_begins_with_the_whole_epoch() -> None:
    stopped, stream = STREAMS["iterable"](), STREAMS["iterable"]()
    next(stopped.get_epoch_iterator())
    stream.load_state_dict(stopped.state_dict())
    assert len(list(stream.get_epoch_iterator())) == 3
    stream.reset()
    assert len(list(stream.get_epoch_iterator())) == 4


@pytest.mark.parametrize("name", STREAMS)
def test_stream_that_was_closed_in_an_epoch_goes_on_in_it(name) -> None:
    stream = STREAMS[name]()
    given = []
    for batch in stream.get_epoch_iterator():
        given.append(look(batch))
        stream.state_dict()
        stream.close()
    assert given == straight(STREAMS[name], 1)[0]


def test_state_that_was_taken_does_not_move_with_the_stream() -> None:
    stream = STREAMS["iterable"]()
    iterator = stream.get_epoch_iterator()
    next(iterator)
    state = stream.state_dict()
    before = json.dumps(state)
    list(iterator)
    assert json.dumps(state) == before


def test_batch_that_could_not_be_read_comes_when_it_is_asked_for_again() -> None:
    fails = [True]

    def broken():
        for n in range(EXAMPLES):
            if n == 9 and fails:
                fails.clear()
                raise OSError("the network is gone")
            yield {"y": n}

    made = datasets.IterableDataset.from_generator(broken)
    iterator = HuggingFaceIterableStream(made, batch_size=6).get_epoch_iterator()
    given = [look(next(iterator))]
    with pytest.raises(OSError, match="the network is gone"):
        next(iterator)
    given += [look(batch) for batch in iterator]
    assert given == straight(STREAMS["iterable"], 1)[0]


# ---- Seeds


async def test_iterable_that_is_shuffled_without_a_seed_is_named_once(tmp_path, caplog) -> None:
    stream = HuggingFaceIterableStream(buffered(seed=None), batch_size=6)
    await loop_of(stream, tmp_path, [], 9).run()
    assert caplog.text.count("make it with shuffle(seed=3)") == 1


@pytest.mark.parametrize("name", STREAMS)
async def test_nothing_is_said_where_the_order_is_known(tmp_path, name, caplog) -> None:
    await loop_of(STREAMS[name](), tmp_path, [], 3).run()
    assert "without a seed" not in caplog.text


# ---- What changed


async def test_data_that_changed_its_length_is_an_error_that_names_both(tmp_path) -> None:
    await stopped(shuffled, tmp_path, [2])
    with pytest.raises(StreamError, match="with 20 examples in an epoch, and the stream has 15"):
        await stopped(lambda: shuffled(15), tmp_path, [4])


def test_scheme_beyond_the_data_set_is_refused_by_both_numbers() -> None:
    with pytest.raises(StreamError, match="asks for example 19, but the columns of the data set"):
        HuggingFaceStream(dataset(15), iteration_scheme=SequentialScheme(EXAMPLES, 4))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: HuggingFaceIterableStream(streamed(), batch_size=5), "batch_size 5, but"),
        (lambda: HuggingFaceIterableStream(buffered(), batch_size=6), r"seeds \[3"),
    ],
)
def test_state_of_another_order_is_refused(other, message) -> None:
    with pytest.raises(StreamError, match=message):
        STREAMS["iterable"]().load_state_dict(other().state_dict())


def generated(examples):
    def made():
        for n in range(examples):
            yield {"y": n}

    return datasets.IterableDataset.from_generator(made)


@pytest.mark.parametrize("shuffle", [False, True])
async def test_iterable_that_became_shorter_is_an_error_that_names_both(tmp_path, shuffle) -> None:
    def make(examples):
        made = generated(examples)
        made = made.shuffle(seed=3, buffer_size=8) if shuffle else made
        return HuggingFaceIterableStream(made, batch_size=6)

    await stopped(lambda: make(20), tmp_path, [3])
    with pytest.raises(StreamError, match="has ended after 2 batches; expected the 3 that"):
        await stopped(lambda: make(7), tmp_path, [9])


async def test_iterable_of_fewer_examples_is_refused_by_both_where_it_tells(tmp_path) -> None:
    await stopped(STREAMS["iterable"], tmp_path, [2])

    def short():
        return HuggingFaceIterableStream(
            dataset(19).to_iterable_dataset(num_shards=4), batch_size=6
        )

    with pytest.raises(StreamError, match=r"20 examples in 4 .* has .'19 examples in 4 shards'"):
        await stopped(short, tmp_path, [9])


async def test_epoch_that_was_left_after_its_last_batch_has_ended(tmp_path) -> None:
    def make():
        return HuggingFaceIterableStream(generated(20), batch_size=6)

    assert await stopped(make, tmp_path, [4, 9]) == flat(straight(make, 3))[:9]


async def test_data_set_that_was_shuffled_otherwise_is_warned_of(tmp_path, caplog) -> None:
    def make():
        data = dataset().shuffle(generator=np.random.default_rng())
        return HuggingFaceStream(data, iteration_scheme=SequentialScheme(EXAMPLES, 6))

    await stopped(make, tmp_path, [2, 4])
    assert caplog.text.count("it is perhaps other data, or in another order") == 1


async def test_nothing_is_said_of_a_data_set_that_is_the_same(tmp_path, caplog) -> None:
    def make():
        data = dataset().shuffle(seed=3)
        return HuggingFaceStream(data, iteration_scheme=SequentialScheme(EXAMPLES, 6))

    assert await stopped(make, tmp_path, [2, 4]) == straight(make, 1)[0]
    assert "perhaps other data" not in caplog.text


@pytest.mark.parametrize(
    "change", [{"epoch": None}, {"batch": "2"}, {"batch": -1}, {"epoch": True}]
)
@pytest.mark.parametrize("name", ["scheme", "iterable"])
def test_state_that_is_no_place_is_refused(name, change) -> None:
    stream = STREAMS[name]()
    with pytest.raises(StreamError, match=r"give what state_dict\(\) gave"):
        stream.load_state_dict(stream.state_dict() | change)


@pytest.mark.parametrize("name", ["scheme", "iterable"])
def test_state_that_is_no_mapping_is_refused_by_its_value(name) -> None:
    with pytest.raises(StreamError, match="state is None of type NoneType; expected a mapping"):
        STREAMS[name]().load_state_dict(None)


# ---- as_stream, and the interface


async def test_data_set_becomes_a_stream_of_its_examples(tmp_path) -> None:
    stream = as_stream(dataset())
    assert (type(stream), stream.produces_examples) == (HuggingFaceStream, True)
    trained: list = []
    await loop_of(stream, tmp_path, trained, epochs=1).run()
    assert trained == list(range(EXAMPLES))


def test_iterable_becomes_a_stream_of_its_examples() -> None:
    stream = as_stream(streamed())
    assert (type(stream), stream.produces_examples) == (HuggingFaceIterableStream, True)


@pytest.mark.parametrize("kind", [datasets.DatasetDict, datasets.IterableDatasetDict])
def test_dictionary_of_splits_is_refused_with_how_to_take_one(kind) -> None:
    data = dataset() if kind is datasets.DatasetDict else streamed()
    with pytest.raises(StreamError, match=r"'train', 'test'; expected .* as_stream\(data\['train'"):
        as_stream(kind({"train": data, "test": data}))


def test_data_set_without_examples_is_refused() -> None:
    with pytest.raises(StreamError, match="the columns of the data set have no examples"):
        as_stream(dataset(0))


@pytest.mark.parametrize("name", ["scheme", "iterable"])
def test_streams_are_streams_with_a_state(name) -> None:
    stream = STREAMS[name]()
    assert isinstance(stream, Stream)
    assert isinstance(stream, Stateful)
    assert (stream.produces_examples, stream.where) == (False, "thread")


def test_length_is_that_of_the_scheme() -> None:
    assert len(shuffled()) == 4


@pytest.mark.parametrize("kind", [HuggingFaceStream, HuggingFaceIterableStream])
@pytest.mark.parametrize("what", [None, [1], {"train": 1}], ids=repr)
def test_what_is_no_data_set_is_refused(kind, what) -> None:
    options = {"iteration_scheme": SequentialExampleScheme(1)} if kind is HuggingFaceStream else {}
    with pytest.raises(StreamError, match=r"expected a datasets\.\w+; take one split"):
        kind(what, **options)


def test_the_other_kind_of_data_set_is_refused_with_its_stream() -> None:
    with pytest.raises(StreamError, match="make a HuggingFaceIterableStream of this one"):
        HuggingFaceStream(streamed(), iteration_scheme=SequentialExampleScheme(1))
    with pytest.raises(StreamError, match="make a HuggingFaceStream of this one"):
        HuggingFaceIterableStream(dataset())


@pytest.mark.parametrize("size", [0, -1, 2.5, "3", True])
def test_bad_batch_size_is_refused_by_its_value(size) -> None:
    with pytest.raises(StreamError, match=f"batch_size is {size!r}; expected a whole number"):
        HuggingFaceIterableStream(streamed(), batch_size=size)


@pytest.mark.parametrize("kind", [HuggingFaceStream, HuggingFaceIterableStream])
def test_missing_package_is_an_error_that_names_the_extra(monkeypatch, kind) -> None:
    options = {"iteration_scheme": SequentialExampleScheme(1)} if kind is HuggingFaceStream else {}
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependencyError, match=r"install aloop\[huggingface\]"):
        kind([1], **options)
