"""Fuel streams of each kind, over little data, and what is trained on in them."""

import aloop.streams.fuel  # noqa: F401 - it makes Fuel importable

# isort: split
from collections import OrderedDict
from io import BytesIO
from pathlib import Path

import h5py
import numpy as np
import tables
from fuel.datasets import Dataset, H5PYDataset, IndexableDataset, IterableDataset, TextFile
from fuel.datasets.hdf5 import PytablesDataset
from fuel.datasets.toy import Spiral
from fuel.schemes import (
    ConcatenatedScheme,
    ConstantScheme,
    SequentialExampleScheme,
    SequentialScheme,
    ShuffledExampleScheme,
    ShuffledScheme,
    cross_validation,
)
from fuel.streams import DataStream
from fuel.transformers import (
    Batch,
    Cache,
    Cast,
    Filter,
    FilterSources,
    Flatten,
    ForceFloatX,
    Mapping,
    Merge,
    MultiProcessing,
    Padding,
    Rename,
    ScaleAndShift,
    SortMapping,
    Transformer,
    Unpack,
)
from fuel.transformers.defaults import ToBytes
from fuel.transformers.image import (
    ImagesFromBytes,
    MinimumImageDimensions,
    Random2DRotation,
    RandomFixedSizeCrop,
)
from fuel.transformers.text import NGrams
from PIL import Image

from aloop import Checkpoint, FinishAfter, MainLoop

EPOCHS = 3
EXAMPLES = 23


# Data.


def indexable(examples: int = EXAMPLES) -> IndexableDataset:
    x = np.random.default_rng(0).normal(size=(examples, 2, 3))
    return IndexableDataset(
        OrderedDict([("x", x), ("y", np.arange(examples))]),
        axis_labels={"x": ("batch", "height", "width"), "y": ("batch",)},
    )


def iterable() -> IterableDataset:
    return IterableDataset(OrderedDict([("x", np.arange(11.0)), ("y", list(range(11)))]))


def sentences() -> IterableDataset:
    return IterableDataset([list(range(n, n + 2 + n % 5)) for n in range(9)])


def images(height: int = 6) -> IndexableDataset:
    pixels = np.random.default_rng(1).integers(0, 255, (10, 3, height, 5), dtype=np.uint8)
    return IndexableDataset(
        OrderedDict([("image", pixels)]),
        axis_labels={"image": ("batch", "channel", "height", "width")},
    )


def encoded() -> IndexableDataset:
    def png(pixels):
        file = BytesIO()
        Image.fromarray(pixels.transpose(1, 2, 0)).save(file, "PNG")
        return file.getvalue()

    [pixels] = images().indexables
    return IndexableDataset(
        OrderedDict([("image", [png(each) for each in pixels])]), axis_labels={"image": ("batch",)}
    )


def hdf5(directory: Path, **options) -> H5PYDataset:
    if not (path := directory / "data.hdf5").exists():
        write_hdf5(path)
    return H5PYDataset(str(path), **{"which_sets": ("train",), **options})


def tables_of(directory: Path, start: int = 2, stop: int = 19) -> PytablesDataset:
    path = directory / "tables.hdf5"
    if not path.exists():
        with tables.open_file(str(path), "w") as file:
            group = file.create_group("/", "Data")
            file.create_array(group, "x", np.arange(40.0).reshape(20, 2))
            file.create_array(group, "y", np.arange(20))
    return PytablesDataset(str(path), ("x", "y"), start=start, stop=stop)


def text_of(directory: Path) -> TextFile:
    paths = [directory / f"{name}.txt" for name in ("first", "second")]
    for path in paths:
        path.write_text("a b c\nb x\n\nc c c a\n")
    words = {"<S>": 0, "</S>": 1, "<UNK>": 2, "a": 3, "b": 4, "c": 5}
    return TextFile([str(path) for path in paths], words)


def write_hdf5(path: Path) -> None:
    rng = np.random.default_rng(2)
    with h5py.File(path, "w") as file:
        file["x"] = rng.normal(size=(30, 4)).astype(np.float32)
        file["y"] = np.arange(30)
        for name, labels in (("x", ("batch", "feature")), ("y", ("batch",))):
            for dimension, label in enumerate(labels):
                file[name].dims[dimension].label = label
        shapes = np.stack([rng.integers(1, 4, 30), np.full(30, 2)], axis=1)
        images = file.create_dataset("image", (30,), dtype=h5py.special_dtype(vlen=np.uint8))
        for number, shape in enumerate(shapes):
            images[number] = rng.integers(0, 255, shape.prod(), dtype=np.uint8)
        file["image_shapes"] = shapes
        file["image_shape_labels"] = np.array([b"height", b"width"])
        images.dims[0].label = "batch"
        file["image_shapes"].make_scale("shapes")
        images.dims[0].attach_scale(file["image_shapes"])
        file["image_shape_labels"].make_scale("shape_labels")
        images.dims[0].attach_scale(file["image_shape_labels"])
        split = {
            "train": dict.fromkeys(("x", "y", "image"), (0, 23)),
            "test": dict.fromkeys(("x", "y"), (23, 30)),
        }
        file.attrs["split"] = H5PYDataset.create_split_array(split)


