"""A directory of checkpoints: one run at a time publishes into it, whole or not at all."""

import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from aloop.checkpoints.published import MANIFEST, Contents, SavedCheckpoint, State
from aloop.disk import FileLock, absolute_path, sync_directory
from aloop.errors import (
    CheckpointError,
    CheckpointInUseError,
    CheckpointVersionError,
    brief,
)
from aloop.faults import fault_point
from aloop.forks import tell_after_fork

__all__ = ["CheckpointDirectory", "GivenUp", "as_directory", "is_checkpoint", "superfluous"]

_NAME: Final = re.compile(r"ckpt-\d{9,}-[0-9a-f]{8}(-\d+)?")
_UNFINISHED: Final = ".tmp-"  # before a name, while it is written or removed
_LOCK: Final = ".lock"

_logger = logging.getLogger("aloop")


class GivenUp(Exception):  # noqa: N818 - no error, but what keeps a checkpoint from being published
    """The run gave up the checkpoint before it was published."""


class CheckpointDirectory:
    """The checkpoints in one directory.

    Parameters:
        path: the directory; made when it is claimed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path / _LOCK)
        self._number = 0  # of the latest that was published
        self._sound: set[Path] = set()  # those that are known to be whole
        tell_after_fork(self)

    def claim(self) -> None:
        """Make the directory where there is none, and have it to oneself until `release`.

        Removes what others left unfinished. Raises `CheckpointError` when nothing can be written
        there, `CheckpointInUseError` while another run has it.
        """
        try:
            if self._lock.is_in_place:
                return
            self._lock.abandon()  # the directory is another one than it was
            self._make()
            if not self._lock.acquire():
                raise CheckpointInUseError(
                    f"the checkpoint directory {self.path} is in use by {self._lock.holder()}; "
                    "expected one of its own for each run, because old checkpoints are removed; "
                    "wait for the other run to end, or choose another directory"
                )
            self._lock.sign()
            fault_point("checkpoint.claimed")
            for left in self.unfinished():
                self._remove(left)
        except CheckpointError:
            raise
        except OSError as error:
            self.release()
            raise CheckpointError(
                f"checkpoints cannot be written to {self.path}: {error}; expected a directory that "
                "can be written, or a path where one can be made; choose another path"
            ) from error

    def _make(self) -> None:
        made = [path for path in (self.path, *self.path.parents) if not path.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        for path in made:
            sync_directory(path.parent)  # or a power cut takes it with all that is in it

    def release(self) -> None:
        """Let another run have it."""
        try:
            self._lock.release()
        except OSError as error:  # which the end of the process does in any case
            _logger.warning("the lock on %s could not be released: %s", self.path, error)
            self._lock.abandon()

    def __del__(self) -> None:
        self.release()

    def go_on_after_fork(self) -> None:
        """Leave the directory to the process that this one was forked from."""
        self._lock.abandon()

    def names(self) -> list[Path]:
        """Give the paths of what look like checkpoints, by name."""
        if not self.path.is_dir():
            return []
        return sorted(path for path in self.path.iterdir() if _NAME.fullmatch(path.name))

    def unfinished(self) -> list[Path]:
        """Give what is being written or removed, or was left by a run that was killed in it."""
        return sorted(self.path.glob(f"{_UNFINISHED}ckpt-*"))

    def published(self) -> tuple[list[SavedCheckpoint], list[CheckpointError]]:
        """Give the checkpoints, the newest first, and what is wrong with those that are broken.

        By their manifests: their other files may be broken all the same. Raises
        `CheckpointVersionError` when one is of another version.
        """
        found: list[SavedCheckpoint] = []
        broken: list[CheckpointError] = []
        for path in self.names():
            try:
                found.append(SavedCheckpoint.at(path))
            except CheckpointVersionError:
                raise
            except CheckpointError as error:
                if path.exists() or path.is_symlink():  # or who has the directory removed it
                    broken.append(error)
        # By name too, for the number of one that was broken, and is mended, may be used twice.
        found.sort(key=lambda each: (each.number, each.path.name), reverse=True)
        return found, broken

    def read_newest(self, *, whole: bool) -> tuple[SavedCheckpoint, State] | None:
        """Read the newest checkpoint that is whole in all its files, None where there are none.

        Says which are broken. Raises `CheckpointError` when all are.

        Parameters:
            whole: whether a run is to be resumed from it, for which parameters are not enough.
        """
        found, broken = self.published()
        found = [checkpoint for checkpoint in found if checkpoint.is_whole or not whole]
        for checkpoint in found:
            try:
                state = checkpoint.read()
            except CheckpointError as error:
                if checkpoint.path.exists():
                    broken.append(error)
                continue
            for error in broken:
                _logger.warning("%s; it is left out, %s counts", error, checkpoint.path.name)
            self._sound.add(checkpoint.path)
            return checkpoint, state
        if broken:
            raise CheckpointError(
                f"none of the checkpoints in {self.path} is whole: "
                f"{'; '.join(str(error) for error in broken)}; to begin anew, move them away"
            )
        return None

    def publish(
        self, contents: Contents, keep: int | None, is_wanted: Callable[[], bool] = lambda: True
    ) -> SavedCheckpoint:
        """Write a checkpoint; it is there as a whole, or not at all.

        Parameters:
            contents: what it is made of.
            keep: how many of the newest before it stay; None for all.
            is_wanted: asked right before it is published.

        Raises `CheckpointError` when it cannot be written; those before it are still there.
        """
        self.claim()
        try:
            found, _ = self._prune(keep)  # what a run that was killed had no time for
            self._number = max([self._number, *(checkpoint.number for checkpoint in found)]) + 1
            path = self._free_path(contents.name)
            self._write(contents, path, is_wanted)
            fault_point("checkpoint.renamed")
            sync_directory(self.path)
            fault_point("checkpoint.published")
        except CheckpointError:
            raise
        except OSError as error:
            raise CheckpointError(
                f"a checkpoint could not be written to {self.path}: {error}; the ones before it "
                "are still there; see to the disk"
            ) from error
        self._sound.add(path)
        return SavedCheckpoint.at(path)

    def _write(self, contents: Contents, path: Path, is_wanted: Callable[[], bool]) -> None:
        unfinished = self.path / f"{_UNFINISHED}{path.name}"
        try:
            unfinished.mkdir()
            fault_point("checkpoint.begun")
            contents.write(unfinished, self._number)
            if is_wanted():
                unfinished.rename(path)
                return
        except BaseException:
            _remove_tree(unfinished, ignore_errors=True)
            raise
        _remove_tree(unfinished, ignore_errors=True)
        raise GivenUp

    def _free_path(self, name: str) -> Path:
        path, number = self.path / name, 2
        while path.exists() or path.is_symlink():
            path, number = self.path / f"{name}-{number}", number + 1
        return path

    def prune(self, keep: int | None) -> list[Path]:
        """Remove all but so many of the newest checkpoints, and give their paths.

        Never the newest that a run can be resumed from, nor what is broken and may be mended.
        """
        _, removed = self._prune(keep)
        return [checkpoint.path for checkpoint in removed]

    def _prune(self, keep: int | None) -> tuple[list[SavedCheckpoint], list[SavedCheckpoint]]:
        """Do so, and give what there was and what of it was removed."""
        found, _ = self.published()
        removed = superfluous(found, keep, self._is_sound)
        for checkpoint in removed:
            self._remove(checkpoint.path)
        return found, removed

    def _is_sound(self, checkpoint: SavedCheckpoint) -> bool:
        if checkpoint.path not in self._sound:
            try:
                checkpoint.verify()
            except CheckpointError:
                return False
            self._sound.add(checkpoint.path)
        return True

    def _remove(self, path: Path) -> None:
        try:
            self.remove(path)
        except OSError as error:
            _logger.warning("%s could not be removed: %s", path, brief(error))

    def remove(self, path: Path) -> None:
        """Remove a checkpoint, which is none any more as soon as that has begun."""
        if not path.name.startswith(_UNFINISHED):
            path = path.rename(path.with_name(f"{_UNFINISHED}{path.name}"))
        fault_point("checkpoint.removing")
        if path.is_dir() and not path.is_symlink():
            _remove_tree(path)
        else:
            path.unlink()
        fault_point("checkpoint.removed")


def _remove_tree(path: Path, *, ignore_errors: bool = False) -> None:
    import shutil  # late, for it imports all that can compress

    shutil.rmtree(path, ignore_errors=ignore_errors)


def superfluous(
    found: Sequence[SavedCheckpoint],
    keep: int | None,
    is_sound: Callable[[SavedCheckpoint], bool],
) -> list[SavedCheckpoint]:
    """Give those that are not kept of these, which begin with the newest.

    As many are kept as it takes to have one that a run can be resumed from.
    """
    keep = len(found) if keep is None else keep
    has_whole = any(checkpoint.is_whole for checkpoint in found)
    kept, others = list(found[:keep]), list(found[keep:])
    while others and not any(each.is_whole >= has_whole and is_sound(each) for each in kept):
        kept.append(others.pop(0))
    return others


def as_directory(path: object) -> Path:
    """Give the path of a directory of checkpoints, absolute; `ArgumentError` for what is none."""
    return absolute_path("path", path, "a directory, such as 'run/checkpoints'")


def is_checkpoint(path: Path) -> bool:
    """Say whether this is one checkpoint, and not a directory of such."""
    return (path / MANIFEST).exists() or _NAME.fullmatch(path.name) is not None
