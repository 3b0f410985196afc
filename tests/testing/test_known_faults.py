"""Each of the twelve known faults is found by the kit, and the same training without it passes."""

import re
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import known_faults
import pytest

from aloop.testing import (
    FaultFoundError,
    Report,
    cancel_everywhere,
    crash_everywhere,
    power_cuts,
    raise_everywhere,
)
from aloop.testing.outcomes import MakeLoop


def crashes(*points: str) -> Callable[..., Report]:
    return partial(crash_everywhere, points=points, processes=2)


cuts = partial(power_cuts, cuts=12, traces=1)


class Fault(NamedTuple):
    """A known fault, by the function of `known_faults` that makes a training with it."""

    make_loop: MakeLoop
    check: Callable[..., Report]
    """What finds it."""
    message: str
    """A pattern of what is said then."""


FAULTS = (
    Fault(
        known_faults.taken_late,
        crashes("checkpoint.published"),
        r"model/w is .*; it should be ",
    ),
    Fault(known_faults.swallowing, cancel_everywhere, r"the task 'upload' is left, in Uploading"),
    Fault(
        known_faults.generator_left_out, crashes("step.done"), r"rows/\d+/cost is .*; it should be "
    ),
    Fault(
        known_faults.unawaited,
        crashes("checkpoint.published"),
        r"LogBehindError: the log .* but the checkpoint belongs to commit point \d",
    ),
    Fault(
        known_faults.without_barrier,
        cuts,
        r"the log cannot be read, of which rows were acknowledged|LogBehindError",
    ),
    Fault(known_faults.unsynced, cuts, r"checkpoint \d was published, and "),
    Fault(
        known_faults.counting_fetched,
        crashes("step.done"),
        r"position/iterations_done is \d; it should be 10",
    ),
    Fault(
        known_faults.handler_left,
        partial(raise_everywhere, points=["step.done"]),
        r"- not failed\n    the signal handlers from before are not back",
    ),
    Fault(
        known_faults.moved_across,
        crashes("copy.next"),
        r"- killed at copy.next .*, time 1\n(.*\n)*.*: none of the checkpoints in .* is whole",
    ),
    Fault(
        known_faults.mutating_thread,
        crashes("checkpoint.published"),
        r"model/w is .*; it should be ",
    ),
    Fault(
        known_faults.keyed_by_place,
        crashes("step.done"),
        r"rows/\d+/low is 1\d\d\..*; it should be \d\d\.",
    ),
    Fault(
        known_faults.inheriting,
        crashes("step.done"),
        r"- stopped halfway(\n    .*)*\n    position/iterations_done is \d; it should be 10",
    ),
)

MENDED_ALIKE = (known_faults.unawaited, known_faults.unsynced)
"""Those that are the training of another when they are mended, and checked in the same way."""


QUICK = (known_faults.generator_left_out, known_faults.handler_left)
"""Those that every run of the suite looks for."""


def parameters(*, mended: bool = False) -> pytest.MarkDecorator:
    """Give each fault to a test, with the marks that its check needs."""
    rows = []
    for fault in FAULTS:
        if mended and fault.make_loop in MENDED_ALIKE:
            continue
        marks = [pytest.mark.power] if fault.check is cuts else []
        if mended or fault.make_loop not in QUICK:
            marks.append(pytest.mark.slow)
        rows.append(pytest.param(fault, id=fault.make_loop.__name__, marks=marks))
    return pytest.mark.parametrize("fault", rows)


@pytest.fixture
def put_back() -> Iterator[None]:
    """Put back the handler that one of the faults leaves."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@parameters()
@pytest.mark.usefixtures("put_back")
def test_a_known_fault_is_found(fault: Fault, directory: Path) -> None:
    with pytest.raises(FaultFoundError, match=fault.message):
        fault.check(fault.make_loop, directory)


@parameters(mended=True)
def test_the_same_training_without_the_fault_passes(fault: Fault, directory: Path) -> None:
    report = fault.check(partial(fault.make_loop, mended=True), directory)
    assert sum(trial.was_broken for trial in report.trials) > 5


def test_the_page_has_each_of_them_and_what_catches_it() -> None:
    page = (Path(__file__).parents[2] / "docs/how-it-is-tested.md").read_text()
    rows = re.findall(r"^\| .* \| `(\w+)` \| `(\w+)`", page, re.MULTILINE)
    found = [
        (fault.make_loop.__name__, getattr(fault.check, "func", fault.check).__name__)
        for fault in FAULTS
    ]
    assert rows == found
    assert len(rows) == 12
