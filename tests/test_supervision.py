"""Who waits for whom at the end of a run, how long, and what is said of what would not stop."""

import asyncio
import gc
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref

import anyio
import pytest

from aloop import (
    FinishAfter,
    MainLoop,
    RunState,
    SQLiteLog,
    TrainingAlgorithm,
    TrainingExtension,
    as_algorithm,
    read_log,
    run_in_worker,
)
from aloop.errors import AlreadyRunningError, JournalError
from aloop.supervision import ABANDONED_S
from aloop.testing.recorder import Recorder


async def no_op(batch: object) -> None:
    """Train on nothing."""


class Hang(TrainingExtension):
    """Waits for ever at a callback; swallows every cancellation when it is to."""

    def __init__(self, callback: str, *, swallows: bool = False) -> None:
        super().__init__()
        self.callback = callback
        self.swallows = swallows
        self.release = asyncio.Event()
        self.began = asyncio.Event()

    def handler(self, callback):
        return self.hang if callback == self.callback else None

    async def hang(self, *args: object) -> None:
        self.began.set()
        while not self.release.is_set():
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                if not self.swallows:
                    raise


async def outcome_of(loop: MainLoop) -> BaseException | None:
    """Run the loop and give what it raised: a task that raises an exit ends the event loop."""
    try:
        await loop.run()
    except BaseException as error:  # noqa: BLE001 - it is what is asked for
        return error
    return None


async def cancelled_once_hanging(loop: MainLoop, hang: Hang) -> float:
    """Cancel the run when the extension hangs, and give how long it took to end."""
    run = asyncio.create_task(loop.run())
    await hang.began.wait()
    begun = time.monotonic()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    return time.monotonic() - begun


CALLBACKS = ["before_training", "before_epoch", "before_batch", "after_batch", "after_epoch"]


@pytest.mark.parametrize("callback", CALLBACKS)
async def test_an_extension_that_hangs_is_given_up_after_the_grace(callback) -> None:
    hang = Hang(callback)
    loop = MainLoop(no_op, [1], extensions=[hang], grace_s=0.05)
    took_s = await cancelled_once_hanging(loop, hang)
    assert took_s < 0.05 + ABANDONED_S
    assert loop.log.current_row["step_abandoned"] is True
    assert loop.log.current_row["interrupt_cause"] == "cancelled"


@pytest.mark.parametrize("callback", ["on_interrupt", "after_training", "on_error"])
async def test_an_extension_that_hangs_at_the_end_is_given_up_after_the_grace(callback) -> None:
    async def step(batch: object) -> None:
        if callback == "on_error":
            raise ValueError
        if callback == "on_interrupt":
            loop.request_finish("batch")

    hang = Hang(callback)
    loop = MainLoop(step, [1], extensions=[hang, FinishAfter(after_n_epochs=1)], grace_s=0.05)
    took_s = await cancelled_once_hanging(loop, hang)
    assert took_s < 0.05 + ABANDONED_S
    assert loop.log.current_row["step_abandoned"] is True


@pytest.mark.parametrize("callback", ["after_batch", "on_interrupt"])
async def test_what_swallows_every_cancellation_is_left_behind_by_name(
    callback, caplog, tmp_path
) -> None:
    async def step(batch: object) -> None:
        if callback == "on_interrupt":
            loop.request_finish("batch")

    hang = Hang(callback, swallows=True)
    log = SQLiteLog(tmp_path / "log.sqlite")
    loop = MainLoop(step, [1, 2], extensions=[hang], grace_s=0.05, log=log)
    took_s = await cancelled_once_hanging(loop, hang)
    assert took_s < 0.05 + ABANDONED_S + 0.3
    (record,) = (record for record in caplog.records if record.levelno == logging.ERROR)
    assert "left behind in" in record.message
    assert "Hang.hang > Event.wait" in record.message
    with read_log(tmp_path / "log.sqlite") as written:
        assert written.current_row["step_abandoned"] is True
    hang.release.set()
    await asyncio.sleep(0)


async def test_what_was_left_behind_does_nothing_more_when_it_wakes(recorder) -> None:
    in_step, release = asyncio.Event(), asyncio.Event()

    async def step(batch: object) -> None:
        in_step.set()
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    loop = MainLoop(step, [1, 2, 3], extensions=[recorder], grace_s=0)
    run = asyncio.create_task(loop.run())
    await in_step.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    with pytest.raises(AlreadyRunningError, match="gave up is still under way"):
        await loop.run()
    seen = list(recorder.events)
    release.set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert recorder.events == seen
    assert loop.status["iterations_done"] == 0
    loop.extensions.append(FinishAfter(after_n_epochs=1))
    await loop.run()  # which is not refused any more
    assert loop.status["iterations_done"] == 2


