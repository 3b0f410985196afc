"""Saving a training at its boundaries, and going on from what was saved.

Whoever wants a checkpoint only asks for it. At the next boundary, when all extensions have run, the
training waits for what they began beside it, and its state is copied, the model's in the thread in
which it is trained. Then the training goes on, while another thread writes the copy: first the log
is brought to the disk up to that boundary, then the checkpoint is written and published. At the
end of a run all that is still wanted becomes one checkpoint.

How a training is restored is in `aloop.restoring`.
"""

import asyncio
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from aloop.background import BackgroundWork
from aloop.callbacks import Position
from aloop.checkpoints import CheckpointDirectory, Contents, SavedCheckpoint
from aloop.checkpoints.due import Copied, Due, Request
from aloop.checkpoints.published import Packed, State
from aloop.checkpoints.wishes import LoadWish, SaveWish
from aloop.errors import ArgumentError, CheckpointError, brief
from aloop.extensions.base import call
from aloop.faults import fault_point
from aloop.log.records import Row
from aloop.offload import Worker, run_in_worker
from aloop.restoring import Restorer
from aloop.snapshots import Trained, stateless, take, take_model
from aloop.stalls import blames
from aloop.stopping import StopLevel, StopRequest

__all__ = ["Saver"]

COPIED_AT_ONCE: Final = 1 << 20
"""Bytes of the largest array of the stream or an extension that is copied in the event loop."""

_logger = logging.getLogger("aloop")


