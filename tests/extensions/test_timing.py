"""Timestamp."""

import time
from datetime import datetime, timedelta

import pytest
from extension_helpers import Noting, live, loop_over

from aloop import CallbackName, FinishAfter, Timestamp

EVERYWHERE = {str(name): True for name in CallbackName}


@pytest.fixture
def time_zone(monkeypatch):
    """Five and a half hours ahead of UTC, all year."""
    monkeypatch.setenv("TZ", "TEST-05:30")
    time.tzset()
    yield timedelta(hours=5, minutes=30)
    monkeypatch.undo()
    time.tzset()


class Taking(Noting):
    """Takes a record out of the row at every callback and notes where there was one."""

    def __init__(self, events, record):
        super().__init__(events, **EVERYWHERE)
        self.record = record

    async def do(self, which_callback, *args):
        log = self.main_loop.log
        if log.current_row.pop(self.record, None) is not None:
            self.events.append((which_callback, log.status["iterations_done"]))


async def first_timestamp(extension, record="timestamp"):
    """What the extension records before the training."""
    loop = loop_over([1], extension, FinishAfter(after_n_epochs=1))
    log = await loop.run()
    return log[0][record]


async def test_records_at_its_default_callbacks():
    events = []
    await live(Timestamp(), Taking(events, "timestamp"))
    assert events == [
        ("before_training", 0),
        ("after_epoch", 4),
        ("on_interrupt", 6),
        ("after_training", 6),
        ("on_resumption", 6),
        ("after_epoch", 8),
        ("on_error", 8),
        ("on_resumption", 8),
        ("after_epoch", 11),
        ("after_epoch", 15),
        ("after_training", 15),
    ]


async def test_default_callback_can_be_turned_off_and_another_added():
    events = []
    extension = Timestamp(after_epoch=False, on_resumption=False, every_n_batches=7)
    await live(extension, Taking(events, "timestamp"))
    assert events == [
        ("before_training", 0),
        ("on_interrupt", 6),
        ("after_training", 6),
        ("after_batch", 7),
        ("on_error", 8),
        ("after_batch", 14),
        ("after_training", 15),
    ]


async def test_records_the_present_time():
    extension = Timestamp()
    begin = datetime.now().astimezone()
    text = await first_timestamp(extension)
    end = datetime.now().astimezone()
    assert begin <= datetime.fromisoformat(text) <= end


async def test_records_the_local_time_with_its_offset(time_zone):
    text = await first_timestamp(Timestamp())
    assert text.endswith("+05:30")
    assert datetime.fromisoformat(text).utcoffset() == time_zone


async def test_separator_is_a_space_by_default():
    text = await first_timestamp(Timestamp())
    assert text[10] == " "


async def test_separator_can_be_chosen():
    text = await first_timestamp(Timestamp(separator="T"))
    assert text[10] == "T"


async def test_record_can_be_named():
    events = []
    await live(Timestamp("wall_clock", name="clock"), Taking(events, "timestamp"))
    assert events == []


async def test_named_record_holds_the_time():
    text = await first_timestamp(Timestamp("wall_clock"), record="wall_clock")
    assert datetime.fromisoformat(text).utcoffset() is not None


def test_name_of_the_extension_is_not_that_of_the_record():
    extension = Timestamp("wall_clock", name="clock")
    assert (extension.name, extension.log_record) == ("clock", "wall_clock")
