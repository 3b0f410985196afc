"""TrainingExtension, SimpleExtension and CompositeExtension."""

import numpy as np
import pytest
from extension_helpers import At, FailingStep, Noting, cost, iterations, live, loop_over

from aloop import (
    CallbackName,
    CompositeExtension,
    FinishAfter,
    MainLoop,
    OnLogRecord,
    SimpleExtension,
    TrainingExtension,
)
from aloop.errors import AloopError, NotAttachedError, TriggerError, UnknownTriggerError

CALLBACKS = [str(name) for name in CallbackName]
ARGUMENTS = {"before_batch": ("batch",), "after_batch": ("batch",), "on_error": ("exception",)}
INTEGER_TRIGGERS = ["after_n_epochs", "after_n_batches", "every_n_epochs", "every_n_batches"]
BOOLEAN_TRIGGERS = [*CALLBACKS, "before_first_epoch"]


class Overriding(TrainingExtension):
    """Overrides every callback and notes its calls."""

    def __init__(self):
        super().__init__()
        self.events = []

    def note(self, callback, *args):
        self.events.append((callback, iterations(self), *args))

    async def before_training(self):
        self.note("before_training")

    async def on_resumption(self):
        self.note("on_resumption")

    async def before_epoch(self):
        self.note("before_epoch")

    async def before_batch(self, batch):
        self.note("before_batch", batch)

    async def after_batch(self, batch):
        self.note("after_batch", batch)

    async def after_epoch(self):
        self.note("after_epoch")

    async def after_training(self):
        self.note("after_training")

    async def on_interrupt(self):
        self.note("on_interrupt")

    async def on_error(self, exception):
        self.note("on_error", exception)


def attached(extension):
    """The extension, belonging to a loop that has not run."""
    extension.main_loop = loop_over([1])
    return extension


# The name and the loop of a TrainingExtension


def test_name_is_that_of_the_class_by_default():
    assert Overriding().name == "Overriding"


def test_name_can_be_given():
    assert TrainingExtension("mine").name == "mine"


def test_empty_name_is_kept():
    assert TrainingExtension("").name == ""


def test_main_loop_before_it_is_assigned_is_a_value_error():
    with pytest.raises(ValueError, match="Overriding has no main loop yet") as raised:
        _ = Overriding().main_loop
    assert isinstance(raised.value, NotAttachedError)


def test_main_loop_of_a_subclass_without_super_init_is_a_value_error():
    class Forgetful(TrainingExtension):
        def __init__(self):
            pass

    with pytest.raises(ValueError, match="Forgetful has no main loop yet"):
        _ = Forgetful().main_loop


async def test_main_loop_is_the_loop_that_runs():
    extension = Overriding()
    loop = loop_over([1], extension, FinishAfter(after_n_epochs=1))
    await loop.run()
    assert extension.main_loop is loop


# How a TrainingExtension dispatches


@pytest.mark.parametrize("callback", CALLBACKS)
async def test_dispatch_calls_the_method_of_that_name(callback):
    extension = attached(Overriding())
    args = ARGUMENTS.get(callback, ())
    await extension.dispatch(callback, *args)
    assert extension.events == [(callback, 0, *args)]


async def test_dispatch_refuses_an_unknown_callback_name():
    with pytest.raises(ValueError, match="'after_lunch'") as raised:
        await Overriding().dispatch("after_lunch")
    assert all(name in str(raised.value) for name in CALLBACKS)


async def test_dispatch_without_overrides_does_nothing():
    extension = TrainingExtension()
    assert [await extension.dispatch(callback) for callback in CALLBACKS] == [None] * 9


async def test_loop_calls_every_callback_in_order():
    extension = Overriding()
    step = FailingStep(3)
    loop = loop_over(["a", "b"], extension, FinishAfter(after_n_epochs=3), step=step)
    with pytest.raises(ArithmeticError) as raised:
        await loop.run()
    loop.extensions.append(At(lambda loop: loop.request_finish("batch"), every_n_batches=3))
    await loop.run()
    assert extension.events == [
        ("before_training", 0),
        ("before_epoch", 0),
        ("before_batch", 0, "a"),
        ("after_batch", 1, "a"),
        ("before_batch", 1, "b"),
        ("after_batch", 2, "b"),
        ("after_epoch", 2),
        ("before_epoch", 2),
        ("before_batch", 2, "a"),
        ("on_error", 2, raised.value),
        ("on_resumption", 2),
        ("before_batch", 2, "b"),
        ("after_batch", 3, "b"),
        ("on_interrupt", 3),
        ("after_training", 3),
    ]


def test_extension_without_overrides_gives_no_handler():
    extension = TrainingExtension()
    assert [extension.handler(callback) for callback in CallbackName] == [None] * 9


