"""The ways in which a run ends, and what each leaves in the log."""

import asyncio
import gc
import logging
import threading
from types import MappingProxyType

import anyio
import numpy as np
import pytest

from aloop import (
    FinishAfter,
    MainLoop,
    SQLiteLog,
    TrainingExtension,
    TrainingFinish,
    run_in_worker,
)
from aloop.endings import finish_reason
from aloop.errors import EmptyEpochError, NotRunningError, QuantityError, StreamError
from aloop.testing.recorder import Recorder


async def no_op(batch: object) -> None:
    """Train on nothing."""


class Fail(TrainingExtension):
    """Raises at the callbacks that it is given exceptions for."""

    def __init__(self, **errors: BaseException) -> None:
        super().__init__()
        self.errors = errors

    def handler(self, callback):
        if callback not in self.errors:
            return None

        async def fail(*args: object) -> None:
            raise self.errors[callback]

        return fail


class Ask(TrainingExtension):
    """Asks for a finish after a batch."""

    def __init__(self, at: str, after: int) -> None:
        super().__init__()
        self.at = at
        self.after = after

    async def after_batch(self, batch: object) -> None:
        if self.main_loop.status["iterations_done"] == self.after:
            self.main_loop.request_finish(self.at)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("requested", "batch", "epoch", "at_epoch_end", "reason"),
    [
        (None, False, False, False, None),
        (None, False, False, True, None),
        (False, False, False, True, None),
        (True, False, False, False, "training_finish_requested"),
        (True, True, True, True, "training_finish_requested"),
        (None, True, False, False, "batch_interrupt_received"),
        (None, True, True, True, "batch_interrupt_received"),
        (None, False, True, False, None),
        (None, False, True, True, "epoch_interrupt_received"),
    ],
)
def test_finish_reason(requested, batch, epoch, at_epoch_end, reason) -> None:
    status = {"batch_interrupt_received": batch, "epoch_interrupt_received": epoch}
    assert finish_reason(status, requested, at_epoch_end=at_epoch_end) == reason


async def test_a_request_at_the_epoch_finishes_the_epoch(recorder: Recorder) -> None:
    loop = MainLoop(no_op, [1, 2, 3], extensions=[Ask("epoch", 2), recorder])
    await loop.run()
    assert loop.status["iterations_done"] == 3
    assert loop.status["epoch_interrupt_received"] is True
    assert loop.log[2]["epoch_interrupt_received"] is True
    assert loop.log[3]["training_finished"] is True
    assert recorder.callbacks[-3:] == ["after_epoch", "on_interrupt", "after_training"]


async def test_a_request_at_the_batch_finishes_the_batch(recorder: Recorder) -> None:
    loop = MainLoop(no_op, [1, 2, 3], extensions=[Ask("batch", 2), recorder])
    await loop.run()
    assert loop.status["iterations_done"] == 2
    assert loop.log[2]["batch_interrupt_received"] is True
    assert loop.log[2]["training_finished"] is True
    assert recorder.callbacks[-3:] == ["after_batch", "on_interrupt", "after_training"]


async def test_an_interrupt_is_not_inherited_by_the_next_run() -> None:
    loop = MainLoop(no_op, [1, 2, 3], extensions=[Ask("batch", 2), FinishAfter(after_n_epochs=2)])
    await loop.run()
    await loop.run()
    assert loop.status["batch_interrupt_received"] is False
    assert loop.status["epochs_done"] == 2


def test_a_request_while_nothing_runs_is_refused() -> None:
    with pytest.raises(NotRunningError, match="no run is under way"):
        MainLoop(no_op, [1]).request_finish()


async def test_a_request_for_another_place_is_refused() -> None:
    with pytest.raises(ValueError, match="'now'; expected 'epoch' or 'batch'"):
        MainLoop(no_op, [1]).request_finish("now")  # type: ignore[arg-type]


async def test_an_error_in_the_step_goes_up_after_on_error(recorder: Recorder) -> None:
    error = ZeroDivisionError("the step")

    async def step(batch: int) -> None:
        if batch == 2:
            raise error

    loop = MainLoop(step, [1, 2, 3], extensions=[recorder])
    with pytest.raises(ZeroDivisionError) as raised:
        await loop.run()
    assert raised.value is error
    assert recorder.events[-2:] == [("before_batch", 1, 2), ("on_error", 1, error)]
    assert "ZeroDivisionError: the step" in loop.log[1]["got_exception"]
    assert "training_finished" not in loop.log[1]


