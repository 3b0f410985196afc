"""The commands of ``python -m aloop``, on checkpoints that runs have left."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import aloop
from aloop import Checkpoint, FinishAfter, MainLoop, ParameterDict
from aloop.checkpoints import CheckpointDirectory, SavedCheckpoint
from aloop.checkpoints.published import FILES, MANIFEST, _digest_of
from aloop.cli import _human, _plain, main

BATCHES = 4


def train(path: Path, **options) -> None:
    """Leave a checkpoint of each of so many batches."""

    async def step(batch: object) -> None:
        pass

    checkpoint = Checkpoint(path, every_n_batches=1, keep=None, **options)
    loop = MainLoop(
        step,
        range(3),
        model=ParameterDict({"w": np.arange(64.0)}),
        log_backend="python",
        extensions=[FinishAfter(after_n_batches=BATCHES), checkpoint],
        signals="off",
        stall_warning_s=0,
    )
    asyncio.run(loop.run())


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "checkpoints"
    train(path)
    return path


@pytest.fixture
def directory(trained, tmp_path) -> Path:
    """The checkpoints of a run, as often as there are tests."""
    return Path(shutil.copytree(trained, tmp_path / "checkpoints"))


def newest_first(directory: Path) -> list[Path]:
    return [checkpoint.path for checkpoint in CheckpointDirectory(directory).published()[0]]


def flip(path: Path) -> None:
    """Change one byte in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def rewrite(path: Path, **changes: Any) -> None:
    """Change a manifest as a program would that knows the format."""
    manifest = json.loads((path / MANIFEST).read_text()) | changes
    del manifest["sha256"]
    (path / MANIFEST).write_text(json.dumps(manifest | {"sha256": _digest_of(manifest)}))


