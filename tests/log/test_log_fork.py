"""A process that is forked from one with logs has logs of its own, and harms nobody's."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
from log_helpers import query
from log_tools import reopen, rows_of

from aloop.log.sqlite import SQLiteLog

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no os.fork here"),
    pytest.mark.aloop_guard(block_s=None),  # the scripts are waited for where their log is
]

PREAMBLE = """
import asyncio, json, multiprocessing, os, sqlite3, sys, time, traceback
from contextlib import closing
from aloop.log.sqlite import SQLiteLog

database = sys.argv[1]
started = []

def fork(work, *arguments, leave=os._exit):
    "Do the work in a child, and give its process id."
    pid = os.fork()
    if pid:
        started.append(pid)
        return pid
    started.clear()
    code = 1
    try:
        work(*arguments)
        code = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    leave(code)

def join():
    "Wait for the children; fail with them."
    while started:
        _, status = os.waitpid(started.pop(), 0)
        assert status == 0, status

def tell(**what):
    os.write(1, (json.dumps(what) + "\\n").encode())  # at once: others write to the pipe too

def rows_of(log):
    return {time: dict(log[time]) for time in log}

async def write(log, name, *times):
    async with log:
        for time in times:
            log[time][name] = time
            log.status["iterations_done"] = max(log.status["iterations_done"], time)
    tell(who=name, run=log.h_uuid, resumed_from=log.status["resumed_from"])
"""


def run_script(database, script, timeout=10):
    """Run a script, every warning an error; give what it and its children told, by who told it."""
    program = PREAMBLE + textwrap.dedent(script)
    # Forking beside threads is what this is about.
    flags = ["-W", "error", "-W", "ignore:This process:DeprecationWarning"]
    with subprocess.Popen(
        [sys.executable, *flags, "-c", program, database],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the script hangs: {_kill_all(process)}")
    assert (process.returncode, err) == (0, "")
    told = [json.loads(line) for line in out.splitlines()]
    return {each.pop("who"): each for each in told}


def _kill_all(process):
    """End the script with all its children, and give what they wrote."""
    os.killpg(process.pid, signal.SIGKILL)
    return process.communicate()


def is_sound(database):
    return query(database, "PRAGMA integrity_check") == [("ok",)]


# ------------------------------------------------------------------ not open at the fork


async def test_log_made_before_the_fork_is_a_run_of_its_own_in_each_child(database):
    told = run_script(
        database,
        """
        log = SQLiteLog(database)
        for name in "abc":
            fork(lambda: asyncio.run(write(log, name, 0, 1)))
        join()
        """,
    )
    assert len({each["run"] for each in told.values()}) == 3
    assert [each["resumed_from"] for each in told.values()] == [None] * 3
    for name, each in told.items():
        log = SQLiteLog(database, each["run"])
        async with log:
            assert rows_of(log) == {0: {name: 0}, 1: {name: 1}}
    assert is_sound(database)


async def test_log_made_before_the_fork_is_a_run_of_its_own_in_parent_and_child(database):
    told = run_script(
        database,
        """
        log = SQLiteLog(database)
        fork(lambda: asyncio.run(write(log, "child", 0, 1)))
        asyncio.run(write(log, "parent", 0))
        join()
        """,
    )
    assert told["parent"]["run"] != told["child"]["run"]
    log = SQLiteLog(database)
    assert rows_of(await reopen(log, told["parent"]["run"])) == {0: {"parent": 0}}
    assert rows_of(await reopen(log, told["child"]["run"])) == {0: {"child": 0}, 1: {"child": 1}}


async def test_records_written_before_the_first_opening_are_in_the_childs_run_too(database):
    told = run_script(
        database,
        """
        log = SQLiteLog(database)
        log[0]["before"] = 1
        fork(lambda: asyncio.run(write(log, "child", 0)))
        join()
        asyncio.run(write(log, "parent", 0))
        """,
    )
    log = SQLiteLog(database)
    for name in ("parent", "child"):
        assert rows_of(await reopen(log, told[name]["run"])) == {0: {"before": 1, name: 0}}


def test_child_that_leaves_unopened_log_alone_exits_without_warning(database):
    run_script(
        database,
        """
        log = SQLiteLog(database)
        log[0]["before"] = 1
        fork(lambda: None, leave=sys.exit)
        join()
        asyncio.run(log.flush())
        """,
    )
    assert query(database, "SELECT time, key, value FROM entries") == [(0, "before", 1)]


async def test_run_asked_for_by_its_id_is_read_in_the_child(database):
    log = SQLiteLog(database)
    log[0]["before"] = 1
    await log.flush()
    told = run_script(
        database,
        f"""
        log = SQLiteLog(database, "{log.h_uuid}")
        fork(lambda: asyncio.run(write(log, "child", 0)))
        join()
        """,
    )
    assert rows_of(await reopen(log, told["child"]["run"])) == {0: {"before": 1, "child": 0}}


# ------------------------------------------------------------------ open at the fork

OPEN = """
async def main():
    log = await SQLiteLog(database).open()
    for time in range(5):
        log[time]["parent"] = time
    log.status["iterations_done"] = 4
    await log.flush()
