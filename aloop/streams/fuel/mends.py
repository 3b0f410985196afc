"""The mends of Fuel 0.2.0: replacements of its methods, each with what was wrong.

`aloop.streams.fuel.compat` applies them. Fuel is not typed, and only just imported there: its
modules are looked up here. Hence Any.
"""

import collections.abc
import threading
from collections.abc import Callable
from importlib import import_module
from time import monotonic
from types import ModuleType
from typing import Any, Final, cast
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from aloop.errors import StreamError
from aloop.streams.fuel.worker import StreamWorker

__all__ = ["TIMEOUT_S", "mend", "mend_lazy_attributes"]

TIMEOUT_S: Final = 60.0
"""How long a `ServerDataStream` waits for a batch, in seconds, unless it is told otherwise."""

_POLL_S: Final = 0.1  # within which a stream that is closed stops waiting

Array = npt.NDArray[Any]


def mend(serve_stream: Callable[..., None]) -> None:
    """Replace what does not work, when Fuel has been imported.

    Parameters:
        serve_stream: what the process of a MultiProcessing stream runs.
    """
    # It looks for collections.Iterable when a dataset is made.
    import_module("fuel.datasets.base").__dict__["collections"] = collections.abc
    _mend_h5py_dataset()
    _mend_other_datasets()
    _mend_data_stream()
    _mend_server_data_stream()
    _mend_transformers()
    _mend_multi_processing(serve_stream)


def mend_lazy_attributes() -> None:
    """Leave lazy attributes out of pickles; the decorator takes object's __getstate__ for one."""
    utils: Any = import_module("fuel.utils")
    decorate = utils.do_not_pickle_attributes

    def do_not_pickle_attributes(*names: str) -> Callable[[Any], Any]:
        def wrap_class(cls: Any) -> Any:
            return _without(decorate(*names)(cls), names)

        return wrap_class

    do_not_pickle_attributes.__doc__ = decorate.__doc__
    utils.do_not_pickle_attributes = do_not_pickle_attributes


def _without(cls: Any, names: tuple[str, ...]) -> Any:
    def __getstate__(self: Any) -> dict[str, Any]:  # noqa: N807 - it becomes a method
        state = dict(self.__dict__)
        for name in names:
            if isinstance(state.pop(f"_{name}", None), collections.abc.Iterator):
                raise ValueError("Iterators can't be lazy loaded")
        return state

    if cls.__getstate__ is object.__getstate__:
        cls.__getstate__ = __getstate__
    return cls


def _mend_h5py_dataset() -> None:
    hdf5: Any = import_module("fuel.datasets.hdf5")
    dataset = hdf5.H5PYDataset
    # They were imported before the decorator was mended, by whoever made Fuel importable.
    lazy = ("data_sources", "external_file_handle", "source_shapes", "in_memory_subset", "subsets")
    _without(dataset, lazy)
    _without(hdf5.PytablesDataset, ("nodes", "h5file"))
    # Its dtypes are refused by numpy 2: (type, 1) and 'a', and numpy 1.26 has no bool.
    dataset.create_split_array = staticmethod(_create_split_array)


def _mend_other_datasets() -> None:
    """Read tables of one dimension, and close files of text, which were left open."""
    tables: Any = import_module("fuel.datasets.hdf5").PytablesDataset
    text: Any = import_module("fuel.datasets.text").TextFile
    read, open_lines = tables.get_data, import_module("fuel.utils.formats").__dict__["open_"]
    itertools: Any = import_module("picklable_itertools")
    files_of: WeakKeyDictionary[Any, list[Any]] = WeakKeyDictionary()

    def get_data(self: Any, state: object = None, request: object = None) -> Any:
        if not isinstance(request, list):
            return read(self, state, request)
        rows = [index + self.start for index in cast("list[int]", request)]
        return [node[rows] if node.ndim == 1 else node[rows, ...] for node in self.nodes]

    def open_(self: Any) -> Any:
        files = [open_lines(name, encoding=self.encoding) for name in self.files]
        state = itertools.chain(*map(itertools.iter_, files))
        files_of[state] = files
        return state

    def close(_self: object, state: Any) -> None:
        for file in files_of.pop(state, []) if state is not None else []:
            file.close()

    tables.get_data, text.open, text.close = get_data, open_, close


def _create_split_array(split_dict: dict[str, dict[str, tuple[Any, ...]]]) -> Array:
    """Create the array that the root attribute ``split`` of a file has to be.

    Parameters:
        split_dict: by split and source a tuple of the start index, the stop index, and perhaps a
            reference to the indices, and a comment. A source that a split lacks is unavailable.
    """
    h5py: Any = import_module("h5py")
    sources = sorted({source for split in split_dict.values() for source in split})
    rows: list[tuple[Any, ...]] = []
    for split, given in split_dict.items():
        for source in sources:
            start, stop, *rest = given.get(source, (0, 0))
            indices = rest[0] if rest else h5py.Reference()
            # An empty comment cannot be pickled.
            comment = rest[1] if len(rest) > 1 and rest[1] else "."
            names = (split.encode(), source.encode())
            rows.append((*names, start, stop, indices, source in given, comment.encode()))

    def text(column: int) -> str:
        return f"S{max(len(row[column]) for row in rows)}"

    reference = h5py.special_dtype(ref=h5py.Reference)
    names = ("split", "source", "start", "stop", "indices", "available", "comment")
    kinds = (text(0), text(1), np.int64, np.int64, reference, np.bool_, text(6))
    split_array = np.empty(len(rows), dtype=np.dtype(list(zip(names, kinds, strict=True))))
    for number, row in enumerate(rows):
        for name, value in zip(names, row, strict=True):
            split_array[number][name] = value
    return split_array


