"""Streams over queues: nothing that came is lost, and nothing is trained on twice."""

import asyncio
import gc
import queue as blocking
import sys
from contextlib import suppress

import anyio
import pytest

from aloop import Checkpoint, FinishAfter, MainLoop, TrainingExtension, as_stream
from aloop.errors import StreamError
from aloop.protocols import Stateful, Stream
from aloop.streams.queues import QueueStream

END = object()


def loop_of(stream, trained, *extensions, path=None, **finish) -> MainLoop:
    async def step(batch) -> None:
        trained.append(batch)

    checkpoints = [] if path is None else [Checkpoint(path, resume=True)]
    return MainLoop(
        step,
        stream,
        extensions=[*extensions, *checkpoints, FinishAfter(**finish)],
        signals="off",
        stall_warning_s=0,
    )


def asyncio_queue(*batches):
    queue = asyncio.Queue()
    for batch in batches:
        queue.put_nowait(batch)
    return queue


def anyio_stream(*batches):
    send, receive = anyio.create_memory_object_stream(100)
    for batch in batches:
        send.send_nowait(batch)
    return send, receive


class Tells(TrainingExtension):
    """Says when so many batches were trained on."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.reached = number, asyncio.Event()

    async def after_batch(self, batch) -> None:
        if self.main_loop.status["iterations_done"] == self.number:
            self.reached.set()


async def stopped_in_the_wait(loop, tells, how="finish") -> None:
    task = asyncio.create_task(loop.run())
    await tells.reached.wait()
    await asyncio.sleep(0)
    if how == "finish":
        loop.request_finish("batch")
    else:
        task.cancel()
    with suppress(asyncio.CancelledError):
        await task


# ---- Batches and epochs


async def test_batches_come_in_the_order_in_which_they_were_put() -> None:
    trained: list[int] = []
    stream = QueueStream(asyncio_queue(3, 1, 2))
    await loop_of(stream, trained, after_n_batches=3).run()
    assert trained == [3, 1, 2]


async def test_epochs_are_cut_by_the_number_of_batches() -> None:
    trained: list[int] = []
    stream = QueueStream(asyncio_queue(*range(7)), batches_per_epoch=3)
    loop = loop_of(stream, trained, after_n_epochs=2)
    await loop.run()
    assert (trained, loop.status["_epoch_ends"]) == ([0, 1, 2, 3, 4, 5], [3, 6])


async def test_epoch_that_is_cut_takes_nothing_more_from_the_queue() -> None:
    queue = asyncio_queue(*range(4))
    await loop_of(QueueStream(queue, batches_per_epoch=3), [], after_n_epochs=1).run()
    assert queue.qsize() == 1


async def test_queue_that_is_filled_by_a_task_is_waited_for() -> None:
    queue: asyncio.Queue = asyncio.Queue(maxsize=1)
    trained: list[int] = []

    async def fill() -> None:
        for batch in range(20):
            await queue.put(batch)

    async with asyncio.TaskGroup() as group:
        group.create_task(fill())
        await loop_of(as_stream(queue), trained, after_n_batches=20).run()
    assert trained == list(range(20))


async def test_priority_queue_gives_the_smallest_first() -> None:
    queue: asyncio.PriorityQueue = asyncio.PriorityQueue()
    for batch in (3, 1, 2):
        queue.put_nowait(batch)
    trained: list[int] = []
    await loop_of(as_stream(queue), trained, after_n_batches=3).run()
    assert trained == [1, 2, 3]


async def test_task_done_is_left_to_the_user() -> None:
    queue = asyncio_queue(1)
    trained: list[int] = []
    await loop_of(as_stream(queue), trained, after_n_batches=1).run()
    queue.task_done()  # it would raise, had it been called already
    await queue.join()


# ---- The end


async def test_what_is_put_last_ends_the_epoch() -> None:
    trained: list[int] = []
    loop = loop_of(QueueStream(asyncio_queue(1, 2, END), end=END), trained, after_n_epochs=1)
    await loop.run()
    assert (trained, loop.status["_epoch_ends"]) == ([1, 2], [2])


async def test_none_can_be_what_is_put_last() -> None:
    trained: list[int] = []
    await loop_of(QueueStream(asyncio_queue(1, None), end=None), trained, after_n_epochs=1).run()
    assert trained == [1]


async def test_none_is_a_batch_unless_it_is_said_to_be_last() -> None:
    trained: list[object] = []
    await loop_of(QueueStream(asyncio_queue(None, 1)), trained, after_n_batches=2).run()
    assert trained == [None, 1]


async def test_end_of_an_anyio_stream_ends_the_epoch() -> None:
    send, receive = anyio_stream(1, 2)
    send.close()
    trained: list[int] = []
    await loop_of(as_stream(receive), trained, after_n_epochs=1).run()
    receive.close()
    assert trained == [1, 2]


@pytest.mark.skipif(sys.version_info < (3, 13), reason="queues cannot be shut down before 3.13")
async def test_shutdown_of_a_queue_ends_the_epoch() -> None:
    queue = asyncio_queue(1, 2)
    queue.shutdown()
    trained: list[int] = []
    await loop_of(as_stream(queue), trained, after_n_epochs=1).run()
    assert trained == [1, 2]


@pytest.mark.parametrize("batches_per_epoch", [None, 2, 3, 4])
async def test_end_of_the_queue_ends_the_training_in_good_order(batches_per_epoch) -> None:
    trained: list[int] = []
    stream = QueueStream(
        asyncio_queue(1, 2, 3, 4, END), end=END, batches_per_epoch=batches_per_epoch
    )
    loop = loop_of(stream, trained, after_n_epochs=9)
    await loop.run()
    assert trained == [1, 2, 3, 4]
    ends = {None: [4], 2: [2, 4], 3: [3, 4], 4: [4]}
    assert loop.status["_epoch_ends"] == ends[batches_per_epoch]


async def test_end_of_the_queue_ends_the_training_through_what_is_made_of_it() -> None:
    trained: list[int] = []
    stream = QueueStream(asyncio_queue(1, 2, 3, 4, END), end=END, batches_per_epoch=2)
    loop = loop_of(stream.map(lambda batch: batch * 10).prefetch(1), trained, after_n_epochs=9)
    await loop.run()
    assert (trained, loop.status["_epoch_ends"]) == ([10, 20, 30, 40], [2, 4])


async def test_run_after_the_end_of_the_queue_ends_at_once() -> None:
    trained: list[int] = []
    loop = loop_of(QueueStream(asyncio_queue(1, END), end=END), trained, after_n_epochs=9)
    await loop.run()
    await loop.run()
    assert trained == [1]


async def test_training_that_is_restored_after_the_end_ends_its_epoch(tmp_path) -> None:
    trained: list[int] = []
    queue = asyncio_queue(1, 2, END)
    for finish in (2, 9):
        stream = QueueStream(queue, end=END, batches_per_epoch=3)
        loop = loop_of(stream, trained, path=tmp_path, after_n_batches=finish)
        await loop.run()
    assert (trained, loop.status["_epoch_ends"]) == ([1, 2], [2])


async def test_last_epoch_may_be_shorter() -> None:
    trained: list[int] = []
    stream = QueueStream(asyncio_queue(1, 2, 3, END), end=END, batches_per_epoch=2)
    loop = loop_of(stream, trained, after_n_epochs=2)
    await loop.run()
    assert (trained, loop.status["_epoch_ends"]) == ([1, 2, 3], [2, 3])


async def test_receive_stream_that_the_user_has_closed_is_an_error_of_anyio() -> None:
    send, receive = anyio_stream()
    receive.close()
    with pytest.raises(anyio.ClosedResourceError):
        await loop_of(as_stream(receive), [], after_n_batches=1).run()
    send.close()


# ---- Stopped and gone on with


@pytest.mark.parametrize("how", ["finish", "cancel"])
@pytest.mark.parametrize("kind", ["asyncio", "anyio"])
async def test_batch_that_comes_after_a_stop_is_the_next_runs_first(how, kind) -> None:
    if kind == "asyncio":
        queue = asyncio_queue(1, 2)
        put = queue.put_nowait
    else:
        send, queue = anyio_stream(1, 2)
        put = send.send_nowait
    trained: list[int] = []
    tells = Tells(2)
    loop = loop_of(as_stream(queue), trained, tells, after_n_batches=4)
    await stopped_in_the_wait(loop, tells, how)
    put(3)
    put(4)
    await loop.run()
    assert trained == [1, 2, 3, 4]
    if kind == "anyio":
        send.close()
        queue.close()


@pytest.mark.parametrize("how", ["finish", "cancel"])
async def test_loop_made_anew_goes_on_with_what_comes_next(tmp_path, how) -> None:
    queue = asyncio_queue(1, 2)
    trained: list[int] = []
    tells = Tells(2)
    loop = loop_of(as_stream(queue), trained, tells, path=tmp_path, after_n_batches=99)
    await stopped_in_the_wait(loop, tells, how)
    # The loop that was stopped waits on, for its own next run, until nobody holds it.
    del loop, tells
    await asyncio.sleep(0)
    gc.collect()
    await asyncio.sleep(0)
    loop = loop_of(as_stream(queue), trained, path=tmp_path, after_n_batches=4)
    queue.put_nowait(3)
    queue.put_nowait(4)
    await loop.run()
    assert trained == [1, 2, 3, 4]


@pytest.mark.parametrize("stop", range(1, 8))
async def test_epochs_of_a_restored_training_end_where_they_would_have(tmp_path, stop) -> None:
    trained: list[int] = []
    queue = asyncio_queue(*range(8))
    for finish in (stop, 8):
        loop = loop_of(
            QueueStream(queue, batches_per_epoch=3),
            trained,
            path=tmp_path,
            after_n_batches=finish,
        )
        await loop.run()
    assert (trained, loop.status["_epoch_ends"]) == (list(range(8)), [3, 6])


async def test_nothing_is_left_out_of_a_queue_that_has_one_epoch(tmp_path, caplog) -> None:
    trained: list[int] = []
    queue = asyncio_queue(*range(5))
    for finish in (2, 5):
        await loop_of(as_stream(queue), trained, path=tmp_path, after_n_batches=finish).run()
    assert trained == [0, 1, 2, 3, 4]
    assert "left out" not in caplog.text


async def test_two_loops_share_what_comes_to_a_queue() -> None:
    queue = asyncio_queue(*range(10))
    one: list[int] = []
    other: list[int] = []
    async with asyncio.TaskGroup() as group:
        for trained in (one, other):
            group.create_task(loop_of(as_stream(queue), trained, after_n_batches=5).run())
    assert sorted(one + other) == list(range(10))


# ---- as_stream, and the interface


def test_queue_becomes_a_stream_that_is_live() -> None:
    stream = as_stream(asyncio.Queue())
    assert (type(stream), stream.on_resume) == (QueueStream, "live")


def test_anyio_stream_becomes_a_stream_that_is_live() -> None:
    send, receive = anyio_stream()
    stream = as_stream(receive)
    send.close()
    receive.close()
    assert (type(stream), stream.on_resume) == (QueueStream, "live")


async def test_blocking_queue_is_read_by_its_get() -> None:
    queue: blocking.Queue = blocking.Queue()
    for batch in (1, 2, 3, None):
        queue.put(batch)
    trained: list[int] = []
    await loop_of(as_stream(iter(queue.get, None)), trained, after_n_epochs=1).run()
    assert trained == [1, 2, 3]


def test_stream_of_a_queue_is_a_stream_with_a_state() -> None:
    stream = QueueStream(asyncio.Queue(), sources=("x", "y"))
    assert isinstance(stream, Stream)
    assert isinstance(stream, Stateful)
    assert stream.sources == ("x", "y")


def test_length_is_the_number_of_batches_in_an_epoch() -> None:
    assert len(QueueStream(asyncio.Queue(), batches_per_epoch=5)) == 5


def test_length_is_unknown_where_the_queue_says_when_it_ends() -> None:
    with pytest.raises(TypeError, match="has no length; give it batches_per_epoch"):
        len(QueueStream(asyncio.Queue()))


async def test_iterator_that_was_left_for_a_later_one_takes_nothing() -> None:
    queue = asyncio_queue(1)
    stream = QueueStream(queue)
    left = stream.get_epoch_iterator()
    later = stream.get_epoch_iterator()
    assert await anext(left, "end") == "end"
    assert await anext(later) == 1


# ---- What is refused


@pytest.mark.parametrize("number", [0, -1, 2.5, "3", True])
def test_number_of_batches_that_is_none_is_refused_by_its_value(number) -> None:
    with pytest.raises(StreamError, match=f"batches_per_epoch is {number!r}; expected a whole"):
        QueueStream(asyncio.Queue(), batches_per_epoch=number)


def test_blocking_queue_is_refused_with_the_way_to_read_it() -> None:
    with pytest.raises(StreamError, match=r"in a thread: as_stream\(iter\(queue.get, None\)\)"):
        QueueStream(blocking.Queue())


@pytest.mark.parametrize("what", [None, [1], {}, asyncio.Queue], ids=repr)
def test_what_is_no_queue_is_refused(what) -> None:
    with pytest.raises(StreamError, match=r"expected an asyncio\.Queue"):
        QueueStream(what)


@pytest.mark.parametrize("batch", [-1, 1.5, None, True])
def test_state_that_is_no_place_is_refused(batch) -> None:
    with pytest.raises(StreamError, match="expected whole numbers from 0 on"):
        QueueStream(asyncio.Queue()).load_state_dict({"batch": batch})


def test_state_that_is_no_mapping_is_refused_by_its_value() -> None:
    with pytest.raises(StreamError, match="state is None of type NoneType; expected a mapping"):
        QueueStream(asyncio.Queue()).load_state_dict(None)
