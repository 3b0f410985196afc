"""Work beside the training: whose it is, what it records, what its failures and endings mean."""

import asyncio
import contextvars
import gc
import logging
import signal
import sqlite3
import threading
import warnings
import weakref
from contextlib import closing, suppress
from functools import partial

import pytest

from aloop import (
    CompositeExtension,
    FinishAfter,
    MainLoop,
    SimpleExtension,
    SQLiteLog,
    TrainingDataMonitoring,
    TrainingExtension,
    TrainingFinish,
    read_log,
    run_in_worker,
)
from aloop.errors import AlreadyRunningError, ArgumentError, NotRunningError, TriggerError


async def turns(number: int) -> None:
    """Let the event loop do so many turns."""
    for _ in range(number):
        await asyncio.sleep(0)


async def no_op(batch: object) -> None:
    """Train on nothing."""
    await turns(1)


class Beside(SimpleExtension):
    """Does beside the training what it is given: a coroutine function of itself and the rest."""

    def __init__(self, action, name: str | None = None, **options) -> None:
        super().__init__(name, background=True, **options)
        self.action = action

    async def do(self, which_callback: str, *args: object) -> None:
        await self.action(self, which_callback, *args)


class Heard(TrainingExtension):
    """Notes the callbacks that end a run, and with what."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[object] = []

    async def on_interrupt(self) -> None:
        self.calls.append("on_interrupt")

    async def after_training(self) -> None:
        self.calls.append("after_training")

    async def on_error(self, exception: BaseException) -> None:
        self.calls.append(exception)


def make_loop(*extensions: TrainingExtension, step=no_op, stream=range(10), epochs=3, **options):
    finish = FinishAfter(after_n_epochs=epochs)
    return MainLoop(step, stream, extensions=[*extensions, finish], **options)


async def swallow_until(released: asyncio.Event, began: asyncio.Event | None = None) -> None:
    """Wait, and take no cancellation for an answer."""
    if began is not None:
        began.set()
    while not released.is_set():
        try:
            await released.wait()
        except asyncio.CancelledError:
            continue


# ------------------------------------------------------------------ what it records, and where


async def test_its_records_go_to_the_row_that_triggered_it() -> None:
    async def evaluate(extension, *_: object) -> None:
        then = extension.main_loop.status["iterations_done"]
        await turns(12)  # some batches of the next epoch
        extension.main_loop.log.current_row["evaluated"] = then
        passed.append(loop.status["iterations_done"] - then)

    passed: list[int] = []
    loop = make_loop(Beside(evaluate, after_epoch=True))
    log = await loop.run()
    assert {time: log[time].get("evaluated") for time in (10, 20, 30)} == {10: 10, 20: 20, 30: 30}
    assert max(passed[:2]) > 0, "it ran while the training stood still"


async def test_the_training_goes_on_beside_it() -> None:
    async def wait_for_the_third_epoch(extension, *_: object) -> None:
        while loop.status["epochs_done"] < 3:
            await asyncio.sleep(0)
        extension.main_loop.log.current_row["done"] = True

    loop = make_loop(Beside(wait_for_the_third_epoch, after_n_epochs=1))
    async with asyncio.timeout(5):
        log = await loop.run()
    assert log[10]["done"] is True


async def test_it_finds_the_loop_as_it_was_at_that_moment() -> None:
    seen: list[dict[str, object]] = []

    async def look(extension, which_callback, *args: object) -> None:
        await turns(12)
        main_loop = extension.main_loop
        seen.append(
            {
                "iterations": main_loop.status["iterations_done"],
                "epochs": main_loop.log.status["epochs_done"],
                "batch": args,
                "position": main_loop.position.iterations_done,
                "quantities": dict(main_loop.quantities),
                "previous": main_loop.log.previous_row.get("n"),
                "last epoch": main_loop.log.last_epoch_row.get("n"),
                "model": main_loop.model,
                "length": len(main_loop.log) >= 15,
                "in": main_loop.log[12]["n"],
            }
        )

    class Number(TrainingExtension):
        async def after_batch(self, batch: object) -> None:
            self.main_loop.log.current_row["n"] = self.main_loop.status["iterations_done"]

    async def step(batch: int) -> dict[str, int]:
        await asyncio.sleep(0)
        return {"cost": batch}

    beside = Beside(look, after_n_batches=15)
    loop = make_loop(Number(), beside, step=step, model="a model")
    await loop.run()
    assert seen == [
        {
            "iterations": 15,
            "epochs": 1,
            "batch": (4,),
            "position": 15,
            "quantities": {"cost": 4},
            "previous": 14,
            "last epoch": 10,
            "model": "a model",
            "length": True,
            "in": 12,
        }
    ]
    assert beside.main_loop is loop  # outside of it


async def test_its_records_are_committed_when_they_come(tmp_path) -> None:
    database = tmp_path / "log.sqlite"
    recorded, looked = asyncio.Event(), asyncio.Event()

    async def record(extension, *_: object) -> None:
        extension.main_loop.log.current_row["late"] = 1.5
        extension.main_loop.status["best"] = 1.5
        await loop.log.flush()
        recorded.set()

    async def batches():
        yield 1
        await looked.wait()  # no boundary comes meanwhile

    loop = make_loop(
        Beside(record, after_n_batches=1), stream=batches, log=SQLiteLog(database), epochs=1
    )
    run = asyncio.create_task(loop.run())
    await recorded.wait()
    with closing(sqlite3.connect(database)) as connection:
        entries = connection.execute("SELECT time, key, value FROM entries").fetchall()
        status = dict(connection.execute("SELECT key, value FROM status"))
    looked.set()
    await run
    assert entries == [(1, "late", 1.5)]
    assert (status["best"], status["iterations_done"]) == (1.5, 1)


async def test_a_boundary_in_the_making_is_not_split_by_its_records(tmp_path) -> None:
    database = tmp_path / "log.sqlite"
    in_boundary, recorded, flushed = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def record(extension, *_: object) -> None:
        await in_boundary.wait()
        extension.main_loop.log.current_row["late"] = 1
        recorded.set()

    class HalfARow(TrainingExtension):
        async def after_batch(self, batch: int) -> None:
            if batch == 1:
                self.main_loop.log.current_row["first half"] = batch
                in_boundary.set()
                await recorded.wait()
                await self.main_loop.log.flush()
                with closing(sqlite3.connect(database)) as connection:
                    found.extend(connection.execute("SELECT key FROM entries").fetchall())
                self.main_loop.log.current_row["second half"] = batch
                flushed.set()

    found: list[tuple[str]] = []
    loop = make_loop(
        Beside(record, after_n_batches=1),
        HalfARow(),
        stream=range(2),
        log=SQLiteLog(database),
        epochs=1,
    )
    await loop.run()
    assert found == []
    with read_log(database) as log:
        assert dict(log[1]) == {"late": 1}
        assert log[2]["second half"] == 1


async def test_how_far_the_run_is_comes_from_its_boundaries_alone(tmp_path) -> None:
    """A late record in the midst of a boundary without records must not count its iteration."""
    database = tmp_path / "log.sqlite"
    in_boundary, recorded = asyncio.Event(), asyncio.Event()

    async def record(extension, *_: object) -> None:
        await in_boundary.wait()
        extension.main_loop.log.current_row["late"] = 1
        await extension.main_loop.log.flush()
        recorded.set()

    class Wait(TrainingExtension):
        async def after_batch(self, batch: int) -> None:
            if batch == 1:
                in_boundary.set()
                await recorded.wait()
                with closing(sqlite3.connect(database)) as connection:
                    sql = "SELECT value FROM status WHERE key = 'iterations_done'"
                    found.extend(connection.execute(sql).fetchall())

    found: list[tuple[int]] = []
    loop = make_loop(
        Beside(record, after_n_batches=1),
        Wait(),
        stream=range(2),
        log=SQLiteLog(database),
        epochs=1,
    )
    await loop.run()
    assert found == [(1,)]


async def test_what_it_records_can_be_deleted_and_gone_through() -> None:
    async def use(extension, *_: object) -> None:
        row = extension.main_loop.log.current_row
        row["kept"], row["dropped"] = 1, 2
        del row["dropped"]
        seen.append((dict(row), len(row), "dropped" in row, repr(row)))
        with pytest.raises(TypeError):
            row["refused"] = object()

    seen: list[object] = []
    loop = make_loop(Beside(use, after_n_batches=1), epochs=1)
    log = await loop.run()
    assert seen == [({"kept": 1}, 1, False, "{'kept': 1}")]
    assert dict(log[1]) == {"kept": 1}


# ------------------------------------------------------------------ one at a time


async def test_it_is_never_under_way_twice_and_no_trigger_is_lost(caplog) -> None:
    at_work = 0
    done: list[int] = []

    async def work(extension, *_: object) -> None:
        nonlocal at_work
        at_work += 1
        assert at_work == 1
        await turns(3)
        done.append(extension.main_loop.status["iterations_done"])
        at_work -= 1

    await make_loop(Beside(work, "slow", after_batch=True)).run()
    assert done == list(range(1, 31))
    (message,) = (r.message for r in caplog.records if "due again" in r.message)
    assert "'slow' in after_batch" in message


async def test_two_conditions_at_once_are_done_in_order() -> None:
    calls: list[tuple[object, ...]] = []

    async def note(extension, which_callback, *args: object) -> None:
        calls.append((which_callback, *args))

    beside = Beside(note, after_n_epochs=1).add_condition(["after_epoch"], arguments=["again"])
    await make_loop(beside, epochs=1).run()
    assert calls == [("after_epoch",), ("after_epoch", "again")]


async def test_two_extensions_are_beside_each_other() -> None:
    met = asyncio.Barrier(2)

    async def meet(extension, *_: object) -> None:
        async with asyncio.timeout(5):
            await met.wait()

    await make_loop(
        Beside(meet, "a", after_n_epochs=1), Beside(meet, "b", after_n_epochs=1), epochs=1
    ).run()


async def test_what_is_triggered_while_the_last_hangs_does_not_hold_up_a_stop() -> None:
    began = asyncio.Event()

    async def hang(extension, *_: object) -> None:
        began.set()
        await asyncio.Event().wait()

    heard = Heard()
    loop = make_loop(Beside(hang, after_batch=True), heard, grace_s=0.2)
    run = asyncio.create_task(loop.run())
    await began.wait()
    while loop.status["iterations_done"] < 2:
        await asyncio.sleep(0)
    loop.request_finish("batch")
    async with asyncio.timeout(5):
        log = await run
    assert heard.calls == ["on_interrupt", "after_training"]
    assert "step_abandoned" not in log.current_row


def test_what_acts_at_its_boundary_cannot_be_in_the_background() -> None:
    for make in (
        partial(FinishAfter, after_n_epochs=1),
        partial(TrainingDataMonitoring, ["cost"]),
    ):
        with pytest.raises(
            TriggerError, match=r"was given background=True; expected .*leave it out"
        ):
            make(background=True)
    with pytest.raises(TriggerError, match="background is 'yes'"):
        Beside.__bases__[0](background="yes")


# ------------------------------------------------------------------ failures


@pytest.mark.parametrize("step_takes", [1, 10])
async def test_a_failure_ends_the_run_by_the_next_boundary_and_names_it(step_takes) -> None:
    async def fail(extension, *_: object) -> None:
        raise ValueError("no good")

    async def step(batch: int) -> None:
        await turns(step_takes)

    heard = Heard()
    loop = make_loop(Beside(fail, "evaluation", after_n_batches=3), heard, step=step)
    with pytest.raises(ValueError, match="no good") as caught:
        await loop.run()
    assert caught.value.__notes__ == [
        "raised by the extension 'evaluation' in after_batch, beside the training"
    ]
    assert heard.calls == [caught.value]
    assert loop.status["iterations_done"] <= 4
    row = loop.log.current_row
    assert "no good" in row["got_exception"]
    assert "batch_interrupt_received" not in row


async def test_a_failure_ends_a_run_that_waits_for_a_batch_and_the_batch_is_not_lost() -> None:
    fed = asyncio.Queue()

    async def batches():
        while True:
            yield await fed.get()

    async def fail(extension, *_: object) -> None:
        raise ValueError("no good")

    trained: list[int] = []

    async def step(batch: int) -> None:
        trained.append(batch)
        if batch == 3:
            loop.request_finish("batch")

    loop = MainLoop(step, batches, extensions=[Beside(fail, after_n_batches=2)])
    fed.put_nowait(1)
    fed.put_nowait(2)
    async with asyncio.timeout(5):
        with pytest.raises(ValueError, match="no good"):
            await loop.run()
        fed.put_nowait(3)
        await loop.run()
    assert trained == [1, 2, 3]


async def test_a_failure_at_the_very_end_is_a_failure_of_the_run() -> None:
    async def fail(extension, *_: object) -> None:
        await turns(50)
        raise ValueError("too late")

    heard = Heard()
    loop = make_loop(Beside(fail, after_n_epochs=1), heard, epochs=1)
    with pytest.raises(ValueError, match="too late") as caught:
        await loop.run()
    assert heard.calls == [caught.value]
    assert "training_finished" not in loop.log.current_row


async def test_what_after_training_begins_is_waited_for_and_can_fail() -> None:
    async def fail(extension, *_: object) -> None:
        await turns(50)
        raise ValueError("too late")

    heard = Heard()
    loop = make_loop(Beside(fail, after_training=True), heard, epochs=1)
    with pytest.raises(ValueError, match="too late") as caught:
        await loop.run()
    assert heard.calls == ["after_training", caught.value]


async def test_further_failures_are_notes_on_the_first() -> None:
    async def fail(error: Exception) -> None:
        raise error

    async def step(batch: int) -> None:
        for error in (ValueError("one"), KeyError("two"), OSError("three")):
            loop.start_soon(fail, error)
        await asyncio.sleep(0)

    loop = make_loop(step=step)
    with pytest.raises(ValueError, match="one") as caught:
        await loop.run()
    notes = "\n".join(caught.value.__notes__)
    assert "KeyError('two')" in notes
    assert "OSError('three')" in notes


async def test_a_failure_beside_that_of_a_step_is_a_note_on_it() -> None:
    async def fail() -> None:
        await turns(50)
        raise ValueError("beside")

    async def step(batch: int) -> None:
        loop.start_soon(fail)
        raise KeyError("the step")

    loop = make_loop(step=step)
    with pytest.raises(KeyError, match="the step") as caught:
        await loop.run()
    assert any("ValueError('beside')" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("exit_", [KeyboardInterrupt, SystemExit])
async def test_an_exit_beside_the_training_leaves_the_event_loop_alive(exit_) -> None:
    async def leave() -> None:
        raise exit_

    async def step(batch: int) -> None:
        loop.start_soon(leave)
        await asyncio.sleep(0)

    heard = Heard()
    loop = make_loop(heard, step=step)
    try:
        await loop.run()
    except exit_:
        pass
    else:
        pytest.fail("nothing was raised")
    assert heard.calls == ["on_interrupt"]


@pytest.mark.parametrize("how", ["raised", "recorded"])
async def test_a_finish_that_is_asked_for_beside_the_training_ends_it_in_good_order(how) -> None:
    async def finish(extension, *_: object) -> None:
        if how == "raised":
            raise TrainingFinish
        extension.main_loop.log.current_row["training_finish_requested"] = True

    async def batches():
        for batch in range(3):
            yield batch
        await asyncio.Event().wait()  # quiet from here on

    heard = Heard()
    loop = make_loop(Beside(finish, after_n_batches=3), heard, stream=batches)
    async with asyncio.timeout(5):
        log = await loop.run()
    assert heard.calls == ["after_training"]
    assert log.current_row["training_finished"] is True
    assert "got_exception" not in log.current_row


async def test_cancelling_itself_is_no_failure_and_is_said(caplog) -> None:
    async def cancelled() -> None:
        raise asyncio.CancelledError

    async def step(batch: int) -> None:
        if not batch:
            loop.start_soon(cancelled, name="fickle")
        await asyncio.sleep(0)

    loop = make_loop(step=step, epochs=1)
    await loop.run()
    assert "the background work 'fickle' was cancelled, and not by its run" in caplog.messages


# ------------------------------------------------------------------ endings


@pytest.mark.parametrize("ending", ["finish", "epoch", "batch", "cancel", "error"])
async def test_every_ending_waits_for_it(ending) -> None:
    finished = asyncio.Event()

    async def work() -> None:
        await turns(50)
        finished.set()

    async def step(batch: int) -> None:
        if batch != 1:
            return
        loop.start_soon(work)
        if ending in ("epoch", "batch"):
            loop.request_finish(ending)
        elif ending == "cancel":
            run.cancel()
        elif ending == "error":
            raise ValueError("no good")

    heard = Heard()
    loop = make_loop(heard, step=step, epochs=1, grace_s=10)
    run = asyncio.create_task(loop.run())
    await asyncio.wait([run])
    assert finished.is_set()
    expected = {
        "finish": ["after_training"],
        "epoch": ["on_interrupt", "after_training"],
        "batch": ["on_interrupt", "after_training"],
        "cancel": ["on_interrupt"],
        "error": [run.exception()] if ending == "error" else None,
    }
    assert heard.calls == expected[ending]
    assert run.cancelled() == (ending == "cancel")


@pytest.mark.parametrize("ending", ["finish", "batch", "cancel", "error"])
async def test_one_that_never_ends_is_cancelled_within_the_grace_and_named(
    ending, caplog, tmp_path
) -> None:
    cancelled: list[bool] = []

    async def never_end() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(True)

    async def step(batch: int) -> None:
        if batch != 1:
            return
        loop.start_soon(never_end)
        if ending == "batch":
            loop.request_finish("batch")
        elif ending == "cancel":
            run.cancel()
        elif ending == "error":
            raise ValueError("no good")

    heard = Heard()
    log = SQLiteLog(tmp_path / "log.sqlite")
    loop = make_loop(heard, step=step, epochs=1, grace_s=0.1, log=log)
    begun = asyncio.get_running_loop().time()
    run = asyncio.create_task(loop.run())
    await asyncio.wait([run])
    assert run.cancelled() or bool(run.exception()) == (ending == "error")
    assert asyncio.get_running_loop().time() - begun < 0.1 + 1.0
    assert cancelled == [True]
    # It has not cost the run its ending.
    called = [call if isinstance(call, str) else "on_error" for call in heard.calls]
    expected = {
        "finish": ["after_training"],
        "batch": ["on_interrupt", "after_training"],
        "cancel": ["on_interrupt"],
        "error": ["on_error"],
    }
    assert called == expected[ending]
    assert "step_abandoned" not in log.current_row
    (message,) = (m for m in caplog.messages if "cancelling what did not end" in m)
    assert "never_end" in message


async def test_one_that_would_not_stop_is_named_and_another_run_refused_until_it_does(
    caplog,
) -> None:
    released = asyncio.Event()

    async def step(batch: int) -> None:
        if not batch and loop.status["epochs_done"] == 0:
            loop.start_soon(swallow_until, released, name="stubborn")
        await asyncio.sleep(0)

    loop = make_loop(step=step, epochs=1, grace_s=0.05)
    begun = asyncio.get_running_loop().time()
    log = await loop.run()
    assert asyncio.get_running_loop().time() - begun < 0.05 + 1.0
    assert log.current_row["training_finished"] is True
    (record,) = (r for r in caplog.records if r.levelno == logging.ERROR)
    assert "the background work 'stubborn' would not stop, and is left behind in" in record.message
    assert "swallow_until" in record.message
    with pytest.raises(AlreadyRunningError, match="still under way"):
        await loop.run()
    released.set()
    await turns(3)
    await loop.run()


async def test_a_run_that_is_given_up_cancels_it(caplog) -> None:
    began, cancelled = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def step(batch: int) -> None:
        loop.start_soon(work)
        await asyncio.Event().wait()

    loop = make_loop(step=step, grace_s=0.05)
    run = asyncio.create_task(loop.run())
    await began.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert cancelled.is_set()
    assert loop.log.current_row["step_abandoned"] is True
    assert not [m for m in caplog.messages if "would not stop" in m]


async def test_a_stop_in_the_wait_for_it_shortens_that_wait() -> None:
    waiting = asyncio.Event()

    async def work() -> None:
        waiting.set()
        await asyncio.Event().wait()

    async def step(batch: int) -> None:
        loop.start_soon(work)
        await asyncio.sleep(0)

    loop = make_loop(step=step, stream=range(1), epochs=1, grace_s=0.3)
    run = asyncio.create_task(loop.run())
    await waiting.wait()
    while loop.state != "finalizing":
        await asyncio.sleep(0)
    clock = asyncio.get_running_loop()
    begun = clock.time()
    loop.request_finish("batch")
    await run
    assert clock.time() - begun < 0.3


async def test_what_was_left_behind_records_nothing_any_more(caplog) -> None:
    released = asyncio.Event()
    ended = asyncio.Event()

    async def late(extension, *_: object) -> None:
        await swallow_until(released)
        try:
            extension.main_loop.log.current_row["late"] = True
        finally:
            ended.set()

    loop = make_loop(Beside(late, after_n_batches=1), epochs=1, grace_s=0.05)
    log = await loop.run()
    released.set()
    await ended.wait()
    assert "late" not in log[1]


async def test_what_fails_after_the_run_is_said_and_nothing_else(caplog) -> None:
    released, ended = asyncio.Event(), asyncio.Event()

    async def late() -> None:
        await swallow_until(released)
        ended.set()
        raise ValueError("long after")

    async def step(batch: int) -> None:
        if not batch:
            loop.start_soon(late)

    loop = make_loop(step=step, stream=range(1), epochs=1, grace_s=0.05)
    await loop.run()
    released.set()
    await ended.wait()
    await asyncio.sleep(0)
    (record,) = (r for r in caplog.records if "when its run was over" in r.message)
    assert "late" in record.message
    assert "long after" in record.message


def test_the_end_of_the_event_loop_waits_for_it() -> None:
    done: list[str] = []
    held: list[object] = []

    async def main() -> None:
        in_step = asyncio.Event()

        async def work() -> None:
            await turns(50)
            done.append("work")

        async def step(batch: int) -> None:
            loop.start_soon(work)
            in_step.set()
            await turns(20)

        loop = make_loop(step=step, epochs=1)
        held.append(asyncio.create_task(loop.run()))
        await in_step.wait()

    asyncio.run(main())
    assert done == ["work"]


def test_an_event_loop_that_is_dropped_takes_it_along() -> None:
    async def work() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        began = asyncio.Event()

        async def step(batch: int) -> None:
            loop.start_soon(work)
            began.set()
            await asyncio.Event().wait()

        loop = make_loop(step=step, epochs=1)
        run = asyncio.ensure_future(loop.run())
        run._log_destroy_pending = False
        await began.wait()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        event_loop = asyncio.new_event_loop()
        event_loop.run_until_complete(main())
        event_loop.close()
        gc.collect()


# ------------------------------------------------------------------ start_soon


async def test_start_soon_calls_at_once_and_carries_the_context_over() -> None:
    who = contextvars.ContextVar("who", default="nobody")
    seen: list[object] = []

    async def work(*args: object) -> None:
        seen.append((who.get(), args))
        who.set("the work")

    async def step(batch: int) -> None:
        if not batch:
            who.set("the step")
            loop.start_soon(work, 1, "two")
            await asyncio.sleep(0)
            seen.append(who.get())

    loop = make_loop(step=step, epochs=1)
    await loop.run()
    assert seen == [("the step", (1, "two")), "the step"]


async def test_start_soon_from_a_sync_step_in_its_thread() -> None:
    threads: list[int] = []

    async def work() -> None:
        threads.append(threading.get_ident())

    def step(batch: int) -> None:
        if not batch:
            loop.start_soon(work)

    loop = make_loop(step=step, epochs=1)
    await loop.run()
    assert threads == [threading.get_ident()]


async def test_what_cannot_be_started_from_a_thread_ends_the_run() -> None:
    def not_async() -> None:
        """Return nothing to await."""

    def step(batch: int) -> None:
        loop.start_soon(not_async)

    loop = make_loop(step=step, epochs=5)
    with pytest.raises(ArgumentError, match=r"returned None; expected a coroutine function"):
        await loop.run()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: print, "returned None; expected a coroutine function"),
        (lambda: asyncio.sleep(0), "leave out the parentheses"),
        (lambda: None, "start_soon was given None"),
    ],
)
async def test_start_soon_refuses_what_it_cannot_run(make, message) -> None:
    refused: list[str] = []

    async def step(batch: int) -> None:
        if not batch:
            with pytest.raises(ArgumentError) as caught:
                loop.start_soon(make())
            refused.append(str(caught.value))

    loop = make_loop(step=step, epochs=1)
    await loop.run()
    assert message in refused[0]


async def test_start_soon_without_a_run_is_refused() -> None:
    loop = make_loop(epochs=1)
    for _ in range(2):  # before the first run, and after it
        with pytest.raises(NotRunningError, match=r"start_soon\(\) was asked for while no run"):
            loop.start_soon(no_op, 1)
        await loop.run()


async def test_start_soon_in_the_last_callbacks_is_waited_for() -> None:
    done: list[str] = []

    async def work() -> None:
        await turns(50)
        done.append("work")

    class AtTheEnd(TrainingExtension):
        async def after_training(self) -> None:
            self.main_loop.start_soon(work)

    await make_loop(AtTheEnd(), epochs=1).run()
    assert done == ["work"]


async def test_ten_thousand_pieces_of_work_take_no_longer_than_they_do() -> None:
    done = 0

    async def work() -> None:
        nonlocal done
        await asyncio.sleep(0)
        done += 1

    async def step(batch: int) -> None:
        for _ in range(10_000):
            loop.start_soon(work)

    loop = make_loop(step=step, stream=range(1), epochs=1)
    async with asyncio.timeout(10):
        await loop.run()
    assert done == 10_000


async def test_its_turn_in_the_worker_is_between_the_steps() -> None:
    at_work = threading.Lock()

    def alone() -> None:
        assert at_work.acquire(blocking=False)
        at_work.release()

    async def evaluate(extension, *_: object) -> None:
        await run_in_worker(alone)

    def step(batch: int) -> None:
        alone()

    await make_loop(Beside(evaluate, every_n_batches=3), step=step).run()


# ------------------------------------------------------------------ with the rest


async def test_a_composite_in_the_background_leaves_its_children_in_the_training() -> None:
    order: list[str] = []

    class Child(TrainingExtension):
        async def after_epoch(self) -> None:
            order.append(f"child at {self.main_loop.status['iterations_done']}")

    class Parent(CompositeExtension):
        async def do(self, which_callback: str, *args: object) -> None:
            await asyncio.sleep(0)
            order.append(f"parent at {self.main_loop.status['iterations_done']}")

    await make_loop(Parent([Child()], background=True, after_epoch=True), epochs=1).run()
    assert order == ["child at 10", "parent at 10"]


async def test_the_state_of_a_run_that_waits_for_it_is_finalizing() -> None:
    states: list[str] = []

    async def look(extension, *_: object) -> None:
        while loop.status["epochs_done"] < 1 or loop.state == "running":
            await asyncio.sleep(0)
        states.append(loop.state)

    loop = make_loop(Beside(look, after_n_epochs=1), epochs=1)
    await loop.run()
    assert states == ["finalizing"]


async def test_what_it_records_is_in_a_log_that_was_resumed(tmp_path) -> None:
    async def evaluate(extension, *_: object) -> None:
        then = extension.main_loop.status["iterations_done"]
        await asyncio.sleep(0)
        extension.main_loop.log.current_row["evaluated"] = then

    finish = FinishAfter(after_n_epochs=1)
    log = SQLiteLog(tmp_path / "log.sqlite")
    loop = MainLoop(
        no_op, range(3), log=log, extensions=[Beside(evaluate, after_epoch=True), finish]
    )
    await loop.run()
    finish.add_condition(["after_epoch"], lambda log: log.status["epochs_done"] == 3)
    await loop.run()
    with read_log(tmp_path / "log.sqlite") as read:
        assert [read[time].get("evaluated") for time in range(1, 10)] == [
            time if time % 3 == 0 else None for time in range(1, 10)
        ]


# ------------------------------------------------------------------ in odd places


async def test_changing_the_extensions_from_there_changes_no_condition() -> None:
    done: list[int] = []

    async def change(extension, *_: object) -> None:
        done.append(extension.main_loop.status["iterations_done"])
        if len(done) == 1:
            extension.main_loop.extensions.append(Heard())
        if len(done) == 2:
            extension.main_loop.callbacks_changed()

    await make_loop(Beside(change, every_n_batches=2), epochs=1).run()
    assert done == [2, 4, 6, 8, 10]


async def test_a_loop_that_is_run_in_there_has_its_own_moments(tmp_path) -> None:
    async def record(extension, *_: object) -> None:
        extension.main_loop.log.current_row["inner"] = True

    async def run_another(extension, *_: object) -> None:
        await inner.run()
        extension.main_loop.log.current_row["outer"] = True

    inner = make_loop(Beside(record, "inner", after_batch=True), epochs=1, stream=range(3))
    outer = make_loop(Beside(run_another, "outer", after_n_batches=2), epochs=1, stream=range(4))
    log = await outer.run()
    assert [dict(log[time]).get("outer") for time in (1, 2, 3)] == [None, True, None]
    assert not any("inner" in log[time] for time in range(5))
    assert all(inner.log[time]["inner"] for time in (1, 2, 3))


async def test_what_is_started_from_there_finds_the_loop_as_it_is() -> None:
    seen: list[tuple[int, int]] = []

    async def start(extension, *_: object) -> None:
        async def look() -> None:
            await turns(20)
            seen.append(
                (extension.main_loop.status["iterations_done"], loop.status["iterations_done"])
            )

        extension.main_loop.start_soon(look)

    loop = make_loop(Beside(start, after_n_batches=1))
    await loop.run()
    assert seen[0][0] == seen[0][1] > 1


@pytest.mark.parametrize("where", ["a step", "a thread", "outside"])
async def test_it_uses_the_worker_of_the_run_wherever_it_was_started(where) -> None:
    threads: list[str] = []
    began = asyncio.Event()

    async def work() -> None:
        threads.append(await run_in_worker(lambda: threading.current_thread().name))

    async def step(batch: int) -> None:
        began.set()
        if not batch and where == "a step":
            loop.start_soon(work)
        if not batch and where == "a thread":
            await asyncio.to_thread(loop.start_soon, work)
        await turns(5)

    loop = make_loop(step=step, epochs=1)
    run = asyncio.create_task(loop.run())
    await began.wait()
    if where == "outside":
        loop.start_soon(work)
    await run
    assert threads == ["aloop worker"]


async def test_a_run_that_cannot_open_its_log_waits_for_it_too(tmp_path, caplog) -> None:
    done: list[str] = []

    async def work() -> None:
        await turns(50)
        done.append("work")

    loop = make_loop(log=SQLiteLog(tmp_path / "nowhere" / "log.sqlite"))
    with pytest.raises(OSError, match="nowhere"):
        async with loop.running():
            loop.start_soon(work)
    assert done == ["work"]
    assert not [m for m in caplog.messages if "would not stop" in m]


async def test_giving_up_in_the_wait_for_it_leaves_it_the_time_to_end(caplog) -> None:
    cleaned: list[bool] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await turns(10)
            cleaned.append(True)

    async def step(batch: int) -> None:
        if not batch:
            loop.start_soon(work)

    async def outcome() -> BaseException | None:
        try:
            await loop.run()
        except KeyboardInterrupt as error:  # which a task must not raise
            return error
        return None

    loop = make_loop(step=step, epochs=1, signals="replace", grace_s=20)
    run = asyncio.create_task(outcome())
    while loop.state != "finalizing":
        await asyncio.sleep(0)
    for _ in range(2):
        signal.raise_signal(signal.SIGINT)
        await turns(3)
    async with asyncio.timeout(5):
        assert isinstance(await run, KeyboardInterrupt)
    assert cleaned == [True]
    assert loop.log.current_row["step_abandoned"] is True
    assert not [m for m in caplog.messages if "would not stop" in m]


async def test_one_that_was_cancelled_and_fails_in_its_clean_up_fails_no_run(caplog) -> None:
    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise RuntimeError("in the clean-up")

    async def step(batch: int) -> None:
        if not batch:
            loop.start_soon(work)

    heard = Heard()
    loop = make_loop(heard, step=step, epochs=1, grace_s=0.05)
    await loop.run()
    assert heard.calls == ["after_training"]
    assert [m for m in caplog.messages if "failed when it was cancelled" in m]


async def test_following_the_log_from_there_ends_with_the_training() -> None:
    rows: list[int] = []

    class Number(TrainingExtension):
        async def after_batch(self, batch: object) -> None:
            self.main_loop.log.current_row["n"] = batch

    async def watch() -> None:
        async for row in loop.log.follow():
            rows.append(row.time)

    async def step(batch: int) -> None:
        if loop.status["iterations_done"] == 0:
            loop.start_soon(watch)
        await asyncio.sleep(0)

    loop = make_loop(Number(), step=step, epochs=2)
    async with asyncio.timeout(5):
        await loop.run()
    assert rows == list(range(1, 21))


async def test_extensions_that_are_equal_or_have_no_hash_are_each_their_own() -> None:
    class Equal(SimpleExtension):
        __hash__ = None

        def __init__(self, *args, **options) -> None:
            super().__init__(*args, background=True, **options)

        def __eq__(self, other: object) -> bool:
            return True

        async def do(self, which_callback: str, *args: object) -> None:
            async with asyncio.timeout(5):
                await met.wait()

    met = asyncio.Barrier(2)
    await make_loop(Equal("a", after_n_epochs=1), Equal("b", after_n_epochs=1), epochs=1).run()


async def test_an_extension_that_was_left_behind_is_not_given_to_another_loop() -> None:
    released = asyncio.Event()

    async def hang(extension, *_: object) -> None:
        await swallow_until(released)

    shared = Beside(hang, "stubborn", after_n_batches=1)
    first = make_loop(shared, epochs=1, grace_s=0.05)
    await first.run()
    second = make_loop(shared, epochs=1)
    with pytest.raises(AlreadyRunningError, match="'stubborn' is in use by another run"):
        await second.run()
    released.set()
    await turns(5)
    await second.run()


@pytest.mark.parametrize("exit_", [KeyboardInterrupt, SystemExit])
async def test_an_exit_of_what_a_thread_started_leaves_the_event_loop_alive(exit_) -> None:
    def leave() -> None:
        raise exit_

    def step(batch: int) -> None:
        loop.start_soon(leave)

    loop = make_loop(step=step)
    try:
        await loop.run()
    except exit_:
        pass
    else:
        pytest.fail("nothing was raised")


async def test_a_failure_keeps_no_frames_alive_after_the_run() -> None:
    class Big:
        """What a frame holds."""

    async def fail(extension, *_: object) -> None:
        big = Big()
        kept.append(weakref.ref(big))
        raise ValueError("no good")

    kept: list[weakref.ref] = []
    loop = make_loop(Beside(fail, after_n_batches=1))
    with suppress(ValueError):
        await loop.run()
    gc.collect()
    assert kept[0]() is None


async def test_it_is_not_begun_again_after_it_has_failed() -> None:
    calls = 0

    async def fail(extension, *_: object) -> None:
        nonlocal calls
        calls += 1
        raise ValueError("no good")

    loop = make_loop(Beside(fail, after_batch=True))
    with pytest.raises(ValueError, match="no good") as caught:
        await loop.run()
    assert calls == 1
    assert len(caught.value.__notes__) == 1


async def test_what_is_assigned_to_the_loop_from_there_is_assigned_to_the_loop() -> None:
    async def assign(extension, *_: object) -> None:
        extension.main_loop.tag = "here"
        row = extension.main_loop.log.current_row
        row |= {"a": 1}
        assert (row.time, row.copy(), row | {"b": 2}) == (1, {"a": 1}, {"a": 1, "b": 2})

    loop = make_loop(Beside(assign, after_n_batches=1), epochs=1)
    log = await loop.run()
    assert (loop.tag, log[1]["a"]) == ("here", 1)
