"""Frames by torchcodec, each held against the index by its presentation time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from video.reader.backend_checks import chunks, failure, file_url, hazards, refusal, refuse_common
from video.reader.index import FrameIndex

_NAME = "torchcodec"


class TorchcodecBackend:
    """Opens the file for every read and closes it after it.

    What proves a frame: torchcodec hands out the presentation time of the picture that came out of the decoder, and
    that time is one of the index's; pictures with right times but broken contents come only from seeks that miss a key
    frame or hit one that is not whole, and files with such are refused.
    """

    def __init__(self, index: FrameIndex, threads: int) -> None:
        self.index = index
        self._threads = threads
        refuse_common(_NAME, index, hazards(index))
        self._check_count(self._open())

    def _open(self) -> Any:
        self.index.check_file()
        decoder_class = _import()
        try:
            return decoder_class(
                file_url(self.index.path), dimension_order="NHWC", seek_mode="exact", num_ffmpeg_threads=self._threads
            )
        except Exception as error:  # it raises RuntimeError and ValueError for all faults of a file
            raise failure(_NAME, self.index, error) from error

    def _check_count(self, decoder: Any) -> None:
        if len(decoder) != len(self.index):
            raise refusal(_NAME, self.index, f"it counts {len(decoder)} frames where there are {len(self.index)}")

    def read(self, indices: list[int]) -> Iterator[torch.Tensor]:
        """RGB of the frames at `indices`, uint8 [H, W, 3] each; VideoError at one whose time is not the index's."""
        for chunk in chunks(self.index, indices):
            yield from self._read(chunk)

    def _read(self, indices: list[int]) -> torch.Tensor:
        decoder = self._open()
        self._check_count(decoder)
        try:
            batch = decoder.get_frames_at(indices)
        except Exception as error:
            raise failure(_NAME, self.index, error) from error
        for i, time in zip(indices, batch.pts_seconds.tolist()):
            right = float(int(self.index.pts[i]) * self.index.time_base)
            if abs(time - right) > float(self.index.time_base) / 2 + 1e-9 * abs(right):
                raise refusal(_NAME, self.index, f"frame {i} is at {right:.6f} s, it gave the one at {time:.6f} s")
        return batch.data

    def close(self) -> None:
        """Nothing stays open between reads."""


def _import() -> Any:
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, OSError, RuntimeError) as error:  # its libraries need an FFmpeg and a torch that fit
        reason = " ".join(str(error).split())[:200]
        raise ImportError(
            f"backend 'torchcodec' needs a working torchcodec: pip install torchcodec ({reason})"
        ) from error
    return VideoDecoder


def open_backend(index: FrameIndex, threads: int) -> TorchcodecBackend:
    """The backend for one file; ImportError without torchcodec, VideoError where it would be wrong."""
    return TorchcodecBackend(index, threads)
