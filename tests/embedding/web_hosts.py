"""Web servers as processes of their own, with an app of the page in them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from page import code

HERE = Path(__file__).parent

COMMANDS = {
    "uvicorn": "-m uvicorn web_probe:app --port 0 --loop asyncio",
    "uvicorn --loop uvloop": "-m uvicorn web_probe:app --port 0 --loop uvloop",
    "hypercorn": "-m hypercorn web_probe:app --bind 127.0.0.1:0",
    "hypercorn --workers 0": "-m hypercorn web_probe:app --bind 127.0.0.1:0 --workers 0",
    "hypercorn.serve": "serve.py",
    "gunicorn": "-m gunicorn web_probe:app --bind 127.0.0.1:0",
}
"""How each server is started."""


class Host:
    """A server that runs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.events: list[dict[str, Any]] = []
        self.lines: list[str] = []
        """What the server itself has printed."""

    def read(self) -> dict[str, Any] | None:
        """Read a line, and give the event that it tells of."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the server has ended: {self.events} {self.output}"
        if not line.startswith("@ "):
            self.lines.append(line)
            return None
        self.events.append(json.loads(line[2:]))
        return self.events[-1]

    def wait_for(self, name: str, times: int = 1) -> dict[str, Any]:
        """Wait until an event has happened so often, and give the last one."""
        while len(self.all(name)) < times:
            self.read()
        return self.all(name)[-1]

    def wait_until_it_says(self, text: str) -> None:
        while text not in self.output:
            self.read()

    def wait_until_it_serves(self) -> None:
        self.wait_for("serving")
        while self.port is None:
            self.read()

    def all(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == name]

    @property
    def port(self) -> str | None:
        found = re.search(r"http://127\.0\.0\.1:(\d+)", self.output)
        return found and found[1]

    def request(self, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310 - of this machine
            return json.load(response)

    def send(self, number: signal.Signals, to: str = "main") -> float:
        """Send a signal, and give when.

        Parameters:
            number: the signal.
            to: "main", the process that was started; "all" of the server's, as a terminal does;
                or the "worker" that has the app.
        """
        at = time.monotonic()
        if to == "all":
            os.killpg(self.process.pid, number)
        else:
            os.kill(self.process.pid if to == "main" else self.events[-1]["pid"], number)
        return at

    def wait(self) -> int:
        """Wait until all processes of the server have ended, and give the exit code."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("@ "):
                self.events.append(json.loads(line[2:]))
            else:
                self.lines.append(line)
        return self.process.wait()

    def wait_after(self, sent_at: float) -> float:
        """Wait until the server has ended, and give the seconds since a signal was sent."""
        self.wait()
        return time.monotonic() - sent_at

    @property
    def output(self) -> str:
        return "".join(self.lines)


@contextmanager
def serving(
    name: str, directory: Path, app: str = "service", arguments: str = "", **options: object
) -> Iterator[Host]:
    """Start a server with an app, in a directory, which then holds the log of the app."""
    directory.mkdir(exist_ok=True)
    (directory / "service.py").write_text(code("FastAPI and uvicorn"))
    (directory / "fits.py").write_text(code("FastAPI and uvicorn", 1))
    serve = code("hypercorn").replace("from service", "from web_probe").replace(":8000", ":0")
    (directory / "serve.py").write_text(serve)
    (directory / "gunicorn.conf.py").write_text(code("gunicorn"))
    paths = [str(directory), str(HERE), os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(
        [sys.executable, *COMMANDS[name].split(), *arguments.split()],
        cwd=directory,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "HOME": str(directory)}
        | {"PROBE_APP": app}
        | {f"PROBE_{key.upper()}": str(value) for key, value in options.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield Host(process)
    finally:
        with suppress(ProcessLookupError):  # none is left, as it should be
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
