"""The plugin guards tests of every kind; those that sleep are to be caught at it."""

import asyncio
import signal
import subprocess
import sys
from xml.etree import ElementTree as ET

import pytest

from aloop.testing.guard import watching

ANYIO = """
@pytest.fixture(scope='module')
def anyio_backend():
    return 'asyncio'
"""

ASYNC_PLUGINS = {
    "auto": ("asyncio_mode = auto", ""),
    "strict": ("asyncio_mode = strict", "pytestmark = pytest.mark.asyncio"),
    "anyio": ("", f"pytestmark = pytest.mark.anyio\n{ANYIO}"),
    # Its event loop outlives the test where a fixture needs it.
    "anyio with a fixture": (
        "",
        f"""
pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures('endures')]
{ANYIO}
@pytest.fixture(scope='module')
async def endures(anyio_backend):
    await anyio.to_thread.run_sync(int)
    task = asyncio.create_task(asyncio.sleep(100))
    await asyncio.sleep(0)
    yield
    task.cancel()
""",
    ),
}

HEAD = """
import asyncio, signal, threading, time
import anyio
import pytest

kept = []
release = threading.Event()
"""

TESTS = """
async def test_clean(aloop_guard, tmp_path):
    task = asyncio.create_task(asyncio.sleep(0.01))
    await task
    await asyncio.to_thread(time.sleep, 0.01)
    await anyio.to_thread.run_sync(int)
    (tmp_path / "file").write_text("text")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await asyncio.sleep(1)

async def naps(seconds=0.4):
    time.sleep(seconds)

async def test_blocks(aloop_guard):
    await naps()
    await asyncio.sleep(0)

async def test_blocks_to_its_end(aloop_guard):
    await naps()

async def endless():
    await asyncio.Event().wait()

async def leave_a_task():
    kept.append(asyncio.create_task(endless(), name="left"))
    await asyncio.sleep(0)

async def test_leaves_a_task(aloop_guard):
    await leave_a_task()

def leave_all_else(path):
    release.clear()
    threading.Thread(target=release.wait, name="left").start()
    kept.append((path / "left.txt").open("w"))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

def end_all():
    release.set()
    kept.pop().close()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

@pytest.mark.aloop_guard(patience_s=0.1)
async def test_leaves_all_else(tmp_path):
    leave_all_else(tmp_path)

async def test_ends_it():
    end_all()

@pytest.fixture
def at_the_end():
    yield
    end_all()

@pytest.mark.aloop_guard
async def test_leaves_it_to_a_fixture(at_the_end, tmp_path):
    leave_all_else(tmp_path)

async def test_fails_and_leaves(aloop_guard):
    await leave_a_task()
    assert 1 == 2

async def test_is_skipped(aloop_guard):
    pytest.skip("for a reason")

async def test_blocks_unguarded():
    await naps()

@pytest.mark.aloop_guard(block_s=5)
async def test_may_block():
    await naps()

@pytest.mark.aloop_guard(block_s=5)
class TestNearest:
    @pytest.mark.aloop_guard(block_s=0.1)
    async def test_it(self):
        await naps(0.2)
"""


OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ASYNC_PLUGINS if name != "auto"]


@pytest.fixture(scope="module", params=["auto", *OTHERS])
def texts(request, tmp_path_factory) -> dict[str, str]:
    """What pytest told of each of the tests under a plugin for async ones: all in one go."""
    setting, head = ASYNC_PLUGINS[request.param]
    path = tmp_path_factory.mktemp("suite")
    (path / "pytest.ini").write_text(
        f"[pytest]\n{setting}\nasyncio_default_fixture_loop_scope = function\n"
        "filterwarnings = error\naddopts = -p no:cacheprovider --strict-markers\n"
    )
    (path / "test_it.py").write_text(f"{HEAD}{head}\n{TESTS}")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--junitxml", "told.xml"],
        cwd=path,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return {
        case.get("name"): "".join(part.text for part in case)
        for case in ET.parse(path / "told.xml").iter("testcase")  # noqa: S314 - our own
    }


def test_a_clean_test_passes(texts) -> None:
    assert texts["test_clean"] == ""


