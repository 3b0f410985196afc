"""A stream that is received from a Fuel server, in another process."""

import aloop.streams.fuel  # noqa: F401 - it makes Fuel importable

# isort: split
import asyncio
import pickle
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from fuel.streams import ServerDataStream
from fuel.transformers import Flatten
from fuel_cases import by_hand, loop_of, resumable, sequential

from aloop.errors import StreamError
from aloop.streams.fuel import FuelStream

SERVER = """
import sys
sys.path.insert(0, {here!r})
import fuel_cases
from fuel.server import start_server
start_server(fuel_cases.sequential(), port={port})
"""


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


@contextmanager
def server(port: int):
    """A server, started from nothing."""
    code = SERVER.format(here=str(Path(__file__).parent), port=port)
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def received(port: int, **options):
    stream = FuelStream(
        Flatten(ServerDataStream(("x", "y"), False, port=port), which_sources=("x",)), **options
    )
    try:
        yield stream
    finally:
        stream.close()


def expected(epochs: int) -> list:
    return sum(by_hand(Flatten(sequential(), which_sources=("x",)), epochs), [])  # noqa: RUF017


@pytest.mark.slow
async def test_training_sees_what_the_server_sends_and_where_its_epochs_end(port) -> None:
    trained: list = []
    with server(port), received(port) as stream:
        loop = loop_of(stream, trained, epochs=2)
        await loop.run()
    assert trained == expected(2)
    assert loop.status["_epoch_ends"] == [5, 10]


@pytest.mark.slow
async def test_stopped_training_goes_on_with_what_comes_and_says_so(port, tmp_path, caplog) -> None:
    trained: list = []
    with server(port), received(port) as stream:
        await resumable(stream, tmp_path, trained, 3).run()
    with server(port), received(port) as stream:
        await resumable(stream, tmp_path, trained, 5).run()
    assert trained == expected(1)[:3] + expected(1)[:2]
    assert "is live: the 3 batches of this epoch that were trained on do not come" in caplog.text


@pytest.mark.slow
async def test_server_that_was_killed_is_an_error(port) -> None:
    with server(port) as process, received(port, timeout_s=0.5) as stream:
        stream.data_stream.data_stream.timeout_s = 30
        iterator = stream.get_epoch_iterator()
        next(iterator)
        process.kill()
        stream.data_stream.data_stream.timeout_s = 0.3
        with pytest.raises(StreamError, match=f"localhost:{port} has sent nothing for 0.3 second"):
            for _ in range(1000):  # those that were on their way, all of the epoch perhaps
                if next(iterator, None) is None:
                    iterator = stream.get_epoch_iterator()


async def test_server_that_is_not_there_is_an_error_that_says_where_and_how_long(port) -> None:
    with received(port, timeout_s=0.2) as stream:
        loop = loop_of(stream, [])
        with pytest.raises(StreamError) as caught:
            await loop.run()
    assert str(caught.value).startswith(
        f"the Fuel server at localhost:{port} has sent nothing for 0.2 seconds; expected a batch"
    )
    assert "raise timeout_s of FuelStream" in str(caught.value)


@pytest.mark.aloop_guard(block_s=5)  # closing waits for the thread
async def test_close_ends_the_wait_for_a_batch(port) -> None:
    with received(port) as stream:
        iterator = stream.get_epoch_iterator()
        waits = threading.Event()
        server_stream = stream.data_stream.data_stream
        poll = server_stream.socket.poll

        def said(*args):
            waits.set()
            return poll(*args)

        server_stream.__dict__["socket"] = Told(server_stream.socket, said)
        task = asyncio.create_task(asyncio.to_thread(next, iterator))
        await asyncio.to_thread(waits.wait)
        stream.close()
        with pytest.raises(StreamError, match="was closed while a batch was awaited"):
            await task


class Told:
    """A socket that tells when somebody waits for it."""

    def __init__(self, inner, poll) -> None:
        self.inner, self.poll = inner, poll

    def close(self, **options) -> None:
        self.inner.close(**options)


def test_close_closes_the_socket_and_its_context(port) -> None:
    with received(port) as stream:
        inner = stream.data_stream.data_stream
        context = inner._context
        stream.close()
        assert inner.socket.closed
        assert context.closed
        stream.close()


def test_stream_of_a_server_can_be_pickled(port) -> None:
    with received(port) as stream:
        inner = pickle.loads(pickle.dumps(stream.data_stream.data_stream))  # noqa: S301 - its own
        assert (inner.port, inner.connected) == (port, False)
        inner.close()