"""


async def both(database, told):
    """Give the rows of the parent's run and of the child's."""
    log = SQLiteLog(database)
    runs = [told[who]["run"] for who in ("parent", "child")]
    return [rows_of(await reopen(log, run)) for run in runs]


def parent_rows(*times):
    return {time: {"parent": time} for time in times}


async def test_log_in_the_child_is_a_run_resumed_from_the_parents(database):
    told = run_script(
        database,
        OPEN
        + """
    fork(lambda: asyncio.run(write(log, "child", 5, 6)))
    join()
    await log.close()
    await write(log, "parent", 5)
asyncio.run(main())
""",
    )
    assert told["child"]["resumed_from"] == told["parent"]["run"]
    assert query(database, "SELECT run, resumed_from, forked_at FROM runs ORDER BY id") == [
        (told["parent"]["run"], None, None),
        (told["child"]["run"], told["parent"]["run"], 4),
    ]
    assert await both(database, told) == [
        parent_rows(*range(6)),
        parent_rows(*range(5)) | {5: {"child": 5}, 6: {"child": 6}},
    ]
    assert is_sound(database)


async def test_several_children_of_an_open_log_do_not_clash(database):
    told = run_script(
        database,
        OPEN
        + """
    for name in "abcd":
        fork(lambda: asyncio.run(write(log, name, 4, 5)))
    join()
    await log.close()
asyncio.run(main())
""",
    )
    log = SQLiteLog(database)
    for name in "abcd":
        rows = rows_of(await reopen(log, told[name]["run"]))
        assert rows == parent_rows(*range(4)) | {4: {"parent": 4, name: 4}, 5: {name: 5}}
    assert is_sound(database)


async def test_records_that_the_parent_had_not_written_are_the_childs_too(database):
    told = run_script(
        database,
        OPEN
        + """
    log[3]["late"] = log[5]["parent"] = 5
    log.status["iterations_done"] = 5
    fork(lambda: asyncio.run(write(log, "child", 6)))
    join()
    await write(log, "parent", 7)
    await log.close()
asyncio.run(main())
""",
    )
    before = parent_rows(*range(6)) | {3: {"parent": 3, "late": 5}}
    parent, child = await both(database, told)
    assert parent == before | parent_rows(7)
    assert child == before | {6: {"child": 6}}


async def test_child_of_a_child_goes_on_from_it(database):
    told = run_script(
        database,
        OPEN
        + """
    async def child_work():
        async with log:
            log[5]["child"] = 5
            log.status["iterations_done"] = 5
            await log.flush()
            fork(lambda: asyncio.run(write(log, "grandchild", 6)))
            join()
        tell(who="child", run=log.h_uuid)

    fork(lambda: asyncio.run(child_work()))
    join()
    await log.close()
asyncio.run(main())
""",
    )
    assert told["grandchild"]["resumed_from"] == told["child"]["run"]
    rows = rows_of(await reopen(SQLiteLog(database), told["grandchild"]["run"]))
    assert rows == parent_rows(*range(5)) | {5: {"child": 5}, 6: {"grandchild": 6}}


async def test_parent_and_child_write_at_the_same_time(database):
    told = run_script(
        database,
        OPEN
        + """
    async def many(name):
        async with log:
            for time in range(5, 205):
                log[time][name] = time
                log.status["iterations_done"] = time
                await log.flush()
        tell(who=name, run=log.h_uuid)

    fork(lambda: asyncio.run(many("child")))
    await many("parent")
    await log.close()
    join()
