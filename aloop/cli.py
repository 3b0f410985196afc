"""The commands of ``python -m aloop``, for what a run has left in files.

The exit status of a command is 0 when all is well; 1 when something is broken, or could not be
done; 2 when it was called the wrong way, as argparse has it.
"""

import argparse
import contextlib
import json
import logging
import os
import sys
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from aloop import __version__
from aloop.checkpoints import CheckpointDirectory, SavedCheckpoint
from aloop.checkpoints.directory import is_checkpoint, superfluous
from aloop.errors import AloopError, CheckpointVersionError
from aloop.extensions.saveload import KEEP

__all__ = ["main"]

FINE: Final = 0
BROKEN: Final = 1
MISUSED: Final = 2
INTERRUPTED: Final = 130  # as shells have it for Ctrl-C
CUT_OFF: Final = 141  # as shells have it for SIGPIPE

State = Literal["unverified", "sound", "broken", "unreadable", "unknown version"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and give its exit status.

    Parameters:
        arguments: those of the command line after the program, ``sys.argv[1:]`` unless given.

    Raises `SystemExit` where argparse does: with status 2 for arguments that make no sense, with
    0 for ``--help`` and ``--version``.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return FINE
    with _warnings_on_stderr():
        try:
            status: int = options.run(options)
            sys.stdout.flush()
        except KeyboardInterrupt:
            return INTERRUPTED
        except BrokenPipeError:
            # Whoever read it has enough, as in `... | head`. What is left in the buffer would
            # fail again when the interpreter ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return CUT_OFF
        except (AloopError, OSError) as error:
            _complain(str(error))
            return BROKEN
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m aloop", description="Look after what the runs of aloop have left in files."
    )
    parser.add_argument("--version", action="version", version=f"aloop {__version__}")
    commands = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND")
    _add_checkpoints(
        commands.add_parser(
            "checkpoints",
            help="list checkpoints, verify them, remove old ones",
            description="List the checkpoints of a directory, the newest first. The exit status "
            "is 1 when one of them is broken, or of a version that this aloop does not know.",
        )
    )
    return parser


def _add_checkpoints(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=_path, metavar="PATH", help="a directory, or one checkpoint")
    parser.add_argument("--verify", action="store_true", help="read all files of each")
    parser.add_argument("--prune", action="store_true", help="remove all but the newest")
    parser.add_argument(
        "--keep", type=_number_kept, metavar="N", help=f"how many --prune keeps, {KEEP} by default"
    )
    parser.add_argument(
        "--broken", action="store_true", help="have --prune read all and remove broken ones as well"
    )
    parser.add_argument("--json", action="store_true", help="say it as JSON, for programs")
    parser.set_defaults(run=_checkpoints, misused=parser.error)


def _path(text: str) -> Path:
    if not text:  # which would be the current directory
        raise argparse.ArgumentTypeError("expected the path of a directory or a checkpoint")
    return Path(text)


def _number_kept(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} was given; expected a number from 1 on")
    return int(text)


# What checkpoints there are


@dataclass(slots=True)
class _Entry:
    """What was found of one checkpoint."""

    path: Path
    bytes: int
    state: State = "unverified"
    error: str | None = None
    saved: SavedCheckpoint | None = None
    """None unless its manifest could be read."""

    def read(self) -> None:
        """Read the manifest."""
        try:
            self.saved = SavedCheckpoint.at(self.path)
        except OSError as error:
            self._note(error)

    def verify(self) -> None:
        """Read all other files, unless that was done or makes no sense."""
        if self.state == "unverified" and self.saved is not None:
            try:
                self.saved.verify()
                self.state = "sound"
            except OSError as error:
                self._note(error)

    def _note(self, error: OSError) -> None:
        """Tell what is damaged from what this program could not read, and may be sound."""
        cause = error if not isinstance(error, AloopError) else error.__cause__
        is_damage = not isinstance(cause, OSError) or isinstance(
            cause, FileNotFoundError | NotADirectoryError
        )
        self.error = str(error)
        if isinstance(error, CheckpointVersionError):
            self.state = "unknown version"
        elif is_damage and not self.path.is_symlink():
            self.state = "broken"
        else:
            self.state = "unreadable"


