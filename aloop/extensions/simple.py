"""The extensions that do one thing whenever a condition holds, and those with others inside."""

from collections.abc import Awaitable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from inspect import iscoroutinefunction
from operator import index
from typing import Any, ClassVar, Final, Self, SupportsIndex, TypedDict, Unpack, cast

from aloop.background import current_moment
from aloop.callbacks import CallbackName
from aloop.endings import FINISH_REQUESTED
from aloop.errors import TrainingFinish, TriggerError, UnknownTriggerError
from aloop.extensions.base import TrainingExtension, as_callback, call, in_order
from aloop.extensions.limits import FailurePolicy, Handler
from aloop.extensions.moments import Moment
from aloop.extensions.predicates import Counter, CounterIs, CounterIsMultipleOf, Predicate
from aloop.protocols import Loop

__all__ = ["CompositeExtension", "Condition", "Options", "SimpleExtension", "counted", "triggered"]


class Options(TypedDict, total=False):
    """What `SimpleExtension` takes besides a name: its triggers, and how it does what it does."""

    before_training: bool | None
    before_first_epoch: bool | None
    before_epoch: bool | None
    before_batch: bool | None
    on_resumption: bool | None
    on_interrupt: bool | None
    on_error: bool | None
    after_epoch: bool | None
    after_batch: bool | None
    after_training: bool | None
    after_n_epochs: int | None
    after_n_batches: int | None
    every_n_epochs: int | None
    every_n_batches: int | None
    background: bool
    timeout_s: float | None
    on_failure: FailurePolicy
    retries: int


_NO_TRIGGERS: Final = frozenset({"background", "timeout_s", "on_failure", "retries"})


@dataclass(frozen=True, slots=True)
class Condition:
    """When an extension acts at a callback, and with what arguments besides the loop's."""

    predicate: Predicate | None
    arguments: tuple[Any, ...]