# Streams over datasets.


def _mend_data_stream() -> None:
    """Close a stream once, open it again when it is used again, and in a copy of it."""
    cls: Any = import_module("fuel.streams").DataStream
    hdf5: Any = import_module("fuel.datasets.hdf5")

    def close(self: Any) -> None:
        # A second time would take the file from another stream that has it open.
        if not getattr(self, "_is_closed", False):
            self._is_closed = True
            self.data_state = self.dataset.close(self.data_state)
            if isinstance(self.dataset, hdf5.PytablesDataset) and hasattr(self.dataset, "_h5file"):
                self.dataset.close_file()  # it opens it again when it is read

    def reopening(method: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
            if getattr(self, "_is_closed", False):
                self.data_state = self.dataset.open()
                self._is_closed = False
            return method(self, *args, **kwargs)

        wrapped.__doc__, wrapped.__name__ = method.__doc__, method.__name__
        return wrapped

    def __setstate__(self: Any, state: dict[str, Any]) -> None:  # noqa: N807 - it becomes a method
        self.__dict__.update(state)
        # The file is open for the stream that was pickled, and perhaps in another process.
        if isinstance(self.dataset, hdf5.H5PYDataset) and not state.get("_is_closed", False):
            self.data_state = self.dataset.open()

    for name in ("get_epoch_iterator", "next_epoch", "reset"):
        setattr(cls, name, reopening(getattr(cls, name)))
    cls.close, cls.__setstate__ = close, __setstate__


def _mend_server_data_stream() -> None:
    """Wait for a server no longer than so long, and close what was opened."""
    zmq: Any = import_module("zmq")
    server: Any = import_module("fuel.server")
    cls: Any = import_module("fuel.streams").ServerDataStream
    connecting = threading.Lock()

    def connect(self: Any) -> None:
        with connecting:
            if not hasattr(self, "_using"):
                self._using = threading.Lock()  # of the socket, which no two threads may use
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.PULL)
        self.socket.set_hwm(self.hwm)
        self.socket.connect(f"tcp://{self.host}:{self.port}")
        self.connected = True

    def get_data(self: Any, request: object = None) -> tuple[Any, ...]:
        if request is not None:
            raise ValueError
        if not self.connected:
            self.connect()
        end = monotonic() + self.timeout_s
        while True:
            with self._using:
                if not self.connected:
                    raise StreamError(
                        f"the ServerDataStream of {self.host}:{self.port} was closed while a "
                        "batch was awaited; expected it open as long as it is read; close it "
                        "after the run"
                    )
                left = end - monotonic()
                if self.socket.poll(max(0, min(_POLL_S, left)) * 1000):
                    return tuple(_receive(self.socket))
            if left <= 0:
                raise StreamError(
                    f"the Fuel server at {self.host}:{self.port} has sent nothing for "
                    f"{self.timeout_s:g} seconds; expected a batch; look whether it runs, and "
                    "listens there, or raise timeout_s of FuelStream if it needs longer"
                )

    def close(self: Any) -> None:
        if not self.connected:
            return  # a copy that was pickled has never been
        with self._using:
            if self.connected:
                self.connected = False
                self.socket.close(linger=0)
                self._context.term()

    def __getstate__(self: Any) -> dict[str, Any]:  # noqa: N807 - it becomes a method
        ours = {"socket", "_context", "_using"}
        return {k: v for k, v in self.__dict__.items() if k not in ours} | {"connected": False}

    server.recv_arrays = import_module("fuel.streams").__dict__["recv_arrays"] = _receive
    cls.timeout_s = TIMEOUT_S
    cls.connect, cls.get_data, cls.close = connect, get_data, close
    cls.__getstate__ = __getstate__


def _receive(socket: Any) -> list[Array]:
    """Receive arrays that Fuel's ``send_arrays`` has sent; StopIteration at the end of an epoch."""
    headers = socket.recv_json()
    if "stop" in headers:
        raise StopIteration
    arrays: list[Array] = []
    for header in headers:
        array = np.frombuffer(socket.recv(), dtype=np.dtype(header["descr"]))
        # numpy is about to refuse that a shape is set.
        order = "F" if header["fortran_order"] else "C"
        arrays.append(array.reshape(header["shape"], order=order))
    return arrays


# Transformers.


