"""The stepped loop counts and shuffles its turns; time in the virtual one waits for nobody."""

import asyncio
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from inspect import signature

import pytest

from aloop import FinishAfter, MainLoop, SQLiteLog
from aloop.errors import ArgumentError
from aloop.faults import watched_points
from aloop.testing import virtual_loop
from aloop.testing.virtual_loop import (
    START_S,
    DeadlockError,
    LivelockError,
    SteppedLoop,
    VirtualLoop,
    in_virtual_time,
    run_virtual,
)

LOOPS = [SteppedLoop, VirtualLoop]


def run_stepped(coroutine, *args, loop=SteppedLoop):
    with asyncio.Runner(loop_factory=lambda: loop(*args)) as runner:
        return runner.run(coroutine)


def test_virtual_time_passes_at_once_and_in_order() -> None:
    woken: list[float] = []

    async def sleeper(seconds: float) -> None:
        await asyncio.sleep(seconds)
        woken.append(asyncio.get_running_loop().time() - START_S)

    async def main() -> None:
        await asyncio.gather(sleeper(3_600), sleeper(30), sleeper(86_400))

    run_virtual(main(), seed=1, delay=0.5)
    assert woken == [30, 3_600, 86_400]


def test_a_deadlock_is_an_error_that_names_who_waits_and_where() -> None:
    async def waits_for_ever() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        await asyncio.create_task(waits_for_ever(), name="the one that waits")

    with pytest.raises(DeadlockError, match=r"'the one that waits' in .*for_ever > Event\.wait"):
        run_virtual(main())


def test_turns_without_end_and_without_time_are_an_error() -> None:
    async def spin() -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(LivelockError, match=r"^20000 rounds at 1000 s, (.|\n)*\npending: 'Task-"):
        run_virtual(spin(), seed=1)


@pytest.mark.parametrize("in_test", [True, False])
def test_more_rounds_can_be_allowed(in_test) -> None:
    async def turns() -> None:
        for _ in range(8):
            await asyncio.sleep(0)

    def run(max_rounds: int) -> None:
        if in_test:
            in_virtual_time(max_rounds=max_rounds)(turns)()
        else:
            run_virtual(turns(), max_rounds=max_rounds)

    run(20)
    with pytest.raises(LivelockError, match=r"^5 rounds at 1000 s"):
        run(5)


def test_what_comes_from_outside_is_progress() -> None:
    async def main() -> None:
        for _ in range(10):
            await asyncio.to_thread(int)

    run_virtual(main(), max_rounds=10)


@pytest.mark.parametrize("max_rounds", [0, -1, 1.5, True, None])
def test_a_number_of_rounds_that_is_none_is_refused(max_rounds) -> None:
    async def main() -> None: ...

    for make in (
        lambda: VirtualLoop(max_rounds=max_rounds),
        lambda: run_virtual(main(), max_rounds=max_rounds),
        lambda: in_virtual_time(max_rounds=max_rounds),
    ):
        with pytest.raises(ArgumentError, match=r"max_rounds is .*; expected a whole number"):
            make()


def order_of_ten_tasks(seed: int | None, delay: float, loop=VirtualLoop) -> list[int]:
    order: list[int] = []

    async def note(number: int) -> None:
        order.append(number)

    async def main() -> None:
        await asyncio.gather(*map(note, range(10)))

    run_stepped(main(), seed, delay, loop=loop)
    return order


@pytest.mark.parametrize("loop", LOOPS)
def test_the_seed_decides_the_order_and_without_one_it_is_kept(loop) -> None:
    assert order_of_ten_tasks(None, 0.0, loop) == list(range(10))
    orders = [order_of_ten_tasks(seed, delay, loop) for seed in range(20) for delay in (0.0, 0.3)]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len(set(map(tuple, orders))) > 30
    again = [order_of_ten_tasks(seed, delay, loop) for seed in range(20) for delay in (0.0, 0.3)]
    assert again == orders


def test_a_thread_wakes_the_loop_in_real_time() -> None:
    async def main() -> str:
        return await asyncio.to_thread(lambda: "from the thread")

    assert run_virtual(main(), seed=1) == "from the thread"


