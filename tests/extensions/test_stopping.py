"""FinishAfter."""

import pytest
from extension_helpers import At, CountingStream, Noting, cost, loop_over

from aloop import CallbackName, CompositeExtension, FinishAfter, MainLoop
from aloop.errors import TriggerError


def counts(loop):
    """The iterations and the epochs that a loop has done."""
    return loop.status["iterations_done"], loop.status["epochs_done"]


def at(iterations_done):
    """A predicate that holds at this number of iterations."""
    return lambda log: log.status["iterations_done"] == iterations_done


@pytest.mark.parametrize(
    ("triggers", "iterations_done", "epochs_done"),
    [
        ({"after_n_epochs": 1}, 10, 1),
        ({"after_n_epochs": 2}, 20, 2),
        ({"after_n_batches": 1}, 1, 0),
        ({"after_n_batches": 10}, 10, 0),
        ({"after_n_batches": 14}, 14, 1),
        ({"every_n_batches": 4}, 4, 0),
        ({"every_n_epochs": 2}, 20, 2),
        ({"after_batch": True}, 1, 0),
        ({"after_epoch": True}, 10, 1),
        ({"after_n_batches": 14, "after_n_epochs": 1}, 10, 1),
        ({"after_n_batches": 7, "after_n_epochs": 1}, 7, 0),
    ],
)
async def test_finishes_where_the_trigger_fires(triggers, iterations_done, epochs_done):
    loop = loop_over(CountingStream(10), FinishAfter(**triggers))
    await loop.run()
    assert counts(loop) == (iterations_done, epochs_done)


@pytest.mark.parametrize(
    ("trigger", "iterations_done"),
    [("before_training", 0), ("before_first_epoch", 0), ("before_epoch", 0), ("before_batch", 1)],
)
async def test_finishes_by_a_trigger_that_fires_before_the_batch(trigger, iterations_done):
    loop = loop_over(CountingStream(10), FinishAfter(**{trigger: True}))
    await loop.run()
    assert loop.status["iterations_done"] == iterations_done


async def test_ten_item_stream_for_two_epochs_leaves_the_log_of_twenty_iterations():
    note = At(
        lambda loop: loop.log.current_row.update(batch=loop.quantities["cost"]), after_batch=True
    )
    loop = loop_over(list(range(10)), note, FinishAfter(after_n_epochs=2), step=cost)
    log = await loop.run()
    assert log.status["_epoch_ends"] == [10, 20]
    assert {time: log[time]["batch"] for time in log} == {
        time: (time - 1) % 10 for time in range(1, 21)
    }


async def test_records_the_request_in_the_row_of_the_finish():
    loop = loop_over(CountingStream(4), FinishAfter(after_n_batches=3))
    log = await loop.run()
    assert [time for time in log if "training_finish_requested" in log[time]] == [3]
    assert log[3]["training_finish_requested"] is True


async def test_without_triggers_never_finishes():
    loop = loop_over(CountingStream(4), FinishAfter(), FinishAfter(after_n_epochs=3, name="end"))
    await loop.run()
    assert counts(loop) == (12, 3)


async def test_limit_of_batches_holds_beyond_its_number():
    append = At(
        lambda loop: loop.extensions.append(FinishAfter(after_n_batches=2)), after_n_batches=5
    )
    loop = loop_over(CountingStream(10), append)
    await loop.run()
    assert loop.status["iterations_done"] == 6


async def test_limit_of_epochs_holds_beyond_its_number():
    append = At(lambda loop: loop.extensions.append(FinishAfter(after_n_epochs=1)))
    append.set_conditions(after_n_epochs=2)
    loop = loop_over(CountingStream(3), append)
    await loop.run()
    assert counts(loop) == (9, 3)


async def test_every_n_batches_lets_a_training_go_on_to_the_next_multiple():
    loop = loop_over(CountingStream(10), FinishAfter(every_n_batches=4))
    reached = []
    for _ in range(3):
        await loop.run()
        reached.append(loop.status["iterations_done"])
    assert reached == [4, 8, 12]


