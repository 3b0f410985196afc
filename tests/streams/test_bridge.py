"""Sync streams are read in a thread, ahead of what is consumed, and nothing is lost or left."""

import asyncio
import gc
import logging
import random
import threading
import time
import weakref

import numpy as np
import pytest
import uvloop
from log_helpers import until

from aloop import (
    ArrayStream,
    Checkpoint,
    DataStream,
    FinishAfter,
    Load,
    MainLoop,
    ShuffledScheme,
    TrainingExtension,
    TrainingFinish,
    as_stream,
)
from aloop.errors import AlreadyRunningError, ArgumentError, CheckpointError, StreamError
from aloop.offload import Worker
from aloop.streams.bridge import END, Bridge

N_TINY = 5000


class Notes:
    """An algorithm that keeps the batches it was given."""

    def __init__(self) -> None:
        self.seen = []

    async def __call__(self, batch) -> None:
        self.seen.append(batch)


class Counted:
    """Gives the numbers below `length`, and knows how many were fetched, and in which threads."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.fetched = 0
        self.threads = set()

    def __call__(self):
        for number in range(self.length):
            self.fetched += 1
            self.threads.add(threading.current_thread())
            yield number


class Gated:
    """Gives a number each time it is let."""

    def __init__(self) -> None:
        self.gate = threading.Semaphore(0)
        self.is_waiting = threading.Event()
        self.is_open = False

    def __call__(self):
        number = 0
        while True:
            if not self.is_open:
                self.is_waiting.set()
                self.gate.acquire()
                self.is_waiting.clear()
            yield number
            number += 1

    def let(self, times: int = 1) -> None:
        for _ in range(times):
            self.gate.release()

    def open(self) -> None:
        """Let it give numbers without end."""
        self.is_open = True
        self.let()


class Stepping(DataStream):
    """A stream that tells its place, which is further on than what was consumed."""

    def __init__(self, length: int = 8, fails_at: int = 0) -> None:
        self.length, self.epoch, self.number = length, 0, 0
        self.fails_at = fails_at
        self.is_inside = False
        self.was_asked_inside = False

    def get_epoch_iterator(self, *, as_dict: bool = True):
        self.is_inside = True
        while self.number < self.length:
            self.number += 1
            if self.number == self.fails_at:
                raise OSError("cannot be read")
            self.is_inside = False
            yield 100 * self.epoch + self.number
            self.is_inside = True
        self.epoch, self.number = self.epoch + 1, 0
        self.is_inside = False

    def state_dict(self):
        self.was_asked_inside |= self.is_inside
        return {"epoch": self.epoch, "number": self.number}

    def load_state_dict(self, state) -> None:
        self.epoch, self.number = state["epoch"], state["number"]


def bridge_over(iterator, **options):
    """Bridge over an iterator, in a thread that ends with the bridge's rest."""

    class Ending(Bridge):
        async def rest(self) -> None:
            await super().rest()
            self._worker.close()
            self._worker = Worker("aloop stream")

    return Ending(iterator, Worker("aloop stream"), name="it", **options)


def streaming_threads():
    return [thread for thread in threading.enumerate() if thread.name == "aloop stream"]


def loop_over(stream, *extensions, batches=None, epochs=None, step=None, **options):
    finish = FinishAfter(after_n_batches=batches, after_n_epochs=epochs)
    return MainLoop(
        Notes() if step is None else step,
        stream,
        extensions=[*extensions, finish],
        signals="off",
        **options,
    )


async def trained_on(stream, **options):
    notes = Notes()
    await loop_over(stream, step=notes, **options).run()
    return notes.seen


# ---- What comes, and where from


@pytest.mark.parametrize("read_ahead", [0, 1, 2, 5, 1000])
async def test_batches_come_in_order_and_each_once(read_ahead):
    stream = as_stream(Counted(N_TINY), read_ahead=read_ahead)
    assert await trained_on(stream, epochs=2) == [*range(N_TINY)] * 2


async def test_one_thread_reads_all_epochs_of_a_run():
    source = Counted(3)
    await trained_on(source, epochs=4)
    assert len(source.threads) == 1
    assert threading.current_thread() not in source.threads