def test_extension_gives_handlers_for_what_it_overrides_only():
    class AtTheEnds(TrainingExtension):
        async def before_training(self):
            pass

        async def after_training(self):
            pass

    extension = AtTheEnds()
    assert [name for name in CALLBACKS if extension.handler(CallbackName(name))] == [
        "before_training",
        "after_training",
    ]


async def test_plain_override_is_called():
    epochs = []

    class Plain(TrainingExtension):
        def after_epoch(self):
            epochs.append(iterations(self))

    await loop_over([1, 2], Plain(), FinishAfter(after_n_epochs=2)).run()
    assert epochs == [2, 4]


async def test_instance_attribute_overrides_a_callback():
    batches = []
    extension = TrainingExtension()
    extension.after_batch = batches.append
    await loop_over(["a", "b"], extension, FinishAfter(after_n_epochs=1)).run()
    assert batches == ["a", "b"]


async def test_instance_attribute_may_be_a_coroutine_function():
    batches = []

    async def after_batch(batch):
        batches.append(batch)

    extension = TrainingExtension()
    extension.after_batch = after_batch
    await loop_over(["a", "b"], extension, FinishAfter(after_n_epochs=1)).run()
    assert batches == ["a", "b"]


async def test_own_dispatch_gets_every_callback():
    events = []

    class Dispatching(TrainingExtension):
        async def dispatch(self, callback_name, *args):
            events.append((callback_name, *args))

    await loop_over(["a"], Dispatching(), FinishAfter(after_n_epochs=1)).run()
    assert events == [
        ("before_training",),
        ("before_epoch",),
        ("before_batch", "a"),
        ("after_batch", "a"),
        ("after_epoch",),
        ("after_training",),
    ]


async def test_own_dispatch_can_pass_on_to_the_overridden_callbacks():
    class Dispatching(Overriding):
        async def dispatch(self, callback_name, *args):
            self.events.append("dispatch")
            await super().dispatch(callback_name, *args)

    extension = Dispatching()
    await loop_over(["a"], extension, FinishAfter(after_n_epochs=1)).run()
    assert extension.events == [
        "dispatch",
        ("before_training", 0),
        "dispatch",
        ("before_epoch", 0),
        "dispatch",
        ("before_batch", 0, "a"),
        "dispatch",
        ("after_batch", 1, "a"),
        "dispatch",
        ("after_epoch", 1),
        "dispatch",
        ("after_training", 1),
    ]


async def test_own_dispatch_can_pass_on_to_the_conditions():
    events = []

    class Dispatching(Noting):
        async def dispatch(self, callback_name, *args):
            await super().dispatch(callback_name, *args)

    extension = Dispatching(events, after_epoch=True)
    await loop_over([1, 2], extension, FinishAfter(after_n_epochs=1)).run()
    assert events == [("Dispatching", "after_epoch", 2, ())]


async def test_own_dispatch_of_a_composite_can_pass_on_to_the_children():
    events = []

    class Dispatching(CompositeExtension):
        async def dispatch(self, callback_name, *args):
            await super().dispatch(callback_name, *args)

    extension = Dispatching([Noting(events, "child", after_epoch=True)])
    await loop_over([1, 2], extension, FinishAfter(after_n_epochs=1)).run()
    assert events == [("child", "after_epoch", 2, ())]


# When the triggers of a SimpleExtension fire, in the training that `live` leads

FIRINGS = {
    "before_training": [0],
    "before_first_epoch": [0],
    "before_epoch": [0, 4, 8, 11],
    "before_batch": [0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 9, 10, 11, 12, 13, 14],
    "after_batch": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    "after_epoch": [4, 8, 11, 15],
    "on_resumption": [6, 8],
    "on_interrupt": [6],
    "on_error": [8],
    "after_training": [6, 15],
}


@pytest.mark.parametrize(("trigger", "fires_at"), FIRINGS.items())
async def test_boolean_trigger_fires_exactly_there(trigger, fires_at):
    events = []
    await live(Noting(events, **{trigger: True}))
    callback = "before_epoch" if trigger == "before_first_epoch" else trigger
    assert [event[1:3] for event in events] == [(callback, at) for at in fires_at]


