"""Storms over runs: stops of every kind, at any moment, against real runs with a real log.

``python storm.py SEED ...`` does the schedules of these seeds, one after another, and tells of
each by a line of JSON: the seed, what was wrong, and if anything was, the schedule and what
happened. The exit code is 1 if anything was. A schedule follows from its seed alone; its events
are tied to moments of the run and never to the clock. What a run may come to is said by
`storm_oracle`; here is the rest: nothing is lost, doubled or left behind.

`STORM_BREAKS` names a defect of `BREAKS`, which is put into aloop first, to see that it is found.
"""

import asyncio
import faulthandler
import gc
import json
import logging
import os
import signal
import sqlite3
import sys
import tempfile
import threading
from collections import Counter, defaultdict
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from time import monotonic

import anyio
from storm_oracle import SIGNALS, Entry, Judgement, Seen
from storm_schedule import Event, Fault, Schedule, draw

import aloop.training
from aloop import (
    FinishAfter,
    MainLoop,
    SimpleExtension,
    SQLiteLog,
    TrainingAlgorithm,
    TrainingExtension,
)
from aloop import as_algorithm as algorithm_of
from aloop.background import BackgroundWork
from aloop.errors import AlreadyRunningError, NotRunningError
from aloop.extensions.dispatch import Dispatcher
from aloop.signals import _Switchboard

SETTLE_TURNS = 5
"""After how many turns of the event loop a run has heard what was sent to it."""

HANGS_S = 12.0
"""After how long a schedule counts as hanging; it tells what happened, and is ended."""

RECORDS = (
    "training_finished",
    "got_exception",
    "batch_interrupt_received",
    "epoch_interrupt_received",
    "interrupt_cause",
    "step_abandoned",
)


# ------------------------------------------------------------------ the parts of a run


class FaultError(Exception):
    """What a fault raises."""


class HostError(Exception):
    """What a handler of the program raises."""


class StormLog(SQLiteLog):
    """Tells when the last commit begins."""

    storm: "Storm"

    async def close(self) -> None:
        if not self._in_session:  # a flush may open and close it, too
            self.storm.moment("final")
        await super().close()


class Director(TrainingExtension):
    """The first extension: each callback is a moment. Writes the first half of each row."""

    def __init__(self, storm: "Storm") -> None:
        super().__init__()
        self.storm = storm

    def handler(self, callback):
        async def direct(*args: object) -> None:
            storm, n = self.storm, None
            if callback == "before_batch":
                storm.taken.append(args[0])
                n = len(storm.taken)
            elif callback == "after_batch":
                n = len(storm.taken)
                self.main_loop.log.current_row["a"] = args[0]
                storm.iterations.append(self.main_loop.status["iterations_done"])
            n = storm.count(callback) if n is None else n
            storm.note("begin", str(callback), n)
            storm.moment(str(callback), n)

        return direct


class Tail(TrainingExtension):
    """The last extension: notes that all were called. Writes the second half of each row."""

    def __init__(self, storm: "Storm") -> None:
        super().__init__()
        self.storm = storm

    def handler(self, callback):
        async def end(*args: object) -> None:
            storm = self.storm
            if callback == "after_batch":
                log = self.main_loop.log
                log.current_row["b"] = -args[0]
                if storm.is_running:
                    storm.rows.append((log.h_uuid, log.status["iterations_done"], args[0]))
            n = len(storm.taken) if callback.endswith("batch") else storm.counts[callback]
            storm.note("end", str(callback), n)

        return end


class Slow(TrainingExtension):
    """Takes some turns of the event loop."""

    def __init__(self, turns: dict[str, int]) -> None:
        super().__init__()
        self.turns = turns

    def handler(self, callback):
        if callback not in self.turns:
            return None

        async def wait(*args: object) -> None:
            for _ in range(self.turns[callback]):
                await asyncio.sleep(0)

        return wait