async def test_a_second_run_is_refused_while_a_step_given_up_is_at_work_in_its_thread(
    caplog,
) -> None:
    release, in_step = threading.Event(), asyncio.Event()
    running = asyncio.get_running_loop()

    def stuck(batch: int) -> None:
        running.call_soon_threadsafe(in_step.set)
        release.wait()

    loop = MainLoop(stuck, [1], grace_s=0.05)
    run = asyncio.create_task(loop.run())
    await in_step.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert "stuck is left behind at work in its thread" in caplog.text
    with pytest.raises(AlreadyRunningError, match="wait for it, or make another loop"):
        await loop.run()
    release.set()


@pytest.mark.parametrize("presses", [3, 7])
async def test_three_cancels_within_40_ms_are_one(presses, recorder) -> None:
    in_step, go_on = asyncio.Event(), asyncio.Event()

    async def step(batch: object) -> None:
        in_step.set()
        await go_on.wait()

    loop = MainLoop(step, [1, 2], extensions=[recorder])
    run = asyncio.create_task(loop.run())
    await in_step.wait()
    for number in range(presses):
        run.cancel(f"cancel {number}")
        await asyncio.sleep(0.04 / presses)
    assert not run.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError, match="cancel 0"):
        await run
    assert recorder.callbacks.count("on_interrupt") == 1
    assert recorder.callbacks.count("after_batch") == 1
    assert run.cancelling() == presses  # nothing was uncancelled


async def test_a_cancel_during_the_final_flush_goes_up_when_all_is_written(tmp_path) -> None:
    class Log(SQLiteLog):
        async def close(self) -> None:
            if not cancelled:
                cancelled.append(run.cancel())
                await asyncio.sleep(0)
            await super().close()

    cancelled: list[bool] = []
    log = Log(tmp_path / "log.sqlite")
    loop = MainLoop(no_op, [1, 2], extensions=[FinishAfter(after_n_epochs=1)], log=log)
    run = asyncio.create_task(loop.run())
    with pytest.raises(asyncio.CancelledError):
        await run
    assert cancelled == [True]
    with read_log(tmp_path / "log.sqlite") as written:
        assert written[2]["training_finished"] is True


async def test_a_timeout_inside_a_step_is_the_steps_own() -> None:
    timeouts = []

    async def step(batch: object) -> None:
        try:
            async with asyncio.timeout(0.001):
                await asyncio.Event().wait()
        except TimeoutError:
            timeouts.append("asyncio")
        with anyio.move_on_after(0.001) as scope:
            await asyncio.Event().wait()
        if scope.cancelled_caught:
            timeouts.append("anyio")

    loop = MainLoop(step, [1, 2], extensions=[FinishAfter(after_n_epochs=1)])
    await loop.run()
    assert timeouts == ["asyncio", "anyio"] * 2
    assert loop.status["iterations_done"] == 2
    assert loop.status["batch_interrupt_received"] is False


async def test_every_task_being_cancelled_lets_the_step_in_flight_settle(recorder) -> None:
    in_step, go_on = asyncio.Event(), asyncio.Event()

    async def step(batch: object) -> None:
        in_step.set()
        await go_on.wait()

    loop = MainLoop(step, [1, 2, 3], extensions=[recorder])
    run = asyncio.create_task(loop.run())
    await in_step.wait()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await asyncio.sleep(0.01)
    assert not run.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert loop.status["iterations_done"] == 1
    assert recorder.callbacks[-2:] == ["after_batch", "on_interrupt"]


async def test_a_task_of_the_run_being_cancelled_cancels_the_run(recorder) -> None:
    in_step, go_on = asyncio.Event(), asyncio.Event()

    async def step(batch: object) -> None:
        in_step.set()
        await go_on.wait()

    loop = MainLoop(step, [1, 2, 3], extensions=[recorder])
    run = asyncio.create_task(loop.run())
    await in_step.wait()
    (task,) = (task for task in asyncio.all_tasks() if task.get_name() == "aloop training")
    task.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError, match="a task of the run"):
        await run
    assert recorder.callbacks[-2:] == ["after_batch", "on_interrupt"]