async def test_an_iterable_is_begun_in_the_thread_that_reads_it():
    threads = set()

    class Source:
        def __iter__(self):
            threads.add(threading.current_thread().name)
            return iter([1, 2])

    assert await trained_on(Source(), epochs=2) == [1, 2, 1, 2]
    assert threads == {"aloop stream"}


@pytest.mark.parametrize("source", [[1, 2], (1, 2), range(1, 3), lambda: [1, 2]])
async def test_what_never_waits_has_no_thread(source):
    threads = set()

    async def step(batch) -> None:
        threads.update(streaming_threads())

    await loop_over(source, epochs=1, step=step).run()
    assert not threads


async def test_arrays_have_no_thread():
    threads = set()

    async def step(batch) -> None:
        threads.update(streaming_threads())

    stream = ArrayStream({"x": np.arange(6)}, iteration_scheme=ShuffledScheme(6, 2, seed=1))
    await loop_over(stream, epochs=1, step=step).run()
    assert not threads


@pytest.mark.parametrize("where", ["inline", "thread"])
async def test_where_a_stream_is_read_can_be_chosen(where):
    source = Counted(3)
    await trained_on(as_stream(source, where=where), epochs=1)
    assert (threading.current_thread() in source.threads) is (where == "inline")


async def test_a_list_can_be_read_in_a_thread():
    stream = as_stream([1, 2, 3], where="thread")
    assert await trained_on(stream, epochs=2) == [1, 2, 3] * 2


@pytest.mark.aloop_guard(files=False)  # of uvloop, for the life of the process
async def test_it_works_in_uvloop():
    def train():
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(trained_on(Counted(N_TINY), epochs=1))

    assert await asyncio.to_thread(train) == [*range(N_TINY)]


async def test_none_is_a_batch_like_any_other():
    assert await trained_on(lambda: iter([None, 0, None]), epochs=1) == [None, 0, None]


# ---- How far ahead


@pytest.mark.parametrize("read_ahead", [0, 1, 3])
async def test_so_many_batches_are_read_ahead_and_no_more(read_ahead):
    slow = Counted(20)

    def slowly():
        for number in slow():
            time.sleep(0.002)  # or a handful is read
            yield number

    bridge = bridge_over(slowly(), read_ahead=read_ahead)
    assert await bridge.advance() == 0
    await until(lambda: not bridge._is_filling)
    assert slow.fetched == 1 + read_ahead
    await bridge.rest()


async def test_a_batch_that_is_there_is_not_kept_for_a_handful():
    source = Gated()
    bridge = bridge_over(source(), read_ahead=4)
    source.let()
    async with asyncio.timeout(10):
        assert await bridge.advance() == 0  # while the thread waits for the next one
    source.open()
    await bridge.rest()


async def test_tiny_batches_are_read_by_the_handful():
    source = Counted(10_000)
    bridge = bridge_over(source())
    for _ in range(200):
        await bridge.advance()
    await until(lambda: not bridge._is_filling)
    assert 202 < source.fetched <= 200 + 33
    await bridge.rest()


async def test_fetching_goes_on_while_a_step_is_under_way():
    source = Counted(3)

    async def step(batch) -> None:
        await until(lambda: source.fetched >= min(batch + 2, 3))

    await loop_over(as_stream(source, read_ahead=1), epochs=1, step=step).run()


# ---- Errors and ends


async def test_an_error_comes_when_all_before_it_were_trained_on():
    def source():
        yield from range(100)
        raise OSError("the disk is gone")

    notes = Notes()
    loop = loop_over(source, step=notes, epochs=1)
    with pytest.raises(OSError, match="the disk is gone") as raised:
        await loop.run()
    assert notes.seen == [*range(100)]
    assert any("after batch 100 of epoch 1" in note for note in raised.value.__notes__)


async def test_after_an_error_another_run_begins_an_epoch():
    is_broken = [True]

    def source():
        yield 1
        if is_broken:
            is_broken.clear()
            raise OSError
        yield 2

    notes = Notes()
    loop = loop_over(source, step=notes, epochs=1)
    with pytest.raises(OSError):
        await loop.run()
    await loop.run()
    assert notes.seen == [1, 1, 2]


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
async def test_what_ends_a_program_ends_the_run(kind):
    def source():
        yield 1
        raise kind

    with pytest.raises(kind):
        await loop_over(source, epochs=1).run()


