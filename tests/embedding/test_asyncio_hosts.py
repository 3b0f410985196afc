"""A run inside an asyncio program: its caller sees what any well-behaved coroutine would show."""

import asyncio
import logging
import signal
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import anyio
import pytest
from page import code
from page_programs import changed, last_row, running

from aloop import FinishAfter, MainLoop, SQLiteLog, TrainingExtension
from aloop.testing.recorder import Recorder


class Job:
    """A run of two batches that says when it is in the second step, or waits for that batch."""

    def __init__(self, directory: Path, place: str, *extensions: TrainingExtension, **options: Any):
        self.place = place
        self.work_s = 0.05
        """How long the second step takes, from when it is reached."""
        self.path = directory / "run.sqlite"
        self.reached = asyncio.Event()
        self.in_stock = asyncio.Event()
        self.trained: list[int] = []
        self.recorder = Recorder()
        self.loop = MainLoop(
            self.step,
            self.batches,
            log=SQLiteLog(self.path),
            extensions=[FinishAfter(after_n_epochs=1), self.recorder, *extensions],
            **options,
        )

    async def batches(self):
        yield 1
        if self.place == "stream":
            self.reached.set()
            await self.in_stock.wait()
        yield 2

    async def step(self, batch: int) -> None:
        if batch == 2 and self.place == "step":
            self.reached.set()
            until = time.monotonic() + self.work_s
            while time.monotonic() < until:  # places in it at which it could be cancelled
                await asyncio.sleep(0.005)
        self.trained.append(batch)

    async def when_reached(self, then: Callable[[], object]) -> None:
        await self.reached.wait()
        then()

    async def fail_when_reached(self) -> None:
        await self.reached.wait()
        raise ConnectionError("the sibling")

    def check_cancelled(self) -> None:
        """See that the run has settled, told its extensions and committed its log."""
        done = 2 if self.place == "step" else 1
        assert self.trained == [1, 2][:done]
        assert self.recorder.callbacks[-2:] == ["after_batch", "on_interrupt"]
        assert self.recorder.callbacks.count("on_interrupt") == 1
        row = last_row(self.path)
        assert row == {
            "batch_interrupt_received": True,
            "interrupt_cause": "cancelled",
            "iterations_done": done,
            "epochs_done": 0,
        }
        current = asyncio.current_task()
        assert current is not None
        assert current.cancelling() == 0

    async def go_on(self) -> None:
        """See that the same training goes on in a second run, with nothing lost or done twice."""
        self.in_stock.set()
        async with asyncio.timeout(10):
            await self.loop.run()
        assert self.trained == [1, 2]
        assert self.loop.status["epochs_done"] == 1
        assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.fixture(params=["step", "stream"])
async def job(request: pytest.FixtureRequest, tmp_path: Path) -> Job:
    """A run that is to be cancelled in mid-step, and one while it waits for a batch."""
    return Job(tmp_path, request.param)


async def test_asyncio_timeout_gives_a_timeout_error(job: Job) -> None:
    async def caller() -> None:
        async with asyncio.timeout(None) as timeout, asyncio.TaskGroup() as group:
            group.create_task(job.when_reached(lambda: _end_now(timeout)))
            await job.loop.run()

    with pytest.raises(TimeoutError):
        await caller()
    job.check_cancelled()
    await job.go_on()


async def test_an_outer_timeout_is_no_error_of_an_inner_one(job: Job) -> None:
    seen: list[type[BaseException]] = []

    async def caller() -> None:
        async with asyncio.timeout(None) as outer, asyncio.TaskGroup() as group:
            group.create_task(job.when_reached(lambda: _end_now(outer)))
            try:
                async with asyncio.timeout(60):
                    await job.loop.run()
            except BaseException as error:
                seen.append(type(error))
                raise

    with pytest.raises(TimeoutError):
        await caller()
    assert seen == [asyncio.CancelledError]
    job.check_cancelled()
    await job.go_on()


