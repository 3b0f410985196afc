"""The notebook of the examples, its cells executed in a real kernel as a user executes them."""

import json
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager

# What the client of the kernel keeps, which the tests of the module share.
pytestmark = [
    pytest.mark.aloop_guard(threads=False, files=False),
    pytest.mark.usefixtures("no_threads_of_aloop"),
]

FILE = Path(__file__).parents[1] / "examples" / "notebook.ipynb"
NOTEBOOK = json.loads(FILE.read_text(encoding="utf-8"))
CELLS = {
    cell["id"]: "".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"
}
BATCHES = 45  # in an epoch: 1,437 training images, 32 at a time

# Tasks of aloop are not listed by asyncio, so these are looked for among all objects.
LOOK = """
import gc, threading
tasks = [task for task in gc.get_objects() if isinstance(task, asyncio.Task)]
print([task.get_name() for task in tasks if not task.done() and "aloop" in task.get_name()])
print([thread.name for thread in threading.enumerate() if "aloop" in thread.name])
print(loop.state, run.done())
"""


def query(file: Path, sql: str) -> list[tuple[Any, ...]]:
    """Read the log over a connection of its own, in ascending order."""
    with closing(sqlite3.connect(file)) as database:
        return sorted(database.execute(sql).fetchall())


class Kernel:
    """A kernel, and what is executed in it."""

    def __init__(self, manager: KernelManager, client: BlockingKernelClient) -> None:
        self.manager = manager
        self.client = client

    def run(self, cell: str, *stop_at: str) -> tuple[str, str]:
        """Execute a cell, and press the stop button when it has printed this, and then that.

        Gives what came of it, ``"ok"`` or the name of an exception, and what it printed.
        """
        printed, to_come = "", list(stop_at)

        def hear(message: dict[str, Any]) -> None:
            nonlocal printed
            content = message["content"]
            printed += content.get("text", "") + content.get("data", {}).get("text/plain", "")
            if to_come and to_come[0] in printed:
                del to_come[0]
                self.manager.interrupt_kernel()

        reply = self.client.execute_interactive(
            cell, output_hook=hear, allow_stdin=False, timeout=30
        )["content"]
        assert not to_come, printed
        return reply.get("ename", reply["status"]), printed

    def execute(self, cell: str) -> str:
        """Execute a cell that succeeds, and give what it printed."""
        outcome, printed = self.run(cell)
        assert outcome == "ok", printed
        return printed

    def begin(self, directory: Path) -> None:
        """Be in a directory of its own, and execute the cells up to the loop."""
        self.execute(f"import os; os.chdir({str(directory)!r})")
        for name in ("data", "network", "loop"):
            self.execute(CELLS[name])


@pytest.fixture(scope="module")
def fresh_kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """A kernel of the interpreter of the tests, by the name that the notebook asks for."""
    directory = tmp_path_factory.mktemp("kernel")
    manager = KernelManager(
        kernel_name=NOTEBOOK["metadata"]["kernelspec"]["name"],
        kernel_spec_manager=KernelSpecManager(kernel_dirs=[]),
        connection_file=str(directory / "connection.json"),
    )
    home = {"HOME": str(directory), "IPYTHONDIR": str(directory / "ipython")}
    manager.start_kernel(env=os.environ | home, cwd=str(directory))
    client = manager.client()
    client.start_channels(hb=False, stdin=False)
    try:
        client.wait_for_ready(timeout=30)
        yield Kernel(manager, client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.cleanup_resources()


@pytest.fixture(scope="module")
def run_all(
    fresh_kernel: Kernel, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, str], Path]:
    """Execute all cells, one right after another; give what each printed, and the log's file.

    The last of what they printed is of a look at what is left.
    """
    directory = tmp_path_factory.mktemp("notebook")
    fresh_kernel.execute(f"import os; os.chdir({str(directory)!r})")
    printed = {name: fresh_kernel.execute(cell) for name, cell in CELLS.items()}
    printed["left"] = fresh_kernel.execute(LOOK)
    return printed, directory / "notebook.sqlite"


@pytest.fixture
def kernel(fresh_kernel: Kernel, run_all, tmp_path: Path) -> Kernel:
    """The kernel after all that, begun anew with a loop that has not run."""
    fresh_kernel.begin(tmp_path)
    return fresh_kernel


def test_the_file_holds_text_and_code_in_turn_and_no_outputs() -> None:
    cells = NOTEBOOK["cells"]
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in cells}) == len(cells)
    for text, code in zip(cells[1::2], cells[2::2], strict=True):
        assert (text["cell_type"], code["cell_type"]) == ("markdown", "code")
        assert (code["outputs"], code["execution_count"]) == ([], None)


