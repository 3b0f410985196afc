"""What a checkpoint is, when it is taken, and what its row says of it."""

import asyncio
import json
import logging
import os
import random

import numpy as np
import pytest
from resume_tools import make_loop, outcome

from aloop import (
    Checkpoint,
    FinishAfter,
    Load,
    MainLoop,
    OnLogRecord,
    ParameterDict,
    SimpleExtension,
    SQLiteLog,
    TrainingExtension,
    TrainingFinish,
    TrainingLog,
    as_algorithm,
    as_stream,
)
from aloop.checkpoints import CheckpointDirectory, Contents, SavedCheckpoint
from aloop.errors import ArgumentError, CheckpointError, CheckpointInUseError, NotRunningError


class Weights:
    """A model, and a step that counts."""

    def __init__(self) -> None:
        self.parameters = ParameterDict({"w": np.zeros(2)})

    async def step(self, batch) -> None:
        self.parameters["w"][...] += batch


def small_loop(*extensions, batches=((1, 2, 3, 4)), finish=4, log=None, **options) -> MainLoop:
    weights = Weights()
    return MainLoop(
        weights.step,
        list(batches),
        model=weights.parameters,
        log=TrainingLog() if log is None else log,
        extensions=[*extensions, FinishAfter(after_n_batches=finish)],
        signals="off",
        stall_warning_s=0,
        **options,
    )


def names(path):
    return sorted(entry.name for entry in path.iterdir())


async def test_row_says_where_how_long_and_how_large(tmp_path) -> None:
    log = await small_loop(Checkpoint(tmp_path / "run")).run()
    [path] = (tmp_path / "run").iterdir()
    assert path.name == f"ckpt-000000004-{log.h_uuid[:8]}"
    assert log[4]["saved_to"] == (str(path),)
    assert log[4]["checkpoint_bytes"] == sum(
        file.stat().st_size for file in path.iterdir() if file.name != "manifest.json"
    )
    assert 0 < log[4]["checkpoint_seconds"] < 60


async def test_model_can_be_read_by_anybody(tmp_path) -> None:
    from safetensors.numpy import load_file

    await small_loop(Checkpoint(tmp_path)).run()
    [path] = tmp_path.iterdir()
    assert load_file(path / "model.safetensors")["w"].tolist() == [10.0, 10.0]
    assert (path / "model.safetensors").stat().st_mode == (path / "state.json").stat().st_mode


async def test_newest_three_stay(tmp_path) -> None:
    log = await small_loop(Checkpoint(tmp_path, after_batch=True)).run()
    run = log.h_uuid[:8]
    assert names(tmp_path) == [f"ckpt-00000000{n}-{run}" for n in (2, 3, 4)]
    assert [log[n]["saved_to"][0][-18:] for n in (1, 2, 3, 4)] == [
        f"00000000{n}-{run}" for n in (1, 2, 3, 4)
    ]


@pytest.mark.parametrize(("keep", "left"), [(1, 1), (2, 2), (None, 4)])
async def test_so_many_stay_as_are_to_be_kept(tmp_path, keep, left) -> None:
    await small_loop(Checkpoint(tmp_path, after_batch=True, keep=keep)).run()
    assert len(names(tmp_path)) == left


async def test_saves_at_the_end_are_one(tmp_path) -> None:
    class Stops(SimpleExtension):
        async def do(self, which_callback, *args) -> None:
            self.main_loop.request_finish("batch")

    log = await small_loop(Stops(after_n_batches=2), Checkpoint(tmp_path, after_batch=True)).run()
    assert len(names(tmp_path)) == 2
    assert len(log[2]["saved_to"]) == 1


async def test_save_holds_what_later_extensions_did(tmp_path) -> None:
    class Counts(TrainingExtension):
        count = 0

        async def after_batch(self, batch) -> None:
            self.count += 1

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state) -> None:
            self.count = state["count"]

    await small_loop(Checkpoint(tmp_path, after_n_batches=2), Counts()).run()
    first = SavedCheckpoint.at(min(tmp_path.iterdir()))
    assert first.read()["extensions"]["Counts"] == {"count": 2}


async def test_extensions_of_one_name_have_states_of_their_own(tmp_path) -> None:
    loop = make_loop(tmp_path, epochs=1)
    await loop.run()
    [path] = (tmp_path / "checkpoints").iterdir()
    states = SavedCheckpoint.at(path).read()["extensions"]
    assert set(states) == {
        "FinishAfter",
        "Losses",
        "TrainingDataMonitoring",
        "TrainingDataMonitoring#2",
        "TrainingDataMonitoring#3",
    }


async def test_cancelled_run_saves(tmp_path) -> None:
    entered = asyncio.Event()

    async def wait(batch) -> None:
        entered.set()
        await asyncio.sleep(0)

    loop = MainLoop(wait, [1, 2, 3], extensions=[Checkpoint(tmp_path)], signals="off")
    task = asyncio.create_task(loop.run())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    [path] = tmp_path.iterdir()
    assert SavedCheckpoint.at(path).position == loop.position