async def test_wait_for_gives_a_timeout_error(job: Job) -> None:
    job.work_s = 0.8  # beyond the timeout, whenever the run begins with it
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(job.loop.run(), 0.4)
    job.check_cancelled()
    await job.go_on()


async def test_a_failing_sibling_in_a_task_group_is_the_only_error(job: Job) -> None:
    errors: list[Exception] = []

    async def beside_a_sibling(work: Coroutine[Any, Any, object]) -> int:
        try:
            async with asyncio.TaskGroup() as group:
                task = group.create_task(work)
                group.create_task(job.fail_when_reached())
        except ExceptionGroup as error:
            errors.extend(error.exceptions)
        assert task.cancelled()
        return asyncio.current_task().cancelling()  # type: ignore[union-attr]

    cancelling = await asyncio.create_task(beside_a_sibling(job.loop.run()))
    assert [type(error) for error in errors] == [ConnectionError]
    job.check_cancelled()
    # In Python 3.11 it is 1 here, whatever the other task was.
    asleep = beside_a_sibling(asyncio.Event().wait())
    assert cancelling == await asyncio.create_task(asleep)
    await job.go_on()


async def test_a_failing_sibling_beside_a_run_in_the_body_is_the_only_error(job: Job) -> None:
    async def caller() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(job.fail_when_reached())
            await job.loop.run()

    with pytest.raises(ExceptionGroup) as raised:
        await caller()
    (error,) = raised.value.exceptions
    assert type(error) is ConnectionError
    job.check_cancelled()
    await job.go_on()


async def test_a_cancellation_that_is_taken_back_is_over(job: Job) -> None:
    current = asyncio.current_task()
    assert current is not None
    trigger = asyncio.create_task(job.when_reached(lambda: current.cancel("enough")))
    with pytest.raises(asyncio.CancelledError, match="enough"):
        await job.loop.run()
    await trigger
    assert current.cancelling() == 1
    current.uncancel()
    job.check_cancelled()
    await job.go_on()


async def test_anyio_move_on_after_catches_the_cancellation(job: Job) -> None:
    async with anyio.create_task_group() as group:
        with anyio.move_on_after(60) as scope:
            group.start_soon(job.when_reached, lambda: _end_now(scope))
            await job.loop.run()
    assert scope.cancelled_caught
    job.check_cancelled()
    await job.go_on()


async def test_anyio_fail_after_gives_a_timeout_error(job: Job) -> None:
    async def caller() -> None:
        async with anyio.create_task_group() as group:
            with anyio.fail_after(60) as scope:
                group.start_soon(job.when_reached, lambda: _end_now(scope))
                await job.loop.run()

    with pytest.raises(ExceptionGroup) as raised:  # the group's own doing
        await caller()
    (error,) = raised.value.exceptions
    assert type(error) is TimeoutError
    job.check_cancelled()
    await job.go_on()


async def test_a_failing_sibling_in_an_anyio_task_group_is_the_only_error(job: Job) -> None:
    async def caller() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(job.loop.run)
            group.start_soon(job.fail_when_reached)

    with pytest.raises(ExceptionGroup) as raised:
        await caller()
    (error,) = raised.value.exceptions
    assert type(error) is ConnectionError
    job.check_cancelled()
    await job.go_on()


async def test_an_anyio_scope_that_is_cancelled_before_the_run_does_not_train(tmp_path) -> None:
    job = Job(tmp_path, "step")
    with anyio.CancelScope() as scope:
        scope.cancel()
        await job.loop.run()
    assert scope.cancelled_caught
    assert job.trained == []
    await job.go_on()


def _end_now(timeout: asyncio.Timeout | anyio.CancelScope) -> None:
    if isinstance(timeout, asyncio.Timeout):
        timeout.reschedule(asyncio.get_running_loop().time())
    else:
        timeout.deadline = anyio.current_time()


