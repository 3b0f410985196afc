"""Streams over HDF5 files; h5py is optional, and imported here alone."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any, Final, cast

import numpy as np

from aloop.errors import MissingDependencyError, StreamError
from aloop.streams.indexed import IndexedStream, one_length
from aloop.streams.schemes import Indices, IterationScheme, Request

__all__ = ["HDF5Stream"]

_MAX_WASTE: Final = 4
"""How many times as many rows as are asked for are read at the most, to read them as one slice,
which costs a fraction of what single rows do."""


class HDF5Stream(IndexedStream):
    """Batches out of an HDF5 file, in the order of a scheme; resumable at any batch.

    The data is never loaded as a whole. The file is opened when the first batch is read, by the
    thread that reads it, and stays open until `close`; a stream that was closed opens it again
    when it is used again.

    A batch is a dictionary of new arrays, by source; variable-length text comes as h5py gives it,
    an array of bytes objects.

    Parameters:
        path: of the file.
        iteration_scheme: which examples make up which batch, or come one at a time.
        sources: the paths of the datasets in the file by source, or the names of datasets; all
            top-level datasets unless given. All have the same length along their first axis.

    Raises `MissingDependencyError` where h5py is not installed, and, when the file is opened,
    `StreamError` if it is not what is expected.
    """

    where = "thread"

    def __init__(
        self,
        path: str | Path,
        *,
        iteration_scheme: IterationScheme,
        sources: Mapping[str, str] | Sequence[str] | None = None,
    ) -> None:
        super().__init__(iteration_scheme)
        self._path = Path(path)
        self._h5py = _imported()
        self._paths = _checked_sources(sources)
        self._file: Any = None
        self._datasets: dict[str, Any] = {}
        # Reads may come from several threads. h5py lets one at a time into the HDF5 library, by a
        # lock of its own, so that this one makes nobody wait longer; and no read meets a close.
        self._lock = Lock()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._path)!r})"

    @property
    def sources(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The names of the sources; where none were given, the file is opened to find them."""
        if self._paths is None:
            with self._lock:
                self._open()
            self.close()  # only who reads batches keeps it open
        return tuple(self._paths or ())

    def fetch(self, request: Request) -> dict[str, Any]:
        """Read the examples that are asked for, by source."""
        if isinstance(request, int):
            return self._read(request)
        rows, order = _rows_of(request)
        columns = self._read(rows)
        # In the order of the request, each as often as it is asked for; out of the lock.
        return columns if order is None else {source: c[order] for source, c in columns.items()}

    def close(self) -> None:
        """Close the file; a batch that is being read is waited for."""
        with self._lock:
            file, self._file, self._datasets = self._file, None, {}
            if file is not None:
                file.close()

    def _read(self, rows: "int | slice | Indices") -> dict[str, Any]:
        with self._lock:
            self._open()
            columns: dict[str, Any] = {}
            for source, dataset in self._datasets.items():
                try:
                    columns[source] = _read_from(dataset, rows)
                except Exception as error:
                    error.add_note(f"raised when source {source!r} of {self._path} was read")
                    raise
            return columns

    def _open(self) -> None:
        if self._file is not None:
            return
        file = self._opened()
        try:
            paths = self._paths or {name: name for name in file if self._is_dataset(file.get(name))}
            self._datasets = self._checked_datasets(file, paths)
        except BaseException:
            file.close()
            raise
        self._file, self._paths = file, paths

    def _opened(self) -> Any:
        try:
            return self._h5py.File(self._path, "r")
        except FileNotFoundError as error:
            raise StreamError(
                f"the HDF5 file {str(self._path)!r} does not exist; expected the file that has "
                "the data; correct the path"
            ) from error
        except OSError as error:
            raise StreamError(
                f"{str(self._path)!r} cannot be opened as an HDF5 file: {error}; expected an HDF5 "
                "file that may be read and that nobody writes; look at what it is"
            ) from error

    def _is_dataset(self, thing: object) -> bool:
        return isinstance(thing, self._h5py.Dataset)

    def _checked_datasets(self, file: Any, paths: Mapping[str, str]) -> dict[str, Any]:
        what = f"the datasets of {str(self._path)!r}"
        if not paths:
            raise StreamError(
                f"{str(self._path)!r} has no dataset at its top level; expected one or more; say "
                "where they are: sources={'x': 'path/in/the/file'}"
            )
        datasets = {source: file.get(path) for source, path in paths.items()}
        for source, dataset in datasets.items():
            if not self._is_dataset(dataset):
                raise StreamError(
                    f"source {source!r} is {paths[source]!r} in {str(self._path)!r}, which is "
                    f"{'not there' if dataset is None else 'a group'}; expected a dataset; name "
                    f"one: at its top level the file has {', '.join(map(repr, file)) or 'nothing'}"
                )
            if not dataset.shape:
                raise StreamError(
                    f"source {source!r} of {str(self._path)!r} is a single value; expected "
                    "examples along its first axis; leave it out of sources"
                )
        self.check_reach(what, one_length(what, datasets))
        return datasets


def _rows_of(indices: Indices) -> "tuple[slice | Indices, Indices | None]":
    """Give what to read, a slice or indices that increase, and how what was asked for comes of it.

    Nothing is to be done to it where that is None.
    """
    first, last = int(indices.min()), int(indices.max())
    span = last + 1 - first
    if span == len(indices) and bool((indices[1:] > indices[:-1]).all()):
        return slice(first, last + 1), None
    if span <= _MAX_WASTE * len(indices):
        return slice(first, last + 1), indices - first
    rows, order = np.unique(indices, return_inverse=True)
    return rows, order


def _read_from(dataset: Any, rows: "int | slice | Indices") -> Any:
    if not isinstance(rows, np.ndarray) or not dataset.chunks:
        return dataset[rows]
    # By index, HDF5 looks for each row in each chunk: ten times what a slice of each chunk takes.
    turns = np.flatnonzero(np.diff(rows // dataset.chunks[0])) + 1
    blocks = [dataset[part[0] : part[-1] + 1][part - part[0]] for part in np.split(rows, turns)]
    return np.concatenate(blocks)


def _checked_sources(sources: Any) -> dict[str, str] | None:
    if sources is None:
        return None
    paths: dict[str, str] = {}
    if isinstance(sources, Mapping):
        paths = dict(cast("Mapping[str, str]", sources))
    elif isinstance(sources, Sequence) and not isinstance(sources, (str, bytes)):
        paths = {name: name for name in cast("Sequence[str]", sources)}
    named = [*paths, *paths.values()]
    if not named or not all(isinstance(cast("object", name), str) for name in named):
        raise StreamError(
            f"sources is {sources!r:.200}; expected the datasets by source, as "
            "{'x': 'path/in/the/file'}, or a list of their names; leave it out for all at the "
            "file's top level"
        )
    return paths


def _imported() -> Any:
    try:
        return import_module("h5py")
    except ImportError as error:
        raise MissingDependencyError(
            "HDF5Stream needs h5py, which cannot be imported; expected it to be installed; "
            "install aloop[hdf5]"
        ) from error
