"""The calls that a program makes of the system, as strace writes them down."""

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from aloop.errors import AloopError, MissingDependencyError

__all__ = [
    "LONGEST_BYTES",
    "OF_PATHS",
    "Call",
    "Descriptor",
    "Opened",
    "Process",
    "TraceError",
    "read_calls",
    "strace",
]

LONGEST_BYTES: Final = 1 << 26
"""How much of one write is kept in a trace."""

_OF_PROCESSES: Final = frozenset({"chdir", "fchdir", "sync"})

OF_PATHS: Final = _OF_PROCESSES | {
    "rename", "renameat", "renameat2", "link", "linkat", "unlink", "unlinkat", "rmdir", "mkdir",
    "mkdirat", "truncate", "symlink", "symlinkat", "mknod", "mknodat",
}  # fmt: skip
"""The calls that are given paths."""

_OF_FILES: Final = frozenset({
    "open", "openat", "openat2", "creat", "close", "dup", "dup2", "dup3", "fcntl", "lseek",
    "write", "pwrite64", "writev", "pwritev", "pwritev2", "ftruncate", "fallocate", "fsync",
    "fdatasync", "syncfs", "sendfile", "copy_file_range", "splice", "mmap",
})  # fmt: skip
_STARTING: Final = frozenset({"fork", "vfork", "clone", "clone3"})

_CALL: Final = re.compile(r"(\d+) +(\w+)\((.*)\) += (.*)", re.DOTALL)
_BEGUN: Final = re.compile(r"(\d+) +(\w+)\((.*) <unfinished \.\.\.>", re.DOTALL)
_RESUMED: Final = re.compile(r"(\d+) +<\.\.\. (\w+) resumed>(.*)", re.DOTALL)
_STARTED: Final = re.compile(r"(\d+) .*\b(?:clone3?|v?fork)\b.* = (\d+)$")
_TOKEN: Final = re.compile(r'"[^"]*"(?:\.\.\.)?|<[^>]*>|, |[\[\]{}]|[^"<\[\]{},]+|.')
_DESCRIPTOR: Final = re.compile(r"(\d+|AT_FDCWD)<([^>]*)>(\(deleted\))?$")
_STRING: Final = re.compile(r'"([^"]*)"(\.\.\.)?')


class TraceError(AloopError, RuntimeError):
    """A program could not be traced, or did to its files what the model of a disk cannot."""


def strace(file: Path) -> list[str]:
    """Give the beginning of a command that has the rest of it traced into a file.

    Raises `MissingDependencyError` where there is no strace.
    """
    program = shutil.which("strace")
    if program is None:
        raise MissingDependencyError(
            "power_cuts needs strace, which is not there; expected it to be installed; install "
            "your system's package of that name (it is for Linux)"
        )
    # With a question mark, for not every architecture has each of them.
    calls = ",".join(f"?{name}" for name in sorted(OF_PATHS | _OF_FILES | _STARTING))
    options = ["-f", "-y", "-xx", "-s", str(LONGEST_BYTES), "--seccomp-bpf", "-e", "signal=none"]
    return [program, *options, "-e", f"trace={calls}", "-o", str(file)]


class Opened:
    """An open file, which descriptors may share.

    Parameters:
        node: the number of the file.
        appends: whether each write goes to its end.
    """

    __slots__ = ("appends", "node", "offset")

    def __init__(self, node: int, *, appends: bool) -> None:
        self.node = node
        self.appends = appends
        self.offset = 0


class Process:
    """What the threads of a process share.

    Parameters:
        directory: in which it is.
        opened: what it has open, by descriptors.
    """

    def __init__(self, directory: str, opened: dict[int, Opened] | None = None) -> None:
        self.directory = directory
        self.opened = {} if opened is None else dict(opened)


class Descriptor(NamedTuple):
    """A descriptor, and what strace says of it."""

    number: int
    """-1 for what stands for the directory of the process."""
    path: str
    is_removed: bool


