"""The guard finds what blocks an event loop, as the sleeps of these tests do, and what is left."""

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import chain, repeat
from pathlib import Path

import anyio
import pytest

from aloop import MainLoop
from aloop.errors import ArgumentError
from aloop.tasks import STREAM_TASK, create_hidden_task
from aloop.testing.guard import Guard, LeftBehindError, guarded, watching
from aloop.testing.virtual_loop import run_virtual

# Or what is planted here would be found by that of the suite too.
pytestmark = pytest.mark.aloop_guard(
    block_s=None, tasks=False, threads=False, files=False, processes=False, signals=False
)


@pytest.fixture
def last():
    """What is done at the end, when the guard has looked."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def loop(last):
    loop = asyncio.new_event_loop()
    last.callback(loop.close)
    return loop


def found_by(guard, body, *args) -> list[str]:
    """Give what a guard finds in a body, without its title."""
    with pytest.raises(LeftBehindError) as info, guard:
        body(*args)
    return texts_of(info.value)


def texts_of(error: LeftBehindError) -> list[str]:
    lines = str(error).splitlines()
    assert all(line.startswith("the guard: ") for line in lines)
    return [line.removeprefix("the guard: ") for line in lines]


# ------------------------------------------------------------------ blocked event loops


async def sleepy(seconds: float) -> None:
    await asyncio.sleep(0)
    time.sleep(seconds)
    await asyncio.sleep(0)


def test_a_task_that_blocks_is_named_with_where_it_stood() -> None:
    async def main() -> None:
        await asyncio.create_task(sleepy(0.15), name="the culprit")

    (text,) = found_by(guarded(block_s=0.05), asyncio.run, main())
    assert text.startswith("the event loop was blocked for 0.1")
    assert "the task 'the culprit', which was in sleepy (" in text
    line = sleepy.__code__.co_firstlineno + 2
    assert f"test_guard.py:{line}); expected at most 0.05 s; " in text


def test_a_function_that_a_coroutine_calls_is_named_with_it() -> None:
    def helper() -> None:
        time.sleep(0.15)

    async def main() -> None:
        helper()

    (text,) = found_by(guarded(block_s=0.05), asyncio.run, main())
    assert "main > " in text
    assert "helper (" in text


def test_a_callback_that_blocks_is_named() -> None:
    def late() -> None:
        time.sleep(0.15)

    async def main() -> None:
        asyncio.get_running_loop().call_soon(late)
        await asyncio.sleep(0)

    (text,) = found_by(guarded(block_s=0.05), asyncio.run, main())
    assert "the callback test_a_callback_that_blocks_is_named.<locals>.late" in text


@pytest.mark.parametrize("ends", [True, False])
def test_what_nobody_could_look_at_is_named_by_its_task(monkeypatch, ends) -> None:
    """As where a call into a library keeps Python's lock."""
    monkeypatch.setattr(watching, "_note_places", lambda: None)

    async def main() -> None:
        time.sleep(0.1)
        if not ends:
            await asyncio.sleep(0)

    (text,) = found_by(guarded(block_s=0.05), asyncio.run, main())
    if ends:
        line = main.__code__.co_firstlineno
        assert f".main ({__file__}:{line});" in text
    else:
        assert ".main > sleep (" in text
        assert ") now;" in text


def test_many_short_steps_block_nothing() -> None:
    async def main() -> None:
        for _ in range(10):
            time.sleep(0.01)
            await asyncio.sleep(0)

    with guarded(block_s=0.1):
        asyncio.run(main())


def test_a_wait_is_no_block() -> None:
    with guarded(block_s=0.05):
        asyncio.run(asyncio.sleep(0.15))


def test_virtual_time_is_no_real_one() -> None:
    with guarded(block_s=0.05):
        run_virtual(asyncio.sleep(3_600), seed=1)
    (text,) = found_by(guarded(block_s=0.05), run_virtual, sleepy(0.1))
    assert "which was in sleepy (" in text


