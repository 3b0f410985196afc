"""What many tests use."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from aloop import CallbackName, TrainingExtension, config


class Recorder(TrainingExtension):
    """Keeps a list of all that it is called with, as ``(callback, iterations_done, *args)``."""

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name)
        self.events: list[tuple[object, ...]] = []

    def handler(self, callback: CallbackName):
        async def record(*args: object) -> None:
            self.events.append((str(callback), self.main_loop.status["iterations_done"], *args))

        return record

    @property
    def callbacks(self) -> list[str]:
        """The names of the callbacks, in the order in which they came."""
        return [str(event[0]) for event in self.events]


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture(autouse=True)
def no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path_factory) -> Iterator[None]:
    """Keep the settings of whoever runs the tests out of them."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    for variable in ("ALOOP_CONFIG", "ALOOP_SQLITEDB", "ALOOP_PROFILE", "ALOOP_LOG_BACKEND"):
        monkeypatch.delenv(variable, raising=False)
    yield
    for setting in ("log_backend", "sqlite_database", "max_blob_size", "profile", "default_seed"):
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


@pytest.fixture
async def no_tasks_left() -> "Iterator[None]":
    """Fail a test that leaves a task running in its event loop."""
    before = asyncio.all_tasks()
    yield
    left = asyncio.all_tasks() - before
    assert not left
