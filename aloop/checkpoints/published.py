"""One checkpoint: a directory with a manifest and the files that it vouches for.

``manifest.json``
    which checkpoint it is, and the size and SHA-256 of each other file; its own SHA-256 is in it.
``state.json``
    the state as JSON, with references to arrays (see `aloop.checkpoints.packing`).
``state.safetensors``
    the arrays of all but the model.
``model.safetensors``
    the arrays of the model, by their own names, for anybody to read.

Nothing in it is unpickled or evaluated, and no path in it is followed.
"""

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self, cast

from aloop.callbacks import Position
from aloop.checkpoints.packing import Array, as_mapping, pack, unpack
from aloop.disk import sync_directory
from aloop.errors import CheckpointError, CheckpointVersionError
from aloop.faults import fault_point

__all__ = ["FILES", "MANIFEST", "Contents", "Packed", "SavedCheckpoint", "State"]

VERSION: Final = 1
"""The version of the format that is written, and the only one that is read."""

FORMAT: Final = "aloop checkpoint"
MANIFEST: Final = "manifest.json"
STATE: Final = "state.json"
ARRAYS: Final = "state.safetensors"
MODEL: Final = "model.safetensors"
FILES: Final = (STATE, ARRAYS, MODEL)
"""The names of all files but the manifest, in the order in which they are written."""

_MAX_MANIFEST: Final = 1 << 20  # bytes; it is read before anything vouches for it
_CHUNK: Final = 1 << 20

State = dict[str, Any]
"""What `MainLoop.state_dict` gives."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A state, or a part of one, cut into what JSON can hold and the arrays."""

    skeleton: Mapping[str, Any]
    arrays: Mapping[str, Array]
    model: Mapping[str, Array]

    @classmethod
    def of(cls, state: State, *, copies_up_to: int | None = None) -> Self:
        """Cut up a state, of which larger arrays than that are not copied yet.

        Raises `CheckpointValueError`, naming what has it and where, for a value that no checkpoint
        can hold.
        """
        skeleton: dict[str, Any] = {}
        arrays: dict[str, Array] = {}
        model: dict[str, Array] = {}
        for part, value in state.items():
            if part == "model":
                skeleton[part], model = pack("the model", value, copies_up_to=copies_up_to)
            elif part == "extensions":
                packed: dict[str, Any] = {}
                for name, own in value.items():
                    what, under = f"the extension {name!r}", f"{part}/{name}"
                    packed[name], more = pack(what, own, under, copies_up_to=copies_up_to)
                    arrays |= more
                skeleton[part] = as_mapping(packed)
            else:
                what = f"the {part.replace('_', ' ')}"
                skeleton[part], more = pack(what, value, part, copies_up_to=copies_up_to)
                arrays |= more
        return cls(skeleton, arrays, model)

    def copied(self) -> "Packed":
        """Give the same with arrays of its own."""
        return Packed(
            self.skeleton,
            {name: array.copy() for name, array in self.arrays.items()},
            {name: array.copy() for name, array in self.model.items()},
        )

    def __or__(self, other: "Packed") -> "Packed":
        return Packed(
            {**self.skeleton, **other.skeleton},
            {**self.arrays, **other.arrays},
            {**self.model, **other.model},
        )


