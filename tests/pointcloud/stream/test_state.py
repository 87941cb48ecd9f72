"""The state of a stream of clouds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pointcloud import SparseConv3d, SparseSequential, Stream, StreamState, SubMConv3d
from tests.pointcloud.stream.changing_clouds import CHANNELS, changing


def _stream() -> Stream:
    return Stream(SparseSequential(SubMConv3d(CHANNELS, 8, 3), nn.ReLU(), SparseConv3d(8, 8, 2, 2)).eval())


def test_clone_goes_its_own_way() -> None:
    stream, frames = _stream(), list(changing(5))
    _, state = stream.step(frames[0])
    _, state = stream.step(frames[1], state)
    kept = state.clone()
    assert kept.frames == 2 and kept.n_bytes > 0
    _, state = stream.step(frames[4], state)
    expected, _ = stream.step(frames[2])
    output, after = stream.step(frames[2], kept)
    assert torch.equal(output.features, expected.features) and after.frames == 3
    assert stream.last_work is not None and stream.last_work.mode == "changed" and stream.last_work.share < 1
    with pytest.raises(ValueError, match="used up"):
        kept.clone()


def test_reset_starts_anew_for_any_network() -> None:
    stream, frames = _stream(), list(changing(3))
    _, state = stream.step(frames[0])
    assert not state.is_fresh and state.reset() is state and state.is_fresh
    other = _stream()
    _, state = other.step(frames[1], state)
    assert state.frames == 1 and other.last_work is not None and other.last_work.mode == "whole"
    assert "frames=1" in repr(state) and StreamState().frames == 0


def test_a_failed_frame_uses_the_state_up() -> None:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = SubMConv3d(CHANNELS, 4, 3)
            self.fails = False

        def forward(self, x):  # type: ignore[no-untyped-def]
            y = self.conv(x)
            if len(x.features) < 600:
                raise RuntimeError("no")
            return y

    frames = list(changing(1))
    stream = Stream(Failing().eval())
    _, state = stream.step(frames[0])
    with pytest.raises(RuntimeError, match="no"):
        stream.step(frames[0].select_by_index(torch.arange(10)), state)
    with pytest.raises(ValueError, match="used up"):
        stream.step(frames[0], state)
