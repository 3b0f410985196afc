"""The page about what runs beside the training: what its programs print is what it says."""

import re

from test_documents import blocks, run

PAGE = "docs/beside-the-training.md"
PROGRAMS = dict(zip(("background", "limits", "handle"), blocks(PAGE, "python"), strict=True))


def printed(name: str, directory) -> str:
    return run(["-W", "error", "-c", PROGRAMS[name]], directory)


def test_the_evaluation_in_the_background_records_at_the_ends_of_the_epochs(tmp_path) -> None:
    errors = re.search(r"error after each epoch: \[(.*)\]$", printed("background", tmp_path))
    assert errors is not None
    assert len(errors[1].split(", ")) == 5


def test_a_tracker_that_is_down_does_not_cost_the_training(tmp_path) -> None:
    assert printed("limits", tmp_path) == "trained 3 batches\n"


def test_a_run_is_paused_changed_and_left(tmp_path) -> None:
    stopped = re.fullmatch(r"stopped after batch (\d+)\n", printed("handle", tmp_path))
    assert stopped is not None
    assert 21 <= int(stopped[1]) < 300
