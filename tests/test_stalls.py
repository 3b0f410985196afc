"""The stall guard: who held the event loop is named, with where it was; nobody else is."""

import asyncio
import gc
import logging
import re
import threading
import time

import pytest
import uvloop
from log_helpers import until

from aloop import (
    FinishAfter,
    MainLoop,
    SimpleExtension,
    TrainingAlgorithm,
    TrainingExtension,
    as_algorithm,
    as_stream,
    config,
    run_in_worker,
)
from aloop.errors import ArgumentError, ConfigurationError

WARNING_S = 0.02
HOLD_S = 0.1

said = threading.Semaphore(0)
"""Released when a warning has been given."""


@pytest.fixture(autouse=True)
def hear():
    """Hear of warnings while the event loop is held."""

    class Hear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "has held" in record.getMessage():
                said.release()

    handler, logger = Hear(), logging.getLogger("aloop")
    while said.acquire(blocking=False):
        pass  # of the test before
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)


def hold() -> None:
    """Hold the event loop until somebody is blamed for it."""
    assert said.acquire(timeout=20)


async def no_op(batch: object) -> None:
    """Train on nothing."""


class HoldAt(TrainingExtension):
    """Holds the event loop at a callback: the first time until it is blamed, then for a time."""

    def __init__(self, callback: str) -> None:
        super().__init__("the holder")
        setattr(self, callback, self.hold)
        self.calls = 0

    async def hold(self, *args: object) -> None:
        self.calls += 1
        if self.calls > 1:
            time.sleep(HOLD_S)  # as nothing is said of it
        else:
            hold()


async def run(*extensions, step=no_op, stream=range(1), epochs=1, warning_s=WARNING_S, **options):
    """Run to the end, with the guard, giving it the time to look."""
    finish = FinishAfter(after_n_epochs=epochs)
    loop = MainLoop(
        step, stream, extensions=[*extensions, finish], stall_warning_s=warning_s, **options
    )
    await loop.run()
    return loop


def warnings_of(caplog) -> list[str]:
    return [r.message for r in caplog.records if "held the event loop" in r.message]


def guards() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "aloop stall guard"]


@pytest.mark.parametrize(
    "callback", ["before_training", "before_epoch", "before_batch", "after_batch", "after_epoch"]
)
async def test_an_extension_is_named_with_its_callback_and_where_it_was(callback, caplog) -> None:
    await run(HoldAt(callback))
    (message,) = warnings_of(caplog)
    assert message.startswith(
        f"the extension 'the holder' in {callback} has held the event loop: nothing else could go "
        "on for more than 0.02 s"
    )
    assert "test_stalls.py" in message
    assert "in hold" in message
    assert "await run_in_worker(…)" in message


async def test_a_step_that_is_inline_is_named(caplog) -> None:
    def step(batch: object) -> None:
        hold()

    await run(step=as_algorithm(step, where="inline"))
    (message,) = warnings_of(caplog)
    assert message.startswith("the step FunctionAlgorithm(<function")
    assert "in hold" in message


async def test_the_initialization_of_an_algorithm_is_named(caplog) -> None:
    class Slow(TrainingAlgorithm):
        async def initialize(self) -> None:
            hold()

        async def process_batch(self, batch: object) -> None:
            """Train on nothing."""

        def __repr__(self) -> str:
            return "Slow()"

    await run(step=Slow())
    (message,) = warnings_of(caplog)
    assert message.startswith("initialize() of Slow() has held")


@pytest.mark.parametrize("kind", ["generator", "async generator", "the function that makes it"])
async def test_a_stream_is_named(kind, caplog) -> None:
    def generate():
        hold()
        yield 1

    async def generate_async():
        hold()
        yield 1

    def make():
        hold()
        return [1]

    inline = as_stream(generate, where="inline")
    streams = {"generator": inline, "async generator": generate_async}
    await run(stream=streams.get(kind, make))
    (message,) = warnings_of(caplog)
    assert message.startswith("the data stream ")
    assert "in hold" in message


