"""Frames by decord, for files in which its way of counting from key frames is exact."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from video.reader.backend_checks import chunks, failure, file_url, hazards, refusal, refuse_common
from video.reader.index import FrameIndex

_NAME = "decord"


class DecordBackend:
    """Opens the file for every read and closes it after it: an idle decord reader decodes the rest of its file.

    What proves a frame: decord seeks to a key frame and counts the pictures that come out. Its table of times has to
    equal the index, so that both count the same pictures, and the file must have none that a seek drops or reorders
    (leading pictures of open groups, discarded or hidden ones, key frames that are not whole), nor a container in which
    the seek itself misses the key frame.
    """

    def __init__(self, index: FrameIndex, threads: int) -> None:
        self.index = index
        self._threads = threads
        found = hazards(index)
        refuse_common(_NAME, index, found)
        if found.leading:
            reason = f"{found.leading} pictures of open groups are shown before the key frame that they follow"
            raise refusal(_NAME, index, f"{reason}; it loses count of them after a seek")
        self._check_times(self._open())

    def _open(self) -> Any:
        self.index.check_file()
        decord = _import()
        try:
            return decord.VideoReader(file_url(self.index.path), ctx=decord.cpu(0), num_threads=self._threads)
        except Exception as error:  # DECORDError or RuntimeError, by version
            raise failure(_NAME, self.index, error) from error

    def _check_times(self, reader: Any) -> None:
        count = len(self.index)
        if len(reader) != count:
            raise refusal(_NAME, self.index, f"it counts {len(reader)} frames where there are {count}")
        if not count:
            return
        try:
            times = np.asarray(reader.get_frame_timestamp(range(count)), np.float64)[:, 0]
        except Exception as error:
            raise failure(_NAME, self.index, error) from error
        right = self.index.times
        # Its times are 32-bit floats; a neighbour must still be further away than their error.
        near = min(1e-4 + 1e-6 * float(right[-1]), float(np.diff(right).min(initial=np.inf)) / 2)
        off = np.flatnonzero(~(np.abs(times - right) <= near))
        if len(off):
            i = int(off[0])
            raise refusal(_NAME, self.index, f"it puts frame {i} at {times[i]:.6g} s, not at {right[i]:.6f} s")

    def read(self, indices: list[int]) -> Iterator[torch.Tensor]:
        """RGB of the frames at `indices`, uint8 [H, W, 3] each."""
        for chunk in chunks(self.index, indices):
            yield from self._read(chunk)

    def _read(self, indices: list[int]) -> torch.Tensor:
        reader = self._open()
        if len(reader) != len(self.index):
            raise refusal(_NAME, self.index, f"it counts {len(reader)} frames where there are {len(self.index)}")
        try:
            batch = reader.get_batch(indices)
        except Exception as error:
            raise failure(_NAME, self.index, error) from error
        # decord.bridge may have been set to another library's arrays by the caller.
        return torch.from_numpy(batch.asnumpy()) if hasattr(batch, "asnumpy") else torch.as_tensor(batch)

    def close(self) -> None:
        """Nothing stays open between reads."""


def _import() -> Any:
    try:
        import decord
    except (ImportError, OSError) as error:
        raise ImportError("backend 'decord' needs decord: pip install decord") from error
    return decord


def open_backend(index: FrameIndex, threads: int) -> DecordBackend:
    """The backend for one file; ImportError without decord, VideoError where it would be wrong."""
    return DecordBackend(index, threads)
