"""What a training ends with, and whether two of them end with the same."""

import math
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from inspect import isawaitable
from pathlib import Path
from typing import Any, Final, TypeAlias, cast

import numpy as np

from aloop.errors import ArgumentError
from aloop.main_loop import MainLoop

__all__ = [
    "BOOKKEEPING",
    "MakeLoop",
    "Outcome",
    "differences",
    "loop_of",
    "outcome_of",
]

MakeLoop: TypeAlias = Callable[[Path], MainLoop | Awaitable[MainLoop]]
"""Makes the loop of a script that can be started again and again in the directory it is given."""

Outcome: TypeAlias = dict[str, Any]
"""All that a training ends with, by paths such as ``"rows/12/cost"`` or ``"model/w"``."""

BOOKKEEPING: Final = (
    "rows/*/saved_to",
    "rows/*/checkpoint_seconds",
    "rows/*/checkpoint_bytes",
    "rows/*/loaded_from",
    "rows/*/timestamp",
    "rows/*/training_finished",
    "rows/*/training_finish_requested",
    "rows/*/got_exception",
    "rows/*/interrupt_cause",
    "rows/*/*_interrupt_received",
    "status/resumed_from",
    "status/*_interrupt_received",
    "status/interrupt_cause",
    "status/step_abandoned",
)
"""What tells of saving, stopping and the time of day, in which no two runs are the same."""

_MAX_DIFFERENCES: Final = 8


async def loop_of(make_loop: MakeLoop, directory: Path) -> MainLoop:
    """Make the loop, in the event loop in which it will run."""
    made = make_loop(directory)
    loop = await made if isawaitable(made) else made
    if isinstance(cast("object", loop), MainLoop):
        return loop
    raise ArgumentError(
        f"{make_loop!r} gave {loop!r:.80}; expected a MainLoop; have it return the loop"
    )


def outcome_of(loop: MainLoop) -> Outcome:
    """Give all that a training has come to: its state, and every row of its log.

    Between two runs, or while one is paused.
    """
    state = loop.state_dict()
    head = state.pop("log")
    state.pop("rows")
    state["status"] = head["status"]
    state["rows"] = {time: dict(loop.log[time]) for time in loop.log}
    return dict(_leaves("", state))


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in cast("Mapping[Any, Any]", value).items():
            yield from _leaves(f"{path}/{key}" if path else str(key), inner)
    else:
        yield path, value


def differences(straight: Outcome, other: Outcome, ignore: Sequence[str] = ()) -> list[str]:
    """Say in what a training differs from the one that was never broken; nothing if in nothing.

    To the bit, arrays with their types. Paths that match a pattern of `BOOKKEEPING` or of
    `ignore` are left out.
    """
    patterns = (*BOOKKEEPING, *ignore)
    found: list[str] = []
    for path in dict.fromkeys((*straight, *other)):
        if any(fnmatchcase(path, pattern) for pattern in patterns):
            continue
        if path not in other:
            found.append(f"{path} is missing; it should be {_shown(straight[path])}")
        elif path not in straight:
            found.append(f"{path} is {_shown(other[path])}; it should not be there")
        elif not is_same(straight[path], other[path]):
            found.append(f"{path} is {_shown(other[path])}; it should be {_shown(straight[path])}")
    if len(found) > _MAX_DIFFERENCES:
        rest = len(found) - _MAX_DIFFERENCES
        found[_MAX_DIFFERENCES:] = [f"and {rest} more differences"]
    return found


def is_same(first: Any, second: Any) -> bool:
    """Say whether two values are the same to the bit.

    A number of numpy's is the same as that of Python which a log or a checkpoint makes of it, and
    a list as a tuple.
    """
    if isinstance(first, np.ndarray) or isinstance(second, np.ndarray):
        if not (isinstance(first, np.ndarray) and isinstance(second, np.ndarray)):
            return False
        one, two = cast("np.ndarray[Any, Any]", first), cast("np.ndarray[Any, Any]", second)
        if one.dtype.hasobject:
            return one.shape == two.shape and is_same(one.tolist(), two.tolist())
        return (one.dtype, one.shape, one.tobytes()) == (two.dtype, two.shape, two.tobytes())
    return _is_same_plain(_plain(first), _plain(second))


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return cast("Any", value.item())
    if isinstance(value, tuple):
        return list(cast("tuple[Any, ...]", value))
    return value


def _is_same_plain(first: Any, second: Any) -> bool:
    if isinstance(first, list) and isinstance(second, list):
        ones, twos = cast("list[Any]", first), cast("list[Any]", second)
        return len(ones) == len(twos) and all(map(is_same, ones, twos))
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        one_map, two_map = cast("Mapping[Any, Any]", first), cast("Mapping[Any, Any]", second)
        return one_map.keys() == two_map.keys() and all(
            is_same(value, two_map[key]) for key, value in one_map.items()
        )
    one, two = cast("object", first), cast("object", second)
    if isinstance(one, float) and isinstance(two, float):
        if math.isnan(one) or math.isnan(two):
            return math.isnan(one) and math.isnan(two)
        return one == two and math.copysign(1, one) == math.copysign(1, two)
    return type(one) is type(two) and bool(one == two)


def _shown(value: Any) -> str:
    text = repr(value).replace("\n", "")
    return text if len(text) <= 80 else f"{text[:77]}..."


class PlannedError(OSError):
    """What a training is made to fail with: an error of the disk, or of any other part."""
