"""The place in a stream: what was trained on is not trained on again, and nothing is left out."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import numpy as np
import pytest

from aloop import Checkpoint, DataStream, FinishAfter, MainLoop, TrainingExtension, as_stream
from aloop.checkpoints import SavedCheckpoint
from aloop.errors import ArgumentError, CheckpointError, CheckpointValueError, StreamError
from aloop.streams.cursor import copied


def loop_of(stream, directory, trained, finish, *extensions, **options) -> MainLoop:
    async def step(batch) -> None:
        trained.append(batch)

    return MainLoop(
        step,
        stream,
        extensions=[
            *extensions,
            Checkpoint(directory, resume=True, **options),
            FinishAfter(after_n_batches=finish),
        ],
        signals="off",
        stall_warning_s=0,
    )


class Count(Iterator):
    """An iterator that tells its place."""

    def __init__(self, end: int) -> None:
        self.at, self.end = 0, end

    def __next__(self) -> int:
        if self.at == self.end:
            raise StopIteration
        self.at += 1
        return self.at - 1

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state) -> None:
        self.at = state["at"]


class AsyncCount(AsyncIterator):
    """An async one, which moves on before it waits."""

    def __init__(self, end: int) -> None:
        self.inner = Count(end)
        self.state_dict = self.inner.state_dict
        self.load_state_dict = self.inner.load_state_dict

    async def __anext__(self) -> int:
        batch = next(self.inner, None)
        if batch is None:
            raise StopAsyncIteration
        await asyncio.sleep(0)
        return batch


class Epochs(DataStream):
    """A stream that tells its place, each epoch of which is another."""

    def __init__(self, kind=Count) -> None:
        self.kind, self.epoch, self.iterator, self.left = kind, 0, None, None

    def get_epoch_iterator(self, *, as_dict: bool = True):
        self.iterator = self.kind(5)
        if self.left is not None:
            self.iterator.load_state_dict(self.left)
            self.left = None
        return self.tell(self.iterator)

    def tell(self, iterator):
        return (
            self.tell_sync(iterator)
            if isinstance(iterator, Iterator)
            else self.tell_async(iterator)
        )

    def tell_sync(self, iterator):
        for batch in iterator:
            yield self.epoch, batch
        self.end()

    async def tell_async(self, iterator):
        async for batch in iterator:
            yield self.epoch, batch
        self.end()

    def end(self) -> None:
        self.epoch, self.iterator = self.epoch + 1, None

    def state_dict(self):
        at = self.iterator.state_dict() if self.iterator else {"at": 0}
        return {"epoch": self.epoch, **at}

    def load_state_dict(self, state) -> None:
        self.epoch, self.left = state["epoch"], {"at": state["at"]}


def generated() -> Iterator[int]:
    yield from range(5)


async def generated_async() -> AsyncIterator[int]:
    for batch in range(5):
        await asyncio.sleep(0)
        yield batch


STREAMS = {
    "list": lambda: [0, 1, 2, 3, 4],
    "tuple": lambda: (0, 1, 2, 3, 4),
    "range": lambda: range(5),
    "iterable": lambda: as_stream({0: "a", 1: "b", 2: "c", 3: "d", 4: "e"}.keys()),
    "generator function": lambda: generated,
    "async generator function": lambda: generated_async,
    "iterator with a state": lambda: lambda: Count(5),
    "async iterator with a state": lambda: lambda: AsyncCount(5),
    "stream with a state": Epochs,
    "async stream with a state": lambda: Epochs(AsyncCount),
}


@pytest.mark.parametrize("stop", [1, 4, 5, 6, 9, 10, 11, 15])
@pytest.mark.parametrize("kind", STREAMS)
async def test_resumed_training_sees_the_batches_that_it_would_have_seen(
    tmp_path, kind, stop
) -> None:
    straight, trained = [], []
    await loop_of(STREAMS[kind](), tmp_path / "straight", straight, 16).run()
    await loop_of(STREAMS[kind](), tmp_path / "run", trained, stop).run()
    assert len(trained) == stop
    loop = loop_of(STREAMS[kind](), tmp_path / "run", trained, 16)
    await loop.run()
    assert trained == straight
    assert loop.status["_epoch_ends"] == [5, 10, 15]


async def test_replay_is_said_with_its_number_of_batches(tmp_path, caplog) -> None:
    await loop_of(generated, tmp_path, [], 8).run()
    await loop_of(generated, tmp_path, [], 9).run()
    assert "this one is begun anew, and 3 batches are fetched and left out" in caplog.text


@pytest.mark.parametrize("kind", ["list", "range", "iterator with a state", "stream with a state"])
async def test_nothing_is_said_where_nothing_is_replayed(tmp_path, caplog, kind) -> None:
    for finish in (8, 9):
        await loop_of(STREAMS[kind](), tmp_path, [], finish).run()
    assert "left out" not in caplog.text


@pytest.mark.parametrize("shorter", [[1, 2], lambda: (batch for batch in [1, 2])])
async def test_stream_that_is_shorter_than_it_was_is_an_error_that_names_both(
    tmp_path, shorter
) -> None:
    await loop_of([0, 1, 2, 3, 4], tmp_path, [], 4).run()
    with pytest.raises(StreamError, match="has ended after 2 batches; expected the 4 that had"):
        await loop_of(shorter, tmp_path, [], 9).run()


async def test_kind_of_stream_that_changed_is_named(tmp_path) -> None:
    await loop_of(lambda: Count(5), tmp_path, [], 3).run()
    with pytest.raises(CheckpointValueError, match=r"has no load_state_dict\(\)"):
        await loop_of(generated, tmp_path, [], 9).run()


def test_what_is_no_choice_is_refused() -> None:
    with pytest.raises(ArgumentError, match="on_resume is 'no'; expected 'replay' or 'live'"):
        as_stream([1], on_resume="no")


# ------------------------------------------------------------------ quiet streams


class Queue:
    """What comes over the network: batches that never come again."""

    def __init__(self, *batches) -> None:
        self.queue: asyncio.Queue = asyncio.Queue()
        for batch in batches:
            self.queue.put_nowait(batch)

    async def __call__(self):
        while True:
            yield await self.queue.get()


class Tells(TrainingExtension):
    """Says when so many batches were trained on."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.reached = number, asyncio.Event()

    async def after_batch(self, batch) -> None:
        if self.main_loop.status["iterations_done"] == self.number:
            self.reached.set()


