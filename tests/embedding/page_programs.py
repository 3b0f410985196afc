"""Programs of the page, as processes of their own that tell what they are at."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aloop import read_log


def changed(text: str, changes: dict[str, str]) -> str:
    """Give a text in which each of these has been replaced, once."""
    for old, new in changes.items():
        assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in\n{text}"
        text = text.replace(old, new)
    return text


class Program:
    """A program that runs, its standard output and error as one stream of lines."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []

    def wait_for(self, part: str) -> None:
        """Read until a line with this in it comes."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if part in line:
                return
        raise AssertionError(f"no {part!r} in\n{self.output}")

    def send(self, number: signal.Signals, until: str = "") -> None:
        """Send a signal, and wait until a line says that it was heard."""
        os.kill(self.process.pid, number)
        if until:
            self.wait_for(until)

    def end(self, text: str = "") -> int:
        """Wait for the end, after giving it this as input; give the exit code."""
        rest, _ = self.process.communicate(text or None, timeout=30)
        self.lines += rest.splitlines(keepends=True)
        return self.process.returncode

    @property
    def output(self) -> str:
        return "".join(self.lines)


@contextmanager
def running(
    arguments: list[str], directory: Path, code: str | None = None, **environment: str
) -> Iterator[Program]:
    """Start Python with these arguments; the code becomes ``program.py`` in the directory."""
    if code is not None:
        (directory / "program.py").write_text(code)
    process = subprocess.Popen(
        [sys.executable, "-u", *arguments],
        cwd=directory,
        env=os.environ | {"HOME": str(directory)} | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield Program(process)
    finally:
        process.kill()  # of this process alone, and nothing if it has ended
        process.communicate()


def last_row(path: Path) -> dict[str, object]:
    """Read the last row of a log out of its file, with how far its run got."""
    with read_log(path) as log:
        done, epochs = log.status["iterations_done"], log.status["epochs_done"]
        return dict(log.current_row) | {"iterations_done": done, "epochs_done": epochs}
