"""What is broken, missing or somebody else's, and what a run that would resume makes of it."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from log_helpers import query
from resume_tools import BATCHES, checkpoints_in, make_loop, outcome

from aloop import (
    ArrayStream,
    Checkpoint,
    FinishAfter,
    Load,
    MainLoop,
    ParameterDict,
    Scale,
    SequentialScheme,
    ShuffledScheme,
    SQLiteLog,
    TrainingDataMonitoring,
    TrainingExtension,
    TrainingLog,
    read_log,
)
from aloop.checkpoints import CheckpointDirectory, SavedCheckpoint
from aloop.checkpoints.published import FILES, MANIFEST, _digest_of
from aloop.errors import (
    CheckpointError,
    CheckpointInUseError,
    CheckpointValueError,
    CheckpointVersionError,
    LogBehindError,
    LogFileError,
    ParameterError,
    StreamError,
)


async def saved(directory: Path, **options) -> Path:
    """Train for an epoch with three checkpoints, and give the directory of these."""
    checkpoint = Checkpoint(directory / "checkpoints", resume=True, after_n_batches=3)
    checkpoint.add_condition(["after_batch"], lambda log: log.status["iterations_done"] == 5)
    await make_loop(directory, checkpoint=checkpoint, epochs=1, **options).run()
    assert len(checkpoints_in(directory)) == 3
    return directory / "checkpoints"


async def resumed(directory: Path, **options) -> MainLoop:
    loop = make_loop(directory, epochs=1, **options)
    await loop.run()
    return loop


def newest(directory: Path) -> Path:
    return max((path for path in directory.iterdir() if path.name[0] == "c"), key=lambda p: p.name)


def flip_a_byte(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


# ------------------------------------------------------------------ files


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.99])
@pytest.mark.parametrize("name", [*FILES, MANIFEST])
async def test_previous_one_counts_when_a_byte_is_another(tmp_path, caplog, name, share) -> None:
    checkpoints = await saved(tmp_path)
    file = newest(checkpoints) / name
    flip_a_byte(file, int(share * file.stat().st_size))
    loop = await resumed(tmp_path)
    assert loop.log[5]["loaded_from"].endswith(f"{5:09d}-{loop.status['resumed_from'][:8]}")
    [warning] = [r for r in caplog.records if "is left out, ckpt-000000005" in r.message]
    assert warning.levelno == logging.WARNING
    assert str(file.parent) in warning.message


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
@pytest.mark.parametrize("what", ["is missing", "is cut off", "is empty", "is a symbolic link",
                                  "is a directory", "is longer"])  # fmt: skip
async def test_previous_one_counts_when_a_file_is(tmp_path, caplog, name, what) -> None:
    checkpoints = await saved(tmp_path)
    file = newest(checkpoints) / name
    content = file.read_bytes()
    file.unlink()
    if what == "is cut off":
        file.write_bytes(content[: len(content) // 2])
    elif what == "is empty":
        file.write_bytes(b"")
    elif what == "is longer":
        file.write_bytes(content + b"\0")
    elif what == "is a directory":
        file.mkdir()
    elif what == "is a symbolic link":
        elsewhere = tmp_path / "elsewhere"
        elsewhere.write_bytes(content)
        file.symlink_to(elsewhere)
    loop = await resumed(tmp_path)
    assert "000000005-" in loop.log[5]["loaded_from"]
    assert "is left out" in caplog.text


def forge(path: Path, change) -> None:
    """Change a manifest and vouch for it, as somebody who means harm could."""
    manifest = json.loads((path / MANIFEST).read_text())
    del manifest["sha256"]
    change(manifest)
    manifest["sha256"] = _digest_of(manifest)
    (path / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "name", ["../elsewhere", "/etc/passwd", "model.safetensors/../x", "extra", ""]
)
async def test_manifest_that_names_other_files_is_broken(tmp_path, caplog, name) -> None:
    checkpoints = await saved(tmp_path)
    entry = {"bytes": 1, "sha256": "0" * 64}
    forge(newest(checkpoints), lambda manifest: manifest["files"].update({name: entry}))
    await resumed(tmp_path)
    assert "it names the files" in caplog.text


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", '{"format": "another"}', '"' * 99, "[" * 100_000, "\xff"]
)
async def test_manifest_that_is_none_is_broken(tmp_path, caplog, text) -> None:
    checkpoints = await saved(tmp_path)
    (newest(checkpoints) / MANIFEST).write_bytes(text.encode("latin-1"))
    loop = await resumed(tmp_path)
    assert "000000005-" in loop.log[5]["loaded_from"]


async def test_unknown_version_is_refused_though_an_older_one_is_there(tmp_path) -> None:
    checkpoints = await saved(tmp_path)
    forge(newest(checkpoints), lambda manifest: manifest.update(version=2))
    with pytest.raises(CheckpointVersionError, match="has version 2; expected 1; upgrade aloop"):
        await resumed(tmp_path)


async def test_only_broken_ones_are_an_error_that_names_each(tmp_path) -> None:
    checkpoints = await saved(tmp_path)
    for path in checkpoints.iterdir():
        (path / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match="none of the checkpoints") as caught:
        await resumed(tmp_path)
    assert str(caught.value).count("is missing") == 3
    assert len(checkpoints_in(tmp_path)) == 3, "nothing was removed, and nothing saved"


async def test_run_that_could_not_resume_does_not_begin_anew_when_it_is_run_again(tmp_path) -> None:
    checkpoints = await saved(tmp_path)
    hidden = tmp_path / "hidden"
    for path in checkpoints.iterdir():
        shutil.copytree(path, hidden / path.name)
        (path / MANIFEST).unlink()
    loop = make_loop(tmp_path, epochs=2)
    for _ in range(2):
        with pytest.raises(CheckpointError):
            await loop.run()
    shutil.rmtree(checkpoints)
    hidden.rename(checkpoints)
    await loop.run()
    assert loop.status["iterations_done"] == 2 * BATCHES
    assert "loaded_from" in loop.log[BATCHES]


async def test_leftovers_of_others_are_removed_and_never_loaded(tmp_path) -> None:
    checkpoints = await saved(tmp_path)
    for number in range(100):
        shutil.copytree(newest(checkpoints), checkpoints / f".tmp-ckpt-{number:09d}-00000000")
    (checkpoints / ".tmp-ckpt-file").write_text("")
    (checkpoints / ".tmp-of-others").write_text("")
    before = [name for name in checkpoints_in(tmp_path) if not name.startswith(".tmp-ckpt")]
    await resumed(tmp_path)
    assert checkpoints_in(tmp_path) == before


async def test_what_is_no_checkpoint_is_left_alone(tmp_path) -> None:
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "notes").mkdir(parents=True)
    (checkpoints / "ckpt-of-mine").mkdir()
    (checkpoints / "README").write_text("mine")
    loop = make_loop(tmp_path, epochs=1)
    await loop.run()
    assert set(checkpoints_in(tmp_path)) > {"notes", "ckpt-of-mine", "README"}


async def test_broken_ones_are_not_removed_nor_is_the_last_whole_one(tmp_path) -> None:
    checkpoints = await saved(tmp_path)
    names = checkpoints_in(tmp_path)
    for name in names[1:]:
        flip_a_byte(checkpoints / name / "state.json", 5)
    directory = CheckpointDirectory(checkpoints)
    removed = directory.prune(2)
    assert [path.name for path in removed] == []
    assert [path.name for path in directory.prune(1)] == []
    assert checkpoints_in(tmp_path) == names


async def test_linked_checkpoint_is_not_followed(tmp_path, caplog) -> None:
    checkpoints = await saved(tmp_path)
    path = newest(checkpoints)
    path.rename(tmp_path / path.name)
    path.symlink_to(tmp_path / path.name)
    loop = await resumed(tmp_path)
    assert "is a symbolic link" in caplog.text
    assert "000000005-" in loop.log[5]["loaded_from"]


# ------------------------------------------------------------------ directories


async def test_path_that_is_a_file_is_said_before_the_first_batch(tmp_path) -> None:
    (tmp_path / "checkpoints").write_text("")
    loop = make_loop(tmp_path)
    with pytest.raises(CheckpointError, match=f"cannot be written to {tmp_path}/checkpoints"):
        await loop.run()
    assert loop.status["iterations_done"] == 0


async def test_path_below_a_file_is_said_before_the_first_batch(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    loop = make_loop(tmp_path, checkpoint=Checkpoint(tmp_path / "file" / "checkpoints"))
    with pytest.raises(CheckpointError, match="expected a directory that can be written"):
        await loop.run()


# ------------------------------------------------------------------ the log


@pytest.fixture
def behind(tmp_path):
    """A copy of the log's file as it was before the newest checkpoints."""
    return tmp_path / "behind.sqlite"


