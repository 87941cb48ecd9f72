"""Decoders that can stand behind `VideoReader`, each loaded when it is first asked for."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Protocol

import torch

from common_models.names import did_you_mean
from video.reader.index import FrameIndex

# Module of each backend; it holds `open_backend(index, threads) -> Backend`.
BACKENDS = {
    "pyav": "video.reader.decoder",
    "torchcodec": "video.reader.torchcodec_backend",
    "decord": "video.reader.decord_backend",
}


class Backend(Protocol):
    """What `VideoReader` needs of another library: RGB frames by number, verified against the index."""

    def read(self, indices: list[int]) -> Iterator[torch.Tensor]:
        """Frames at `indices` (ascending, distinct) as uint8 [H, W, 3], rotation applied.

        VideoError where one would be wrong.
        """
        ...

    def close(self) -> None:
        """Give back files and memory; `read` may be called again."""
        ...


def check_backend(name: str) -> None:
    """ValueError with the close matches unless `name` is a backend."""
    if name not in BACKENDS:
        hint = did_you_mean(str(name), BACKENDS)
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {name!r}{hint}")


def open_backend(name: str, index: FrameIndex, threads: int) -> Backend:
    """The backend of that name for one file; ImportError naming the extra, VideoError where it cannot be exact."""
    check_backend(name)
    return importlib.import_module(BACKENDS[name]).open_backend(index, threads)
