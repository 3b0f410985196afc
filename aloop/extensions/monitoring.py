"""Extensions that record quantities."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any, Unpack, cast

import numpy as np

from aloop.errors import ArgumentError, QuantityError
from aloop.extensions.simple import Options, SimpleExtension, triggered
from aloop.protocols import Batch

__all__ = ["TrainingDataMonitoring"]

_logger = logging.getLogger("aloop")


class TrainingDataMonitoring(SimpleExtension):
    """Records means of what the algorithm returned for the training batches.

    A mean goes over the batches since the last time it was recorded, weighted by their numbers
    of examples: the length of a batch's first source, 1 for a batch without a length and for the
    examples of a stream that produces examples. Nothing is
    computed twice. When no batch has passed since the last time, nothing is recorded.

    Parameters:
        variables: the names of the quantities.
        prefix, suffix: what stands before and after a name in the record, with an underscore.
        name, options: as for `SimpleExtension`; after each epoch if there is no trigger.

    Raises `QuantityError` when the algorithm did not return one of the quantities.
    """

    CAN_BE_BACKGROUND = False  # a batch more would be in its means by then

    SEPARATOR = "_"

    def __init__(
        self,
        variables: Iterable[str],
        prefix: str | None = None,
        suffix: str | None = None,
        name: str | None = None,
        **options: Unpack[Options],
    ) -> None:
        if isinstance(variables, str):
            raise ArgumentError(
                f"variables is {variables!r}; expected a list of names; write [{variables!r}]"
            )
        self.variables = list(variables)
        self.prefix = prefix
        self.suffix = suffix
        self._sums: dict[str, Any] = {}
        self._weight = 0
        super().__init__(name, **triggered(options, after_epoch=True))

    async def after_batch(self, batch: Batch) -> None:
        """Add what the algorithm returned for this batch."""
        quantities = self.main_loop.quantities
        stream = self.main_loop.data_stream
        is_example = getattr(stream, "produces_examples", False)
        sources = getattr(stream, "sources", ())
        weight = 1 if is_example else number_of_examples(batch, sources)
        for variable in self.variables:
            if variable not in quantities:
                raise QuantityError(
                    f"variable {variable!r} is to be monitored, but the algorithm returned "
                    f"{', '.join(map(repr, quantities)) or 'nothing'}; expected it among the "
                    "quantities that process_batch returns; correct the name or return it"
                )
            try:
                # In double precision, whatever the quantity comes in.
                value = np.asarray(quantities[variable])
                share = weight * value.astype(np.result_type(value, np.float64))
                self._sums[variable] = self._sums.get(variable, 0) + share
            except (TypeError, ValueError) as error:
                raise QuantityError(
                    f"variable {variable!r} is {quantities[variable]!r:.80}, of which no mean can "
                    f"be taken with those before it: {error}; expected numbers, or arrays of one "
                    "shape; leave it out, or return a summary of it"
                ) from error
        self._weight += weight

    async def do(self, which_callback: str, *args: Any) -> None:
        """Record the means and begin anew."""
        if not self._weight:
            return
        row = self.main_loop.log.current_row
        for variable, total in self._sums.items():
            row[self.record_name(variable)] = total / self._weight
        self._sums = {}
        self._weight = 0

    def state_dict(self) -> dict[str, Any]:
        """Give what was added up since the last record."""
        return {"sums": dict(self._sums), "weight": self._weight}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Put back what `state_dict` gave; sums of other variables make no means with these."""
        if state["weight"] and state["sums"].keys() != set(self.variables):
            _logger.warning(
                "the extension %r monitors %s now, but %s in the checkpoint: its means begin anew",
                self.name,
                ", ".join(self.variables),
                ", ".join(state["sums"]),
            )
            return
        self._sums = dict(state["sums"])
        self._weight = state["weight"]

    def record_name(self, variable: str) -> str:
        """Give the name under which a variable is recorded."""
        return self.SEPARATOR.join(part for part in (self.prefix, variable, self.suffix) if part)


def number_of_examples(batch: Batch, sources: tuple[str, ...] = ()) -> int:
    """Give the length of the batch's first source, or 1 where there is no such thing."""
    first: object = batch
    if isinstance(batch, Mapping) and batch:
        named = cast("Mapping[str, Any]", batch)
        first = named[sources[0]] if sources and sources[0] in named else next(iter(named.values()))
    elif isinstance(batch, (tuple, list)) and batch:
        first = cast("Any", batch)[0]
    try:
        return len(cast("Any", first))
    except TypeError:
        return 1
