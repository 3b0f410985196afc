"""What a run does, callback by callback and record by record."""

import asyncio
import contextvars
import itertools
import threading
from collections.abc import AsyncIterator

import numpy as np
import pytest

import aloop
from aloop import (
    ArrayStream,
    FinishAfter,
    MainLoop,
    Position,
    ShuffledScheme,
    SimpleExtension,
    SQLiteLog,
    Stage,
    TrainingAlgorithm,
    TrainingExtension,
    TrainingFinish,
    TrainingLog,
    config,
)
from aloop.errors import ConfigurationError
from aloop.testing.recorder import Recorder
from aloop.turns import MAX_BATCHES


async def no_op(batch: object) -> None:
    """Train on nothing."""


class WriteBatch(TrainingExtension):
    """Records each batch in the row of its iteration."""

    async def after_batch(self, batch: object) -> None:
        self.main_loop.log.current_row["batch"] = batch


def ten_items(*extensions: TrainingExtension, **options) -> MainLoop:
    return MainLoop(no_op, list(range(10)), extensions=[WriteBatch(), *extensions], **options)


async def test_two_epochs_of_ten_items_leave_twenty_rows() -> None:
    loop = ten_items(FinishAfter(after_n_epochs=2))
    log = await loop.run()
    assert log is loop.log
    assert log.status["iterations_done"] == 20
    assert log.status["_epoch_ends"] == [10, 20]
    assert len(log) == 20
    assert [log[i + 1]["batch"] for i in range(20)] == [i % 10 for i in range(20)]


async def test_a_second_run_goes_on_in_the_middle_of_the_epoch() -> None:
    finish = FinishAfter(after_n_batches=14)
    loop = ten_items(finish)
    await loop.run()
    assert loop.status["iterations_done"] == 14
    finish.add_condition(["after_batch"], lambda log: log.status["iterations_done"] == 27)
    await loop.run()
    assert loop.status["iterations_done"] == 27
    assert loop.status["epochs_done"] == 2
    assert [loop.log[i + 1]["batch"] for i in range(27)] == [i % 10 for i in range(27)]


async def test_the_callbacks_come_in_their_order(recorder: Recorder) -> None:
    order: list[str] = []

    class Algorithm(TrainingAlgorithm):
        async def initialize(self) -> None:
            order.append("initialize")
            recorder.events.append(("initialize",))

        async def process_batch(self, batch: object) -> None:
            recorder.events.append(("process_batch", batch))

    loop = MainLoop(Algorithm(), ["a", "b"], extensions=[FinishAfter(after_n_epochs=2), recorder])
    await loop.run()
    assert recorder.events == [
        ("before_training", 0),
        ("initialize",),
        ("before_epoch", 0),
        ("before_batch", 0, "a"),
        ("process_batch", "a"),
        ("after_batch", 1, "a"),
        ("before_batch", 1, "b"),
        ("process_batch", "b"),
        ("after_batch", 2, "b"),
        ("after_epoch", 2),
        ("before_epoch", 2),
        ("before_batch", 2, "a"),
        ("process_batch", "a"),
        ("after_batch", 3, "a"),
        ("before_batch", 3, "b"),
        ("process_batch", "b"),
        ("after_batch", 4, "b"),
        ("after_epoch", 4),
        ("after_training", 4),
    ]


async def test_a_second_run_resumes_instead_of_starting(recorder: Recorder) -> None:
    loop = MainLoop(no_op, [1, 2], extensions=[recorder, FinishAfter(every_n_epochs=1)])
    await loop.run()
    first_id = loop.log.h_uuid
    recorder.events.clear()
    await loop.run()
    assert recorder.callbacks[:3] == ["on_resumption", "before_epoch", "before_batch"]
    assert loop.status["resumed_from"] == first_id
    assert loop.log.h_uuid != first_id


async def test_a_finish_that_was_requested_of_an_earlier_run_is_not_inherited() -> None:
    loop = ten_items(FinishAfter(every_n_epochs=1))
    await loop.run()
    assert loop.log[10]["training_finish_requested"] is True
    await loop.run()
    assert "training_finish_requested" not in loop.log[10]
    assert loop.status["epochs_done"] == 2


