"""What is made ahead: in order, so many at once, and nothing of it is lost or left behind."""

import asyncio
import logging
import threading

import numpy as np
import pytest
from stream_tools import Async, check_every_stop, epoch, kept, loop_of

from aloop import ArrayStream, as_stream
from aloop.errors import StreamError
from aloop.streams import ShuffledExampleScheme, ShuffledScheme


def shuffled(number=6):
    stream = ArrayStream(
        {"x": np.arange(number)}, iteration_scheme=ShuffledExampleScheme(number, seed=3)
    )
    return stream.map(lambda example: int(example["x"]))


def orders(epochs, number=6):
    scheme = ShuffledExampleScheme(number, seed=3)
    return [scheme.epoch_indices(e).tolist() for e in range(epochs)]


async def later(number):
    await asyncio.sleep(0)
    return number


def threads_of_streams() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "aloop stream"]


def tasks_but_this() -> set[str]:
    return {task.get_name() for task in asyncio.all_tasks()} - {asyncio.current_task().get_name()}


class Gates:
    """A coroutine function each call of which waits until it is let go, and what it was at."""

    def __init__(self) -> None:
        self.begun, self.at_once, self.most, self.cancelled = [], 0, 0, []
        self.gates: dict[int, asyncio.Event] = {}
        self._changed = asyncio.Event()

    def gate(self, number) -> asyncio.Event:
        return self.gates.setdefault(number, asyncio.Event())

    async def __call__(self, number):
        self.begun.append(number)
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        self._changed.set()
        try:
            await self.gate(number).wait()
        except asyncio.CancelledError:
            self.cancelled.append(number)
            raise
        finally:
            self.at_once -= 1
        return number

    async def until_begun(self, number) -> None:
        while number not in self.begun:
            self._changed.clear()
            await self._changed.wait()

    def open(self, *numbers) -> None:
        for number in numbers:
            self.gate(number).set()


@pytest.fixture
def impatient(monkeypatch) -> None:
    """Have the end of a run wait but briefly for what is stuck."""
    for module in ("functions", "origin", "prefetched"):
        monkeypatch.setattr(f"aloop.streams.stages.{module}.ENDING_S", 0.01)


# ---- In a chain in which nothing waits


def test_one_worker_of_a_sync_chain_is_the_thread_that_reads_the_stream() -> None:
    stream = as_stream([1, 2, 3]).prefetch(5)
    assert (stream.read_ahead, stream.where) == (5, "thread")
    assert list(stream.get_epoch_iterator()) == [1, 2, 3]


def test_what_follows_reads_as_far_ahead() -> None:
    assert as_stream([1]).prefetch(8).map(str).read_ahead == 8
    assert as_stream([1]).prefetch(8).batch(4).read_ahead == 2
    assert as_stream([1]).prefetch(0).batch(4).read_ahead == 0


@pytest.mark.parametrize("depth", [-1, 1.5, None, "2", True], ids=repr)
def test_depth_is_a_number_from_0_on(depth) -> None:
    with pytest.raises(StreamError, match=f"depth of prefetch.. is {depth!r}; expected"):
        as_stream([1]).prefetch(depth)


@pytest.mark.parametrize("workers", [0, -1, 1.5, None], ids=repr)
def test_workers_are_a_number_from_1_on(workers) -> None:
    with pytest.raises(StreamError, match=f"workers of prefetch.. is {workers!r}; expected"):
        as_stream([1]).prefetch(2, workers)


# ---- Order, and how many at once


async def test_elements_come_in_their_order_whichever_is_made_first() -> None:
    gates = Gates()
    iterator = as_stream([0, 1, 2]).map(gates, concurrency=3).get_epoch_iterator()
    asking = asyncio.ensure_future(anext(iterator))
    await gates.until_begun(2)
    gates.open(2, 1)
    await asyncio.sleep(0)
    assert not asking.done()
    gates.open(0)
    assert [await asking, *[number async for number in iterator]] == [0, 1, 2]


@pytest.mark.parametrize("concurrency", [1, 2, 4])
async def test_so_many_elements_are_made_at_once_and_no_more(concurrency) -> None:
    gates = Gates()
    gates.open(*range(3, 20))
    stream = as_stream(range(20)).map(gates, concurrency=concurrency)
    walking = asyncio.create_task(epoch(stream))
    await gates.until_begun(min(concurrency, 3) - 1)
    gates.open(0, 1, 2)
    assert await walking == list(range(20))
    assert gates.most == concurrency


