"""What the README and the docs say is what happens."""

import ast
import json
import os
import re
import shlex
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from aloop import (
    FinishAfter,
    MainLoop,
    SQLiteLog,
    TrainingDataMonitoring,
    TrainingExtension,
    config,
    read_log,
)

ROOT = Path(__file__).parents[1]


def blocks(document: str, language: str) -> list[str]:
    """The code blocks of a language in a document."""
    text = (ROOT / document).read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def run(arguments: list[str], directory: Path) -> str:
    """Run Python in a directory, which is its home too, and give what it printed."""
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=directory,
        env=os.environ | {"HOME": str(directory)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_example_of_the_readme_trains(tmp_path: Path) -> None:
    (block,) = blocks("README.md", "python")
    assert len(block.splitlines()) <= 22
    printed = run(["-c", block], tmp_path)
    cost, mean = re.findall(r"^cost (\S+) mean (\S+)$", printed, flags=re.MULTILINE)[0]
    assert 0.1 < float(cost) < 1.0
    assert 2.0 < float(mean) < 2.5
    with sqlite3.connect(tmp_path / "aloop_log.sqlite") as database:
        counted = database.execute("SELECT COUNT(*) FROM entries WHERE key = 'cost'").fetchone()
    database.close()
    assert counted == (50,)


def test_the_readme_starts_with_the_two_commands() -> None:
    commands = blocks("README.md", "sh")[0]
    assert commands.startswith("pip install uv && uv run examples/digits.py")
    assert "\nuv run pytest" in commands


def test_every_document_that_is_linked_exists() -> None:
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name} links to {link}"


async def step(batch: int) -> dict[str, int]:
    return {"cost": batch}


async def trained(directory: Path) -> SQLiteLog:
    """Make run.sqlite: a run of six batches and one that was resumed from it."""
    log = SQLiteLog(directory / "run.sqlite")
    loop = MainLoop(
        step,
        range(4),
        log=log,
        name="a run",
        extensions=[
            TrainingDataMonitoring(["cost"], every_n_batches=1),
            FinishAfter(every_n_batches=6),
        ],
    )
    await loop.run()
    await loop.run()
    return log