@pytest.mark.parametrize(
    ("trigger", "number", "callback", "fires_at"),
    [
        ("after_n_epochs", 1, "after_epoch", [4]),
        ("after_n_epochs", 3, "after_epoch", [11]),
        ("after_n_epochs", 5, "after_epoch", []),
        ("every_n_epochs", 1, "after_epoch", [4, 8, 11, 15]),
        ("every_n_epochs", 2, "after_epoch", [8, 15]),
        ("every_n_epochs", 5, "after_epoch", []),
        ("after_n_batches", 1, "after_batch", [1]),
        ("after_n_batches", 9, "after_batch", [9]),
        ("after_n_batches", 16, "after_batch", []),
        ("every_n_batches", 1, "after_batch", FIRINGS["after_batch"]),
        ("every_n_batches", 4, "after_batch", [4, 8, 12]),
        ("every_n_batches", 16, "after_batch", []),
    ],
)
async def test_integer_trigger_fires_exactly_there(trigger, number, callback, fires_at):
    events = []
    await live(Noting(events, **{trigger: number}))
    assert [event[1:3] for event in events] == [(callback, at) for at in fires_at]


async def test_before_first_epoch_does_not_fire_where_a_later_epoch_is_the_first_of_a_run():
    events = []
    loop = loop_over([1, 2], Noting(events, before_first_epoch=True))
    loop.extensions.append(FinishAfter(every_n_epochs=1))
    await loop.run()
    await loop.run()
    assert events == [("Noting", "before_epoch", 0, ())]


async def test_triggers_work_together():
    events = []
    await live(Noting(events, every_n_epochs=2, after_n_batches=9, on_error=True))
    assert [event[1:3] for event in events] == [
        ("after_epoch", 8),
        ("on_error", 8),
        ("after_batch", 9),
        ("after_epoch", 15),
    ]


@pytest.mark.parametrize("value", [False, None])
@pytest.mark.parametrize("trigger", [*BOOLEAN_TRIGGERS, *INTEGER_TRIGGERS])
def test_false_and_none_turn_a_trigger_off(trigger, value):
    extension = attached(Noting([], **{trigger: value}))
    assert [extension.handler(callback) for callback in CallbackName] == [None] * 9


def test_simple_extension_without_triggers_gives_no_handler():
    extension = attached(Noting([]))
    assert [extension.handler(callback) for callback in CallbackName] == [None] * 9


async def test_numpy_integer_is_a_whole_number():
    events = []
    extension = Noting(events, every_n_batches=np.int64(2))
    await loop_over([1, 2, 3, 4], extension, FinishAfter(after_n_epochs=1)).run()
    assert [event[2] for event in events] == [2, 4]


# Triggers that are refused


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "3"])
@pytest.mark.parametrize("trigger", INTEGER_TRIGGERS)
def test_integer_trigger_refuses_what_is_no_positive_whole_number(trigger, value):
    with pytest.raises(TriggerError) as raised:
        Noting([], **{trigger: value})
    assert str(raised.value) == (
        f"{trigger} is {value!r}; expected a whole number, 1 or more; leave it out to turn the "
        "trigger off"
    )


@pytest.mark.parametrize("value", [0, 1, 2.0, "yes"])
@pytest.mark.parametrize("trigger", BOOLEAN_TRIGGERS)
def test_boolean_trigger_refuses_what_is_no_boolean(trigger, value):
    with pytest.raises(TriggerError) as raised:
        Noting([], **{trigger: value})
    assert str(raised.value) == (
        f"{trigger} is {value!r}; expected True or False; for every so many use every_n_epochs "
        "or every_n_batches"
    )


def test_integer_trigger_refuses_an_array_of_a_float():
    with pytest.raises(TriggerError, match=r"every_n_batches is array\(2\.\); expected a whole"):
        Noting([], every_n_batches=np.array(2.0))


def test_trigger_error_is_a_value_error():
    with pytest.raises(ValueError, match="every_n_batches is 0") as raised:
        Noting([], every_n_batches=0)
    assert isinstance(raised.value, AloopError)


def test_misspelt_trigger_is_named():
    with pytest.raises(UnknownTriggerError, match="Noting was given after_epochs=True;"):
        Noting([], after_epochs=True)


def test_misspelt_trigger_gets_all_those_that_exist():
    with pytest.raises(UnknownTriggerError) as raised:
        Noting([], sometimes=True)
    listed = str(raised.value).partition("triggers ")[2].partition(";")[0].split(", ")
    assert sorted(listed) == sorted([*BOOLEAN_TRIGGERS, *INTEGER_TRIGGERS])


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("after_epochs", "after_epoch"),
        ("every_n_batch", "every_n_batches"),
        ("after_n_epoch", "after_n_epochs"),
        ("befor_training", "before_training"),
    ],
)
def test_misspelt_trigger_gets_a_suggestion(misspelt, meant):
    with pytest.raises(UnknownTriggerError) as raised:
        Noting([], **{misspelt: 1})
    assert str(raised.value).endswith(f"; did you mean {meant}?")


