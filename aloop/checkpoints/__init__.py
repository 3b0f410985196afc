"""Checkpoints: how the state of a training is kept in files, and found again."""

from aloop.checkpoints.directory import CheckpointDirectory
from aloop.checkpoints.published import Contents, SavedCheckpoint

__all__ = ["CheckpointDirectory", "Contents", "SavedCheckpoint"]
