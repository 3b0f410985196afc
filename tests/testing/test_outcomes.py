"""What a training ends with is compared to the bit."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from aloop import Checkpoint, FinishAfter, MainLoop
from aloop.faults import POINTS
from aloop.testing import FaultFoundError, Report, Trial
from aloop.testing.everywhere.places import Place, chosen, halfway
from aloop.testing.outcomes import differences, is_same, outcome_of

SAME = [
    (1, 1),
    (math.nan, math.nan),
    ([1, (2, math.nan)], [1, (2, math.nan)]),
    ({"a": [math.nan]}, {"a": [math.nan]}),
    (np.array([1.0, math.nan]), np.array([1.0, math.nan])),
    (None, None),
    (np.float32("nan"), np.float32("nan")),
    (np.float64(1.5), 1.5),
    (np.datetime64("NaT", "s"), np.datetime64("NaT", "s")),
    (np.array([{"a": 1}], dtype=object), np.array([{"a": 1}], dtype=object)),
    ({}, {}),
]
OTHER = [
    (1, 2),
    (1.0, math.nan),
    (0.0, -0.0),
    (1, 1.0),
    (0, False),
    (np.array([{"a": 1}], dtype=object), np.array([{"a": 2}], dtype=object)),
    ([1, 2], [1]),
    ({"a": 1}, {"b": 1}),
    (np.array([1.0]), np.array([1.0], dtype="float32")),
    (np.array([1.0, 2.0]), np.array([[1.0, 2.0]])),
    (np.array([0.0]), np.array([-0.0])),
    (np.array([1.0]), [1.0]),
    (np.array([1.0]), None),
]


@pytest.mark.parametrize(("first", "second"), SAME)
def test_the_same_is_the_same(first, second) -> None:
    assert is_same(first, second)


@pytest.mark.parametrize(("first", "second"), OTHER)
def test_what_is_other_is_told(first, second) -> None:
    assert not is_same(first, second)
    assert not is_same(second, first)


def test_differences_are_named_by_their_paths_but_for_what_is_ignored() -> None:
    straight = {"model/w": 1, "rows/1/cost": 0.5, "rows/1/seconds": 3, "rows/1/saved_to": "a"}
    other = {"model/w": 2, "rows/1/seconds": 4, "rows/1/saved_to": "b", "rows/2/cost": 0.25}
    assert differences(straight, other, ["rows/*/seconds"]) == [
        "model/w is 2; it should be 1",
        "rows/1/cost is missing; it should be 0.5",
        "rows/2/cost is 0.25; it should not be there",
    ]
    assert differences({"a": {}}, {}) == ["a is missing; it should be {}"]
    many = {f"model/{number}": 0 for number in range(20)}
    found = differences(many, dict.fromkeys(many, 1))
    assert (len(found), found[-1]) == (9, "and 12 more differences")


async def test_an_outcome_is_the_state_and_every_row(tmp_path: Path) -> None:
    model = {"w": np.zeros(2)}

    async def step(batch: int) -> dict[str, int]:
        loop.log.current_row["batch"] = batch
        return {"cost": batch}

    loop = MainLoop(
        step, [5, 7], model=model, extensions=[Checkpoint(tmp_path), FinishAfter(after_n_epochs=1)]
    )
    await loop.run()
    outcome = outcome_of(loop)
    assert outcome["rows/1/batch"] == 7
    assert outcome["status/iterations_done"] == outcome["position/iterations_done"] == 2
    assert is_same(outcome["model/w"], np.zeros(2))
    assert not [path for path in outcome if path.startswith("log/")]


def test_a_point_is_gone_to_the_first_the_last_and_one_time_between() -> None:
    passed = Counter({"step.done": 9, "commit.done": 1, "mine": 2})
    places = [place for _, place in chosen({"run": passed}, ["*"], 0, every=False)]
    steps = [place.number for place in places if place.point == "step.done"]
    assert (steps[0], steps[-1], len(steps)) == (1, 9, 3)
    assert [str(place) for place in places if place.point == "mine"][1].endswith("own), time 2")
    others = {"stopped": passed, "resumed": passed}
    assert chosen(others, ["commit.*", "mine"], 0, every=False) == [
        ("stopped", Place("commit.done", 1)),
        ("stopped", Place("mine", 2)),
        ("resumed", Place("commit.done", 1)),
        ("resumed", Place("mine", 1)),
    ]
    assert len(chosen({"failed": passed}, ["*"], 0, every=True)) == 12
    raising = chosen({"run": passed}, ["*"], 0, every=True, may_raise=True)
    assert {place.point for _, place in raising} == {"step.done", "mine"}
    assert not POINTS["commit.done"].may_raise
    assert halfway(passed) == Place("step.done", 5)


def test_a_report_raises_what_was_wrong() -> None:
    good = Report("everywhere", (Trial("one"), Trial("two", was_broken=False, point="step.done")))
    good.raise_if_failed()
    assert good.points == set()
    trials = tuple(Trial(f"trial {number}", ("wrong",)) for number in range(12))
    with pytest.raises(FaultFoundError) as caught:
        Report("everywhere", trials, Path("somewhere")).raise_if_failed()
    lines = str(caught.value).splitlines()
    assert lines[0] == "everywhere: 12 of 12 trials found something wrong"
    assert lines[1:3] == ["- trial 0", "    wrong"]
    assert lines[-2:] == ["- and 2 more, see .report", "the files are in somewhere"]
    assert len(caught.value.report.failed) == 12
