"""Fault points: every name is passed somewhere, and none costs anything while nobody watches."""

import ast
import asyncio
from collections import Counter
from pathlib import Path

import aloop
from aloop import CallbackName, FinishAfter, MainLoop
from aloop.faults import POINTS, fault_point, point_of, watched_points, with_points

ROOT = Path(aloop.__file__).parent


def named_in_the_code() -> Counter[str]:
    """The names of the fault points that the library passes."""
    names: Counter[str] = Counter()
    for path in ROOT.rglob("*.py"):
        if path.name == "faults.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            function = getattr(node, "func", None)
            if isinstance(function, ast.Name) and function.id in ("fault_point", "with_points"):
                given = [*node.args, *(keyword.value for keyword in node.keywords)]
                names.update(each.value for each in given if isinstance(each, ast.Constant))
    return names


def test_every_point_is_passed_at_one_place_and_every_name_is_declared() -> None:
    callbacks = {f"callback.{callback}" for callback in CallbackName}
    assert named_in_the_code() == Counter(POINTS.keys() - callbacks)
    assert callbacks <= POINTS.keys()


def test_a_function_is_what_it_was_while_nobody_watches() -> None:
    assert with_points(len, "step.begun", "step.done") is len
    fault_point("step.done")  # which does nothing


def test_a_program_has_points_of_its_own() -> None:
    passed: list[str] = []
    with watched_points(passed.append):
        fault_point("mine.saved")
    assert passed == ["mine.saved"]
    assert point_of("mine.saved") == ("a fault point of the program's own", True)
    assert point_of("step.done") is POINTS["step.done"]


def test_the_inner_one_of_two_watchers_is_told() -> None:
    outer: list[str] = []
    inner: list[str] = []
    with watched_points(outer.append):
        with watched_points(inner.append):
            fault_point("log.begun")
        fault_point("log.written")
    fault_point("log.committed")
    assert (outer, inner) == (["log.written"], ["log.begun"])


def test_points_are_passed_around_calls_and_what_they_give_to_await() -> None:
    passed: list[str] = []

    async def step(batch: int) -> int:
        passed.append("at work")
        return batch + 1

    with watched_points(passed.append):
        plain = with_points(len, "batch.fetched", "step.begun")
        awaited = with_points(step, "batch.fetched", "step.done")
        named = with_points(dict, "commit.begun", "commit.done")
        before = with_points(len, "batch.fetched")
    assert plain([1]) == 1  # whoever was watched stays so
    assert passed == []
    with watched_points(passed.append):
        assert (plain([1]), before([2])) == (1, 1)
        assert passed == ["batch.fetched", "step.begun", "batch.fetched"]
        assert named(durable=True) == {"durable": True}
        passed.clear()
        assert asyncio.run(awaited(1)) == 2
    assert passed == ["batch.fetched", "at work", "step.done"]


async def test_a_run_passes_its_points_in_order() -> None:
    passed: list[str] = []

    async def step(batch: int) -> None:
        passed.append("step")

    with watched_points(passed.append):
        await MainLoop(step, [1], extensions=[FinishAfter(after_n_epochs=1)], signals="off").run()
    assert passed == [
        "run.opened",
        "commit.begun",
        "commit.done",
        "run.started",
        "epoch.begun",
        "batch.fetched",
        "step.begun",
        "step",
        "step.done",
        "commit.begun",
        "commit.done",
        "batch.fetched",
        "callback.after_epoch",
        "commit.begun",
        "commit.done",
        "drain.begun",
        "drain.settled",
        "drain.called",
        "drain.done",
        "commit.begun",
        "commit.done",
        "close.done",
    ]
