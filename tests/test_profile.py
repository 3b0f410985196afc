"""Where the time of a run goes: the tree of timers and its report."""

from time import perf_counter

import pytest

from aloop.profile import Profile


def spend(seconds=0.001):
    end = perf_counter() + seconds
    while perf_counter() < end:
        pass


def lines_of(totals):
    """The report of given times, without its heading, as (name, seconds, share)."""
    profile = Profile()
    profile.totals.update(totals)
    return read(profile.report())


def read(report):
    lines = report.splitlines()[2:]
    return [tuple(line.rsplit(maxsplit=2)) for line in lines]


# ---- Timing


def test_a_timer_adds_the_time_of_its_body():
    profile = Profile()
    before = perf_counter()
    with profile.timer("training"):
        spend(0.001)
    assert 0.001 <= profile.totals["training",] <= perf_counter() - before


def test_a_timer_adds_up_over_its_uses():
    profile = Profile()
    for _ in range(3):
        with profile.timer("training"):
            spend(0.001)
    assert profile.totals["training",] >= 0.003


def test_a_timer_is_entered_below_the_one_that_it_runs_in():
    profile = Profile()
    with profile.timer("training"), profile.timer("epoch"), profile.timer("train"):
        pass
    assert list(profile.totals) == [
        ("training",),
        ("training", "epoch"),
        ("training", "epoch", "train"),
    ]


def test_timers_after_one_another_stand_beside_one_another():
    profile = Profile()
    with profile.timer("initialization"):
        pass
    with profile.timer("training"):
        pass
    assert list(profile.totals) == [("initialization",), ("training",)]


def test_the_same_name_below_two_timers_is_kept_apart():
    profile = Profile()
    for parent in ("before_batch", "after_batch"):
        with profile.timer(parent), profile.timer("Printing"):
            pass
    assert {("before_batch", "Printing"), ("after_batch", "Printing")} < profile.totals.keys()


def test_a_timer_counts_the_time_of_a_body_that_failed():
    def fails():
        spend(0.001)
        raise ZeroDivisionError

    profile = Profile()
    with pytest.raises(ZeroDivisionError), profile.timer("training"):
        fails()
    assert profile.totals["training",] >= 0.001


def test_after_a_body_that_failed_timers_stand_where_they_belong():
    profile = Profile()
    with pytest.raises(ZeroDivisionError), profile.timer("training"), profile.timer("epoch"):
        raise ZeroDivisionError
    with profile.timer("after_training"):
        pass
    assert ("after_training",) in profile.totals


def test_a_child_takes_no_longer_than_its_parent():
    profile = Profile()
    with profile.timer("training"), profile.timer("epoch"):
        spend(0.001)
    assert profile.totals["training", "epoch"] <= profile.totals["training",]


# ---- Functions that are timed


def sync_function(left, right):
    return left + right


async def async_function(left, right):
    return left + right


@pytest.mark.parametrize("function", [sync_function, async_function])
async def test_a_timed_function_gives_what_the_function_gives(function):
    assert await Profile().timed("add", function)(1, 2) == 3


@pytest.mark.parametrize("function", [sync_function, async_function])
async def test_a_timed_function_is_entered_below_the_timer_that_it_runs_in(function):
    profile = Profile()
    timed = profile.timed("add", function)
    with profile.timer("training"):
        await timed(1, 2)
    assert ("training", "add") in profile.totals


async def test_a_function_is_timed_when_called_and_not_when_wrapped():
    profile = Profile()
    profile.timed("add", sync_function)
    assert profile.totals == {}


async def test_the_time_that_an_async_function_takes_to_be_awaited_counts():
    async def slow():
        spend(0.001)

    profile = Profile()
    await profile.timed("slow", slow)()
    assert profile.totals["slow",] >= 0.001


async def test_a_timer_within_a_timed_function_stands_below_it():
    profile = Profile()

    def outer():
        with profile.timer("inner"):
            pass

    await profile.timed("outer", outer)()
    assert list(profile.totals) == [("outer",), ("outer", "inner")]


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])
async def test_an_error_of_a_timed_function_goes_up_as_it_is(is_async):
    def fails():
        raise ZeroDivisionError("no cost")

    async def fails_async():
        raise ZeroDivisionError("no cost")

    with pytest.raises(ZeroDivisionError, match="no cost"):
        await Profile().timed("fails", fails_async if is_async else fails)()


# ---- The report


def test_the_report_of_nothing_is_its_heading():
    heading, rule = Profile().report().splitlines()
    assert (heading.split(), set(rule)) == (["Section", "Time", "(s)", "Share"], {"-"})


def test_a_line_gives_seconds_and_the_share_of_the_whole():
    assert lines_of({("initialization",): 1.0, ("training",): 3.0}) == [
        ("initialization", "1.000", "25.0%"),
        ("training", "3.000", "75.0%"),
    ]


def test_what_the_children_leave_of_a_timer_is_other():
    totals = {("training",): 4.0, ("training", "epoch"): 2.0, ("training", "saving"): 1.0}
    assert lines_of(totals) == [
        ("training", "4.000", "100.0%"),
        ("  epoch", "2.000", "50.0%"),
        ("  saving", "1.000", "25.0%"),
        ("  Other", "1.000", "25.0%"),
    ]


def test_other_stands_at_each_level():
    totals = {
        ("training",): 4.0,
        ("training", "epoch"): 3.0,
        ("training", "epoch", "train"): 1.0,
    }
    assert lines_of(totals) == [
        ("training", "4.000", "100.0%"),
        ("  epoch", "3.000", "75.0%"),
        ("    train", "1.000", "25.0%"),
        ("    Other", "2.000", "50.0%"),
        ("  Other", "1.000", "25.0%"),
    ]


def test_a_timer_without_children_has_no_other():
    assert lines_of({("training",): 4.0}) == [("training", "4.000", "100.0%")]


def test_children_stand_under_their_parents_whenever_they_were_entered():
    totals = {
        ("training",): 4.0,
        ("saving",): 4.0,
        ("training", "epoch"): 4.0,
    }
    assert [name for name, _, _ in lines_of(totals)] == ["training", "  epoch", "  Other", "saving"]


def test_shares_of_no_time_at_all_are_zero():
    assert lines_of({("training",): 0.0}) == [("training", "0.000", "0.0%")]


def test_every_line_of_a_report_is_equally_wide():
    profile = Profile()
    profile.totals.update({("training",): 4.0, ("training", "epoch"): 2.0})
    assert len({len(line) for line in profile.report().splitlines()}) == 1


def test_a_report_asked_for_while_a_timer_runs_has_no_time_below_zero():
    profile = Profile()
    with profile.timer("training"):
        with profile.timer("epoch"):
            spend(0.002)
        report = profile.report()
    assert [seconds for _, seconds, _ in read(report) if float(seconds) < 0] == []


def test_a_report_asked_for_while_a_timer_runs_has_no_share_beyond_the_whole():
    profile = Profile()
    with profile.timer("initialization"):
        spend(0.001)
    with profile.timer("training"):
        with profile.timer("epoch"):
            spend(0.004)
        report = profile.report()
    assert [share for _, _, share in read(report) if float(share.rstrip("%")) > 100] == []
