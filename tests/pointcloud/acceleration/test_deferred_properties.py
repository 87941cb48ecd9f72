"""Random forwards that read, edit and share features in every way, accelerated, against the network itself.

Each case follows from its seed alone: `check(seed)` repeats it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pointcloud as pc
from tests.fuzz import examples

PARTS = 4
CHANNELS = 8


class Network(nn.Module):
    """Runs a program: steps of (name, the tensor it works on, another one, which layer), over a list of tensors."""

    def __init__(self, program: list[tuple[str, int, int, int]]) -> None:
        super().__init__()
        self.program = program
        self.convs = nn.ModuleList(
            pc.SubMConv3d(CHANNELS, CHANNELS, 3, bias=i % 2 == 0, indice_key="same") for i in range(4)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(CHANNELS) for _ in range(4))
        self.linear, self.wide = nn.Linear(CHANNELS, CHANNELS), nn.Linear(2 * CHANNELS, CHANNELS)

    def forward(self, x: pc.SparseConvTensor) -> list[Tensor]:
        tensors, views = [x], []
        for name, a, b, i in self.program:
            t, other = tensors[a % len(tensors)], tensors[b % len(tensors)].features
            if name in LAYERS:
                tensors.append(LAYERS[name](self, t, i))
            elif name in VALUES:
                tensors.append(t.replace_feature(VALUES[name](self, t.features, other, i)))
            else:
                views.append(EDITS[name](t.features, other))
                tensors.append(t)
        return [each.features for each in tensors] + [each for each in views if each is not None]


def _residual(net: Any, t: Any, i: int) -> Any:
    identity = t.features
    out = net.convs[i](t)
    out = out.replace_feature(net.norms[i](out.features))
    out = out.replace_feature(out.features + identity)
    return out.replace_feature(F.relu(out.features))


def _late_edit(net: Any, t: Any, i: int) -> Any:
    view = t.features[1:]
    out = net.convs[i](t)
    view.mul_(0.3)
    return out


def _aliased(net: Any, t: Any, i: int) -> Any:
    t.replace_feature(t.features).features.mul_(0.8)
    return net.convs[i](t)


def _norm_then_edit(net: Any, t: Any, i: int) -> Any:
    features = t.features
    out = t.replace_feature(net.norms[i](features))
    features.add_(1.0)
    return out


LAYERS: dict[str, Callable[[Any, Any, int], Any]] = {
    "conv": lambda net, t, i: net.convs[i](t),
    "residual": _residual,
    "edit behind a convolution": _late_edit,
    "edit by another name": _aliased,
    "edit behind a norm": _norm_then_edit,
}
# Features in the place of others.
VALUES: dict[str, Callable[[Any, Tensor, Tensor, int], Tensor]] = {
    "norm": lambda net, f, g, i: net.norms[i](f),
    "edited norm": lambda net, f, g, i: net.norms[i](f).mul_(0.9),
    "relu": lambda net, f, g, i: F.relu(f),
    "relu in place": lambda net, f, g, i: F.relu(f, inplace=True),
    "sum": lambda net, f, g, i: f + g,
    "join": lambda net, f, g, i: net.wide(torch.cat([f, g], 1)),
    "join and cut": lambda net, f, g, i: torch.cat((f, g), dim=1)[:, ::2].contiguous(),
    "linear": lambda net, f, g, i: net.linear(f),
    "clone": lambda net, f, g, i: f.clone(),
    "choose": lambda net, f, g, i: torch.where(f > g, f, g),
    "expand": lambda net, f, g, i: f.unsqueeze(0).expand(2, -1, -1).mean(0),
    "stack": lambda net, f, g, i: torch.stack([f, g]).sum(0),
}


def _rows(f: Tensor, g: Tensor) -> None:
    f[: len(f) // 2] *= 0.5


def _cells(f: Tensor, g: Tensor) -> None:
    f[g > 0.5] = 0.1


def _plus(f: Tensor, g: Tensor) -> None:
    f += g


def _array(f: Tensor, g: Tensor) -> None:
    f.detach().numpy()[:, 0] = 0.3


def _array_of_all(f: Tensor, g: Tensor) -> None:
    torch.from_numpy(f.detach().cpu().numpy()).mul_(0.6)


def _halves(f: Tensor, g: Tensor) -> None:
    for part in f.chunk(2, 0):
        part.clamp_(max=1.0)


def _put(run: Callable[[Tensor, Tensor], Any]) -> Callable[[Tensor, Tensor], None]:
    def edit(f: Tensor, g: Tensor) -> None:
        run(f, g)

    return edit


# Changes of features in place; or a view that lives on.
EDITS: dict[str, Callable[[Tensor, Tensor], Tensor | None]] = {
    "scale": _put(lambda f, g: f.mul_(0.5)),
    "add": _plus,
    "rows": _rows,
    "cells": _cells,
    "flat": _put(lambda f, g: f.view(-1)[::3].fill_(0.25)),
    "columns": _put(lambda f, g: f[:, :4].add_(1.0)),
    "detached": _put(lambda f, g: f.detach().mul_(1.5)),
    "data": _put(lambda f, g: f.data.add_(0.5)),
    "array": _array,
    "array of all": _array_of_all,
    "out": _put(lambda f, g: torch.add(f, g, out=f)),
    "relu_": _put(lambda f, g: f.relu_()),
    "halves": _halves,
    "copy": _put(lambda f, g: f.copy_(g * 0.7)),
    "strided": _put(lambda f, g: f.as_strided((len(f),), (CHANNELS,)).fill_(0.2)),
    "transposed": _put(lambda f, g: f.t()[1].mul_(2.0)),
    "unbound": _put(lambda f, g: f.unbind(1)[2].add_(0.1)),
    "split": _put(lambda f, g: f.split(4, 1)[0].neg_()),
    "view": lambda f, g: f[:, 1:3],
}
COMMON = ("conv", "norm", "relu", "residual")


def check(seed: int) -> bool:
    """Whether the case ran; raises AssertionError where the accelerated network differs."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    names = [*LAYERS, *VALUES, *EDITS]
    program = [
        (rng.choice(COMMON if rng.random() < 0.5 else names), -rng.randint(1, 2), -rng.randint(1, 4), rng.randint(0, 3))
        for _ in range(rng.randint(2, 9))
    ]
    network = Network(program).eval()
    for norm in network.norms:
        for value in (norm.running_mean, norm.weight.data, norm.bias.data):  # type: ignore[union-attr]
            value.normal_()  # type: ignore[operator]
        norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr, operator]
    cells = torch.unique(torch.randint(0, 6, (60, 3)), dim=0)
    indices = torch.cat([torch.zeros(len(cells), 1), cells], 1).int()
    features = torch.randn(len(cells), CHANNELS)

    def run(net: nn.Module) -> list[Tensor]:
        with torch.inference_mode() if seed % 3 == 1 else torch.no_grad():
            return net(pc.SparseConvTensor(features.clone(), indices, [8, 8, 8], 1))  # type: ignore[no-any-return]

    try:
        want = run(network)
    except RuntimeError:
        return False  # torch refuses the program
    fast = pc.accelerate(network)
    for _ in range(2):  # what the first call has learnt, the second one uses
        for i, (a, b) in enumerate(zip(run(fast), want, strict=True)):
            torch.testing.assert_close(
                a * 1, b, rtol=1e-4, atol=1e-4, msg=lambda text, i=i: f"check({seed}): output {i} of {program}: {text}"
            )
    return True


@pytest.mark.parametrize("part", range(PARTS))
def test_forwards_that_share_memory(part: int) -> None:
    ran = [check(seed) for seed in range(part, PARTS * examples(100), PARTS)]
    assert sum(ran) > 0.7 * len(ran)