async def test_the_end_of_an_earlier_run_stays_on_its_record(tmp_path) -> None:
    log = SQLiteLog(tmp_path / "log.sqlite")
    loop = ten_items(FinishAfter(every_n_epochs=1), log=log)
    await loop.run()
    first_id = log.h_uuid
    await loop.run()
    assert "training_finished" not in log[10]
    async with SQLiteLog(tmp_path / "log.sqlite", uuid=first_id) as first:
        assert first[10]["training_finished"] is True
        assert first[10]["training_finish_requested"] is True


async def test_a_request_before_a_batch_finishes_after_it() -> None:
    class Enough(TrainingExtension):
        async def before_batch(self, batch: int) -> None:
            if batch == 3:
                self.main_loop.log.current_row["training_finish_requested"] = True

    loop = ten_items(Enough())
    await loop.run()
    assert loop.status["iterations_done"] == 4


async def test_a_completed_training_started_again_fetches_nothing() -> None:
    fetched = []

    def batches():
        for batch in range(3):
            fetched.append(batch)
            yield batch

    loop = MainLoop(no_op, batches, extensions=[FinishAfter(after_n_epochs=1)])
    await loop.run()
    await loop.run()
    assert fetched == [0, 1, 2]
    assert loop.log.current_row["training_finished"] is True


async def test_extensions_are_awaited_one_after_another_in_list_order() -> None:
    order: list[str] = []

    class Slow(TrainingExtension):
        async def after_batch(self, batch: object) -> None:
            await asyncio.sleep(0)
            order.append(self.name)

    names = ["c", "a", "b"]
    await MainLoop(
        no_op, [1], extensions=[FinishAfter(after_n_epochs=1), *(Slow(name) for name in names)]
    ).run()
    assert order == names


async def test_a_plain_override_is_called_and_needs_no_await() -> None:
    seen: list[object] = []

    class Plain(TrainingExtension):
        def after_batch(self, batch: object) -> str:
            seen.append(batch)
            return "not awaitable"

    await MainLoop(no_op, [1, 2], extensions=[Plain(), FinishAfter(after_n_epochs=1)]).run()
    assert seen == [1, 2]


async def test_an_extension_that_raises_training_finish_ends_the_run_in_order() -> None:
    class Enough(TrainingExtension):
        async def after_batch(self, batch: object) -> None:
            raise TrainingFinish

    loop = ten_items(Enough())
    await loop.run()
    assert loop.status["iterations_done"] == 1
    assert loop.log.current_row["training_finished"] is True


async def test_an_extension_added_in_mid_run_is_called_from_then_on(recorder: Recorder) -> None:
    class Add(SimpleExtension):
        async def do(self, which_callback: str, *args: object) -> None:
            loop.extensions.append(recorder)

    loop = ten_items(Add(after_n_batches=3), FinishAfter(after_n_epochs=1))
    await loop.run()
    assert recorder.events[0] == ("before_batch", 3, 3)
    assert recorder.main_loop is loop


async def test_the_position_is_recorded_at_each_stage() -> None:
    seen: list[Position] = []

    class Look(Recorder):
        def handler(self, callback):
            async def look(*args: object) -> None:
                seen.append(loop.position)

            return look

    loop = MainLoop(no_op, [7], extensions=[Look(), FinishAfter(after_n_epochs=1)])
    assert loop.position == Position(0, 0, 0, Stage.NOT_STARTED)
    await loop.run()
    assert seen == [
        Position(0, 0, 0, Stage.NOT_STARTED),
        Position(0, 0, 0, Stage.EPOCH_STARTED),
        Position(0, 0, 1, Stage.BATCH_STARTED),
        Position(0, 1, 1, Stage.BATCH_DONE),
        Position(1, 1, 0, Stage.EPOCH_DONE),
        Position(1, 1, 0, Stage.EPOCH_DONE),
    ]


async def test_an_async_stream_is_awaited() -> None:
    async def batches() -> AsyncIterator[int]:
        for batch in range(4):
            await asyncio.sleep(0)
            yield batch

    loop = MainLoop(no_op, batches, extensions=[WriteBatch(), FinishAfter(after_n_epochs=2)])
    log = await loop.run()
    assert [log[i]["batch"] for i in log] == [0, 1, 2, 3] * 2


