"""Streams over Hugging Face's data sets; `datasets` is optional, and imported here alone.

Importing this module lets `as_stream` make streams of data sets: single examples, in their order.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any, Final, cast

import numpy as np

from aloop.errors import MissingDependencyError, StreamError
from aloop.streams.adapt import register_adapter
from aloop.streams.base import DataStream
from aloop.streams.cursor import OnResume, refuse_short
from aloop.streams.indexed import IndexedStream
from aloop.streams.schemes import (
    IterationScheme,
    Request,
    SequentialExampleScheme,
    whole_number,
)

__all__ = ["HuggingFaceIterableStream", "HuggingFaceStream"]

_ANOTHER_EPOCH: Final = {"epoch": -1}
"""A state that a data set takes for none, for it is of no epoch that there is."""

_MOST_SEED: Final = 2**64
"""numpy draws 128 bits where no seed is given; a seed that somebody chose is smaller."""

_logger = logging.getLogger("aloop")


class HuggingFaceStream(IndexedStream):
    """Batches out of a `datasets.Dataset`, in the order of a scheme; resumable at any batch.

    A batch is a dictionary of columns, as the data set's format says: lists, or arrays after
    ``dataset.with_format("numpy")``.

    Parameters:
        dataset: a data set that has a length. One that was shuffled before was given a seed, or
            it is in another order in the next process.
        iteration_scheme: which examples make up which batch, or come one at a time.

    Raises `MissingDependencyError` where `datasets` is not installed.
    """

    where = "thread"

    def __init__(
        self,
        dataset: Any,  # a Dataset: the package may not be there to say so
        *,
        iteration_scheme: IterationScheme,
    ) -> None:
        super().__init__(iteration_scheme)
        _check_kind(dataset, "Dataset")
        self._dataset: Any = dataset
        self.sources = tuple(dataset.format["columns"] or dataset.column_names)
        self.check_reach("the columns of the data set", len(dataset))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._dataset!r:.100})"

    def fetch(self, request: Request) -> dict[str, Any]:
        """Read the examples that are asked for, by column."""
        return dict(self._dataset[request])


class HuggingFaceIterableStream(DataStream):
    """Batches, or single examples, out of a `datasets.IterableDataset`; resumable at any batch.

    The data set is told the number of each epoch, so that one that is shuffled is shuffled anew.
    When an epoch is resumed, the data set goes on by its own state. One with a shuffle buffer
    cannot: what was in the buffer is no part of its state. Its epoch is begun anew, and what was
    consumed is read and left out; give `shuffle` a seed, or the order is another one.

    Parameters:
        dataset: a data set that is gone through, as one that is streamed.
        batch_size: examples in a batch; single examples unless given.
        drop_last: leave out a last batch that would be shorter.

    Raises `MissingDependencyError` where `datasets` is not installed.
    """

    def __init__(
        self,
        dataset: Any,  # an IterableDataset: the package may not be there to say so
        *,
        batch_size: int | None = None,
        drop_last: bool = False,
    ) -> None:
        _check_kind(dataset, "IterableDataset")
        self.produces_examples = batch_size is None
        self.sources = tuple(dataset.column_names or ())
        self._given: Any = dataset
        self._dataset: Any = dataset
        if batch_size is not None:
            size = whole_number("batch_size", batch_size, least=1)
            self._dataset = dataset.batch(size, drop_last_batch=drop_last)
        self._batch_size = batch_size
        self._drop_last = drop_last
        self._seeds, self._is_replayed = _seeds_of(dataset)
        self._has_warned = False
        self._epoch = 0
        self._batch = 0
        self._turn: object = None  # known to the iterator begun last, None before it is begun
        self._running: Iterator[Any] | None = None  # None until it is needed
        self._left_out = 0  # how many batches are to be read and left out
        self._pending: dict[str, Any] | None = None  # a state to be loaded
        self._told: tuple[int, dict[str, Any]] | None = None  # the batch, and the state then

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._given!r:.100})"

    def get_epoch_iterator(self, *, as_dict: bool = True) -> Iterator[Any]:
        """Begin the next epoch and give its iterator.

        After `load_state_dict` it is the rest of the epoch that the state is from. With
        `as_dict` a batch is a dictionary by column, otherwise a tuple in their order.
        """
        if self._turn is not None:
            self.next_epoch()
        self._turn = object()
        return _Epoch(self, self._turn, as_dict=as_dict)

    def next_epoch(self) -> None:
        """Make the next iterator begin the epoch after the present one."""
        self._move(self._epoch + 1, 0, None)

    def reset(self) -> None:
        """Go back to the beginning of the first epoch."""
        self._move(0, 0, None)

    def close(self) -> None:
        """Let go of what the data set reads from; it is opened again when the stream is used."""
        self._running = None
        if self._told is not None and self._told[0] == self._batch:
            self._pending = self._told[1]

    def parts(self) -> Iterator[object]:
        """Give the stream and the data set, which remembers its place."""
        yield self
        yield self._given

    def state_dict(self) -> dict[str, Any]:
        """Give the place consumed: the epoch, its batches, and what the data set tells of it."""
        return {
            "epoch": self._epoch,
            "batch": self._batch,
            **self._identity(),
            "dataset": self._tell(),
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Go to a place that `state_dict` gave; the next iterator goes on from there.

        Raises `StreamError` when the state is from a stream with another seed or batch size.
        """
        epoch, batch = state.get("epoch"), state.get("batch")
        if not isinstance(epoch, int) or not isinstance(batch, int):
            raise StreamError(
                f"the stream's state has epoch {epoch!r} and batch {batch!r}; expected what "
                "state_dict() gave"
            )
        for key, value in self._identity().items():
            if state.get(key) != value:
                raise StreamError(
                    f"the stream's state has {key} {state.get(key)!r}, but the stream has "
                    f"{value!r}; expected the same order of the same data; make the stream as it "
                    "was, or call reset() to begin anew"
                )
        self._move(epoch, batch, state.get("dataset"))

    def take(self, turn: object) -> Any:
        """Give the next batch of an epoch; `StopIteration` when it has ended.

        Parameters:
            turn: what the stream gave to the epoch's iterator.
        """
        if turn is not self._turn:
            raise StopIteration  # it was left for a later one
        try:
            if self._running is None:
                self._running = self._begin()
            while self._left_out:
                next(self._running)
                self._left_out -= 1
            batch = next(self._running)
        except StopIteration:
            refuse_short(self, self._batch - self._left_out, self._batch)
            self.next_epoch()
            raise
        except BaseException:
            self.close()  # a generator that has raised would say next that the epoch has ended
            raise
        self._batch += 1
        return batch

    def _identity(self) -> dict[str, Any]:
        return {
            "batch_size": self._batch_size,
            "drop_last": self._drop_last,
            "seeds": list(self._seeds),
        }

    def _move(self, epoch: int, batch: int, pending: dict[str, Any] | None) -> None:
        self._epoch, self._batch, self._pending = epoch, batch, pending
        self._turn = self._running = self._told = None
        self._left_out = 0

    def _begin(self) -> Iterator[Any]:
        """Begin the epoch that is next, or the one that is under way, at the place consumed."""
        if None in self._seeds and not self._has_warned:
            self._has_warned = True
            _logger.warning(
                "%r is shuffled without a seed, so that its order is another one when a training "
                "is resumed; for an exact resume make it with shuffle(seed=3)",
                self,
            )
        self._dataset.set_epoch(self._epoch)
        pending, self._pending = self._pending, None
        # One that was loaded stays with the data set for each later iterator of its epoch.
        self._dataset.load_state_dict(pending or dict(_ANOTHER_EPOCH))
        if self._batch and pending is None:
            self._left_out = self._batch
            _logger.warning(
                "the epoch of %r is begun anew, and %d batches are read and left out",
                self,
                self._batch,
            )
        return iter(self._dataset)

    def _tell(self) -> dict[str, Any] | None:
        if self._is_replayed or not self._batch:
            return None
        if self._running is None or self._left_out:
            return self._pending
        if self._told is None or self._told[0] != self._batch:
            self._told = self._batch, self._dataset.state_dict()  # a copy
        return self._told[1]


