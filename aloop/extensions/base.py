"""The base of the extensions.

An extension answers to callbacks of the run (see `aloop.callbacks`). The loop does not call
`dispatch` for each of them: when the run starts it asks each extension once per callback for its
`handler`, and an extension that has nothing to do there gives none and costs nothing.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from inspect import isawaitable, iscoroutinefunction
from operator import index
from typing import Any, Final, Self, SupportsIndex, TypeAlias, cast

from aloop.callbacks import CallbackName
from aloop.errors import NotAttachedError, TriggerError, UnknownTriggerError
from aloop.extensions.predicates import Counter, CounterIs, CounterIsMultipleOf, Predicate
from aloop.protocols import Batch, Loop

__all__ = ["CompositeExtension", "Condition", "Handler", "SimpleExtension", "TrainingExtension"]

# What a handler returns is awaited if it can be, and ignored otherwise.
Handler: TypeAlias = Callable[..., object]


class TrainingExtension:
    """Base of the extensions: override the callbacks you need.

    The callbacks are coroutines and are awaited one after another, in the order in which the
    extensions stand in the loop's list. A plain method is accepted too.

    Parameters:
        name: by which `MainLoop.find_extension` finds it; the class's name unless given.
    """

    name: str
    _main_loop: Loop | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Also for a subclass whose constructor does not call this one's.
        if "name" not in cls.__dict__:
            cls.name = cls.__name__

    def __init__(self, name: str | None = None) -> None:
        self.name = type(self).__name__ if name is None else name

    @property
    def main_loop(self) -> Loop:
        """The loop that this extension belongs to; `NotAttachedError` before it has one."""
        if self._main_loop is None:
            raise NotAttachedError(
                f"extension {type(self).__name__} has no main loop yet; expected to be in the "
                "extensions of a MainLoop; give it to one before using main_loop"
            )
        return self._main_loop

    @main_loop.setter
    def main_loop(self, main_loop: Loop) -> None:
        self._main_loop = main_loop

    async def dispatch(self, callback_name: str, *args: Any) -> None:
        """Do what this extension does at a callback, which may be nothing."""
        answer = self._answer(as_callback(callback_name))
        if answer is not None:
            await call(answer, *args)

    def handler(self, callback: CallbackName) -> Handler | None:
        """Give what is to be called at this callback, or None if there is nothing to do."""
        if type(self).dispatch is not TrainingExtension.dispatch:
            # Somebody's own idea of dispatching, which may answer to anything.
            return lambda *args: self.dispatch(callback, *args)
        return self._answer(callback)

    def _answer(self, callback: CallbackName) -> Handler | None:
        """Give what the class itself does at this callback: here, the method of that name."""
        own = callback in self.__dict__
        if own or getattr(type(self), callback) is not getattr(TrainingExtension, callback):
            return getattr(self, callback)
        return None

    async def before_training(self) -> None:
        """Prepare; called once in the life of a training, before the algorithm is initialized."""

    async def on_resumption(self) -> None:
        """Prepare to go on; called when a training that has begun is run again or restored."""

    async def before_epoch(self) -> None:
        """Act before the first batch of an epoch is fetched."""

    async def before_batch(self, batch: Batch) -> None:
        """Act on each batch before the algorithm gets it."""

    async def after_batch(self, batch: Batch) -> None:
        """Act on each batch after the algorithm is done with it."""

    async def after_epoch(self) -> None:
        """Act after an epoch, when it has been counted."""

    async def after_training(self) -> None:
        """Finish; called when the run ends in good order."""

    async def on_interrupt(self) -> None:
        """Act when the run was stopped from outside; called before `after_training`."""

    async def on_error(self, exception: BaseException) -> None:
        """Act when the step, the stream or an extension raised this exception."""


@dataclass(frozen=True, slots=True)
class Condition:
    """When an extension acts at a callback, and with what arguments besides the loop's."""

    predicate: Predicate | None
    arguments: tuple[Any, ...]