@pytest.mark.parametrize(("waited_s", "count"), [(0.1, 0), (0.0, 1)])
def test_what_the_system_gave_to_others_is_left_out(monkeypatch, waited_s, count) -> None:
    waited = chain([1.0, 1.0 + waited_s], repeat(2.0))
    monkeypatch.setattr(watching, "_kept_waiting_s", lambda: next(waited))
    guard = Guard(block_s=0.1)
    asyncio.run(sleepy(0.15))
    assert len(guard.end()) == count


def test_an_event_loop_in_a_thread_of_the_body_is_watched_too() -> None:
    def body() -> None:
        thread = threading.Thread(target=lambda: asyncio.run(sleepy(0.1)))
        thread.start()
        thread.join()

    assert len(found_by(guarded(block_s=0.05), body)) == 1


def test_an_event_loop_in_a_thread_from_before_is_not() -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()
        with guarded(block_s=0.05):
            pool.submit(lambda: asyncio.run(sleepy(0.1))).result()


def test_each_of_two_guards_has_its_own_time() -> None:
    with guarded(block_s=10):
        assert len(found_by(guarded(block_s=0.05), asyncio.run, sleepy(0.1))) == 1
        asyncio.run(sleepy(0.1))
    found = found_by(guarded(block_s=0.05), lambda: guarded(block_s=10)(asyncio.run)(sleepy(0.1)))
    assert len(found) == 1


def unguard(monkeypatch) -> None:
    """Have it as if this suite had no guard."""
    monkeypatch.setattr(watching, "_watches", ())
    monkeypatch.setattr(watching, "_is_in_place", False)
    monkeypatch.setattr(asyncio.Handle, "_run", watching._run_handle)


def test_without_a_guard_asyncio_is_as_it_was(monkeypatch) -> None:
    unguard(monkeypatch)
    plain = asyncio.Handle._run
    with guarded():
        with guarded():
            pass
        assert asyncio.Handle._run is watching._run_watched
    assert asyncio.Handle._run is plain


@pytest.mark.parametrize("is_suite_guarded", [False, True])
def test_who_has_wrapped_handles_too_is_left_alone(monkeypatch, is_suite_guarded) -> None:
    if not is_suite_guarded:
        unguard(monkeypatch)
    monkeypatch.setattr(asyncio.Handle, "_run", asyncio.Handle._run)  # put back at the end
    ran: list[asyncio.Handle] = []
    with guarded():
        watched = asyncio.Handle._run

        def wrapped(handle: asyncio.Handle) -> None:
            ran.append(handle)
            watched(handle)

        asyncio.Handle._run = wrapped
    assert asyncio.Handle._run is wrapped
    with guarded(block_s=0.05):
        asyncio.run(asyncio.sleep(0))
        assert ran
    assert len(found_by(guarded(block_s=0.05), asyncio.run, sleepy(0.1))) == 1
    assert asyncio.Handle._run is wrapped


# ------------------------------------------------------------------ as a decorator


async def test_a_coroutine_function_is_guarded_from_its_first_step_to_its_last() -> None:
    kept: list[asyncio.Task[None]] = []

    @guarded(block_s=0.05)
    async def main(seconds: float, *, leaves: bool) -> str:
        time.sleep(seconds)
        if leaves:
            kept.append(asyncio.create_task(wait_for_ever(), name="left"))
        await asyncio.sleep(0)
        time.sleep(seconds)
        return "done"

    assert await main(0, leaves=False) == "done"
    with pytest.raises(LeftBehindError) as info:
        await main(0.15, leaves=True)
    first, second, task = texts_of(info.value)
    assert first.startswith("the event loop was blocked for ")
    assert second.startswith("the event loop was blocked for ")
    assert task.startswith("the task 'left' is not done")
    kept[0].cancel()
    await asyncio.wait(kept)


async def test_what_a_guarded_coroutine_function_raises_goes_up_with_a_note() -> None:
    @guarded(block_s=0.05)
    async def fails() -> None:
        time.sleep(0.15)
        raise KeyError

    with pytest.raises(KeyError) as info:
        await fails()
    assert info.value.__notes__[0].startswith("the guard: the event loop was blocked for ")


def test_generator_functions_are_refused() -> None:
    def generates():
        yield

    async def generates_too():
        yield

    for function in (generates, generates_too):
        with pytest.raises(ArgumentError, match="a generator function; expected"):
            guarded()(function)


# ------------------------------------------------------------------ tasks


