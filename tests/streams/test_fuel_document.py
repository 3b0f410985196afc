"""What the page on Fuel says is what happens."""

from pathlib import Path

import pytest
from test_documents import blocks
from test_documents import run as run_python


def run(code: str, directory: Path) -> str:
    return run_python(["-W", "error", "-c", code], directory)


@pytest.mark.slow
def test_the_blocks_of_the_page_work(tmp_path: Path) -> None:
    script, server = blocks("docs/fuel.md", "python")
    straight = tmp_path / "straight"
    straight.mkdir()
    stopped = script.replace("after_n_epochs=10", "after_n_batches=123")
    assert stopped != script
    assert run(stopped, tmp_path).startswith("123 [")
    assert run(script, tmp_path) == run(script, straight)
    assert run(f"{server}\nprint(stream.sources)\nstream.close()", tmp_path) == "('x', 'y')\n"