def test_trigger_like_no_other_gets_no_suggestion():
    with pytest.raises(UnknownTriggerError) as raised:
        Noting([], xyz=1)
    assert str(raised.value).endswith("; correct it or leave it out")


@pytest.mark.parametrize("value", [False, None])
def test_misspelt_trigger_is_refused_when_it_is_off(value):
    with pytest.raises(UnknownTriggerError):
        Noting([], after_epochs=value)


@pytest.mark.parametrize("standard", [TypeError, ValueError, AloopError])
def test_unknown_trigger_error_is_the_standard_ones_too(standard):
    with pytest.raises(standard):
        Noting([], after_epochs=True)


# Conditions that are set and added


async def test_set_conditions_replaces_all_conditions():
    events = []
    extension = Noting(events, after_batch=True).add_condition(["before_batch"])
    extension.set_conditions(after_epoch=True)
    await loop_over([1, 2], extension, FinishAfter(after_n_epochs=1)).run()
    assert [event[1:3] for event in events] == [("after_epoch", 2)]


async def test_set_conditions_without_triggers_turns_everything_off():
    events = []
    extension = Noting(events, after_batch=True)
    extension.set_conditions()
    await loop_over([1, 2], extension, FinishAfter(after_n_epochs=1)).run()
    assert events == []


async def test_set_conditions_that_is_refused_leaves_the_conditions():
    events = []
    extension = Noting(events, after_epoch=True)
    with pytest.raises(TriggerError):
        extension.set_conditions(after_batch=True, every_n_batches=0)
    await loop_over([1, 2], extension, FinishAfter(after_n_epochs=1)).run()
    assert [event[1:3] for event in events] == [("after_epoch", 2)]


def test_add_condition_gives_back_the_extension():
    extension = Noting([])
    assert extension.add_condition(["after_batch"]) is extension


async def test_add_condition_keeps_the_other_conditions():
    events = []
    extension = Noting(events, after_epoch=True).add_condition(["after_training"])
    await loop_over([1, 2], extension, FinishAfter(after_n_epochs=1)).run()
    assert [event[1] for event in events] == ["after_epoch", "after_training"]


async def test_add_condition_without_predicate_always_holds():
    events = []
    extension = Noting(events).add_condition(["after_batch"])
    await loop_over(["a", "b"], extension, FinishAfter(after_n_epochs=1)).run()
    assert events == [("Noting", "after_batch", 1, ("a",)), ("Noting", "after_batch", 2, ("b",))]


async def test_add_condition_takes_several_callbacks():
    events = []
    extension = Noting(events).add_condition(("before_epoch", "after_epoch"))
    await loop_over([1, 2], extension, FinishAfter(after_n_epochs=1)).run()
    assert [event[1:3] for event in events] == [("before_epoch", 0), ("after_epoch", 2)]


@pytest.mark.parametrize("given", ["after_batch", CallbackName.AFTER_BATCH])
def test_add_condition_refuses_a_bare_string(given):
    with pytest.raises(ValueError, match="expected a list or tuple of callback names"):
        Noting([]).add_condition(given)


def test_add_condition_refuses_an_unknown_callback():
    with pytest.raises(ValueError, match="'after_lunch'") as raised:
        Noting([]).add_condition(["after_lunch"])
    assert all(name in str(raised.value) for name in CALLBACKS)


def test_add_condition_that_is_refused_adds_nothing():
    extension = attached(Noting([]))
    with pytest.raises(ValueError, match="'after_lunch'"):
        extension.add_condition(["after_batch", "after_lunch"])
    assert extension.handler(CallbackName.AFTER_BATCH) is None


async def test_predicate_takes_the_log():
    logs = []
    extension = Noting([]).add_condition(["after_epoch"], logs.append)
    loop = loop_over([1, 2], extension, FinishAfter(after_n_epochs=1))
    await loop.run()
    assert len(logs) == 1
    assert logs[0] is loop.log


async def test_condition_holds_where_its_predicate_does():
    events = []
    extension = Noting(events).add_condition(
        ["after_batch"], lambda log: log.status["iterations_done"] in (2, 3)
    )
    await loop_over([1, 2, 3, 4], extension, FinishAfter(after_n_epochs=1)).run()
    assert [event[2] for event in events] == [2, 3]


async def test_arguments_come_after_those_of_the_loop():
    events = []
    extension = Noting(events).add_condition(["after_batch"], arguments=("path", 3))
    await loop_over(["a"], extension, FinishAfter(after_n_epochs=1)).run()
    assert events == [("Noting", "after_batch", 1, ("a", "path", 3))]


async def test_arguments_stand_alone_where_the_loop_gives_none():
    events = []
    extension = Noting(events).add_condition(["after_epoch"], arguments=["path"])
    await loop_over(["a"], extension, FinishAfter(after_n_epochs=1)).run()
    assert events == [("Noting", "after_epoch", 1, ("path",))]