@pytest.fixture
def work():
    """Give a function that takes longer than a thread has that is not known."""
    return lambda: time.sleep(5 * virtual_loop.OUTSIDE_S)


async def test_work_of_a_thread_never_loses_to_a_timer(work) -> None:
    async def main(executor) -> float:
        running = asyncio.get_running_loop()
        async with asyncio.timeout(1e-3):
            if executor is None:
                await asyncio.to_thread(work)
            else:
                await running.run_in_executor(executor, work)
        return running.time()

    def in_thread(executor) -> None:
        assert run_virtual(main(executor), seed=1) == START_S

    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()  # its thread is one from before
        await asyncio.to_thread(in_thread, pool)
    await asyncio.to_thread(in_thread, None)


def test_work_that_nobody_waits_for_any_more_does_not_hold_the_clock() -> None:
    release = threading.Event()

    async def main() -> None:
        running = asyncio.get_running_loop()
        job = running.run_in_executor(None, release.wait)
        job.cancel()
        await asyncio.sleep(3_600)
        assert running.time() == START_S + 3_600
        release.set()

    run_virtual(main())


def test_the_end_of_the_threads_of_the_default_executor_is_waited_for(monkeypatch, work) -> None:
    monkeypatch.setattr(virtual_loop, "DEADLOCK_S", 0.0)
    monkeypatch.setattr(virtual_loop, "OUTSIDE_S", 0.0)
    ended: list[float] = []

    async def main() -> None:
        job = asyncio.get_running_loop().run_in_executor(None, lambda: ended.append(work()))
        job.cancel()

    run_virtual(main())
    assert ended == [None]


def test_work_that_never_ends_is_named(monkeypatch) -> None:
    monkeypatch.setattr(virtual_loop, "THREAD_S", 0.05)
    release = threading.Event()

    async def main() -> None:
        job = asyncio.create_task(asyncio.to_thread(release.wait), name="the one that waits")
        try:
            await asyncio.wait([job], timeout=3_600)
        finally:
            release.set()

    with pytest.raises(DeadlockError) as info:
        run_virtual(main())
    assert str(info.value).startswith("nothing has come in 0.05 s from Event.wait, for ")
    assert "'the one that waits' in " in str(info.value)


@pytest.mark.parametrize("seed", [None, 1])
def test_a_busy_disk_is_waited_for_in_virtual_time(tmp_path, seed, work) -> None:
    """aloop's own threads are none of an executor's."""

    def slow(name: str) -> None:
        if name == "log.begun":
            work()

    log = SQLiteLog(tmp_path / "log.sqlite")

    async def step(batch: int) -> None:
        log.current_row["seen"] = batch
        async with asyncio.timeout(1e-3):
            await log.flush()

    async def main() -> None:
        finish = FinishAfter(after_n_epochs=1)
        await MainLoop(step, [1, 2], log=log, extensions=[finish]).run()

    with watched_points(slow):
        run_virtual(main(), seed=seed)


def test_two_signals_of_a_kind_are_two_though_one_of_them_is_late() -> None:
    async def main() -> int:
        heard: list[int] = []
        running = asyncio.get_running_loop()
        running.add_signal_handler(signal.SIGUSR1, heard.append, 1)
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)
        for _ in range(60):
            await asyncio.sleep(0)
        running.remove_signal_handler(signal.SIGUSR1)
        return len(heard)

    assert {run_virtual(main(), seed=seed, delay=0.5) for seed in range(50)} == {2}


def test_the_clock_of_a_stepped_loop_is_the_real_one() -> None:
    async def main() -> float:
        running = asyncio.get_running_loop()
        begun = running.time()
        await asyncio.sleep(0.01)
        return running.time() - begun

    assert 0.01 <= run_stepped(main(), 1, 0.5) < 1


@pytest.mark.parametrize("delay", [-0.1, 1, 2.0, True, "0.1", None])
def test_a_delay_that_is_no_share_is_refused(delay) -> None:
    with pytest.raises(ArgumentError, match="expected a share of the handles"):
        VirtualLoop(1, delay)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_delay_needs_a_seed(loop) -> None:
    async def main() -> None: ...

    for make in (lambda: loop(None, 0.5), lambda: run_virtual(main(), delay=0.5)):
        with pytest.raises(ArgumentError, match=r"delay is 0.5 without a seed; expected one"):
            make()


