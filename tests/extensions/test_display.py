"""Printing and ProgressBar."""

import asyncio
import math
import sys
import threading
from contextlib import nullcontext
from functools import partial
from io import StringIO

import numpy as np
import pytest
from extension_helpers import At, CountingStream, FailingStep, live, loop_over
from tqdm import tqdm

from aloop import (
    ArrayStream,
    FinishAfter,
    Printing,
    ProgressBar,
    SequentialScheme,
    TrainingFinish,
)

RULE = "-" * 79

AT_THE_BEGINNING = f"""
{RULE}
BEFORE FIRST EPOCH
{RULE}
Training status:
\t batch_interrupt_received: False
\t epoch_interrupt_received: False
\t epoch_started: True
\t epochs_done: 0
\t iterations_done: 0
\t received_first_batch: False
\t resumed_from: None
\t training_started: True
Log records from the iteration 0:
"""

AT_THE_END = f"""
{RULE}
AFTER EPOCH
{RULE}
Training status:
\t batch_interrupt_received: False
\t epoch_interrupt_received: False
\t epoch_started: False
\t epochs_done: 1
\t iterations_done: 2
\t received_first_batch: True
\t resumed_from: None
\t training_started: True
Log records from the iteration 2:
\t Accuracy: 0.5
\t best: True
\t cost: 0.123457
\t examples: 1234567890
\t note: as text
"""


async def printed(printing, *extensions, stream=(1, 2), epochs=1):
    """Run the loop and give what was printed to the extension's file."""
    await loop_over(stream, *extensions, printing, FinishAfter(after_n_epochs=epochs)).run()
    return printing.file.getvalue()


def titles(text):
    """The titles of the blocks of a text."""
    lines = text.split("\n")
    return [
        title
        for above, title, below in zip(lines, lines[1:], lines[2:], strict=False)
        if above == below == RULE
    ]


def screen(text):
    """The lines that a terminal shows for a text with carriage returns."""
    lines = []
    for line in text.split("\n"):
        shown = []
        for part in line.split("\r"):
            shown[: len(part)] = part
        lines.append("".join(shown).rstrip(" "))
    return lines


def write_records(loop):
    loop.log.current_row.update(
        {
            "cost": 0.123456789,
            "_hidden": 1,
            "examples": 1234567890,
            "note": "as text",
            "best": True,
            "Accuracy": 0.5,
        }
    )


# Printing


async def test_block_at_the_beginning_is_exactly_this():
    printing = Printing(StringIO(), after_epoch=False, after_training=False)
    assert await printed(printing) == AT_THE_BEGINNING


async def test_block_with_records_is_exactly_this():
    printing = Printing(StringIO(), before_first_epoch=False, after_training=False)
    assert await printed(printing, At(write_records, after_n_batches=2)) == AT_THE_END


async def test_names_with_an_underscore_first_are_left_out():
    def write(loop):
        loop.log.current_row.update({"_a": 1, "__b": 2, "c_": 3})
        loop.status["_d"] = 4

    text = await printed(Printing(StringIO()), At(write, after_batch=True))
    assert [name for name in ("_a:", "__b:", "c_:", "_d:", "_epoch_ends:") if name in text] == [
        "c_:"
    ]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1 / 3, "0.333333"),
        (1.5, "1.5"),
        (12345678.9, "1.23457e+07"),
        (1e-9, "1e-09"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (12345678, "12345678"),
        (None, "None"),
        ([1, 0.5], "[1, 0.5]"),
        ({"a": 1}, "{'a': 1}"),
        (np.float32(0.5), "0.5"),
        (np.array([1, 2]), "[1 2]"),
    ],
)
async def test_value_is_shown_so(value, shown):
    write = At(lambda loop: loop.log.current_row.update(value=value), after_n_batches=1)
    text = await printed(Printing(StringIO()), write, stream=[1])
    assert text.count(f"\t value: {shown}\n") == 2


async def test_prints_at_its_default_callbacks():
    printing = Printing(StringIO())
    await live(printing)
    assert titles(printing.file.getvalue()) == [
        "BEFORE FIRST EPOCH",
        "AFTER EPOCH",
        "ON INTERRUPT",
        "AFTER TRAINING",
        "ON RESUMPTION",
        "AFTER EPOCH",
        "ON RESUMPTION",
        "AFTER EPOCH",
        "AFTER EPOCH",
        "AFTER TRAINING",
    ]


