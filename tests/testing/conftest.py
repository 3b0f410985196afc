"""Fixtures of the tests of the kit."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Where nothing waits for a disk: what is killed here loses nothing that it has written."""
    memory = Path("/dev/shm")  # noqa: S108 - a name of its own in it
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as name:
        yield Path(name)


@pytest.fixture(autouse=True)
def children_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the many children what measuring coverage takes: most end before they could tell."""
    for variable in ("COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def every() -> bool:
    """Whether a test goes through all there is, as ALOOP_EVERY=1 asks for; this takes an hour."""
    return os.environ.get("ALOOP_EVERY", "") not in ("", "0")
