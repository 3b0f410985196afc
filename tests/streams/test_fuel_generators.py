"""The random generators of a Fuel stream are found wherever a function or an object holds them."""

import aloop.streams.fuel  # noqa: F401 - it makes Fuel importable

# isort: split
import functools
import random
import threading
from collections import OrderedDict, deque
from types import SimpleNamespace

import numpy as np
import pytest
from fuel.datasets import IndexableDataset
from fuel.schemes import ConstantScheme, ShuffledScheme
from fuel.streams import DataStream
from fuel.transformers import Filter, Mapping, SortMapping
from fuel_cases import Noise, examples, frozen, indexable, shuffled

from aloop import TrainingExtension
from aloop.streams.fuel import FuelStream


def rng():
    return np.random.RandomState(5)


def noisy(data, generator):
    return (data[0] + generator.normal(), *data[1:])


def by_default():
    return lambda data, rng=rng(): noisy(data, rng)  # noqa: B008 - what is tested


def by_keyword_default():
    return lambda data, *, rng=rng(): noisy(data, rng)  # noqa: B008 - what is tested


def by_closure():
    generator = rng()
    return lambda data: noisy(data, generator)


def by_wrapping():
    inner = by_closure()

    @functools.wraps(inner)
    def outer(data):
        return inner(data)

    return outer


def by_attribute():
    def draws(data):
        return noisy(data, draws.rng)

    draws.rng = rng()
    return draws


def by_two_decorators():
    def decorated(function):
        return lambda data: function(data)

    return decorated(decorated(by_default()))


def by_list():
    functions = [by_default(), Noise()]

    def in_turn(data):
        for function in functions:
            data = function(data)
        return data

    return in_turn


class Outer:
    def __init__(self) -> None:
        self.inner = SimpleNamespace(steps={"noise": deque([Noise()])}, outer=self)

    def __call__(self, data):
        return self.inner.steps["noise"][0](data)

    go = __call__


class Slotted:
    __slots__ = ("__own", "empty")

    def __init__(self) -> None:
        self.__own = rng()

    def __call__(self, data):
        return noisy(data, self.__own)


def of_class():
    class Shared:
        rng = np.random.RandomState(5)

        def __call__(self, data):
            return noisy(data, self.rng)

    return Shared


def of_a_method():
    class Drawing:
        def __call__(self, data, rng=rng()):  # noqa: B008 - what is tested
            return noisy(data, rng)

        @staticmethod
        def go(data, rng=rng()):  # noqa: B008 - what is tested
            return noisy(data, rng)

    return Drawing()


def by_classmethod():
    class Drawing:
        rng = np.random.RandomState(5)

        @classmethod
        def go(cls, data):
            return noisy(data, cls.rng)

    return Drawing.go


def by_methods_of_generators():
    of_numpy, of_python = rng().normal, random.Random(3).random  # noqa: S311 - keeps no secret
    return lambda data: (data[0] * of_numpy() + of_python(), data[1])


def by_cache():
    scale = functools.cache(lambda examples, rng=rng(): rng.normal())  # noqa: B008
    return lambda data: (data[0] * scale(len(data[0])), data[1])


MAPPINGS = {
    "a default": (by_default, ["rng"]),
    "a default of a keyword": (by_keyword_default, ["rng"]),
    "a closure of what is wrapped": (by_wrapping, ["inner.generator"]),
    "an attribute of a function": (by_attribute, ["rng"]),
    "two decorators": (by_two_decorators, ["function.function.rng"]),
    "functions in a list": (by_list, ["functions.0.rng", "functions.1.rng"]),
    "objects in objects": (Outer, ["inner.steps.noise.0.rng"]),
    "objects in that of a method": (lambda: Outer().go, ["inner.steps.noise.0.rng"]),
    "a slot": (Slotted, ["_Slotted__own"]),
    "a class": (lambda: of_class()(), ["rng"]),
    "a class of a classmethod": (by_classmethod, ["rng"]),
    "a default of a method": (of_a_method, ["__call__.rng", "go.rng"]),
    "a default of a bound method": (lambda: of_a_method().__call__, ["go.rng", "rng"]),
    "a partial": (lambda: functools.partial(noisy, generator=rng()), ["generator"]),
    "a cache": (by_cache, ["scale.__wrapped__.rng"]),
    "methods of generators": (
        by_methods_of_generators,
        ["of_numpy.__self__", "of_python.__self__"],
    ),
    "a key to sort by": (
        lambda: SortMapping(lambda example, rng=rng(): rng.uniform()),  # noqa: B008
        ["key.rng"],
    ),
}


def names_in(stream) -> list[str]:
    return sorted(FuelStream(stream).state_dict()["now"])


