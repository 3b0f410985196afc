"""The way to a place in a Fuel stream, and what is refused as one.

Fuel is not typed, and is not imported here. Hence Any.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeGuard, cast

from aloop.errors import StreamError
from aloop.protocols import Stream
from aloop.streams.cursor import refuse_short
from aloop.streams.fuel.shape import requests_of

__all__ = ["check_place", "leave_out", "replay_epochs", "say_live"]

_END: Final = object()

_logger = logging.getLogger("aloop")


def check_place(place: object, layout: str, generators: Iterable[str]) -> None:
    """Raise `StreamError` for what is no place in a stream.

    Parameters:
        place: what may be one.
        layout: of the stream.
        generators: the names of those in the stream.
    """
    if not _is_place(place):
        raise StreamError(
            f"the stream's state is {place!r:.200}; expected what state_dict() of a FuelStream "
            "gave; give that"
        )
    theirs, ours = place["layout"].split("\n"), layout.split("\n")
    names = sorted(generators)
    compared: list[tuple[str | list[str], str | list[str]]] = [
        *zip(theirs, ours, strict=False),
        (theirs, ours),
        (sorted(place["before"]), names),
        (sorted(place["now"]), names),
    ]
    for their, our in compared:
        if their != our:
            raise StreamError(
                f"the stream's state is of {_listed(their)}, but the stream has {_listed(our)}; "
                "expected the same order of the same data; make the stream as it was, or call "
                "reset() to begin anew"
            )


def _is_place(place: object) -> TypeGuard[Mapping[str, Any]]:
    if not isinstance(place, Mapping):
        return False
    of = cast("Mapping[str, Any]", place).get
    return (
        isinstance(of("layout"), str)
        and all(_is_count(of(name)) for name in ("epochs", "batches"))
        and isinstance(of("is_begun"), bool)
        and all(isinstance(of(name), Mapping) for name in ("before", "now"))
        and _is_history(of("history"))
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_history(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(map(_is_epoch, cast("list[object]", value)))


def _is_epoch(value: object) -> bool:
    if not isinstance(value, (list, tuple)) or len(cast("list[object]", value)) != 2:
        return False
    batches, has_ended = cast("list[object]", value)
    return _is_count(batches) and isinstance(has_ended, bool)


def _listed(what: str | list[str]) -> str:
    return what if isinstance(what, str) else ", ".join(what) or "nothing random"


def replay_epochs(
    stream: Stream, fuel_stream: Any, history: list[list[Any]], changing: list[str]
) -> None:
    """Go through the epochs after the first beginning, for each depends on those before it.

    Parameters:
        stream: the stream.
        fuel_stream: that of Fuel, at the beginning of its first epoch.
        history: of each epoch the batches consumed, and whether it has ended.
        changing: the classes of what makes epochs differ.
    """
    if history:
        _logger.warning(
            "%.200r: %s may begin each epoch in another way, and has no state_dict() and "
            "load_state_dict(): the %d epochs before this one, of %d batches, are fetched again "
            "and left out; give it both, and only this epoch's are",
            stream,
            ", ".join(changing),
            len(history),
            sum(batches for batches, _ in history),
        )
    for batches, has_ended in history:
        iterator = fuel_stream.get_epoch_iterator()
        _fetch_again(stream, iterator, batches)
        if has_ended:
            next(iterator, _END)


def leave_out(
    stream: Stream, fuel_stream: Any, iterator: Any, batches: int, *, is_changing: bool
) -> None:
    """Leave out the batches of an epoch that has begun which were consumed."""
    requests = None if is_changing else requests_of(fuel_stream, iterator)
    if requests is None:
        if batches:
            _logger.warning(
                "%.200r: a batch of it is not one request to its data: %d batches are fetched "
                "again and left out",
                stream,
                batches,
            )
        _fetch_again(stream, iterator, batches)
        return
    for number in range(batches):
        if _END in [next(each, _END) for each in requests]:
            refuse_short(stream, number, batches)


def _fetch_again(stream: Stream, iterator: Any, batches: int) -> None:
    for number in range(batches):
        if next(iterator, _END) is _END:
            refuse_short(stream, number, batches)


def say_live(stream: Stream, batches: int) -> None:
    """Warn that what was consumed of an epoch of a live stream does not come again."""
    if batches:
        _logger.warning(
            "%.200r is live: the %d batches of this epoch that were trained on do not come again, "
            "and those that were on their way when the training stopped are lost; what comes next "
            "is new",
            stream,
            batches,
        )
