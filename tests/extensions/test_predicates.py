"""Predicates of the log."""

import pytest

from aloop import OnLogRecord, TrainingLog
from aloop.extensions.predicates import CounterIs, CounterIsMultipleOf


def test_on_log_record_equals_another_of_the_same_name():
    assert OnLogRecord("best") == OnLogRecord("best")


def test_on_log_record_differs_from_one_of_another_name():
    assert OnLogRecord("best") != OnLogRecord("worst")


def test_on_log_record_is_no_text():
    assert OnLogRecord("best") != "best"


def test_equal_on_log_records_are_one_in_a_set():
    assert len({OnLogRecord("best"), OnLogRecord("best"), OnLogRecord("worst")}) == 2


@pytest.mark.parametrize("value", [True, 1, -0.5, "no", [0], {"a": None}])
def test_on_log_record_holds_when_the_record_is_true(value):
    log = TrainingLog()
    log.current_row["best"] = value
    assert OnLogRecord("best")(log) is True


@pytest.mark.parametrize("value", [False, 0, 0.0, "", None, [], {}])
def test_on_log_record_does_not_hold_when_the_record_is_false(value):
    log = TrainingLog()
    log.current_row["best"] = value
    assert OnLogRecord("best")(log) is False


def test_on_log_record_does_not_hold_without_the_record():
    log = TrainingLog()
    log.current_row["worst"] = True
    assert OnLogRecord("best")(log) is False


def test_on_log_record_looks_at_the_current_row_alone():
    log = TrainingLog()
    log[0]["best"] = True
    log[2]["best"] = True
    log.status["iterations_done"] = 1
    assert OnLogRecord("best")(log) is False


def test_on_log_record_leaves_the_log_alone():
    log = TrainingLog()
    OnLogRecord("best")(log)
    assert list(log) == []


@pytest.mark.parametrize("counter", ["epochs_done", "iterations_done"])
def test_counter_is_holds_at_its_number_alone(counter):
    log = TrainingLog()
    predicate = CounterIs(counter, 3)
    held = []
    for count in range(7):
        log.status[counter] = count
        if predicate(log):
            held.append(count)
    assert held == [3]


@pytest.mark.parametrize("counter", ["epochs_done", "iterations_done"])
def test_counter_is_multiple_of_holds_at_every_multiple(counter):
    log = TrainingLog()
    predicate = CounterIsMultipleOf(counter, 3)
    held = []
    for count in range(1, 11):
        log.status[counter] = count
        if predicate(log):
            held.append(count)
    assert held == [3, 6, 9]


def test_counter_is_looks_at_its_own_counter():
    log = TrainingLog()
    log.status["epochs_done"] = 3
    assert CounterIs("iterations_done", 3)(log) is False
