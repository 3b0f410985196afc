"""Iteration schemes: which examples make up which batch of which epoch.

A scheme is a pure function of (epoch, batch): the order of an epoch depends on the seed and the
number of the epoch alone, so that going on in the middle of the thousandth epoch costs no more
than beginning the first.
"""

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from operator import index
from typing import Any, Final, SupportsIndex, TypeAlias, cast
from zlib import crc32

import numpy as np
import numpy.typing as npt

from aloop.config import config
from aloop.errors import StreamError

__all__ = [
    "BatchScheme",
    "ConcatenatedScheme",
    "ExampleScheme",
    "IterationScheme",
    "SequentialExampleScheme",
    "SequentialScheme",
    "ShuffledExampleScheme",
    "ShuffledScheme",
    "whole_number",
]

_SHOWN: Final = 3
"""How many of several schemes a message names."""

Indices: TypeAlias = npt.NDArray[np.int64]

Request: TypeAlias = Indices | int
"""What is asked for at a time: the indices of a batch's examples, or that of a single example."""


class IterationScheme(ABC):
    """Base of the schemes: which examples are asked for, and in which order.

    ``len(scheme)`` is the number of requests in an epoch: of batches, or of single examples.
    """

    requests_examples: bool = False
    """True if single examples are asked for, False if batches are."""

    @property
    @abstractmethod
    def indices(self) -> Indices:
        """The indices of the examples that an epoch goes through, in no order in particular."""

    @property
    def num_examples(self) -> int:
        """The number of examples that an epoch goes through."""
        return len(self.indices)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def epoch_indices(self, epoch: int) -> Indices:
        """Give the indices of all examples of an epoch (counted from 0) in their order."""

    @abstractmethod
    def request(self, order: Indices, number: int) -> Request:
        """Give what is asked for as one of an epoch's requests.

        Parameters:
            order: what `epoch_indices` gave for the epoch.
            number: of the request in the epoch, from 0 on.
        """

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Give what identifies the order of this scheme, as JSON values."""


class _IndexScheme(IterationScheme):
    """Base of the schemes that go through indices of their own."""

    def __init__(self, examples: "int | Sequence[int] | Indices") -> None:
        self._indices = _as_indices(examples)
        self._indices.flags.writeable = False  # what identifies them is worked out once
        # Another selection of as many examples is other data.
        self._crc32 = crc32(self._indices.astype("<i8").tobytes())

    @property
    def indices(self) -> Indices:
        """The indices of the examples that an epoch goes through, as they were given."""
        return self._indices

    def __repr__(self) -> str:
        # What it was made with, but for the indices: they may be all the data there is.
        sizes = {"examples": self.num_examples} | {
            name: value
            for name, value in self.state().items()
            if name not in {"scheme", "num_examples", "indices_crc32"}
        }
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in sizes.items())})"

    def state(self) -> dict[str, Any]:
        """Give what identifies the order of this scheme, as JSON values."""
        return {
            "scheme": type(self).__name__,
            "num_examples": self.num_examples,
            "indices_crc32": self._crc32,
        }


class BatchScheme(_IndexScheme):
    """Base of the schemes that cut the examples of an epoch into batches.

    Parameters:
        examples: the number of examples, or the indices of those to use.
        batch_size: examples in a batch; the last batch of an epoch is shorter if need be.
        drop_last: leave out a last batch that would be shorter.

    ``len(scheme)`` is the number of batches in an epoch.
    """

    requests_examples = False

    def __init__(
        self,
        examples: "int | Sequence[int] | Indices",
        batch_size: int,
        *,
        drop_last: bool = False,
    ) -> None:
        super().__init__(examples)
        self.batch_size = whole_number("batch_size", batch_size, least=1)
        self.drop_last = bool(drop_last)
        if self.drop_last and self.batch_size > self.num_examples:
            raise StreamError(
                f"batch_size is {self.batch_size} for {self.num_examples} examples, with "
                "drop_last=True, which leaves no batch at all; expected a batch to be whole; "
                "leave drop_last out, or make the batches smaller"
            )

    def __len__(self) -> int:
        return (self.num_examples + (0 if self.drop_last else self.batch_size - 1)) // (
            self.batch_size
        )

    def request(self, order: Indices, number: int) -> Indices:
        """Give the indices of a batch of the epoch that has this order."""
        begin = number * self.batch_size
        return order[begin : begin + self.batch_size]

    def state(self) -> dict[str, Any]:
        """Give what identifies the order of this scheme, as JSON values."""
        state = super().state() | {"batch_size": self.batch_size}
        return state | {"drop_last": True} if self.drop_last else state


class ExampleScheme(_IndexScheme):
    """Base of the schemes that ask for one example at a time.

    Parameters:
        examples: the number of examples, or the indices of those to use.

    ``len(scheme)`` is the number of examples in an epoch.
    """

    requests_examples = True

    def __len__(self) -> int:
        return self.num_examples

    def request(self, order: Indices, number: int) -> int:
        """Give the index of an example of the epoch that has this order."""
        return int(order[number])


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
        drop_last: leave out a last batch that would be shorter, which is another one each epoch.
    """

    def __init__(
        self,
        examples: "int | Sequence[int] | Indices",
        batch_size: int,
        *,
        seed: int | None = None,
        drop_last: bool = False,
    ) -> None:
        super().__init__(examples, batch_size, drop_last=drop_last)
        self.seed = _seed(seed)

    def epoch_indices(self, epoch: int) -> Indices:
        """Give the indices of all examples in the order drawn for this epoch."""
        return _shuffled(self.indices, self.seed, epoch)

    def state(self) -> dict[str, Any]:
        """Give what identifies the order of this scheme, as JSON values."""
        return super().state() | {"seed": self.seed}


