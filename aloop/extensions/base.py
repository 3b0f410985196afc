"""The base of the extensions.

An extension answers to callbacks of the run (see `aloop.callbacks`). The loop does not call
`dispatch` for each of them: when the run starts it asks each extension once per callback for its
`handler`, and an extension that has nothing to do there gives none and costs nothing.
"""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from inspect import isawaitable
from typing import Any

from aloop.callbacks import CallbackName
from aloop.errors import NotAttachedError, TriggerError
from aloop.extensions.limits import FailurePolicy, Handler, Limits
from aloop.protocols import Batch, Loop

__all__ = ["TrainingExtension", "as_callback", "call", "in_order"]


class TrainingExtension:
    """Base of the extensions: override the callbacks you need.

    The callbacks are coroutines and are awaited one after another, in the order in which the
    extensions stand in the loop's list. A plain method is accepted too.

    Parameters:
        name: by which `MainLoop.find_extension` finds it; the class's name unless given.
        timeout_s: seconds that each of its calls has; then it is cancelled, and has failed with
            `TimeoutError`. As long as it takes unless given. What blocks cannot be cancelled.
        on_failure: ``"raise"``: what it raises ends the run; ``"log"``: it is logged, and the run
            goes on as if it had not been called.
        retries: how often a call that fails is tried again before that counts: after 0.1 s, 0.2 s
            and so on, at most 5 s later.
    """

    name: str
    _main_loop: Loop | None = None
    _limits: Limits = Limits()
    _is_background: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Also for a subclass whose constructor does not call this one's.
        if "name" not in cls.__dict__:
            cls.name = cls.__name__

    def __init__(
        self,
        name: str | None = None,
        *,
        timeout_s: float | None = None,
        on_failure: FailurePolicy = "raise",
        retries: int = 0,
    ) -> None:
        self.name = type(self).__name__ if name is None else name
        self._limits = Limits(timeout_s, on_failure, retries)

    @property
    def main_loop(self) -> Loop:
        """The loop that this extension belongs to; `NotAttachedError` before it has one."""
        return self._own_loop()

    def _own_loop(self) -> Loop:
        if self._main_loop is None:
            raise NotAttachedError(
                f"extension {type(self).__name__} has no main loop yet; expected to be in the "
                "extensions of a MainLoop; give it to one before using main_loop"
            )
        return self._main_loop

    @main_loop.setter
    def main_loop(self, main_loop: Loop) -> None:
        self._main_loop = main_loop

    def parts(self) -> "Iterator[TrainingExtension]":
        """Give this extension, and those inside it."""
        yield self

    async def dispatch(self, callback_name: str, *args: Any) -> None:
        """Do what this extension does at a callback, which may be nothing."""
        answer = self._answer(as_callback(callback_name))
        if answer is not None:
            await call(answer, *args)

    def handler(self, callback: CallbackName) -> Handler | None:
        """Give what is to be called at this callback, or None if there is nothing to do."""
        if type(self).dispatch is not TrainingExtension.dispatch:
            # Somebody's own idea of dispatching, which may answer to anything.
            return self._over_dispatch(lambda *args: self.dispatch(callback, *args), callback)
        return self._answer(callback)

    def _answer(self, callback: CallbackName) -> Handler | None:
        """Give what the class itself does at this callback, held to its limits."""
        method = self._method(callback)
        return None if method is None else self._limited(method, callback)

    def _over_dispatch(self, dispatch: Handler, callback: str) -> Handler:
        # As a whole, but for what begins there and is done beside the training.
        return dispatch if self._is_background else self._held(dispatch, callback)

    def _limited(self, handler: Handler, callback: str) -> Handler:
        """Hold a handler to the limits, unless the dispatching around it is held to them."""
        is_own = type(self).dispatch is not TrainingExtension.dispatch
        return handler if is_own and not self._is_background else self._held(handler, callback)

    def _held(self, handler: Handler, callback: str) -> Handler:
        what = f"the extension {self.name!r} in {callback}"
        return self._limits.over(handler, what, self._pause)

    async def _pause(self, seconds: float) -> bool:
        return await self._own_loop().background.pause(seconds)

    def _method(self, callback: CallbackName) -> Handler | None:
        """Give the method of that name, if it is overridden."""
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
