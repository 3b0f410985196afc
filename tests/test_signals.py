"""Signals: what each press does, and what becomes of the handlers that were there."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from time import perf_counter
from types import FrameType
from typing import Any

import pytest
import uvloop

from aloop import FinishAfter, MainLoop, TrainingExtension, TrainingLog, as_algorithm
from aloop.supervision import Supervisor
from aloop.testing.recorder import Recorder


class Press(TrainingExtension):
    """Sends signals to the own process: after batch n, those it is given for n."""

    def __init__(self, presses: dict[int, list[signal.Signals]]) -> None:
        super().__init__()
        self.presses = presses

    async def after_batch(self, batch: object) -> None:
        for number in self.presses.get(self.main_loop.status["iterations_done"], ()):
            signal.raise_signal(number)
            # The event loop reads its pipe in one turn and calls the handler in the next.
            for _ in range(3):
                await asyncio.sleep(0)


async def no_op(batch: object) -> None:
    """Train on nothing."""


def ten_batches(presses: dict[int, list[signal.Signals]], *extensions, **options) -> MainLoop:
    extensions = (Press(presses), FinishAfter(after_n_epochs=3), *extensions)
    return MainLoop(no_op, range(10), extensions=extensions, **options)


async def test_one_press_finishes_the_epoch_and_says_so(recorder: Recorder, caplog) -> None:
    loop = ten_batches({3: [signal.SIGINT]}, recorder)
    await loop.run()
    assert loop.status["iterations_done"] == 10
    assert loop.status["epoch_interrupt_received"] is True
    assert loop.log[3]["epoch_interrupt_received"] is True
    assert loop.log[3]["interrupt_cause"] == "SIGINT"
    assert loop.log[10]["training_finished"] is True
    assert recorder.callbacks[-3:] == ["after_epoch", "on_interrupt", "after_training"]
    assert "SIGINT: stopping after this epoch" in caplog.text


async def test_two_presses_finish_the_batch_and_say_so(recorder: Recorder, caplog) -> None:
    loop = ten_batches({3: [signal.SIGINT], 5: [signal.SIGINT]}, recorder)
    await loop.run()
    assert loop.status["iterations_done"] == 5
    assert loop.log[5]["batch_interrupt_received"] is True
    assert loop.log[5]["training_finished"] is True
    assert recorder.callbacks[-3:] == ["after_batch", "on_interrupt", "after_training"]
    assert "SIGINT: stopping after this batch" in caplog.text


async def test_sigterm_finishes_the_batch() -> None:
    loop = ten_batches({4: [signal.SIGTERM]})
    await loop.run()
    assert loop.status["iterations_done"] == 4
    assert loop.log[4]["interrupt_cause"] == "SIGTERM"
    assert loop.log[4]["training_finished"] is True


async def test_the_third_press_gives_up_the_step() -> None:
    async def step(batch: int) -> None:
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
            await asyncio.sleep(0)
        await asyncio.Event().wait()

    loop = MainLoop(step, [1])
    with pytest.raises(KeyboardInterrupt):
        await loop.run()
    assert loop.log.current_row["step_abandoned"] is True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_very_same_handler_is_back_after_the_run(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    await ten_batches({2: [signal.SIGTERM]}).run()
    assert signal.getsignal(number) is before


async def test_a_handler_that_the_program_adds_to_the_loop_meanwhile_stays() -> None:
    heard = asyncio.Event()
    running = asyncio.get_running_loop()

    class Add(TrainingExtension):
        async def after_epoch(self) -> None:
            running.add_signal_handler(signal.SIGTERM, heard.set)

    before = signal.getsignal(signal.SIGTERM)
    try:
        await ten_batches({}, Add()).run()
        signal.raise_signal(signal.SIGTERM)
        await asyncio.wait_for(heard.wait(), 5)
    finally:
        running.remove_signal_handler(signal.SIGTERM)
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_handler_is_back_after_an_error(number: signal.Signals) -> None:
    async def step(batch: int) -> None:
        raise ValueError

    before = signal.getsignal(number)
    with pytest.raises(ValueError):
        await MainLoop(step, [1]).run()
    assert signal.getsignal(number) is before


async def test_every_run_of_an_event_loop_hears_every_press() -> None:
    def endless(extensions):
        return MainLoop(no_op, lambda: range(10**9), extensions=extensions)

    silent = endless([])
    pressing = endless([Press({50: [signal.SIGTERM]})])
    before = signal.getsignal(signal.SIGTERM)
    await asyncio.gather(silent.run(), pressing.run())
    assert silent.log.current_row["interrupt_cause"] == "SIGTERM"
    assert pressing.log.current_row["interrupt_cause"] == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) is before


async def test_the_last_run_out_puts_the_handler_back() -> None:
    first_is_over = asyncio.Event()
    before = signal.getsignal(signal.SIGTERM)

    async def step(batch: int) -> None:
        await first_is_over.wait()

    first = MainLoop(no_op, [1], extensions=[FinishAfter(after_n_epochs=1)])
    second = asyncio.create_task(
        MainLoop(step, [1], extensions=[FinishAfter(after_n_epochs=1)]).run()
    )
    await first.run()
    assert signal.getsignal(signal.SIGTERM) is not before
    first_is_over.set()
    await second
    assert signal.getsignal(signal.SIGTERM) is before


class Heard:
    """A handler of the program: keeps what it was called with, and raises when it is to."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.numbers: list[int] = []
        self.frames: list[object] = []
        self.error = error

    def __call__(self, number: int, frame: object) -> None:
        self.numbers.append(number)
        self.frames.append(frame)
        if self.error is not None:
            raise self.error