asyncio.run(main())
""",
    )
    parent, child = await both(database, told)
    assert parent == parent_rows(*range(205))
    assert child == parent_rows(*range(5)) | {time: {"child": time} for time in range(5, 205)}
    assert is_sound(database)


async def test_child_that_outlives_the_parents_log_loses_nothing(database):
    told = run_script(
        database,
        OPEN
        + """
    opened, opened_end = os.pipe()
    closed, closed_end = os.pipe()

    async def child_work():
        async with log:
            log[5]["child"] = 5
            await log.flush()
            os.write(opened_end, b"x")
            os.read(closed, 1)
            log.status["iterations_done"] = 9
            for time in range(6, 10):
                log[time]["child"] = time
            await log.flush()
        tell(who="child", run=log.h_uuid)

    fork(lambda: asyncio.run(child_work()))
    os.read(opened, 1)
    await log.close()  # the parent's last connection
    tell(who="parent", run=log.h_uuid)
    os.write(closed_end, b"x")
    join()
asyncio.run(main())
""",
    )
    _, child = await both(database, told)
    assert child == parent_rows(*range(5)) | {time: {"child": time} for time in range(5, 10)}
    assert is_sound(database)


@pytest.mark.slow
async def test_forking_while_a_group_is_being_written_holds_up_nobody(database):
    told = run_script(
        database,
        OPEN  # noqa: S608
        + '''
    with closing(sqlite3.connect(database)) as other:
        other.execute("""
            CREATE TRIGGER slow BEFORE INSERT ON stored_entries WHEN NEW.time = 4
            BEGIN SELECT (
                WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 2000000)
                SELECT MAX(x) FROM c
            ); END
        """)
    log[4]["slow"] = 1
    flush = asyncio.create_task(log.flush())
    while log._unwritten:  # until it is on its way
        await asyncio.sleep(0)
    connection = log._journal._thread.committer._connection
    while not connection.in_transaction:
        await asyncio.sleep(0)
    fork(lambda: asyncio.run(write(log, "child", 5)))
    await flush
    await log.close()
    tell(who="parent", run=log.h_uuid)
    join()
asyncio.run(main())
''',
    )
    before = parent_rows(*range(5)) | {4: {"parent": 4, "slow": 1}}
    assert await both(database, told) == [before, before | {5: {"child": 5}}]
    assert is_sound(database)


async def test_child_reads_rows_that_had_left_the_parents_memory(database):
    told = run_script(
        database,
        """
        import aloop.log.window
        aloop.log.window.WINDOW_ROWS = aloop.log.window.LEAST_ROWS = 8

        async def main():
            log = await SQLiteLog(database).open()
            for time in range(50):
                log[time]["parent"] = time
            log.status["iterations_done"] = 49
            await log.flush()
            _ = log[3]  # over a connection that stays open
            assert len(list(log._rows)) == 8
            fork(lambda: tell(who="reads", rows=rows_of(log), count=len(log)))
            fork(lambda: asyncio.run(write(log, "child", 2)))
            join()
            assert len(log) == 50
            await log.close()
            tell(who="parent", run=log.h_uuid)
        asyncio.run(main())
        """,
    )
    everything = parent_rows(*range(50))
    assert told["reads"] == {
        "rows": {str(time): row for time, row in everything.items()},
        "count": 50,
    }
    assert await both(database, told) == [
        everything,
        everything | {2: {"parent": 2, "child": 2}},
    ]


# Not by sys.exit: it would end the copied asyncio.run, which takes the parent's event loop, whose
# selector both processes share, down with it.
@pytest.mark.parametrize("leave", ["os._exit"])
def test_child_that_leaves_an_open_log_alone_exits_at_once(database, leave):
    told = run_script(
        database,
        OPEN
        + f"""
    log[4]["late"] = 1
    fork(lambda: None, leave={leave})
    join()
    log[5]["parent"] = 5
    await log.close()
    tell(who="parent", run=log.h_uuid)