async def test_arguments_may_be_an_iterator_for_several_callbacks():
    events = []
    extension = Noting(events).add_condition(
        ["before_epoch", "after_epoch"], arguments=iter(["path"])
    )
    await loop_over(["a"], extension, FinishAfter(after_n_epochs=1)).run()
    assert [event[3] for event in events] == [("path",), ("path",)]


async def test_do_gets_the_exception_before_the_arguments_on_an_error():
    events = []
    extension = Noting(events).add_condition(["on_error"], arguments=["path"])
    with pytest.raises(ArithmeticError) as raised:
        await loop_over(["a"], extension, step=FailingStep(1)).run()
    assert events == [("Noting", "on_error", 0, (raised.value, "path"))]


async def test_two_conditions_met_at_once_do_twice_in_order():
    events = []
    extension = (
        Noting(events)
        .add_condition(["after_epoch"], arguments=["first"])
        .add_condition(["after_epoch"], arguments=["second"])
    )
    await loop_over(["a"], extension, FinishAfter(after_n_epochs=1)).run()
    assert [event[3] for event in events] == [("first",), ("second",)]


async def test_condition_between_two_that_hold_is_left_out():
    events = []
    extension = (
        Noting(events)
        .add_condition(["after_epoch"], arguments=["first"])
        .add_condition(["after_epoch"], lambda log: False, arguments=["second"])
        .add_condition(["after_epoch"], lambda log: True, arguments=["third"])
    )
    await loop_over(["a"], extension, FinishAfter(after_n_epochs=1)).run()
    assert [event[3] for event in events] == [("first",), ("third",)]


async def test_each_predicate_is_asked_once_at_a_callback():
    asked = []

    def predicate(name, holds):
        return lambda log: asked.append(name) or holds

    extension = (
        Noting([])
        .add_condition(["after_batch"], predicate("first", holds=False))
        .add_condition(["after_batch"], predicate("second", holds=True))
        .add_condition(["after_batch"], predicate("third", holds=False))
    )
    await loop_over([1, 2], extension, FinishAfter(after_n_epochs=1)).run()
    assert asked == ["first", "second", "third"] * 2


async def test_second_predicate_sees_what_the_first_do_wrote():
    done = []

    class Writing(SimpleExtension):
        async def do(self, which_callback, *args):
            done.append(args)
            self.main_loop.log.current_row["written"] = True

    extension = (
        Writing()
        .add_condition(["after_epoch"], OnLogRecord("written"), arguments=["too early"])
        .add_condition(["after_epoch"], arguments=["first"])
        .add_condition(["after_epoch"], OnLogRecord("written"), arguments=["second"])
    )
    await loop_over(["a"], extension, FinishAfter(after_n_epochs=1)).run()
    assert done == [("first",), ("second",)]


async def test_predicate_that_raises_ends_the_run():
    extension = Noting([]).add_condition(["after_batch"], lambda log: log.current_row["absent"])
    with pytest.raises(KeyError):
        await loop_over([1, 2], extension).run()


# Changes during a run


async def test_condition_added_during_a_run_takes_effect():
    events = []
    extension = Noting(events)
    add = At(lambda loop: extension.add_condition(["after_batch"]), after_n_batches=2)
    await loop_over([1, 2, 3, 4], extension, add, FinishAfter(after_n_epochs=1)).run()
    assert [event[2] for event in events] == [3, 4]


async def test_condition_for_the_next_callback_of_a_batch_takes_effect_there():
    events = []
    extension = Noting(events)
    add = At(lambda loop: extension.add_condition(["after_batch"]), before_batch=True)
    await loop_over([1], extension, add, FinishAfter(after_n_epochs=1)).run()
    assert [event[2] for event in events] == [1]


async def test_set_conditions_during_a_run_takes_effect():
    events = []
    extension = Noting(events, after_batch=True)
    change = At(lambda loop: extension.set_conditions(after_epoch=True), after_n_batches=2)
    await loop_over([1, 2, 3, 4], extension, change, FinishAfter(after_n_epochs=1)).run()
    assert [event[1:3] for event in events] == [
        ("after_batch", 1),
        ("after_batch", 2),
        ("after_epoch", 4),
    ]


async def test_conditions_that_an_extension_replaces_in_its_own_do_take_effect():
    class Once(Noting):
        async def do(self, which_callback, *args):
            await super().do(which_callback, *args)
            self.set_conditions()

    events = []
    await loop_over([1, 2, 3], Once(events, after_batch=True), FinishAfter(after_n_epochs=1)).run()
    assert [event[2] for event in events] == [1]