class SimpleExtension(TrainingExtension):
    """Base of the extensions that do one thing, `do`, whenever one of their conditions holds.

    Parameters:
        name: as for `TrainingExtension`.
        triggers: boolean ones: `before_training`, `before_first_epoch`, `before_epoch`,
            `before_batch`, `on_resumption`, `on_interrupt`, `on_error`, `after_epoch`,
            `after_batch`, `after_training`; and whole numbers, 1 or more: `after_n_epochs` and
            `after_n_batches` (when the counter is at the number), `every_n_epochs` and
            `every_n_batches` (when it is a multiple). False and None turn a trigger off.

    Raises `UnknownTriggerError` for a trigger that does not exist and `TriggerError` for a value
    that makes no sense.
    """

    BOOLEAN_TRIGGERS: Final = (*(str(name) for name in CallbackName), "before_first_epoch")
    INTEGER_TRIGGERS: Final = (
        "after_n_epochs",
        "after_n_batches",
        "every_n_epochs",
        "every_n_batches",
    )

    def __init__(self, name: str | None = None, **triggers: bool | int | None) -> None:
        super().__init__(name)
        self._conditions: dict[CallbackName, list[Condition]] = {}
        self.set_conditions(**triggers)

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
        overridden = super()._answer(callback)
        conditions = self._conditions.get(callback)
        if not conditions:
            return overridden
        log = self.main_loop.log

        def check(*args: Any) -> Awaitable[None] | None:
            # Without a coroutine until a condition holds: most do not hold most of the time.
            for number, condition in enumerate(conditions):
                if condition.predicate is None or condition.predicate(log):
                    return self._do_from(conditions, number, callback, args)
            return None

        return check if overridden is None else in_order([overridden, check])

    async def _do_from(
        self,
        conditions: list[Condition],
        first: int,
        callback: CallbackName,
        args: tuple[Any, ...],
    ) -> None:
        """Do it for the condition `first`, which holds, and for those after it that hold then."""
        log = self.main_loop.log
        for number in range(first, len(conditions)):
            predicate, arguments = conditions[number].predicate, conditions[number].arguments
            if number == first or predicate is None or predicate(log):
                await call(self.do, callback, *args, *arguments)

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
        name, triggers: as for `SimpleExtension`.
    """

    def __init__(
        self,
        sub_extensions: Iterable[TrainingExtension],
        run_before_children: bool = True,
        name: str | None = None,
        **triggers: bool | int | None,
    ) -> None:
        self.sub_extensions = list(sub_extensions)
        self.run_before_children = run_before_children
        super().__init__(name, **triggers)

    @property
    def main_loop(self) -> Loop:
        """The loop that this extension and its children belong to."""
        return super().main_loop

    @main_loop.setter
    def main_loop(self, main_loop: Loop) -> None:
        self._main_loop = main_loop
        for extension in self.sub_extensions:
            extension.main_loop = main_loop

    async def do(self, which_callback: str, *args: Any) -> None:
        """Do nothing of its own; subclasses may."""

    def _answer(self, callback: CallbackName) -> Handler | None:
        """Give what does its own and what its children do, in their order."""
        children = [extension.handler(callback) for extension in self.sub_extensions]
        own = super()._answer(callback)
        handlers = [own, *children] if self.run_before_children else [*children, own]
        return in_order([handler for handler in handlers if handler is not None])


async def call(handler: Handler, *args: Any) -> None:
    """Call a handler and await what it returns, if that can be awaited."""
    result = handler(*args)
    if isawaitable(result):
        await result


def in_order(handlers: Sequence[Handler]) -> Handler | None:
    """Make one handler out of several, or None out of none."""
    if len(handlers) < 2:
        return handlers[0] if handlers else None

    async def each(*args: Any) -> None:
        for handler in handlers:
            await call(handler, *args)

    return each


def as_callback(name: str) -> CallbackName:
    """Give the callback of this name, or raise `TriggerError` naming those that exist."""
    try:
        return CallbackName(name)
    except ValueError:
        similar = get_close_matches(str(name), list(CallbackName), n=1)
        raise TriggerError(
            f"callback name is {name!r}; expected one of {', '.join(CallbackName)}"
            + (f"; did you mean {similar[0]}?" if similar else "; correct it")
        ) from None


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
