"""Every ending of a run, at moments and in an order of what is ready that a seed decides.

To see one seed again: ``python tests/faults/test_endings_shuffled.py "stopped after the epoch" 17``
prints what happened; the names are those of `ACTS`.
"""

import asyncio
import gc
import signal
import sys
from collections.abc import Callable
from functools import partial
from random import Random

import pytest
from shuffled_runs import (
    EPOCHS,
    GRACE_S,
    LETTERS,
    TALES,
    Epoch,
    Messages,
    Played,
    Scene,
    Trouble,
    beside,
    handler_of_a_host,
    hang,
    linger,
    play,
    settle,
    swallow,
    with_a_scope,
    with_a_sibling,
    with_a_timeout,
)

from aloop.stopping import StopLevel, StopRequest
from aloop.streams.fetch import END, Fetcher
from aloop.testing.virtual_loop import START_S

SEEDS = 500

STREAMS = ["list", "generator", "queue", "quiet"]

ACTS: dict[str, Callable[[int, Messages], object]] = {}


def act(name: str):
    """Keep an act under a name, to be played by that name."""

    def keep(function):
        ACTS[name] = function
        return function

    return keep


def scene_of(seed: int, **options: object) -> Scene:
    """Make a scene of the seed's choosing."""
    random = Random(f"options {seed}")  # noqa: S311 - no secret
    stream = options.setdefault("stream", random.choice(STREAMS))
    options.setdefault("batches", random.randrange(2, 5))
    options.setdefault("extensions", random.randrange(2, 4))
    options.setdefault("quiet_after", random.randrange(1, 5) if stream == "quiet" else 10**9)
    return Scene(seed, **options)  # type: ignore[arg-type]


async def play_out(scene: Scene, around=None, *, others: int | None = None, again=True) -> None:
    """Run the scene beside other runs, wait for all, check what holds always, and go on."""
    if others is None:
        others = scene.random.randrange(1, 3)
    loops = [await beside(scene, number) for number in range(others)]
    scene.start(around)
    await scene.ended()
    scene.expect_order()
    for loop, task in loops:
        failure = await task
        is_stopped = bool(loop.log.current_row.get("interrupt_cause"))
        is_whole = loop.status["iterations_done"] >= 8
        scene.expect(failure is None or scene.hears_with_others, f"another run: {failure!r}")
        scene.expect(is_whole or scene.hears_with_others, "another run was cut short")
        scene.expect(not is_stopped or scene.hears_with_others, "another run was stopped")
    if again:
        await go_on(scene)


async def go_on(scene: Scene) -> None:
    """Check that a second run has every batch that the first one did not."""
    await settle()
    count = len(scene.events)
    await settle()
    scene.expect(len(scene.events) == count, "something goes on after the run")
    first, asked_at, ended_at = scene.seen, scene.asked_at, scene.ended_at
    await scene.run_again(scene.random.randrange(1, 6))
    scene.expect_order()
    scene.expect_each_batch_once()
    scene.seen, scene.asked_at, scene.ended_at = first, asked_at, ended_at


def once_fetching(scene: Scene, deliver: Callable[[], None]) -> None:
    """Do something when the stream has gone quiet, or at some time where it does not."""
    if scene.stream != "quiet":
        scene.at_some_time(deliver)
        return

    async def wait() -> None:
        while not (scene.next_batch > scene.quiet_after and scene.is_fetching):
            await asyncio.sleep(0.01)
        await asyncio.sleep(scene.random.choice([0.5, 3.0]))  # what is taken is trained on
        scene.ask(deliver)

    scene.waiter = asyncio.create_task(wait(), name="waiter")


@act("finish requested by a record")
async def finish(seed: int, messages: Messages) -> list[Scene]:
    scene = scene_of(seed, stream=STREAMS[seed % 3])

    def deliver() -> None:
        scene.is_to_finish = True

    scene.on_start = lambda: scene.at_some_time(deliver)
    await play_out(scene, again=False)
    scene.expect_tale(TALES["finish"])
    scene.expect(scene.outer is None, f"run() raised {scene.outer!r}")
    scene.expect_records(None, None, "training_finished")
    scene.expect_no_time_lost()
    await go_on(scene)
    return [scene]