class Flush(TrainingExtension):
    """Flushes the log after some of the batches, and only then acknowledges what was before."""

    def __init__(self, storm: "Storm") -> None:
        super().__init__()
        self.storm = storm

    async def after_batch(self, batch: object) -> None:
        log = self.main_loop.log
        if log.status["iterations_done"] in self.storm.schedule.flushes:
            rows = len(self.storm.rows)
            await log.flush()
            self.storm.acknowledge(rows)


class Beside(SimpleExtension):
    """Records beside the training, some turns after each batch, in the row of that batch."""

    def __init__(self, storm: "Storm") -> None:
        super().__init__(background=True)
        self.storm = storm
        self.add_condition(["after_batch"], self.is_due)

    def is_due(self, log: object) -> bool:
        self.storm.due_beside += 1
        return True

    async def do(self, which_callback: str, batch: int) -> None:
        for _ in range(10 * (self.storm.schedule.seed % 5)):
            await asyncio.sleep(0)
        log = self.main_loop.log
        log.current_row["c"] = 2 * batch
        self.storm.done_beside += 1
        self.storm.late_rows.append((log.h_uuid, self.main_loop.status["iterations_done"], batch))


class Faulty(TrainingExtension):
    """Does what the faults say."""

    def __init__(self, storm: "Storm") -> None:
        super().__init__()
        self.storm = storm

    def handler(self, callback):
        if callback not in {fault.where for fault in self.storm.schedule.faults}:
            return None

        async def fail(*args: object) -> None:
            storm = self.storm
            n = len(storm.taken) if callback == "after_batch" else storm.counts[callback]
            fault = storm.fault_at(str(callback), n)
            if fault is not None and storm.raises(fault):
                raise storm.errors[fault.name]
            if fault is not None:
                await storm.hang(fault)

        return fail


class Algorithm(TrainingAlgorithm):
    """A step that is a moment, and may fail or hang."""

    def __init__(self, storm: "Storm") -> None:
        self.storm = storm
        if storm.schedule.step == "async":
            self.process_batch = self.step_async
        elif storm.schedule.step == "worker":
            self.process_batch = algorithm_of(self.step_in_worker, "thread").process_batch
        else:
            self.process_batch = algorithm_of(self.step_inline, "inline").process_batch

    async def initialize(self) -> None:
        self.storm.note("begin", "initialize")
        self.storm.moment("initialize", 1)
        for _ in range(4):
            await asyncio.sleep(0)

    async def process_batch(self, batch):
        raise NotImplementedError

    async def step_async(self, batch: int) -> dict[str, float]:
        fault = self.storm.begin_step()
        for _ in range(batch % 4):
            await asyncio.sleep(0)
        if fault is not None and self.storm.raises(fault):
            raise self.storm.errors[fault.name]
        if fault is not None:
            await self.storm.hang(fault)
        return self.storm.end_step(batch)

    def step_inline(self, batch: int) -> dict[str, float]:
        fault = self.storm.begin_step()
        if fault is not None and self.storm.raises(fault):
            raise self.storm.errors[fault.name]
        return self.storm.end_step(batch)

    def step_in_worker(self, batch: int) -> dict[str, float]:
        storm = self.storm
        n = len(storm.taken)
        fault = storm.in_loop(storm.begin_step, is_event=("step", n) in storm.by_moment)
        if fault is not None and storm.raises(fault):
            raise storm.errors[fault.name]
        if fault is not None:
            storm.in_loop(partial(storm.begin_hang, fault))
            storm.thread_released.wait()
        return storm.end_step(batch)


class Queue:
    """An epoch that comes by a queue, and goes quiet before one batch."""

    def __init__(self, storm: "Storm", epoch: int) -> None:
        self.storm = storm
        self.epoch = epoch
        self.batches: asyncio.Queue[int | None] = asyncio.Queue()
        self.taken = 0
        self.producer = asyncio.create_task(self.produce(), name="storm producer")
        storm.own_tasks.add(self.producer)

    async def produce(self) -> None:
        for batch in range(self.storm.schedule.batches):
            if self.storm.is_quiet(self.epoch, batch):
                await self.storm.fed.wait()
            await self.batches.put(self.storm.batch(self.epoch, batch))
        await self.batches.put(None)

    def __aiter__(self):
        return self

    async def __anext__(self) -> int:
        if self.storm.is_quiet(self.epoch, self.taken) and self.batches.empty():
            self.storm.go_quiet()
        batch = await self.batches.get()
        if batch is None:
            raise StopAsyncIteration
        self.taken += 1
        return batch


