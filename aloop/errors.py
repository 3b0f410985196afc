"""The exceptions of aloop.

Every error is an `AloopError` and also the standard type that a caller would catch anyway. Each
message says what was given, what was expected and what to do about it.
"""

from numbers import Real

__all__ = [
    "AloopError",
    "AlreadyRunningError",
    "ArgumentError",
    "BackendError",
    "CheckpointError",
    "CheckpointInUseError",
    "CheckpointValueError",
    "CheckpointVersionError",
    "ConfigurationError",
    "EmptyEpochError",
    "ExtensionLookupError",
    "GivenUpError",
    "JournalError",
    "LogBehindError",
    "LogFileError",
    "LogInUseError",
    "LogKeyError",
    "LogTimeError",
    "LogValueError",
    "MissingDependencyError",
    "NoEpochError",
    "NoEventLoopError",
    "NoModelError",
    "NotAttachedError",
    "NotRunningError",
    "ParameterError",
    "QuantityError",
    "StreamError",
    "TrainingFinish",
    "TriggerError",
    "UnknownRunError",
    "UnknownTriggerError",
    "brief",
    "is_other",
    "seconds_of",
]


class TrainingFinish(Exception):  # noqa: N818 - the name Blocks gave it, and no error
    """Ends a run in good order. The loop raises it when it finds a reason to finish.

    An extension may raise it too, which is the same as recording `training_finish_requested`
    except that the callbacks after it are left out.
    """


class AloopError(Exception):
    """Base class of all errors that aloop raises on purpose."""


class AlreadyRunningError(AloopError, RuntimeError):
    """`run()` was called while this loop, or another loop on one of its parts, is running."""


class ArgumentError(AloopError, ValueError, TypeError):
    """An argument is not what the function or class takes."""


class BackendError(AloopError, ValueError):
    """A log backend that does not exist was asked for."""


class CheckpointError(AloopError, OSError):
    """A checkpoint cannot be written, or one that is needed is broken."""


class CheckpointInUseError(CheckpointError):
    """Another run writes its checkpoints into this directory."""


class CheckpointValueError(AloopError, TypeError, ValueError):
    """A state holds something that no checkpoint can, or does not fit what it is loaded into."""


class CheckpointVersionError(CheckpointError):
    """A checkpoint is of a version that this version of aloop does not know."""


class ConfigurationError(AloopError, ValueError):
    """A setting is unknown, has no value, or its value cannot be read."""


class EmptyEpochError(AloopError, ValueError):
    """An epoch ended without having yielded a single batch."""


class ExtensionLookupError(AloopError, LookupError, ValueError):
    """No extension has the name that was looked for, or several have."""


class GivenUpError(AloopError, RuntimeError):
    """The run that is waited for was given up, or cancelled by somebody else."""


class JournalError(AloopError, RuntimeError):
    """The log could not be written to its file; what was not written is still in memory."""


class LogBehindError(AloopError, RuntimeError):
    """The log ends before the checkpoint that it belongs to, or is another one."""


class LogFileError(AloopError, OSError):
    """The file is not a log that this version of aloop can use."""


class LogInUseError(LogFileError):
    """The file is being written by another process, or another event loop of this one."""


class LogKeyError(AloopError, TypeError, ValueError):
    """The key of a record is not a string, or not text that can be stored."""


class LogTimeError(AloopError, ValueError):
    """The time of a row is not a whole number from 0 on."""


class LogValueError(AloopError, TypeError, ValueError):
    """The log cannot hold this value."""


class MissingDependencyError(AloopError, ImportError):
    """A package that aloop needs for this, and for nothing else, is not installed."""


class NoEpochError(AloopError, LookupError):
    """The row of the last epoch was asked for before an epoch had ended."""


class NoEventLoopError(AloopError, RuntimeError):
    """A coroutine of aloop was awaited outside an asyncio event loop."""


class NoModelError(AloopError, AttributeError):
    """The loop's model was asked for, but the loop was made without one."""


class NotAttachedError(AloopError, ValueError):
    """An extension was asked for its main loop before it was given to one."""


class NotRunningError(AloopError, RuntimeError):
    """Something was asked of a run while none was under way."""


class ParameterError(AloopError, ValueError):
    """Parameters do not match gradients or values, or a step rule's number makes no sense."""


class QuantityError(AloopError, LookupError):
    """What the algorithm returned is no mapping, or lacks a quantity that is monitored."""


class StreamError(AloopError, ValueError):
    """A data stream cannot be made or used the way it was asked for."""


class TriggerError(AloopError, ValueError):
    """A trigger or condition of an extension makes no sense."""


class UnknownRunError(AloopError, LookupError):
    """No run of that id is in the database."""


class UnknownTriggerError(TriggerError, TypeError):
    """A trigger of an extension is misspelt or does not exist."""


def is_other(name: str, given: object, usual: str, other: str) -> bool:
    """Say whether an argument is the other of its two values; `ArgumentError` if it is neither."""
    if given not in (usual, other):
        raise ArgumentError(f"{name} is {given!r}; expected {usual!r} or {other!r}; leave it out")
    return given == other


def seconds_of(value: object) -> float | None:
    """Give a number of seconds, 0 or more, as a float, and None for what is no such thing."""
    if value is True or not isinstance(value, Real):
        return None
    try:
        seconds = float(value)
    except OverflowError:
        return None
    return seconds if seconds >= 0 else None


def brief(error: BaseException) -> str:
    """Give the representation of an error, its type where that fails too."""
    try:
        return repr(error)
    except Exception:  # noqa: BLE001 - it must not take the place of what it is a note on
        return type(error).__name__
