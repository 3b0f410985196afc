"""The service that learns from requests, run as a user runs it: in uvicorn, from its client."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import httpx
import numpy as np
import pytest

from aloop import read_log
from aloop.errors import UnknownRunError

EXAMPLES = Path(__file__).parents[1] / "examples"
EXAMPLE = {"pixels": [float(place % 17) for place in range(64)], "label": 3}
BLANK = [0] * 64
NONE_YET = {"accepted": 0, "trained": 0, "left": 0}
DIGITS = 2 * 1437  # what the client of the lesson sends


class Program:
    """A program that runs, its standard output and error as one stream of lines."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.output = ""
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=directory,
            env=os.environ | {"HOME": str(directory)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_for(self, text: str) -> None:
        """Read until the output has this in it."""
        assert self.process.stdout is not None
        while text not in self.output:
            line = self.process.stdout.readline()
            assert line, f"no {text!r} in\n{self.output}"
            self.output += line

    def end(self) -> int:
        """Wait for the end, and give the exit code."""
        self.output += self.process.communicate(timeout=30)[0]
        return self.process.returncode

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.process.kill()  # of this process alone, and nothing if it has ended
        self.process.communicate()


class Service(Program):
    """The service, or another that uvicorn runs."""

    @cached_property
    def port(self) -> int:
        self.wait_for("Uvicorn running on")
        found = re.search(r"http://127\.0\.0\.1:(\d+) ", self.output)
        assert found is not None
        return int(found[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @cached_property
    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, trust_env=False, verify=False)  # noqa: S501 - no TLS

    def post(self, path: str, body: object = None) -> httpx.Response:
        content = body if isinstance(body, str) else json.dumps(body)
        headers = {"Content-Type": "application/json"}
        return self.http.post(path, content=content, headers=headers)

    def post_examples(self, number: int) -> httpx.Response:
        return self.post("/examples", {"examples": [EXAMPLE] * number})

    def status(self) -> dict[str, Any]:
        answer = self.http.get("/status")
        assert answer.status_code == 200
        return answer.json()

    def prediction(self) -> dict[str, Any]:
        answer = self.post("/predict", {"images": [BLANK, EXAMPLE["pixels"]]})
        assert answer.status_code == 200
        return answer.json()

    def wait_until_trained_on(self, number: int) -> None:
        while self.status()["examples"]["trained"] < number:
            pass

    def stop(self, *numbers: signal.Signals) -> int:
        """Send signals one after another, and give the exit code."""
        assert self.port  # it may not listen to them before
        for number in numbers:
            self.process.send_signal(number)
        return self.end()

    def __exit__(self, *exc_info: object) -> None:
        super().__exit__(*exc_info)
        if "http" in self.__dict__:
            self.http.close()

    @property
    def count(self) -> dict[str, int]:
        """What the service said at its end."""
        found = re.search(
            r"^accepted (\d+) examples: trained on (\d+), left (\d+)$", self.output, re.MULTILINE
        )
        assert found is not None, self.output
        return dict(zip(("accepted", "trained", "left"), map(int, found.groups()), strict=True))


@dataclass
class Recorded:
    """What the log file has of the last run."""

    row: dict[str, Any]
    keys: Counter[str]  # of all rows
    trained: int  # the sum of the batches

    @property
    def count(self) -> dict[str, int]:
        return {name: self.row[f"examples_{name}"] for name in ("accepted", "trained", "left")}


def recorded(service: Program) -> Recorded:
    with read_log(service.directory / "service.sqlite") as log:
        rows = [log[time] for time in log]
        return Recorded(
            dict(log.current_row),
            Counter(key for row in rows for key in row),
            sum(row.get("batch_examples", 0) for row in rows),
        )


def wait_until_recorded(service: Program, number: int) -> None:
    """Wait until it is in the log file that so many examples were trained on."""
    trained = 0
    while trained < number:
        with suppress(UnknownRunError):  # which has not been written yet
            trained = recorded(service).trained


def service(directory: Path, *arguments: str) -> Service:
    return Service(directory, str(EXAMPLES / "service.py"), "--port", "0", *arguments)


def client(service: Service, *arguments: str) -> Program:
    script = str(EXAMPLES / "service_client.py")
    return Program(service.directory / "client", script, "--url", service.url, *arguments)


# The load, over raw connections that are kept alive: it must take little of the machine.


def request(method: str, path: str, body: object = None) -> bytes:
    content = b"" if body is None else json.dumps(body).encode()
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


STATUS = request("GET", "/status")
PREDICT = request("POST", "/predict", {"images": [EXAMPLE["pixels"]]})
LEARN = request("POST", "/examples", {"examples": [EXAMPLE] * 4})
IN_LEARN = 4


class Connection:
    """One connection, with one request at a time."""

    @classmethod
    async def open(cls, port: int) -> Self:
        connection = cls()
        connection.reader, connection.writer = await asyncio.open_connection("127.0.0.1", port)
        return connection

    async def ask(self, request: bytes) -> int | None:
        """Give the status code of the answer, None where the service has cut the connection."""
        try:
            self.writer.write(request)
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"\r\ncontent-length: (\d+)", head)
            await self.reader.readexactly(int(length[1]) if length else 0)
            return int(head[9:12])
        except (EOFError, ConnectionError):
            return None

    async def close(self) -> None:
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()


@dataclass
class Load:
    """What came of the requests of a load."""

    port: int
    answers: list[tuple[bytes, int | None, float]] = field(default_factory=list)
    enough: asyncio.Event = field(default_factory=asyncio.Event)

    async def ask(self, connection: Connection, request: bytes, due: float) -> int | None:
        code = await connection.ask(request)
        self.answers.append((request, code, time.monotonic() - due))
        return code

    async def post_without_pause(self, connections: int, enough: int) -> None:
        """Post over so many connections, as fast as it goes, until the service refuses."""

        async def post() -> None:
            connection = await Connection.open(self.port)
            while await self.ask(connection, LEARN, time.monotonic()) in (202, 429):
                if len(self.answers) >= enough:
                    self.enough.set()
            await connection.close()

        async with asyncio.TaskGroup() as group:
            for _ in range(connections):
                group.create_task(post())

    async def keep_rate(self, rate: int, connections: int, seconds: float) -> None:
        """Send so many requests a second, each when it is due, until the service is gone.

        Most are examples; ten a second each ask for the status and for a prediction.
        """
        idle = asyncio.Queue[Connection]()
        for _ in range(connections):
            idle.put_nowait(await Connection.open(self.port))
        every = rate // 10
        is_gone = False

        async def send(request: bytes, due: float) -> None:
            nonlocal is_gone
            connection = await idle.get()
            if await self.ask(connection, request, due) is None:
                is_gone = True
            idle.put_nowait(connection)

        began, number = time.monotonic(), 0
        async with asyncio.TaskGroup() as group:
            while not is_gone:
                due = began + number / rate
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                kind = {0: STATUS, every // 2: PREDICT}.get(number % every, LEARN)
                group.create_task(send(kind, due))
                number += 1
                if due - began >= seconds:
                    self.enough.set()
        while not idle.empty():
            await idle.get_nowait().close()

    def codes(self, *requests: bytes) -> Counter[int | None]:
        return Counter(code for request, code, _ in self.answers if request in requests)

    @property
    def acknowledged(self) -> int:
        return IN_LEARN * self.codes(LEARN)[202]


@dataclass
class Drained:
    """How a service ended that was stopped under load."""

    load: Load
    before: list[tuple[bytes, int | None, float]]  # what was answered before the signal
    exit_code: int
    ended_after_s: float


async def stop_under_load(service: Service, **options: int) -> Drained:
    load = Load(service.port)
    run = load.keep_rate(**options) if "rate" in options else load.post_without_pause(**options)
    async with asyncio.TaskGroup() as group:
        group.create_task(run)
        await load.enough.wait()
        before = load.answers[:]
        service.process.terminate()
        sent_at = time.monotonic()
        exit_code = await asyncio.to_thread(service.end)
        ended_after_s = time.monotonic() - sent_at
    return Drained(load, before, exit_code, ended_after_s)


@dataclass
class Lesson:
    """A service, and a client that finds its queue full before it teaches it."""

    service: Service
    client: Program
    alone: Service  # which uvicorn runs as well
    when_full: httpx.Response | None = None
    status_when_full: dict[str, Any] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)
    client_exit_code: int = -1
    drained: Drained | None = None
    exit_code_of_uvicorn: int = -1

    def go_through(self) -> None:
        self.client.wait_for("the queue is full: waiting for 1 s")
        self.when_full = self.service.post_examples(16)
        self.status_when_full = self.service.status()
        assert self.service.post("/resume").status_code == 204
        self.exit_code_of_uvicorn = self.alone.stop(signal.SIGTERM)
        self.client_exit_code = self.client.end()
        self.service.wait_until_trained_on(self.service.status()["examples"]["accepted"])
        self.status = self.service.status()
        self.drained = asyncio.run(stop_under_load(self.service, connections=8, enough=100))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("services")


@pytest.fixture(scope="module")
def services(directory: Path) -> Iterator[tuple[Service, ...]]:
    """Three at once, for they take long to start."""
    bare = "-m uvicorn --factory fastapi:FastAPI --port 0"
    with (
        service(directory / "taught", "--queue", "64") as taught,
        service(directory / "held", "--queue", "64") as held,
        Service(directory / "alone", *bare.split()) as alone,
    ):
        yield taught, held, alone


@pytest.fixture(scope="module")
def lesson_begun(services: tuple[Service, ...]) -> Iterator[Lesson]:
    taught, _, alone = services
    assert taught.post("/pause").status_code == 204
    with client(taught, "--rate", "1000", "--size", "16", "--passes", "2") as teacher:
        yield Lesson(taught, teacher, alone)


@pytest.fixture(scope="module")
def lesson(lesson_begun: Lesson) -> Lesson:
    lesson_begun.go_through()
    return lesson_begun


def one(pixels: object = BLANK, label: object = 3) -> dict[str, object]:
    return {"examples": [{"pixels": pixels, "label": label}]}


NO_DIGITS = [
    ("/examples", one([0] * 63), 422),
    ("/examples", one([0] * 65), 422),
    ("/examples", one([]), 422),
    ("/examples", one("0" * 64), 422),
    ("/examples", one([[0] * 8] * 8), 422),
    ("/examples", one([*BLANK[1:], float("nan")]), 422),
    ("/examples", one([*BLANK[1:], float("inf")]), 422),
    ("/examples", json.dumps(one()).replace("0]", "1e999]"), 422),
    ("/examples", one([*BLANK[1:], 1e300]), 422),
    ("/examples", one([*BLANK[1:], -1]), 422),
    ("/examples", one([*BLANK[1:], "1"]), 422),
    ("/examples", one([*BLANK[1:], None]), 422),
    ("/examples", one([*BLANK[1:], True]), 422),
    ("/examples", one([*BLANK[1:], "\ud800"]), 422),
    ("/examples", one(label=10), 422),
    ("/examples", one(label=-1), 422),
    ("/examples", one(label=2.5), 422),
    ("/examples", one(label="3"), 422),
    ("/examples", one(label=True), 422),
    ("/examples", one(label=10**30), 422),
    ("/examples", {"examples": [{"pixels": BLANK}]}, 422),
    ("/examples", {"examples": [EXAMPLE, {"pixels": BLANK, "label": 10}]}, 422),
    ("/examples", {"examples": []}, 422),
    ("/examples", {"examples": [EXAMPLE] * 257}, 422),
    ("/examples", {"examples": EXAMPLE}, 422),
    ("/examples", [EXAMPLE], 422),
    ("/examples", "", 422),
    ("/examples", "{", 422),
    ("/examples", "[" * 100_000, 400),
    ("/examples", {"examples": [EXAMPLE] * 65}, 413),  # more than its queue can ever hold
    ("/examples", " " * (1 << 20) + json.dumps(one()), 413),
    ("/predict", {"images": []}, 422),
    ("/predict", {"images": [BLANK] * 513}, 422),
    ("/predict", {"images": [BLANK, [0] * 63]}, 422),
    ("/predict", {"images": [[*BLANK[1:], float("nan")]]}, 422),
    ("/predict", {}, 422),
]


@dataclass
class Held:
    """A service that was asked before it had learned anything, and ended with a full queue."""

    service: Service
    status: dict[str, Any]
    prediction: httpx.Response
    refusals: list[httpx.Response]
    status_after_refusals: dict[str, Any]
    acknowledged: int  # 1, and so many times 7 as there was room for
    code_when_full: int
    count_when_full: dict[str, int]
    code_of_what_fits: int
    count: dict[str, int]
    exit_code: int


@pytest.fixture(scope="module")
def held(services: tuple[Service, ...], lesson_begun: Lesson) -> Held:
    """While the client of the lesson reads its digits."""
    _, held, _ = services
    prediction = held.post("/predict", {"images": [BLANK, EXAMPLE["pixels"]]})
    status = held.status()
    refusals = [held.post(path, body) for path, body, _ in NO_DIGITS]
    status_after_refusals = held.status()
    assert held.post_examples(1).status_code == 202
    held.wait_until_trained_on(1)
    assert held.post("/pause").status_code == 204
    acknowledged = 1
    while (full := held.post_examples(7)).status_code == 202:
        acknowledged += 7
    count_when_full = held.status()["examples"]
    code_of_what_fits = held.post_examples(1).status_code
    count = held.status()["examples"]
    exit_code = held.stop(signal.SIGTERM, signal.SIGTERM)
    return Held(
        held,
        status,
        prediction,
        refusals,
        status_after_refusals,
        acknowledged,
        full.status_code,
        count_when_full,
        code_of_what_fits,
        count,
        exit_code,
    )


@dataclass
class Lives:
    """A service that is killed while it is paused, then stopped, then ended by its disk."""

    directory: Path
    saved: list[httpx.Response] = field(default_factory=list)  # while it waits, and is paused
    # Before it is killed, after it is started again, before it is stopped, and after that.
    statuses: list[dict[str, Any]] = field(default_factory=list)
    predictions: list[dict[str, Any]] = field(default_factory=list)  # and when it has failed
    count_when_stopped: dict[str, int] = field(default_factory=dict)
    refused: list[httpx.Response] = field(default_factory=list)  # as it fails, and when it has
    learned: Recorded | None = None  # of all its lives

    def look(self, service: Service) -> None:
        self.statuses.append(service.status())
        self.predictions.append(service.prediction())

    def be_killed(self, service: Service) -> None:
        assert service.post_examples(40).status_code == 202
        service.wait_until_trained_on(40)
        self.saved.append(service.post("/checkpoint"))
        assert service.post("/pause").status_code == 204
        assert service.post_examples(3).status_code == 202
        self.saved.append(service.post("/checkpoint"))
        self.look(service)
        service.process.kill()

    def be_stopped(self, service: Service) -> None:
        self.look(service)
        assert service.post_examples(20).status_code == 202
        service.wait_until_trained_on(20)
        self.look(service)
        service.stop(signal.SIGTERM)
        self.count_when_stopped = service.count

    def fail(self, service: Service) -> None:
        self.look(service)
        checkpoints = self.directory / "service-checkpoints"
        shutil.rmtree(checkpoints)
        checkpoints.symlink_to("nowhere")  # so that not even root can make it anew
        self.refused.append(service.post("/checkpoint"))
        while service.status()["state"] != "closed":
            pass
        self.refused.append(service.post("/checkpoint"))
        self.predictions.append(service.prediction())
        self.learned = recorded(service)


@pytest.fixture(scope="module")
def lives(directory: Path) -> Lives:
    lives = Lives(directory / "lives")
    for live in (lives.be_killed, lives.be_stopped, lives.fail):
        with service(lives.directory) as living:
            live(living)
    return lives


# Before any training.


def test_untaught_it_finds_all_digits_alike(held) -> None:
    assert held.prediction.status_code == 200
    assert held.prediction.json() == {
        "labels": [0, 0],
        "probabilities": [[pytest.approx(0.1)] * 10] * 2,
    }


def test_untaught_its_status_says_so(held) -> None:
    assert held.status["state"] in ("starting", "running")
    assert held.status | {"state": "running"} == {
        "state": "running",
        "iterations_done": 0,
        "epochs_done": 0,
        "last_cost": None,
        "epoch_cost": None,
        "recent_accuracy": None,
        "examples": {"accepted": 0, "trained": 0, "left": 0},
    }


@pytest.mark.parametrize("place", range(len(NO_DIGITS)))
def test_what_is_no_digit_is_refused(held, place) -> None:
    answer, (_, _, code) = held.refusals[place], NO_DIGITS[place]
    assert answer.status_code == code, answer.text
    assert len(answer.text) < 1000


def test_of_what_is_refused_nothing_is_accepted(held) -> None:
    assert held.status_after_refusals["examples"] == NONE_YET


# While it learns.


def test_its_client_teaches_it_to_tell_other_digits_apart(lesson) -> None:
    assert lesson.client_exit_code == 0, lesson.client.output
    shares = re.findall(r"digits taught, (\d+\.\d) % of 360 others right", lesson.client.output)
    assert float(shares[0]) < 20
    assert float(shares[-1]) >= 90


def test_a_full_queue_is_answered_with_when_to_come_again(lesson) -> None:
    assert lesson.when_full.status_code == 429
    assert lesson.when_full.headers["Retry-After"] == "1"


def test_the_queue_takes_all_examples_of_a_request_or_none(held) -> None:
    # Of the 64 places 9 times 7 leave one, whether or not 7 more are the batch that comes next.
    assert held.code_when_full == 429
    assert held.count_when_full["accepted"] == held.acknowledged
    assert held.code_of_what_fits == 202
    assert held.count["accepted"] == held.acknowledged + 1


def test_while_it_is_paused_it_accepts_but_does_not_train(lesson) -> None:
    status = lesson.status_when_full
    assert status["state"] == "paused"
    assert status["examples"]["trained"] == 0
    assert status["examples"]["accepted"] == status["examples"]["left"] >= 64


def test_its_status_tells_how_far_it_is(lesson) -> None:
    status = lesson.status
    assert status["state"] == "running"
    assert status["examples"] == {"accepted": DIGITS, "trained": DIGITS, "left": 0}
    assert status["epochs_done"] == status["iterations_done"] // 50 >= 1
    assert 0 < status["last_cost"] < 2
    assert 0 < status["epoch_cost"] < 1
    assert 0.8 < status["recent_accuracy"] <= 1


def test_the_client_prints_the_status_and_what_was_acknowledged(lesson) -> None:
    assert '"state": "running"' in lesson.client.output
    assert lesson.client.output.endswith(f"{DIGITS} examples were acknowledged\n")


def test_the_log_has_a_cost_for_each_batch_and_an_accuracy_for_each_epoch(lesson) -> None:
    keys, epochs = recorded(lesson.service).keys, lesson.status["epochs_done"]
    assert keys["cost"] == keys["batch_examples"] > lesson.status["iterations_done"]
    assert keys["epoch_cost"] == keys["recent_accuracy"] >= epochs


# When it ends.


def test_under_load_it_ends_as_uvicorn_does_within_a_batch_and_a_second(lesson) -> None:
    assert lesson.drained.exit_code == lesson.exit_code_of_uvicorn
    assert lesson.drained.ended_after_s < 1.0


def test_what_was_acknowledged_under_load_was_trained_on_or_left(lesson) -> None:
    log = recorded(lesson.service)
    count = log.count
    assert count["accepted"] == DIGITS + lesson.drained.load.acknowledged
    assert count["trained"] == log.trained > DIGITS
    assert count["accepted"] == count["trained"] + count["left"]
    assert count == lesson.service.count
    assert log.row["training_finished"] is True
    assert log.row["interrupt_cause"] == "SIGTERM"


def test_once_it_is_ending_it_accepts_nothing_and_fails_at_nothing(lesson) -> None:
    # None: the connection was closed.
    assert set(lesson.drained.load.codes(LEARN)) <= {202, 429, 503, None}


def test_what_a_full_queue_held_is_counted_as_left(held) -> None:
    accepted = held.acknowledged + 1
    assert held.count == {"accepted": accepted, "trained": 1, "left": accepted - 1}
    assert held.count["left"] > 57
    assert recorded(held.service).count == held.service.count == held.count


def test_two_signals_end_it_as_one_does(held, lesson) -> None:
    assert held.exit_code == lesson.exit_code_of_uvicorn


# When it starts again.


@pytest.mark.slow
def test_a_checkpoint_can_be_asked_for_while_it_waits_and_while_it_is_paused(lives) -> None:
    assert [answer.status_code for answer in lives.saved] == [200, 200]
    waiting, paused = [answer.json() for answer in lives.saved]
    done = lives.statuses[0]["iterations_done"]
    assert waiting["iterations_done"] == paused["iterations_done"] == done >= 2
    assert re.fullmatch(rf"ckpt-{done:09d}-[0-9a-f]{{8}}", waiting["checkpoint"])
    assert paused["checkpoint"].startswith(waiting["checkpoint"])
    assert lives.statuses[0]["state"] == "paused"


@pytest.mark.slow
@pytest.mark.parametrize("end", [0, 2], ids=["killed", "stopped"])
def test_started_again_it_goes_on_from_where_it_was(lives, end) -> None:
    before, after = lives.statuses[end : end + 2]
    assert after == before | {"state": "running", "examples": NONE_YET}
    assert lives.predictions[end] == lives.predictions[end + 1]  # to the last bit


@pytest.mark.slow
def test_what_was_in_the_queue_is_lost_and_counted_in_no_later_life(lives) -> None:
    assert lives.statuses[0]["examples"] == {"accepted": 43, "trained": 40, "left": 3}
    assert lives.count_when_stopped == {"accepted": 20, "trained": 20, "left": 0}
    assert lives.learned.trained == 60


@pytest.mark.slow
def test_when_it_has_ended_there_is_no_checkpoint_to_be_had(lives) -> None:
    assert [answer.status_code for answer in lives.refused] == [503, 503]
    assert lives.refused[0].json() == {"detail": "the checkpoint could not be saved"}
    assert lives.refused[1].json() == {"detail": "the training is closed"}
    assert lives.predictions[-1] == lives.predictions[-2]


@pytest.mark.slow
def test_a_client_ends_and_says_so_when_the_service_goes(tmp_path) -> None:
    with (
        service(tmp_path) as going,
        client(going, "--rate", "1000", "--passes", "1000") as teacher,
    ):
        going.wait_until_trained_on(100)
        going.stop(signal.SIGTERM)
        assert teacher.end() == 1
        assert re.search(r"\nthe service (refuses \(503\)|at \S+ is gone): ", teacher.output)
        assert f"\n{going.count['accepted']} examples were acknowledged\n" in teacher.output
        assert "Traceback" not in teacher.output


@pytest.mark.slow
def test_killed_before_its_first_checkpoint_it_begins_anew_in_the_same_log(tmp_path) -> None:
    with service(tmp_path) as killed:
        killed.post_examples(4)
        wait_until_recorded(killed, 4)
        killed.process.kill()
    with service(tmp_path) as again:
        assert again.status()["iterations_done"] == again.status()["examples"]["accepted"] == 0
        again.post_examples(2)
        again.wait_until_trained_on(2)
        again.stop(signal.SIGTERM)
    assert recorded(again).count == {"accepted": 2, "trained": 2, "left": 0}
    with read_log(tmp_path / "service.sqlite") as log:
        assert [run.ended_at is None for run in log.runs] == [True, False]


@pytest.mark.slow
def test_unasked_it_saves_every_100_batches(tmp_path) -> None:
    checkpoints = tmp_path / "elsewhere"
    options = ("--queue", "4096", "--checkpoints", str(checkpoints))
    with service(tmp_path, *options) as killed:
        for _ in range(13):
            assert killed.post_examples(256).status_code == 202  # 104 batches at least
        killed.wait_until_trained_on(13 * 256)
        done = killed.status()["iterations_done"]
        while not list(checkpoints.glob(f"ckpt-{done // 100 * 100:09d}-*")):
            killed.status()
        killed.process.kill()
    with service(tmp_path, *options) as again:
        status = again.status()
        assert status["iterations_done"] == done // 100 * 100 < done
        assert status["examples"] == NONE_YET
        again.stop(signal.SIGTERM)
    assert recorded(again).trained < 13 * 256
    assert not (tmp_path / "service-checkpoints").exists()


@pytest.mark.slow
def test_what_it_cannot_go_on_from_fails_the_start(tmp_path) -> None:
    with service(tmp_path) as stopped:
        assert stopped.post_examples(1).status_code == 202
        stopped.wait_until_trained_on(1)
        with service(tmp_path, "--checkpoints", "service-checkpoints") as second:
            assert second.end() == 3
        stopped.stop(signal.SIGTERM)
    assert "CheckpointInUseError" in second.output
    (tmp_path / "service.sqlite").unlink()
    with service(tmp_path) as failing:
        assert failing.end() == 3
    assert "LogBehindError" in failing.output


@pytest.mark.slow
def test_a_request_that_is_half_sent_holds_up_the_end_for_a_second(tmp_path) -> None:
    async def stop(service: Service) -> float:
        half, whole = [await Connection.open(service.port) for _ in range(2)]
        half.writer.write(LEARN[:-10])
        assert await whole.ask(STATUS) == 200
        sent_at = time.monotonic()
        await asyncio.to_thread(service.stop, signal.SIGTERM)
        ended_after_s = time.monotonic() - sent_at
        await half.close()
        await whole.close()
        return ended_after_s

    with service(tmp_path) as waiting:
        assert asyncio.run(stop(waiting)) < 2.5
    assert recorded(waiting).count == NONE_YET


@pytest.mark.slow
def test_a_log_that_is_none_fails_the_start(tmp_path) -> None:
    (tmp_path / "service.sqlite").write_text("no log")
    with service(tmp_path) as failing:
        assert failing.end() == 3  # which is uvicorn's
    assert "LogFileError" in failing.output


@pytest.mark.slow
def test_it_answers_200_requests_a_second_beside_the_training(tmp_path) -> None:
    with service(tmp_path) as shown:
        drained = asyncio.run(stop_under_load(shown, rate=200, connections=32, seconds=20))
    log = recorded(shown)
    assert {code for _, code, _ in drained.before} == {200, 202}
    assert len(drained.before) >= 200 * 20 - 32
    latencies = [latency_s for request, _, latency_s in drained.before if request is STATUS]
    assert len(latencies) >= 195
    p50, p99 = np.quantile(latencies, [0.5, 0.99])
    print(f"/status: p50 {p50 * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms, {drained.ended_after_s=:.2f}")
    load = os.getloadavg()[0]  # what else the machine has to do shows in the p99 first
    assert p99 < 0.05, f"p99 {p99 * 1e3:.1f} ms, beside a load of {load:.1f}"
    assert drained.ended_after_s < 1.0
    assert log.count["accepted"] == drained.load.acknowledged
    assert log.count["accepted"] == log.count["trained"] + log.count["left"]
    assert log.count["trained"] == log.trained