@pytest.fixture
def in_place() -> Iterator[Callable[[signal.Signals, Any], None]]:
    """Put a handler in place for the test, which leaves it there."""
    # Here, outside the event loop, whose runner has a handler of its own meanwhile.
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    given: dict[signal.Signals, Any] = {}

    def put(number: signal.Signals, handler: Any) -> None:
        signal.signal(number, handler)
        given[number] = handler

    yield put
    left = {number: signal.getsignal(number) for number in given}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert all(left[number] is handler for number, handler in given.items())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_handler_of_the_program_hears_the_signal_too(number, in_place, recorder) -> None:
    handler = Heard()
    in_place(number, handler)
    loop = ten_batches({2: [number]}, recorder)
    await loop.run()
    assert handler.numbers == [number]
    assert isinstance(handler.frames[0], FrameType)
    assert loop.status["iterations_done"] == 2  # a host's Ctrl-C ends the batch
    assert loop.log[2]["interrupt_cause"] == number.name
    assert recorder.callbacks[-2:] == ["on_interrupt", "after_training"]


async def test_a_hosts_second_press_gives_up_the_step_and_leaves_the_interrupt_to_it(
    in_place, recorder
) -> None:
    handler = Heard()
    in_place(signal.SIGINT, handler)

    async def step(batch: int) -> None:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
            await asyncio.sleep(0)
        await asyncio.Event().wait()

    loop = MainLoop(step, [1], extensions=[recorder])
    with pytest.raises(asyncio.CancelledError, match="given up: SIGINT"):
        await loop.run()
    assert len(handler.numbers) == 2
    assert loop.log.current_row["step_abandoned"] is True


@pytest.mark.parametrize("error", [SystemExit(7), KeyboardInterrupt(), ValueError("of the host")])
async def test_what_a_programs_handler_raises_goes_up_when_the_run_has_settled(
    error, in_place, recorder
) -> None:
    in_place(signal.SIGTERM, Heard(error))
    loop = ten_batches({2: [signal.SIGTERM]}, recorder)
    with pytest.raises(type(error)) as raised:
        await loop.run()
    assert raised.value is error
    assert loop.status["iterations_done"] == 2
    assert loop.log[2]["training_finished"] is True
    assert recorder.callbacks[-1] == "after_training"


async def test_what_a_programs_handler_raises_goes_up_once_from_the_last_run(in_place) -> None:
    in_place(signal.SIGTERM, Heard(SystemExit(7)))

    class Slow(TrainingExtension):
        async def after_training(self) -> None:
            await first

    first = asyncio.create_task(ten_batches({5: [signal.SIGTERM]}).run())
    second = MainLoop(no_op, lambda: iter(range(10**9)), extensions=[Slow()])
    with pytest.raises(SystemExit):
        await second.run()
    assert (await first).status["training_started"] is True


async def test_a_signal_that_the_program_ignores_is_left_ignored(in_place, caplog) -> None:
    caplog.set_level("INFO", logger="aloop")
    in_place(signal.SIGTERM, signal.SIG_IGN)
    loop = ten_batches({2: [signal.SIGTERM]})
    await loop.run()
    assert loop.status["epochs_done"] == 3
    assert "SIGTERM does not stop this run: the program ignores it" in caplog.text