# ------------------------------------------------------------------ the storm


class Storm:
    """Does one schedule, in the running event loop, and keeps what happens."""

    def __init__(self, schedule: Schedule, directory: Path) -> None:
        self.schedule = schedule
        self.database = directory / f"{schedule.seed}.sqlite"
        self.acknowledged = os.open(
            directory / f"{schedule.seed}.acknowledged", os.O_CREAT | os.O_RDWR | os.O_APPEND
        )
        self.event_loop = asyncio.get_running_loop()
        self.main_task = asyncio.current_task()
        self.by_moment: dict[tuple[str, int], list[tuple[int, Event]]] = defaultdict(list)
        for number, event in enumerate(schedule.events):
            self.by_moment[event.moment, event.n].append((number, event))
        self.errors = {
            fault.name: _error(fault, number) for number, fault in enumerate(schedule.faults)
        }
        self.entries: list[Entry] = []
        self.counts: Counter[str] = Counter()
        self.taken: list[int] = []
        self.iterations: list[int] = []
        self.rows: list[tuple[object, int, int]] = []  # those that are complete
        self.late_rows: list[tuple[object, int, int]] = []  # those with what was beside them
        self.due_beside = self.done_beside = 0
        self.epochs_begun = 0
        self.is_calm = False
        self.is_running = False
        self.done_faults: set[Fault] = set()
        self.fed = asyncio.Event()
        self.released = asyncio.Event()
        self.thread_released = threading.Event()
        self.own_tasks: set[asyncio.Task] = set()
        self.heard: list[str] = []
        self.sent_to_host: list[str] = []
        self.messages: list[str] = []
        self.outcomes: list[str] = []
        self.wrong: list[str] = []
        self.caller: asyncio.Task | None = None
        self.scope: anyio.CancelScope | None = None
        self.timeout: asyncio.Timeout | None = None
        self.inherited: dict[object, set[str]] = defaultdict(set)

    # What happens.

    def note(self, what: str, name: str = "", n: int = 0) -> None:
        self.entries.append(Entry(what, name, n, monotonic()))

    def count(self, name: str) -> int:
        self.counts[name] += 1
        return self.counts[name]

    def moment(self, name: str, n: int | None = None) -> None:
        """Do what the schedule says for this moment, now or some turns later."""
        n = self.count(name) if n is None else n
        if name in ("quiet", "final"):
            self.note(name, n=n)
        for number, event in self.by_moment.get((name, n), ()) if not self.is_calm else ():
            self.after(event.turns, partial(self.do, number, event))

    def after(self, turns: int, what) -> None:
        if turns:
            self.event_loop.call_soon(self.after, turns - 1, what)
        else:
            what()

    def do(self, number: int, event: Event) -> None:
        """Do what the event is, unless nothing is there any more to do it to."""
        action = event.action
        is_for_host = self.schedule.host != "none" and action in SIGNALS
        if not self.is_running and not (is_for_host and event.moment == "between"):
            return
        if action == "finish" and self.entries[-1].name != event.moment:
            return
        if self.is_running:
            self.note("finish" if action == "finish" else "sent", action, number)
            self.after(SETTLE_TURNS, partial(self.note, "settled", action, number))
        getattr(self, f"do_{action.lower()}")(event)

    def do_sigint(self, event: Event) -> None:
        if self.schedule.host != "none":
            is_taken = (
                self.is_running and self.schedule.mode == "replace" and not self.schedule.is_chained
            )
            self.sent_to_host += [event.action] * (not is_taken)
        number = signal.Signals[event.action]
        if event.by == "kill":
            os.kill(os.getpid(), number)
        else:
            signal.raise_signal(number)

    do_sigterm = do_sigint

    def do_cancel(self, event: Event) -> None:
        self.caller.cancel()

    def do_cancel_all(self, event: Event) -> None:
        for task in asyncio.all_tasks() - {self.main_task}:
            task.cancel()

    def do_scope(self, event: Event) -> None:
        self.scope.cancel()

    def do_timeout(self, event: Event) -> None:
        with suppress(RuntimeError):  # it has run out already
            self.timeout.reschedule(self.event_loop.time())

    def do_request_epoch(self, event: Event) -> None:
        self.loop.request_finish("epoch")

    def do_request_batch(self, event: Event) -> None:
        self.loop.request_finish("batch")

    def do_finish(self, event: Event) -> None:
        self.loop.log.current_row["training_finish_requested"] = True

    # Steps, faults and streams.

    def in_loop(self, what, *, is_event: bool = False):
        """Do something in the event loop, from the worker, and wait until it has been heard."""
        if not is_event and what == self.begin_step:
            return what()
        done, result = threading.Event(), []

        def do() -> None:
            result.append(what())
            self.after(SETTLE_TURNS + 6 if is_event else 0, done.set)

        self.event_loop.call_soon_threadsafe(do)
        done.wait()
        return result[0]

    def begin_step(self) -> Fault | None:
        n = len(self.taken)
        self.note("step", n=n)
        self.moment("step", n)
        return self.fault_at("step", n)

    def end_step(self, batch: int) -> dict[str, float]:
        self.note("step_end", n=len(self.taken))
        return {"cost": float(batch)}

    def fault_at(self, where: str, n: int) -> Fault | None:
        for fault in self.schedule.faults:
            if (fault.where, fault.n) == (where, n) and not self.is_calm:
                if fault in self.done_faults:
                    return None
                self.done_faults.add(fault)
                return fault
        return None

    def raises(self, fault: Fault) -> bool:
        if fault.how in ("raises", "exits"):
            self.note("raise", fault.name)
            return True
        return False

    def begin_hang(self, fault: Fault) -> None:
        self.note("hang", fault.name)
        self.moment("hang", self.schedule.faults.index(fault) + 1)

    async def hang(self, fault: Fault) -> None:
        self.begin_hang(fault)
        while not self.released.is_set():
            try:
                await self.released.wait()
            except asyncio.CancelledError:
                if fault.how != "hangs on":
                    raise

    def batch(self, epoch: int, batch: int) -> int:
        return batch if self.schedule.stream == "list" else 100 * epoch + batch

    def is_quiet(self, epoch: int, batch: int) -> bool:
        return self.schedule.quiet == (epoch, batch)

    def go_quiet(self) -> None:
        if self.fed.is_set() or self.counts["quiet"]:
            return
        self.moment("quiet")
        if self.schedule.is_fed:
            self.after(self.schedule.seed % 7, self.fed.set)

    def make_stream(self):
        if self.schedule.stream == "list":
            return list(range(self.schedule.batches))
        return self.begin_epoch

    def begin_epoch(self):
        epoch, self.epochs_begun = self.epochs_begun, self.epochs_begun + 1
        return Queue(self, epoch) if self.schedule.stream == "queue" else self.generate(epoch)

    async def generate(self, epoch: int):
        for batch in range(self.schedule.batches):
            if self.is_quiet(epoch, batch):
                self.go_quiet()
                await self.fed.wait()
            elif batch % 2:
                await asyncio.sleep(0)
            yield self.batch(epoch, batch)

    def acknowledge(self, rows: int) -> None:
        """Note what was flushed, the last of which has to be in the file by now."""
        for run, time, batch in self.rows[:rows][-1:]:
            sql = "SELECT value FROM entries WHERE run = ? AND time = ? AND key = 'b'"
            if self.query(sql, str(run), time) != [(-batch,)]:
                self.wrong.append(f"iteration {time} was flushed and is not in the file")
        for run, time, batch in self.rows[:rows]:
            os.write(self.acknowledged, f"{run} {time} {batch}\n".encode())

    # Runs.

    async def pass_over(self) -> list[str]:
        """Do the schedule, and give what was wrong."""
        schedule = self.schedule
        log = StormLog(self.database)
        log.storm = self
        extensions = {
            "faulty": Faulty(self),
            "slow": Slow(schedule.slow),
            "flush": Flush(self),
            "finish": FinishAfter(after_n_epochs=schedule.epochs),
        }
        self.loop = MainLoop(
            Algorithm(self),
            self.make_stream(),
            log=log,
            extensions=[
                Director(self),
                Beside(self),
                *(extensions[name] for name in schedule.order),
                Tail(self),
            ],
            signals=schedule.mode,
            grace_s=schedule.grace_s,
        )
        self.event_loop.set_exception_handler(
            lambda loop, context: self.wrong.append(f"the event loop heard of {context}")
        )
        for number in range(1, schedule.runs + 1):
            self.is_calm = number == schedule.runs > 1
            if number > 1:
                self.after(schedule.seed % 5, self.fed.set)
            await self.run_once(number)
            if number < schedule.runs:
                await self.between()
        self.check_sequence()
        self.check_file()
        return self.wrong

    async def run_once(self, number: int) -> None:
        before = asyncio.all_tasks()
        handlers = {name: signal.getsignal(signal.Signals[name]) for name in SIGNALS}
        begin = len(self.entries)
        self.note("run", n=number)
        self.caller = asyncio.create_task(self.call_run(), name="storm caller")
        await asyncio.wait([self.caller])
        outcome = "cancelled" if self.caller.cancelled() else self.caller.result()
        self.outcomes.append(outcome)
        if not self.entries[begin + 1 :]:
            self.note("over")
        over = next(i for i in range(begin, len(self.entries)) if self.entries[i].what == "over")
        self.wrong += [
            f"run {number}: the handler of {name} is {now!r} and was {handler!r}"
            for name, handler in handlers.items()
            if (now := signal.getsignal(signal.Signals[name])) is not handler
        ]
        self.check_tasks(number, before)
        await self.release(before)
        late = [e for e in self.entries[over + 1 :] if e.what in ("begin", "end", "step", "final")]
        if late:
            self.wrong.append(f"run {number}: after its end came {late}")
        run = self.loop.log.h_uuid
        records = self.records_of(run)
        if self.due_beside != self.done_beside and "step_abandoned" not in records:
            self.wrong.append(
                f"run {number}: {self.done_beside} of {self.due_beside} beside it were done"
            )
        self.due_beside = self.done_beside = 0
        seen = Seen(
            outcome,
            records,
            frozenset(self.inherited[run]),
            self.loop.status["epochs_done"] >= self.schedule.epochs,
        )
        self.inherited[run] |= records.keys()
        judged = Judgement(self.schedule.facts, self.entries[begin : over + 1], seen)
        self.wrong += [f"run {number}: {wrong}" for wrong in judged.differences()]
        if self.is_calm and outcome != "returned":
            self.wrong.append(f"run {number}, with nothing in its way: {outcome}")

    async def call_run(self) -> str:
        """Run as a caller does, and say what the caller saw."""
        wrap = self.schedule.wrap
        try:
            if wrap == "scope":
                with anyio.CancelScope() as self.scope:
                    await self.attempt()
                return "scope" if self.scope.cancelled_caught else "returned"
            if wrap == "timeout":
                async with asyncio.timeout(None) as self.timeout:
                    await self.attempt()
                return "returned"
            await self.attempt()
        except BaseException as error:  # noqa: BLE001 - it is what is looked at
            return self.name_of(error)
        return "returned"

    async def attempt(self) -> None:
        self.is_running = True
        try:
            self.moment("start")
            if await self.loop.run() is not self.loop.log:
                self.wrong.append("run() gave something else than the log")
        finally:
            self.is_running = False
            self.note("over")

    def name_of(self, error: BaseException) -> str:
        for name, raised in self.errors.items():
            if error is raised:
                return f"fault {name}"
        names = {
            asyncio.CancelledError: "cancelled",
            TimeoutError: "timeout",
            KeyboardInterrupt: "keyboard",
            HostError: "host",
        }
        return names.get(type(error), f"{error!r} {getattr(error, '__notes__', '')}")

    async def between(self) -> None:
        """Do what is to be done between two runs."""
        self.moment("between")
        try:
            self.loop.request_finish()
            self.wrong.append("request_finish() between two runs was not refused")
        except NotRunningError:
            pass
        for _ in range(2 * SETTLE_TURNS):
            await asyncio.sleep(0)

    def check_tasks(self, number: int, before: set[asyncio.Task]) -> None:
        left = asyncio.all_tasks() - before - self.own_tasks
        may_fetch = bool(self.counts["quiet"]) and not self.fed.is_set()
        swallowed = any(fault.how == "hangs on" for fault in self.done_faults)
        is_left = [task for task in left if not task.get_name().startswith("storm")]
        if not self.counts["before_training"]:
            # Given up while its log was being opened, which the journal ends by itself.
            is_left = [task for task in is_left if not task.get_name().startswith("aloop journal")]
        if len(is_left) > may_fetch + swallowed:
            self.wrong.append(f"run {number}: tasks are left: {is_left}")
        if swallowed and is_left and not may_fetch and "left behind" not in str(self.messages):
            self.wrong.append(f"run {number}: no message names what was left behind")

    async def release(self, before: set[asyncio.Task]) -> None:
        """Let go what hangs, and wait until it has ended."""
        if not any(fault.how.startswith("hangs") for fault in self.done_faults):
            return
        self.released.set()
        self.thread_released.set()
        may_fetch = bool(self.counts["quiet"]) and not self.fed.is_set()
        until = monotonic() + 5
        while monotonic() < until:
            left = asyncio.all_tasks() - before - self.own_tasks
            if len(left) <= may_fetch and not self.loop_is_busy():
                self.released.clear()
                self.thread_released.clear()
                return
            await asyncio.sleep(0.001)
        self.wrong.append(f"what was released did not end: {left}")

    def loop_is_busy(self) -> bool:
        """Say whether the loop refuses another run for what the last one left."""
        try:
            self.loop._last_run.supervisor.refuse_another(self.loop.position)
        except AlreadyRunningError:
            return True
        return False

    # What is in the file, and what was trained on.

    def query(self, sql: str, *parameters: object) -> list[tuple]:
        with closing(sqlite3.connect(self.database, timeout=10)) as connection:
            return connection.execute(sql, parameters).fetchall()

    def records_of(self, run: object) -> dict[str, object]:
        if not self.database.exists():
            return {}
        marks = ",".join("?" * len(RECORDS))
        sql = f"SELECT key, value FROM entries WHERE run = ? AND key IN ({marks})"  # noqa: S608
        return dict(self.query(sql, str(run), *RECORDS))

    def check_sequence(self) -> None:
        """Each batch is taken once, in order; with a run in good order at the end, all of them."""
        schedule = self.schedule
        expected = [
            self.batch(epoch, batch)
            for epoch in range(schedule.epochs)
            for batch in range(schedule.batches)
        ]
        if self.is_calm and self.taken != expected:
            self.wrong.append(f"batches {self.taken}, expected {expected}")
        elif self.taken != expected[: len(self.taken)]:
            self.wrong.append(f"batches {self.taken}, expected the first of {expected}")
        if self.iterations != list(range(1, len(self.iterations) + 1)):
            self.wrong.append(f"iterations {self.iterations}")

    def check_file(self) -> None:
        if not self.database.exists():
            return
        if self.query("PRAGMA integrity_check") != [("ok",)]:
            self.wrong.append("the file is damaged")
        sql = "SELECT run, time, key, value FROM entries WHERE key IN ('a', 'b', 'c')"
        rows: dict[tuple[str, int], dict[str, object]] = defaultdict(dict)
        late: dict[tuple[str, int], object] = {}
        for run, time, key, value in self.query(sql):
            if key == "c":
                late[run, time] = value
            else:
                rows[run, time][key] = value
        for run, time, batch in self.late_rows:
            if late.get((str(run), time)) != 2 * batch:
                self.wrong.append(f"what was recorded beside iteration {time} is not in the file")
        for run, time, batch in self.rows:
            row = rows.get((str(run), time))
            if row != {"a": batch, "b": -batch}:
                self.wrong.append(f"the row of iteration {time}, batch {batch}, is {row}")
        os.lseek(self.acknowledged, 0, os.SEEK_SET)
        for line in os.read(self.acknowledged, 1 << 20).decode().splitlines():
            run, time, batch = line.split()
            if rows.get((run, int(time)), {}).get("b") != -int(batch):
                self.wrong.append(f"iteration {time} was acknowledged and is not in the file")
        os.close(self.acknowledged)


