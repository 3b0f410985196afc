"""What extensions ask for: a checkpoint to be saved, or one to be loaded."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

__all__ = ["LoadWish", "SaveWish"]

Save: TypeAlias = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveWish:
    """A checkpoint in a directory."""

    path: Path
    """The directory, absolute."""
    keep: int | None
    """How many of the newest stay there; None for all."""
    is_whole: bool = True
    """Whether a run can be resumed from it; or the model's parameters are all that is saved."""
    is_last: bool = False
    """Whether it is for the end of the run, and of no use where the last one was taken here."""
    global_rng: bool = False
    """Whether the generators that the modules `random` and ``numpy.random`` share belong to it."""
    limited: Callable[[Save], Callable[[], Any]] = lambda save: save
    """Holds the saving to the limits of the extension that asks for it."""
    is_lenient: bool = False
    """Whether the run goes on when it fails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadWish:
    """A checkpoint that is to be loaded before the training begins."""

    owner: str
    """How messages call the extension that asks for it."""
    path: Path
    """A checkpoint, or a directory of which the newest that is whole is loaded; absolute."""
    iteration_state: bool = False
    """Whether all but the log goes on from there, and not just the model's parameters."""
    log: bool = False
    """Whether the log goes on from there."""
    global_rng: bool = False
    """Whether the generators that the modules `random` and ``numpy.random`` share do."""
    is_own: bool = False
    """Whether these are the checkpoints of the very training that goes on."""

    @property
    def is_resumption(self) -> bool:
        """True where more than the model's parameters is loaded."""
        return self.iteration_state or self.log
