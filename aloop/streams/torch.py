"""Streams over torch's data loaders; torch is optional, and imported here alone.

Importing this module lets `as_stream` make a `TorchStream` of a `DataLoader`.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any

from aloop.errors import MissingDependencyError, StreamError, brief
from aloop.streams.adapt import register_adapter
from aloop.streams.cursor import OnResume
from aloop.streams.indexed import IteratedStream, counts_in
from aloop.streams.torch_loaders import (
    GeneratorStates,
    Rest,
    as_states,
    end_workers,
    generators_of,
    identity_of,
    refuse_other_data,
    samplers_of,
    states_of,
    with_tensors,
    without_tensors,
)

__all__ = ["TorchStream"]

_logger = logging.getLogger("aloop")


class TorchStream(IteratedStream):
    """The batches of a torch `DataLoader`, as they come; resumable at any batch.

    The order of a resumed epoch is that which it had if the loader is seeded:
    ``DataLoader(…, shuffle=True, generator=torch.Generator().manual_seed(3))``. The state has the
    loader's and its sampler's generators as they were when the epoch began, and the number of
    batches consumed. A sampler or data set that has `set_epoch` is told the number of the epoch.

    A torchdata `StatefulDataLoader` tells its place itself, and that of its data set.

    Parameters:
        loader: the data loader. Nothing else should draw from its generators.
        refetch: how the batches consumed are left out when the epoch is resumed. True: they are
            fetched, so that what the data set draws at random in a worker is the same again.
            False: only the sampler goes through them, which takes next to no time. Unless given,
            they are fetched if the loader has workers that do not persist. They have to be, from
            an iterable data set and from a class that is derived from `DataLoader`. A
            `StatefulDataLoader` goes by its own state. What a data set draws at random without
            workers, or in persistent ones, is never the same again.

    Raises `MissingDependencyError` where torch is not installed.
    """

    def __init__(
        self,
        loader: Any,  # a DataLoader: torch may not be there to say so
        *,
        refetch: bool | None = None,
    ) -> None:
        super().__init__()
        self._data = _imported("torch.utils.data")
        if not isinstance(loader, self._data.DataLoader):
            raise StreamError(
                f"loader is {loader!r:.80} of type {type(loader).__name__}; expected a torch "
                "DataLoader; wrap a data set in one"
            )
        self._loader: Any = loader
        self._is_stateful = hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")
        self._refetch = refetch
        self._generators = generators_of(loader)
        self._first: GeneratorStates | None = None  # of the generators, when the first epoch began
        self._has_warned = False
        # What the generators were when the epoch that is under way began, None until it has.
        self._begun: GeneratorStates | None = None
        self._identity: dict[str, Any] | None = None
        # What a stateful loader has told: to be loaded, or only to be told again.
        self._pending: dict[str, Any] | None = None
        self._told: tuple[int, dict[str, Any]] | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._loader!r:.100})"

    def __len__(self) -> int:
        """Give the number of batches in an epoch; TypeError if the data set has no length."""
        return len(self._loader)

    def get_epoch_iterator(self, *, as_dict: bool = True) -> Iterator[Any]:
        """Begin the next epoch; batches come as they are, `as_dict` changes nothing.

        After `load_state_dict` it is the rest of the epoch that the state is from.
        """
        return _Epoch(self, self._next_turn())

    def reset(self) -> None:
        """Go back to the beginning of the first epoch."""
        super().reset()
        self._begun = self._first

    def close(self) -> None:
        """End the workers; they are started again when the stream is used again."""
        running, self._running = self._running, None
        end_workers(running)
        # Those that persist from one epoch to the next are held by the loader, which has no other
        # way to let go of them.
        end_workers(getattr(self._loader, "_iterator", None))
        self._loader._iterator = None  # noqa: SLF001
        if self._batch and self._told is not None and self._told[0] == self._batch:
            self._pending = self._told[1]

    def parts(self) -> Iterator[object]:
        """Give the stream and the loader, and what the loader takes its order from."""
        yield self
        yield self._loader
        yield from self._generators

    def state_dict(self) -> dict[str, Any]:
        """Give the place consumed: the epoch, its batches, and what the loader tells of it."""
        begun = states_of(self._generators) if self._begun is None else self._begun
        if self._identity is None:
            self._identity = identity_of(self._loader)
        state = {
            "epoch": self._epoch,
            "batch": self._batch,
            **self._identity,
            "generators": list(begun),
        }
        if self._is_stateful:
            state["loader"] = self._tell()
        return state

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Go to a place that `state_dict` gave; the next iterator goes on from there.

        Raises `StreamError` when the state is from a loader with other data or batches.
        """
        epoch, batch = counts_in(state, "epoch", "batch")
        begun = as_states(state.get("generators"))
        if begun is None:
            raise StreamError(
                f"the stream's state has generators {state.get('generators')!r:.80}; expected a "
                "list of their states; give what state_dict() gave"
            )
        refuse_other_data(state, identity_of(self._loader))
        if len(begun) != len(self._generators):
            raise StreamError(
                f"the state is of a data loader with {len(begun)} generators, and this one has "
                f"{len(self._generators)}; expected the loader that it was saved with; seed it as "
                "it was: generator=torch.Generator().manual_seed(…)"
            )
        self._move(epoch, batch)
        self._begun = begun
        self._pending = state.get("loader") if self._is_stateful else None

    def _move(self, epoch: int, batch: int) -> None:
        if not self._loader.persistent_workers:
            end_workers(self._running)
        super()._move(epoch, batch)
        self._begun = self._pending = self._told = self._identity = None

    def take(self, turn: object) -> Any:
        """Give the next batch of an epoch; `StopIteration` when it has ended.

        Raises `StreamError` when a worker is lost while it sends one. (Torch raises RuntimeError
        for a worker that it misses later.)
        """
        try:
            return super().take(turn)
        except (ConnectionError, EOFError) as error:
            if not self._loader.num_workers:
                raise
            raise StreamError(
                f"a worker process of {self!r} was lost while it sent a batch: {brief(error)}; "
                "expected it to live as long as its loader; look at what has killed it, such as "
                "want of memory"
            ) from error

    def _begin(self) -> Iterator[Any]:
        """Begin the epoch that is next, or the one that is under way, at the place consumed."""
        self._warn_once()
        loader = self._loader
        for part in (*samplers_of(loader), loader.dataset):
            if hasattr(part, "set_epoch"):
                part.set_epoch(self._epoch)
        if self._begun is None:
            self._begun = states_of(self._generators)
        else:
            self._put_back(self._begun)
        if self._first is None and not self._epoch:
            self._first = self._begun
        pending, self._pending = self._pending, None
        if pending is not None:
            return self._go_on(pending)
        if self._batch and not self._is_refetched():
            return iter(self._rest())
        if loader.persistent_workers:
            self._keep_workers(self._begun)
        if not self._batch:
            return iter(loader)
        advice = (
            "; TorchStream(…, refetch=False) leaves them out without fetching them, if what is "
            "random in the workers need not be the same again"
        )
        _logger.warning(
            "the epoch of %r is begun anew, and %d batches are fetched and left out%s",
            self,
            self._batch,
            advice if self._has_choice else "",
        )
        self._left_out = self._batch
        return iter(loader)

    def _go_on(self, pending: Mapping[str, Any]) -> Iterator[Any]:
        """Let a stateful loader go on by its own state."""
        self._loader.load_state_dict(with_tensors(pending["state"], _imported("torch").from_numpy))
        iterator = iter(self._loader)
        if self._batch:
            # On its way there it may have drawn more often than it had, or less often.
            self._put_back(as_states(pending["generators"]) or ())
        return iterator

    @property
    def _has_choice(self) -> bool:
        """True where batches can be left out without fetching them."""
        return type(self._loader) is self._data.DataLoader and not isinstance(
            self._loader.dataset, self._data.IterableDataset
        )

    def _is_refetched(self) -> bool:
        pays = self._loader.num_workers and not self._loader.persistent_workers
        return bool(pays if self._refetch is None else self._refetch) or not self._has_choice

    def _keep_workers(self, begun: GeneratorStates) -> None:
        """Have workers that persist from the first epoch on, in which their seed is drawn."""
        is_first = self._epoch == 0
        if is_first == (getattr(self._loader, "_iterator", None) is None):
            return
        if is_first:
            self.close()
        else:
            iter(self._loader)
            self._put_back(begun)  # from which the seed had not been drawn in this epoch

    def _rest(self) -> Any:
        """Make a loader of the batches that are left of the epoch."""
        loader = self._loader
        options: dict[str, Any] = {
            name: getattr(loader, name)
            for name in ("collate_fn", "pin_memory", "timeout", "worker_init_fn", "generator")
        }
        if loader.num_workers:
            names = ("num_workers", "multiprocessing_context", "prefetch_factor", "in_order")
            options |= {name: getattr(loader, name) for name in names if hasattr(loader, name)}
        if loader.persistent_workers and self._epoch:
            # No seed was drawn in this epoch, and now it must not be drawn from what orders it.
            options["generator"] = _imported("torch").Generator().manual_seed(self._epoch)
        if loader.batch_sampler is None:
            options |= {"sampler": Rest(loader.sampler, self._batch), "batch_size": None}
        else:
            options["batch_sampler"] = Rest(loader.batch_sampler, self._batch)
        return self._data.DataLoader(loader.dataset, **options)

    def _end_epoch(self) -> None:
        told = self._end_of_data_set() if self._is_stateful else None
        super()._end_epoch()
        self._told = told

    def _end_of_data_set(self) -> "tuple[int, dict[str, Any]] | None":
        # Without a data set that has a state of its own the next epoch depends on the generators
        # alone. A loader that has loaded the end of an epoch would have drawn from them.
        if not hasattr(self._loader.dataset, "state_dict"):
            return None
        return 0, {"state": without_tensors(self._loader.state_dict()), "generators": []}

    def _tell(self) -> dict[str, Any] | None:
        if self._running is not None and self._batch and not self._left_out:
            if self._told is None or self._told[0] != self._batch:
                state = without_tensors(self._loader.state_dict())
                told = {"state": state, "generators": list(states_of(self._generators))}
                self._told = self._batch, told
            return self._told[1]
        if self._pending is not None:
            return self._pending
        return self._told[1] if self._told is not None and self._told[0] == self._batch else None

    def _put_back(self, states: GeneratorStates) -> None:
        from_numpy = _imported("torch").from_numpy
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(from_numpy(state.copy()))

    def _warn_once(self) -> None:
        if self._has_warned or all(
            getattr(part, "generator", self) is not None for part in samplers_of(self._loader)
        ):
            return
        self._has_warned = True
        _logger.warning(
            "%r shuffles without a generator of its own, so that its order is another one when a "
            "training is resumed; for an exact resume make it with "
            "generator=torch.Generator().manual_seed(3)",
            self,
        )


class _Epoch(Iterator[Any]):
    """One epoch of a `TorchStream`."""

    def __init__(self, stream: TorchStream, turn: object) -> None:
        self._stream = stream
        self._turn = turn

    def __repr__(self) -> str:
        return f"epoch of {self._stream!r}"

    def __next__(self) -> Any:
        return self._stream.take(self._turn)


def _imported(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingDependencyError(
            "TorchStream needs torch, which cannot be imported; expected it to be installed; "
            "install the build of torch that is for your machine"
        ) from error


def _stream_of(loader: Any, _: OnResume) -> TorchStream:
    return TorchStream(loader)


with suppress(MissingDependencyError):  # TorchStream says so when it is used
    register_adapter(_imported("torch.utils.data").DataLoader, _stream_of)
