"""A run in somebody's test suite: a real pytest, on a file with the tests of the page."""

import re
import signal
from pathlib import Path

import pytest
from page import code
from page_programs import Program, changed, last_row, running

PLUGINS = {
    "pytest-asyncio": [
        "-p",
        "pytest_asyncio.plugin",
        "-o",
        "asyncio_default_fixture_loop_scope=function",
    ],
    "anyio": ["-p", "anyio.pytest_plugin"],
}

TELLING = """
import threading
from itertools import repeat
from aloop import TrainingExtension


class Tell(TrainingExtension):
    async def after_batch(self, batch):
        if self.main_loop.status["iterations_done"] == 2:
            print("two batches", flush=True)

"""
"""What stands before the test of the page."""

ENDLESS = {
    "[1.0, 1.0, 1.0]": "lambda: repeat(1.0)",
    "extensions=[": "extensions=[Tell(), ",
}

LONG_STEP = {
    "    async def train(value):\n": "    async def train(value):\n"
    "        if loop.status['iterations_done'] == 2:\n"
    "            await asyncio.sleep(0.6)\n"
    "            print('the step has settled')\n",
    "asyncio.timeout(20)": "asyncio.timeout(0.5)",
}

BLOCKING_STEP = {
    "[1.0, 1.0, 1.0]": "lambda: repeat(1.0)",
    "    async def train(value):\n": "    async def train(value):\n"
    "        if loop.status['iterations_done'] == 2:\n"
    "            print('two batches', flush=True)\n"
    "            threading.Event().wait(30)\n",
}
"""Holds the event loop at a place where an exception that can be raised anywhere is raised."""

NEXT_TEST = """

def test_nothing_is_left(request):
    import gc, threading
    gc.collect()
    assert [thread.name for thread in threading.enumerate()] == ["MainThread"]
"""


def suite(plugin: str, **changes: str) -> str:
    """The test of the page, as it is for this plugin."""
    text = code("pytest")
    if plugin == "anyio":
        head, mark, _ = code("pytest", 1).partition("@pytest.mark.anyio\n")
        assert mark
        text = head + mark + text.partition("@pytest.mark.asyncio\n")[2]
    return TELLING + changed(text, changes) + NEXT_TEST


def pytest_on(plugin: str, directory: Path, text: str, *options: str):
    """Start pytest on this file."""
    (directory / "test_training.py").write_text(text)
    always = ["-q", "-s", "-p", "no:cacheprovider", "--basetemp", "tmp"]
    arguments = ["-m", "pytest", *always, *options, *PLUGINS[plugin], "test_training.py"]
    return running(arguments, directory, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")


def log_file(directory: Path) -> Path:
    """The log of the run that the inner test has made."""
    # Beside the directory there is a symbolic link to it.
    (path,) = {path.resolve() for path in (directory / "tmp").glob("test_the_cost*/run.sqlite")}
    return path


def summary(program: Program) -> str:
    """The last line of pytest, without the time."""
    return re.sub(r" in [\d.]+s.*", "", program.lines[-1]).strip()


@pytest.fixture(params=PLUGINS)
def plugin(request: pytest.FixtureRequest) -> str:
    return request.param


def test_the_test_of_the_page_passes(plugin: str, tmp_path) -> None:
    with pytest_on(plugin, tmp_path, suite(plugin), "-W", "error") as program:
        assert program.end() == pytest.ExitCode.OK, program.output
    assert summary(program) == "2 passed"
    assert last_row(log_file(tmp_path))["iterations_done"] == 30


@pytest.mark.slow
def test_a_run_that_goes_on_for_too_long_is_a_timeout_error_of_its_test(
    plugin: str, tmp_path
) -> None:
    text = suite(plugin, **ENDLESS, **LONG_STEP)
    with pytest_on(plugin, tmp_path, text, "-W", "error") as program:
        assert program.end() == pytest.ExitCode.TESTS_FAILED, program.output
    assert "the step has settled" in program.output
    assert re.search(r"^E +TimeoutError$", program.output, re.MULTILINE)
    # The next test finds nothing of it, and no warning was made an error.
    assert summary(program) == "1 failed, 1 passed"
    row = last_row(log_file(tmp_path))
    assert (row["iterations_done"], row["interrupt_cause"]) == (3, "cancelled")


@pytest.mark.slow
def test_ctrl_c_stops_the_suite_and_the_log_is_whole(plugin: str, tmp_path) -> None:
    # Under anyio's plugin nobody handles it: it is raised wherever the program is, in the midst
    # of asyncio or of pytest's own hooks too, and what these make of that is not ours.
    changes = BLOCKING_STEP if plugin == "anyio" else ENDLESS
    with pytest_on(plugin, tmp_path, suite(plugin, **changes)) as program:
        program.wait_for("two batches")
        program.send(signal.SIGINT)
        assert program.end() == pytest.ExitCode.INTERRUPTED, program.output
    assert "KeyboardInterrupt" in program.output
    assert re.search("^no tests ran", program.output, re.MULTILINE)
    row = last_row(log_file(tmp_path))
    assert row["iterations_done"] >= 2
    if plugin == "pytest-asyncio":
        # Its runner cancels the test, as asyncio.run does.
        assert row["interrupt_cause"] == "cancelled"
        assert "cost" in row
    else:
        assert "KeyboardInterrupt" in row["got_exception"]