async def wait_for_ever() -> None:
    await asyncio.Event().wait()


def test_a_task_that_is_left_is_named_with_where_it_is(loop) -> None:
    async def leave() -> asyncio.Task[None]:
        task = asyncio.create_task(wait_for_ever(), name="the one that waits")
        await asyncio.sleep(0)
        return task

    (text,) = found_by(guarded(), lambda: loop.run_until_complete(leave()))
    assert text.startswith("the task 'the one that waits' is not done; it is in wait_for_ever > ")
    for task in asyncio.all_tasks(loop):
        task.cancel()
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(task)


def test_a_task_that_had_not_begun_is_left_too(loop) -> None:
    kept: list[asyncio.Task[None]] = []  # or it would be collected

    def body() -> None:
        kept.append(loop.create_task(wait_for_ever(), name="before"))
        loop.run_until_complete(asyncio.sleep(0))

    (text,) = found_by(guarded(), body)
    assert "'before' is not done; it is in wait_for_ever" in text
    end_all(loop)


def test_a_hidden_task_is_found(loop) -> None:
    async def leave() -> None:
        kept.append(create_hidden_task(wait_for_ever(), name="hidden"))
        await asyncio.sleep(0)

    kept: list[asyncio.Task[None]] = []
    (text,) = found_by(guarded(), lambda: loop.run_until_complete(leave()))
    assert "the task 'hidden' is not done" in text
    kept[0].cancel()
    with suppress(asyncio.CancelledError):
        loop.run_until_complete(kept[0])


def end_all(loop) -> None:
    for task in asyncio.all_tasks(loop):
        task.cancel()
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(task)


def test_a_task_from_before_may_go_on(loop) -> None:
    loop.create_task(wait_for_ever())
    loop.run_until_complete(asyncio.sleep(0))
    with guarded():
        loop.run_until_complete(asyncio.sleep(0))
    end_all(loop)


async def test_it_can_be_used_in_a_coroutine() -> None:
    before = asyncio.create_task(wait_for_ever())
    with guarded():
        await asyncio.sleep(0)
    with pytest.raises(LeftBehindError, match="the task 'inside' is not done"), guarded():
        inside = asyncio.create_task(wait_for_ever(), name="inside")
        await asyncio.sleep(0)
    for task in (before, inside):
        task.cancel()
    await asyncio.wait([before, inside])


async def test_a_generator_that_nobody_holds_is_the_event_loops_to_close() -> None:
    async def numbers():
        try:
            yield 1
        finally:
            await asyncio.sleep(0)

    with guarded():
        async for _ in numbers():
            break
    await asyncio.sleep(0.01)


def test_tasks_that_the_end_of_an_event_loop_has_cancelled_are_not_left() -> None:
    async def main() -> None:
        kept.append(asyncio.create_task(wait_for_ever()))

    kept: list[object] = []
    with guarded():
        asyncio.run(main())


# ------------------------------------------------------------------ threads


def test_a_thread_that_is_left_is_named_with_where_it_is(last) -> None:
    release = threading.Event()
    thread = threading.Thread(target=release.wait, name="the one that waits")

    def end() -> None:
        release.set()
        thread.join()

    last.callback(end)
    (text,) = found_by(guarded(patience_s=0.1), thread.start)
    assert text.startswith("the thread 'the one that waits' lives; it is in Condition.wait (")


def test_a_thread_that_was_told_to_end_has_time_for_it() -> None:
    release = threading.Event()
    with guarded():
        threading.Thread(target=release.wait).start()
        threading.Timer(0.1, release.set).start()


def test_a_thread_that_ends_with_what_it_belongs_to_is_not_left() -> None:
    class Owner:
        def __init__(self) -> None:
            self.release = threading.Event()
            self.me = self
            threading.Thread(target=self.release.wait).start()

        def __del__(self) -> None:
            self.release.set()

    with guarded():
        Owner()


def test_the_threads_of_an_event_loop_end_with_it(last) -> None:
    loop = asyncio.new_event_loop()
    with guarded():
        loop.run_until_complete(asyncio.to_thread(int))
    loop.close()

    (text,) = found_by(
        guarded(patience_s=0.1),
        lambda: last.enter_context(ThreadPoolExecutor(1)).submit(int).result(),
    )
    assert "ThreadPoolExecutor" in text