@dataclass(slots=True)
class _Found:
    """What a command has found, and what it has removed."""

    path: Path
    entries: list[_Entry]
    unfinished: list[Path] = field(default_factory=list[Path])
    removed: list[_Entry] | None = None
    """None unless it was asked to remove."""
    removed_unfinished: int = 0
    freed: int = 0


def _checkpoints(options: argparse.Namespace) -> int:
    path: Path = options.path.absolute()
    for name in ("keep", "broken"):
        if getattr(options, name) and not options.prune:
            options.misused(f"--{name} goes with --prune")
    if not path.is_dir():
        what = "is no directory" if path.exists() else "does not exist"
        _complain(f"{path} {what}; expected a directory of checkpoints, or one checkpoint")
        return MISUSED
    if options.prune:
        if is_checkpoint(path):
            options.misused(f"--prune removes from a directory of checkpoints, and {path} is one")
        found = _prune(path, options.keep or KEEP, verify=options.verify, broken=options.broken)
    else:
        found = _look(path, verify=options.verify)
    print(json.dumps(_as_data(found), indent=1) if options.json else "\n".join(_as_text(found)))
    return BROKEN if any(entry.error for entry in found.entries) else FINE


def _look(path: Path, *, verify: bool) -> _Found:
    """Find the checkpoints of a directory, the newest first; those that tell no order are last."""
    is_one = is_checkpoint(path)
    entries: list[_Entry] = []
    for each in [path] if is_one else reversed(CheckpointDirectory(path).names()):
        entry = _Entry(each, _bytes_in(each))
        entry.read()
        if verify:
            entry.verify()
        # A run that uses the directory removes old ones, perhaps between two looks at this one.
        if os.path.lexists(each):
            entries.append(entry)
    entries.sort(key=lambda entry: entry.saved.number if entry.saved else 0, reverse=True)
    return _Found(path, entries, [] if is_one else CheckpointDirectory(path).unfinished())


def _bytes_in(path: Path) -> int:
    """Give the size of what is there, not of what a manifest says; links are not followed."""
    total = 0
    for file in [path, *(Path(at) / name for at, _, names in os.walk(path) for name in names)]:
        with contextlib.suppress(OSError):
            total += 0 if file.is_dir() and not file.is_symlink() else file.lstat().st_size
    return total


# What is removed


def _prune(path: Path, keep: int, *, verify: bool, broken: bool) -> _Found:
    """Remove all but the newest, and what was left unfinished; give what stays."""
    directory = CheckpointDirectory(path)
    unfinished = {left: _bytes_in(left) for left in directory.unfinished()}
    if not (unfinished or directory.names()):
        return _Found(path, [], removed=[])  # nothing there is aloop's
    try:
        directory.claim()  # which removes those
        found = _look(path, verify=verify or broken)
        gone = unfinished.keys() - set(found.unfinished)
        found.removed, found.removed_unfinished = [], len(gone)
        found.freed = sum(unfinished[left] for left in gone)
        for entry in _doomed(found.entries, keep, broken=broken):
            try:
                directory.remove(entry.path)
            except OSError as error:
                entry.error = f"it could not be removed: {error}"
                continue
            found.removed.append(entry)
            found.entries.remove(entry)
            found.freed += entry.bytes
        found.unfinished = directory.unfinished()
        return found
    finally:
        directory.release()


def _doomed(entries: Sequence[_Entry], keep: int, *, broken: bool) -> list[_Entry]:
    """Choose what is removed.

    What is broken by its manifest is not counted, and stays unless it was asked for; what only
    could not be read, or is of another version, stays in any case.
    """

    def is_sound(saved: SavedCheckpoint) -> bool:
        others[saved].verify()
        return others[saved].state == "sound"

    bad = [entry for entry in entries if broken and entry.state == "broken"]
    others = {entry.saved: entry for entry in entries if entry.saved and entry not in bad}
    return bad + [others[saved] for saved in superfluous(list(others), keep, is_sound)]


