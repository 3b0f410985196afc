"""A run beside the code that started it: its handle, its pauses, what leaving it means."""

import asyncio
import logging
import signal
import threading
import traceback

import anyio
import pytest

from aloop import FinishAfter, MainLoop, RunHandle, SQLiteLog, TrainingExtension, read_log
from aloop.errors import (
    AlreadyRunningError,
    ArgumentError,
    GivenUpError,
    NoEventLoopError,
    NotRunningError,
)


async def turns(number: int) -> None:
    """Let the event loop do so many turns."""
    for _ in range(number):
        await asyncio.sleep(0)


class Steps:
    """A step that counts, and can be waited for."""

    def __init__(self) -> None:
        self.batches: list[object] = []
        self.began = asyncio.Event()

    async def __call__(self, batch: object) -> None:
        self.batches.append(batch)
        self.began.set()
        await asyncio.sleep(0)

    async def until(self, number: int) -> None:
        async with asyncio.timeout(10):
            while len(self.batches) < number:
                await asyncio.sleep(0)


class Heard(TrainingExtension):
    """Notes the callbacks that end a run."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    async def on_interrupt(self) -> None:
        self.calls.append("on_interrupt")

    async def after_training(self) -> None:
        self.calls.append("after_training")

    async def on_error(self, exception: BaseException) -> None:
        self.calls.append("on_error")


def endless():
    """Give an epoch that does not end."""
    return iter(range(10**9))


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
async def steps() -> Steps:
    return Steps()


# ------------------------------------------------------------------ running


async def test_the_run_goes_on_beside_the_body_and_stops_when_it_is_left(steps, heard) -> None:
    loop = MainLoop(steps, endless, extensions=[heard])
    async with loop.running() as handle:
        await steps.until(5)
        assert handle.state == loop.state == "running"
        assert handle.log is loop.log
    assert (handle.state, loop.state) == ("closed", "closed")
    assert heard.calls == ["on_interrupt", "after_training"]
    assert loop.log.current_row["interrupt_cause"] == "left running()"
    assert loop.status["iterations_done"] == len(steps.batches)


async def test_a_body_that_is_left_at_once_has_begun_and_ended_a_run(steps, heard) -> None:
    loop = MainLoop(steps, endless, extensions=[heard])
    async with loop.running():
        pass
    assert (steps.batches, heard.calls) == ([], ["on_interrupt", "after_training"])


async def test_the_body_can_wait_for_the_end(steps) -> None:
    loop = MainLoop(steps, range(3), extensions=[FinishAfter(after_n_epochs=2)])
    async with loop.running() as handle:
        assert await handle.wait() is loop.log
        assert await handle.wait() is loop.log
        assert handle.state == "closed"
    assert steps.batches == [0, 1, 2, 0, 1, 2]
    assert "interrupt_cause" not in loop.log.current_row


async def test_who_waits_can_be_cancelled_without_the_run(steps) -> None:
    loop = MainLoop(steps, endless)
    async with loop.running() as handle:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await handle.wait()
        done = len(steps.batches)
        await steps.until(done + 3)


async def test_it_can_be_run_again_the_one_way_or_the_other(steps) -> None:
    loop = MainLoop(steps, endless)
    for number in (3, 6):
        async with loop.running():
            await steps.until(number)
    loop.extensions.append(FinishAfter(after_n_batches=len(steps.batches) + 2))
    await loop.run()
    assert steps.batches == list(range(len(steps.batches)))


async def test_a_second_run_is_refused_where_it_is_asked_for(steps) -> None:
    loop = MainLoop(steps, endless)
    async with loop.running():
        with pytest.raises(AlreadyRunningError):
            await loop.run()
        with pytest.raises(AlreadyRunningError):
            async with loop.running():
                pytest.fail("the body was entered")


async def test_a_failure_is_logged_at_once_and_leaves_the_body_alone(caplog) -> None:
    failed = asyncio.Event()

    async def step(batch: object) -> None:
        raise ValueError("in the step")

    class Tell(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "has failed beside" in record.getMessage():
                failed.set()

    handler = Tell()
    logging.getLogger("aloop").addHandler(handler)
    loop = MainLoop(step, [1])
    body_went_on = False
    try:
        with pytest.raises(ValueError, match="in the step"):
            async with loop.running() as handle:
                async with asyncio.timeout(5):
                    await failed.wait()
                await turns(10)
                with pytest.raises(ValueError, match="in the step"):
                    await handle.wait()
                body_went_on = True
    finally:
        logging.getLogger("aloop").removeHandler(handler)
    assert body_went_on


async def test_what_the_body_raises_goes_up_when_the_run_has_ended(steps, heard) -> None:
    loop = MainLoop(steps, endless, extensions=[heard])
    with pytest.raises(KeyError, match="in the body"):
        async with loop.running():
            await steps.until(3)
            raise KeyError("in the body")
    assert heard.calls == ["on_interrupt", "after_training"]


async def test_when_both_fail_the_run_is_a_note_on_the_body() -> None:
    async def step(batch: object) -> None:
        raise ValueError("in the step")

    loop = MainLoop(step, [1])
    with pytest.raises(KeyError) as caught:
        async with loop.running():
            await turns(20)
            raise KeyError("in the body")
    assert caught.value.__notes__ == ["the run beside it failed as well: ValueError('in the step')"]


async def test_the_failure_that_wait_has_raised_is_no_note_on_itself() -> None:
    async def step(batch: object) -> None:
        raise ValueError("in the step")

    loop = MainLoop(step, [1])
    with pytest.raises(ValueError, match="in the step") as caught:
        async with loop.running() as handle:
            await handle.wait()
    assert "as well" not in str(getattr(caught.value, "__notes__", []))


async def test_a_cancelled_body_lets_the_run_clean_up_and_is_cancelled(steps, heard) -> None:
    async def main() -> None:
        async with loop.running():
            await asyncio.Event().wait()

    loop = MainLoop(steps, endless, extensions=[heard])
    task = asyncio.create_task(main())
    await steps.until(3)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert heard.calls == ["on_interrupt", "after_training"]
    assert loop.state == "closed"


async def test_timeouts_and_scopes_around_it_are_theirs(steps, heard) -> None:
    loop = MainLoop(steps, endless, extensions=[heard])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02), loop.running() as handle:
            await handle.wait()
    with anyio.move_on_after(0.02) as scope:
        async with loop.running() as handle:
            await handle.wait()
    assert scope.cancelled_caught
    assert heard.calls == ["on_interrupt", "after_training"] * 2
    assert loop.state == "closed"


async def test_a_cancelled_scope_does_not_spin_while_the_run_ends() -> None:
    rounds = 0

    class Slow(TrainingExtension):
        async def on_interrupt(self) -> None:
            nonlocal rounds
            begun = asyncio.get_running_loop().time()
            while asyncio.get_running_loop().time() - begun < 0.2:
                rounds += 1
                await asyncio.sleep(0.01)  # leaves the event loop to whoever spins

    waits = 0
    wait = asyncio.wait

    async def counting(*args, **kwargs):
        nonlocal waits
        waits += 1
        return await wait(*args, **kwargs)

    loop = MainLoop(Steps(), endless, extensions=[Slow()])
    asyncio.wait = counting
    try:
        with anyio.move_on_after(0.01):
            async with loop.running() as handle:
                await handle.wait()
    finally:
        asyncio.wait = wait
    assert rounds > 5
    assert waits < 40


async def test_leaving_while_a_step_hangs_ends_with_the_grace() -> None:
    in_step = asyncio.Event()

    async def step(batch: object) -> None:
        in_step.set()
        await asyncio.Event().wait()

    loop = MainLoop(step, [1], grace_s=0.05)
    with pytest.raises(asyncio.CancelledError, match="the run was given up: left running"):
        async with loop.running():
            await in_step.wait()
    assert loop.log.current_row["step_abandoned"] is True


@pytest.mark.parametrize("exit_", [KeyboardInterrupt, SystemExit])
async def test_an_exit_out_of_a_step_is_raised_where_it_is_waited_for(exit_) -> None:
    async def step(batch: object) -> None:
        raise exit_

    loop = MainLoop(step, [1])
    try:
        async with loop.running():
            await turns(30)
    except exit_:
        pass
    else:
        pytest.fail("nothing was raised")


async def test_an_empty_epoch_or_a_bad_file_is_the_runs_failure_not_the_bodys(tmp_path) -> None:
    log = SQLiteLog(tmp_path / "nowhere" / "log.sqlite")
    loop = MainLoop(Steps(), [1], log=log)
    entered = False
    with pytest.raises(OSError, match="nowhere"):
        async with loop.running():
            entered = True
            await turns(10)
    assert entered


def test_the_end_of_the_event_loop_ends_the_run_in_good_order(tmp_path) -> None:
    heard = Heard()

    async def main() -> None:
        steps = Steps()
        log = SQLiteLog(tmp_path / "log.sqlite")
        loop = MainLoop(steps, endless, extensions=[heard], log=log)

        async def service() -> None:
            async with loop.running():
                await asyncio.Event().wait()

        main.service = asyncio.create_task(service())
        await steps.began.wait()

    asyncio.run(main())
    assert heard.calls[0] == "on_interrupt"
    with read_log(tmp_path / "log.sqlite") as log:
        assert log.status["batch_interrupt_received"] is True


def test_without_an_event_loop_the_error_says_so() -> None:
    entering = MainLoop(Steps(), [1]).running().__aenter__()
    with pytest.raises(NoEventLoopError, match=r"MainLoop\.running\(\) found no asyncio"):
        entering.send(None)


async def test_ctrl_c_stops_a_run_beside_as_any_other(steps, heard) -> None:
    loop = MainLoop(steps, range(5), extensions=[heard], signals="replace")
    async with loop.running() as handle:
        await steps.until(2)
        signal.raise_signal(signal.SIGINT)
        await handle.wait()
    assert steps.batches == [0, 1, 2, 3, 4]
    assert loop.status["epoch_interrupt_received"] is True
    assert heard.calls == ["on_interrupt", "after_training"]


# ------------------------------------------------------------------ the handle


async def test_the_handle_asks_for_a_finish_as_often_as_one_likes(steps, heard) -> None:
    loop = MainLoop(steps, range(5), extensions=[heard])
    async with loop.running() as handle:
        await steps.until(2)
        for _ in range(3):
            handle.request_finish()
        await handle.wait()
        for _ in range(3):
            handle.request_finish("batch")  # it has ended, as was asked
    assert steps.batches == [0, 1, 2, 3, 4]
    assert heard.calls == ["on_interrupt", "after_training"]
    assert "left running()" not in str(dict(loop.log.current_row))


async def test_the_handle_after_the_run_is_of_that_run_alone(steps) -> None:
    loop = MainLoop(steps, endless)
    async with loop.running() as first:
        await steps.until(2)
    async with loop.running():
        first.request_finish("batch")
        first.resume()
        with pytest.raises(NotRunningError, match="the handle of a run that has ended"):
            first.pause()
        assert await first.wait() is loop.log
        assert await first.wait_paused() is False
        assert first.state == "closed"
        assert loop.state in ("starting", "running")
        await steps.until(len(steps.batches) + 3)


async def test_a_level_that_does_not_exist_is_refused(steps) -> None:
    loop = MainLoop(steps, endless)
    async with loop.running() as handle:
        with pytest.raises(ArgumentError, match="at is 'now'; expected 'epoch' or 'batch'"):
            handle.request_finish("now")
        with pytest.raises(ArgumentError, match="at is 'now'"):
            loop.request_finish("now")


async def test_the_handle_may_be_used_from_other_threads(steps) -> None:
    def steer() -> None:
        handle.pause()
        while handle.state != "paused":
            assert not timed_out.is_set()
        seen.append(len(steps.batches))
        handle.resume()
        while len(steps.batches) < seen[0] + 3:
            assert not timed_out.is_set()
        handle.request_finish("batch")

    seen: list[int] = []
    timed_out = threading.Event()
    loop = MainLoop(steps, endless)
    async with loop.running() as handle:
        await steps.until(2)
        asyncio.get_running_loop().call_later(10, timed_out.set)
        await asyncio.gather(asyncio.to_thread(steer), handle.wait())
    assert loop.log.current_row["interrupt_cause"] == "request_finish('batch')"


async def test_many_threads_at_once_do_no_harm(steps) -> None:
    def steer() -> None:
        for _ in range(200):
            handle.pause()
            handle.resume()

    loop = MainLoop(steps, endless)
    async with loop.running() as handle:
        await asyncio.gather(*(asyncio.to_thread(steer) for _ in range(4)))
        await turns(5)
        await steps.until(len(steps.batches) + 3)
    assert steps.batches == list(range(len(steps.batches)))


def test_a_request_from_a_thread_to_an_event_loop_that_is_closed_is_none() -> None:
    async def main() -> object:
        loop = MainLoop(Steps(), endless)
        async with loop.running() as handle:
            await turns(3)
        return handle

    handle = asyncio.run(main())
    thread = threading.Thread(target=handle.request_finish)
    thread.start()
    thread.join()
    assert handle.state == "closed"


async def test_who_waits_for_a_run_that_was_given_up_is_not_cancelled() -> None:
    in_step = asyncio.Event()

    async def step(batch: object) -> None:
        in_step.set()
        await asyncio.Event().wait()

    loop = MainLoop(step, [1], grace_s=0.05)
    with pytest.raises(
        GivenUpError, match="the run that was waited for is over: the run was given"
    ):
        async with loop.running() as handle:
            await in_step.wait()
            handle.request_finish("batch")
            await handle.wait()
    assert asyncio.current_task().cancelling() == 0


async def test_waiting_often_does_not_make_the_traceback_longer() -> None:
    async def step(batch: object) -> None:
        raise ValueError

    loop = MainLoop(step, [1])
    lengths: list[int] = []
    try:
        async with loop.running() as handle:
            for _ in range(5):
                try:
                    await handle.wait()
                except ValueError as error:
                    lengths.append(len(traceback.extract_tb(error.__traceback__)))
    except ValueError:
        pass
    assert len(set(lengths)) == 1


@pytest.mark.parametrize("where", ["a callback", "background work"])
@pytest.mark.parametrize("what", ["wait", "wait_paused"])
async def test_a_run_does_not_wait_for_itself(what, where) -> None:
    handles: list[RunHandle] = []
    errors: list[Exception] = []

    async def wait() -> None:
        handles[0].pause()
        try:
            assert await getattr(handles[0], what)()
        except (ArgumentError, AlreadyRunningError) as error:
            errors.append(error)
        handles[0].resume()

    class Wait(TrainingExtension):
        async def after_batch(self, batch: object) -> None:
            if self.main_loop.status["iterations_done"] > 1:
                return
            if where == "a callback":
                await wait()
            else:
                self.main_loop.start_soon(wait)

    loop = MainLoop(Steps(), range(9), extensions=[Wait(), FinishAfter(after_n_epochs=3)])
    async with asyncio.timeout(10), loop.running() as handle:
        handles.append(handle)
        await handle.wait()
    # Background work may wait for the training to hold still, and for nothing else.
    may = (what, where) == ("wait_paused", "background work")
    assert len(errors) == (0 if may else 1)


async def test_who_waits_for_a_pause_beside_a_training_that_fails_is_told() -> None:
    told: list[bool] = []

    async def wait() -> None:
        handles[0].pause()
        told.append(await handles[0].wait_paused())

    async def step(batch: object) -> None:
        loop.start_soon(wait)
        await turns(5)
        raise ValueError("no good")

    handles: list[RunHandle] = []
    loop = MainLoop(step, [1])
    with pytest.raises(ValueError, match="no good"):
        async with asyncio.timeout(10), loop.running() as handle:
            handles.append(handle)
            await handle.wait()
    assert told == [False]


# ------------------------------------------------------------------ pauses


async def paused(handle) -> None:
    handle.pause()
    async with asyncio.timeout(5):
        assert await handle.wait_paused()
    assert handle.state == "paused"


@pytest.mark.parametrize("times", [1, 2])
async def test_a_paused_run_holds_still_at_a_boundary_and_goes_on(steps, times) -> None:
    loop = MainLoop(steps, endless)
    async with loop.running() as handle:
        await steps.until(3)
        for _ in range(times):
            await paused(handle)
        done = loop.status["iterations_done"]
        assert done == len(steps.batches), "a step was under way"
        assert loop.position.stage == "batch_done"
        await turns(50)
        assert len(steps.batches) == done
        handle.resume()
        handle.resume()
        await steps.until(done + 3)
        assert handle.state == "running"
    assert steps.batches == list(range(len(steps.batches)))


async def test_the_loop_itself_can_be_paused_too(steps) -> None:
    loop = MainLoop(steps, endless)
    for method in (loop.pause, loop.resume):
        with pytest.raises(NotRunningError, match="asked for while no run is under way"):
            method()
    run = asyncio.create_task(loop.run())
    await steps.until(3)
    loop.pause()
    assert await loop.wait_paused()
    assert loop.state == "paused"
    loop.resume()
    assert not await loop.wait_paused()
    await steps.until(len(steps.batches) + 3)
    loop.request_finish("batch")
    await run
    with pytest.raises(NotRunningError):
        await loop.wait_paused()


async def test_resume_without_pause_does_nothing(steps) -> None:
    loop = MainLoop(steps, endless)
    async with loop.running() as handle:
        handle.resume()
        await steps.until(3)


async def test_an_extension_may_pause_its_run_and_a_pause_before_the_first_batch_holds() -> None:
    class Pause(TrainingExtension):
        async def before_training(self) -> None:
            self.main_loop.pause()

    steps = Steps()
    loop = MainLoop(steps, endless, extensions=[Pause()])
    async with loop.running() as handle:
        async with asyncio.timeout(5):
            while handle.state != "paused":
                await asyncio.sleep(0)
        assert steps.batches == []
        handle.resume()
        await steps.until(2)


async def test_a_batch_that_comes_while_it_is_paused_is_trained_on_later(steps) -> None:
    fed = asyncio.Queue()

    async def batches():
        while True:
            yield await fed.get()

    loop = MainLoop(steps, batches)
    async with loop.running() as handle:
        fed.put_nowait(1)
        await steps.until(1)
        await paused(handle)  # in the wait for a batch, which is as still as can be
        fed.put_nowait(2)
        await turns(30)
        assert steps.batches == [1]
        handle.resume()
        await steps.until(2)
        await paused(handle)
        fed.put_nowait(3)
        await turns(30)
    async with loop.running():  # that one is not lost though the run was left
        await steps.until(3)
    assert steps.batches == [1, 2, 3]


@pytest.mark.parametrize("stream", ["list", "generator"])
@pytest.mark.parametrize("stop", ["batch", "epoch", "cancel", "SIGTERM", "SIGINT", "finish"])
async def test_a_run_that_is_paused_is_stopped_as_ever(stop, stream, heard) -> None:
    async def generate():
        for batch in range(5):
            yield batch

    steps = Steps()
    source = range(5) if stream == "list" else generate
    loop = MainLoop(steps, source, extensions=[heard], signals="replace", grace_s=20)
    run = asyncio.create_task(loop.run())
    await steps.until(2)
    loop.pause()
    while loop.state != "paused":
        await asyncio.sleep(0)
    done = len(steps.batches)
    if stop in ("batch", "epoch"):
        loop.request_finish(stop)
    elif stop == "finish":
        loop.log.current_row["training_finish_requested"] = True
        loop.resume()
    elif stop == "cancel":
        run.cancel()
    else:
        signal.raise_signal(signal.Signals[stop])
    async with asyncio.timeout(5):
        await asyncio.wait([run])
    assert run.cancelled() == (stop == "cancel")
    goes_on = stop in ("epoch", "SIGINT")
    assert len(steps.batches) == (5 if goes_on else done)
    expected = ["on_interrupt"] * (stop != "finish") + ["after_training"] * (stop != "cancel")
    assert heard.calls == expected


async def test_a_run_that_is_to_stop_does_not_pause(steps) -> None:
    loop = MainLoop(steps, range(50))
    async with loop.running() as handle:
        await steps.until(2)
        handle.request_finish("epoch")
        handle.pause()
        assert await handle.wait_paused() is False
        async with asyncio.timeout(5):
            await handle.wait()
    assert len(steps.batches) == 50


async def test_who_waits_for_the_pause_is_told_when_it_does_not_come(steps) -> None:
    loop = MainLoop(steps, endless)
    async with loop.running() as handle:
        assert await handle.wait_paused() is False  # nobody asked
        handle.pause()
        waiting = asyncio.create_task(handle.wait_paused())
        await asyncio.sleep(0)
        handle.resume()
        async with asyncio.timeout(5):
            assert await waiting is False


async def test_a_failure_beside_a_paused_training_ends_it(steps, heard) -> None:
    async def fail() -> None:
        raise ValueError("beside")

    loop = MainLoop(steps, endless, extensions=[heard])
    with pytest.raises(ValueError, match="beside"):
        async with loop.running() as handle:
            await steps.until(2)
            await paused(handle)
            loop.start_soon(fail)
            async with asyncio.timeout(5):
                await handle.wait()
    assert heard.calls == ["on_error"]


async def test_background_work_goes_on_while_the_training_is_paused(steps) -> None:
    worked = asyncio.Event()

    async def work() -> None:
        await turns(5)
        worked.set()

    loop = MainLoop(steps, endless)
    async with loop.running() as handle:
        await steps.until(2)
        await paused(handle)
        loop.start_soon(work)
        async with asyncio.timeout(5):
            await worked.wait()
        assert handle.state == "paused"


async def test_what_was_trained_before_a_pause_is_in_the_file(tmp_path, steps) -> None:
    database = tmp_path / "log.sqlite"
    loop = MainLoop(steps, endless, log=SQLiteLog(database))
    async with loop.running() as handle:
        await steps.until(3)
        await paused(handle)
        await loop.log.flush()
        with read_log(database) as log:
            assert log.status["iterations_done"] == len(steps.batches)


# ------------------------------------------------------------------ the start


class Opens(TrainingExtension):
    """Begins when it is let, and may fail then."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.let, self.fails = asyncio.Event(), fails

    async def before_training(self) -> None:
        await self.let.wait()
        if self.fails:
            raise ZeroDivisionError


