"""Signals: what each press does, and what becomes of the handlers that were there."""

import asyncio
import functools
import os
import signal
import subprocess
import sys
import textwrap
import threading
from time import perf_counter

import pytest
from recorder import Recorder

from aloop import FinishAfter, MainLoop, TrainingExtension, as_algorithm


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


async def test_a_handler_of_the_program_is_left_alone(caplog) -> None:
    caplog.set_level("INFO", logger="aloop")
    heard: list[int] = []
    handler = functools.partial(lambda number, frame: heard.append(number))
    before = signal.signal(signal.SIGTERM, handler)
    try:
        loop = ten_batches({2: [signal.SIGTERM]})
        await loop.run()
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]
    assert loop.status["epochs_done"] == 3
    assert "SIGTERM does not stop this run: the program has a handler of its own" in caplog.text


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


async def test_off_leaves_every_handler_alone() -> None:
    seen = []

    class Look(TrainingExtension):
        async def before_epoch(self) -> None:
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    await ten_batches({}, Look(), signals="off").run()
    assert set(seen) == {before}


def test_a_run_in_another_thread_listens_to_nothing_and_says_so(caplog) -> None:
    caplog.set_level("INFO", logger="aloop")
    thread = threading.Thread(target=lambda: asyncio.run(ten_batches({}).run()))
    thread.start()
    thread.join()
    assert "SIGINT does not stop this run: signals reach the main thread alone" in caplog.text


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
