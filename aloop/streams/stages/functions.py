"""The functions that users give to the stages of a stream, sync or async."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from types import CoroutineType
from typing import Any, cast

from aloop.errors import StreamError
from aloop.offload import Worker
from aloop.streams.bridge import ENDING_S

__all__ = ["Function", "Thread"]

_logger = logging.getLogger("aloop")


class Thread:
    """A thread that is started when it is needed, and ended between two runs."""

    def __init__(self) -> None:
        self._worker: Worker | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def worker(self) -> Worker:
        """The thread; a new one where the last was ended, or was of another event loop."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self.end()  # it ends by itself too, when its call is over and nobody is there to tell
            self._loop = loop
        if self._worker is None:
            self._worker = Worker("aloop stream")
        return self._worker

    @property
    def is_started(self) -> bool:
        """True from the first use to the end."""
        return self._worker is not None

    async def run(self, function: Callable[[], Any]) -> Any:  # what the function returns
        """Call a function there."""
        return await self.worker.run(function)

    async def rest(self, name: str) -> None:
        """End it, when it is idle; leave it behind, with a warning, when it is stuck.

        Parameters:
            name: how the warning calls what it is stuck in.
        """
        worker = self._worker
        if worker is not None and worker.is_busy and self._loop is asyncio.get_running_loop():
            idle = asyncio.ensure_future(worker.run(_do_nothing))
            await asyncio.wait([idle], timeout=ENDING_S)
            if not idle.done():
                idle.cancel()
                _logger.warning(
                    "%s does not return: the run ends without it, and its thread is left behind",
                    name,
                )
        self.end()

    def end(self) -> None:
        """End it, from whichever thread; one that is at work ends after that."""
        worker, self._worker = self._worker, None
        if worker is not None:
            with suppress(RuntimeError):  # the collector runs in any thread, that one included
                worker.close()

    def __del__(self) -> None:
        self.end()


class Function:
    """A function of one argument that a stage calls with each element.

    Parameters:
        function: what the user gave.
        stage: the name of the method that it was given to.
    """

    def __init__(self, function: object, stage: str) -> None:
        if not callable(function):
            raise StreamError(
                f"{stage}() is given {function!r:.80} of type {type(function).__name__}; expected "
                "a function of one argument, sync or async; give it one"
            )
        if _is_generator(function):
            raise StreamError(
                f"{stage}() is given the generator function {_name(function)}; expected one that "
                "returns a value; write it with return, or give as_stream() a generator of your own"
            )
        # It takes an element and gives one, both of which are anything.
        self._function = cast("Callable[[Any], Any]", function)
        self._stage = stage
        self.is_async = _is_async(function)
        self.name = _name(function)
        self._thread = Thread()

    def __call__(self, element: Any) -> Any:  # an element, as said above
        """Call it; it must be a sync one."""
        try:
            result = self._function(element)
        except (StopIteration, StopAsyncIteration) as error:
            raise self._end_refused(error) from error
        except BaseException as error:
            self._note(error)
            raise
        if result.__class__ is CoroutineType:
            raise self._refusal(result)
        return result

    async def wait(self, element: Any) -> Any:  # an element, as said above
        """Await it; it must be an async one."""
        try:
            return await self._function(element)
        except (StopIteration, StopAsyncIteration) as error:
            raise self._end_refused(error) from error
        except Exception as error:
            self._note(error)
            raise

    async def apply(self, element: Any) -> Any:  # an element, as said above
        """Call it, without holding the event loop."""
        if self.is_async:
            return await self.wait(element)
        return await self._thread.run(partial(self, element))

    async def rest(self) -> None:
        """End its thread, if it has one, between two runs."""
        await self._thread.rest(f"the function {self.name} of {self._stage}()")

    def end_thread(self) -> None:
        """End its thread at once, if it has one."""
        self._thread.end()

    def _note(self, error: BaseException) -> None:
        if isinstance(error, Exception):
            error.add_note(f"raised by the function {self.name} of {self._stage}()")

    def _end_refused(self, error: Exception) -> StreamError:
        return StreamError(
            f"the function {self.name} of {self._stage}() raised {type(error).__name__}, which is "
            "the end of an iterator and not of this stream; expected a value, or another error; "
            "give next() or anext() in it a default"
        )

    def _refusal(self, result: Any) -> StreamError:
        result.close()  # or Python warns that it was never awaited, on top of this error
        return StreamError(
            f"the function {self.name} of {self._stage}() returned a coroutine; expected a value, "
            "for it is no coroutine function itself; write it with async def"
        )


def _do_nothing() -> None:
    pass


def _is_async(function: object) -> bool:
    return any(map(iscoroutinefunction, _called(function)))


def _is_generator(function: object) -> bool:
    return any(isgeneratorfunction(each) or isasyncgenfunction(each) for each in _called(function))


def _called(function: object) -> tuple[object, object]:
    """Give what a call may call: the function itself, or the method of its class."""
    function = _unwrapped(function)
    return function, getattr(type(function), "__call__", None)  # noqa: B004 - what, not whether


def _unwrapped(function: object) -> object:
    while isinstance(function, partial):
        function = cast("partial[Any]", function).func
    return function


def _name(function: object) -> str:
    function = _unwrapped(function)
    return str(getattr(function, "__qualname__", type(function).__qualname__))