async def test_start_is_waited_for(steps) -> None:
    opens = Opens()
    loop = MainLoop(steps, endless, extensions=[opens], signals="off")
    async with loop.running() as handle:
        waiting = asyncio.create_task(handle.wait_started())
        await turns(20)
        assert (waiting.done(), handle.state) == (False, "starting")
        opens.let.set()
        await waiting
        assert handle.state == "running"
        await handle.wait_started()
    await handle.wait_started()  # which was long ago


async def test_start_that_fails_is_heard_of() -> None:
    opens = Opens(fails=True)
    loop = MainLoop(print, [1], extensions=[opens], signals="off")
    with pytest.raises(ZeroDivisionError):
        async with loop.running() as handle:
            opens.let.set()
            with pytest.raises(ZeroDivisionError):
                await handle.wait_started()


async def test_start_that_is_given_up_is_heard_of() -> None:
    loop = MainLoop(print, [1], extensions=[Opens()], signals="off", grace_s=0)
    with pytest.raises((asyncio.CancelledError, GivenUpError)):
        async with loop.running() as handle:
            handle.request_finish("batch")
            with pytest.raises(GivenUpError):
                await handle.wait_started()


async def test_start_cannot_be_waited_for_in_the_run_itself() -> None:
    class Waits(TrainingExtension):
        async def before_training(self) -> None:
            await handles[0].wait_started()

    handles = []
    with pytest.raises(ArgumentError, match="expected a task outside the run"):
        async with MainLoop(print, [1], extensions=[Waits()], signals="off").running() as handle:
            handles.append(handle)