async def test_request_after_the_training_does_not_end_the_next_run():
    finish = FinishAfter(after_training=True, every_n_batches=4)
    loop = loop_over(CountingStream(10), finish)
    await loop.run()
    await loop.run()
    assert loop.status["iterations_done"] == 8


# Starting a complete training again


@pytest.mark.parametrize("triggers", [{"after_n_epochs": 2}, {"after_n_batches": 14}])
async def test_complete_training_started_again_fetches_nothing(triggers):
    stream = CountingStream(10)
    loop = loop_over(stream, FinishAfter(**triggers))
    await loop.run()
    fetched = list(stream.fetched)
    await loop.run()
    assert stream.fetched == fetched


@pytest.mark.parametrize("triggers", [{"after_n_epochs": 2}, {"after_n_batches": 14}])
async def test_complete_training_started_again_stays_where_it_is(triggers):
    loop = loop_over(CountingStream(10), FinishAfter(**triggers))
    await loop.run()
    complete = counts(loop)
    await loop.run()
    await loop.run()
    assert counts(loop) == complete


@pytest.mark.parametrize("triggers", [{"after_n_epochs": 1}, {"after_n_batches": 2}])
async def test_complete_training_started_again_has_its_callbacks_of_the_ends_only(triggers):
    events = []
    loop = loop_over(CountingStream(3), FinishAfter(**triggers))
    await loop.run()
    loop.extensions.insert(0, Noting(events, **{str(name): True for name in CallbackName}))
    await loop.run()
    assert [event[1] for event in events] == ["on_resumption", "after_training"]


async def test_complete_training_with_the_limit_in_a_composite_fetches_nothing():
    stream = CountingStream(4)
    loop = loop_over(stream, CompositeExtension([FinishAfter(after_n_batches=3)]))
    await loop.run()
    await loop.run()
    assert stream.fetched == [0, 1, 2]


# Extending a complete training


async def test_added_condition_extends_a_complete_training():
    finish = FinishAfter(after_n_batches=14)
    loop = loop_over(list(range(10)), finish)
    await loop.run()
    finish.add_condition(["after_batch"], at(27))
    await loop.run()
    assert counts(loop) == (27, 2)


async def test_extended_training_goes_on_without_a_gap():
    batches = []

    async def step(batch):
        batches.append(batch)

    finish = FinishAfter(after_n_batches=14)
    loop = MainLoop(step, list(range(10)), extensions=[finish], signals="off")
    await loop.run()
    finish.add_condition(["after_batch"], at(27))
    await loop.run()
    assert batches == [*range(10), *range(10), *range(7)]


async def test_extended_training_fetches_each_batch_once():
    stream = CountingStream(10)
    finish = FinishAfter(after_n_batches=14)
    loop = loop_over(stream, finish)
    await loop.run()
    finish.add_condition(["after_batch"], at(27))
    await loop.run()
    assert stream.fetched == [*range(10), *range(10), *range(7)]


async def test_training_that_was_extended_can_be_extended_again():
    finish = FinishAfter(after_n_batches=3)
    loop = loop_over(CountingStream(10), finish)
    await loop.run()
    finish.add_condition(["after_batch"], at(5))
    await loop.run()
    finish.add_condition(["after_batch"], at(8))
    await loop.run()
    assert loop.status["iterations_done"] == 8


async def test_new_conditions_extend_a_complete_training():
    finish = FinishAfter(after_n_batches=14)
    loop = loop_over(CountingStream(10), finish)
    await loop.run()
    finish.set_conditions(after_n_batches=27)
    await loop.run()
    assert counts(loop) == (27, 2)