async def test_log_that_ends_before_the_checkpoint_is_refused(tmp_path, behind) -> None:
    class Copies(TrainingExtension):
        async def after_batch(self, batch) -> None:
            if self.main_loop.status["iterations_done"] == 2:
                await self.main_loop.log.flush()
                query(tmp_path / "log.sqlite", f"VACUUM INTO '{behind}'")

    checkpoint = Checkpoint(tmp_path / "checkpoints")
    await make_loop(tmp_path, Copies(), epochs=1, checkpoint=checkpoint).run()
    sequence = SavedCheckpoint.at(newest(tmp_path / "checkpoints")).log_sequence
    [(reached,)] = query(behind, "SELECT sequence FROM runs")
    behind.replace(tmp_path / "log.sqlite")
    for name in ("log.sqlite-wal", "log.sqlite-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    with pytest.raises(LogBehindError, match=f"up to commit point {reached}, but the checkpoint "
                       f"belongs to commit point {sequence}"):  # fmt: skip
        await resumed(tmp_path)


async def test_log_that_was_deleted_is_refused(tmp_path) -> None:
    await saved(tmp_path)
    (tmp_path / "log.sqlite").unlink()
    with pytest.raises(LogBehindError, match=r"up to commit point 0 \(nothing of it\)"):
        await resumed(tmp_path)