def _error(fault: Fault, number: int) -> BaseException:
    if fault.how == "exits":
        return [KeyboardInterrupt(fault.name), SystemExit(3)][number % 2]
    return FaultError(fault.name)


# ------------------------------------------------------------------ doing it


class Messages(logging.Handler):
    """Keeps what aloop says."""

    def __init__(self) -> None:
        super().__init__()
        self.storm: Storm | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if self.storm is not None:
            self.storm.messages.append(record.getMessage())


async def pass_over(schedule: Schedule, directory: Path, messages: Messages) -> Storm:
    """Do a schedule, with the handlers that the program has, if any."""
    storm = messages.storm = Storm(schedule, directory)
    earlier = {name: signal.getsignal(signal.Signals[name]) for name in SIGNALS}
    for name in SIGNALS if schedule.host != "none" else ():
        number = signal.Signals[name]
        if schedule.host == "loop":
            storm.event_loop.add_signal_handler(number, storm.heard.append, name)
        else:
            signal.signal(number, partial(_hear, storm))
    storm.event_loop.call_later(HANGS_S, _give_up, storm)
    try:
        with seeing_what_is_passed_on(storm):
            await storm.pass_over()
    finally:
        for _ in range(SETTLE_TURNS):
            await asyncio.sleep(0)
        for name, handler in earlier.items():
            if schedule.host == "loop":
                storm.event_loop.remove_signal_handler(signal.Signals[name])
            signal.signal(signal.Signals[name], handler)
    if sorted(storm.heard) != sorted(storm.sent_to_host):
        storm.wrong.append(f"the program heard {storm.heard}, was sent {storm.sent_to_host}")
    return storm


