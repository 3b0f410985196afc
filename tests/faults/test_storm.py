"""Storms: hundreds of random schedules of stops and faults against real runs, none of them lost.

A failure names its seed and tells all that happened; ``python storm.py SEED`` does it again alone.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from storm_oracle import ENDINGS, Entry, Facts, Judgement, Seen
from storm_schedule import WHERE, draw

STORM = Path(__file__).with_name("storm.py")
AT_ONCE = 4
"""How many storms are under way: for some of the time each only waits for a grace to end."""

DEFECTS = {
    "forget_the_commit": "no record training_finished",
    "flush_nothing": "was flushed and is not in the file",
    "hear_no_cancel": "outcome 'returned', permitted ['cancelled']",
    "interrupt_twice": "on_interrupt was called 2 times",
    "leave_the_background": "beside it were done",
    "keep_the_handler": "the handler of SIGTERM is",
}
"""What `storm.BREAKS` puts into aloop, with what the harness has to say of it."""


def storms(seeds, *, defect="", timeout=50):
    """Do the schedules of the seeds, some at a time, and give what was told of each."""
    seeds = list(seeds)
    parts = [seeds[start::AT_ONCE] for start in range(AT_ONCE)]
    programs = [
        subprocess.Popen(
            [sys.executable, STORM, *map(str, part)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "STORM_BREAKS": defect, "PYTHONFAULTHANDLER": "1"}
            | {"PYTHONWARNINGS": "error", "OPENBLAS_NUM_THREADS": "1"},
        )
        for part in parts
        if part
    ]
    told = []
    try:
        for program, part in zip(programs, parts, strict=False):
            out, errors = program.communicate(timeout=timeout)
            of_part = [json.loads(line) for line in out.splitlines()]
            # One that hangs ends the program after it has told of it; any other ends it before.
            assert len(of_part) == len(part), (
                f"{program.returncode} ended the program at {part[len(of_part)]}, after "
                f"{of_part[-1:]}: {errors}"
            )
            assert not errors, errors
            told += of_part
    finally:
        for program in programs:
            program.kill()
            program.communicate()
    return told


def assert_clean(told):
    bad = [one for one in told if one["wrong"]]
    short = "\n".join(f"{one['seed']}: {one['wrong']}" for one in bad)
    assert not bad, f"{short}\n\nthe first of them: {json.dumps(bad[0], indent=1)}"


def test_50_storms_lose_double_and_leave_nothing():
    assert_clean(storms(range(50)))


@pytest.mark.slow
def test_200_storms_lose_double_and_leave_nothing():
    told = storms(range(200))
    assert_clean(told)
    # Lest a storm is a lull: all there is to do was done, and all that can come of it came.
    did = Counter(action for one in told for action in one["did"])
    assert set(did) == {
        "SIGINT",
        "SIGTERM",
        "cancel",
        "cancel_all",
        "request_batch",
        "request_epoch",
        "scope",
        "timeout",
    }
    assert min(did.values()) >= 5
    came = Counter(outcome.split()[0] for one in told for outcome in one["outcomes"])
    assert came.keys() == {
        "returned",
        "cancelled",
        "scope",
        "timeout",
        "keyboard",
        "fault",
        "host",
    }
    assert min(came.values()) >= 3


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_1000_more_storms_lose_double_and_leave_nothing():
    assert_clean(storms(range(200, 1200), timeout=250))


def test_the_schedules_have_every_fault_everywhere():
    drawn = [draw(seed) for seed in range(1200)]
    assert {fault.where for one in drawn for fault in one.faults} == set(WHERE)
    hows = {fault.how for one in drawn for fault in one.faults}
    assert hows == {"raises", "exits", "hangs", "hangs on"}
    assert {(one.step, one.stream) for one in drawn} == {
        (step, stream)
        for step in ("async", "worker", "inline")
        for stream in ("list", "generator", "queue")
    }


def test_a_schedule_follows_from_its_seed_alone():
    assert [draw(seed) for seed in range(50)] == [draw(seed) for seed in range(50)]


@pytest.mark.parametrize(
    "defect",
    [
        pytest.param(defect, marks=pytest.mark.slow if number % 12 else ())
        for number, defect in enumerate(DEFECTS)
    ],
)
def test_a_defect_is_found_and_its_seed_is_told(defect):
    told = storms(range(12), defect=defect)
    found = [one for one in told if any(DEFECTS[defect] in wrong for wrong in one["wrong"])]
    assert found, [one["wrong"] for one in told]
    assert found[0]["schedule"]["seed"] == found[0]["seed"]
    assert found[0]["happened"]


# ------------------------------------------------------------------ the oracle, by hand

START = ["run", "begin before_training", "end before_training"]
BATCH = [
    "begin before_batch",
    "end before_batch",
    "step",
    "step_end",
    "begin after_batch",
    "end after_batch",
]
INTERRUPT = ["begin on_interrupt", "end on_interrupt"]
FINISH = ["begin after_training", "end after_training"]
END = ["final", "over"]


def entries_of(*parts):
    """Make a trace out of words; a stop has the number of its place, and is settled by name."""
    found, numbers = [], {}
    for at, word in enumerate(word for part in parts for word in part):
        what, _, name = word.partition(" ")
        if what == "sent":
            numbers[name] = at
        n = numbers[name] if what in ("sent", "settled") else 1
        found.append(Entry(what, name, n, at / 1000))
    return found


def stop_in_step(action):
    """Give a batch in whose step a stop came and was heard."""
    return [*BATCH[:3], f"sent {action}", f"settled {action}", *BATCH[3:]]


ASKED = {"batch_interrupt_received": 1, "interrupt_cause": "SIGTERM"}
CANCELLED = ASKED | {"interrupt_cause": "cancelled"}
FINISHED = {"training_finished": 1}


@pytest.mark.parametrize(
    ("parts", "outcome", "records"),
    [
        ((START, BATCH, FINISH, END), "returned", FINISHED),
        ((START, stop_in_step("SIGTERM"), INTERRUPT, FINISH, END), "returned", ASKED | FINISHED),
        ((START, stop_in_step("cancel"), INTERRUPT, END), "cancelled", CANCELLED),
        ((START, stop_in_step("timeout"), INTERRUPT, END), "timeout", CANCELLED),
        (
            (START, BATCH[:3], ["raise step 1", "begin on_error", "end on_error"], END),
            "fault step 1",
            {"got_exception": "…"},
        ),
    ],
)
def test_the_oracle_permits_what_the_table_of_endings_says(parts, outcome, records):
    seen = Seen(outcome, records, is_complete=True)
    assert Judgement(Facts(grace_s=9), entries_of(*parts), seen).differences() == []


@pytest.mark.parametrize(
    ("parts", "outcome", "records", "wrong"),
    [
        (
            (START, stop_in_step("cancel"), INTERRUPT, END),
            "returned",
            CANCELLED,
            "outcome 'returned', permitted ['cancelled']",
        ),
        (
            (START, stop_in_step("cancel"), INTERRUPT, FINISH, END),
            "cancelled",
            CANCELLED | FINISHED,
            "after_training though the run was cancelled before it",
        ),
        (
            (START, stop_in_step("SIGTERM"), FINISH, END),
            "returned",
            ASKED | FINISHED,
            "no on_interrupt at level {2}",
        ),
        (
            (START, stop_in_step("SIGTERM"), BATCH, INTERRUPT, FINISH, END),
            "returned",
            ASKED | FINISHED,
            "batch 1 was begun after a stop at the batch",
        ),
        (
            (START, stop_in_step("SIGTERM"), INTERRUPT, FINISH, END),
            "returned",
            FINISHED,
            "no record batch_interrupt_received",
        ),
        (
            (START, BATCH, FINISH, END),
            "keyboard",
            FINISHED,
            "outcome 'keyboard', permitted ['returned']",
        ),
        (
            (START, BATCH, INTERRUPT, FINISH, END),
            "returned",
            FINISHED,
            "on_interrupt though nothing was asked from outside",
        ),
        (
            (START, BATCH[:3], ["raise step 1"], END),
            "fault step 1",
            {"got_exception": "…"},
            f"{ENDINGS} were called (0, 0, 0) times after step 1 failed, expected (0, 0, 1)",
        ),
    ],
)
def test_the_oracle_refuses_what_it_does_not_say(parts, outcome, records, wrong):
    seen = Seen(outcome, records, is_complete=True)
    assert Judgement(Facts(grace_s=9), entries_of(*parts), seen).differences() == [wrong]


@pytest.mark.parametrize("outcome", ["returned", "timeout"])
def test_the_oracle_lets_a_timeout_race_with_the_end_of_the_run(outcome):
    parts = (START, BATCH, FINISH, ["final", "sent timeout", "over"])
    seen = Seen(outcome, FINISHED, is_complete=True)
    assert Judgement(Facts(grace_s=9), entries_of(*parts), seen).differences() == []