async def test_log_that_was_emptied_is_refused(tmp_path) -> None:
    await saved(tmp_path)
    (tmp_path / "log.sqlite").write_bytes(b"")
    with pytest.raises(LogFileError, match="an empty file"):
        await resumed(tmp_path)


async def test_log_that_was_copied_without_its_wal_is_refused(tmp_path) -> None:
    class Copies(TrainingExtension):
        async def after_training(self) -> None:
            await self.main_loop.log.flush()
            assert (tmp_path / "log.sqlite-wal").stat().st_size
            shutil.copy(tmp_path / "log.sqlite", tmp_path / "copy.sqlite")

    await make_loop(tmp_path, Copies(), epochs=1).run()
    (tmp_path / "copy.sqlite").replace(tmp_path / "log.sqlite")
    with pytest.raises(LogBehindError, match="up to commit point 0"):
        await resumed(tmp_path)


async def test_log_in_a_file_cannot_be_gone_on_with_in_memory(tmp_path) -> None:
    await saved(tmp_path)
    with pytest.raises(LogBehindError, match="in memory"):
        await resumed(tmp_path, backend="python")


async def test_log_in_memory_can_be_gone_on_with_in_a_file(tmp_path) -> None:
    await saved(tmp_path, backend="python")
    straight = make_loop(tmp_path / "straight", epochs=2, backend="python")
    await straight.run()
    loop = make_loop(tmp_path, epochs=2)
    await loop.run()
    assert outcome(loop) == outcome(straight)
    with read_log(tmp_path / "log.sqlite") as log:
        assert [log[time]["cost"] for time in range(1, 2 * BATCHES + 1)] == [
            straight.log[time]["cost"] for time in range(1, 2 * BATCHES + 1)
        ]


async def test_database_in_memory_is_carried(tmp_path) -> None:
    def loop_of(epochs):
        loop = make_loop(tmp_path, epochs=epochs, backend="python")
        return MainLoop(
            loop.algorithm, loop.data_stream, loop.model, SQLiteLog(":memory:"),
            extensions=list(loop.extensions), signals="off",
        )  # fmt: skip

    await loop_of(1).run()
    loop = loop_of(2)
    await loop.run()
    straight = make_loop(tmp_path / "straight", epochs=2, backend="python")
    await straight.run()
    assert outcome(loop) == outcome(straight)


async def test_fresh_run_that_resumes_leaves_no_run_behind(tmp_path) -> None:
    class Notes(TrainingExtension):
        async def before_training(self) -> None:
            self.main_loop.log.current_row["note"] = self.main_loop.log.h_uuid

    await saved(tmp_path)
    [(first,)] = query(tmp_path / "log.sqlite", "SELECT run FROM runs")
    loop = make_loop(tmp_path, Notes(), epochs=2)
    await loop.run()
    assert query(tmp_path / "log.sqlite", "SELECT run, resumed_from, forked_at FROM runs") == [
        (first, None, None),
        (loop.log.h_uuid, first, BATCHES),
    ]
    assert not any("note" in loop.log[time] for time in loop.log)


