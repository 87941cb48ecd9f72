"""Convolution over any offsets, against the defining sum in float64 and against dense convolution."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

import pointcloud as pc
from pointcloud.coordinates import Coordinates


def cloud(n: int = 80, shape: tuple[int, ...] = (7, 9, 5), batch: int = 2, channels: int = 3) -> pc.SparseConvTensor:
    generator = torch.Generator().manual_seed(n)
    total = batch * torch.Size(shape).numel()
    keys = torch.randperm(total, generator=generator)[:n]
    columns = []
    for extent in reversed(shape):
        columns.append(keys % extent)
        keys = keys // extent
    indices = torch.stack([keys, *reversed(columns)], 1).int()
    features = torch.randn(n, channels, generator=generator, dtype=torch.float64)
    return pc.SparseConvTensor(features, indices, shape, batch)


def defining_sum(layer: pc.SparseOffsetConv, x: pc.SparseConvTensor, targets: torch.Tensor) -> torch.Tensor:
    row_of = {tuple(cell): row for row, cell in enumerate(x.indices.tolist())}
    out = layer.bias.detach().repeat(len(targets), 1)
    for m, (b, *at) in enumerate(targets.tolist()):
        for k, tap in enumerate(layer.offsets.tolist()):
            row = row_of.get((b, *(t * s + o for t, s, o in zip(at, layer.stride, tap))))
            if row is not None:
                out[m] += layer.weight[:, k].detach() @ x.features[row]
    return out


OWN = torch.tensor([[0, 0, 0], [3, -2, 1], [-5, 0, 0], [0, 4, 0]])


@pytest.mark.parametrize("offsets", [pc.kernel_offsets(3, region="cross"), OWN, pc.kernel_offsets(2)])
@pytest.mark.parametrize("stride, outputs", [(1, "floor"), (2, "floor"), ((1, 2, 3), "reached"), (1, "reached")])
def test_is_the_defining_sum(offsets: torch.Tensor, stride: object, outputs: str) -> None:
    x = cloud()
    layer = pc.SparseOffsetConv(3, 4, offsets, stride, outputs=outputs, dtype=torch.float64)
    y = layer(x)
    assert torch.allclose(y.features, defining_sum(layer, x, y.indices), atol=1e-12)
    steps = layer.stride
    assert y.spatial_shape == [-(-n // s) for n, s in zip(x.spatial_shape, steps)]
    row_of = {tuple(cell) for cell in x.indices.tolist()}
    if outputs == "floor":
        cells = {(b, *(c // s for c, s in zip(at, steps))) for b, *at in row_of}
    else:
        cells = set()
        for b, *at in row_of:
            for tap in offsets.tolist():
                moved = [c - o for c, o in zip(at, tap)]
                if all(m % s == 0 and 0 <= m // s < n for m, s, n in zip(moved, steps, y.spatial_shape)):
                    cells.add((b, *(m // s for m, s in zip(moved, steps))))
    assert {tuple(cell) for cell in y.indices.tolist()} == cells and len(y.indices) == len(cells)


def test_the_floor_rule_loses_no_input_at_an_odd_border() -> None:
    """Kernel 2, stride 2 on 7 x 9 x 5 cells: SparseConv3d, as dense convolutions, drops the last plane of each axis."""
    x = cloud()
    floor = pc.SparseOffsetConv(3, 4, pc.kernel_offsets(2), 2, bias=False, dtype=torch.float64)
    usual = pc.SparseConv3d(3, 4, 2, 2, bias=False, dtype=torch.float64)
    with torch.no_grad():
        usual.weight.copy_(floor.weight.view(4, 2, 2, 2, 3))
    padded = F.conv3d(F.pad(x.dense(), (0, 1, 0, 1, 0, 1)), usual.weight.permute(0, 4, 1, 2, 3), stride=2)
    assert torch.allclose(floor(x).dense(), padded, atol=1e-12)
    assert list(usual(x).spatial_shape) == [3, 4, 2] and floor(x).spatial_shape == [4, 5, 3]
    assert torch.allclose(usual(x).dense(), padded[:, :, :3, :4, :2], atol=1e-12)


def test_target_coordinates() -> None:
    x, other = cloud(), cloud(50, (8, 8, 8), channels=1)
    layer = pc.SparseOffsetConv(3, 4, pc.kernel_offsets(3), 1, dtype=torch.float64)
    y = layer(x, other)
    assert y.coordinates is other.coordinates
    assert torch.allclose(y.features, defining_sum(layer, x, other.indices), atol=1e-12)
    again = layer(x, other.coordinates)
    assert torch.equal(again.features, y.features)


def test_gradients_and_training_after_inference() -> None:
    x = cloud(30, (5, 5, 5))
    layer = pc.SparseOffsetConv(3, 2, OWN, 2, dtype=torch.float64)
    with torch.inference_mode():
        layer(x)
    features = x.features.clone().requires_grad_()

    def run(features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(
            layer, {"weight": weight, "bias": bias}, (x.replace_feature(features),)
        ).features

    assert torch.autograd.gradcheck(run, (features, layer.weight, layer.bias))


def test_maps_are_found_once_and_go_with_their_targets() -> None:
    x, other = cloud(), cloud(50, (8, 8, 8))
    layer, second = (pc.SparseOffsetConv(3, 3, pc.kernel_offsets(3), dtype=torch.float64) for _ in range(2))
    assert layer._find(x.coordinates, None)[0] is second._find(x.coordinates, None)[0]
    assert layer._find(x.coordinates, other.coordinates)[0] is second._find(x.coordinates, other.coordinates)[0]
    assert len(x.coordinates._kept_over) == 1
    del other
    assert len(x.coordinates._kept_over) == 0
    strided = pc.SparseOffsetConv(3, 3, OWN, 2, dtype=torch.float64)
    assert strided(x).coordinates is strided(x).coordinates
    restored = pickle.loads(pickle.dumps(copy.deepcopy(x)))
    assert torch.equal(strided(restored).features, strided(x).features)


def test_autocast() -> None:
    x = cloud().replace_feature(cloud().features.float())
    layer = pc.SparseOffsetConv(3, 8, pc.kernel_offsets(3))
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.features.dtype == torch.bfloat16
    assert torch.allclose(y.features.float(), layer(x).features, atol=0.05)


def test_empty() -> None:
    x = cloud(0)
    for outputs in ("floor", "reached"):
        y = pc.SparseOffsetConv(3, 4, OWN, 2, outputs=outputs, dtype=torch.float64)(x)
        assert y.features.shape == (0, 4) and y.spatial_shape == [4, 5, 3]
    filled = pc.SparseOffsetConv(3, 4, OWN, dtype=torch.float64)
    assert torch.equal(filled(x, cloud(3)).features, filled.bias.repeat(3, 1))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: pc.SparseOffsetConv(0, 4, OWN), ValueError, "in_channels and out_channels"),
        (lambda: pc.SparseOffsetConv(3, 4, [[0, 0, 0]]), ValueError, "offsets must be integers"),
        (lambda: pc.SparseOffsetConv(3, 4, OWN, outputs="all"), ValueError, "outputs must be one of"),
        (lambda: pc.SparseOffsetConv(3, 4, OWN)(torch.ones(2, 3)), TypeError, "SparseConvTensor"),
        (lambda: pc.SparseOffsetConv(5, 4, OWN)(cloud()), ValueError, "5 channels"),
        (lambda: pc.SparseOffsetConv(3, 4, OWN[:, :2])(cloud()), ValueError, "2 axes"),
        (lambda: pc.SparseOffsetConv(3, 4, OWN)(cloud(), 3), TypeError, "targets"),
        (
            lambda: pc.SparseOffsetConv(3, 4, OWN)(cloud(), Coordinates(cloud().indices, (7, 9, 5), 3)),
            ValueError,
            "batch_size 2",
        ),
        (lambda: pc.SparseOffsetConv(3, 4, OWN)(cloud()), ValueError, "float32"),
    ],
)
def test_wrong_use_is_named(make: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