async def test_a_plain_function_runs_in_one_worker_thread_with_the_context() -> None:
    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("of the caller")
    threads, values = set(), set()

    def step(batch: int) -> dict[str, int]:
        threads.add(threading.current_thread())
        values.add(variable.get())
        return {"cost": batch}

    loop = MainLoop(step, range(5), extensions=[FinishAfter(after_n_epochs=2)])
    await loop.run()
    assert len(threads) == 1
    assert threading.main_thread() not in threads
    assert values == {"of the caller"}
    assert loop.quantities == {"cost": 4}
    assert not any(thread.is_alive() for thread in threads)


async def test_the_event_loop_stays_free_beside_steps_that_never_wait() -> None:
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            beats += 1
            await asyncio.sleep(0)

    heart = asyncio.create_task(beat())
    # Long enough for several turns of a millisecond each, whatever the machine.
    await MainLoop(no_op, lambda: range(20_000), extensions=[FinishAfter(after_n_epochs=1)]).run()
    heart.cancel()
    assert beats > 5


async def test_two_runs_in_one_event_loop_take_turns() -> None:
    batches = 5_000
    order: list[str] = []

    def run(name: str):
        async def step(batch: int) -> None:
            order.append(name)

        return MainLoop(
            step, lambda: range(batches), extensions=[FinishAfter(after_n_epochs=1)]
        ).run()

    await asyncio.gather(run("a"), run("b"))
    # While both are running: how many batches each has before it is the other's turn.
    ends = [len(order) - order[::-1].index(name) for name in "ab"]
    together = order[order.index("b") : min(ends)]
    turns = [len(list(batches_of)) for _, batches_of in itertools.groupby(together)]
    # A run whose batch was held up by the system leaves the other three turns.
    assert max(turns) <= 3 * MAX_BATCHES
    assert len(turns) > 50


async def test_the_log_is_given_or_made_of_the_backend(tmp_path) -> None:
    log = TrainingLog()
    assert MainLoop(no_op, [1], log=log, log_backend="nonsense").log is log
    assert type(MainLoop(no_op, [1]).log) is TrainingLog
    assert type(MainLoop(no_op, [1], log_backend="sqlite").log) is SQLiteLog
    config.log_backend = "sqlite"
    assert type(MainLoop(no_op, [1]).log) is SQLiteLog


async def test_an_empty_log_that_was_given_is_not_replaced() -> None:
    log = TrainingLog()
    assert len(log) == 0
    assert MainLoop(no_op, [1], log=log).log is log


def test_an_unknown_backend_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match="'mysql'; expected one of 'python', 'sqlite'"):
        MainLoop(no_op, [1], log_backend="mysql")


def test_reading_a_model_that_is_not_there_explains_itself() -> None:
    with pytest.raises(AttributeError, match="probably one of its extensions needs one"):
        _ = MainLoop(no_op, [1]).model


async def test_the_model_can_check_the_algorithm_before_anything_else(recorder) -> None:
    class Model:
        def check_sanity(self, algorithm: object) -> None:
            raise ValueError(f"insane: {algorithm is loop.algorithm}")

    loop = MainLoop(no_op, [1], model=Model(), extensions=[recorder])
    with pytest.raises(ValueError, match="insane: True"):
        await loop.run()
    assert recorder.callbacks == ["on_error"]


def test_the_status_is_complete_before_the_run() -> None:
    assert MainLoop(no_op, [1]).status == {
        "iterations_done": 0,
        "epochs_done": 0,
        "_epoch_ends": [],
        "resumed_from": None,
        "training_started": False,
        "epoch_started": False,
        "epoch_interrupt_received": False,
        "batch_interrupt_received": False,
    }


async def test_the_iteration_state_is_readable_and_settable() -> None:
    loop = ten_items(FinishAfter(after_n_batches=3))
    stream, iterator = loop.iteration_state
    assert stream is loop.data_stream
    assert iterator is None
    await loop.run()
    assert list(loop.iteration_state[1]) == [3, 4, 5, 6, 7, 8, 9]
    loop.iteration_state = (stream, iter("xy"))
    assert loop.epoch_iterator is loop.iteration_state[1]


async def test_an_interrupted_array_stream_goes_on_where_it_was() -> None:
    def make(*limits: int) -> tuple[MainLoop, list[int]]:
        seen: list[int] = []

        async def step(batch: dict[str, np.ndarray]) -> None:
            seen.extend(batch["x"].tolist())

        stream = ArrayStream({"x": np.arange(10)}, iteration_scheme=ShuffledScheme(10, 3, seed=2))
        finish = FinishAfter(after_n_batches=limits[0])
        return MainLoop(step, stream, extensions=[finish]), seen

    straight, expected = make(11)
    await straight.run()
    stopped, seen = make(6)
    await stopped.run()
    finish = stopped.find_extension("FinishAfter")
    finish.set_conditions(after_n_batches=11)
    await stopped.run()
    assert seen == expected


