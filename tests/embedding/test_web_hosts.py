"""A run in a web server: both stop when they are told to, and each ends as it does alone."""

import re
import signal
import socket
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from web_hosts import Host, serving

from aloop import read_log

STEP_S = 0.3

STOPS = [
    ("uvicorn", signal.SIGINT, "all"),
    ("uvicorn", signal.SIGTERM, "main"),
    ("uvicorn --loop uvloop", signal.SIGINT, "all"),
    ("uvicorn --loop uvloop", signal.SIGTERM, "main"),
    ("hypercorn.serve", signal.SIGINT, "all"),
    ("hypercorn.serve", signal.SIGTERM, "main"),
    ("hypercorn", signal.SIGINT, "all"),
    ("hypercorn", signal.SIGTERM, "main"),
    ("gunicorn", signal.SIGINT, "all"),
    ("gunicorn", signal.SIGTERM, "main"),
]
FAST = ("uvicorn",)
each_stop = pytest.mark.parametrize(
    ("name", "number", "to"),
    [
        pytest.param(
            *stop,
            id=f"{stop[0]}-{stop[1].name}-to-{stop[2]}",
            marks=() if stop[0] in FAST else pytest.mark.slow,
        )
        for stop in STOPS
    ],
)


@dataclass
class Ending:
    """How a server ended, and how one without a run does."""

    host: Host
    exit_code: int
    sent_at: float
    alone: Host
    alone_exit_code: int
    last_row: dict[str, Any]
    costs: int


def last_row(log: Path) -> dict[str, Any]:
    with read_log(log) as run:
        return dict(run.current_row)


def number_of_costs(log: Path) -> int:
    with read_log(log) as run:
        return sum("cost" in run[time] for time in run)


