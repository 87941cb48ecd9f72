"""The smallest live networks, one frame at a time: as loaded, and accelerated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import competitors
from benchmarks.harness import DTYPES, Competitor, Settings, Trial
from video.accelerate import accelerate
from video.models import create
from video.pretrained import load_pretrained
from video.stream import Stream

LOADED, OURS = "as loaded", "trisparse"
FRAMES = 8
# Name in the table, side of a frame, multiply-adds of one.
NETWORKS = {
    "TSM of moving digits": (48, 1.8e6),
    "MobileNetV2": (64, 0.03e9),
    "MobileNetV2 of width 0.25": (64, 0.004e9),
}


def trials(work: Any, settings: Settings) -> Iterator[Trial]:
    """One trial per network: the answers of a stream of a few frames."""
    for title, (side, macs) in NETWORKS.items():
        yield Trial(
            case="small",
            workload=work.name,
            shape=f"{title}, {FRAMES} frames of {side} x {side}, one at a time",
            reference=lambda t=title: [_build(LOADED, t, "fp32", settings.device)()],  # type: ignore[misc]
            competitors=[
                Competitor(
                    name,
                    dtype,
                    threads,
                    partial(_build, name, title, dtype, settings.device),
                    lambda out: [out],
                    competitors.NETWORK_TOLERANCE[dtype],
                )
                for name, served in ((LOADED, ("fp32",)), (OURS, settings.dtypes))
                for dtype in served
                for threads in settings.threads
            ],
            products=[(max(1, round(FRAMES * macs / 2**12)), 64, 64)],
        )


def _network(title: str) -> nn.Module:
    torch.manual_seed(0)
    if title.startswith("TSM"):
        return load_pretrained("tsm-motion-digits")
    return create("mobilenet_v2", width=0.25 if "0.25" in title else 1.0).eval()


def _build(name: str, title: str, dtype: str, device: str) -> Callable[[], Any]:
    side = NETWORKS[title][0]
    frames = torch.randn(FRAMES, 1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    model = _network(title).to(device)
    if name == OURS:
        model = accelerate(model, dtype=DTYPES[dtype], example=frames[:, 0])
    stream = Stream(model)

    def answer() -> Tensor:
        state, outputs = None, []
        for frame in frames:
            output, state = stream.step(frame, state)
            outputs.append(output)
        return torch.cat(outputs)

    return competitors.inference(answer)
