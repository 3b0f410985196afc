"""Flushes that are cancelled, and programs that end in the middle: nothing lost, nothing left."""

import asyncio
import json
import os
import subprocess
import sys
import threading
from time import monotonic

import pytest
from fault_jobs import flush_and_cancel
from fault_tools import JOBS, beside, boundaries_of, is_sound

from aloop import SQLiteLog
from aloop.log.journal import Journal

SEED = 20260104
ENDS_S = 1.0
"""How long after the end of its main coroutine a program may take to end."""


def connection_threads():
    """Give the threads of connections that do not end."""
    found = [thread for thread in threading.enumerate() if "connection_worker" in thread.name]
    for thread in found:
        thread.join(5)
    return [thread for thread in found if thread.is_alive()]


@pytest.mark.parametrize(
    "in_session",
    [pytest.param(False, marks=pytest.mark.slow), True],
    ids=["outside a run", "in a session"],
)
async def test_2000_flushes_of_which_many_are_cancelled_lose_and_split_nothing(
    database, in_session
):
    log = SQLiteLog(database)
    async with log.session() if in_session else log:
        cancelled = await flush_and_cancel(log, SEED, 2000)
    assert cancelled > 300, f"seed {SEED}"
    assert boundaries_of(database, log.h_uuid) == list(range(2000)), f"seed {SEED}"
    assert is_sound(database)
    assert (Journal._open, connection_threads(), beside(database)) == ({}, [], [])


async def test_flush_after_cancelled_flushes_brings_everything(database):
    log = await SQLiteLog(database).open()
    await flush_and_cancel(log, SEED, 200)
    await log.flush()
    assert boundaries_of(database, log.h_uuid) == list(range(200)), f"seed {SEED}"
    await log.close()


async def test_flushes_of_logs_that_share_a_file_are_cancelled_without_loss(database):
    logs = [SQLiteLog(database) for _ in range(4)]
    async with logs[0], logs[1], logs[2], logs[3]:
        await asyncio.gather(
            *(flush_and_cancel(log, SEED + number, 200) for number, log in enumerate(logs))
        )
    assert [boundaries_of(database, log.h_uuid) for log in logs] == [list(range(200))] * 4
    assert (connection_threads(), beside(database)) == ([], [])


def seconds_to_end(job, **arguments):
    """Give the run that a program logged, and how long after its main's end it ended."""
    with subprocess.Popen(
        [sys.executable, JOBS, job, json.dumps(arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as program:
        line = program.stdout.readline()
        began = monotonic()
        ended = os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)
        seconds = monotonic() - began
        errors = program.stderr.read()
    assert (ended.si_status, errors) == (0, "")
    return json.loads(line)[1], seconds


@pytest.mark.slow
def test_program_ends_within_a_second_of_2000_flushes_with_cancellations(database):
    run, seconds = seconds_to_end("cancel_flushes", database=str(database), seed=SEED, flushes=2000)
    assert seconds < ENDS_S
    assert boundaries_of(database, run) == list(range(2000)), f"seed {SEED}"
    assert beside(database) == []


@pytest.mark.parametrize("how", ["left", "cancelled"])
def test_program_that_ends_while_flushes_are_under_way_ends_within_a_second(database, how):
    run, seconds = seconds_to_end("end_in_the_middle", database=str(database), how=how)
    assert seconds < ENDS_S
    assert boundaries_of(database, run) == list(range(300))
    assert beside(database) == []


def test_program_ends_within_a_second_of_a_run(database):
    _, seconds = seconds_to_end("end_a_run", database=str(database))
    assert seconds < ENDS_S
    assert beside(database) == []