async def test_condition_that_an_extension_adds_in_its_own_do_holds_from_the_next_time_on():
    class Adding(Noting):
        async def do(self, which_callback, *args):
            await super().do(which_callback, *args)
            if iterations(self) == 1:
                self.add_condition(["after_batch"], arguments=["added"])

    events = []
    await loop_over([1, 2], Adding(events, after_batch=True), FinishAfter(after_n_epochs=1)).run()
    assert [event[2:] for event in events] == [(1, (1,)), (2, (2,)), (2, (2, "added"))]


async def test_extension_appended_during_a_run_takes_part():
    events = []
    late = Noting(events, after_batch=True, before_training=True)
    append = At(lambda loop: loop.extensions.append(late), after_n_batches=2)
    await loop_over([1, 2, 3, 4], append, FinishAfter(after_n_epochs=1)).run()
    assert [event[1:3] for event in events] == [("after_batch", 3), ("after_batch", 4)]


async def test_extension_removed_during_a_run_is_called_no_more():
    events = []
    extension = Noting(events, after_batch=True)
    remove = At(lambda loop: loop.extensions.remove(extension), after_n_batches=2)
    await loop_over([1, 2, 3, 4], extension, remove, FinishAfter(after_n_epochs=1)).run()
    assert [event[2] for event in events] == [1, 2]


async def test_extension_that_replaces_another_during_a_run_takes_its_place():
    events = []
    first = Noting(events, "first", after_batch=True)
    second = Noting(events, "second", after_batch=True)

    def replace(loop):
        loop.extensions[0] = second

    last = Noting(events, "last", after_batch=True)
    loop = loop_over([1, 2], first, At(replace, after_n_batches=1), last)
    loop.extensions.append(FinishAfter(after_n_epochs=1))
    await loop.run()
    assert [event[:3:2] for event in events] == [
        ("first", 1),
        ("last", 1),
        ("second", 2),
        ("last", 2),
    ]


async def test_new_list_of_extensions_during_a_run_takes_effect():
    events = []

    def replace(loop):
        loop.extensions = [Noting(events, after_batch=True), FinishAfter(after_n_epochs=1)]

    await loop_over([1, 2, 3], At(replace, after_n_batches=1)).run()
    assert [event[2] for event in events] == [2, 3]


# What a SimpleExtension does


@pytest.mark.parametrize("callback", ["before_batch", "after_batch"])
def test_parse_args_splits_off_the_batch(callback):
    assert SimpleExtension.parse_args(callback, ["batch", "path", 3]) == (("batch",), ("path", 3))


@pytest.mark.parametrize("callback", [c for c in CALLBACKS if not c.endswith("batch")])
def test_parse_args_gives_all_arguments_to_the_condition_elsewhere(callback):
    assert SimpleExtension.parse_args(callback, ["path", 3]) == ((), ("path", 3))


def test_parse_args_of_a_batch_alone():
    assert SimpleExtension.parse_args("after_batch", ("batch",)) == (("batch",), ())


async def test_sync_do_is_called():
    done = []

    class Plain(SimpleExtension):
        def do(self, which_callback, *args):
            done.append((which_callback, args))

    await loop_over(["a"], Plain(after_batch=True), FinishAfter(after_n_epochs=1)).run()
    assert done == [("after_batch", ("a",))]


async def test_async_do_is_awaited():
    done = []

    class Awaited(SimpleExtension):
        async def do(self, which_callback, *args):
            done.append((which_callback, args))

    await loop_over(["a"], Awaited(after_batch=True), FinishAfter(after_n_epochs=1)).run()
    assert done == [("after_batch", ("a",))]


async def test_missing_do_is_an_error_that_names_the_class():
    class Idle(SimpleExtension):
        pass

    with pytest.raises(NotImplementedError, match="Idle has no method do; define it"):
        await loop_over([1], Idle(after_batch=True)).run()


async def test_overridden_callback_comes_before_the_conditions():
    events = []

    class Both(Noting):
        async def after_batch(self, batch):
            events.append(("overridden", batch))

    extension = Both(events, every_n_batches=2)
    await loop_over(["a", "b"], extension, FinishAfter(after_n_epochs=1)).run()
    assert events == [
        ("overridden", "a"),
        ("overridden", "b"),
        ("Both", "after_batch", 2, ("b",)),
    ]


async def test_overridden_callback_decides_the_condition_after_it():
    events = []

    class Both(Noting):
        def after_batch(self, batch):
            self.main_loop.log.current_row["due"] = batch == "b"

    extension = Both(events).add_condition(["after_batch"], OnLogRecord("due"))
    await loop_over(["a", "b", "c"], extension, FinishAfter(after_n_epochs=1)).run()
    assert [event[2] for event in events] == [2]