class Steps:
    """Ten handles, one after the other, and what was done between them."""

    def __init__(self, loop) -> None:
        self.loop = loop
        self.done: list[object] = []
        loop.set_exception_handler(lambda _, context: self.done.append(context["exception"]))

    def add(self, *numbers: int) -> None:
        for number in numbers:
            self.loop.call_soon(self.done.append, number)

    def run(self) -> list[object]:
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()
        self.loop.close()
        return self.done


@pytest.fixture(params=LOOPS)
def steps(request) -> Steps:
    return Steps(request.param())


@pytest.mark.parametrize("turn", range(1, 6))
def test_something_is_done_between_any_two_handles(steps: Steps, turn: int) -> None:
    steps.add(1, 2, 3, 4)
    seen: list[int] = []
    steps.loop.call_at_turn(turn, lambda: seen.append(steps.loop.turns))
    steps.loop.call_at_turn(turn, lambda: steps.done.append("between"))
    assert steps.run() == [*range(1, turn), "between", *range(turn, 5)]
    assert seen == [turn - 1]
    assert steps.loop.turns == 5  # the end too; what was called between is none


def test_what_is_done_before_a_handle_can_cancel_it_and_it_is_a_turn_still(steps: Steps) -> None:
    steps.add(1)
    handle = steps.loop.call_soon(steps.done.append, 2)
    steps.add(3)
    steps.loop.call_at_turn(2, handle.cancel)
    steps.loop.call_at_turn(3, lambda: steps.done.append("before 3"))
    assert steps.run() == [1, "before 3", 3]


def test_a_turn_in_a_later_round_is_counted_from_the_beginning(steps: Steps) -> None:
    steps.add(1)
    steps.loop.call_soon(lambda: (steps.add(2, 3), steps.loop.call_soon(steps.loop.stop)))
    steps.loop.call_at_turn(4, lambda: steps.done.append("before 3"))
    steps.loop.run_forever()
    steps.loop.close()
    assert steps.done == [1, 2, "before 3", 3]
    assert steps.loop.rounds == 2


def test_what_fails_between_two_handles_goes_up(steps: Steps) -> None:
    error = RuntimeError("between")

    def fail() -> None:
        raise error

    steps.loop.call_at_turn(2, fail)
    steps.add(1, 2)
    steps.loop.call_soon(steps.loop.stop)
    with pytest.raises(RuntimeError) as info:
        steps.loop.run_forever()
    assert info.value is error
    assert steps.done == [1]
    steps.loop.run_forever()
    steps.loop.close()
    assert steps.done == [1, 2]


def test_what_is_asked_for_right_before_a_turn_comes_before_it_still(steps: Steps) -> None:
    def ask() -> None:
        steps.loop.call_at_turn(2, lambda: steps.done.append("between"))

    steps.loop.call_at_turn(2, ask)
    steps.add(1, 2)
    assert steps.run() == [1, "between", 2]


@pytest.mark.parametrize("number", [5.0, "a", None, True])
def test_what_is_no_turn_is_refused(steps: Steps, number) -> None:
    for call in (steps.loop.call_at_turn, steps.loop.call_at_round):
        with pytest.raises(ArgumentError, match=r" is .*; expected a whole number"):
            call(number, print)
    steps.run()


def test_what_cannot_be_called_is_refused(steps: Steps) -> None:
    for call in (steps.loop.call_at_turn, steps.loop.call_at_round):
        with pytest.raises(ArgumentError, match="the callback is None; expected a function"):
            call(10, None)
    steps.run()


def test_a_task_is_cancelled_before_each_of_its_turns() -> None:
    """Each of these is another place in the task, the first before it has begun."""

    def cancelled_at(turn: int) -> tuple[list[int], bool]:
        done: list[int] = []

        async def work() -> None:
            for number in range(3):
                done.append(number)
                await asyncio.sleep(0)

        async def main() -> bool:
            task = asyncio.create_task(work())
            running = asyncio.get_running_loop()
            running.call_at_turn(running.turns + turn, task.cancel)
            await asyncio.wait([task])
            return task.cancelled()

        return done, run_stepped(main())

    # From the fifth turn on there is only what wakes the waiter up.
    assert [cancelled_at(turn) for turn in range(1, 6)] == [
        ([], True),
        ([0], True),
        ([0, 1], True),
        ([0, 1, 2], True),
        ([0, 1, 2], False),
    ]