async def test_replace_leaves_a_handler_of_the_program_out(in_place) -> None:
    handler = Heard()
    in_place(signal.SIGINT, handler)
    loop = ten_batches({2: [signal.SIGINT]}, signals="replace")
    await loop.run()
    assert handler.numbers == []
    assert loop.status["iterations_done"] == 10  # the first press ends the epoch, as without one


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("mode", ["auto", "chain", "replace"])
def test_what_the_program_has_added_to_the_event_loop_hears_during_the_run_and_after(
    mode, factory
) -> None:
    async def main() -> None:
        heard: list[str] = []
        running = asyncio.get_running_loop()
        running.add_signal_handler(signal.SIGTERM, heard.append, "heard")
        loop = ten_batches({2: [signal.SIGTERM]}, signals=mode)
        await loop.run()
        assert loop.status["iterations_done"] == 2
        assert heard == ["heard"]
        signal.raise_signal(signal.SIGTERM)
        while len(heard) < 2:
            await asyncio.sleep(0)
        running.remove_signal_handler(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(asyncio.wait_for(main(), 20))
    signal.signal(signal.SIGTERM, before)


async def test_replace_listens_to_a_signal_that_the_program_ignores(in_place) -> None:
    in_place(signal.SIGTERM, signal.SIG_IGN)
    loop = ten_batches({2: [signal.SIGTERM]}, signals="replace")
    await loop.run()
    assert loop.status["iterations_done"] == 2


async def test_chain_raises_pythons_keyboard_interrupt_when_the_run_has_settled(in_place) -> None:
    in_place(signal.SIGINT, signal.default_int_handler)
    loop = ten_batches({2: [signal.SIGINT]}, signals="chain")
    with pytest.raises(KeyboardInterrupt):
        await loop.run()
    assert loop.status["iterations_done"] == 2
    assert loop.log[2]["training_finished"] is True


def test_chain_lets_the_system_end_the_program_when_the_run_has_settled(tmp_path) -> None:
    script = (
        "import asyncio, os, signal\n"
        "from aloop import MainLoop, SQLiteLog, TrainingExtension\n"
        "class Press(TrainingExtension):\n"
        "    async def after_batch(self, batch):\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "    async def after_training(self):\n"
        "        print('settled', flush=True)\n"
        "async def step(batch): pass\n"
        "loop = MainLoop(step, range(9), extensions=[Press()], signals='chain')\n"
        "asyncio.run(loop.run())\n"
        "print('not reached')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=False
    )
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "settled\n"), done.stderr


async def test_a_handler_that_was_added_to_the_event_loop_fires_too_and_is_back() -> None:
    heard: list[int] = []
    running = asyncio.get_running_loop()
    before = signal.getsignal(signal.SIGTERM)
    running.add_signal_handler(signal.SIGTERM, heard.append, 1)
    try:
        hidden = signal.getsignal(signal.SIGTERM)
        loop = ten_batches({2: [signal.SIGTERM]})
        await loop.run()
        assert loop.status["iterations_done"] == 2
        assert signal.getsignal(signal.SIGTERM) is hidden
        assert heard == [1]
        signal.raise_signal(signal.SIGTERM)
        for _ in range(3):
            await asyncio.sleep(0)
        assert heard == [1, 1]
    finally:
        running.remove_signal_handler(signal.SIGTERM)
        signal.signal(signal.SIGTERM, before)


class WithoutSupport(asyncio.SelectorEventLoop):
    """An event loop that has no signal handlers, as those of Windows."""

    def add_signal_handler(self, *args: object) -> None:
        raise NotImplementedError


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_event_loop_without_signal_handlers_is_told_of_signals(number) -> None:
    before = signal.getsignal(number)
    loop = ten_batches({2: [number] * 2})
    with asyncio.Runner(loop_factory=WithoutSupport) as runner:
        runner.run(loop.run())
    assert loop.status["iterations_done"] == 2
    assert signal.getsignal(number) is before


def test_a_signal_that_wakes_an_event_loop_without_signal_handlers_is_not_waited_for() -> None:
    async def wake() -> None:
        in_step = asyncio.Event()

        async def step(batch: object) -> None:
            in_step.set()
            await asyncio.Event().wait()

        run = asyncio.create_task(MainLoop(step, [1], grace_s=0).run())
        await in_step.wait()
        threading.Timer(0.05, os.kill, [os.getpid(), signal.SIGTERM]).start()
        with pytest.raises(asyncio.CancelledError):
            await run

    with asyncio.Runner(loop_factory=WithoutSupport) as runner:
        runner.run(wake())


