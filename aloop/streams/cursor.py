"""The place in a stream that was consumed, and the way back to it.

A stream that has `state_dict` tells its place; or its iterator does. Of any other the place is
known as a number of batches: the epoch is begun anew, and so many are left out. A list or a tuple
is entered right there.
"""

import logging
from collections.abc import Mapping
from operator import length_hint
from typing import Any, Final, Literal, TypeAlias

from aloop.errors import CheckpointValueError, StreamError
from aloop.protocols import Stateful, Stream

__all__ = ["OnResume", "Place", "go_to", "place_in", "refuse_short"]

OnResume: TypeAlias = Literal["replay", "live"]
"""What a stream without a state does when a training goes on in the middle of an epoch: it is
replayed up to there, or what comes next is live, and new."""

Place: TypeAlias = dict[str, Any]

_SEQUENCE_ITERATORS: Final = (type(iter([])), type(iter(())), type(iter(range(0))))

_logger = logging.getLogger("aloop")


def place_in(stream: Stream, iterator: Any, *, in_epoch: bool) -> Place:
    """Give the place in a stream that was consumed.

    Parameters:
        stream: the stream.
        iterator: of the epoch that is under way, None before the first.
        in_epoch: whether one is under way.
    """
    if isinstance(stream, Stateful):
        return {"of": "stream", "state": stream.state_dict()}
    if in_epoch and isinstance(iterator, Stateful):
        return {"of": "iterator", "state": iterator.state_dict()}
    return {"of": "nothing"}


def go_to(
    stream: Stream, place: Mapping[str, Any], batches: int, *, in_epoch: bool
) -> tuple[Any, int]:
    """Go to a place in a stream.

    Parameters:
        stream: the stream.
        place: as `place_in` gave it.
        batches: how many of the epoch were consumed.
        in_epoch: whether the epoch is under way.

    Gives the iterator of the epoch, None between two, and how many of its batches are yet to be
    left out. Raises `CheckpointValueError` when the stream is another kind of stream.
    """
    is_stateful = isinstance(stream, Stateful)
    if is_stateful != (place["of"] == "stream"):
        raise CheckpointValueError(
            f"the data stream {stream!r:.80} has {'a' if is_stateful else 'no'} state_dict(), but "
            f"the checkpoint {'has no' if is_stateful else 'has a'} state of the stream; expected "
            "the stream that it was saved with; make it as it was"
        )
    if isinstance(stream, Stateful):
        stream.load_state_dict(place["state"])
    if not in_epoch:
        return None, 0
    iterator = stream.get_epoch_iterator(as_dict=True)
    if is_stateful:
        return iterator, 0
    if place["of"] == "iterator":
        if not isinstance(iterator, Stateful):
            raise CheckpointValueError(
                f"the iterator {iterator!r:.80} has no load_state_dict(), but the checkpoint has "
                "its state; expected the stream that it was saved with; make it as it was"
            )
        iterator.load_state_dict(place["state"])
        return iterator, 0
    if type(iterator) in _SEQUENCE_ITERATORS:
        refuse_short(stream, length_hint(iterator), batches)
        iterator.__setstate__(batches)  # which pickle uses, and copy
        return iterator, 0
    if getattr(stream, "on_resume", "replay") == "live":
        return iterator, 0
    if batches:
        _logger.warning(
            "the data stream %.80r has no state_dict(): its epoch is begun anew, and %d batches "
            "are fetched and left out; where they are not the same again, say "
            "as_stream(…, on_resume='live')",
            stream,
            batches,
        )
    return iterator, batches


def refuse_short(stream: Stream, found: int, batches: int) -> None:
    """Raise `StreamError` if an epoch has fewer batches than were trained on in it."""
    if found < batches:
        raise StreamError(
            f"the epoch of the data stream {stream!r:.200} has ended after {found} batches; "
            f"expected the {batches} that had been trained on when the checkpoint was saved; give "
            "it the data that it had"
        )
