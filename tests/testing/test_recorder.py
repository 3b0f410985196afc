"""A recorder keeps all that happens in one list, in order."""

import pytest

from aloop import FinishAfter, MainLoop
from aloop.testing.recorder import Recorder
from aloop.testing.scripted import ScriptedAlgorithm, ScriptedStream


async def test_one_list_tells_the_whole_run_in_order(aloop_recorder: Recorder) -> None:
    error = RuntimeError("in the step")
    algorithm = ScriptedAlgorithm([{"cost": 2.0}, {}, {}, error], recorder=aloop_recorder)
    stream = ScriptedStream([["a", "b"], ["c", "d"]], recorder=aloop_recorder)
    with pytest.raises(RuntimeError, match="in the step"):
        await MainLoop(algorithm, stream, extensions=[aloop_recorder]).run()
    assert aloop_recorder.events == [
        ("before_training", 0),
        ("initialize",),
        ("get_epoch_iterator", 0),
        ("before_epoch", 0),
        ("fetched", "a"),
        ("before_batch", 0, "a"),
        ("process_batch", "a"),
        ("after_batch", 1, "a"),
        ("fetched", "b"),
        ("before_batch", 1, "b"),
        ("process_batch", "b"),
        ("after_batch", 2, "b"),
        ("exhausted", 0),
        ("after_epoch", 2),
        ("get_epoch_iterator", 1),
        ("before_epoch", 2),
        ("fetched", "c"),
        ("before_batch", 2, "c"),
        ("process_batch", "c"),
        ("after_batch", 3, "c"),
        ("fetched", "d"),
        ("before_batch", 3, "d"),
        ("process_batch", "d"),
        ("on_error", 3, error),
    ]


async def test_the_names_of_the_events_are_at_hand() -> None:
    recorder = Recorder("first")
    finish = FinishAfter(after_n_epochs=1)
    loop = MainLoop(ScriptedAlgorithm([]), [1], extensions=[recorder, finish])
    await loop.run()
    assert recorder.callbacks == [
        "before_training",
        "before_epoch",
        "before_batch",
        "after_batch",
        "after_epoch",
        "after_training",
    ]
    assert loop.find_extension("first") is recorder