# Streams.


def sequential(dataset=None, size: int = 5):
    dataset = indexable() if dataset is None else dataset
    return DataStream(
        dataset, iteration_scheme=SequentialScheme(dataset.num_examples, batch_size=size)
    )


def shuffled(dataset=None, size: int = 5, **options):
    dataset = indexable() if dataset is None else dataset
    scheme = ShuffledScheme(dataset.num_examples, batch_size=size, **options)
    return DataStream(dataset, iteration_scheme=scheme)


def examples(kind=SequentialExampleScheme, dataset=None):
    dataset = indexable(9) if dataset is None else dataset
    return DataStream(dataset, iteration_scheme=kind(dataset.num_examples))


def concatenated():
    schemes = [ShuffledScheme(range(10), 4), SequentialScheme(range(10, 23), 6)]
    return DataStream(indexable(), iteration_scheme=ConcatenatedScheme(schemes))


def fold(number: int):
    train, _ = list(cross_validation(ShuffledScheme, 24, 3, batch_size=5))[number]
    return DataStream(indexable(24), iteration_scheme=train)


def batched(strictness: int = 0, size: int = 4, **options):
    scheme = ConstantScheme(size, **options)
    return Batch(DataStream(iterable()), iteration_scheme=scheme, strictness=strictness)


def negative(data):
    return tuple(-np.asarray(each) for each in data)


def doubled(data):
    return (np.asarray(data[1]) * 2,)


def is_kept(data) -> bool:
    return data[1] % 3 != 0


def value_of(example) -> float:
    return -example[1]


class Noise:
    """A mapping with a generator of its own."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(7)

    def __call__(self, data):
        return (data[0] + self.rng.normal(size=data[0].shape), *data[1:])


def with_noise_in_closure():
    rng = np.random.RandomState(8)
    return Mapping(shuffled(), lambda data: (data[0] * rng.uniform(), data[1]))


class Pairs(Transformer):
    """A transformer of one's own, that takes two batches for one."""

    def __init__(self, data_stream) -> None:
        super().__init__(data_stream, produces_examples=False)

    def get_data(self, request=None):
        first = next(self.child_epoch_iterator)
        second = next(self.child_epoch_iterator, None)
        if second is None:
            return first
        return tuple(np.concatenate(pair) for pair in zip(first, second, strict=True))


class Halved(Transformer):
    """A transformer of one's own, for batches."""

    def __init__(self, data_stream) -> None:
        super().__init__(data_stream, produces_examples=False)

    def transform_batch(self, batch):
        return tuple(each / 2 for each in batch)


class Growing(Dataset):
    """A dataset that goes on with its data from epoch to epoch."""

    provides_sources = ("x",)

    def open(self):
        return iter(range(1000))

    def next_epoch(self, state):
        return state

    def get_data(self, state=None, request=None):
        return (np.array([next(state) for _ in range(request)]),)


class TellingGrowing(Growing):
    """Such a one that tells its place."""

    def __init__(self) -> None:
        super().__init__()
        self.at = 0

    def open(self):
        return self

    def get_data(self, state=None, request=None):
        self.at += request
        return (np.arange(self.at - request, self.at),)

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state) -> None:
        self.at = state["at"]


def merged():
    streams = (shuffled(size=4), sequential(indexable(17), size=4))
    return Merge(streams, ("x", "y", "x2", "y2"))


def merged_iterables():
    return Merge((DataStream(iterable()), DataStream(sentences())), ("x", "y", "sentence"))


def bytes_of(directory):
    return ToBytes(sequential(hdf5(directory, sources=("image",))), which_sources=("image",))