async def test_records_after_the_checkpoint_are_superseded(tmp_path) -> None:
    class Marks(TrainingExtension):
        def __init__(self, mark) -> None:
            super().__init__()
            self.mark = mark

        async def after_batch(self, batch) -> None:
            self.main_loop.log.current_row["mark"] = self.mark

        async def after_training(self) -> None:
            self.main_loop.log.current_row["only then"] = True

    checkpoint = Checkpoint(tmp_path / "checkpoints", after_n_batches=BATCHES, after_training=False)
    await make_loop(tmp_path, Marks("old"), epochs=1, checkpoint=checkpoint).run()
    await make_loop(tmp_path, Marks("new"), epochs=2).run()
    with read_log(tmp_path / "log.sqlite") as log:
        marks = [log[time].get("mark") for time in range(1, 2 * BATCHES + 1)]
        assert marks == ["old"] * BATCHES + ["new"] * BATCHES
        assert "only then" not in log[BATCHES]
        assert (await log.series("only then"))[0].tolist() == [2 * BATCHES]


# ------------------------------------------------------------------ what does not fit


def other_loop(directory, *, shape=3, stream=None, extensions=()) -> MainLoop:
    loop = make_loop(directory, epochs=2)
    parameters = ParameterDict({"w": np.zeros(shape)})
    algorithm = loop.algorithm
    algorithm.parameters = parameters
    return MainLoop(
        algorithm,
        loop.data_stream if stream is None else stream,
        model=parameters,
        log=loop.log,
        extensions=[*loop.extensions, *extensions],
        signals="off",
    )


async def test_parameter_of_another_shape_is_named_with_both_shapes(tmp_path) -> None:
    await saved(tmp_path)
    with pytest.raises(
        CheckpointValueError, match=r"parameter 'w' of the model has shape \(4,\), but \(3,\)"
    ):
        await other_loop(tmp_path, shape=4).run()


async def test_parameters_of_other_names_are_named(tmp_path) -> None:
    await saved(tmp_path)
    loop = make_loop(tmp_path)
    model = ParameterDict({"v": np.zeros(3)})
    loop = MainLoop(
        loop.algorithm, loop.data_stream, model, extensions=[Load(tmp_path / "checkpoints")]
    )
    with pytest.raises(ParameterError, match="add v; leave out w"):
        await loop.run()


async def test_stream_of_another_order_is_named(tmp_path) -> None:
    await saved(tmp_path)
    arrays = {"x": np.zeros((50, 3)), "y": np.zeros(50)}
    stream = ArrayStream(arrays, iteration_scheme=ShuffledScheme(50, 8, seed=2))
    with pytest.raises(StreamError, match="has seed 1, but the stream has 2"):
        await other_loop(tmp_path, stream=stream).run()


async def test_stream_of_another_length_is_named_with_both(tmp_path) -> None:
    await saved(tmp_path)
    arrays = {"x": np.zeros((40, 3)), "y": np.zeros(40)}
    stream = ArrayStream(arrays, iteration_scheme=SequentialScheme(40, 8))
    with pytest.raises(StreamError, match="'ShuffledScheme', but the stream has 'SequentialS"):
        await other_loop(tmp_path, stream=stream).run()


async def test_stream_without_a_state_is_named(tmp_path) -> None:
    await saved(tmp_path)
    with pytest.raises(CheckpointValueError, match=r"has no state_dict\(\), but the checkpoint"):
        await other_loop(tmp_path, stream=[{"x": 1}]).run()


async def test_generators_that_differ_are_named(tmp_path) -> None:
    await saved(tmp_path)
    loop = make_loop(tmp_path)
    loop.algorithm.register_generator("more", np.random.default_rng(1))
    with pytest.raises(CheckpointValueError, match="generators dropout; the algorithm has dropout"):
        await loop.run()


async def test_extension_that_is_gone_and_one_that_is_new_are_named(tmp_path, caplog) -> None:
    await saved(tmp_path)
    loop = make_loop(tmp_path, epochs=2)
    loop.extensions[1].name = "Others"
    await loop.run()
    assert "state of the extension 'Losses', which is not there now" in caplog.text
    assert "no state of the extension 'Others'; it begins anew" in caplog.text


