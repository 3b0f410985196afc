"""The stage that keeps the elements of the first epoch in memory, for those that follow."""

import logging
from collections.abc import Mapping
from typing import Any, TypeAlias, cast

from aloop.errors import StreamError, brief
from aloop.streams.bridge import END
from aloop.streams.stages.epochs import Following, Mode, Place, Stage, part_of

__all__ = ["Cache"]

# What a stream gives is whatever it is. Hence Any.
Element: TypeAlias = Any

_logger = logging.getLogger("aloop")


class Cache(Following):
    """Reads an epoch once, and gives its elements in each.

    An epoch that was left before its end is read on in the next one. The place is the number of
    elements given, and the place upstream before the first: a new process reads anew from there.
    """

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self._elements: list[Element] = []
        self._is_whole = False
        self._is_begun = False  # upstream
        self._beginning: Place | None = None  # the place upstream before the first element
        self._given = 0
        self._goes_on = False  # from a place

    @property
    def name(self) -> str:
        """What kind of chain this is."""
        return f"{self._stage.name}.cache()"

    def begin(self, mode: Mode) -> None:
        """Begin an epoch."""
        if not self._goes_on:
            self._given = 0
        self._goes_on = False
        if not self._is_begun:
            super().begin(mode)
            self._is_begun = True
            return
        self.mode = mode
        if not self._is_whole:
            mode.is_async = mode.is_async or self._stage.mode.is_async

    async def advance(self) -> Element:
        """Give the next element, `END` after the last."""
        if self._given >= len(self._elements):
            await self._read()
        if self._given >= len(self._elements):
            self._given = 0
            return END
        element = self._elements[self._given]
        self._given += 1
        # A new one each time, for steps may put something into it; the arrays are the same.
        return dict(cast("dict[Any, Any]", element)) if type(element) is dict else element

    async def _read(self) -> None:
        """Read on until the next element is there, or there is none."""
        if self._beginning is None:
            self._beginning = self._stage.place()
            if self._given:
                _logger.info("cache() reads %d elements anew, to go on after them", self._given)
        while not self._is_whole and len(self._elements) <= self._given:
            try:
                element = await self._stage.advance()
            except Exception as error:
                self._begin_anew(error)
                raise
            if element is not END:
                self._elements.append(element)
                continue
            self._is_whole = True
            if len(self._elements) < self._given:
                raise StreamError(
                    f"the epoch that cache() keeps has ended after {len(self._elements)} elements; "
                    f"expected the {self._given} that had been given when the state was saved; "
                    "give the stream the data that it had"
                )

    def _begin_anew(self, error: Exception) -> None:
        """Drop what was kept: what comes after an error may not be what is next."""
        beginning, self._beginning = self._beginning, None
        self._elements = []
        self._is_begun = False
        assert beginning is not None
        try:
            self._stage.go_to(beginning)
            self._stage.begin(self._stage.mode)
            self._is_begun = True
        except Exception as again:  # noqa: BLE001 - a note on what is raised already
            error.add_note(f"cache() could not begin its epoch anew: {brief(again)}")

    def place(self) -> Place:
        """Give the place after the element given last."""
        beginning = self._stage.place() if self._beginning is None else self._beginning
        return {"given": self._given, "stage": beginning}

    def go_to(self, place: Mapping[str, Any]) -> None:
        """Go to a place."""
        given = part_of(place, "given", int)
        self._stage.go_to(part_of(place, "stage", Mapping))
        self._forget()
        self._given = given
        self._goes_on = True

    def leave(self) -> None:
        """Leave the epoch unfinished, if there is one."""
        self._given = 0  # upstream the epoch is still under way
        self._goes_on = False

    def next_epoch(self) -> None:
        """Make the next epoch the one that follows this one."""
        self.leave()

    def reset(self) -> None:
        """Go back to the beginning of the first epoch."""
        super().reset()
        self._forget()

    def _forget(self) -> None:
        self._elements = []
        self._is_whole = self._is_begun = self._goes_on = False
        self._beginning = None
        self._given = 0
