"""Where and when a training is broken: the n-th time that it passes a fault point."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from random import Random
from typing import Final, Literal, TypeAlias

from aloop.errors import ArgumentError
from aloop.faults import POINTS, point_of

__all__ = ["HALFWAY", "LEGS", "Leg", "Place", "chosen", "halfway"]

Leg: TypeAlias = Literal["run", "stopped", "failed", "resumed"]
"""What a training is broken in: a run that nothing else happens to, one that was told to stop, one
that has failed, or one that goes on from an earlier one."""

LEGS: Final[dict[Leg, str]] = {
    "run": "",
    "stopped": " in a run that was stopped halfway",
    "failed": " in a run that had failed halfway",
    "resumed": " in a run that was resumed halfway",
}

HALFWAY: Final = "step.done"
"""The point at which, half of the way, the legs but the first are stopped, fail or are killed."""


@dataclass(frozen=True, slots=True)
class Place:
    """The n-th time that a run passes a fault point."""

    point: str
    number: int

    def __str__(self) -> str:
        return f"{self.point} ({point_of(self.point).when}), time {self.number}"


def halfway(passed: Counter[str]) -> Place:
    """Give the middle of a training that has passed these points."""
    return Place(HALFWAY, (passed[HALFWAY] + 1) // 2)


def chosen(
    legs: Mapping[Leg, Counter[str]],
    points: Sequence[str],
    seed: int,
    *,
    every: bool,
    may_raise: bool = False,
) -> list[tuple[Leg, Place]]:
    """Choose where a training is broken, and which of the times that it passes there.

    Parameters:
        legs: how often each kind of run passes each point.
        points: patterns of the points that are chosen.
        seed: chooses one time between the first and the last.
        every: whether it is each time. If not, then but for the plain run one time is enough.
        may_raise: whether it is at points alone where an error can come up.

    Raises `ArgumentError` for a pattern of which none is chosen.
    """
    random = Random(seed)  # noqa: S311 - no secret
    passed = Counter[str]()
    for each in legs.values():
        passed |= each
    known = sorted(name for name in passed if not may_raise or point_of(name).may_raise)
    for pattern in points:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise ArgumentError(
                f"points has {pattern!r}, and the training passes no such fault point"
                f"{' where an error can come up' if may_raise else ''}; expected names, such as "
                f"'checkpoint.*'; it passes {', '.join(known)}"
            )
    found: list[tuple[Leg, Place]] = []
    for leg, passed in legs.items():
        for name in dict.fromkeys((*POINTS, *passed)):
            times = passed[name]
            is_chosen = any(fnmatchcase(name, pattern) for pattern in points)
            if not times or not is_chosen or (may_raise and not point_of(name).may_raise):
                continue
            if every:
                numbers = list(range(1, times + 1))
            elif leg == "run":
                numbers = sorted({1, times, random.randint(1, times)})
            else:
                numbers = [1] if leg == "resumed" else [times]
            places: list[tuple[Leg, Place]] = [(leg, Place(name, number)) for number in numbers]
            found += places
    return found
