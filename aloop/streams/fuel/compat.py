"""Fuel 0.2.0 on today's Python: importing this module makes it importable, and mends it.

What is mended is replaced in Fuel's own modules and classes. Nothing else stays changed: what has
to stand elsewhere while Fuel is imported is taken away again.
"""

import collections
import collections.abc
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any, Final

from aloop.errors import MissingDependencyError
from aloop.streams.fuel.mends import mend, mend_lazy_attributes
from aloop.streams.fuel.worker import serve

__all__ = ["VERSION", "datasets", "schemes", "streams", "transformers"]

VERSION: Final = "0.2.0"
"""The version of Fuel that is mended here."""


_INSTALL: Final = (
    'install it by CC=true pip install "aloop[fuel]" (CC=true leaves out Fuel\'s C extension, '
    'which does not compile for today\'s Python), or by uv with fuel = { CC = "true" } under '
    "[tool.uv.extra-build-variables]"
)


def _import_fuel() -> None:
    try:
        _import_all()
    except ModuleNotFoundError as error:
        name = (error.name or "a module").partition(".")[0]
        raise MissingDependencyError(
            f"Fuel is not installed; expected Fuel {VERSION}; {_INSTALL}"
            if name == "fuel"
            else f"Fuel is installed without {name}, which it imports; expected all that Fuel "
            f"needs; {_INSTALL}"
        ) from error


def _import_all() -> None:
    fuel: Any = import_module("fuel")
    if fuel.__version__ != VERSION:
        raise MissingDependencyError(
            f"Fuel {fuel.__version__} is installed; expected Fuel {VERSION}, for which aloop "
            f"replaces what does not work on today's Python; install fuel=={VERSION}, or make a "
            "DataStream of your own out of its streams"
        )
    with ExitStack() as stack:
        # fuel.schemes imports Iterable from where it was before Python 3.10.
        stack.enter_context(_attribute(collections, "Iterable", collections.abc.Iterable))
        # picklable_itertools asks it for its own version, and setuptools 82 has it no more; the
        # real one warns that it is deprecated.
        stack.enter_context(_module("pkg_resources", _pkg_resources()))
        import_module("fuel.utils")
        mend_lazy_attributes()
        for name in ("datasets.hdf5", "server", "transformers.image", "transformers.defaults"):
            import_module(f"fuel.{name}")


@contextmanager
def _attribute(owner: object, name: str, value: object) -> Generator[None]:
    if hasattr(owner, name):
        yield
        return
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name)


@contextmanager
def _module(name: str, module: ModuleType) -> Generator[None]:
    if name in sys.modules:
        yield
        return
    sys.modules[name] = module
    try:
        yield
    finally:
        del sys.modules[name]


def _pkg_resources() -> ModuleType:
    class DistributionNotFound(Exception):  # noqa: N818 - its name in pkg_resources
        pass

    def get_distribution(name: str) -> None:
        raise DistributionNotFound(name)

    module: Any = ModuleType("pkg_resources")
    module.DistributionNotFound = DistributionNotFound
    module.get_distribution = get_distribution
    return module


def serve_stream(*args: Any) -> None:
    """Serve a stream in a process of its own, which has mended Fuel by importing this module."""
    serve(*args)


_import_fuel()
mend(serve_stream)

datasets: Any = import_module("fuel.datasets")
schemes: Any = import_module("fuel.schemes")
streams: Any = import_module("fuel.streams")
transformers: Any = import_module("fuel.transformers")
