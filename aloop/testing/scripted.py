"""An algorithm and a stream that do what a script says, batch by batch."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from inspect import isawaitable
from typing import Any, Final, TypeAlias, TypeGuard, cast

from aloop.algorithms import TrainingAlgorithm
from aloop.errors import ArgumentError, StreamError, seconds_of
from aloop.protocols import Batch
from aloop.streams.indexed import CountedStream, counts_in
from aloop.testing.recorder import Recorder

__all__ = ["Act", "Gate", "ScriptedAlgorithm", "ScriptedStream", "Wait"]


@dataclass(frozen=True, slots=True)
class Wait:
    """An act that waits so many seconds, by the clock of the event loop."""

    seconds: float

    def __post_init__(self) -> None:
        seconds = seconds_of(self.seconds)
        if seconds is None or seconds == float("inf"):
            raise ArgumentError(
                f"seconds is {self.seconds!r}; expected a number of them, 0 or more; use a Gate "
                "for what waits until the test says so"
            )

    async def passed(self) -> None:
        """Wait."""
        await asyncio.sleep(self.seconds)


class Gate:
    """An act that waits until the test opens it; one that is open lets everybody through."""

    def __init__(self) -> None:
        self._is_reached = asyncio.Event()
        self._is_open = asyncio.Event()

    def __repr__(self) -> str:
        states = [
            "open" if self._is_open.is_set() else "closed",
            "reached" if self._is_reached.is_set() else "not reached",
        ]
        return f"<{type(self).__name__} {', '.join(states)}>"

    async def reached(self) -> None:
        """Wait until somebody has come to it."""
        await self._is_reached.wait()

    def open(self) -> None:
        """Let through who waits, and who comes."""
        self._is_open.set()

    async def passed(self) -> None:
        """Wait until it is open."""
        self._is_reached.set()
        await self._is_open.wait()


# What a callable is given is a batch, and what it gives is what an algorithm returns, or a
# coroutine that does.
Act: TypeAlias = (
    Mapping[str, Any]
    | BaseException
    | type[BaseException]
    | Wait
    | Gate
    | Callable[[Batch], Awaitable[Mapping[str, Any] | None] | Mapping[str, Any] | None]
    | None
)
"""What a `ScriptedAlgorithm` does with a batch: quantities, or None, are returned, an exception is
raised (but no `StopIteration` and no `StopAsyncIteration`), `Wait` and `Gate` wait, and a function
of the batch, sync or async, is called."""

_PLAIN_ACTS: Final = (Mapping, BaseException, Wait, Gate)

_ENDS: Final = (StopIteration, StopAsyncIteration)
"""What no coroutine and no iterator can raise as an error: it is taken for an end."""

_ACTS: Final = (
    "a mapping of quantities, None, an exception (but no StopIteration and no StopAsyncIteration), "
    "a Wait, a Gate or a function of the batch"
)


class ScriptedAlgorithm(TrainingAlgorithm):
    """An algorithm that plays one act of a script for each batch.

    As in::

        gate = Gate()
        algorithm = ScriptedAlgorithm([{"cost": 3.0}, gate, RuntimeError("in the step")])
        run = asyncio.create_task(MainLoop(algorithm, [1, 2, 3]).run())
        await gate.reached()  # in the second batch
        gate.open()

    After the end of the script it returns no quantities. Its state is how many acts it has begun,
    so that a training that is resumed goes on with the script.

    Parameters:
        script: the acts; see `Act`.
        repeat_last: play the last act again and again, after the end of the script.
        recorder: where ``("initialize",)`` and ``("process_batch", batch)`` are written.
    """

    def __init__(
        self,
        script: Iterable[Act],
        *,
        repeat_last: bool = False,
        recorder: Recorder | None = None,
    ) -> None:
        self._script = tuple(_checked_script(script))
        if repeat_last and not self._script:
            raise ArgumentError(
                "repeat_last is True, but the script is empty; expected an act to repeat; leave it "
                "out"
            )
        self._repeat_last = repeat_last
        self._record = _record_of(recorder)
        self.acts_begun = 0
        """How many acts it has begun, those after the end of the script included."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.acts_begun} of {len(self._script)} acts>"

    async def initialize(self) -> None:
        """Get ready, which takes nothing."""
        self._record("initialize")

    async def process_batch(self, batch: Batch) -> Mapping[str, Any] | None:
        """Play the next act."""
        self._record("process_batch", batch)
        act = self._next_act()
        if isinstance(act, (Wait, Gate)):
            await act.passed()
            return {}
        if _is_error(act):
            raise act
        if callable(act):
            result = cast("Callable[[Batch], Any]", act)(batch)
            return await result if isawaitable(result) else result
        return cast("Mapping[str, Any] | None", act)

    def _next_act(self) -> Act:
        number = self.acts_begun
        self.acts_begun += 1
        if number < len(self._script):
            return self._script[number]
        return self._script[-1] if self._repeat_last else {}

    def state_dict(self) -> dict[str, Any]:
        """Give how many acts it has begun, and of how many."""
        return {"acts_begun": self.acts_begun, "acts": len(self._script)}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Go on with the script where a state was taken."""
        known = isinstance(cast("object", state), Mapping)
        number, acts = (state.get("acts_begun"), state.get("acts")) if known else (None, None)
        if not (_is_count(number) and _is_count(acts)):
            raise ArgumentError(
                f"the algorithm's state is {state!r:.80}; expected a mapping with acts_begun and "
                "acts, whole numbers from 0 on; give what state_dict() gave"
            )
        if min(number, acts) > len(self._script):
            raise ArgumentError(
                f"the algorithm's state has {number} acts begun of {acts}; expected a place in "
                f"{self!r}; make the algorithm with the script that it had"
            )
        self.acts_begun = number


class ScriptedStream(CountedStream):
    """A stream whose epochs are lists of batches, and of what happens between them.

    As in::

        gate = Gate()
        stream = ScriptedStream([[1, 2, Wait(0.1), 3], [4, gate, 5, ConnectionError("gone")]])

    Its iterators are async ones. An exception is raised once, in place of a batch: who asks again
    gets what follows. An epoch after the last is refused with `StreamError`. Its state is the epoch
    and the place in its list, so that a training that is resumed goes on there.

    Parameters:
        epochs: the epochs, each of batches, which may be anything else, and of exceptions, `Wait`
            and `Gate`.
        recorder: where ``("get_epoch_iterator", epoch)``, ``("fetched", batch)``, ``("failed",
            error)`` and ``("exhausted", epoch)`` are written.
    """

    def __init__(
        self,
        epochs: Iterable[Iterable[Any]],  # of anything
        *,
        recorder: Recorder | None = None,
    ) -> None:
        super().__init__()
        self._epochs = [
            tuple(_checked_epoch(number, epoch))
            for number, epoch in enumerate(_iterable("epochs", epochs))
        ]
        if not self._epochs:
            raise StreamError("epochs is empty; expected one or more; write [[1, 2, 3]]")
        self._record = _record_of(recorder)

    def __repr__(self) -> str:
        lengths = ", ".join(str(len(epoch)) for epoch in self._epochs)
        return f"<{type(self).__name__} of epochs of {lengths}>"

    def get_epoch_iterator(self, *, as_dict: bool = True) -> AsyncIterator[Any]:
        """Begin the next epoch; after `load_state_dict` that is the rest of the one it was in."""
        begun = self._epoch if self._turn is None else self._epoch + 1
        if begun >= len(self._epochs):
            raise StreamError(
                f"epoch {begun} of {self!r} was asked for; expected no more than the "
                f"{len(self._epochs)} of its script; write another, or finish the training, with "
                "FinishAfter(after_n_epochs=…)"
            )
        turn = self._next_turn()
        self._record("get_epoch_iterator", self._epoch)
        return _Epoch(self, turn)

    async def advance(self, turn: object) -> Any:
        """Give the next batch of an epoch; `StopAsyncIteration` when it has ended.

        Parameters:
            turn: what the stream gave to the epoch's iterator.
        """
        while turn is self._turn:
            epoch = self._epochs[self._epoch]
            if self._batch >= len(epoch):
                self._record("exhausted", self._epoch)
                self.next_epoch()
                break
            act = epoch[self._batch]
            if isinstance(act, (Wait, Gate)):
                await act.passed()
                if turn is self._turn:
                    self._batch += 1
                continue
            self._batch += 1
            if _is_error(act):
                self._record("failed", act)
                raise act
            self._record("fetched", act)
            return act
        raise StopAsyncIteration  # also where it was left for a later one

    def state_dict(self) -> dict[str, Any]:
        """Give the epoch, and the place in its list that was consumed."""
        return {"epoch": self._epoch, "place": self._batch}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Go to a place that `state_dict` gave."""
        epoch, place = counts_in(state, "epoch", "place")
        lengths = [*map(len, self._epochs), 0]  # the last for the end of the script
        if epoch >= len(lengths) or place > lengths[epoch]:
            raise StreamError(
                f"the stream's state has epoch {epoch} and place {place}; expected a place in "
                f"{self!r}; make the stream with the script that it had"
            )
        self._move(epoch, place)


