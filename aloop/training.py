"""The training of a loop, as prose: its epochs, its iterations, its commit points, its finish.

The life of a run is in `aloop.callbacks`, line by line; the methods of `Training` from `_start` on
follow it. The ways in which a run ends are in `aloop.supervision`.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any, Final

from aloop.algorithms.base import as_quantities
from aloop.background import BackgroundWork
from aloop.callbacks import CallbackName, Position, Stage
from aloop.endings import FINISH_REQUESTED, drain, finish_reason, forget_last_ending, joined
from aloop.errors import EmptyEpochError, TrainingFinish, brief
from aloop.extensions.base import TrainingExtension
from aloop.extensions.dispatch import Dispatcher, call_each
from aloop.faults import fault_point, with_points
from aloop.log.base import TrainingLog
from aloop.profile import Profile
from aloop.protocols import Algorithm, Stream
from aloop.saving import Saver
from aloop.stalls import blames
from aloop.stopping import LeftBehind, StopRequest
from aloop.streams.bridge import END
from aloop.streams.cursor import Place
from aloop.streams.reading import Reading
from aloop.turns import Turn

__all__ = ["Training"]

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


class Training:
    """What a loop has trained, from its first batch to its last, in one run or in several.

    Parameters:
        algorithm, data_stream, model, log: as for `MainLoop`.
    """

    _stop: StopRequest
    _background: BackgroundWork

    dispatcher: Dispatcher
    """Calls the extensions. It is set by the loop, which is what these get as theirs."""

    def __init__(
        self, algorithm: Algorithm, data_stream: Stream, model: Any, log: TrainingLog
    ) -> None:
        self.algorithm = algorithm
        self.model = model
        self.reading = Reading(data_stream, lambda: self.saver.can_save)
        """What it reads of its stream."""
        self.log = log
        self.quantities: Mapping[str, Any] = _NO_QUANTITIES
        """What the algorithm returned for the last batch."""
        self.profile = Profile()
        """Where the time went; filled in full when the setting `profile` is true."""
        self._stage = Stage.NOT_STARTED
        self._batch = 0
        self._is_open = False
        self._is_refused = False  # because what it was to go on from could not be put back
        self._is_profiled = False
        self._resources = AsyncExitStack()
        self._has_stream_failed = False
        self._cut_off_at: Position | None = None
        self._turn = Turn()
        self.saver = Saver(self)
        """Saves the training, and restores it."""
        log.status.declare(_FLAGS)

    @property
    def status(self) -> Any:
        """A shortcut for ``log.status``."""
        return self.log.status

    @property
    def data_stream(self) -> Stream:
        """Where the batches come from."""
        return self.reading.stream

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
    def is_cut_off(self) -> bool:
        """True when it ended in the middle of a batch or boundary, and has got no further since."""
        return self._cut_off_at is not None and self._cut_off_at == self.position

    def begin(self, stop: StopRequest, background: BackgroundWork, *, is_profiled: bool) -> None:
        """Get ready for a run, of which `stop` says what is asked."""
        self._is_profiled = is_profiled
        self._commit = with_points(self.log.commit, "commit.begun", "commit.done")
        self._stop = stop
        self._background = background
        self._is_open = self._is_refused = self._has_stream_failed = False
        self._resources = AsyncExitStack()
        self.reading.begin(stop)
        self.saver.begin(stop, background)
        self._resources.callback(self.saver.end)

    # What is saved of it, and restored.

    def extensions(self) -> list[TrainingExtension]:
        """Give its extensions, and those inside them."""
        return [part for extension in self.dispatcher.extensions for part in extension.parts()]

    def place(self) -> Place:
        """Tell the place in the stream that was consumed, though a fetch may be under way."""
        return self.reading.place(self._batch, in_epoch=self._stage.in_epoch)

    async def go_to(self, position: Position, place: Mapping[str, Any]) -> None:
        """Be at a position, and go to its place in the stream."""
        stage, batch = position.stage, position.batch
        await self.reading.go_to(place, batch, in_epoch=stage.in_epoch)
        self._stage = Stage.TRAINING_STARTED if stage is Stage.NOT_STARTED else stage
        self._batch = batch

    # The parts of a run. They return what it failed with: see aloop.supervision.

    async def train(self) -> BaseException | None:
        """Open the log and train until a finish."""
        try:
            self._resources.push_async_callback(self.reading.rest)
            await self._resources.enter_async_context(self.log.session())
            self._is_open = True
            fault_point("run.opened")
            self._resources.enter_context(self._turn)
            with self.profile.timer("initialization"):
                await self._start()
            self._stop.has_started = True
            self._stop.tell()
            fault_point("run.started")
            with self.profile.timer("training"):
                await self._heed(at_epoch_end=not self._stage.in_epoch)
                while True:
                    await self._run_epoch()
        except TrainingFinish as finish:
            _logger.debug("the training finishes: %s", finish)
            if self._stage is _BATCH_STARTED:
                self._cut_off_at = self.position
            return None
        except BaseException as error:  # noqa: BLE001 - returned
            # Unless it came from beside the training, or from the stream, between two batches.
            if error is not self._stop.failure and not self._has_stream_failed:
                self._cut_off_at = self.position
            return error

    async def drain(self, failure: BaseException | None) -> BaseException | None:
        """Let the extensions end what they have begun, if it ever came to that."""
        if self._is_open:
            self.log.end_training()
            failure = await drain(
                failure,
                self._stop,
                self.log,
                self.dispatcher,
                self._finish_background,
                self.saver.take_last,
            )
        else:
            await self._background.finish()  # begun by somebody outside
        self._background.end()
        return failure

    async def _finish_background(self) -> BaseException | None:
        failure = await self.saver.take_requested()
        return joined(failure, await self._background.finish())

    async def close(self, failure: BaseException | None) -> BaseException | None:
        """Commit the last boundary and let go of what the run held."""
        if self._has_stream_failed:
            # The iterator is broken: a run that goes on begins an epoch of its own.
            self._leave_epoch()
        try:
            async with self._resources:
                if self._is_refused:
                    self.log.forget_beginning()
                elif self._is_open:
                    self._stop.record_ending(self.log)
                    self._commit(durable=True)
                self.profile.stop()
                if self._is_profiled:
                    _logger.info("profile of the run:\n%s", self.profile.report())
        except BaseException as error:  # noqa: BLE001 - returned
            if failure is None:
                return error
            failure.add_note(f"while the run was closed after it, this was raised: {brief(error)}")
        fault_point("close.done")
        return failure

    @blames("initialize() of {self.algorithm!r}")
    async def _start(self) -> None:
        """Get to where the first epoch can begin, or the training go on."""
        check_sanity = getattr(self.model, "check_sanity", None)
        if check_sanity is not None:
            check_sanity(self.algorithm)
        self.status.declare(_FLAGS)  # a log that was read from a file may lack them
        self.dispatcher.compile()
        step = self.timed("train", self.algorithm.process_batch)
        self._step = with_points(step, "step.begun", "step.done")
        if not self.status["iterations_done"]:
            forget_last_ending(self.log)
        if self._stage is Stage.NOT_STARTED:
            await self.dispatcher.call(CallbackName.BEFORE_TRAINING)
            await self.algorithm.initialize()
            if self._stop.is_left:
                raise LeftBehind
            self._stage = Stage.TRAINING_STARTED
            self.status["training_started"] = True
        goes_on = await self._restore()
        if self.status["iterations_done"] and not goes_on:
            self.log.resume()
        if self.status["iterations_done"] or goes_on:
            # Under the new id: the records of the run that ended stay its own.
            forget_last_ending(self.log)
        if self.status["iterations_done"]:
            await self.dispatcher.call(CallbackName.ON_RESUMPTION)
        self._stop.record(self.log)
        self._commit()
        if self._stage.in_epoch and self.reading.has_lost_its_place:
            self._leave_epoch()

    async def _restore(self) -> bool:
        """Put back what is to be loaded, and give whether the log goes on from there."""
        try:
            return await self.saver.restore()
        except BaseException:
            self._is_refused = True
            raise

    async def _run_epoch(self) -> None:
        if not self._stage.in_epoch:
            await self._begin_epoch()
        with self.profile.timer("epoch"):
            await self._run_batches()
        await self._end_epoch()

    async def _begin_epoch(self) -> None:
        try:
            await self.reading.begin_epoch()
            fault_point("epoch.begun")
        except BaseException as error:
            self._stream_failed(error)
            raise
        self._stage = Stage.EPOCH_STARTED
        self._batch = 0
        self.status["received_first_batch"] = False
        self.status["epoch_started"] = True
        await self.dispatcher.call(CallbackName.BEFORE_EPOCH)
        self._stop.record(self.log)
        await self._heed()

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
        await self.dispatcher.call(CallbackName.AFTER_EPOCH)
        self._stop.record(self.log)
        self._commit(durable=True)
        await self._heed(at_epoch_end=True)

    def _leave_epoch(self) -> None:
        self._stage = Stage.TRAINING_STARTED
        self._batch = 0
        self.reading.leave_epoch()
        self.status["epoch_started"] = False

    @blames("the step {self.algorithm!r}")
    async def _run_batches(self) -> None:
        """Train on what is left of the epoch, batch after batch."""
        log, status = self.log, self.log.status
        stop, dispatcher, turn, reading = self._stop, self.dispatcher, self._turn, self.reading
        fetch, waits = reading.fetching()
        fetch, waits = self.timed("read_data", fetch), waits or self._is_profiled
        fetch = with_points(fetch, after="batch.fetched")
        commit = self._commit
        while True:
            try:
                batch = await fetch() if waits else fetch()
            except GeneratorExit:
                raise  # with its event loop gone, perhaps beside another run
            except BaseException as error:
                self._stream_failed(error)
                raise
            if batch is END:
                if reading.is_left_to_come:
                    raise stop.failure or TrainingFinish("batch_interrupt_received")
                if reading.has_news:
                    await self._heed()
                    continue
                reading.end_epoch(self._batch)
                return
            if reading.to_skip:
                reading.to_skip -= 1
                if turn.is_over():
                    await turn.give_way()
                if stop.is_due:
                    await self._heed()
                continue
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
            has_news = stop.is_due
            if has_news:
                stop.record(log)
            commit()
            requested = requested or log.get_record(iterations_done, FINISH_REQUESTED)
            if has_news or requested or status["batch_interrupt_received"]:
                await self._heed(requested)
            if turn.is_over():
                await log.keep_up()
                await turn.give_way()
                if stop.is_due:  # asked for meanwhile: before another batch is fetched
                    stop.record(log)
                    commit()
                    await self._heed()

    def _stream_failed(self, error: BaseException) -> None:
        self._has_stream_failed = True
        if isinstance(error, TrainingFinish):
            return  # in good order: the stream knows that nothing more will come
        stream, epoch = self.data_stream, self.status["epochs_done"] + 1
        to_skip = self.reading.to_skip
        batch = self._batch - to_skip if self._stage.in_epoch else 0
        note = f"raised by the data stream {stream!r:.200} after batch {batch} of epoch {epoch}"
        if to_skip:
            note += f", which is replayed up to batch {self._batch}"
        error.add_note(note)

    async def _heed(self, requested: Any = None, *, at_epoch_end: bool = False) -> None:
        """Do at a boundary what was asked: finish or fail, save a checkpoint, or hold still."""
        stop = self._stop
        while True:
            if stop.failure is not None:
                raise stop.failure
            self._finish_if_asked(requested, at_epoch_end=at_epoch_end)
            if stop.is_checkpoint_due:
                await self.saver.take()
            elif stop.is_paused:
                await stop.wait_with()
            else:
                return
            stop.record(self.log)
            self._commit()

    def _finish_if_asked(self, requested: Any, *, at_epoch_end: bool) -> None:
        log = self.log
        requested = requested or log.get_record(log.status["iterations_done"], FINISH_REQUESTED)
        reason = finish_reason(log.status, requested, at_epoch_end=at_epoch_end)
        if reason is not None:
            raise TrainingFinish(reason)

    def timed(self, name: str, func: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function so that the profile has its time, where one is asked for."""
        return self.profile.timed(name, func) if self._is_profiled else func
