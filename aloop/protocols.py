"""What the parts of aloop expect of one another.

Extensions see the main loop, and the loop sees streams, algorithms and models, through these
protocols alone; nobody has to inherit from anything.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

from aloop.callbacks import Position

__all__ = [
    "Algorithm",
    "Background",
    "Batch",
    "Checkpoints",
    "Log",
    "Loop",
    "Stateful",
    "Stream",
]

# A batch is whatever the stream yields: a dictionary of arrays by source for streams that have
# sources, anything at all for the others. Hence Any.
Batch: TypeAlias = Any

# What the log holds is checked at the assignment, at run time; a recursive alias of all kinds of
# values would make every read of a record a type error at its user's. Hence Any.
Record: TypeAlias = Any


@runtime_checkable
class Stateful(Protocol):
    """An object whose state can be taken out and put back."""

    def state_dict(self) -> dict[str, Any]:
        """Give the state as JSON values and numpy arrays."""
        ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Put back a state that `state_dict` gave."""
        ...


@runtime_checkable
class Stream(Protocol):
    """A data stream, by the interface of Fuel's AbstractDataStream."""

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of what a batch holds, in order."""
        ...

    @property
    def produces_examples(self) -> bool:
        """True if the stream yields single examples, False if it yields batches."""
        ...

    @property
    def iteration_scheme(self) -> Any:
        """The scheme that orders the stream, or None."""
        ...

    def get_epoch_iterator(self, *, as_dict: bool = False) -> Any:
        """Begin an epoch and give its iterator, sync or async."""
        ...

    def next_epoch(self) -> None:
        """Make the next epoch iterator begin an epoch that follows this one."""
        ...

    def reset(self) -> None:
        """Go back to the beginning of the first epoch."""
        ...

    def close(self) -> None:
        """Let go of what the stream holds open."""
        ...


class Algorithm(Protocol):
    """What trains: see `aloop.algorithms.TrainingAlgorithm`."""

    async def initialize(self) -> None:
        """Get ready; called once, before the first batch."""
        ...

    async def process_batch(self, batch: Batch, /) -> Mapping[str, Any] | None:
        """Train on one batch and give the quantities that came with it, if any."""
        ...


class Log(Protocol):
    """A training log as extensions see it: see `aloop.log.TrainingLog`."""

    @property
    def status(self) -> MutableMapping[str, Record]:
        """What holds of the training now: `iterations_done`, `epochs_done` and the like."""
        ...

    @property
    def current_row(self) -> MutableMapping[str, Record]:
        """The records of the current time, `status["iterations_done"]`."""
        ...

    @property
    def previous_row(self) -> MutableMapping[str, Record]:
        """The records of the time before the current one."""
        ...

    @property
    def last_epoch_row(self) -> MutableMapping[str, Record]:
        """The records of the time at which the last epoch ended."""
        ...

    def __getitem__(self, time: int, /) -> MutableMapping[str, Record]: ...

    def __iter__(self) -> Iterator[int]: ...

    def __len__(self) -> int: ...


class Background(Protocol):
    """What runs beside the training of a run: see `aloop.background`."""

    @property
    def is_over(self) -> bool:
        """True when the run has ended."""
        ...

    def start_soon(
        self, func: Callable[..., Awaitable[Any]], *args: Any, name: str | None = None
    ) -> None:
        """Run a coroutine function beside the training."""
        ...

    async def start_in_turn(
        self,
        owner: object,
        func: Callable[..., Awaitable[Any]],
        *args: Any,
        name: str,
        changes_state: bool = True,
    ) -> None:
        """Do so when what its owner began has ended."""
        ...

    async def pause(self, seconds: float) -> bool:
        """Wait so many seconds, or until the run is to stop, and give whether it is."""
        ...


class Checkpoints(Protocol):
    """The saving and restoring of a training: see `aloop.saving`."""

    def expect(self, wish: Any) -> None:
        """Hear of an extension that saves, by a `SaveWish`."""
        ...

    async def prepare(self, path: Path) -> None:
        """Make sure that checkpoints can be written to a directory."""
        ...

    def save(self, wish: Any) -> None:
        """Have a checkpoint saved, by a `SaveWish`, at the next boundary."""
        ...

    def load(self, wish: Any) -> None:
        """Have a checkpoint loaded, by a `LoadWish`, before the training begins."""
        ...


class Loop(Protocol):
    """The main loop as extensions see it."""

    @property
    def log(self) -> Log:
        """The log of the training."""
        ...

    @property
    def status(self) -> MutableMapping[str, Record]:
        """A shortcut for ``log.status``."""
        ...

    @property
    def algorithm(self) -> Algorithm:
        """What trains."""
        ...

    @property
    def data_stream(self) -> Stream:
        """Where the batches come from."""
        ...

    @property
    def model(self) -> Any:
        """The model the loop was given; AttributeError if it was given none."""
        ...

    @property
    def position(self) -> Position:
        """Where the training is."""
        ...

    @property
    def quantities(self) -> Mapping[str, Any]:
        """What the algorithm returned for the last batch."""
        ...

    @property
    def background(self) -> Background:
        """What runs beside the training of the run that is under way."""
        ...

    @property
    def checkpoints(self) -> Checkpoints:
        """What saves and restores the training."""
        ...

    def start_soon(
        self, func: Callable[..., Awaitable[Any]], *args: Any, name: str | None = None
    ) -> None:
        """Run a coroutine function beside the training."""
        ...

    def callbacks_changed(self) -> None:
        """Say that an extension answers to other callbacks than before."""
        ...
