"""Trainings that are killed, cancelled and failed everywhere lose nothing."""

import asyncio
import functools
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trainings

from aloop import MainLoop, TrainingExtension
from aloop.errors import AloopError, ArgumentError
from aloop.faults import POINTS, fault_point
from aloop.testing import (
    FaultFoundError,
    cancel_everywhere,
    crash_everywhere,
    raise_everywhere,
)
from aloop.testing.everywhere.places import Place

BOTH = pytest.mark.parametrize("make_loop", [trainings.every_extension, trainings.in_memory])


@pytest.mark.slow
@pytest.mark.timeout(7200)
@BOTH
def test_a_training_that_was_killed_anywhere_ends_as_the_straight_one(
    make_loop, directory: Path, every: bool
) -> None:
    is_whole = make_loop is trainings.every_extension
    points = ["*"] if is_whole else ["checkpoint.*", "restore.*", "drain.*", "commit.*"]
    report = crash_everywhere(make_loop, directory, every=every, points=points)
    if is_whole:
        assert report.points == set(POINTS)  # the suite goes through every point


@pytest.mark.slow
@pytest.mark.timeout(7200)
@BOTH
def test_a_training_that_was_cancelled_anywhere_ends_as_the_straight_one(
    make_loop, directory: Path, every: bool
) -> None:
    report = cancel_everywhere(make_loop, directory, every=every)
    assert sum(trial.was_broken for trial in report.trials) > 45


@pytest.mark.slow
@pytest.mark.timeout(7200)
@BOTH
def test_a_training_that_failed_anywhere_ends_as_the_straight_one(
    make_loop, directory: Path, every: bool
) -> None:
    report = raise_everywhere(make_loop, directory, every=every)
    assert sum(trial.was_broken for trial in report.trials) > 65
    if make_loop is trainings.every_extension:
        can_raise = {name for name, point in POINTS.items() if point.may_raise}
        assert report.points == can_raise


def test_a_training_killed_while_it_publishes_ends_as_the_straight_one(directory: Path) -> None:
    report = crash_everywhere(trainings.short, directory, points=["checkpoint.re*"])
    words = ("renamed", "removing", "removed", "recorded")
    assert report.points == {f"checkpoint.{word}" for word in words}


def test_a_training_cancelled_at_its_awaits_ends_as_the_straight_one(directory: Path) -> None:
    report = cancel_everywhere(trainings.short, directory)
    assert sum(trial.was_broken for trial in report.trials) > 20


def test_a_training_that_fails_at_its_disk_ends_as_the_straight_one(directory: Path) -> None:
    report = raise_everywhere(trainings.short, directory, points=["checkpoint.*", "log.*"])
    assert {"log.written", "checkpoint.written"} <= report.points


# What is wrong is found, told, and kept.


class Forgets(TrainingExtension):
    """Counts batches, and does not keep the count."""

    batches = 0

    async def after_batch(self, batch: object) -> None:
        self.batches += 1
        self.main_loop.log.current_row["batches"] = self.batches


def forgetful(directory: Path) -> MainLoop:
    return trainings.short(directory, Forgets())


def test_what_is_lost_by_a_crash_is_told_and_kept(directory: Path) -> None:
    with pytest.raises(FaultFoundError) as caught:
        crash_everywhere(forgetful, directory, points=["step.done"], processes=1)
    text = str(caught.value)
    assert "killed at step.done (the algorithm has trained on a batch), time 4" in text
    assert re.search(r"rows/4/batches is \d; it should be 4", text)
    assert f"the files are in {directory}" in text
    failed = {trial.what: trial for trial in caught.value.report.failed}
    trial = failed["stopped halfway"]
    assert (trial.point, trial.was_broken) == (None, True)
    assert (directory / "run-step.done-4" / "log.sqlite").exists()


@pytest.mark.parametrize(
    "everywhere",
    [cancel_everywhere, functools.partial(raise_everywhere, points=["step.done"])],
    ids=["cancel", "raise"],
)
def test_what_is_lost_by_the_others_is_told_too(everywhere, directory: Path) -> None:
    with pytest.raises(FaultFoundError, match=r"started again: rows/\d/batches is \d; it should"):
        everywhere(forgetful, directory)


