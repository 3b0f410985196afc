"""Killing a training at every fault point, one after another, and starting it again."""

import asyncio
import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Final

from aloop.errors import AloopError
from aloop.faults import watched_points
from aloop.main_loop import MainLoop
from aloop.testing.arguments import (
    checked_make_loop,
    count_of,
    patterns_of,
    scratch,
    seed_of,
    timeout_of,
)
from aloop.testing.children import ChildOutcome, Nursery
from aloop.testing.everywhere.places import LEGS, Leg, Place, chosen, halfway
from aloop.testing.outcomes import (
    MakeLoop,
    Outcome,
    PlannedError,
    differences,
    loop_of,
    outcome_of,
)
from aloop.testing.reports import Report, Trial, beginning, finished, going_on, never_broken

__all__ = ["crash_everywhere"]

KILLED: Final = 77
"""The exit code of a child that ended itself at a fault point."""

_AGAIN: Final = "when it was started again, "

_BROKEN_HALFWAY: Final[tuple[Leg, ...]] = ("stopped", "failed", "resumed")


@dataclass(frozen=True, slots=True)
class _Told:
    """What a child tells of a run that has come to its end."""

    passed: Counter[str]
    outcome: Outcome | None
    """None where it has failed."""
    was_stopped: bool
    """Whether it has ended because it was told to."""


def _run(
    make_loop: MakeLoop,
    directory: Path,
    die_at: Place | None,
    stop_at: Place | None,
    fail_at: Place | None,
) -> _Told:
    """Run a training, and die at a place; it may have to stop or to fail before; for a child."""
    passed: Counter[str] = Counter()
    was_stopped = False
    counting = threading.Lock()
    loop: MainLoop | None = None

    def watch(name: str) -> None:
        with counting:
            passed[name] += 1
            place = Place(name, passed[name])
        if place == die_at:
            os._exit(KILLED)
        if place == stop_at and loop is not None:
            _stop(loop)
        if place == fail_at:
            raise PlannedError(f"planned at {place}")

    async def main() -> Outcome | None:
        nonlocal loop, was_stopped
        loop = await loop_of(make_loop, directory)
        try:
            await loop.run()
        except PlannedError:
            return None
        was_stopped = bool(loop.status["batch_interrupt_received"])
        return outcome_of(loop)

    with watched_points(watch):
        outcome = asyncio.run(main())
    return _Told(passed, outcome, was_stopped)


def _stop(loop: MainLoop) -> None:
    """Tell a run to stop as the system would, where it listens to that."""
    handler = signal.getsignal(signal.SIGTERM)
    if type(handler).__module__ == "aloop.signals":
        os.kill(os.getpid(), signal.SIGTERM)
    else:
        loop.request_finish("batch")


@dataclass(frozen=True, slots=True)
class _Crashes:
    """One training that is killed again and again."""

    make_loop: MakeLoop
    directory: Path
    ignore: Sequence[str]
    timeout_s: float
    nurseries: "SimpleQueue[Nursery]"

    def run(
        self,
        where: str,
        die_at: Place | None = None,
        *,
        stop_at: Place | None = None,
        fail_at: Place | None = None,
    ) -> ChildOutcome:
        """Have a child begin the training in a directory, or go on with it."""
        directory = self.directory / where
        directory.mkdir(exist_ok=True)
        nursery = self.nurseries.get()
        try:
            what = (self.make_loop, directory, die_at, stop_at, fail_at)
            return nursery.do(_run, *what, timeout_s=self.timeout_s)
        finally:
            self.nurseries.put(nursery)

    def straight(self) -> _Told:
        """Have it come to its end, which the rest has to be held against."""
        ended = self.run("straight")
        if ended.failure is not None:
            raise AloopError(
                "the training fails when nothing breaks it; expected it to come to its end; mend "
                f"it first:\n{ended.failure}{ended.output}"
            )
        return ended.result

    def halfway(
        self, straight: Outcome, middle: Place, leg: Leg
    ) -> tuple[list[Trial], Counter[str]]:
        """Break it halfway, start it again, and say what is wrong at its end.

        Gives also what the run has passed that is broken in this leg.
        """
        places = {"stopped": "stop_at", "failed": "fail_at", "resumed": "die_at"}
        broken = self.run(leg, **{places[leg]: middle})
        again = self.run(leg)
        wrong: list[str] = []
        if leg == "resumed":
            self._expect_killed(broken, wrong)
        else:
            _expect_ended(broken, "", wrong)
            if broken.failure is None:
                wrong += beginning(broken.result.passed["restore.done"])
                if leg == "stopped" and not broken.result.was_stopped:
                    wrong.append("it was told to stop, and went on to its end")
        _expect_ended(again, _AGAIN, wrong)
        if again.failure is None:
            wrong += differences(straight, again.result.outcome, self.ignore)
        trials = [Trial(f"{'killed' if leg == 'resumed' else leg} halfway", tuple(wrong))]
        if leg == "stopped" and again.failure is None:
            trials.insert(0, going_on(again.result.passed["restore.done"]))
        told = again if leg == "resumed" else broken
        return trials, Counter() if told.result is None else told.result.passed

    def trial(self, straight: Outcome, middle: Place, leg: Leg, place: Place) -> Trial:
        """Kill the training at a place, start it again, and say what is wrong at its end."""
        where = f"{leg}-{place.point}-{place.number}"
        wrong: list[str] = []
        if leg == "resumed":
            self._expect_killed(self.run(where, die_at=middle), wrong)
        broken = self.run(
            where,
            die_at=place,
            stop_at=middle if leg == "stopped" else None,
            fail_at=middle if leg == "failed" else None,
        )
        was_broken = broken.code == KILLED
        if not was_broken:
            _expect_ended(broken, "", wrong)
        ended = self.run(where)
        _expect_ended(ended, _AGAIN, wrong)
        if ended.failure is None:
            wrong += differences(straight, ended.result.outcome, self.ignore)
        if not wrong:
            shutil.rmtree(self.directory / where)
        what = f"killed at {place}{LEGS[leg]}"
        return Trial(what, tuple(wrong), was_broken, place.point)

    @staticmethod
    def _expect_killed(child: ChildOutcome, wrong: list[str]) -> None:
        if child.code != KILLED:
            _expect_ended(child, "before it could be resumed, ", wrong)