@dataclass(frozen=True, slots=True)
class Contents:
    """What is to become a checkpoint: the copied state of a training at one commit point."""

    position: Position
    run: str
    sequence: int
    is_whole: bool
    """Whether a run can be resumed from it; or the model's parameters are all there is."""
    skeleton: Mapping[str, Any]
    arrays: Mapping[str, Array]
    model: Mapping[str, Array]

    @classmethod
    def of(cls, packed: Packed) -> Self:
        """Give the contents that are made of a whole state; KeyError if it is none."""
        log = packed.skeleton["log"]
        return cls(
            position=Position.from_dict(packed.skeleton["position"]),
            run=log["run"],
            sequence=log["sequence"],
            is_whole=True,
            skeleton=packed.skeleton,
            arrays=packed.arrays,
            model=packed.model,
        )

    def parameters_only(self) -> "Contents":
        """Give what is left without all but the model."""
        return Contents(
            position=self.position,
            run=self.run,
            sequence=self.sequence,
            is_whole=False,
            skeleton={"model": self.skeleton["model"]},
            arrays={},
            model=self.model,
        )

    @property
    def bytes(self) -> int:
        """The size of its arrays."""
        return sum(array.nbytes for array in (*self.arrays.values(), *self.model.values()))

    @property
    def name(self) -> str:
        """What its directory is called, unless there is one of that name."""
        return f"ckpt-{self.position.iterations_done:09d}-{self.run[:8]}"

    def state(self) -> State:
        """Give the state again, of which all arrays are new."""
        model = unpack(self.skeleton["model"], self.model)
        rest = {key: value for key, value in self.skeleton.items() if key != "model"}
        return unpack(rest, self.arrays) | {"model": model}

    def write(self, directory: Path, number: int) -> None:
        """Write all files into a directory that is there, and have them on the disk."""
        # Imported here and below, for most programs that import aloop save nothing.
        from safetensors import SafetensorError

        # Its annotations leave out what kind of PathLike.
        from safetensors.numpy import save_file  # pyright: ignore[reportUnknownVariableType]

        (directory / STATE).write_text(json.dumps(self.skeleton, separators=(",", ":")), "utf-8")
        fault_point("checkpoint.described")
        try:
            save_file(dict(self.arrays), str(directory / ARRAYS))
            save_file(dict(self.model), str(directory / MODEL))
        except SafetensorError as error:  # of the disk: what is written was checked before
            raise OSError(f"{error}, while {self.bytes} bytes were written") from error
        for name in (ARRAYS, MODEL):  # which nobody else may read otherwise, whatever the umask is
            (directory / name).chmod(stat.S_IMODE((directory / STATE).stat().st_mode))
        fault_point("checkpoint.written")
        files: dict[str, dict[str, Any]] = {}
        for name in FILES:
            size, digest = _size_and_digest(directory / name, sync=True)
            files[name] = {"bytes": size, "sha256": digest}
        fault_point("checkpoint.synced")
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "number": number,
            "saved_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "position": self.position.to_dict(),
            "run": self.run,
            "log_sequence": self.sequence,
            "is_whole": self.is_whole,
            "files": files,
        }
        manifest["sha256"] = _digest_of(manifest)
        with (directory / MANIFEST).open("x", encoding="utf-8") as file:
            json.dump(manifest, file, indent=1)
            file.flush()
            fault_point("checkpoint.vouched")
            os.fsync(file.fileno())
        sync_directory(directory)
        fault_point("checkpoint.signed")


