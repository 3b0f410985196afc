"""Data streams: where the batches come from."""

from aloop.streams.adapt import as_stream
from aloop.streams.arrays import ArrayStream
from aloop.streams.base import DataStream
from aloop.streams.schemes import BatchScheme, SequentialScheme, ShuffledScheme

__all__ = [
    "ArrayStream",
    "BatchScheme",
    "DataStream",
    "SequentialScheme",
    "ShuffledScheme",
    "as_stream",
]