def test_handlers_are_back_when_event_loops_end_in_another_order_than_they_began() -> None:
    before = signal.getsignal(signal.SIGTERM)
    outer, inner = asyncio.new_event_loop(), asyncio.new_event_loop()
    ends = [asyncio.Event(), asyncio.Event()]

    def begin(event_loop, end):
        async def step(batch: object) -> None:
            began.set()
            await end.wait()

        async def run() -> asyncio.Task:
            task = asyncio.create_task(
                MainLoop(step, [1], extensions=[FinishAfter(after_n_epochs=1)]).run()
            )
            await began.wait()
            return task

        began = asyncio.Event()
        return event_loop.run_until_complete(run())

    tasks = [begin(outer, ends[0]), begin(inner, ends[1])]
    for event_loop, end, task in zip((outer, inner), ends, tasks, strict=True):
        end.set()
        event_loop.run_until_complete(task)
        event_loop.close()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, WithoutSupport])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_handler_is_back_when_the_event_loop_was_closed_under_the_run(
    number, factory, in_place
) -> None:
    handler = Heard()
    in_place(number, handler)
    event_loop = factory()

    async def main() -> None:
        in_step = asyncio.Event()

        async def step(batch: object) -> None:
            in_step.set()
            await asyncio.Event().wait()

        run = asyncio.ensure_future(MainLoop(step, [1], signals="replace").run())
        run._log_destroy_pending = False  # type: ignore[attr-defined]
        await in_step.wait()

    event_loop.run_until_complete(main())
    event_loop.close()
    gc.collect()
    assert signal.getsignal(number) is handler


def test_a_signal_after_the_event_loop_was_closed_under_the_run_is_the_programs(in_place) -> None:
    handler = Heard()
    in_place(signal.SIGTERM, handler)
    event_loop = WithoutSupport()
    kept = []

    async def main() -> None:
        in_step = asyncio.Event()

        async def step(batch: object) -> None:
            in_step.set()
            await asyncio.Event().wait()

        kept.append(asyncio.ensure_future(MainLoop(step, [1], signals="replace").run()))
        kept[0]._log_destroy_pending = False
        await in_step.wait()

    event_loop.run_until_complete(main())
    event_loop.close()
    signal.raise_signal(signal.SIGTERM)
    assert handler.numbers == [signal.SIGTERM]
    kept.clear()
    gc.collect()


async def test_a_press_for_a_handler_that_came_later_is_not_for_the_run() -> None:
    later = Heard()

    class Cover(TrainingExtension):
        """Puts a handler over that of the run for one batch, as a notebook does for a cell."""

        async def after_batch(self, batch: int) -> None:
            if batch == 2:
                ours = signal.signal(signal.SIGINT, later)
                signal.raise_signal(signal.SIGINT)
                for _ in range(3):
                    await asyncio.sleep(0)
                signal.signal(signal.SIGINT, ours)

    before = signal.getsignal(signal.SIGINT)
    loop = ten_batches({}, Cover())
    await loop.run()
    assert later.numbers == [signal.SIGINT] * 3
    assert loop.status["epochs_done"] == 3
    assert signal.getsignal(signal.SIGINT) is before


async def test_a_handler_set_during_the_run_stays() -> None:
    def handler(number: int, frame: object) -> None:
        """Do nothing."""

    class Replace(TrainingExtension):
        async def after_batch(self, batch: object) -> None:
            signal.signal(signal.SIGTERM, handler)

    before = signal.getsignal(signal.SIGTERM)
    try:
        await ten_batches({}, Replace()).run()
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


async def test_off_leaves_every_handler_alone_and_says_so_once(caplog) -> None:
    caplog.set_level("INFO", logger="aloop")
    seen = []

    class Look(TrainingExtension):
        async def before_epoch(self) -> None:
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    await ten_batches({}, Look(), signals="off").run()
    assert set(seen) == {before}
    assert caplog.text.count("signals do not stop this run: signals='off'") == 1


