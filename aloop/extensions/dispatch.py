"""Which extension answers to which callback: a table, compiled once."""

from collections.abc import Callable, Iterable, Sequence
from inspect import isawaitable, iscoroutinefunction
from typing import Any, TypeAlias, cast

from aloop.callbacks import CallbackName
from aloop.errors import ArgumentError, ExtensionLookupError
from aloop.extensions.base import Handler, TrainingExtension
from aloop.protocols import Loop

__all__ = ["Dispatcher", "call_each", "checked_extensions", "find_extension"]

Handlers: TypeAlias = Sequence[tuple[str, Callable[..., Any], bool]]
"""The names of extensions, what is to be called of each, and whether that is a coroutine function,
which saves finding out at each call."""

Timed: TypeAlias = Callable[[str, Handler], Handler]
"""Wraps a function so that its time is added up under a name, or gives it back as it is."""


class Dispatcher:
    """Calls the extensions of a loop; an extension costs nothing where it has nothing to do.

    Parameters:
        loop: what the extensions get as their main loop.
        extensions: the extensions, in the order in which they are called. The list is looked at
            at every callback, so that a change of it takes effect.
        timed: wraps what is called.
    """

    def __init__(self, loop: Loop, extensions: list[TrainingExtension], timed: Timed) -> None:
        self._loop = loop
        self.extensions = extensions
        self._timed = timed
        self.compile()

    def compile(self) -> None:
        """Ask each extension what it does at which callback."""
        self._compiled_from = list(self.extensions)
        for extension in self.extensions:
            extension.main_loop = self._loop
        self._table: dict[CallbackName, list[tuple[str, Callable[..., Any], bool]]] = {}
        for callback in CallbackName:
            for extension in self.extensions:
                handler = extension.handler(callback)
                if handler is not None:
                    handler = self._timed(type(extension).__name__, handler)
                    handler = self._timed(callback, handler)
                    entry = extension.name, handler, iscoroutinefunction(handler)
                    self._table.setdefault(callback, []).append(entry)

    def handlers(self, callback: CallbackName) -> Handlers:
        """Give what answers to the callback, as of now."""
        if self.extensions != self._compiled_from:
            self.compile()
        return self._table.get(callback, ())

    async def call(self, callback: CallbackName, *args: Any) -> None:
        """Call what answers to the callback, one after another.

        An exception that comes out gets a note which names the extension.
        """
        await call_each(self.handlers(callback), callback, *args)


async def call_each(handlers: Handlers, callback: CallbackName, *args: Any) -> None:
    """Call handlers that were given for a callback; see `Dispatcher.call`."""
    name: str | None = None
    try:
        for name, handler, is_async in handlers:  # noqa: B007 - the note names it
            if is_async:
                await handler(*args)
            else:
                result = handler(*args)
                if isawaitable(result):
                    await result
    except BaseException as error:
        error.add_note(f"raised by the extension {name!r} in {callback}")
        raise


def checked_extensions(extensions: Iterable[TrainingExtension]) -> list[TrainingExtension]:
    """Give the extensions as a list, or raise `ArgumentError` for what is none."""
    given = cast("object", extensions)
    if not isinstance(given, Iterable):
        raise ArgumentError(f"extensions is {given!r}; expected a list; write [{given!r}]")
    checked = list(extensions)
    for extension in cast("list[object]", checked):
        if not isinstance(extension, TrainingExtension):
            raise ArgumentError(
                f"extensions has {extension!r}; expected instances of TrainingExtension"
                + ("; call the class" if isinstance(extension, type) else "; derive from it")
            )
    return checked


def find_extension(extensions: list[TrainingExtension], name: str) -> TrainingExtension:
    """Find the extension of this name; `ExtensionLookupError` if none or several have it."""
    found = [extension for extension in extensions if extension.name == name]
    if len(found) != 1:
        raise ExtensionLookupError(
            f"{'several' if found else 'no'} extensions are named {name!r}; expected exactly "
            f"one; there are {', '.join(repr(e.name) for e in extensions) or 'none'}"
            + ("; give them names of their own with name=" if found else "; correct the name")
        )
    return found[0]
