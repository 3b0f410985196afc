"""What a program does to the files of a directory, in order, for the model of a disk.

Everything counts, whoever does it: SQLite, libraries written in other languages, the interpreter.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from aloop.testing.power.disks import (
    ROOT,
    Link,
    Make,
    Mark,
    Operation,
    Remove,
    Rename,
    Resize,
    Sync,
    Tree,
    Write,
    numbered,
)
from aloop.testing.power.strace import LONGEST_BYTES, OF_PATHS, Call, Opened, TraceError, read_calls

__all__ = ["Step", "read_trace"]

_SHARED_MEMORY: Final = "-shm"


class Step(NamedTuple):
    """An operation, and how messages call it."""

    operation: Operation
    what: str


def read_trace(file: Path, root: Path, marks: Path, tree: Tree, directory: Path) -> list[Step]:
    """Read what was done to the files in a directory.

    Calls that failed are left out, and so are SQLite's ``-shm`` files, which are memory.

    Parameters:
        file: what strace wrote.
        root: the directory, resolved.
        marks: the file, elsewhere, to which the program wrote what it told; resolved.
        tree: what was in the root when the program began.
        directory: in which the program began.

    Raises `TraceError` for what was done in the root and the model does not have.
    """
    reader = _Reader(str(root), str(marks), tree)
    for call in read_calls(file, (str(root), str(marks)), directory):
        reader.read(call)
    return reader.steps


class _Reader:
    def __init__(self, root: str, marks: str, tree: Tree) -> None:
        self.steps: list[Step] = []
        self._root, self._marks = root, marks
        numbers = numbered(tree)
        self._nodes = {f"{root}/{path}" if path else root: node for path, node in numbers.items()}
        self._sizes = {node: len(tree[path] or b"") for path, node in numbers.items() if path}
        self._begun: list[int] = []  # how many steps there were before each call

    def read(self, call: Call) -> None:
        """Take a call for the step that it is, if it is one."""
        self._begun.append(len(self.steps))
        if call.name not in OF_PATHS:
            _OF_FILES[call.name](self, call)
            return
        paths = list(call.paths())
        if call.name == "sync" or any(map(self._is_inside, paths)):
            _OF_PATHS[call.name](self, call, paths)
        elif call.name in ("chdir", "fchdir"):
            self.chdir(call, paths)

    def _step(self, operation: Operation, what: str) -> None:
        what = what.replace(f"{self._root}/", "").replace(self._root, "the directory")
        self.steps.append(Step(operation, what))

    def _is_inside(self, path: str) -> bool:
        is_inside = path == self._root or path.startswith(f"{self._root}/")
        return is_inside and not path.endswith(_SHARED_MEMORY)

    def _refuse(self, call: Call, why: str) -> TraceError:
        return TraceError(
            f"the training did {call}, {why}; expected what the model of a disk has: files that "
            "are opened, written, renamed, removed and synced in the directory; keep others "
            "elsewhere"
        )

    # Calls that are given paths.

    def _place(self, call: Call, path: str) -> tuple[int, str]:
        """Give the number of the directory, and the name in it."""
        directory, name = os.path.split(path)
        if directory not in self._nodes or not self._is_inside(path):
            raise self._refuse(call, f"but {path} is in no directory that is known")
        return self._nodes[directory], name

    def _make(self, call: Call, path: str, *, is_directory: bool = False) -> int:
        place = self._place(call, path)
        node = len(self._sizes) + 1
        self._nodes[path], self._sizes[node] = node, 0
        self._step(Make(*place, node, is_directory), f"{path} was made")
        return node

    def mkdir(self, call: Call, paths: list[str]) -> None:
        """Make a directory."""
        self._make(call, paths[0], is_directory=True)

    def unlink(self, call: Call, paths: list[str]) -> None:
        """Remove a name."""
        self._step(Remove(*self._place(call, paths[0])), f"{paths[0]} was removed")
        del self._nodes[paths[0]]

    def link(self, call: Call, paths: list[str]) -> None:
        """Give a file another name."""
        old, new = paths
        if old not in self._nodes:
            raise self._refuse(call, "which links to a file elsewhere")
        place = self._place(call, new)
        node = self._nodes[new] = self._nodes[old]
        self._step(Link(*place, node), f"{old} was linked to {new}")

    def rename(self, call: Call, paths: list[str]) -> None:
        """Give a file or directory another name instead."""
        old, new = paths
        flags = call.arguments[-1]
        if call.name == "renameat2" and ("EXCHANGE" in flags or "WHITEOUT" in flags):
            raise self._refuse(call, "which swaps names")
        if old not in self._nodes or not self._is_inside(new):
            raise self._refuse(call, "which moves something in or out")
        if self._nodes.get(new) == self._nodes[old]:
            return  # two names of one file: POSIX has it do nothing
        self._step(
            Rename(*self._place(call, old), *self._place(call, new)), f"{old} was renamed to {new}"
        )
        self._nodes.pop(new, None)
        for path in [path for path in self._nodes if path == old or path.startswith(f"{old}/")]:
            self._nodes[new + path[len(old) :]] = self._nodes.pop(path)

    def truncate(self, call: Call, paths: list[str]) -> None:
        """Cut off a file, or lengthen it."""
        if paths[0] not in self._nodes:
            raise self._refuse(call, "of a file that is not known")
        self._resize(self._nodes[paths[0]], int(call.arguments[1]), paths[0])

    def refuse(self, call: Call, paths: list[str]) -> None:
        """Refuse what is neither a file nor a directory."""
        raise self._refuse(call, "which makes neither a file nor a directory")

    def chdir(self, call: Call, paths: list[str]) -> None:
        """Note where relative paths begin."""
        call.process.directory = paths[0]

    def sync_all(self, call: Call, paths: Sequence[str] = ()) -> None:
        """Sync every file and directory."""
        for node in (ROOT, *self._sizes):
            self._step(Sync(node, self._begun[call.begun]), "everything was synced")

    # Calls that open files.

    def open(self, call: Call) -> None:
        """Open a file, made or emptied if need be."""
        opened = call.opened
        if opened is None:
            raise TraceError(
                f"strace says of {call} no more than {call.result!r}; expected the path that was "
                "opened; install version 5.3 or later"
            )
        call.process.opened.pop(opened.number, None)
        path = opened.path
        if not self._is_inside(path):
            return
        flags = "O_CREAT|O_TRUNC" if call.name == "creat" else " ".join(call.arguments[1:])
        if opened.is_removed or "O_TMPFILE" in flags or call.name == "openat2":
            raise self._refuse(call, "which opens a file without a name")
        node = self._nodes.get(path)
        if node is None:
            if "O_CREAT" not in flags:
                raise self._refuse(call, "and nothing is known of that file")
            node = self._make(call, path)
        elif "O_TRUNC" in flags:
            self._resize(node, 0, path)
        call.process.opened[opened.number] = Opened(node, appends="O_APPEND" in flags)

    def _file(self, call: Call, place: int = 0) -> tuple[Opened | None, str]:
        """Give the open file that is an argument, None for one elsewhere, and its path."""
        given = call.descriptor(place)
        if given is None or not self._is_inside(given.path):
            return None, "" if given is None else given.path
        opened = call.process.opened.get(given.number)
        if opened is None or self._nodes.get(given.path, opened.node) != opened.node:
            raise self._refuse(call, "with a file that was opened nobody knows where")
        return opened, given.path

    def close(self, call: Call) -> None:
        """Forget a descriptor."""
        given = call.descriptor(0)
        if given is not None:
            call.process.opened.pop(given.number, None)

    def share(self, call: Call) -> None:
        """Have another descriptor for an open file."""
        copy = call.opened
        if copy is None:  # another command of fcntl's
            return
        opened, _ = self._file(call)
        if opened is None:
            call.process.opened.pop(copy.number, None)
        else:
            call.process.opened[copy.number] = opened

    # Calls that change open files.

    def seek(self, call: Call) -> None:
        """Note where the next write goes."""
        opened, _ = self._file(call)
        if opened is not None:
            opened.offset = int(call.result)

    def write(self, call: Call) -> None:
        """Write to a file, or tell a mark."""
        opened, path = self._file(call)
        if opened is None and path != self._marks:
            return
        data = call.data
        if data is None:
            raise self._refuse(call, f"with more than {LONGEST_BYTES} bytes at once")
        if opened is None:
            for text in data.decode().splitlines():
                self._step(Mark(text), f"it was told: {text}")
            return
        node, end = opened.node, self._sizes[opened.node]
        if call.name.startswith("pwrite"):
            offset = end if opened.appends else int(call.arguments[3])
        else:
            offset = end if opened.appends else opened.offset
            opened.offset = offset + len(data)
        self._sizes[node] = max(end, offset + len(data))
        self._step(
            Write(node, offset, data), f"{len(data)} bytes were written to {path} at {offset}"
        )

    def _resize(self, node: int, size: int, path: str) -> None:
        if size != self._sizes[node]:
            self._sizes[node] = size
            self._step(Resize(node, size), f"{path} was given {size} bytes")

    def ftruncate(self, call: Call) -> None:
        """Cut off an open file, or lengthen it."""
        opened, path = self._file(call)
        if opened is not None:
            self._resize(opened.node, int(call.arguments[1]), path)

    def fallocate(self, call: Call) -> None:
        """Lengthen an open file."""
        opened, path = self._file(call)
        if opened is None:
            return
        if call.arguments[1] != "0":
            raise self._refuse(call, "which does more than lengthen a file")
        size = int(call.arguments[2]) + int(call.arguments[3])
        self._resize(opened.node, max(size, self._sizes[opened.node]), path)

    def sync(self, call: Call) -> None:
        """Sync an open file or directory, or all of them."""
        opened, path = self._file(call)
        if opened is None:
            return
        if call.name == "syncfs":
            self.sync_all(call)
        else:
            self._step(Sync(opened.node, self._begun[call.begun]), f"{path} was synced")

    def copy(self, call: Call) -> None:
        """Refuse what writes bytes that are not in the trace."""
        self._refuse_hidden(call, 0 if call.name == "sendfile" else 2)

    def map(self, call: Call) -> None:
        """Refuse memory that is written to a file."""
        if "PROT_WRITE" in call.arguments[2] and "MAP_SHARED" in call.arguments[3]:
            self._refuse_hidden(call, 4)

    def _refuse_hidden(self, call: Call, place: int) -> None:
        if self._file(call, place)[0] is not None:
            raise self._refuse(call, "whose bytes strace does not see")


_OF_PATHS: Final[Mapping[str, Callable[[_Reader, Call, list[str]], None]]] = {
    **dict.fromkeys(("rename", "renameat", "renameat2"), _Reader.rename),
    **dict.fromkeys(("link", "linkat"), _Reader.link),
    **dict.fromkeys(("unlink", "unlinkat", "rmdir"), _Reader.unlink),
    **dict.fromkeys(("mkdir", "mkdirat"), _Reader.mkdir),
    **dict.fromkeys(("symlink", "symlinkat", "mknod", "mknodat"), _Reader.refuse),
    **dict.fromkeys(("chdir", "fchdir"), _Reader.chdir),
    "truncate": _Reader.truncate,
    "sync": _Reader.sync_all,
}
_OF_FILES: Final[Mapping[str, Callable[[_Reader, Call], None]]] = {
    **dict.fromkeys(("open", "openat", "openat2", "creat"), _Reader.open),
    **dict.fromkeys(("dup", "dup2", "dup3", "fcntl"), _Reader.share),
    **dict.fromkeys(("write", "pwrite64", "writev", "pwritev", "pwritev2"), _Reader.write),
    **dict.fromkeys(("fsync", "fdatasync", "syncfs"), _Reader.sync),
    **dict.fromkeys(("sendfile", "copy_file_range", "splice"), _Reader.copy),
    "close": _Reader.close,
    "fallocate": _Reader.fallocate,
    "ftruncate": _Reader.ftruncate,
    "lseek": _Reader.seek,
    "mmap": _Reader.map,
}
