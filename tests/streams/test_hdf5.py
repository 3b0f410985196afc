"""Streams over HDF5 files: the rows of the file, in the order of a scheme; no file stays open."""

import gc
import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aloop import Checkpoint, FinishAfter, MainLoop, TrainingLog
from aloop.errors import MissingDependencyError, StreamError
from aloop.protocols import Stateful, Stream
from aloop.streams import (
    ArrayStream,
    SequentialExampleScheme,
    SequentialScheme,
    ShuffledExampleScheme,
    ShuffledScheme,
)
from aloop.streams.hdf5 import HDF5Stream

DATA = {"x": np.arange(300.0).reshape(100, 3), "y": np.arange(100) * 10}


def write(path, data=None, **options):
    with h5py.File(path, "w") as file:
        for name, array in (DATA if data is None else data).items():
            file.create_dataset(name, data=array, **options)
    return path


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "data.h5")


def shuffled(path, seed=3, examples=100, batch_size=8, **options):
    scheme = ShuffledScheme(examples, batch_size, seed=seed)
    return HDF5Stream(path, iteration_scheme=scheme, **options)


def lists(batch):
    return {source: np.asarray(array).tolist() for source, array in batch.items()}


def epochs(stream, number):
    return [[lists(batch) for batch in stream.get_epoch_iterator()] for _ in range(number)]


def in_memory(scheme, data=None):
    return ArrayStream(data or DATA, iteration_scheme=scheme)


def open_files(path) -> int:
    """How many times this process has a file open."""
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found += link.resolve() == Path(path).resolve()
    return found


# ---- Batches


SCHEMES = {
    "sequential": SequentialScheme(100, 8),
    "shuffled": ShuffledScheme(100, 8, seed=3),
    "large shuffled batches": ShuffledScheme(100, 60, seed=3),
    "some backwards": SequentialScheme([9, 8, 7, 99, 0], 3),
    "some of them twice": SequentialScheme([5, 5, 1, 90, 1, 5], 4),
    "sequential examples": SequentialExampleScheme(100),
    "shuffled examples": ShuffledExampleScheme(100, seed=3),
}


@pytest.mark.parametrize("options", [{}, {"chunks": (7,), "compression": "gzip"}], ids=["", "gzip"])
@pytest.mark.parametrize("name", SCHEMES)
def test_an_epoch_is_that_of_the_same_data_in_memory(tmp_path, name, options):
    path = tmp_path / "data.h5"
    with h5py.File(path, "w") as file:
        for source, array in DATA.items():
            chunks = {"chunks": (7, *array.shape[1:])} if options else {}
            file.create_dataset(source, data=array, **(options | chunks))
    stream = HDF5Stream(path, iteration_scheme=SCHEMES[name])
    assert epochs(stream, 2) == epochs(in_memory(SCHEMES[name]), 2)
    stream.close()


@settings(deadline=None, max_examples=40)
@given(
    indices=st.lists(st.integers(0, 99), min_size=1, max_size=40),
    batch_size=st.integers(1, 40),
    is_chunked=st.booleans(),
)
def test_rows_are_those_asked_for_whatever_they_are(
    tmp_path_factory, indices, batch_size, is_chunked
):
    path = tmp_path_factory.mktemp("rows") / "data.h5"
    write(path, {"y": DATA["y"]}, **({"chunks": (7,)} if is_chunked else {}))
    scheme = SequentialScheme(indices, batch_size)
    stream = HDF5Stream(path, iteration_scheme=scheme)
    assert epochs(stream, 1) == epochs(in_memory(scheme, {"y": DATA["y"]}), 1)
    stream.close()


@pytest.mark.parametrize("dtype", ["float32", "uint8", "bool", "S5"])
def test_a_batch_has_the_dtype_of_the_dataset(tmp_path, dtype):
    path = write(tmp_path / "data.h5", {"x": np.zeros(9, dtype)})
    stream = HDF5Stream(path, iteration_scheme=SequentialScheme(9, 4))
    assert next(stream.get_epoch_iterator())["x"].dtype == np.dtype(dtype)
    stream.close()


def test_text_of_any_length_comes_as_bytes_in_the_order_asked_for(tmp_path):
    words = np.array(["a", "bcd", "", "ef"], dtype=h5py.string_dtype())
    path = write(tmp_path / "data.h5", {"x": words})
    stream = HDF5Stream(path, iteration_scheme=SequentialScheme([3, 0, 1], 3))
    assert next(stream.get_epoch_iterator())["x"].tolist() == [b"ef", b"a", b"bcd"]
    stream.close()


def test_without_as_dict_a_batch_is_a_tuple_in_the_order_of_the_sources(path):
    stream = HDF5Stream(path, iteration_scheme=SequentialScheme(2, 2), sources=["y", "x"])
    y, x = next(stream.get_epoch_iterator(as_dict=False))
    assert (y.shape, x.shape) == ((2,), (2, 3))
    stream.close()


# ---- Sources


def test_the_sources_are_the_top_level_datasets(path):
    with h5py.File(path, "a") as file:
        file.create_group("more")
    assert shuffled(path).sources == ("x", "y")


