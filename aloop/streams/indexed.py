"""Streams over data that is asked for by index, in the order of a scheme.

The place in such a stream is the number of the epoch and of the batches consumed in it: the
scheme says which examples come next, so that going on anywhere costs no more than beginning.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sized
from functools import partial
from typing import Any, Final, TypeGuard, cast

from aloop.errors import StreamError
from aloop.streams.base import DataStream
from aloop.streams.schemes import Indices, IterationScheme, Request

__all__ = ["EpochIterator", "IndexedStream", "one_length"]

_PLACE: Final = frozenset({"epoch", "batch"})


class IndexedStream(DataStream):
    """Base of the streams whose data is asked for by index; resumable at any batch.

    Parameters:
        iteration_scheme: which examples make up which batch, or come one at a time.

    A subclass has `sources` and `fetch`, and calls `check_reach` when it knows its length.
    """

    def __init__(self, iteration_scheme: IterationScheme) -> None:
        if not isinstance(cast("object", iteration_scheme), IterationScheme):
            raise StreamError(
                f"iteration_scheme is {iteration_scheme!r}; expected a SequentialScheme, "
                "ShuffledScheme or another scheme of aloop over the examples"
            )
        self.iteration_scheme = iteration_scheme
        self.produces_examples = iteration_scheme.requests_examples
        # The epoch of the next iterator, or of the one that is under way, and how many batches
        # were taken from it.
        self._epoch = 0
        self._batch = 0
        # Known to the iterator begun last, None before it is begun. The iterator itself is not
        # held: with it, a stream that nobody holds any more would wait for the collector.
        self._turn: object = None

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
        if self._turn is not None:
            self.next_epoch()
        self._turn = object()
        return EpochIterator(
            self.fetch if as_dict else self._fetch_tuple,
            self.iteration_scheme,
            epoch=self._epoch,
            batch=self._batch,
            consumed=partial(self._consumed, self._turn),
        )

    def next_epoch(self) -> None:
        """Make the next iterator begin the epoch after the present one."""
        self._move(self._epoch + 1, 0)

    def reset(self) -> None:
        """Go back to the beginning of the first epoch."""
        self._move(0, 0)

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
        _refuse_other_order(
            {key: value for key, value in state.items() if key not in _PLACE},
            self.iteration_scheme.state(),
        )
        epoch, batch = state.get("epoch"), state.get("batch")
        if not _is_count(epoch) or not _is_count(batch) or batch > len(self.iteration_scheme):
            raise StreamError(
                f"the stream's state has epoch {epoch!r} and batch {batch!r}; expected whole "
                f"numbers from 0 on, the batch at most {len(self.iteration_scheme)}; give what "
                "state_dict() gave"
            )
        self._move(epoch, batch)

    def check_reach(self, what: str, length: int) -> None:
        """Raise `StreamError` if the scheme asks for an example beyond the last.

        Parameters:
            what: how messages call what holds the examples, in the plural.
            length: how many there are.
        """
        last = int(self.iteration_scheme.indices.max())
        if last >= length:
            raise StreamError(
                f"the iteration scheme asks for example {last}, but {what} have {length}; "
                f"expected indices below {length}; make the scheme with examples={length}"
            )

    def _fetch_tuple(self, request: Request) -> tuple[Any, ...]:
        return tuple(self.fetch(request).values())

    def _move(self, epoch: int, batch: int) -> None:
        self._epoch = epoch
        self._batch = batch
        self._turn = None

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


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