class SlowCleanUp(TrainingExtension):
    """Takes 0.8 s to clean up."""

    is_done = False

    async def on_interrupt(self) -> None:
        await asyncio.sleep(0.8)
        self.is_done = True


async def test_a_cancelled_scope_does_not_spin_while_the_run_cleans_up(tmp_path) -> None:
    slow = SlowCleanUp()
    job = Job(tmp_path, "stream", slow)
    async with anyio.create_task_group() as group:
        with anyio.CancelScope() as scope:
            group.start_soon(job.when_reached, scope.cancel)
            began = time.process_time()
            await job.loop.run()
    assert time.process_time() - began < 0.3
    assert slow.is_done
    job.check_cancelled()
    await job.go_on()


@pytest.mark.parametrize("in_scope", [False, True])
async def test_many_cancellations_neither_spin_nor_cut_the_clean_up_short(
    in_scope: bool, tmp_path
) -> None:
    slow = SlowCleanUp()
    job = Job(tmp_path, "stream", slow)

    async def run() -> None:
        with anyio.CancelScope() as scope:
            if in_scope:
                asyncio.create_task(job.when_reached(scope.cancel))  # noqa: RUF006
            await job.loop.run()

    began = time.process_time()
    task = asyncio.create_task(run())
    await job.reached.wait()
    for message in ("first", "second", "third"):
        task.cancel(message)
        await asyncio.sleep(0.02)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.process_time() - began < 0.3
    assert slow.is_done
    job.check_cancelled()
    await job.go_on()


async def test_of_many_cancellations_the_first_one_goes_up(tmp_path) -> None:
    job = Job(tmp_path, "step")
    seen: list[BaseException] = []

    async def run() -> None:
        try:
            await job.loop.run()
        except asyncio.CancelledError as error:
            seen.append(error)
            raise

    task = asyncio.create_task(run())
    await job.reached.wait()
    for message in ("first", "second"):
        task.cancel(message)
        await asyncio.sleep(0)
    await asyncio.wait([task])
    assert [error.args for error in seen] == [("first",)]
    assert task.cancelling() == 2  # the run took none of them back


# Programs, and what becomes of a run at their ends.


def test_a_program_whose_main_returns_lets_a_run_in_the_background_settle(tmp_path) -> None:
    job: Job

    async def main() -> None:
        nonlocal job
        job = Job(tmp_path, "step")
        asyncio.create_task(job.loop.run())  # noqa: RUF006 - this is the case
        await job.reached.wait()

    asyncio.run(main())
    assert job.trained == [1, 2]
    row = last_row(job.path)
    assert (row["iterations_done"], row["interrupt_cause"]) == (2, "cancelled")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_program_whose_main_raises_lets_a_run_in_the_background_settle(tmp_path) -> None:
    job: Job

    async def main() -> None:
        nonlocal job
        job = Job(tmp_path, "step")
        asyncio.create_task(job.loop.run())  # noqa: RUF006 - this is the case
        await job.fail_when_reached()

    with pytest.raises(ConnectionError):
        asyncio.run(main())
    assert job.trained == [1, 2]
    assert last_row(job.path)["interrupt_cause"] == "cancelled"


def test_a_program_that_ends_leaves_a_quiet_stream_at_once(tmp_path) -> None:
    job: Job

    async def main() -> None:
        nonlocal job
        job = Job(tmp_path, "stream")
        asyncio.create_task(job.loop.run())  # noqa: RUF006 - this is the case
        await job.reached.wait()

    began = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - began < 5  # of a grace of 30
    assert last_row(job.path)["interrupt_cause"] == "cancelled"
    assert job.recorder.callbacks[-1] == "on_interrupt"