class SequentialExampleScheme(ExampleScheme):
    """Single examples in their order, the same in each epoch."""

    def epoch_indices(self, epoch: int) -> Indices:
        """Give the indices of all examples, which are the same in each epoch."""
        return self.indices


class ShuffledExampleScheme(ExampleScheme):
    """Single examples in an order drawn anew for each epoch, that of `ShuffledScheme`.

    Parameters:
        examples: the number of examples, or the indices of those to use.
        seed: a whole number from 0 on; the setting `default_seed` unless given.
    """

    def __init__(
        self, examples: "int | Sequence[int] | Indices", *, seed: int | None = None
    ) -> None:
        super().__init__(examples)
        self.seed = _seed(seed)

    def epoch_indices(self, epoch: int) -> Indices:
        """Give the indices of all examples in the order drawn for this epoch."""
        return _shuffled(self.indices, self.seed, epoch)

    def state(self) -> dict[str, Any]:
        """Give what identifies the order of this scheme, as JSON values."""
        return super().state() | {"seed": self.seed}


class ConcatenatedScheme(IterationScheme):
    """Several schemes, one after the other in each epoch.

    Parameters:
        schemes: the schemes, one or more; all of them ask for batches, or all for examples.
    """

    def __init__(self, schemes: Sequence[IterationScheme]) -> None:
        self.schemes = _as_schemes(schemes)
        self.requests_examples = self.schemes[0].requests_examples
        # Where each scheme begins, and the last one ends: in requests, and in examples.
        self._numbers = [0, *accumulate(len(scheme) for scheme in self.schemes)]
        self._places = [0, *accumulate(scheme.num_examples for scheme in self.schemes)]

    def __repr__(self) -> str:
        shown = [*map(repr, self.schemes[:_SHOWN])]
        if len(self.schemes) > _SHOWN:
            shown.append(f"… {len(self.schemes)} in all")
        return f"{type(self).__name__}([{', '.join(shown)}])"

    @property
    def indices(self) -> Indices:
        """The indices of the examples that an epoch goes through, scheme by scheme."""
        return np.concatenate([scheme.indices for scheme in self.schemes])

    @property
    def num_examples(self) -> int:
        """The number of examples that an epoch goes through."""
        return self._places[-1]

    def __len__(self) -> int:
        return self._numbers[-1]

    def epoch_indices(self, epoch: int) -> Indices:
        """Give the indices of all examples of this epoch of each scheme, one after the other."""
        return np.concatenate([scheme.epoch_indices(epoch) for scheme in self.schemes])

    def request(self, order: Indices, number: int) -> Request:
        """Give what the scheme whose turn it is asks for."""
        turn = bisect_right(self._numbers, number) - 1
        its_order = order[self._places[turn] : self._places[turn + 1]]
        return self.schemes[turn].request(its_order, number - self._numbers[turn])

    def state(self) -> dict[str, Any]:
        """Give what identifies the order of this scheme, as JSON values."""
        return {
            "scheme": type(self).__name__,
            "num_examples": self.num_examples,
            "schemes": [scheme.state() for scheme in self.schemes],
        }


def _shuffled(indices: Indices, seed: int, epoch: int) -> Indices:
    return np.random.default_rng((seed, epoch)).permutation(indices)


def _seed(seed: int | None) -> int:
    return whole_number("seed", config.default_seed if seed is None else seed, least=0)


def _as_schemes(schemes: Any) -> tuple[IterationScheme, ...]:
    given: tuple[IterationScheme, ...] = (
        tuple(cast("Sequence[Any]", schemes)) if isinstance(schemes, Sequence) else ()
    )
    if not given or any(not isinstance(cast("object", each), IterationScheme) for each in given):
        raise StreamError(
            f"schemes is {schemes!r:.200}; expected a list of one or more schemes of aloop, as "
            "SequentialScheme and ShuffledScheme"
        )
    if len({scheme.requests_examples for scheme in given}) > 1:
        kinds = ", ".join(
            f"{type(scheme).__name__} for {'examples' if scheme.requests_examples else 'batches'}"
            for scheme in given
        )
        raise StreamError(
            f"the schemes ask for different things: {kinds}; expected all to ask for batches, or "
            "all for single examples; make them of one kind"
        )
    return given


def _as_indices(examples: Any) -> Indices:
    if isinstance(examples, SupportsIndex) and not isinstance(examples, (bool, np.ndarray)):
        return np.arange(whole_number("examples", index(examples), least=1))
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


def whole_number(name: str, value: Any, *, least: int) -> int:
    """Give back a whole number, one of numpy's too; `StreamError` if it is none, or too small."""
    given: object = value
    is_number = isinstance(given, SupportsIndex) and not isinstance(given, (bool, np.ndarray))
    if not is_number or index(value) < least:
        raise StreamError(
            f"{name} is {value!r}; expected a whole number, {least} or more; correct it"
        )
    return index(value)
