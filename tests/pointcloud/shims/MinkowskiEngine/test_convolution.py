"""MinkowskiEngine's convolutions by their defining equation, cell by cell in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from pointcloud.shims import MinkowskiEngine as ME
from pointcloud.shims.MinkowskiEngine.modules.resnet_block import BasicBlock, Bottleneck


def cloud(dimension: int = 3, n: int = 60) -> ME.SparseTensor:
    torch.manual_seed(0)
    spread = torch.randint(-5, 4, (n, dimension))
    coords = torch.unique(torch.cat([torch.randint(0, 2, (n, 1)), spread], 1), dim=0)
    return ME.SparseTensor(torch.randn(len(coords), 4, dtype=torch.float64), coords)


def equation(x: ME.SparseTensor, out: Tensor, kernel: Tensor, size: int, dilation: int = 1) -> Tensor:
    """Sum over the taps of the input at `out + tap * tensor stride * dilation`; the first axis of taps is fastest."""
    rows = {tuple(cell): row for row, cell in enumerate(x.C.tolist())}
    ts, D = x.tensor_stride[0], x.D
    span = range(size) if size % 2 == 0 else range(-(size // 2), size // 2 + 1)
    result = torch.zeros(len(out), kernel.shape[-1], dtype=torch.float64)
    for m, (b, *cell) in enumerate(out.tolist()):
        for k, tap in enumerate(itertools.product(span, repeat=D)):
            row = rows.get((b, *[c + r * ts * dilation for c, r in zip(cell, reversed(tap))]))
            if row is not None:
                result[m] += x.F[row] @ kernel[k]
    return result


@pytest.mark.parametrize(
    ("dimension", "size", "stride", "dilation"),
    [(3, 3, 1, 1), (3, 2, 2, 1), (3, 3, 2, 1), (2, 3, 3, 1), (2, 5, 1, 2), (3, 2, 1, 1)],
)
def test_convolution(dimension: int, size: int, stride: int, dilation: int) -> None:
    x = cloud(dimension)
    layer = ME.MinkowskiConvolution(4, 6, size, stride, dilation, bias=True, dimension=dimension).double()
    y = layer(x)
    floors = torch.div(x.C, torch.tensor([1] + [stride] * dimension), rounding_mode="floor")
    floors = torch.unique(floors * torch.tensor([1] + [stride] * dimension), dim=0)
    assert sorted(y.C.tolist()) == floors.tolist() and y.tensor_stride == [stride] * dimension
    if stride == 1:
        assert y.C is x.C
    bias = layer.bias
    assert bias is not None and bias.shape == (1, 6)
    torch.testing.assert_close(y.F, equation(x, y.C, layer.kernel, size, dilation) + bias)


def test_transposed_comes_back_to_the_cells_it_left() -> None:
    x = cloud()
    down, up = (kind(4, 4, 2, 2, dimension=3).double() for kind in
                (ME.MinkowskiConvolution, ME.MinkowskiConvolutionTranspose))  # fmt: skip
    y = down(x)
    back = up(y)
    assert back.C is x.C and back.tensor_stride == [1, 1, 1]
    rows = {tuple(cell): row for row, cell in enumerate(y.C.tolist())}
    for m, (b, *cell) in enumerate(x.C.tolist()):
        parent = [c // 2 * 2 for c in cell]
        tap = sum((c - p) * 2**axis for axis, (c, p) in enumerate(zip(cell, parent)))
        torch.testing.assert_close(back.F[m], y.F[rows[(b, *parent)]] @ up.kernel[tap])
    with pytest.raises(NotImplementedError, match="which the input has not passed"):
        up(ME.SparseTensor(x.F, x.C * 2, tensor_stride=2))


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_blocks_train_under_the_published_names(block: type[nn.Module]) -> None:
    planes = 2
    layer = block(4, planes, downsample=nn.Sequential(
        ME.MinkowskiConvolution(4, planes * block.expansion, 1, dimension=3),
        ME.MinkowskiBatchNorm(planes * block.expansion),
    ), dimension=3).double()  # fmt: skip
    keys = layer.state_dict().keys()
    assert {"conv1.kernel", "norm1.bn.weight", "downsample.0.kernel", "downsample.1.bn.running_mean"} <= set(keys)
    assert layer.downsample[0].kernel.ndim == 2  # type: ignore[union-attr, index]
    layer(cloud()).F.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in layer.parameters())


def test_refusals() -> None:
    with pytest.raises(NotImplementedError, match="expand_coordinates must be False"):
        ME.MinkowskiConvolution(4, 4, 2, 2, expand_coordinates=True, dimension=3)
    with pytest.raises(ValueError, match="dimension must be given"):
        ME.MinkowskiConvolution(4, 4, 2, 2)
    with pytest.raises(NotImplementedError, match="coordinates must be None"):
        ME.MinkowskiConvolution(4, 4, 2, 2, dimension=3)(cloud(), coordinates=torch.zeros(1, 4))
