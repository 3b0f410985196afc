"""The run's own worker thread, and how synchronous work gets there."""

import asyncio
import os
import subprocess
import sys
import threading
import weakref
from contextvars import ContextVar
from textwrap import dedent

import pytest

from aloop import FinishAfter, MainLoop
from aloop.errors import QuantityError
from aloop.offload import Worker, current_worker, run_in_worker

PATIENCE_S = 10
"""How long to wait for what should happen at once."""

variable = ContextVar("variable", default="nobody set it")


@pytest.fixture
async def worker():
    worker = Worker()
    yield worker
    worker.close()


class Gate:
    """A function that says when it has begun and ends when it is let through."""

    def __init__(self):
        self.has_begun = threading.Event()
        self.lets_through = threading.Event()
        self.thread = None

    def __call__(self):
        self.thread = threading.current_thread()
        self.has_begun.set()
        self.lets_through.wait(PATIENCE_S)

    async def called_by(self, worker):
        """Have the worker call it, and give the task that waits for that once it has begun."""
        task = asyncio.create_task(worker.run(self))
        assert await asyncio.to_thread(self.has_begun.wait, PATIENCE_S)
        return task


async def cancel(task):
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


class Held:
    """Something that can be watched going away."""


# ---- Calls


async def test_a_call_runs_off_the_thread_of_the_event_loop(worker):
    assert await worker.run(threading.current_thread) is not threading.current_thread()


async def test_a_call_gives_what_the_function_returned(worker):
    result = Held()
    assert await worker.run(lambda: result) is result


async def test_a_call_takes_positional_and_named_arguments(worker):
    assert await worker.run(lambda *args, **kwargs: (args, kwargs), 1, 2, three=3) == (
        (1, 2),
        {"three": 3},
    )


async def test_a_function_may_have_an_argument_called_like_one_of_ours(worker):
    assert await worker.run(lambda func, self: (func, self), func=1, self=2) == (1, 2)


async def test_all_calls_run_on_one_thread(worker):
    threads = await asyncio.gather(*(worker.run(threading.get_ident) for _ in range(50)))
    assert len(set(threads)) == 1


async def test_calls_run_in_the_order_in_which_they_were_made(worker):
    order = []
    await asyncio.gather(*(worker.run(order.append, number) for number in range(50)))
    assert order == list(range(50))


async def test_a_call_does_not_begin_before_the_one_before_it_has_ended(worker):
    gate, order = Gate(), []
    first = await gate.called_by(worker)
    second = asyncio.create_task(worker.run(order.append, "second"))
    await asyncio.to_thread(lambda: None)  # a way through another thread and back
    before = list(order)
    gate.lets_through.set()
    await asyncio.gather(first, second)
    assert (before, order) == ([], ["second"])


async def test_the_event_loop_goes_on_while_a_call_runs(worker):
    gate = Gate()
    task = asyncio.create_task(worker.run(gate))
    asyncio.get_running_loop().call_later(0, gate.lets_through.set)
    await task
    assert gate.lets_through.is_set()


async def test_the_thread_has_the_name_given():
    worker = Worker("worker of run 7")
    assert (await worker.run(threading.current_thread)).name == "worker of run 7"
    worker.close()


async def test_the_thread_does_not_start_before_the_first_call():
    Worker("worker without work")
    assert "worker without work" not in [thread.name for thread in threading.enumerate()]


async def test_two_workers_have_threads_of_their_own(worker):
    other = Worker()
    threads = {await worker.run(threading.get_ident), await other.run(threading.get_ident)}
    other.close()
    assert len(threads) == 2


# ---- Context variables


async def test_a_call_sees_the_context_variables_of_its_caller(worker):
    variable.set("the test")
    assert await worker.run(variable.get) == "the test"


async def test_each_call_sees_the_context_of_its_own_caller(worker):
    async def call(name):
        variable.set(name)
        return await worker.run(variable.get)

    assert await asyncio.gather(*(call(name) for name in "abc")) == ["a", "b", "c"]


async def test_what_a_call_sets_does_not_reach_its_caller(worker):
    await worker.run(variable.set, "the call")
    assert variable.get() == "nobody set it"


async def test_what_a_call_sets_does_not_reach_the_next_call(worker):
    await worker.run(variable.set, "the first call")
    assert await worker.run(variable.get) == "nobody set it"


