"""Any values come back; any story a log goes through is that of plain dictionaries."""

import asyncio
import copy
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from log_tools import exact, load_run, reopen, rows_of

from aloop.log.base import TrainingLog
from aloop.log.sqlite import SQLiteLog

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
INT64 = st.integers(-(2**63), 2**63 - 1)
SCALARS = st.one_of(st.none(), st.booleans(), INT64, st.floats(), TEXT)
ARRAYS = hnp.arrays(
    st.one_of(
        hnp.boolean_dtypes(),
        hnp.integer_dtypes(endianness="?"),
        hnp.unsigned_integer_dtypes(endianness="?"),
        hnp.floating_dtypes(sizes=(16, 32, 64), endianness="?"),
    ),
    hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=3),
)
KEYS = st.one_of(TEXT, st.sampled_from(["$array", "$tuple", "$dict"]))
VALUES = st.recursive(
    st.one_of(SCALARS, ARRAYS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(KEYS, inner, max_size=3),
    ),
    max_leaves=12,
)
RECORDS = st.dictionaries(TEXT, VALUES, min_size=1, max_size=8)

# A file for each example takes its time; how long is no property of the log.
UNHURRIED = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@given(RECORDS)
@settings(max_examples=60, **UNHURRIED)
def test_any_values_are_what_they_were_in_memory(records):
    log = TrainingLog()
    log[0].update(records)
    assert exact(dict(log[0])) == exact(records)


@given(RECORDS)
@settings(max_examples=30, **UNHURRIED)
def test_any_values_are_what_they_were_after_a_trip_through_the_file(records):
    async def trip(directory):
        log = SQLiteLog(Path(directory) / "log.sqlite")
        log[0].update(records)
        log.status.update({f"own {key}": value for key, value in records.items()})
        await log.flush()
        again = await reopen(log)
        return dict(again[0]), dict(again.status)

    with tempfile.TemporaryDirectory() as directory:
        row, status = asyncio.run(trip(directory))
    assert exact(sorted(row.items())) == exact(sorted(records.items()))
    own = {key[4:]: value for key, value in status.items() if key.startswith("own ")}
    assert exact(sorted(own.items())) == exact(sorted(records.items()))


@given(st.dictionaries(KEYS, VALUES, max_size=4))
@settings(max_examples=30, **UNHURRIED)
def test_any_hyperparameters_are_what_they_were_after_a_trip_through_the_file(hyperparameters):
    async def trip(directory):
        log = SQLiteLog(Path(directory) / "log.sqlite")
        log.describe(hyperparameters=hyperparameters)
        async with log:
            pass
        return await reopen(log)

    with tempfile.TemporaryDirectory() as directory:
        again = asyncio.run(trip(directory))
    assert exact(again.hyperparameters) == exact(hyperparameters)


TIMES = st.integers(0, 7)
NAMES = st.sampled_from(["cost", "accuracy", "'; --"])
SMALL = st.sampled_from([0, 1, 2.5, None, True, float("nan"), [1], (), {"$tuple": 1}])


class Story:
    """What a log holds, in plain dictionaries."""

    def __init__(self):
        self.rows = {}
        self.status = {
            "iterations_done": 0,
            "epochs_done": 0,
            "_epoch_ends": [],
            "resumed_from": None,
        }

    def exact(self):
        rows = {time: dict(sorted(row.items())) for time, row in sorted(self.rows.items()) if row}
        return exact(rows), exact(dict(sorted(self.status.items())))

    @classmethod
    def told_by(cls, rows, status):
        story = cls()
        story.rows, story.status = rows, status
        return story.exact()