class SimpleExtension(TrainingExtension):
    """Base of the extensions that do one thing, `do`, whenever one of their conditions holds.

    Parameters:
        name, timeout_s, on_failure, retries: as for `TrainingExtension`.
        background: whether `do` runs beside the training, which does not wait for it. It finds
            the row, the counters, the position and the quantities of the moment that triggered
            it; what it records goes to that row and is committed when it comes. It is never under
            way twice: when it is due again before it has ended, the training waits. What it fails
            with ends the run by the next batch boundary, and every ending waits for it, within
            `grace_s`. Of `run_in_worker` it has its turn between the steps. A `do` that blocks
            holds up the training all the same.
        triggers: boolean ones: `before_training`, `before_first_epoch`, `before_epoch`,
            `before_batch`, `on_resumption`, `on_interrupt`, `on_error`, `after_epoch`,
            `after_batch`, `after_training`; and whole numbers, 1 or more: `after_n_epochs` and
            `after_n_batches` (when the counter is at the number), `every_n_epochs` and
            `every_n_batches` (when it is a multiple). False and None turn a trigger off.

    Raises `UnknownTriggerError` for a trigger that does not exist and `TriggerError` for a value
    that makes no sense.
    """

    CAN_BE_BACKGROUND: ClassVar[bool] = True
    """False where what it does belongs to the boundary at which it is done."""

    BOOLEAN_TRIGGERS: Final = (*(str(name) for name in CallbackName), "before_first_epoch")
    INTEGER_TRIGGERS: Final = (
        "after_n_epochs",
        "after_n_batches",
        "every_n_epochs",
        "every_n_batches",
    )

    def __init__(self, name: str | None = None, **options: Unpack[Options]) -> None:
        super().__init__(
            name,
            timeout_s=options.get("timeout_s"),
            on_failure=options.get("on_failure", "raise"),
            retries=options.get("retries", 0),
        )
        self._is_background = self._check_background(options.get("background", False))
        self._conditions: dict[CallbackName, list[Condition]] = {}
        triggers = {key: value for key, value in options.items() if key not in _NO_TRIGGERS}
        self.set_conditions(**cast("dict[str, Any]", triggers))

    @property
    def main_loop(self) -> Loop:
        """The loop that this extension belongs to; in the background, as it was at that moment."""
        if self._is_background:
            moment = current_moment.get()
            if moment is not None and moment.loop is self._main_loop:
                return moment
        return self._own_loop()

    @main_loop.setter
    def main_loop(self, main_loop: Loop) -> None:
        self._main_loop = main_loop

    def _check_background(self, background: object) -> bool:
        if background not in (True, False):
            raise TriggerError(
                f"background is {background!r}; expected True or False; leave it out"
            )
        if background and not self.CAN_BE_BACKGROUND:
            raise TriggerError(
                f"{type(self).__name__} was given background=True; expected to act at the batch "
                "or epoch that it is about, while the training waits; leave it out"
            )
        return bool(background)

    async def do(self, which_callback: str, *args: Any) -> object:
        """Do what this extension is for.

        Parameters:
            which_callback: the callback at which a condition held.
            args: what the loop gave (the batch, the exception), then the condition's arguments.
        """
        raise NotImplementedError(f"{type(self).__name__} has no method do; define it")

    def set_conditions(self, **triggers: bool | int | None) -> None:
        """Replace all conditions by those of the triggers."""
        conditions: dict[CallbackName, list[Condition]] = {}
        for trigger, value in triggers.items():
            for callback, predicate in self._understand(trigger, value):
                conditions.setdefault(callback, []).append(Condition(predicate, ()))
        self._conditions = conditions
        self._announce()

    def add_condition(
        self,
        callbacks_names: Sequence[str],
        predicate: Predicate | None = None,
        arguments: Iterable[Any] | None = None,
    ) -> Self:
        """Add a condition, and give back the extension.

        Parameters:
            callbacks_names: a list or tuple of the callbacks at which it is looked at.
            predicate: a function of the log; without one the condition always holds.
            arguments: what `do` gets after the arguments that come from the loop.
        """
        if not isinstance(cast("object", callbacks_names), (list, tuple)):
            raise TriggerError(
                f"callbacks_names is {callbacks_names!r}; expected a list or tuple of callback "
                f"names; write [{callbacks_names!r}]"
            )
        if isinstance(arguments, str):
            raise TriggerError(
                f"arguments is {arguments!r}; expected a list; write [{arguments!r}]"
            )
        if predicate is not None and not callable(cast("object", predicate)):
            raise TriggerError(
                f"predicate is {predicate!r}; expected a function of the log; leave it out for a "
                "condition that always holds"
            )
        if iscoroutinefunction(predicate):
            raise TriggerError(
                f"predicate {predicate!r} is a coroutine function; expected a plain function of "
                "the log, since whether a condition holds is not awaited"
            )
        condition = Condition(predicate, tuple(arguments or ()))
        for callback in [as_callback(name) for name in callbacks_names]:
            self._conditions.setdefault(callback, []).append(condition)
        self._announce()
        return self

    @staticmethod
    def parse_args(which_callback: str, args: Sequence[Any]) -> tuple[tuple[Any, ...], Any]:
        """Split the arguments of `do` into those of the loop and those of the condition."""
        if which_callback in (CallbackName.BEFORE_BATCH, CallbackName.AFTER_BATCH):
            return (args[0],), tuple(args[1:])
        return (), tuple(args)

    def _answer(self, callback: CallbackName) -> Handler | None:
        """Give the method of that name, if it is overridden, and what checks the conditions."""
        conditions = self._conditions.get(callback)
        if not conditions:
            return super()._answer(callback)
        log = self._own_loop().log
        begin = self._begin_beside if self._is_background else self._do_from

        def check(*args: Any) -> Awaitable[None] | None:
            # Without a coroutine until a condition holds: most do not hold most of the time.
            for number, condition in enumerate(conditions):
                if condition.predicate is None or condition.predicate(log):
                    return begin(conditions[number:], callback, args)
            return None

        overridden = super()._answer(callback)
        return check if overridden is None else in_order([overridden, check])

    async def _do_from(
        self, conditions: Sequence[Condition], callback: CallbackName, args: tuple[Any, ...]
    ) -> None:
        """Do it for the first condition, which holds, and for those after it that hold then."""
        log, do = self.main_loop.log, self._limited(self.do, callback)
        for number, condition in enumerate(conditions):
            if not number or condition.predicate is None or condition.predicate(log):
                await call(do, callback, *args, *condition.arguments)

    async def _begin_beside(
        self, conditions: Sequence[Condition], callback: CallbackName, args: tuple[Any, ...]
    ) -> None:
        """Have it done beside the training, for the first and those after it that hold now."""
        loop = self._own_loop()
        first, *others = conditions
        due = [first, *(c for c in others if c.predicate is None or c.predicate(loop.log))]
        background = loop.background
        moment = Moment(loop, lambda: background.is_over)
        what = f"the extension {self.name!r} in {callback}"
        await background.start_in_turn(
            self, self._do_beside, moment, due, callback, args, name=what
        )

    async def _do_beside(
        self,
        moment: Moment,
        due: Sequence[Condition],
        callback: CallbackName,
        args: tuple[Any, ...],
    ) -> None:
        current_moment.set(moment)  # in the context of this task alone
        do = self._limited(self.do, callback)
        for condition in due:
            await call(do, callback, *args, *condition.arguments)
        if moment.log.current_row.get(FINISH_REQUESTED):
            raise TrainingFinish(FINISH_REQUESTED)

    def _understand(
        self, trigger: str, value: bool | int | None
    ) -> Iterable[tuple[CallbackName, Predicate | None]]:
        """Give the callbacks and predicates that a trigger stands for."""
        if trigger in self.INTEGER_TRIGGERS:
            if value is None or value is False:
                return []
            return self._count(trigger, _whole_number(trigger, value))
        if trigger not in self.BOOLEAN_TRIGGERS:
            known = (*self.BOOLEAN_TRIGGERS, *self.INTEGER_TRIGGERS)
            similar = get_close_matches(trigger, known, n=1)
            raise UnknownTriggerError(
                f"{type(self).__name__} was given {trigger}={value!r}; expected one of the "
                f"triggers {', '.join(known)}"
                + (f"; did you mean {similar[0]}?" if similar else "; correct it or leave it out")
            )
        if value is not None and not isinstance(value, bool):
            raise TriggerError(
                f"{trigger} is {value!r}; expected True or False; for every so many use "
                "every_n_epochs or every_n_batches"
            )
        if not value:
            return []
        if trigger == "before_first_epoch":
            return [(CallbackName.BEFORE_EPOCH, CounterIs("epochs_done", 0))]
        return [(CallbackName(trigger), None)]

    def _count(self, trigger: str, number: int) -> Iterable[tuple[CallbackName, Predicate]]:
        """Give the callbacks and predicates of a trigger that counts."""
        callback, counter = counted(trigger)
        if trigger.startswith("every"):
            return [(callback, CounterIsMultipleOf(counter, number))]
        return [(callback, CounterIs(counter, number))]

    def _announce(self) -> None:
        if self._main_loop is not None:
            self._main_loop.callbacks_changed()


