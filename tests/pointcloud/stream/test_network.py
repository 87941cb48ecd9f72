"""pointcloud.Stream against the same network on each cloud alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pointcloud
from pointcloud import (
    SparseConv3d,
    SparseConvTensor,
    SparseConvTranspose3d,
    SparseInverseConv3d,
    SparseMaxPool3d,
    SparseSequential,
    Stream,
    SubMConv3d,
)
from pointcloud.models import MinkUNet
from pointcloud.stream import network
from tests.pointcloud.stream.changing_clouds import CHANNELS, GRID, changing, sensor_frames, settled


def _conv(kind: Any, *args: Any, **kwargs: Any) -> SparseSequential:
    layer = kind(*args, **kwargs)
    return SparseSequential(layer, nn.BatchNorm1d(layer.out_channels), nn.ReLU())


class Everything(nn.Module):
    """Submanifold, strided, transposed and inverse layers, a pool, sums, concatenation, functions of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(SubMConv3d, CHANNELS, 8, 3, bias=False)
        self.even = _conv(SubMConv3d, 8, 8, 2)
        self.spread = SubMConv3d(8, 8, 3, dilation=2, groups=2)
        self.down = _conv(SparseConv3d, 8, 12, 3, stride=2, padding=1, bias=False, indice_key="a")
        self.deep = _conv(SparseConv3d, 12, 12, (2, 3, 1), stride=(2, 3, 1), indice_key="b")
        self.pool = SparseMaxPool3d(2, 1, 1)
        self.narrow = SubMConv3d(12, 12, 1, bias=False)
        self.back = SparseInverseConv3d(12, 12, (2, 3, 1), "b")
        self.up = SparseInverseConv3d(12, 8, 3, "a")
        self.grow = SparseConvTranspose3d(12, 4, 2, stride=2)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: SparseConvTensor) -> dict[str, Any]:
        x = self.stem(x)
        y = self.even(x) + self.spread(x)
        y = y.replace_feature(torch.relu(y.features) * 0.5)
        down = self.down(y)
        deep = self.deep(down)
        pooled = self.pool(deep)
        deep = deep.replace_feature(deep.features + self.narrow(deep).features)
        back = self.back(deep)
        back = back.replace_feature((back.features + down.features).relu())
        up = self.up(back)
        both = up.replace_feature(torch.cat([up.features, y.features], 1))
        logits = self.head(self.norm(both.features))
        return {"logits": logits, "deep": deep, "list": [back, (pooled,)], "grown": self.grow(back), "up": both}


class HandWritten(nn.Module):
    """A forward that writes in place, reads rows by number and goes another way in some frames."""

    def __init__(self) -> None:
        super().__init__()
        self.first = SubMConv3d(CHANNELS, 8, 3)
        self.second = SubMConv3d(8, 8, 3)
        self.third = SubMConv3d(8, 8, 3, bias=False)
        self.way = 0

    def forward(self, x: SparseConvTensor) -> Tensor:
        self.way += 1
        x = self.first(x)
        features = x.features
        features[:5, 2:4] = 1.0
        view = features[:, :2]
        view *= 2
        x = x.replace_feature(features.sigmoid())
        if self.way % 3:
            x = self.second(x)
        x = x.replace_feature(x.features - x.features.mean(0))
        return self.third(self.third(x)).features.argmax(1)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, SparseConvTensor):
        yield from (value.features, value.indices, torch.tensor(value.spatial_shape), torch.tensor(value.batch_size))
    elif isinstance(value, dict):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)
    else:
        yield value


def _check(model: nn.Module, frames: Iterator[SparseConvTensor], tolerance: float = 0.0, **options: Any) -> list[float]:
    """Stream the frames and compare each output, row by row; the shares of the work."""
    whole, stream, state, shares = pointcloud.accelerate(model, **options), Stream(model, **options), None, []
    for x in frames:
        with torch.no_grad():
            expected = list(_tensors(whole(SparseConvTensor(x.features, x.indices, x.spatial_shape, x.batch_size))))
        output, state = stream.step(x, state)
        found = list(_tensors(output))
        assert len(found) == len(expected)
        for a, b in zip(found, expected):
            assert type(a) is Tensor and a.shape == b.shape and a.dtype == b.dtype
            if tolerance and a.is_floating_point():
                assert (a - b).abs().max() <= tolerance * b.abs().max()
            else:
                assert torch.equal(a, b)
        assert stream.last_work is not None
        shares.append(stream.last_work.share)
    assert state is not None and state.frames == len(shares)
    return shares


