"""Checkpoints where nothing can be written, or nothing more."""

import shutil
import tempfile
from pathlib import Path

import pytest
from fault_tools import do_job, with_mount

from aloop.checkpoints import SavedCheckpoint


@pytest.fixture
def place():
    """A directory that another user may look into, and not write in."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def test_directory_that_cannot_be_written_is_said_before_the_first_batch(server, place) -> None:
    child = server.start("as_nobody", what="save_to", path=place / "checkpoints")
    [told], _ = child.end()
    assert told[:3] == ["failed", "CheckpointError", 0]
    assert "Permission denied" in told[3]


def test_directory_that_became_read_only_keeps_what_is_there(server, place) -> None:
    checkpoints = place / "checkpoints"
    place.chmod(0o777)
    child = server.start("as_nobody", what="save_to", path=checkpoints, read_only_after=2)
    [told], _ = child.end()
    assert told[:2] == ["failed", "CheckpointError"]
    assert "the ones before it are still there" in told[3]
    found = [path for path in checkpoints.iterdir() if path.name.startswith("ckpt")]
    assert [SavedCheckpoint.at(path).read()["position"]["iterations_done"] for path in found]


def test_full_disk_is_a_named_error_and_keeps_what_is_there(tmp_path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    prefix = with_mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", disk)
    told = do_job("fill_with_checkpoints", prefix=prefix, directory=disk)
    kinds = {line[0]: line[1:] for line in told}
    assert kinds["failed"][0] == "CheckpointError"
    assert "No space left" in kinds["failed"][1]
    assert kinds["sound"] == [1]
    assert kinds["left"] == [1], "nothing half done"
