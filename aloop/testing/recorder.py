"""An extension that keeps a list of all that happens to it."""

from typing import Any

from aloop.callbacks import CallbackName
from aloop.extensions import TrainingExtension
from aloop.extensions.limits import Handler

__all__ = ["Recorder"]


class Recorder(TrainingExtension):
    """Keeps a list of all that it is called with, as ``(callback, iterations_done, *args)``.

    What else is given it, as a scripted algorithm and stream are, writes into the same list, so
    that it tells the whole run in order, and is compared as a whole::

        assert recorder.events == [("before_training", 0), ("initialize",), …]

    Parameters:
        name: by which `MainLoop.find_extension` finds it; the class's name unless given.
    """

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name)
        self.events: list[tuple[object, ...]] = []
        """What has happened, in order."""

    def record(self, *event: object) -> None:
        """Add an event."""
        self.events.append(event)

    def handler(self, callback: CallbackName) -> Handler | None:
        """Give what records this callback, whichever it is."""

        async def record(*args: Any) -> None:  # what the callback is called with
            self.record(str(callback), self.main_loop.status["iterations_done"], *args)

        return record

    @property
    def callbacks(self) -> list[str]:
        """The names of all events, in order: of the callbacks, where nobody else writes."""
        return [str(event[0]) for event in self.events]
