"""Fault points: the named moments of a run at which a test may break it.

A fault point does nothing unless somebody watches. Where it would be passed with every batch it is
compiled in only while somebody does (`with_points`), so that it is free when unused; elsewhere it
costs a call (`fault_point`). What breaks runs at these points is in `aloop.testing`.
"""

from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from inspect import isawaitable
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from aloop.callbacks import CallbackName

__all__ = ["POINTS", "FaultPoint", "fault_point", "point_of", "watched_points", "with_points"]


class FaultPoint(NamedTuple):
    """A moment of a run."""

    when: str
    """Between which two things it is."""
    may_raise: bool = False
    """Whether an error can come up there: of the disk, or of the user's code."""


POINTS: Final = MappingProxyType(
    {
        # The training.
        "run.opened": FaultPoint("the log is open, and nothing has begun"),
        "run.started": FaultPoint("the restore point is passed, the first epoch is not begun"),
        "epoch.begun": FaultPoint("the stream has given an iterator", may_raise=True),
        "batch.fetched": FaultPoint(
            "a batch is there, and nothing is done with it", may_raise=True
        ),
        "step.begun": FaultPoint("the algorithm is about to get a batch", may_raise=True),
        "step.done": FaultPoint("the algorithm has trained on a batch", may_raise=True),
        **{
            f"callback.{callback}": FaultPoint(
                f"an extension is about to be called with {callback}", may_raise=True
            )
            for callback in CallbackName
        },
        # The commit.
        "commit.begun": FaultPoint("all is done at a boundary, and it is not marked as whole"),
        "commit.done": FaultPoint("the log was told that the boundary is whole"),
        # The journal; but for the first and last of a group, in its thread.
        "log.opening": FaultPoint("the file of the log is to be opened", may_raise=True),
        "log.made": FaultPoint("a new file is written, and has no name yet", may_raise=True),
        "log.named": FaultPoint("a new file has its name, in a directory that is not synced"),
        "log.taken": FaultPoint("what is committed was taken over for a transaction"),
        "log.begun": FaultPoint("a transaction has begun", may_raise=True),
        "log.written": FaultPoint("the transaction holds all rows", may_raise=True),
        "log.committed": FaultPoint("the transaction is over, and nobody has heard of it"),
        "log.settled": FaultPoint("the logs have heard of the transaction"),
        "log.closing": FaultPoint("all is written, the file is to be closed"),
        "log.closed": FaultPoint("the file is closed"),
        # A checkpoint; from the files on, in a thread of its own.
        "checkpoint.claimed": FaultPoint(
            "the directory of the checkpoints is the run's own", may_raise=True
        ),
        "checkpoint.due": FaultPoint("a boundary has come at which a checkpoint is due"),
        "checkpoint.copied": FaultPoint("the state is copied", may_raise=True),
        "checkpoint.flushed": FaultPoint(
            "the log is on the disk as far as the state", may_raise=True
        ),
        "checkpoint.begun": FaultPoint("an empty directory is there for it", may_raise=True),
        "checkpoint.described": FaultPoint(
            "its state is written, but for the arrays", may_raise=True
        ),
        "checkpoint.written": FaultPoint("its files are written", may_raise=True),
        "checkpoint.synced": FaultPoint("its files are on the disk", may_raise=True),
        "checkpoint.vouched": FaultPoint(
            "its manifest is written, and not on the disk", may_raise=True
        ),
        "checkpoint.signed": FaultPoint("its manifest is on the disk", may_raise=True),
        "checkpoint.renamed": FaultPoint("it has its name, in a directory that is not synced"),
        "checkpoint.published": FaultPoint("it is published, and nobody has heard of it"),
        "checkpoint.removing": FaultPoint("an old one has lost its name", may_raise=True),
        "checkpoint.removed": FaultPoint("an old one is removed"),
        "checkpoint.recorded": FaultPoint("the log has the path of it"),
        # Going on from one.
        "restore.read": FaultPoint("a checkpoint was read", may_raise=True),
        "restore.done": FaultPoint("all of it is put back"),
        # The way out.
        "drain.begun": FaultPoint("the training is over"),
        "drain.settled": FaultPoint("what ran beside the training has ended"),
        "drain.called": FaultPoint("the extensions were told of an end in good order"),
        "drain.told": FaultPoint("the extensions were told of a failure"),
        "drain.done": FaultPoint("the last checkpoint is saved"),
        "close.done": FaultPoint("everything is closed"),
        # The thread that reads a stream.
        "bridge.reading": FaultPoint("the next batch is about to be read", may_raise=True),
        "bridge.read": FaultPoint("a batch was read, and its place not told", may_raise=True),
        "bridge.put": FaultPoint("a batch and its place are there to be taken"),
        "bridge.taken": FaultPoint("a batch and its place were taken"),
        "bridge.rested": FaultPoint("nothing is read any more"),
        # Signals.
        "signal.plugged": FaultPoint("the run has put its handler in place"),
        "signal.heard": FaultPoint("the event loop has heard of a signal"),
        "signal.restored": FaultPoint("the handler from before is back"),
    }
)
"""All fault points of aloop by name. Those of one batch or boundary come in this order."""

_OWN: Final = FaultPoint("a fault point of the program's own", may_raise=True)


def point_of(name: str) -> FaultPoint:
    """Tell what a name stands for; what is not in `POINTS` is a point of the program's own."""
    return POINTS.get(name, _OWN)


Watcher = Callable[[str], None]

_watcher: Watcher | None = None


@contextmanager
def watched_points(watcher: Watcher) -> Generator[None]:
    """Have a function called with the name of each fault point that is passed meanwhile.

    In the thread that passes it, and in the runs that begin meanwhile. What it raises is raised
    there. Inside another such body it takes the place of the one outside.
    """
    global _watcher
    before, _watcher = _watcher, watcher
    try:
        yield
    finally:
        _watcher = before


def fault_point(name: str) -> None:
    """Pass a fault point: one of `POINTS`, or one of the program's own by a name of its own."""
    if _watcher is not None:
        _watcher(name)


def with_points(
    function: Callable[..., Any], before: str | None = None, after: str | None = None
) -> Callable[..., Any]:
    """Pass fault points before and after each call of a function, and what it gives to await.

    Gives back the function as it is unless somebody watches.
    """
    if _watcher is None:
        return function

    def between(*args: Any, **options: Any) -> Any:
        if before is not None:
            fault_point(before)
        result = function(*args, **options)
        if after is None:
            return result
        if isawaitable(result):
            return _pass_after(result, after)
        fault_point(after)
        return result

    return between


async def _pass_after(awaitable: Awaitable[Any], after: str) -> Any:
    result = await awaitable
    fault_point(after)
    return result