def _give_up(storm: Storm) -> None:
    storm.is_running = False
    where = "\n".join(map(repr, asyncio.all_tasks()))
    tell(told_of(storm, [f"it hangs: {where}"], monotonic() - HANGS_S))
    os._exit(3)


def tell(told: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(told, default=str) + "\n")
    sys.stdout.flush()


def _hear(storm: Storm, number: int, frame: object) -> None:
    storm.heard.append(signal.Signals(number).name)
    if storm.schedule.host == "raising" and storm.is_running and storm.schedule.mode != "replace":
        raise HostError


@contextmanager
def seeing_what_is_passed_on(storm: Storm):
    """See what a run raises anew because it came when all was over.

    A handler of the program hears it then; what is Python's own would end the storm.
    """
    pass_on, raise_signal = _Switchboard.pass_on, signal.raise_signal

    def raise_anew(number: signal.Signals) -> None:
        if storm.schedule.host != "none":
            storm.sent_to_host.append(signal.Signals(number).name)
            raise_signal(number)

    def watched(board: _Switchboard) -> None:
        signal.raise_signal = raise_anew
        try:
            pass_on(board)
        finally:
            signal.raise_signal = raise_signal

    _Switchboard.pass_on = watched
    try:
        yield
    finally:
        _Switchboard.pass_on = pass_on


