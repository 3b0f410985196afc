"""The examples, run as a user runs them."""

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import IO

import pytest

DIGITS = Path(__file__).parents[1] / "examples" / "digits.py"


def start(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(DIGITS), *arguments],
        cwd=directory,
        env=os.environ | {"HOME": str(directory)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def query(directory: Path, sql: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(directory / "digits.sqlite")) as database:
        return database.execute(sql).fetchall()


def read_until(stream: IO[str], text: str) -> str:
    """Read what comes until the text has come, or the stream has ended."""
    heard = ""
    while not heard.endswith(text) and (character := stream.read(1)):
        heard += character
    return heard


def interrupted(directory: Path, presses: int) -> tuple[str, str]:
    """Start a long training, press Ctrl-C so often when it trains, and give what it printed."""
    process = start(directory, "--epochs", "100000")
    assert process.stdout is not None
    assert process.stderr is not None
    heard = read_until(process.stderr, "Epoch 3:")
    for _ in range(presses):
        process.send_signal(signal.SIGINT)
        heard += read_until(process.stderr, "SIGINT: stopping after this")
    # What is left of both, in turn: together they are far less than a pipe holds.
    heard += process.stderr.read()
    out = process.stdout.read()
    assert process.wait(timeout=20) == 0, heard
    process.stdout.close()
    process.stderr.close()
    return out, heard


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """Run the example once, and give where it was run and what it printed."""
    directory = tmp_path_factory.mktemp("digits")
    process = start(directory)
    out, err = process.communicate(timeout=50)
    assert process.returncode == 0, err
    return directory, out, err


def test_digits_learns_real_digits_and_says_how_well(trained) -> None:
    directory, out, err = trained
    *_, path, _, accuracy = out.splitlines()
    assert str(directory / "digits.sqlite") in path
    share = re.fullmatch(r"test accuracy (\d+\.\d) %", accuracy)
    assert share is not None
    assert float(share[1]) >= 95
    assert "Epoch 20: 100%" in err


def test_digits_leaves_one_record_for_each_batch_and_quantity(trained) -> None:
    counts = dict(query(trained[0], "SELECT key, COUNT(*) FROM entries GROUP BY key"))
    batches = 20 * 45  # of 32 of the 1,437 training images, the last of an epoch shorter
    assert counts == {
        "batch_cost": batches,
        "train_cost": 20,
        "test_accuracy": 20,
        "training_finish_requested": 1,
        "training_finished": 1,
        "saved_to": batches // 25,
        "checkpoint_bytes": batches // 25,
        "checkpoint_seconds": batches // 25,
    }


@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="needs the sqlite3 shell")
def test_the_sqlite3_shell_shows_the_records(trained) -> None:
    sql = "SELECT COUNT(*) FROM entries WHERE key = 'batch_cost'"
    shell = subprocess.run(
        ["sqlite3", "digits.sqlite", sql],
        cwd=trained[0],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shell.stdout == "900\n"


@pytest.mark.slow
def test_ctrl_c_once_finishes_the_epoch(tmp_path: Path) -> None:
    out, err = interrupted(tmp_path, 1)
    assert "SIGINT: stopping after this epoch" in err
    assert re.search(r"test accuracy \d+\.\d %\n$", out)
    done = dict(query(tmp_path, "SELECT key, value FROM status"))
    assert done["iterations_done"] == 45 * done["epochs_done"]
    assert done["epoch_interrupt_received"] == 1
    records = dict(query(tmp_path, "SELECT key, time FROM entries WHERE key LIKE '%ing_finished'"))
    assert records == {"training_finished": done["iterations_done"]}


@pytest.mark.slow
def test_ctrl_c_twice_finishes_the_batch(tmp_path: Path) -> None:
    out, err = interrupted(tmp_path, 2)
    assert re.search(r"test accuracy \d+\.\d %\n$", out)
    done = dict(query(tmp_path, "SELECT key, value FROM status"))
    # An epoch takes 50 ms: it may be over before the second press comes.
    assert done["batch_interrupt_received"] == 1 or done["iterations_done"] % 45 == 0
    assert ("stopping after this batch" in err) == (done["batch_interrupt_received"] == 1)
    keys = {key for (key,) in query(tmp_path, "SELECT key FROM entries")}
    assert "training_finished" in keys


def stopped_somewhere(directory: Path, press: signal.Signals) -> None:
    """Start the example, and stop it or kill it when it has trained for a while."""
    process = start(directory, "--resume")
    assert process.stdout is not None
    assert process.stderr is not None
    for _ in range(3):
        read_until(process.stderr, "Epoch ")
    process.send_signal(press)
    process.communicate(timeout=30)
    assert process.returncode == (0 if press == signal.SIGINT else -press)


@pytest.mark.slow
@pytest.mark.parametrize("presses", [["SIGINT"], ["SIGKILL", "SIGINT", "SIGKILL"]])
def test_digits_resumed_ends_as_if_nothing_had_happened(trained, tmp_path: Path, presses) -> None:
    for press in presses:
        stopped_somewhere(tmp_path, signal.Signals[press])
    process = start(tmp_path, "--resume")
    out, err = process.communicate(timeout=50)
    assert process.returncode == 0, err
    assert out.splitlines()[-2:] == trained[1].splitlines()[-2:]
    assert re.search(r"Epoch [2-9]:|Epoch 1\d:", err)
    assert "Epoch 1:" not in err
