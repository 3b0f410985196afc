"""What many tests use."""

import gc
import signal
import threading
from collections.abc import Iterator

import pytest

from aloop import config
from aloop.log.connection import LogConnection
from aloop.testing.recorder import Recorder

pytest_plugins = ["pytester"]

# A shell that starts the tests in the background has them, and what they start, ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionstart(session: pytest.Session) -> None:
    # Each test is guarded, which pyproject.toml says; on a busy machine a step takes its time.
    session.add_marker(pytest.mark.aloop_guard(block_s=5))


def pytest_collection_finish(session: pytest.Session) -> None:
    # The guard looks for garbage after many a test: not among what was imported for all of them.
    gc.collect()
    gc.freeze()


@pytest.fixture
def recorder(aloop_recorder: Recorder) -> Recorder:
    return aloop_recorder


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The SQL that the connections of logs run from now on."""
    seen: list[str] = []

    class Traced(LogConnection):
        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            self.set_trace_callback(seen.append)

    monkeypatch.setattr("aloop.log.thread.LogConnection", Traced)
    return seen


@pytest.fixture(autouse=True)
def no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path_factory) -> Iterator[None]:
    """Keep the settings of whoever runs the tests out of them."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    for variable in ("ALOOP_CONFIG", "ALOOP_SQLITEDB", "ALOOP_PROFILE", "ALOOP_LOG_BACKEND"):
        monkeypatch.delenv(variable, raising=False)
    yield
    for setting in config._settings:
        delattr(config, setting)


@pytest.fixture
def no_threads_of_aloop() -> Iterator[None]:
    """Fail a test that leaves threads of aloop's, though others may leave theirs."""
    before = set(threading.enumerate())
    yield
    left = [
        thread
        for thread in set(threading.enumerate()) - before
        if thread.name.startswith(("aloop", "Thread-"))
    ]
    for thread in left:
        thread.join(timeout=5)  # one that was told to end may need a moment
    assert not [thread for thread in left if thread.is_alive()]