async def test_dispatch_checks_the_conditions():
    events = []
    extension = attached(Noting(events, after_batch=True, after_n_batches=1))
    await extension.dispatch("after_batch", "a")
    assert events == [("Noting", "after_batch", 0, ("a",))]


# Extensions inside a CompositeExtension


@pytest.mark.parametrize(
    ("run_before_children", "names"),
    [(True, ["own", "first", "second"]), (False, ["first", "second", "own"])],
)
async def test_composite_runs_before_or_after_its_children(run_before_children, names):
    events = []

    class Composite(CompositeExtension):
        async def do(self, which_callback, *args):
            events.append(("own", which_callback, iterations(self), args))

    children = [Noting(events, name, after_batch=True) for name in ("first", "second")]
    extension = Composite(children, run_before_children, after_batch=True)
    await loop_over(["a"], extension, FinishAfter(after_n_epochs=1)).run()
    assert events == [(name, "after_batch", 1, ("a",)) for name in names]


async def test_composite_runs_before_its_children_by_default():
    events = []

    class Composite(CompositeExtension):
        async def do(self, which_callback, *args):
            events.append("own")

    extension = Composite([Noting(events, "child", after_epoch=True)], after_epoch=True)
    await loop_over([1], extension, FinishAfter(after_n_epochs=1)).run()
    assert events == ["own", ("child", "after_epoch", 1, ())]


@pytest.mark.parametrize("run_before_children", [True, False])
async def test_overridden_callback_of_a_composite_stands_where_its_do_stands(run_before_children):
    events = []

    class Composite(CompositeExtension):
        async def after_epoch(self):
            events.append("own")

    child = Noting(events, "child", after_epoch=True)
    extension = Composite([child], run_before_children)
    await loop_over([1], extension, FinishAfter(after_n_epochs=1)).run()
    expected = ["own", ("child", "after_epoch", 1, ())]
    assert events == (expected if run_before_children else expected[::-1])


async def test_children_keep_their_triggers():
    events = []
    extension = CompositeExtension(
        [Noting(events, "batches", every_n_batches=2), Noting(events, "epochs", after_epoch=True)],
        before_training=True,
    )
    await loop_over([1, 2, 3], extension, FinishAfter(after_n_epochs=1)).run()
    assert [event[:3] for event in events] == [
        ("batches", "after_batch", 2),
        ("epochs", "after_epoch", 3),
    ]


async def test_children_get_the_arguments_of_the_loop():
    events = []
    child = Noting(events, "child", before_batch=True, on_error=True)
    with pytest.raises(ArithmeticError) as raised:
        await loop_over(["a"], CompositeExtension([child]), step=FailingStep(1)).run()
    assert events == [
        ("child", "before_batch", 0, ("a",)),
        ("child", "on_error", 0, (raised.value,)),
    ]


def test_main_loop_of_a_composite_reaches_its_children():
    children = [TrainingExtension(), TrainingExtension()]
    extension = CompositeExtension(children)
    loop = loop_over([1])
    extension.main_loop = loop
    assert [each.main_loop is loop for each in (extension, *children)] == [True, True, True]


def test_main_loop_of_a_composite_before_it_is_assigned_is_a_value_error():
    with pytest.raises(ValueError, match="CompositeExtension has no main loop yet"):
        _ = CompositeExtension([]).main_loop


def test_composite_of_idle_children_gives_no_handler():
    extension = attached(CompositeExtension([TrainingExtension(), Noting([])]))
    assert [extension.handler(callback) for callback in CallbackName] == [None] * 9


async def test_composite_without_a_do_of_its_own_does_nothing():
    loop = loop_over([1], CompositeExtension([], after_epoch=True), FinishAfter(after_n_epochs=1))
    log = await loop.run()
    assert dict(log[1]) == {"training_finish_requested": True, "training_finished": True}


def test_composite_takes_a_name():
    assert CompositeExtension([], name="mine").name == "mine"


def test_composite_refuses_an_unknown_trigger():
    with pytest.raises(UnknownTriggerError, match="CompositeExtension was given after_epochs"):
        CompositeExtension([], after_epochs=True)


async def test_nested_composites_call_in_order():
    events = []

    def noting(name):
        return Noting(events, name, after_epoch=True)

    class Named(CompositeExtension):
        async def do(self, which_callback, *args):
            events.append((self.name, which_callback, iterations(self), args))

    inner = Named([noting("c"), noting("d")], False, name="inner", after_epoch=True)
    outer = Named([noting("a"), inner, noting("b")], name="outer", after_epoch=True)
    await loop_over([1], outer, FinishAfter(after_n_epochs=1)).run()
    assert [event[0] for event in events] == ["outer", "a", "c", "d", "inner", "b"]