# ---- Exceptions


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("no cost"), KeyboardInterrupt(), SystemExit(3)], ids=repr
)
async def test_what_a_call_raises_reaches_its_awaiter_as_it_is(worker, error):
    def fails():
        raise error

    with pytest.raises(type(error)) as caught:
        await worker.run(fails)
    assert caught.value is error


async def test_a_stop_iteration_reaches_its_awaiter_as_the_cause_of_a_runtime_error(worker):
    with pytest.raises(RuntimeError, match="raised StopIteration") as caught:
        await worker.run(next, iter(()))
    assert isinstance(caught.value.__cause__, StopIteration)


async def test_the_worker_goes_on_after_a_call_that_raised(worker):
    with pytest.raises(ZeroDivisionError):
        await worker.run(lambda: 1 / 0)
    assert await worker.run(lambda: "still here") == "still here"


# ---- Cancelled waits


async def test_a_cancelled_wait_ends_at_once(worker):
    gate = Gate()
    task = await gate.called_by(worker)
    await cancel(task)
    assert not gate.lets_through.is_set()
    gate.lets_through.set()


async def test_the_function_goes_on_after_its_wait_was_cancelled(worker):
    gate, ended = Gate(), threading.Event()

    def call():
        gate()
        ended.set()

    task = asyncio.create_task(worker.run(call))
    await asyncio.to_thread(gate.has_begun.wait, PATIENCE_S)
    await cancel(task)
    gate.lets_through.set()
    assert await asyncio.to_thread(ended.wait, PATIENCE_S)


async def test_a_later_call_waits_for_one_whose_wait_was_cancelled(worker):
    gate = Gate()
    await cancel(await gate.called_by(worker))
    later = asyncio.create_task(worker.run(gate.lets_through.is_set))
    await asyncio.to_thread(lambda: None)
    gate.lets_through.set()
    assert await later is True


async def test_a_function_that_fails_after_its_wait_was_cancelled_disturbs_nobody(worker):
    reported = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    gate = Gate()

    def fails():
        gate()
        raise ZeroDivisionError

    task = asyncio.create_task(worker.run(fails))
    await asyncio.to_thread(gate.has_begun.wait, PATIENCE_S)
    await cancel(task)
    gate.lets_through.set()
    await worker.run(lambda: None)
    assert reported == []


async def test_a_worker_is_busy_while_a_call_is_awaited(worker):
    gate = Gate()
    task = await gate.called_by(worker)
    busy = worker.is_busy
    gate.lets_through.set()
    await task
    assert (busy, worker.is_busy) == (True, False)


async def test_a_worker_stays_busy_after_a_wait_was_cancelled(worker):
    gate = Gate()
    await cancel(await gate.called_by(worker))
    busy = worker.is_busy
    gate.lets_through.set()
    assert busy


async def test_a_worker_is_idle_once_the_call_whose_wait_was_cancelled_has_ended(worker):
    gate = Gate()
    await cancel(await gate.called_by(worker))
    gate.lets_through.set()
    await worker.run(lambda: None)
    assert not worker.is_busy


# ---- What is kept


async def is_released(held):
    """Say whether what was held goes away once it was used."""
    gone = threading.Event()
    weakref.finalize(held.pop(), gone.set)
    return await asyncio.to_thread(gone.wait, 2)


async def test_an_argument_is_not_kept_after_its_call(worker):
    held = [Held()]
    await worker.run(id, held[0])
    assert await is_released(held)


async def test_a_result_is_not_kept_after_its_call(worker):
    held = [await worker.run(Held)]
    assert await is_released(held)


# ---- Closing


async def test_closing_ends_the_thread():
    worker = Worker()
    thread = await worker.run(threading.current_thread)
    worker.close()
    assert not thread.is_alive()


async def test_closing_after_a_call_that_raised_ends_the_thread():
    worker = Worker()
    thread = await worker.run(threading.current_thread)
    with pytest.raises(ZeroDivisionError):
        await worker.run(lambda: 1 / 0)
    worker.close()
    assert not thread.is_alive()


async def test_closing_a_worker_that_was_never_used_does_nothing():
    worker = Worker()
    worker.close()
    assert not worker.is_busy


async def test_closing_twice_does_nothing_more():
    worker = Worker()
    await worker.run(lambda: None)
    worker.close()
    worker.close()
    assert not worker.is_busy


async def test_closing_does_not_wait_for_a_stuck_call():
    worker, gate = Worker(), Gate()
    await cancel(await gate.called_by(worker))
    worker.close()
    assert gate.thread.is_alive()
    gate.lets_through.set()
    gate.thread.join(PATIENCE_S)


