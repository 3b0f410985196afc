"""Fuel 0.2.0 is importable and right on today's Python, and nothing else is changed by that."""

import aloop.streams.fuel  # noqa: F401 - it makes Fuel importable

# isort: split
import gc
import pickle
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import h5py
import numpy as np
import pytest
import tables
from fuel.datasets import H5PYDataset, IndexableDataset, IterableDataset
from fuel.schemes import ConstantScheme, SequentialScheme
from fuel.streams import DataStream
from fuel.transformers import Batch, Padding, Unpack
from fuel.transformers.image import RandomFixedSizeCrop
from fuel.utils import do_not_pickle_attributes
from fuel_cases import frozen, hdf5, images, sequential, shuffled, tables_of, text_of

ROOT = Path(__file__).parents[2]


def python(code: str, *options: str, **environment: str) -> str:
    """Run a program in a new process, where warnings are errors, and give what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *options, "-c", code],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "", **environment},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_nothing_but_fuel_is_changed(tmp_path) -> None:
    printed = python(
        """
import collections, collections.abc, sys, warnings
import h5py, numpy, tables, PIL.Image, zmq, yaml, requests, zmq.backend, scipy
modules = {name: dict(vars(module)) for name, module in list(sys.modules.items())
           if name.partition(".")[0] in ("collections", "numpy", "builtins", "PIL", "zmq")}
before = list(warnings.filters), {name: set(module) for name, module in modules.items()}
import aloop.streams.fuel
assert list(warnings.filters) == before[0], warnings.filters
for name, module in modules.items():
    now = vars(sys.modules[name])
    changed = [key for key in module if key in now and now[key] is not module[key]]
    changed = [key for key in changed if not isinstance(module[key], (int, dict, tuple))]
    assert changed == [], (name, changed)
    new = {key for key in set(now) - before[1][name] if f"{name}.{key}" not in sys.modules}
    assert new <= {"__warningregistry__"}, (name, new)
assert not hasattr(collections, "Iterable")
assert "pkg_resources" not in sys.modules
print(sys.modules["fuel"].__version__)
""",
        # Nothing that was compiled before, so that warnings of the compiler come too.
        "-X",
        f"pycache_prefix={tmp_path}",
    )
    assert printed == "0.2.0\n"


@pytest.mark.slow
def test_fuel_works_after_it_was_imported_in_vain() -> None:
    printed = python(
        """
import sys
sys.modules["pkg_resources"] = None
for name in ("fuel.schemes", "fuel.datasets", "fuel.transformers"):
    try:
        __import__(name)
    except ImportError:
        pass
del sys.modules["pkg_resources"]
import aloop.streams.fuel
from fuel.datasets import IterableDataset
from fuel.streams import DataStream
print(list(DataStream(IterableDataset([1, 2])).get_epoch_iterator()))
"""
    )
    assert printed == "[(1,), (2,)]\n"


def test_missing_fuel_is_named_with_the_command_that_installs_it() -> None:
    printed = python(
        """
import sys
sys.modules["fuel"] = None
from aloop.errors import MissingDependencyError
try:
    import aloop.streams.fuel
except MissingDependencyError as error:
    print(error)
"""
    )
    assert 'install it by CC=true pip install "aloop[fuel]"' in printed


@pytest.mark.parametrize(
    "package",
    [
        pytest.param(name, marks=[] if name == "zmq" else pytest.mark.slow)
        for name in ("zmq", "h5py", "tables", "PIL", "picklable_itertools", "six", "yaml")
    ],
)
def test_package_that_fuel_lacks_is_named_with_the_command_that_installs_it(package) -> None:
    printed = python(
        f"""
import sys
from aloop.errors import MissingDependencyError
sys.modules[{package!r}] = None
try:
    import aloop.streams.fuel
except MissingDependencyError as error:
    print(error)
"""
    )
    assert printed.startswith(f"Fuel is installed without {package}, which it imports; expected")
    assert 'install it by CC=true pip install "aloop[fuel]"' in printed


def test_another_version_of_fuel_is_named() -> None:
    printed = python(
        """
import sys, types
sys.modules["fuel"] = types.ModuleType("fuel")
sys.modules["fuel"].__version__ = "0.1.1"
from aloop.errors import MissingDependencyError
try:
    import aloop.streams.fuel
except MissingDependencyError as error:
    print(error)
"""
    )
    assert printed.startswith("Fuel 0.1.1 is installed; expected Fuel 0.2.0")


@do_not_pickle_attributes("features")
class Lazy(IterableDataset):
    def __init__(self) -> None:
        self.load()
        super().__init__(self.features)

    def load(self) -> None:
        self.features = [1, 2, 3]


def test_lazy_attributes_are_not_pickled_and_loaded_again() -> None:
    dataset = Lazy()
    assert "_features" not in dataset.__getstate__()
    again = pickle.loads(pickle.dumps(dataset))  # noqa: S301 - its own
    assert again.features == [1, 2, 3]


def test_hdf5_data_in_memory_is_not_pickled(tmp_path) -> None:
    dataset = hdf5(tmp_path, load_in_memory=True)
    pickled = pickle.dumps(dataset)
    assert dataset.data_sources[0].tobytes()[:40] not in pickled
    again = pickle.loads(pickled)  # noqa: S301 - its own
    assert frozen(again.get_data(None, [3, 1])) == frozen(dataset.get_data(None, [3, 1]))


def test_pickled_hdf5_stream_goes_on_in_a_new_process(tmp_path) -> None:
    stream = shuffled(hdf5(tmp_path, sources=("y",)), size=8)
    iterator = stream.get_epoch_iterator()
    next(iterator)
    path = tmp_path / "pickled"
    path.write_bytes(pickle.dumps((stream, iterator)))
    rest = [batch.tolist() for (batch,) in iterator]
    stream.close()
    printed = python(
        f"""
