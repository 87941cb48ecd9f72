"""Random stacks of sparse layers on random clouds, in fp32, against dense layers of torch in float64.

Each case follows from its seed alone: `check(seed)` repeats it.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pointcloud as pc
from tests.fuzz import examples
from tests.pointcloud.dense_oracle import MAX_POOL, at, conv, conv_transpose, scatter, submanifold_conv, torch_weight

PARTS = 10
LONGEST = {1: 40, 2: 12, 3: 7, 4: 4}


@dataclass
class Dense:
    """What the sparse tensor stands for: values [B, C, *shape], zero outside of the active cells [B, 1, *shape]."""

    values: Tensor
    active: Tensor


@dataclass
class Kernel:
    size: list[int]
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    extra: list[int]

    @classmethod
    def draw(cls, rng: random.Random, ndim: int, strided: bool) -> Kernel:
        def numbers(least: int, most: int) -> list[int]:
            return (
                [rng.randint(least, most) for _ in range(ndim)]
                if rng.random() < 0.5
                else [rng.randint(least, most)] * ndim
            )

        size, dilation = numbers(1, 4 if ndim < 3 else 3), numbers(1, 2)
        if not strided:
            return cls(size, [1] * ndim, [0] * ndim, dilation, [0] * ndim)
        stride = numbers(1, 3)
        extra = [rng.randint(0, max(s, d) - 1) if rng.random() < 0.3 else 0 for s, d in zip(stride, dilation)]
        return cls(size, stride, numbers(0, 2), dilation, extra)

    def fits(self, shape: list[int]) -> bool:
        axes = zip(shape, self.size, self.stride, self.padding, self.dilation)
        return all((n + 2 * p - d * (k - 1) - 1) // s + 1 >= 1 for n, k, s, p, d in axes)

    def fits_transposed(self, shape: list[int]) -> bool:
        axes = zip(shape, self.size, self.stride, self.padding, self.dilation, self.extra)
        return all(1 <= (n - 1) * s - 2 * p + d * (k - 1) + e + 1 <= 30 for n, k, s, p, d, e in axes)


class Case:
    """A cloud and a stack of layers, built step by step on both sides."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.ndim = self.rng.choice([1, 2, 3, 3, 3, 4])
        shape = [self.rng.randint(1, LONGEST[self.ndim]) for _ in range(self.ndim)]
        batch, self.channels = self.rng.randint(1, 3), self.rng.choice([1, 2, 3, 5, 16, 17])
        generator = torch.Generator().manual_seed(seed)
        cells = batch * math.prod(shape)
        rows = torch.randperm(cells, generator=generator)[: self.rng.choice([0, 1, cells // 8, cells // 3, cells])]
        indices = torch.stack(torch.unravel_index(rows, (batch, *shape)), 1).int()
        self.features = torch.randn(len(rows), self.channels, generator=generator).requires_grad_()
        self.wide = self.features.detach().double().requires_grad_()
        self.x = pc.SparseConvTensor(self.features, indices, shape, batch)
        ones = self.x.replace_feature(torch.ones(len(rows), 1, dtype=torch.float64))
        self.dense = Dense(scatter(self.x, self.wide), scatter(ones) > 0)
        self.layers: list[nn.Module] = []
        self.weights: list[Tensor] = []
        self.keys: list[tuple[str, Kernel, Tensor]] = []  # of strided layers that can be inverted, innermost last
        self.steps: list[str] = []

    def grow(self) -> None:
        """Add one layer on both sides."""
        kinds = ["subm", "subm", "strided", "strided", "transposed", "max", "average", "norm", "residual", "join"]
        kind = self.rng.choice([*kinds, "inverse", "inverse"] if self.keys else kinds)
        getattr(self, f"_{kind}")()

    def _convolution(self, family: str, kernel: Kernel, **options: object) -> tuple[nn.Module, Tensor, Tensor]:
        c_out = self.rng.choice([1, 2, 4, 7, 16, 33])
        groups = 1
        if self.rng.random() < 0.2:
            groups = self.rng.choice([g for g in (2, 3, self.channels) if self.channels % g == 0] or [1])
            c_out = groups * self.rng.randint(1, 2)
        layer = getattr(pc, f"{family}{self.ndim}d")(
            self.channels, c_out, kernel.size, bias=self.rng.random() < 0.7, groups=groups, **options
        )
        torch.manual_seed(self.rng.randrange(2**31))
        layer.reset_parameters()
        self.layers.append(layer)
        wide = layer.weight.detach().double().requires_grad_()
        self.weights += [layer.weight, wide]
        # The memory of a kernel of size 1 is [Cin, Cout], as spconv's.
        plain = max(layer.kernel_size) == max(layer.stride) == groups == 1
        ordered = wide.reshape(self.channels, c_out).T.reshape(wide.shape) if plain else wide
        # Groups as one dense weight that is zero between them.
        whole = torch_weight(ordered)
        if groups > 1:
            parts = whole.chunk(groups)
            width = self.channels // groups
            whole = torch.cat(
                [
                    F.pad(p.movedim(1, -1), (g * width, self.channels - (g + 1) * width)).movedim(-1, 1)
                    for g, p in enumerate(parts)
                ]
            )
        bias = torch.zeros(c_out, dtype=torch.float64) if layer.bias is None else layer.bias.detach().double()
        self.channels = c_out
        return layer, whole, bias.view(1, -1, *[1] * self.ndim)

    def _note(self, text: str) -> None:
        self.steps.append(text)

    def _set(self, values: Tensor, active: Tensor) -> None:
        self.dense = Dense(torch.where(active, values, 0), active)

    def _subm(self) -> None:
        kernel = Kernel.draw(self.rng, self.ndim, False)
        layer, weight, bias = self._convolution("SubMConv", kernel, dilation=kernel.dilation)
        self.x = layer(self.x)
        self._set(submanifold_conv(self.dense.values, weight, kernel.dilation) + bias, self.dense.active)
        self._note(str(layer))

    def _strided(self) -> None:
        kernel = Kernel.draw(self.rng, self.ndim, True)
        if not kernel.fits(self.x.spatial_shape):
            return
        source, key = self.dense.active, f"key{len(self.layers)}"
        layer, weight, bias = self._convolution(
            "SparseConv", kernel, stride=kernel.stride, padding=kernel.padding, dilation=kernel.dilation, indice_key=key
        )
        self.x = layer(self.x)
        rest = (kernel.stride, kernel.padding, kernel.dilation)
        ones = torch.ones(1, 1, *kernel.size, dtype=torch.float64)
        active = conv(self.dense.active.double(), ones, *rest) > 0.5
        self._set(conv(self.dense.values, weight, *rest) + bias, active)
        if not layer.conv1x1:
            self.keys.append((key, kernel, source))
        self._note(str(layer))

    def _transposed(self) -> None:
        kernel = Kernel.draw(self.rng, self.ndim, True)
        if not kernel.fits_transposed(self.x.spatial_shape):
            return
        layer, weight, bias = self._convolution(
            "SparseConvTranspose", kernel, stride=kernel.stride, padding=kernel.padding, dilation=kernel.dilation,
            output_padding=kernel.extra,
        )  # fmt: skip
        self.x = layer(self.x)
        rest = (kernel.stride, kernel.padding, kernel.dilation, kernel.extra)
        ones = torch.ones(1, 1, *kernel.size, dtype=torch.float64)
        active = conv_transpose(self.dense.active.double(), ones, *rest) > 0.5
        self._set(conv_transpose(self.dense.values, weight.transpose(0, 1), *rest) + bias, active)
        self.keys = []
        self._note(str(layer))

    def _inverse(self) -> None:
        key, kernel, source = self.keys.pop()
        layer, weight, bias = self._convolution("SparseInverseConv", kernel, indice_key=key)
        self.x = layer(self.x)
        axes = zip(
            source.shape[2:], self.dense.active.shape[2:], kernel.size, kernel.stride, kernel.padding, kernel.dilation
        )
        extra = [n - ((m - 1) * s - 2 * p + d * (k - 1) + 1) for n, m, k, s, p, d in axes]
        # torch has no padding of a stride or more at the end: the grid is transposed whole and cut to the source's.
        rest = (kernel.stride, [0] * self.ndim, kernel.dilation, [0] * self.ndim)
        values = conv_transpose(self.dense.values, weight.transpose(0, 1), *rest)
        cut = [side for p, e in zip(reversed(kernel.padding), reversed(extra)) for side in (-p, e - p)]
        self._set(F.pad(values, cut) + bias, source)
        self._note(str(layer))

    def _max(self) -> None:
        self._pool("Max")

    def _average(self) -> None:
        self._pool("Avg")

    def _pool(self, family: str) -> None:
        kernel = Kernel.draw(self.rng, self.ndim, True)
        kernel.padding = [min(p, k // 2) for p, k in zip(kernel.padding, kernel.size)]
        if not kernel.fits(self.x.spatial_shape) or (family == "Max" and self.ndim == 4):
            return
        layer = getattr(pc, f"Sparse{family}Pool{self.ndim}d")(
            kernel.size, kernel.stride, kernel.padding, kernel.dilation
        )
        self.layers.append(layer)
        self.x = layer(self.x)
        rest = (kernel.stride, kernel.padding, kernel.dilation)
        ones = torch.ones(1, 1, *kernel.size, dtype=torch.float64)
        count = conv(self.dense.active.double(), ones, *rest)
        if family == "Max":
            filled = torch.where(self.dense.active, self.dense.values, -torch.inf)
            values = MAX_POOL[self.ndim](filled, kernel.size, *rest)
        else:
            each = self.dense.values.flatten(0, 1)[:, None]
            values = conv(each, ones, *rest).unflatten(0, self.dense.values.shape[:2]).squeeze(2) / count.clamp(min=1)
        self._set(values, count > 0.5)
        self.keys = []
        self._note(str(layer))

    def _norm(self) -> None:
        norm = nn.BatchNorm1d(self.channels).eval()
        torch.manual_seed(self.rng.randrange(2**31))
        for value, low, high in (
            (norm.weight, 0.5, 2),
            (norm.running_var, 0.5, 2),
            (norm.bias, -1, 1),
            (norm.running_mean, -1, 1),
        ):
            nn.init.uniform_(value, low, high)
        self.layers.append(norm)
        self.x = pc.SparseSequential(norm, nn.ReLU())(self.x)
        wide = [each.detach().double() for each in (norm.running_mean, norm.running_var, norm.weight, norm.bias)]
        values = (
            F.batch_norm(self.dense.values, *wide, False, 0, norm.eps)
            if self.dense.values.numel()
            else self.dense.values
        )
        self._set(values.relu(), self.dense.active)
        self._note("batch norm, ReLU")

    def _residual(self) -> None:
        self.x = self.x + self.x.replace_feature(self.x.features * 0.5)
        self._set(self.dense.values * 1.5, self.dense.active)
        self._note("sum")

    def _join(self) -> None:
        if self.channels > 40:
            return
        self.x = pc.JoinTable()([self.x, self.x.replace_feature(-self.x.features)])
        self._set(torch.cat([self.dense.values, -self.dense.values], 1), self.dense.active)
        self.channels *= 2
        self._note("join")


def close(got: Tensor, expected: Tensor) -> bool:
    if got.shape != expected.shape:
        return False
    scale = max(1.0, float(expected.detach().abs().max())) if expected.numel() else 1.0
    return bool(((got.double() - expected).abs() <= 1e-4 * scale).all())


def check(seed: int) -> None:
    """Build the case of this seed and compare cells, values and gradients."""
    case = Case(seed)
    for _ in range(case.rng.randint(1, 5)):
        case.grow()
    x, dense, told = case.x, case.dense, f"seed {seed}: {case.steps}"
    assert x.spatial_shape == list(dense.active.shape[2:]), told
    cells = {tuple(cell) for cell in x.indices.tolist()}
    assert cells == {tuple(cell) for cell in dense.active[:, 0].nonzero().tolist()}, told
    assert len(cells) == len(x.indices), told
    expected = at(dense.values, x.indices)
    assert close(x.features, expected), told
    inputs = [(case.features, case.wide), *zip(case.weights[::2], case.weights[1::2])]
    if seed % 3 or not expected.requires_grad:
        return
    factor = torch.randn(expected.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ours = torch.autograd.grad((x.features * factor.float()).sum(), [a for a, _ in inputs], allow_unused=True)
    right = torch.autograd.grad((expected * factor).sum(), [b for _, b in inputs], allow_unused=True)
    for a, b in zip(ours, right):
        zero = torch.zeros(())
        assert close(
            zero if a is None else a, (zero if b is None else b).double().expand((zero if a is None else a).shape)
        ), told


@pytest.mark.parametrize("part", range(PARTS))
def test_stacks_equal_dense(part: int) -> None:
    count = examples(250)
    for seed in range(part * count, (part + 1) * count):
        check(seed)