async def test_run_that_fails_saves_nothing_by_default(tmp_path) -> None:
    async def fail(batch) -> None:
        raise ZeroDivisionError

    loop = MainLoop(fail, [1], extensions=[Checkpoint(tmp_path)], signals="off")
    with pytest.raises(ZeroDivisionError):
        await loop.run()
    assert names(tmp_path) == []


async def test_broken_step_is_never_saved(tmp_path, caplog) -> None:
    async def fail(batch) -> None:
        raise ZeroDivisionError

    loop = MainLoop(fail, [1], extensions=[Checkpoint(tmp_path, on_error=True)], signals="off")
    with pytest.raises(ZeroDivisionError):
        await loop.run()
    assert names(tmp_path) == []
    assert (
        "no checkpoint is saved at the end of the run, for the training was broken off"
        in caplog.text
    )


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit, asyncio.CancelledError])
async def test_boundary_that_was_cut_off_is_never_saved(tmp_path, error) -> None:
    class Fails(TrainingExtension):
        async def after_batch(self, batch) -> None:
            if batch == 3:
                raise error

    loop = small_loop(Fails(), Checkpoint(tmp_path, after_batch=True, on_error=True))
    with pytest.raises(error):
        await loop.run()
    assert [name[:14] for name in names(tmp_path)] == ["ckpt-000000001", "ckpt-000000002"]


async def test_failure_beside_the_training_can_be_saved(tmp_path) -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    class Begins(TrainingExtension):
        async def after_batch(self, batch) -> None:
            if batch == 2:
                self.main_loop.start_soon(fail)

    loop = small_loop(Begins(), Checkpoint(tmp_path, on_error=True), finish=10**6)
    with pytest.raises(ZeroDivisionError):
        await loop.run()
    assert SavedCheckpoint.at(next(tmp_path.iterdir())).position == loop.position


async def test_boundary_whose_background_extension_failed_is_never_saved(tmp_path, caplog) -> None:
    class Fails(SimpleExtension):
        async def do(self, which_callback, *args) -> None:
            raise ZeroDivisionError

    checkpoint = Checkpoint(tmp_path, on_error=True)
    loop = small_loop(Fails(after_n_batches=2, background=True), checkpoint, finish=10**6)
    with pytest.raises(ZeroDivisionError):
        await loop.run()
    assert names(tmp_path) == []
    assert "a background extension has failed, or was left out" in caplog.text


async def test_background_extension_that_is_left_out_keeps_the_boundary_from_being_saved(
    tmp_path,
) -> None:
    class Counts(SimpleExtension):
        count = 0

        async def do(self, which_callback, *args) -> None:
            self.count += 1

    async def fail() -> None:
        raise ZeroDivisionError

    class Begins(TrainingExtension):
        async def after_batch(self, batch) -> None:
            if batch == 4:
                self.main_loop.start_soon(fail)
                await asyncio.sleep(0)

    counts = Counts(every_n_batches=2, background=True)
    loop = small_loop(Begins(), counts, Checkpoint(tmp_path, every_n_batches=2), finish=99)
    with pytest.raises(ZeroDivisionError):
        await loop.run()
    assert [name[:14] for name in names(tmp_path)] == ["ckpt-000000002"]


@pytest.mark.parametrize("level", ["batch", None])
async def test_background_extension_that_was_cancelled_costs_no_end_but_that_of_a_grace(
    tmp_path, level
) -> None:
    class Hangs(SimpleExtension):
        async def do(self, which_callback, *args) -> None:
            if level:
                self._own_loop().request_finish(level)
            await asyncio.Event().wait()

    loop = small_loop(
        Hangs(after_n_batches=1, background=True), Checkpoint(tmp_path), finish=4, grace_s=0.05
    )
    await loop.run()
    assert len(names(tmp_path)) == (0 if level else 1)


@pytest.mark.parametrize("place", ["before_batch", "step", "after_batch"])
async def test_finish_that_is_raised_in_a_batch_keeps_it_from_being_saved(tmp_path, place) -> None:
    class Stops(TrainingExtension):
        async def before_batch(self, batch) -> None:
            if place == "before_batch" and batch == 3:
                raise TrainingFinish

        async def after_batch(self, batch) -> None:
            if place == "after_batch" and batch == 3:
                raise TrainingFinish

    loop = small_loop(Stops(), Checkpoint(tmp_path))
    step = loop.algorithm.process_batch

    async def stops(batch) -> None:
        if place == "step" and batch == 3:
            raise TrainingFinish
        await step(batch)

    loop.algorithm.process_batch = stops
    await loop.run()
    assert len(names(tmp_path)) == (1 if place == "after_batch" else 0)