async def test_threads_make_elements_side_by_side() -> None:
    barrier = threading.Barrier(3)

    def meet(number):
        barrier.wait(timeout=20)  # which one alone would never get by
        return number

    assert await epoch(as_stream(range(6)).map(meet, concurrency=3)) == list(range(6))


async def test_one_worker_makes_one_after_the_other_and_so_many_ahead() -> None:
    gates = Gates()
    gates.open(*range(10))
    iterator = as_stream(range(10)).map(gates).prefetch(3).get_epoch_iterator()
    assert await anext(iterator) == 0
    await gates.until_begun(3)
    for _ in range(20):
        await asyncio.sleep(0)
    assert gates.begun == [0, 1, 2, 3]
    assert gates.most == 1
    await iterator.rest()


async def test_batches_of_an_array_stream_are_fetched_in_the_workers() -> None:
    barrier = threading.Barrier(2)

    class Meeting(ArrayStream):
        def fetch(self, request):
            barrier.wait(timeout=20)
            return super().fetch(request)

    scheme = ShuffledScheme(8, 2, seed=1)
    stream = Meeting({"x": np.arange(8)}, iteration_scheme=scheme).prefetch(2, workers=2)
    order = scheme.epoch_indices(0).reshape(4, 2).tolist()
    assert await epoch(stream) == [{"x": indices} for indices in order]


async def test_whole_batches_are_made_side_by_side() -> None:
    barrier = threading.Barrier(2)

    def meet(number):
        barrier.wait(timeout=20)
        return number

    stream = as_stream(range(8)).map(meet).batch(2).prefetch(2, workers=2)
    assert await epoch(stream) == [[0, 1], [2, 3], [4, 5], [6, 7]]


async def test_a_sync_function_after_an_async_one_is_called_in_a_thread() -> None:
    threads = []

    def note(number):
        threads.append(threading.current_thread() is threading.main_thread())
        return number

    stream = as_stream(range(4)).map(later).map(note).prefetch(2, workers=2)
    assert await epoch(stream) == [0, 1, 2, 3]
    assert threads == [False] * 4


# ---- The place


MAKERS = {
    "sync, threads": lambda s: s.map(lambda n: n).prefetch(3, workers=2),
    "async, tasks": lambda s: s.map(later, concurrency=3),
    "async source": lambda s: Async(s).prefetch(3),
    "async source, workers": lambda s: Async(s).map(lambda n: n, concurrency=2),
    "twice": lambda s: s.map(later, concurrency=2).map(later, concurrency=2),
    "generator": lambda s: as_stream(lambda: (n for n in s.get_epoch_iterator())).prefetch(2, 2),
}


@pytest.mark.parametrize("kind", [kind for kind in MAKERS if kind != "generator"])
async def test_a_stream_that_is_made_ahead_goes_on_anywhere(kind) -> None:
    await check_every_stop(lambda: MAKERS[kind](shuffled()), orders(3))


async def test_a_generator_that_is_read_ahead_goes_on_anywhere() -> None:
    def make():
        return as_stream(lambda: (n for n in range(5))).map(later, concurrency=3)

    await check_every_stop(make, [[0, 1, 2, 3, 4]] * 2)


async def test_a_state_is_that_of_the_stream_whatever_is_made_ahead() -> None:
    stream = as_stream(range(5)).map(later, concurrency=2)
    iterator = stream.get_epoch_iterator()
    assert [await anext(iterator) for _ in range(3)] == [0, 1, 2]
    await iterator.rest()
    assert stream.state_dict() == {
        "chain": "IterableStream.map()",
        "place": {"count": 3},
    }
    again = as_stream(range(5)).map(later).prefetch(4, workers=3)
    again.load_state_dict(kept(stream.state_dict()))
    assert await epoch(again) == [3, 4]


# ---- Errors


async def fails_at_2(number):
    await asyncio.sleep(0)
    if number == 2:
        raise OSError("no disk")
    return number


def fails_at_2_in_a_thread(number):
    if number == 2:
        raise OSError("no disk")
    return number


@pytest.mark.parametrize("function", [fails_at_2, fails_at_2_in_a_thread])
async def test_an_error_comes_at_its_element_and_the_rest_after_it(function) -> None:
    iterator = as_stream(range(5)).map(function, concurrency=3).get_epoch_iterator()
    assert [await anext(iterator) for _ in range(2)] == [0, 1]
    with pytest.raises(OSError, match="no disk") as caught:
        await anext(iterator)
    assert caught.value.__notes__ == [f"raised by the function {function.__name__} of map()"]
    assert [number async for number in iterator] == [3, 4]


