"""Streams over queues: what comes is new, and comes when it comes."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from inspect import iscoroutinefunction
from typing import Any, Final

import anyio
from anyio.abc import UnreliableObjectReceiveStream

from aloop.errors import StreamError, TrainingFinish
from aloop.streams.adapt import register_adapter
from aloop.streams.cursor import OnResume
from aloop.streams.indexed import CountedStream, counts_in
from aloop.streams.schemes import whole_number

__all__ = ["QueueStream"]

_NOTHING: Final = object()

_ENDS: Final[tuple[type[Exception], ...]] = (
    anyio.EndOfStream,
    getattr(asyncio, "QueueShutDown", anyio.EndOfStream),  # since Python 3.13
)
"""What a queue raises when nothing more will come."""


class QueueStream(CountedStream):
    """Batches out of a queue, as they come; every batch is trained on once.

    A training that is restored goes on with what comes next, in the epoch that it was in. A loop
    that was stopped while it waited goes on waiting, and what comes is the first batch of its next
    run; let go of it before another loop is to have what comes.

    Parameters:
        queue: an ``asyncio.Queue``, an anyio receive stream, or anything else that has a coroutine
            function ``get`` or ``receive`` that can be cancelled without losing what came.
        batches_per_epoch: how many batches make up an epoch, 1 or more; unless given, the first
            epoch goes on until the queue ends.
        sources: the names of what a batch holds, if it is a dictionary.
        end: what is put into the queue after the last batch, and compared by ``is``.

    The stream ends with `end`, with the shutdown of an ``asyncio.Queue`` (Python 3.13), or when
    all senders of an anyio stream are closed; the epoch that is under way is its last. An
    epoch that would begin with nothing left raises `TrainingFinish`, which ends the training in
    good order.

    A queue whose ``get`` blocks, as ``queue.Queue``, is read in a thread:
    ``as_stream(iter(queue.get, None))``, with None as what comes last.
    """

    on_resume = "live"

    def __init__(
        self,
        queue: Any,  # there is no class that all queues have in common
        *,
        batches_per_epoch: int | None = None,
        sources: tuple[str, ...] = (),
        end: object = _NOTHING,
    ) -> None:
        super().__init__()
        self.sources = tuple(sources)
        self._queue = queue
        self._batches_per_epoch = (
            None
            if batches_per_epoch is None
            else whole_number("batches_per_epoch", batches_per_epoch, least=1)
        )
        self._end = end
        self._receive = _receiver_of(queue)
        self._has_ended = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._queue!r:.100})"

    def __len__(self) -> int:
        """Give the number of batches in an epoch; TypeError if that is when the queue ends."""
        if self._batches_per_epoch is None:
            raise TypeError(f"{self!r} has no length; give it batches_per_epoch")
        return self._batches_per_epoch

    def get_epoch_iterator(self, *, as_dict: bool = True) -> AsyncIterator[Any]:
        """Begin an epoch, or go on with one; batches come as they are, `as_dict` changes nothing.

        After `load_state_dict` it is the rest of the epoch that the state is from.
        """
        return _QueueIterator(self, self._next_turn())

    def reset(self) -> None:
        """Begin with another epoch: what was taken from the queue does not come back."""
        super().reset()

    def state_dict(self) -> dict[str, Any]:
        """Give how many batches were taken from the epoch that is under way."""
        return {"batch": self._batch}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Make the next iterator give as many batches less, all of them new."""
        (batch,) = counts_in(state, "batch")
        self._move(self._epoch, batch)

    async def take(self, turn: object) -> Any:
        """Give the next batch of an epoch; `StopAsyncIteration` when it has ended.

        Raises `TrainingFinish` where the queue has ended, and nothing of it is in the epoch.

        Parameters:
            turn: what the stream gave to the epoch's iterator.
        """
        if turn is not self._turn:
            raise StopAsyncIteration  # it was left for a later one
        number = self._batches_per_epoch
        if not self._has_ended and (number is None or self._batch < number):
            try:
                batch = await self._receive()
            except _ENDS:
                self._has_ended = True
            else:
                self._has_ended = batch is self._end
                if not self._has_ended:
                    self._batch += 1
                    return batch
        if turn is self._turn:
            if self._has_ended and not self._batch:
                raise TrainingFinish(f"the queue of {self!r} has ended")
            self.next_epoch()
        raise StopAsyncIteration


class _QueueIterator(AsyncIterator[Any]):
    """One epoch of a `QueueStream`."""

    def __init__(self, stream: QueueStream, turn: object) -> None:
        self._stream = stream
        self._turn = turn

    def __repr__(self) -> str:
        return f"epoch of {self._stream!r}"

    async def __anext__(self) -> Any:
        return await self._stream.take(self._turn)


def _receiver_of(queue: Any) -> Callable[[], Awaitable[Any]]:
    for name in ("receive", "get"):
        receive = getattr(queue, name, None)
        if iscoroutinefunction(receive) and not isinstance(queue, type):
            return receive
    is_blocking = hasattr(queue, "get") and hasattr(queue, "put")
    raise StreamError(
        f"queue is {queue!r:.80} of type {type(queue).__name__}; expected an asyncio.Queue, an "
        "anyio receive stream, or another queue whose get() is a coroutine function; "
        + (
            "read one whose get() blocks in a thread: as_stream(iter(queue.get, None))"
            if is_blocking
            else "give the queue itself"
        )
    )


def _stream_of(queue: Any, _: OnResume) -> QueueStream:
    return QueueStream(queue)


register_adapter(asyncio.Queue, _stream_of)
register_adapter(UnreliableObjectReceiveStream, _stream_of)