async def test_batch_that_was_broken_off_is_not_saved_by_a_run_that_trains_on_nothing(
    tmp_path,
) -> None:
    is_broken = [True]

    async def step(batch) -> None:
        if batch == 3 and is_broken and is_broken.pop():
            raise ZeroDivisionError

    class Stops(TrainingExtension):
        async def on_resumption(self) -> None:
            self.main_loop.request_finish("batch")

    loop = MainLoop(step, [1, 2, 3, 4], extensions=[Checkpoint(tmp_path)], signals="off")
    with pytest.raises(ZeroDivisionError):
        await loop.run()
    loop.extensions.append(Stops())
    await loop.run()
    assert names(tmp_path) == []
    with pytest.raises(CheckpointError, match="broken off in the middle of batch 3"):
        loop.state_dict()
    loop.extensions[-1] = FinishAfter(after_n_batches=3)
    await loop.run()
    assert len(names(tmp_path)) == 1


async def test_stream_that_failed_is_entered_where_it_was(tmp_path) -> None:
    is_broken, trained = [True], []

    def batches():
        for batch in range(5):
            if batch == 3 and is_broken and is_broken.pop():
                raise OSError("the network")
            yield batch

    def loop_of():
        async def step(batch) -> None:
            trained.append(batch)

        checkpoint = Checkpoint(tmp_path, resume=True, on_error=True)
        return MainLoop(
            step, batches, extensions=[checkpoint, FinishAfter(after_n_epochs=1)], signals="off"
        )

    with pytest.raises(OSError, match="the network"):
        await loop_of().run()
    await loop_of().run()
    assert trained == [0, 1, 2, 3, 4]


async def test_quantities_of_the_last_batch_are_there_after_a_resumption(tmp_path) -> None:
    class Last(TrainingExtension):
        async def after_epoch(self) -> None:
            self.main_loop.log.current_row["last"] = self.main_loop.quantities["cost"]

    def loop_of(finish):
        async def step(batch):
            return {"cost": 2.0 * batch, "odd": object()}

        checkpoint = Checkpoint(tmp_path, resume=True)
        finishes = FinishAfter(after_n_batches=finish)
        return MainLoop(step, [1, 2], extensions=[Last(), checkpoint, finishes], signals="off")

    await loop_of(2).run()
    log = await loop_of(3).run()
    assert log[2]["last"] == 4.0


async def test_stream_is_not_asked_for_its_state_where_nothing_is_saved() -> None:
    class Odd:
        def get_epoch_iterator(self, as_dict=True):
            return iter([1, 2])

        def state_dict(self):
            raise NotImplementedError

        def load_state_dict(self, state) -> None:
            raise NotImplementedError

    async def step(batch) -> None:
        pass

    finishes = FinishAfter(after_n_epochs=2)
    log = await MainLoop(step, Odd(), extensions=[finishes], signals="off").run()
    assert log.status["iterations_done"] == 4


async def test_work_that_awaits_a_checkpoint_does_not_hold_up_a_run_that_fails(tmp_path) -> None:
    heard = []

    class Asks(TrainingExtension):
        async def after_batch(self, batch) -> None:
            self.main_loop.start_soon(self.ask)
            await asyncio.sleep(0)
            raise ZeroDivisionError

        async def ask(self) -> None:
            try:
                await self.main_loop.request_checkpoint()
            except CheckpointError as error:
                heard.append(str(error))

    with pytest.raises(ZeroDivisionError):
        await small_loop(Asks(), Checkpoint(tmp_path), grace_s=30).run()
    assert heard == ["there is no checkpoint as was asked for: the run ends without it"]


