"""A scripted algorithm and stream do what the script says, and go on from where they were."""

import asyncio

import pytest

from aloop import Checkpoint, FinishAfter, MainLoop, TrainingDataMonitoring
from aloop.errors import ArgumentError, StreamError
from aloop.testing.recorder import Recorder
from aloop.testing.scripted import Gate, ScriptedAlgorithm, ScriptedStream, Wait
from aloop.testing.virtual_loop import START_S, in_virtual_time


async def play(algorithm: ScriptedAlgorithm, batches) -> list[object]:
    return [await algorithm.process_batch(batch) for batch in batches]


class TestAlgorithm:
    async def test_quantities_are_returned_one_after_the_other(self) -> None:
        script = [{"cost": 3.0}, None, {"cost": 1.0}]
        assert await play(ScriptedAlgorithm(script), range(5)) == [*script, {}, {}]

    async def test_the_last_act_can_be_repeated(self) -> None:
        algorithm = ScriptedAlgorithm([{"cost": 3.0}, {"cost": 1.0}], repeat_last=True)
        assert await play(algorithm, range(4)) == [{"cost": 3.0}, *[{"cost": 1.0}] * 3]

    @pytest.mark.parametrize("error", [KeyError("here"), KeyError])
    async def test_an_exception_is_raised_and_then_the_next_act_is_played(self, error) -> None:
        algorithm = ScriptedAlgorithm([error, {"cost": 1.0}])
        with pytest.raises(KeyError) as info:
            await algorithm.process_batch(1)
        assert isinstance(error, type) or info.value is error
        assert await algorithm.process_batch(1) == {"cost": 1.0}

    async def test_a_function_gets_the_batch(self) -> None:
        async def later(batch: int) -> dict[str, int]:
            await asyncio.sleep(0)
            return {"cost": -batch}

        script = [lambda batch: {"cost": batch}, later, lambda batch: None, lambda b: later(b)]
        assert await play(ScriptedAlgorithm(script), [1, 2, 3, 4]) == [
            {"cost": 1},
            {"cost": -2},
            None,
            {"cost": -4},
        ]

    @in_virtual_time()
    async def test_a_wait_takes_its_time(self) -> None:
        assert await play(ScriptedAlgorithm([Wait(3_600)]), [1]) == [{}]
        assert asyncio.get_running_loop().time() == START_S + 3_600

    async def test_a_gate_tells_when_it_is_reached_and_holds_until_it_is_opened(self) -> None:
        gate = Gate()
        assert repr(gate) == "<Gate closed, not reached>"
        loop = MainLoop(
            ScriptedAlgorithm([{}, gate, gate]),
            [1, 2, 3],
            extensions=[FinishAfter(after_n_epochs=1)],
        )
        run = asyncio.create_task(loop.run())
        await gate.reached()
        assert repr(gate) == "<Gate closed, reached>"
        assert loop.status["iterations_done"] == 1
        gate.open()
        await run
        assert loop.status["iterations_done"] == 3
        assert repr(gate) == "<Gate open, reached>"

    async def test_its_quantities_are_monitored(self) -> None:
        algorithm = ScriptedAlgorithm([{"cost": 3.0}, {"cost": 1.0}])
        loop = MainLoop(
            algorithm,
            [1, 2],
            extensions=[
                TrainingDataMonitoring(["cost"], after_epoch=True),
                FinishAfter(after_n_epochs=1),
            ],
        )
        await loop.run()
        assert loop.log.current_row["cost"] == 2.0

    async def test_one_that_is_resumed_goes_on_with_the_script(self) -> None:
        script = [{"cost": float(number)} for number in range(4)]
        first = ScriptedAlgorithm(script)
        await play(first, [0, 1])
        second = ScriptedAlgorithm(script)
        second.load_state_dict(first.state_dict())
        assert await play(second, [2, 3]) == script[2:]
        assert second.state_dict() == {"acts_begun": 4, "acts": 4}
        assert repr(second) == "<ScriptedAlgorithm: 4 of 4 acts>"

    @pytest.mark.parametrize(
        ("script", "message"),
        [
            (None, "the script is None; expected acts, in a list"),
            ({"cost": 1}, r"the script is \{'cost': 1\}; expected acts"),
            ("abc", "the script is 'abc'; expected acts"),
            ([{}, 3], "act 1 of the script is 3 of type int; expected a mapping of quantities"),
            ([StopIteration], "act 0 of the script is .*; expected .*no StopIteration"),
            ([StopAsyncIteration()], "act 0 of the script is StopAsyncIteration"),
            ([Gate], "act 0 of the script is <class .*Gate'> of type type"),
        ],
    )
    def test_a_script_that_is_none_is_refused(self, script, message) -> None:
        with pytest.raises(ArgumentError, match=message):
            ScriptedAlgorithm(script)

    def test_nothing_cannot_be_repeated(self) -> None:
        with pytest.raises(ArgumentError, match="repeat_last is True, but the script is empty"):
            ScriptedAlgorithm([], repeat_last=True)

    @pytest.mark.parametrize(
        "state", [None, 3, {}, {"acts_begun": 1}, {"acts_begun": -1, "acts": 1}]
    )
    def test_a_state_that_is_none_is_refused(self, state) -> None:
        with pytest.raises(ArgumentError, match=r"state is .*; expected a mapping with acts_begun"):
            ScriptedAlgorithm([]).load_state_dict(state)

    async def test_a_state_past_the_end_of_the_script_is_one_of_the_same_script(self) -> None:
        first = ScriptedAlgorithm([{}, {}])
        await play(first, [1, 2, 3])
        again = ScriptedAlgorithm([{}, {}])
        again.load_state_dict(first.state_dict())
        assert again.acts_begun == 3
        with pytest.raises(ArgumentError, match=r"has 3 acts begun of 2; expected a place in"):
            ScriptedAlgorithm([{}]).load_state_dict(first.state_dict())