async def test_an_end_comes_again_when_it_is_asked_for_again():
    bridge = bridge_over(iter([1]))
    assert [await bridge.advance() for _ in range(4)] == [1, END, END, END]
    await bridge.rest()


async def test_no_thread_is_left_when_the_run_has_ended():
    await trained_on(Counted(10), batches=5)
    assert not streaming_threads()


async def test_no_thread_is_left_when_the_run_has_failed():
    def fails(batch) -> None:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        await loop_over(Counted(10), epochs=1, step=fails).run()
    assert not streaming_threads()


async def test_no_thread_is_left_when_the_run_was_cancelled():
    source = Gated()
    source.let(1)
    task = asyncio.create_task(loop_over(source, epochs=1).run())
    await until(source.is_waiting.is_set)
    task.cancel()
    source.open()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not streaming_threads()


def test_no_thread_is_left_when_the_event_loop_was_closed():
    source = Counted(1000)
    event_loop = asyncio.new_event_loop()
    task = event_loop.create_task(loop_over(source, epochs=1).run())
    event_loop.call_later(0.01, event_loop.stop)
    event_loop.run_forever()
    event_loop.close()
    task._log_destroy_pending = False
    del task, event_loop
    gc.collect()
    deadline = time.monotonic() + 10
    while streaming_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not streaming_threads()


async def test_what_is_read_is_let_go_with_the_loop():
    class Source:
        def __iter__(self):
            return Counted(10)()

    source = Source()
    loop = loop_over(source, batches=3)
    await loop.run()
    gone = weakref.ref(source)
    del loop, source
    gc.collect()
    assert gone() is None


# ---- From one run to the next


@pytest.mark.parametrize("read_ahead", [0, 2, 50])
@pytest.mark.parametrize("first", [1, 2, 9, 10, 11, 25])
async def test_what_was_read_ahead_is_there_for_the_next_run(first, read_ahead):
    source = Counted(10)
    notes = Notes()
    finish = FinishAfter(after_n_batches=first)
    stream = as_stream(source, read_ahead=read_ahead)
    loop = MainLoop(notes, stream, extensions=[finish], signals="off")
    await loop.run()
    finish.set_conditions(after_n_epochs=4)
    await loop.run()
    assert notes.seen == [*range(10)] * 4
    assert source.fetched == 40


def test_what_was_read_ahead_is_there_in_another_event_loop():
    notes = Notes()
    finish = FinishAfter(after_n_batches=4)
    loop = MainLoop(notes, Counted(10), extensions=[finish], signals="off")
    asyncio.run(loop.run())
    finish.set_conditions(after_n_epochs=1)
    asyncio.run(loop.run())
    assert notes.seen == [*range(10)]


async def test_a_stop_leaves_a_stream_that_gives_nothing_and_names_it(caplog):
    source = Gated()
    notes = Notes()
    finish = FinishAfter(after_n_batches=3)
    loop = MainLoop(notes, source, extensions=[finish], signals="off", grace_s=60)
    async with loop.running():
        await until(source.is_waiting.is_set)
        async with asyncio.timeout(10):
            await _stopped(loop)
    (warning,) = [r.message for r in caplog.records if "gives no batch" in r.message]
    assert repr(source)[:20] in warning
    source.let(3)  # what the thread waits for, too, is kept
    await loop.run()
    assert notes.seen == [0, 1, 2]
    source.open()


async def _stopped(loop):
    loop.request_finish("batch")
    await until(lambda: loop.state.name != "RUNNING")


async def test_another_run_is_refused_while_a_thread_still_reads_the_stream(caplog):
    class Source:
        def __init__(self):
            self.gated = Gated()

        def get_epoch_iterator(self, *, as_dict=True):
            return self.gated()

        sources, produces_examples, iteration_scheme = (), False, None

    stream = Source()
    async with loop_over(stream, epochs=1).running():
        await until(stream.gated.is_waiting.is_set)
    with pytest.raises(AlreadyRunningError, match="is in use by another run"):
        await loop_over(stream, batches=1).run()
    stream.gated.open()
    await until(lambda: not streaming_threads())
    assert await trained_on(stream, batches=1) == [0]


