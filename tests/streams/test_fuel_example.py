"""The example of Fuel, run as a user runs it."""

import re
from pathlib import Path

import pytest
from test_documents import ROOT, run

EXAMPLE = ROOT / "examples" / "fuel_stream.py"


@pytest.mark.slow
def test_example_resumes_in_mid_epoch_and_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    printed = run(["-W", "error", str(EXAMPLE)], tmp_path)
    *runs, accuracy, weights, costs = printed.splitlines()
    assert runs == [
        "never stopped: 270 batches, 6 epochs",
        "stopped in the middle of an epoch: 100 batches, 2 epochs",
        "resumed: 270 batches, 6 epochs",
    ]
    share = re.fullmatch(r"test accuracy (\d+\.\d) %", accuracy)
    assert share is not None
    assert float(share[1]) > 95
    assert weights == "weights equal to the bit: yes"
    assert costs == "training cost of each epoch equal: yes"
    assert list(tmp_path.iterdir()) == []