@pytest.mark.parametrize("seconds", [-1, float("inf"), float("nan"), "1", True, None])
def test_a_wait_of_no_seconds_is_refused(seconds) -> None:
    with pytest.raises(ArgumentError, match=r"seconds is .*; expected a number of them"):
        Wait(seconds)


@pytest.mark.parametrize("make", [ScriptedAlgorithm, ScriptedStream])
def test_what_is_no_recorder_is_refused(make) -> None:
    with pytest.raises(ArgumentError, match=r"recorder is \[\]; expected a Recorder"):
        make([[]] if make is ScriptedStream else [], recorder=[])


async def epoch_of(stream: ScriptedStream) -> list[object]:
    return [batch async for batch in stream.get_epoch_iterator()]


class TestStream:
    async def test_its_epochs_are_those_of_the_script(self) -> None:
        stream = ScriptedStream([[1, "b"], [], [{"x": 3}]])
        assert [await epoch_of(stream) for _ in range(3)] == [[1, "b"], [], [{"x": 3}]]
        with pytest.raises(StreamError, match=r"epoch 3 of .*; expected no more than the 3 of"):
            stream.get_epoch_iterator()
        stream.reset()
        assert await epoch_of(stream) == [1, "b"]

    async def test_an_exception_is_raised_in_place_of_a_batch(self) -> None:
        error = ConnectionError("gone")
        iterator = ScriptedStream([[1, error, 2]]).get_epoch_iterator()
        assert await anext(iterator) == 1
        with pytest.raises(ConnectionError) as info:
            await anext(iterator)
        assert info.value is error
        assert [batch async for batch in iterator] == [2]

    @in_virtual_time()
    async def test_a_wait_comes_before_a_batch(self) -> None:
        assert await epoch_of(ScriptedStream([[1, Wait(60), Wait(60), 2, Wait(60)]])) == [1, 2]
        assert asyncio.get_running_loop().time() == START_S + 180

    async def test_a_gate_holds_the_batch_after_it(self) -> None:
        gate = Gate()
        iterator = ScriptedStream([[1, gate, 2]]).get_epoch_iterator()
        assert await anext(iterator) == 1
        second = asyncio.create_task(anext(iterator))
        await gate.reached()
        assert not second.done()
        gate.open()
        assert await second == 2

    async def test_a_fetch_that_was_cancelled_at_a_gate_can_be_asked_for_again(self) -> None:
        gate = Gate()
        iterator = ScriptedStream([[gate, 1]]).get_epoch_iterator()
        fetch = asyncio.create_task(anext(iterator))
        await gate.reached()
        fetch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetch
        gate.open()
        assert await anext(iterator) == 1

    async def test_an_epoch_that_was_left_gives_no_more(self) -> None:
        gate = Gate()
        stream = ScriptedStream([[1, gate, 2], [3]])
        left = stream.get_epoch_iterator()
        assert await anext(left) == 1
        waiting = asyncio.create_task(anext(left, "end"))
        await gate.reached()
        assert await epoch_of(stream) == [3]
        gate.open()
        assert await waiting == "end"
        assert await anext(left, "end") == "end"

    @pytest.mark.parametrize("taken", range(6))
    async def test_it_goes_on_anywhere(self, taken) -> None:
        gate = Gate()
        gate.open()
        epochs = [[0, gate, 1, 2], [3, Wait(0), 4]]
        first = ScriptedStream(epochs)
        iterator = first.get_epoch_iterator()
        for _ in range(taken):
            batch = await anext(iterator, "end")
            if batch == "end":
                iterator = first.get_epoch_iterator()
                batch = await anext(iterator)
        second = ScriptedStream(epochs)
        second.load_state_dict(first.state_dict())
        rest = []
        while second.state_dict()["epoch"] < 2:
            rest += await epoch_of(second)
        assert rest == list(range(taken, 5))

    async def test_a_training_is_resumed_with_both_scripts(self, tmp_path) -> None:
        script = [{"cost": float(number)} for number in range(5)]
        epochs = [["a", "b", "c"], ["d", "e"]]

        def make(finish: FinishAfter) -> tuple[MainLoop, Recorder]:
            recorder = Recorder()
            loop = MainLoop(
                ScriptedAlgorithm(script),
                ScriptedStream(epochs, recorder=recorder),
                log_backend="python",
                extensions=[
                    TrainingDataMonitoring(["cost"], after_batch=True),
                    Checkpoint(tmp_path, resume=True, after_batch=True),
                    finish,
                ],
            )
            return loop, recorder

        loop, _ = make(FinishAfter(after_n_batches=2))
        await loop.run()
        loop, recorder = make(FinishAfter(after_n_epochs=2))
        await loop.run()
        assert [args[0] for what, *args in recorder.events if what == "fetched"] == ["c", "d", "e"]
        assert [loop.log[time]["cost"] for time in range(1, 6)] == [0.0, 1.0, 2.0, 3.0, 4.0]

    @pytest.mark.parametrize(
        ("epochs", "message"),
        [
            ([], "epochs is empty"),
            (3, "epochs is 3 of type int; expected epochs, in a list"),
            ([1, 2], "epoch 0 is 1 of type int; expected batches, in a list"),
            ([[1], "ab"], "epoch 1 is 'ab' of type str; expected batches"),
            ([[1], [Gate]], "place 0 of epoch 1 is .*Gate.*; write Gate.…., with parentheses"),
            ([[1, Wait]], "place 1 of epoch 0 is .*Wait.*; write Wait.…., with parentheses"),
            ([[StopIteration()]], "place 0 of epoch 0 is StopIteration.*; expected another"),
            ([[StopAsyncIteration]], "place 0 of epoch 0 is .*; end the list where"),
            ([{"x": 1}], "epoch 0 is .* of type dict; expected batches"),
        ],
    )
    def test_epochs_that_are_none_are_refused(self, epochs, message) -> None:
        with pytest.raises(StreamError, match=message):
            ScriptedStream(epochs)

    @pytest.mark.parametrize(
        ("state", "message"),
        [
            ({"epoch": 0}, "the stream's state has epoch 0 and place None"),
            ({"epoch": 0, "place": 3}, "epoch 0 and place 3; expected a place in <ScriptedStream"),
            ({"epoch": 2, "place": 0}, "epoch 2 and place 0; expected a place in"),
        ],
    )
    def test_a_state_of_another_script_is_refused(self, state, message) -> None:
        stream = ScriptedStream([[1, 2]])
        with pytest.raises(StreamError, match=message):
            stream.load_state_dict(state)
        stream.load_state_dict({"epoch": 1, "place": 0})  # its end
