"""What the functions of the kit are given is checked before anything is begun."""

from pathlib import Path

import pytest
import trainings

from aloop.errors import ArgumentError
from aloop.testing import (
    FaultFoundError,
    Report,
    cancel_everywhere,
    crash_everywhere,
    power_cuts,
    raise_everywhere,
)
from aloop.testing.arguments import scratch

WRONG = {
    "ignore": ("rows/*", 3, [3]),
    "timeout_s": (0, -1, float("inf"), float("nan"), "a minute", None, True),
    "points": ("step.done", 3, [None]),
    "processes": (0, -1, 1.5, True, "2"),
    "cuts": (0, None),
    "traces": (0, "4"),
    "flush_every_n_batches": (0, 2.0),
}
TAKEN = {
    cancel_everywhere: ("ignore", "timeout_s"),
    raise_everywhere: ("ignore", "timeout_s", "points"),
    crash_everywhere: ("ignore", "timeout_s", "points", "processes"),
    power_cuts: ("ignore", "timeout_s", "processes", "cuts", "traces", "flush_every_n_batches"),
}


@pytest.mark.parametrize(
    ("function", "name", "value"),
    [(f, name, value) for f, names in TAKEN.items() for name in names for value in WRONG[name]],
)
@pytest.mark.power
def test_an_argument_that_makes_no_sense_is_refused(function, name, value, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=rf"^{name} is .*; expected .*"):
        function(trainings.short, tmp_path, **{name: value})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("function", TAKEN)
def test_a_loop_is_not_what_makes_one(function, tmp_path: Path) -> None:
    loop = trainings.short(tmp_path)
    with pytest.raises(ArgumentError, match=r"make_loop is <.*; expected a function of a dir"):
        function(loop, tmp_path / "trials")


@pytest.mark.parametrize("function", [crash_everywhere, raise_everywhere])
def test_points_that_are_never_passed_are_refused(function, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"passes no such fault point.*step\.done"):
        function(trainings.short, tmp_path, points=["step.dnoe"])


def test_points_where_nothing_can_fail_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="no such fault point where an error can come up"):
        raise_everywhere(trainings.short, tmp_path, points=["commit.done"])


def test_a_directory_of_trials_is_emptied_unless_something_was_found(tmp_path: Path) -> None:
    with scratch(tmp_path / "a" / "b", "tests") as where:
        (where / "file").touch()
    assert where == tmp_path / "a" / "b"
    assert list(where.iterdir()) == []
    with pytest.raises(FaultFoundError), scratch(where, "tests"):
        (where / "file").touch()
        raise FaultFoundError("found", Report("tests", ()))
    assert (where / "file").exists()
    with pytest.raises(ArgumentError, match="is not empty"), scratch(where, "tests"):
        pass


def test_a_temporary_directory_goes_unless_something_was_found() -> None:
    with scratch(None, "tests") as where:
        (where / "file").touch()
    assert not where.exists()
    with pytest.raises(KeyError), scratch(None, "tests") as where:
        raise KeyError
    assert not where.exists()
    with pytest.raises(FaultFoundError), scratch(None, "tests") as where:
        raise FaultFoundError("found", Report("tests", ()))
    where.rmdir()


@pytest.mark.parametrize("directory", [3, "", "a\0b"])
def test_what_is_no_directory_is_refused(directory) -> None:
    with pytest.raises(ArgumentError, match="directory is"):
        cancel_everywhere(trainings.short, directory)


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArgumentError, match="cannot be used"):
        cancel_everywhere(trainings.short, tmp_path / "file")