@pytest.mark.parametrize("name", ["test_blocks", "test_blocks_to_its_end"])
def test_a_blocked_event_loop_fails_the_test_and_names_the_coroutine(texts, name) -> None:
    _, text = texts[name].split("the guard: ")
    assert text.startswith("the event loop was blocked for 0.4")
    assert f"{name} > naps (" in text


def test_a_task_that_is_left_fails_the_test_and_is_named(texts) -> None:
    _, text = texts["test_leaves_a_task"].split("the guard: ")
    assert text.startswith("the task 'left' is not done; it is in endless > Event.wait (")


def test_what_else_is_left_fails_the_test_and_is_named(texts) -> None:
    _, thread, file, handler = texts["test_leaves_all_else"].split("the guard: ")
    assert thread.startswith("the thread 'left' lives; it is in Condition.wait (")
    assert "left.txt; close it" in file
    assert handler.startswith("the handler of SIGTERM is <Handlers.SIG_IGN: 1>; expected ")


def test_a_fixture_may_end_what_a_test_has_begun(texts) -> None:
    assert texts["test_leaves_it_to_a_fixture"] == ""


def test_a_test_that_fails_says_why_and_what_it_has_left(texts) -> None:
    assert "assert 1 == 2" in texts["test_fails_and_leaves"]
    assert "the guard: the task 'left' is not done" in texts["test_fails_and_leaves"]


def test_one_that_is_skipped_stays_so(texts) -> None:
    assert "for a reason" in texts["test_is_skipped"]


def test_only_those_that_want_it_are_guarded(texts) -> None:
    assert texts["test_blocks_unguarded"] == ""


def test_the_nearest_mark_counts(texts) -> None:
    assert texts["test_may_block"] == ""
    assert "the event loop was blocked for 0.2" in texts["test_it"]


@pytest.fixture
def run(pytester):
    """Give a function that runs tests, and counts the outcomes."""

    def run_tests(code: str, *, ini: str = "", **outcomes: int):
        pytester.makeini(f"[pytest]\nasyncio_default_fixture_loop_scope = function\n{ini}")
        pytester.makepyfile(f"{HEAD}\n{code}")
        result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "--strict-markers")
        result.assert_outcomes(**outcomes)
        return result

    return run_tests


def test_a_setting_guards_all(run) -> None:
    run(
        """
import unittest

def naps(seconds):
    async def nap():
        time.sleep(seconds)
    asyncio.run(nap())

def test_function():
    naps(0.4)

def test_naps_for_less_than_the_quarter_of_a_second_that_is_allowed():
    naps(0.1)

class TestOld(unittest.TestCase):
    def test_method(self):
        naps(0.4)

class TestNew(unittest.IsolatedAsyncioTestCase):
    async def test_method(self):
        time.sleep(0.4)

@pytest.mark.aloop_guard(block_s=0.05)
class TestMarked:
    def test_naps_for_more_than_is_allowed_here(self):
        naps(0.1)

@pytest.mark.aloop_guard(block_s=None)
def test_may_nap():
    naps(0.4)
""",
        ini="aloop_guard = true",
        failed=4,
        passed=2,
    )


def test_a_mark_that_makes_no_sense_fails_the_test(run) -> None:
    result = run(
        """
@pytest.mark.aloop_guard(0.1)
def test_argument_without_a_name(): pass

@pytest.mark.aloop_guard(block=1)
def test_unknown_argument(): pass

@pytest.mark.aloop_guard(block_s=-1)
def test_bad_argument(): pass
""",
        failed=3,
    )
    result.stdout.fnmatch_lines(
        [
            "*the mark aloop_guard has (0.1,); expected arguments by name*",
            "*the mark aloop_guard has block=1; expected one of block_s, tasks, *",
            "*block_s is -1; expected seconds, more than 0*",
        ]
    )


