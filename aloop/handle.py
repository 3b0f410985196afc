"""The handle to a run that goes on beside the code which started it."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

from aloop.errors import ArgumentError, GivenUpError, NotRunningError, brief
from aloop.log.base import TrainingLog
from aloop.stopping import RunState
from aloop.supervision import Supervisor
from aloop.tasks import Patience, create_hidden_task, current_part

__all__ = ["RunHandle", "beside"]

_logger = logging.getLogger("aloop")


class Requests(Protocol):
    """Where checkpoints are requested: see `aloop.saving`."""

    def request(self) -> Awaitable[Path]:
        """Have a checkpoint saved at the next boundary."""
        ...


class RunHandle:
    """A run that goes on beside the body of ``async with loop.running()``.

    It belongs to that one run. All but what is awaited may be called from any thread, and as often
    as one likes.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        run: "asyncio.Task[BaseException | None]",
        log: TrainingLog,
        requests: Requests,
    ) -> None:
        self._supervisor = supervisor
        self._run = run
        self._requests = requests
        self._traceback: TracebackType | None = None
        self.log = log
        """The record of the training."""
        run.add_done_callback(self._keep_traceback)

    def _keep_traceback(self, run: "asyncio.Task[BaseException | None]") -> None:
        # As it is before it grows with each who waits.
        failure = None if run.cancelled() else run.result()
        self._traceback = None if failure is None else failure.__traceback__

    @property
    def state(self) -> RunState:
        """Where the run is; ``"closed"`` once it has ended."""
        return self._supervisor.state

    def request_finish(self, at: Literal["epoch", "batch"] = "epoch") -> None:
        """Ask the run to stop after this epoch, or after this batch.

        A run that is paused goes on for it. Does nothing when the run has ended.
        """
        self._supervisor.request_finish(at)

    def pause(self) -> None:
        """Ask the run to hold still at the next batch boundary, until `resume`.

        A run that is to stop does not pause. Raises `NotRunningError` when the run has ended.
        """
        if not self._supervisor.is_running:
            raise NotRunningError(
                "pause() was called on the handle of a run that has ended; expected it to be under "
                "way; look at handle.state first"
            )
        self._supervisor.pause()

    def resume(self) -> None:
        """Ask the run to go on. Does nothing when it is not paused, or has ended."""
        self._supervisor.resume()

    def request_checkpoint(self) -> Awaitable[Path]:
        """Have a checkpoint saved at the next batch boundary, and give its path when awaited.

        See `MainLoop.request_checkpoint`. Raises `NotRunningError` when the run has ended.
        """
        if not self._supervisor.is_running:
            raise NotRunningError(
                "request_checkpoint() was called on the handle of a run that has ended; expected "
                "it to be under way; look at handle.state first"
            )
        return self._requests.request()

    async def wait_started(self) -> None:
        """Wait until the training has begun, or goes on: what was saved is put back by then.

        Raises what the run failed with if it failed before.
        """
        if self._supervisor.is_part(current_part.get()):
            raise ArgumentError(
                "handle.wait_started() was awaited in a callback, a step or background work of the "
                "run itself, which may wait for that; expected a task outside the run"
            )
        if not await self._supervisor.wait_started():
            await self.wait()

    async def wait_paused(self) -> bool:
        """Wait until the run holds still after `pause`, no step or callback under way.

        Gives False when it does not come to that: it was resumed, is to stop, or has ended.
        """
        return await self._supervisor.wait_paused()

    async def wait(self) -> TrainingLog:
        """Wait until the run has ended and give its log, or raise what it failed with.

        Any number of tasks can wait, and be cancelled in it, which the run does not notice. Raises
        `GivenUpError` where `MainLoop.run` raises CancelledError, for nobody has cancelled the one
        who waits.
        """
        if self._supervisor.is_part(current_part.get()):
            raise ArgumentError(
                "handle.wait() was awaited in a callback, a step or background work of the run "
                "itself, which waits for that; expected a task outside the run"
            )
        await asyncio.wait([self._run])
        failure = self._run.result()
        if isinstance(failure, asyncio.CancelledError):
            raise GivenUpError(f"the run that was waited for is over: {failure}") from failure
        if failure is not None:
            raise failure.with_traceback(self._traceback or failure.__traceback__)
        return self.log


async def _outcome(run: Coroutine[Any, Any, object]) -> BaseException | None:
    # Returned: a task that raises KeyboardInterrupt takes the event loop down.
    try:
        await run
    except BaseException as error:  # noqa: BLE001 - raised where the run is waited for
        return error
    return None


def _tell(run: "asyncio.Task[BaseException | None]") -> None:
    failure = None if run.cancelled() else run.result()
    if isinstance(failure, Exception):
        _logger.error(
            "a run has failed beside the code that started it, which is told when it waits for it "
            "or leaves running(): %s",
            brief(failure),
            exc_info=failure,
        )


@asynccontextmanager
async def beside(
    supervisor: Supervisor,
    run: Coroutine[Any, Any, object],
    log: TrainingLog,
    requests: Requests,
) -> AsyncGenerator[RunHandle]:
    """Have a run go on beside the body; see `MainLoop.running`."""
    # Hidden: who cancels all tasks reaches the run all the same, by its drivers.
    task = create_hidden_task(_outcome(run), name="aloop run")
    task.add_done_callback(_tell)
    handle = RunHandle(supervisor, task, log, requests)
    try:
        yield handle
    except GeneratorExit:
        raise  # with its event loop gone
    except BaseException as error:
        failure, _ = await _leave(supervisor, task)
        if isinstance(failure, Exception) and failure is not error:
            error.add_note(f"the run beside it failed as well: {brief(failure)}")
        raise
    failure, cancellation = await _leave(supervisor, task)
    if cancellation is not None:
        if failure is not None:
            cancellation.add_note(f"the run beside it failed: {brief(failure)}")
        raise cancellation
    if failure is not None:
        raise failure


async def _leave(
    supervisor: Supervisor, task: "asyncio.Task[BaseException | None]"
) -> tuple[BaseException | None, asyncio.CancelledError | None]:
    """Ask for a stop at the batch, and wait until the run has ended, through cancellations.

    Gives what the run failed with, and the first of these.
    """
    supervisor.request_finish("batch", "left running()")
    patience = Patience()
    while not task.done():
        await patience.wait([task], None)
    return task.result(), patience.cancellation