class _Epoch(AsyncIterator[Any]):
    """What one epoch of a `ScriptedStream` gives, from a place on."""

    def __init__(self, stream: ScriptedStream, turn: object) -> None:
        self._stream = stream
        self._turn = turn

    async def __anext__(self) -> Any:
        return await self._stream.advance(self._turn)


def _is_error(act: object) -> TypeGuard[BaseException | type[BaseException]]:
    return isinstance(act, BaseException) or (
        isinstance(act, type) and issubclass(act, BaseException)
    )


def _record_of(recorder: object) -> Callable[..., None]:
    if recorder is None:
        return lambda *_: None
    if isinstance(recorder, Recorder):
        return recorder.record
    raise ArgumentError(
        f"recorder is {recorder!r:.80}; expected a Recorder; give the one that is among the "
        "extensions"
    )


def _checked_script(script: object) -> Iterable[Act]:
    if not _is_listed(script):
        raise ArgumentError(f"the script is {script!r:.80}; expected acts, in a list; write [{{}}]")
    for number, act in enumerate(script):
        if not _is_act(act):
            raise ArgumentError(
                f"act {number} of the script is {act!r:.80} of type {type(act).__name__}; expected "
                f"{_ACTS}; write it as one of these"
            )
        yield act


def _checked_epoch(number: int, epoch: object) -> Iterable[Any]:
    for place, act in enumerate(_iterable("epoch", epoch, number)):
        if _is_end(act):
            expected, remedy = "another exception", "end the list where the epoch is to end"
        elif isinstance(act, type) and issubclass(act, (Wait, Gate)):
            expected, remedy = "one of these", f"write {act.__name__}(…), with parentheses"
        else:
            yield act
            continue
        raise StreamError(
            f"place {place} of epoch {number} is {act!r:.80}; expected {expected}; {remedy}"
        )


def _is_end(what: object) -> bool:
    return isinstance(what, _ENDS) or (isinstance(what, type) and issubclass(what, _ENDS))


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and value is not True and value >= 0


def _is_act(what: object) -> TypeGuard[Act]:
    if _is_end(what):
        return False
    if isinstance(what, type):
        return _is_error(what)
    return what is None or callable(what) or isinstance(what, _PLAIN_ACTS)


def _is_listed(what: object) -> TypeGuard[Iterable[object]]:
    return isinstance(what, Iterable) and not isinstance(what, (str, bytes, Mapping))


def _iterable(what: str, given: object, number: int | None = None) -> Iterable[Any]:
    if not _is_listed(given):
        name = what if number is None else f"{what} {number}"
        kind = "epochs" if number is None else "batches"
        raise StreamError(
            f"{name} is {given!r:.80} of type {type(given).__name__}; expected {kind}, in a list; "
            "write [[1, 2], [3, 4]] for two epochs of two batches"
        )
    return given
