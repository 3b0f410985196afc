"""How long an extension may take, and what its failures mean for the run."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from inspect import isawaitable
from operator import index
from typing import Any, Final, Literal, TypeAlias, TypedDict, cast, get_args

from aloop.errors import ArgumentError, TrainingFinish, brief, seconds_of

__all__ = ["FailurePolicy", "Handler", "LimitOptions", "Limits"]

# What a handler returns is awaited if it can be, and ignored otherwise.
Handler: TypeAlias = Callable[..., object]

FailurePolicy: TypeAlias = Literal["raise", "log"]
"""``"raise"``: the failure ends the run; ``"log"``: it is logged, and the run goes on."""


class LimitOptions(TypedDict, total=False):
    """The limits, as every extension takes them."""

    timeout_s: float | None
    on_failure: FailurePolicy
    retries: int


FIRST_PAUSE_S: Final = 0.1
"""How long it waits before it tries again; each further time twice as long."""

LONGEST_PAUSE_S: Final = 5.0

_FOR_EVER: Final = float("inf")

_logger = logging.getLogger("aloop")


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one extension.

    Parameters:
        timeout_s: seconds that one call has, None for as long as it takes.
        on_failure: what a call that raises, or takes too long, means for the run.
        retries: how often a call that fails is tried again, before that counts.
    """

    timeout_s: float | None = None
    on_failure: FailurePolicy = "raise"
    retries: int = 0

    def __post_init__(self) -> None:
        if self.timeout_s is not None and not 0 < (seconds_of(self.timeout_s) or 0) < _FOR_EVER:
            raise ArgumentError(
                f"timeout_s is {self.timeout_s!r}; expected seconds, more than 0; leave it out "
                "for a call that may take as long as it does"
            )
        if self.on_failure not in get_args(FailurePolicy):
            raise ArgumentError(
                f"on_failure is {self.on_failure!r}; expected 'raise' or 'log'; leave it out for "
                "'raise'; to try again use retries=1 or more"
            )
        if not _is_count(self.retries):
            raise ArgumentError(
                f"retries is {self.retries!r}; expected a whole number, 0 or more; leave it out "
                "to try once"
            )

    def over(
        self, handler: Handler, what: str, pause: Callable[[float], Awaitable[bool]]
    ) -> Handler:
        """Hold a handler to the limits.

        Parameters:
            handler: what is to be called. `TrainingFinish` and cancellations go through.
            what: how the log calls it.
            pause: waits so many seconds, or until the run is to stop; gives whether it is.
        """
        if self == Limits():
            return handler

        async def limited(*args: Any) -> None:
            attempt, is_last = 0, not self.retries
            while True:
                try:
                    await self._call(handler, what, *args)
                    return
                except TrainingFinish:
                    raise
                except Exception as error:  # noqa: BLE001 - it is what they are about
                    attempt += 1
                    if is_last:
                        self._fail(error, what, attempt)
                        return
                    _logger.warning(
                        "%s failed, and is tried again: %s (%d of %d times)",
                        what,
                        brief(error),
                        attempt,
                        self.retries,
                    )
                # A stop does not wait for a server that is down: it is tried once more, at once.
                seconds = min(FIRST_PAUSE_S * 2 ** min(attempt - 1, 30), LONGEST_PAUSE_S)
                is_last = await pause(seconds) or attempt == self.retries

        return limited

    async def _call(self, handler: Handler, what: str, *args: Any) -> None:
        scope = asyncio.timeout(self.timeout_s)
        try:
            async with scope:
                result = handler(*args)
                if isawaitable(result):
                    await result
        except TimeoutError as error:
            if scope.expired():
                raise TimeoutError(
                    f"{what} took longer than its timeout_s of {self.timeout_s:g} s"
                ) from error
            raise

    def _fail(self, error: Exception, what: str, attempts: int) -> None:
        if attempts > 1:
            error.add_note(f"{what} failed {attempts} times in a row")
        if self.on_failure == "raise":
            raise error
        _logger.warning("%s failed, and the run goes on: %s", what, brief(error), exc_info=error)


def _is_count(value: object) -> bool:
    try:
        return not isinstance(value, bool) and index(cast("Any", value)) >= 0
    except TypeError:
        return False
