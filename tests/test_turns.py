"""When a run gives way to the rest of the event loop."""

import asyncio
from time import perf_counter

import pytest

from aloop import turns
from aloop.turns import MAX_BATCHES, SLICE_S, Turn


@pytest.fixture
def long_slices(monkeypatch):
    """Make turns that do not end by time."""
    monkeypatch.setattr(turns, "SLICE_S", 3600.0)


def spend(seconds):
    """Keep the event loop busy."""
    end = perf_counter() + seconds
    while perf_counter() < end:
        pass


def batches_of(turn):
    """Count the batches of a turn, up to one beyond the most there should be."""
    for batch in range(1, MAX_BATCHES + 2):
        if turn.is_over():
            return batch
    return None


async def test_a_turn_ends_when_its_time_is_over():
    with Turn() as turn:
        spend(SLICE_S)
        assert turn.is_over() is True


async def test_a_turn_goes_on_while_it_has_time(long_slices):
    with Turn() as turn:
        assert turn.is_over() is False


async def test_a_lone_run_keeps_its_turn_for_any_number_of_batches(long_slices):
    with Turn() as turn:
        assert batches_of(turn) is None


async def test_a_run_beside_another_keeps_its_turn_for_so_many_batches(long_slices):
    with Turn() as turn, Turn():
        assert batches_of(turn) == MAX_BATCHES


async def test_a_run_that_began_earlier_notices_one_that_joins(long_slices):
    with Turn() as turn:
        for _ in range(MAX_BATCHES):
            turn.is_over()
        with Turn():
            assert turn.is_over() is True


async def test_a_run_is_alone_again_when_the_other_has_ended(long_slices):
    with Turn() as turn:
        with Turn():
            pass
        assert batches_of(turn) is None


async def test_a_run_that_failed_has_ended_too(long_slices):
    with Turn() as turn:
        with pytest.raises(ZeroDivisionError), Turn():
            raise ZeroDivisionError
        assert batches_of(turn) is None


async def test_a_run_in_another_event_loop_does_not_share_this_one(long_slices):
    async def count_there():
        with Turn() as turn:
            return batches_of(turn)

    with Turn():
        assert await asyncio.to_thread(asyncio.run, count_there()) is None


async def test_a_turn_can_be_taken_again_by_a_second_run(long_slices):
    turn = Turn()
    with turn, Turn():
        batches_of(turn)
    with turn, Turn():
        assert batches_of(turn) == MAX_BATCHES


async def test_giving_way_lets_the_others_go_on():
    done = asyncio.Event()
    asyncio.get_running_loop().call_soon(done.set)
    with Turn() as turn:
        await turn.give_way()
        assert done.is_set()


async def test_after_giving_way_the_batches_count_from_the_beginning(long_slices):
    with Turn() as turn, Turn():
        batches_of(turn)
        await turn.give_way()
        assert batches_of(turn) == MAX_BATCHES


async def test_after_giving_way_the_time_counts_from_the_beginning(monkeypatch):
    monkeypatch.setattr(turns, "SLICE_S", 0.0)
    with Turn() as turn:
        monkeypatch.setattr(turns, "SLICE_S", 3600.0)
        was_over = turn.is_over()
        await turn.give_way()
        assert (was_over, turn.is_over()) == (True, False)


async def test_runs_that_share_the_event_loop_take_turns(long_slices):
    order = []

    async def run(name):
        with Turn() as turn:
            for _ in range(2 * MAX_BATCHES):
                order.append(name)
                if turn.is_over():
                    await turn.give_way()

    with Turn():  # so that the first run is not alone before the second has begun
        await asyncio.gather(run("a"), run("b"))
    assert order == (["a"] * MAX_BATCHES + ["b"] * MAX_BATCHES) * 2
