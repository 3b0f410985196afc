"""What many tests use."""

import signal
import threading
from collections.abc import Iterator

import pytest
from recorder import Recorder

from aloop import config
from aloop.log.connection import LogConnection

# A shell that starts the tests in the background has them, and what they start, ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


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


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fail a test that leaves a thread of aloop's, or of its database, running."""
    before = set(threading.enumerate())
    yield
    left = [
        thread
        for thread in set(threading.enumerate()) - before
        if thread.name.startswith(("aloop", "Thread-")) and thread.is_alive()
    ]
    for thread in left:
        thread.join(timeout=5)  # one that was told to end may need a moment
    assert not [thread for thread in left if thread.is_alive()]