# Each with the directory for its files.
CASES = {
    "sequential": lambda _: sequential(),
    "shuffled": lambda _: shuffled(),
    "shuffled with a rng": lambda _: shuffled(rng=np.random.RandomState(5)),
    "sorted indices": lambda _: shuffled(sorted_indices=True),
    "sequential examples": lambda _: examples(),
    "shuffled examples": lambda _: examples(ShuffledExampleScheme),
    "concatenated": lambda _: concatenated(),
    "cross validation": lambda _: fold(1),
    "iterable": lambda _: DataStream(iterable()),
    "batch": lambda _: batched(),
    "batch some times": lambda _: batched(times=2),
    "batch of some examples": lambda _: batched(num_examples=9),
    "batch of equal size": lambda _: batched(strictness=1),
    "batch that must be of equal size": lambda _: batched(strictness=2, times=2),
    "mapping": lambda _: Mapping(shuffled(), negative),
    "mapping that adds": lambda _: Mapping(shuffled(), doubled, add_sources=("z",)),
    "mapping with a generator": lambda _: Mapping(shuffled(), Noise()),
    "mapping with a generator in its closure": lambda _: with_noise_in_closure(),
    "sort mapping": lambda _: Mapping(shuffled(), SortMapping(value_of)),
    "flatten": lambda _: Flatten(shuffled(), which_sources=("x",)),
    "scale and shift": lambda _: ScaleAndShift(shuffled(), 2.0, 1, which_sources=("x",)),
    "cast": lambda _: Cast(shuffled(), "float32"),
    "float X": lambda _: ForceFloatX(Cast(shuffled(), "float32")),
    "filter": lambda _: Filter(examples(ShuffledExampleScheme), is_kept),
    "cache": lambda _: Cache(shuffled(size=8), ConstantScheme(3)),
    "unpack": lambda _: Unpack(shuffled(indexable(9), size=4)),
    "batch of filtered": lambda _: Batch(
        Filter(examples(ShuffledExampleScheme), is_kept), ConstantScheme(2)
    ),
    "padding": lambda _: Padding(Batch(DataStream(sentences()), ConstantScheme(4))),
    "n-grams": lambda _: NGrams(2, DataStream(sentences())),
    "merge": lambda _: merged(),
    "merge of iterables": lambda _: merged_iterables(),
    "rename": lambda _: Rename(shuffled(), {"x": "input"}),
    "filter sources": lambda _: FilterSources(shuffled(), ("y",)),
    "own transformer": lambda _: Halved(shuffled()),
    "own transformer of pairs": lambda _: Pairs(shuffled(size=3)),
    "own dataset that goes on": lambda _: DataStream(
        Growing(), iteration_scheme=ConstantScheme(3, times=4)
    ),
    "own dataset that tells its place": lambda _: DataStream(
        TellingGrowing(), iteration_scheme=ConstantScheme(3, times=4)
    ),
    "images from bytes": lambda _: ImagesFromBytes(shuffled(encoded(), size=3)),
    "minimum image dimensions": lambda _: MinimumImageDimensions(shuffled(images(), 3), (8, 7)),
    "crop": lambda _: RandomFixedSizeCrop(shuffled(images(), 3), (4, 3)),
    "crop of lists": lambda _: RandomFixedSizeCrop(
        ImagesFromBytes(shuffled(encoded(), size=3)), (4, 3)
    ),
    "rotation": lambda _: Random2DRotation(shuffled(images(), 3)),
    "bytes": bytes_of,
    "HDF5": lambda directory: shuffled(hdf5(directory)),
    "HDF5 in memory": lambda directory: shuffled(hdf5(directory, load_in_memory=True)),
    "HDF5 sources": lambda directory: shuffled(hdf5(directory, sources=("y", "x"))),
    "HDF5 subset": lambda directory: shuffled(hdf5(directory, subset=[1, 2, 5, 7, 8, 11, 13, 20])),
    "tables": lambda directory: shuffled(tables_of(directory)),
    "text": lambda directory: DataStream(text_of(directory)),
    "toy": lambda _: DataStream.default_stream(
        Spiral(20, classes=3), iteration_scheme=ShuffledScheme(20, 6)
    ),
    "HDF5 slice": lambda directory: sequential(hdf5(directory, subset=slice(3, 17))),
    "multi-processing": lambda _: MultiProcessing(shuffled(), max_store=3),
    "multi-processing of rotations": lambda _: MultiProcessing(
        Random2DRotation(shuffled(images(), 3))
    ),
}


# Training.


def frozen(value):
    """Give a batch as what compares equal if each bit of it does."""
    if isinstance(value, dict):
        return {key: frozen(item) for key, item in value.items()}
    if isinstance(value, np.ndarray) and value.dtype != object:
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, (np.ndarray, list, tuple)):
        return [frozen(item) for item in value]
    return value


def by_hand(stream, epochs: int = EPOCHS) -> list[list]:
    """The epochs of a Fuel stream as Fuel itself gives them."""
    return [
        [
            frozen(dict(zip(stream.sources, batch, strict=True)))
            for batch in stream.get_epoch_iterator()
        ]
        for _ in range(epochs)
    ]


def loop_of(stream, trained: list, *extensions, finish: int | None = None, epochs: int = EPOCHS):
    async def step(batch) -> None:
        trained.append(frozen(batch))

    finished = {"after_n_batches": finish} if finish else {"after_n_epochs": epochs}
    return MainLoop(
        step,
        stream,
        extensions=[*extensions, FinishAfter(**finished)],
        signals="off",
        stall_warning_s=0,
    )


def resumable(stream, directory: Path, trained: list, finish: int | None = None):
    """A training that goes on where the last one in the directory was stopped."""
    return loop_of(stream, trained, Checkpoint(directory, resume=True), finish=finish)