def test_the_shuffle_takes_no_turns() -> None:
    async def nothing() -> None:
        pass

    async def main() -> int:
        await asyncio.gather(*(nothing() for _ in range(10)))
        return asyncio.get_running_loop().turns

    assert run_stepped(main(), 3) == run_stepped(main())


def test_something_is_done_in_a_round() -> None:
    async def main() -> list[int]:
        running = asyncio.get_running_loop()
        rounds: list[int] = []
        running.call_at_round(running.rounds + 2, lambda: rounds.append(running.rounds))
        first = running.rounds
        for _ in range(5):
            await asyncio.sleep(0)
        return [number - first for number in rounds]

    assert run_stepped(main()) == [3]  # counted when it has begun


def test_what_has_been_is_refused(steps: Steps) -> None:
    steps.add(1, 2)
    steps.run()
    for number in (0, 3):
        with pytest.raises(ArgumentError, match=rf"turn {number} has been; expected 4 or"):
            steps.loop.call_at_turn(number, print)
    with pytest.raises(ArgumentError, match=r"round 0 has been; expected 1 or"):
        steps.loop.call_at_round(0, print)
    steps.loop.call_at_turn(4, print)
    steps.loop.call_at_round(1, print)


seen: list[tuple[object, float]] = []


@pytest.fixture
def hour() -> float:
    return 3_600


@pytest.mark.parametrize("hours", [1, 2])
@in_virtual_time(seeds=range(3))
async def test_an_async_test_takes_fixtures_and_parameters_in_virtual_time(hours, hour) -> None:
    running = asyncio.get_running_loop()
    assert isinstance(running, VirtualLoop)
    await asyncio.sleep(hours * hour)
    assert running.time() == START_S + hours * 3_600
    seen.append((running, hours))


def test_each_seed_had_a_loop_of_its_own() -> None:
    for hours in (1, 2):
        test_an_async_test_takes_fixtures_and_parameters_in_virtual_time(hours, 3_600)
    assert [hours for _, hours in seen[-6:]] == [1, 1, 1, 2, 2, 2]
    assert len({loop for loop, _ in seen[-6:]}) == 6


class TestInAClass:
    @in_virtual_time()
    async def test_it_is_a_method_too(self, hour) -> None:
        await asyncio.sleep(hour)


def test_what_fails_has_a_note_that_tells_the_seed() -> None:
    played: list[int] = []

    @in_virtual_time(seeds=[4, 5, 6], delay=0.5)
    async def fails() -> None:
        played.append(1)
        assert len(played) < 2

    with pytest.raises(AssertionError) as info:
        fails()
    assert info.value.__notes__ == ["in virtual time, with the seed 5, delay=0.5"]


def test_its_signature_is_that_of_the_test() -> None:
    async def test(one, *, two=2) -> None: ...

    assert signature(in_virtual_time()(test)) == signature(test)
    assert not asyncio.iscoroutinefunction(in_virtual_time()(test))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": []}, "which has none"),
        ({"delay": 0.5}, "without a seed"),
        ({"seeds": [1, None], "delay": 0.5}, "without a seed"),
        ({"seeds": 5}, "seeds is 5; expected several, in a list"),
        ({"seeds": "abc"}, "seeds is 'abc'; expected several"),
        ({"seeds": range(2), "delay": 1}, "expected a share"),
    ],
)
def test_virtual_time_that_makes_no_sense_is_refused(arguments, message) -> None:
    with pytest.raises(ArgumentError, match=message):
        in_virtual_time(**arguments)


def test_what_is_no_coroutine_function_is_refused() -> None:
    with pytest.raises(ArgumentError, match="expected a coroutine function"):
        in_virtual_time()(lambda: None)


def test_the_parentheses_may_not_be_left_out() -> None:
    async def test() -> None: ...

    with pytest.raises(ArgumentError, match=r"in_virtual_time was given .*, with parentheses"):
        in_virtual_time(test)
