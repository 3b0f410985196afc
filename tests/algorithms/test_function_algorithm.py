"""Functions of a batch as training algorithms."""

import threading
from functools import partial

import pytest

from aloop.algorithms import FunctionAlgorithm, TrainingAlgorithm, as_algorithm
from aloop.offload import Worker, current_worker


def sync_step(batch):
    return {"batch": batch, "thread": threading.current_thread()}


async def async_step(batch):
    return {"batch": batch, "thread": threading.current_thread()}


class SyncCallable:
    def __call__(self, batch):
        return sync_step(batch)


class AsyncCallable:
    async def __call__(self, batch):
        return await async_step(batch)


def scaled_sync(scale, batch):
    return sync_step(scale * batch)


async def scaled_async(scale, batch):
    return await async_step(scale * batch)


class Holder:
    def sync_method(self, batch):
        return sync_step(batch)

    async def async_method(self, batch):
        return await async_step(batch)


SYNC = {
    "function": sync_step,
    "object": SyncCallable(),
    "partial": partial(scaled_sync, 1),
    "lambda": lambda batch: sync_step(batch),
    "method": Holder().sync_method,
}
ASYNC = {
    "function": async_step,
    "object": AsyncCallable(),
    "partial": partial(scaled_async, 1),
    "method": Holder().async_method,
    "lambda around an async function": lambda batch: async_step(batch),
    "partial of an async object": partial(AsyncCallable()),
}
ALL = {f"sync {name}": f for name, f in SYNC.items()} | {
    f"async {name}": f for name, f in ASYNC.items()
}


# ---- What a function can be


@pytest.mark.parametrize("where", ["thread", "inline"])
@pytest.mark.parametrize("function", ALL.values(), ids=ALL)
async def test_a_batch_gives_what_the_function_returned(function, where):
    result = await as_algorithm(function, where).process_batch(7)
    assert result["batch"] == 7


@pytest.mark.parametrize("function", SYNC.values(), ids=SYNC)
async def test_a_sync_function_runs_off_the_thread_of_the_event_loop(function):
    result = await as_algorithm(function).process_batch(7)
    assert result["thread"] is not threading.current_thread()


@pytest.mark.parametrize("function", SYNC.values(), ids=SYNC)
async def test_inline_a_sync_function_runs_on_the_thread_of_the_event_loop(function):
    result = await as_algorithm(function, "inline").process_batch(7)
    assert result["thread"] is threading.current_thread()


@pytest.mark.parametrize("function", ASYNC.values(), ids=ASYNC)
async def test_an_async_function_runs_in_the_event_loop(function):
    result = await as_algorithm(function).process_batch(7)
    assert result["thread"] is threading.current_thread()


async def test_in_a_run_a_sync_function_runs_on_the_worker_of_the_run():
    worker = Worker()
    token = current_worker.set(worker)
    try:
        result = await as_algorithm(sync_step).process_batch(7)
        assert result["thread"] is await worker.run(threading.current_thread)
    finally:
        current_worker.reset(token)
        worker.close()


async def test_a_function_may_return_nothing():
    assert await as_algorithm(lambda batch: None).process_batch(7) is None


@pytest.mark.parametrize("where", ["thread", "inline"])
@pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])
async def test_an_error_of_the_function_goes_up_as_it_is(is_async, where):
    error = ZeroDivisionError("no cost")

    def fails(batch):
        raise error

    async def fails_async(batch):
        raise error

    with pytest.raises(ZeroDivisionError) as caught:
        await as_algorithm(fails_async if is_async else fails, where).process_batch(7)
    assert caught.value is error


async def test_a_function_has_nothing_to_initialize():
    calls = []
    await as_algorithm(calls.append).initialize()
    assert calls == []


def test_a_function_becomes_a_training_algorithm():
    assert isinstance(as_algorithm(sync_step), TrainingAlgorithm)


def test_the_text_of_a_function_algorithm_names_the_function_and_its_place():
    text = repr(FunctionAlgorithm(sync_step, "inline"))
    assert text == f"FunctionAlgorithm({sync_step!r}, where='inline')"


# ---- What has a process_batch


def test_a_training_algorithm_is_given_back_as_it_is():
    algorithm = FunctionAlgorithm(sync_step)
    assert as_algorithm(algorithm) is algorithm


def test_anything_that_processes_batches_is_given_back_as_it_is():
    class Foreign:
        async def process_batch(self, batch):
            return {}

    algorithm = Foreign()
    assert as_algorithm(algorithm) is algorithm


def test_what_processes_batches_is_not_called_though_it_could_be():
    class Both:
        async def process_batch(self, batch):
            return {}

        def __call__(self, batch):
            return {}

    algorithm = Both()
    assert as_algorithm(algorithm) is algorithm


# ---- What is refused


@pytest.mark.parametrize("source", [None, 3, "text", {}, [sync_step]], ids=repr)
def test_what_is_no_function_is_refused_by_its_value(source):
    with pytest.raises(TypeError) as caught:
        as_algorithm(source)
    assert f"the algorithm is {source!r:.80}; expected" in str(caught.value)


@pytest.mark.parametrize("source", [FunctionAlgorithm, SyncCallable, dict])
def test_a_class_is_refused_with_the_remedy(source):
    with pytest.raises(TypeError, match="a class has to be instantiated first"):
        as_algorithm(source)


@pytest.mark.parametrize("where", ["gpu", "", None, "THREAD"])
@pytest.mark.parametrize("function", [sync_step, async_step])
def test_a_bad_place_is_refused_by_what_there_is(function, where):
    with pytest.raises(ValueError) as caught:
        as_algorithm(function, where)
    assert f"where is {where!r}; expected one of 'thread', 'inline'" in str(caught.value)


def test_the_base_of_the_algorithms_cannot_be_made():
    with pytest.raises(TypeError):
        TrainingAlgorithm()