@dataclass(frozen=True, slots=True)
class SavedCheckpoint:
    """A checkpoint that was published, by what its manifest says."""

    path: Path
    number: int
    """The place in the order in which those of a directory were published, from 1 on."""
    saved_at: str
    """ISO 8601, UTC."""
    position: Position
    run: str
    log_sequence: int
    is_whole: bool
    """Whether a run can be resumed from it; or the model's parameters are all there is."""
    files: Mapping[str, tuple[int, str]] = field(hash=False)
    """The size in bytes and the SHA-256, in hexadecimal, of each file but the manifest."""

    @property
    def bytes(self) -> int:
        """The size of its files, but for the manifest."""
        return sum(size for size, _ in self.files.values())

    @classmethod
    def at(cls, path: Path) -> "SavedCheckpoint":
        """Read the manifest of a checkpoint.

        Raises `CheckpointError` when there is none, or it is broken; `CheckpointVersionError` for a
        checkpoint of another version.
        """
        if path.is_symlink():
            raise CheckpointError(
                f"the checkpoint {path} is a symbolic link; expected a directory; take what it "
                "leads to, or another checkpoint"
            )
        text = _read_plain(path / MANIFEST, at_most=_MAX_MANIFEST)
        with _broken(path / MANIFEST):
            manifest: dict[str, Any] = json.loads(text)
            if manifest["format"] != FORMAT:
                raise ValueError(f"its format is {manifest['format']!r}")
            digest = manifest.pop("sha256")
            if digest != _digest_of(manifest):
                raise ValueError("its checksum is another")
            if manifest["version"] != VERSION:
                raise CheckpointVersionError(
                    f"the checkpoint {path} has version {manifest['version']!r}; expected "
                    f"{VERSION}; upgrade aloop to use it, or take another checkpoint"
                )
            files = {
                name: (int(file["bytes"]), str(file["sha256"]))
                for name, file in manifest["files"].items()
            }
            if files.keys() != set(FILES):
                raise ValueError(f"it names the files {', '.join(map(repr, files))}")
            return cls(
                path=path,
                number=int(manifest["number"]),
                saved_at=str(manifest["saved_at"]),
                position=Position.from_dict(manifest["position"]),
                run=str(manifest["run"]),
                log_sequence=int(manifest["log_sequence"]),
                is_whole=bool(manifest["is_whole"]),
                files=files,
            )

    def verify(self) -> None:
        """Read all files; raise `CheckpointError` if one is missing or not what it was."""
        for name, vouched in self.files.items():
            with _broken(self.path / name), _unreadable(self.path / name):
                if _size_and_digest(self.path / name) != vouched:
                    raise ValueError(_NOT_VOUCHED)

    def read(self) -> State:
        """Read the state; raise `CheckpointError` if a file is missing or not what it was."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        content = {name: self._read(name) for name in FILES}
        with _broken(self.path):
            try:
                model, arrays = load(content.pop(MODEL)), load(content.pop(ARRAYS))
            except SafetensorError as error:
                raise ValueError(str(error)) from error
            skeleton = cast("dict[str, Any]", json.loads(content[STATE]))
            packed_model = skeleton.pop("model")
            return unpack(skeleton, arrays) | {"model": unpack(packed_model, model)}

    def _read(self, name: str) -> "bytes":
        size, digest = self.files[name]
        content = _read_plain(self.path / name, at_most=size)
        with _broken(self.path / name):
            if len(content) != size or hashlib.sha256(content).hexdigest() != digest:
                raise ValueError(_NOT_VOUCHED)
        return content


_NOT_VOUCHED: Final = "its size or checksum is not that of the manifest"


_OF_BROKEN_FILES: Final = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)


@contextlib.contextmanager
def _broken(path: Path) -> Generator[None]:
    """Turn what comes of a broken file into an error that names it."""
    try:
        yield
    except _OF_BROKEN_FILES as error:
        raise CheckpointError(
            f"the checkpoint file {path} is broken: {error}; expected what was saved; restore it "
            "from a copy, or take another checkpoint"
        ) from error


def _digest_of(manifest: Mapping[str, Any]) -> str:
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _open_plain(path: Path) -> int:
    """Open a file for reading, but no link and nothing that is no file."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"the checkpoint file {path} is missing; expected what was saved; restore it from a "
            "copy, or take another checkpoint"
        ) from error
    except OSError as error:
        what = "is a symbolic link" if path.is_symlink() else f"cannot be read: {error}"
        raise CheckpointError(
            f"the checkpoint file {path} {what}; expected a file that can be read; take another "
            "checkpoint, or mend it"
        ) from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise CheckpointError(f"{path} is no file; expected one; take another checkpoint")
    return handle


@contextlib.contextmanager
def _unreadable(path: Path) -> Generator[None]:
    """Turn a failure of the disk into an error that names the file."""
    try:
        yield
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint file {path} cannot be read: {error}; expected a file that can be "
            "read; take another checkpoint, or mend it"
        ) from error


def _read_plain(path: Path, *, at_most: int) -> bytes:
    with _unreadable(path), open(_open_plain(path), "rb") as file:
        return file.read(at_most + 1)


def _size_and_digest(path: Path, *, sync: bool = False) -> tuple[int, str]:
    """Give the size and the checksum of a file, with `sync` when all of it is on the disk."""
    digest, size = hashlib.sha256(), 0
    with open(_open_plain(path), "rb", buffering=0) as file:
        if sync:
            os.fsync(file.fileno())
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()