async def test_an_error_of_the_source_comes_at_its_element() -> None:
    def fails():
        yield 0
        yield 1
        raise OSError("no disk")

    iterator = as_stream(fails).map(later, concurrency=3).get_epoch_iterator()
    assert [await anext(iterator) for _ in range(2)] == [0, 1]
    with pytest.raises(OSError, match="no disk"):
        await anext(iterator)


async def test_a_function_that_cancels_itself_is_an_error_and_not_called_for_ever() -> None:
    async def cancels(number):
        raise asyncio.CancelledError

    with pytest.raises(StreamError, match="ahead has cancelled itself"):
        await epoch(as_stream(range(3)).map(cancels, concurrency=2))


@pytest.mark.parametrize("quiet", ["function", "source"])
async def test_a_stream_that_is_closed_while_it_is_awaited_says_so(quiet) -> None:
    waits = asyncio.Event()

    async def wait(number=None):
        waits.set()
        await asyncio.Event().wait()

    async def quiet_source():
        yield await wait()

    source = as_stream(quiet_source if quiet == "source" else range(3))
    stream = source.map(later if quiet == "source" else wait, concurrency=2)
    asking = asyncio.create_task(anext(stream.get_epoch_iterator()))
    await waits.wait()
    stream.close()
    with pytest.raises(StreamError, match="was closed, or went elsewhere"):
        await asking


async def test_after_an_error_nothing_is_left_though_nobody_asks_again() -> None:
    iterator = as_stream(range(9)).map(fails_at_2_in_a_thread, concurrency=3).get_epoch_iterator()
    with pytest.raises(OSError, match="no disk"):
        async for _ in iterator:
            pass
    assert threads_of_streams() == []
    assert tasks_but_this() == set()


# ---- Between two runs


async def test_at_the_end_of_an_epoch_nothing_is_left() -> None:
    await epoch(shuffled().map(later, concurrency=3).prefetch(3, workers=2))
    assert threads_of_streams() == []
    assert tasks_but_this() == set()


async def test_what_is_under_way_is_cancelled_and_begun_anew() -> None:
    gates = Gates()
    iterator = as_stream(range(4)).map(gates, concurrency=3).get_epoch_iterator()
    gates.open(0)
    assert await anext(iterator) == 0
    await gates.until_begun(3)
    await iterator.rest()
    assert sorted(gates.cancelled) == [1, 2, 3]
    assert tasks_but_this() == set()
    gates.open(1, 2, 3)
    assert [number async for number in iterator] == [1, 2, 3]
    assert gates.begun[4:] == [1, 2, 3]


async def test_what_was_made_before_the_rest_is_not_made_again() -> None:
    calls = []

    def note(number):
        calls.append(number)
        return number

    iterator = as_stream(range(6)).map(note, concurrency=2).get_epoch_iterator()
    seen = [await anext(iterator) for _ in range(2)]
    await iterator.rest()
    assert threads_of_streams() == []
    assert seen + [number async for number in iterator] == list(range(6))
    assert sorted(calls) == list(range(6))


async def test_what_somebody_waits_for_is_made_though_the_rest_is_let_go() -> None:
    gates = Gates()
    iterator = as_stream(range(4)).map(gates, concurrency=3).get_epoch_iterator()
    asking = asyncio.create_task(anext(iterator))
    await gates.until_begun(2)
    await iterator.rest()
    assert sorted(gates.cancelled) == [1, 2]
    gates.open(0, 1, 2, 3)
    assert await asking == 0
    await asyncio.sleep(0)
    assert gates.begun == [0, 1, 2]
    assert [number async for number in iterator] == [1, 2, 3]


@pytest.mark.aloop_guard(tasks=False)  # the wait goes on
async def test_a_quiet_source_is_waited_for_across_runs() -> None:
    queue: asyncio.Queue[int] = asyncio.Queue()

    async def quiet():
        while True:
            yield await queue.get()

    iterator = as_stream(quiet).map(later, concurrency=2).get_epoch_iterator()
    asking = asyncio.create_task(anext(iterator))
    for _ in range(10):
        await asyncio.sleep(0)
    await iterator.rest()
    queue.put_nowait(1)
    assert await asking == 1
    queue.put_nowait(2)
    assert await anext(iterator) == 2
    await iterator.rest()
    for number in (3, 4):
        queue.put_nowait(number)
    assert [await anext(iterator) for _ in range(2)] == [3, 4]
    await iterator.rest()


