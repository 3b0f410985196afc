"""The state of a whole training: taken at a boundary, and put back."""

import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Protocol

from aloop.callbacks import Position
from aloop.checkpoints.generators import global_states, load_global_states
from aloop.checkpoints.packing import pack
from aloop.checkpoints.published import State
from aloop.errors import CheckpointValueError
from aloop.log.base import TrainingLog
from aloop.models import has_state, load_model_state, model_of, model_state
from aloop.offload import run_in_worker
from aloop.protocols import Algorithm, Stateful
from aloop.states import (
    algorithm_state,
    is_stateful,
    load_algorithm_state,
    load_state,
    state_keeper,
    state_of,
)
from aloop.streams.cursor import Place, is_replayed
from aloop.streams.reading import Reading

__all__ = ["Trained", "put_back", "stateless", "take", "take_model"]

_logger = logging.getLogger("aloop")


class _Named(Protocol):
    """An extension, as its state sees it."""

    @property
    def name(self) -> str: ...


class Trained(Protocol):
    """A training whose state is taken."""

    algorithm: Algorithm
    model: Any
    log: TrainingLog
    reading: Reading
    quantities: Mapping[str, Any]

    @property
    def position(self) -> Position:
        """Where it is."""
        ...

    @property
    def is_cut_off(self) -> bool:
        """Whether it ended in the middle of a batch or of a boundary."""
        ...

    def place(self) -> Place:
        """Tell the place in the stream that was consumed."""
        ...

    def extensions(self) -> Iterable[_Named]:
        """Give its extensions, and those inside them."""
        ...

    async def go_to(self, position: Position, place: Mapping[str, Any], /) -> None:
        """Be at a position, and go to its place in the stream."""
        ...


def take(training: Trained, *, global_rng: bool) -> State:
    """Take the state of all but the algorithm and the model, and but the rows of the log.

    In the thread of the event loop: others may use the stream and the extensions there.
    """
    state: State = {
        "position": training.position.to_dict(),
        "log": training.log.head(),
        "stream": training.place(),
        "quantities": _that_can_be_kept(training.quantities),
        "extensions": {
            name: state_of(f"the extension {name!r}", extension)
            for name, extension in _by_name(training.extensions()).items()
        },
    }
    if global_rng:
        state["global_generators"] = global_states()
    return state


def _that_can_be_kept(quantities: Mapping[str, Any]) -> dict[str, Any]:
    """Give those of the last batch's quantities that a checkpoint can hold."""
    kept: dict[str, Any] = {}
    for name, value in quantities.items():
        with suppress(CheckpointValueError):
            pack("a quantity", {name: value}, copies_up_to=0)
            kept[name] = value
    return kept


def take_model(training: Trained) -> State:
    """Take the rest of the state: the algorithm's, the model's, and the rows of the log.

    In the thread in which the steps are done.
    """
    model = model_of(training.model, training.algorithm)
    return {
        "rows": training.log.columns(),
        "algorithm": algorithm_state(training.algorithm, model),
        "model": model_state(model),
    }


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
    """Give what has no state that could be saved, with what is to be said of it."""
    algorithm, model = training.algorithm, model_of(training.model, training.algorithm)
    left_out = "nothing of it is in the checkpoints"
    found: list[tuple[object, str]] = []
    if model is not None and not has_state(model):
        what = f"the model {model!r:.80} has neither state_dict() nor get_parameter_values()"
        found.append((model, f"{what}: {left_out}"))
    if state_keeper(algorithm) is None:
        kept = "what it keeps beside the model is not in the checkpoints"
        if model is None:
            kept = f"{left_out}, and there is no model; give it as MainLoop(…, model=…)"
        found.append((algorithm, f"the algorithm {algorithm!r:.200} has no state_dict(): {kept}"))
    stream = training.reading.stream
    if is_replayed(stream, training.reading.iterator):
        what = f"the data stream {stream!r:.200} has no state_dict()"
        found.append((stream, f"{what}: who goes on fetches anew what was trained on"))
    found += [
        (each, f"the extension {each.name!r} has no load_state_dict(): {left_out}")
        for each in training.extensions()
        if hasattr(each, "state_dict") and not is_stateful(each)
    ]
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
    recall = await training.log.recall(state["log"] | {"rows": state["rows"]}) if log else None
    model = model_of(training.model, training.algorithm)
    if state["model"] is not None or has_state(model):
        await run_in_worker(load_model_state, model, state["model"])
    if iteration_state:
        await run_in_worker(load_algorithm_state, training.algorithm, state["algorithm"])
        _load_extensions(training, state["extensions"])
        training.quantities = dict(state["quantities"])
        await training.go_to(Position.from_dict(state["position"]), state["stream"])
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