async def test_lenient_checkpoint_is_not_lenient_about_resuming(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    loop = small_loop(Checkpoint(tmp_path / "file", resume=True, on_failure="log"))
    with pytest.raises(CheckpointError):
        await loop.run()


async def test_run_that_is_given_up_saves_nothing(tmp_path) -> None:
    entered = asyncio.Event()

    async def hang(batch) -> None:
        entered.set()
        await asyncio.Event().wait()

    loop = MainLoop(hang, [1], extensions=[Checkpoint(tmp_path)], signals="off", grace_s=0.05)
    task = asyncio.create_task(loop.run())
    await entered.wait()
    loop.request_finish("batch")
    with pytest.raises(asyncio.CancelledError):
        await task
    assert names(tmp_path) == []


async def test_checkpoint_waits_for_what_was_triggered_before_it(tmp_path) -> None:
    class Slow(SimpleExtension):
        async def do(self, which_callback, *args) -> None:
            for _ in range(20):
                await asyncio.sleep(0)
            self.main_loop.log.current_row["slow"] = True

    loop = small_loop(
        Slow(after_n_batches=2, background=True), Checkpoint(tmp_path, after_n_batches=2)
    )
    await loop.run()
    first = SavedCheckpoint.at(min(tmp_path.iterdir())).read()
    assert first["log"]["row"]["slow"] is True


async def test_training_goes_on_while_it_is_written(tmp_path, monkeypatch) -> None:
    import threading

    seen = threading.Event()
    publish = CheckpointDirectory.publish

    def wait_and_publish(self, *args):
        assert seen.wait(30)
        return publish(self, *args)

    class Sees(TrainingExtension):
        async def after_batch(self, batch) -> None:
            if batch == 3:
                seen.set()

    monkeypatch.setattr(CheckpointDirectory, "publish", wait_and_publish)
    await small_loop(Checkpoint(tmp_path, after_n_batches=1), Sees()).run()
    assert len(names(tmp_path)) == 2


# ------------------------------------------------------------------ further destinations


async def test_argument_of_a_condition_is_a_directory_of_its_own(tmp_path) -> None:
    class Best(TrainingExtension):
        async def after_batch(self, batch) -> None:
            self.main_loop.log.current_row["is_best"] = batch in (2, 3)

    checkpoint = Checkpoint(tmp_path / "all", after_batch=True)
    checkpoint.add_condition(["after_batch"], OnLogRecord("is_best"), [tmp_path / "best"])
    log = await small_loop(Best(), checkpoint).run()
    assert names(tmp_path / "best") == [f"ckpt-000000003-{log.h_uuid[:8]}"]
    assert [len(log[n]["saved_to"]) for n in (1, 2, 3, 4)] == [1, 2, 2, 1]


async def test_destination_that_fails_is_none_and_the_error_goes_up(tmp_path, monkeypatch) -> None:
    publish = CheckpointDirectory.publish

    def fail(self, *args):
        if self.path.name == "best":
            raise CheckpointError("no room")
        return publish(self, *args)

    monkeypatch.setattr(CheckpointDirectory, "publish", fail)
    checkpoint = Checkpoint(tmp_path / "all")
    checkpoint.add_condition(["after_training"], None, [tmp_path / "best"])
    loop = small_loop(checkpoint)
    with pytest.raises(CheckpointError, match="no room"):
        await loop.run()
    assert [path and path[-18:-9] for path in loop.log[4]["saved_to"]] == ["000000004", None]


async def test_lenient_checkpoint_lets_the_run_go_on(tmp_path, monkeypatch, caplog) -> None:
    def fail(self, *args):
        raise CheckpointError("no room")

    monkeypatch.setattr(CheckpointDirectory, "publish", fail)
    log = await small_loop(Checkpoint(tmp_path, after_batch=True, on_failure="log")).run()
    assert log[2]["saved_to"] == (None,)
    assert "no room" in caplog.text


async def test_save_that_fails_is_tried_again(tmp_path, monkeypatch) -> None:
    publish, failures = CheckpointDirectory.publish, iter([True, False])

    def fail_once(self, *args):
        if next(failures):
            raise CheckpointError("no room")
        return publish(self, *args)

    monkeypatch.setattr(CheckpointDirectory, "publish", fail_once)
    log = await small_loop(Checkpoint(tmp_path, retries=1)).run()
    assert len(log[4]["saved_to"]) == 1
    assert len(names(tmp_path)) == 1


async def test_parameters_alone_can_be_saved_and_loaded(tmp_path) -> None:
    await small_loop(Checkpoint(tmp_path, save_main_loop=False)).run()
    loop = small_loop(Load(tmp_path), finish=1)
    await loop.run()
    assert loop.model["w"].tolist() == [11.0, 11.0]
    assert loop.log[0]["loaded_from"] == str(next(tmp_path.iterdir()))


async def test_run_cannot_be_resumed_from_parameters_alone(tmp_path) -> None:
    await small_loop(Checkpoint(tmp_path, save_main_loop=False)).run()
    [path] = tmp_path.iterdir()
    loop = small_loop(Load(path, load_iteration_state=True))
    with pytest.raises(CheckpointError, match="parameters of a model and no more"):
        await loop.run()


# ------------------------------------------------------------------ requests


async def test_requested_checkpoint_gives_its_path(tmp_path) -> None:
    class Asks(TrainingExtension):
        async def after_batch(self, batch) -> None:
            if batch == 2:
                self.main_loop.start_soon(self.ask)

        async def ask(self) -> None:
            self.path = await loop.request_checkpoint()

    asks = Asks()
    loop = small_loop(asks, Checkpoint(tmp_path / "run"), finish=1000, batches=range(1000))
    await loop.run()
    assert SavedCheckpoint.at(asks.path).position.iterations_done in range(3, 1001)


async def test_request_need_not_be_awaited(tmp_path) -> None:
    class Asks(TrainingExtension):
        async def after_batch(self, batch) -> None:
            if batch == 2:
                self.main_loop.request_checkpoint()

    await small_loop(Asks(), Checkpoint(tmp_path)).run()
    assert [name[:14] for name in names(tmp_path)] == ["ckpt-000000002", "ckpt-000000004"]


async def test_request_cannot_be_awaited_in_a_callback(tmp_path) -> None:
    class Asks(TrainingExtension):
        async def after_batch(self, batch) -> None:
            await self.main_loop.request_checkpoint()

    with pytest.raises(ArgumentError, match="leave out the await"):
        await small_loop(Asks(), Checkpoint(tmp_path)).run()


async def test_request_cannot_be_awaited_in_a_background_extension(tmp_path) -> None:
    class Asks(SimpleExtension):
        async def do(self, which_callback, *args) -> None:
            await self.main_loop.request_checkpoint()

    loop = small_loop(Asks(after_n_batches=1, background=True), Checkpoint(tmp_path))
    with pytest.raises(ArgumentError, match="leave out the await"):
        await loop.run()


async def test_request_without_a_checkpoint_extension_says_what_to_add() -> None:
    loop = small_loop(finish=1000, batches=range(1000))
    async with loop.running() as handle:
        with pytest.raises(CheckpointError, match="add Checkpoint"):
            await handle.request_checkpoint()


async def test_request_outside_a_run_is_an_error(tmp_path) -> None:
    loop = small_loop(Checkpoint(tmp_path))
    with pytest.raises(NotRunningError):
        loop.request_checkpoint()
    async with loop.running() as handle:
        pass
    with pytest.raises(NotRunningError):
        handle.request_checkpoint()


async def quiet(queue):
    while True:
        yield await queue.get()


async def test_run_that_waits_for_its_stream_saves_what_is_requested(tmp_path) -> None:
    queue = asyncio.Queue()
    done = asyncio.Event()

    class Says(TrainingExtension):
        async def after_batch(self, batch) -> None:
            done.set()

    weights = Weights()
    loop = MainLoop(
        weights.step,
        as_stream(lambda: quiet(queue), on_resume="live"),
        model=weights.parameters,
        extensions=[Checkpoint(tmp_path), Says()],
        signals="off",
    )
    async with loop.running() as handle:
        queue.put_nowait(1)
        await done.wait()
        for iterations in (1, 1):
            path = await handle.request_checkpoint()
            assert SavedCheckpoint.at(path).position.iterations_done == iterations
        queue.put_nowait(2)
        done.clear()
        await done.wait()
    assert weights.parameters["w"].tolist() == [3.0, 3.0]
    assert len(names(tmp_path)) == 3


async def test_paused_run_saves_what_is_requested_and_stays_paused(tmp_path) -> None:
    loop = small_loop(Checkpoint(tmp_path), finish=10_000, batches=range(10_000))
    async with loop.running() as handle:
        loop.pause()
        assert await loop.wait_paused()
        before = loop.position
        await asyncio.gather(handle.request_checkpoint(), handle.request_checkpoint())
        assert (loop.state, loop.position) == ("paused", before)
    assert len(names(tmp_path)) == 1, "the last one was taken there"


async def test_requests_of_a_run_that_ends_are_answered_first(tmp_path) -> None:
    found = []

    async def ask(loop) -> None:
        found.append(await loop.request_checkpoint())

    class Asks(TrainingExtension):
        async def after_batch(self, batch) -> None:
            if batch == 4:
                self.main_loop.start_soon(ask, self.main_loop)

    await small_loop(Asks(), Checkpoint(tmp_path), grace_s=5).run()
    assert [path.name for path in found] == names(tmp_path)


async def test_who_waits_hears_that_it_failed(tmp_path, monkeypatch) -> None:
    def fail(self, *args):
        raise CheckpointError("no room")

    monkeypatch.setattr(CheckpointDirectory, "publish", fail)
    loop = small_loop(Checkpoint(tmp_path), finish=10_000, batches=range(10_000))
    with pytest.raises(CheckpointError, match="no room"):
        async with loop.running() as handle:
            with pytest.raises(CheckpointError, match="no room"):
                await handle.request_checkpoint()


# ------------------------------------------------------------------ states


async def test_state_in_memory_is_a_checkpoint(tmp_path) -> None:
    straight = make_loop(tmp_path, backend="python", checkpoint=Checkpoint(tmp_path / "a"))
    await straight.run()
    stopped = make_loop(
        tmp_path, FinishAfter(after_n_batches=10), backend="python",
        checkpoint=Checkpoint(tmp_path / "b"),
    )  # fmt: skip
    await stopped.run()
    state = stopped.state_dict()
    json.dumps(state, default=lambda array: array.tolist())
    loop = make_loop(tmp_path, backend="python", checkpoint=Checkpoint(tmp_path / "c"))
    loop.load_state_dict(state)
    await loop.run()
    assert outcome(loop) == outcome(straight)


async def test_state_is_a_copy(tmp_path) -> None:
    loop = small_loop(finish=2)
    await loop.run()
    state = loop.state_dict()
    loop.model["w"][...] = 0
    assert state["model"]["w"].tolist() == [3.0, 3.0]


def test_what_is_no_state_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected what MainLoop.state_dict\(\) gave"):
        small_loop().load_state_dict({"model": 1})


async def test_what_has_no_state_is_named_once(tmp_path, caplog) -> None:
    async def step(batch) -> None:
        pass

    loop = MainLoop(
        step,
        [1, 2, 3],
        model=object(),
        extensions=[Checkpoint(tmp_path, after_batch=True), FinishAfter(after_n_batches=3)],
        signals="off",
    )
    await loop.run()
    assert caplog.text.count("has neither state_dict() nor get_parameter_values()") == 1
    assert caplog.text.count("has no state_dict(): what it keeps beside the model is not") == 1


async def test_training_of_which_nothing_is_saved_is_named(tmp_path, caplog) -> None:
    async def step(batch) -> None:
        pass

    loop = MainLoop(
        step, [1], extensions=[Checkpoint(tmp_path), FinishAfter(after_n_batches=1)], signals="off"
    )
    await loop.run()
    assert "nothing of it is in the checkpoints, and there is no model; give it as" in caplog.text


async def test_state_that_cannot_be_kept_names_the_extension_and_the_key(tmp_path) -> None:
    class Odd(TrainingExtension):
        def state_dict(self):
            return {"good": 1, "bad": [{"inner": {1, 2}}]}

        def load_state_dict(self, state) -> None:
            pass

    loop = small_loop(Odd(name="odd one"), Checkpoint(tmp_path))
    with pytest.raises(
        TypeError, match=r"extension 'odd one' has at \['bad'\]\[0\]\['inner'\] a .*set"
    ):
        await loop.run()
    assert names(tmp_path) == []


async def test_dictionary_of_arrays_is_a_model(tmp_path) -> None:
    def loop_of(weights):
        async def step(batch) -> None:
            weights["w"] += batch
            weights["n"] += 1

        return MainLoop(
            step,
            [1, 2, 3],
            model=weights,
            extensions=[Checkpoint(tmp_path, resume=True), FinishAfter(after_n_batches=2)],
            signals="off",
        )

    await loop_of({"w": np.zeros(2), "n": 0}).run()
    weights = {"w": np.zeros(2), "n": 0}
    held = weights["w"]
    await loop_of(weights).run()
    assert (held.tolist(), weights["n"]) == ([3.0, 3.0], 2)


async def test_model_of_get_and_set_parameter_values_is_saved(tmp_path) -> None:
    class Old:
        def __init__(self) -> None:
            self.w = np.zeros(2)

        def get_parameter_values(self):
            return {"w": self.w}

        def set_parameter_values(self, values) -> None:
            self.w = values["w"]

    def loop_of(model):
        async def step(batch) -> None:
            model.w = model.w + batch

        return MainLoop(
            step,
            [1, 2, 3],
            model=model,
            extensions=[Checkpoint(tmp_path, resume=True), FinishAfter(after_n_batches=2)],
            signals="off",
        )

    await loop_of(Old()).run()
    model = Old()
    await loop_of(model).run()
    assert model.w.tolist() == [3.0, 3.0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.random.default_rng(3),
        lambda: np.random.Generator(np.random.MT19937(3)),
        lambda: np.random.Generator(np.random.Philox(3)),
        lambda: np.random.Generator(np.random.SFC64(3)),
        lambda: np.random.RandomState(3),
        lambda: random.Random(3),  # noqa: S311 - keeps no secret
    ],
)
async def test_registered_generator_goes_on(tmp_path, make) -> None:
    def loop_of(generator, drawn, finish):
        def step(batch) -> None:
            drawn.append(generator.random())

        return MainLoop(
            as_algorithm(step, "inline", generators={"g": generator}),
            [1, 2, 3],
            extensions=[Checkpoint(tmp_path, resume=True), FinishAfter(after_n_batches=finish)],
            signals="off",
        )

    drawn: list[float] = []
    await loop_of(make(), drawn, 2).run()
    await loop_of(make(), drawn, 4).run()
    again = make()
    assert drawn == [again.random() for _ in range(4)]