async def test_a_thread_left_behind_ends_when_its_call_does():
    worker, gate = Worker(), Gate()
    await cancel(await gate.called_by(worker))
    worker.close()
    gate.lets_through.set()
    await asyncio.to_thread(gate.thread.join, PATIENCE_S)
    assert not gate.thread.is_alive()


def test_a_stuck_call_does_not_hold_up_the_exit_of_the_interpreter():
    program = dedent(
        """
        import asyncio, threading
        from aloop.offload import Worker

        begun = threading.Event()

        def stuck():
            begun.set()
            threading.Event().wait()

        async def main():
            worker = Worker()
            task = asyncio.create_task(worker.run(stuck))
            await asyncio.to_thread(begun.wait)
            task.cancel()
            await asyncio.wait([task])
            worker.close()
            print("closed")

        asyncio.run(main())
        """
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=os.environ,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "closed\n", "")


def test_the_thread_ends_quietly_when_the_event_loop_was_closed_meanwhile():
    worker, gate = Worker(), Gate()

    async def leave_it_running():
        await cancel(await gate.called_by(worker))

    asyncio.run(leave_it_running())
    gate.lets_through.set()
    gate.thread.join(PATIENCE_S)
    assert not gate.thread.is_alive()


# ---- run_in_worker


async def test_in_a_run_it_runs_on_the_worker_of_the_run(worker):
    current_worker.set(worker)
    thread = await run_in_worker(threading.current_thread)
    assert thread is await worker.run(threading.current_thread)


async def test_tasks_of_a_run_have_the_worker_of_the_run(worker):
    current_worker.set(worker)
    thread = await asyncio.create_task(run_in_worker(threading.current_thread))
    assert thread is await worker.run(threading.current_thread)


async def test_outside_a_run_there_is_no_worker():
    assert current_worker.get() is None


async def test_outside_a_run_it_runs_off_the_thread_of_the_event_loop():
    assert await run_in_worker(threading.current_thread) is not threading.current_thread()


async def test_outside_a_run_it_takes_positional_and_named_arguments():
    assert await run_in_worker(lambda *args, **kwargs: (args, kwargs), 1, two=2) == (
        (1,),
        {"two": 2},
    )


async def test_outside_a_run_it_sees_the_context_variables_of_its_caller():
    variable.set("the test")
    assert await run_in_worker(variable.get) == "the test"


async def test_outside_a_run_an_exception_reaches_its_awaiter():
    with pytest.raises(ZeroDivisionError):
        await run_in_worker(lambda: 1 / 0)


@pytest.mark.parametrize("in_a_run", [True, False], ids=["in a run", "outside a run"])
async def test_a_stop_iteration_arrives_as_a_runtime_error(worker, in_a_run):
    current_worker.set(worker if in_a_run else None)
    with pytest.raises(RuntimeError, match="StopIteration"):
        async with asyncio.timeout(2):
            await run_in_worker(next, iter(()))


async def test_a_call_from_the_thread_of_the_worker_does_not_wait_for_itself() -> None:
    def step(batch: int) -> int:
        return asyncio.run(run_in_worker(lambda: batch))

    loop = MainLoop(step, [1], extensions=[FinishAfter(after_n_epochs=1)])
    with pytest.raises(QuantityError):  # the number came back, which is no dictionary
        await asyncio.wait_for(loop.run(), 10)


async def test_a_function_is_not_represented_to_be_called() -> None:
    class Large:
        def __call__(self) -> int:
            return 1

        def __repr__(self) -> str:
            raise AssertionError

    worker = Worker()
    assert await worker.run(Large()) == 1
    worker.close()


async def test_a_call_that_was_cancelled_in_the_queue_is_not_made() -> None:
    called, began, release = [], threading.Event(), threading.Event()

    def block() -> None:
        began.set()
        release.wait()

    worker = Worker()
    first = asyncio.create_task(worker.run(block))
    await asyncio.to_thread(began.wait)
    second = asyncio.create_task(worker.run(called.append, 1))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.wait([second])
    release.set()
    await first
    await worker.run(lambda: None)
    worker.close()
    assert called == []


async def test_a_thread_that_cannot_be_started_is_the_error_that_is_raised(monkeypatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def step(batch: int) -> None:
        """Train on nothing."""

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        await MainLoop(step, [1]).run()
