"""The stages that follow on several others: beside one another, in turn, or by chance."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, Final, TypeAlias

import numpy as np

from aloop.errors import StreamError
from aloop.streams.bridge import END
from aloop.streams.stages.columns import mapping_of
from aloop.streams.stages.epochs import Mode, Place, Stage, part_of

__all__ = ["Concatenate", "Mix", "Zip", "clash"]

# What a stream gives is whatever it is. Hence Any.
Element: TypeAlias = Any

_BLOCK: Final = 1024  # choices that are drawn at a time


class Combination(Stage):
    """A stage that follows on several."""

    _call = ""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.upstream = tuple(stages)
        self._has_ended = [False] * len(self.upstream)
        self._goes_on = False  # from a place
        # Those that have given nothing since they were asked are the same still.
        self._places: list[Place | None] = [None] * len(self.upstream)

    @property
    def name(self) -> str:
        """What kind of chain this is."""
        return f"{self._call}({', '.join(stage.name for stage in self.upstream)})"

    def begin(self, mode: Mode) -> None:
        """Begin an epoch."""
        if not self._goes_on:
            self.leave()
        self._goes_on = False
        self.mode = mode
        for number, stage in enumerate(self.upstream):
            self._places[number] = None
            if not self._has_ended[number]:
                stage.begin(mode)

    async def _take(self, number: int) -> Element:
        """Take an element of one of the stages."""
        element = await self.upstream[number].advance()
        self._places[number] = None
        if element is END:
            self._has_ended[number] = True
        return element

    async def _end(self) -> None:
        """End the epoch, and leave those that have not ended."""
        for number, stage in enumerate(self.upstream):
            if not self._has_ended[number]:
                await stage.rest()
        self.leave()

    def place(self) -> Place:
        """Give the place after the element given last."""
        for number, stage in enumerate(self.upstream):
            if self._places[number] is None:
                self._places[number] = stage.place()
        place: Place = {"stages": list(self._places)}
        if any(self._has_ended):
            place["ended"] = [i for i, has_ended in enumerate(self._has_ended) if has_ended]
        return place

    def go_to(self, place: Mapping[str, Any]) -> None:
        """Go to a place."""
        places = part_of(place, "stages", list)
        for stage, its in zip(self.upstream, places, strict=True):
            stage.go_to(its)
        self._forget()
        for number in place.get("ended", ()):
            self._has_ended[number] = True
        self._goes_on = True

    def leave(self) -> None:
        """Leave the epoch unfinished, if there is one."""
        for number, stage in enumerate(self.upstream):
            if not self._has_ended[number]:
                stage.leave()
        self._forget()

    def next_epoch(self) -> None:
        """Make the next epoch the one that follows this one."""
        for number, stage in enumerate(self.upstream):
            if not self._has_ended[number]:
                stage.next_epoch()
        self._forget()

    def reset(self) -> None:
        """Go back to the beginning of the first epoch."""
        super().reset()
        self._forget()

    def _forget(self) -> None:
        self._has_ended = [False] * len(self.upstream)
        self._places = [None] * len(self.upstream)
        self._goes_on = False


class Zip(Combination):
    """One element of each stage, in one mapping."""

    def __init__(self, stages: Sequence[Stage], *, strict: bool) -> None:
        super().__init__(stages)
        self._is_strict = strict
        self._call = "zip" if strict else "zip[strict=False]"
        self._taken: list[Element] = []  # for the next element

    def begin(self, mode: Mode) -> None:
        """Begin an epoch."""
        self._taken = []
        super().begin(mode)

    async def advance(self) -> Element:
        """Give the next element, `END` after the last."""
        taken = self._taken
        while len(taken) < len(self.upstream):
            element = await self._take(len(taken))
            if element is END and not self._is_strict:
                break
            taken.append(element)
        self._taken = []
        if any(self._has_ended):
            if self._is_strict and not all(self._has_ended):
                raise self._uneven()
            await self._end()
            return END
        return self._merged(taken)

    def _merged(self, taken: list[Element]) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        number = 0
        for element in taken:
            columns = mapping_of(element, "zip")
            merged.update(columns)
            number += len(columns)
        if len(merged) < number:
            names = [name for element in taken for name in element]
            raise clash([name for name in merged if names.count(name) > 1])
        return merged

    def _uneven(self) -> StreamError:
        ended = self._has_ended.index(True)
        other = self._has_ended.index(False)
        return StreamError(
            f"of the zipped streams, number {ended} ({self.upstream[ended].name}) has ended, and "
            f"number {other} ({self.upstream[other].name}) has not; expected epochs of one length; "
            "make them so, or give strict=False to end with the shortest"
        )


class Concatenate(Combination):
    """The elements of one stage after the other."""

    _call = "concatenate"

    async def advance(self) -> Element:
        """Give the next element, `END` after the last."""
        for number in range(len(self.upstream)):
            if not self._has_ended[number]:
                element = await self._take(number)
                if element is not END:
                    return element
        await self._end()
        return END


class Mix(Combination):
    """Each element from one of the stages, chosen at random by weight."""

    def __init__(
        self, stages: Sequence[Stage], weights: list[float], seed: int, *, until_all: bool
    ) -> None:
        super().__init__(stages)
        self._weights = weights
        self._seed = seed
        self._until_all = until_all
        self._epoch = 0
        self._choices = 0
        self._chosen: int | None = None  # and has not given yet
        self._draws: list[float] = []
        self._drawn: tuple[int, int] | None = None  # the epoch and block of those
        self._bounds: list[float] | None = None

    @property
    def name(self) -> str:
        """What kind of chain this is."""
        names = ", ".join(stage.name for stage in self.upstream)
        stop = "all" if self._until_all else "first"
        return f"mix({names}; weights={self._weights}, seed={self._seed}, stop={stop})"

    async def advance(self) -> Element:
        """Give the next element, `END` after the last."""
        while True:
            chosen = self._choose() if self._chosen is None else self._chosen
            if chosen is None:
                await self._end()
                return END
            self._chosen = chosen
            element = await self._take(chosen)
            self._chosen = None
            if element is not END:
                self._choices += 1
                return element
            self._bounds = None
            if not self._until_all:
                await self._end()
                return END

    def _choose(self) -> int | None:
        """Choose the stage of the next element, None when all have ended."""
        if self._bounds is None:
            left = [
                0.0 if has_ended else weight
                for weight, has_ended in zip(self._weights, self._has_ended, strict=True)
            ]
            self._bounds = list(accumulate(left))
        if not self._bounds[-1]:
            return None
        block, number = divmod(self._choices, _BLOCK)
        if self._drawn != (self._epoch, block):
            generator = np.random.default_rng((self._seed, self._epoch, block))
            self._draws = generator.random(_BLOCK).tolist()
            self._drawn = (self._epoch, block)
        # Of those with the same bound, which weigh nothing, it is never a later one.
        wanted = self._draws[number] * self._bounds[-1]
        return min(bisect_right(self._bounds, wanted), self._last)

    @property
    def _last(self) -> int:
        """The last stage that can be chosen, for a product may be rounded up to the bound."""
        assert self._bounds is not None
        return self._bounds.index(self._bounds[-1])

    def place(self) -> Place:
        """Give the place after the element given last."""
        return {"epoch": self._epoch, "choices": self._choices, **super().place()}

    def go_to(self, place: Mapping[str, Any]) -> None:
        """Go to a place."""
        self._epoch = part_of(place, "epoch", int)
        self._choices = part_of(place, "choices", int)
        super().go_to(place)

    def leave(self) -> None:
        """Leave the epoch unfinished, if there is one."""
        super().leave()
        self._end_epoch()

    def next_epoch(self) -> None:
        """Make the next epoch the one that follows this one."""
        super().next_epoch()
        self._choices += 1  # which makes this an epoch
        self._end_epoch()

    def _end_epoch(self) -> None:
        if self._choices:
            self._epoch += 1
            self._choices = 0

    def reset(self) -> None:
        """Go back to the beginning of the first epoch."""
        super().reset()
        self._epoch = self._choices = 0

    def _forget(self) -> None:
        super()._forget()
        self._chosen = self._bounds = None


def clash(names: list[str]) -> StreamError:
    """Give the error of streams that have sources of the same name."""
    return StreamError(
        f"of the zipped streams several have the source {', '.join(map(repr, names))}; expected "
        "no name twice; rename it in one with rename({...}), or leave it out with select(...)"
    )