@act("stopped after the epoch")
async def stopped_after_the_epoch(seed: int, messages: Messages) -> list[Scene]:
    is_press = seed % 2 == 0
    scene = scene_of(seed, stream=STREAMS[seed // 2 % 3])
    scene.hears_with_others = is_press
    press = partial(signal.raise_signal, signal.SIGINT)
    ask = scene.loop.request_finish
    scene.on_start = lambda: scene.at_some_time(press if is_press else ask)
    await play_out(scene, again=False)
    scene.expect_tale(TALES["epoch"])
    scene.expect(scene.outer is None, f"run() raised {scene.outer!r}")
    cause = "SIGINT" if is_press else "request_finish('epoch')"
    scene.expect_records("epoch", cause, "training_finished")
    scene.expect_no_time_lost()
    await go_on(scene)
    return [scene]


@act("stopped after the batch")
async def stopped_after_the_batch(seed: int, messages: Messages) -> list[Scene]:
    kind = ["request", "SIGTERM", "two presses", "host SIGINT", "host SIGTERM"][seed % 5]
    scene = scene_of(seed, stream=STREAMS[seed // 5 % 4])
    scene.hears_with_others = kind != "request"
    number = signal.SIGTERM if kind.endswith("SIGTERM") else signal.SIGINT
    heard: list[int] = []

    def deliver() -> None:
        if kind == "request":
            scene.loop.request_finish("batch")
            return
        signal.raise_signal(number)
        if kind == "two presses":
            again = scene.random.randrange(4)
            if not again:
                signal.raise_signal(number)
            else:
                # Between the two presses less than a batch: the first alone would end the epoch.
                scene.after_turns(again, lambda: scene.is_over or signal.raise_signal(number))

    scene.on_start = lambda: once_fetching(scene, deliver)
    with handler_of_a_host(number if kind.startswith("host") else None, heard):
        await play_out(scene, again=False)
    scene.expect(heard == [number] * kind.startswith("host"), f"the host heard {heard}")
    scene.expect_tale(TALES["batch"])
    scene.expect(scene.outer is None, f"run() raised {scene.outer!r}")
    cause = "request_finish('batch')" if kind == "request" else number.name
    if kind == "two presses" and scene.rows_with("epoch_interrupt_received"):
        # The second press came after the first was recorded: both are on record.
        scene.expect(scene.loop.status["batch_interrupt_received"] is True, "one press is lost")
    else:
        scene.expect_records("batch", cause, "training_finished")
        scene.expect_nothing_new()
    scene.expect_no_time_lost()
    await go_on(scene)
    return [scene]


def expect_cancelled(scene: Scene) -> None:
    scene.expect_tale(TALES["cancel"])
    scene.expect(isinstance(scene.seen, asyncio.CancelledError), f"run() raised {scene.seen!r}")
    scene.expect_records("batch", "cancelled")
    scene.expect_nothing_new()
    scene.expect_no_time_lost()


@act("cancelled")
async def cancelled(seed: int, messages: Messages) -> list[Scene]:
    kind = ["cancel", "timeout", "scope", "sibling", "three cancels"][seed % 5]
    scene = scene_of(seed, stream=STREAMS[seed // 5 % 4])
    around = None
    if kind == "timeout":
        around = partial(with_a_timeout, seconds=scene.random.choice([0.0, 0.05, 0.13, 5.0]))
    elif kind == "scope":
        around = with_a_scope
    elif kind == "sibling":
        around = with_a_sibling
    elif kind == "cancel":
        scene.on_start = lambda: once_fetching(scene, lambda: scene.task.cancel("the first"))
    else:

        def deliver() -> None:
            scene.task.cancel("the first")
            for text in ("second", "third"):
                scene.clock.call_later(scene.random.randrange(5) / 100, again, text)

        def again(text: str) -> None:
            if not scene.is_over and len(scene.runs) == 1:
                scene.task.cancel(text)

        scene.on_start = lambda: once_fetching(scene, deliver)
    await play_out(scene, around, again=False)
    expect_cancelled(scene)
    expected = {
        "timeout": "TimeoutError()",
        "scope": "None",
        "sibling": "ExceptionGroup('unhandled errors in a TaskGroup', [Trouble('sibling')])",
    }.get(kind, "CancelledError('the first')")
    scene.expect(repr(scene.outer) == expected, f"the caller saw {scene.outer!r}")
    await go_on(scene)
    return [scene]


@act("ended by an exception")
async def ended_by_an_exception(seed: int, messages: Messages) -> list[Scene]:
    kind = ["step", "group in step", "stream", "extension", "error in on_error"][seed % 5]
    error: Exception = Trouble(kind)
    if kind == "group in step":
        error = ExceptionGroup("several", [Trouble("one"), ValueError("two")])
    scene = scene_of(seed, stream="list" if kind == "stream" else STREAMS[seed // 5 % 3])
    is_due = False

    def deliver() -> None:
        nonlocal is_due
        is_due = True

    async def fail(*args: object) -> None:
        nonlocal is_due
        if is_due:
            is_due = False
            if scene.random.random() < 0.5:
                await scene.pause()
            raise error

    async def fail_too(*args: object) -> None:
        raise Trouble("the second")

    class Failing(Epoch):
        def __init__(self) -> None:
            self.numbers = scene.numbers()

        async def __anext__(self) -> int:
            await fail()
            await scene.pause()
            batch = next(self.numbers, None)
            if batch is None:
                raise StopAsyncIteration
            return batch

    where = {"extension": "after_batch"}.get(kind, "step")
    place = 0 if where == "step" else scene.random.randrange(scene.extensions)
    if kind == "stream":
        scene.epoch = Failing  # type: ignore[method-assign]
        scene.loop.data_stream = type(
            "Stream", (), {"get_epoch_iterator": lambda *a, **k: Failing()}
        )()
    else:
        scene.troubles[place, where] = fail
    if kind == "error in on_error":
        scene.troubles[0, "on_error"] = fail_too
    scene.on_start = lambda: scene.at_some_time(deliver)
    await play_out(scene, again=False)
    tale = {"stream": "stream fails", "extension": "extension fails"}.get(kind, "step fails")
    scene.expect_tale(TALES[tale])
    told = [
        place for _, what, place, name, _ in scene.events if (what, name) == ("begin", "on_error")
    ]
    scene.expect(told == list(range(scene.extensions)), f"on_error of {told}")
    scene.expect(scene.outer is error, f"run() raised {scene.outer!r}")
    scene.expect_records(None, None, "got_exception")
    text = scene.loop.log.current_row["got_exception"]
    scene.expect(all(part in text for part in str(error).split("(")[:1]), f"the record is {text}")
    notes = " ".join(getattr(error, "__notes__", ()))
    scene.expect(("the second" in notes) == (kind == "error in on_error"), f"notes: {notes}")
    scene.expect_no_time_lost()
    await go_on(scene)
    return [scene]


@act("ended by an exit")
async def ended_by_an_exit(seed: int, messages: Messages) -> list[Scene]:
    error: BaseException = [
        KeyboardInterrupt("step"),
        SystemExit(3),
        BaseExceptionGroup("several", [KeyboardInterrupt("in a group")]),
    ][seed % 3]
    scene = scene_of(seed, stream=STREAMS[seed // 3 % 3])
    is_due = False

    def deliver() -> None:
        nonlocal is_due
        is_due = True

    async def fail(batch: object) -> None:
        nonlocal is_due
        if is_due:
            is_due = False
            if scene.random.random() < 0.5:
                await scene.pause()
            raise error

    scene.troubles[0, "step"] = fail
    scene.on_start = lambda: scene.at_some_time(deliver)
    await play_out(scene, again=False)
    scene.expect_tale(TALES["exit"])
    scene.expect(scene.outer is error, f"run() raised {scene.outer!r}")
    scene.expect_records(None, None, "got_exception")
    record = scene.loop.log.current_row["got_exception"]
    scene.expect(type(error).__name__ in record, f"the record is {record}")
    scene.expect_no_time_lost()
    await go_on(scene)
    return [scene]


@act("given up")
async def given_up(seed: int, messages: Messages) -> list[Scene]:
    kind = ["cancel", "SIGTERM", "request", "third press", "second press with a host", "raises"]
    what = kind[seed % 6]
    scene = scene_of(seed, stream=STREAMS[seed // 6 % 3])
    is_press = "press" in what
    scene.hears_with_others = is_press or what == "SIGTERM"
    given_up_at: float | None = None

    def press(times: int) -> None:
        nonlocal given_up_at
        given_up_at = scene.clock.time()
        signal.raise_signal(signal.SIGINT)
        if times > 1:
            scene.clock.call_later(scene.random.randrange(1, 5) / 100, press, times - 1)

    def deliver() -> None:
        nonlocal given_up_at
        if is_press:
            press(3 if what == "third press" else 2)
            return
        given_up_at = scene.clock.time() + GRACE_S
        if what == "SIGTERM":
            signal.raise_signal(signal.SIGTERM)
        elif what == "request":
            scene.loop.request_finish("batch")
        else:
            scene.task.cancel("the first")

    steps = scene.random.randrange(1, 6)

    async def stuck(batch: object) -> None:
        nonlocal steps
        steps -= 1
        if not steps:
            scene.soon(deliver)
            try:
                await hang(scene)
            except asyncio.CancelledError:
                if what == "raises":
                    raise Trouble("while cancelled") from None
                raise

    scene.troubles[0, "step"] = stuck
    heard: list[int] = []
    host = signal.SIGINT if what == "second press with a host" else None
    with handler_of_a_host(host, heard):
        await play_out(scene, again=False, others=scene.random.randrange(3))
    scene.expect_tale(TALES["given up"])
    seen = KeyboardInterrupt if what == "third press" else asyncio.CancelledError
    scene.expect(type(scene.outer) is seen, f"run() raised {scene.outer!r}")
    if what in ("cancel", "raises"):
        scene.expect(scene.outer.args == ("the first",), f"run() raised {scene.outer!r}")
    notes = " ".join(getattr(scene.outer, "__notes__", ()))
    scene.expect(("while cancelled" in notes) == (what == "raises"), f"notes: {notes}")
    row = scene.loop.log.current_row
    cause = {"SIGTERM": "SIGTERM", "request": "request_finish('batch')"}.get(
        what, "SIGINT" if is_press else "cancelled"
    )
    scene.expect(row.get("step_abandoned") is True, "step_abandoned is missing")
    scene.expect(row.get("interrupt_cause") == cause, f"cause: {row.get('interrupt_cause')}")
    scene.expect("training_finished" not in row, "training_finished is there")
    assert given_up_at is not None
    assert scene.ended_at is not None
    late = scene.ended_at - given_up_at
    scene.expect(0 <= late < 0.1, f"ended {late:g} s after the giving up")
    await go_on(scene)
    return [scene]


TABLE = [
    "finish requested by a record",
    "stopped after the epoch",
    "stopped after the batch",
    "cancelled",
    "ended by an exception",
    "ended by an exit",
    "given up",
]

CALLBACKS = [
    "before_training",
    "initialize",
    "before_epoch",
    "before_batch",
    "after_batch",
    "after_epoch",
    "on_interrupt",
    "after_training",
    "on_error",
]

_IN_EPOCH = EPOCHS + r"E(?:BSA)*"
UP_TO = {
    "before_training": "T",
    "initialize": "Ti",
    "before_epoch": EPOCHS + "E",
    "before_batch": _IN_EPOCH + "B",
    "after_batch": _IN_EPOCH + "BSA",
    "after_epoch": EPOCHS + "E(?:BSA)+F",
    "on_interrupt": EPOCHS + "(?:E(?:BSA)*)?I",
    "after_training": EPOCHS + "(?:E(?:BSA)+)?Z",
    "on_error": _IN_EPOCH + "BSX",
}
"""What a run may have been when it comes to a callback."""

AND_THEN = {
    "before_training": "iI",
    "initialize": "I",
    "before_epoch": "I",
    "before_batch": "SAI",
    "after_batch": "I",
    "after_epoch": "I",
    "on_interrupt": "",
    "after_training": "",
    "on_error": "",
}
"""What follows on that callback when the run is cancelled in it."""


def lead_to(scene: Scene, callback: str) -> None:
    """See to it that the run comes to the callback, which not every run does."""
    if callback == "on_interrupt":
        scene.on_start = lambda: scene.at_some_time(lambda: scene.loop.request_finish("batch"))
    elif callback == "after_training":

        def finish_then() -> None:
            scene.is_to_finish = True

        scene.on_start = lambda: scene.at_some_time(finish_then)
    elif callback == "on_error":
        left = scene.random.randrange(1, 5)

        async def fail(batch: object) -> None:
            nonlocal left
            left -= 1
            if not left:
                raise Trouble("the step")

        scene.troubles[0, "step"] = fail


async def in_a_callback(scene: Scene, callback: str, wait: Callable[[Scene], object]) -> None:
    """Cancel the run while an extension is in the callback, and there does what `wait` says."""
    lead_to(scene, callback)
    place = 0 if callback == "initialize" else scene.random.randrange(scene.extensions)
    times = scene.random.randrange(1, 4) if callback in ("before_batch", "after_batch") else 1

    async def trouble(*args: object) -> None:
        nonlocal times
        times -= 1
        if not times:
            # The grace begins with the stop that has led here, if it was one.
            scene.grace_from = scene.asked_at if callback == "on_interrupt" else None
            scene.asked_at = None
            scene.soon(lambda: scene.task.cancel("the first"))
            await wait(scene)

    scene.troubles[place, callback] = trouble
    await play_out(scene, again=False, others=1)
    cancellation = scene.outer
    scene.expect(repr(cancellation) == "CancelledError('the first')", f"raised {cancellation!r}")
    if callback == "on_error":
        notes = " ".join(getattr(cancellation, "__notes__", ()))
        scene.expect("the step" in notes, f"the failure is not in the notes: {notes}")


def late_s(scene: Scene) -> float:
    """Say how long after the grace the run ended."""
    assert scene.asked_at is not None
    assert scene.ended_at is not None
    begin = scene.asked_at if scene.grace_from is None else scene.grace_from
    return scene.ended_at - begin - GRACE_S


def act_of_cancel(callback: str):
    @act(f"cancelled in {callback}")
    async def cancelled_in(seed: int, messages: Messages) -> list[Scene]:
        scene = scene_of(seed, stream=STREAMS[seed % 3])
        await in_a_callback(scene, callback, linger)
        scene.expect_tale(UP_TO[callback] + AND_THEN[callback])
        scene.expect("step_abandoned" not in scene.loop.log.current_row, "it was given up")
        scene.expect_no_time_lost()
        await go_on(scene)
        return [scene]


def act_of_hang(callback: str):
    @act(f"hung in {callback}")
    async def hung_in(seed: int, messages: Messages) -> list[Scene]:
        scene = scene_of(seed, stream=STREAMS[seed % 3])
        await in_a_callback(scene, callback, hang)
        scene.expect_tale(UP_TO[callback])
        scene.expect(scene.loop.log.current_row.get("step_abandoned") is True, "not on record")
        late = late_s(scene)
        scene.expect(0 <= late < 0.1, f"ended {late:g} s after the grace")
        return [scene]


def act_of_swallowing(callback: str):
    @act(f"swallowed in {callback}")
    async def swallowed_in(seed: int, messages: Messages) -> list[Scene]:
        scene = scene_of(seed, stream=STREAMS[seed % 3])
        await in_a_callback(scene, callback, swallow)
        scene.expect_tale(UP_TO[callback])
        scene.expect(scene.loop.log.current_row.get("step_abandoned") is True, "not on record")
        late = late_s(scene)
        scene.expect(0 <= late <= 1.0 + 1e-6, f"ended {late:g} s after the grace")
        named = [text for text in messages.texts if "left behind" in text and "swallow" in text]
        scene.expect(named, f"what would not stop is not named in {messages.texts}")
        row = dict(scene.loop.log.current_row)
        scene.release.set()
        await settle()
        await asyncio.sleep(1)
        scene.expect_tale(UP_TO[callback], "when it was released, the run")
        scene.expect(dict(scene.loop.log.current_row) == row, "the log was written to afterwards")
        return [scene]


for _callback in CALLBACKS:
    act_of_cancel(_callback)
    act_of_hang(_callback)
    act_of_swallowing(_callback)


@act("cancelled in a generator whose clean-up raises")
async def cleanup_raises(seed: int, messages: Messages) -> list[Scene]:
    scene = scene_of(seed, stream="list")

    async def batches():
        try:
            for batch in scene.numbers():
                await asyncio.sleep(scene.random.choice([0, 0.01, 0.3]))
                yield batch
        finally:
            await asyncio.sleep(0)
            raise Trouble("clean-up")

    # Its end in good order raises as well, so the run is cancelled in its first epoch.
    scene.batches = 1_000
    scene.epoch = batches  # type: ignore[method-assign]
    scene.loop.data_stream = type("Stream", (), {"get_epoch_iterator": lambda *a, **k: batches()})()
    scene.on_start = lambda: scene.at_some_time(lambda: scene.task.cancel("the first"))
    await play_out(scene, again=False)
    expect_cancelled(scene)
    scene.expect(scene.outer.args == ("the first",), f"run() raised {scene.outer!r}")
    if seed % 3 == 0:
        await go_on(scene)
    elif seed % 3 == 1:
        await asyncio.sleep(1)  # until the batch comes that nobody waits for any more
    else:
        scene.may_leave = True  # what waits for the batch, to the end of the event loop
    return [scene]


@act("told in on_interrupt by extensions that raise")
async def interrupt_raises(seed: int, messages: Messages) -> list[Scene]:
    scene = scene_of(seed, stream=STREAMS[seed % 4])
    is_cancel = seed % 2 == 0

    async def fail() -> None:
        raise Trouble("in on_interrupt")

    def deliver() -> None:
        if is_cancel:
            scene.task.cancel("the first")
        else:
            scene.loop.request_finish("batch")

    scene.troubles[0, "on_interrupt"] = fail
    scene.on_start = lambda: once_fetching(scene, deliver)
    await play_out(scene, again=False)
    told = [
        place
        for _, what, place, name, _ in scene.events
        if (what, name) == ("begin", "on_interrupt")
    ]
    scene.expect(told == list(range(scene.extensions)), f"on_interrupt of {told}")
    scene.expect_tale(EPOCHS + "(?:E(?:BSA)*)?IX")
    if is_cancel:
        scene.expect(repr(scene.outer) == "CancelledError('the first')", f"{scene.outer!r}")
        notes = " ".join(getattr(scene.outer, "__notes__", ()))
        scene.expect("in on_interrupt" in notes, f"notes: {notes}")
    else:
        scene.expect(repr(scene.outer) == "Trouble('in on_interrupt')", f"{scene.outer!r}")
    await go_on(scene)
    return [scene]


# Playing them.


def failures(name: str, seeds: range, **options: object) -> str:
    """Play an act with each seed, and say of each what was wrong and how to see it again."""
    played: dict[int, Played] = {
        seed: play(ACTS[name], seed, **options)  # type: ignore[arg-type]
        for seed in seeds
    }
    for one in played.values():
        one.scenes.clear()
    gc.collect()  # what nobody asked for is told of when it is collected
    return "\n".join(
        f"python tests/faults/test_endings_shuffled.py {name!r} {seed}\n    "
        + "\n    ".join((one.wrong + one.complaints)[:4])
        for seed, one in played.items()
        if one.wrong or one.complaints
    )


# A few seeds of each for every run of the suite, and then the others.
SHARES = pytest.mark.parametrize("share", ["few", pytest.param("many", marks=pytest.mark.slow)])


def shared(share: str, seeds: range, few: int) -> range:
    """Give the seeds of one of the shares."""
    return seeds[:few] if share == "few" else seeds[few:]


@SHARES
@pytest.mark.parametrize("name", TABLE)
def test_each_ending_keeps_the_contract_in_any_order(name, share) -> None:
    row = TABLE.index(name)
    seeds = range(row, SEEDS, len(TABLE))
    assert len(seeds) >= 50
    found = failures(name, shared(share, seeds, 5))
    assert not found, found


@SHARES
@pytest.mark.parametrize("callback", CALLBACKS)
def test_a_cancel_in_a_callback_lets_it_settle_in_any_order(callback, share) -> None:
    found = failures(f"cancelled in {callback}", shared(share, range(8), 2))
    assert not found, found


@SHARES
@pytest.mark.parametrize("callback", CALLBACKS)
def test_a_callback_that_hangs_is_given_up_in_any_order(callback, share) -> None:
    found = failures(f"hung in {callback}", shared(share, range(6), 2))
    assert not found, found


@SHARES
@pytest.mark.parametrize("callback", CALLBACKS)
def test_a_callback_that_swallows_cancellations_is_left_behind_in_any_order(
    callback, share
) -> None:
    found = failures(f"swallowed in {callback}", shared(share, range(6), 2))
    assert not found, found


def test_a_generator_whose_clean_up_raises_hides_no_cancellation() -> None:
    found = failures(
        "cancelled in a generator whose clean-up raises",
        range(20),
        complaints_allowed="closing of asynchronous generator.*clean-up",
    )
    assert not found, found


@SHARES
def test_every_extension_is_told_of_an_interrupt_in_any_order(share) -> None:
    seeds = shared(share, range(20), 5)
    found = failures("told in on_interrupt by extensions that raise", seeds)
    assert not found, found


# Races that are planted, and how the moments come about that they need. In the order of asyncio
# the stop comes just too late for them.


@act("a stop just after a batch was ready")
async def stop_after_batch_was_ready(seed: int, messages: Messages) -> list[Scene]:
    scene = scene_of(seed, stream="quiet")

    def deliver() -> None:
        scene.wake()
        scene.after_turns(3, lambda: scene.loop.request_finish("batch"))

    scene.on_start = lambda: once_fetching(scene, deliver)
    await play_out(scene, others=1)
    return [scene]


@act("a second press just after the first was heard")
async def press_after_press_was_heard(seed: int, messages: Messages) -> list[Scene]:
    scene = scene_of(seed, stream="list", batches=9)
    scene.hears_with_others = True

    def press() -> None:
        signal.raise_signal(signal.SIGINT)

    async def first_step(batch: int) -> None:
        if not batch:
            press()
            scene.after_turns(1, press)
            await asyncio.sleep(0.1)

    scene.troubles[0, "step"] = first_step
    await play_out(scene, others=1, again=False)
    scene.expect_tale("TiEBSAIZ")
    scene.expect_records("batch", "SIGINT", "training_finished")
    return [scene]


def lose_what_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that is ready is taken from its reader, though the run is to stop."""
    of = Fetcher.of

    def hasty(self: Fetcher, stream, iterator, stop: StopRequest, *more):
        fetch, waits = of(self, stream, iterator, stop, *more)
        if not waits:
            return fetch, waits
        reader = self._reader
        assert reader is not None

        async def take_at_once() -> object:
            outcome = reader.ask(None)
            await stop.wait_with(outcome)
            batch = reader.take(lambda batch: batch) if outcome.done() else END
            self.is_left = stop.level >= StopLevel.BATCH
            return END if self.is_left else batch

        return take_at_once, True

    monkeypatch.setattr(Fetcher, "of", hasty)


def forget_what_comes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop that comes before the supervisor has heard of the one before is not heard at all."""
    ask = StopRequest.ask

    def forgetful(self: StopRequest, level: StopLevel, cause: str) -> None:
        if self._news is None or not self._news.done():
            ask(self, level, cause)

    monkeypatch.setattr(StopRequest, "ask", forgetful)


RACES = [
    ("a stop just after a batch was ready", lose_what_is_ready, "the batches were"),
    pytest.param(
        "a second press just after the first was heard",
        forget_what_comes_at_once,
        "the run was",
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize(("name", "plant", "finding"), RACES, ids=["fetch", "press"])
def test_a_planted_race_is_found_by_the_shuffle_and_only_by_it(
    monkeypatch, name, plant, finding
) -> None:
    # The stop comes as many turns late as it takes in order, so that order hides the race. With two
    # turns more nothing finds it.
    seeds = range(20)
    sound = failures(name, seeds)
    assert not sound, sound
    plant(monkeypatch)
    in_order = failures(name, seeds, shuffled=False)
    assert not in_order, in_order
    assert finding in failures(name, seeds)


def test_a_seed_gives_the_same_run_again() -> None:
    def events(seed: int) -> list[object]:
        return [scene.events for scene in play(ACTS["cancelled"], seed).scenes]

    first = [events(seed) for seed in range(4)]
    assert [events(seed) for seed in range(4)] == first
    assert len(set(map(str, first))) == 4


if __name__ == "__main__":
    result = play(ACTS[sys.argv[1]], int(sys.argv[2]))
    for _scene in result.scenes:
        for _time, _what, _place, _name, _args in _scene.events:
            _after = _time - START_S
            print(f"{_after:9.3f} {LETTERS[_name]} {_what:5} {_name} {_place} {_args}")
        print(f"{_scene.stream=} {_scene.asked_at=} {_scene.ended_at=} {_scene.outer!r}")
        print(_scene.loop.log.current_row, _scene.loop.status)
    print("\n".join(result.wrong + result.complaints) or "nothing wrong")
    sys.exit(bool(result.wrong or result.complaints))
