"""What an extension may take, and what its failures cost the run."""

import asyncio
import logging

import pytest
from extension_helpers import loop_over, nothing

from aloop import (
    CompositeExtension,
    FinishAfter,
    MainLoop,
    Printing,
    ProgressBar,
    SimpleExtension,
    Timestamp,
    TrainingDataMonitoring,
    TrainingExtension,
    TrainingFinish,
)
from aloop.background import BackgroundWork
from aloop.errors import ArgumentError
from aloop.extensions import limits
from aloop.extensions.simple import Options


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again at once."""
    monkeypatch.setattr(limits, "FIRST_PAUSE_S", 0.0)


class Tracker(SimpleExtension):
    """Sends to a server that is down so many times, or hangs, and then takes what it is sent."""

    def __init__(self, *troubles: object, **options) -> None:
        super().__init__(**options)
        self.troubles = list(troubles)
        self.calls = 0
        self.sent: list[int] = []

    async def do(self, which_callback: str, *args: object) -> None:
        self.calls += 1
        trouble = self.troubles.pop(0) if self.troubles else None
        if trouble == "hang":
            await asyncio.Event().wait()
        if isinstance(trouble, BaseException):
            raise trouble
        self.sent.append(self.main_loop.status["iterations_done"])


def down(times: int) -> list[OSError]:
    return [OSError(f"down {n}") for n in range(1, times + 1)]


# ------------------------------------------------------------------ the policy


async def test_a_failure_ends_the_run_unless_something_else_is_said() -> None:
    loop = loop_over([1, 2], Tracker(*down(1), after_batch=True))
    with pytest.raises(OSError, match="down 1") as caught:
        await loop.run()
    assert caught.value.__notes__ == ["raised by the extension 'Tracker' in after_batch"]


async def test_logged_it_costs_the_training_nothing(caplog) -> None:
    tracker = Tracker(*down(3), after_batch=True, on_failure="log")
    loop = loop_over(range(5), tracker, FinishAfter(after_n_epochs=1))
    log = await loop.run()
    assert tracker.sent == [4, 5]
    assert "got_exception" not in log.current_row
    told = [r for r in caplog.records if "failed, and the run goes on" in r.message]
    assert [r.levelno for r in told] == [logging.WARNING] * 3
    assert "the extension 'Tracker' in after_batch" in told[0].message
    assert "down 1" in told[0].message
    assert told[0].exc_info is not None


async def test_it_is_tried_again_as_often_as_it_may(caplog) -> None:
    tracker = Tracker(*down(2), after_epoch=True, retries=2)
    await loop_over([1], tracker, FinishAfter(after_n_epochs=1)).run()
    assert (tracker.calls, tracker.sent) == (3, [1])
    told = "the extension 'Tracker' in after_epoch failed, and is tried again: OSError('down {}') "
    assert [m for m in caplog.messages if "is tried again" in m] == [
        told.format(n) + f"({n} of 2 times)" for n in (1, 2)
    ]


async def test_when_no_try_is_left_the_policy_says_what_that_means() -> None:
    tracker = Tracker(*down(3), after_epoch=True, retries=2)
    with pytest.raises(OSError, match="down 3") as caught:
        await loop_over([1], tracker).run()
    assert (
        "the extension 'Tracker' in after_epoch failed 3 times in a row" in caught.value.__notes__
    )
    tracker = Tracker(*down(3), after_epoch=True, retries=2, on_failure="log")
    await loop_over([1], tracker, FinishAfter(after_n_epochs=2)).run()
    assert (tracker.calls, tracker.sent) == (4, [2])


async def test_between_two_tries_it_waits_longer_and_longer(monkeypatch) -> None:
    waited: list[float] = []

    async def pause(background: BackgroundWork, seconds: float) -> bool:
        waited.append(seconds)
        return False

    monkeypatch.setattr(limits, "FIRST_PAUSE_S", 0.1)
    monkeypatch.setattr(BackgroundWork, "pause", pause)
    tracker = Tracker(*down(2000), after_training=True, retries=2000)
    await loop_over(range(1), tracker, FinishAfter(after_n_epochs=1)).run()
    assert [round(s, 3) for s in waited[:8]] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert (len(waited), waited[-1]) == (2000, 5.0)


@pytest.mark.parametrize("background", [False, True])
async def test_a_stop_does_not_wait_for_a_server_that_is_down(monkeypatch, background) -> None:
    monkeypatch.setattr(limits, "FIRST_PAUSE_S", 60.0)
    monkeypatch.setattr(limits, "LONGEST_PAUSE_S", 60.0)
    tracker = Tracker(
        *down(9), after_n_batches=1, retries=9, on_failure="log", background=background
    )
    loop = MainLoop(nothing, lambda: iter(range(10**9)), extensions=[tracker])
    async with asyncio.timeout(5), loop.running():
        while not tracker.calls:
            await asyncio.sleep(0)
        await asyncio.sleep(0)  # into the pause
    assert tracker.calls == 2  # once more, at once
    assert loop.log.current_row["training_finished"] is True


async def test_what_was_cancelled_at_an_ending_is_not_tried_again(caplog) -> None:
    class Clean(Tracker):
        async def do(self, which_callback: str, *args: object) -> None:
            self.calls += 1
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise RuntimeError("in the clean-up") from None

    tracker = Clean(after_batch=True, retries=5, background=True)
    loop = loop_over([1], tracker, FinishAfter(after_n_epochs=1))
    loop._grace_s = 0.05
    log = await loop.run()
    assert tracker.calls == 1
    assert log.current_row["training_finished"] is True


async def test_a_finish_and_a_cancellation_are_no_failures() -> None:
    tracker = Tracker(TrainingFinish(), after_batch=True, on_failure="log", retries=5)
    log = await loop_over(range(5), tracker).run()
    assert (tracker.calls, log.status["iterations_done"]) == (1, 1)
    tracker = Tracker("hang", after_batch=True, on_failure="log", retries=5, timeout_s=60)
    loop = loop_over(range(5), tracker)
    loop._grace_s = 0.05
    run = asyncio.create_task(loop.run())
    while not tracker.calls:
        await asyncio.sleep(0)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert tracker.calls == 1


async def test_exits_go_through() -> None:
    tracker = Tracker(SystemExit(3), after_batch=True, on_failure="log", retries=2)
    with pytest.raises(SystemExit):
        await loop_over(range(5), tracker).run()
    assert tracker.calls == 1


# ------------------------------------------------------------------ the time


async def test_one_that_takes_too_long_is_cancelled_and_has_failed() -> None:
    tracker = Tracker("hang", after_batch=True, timeout_s=0.01)
    with pytest.raises(TimeoutError) as caught:
        await loop_over([1], tracker).run()
    assert str(caught.value) == (
        "the extension 'Tracker' in after_batch took longer than its timeout_s of 0.01 s"
    )


async def test_a_tracker_that_hangs_does_not_cost_the_training() -> None:
    tracker = Tracker("hang", "hang", after_batch=True, timeout_s=0.01, retries=1, on_failure="log")
    log = await loop_over(range(4), tracker, FinishAfter(after_n_epochs=1)).run()
    assert (tracker.sent, log.status["iterations_done"]) == ([2, 3, 4], 4)


async def test_its_own_timeout_error_is_its_own() -> None:
    tracker = Tracker(TimeoutError("from the server"), after_batch=True, timeout_s=60)
    with pytest.raises(TimeoutError, match="from the server"):
        await loop_over([1], tracker).run()


async def test_in_the_background_the_limits_are_those_of_what_it_does() -> None:
    tracker = Tracker(
        "hang",
        OSError("down"),
        after_epoch=True,
        background=True,
        timeout_s=0.01,
        retries=2,
        on_failure="log",
    )
    log = await loop_over([1], tracker, FinishAfter(after_n_epochs=1)).run()
    assert (tracker.calls, tracker.sent) == (3, [1])
    assert log.current_row["training_finished"] is True


async def test_in_the_background_too_long_ends_the_run_when_that_is_the_policy() -> None:
    tracker = Tracker("hang", after_batch=True, background=True, timeout_s=0.01)

    async def batches():
        yield 1
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError, match="took longer than its timeout_s"):
        await loop_over(batches, tracker).run()


# ------------------------------------------------------------------ of what it holds


@pytest.mark.parametrize(
    "callback",
    [
        "before_training",
        "before_epoch",
        "before_batch",
        "after_batch",
        "after_epoch",
        "after_training",
    ],
)
async def test_methods_of_their_own_are_held_to_the_limits_too(callback) -> None:
    async def fail(*args: object) -> None:
        raise OSError

    extension = TrainingExtension(on_failure="log")
    setattr(extension, callback, fail)
    log = await loop_over([1], extension, FinishAfter(after_n_epochs=1)).run()
    assert log.current_row["training_finished"] is True


async def test_dispatching_of_its_own_is_held_to_the_limits_too() -> None:
    class Own(TrainingExtension):
        async def dispatch(self, callback_name: str, *args: object) -> None:
            raise OSError(callback_name)

    log = await loop_over([1], Own(on_failure="log"), FinishAfter(after_n_epochs=1)).run()
    assert log.current_row["training_finished"] is True


@pytest.mark.parametrize("background", [False, True])
async def test_dispatching_of_its_own_around_the_usual_does_not_double_them(background) -> None:
    class Around(Tracker):
        async def dispatch(self, callback_name: str, *args: object) -> None:
            await super().dispatch(callback_name, *args)

    tracker = Around(*down(9), after_epoch=True, retries=2, background=background)
    with pytest.raises(OSError, match="down 3"):
        await loop_over([1], tracker, FinishAfter(after_n_epochs=1)).run()
    assert tracker.calls == 3


async def test_trying_again_repeats_what_failed_and_nothing_else() -> None:
    class Both(Tracker):
        async def after_batch(self, batch: object) -> None:
            self.batches = getattr(self, "batches", 0) + 1

    extension = Both(OSError(), after_batch=True, retries=1)
    extension.add_condition(["after_batch"])
    await loop_over([1], extension, FinishAfter(after_n_epochs=1)).run()
    assert (extension.batches, extension.calls, extension.sent) == (1, 3, [1, 1])


async def test_the_limits_of_a_composite_are_its_own_and_its_children_have_theirs() -> None:
    child = Tracker(*down(1), after_batch=True, on_failure="log")
    unlimited = Tracker(*down(1), after_n_batches=2)
    loop = loop_over(range(5), CompositeExtension([child, unlimited], on_failure="log"))
    with pytest.raises(OSError, match="down 1"):
        await loop.run()
    assert child.sent == [2]


@pytest.mark.parametrize("make", [Printing, Timestamp])
def test_options_leave_the_triggers_that_are_there_by_default(make) -> None:
    plain, limited = make(), make(timeout_s=5, on_failure="log", retries=1)
    assert limited._conditions.keys() == plain._conditions.keys()
    assert limited._limits == limits.Limits(5, "log", 1)


def test_options_alone_are_no_triggers() -> None:
    monitoring = TrainingDataMonitoring(["cost"], on_failure="log")
    assert [str(name) for name in monitoring._conditions] == ["after_epoch"]
    monitoring = TrainingDataMonitoring(["cost"], after_batch=True)
    assert [str(name) for name in monitoring._conditions] == ["after_batch"]


def test_the_typed_options_are_the_triggers_and_the_options_there_are() -> None:
    triggers = {*SimpleExtension.BOOLEAN_TRIGGERS, *SimpleExtension.INTEGER_TRIGGERS}
    assert Options.__annotations__.keys() == triggers | {
        "background",
        "timeout_s",
        "on_failure",
        "retries",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout_s": 0}, r"timeout_s is 0; expected seconds, more than 0; leave it out"),
        ({"timeout_s": -1.0}, r"timeout_s is -1\.0"),
        ({"timeout_s": float("nan")}, "timeout_s is nan"),
        ({"timeout_s": float("inf")}, "timeout_s is inf"),
        ({"timeout_s": "5"}, "timeout_s is '5'"),
        ({"timeout_s": 10**400}, "timeout_s is 1000"),
        ({"timeout_s": True}, "timeout_s is True"),
        ({"on_failure": "ignore"}, "on_failure is 'ignore'; expected 'raise' or 'log'"),
        ({"on_failure": 3}, "on_failure is 3"),
        ({"retries": -1}, "retries is -1; expected a whole number, 0 or more"),
        ({"retries": 1.5}, r"retries is 1\.5"),
        ({"retries": True}, "retries is True"),
        ({"retries": None}, "retries is None"),
    ],
)
@pytest.mark.parametrize("make", [TrainingExtension, SimpleExtension, Printing, ProgressBar])
def test_limits_that_make_no_sense_are_refused(make, options, message) -> None:
    with pytest.raises(ArgumentError, match=message):
        make(**options)


async def test_an_extension_whose_constructor_calls_no_other_has_no_limits() -> None:
    class Bare(TrainingExtension):
        def __init__(self) -> None:
            self.batches = 0

        async def after_batch(self, batch: object) -> None:
            self.batches += 1

    bare = Bare()
    await loop_over(range(3), bare, FinishAfter(after_n_epochs=1)).run()
    assert bare.batches == 3


def test_without_limits_a_handler_is_what_it_was() -> None:
    def handler() -> None:
        """Do nothing."""

    assert limits.Limits().over(handler, "it", asyncio.sleep) is handler