@pytest.mark.parametrize("case", sorted(MAPPINGS.keys() - {"a cache"}))
def test_mapping_goes_on_where_it_drew(case) -> None:
    make, _ = MAPPINGS[case]
    stream = FuelStream(Mapping(shuffled(), make()))
    list(stream.get_epoch_iterator())
    iterator = stream.get_epoch_iterator()
    next(iterator)
    again = FuelStream(Mapping(shuffled(), make()))
    again.load_state_dict(stream.state_dict())
    assert frozen(list(again.get_epoch_iterator())) == frozen(list(iterator))
    assert frozen(list(again.get_epoch_iterator())) == frozen(list(stream.get_epoch_iterator()))


@pytest.mark.parametrize("case", MAPPINGS)
def test_generators_of_a_mapping_have_their_names(case) -> None:
    make, names = MAPPINGS[case]
    of_scheme = "data_stream.iteration_scheme.rng"
    expected = sorted([of_scheme, *(f"mapping.{name}" for name in names)])
    stream = Mapping(shuffled(), make())
    assert names_in(stream) == expected
    list(stream.get_epoch_iterator())
    assert names_in(stream) == expected, "in the middle of a training they are the same"


def test_generators_of_a_predicate_and_of_a_dataset_are_found() -> None:
    class Drawing(IndexableDataset):
        def __init__(self) -> None:
            super().__init__(OrderedDict(x=np.arange(9.0)))
            self.noise = Outer()

    dataset = Drawing()
    stream = DataStream(dataset, iteration_scheme=ShuffledScheme(9, 2))
    kept = Filter(stream, lambda data, rng=rng(): rng.uniform() < 0.5)  # noqa: B008
    assert names_in(kept) == [
        "data_stream.dataset.noise.inner.steps.noise.0.rng",
        "data_stream.iteration_scheme.rng",
        "predicate.rng",
    ]


def test_two_of_one_name_are_told_apart() -> None:
    function = functools.partial(noisy, rng=rng())
    function.rng = rng()
    names = names_in(Mapping(shuffled(), function))
    assert names == ["data_stream.iteration_scheme.rng", "mapping.rng", "mapping.rng'"]


def test_keys_whose_text_may_change_have_their_number() -> None:
    functions = {object(): Noise(), 7: Noise()}
    names = names_in(Mapping(shuffled(), lambda data: functions[7](data)))
    assert names[1:] == ["mapping.functions.#0.rng", "mapping.functions.7.rng"]


def test_whole_program_is_not_looked_through() -> None:
    class Monitor(TrainingExtension):
        def __init__(self) -> None:
            self.noise, self.others = Noise(), shuffled()

        def change(self, data):
            return self.noise(data)

    class Experiment:
        def __init__(self) -> None:
            self.rng, self.monitor, self.validation = rng(), Monitor(), shuffled()
            self.thread = threading.current_thread()

    experiment, monitor = Experiment(), Monitor()
    of_scheme = "data_stream.iteration_scheme.rng"
    stream = Mapping(shuffled(), lambda data: noisy(data, experiment.rng))
    assert names_in(stream) == [of_scheme, "mapping.experiment.rng"]
    # What the stream was given a method of is looked into.
    stream = Mapping(shuffled(), monitor.change)
    assert names_in(stream) == [of_scheme, "mapping.noise.rng"]
    assert monitor.others not in list(FuelStream(stream).parts())


def test_rest_of_what_is_very_large_is_named_and_not_looked_through(caplog) -> None:
    nested = Noise()
    for _ in range(20):
        nested = [[nested, object()], *([object()] for _ in range(99))]
    near = rng()

    def draws(data, all_of_it=nested):
        return noisy(data, near)

    stream = FuelStream(Mapping(shuffled(), draws))
    assert sorted(stream.state_dict()["now"])[1:] == ["mapping.near"]
    assert caplog.text.count("holds more than 2000 objects") == 1
    list(stream.get_epoch_iterator())
    assert caplog.text.count("holds more than 2000 objects") == 1, "once for each stream"


def test_data_are_not_looked_through(caplog) -> None:
    data = [[list(range(90)) for _ in range(90)] for _ in range(90)]
    assert names_in(Mapping(shuffled(), lambda batch, data=data: batch)) == [
        "data_stream.iteration_scheme.rng"
    ]
    assert caplog.text == ""


def test_scheme_of_examples_of_a_dataset_is_none_of_the_stream() -> None:
    dataset = indexable()
    dataset.example_iteration_scheme = ShuffledScheme(3, 1)
    stream = DataStream(dataset, iteration_scheme=ConstantScheme(3, times=2))
    assert names_in(stream) == []
    assert names_in(examples()) == []