async def test_a_source_that_is_stuck_in_its_thread_is_named_and_goes_on_later(
    impatient, caplog
) -> None:
    stuck, release = threading.Event(), threading.Event()

    def blocks():
        yield 0
        stuck.set()
        release.wait(30)
        yield 1
        yield 2

    iterator = as_stream(blocks).map(later).get_epoch_iterator()
    assert await anext(iterator) == 0
    asking = asyncio.create_task(anext(iterator))
    await asyncio.to_thread(stuck.wait)
    with caplog.at_level(logging.WARNING, "aloop"):
        await iterator.rest()
    assert "gives no batch: the run ends without it" in caplog.text
    release.set()
    assert await asking == 1
    for thread in threading.enumerate():
        if thread.name == "aloop stream":
            thread.join(10)
    assert await anext(iterator) == 2
    await iterator.rest()


async def test_a_source_is_read_for_who_waits_though_the_run_ends_at_once() -> None:
    iterator = as_stream(lambda: (n for n in range(9))).map(later).get_epoch_iterator()
    for expected in range(9):
        asking = asyncio.create_task(anext(iterator))
        await asyncio.sleep(0)
        await iterator.rest()
        assert await asking == expected
    await iterator.rest()


async def test_a_function_that_never_returns_is_named_and_left(impatient, caplog) -> None:
    stuck, release = threading.Event(), threading.Event()

    def never(number):
        if number == 1:
            stuck.set()
            release.wait(30)
        return number

    iterator = as_stream(range(3)).map(never, concurrency=2).get_epoch_iterator()
    assert await anext(iterator) == 0
    await asyncio.to_thread(stuck.wait)
    with caplog.at_level(logging.WARNING, "aloop"):
        await iterator.rest()
    assert "1 of the elements that IterableStream.map() makes ahead do not come" in caplog.text
    release.set()
    assert [number async for number in iterator] == [1, 2]


async def test_the_thread_of_a_plain_map_that_never_returns_is_named_and_left(
    impatient, caplog
) -> None:
    stuck, release = threading.Event(), threading.Event()

    def never(number):
        stuck.set()
        release.wait(30)
        return number

    iterator = Async(shuffled()).map(never).get_epoch_iterator()
    asking = asyncio.create_task(anext(iterator))
    await asyncio.to_thread(stuck.wait)
    with caplog.at_level(logging.WARNING, "aloop"):
        await iterator.rest()
    assert "of map() does not return: the run ends without it" in caplog.text
    release.set()
    assert await asking == orders(1)[0][0]


def test_it_goes_on_in_another_event_loop_with_nothing_lost() -> None:
    stream = as_stream(range(8)).map(later, concurrency=3).map(str, concurrency=2)
    iterator = stream.get_epoch_iterator()

    async def some(number):
        return [await anext(iterator) for _ in range(number)]

    seen = [asyncio.run(some(number)) for number in (2, 3, 3)]
    assert seen == [["0", "1"], ["2", "3", "4"], ["5", "6", "7"]]
    asyncio.run(iterator.rest())


def test_a_sync_function_goes_on_though_its_event_loop_ended_during_a_call() -> None:
    release = threading.Event()

    def block_at_first(number):
        release.wait(20)
        return number

    iterator = Async(shuffled()).map(block_at_first).get_epoch_iterator()

    async def ask_in_vain() -> None:
        asyncio.create_task(anext(iterator))  # noqa: RUF006 - which nobody is to wait for
        for _ in range(3):
            await asyncio.sleep(0)

    async def rest_of_it() -> list[int]:
        return [number async for number in iterator]

    asyncio.run(ask_in_vain())
    release.set()
    assert asyncio.run(rest_of_it()) == orders(1)[0]


def test_an_epoch_that_is_begun_anew_can_be_cut_off_again() -> None:
    waits_at = None

    async def generated():
        for number in range(6):
            if number == waits_at:
                await asyncio.Event().wait()
            yield number

    iterator = as_stream(generated).map(later, concurrency=2).get_epoch_iterator()

    async def some(number) -> list[int]:
        return [await anext(iterator) for _ in range(number)]

    async def ask_in_vain() -> None:
        asyncio.create_task(anext(iterator))  # noqa: RUF006 - which nobody is to wait for
        for _ in range(20):
            await asyncio.sleep(0)

    waits_at = 4
    seen = asyncio.run(some(4))
    for waits_at in (4, 1, 4):  # noqa: B007 - the generator sees it
        asyncio.run(ask_in_vain())
    waits_at = None
    assert seen + asyncio.run(some(2)) == list(range(6))