@pytest.mark.parametrize("place", ["step", "stream"])
def test_without_handlers_of_its_own_ctrl_c_is_that_of_asyncio_run(place: str, tmp_path) -> None:
    job: Job

    async def main() -> None:
        nonlocal job
        job = Job(tmp_path, place, signals="off")
        press = job.when_reached(lambda: signal.raise_signal(signal.SIGINT))
        trigger = asyncio.create_task(press)
        try:
            await job.loop.run()
        finally:
            await trigger

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    row = last_row(job.path)
    assert row["iterations_done"] == (2 if place == "step" else 1)
    assert row["interrupt_cause"] == "cancelled"
    assert job.recorder.callbacks[-1] == "on_interrupt"


def test_a_run_in_a_thread_is_asked_to_finish_from_another(tmp_path, caplog) -> None:
    caplog.set_level(logging.INFO, "aloop")
    event_loops: list[asyncio.AbstractEventLoop] = []
    jobs: list[Job] = []
    is_reached = threading.Event()

    async def main() -> None:
        event_loops.append(asyncio.get_running_loop())
        jobs.append(Job(tmp_path, "stream"))
        async with asyncio.TaskGroup() as group:
            group.create_task(jobs[0].when_reached(is_reached.set))
            await jobs[0].loop.run()

    thread = threading.Thread(target=asyncio.run, args=(main(),), name="Thread-training")
    thread.start()
    assert is_reached.wait(10)
    event_loops[0].call_soon_threadsafe(jobs[0].loop.request_finish, "batch")
    thread.join(10)
    assert not thread.is_alive()
    row = last_row(tmp_path / "run.sqlite")
    assert row["interrupt_cause"] == "request_finish('batch')"
    assert row["training_finished"] is True
    said = [record.message for record in caplog.records if "do not stop this run" in record.message]
    assert said == ["signals do not stop this run: they reach the main thread alone"]


# The programs of the page.


def test_the_pages_program_with_a_timeout_ends_after_a_batch(tmp_path) -> None:
    text = changed(code("asyncio"), {"3600": "0.3"})
    with running(["program.py"], tmp_path, text) as program:
        assert program.end() == 0, program.output
    row = last_row(tmp_path / "run.sqlite")
    done = row.pop("iterations_done")
    assert program.output == f"the hour is over after batch {done}\n"
    assert row["interrupt_cause"] == "cancelled"
    assert "cost" in row


def test_the_pages_program_with_a_task_beside_the_run_ends_when_that_says_so(tmp_path) -> None:
    with running(["program.py"], tmp_path, code("asyncio", 1)) as program:
        assert program.end() == 0, program.output
    word, cost = program.output.split()
    assert word == "cost"
    assert float(cost) < 0.01


def test_the_pages_program_with_a_thread_ends_when_it_is_told_to(tmp_path) -> None:
    with running(["program.py"], tmp_path, code("asyncio", 2)) as program:
        assert program.end("\n") == 0, program.output
    row = last_row(tmp_path / "run.sqlite")
    assert program.output.endswith(f": {row['iterations_done']} batches\n")
    assert row["training_finished"] is True


STUCK = """
import asyncio, sys, threading
from aloop import MainLoop, SQLiteLog

def train(batch):
    if batch == 2:
        print("stuck", flush=True)
        threading.Event().wait()

async def main():
    loop = MainLoop(train, [1, 2, 3], log=SQLiteLog("run.sqlite"), grace_s=0.2)
    try:
        async with asyncio.timeout(0.5):
            await loop.run()
    except TimeoutError:
        print("timed out", flush=True)

asyncio.run(main())
"""


def test_a_worker_that_is_stuck_does_not_hold_up_the_exit(tmp_path) -> None:
    with running(["program.py"], tmp_path, STUCK) as program:
        program.wait_for("stuck")
        program.wait_for("timed out")
        began = time.monotonic()
        assert program.end() == 0, program.output
        assert time.monotonic() - began < 2
    assert "is left behind at work in its thread" in program.output
    row = last_row(tmp_path / "run.sqlite")
    assert (row["iterations_done"], row["step_abandoned"]) == (1, True)