asyncio.run(main())
""",
    )
    [(run, count)] = query(database, "SELECT run, COUNT(*) FROM entries GROUP BY run")
    assert (run, count, is_sound(database)) == (told["parent"]["run"], 7, True)


@pytest.mark.parametrize("leave", ["os._exit"])
async def test_child_forked_between_two_turns_of_the_event_loop_exits_at_once(database, leave):
    told = run_script(
        database,
        f"""
        async def begin():
            log = await SQLiteLog(database).open()
            log[0]["parent"] = 0
            await log.flush()
            return log

        with asyncio.Runner() as runner:
            log = runner.run(begin())
            log[0]["late"] = 1
            pid = os.fork()
            if not pid:
                {leave}(0)
            started.append(pid)
            join()
            runner.run(log.close())
        tell(who="parent", run=log.h_uuid)
        """,
    )
    rows = rows_of(await reopen(SQLiteLog(database), told["parent"]["run"]))
    assert rows == {0: {"parent": 0, "late": 1}}


async def test_parent_may_hold_its_log_alone_while_children_come_and_go(database):
    run_script(
        database,
        """
        async def main():
            log = await SQLiteLog(database, if_in_use="refuse").open()
            log[0]["parent"] = 0
            await log.flush()
            fork(lambda: None)
            join()
            try:
                await asyncio.to_thread(asyncio.run, SQLiteLog(database, if_in_use="refuse").open())
            except Exception as error:
                tell(who="other", error=type(error).__name__)
            await log.close()
        asyncio.run(main())
        """,
    )
    assert not database.with_name(f"{database.name}-lock").exists()


# ------------------------------------------------------------------ records nobody saved


async def test_records_of_the_child_that_were_never_saved_are_warned_about(database):
    told = run_script(
        database,
        OPEN
        + """
    log[3]["late"] = log[4]["late"] = 1  # inherited: the parent writes them

    def child_work():
        import gc, warnings
        async def flush():
            await log.flush()
        asyncio.run(flush())
        log[4]["never saved"] = 1
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            log.__del__()
        log._unwritten.clear()
        tell(who="child", warnings=[str(each.message)[:29] for each in caught])

    fork(child_work)
    join()
    await log.close()
asyncio.run(main())
""",
    )
    assert told["child"]["warnings"] == ["1 records written to the log "]


# ------------------------------------------------------------------ multiprocessing


async def test_children_of_multiprocessing_have_runs_of_their_own(database):
    told = run_script(
        database,
        OPEN
        + """
    context = multiprocessing.get_context("fork")

    def child_work(name):
        asyncio.run(write(log, name, 4, 5))

    children = [context.Process(target=child_work, args=(name,)) for name in "ab"]
    for child in children:
        child.start()
    log[5]["parent"] = 5
    await log.flush()
    for child in children:
        child.join()
        assert child.exitcode == 0
    await log.close()
    tell(who="parent", run=log.h_uuid)
asyncio.run(main())
""",
    )
    log = SQLiteLog(database)
    assert rows_of(await reopen(log, told["parent"]["run"])) == parent_rows(*range(6))
    for name in "ab":
        rows = rows_of(await reopen(log, told[name]["run"]))
        assert rows == parent_rows(*range(4)) | {4: {"parent": 4, name: 4}, 5: {name: 5}}
    assert is_sound(database)


async def test_training_in_the_parent_is_not_troubled_by_workers_it_forks(database):
    told = run_script(
        database,
        """
        from aloop import FinishAfter, MainLoop, TrainingExtension

        context = multiprocessing.get_context("fork")

        class Work(TrainingExtension):
            async def after_batch(self, batch):
                self.main_loop.log.current_row["batch"] = batch
                if batch % 100 == 0:
                    child = context.Process(target=abs, args=(1,))
                    child.start()
                    await asyncio.to_thread(child.join)
                    assert child.exitcode == 0

        async def no_op(batch):
            pass

        log = SQLiteLog(database)
        extensions = [Work(), FinishAfter(after_n_epochs=1)]
        loop = MainLoop(no_op, range(500), log=log, extensions=extensions)
        asyncio.run(loop.run())
        tell(who="parent", run=log.h_uuid)
        """,
    )
    assert query(database, "SELECT run, COUNT(*) FROM entries WHERE key = 'batch'") == [
        (told["parent"]["run"], 500)
    ]


async def test_training_in_the_child_goes_on_from_the_parents(database):
    told = run_script(
        database,
        """
        from aloop import FinishAfter, MainLoop, TrainingExtension

        class Write(TrainingExtension):
            async def after_batch(self, batch):
                self.main_loop.log.current_row["batch"] = batch

        async def no_op(batch):
            pass

        log = SQLiteLog(database)
        extensions = [Write(), FinishAfter(every_n_epochs=1)]
        loop = MainLoop(no_op, range(10), log=log, extensions=extensions)

        def train():
            asyncio.run(loop.run())
            tell(who="child", run=log.h_uuid)

        asyncio.run(loop.run())
        tell(who="parent", run=log.h_uuid)
        context = multiprocessing.get_context("fork")
        child = context.Process(target=train)
        child.start()
        child.join()
        assert child.exitcode == 0
        """,
    )
    parent, child = await both(database, told)
    assert [row["batch"] for row in parent.values() if "batch" in row] == list(range(10))
    assert [row["batch"] for row in child.values() if "batch" in row] == 2 * list(range(10))