async def test_a_cancelled_wait_loses_nothing() -> None:
    gates = Gates()
    iterator = as_stream(range(3)).map(gates, concurrency=2).get_epoch_iterator()
    for _ in range(3):
        asking = asyncio.create_task(anext(iterator))
        await gates.until_begun(1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    gates.open(0, 1, 2)
    assert [number async for number in iterator] == [0, 1, 2]
    assert gates.begun == [0, 1, 2]


async def test_an_epoch_begun_on_top_of_another_has_nothing_of_it() -> None:
    stream = shuffled().map(later, concurrency=3)
    assert await anext(stream.get_epoch_iterator()) == orders(1)[0][0]
    assert await epoch(stream) == orders(2)[1]


async def test_close_ends_what_is_under_way() -> None:
    stream = as_stream(range(9)).map(lambda n: n, concurrency=3)
    await anext(stream.get_epoch_iterator())
    stream.close()
    for _ in range(5):
        await asyncio.sleep(0)
    assert tasks_but_this() == set()


async def test_a_stream_that_nobody_holds_leaves_no_thread() -> None:
    stream = Async(shuffled()).map(lambda n: n)
    await anext(stream.get_epoch_iterator())
    del stream
    for thread in threading.enumerate():
        if thread.name == "aloop stream":
            thread.join(10)
    assert threads_of_streams() == []


# ---- Trained on


@pytest.mark.parametrize("number", [1, 2, 4])
def test_runs_in_one_event_loop_after_the_other_go_on(tmp_path, number) -> None:
    async def generated():
        for n in range(6):
            await asyncio.sleep(0)
            yield n

    trained = []
    stream = as_stream(generated).map(later, concurrency=number).batch(1)
    loop = loop_of(stream, tmp_path, trained, 2)
    asyncio.run(loop.run())
    for finish in (5, 7, 18):
        loop.find_extension("FinishAfter").set_conditions(after_n_batches=finish)
        asyncio.run(loop.run())
    assert trained == [[n] for n in range(6)] * 3


@pytest.mark.parametrize("stop", [1, 3, 5, 6, 7, 12])
@pytest.mark.parametrize("kind", [kind for kind in MAKERS if kind != "generator"])
async def test_a_training_goes_on_anywhere(tmp_path, kind, stop) -> None:
    trained = []
    for finish in (stop, 18):
        await loop_of(MAKERS[kind](shuffled()), tmp_path, trained, finish).run()
        assert threads_of_streams() == []
        assert not tasks_but_this() & {"aloop prefetch", "aloop stream"}
    assert trained == [number for order in orders(3) for number in order]


async def test_a_run_that_is_stopped_goes_on_with_what_was_made_ahead(tmp_path) -> None:
    calls, trained = [], []

    def note(number):
        calls.append(number)
        return number

    loop = loop_of(as_stream(range(6)).map(note, concurrency=2), tmp_path, trained, 2)
    await loop.run()
    loop.find_extension("FinishAfter").set_conditions(after_n_batches=6)
    await loop.run()
    assert trained == list(range(6))
    assert sorted(calls) == list(range(6))


async def test_a_run_that_is_cancelled_while_elements_are_made_goes_on_anew(tmp_path) -> None:
    gates = Gates()
    gates.open(0)
    trained = []
    loop = loop_of(as_stream(range(4)).map(gates, concurrency=3), tmp_path, trained, 4)
    running = asyncio.create_task(loop.run())
    await gates.until_begun(3)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    gates.open(1, 2, 3)
    again = loop_of(as_stream(range(4)).map(later, concurrency=3), tmp_path, trained, 4)
    await again.run()
    assert trained == [0, 1, 2, 3]


async def test_a_stream_that_fails_leaves_nothing(tmp_path) -> None:
    loop = loop_of(as_stream(range(9)).map(fails_at_2, concurrency=3), tmp_path, [], 9)
    with pytest.raises(OSError, match="no disk"):
        await loop.run()
    assert threads_of_streams() == []
    assert "aloop prefetch" not in tasks_but_this()
