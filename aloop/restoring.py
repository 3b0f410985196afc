"""Going on from what was saved.

A training is restored when every `before_training` and `initialize` are done, so that nothing
overwrites what was loaded.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aloop.checkpoints import CheckpointDirectory, Contents, SavedCheckpoint
from aloop.checkpoints.directory import is_checkpoint
from aloop.checkpoints.published import Packed, State
from aloop.checkpoints.wishes import LoadWish
from aloop.errors import ArgumentError, CheckpointError, CheckpointValueError, brief
from aloop.faults import fault_point
from aloop.offload import run_in_worker
from aloop.snapshots import Trained, put_back

__all__ = ["Restored", "Restorer"]

_PARTS: Final = (
    "position",
    "log",
    "rows",
    "stream",
    "quantities",
    "extensions",
    "algorithm",
    "model",
)

_logger = logging.getLogger("aloop")


@dataclass(frozen=True, slots=True)
class Restored:
    """How a training goes on from an earlier one."""

    log: bool
    """Whether the log goes on, too."""
    directory: Path | None = None
    """Of which the training goes on from the newest checkpoint, if it is that."""


class Restorer:
    """Puts back what is wanted of a training, once.

    Parameters:
        training: the training.
        directory_at: gives the directory of checkpoints of a path.
    """

    def __init__(
        self, training: Trained, directory_at: Callable[[Path], CheckpointDirectory]
    ) -> None:
        self._training = training
        self._directory_at = directory_at
        # Kept until they were put back: a run that failed before is run again.
        self._loads: list[LoadWish] = []
        self._state: State | None = None

    def load(self, wish: LoadWish) -> None:
        """Have a checkpoint loaded."""
        if wish not in self._loads:
            self._loads.append(wish)

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Have a state put back, in place of all that is to be loaded.

        Raises `CheckpointValueError` for what is no such state.
        """
        try:
            contents = Contents.of(Packed.of({part: state[part] for part in _PARTS}))
            self._state = contents.state()  # a copy, which stays as it is
        except (KeyError, AttributeError, TypeError, ValueError) as error:
            raise CheckpointValueError(
                f"the state is {state!r:.80}, which is not that of a training: {brief(error)}; "
                "expected what MainLoop.state_dict() gave, its arrays as arrays"
            ) from error

    async def restore(self) -> Restored | None:
        """Put back what is wanted, and give how the training goes on; None if it begins."""
        if self._state is not None:
            await put_back(self._training, self._state, iteration_state=True, log=True)
            self._state = None
            self._loads.clear()
            return Restored(log=True)
        for is_own in (True, False):  # to branch off from another is to begin
            load = self._only([x for x in self._loads if x.is_resumption and x.is_own is is_own])
            if load is not None and await self._load(load):
                self._loads.clear()  # parameters that were loaded to begin with are history
                return Restored(load.log, load.path if load.iteration_state else None)
        for load in self._loads:
            if not load.is_resumption:
                await self._load(load)
        self._loads.clear()
        return None

    def _only(self, loads: Sequence[LoadWish]) -> LoadWish | None:
        if len(loads) > 1:
            raise ArgumentError(
                "several extensions load the iteration state or the log: "
                f"{', '.join(load.owner for load in loads)}; expected one; leave out resume=True, "
                "or load_iteration_state and load_log, of the others"
            )
        return loads[0] if loads else None

    async def _load(self, load: LoadWish) -> bool:
        found = await run_in_worker(self._find, load)
        if found is None:
            _logger.warning(
                "%s finds no checkpoint in %s; the training goes on without", load.owner, load.path
            )
            return False
        checkpoint, state = found
        fault_point("restore.read")
        await put_back(
            self._training,
            state,
            iteration_state=load.iteration_state,
            log=load.log,
            global_rng=load.global_rng,
        )
        self._training.log.current_row["loaded_from"] = str(checkpoint.path)
        fault_point("restore.done")
        _logger.info("%s loaded %s", load.owner, checkpoint.path)
        return True

    def _find(self, load: LoadWish) -> tuple[SavedCheckpoint, State] | None:
        if not load.path.exists():
            return None
        if not load.path.is_dir():
            raise CheckpointError(
                f"{load.path} is a file; expected a checkpoint, which is a directory, or a "
                "directory of checkpoints; correct the path"
            )
        if not is_checkpoint(load.path):
            return self._directory_at(load.path).read_newest(whole=load.is_resumption)
        checkpoint = SavedCheckpoint.at(load.path)
        if load.is_resumption and not checkpoint.is_whole:
            raise CheckpointError(
                f"the checkpoint {load.path} has the parameters of a model and no more; expected a "
                "whole one to go on from; take another, or load its parameters alone"
            )
        return checkpoint, checkpoint.read()
