"""The stream over one of Fuel's, and the place in it."""

import threading
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any, NoReturn, cast

from aloop.checkpoints.generators import generator_states, load_generator_states
from aloop.errors import ArgumentError, StreamError, seconds_of
from aloop.streams.adapt import register_adapter
from aloop.streams.base import DataStream
from aloop.streams.cursor import OnResume
from aloop.streams.fuel.compat import datasets, streams
from aloop.streams.fuel.parts import (
    drawn_from_in_epochs,
    generators_in,
    is_scheme,
    is_stream,
    parts_of,
)
from aloop.streams.fuel.place import check_place, leave_out, replay_epochs, say_live
from aloop.streams.fuel.shape import (
    batches_of,
    changing_parts,
    check_batch_sizes,
    close_all,
    layout_of,
    refuse_request,
    servers_in,
    workers_in,
)

__all__ = ["FuelIterator", "FuelStream"]


class FuelStream(DataStream):
    """A stream out of one of Fuel's, which goes on exactly where a training was stopped.

    A batch, or an example, is a dictionary by source. The place is told by the states of the
    random generators that the streams, schemes, datasets and functions of the stream hold, as
    they were when the epoch began and as they are now, and by the number of batches consumed.
    To go back there the epoch is begun again, and so many requests are left out without a look at
    the data; where a batch is not one request, the batches are fetched again, and a warning
    counts them. A generator that a function looks up as a global is not found.

    Parameters:
        data_stream: a Fuel stream, which nobody else reads meanwhile. Fuel is not typed, hence Any.
        timeout_s: how long a ServerDataStream in it waits for a batch, in seconds; 60 unless given.

    ``len(stream)`` is the number of batches in an epoch, where that is known.
    Raises `StreamError` for what is no Fuel stream, and for a scheme of empty batches.
    """

    def __init__(self, data_stream: Any, *, timeout_s: float | None = None) -> None:
        self.data_stream = _checked(data_stream)
        parts = parts_of(data_stream)
        check_batch_sizes(parts)
        self.sources = tuple(data_stream.sources)
        if len(set(self.sources)) < len(self.sources):
            raise StreamError(
                f"the sources of {data_stream!r:.200} are {self.sources}; expected names that "
                "differ, for a batch is a dictionary; give them other names by Fuel's Rename"
            )
        self.iteration_scheme = data_stream.iteration_scheme
        try:
            self.produces_examples = bool(data_stream.produces_examples)
        except ValueError:  # it was never told, and only Fuel's transformers want to know
            self.produces_examples = False
        if timeout_s is not None:
            if not (seconds := seconds_of(timeout_s)):
                raise ArgumentError(
                    f"timeout_s is {timeout_s!r}; expected a number of seconds above 0; leave it "
                    "out for 60"
                )
            for part in servers_in(parts):
                part.timeout_s = seconds
        self._layout: str | None = None
        self._generators = generators_in(data_stream, warns=True)
        self._drawn_from: dict[str, Any] = {}  # while an epoch is under way
        self._initial = self._at_beginning = generator_states(self._generators)
        self._pending: Mapping[str, Any] | None = None  # the place that the next iterator goes to
        self.closings = 0
        """How often it was closed, for its iterators."""
        self._noting = threading.Lock()  # a batch, or that the stream is closed meanwhile
        self._go_to_first_epoch()

    def __repr__(self) -> str:
        return f"FuelStream({self.data_stream!r})"

    @property
    def begins_in_thread(self) -> bool:
        """True where the thread reads: a shuffle, or a replay, may take long."""
        return self.where == "thread"

    @property
    def axis_labels(self) -> Mapping[str, Any] | None:
        """The names of the axes by source, None if Fuel has none."""
        return self.data_stream.axis_labels

    def __len__(self) -> int:
        """Give the number of batches in an epoch; TypeError if it cannot be known."""
        length = batches_of(self.data_stream)
        if length is None:
            raise TypeError(
                f"the number of batches in an epoch of {self.data_stream!r:.200} is not known"
            )
        return length

    def get_epoch_iterator(self, *, as_dict: bool = True) -> "FuelIterator":
        """Begin the next epoch and give its iterator.

        After `load_state_dict`, or `close` in the middle of an epoch, it is the rest of that
        epoch. With `as_dict` a batch is a dictionary by source, otherwise what Fuel gives.
        """
        iterator = self._next_iterator()
        self._iterator = FuelIterator(self, iterator, as_dict=as_dict)
        return self._iterator

    def go_on(self, iterator: "FuelIterator") -> Any:
        """Give Fuel's iterator of the rest of an epoch that was closed; for the iterator alone."""
        if iterator is not self._iterator:
            raise StreamError(
                f"the stream {self!r:.200} was closed after the epoch of this iterator was left; "
                "expected its newest iterator; take one from get_epoch_iterator()"
            )
        try:
            return self._next_iterator()
        finally:
            self._iterator = iterator

    def _next_iterator(self) -> Any:
        parts = parts_of(self.data_stream)
        check_batch_sizes(parts)
        self._generators = generators_in(self.data_stream)
        pending = self._pending
        if pending is None:
            self._leave(has_ended=False)
            for part in workers_in(parts):
                part.background.settle()
            iterator = self._begin()
        else:
            iterator = self._enter(pending, parts)
            self._pending = None
        self._drawn_from = drawn_from_in_epochs(self.data_stream)
        self._at_beginning = generator_states(self._generators)
        return iterator

    def next_epoch(self) -> None:
        """Make the next iterator begin the epoch after the present one."""
        if self._pending is not None:
            self.get_epoch_iterator()
        self._leave(has_ended=False)

    def reset(self) -> None:
        """Go back to the beginning of the first epoch, with the generators as they were then."""
        self._go_to_first_epoch()
        self._pending = None
        self._generators = generators_in(self.data_stream)
        load_generator_states(self._generators, self._initial)
        self.data_stream.reset()

    def close(self) -> None:
        """Close files, sockets and processes of all that the stream is made of.

        In the middle of an epoch the place in it is kept: its iterator, or the next one, opens
        the stream again and goes on from there. What cannot be closed does not keep the rest
        open; its error comes after that.
        """
        with self._noting:
            # Between two epochs too, where the next depends on those before it.
            is_lost = self._before is not None or self._history
            if is_lost and self._pending is None:
                self._pending = self._place()
            self.closings += 1
        failures = close_all(self.data_stream)
        for other in failures[1:]:
            failures[0].add_note(f"closing the rest of the stream failed too: {other!r}")
        if failures:
            raise failures[0]

    def parts(self) -> Iterator[object]:
        """Give the stream, and the streams and generators in it, with what holds these."""
        yield self
        for part in parts_of(self.data_stream).values():
            if is_stream(part) or (is_scheme(part) and generators_in(part)):
                yield part
        yield from generators_in(self.data_stream).values()

    # Its place.

    def state_dict(self) -> dict[str, Any]:
        """Give the place consumed by the newest iterator."""
        with self._noting:
            return self._place()

    def _place(self) -> dict[str, Any]:
        if self._pending is not None:
            return deepcopy(dict(self._pending))
        is_begun = self._before is not None
        changing = generator_states(self._drawn_from if is_begun else self._generators)
        now = self._at_beginning | changing
        return {
            "layout": self._own_layout(),
            "epochs": self._epochs,
            "history": [list(epoch) for epoch in self._history],
            "batches": self._batches,
            "is_begun": is_begun,
            "before": self._before if is_begun else now,
            "now": now,
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Go to a place that `state_dict` gave; the next iterator goes on from there.

        Raises `StreamError` when the state is from a stream that is made of other parts, or of
        another number of examples.
        """
        self._generators = generators_in(self.data_stream)
        check_place(state, self._own_layout(), self._generators)
        self._pending = deepcopy(dict(state))
        self._iterator = self._before = None

    def _own_layout(self) -> str:
        if self._layout is None:
            self._layout = layout_of(parts_of(self.data_stream))
        return self._layout

    # Its epochs.

    def _go_to_first_epoch(self) -> None:
        self._iterator: FuelIterator | None = None
        self._before: dict[str, Any] | None = None  # the states when the epoch began, if one has
        self._epochs = 0  # that have ended, or were left
        self._batches = self._failed = 0  # consumed of the one under way, and failed since then
        # Of each epoch the batches consumed, and whether it has ended, where that is needed.
        self._history: list[tuple[int, bool]] = []

    def _begin(self) -> Any:
        self._before = generator_states(self._generators)
        self._batches = self._failed = 0
        return self.data_stream.get_epoch_iterator()

    def _leave(self, *, has_ended: bool) -> None:
        """Be between two epochs."""
        if self._before is None:
            return
        if changing_parts(parts_of(self.data_stream)):
            self._history.append((self._batches, has_ended))
        self._epochs += 1
        self._batches = 0
        self._iterator = self._before = None

    def _enter(self, place: Mapping[str, Any], parts: dict[str, Any]) -> Any:
        """Go to a place, and give the iterator of the rest of its epoch."""
        self._go_to_first_epoch()
        changing = changing_parts(parts)
        is_live = self.on_resume == "live" or bool(servers_in(parts))
        if changing and not is_live:
            load_generator_states(self._generators, self._initial)
            self.data_stream.reset()
            replay_epochs(self, self.data_stream, place["history"], changing)
        self._epochs = place["epochs"]
        self._history = [(batches, has_ended) for batches, has_ended in place["history"]]
        begin = place["now"] if is_live or not place["is_begun"] else place["before"]
        load_generator_states(self._generators, begin)
        if not changing or is_live:
            for part in workers_in(parts):
                part.background.begin_anew()
        iterator = self._begin()
        if place["is_begun"]:
            if is_live:
                say_live(self, place["batches"])
            else:
                batches, is_changing = place["batches"], bool(changing)
                leave_out(self, self.data_stream, iterator, batches, is_changing=is_changing)
                load_generator_states(self._generators, place["now"])
            self._before, self._batches = place["before"], place["batches"]
        return iterator

    def consumed(
        self, iterator: "FuelIterator", *, has_ended: bool = False, has_failed: bool = False
    ) -> None:
        """Note that an iterator has given a batch, its end or an error; for the iterator alone."""
        with self._noting:
            if iterator is not self._iterator:
                return  # it was left for a later one
            if has_failed:
                # Its request is gone here: what comes next is the batch after it.
                self._failed += 1
            elif has_ended:
                self._leave(has_ended=True)
            else:
                self._batches += 1 + self._failed
                self._failed = 0
                if self._pending is not None:  # it was closed while this one was fetched
                    self._pending = None
                    self._pending = self._place()


class FuelIterator(Iterator[Any]):
    """The batches of one epoch of a `FuelStream`, from where it was begun on."""

    def __init__(self, stream: FuelStream, iterator: Any, *, as_dict: bool) -> None:
        self._stream = stream
        self._iterator = iterator
        self._as_dict = as_dict
        self._sources = stream.sources
        self._closings = stream.closings
        self._has_ended = False

    def __next__(self) -> Any:
        if self._has_ended:
            raise StopIteration
        if self._closings != (closings := self._stream.closings):
            self._iterator = self._stream.go_on(self)
            self._closings = closings
        try:
            batch: object = next(self._iterator)
        except StopIteration as end:
            self._refuse_closed(end)
            self._has_ended = True
            self._stream.consumed(self, has_ended=True)
            raise
        except Exception as error:
            self._refuse_closed(error)
            self._stream.consumed(self, has_failed=True)
            refuse_request(self._stream.data_stream, error)
            raise
        self._stream.consumed(self)
        if not self._as_dict or isinstance(batch, dict):
            return cast("Any", batch)
        if not isinstance(batch, (tuple, list)):
            raise StreamError(
                f"the stream {self._stream!r:.200} gave {batch!r:.80} of type "
                f"{type(batch).__name__}; expected a tuple of {len(self._sources)} items, one for "
                f"each of its sources {self._sources}; let the last mapping in it return one"
            )
        data = cast("tuple[Any, ...]", batch)
        if len(data) != len(self._sources):
            raise StreamError(
                f"the stream {self._stream!r:.200} gave a batch of {len(data)} items; expected "
                f"{len(self._sources)}, one for each of its sources {self._sources}; look at what "
                "its mappings return, or give add_sources"
            )
        return dict(zip(self._sources, data, strict=True))

    def _refuse_closed(self, error: Exception) -> None:
        """Raise `StreamError` for what came because the stream was closed meanwhile."""
        if self._closings == self._stream.closings:
            return
        if isinstance(error, StreamError):
            raise error
        raise StreamError(
            f"the stream {self._stream!r:.200} was closed while a batch of it was fetched; "
            "expected it open as long as it is read; close it after the run"
        ) from error


def _checked(data_stream: Any) -> Any:
    if isinstance(data_stream, streams.AbstractDataStream):
        return data_stream
    raise StreamError(
        f"data_stream is {data_stream!r:.80} of type {type(data_stream).__name__}; expected a "
        "stream of Fuel; wrap a dataset in DataStream(dataset, iteration_scheme=…)"
    )


def _adapted(data_stream: Any, on_resume: OnResume) -> FuelStream:
    stream = FuelStream(data_stream)
    stream.on_resume = on_resume
    return stream


register_adapter(streams.AbstractDataStream, _adapted)


def _refuse_dataset(dataset: Any, _on_resume: OnResume) -> NoReturn:
    raise StreamError(
        f"the data stream is {dataset!r:.80}, which is a dataset of Fuel; expected a stream of it; "
        "wrap it in DataStream(dataset, iteration_scheme=…)"
    )


register_adapter(datasets.Dataset, _refuse_dataset)
