"""Cancelling a training at every await, one after another."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Final

from aloop.testing.arguments import checked_make_loop, patterns_of, scratch, seed_of, timeout_of
from aloop.testing.everywhere.attempts import Frames, Trainings, told
from aloop.testing.everywhere.surroundings import alone, refuse_in_a_loop
from aloop.testing.outcomes import MakeLoop
from aloop.testing.reports import Report, Trial, finished, going_on

__all__ = ["cancel_everywhere"]

_TURNS: Final = 30
"""How many turns of the event loop are chosen, beside the places where something is awaited."""


def cancel_everywhere(
    make_loop: MakeLoop,
    directory: Path | None = None,
    *,
    every: bool = False,
    ignore: Sequence[str] = (),
    seed: int = 0,
    timeout_s: float = 60.0,
) -> Report:
    """Cancel a training at every await, one after another, and see that it ends as it should.

    The training is run in event loops of its own, which are looked at between any two turns. For
    each place where one of its tasks waits, one run is cancelled (as ``task.cancel()``, a timeout
    or a task group does) when a task waits there first; and some at turns that the seed chooses.
    Then it has to raise `CancelledError`, to have saved its end once, if it has a `Checkpoint`,
    and to have every record of its log in the file; the signal handlers are back; no task, thread
    or file is left. Started again in the same directory it has to end as one that was never
    cancelled, as in `crash_everywhere`.

    Raises `FaultFoundError`, which lists what was wrong, and keeps the files of these trials.

    Parameters:
        make_loop: makes the loop in a directory, with its log and checkpoints there, so that it
            goes on from what it finds (``Checkpoint(path, resume=True)``).
        directory: where the trials are; a temporary one unless given.
        every: whether a run is cancelled at every turn of the event loop, too.
        ignore: patterns of what may differ in two runs; see `crash_everywhere`.
        seed: decides which turns are chosen.
        timeout_s: seconds after which a run counts as stuck.
    """
    refuse_in_a_loop("cancel_everywhere()")
    checked_make_loop(make_loop)
    ignore, timeout_s = patterns_of("ignore", ignore), timeout_of(timeout_s)
    seed_of(seed)
    with scratch(directory, "cancels") as where, alone():
        trainings = Trainings(make_loop, where, ignore, timeout_s)
        trials = list(_trials(trainings, seed, every=every))
        trials.append(going_on(trainings.restored))
        return finished("cancel_everywhere", trials, where)


def _trials(trainings: Trainings, seed: int, *, every: bool) -> Iterator[Trial]:
    straight = trainings.straight()
    yield Trial("not cancelled", tuple(straight.wrong))
    turns = range(1, straight.turns + 1)
    if not every:
        random = Random(seed)  # noqa: S311 - no secret
        turns = sorted(random.sample(turns, min(_TURNS, len(turns))))
    moments: list[Frames | int] = [*straight.places, *turns]
    for number, moment in enumerate(moments):
        name = str(number)
        broken = trainings.attempt(name, cancel_at=moment)
        wrong = [*broken.wrong, *trainings.go_on(name, straight)]
        if not wrong:
            trainings.forget(name)
        at = f"at turn {moment}" if isinstance(moment, int) else f"in {told(moment)}"
        yield Trial(f"cancelled {at} ({name})", tuple(wrong), broken.was_cancelled)