class Command:
    """Calls the command in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        """Give the exit status and what was printed, the errors last."""
        try:
            status = main(["checkpoints", *map(str, arguments)])
        except SystemExit as error:  # out of argparse
            status = int(str(error.code))
        return status, *self._capsys.readouterr()

    def data(self, *arguments: object) -> tuple[int, dict[str, Any]]:
        status, printed, errors = self(*arguments, "--json")
        assert errors == ""
        return status, json.loads(printed)


@pytest.fixture
def command(capsys) -> Command:
    return Command(capsys)


def states(data: dict[str, Any]) -> list[str]:
    return [checkpoint["state"] for checkpoint in data["checkpoints"]]


def rows(printed: str) -> list[list[str]]:
    """The columns of the lines of a table, without its head."""
    return [line.split() for line in printed.splitlines() if line.startswith("ckpt-")]


# ------------------------------------------------------------------ the program


def test_the_module_is_a_program(directory) -> None:
    truncate(newest_first(directory)[0] / MANIFEST)
    result = subprocess.run(
        [sys.executable, "-m", "aloop", "checkpoints", str(directory)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert result.returncode == 1
    assert len(rows(result.stdout)) == BATCHES
    assert result.stderr == ""


def test_without_arguments_it_says_what_there_is(capsys) -> None:
    assert main([]) == 0
    assert "checkpoints" in capsys.readouterr().out


def test_it_says_its_version(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"aloop {aloop.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["checkpoints"],
        ["checkpoints", ""],
        ["checkpoints", ".", "--keep", "2"],
        ["checkpoints", ".", "--broken"],
        ["checkpoints", ".", "--prune", "--keep", "0"],
        ["checkpoints", ".", "--prune", "--keep", "some"],
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: python -m aloop" in capsys.readouterr().err


def test_ctrl_c_ends_it_quietly(directory, monkeypatch, command) -> None:
    def interrupted(self: SavedCheckpoint) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(SavedCheckpoint, "verify", interrupted)
    assert command(directory, "--verify") == (130, "", "")


def test_who_reads_the_list_may_stop_early(directory) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        result = subprocess.run(
            [sys.executable, "-m", "aloop", "checkpoints", str(directory)],
            stdout=write,
            stderr=subprocess.PIPE,
            timeout=50,
            check=False,
        )
    finally:
        os.close(write)
    assert (result.returncode, result.stderr) == (141, b"")


# ------------------------------------------------------------------ the list


def test_the_newest_is_first(directory, command) -> None:
    status, printed, errors = command(directory)
    assert (status, errors) == (0, "")
    assert [row[:4] for row in rows(printed)] == [
        [path.name, str(iterations), str(epochs), "batch_done"]
        for path, iterations, epochs in zip(
            newest_first(directory), (4, 3, 2, 1), (1, 0, 0, 0), strict=True
        )
    ]


def test_a_row_says_of_which_run_how_large_and_when(directory, command) -> None:
    [newest, *_] = newest_first(directory)
    size = sum(file.stat().st_size for file in newest.iterdir())
    saved = SavedCheckpoint.at(newest)
    [row, *_] = rows(command(directory)[1])
    day, time = saved.saved_at[:10], saved.saved_at[11:19]
    assert row[4:] == [saved.run[:8], f"{size / 1024:.1f}", "KiB", day, time, "whole"]


def test_newer_is_what_was_saved_later_not_what_has_more_iterations(directory, command) -> None:
    last = newest_first(directory)[-1]
    rewrite(last, number=9)
    assert rows(command(directory)[1])[0][0] == last.name


def test_those_that_hold_parameters_only_say_so(tmp_path, command) -> None:
    train(tmp_path / "parameters", save_main_loop=False)
    status, printed, _ = command(tmp_path / "parameters")
    assert status == 0
    assert [row[-2:] for row in rows(printed)] == [["parameters", "only"]] * BATCHES


def test_an_empty_directory_has_none(tmp_path, command) -> None:
    assert command(tmp_path) == (0, f"no checkpoints in {tmp_path}\n", "")


def test_a_directory_of_other_things_has_none(tmp_path, command) -> None:
    (tmp_path / "ckpt-of-mine").mkdir()
    (tmp_path / "notes.txt").write_text("none")
    assert command(tmp_path) == (0, f"no checkpoints in {tmp_path}\n", "")


def test_a_path_that_does_not_exist_is_an_error(tmp_path, command) -> None:
    status, printed, errors = command(tmp_path / "nowhere")
    assert (status, printed) == (2, "")
    assert errors.startswith(f"aloop: {tmp_path / 'nowhere'} does not exist; expected")
    assert errors.count("\n") == 1


def test_a_path_that_is_a_file_is_an_error(tmp_path, command) -> None:
    (tmp_path / "file").write_text("")
    status, printed, errors = command(tmp_path / "file")
    assert (status, printed) == (2, "")
    assert errors.startswith(f"aloop: {tmp_path / 'file'} is no directory; expected")


def test_one_checkpoint_can_be_asked_for(directory, command) -> None:
    one = newest_first(directory)[2]
    status, data = command.data(one)
    assert status == 0
    assert [checkpoint["name"] for checkpoint in data["checkpoints"]] == [one.name]


def test_one_checkpoint_may_have_been_given_another_name(directory, command) -> None:
    best = newest_first(directory)[0].rename(directory / "best")
    status, printed, _ = command(best, "--verify")
    assert status == 0
    assert "\nbest " in printed
    assert printed.endswith("whole, sound\n")


def test_one_checkpoint_is_found_from_within(directory, monkeypatch, command) -> None:
    one = newest_first(directory)[0]
    monkeypatch.chdir(one)
    status, data = command.data(".")
    assert status == 0
    assert [checkpoint["name"] for checkpoint in data["checkpoints"]] == [one.name]


def test_one_checkpoint_that_is_broken_is_an_entry_all_the_same(directory, command) -> None:
    one = newest_first(directory)[0]
    (one / MANIFEST).unlink()
    status, data = command.data(one)
    assert (status, states(data)) == (1, ["broken"])


def test_a_truncated_manifest_is_said_and_the_others_are_listed(directory, command) -> None:
    broken = newest_first(directory)[1]
    truncate(broken / MANIFEST)
    status, printed, errors = command(directory)
    assert (status, errors) == (1, "")
    assert len(rows(printed)) == BATCHES
    [name, *_, state], why = rows(printed)[-1], printed.splitlines()[-1]
    assert (name, state) == (broken.name, "broken")
    assert f"the checkpoint file {broken / MANIFEST} is broken: " in why


def test_an_unknown_version_is_said_and_the_others_are_listed(directory, command) -> None:
    other = newest_first(directory)[0]
    rewrite(other, version=2)
    status, data = command.data(directory)
    assert status == 1
    assert states(data) == ["unverified"] * (BATCHES - 1) + ["unknown version"]
    assert "has version 2; expected 1" in data["checkpoints"][-1]["error"]


@pytest.mark.parametrize("where", ["the checkpoint", "its manifest"])
def test_a_link_is_not_followed(where, directory, tmp_path, command) -> None:
    path = newest_first(directory)[0]
    link = path if where == "the checkpoint" else path / MANIFEST
    link.rename(tmp_path / "elsewhere")
    link.symlink_to(tmp_path / "elsewhere")
    status, data = command.data(directory)
    assert status == 1
    assert data["checkpoints"][-1]["state"] == "unreadable"
    assert "symbolic link" in data["checkpoints"][-1]["error"]


def test_what_was_left_unfinished_is_counted(directory, command) -> None:
    left = newest_first(directory)[0]
    left.rename(left.with_name(f".tmp-{left.name}"))
    status, printed, _ = command(directory)
    assert status == 0
    assert len(rows(printed)) == BATCHES - 1
    assert "1 unfinished (.tmp-ckpt-*)" in printed.splitlines()[-1]


def test_what_a_run_removes_meanwhile_is_left_out(directory, monkeypatch, command) -> None:
    verify = SavedCheckpoint.verify

    def removed_meanwhile(self: SavedCheckpoint) -> None:
        if self.number == 1:
            shutil.rmtree(self.path)
        verify(self)

    monkeypatch.setattr(SavedCheckpoint, "verify", removed_meanwhile)
    status, data = command.data(directory, "--verify")
    assert (status, states(data)) == (0, ["sound"] * (BATCHES - 1))


def test_text_of_a_file_does_not_reach_the_terminal_as_it_is(directory, command) -> None:
    rewrite(newest_first(directory)[0], run="\x1b[2J\nand so on", saved_at="\x1b[31m", number=9)
    _, printed, _ = command(directory)
    assert "\x1b" not in printed
    assert [len(row) for row in rows(printed)][1:] == [10] * (BATCHES - 1)


def test_listing_changes_nothing(directory, command) -> None:
    before = sorted(directory.rglob("*"))
    command(directory, "--verify")
    assert sorted(directory.rglob("*")) == before


def test_listing_is_possible_while_a_run_uses_the_directory(directory, command) -> None:
    with claimed(directory):
        status, data = command.data(directory, "--verify")
    assert (status, states(data)) == (0, ["sound"] * BATCHES)


# ------------------------------------------------------------------ --verify


def test_verify_says_that_all_are_sound(directory, command) -> None:
    status, printed, _ = command(directory, "--verify")
    assert status == 0
    assert [row[-2:] for row in rows(printed)] == [["whole,", "sound"]] * BATCHES


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_is_found_by_verify_only(name, directory, command) -> None:
    flipped = newest_first(directory)[1] / name
    flip(flipped)
    assert command(directory)[0] == 0
    status, data = command.data(directory, "--verify")
    assert status == 1
    assert states(data) == ["sound", "broken", "sound", "sound"]
    assert str(flipped) in data["checkpoints"][1]["error"]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_found_by_verify(name, directory, command) -> None:
    missing = newest_first(directory)[0] / name
    missing.unlink()
    status, printed, _ = command(directory, "--verify")
    assert status == 1
    assert rows(printed)[0][-1] == "broken"
    assert f"    the checkpoint file {missing} is missing; " in printed


def test_a_disk_that_fails_is_no_proof_of_a_broken_file(directory, monkeypatch, command) -> None:
    def failing(self: SavedCheckpoint) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(SavedCheckpoint, "verify", failing)
    status, data = command.data(directory, "--verify")
    assert (status, states(data)) == (1, ["unreadable"] * BATCHES)


# ------------------------------------------------------------------ --prune


@contextmanager
def claimed(directory: Path):
    """As a run has it."""
    own = CheckpointDirectory(directory)
    own.claim()
    try:
        yield
    finally:
        own.release()


def size_of(*directories: Path) -> int:
    return sum(file.stat().st_size for each in directories for file in each.iterdir())


def test_prune_keeps_three(directory, command) -> None:
    *newest, oldest = newest_first(directory)
    status, printed, errors = command(directory, "--prune")
    assert (status, errors) == (0, "")
    assert sorted(directory.iterdir()) == sorted(newest)
    assert printed.startswith(f"removed {oldest.name}, ")
    assert len(rows(printed)) == 3


def test_prune_keeps_as_many_as_it_is_told(directory, command) -> None:
    newest, *others = newest_first(directory)
    freed = size_of(*others)
    status, data = command.data(directory, "--prune", "--keep", 1)
    assert status == 0
    assert list(directory.iterdir()) == [newest]
    assert [each["name"] for each in data["removed"]] == [path.name for path in others]
    assert data["freed_bytes"] == freed


def test_prune_removes_nothing_where_there_are_no_more(directory, command) -> None:
    paths = newest_first(directory)
    status, data = command.data(directory, "--prune", "--keep", 9)
    assert (status, data["removed"], data["freed_bytes"]) == (0, [], 0)
    assert newest_first(directory) == paths


def test_prune_keeps_the_newest_sound_one_though_newer_ones_are_broken(directory, command) -> None:
    first, second, sound, oldest = newest_first(directory)
    flip(first / "model.safetensors")
    (second / "state.json").unlink()
    status, data = command.data(directory, "--prune", "--keep", 1)
    assert status == 1
    assert states(data) == ["broken", "broken", "sound"]
    assert sound.exists()
    assert not oldest.exists()


def test_a_broken_manifest_is_not_counted_among_those_that_stay(directory, command) -> None:
    broken, newest, *_ = newest_first(directory)
    truncate(broken / MANIFEST)
    status, data = command.data(directory, "--prune", "--keep", 1)
    assert (status, states(data)) == (1, ["sound", "broken"])
    assert sorted(directory.iterdir()) == sorted([broken, newest])


def test_broken_ones_are_removed_when_that_is_asked_for(directory, command) -> None:
    first, second, *sound = newest_first(directory)
    truncate(first / MANIFEST)
    flip(second / "state.json")
    status, data = command.data(directory, "--prune", "--broken")
    assert (status, states(data)) == (0, ["sound", "sound"])
    assert sorted(directory.iterdir()) == sorted(sound)
    assert {each["name"] for each in data["removed"]} == {first.name, second.name}


def test_another_version_stays_though_broken_ones_are_removed(directory, command) -> None:
    other, newest, *_ = newest_first(directory)
    rewrite(other, version=2)
    status, data = command.data(directory, "--prune", "--broken", "--keep", 1)
    assert (status, states(data)) == (1, ["sound", "unknown version"])
    assert sorted(directory.iterdir()) == sorted([other, newest])


def test_a_link_stays_though_broken_ones_are_removed(directory, tmp_path, command) -> None:
    moved = newest_first(directory)[0]
    moved.rename(tmp_path / "elsewhere")
    moved.symlink_to(tmp_path / "elsewhere")
    status, _ = command.data(directory, "--prune", "--broken")
    assert status == 1
    assert moved.is_symlink()
    assert (tmp_path / "elsewhere" / MANIFEST).exists()


def test_a_file_in_the_place_of_a_checkpoint_is_a_broken_one(directory, command) -> None:
    file = directory / "ckpt-000000009-00000000"
    file.write_text("")
    assert states(command.data(directory)[1])[-1] == "broken"
    status, _ = command.data(directory, "--prune", "--broken")
    assert status == 0
    assert not file.exists()


def test_prune_is_refused_while_a_run_uses_the_directory(directory, command) -> None:
    before = newest_first(directory)
    with claimed(directory):
        status, printed, errors = command(directory, "--prune", "--keep", 1)
    assert (status, printed) == (1, "")
    assert errors.startswith(f"aloop: the checkpoint directory {directory} is in use by process ")
    assert errors.count("\n") == 1
    assert newest_first(directory) == before


def test_prune_lets_others_have_the_directory_again(directory, command) -> None:
    assert command(directory, "--prune")[0] == 0
    with claimed(directory):
        pass


def test_prune_removes_what_was_left_unfinished(directory, command) -> None:
    left = newest_first(directory)[0]
    freed = size_of(left)
    left.rename(left.with_name(f".tmp-{left.name}"))
    status, data = command.data(directory, "--prune")
    assert (status, data["removed_unfinished"], data["freed_bytes"]) == (0, 1, freed)
    assert data["unfinished"] == 0
    assert len(list(directory.iterdir())) == BATCHES - 1


def test_prune_leaves_alone_a_directory_that_has_no_checkpoints(tmp_path, command) -> None:
    (tmp_path / ".tmp-of-another-program").write_text("")
    status, printed, _ = command(tmp_path, "--prune")
    assert (status, printed) == (0, "0 removed, and 0 unfinished; 0 B freed; 0 left\n")
    assert (tmp_path / ".tmp-of-another-program").exists()


def test_one_checkpoint_cannot_be_pruned(directory, command) -> None:
    one = newest_first(directory)[0]
    status, _, errors = command(one, "--prune")
    assert status == 2
    assert "--prune removes from a directory of checkpoints" in errors
    assert one.exists()


def test_what_cannot_be_removed_is_said_and_the_others_are_removed(
    directory, monkeypatch, command
) -> None:
    _, stuck, *others = newest_first(directory)
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self == stuck:
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    status, data = command.data(directory, "--prune", "--keep", 1)
    assert status == 1
    assert data["checkpoints"][1]["error"].startswith("it could not be removed: ")
    assert [each["name"] for each in data["removed"]] == [path.name for path in others]


def test_a_warning_of_the_library_is_a_line_of_errors(directory, monkeypatch, command) -> None:
    def failing(path: Path, *, ignore_errors: bool = False) -> None:
        raise PermissionError(13, "Permission denied")

    (directory / ".tmp-ckpt-000000001-00000000").mkdir()
    monkeypatch.setattr(shutil, "rmtree", failing)
    status, printed, errors = command(directory, "--prune", "--keep", 9)
    assert status == 0
    assert errors.startswith("aloop: ")
    assert "could not be removed: PermissionError" in errors
    assert "1 unfinished" in printed.splitlines()[-1]


# ------------------------------------------------------------------ --json


def test_json_has_all_that_is_known(directory, command) -> None:
    status, data = command.data(directory)
    saved = SavedCheckpoint.at(newest_first(directory)[0])
    assert status == 0
    assert (data["path"], data["unfinished"]) == (str(directory), 0)
    assert data["checkpoints"][0] == {
        "name": saved.path.name,
        "path": str(saved.path),
        "state": "unverified",
        "error": None,
        "bytes": size_of(saved.path),
        "number": 4,
        "saved_at": saved.saved_at,
        "position": {
            "epochs_done": 1,
            "iterations_done": 4,
            "batch": 1,
            "stage": "batch_done",
        },
        "run": saved.run,
        "is_whole": True,
    }


def test_json_has_none_where_a_manifest_says_nothing(directory, command) -> None:
    broken = newest_first(directory)[0]
    (broken / MANIFEST).unlink()
    status, data = command.data(directory)
    assert status == 1
    assert data["checkpoints"][-1] == {
        "name": broken.name,
        "path": str(broken),
        "state": "broken",
        "error": data["checkpoints"][-1]["error"],
        "bytes": size_of(broken),
        "number": None,
        "saved_at": None,
        "position": None,
        "run": None,
        "is_whole": None,
    }


# ------------------------------------------------------------------ words


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (5 << 20, "5.0 MiB"),
        (3 << 30, "3.0 GiB"),
        (2048 << 40, "2048.0 TiB"),
    ],
)
def test_sizes_are_for_people(size, expected) -> None:
    assert _human(size) == expected


def test_text_stays_on_its_line() -> None:
    assert _plain("a\nb\x1b[0m\udcff é") == "a\\nb\\x1b[0m\\udcff é"
