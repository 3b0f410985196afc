"""A training that is killed or stopped again and again ends as one that never was."""

import os
import signal
from time import sleep

import pytest
from fault_jobs import as_text, seeded
from resume_tools import BATCHES, EPOCHS, make_loop, outcome

from aloop import read_log

SEED = 20260201
KEEP = 2  # as the job says


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    import asyncio

    loop = make_loop(tmp_path_factory.mktemp("straight"))
    asyncio.run(loop.run())
    return as_text(outcome(loop))


def directories_left(directory):
    checkpoints = directory / "checkpoints"
    left = [path for path in checkpoints.iterdir() if path.is_dir()] if checkpoints.exists() else []
    assert len(left) <= KEEP + 1, left
    return left


def ended(told):
    return [line[1] for line in told if line[0] == "ended"]


def kill_loop(server, tmp_path, straight, kills, backend, signals=(signal.SIGKILL,)):
    """End trainings at moments drawn from the seed, so many times; compare what they end with."""
    random = seeded(SEED)
    killed = trainings = 0
    while killed < kills:
        directory = tmp_path / str(trainings)
        directory.mkdir()
        while True:
            seed = random.randrange(1 << 30)
            child = server.start("train_on", directory=directory, seed=seed, backend=backend)
            told = [child.line() for _ in range(1 + random.randrange(14))]
            sleep(random.uniform(0, 0.01))  # the moment
            os.kill(child.pid, random.choice(signals))
            told = [line for line in told if line is not None] + child.end()[0]
            directories_left(directory)
            if ended(told):
                break
            killed += 1
        assert ended(told) == [straight], f"training {trainings} after {killed} kills"
        if backend == "sqlite":
            check_readers(directory)
        trainings += 1
    assert trainings > kills // 40


def check_readers(directory):
    """Check that who reads the file sees one history."""
    with read_log(directory / "log.sqlite") as log:
        assert [time for time in log if "cost" in log[time]] == [*range(1, BATCHES * EPOCHS + 1)]
        assert log.status["iterations_done"] == BATCHES * EPOCHS


def test_training_that_was_killed_5_times_ends_as_the_straight_one(server, tmp_path, straight):
    kill_loop(server, tmp_path, straight, 5, "sqlite")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("backend", ["sqlite", "python"])
def test_training_that_was_killed_50_times_ends_as_the_straight_one(
    server, tmp_path, straight, backend
):
    # ALOOP_KILLS=1000 for as many.
    kill_loop(server, tmp_path, straight, int(os.environ.get("ALOOP_KILLS", "50")), backend)


def die_at_steps(server, tmp_path, straight, steps, publication):
    for step in steps:
        directory = tmp_path / f"{publication}-{step}"
        directory.mkdir()
        child = server.start(
            "train_and_die", directory=directory, step=step, publication=publication
        )
        told, code = child.end()
        directories_left(directory)
        if code == 0:
            assert ended(told) == [straight]
            return step
        child = server.start("train_on", directory=directory, seed=0)
        told, code = child.end()
        assert (ended(told), code) == ([straight], 0), f"step {step}"
    return None


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("publication", [1, 4])  # the fourth removes the oldest before it
def test_training_killed_at_each_step_of_publishing_ends_as_the_straight_one(
    server, tmp_path, straight, publication
):
    assert die_at_steps(server, tmp_path, straight, range(0, 400, 4), publication) is None


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("backend", ["sqlite", "python"])
def test_training_that_was_stopped_and_killed_50_times_ends_as_the_straight_one(
    server, tmp_path, straight, backend
):
    signals = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
    kill_loop(server, tmp_path, straight, 50, backend, signals)
