"""Failing a training wherever it can fail, one place after another."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from aloop.errors import brief
from aloop.main_loop import MainLoop
from aloop.testing.arguments import checked_make_loop, patterns_of, scratch, timeout_of
from aloop.testing.everywhere.attempts import Attempt, Trainings, little_garbage, refuse_in_a_loop
from aloop.testing.everywhere.places import LEGS, Leg, Place, chosen, halfway
from aloop.testing.outcomes import MakeLoop, PlannedError
from aloop.testing.reports import Report, Trial, finished, going_on

__all__ = ["raise_everywhere"]


def raise_everywhere(
    make_loop: MakeLoop,
    directory: Path | None = None,
    *,
    error: Callable[[str], Exception] = PlannedError,
    points: Sequence[str] = ("*",),
    every: bool = False,
    ignore: Sequence[str] = (),
    seed: int = 0,
    timeout_s: float = 60.0,
) -> Report:
    """Fail a training wherever it can fail, one place after another, and see that it is told.

    An error is raised at each fault point where one can come up: of the disk, the stream, the
    step, an extension. The run has to end by it, or to go on to the same end as if nothing had
    been; every record of its log is in the file, unless that is what failed; the signal handlers
    are back; no task, thread or file is left. Started again in the same directory it has to end
    as one that never failed, as in `crash_everywhere`.

    Raises `FaultFoundError`, which lists what was wrong, and keeps the files of these trials.

    Parameters:
        make_loop: makes the loop in a directory, with its log and checkpoints there, so that it
            goes on from what it finds (``Checkpoint(path, resume=True)``).
        directory: where the trials are; a temporary one unless given.
        error: makes the error of a text; `PlannedError`, which is an OSError, unless given.
        points: patterns of the names of the points, such as ``"checkpoint.*"``; all unless given.
        every: whether it fails each time that it passes a point, and not just the first time, the
            last time and once between.
        ignore: patterns of what may differ in two runs; see `crash_everywhere`.
        seed: decides which times between are chosen.
        timeout_s: seconds after which a run counts as stuck.
    """
    refuse_in_a_loop("raise_everywhere()")
    checked_make_loop(make_loop)
    ignore, points = patterns_of("ignore", ignore), patterns_of("points", points)
    timeout_s = timeout_of(timeout_s)
    with scratch(directory, "errors") as where, little_garbage():
        trainings = Trainings(make_loop, where, ignore, timeout_s)
        trials = list(_trials(trainings, error, points, seed, every=every))
        trials.append(going_on(trainings.restored["restore.done"]))
        return finished("raise_everywhere", trials, where)


def _trials(
    trainings: Trainings,
    error: Callable[[str], Exception],
    points: Sequence[str],
    seed: int,
    *,
    every: bool,
) -> Iterator[Trial]:
    straight = trainings.straight()
    yield Trial("not failed", tuple(straight.wrong))
    middle = halfway(straight.passed)
    stop = _stopping(middle)
    stopped = trainings.attempt("stopped", on_point=stop)
    resumed = trainings.attempt("stopped")
    trainings.restored.update({"restore.done": resumed.passed["restore.done"]})
    yield Trial("stopped halfway, and started again", (*stopped.wrong, *resumed.wrong))
    legs: dict[Leg, Counter[str]] = {
        "run": straight.passed,
        "stopped": stopped.passed,
        "resumed": resumed.passed,
    }
    for leg, place in chosen(legs, points, seed, every=every, may_raise=True):
        name = f"{leg}-{place.point}-{place.number}"
        if leg == "resumed":
            trainings.attempt(name, on_point=stop)
        raised = _Raised(place, error, stop if leg == "stopped" else None)
        broken = trainings.attempt(name, on_point=raised)
        wrong = [*broken.wrong, *_untold(raised, broken)]
        wrong += trainings.go_on(name, straight)
        if not wrong:
            trainings.forget(name)
        what = f"failed at {place}{LEGS[leg]} ({name})"
        yield Trial(what, tuple(wrong), raised.kind is not None, place.point)


def _stopping(middle: Place) -> Callable[[MainLoop, Place], None]:
    def stop(loop: MainLoop, place: Place) -> None:
        if place == middle:
            loop.request_finish("batch")

    return stop


class _Raised:
    """Raises an error at a place, once."""

    def __init__(
        self,
        place: Place,
        make: Callable[[str], Exception],
        also: Callable[[MainLoop, Place], None] | None,
    ) -> None:
        self._place = place
        self._make = make
        self._also = also
        # Not what was raised, which would hold the frames that it came through.
        self.kind: type[Exception] | None = None
        """Of what was raised."""
        self.text = ""
        """What that says."""

    def __call__(self, loop: MainLoop, place: Place) -> None:
        if self._also is not None:
            self._also(loop, place)
        if place == self._place:
            error = self._make(f"planned at {place}")
            self.kind, self.text = type(error), str(error)
            raise error


def _untold(raised: _Raised, broken: Attempt) -> list[str]:
    """Say it if a run has failed with something else than what was raised in it."""
    if broken.error is None:
        return []
    seen: list[BaseException] = []
    left: list[BaseException | None] = [broken.error]
    while left:
        error = left.pop()
        if error is None or error in seen:
            continue
        if type(error) is raised.kind or (raised.text and raised.text in _all_of(error)):
            return []
        seen.append(error)
        left += [error.__cause__, error.__context__, *getattr(error, "exceptions", ())]
    what = "nothing" if raised.kind is None else f"{raised.kind.__name__}: {raised.text}"
    return [f"it failed with {brief(broken.error)}; it was made to fail with {what}"]


def _all_of(error: BaseException) -> str:
    return "\n".join([str(error), *getattr(error, "__notes__", ())])
