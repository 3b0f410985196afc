"""Streams over Hugging Face's data sets; `datasets` is optional, and imported here alone.

Importing this module lets `as_stream` make streams of data sets: single examples, in their order.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from itertools import islice
from typing import Any, Final, NamedTuple, NoReturn, cast

import numpy as np

from aloop.errors import MissingDependencyError, StreamError
from aloop.streams.adapt import register_adapter
from aloop.streams.cursor import OnResume, refuse_short
from aloop.streams.indexed import IndexedStream, IteratedStream, counts_in
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
            it is in another order in the next process, and its fingerprint another one: a resumed
            training warns of that.
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

    def state_dict(self) -> dict[str, Any]:
        """Give the place consumed, the order's key, and the fingerprint of the data set."""
        return super().state_dict() | {"fingerprint": self._fingerprint}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Go to a place that `state_dict` gave; the next iterator goes on from there.

        Raises `StreamError` when the state is from a stream with another scheme, seed, batch
        size or number of examples. Warns when the data set has another fingerprint.
        """
        counts_in(state, "epoch", "batch")
        was = state.get("fingerprint")
        super().load_state_dict({key: state[key] for key in state if key != "fingerprint"})
        # The same data may have another one too, as after a map() that cannot be hashed.
        if was is not None and was != self._fingerprint:
            _logger.warning(
                "the data set of %r has the fingerprint %s, and the stream's state was saved with "
                "%s: it is perhaps other data, or in another order; for an exact resume give "
                "each shuffle() a seed, as shuffle(seed=3)",
                self,
                self._fingerprint,
                was,
            )

    @property
    def _fingerprint(self) -> str | None:
        return getattr(self._dataset, "_fingerprint", None)


class HuggingFaceIterableStream(IteratedStream):
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
        super().__init__()
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
        self._made = _made_of(dataset)
        self._has_warned = False
        self._gone_on_at: int | None = None  # the batch from which the data set went on by a state
        self._pending: dict[str, Any] | None = None  # a state to be loaded
        self._told: tuple[int, dict[str, Any]] | None = None  # the batch, and the state then

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._given!r:.100})"

    def get_epoch_iterator(self, *, as_dict: bool = True) -> Iterator[Any]:
        """Begin the next epoch and give its iterator.

        After `load_state_dict` it is the rest of the epoch that the state is from. With
        `as_dict` a batch is a dictionary by column, otherwise a tuple in their order.
        """
        return _Epoch(self, self._next_turn(), as_dict=as_dict)

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

        Raises `StreamError` when the state is from a stream with another seed, batch size or
        number of examples, where that is known.
        """
        epoch, batch = counts_in(state, "epoch", "batch")
        for key, value in self._identity().items():
            if state.get(key) != value:
                raise StreamError(
                    f"the stream's state has {key} {state.get(key)!r}, but the stream has "
                    f"{value!r}; expected the same order of the same data; make the stream as it "
                    "was, or call reset() to begin anew"
                )
        self._move(epoch, batch)
        self._pending = state.get("dataset")

    def _end_epoch(self) -> None:
        if self._batch and self._batch == self._gone_on_at and not self._made.is_measured:
            self._refuse_shorter()
        super()._end_epoch()

    def _refuse_shorter(self) -> None:
        """Refuse data that has ended before the place from which it went on.

        A data set says no more of such a place than that nothing is left. So may it be where the
        epoch was left after its last batch; what there is has to be counted.
        """
        _logger.warning(
            "nothing is left of the epoch of %r after the %d batches that had been trained on; "
            "they are read again to see whether they are there",
            self,
            self._batch,
        )
        self._dataset.load_state_dict(dict(_ANOTHER_EPOCH))
        found = sum(1 for _ in islice(iter(self._dataset), self._batch))
        refuse_short(self, found, self._batch)

    def _identity(self) -> dict[str, Any]:
        return {
            "batch_size": self._batch_size,
            "drop_last": self._drop_last,
            "seeds": list(self._made.seeds),
            "data": list(self._made.sources),
        }

    def _move(self, epoch: int, batch: int) -> None:
        super()._move(epoch, batch)
        self._pending = self._told = self._gone_on_at = None

    def _begin(self) -> Iterator[Any]:
        """Begin the epoch that is next, or the one that is under way, at the place consumed."""
        if None in self._made.seeds and not self._has_warned:
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
        self._gone_on_at = None if pending is None else self._batch
        if self._batch and pending is None:
            self._left_out = self._batch
            _logger.warning(
                "the epoch of %r is begun anew, and %d batches are read and left out",
                self,
                self._batch,
            )
        return iter(self._dataset)

    def _tell(self) -> dict[str, Any] | None:
        if self._made.has_buffer or not self._batch:
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


class _Made(NamedTuple):
    """What a data set is made of: its places in a state depend on it."""

    seeds: tuple[int | None, ...]
    """Of what it draws from, None where no seed was given."""
    sources: tuple[str, ...]
    """How much each has, as messages say it."""
    is_measured: bool
    """Whether each says how many examples it has."""
    has_buffer: bool
    """Whether it has a shuffle buffer."""


def _made_of(dataset: Any) -> _Made:
    """Give what a data set is made of.

    It says none of it, so that this looks at its parts; where it cannot, it takes it for one that
    has a buffer, whose resume is always exact.
    """
    seeds: list[int | None] = []
    sources: list[str] = []
    is_measured = True
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
        inner = [getattr(part, "ex_iterable", None), *getattr(part, "ex_iterables", ())]
        inner = [each for each in inner if each is not None]
        if not inner:
            examples = _length_of(part)
            is_measured = is_measured and examples is not None
            sources.append(
                f"{'unknown' if examples is None else examples} examples in "
                f"{getattr(part, 'num_shards', 1)} shards"
            )
        left += inner
    return _Made(tuple(seeds), tuple(sources), is_measured, has_buffer or not is_known)


def _length_of(source: Any) -> int | None:
    """Give the number of examples where there are data sets in it: after to_iterable_dataset()."""
    shards = getattr(source, "kwargs", {}).get("shards")
    kind = _imported().Dataset
    if isinstance(shards, list):
        given = cast("list[Any]", shards)
        if all(isinstance(shard, kind) for shard in given):
            return sum(len(shard) for shard in given)
    return None


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
    # An empty one is refused by the stream, which has the words for it.
    scheme = SequentialExampleScheme(len(dataset) or 1)
    return HuggingFaceStream(dataset, iteration_scheme=scheme)


def _stream_of_iterable(dataset: Any, _: OnResume) -> HuggingFaceIterableStream:
    return HuggingFaceIterableStream(dataset)


def _refuse_splits(splits: Any, _: OnResume) -> NoReturn:
    names: list[str] = [*splits]
    name = names[0] if names else "train"
    raise StreamError(
        f"the data stream is a {type(splits).__name__} of the splits "
        f"{', '.join(map(repr, names)) or '(none)'}; expected a single data set; take one of "
        f"them, as as_stream(data[{name!r}])"
    )


with suppress(MissingDependencyError):  # the streams say so when they are used
    register_adapter(_imported().Dataset, _stream_of_indexed)
    register_adapter(_imported().IterableDataset, _stream_of_iterable)
    register_adapter(_imported().DatasetDict, _refuse_splits)
    register_adapter(_imported().IterableDatasetDict, _refuse_splits)