class TestFindExtension:
    def test_finds_the_one_of_that_name(self) -> None:
        extension = TrainingExtension("x")
        loop = MainLoop(no_op, [1], extensions=[TrainingExtension("y"), extension])
        assert loop.find_extension("x") is extension

    def test_names_those_there_are_when_none_has_the_name(self) -> None:
        loop = MainLoop(no_op, [1], extensions=[TrainingExtension("y")])
        with pytest.raises(ValueError, match=r"no extensions are named 'x'.*there are 'y'"):
            loop.find_extension("x")

    def test_says_so_when_several_have_the_name(self) -> None:
        loop = MainLoop(no_op, [1], extensions=[TrainingExtension("x"), TrainingExtension("x")])
        with pytest.raises(LookupError, match="several extensions are named 'x'"):
            loop.find_extension("x")


async def test_running_a_loop_that_is_running_is_refused() -> None:
    class Again(TrainingExtension):
        async def after_batch(self, batch: object) -> None:
            await self.main_loop.run()

    with pytest.raises(RuntimeError, match="a run was to begin while this loop is running"):
        await MainLoop(no_op, [1], extensions=[Again()]).run()


async def test_two_running_loops_cannot_share_a_log() -> None:
    log = TrainingLog()

    class Other(TrainingExtension):
        async def after_batch(self, batch: object) -> None:
            await MainLoop(no_op, [1], log=log, extensions=[FinishAfter(after_n_epochs=1)]).run()

    with pytest.raises(RuntimeError, match="in use by another run"):
        await MainLoop(no_op, [1], log=log, extensions=[Other()]).run()


async def test_name_and_hyperparameters_are_kept_with_the_run(tmp_path) -> None:
    log = SQLiteLog(tmp_path / "log.sqlite")
    loop = MainLoop(
        no_op,
        [1],
        log=log,
        name="the run",
        hyperparameters={"rate": np.float32(0.5), "layers": [3, 4]},
        extensions=[FinishAfter(after_n_epochs=1)],
    )
    await loop.run()
    async with SQLiteLog(tmp_path / "log.sqlite", uuid=log.h_uuid) as read:
        assert read.name == "the run"
        assert read.hyperparameters == {"rate": 0.5, "layers": [3, 4]}


async def test_the_run_opens_the_log_and_closes_it(tmp_path) -> None:
    log = SQLiteLog(tmp_path / "log.sqlite")
    loop = ten_items(FinishAfter(after_n_epochs=1), log=log)
    assert not log.is_open
    await loop.run()
    assert not log.is_open
    assert log[10]["batch"] == 9


async def test_the_run_leaves_a_log_open_that_was_open(tmp_path) -> None:
    async with SQLiteLog(tmp_path / "log.sqlite") as log:
        await ten_items(FinishAfter(after_n_epochs=1), log=log).run()
        assert log.is_open


async def test_a_resumed_log_reads_the_same_from_memory_and_from_the_file(tmp_path) -> None:
    log = SQLiteLog(tmp_path / "log.sqlite")
    loop = ten_items(FinishAfter(every_n_batches=7), log=log)
    for _ in range(3):
        await loop.run()
    async with SQLiteLog(tmp_path / "log.sqlite", uuid=log.h_uuid) as read:
        assert {time: dict(read[time]) for time in read} == {t: dict(log[t]) for t in log}
        assert dict(read.status) == dict(log.status)


async def test_a_log_of_an_earlier_program_can_be_gone_on_with(tmp_path) -> None:
    first = SQLiteLog(tmp_path / "log.sqlite")
    await ten_items(FinishAfter(after_n_epochs=1), log=first).run()
    again = SQLiteLog(tmp_path / "log.sqlite", uuid=first.h_uuid)
    loop = ten_items(FinishAfter(after_n_epochs=2), log=again)
    await loop.run()
    assert loop.status["resumed_from"] == first.h_uuid
    assert [again[time]["batch"] for time in again] == [*range(10), *range(10)]


