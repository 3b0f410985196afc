"""A checkpoint that the first version of the format has written can be read for good."""

import shutil
from pathlib import Path

import numpy as np
from resume_tools import BATCHES, EPOCHS, make_loop

from aloop import MainLoop
from aloop.callbacks import Position, Stage
from aloop.checkpoints import SavedCheckpoint

WEIGHTS = [0.8933865290544437, 0.765151103981392, 0.9173345549465262]
GOLDEN = Path(__file__).with_name("golden") / "ckpt-000000010-00000001"


def test_what_is_in_it() -> None:
    checkpoint = SavedCheckpoint.at(GOLDEN)
    assert checkpoint.position == Position(1, 10, 3, Stage.BATCH_DONE)
    assert (checkpoint.number, checkpoint.is_whole) == (1, True)
    state = checkpoint.read()
    assert set(state) == {*MainLoop(print, [1]).state_dict()}
    assert state["model"]["w"].tolist() == WEIGHTS
    assert state["stream"] == {
        "stream": {
            "epoch": 1,
            "batch": 3,
            "scheme": "ShuffledScheme",
            "num_examples": 50,
            "batch_size": 8,
            "indices_crc32": 1691407018,
            "seed": 1,
        },
        "is_counted": False,
    }
    assert state["algorithm"]["state"]["step_rule"]["time"] == 10
    assert state["algorithm"]["generators"]["dropout"]["bit_generator"] == "PCG64"
    assert state["extensions"]["Losses"]["seen"].dtype == np.float64
    assert state["extensions"]["TrainingDataMonitoring#2"]["weight"] == 16
    assert state["log"]["status"]["_epoch_ends"] == [7]
    assert state["rows"]["cost"]["times"].tolist() == list(range(1, 11))


async def test_training_goes_on_from_it(tmp_path) -> None:
    shutil.copytree(GOLDEN, tmp_path / "checkpoints" / GOLDEN.name)
    loop = make_loop(tmp_path, backend="python")
    await loop.run()
    assert loop.status["iterations_done"] == BATCHES * EPOCHS
    assert loop.log[10]["loaded_from"].endswith(GOLDEN.name)
    assert len(loop.find_extension("Losses").seen) == BATCHES * EPOCHS