def test_convolutions_are_bit_equal_to_the_whole_network() -> None:
    torch.manual_seed(0)
    layers = [_conv(SubMConv3d, CHANNELS, 8, 3, bias=False), _conv(SubMConv3d, 8, 8, 3, bias=False)]
    layers += [_conv(SparseConv3d, 8, 16, 3, stride=2, padding=1, indice_key="down"), _conv(SubMConv3d, 16, 16, 3)]
    layers += [SparseInverseConv3d(16, 4, 3, "down")]
    shares = _check(settled(SparseSequential(*layers)), changing(12))
    assert shares[0] == 1 and shares[3] == 0 and all(0 < share < 1 for share in (*shares[1:3], *shares[4:]))


def test_every_kind_of_layer() -> None:
    torch.manual_seed(0)
    _check(settled(Everything()), changing(10, seed=1), tolerance=1e-5)


def test_hand_written_forward() -> None:
    torch.manual_seed(0)
    _check(HandWritten().eval(), changing(9, seed=2))


def test_u_net_over_frames_of_a_sensor() -> None:
    torch.manual_seed(0)
    model = settled(MinkUNet(1, 5, width=0.25, depth=14))
    shares = _check(model, sensor_frames(12), tolerance=1e-5)
    assert max(shares[1:]) < 1


@pytest.mark.slow
def test_a_thousand_frames_of_a_sensor() -> None:
    torch.manual_seed(0)
    model = settled(SparseSequential(*(_conv(SubMConv3d, c, 8, 3) for c in (1, 8, 8)), _conv(SparseConv3d, 8, 8, 2, 2)))
    shares = _check(model, sensor_frames(1000, voxel_size=1.0))
    assert sum(share < 1 for share in shares) > 950  # few have more new voxels than pay


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp64"])
def test_dtypes(dtype: str) -> None:
    torch.manual_seed(0)
    model = SparseSequential(SubMConv3d(CHANNELS, 8, 3), nn.ReLU(), SparseConv3d(8, 8, 2, 2)).eval()
    if dtype == "fp64":
        _check(model.double(), (x.replace_feature(x.features.double()) for x in changing(5)), tolerance=1e-12)
    else:
        _check(model, changing(5), dtype=dtype)


@pytest.mark.parametrize("renewed", [network.RENEWED, 2.0])
def test_clouds_that_become_empty_and_full(renewed: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "RENEWED", renewed)
    model = settled(SparseSequential(_conv(SubMConv3d, CHANNELS, 8, 3), _conv(SparseConv3d, 8, 8, 2, 2)))
    full, other = list(changing(2, voxels=900))
    none = SparseConvTensor(full.features[:0], full.indices[:0], GRID, 2)
    _check(model, iter([none, full, none, none, other, full]))


def test_threshold_keeps_features_within_it() -> None:
    model = SparseSequential(SubMConv3d(1, 4, 3), nn.ReLU(), SubMConv3d(4, 4, 3)).eval()
    first = next(sensor_frames(1))
    stream, state = Stream(model, threshold=0.1), None
    kept = first.features
    for frame in range(8):
        drifted = first.features + 0.03 * frame
        kept = torch.where((drifted - kept).abs() > 0.1, drifted, kept)
        output, state = stream.step(first.replace_feature(drifted), state)
        with torch.no_grad():
            expected = pointcloud.accelerate(model)(first.replace_feature(kept)).features
        assert torch.equal(output.features, expected)
        assert stream.last_work is not None and stream.last_work.share == (1 if frame in (0, 4) else 0)


def test_threshold_of_each_channel() -> None:
    model, x = SubMConv3d(CHANNELS, 4, 3).eval(), next(changing(1))
    stream = Stream(model, threshold=[0.5, 0.0, 0.5])
    _, state = stream.step(x)
    _, state = stream.step(x.replace_feature(x.features + torch.tensor([0.4, 0.0, 0.4])), state)
    assert stream.last_work is not None and stream.last_work.changed == 0
    _, state = stream.step(x.replace_feature(x.features + torch.tensor([0.0, 0.1, 0.0])), state)
    assert stream.last_work.changed == len(x.features)
    with pytest.raises(ValueError, match="threshold must be one number, or one for each of 1 features"):
        stream.step(next(sensor_frames(1)))


def test_layer_threshold_saves_work_at_a_bounded_error() -> None:
    torch.manual_seed(0)
    model = settled(MinkUNet(1, 5, width=0.25, depth=14))
    shares, errors = {}, {}
    for threshold in (0.0, 0.05):
        stream, state, shares[threshold], errors[threshold] = Stream(model, layer_threshold=threshold), None, 0.0, 0.0
        for x in sensor_frames(8):
            output, state = stream.step(x, state)
            expected = pointcloud.accelerate(model)(SparseConvTensor(x.features, x.indices, x.spatial_shape, 1))
            assert stream.last_work is not None
            shares[threshold] += stream.last_work.share
            errors[threshold] = max(errors[threshold], float((output - expected).norm() / expected.norm()))
    assert shares[0.05] < shares[0.0]
    assert errors[0.0] < 1e-5 < errors[0.05] < 0.1


