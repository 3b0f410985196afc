"""An extension that keeps a list of all that happens to it."""

from aloop import CallbackName, TrainingExtension


class Recorder(TrainingExtension):
    """Keeps a list of all that it is called with, as ``(callback, iterations_done, *args)``."""

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name)
        self.events: list[tuple[object, ...]] = []

    def handler(self, callback: CallbackName):
        async def record(*args: object) -> None:
            self.events.append((str(callback), self.main_loop.status["iterations_done"], *args))

        return record

    @property
    def callbacks(self) -> list[str]:
        """The names of the callbacks, in the order in which they came."""
        return [str(event[0]) for event in self.events]
