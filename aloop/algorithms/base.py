"""The base of the training algorithms, and `as_algorithm`, which makes one out of a function."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias, TypeVar, cast, get_args

from aloop.checkpoints.generators import check_generators
from aloop.errors import ArgumentError, QuantityError
from aloop.offload import run_in_worker
from aloop.protocols import Algorithm, Batch

__all__ = [
    "FunctionAlgorithm",
    "TrainingAlgorithm",
    "Where",
    "as_algorithm",
    "as_quantities",
    "check_where",
]

Where: TypeAlias = Literal["thread", "inline"]
"""Where a synchronous step runs: on the run's worker thread, or on the event loop's."""

# What a step returns is whatever its author has: numbers and arrays by name, or nothing.
Quantities: TypeAlias = Mapping[str, Any]

Generator = TypeVar("Generator")


class TrainingAlgorithm(ABC):
    """Base of the training algorithms: what the main loop does with a batch.

    An algorithm that keeps something from batch to batch gives it by `state_dict` and takes it by
    `load_state_dict`, as JSON values and arrays; or a training cannot be resumed exactly.
    """

    _generators: dict[str, Any] | None = None

    @property
    def generators(self) -> Mapping[str, Any]:
        """The random generators whose states belong to a checkpoint, by name."""
        return {} if self._generators is None else self._generators

    def register_generator(self, name: str, generator: Generator) -> Generator:
        """Have the state of a random generator saved and restored with the training.

        Gives the generator back. Takes numpy's generators, ``random.Random``, and whatever has
        `getstate` and `setstate`; raises `ArgumentError` for anything else.
        """
        self._generators = {**self.generators, **check_generators({name: generator})}
        return generator

    async def initialize(self) -> None:
        """Get ready; called once in the life of a training, before the first batch."""
        return

    @abstractmethod
    async def process_batch(self, batch: Batch) -> Quantities | None:
        """Train on one batch.

        Returns the quantities that came with it by name (the cost, say), for
        `TrainingDataMonitoring` and whoever else is interested, or None.
        """


class FunctionAlgorithm(TrainingAlgorithm):
    """A training algorithm that is one function of a batch.

    Parameters:
        function: a function of a batch that returns quantities by name, or None. A coroutine
            function is awaited in the event loop; any other function runs where `where` says.
        where: ``"thread"`` for the run's own worker thread, the default; ``"inline"`` for the
            event loop's thread, which saves the hop of about 0.1 ms and is meant for steps that
            take far less than that.
        generators: the random generators that the function draws from, by name, whose states
            belong to a checkpoint; see `TrainingAlgorithm.register_generator`.

    Where the function is a method of an object with `state_dict`, that object's is its state.
    """

    def __init__(
        self,
        function: Callable[[Batch], Any],
        where: Where = "thread",
        *,
        generators: Mapping[str, Any] | None = None,
    ) -> None:
        self.function = function
        self.where = check_where(where)
        self._generators = check_generators(generators)
        if _is_async(function):
            # The loop then awaits the function itself, without a frame of ours in between.
            setattr(self, "process_batch", function)  # noqa: B010 - the types differ in names

    async def process_batch(self, batch: Batch) -> Quantities | None:
        """Call the function with the batch."""
        if self.where == "inline":
            result = self.function(batch)
        else:
            result = await run_in_worker(self.function, batch)
        # A sync function may hand out a coroutine: a lambda around an async one does.
        return await result if inspect.isawaitable(result) else result

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.function!r}, where={self.where!r})"


def as_algorithm(
    source: Any, where: Where = "thread", *, generators: Mapping[str, Any] | None = None
) -> Algorithm:
    """Make a training algorithm out of a function of a batch; see `FunctionAlgorithm`.

    Anything that has a `process_batch` is given back as it is. Raises `ArgumentError` for what is
    neither, and for generators beside what registers its own.
    """
    if hasattr(source, "process_batch") and not isinstance(source, type):
        if generators is not None:
            raise ArgumentError(
                f"generators was given beside the algorithm {source!r:.80}; expected a function; "
                "use its register_generator(name, generator)"
            )
        return cast("Algorithm", source)
    if callable(source) and not isinstance(source, type):
        return FunctionAlgorithm(source, where, generators=generators)
    raise ArgumentError(
        f"the algorithm is {source!r:.80}; expected a TrainingAlgorithm or a function of a "
        "batch; a class has to be instantiated first"
    )


def as_quantities(result: object, algorithm: object) -> Quantities:
    """Give what an algorithm returned for a batch, or raise `QuantityError` if it is no mapping."""
    if not isinstance(result, Mapping):
        raise QuantityError(
            f"the algorithm {algorithm!r} returned {result!r:.80} for a batch; expected a "
            "dictionary of quantities by name, or None; return {'cost': …}"
        )
    return cast("Quantities", result)


def check_where(where: object) -> Where:
    """Give back where a step runs, or raise `ArgumentError` naming the places there are."""
    if where in get_args(Where):
        return cast("Where", where)
    raise ArgumentError(
        f"where is {where!r}; expected one of {', '.join(map(repr, get_args(Where)))}; leave it "
        "out for the worker thread"
    )


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - of an object that can be called
    )
