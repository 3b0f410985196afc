"""The base of aloop's own streams."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Final, Literal, TypeAlias

from aloop.streams.cursor import OnResume

__all__ = ["READ_AHEAD", "DataStream", "Where"]

Where: TypeAlias = Literal["thread", "inline"]
"""Where the next batch of a sync iterator is fetched: in a thread, ahead of what is consumed, or
on the event loop's thread, when it is asked for."""

READ_AHEAD: Final = 2
"""How many batches a thread fetches before they are asked for, unless a stream says otherwise."""


class DataStream(ABC):
    """Base of aloop's own streams; the interface is that of Fuel's AbstractDataStream."""

    sources: tuple[str, ...] = ()
    """The names of what a batch holds; empty when batches are whatever they are."""

    produces_examples: bool = False
    """True if the stream yields single examples, False if it yields batches."""

    on_resume: OnResume = "replay"
    """What happens, to a stream without a `state_dict`, when a training is restored in the middle
    of an epoch; see `as_stream`."""

    where: Where = "thread"
    """Where the next batch is fetched, if the epoch iterators are sync ones."""

    read_ahead: int = READ_AHEAD
    """How many batches a thread fetches before they are asked for, 0 or more. Batches that take
    far less than a millisecond are fetched by the handful."""

    @property
    def begins_in_thread(self) -> bool:
        """True if the thread calls `get_epoch_iterator` and `load_state_dict` too."""
        return False

    iteration_scheme: Any = None
    """The scheme that orders the stream; its length is the number of batches in an epoch."""

    @abstractmethod
    def get_epoch_iterator(self, *, as_dict: bool = True) -> Any:
        """Begin an epoch and give its iterator, sync or async."""

    def next_epoch(self) -> None:  # noqa: B027 - a stream may have nothing to do here
        """Make the next iterator begin an epoch that follows this one."""

    def reset(self) -> None:  # noqa: B027 - a stream may have nothing to do here
        """Go back to the beginning of the first epoch."""

    def close(self) -> None:  # noqa: B027 - a stream may have nothing to do here
        """Let go of what the stream holds open."""

    def parts(self) -> Iterator[object]:
        """Give the stream and what in it remembers its place, which only one run can use."""
        yield self