def test_refresh_computes_everything_again() -> None:
    model = SubMConv3d(1, 4, 3).eval()
    first = next(sensor_frames(1))
    stream, state = Stream(model, threshold=1e6, refresh=3), None
    for frame in range(7):
        x = first.replace_feature(first.features + frame)
        output, state = stream.step(x, state)
        with torch.no_grad():
            latest = model(first.replace_feature(first.features + frame // 3 * 3)).features
        assert torch.allclose(output.features, latest, atol=1e-5)
        assert stream.last_work is not None and stream.last_work.mode == ("changed" if frame % 3 else "whole")


def test_work_is_json() -> None:
    stream, state = Stream(SubMConv3d(CHANNELS, 4, 3).eval()), None
    for x in changing(2):
        _, state = stream.step(x, state)
    assert stream.last_work is not None
    told = json.loads(json.dumps(stream.last_work.as_dict()))
    assert told["frame"] == 1 and told["mode"] == "changed" and 0 < told["share"] < 1
    ((computed, rows),) = told["layers"].values()
    assert told["input_share"] * rows <= computed < rows == told["voxels"]
    assert 0 < told["appeared"] + told["changed"] < told["voxels"]


def test_output_outlives_the_stream() -> None:
    model = SparseSequential(SubMConv3d(CHANNELS, 8, 3), SparseConv3d(8, 8, 2, 2)).eval()
    stream, state, outputs = Stream(model), None, []
    for x in changing(3):
        output, state = stream.step(x, state)
        outputs.append((output, output.features.clone(), output.indices.clone()))
    for output, features, indices in outputs:
        assert torch.equal(output.features, features) and torch.equal(output.indices, indices)
    after = SubMConv3d(8, 2, 3)
    again = SparseConvTensor(outputs[0][1], outputs[0][2], outputs[0][0].spatial_shape, 2)
    assert torch.equal(after(outputs[0][0]).features, after(again).features)
    x = next(changing(1))
    stream.step(x)
    assert not hasattr(x.indices, "followed")


def test_errors() -> None:
    torch.manual_seed(0)
    model = settled(SparseSequential(SubMConv3d(CHANNELS, 4, 3, bias=False), nn.BatchNorm1d(4)))
    stream, (first, second) = Stream(model), list(changing(2))
    _, state = stream.step(first)
    cases = {
        "batch_size of the frames before, 2, got 3": SparseConvTensor(second.features, second.indices, GRID, 3),
        r"spatial_shape of the frames before, \[20, 24, 16\], got \[20, 24, 17\]": SparseConvTensor(
            second.features, second.indices, [20, 24, 17], 2
        ),
        "number of features of the frames before, 3, got 1": second.replace_feature(second.features[:, :1]),
        "dtype of the frames before, torch.float32, got torch.float64": second.replace_feature(
            second.features.double()
        ),
        "unique": SparseConvTensor(second.features[:2], second.indices[:1].expand(2, -1), GRID, 2),
        "x must have floating-point features": second.replace_feature(second.features.int()),
    }
    for message, x in cases.items():
        with pytest.raises(ValueError, match=message):
            stream.step(x, state)
    with pytest.raises(TypeError, match="x must be a SparseConvTensor, got Tensor"):
        stream.step(torch.zeros(1), state)  # type: ignore[arg-type]
    _, after = stream.step(second, state)
    with pytest.raises(ValueError, match="state is used up"):
        stream.step(second, state)
    with pytest.raises(ValueError, match="state is of another Stream"):
        Stream(model).step(second, after)
    model.train()
    with pytest.raises(ValueError, match="training mode"):
        stream.step(second, after)
    model.eval()
    for edit in (lambda: model[0].weight.data.add_(1), lambda: model[1].running_mean.add_(1)):  # type: ignore[operator, union-attr]
        edit()
        with pytest.raises(ValueError, match="model was changed since this Stream was made"):
            stream.step(second, after)
        stream = Stream(model)
        _, after = stream.step(first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": -1.0}, "threshold must be a number from 0 on, got -1.0"),
        ({"threshold": [0.0, float("nan")]}, "threshold must be"),
        ({"layer_threshold": float("inf")}, "layer_threshold must be"),
        ({"refresh": 0}, "refresh must be None or a number of frames of at least 1, got 0"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Stream(SubMConv3d(1, 1, 3).eval(), **options)


def test_models_are_checked() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got int"):
        Stream(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="training mode"):
        Stream(SubMConv3d(1, 1, 3))
    with pytest.raises(ValueError, match="model must be on the CPU"):
        Stream(SubMConv3d(1, 1, 3, device="meta").eval())
    with pytest.raises(ValueError, match="accelerated"):
        Stream(pointcloud.accelerate(SubMConv3d(1, 1, 3).eval()))