def _expect_ended(child: ChildOutcome, when: str, wrong: list[str]) -> None:
    if child.failure is not None:
        output = "\n".join(["", *child.output.strip().splitlines()])
        wrong.append(f"{when}it failed: {child.failure.strip()}{output}")


def crash_everywhere(
    make_loop: MakeLoop,
    directory: Path | None = None,
    *,
    points: Sequence[str] = ("*",),
    every: bool = False,
    ignore: Sequence[str] = (),
    seed: int = 0,
    processes: int | None = None,
    timeout_s: float = 60.0,
) -> Report:
    """Kill a training at every fault point, one after another, and see that nothing was lost.

    For each point a child process trains in a new directory and ends itself there, as ``kill -9``
    would; another one starts the same training again in that directory and goes on to the end. It
    has to end as one that was never killed: with the same state of model, algorithm, stream and
    extensions, to the bit, and with the same rows in its log. So are runs that are stopped halfway
    and runs that were resumed.

    Raises `FaultFoundError`, which lists what was wrong, and keeps the files of these trials;
    `ArgumentError` for what no child can import.

    Parameters:
        make_loop: makes the loop in a directory, with its log and checkpoints there, so that it
            goes on from what it finds (``Checkpoint(path, resume=True)``). A function at the top of
            a module, for other processes import it.
        directory: where the trials are; a temporary one unless given.
        points: patterns of the names of the points, such as ``"checkpoint.*"``; all unless given.
        every: whether the training is killed each time that it passes a point, and not just the
            first time, the last time and once between.
        ignore: patterns of what may differ in two runs of the training, such as
            ``"rows/*/seconds"``; times, paths and what tells of stops may in any case.
        seed: decides which times between are chosen.
        processes: how many trainings go on side by side; as many as there are processors, at most
            4, unless given.
        timeout_s: seconds after which a run counts as stuck, and is killed.
    """
    checked_make_loop(make_loop)
    ignore, points = patterns_of("ignore", ignore), patterns_of("points", points)
    timeout_s, seed = timeout_of(timeout_s), seed_of(seed)
    if processes is None:
        processes = min(4, os.cpu_count() or 1)
    nurseries: SimpleQueue[Nursery] = SimpleQueue()
    with scratch(directory, "crashes") as where, ExitStack() as stack:
        for _ in range(count_of("processes", processes)):
            nurseries.put(stack.enter_context(Nursery()))
        pool = ThreadPoolExecutor(processes)
        stack.callback(pool.shutdown, cancel_futures=True)
        crashes = _Crashes(make_loop, where, ignore, timeout_s, nurseries)
        straight = crashes.straight()
        outcome, middle = straight.outcome or {}, halfway(straight.passed)
        legs: dict[Leg, Counter[str]] = {"run": straight.passed}
        trials: list[Trial] = []
        for leg in _BROKEN_HALFWAY:
            more, legs[leg] = crashes.halfway(outcome, middle, leg)
            trials += more
        places = chosen(legs, points, seed, every=every)
        broken = [pool.submit(crashes.trial, outcome, middle, leg, place) for leg, place in places]
        trials += [each.result() for each in broken]
        trials += never_broken((place.point for _, place in places), trials)
        return finished("crash_everywhere", trials, where)