class Call(NamedTuple):
    """A call that has returned, and has not failed."""

    process: Process
    name: str
    arguments: Sequence[str]
    result: str
    begun: int
    """How many calls had returned when it began."""

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(_readable, self.arguments))})"

    def paths(self) -> Iterator[str]:
        """Give the paths that it is given, absolute."""
        base = self.process.directory
        for place, argument in enumerate(self.arguments):
            if argument.startswith('"'):
                yield os.path.normpath(Path(base, _text(argument.strip('"'))))
                base = self.process.directory
            elif (at := self.descriptor(place)) is not None:
                base = at.path
                if self.name == "fchdir":
                    yield base

    def descriptor(self, place: int) -> Descriptor | None:
        """Give the descriptor that is an argument."""
        return _descriptor(self.arguments[place])

    @property
    def opened(self) -> Descriptor | None:
        """The descriptor that it gave."""
        return _descriptor(self.result)

    @property
    def data(self) -> bytes | None:
        """What it wrote; None if that was too much to be in the trace."""
        texts = _STRING.findall(self.arguments[1])
        if any(dots for _, dots in texts):
            return None
        return b"".join(_bytes(text) for text, _ in texts)[: int(self.result)]


def read_calls(file: Path, paths: Sequence[str], directory: Path) -> Iterator[Call]:
    """Give the calls that concern some paths, in the order in which they returned.

    But for ``close``, which comes when it began, since the number may be given out again then.

    Parameters:
        file: what strace wrote.
        paths: and all below them.
        directory: in which the program began.
    """
    with file.open(encoding="ascii", errors="replace") as lines:
        processes = _Processes(lines, str(directory))
    texts = [_hex(path) for path in paths]
    halves: dict[str, tuple[str, int]] = {}
    returned = 0
    with file.open(encoding="ascii", errors="replace") as lines:
        for line in map(str.rstrip, lines):
            begun, whole = returned, line
            if half := _BEGUN.match(line):
                halves[half[1]] = half[3], returned
                if half[2] != "close":
                    continue
                whole = f"{half[1]} close({half[3]}) = 0"
            elif rest := _RESUMED.match(line):
                head, begun = halves.pop(rest[1])
                if rest[2] == "close":
                    continue
                whole = f"{rest[1]} {rest[2]}({head}{rest[3]}"
            call = _CALL.match(whole)
            if call is None or call[2] in _STARTING or call[4].startswith(("-1 ", "?")):
                continue
            pid, name, arguments, result = call.groups()
            if name in OF_PATHS or any(text in whole for text in texts):
                yield Call(processes[pid], name, _split(arguments), result, begun)
                returned += 1


class _Processes(dict[str, Process]):
    """The processes, by the numbers of their threads."""

    def __init__(self, lines: Iterator[str], directory: str) -> None:
        super().__init__()
        # Who shares descriptors with whom has to be known before the call that says so returns.
        self._parents: dict[str, tuple[str, bool]] = {}
        heads: dict[str, str] = {}
        for line in lines:
            if not self:
                self[line.split(" ", 1)[0]] = Process(directory)
            if "clone" not in line and "fork" not in line:
                continue
            if begun := _BEGUN.match(line):
                heads[begun[1]] = begun[3]
            elif found := _STARTED.match(line):
                head = heads.pop(found[1], "") if "resumed>" in line else ""
                self._parents[found[2]] = found[1], "CLONE_FILES" in head + line

    def __missing__(self, pid: str) -> Process:
        parent, shares = self._parents[pid]
        process = self[parent]
        self[pid] = process if shares else Process(process.directory, process.opened)
        return self[pid]


def _split(arguments: str) -> list[str]:
    """Cut the arguments apart, but nothing that is in brackets."""
    depth, found = 0, [""]
    for part in _TOKEN.findall(arguments):
        if part == ", " and not depth:
            found.append("")
            continue
        depth += (part in "[{") - (part in "]}")
        found[-1] += part
    return found


def _descriptor(text: str) -> Descriptor | None:
    found = _DESCRIPTOR.match(text)
    if found is None:
        return None
    number = -1 if found[1] == "AT_FDCWD" else int(found[1])
    path, mark = _text(found[2]), " (deleted)"
    return Descriptor(number, path.removesuffix(mark), bool(found[3]) or path.endswith(mark))


def _hex(text: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(text))


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def _text(text: str) -> str:
    return os.fsdecode(_bytes(text))


def _readable(argument: str) -> str:
    return re.sub(r"(?:\\x..)+", lambda found: _text(found[0])[:80], argument)