@pytest.mark.parametrize("how", ["finish", "cancel"])
async def test_what_comes_to_a_live_stream_is_trained_on_once(tmp_path, how) -> None:
    trained: list[int] = []
    source = Queue(1, 2, 3)
    tells = Tells(3)
    loop = loop_of(as_stream(source.__call__, on_resume="live"), tmp_path, trained, 99, tells)
    task = asyncio.create_task(loop.run())
    await tells.reached.wait()
    await asyncio.sleep(0)
    if how == "finish":
        loop.request_finish("batch")
        await task
    else:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    source = Queue(4, 5, 6)
    loop = loop_of(as_stream(source.__call__, on_resume="live"), tmp_path, trained, 6)
    await loop.run()
    assert trained == [1, 2, 3, 4, 5, 6]


class Slow(AsyncCount):
    """An iterator whose fourth batch comes when it is let."""

    def __init__(self, let: asyncio.Event, waits: asyncio.Event) -> None:
        super().__init__(6)
        self.let, self.waits = let, waits

    async def __anext__(self) -> int:
        batch = next(self.inner)
        if batch == 3:
            self.waits.set()
            await self.let.wait()
        return batch


@pytest.mark.parametrize("is_there", [False, True], ids=["on its way", "there and not taken"])
async def test_batch_that_was_fetched_and_not_trained_on_is_trained_on(tmp_path, is_there) -> None:
    trained: list[int] = []
    let, waits = asyncio.Event(), asyncio.Event()
    loop = loop_of(lambda: Slow(let, waits), tmp_path, trained, 99)
    task = asyncio.create_task(loop.run())
    await waits.wait()
    if is_there:
        let.set()
    loop.request_finish("batch")
    await task
    assert trained == [0, 1, 2]
    let.set()
    await loop_of(lambda: Slow(let, waits), tmp_path, trained, 6).run()
    assert trained == [0, 1, 2, 3, 4, 5]