class Own(TrainingExtension):
    """Has a fault point of its own."""

    async def after_batch(self, batch: object) -> None:
        fault_point("mine.passed")


def with_its_own_point(directory: Path) -> MainLoop:
    return trainings.short(directory, Own())


@pytest.mark.slow
def test_a_program_is_broken_at_its_own_points_too(directory: Path) -> None:
    own = ["mine.*"]
    assert crash_everywhere(with_its_own_point, points=own).points == {"mine.passed"}
    assert raise_everywhere(with_its_own_point, directory, points=own).points == {"mine.passed"}
    assert (
        str(Place("mine.passed", 2)) == "mine.passed (a fault point of the program's own), time 2"
    )


async def made_by_a_coroutine(directory: Path) -> MainLoop:
    await asyncio.sleep(0)
    return trainings.short(directory)


@pytest.mark.parametrize("everywhere", [crash_everywhere, raise_everywhere])
def test_a_loop_may_be_made_by_a_coroutine_function(everywhere, directory: Path) -> None:
    report = everywhere(made_by_a_coroutine, directory, points=["log.made"])
    assert report.points == {"log.made"}


EACH = pytest.mark.parametrize(
    "everywhere",
    [
        functools.partial(crash_everywhere, points=["log.made"]),
        cancel_everywhere,
        functools.partial(raise_everywhere, points=["log.made"]),
    ],
    ids=["crash", "cancel", "raise"],
)


def always_there(directory: Path) -> MainLoop:
    return trainings.short(directory.parent)


@EACH
def test_a_loop_that_is_not_in_its_directory_proves_nothing(everywhere, directory: Path) -> None:
    with pytest.raises(FaultFoundError, match="gone on from a checkpoint where there was none"):
        everywhere(always_there, directory / "trials")


def begins_anew(directory: Path) -> MainLoop:
    loop = trainings.short(directory)
    del loop.extensions[-2]
    return loop


@EACH
def test_a_training_that_begins_anew_each_time_proves_nothing(everywhere, directory: Path) -> None:
    with pytest.raises(FaultFoundError, match="begun anew each time"):
        everywhere(begins_anew, directory)


# What cannot be broken is refused.


def failing(directory: Path) -> MainLoop:
    def step(batch: object) -> None:
        raise RuntimeError("it never worked")

    return MainLoop(step, [1])


def no_loop(directory: Path) -> object:
    return 3


@pytest.mark.parametrize("everywhere", [crash_everywhere, cancel_everywhere, raise_everywhere])
class TestRefused:
    def test_a_training_that_fails_by_itself(self, everywhere, tmp_path: Path) -> None:
        with pytest.raises(AloopError, match=r"(?s)fails when nothing breaks it.*it never worked"):
            everywhere(failing, tmp_path)

    def test_what_makes_no_loop(self, everywhere, tmp_path: Path) -> None:
        with pytest.raises(AloopError, match=r"(?s)gave 3; expected a MainLoop"):
            everywhere(no_loop, tmp_path)

    def test_a_directory_that_is_not_empty(self, everywhere, tmp_path: Path) -> None:
        (tmp_path / "theirs").touch()
        with pytest.raises(ArgumentError, match="is not empty; expected one for the trials alone"):
            everywhere(trainings.short, tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_what_other_processes_cannot_import_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"(?s)lambda.*functions at the top of a module"):
        crash_everywhere(lambda directory: trainings.short(directory), tmp_path)


@pytest.mark.parametrize("everywhere", [cancel_everywhere, raise_everywhere])
async def test_an_event_loop_that_runs_is_refused(everywhere, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"called where an event loop runs; expected none"):
        everywhere(trainings.short, tmp_path)
    at_one = functools.partial(raise_everywhere, points=["log.made"])
    report = await asyncio.to_thread(at_one, trainings.short, tmp_path)
    assert report.points == {"log.made"}


