"""The words of a run: its nine callbacks, its stages, its position.

The map of a run, from the first line to the last; every name in it that an extension can
answer to is a member of `CallbackName`::

    open the log; model.check_sanity(algorithm); subscribe to signals
    if training has not started:
        before_training                      # once in the life of a training
        algorithm.initialize()
    if iterations_done > 0:                  # a second run(), or a restored one
        log.resume()
        on_resumption
    until a finish is found:
        before_epoch
        for batch in epoch:
            before_batch(batch)
            algorithm.process_batch(batch)
            after_batch(batch)
            COMMIT, then look for a finish
        after_epoch
        COMMIT, then look for a finish
    wait for what runs beside the training, here and after the callbacks that follow
    on_interrupt                             # when somebody stopped the run from outside
    after_training                           # when the run ended in good order
    on_error(exception)                      # when the step, the stream, an extension or
                                             # background work raised
    COMMIT; close what was opened; put the signal handlers back
"""

from dataclasses import asdict, dataclass
from enum import StrEnum

__all__ = ["CallbackName", "Position", "Stage"]


class CallbackName(StrEnum):
    """The callbacks of a run, by the names of the methods that extensions override."""

    BEFORE_TRAINING = "before_training"
    ON_RESUMPTION = "on_resumption"
    BEFORE_EPOCH = "before_epoch"
    BEFORE_BATCH = "before_batch"
    AFTER_BATCH = "after_batch"
    AFTER_EPOCH = "after_epoch"
    AFTER_TRAINING = "after_training"
    ON_INTERRUPT = "on_interrupt"
    ON_ERROR = "on_error"


class Stage(StrEnum):
    """What the run did last. Recorded where it happens, never inferred from counters."""

    NOT_STARTED = "not_started"
    TRAINING_STARTED = "training_started"
    EPOCH_STARTED = "epoch_started"
    BATCH_STARTED = "batch_started"
    BATCH_DONE = "batch_done"
    EPOCH_DONE = "epoch_done"

    @property
    def in_epoch(self) -> bool:
        """True while an epoch has begun and has not ended."""
        return self in (Stage.EPOCH_STARTED, Stage.BATCH_STARTED, Stage.BATCH_DONE)


@dataclass(frozen=True, slots=True)
class Position:
    """Where a training is.

    `epochs_done` and `iterations_done` count what is complete, `batch` the batches taken in the
    epoch that is under way (0 between epochs), `stage` says what happened last.
    """

    epochs_done: int = 0
    iterations_done: int = 0
    batch: int = 0
    stage: Stage = Stage.NOT_STARTED

    def to_dict(self) -> dict[str, int | str]:
        """Give the position as plain data, ready for JSON."""
        return asdict(self) | {"stage": str(self.stage)}

    @classmethod
    def from_dict(cls, data: dict[str, int | str]) -> "Position":
        """Build a position from what `to_dict` gave."""
        return cls(
            epochs_done=int(data["epochs_done"]),
            iterations_done=int(data["iterations_done"]),
            batch=int(data["batch"]),
            stage=Stage(data["stage"]),
        )
