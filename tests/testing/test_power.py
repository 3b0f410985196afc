"""Power cuts: none takes what was acknowledged, and each planted fault is found by them."""

import re

import pytest
from power_jobs import (
    acknowledging_nothing,
    beginning_anew,
    broken,
    filling,
    honest,
    mapped,
    outside,
    short,
    unseeded,
    with_few_barriers,
    without_barrier,
    without_synced_files,
    without_synced_names,
)

from aloop.errors import AloopError, ArgumentError, MissingDependencyError
from aloop.testing.power import power_cuts
from aloop.testing.power.strace import TraceError
from aloop.testing.reports import FaultFoundError

pytestmark = pytest.mark.power


def test_a_few_power_cuts_take_nothing_that_was_acknowledged(tmp_path):
    report = power_cuts(short, tmp_path / "here", cuts=19, traces=2)
    assert len(report.trials) == 21  # and the second trace, which is one itself; and going on
    assert not report.failed
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_hundred_power_cuts_take_nothing_that_was_acknowledged():
    report = power_cuts(honest, cuts=200)
    assert len(report.trials) == 204


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_no_power_cut_damages_a_log_that_is_moved_into_its_file():
    power_cuts(filling, cuts=20, traces=2)


def test_without_the_barrier_acknowledged_rows_are_lost(tmp_path):
    with pytest.raises(FaultFoundError, match="of which rows were acknowledged"):
        power_cuts(without_barrier, tmp_path, cuts=20, traces=1)


@pytest.mark.slow
def test_a_barrier_that_is_now_and_then_left_out_loses_rows(tmp_path):
    with pytest.raises(FaultFoundError, match="was acknowledged, and is not in the log"):
        power_cuts(with_few_barriers, tmp_path, cuts=40, traces=1)


def test_checkpoints_that_are_not_synced_are_lost(tmp_path):
    with pytest.raises(FaultFoundError, match=r"checkpoint \d was published, and none of the"):
        power_cuts(without_synced_files, tmp_path, cuts=20, traces=1)


def test_checkpoints_whose_names_are_not_synced_are_lost(tmp_path):
    with pytest.raises(FaultFoundError, match="was published, and the newest whole one is none"):
        power_cuts(without_synced_names, tmp_path, cuts=20, traces=1)


@pytest.mark.slow
def test_a_cut_that_lost_something_can_be_repeated(tmp_path):
    with pytest.raises(FaultFoundError) as failure:
        power_cuts(without_synced_names, tmp_path, cuts=40, traces=2, seed=3)
    first = next(trial for trial in failure.value.report.failed if trial.what.startswith("only"))
    numbers = re.match(r"only=\((\d+), (\d+)\)", first.what)
    only = int(numbers[1]), int(numbers[2])
    with pytest.raises(FaultFoundError) as again:
        power_cuts(without_synced_names, tmp_path, seed=3, only=only)
    assert again.value.report.trials == (first,)
    assert any((tmp_path / f"cut-{only[0]}-{only[1]}").iterdir())


def test_what_was_not_kept_cannot_be_repeated(tmp_path):
    with pytest.raises(ArgumentError, match="there is no trace 2"):
        power_cuts(honest, tmp_path, only=(2, 1))


def test_without_strace_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match="strace"):
        power_cuts(honest)


@pytest.mark.parametrize(
    ("make_loop", "kind", "text"),
    [
        (broken, AloopError, "fails when nothing breaks it"),
        (unseeded, AloopError, "does not end twice alike"),
        (mapped, TraceError, "strace does not see"),
        (outside, ArgumentError, "writes nothing to the directory"),
        (acknowledging_nothing, ArgumentError, "nothing was acknowledged before the end"),
        (beginning_anew, FaultFoundError, "begun anew each time"),
        (lambda directory: None, ArgumentError, "the top of a module"),
    ],
    ids=["broken", "unseeded", "mapped", "outside", "nothing", "anew", "lambda"],
)
def test_a_training_that_tells_nothing_is_refused(tmp_path, make_loop, kind, text):
    with pytest.raises(kind, match=text):
        power_cuts(make_loop, tmp_path, cuts=2, traces=1)


@pytest.mark.parametrize("name", ["cuts", "traces", "processes", "flush_every_n_batches"])
def test_no_number_can_be_less_than_one(name):
    with pytest.raises(ArgumentError, match=f"{name} is 0"):
        power_cuts(honest, **{name: 0})