async def test_an_error_in_the_worker_goes_up() -> None:
    def step(batch: int) -> None:
        raise KeyError(batch)

    with pytest.raises(KeyError, match="7"):
        await MainLoop(step, [7]).run()


async def test_an_error_in_an_extension_names_it(recorder: Recorder) -> None:
    error = OSError("no space")
    loop = MainLoop(no_op, [1], extensions=[Fail(after_batch=error), recorder])
    with pytest.raises(OSError, match="no space") as raised:
        await loop.run()
    assert raised.value.__notes__ == ["raised by the extension 'Fail' in after_batch"]
    assert recorder.callbacks[-1] == "on_error"


async def test_an_error_in_on_error_is_logged_and_hides_nothing(caplog) -> None:
    first = ValueError("first")
    loop = MainLoop(
        no_op, [1], extensions=[Fail(after_batch=first, on_error=RuntimeError("second"))]
    )
    with pytest.raises(ValueError, match="first") as raised:
        await loop.run()
    assert raised.value is first
    assert "second" in caplog.text


async def test_an_error_in_after_training_is_an_error_like_any_other(recorder) -> None:
    error = ValueError("at the end")
    loop = MainLoop(
        no_op, [1], extensions=[FinishAfter(after_n_epochs=1), Fail(after_training=error), recorder]
    )
    with pytest.raises(ValueError, match="at the end"):
        await loop.run()
    assert recorder.callbacks[-1] == "on_error"
    assert "at the end" in loop.log.current_row["got_exception"]


async def test_a_failed_step_can_be_gone_on_from() -> None:
    seen = []

    async def step(batch: int) -> None:
        seen.append(batch)
        if seen == [1, 2]:
            raise ValueError

    loop = MainLoop(step, [1, 2, 3], extensions=[FinishAfter(after_n_epochs=1)])
    with pytest.raises(ValueError):
        await loop.run()
    await loop.run()
    assert seen == [1, 2, 3]
    assert loop.status["iterations_done"] == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
async def test_an_exit_out_of_a_step_goes_up_as_it_is(error, recorder: Recorder) -> None:
    async def step(batch: int) -> None:
        raise error

    loop = MainLoop(step, [1], extensions=[recorder])
    with pytest.raises(type(error)) as raised:
        await loop.run()
    assert raised.value is error
    assert recorder.callbacks[-1] == "on_interrupt"
    assert type(error).__name__ in loop.log.current_row["got_exception"]


async def test_an_epoch_without_a_batch_is_an_error_that_says_so(recorder: Recorder) -> None:
    loop = MainLoop(no_op, [], extensions=[recorder])
    with pytest.raises(ValueError, match="yielded zero batches in epoch 1") as raised:
        await loop.run()
    assert type(raised.value) is EmptyEpochError
    assert recorder.callbacks == ["before_training", "before_epoch", "on_error"]


async def test_an_epoch_whose_rest_is_empty_is_none(recorder: Recorder) -> None:
    finish = FinishAfter(after_n_batches=2)
    loop = MainLoop(no_op, [1, 2], extensions=[finish, recorder])
    await loop.run()
    finish.set_conditions(after_n_epochs=1)
    await loop.run()
    assert loop.status["epochs_done"] == 1
    assert loop.status["_epoch_ends"] == [2]


async def test_a_generator_has_one_epoch() -> None:
    loop = MainLoop(no_op, (batch for batch in [1, 2]))
    with pytest.raises(StreamError, match="used up by its first epoch"):
        await loop.run()
    assert loop.status["epochs_done"] == 1


async def test_a_stream_that_raises_in_mid_epoch_is_named(recorder: Recorder) -> None:
    error = ConnectionError("gone")

    def batches():
        yield 1
        raise error

    loop = MainLoop(no_op, batches, extensions=[recorder])
    with pytest.raises(ConnectionError) as raised:
        await loop.run()
    assert raised.value is error
    assert "raised by the data stream" in raised.value.__notes__[0]
    assert "after batch 1 of epoch 1" in raised.value.__notes__[0]
    assert loop.status["iterations_done"] == 1
    assert recorder.events[-1] == ("on_error", 1, error)


