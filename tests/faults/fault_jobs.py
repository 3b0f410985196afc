"""What children do for the tests of faults: ``python fault_jobs.py JOB '{"argument": ...}'``.

The fork server runs them too. Each job tells how it goes on by lines to its link.
"""

import asyncio
import json
import os
import resource
import signal
import sys
import threading
import urllib.parse  # noqa: F401 - pathlib imports it late, when `as_nobody` may not read it
from collections.abc import Callable
from itertools import count
from pathlib import Path
from random import Random

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "resume"))
from resume_tools import make_loop, outcome

from aloop import Checkpoint, FinishAfter, MainLoop, SQLiteLog, TrainingExtension, config, read_log
from aloop.checkpoints import CheckpointDirectory
from aloop.errors import UnknownRunError
from aloop.log.journal import GROUP_COMMIT_S
from aloop.log.ownership import Ownership

Tell = Callable[..., None]


def seeded(seed: int) -> Random:
    """Give what a test draws from: the same again for the same seed."""
    return Random(seed)  # noqa: S311 - keeps no secret


async def no_op(batch: object) -> None:
    """Train on nothing."""


# ------------------------------------------------------------------ writing until killed


def write_boundary(log: SQLiteLog, time: int, text: str) -> None:
    """Write three records and a status, which are to be in the file together or not at all."""
    log[time]["a"] = time
    log[time]["b"] = text
    log[time]["c"] = -time
    log.status["iterations_done"] = time + 1
    log.commit()


async def write(
    tell: Tell,
    database: str,
    seed: int,
    *,
    rows: int | None = None,
    run: str | None = None,
    size: int = 10,
    durability: str = "normal",
    each: bool = False,
) -> None:
    """Log boundaries, flush after some of them (or after each), and acknowledge each flush."""
    random = seeded(seed)
    log = SQLiteLog(database, run, durability=durability)
    async with log.session():
        log.commit()
        await log.flush()
        tell("open", log.h_uuid)
        for time in count(log.status["iterations_done"]):
            if time == rows:
                break
            write_boundary(log, time, "x" * random.randrange(2 * size))
            if each or random.random() < 0.5:
                await log.flush()
                tell("flushed", time)
            else:
                await asyncio.sleep(0)
    tell("closed")


async def stay_open(tell: Tell, database: str) -> None:
    """Have a log open until told to close it."""
    async with SQLiteLog(database) as log:
        log[0]["a"] = 0
        await log.flush()
        tell("open", log.h_uuid)
        await asyncio.to_thread(sys.stdin.readline)
    tell("closed")


async def open_and_die(tell: Tell, database: str, step: int) -> None:
    """Open a log and close it, and kill this process before the given step of that.

    A step is a call into C from the modules that make, open and close the file.
    """
    left = step

    def profile(frame, event, arg) -> None:
        nonlocal left
        if event == "c_call" and frame.f_code.co_filename.endswith(
            ("log/files.py", "log/ownership.py", "log/connection.py", "log/committing.py")
        ):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    log = SQLiteLog(database)
    threading.setprofile(profile)
    await log.open()
    log[0]["a"] = 0
    await log.close()
    tell("closed", log.h_uuid)


async def open_and_close(tell: Tell, database: str) -> None:
    tell("begin")
    async with SQLiteLog(database) as log:
        log[0]["a"] = 0
    tell("closed", log.h_uuid)


async def claim_and_release(tell: Tell, database: str, seed: int, times: int) -> None:
    """Claim to be the owner of a file many times; tell how often another was, too, and how often.

    The owner makes a file that nobody but the owner makes, and removes it.
    """
    random = seeded(seed)
    ownership = Ownership(Path(database))
    mine = Path(f"{database}-mine")
    twice = granted = 0
    for _ in range(times):
        if ownership.claim():
            granted += 1
            try:
                mine.open("x").close()
            except FileExistsError:
                twice += 1
            for _ in range(random.randrange(300)):
                pass
            mine.unlink(missing_ok=True)
            ownership.release()
    tell("done", twice, granted)


# ------------------------------------------------------------------ training until killed


class TellEach(TrainingExtension):
    """Tells of each batch and of each epoch."""

    def __init__(self, tell: Tell) -> None:
        super().__init__()
        self.tell = tell

    async def after_batch(self, batch: object) -> None:
        self.tell("batch", self.main_loop.status["iterations_done"])

    async def after_epoch(self) -> None:
        self.tell("epoch", self.main_loop.status["epochs_done"])


def as_text(found: dict) -> str:
    return json.dumps(found, default=str, sort_keys=True)


