"""A training that was broken off at any stage, and resumed, ends as one that never was."""

import pytest
from resume_tools import BATCHES, EPOCHS, checkpoints_in, make_loop, outcome

from aloop import Checkpoint, MainLoop, SimpleExtension, TrainingExtension


class CrashError(Exception):
    """Stands for whatever ends a run without a last checkpoint."""


class Crashes(SimpleExtension):
    """Ends the run when its trigger fires."""

    async def do(self, which_callback, *args) -> None:
        raise CrashError


class CrashesLater(TrainingExtension):
    """Ends the run at the first callback of a name from a number of iterations on."""

    def __init__(self, callback: str, iterations: int = 0) -> None:
        super().__init__()
        self._callback, self._iterations = callback, iterations

    def handler(self, callback):
        return self._crash if callback == self._callback else None

    async def _crash(self, *args) -> None:
        if self.main_loop.status["iterations_done"] >= self._iterations:
            raise CrashError


LAST = BATCHES * EPOCHS

# When the checkpoint is taken, and where the run ends after that.
STAGES = {
    "before the first batch": ({"before_training": True}, ("before_batch", 0)),
    "before the first epoch": ({"before_first_epoch": True}, ("before_batch", 0)),
    "after the first batch": ({"after_n_batches": 1}, ("before_batch", 1)),
    "in the middle of an epoch": ({"after_n_batches": BATCHES + 3}, ("before_batch", BATCHES + 3)),
    "some batches later": ({"after_n_batches": 5}, ("after_batch", BATCHES + 2)),
    "at the last batch of an epoch": ({"after_n_batches": BATCHES}, ("after_epoch", 0)),
    "after an epoch": ({"after_n_epochs": 1}, ("before_epoch", 1)),
    "before a later epoch": ({"before_epoch": True}, ("before_batch", BATCHES)),
    "at the last batch of all": ({"after_n_batches": LAST}, ("after_epoch", LAST)),
    "after the last epoch": ({"after_n_epochs": EPOCHS}, ("after_training", 0)),
    "after the training": ({"after_training": True}, ("after_training", 0)),
}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """What a run ends with that nobody touches, for each kind of step."""
    import asyncio

    found = {}
    for step in ("thread", "async", "inline"):
        loop = make_loop(tmp_path_factory.mktemp("straight"), step=step)
        asyncio.run(loop.run())
        found[step] = outcome(loop)
    assert found["thread"] == found["async"] == found["inline"]
    return found


async def broken_off(directory, stage, **options) -> MainLoop:
    trigger, crash = STAGES[stage]
    triggers = {"after_training": False, "on_interrupt": False, **trigger}
    checkpoint = Checkpoint(directory / "checkpoints", resume=True, **triggers)
    loop = make_loop(directory, CrashesLater(*crash), checkpoint=checkpoint, **options)
    with pytest.raises(CrashError):
        await loop.run()
    assert len(checkpoints_in(directory)) in (1, 2), "saved before the crash"
    return loop


@pytest.mark.parametrize("backend", ["sqlite", "python"])
@pytest.mark.parametrize("step", ["thread", "async"])
@pytest.mark.parametrize("stage", STAGES)
async def test_resumed_run_ends_as_the_straight_one(
    tmp_path, straight, stage, step, backend
) -> None:
    broken = await broken_off(tmp_path, stage, step=step, backend=backend)
    loop = make_loop(tmp_path, step=step, backend=backend)
    await loop.run()
    assert outcome(loop) == straight[step]
    assert loop.status["resumed_from"] == broken.log.h_uuid


@pytest.mark.parametrize("backend", ["sqlite", "python"])
async def test_run_resumed_at_every_batch_ends_as_the_straight_one(
    tmp_path, straight, backend
) -> None:
    for iterations in range(LAST):
        checkpoint = Checkpoint(tmp_path / "checkpoints", resume=True, after_batch=True)
        crash = CrashesLater("before_batch", iterations + 1)
        loop = make_loop(tmp_path, crash, checkpoint=checkpoint, backend=backend)
        if iterations < LAST - 1:
            with pytest.raises(CrashError):
                await loop.run()
        else:
            await loop.run()
    assert outcome(loop) == straight["thread"]


async def test_run_stopped_in_good_order_and_resumed_ends_as_the_straight_one(
    tmp_path, straight
) -> None:
    class Stops(SimpleExtension):
        async def do(self, which_callback, *args) -> None:
            self.main_loop.request_finish("batch")

    loop = make_loop(tmp_path, Stops(every_n_batches=4))
    await loop.run()
    starts = 1
    while not loop.log.current_row.get("training_finish_requested"):
        loop = make_loop(tmp_path, Stops(every_n_batches=4))
        await loop.run()
        starts += 1
    assert outcome(loop) == straight["thread"]
    assert starts == 6


async def test_completed_run_started_again_returns_at_once(tmp_path, straight) -> None:
    first = make_loop(tmp_path)
    await first.run()
    before = checkpoints_in(tmp_path)
    again = make_loop(tmp_path)
    await again.run()
    assert outcome(again) == straight["thread"]
    assert checkpoints_in(tmp_path) == before
    assert again.log.current_row["training_finished"] is True
