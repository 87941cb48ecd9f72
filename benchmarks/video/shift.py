"""The temporal shift alone, and with the 1×1 convolution after it, at the shifted layers of the published networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import competitors
from benchmarks.harness import DTYPES, Competitor, Settings, Trial
from common_kernels import channel_shift
from video.packed_conv import PackedConv2d, packable
from video.shift import TemporalShift

FRAMES = 8
NAIVE, OURS, PACKED = "zeros and slice copies", "trisparse", "trisparse, packed weights"
# Channels in, channels out and side of shifted layers of MobileNetV2, then of ResNet-50.
LAYERS = (
    (24, 144, 56), (32, 192, 28), (64, 384, 14), (96, 576, 14), (160, 960, 7),
    (64, 64, 56), (256, 64, 56), (512, 128, 28), (1024, 256, 14), (2048, 512, 7),
)  # fmt: skip


class NaiveShift(nn.Module):
    """`net` after the shift as the published implementations write it: zeros, then three slice copies."""

    def __init__(self, net: nn.Module, num_segments: int, fold_div: int) -> None:
        super().__init__()
        self.net = net
        self.num_segments = num_segments
        self.fold_div = fold_div

    def forward(self, x: Tensor) -> Tensor:
        return self.net(naive_shift(x, self.num_segments, self.fold_div))


def naive_shift(x: Tensor, num_segments: int, fold_div: int = 8) -> Tensor:
    """The bidirectional shift of [N * T, C, H, W] by zeros and three slice copies."""
    frames, fold = x.unflatten(0, (-1, num_segments)), x.shape[1] // fold_div
    out = torch.zeros_like(frames)
    out[:, :-1, :fold] = frames[:, 1:, :fold]
    out[:, 1:, fold : 2 * fold] = frames[:, :-1, fold : 2 * fold]
    out[:, :, 2 * fold :] = frames[:, :, 2 * fold :]
    return out.flatten(0, 1)


def trials(work: Any, settings: Settings) -> Iterator[Trial]:
    """For each layer the shift in both orders of memory, and the shift with its convolution."""
    for c_in, c_out, side in LAYERS:
        shape = f"{FRAMES} x {c_in} x {side} x {side}"
        n_values = FRAMES * c_in * side * side
        for order in ("channels-last", "NCHW"):
            yield Trial(
                case="shift",
                workload=work.name,
                shape=f"{shape}, {order}",
                reference=lambda c=c_in, s=side, o=order: [  # type: ignore[misc]
                    naive_shift(_frames(c, s, o, "fp32", settings).double(), FRAMES)
                ],
                competitors=[
                    Competitor(
                        name,
                        dtype,
                        threads,
                        partial(_build_shift, name, c_in, side, order, dtype, settings),
                        lambda out: [out],
                        # Bits are moved: only the input's own rounding lies between the dtypes.
                        0.0 if dtype == "fp32" else competitors.LAYER_TOLERANCE[dtype],
                    )
                    for name in (NAIVE, OURS)
                    for dtype in settings.dtypes
                    for threads in settings.threads
                ],
                values=2 * n_values,
            )
        yield Trial(
            case="shift and 1x1 convolution",
            workload=work.name,
            shape=f"{shape} to {c_out}",
            reference=lambda c=c_in, o=c_out, s=side: [_layer_result(c, o, s, settings)],  # type: ignore[misc]
            competitors=[
                Competitor(
                    name,
                    dtype,
                    threads,
                    partial(_build_layer, name, c_in, c_out, side, dtype, settings),
                    lambda out: [out],
                    competitors.LAYER_TOLERANCE[dtype],
                )
                for name in ((NAIVE, OURS) if settings.device == "cuda" else (NAIVE, OURS, PACKED))
                for dtype in settings.dtypes
                for threads in settings.threads
            ],
            products=[(FRAMES * side * side, c_in, c_out)],
            values=n_values + FRAMES * c_out * side * side + c_in * c_out,
        )


def _frames(channels: int, side: int, order: str, dtype: str, settings: Settings) -> Tensor:
    rows = competitors.features(FRAMES * side * side, channels, settings, dtype)
    frames = rows.view(FRAMES, side, side, channels).permute(0, 3, 1, 2)
    return frames if order == "channels-last" else frames.contiguous()


def _convolution(c_in: int, c_out: int, dtype: str, settings: Settings) -> nn.Conv2d:
    conv = nn.Conv2d(c_in, c_out, 1).requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    conv.weight.copy_(torch.randn(conv.weight.shape, generator=generator) / c_in**0.5)
    assert conv.bias is not None
    conv.bias.copy_(torch.randn(c_out, generator=generator))
    return conv.to(settings.device, DTYPES[dtype]).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _layer_result(c_in: int, c_out: int, side: int, settings: Settings) -> Tensor:
    conv = _convolution(c_in, c_out, "fp32", settings).double()
    return conv(naive_shift(_frames(c_in, side, "channels-last", "fp32", settings).double(), FRAMES))


def _build_shift(name: str, channels: int, side: int, order: str, dtype: str, settings: Settings) -> Callable[[], Any]:
    x, fold = _frames(channels, side, order, dtype, settings), channels // 8
    if name == NAIVE:
        return competitors.inference(lambda: naive_shift(x, FRAMES))
    return competitors.inference(lambda: channel_shift(x, FRAMES, [(fold, 1), (fold, -1)]))


def _build_layer(name: str, c_in: int, c_out: int, side: int, dtype: str, settings: Settings) -> Callable[[], Any]:
    x, conv = _frames(c_in, side, "channels-last", dtype, settings), _convolution(c_in, c_out, dtype, settings)
    if name == NAIVE:
        return competitors.inference(lambda: conv(naive_shift(x, FRAMES)))
    layer = TemporalShift(PackedConv2d.of(conv) if name == PACKED and packable(conv) else conv, FRAMES)
    return competitors.inference(lambda: layer(x))