async def test_after_a_broken_stream_the_next_run_begins_an_epoch() -> None:
    calls = []

    async def batches():
        calls.append(len(calls))
        yield "a"
        if len(calls) == 1:
            raise ConnectionError
        yield "b"

    loop = MainLoop(no_op, batches, extensions=[FinishAfter(after_n_epochs=1)])
    with pytest.raises(ConnectionError):
        await loop.run()
    await loop.run()
    assert loop.status["_epoch_ends"] == [3]


async def test_an_error_before_the_first_batch_lets_the_training_start_again(recorder) -> None:
    class Once(TrainingExtension):
        async def before_training(self) -> None:
            if not hasattr(self, "been_here"):
                self.been_here = True
                raise ValueError

    loop = MainLoop(no_op, [1], extensions=[Once(), recorder, FinishAfter(after_n_epochs=1)])
    with pytest.raises(ValueError):
        await loop.run()
    await loop.run()
    assert recorder.callbacks[:2] == ["on_error", "before_training"]


async def test_what_was_committed_is_in_the_file_after_an_error(tmp_path) -> None:
    async def step(batch: int) -> None:
        if batch == 3:
            raise ValueError

    class Write(TrainingExtension):
        async def after_batch(self, batch: int) -> None:
            self.main_loop.log.current_row["batch"] = batch

    log = SQLiteLog(tmp_path / "log.sqlite")
    with pytest.raises(ValueError):
        await MainLoop(step, [1, 2, 3], log=log, extensions=[Write()]).run()
    async with SQLiteLog(tmp_path / "log.sqlite", uuid=log.h_uuid) as read:
        assert [read[time].get("batch") for time in read] == [1, 2]
        assert "ValueError" in read[2]["got_exception"]


async def test_a_log_that_cannot_be_opened_is_an_error_before_anything(tmp_path, recorder) -> None:
    log = SQLiteLog(tmp_path / "nowhere" / "log.sqlite")
    with pytest.raises(OSError, match="cannot be opened"):
        await MainLoop(no_op, [1], log=log, extensions=[recorder]).run()
    assert recorder.events == []


class TestCancelling:
    async def test_the_step_in_flight_settles_and_the_cancellation_goes_up(self, recorder) -> None:
        in_step, go_on = asyncio.Event(), asyncio.Event()

        async def step(batch: int) -> None:
            in_step.set()
            await go_on.wait()

        loop = MainLoop(step, [1, 2, 3], extensions=[recorder])
        run = asyncio.create_task(loop.run())
        await in_step.wait()
        run.cancel()
        await asyncio.sleep(0)
        assert not run.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert recorder.callbacks[-2:] == ["after_batch", "on_interrupt"]
        assert loop.log[1]["batch_interrupt_received"] is True
        assert loop.log[1]["interrupt_cause"] == "cancelled"
        assert loop.status["iterations_done"] == 1

    async def test_a_cancel_after_a_request_to_finish_is_still_a_cancel(self, recorder) -> None:
        in_step, go_on = asyncio.Event(), asyncio.Event()

        async def step(batch: int) -> None:
            in_step.set()
            await go_on.wait()

        loop = MainLoop(step, [1, 2, 3], extensions=[recorder])
        run = asyncio.create_task(loop.run())
        await in_step.wait()
        loop.request_finish("batch")
        run.cancel()
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert recorder.callbacks[-1] == "on_interrupt"
        assert "training_finished" not in loop.log[1]

    async def test_a_failure_on_the_way_out_is_a_note_on_the_cancellation(self) -> None:
        in_step = asyncio.Event()

        async def step(batch: int) -> None:
            in_step.set()
            await asyncio.sleep(0)

        loop = MainLoop(step, [1], extensions=[Fail(on_interrupt=OSError("tracker is down"))])
        run = asyncio.create_task(loop.run())
        await in_step.wait()
        run.cancel()
        with pytest.raises(asyncio.CancelledError) as raised:
            await run
        assert "tracker is down" in raised.value.__notes__[0]

    async def test_a_stop_before_the_epochs_first_batch_fetches_none(self) -> None:
        fetched = []

        class Stop(TrainingExtension):
            async def before_epoch(self) -> None:
                self.main_loop.request_finish("batch")  # type: ignore[attr-defined]

        def batches():
            fetched.append(1)
            yield 1

        await MainLoop(no_op, batches, extensions=[Stop()]).run()
        assert fetched == []

    async def test_an_anyio_scope_gets_its_own_cancellation_back(self) -> None:
        async def step(batch: int) -> None:
            scope.cancel()
            await anyio.lowlevel.checkpoint()

        loop = MainLoop(step, [1, 2, 3])
        with anyio.CancelScope() as scope:
            await loop.run()
        assert scope.cancelled_caught
        assert loop.status["iterations_done"] == 1

    async def test_a_step_that_outlasts_the_grace_is_given_up(self) -> None:
        in_step = asyncio.Event()

        async def step(batch: int) -> None:
            in_step.set()
            await asyncio.Event().wait()

        loop = MainLoop(step, [1], grace_s=0.05)
        run = asyncio.create_task(loop.run())
        await in_step.wait()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert loop.log.current_row["step_abandoned"] is True

    async def test_a_stuck_worker_does_not_hold_up_the_end(self) -> None:
        release, in_step = threading.Event(), asyncio.Event()
        running = asyncio.get_running_loop()

        def step(batch: int) -> None:
            running.call_soon_threadsafe(in_step.set)
            release.wait()

        loop = MainLoop(step, [1], grace_s=0.05)
        run = asyncio.create_task(loop.run())
        await in_step.wait()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        release.set()

    async def test_no_task_is_left(self) -> None:
        before = asyncio.all_tasks()
        await MainLoop(no_op, [1], extensions=[FinishAfter(after_n_epochs=1)]).run()
        assert asyncio.all_tasks() == before


