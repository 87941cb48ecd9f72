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


def by_offsets(x: ME.SparseTensor, out: Tensor, kernel: Tensor, offsets: list[tuple[int, ...]]) -> Tensor:
    """The defining equation for any offsets, in the units of the coordinates."""
    rows = {tuple(cell): row for row, cell in enumerate(x.C.tolist())}
    result = torch.zeros(len(out), kernel.shape[-1], dtype=torch.float64)
    for m, (b, *cell) in enumerate(out.tolist()):
        for k, offset in enumerate(offsets):
            row = rows.get((b, *[c + o for c, o in zip(cell, offset)]))
            if row is not None:
                result[m] += x.F[row] @ kernel[k]
    return result


CROSS = [(0, 0, 0), (1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]


def test_crosses_and_offsets_of_one_s_own() -> None:
    x = cloud()
    generator = ME.KernelGenerator(3, dilation=2, region_type=ME.RegionType.HYPER_CROSS, dimension=3)
    layer = ME.MinkowskiConvolution(4, 5, kernel_generator=generator, dimension=3).double()
    assert layer.kernel.shape == (7, 4, 5) == (generator.kernel_volume, 4, 5)
    doubled = [tuple(2 * step for step in offset) for offset in CROSS]
    torch.testing.assert_close(layer(x).F, by_offsets(x, x.C, layer.kernel, doubled))
    own = [(0, 0, 0), (3, -1, 0), (0, 0, 2)]
    generator = ME.KernelGenerator(region_type=ME.RegionType.CUSTOM, region_offsets=torch.tensor(own), dimension=3)
    layer = ME.MinkowskiConvolution(4, 5, kernel_generator=generator, dimension=3).double()
    torch.testing.assert_close(layer(x).F, by_offsets(x, x.C, layer.kernel, own))


@pytest.mark.parametrize("size", [2, 3])
def test_generative_layers_make_all_cells_that_they_reach(size: int) -> None:
    x = cloud()
    coarse = ME.SparseTensor(x.F, x.C * torch.tensor([1, 2, 2, 2]), tensor_stride=2)
    layer = ME.MinkowskiGenerativeConvolutionTranspose(4, 6, size, 2, dimension=3).double()
    y = layer(coarse)
    span = range(size) if size % 2 == 0 else range(-(size // 2), size // 2 + 1)
    offsets = [tap[::-1] for tap in itertools.product(span, repeat=3)]
    want: dict[tuple[int, ...], Tensor] = {}
    for row, (b, *cell) in enumerate(coarse.C.tolist()):
        for k, offset in enumerate(offsets):
            at = (b, *[c + o for c, o in zip(cell, offset)])
            want[at] = want.get(at, torch.zeros(6, dtype=torch.float64)) + coarse.F[row] @ layer.kernel[k]
    assert sorted(map(tuple, y.C.tolist())) == sorted(want) and y.tensor_stride == [1, 1, 1]
    torch.testing.assert_close(y.F, torch.stack([want[tuple(cell)] for cell in y.C.tolist()]))
    # A transposed layer that came from nowhere does the same; one that came from somewhere goes back there.
    plain = ME.MinkowskiConvolutionTranspose(4, 6, size, 2, dimension=3).double()
    plain.load_state_dict(layer.state_dict())
    torch.testing.assert_close(plain(coarse).F, y.F)
    again = layer(ME.MinkowskiConvolution(4, 4, 2, 2, dimension=3).double()(x))
    assert len(again) >= len(x)
    pruned = ME.MinkowskiPruning()(y, y.F[:, 0] > 0)
    assert len(pruned) == int((y.F[:, 0] > 0).sum())


def test_expanding_layers() -> None:
    x = cloud()
    layer = ME.MinkowskiConvolution(4, 5, 3, expand_coordinates=True, dimension=3).double()
    y = layer(x)
    reached = {
        (b, *[c + o for c, o in zip(cell, offset)])
        for b, *cell in x.C.tolist()
        for offset in itertools.product((-1, 0, 1), repeat=3)
    }
    assert sorted(map(tuple, y.C.tolist())) == sorted(reached)
    torch.testing.assert_close(y.F, equation(x, y.C, layer.kernel, 3))
    with pytest.raises(NotImplementedError, match="expand_coordinates needs a stride of 1"):
        ME.MinkowskiConvolution(4, 4, 2, 2, expand_coordinates=True, dimension=3).double()(x)


def test_to_given_coordinates() -> None:
    x = cloud()
    layer = ME.MinkowskiConvolution(4, 5, 3, dimension=3).double()
    where = torch.tensor([[0, 0, 0, 0], [1, -9, 3, 2], [0, 1, -2, 1]])
    y = layer(x, where)
    assert y.C.tolist() == sorted(where.tolist())
    torch.testing.assert_close(y.F, equation(x, y.C, layer.kernel, 3))
    other = ME.SparseTensor(torch.zeros(3, 1), where)  # of another manager
    torch.testing.assert_close(layer(x, other).F, equation(x, other.C, layer.kernel, 3))
    same = x.at(x.F)
    assert layer(x, same).coordinate_map_key == x.coordinate_map_key
    coarse = ME.MinkowskiConvolution(4, 4, 2, 2, dimension=3).double()(x)
    up = ME.MinkowskiConvolutionTranspose(4, 4, 2, 2, dimension=3).double()
    torch.testing.assert_close(up(coarse, x).F, up(coarse).F)
    single = ME.MinkowskiConvolution(4, 5, 1, dimension=3).double()
    torch.testing.assert_close(single(x, other).F, by_offsets(x, other.C, single.kernel[None], [(0, 0, 0)]))
    for wrong in (torch.zeros(2, 3).int(), torch.zeros(2, 4), "here"):
        with pytest.raises(ValueError, match="coordinates must be"):
            layer(x, wrong)


def test_channelwise() -> None:
    x = cloud()
    layer = ME.MinkowskiChannelwiseConvolution(4, 3, 2, bias=True, dimension=3).double()
    y = layer(x)
    whole = torch.stack([torch.diag(row) for row in layer.kernel])
    assert y.tensor_stride == [2, 2, 2] and layer.bias is not None
    torch.testing.assert_close(y.F, equation(x, y.C, whole, 3) + layer.bias)
    assert torch.autograd.gradcheck(lambda f: layer(x.at(f)).F, (x.F.requires_grad_(),))


def test_refusals() -> None:
    with pytest.raises(ValueError, match="dimension must be given"):
        ME.MinkowskiConvolution(4, 4, 2, 2)
    with pytest.raises(NotImplementedError, match="region_type HYBRID"):
        ME.KernelGenerator(3, region_type=ME.RegionType.HYBRID, dimension=3)
    with pytest.raises(ValueError, match="region_offsets belong to region_type CUSTOM"):
        ME.KernelGenerator(3, region_offsets=torch.zeros(1, 3).int(), dimension=3)
    with pytest.raises(ValueError, match=r"region_offsets must be int \[K, 3\]"):
        ME.KernelGenerator(region_type=ME.RegionType.CUSTOM, region_offsets=torch.zeros(1, 2).int(), dimension=3)
    with pytest.raises(ValueError, match="must be odd for a cross"):
        ME.KernelGenerator(2, region_type=ME.RegionType.HYPER_CROSS, dimension=3)
    with pytest.raises(ValueError, match="stride must divide the tensor stride"):
        ME.MinkowskiConvolutionTranspose(4, 4, 2, 2, dimension=3).double()(cloud())
