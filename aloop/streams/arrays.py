"""Streams over numpy arrays in memory."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeGuard, cast

import numpy as np
import numpy.typing as npt

from aloop.errors import StreamError
from aloop.streams.base import DataStream
from aloop.streams.schemes import BatchScheme

__all__ = ["ArrayStream"]


class ArrayStream(DataStream):
    """Batches out of numpy arrays, in the order of a scheme; resumable at any batch.

    A batch is a dictionary of new arrays, by source, of as many examples as the scheme says.

    Parameters:
        arrays: the data by source; all of the same length along their first axis, which is that
            of the examples. Anything that ``numpy.asarray`` takes.
        iteration_scheme: which examples make up which batch.

    The position is O(1): the number of the epoch and the batches consumed in it.
    """

    produces_examples = False
    where = "inline"  # it never waits

    def __init__(
        self, arrays: Mapping[str, npt.ArrayLike], *, iteration_scheme: BatchScheme
    ) -> None:
        self._arrays = {source: np.asarray(array) for source, array in arrays.items()}
        self.iteration_scheme = iteration_scheme
        self.sources = tuple(self._arrays)
        self._check()
        # The epoch of the next iterator, or of the one that is under way, and how many batches
        # were taken from it.
        self._epoch = 0
        self._batch = 0
        self._iterator: ArrayIterator | None = None

    def get_epoch_iterator(self, *, as_dict: bool = True) -> "ArrayIterator":
        """Begin the next epoch and give its iterator.

        After `load_state_dict` it is the rest of the epoch that the state is from. With
        `as_dict` a batch is a dictionary by source, otherwise a tuple in the order of `sources`.
        """
        if self._iterator is not None:
            self.next_epoch()
        self._iterator = ArrayIterator(
            self._arrays,
            self.iteration_scheme,
            epoch=self._epoch,
            batch=self._batch,
            as_dict=as_dict,
            consumed=self._consumed,
        )
        return self._iterator

    def next_epoch(self) -> None:
        """Make the next iterator begin the epoch after the present one."""
        self._move(self._epoch + 1, 0)

    def reset(self) -> None:
        """Go back to the beginning of the first epoch."""
        self._move(0, 0)

    def state_dict(self) -> dict[str, Any]:
        """Give the place consumed: the epoch, the batches taken from it, and the order's key."""
        return {"epoch": self._epoch, "batch": self._batch, **self.iteration_scheme.state()}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Go to a place that `state_dict` gave; the next iterator goes on from there.

        Raises `StreamError` when the state is from a stream with another scheme, seed, batch
        size or number of examples.
        """
        for key, value in self.iteration_scheme.state().items():
            if state.get(key) != value:
                raise StreamError(
                    f"the stream's state has {key} {state.get(key)!r}, but the stream has "
                    f"{value!r}; expected the same order of the same data; make the stream as it "
                    "was, or call reset() to begin anew"
                )
        epoch, batch = state.get("epoch"), state.get("batch")
        if not _is_count(epoch) or not _is_count(batch) or batch > len(self.iteration_scheme):
            raise StreamError(
                f"the stream's state has epoch {epoch!r} and batch {batch!r}; expected whole "
                f"numbers from 0 on, the batch at most {len(self.iteration_scheme)}; give what "
                "state_dict() gave"
            )
        self._move(epoch, batch)

    def _move(self, epoch: int, batch: int) -> None:
        self._epoch = epoch
        self._batch = batch
        self._iterator = None

    def _check(self) -> None:
        if not isinstance(cast("object", self.iteration_scheme), BatchScheme):
            raise StreamError(
                f"iteration_scheme is {self.iteration_scheme!r}; expected a SequentialScheme or "
                "ShuffledScheme over the examples"
            )
        if not self._arrays:
            raise StreamError("arrays is empty; expected at least one array, as {'x': array}")
        for source, array in self._arrays.items():
            if array.ndim == 0:
                raise StreamError(
                    f"array {source!r} is the single value {array}; expected examples along its "
                    "first axis"
                )
        lengths = {source: len(array) for source, array in self._arrays.items()}
        if len(set(lengths.values())) > 1:
            raise StreamError(
                "the arrays differ in length: "
                + ", ".join(f"{source!r} has {length}" for source, length in lengths.items())
                + "; expected one length, that of the examples"
            )
        length = lengths[self.sources[0]]
        last = int(self.iteration_scheme.indices.max())
        if last >= length:
            raise StreamError(
                f"the iteration scheme asks for example {last}, but the arrays have {length}; "
                f"expected indices below {length}; make the scheme with examples={length}"
            )

    def _consumed(self, iterator: "ArrayIterator", batches: int | None) -> None:
        """Note how many batches were taken from an epoch; None when it has ended."""
        if iterator is not self._iterator:
            return  # it was left for a later one
        if batches is None:
            self.next_epoch()
        else:
            self._batch = batches


class ArrayIterator(Iterator[Any]):
    """The batches of one epoch of an `ArrayStream`, from a given batch on.

    The stream's position follows the iterator that was begun last.
    """

    def __init__(
        self,
        arrays: Mapping[str, npt.NDArray[Any]],
        scheme: BatchScheme,
        *,
        epoch: int,
        batch: int,
        as_dict: bool,
        consumed: "Callable[[ArrayIterator, int | None], None]",
    ) -> None:
        self._arrays = arrays
        self._order = scheme.epoch_indices(epoch)
        self._size = scheme.batch_size
        self._batch = batch
        self._as_dict = as_dict
        self._consumed = consumed

    def __next__(self) -> Any:
        begin = self._batch * self._size
        if begin >= len(self._order):
            self._consumed(self, None)
            raise StopIteration
        indices = self._order[begin : begin + self._size]
        batch = {source: array[indices] for source, array in self._arrays.items()}
        self._batch += 1
        self._consumed(self, self._batch)
        return batch if self._as_dict else tuple(batch.values())


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