async def test_a_run_with_signals_off_can_be_asked_to_finish() -> None:
    class Ask(TrainingExtension):
        async def after_batch(self, batch: object) -> None:
            self.main_loop.request_finish("batch")  # type: ignore[attr-defined]

    loop = ten_batches({}, Ask(), signals="off")
    await loop.run()
    assert loop.status["iterations_done"] == 1


def test_a_run_in_another_thread_listens_to_nothing_and_says_so(caplog) -> None:
    caplog.set_level("INFO", logger="aloop")
    thread = threading.Thread(target=lambda: asyncio.run(ten_batches({}).run()))
    thread.start()
    thread.join()
    assert "signals do not stop this run: they reach the main thread alone" in caplog.text


SCRIPT = """
import asyncio, logging, signal, sys, threading
from aloop import MainLoop, SQLiteLog, TrainingExtension

class Tell(TrainingExtension):
    async def after_batch(self, batch):
        self.main_loop.log.current_row["batch"] = batch
        if self.main_loop.status["iterations_done"] == 100:
            print("ready", flush=True)

async def step(batch):
    await asyncio.sleep(0.0005)  # what a step takes; nothing waits for it

logging.basicConfig(level="INFO")

async def main():
    log = SQLiteLog(sys.argv[1])
    loop = MainLoop(step, range(int(sys.argv[2])), log=log, extensions=[Tell()])
    await loop.run()
    print(log.h_uuid, log.status["iterations_done"], log.status["epochs_done"])
    row = log.current_row
    print(sorted(key for key in row if key != "batch"))

asyncio.run(main())
print("threads", threading.active_count())
print("handler", signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""


def press_on(tmp_path, batches: int, *numbers: signal.Signals) -> list[str]:
    """Run a real program under asyncio.run, send it signals, and give what it printed."""
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(SCRIPT))
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "log.sqlite"), str(batches)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "ready\n"
    for number in numbers:
        os.kill(process.pid, number)
        # The run says when it has heard, and only then the next one is sent.
        assert number.name in process.stderr.readline()
    err = process.stderr.read()
    out = process.stdout.read()
    assert process.wait(timeout=30) == 0, err
    process.stdout.close()
    process.stderr.close()
    return out.splitlines()


def test_a_program_that_is_told_to_stop_by_ctrl_c_finishes_the_epoch(tmp_path) -> None:
    head, records, *rest = press_on(tmp_path, 2_000, signal.SIGINT)
    assert head.split()[1:] == ["2000", "1"]
    assert records == "['training_finished']"
    assert rest == ["threads 1", "handler True"]


def test_a_program_that_is_told_twice_finishes_the_batch(tmp_path) -> None:
    head, records, *rest = press_on(tmp_path, 10**9, signal.SIGINT, signal.SIGINT)
    assert int(head.split()[1]) >= 100
    assert head.split()[2] == "0"
    assert "'batch_interrupt_received'" in records
    assert "'training_finished'" in records
    assert rest == ["threads 1", "handler True"]


def test_a_program_that_is_terminated_finishes_the_batch(tmp_path) -> None:
    head, records, *rest = press_on(tmp_path, 10**9, signal.SIGTERM)
    assert int(head.split()[1]) >= 100
    assert "'batch_interrupt_received'" in records
    assert rest == ["threads 1", "handler True"]


class PressInStep:
    """A step that blocks the event loop's thread, and is interrupted in its second batch."""

    def __init__(self, *numbers: signal.Signals) -> None:
        self.numbers = numbers
        self.batches = 0

    def __call__(self, batch: object) -> None:
        self.batches += 1
        if self.batches == 2:
            for number in self.numbers:
                signal.raise_signal(number)
        begin = perf_counter()
        while perf_counter() < begin + 0.01:
            pass


async def test_a_step_that_blocks_the_event_loop_is_stopped_after_its_batch() -> None:
    step = PressInStep(signal.SIGTERM)
    await MainLoop(as_algorithm(step, where="inline"), range(10)).run()
    assert step.batches == 2


async def test_ctrl_c_after_sigterm_gives_up_the_step() -> None:
    async def step(batch: object) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
            await asyncio.sleep(0)
        await asyncio.Event().wait()

    with pytest.raises(KeyboardInterrupt):
        await MainLoop(step, [1]).run()


async def test_ctrl_c_after_a_request_to_finish_is_one_step_sooner() -> None:
    class Ask(TrainingExtension):
        async def after_batch(self, batch: object) -> None:
            if batch == 2:
                self.main_loop.request_finish()  # type: ignore[attr-defined]

    loop = ten_batches({5: [signal.SIGINT]}, Ask())
    await loop.run()
    assert loop.status["iterations_done"] == 5


