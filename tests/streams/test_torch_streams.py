"""Streams over torch's data loaders: the loader's own batches, resumable, and no worker left."""

import os
import signal
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from aloop import Checkpoint, FinishAfter, MainLoop, TrainingLog, as_stream
from aloop.errors import MissingDependencyError, StreamError
from aloop.protocols import Stateful, Stream

torch = pytest.importorskip("torch")
data = torch.utils.data

from aloop.streams.torch import TorchStream  # noqa: E402 - it has nothing to test without torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torchdata calls what torch has deprecated
    stateful = pytest.importorskip("torchdata.stateful_dataloader")

pytestmark = [
    pytest.mark.aloop_guard(files=False),  # memory that torch shares
    pytest.mark.torch,
    # Workers are forked beside threads; what they do there is torch's matter.
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
]

EXAMPLES = 10


class Numbers(data.Dataset):
    """A number, and what is drawn at random where it is fetched."""

    def __init__(self, examples=EXAMPLES) -> None:
        self.examples, self.fetched = examples, 0

    def __len__(self) -> int:
        return self.examples

    def __getitem__(self, index):
        self.fetched += 1
        return torch.tensor([index, int(torch.randint(10**6, ()))])


class Counted(data.IterableDataset):
    """Numbers that come one after the other, which knows its place."""

    def __init__(self) -> None:
        self.at = 0

    def __iter__(self):
        while self.at < EXAMPLES:
            self.at += 1
            yield torch.tensor([self.at - 1, 0])
        self.at = 0

    def state_dict(self):
        return {"at": self.at, "as bytes": b"abc", "as tensor": torch.tensor([self.at])}

    def load_state_dict(self, state) -> None:
        assert state["as bytes"] == b"abc"
        assert state["as tensor"].tolist() == [state["at"]]
        self.at = state["at"]


class Plain(data.IterableDataset):
    """Numbers that come one after the other."""

    def __iter__(self):
        return iter(torch.tensor([number, 0]) for number in range(EXAMPLES))


class Distributed(data.DistributedSampler):
    """The sampler of one of two processes."""

    def __init__(self, dataset) -> None:
        super().__init__(dataset, num_replicas=2, rank=0, shuffle=True, seed=5)


def seeded():
    return torch.Generator().manual_seed(3)


def loader(dataset=None, kind=data.DataLoader, **options):
    dataset = Numbers() if dataset is None else dataset
    return kind(dataset, **({"batch_size": 3} | options))


def shuffled(kind=data.DataLoader, examples=EXAMPLES, **options):
    options = {"shuffle": True, "generator": seeded()} | options
    return loader(Numbers(examples), kind, **options)


def with_replacement(kind=data.DataLoader, **options):
    dataset, generator = Numbers(), seeded()
    sampler = data.RandomSampler(dataset, replacement=True, num_samples=70, generator=generator)
    return loader(dataset, kind, sampler=sampler, batch_size=10, generator=generator, **options)


def distributed(**options):
    dataset = Numbers(30)
    return loader(dataset, sampler=Distributed(dataset), **options)


def batch_sampled():
    sampler = data.BatchSampler(data.RandomSampler(range(EXAMPLES), generator=seeded()), 4, True)
    return data.DataLoader(Numbers(), batch_sampler=sampler)


class Derived(data.DataLoader):
    """A loader whose iterator may do anything."""


LOADERS = {
    "in order": loader,
    "shuffled": shuffled,
    "shuffled, the last left out": lambda: shuffled(drop_last=True),
    "with replacement": with_replacement,
    "by a sampler of its own": batch_sampled,
    "distributed": distributed,
    "single examples": lambda: shuffled(batch_size=None),
    "derived": lambda: shuffled(Derived),
    "iterable": lambda: loader(Plain()),
    "stateful": lambda: shuffled(stateful.StatefulDataLoader),
    "stateful, in order": lambda: loader(kind=stateful.StatefulDataLoader),
    "stateful, with replacement": lambda: with_replacement(stateful.StatefulDataLoader),
    "stateful, iterable": lambda: loader(Counted(), stateful.StatefulDataLoader),
}
WITH_WORKERS = {
    "shuffled": lambda: shuffled(num_workers=2),
    "with replacement": lambda: with_replacement(num_workers=2),
    "persistent": lambda: shuffled(num_workers=2, persistent_workers=True),
    "distributed": lambda: distributed(num_workers=2, generator=seeded()),
    "stateful": lambda: shuffled(stateful.StatefulDataLoader, num_workers=2),
    "stateful, persistent": lambda: shuffled(
        stateful.StatefulDataLoader, num_workers=2, persistent_workers=True
    ),
    "stateful, iterable": lambda: loader(Counted(), stateful.StatefulDataLoader, num_workers=1),
}