async def test_first_epoch_has_a_title_of_its_own():
    printing = Printing(
        StringIO(),
        before_first_epoch=False,
        before_epoch=True,
        after_epoch=False,
        after_training=False,
    )
    assert titles(await printed(printing, epochs=3)) == [
        "BEFORE FIRST EPOCH",
        "BEFORE EPOCH",
        "BEFORE EPOCH",
    ]


async def test_trigger_is_added_to_the_default_ones():
    printing = Printing(StringIO(), every_n_batches=2)
    assert titles(await printed(printing, stream=(1, 2, 3))) == [
        "BEFORE FIRST EPOCH",
        "AFTER BATCH",
        "AFTER EPOCH",
        "AFTER TRAINING",
    ]


async def test_prints_to_standard_output_by_default(capsys):
    loop = loop_over([1], Printing(after_epoch=False, after_training=False))
    loop.extensions.append(FinishAfter(after_n_epochs=1))
    await loop.run()
    assert capsys.readouterr() == (AT_THE_BEGINNING, "")


async def test_prints_the_same_where_no_bar_was_ever_made(monkeypatch):
    monkeypatch.delitem(sys.modules, "tqdm")
    printing = Printing(StringIO(), after_epoch=False, after_training=False)
    assert await printed(printing) == AT_THE_BEGINNING


async def test_printing_leaves_the_log_alone():
    printing = Printing(StringIO(), every_n_batches=1)
    log = await loop_over([1, 2], printing, FinishAfter(after_n_epochs=1)).run()
    assert list(log) == [2]


@pytest.mark.parametrize("bar_first", [True, False])
async def test_block_stands_on_lines_of_its_own_while_a_bar_is_shown(bar_first):
    after_batches = {
        "after_batch": True,
        "before_first_epoch": False,
        "after_epoch": False,
        "after_training": False,
    }
    file = StringIO()
    extensions = [ProgressBar(file), Printing(file, **after_batches)]
    if not bar_first:
        extensions.reverse()
    await loop_over([1, 2], *extensions, FinishAfter(after_n_epochs=1)).run()
    alone = await printed(Printing(StringIO(), **after_batches))
    lines = [line for line in screen(file.getvalue()) if not line.startswith("Epoch 1:")]
    assert lines == alone.split("\n")


async def test_bar_is_shown_again_below_the_block():
    file = StringIO()
    printing = Printing(file, after_n_batches=1, before_first_epoch=False)
    loop = loop_over([1, 2], ProgressBar(file), printing, FinishAfter(after_n_epochs=1))
    shown = []
    look = At(lambda loop: shown.append(screen(file.getvalue())[-1]), after_n_batches=1)
    loop.extensions.append(look)
    await loop.run()
    assert [line.partition(" [")[0].split("|")[-1].strip() for line in shown] == ["1/2"]


# ProgressBar


def bar_lines(file):
    """What is left on a terminal, which ends its last line: the title and the count of each bar."""
    lines = screen(file.getvalue())
    assert lines.pop() == ""
    parts = [line.partition(" [")[0].split("|") for line in lines]
    return [(title, count.strip()) for title, _, count in parts]


async def bars_of(loop, progress_bar):
    """Run the loop and give, for each batch, the bar as (title, batches counted, total)."""
    states = []
    loop.extensions.append(look_at(progress_bar, states))
    await loop.run()
    return states


def look_at(progress_bar, states):
    def look(loop):
        bar = progress_bar.bar
        states.append((bar.desc, bar.n, bar.total))

    return At(look, after_batch=True)


def bars_made(progress_bar, bars):
    """An extension that keeps the bars there were."""

    def keep(loop):
        if progress_bar.bar not in bars:
            bars.append(progress_bar.bar)

    return At(keep, before_batch=True, after_batch=True)


async def test_each_epoch_has_a_bar():
    progress_bar = ProgressBar(StringIO())
    loop = loop_over([1, 2], progress_bar, FinishAfter(after_n_epochs=2))
    assert await bars_of(loop, progress_bar) == [
        ("Epoch 1", 1, 2),
        ("Epoch 1", 2, 2),
        ("Epoch 2", 1, 2),
        ("Epoch 2", 2, 2),
    ]