def test_what_is_no_generator_is_refused() -> None:
    with pytest.raises(ArgumentError, match="generator 'g' is 3; expected a numpy"):
        as_algorithm(print, generators={"g": 3})


async def test_global_generators_are_left_alone_unless_asked_for(tmp_path) -> None:
    async def drawn(finish, **options):
        found: list[float] = []

        async def step(batch) -> None:
            found.extend([random.random(), np.random.random()])  # noqa: S311, NPY002 - the shared ones

        checkpoint = Checkpoint(tmp_path / str(options), resume=True, **options)
        loop = MainLoop(
            step, [1, 2, 3], extensions=[checkpoint, FinishAfter(after_n_batches=finish)],
            signals="off",
        )  # fmt: skip
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002 - the shared one
        await loop.run()
        return found

    straight = await drawn(4, keep=1)
    assert await drawn(2) + await drawn(4) == straight[:4] + straight[:4]
    assert await drawn(2, global_rng=True) + await drawn(4, global_rng=True) == straight


# ------------------------------------------------------------------ arguments and directories


@pytest.mark.parametrize("keep", [0, -1, 1.5, True, "3"])
def test_keep_is_a_whole_number(keep) -> None:
    with pytest.raises(ArgumentError, match=f"keep is {keep!r}; expected how many"):
        Checkpoint("x", keep=keep)