class CompositeExtension(SimpleExtension):
    """An extension that has others inside, and dispatches every callback to them too.

    The children keep their own triggers, and their conditions.

    Parameters:
        sub_extensions: the children, in the order in which they are called.
        run_before_children: whether its own `do` comes before theirs or after.
        name, options: as for `SimpleExtension`; they hold for its own `do`.
    """

    def __init__(
        self,
        sub_extensions: Iterable[TrainingExtension],
        run_before_children: bool = True,
        name: str | None = None,
        **options: Unpack[Options],
    ) -> None:
        self.sub_extensions = list(sub_extensions)
        self.run_before_children = run_before_children
        super().__init__(name, **options)

    @property
    def main_loop(self) -> Loop:
        """The loop that this extension and its children belong to."""
        return super().main_loop

    @main_loop.setter
    def main_loop(self, main_loop: Loop) -> None:
        self._main_loop = main_loop
        for extension in self.sub_extensions:
            extension.main_loop = main_loop

    def parts(self) -> Iterator[TrainingExtension]:
        """Give this extension, and those inside it."""
        yield self
        for extension in self.sub_extensions:
            yield from extension.parts()

    async def do(self, which_callback: str, *args: Any) -> None:
        """Do nothing of its own; subclasses may."""

    def _answer(self, callback: CallbackName) -> Handler | None:
        """Give what does its own and what its children do, in their order."""
        children = [extension.handler(callback) for extension in self.sub_extensions]
        own = super()._answer(callback)
        handlers = [own, *children] if self.run_before_children else [*children, own]
        return in_order([handler for handler in handlers if handler is not None])


def triggered(options: Options, **by_default: Unpack[Options]) -> Options:
    """Give the options, with these triggers where they have none at all."""
    return options if options.keys() - _NO_TRIGGERS else by_default | options


def counted(trigger: str) -> tuple[CallbackName, Counter]:
    """Give the callback and the counter that a trigger which counts goes by."""
    if trigger.endswith("epochs"):
        return CallbackName.AFTER_EPOCH, "epochs_done"
    return CallbackName.AFTER_BATCH, "iterations_done"


def _whole_number(trigger: str, value: object) -> int:
    try:
        number = 0 if isinstance(value, bool) else index(cast("SupportsIndex", value))
    except TypeError:
        number = 0
    if number < 1:
        raise TriggerError(
            f"{trigger} is {value!r}; expected a whole number, 1 or more; leave it out to turn "
            "the trigger off"
        )
    return number
