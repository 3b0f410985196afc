"""Fixtures of the log's tests."""

import pytest

from aloop.log.journal import Journal


@pytest.fixture(autouse=True)
def _own_journals():
    """Keep what one test leaves open away from the next."""
    yield
    Journal._open.clear()


@pytest.fixture
def database(tmp_path):
    return tmp_path / "log.sqlite"