async def test_checkpoint_requested_in_a_wait_is_at_the_batch_before(tmp_path) -> None:
    trained: list[int] = []
    let, waits = asyncio.Event(), asyncio.Event()
    loop = loop_of(lambda: Slow(let, waits), tmp_path, trained, 6)
    async with loop.running() as handle:
        await waits.wait()
        path = await handle.request_checkpoint()
        let.set()
        await handle.wait()
    assert trained == [0, 1, 2, 3, 4, 5]
    assert SavedCheckpoint.at(path).read()["stream"] == {
        "iterator": {"at": 3},
        "is_counted": False,
    }


async def test_stop_in_a_replay_goes_on_with_the_replay(tmp_path) -> None:
    trained: list[int] = []

    def slow(let):
        async def batches():
            for batch in range(6):
                if batch == 2:
                    await let.wait()
                yield batch

        return batches

    let = asyncio.Event()
    let.set()
    await loop_of(slow(let), tmp_path, trained, 4).run()
    again = asyncio.Event()
    loop = loop_of(slow(again), tmp_path, trained, 6)
    task = asyncio.create_task(loop.run())
    while loop.state != "running":
        await asyncio.sleep(0)
    loop.request_finish("batch")
    await task
    again.set()
    for _ in range(2):
        await loop.run()  # the same one, and then one that is complete
    assert trained == [0, 1, 2, 3, 4, 5]
    await loop_of(slow(again), tmp_path, trained, 6).run()
    assert trained == [0, 1, 2, 3, 4, 5]


async def test_epoch_ends_after_a_checkpoint_was_requested_in_a_wait(tmp_path) -> None:
    trained: list[int] = []
    let, waits = asyncio.Event(), asyncio.Event()

    async def batches():
        yield 0
        waits.set()
        await let.wait()
        yield 1

    loop = loop_of(batches, tmp_path, trained, 5)
    async with loop.running() as handle:
        await waits.wait()
        await handle.request_checkpoint()
        let.set()
        await handle.wait()
    assert loop.status["_epoch_ends"] == [2, 4]


async def test_run_that_was_stopped_before_its_first_batch_can_be_started_again(tmp_path) -> None:
    waits = asyncio.Event()

    async def batches():
        waits.set()
        await asyncio.Event().wait()
        yield 1

    async with loop_of(batches, tmp_path, [], 2).running():
        await waits.wait()
    trained: list[int] = []
    await loop_of(lambda: (n for n in [1, 2]), tmp_path, trained, 2).run()
    assert trained == [1, 2]


class Live(Slow):
    """An iterator that gives its state itself, which goes on changing."""

    def __init__(self, *events) -> None:
        super().__init__(*events)
        self.state = {"at": 0}
        self.state_dict = lambda: self.state

    def load_state_dict(self, state) -> None:
        self.state = state
        self.inner.at = state["at"]

    async def __anext__(self) -> int:
        self.state["at"] += 1
        return await super().__anext__()


async def test_state_that_goes_on_changing_is_that_of_the_place(tmp_path) -> None:
    trained: list[int] = []
    let, waits = asyncio.Event(), asyncio.Event()
    async with loop_of(lambda: Live(let, waits), tmp_path, trained, 99).running():
        await waits.wait()
    let.set()
    await loop_of(lambda: Live(let, waits), tmp_path, trained, 6).run()
    assert trained == [0, 1, 2, 3, 4, 5]


class Shuffled(DataStream):
    """A stream whose state tells of the epoch alone."""

    def __init__(self, kind) -> None:
        self.kind, self.epoch = kind, 0

    def get_epoch_iterator(self, *, as_dict: bool = True):
        return self.kind([(self.epoch, batch) for batch in range(5)], self.end)

    def end(self) -> None:
        self.epoch += 1

    def state_dict(self):
        return {"epoch": self.epoch, "best": float("nan")}

    def load_state_dict(self, state) -> None:
        self.epoch = state["epoch"]


def without_a_state(batches, end):
    yield from batches
    end()


class WithAState(Count):
    def __init__(self, batches, end) -> None:
        super().__init__(len(batches))
        self.batches, self.tell_end = batches, end

    def __next__(self):
        try:
            return self.batches[super().__next__()]
        except StopIteration:
            self.tell_end()
            raise


