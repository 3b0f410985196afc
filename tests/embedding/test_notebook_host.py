"""A run in a notebook: a real kernel, its cells, and its stop button."""

import json
import os
import queue
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager
from page import code
from page_programs import changed, last_row

from aloop import read_log

pytestmark = pytest.mark.aloop_guard(block_s=None)  # the client blocks its own


class Notebook:
    """A kernel, and the cell that is executed in it."""

    def __init__(self, manager: KernelManager, client: BlockingKernelClient) -> None:
        self.manager = manager
        self.client = client
        self.printed = ""
        self._cell = ""

    def start(self, cell: str) -> None:
        """Begin to execute a cell."""
        self.printed = ""
        self._cell = self.client.execute(cell)

    def wait_for(self, text: str) -> None:
        """Wait until the cell has printed this."""
        while text not in self.printed:
            self._read()

    def stop(self, until: str) -> None:
        """Press the stop button, and wait for the line that answers it."""
        self.manager.interrupt_kernel()
        self.wait_for(until)

    def end(self) -> dict[str, Any]:
        """Wait until the cell has ended, and give what came of it."""
        while True:
            reply = self.client.get_shell_msg(timeout=30)
            if reply["parent_header"].get("msg_id") == self._cell:
                break
        while not self._read():
            pass
        return reply["content"]

    def execute(self, cell: str) -> str:
        """Execute a cell that succeeds, and give what it printed."""
        self.start(cell)
        reply = self.end()
        assert reply["status"] == "ok", reply
        return self.printed

    def _read(self) -> bool:
        """Read a message about the cell; True if it is the last one."""
        try:
            message = self.client.get_iopub_msg(timeout=30)
        except queue.Empty:
            raise AssertionError(f"nothing came after {self.printed!r}") from None
        if message["parent_header"].get("msg_id") != self._cell:
            return False
        if message["msg_type"] == "stream":
            self.printed += message["content"]["text"]
        return (message["content"].get("execution_state"), message["msg_type"]) == (
            "idle",
            "status",
        )


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    """A kernel of the interpreter of the tests, one for all of them."""
    directory = tmp_path_factory.mktemp("notebook")
    (directory / "kernels" / "tests").mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (directory / "kernels" / "tests" / "kernel.json").write_text(
        json.dumps({"argv": argv, "display_name": "tests", "language": "python"})
    )
    specs = KernelSpecManager(kernel_dirs=[str(directory / "kernels")], ensure_native_kernel=False)
    manager = KernelManager(
        kernel_name="tests",
        kernel_spec_manager=specs,
        connection_file=str(directory / "connection.json"),
    )
    home = {"HOME": str(directory), "IPYTHONDIR": str(directory / "ipython")}
    manager.start_kernel(env=os.environ | home)
    client = manager.client()
    client.start_channels(hb=False, stdin=False)
    try:
        client.wait_for_ready(timeout=30)
        yield Notebook(manager, client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.cleanup_resources()


@pytest.fixture
def notebook(kernel: Notebook, tmp_path: Path) -> Notebook:
    """The kernel in a directory of its own, and what the cells of a test begin with."""
    kernel.execute(
        f"""
import asyncio, os, signal
from itertools import repeat
from aloop import TrainingExtension

os.chdir({str(tmp_path)!r})

class Tell(TrainingExtension):
    async def after_batch(self, batch):
        if self.main_loop.status["iterations_done"] == 2:
            print("two batches")

async def stuck(value):
    print("stuck")
    await asyncio.Event().wait()
"""
    )
    return kernel


HANDLERS = "(signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))"


def cell(batches: int = 10**9, step: str = "train") -> str:
    """The first cell of the page, with more batches, and a look at the handlers."""
    text = changed(
        code("Notebook"),
        {
            "[1.0, 2.0, 3.0]": f"lambda: repeat(1.0, {batches})",
            "    train,\n": f"    {step},\n",
            "extensions=[": "extensions=[Tell(), ",
            "log = await loop.run()\n": "try:\n    log = await loop.run()\n"
            f"finally:\n    print('handlers are back:', before == {HANDLERS})\n",
        },
    )
    return f"before = {HANDLERS}\n{text}"


def test_the_pages_cell_trains_to_its_end(notebook: Notebook, tmp_path) -> None:
    notebook.execute(code("Notebook"))
    assert notebook.execute("print(log.status['epochs_done'])") == "1000\n"
    assert last_row(tmp_path / "run.sqlite")["training_finished"] is True


def test_two_presses_of_stop_give_the_log_after_the_batch(notebook: Notebook, tmp_path) -> None:
    notebook.start(cell())
    notebook.wait_for("two batches")
    notebook.stop(until="SIGINT: stopping after this epoch; a second Ctrl-C stops")
    notebook.stop(until="SIGINT: stopping after this batch")
    assert notebook.end()["status"] == "ok"
    assert notebook.printed.endswith("handlers are back: True\n")
    printed = notebook.execute("print(log.status['batch_interrupt_received'], log is loop.log)")
    assert printed == "True True\n"
    row = last_row(tmp_path / "run.sqlite")
    assert (row["interrupt_cause"], row["epochs_done"]) == ("SIGINT", 0)


def test_one_press_of_stop_gives_the_log_after_the_epoch(notebook: Notebook, tmp_path) -> None:
    slow = "async def train(value):\n    await asyncio.sleep(0.0005)"
    notebook.start(changed(cell(batches=500), {"async def train(value):": slow}))
    notebook.wait_for("two batches")
    notebook.stop(until="SIGINT: stopping after this epoch")
    assert notebook.end()["status"] == "ok"
    assert notebook.printed.endswith("handlers are back: True\n")
    printed = notebook.execute("print(log.status['iterations_done'], log.status['epochs_done'])")
    assert printed == "500 1\n"
    assert last_row(tmp_path / "run.sqlite")["training_finished"] is True


def test_three_presses_of_stop_end_the_cell_and_not_the_kernel(
    notebook: Notebook, tmp_path
) -> None:
    notebook.start(cell(step="stuck"))
    notebook.wait_for("stuck")
    notebook.stop(until="SIGINT: stopping after this epoch")
    notebook.stop(until="SIGINT: stopping after this batch; one more Ctrl-C gives it up")
    notebook.stop(until="SIGINT: giving up what is under way")
    reply = notebook.end()
    assert (reply["status"], reply["ename"]) == ("error", "KeyboardInterrupt")
    assert notebook.printed.endswith("handlers are back: True\n")
    assert notebook.execute("print(loop.status['iterations_done'])") == "0\n"
    assert last_row(tmp_path / "run.sqlite")["step_abandoned"] is True


def test_after_a_stop_the_same_training_goes_on_in_the_next_cell(notebook: Notebook) -> None:
    notebook.start(cell())
    notebook.wait_for("two batches")
    notebook.stop(until="stopping after this epoch")
    notebook.stop(until="stopping after this batch")
    notebook.end()
    notebook.execute(
        "done = log.status['iterations_done']\n"
        "loop.find_extension('FinishAfter').set_conditions(after_n_batches=done + 10)\n"
        "log = await loop.run()\n"
    )
    assert notebook.execute("print(log.status['iterations_done'] - done)") == "10\n"


# This event loop ticks, because ipykernel does not wake up one that sleeps when stop is pressed.
ASLEEP = {
    "CancelledError": "print('asleep')\nwhile True:\n    await asyncio.sleep(0.01)",
    "KeyboardInterrupt": "import time\nprint('asleep', flush=True)\ntime.sleep(3600)",
}


@pytest.mark.parametrize("seen", ASLEEP)
def test_after_a_run_the_stop_button_is_again_that_of_the_kernel(
    seen: str, notebook: Notebook
) -> None:
    notebook.execute(cell(batches=3))
    notebook.start(ASLEEP[seen])
    notebook.wait_for("asleep")
    notebook.manager.interrupt_kernel()
    assert notebook.end()["ename"] == seen


BACKGROUND = "loop = MainLoop(train, lambda: repeat(1.0), log=SQLiteLog('run.sqlite'), extensions="


@pytest.fixture
def background(notebook: Notebook) -> Iterator[Notebook]:
    """A notebook with a run in the background, begun by the page's second cell."""
    notebook.execute(code("Notebook").partition("loop = ")[0])
    notebook.execute(
        BACKGROUND + "[TrainingDataMonitoring(['cost'], after_batch=True)])\n" + code("Notebook", 1)
    )
    yield notebook
    notebook.execute("run.done() or run.cancel()\nawait asyncio.wait([run])")


@pytest.mark.parametrize("seen", ASLEEP)
def test_the_stop_button_of_a_later_cell_leaves_a_run_in_the_background_alone(
    seen: str, background: Notebook
) -> None:
    background.start(ASLEEP[seen])
    background.wait_for("asleep")
    background.manager.interrupt_kernel()
    assert background.end()["ename"] == seen
    # The run goes on, and nothing was asked of it.
    printed = background.execute(
        "done = loop.status['iterations_done']\n"
        "while loop.status['iterations_done'] < done + 10 and not run.done():\n"
        "    await asyncio.sleep(0)\n"
        "print(run.done(), loop.status['epoch_interrupt_received'])"
    )
    assert printed == "False False\n"


def test_a_run_in_the_background_ends_by_request(background: Notebook, tmp_path) -> None:
    background.execute("loop.request_finish('batch')\nlog = await run")
    row = last_row(tmp_path / "run.sqlite")
    assert row["interrupt_cause"] == "request_finish('batch')"
    assert row["training_finished"] is True


def test_the_log_of_a_run_in_a_kernel_is_read_here_while_it_runs(
    background: Notebook, tmp_path
) -> None:
    cells = "async for row in loop.log.follow():\n    if row.time >= 10:\n        break"
    background.execute(cells + "\nawait loop.log.flush()")
    with read_log(tmp_path / "run.sqlite") as log:
        assert log.status["iterations_done"] >= 10
        assert isinstance(log[10]["cost"], float)
        assert log.runs[0].ended_at is None


def test_sigterm_ends_a_kernel_only_after_the_batch_of_its_run(notebook: Notebook) -> None:
    notebook.start(cell())
    notebook.wait_for("two batches")
    notebook.manager.signal_kernel(signal.SIGTERM)
    assert notebook.end()["status"] == "ok"
    assert notebook.execute("print(log.current_row['interrupt_cause'])") == "SIGTERM\n"