class _Epoch(Iterator[Any]):
    """One epoch of a `HuggingFaceIterableStream`."""

    def __init__(self, stream: HuggingFaceIterableStream, turn: object, *, as_dict: bool) -> None:
        self._stream = stream
        self._turn = turn
        self._as_dict = as_dict

    def __repr__(self) -> str:
        return f"epoch of {self._stream!r}"

    def __next__(self) -> Any:
        batch = self._stream.take(self._turn)
        return batch if self._as_dict else tuple(batch.values())


def _seeds_of(dataset: Any) -> tuple[tuple[int | None, ...], bool]:
    """Give the seeds of what a data set draws from, and whether it has a shuffle buffer.

    A seed is None where none was given. A data set says neither, so that this looks at what it is
    made of; where it cannot, it takes it for one that has a buffer, whose resume is always exact.
    """
    seeds: list[int | None] = []
    has_buffer = False
    left: list[Any] = [getattr(dataset, "_ex_iterable", None)]
    is_known = left[0] is not None
    while left:
        part = left.pop()
        has_buffer = has_buffer or hasattr(part, "buffer_size")
        generator = getattr(part, "generator", None)
        if isinstance(generator, np.random.Generator):
            sequence: Any = generator.bit_generator.seed_seq
            seed = getattr(sequence, "entropy", None)
            is_given = isinstance(seed, int) and seed < _MOST_SEED
            seeds.append(cast("int", seed) if is_given else None)
        left += [getattr(part, "ex_iterable", None), *getattr(part, "ex_iterables", ())]
        left = [each for each in left if each is not None]
    return tuple(seeds), has_buffer or not is_known


def _check_kind(dataset: Any, kind: str) -> None:
    datasets = _imported()
    if isinstance(dataset, getattr(datasets, kind)):
        return
    others = {"Dataset": HuggingFaceStream, "IterableDataset": HuggingFaceIterableStream}
    for other, stream in others.items():
        if isinstance(dataset, getattr(datasets, other)):
            raise StreamError(
                f"dataset is of type {type(dataset).__name__}; expected a datasets.{kind}; make a "
                f"{stream.__name__} of this one"
            )
    raise StreamError(
        f"dataset is {dataset!r:.80} of type {type(dataset).__name__}; expected a "
        f"datasets.{kind}; take one split of a dictionary of data sets, and ArrayStream for arrays"
    )


def _imported() -> Any:
    try:
        return import_module("datasets")
    except ImportError as error:
        raise MissingDependencyError(
            "streams of Hugging Face's data sets need datasets, which cannot be imported; expected "
            "it to be installed; install aloop[huggingface]"
        ) from error


def _stream_of_indexed(dataset: Any, _: OnResume) -> HuggingFaceStream:
    return HuggingFaceStream(dataset, iteration_scheme=SequentialExampleScheme(len(dataset)))


def _stream_of_iterable(dataset: Any, _: OnResume) -> HuggingFaceIterableStream:
    return HuggingFaceIterableStream(dataset)


with suppress(MissingDependencyError):  # the streams say so when they are used
    register_adapter(_imported().Dataset, _stream_of_indexed)
    register_adapter(_imported().IterableDataset, _stream_of_iterable)
