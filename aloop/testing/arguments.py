"""The arguments that the functions of the kit share, and where their trials are."""

import shutil
import tempfile
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from aloop.disk import absolute_path
from aloop.errors import ArgumentError, seconds_of
from aloop.testing.reports import FaultFoundError

__all__ = ["checked_make_loop", "count_of", "patterns_of", "scratch", "seed_of", "timeout_of"]


def checked_make_loop(make_loop: object) -> None:
    """Raise `ArgumentError` for what cannot make a loop."""
    if not callable(make_loop):
        raise ArgumentError(
            f"make_loop is {make_loop!r:.80}; expected a function of a directory that makes the "
            "loop in it, as a script that is started does; wrap it in one"
        )


def count_of(name: str, value: object) -> int:
    """Give back a number of things, 1 or more, or raise `ArgumentError`."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    raise ArgumentError(f"{name} is {value!r:.80}; expected 1 or more; leave it out")


def timeout_of(timeout_s: object) -> float:
    """Give back seconds that something may take, or raise `ArgumentError`."""
    seconds = seconds_of(timeout_s)
    if seconds and seconds < float("inf"):
        return seconds
    raise ArgumentError(
        f"timeout_s is {timeout_s!r:.80}; expected seconds, more than 0; leave it out"
    )


def seed_of(seed: object) -> int:
    """Give back a seed, or raise `ArgumentError`."""
    if isinstance(seed, int):
        return seed
    raise ArgumentError(f"seed is {seed!r:.80}; expected a whole number; leave it out for 0")


def patterns_of(name: str, patterns: object) -> Sequence[str]:
    """Give back patterns of names, or raise `ArgumentError`."""
    if isinstance(patterns, Iterable) and not isinstance(patterns, str):
        given = tuple(cast("Iterable[object]", patterns))
        if all(isinstance(each, str) for each in given) and (given or name == "ignore"):
            return cast("tuple[str, ...]", given)
    raise ArgumentError(
        f"{name} is {patterns!r:.80}; expected a list of patterns; write [{patterns!r:.80}]"
        if isinstance(patterns, str)
        else f"{name} is {patterns!r:.80}; expected a list of patterns, such as ['*.cost']"
    )


@contextmanager
def scratch(directory: Path | None, kind: str) -> Generator[Path]:
    """Give a directory for trials, which is emptied at the end, unless something was found.

    A temporary one is removed then, and when anything else is raised.

    Parameters:
        directory: where that is, made if need be; a temporary one unless given.
        kind: a word for the name of that.

    Raises `ArgumentError` for one that is not empty.
    """
    where = _emptied(directory, kind)
    try:
        yield where
    except FaultFoundError:
        raise
    except BaseException:
        if directory is None:
            shutil.rmtree(where, ignore_errors=True)
        raise
    shutil.rmtree(where)
    if directory is not None:
        where.mkdir()


def _emptied(directory: object, kind: str) -> Path:
    if directory is None:
        return Path(tempfile.mkdtemp(prefix=f"aloop-{kind}-")).resolve()
    where = absolute_path("directory", directory, "an empty directory, such as 'trials'").resolve()
    try:
        where.mkdir(parents=True, exist_ok=True)
        is_empty = not any(where.iterdir())
    except OSError as error:
        raise ArgumentError(
            f"the directory {where} cannot be used: {error}; expected one that can be written; "
            "give another"
        ) from error
    if not is_empty:
        raise ArgumentError(
            f"the directory {where} is not empty; expected one for the trials alone; give another"
        )
    return where
