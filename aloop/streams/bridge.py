"""Advancing a sync iterator in a thread, ahead of what is consumed.

Beside each batch that was read ahead is the place in the stream after it, so that the place
consumed is known whatever the thread has read since. What was read and not consumed stays there
from one run to the next.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from time import perf_counter
from typing import Any, Final

from aloop.errors import StreamError
from aloop.faults import fault_point, with_points
from aloop.offload import Worker
from aloop.streams.base import READ_AHEAD
from aloop.turns import thread_at_work

__all__ = ["END", "ENDING_S", "Bridge"]

END: Final = object()
"""What comes after the last batch. A batch can be anything, None included."""

ENDING_S: Final = 0.5
"""How long the end of a run waits for a batch that is on its way, in seconds."""

_HANDFUL_S: Final = 0.001
"""How long a batch that is there waits for others to come: each wake-up of the event loop takes
some 0.1 ms, and takes the interpreter from the thread that fetches."""

_MAX_HANDFUL: Final = 32

_logger = logging.getLogger("aloop")


class Bridge:
    """Advances a sync iterator in a thread; what it gives is taken in the event loop.

    Parameters:
        iterator: of the epoch; only the thread uses it.
        worker: the thread, which its owner ends after `rest`.
        name: how messages call the stream.
        read_ahead: how many batches are read before they are asked for, 0 or more; unless given,
            2, and those that take far less than a millisecond by the handful, for they cost less
            than to wake the event loop does.
        tell_place: gives the place in the stream, as something that does not change any more; it
            is called in the thread after each batch, and before the first one by who asks for it.
    """

    def __init__(
        self,
        iterator: Iterator[Any],
        worker: Worker,
        *,
        name: str,
        read_ahead: int | None = None,
        tell_place: Callable[[], Any] | None = None,
    ) -> None:
        self.iterator = iterator
        self.place: Any = None
        """The place in the stream right after what was taken last."""
        self._name = name
        self._read_ahead = READ_AHEAD if read_ahead is None else read_ahead
        self._takes_handfuls = read_ahead is None
        self._handful = 0  # how many are read ahead because they are so cheap
        self._tell_place = tell_place
        self._has_begun = False
        self._worker = worker
        self._filler: Worker | None = None  # the thread that is at work
        # Each with the place after it, and what the iterator raised in its place.
        self._fetched: deque[tuple[Any, Any, BaseException | None]] = deque()
        self._next = with_points(next, "bridge.reading", "bridge.read")
        self._put = with_points(self._fetched.append, after="bridge.put")
        self._has_stopped = False  # the thread, at the end or at an error, until it is asked again
        self._is_last_taken = False  # what it had stopped at
        self._has_failed = False  # with what was taken last
        self._is_resting = False  # between two runs nothing more is read
        self._is_filling = False
        self._changing = threading.Lock()  # of who decides whether the thread is at work
        self._waiter: asyncio.Future[None] | None = None  # for a batch
        self._asked_at = 0.0
        self._idle: asyncio.Future[None] | None = None  # for the thread to hold still

    @property
    def is_ready(self) -> bool:
        """True when there is something to take."""
        return bool(self._fetched)

    @property
    def is_filling(self) -> bool:
        """True while the thread is at work, perhaps in the wait for a batch."""
        return self._is_filling

    @property
    def has_stopped(self) -> bool:
        """True when the iterator has come to its end, or has raised."""
        return self._has_stopped

    @property
    def is_ahead(self) -> bool:
        """True when the iterator has moved, or may at any time, for what was not taken."""
        # After the end the thread may still be on its way out, but it reads no more. What has
        # failed may have moved first.
        is_reading = self._is_filling and not self._is_last_taken
        return bool(self._fetched) or is_reading or self._has_failed

    def take(self, check: Callable[[Any], Any] | None = None) -> Any:
        """Give the next batch, or `END`, or raise what the iterator did in its place.

        Parameters:
            check: raises for a batch that is refused; the place is then that before it.
        """
        batch, place, error = self._fetched.popleft()
        self._has_failed = True
        if error is not None:
            self._is_last_taken = True
            raise error
        if check is not None:
            check(batch)
        self._has_failed = False
        self.place = place
        if batch is END:
            self._is_last_taken = True
        elif not self._has_stopped and (
            len(self._fetched) < max(self._read_ahead, self._handful // 2)
        ):
            self._fill_soon()
        return batch

    def ask(self) -> "asyncio.Future[None]":
        """Give what is done when there is something to take."""
        loop = asyncio.get_running_loop()
        self._asked_at = perf_counter()
        if self._waiter is None or self._waiter.done() or self._waiter.get_loop() is not loop:
            self._waiter = loop.create_future()
        waiter = self._waiter
        if self._tell_place is not None and not self._has_begun:
            self.place = self._tell_place()
        self._has_begun = True
        if self._is_last_taken:
            self._is_last_taken = self._has_stopped = self._has_failed = False
        if self._read_ahead:
            # The thread wakes the event loop for a handful, and the next batch may be a slow one.
            loop.call_later(_HANDFUL_S, self._wake_if_any, waiter)
        self._fill_soon()
        self._wake_if_any(waiter)  # what came before the thread could see that somebody waits
        return waiter

    async def advance(self) -> Any:
        """Give the next batch, or `END`, or raise what the iterator did in its place."""
        while not self._fetched:
            with thread_at_work():
                await self.ask()
        return self.take()

    async def rest(self) -> None:
        """Let the run go: read no more until somebody asks.

        A batch that is on its way is waited for, but not for long: one that never comes is named,
        and the thread left to its wait. What comes then is there for the next run.
        """
        with self._changing:
            self._is_resting = True
            idle = self._idle = (
                asyncio.get_running_loop().create_future() if self._is_filling else None
            )
        if idle is not None:
            await asyncio.wait([idle], timeout=ENDING_S)
            self._idle = None
        if self._is_filling:
            _logger.warning(
                "%s gives no batch: the run ends without it, and its thread is left to wait for "
                "it; what comes is kept for another run of this loop",
                self._name,
            )
        else:
            fault_point("bridge.rested")

    def let_go(self) -> None:
        """Read no more, for nobody will ask."""
        self._is_resting = True

    def go_on_in(self, worker: Worker) -> None:
        """Use another thread from now on."""
        self._worker = worker

    def _fill_soon(self) -> None:
        with self._changing:
            self._is_resting = False
            # In a process that was forked there may be none at work any more.
            if self._is_filling and self._filler is not None and self._filler.is_busy:
                return
            self._is_filling = True
            self._filler = self._worker
            self._worker.post(self._fill)

    def _wake_if_any(self, waiter: "asyncio.Future[None]") -> None:
        if self._fetched:
            self._wake(waiter)

    def _wake(self, waiter: "asyncio.Future[None]") -> None:
        if self._waiter is waiter:
            self._waiter = None
        if not waiter.done():
            waiter.set_result(None)

    # In the thread.

    def _fill(self) -> None:
        while True:
            self._read_some()
            with self._changing:
                if not self._has_room():
                    self._is_filling = False
                    break
        if self._fetched:
            self._wake_soon(self._waiter)
        idle = self._idle
        if idle is not None:
            with suppress(RuntimeError):  # its event loop is closed
                idle.get_loop().call_soon_threadsafe(_settle, idle)

    def _has_room(self) -> bool:
        ahead = max(self._read_ahead, self._handful) + (self._waiter is not None)
        return not (self._is_resting or self._has_stopped) and len(self._fetched) < ahead

    def _read_some(self) -> None:
        begun = perf_counter()
        number = 0
        woken: asyncio.Future[None] | None = None
        while self._has_room():
            self._read_one()
            number += 1
            now = perf_counter()
            waiter = self._waiter
            if waiter is not woken and self._is_enough(now - self._asked_at):
                woken = waiter
                self._wake_soon(waiter)
            if self._takes_handfuls:
                rate = number / (now - begun)
                self._handful = int(min(_MAX_HANDFUL, rate * _HANDFUL_S))

    def _wake_soon(self, waiter: "asyncio.Future[None] | None") -> None:
        if waiter is not None:
            with suppress(RuntimeError):  # its event loop is closed
                waiter.get_loop().call_soon_threadsafe(self._wake, waiter)

    def _is_enough(self, waited_s: float) -> bool:
        """Say whether who waits is to be woken, though there might soon be more."""
        return len(self._fetched) >= self._handful or waited_s >= _HANDFUL_S or self._has_stopped

    def _read_one(self) -> None:
        place: Any = None
        error: BaseException | None = None
        batch: Any = END
        try:
            batch = self._next(self.iterator, END)
            if self._tell_place is not None:
                place = self._tell_place()
        except asyncio.CancelledError as raised:
            error = StreamError(
                f"{self._name} raised CancelledError in its thread, where nothing is cancelled; "
                "expected a batch, or another error; look at what it waits for"
            )
            error.__cause__ = raised
        except BaseException as raised:  # noqa: BLE001 - raised where the batch is taken
            error = raised
        self._has_stopped = batch is END or error is not None
        self._put((batch, place, error))


def _settle(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
