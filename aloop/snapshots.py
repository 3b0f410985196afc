"""The state of a whole training: taken at a boundary, and put back."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from aloop.callbacks import Position
from aloop.checkpoints.generators import global_states, load_global_states
from aloop.checkpoints.published import State
from aloop.log.base import TrainingLog
from aloop.offload import run_in_worker
from aloop.protocols import Algorithm, Stateful, Stream
from aloop.states import (
    algorithm_state,
    has_state,
    load_algorithm_state,
    load_model_state,
    load_state,
    model_of,
    model_state,
    state_keeper,
)
from aloop.streams.cursor import Place, go_to

__all__ = ["Trained", "add_model", "put_back", "stateless", "take"]

_logger = logging.getLogger("aloop")


class _Named(Protocol):
    """An extension, as its state sees it."""

    @property
    def name(self) -> str: ...


class Trained(Protocol):
    """A training whose state is taken."""

    algorithm: Algorithm
    data_stream: Stream
    model: Any
    log: TrainingLog

    @property
    def position(self) -> Position:
        """Where it is."""
        ...

    def place(self) -> Place:
        """Tell the place in the stream that was consumed."""
        ...

    def extensions(self) -> Iterable[_Named]:
        """Give its extensions, and those inside them."""
        ...

    def go_to(self, position: Position, iterator: Any, to_skip: int) -> None:
        """Be at a position, with the iterator of its epoch, of which batches may be left out."""
        ...


def take(training: Trained, *, global_rng: bool) -> State:
    """Take the state of all but the algorithm and the model, and but the rows of the log.

    In the thread of the event loop: others may use the stream and the extensions there.
    """
    state: State = {
        "position": training.position.to_dict(),
        "log": training.log.head(),
        "stream": training.place(),
        "extensions": {
            name: extension.state_dict()
            for name, extension in _by_name(training.extensions()).items()
        },
    }
    if global_rng:
        state["global_generators"] = global_states()
    return state


def add_model(training: Trained, state: State) -> State:
    """Add to a state the algorithm's and the model's, and the rows of the log."""
    model = model_of(training.model, training.algorithm)
    state["log"]["rows"] = training.log.columns()
    state["algorithm"] = algorithm_state(training.algorithm, model)
    state["model"] = model_state(model)
    return state


def _by_name(extensions: Iterable[_Named]) -> dict[str, Stateful]:
    """Give the extensions that have a state, by name: never by their places in the list."""
    named: dict[str, Stateful] = {}
    for extension in extensions:
        if isinstance(extension, Stateful):
            name, number = extension.name, 2
            while name in named:
                name, number = f"{extension.name}#{number}", number + 1
            named[name] = extension
    return named


def stateless(training: Trained) -> list[tuple[object, str]]:
    """Give what has no state that could be saved, with how messages call it."""
    algorithm, model = training.algorithm, model_of(training.model, training.algorithm)
    found: list[tuple[object, str]] = []
    if model is not None and not has_state(model):
        found.append(
            (model, f"the model {model!r:.80} has neither state_dict() nor get_parameter_values()")
        )
    if state_keeper(algorithm) is None:
        found.append((algorithm, f"the algorithm {algorithm!r:.200} has no state_dict()"))
    return found


async def put_back(
    training: Trained,
    state: Mapping[str, Any],
    *,
    iteration_state: bool,
    log: bool,
    global_rng: bool = False,
) -> None:
    """Put back the state of a training: the model's, and what else is wanted.

    Raises `LogBehindError` or `CheckpointValueError`, naming what does not fit.
    """
    recall = await training.log.recall(state["log"]) if log else None
    model = model_of(training.model, training.algorithm)
    if state["model"] is not None or has_state(model):
        await run_in_worker(load_model_state, model, state["model"])
    if iteration_state:
        position = Position.from_dict(state["position"])
        await run_in_worker(load_algorithm_state, training.algorithm, state["algorithm"])
        _load_extensions(training, state["extensions"])
        in_epoch = position.stage.in_epoch
        place = go_to(training.data_stream, state["stream"], position.batch, in_epoch=in_epoch)
        training.go_to(position, *place)
    if global_rng:
        _load_global(state)
    if recall is not None:
        recall()
        if not iteration_state:
            training.log.status["epoch_started"] = False  # its next one is a new one


def _load_extensions(training: Trained, states: Mapping[str, Any]) -> None:
    extensions = _by_name(training.extensions())
    for name in states.keys() - extensions.keys():
        _logger.warning(
            "the checkpoint has a state of the extension %r, which is not there now; it is left "
            "out",
            name,
        )
    for name, extension in extensions.items():
        if name in states:
            load_state(f"the extension {name!r}", extension, states[name])
        else:
            _logger.warning("the checkpoint has no state of the extension %r; it begins anew", name)


def _load_global(state: Mapping[str, Any]) -> None:
    if "global_generators" in state:
        load_global_states(state["global_generators"])
    else:
        _logger.warning(
            "the checkpoint has no states of the global random generators; save it with "
            "Checkpoint(…, global_rng=True)"
        )