async def test_a_quick_batch_is_waited_for_at_the_end_and_nothing_is_said(caplog):
    caplog.set_level(logging.WARNING, "aloop")
    await trained_on(as_stream(Counted(100), read_ahead=50), batches=1)
    assert not caplog.records


# ---- The place


async def test_place_is_that_of_what_was_consumed():
    bridge_stream = Stepping()
    iterator = bridge_stream.get_epoch_iterator()
    bridge = bridge_over(
        iterator, read_ahead=5, tell_place=lambda: dict(bridge_stream.state_dict())
    )
    places = []
    while await bridge.advance() is not END:
        places.append(bridge.place["number"])
    assert places == [*range(1, 9)]
    assert bridge.place == {"epoch": 1, "number": 0}
    await bridge.rest()


async def test_place_before_the_first_batch_is_the_beginning():
    stream = Stepping()
    bridge = bridge_over(stream.get_epoch_iterator(), tell_place=lambda: dict(stream.state_dict()))
    bridge.ask()
    assert bridge.place == {"epoch": 0, "number": 0}
    await bridge.rest()


@pytest.mark.parametrize("read_ahead", [0, 2, 30])
@pytest.mark.parametrize("stop", [1, 2, 7, 8, 9, 15, 16, 20])
async def test_a_stream_that_tells_its_place_goes_on_there(stop, read_ahead, tmp_path):
    def make(batches):
        stream = Stepping()
        stream.read_ahead = read_ahead
        notes = Notes()
        checkpoint = Checkpoint(tmp_path / "saved", resume=True)
        return loop_over(stream, checkpoint, step=notes, batches=batches), notes

    loop, first = make(stop)
    await loop.run()
    loop, rest = make(24)
    await loop.run()
    assert first.seen + rest.seen == [100 * e + n for e in range(3) for n in range(1, 9)]


@pytest.mark.parametrize("stop", [1, 7, 8, 9, 15])
async def test_a_stream_without_a_place_is_replayed_to_what_was_consumed(stop, tmp_path):
    def make(batches):
        notes = Notes()
        checkpoint = Checkpoint(tmp_path / "saved", resume=True)
        return loop_over(Counted(8), checkpoint, step=notes, batches=batches), notes

    loop, first = make(stop)
    await loop.run()
    loop, rest = make(24)
    await loop.run()
    assert first.seen + rest.seen == [*range(8)] * 3


async def test_a_checkpoint_while_a_batch_is_awaited_has_what_was_consumed(tmp_path):
    source = Gated()

    class Waiting(Stepping):
        def get_epoch_iterator(self, *, as_dict=True):
            for batch in super().get_epoch_iterator():
                if self.number > 2:
                    source.is_waiting.set()
                    source.gate.acquire()
                yield batch

    loop = loop_over(Waiting(), Checkpoint(tmp_path / "saved", resume=True), epochs=1)
    async with loop.running() as handle:
        await until(source.is_waiting.is_set)
        await until(lambda: loop.status["iterations_done"] == 2)
        await handle.request_checkpoint()
        source.let(20)
    notes = Notes()
    # The one that was asked for, and not the last.
    first = min((tmp_path / "saved").glob("ckpt-*"))
    loop = loop_over(
        Stepping(), Load(first, load_iteration_state=True, load_log=True), step=notes, epochs=1
    )
    await loop.run()
    assert notes.seen == [*range(3, 9)]


async def test_the_loop_tells_its_state_while_its_stream_is_ahead():
    loop = loop_over(Stepping(), batches=3)
    await loop.run()
    state = loop.state_dict()
    notes = Notes()
    other = loop_over(Stepping(), step=notes, epochs=1)
    other.load_state_dict(state)
    await other.run()
    assert notes.seen == [4, 5, 6, 7, 8]


async def test_a_stream_is_never_asked_for_its_place_while_it_is_read(tmp_path):
    stream = Stepping(20)
    await loop_over(stream, Checkpoint(tmp_path / "saved", every_n_batches=1), epochs=2).run()
    assert not stream.was_asked_inside


