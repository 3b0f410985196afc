"""The words of a run: callbacks, stages, positions."""

import json
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aloop.callbacks import CallbackName, Position, Stage

POSITIONS = st.builds(
    Position,
    epochs_done=st.integers(0),
    iterations_done=st.integers(0),
    batch=st.integers(0),
    stage=st.sampled_from(Stage),
)


def test_the_callbacks_are_the_nine_of_blocks():
    assert [str(name) for name in CallbackName] == [
        "before_training",
        "on_resumption",
        "before_epoch",
        "before_batch",
        "after_batch",
        "after_epoch",
        "after_training",
        "on_interrupt",
        "on_error",
    ]


def test_a_callback_name_is_its_text():
    assert CallbackName.AFTER_BATCH == "after_batch"


@pytest.mark.parametrize(
    ("stage", "in_epoch"),
    [
        (Stage.NOT_STARTED, False),
        (Stage.TRAINING_STARTED, False),
        (Stage.EPOCH_STARTED, True),
        (Stage.BATCH_STARTED, True),
        (Stage.BATCH_DONE, True),
        (Stage.EPOCH_DONE, False),
    ],
)
def test_a_stage_says_whether_an_epoch_is_under_way(stage, in_epoch):
    assert stage.in_epoch is in_epoch


def test_a_new_position_is_before_everything():
    assert Position() == Position(
        epochs_done=0, iterations_done=0, batch=0, stage=Stage.NOT_STARTED
    )


def test_a_position_as_data_is_its_four_fields():
    position = Position(epochs_done=3, iterations_done=47, batch=17, stage=Stage.BATCH_DONE)
    assert position.to_dict() == {
        "epochs_done": 3,
        "iterations_done": 47,
        "batch": 17,
        "stage": "batch_done",
    }


def test_the_stage_as_data_is_plain_text():
    assert type(Position().to_dict()["stage"]) is str


@given(POSITIONS)
def test_a_position_comes_back_from_json_as_it_was(position):
    assert Position.from_dict(json.loads(json.dumps(position.to_dict()))) == position


@pytest.mark.parametrize("field", Position().to_dict())
def test_data_that_lacks_a_field_is_refused_by_its_name(field):
    data = Position().to_dict()
    del data[field]
    with pytest.raises(KeyError, match=field):
        Position.from_dict(data)


def test_an_unknown_stage_is_refused_by_its_name():
    with pytest.raises(ValueError, match="halfway"):
        Position.from_dict(Position().to_dict() | {"stage": "halfway"})


def test_a_position_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        Position().batch = 3