class LogStories(RuleBasedStateMachine):
    """Writes, deletes, commits, flushes, evicts, resumes, reopens and crashes a log in a file.

    Two rows stay in memory once they are written, so that most are read back.
    """

    @initialize(value=SMALL)
    def start(self, value):
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr("aloop.log.window.WINDOW_ROWS", 2)
        self.patch.setattr("aloop.log.window.LEAST_ROWS", 2)
        self.held = {}  # rows that somebody holds
        self.directory = tempfile.TemporaryDirectory()
        self.database = Path(self.directory.name) / "log.sqlite"
        self.runner = asyncio.Runner()
        self.log = SQLiteLog(self.database)
        self.story = Story()  # as it is in memory
        self.committed = None  # as it was at the last commit point, in a session
        self.saved = {}  # as they are in the file, by run
        self.before = {}  # what the runs before this one were when they ended
        self.session = None
        self.write(0, "cost", value)
        self.flush()

    def teardown(self):
        if self.session:
            self.leave_session()
        self.runner.run(self.log.flush())
        self.runner.run(self.log.close())
        self.runner.close()
        self.directory.cleanup()
        self.patch.undo()

    def _saved(self, story):
        """Note that the file now holds this story, and the ends of the runs before it."""
        self.saved |= self.before
        self.before = {}
        self.saved[self.log.h_uuid] = copy.deepcopy(story)

    # ---- what is written

    @rule(time=TIMES, key=NAMES, value=SMALL)
    def write(self, time, key, value):
        self.log[time][key] = value
        self.story.rows.setdefault(time, {})[key] = value

    @rule(time=TIMES, values=st.dictionaries(NAMES, SMALL, min_size=1))
    def update(self, time, values):
        self.log[time].update(values)
        self.story.rows.setdefault(time, {}).update(values)

    @rule(time=TIMES, key=NAMES)
    def delete(self, time, key):
        assert exact(self.log[time].pop(key, "absent")) == exact(
            self.story.rows.get(time, {}).pop(key, "absent")
        )

    @precondition(lambda self: any(self.story.rows.values()))
    @rule(data=st.data())
    def delete_what_is_there(self, data):
        there = sorted((time, key) for time, row in self.story.rows.items() for key in row)
        time, key = data.draw(st.sampled_from(there))
        del self.log[time][key], self.story.rows[time][key]

    @rule(time=TIMES)
    def clear(self, time):
        self.log[time].clear()
        self.story.rows.pop(time, None)

    @rule(time=TIMES)
    def hold(self, time):
        self.held[time] = self.log[time]

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def let_go(self, data):
        del self.held[data.draw(st.sampled_from(sorted(self.held)))]

    @precondition(lambda self: self.held)
    @rule(data=st.data(), key=NAMES, value=SMALL)
    def write_to_a_held_row(self, data, key, value):
        time = data.draw(st.sampled_from(sorted(self.held)))
        self.held[time][key] = value
        self.story.rows.setdefault(time, {})[key] = value

    @rule(key=NAMES, value=SMALL)
    def write_status(self, key, value):
        self.log.status[key] = self.story.status[key] = value

    @rule(key=NAMES)
    def delete_status(self, key):
        self.log.status.pop(key, None)
        self.story.status.pop(key, None)

    @rule(time=TIMES)
    def move(self, time):
        self.log.status["iterations_done"] = self.story.status["iterations_done"] = time

    @rule()
    def end_epoch(self):
        self.log.status.end_epoch()
        status = self.story.status
        status["epochs_done"] += 1
        status["_epoch_ends"] = [*status["_epoch_ends"], status["iterations_done"]]

    # ---- what is done with it

    @precondition(lambda self: self.session is None)
    @rule()
    def open(self):
        self.runner.run(self.log.open())

    @precondition(lambda self: self.session is None)
    @rule()
    def close(self):
        was_open = self.log.is_open
        self.runner.run(self.log.close())
        if was_open:
            self._saved(self.story)

    @precondition(lambda self: self.session is None)
    @rule()
    def flush(self):
        self.runner.run(self.log.flush())
        self._saved(self.story)

    @precondition(lambda self: self.session is None)
    @rule()
    def enter_session(self):
        self.runner.run(self.log.flush())
        self._saved(self.story)
        self.committed = copy.deepcopy(self.story)
        self.session = self.log.session()
        self.runner.run(self.session.__aenter__())

    @precondition(lambda self: self.session is not None)
    @rule()
    def commit(self):
        self.log.commit()
        self.committed = copy.deepcopy(self.story)

    @precondition(lambda self: self.session is not None)
    @rule(durable=st.booleans())
    def commit_and_flush(self, durable):
        self.log.commit(durable=durable)
        self.committed = copy.deepcopy(self.story)
        self.flush_in_session()

    @precondition(lambda self: self.session is not None)
    @rule()
    def flush_in_session(self):
        self.runner.run(self.log.flush())
        self._saved(self.committed)
        assert self._in_file() == self.committed.exact()

    @precondition(lambda self: self.session is not None)
    @rule()
    def leave_session(self):
        session, self.session = self.session, None
        self.runner.run(session.__aexit__(None, None, None))
        self._saved(self.story)

    @precondition(lambda self: self.session is None)
    @rule()
    def resume(self):
        self.before[self.log.h_uuid] = copy.deepcopy(self.story)
        self.story.status["resumed_from"] = self.log.h_uuid
        now = self.story.status["iterations_done"]
        self.story.rows = {time: row for time, row in self.story.rows.items() if time <= now}
        self.held = {time: row for time, row in self.held.items() if time <= now}
        self.log.resume()

    @precondition(lambda self: self.session is None)
    @rule()
    def reopen(self):
        self.runner.run(self.log.flush())
        self.runner.run(self.log.close())
        self._saved(self.story)
        self._go_on(self.log.h_uuid)

    def _go_on(self, run):
        self.held = {}
        self.log = SQLiteLog(self.database, run)
        self.runner.run(self.log.open())

    @precondition(lambda self: self.session is None)
    @rule(data=st.data())
    def fork_from_an_earlier_run(self, data):
        self.runner.run(self.log.flush())
        self.runner.run(self.log.close())
        self._saved(self.story)
        # In the order in which they were saved: their ids are drawn anew at each try.
        run = data.draw(st.sampled_from(list(self.saved)))
        self._go_on(run)
        self.story = copy.deepcopy(self.saved[run])
        self.resume()

    @rule(data=st.data())
    def crash(self, data):
        """Go on from the files as they are at this moment, which is what a kill leaves."""
        saved, committed, before = dict(self.saved), copy.deepcopy(self.committed), self.before
        after = self.database.with_name(f"after {self.database.name}")
        for ending in ("", "-wal"):
            if Path(f"{self.database}{ending}").exists():
                shutil.copy(f"{self.database}{ending}", f"{after}{ending}")
        last = self.log.h_uuid
        if self.session is not None:
            self.leave_session()
        self.runner.run(self.log.flush())
        while self.log.is_open:
            self.runner.run(self.log.close())
        self.database = after
        # What was flushed is there; the writer may have come to the last commit point by itself.
        head, rows = load_run(after, last if last in saved else list(saved)[-1])
        found = Story.told_by(rows, head.status)
        self.saved, self.before, self.committed = saved, {}, None
        if found != saved[head.run].exact():
            assert committed is not None
            assert found == committed.exact()
            saved[head.run] = committed
            saved |= before
        self._go_on(head.run)
        self.story = copy.deepcopy(saved[head.run])

    # ---- what has to hold

    def _in_file(self):
        head, rows = load_run(self.database, self.log.h_uuid)
        return Story.told_by(rows, head.status)

    @invariant()
    def memory_tells_the_story(self):
        if not hasattr(self, "log"):
            return
        assert len(self.log) == sum(1 for row in self.story.rows.values() if row)
        assert Story.told_by(rows_of(self.log), dict(self.log.status)) == self.story.exact()

    @invariant()
    def held_rows_are_the_rows_of_the_log(self):
        for time, row in getattr(self, "held", {}).items():
            assert self.log[time] is row

    @invariant()
    def series_are_those_of_the_story(self):
        if not hasattr(self, "log"):
            return
        times, values = self.runner.run(self.log.series("cost"))
        found = dict(zip(times.tolist(), values.tolist(), strict=True))
        told = {t: row["cost"] for t, row in sorted(self.story.rows.items()) if "cost" in row}
        assert list(found) == list(told)
        for time, value in told.items():  # numbers beside other numbers may have become floats
            assert found[time] == value or exact(found[time]) == exact(value)

    @invariant()
    def file_tells_the_story_of_every_run(self):
        if not hasattr(self, "log") or self.session is not None:
            return  # in a session the writer may be ahead of the last flush
        for run, story in self.saved.items():
            head, rows = load_run(self.database, run)
            assert Story.told_by(rows, head.status) == story.exact()


