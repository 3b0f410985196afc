"""Which extension answers to which callback: a table, compiled once."""

import logging
from collections.abc import Callable, Iterable
from inspect import isawaitable, iscoroutinefunction
from typing import Any, Self, SupportsIndex, TypeAlias, cast

from aloop.callbacks import CallbackName
from aloop.errors import ArgumentError, ExtensionLookupError, TrainingFinish
from aloop.exclusive import Possession, possessor_of
from aloop.extensions.base import TrainingExtension
from aloop.extensions.limits import Handler
from aloop.faults import with_points
from aloop.protocols import Loop
from aloop.stalls import blames
from aloop.stopping import LeftBehind

__all__ = ["Dispatcher", "call_each", "find_extension"]

_logger = logging.getLogger("aloop")

Handlers: TypeAlias = list[tuple[str, Callable[..., Any], bool]]
"""The names of extensions, what is to be called of each, and whether that is a coroutine function,
which saves finding out at each call."""

Timed: TypeAlias = Callable[[str, Handler], Handler]
"""Wraps a function so that its time is added up under a name, or gives it back as it is."""


class _ExtensionList(list[TrainingExtension]):
    """The extensions of a loop: a list that holds nothing else, and tells when it changes."""

    def __init__(
        self,
        extensions: Iterable[TrainingExtension],
        accept: Callable[[list[TrainingExtension]], None],
        changed: Callable[[], None],
    ) -> None:
        super().__init__(checked_extensions(extensions))
        self._accept = accept
        self._changed = changed

    def append(self, extension: TrainingExtension, /) -> None:
        self[len(self) :] = [extension]

    def extend(self, extensions: Iterable[TrainingExtension], /) -> None:
        self[len(self) :] = extensions

    def insert(self, index: SupportsIndex, extension: TrainingExtension, /) -> None:
        self[index:index] = [extension]

    def __iadd__(self, extensions: Iterable[TrainingExtension], /) -> Self:
        self.extend(extensions)
        return self

    def __imul__(self, times: SupportsIndex, /) -> Self:
        self[:] = list(self) * times
        return self

    def __setitem__(self, index: SupportsIndex | slice, value: Any, /) -> None:
        checked = checked_extensions(value if isinstance(index, slice) else [value])
        self._accept(checked)
        if isinstance(index, slice):
            super().__setitem__(index, checked)
        else:
            super().__setitem__(index, checked[0])
        self._changed()

    def __delitem__(self, index: SupportsIndex | slice, /) -> None:
        super().__delitem__(index)
        self._changed()

    def pop(self, index: SupportsIndex = -1, /) -> TrainingExtension:
        extension = self[index]
        del self[index]
        return extension

    def remove(self, extension: TrainingExtension, /) -> None:
        del self[self.index(extension)]

    def clear(self) -> None:
        del self[:]

    def reverse(self) -> None:
        self[:] = self[::-1]

    def sort(self, **options: Any) -> None:
        self[:] = sorted(self, **options)

    def __reduce__(self) -> tuple[type[list[Any]], tuple[list[TrainingExtension]]]:
        return list, (list(self),)  # a copy belongs to no loop


class Dispatcher:
    """Calls the extensions of a loop; an extension costs nothing where it has nothing to do.

    Parameters:
        loop: what the extensions get as their main loop.
        extensions: the extensions, in the order in which they are called.
        timed: wraps what is called.
    """

    before_batch: Handlers
    """What answers to `before_batch` now, at hand for a loop that has no time to look it up."""

    after_batch: Handlers
    """What answers to `after_batch` now."""

    def __init__(self, loop: Loop, extensions: Iterable[TrainingExtension], timed: Timed) -> None:
        self._loop = loop
        self._timed = timed
        self._possession: Possession | None = None  # of the last run
        self.extensions = _ExtensionList(extensions, self._accept, self.compile)
        self.compile()

    def replace(self, extensions: Iterable[TrainingExtension]) -> None:
        """Take other extensions in place of all there are."""
        self.extensions[:] = list(extensions)

    def compile(self) -> None:
        """Ask each extension what it does at which callback."""
        for extension in self.extensions:
            # Another loop that runs with it shall go on to the end, and this one not begin.
            if all(possessor_of(part) in (None, self._possession) for part in extension.parts()):
                extension.main_loop = self._loop
        self._table = {callback: self._compiled(callback) for callback in CallbackName}
        self.before_batch = self._table[CallbackName.BEFORE_BATCH]
        self.after_batch = self._table[CallbackName.AFTER_BATCH]

    def possess(self, possession: Possession) -> None:
        """Take the extensions for a run; `AlreadyRunningError` if another run has one of them."""
        possession.take(_things(self.extensions))
        self._possession = possession

    def _accept(self, extensions: list[TrainingExtension]) -> None:
        if self._possession is not None and not self._possession.is_over():
            self._possession.take(_things(extensions))

    def halt(self) -> None:
        """Let a call that is under way come to an end at its next extension.

        What is compiled after that is not concerned.
        """
        for handlers in self._table.values():
            handlers[:] = [("", _raise_left_behind, True)] * (len(handlers) + 1)

    def _compiled(self, callback: CallbackName) -> Handlers:
        handlers: Handlers = []
        for extension in self.extensions:
            handler = extension.handler(callback)
            if handler is not None:
                timed = self._timed(callback, self._timed(type(extension).__name__, handler))
                called = with_points(timed, f"callback.{callback}")
                handlers.append((extension.name, called, iscoroutinefunction(called)))
        return handlers

    async def call(self, callback: CallbackName, *args: Any) -> None:
        """Call what answers to the callback, one after another.

        An exception that comes out gets a note which names the extension.
        """
        await call_each(self._table[callback], callback, *args)

    async def call_all(self, callback: CallbackName, *args: Any) -> Exception | None:
        """Call all that answer to the callback, though some fail; give what the first failed with.

        What others fail with after it is logged.
        """
        first: Exception | None = None
        for handler in self._table[callback]:
            try:
                await call_each([handler], callback, *args)
            except TrainingFinish:
                continue  # which is what is happening
            except Exception as error:
                _logger.exception("the extension %r failed in %s", handler[0], callback)
                first = first or error
        return first


def _things(extensions: Iterable[TrainingExtension]) -> list[tuple[object, str]]:
    """Give the extensions, and those inside them, with how messages call them."""
    return [
        (part, f"the extension {part.name!r}")
        for extension in extensions
        for part in extension.parts()
    ]


@blames("the extension {name!r} in {callback}")
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
    except LeftBehind:
        raise
    except BaseException as error:
        error.add_note(f"raised by the extension {name!r} in {callback}")
        raise


async def _raise_left_behind(*_args: Any) -> None:
    raise LeftBehind


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
