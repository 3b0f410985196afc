"""Children do a job and may be killed in it; who waits for them is told what became of them."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from aloop.errors import ArgumentError
from aloop.testing.children import Nursery


@pytest.fixture(scope="module")
def nursery():
    with Nursery() as nursery:
        yield nursery


def add(first, second):
    return first + second


def test_a_child_gives_what_its_job_gives(nursery) -> None:
    ended = nursery.do(add, 1, 2, timeout_s=20)
    assert (ended.code, ended.result, ended.failure) == (0, 3, None)
    big = nursery.do(add, "x" * 1_000_000, "y", timeout_s=20)
    assert len(big.result) == 1_000_001


def speak(text):
    print(text)
    print("and to the other", file=sys.stderr)
    os.write(1, b"past Python")
    raise ValueError("no good")


def test_what_a_child_says_and_fails_with_is_kept(nursery, capfd) -> None:
    ended = nursery.do(speak, "something", timeout_s=20)
    assert (ended.code, ended.result) == (1, None)
    assert ended.failure.startswith("Traceback")
    assert ended.failure.endswith("ValueError: no good\n")
    for said in ("something", "and to the other", "past Python"):
        assert said in ended.output
    assert capfd.readouterr() == ("", "")


def die(how):
    how()


def by_signal():
    os.kill(os.getpid(), signal.SIGKILL)


def by_exit():
    os._exit(77)


@pytest.mark.parametrize(("how", "code"), [(by_signal, -9), (by_exit, 77)])
def test_a_child_that_dies_leaves_its_code(nursery, how, code) -> None:
    ended = nursery.do(die, how, timeout_s=20)
    assert (ended.code, ended.result, ended.failure) == (code, None, f"it ended with {code}")


def wait_for_nothing():
    threading.Event().wait()


def test_a_child_that_hangs_is_killed_and_its_stack_is_shown(nursery) -> None:
    begun = time.monotonic()
    ended = nursery.do(wait_for_nothing, timeout_s=1)
    assert ended.failure == "it had not ended after 1 s, and was killed"
    assert "in wait_for_nothing" in ended.output
    assert ended.code == -signal.SIGKILL
    assert time.monotonic() - begun < 20
    assert nursery.do(add, 1, 1, timeout_s=20).result == 2  # and the next one is well


def leave_a_process():
    process = subprocess.Popen(["sleep", "1000"])
    return process.pid


def test_what_a_child_has_started_goes_with_it(nursery) -> None:
    begun = time.monotonic()
    pid = nursery.do(leave_a_process, timeout_s=50).result
    assert time.monotonic() - begun < 40  # though it holds what the child wrote to
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        os.sched_yield()
    assert not Path(f"/proc/{pid}").exists()


def hand_back_a_lock():
    return threading.Lock()


def test_what_cannot_be_sent_is_refused_on_either_side(nursery) -> None:
    with pytest.raises(ArgumentError, match=r"lambda.*expected functions at the top of a module"):
        nursery.do(lambda: None, timeout_s=20)
    assert "cannot pickle" in nursery.do(hand_back_a_lock, timeout_s=20).failure


def test_what_another_process_cannot_import_is_refused(nursery, tmp_path: Path) -> None:
    module = type(sys)("made_here")
    exec("def job(): pass", vars(module))  # noqa: S102 - our own
    module.job.__module__ = "made_here"
    sys.modules["made_here"] = module
    try:
        with pytest.raises(ArgumentError, match=r"No module named 'made_here'; expected functions"):
            nursery.do(module.job, timeout_s=20)
    finally:
        del sys.modules["made_here"]
    assert nursery.do(add, 1, 1, timeout_s=20).result == 2