@pytest.mark.parametrize("read_ahead", [0, 2])
async def test_place_after_a_failure_is_that_of_what_was_consumed(read_ahead, tmp_path):
    def make(fails_at):
        stream = Stepping(fails_at=fails_at)
        stream.read_ahead = read_ahead
        notes = Notes()
        checkpoint = Checkpoint(tmp_path / "saved", resume=True, on_error=True)
        return loop_over(stream, checkpoint, step=notes, epochs=1), notes

    loop, first = make(5)
    with pytest.raises(OSError, match="cannot be read"):
        await loop.run()
    loop, rest = make(0)
    await loop.run()
    assert first.seen + rest.seen == [*range(1, 9)]


async def test_place_of_an_async_stream_after_a_failure_is_that_of_what_was_consumed(tmp_path):
    class Awaited(Stepping):
        async def get_epoch_iterator(self, *, as_dict=True):
            while self.number < self.length:
                self.number += 1
                if self.number == self.fails_at:
                    raise OSError
                yield self.number

    def make(fails_at):
        notes = Notes()
        checkpoint = Checkpoint(tmp_path / "saved", resume=True, on_error=True)
        return loop_over(Awaited(fails_at=fails_at), checkpoint, step=notes, epochs=1), notes

    loop, first = make(5)
    with pytest.raises(OSError):
        await loop.run()
    loop, rest = make(0)
    await loop.run()
    assert first.seen + rest.seen == [*range(1, 9)]


async def test_a_stream_that_cannot_begin_an_epoch_is_named_and_what_was_done_is_saved(tmp_path):
    class Broken(Stepping):
        def get_epoch_iterator(self, *, as_dict=True):
            if self.epoch:
                raise OSError
            return super().get_epoch_iterator()

    checkpoint = Checkpoint(tmp_path / "saved", on_error=True)
    with pytest.raises(OSError) as raised:
        await loop_over(Broken(), checkpoint, epochs=3).run()
    assert any("after batch 0 of epoch 2" in note for note in raised.value.__notes__)
    assert [*(tmp_path / "saved").glob("ckpt-000000008*")]


async def test_a_failure_in_a_replay_is_said_to_be_in_it(tmp_path):
    def source():
        for number in range(9):
            if fails and number == 3:
                raise OSError
            yield number

    fails = []
    checkpoint = Checkpoint(tmp_path / "saved", resume=True)
    await loop_over(source, checkpoint, batches=6).run()
    fails.append(True)
    checkpoint = Checkpoint(tmp_path / "saved", resume=True)
    with pytest.raises(OSError) as raised:
        await loop_over(source, checkpoint, batches=9).run()
    (note,) = [note for note in raised.value.__notes__ if "data stream" in note]
    assert note.endswith("after batch 3 of epoch 1, which is replayed up to batch 6")


async def test_a_stream_that_cannot_tell_its_place_is_said_to_be_at_fault():
    class Untellable(Stepping):
        def state_dict(self):
            if self.number:
                raise ValueError("what I hold cannot be copied")
            return {"epoch": 0, "number": 0}

    loop = loop_over(Untellable(), batches=3)
    await loop.run()
    with pytest.raises(CheckpointError, match=r"could not tell its place .*cannot be copied"):
        loop.state_dict()


async def test_another_stream_in_mid_epoch_is_no_place_to_go_on_from(tmp_path):
    async def step(batch) -> None:
        if batch == 2:
            loop.data_stream = Stepping()

    checkpoint = Checkpoint(tmp_path / "saved", after_n_batches=3)
    loop = loop_over(Stepping(), checkpoint, epochs=1, step=step)
    with pytest.raises(CheckpointError, match="in the middle of an epoch of"):
        await loop.run()


@pytest.mark.parametrize("given", [None, 5, {"x": 1}, "text"])
def test_what_is_no_stream_cannot_be_the_loops(given):
    loop = loop_over([1], epochs=1)
    with pytest.raises(StreamError, match="expected a stream"):
        loop.data_stream = given
    with pytest.raises(ArgumentError, match="iteration_state is 5; expected a data stream and"):
        loop.iteration_state = 5


async def test_a_list_can_be_the_loops_stream():
    notes = Notes()
    loop = loop_over([1], epochs=1, step=notes)
    loop.data_stream = [2, 3]
    await loop.run()
    assert notes.seen == [2, 3]


