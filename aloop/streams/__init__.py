"""Data streams: where the batches come from."""

from aloop.streams.adapt import as_stream
from aloop.streams.arrays import ArrayStream
from aloop.streams.base import DataStream
from aloop.streams.combined import (
    ConcatenatedStream,
    MixtureStream,
    ZippedStream,
    zip_streams,
)
from aloop.streams.schemes import (
    BatchScheme,
    ConcatenatedScheme,
    ExampleScheme,
    IterationScheme,
    SequentialExampleScheme,
    SequentialScheme,
    ShuffledExampleScheme,
    ShuffledScheme,
)

__all__ = [
    "ArrayStream",
    "BatchScheme",
    "ConcatenatedScheme",
    "ConcatenatedStream",
    "DataStream",
    "ExampleScheme",
    "IterationScheme",
    "MixtureStream",
    "SequentialExampleScheme",
    "SequentialScheme",
    "ShuffledExampleScheme",
    "ShuffledScheme",
    "ZippedStream",
    "as_stream",
    "zip_streams",
]
