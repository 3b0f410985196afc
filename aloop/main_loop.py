"""The main loop.

The life of a run is in `aloop.callbacks`, line by line; the methods of `MainLoop` from `_start`
on follow it. The ways in which a run ends are in `aloop.supervision`.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from typing import Any, Final, Literal

from aloop.algorithms.base import as_algorithm, as_quantities
from aloop.callbacks import CallbackName, Position, Stage
from aloop.config import config
from aloop.endings import FINISH_REQUESTED, drain, finish_reason, forget_last_ending
from aloop.errors import (
    ArgumentError,
    EmptyEpochError,
    NoModelError,
    NotRunningError,
    TrainingFinish,
    brief,
)
from aloop.extensions.base import TrainingExtension
from aloop.extensions.dispatch import Dispatcher, call_each, find_extension
from aloop.log.backends import check_log, create_log
from aloop.log.base import TrainingLog
from aloop.profile import Profile
from aloop.signals import SignalMode, check_mode, subscribed
from aloop.stopping import LeftBehind, RunState, StopLevel, StopRequest
from aloop.streams.base import as_stream
from aloop.streams.fetch import END, Fetcher
from aloop.supervision import Supervisor, check_grace, require_event_loop
from aloop.turns import Turn

__all__ = ["MainLoop"]

# Reading a member of an enumeration takes longer than calling a function does.
_BEFORE_BATCH: Final = CallbackName.BEFORE_BATCH
_AFTER_BATCH: Final = CallbackName.AFTER_BATCH
_BATCH_STARTED: Final = Stage.BATCH_STARTED
_BATCH_DONE: Final = Stage.BATCH_DONE
_NO_QUANTITIES: Final[Mapping[str, Any]] = {}
_FLAGS: Final = {
    "training_started": False,
    "epoch_started": False,
    "epoch_interrupt_received": False,
    "batch_interrupt_received": False,
}

_logger = logging.getLogger("aloop")


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
            ``"replace"``: as if it never had; ``"off"``: no signal is listened to.
        grace_s: seconds that a run which is to stop after the batch has for that and for its
            extensions, before they are given up.
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
        name: str | None = None,
        hyperparameters: Mapping[str, Any] | None = None,
    ) -> None:
        self.algorithm = as_algorithm(algorithm)
        self.data_stream = as_stream(data_stream)
        self.epoch_iterator: Any = None
        self.log = create_log(log_backend) if log is None else check_log(log)
        self.log.describe(name, hyperparameters)
        self.quantities: Mapping[str, Any] = _NO_QUANTITIES
        """What the algorithm returned for the last batch."""
        self.profile = Profile()
        """Where the time went; filled in full when the setting `profile` is true."""
        self._model = model
        self._signals: SignalMode = check_mode(signals)
        self._grace_s = check_grace(grace_s)
        self._stage = Stage.NOT_STARTED
        self._batch = 0
        self._is_open = False
        self._is_profiled = False
        self._stop = StopRequest()
        self._supervisor: Supervisor | None = None
        self._resources = AsyncExitStack()
        self._fetcher = Fetcher()
        self._turn = Turn()
        self._dispatcher = Dispatcher(self, () if extensions is None else extensions, self._timed)
        self.status.declare(_FLAGS)

    @property
    def model(self) -> Any:
        """The model that the loop was given; `NoModelError` if it was given none."""
        if self._model is None:
            raise NoModelError(
                "this main loop has no model; probably one of its extensions needs one; "
                "give it as MainLoop(…, model=…)"
            )
        return self._model

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
        return Position(
            epochs_done=self.status["epochs_done"],
            iterations_done=self.status["iterations_done"],
            batch=self._batch,
            stage=self._stage,
        )

    @property
    def state(self) -> RunState:
        """Where the loop is in the life of its run."""
        return RunState.NEW if self._supervisor is None else self._supervisor.state

    @property
    def iteration_state(self) -> tuple[Any, Any]:
        """The data stream and the iterator of the epoch under way, None before the first."""
        return self.data_stream, self.epoch_iterator

    @iteration_state.setter
    def iteration_state(self, state: tuple[Any, Any]) -> None:
        self.data_stream, self.epoch_iterator = state

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

        Ends the run as a signal does: with `on_interrupt`, then `after_training`. Any thread may
        ask. Raises `NotRunningError` when no run is under way.
        """
        if at not in ("epoch", "batch"):
            raise ArgumentError(f"at is {at!r}; expected 'epoch' or 'batch'")
        if self._supervisor is None or not self._supervisor.is_running:
            raise NotRunningError(
                "request_finish() was called while no run is under way; expected a run to "
                "finish; call it after run() has begun, or add FinishAfter"
            )
        level = StopLevel.EPOCH if at == "epoch" else StopLevel.BATCH
        self._supervisor.ask(level, f"request_finish({at!r})")

    async def run(self) -> TrainingLog:
        """Train until a finish is requested, and give the log.

        Called again, it goes on with the same training. Raises what the algorithm, the stream or
        an extension raised, after `on_error`; `AlreadyRunningError` while the loop is running, or
        something still is that the last run gave up.
        """
        require_event_loop()
        if self._supervisor is not None:
            self._supervisor.refuse_another(self.position)
        self._is_profiled = config.profile
        self._stop = StopRequest()
        self._supervisor = Supervisor(self._stop, self._grace_s, self._dispatcher.halt)
        self._is_open = False
        self._resources = AsyncExitStack()
        with subscribed(self._signals, self._stop.on_signal):
            await self._supervisor.see_through(self._train, self._drain, self._close)
        return self.log

    # The parts of a run. They return what it failed with: see aloop.supervision.

    async def _train(self) -> BaseException | None:
        """Open the log and train until a finish."""
        try:
            self._resources.push_async_callback(self._fetcher.rest, self._stop)
            await self._resources.enter_async_context(self.log.session())
            self._is_open = True
            self._resources.enter_context(self._turn)
            with self.profile.timer("initialization"):
                await self._start()
            self._stop.has_started = True
            with self.profile.timer("training"):
                self._finish_if_asked(at_epoch_end=not self._stage.in_epoch)
                while True:
                    await self._run_epoch()
        except TrainingFinish as finish:
            _logger.debug("the training finishes: %s", finish)
            return None
        except BaseException as error:  # noqa: BLE001 - returned
            return error

    async def _drain(self, failure: BaseException | None) -> BaseException | None:
        """Let the extensions end what they have begun, if it ever came to that."""
        if self._is_open:
            failure = await drain(failure, self._stop, self.log, self._dispatcher)
        return failure

    async def _close(self, failure: BaseException | None) -> BaseException | None:
        """Commit the last boundary and let go of what the run held."""
        try:
            async with self._resources:
                if self._is_open:
                    self._stop.record_ending(self.log)
                    self.log.commit(durable=True)
                self.profile.stop()
                if self._is_profiled:
                    _logger.info("profile of the run:\n%s", self.profile.report())
        except BaseException as error:  # noqa: BLE001 - returned
            if failure is None:
                return error
            failure.add_note(f"while the run was closed after it, this was raised: {brief(error)}")
        return failure

    async def _start(self) -> None:
        """Get to where the first epoch can begin, or the training go on."""
        check_sanity = getattr(self._model, "check_sanity", None)
        if check_sanity is not None:
            check_sanity(self.algorithm)
        self.status.declare(_FLAGS)  # a log that was read from a file may lack them
        self._dispatcher.compile()
        self._step = self._timed("train", self.algorithm.process_batch)
        if not self.status["iterations_done"]:
            forget_last_ending(self.log)
        if self._stage is Stage.NOT_STARTED:
            await self._dispatcher.call(CallbackName.BEFORE_TRAINING)
            await self.algorithm.initialize()
            if self._stop.is_left:
                raise LeftBehind
            self._stage = Stage.TRAINING_STARTED
            self.status["training_started"] = True
        if self.status["iterations_done"]:
            self.log.resume()
            # Under the new id: the records of the run that ended stay its own.
            forget_last_ending(self.log)
            await self._dispatcher.call(CallbackName.ON_RESUMPTION)
        self._stop.record(self.log)
        self.log.commit()
        if self._stage.in_epoch and self._fetcher.has_lost_its_place(self.epoch_iterator):
            self._leave_epoch()

    async def _run_epoch(self) -> None:
        if not self._stage.in_epoch:
            await self._begin_epoch()
        with self.profile.timer("epoch"):
            await self._run_batches()
        await self._end_epoch()

    async def _begin_epoch(self) -> None:
        self.epoch_iterator = self.data_stream.get_epoch_iterator(as_dict=True)
        self._stage = Stage.EPOCH_STARTED
        self._batch = 0
        self.status["received_first_batch"] = False
        self.status["epoch_started"] = True
        await self._dispatcher.call(CallbackName.BEFORE_EPOCH)
        self._stop.record(self.log)
        self._finish_if_asked(at_epoch_end=False)

    async def _end_epoch(self) -> None:
        if not self._batch:
            self._leave_epoch()
            raise EmptyEpochError(
                f"epoch iterator yielded zero batches in epoch {self.status['epochs_done'] + 1} "
                f"of {self.data_stream!r}; expected at least one; look at what the stream is "
                "made of, and whether it can be gone through more than once"
            )
        self._leave_epoch()
        self._stage = Stage.EPOCH_DONE
        self.status.end_epoch()
        await self._dispatcher.call(CallbackName.AFTER_EPOCH)
        self._stop.record(self.log)
        self.log.commit(durable=True)
        self._finish_if_asked(at_epoch_end=True)

    def _leave_epoch(self) -> None:
        self._stage = Stage.TRAINING_STARTED
        self._batch = 0
        self.status["epoch_started"] = False

    async def _run_batches(self) -> None:
        """Train on what is left of the epoch, batch after batch."""
        log, status = self.log, self.log.status
        stop, dispatcher, turn = self._stop, self._dispatcher, self._turn
        fetch, waits = self._fetcher.of(self.epoch_iterator, stop)
        fetch, waits = self._timed("read_data", fetch), waits or self._is_profiled
        while True:
            try:
                batch = await fetch() if waits else fetch()
            except GeneratorExit:
                raise  # with its event loop gone, perhaps beside another run
            except BaseException as error:
                self._stream_failed(error)
                raise
            if batch is END:
                if self._fetcher.is_left:
                    raise TrainingFinish("batch_interrupt_received")
                return
            if not self._batch:
                status["received_first_batch"] = True
            self._batch += 1
            self._stage = _BATCH_STARTED
            requested = False
            if dispatcher.before_batch:
                await call_each(dispatcher.before_batch, _BEFORE_BATCH, batch)
                requested = log.get_record(status["iterations_done"], FINISH_REQUESTED)
            quantities = await self._step(batch)
            if stop.is_left:
                raise LeftBehind
            if quantities is not None and type(quantities) is not dict:
                quantities = as_quantities(quantities, self.algorithm)
            self.quantities = quantities or _NO_QUANTITIES
            self._stage = _BATCH_DONE
            iterations_done = status.advance()
            if dispatcher.after_batch:
                await call_each(dispatcher.after_batch, _AFTER_BATCH, batch)
            if stop.level:
                stop.record(log)
            log.commit()
            requested = requested or log.get_record(iterations_done, FINISH_REQUESTED)
            if requested or status["batch_interrupt_received"]:
                self._finish_if_asked(requested, at_epoch_end=False)
            if turn.is_over():
                await log.keep_up()
                await turn.give_way()
                if stop.level:  # asked for meanwhile: before another batch is fetched
                    stop.record(log)
                    log.commit()
                    self._finish_if_asked(at_epoch_end=False)

    def _stream_failed(self, error: BaseException) -> None:
        error.add_note(
            f"raised by the data stream {self.data_stream!r} after batch {self._batch} of epoch "
            f"{self.status['epochs_done'] + 1}"
        )
        # The iterator is broken: a run that goes on begins an epoch of its own.
        self._leave_epoch()

    def _finish_if_asked(self, requested: Any = None, *, at_epoch_end: bool) -> None:
        """Raise TrainingFinish if there is a reason to."""
        log = self.log
        requested = requested or log.get_record(log.status["iterations_done"], FINISH_REQUESTED)
        reason = finish_reason(log.status, requested, at_epoch_end=at_epoch_end)
        if reason is not None:
            raise TrainingFinish(reason)

    def _timed(self, name: str, func: Callable[..., Any]) -> Callable[..., Any]:
        return self.profile.timed(name, func) if self._is_profiled else func
