"""What docs/streams.md says is what happens."""

import numpy as np
from stream_tools import epoch
from test_documents import blocks, execute

from aloop import (
    ArrayStream,
    ConcatenatedStream,
    DataStream,
    MixtureStream,
    as_stream,
    zip_streams,
)
from aloop.streams import SequentialExampleScheme


def examples(**arrays) -> ArrayStream:
    length = len(next(iter(arrays.values())))
    return ArrayStream(arrays, iteration_scheme=SequentialExampleScheme(length))


async def test_the_blocks_of_the_streams_page_work(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    training, mapping, combining = blocks("docs/streams.md", "python")
    names = await execute(training, {})
    assert names["loop"].status["epochs_done"] == 2
    assert names["loop"].status["iterations_done"] == 2 * -(-85 // 16)
    shortest, longest = np.sort([len(s) for s in names["sentences"]])[[0, -1]]
    assert (shortest, longest) == (1, 7)

    async def download(url):
        return np.full(2, int(url))

    names = {"download": download, "examples": examples(url=np.arange(64))}
    images = (await execute(mapping, names))["images"]
    assert [len(batch["image"]) for batch in await epoch(images)] == [32, 32]

    names = {
        "images": examples(image=np.arange(3)),
        "labels": examples(label=np.arange(3)),
        "clean": as_stream([1]),
        "noisy": as_stream([2]),
        "clean2": as_stream([1] * 9),
        "noisy2": as_stream([2] * 3),
        "zip_streams": zip_streams,
        "ConcatenatedStream": ConcatenatedStream,
        "MixtureStream": MixtureStream,
    }
    names = await execute(combining, names)
    assert await epoch(names["pairs"]) == [{"image": n, "label": n} for n in range(3)]
    assert await epoch(names["longer"]) == [1, 2]
    assert sorted(await epoch(names["mixed"])) == [1] * 9 + [2] * 3


def test_every_method_that_makes_a_stream_of_a_stream_is_on_the_page() -> None:
    from test_documents import ROOT

    from aloop.streams.base import _transforms

    page = (ROOT / "docs/streams.md").read_text()
    assert [name for name in _transforms if f"`{name}(" not in page] == []
    assert [name for name in _transforms if not hasattr(DataStream, name)] == []
