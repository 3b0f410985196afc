"""What is around the runs of a training in this process, and is as it was after them."""

import asyncio
import gc
import logging
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Final

from aloop.errors import ArgumentError
from aloop.signals import SIGNALS

__all__ = ["alone", "forget_frames", "handlers_kept", "messages_kept", "refuse_in_a_loop"]

_MAX_MESSAGES: Final = 5

_in_use: Final = threading.Lock()


def refuse_in_a_loop(what: str) -> None:
    """Raise `ArgumentError` where an event loop runs in this thread already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise ArgumentError(
        f"{what} was called where an event loop runs; expected none, for it runs event loops of "
        "its own; call it from a test that is no coroutine function, or by asyncio.to_thread"
    )


@contextmanager
def alone() -> Generator[None]:
    """Have to oneself what attempts change in the whole process; `ArgumentError` if another has.

    What there is already is left out when garbage is looked for, which each attempt has done.
    """
    if not _in_use.acquire(blocking=False):
        raise ArgumentError(
            "a training is being broken in this process already; expected one at a time; wait for "
            "the other, or use another process"
        )
    try:
        gc.collect()
        gc.freeze()
        yield
    finally:
        gc.unfreeze()
        _in_use.release()


@contextmanager
def handlers_kept() -> Generator[None]:
    """Put back the signal handlers, where the program that is run sets some of its own."""
    before = [(number, signal.getsignal(number)) for number in SIGNALS]
    try:
        yield
    finally:
        for number, handler in before:
            if signal.getsignal(number) != handler and handler is not None:
                with suppress(ValueError):  # in another thread, which cannot have changed it
                    signal.signal(number, handler)


class _Messages(logging.Handler):
    """Keeps the warnings of aloop."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@contextmanager
def messages_kept(wrong: list[str]) -> Generator[None]:
    """Keep messages from the terminal; add the last of them to what is wrong, if anything is."""
    logger, messages = logging.getLogger("aloop"), _Messages()
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(messages)
    try:
        yield
    finally:
        logger.removeHandler(messages)
        logger.propagate = propagates
        if wrong:
            wrong += [f"aloop said: {text}" for text in messages.texts[-_MAX_MESSAGES:]]


def forget_frames(error: BaseException | None) -> None:
    """Let an error, and what led to it, be without the frames that it came through."""
    left: list[BaseException | None] = [error]
    while left:
        error = left.pop()
        if error is not None and error.__traceback__ is not None:
            error.__traceback__ = None
            left += [error.__cause__, error.__context__, *getattr(error, "exceptions", ())]
