"""One epoch of a stream that is made of stages, and how it is gone through.

A stage gives elements, which are batches or examples, one at a time; it takes what it makes them
of from the stages upstream. Each remembers its place. The stages are coroutines. A chain in which
nothing waits is advanced synchronously, and none of them ever suspends; any other one is an async
iterator.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any, Final, Self, TypeAlias

from aloop.errors import StreamError
from aloop.streams.bridge import END

__all__ = [
    "AsyncEpochIterator",
    "Deferred",
    "Following",
    "Mode",
    "Place",
    "Stage",
    "SyncEpochIterator",
    "iterator_of",
    "part_of",
]

Place: TypeAlias = dict[str, Any]
"""What is needed to go on after the element that was given last: JSON values and arrays. It is
never changed once it was made, so that places may share what they are made of."""

# An element is whatever a stream gives. Hence Any.
Element: TypeAlias = Any

Run: TypeAlias = Callable[[Callable[[], Element]], Awaitable[Element]]
"""Calls a function in a thread."""


class Mode:
    """How one epoch is gone through; there is one of these for each."""

    __slots__ = ("is_ahead", "is_async")

    def __init__(self, *, is_async: bool) -> None:
        self.is_async = is_async
        """Whether it is gone through by an async iterator. Final when the epoch has begun."""
        self.is_ahead = False
        """Whether something fetches ahead, which is cancelled between two runs."""


class Deferred:
    """An element of which the place is known, and that is yet to be made.

    It can be made anywhere, beside others, and again, should that fail.

    Parameters:
        value: the element, where it is there.
        make: makes it, in a thread.
        make_async: makes it, in the event loop, and is given what calls functions in a thread.
    """

    __slots__ = ("_make", "_make_async", "value")

    def __init__(
        self,
        value: Element = END,
        *,
        make: Callable[[], Element] | None = None,
        make_async: Callable[[Run], Awaitable[Element]] | None = None,
    ) -> None:
        self.value = value
        """The element, `END` where it is yet to be made."""
        self._make = make
        self._make_async = make_async

    @property
    def is_async(self) -> bool:
        """True if an async function takes part in it."""
        return self._make_async is not None

    async def made(self, run: Run) -> Element:
        """Make the element."""
        if self._make is not None:
            return await run(self._make)
        if self._make_async is not None:
            return await self._make_async(run)
        return self.value

    def then(self, function: Callable[[Element], Element], *, is_light: bool = False) -> "Deferred":
        """Give what a sync function makes of this; a light one needs no thread of its own."""
        make, value = self._make, self.value
        if make is not None:
            return Deferred(make=lambda: function(make()))
        if value is not END:
            if is_light:
                return Deferred(function(value))
            return Deferred(make=lambda: function(value))

        async def make_async(run: Run) -> Element:
            value = await self.made(run)
            return function(value) if is_light else await run(lambda: function(value))

        return Deferred(make_async=make_async)

    def then_async(self, function: Callable[[Element], Awaitable[Element]]) -> "Deferred":
        """Give what an async function makes of this."""

        async def make_async(run: Run) -> Element:
            return await function(await self.made(run))

        return Deferred(make_async=make_async)

    @classmethod
    def joined(
        cls, parts: "list[Deferred]", join: Callable[[list[Element]], Element]
    ) -> "Deferred":
        """Give what is made of several."""
        if any(part.is_async for part in parts):

            async def make_async(run: Run) -> Element:
                return join([await part.made(run) for part in parts])

            return cls(make_async=make_async)
        return cls(
            make=lambda: join([part._make() if part._make else part.value for part in parts])
        )


class Stage(ABC):
    """What gives the elements of an epoch, one at a time.

    One that is cancelled in `advance` loses nothing: the next call goes on with what it had.
    """

    upstream: "tuple[Stage, ...]" = ()
    """The stages from which this one takes what it makes its elements of."""

    mode: Mode = Mode(is_async=False)
    """That of the newest epoch."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What kind of chain this is, with all that its places depend on."""

    @property
    def is_async(self) -> bool:
        """True where it is known, before an epoch is begun, that something in it waits."""
        return any(stage.is_async for stage in self.upstream)

    @property
    def begins_in_thread(self) -> bool:
        """True if to begin an epoch may take long."""
        return any(stage.begins_in_thread for stage in self.upstream)

    def begin(self, mode: Mode) -> None:
        """Begin an epoch: the rest of the one that the place is in, else the next."""
        self.mode = mode
        for stage in self.upstream:
            stage.begin(mode)

    @abstractmethod
    async def advance(self) -> Element:
        """Give the next element; `END` after the last, and the place is then the next epoch's."""

    async def defer(self) -> "Deferred | Any":  # or END, which has no type of its own
        """Go on to the next element, and give what makes this one; `END` after the last."""
        element = await self.advance()
        return END if element is END else Deferred(element)

    @abstractmethod
    def place(self) -> Place:
        """Give the place right after the element given last; between epochs, the next one's."""

    @abstractmethod
    def go_to(self, place: Mapping[str, Any]) -> None:
        """Go to a place; `begin` goes on from there."""

    def leave(self) -> None:
        """Leave the epoch unfinished, if there is one."""
        for stage in self.upstream:
            stage.leave()

    def next_epoch(self) -> None:
        """Make the next epoch the one that follows this one."""
        for stage in self.upstream:
            stage.next_epoch()

    def reset(self) -> None:
        """Go back to the beginning of the first epoch."""
        for stage in self.upstream:
            stage.reset()

    async def rest(self) -> None:
        """Let go of threads and tasks between two runs, and keep the place and what was read."""
        for stage in self.upstream:
            await stage.rest()

    def close(self) -> None:
        """Let go of all that is held open."""
        for stage in self.upstream:
            stage.close()