async def train_on(tell: Tell, directory: str, seed: int, backend: str = "sqlite") -> None:
    """Go on with a training, or begin it, and tell what it ends with."""
    random = seeded(seed)
    where = Path(directory)
    checkpoint = Checkpoint(
        where / "checkpoints",
        resume=True,
        keep=2,
        every_n_batches=random.choice([1, 2, 5]),
        after_epoch=random.random() < 0.5,
        before_training=random.random() < 0.5,
    )
    loop = make_loop(
        where,
        TellEach(tell),
        step=random.choice(["thread", "async", "inline"]),
        backend=backend,
        checkpoint=checkpoint,
        signals="auto",
    )
    tell("begun")
    await loop.run()
    is_stopped = loop.status["batch_interrupt_received"] or loop.status["epoch_interrupt_received"]
    tell("stopped" if is_stopped else "ended", as_text(outcome(loop)))


async def train_and_die(tell: Tell, directory: str, step: int, publication: int) -> None:
    """Train, and kill this process before the given step of publishing a checkpoint.

    A step is a call into C from the modules that write checkpoints.
    """
    left, begun = step, 0

    def profile(frame, event, arg) -> None:
        nonlocal left, begun
        if event == "call" and frame.f_code.co_qualname == "CheckpointDirectory.publish":
            begun += 1
        if (
            event == "c_call"
            and begun >= publication
            and frame.f_code.co_filename.endswith(
                (
                    "checkpoints/directory.py",
                    "checkpoints/published.py",
                    "aloop/disk.py",
                    "shutil.py",
                )
            )
        ):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    threading.setprofile(profile)
    await train_on(tell, directory, seed=0)


# ------------------------------------------------------------------ failures


class Write(TrainingExtension):
    """Records each batch with a text, and flushes now and then."""

    def __init__(self, size: int, flush_every: int) -> None:
        super().__init__()
        self.size = size
        self.flush_every = flush_every
        self.acknowledged = -1
        self.last = -1

    async def after_batch(self, batch: object) -> None:
        log = self.main_loop.log
        log.current_row["batch"] = batch
        log.current_row["text"] = "x" * self.size
        self.last = batch
        if batch % self.flush_every == self.flush_every - 1:
            # What this boundary holds is not committed yet; the one before is.
            await log.flush()
            self.acknowledged = batch - 1
        elif batch % 50 == 0:  # so that not all is one group
            # No event tells that a group was written which nobody waits for; a flush is a barrier.
            await asyncio.sleep(1.5 * GROUP_COMMIT_S)


def batches_in(database: str) -> list[int]:
    try:
        with read_log(database) as log:
            return [log[time]["batch"] for time in log]
    except UnknownRunError:  # there is none
        return []


async def run_out_of_space(
    tell: Tell, database: str, free: Callable[[], None], *, flush_every: int = 10
) -> None:
    """Train until the disk is full, tell what came of it, make room, flush, and tell again."""
    write = Write(500, flush_every)
    log = SQLiteLog(database)
    loop = MainLoop(no_op, lambda: iter(range(100_000)), log=log, extensions=[write])
    error: BaseException | None = None
    try:
        await loop.run()
    except BaseException as caught:  # noqa: BLE001 - looked at by the test
        error = caught
    tell("failed", type(error).__name__, str(error))
    in_memory = [log[time]["batch"] for time in log]
    tell("memory", in_memory == list(range(write.last + 1)), write.last)
    before = batches_in(database)
    tell("file", before == list(range(len(before))), len(before), write.acknowledged)
    free()
    await log.flush()
    tell("beside", *sorted(path.name for path in Path(database).parent.iterdir()))
    after = batches_in(database)
    tell("flushed", after == in_memory, len(after))


async def fill_a_disk(tell: Tell, directory: str, *, flush_every: int = 10) -> None:
    """Train on a tmpfs of 1 MB that is nearly full of something else."""
    ballast = Path(directory, "ballast")
    ballast.write_bytes(bytes(500_000))
    await run_out_of_space(tell, f"{directory}/log.sqlite", ballast.unlink, flush_every=flush_every)


async def open_on_a_full_disk(tell: Tell, directory: str) -> None:
    """Try to make a log where there is no room, and then with room."""
    ballast = Path(directory, "ballast")
    try:
        with ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    except OSError:
        pass
    await try_to_open(tell, f"{directory}/log.sqlite")
    tell("beside", *sorted(path.name for path in Path(directory).iterdir()))
    ballast.unlink()
    await try_to_open(tell, f"{directory}/log.sqlite")
    tell("beside", *sorted(path.name for path in Path(directory).iterdir()))


