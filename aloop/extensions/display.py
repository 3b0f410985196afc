"""Extensions that show the training to a person at a terminal or in a notebook."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TextIO, Unpack

from aloop.callbacks import CallbackName
from aloop.extensions.base import TrainingExtension
from aloop.extensions.limits import LimitOptions
from aloop.extensions.simple import Options, SimpleExtension
from aloop.streams.reading import epoch_length

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["Printing", "ProgressBar"]

_LINE = "-" * 79


class Printing(SimpleExtension):
    """Prints the status of the training and the records of the current row.

    By default before the first epoch, on resumption, after each epoch, on an interrupt and after
    the training. Names that begin with an underscore are left out.

    Parameters:
        file: where to print; standard output unless given.
        name, options: as for `SimpleExtension`.
    """

    def __init__(
        self, file: TextIO | None = None, name: str | None = None, **options: Unpack[Options]
    ) -> None:
        self.file = file
        by_default: Options = {
            "before_first_epoch": True,
            "on_resumption": True,
            "after_epoch": True,
            "after_training": True,
            "on_interrupt": True,
        }
        super().__init__(name, **(by_default | options))

    async def do(self, which_callback: str, *args: Any) -> None:
        """Print a block."""
        log = self.main_loop.log
        title = which_callback
        if which_callback == CallbackName.BEFORE_EPOCH and not log.status["epochs_done"]:
            title = "before_first_epoch"
        block = [
            "",
            _LINE,
            title.replace("_", " ").upper(),
            _LINE,
            "Training status:",
            *_lines(log.status),
            f"Log records from the iteration {log.status['iterations_done']}:",
            *_lines(log.current_row),
        ]
        _write("\n".join(block), sys.stdout if self.file is None else self.file)


class ProgressBar(TrainingExtension):
    """Shows one progress bar an epoch, by tqdm: in a terminal as text, in a notebook as a widget.

    The bar has an end when the number of batches is known: from the length of the stream's
    iteration scheme, or of the stream itself.

    Parameters:
        file: where to show it; standard error unless given.
        name, limits: as for `TrainingExtension`.
    """

    def __init__(
        self, file: TextIO | None = None, name: str | None = None, **limits: Unpack[LimitOptions]
    ) -> None:
        super().__init__(name, **limits)
        self.file = file
        self.bar: tqdm[Any] | None = None

    async def before_epoch(self) -> None:
        """Begin a bar."""
        self._begin(0)

    async def on_resumption(self) -> None:
        """Begin a bar in the middle, if that is where the epoch is."""
        if self.main_loop.position.stage.in_epoch:
            self._begin(self.main_loop.position.batch)

    async def after_batch(self, batch: object) -> None:
        """Move the bar."""
        if self.bar is None:
            # The run went on in the middle of an epoch without a resumption: after an error in
            # the very first step, or when this extension was added late.
            self._begin(self.main_loop.position.batch - 1)
        assert self.bar is not None
        self.bar.update()

    async def after_epoch(self) -> None:
        """End the bar."""
        self._end()

    async def after_training(self) -> None:
        """End the bar."""
        self._end()

    async def on_interrupt(self) -> None:
        """End the bar."""
        self._end()

    async def on_error(self, exception: BaseException) -> None:
        """End the bar."""
        self._end()

    def _begin(self, batches: int) -> None:
        self._end()
        # Imported when the first bar is shown: tqdm takes a third of the time numpy takes.
        from tqdm.auto import tqdm

        # Which class this is depends on where it shows: a terminal or a notebook.
        class Bar(tqdm):  # pyright: ignore[reportMissingTypeArgument, reportUntypedBaseClass]
            monitor_interval = 0  # or tqdm starts a thread, which outlives the run

        self.bar = Bar(
            desc=f"Epoch {self.main_loop.status['epochs_done'] + 1}",
            total=epoch_length(self.main_loop.data_stream),
            initial=batches,
            unit="batch",
            miniters=1,  # look at the clock at every batch, since no monitor thread does
            file=self.file,
        )

    def _end(self) -> None:
        bar, self.bar = self.bar, None
        if bar is not None:
            bar.close()


def _lines(records: Mapping[str, Any]) -> list[str]:
    return [
        f"\t {name}: {_short(records[name])}"
        for name in sorted(records)
        if not name.startswith("_")
    ]


def _short(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _write(text: str, file: TextIO) -> None:
    tqdm_module = sys.modules.get("tqdm")
    if tqdm_module is None:
        print(text, file=file)
    else:
        # Takes the bars that are showing off the screen while it prints.
        with tqdm_module.tqdm.external_write_mode(file=file):
            print(text, file=file)
