"""The stages that make elements of the elements of a single stream."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np

from aloop.errors import StreamError
from aloop.streams.bridge import END
from aloop.streams.stages.columns import Rows, mapping_of, padded, stacked
from aloop.streams.stages.epochs import Deferred, Following, Mode, Place, Stage, part_of
from aloop.streams.stages.functions import Function

__all__ = ["Apply", "Batch", "Filter", "Map", "Unbatch", "padding", "renaming", "selecting"]

# What a stream gives is whatever it is. Hence Any.
Element: TypeAlias = Any


class _Calling(Following):
    """A stage that calls a function of the user's."""

    def __init__(self, stage: Stage, function: Function) -> None:
        super().__init__(stage)
        self._function = function
        self._kept: Element = END  # what the function is at, or was cancelled at

    @property
    def is_async(self) -> bool:
        return self._function.is_async or super().is_async

    def begin(self, mode: Mode) -> None:
        self._kept = END
        super().begin(mode)

    async def _apply(self, element: Element) -> Any:  # what the function returns
        """Call the function beside the event loop, and keep what it is called with meanwhile."""
        self._kept = element
        try:
            result = await self._function.apply(element)
        except Exception:
            self._kept = END
            raise
        self._kept = END
        return result

    async def rest(self) -> None:
        await self._function.rest()
        await super().rest()

    def close(self) -> None:
        self._function.end_thread()
        super().close()


class Map(_Calling):
    """What a function makes of each element."""

    @property
    def name(self) -> str:
        """What kind of chain this is."""
        return f"{self._stage.name}.map()"

    async def advance(self) -> Element:
        """Give the next element, `END` after the last."""
        element = self._kept
        if element is END:
            element = await self._stage.advance()
            if element is END:
                return END
        if self.mode.is_async:
            return await self._apply(element)
        return self._function(element)

    async def defer(self) -> "Deferred | Any":
        """Go on to the next element, and give what makes this one."""
        deferred = await self._stage.defer()
        if deferred is END:
            return END
        if self._function.is_async:
            return deferred.then_async(self._function.wait)
        return deferred.then(self._function)


class Filter(_Calling):
    """The elements that a predicate holds for."""

    @property
    def name(self) -> str:
        """What kind of chain this is."""
        return f"{self._stage.name}.filter()"

    async def advance(self) -> Element:
        """Give the next element, `END` after the last."""
        while True:
            element = self._kept
            if element is END:
                element = await self._stage.advance()
                if element is END:
                    return END
            if self.mode.is_async:
                holds = await self._apply(element)
            else:
                holds = self._function(element)
            if holds:
                return element


class Apply(Following):
    """What a function of aloop's makes of each element: a light one, that never waits.

    Parameters:
        function: makes it.
        call: how the stage is called in names.
    """

    def __init__(self, stage: Stage, function: Callable[[Element], Element], call: str) -> None:
        super().__init__(stage)
        self._function = function
        self._call = call

    @property
    def name(self) -> str:
        """What kind of chain this is."""
        return f"{self._stage.name}.{self._call}"

    async def advance(self) -> Element:
        """Give the next element, `END` after the last."""
        element = await self._stage.advance()
        return END if element is END else self._function(element)

    async def defer(self) -> "Deferred | Any":
        """Go on to the next element, and give what makes this one."""
        deferred = await self._stage.defer()
        return END if deferred is END else deferred.then(self._function, is_light=True)


class Batch(Following):
    """Batches of so many elements; the last of an epoch is shorter, or left out."""

    def __init__(self, stage: Stage, batch_size: int, *, drop_last: bool) -> None:
        super().__init__(stage)
        self._size = batch_size
        self._drops_last = drop_last
        self._elements: list[Element] = []  # of the next batch
        self._is_over = False  # upstream, and not yet here
        self._goes_on = False  # from a place

    @property
    def name(self) -> str:
        """What kind of chain this is."""
        last = ", drop_last=True" if self._drops_last else ""
        return f"{self._stage.name}.batch({self._size}{last})"

    def begin(self, mode: Mode) -> None:
        """Begin an epoch."""
        self._elements = []
        goes_on, self._goes_on = self._goes_on, False
        if self._is_over and goes_on:
            self.mode = mode  # and upstream the epoch has ended
            return
        self._is_over = False
        super().begin(mode)

    async def advance(self) -> Element:
        """Give the next element, `END` after the last."""
        elements = await self._gather(self._stage.advance)
        return stacked(elements) if elements else END

    async def defer(self) -> "Deferred | Any":
        """Go on to the next element, and give what makes this one."""
        parts = await self._gather(self._stage.defer)
        return Deferred.joined(parts, stacked) if parts else END

    async def _gather(self, advance: Callable[[], Any]) -> list[Any]:
        """Give the elements of the next batch, or what makes them; none after the last batch."""
        if self._is_over:
            self._is_over = False
            return []
        while len(self._elements) < self._size:
            element = await advance()
            if element is END:
                if self._drops_last:
                    self._elements = []
                self._is_over = bool(self._elements)
                break
            self._elements.append(element)
        elements, self._elements = self._elements, []
        return elements

    def place(self) -> Place:
        """Give the place after the element given last."""
        place = {"stage": self._stage.place()}
        return place | {"is_over": True} if self._is_over else place

    def go_to(self, place: Mapping[str, Any]) -> None:
        """Go to a place."""
        self._stage.go_to(part_of(place, "stage", Mapping))
        self._forget()
        self._is_over = bool(place.get("is_over"))
        self._goes_on = True

    def leave(self) -> None:
        """Leave the epoch unfinished, if there is one."""
        if not self._is_over:
            super().leave()
        self._forget()

    def next_epoch(self) -> None:
        """Make the next epoch the one that follows this one."""
        if not self._is_over:
            super().next_epoch()
        self._forget()

    def reset(self) -> None:
        """Go back to the beginning of the first epoch."""
        super().reset()
        self._forget()

    def _forget(self) -> None:
        self._elements = []
        self._is_over = self._goes_on = False