class TestGroups:
    async def test_a_group_of_errors_is_an_error(self, recorder: Recorder) -> None:
        group = ExceptionGroup("of the step", [ValueError("one"), OSError("two")])

        async def step(batch: object) -> None:
            raise group

        loop = MainLoop(step, [1], extensions=[recorder])
        with pytest.raises(ExceptionGroup) as raised:
            await loop.run()
        assert raised.value is group
        assert recorder.events[-1] == ("on_error", 0, group)
        assert "OSError: two" in loop.log.current_row["got_exception"]

    async def test_a_group_with_an_exit_in_it_is_an_interrupt(self, recorder: Recorder) -> None:
        group = BaseExceptionGroup("of the step", [ValueError("one"), KeyboardInterrupt()])

        async def step(batch: object) -> None:
            raise group

        loop = MainLoop(step, [1], extensions=[recorder])
        with pytest.raises(BaseExceptionGroup) as raised:
            await loop.run()
        assert raised.value is group
        assert recorder.callbacks[-1] == "on_interrupt"


class Fail(TrainingExtension):
    """Raises at the callbacks that it is given exceptions for."""

    def __init__(self, name: str | None = None, **errors: BaseException) -> None:
        super().__init__(name)
        self.errors = errors

    def handler(self, callback):
        if callback not in self.errors:
            return None

        async def fail(*args: object) -> None:
            raise self.errors[callback]

        return fail


@pytest.mark.parametrize("callback", ["on_interrupt", "on_error"])
async def test_at_the_end_every_extension_is_called_though_one_fails(callback, recorder) -> None:
    async def step(batch: object) -> None:
        if callback == "on_error":
            raise ValueError("of the step")
        loop.request_finish("batch")

    fail = Fail(**{callback: OSError("tracker is down")})
    loop = MainLoop(step, [1, 2], extensions=[fail, recorder])
    with pytest.raises(ValueError if callback == "on_error" else OSError):
        await loop.run()
    assert recorder.callbacks.count(callback) == 1


async def test_an_error_in_on_error_is_a_note_on_the_first(caplog) -> None:
    errors = {"after_batch": ValueError("first"), "on_error": OSError("tracker is down")}
    loop = MainLoop(no_op, [1], extensions=[Fail(**errors), Fail("other", **errors)])
    with pytest.raises(ValueError, match="first") as raised:
        await loop.run()
    assert "tracker is down" in raised.value.__notes__[-1]
    assert "the extension 'other' failed in on_error" in caplog.text


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)])
async def test_an_exit_out_of_on_interrupt_does_not_call_it_again(error, recorder) -> None:
    async def step(batch: object) -> None:
        loop.request_finish("batch")

    loop = MainLoop(step, [1], extensions=[recorder, Fail(on_interrupt=error)])
    with pytest.raises(type(error)):
        await loop.run()
    assert recorder.callbacks.count("on_interrupt") == 1


async def test_an_error_before_the_last_press_is_a_note_on_the_interrupt() -> None:
    hang = Hang("on_error")

    async def step(batch: object) -> None:
        raise ValueError("the reason")

    loop = MainLoop(step, [1], extensions=[hang])
    run = asyncio.create_task(outcome_of(loop))
    await hang.began.wait()
    for _ in range(3):
        signal.raise_signal(signal.SIGINT)
        await asyncio.sleep(0)
    error = await run
    assert isinstance(error, KeyboardInterrupt)
    assert "ValueError('the reason')" in error.__notes__[0]
    assert "the reason" in loop.log.current_row["got_exception"]
    assert loop.log.current_row["step_abandoned"] is True


async def test_an_error_while_the_step_is_given_up_is_a_note() -> None:
    async def step(batch: object) -> None:
        try:
            loop.request_finish("batch")
            await asyncio.Event().wait()
        finally:
            raise OSError("no connection to say good-bye")

    loop = MainLoop(step, [1], grace_s=0)
    with pytest.raises(asyncio.CancelledError, match="given up: request_finish") as raised:
        await loop.run()
    assert "no connection to say good-bye" in raised.value.__notes__[0]
    assert "no connection to say good-bye" in loop.log.current_row["got_exception"]