async def execute(block: str, names: dict[str, Any]) -> dict[str, Any]:
    """Run a block of Python that may await, with what it finds in the reader's program."""
    code = compile(block, "docs", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(code, names)  # noqa: S307 - our own documents
    if result is not None:
        await result
    return names


async def test_the_blocks_of_the_log_page_work(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    log = await trained(tmp_path)
    log[10]["cost"] = 1
    mapping, outside, here, elsewhere = blocks("docs/log.md", "python")
    await execute(mapping, {"log": log})
    assert log.current_row["cost"] == 0.3
    await log.flush()
    await execute(here.replace("frame = log.to_dataframe()", ""), {"log": log})
    assert capsys.readouterr().out.splitlines()[-1] == "12 0.3"
    names = await execute(elsewhere, {})
    assert names["costs"].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 0.3]
    assert capsys.readouterr().out.splitlines()[-1].startswith("12 {'cost': 0.3")
    (tmp_path / "run.sqlite").unlink()
    await execute(outside, {"SQLiteLog": SQLiteLog})
    with read_log("run.sqlite") as read:
        assert read[0]["note"] == "before the run"


@pytest.mark.slow
async def test_the_blocks_of_the_checkpoints_page_work(tmp_path: Path) -> None:
    script, extension = blocks("docs/checkpoints.md", "python")
    longer = script.replace("after_n_epochs=10", "after_n_epochs=12")
    straight = tmp_path / "straight"
    straight.mkdir()
    printed = [run(["-c", script], tmp_path) for _ in range(2)]
    assert printed[0] == printed[1]
    assert printed[0].startswith("500 [")
    assert run(["-c", longer], tmp_path) == run(["-c", longer], straight) != printed[0]
    commands = "\n".join(blocks("docs/checkpoints.md", "sh"))
    for command in re.findall("^python (-m aloop .*?)(?:#|$)", commands, flags=re.MULTILINE):
        assert "ckpt-000000600-" in run(shlex.split(command), tmp_path)
    names = await execute(extension, {"TrainingExtension": TrainingExtension})
    average = names["MovingAverage"]()
    loop = MainLoop(step, range(1, 4), extensions=[average, FinishAfter(after_n_epochs=1)])
    await loop.run()
    again = names["MovingAverage"]()
    again.load_state_dict(loop.state_dict()["extensions"]["MovingAverage"])
    assert again.average == loop.log[3]["average"] > 0


async def test_the_queries_of_the_log_page_work(tmp_path: Path) -> None:
    await trained(tmp_path)
    (block,) = blocks("docs/log.md", "sql")
    with closing(sqlite3.connect(tmp_path / "run.sqlite")) as database:
        latest, progress, history = [
            database.execute(query).fetchall() for query in block.split(";") if query.strip()
        ]
    assert latest == [(12, 3), (11, 2), (10, 1), (9, 0), (8, 3), (7, 2)]
    assert [(name, iterations) for _, name, iterations in progress] == [("a run", 6), ("a run", 12)]
    costs = [(time, value) for time, key, value, _ in history if key == "cost"]
    assert costs == [(i + 1, i % 4) for i in range(12)]


@pytest.mark.readers
async def test_the_queries_of_the_log_page_work_in_the_shell(tmp_path: Path) -> None:
    await trained(tmp_path)
    (block,) = blocks("docs/log.md", "sql")
    shell = ["sqlite3", "-readonly", "run.sqlite"]
    result = subprocess.run(
        shell, input=block, cwd=tmp_path, capture_output=True, text=True, timeout=50, check=True
    )
    assert result.stderr == ""
    assert result.stdout.splitlines()[0] == "12|3.0"
    assert "12|cost|3.0|0" in result.stdout.splitlines()


@pytest.mark.readers
async def test_datasette_reads_a_log(tmp_path: Path) -> None:
    await trained(tmp_path)
    block = next(b for b in blocks("docs/log.md", "sh") if b.startswith("datasette"))
    command = [sys.executable, "-m", *shlex.split(block)]
    result = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=50, check=True
    )
    rows = json.loads(result.stdout)
    assert [(row["time"], row["value"]) for row in rows[:2]] == [(12, 3), (11, 2)]


@pytest.mark.readers
async def test_duckdb_reads_a_log(tmp_path: Path, monkeypatch) -> None:
    import duckdb
    import duckdb_extensions

    await trained(tmp_path)
    monkeypatch.chdir(tmp_path)
    duckdb_extensions.import_extension("sqlite_scanner")
    (block,) = blocks("docs/log.md", "sql duckdb")
    with duckdb.connect(config={"autoinstall_known_extensions": False}) as connection:
        found = connection.execute(block).fetchall()
    assert found == [("a run", "cost", 1.5, 12)]


@pytest.mark.readers
async def test_pandas_reads_a_log(tmp_path: Path, monkeypatch) -> None:
    log = await trained(tmp_path)
    monkeypatch.chdir(tmp_path)
    (block,) = blocks("docs/log.md", "python pandas")
    frame = (await execute(block, {}))["frame"]
    assert frame["cost"].dropna().tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3]
    with read_log("run.sqlite") as read:
        assert read.to_dataframe()["cost"].tolist() == log.to_dataframe()["cost"].tolist()


def test_the_configuration_page_lists_every_setting() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| `(\w+)` \|", (ROOT / "docs/configuration.md").read_text(), re.MULTILINE
    )
    settings = {key: setting.env_var for key, setting in config._settings.items()}
    assert dict(rows) == settings


def test_the_schema_page_names_the_version_of_the_schema() -> None:
    from aloop.log.schema import SCHEMA_VERSION

    assert f"the version of the schema, {SCHEMA_VERSION};" in (ROOT / "docs/log.md").read_text()


@pytest.mark.parametrize("path", ["README.md", "CHANGELOG.md", "docs", "examples", "aloop", ".ci"])
def test_nothing_names_a_registry_or_a_path_of_a_machine(path: str) -> None:
    found = ROOT / path
    for file in [found] if found.is_file() else [f for f in found.rglob("*") if f.is_file()]:
        if "__pycache__" not in file.parts:
            assert not re.search(r"pypi\.org|pythonhosted|/home/\w+|/root/", file.read_text())