@pytest.mark.parametrize("path", ["", None, 3, "a\0b"])
def test_path_is_one(path) -> None:
    for extension in (Checkpoint, Load):
        with pytest.raises(ArgumentError, match="expected the path of a directory"):
            extension(path)


def test_parameters_alone_cannot_be_resumed_from() -> None:
    with pytest.raises(ArgumentError, match="save_main_loop=False"):
        Checkpoint("x", resume=True, save_main_loop=False)


async def test_two_runs_cannot_write_into_one_directory(tmp_path) -> None:
    first = small_loop(Checkpoint(tmp_path), finish=10**6, batches=range(10**6))
    async with first.running():
        first.pause()
        await first.wait_paused()
        with pytest.raises(CheckpointInUseError, match=f"in use by process {os.getpid()}"):
            await small_loop(Checkpoint(tmp_path)).run()
    await small_loop(Checkpoint(tmp_path)).run()
    assert names(tmp_path)[-1].startswith("ckpt-000000004")


async def test_two_extensions_cannot_resume(tmp_path) -> None:
    loop = small_loop(
        Load(tmp_path, load_log=True), Load(tmp_path, load_iteration_state=True, name="other")
    )
    with pytest.raises(ArgumentError, match="'Load', the extension 'other'; expected one"):
        await loop.run()