class Following(Stage):
    """A stage that follows on a single one, and whose place is that of this one."""

    def __init__(self, stage: Stage) -> None:
        self.upstream = (stage,)
        self._stage = stage

    def place(self) -> Place:
        """Give the place after the element given last."""
        return self._stage.place()

    def go_to(self, place: Mapping[str, Any]) -> None:
        """Go to a place."""
        self._stage.go_to(place)


def part_of(place: Mapping[str, Any], key: str, kind: type | tuple[type, ...]) -> Any:
    """Give a part of a place; `StreamError` for what no stage has given as its place."""
    part = place.get(key)
    if not isinstance(part, kind) or (isinstance(part, int) and (part is True or part < 0)):
        raise StreamError(
            f"the stream's state has a place with {key} {part!r:.80}; expected what state_dict() "
            "gave; give it that"
        )
    return part


Convert: TypeAlias = Callable[[Element], Element]

_LEFT: Final = (
    "this epoch iterator was left for a later one, or its stream went elsewhere; expected the "
    "newest of its stream; call get_epoch_iterator() once for each epoch"
)


class SyncEpochIterator(Iterator[Element]):
    """The elements of an epoch in which nothing waits.

    Parameters:
        stage: gives them.
        convert: makes of each what the caller wants.
    """

    def __init__(self, stage: Stage, convert: Convert | None) -> None:
        self._stage = stage
        self._convert = convert
        self._mode = stage.mode
        self._has_ended = False
        self._place: Place | None = None

    def __next__(self) -> Element:
        if self._has_ended:
            self._place = None
            raise StopIteration
        if self._stage.mode is not self._mode:
            raise StreamError(_LEFT)
        self.place()  # which holds until there is another element
        try:
            self._stage.advance().send(None)
        except StopIteration as given:
            element = given.value
        else:
            raise RuntimeError("a stage of a sync epoch has waited")  # which none does
        self._place = None
        if element is END:
            self._has_ended = True
            raise StopIteration
        return element if self._convert is None else self._convert(element)

    def place(self) -> Place:
        """Give the place right after what was given last, though the next has failed."""
        if self._place is None:
            self._place = self._stage.place()
        return self._place


class AsyncEpochIterator(AsyncIterator[Element]):
    """The elements of an epoch in which something waits.

    Parameters:
        stage: gives them.
        convert: makes of each what the caller wants.
    """

    def __init__(self, stage: Stage, convert: Convert | None) -> None:
        self._stage = stage
        self._convert = convert
        self._mode = stage.mode
        self._has_ended = False
        self._is_under_way = False
        self._place: Place | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Element:
        if self._has_ended:
            self._place = None
            raise StopAsyncIteration
        if self._stage.mode is not self._mode:
            raise StreamError(_LEFT)
        if self._is_under_way:
            raise StreamError(
                "the next element is asked for while another is awaited; expected one at a time; "
                "await the first, or make several at once with prefetch(depth, workers=n)"
            )
        self.place()  # which holds until there is another, whatever comes of this
        self._is_under_way = True
        try:
            element = await self._stage.advance()
        except Exception:
            await self.rest()  # for perhaps nobody asks again
            raise
        finally:
            self._is_under_way = False
        if element is END:
            self._has_ended = True
            await self.rest()  # in which it may be cancelled, and has told nobody of the end
        self._place = None
        if element is END:
            raise StopAsyncIteration
        return element if self._convert is None else self._convert(element)

    def place(self) -> Place:
        """Give the place right after what was given last, though the next may be under way."""
        if self._place is None:
            self._place = self._stage.place()
        return self._place

    async def rest(self) -> None:
        """Let go of threads and tasks between two runs, and keep the place and what was read."""
        if self._stage.mode is self._mode:
            await self._stage.rest()


def iterator_of(stage: Stage, convert: Convert | None) -> SyncEpochIterator | AsyncEpochIterator:
    """Begin an epoch and give its iterator."""
    mode = Mode(is_async=stage.is_async)
    stage.begin(mode)
    kind = AsyncEpochIterator if mode.is_async else SyncEpochIterator
    return kind(stage, convert)