def numbers(batch):
    """The indices of a batch, without what was drawn."""
    return np.atleast_2d(batch.numpy())[:, 0].tolist()


def whole(batch):
    return batch.tolist()


def by_hand(loader, epochs, look=numbers):
    """What the loader gives without a stream."""
    given = []
    for epoch in range(epochs):
        if isinstance(loader.sampler, Distributed):
            loader.sampler.set_epoch(epoch)
        given += [look(batch) for batch in loader]
    return given


def loop_of(stream, directory, trained, finish, look=numbers, epochs=None) -> MainLoop:
    async def step(batch) -> None:
        trained.append(look(batch))

    return MainLoop(
        step,
        stream,
        log=TrainingLog(),
        extensions=[
            Checkpoint(directory, resume=True),
            FinishAfter(after_n_batches=finish, after_n_epochs=epochs),
        ],
        signals="off",
        stall_warning_s=0,
    )


async def stopped(make, directory, stops, look=numbers, **options):
    """What trainings are trained on that are stopped, and resumed in a new stream."""
    trained: list = []
    for stop in stops:
        stream = TorchStream(make(), **options)
        await loop_of(stream, directory, trained, stop, look).run()
        stream.close()
    return trained


def workers() -> set[int]:
    """The child processes of this one."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            state, parent = entry.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == os.getpid() and state != "Z":
                found.add(int(entry.parent.name))
    return found


@pytest.fixture(autouse=True)
def no_worker_left():
    before = workers()
    torch.manual_seed(0)
    yield
    assert workers() - before == set()


# ---- Batches


@pytest.mark.parametrize("name", LOADERS)
async def test_batches_are_those_of_the_loader(tmp_path, name) -> None:
    trained: list = []
    expected = by_hand(LOADERS[name](), 3)
    await loop_of(TorchStream(LOADERS[name]()), tmp_path, trained, len(expected)).run()
    assert trained == expected


@pytest.mark.parametrize("name", WITH_WORKERS)
async def test_batches_of_workers_are_those_of_the_loader(tmp_path, name) -> None:
    trained: list = []
    hand = WITH_WORKERS[name]()
    expected = by_hand(hand, 3, whole)
    stream = TorchStream(WITH_WORKERS[name]())
    await loop_of(stream, tmp_path, trained, len(expected), whole).run()
    stream.close()
    TorchStream(hand).close()
    assert trained == expected


def test_batches_are_not_converted() -> None:
    assert isinstance(next(TorchStream(loader()).get_epoch_iterator()), torch.Tensor)


# ---- Resumed


@pytest.mark.parametrize("stop", [1, 3, 4, 5, 8, 11])
@pytest.mark.parametrize("name", LOADERS)
async def test_resumed_training_sees_what_it_would_have_seen(tmp_path, name, stop) -> None:
    expected = by_hand(LOADERS[name](), 10)[:20]
    trained = await stopped(LOADERS[name], tmp_path, [stop, len(expected)])
    assert trained == expected


@pytest.mark.parametrize("name", LOADERS)
async def test_training_that_is_stopped_again_and_again_sees_the_same(tmp_path, name) -> None:
    expected = by_hand(LOADERS[name](), 10)[:20]
    assert await stopped(LOADERS[name], tmp_path, [1, 2, 4, 7, 8, 12, 20]) == expected


@pytest.mark.parametrize("name", LOADERS)
async def test_training_that_is_stopped_between_epochs_sees_the_same(tmp_path, name) -> None:
    trained: list = []
    for epochs in (1, 2, 4):
        stream = TorchStream(LOADERS[name]())
        await loop_of(stream, tmp_path, trained, None, epochs=epochs).run()
    assert trained == by_hand(LOADERS[name](), 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_WORKERS)
async def test_workers_that_are_stopped_between_epochs_give_the_same(tmp_path, name) -> None:
    trained: list = []
    for epochs in (1, 2, 4):
        stream = TorchStream(WITH_WORKERS[name]())
        await loop_of(stream, tmp_path, trained, None, epochs=epochs).run()
        stream.close()
    hand = WITH_WORKERS[name]()
    expected = by_hand(hand, 4)
    TorchStream(hand).close()
    assert trained == expected


@pytest.mark.slow
@pytest.mark.parametrize("refetch", [True, False])
@pytest.mark.parametrize("name", WITH_WORKERS)
async def test_resumed_workers_give_what_they_would_have_given(tmp_path, name, refetch) -> None:
    hand = WITH_WORKERS[name]()
    expected = by_hand(hand, 4)
    TorchStream(hand).close()
    one = len(expected) // 4
    stops = [1, one - 1, one, one + 2, 3 * one, 4 * one]
    assert await stopped(WITH_WORKERS[name], tmp_path, stops, refetch=refetch) == expected


@pytest.mark.parametrize("stops", [(2, 8), (4, 8), (5, 8)])
async def test_what_is_drawn_in_workers_is_the_same_again(tmp_path, stops) -> None:
    expected = by_hand(shuffled(num_workers=2), 2, whole)
    made = await stopped(lambda: shuffled(num_workers=2), tmp_path, stops, whole)
    assert made == expected


async def test_batches_consumed_are_not_fetched_again_without_workers(tmp_path, caplog) -> None:
    await stopped(shuffled, tmp_path, [3])
    made = shuffled()
    await loop_of(TorchStream(made), tmp_path, [], 4).run()
    assert made.dataset.fetched == 1
    assert "left out" not in caplog.text


async def test_batches_that_are_fetched_and_left_out_are_counted(tmp_path, caplog) -> None:
    await stopped(shuffled, tmp_path, [3])
    await stopped(shuffled, tmp_path, [4], refetch=True)
    assert "3 batches are fetched and left out; TorchStream(…, refetch=False)" in caplog.text


async def test_iterable_is_fetched_again_without_advice_that_would_not_help(
    tmp_path, caplog
) -> None:
    await stopped(LOADERS["iterable"], tmp_path, [2, 3])
    assert "2 batches are fetched and left out" in caplog.text
    assert "refetch=False" not in caplog.text


async def test_run_of_the_same_loop_goes_on_in_the_epoch(tmp_path) -> None:
    trained: list = []

    async def step(batch) -> None:
        trained.append(numbers(batch))
        if len(trained) == 2:
            loop.request_finish("batch")

    stream = TorchStream(shuffled())
    loop = MainLoop(step, stream, extensions=[FinishAfter(after_n_epochs=2)], signals="off")
    await loop.run()
    await loop.run()
    assert trained == by_hand(shuffled(), 2)


@pytest.mark.parametrize("make", [shuffled, LOADERS["stateful"], LOADERS["stateful, iterable"]])
def test_stream_that_was_closed_in_an_epoch_goes_on_in_it(make) -> None:
    stream = TorchStream(make())
    iterator = stream.get_epoch_iterator()
    given = []
    for batch in iterator:
        given.append(numbers(batch))
        stream.state_dict()
        stream.close()
    assert given == by_hand(make(), 1)


def test_reset_begins_with_the_first_epoch_again() -> None:
    stream = TorchStream(shuffled())
    given = [[numbers(batch) for batch in stream.get_epoch_iterator()] for _ in range(2)]
    stream.reset()
    assert [numbers(batch) for batch in stream.get_epoch_iterator()] == given[0]


def test_state_that_was_taken_does_not_move_with_the_stream() -> None:
    stream = TorchStream(shuffled())
    iterator = stream.get_epoch_iterator()
    next(iterator)
    state = stream.state_dict()
    before = [array.copy() for array in state["generators"]]
    list(iterator)
    list(stream.get_epoch_iterator())
    assert state["batch"] == 1
    assert [array.tobytes() for array in before] == [a.tobytes() for a in state["generators"]]


def test_stream_gives_back_the_state_that_it_was_given() -> None:
    stream = TorchStream(LOADERS["stateful"]())
    next(stream.get_epoch_iterator())
    state = stream.state_dict()
    resumed = TorchStream(LOADERS["stateful"]())
    resumed.load_state_dict(state)
    assert repr(resumed.state_dict()) == repr(state)


# ---- Seeds


async def test_loader_that_shuffles_unseeded_is_named_once(tmp_path, caplog) -> None:
    stream = TorchStream(loader(shuffle=True))
    await loop_of(stream, tmp_path, [], 9).run()
    assert caplog.text.count("generator=torch.Generator().manual_seed(3)") == 1


@pytest.mark.parametrize("name", ["in order", "shuffled", "distributed", "iterable"])
async def test_nothing_is_said_of_a_loader_whose_order_is_known(tmp_path, name, caplog) -> None:
    await loop_of(TorchStream(LOADERS[name]()), tmp_path, [], 9).run()
    assert "shuffles without a generator" not in caplog.text


async def test_generator_that_is_gone_is_an_error(tmp_path) -> None:
    await stopped(shuffled, tmp_path, [2])
    with pytest.raises(StreamError, match="with 1 generators, and this one has 0"):
        await stopped(lambda: loader(shuffle=True), tmp_path, [4])


# ---- What changed


async def test_data_that_changed_its_length_is_an_error_that_names_both(tmp_path) -> None:
    await stopped(shuffled, tmp_path, [2])
    with pytest.raises(StreamError, match="10 examples in its data set, and this one has 8 ex"):
        await stopped(lambda: shuffled(examples=8), tmp_path, [4])


async def test_batches_of_another_size_are_an_error_that_names_both(tmp_path) -> None:
    await stopped(shuffled, tmp_path, [2])
    with pytest.raises(StreamError, match="with batches of 3, and this one has batches of 5"):
        await stopped(lambda: shuffled(batch_size=5), tmp_path, [4])


@pytest.mark.parametrize(
    ("was", "has"),
    [
        (loader, lambda: loader(shuffle=True)),
        (lambda: loader(shuffle=True), loader),
        (lambda: loader(kind=stateful.StatefulDataLoader), lambda: loader(shuffle=True)),
    ],
)
def test_state_of_another_way_to_order_the_data_is_refused(was, has) -> None:
    state = TorchStream(was()).state_dict()
    with pytest.raises(StreamError, match=r"the samplers \w+, BatchSampler"):
        TorchStream(has()).load_state_dict(state)


async def test_iterable_that_became_shorter_is_an_error_that_names_both(tmp_path) -> None:
    class Short(data.IterableDataset):
        def __iter__(self):
            return iter([torch.tensor([0, 0])])

    await stopped(LOADERS["iterable"], tmp_path, [3])
    with pytest.raises(StreamError, match="has ended after 1 batches; expected the 3 that"):
        await stopped(lambda: loader(Short()), tmp_path, [4])


@pytest.mark.parametrize(
    "change",
    [{"epoch": None}, {"batch": "2"}, {"batch": -1}, {"epoch": True}, {"generators": 3}],
    ids=repr,
)
def test_state_that_is_no_place_is_refused(change) -> None:
    stream = TorchStream(shuffled())
    with pytest.raises(StreamError, match=r"give what state_dict\(\) gave"):
        stream.load_state_dict(stream.state_dict() | change)


def test_state_that_is_no_mapping_is_refused_by_its_value() -> None:
    with pytest.raises(StreamError, match="state is None of type NoneType; expected a mapping"):
        TorchStream(shuffled()).load_state_dict(None)


# ---- Failures


class Broken(Numbers):
    """An example that cannot be read, until it is mended."""

    is_mended = False

    def __getitem__(self, index):
        if index == 4 and not self.is_mended:
            raise OSError("no such image")
        return super().__getitem__(index)


@pytest.mark.parametrize("kind", [data.DataLoader, stateful.StatefulDataLoader])
@pytest.mark.parametrize("workers", [0, 2])
def test_batch_that_could_not_be_read_comes_when_it_is_asked_for_again(kind, workers) -> None:
    dataset = Broken()
    stream = TorchStream(loader(dataset, kind, num_workers=workers))
    iterator = stream.get_epoch_iterator()
    given = [numbers(next(iterator))]
    stream.state_dict()
    with pytest.raises(OSError, match="no such image"):
        next(iterator)
    dataset.is_mended = True
    given += [numbers(batch) for batch in iterator]
    stream.close()
    assert given == by_hand(loader(), 1)


async def test_error_in_a_worker_leaves_no_worker(tmp_path) -> None:
    stream = TorchStream(loader(Broken(), num_workers=2, persistent_workers=True))
    before = workers()
    with pytest.raises(OSError, match="no such image"):
        await loop_of(stream, tmp_path, [], 8).run()
    assert workers() - before == set()


async def test_error_says_once_where_it_was_raised(tmp_path) -> None:
    with pytest.raises(OSError, match="no such image") as caught:
        await loop_of(TorchStream(loader(Broken())), tmp_path, [], 8).run()
    assert [note.rpartition(" after ")[2] for note in caught.value.__notes__] == [
        "batch 1 of epoch 1"
    ]


class Killed(Numbers):
    """Data that the kernel kills a worker over, when it has no memory left."""

    def __getitem__(self, index):
        if index == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


@pytest.mark.slow  # torch looks every five seconds whether its workers are alive
async def test_killed_worker_fails_the_run_and_leaves_no_worker(tmp_path) -> None:
    stream = TorchStream(loader(Killed(), num_workers=2))
    before = workers()
    began = time.monotonic()
    with pytest.raises((RuntimeError, StreamError), match="worker") as caught:  # as it comes
        await loop_of(stream, tmp_path, [], 8).run()
    assert workers() - before == set()
    assert time.monotonic() - began < 20
    assert "raised by the data stream TorchStream" in "".join(caught.value.__notes__)


@pytest.mark.parametrize("persistent", [False, True])
def test_close_in_an_epoch_ends_the_workers(persistent) -> None:
    before = workers()
    stream = TorchStream(shuffled(num_workers=2, persistent_workers=persistent))
    iterator = stream.get_epoch_iterator()
    next(iterator)
    assert len(workers() - before) == 2
    stream.close()
    assert workers() - before == set()


def test_epoch_that_is_left_for_a_later_one_leaves_no_workers() -> None:
    before = workers()
    stream = TorchStream(shuffled(num_workers=2))
    left = stream.get_epoch_iterator()
    next(left)
    later = stream.get_epoch_iterator()
    assert workers() - before == set()
    assert len(list(later)) == 4
    assert next(left, "end") == "end"


# ---- as_stream, and the interface


@pytest.mark.parametrize("name", LOADERS)
def test_loader_becomes_a_stream_of_its_own(name) -> None:
    assert type(as_stream(LOADERS[name]())) is TorchStream


def test_stream_of_a_loader_is_a_stream_with_a_state() -> None:
    stream = TorchStream(shuffled())
    assert isinstance(stream, Stream)
    assert isinstance(stream, Stateful)
    assert (len(stream), stream.where) == (4, "thread")


def test_length_is_unknown_where_the_data_has_none() -> None:
    with pytest.raises(TypeError):
        len(TorchStream(loader(Plain())))


@pytest.mark.parametrize("what", [None, [1], Numbers()], ids=["None", "list", "data set"])
def test_what_is_no_loader_is_refused(what) -> None:
    with pytest.raises(StreamError, match="expected a torch DataLoader; wrap a data set in one"):
        TorchStream(what)


def test_missing_torch_is_an_error_that_says_where_to_get_it(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.data", None)
    with pytest.raises(MissingDependencyError, match="TorchStream needs torch, which cannot be"):
        TorchStream([1])