def do(seed: int, directory: Path, messages: Messages) -> dict[str, object]:
    """Do the schedule of a seed, and give what is to be told of it."""
    schedule = draw(seed)
    began = monotonic()
    unraised: list[str] = []
    sys.unraisablehook = lambda args: unraised.append(f"{args.exc_value!r} in {args.object!r}")
    threading.excepthook = lambda args: unraised.append(f"{args.exc_value!r} in {args.thread!r}")
    # For what even the event loop does not get out of.
    faulthandler.dump_traceback_later(HANGS_S + 3, exit=True)
    try:
        storm = asyncio.run(pass_over(schedule, directory, messages))
    finally:
        faulthandler.cancel_dump_traceback_later()
    for thread in threading.enumerate():
        if "connection_worker" in thread.name:
            thread.join(5)
            storm.wrong += [f"a connection is left open: {thread}"] * thread.is_alive()
    told = told_of(storm, storm.wrong, began)
    messages.storm = storm = None
    gc.collect()  # what is dropped unsaved or open says so
    told["wrong"] += unraised
    return told if told["wrong"] else {key: told[key] for key in list(told)[:5]}


def told_of(storm: Storm, wrong: list[str], began: float) -> dict[str, list]:
    """Give what is to be told of a schedule: all that somebody needs who looks for the cause."""
    return {
        "seed": storm.schedule.seed,
        "wrong": wrong,
        "s": round(monotonic() - began, 3),
        "outcomes": storm.outcomes,
        "did": sorted({entry.name for entry in storm.entries if entry.what == "sent"}),
        "schedule": asdict(storm.schedule),
        "happened": [
            f"{1000 * (entry.at - began):.1f} ms: {entry.what} {entry.name} {entry.n or ''}".strip()
            for entry in storm.entries
        ],
        "messages": storm.messages,
    }


