"""The example of the digits is killed, cancelled and failed everywhere, and loses nothing."""

from pathlib import Path

import pytest
from digits_training import digits

from aloop.testing import cancel_everywhere, crash_everywhere, raise_everywhere


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("everywhere", [crash_everywhere, cancel_everywhere, raise_everywhere])
def test_digits_that_were_broken_anywhere_end_as_the_straight_ones(
    everywhere, directory: Path, every: bool
) -> None:
    report = everywhere(digits, directory, every=every)
    assert sum(trial.was_broken for trial in report.trials) > 45