def test_any_story_of_a_log_is_that_of_plain_dictionaries():
    run_state_machine_as_test(
        LogStories, settings=settings(max_examples=30, stateful_step_count=25, **UNHURRIED)
    )


@given(st.lists(st.tuples(TIMES, NAMES, SMALL), max_size=60), st.integers(1, 8))
@settings(max_examples=15, **UNHURRIED)
def test_file_holds_a_whole_number_of_boundaries_at_any_flush(writes, length):
    boundaries = [writes[i : i + length] for i in range(0, len(writes), length)]

    async def run(directory):
        log = SQLiteLog(Path(directory) / "log.sqlite")
        rows = {}
        async with log.session():
            for boundary in boundaries:
                for time, key, value in boundary:
                    log[time][key] = value
                    rows.setdefault(time, {})[key] = value
                before = log.sequence
                log.commit()
                log[99]["half"] = True
                await log.flush()
                head, found = load_run(log.database, log.h_uuid)
                assert head.sequence == before + 1
                assert Story.told_by(found, {}) == Story.told_by(rows, {})
                del log[99]["half"]

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(run(directory))


@given(hnp.arrays(np.float64, hnp.array_shapes(max_dims=2, max_side=5)))
@settings(max_examples=50, **UNHURRIED)
def test_layout_of_an_array_does_not_matter(array):
    log = TrainingLog()
    log[0].update(c=np.ascontiguousarray(array), f=np.asfortranarray(array), v=array[::-1][::-1])
    assert exact(log[0]["c"]) == exact(log[0]["f"]) == exact(log[0]["v"]) == exact(array)