async def exceed_file_size(tell: Tell, database: str, limit: int) -> None:
    """Train until a file would be larger than this process may make one."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    await run_out_of_space(
        tell, database, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    )


async def try_to_open(tell: Tell, database: str, run: str | None = None) -> None:
    try:
        async with SQLiteLog(database, run) as log:
            log[0]["a"] = 0
    except Exception as error:  # noqa: BLE001 - looked at by the test
        tell("refused", type(error).__name__, str(error))
    else:
        tell("opened")


async def try_to_read(tell: Tell, database: str) -> None:
    try:
        read = batches_in(database)
    except Exception as error:  # noqa: BLE001 - looked at by the test
        tell("refused", type(error).__name__, str(error))
    else:
        tell("read", *read)


async def save_to(tell: Tell, path: str, read_only_after: int | None = None) -> None:
    """Train with a checkpoint at each batch, in a directory that cannot be written, or no more."""

    class MakeReadOnly(TrainingExtension):
        async def before_batch(self, batch: object) -> None:
            if self.main_loop.status["iterations_done"] == read_only_after:
                Path(path).chmod(0o500)

    os.environ["HOME"] = str(Path(path).parent)  # where this user may look for settings
    checkpoint = Checkpoint(path, after_batch=True)
    loop = MainLoop(no_op, [1, 2, 3, 4], extensions=[checkpoint, MakeReadOnly()])
    try:
        await loop.run()
    except Exception as error:  # noqa: BLE001 - looked at by the test
        tell("failed", type(error).__name__, loop.status["iterations_done"], str(error))


async def fill_with_checkpoints(tell: Tell, directory: str) -> None:
    """Save checkpoints of 300 kB until a disk of 1 MB is full."""
    weights = {"w": np.arange(37_500.0)}
    ballast = Path(directory, "ballast")

    class Fill(TrainingExtension):
        async def before_batch(self, batch: object) -> None:
            if batch == 2:
                ballast.write_bytes(bytes(500_000))

    checkpoint = Checkpoint(Path(directory, "checkpoints"), after_batch=True)
    loop = MainLoop(no_op, [1, 2, 3, 4], model=weights, extensions=[checkpoint, Fill()])
    try:
        await loop.run()
    except Exception as error:  # noqa: BLE001 - looked at by the test
        tell("failed", type(error).__name__, str(error))
    left = list(Path(directory, "checkpoints").iterdir())
    found, broken = CheckpointDirectory(Path(directory, "checkpoints")).published()
    for each in found:
        each.verify()
    tell("sound", len(found))
    tell("left", len(left) + len(broken))


async def as_nobody(tell: Tell, what: str, **arguments) -> None:
    """Do a job as a user whom permissions bind."""
    if os.getuid() == 0:
        # What is imported late, from where this user may not look.
        assert not config.profile
        import safetensors.numpy  # noqa: F401

        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    await globals()[what](tell, **arguments)


# ------------------------------------------------------------------ cancellation


async def cancel_flushes(tell: Tell, database: str, seed: int, flushes: int) -> None:
    """Flush, with three in ten flushes cancelled at some moment; end with the log open."""
    log = await SQLiteLog(database).open()
    await flush_and_cancel(log, seed, flushes)
    tell("end", log.h_uuid)


async def flush_and_cancel(log: SQLiteLog, seed: int, flushes: int) -> int:
    """Do that over a log in a session or not; give how many flushes were cancelled."""
    random = seeded(seed)
    pending: set[asyncio.Task[None]] = set()
    cancelled = 0

    def end(task: asyncio.Task[None]) -> None:
        nonlocal cancelled
        pending.discard(task)
        if task.cancelled():
            cancelled += 1
        else:
            task.result()

    for time in range(flushes):
        write_boundary(log, time, "x")
        task = asyncio.create_task(log.flush())
        pending.add(task)
        task.add_done_callback(end)
        if random.random() < 0.3:
            for _ in range(random.randrange(6)):
                await asyncio.sleep(0)
            if random.random() < 0.5:  # while the thread is at work, perhaps
                await asyncio.sleep(random.uniform(0, 0.003))
            task.cancel()
        elif random.random() < 0.5:
            await task
    while pending:
        await asyncio.wait(pending)
        await asyncio.sleep(0)
    return cancelled


async def end_in_the_middle(tell: Tell, database: str, how: str) -> None:
    """End the main coroutine while much is on its way."""
    log = await SQLiteLog(database).open()
    flushes = []
    for time in range(300):
        write_boundary(log, time, "x" * 1000)
        if time % 10 == 0:
            flushes.append(asyncio.create_task(log.flush()))
            await asyncio.sleep(0)
    if how == "cancelled":
        for task in flushes:
            task.cancel()
    tell("end", log.h_uuid)


async def end_a_run(tell: Tell, database: str) -> None:
    """End the main coroutine right after a run."""
    write = Write(100, 10)
    log = SQLiteLog(database)
    extensions = [write, FinishAfter(after_n_epochs=1)]
    await MainLoop(no_op, range(100), log=log, extensions=extensions).run()
    tell("end", log.h_uuid)


# ------------------------------------------------------------------ being run


def do(job: str, arguments: dict, tell: Tell) -> None:
    config.max_blob_size = 1 << 20  # large records are what fills files
    asyncio.run(globals()[job](tell, **arguments))


def tell_to(descriptor: int) -> Tell:
    """Make a function that tells a list, in a line, with the time at which it did."""

    def tell(*what: object) -> None:
        os.write(descriptor, (json.dumps(what) + "\n").encode())

    return tell


if __name__ == "__main__":
    do(sys.argv[1], json.loads(sys.argv[2]), tell_to(1))