async def test_training_branches_off_once_and_then_resumes_its_own(tmp_path) -> None:
    await small_loop(Checkpoint(tmp_path / "first"), finish=2).run()
    for finish, weight in ((3, 6.0), (4, 10.0)):
        loop = small_loop(
            Checkpoint(tmp_path / "own", resume=True),
            Load(tmp_path / "first", load_iteration_state=True, load_log=True),
            finish=finish,
        )
        await loop.run()
        assert loop.model["w"].tolist() == [weight, weight]


async def test_what_is_loaded_to_begin_with_gives_way_to_a_resumption(tmp_path) -> None:
    await small_loop(Checkpoint(tmp_path / "first")).run()
    for expected in (11.0, 13.0):
        loop = small_loop(
            Checkpoint(tmp_path / "own", resume=True),
            Load(tmp_path / "first"),
            finish=1 if expected == 11 else 2,
        )
        await loop.run()
        assert loop.model["w"].tolist() == [expected, expected]


async def test_where_there_is_no_checkpoint_a_warning_says_so(tmp_path, caplog) -> None:
    await small_loop(Checkpoint(tmp_path / "a", resume=True), Load(tmp_path / "b")).run()
    assert "the extension 'Checkpoint' finds no checkpoint in" in caplog.text
    assert "the extension 'Load' finds no checkpoint in" in caplog.text


async def test_file_is_no_checkpoint(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file; expected a checkpoint, which is a dir"):
        await small_loop(Load(tmp_path / "file")).run()


async def test_log_alone_can_be_loaded(tmp_path) -> None:
    database = tmp_path / "log.sqlite"
    first = small_loop(Checkpoint(tmp_path / "run"), log=SQLiteLog(database), finish=3)
    await first.run()
    loop = small_loop(Load(tmp_path / "run", load_log=True), log=SQLiteLog(database), finish=5)
    await loop.run()
    assert loop.status["iterations_done"] == 5
    assert loop.model["w"].tolist() == [6.0 + 1 + 2] * 2, "the stream began anew"
    assert loop.status["resumed_from"] == first.log.h_uuid


async def test_second_run_of_a_loop_saves_too(tmp_path) -> None:
    loop = small_loop(Checkpoint(tmp_path), finish=2)
    await loop.run()
    loop.find_extension("FinishAfter").add_condition(
        ["after_batch"], lambda log: log.status["iterations_done"] >= 3
    )
    await loop.run()
    assert [name[:14] for name in names(tmp_path)] == ["ckpt-000000002", "ckpt-000000003"]


async def test_state_that_was_put_back_is_saved_though_a_later_one_is_there(tmp_path) -> None:
    loop = small_loop(Checkpoint(tmp_path), finish=2)
    before = loop.state_dict()
    await loop.run()
    loop.model["w"][...] = 0
    before["model"]["w"][...] = 100
    loop.load_state_dict(before)
    await loop.run()
    newest = max(tmp_path.iterdir(), key=lambda path: SavedCheckpoint.at(path).number)
    assert SavedCheckpoint.at(newest).read()["model"]["w"].tolist() == [103.0, 103.0]


@pytest.mark.parametrize("level", ["epoch", "batch"])
async def test_background_work_is_in_a_checkpoint_that_was_requested_when_the_run_stops(
    tmp_path, level
) -> None:
    class Asks(TrainingExtension):
        async def after_batch(self, batch) -> None:
            if batch == 2:
                self.main_loop.request_checkpoint()
                self.main_loop.request_finish(level)

    class Slow(SimpleExtension):
        count = 0

        async def do(self, which_callback, *args) -> None:
            for _ in range(50):
                await asyncio.sleep(0)
            self.count += 1
            self.main_loop.log.current_row["slow"] = True

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state) -> None:
            self.count = state["count"]

    await small_loop(Slow(after_n_batches=2, background=True), Asks(), Checkpoint(tmp_path)).run()
    for path in tmp_path.iterdir():
        state = SavedCheckpoint.at(path).read()
        assert state["extensions"]["Slow"] == {"count": 1}


