"""Streams whose place is the number of the epoch and of the batches consumed in it.

Those over data that is asked for by index, in the order of a scheme, need nothing else: the
scheme says which examples come next, so that going on anywhere costs no more than beginning.
Those that go on by an iterator of somebody else's have to bring it there.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sized
from functools import partial
from typing import Any, Final, TypeGuard, cast

from aloop.errors import StreamError
from aloop.streams.base import DataStream
from aloop.streams.cursor import refuse_short
from aloop.streams.schemes import Indices, IterationScheme, Request

__all__ = [
    "CountedStream",
    "EpochIterator",
    "IndexedStream",
    "IteratedStream",
    "counts_in",
    "one_length",
]

_PLACE: Final = frozenset({"epoch", "batch"})


class CountedStream(DataStream):
    """Base of the streams that count the epochs, and the batches consumed in each."""

    def __init__(self) -> None:
        # The epoch of the next iterator, or of the one that is under way, and how many batches
        # were taken from it.
        self._epoch: int = 0
        self._batch: int = 0
        # Known to the iterator begun last, None before it is begun. The iterator itself is not
        # held: with it, a stream that nobody holds any more would wait for the collector.
        self._turn: object = None

    def next_epoch(self) -> None:
        """Make the next iterator begin the epoch after the present one."""
        self._move(self._epoch + 1, 0)

    def reset(self) -> None:
        """Go back to the beginning of the first epoch."""
        self._move(0, 0)

    def _next_turn(self) -> object:
        """Begin an epoch, the present one if it has not been, and give what its iterator knows."""
        if self._turn is not None:
            self.next_epoch()
        self._turn = object()
        return self._turn

    def _move(self, epoch: int, batch: int) -> None:
        self._epoch = epoch
        self._batch = batch
        self._turn = None


class IteratedStream(CountedStream):
    """Base of the streams that go through an iterator of somebody else's, epoch by epoch."""

    def __init__(self) -> None:
        super().__init__()
        self._running: Iterator[Any] | None = None  # of the epoch under way; None until needed
        self._left_out = 0  # how many batches are to be fetched and left out

    @abstractmethod
    def _begin(self) -> Iterator[Any]:
        """Begin the epoch that is next, or the one that is under way, at the place consumed.

        Where that cannot be done, begin it anew and set how many batches are to be left out.
        """

    def take(self, turn: object) -> Any:
        """Give the next batch of an epoch; `StopIteration` when it has ended.

        Parameters:
            turn: what the stream gave to the epoch's iterator.
        """
        if turn is not self._turn:
            raise StopIteration  # it was left for a later one
        try:
            if self._running is None:
                self._running = self._begin()
            while self._left_out:
                next(self._running)
                self._left_out -= 1
            batch = next(self._running)
        except StopIteration:
            refuse_short(self, self._batch - self._left_out, self._batch)
            self._end_epoch()
            raise
        except BaseException:
            # What has raised may say next that the epoch has ended. The next batch that is asked
            # for is this one again, from an iterator that is begun at the place consumed.
            self.close()
            raise
        self._batch += 1
        return batch

    def _end_epoch(self) -> None:
        self.next_epoch()

    def _move(self, epoch: int, batch: int) -> None:
        super()._move(epoch, batch)
        self._running = None
        self._left_out = 0


