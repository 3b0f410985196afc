"""Streams over numpy arrays in memory."""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from aloop.errors import StreamError
from aloop.streams.indexed import IndexedStream, one_length
from aloop.streams.schemes import IterationScheme, Request

__all__ = ["ArrayStream"]


class ArrayStream(IndexedStream):
    """Batches out of numpy arrays, in the order of a scheme; resumable at any batch.

    A batch is a dictionary of new arrays, by source, of as many examples as the scheme says; with
    a scheme that asks for single examples there is no batch axis.

    Parameters:
        arrays: the data by source; all of the same length along their first axis, which is that
            of the examples. Anything that ``numpy.asarray`` takes.
        iteration_scheme: which examples make up which batch, or come one at a time.

    The position is O(1): the number of the epoch and the batches consumed in it.
    """

    where = "inline"  # it never waits

    def __init__(
        self, arrays: Mapping[str, npt.ArrayLike], *, iteration_scheme: IterationScheme
    ) -> None:
        super().__init__(iteration_scheme)
        self._arrays = _as_arrays(arrays)
        self.sources = tuple(self._arrays)
        self._check()

    def __repr__(self) -> str:
        shapes = {source: array.shape for source, array in self._arrays.items()}
        return f"{type(self).__name__}({shapes}, iteration_scheme={self.iteration_scheme!r})"

    def fetch(self, request: Request) -> dict[str, Any]:
        """Give copies of the examples that are asked for, by source."""
        if isinstance(request, int):
            # An index alone would give a view, through which the data could be changed.
            return {source: array.take(request, axis=0) for source, array in self._arrays.items()}
        return {source: array[request] for source, array in self._arrays.items()}

    def _check(self) -> None:
        if not self._arrays:
            raise StreamError("arrays is empty; expected at least one array, as {'x': array}")
        for source, array in self._arrays.items():
            if array.ndim == 0:
                raise StreamError(
                    f"array {source!r} is the single value {array}; expected examples along its "
                    "first axis"
                )
        self.check_reach("the arrays", one_length("the arrays", self._arrays))


def _as_arrays(arrays: object) -> dict[str, npt.NDArray[Any]]:
    if not isinstance(arrays, Mapping):
        raise StreamError(
            f"arrays is {arrays!r:.80} of type {type(arrays).__name__}; expected a mapping of "
            "arrays by source; name each: {'x': array}"
        )
    made: dict[str, npt.NDArray[Any]] = {}
    for source, array in cast("Mapping[str, Any]", arrays).items():
        try:
            made[source] = np.asarray(array)
        except Exception as error:  # rows of different lengths, or what another package refuses
            raise StreamError(
                f"array {source!r} is {array!r:.80} of type {type(array).__name__}, of which numpy "
                f"makes no array: {error}; expected rows of one shape, in memory; make an array "
                "of it, with dtype=object where the rows differ"
            ) from error
    return made
