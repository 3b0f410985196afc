"""What the README and the docs say is what happens."""

import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from aloop import FinishAfter, MainLoop, SQLiteLog, TrainingDataMonitoring, config

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


async def test_the_queries_of_the_log_page_work(tmp_path: Path) -> None:
    async def step(batch: int) -> dict[str, int]:
        return {"cost": batch}

    log = SQLiteLog(tmp_path / "log.sqlite")
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
    (block,) = blocks("docs/log.md", "sql")
    database = sqlite3.connect(tmp_path / "log.sqlite")
    latest, progress, history = [
        database.execute(query).fetchall() for query in block.split(";") if query.strip()
    ]
    database.close()
    assert latest == [(12, 3), (11, 2), (10, 1), (9, 0), (8, 3), (7, 2)]
    assert [(name, iterations) for _, name, iterations in progress] == [("a run", 6), ("a run", 12)]
    costs = [(time, value) for time, key, value, _ in history if key == "cost"]
    assert costs == [(i + 1, i % 4) for i in range(12)]


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