async def test_the_profile_is_reported_when_it_is_wanted(caplog) -> None:
    caplog.set_level("INFO", logger="aloop")
    config.profile = True
    loop = ten_items(FinishAfter(after_n_epochs=1))
    await loop.run()
    assert loop.log.status["iterations_done"] == 10
    assert ("training", "epoch", "train") in loop.profile.totals
    assert ("training", "epoch", "read_data") in loop.profile.totals
    assert ("training", "epoch", "after_batch", "WriteBatch") in loop.profile.totals
    assert "WriteBatch" in caplog.text


async def test_without_the_setting_only_the_whole_is_timed(caplog) -> None:
    caplog.set_level("INFO", logger="aloop")
    loop = ten_items(FinishAfter(after_n_epochs=1))
    await loop.run()
    assert set(loop.profile.totals) == {
        ("initialization",),
        ("training",),
        ("training", "epoch"),
    }
    assert "Section" not in caplog.text


def test_run_outside_asyncio_says_what_it_needs() -> None:
    coroutine = ten_items().run()
    with pytest.raises(RuntimeError, match="no asyncio event loop"):
        coroutine.send(None)


@pytest.mark.parametrize("grace", [-1.0, float("nan")])
def test_a_grace_below_zero_is_refused(grace: float) -> None:
    with pytest.raises(ValueError, match="expected seconds, 0 or more"):
        MainLoop(no_op, [1], grace_s=grace)


@pytest.mark.parametrize("mode", ["sometimes", "AUTO", "", None, True, ["auto"]])
def test_an_unknown_signals_mode_is_refused(mode: object) -> None:
    expected = "expected one of 'auto', 'chain', 'replace', 'off'; leave it out"
    with pytest.raises(ValueError, match=expected) as raised:
        MainLoop(no_op, [1], signals=mode)  # type: ignore[arg-type]
    assert repr(mode) in str(raised.value)


def test_everything_a_script_needs_comes_from_the_top() -> None:
    assert [name for name in aloop.__all__ if not hasattr(aloop, name)] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"log": "run.sqlite"}, "expected a TrainingLog; for a file use log=SQLiteLog"),
        ({"extensions": [FinishAfter]}, "expected instances of TrainingExtension; call the class"),
        ({"extensions": [print]}, "expected instances of TrainingExtension; derive from it"),
        ({"extensions": FinishAfter()}, "expected a list; write"),
        ({"grace_s": "x"}, "grace_s is 'x'; expected seconds"),
        ({"hyperparameters": [1]}, "expected a dictionary of names and values"),
        ({"name": ["a"]}, "expected text"),
        ({"log_backend": ""}, "log_backend is ''; expected one of"),
    ],
)
def test_an_argument_that_is_something_else_is_refused(options, message) -> None:
    with pytest.raises(aloop.AloopError, match=message):
        MainLoop(no_op, [1], **options)


async def test_an_extension_without_the_base_constructor_works() -> None:
    class Bare(TrainingExtension):
        def __init__(self) -> None:
            self.seen: list[object] = []

        async def after_batch(self, batch: object) -> None:
            self.seen.append(batch)

    bare = Bare()
    loop = MainLoop(no_op, [1], extensions=[bare, FinishAfter(after_n_epochs=1)])
    await loop.run()
    assert bare.seen == [1]
    assert loop.find_extension("Bare") is bare


@pytest.mark.parametrize("name", ["ALOOP_STALL_WARNING_S", "ALOOP_PROFILE"])
async def test_a_setting_that_cannot_be_read_keeps_no_run_from_beginning_later(
    name, monkeypatch
) -> None:
    loop = MainLoop(no_op, [1], extensions=[Recorder(), FinishAfter(after_n_epochs=1)])
    monkeypatch.setenv(name, "nonsense")
    for _ in range(2):
        with pytest.raises(ConfigurationError):
            await loop.run()
    monkeypatch.delenv(name)
    assert (await loop.run()).status["epochs_done"] == 1


async def test_a_thread_that_cannot_be_started_keeps_no_run_from_beginning_later(
    monkeypatch,
) -> None:
    def refuse(guard: object) -> None:
        raise RuntimeError("can't start new thread")

    loop = MainLoop(no_op, [1], extensions=[FinishAfter(after_n_epochs=1)])
    with monkeypatch.context() as patched:
        patched.setattr("aloop.stalls._Guard.start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            await loop.run()
    assert loop.state == "closed"
    assert (await loop.run()).status["epochs_done"] == 1
