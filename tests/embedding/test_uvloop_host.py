"""A run under uvloop, as the page has it."""

import signal
import sys

import pytest
from page import code
from page_programs import changed, last_row, running

if sys.platform == "win32":
    pytest.skip("uvloop is not there", allow_module_level=True)

TELLING = """
import asyncio, itertools, logging, signal
from aloop import TrainingExtension

logging.basicConfig(level="INFO")


class Tell(TrainingExtension):
    async def after_batch(self, batch):
        if self.main_loop.status["iterations_done"] == 2:
            print("two batches", flush=True)


async def stuck(batch):
    print("stuck")
    await asyncio.Event().wait()

"""
"""What stands before the program of the page."""

ENDING = """
except KeyboardInterrupt:
    print("KeyboardInterrupt")
after = {number: signal.getsignal(number) for number in before}
print("handlers back:", all(after[number] is before[number] for number in before))
"""

BACK = "handlers back: True\n"

RUNNERS = {
    "uvloop.run": "uvloop.run(main())",
    "Runner": "with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:\n"
    "        runner.run(main())",
}


def program(
    runner: str = "uvloop.run", batches: int = 10**9, step: str = "train", **changes: str
) -> str:
    """The program of the page, with more batches and words about what it is at."""
    text = changed(
        code("uvloop"),
        {
            "[1.0, 2.0, 3.0]": f"lambda: itertools.repeat(1.0, {batches})",
            "        train,\n": f"        {step},\n",
            "extensions=[": "extensions=[Tell(), ",
            "uvloop.run(main())": f"before = {{n: signal.getsignal(n) for n in "
            f"(signal.SIGINT, signal.SIGTERM)}}\ntry:\n    {RUNNERS[runner]}",
            **changes,
        },
    )
    return TELLING + text + ENDING


@pytest.mark.parametrize("runner", RUNNERS)
def test_two_presses_and_the_batch_is_the_last(runner: str, tmp_path) -> None:
    text = program(runner, batches=10**7)
    with running(["program.py"], tmp_path, text) as started:
        started.wait_for("two batches")
        started.send(signal.SIGINT, until="SIGINT: stopping after this epoch")
        started.send(signal.SIGINT, until="SIGINT: stopping after this batch")
        assert started.end() == 0, started.output
    row = last_row(tmp_path / "run.sqlite")
    assert row["epochs_done"] == 0
    assert row["batch_interrupt_received"] is True
    assert row["training_finished"] is True
    assert started.lines[-2:] == [f"stopped after batch {row['iterations_done']}\n", BACK]


@pytest.mark.slow
def test_one_press_and_the_epoch_is_the_last(tmp_path) -> None:
    slow = "async def train(value):\n    await asyncio.sleep(0.0005)"
    text = changed(program(batches=500), {"async def train(value):": slow})
    with running(["program.py"], tmp_path, text) as started:
        started.wait_for("two batches")
        started.send(signal.SIGINT, until="SIGINT: stopping after this epoch")
        assert started.end() == 0, started.output
    row = last_row(tmp_path / "run.sqlite")
    assert (row["iterations_done"], row["epochs_done"]) == (500, 1)
    assert row["training_finished"] is True
    assert started.lines[-2:] == ["stopped after batch 500\n", BACK]


@pytest.mark.slow
@pytest.mark.parametrize("runner", RUNNERS)
def test_the_third_press_is_a_keyboard_interrupt(runner: str, tmp_path) -> None:
    text = program(runner, step="stuck")
    with running(["program.py"], tmp_path, text) as started:
        started.wait_for("stuck")
        for what in ("after this epoch", "after this batch", "giving up"):
            started.send(signal.SIGINT, until=what)
        assert started.end() == 0, started.output
    assert last_row(tmp_path / "run.sqlite")["step_abandoned"] is True
    assert started.lines[-2:] == ["KeyboardInterrupt\n", BACK]


def test_sigterm_and_the_batch_is_the_last(tmp_path) -> None:
    with running(["program.py"], tmp_path, program()) as started:
        started.wait_for("two batches")
        started.send(signal.SIGTERM)
        assert started.end() == 0, started.output
    row = last_row(tmp_path / "run.sqlite")
    assert row["interrupt_cause"] == "SIGTERM"
    assert row["training_finished"] is True
    assert started.lines[-2:] == [f"stopped after batch {row['iterations_done']}\n", BACK]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_handler_that_was_added_to_the_loop_is_called_too_and_comes_back(
    number: signal.Signals, tmp_path
) -> None:
    text = program(
        **{
            "    log = await loop.run()\n": f"""
    heard = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.{number.name}, heard.set)
    there = signal.getsignal(signal.{number.name})
    log = await loop.run()
    await asyncio.wait_for(heard.wait(), 10)
    print("both heard, the same is back:", signal.getsignal(signal.{number.name}) is there)
    heard.clear()
    signal.raise_signal(signal.{number.name})
    await asyncio.wait_for(heard.wait(), 10)
    print("heard again")
"""
        }
    )
    with running(["program.py"], tmp_path, text) as started:
        started.wait_for("two batches")
        started.send(number, until="stopping after this batch")
        assert started.end() == 0, started.output
    assert "both heard, the same is back: True\nheard again\n" in started.output
    assert last_row(tmp_path / "run.sqlite")["interrupt_cause"] == number.name
