"""What the tests of faults share: children to be killed, mounts of one's own."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from log_helpers import query

JOBS = Path(__file__).with_name("fault_jobs.py")


class Child:
    """A forked process that does a job and tells of it line by line."""

    def __init__(self, server, job, arguments):
        self._server = server
        self.is_running = True
        ours, theirs = socket.socketpair()
        with theirs:
            self.pid = server.order(
                {"job": job, "arguments": arguments}, descriptor=theirs.fileno()
            )
        self._link = ours
        self._lines = ours.makefile("r")

    def line(self):
        """Wait for what it tells next; None when it has ended."""
        line = self._lines.readline()
        if not line:
            return None
        told = json.loads(line)
        assert told[0] != "error", told[1]
        return told

    def go_on(self):
        self._link.sendall(b"\n")

    def kill(self):
        """Kill it, wait for its end, and give all that it has told and nobody has read."""
        os.kill(self.pid, signal.SIGKILL)
        return self.end()[0]

    def end(self):
        """Wait for its end; give what it told and the exit code."""
        told = list(iter(self.line, None))
        code = self._server.order({"wait": self.pid})
        self.is_running = False
        self._lines.close()
        self._link.close()
        return told, code


class ForkServer:
    """Starts children that have imported aloop already."""

    def __init__(self):
        self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, JOBS.with_name("fault_server.py"), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            )

    def order(self, order, descriptor=None):
        message = json.dumps(order).encode()
        socket.send_fds(self._link, [message], [] if descriptor is None else [descriptor])
        answer = self._link.recv(1 << 16)
        assert answer, "the fork server has ended"
        return json.loads(answer)

    def start(self, job, **arguments):
        return Child(self, job, {k: _plain(v) for k, v in arguments.items()})

    def close(self):
        self._link.close()
        assert self._process.wait(30) == 0


def _plain(value):
    return str(value) if isinstance(value, Path) else value


def do_job(job, *, prefix=(), timeout=50, **arguments):
    """Do a job in an interpreter of its own; give what it told, by the first word of each line."""
    arguments = json.dumps({k: _plain(v) for k, v in arguments.items()})
    done = subprocess.run(
        [*prefix, sys.executable, JOBS, job, arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def with_mount(*options):
    """Give the beginning of a command that mounts what is asked for, for that command alone."""
    mount = f'mount {" ".join(map(str, options))} && exec "$@"'
    for flags in ("-rm", "-m"):
        prefix = ["unshare", flags, "sh", "-c", mount, "sh"]
        tried = subprocess.run([*prefix, "true"], capture_output=True, check=False)
        if tried.returncode == 0:
            return prefix
    pytest.skip(f"neither a user namespace nor root to mount with: {tried.stderr.decode()}")


def is_sound(database):
    return query(database, "PRAGMA integrity_check") == [("ok",)]


def boundaries_of(database, run):
    """Give the times of a run that `fault_jobs.write_boundary` wrote; each has to be whole."""
    found = query(
        database,
        "SELECT time, GROUP_CONCAT(key, '') FROM "
        "(SELECT * FROM entries WHERE run = ? ORDER BY time, key) GROUP BY time ORDER BY time",
        run,
    )
    assert {keys for _, keys in found} <= {"abc"}, found
    times = [time for time, _ in found]
    [(done,)] = query(
        database, "SELECT value FROM status WHERE run = ? AND key = 'iterations_done'", run
    )
    assert done == (times[-1] + 1 if times else 0), (done, times[-3:])
    return times


def beside(database):
    """Give the names of the other files in the directory of the database."""
    return sorted(path.name for path in database.parent.iterdir() if path != database)