async def test_a_finished_loop_can_be_collected() -> None:
    import weakref

    loop = MainLoop(no_op, [1], extensions=[FinishAfter(after_n_epochs=1)])
    await loop.run()
    reference = weakref.ref(loop)
    del loop
    await asyncio.sleep(0)
    gc.collect()
    assert reference() is None


async def test_an_extension_can_use_the_worker_of_the_run() -> None:
    threads = set()

    def where() -> None:
        threads.add(threading.current_thread())

    class Use(TrainingExtension):
        async def after_batch(self, batch: object) -> None:
            await run_in_worker(where)

    def step(batch: object) -> None:
        where()

    await MainLoop(step, [1], extensions=[Use(), FinishAfter(after_n_epochs=1)]).run()
    assert len(threads) == 1


async def test_the_library_configures_no_logging_handlers() -> None:
    await MainLoop(no_op, [1], extensions=[FinishAfter(after_n_epochs=1)]).run()
    assert logging.getLogger("aloop").handlers == []


class Interrupted(TrainingExtension):
    """Says that the run was stopped from outside, by a cancellation nobody asked for."""

    async def after_batch(self, batch: object) -> None:
        raise asyncio.CancelledError


async def test_a_cancellation_that_leaks_out_of_an_extension_is_on_record(recorder) -> None:
    loop = MainLoop(no_op, [1], extensions=[Interrupted(), recorder])
    with pytest.raises(asyncio.CancelledError):
        await loop.run()
    assert "CancelledError" in loop.log.current_row["got_exception"]
    assert recorder.callbacks[-1] == "on_interrupt"


async def test_raising_training_finish_at_the_end_is_no_failure() -> None:
    extensions = [FinishAfter(after_n_epochs=1), Fail(after_training=TrainingFinish())]
    loop = MainLoop(no_op, [1], extensions=extensions)
    await loop.run()
    assert "got_exception" not in loop.log.current_row


@pytest.mark.parametrize("result", [3, 0.5, "cost", [1.0], np.ones(3)])
async def test_a_step_that_returns_no_quantities_is_named(result) -> None:
    async def step(batch: object) -> object:
        return result

    with pytest.raises(QuantityError, match=r"returned .* for a batch; expected a dictionary"):
        await MainLoop(step, [1]).run()


@pytest.mark.parametrize("result", [None, {}, MappingProxyType({"cost": 1})])
async def test_a_step_may_return_any_mapping_or_nothing(result) -> None:
    async def step(batch: object) -> object:
        return result

    loop = MainLoop(step, [1], extensions=[FinishAfter(after_n_epochs=1)])
    await loop.run()
    assert dict(loop.quantities) == dict(result or {})