@pytest.mark.parametrize("error", [NotImplementedError, ValueError, OSError])
async def test_a_stream_whose_length_cannot_be_told_has_none(error):
    class Lengthless(Stepping):
        def __len__(self):
            raise error

    assert await trained_on(Lengthless(), epochs=1) == [*range(1, 9)]


async def test_a_cancellation_that_a_stream_raises_cancels_nothing():
    def source():
        yield 1
        raise asyncio.CancelledError

    with pytest.raises(StreamError, match="raised CancelledError in its thread"):
        await loop_over(source, epochs=1).run()


async def test_after_its_generator_was_closed_a_new_epoch_begins(caplog):
    notes = Notes()
    finish = FinishAfter(after_n_batches=3)
    loop = MainLoop(notes, Counted(500), extensions=[finish], signals="off")
    await loop.run()
    loop.data_stream.close()
    finish.set_conditions(after_n_epochs=1)
    await loop.run()
    assert notes.seen == [0, 1, 2, *range(500)]
    assert "was closed in mid-epoch; a new epoch begins" in caplog.text


async def test_a_function_may_need_the_event_loop():
    def make():
        loop = asyncio.get_running_loop()
        return iter([loop])

    assert await trained_on(make, epochs=1) == [asyncio.get_running_loop()]


async def test_all_of_a_generator_function_runs_in_the_thread_that_reads():
    threads = []

    def source():
        threads.append(threading.current_thread().name)
        try:
            yield 1
        finally:
            threads.append(threading.current_thread().name)

    assert await trained_on(source, epochs=2) == [1, 1]
    assert threads == ["aloop stream"] * 4


@pytest.mark.parametrize("options", [{"read_ahead": 1}, {"on_resume": "live"}])
async def test_where_it_is_said_how_far_to_read_ahead_no_handful_is_read(options):
    source = Counted(1000)

    async def step(batch) -> None:
        await asyncio.sleep(0)
        assert source.fetched <= batch + 1 + 2

    await loop_over(as_stream(source, **options), batches=200, step=step).run()


# ---- Bad input


@pytest.mark.parametrize("read_ahead", [-1, 1.5, True, "2"])
def test_read_ahead_that_is_no_number_is_refused(read_ahead):
    with pytest.raises(ArgumentError, match=r"read_ahead is .*expected a number of batches"):
        as_stream(Counted(1), read_ahead=read_ahead)


def test_where_that_is_nowhere_is_refused():
    with pytest.raises(ArgumentError, match="where is 'process'; expected 'thread' or 'inline'"):
        as_stream(Counted(1), where="process")


def test_where_of_a_stream_is_its_own():
    with pytest.raises(ArgumentError, match="is a stream and has its own"):
        as_stream(Stepping(), where="inline")


@pytest.mark.parametrize("where", ["thread", "inline"])
@pytest.mark.parametrize(
    ("batch", "what"),
    [
        ({"x": 1}, "a batch with the sources 'x'; expected"),
        ({"x": 1, "y": 2, "z": 3}, "a batch with the sources 'x', 'y', 'z'; expected"),
        ({}, r"a batch with the sources \(none\); expected"),
        ((1, 2), r"\(1, 2\) of type tuple, which is no mapping; expected"),
        (None, "None of type NoneType, which is no mapping; expected"),
    ],
)
async def test_batches_without_the_sources_that_the_stream_declares_are_refused(batch, what, where):
    class Changing(Stepping):
        sources = ("x", "y")

        def get_epoch_iterator(self, *, as_dict=True):
            yield {"x": 1, "y": 2}
            yield batch

    stream = Changing()
    stream.where = where
    notes = Notes()
    with pytest.raises(StreamError, match=f"{what} a mapping of the sources .*'x', 'y'"):
        await loop_over(stream, step=notes, epochs=1).run()
    assert notes.seen == [{"x": 1, "y": 2}]


async def test_async_batches_without_the_declared_sources_are_refused():
    class Changing(Stepping):
        sources = ("x",)

        async def get_epoch_iterator(self, *, as_dict=True):
            yield {"y": 1}

    with pytest.raises(StreamError, match="a batch with the sources 'y'; expected"):
        await loop_over(Changing(), epochs=1).run()