def test_after_a_program_that_ends_under_a_run_pythons_own_handler_is_back() -> None:
    async def main() -> None:
        asyncio.create_task(MainLoop(no_op, lambda: iter(range(10**9))).run())  # noqa: RUF006
        for _ in range(20):
            await asyncio.sleep(0)

    before = signal.getsignal(signal.SIGINT)
    assert before is signal.default_int_handler
    asyncio.run(main())
    assert signal.getsignal(signal.SIGINT) is before


def test_the_interpreter_exits_though_an_event_loop_was_given_up_with_an_open_log(tmp_path) -> None:
    script = (
        "import asyncio, aloop\n"
        "log = aloop.SQLiteLog('log.sqlite')\n"
        "loop = asyncio.new_event_loop()\n"
        "loop.run_until_complete(log.open())\n"
        "loop.close()\n"
        "print('end')\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "end\n")


FORKS = """
import asyncio, multiprocessing, os, signal
from aloop import FinishAfter, MainLoop

fork = multiprocessing.get_context("fork")

def child(ready):
    print("child", signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, flush=True)
    ready.set()
    signal.pause()

async def main():
    async def step(batch):
        ready = fork.Event()
        process = fork.Process(target=child, args=[ready])
        process.start()
        ready.wait()
        os.kill(process.pid, signal.SIGTERM)
        process.join()
        print("exit code", process.exitcode, flush=True)

    loop = MainLoop(step, [1, 2], extensions=[FinishAfter(after_n_epochs=1)])
    await loop.run()
    print("iterations", loop.status["iterations_done"], loop.status["epoch_interrupt_received"])

asyncio.run(main())
"""


def test_a_child_that_a_step_forks_has_its_signals_to_itself() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKS],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    expected = "child True\nexit code -15\n" * 2 + "iterations 2 False\n"
    assert done.stdout == expected, done.stderr


class LateLog(TrainingLog):
    """Sends a signal when all that the run had to do is in it."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__()
        self.number = number

    async def close(self) -> None:
        signal.raise_signal(self.number)
        for _ in range(3):
            await asyncio.sleep(0)

    @asynccontextmanager
    async def session(self):
        async with super().session():
            try:
                yield
            finally:
                await self.close()


async def test_a_signal_after_the_runs_last_record_is_the_programs(in_place) -> None:
    handler = Heard()
    in_place(signal.SIGTERM, handler)
    extensions = [FinishAfter(after_n_epochs=1)]
    loop = MainLoop(
        no_op, [1], log=LateLog(signal.SIGTERM), extensions=extensions, signals="replace"
    )
    await loop.run()
    assert handler.numbers == [signal.SIGTERM]
    assert loop.status["batch_interrupt_received"] is False


async def test_a_signal_that_no_turn_was_left_for_is_the_programs(in_place, monkeypatch) -> None:
    see = Supervisor._seen

    def pressed(supervisor, failure):
        signal.raise_signal(signal.SIGTERM)
        return see(supervisor, failure)

    monkeypatch.setattr(Supervisor, "_seen", pressed)
    handler = Heard()
    in_place(signal.SIGTERM, handler)
    extensions = [FinishAfter(after_n_epochs=1)]
    await MainLoop(no_op, [1], extensions=extensions, signals="replace").run()
    assert handler.numbers == [signal.SIGTERM]


def test_ctrl_c_after_the_last_record_interrupts_the_program() -> None:
    loops = []

    async def main() -> None:
        first = MainLoop(
            no_op, [1], log=LateLog(signal.SIGINT), extensions=[FinishAfter(after_n_epochs=1)]
        )
        for loop in (first, MainLoop(no_op, lambda: iter(range(10**9)))):
            loops.append(loop)
            await loop.run()

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    assert loops[0].log.current_row["training_finished"] is True
    assert loops[-1].log.current_row["interrupt_cause"] == "cancelled"


async def test_a_host_handler_with_attributes_of_any_kind_is_chained_to(in_place) -> None:
    handler = Heard()
    handler.keywords = None  # type: ignore[attr-defined]
    in_place(signal.SIGTERM, handler)
    await ten_batches({2: [signal.SIGTERM]}).run()
    assert handler.numbers == [signal.SIGTERM]