async def test_extension_whose_state_does_not_fit_is_named(tmp_path) -> None:
    class Picky(TrainingDataMonitoring):
        def load_state_dict(self, state) -> None:
            raise KeyError("sums")

    await saved(tmp_path)
    loop = make_loop(tmp_path, epochs=2)
    loop.extensions[2] = Picky(["cost"], prefix="train", after_epoch=True)
    loop.extensions[2].name = "TrainingDataMonitoring"
    with pytest.raises(KeyError) as caught:
        await loop.run()
    assert "state of the extension 'TrainingDataMonitoring' was loaded" in caught.value.__notes__[0]


async def test_loop_without_a_model_is_told(tmp_path) -> None:
    async def step(batch) -> None:
        pass

    await saved(tmp_path)
    loop = MainLoop(
        step, [1], log=TrainingLog(), signals="off",
        extensions=[Load(tmp_path / "checkpoints"), FinishAfter(after_n_batches=1)],
    )  # fmt: skip
    with pytest.raises(CheckpointValueError, match="has the state of a model, but the loop's is"):
        await loop.run()


def model_loop(directory, model, finish=1, **options) -> MainLoop:
    async def step(batch) -> None:
        pass

    return MainLoop(
        step, [1, 2, 3], model, TrainingLog(), signals="off",
        extensions=[
            Checkpoint(directory, resume=True, **options), FinishAfter(after_n_batches=finish)
        ],
    )  # fmt: skip


async def test_nested_arrays_are_put_back_in_place(tmp_path) -> None:
    await model_loop(tmp_path, {"l": {"w": np.ones(2)}, "m": [np.full(1, 3.0), 7]}).run()
    model = {"l": {"w": np.zeros(2)}, "m": [np.zeros(1), 0]}
    layer, arrays = model["l"], model["m"]
    held = layer["w"], arrays[0]
    await model_loop(tmp_path, model, 2).run()
    assert [array.tolist() for array in held] == [[1, 1], [3]]
    assert (layer is model["l"], arrays[1]) == (True, 7)


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"l": {"w": np.zeros(4)}}, r"parameter 'l/w' of the model has shape \(4,\), but \(2,\)"),
        ({"l": {"w": np.zeros(2, int)}}, "'l/w' of the model has dtype int64, but float64"),
        ({"l": {"v": np.zeros(2)}}, "'l' in the model has v, but the checkpoint has w"),
        ({"k": {"w": np.zeros(2)}}, "the model has k, but the checkpoint has l"),
    ],
)
async def test_nested_model_that_is_another_is_named(tmp_path, other, what) -> None:
    await model_loop(tmp_path, {"l": {"w": np.ones(2)}}).run()
    with pytest.raises(CheckpointValueError, match=what):
        await model_loop(tmp_path, other).run()


async def test_another_precision_is_said(tmp_path, caplog) -> None:
    await model_loop(tmp_path, {"w": np.full(2, 0.1)}).run()
    model = {"w": np.zeros(2, np.float32)}
    await model_loop(tmp_path, model).run()
    assert model["w"].tolist() == np.float32([0.1, 0.1]).tolist()
    assert "'w' of the model has dtype float32, but float64 in the checkpoint" in caplog.text


async def test_another_step_rule_is_named(tmp_path) -> None:
    await saved(tmp_path)
    loop = make_loop(tmp_path)
    loop.algorithm.step_rule = Scale(0.1)
    with pytest.raises(ParameterError, match="step rule is Scale, but the state is of Adam"):
        await loop.run()


async def test_run_that_was_refused_is_not_in_the_file(tmp_path) -> None:
    await saved(tmp_path)
    (tmp_path / "log.sqlite").unlink()
    loop = make_loop(tmp_path)
    for _ in range(2):
        with pytest.raises(LogBehindError):
            await loop.run()
    assert query(tmp_path / "log.sqlite", "SELECT * FROM runs") == []
    shutil.rmtree(tmp_path / "checkpoints")
    await loop.run()
    assert query(tmp_path / "log.sqlite", "SELECT run FROM runs") == [(loop.log.h_uuid,)]
    assert len(loop.log) > BATCHES


async def test_directory_that_was_removed_in_the_run_is_made_and_locked_again(tmp_path) -> None:
    class Removes(TrainingExtension):
        async def before_batch(self, batch) -> None:
            if self.main_loop.status["iterations_done"] == 1:
                shutil.rmtree(tmp_path)
                tmp_path.mkdir()

        async def after_training(self) -> None:
            with pytest.raises(CheckpointInUseError):
                await model_loop(tmp_path, {"w": np.ones(1)}).run()

    loop = model_loop(tmp_path, {"w": np.ones(1)}, 3, after_n_batches=2)
    loop.extensions.insert(0, Removes())
    await loop.run()
    assert [path.name[:14] for path in sorted(tmp_path.iterdir())] == [
        "ckpt-000000002", "ckpt-000000003"
    ]  # fmt: skip


