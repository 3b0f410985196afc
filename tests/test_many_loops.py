"""Many loops in one process: what each has for itself, what they share, what they may not."""

import asyncio
import contextvars
import gc
import sqlite3
import threading
from collections import Counter
from contextlib import closing

import numpy as np
import pytest

from aloop import (
    ArrayStream,
    CompositeExtension,
    FinishAfter,
    MainLoop,
    Printing,
    SequentialScheme,
    SimpleExtension,
    SQLiteLog,
    TrainingDataMonitoring,
    TrainingExtension,
    as_stream,
    read_log,
)
from aloop.errors import AlreadyRunningError


class CrashError(Exception):
    """What a loop that is to crash raises."""


class Record(TrainingExtension):
    """Records which loop it is of."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    async def after_batch(self, batch: object) -> None:
        self.main_loop.log.current_row["of"] = self.number


async def no_op(batch: object) -> None:
    """Train on nothing."""
    await asyncio.sleep(0)


def connection_threads() -> int:
    return sum("connection_worker" in thread.name for thread in threading.enumerate())


async def test_of_eight_loops_one_crashes_and_seven_finish(tmp_path) -> None:
    who = contextvars.ContextVar("who", default="nobody")
    seen: dict[int, set[object]] = {}
    connections: set[int] = set()

    def make_step(number: int):
        async def step(batch: int) -> dict[str, float]:
            seen.setdefault(number, set()).add(who.get())
            if batch == 0 and who.get() == "nobody":
                who.set(f"loop {number}")
            await asyncio.sleep(0)
            connections.add(connection_threads())
            if number == 3 and batch == 5:
                raise CrashError
            return {"cost": float(number)}

        return step

    database = tmp_path / "log.sqlite"
    loops = [
        MainLoop(
            make_step(number),
            range(20),
            log=SQLiteLog(database),
            name=f"loop {number}",
            extensions=[
                Record(number),
                TrainingDataMonitoring(["cost"], after_epoch=True),
                FinishAfter(after_n_epochs=3),
            ],
        )
        for number in range(8)
    ]
    ended = await asyncio.gather(*(loop.run() for loop in loops), return_exceptions=True)
    assert [type(end) for end in ended] == [SQLiteLog] * 3 + [CrashError] + [SQLiteLog] * 4
    assert connections == {1}  # they share the database
    assert connection_threads() == 0
    # What one of them sets in its context is its own.
    assert seen == {number: {"nobody", f"loop {number}"} for number in range(8)}
    assert who.get() == "nobody"
    for number, loop in enumerate(loops):
        with read_log(database, loop.log.h_uuid) as log:
            done = 5 if number == 3 else 60
            assert log.status["iterations_done"] == done
            assert [log[time]["of"] for time in range(1, done + 1)] == [number] * done
            if number != 3:
                assert log[20]["cost"] == float(number)
            assert ("got_exception" in log.current_row) == (number == 3)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["python", "sqlite"])
async def test_of_a_thousand_loops_ten_crash_each_by_itself(tmp_path, backend) -> None:
    database = tmp_path / "log.sqlite"
    crashing = {n * n for n in range(5, 15)}

    def make_step(number: int):
        async def step(batch: int) -> None:
            await asyncio.sleep(0)
            if number in crashing and batch == 1:
                raise CrashError(number)

        return step

    loops = [
        MainLoop(
            make_step(number),
            range(3),
            log=SQLiteLog(database) if backend == "sqlite" else None,
            log_backend="python",
            extensions=[Record(number), FinishAfter(after_n_epochs=1)],
        )
        for number in range(1000)
    ]
    async with asyncio.timeout(50):
        ended = await asyncio.gather(*(loop.run() for loop in loops), return_exceptions=True)
    crashed = {n for n, end in enumerate(ended) if isinstance(end, CrashError)}
    assert crashed == crashing
    assert all(end.args == (n,) for n, end in enumerate(ended) if n in crashed)
    assert [loop.status["iterations_done"] for loop in loops] == [
        1 if number in crashing else 3 for number in range(1000)
    ]
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("aloop")]
    if backend == "sqlite":
        with closing(sqlite3.connect(database)) as connection:
            sql = "SELECT run, COUNT(*), MIN(value), MAX(value) FROM entries WHERE key = 'of' "
            found = connection.execute(sql + "GROUP BY run").fetchall()
        of_run = {loop.log.h_uuid: number for number, loop in enumerate(loops)}
        assert Counter(count for _, count, _, _ in found) == {3: 990, 1: 10}
        assert all(low == high == of_run[run] for run, _, low, high in found)


async def test_their_turns_are_fair() -> None:
    counts: Counter[int] = Counter()
    begun: set[int] = set()
    steps = 0

    def make_step(number: int):
        async def step(batch: int) -> None:
            nonlocal steps
            begun.add(number)
            if len(begun) == len(loops):  # the first had the event loop to itself before that
                counts[number] += 1
                steps += 1
            if steps == 40_000:
                for loop in loops:
                    loop.request_finish("batch")

        return step

    loops = [MainLoop(make_step(number), endless) for number in range(16)]
    await asyncio.gather(*(loop.run() for loop in loops))
    assert min(counts.values()) / max(counts.values()) >= 0.95


@pytest.mark.aloop_guard(block_s=5)  # it collects the garbage
async def test_a_loop_that_ends_leaves_nothing_of_itself(tmp_path) -> None:
    async def once() -> None:
        loop = MainLoop(
            no_op,
            range(3),
            log=SQLiteLog(tmp_path / "log.sqlite"),
            extensions=[Record(1), FinishAfter(after_n_epochs=1)],
        )
        async with loop.running() as handle:
            await handle.wait()

    def objects() -> int:
        gc.collect()
        kept = ("MainLoop", "Supervisor", "BackgroundWork", "StopRequest", "Possession", "Training")
        return sum(type(thing).__name__ in kept for thing in gc.get_objects())

    await once()
    before = objects()
    for _ in range(20):
        await once()
    assert objects() <= before


# ------------------------------------------------------------------ what they may not share


async def running(loop: MainLoop):
    """Start a run and wait until it trains."""
    run = asyncio.create_task(loop.run())
    while loop.state != "running":
        await asyncio.sleep(0)
    return run


def endless():
    return iter(range(10**9))


@pytest.mark.parametrize("inside", [False, True])
async def test_an_extension_of_a_loop_that_runs_is_refused_by_name(inside) -> None:
    shared = Printing(name="the printer", after_epoch=False, before_first_epoch=False)
    shared.set_conditions()
    first = MainLoop(no_op, endless, extensions=[Record(1), shared], name="first")
    run = await running(first)
    extension = CompositeExtension([shared]) if inside else shared
    second = MainLoop(no_op, range(3), extensions=[extension, FinishAfter(after_n_epochs=1)])
    assert shared.main_loop is first or inside
    with pytest.raises(AlreadyRunningError) as caught:
        await second.run()
    message = str(caught.value)
    assert "the extension 'the printer' is in use by another run (first)" in message
    assert "expected one of its own for each loop that runs" in message
    with pytest.raises(AlreadyRunningError):
        async with second.running():
            pytest.fail("the body was entered")
    assert second.state == "new"
    first.request_finish("batch")
    await run
    await second.run()  # the first is over
    assert shared.main_loop is second


async def test_an_extension_that_is_added_to_a_loop_that_runs_is_refused_and_not_added() -> None:
    shared = Record(1)
    first = MainLoop(no_op, endless, extensions=[shared])
    second = MainLoop(no_op, endless)
    runs = [await running(first), await running(second)]
    for add in (
        lambda: second.extensions.append(shared),
        lambda: second.extensions.insert(0, shared),
        lambda: second.extensions.extend([Record(2), shared]),
    ):
        with pytest.raises(AlreadyRunningError, match="'Record' is in use by another run"):
            add()
    assert second.extensions == []
    assert shared.main_loop is first
    added = Record(3)
    second.extensions.append(added)  # and is taken from then on
    third = MainLoop(no_op, range(1), extensions=[added])
    with pytest.raises(AlreadyRunningError):
        await third.run()
    for loop, run in zip((first, second), runs, strict=True):
        loop.request_finish("batch")
        await run


async def test_the_first_goes_on_undisturbed_beside_the_loop_that_was_refused() -> None:
    class Count(SimpleExtension):
        async def do(self, which_callback: str, *args: object) -> None:
            self.main_loop.log.current_row["seen"] = True

    shared = Count(after_batch=True)
    first = MainLoop(no_op, endless, extensions=[shared])
    run = await running(first)
    second = MainLoop(no_op, range(3), extensions=[shared])
    with pytest.raises(AlreadyRunningError):
        await second.run()
    first.extensions.append(Record(1))  # which asks all of them anew
    begun = first.status["iterations_done"]
    while first.status["iterations_done"] < begun + 5:
        await asyncio.sleep(0)
    first.request_finish("batch")
    log = await run
    assert all(log[time]["seen"] for time in range(1, log.status["iterations_done"] + 1))
    assert len(second.log) == 0


class Iterator:
    def __iter__(self):
        return self

    def __next__(self) -> int:
        return 1


async def generate():
    while True:
        yield 1


STREAMS = {
    "an ArrayStream": lambda: ArrayStream(
        {"x": np.zeros((10_000, 1))}, iteration_scheme=SequentialScheme(10_000, 1)
    ),
    "a stream of as_stream": lambda: as_stream([1] * 10_000),
    "a generator": lambda: (1 for _ in range(10**9)),
    "an async generator": generate,
    "an iterator": Iterator,
}


@pytest.mark.parametrize("kind", STREAMS)
async def test_a_stream_of_a_loop_that_runs_is_refused_by_name(kind) -> None:
    stream = STREAMS[kind]()
    first, second = MainLoop(no_op, stream, name="first"), MainLoop(no_op, stream)
    run = await running(first)
    with pytest.raises(AlreadyRunningError) as caught:
        await second.run()
    assert "the data stream <" in str(caught.value) or "Stream(" in str(caught.value)
    assert "is in use by another run (first)" in str(caught.value)
    first.request_finish("batch")
    await run


@pytest.mark.parametrize("source", [[1, 2, 3], (1, 2), range(3), lambda: iter([1, 2])])
async def test_what_can_be_gone_through_by_many_at_once_is_not_refused(source) -> None:
    loops = [MainLoop(no_op, source, extensions=[FinishAfter(after_n_epochs=5)]) for _ in range(3)]
    await asyncio.gather(*(loop.run() for loop in loops))
    assert {loop.status["epochs_done"] for loop in loops} == {5}


async def test_the_parts_of_a_composite_are_left_alone_by_a_loop_that_is_made_with_it() -> None:
    child = Record(1)
    first = MainLoop(no_op, endless, extensions=[child])
    run = await running(first)
    second = MainLoop(no_op, range(3), extensions=[CompositeExtension([Record(2), child])])
    assert child.main_loop is first
    with pytest.raises(AlreadyRunningError):
        await second.run()
    first.request_finish("batch")
    await run


async def test_a_stream_that_is_set_while_a_loop_runs_is_refused_too() -> None:
    stream = as_stream([1] * 10_000)
    first, second = MainLoop(no_op, stream), MainLoop(no_op, endless)
    runs = [await running(first), await running(second)]
    with pytest.raises(AlreadyRunningError, match="the data stream"):
        second.data_stream = stream
    with pytest.raises(AlreadyRunningError, match="the data stream"):
        second.iteration_state = (stream, iter(()))
    for loop, run in zip((first, second), runs, strict=True):
        loop.request_finish("batch")
        await run
    second.data_stream = stream


async def test_what_was_refused_has_taken_nothing() -> None:
    shared, own = Record(1), Record(2)
    stream = as_stream([1] * 10_000)
    first = MainLoop(no_op, endless, extensions=[shared])
    run = await running(first)
    second = MainLoop(no_op, stream, extensions=[own, shared])
    with pytest.raises(AlreadyRunningError):
        await second.run()
    third = MainLoop(no_op, stream, extensions=[own, FinishAfter(after_n_batches=3)])
    await third.run()
    assert third.status["iterations_done"] == 3
    first.request_finish("batch")
    await run


def test_a_run_whose_event_loop_was_closed_has_nothing_any_more() -> None:
    shared = Record(1)
    first = MainLoop(no_op, endless, extensions=[shared])

    async def begin() -> None:
        task = await running(first)
        task._log_destroy_pending = False

    event_loop = asyncio.new_event_loop()
    event_loop.run_until_complete(begin())
    event_loop.close()
    second = MainLoop(no_op, range(3), extensions=[shared, FinishAfter(after_n_epochs=1)])
    asyncio.run(second.run())
    assert [second.log[time]["of"] for time in (1, 2, 3)] == [1, 1, 1]
    gc.collect()


def test_loops_in_two_threads_may_not_share_an_extension_either() -> None:
    shared, trains, over = Record(1), threading.Event(), threading.Event()

    async def step(batch: object) -> None:
        trains.set()
        await asyncio.sleep(0)
        if over.is_set():
            first.request_finish("batch")

    first = MainLoop(step, endless, extensions=[shared])
    thread = threading.Thread(target=asyncio.run, args=(first.run(),))
    thread.start()
    assert trains.wait(10)
    second = MainLoop(no_op, range(3), extensions=[shared])
    with pytest.raises(AlreadyRunningError):
        asyncio.run(second.run())
    over.set()
    thread.join()