async def test_an_epoch_that_ends_early_is_named_once(caplog):
    class Short(Stepping):
        def __len__(self):
            return 10

    stream = Short()
    await loop_over(stream, epochs=3).run()
    (warning,) = [r.message for r in caplog.records if "ended after" in r.message]
    assert "has ended after 8 batches; expected the 10 that its length says" in warning


async def test_an_epoch_that_was_stopped_has_not_ended_early(caplog):
    class Long(Stepping):
        def __len__(self):
            return 8

    await loop_over(Long(), batches=12).run()
    assert not [r for r in caplog.records if "ended after" in r.message]


async def test_extensions_find_the_iterator_that_is_read():
    found = []

    class Look(TrainingExtension):
        async def before_epoch(self) -> None:
            found.append(self.main_loop.epoch_iterator)

    stream = Stepping(2)
    await loop_over(stream, Look(), epochs=1).run()
    assert [next(iterator, "exhausted") for iterator in found] == ["exhausted"]


# ---- At random paces


@pytest.mark.parametrize("block", [0, *[pytest.param(n, marks=pytest.mark.slow) for n in range(9)]])
async def test_nothing_is_lost_whatever_the_pace_of_either_side(block):
    for seed in range(100 * block, 100 * block + 40):
        await _gone_through(random.Random(seed))  # noqa: S311 - of no secret


async def _gone_through(numbers):
    length = numbers.choice([0, 1, 5, 50, 300])
    slow_at = {number for number in range(length) if numbers.random() < 0.05}
    waits = numbers.choice([0, 0.01, 0.2])

    def source():
        for number in range(length):
            if number in slow_at:  # about as long as a batch is kept for others to come
                time.sleep(numbers.choice([0.0002, 0.0009, 0.001, 0.0011, 0.002]))
            yield number

    bridge = bridge_over(source(), read_ahead=numbers.choice([None, 0, 1, 2, 20]))
    found = []
    async with asyncio.timeout(30):
        while not found or found[-1] is not END:
            if numbers.random() < waits:
                await asyncio.sleep(numbers.choice([0, 0.001]))
            if numbers.random() < waits / 4:
                await bridge.rest()
            if numbers.random() < waits / 4:
                bridge.ask().cancel()
            found.append(await bridge.advance())
    assert found == [*range(length), END]
    await bridge.rest()


# ---- Streams that end the training


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("at", ["beginning of an epoch", "first fetch", "middle"])
async def test_a_stream_may_end_the_training_in_good_order(at, is_async):
    class Ending(DataStream):
        epochs = 0

        def get_epoch_iterator(self, *, as_dict=True):
            self.epochs += 1
            if self.epochs == 2 and at == "beginning of an epoch":
                raise TrainingFinish
            return self.wait() if is_async else self.give()

        def give(self):
            if self.epochs == 2 and at == "first fetch":
                raise TrainingFinish
            yield 1
            if self.epochs == 2:
                raise TrainingFinish
            yield 2

        async def wait(self):
            for batch in self.give():
                yield batch

    notes = Notes()
    loop = loop_over(Ending(), epochs=5, step=notes)
    log = await loop.run()
    assert notes.seen == ([1, 2, 1] if at == "middle" else [1, 2])
    assert log.current_row["training_finished"]
    assert log.status["epochs_done"] == 1


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_batch_that_was_refused_is_not_consumed(is_async, tmp_path):
    class Declared(Stepping):
        sources = ("x",)
        is_wrong = False

        def get_epoch_iterator(self, *, as_dict=True):
            return self.wait() if is_async else self.give()

        def give(self):
            while self.number < self.length:
                self.number += 1
                yield {"y" if self.is_wrong and self.number == 5 else "x": self.number}

        async def wait(self):
            for batch in self.give():
                yield batch

    def make(is_wrong):
        stream, notes = Declared(), Notes()
        stream.is_wrong = is_wrong
        checkpoint = Checkpoint(tmp_path / "saved", resume=True, on_error=True)
        return loop_over(stream, checkpoint, step=notes, epochs=1), notes

    loop, first = make(True)
    with pytest.raises(StreamError, match="with the sources 'y'"):
        await loop.run()
    loop, rest = make(False)
    await loop.run()
    assert [batch["x"] for batch in first.seen + rest.seen] == [*range(1, 9)]
