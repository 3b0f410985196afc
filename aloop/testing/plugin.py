"""The plugin of pytest: `aloop_guard` and `aloop_recorder`.

A test is guarded, as by `aloop.testing.guard.guarded`, that has the fixture ``aloop_guard`` or the
mark ``@pytest.mark.aloop_guard(…)``, whose arguments are those of `guarded`; each test is where
the configuration says ``aloop_guard = true``. Its event loops are looked at when it has been
called, before the plugin of its event loop cancels what is left there: that of pytest-asyncio in
either mode, or of anyio. The rest is looked at when its fixtures have ended too, so that these may
close what the test has opened; what they had opened before it may stay.
"""

from collections.abc import Generator
from contextlib import AbstractContextManager, nullcontext
from inspect import iscoroutinefunction, signature
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from aloop.testing.guard import Guard
    from aloop.testing.recorder import Recorder

# Each module of the kit is imported where it is needed: pytest imports this one for every program
# that it is started for.

__all__ = [
    "aloop_guard",
    "aloop_recorder",
    "pytest_addoption",
    "pytest_configure",
    "pytest_runtest_call",
    "pytest_runtest_teardown",
]

_NAME = "aloop_guard"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the setting."""
    parser.addini(
        _NAME,
        "guard every test: it fails where it blocks an event loop or leaves something behind",
        type="bool",
        default=False,
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the mark."""
    config.addinivalue_line(
        "markers",
        f"{_NAME}(block_s=0.25, tasks=True, threads=True, files=True, processes=True, "
        "signals=True, patience_s=5.0): fail the test where it blocks an event loop for longer, "
        "or leaves something behind; what is False, or a block_s of None, is left out",
    )


@pytest.fixture
def aloop_guard() -> None:
    """Fail the test where it blocks an event loop or leaves something behind."""


@pytest.fixture
def aloop_recorder() -> "Recorder":
    """Give an extension that keeps a list of all that happens to it."""
    from aloop.testing.recorder import Recorder

    return Recorder()


_guards: "pytest.StashKey[Guard]" = pytest.StashKey()
"""Those of the tests that have been called, and whose fixtures are yet to end."""


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Guard the call of a test, within what other plugins do around it."""
    options = _options_of(item)
    if options is None:
        return (yield)
    from aloop.testing.guard import Guard, add_to, listed

    with _runner_of(item):
        guard = Guard(**options)
        try:
            result = yield
        except BaseException as error:
            add_to(error, guard.end_of_loops())
            guard.forget()  # what was cut off leaves what it has
            raise
        item.stash[_guards] = guard
        found = guard.end_of_loops()
    if found:
        pytest.fail(listed(found), pytrace=False)
    return result


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    """See that nothing is left when the fixtures of a test have ended."""
    guard = item.stash.get(_guards, None)
    if guard is None:
        return (yield)
    from aloop.testing.guard import add_to, listed

    del item.stash[_guards]
    try:
        result = yield
    except BaseException as error:
        add_to(error, guard.end_of_process())
        raise
    # What fixtures gave is let go of after the teardown, too late for the garbage to be collected.
    found = guard.end_of_process(getattr(item, "funcargs", {}).clear)
    if found:
        pytest.fail(listed(found), pytrace=False)
    return result


def _options_of(item: pytest.Item) -> dict[str, Any] | None:
    """Give the arguments of a test's guard, None where it has none."""
    marks = list(item.iter_markers(_NAME))
    if not (marks or _NAME in getattr(item, "fixturenames", ()) or item.config.getini(_NAME)):
        return None
    options: dict[str, Any] = {}
    for mark in reversed(marks):  # the nearest one last, which counts
        options |= mark.kwargs
        if mark.args:
            pytest.fail(
                f"the mark {_NAME} has {mark.args!r}; expected arguments by name; write "
                f"@pytest.mark.{_NAME}(block_s=…)",
                pytrace=False,
            )
    if options:
        from aloop.testing.guard import guarded

        known = signature(guarded).parameters
        for name in options.keys() - known:
            pytest.fail(
                f"the mark {_NAME} has {name}={options[name]!r}; expected one of "
                f"{', '.join(known)}; correct it",
                pytrace=False,
            )
    return options


def _runner_of(item: pytest.Item) -> AbstractContextManager[object]:
    """Keep the event loop in which anyio runs a test, until the guard has looked."""
    backend = getattr(item, "funcargs", {}).get("anyio_backend")
    if backend is None or not iscoroutinefunction(getattr(item, "obj", None)):
        return nullcontext()
    try:
        from anyio.pytest_plugin import extract_backend_and_options, get_runner
    except ImportError:  # another version: then its event loop has ended before it is looked at
        return nullcontext()
    return get_runner(*extract_backend_and_options(backend))
