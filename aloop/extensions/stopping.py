"""Extensions that end the training."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, Unpack

from aloop.callbacks import CallbackName
from aloop.extensions.predicates import Counter, Predicate
from aloop.extensions.simple import Options, SimpleExtension, counted
from aloop.protocols import Log

__all__ = ["FinishAfter"]


@dataclass
class _Reached:
    """Holds when a counter is at the limit or beyond, unless the limit was lifted."""

    counter: Counter
    limit: int
    is_lifted: bool = False

    def __call__(self, log: Log) -> bool:
        return not self.is_lifted and log.status[self.counter] >= self.limit


class FinishAfter(SimpleExtension):
    """Finishes the training when one of its triggers fires.

    `after_n_epochs` and `after_n_batches` are limits: they also hold beyond their number, and
    are looked at when a training goes on, so that starting one that is complete returns at once.
    To extend a complete training add a condition: what was reached by then no longer counts.

    Parameters:
        name, options: as for `SimpleExtension`.
    """

    CAN_BE_BACKGROUND = False  # the loop looks for its record when the boundary ends

    def __init__(self, name: str | None = None, **options: Unpack[Options]) -> None:
        self._reached: list[_Reached] = []
        super().__init__(name, **options)

    def set_conditions(self, **triggers: bool | int | None) -> None:
        """Replace all conditions by those of the triggers."""
        earlier, self._reached = self._reached, []
        try:
            super().set_conditions(**triggers)
        except BaseException:
            self._reached = earlier  # what holds is still what held before
            raise

    def add_condition(
        self,
        callbacks_names: Sequence[str],
        predicate: Predicate | None = None,
        arguments: Iterable[Any] | None = None,
    ) -> Self:
        """Add a condition, lifting the limits that the training has reached already."""
        super().add_condition(callbacks_names, predicate, arguments)
        if self._main_loop is not None:
            for limit in self._reached:
                limit.is_lifted |= limit(self._main_loop.log)
        return self

    async def do(self, which_callback: str, *args: Any) -> None:
        """Record that the training is to finish."""
        self.main_loop.log.current_row["training_finish_requested"] = True

    def state_dict(self) -> dict[str, Any]:
        """Give the limits that were lifted, each as its counter and its number."""
        lifted = [limit for limit in self._reached if limit.is_lifted]
        return {"lifted": [[limit.counter, limit.limit] for limit in lifted]}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Lift the limits that were lifted; one that is new to the training holds."""
        for limit in self._reached:
            limit.is_lifted = [limit.counter, limit.limit] in state["lifted"]

    def _count(self, trigger: str, number: int) -> Iterable[tuple[CallbackName, Predicate]]:
        if trigger.startswith("every"):
            return super()._count(trigger, number)
        callback, counter = counted(trigger)
        limit = _Reached(counter, number)
        self._reached.append(limit)
        return [(callback, limit), (CallbackName.ON_RESUMPTION, limit)]
