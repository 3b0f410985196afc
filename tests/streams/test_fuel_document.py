"""What the page on Fuel says is what happens."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "fuel.md").read_text()


def run(code: str, directory: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=directory,
        env=os.environ | {"HOME": str(directory)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_blocks_of_the_page_work(tmp_path: Path) -> None:
    script, server = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    straight = tmp_path / "straight"
    straight.mkdir()
    stopped = script.replace("after_n_epochs=10", "after_n_batches=123")
    assert stopped != script
    assert run(stopped, tmp_path).startswith("123 [")
    assert run(script, tmp_path) == run(script, straight)
    assert run(f"{server}\nprint(stream.sources)\nstream.close()", tmp_path) == "('x', 'y')\n"
