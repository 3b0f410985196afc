"""The plugin of pytest: `aloop_guard` and `aloop_recorder`.

A test is guarded, as by `aloop.testing.guard.guarded`, that has the fixture ``aloop_guard`` or the
mark ``@pytest.mark.aloop_guard(…)``, whose arguments are those of `guarded`; each test is where
the configuration says ``aloop_guard = true``. Its event loops are looked at when it has been
called, before the plugin of its event loop cancels what is left there: that of pytest-asyncio in
either mode, or of anyio. The rest is looked at when its fixtures have ended too, so that these may
close what the test has opened; what they had opened before it may stay, and so may the signal
handlers from before them. What is found then is an error of the teardown. A test that fails has a
note on what is wrong with its event loops, and on nothing else: its fixtures, and its traceback,
hold things at that point that are about to end.
"""

import signal
from collections.abc import Generator
from contextlib import AbstractContextManager, nullcontext
from inspect import iscoroutinefunction, signature
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from aloop.testing.guard import Guard, SignalHandlers
    from aloop.testing.recorder import Recorder

# Each module of the kit is imported where it is needed: pytest imports this one for every program
# that it is started for.

__all__ = [
    "aloop_guard",
    "aloop_recorder",
    "pytest_addoption",
    "pytest_configure",
    "pytest_runtest_call",
    "pytest_runtest_logreport",
    "pytest_runtest_setup",
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

_waiting: "list[tuple[pytest.Item, Guard]]" = []
"""Those where something is left when the fixtures have ended."""

_handlers: "pytest.StashKey[list[SignalHandlers]]" = pytest.StashKey()
"""Those of signals that were there before the fixtures of some test."""


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    """Note the signal handlers before the fixtures, some of which put them back much later."""
    seen = item.config.stash.setdefault(_handlers, [])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if handlers not in seen:
        seen.append(handlers)
    return (yield)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Guard the call of a test, within what other plugins do around it."""
    options = _options_of(item)
    if options is None:
        return (yield)
    from aloop.testing.guard import Guard, add_to, listed

    with _runner_of(item):
        guard = Guard(**options)
        for handlers in item.config.stash.get(_handlers, ()):
            guard.allow(handlers)
        try:
            result = yield
        except BaseException as error:
            add_to(error, guard.end_of_loops())
            guard.forget()  # what was cut off leaves what it has
            raise
        told: list[pytest.ExceptionInfo[BaseException]] | None = getattr(item, "_excinfo", None)
        if told:  # by unittest, whose failures and skips are not raised
            add_to(told[0].value, guard.end_of_loops())
            guard.forget()
            return result
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
    from aloop.testing.guard import add_to

    del item.stash[_guards]
    try:
        result = yield
    except BaseException as error:
        add_to(error, guard.end_of_process())
        raise
    if guard.is_anything_left():
        _waiting.append((item, guard))
    else:
        guard.forget()
    return result


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Fail the teardown of the test that has just run where something is left.

    Not before: what fixtures gave is held until all plugins have made their reports of it, and much
    ends with the garbage that it belongs to.
    """
    if not _waiting or report.when != "teardown" or report.nodeid != _waiting[-1][0].nodeid:
        return
    from aloop.testing.guard import listed

    item, guard = _waiting.pop()
    # pytest lets go of it right after this itself.
    (getattr(item, "funcargs", None) or {}).clear()
    found = guard.end_of_process()
    if found and not report.failed:
        try:
            pytest.fail(listed(found), pytrace=False)
        except pytest.fail.Exception:
            error = pytest.ExceptionInfo[BaseException].from_current()
        report.outcome = "failed"
        report.longrepr = error.getrepr(style="value")


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
    function = getattr(item, "obj", None)
    # As anyio does with what hypothesis has wrapped, and with what it has wrapped itself before.
    function = getattr(getattr(function, "hypothesis", None), "inner_test", function)
    function = getattr(function, "_anyio_original_func", function)
    if backend is None or not iscoroutinefunction(function):
        return nullcontext()
    try:
        from anyio.pytest_plugin import extract_backend_and_options, get_runner
    except ImportError:  # another version: then its event loop has ended before it is looked at
        return nullcontext()
    return get_runner(*extract_backend_and_options(backend))