async def test_last_short_batch_is_counted():
    progress_bar = ProgressBar(StringIO())
    stream = ArrayStream({"x": range(10)}, iteration_scheme=SequentialScheme(10, 4))
    loop = loop_over(stream, progress_bar, FinishAfter(after_n_epochs=1))
    assert await bars_of(loop, progress_bar) == [
        ("Epoch 1", 1, 3),
        ("Epoch 1", 2, 3),
        ("Epoch 1", 3, 3),
    ]


async def test_bar_of_unknown_length_has_no_end():
    progress_bar = ProgressBar(StringIO())
    loop = loop_over(lambda: iter([1, 2]), progress_bar, FinishAfter(after_n_epochs=1))
    assert await bars_of(loop, progress_bar) == [("Epoch 1", 1, None), ("Epoch 1", 2, None)]


async def test_bar_of_a_stream_without_length_has_no_end():
    progress_bar = ProgressBar(StringIO())
    loop = loop_over(CountingStream(1), progress_bar, FinishAfter(after_n_epochs=1))
    assert await bars_of(loop, progress_bar) == [("Epoch 1", 1, None)]


async def test_bar_of_an_iteration_scheme_without_length_has_no_end():
    progress_bar = ProgressBar(StringIO())
    stream = CountingStream(1)
    stream.iteration_scheme = object()
    loop = loop_over(stream, progress_bar, FinishAfter(after_n_epochs=1))
    assert await bars_of(loop, progress_bar) == [("Epoch 1", 1, None)]


@pytest.mark.parametrize("batches", [[1, 2, 3], (1, 2, 3), range(3), {"a", "b", "c"}])
async def test_total_is_the_length_of_what_the_stream_is_made_of(batches):
    progress_bar = ProgressBar(StringIO())
    loop = loop_over(batches, progress_bar, FinishAfter(after_n_batches=1))
    assert await bars_of(loop, progress_bar) == [("Epoch 1", 1, 3)]


async def test_finished_bar_shows_all_batches():
    file = StringIO()
    loop = loop_over([1, 2, 3], ProgressBar(file), FinishAfter(after_n_epochs=1))
    await loop.run()
    assert bar_lines(file) == [("Epoch 1: 100%", "3/3")]


async def test_bar_goes_to_standard_error_by_default(capsys):
    await loop_over([1], ProgressBar(), FinishAfter(after_n_epochs=1)).run()
    output, errors = capsys.readouterr()
    assert output == ""
    assert "Epoch 1: 100%" in errors


async def test_resumed_in_mid_epoch_the_bar_starts_at_its_batch():
    progress_bar = ProgressBar(StringIO())
    stop = At(stop_after_batch, after_n_batches=2)
    loop = loop_over([1, 2, 3, 4], progress_bar, stop, FinishAfter(after_n_epochs=1))
    await loop.run()
    initial = []
    loop.extensions.append(At(lambda loop: initial.append(progress_bar.bar.n), on_resumption=True))
    states = await bars_of(loop, progress_bar)
    assert initial == [2]
    assert states == [("Epoch 1", 3, 4), ("Epoch 1", 4, 4)]


async def test_resumed_in_mid_epoch_the_rate_leaves_out_the_batches_before():
    progress_bar = ProgressBar(StringIO())
    stop = At(stop_after_batch, after_n_batches=2)
    loop = loop_over([1, 2, 3, 4], progress_bar, stop, FinishAfter(after_n_epochs=1))
    await loop.run()
    initial = []
    loop.extensions.append(
        At(lambda loop: initial.append(progress_bar.bar.initial), after_batch=True)
    )
    await loop.run()
    assert initial == [2, 2]


async def test_resumed_between_epochs_there_is_no_bar_until_the_next_begins():
    progress_bar = ProgressBar(StringIO())
    loop = loop_over([1, 2], progress_bar, FinishAfter(every_n_epochs=1))
    await loop.run()
    bars = []
    loop.extensions.append(At(lambda loop: bars.append(progress_bar.bar), on_resumption=True))
    states = await bars_of(loop, progress_bar)
    assert bars == [None]
    assert states == [("Epoch 2", 1, 2), ("Epoch 2", 2, 2)]


async def test_epoch_whose_first_batch_failed_goes_on_with_a_bar():
    progress_bar = ProgressBar(StringIO())
    loop = loop_over([1, 2, 3], progress_bar, FinishAfter(after_n_epochs=1), step=FailingStep(1))
    with pytest.raises(ArithmeticError):
        await loop.run()
    shown = []
    loop.extensions.append(
        At(lambda loop: shown.append(progress_bar.bar is not None), after_batch=True)
    )
    await loop.run()
    assert shown == [True, True]