# ------------------------------------------------------------------ what the harness has to find


def forget_the_commit() -> None:
    """What the end of a run records is never written."""

    async def drain(failure, stop, log, *others):
        result = await real(failure, stop, log, *others)
        log._mark = lambda: None
        return result

    real, aloop.training.drain = aloop.training.drain, drain


def flush_nothing() -> None:
    """A flush returns before anything is written."""

    async def flush(log) -> None:
        await asyncio.sleep(0)

    SQLiteLog.flush = flush


def hear_no_cancel() -> None:
    """A cancelled run returns."""

    async def run(loop):
        with suppress(asyncio.CancelledError):
            return await real(loop)
        return loop.log

    real, MainLoop.run = MainLoop.run, run


def interrupt_twice() -> None:
    """The extensions are told twice of an interrupt."""

    async def call_all(dispatcher, callback, *args):
        if callback == "on_interrupt":
            await real(dispatcher, callback, *args)
        return await real(dispatcher, callback, *args)

    real, Dispatcher.call_all = Dispatcher.call_all, call_all


def leave_the_background() -> None:
    """An ending does not wait for what is beside the training."""

    async def finish(work):
        work._cancel()

    BackgroundWork.finish = finish


def keep_the_handler() -> None:
    """The handler that was there before does not come back."""

    async def run(loop):
        try:
            return await real(loop)
        finally:
            signal.signal(signal.SIGTERM, lambda number, frame: None)

    real, MainLoop.run = MainLoop.run, run


BREAKS = {
    breaks.__name__: breaks
    for breaks in (
        forget_the_commit,
        flush_nothing,
        hear_no_cancel,
        interrupt_twice,
        leave_the_background,
        keep_the_handler,
    )
}


def main(seeds: list[int]) -> int:
    faulthandler.enable()
    for name in SIGNALS:  # as a shell that starts it in the background leaves them
        if signal.getsignal(signal.Signals[name]) is signal.SIG_IGN:
            default = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
            signal.signal(signal.Signals[name], default)
    if os.environ.get("STORM_BREAKS"):
        BREAKS[os.environ["STORM_BREAKS"]]()
    messages = Messages()
    logger = logging.getLogger("aloop")
    logger.addHandler(messages)
    logger.setLevel("INFO")
    logger.propagate = False
    found = 0
    gc.freeze()
    with tempfile.TemporaryDirectory() as directory:
        for seed in seeds:
            told = do(seed, Path(directory), messages)
            found += bool(told["wrong"])
            tell(told)
    return min(found, 1)


if __name__ == "__main__":
    sys.exit(main([int(seed) for seed in sys.argv[1:]]))