async def test_work_beside_the_training_is_named(caplog) -> None:
    async def heavy() -> None:
        hold()

    class Evaluate(SimpleExtension):
        async def do(self, which_callback: str, *args: object) -> None:
            hold()

    async def step(batch: object) -> None:
        loop.start_soon(heavy, name="heavy")
        await asyncio.sleep(0)

    loop = MainLoop(
        step,
        [1],
        extensions=[Evaluate(after_epoch=True, background=True), FinishAfter(after_n_epochs=1)],
        stall_warning_s=WARNING_S,
    )
    await loop.run()
    blamed = {message.partition(" has held")[0] for message in warnings_of(caplog)}
    assert blamed == {
        "the background work 'heavy'",
        "the extension 'Evaluate' in after_epoch",
    }


async def test_what_is_not_of_the_run_is_not_blamed_on_it(caplog) -> None:
    async def elsewhere() -> None:
        await began.wait()
        hold()
        held.set()

    async def step(batch: object) -> None:
        began.set()
        await held.wait()

    began, held = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(elsewhere())
    await run(step=step)
    await task
    (message,) = warnings_of(caplog)
    assert message.startswith("code of the program, outside its runs, has held the event loop")
    assert "in elsewhere" in message
    assert "base_events" not in message


async def test_it_is_named_once_and_counted_to_the_end(caplog) -> None:
    await run(HoldAt("after_batch"), stream=range(4))
    first, last = warnings_of(caplog)
    assert "has held the event loop: nothing else could go on" in first
    times = re.match(
        "the extension 'the holder' in after_batch held the event loop (.) times", last
    )
    assert times is not None
    assert 2 <= int(times[1]) <= 4
    longest = float(last.rpartition(", for ")[2].partition(" s ")[0])
    assert HOLD_S * 0.5 <= longest < HOLD_S * 20


@pytest.mark.slow
async def test_many_that_each_take_little_are_not_blamed(caplog) -> None:
    def busy(seconds: float) -> None:
        ends = time.perf_counter() + seconds
        while time.perf_counter() < ends:
            pass

    async def little() -> None:
        while not ended.is_set():
            busy(0.002)
            await asyncio.sleep(0)

    async def step(batch: object) -> None:
        for _ in range(3):
            busy(0.002)
            await asyncio.sleep(0)

    ended = asyncio.Event()
    tasks = [asyncio.create_task(little()) for _ in range(60)]
    await run(step=step, warning_s=0.1)  # less than a turn of all takes
    ended.set()
    await asyncio.gather(*tasks)
    assert warnings_of(caplog) == []


@pytest.mark.aloop_guard(block_s=5)  # it is to
async def test_many_extensions_that_each_take_little_are_not_blamed(caplog) -> None:
    class Little(TrainingExtension):
        async def after_batch(self, batch: object) -> None:
            time.sleep(0.005)  # as something computes

    await run(*(Little(f"little {n}") for n in range(120)), warning_s=0.4)
    assert warnings_of(caplog) == []