def test_a_source_may_be_a_dataset_anywhere_in_the_file(tmp_path):
    path = write(tmp_path / "data.h5", {"train/images/raw": np.arange(5)})
    sources = {"image": "train/images/raw"}
    stream = HDF5Stream(path, iteration_scheme=SequentialScheme(5, 5), sources=sources)
    assert epochs(stream, 1) == [[{"image": [0, 1, 2, 3, 4]}]]
    stream.close()


def test_only_the_sources_that_are_named_are_read(path):
    with h5py.File(path, "a") as file:
        file["names"] = np.arange(7)  # of another length
    stream = shuffled(path, sources=["y"])
    assert list(next(stream.get_epoch_iterator())) == ["y"]
    stream.close()


def test_sources_that_were_given_are_known_without_the_file(tmp_path):
    assert shuffled(tmp_path / "none.h5", sources=["y", "x"]).sources == ("y", "x")


# ---- The file


def test_making_a_stream_opens_nothing(path):
    stream = shuffled(path)
    stream.get_epoch_iterator()
    assert open_files(path) == 0


def test_asking_for_the_sources_leaves_nothing_open(path):
    stream = shuffled(path)
    assert (stream.sources, open_files(path)) == (("x", "y"), 0)


def test_close_closes_the_file(path):
    stream = shuffled(path)
    next(stream.get_epoch_iterator())
    assert open_files(path) == 1
    stream.close()
    assert open_files(path) == 0


def test_a_stream_that_was_closed_goes_on_where_it_was(path):
    stream = shuffled(path)
    iterator = stream.get_epoch_iterator()
    first = next(iterator)
    stream.close()
    assert [lists(first), *map(lists, iterator)] == epochs(in_memory(SCHEMES["shuffled"]), 1)[0]
    stream.close()


def test_a_stream_that_nobody_holds_leaves_nothing_open(path):
    gc.disable()  # it must not need the collector
    try:
        stream = shuffled(path)
        iterator = stream.get_epoch_iterator()
        next(iterator)
        del stream, iterator
        assert open_files(path) == 0
    finally:
        gc.enable()


def test_a_file_that_is_refused_is_closed_again(path):
    with pytest.raises(StreamError):
        next(shuffled(path, examples=101, batch_size=101).get_epoch_iterator())
    assert open_files(path) == 0


def test_batches_that_several_threads_read_at_once_are_whole(path):
    stream = shuffled(path, batch_size=3)
    straight = epochs(in_memory(ShuffledScheme(100, 3, seed=3)), 1)[0]
    iterator = stream.get_epoch_iterator()
    makers = [iterator.defer() for _ in straight]
    with ThreadPoolExecutor(4) as threads:
        batches = list(threads.map(lambda make: lists(make()), makers))
    stream.close()
    assert batches == straight


def test_closing_while_threads_read_tears_no_batch(path):
    stream = shuffled(path, batch_size=3)
    iterator = stream.get_epoch_iterator()
    straight = epochs(in_memory(ShuffledScheme(100, 3, seed=3)), 1)[0]
    makers = [iterator.defer() for _ in straight]
    has_read = threading.Event()

    def make(maker):
        batch = lists(maker())
        has_read.set()
        return batch

    with ThreadPoolExecutor(2) as threads:
        batches = threads.map(make, makers)
        has_read.wait(10)
        stream.close()
        assert list(batches) == straight
    stream.close()
    assert open_files(path) == 0


# ---- The interface, and the place


def test_a_stream_of_a_file_is_a_stream_with_a_state(path):
    stream = shuffled(path)
    assert isinstance(stream, Stream)
    assert isinstance(stream, Stateful)
    assert (len(stream), stream.produces_examples, stream.where) == (13, False, "thread")


def test_a_stream_of_single_examples_says_so(path):
    stream = HDF5Stream(path, iteration_scheme=SequentialExampleScheme(100))
    assert (len(stream), stream.produces_examples) == (100, True)


def test_a_place_is_told_without_the_file(path):
    iterator = (stream := shuffled(path)).get_epoch_iterator()
    next(iterator)
    stream.close()
    state = json.loads(json.dumps(stream.state_dict()))
    fresh = shuffled(path.with_name("none.h5"))
    fresh.load_state_dict(state)
    assert fresh.state_dict() == state


def test_a_batch_that_could_not_be_read_is_not_consumed(path):
    stream = shuffled(path)
    iterator = stream.get_epoch_iterator()
    away = path.rename(path.with_name("away.h5"))
    with pytest.raises(StreamError):
        next(iterator)
    away.rename(path)
    assert [lists(b) for b in iterator] == epochs(in_memory(SCHEMES["shuffled"]), 1)[0]
    stream.close()


class Trained:
    """Batches that were trained on, as lists."""

    def __init__(self) -> None:
        self.batches: list[dict] = []

    async def __call__(self, batch) -> None:
        self.batches.append(lists(batch))


