"""The process in which Fuel's MultiProcessing reads a stream, and the two sides of its pipes.

The process reads on from epoch to epoch, ahead of who takes its batches. With the end of each
epoch it sends the states of the stream's random generators, which the stream on this side gets,
so that it tells where each epoch begins.
"""

import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any, Final, Literal, TypeAlias
from weakref import finalize

from aloop.checkpoints.generators import generator_states, load_generator_states
from aloop.errors import StreamError, brief
from aloop.streams.fuel.parts import generators_in

__all__ = ["StreamWorker", "serve"]

Kind: TypeAlias = Literal["batch", "end", "error"]

_BEGIN: Final = "begin"
_SKIP: Final = "skip"


class StreamWorker:
    """Reads a Fuel stream in a process of its own, for one reader.

    Parameters:
        stream: what is read. Fuel is not typed, hence Any.
        max_store: how many batches are read ahead, 0 for any number.
        target: the function that the process runs; it calls `serve`.
    """

    def __init__(self, stream: Any, max_store: int, target: Callable[..., None]) -> None:
        self._stream = stream
        self._max_store = max_store
        self._target = target
        self._generation = 0  # of the epochs since the generators were set
        self._epoch = 0
        self._is_in_epoch = False
        self._failure: StreamError | None = None  # of the epoch that is under way
        self._start()

    def begin_epoch(self) -> None:
        """Go to the beginning of the next epoch."""
        self._failure = None
        if not self._is_running:
            self._start()
        self.settle()
        self._epoch += 1
        self._is_in_epoch = True

    def next_batch(self) -> Any:
        """Give the next batch of the epoch; StopIteration at its end."""
        if self._failure is not None:
            raise self._failure
        if not self._is_in_epoch:
            raise StopIteration
        kind, value = self._receive()
        if kind == "batch":
            return value
        self._end_epoch(value)
        raise StopIteration

    def settle(self) -> None:
        """Leave out what is left of the epoch that is under way, if one is."""
        if not self._is_in_epoch:
            return
        self._command(_SKIP, self._generation, self._epoch + 1)
        kind, value = self._receive()
        while kind == "batch":
            kind, value = self._receive()
        self._end_epoch(value)

    def begin_anew(self) -> None:
        """Have epochs read that begin with the states that the stream's generators have here."""
        self._is_in_epoch = False
        self._epoch = 0
        if self._is_running:
            self._generation += 1
            self._command(_BEGIN, self._generation, generator_states(generators_in(self._stream)))

    def close(self) -> None:
        """End the process."""
        self._is_running = self._is_in_epoch = False
        self._finalizer()
        for end in (self._batches, self._commands):
            end.close()

    def _start(self) -> None:
        self._generation = self._epoch = 0
        batches, sent = multiprocessing.Pipe(duplex=False)
        told, commands = multiprocessing.Pipe(duplex=False)
        self._batches, self._commands = batches, commands
        self.process = multiprocessing.Process(
            target=self._target,
            args=(self._stream, self._max_store, (sent, told), (batches, commands)),
            daemon=True,
            name="aloop fuel",
        )
        self.process.start()
        # Or the end of the process would not be seen.
        sent.close()
        told.close()
        self._is_running = True
        self._finalizer = finalize(self, _end, self.process, os.getpid())

    def _command(self, *command: object) -> None:
        try:
            self._commands.send(command)
        except (OSError, ValueError):
            raise self._death() from None

    def _receive(self) -> tuple[Kind, Any]:
        while True:
            try:
                # The pipe ends with the process, but where another one was forked meanwhile.
                wait([self._batches, self.process.sentinel])
                item = self._batches.recv() if self._batches.poll() else None
            except (EOFError, OSError):
                item = None
            if item is None:
                raise self._death()
            generation, epoch, kind, value = item
            if (generation, epoch) != (self._generation, self._epoch):
                continue  # read ahead, and not wanted any more
            if kind == "error":
                self.close()
                what, where = value
                error = StreamError(
                    f"the process of a MultiProcessing stream failed with {what}; expected the "
                    "batches of its stream; mend what the stream is made of, and run again"
                )
                error.add_note(where)
                self._failure = error
                raise error
            return kind, value

    def _death(self) -> StreamError:
        self.process.join(timeout=1)
        code, number = self.process.exitcode, self.process.pid
        self.close()
        self._failure = StreamError(
            f"the process {number} of a MultiProcessing stream has ended with exit code {code}; "
            "expected it to read until the stream is closed; look what ended it (-9 is often a "
            "lack of memory), and run again"
        )
        return self._failure

    def _end_epoch(self, states: Mapping[str, Any]) -> None:
        self._is_in_epoch = False
        load_generator_states(generators_in(self._stream), states)


