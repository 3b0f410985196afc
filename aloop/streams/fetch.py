"""Fetching the batches of an epoch, whichever way its iterator gives them."""

from collections.abc import Callable
from typing import Any, Final

from aloop.protocols import Batch

__all__ = ["END", "fetcher"]

END: Final = object()
"""What comes after the last batch. A batch can be anything, None included."""


def fetcher(iterator: Any) -> tuple[Callable[[], Any], bool]:
    """Give what fetches the next batch, or `END`, and whether it has to be awaited."""
    if hasattr(iterator, "__anext__"):

        async def wait() -> Batch:
            return await anext(iterator, END)

        return wait, True

    def read() -> Batch:
        return next(iterator, END)

    return read, False