def loop_of(stream, directory, step, finish) -> MainLoop:
    return MainLoop(
        step,
        stream,
        log=TrainingLog(),
        extensions=[Checkpoint(directory, resume=True), FinishAfter(after_n_batches=finish)],
        signals="off",
        stall_warning_s=0,
    )


@pytest.mark.parametrize("stop", [1, 12, 13, 14, 26, 30])
async def test_a_resumed_training_sees_what_it_would_have_seen(path, tmp_path, stop):
    trained = Trained()
    for finish in (stop, 35):
        stream = shuffled(path)
        await loop_of(stream, tmp_path / "run", trained, finish).run()
        stream.close()
    straight = [batch for epoch in epochs(in_memory(SCHEMES["shuffled"]), 3) for batch in epoch]
    assert trained.batches == straight[:35]
    assert open_files(path) == 0


async def test_a_training_whose_file_is_not_there_fails_and_can_be_run_again(path, tmp_path):
    away = path.rename(tmp_path / "away.h5")
    trained = Trained()
    stream = shuffled(path)
    loop = loop_of(stream, tmp_path / "run", trained, 20)
    with pytest.raises(StreamError, match="does not exist"):
        await loop.run()
    away.rename(path)
    await loop.run()
    stream.close()
    straight = [batch for epoch in epochs(in_memory(SCHEMES["shuffled"]), 2) for batch in epoch]
    assert trained.batches == straight[:20]


async def test_a_file_that_became_shorter_is_an_error_that_names_both_lengths(path, tmp_path):
    stream = shuffled(path)
    await loop_of(stream, tmp_path / "run", Trained(), 3).run()
    stream.close()
    write(path, {"x": np.zeros(90)})
    with pytest.raises(StreamError, match="saved with 100 examples in an epoch, and the stream ha"):
        await loop_of(shuffled(path, examples=90), tmp_path / "run", Trained(), 9).run()
    with pytest.raises(StreamError, match=r"asks for example 99, but the datasets of .* have 90"):
        await loop_of(shuffled(path), tmp_path / "run", Trained(), 9).run()


# ---- What is refused


def failure(stream) -> str:
    with pytest.raises(StreamError) as caught:
        next(stream.get_epoch_iterator())
    return str(caught.value)


def test_a_file_that_is_missing_is_refused_by_its_path(tmp_path):
    path = tmp_path / "none.h5"
    assert f"the HDF5 file '{path}' does not exist" in failure(shuffled(path))


def test_a_file_that_is_no_hdf5_is_refused_by_its_path(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("1,2,3\n")
    assert f"'{path}' cannot be opened as an HDF5 file" in failure(shuffled(path))


def test_a_directory_is_refused(tmp_path):
    assert "cannot be opened as an HDF5 file" in failure(shuffled(tmp_path))


def test_a_source_that_is_missing_is_refused_with_those_that_are_there(path):
    message = failure(shuffled(path, sources={"image": "images"}))
    assert "source 'image' is 'images' in" in message
    assert "not there; expected a dataset; name one: at its top level the file has 'x', 'y'" in (
        message
    )


def test_a_source_that_is_a_group_is_refused(tmp_path):
    path = write(tmp_path / "data.h5", {"train/x": np.arange(5)})
    assert "which is a group" in failure(shuffled(path, sources=["train"]))


def test_a_source_that_is_a_single_value_is_refused_by_its_name(tmp_path):
    path = write(tmp_path / "data.h5", {"x": np.arange(5), "version": 3})
    assert "source 'version' of" in failure(shuffled(path))


def test_datasets_of_different_lengths_are_refused_by_both(tmp_path):
    path = write(tmp_path / "data.h5", {"x": np.arange(5), "y": np.arange(6)})
    assert "differ in length: 'x' has 5, 'y' has 6" in failure(shuffled(path, examples=5))


def test_datasets_without_examples_are_refused(tmp_path):
    path = write(tmp_path / "data.h5", {"x": np.zeros((0, 3))})
    assert "have no examples; expected one or more" in failure(shuffled(path, examples=1))


def test_a_file_without_datasets_at_its_top_is_refused(tmp_path):
    path = write(tmp_path / "data.h5", {"train/x": np.arange(5)})
    assert "has no dataset at its top level" in failure(shuffled(path))


@pytest.mark.parametrize("sources", ["x", [], {}, [3], {"x": 3}, 3], ids=repr)
def test_sources_that_are_none_are_refused_by_their_value(path, sources):
    with pytest.raises(StreamError, match="expected the datasets by source"):
        shuffled(path, sources=sources)


def test_a_damaged_dataset_is_an_error_that_names_the_source(tmp_path):
    path = tmp_path / "data.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=np.arange(50), chunks=(50,), fletcher32=True)
        where = file["x"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    path.write_bytes(content)
    stream = shuffled(path, examples=50)
    with pytest.raises(OSError, match="read") as caught:
        next(stream.get_epoch_iterator())
    stream.close()
    assert f"source 'x' of {path}" in caught.value.__notes__[0]


def test_a_missing_h5py_is_an_error_that_names_the_extra(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingDependencyError, match=r"install aloop\[hdf5\]"):
        shuffled(path)