def _end(process: Any, owner: int) -> None:
    if os.getpid() == owner:  # and not in a copy of it that was forked
        process.kill()
        process.join()


def serve(
    stream: Any,  # as above
    max_store: int,
    ends: tuple[Connection, Connection],
    others: tuple[Connection, Connection],
) -> None:
    """Read a stream in this process until nobody is there to take its batches.

    Parameters:
        stream: what is read.
        max_store: how many batches are read ahead, 0 for any number.
        ends: where batches are sent, and where commands come from.
        others: their other ends, which a fork has left open here.
    """
    # Who reads decides when to stop, after a Ctrl-C too.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    for end in others:
        end.close()
    _Server(stream, max_store, *ends).run()


class _Server:
    def __init__(
        self, stream: Any, max_store: int, batches: Connection, commands: Connection
    ) -> None:
        self._stream = stream
        self._max_store = max_store
        self._batches = batches
        self._commands = commands
        self._changed = threading.Condition()
        self._items: deque[tuple[int, int, Kind, Any]] = deque()
        self._generation = self._epoch = 0
        self._wanted_epoch = 0  # those before it are not wanted
        self._new: tuple[int, Mapping[str, Any]] | None = None  # generation, and its beginning

    def run(self) -> None:
        threading.Thread(target=self._listen, daemon=True).start()
        threading.Thread(target=self._send, daemon=True).start()
        try:
            while True:
                self._read_epoch()
        except Exception as error:  # noqa: BLE001 - raised on the other side
            self._put("error", (brief(error), traceback.format_exc()), is_urgent=True)
            with self._changed:
                self._changed.wait_for(lambda: False)  # until the other side ends this process

    def _read_epoch(self) -> None:
        generators = generators_in(self._stream)
        with self._changed:
            new, self._new = self._new, None
            if new is not None:
                self._generation, self._epoch, self._wanted_epoch = new[0], 0, 0
            self._epoch += 1
        if new is not None:
            self._stream.reset()
            load_generator_states(generators, new[1])
        for batch in self._stream.get_epoch_iterator():
            if not self._put("batch", batch):
                break
        self._put("end", generator_states(generators), is_urgent=True)

    def _put(self, kind: Kind, value: Any, *, is_urgent: bool = False) -> bool:
        item = (self._generation, self._epoch, kind, value)
        pickled = ForkingPickler.dumps(item)  # here, so that an error is one of the stream's
        with self._changed:
            if not is_urgent:
                self._changed.wait_for(lambda: self._is_unwanted or self._has_room)
                if self._is_unwanted:
                    return False
            self._items.append((*item[:3], pickled))
            self._changed.notify_all()
        return True

    @property
    def _has_room(self) -> bool:
        return self._max_store <= 0 or len(self._items) < self._max_store

    @property
    def _is_unwanted(self) -> bool:
        return self._new is not None or self._epoch < self._wanted_epoch

    def _send(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._items)
                *_, pickled = self._items.popleft()
                self._changed.notify_all()
            try:
                self._batches.send_bytes(pickled)
            except OSError:
                os._exit(0)  # nobody takes it

    def _listen(self) -> None:
        while True:
            try:
                command, generation, value = self._commands.recv()
            except (EOFError, OSError):
                os._exit(0)  # who reads is gone, perhaps killed
            with self._changed:
                if command == _BEGIN:
                    self._new = (generation, value)
                    self._items.clear()
                elif self._new is None:
                    self._wanted_epoch = value
                self._changed.notify_all()
