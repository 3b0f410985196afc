"""Iteration schemes: which examples make up which batch of which epoch.

A scheme is a pure function of (epoch, batch): the order of an epoch depends on the seed and the
number of the epoch alone, so that going on in the middle of the thousandth epoch costs no more
than beginning the first.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from operator import index
from typing import Any, Final, SupportsIndex, TypeAlias
from zlib import crc32

import numpy as np
import numpy.typing as npt

from aloop.config import config
from aloop.errors import StreamError

__all__ = ["BatchScheme", "SequentialScheme", "ShuffledScheme"]

Indices: TypeAlias = npt.NDArray[np.int64]


class BatchScheme(ABC):
    """Base of the schemes that cut the examples of an epoch into batches.

    Parameters:
        examples: the number of examples, or the indices of those to use.
        batch_size: examples in a batch; the last batch of an epoch is shorter if need be.

    ``len(scheme)`` is the number of batches in an epoch.
    """

    requests_examples: Final = False

    def __init__(self, examples: "int | Sequence[int] | Indices", batch_size: int) -> None:
        self.indices: Indices = _as_indices(examples)
        self.batch_size = _whole_number("batch_size", batch_size, least=1)

    @property
    def num_examples(self) -> int:
        """The number of examples in an epoch."""
        return len(self.indices)

    def __len__(self) -> int:
        return -(-self.num_examples // self.batch_size)

    @abstractmethod
    def epoch_indices(self, epoch: int) -> Indices:
        """Give the indices of all examples of an epoch (counted from 0) in their order."""

    def state(self) -> dict[str, Any]:
        """Give what identifies the order of this scheme, as JSON values."""
        return {
            "scheme": type(self).__name__,
            "num_examples": self.num_examples,
            "batch_size": self.batch_size,
            # Another selection of as many examples is other data.
            "indices_crc32": crc32(self.indices.astype("<i8").tobytes()),
        }


class SequentialScheme(BatchScheme):
    """Batches of the examples in their order, the same in each epoch."""

    def epoch_indices(self, epoch: int) -> Indices:
        """Give the indices of all examples, which are the same in each epoch."""
        return self.indices


class ShuffledScheme(BatchScheme):
    """Batches of the examples in an order drawn anew for each epoch.

    Parameters:
        examples: the number of examples, or the indices of those to use.
        batch_size: examples in a batch; the last batch of an epoch is shorter if need be.
        seed: a whole number from 0 on; the setting `default_seed` unless given. The order of
            epoch e is drawn by numpy's default generator seeded with (seed, e).
    """

    def __init__(
        self,
        examples: "int | Sequence[int] | Indices",
        batch_size: int,
        *,
        seed: int | None = None,
    ) -> None:
        super().__init__(examples, batch_size)
        self.seed = _whole_number("seed", config.default_seed if seed is None else seed, least=0)

    def epoch_indices(self, epoch: int) -> Indices:
        """Give the indices of all examples in the order drawn for this epoch."""
        return np.random.default_rng((self.seed, epoch)).permutation(self.indices)

    def state(self) -> dict[str, Any]:
        """Give what identifies the order of this scheme, as JSON values."""
        return super().state() | {"seed": int(self.seed)}


def _as_indices(examples: Any) -> Indices:
    if isinstance(examples, SupportsIndex) and not isinstance(examples, (bool, np.ndarray)):
        return np.arange(_whole_number("examples", index(examples), least=1))
    try:
        indices = np.asarray(examples)
    except ValueError:  # rows of different lengths
        indices = np.empty((0, 0))
    if indices.ndim != 1 or indices.dtype.kind not in "iu" or not len(indices):
        raise StreamError(
            f"examples is {examples!r:.80}; expected the number of examples, 1 or more, or a "
            "sequence of their indices"
        )
    if indices.min() < 0:
        raise StreamError(
            f"examples has the index {indices.min()}; expected indices from 0 on; count from "
            "the beginning of the data"
        )
    return indices.astype(np.int64)


def _whole_number(name: str, value: Any, *, least: int) -> int:
    given: object = value
    is_number = isinstance(given, SupportsIndex) and not isinstance(given, (bool, np.ndarray))
    if not is_number or index(value) < least:
        raise StreamError(
            f"{name} is {value!r}; expected a whole number, {least} or more; correct it"
        )
    return index(value)