@pytest.mark.slow
def test_the_cells_run_all_show_a_network_that_learns(run_all) -> None:
    printed, _ = run_all
    assert printed["run"].endswith(": 900 iterations, 20 epochs>")
    *_, last = printed["look"].splitlines()
    epoch, cost, accuracy, *_ = last.split()
    assert epoch == "20"
    assert float(cost) < 0.5
    assert float(accuracy.rstrip("%")) >= 90
    *_, last = printed["end"].splitlines()
    assert float(last.removeprefix("test accuracy ").rstrip("%")) >= 90


@pytest.mark.slow
def test_the_cells_run_all_watch_the_run_in_the_background(run_all) -> None:
    printed, _ = run_all
    state, _, done = printed["watch"].partition(" batches done\n")[0].partition(", ")
    assert state == "running"
    assert int(done) > 20 * BATCHES
    rows = printed["follow"].splitlines()
    assert len(rows) == 5
    assert all(int(row.split(":")[0].removeprefix("batch ")) % BATCHES == 0 for row in rows)


@pytest.mark.slow
def test_the_cells_run_all_pause_the_run_and_go_on_with_it(run_all) -> None:
    printed, file = run_all
    state, _, paused_at = printed["pause"].splitlines()[-1].partition(" after batch ")
    assert state == "paused"
    rates = query(file, "SELECT time, value FROM entries WHERE key = 'learning_rate'")
    assert rates == [(int(paused_at), pytest.approx(0.0002))]
    assert printed["file"].endswith(f" after batch {paused_at}\n")
    assert printed["beside"].startswith("test accuracy ")
    assert printed["after"].startswith("running\n")
    assert printed["end"].startswith("ended by request_finish('batch')\n")


@pytest.mark.slow
def test_each_epoch_has_its_accuracy_from_beside_the_training_in_the_file(run_all) -> None:
    printed, file = run_all
    accuracies = query(file, "SELECT time, value FROM entries WHERE key = 'test_accuracy'")
    done = re.search(r"after (\d+) epochs and (\d+) batches", printed["end"])
    assert done is not None
    epochs, batches = map(int, done.groups())
    assert 0 <= batches - BATCHES * epochs <= BATCHES  # stopped after any batch of the next one
    assert query(file, "SELECT epoch, time FROM epochs") == [
        (epoch, BATCHES * epoch) for epoch in range(1, epochs + 1)
    ]
    assert [time for time, _ in accuracies] == [BATCHES * epoch for epoch in range(1, epochs + 1)]
    assert accuracies[-1][1] >= 0.9


@pytest.mark.slow
def test_the_cells_run_all_leave_nothing_running(run_all) -> None:
    printed, _ = run_all
    assert printed["left"] == "[]\n[]\nclosed True\n"


LONG = """
class Tell(SimpleExtension):
    def do(self, which_callback, *args):
        print("it trains", flush=True)

loop.extensions.append(Tell(after_n_epochs=2))
loop.find_extension("FinishAfter").set_conditions(after_n_epochs=10**9)
"""

STOPPED = f"""
before, done = log.h_uuid, log.status["epochs_done"]
print(
    log.status["epoch_interrupt_received"],
    (await log.series("interrupt_cause"))[1].tolist(),
    log.status["iterations_done"] == {BATCHES} * done,
)
loop.find_extension("FinishAfter").set_conditions(after_n_epochs=done + 3)
"""
WENT_ON = "print(log.status['epochs_done'] - done, log.status['resumed_from'] == before)"


@pytest.mark.slow
def test_the_stop_button_ends_the_cell_of_a_run_which_goes_on_when_it_runs_again(
    kernel: Kernel,
) -> None:
    kernel.execute(LONG)
    outcome, printed = kernel.run(CELLS["run"], "it trains")
    assert outcome == "ok"
    assert "SIGINT: stopping after this epoch" in printed
    assert printed.rstrip().endswith(" epochs>")
    assert kernel.execute(STOPPED) == "True ['SIGINT'] True\n"
    kernel.execute(CELLS["run"])
    assert kernel.execute(WENT_ON) == "3 True\n"


@pytest.mark.slow
def test_the_stop_button_of_a_later_cell_leaves_the_run_in_the_background_alone(
    kernel: Kernel,
) -> None:
    kernel.execute(CELLS["background"])
    kernel.execute(CELLS["watch"])
    follow = CELLS["follow"]
    assert "if rows == 5:" in follow
    outcome, _ = kernel.run(follow.replace("if rows == 5:", "if rows == 10**9:"), "train cost")
    assert outcome in ("CancelledError", "KeyboardInterrupt")
    assert kernel.execute(CELLS["watch"]).startswith("running, ")
    asked = kernel.execute("print(run.done(), loop.status['epoch_interrupt_received'])")
    assert asked == "False False\n"
    assert kernel.execute(CELLS["end"]).startswith("ended by request_finish('batch')\n")
