"""Moving handwritten digits: clips whose class lies in the order of their frames and in nothing else.

A real digit stands on eight places of a circle, once on each, in one of five orders. All classes of one scene hold the
same eight frames, so that whoever looks at frames one by one, however well, can only guess.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

PLACES = 8
# From one place to the next, in eighths of a circle; every order visits each of the eight places once.
STEPS = {
    "clockwise": (1,) * 7,
    "anticlockwise": (-1,) * 7,
    "leaping clockwise": (3,) * 7,
    "leaping anticlockwise": (-3,) * 7,
    "swinging": (1, -2, 3, -4, 5, -6, 7),
}
CLASS_NAMES = tuple(STEPS)


def digits(held_out: bool) -> tuple[Tensor, Tensor]:
    """scikit-learn's 1,797 handwritten digits, split by sample: uint8 images 0 to 16 [N, 8, 8], digit values [N].

    Every fifth is held out.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("handwritten digits come with scikit-learn: pip install 'trisparse[train]'") from error
    data = load_digits()
    rows = torch.arange(len(data.target))
    rows = rows[(rows % 5 == 0) == held_out]
    return torch.from_numpy(data.images).to(torch.uint8)[rows], torch.from_numpy(data.target)[rows]


def order(class_index: int) -> Tensor:
    """The places 0 to 7 in the order in which clips of this class visit them, int64 [8]."""
    steps = STEPS[CLASS_NAMES[class_index]]
    return torch.tensor([0, *steps]).cumsum(0) % PLACES


@dataclass(frozen=True)
class Scenes:
    """What the clips of N scenes look like, whatever their class.

    Attributes:
        images: digits, fp32 0 to 1 [N, 8, 8].
        start: angle of the first place, radians [N].
        center: of the circle, (x, y) in pixels [N, 2].
        radius: of the circle, pixels [N].
        scale: pixels of the frame for one of the digit [N].
        background: fp32 0 to 255 [N, 3, size, size].
        ink: colour of the digit [N, 3].
        noise: standard deviation [N].
        noise_seed: of the noise, which belongs to the place, not to the time.
    """

    images: Tensor
    start: Tensor
    center: Tensor
    radius: Tensor
    scale: Tensor
    background: Tensor
    ink: Tensor
    noise: Tensor
    noise_seed: int

    @property
    def size(self) -> int:
        """Height and width of a frame."""
        return self.background.shape[-1]


def random_scenes(images: Tensor, seed: int, size: int = 48) -> Scenes:
    """One scene for each digit [N, 8, 8], the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    n = len(images)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator) * (high - low) + low

    unit = size / 48
    radius = uniform(9 * unit, 13 * unit)
    scale = uniform(1.7 * unit, 2.3 * unit)
    slack = (size / 2 - radius - 3 * scale).clamp(min=0)
    center = size / 2 + uniform(-1, 1, 2) * slack[:, None]
    base = uniform(30, 225, 3)
    texture = uniform(-25, 25, 3, 5, 5)
    # Ink on the far side of the background's brightness, so that contrast varies but never vanishes.
    away = torch.where(base.mean(1, keepdim=True) > 127, -1.0, 1.0)
    ink = base + away * uniform(90, 180, 1) + uniform(-25, 25, 3)
    return Scenes(
        images=images.float() / 16,
        start=uniform(0, 2 * math.pi),
        center=center,
        radius=radius,
        scale=scale,
        background=base[:, :, None, None] + F.interpolate(texture, size=(size, size), mode="bilinear"),
        ink=ink,
        noise=uniform(2, 10),
        noise_seed=_draw_seed(generator),
    )


def render(scenes: Scenes) -> Tensor:
    """The eight frames of every scene by place, uint8 RGB [N, 8, size, size, 3]."""
    n, size = len(scenes.images), scenes.size
    angle = scenes.start[:, None] + torch.arange(PLACES) * (2 * math.pi / PLACES)
    # y points down: a growing angle turns clockwise.
    offset = torch.stack([angle.cos(), angle.sin()], -1) * scenes.radius[:, None, None]
    at = scenes.center[:, None] + offset  # [N, 8, 2]
    half = 4 * scenes.scale[:, None, None]
    pixels = torch.arange(size) + 0.5
    x = (pixels - at[..., :1]) / half  # [N, 8, size], the digit spans -1 to 1
    y = (pixels - at[..., 1:]) / half
    grid = torch.stack([x[:, :, None, :].expand(-1, -1, size, -1), y[:, :, :, None].expand(-1, -1, -1, size)], -1)
    sources = scenes.images[:, None].expand(-1, PLACES, -1, -1).reshape(n * PLACES, 1, 8, 8)
    cover = F.grid_sample(sources, grid.flatten(0, 1), align_corners=False).view(n, PLACES, 1, size, size)
    background = scenes.background[:, None]
    frames = background + cover * (scenes.ink[:, None, :, None, None] - background)
    generator = torch.Generator().manual_seed(scenes.noise_seed)
    noise = torch.randn(n, PLACES, 1, size, size, generator=generator)
    frames += noise * scenes.noise.view(-1, 1, 1, 1, 1)
    return frames.clamp(0, 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2).contiguous()


def motion_clips(images: Tensor, labels: Tensor, seed: int, size: int = 48) -> Tensor:
    """Clips of digits that move as their class says, uint8 RGB [N, 8, size, size, 3]; the same for the same seed.

    Args:
        images: uint8 0 to 16 [N, 8, 8], as `digits` gives them.
        labels: int64 [N], indices into CLASS_NAMES.
    """
    if len(images) != len(labels):
        raise ValueError(f"labels must be one for each of {len(images)} images, got {len(labels)}")
    orders = torch.stack([order(i) for i in range(len(CLASS_NAMES))])
    frames = render(random_scenes(images, seed, size))
    return frames[torch.arange(len(images))[:, None], orders[labels]]


def random_clips(images: Tensor, seed: int, size: int = 48) -> tuple[Tensor, Tensor]:
    """(`motion_clips` of random classes, the classes [N]): one epoch of training, or a held-out set."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(len(CLASS_NAMES), (len(images),), generator=generator)
    # The scenes' seed is drawn: from this very one, their looks would be drawn from the same numbers as the labels.
    return motion_clips(images, labels, _draw_seed(generator), size), labels


def live_frames(image: Tensor, motions: Sequence[int], seed: int, size: int = 48) -> Iterator[tuple[Tensor, int]]:
    """One scene that goes on and on: (frame uint8 [size, size, 3], class) for eight frames of each motion in turn.

    Args:
        image: uint8 0 to 16 [8, 8].
        motions: indices into CLASS_NAMES; each motion starts where the one before ended.
    """
    frames = render(random_scenes(image[None], seed, size))[0]
    place = 0
    for motion in motions:
        steps = STEPS[CLASS_NAMES[motion]]
        # The step that the class lacks, from the last place on to the next round.
        for step in (*steps, steps[0]):
            yield frames[place % PLACES], motion
            place += step


def _draw_seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**62, (), generator=generator))