class Endings:
    """Stops each server in each way, once, and keeps how it ended."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.of: dict[tuple[str, signal.Signals, str], Ending] = {}

    def get(self, name: str, number: signal.Signals, to: str) -> Ending:
        if (name, number, to) not in self.of:
            self.stop([stop for stop in STOPS if stop[0] == name])
        return self.of[name, number, to]

    def stop(self, stops: list[tuple[str, signal.Signals, str]]) -> None:
        """Stop servers that are there side by side, for they take long to start."""
        with ExitStack() as stack:
            started = []
            for place, (name, number, to) in enumerate(stops):
                directory = self.directory / re.sub(r"\W", "", f"{name}{place}")
                host = stack.enter_context(serving(name, directory, step=STEP_S))
                alone = stack.enter_context(serving(name, directory / "alone", "bare"))
                started.append((host, alone, directory, (name, number, to)))
            sent = []
            for host, alone, _, (_, number, to) in started:
                alone.wait_until_it_serves()
                alone.send(number, to)
                host.wait_until_it_serves()
                assert host.request("/status")["iterations_done"] < 100
                host.wait_for("step", 2)
                sent.append(host.send(number, to))
            for (host, alone, directory, stop), sent_at in zip(started, sent, strict=True):
                exit_codes = host.wait(), alone.wait()
                log = directory / "run.sqlite"
                self.of[stop] = Ending(
                    host,
                    exit_codes[0],
                    sent_at,
                    alone,
                    exit_codes[1],
                    last_row(log),
                    number_of_costs(log),
                )


@pytest.fixture(scope="module")
def endings(tmp_path_factory: pytest.TempPathFactory) -> Endings:
    return Endings(tmp_path_factory.mktemp("servers"))


@each_stop
def test_the_exit_code_is_what_the_server_has_alone(endings, name, number, to) -> None:
    ending = endings.get(name, number, to)
    assert ending.exit_code == ending.alone_exit_code, ending.host.output


@each_stop
def test_the_server_says_what_it_says_alone(endings, name, number, to) -> None:
    ending = endings.get(name, number, to)

    def said(host: Host) -> list[str]:
        """What it has to say, whatever comes first of what its processes say at once."""
        varies = "Control socket|was sent SIG|closing socket"
        of_the_run = "GET /status|^SIGINT: stopping after this batch"
        lines = [line for line in host.lines if not re.search(f"{varies}|{of_the_run}", line)]
        return sorted(re.sub(r"\d+", "#", line) for line in lines)

    assert said(ending.host) == said(ending.alone)


@each_stop
def test_the_server_ends_its_lifespan_within_the_batch_and_a_second(
    endings, name, number, to
) -> None:
    ending = endings.get(name, number, to)
    (ended,) = ending.host.all("ended")
    assert 0 < ended["at"] - ending.sent_at < STEP_S + 1.0


@each_stop
def test_the_step_in_flight_settles_and_the_log_has_every_batch(endings, name, number, to) -> None:
    ending = endings.get(name, number, to)
    begun, settled = len(ending.host.all("step")), len(ending.host.all("settled"))
    assert 2 <= begun < 100
    assert begun == settled == ending.costs


@each_stop
def test_the_last_row_says_how_the_run_was_ended(endings, name, number, to) -> None:
    row = endings.get(name, number, to).last_row
    assert row["batch_interrupt_received"] is True
    assert row["training_finished"] is True
    assert "step_abandoned" not in row
    # The worker of hypercorn's command hears no signal.
    cause = "left running()" if name == "hypercorn" else number.name
    assert row["interrupt_cause"] == cause


@each_stop
def test_the_handlers_after_the_run_are_those_before_it(endings, name, number, to) -> None:
    host = endings.get(name, number, to).host
    assert {step["are_back"] for step in host.all("step")} == {False}
    assert host.all("ended")[0]["are_back"] is True


@pytest.mark.parametrize(
    "name", ["uvicorn", pytest.param("hypercorn.serve", marks=pytest.mark.slow)]
)
def test_a_run_that_is_over_leaves_the_server_its_handlers(tmp_path, name) -> None:
    with serving(name, tmp_path, step=0, finish_after=3) as host:
        host.wait_until_it_serves()
        assert host.request("/after-the-run") == {"are_back": True}
        assert host.request("/status")["iterations_done"] == 3
        sent_at = host.send(signal.SIGTERM)
        host.wait()
        assert host.all("ended")[0]["at"] - sent_at < 1.0
    row = last_row(tmp_path / "run.sqlite")
    assert row["training_finished"] is True
    assert "batch_interrupt_received" not in row


@pytest.mark.parametrize(
    "name", ["uvicorn", pytest.param("hypercorn.serve", marks=pytest.mark.slow)]
)
def test_a_run_that_waits_for_a_batch_is_left_at_once(tmp_path, name) -> None:
    with serving(name, tmp_path, step=0, batches=0) as host:
        host.wait_until_it_serves()
        host.request("/batches", [1.0, 2.0])
        host.wait_for("settled")
        sent_at = host.send(signal.SIGTERM)
        host.wait()
        assert host.all("ended")[0]["at"] - sent_at < 1.0
    row = last_row(tmp_path / "run.sqlite")
    assert row["interrupt_cause"] == "SIGTERM"
    assert row["training_finished"] is True


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("uvicorn", "hang"),
        pytest.param("uvicorn", "thread", marks=pytest.mark.slow),
        pytest.param("gunicorn", "thread", marks=pytest.mark.slow),
    ],
)
def test_a_second_ctrl_c_ends_the_server_though_a_step_hangs(tmp_path, name, step) -> None:
    with serving(name, tmp_path, step=step) as host:
        host.wait_until_it_serves()
        host.wait_for("step")
        host.send(signal.SIGINT, "all")
        host.wait_until_it_says("Waiting for application shutdown.")
        gone_after_s = host.wait_after(host.send(signal.SIGINT, "all"))
    assert gone_after_s < 2.5
    row = last_row(tmp_path / "run.sqlite")
    assert row["step_abandoned"] is True
    assert "training_finished" not in row


@pytest.mark.slow
def test_a_forced_exit_that_leaves_out_the_lifespan_ends_the_run(tmp_path) -> None:
    with serving("uvicorn", tmp_path, step="hang") as host:
        host.wait_until_it_serves()
        host.wait_for("step")
        with socket.create_connection(("127.0.0.1", int(host.port or 0))) as client:
            client.sendall(b"GET /hang HTTP/1.1\r\nHost: localhost\r\n\r\n")
            host.wait_for("hanging")
            host.send(signal.SIGINT, "all")
            host.wait_until_it_says("Waiting for connections to close.")
            sent_at = host.send(signal.SIGINT, "all")
        # From Python 3.12 on the server waits for who is connected, whatever it was told.
        gone_after_s = host.wait_after(sent_at)
    assert gone_after_s < 2.5
    assert "Waiting for application shutdown." not in host.output
    row = last_row(tmp_path / "run.sqlite")
    assert row["step_abandoned"] is True
    assert "training_finished" not in row


@pytest.mark.parametrize(
    "name", ["uvicorn", pytest.param("hypercorn.serve", marks=pytest.mark.slow)]
)
def test_a_request_that_trains_is_answered_when_the_server_is_stopped(tmp_path, name) -> None:
    answers: list[Any] = []
    with serving(name, tmp_path, "fits", step=STEP_S) as host:
        host.wait_until_it_serves()
        client = Thread(
            target=lambda: answers.append(host.request("/fit", [1.0, 2.0])), name="client"
        )
        client.start()
        host.wait_for("step", 2)
        host.send(signal.SIGTERM)
        host.wait()
        client.join()
    (answer,) = answers
    assert answer["interrupted"] is True
    assert answer["iterations_done"] == len(host.all("settled")) == len(host.all("step"))
    assert last_row(tmp_path / "fits.sqlite")["training_finished"] is True


@pytest.mark.slow
def test_a_server_that_stops_without_a_signal_stops_the_run(tmp_path) -> None:
    with serving("uvicorn", tmp_path, arguments="--limit-max-requests 1", step=STEP_S) as host:
        host.wait_until_it_serves()
        host.wait_for("step")
        host.request("/status")
        assert host.wait() == 0
    row = last_row(tmp_path / "run.sqlite")
    assert row["interrupt_cause"] == "left running()"
    assert row["training_finished"] is True


@pytest.mark.slow
def test_a_worker_of_hypercorns_that_is_told_itself_goes_on_without_the_run(tmp_path) -> None:
    with serving("hypercorn", tmp_path, step=0.05) as host:
        host.wait_until_it_serves()
        host.wait_for("step", 2)
        host.send(signal.SIGTERM, "worker")
        assert host.request("/after-the-run") == {"are_back": True}
        host.send(signal.SIGTERM)
        assert host.wait() == 0
    assert last_row(tmp_path / "run.sqlite")["interrupt_cause"] == "SIGTERM"