class Saver:
    """Saves and restores one training, in one run after the other.

    Parameters:
        training: what is saved and restored.
    """

    _stop: StopRequest
    _background: BackgroundWork
    _worker: Worker
    _loop: asyncio.AbstractEventLoop

    def __init__(self, training: Trained) -> None:
        self._training = training
        self._due = Due()
        self._restorer = Restorer(training, self._directory)
        self._directories: dict[Path, CheckpointDirectory] = {}
        self._main: SaveWish | None = None  # what a request asks for
        self._latest: dict[Path, Position] = {}  # where the last one of a directory was taken
        self._run = object()  # stands for the one that has the directories
        self._named: dict[int, object] = {}  # what has no state, and was named

    def begin(self, stop: StopRequest, background: BackgroundWork) -> None:
        """Get ready for a run."""
        self._stop, self._background = stop, background
        self._loop = asyncio.get_running_loop()
        run = self._run = object()
        self._worker = Worker("aloop checkpoints", on_end=lambda: self._release(run))

    def end(self) -> None:
        """Let go of what the run held."""
        due, self._due = self._due, Due()
        due.fail(CheckpointError("the run has ended without the checkpoint that was asked for"))
        if self._worker.is_busy:
            _logger.error("a checkpoint is left behind at work in its thread")
        self._worker.close()

    def _release(self, run: object) -> None:
        if run is self._run:  # and not one that was left behind, beside the next
            for directory in list(self._directories.values()):
                directory.release()

    # What extensions and users ask for.

    def expect(self, wish: SaveWish) -> None:
        """Hear of an extension that saves; the first one's is what a request asks for."""
        if self._main is None or wish.is_whole > self._main.is_whole:
            self._main = wish

    async def prepare(self, path: Path) -> None:
        """Make sure that checkpoints can be written to a directory, for the length of the run.

        Raises `CheckpointError` when they cannot, `CheckpointInUseError` while another run has it.
        """
        await self._worker.run(self._directory(path).claim)

    def save(self, wish: SaveWish) -> None:
        """Have a checkpoint saved at the next boundary."""
        before = self._due.wishes.get(wish.path)
        if before is None or before.is_last:
            self._due.wishes[wish.path] = wish
        self._stop.want_checkpoint()

    def load(self, wish: LoadWish) -> None:
        """Have a checkpoint loaded before the training begins."""
        self._restorer.load(wish)

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Have a state put back when the next run starts; see `MainLoop.load_state_dict`."""
        self._restorer.load_state(state)

    @property
    def can_save(self) -> bool:
        """True when an extension may want to."""
        return self._main is not None

    def state(self) -> State:
        """Give a copy of the state of the training, which holds still.

        Raises `CheckpointError` when that is not the state of a whole boundary.
        """
        if self._training.is_cut_off:
            raise CheckpointError(
                "the state was asked for, but the training was broken off in the middle of batch "
                f"{self._training.position.batch}; expected a whole boundary; run() goes on to one"
            )
        packed = Packed.of(take(self._training, global_rng=False), copies_up_to=COPIED_AT_ONCE)
        return _complete(self._training, packed).state()

    def request(self) -> Request:
        """Have a checkpoint saved at the next boundary, and give what its path can be awaited of.

        Raises `CheckpointError` when there is nowhere to save it, `ArgumentError` in another
        event loop than the run's.
        """
        if _running_loop() is not self._loop:
            raise ArgumentError(
                "a checkpoint was requested from another thread or event loop than the run's; "
                "expected the run's own; use asyncio.run_coroutine_threadsafe"
            )
        if self._main is None:
            raise CheckpointError(
                "a checkpoint was requested, but the loop has no Checkpoint extension; expected "
                "one, which says where to save it; add Checkpoint('run/checkpoints')"
            )
        if self._stop.is_ending:
            raise CheckpointError(
                "a checkpoint was requested when the training was over; expected it to be under "
                "way; Checkpoint saves at the end by itself"
            )
        request = Request(self._stop)
        self._due.requests.append(request)
        self._stop.want_checkpoint()
        return request

    def _directory(self, path: Path) -> CheckpointDirectory:
        if path not in self._directories:
            self._directories[path] = CheckpointDirectory(path)
        return self._directories[path]

    # The restore point.

    async def restore(self) -> bool:
        """Put back what is to be loaded, and give whether the log goes on from there."""
        restored = await self._restorer.restore()
        if restored is None:
            return False
        # What was asked for before the restore point was of a beginning that never was.
        self._due.wishes.clear()
        self._stop.want_checkpoint(bool(self._due))
        self._latest.clear()
        if restored.directory is not None:
            self._latest[restored.directory] = self._training.position
        return restored.log

    # The boundaries at which a checkpoint is due.

    async def take(self) -> None:
        """Copy the state at this boundary, and have it published beside the training.

        What is to stop takes it at its end.
        """
        await self._background.settle()
        if self._stop.must_leave:
            return
        due, copied = await self._copy_due()
        if self._stop.must_leave:  # since then
            self._due.put_back(due)
        elif copied is not None:
            row = self._training.log.current_row
            name = "the saving of a checkpoint"
            await self._background.start_in_turn(
                self, self._publish, due, copied, row, name=name, changes_state=False
            )

    async def take_requested(self) -> BaseException | None:
        """Save at the end of the training what somebody waits for who has to end before the run.

        Gives what that failed with. Waits for what is being published.
        """
        try:
            await self._background.settle(self)
            if self._due.requests:
                await self._background.finish_turns()
                if self._background.is_settled:
                    await self._take_now()
        except BaseException as error:  # noqa: BLE001 - returned
            return error
        finally:  # whom nothing was saved for would wait in vain, and the run for them
            self._due.fail(CheckpointError("the run ends without it"))
            self._due.requests.clear()
        return None

    async def take_last(self) -> BaseException | None:
        """Save at the end of the run what is wanted then; give what that failed with."""
        wishes = self._due.wishes
        position = self._training.position
        for path in [path for path, wish in wishes.items() if wish.is_last]:
            if self._latest.get(path) == position:
                del wishes[path]  # what its callbacks did is done again by who goes on from there
        try:
            if self._due:
                await self._take_now()
        except BaseException as error:  # noqa: BLE001 - returned
            return error
        return None

    async def _take_now(self) -> None:
        if not self._stop.has_started or self._stop.level is StopLevel.ABANDON:
            return
        broken_off = self._broken_off()
        if broken_off is not None:
            _logger.warning(
                "no checkpoint is saved at the end of the run, for %s; the last one counts",
                broken_off,
            )
            return
        due, copied = await self._copy_due()
        if copied is not None:
            await self._publish(due, copied, self._training.log.current_row)

    def _broken_off(self) -> str | None:
        """Say what keeps the end of the run from being a boundary that is whole, if anything."""
        stop, background = self._stop, self._background
        if self._training.is_cut_off:
            batch = self._training.position.batch
            return f"the training was broken off before all was done with batch {batch}"
        if stop.is_given_up or stop.is_left:
            return "something was given up"
        if background.has_failed_turn:
            return "a background extension has failed, or was left out"
        if background.has_cut_turn and stop.level >= StopLevel.BATCH:
            return "a background extension was cancelled"
        return None

    @blames("the saving of a checkpoint")
    async def _copy_due(self) -> tuple[Due, Copied | None]:
        """Copy the state for all that is due; None where that failed and may."""
        fault_point("checkpoint.due")
        due, self._due = self._due, Due()
        self._stop.want_checkpoint(False)
        if due.requests and self._main is not None:
            due.wishes.setdefault(self._main.path, self._main)
        self._name_stateless()
        begun = perf_counter()
        try:
            self._training.log.commit()
            global_rng = any(wish.global_rng for wish in due.wishes.values())
            # What others may change in the event loop is copied here, but for large arrays. They,
            # and the model, are copied in the thread in which the steps are done.
            state = take(self._training, global_rng=global_rng)
            packed = Packed.of(state, copies_up_to=COPIED_AT_ONCE)
            contents = await run_in_worker(_complete, self._training, packed)
            fault_point("checkpoint.copied")
        except BaseException as error:
            due.fail(error)
            is_lenient = all(wish.is_lenient for wish in due.wishes.values())
            if not (is_lenient and isinstance(error, Exception)):
                raise
            _logger.warning("a checkpoint failed, and the run goes on: %s", brief(error))
            for _ in due.wishes:
                self._record(self._training.log.current_row, None, begun)
            return due, None
        return due, Copied(contents, begun)

    def _name_stateless(self) -> None:
        for thing, what in stateless(self._training):
            if id(thing) not in self._named:
                self._named[id(thing)] = thing
                _logger.warning(what)

    # Publishing, from beside the training or at its end.

    async def _publish(self, due: Due, copied: Copied, row: Row) -> None:
        try:
            await self._training.log.flush()  # the log is never behind a checkpoint
            fault_point("checkpoint.flushed")
            failure = await self._publish_all(due, copied, row)
        except BaseException as error:
            due.fail(error)
            raise
        due.fail(failure or CheckpointError("it could not be saved; the warnings say why"))
        if failure is not None:
            raise failure

    async def _publish_all(self, due: Due, copied: Copied, row: Row) -> Exception | None:
        """Publish in each directory, though some fail; give what the first of them failed with."""
        first: Exception | None = None
        for wish in due.wishes.values():
            try:
                path = await self._publish_in(wish, copied, row)
            except Exception as error:  # noqa: BLE001 - raised when the others are there
                first = first or error
                continue
            if path is not None and self._main is not None and wish.path == self._main.path:
                due.settle(path)
            await self._worker.run(self._directory(wish.path).prune, wish.keep)
        return first

    async def _publish_in(self, wish: SaveWish, copied: Copied, row: Row) -> Path | None:
        contents = copied.contents if wish.is_whole else copied.contents.parameters_only()
        directory = self._directory(wish.path)
        published: SavedCheckpoint | None = None

        async def publish() -> None:
            nonlocal published
            is_over = threading.Event()
            try:
                published = await self._worker.run(
                    directory.publish, contents, wish.keep, lambda: not is_over.is_set()
                )
            finally:
                is_over.set()  # nothing is published behind the back of a run that gave it up

        try:
            await call(wish.limited(publish))
        except Exception:
            self._record(row, None, copied.begun)
            raise
        self._record(row, published, copied.begun)
        if published is not None and wish.is_whole:
            self._latest[wish.path] = published.position
        return None if published is None else published.path

    def _record(self, row: Row, published: SavedCheckpoint | None, begun: float) -> None:
        def record() -> None:
            path = None if published is None else str(published.path)
            row["saved_to"] = (*row.get("saved_to", ()), path)
            if published is not None:
                row["checkpoint_seconds"] = perf_counter() - begun
                row["checkpoint_bytes"] = published.bytes

        self._training.log.write_late(record)
        fault_point("checkpoint.recorded")


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _complete(training: Trained, packed: Packed) -> Contents:
    return Contents.of(packed.copied() | Packed.of(take_model(training)))
