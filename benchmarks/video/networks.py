"""Whole shifted networks: as published (NCHW, fp32, a shift by slice copies) and accelerated."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import competitors
from benchmarks.harness import DTYPES, Competitor, Settings, Trial
from benchmarks.video.shift import FRAMES, NaiveShift
from video.accelerate import accelerate
from video.models import TSM
from video.shift import TemporalShift

PUBLISHED, OURS = "NCHW, slice copies", "trisparse"
SIDE = 224
# Backbone, its name in the table, multiply-adds of one frame of 224 x 224.
NETWORKS = (("mobilenet_v2", "MobileNetV2-TSM", 0.30e9), ("resnet50", "ResNet-50-TSM", 4.09e9))


def trials(work: Any, settings: Settings) -> Iterator[Trial]:
    """One trial per network, on one clip; the published form runs in fp32 only, as its users run it on a CPU."""
    for backbone, title, macs in NETWORKS:
        dtypes = settings.dtypes if settings.device == "cuda" else ("fp32",)
        yield Trial(
            case="networks",
            workload=work.name,
            shape=f"{title}, {FRAMES} frames of {SIDE} x {SIDE}",
            reference=lambda b=backbone: [_published(b, settings.device)(_clip(settings.device))],  # type: ignore[misc]
            competitors=[
                Competitor(
                    name,
                    dtype,
                    threads,
                    partial(_build, name, backbone, dtype, settings.device),
                    lambda out: [out],
                    competitors.NETWORK_TOLERANCE[dtype],
                )
                for name, served in ((PUBLISHED, dtypes), (OURS, settings.dtypes))
                for dtype in served
                for threads in settings.threads
            ],
            # The work of the network as if it were one product.
            products=[(round(FRAMES * macs / 2**20), 1024, 1024)],
        )


def _clip(device: str) -> Tensor:
    """A square that moves over a gradient, with camera noise: [8, 3, 224, 224]."""
    ramp = torch.linspace(-1, 1, SIDE)
    clip = (ramp[:, None] + ramp).expand(FRAMES, 3, SIDE, SIDE).clone()
    for i, frame in enumerate(clip):
        frame[:, 40 + 12 * i : 110 + 12 * i, 60:150] = torch.tensor([1.5, -1.0, 0.5])[:, None, None]
    return (clip + 0.05 * torch.randn(clip.shape, generator=torch.Generator().manual_seed(0))).to(device)


def _network(backbone: str, device: str) -> nn.Module:
    """With random weights of trained scale: batch norms that have seen the clip, a head of unit variance."""
    torch.manual_seed(0)
    model = TSM(backbone, num_classes=400, num_segments=FRAMES).to(device)
    nn.init.normal_(model.new_fc.weight, std=model.new_fc.in_features**-0.5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(_clip(device))
    return model.eval()


def _published(backbone: str, device: str) -> Callable[[Tensor], Tensor]:
    model = copy.deepcopy(_network(backbone, device))
    for name, module in list(model.named_modules()):
        if isinstance(module, TemporalShift):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, NaiveShift(module.net, module.num_segments, module.fold_div))
    model.requires_grad_(False)
    return model


def _build(name: str, backbone: str, dtype: str, device: str) -> Callable[[], Any]:
    clip = _clip(device)
    if name == PUBLISHED:
        model = _published(backbone, device)
        if dtype != "fp32":
            assert isinstance(model, nn.Module)
            model, clip = model.to(DTYPES[dtype]), clip.to(DTYPES[dtype])
    else:
        model = accelerate(_network(backbone, device), dtype=DTYPES[dtype], example=clip)
    return competitors.inference(lambda: model(clip))
