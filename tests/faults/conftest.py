"""Fixtures of the tests of faults."""

import pytest
from fault_tools import ForkServer


@pytest.fixture
def database(tmp_path):
    return tmp_path / "log.sqlite"


@pytest.fixture(scope="session")
def server():
    server = ForkServer()
    yield server
    server.close()