CUT_OFF = """
import asyncio, gc, logging, signal, sys, threading
from aloop import FinishAfter, MainLoop, SQLiteLog

place, handler = sys.argv[1:]
logging.basicConfig(level="WARNING")

# aiosqlite's thread may be about to answer when its event loop is closed, and says so.
threading.excepthook = lambda args: args.exc_type is RuntimeError or threading.__excepthook__(args)

def own(number, frame):
    print("own handler", number)

if handler == "own":
    signal.signal(signal.SIGTERM, own)

async def batches():
    yield 1
    if place == "stream" and trained == [1]:
        trained.append("cut off")
        asyncio.get_running_loop().stop()
        await asyncio.Event().wait()
    yield 2

async def train(batch):
    if place == "step" and trained == [1]:
        trained.append("cut off")
        asyncio.get_running_loop().stop()
        await asyncio.Event().wait()
    trained.append(batch)

def train_in_worker(batch):
    if trained == [1]:
        trained.append("cut off")
        event_loop.call_soon_threadsafe(event_loop.stop)
    trained.append(batch)

def cut_off():
    try:
        event_loop.run_until_complete(loop.run())
    except RuntimeError as error:
        print(error)
    event_loop.close()

def new_loop():
    step = train_in_worker if place == "worker" else train
    finish = FinishAfter(after_n_epochs=1)
    return MainLoop(step, batches, log=SQLiteLog("run.sqlite"), extensions=[finish])

def handlers():
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

trained = []
before = handlers()
event_loop = asyncio.new_event_loop()
loop = new_loop()
cut_off()
"""

THREADS_END = """
for thread in threading.enumerate():
    if thread.name == "aloop stall guard":
        thread.join(20)  # until then it may keep what it has looked at
while loop._last_run.supervisor.has_left_something:
    pass  # the step, until the end of which another run is refused
"""

RUN_AGAIN = f"""
{THREADS_END}
asyncio.run(loop.run())
print("handlers are back:", handlers() == before)
print("trained", trained, loop.status["epochs_done"])
"""

COLLECT = f"""
{THREADS_END}
del loop
gc.collect()
print("handlers are back:", handlers() == before)
"""

HEAR = """
signal.raise_signal(signal.SIGTERM)
print("handlers are back:", handlers() == before)
"""


@pytest.mark.parametrize("place", ["step", "stream", "worker"])
def test_after_an_event_loop_was_closed_under_a_run_it_can_run_in_another(place, tmp_path) -> None:
    with running(["program.py", place, "own"], tmp_path, CUT_OFF + RUN_AGAIN) as program:
        assert program.end() == 0, program.output
    assert "Event loop stopped before Future completed." in program.output
    assert "handlers are back: True\n" in program.output
    assert "Traceback" not in program.output
    row = last_row(tmp_path / "run.sqlite")
    assert (row["training_finished"], row["epochs_done"]) == (True, 1)
    # asyncio itself says of the tasks that they were destroyed; the log was closed all the same.
    assert "ERROR:aloop" not in program.output


@pytest.mark.parametrize("handler", [pytest.param("own", marks=pytest.mark.slow), "pythons"])
@pytest.mark.parametrize("place", ["step", "stream", "worker"])
def test_a_run_whose_event_loop_was_closed_can_be_collected(place, handler, tmp_path) -> None:
    with running(["program.py", place, handler], tmp_path, CUT_OFF + COLLECT) as program:
        assert program.end() == 0, program.output
    assert "handlers are back: True\n" in program.output
    assert "Traceback" not in program.output
    # asyncio itself says of the tasks that they were destroyed; the log was closed all the same.
    assert "ERROR:aloop" not in program.output


def test_a_signal_after_an_event_loop_was_closed_under_a_run_is_the_programs(tmp_path) -> None:
    with running(["program.py", "step", "own"], tmp_path, CUT_OFF + HEAR) as program:
        assert program.end() == 0, program.output
    assert program.output.count(f"own handler {signal.SIGTERM:d}\n") == 1
    assert "handlers are back: True\n" in program.output
