"""Failing a training wherever it can fail, one place after another."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from aloop.errors import ArgumentError, TrainingFinish, brief
from aloop.main_loop import MainLoop
from aloop.testing.arguments import checked_make_loop, patterns_of, scratch, seed_of, timeout_of
from aloop.testing.everywhere.attempts import Attempt, Trainings
from aloop.testing.everywhere.places import LEGS, Leg, Place, chosen, halfway
from aloop.testing.everywhere.surroundings import alone, refuse_in_a_loop
from aloop.testing.outcomes import MakeLoop, PlannedError, differences
from aloop.testing.reports import Report, Trial, finished, going_on, never_broken

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
    timeout_s, seed = timeout_of(timeout_s), seed_of(seed)
    _check(error)
    with scratch(directory, "errors") as where, alone():
        trainings = Trainings(make_loop, where, ignore, timeout_s)
        trials = list(_trials(trainings, error, points, seed, every=every))
        trials.append(going_on(trainings.restored))
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
    failed = trainings.attempt("failed", on_point=_Raised(middle, error))
    trainings.restored += resumed.passed["restore.done"]
    yield Trial("stopped halfway, and started again", (*stopped.wrong, *resumed.wrong))
    yield Trial("failed halfway", tuple(failed.wrong))
    legs: dict[Leg, Counter[str]] = {
        "run": straight.passed,
        "stopped": stopped.passed,
        "failed": failed.passed,
        "resumed": resumed.passed,
    }
    trials: list[Trial] = []
    places = chosen(legs, points, seed, every=every, may_raise=True)
    for leg, place in places:
        name = f"{leg}-{place.point}-{place.number}"
        if leg == "resumed":
            trainings.attempt(name, on_point=stop)
        first = _Raised(middle, error) if leg == "failed" and place != middle else None
        raised = _Raised(place, error, stop if leg == "stopped" else first)
        broken = trainings.attempt(name, on_point=raised)
        wrong = [*broken.wrong, *_untold([raised, *([first] if first else [])], broken)]
        if broken.outcome is not None and leg != "stopped":
            wrong += differences(straight.outcome or {}, broken.outcome, trainings.ignore)
        wrong += trainings.go_on(name, straight)
        if not wrong:
            trainings.forget(name)
        what = f"failed at {place}{LEGS[leg]} ({name})"
        trials.append(Trial(what, tuple(wrong), raised.kind is not None, place.point))
    yield from trials
    yield from never_broken((place.point for _, place in places), trials)


def _check(error: object) -> None:
    """Raise `ArgumentError` for what makes no error that a training can fail with."""
    if callable(error):
        made = error("a text")
        is_odd = isinstance(made, StopIteration | StopAsyncIteration | TrainingFinish)
        if isinstance(made, Exception) and not is_odd:
            return
    raise ArgumentError(
        f"error is {error!r:.80}; expected what makes an exception of a text, such as a class of "
        "them, and none by which epochs and trainings end; leave it out for PlannedError"
    )


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
        also: Callable[[MainLoop, Place], None] | None = None,
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


def _untold(planned: Sequence[_Raised], broken: Attempt) -> list[str]:
    """Say it if a run has failed with something else than what was raised in it."""
    if broken.error is None:
        return []
    seen: list[BaseException] = []
    left: list[BaseException | None] = [broken.error]
    while left:
        error = left.pop()
        if error is None or error in seen:
            continue
        if any(
            type(error) is each.kind or (each.text and each.text in _all_of(error))
            for each in planned
        ):
            return []
        seen.append(error)
        left += [error.__cause__, error.__context__, *getattr(error, "exceptions", ())]
    what = " and ".join(f"{each.kind.__name__}: {each.text}" for each in planned if each.kind)
    return [f"it failed with {brief(broken.error)}; it was made to fail with {what or 'nothing'}"]


def _all_of(error: BaseException) -> str:
    return "\n".join([str(error), *getattr(error, "__notes__", ())])