# How it is said


def _as_data(found: _Found) -> dict[str, Any]:
    data: dict[str, Any] = {
        "path": str(found.path),
        "checkpoints": [_entry_as_data(entry) for entry in found.entries],
        "unfinished": len(found.unfinished),
    }
    if found.removed is not None:
        data["removed"] = [_entry_as_data(entry) for entry in found.removed]
        data["removed_unfinished"] = found.removed_unfinished
        data["freed_bytes"] = found.freed
    return data


def _entry_as_data(entry: _Entry) -> dict[str, Any]:
    saved = entry.saved
    return {
        "name": entry.path.name,
        "path": str(entry.path),
        "state": entry.state,
        "error": entry.error,
        "bytes": entry.bytes,
        "number": saved and saved.number,
        "saved_at": saved and saved.saved_at,
        "position": saved and saved.position.to_dict(),
        "run": saved and saved.run,
        "is_whole": saved and saved.is_whole,
    }


_HEADS: Final = ("name", "iterations", "epochs", "stage", "run", "size", "saved at (UTC)", "what")
_RIGHT: Final = ("iterations", "epochs", "size")  # those that are numbers


def _as_text(found: _Found) -> Iterator[str]:
    for entry in found.removed or ():
        yield f"removed {entry.path.name}, {_human(entry.bytes)}"
    if found.removed is not None:
        yield (
            f"{len(found.removed)} removed, and {found.removed_unfinished} unfinished; "
            f"{_human(found.freed)} freed; {len(found.entries)} left"
        )
    elif not found.entries:
        yield f"no checkpoints in {_plain(str(found.path))}"
    if found.entries:
        yield from _table(found.entries)
    if found.unfinished:
        yield (
            f"{len(found.unfinished)} unfinished (.tmp-ckpt-*): being written, or left by a run "
            "that was killed, and removed by the next one or by --prune"
        )


def _table(entries: Sequence[_Entry]) -> Iterator[str]:
    rows = [_HEADS, *(_cells(entry) for entry in entries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADS))]
    errors = [None, *(entry.error for entry in entries)]
    for row, error in zip(rows, errors, strict=True):
        yield "  ".join(
            cell.rjust(width) if head in _RIGHT else cell.ljust(width)
            for head, cell, width in zip(_HEADS, row, widths, strict=True)
        ).rstrip()
        if error is not None:
            yield f"    {_plain(error)}"


def _cells(entry: _Entry) -> tuple[str, ...]:
    saved, size = entry.saved, _human(entry.bytes)
    name = _plain(entry.path.name)
    if saved is None:
        return (name, "-", "-", "-", "-", size, "-", entry.state)
    what = "whole" if saved.is_whole else "parameters only"
    return (
        name,
        str(saved.position.iterations_done),
        str(saved.position.epochs_done),
        str(saved.position.stage),
        _plain(saved.run[:8]),
        size,
        _plain(saved.saved_at[:19].replace("T", " ")),
        what if entry.state == "unverified" else f"{what}, {entry.state}",
    )


def _human(size: int) -> str:
    if size < 1024:
        return f"{size} B"
    number = float(size)
    for unit in ("KiB", "MiB", "GiB"):
        number /= 1024
        if number < 1024:
            return f"{number:.1f} {unit}"
    return f"{number / 1024:.1f} TiB"


def _plain(text: str) -> str:
    """Give text that a terminal shows as one line, whatever a file or a path has in it."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def _complain(message: str) -> None:
    print(f"aloop: {_plain(message)}", file=sys.stderr)


class _ToStderr(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _complain(record.getMessage())


@contextlib.contextmanager
def _warnings_on_stderr() -> Generator[None]:
    """Show the warnings of the library, which leaves that to the program that it is in."""
    logger, handler = logging.getLogger("aloop"), _ToStderr(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
