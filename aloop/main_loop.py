"""The main loop, as its users hold it; how it trains is in `aloop.training`."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from aloop.algorithms.base import as_algorithm
from aloop.background import BackgroundWork
from aloop.callbacks import Position
from aloop.config import config
from aloop.errors import (
    AlreadyRunningError,
    ArgumentError,
    CheckpointError,
    NoModelError,
    NotRunningError,
)
from aloop.exclusive import Possession
from aloop.extensions.base import TrainingExtension
from aloop.extensions.dispatch import Dispatcher, find_extension
from aloop.handle import RunHandle, beside
from aloop.log.backends import check_log, create_log
from aloop.log.base import TrainingLog
from aloop.profile import Profile
from aloop.protocols import Algorithm, Background, Stream
from aloop.saving import Saver
from aloop.signals import SignalMode, check_mode, subscribed
from aloop.stalls import check_warning_time, watched
from aloop.stopping import RunState, StopRequest, as_level
from aloop.streams.adapt import as_stream, exclusive_parts
from aloop.supervision import Supervisor, check_grace, require_event_loop
from aloop.training import Training

__all__ = ["MainLoop"]


@dataclass(frozen=True, slots=True)
class _Run:
    """What one run has."""

    supervisor: Supervisor
    possession: Possession
    """What it alone may use, until nothing of the run is under way any more."""
    stall_warning_s: float


class MainLoop:
    """Trains a model: feeds the batches of a stream to an algorithm, epoch after epoch.

    All else is done by extensions, which are called back at every stage and talk to each other
    and to the loop by records in the log. The training ends when one of them records
    ``training_finish_requested = True``.

    Parameters:
        algorithm: a `TrainingAlgorithm`, or a function of a batch (see `as_algorithm`).
        data_stream: a stream, or what `as_stream` makes one of: an iterable or async iterable of
            batches, or a function that returns one for each epoch.
        model: what extensions need to reach; where it has a method `check_sanity`, that is
            called with the algorithm when the run starts.
        log: the log to write; a new one of `log_backend` unless given.
        log_backend: ``"python"`` or ``"sqlite"``; the setting `log_backend` unless given.
        extensions: called in the order given.
        signals: ``"auto"``: SIGINT (Ctrl-C) stops the run after the epoch, a second one or
            SIGTERM after the batch; where the program has a handler of its own, both stop it
            after the batch, and that handler is called too. ``"chain"``: as if it always had;
            ``"replace"``: as if it never had, but for a handler of ``loop.add_signal_handler``;
            ``"off"``: no signal is listened to.
        grace_s: seconds that a run which is to stop after the batch has for that and for its
            extensions, before they are given up.
        stall_warning_s: seconds after which an extension, the stream or a step that holds the
            event loop is named, with the stack at the time; 0 watches nothing; the setting
            `stall_warning_s` unless given.
        name: what the run is called in the log.
        hyperparameters: what the run is made with, for the log; names and values that the log
            can hold.
    """

    def __init__(
        self,
        algorithm: Any,  # a union of protocols and callables; as_algorithm says what it takes
        data_stream: Any,  # as_stream says what it takes
        model: Any = None,  # whatever the user's extensions expect
        log: TrainingLog | None = None,
        log_backend: str | None = None,
        extensions: Iterable[TrainingExtension] | None = None,
        *,
        signals: SignalMode = "auto",
        grace_s: float = 30.0,
        stall_warning_s: float | None = None,
        name: str | None = None,
        hyperparameters: Mapping[str, Any] | None = None,
    ) -> None:
        log = create_log(log_backend) if log is None else check_log(log)
        log.describe(name, hyperparameters)
        self._training = Training(as_algorithm(algorithm), as_stream(data_stream), model, log)
        self._signals: SignalMode = check_mode(signals)
        self._grace_s = check_grace(grace_s)
        self._stall_warning_s = (
            None if stall_warning_s is None else check_warning_time(stall_warning_s)
        )
        self._last_run: _Run | None = None
        self._training.dispatcher = self._dispatcher = Dispatcher(
            self, () if extensions is None else extensions, self._training.timed
        )

    @property
    def algorithm(self) -> Algorithm:
        """What trains."""
        return self._training.algorithm

    @algorithm.setter
    def algorithm(self, algorithm: Algorithm) -> None:
        self._training.algorithm = algorithm

    @property
    def data_stream(self) -> Stream:
        """Where the batches come from."""
        return self._training.data_stream

    @data_stream.setter
    def data_stream(self, data_stream: Any) -> None:
        stream = as_stream(data_stream)
        self._take_stream(stream)
        self._training.reading.stream = stream

    @property
    def epoch_iterator(self) -> Any:
        """The iterator of the epoch under way, None before the first."""
        return self._training.reading.iterator

    @property
    def log(self) -> TrainingLog:
        """The record of the training."""
        return self._training.log

    @property
    def quantities(self) -> Mapping[str, Any]:
        """What the algorithm returned for the last batch."""
        return self._training.quantities

    @property
    def profile(self) -> Profile:
        """Where the time went; filled in full when the setting `profile` is true."""
        return self._training.profile

    @property
    def model(self) -> Any:
        """The model that the loop was given; `NoModelError` if it was given none."""
        if self._training.model is None:
            raise NoModelError(
                "this main loop has no model; probably one of its extensions needs one; "
                "give it as MainLoop(…, model=…)"
            )
        return self._training.model

    @property
    def extensions(self) -> list[TrainingExtension]:
        """The extensions, in the order in which they are called; the list may be changed."""
        return self._dispatcher.extensions

    @extensions.setter
    def extensions(self, extensions: Iterable[TrainingExtension]) -> None:
        self._dispatcher.replace(extensions)

    @property
    def status(self) -> Any:
        """A shortcut for ``log.status``."""
        return self.log.status

    @property
    def position(self) -> Position:
        """Where the training is."""
        return self._training.position

    @property
    def state(self) -> RunState:
        """Where the loop is in the life of its run."""
        return RunState.NEW if self._last_run is None else self._last_run.supervisor.state

    @property
    def iteration_state(self) -> tuple[Any, Any]:
        """The data stream and the iterator of the epoch under way, None before the first."""
        return self.data_stream, self.epoch_iterator

    @iteration_state.setter
    def iteration_state(self, state: tuple[Any, Any]) -> None:
        try:
            stream, iterator = state
        except (TypeError, ValueError):
            raise ArgumentError(
                f"iteration_state is {state!r:.80}; expected a data stream and the iterator of one "
                "of its epochs, as iteration_state gives them; give both"
            ) from None
        self.data_stream = stream
        self._training.reading.replace(iterator)

    def find_extension(self, name: str) -> TrainingExtension:
        """Find the extension of this name; `ExtensionLookupError` if none or several have it."""
        return find_extension(self.extensions, name)

    def callbacks_changed(self) -> None:
        """Look anew at which extensions answer to which callbacks.

        Extensions call this when their conditions change; a change of `extensions` is noticed
        without it.
        """
        self._dispatcher.compile()

    def request_finish(self, at: Literal["epoch", "batch"] = "epoch") -> None:
        """Ask the run to stop after this epoch, or after this batch.

        Ends the run as a signal does: with `on_interrupt`, then `after_training`. A run that is
        paused goes on for it. Any thread may ask. Raises `NotRunningError` when no run is under
        way.
        """
        as_level(at)  # which is wrong whether or not there is a run
        self._run_under_way("request_finish()").request_finish(at)

    def pause(self) -> None:
        """Ask the run to hold still at the next batch boundary, until `resume`.

        Its background work goes on. A run that is to stop does not pause; one that is paused is
        stopped as ever. Any thread may ask. Raises `NotRunningError` when no run is under way.
        """
        self._run_under_way("pause()").pause()

    def resume(self) -> None:
        """Ask the run to go on; does nothing unless it is paused.

        Any thread may ask. Raises `NotRunningError` when no run is under way.
        """
        self._run_under_way("resume()").resume()

    async def wait_paused(self) -> bool:
        """Wait until the run holds still after `pause`, no step or callback under way.

        Gives False when it does not come to that: it was resumed, is to stop, or has ended. Raises
        `NotRunningError` when no run is under way.
        """
        return await self._run_under_way("wait_paused()").wait_paused()

    @property
    def checkpoints(self) -> Saver:
        """What saves and restores the training; for extensions."""
        return self._training.saver

    def request_checkpoint(self) -> Awaitable[Path]:
        """Have a checkpoint saved at the next batch boundary, and give its path when awaited.

        In the directory of the first `Checkpoint` among the extensions. It need not be awaited;
        in a callback or a step it cannot be. A run that is paused, or waits for its stream, is at
        a boundary. Raises `CheckpointError` without such an extension or when the training is
        over, `NotRunningError` when no run is under way; awaiting it raises what the saving
        failed with.
        """
        self._run_under_way("request_checkpoint()")
        return self._training.saver.request()

    def state_dict(self) -> dict[str, Any]:
        """Give the state of the whole training, as JSON values and arrays: a checkpoint in memory.

        Between two runs, or while one is paused; raises `AlreadyRunningError` otherwise, and
        `CheckpointError` where that is not the state of a whole boundary. The rows of a log in a
        file are not in it.
        """
        supervisor = None if self._last_run is None else self._last_run.supervisor
        if supervisor is not None and supervisor.is_running:
            if not supervisor.stop.is_holding:
                raise AlreadyRunningError(
                    "state_dict() was called while the run is under way; expected it to hold "
                    "still; pause() and await wait_paused() first, or request_checkpoint()"
                )
            if not supervisor.background.is_settled:
                raise CheckpointError(
                    "the state was asked for while a background extension is at work; expected it "
                    "to have ended; await request_checkpoint(), which waits for it"
                )
        return self._training.saver.state()

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Have a state that `state_dict` gave put back when the next run starts.

        Raises `AlreadyRunningError` while a run is under way, `CheckpointValueError` for what is
        no such state.
        """
        if self._last_run is not None and self._last_run.supervisor.is_running:
            raise AlreadyRunningError(
                "load_state_dict() was called while the run is under way; expected it before; "
                "wait for its end"
            )
        self._training.saver.load_state(state)

    @property
    def background(self) -> Background:
        """What runs beside the training; `NotRunningError` when no run is under way."""
        return self._run_under_way("background work").background

    def start_soon(
        self, func: Callable[..., Awaitable[Any]], *args: Any, name: str | None = None
    ) -> None:
        """Run a coroutine function beside the training, as work that belongs to the run.

        What it raises ends the run by the next batch boundary, with `on_error`; `TrainingFinish`
        ends it in good order. Every ending waits for it, at most `grace_s`, then cancels it; what
        would not stop is named. Any thread may call this. Raises `NotRunningError` when no run is
        under way.

        Parameters:
            func: called with `args`, at once where this is the thread of the event loop.
            name: by which messages call it; the function's name unless given.
        """
        self._run_under_way("start_soon()").background.start_soon(func, *args, name=name)

    async def run(self) -> TrainingLog:
        """Train until a finish is requested, and give the log.

        Called again, it goes on with the same training. Raises what the algorithm, the stream, an
        extension or background work raised, after `on_error`; `AlreadyRunningError` while the loop
        is running, or something still is that the last run gave up, or another run uses one of its
        extensions or its stream.
        """
        require_event_loop("run()")
        return await self._see_through(self._begin())

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[RunHandle]:
        """Have a run go on beside the body of ``async with loop.running() as handle``.

        Leaving the body asks for a stop after the batch, and waits until the run has ended. A run
        that fails meanwhile is logged at once, and leaves the body alone; `handle.wait()` raises
        the failure, and so does leaving the body. Raises what `run` does when it begins.
        """
        require_event_loop("running()")
        run = self._begin()
        work = self._see_through(run)
        async with beside(run.supervisor, work, self.log, self._training.saver) as handle:
            yield handle

    def _run_under_way(self, asked: str) -> Supervisor:
        run = self._last_run
        if run is None or not run.supervisor.is_running:
            raise NotRunningError(
                f"{asked} was asked for while no run is under way; expected one to ask it of; do "
                "so after run() has begun, or from an extension"
            )
        return run.supervisor

    def _take_stream(self, stream: Stream) -> None:
        """Take another stream for the run that is under way, if there is one."""
        if self._last_run is not None and self._last_run.supervisor.is_running:
            self._last_run.possession.take(exclusive_parts(stream))

    def _begin(self) -> _Run:
        """Begin a run, as far as that takes no time, or refuse it."""
        if self._last_run is not None:
            self._last_run.supervisor.refuse_another(self.position)
            self._last_run.possession.give_back()  # what its thread still reads is kept for this
        is_profiled = config.profile  # which may be refused, before anything is taken
        warning_s = self._stall_warning_s
        warning_s = config.stall_warning_s if warning_s is None else warning_s
        stop = StopRequest()
        background = BackgroundWork(stop, self._grace_s)
        supervisor = Supervisor(stop, background, self._grace_s, self._dispatcher.halt)
        owner = f"another run ({self.log.name or self.log.h_uuid[:8]})"
        reading = self._training.reading
        possession = Possession(owner, lambda: supervisor.has_let_go and not reading.is_at_work)
        possession.take(exclusive_parts(self.data_stream))
        try:
            self._dispatcher.possess(possession)
        except BaseException:
            possession.give_back()
            raise
        self._training.begin(stop, background, is_profiled=is_profiled)
        self.log.announce_run()
        run = self._last_run = _Run(supervisor, possession, warning_s)
        return run

    def _let_go(self, run: _Run) -> None:
        run.supervisor.end()
        self.log.end_run()
        if run.possession.is_over():
            run.possession.give_back()

    async def _see_through(self, run: _Run) -> TrainingLog:
        training, supervisor = self._training, run.supervisor
        with ExitStack() as stack:
            stack.callback(self._let_go, run)
            stack.enter_context(watched(run.stall_warning_s))
            stack.enter_context(subscribed(self._signals, supervisor.stop.on_signal))
            await supervisor.see_through(training.train, training.drain, training.close)
        return self.log