def test_a_fixture_may_put_a_signal_handler_back(run) -> None:
    result = run(
        """
@pytest.fixture
def handler():
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    yield
    signal.signal(signal.SIGTERM, before)

def test_fixture_with_a_handler(handler, aloop_guard): pass

@pytest.fixture(scope="module")
def endures():
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    yield
    signal.signal(signal.SIGTERM, before)

def test_handler_of_a_module(endures, aloop_guard): pass
def test_handler_that_is_left(endures, aloop_guard): signal.signal(signal.SIGTERM, signal.SIG_IGN)
def test_last_one_of_the_module(endures, aloop_guard): pass
""",
        passed=4,
        errors=1,
    )
    result.stdout.fnmatch_lines(["*the handler of SIGTERM is <Handlers.SIG_IGN: 1>; expected *"])


def test_other_plugins_find_what_fixtures_gave_when_they_report(pytester, run) -> None:
    pytester.makeconftest(
        """
import pytest
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item, call):
    report = yield
    assert item.funcargs["page"] == 1
    return report
"""
    )
    code = """
@pytest.fixture
def page(): return 1

@pytest.mark.aloop_guard(patience_s=0.1)
def test_leaves_a_thread(page):
    threading.Thread(target=release.wait).start()

def test_ends_it(page):
    release.set()
"""
    run(code, passed=2, errors=1)


def test_what_goes_with_what_a_fixture_gave_is_not_left(run) -> None:
    code = """
import os

class Holder:
    def __init__(self):
        self.me = self
        self.ends = os.pipe()
    def __del__(self):
        for end in self.ends:
            os.close(end)

@pytest.fixture
def holder(): return Holder()

def test_it(holder, aloop_guard): pass
"""
    run(code, passed=1)


def test_what_unittest_tells_is_the_whole_outcome(run) -> None:
    result = run(
        """
import unittest

class TestOld(unittest.TestCase):
    def setUp(self): kept.append(open(__file__))
    def test_skips(self): self.skipTest("why")
    def test_fails(self): assert 1 == 2
    @unittest.expectedFailure
    def test_is_expected_to_fail(self): assert 1 == 2
    def test_passes(self): pass

class TestNew(unittest.IsolatedAsyncioTestCase):
    async def test_fails_and_blocks(self):
        time.sleep(0.4)
        assert 1 == 2
""",
        ini="aloop_guard = true",
        skipped=1,
        failed=2,
        xfailed=1,
        passed=1,
        errors=1,  # of the one that passes
    )
    result.stdout.fnmatch_lines(["*the guard: the event loop was blocked for 0.4*"])


def test_what_hypothesis_plays_under_anyio_is_guarded(run) -> None:
    pytest.importorskip("hypothesis")
    result = run(
        f"""
from hypothesis import given, settings, strategies
{ANYIO}
@pytest.mark.anyio
@settings(max_examples=1, deadline=None, database=None)
@given(strategies.just(1))
@pytest.mark.parametrize("times", [1, 2])
async def test_leaves_a_task(times, number):
    kept.append(asyncio.create_task(asyncio.sleep(100), name="left"))
    await asyncio.sleep(0)
""",
        ini="aloop_guard = true",
        failed=2,
    )
    result.stdout.fnmatch_lines(["*the guard: the task 'left' is not done*"])


def test_a_flag_that_is_none_fails_the_test(run) -> None:
    result = run("@pytest.mark.aloop_guard(files=0)\ndef test_it(): pass", failed=1)
    result.stdout.fnmatch_lines(["*files is 0; expected True or False*"])


def test_the_recorder_is_a_fixture(run) -> None:
    run(
        """
from aloop import FinishAfter, MainLoop

def test_records(aloop_recorder):
    async def step(batch): ...

    end = FinishAfter(after_n_batches=1)
    asyncio.run(MainLoop(step, [7], extensions=[end, aloop_recorder]).run())
    assert ("before_batch", 0, 7) in aloop_recorder.events
""",
        passed=1,
    )


def test_the_plugin_imports_nothing_that_pytest_and_the_kit_do_not() -> None:
    script = (
        "import sys, pytest, aloop.testing; before = set(sys.modules); import aloop.testing.plugin;"
        "print(*set(sys.modules) - before)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == ["aloop.testing.plugin"]


def test_this_suite_is_guarded(request) -> None:
    assert request.config.getini("aloop_guard")
    assert asyncio.Handle._run is watching._run_watched
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
