"""The page about how it is tested: its blocks run, and its tables are complete."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from aloop.faults import POINTS

PAGE = (Path(__file__).parents[2] / "docs/how-it-is-tested.md").read_text()
BLOCKS = dict(re.findall(r"```python (\w+\.py)\n(.*?)```", PAGE, re.DOTALL))
MARKS = {"test_order.py": (), "test_power.py": (pytest.mark.power,)}
TESTS = [name for name in BLOCKS if name.startswith("test_")]


def test_every_block_is_a_file_that_is_run() -> None:
    assert len(BLOCKS) == PAGE.count("```python") == len(TESTS) + 1
    assert "training.py" in BLOCKS


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=MARKS.get(name, (pytest.mark.slow,))) for name in TESTS]
)
@pytest.mark.timeout(300)
def test_the_tests_of_the_page_pass(name: str, tmp_path: Path) -> None:
    for file in ("training.py", name):
        (tmp_path / file).write_text(BLOCKS[file])
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^\d passed", done.stdout, re.MULTILINE)


def test_the_page_lists_every_fault_point() -> None:
    table = PAGE.partition("| fault point | the moment |")[2]
    rows = re.findall(r"^\| `([\w.]+)` \| (.*) \|$", table, re.MULTILINE)
    assert rows == [
        (name, f"{point.when}{'; an error can come up' if point.may_raise else ''}")
        for name, point in POINTS.items()
    ]