class TestQuietStreams:
    async def test_a_cancel_leaves_it_at_once_and_its_batch_is_the_next_runs(self) -> None:
        queue: asyncio.Queue[int] = asyncio.Queue()
        ended, seen = [], []

        async def batches():
            try:
                while True:
                    yield await queue.get()
            finally:
                ended.append(True)

        async def step(batch: int) -> None:
            seen.append(batch)

        loop = MainLoop(step, batches, extensions=[FinishAfter(after_n_batches=3)])
        for number in range(3):
            queue.put_nowait(number)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await loop.run()
            if number == 1:
                break
        queue.put_nowait(2)
        await loop.run()
        assert seen == [0, 1, 2]
        assert ended == []

    async def test_three_presses_at_once_leave_it_with_its_place(self) -> None:
        queue: asyncio.Queue[int] = asyncio.Queue()

        async def batches():
            for _ in range(2):
                yield await queue.get()

        loop = MainLoop(no_op, batches, extensions=[FinishAfter(after_n_epochs=1)])
        queue.put_nowait(1)
        run = asyncio.create_task(outcome_of(loop))
        while loop.status["iterations_done"] < 1:
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
        assert isinstance(await run, KeyboardInterrupt)
        assert "step_abandoned" not in loop.log.current_row  # for nothing was in flight
        queue.put_nowait(2)
        await loop.run()
        assert loop.status["_epoch_ends"] == [2]

    async def test_a_batch_that_came_between_the_runs_is_not_lost(self) -> None:
        queue: asyncio.Queue[int] = asyncio.Queue()
        seen = []

        async def batches():
            while True:
                yield await queue.get()

        async def step(batch: int) -> None:
            seen.append(batch)

        loop = MainLoop(step, batches, extensions=[FinishAfter(after_n_batches=2)])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(loop.run(), 0.01)
        queue.put_nowait(1)
        await asyncio.sleep(0.01)
        assert queue.empty()  # the fetch that was left has it
        queue.put_nowait(2)
        await loop.run()
        assert seen == [1, 2]

    async def test_the_end_of_the_epoch_that_came_between_the_runs_is_the_next_runs(self) -> None:
        go_on = asyncio.Event()

        async def batches():
            yield 1
            await go_on.wait()

        loop = MainLoop(no_op, batches, extensions=[FinishAfter(after_n_epochs=1)])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(loop.run(), 0.01)
        go_on.set()
        await asyncio.sleep(0)
        await loop.run()
        assert loop.status["_epoch_ends"] == [1]

    async def test_an_error_that_came_between_the_runs_is_the_next_runs(self, caplog) -> None:
        go_on = asyncio.Event()

        async def batches():
            yield 1
            await go_on.wait()
            raise ConnectionError("gone")

        loop = MainLoop(no_op, batches)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(loop.run(), 0.01)
        go_on.set()
        await asyncio.sleep(0.01)
        assert "a data stream failed after its run had left it" in caplog.text
        with pytest.raises(ConnectionError, match="gone"):
            await loop.run()

    async def test_a_left_fetch_does_not_take_the_batch_of_another_iterator(self) -> None:
        queue: asyncio.Queue[int] = asyncio.Queue()
        seen = []

        async def batches():
            while True:
                yield await queue.get()

        async def step(batch: int) -> None:
            seen.append(batch)

        loop = MainLoop(step, batches, extensions=[FinishAfter(after_n_batches=1)])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(loop.run(), 0.01)
        loop.iteration_state = loop.data_stream, batches()
        begun = asyncio.create_task(loop.run())
        await asyncio.sleep(0.01)
        queue.put_nowait(1)
        await begun
        assert seen == [1]

    @pytest.mark.parametrize("ends", ["closed", "cancelled"])
    def test_after_the_event_loop_of_a_left_fetch_an_epoch_begins(self, ends, caplog) -> None:
        seen: list[int] = []

        async def batches():
            yield len(seen) + 1
            await asyncio.Event().wait()

        async def step(batch: int) -> None:
            seen.append(batch)

        async def main() -> None:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(loop.run(), 0.02)

        loop = MainLoop(step, batches)
        if ends == "cancelled":
            asyncio.run(main())
        else:
            event_loop = asyncio.new_event_loop()
            event_loop.run_until_complete(main())
            event_loop.close()
        asyncio.run(main())
        assert seen == [1, 2]
        assert "was cut off when the event loop of the last run ended" in caplog.text

    async def test_an_iterator_that_is_no_generator_goes_on_where_it_was(self) -> None:
        class Numbers:
            count = 0

            def __aiter__(self):
                return self

            async def __anext__(self) -> int:
                await ready.wait()
                Numbers.count += 1
                return Numbers.count

        seen = []

        async def step(batch: int) -> None:
            seen.append(batch)

        ready = asyncio.Event()
        loop = MainLoop(step, Numbers(), extensions=[FinishAfter(after_n_batches=2)])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(loop.run(), 0.01)
        (left,) = (task for task in asyncio.all_tasks() if task.get_name() == "aloop stream")
        left.cancel()  # as the end of an event loop does
        await asyncio.wait([left])
        ready.set()
        await loop.run()
        assert seen == [1, 2]

    async def test_a_clean_up_that_raises_when_the_event_loop_ends_is_told(self, caplog) -> None:
        async def batches():
            try:
                yield 1
                await asyncio.Event().wait()
            finally:
                raise OSError("in the clean-up")

        loop = MainLoop(no_op, batches)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(loop.run(), 0.01)
        (left,) = (task for task in asyncio.all_tasks() if task.get_name() == "aloop stream")
        left.cancel()
        await asyncio.wait([left])
        assert "failed after its run had left it: OSError('in the clean-up')" in caplog.text