def test_the_thread_that_tqdm_keeps_is_not_left(last) -> None:
    release = threading.Event()
    thread = threading.Thread(target=release.wait, name="tqdm_monitor")
    last.callback(lambda: (release.set(), thread.join()))
    with guarded(patience_s=0):
        thread.start()


def test_the_threads_of_a_loop_of_uvloop_end_with_it() -> None:
    uvloop = pytest.importorskip("uvloop")
    loop = uvloop.new_event_loop()
    with guarded(patience_s=0, files=False):
        loop.run_until_complete(asyncio.to_thread(int))
    loop.close()


def test_anyios_threads_end_with_their_task() -> None:
    with guarded():
        anyio.run(anyio.to_thread.run_sync, int)


async def test_anyios_threads_may_live_as_long_as_their_task() -> None:
    with guarded(patience_s=0):
        await anyio.to_thread.run_sync(int)


# ------------------------------------------------------------------ files, processes, signals


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="nothing tells them")
class TestFiles:
    def test_a_file_that_is_left_is_named(self, last, tmp_path) -> None:
        path = tmp_path / "left.txt"
        (text,) = found_by(guarded(), lambda: last.enter_context(path.open("w")))
        assert text.endswith(f"is open, and leads to {path}; close it")

    def test_another_file_of_the_same_number_is_left(self, tmp_path) -> None:
        number = os.open(tmp_path / "before", os.O_CREAT)

        def body() -> None:
            os.close(number)
            other = os.open(tmp_path / "after", os.O_CREAT)
            assert other == number

        (text,) = found_by(guarded(), body)
        assert text.startswith(f"the file descriptor {number} is open, and leads to {tmp_path}/aft")
        os.close(number)

    def test_a_file_from_before_may_lose_its_name(self, tmp_path) -> None:
        with (tmp_path / "before").open("w"), guarded():
            (tmp_path / "before").unlink()

    def test_what_goes_with_the_garbage_is_not_left(self) -> None:
        class Holder:
            def __init__(self) -> None:
                self.me = self
                self.ends = os.pipe()

            def __del__(self) -> None:
                for end in self.ends:
                    os.close(end)

        with guarded():
            Holder()

    def test_an_event_loop_that_is_left_open_is_found(self, last) -> None:
        def body() -> None:
            loop = asyncio.new_event_loop()
            last.callback(loop.close)
            loop.run_until_complete(asyncio.sleep(0))

        (text,) = found_by(guarded(), body)
        assert text.startswith("the event loop <_UnixSelectorEventLoop running=False closed=False")
        assert text.endswith("is open; close it")

    def test_a_file_beside_an_open_event_loop_is_named_too(self, last, tmp_path) -> None:
        def body() -> None:
            last.callback(asyncio.new_event_loop().close)
            last.enter_context((tmp_path / "left").open("w"))

        loop, file = found_by(guarded(), body)
        assert loop.startswith("the event loop ")
        assert file.endswith("left; close it")

    def test_what_multiprocessing_keeps_for_its_life_is_not_left(self) -> None:
        code = (
            "import multiprocessing, time\n"
            "from multiprocessing.shared_memory import SharedMemory\n"
            "from aloop.testing.guard import guarded\n"
            "if __name__ == '__main__':\n"
            "    for method in ('spawn', 'forkserver'):\n"
            "        with guarded():\n"
            "            child = multiprocessing.get_context(method).Process(target=int)\n"
            "            child.start()\n"
            "            child.join()\n"
            "            child.close()\n"
        )
        run_program(code)


def run_program(code: str, *options: str) -> None:
    """Run a program of its own, which has a file, for `multiprocessing` imports it."""
    done = subprocess.run(
        [sys.executable, *options, "-c", code], capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="nothing tells them")