async def test_training_extended_by_a_limit_is_complete_there():
    stream = CountingStream(10)
    finish = FinishAfter(after_n_batches=3)
    loop = loop_over(stream, finish)
    await loop.run()
    finish.set_conditions(after_n_batches=5)
    await loop.run()
    await loop.run()
    assert stream.fetched == [0, 1, 2, 3, 4]


async def test_added_condition_leaves_a_limit_that_was_not_reached():
    finish = FinishAfter(after_n_batches=14, after_n_epochs=2)
    loop = loop_over(CountingStream(10), finish)
    await loop.run()
    finish.add_condition(["after_batch"], at(27))
    await loop.run()
    assert counts(loop) == (20, 2)


async def test_condition_added_before_the_first_run_leaves_the_limits():
    finish = FinishAfter(after_n_batches=3).add_condition(["after_batch"], at(5))
    loop = loop_over(CountingStream(10), finish)
    await loop.run()
    assert loop.status["iterations_done"] == 3


async def test_condition_added_in_the_middle_of_a_run_leaves_the_limits():
    finish = FinishAfter(after_n_batches=3)
    add = At(lambda loop: finish.add_condition(["after_batch"], at(5)), after_n_batches=2)
    loop = loop_over(CountingStream(10), add, finish)
    await loop.run()
    assert loop.status["iterations_done"] == 3


async def test_condition_added_to_a_limit_in_a_composite_extends_the_training():
    finish = FinishAfter(after_n_batches=3)
    loop = loop_over(CountingStream(10), CompositeExtension([finish]))
    await loop.run()
    finish.add_condition(["after_batch"], at(5))
    await loop.run()
    assert loop.status["iterations_done"] == 5


async def test_added_condition_lifts_the_limits_of_its_own_extension_alone():
    finish = FinishAfter(after_n_batches=3)
    loop = loop_over(CountingStream(10), finish, FinishAfter(after_n_batches=3, name="other"))
    await loop.run()
    finish.add_condition(["after_batch"], at(5))
    await loop.run()
    assert loop.status["iterations_done"] == 3


async def test_condition_that_is_refused_lifts_no_limit():
    finish = FinishAfter(after_n_batches=3)
    loop = loop_over(CountingStream(10), finish)
    await loop.run()
    with pytest.raises(ValueError, match="'after_lunch'"):
        finish.add_condition(["after_lunch"], at(5))
    await loop.run()
    assert loop.status["iterations_done"] == 3


async def test_set_conditions_that_is_refused_leaves_the_limits_liftable():
    finish = FinishAfter(after_n_batches=3)
    loop = loop_over(CountingStream(10), finish)
    await loop.run()
    with pytest.raises(TriggerError):
        finish.set_conditions(after_n_batches=0)
    finish.add_condition(["after_batch"], at(5))
    await loop.run()
    assert loop.status["iterations_done"] == 5


# Predicates of one's own


async def test_finishes_when_a_predicate_of_ones_own_holds():
    finish = FinishAfter().add_condition(["after_batch"], lambda log: log.current_row["cost"] < 3)
    record = At(lambda loop: loop.log.current_row.update(loop.quantities), after_batch=True)
    loop = loop_over([5, 4, 3, 2, 1], record, finish, step=cost)
    await loop.run()
    assert counts(loop) == (4, 0)


async def test_predicate_is_looked_at_where_it_was_added_alone():
    finish = FinishAfter().add_condition(
        ["after_epoch"], lambda log: log.status["iterations_done"] > 3
    )
    loop = loop_over(CountingStream(3), finish)
    await loop.run()
    assert counts(loop) == (6, 2)


@pytest.mark.parametrize("value", [0, -1, 2.0, True])
@pytest.mark.parametrize("trigger", ["after_n_epochs", "after_n_batches", "every_n_batches"])
def test_refuses_a_number_that_makes_no_sense(trigger, value):
    with pytest.raises(TriggerError, match=f"{trigger} is {value}; expected a whole number"):
        FinishAfter(**{trigger: value})
