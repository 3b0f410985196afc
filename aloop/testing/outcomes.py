"""What a training ends with, and whether two of them end with the same."""

import asyncio
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
    "run_to_end",
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
    if isinstance(value, Mapping):
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
    """Say whether two values are the same to the bit."""
    if isinstance(first, np.ndarray) or isinstance(second, np.ndarray):
        if not (isinstance(first, np.ndarray) and isinstance(second, np.ndarray)):
            return False
        one, two = cast("np.ndarray[Any, Any]", first), cast("np.ndarray[Any, Any]", second)
        return (one.dtype, one.shape, one.tobytes()) == (two.dtype, two.shape, two.tobytes())
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        ones, twos = cast("Sequence[Any]", first), cast("Sequence[Any]", second)
        return len(ones) == len(twos) and all(map(is_same, ones, twos))
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        one_map, two_map = cast("Mapping[Any, Any]", first), cast("Mapping[Any, Any]", second)
        return one_map.keys() == two_map.keys() and all(
            is_same(value, two_map[key]) for key, value in one_map.items()
        )
    if isinstance(first, float) and isinstance(second, float):
        if math.isnan(first) or math.isnan(second):
            return math.isnan(first) and math.isnan(second)
        return first == second and math.copysign(1, first) == math.copysign(1, second)
    return bool(first == second)


def _shown(value: Any) -> str:
    text = repr(value).replace("\n", "")
    return text if len(text) <= 80 else f"{text[:77]}..."


def run_to_end(make_loop: MakeLoop, directory: Path) -> Outcome:
    """Run a training in an event loop of its own, and give what it ends with."""

    async def main() -> Outcome:
        loop = await loop_of(make_loop, directory)
        await loop.run()
        return outcome_of(loop)

    return asyncio.run(main())


class PlannedError(OSError):
    """What a training is made to fail with: an error of the disk, or of any other part."""
