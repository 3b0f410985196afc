"""Cutting the power of a training at random moments, and starting it again on what is left."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, field
from multiprocessing.spawn import get_preparation_data
from pathlib import Path
from queue import SimpleQueue
from random import Random
from typing import Any, Final, cast

from aloop.errors import AloopError, ArgumentError
from aloop.testing.arguments import (
    checked_make_loop,
    count_of,
    patterns_of,
    scratch,
    seed_of,
    timeout_of,
)
from aloop.testing.children import ChildOutcome, Nursery
from aloop.testing.outcomes import MakeLoop, Outcome, differences
from aloop.testing.power.acknowledged import Acknowledged, examine, is_before_end, train
from aloop.testing.power.disks import Disk, Mark, Tree, read_tree, write_tree
from aloop.testing.power.strace import TraceError, strace
from aloop.testing.power.traces import Step, read_trace
from aloop.testing.reports import Report, Trial, finished, going_on

__all__ = ["power_cuts"]

# Nothing is imported by it before it has the paths of this process.
_TRACED: Final = (
    "import pickle, sys; from multiprocessing.spawn import prepare; "
    "file = open(sys.argv[1], 'rb'); "
    "prepare(pickle.load(file)); job, arguments = pickle.load(file); job(*arguments)"
)
_MAX_OUTPUT: Final = 2000  # characters


@dataclass(frozen=True, slots=True)
class _Trace:
    """A run, and what it began with."""

    tree: Tree
    steps: Sequence[Step]
    marks: Sequence[str]
    """What was acknowledged before it began."""

    def cut(self, at: int, random: Random) -> "_Cut":
        """Cut the power after so many steps."""
        disk = Disk(self.tree)
        for step in self.steps[:at]:
            disk.apply(step.operation)
        told = [step.operation.text for step in self.steps[:at] if isinstance(step.operation, Mark)]
        return _Cut(disk.cut(random), [*self.marks, *told])


@dataclass(frozen=True, slots=True)
class _Cut:
    """What a power cut has left, and the marks from before."""

    tree: Tree
    marks: Sequence[str]


@dataclass(frozen=True, slots=True)
class _Power:
    """One training whose power is cut again and again."""

    make_loop: MakeLoop
    directory: Path
    seed: int
    every_n_batches: int
    ignore: Sequence[str]
    timeout_s: float
    nurseries: "SimpleQueue[Nursery]" = field(default_factory=SimpleQueue["Nursery"])

    def do(self, job: Callable[..., Any], directory: Path, *args: Any) -> ChildOutcome:
        """Have a child do something with the training in a directory."""
        nursery = self.nurseries.get()
        try:
            return nursery.do(
                job,
                self.make_loop,
                directory,
                self.every_n_batches,
                *args,
                timeout_s=self.timeout_s,
            )
        finally:
            self.nurseries.put(nursery)

    def straight(self) -> Outcome:
        """Run the training to its end, as the rest has to end."""
        directory = self.directory / "straight"
        directory.mkdir()
        ended = self.do(train, directory)
        if ended.failure is not None:
            raise AloopError(
                "the training fails when nothing breaks it; expected it to come to its end; mend "
                f"it first:\n{ended.failure}{ended.output}"
            )
        return ended.result

    def trace(self, number: int, tree: Tree) -> Outcome | str:
        """Run the training in a traced process on these files, and give why if it fails."""
        root = self._path("run", number)
        root.mkdir()
        write_tree(tree, root)
        order, result = self._path("order", number), self._path("outcome", number)
        setting = get_preparation_data("aloop traced run")
        del setting["authkey"]  # a secret, which is not written to a file
        marks = self._path("marks", number)
        arguments = (result, self.make_loop, root, self.every_n_batches, marks)
        order.write_bytes(pickle.dumps(setting) + pickle.dumps((_train_and_tell, arguments)))
        command = [*strace(self._path("trace", number)), sys.executable, "-c", _TRACED, str(order)]
        with self._path("output", number).open("w+b") as output:
            try:
                code = _run(command, self.directory, output.fileno(), self.timeout_s)
            except subprocess.TimeoutExpired:
                return f"it had not ended after {self.timeout_s:g} s, and was killed"
            output.seek(0)
            text = output.read().decode(errors="replace")[-_MAX_OUTPUT:]
        if code or not result.exists():
            return f"it ended with {code}:\n{text}"
        return pickle.loads(result.read_bytes())  # noqa: S301 - of the child

    def read(self, number: int, tree: Tree) -> list[Step]:
        """Give what the traced process did."""
        return read_trace(
            self._path("trace", number),
            self._path("run", number),
            self._path("marks", number),
            tree,
            self.directory,
        )

    def check(self, number: int, trace: _Trace) -> None:
        """Make sure that the trace and the model of the disk leave nothing out."""
        disk = Disk(trace.tree)
        for step in trace.steps:
            disk.apply(step.operation)
        modelled, real = disk.now(), read_tree(self._path("run", number))
        wrong = [
            path for path in {**modelled, **real} if modelled.get(path, "") != real.get(path, "")
        ]
        if wrong:
            raise TraceError(
                f"what strace saw does not make {', '.join(sorted(wrong))} in "
                f"{self._path('run', number)} what it is; expected files that are written by calls "
                "of the system alone, not through memory, nor where a read has left off; see to "
                "who writes them otherwise"
            )

    def following(self, number: int, trace: _Trace) -> _Cut:
        """Cut the power somewhere in the middle, for the next trace to go on from."""
        random = _random(self.seed, number, "following")
        steps = len(trace.steps)
        return trace.cut(random.randint(steps // 4, 3 * steps // 4), random)

    def traces(self, count: int, straight: Outcome) -> tuple[list[_Trace], list[Trial]]:
        """Trace so many runs: the first from its beginning, each other after a power cut."""
        found: list[_Trace] = []
        trials: list[Trial] = []
        start = _Cut({}, ())
        for number in range(count):
            outcome = self.trace(number, start.tree)
            wrong = _wrong(straight, outcome, self.ignore)
            if number:
                trials.append(Trial(f"started again for trace {number}", tuple(wrong)))
            else:
                _expect_same(outcome, wrong)
            if isinstance(outcome, str):
                break  # it could not be started again, which was told
            found.append(_Trace(start.tree, self.read(number, start.tree), start.marks))
            self.check(number, found[-1])
            if not number:
                _refuse_vacuous(found[-1].steps)
            start = self.following(number, found[-1])
        return found, trials

    def trial(
        self, straight: Outcome, number: int, trace: _Trace, place: int
    ) -> tuple[Trial, bool]:
        """Cut the power at one moment of a trace, and say what is wrong after that.

        And whether the training has gone on from a checkpoint then.
        """
        random = _random(self.seed, number, place)
        at = random.randint(1, len(trace.steps))
        cut = trace.cut(at, random)
        directory = self.directory / f"cut-{number}-{place}"
        directory.mkdir()
        write_tree(cut.tree, directory)
        acknowledged = Acknowledged.of(cut.marks, straight)
        ended = self.do(examine, directory, acknowledged)
        went_on = True
        if ended.failure is None:
            went_on = ended.result[2]
            wrong: list[str] = ended.result[0]
            wrong += _wrong(straight, ended.result[1], self.ignore)
        else:
            wrong = _wrong(straight, f"{ended.failure}{ended.output}", self.ignore)
        shutil.rmtree(directory)
        if wrong:
            directory.mkdir()
            write_tree(cut.tree, directory)
        trial = Trial(
            f"only=({number}, {place}): the power was cut after step {at} of {len(trace.steps)} of "
            f"trace {number}: {trace.steps[at - 1].what:.200}",
            tuple(wrong),
        )
        return trial, went_on

    def _path(self, kind: str, number: int) -> Path:
        return self.directory / f"{kind}-{number}"


def _refuse_vacuous(steps: Sequence[Step]) -> None:
    """Refuse a training of which a power cut can take nothing."""
    marks = [step.operation.text for step in steps if isinstance(step.operation, Mark)]
    if len(marks) == len(steps):
        raise ArgumentError(
            "make_loop makes a training that writes nothing to the directory it is given; "
            "expected its log and its checkpoints there; have it use that directory"
        )
    if not is_before_end(marks):
        raise ArgumentError(
            "nothing was acknowledged before the end of the training, so that no power cut could "
            "take it; expected records in a SQLiteLog, or checkpoints; train for more batches, or "
            "flush more often by flush_every_n_batches=1"
        )


def _random(*seed: object) -> Random:
    return Random("/".join(map(str, seed)))  # noqa: S311 - no secret


def _wrong(straight: Outcome, outcome: Outcome | str, ignore: Sequence[str]) -> list[str]:
    if isinstance(outcome, str):
        return [f"when it was started again, it failed: {outcome.strip()}"]
    return differences(straight, outcome, ignore)


def _expect_same(outcome: Outcome | str, wrong: Sequence[str]) -> None:
    """Refuse what does not end the same when nothing breaks it."""
    if isinstance(outcome, str):
        raise TraceError(
            "the training cannot be traced; expected a system on which strace may trace what it "
            f"starts; allow that (a container may need the capability SYS_PTRACE): {outcome}"
        )
    if wrong:
        raise AloopError(
            f"the training does not end twice alike when nothing breaks it: {'; '.join(wrong)}; "
            "expected the same to the bit; seed what it draws from, and give as ignore what may "
            "differ"
        )


def _run(command: Sequence[str], directory: Path, output: int, timeout_s: float) -> int:
    """Run a command and what it starts, and end all of it when it takes too long."""
    with subprocess.Popen(  # noqa: S603 - strace, and this interpreter
        command,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    ) as process:
        try:
            return process.wait(timeout_s)
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise


def _train_and_tell(result: Path, *arguments: Any) -> None:
    result.write_bytes(pickle.dumps(train(*arguments)))


def power_cuts(
    make_loop: MakeLoop,
    directory: Path | None = None,
    *,
    cuts: int = 200,
    seed: int = 0,
    traces: int = 4,
    only: tuple[int, int] | None = None,
    flush_every_n_batches: int = 2,
    ignore: Sequence[str] = (),
    processes: int = 2,
    timeout_s: float = 60.0,
) -> Report:
    """Cut the power of a training at random moments, and see that nothing was lost.

    A child process trains under strace, which writes down all that is done to the files; from that
    it is worked out what a disk may hold after a power cut at any moment (see
    `aloop.testing.power.disks`). On what is left all rows have to be in the log for which a
    ``log.flush()`` has returned, and the newest checkpoint that was published, or a newer one, has
    to be whole. Then the training is started again there, and has to end as one that was never
    broken: with the same state of model, algorithm, stream and extensions, to the bit, and with
    the same rows.

    Raises `FaultFoundError`, which lists what was lost, and keeps the traces and the files of these
    cuts; `ArgumentError` for what no child can import; `MissingDependencyError` without strace,
    which is for Linux; `TraceError` for what is done to files and cannot be followed.

    Parameters:
        make_loop: makes the loop in a directory, with its log and checkpoints there, so that it
            goes on from what it finds (``Checkpoint(path, resume=True)``). A function at the top of
            a module, for other processes import it.
        directory: where the trials are; a temporary one unless given.
        cuts: how often the power is cut.
        seed: decides when, and what is lost.
        traces: how many runs are traced, each after a power cut in the one before.
        only: the numbers of a trace and a cut, to repeat one of the cuts that a failure has kept in
            `directory`, with the same seed.
        flush_every_n_batches: how often the log is flushed, and what is durable then is noted.
        ignore: patterns of what may differ in two runs of the training, such as
            ``"rows/*/seconds"``; times, paths and what tells of stops may in any case.
        processes: how many trainings go on side by side.
        timeout_s: seconds after which a run counts as stuck, and is killed.
    """
    checked_make_loop(make_loop)
    count_of("cuts", cuts)
    seed_of(seed)
    count_of("traces", traces)
    every_n_batches = count_of("flush_every_n_batches", flush_every_n_batches)
    ignore, timeout_s = patterns_of("ignore", ignore), timeout_of(timeout_s)
    strace(Path(os.devnull))  # which may be missing
    files = scratch(directory, "power") if only is None else nullcontext(_kept_in(directory, only))
    with files as where, ExitStack() as stack:
        power = _Power(make_loop, where, seed, every_n_batches, ignore, timeout_s)
        for _ in range(count_of("processes", processes)):
            power.nurseries.put(stack.enter_context(Nursery()))
        pool = ThreadPoolExecutor(processes)
        stack.callback(pool.shutdown, cancel_futures=True)
        straight = power.straight()
        if only is None:
            found, trials = power.traces(traces, straight)
            chosen = [(place % len(found), place // len(found)) for place in range(cuts)]
        else:
            found, trials, chosen = _kept(power, only[0]), [], [only]
        running = [
            pool.submit(power.trial, straight, number, found[number], place)
            for number, place in chosen
        ]
        results = [each.result() for each in running]
        trials += [trial for trial, _ in results]
        if only is None:
            trials.append(going_on(sum(went_on for _, went_on in results)))
        return finished(f"power_cuts(seed={seed})", trials, where)


def _kept_in(directory: Path | None, only: tuple[int, int]) -> Path:
    is_pair = isinstance(cast("object", only), tuple) and len(only) == 2
    if not is_pair or any(not isinstance(cast("object", each), int) or each < 0 for each in only):
        raise ArgumentError(
            f"only is {only!r:.80}; expected the numbers of a trace and a cut, as the failure "
            "names them; leave it out for all"
        )
    directory = None if directory is None else Path(directory)
    if directory is None or not (directory / f"trace-{only[0]}").exists():
        raise ArgumentError(
            f"only is {only!r}, but there is no trace {only[0]} in {directory}; expected the "
            "directory that the failure has named; give it as directory"
        )
    for name in ("straight", f"cut-{only[0]}-{only[1]}"):
        shutil.rmtree(directory / name, ignore_errors=True)
    return directory.resolve()


def _kept(power: _Power, last: int) -> list[_Trace]:
    """Read the traces that were kept, up to one."""
    found: list[_Trace] = []
    start = _Cut({}, ())
    for number in range(last + 1):
        found.append(_Trace(start.tree, power.read(number, start.tree), start.marks))
        start = power.following(number, found[-1])
    return found