async def test_what_is_offloaded_does_not_hold_the_event_loop(caplog) -> None:
    class Offloaded(TrainingExtension):
        async def after_batch(self, batch: object) -> None:
            await run_in_worker(time.sleep, HOLD_S)

    lateness: list[float] = []

    async def heartbeat() -> None:
        while True:
            begun = time.perf_counter()
            await asyncio.sleep(0.005)
            lateness.append(time.perf_counter() - begun - 0.005)

    beating = asyncio.create_task(heartbeat())
    await run(Offloaded(), step=lambda batch: time.sleep(HOLD_S), stream=range(2))
    beating.cancel()
    assert warnings_of(caplog) == []
    assert sorted(lateness)[len(lateness) // 2] < WARNING_S


async def test_an_event_loop_that_waits_is_not_held(caplog) -> None:
    async def batches():
        yield 1
        await asyncio.sleep(4 * WARNING_S)  # the time in which the guard could be wrong
        yield 2

    await run(stream=batches)
    assert warnings_of(caplog) == []


@pytest.mark.parametrize("how", ["argument", "setting", "environment"])
async def test_off_there_is_no_thread_and_no_word(how, caplog, monkeypatch) -> None:
    seen: list[object] = []

    class Look(TrainingExtension):
        async def after_batch(self, batch: object) -> None:
            seen.extend(guards())

    if how == "setting":
        monkeypatch.setattr(config, "stall_warning_s", 0)
    elif how == "environment":
        monkeypatch.setenv("ALOOP_STALL_WARNING_S", "0")
    said.release()  # for nobody will
    await run(Look(), HoldAt("after_batch"), warning_s=0 if how == "argument" else None)
    assert (seen, warnings_of(caplog)) == ([], [])


async def test_by_default_it_watches_with_the_time_of_the_setting(caplog, monkeypatch) -> None:
    assert config.stall_warning_s == 0.1
    monkeypatch.setattr(config, "stall_warning_s", WARNING_S)
    await run(HoldAt("after_batch"), warning_s=None)
    assert len(warnings_of(caplog)) == 1


async def test_runs_of_an_event_loop_share_a_thread_which_ends_with_the_last() -> None:
    seen: list[int] = []
    first_over = asyncio.Event()

    async def short(batch: object) -> None:
        seen.append(len(guards()))
        await asyncio.sleep(0)

    async def long(batch: object) -> None:
        await first_over.wait()
        seen.append(len(guards()))

    longer = asyncio.create_task(run(step=long))
    await asyncio.gather(*(run(step=short) for _ in range(5)))
    first_over.set()
    await longer
    assert set(seen) == {1}
    assert guards() == []


def test_each_event_loop_has_a_guard_of_its_own(caplog) -> None:
    blamed = threading.Barrier(3)

    class Hold(TrainingExtension):
        async def after_batch(self, batch: object) -> None:
            blamed.wait(20)

    threads = [threading.Thread(target=asyncio.run, args=(run(Hold()),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert said.acquire(timeout=20)
    blamed.wait(20)
    for thread in threads:
        thread.join()
    assert len(warnings_of(caplog)) == 2
    assert guards() == []


def test_under_uvloop_too(caplog) -> None:
    uvloop.run(run(HoldAt("after_batch")))
    (message,) = warnings_of(caplog)
    assert message.startswith("the extension 'the holder' in after_batch")


def test_it_ends_with_an_event_loop_that_was_closed_under_the_run() -> None:
    async def main() -> None:
        in_step = asyncio.Event()

        async def step(batch: object) -> None:
            in_step.set()
            await asyncio.Event().wait()

        running = asyncio.ensure_future(run(step=step))
        running._log_destroy_pending = False
        await in_step.wait()

    event_loop = asyncio.new_event_loop()
    event_loop.run_until_complete(main())
    left = guards()
    event_loop.close()
    gc.collect()
    for thread in left:
        thread.join(5)
    assert left
    assert guards() == []


async def test_a_representation_that_fails_does_not_hide_who_it_is(caplog) -> None:
    class Odd(TrainingAlgorithm):
        async def process_batch(self, batch: object) -> None:
            hold()

        def __repr__(self) -> str:
            raise RuntimeError

    await run(step=Odd())
    (message,) = warnings_of(caplog)
    assert "_run_batches has held the event loop" in message
    assert "in process_batch" in message


async def test_a_long_representation_is_cut_short(caplog) -> None:
    class Long(TrainingAlgorithm):
        async def process_batch(self, batch: object) -> None:
            hold()

        def __repr__(self) -> str:
            return "x" * 10_000

    await run(step=Long())
    (message,) = warnings_of(caplog)
    assert len(message.partition(" has held")[0]) < 300


async def test_a_run_that_was_stopped_in_a_hold_ends_and_says_who_it_was(caplog) -> None:
    loop = MainLoop(
        no_op, range(10**9), extensions=[HoldAt("after_batch")], stall_warning_s=WARNING_S
    )
    async with loop.running() as handle:
        await until(lambda: loop.status["iterations_done"] > 2)
        handle.request_finish("batch")
    assert "'the holder'" in warnings_of(caplog)[0]


@pytest.mark.parametrize("value", [-1, "1", True, float("nan"), float("inf"), [1], 1e-6, 10**400])
def test_a_time_that_makes_no_sense_is_refused(value) -> None:
    with pytest.raises(
        ArgumentError, match=r"stall_warning_s is .*; expected seconds, 0\.001 or more"
    ):
        MainLoop(no_op, [1], stall_warning_s=value)


@pytest.mark.parametrize("value", ["-1", "soon", "nan", "inf", "0.0001"])
def test_a_setting_that_makes_no_sense_is_refused(value, monkeypatch) -> None:
    monkeypatch.setenv("ALOOP_STALL_WARNING_S", value)
    with pytest.raises(ConfigurationError, match="stall_warning_s"):
        _ = config.stall_warning_s