async def test_epoch_that_failed_later_goes_on_with_a_bar():
    progress_bar = ProgressBar(StringIO())
    loop = loop_over([1, 2, 3], progress_bar, FinishAfter(after_n_epochs=1), step=FailingStep(2))
    with pytest.raises(ArithmeticError):
        await loop.run()
    assert await bars_of(loop, progress_bar) == [("Epoch 1", 3, 3)]


async def test_bar_is_closed_before_the_next_extension_ends_the_epoch():
    progress_bar = ProgressBar(StringIO())
    bars = []
    look = At(lambda loop: bars.append(progress_bar.bar), after_epoch=True)
    await loop_over([1, 2], progress_bar, look, FinishAfter(after_n_epochs=2)).run()
    assert bars == [None, None]


def fail(loop):
    raise ArithmeticError


def finish(loop):
    raise TrainingFinish


def stop_after_batch(loop):
    loop.request_finish("batch")


def stop_after_epoch(loop):
    loop.request_finish("epoch")


ENDINGS = {
    "finish after an epoch": (FinishAfter, {"after_n_epochs": 2}),
    "finish in mid-epoch": (FinishAfter, {"after_n_batches": 3}),
    "finish raised": (partial(At, finish), {"after_n_batches": 3}),
    "interrupt after the batch": (partial(At, stop_after_batch), {"after_n_batches": 3}),
    "interrupt after the epoch": (partial(At, stop_after_epoch), {"after_n_batches": 3}),
    "error of an extension": (partial(At, fail), {"after_n_batches": 3}),
    "error before a batch": (partial(At, fail), {"before_batch": True}),
}


@pytest.mark.parametrize("ending", ENDINGS)
async def test_bars_are_closed_after(ending):
    make, triggers = ENDINGS[ending]
    bars = []
    progress_bar = ProgressBar(StringIO())
    loop = loop_over([1, 2], progress_bar, bars_made(progress_bar, bars), make(**triggers))
    with pytest.raises(ArithmeticError) if ending.startswith("error") else nullcontext():
        await loop.run()
    assert {bar.disable for bar in bars} == {True}
    assert progress_bar.bar is None


async def test_bar_is_closed_after_a_cancellation():
    bars = []
    progress_bar = ProgressBar(StringIO())
    cancel = At(lambda loop: task.cancel(), after_n_batches=1)
    loop = loop_over([1, 2], progress_bar, bars_made(progress_bar, bars), cancel)
    task = asyncio.create_task(loop.run())
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [bar.disable for bar in bars] == [True]


async def test_bar_is_closed_after_an_error_of_the_step():
    bars = []
    progress_bar = ProgressBar(StringIO())
    loop = loop_over([1, 2], progress_bar, bars_made(progress_bar, bars), step=FailingStep(2))
    with pytest.raises(ArithmeticError):
        await loop.run()
    assert [bar.disable for bar in bars] == [True]


async def test_bar_is_closed_after_a_keyboard_interrupt_in_the_step():
    async def step(batch):
        raise KeyboardInterrupt

    bars = []
    progress_bar = ProgressBar(StringIO())
    loop = loop_over([1, 2], progress_bar, bars_made(progress_bar, bars), step=step)
    with pytest.raises(KeyboardInterrupt):
        await loop.run()
    assert [bar.disable for bar in bars] == [True]


async def test_no_bar_is_left_among_those_that_are_shown():
    shown = set(tqdm._instances)
    await loop_over([1, 2], ProgressBar(StringIO()), FinishAfter(after_n_epochs=2)).run()
    assert set(tqdm._instances) - shown == set()


async def test_unfinished_bar_ends_its_line():
    file = StringIO()
    loop = loop_over([1, 2, 3], ProgressBar(file), FinishAfter(after_n_batches=2))
    await loop.run()
    assert bar_lines(file) == [("Epoch 1:  67%", "2/3")]


async def test_no_thread_is_left_behind():
    threads = set(threading.enumerate())
    await loop_over([1, 2], ProgressBar(StringIO()), FinishAfter(after_n_epochs=2)).run()
    assert set(threading.enumerate()) - threads == set()


async def test_progress_bar_leaves_the_log_alone():
    loop = loop_over([1, 2], ProgressBar(StringIO()), FinishAfter(after_n_epochs=1))
    log = await loop.run()
    assert list(log) == [2]