async def test_destination_of_a_condition_is_where_it_was_said(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = Checkpoint("all").add_condition(["after_training"], None, ["best"])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    loop = model_loop(tmp_path / "unused", {"w": np.ones(1)})
    loop.extensions[0] = checkpoint
    await loop.run()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all", "best", "elsewhere"]


@pytest.mark.parametrize("state", [None, {}, {"model": 1}, "text", 3])
def test_state_that_is_none_is_refused_at_once(tmp_path, state) -> None:
    with pytest.raises(CheckpointValueError, match="is not that of a training"):
        model_loop(tmp_path, None).load_state_dict(state)


async def test_state_that_went_through_json_is_refused_at_once(tmp_path) -> None:
    loop = model_loop(tmp_path, {"w": np.ones(1)})
    await loop.run()
    state = json.loads(json.dumps(loop.state_dict(), default=lambda array: array.tolist()))
    state["position"]["stage"] = "no such"
    with pytest.raises(CheckpointValueError, match="'no such' is not a valid Stage"):
        loop.load_state_dict(state)


async def test_means_of_other_variables_begin_anew(tmp_path, caplog) -> None:
    def loop_of(variables, finish) -> MainLoop:
        async def step(batch):
            return {"a": batch, "b": 10 * batch}

        monitor = TrainingDataMonitoring(variables, every_n_batches=4)
        checkpoint = Checkpoint(tmp_path, resume=True)
        finishes = FinishAfter(after_n_batches=finish)
        return MainLoop(
            step, [1, 2, 3, 4], extensions=[monitor, checkpoint, finishes], signals="off"
        )

    await loop_of(["a"], 2).run()
    log = await loop_of(["a", "b"], 4).run()
    assert (log[4]["a"], log[4]["b"]) == (3.5, 35.0)
    assert "monitors a, b now, but a in the checkpoint: its means begin anew" in caplog.text


async def test_training_of_very_many_epochs_is_resumed(tmp_path) -> None:
    def loop_of(finish) -> MainLoop:
        async def step(batch) -> None:
            pass

        return MainLoop(
            step,
            [1],
            log=SQLiteLog(tmp_path / "log.sqlite"),
            extensions=[
                Checkpoint(tmp_path / "c", resume=True),
                FinishAfter(after_n_epochs=finish),
            ],
            signals="off",
        )

    loop, epochs = loop_of(200_001), 200_000
    for _ in range(epochs):
        loop.log.status.advance()
        loop.log.status.end_epoch()
    await loop.run()
    again = loop_of(200_002)
    await again.run()
    assert again.status["_epoch_ends"] == list(range(1, 200_003))


async def test_tuples_of_arrays_are_filled_and_lists_of_numbers_may_grow(tmp_path) -> None:
    await model_loop(tmp_path, {"l": (np.ones(2), np.ones(1)), "history": [1, 2, 3]}).run()
    model = {"l": (np.zeros(2), np.zeros(1)), "history": []}
    held, history = model["l"], model["history"]
    await model_loop(tmp_path, model, 2).run()
    assert [array.tolist() for array in held] == [[1, 1], [1]]
    assert (model["l"] is held, history) == (True, [1, 2, 3])


@pytest.mark.parametrize(
    "other", [{"a": np.zeros(2), "t": (np.zeros(1),)}, {"a": np.zeros(2), "t": (np.zeros(1), 5)}]
)
async def test_model_that_does_not_fit_is_as_it_was(tmp_path, other) -> None:
    await model_loop(tmp_path, {"a": np.ones(2), "t": (np.ones(1), 7)}).run()
    with pytest.raises(CheckpointValueError):
        await model_loop(tmp_path, other).run()
    assert other["a"].tolist() == [0, 0]


async def test_nothing_in_the_place_of_an_array_is_refused(tmp_path) -> None:
    await model_loop(tmp_path, {"a": None}).run()
    with pytest.raises(CheckpointValueError, match="'a' in the model is array"):
        await model_loop(tmp_path, {"a": np.zeros(2)}).run()
