"""The main loop, as its users hold it; how it trains is in `aloop.training`."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from aloop.algorithms.base import as_algorithm
from aloop.callbacks import Position
from aloop.errors import ArgumentError, NoModelError, NotRunningError
from aloop.extensions.base import TrainingExtension
from aloop.extensions.dispatch import Dispatcher, find_extension
from aloop.log.backends import check_log, create_log
from aloop.log.base import TrainingLog
from aloop.profile import Profile
from aloop.protocols import Algorithm, Stream
from aloop.signals import SignalMode, check_mode, subscribed
from aloop.stopping import RunState, StopLevel, StopRequest
from aloop.streams.base import as_stream
from aloop.supervision import Supervisor, check_grace, require_event_loop
from aloop.training import Training

__all__ = ["MainLoop"]


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
        log = create_log(log_backend) if log is None else check_log(log)
        log.describe(name, hyperparameters)
        self._training = Training(as_algorithm(algorithm), as_stream(data_stream), model, log)
        self._signals: SignalMode = check_mode(signals)
        self._grace_s = check_grace(grace_s)
        self._supervisor: Supervisor | None = None
        self._training.dispatcher = self._dispatcher = Dispatcher(
            self, () if extensions is None else extensions, self._training.timed
        )

    @property
    def algorithm(self) -> Algorithm:
        """What trains."""
        return self._training.algorithm

    @property
    def data_stream(self) -> Stream:
        """Where the batches come from."""
        return self._training.data_stream

    @property
    def epoch_iterator(self) -> Any:
        """The iterator of the epoch under way, None before the first."""
        return self._training.epoch_iterator

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
        return RunState.NEW if self._supervisor is None else self._supervisor.state

    @property
    def iteration_state(self) -> tuple[Any, Any]:
        """The data stream and the iterator of the epoch under way, None before the first."""
        return self.data_stream, self.epoch_iterator

    @iteration_state.setter
    def iteration_state(self, state: tuple[Any, Any]) -> None:
        self._training.data_stream, self._training.epoch_iterator = state

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
        stop = StopRequest()
        training = self._training
        training.begin(stop)
        self._supervisor = Supervisor(stop, self._grace_s, self._dispatcher.halt)
        with subscribed(self._signals, stop.on_signal):
            await self._supervisor.see_through(training.train, training.drain, training.close)
        return self.log