async def test_state_is_taken_in_the_event_loop(tmp_path) -> None:
    class Grows(TrainingExtension):
        def __init__(self) -> None:
            super().__init__()
            self.seen = {number: str(number) for number in range(20_000)}

        async def before_training(self) -> None:
            self.main_loop.start_soon(self.grow)

        async def grow(self) -> None:
            while self.main_loop.status["iterations_done"] < 100:
                self.seen[len(self.seen)] = ""
                await asyncio.sleep(0)

        def state_dict(self):
            return {"seen": self.seen}

        def load_state_dict(self, state) -> None:
            self.seen = state["seen"]

    checkpoint = Checkpoint(tmp_path, every_n_batches=20)
    await small_loop(Grows(), checkpoint, finish=100, batches=range(100)).run()
    assert len(names(tmp_path)) == 3


async def test_what_a_checkpoint_waits_for_is_named(tmp_path, caplog, monkeypatch) -> None:
    monkeypatch.setattr("aloop.background.SAID_AFTER_S", 0.01)
    said = asyncio.Event()

    class Says(logging.Handler):
        def emit(self, record) -> None:
            if "a checkpoint is due, and the training waits for" in record.getMessage():
                said.set()

    class Slow(SimpleExtension):
        async def do(self, which_callback, *args) -> None:
            await said.wait()

    handler = Says()
    logging.getLogger("aloop").addHandler(handler)
    try:
        checkpoint = Checkpoint(tmp_path, after_n_batches=2)
        await small_loop(Slow(after_n_batches=1, background=True), checkpoint).run()
    finally:
        logging.getLogger("aloop").removeHandler(handler)
    assert "waits for the extension 'Slow' in after_batch" in caplog.text


async def test_half_a_protocol_is_named(tmp_path, caplog) -> None:
    class Half(TrainingExtension):
        def state_dict(self):
            return {}

    await small_loop(Half(), Checkpoint(tmp_path)).run()
    assert "the extension 'Half' has no load_state_dict(): nothing of it" in caplog.text


async def test_extension_whose_state_cannot_be_taken_is_named(tmp_path) -> None:
    class Fails(TrainingExtension):
        def state_dict(self):
            raise ZeroDivisionError

        def load_state_dict(self, state) -> None:
            pass

    with pytest.raises(ZeroDivisionError) as caught:
        await small_loop(Fails(), Checkpoint(tmp_path)).run()
    assert "the state of the extension 'Fails' was taken" in caught.value.__notes__[0]


async def test_lenient_checkpoint_of_a_state_that_cannot_be_kept_is_none(tmp_path) -> None:
    class Odd(TrainingExtension):
        def state_dict(self):
            return {"bad": {1, 2}}

        def load_state_dict(self, state) -> None:
            pass

    log = await small_loop(Odd(), Checkpoint(tmp_path, on_failure="log")).run()
    assert log[4]["saved_to"] == (None,)


async def test_given_up_save_leaves_the_directory_to_others_when_it_ends(
    tmp_path, monkeypatch
) -> None:
    import threading

    entered, leave = threading.Event(), threading.Event()
    write = Contents.write

    def hang(self, *args):
        entered.set()
        assert leave.wait(30)
        return write(self, *args)

    monkeypatch.setattr(Contents, "write", hang)
    loop = small_loop(Checkpoint(tmp_path), finish=2, grace_s=0.05)
    task = asyncio.create_task(loop.run())
    await asyncio.to_thread(entered.wait)
    loop.request_finish("batch")
    with pytest.raises(asyncio.CancelledError):
        await task
    [thread] = [t for t in threading.enumerate() if t.name == "aloop checkpoints"]
    leave.set()
    await asyncio.to_thread(thread.join)
    assert names(tmp_path) == [], "nothing behind the back of the run"
    await small_loop(Checkpoint(tmp_path)).run()
    assert len(names(tmp_path)) == 1


async def test_request_from_another_thread_is_refused(tmp_path) -> None:
    loop = small_loop(Checkpoint(tmp_path), finish=10**6, batches=range(10**6))
    async with loop.running() as handle:
        with pytest.raises(ArgumentError, match="another thread or event loop than the run's"):
            await asyncio.to_thread(handle.request_checkpoint)