@pytest.mark.parametrize("when", ["at its end", "by its error"])
def test_a_program_that_ends_while_a_run_is_in_the_background_lets_the_step_settle(
    when, tmp_path
) -> None:
    seen = []

    async def main() -> None:
        in_step = asyncio.Event()

        async def step(batch: int) -> None:
            in_step.set()
            await asyncio.sleep(0.05)
            seen.append(batch)

        loop = MainLoop(step, range(9), log=SQLiteLog(tmp_path / "log.sqlite"))
        kept.append(asyncio.create_task(loop.run()))
        await in_step.wait()
        if when == "by its error":
            raise ValueError("of the program")

    kept: list[asyncio.Task] = []
    try:
        asyncio.run(main())
    except ValueError:
        assert when == "by its error"
    assert seen == [0]
    assert kept[0].cancelled()
    with read_log(tmp_path / "log.sqlite") as written:
        assert written[1]["interrupt_cause"] == "cancelled"


def test_a_stuck_thread_does_not_hold_up_the_exit_of_the_interpreter(tmp_path) -> None:
    script = """
        import asyncio, threading
        from aloop import MainLoop, SQLiteLog

        def step(batch):
            print("in step", flush=True)
            threading.Event().wait()

        loop = MainLoop(step, [1], grace_s=0.1, log=SQLiteLog("log.sqlite"))
        asyncio.run(loop.run())
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in step\n"
        begun = time.monotonic()
        os.kill(process.pid, signal.SIGTERM)
        _, err = process.communicate(timeout=20)
    assert time.monotonic() - begun < 0.1 + ABANDONED_S + 1
    assert "the run was given up: SIGTERM, and 0.1 s of grace" in err
    with read_log(tmp_path / "log.sqlite") as written:
        assert written.current_row["step_abandoned"] is True


@pytest.mark.aloop_guard(tasks=False)  # as its name says
async def test_a_run_can_be_done_again_after_its_event_loop_was_closed_under_it() -> None:
    def closed_under() -> None:
        async def main() -> None:
            kept.append(asyncio.ensure_future(loop.run()))
            kept[0]._log_destroy_pending = False
            await in_step.wait()

        event_loop = asyncio.new_event_loop()
        event_loop.run_until_complete(main())
        event_loop.close()

    async def step(batch: int) -> None:
        if not kept[1:]:
            in_step.set()
            await asyncio.Event().wait()

    kept: list = []
    in_step = asyncio.Event()
    loop = MainLoop(step, [1, 2, 3], extensions=[FinishAfter(after_n_epochs=1)])
    await asyncio.to_thread(closed_under)
    kept.append("released")
    await loop.run()
    assert loop.status["iterations_done"] == 2  # without the batch that was in flight
    kept.clear()


async def test_the_log_is_written_in_its_second_though_the_grace_is_over(tmp_path) -> None:
    class Write(TrainingExtension):
        async def after_batch(self, batch: int) -> None:
            self.main_loop.log.current_row["batch"] = batch

    async def step(batch: int) -> None:
        if batch == 3:
            loop.request_finish("batch")
            await asyncio.Event().wait()

    log = SQLiteLog(tmp_path / "log.sqlite")
    loop = MainLoop(step, [1, 2, 3], log=log, extensions=[Write()], grace_s=0)
    with pytest.raises(asyncio.CancelledError):
        await loop.run()
    with read_log(tmp_path / "log.sqlite") as written:
        assert [written[time].get("batch") for time in written] == [1, 2]


async def test_a_sync_step_in_the_event_loops_thread_settles_too() -> None:
    def step(batch: int) -> None:
        if batch == 1:
            run.cancel()

    loop = MainLoop(as_algorithm(step, where="inline"), range(100))
    run = asyncio.create_task(loop.run())
    with pytest.raises(asyncio.CancelledError):
        await run
    assert loop.status["iterations_done"] >= 2
    assert loop.log.current_row["interrupt_cause"] == "cancelled"


class UnspeakableError(Exception):
    """Has no representation."""

    def __repr__(self) -> str:
        raise RuntimeError("no representation")


async def test_an_error_without_a_representation_hides_nothing() -> None:
    errors = {"after_batch": ValueError("first"), "on_error": UnspeakableError()}
    with pytest.raises(ValueError, match="first") as raised:
        await MainLoop(no_op, [1], extensions=[Fail(**errors)]).run()
    assert "this was raised: UnspeakableError" in raised.value.__notes__[-1]


async def test_what_comes_after_an_extension_left_behind_is_not_called(recorder) -> None:
    hang = Hang("after_batch", swallows=True)
    loop = MainLoop(no_op, [1, 2], extensions=[hang, recorder], grace_s=0)
    await cancelled_once_hanging(loop, hang)
    seen = list(recorder.events)
    hang.release.set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert recorder.events == seen
    assert "after_batch" not in recorder.callbacks


async def test_an_initialize_left_behind_leaves_nothing_when_it_wakes() -> None:
    began, release = asyncio.Event(), asyncio.Event()

    class Stubborn(TrainingAlgorithm):
        async def initialize(self) -> None:
            began.set()
            while not release.is_set():
                try:
                    await release.wait()
                except asyncio.CancelledError:
                    continue

        async def process_batch(self, batch: object) -> None:
            """Train on nothing."""

    loop = MainLoop(Stubborn(), [1], grace_s=0, extensions=[FinishAfter(after_n_epochs=1)])
    run = asyncio.create_task(loop.run())
    await began.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    status, commits = dict(loop.status), loop.log.sequence
    release.set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert (dict(loop.status), loop.log.sequence) == (status, commits)
    await loop.run()
    assert loop.status["epochs_done"] == 1


async def test_a_dropped_loop_lets_go_of_the_batch_it_waits_for() -> None:
    queue: asyncio.Queue[int] = asyncio.Queue()
    seen: list[int] = []

    async def batches():
        while True:
            yield await queue.get()

    async def step(batch: int) -> None:
        seen.append(batch)

    loop = MainLoop(step, batches)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(loop.run(), 0.01)
    reference = weakref.ref(loop)
    del loop
    gc.collect()
    await asyncio.sleep(0)
    assert reference() is None
    for number in range(3):
        queue.put_nowait(number)
    await MainLoop(step, batches, extensions=[FinishAfter(after_n_batches=3)]).run()
    assert seen == [0, 1, 2]


async def test_a_dropped_loop_and_its_stream_clean_up() -> None:
    ended = []

    async def batches():
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(MainLoop(no_op, batches).run(), 0.01)
    gc.collect()
    while asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.sleep(0)
    assert ended == [True]


async def test_a_stream_is_advanced_in_one_task_throughout_a_run() -> None:
    async def batches():
        async with asyncio.timeout(60), asyncio.TaskGroup():  # which belong to a task
            with anyio.CancelScope():
                for number in range(3):
                    yield number

    loop = MainLoop(no_op, batches, extensions=[FinishAfter(after_n_epochs=2)])
    await loop.run()
    assert loop.status["iterations_done"] == 6


async def test_a_worker_can_be_used_by_a_fetch_that_outlasted_its_run() -> None:
    queue: asyncio.Queue[int] = asyncio.Queue()
    seen = []

    async def batches():
        while True:
            number = await queue.get()
            yield await run_in_worker(int.__add__, number, 1)

    async def step(batch: int) -> None:
        seen.append(batch)

    loop = MainLoop(step, batches, extensions=[FinishAfter(after_n_batches=2)])
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(loop.run(), 0.01)
    queue.put_nowait(1)
    queue.put_nowait(2)
    await loop.run()
    assert seen == [2, 3]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, BaseException])
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_after_a_stream_that_raised_an_exit_an_epoch_begins(error, is_async) -> None:
    broken = []

    def numbers():
        for number in range(4):
            if number == 2 and not broken:
                broken.append(True)
                raise error
            yield number

    async def async_numbers():
        for number in numbers():
            yield number

    stream = async_numbers if is_async else numbers
    loop = MainLoop(no_op, stream, extensions=[FinishAfter(after_n_epochs=1)])
    assert type(await outcome_of(loop)) is error
    await loop.run()
    assert loop.status["_epoch_ends"] == [6]


@pytest.mark.parametrize("debug", [False, True])
async def test_a_sync_step_may_ask_for_a_finish_in_its_thread(debug) -> None:
    asyncio.get_running_loop().set_debug(debug)

    def step(batch: int) -> None:
        if batch == 3:
            loop.request_finish("batch")

    loop = MainLoop(step, range(100))
    await loop.run()
    assert loop.status["iterations_done"] == 4


async def test_the_frames_of_the_callers_are_let_go_after_a_cancellation() -> None:
    class Request:
        """What a caller holds."""

    async def serve() -> None:
        request = Request()
        held.append(weakref.ref(request))
        await asyncio.wait_for(loop.run(), 0.01)

    held: list[weakref.ref] = []

    async def step(batch: object) -> None:
        await asyncio.sleep(0.02)

    loop = MainLoop(step, range(10**6))
    with pytest.raises(TimeoutError):
        await serve()
    gc.collect()
    assert held[0]() is None


@pytest.mark.skipif(sys.version_info < (3, 12), reason="tasks can be eager from 3.12 on")
async def test_a_run_works_where_tasks_are_eager(tmp_path) -> None:
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
    log = SQLiteLog(tmp_path / "log.sqlite")

    async def batches():
        for number in range(5):
            yield number

    loop = MainLoop(no_op, batches, log=log, extensions=[FinishAfter(after_n_epochs=2)])
    await loop.run()
    assert loop.status["iterations_done"] == 10
    with read_log(tmp_path / "log.sqlite") as written:
        assert written[10]["training_finished"] is True


async def test_a_run_on_a_file_that_can_be_written_again_goes_on(tmp_path) -> None:
    path = tmp_path / "log.sqlite"
    log = SQLiteLog(path)
    finish = FinishAfter(after_n_epochs=1)
    loop = MainLoop(no_op, [1], log=log, extensions=[finish])
    await loop.run()
    path.rename(tmp_path / "away.sqlite")
    finish.set_conditions(after_n_epochs=2)

    async def taking_it_away() -> None:
        async with log:
            (tmp_path / "log.sqlite").unlink()
            await loop.run()

    with pytest.raises(JournalError):
        await taking_it_away()
    (tmp_path / "away.sqlite").rename(path)
    finish.set_conditions(after_n_epochs=3)
    await loop.run()
    assert loop.status["epochs_done"] == 3


class Look(TrainingExtension):
    """Keeps the states in which it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[str] = []

    def handler(self, callback):
        async def look(*args: object) -> None:
            self.states.append(f"{callback} {self.main_loop.state}")

        return look


async def test_the_state_of_a_run_can_be_asked_for() -> None:
    async def step(batch: int) -> None:
        if batch == 2:
            loop.request_finish("batch")

    look = Look()
    loop = MainLoop(step, [1, 2, 3], extensions=[look])
    assert loop.state is RunState.NEW
    await loop.run()
    assert look.states == [
        "before_training starting",
        "before_epoch running",
        "before_batch running",
        "after_batch running",
        "before_batch running",
        "after_batch stopping",
        "on_interrupt finalizing",
        "after_training finalizing",
    ]
    assert loop.state is RunState.CLOSED


async def test_a_run_that_is_given_up_is_aborting() -> None:
    states = []

    async def step(batch: int) -> None:
        try:
            loop.request_finish("batch")
            await asyncio.Event().wait()
        finally:
            states.append(loop.state)

    loop = MainLoop(step, [1], grace_s=0)
    with pytest.raises(asyncio.CancelledError):
        await loop.run()
    assert states == [RunState.ABORTING]
    assert loop.state is RunState.CLOSED