class TestChildren:
    def test_a_child_that_runs_is_named(self, last) -> None:
        code = "print(1, flush=True); input()"
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}

        def body() -> None:
            child = last.enter_context(subprocess.Popen([sys.executable, "-c", code], **pipes))
            last.callback(child.kill)
            child.stdout.readline()

        found = found_by(guarded(), body)
        assert any("the child process" in text and f"{code};" in text for text in found), found

    def test_a_child_that_nobody_waited_for_is_found(self, last) -> None:
        reading, writing = os.pipe()
        last.callback(os.close, reading)

        def body() -> None:
            child = subprocess.Popen([sys.executable, "-c", ""], pass_fds=[writing])
            os.close(writing)
            assert os.read(reading, 1) == b""  # it has ended, or will in a moment
            last.callback(child.wait)
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

        (text,) = found_by(guarded(), body)
        assert "has ended, and was not waited for" in text

    def test_one_that_was_waited_for_is_not(self) -> None:
        with guarded():
            subprocess.run([sys.executable, "-c", ""], check=True)


def test_a_signal_handler_that_is_not_put_back_is_named(last) -> None:
    def handler(number, frame) -> None: ...

    for number in (signal.SIGINT, signal.SIGTERM):
        before = signal.getsignal(number)
        last.callback(signal.signal, number, before)
        (text,) = found_by(guarded(), signal.signal, number, handler)
        assert text.startswith(f"the handler of {number.name} is <function test_a_signal")
        with guarded():
            signal.signal(number, before)
            signal.signal(number, handler)


# ------------------------------------------------------------------ the guard itself


def test_what_the_body_raises_goes_up_with_the_rest_as_a_note(last, tmp_path) -> None:
    error = KeyError("of the body")
    with pytest.raises(KeyError) as info, guarded():
        last.enter_context((tmp_path / "left").open("w"))
        raise error
    assert info.value is error
    assert error.__notes__[0].startswith("the guard: the file descriptor")


@pytest.mark.parametrize("error", [StopIteration(), KeyboardInterrupt(), GeneratorExit()])
def test_what_the_body_raises_goes_up_as_it_is(error) -> None:
    with pytest.raises(type(error)) as info, guarded():
        raise error
    assert info.value is error
    assert not hasattr(error, "__notes__")