import aloop.streams.fuel, pickle
stream, iterator = pickle.load(open({str(path)!r}, "rb"))
print([batch.tolist() for (batch,) in iterator])
stream.close()
""",
        "-W",
        "ignore::ResourceWarning",
    )
    assert printed == f"{rest}\n"


def test_split_array_is_that_of_the_file_format(tmp_path) -> None:
    with h5py.File(tmp_path / "data.hdf5", "w") as file:
        file["indices"] = [0, 2]
        split = {
            "a": {"x": (0, 4), "long": (1, 3, file["indices"].ref, "odd")},
            "bb": {"x": (4, 5)},
        }
        array = H5PYDataset.create_split_array(split)
        file.attrs["split"] = array
        rows = [(row["split"], row["source"], row["available"]) for row in file.attrs["split"]]
        assert H5PYDataset.get_provided_sources(file, "bb") == ("x",)
        assert [file[row["indices"]][:].tolist() for row in array if row["indices"]] == [[0, 2]]
    assert rows == [
        (b"a", b"long", True),
        (b"a", b"x", True),
        (b"bb", b"long", False),
        (b"bb", b"x", True),
    ]
    assert array["comment"].tolist() == [b"odd", b".", b".", b"."]
    assert (array["start"].tolist(), array["stop"].tolist()) == ([1, 0, 0, 4], [3, 4, 0, 5])


def test_ragged_batches_are_padded() -> None:
    dataset = IterableDataset([[1, 2, 3], [4], np.array([5, 6])])
    stream = Padding(Batch(DataStream(dataset), ConstantScheme(3)))
    [(data, mask)] = stream.get_epoch_iterator()
    assert data.tolist() == [[1, 2, 3], [4, 0, 0], [5, 6, 0]]
    assert mask.sum() == 6


def test_crops_are_drawn_as_fuel_drew_them() -> None:
    [(batch,)] = RandomFixedSizeCrop(sequential(images(), 10), (4, 3)).get_epoch_iterator()
    [pixels] = images().indexables
    rng = np.random.RandomState(1)
    lefts, tops = rng.randint(0, 3, 10), rng.randint(0, 3, 10)
    for number, (top, left) in enumerate(zip(tops, lefts, strict=True)):
        cut = pixels[number, :, top : top + 4, left : left + 3]
        assert batch[number].tolist() == cut.tolist()


def test_rest_of_an_epoch_that_was_broken_off_is_not_in_the_next() -> None:
    dataset = IndexableDataset(OrderedDict(x=np.arange(6)))
    stream = Unpack(DataStream(dataset, iteration_scheme=SequentialScheme(6, 3)))
    next(stream.get_epoch_iterator())
    assert [example[0] for example in stream.get_epoch_iterator()] == [0, 1, 2, 3, 4, 5]


def test_tables_give_rows_in_the_order_of_the_request(tmp_path) -> None:
    stream = shuffled(tables_of(tmp_path))
    order = np.random.RandomState(1).permutation(17)
    for number, (x, y) in enumerate(stream.get_epoch_iterator()):
        rows = order[5 * number : 5 * number + 5] + 2
        assert y.tolist() == rows.tolist()
        assert x.tolist() == [[2.0 * row, 2.0 * row + 1] for row in rows]
    stream.close()
    assert not tables.file._open_files.filenames


def test_files_of_text_are_closed(tmp_path) -> None:
    stream = DataStream(text_of(tmp_path))
    epochs = [list(stream.get_epoch_iterator()) for _ in range(2)]
    assert epochs[0] == epochs[1]
    assert epochs[0][:2] == [([0, 3, 4, 5, 1],), ([0, 4, 2, 1],)]
    stream.close()
    gc.collect()  # a file that is open would warn


def test_file_is_closed_with_the_last_stream_that_reads_it(tmp_path) -> None:
    dataset = hdf5(tmp_path)
    first, second = shuffled(dataset), shuffled(dataset)
    first.close()
    first.close()
    assert len(list(second.get_epoch_iterator())) == 5
    second.close()
    assert H5PYDataset._file_handles == {}


def test_stream_that_was_closed_opens_its_file_again(tmp_path) -> None:
    stream = shuffled(hdf5(tmp_path))
    stream.close()
    assert len(list(stream.get_epoch_iterator())) == 5
    stream.close()
    assert H5PYDataset._file_handles == {}