class _Numpy(ModuleType):
    """Numpy as it was: rows of different lengths make an array of objects."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def asarray(self, value: Any, *args: Any, **kwargs: Any) -> Array:
        """Give an array, of objects where no other is possible."""
        try:
            return np.asarray(value, *args, **kwargs)
        except ValueError:
            if args or kwargs or not isinstance(value, (list, tuple)):
                raise
        rows = cast("list[Any]", value)
        array = np.empty(len(rows), dtype=object)
        for number, row in enumerate(rows):
            array[number] = row
        return array


def _mend_transformers() -> None:
    modules = ("transformers", "transformers.defaults", "transformers.text", "transformers.image")
    general, defaults, text, image = (import_module(f"fuel.{name}") for name in modules)
    general.__dict__["numpy"] = _Numpy("numpy")

    def to_bytes(_self: object, example: Array, _: str) -> bytes:
        return example.tobytes()  # tostring is gone from numpy

    def batch_to_bytes(_self: object, batch: Array, _: str) -> list[bytes]:
        return [example.tobytes() for example in batch]

    defaults.ToBytes.transform_source_example = to_bytes
    defaults.ToBytes.transform_source_batch = batch_to_bytes

    # What is left of an epoch that was broken off would come out in the next one.
    _clear_at_beginning(general.Unpack, data=lambda: None)
    _clear_at_beginning(text.NGrams, sentence=list, index=int)

    # It was compiled, and is not built any more.
    image.__dict__["window_batch_bchw"] = _window_batch_bchw
    image.__dict__["window_batch_bchw_available"] = True
    # numpy warns that random_integers is deprecated.
    for name in ("transform_source_batch", "transform_source_example"):
        cls = image.RandomFixedSizeCrop
        setattr(cls, name, _with_random_integers(getattr(cls, name)))


def _clear_at_beginning(cls: Any, **values: Callable[[], Any]) -> None:
    begin = cls.get_epoch_iterator

    def get_epoch_iterator(self: Any, **kwargs: Any) -> Any:
        for name, value in values.items():
            setattr(self, name, value())
        return begin(self, **kwargs)

    get_epoch_iterator.__doc__ = begin.__doc__
    cls.get_epoch_iterator = get_epoch_iterator


def _window_batch_bchw(images: Array, tops: Array, lefts: Array, out: Array) -> None:
    """Cut a window out of each image of a batch."""
    height, width = out.shape[2:]
    for number, (top, left) in enumerate(zip(tops, lefts, strict=True)):
        out[number] = images[number, :, top : top + height, left : left + width]


class _RandomIntegers:
    """A RandomState whose `random_integers` does not warn; it draws what it always drew."""

    def __init__(self, rng: Any) -> None:
        self._rng = rng

    def random_integers(self, low: int, high: int, size: int | None = None) -> Any:
        """Draw from low to high, both of them included."""
        return self._rng.randint(low, high + 1, size=size, dtype=np.int_)


def _with_random_integers(method: Callable[..., Any]) -> Callable[..., Any]:
    def transform(self: Any, source: Any, source_name: str) -> Any:
        rng = self.rng
        if isinstance(rng, _RandomIntegers):  # of the batch that this image is of
            return method(self, source, source_name)
        self.rng = _RandomIntegers(rng)
        try:
            return method(self, source, source_name)
        finally:
            self.rng = rng

    transform.__doc__ = method.__doc__
    return transform


def _mend_multi_processing(serve_stream: Callable[..., None]) -> None:
    """Read in a process that ends with the stream, and epochs that are whole."""
    cls: Any = import_module("fuel.transformers").MultiProcessing
    transformer: Any = import_module("fuel.transformers").Transformer
    abstract: Any = import_module("fuel.streams").AbstractDataStream

    def __init__(  # noqa: N807 - it becomes a method
        self: Any, data_stream: Any, max_store: int = 100, **kwargs: Any
    ) -> None:
        if data_stream.axis_labels:
            kwargs.setdefault("axis_labels", data_stream.axis_labels.copy())
        transformer.__init__(self, data_stream, data_stream.produces_examples, **kwargs)
        self.background = StreamWorker(data_stream, max_store, serve_stream)

    def get_epoch_iterator(self: Any, **kwargs: Any) -> Any:
        self.background.begin_epoch()
        # Not the wrapped stream's: that is read in the process.
        return abstract.get_epoch_iterator(self, **kwargs)

    def get_data(self: Any, request: object = None) -> Any:
        if request is not None:
            raise ValueError
        return self.background.next_batch()

    def close(self: Any) -> None:
        try:
            self.background.close()
        finally:
            transformer.close(self)

    def reset(self: Any) -> None:
        transformer.reset(self)
        self.background.begin_anew()

    def next_epoch(self: Any) -> None:
        self.background.settle()

    def proc(self: Any) -> Any:
        return self.background.process

    cls.__init__, cls.get_epoch_iterator, cls.get_data = __init__, get_epoch_iterator, get_data
    cls.close, cls.reset, cls.next_epoch = close, reset, next_epoch
    cls.proc = property(proc)
