"""Whatever is asked for, the indices are frames of the video."""

from __future__ import annotations

import pytest
import torch

from video.sampling import sample_indices

pytest.importorskip("hypothesis", reason="hypothesis is not installed")

from hypothesis import given
from hypothesis import strategies as st


@given(st.integers(1, 5000), st.integers(1, 64), st.sampled_from(["uniform", "twice", "dense", "random"]))
def test_indices_are_frames_of_the_video(n_frames: int, num_segments: int, mode: str) -> None:
    clips = sample_indices(n_frames, num_segments, mode)
    assert clips.dtype == torch.int64
    assert clips.shape == ({"uniform": 1, "twice": 2, "dense": 10, "random": 1}[mode], num_segments)
    assert clips.min() >= 0 and clips.max() < n_frames
    if mode != "dense":
        assert (clips.diff(dim=1) >= 0).all()
