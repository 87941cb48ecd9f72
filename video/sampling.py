"""Which frames of a video a clip is made of, as published with TSN (Wang et al., 2016) and TSM (Lin et al., 2019)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from common_models.names import did_you_mean

MODES = ("uniform", "twice", "dense", "random")
# A dense clip is spread over this many frames, wherever it starts.
DENSE_WINDOW = 64
DENSE_STARTS = 10


def sample_indices(
    n_frames: int,
    num_segments: int,
    mode: str = "uniform",
    *,
    starts: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Indices of the frames of each clip, from 0, for N = n_frames and T = num_segments.

    * "uniform" (test): one clip of the frames in the middle of T equal parts, int(N / T / 2 + N / T * i).
    * "twice" (test): two clips, "uniform" and the frames at the beginning of each part, int(N / T * i).
    * "dense" (test): clips with every (64 // T)-th frame, beginning at `starts` (10) places from 0 to N - 64; with a
      generator (training) at `starts` (1) random places instead. Indices beyond the end go on from frame 0.
    * "random" (training): one clip with a random frame of each of T parts of N // T frames.

    A video of fewer frames than segments repeats frames: "uniform" and "twice" spread them evenly, "dense" goes round,
    "random" takes frame 0 throughout, which is what the published training code does.

    Args:
        starts: number of clips of "dense".
        generator: the source of "random" (torch's own by default) and of the random places of "dense".

    Returns:
        int64 [clips, T].

    Raises:
        ValueError: no frames, a mode that does not exist, or an argument that the mode does not have.

    Example:
        >>> import video
        >>> video.sample_indices(n_frames=80, num_segments=8)
        tensor([[ 5, 15, 25, 35, 45, 55, 65, 75]])
    """
    for name, count in (("n_frames", n_frames), ("num_segments", num_segments)):
        if isinstance(count, bool) or not hasattr(count, "__index__"):
            raise ValueError(f"{name} must be a whole number, got {count!r}")
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    if mode not in MODES:
        hint = did_you_mean(str(mode), MODES)
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}{hint}")
    if starts is not None and (mode != "dense" or not hasattr(starts, "__index__") or starts < 1):
        raise ValueError(f"starts must be at least 1 and belongs to mode 'dense', got {starts} for {mode!r}")
    if generator is not None and mode not in ("dense", "random"):
        raise ValueError(f"generator belongs to the modes 'dense' and 'random', mode {mode!r} is not random")
    if mode == "dense":
        return _dense(n_frames, num_segments, starts, generator)
    if mode == "random":
        return _random(n_frames, num_segments, generator)
    tick = n_frames / num_segments
    clips = [[int(tick / 2 + tick * i) for i in range(num_segments)]]
    if mode == "twice":
        clips.append([int(tick * i) for i in range(num_segments)])
    return torch.tensor(clips)


def _dense(n_frames: int, num_segments: int, starts: int | None, generator: torch.Generator | None) -> Tensor:
    if num_segments > DENSE_WINDOW:
        raise ValueError(f"num_segments must be at most {DENSE_WINDOW} for mode 'dense', got {num_segments}")
    last = max(0, n_frames - DENSE_WINDOW)
    if generator is None:
        begin = torch.from_numpy(np.linspace(0, last, starts or DENSE_STARTS).astype(np.int64))
    else:
        # The published range leaves the last place out.
        begin = torch.randint(max(1, last), (starts or 1,), generator=generator)
    steps = torch.arange(num_segments) * (DENSE_WINDOW // num_segments)
    return (begin[:, None] + steps) % n_frames


def _random(n_frames: int, num_segments: int, generator: torch.Generator | None) -> Tensor:
    width = n_frames // num_segments
    if width == 0:
        return torch.zeros(1, num_segments, dtype=torch.int64)
    return (torch.arange(num_segments) * width + torch.randint(width, (num_segments,), generator=generator))[None]