@pytest.mark.parametrize("kind", [without_a_state, WithAState])
@pytest.mark.parametrize("stops", [(3,), (5,), (8,), (10,), (3, 4, 8, 9)])
async def test_stream_whose_state_tells_of_the_epoch_alone_is_entered(
    tmp_path, kind, stops
) -> None:
    trained: list[tuple[int, int]] = []
    for finish in (*stops, 12):
        await loop_of(Shuffled(kind), tmp_path, trained, finish).run()
    assert trained == [(n // 5, n % 5) for n in range(12)]


async def test_epoch_that_was_resumed_at_its_beginning_is_entered_again(tmp_path) -> None:
    class Stops(TrainingExtension):
        async def before_epoch(self) -> None:
            if self.main_loop.status["epochs_done"] == 1:
                self.main_loop.request_finish("batch")

    trained: list[tuple[int, int]] = []
    await loop_of(Shuffled(without_a_state), tmp_path, trained, 99, Stops()).run()
    for finish in (7, 12):
        await loop_of(Shuffled(without_a_state), tmp_path, trained, finish).run()
    assert trained == [(n // 5, n % 5) for n in range(12)]


def test_epoch_of_a_generator_that_its_event_loop_closed_begins_anew(tmp_path, caplog) -> None:
    trained: list[int] = []
    loop = loop_of(generated_async, tmp_path, trained, 2)
    asyncio.run(loop.run())
    loop.find_extension("FinishAfter").set_conditions(after_n_batches=7)
    asyncio.run(loop.run())
    assert trained == [0, 1, 0, 1, 2, 3, 4]
    assert "was cut off when the event loop of the last run ended" in caplog.text


def paused_in_a_wait(extensions):
    let, waits, trained = asyncio.Event(), asyncio.Event(), []

    async def step(batch) -> None:
        trained.append(batch)

    loop = MainLoop(step, lambda: Slow(let, waits), extensions=extensions, signals="off")
    return loop, let, waits, trained


async def test_state_in_memory_is_at_the_batch_before_the_one_that_is_awaited(tmp_path) -> None:
    loop, let, waits, trained = paused_in_a_wait([Checkpoint(tmp_path)])
    async with loop.running():
        await waits.wait()
        loop.pause()
        assert await loop.wait_paused()
        state = loop.state_dict()
    again, let, waits, trained_again = paused_in_a_wait([FinishAfter(after_n_epochs=1)])
    let.set()
    again.load_state_dict(state)
    with pytest.raises(RuntimeError, match="raised StopIteration"):  # as this iterator ends
        await again.run()
    assert trained + trained_again == [0, 1, 2, 3, 4, 5]


async def test_state_of_a_stream_that_went_ahead_unasked_is_refused() -> None:
    loop, _, waits, _ = paused_in_a_wait([])
    async with loop.running():
        await waits.wait()
        loop.pause()
        assert await loop.wait_paused()
        with pytest.raises(CheckpointError, match="is ahead by the batch that is awaited"):
            loop.state_dict()


async def test_checkpoint_that_comes_late_has_the_place(tmp_path) -> None:
    class Adds(TrainingExtension):
        async def after_batch(self, batch) -> None:
            if batch == 1:
                self.main_loop.extensions.append(Checkpoint(tmp_path, after_n_batches=2))

    loop, let, waits, trained = paused_in_a_wait([Adds()])
    async with loop.running() as handle:
        await waits.wait()
        await handle.request_checkpoint()
    assert trained == [0, 1, 2]
    await loop_of(lambda: Slow(let, waits), tmp_path, trained, 3).run()
    let.set()
    await loop_of(lambda: Slow(let, waits), tmp_path, trained, 6).run()
    assert trained == [0, 1, 2, 3, 4, 5]


def test_a_copy_of_a_state_is_equal_and_shares_nothing_that_changes():
    def made():
        ragged = np.array([[1], 2], dtype=object)
        return {"a": [1, {"b": np.arange(3)}], "c": (2.5, [None]), "d": ragged}

    state = made()
    copy = copied(state)
    state["a"][1]["b"][0] = 9
    state["a"].append(3)
    state["c"][1].append(4)
    state["d"][0].append(5)
    assert str(copy) == str(made())
