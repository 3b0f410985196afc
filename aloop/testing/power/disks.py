"""What a disk may hold after a power cut: a file system that keeps no more than it has promised.

The method is that of ALICE (Pillai et al., "All File Systems Are Not Created Equal: On the
Complexity of Crafting Crash-Consistent Applications", OSDI 2014): the operations of a program are
replayed on a model, and at a cut anything may be lost that was not synced. In this one

- each write to a file since its last sync is there, missing or torn, whatever became of the others;
  what is missing below the end of a file is zeros. Sectors of 512 bytes are whole;
- of the changes of a directory since its last sync the first so many are there, since journaling
  file systems keep their order; of each directory for itself;
- a rename is there as a whole or not at all, between directories, too;
- the sync of a file promises nothing about its name, as in POSIX: the directory has to be synced.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final, NamedTuple, TypeAlias

__all__ = [
    "ROOT",
    "SECTOR_BYTES",
    "Disk",
    "Link",
    "Make",
    "Mark",
    "Operation",
    "Remove",
    "Rename",
    "Resize",
    "Sync",
    "Tree",
    "Write",
    "numbered",
    "read_tree",
    "write_tree",
]

SECTOR_BYTES: Final = 512
"""What a disk writes as a whole or not at all."""

ROOT: Final = 0
"""The number of the directory in which all is, whose own name is on the disk for good."""

Tree: TypeAlias = Mapping[str, bytes | None]
"""The content of each file by its path, None for a directory."""


class Make(NamedTuple):
    """A new file or directory gets a number and a name."""

    directory: int
    name: str
    node: int
    is_directory: bool = False


class Link(NamedTuple):
    """A file gets another name."""

    directory: int
    name: str
    node: int


class Remove(NamedTuple):
    """A name is removed, of a file or of a directory."""

    directory: int
    name: str


class Rename(NamedTuple):
    """A name is replaced by another, which is taken from whatever has it."""

    directory: int
    name: str
    to_directory: int
    to_name: str


class Write(NamedTuple):
    """Bytes are written to a file."""

    node: int
    offset: int
    data: bytes


class Resize(NamedTuple):
    """A file is cut off, or made longer by zeros."""

    node: int
    size: int


class Sync(NamedTuple):
    """A file or directory is synced; what was done to it since the call began may be left out."""

    node: int
    begun: int
    """How many operations there were when it was called."""


class Mark(NamedTuple):
    """The program tells something; the disk is not concerned."""

    text: str


Operation: TypeAlias = Make | Link | Remove | Rename | Write | Resize | Sync | Mark


@dataclass(slots=True)
class _File:
    durable: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, Write | Resize]] = field(
        default_factory=list[tuple[int, Write | Resize]]
    )


@dataclass(slots=True, eq=False)
class _Change:
    """Of one directory: what its names stand for since then, None for those that are gone."""

    at: int
    names: dict[str, int | None]
    elsewhere: "tuple[_Directory, _Change] | None" = None
    """The other half of a rename between directories."""
    removed: "_Directory | None" = None
    """The directory that is removed by this, which was empty by then."""


@dataclass(slots=True, eq=False)
class _Directory:
    durable: dict[str, int] = field(default_factory=dict[str, int])
    now: dict[str, int] = field(default_factory=dict[str, int])
    pending: list[_Change] = field(default_factory=list[_Change])

    def change(self, change: _Change) -> None:
        _apply(self.now, change)
        self.pending.append(change)

    def settle(self, count: int) -> None:
        """Have so many of the changes on the disk, and the other halves of those."""
        settled, self.pending = self.pending[:count], self.pending[count:]
        for change in settled:
            _apply(self.durable, change)
            if change.elsewhere is not None:
                other, half = change.elsewhere
                if half in other.pending:
                    other.settle(other.pending.index(half) + 1)
            if change.removed is not None:
                change.removed.settle(len(change.removed.pending))


def _apply(names: dict[str, int], change: _Change) -> None:
    for name, node in change.names.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


class _Mood(NamedTuple):
    """How likely a cut is to keep, tear and drop what is not synced."""

    keeps: int
    tears: int
    drops: int


# Each cut has one for the content of files and one for names. Most often all is dropped, which
# shows best what should have been synced; what is in between shows what the order has to be.
_MOODS: Final = (_Mood(0, 0, 1), _Mood(1, 0, 0), _Mood(1, 1, 1), _Mood(6, 1, 1), _Mood(1, 1, 6))
_WEIGHTS: Final = (3, 1, 1, 1, 1)


class Disk:
    """The files of one directory, as programs see them and as far as they are on the disk.

    Parameters:
        tree: what is there, and on the disk, to begin with; `numbered` tells the numbers.
    """

    def __init__(self, tree: Tree) -> None:
        self._nodes: dict[int, _File | _Directory] = {ROOT: _Directory()}
        self._done = 0
        numbers = numbered(tree)
        for path, node in sorted(numbers.items()):
            if not path:
                continue
            content = tree[path]
            self._nodes[node] = _Directory() if content is None else _File(bytearray(content))
            parent, _, name = path.rpartition("/")
            directory = self._directory(numbers[parent])
            directory.durable[name] = directory.now[name] = node

    def apply(self, operation: Operation) -> None:
        """Do an operation, as a call that has returned."""
        match operation:
            case Make(directory, name, node, is_directory):
                self._nodes[node] = _Directory() if is_directory else _File()
                self._directory(directory).change(_Change(self._done, {name: node}))
            case Link(directory, name, node):
                self._directory(directory).change(_Change(self._done, {name: node}))
            case Remove(directory, name):
                self._remove(self._directory(directory), name)
            case Rename():
                self._rename(operation)
            case Write(node) | Resize(node):
                self._file(node).pending.append((self._done, operation))
            case Sync(node, begun):
                self._sync(self._nodes[node], begun)
            case Mark():
                pass
        self._done += 1

    def _directory(self, number: int) -> _Directory:
        node = self._nodes[number]
        assert isinstance(node, _Directory)
        return node

    def _file(self, number: int) -> _File:
        node = self._nodes[number]
        assert isinstance(node, _File)
        return node

    def _remove(self, directory: _Directory, name: str) -> None:
        gone = self._nodes[directory.now[name]]
        removed = gone if isinstance(gone, _Directory) else None
        directory.change(_Change(self._done, {name: None}, removed=removed))

    def _rename(self, rename: Rename) -> None:
        source = self._directory(rename.directory)
        target = self._directory(rename.to_directory)
        node = source.now[rename.name]
        replaced = self._nodes.get(target.now.get(rename.to_name, -1))
        removed = replaced if isinstance(replaced, _Directory) else None
        if source is target:
            names = {rename.name: None, rename.to_name: node}
            source.change(_Change(self._done, names, removed=removed))
            return
        out = _Change(self._done, {rename.name: None})
        into = _Change(self._done, {rename.to_name: node}, (source, out), removed)
        out.elsewhere = (target, into)
        source.change(out)
        target.change(into)

    @staticmethod
    def _sync(node: _File | _Directory, begun: int) -> None:
        if isinstance(node, _Directory):
            node.settle(sum(change.at < begun for change in node.pending))
            return
        count = sum(at < begun for at, _ in node.pending)
        for _, change in node.pending[:count]:
            _write(node.durable, change)
        del node.pending[:count]

    def now(self) -> dict[str, bytes | None]:
        """Give what programs see."""
        contents: dict[int, bytes] = {}
        names: dict[int, dict[str, int]] = {}
        for number, node in self._nodes.items():
            if isinstance(node, _Directory):
                names[number] = node.now
            else:
                content = bytearray(node.durable)
                for _, change in node.pending:
                    _write(content, change)
                contents[number] = bytes(content)
        return _tree(names, contents)

    def cut(self, random: Random) -> dict[str, bytes | None]:
        """Give what may be there after a power cut at this moment; it is drawn from `random`."""
        mood, mood_of_names = random.choices(_MOODS, _WEIGHTS, k=2)
        contents = {
            number: _left_of(node, random, mood)
            for number, node in self._nodes.items()
            if isinstance(node, _File)
        }
        return _tree(self._names_left(random, mood_of_names), contents)

    def _names_left(self, random: Random, mood: _Mood) -> dict[int, dict[str, int]]:
        directories = {
            number: node for number, node in self._nodes.items() if isinstance(node, _Directory)
        }
        kept: dict[_Directory, int] = {}
        for directory in directories.values():
            every = len(directory.pending)
            fate = random.choices(("keep", "some", "drop"), mood)[0]
            kept[directory] = {"keep": every, "some": random.randint(0, every), "drop": 0}[fate]
        while any(_hold_back(directory, kept) for directory in directories.values()):
            pass
        names: dict[int, dict[str, int]] = {}
        for number, directory in directories.items():
            names[number] = dict(directory.durable)
            for change in directory.pending[: kept[directory]]:
                _apply(names[number], change)
        return names


def _hold_back(directory: _Directory, kept: dict[_Directory, int]) -> bool:
    """Keep no half of a rename, and no removal of a directory that is not empty yet."""
    for place, change in enumerate(directory.pending[: kept[directory]]):
        is_half = False
        if change.elsewhere is not None:
            other, half = change.elsewhere
            is_half = half in other.pending[kept[other] :]
        removed = change.removed
        is_full = removed is not None and kept[removed] < len(removed.pending)
        if is_half or is_full:
            kept[directory] = place
            return True
    return False


def _left_of(file: _File, random: Random, mood: _Mood) -> bytes:
    content = bytearray(file.durable)
    for _, change in file.pending:
        fate = random.choices(("keep", "tear", "drop"), mood)[0]
        if fate == "keep":
            _write(content, change)
        elif isinstance(change, Write):
            if fate == "tear":
                for sector in _sectors(change):
                    if random.random() < 0.5:
                        _write(content, sector)
            end = change.offset + len(change.data)
            if end > len(content) and random.random() < 0.25:  # its size alone was kept
                _write(content, Resize(change.node, end))
    return bytes(content)


def _sectors(write: Write) -> list[Write]:
    begin, end = write.offset, write.offset + len(write.data)
    edges = [begin, *range((begin // SECTOR_BYTES + 1) * SECTOR_BYTES, end, SECTOR_BYTES), end]
    return [
        Write(write.node, first, write.data[first - begin : last - begin])
        for first, last in itertools.pairwise(edges)
    ]


def _write(content: bytearray, change: Write | Resize) -> None:
    if isinstance(change, Resize):
        del content[change.size :]
        content.extend(bytes(change.size - len(content)))
    elif change.data:
        content.extend(bytes(max(0, change.offset - len(content))))
        content[change.offset : change.offset + len(change.data)] = change.data


def _tree(
    names: Mapping[int, Mapping[str, int]], contents: Mapping[int, bytes]
) -> dict[str, bytes | None]:
    tree: dict[str, bytes | None] = {}
    left = [(ROOT, "")]
    while left:
        number, path = left.pop()
        for name, node in names[number].items():
            inner = f"{path}{name}"
            tree[inner] = contents.get(node)
            if node in names:
                left.append((node, f"{inner}/"))
    return tree


def numbered(tree: Tree) -> dict[str, int]:
    """Give the number that each path of a tree has on a `Disk`, and that of its root, ``""``."""
    return {"": ROOT} | {path: number for number, path in enumerate(sorted(tree), ROOT + 1)}


def read_tree(directory: Path) -> dict[str, bytes | None]:
    """Read all that is in a directory, but for what SQLite has in memory, its ``-shm`` files.

    They are made anew after a power cut.
    """
    return {
        path.relative_to(directory).as_posix(): None if path.is_dir() else path.read_bytes()
        for path in directory.rglob("*")
        if not path.name.endswith("-shm")
    }


def write_tree(tree: Tree, directory: Path) -> None:
    """Write all of a tree into a directory that is there."""
    for path, content in sorted(tree.items()):  # a directory before what is in it
        if content is None:
            (directory / path).mkdir()
        else:
            (directory / path).write_bytes(content)