def test_main_loop_reaches_the_children_of_nested_composites():
    child = TrainingExtension()
    extension = CompositeExtension([CompositeExtension([child])])
    loop = loop_over([1])
    extension.main_loop = loop
    assert child.main_loop is loop


async def test_condition_added_to_a_child_during_a_run_takes_effect():
    events = []
    child = Noting(events, "child")
    add = At(lambda loop: child.add_condition(["after_batch"]), after_n_batches=1)
    extension = CompositeExtension([CompositeExtension([child])])
    await loop_over([1, 2, 3], extension, add, FinishAfter(after_n_epochs=1)).run()
    assert [event[2] for event in events] == [2, 3]


async def test_instance_attribute_of_a_child_overrides_a_callback():
    batches = []
    child = TrainingExtension()
    child.after_batch = batches.append
    await loop_over(["a"], CompositeExtension([child]), FinishAfter(after_n_epochs=1)).run()
    assert batches == ["a"]


async def test_own_dispatch_of_a_child_gets_every_callback():
    names = []

    class Dispatching(TrainingExtension):
        async def dispatch(self, callback_name, *args):
            names.append(callback_name)

    extension = CompositeExtension([Dispatching()])
    await loop_over([1], extension, FinishAfter(after_n_epochs=1)).run()
    assert names == [
        "before_training",
        "before_epoch",
        "before_batch",
        "after_batch",
        "after_epoch",
        "after_training",
    ]


async def test_extension_sees_the_quantities_of_its_batch():
    seen = []
    extension = At(lambda loop: seen.append(dict(loop.quantities)), after_batch=True)
    await loop_over([3, 4], extension, FinishAfter(after_n_epochs=1), step=cost).run()
    assert seen == [{"cost": 3}, {"cost": 4}]


CHANGES = {
    "append": lambda extensions, other: extensions.append(other),
    "extend": lambda extensions, other: extensions.extend([other]),
    "insert": lambda extensions, other: extensions.insert(0, other),
    "assign an item": lambda extensions, other: extensions.__setitem__(-1, other),
    "assign a slice": lambda extensions, other: extensions.__setitem__(slice(1, 1), [other]),
    "+=": lambda extensions, other: extensions.__iadd__([other]),
}


@pytest.mark.parametrize("how", CHANGES)
async def test_extension_put_into_the_list_in_mid_run_is_called_from_then_on(how):
    calls = []

    class Other(TrainingExtension):
        async def after_batch(self, batch):
            calls.append(batch)

    class Change(TrainingExtension):
        async def after_batch(self, batch):
            if batch == 2:
                CHANGES[how](self.main_loop.extensions, Other())

    async def step(batch):
        """Train on nothing."""

    extensions = [Change(), FinishAfter(after_n_epochs=1), TrainingExtension("last")]
    loop = MainLoop(step, range(6), extensions=extensions)
    await loop.run()
    assert calls == [3, 4, 5]


REMOVALS = {
    "pop": lambda extensions: extensions.pop(0),
    "remove": lambda extensions: extensions.remove(extensions[0]),
    "del": lambda extensions: extensions.__delitem__(0),
    "replace": lambda extensions: extensions.__setitem__(slice(None), extensions[1:]),
    "sort": lambda extensions: (extensions.sort(key=lambda e: e.name), extensions.pop(0)),
    "reverse": lambda extensions: (extensions.reverse(), extensions.pop()),
}


@pytest.mark.parametrize("how", REMOVALS)
async def test_extension_taken_out_of_the_list_in_mid_run_is_called_no_more(how):
    calls = []

    class A(TrainingExtension):
        async def after_batch(self, batch):
            calls.append(batch)
            if batch == 2:
                REMOVALS[how](self.main_loop.extensions)

    async def step(batch):
        """Train on nothing."""

    loop = MainLoop(step, range(6), extensions=[A(), FinishAfter(after_n_epochs=1)])
    await loop.run()
    assert calls == [0, 1, 2]
    assert [extension.name for extension in loop.extensions] == ["FinishAfter"]


def test_list_of_extensions_takes_nothing_else():
    async def step(batch):
        """Train on nothing."""

    loop = MainLoop(step, [1], extensions=[TrainingExtension()])
    with pytest.raises(AloopError, match="expected instances of TrainingExtension"):
        loop.extensions.append(print)
    assert len(loop.extensions) == 1
    loop.extensions.clear()
    loop.extensions = [FinishAfter(after_n_epochs=1)]
    loop.extensions *= 1
    assert [extension.main_loop for extension in loop.extensions] == [loop]