class IndexedStream(CountedStream):
    """Base of the streams whose data is asked for by index; resumable at any batch.

    Parameters:
        iteration_scheme: which examples make up which batch, or come one at a time.

    A subclass has `sources` and `fetch`, and calls `check_reach` when it knows its length.
    """

    def __init__(self, iteration_scheme: IterationScheme) -> None:
        super().__init__()
        if not isinstance(cast("object", iteration_scheme), IterationScheme):
            raise StreamError(
                f"iteration_scheme is {iteration_scheme!r}; expected a SequentialScheme, "
                "ShuffledScheme or another scheme of aloop over the examples"
            )
        self.iteration_scheme = iteration_scheme
        self.produces_examples = iteration_scheme.requests_examples

    @abstractmethod
    def fetch(self, request: Request) -> dict[str, Any]:
        """Give a new batch, or a single example, by source: what an epoch asks for at a time.

        It may be called in several threads at once, and changes no place.
        """

    def get_epoch_iterator(self, *, as_dict: bool = True) -> "EpochIterator":
        """Begin the next epoch and give its iterator.

        After `load_state_dict` it is the rest of the epoch that the state is from. With
        `as_dict` a batch is a dictionary by source, otherwise a tuple in the order of `sources`.
        """
        turn = self._next_turn()
        return EpochIterator(
            self.fetch if as_dict else self._fetch_tuple,
            self.iteration_scheme,
            epoch=self._epoch,
            batch=self._batch,
            consumed=partial(self._consumed, turn),
        )

    def __len__(self) -> int:
        """Give the number of batches in an epoch, of examples where they come one at a time."""
        return len(self.iteration_scheme)

    def state_dict(self) -> dict[str, Any]:
        """Give the place consumed: the epoch, the batches taken from it, and the order's key."""
        return {"epoch": self._epoch, "batch": self._batch, **self.iteration_scheme.state()}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Go to a place that `state_dict` gave; the next iterator goes on from there.

        Raises `StreamError` when the state is from a stream with another scheme, seed, batch
        size or number of examples.
        """
        given = _as_mapping(state)
        _refuse_other_order(
            {key: value for key, value in given.items() if key not in _PLACE},
            self.iteration_scheme.state(),
        )
        epoch, batch = counts_in(given, "epoch", "batch", batches=len(self.iteration_scheme))
        self._move(epoch, batch)

    def check_reach(self, what: str, length: int) -> None:
        """Raise `StreamError` if the scheme asks for an example beyond the last, or there is none.

        Parameters:
            what: how messages call what holds the examples, in the plural.
            length: how many there are.
        """
        if not length:
            raise StreamError(
                f"{what} have no examples; expected one or more; look at where they come from"
            )
        last = int(self.iteration_scheme.indices.max())
        if last >= length:
            raise StreamError(
                f"the iteration scheme asks for example {last}, but {what} have {length}; "
                f"expected indices below {length}; make the scheme with examples={length}"
            )

    def _fetch_tuple(self, request: Request) -> tuple[Any, ...]:
        return tuple(self.fetch(request).values())

    def _consumed(self, turn: object, batches: int | None) -> None:
        """Note how many batches were taken from an epoch; None when it has ended."""
        if turn is not self._turn:
            return  # it was left for a later one
        if batches is None:
            self.next_epoch()
        else:
            self._batch = batches


class EpochIterator(Iterator[Any]):
    """What one epoch of an `IndexedStream` gives, from a place on.

    The stream's place follows the iterator that was begun last.
    """

    def __init__(
        self,
        fetch: Callable[[Request], Any],
        scheme: IterationScheme,
        *,
        epoch: int,
        batch: int,
        consumed: Callable[[int | None], None],
    ) -> None:
        self._fetch = fetch
        self._scheme = scheme
        self._epoch = epoch
        self._batch = batch
        self._batches = len(scheme)
        self._consumed = consumed
        # Drawn when it is first needed, by the thread that needs it: shuffling takes its time.
        self._order: Indices | None = None

    def __next__(self) -> Any:
        # The place moves when the batch is there: one that could not be read is not consumed.
        batch = self._fetch(self._request())
        self._advance()
        return batch

    def defer(self) -> Callable[[], Any]:
        """Go on to the next batch, and give a function without arguments that makes this one.

        The function may be called later, in another thread, and beside others; and again, should
        it fail. Raises `StopIteration` at the end of the epoch.
        """
        request = self._request()
        self._advance()
        return partial(self._fetch, request)

    def _request(self) -> Request:
        if self._batch >= self._batches:
            self._consumed(None)
            raise StopIteration
        if self._order is None:
            self._order = self._scheme.epoch_indices(self._epoch)
        return self._scheme.request(self._order, self._batch)

    def _advance(self) -> None:
        self._batch += 1
        self._consumed(self._batch)


def counts_in(state: object, *names: str, batches: int | None = None) -> tuple[int, ...]:
    """Give numbers that a stream's state has, from 0 on; `StreamError` if they are no such thing.

    Parameters:
        state: what `load_state_dict` was given.
        names: of the numbers, in the order in which they are given.
        batches: the most that "batch" may be, unless it may be anything.
    """
    given = _as_mapping(state)
    counts: list[int] = []
    for name in names:
        value: object = given.get(name)
        most = batches if name == "batch" else None
        if not _is_count(value) or (most is not None and value > most):
            found = " and ".join(f"{each} {given.get(each)!r:.80}" for each in names)
            limit = "" if batches is None else f", the batch at most {batches}"
            raise StreamError(
                f"the stream's state has {found}; expected whole numbers from 0 on{limit}; give "
                "what state_dict() gave"
            )
        counts.append(value)
    return tuple(counts)


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _as_mapping(state: object) -> Mapping[str, Any]:
    if not isinstance(state, Mapping):
        raise StreamError(
            f"the stream's state is {state!r:.80} of type {type(state).__name__}; expected a "
            "mapping; give what state_dict() gave"
        )
    return cast("Mapping[str, Any]", state)


def one_length(what: str, columns: Mapping[str, Sized]) -> int:
    """Give the length that all columns have; `StreamError` if they differ.

    Parameters:
        what: how messages call the columns, in the plural.
        columns: by source, one or more.
    """
    lengths = {source: len(column) for source, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise StreamError(
            f"{what} differ in length: "
            + ", ".join(f"{source!r} has {length}" for source, length in lengths.items())
            + "; expected one length, that of the examples; leave out what is none of theirs"
        )
    return next(iter(lengths.values()))


def _refuse_other_order(given: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    # The kind of scheme first, for all else follows from it; then the length, which has words.
    for key in {"scheme": None, "num_examples": None, **own, **given}:
        was, has = given.get(key), own.get(key)
        if was == has:
            continue
        if key == "num_examples" and was is not None:
            raise StreamError(
                f"the data has changed its length: the stream's state was saved with {was} "
                f"examples in an epoch, and the stream has {has} now; expected the same order of "
                f"the same data; give the stream the {was} examples that it had, or call reset() "
                "to begin anew"
            )
        if isinstance(was, list) and isinstance(has, list):
            _refuse_other_parts(cast("list[Any]", was), cast("list[Any]", has))  # one may say why
        raise StreamError(
            f"the stream's state has {key} {was!r:.200}, but the stream has {has!r:.200}; "
            "expected the same order of the same data; make the stream as it was, or call reset() "
            "to begin anew"
        )


def _refuse_other_parts(given: list[Any], own: list[Any]) -> None:
    if len(given) != len(own):
        return
    for was, has in zip(given, own, strict=True):
        if isinstance(was, Mapping) and isinstance(has, Mapping):
            _refuse_other_order(cast("Mapping[str, Any]", was), cast("Mapping[str, Any]", has))
