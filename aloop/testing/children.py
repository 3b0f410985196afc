"""Processes that do a job and may be killed in it, from one that has imported all it needs."""

import faulthandler
import multiprocessing
import os
import pickle
import select
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from time import monotonic
from types import TracebackType
from typing import Any, Final, Self

from aloop.errors import ArgumentError

__all__ = ["ChildOutcome", "Nursery"]

_IMPORTED_LATE: Final = ("aiosqlite", "everett.manager", "numpy.random", "safetensors.numpy")
"""What aloop imports when a run needs it, which not every child should have to do."""

_READ_BYTES: Final = 1 << 16
_MAX_OUTPUT: Final = 2000  # characters


@dataclass(frozen=True, slots=True)
class ChildOutcome:
    """How a child ended."""

    code: int
    """Its exit code; below 0 the signal that ended it."""
    result: Any
    """What the job gave; None if it did not come to its end."""
    failure: str | None
    """The traceback of what the job raised, or what became of the child."""
    output: str
    """The end of what it wrote to its standard output and error."""


class Nursery:
    """A new interpreter that imports what the jobs need, once, and forks a child for each job.

    Unlike the process that makes it, it has no threads that could be cut off by a fork. One
    job at a time; close it when the last one has ended.
    """

    def __init__(self) -> None:
        if not hasattr(os, "fork"):
            raise ArgumentError(
                "this system cannot fork, which is how trainings are killed; expected a POSIX one"
            )
        context = multiprocessing.get_context("spawn")
        self._link, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), name="aloop nursery")
        self._process.start()
        theirs.close()

    def do(self, job: Callable[..., Any], *args: Any, timeout_s: float) -> ChildOutcome:
        """Have a child do a job, and wait for its end.

        Parameters:
            job: a function at the top of a module, which is imported there by its name.
            args: what it is called with; it has to be picklable, as what the job gives has to be.
            timeout_s: seconds after which the child is killed.

        Raises `ArgumentError` for what cannot be sent, or is not found there.
        """
        try:
            order = pickle.dumps((job, args, timeout_s))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ArgumentError(
                f"the children cannot be sent what they are to do: {error}; expected functions at "
                "the top of a module, for another process imports them; move them there"
            ) from error
        try:
            self._link.send_bytes(order)
            answer = self._link.recv()
        except (EOFError, OSError) as error:
            self._process.join()
            raise ArgumentError(
                f"the process that makes the children has ended ({self._process.exitcode}); "
                "expected a main module that can be imported; put what starts the trials under "
                'if __name__ == "__main__"'
            ) from error
        if isinstance(answer, ChildOutcome):
            return answer
        raise ArgumentError(
            f"the children cannot import what they are to do: {answer}; expected functions at the "
            "top of a module that can be imported; move them there"
        )

    def close(self) -> None:
        """End it."""
        self._link.close()
        self._process.join()
        self._process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.close()


def _serve(link: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who waits for the children
    # As in a program of their own, where a lock that is not given back leaves nothing behind.
    multiprocessing.set_start_method("fork", force=True)
    for name in _IMPORTED_LATE:
        import_module(name)
    while True:
        try:
            order = link.recv_bytes()
        except EOFError:
            return
        try:
            job, args, timeout_s = pickle.loads(order)  # noqa: S301 - of the process that made this
        except Exception as error:  # noqa: BLE001 - told
            link.send(f"{type(error).__name__}: {error}")
            continue
        link.send(_in_a_child(job, args, timeout_s))


def _in_a_child(job: Callable[..., Any], args: tuple[Any, ...], timeout_s: float) -> ChildOutcome:
    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as output:
        sys.stdout.flush()
        sys.stderr.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # threads of BLAS, which can fork
            pid = os.fork()
        if not pid:
            os.close(reading)
            _be_the_child(job, args, writing, output.fileno(), timeout_s)
        os.close(writing)
        told, is_late = _read_all(reading, pid, monotonic() + timeout_s)
        os.close(reading)
        if is_late:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)  # what it has started, and left
        output.seek(0)
        text = output.read().decode(errors="replace")[-_MAX_OUTPUT:]
    result, failure = pickle.loads(told) if told and not is_late else (None, None)  # noqa: S301 - of the child
    if is_late:
        failure = f"it had not ended after {timeout_s:g} s, and was killed"
    elif code and failure is None:
        failure = f"it ended with {code}"
    return ChildOutcome(code, result, failure, text)


def _be_the_child(
    job: Callable[..., Any], args: tuple[Any, ...], writing: int, output: int, timeout_s: float
) -> None:
    code = 1
    try:
        os.setsid()
        os.dup2(output, 1)
        os.dup2(output, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        faulthandler.dump_traceback_later(0.9 * timeout_s, file=2)
        try:
            told = pickle.dumps((job(*args), None))
            code = 0
        except BaseException:  # noqa: BLE001 - told
            told = pickle.dumps((None, traceback.format_exc()))
        sys.stdout.flush()
        sys.stderr.flush()
        with open(writing, "wb") as file:
            file.write(told)
    finally:
        os._exit(code)  # nothing that was begun before the fork is to be ended here


def _read_all(reading: int, pid: int, deadline: float) -> tuple[bytes, bool]:
    """Read until the child has ended; give what was read, and whether there was no time for it.

    What it has started may have the pipe open for longer than it lives.
    """
    told = bytearray()
    with _exit_of(pid) as ended:
        while True:
            left_s = max(0.0, deadline - monotonic())
            ready, _, _ = select.select([reading, *ended], [], [], left_s)
            if reading in ready:
                read = os.read(reading, _READ_BYTES)
                if not read:
                    return bytes(told), False
                told += read
            else:
                return bytes(told), not ready


@contextmanager
def _exit_of(pid: int) -> Generator[list[int]]:
    """Give a file that can be read when a child has ended, where the system has such files."""
    if not hasattr(os, "pidfd_open"):
        yield []
        return
    ended = os.pidfd_open(pid)
    try:
        yield [ended]
    finally:
        os.close(ended)