def test_all_that_is_wrong_is_named(last, tmp_path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    last.callback(signal.signal, signal.SIGTERM, before)

    def body() -> None:
        asyncio.run(sleepy(0.1))
        last.enter_context((tmp_path / "left").open("w"))
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    assert len(found_by(guarded(block_s=0.05), body)) == 3


LEFT = ["tasks", "threads", "files", "processes", "signals"]


@pytest.mark.parametrize("left_out", [*LEFT, "block_s"])
def test_each_kind_can_be_left_out(left_out, last, loop, tmp_path) -> None:
    release = threading.Event()
    thread = threading.Thread(target=release.wait)
    last.callback(lambda: (release.set(), thread.join()))
    last.callback(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    last.callback(end_all, loop)
    tasks: list[asyncio.Task[None]] = []  # or the guard has it collected

    def body() -> None:
        tasks.append(loop.create_task(wait_for_ever()))
        loop.run_until_complete(sleepy(0.1))
        thread.start()
        last.enter_context((tmp_path / "left").open("w"))
        child = subprocess.Popen([sys.executable, "-c", ""])
        last.callback(child.wait)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    words = {
        "block_s": "blocked",
        "tasks": "is not done",
        "threads": "the thread ",
        "files": "the file descriptor ",
        "processes": "the child process ",
        "signals": "the handler ",
    }
    options = {name: name != left_out for name in LEFT}
    options["block_s"] = None if left_out == "block_s" else 0.05
    text = "\n".join(found_by(guarded(**options, patience_s=0.1), body))
    found = {name for name, word in words.items() if word in text}
    assert found == set(words) - {left_out}


def test_an_inner_guard_tells_what_is_left_at_its_end_and_the_outer_one_too(last, tmp_path) -> None:
    def inner() -> None:
        assert len(found_by(guarded(), lambda: last.enter_context((tmp_path / "l").open("w")))) == 1

    assert len(found_by(guarded(), inner)) == 1


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("leaves", [True, False])
def test_the_last_of_guards_side_by_side_tells_what_all_have_left(
    first, leaves, last, tmp_path
) -> None:
    """The other may have been about to close what is open when one of them ends."""
    opened = threading.Event()
    found: list[list[str]] = [[], []]
    turn = [threading.Event(), threading.Event()]
    begun = threading.Barrier(2, timeout=10)

    def guard(number: int) -> None:
        begun.wait()
        try:
            with guarded():
                begun.wait()
                if number == 0:
                    file = (tmp_path / "file").open("w")
                    if leaves:
                        last.callback(file.close)
                    opened.set()
                opened.wait()
                turn[number].wait(10)
                if number == 0 and not leaves:
                    file.close()
        except LeftBehindError as error:
            found[number] = texts_of(error)
        turn[1 - number].set()

    threads = [threading.Thread(target=guard, args=[number]) for number in (0, 1)]
    for thread in threads:
        thread.start()
    turn[first].set()
    for thread in threads:
        thread.join()
    assert found[first] == []
    assert len(found[1 - first]) == leaves


def test_a_guard_in_a_thread_of_anothers_body_is_an_inner_one(last, tmp_path) -> None:
    found: list[list[str]] = []

    def inner() -> None:
        found.append(found_by(guarded(), lambda: last.enter_context((tmp_path / "l").open("w"))))

    def body() -> None:
        thread = threading.Thread(target=inner)
        thread.start()
        thread.join()

    assert len(found_by(guarded(), body)) == len(found[0]) == 1


def test_a_fork_in_the_body_is_one_of_a_process_with_one_thread() -> None:
    """The thread of the guard ends before it, and goes on after it."""
    run_program(
        "import asyncio, os, time\n"
        "from aloop.testing.guard import LeftBehindError, guarded\n"
        "async def main():\n"
        "    await asyncio.sleep(0.02)\n"
        "    pid = os.fork()\n"
        "    if not pid:\n"
        "        os._exit(len(os.listdir('/proc/self/task')))\n"
        "    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1\n"
        "    await asyncio.sleep(0)\n"
        "    time.sleep(0.1)\n"
        "try:\n"
        "    with guarded(block_s=0.05):\n"
        "        asyncio.run(main())\n"
        "except LeftBehindError as error:\n"
        "    assert 'which was in main (' in str(error), error\n"
        "else:\n"
        "    raise AssertionError\n",
        "-W",
        "error",
    )


def test_children_that_were_forked_can_be_guarded_themselves() -> None:
    context = multiprocessing.get_context("fork")
    with guarded(block_s=0.05):
        asyncio.run(asyncio.sleep(0))
        child = context.Process(target=_guard_in_a_child)
        child.start()
        child.join(20)
        code = child.exitcode
        child.close()
    assert code == 0


def _guard_in_a_child() -> None:
    (text,) = found_by(guarded(block_s=0.05), asyncio.run, sleepy(0.1))
    assert "which was in sleepy (" in text


@pytest.mark.parametrize("block_s", [0, -1, True, "1", float("nan")])
def test_a_time_that_is_none_is_refused(block_s) -> None:
    with pytest.raises(ArgumentError, match=r"block_s is .*; expected seconds, more than 0"):
        guarded(block_s=block_s).__enter__()


@pytest.mark.parametrize("patience_s", [None, -1, float("inf")])
def test_a_patience_without_end_is_refused(patience_s) -> None:
    with pytest.raises(ArgumentError, match="patience_s is"):
        guarded(patience_s=patience_s).__enter__()
    with guarded():  # nothing of it is under way
        pass


@pytest.mark.parametrize("name", LEFT)
@pytest.mark.parametrize("flag", ["no", 0, 1, None])
def test_a_flag_that_is_none_is_refused(name, flag) -> None:
    message = rf"{name} is {flag!r}; expected True or False"
    with pytest.raises(ArgumentError, match=message), guarded(**{name: flag}):
        pass


async def test_a_batch_that_a_run_left_may_be_waited_for() -> None:
    asked, never = asyncio.Event(), asyncio.Event()

    async def quiet() -> AsyncIterator[int]:
        yield 1
        asked.set()
        await never.wait()

    with guarded():
        loop = MainLoop(lambda batch: None, quiet, signals="off")
        run = asyncio.create_task(loop.run())
        await asked.wait()
        loop.request_finish("batch")
        await run
        assert STREAM_TASK in {task.get_name() for task in asyncio.all_tasks()}
