"""Extensions that save the training, and go on from what was saved.

They only ask: the loop saves at the end of the boundary, when all extensions have run, and loads
when `before_training` and `initialize` are done (see `aloop.saving`).
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Self, Unpack

from aloop.callbacks import CallbackName
from aloop.checkpoints.directory import as_directory
from aloop.checkpoints.wishes import LoadWish, SaveWish
from aloop.errors import ArgumentError
from aloop.extensions.base import TrainingExtension
from aloop.extensions.limits import Handler, LimitOptions
from aloop.extensions.predicates import Predicate
from aloop.extensions.simple import Options, SimpleExtension
from aloop.protocols import Loop

__all__ = ["Checkpoint", "Load"]

KEEP: Final = 3
"""How many checkpoints stay unless it is said."""

_OF_THE_END: Final = frozenset({CallbackName.ON_INTERRUPT, CallbackName.AFTER_TRAINING})
_WITH_ARGUMENT: Final = frozenset(
    {CallbackName.BEFORE_BATCH, CallbackName.AFTER_BATCH, CallbackName.ON_ERROR}
)


class Checkpoint(SimpleExtension):
    """Saves the whole training, so that a run can go on from there exactly.

    By default at the end of a run, stopped or not: after the training, and on an interrupt. With
    triggers of your own, then too, unless you turn these off. It is taken at the end of the batch
    or epoch at which it is due, when all extensions have run, and written beside the training. The
    row gets `saved_to` (the paths of all that were saved then, None for one that failed),
    `checkpoint_seconds` and `checkpoint_bytes`.

    An argument of a condition is another destination, a directory of its own that keeps one:
    ``Checkpoint(path).add_condition(["after_epoch"], OnLogRecord("is_best"), ["run/best"])``.

    Parameters:
        path: the directory of the checkpoints, of which one run at a time can make use. Each is a
            directory in it, ``ckpt-<iteration>-<run>``.
        resume: whether the run goes on from the newest that is whole, if there is one. What a run
            is resumed with has to be made as it was: stream, algorithm, model, extensions, log.
        keep: how many of the newest stay; None for all.
        save_main_loop: False saves the model's parameters and no more; no run can be resumed from
            that.
        global_rng: whether the random generators that the modules `random` and ``numpy.random``
            share, perhaps with all of a service, are saved and restored.
        name, options: as for `SimpleExtension`. `timeout_s`, `on_failure` and `retries` hold for
            the saving.
    """

    CAN_BE_BACKGROUND = False  # it is in any case

    def __init__(
        self,
        path: str | Path,
        *,
        resume: bool = False,
        keep: int | None = KEEP,
        save_main_loop: bool = True,
        global_rng: bool = False,
        name: str | None = None,
        **options: Unpack[Options],
    ) -> None:
        self.path = as_directory(path)
        self.resume = resume
        self.keep = _check_keep(keep)
        self.save_main_loop = save_main_loop
        self.global_rng = global_rng
        if resume and not save_main_loop:
            raise ArgumentError(
                "resume=True was given with save_main_loop=False; expected whole checkpoints to "
                "resume from; leave out one of them"
            )
        by_default: Options = {"after_training": True, "on_interrupt": True}
        super().__init__(name, **(by_default | options))

    def add_condition(
        self,
        callbacks_names: Sequence[str],
        predicate: Predicate | None = None,
        arguments: Iterable[Any] | None = None,
    ) -> Self:
        """Add a condition; its argument, if there is one, is the path of another directory."""
        if arguments is not None and not isinstance(arguments, str):
            arguments = [_destination(tuple(arguments))]
        return super().add_condition(callbacks_names, predicate, arguments)

    @property
    def main_loop(self) -> Loop:
        """The loop that this extension belongs to; it is told that checkpoints may be wanted."""
        return super().main_loop

    @main_loop.setter
    def main_loop(self, main_loop: Loop) -> None:
        self._main_loop = main_loop
        main_loop.checkpoints.expect(self._wish(self.path, self.keep))

    def _held(self, handler: Handler, callback: str) -> Handler:
        """Hold none of its callbacks to its limits, which are for the saving.

        Or a run would go on without the checkpoints that it was to be resumed from.
        """
        return handler

    async def before_training(self) -> None:
        """Make sure that it can save, and have the newest checkpoint loaded."""
        await self._prepare()
        if self.resume:
            wish = LoadWish(
                owner=f"the extension {self.name!r}",
                path=self.path,
                iteration_state=True,
                log=True,
                global_rng=self.global_rng,
                is_own=True,
            )
            self.main_loop.checkpoints.load(wish)

    async def on_resumption(self) -> None:
        """Make sure that it can save."""
        await self._prepare()

    async def _prepare(self) -> None:
        for path in (self.path, *self._further_destinations()):
            await self.main_loop.checkpoints.prepare(path)

    def _further_destinations(self) -> Iterator[Path]:
        for conditions in self._conditions.values():
            for condition in conditions:
                if condition.arguments:
                    yield condition.arguments[0]

    async def do(self, which_callback: str, *args: Any) -> None:
        """Ask for a checkpoint at the end of this boundary."""
        given = args[1:] if which_callback in _WITH_ARGUMENT else args
        path, keep = (given[0], 1) if given else (self.path, self.keep)
        is_last = which_callback in _OF_THE_END
        self.main_loop.checkpoints.save(self._wish(path, keep, is_last=is_last))

    def _wish(self, path: Path, keep: int | None, *, is_last: bool = False) -> SaveWish:
        return SaveWish(
            path=path,
            keep=keep,
            is_whole=self.save_main_loop,
            is_last=is_last,
            global_rng=self.global_rng,
            limited=partial(self._limited_save, path),
            is_lenient=self._limits.on_failure == "log",
        )

    def _limited_save(self, path: Path, save: Callable[[], Awaitable[None]]) -> Callable[[], Any]:
        what = f"the extension {self.name!r}, saving to {path},"
        return self._limits.over(save, what, self._pause)


class Load(TrainingExtension):
    """Loads a checkpoint into the loop before the training begins.

    The model's parameters in any case. Records `loaded_from`. Where there is no checkpoint the
    training begins anew, and a warning says so; one that is broken is an error. To go on with a
    run in its own directory, ``Checkpoint(path, resume=True)`` is this and more.

    Parameters:
        path: a checkpoint, or a directory of which the newest that is whole is taken.
        load_iteration_state: whether all else but the log is loaded, too: the algorithm, the place
            in the stream, the extensions.
        load_log: whether the log goes on from the one that the checkpoint is of, with its status.
        global_rng: whether the random generators that the modules `random` and ``numpy.random``
            share are restored.
        name, limits: as for `TrainingExtension`.
    """

    def __init__(
        self,
        path: str | Path,
        load_iteration_state: bool = False,
        load_log: bool = False,
        *,
        global_rng: bool = False,
        name: str | None = None,
        **limits: Unpack[LimitOptions],
    ) -> None:
        super().__init__(name, **limits)
        self.path = as_directory(path)
        self.load_iteration_state = load_iteration_state
        self.load_log = load_log
        self.global_rng = global_rng

    async def before_training(self) -> None:
        """Ask for the checkpoint to be loaded, when everything else is done."""
        wish = LoadWish(
            owner=f"the extension {self.name!r}",
            path=self.path,
            iteration_state=self.load_iteration_state,
            log=self.load_log,
            global_rng=self.global_rng,
        )
        self.main_loop.checkpoints.load(wish)


def _check_keep(keep: object) -> int | None:
    if keep is None or (isinstance(keep, int) and not isinstance(keep, bool) and keep >= 1):
        return keep
    raise ArgumentError(
        f"keep is {keep!r}; expected how many checkpoints stay, 1 or more, or None for all; leave "
        f"it out for {KEEP}"
    )


def _destination(arguments: tuple[Any, ...]) -> Path:
    if len(arguments) != 1:
        raise ArgumentError(
            f"a condition of Checkpoint has the arguments {arguments!r:.80}; expected one, the "
            "path of a directory to save to"
        )
    return as_directory(arguments[0])
