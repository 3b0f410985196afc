"""The place in a stream that was consumed, and the way back to it.

A stream that has `state_dict` tells its place, or its epoch; after `load_state_dict` its next
epoch iterator is the rest of that epoch. Its iterator may tell the place in the epoch. Where
neither does, the place is known as a number of batches: the epoch is begun anew, and so many are
left out. A list or a tuple is entered right there.
"""

import json
import logging
from collections.abc import Mapping
from copy import deepcopy
from operator import length_hint
from typing import Any, Final, Literal, TypeAlias, cast

import numpy as np

from aloop.checkpoints.packing import pack
from aloop.errors import CheckpointValueError, StreamError
from aloop.protocols import Stateful, Stream

__all__ = [
    "SEQUENCE_ITERATORS",
    "OnResume",
    "Place",
    "beginning_of",
    "completed",
    "copied",
    "enter",
    "is_replayed",
    "place_in",
    "refuse_short",
]

OnResume: TypeAlias = Literal["replay", "live"]
"""What a stream without a state does when a training goes on in the middle of an epoch: it is
replayed up to there, or what comes next is live, and new."""

Place: TypeAlias = dict[str, Any]

SEQUENCE_ITERATORS: Final = (type(iter([])), type(iter(())), type(iter(range(0))))
"""The iterators that never wait, and can be put anywhere."""

_IMMUTABLE: Final = frozenset({int, float, str, bool, type(None)})

_logger = logging.getLogger("aloop")


def beginning_of(stream: Stream) -> Place | None:
    """Give a copy of the state of a stream whose epoch begins, None where it has none."""
    return copied(stream.state_dict()) if isinstance(stream, Stateful) else None


def copied(state: Any) -> Any:  # a state, or a part of one
    """Give a copy of a state, which for what checkpoints hold takes a fifth of deepcopy's time."""
    kind = cast("type[object]", type(state))
    if kind in _IMMUTABLE:
        return state
    if kind is dict:
        return {key: copied(value) for key, value in cast("dict[Any, Any]", state).items()}
    if kind is list:
        return [copied(value) for value in cast("list[Any]", state)]
    if kind is np.ndarray and state.dtype != object:
        return state.copy()
    return deepcopy(state)


def place_in(stream: Stream, iterator: Any) -> Place:
    """Give the place in a stream that was consumed, as it tells it itself.

    Parameters:
        stream: the stream.
        iterator: of the epoch that is under way, None between two.
    """
    place: Place = {}
    if isinstance(stream, Stateful):
        place["stream"] = stream.state_dict()
    if isinstance(iterator, Stateful):
        place["iterator"] = iterator.state_dict()
    return place


def completed(place: Place, batches: int, beginning: Place | None) -> Place:
    """Give a place with whether it takes a number of batches to find it.

    Parameters:
        place: as `place_in` gave it.
        batches: how many of the epoch were consumed.
        beginning: the state that the stream had at the epoch's beginning, where that is known.
    """
    # A state that is the same after some batches tells of the epoch, and not of the place in it.
    is_counted = "iterator" not in place and (
        "stream" not in place
        or (batches > 0 and beginning is not None and _same(place["stream"], beginning))
    )
    return place | {"is_counted": is_counted}


def _same(state: Any, other: Any) -> bool:
    (skeleton, arrays), (skeleton2, arrays2) = (
        pack("the data stream", each, copies_up_to=0) for each in (state, other)
    )
    return (
        json.dumps(skeleton) == json.dumps(skeleton2)  # as text, for NaN is no other NaN's equal
        and arrays.keys() == arrays2.keys()
        and all(arrays[name].tobytes() == arrays2[name].tobytes() for name in arrays)
    )


def enter(
    stream: Stream, place: Mapping[str, Any], batches: int, *, in_epoch: bool
) -> tuple[Any, int, Place | None]:
    """Go to a place in a stream.

    Parameters:
        stream: the stream.
        place: as `completed` gave it.
        batches: how many of the epoch were consumed.
        in_epoch: whether the epoch is under way.

    Gives the iterator of the epoch, None between two; how many of its batches are yet to be left
    out; and the state of the stream at the epoch's beginning, where that is known. Raises
    `CheckpointValueError` when the stream is another kind of stream, `StreamError` when its epoch
    is known to be too short.
    """
    is_stateful = isinstance(stream, Stateful)
    if is_stateful != ("stream" in place):
        raise CheckpointValueError(
            f"the data stream {stream!r:.80} has {'a' if is_stateful else 'no'} state_dict(), but "
            f"the checkpoint {'has no' if is_stateful else 'has a'} state of the stream; expected "
            "the stream that it was saved with; make it as it was"
        )
    if isinstance(stream, Stateful):
        stream.load_state_dict(place["stream"])
    if not in_epoch:
        return None, 0, None
    iterator = stream.get_epoch_iterator(as_dict=True)
    if "iterator" in place:
        if not isinstance(iterator, Stateful):
            raise CheckpointValueError(
                f"the iterator {iterator!r:.80} has no load_state_dict(), but the checkpoint has "
                "its state; expected the stream that it was saved with; make it as it was"
            )
        iterator.load_state_dict(place["iterator"])
    if not place["is_counted"]:
        return iterator, 0, None if batches else place.get("stream")
    return iterator, _leave_out(stream, iterator, batches), place.get("stream")


def _leave_out(stream: Stream, iterator: Any, batches: int) -> int:
    """Leave out batches of an epoch that has just begun, and give how many are yet to be."""
    if getattr(stream, "on_resume", "replay") == "live":
        return 0
    if type(iterator) in SEQUENCE_ITERATORS:
        refuse_short(stream, length_hint(iterator), batches)
        iterator.__setstate__(batches)  # which pickle uses, and copy
        return 0
    if batches:
        _logger.warning(
            "the data stream %.80r cannot tell its place in an epoch: this one is begun anew, and "
            "%d batches are fetched and left out; where they are not the same again, say "
            "as_stream(…, on_resume='live')",
            stream,
            batches,
        )
    return batches


def is_replayed(stream: Stream, iterator: Any) -> bool:
    """Say whether a training that goes on has to fetch anew what it was trained on."""
    return not (
        isinstance(stream, Stateful)
        or isinstance(iterator, Stateful)
        or type(iterator) in SEQUENCE_ITERATORS
        or getattr(stream, "on_resume", "replay") == "live"
    )


def refuse_short(stream: Stream, found: int, batches: int) -> None:
    """Raise `StreamError` if an epoch has fewer batches than were trained on in it."""
    if found < batches:
        raise StreamError(
            f"the epoch of the data stream {stream!r:.200} has ended after {found} batches; "
            f"expected the {batches} that had been trained on when the checkpoint was saved; give "
            "it the data that it had"
        )