# Programs that make it hard.


class Truncates(TrainingExtension):
    """Keeps a file beside the checkpoints, which it truncates before it writes it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    async def after_batch(self, batch: object) -> None:
        with self.path.open("w") as file:
            fault_point("mine.truncated")
            file.write("1")


def with_a_file(directory: Path) -> MainLoop:
    path = directory / "file"
    if path.exists():
        int(path.read_text())
    return trainings.short(directory, Truncates(path))


@pytest.mark.parametrize("everywhere", [crash_everywhere, raise_everywhere])
def test_a_script_that_cannot_be_started_again_is_a_fault(everywhere, directory: Path) -> None:
    with pytest.raises(FaultFoundError, match=r"(?s)mine.truncated.*started again.*ValueError"):
        everywhere(with_a_file, directory, points=["mine.*"])


class Sometimes(TrainingExtension):
    """Has a fault point that only the first training of the process passes."""

    first = True

    async def before_training(self) -> None:
        if Sometimes.first:
            Sometimes.first = False
            fault_point("mine.first")


def with_a_first_time(directory: Path) -> MainLoop:
    return trainings.short(directory, Sometimes())


def test_a_point_that_is_never_come_to_again_is_told(directory: Path) -> None:
    with pytest.raises(FaultFoundError, match=r"never broken at mine\.first"):
        raise_everywhere(with_a_first_time, directory, points=["mine.*"])


async def with_a_task_factory(directory: Path) -> MainLoop:
    class Leaves(TrainingExtension):
        async def before_training(self) -> None:
            self.task = asyncio.create_task(asyncio.Event().wait(), name="left")

    def make(events, work, **options):
        return asyncio.Task(work, loop=events, **options)

    events = asyncio.get_running_loop()
    events.set_task_factory(make)
    assert events.get_task_factory() is make
    return trainings.short(directory, Leaves())


def test_tasks_of_a_factory_are_known(directory: Path) -> None:
    with pytest.raises(FaultFoundError, match="the task 'left' is left"):
        raise_everywhere(with_a_task_factory, directory, points=["log.made"])


def _go_on(number: int, frame: object) -> None:
    """Do nothing."""


def with_handlers_of_its_own(directory: Path) -> MainLoop:
    signal.signal(signal.SIGTERM, _go_on)
    loop = trainings.short(directory)
    return MainLoop(
        loop.algorithm,
        loop.data_stream,
        model=loop.model,
        log=loop.log,
        extensions=list(loop.extensions),
        signals="off",
    )


@pytest.mark.parametrize("everywhere", [crash_everywhere, raise_everywhere])
def test_a_program_may_have_handlers_of_its_own(everywhere, directory: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    everywhere(with_handlers_of_its_own, directory, points=["log.made"])
    assert signal.getsignal(signal.SIGTERM) is before


def endless(directory: Path) -> MainLoop:
    loop = trainings.short(directory)
    loop.extensions.pop()
    return loop


async def never_made(directory: Path) -> MainLoop:
    await asyncio.Event().wait()
    return trainings.short(directory)


@pytest.mark.parametrize("make_loop", [endless, never_made])
def test_what_never_ends_is_refused(make_loop, directory: Path) -> None:
    with pytest.raises(AloopError, match="fails when nothing breaks it: TimeoutError"):
        cancel_everywhere(make_loop, directory, timeout_s=0.2)


@pytest.mark.parametrize("error", [3, lambda text: None, StopIteration, KeyboardInterrupt])
def test_what_makes_no_error_is_refused(error, directory: Path) -> None:
    with pytest.raises(ArgumentError, match=r"error is .*expected what makes an exception"):
        raise_everywhere(trainings.short, directory, error=error)


def test_one_training_is_broken_at_a_time(directory: Path) -> None:
    def nested(where: Path) -> MainLoop:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(cancel_everywhere, trainings.short, where / "inner").result()
        raise AssertionError

    with pytest.raises(AloopError, match="is being broken in this process already"):
        cancel_everywhere(nested, directory)