class Unbatch(Following):
    """The rows of each batch, one at a time."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self._rows: Rows | None = None  # of the batch that is given
        self._given = 0  # rows of it
        self._before: Place | None = None  # the place upstream before it
        self._goes_on = False  # from a place

    @property
    def name(self) -> str:
        """What kind of chain this is."""
        return f"{self._stage.name}.unbatch()"

    def begin(self, mode: Mode) -> None:
        """Begin an epoch."""
        self._forget(self._given if self._goes_on else 0)
        super().begin(mode)

    async def advance(self) -> Element:
        """Give the next element, `END` after the last."""
        while self._rows is None or self._given >= len(self._rows):
            if self._before is None or self._rows is not None:
                self._before = self._stage.place()
                if self._rows is not None:
                    self._rows, self._given = None, 0
            batch = await self._stage.advance()
            if batch is END:
                self._refuse_short(0)
                self._before = None
                return END
            rows = Rows(batch)
            self._refuse_short(len(rows))
            self._rows = rows
        row = self._rows[self._given]
        self._given += 1
        return row

    def _refuse_short(self, rows: int) -> None:
        if rows < self._given:
            raise StreamError(
                f"the batch that is given by unbatch() has {rows} rows; expected the "
                f"{self._given} that had been given of it when the state was saved; give the "
                "stream the data that it had"
            )

    def place(self) -> Place:
        """Give the place after the element given last."""
        if self._rows is None:
            return {"stage": self._before or self._stage.place(), "given": self._given}
        if self._given >= len(self._rows):
            return {"stage": self._stage.place(), "given": 0}
        return {"stage": self._before, "given": self._given}

    def go_to(self, place: Mapping[str, Any]) -> None:
        """Go to a place."""
        given = part_of(place, "given", int)
        self._stage.go_to(part_of(place, "stage", Mapping))
        self._forget(given)
        self._goes_on = True

    def leave(self) -> None:
        """Leave the epoch unfinished, if there is one."""
        super().leave()
        self._forget()

    def next_epoch(self) -> None:
        """Make the next epoch the one that follows this one."""
        super().next_epoch()
        self._forget()

    def reset(self) -> None:
        """Go back to the beginning of the first epoch."""
        super().reset()
        self._forget()

    def _forget(self, given: int = 0) -> None:
        self._rows = self._before = None
        self._given = given
        self._goes_on = False


def padding(sources: Iterable[str], mask_dtype: Any) -> Callable[[Element], Element]:  # a dtype
    """Give what pads sources of a batch, all if none is named, and adds a mask of each."""
    names = frozenset(sources)
    dtype = np.dtype(mask_dtype)

    def pad(element: Element) -> Element:
        batch = mapping_of(element, "pad()")
        _look_for(names, batch, "pad()")
        result: dict[str, Any] = {}
        for name, column in batch.items():
            if names and name not in names:
                result[name] = column
                continue
            if f"{name}_mask" in batch:
                raise StreamError(
                    f"pad() is to add the source '{name}_mask', which is there already; expected "
                    "a name that is free; rename one with rename({...}) before it"
                )
            result[name], result[f"{name}_mask"] = padded(name, column, dtype)
        return result

    return pad


def renaming(names: Mapping[str, str]) -> Callable[[Element], Element]:
    """Give what renames sources of a batch."""

    def rename(element: Element) -> Element:
        batch = mapping_of(element, "rename()")
        _look_for(names, batch, "rename()")
        renamed = {names.get(name, name): column for name, column in batch.items()}
        if len(renamed) < len(batch):
            taken = next(new for old, new in names.items() if new in batch and old != new)
            raise StreamError(
                f"rename() is to make a source {taken!r}, which is there already; expected names "
                "that differ; leave the other out with select(...) before it"
            )
        return renamed

    return rename


def selecting(names: tuple[str, ...]) -> Callable[[Element], Element]:
    """Give what selects sources of a batch, in their order."""

    def select(element: Element) -> Element:
        batch = mapping_of(element, "select()")
        _look_for(names, batch, "select()")
        return {name: batch[name] for name in names}

    return select


def _look_for(names: Iterable[str], batch: Mapping[str, Any], stage: str) -> None:
    for name in names:
        if name not in batch:
            raise StreamError(
                f"{stage} is to use source {name!r}, and an element has "
                f"{', '.join(map(repr, batch)) or 'none'}; expected one of these; correct the name"
            )
