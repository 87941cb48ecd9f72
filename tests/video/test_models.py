"""The 2D networks are the published ones: keys, sizes, and results of another implementation with the same weights."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from video import models
from video.models import MobileNetV2, ProxylessNAS, ResNet
from video.models.proxyless import arguments_of


def randomize(model: nn.Module) -> nn.Module:
    """Weights and running statistics that make every layer count."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
    return model.eval()


# Parameters as torchvision documents them, and entries of the state dict.
@pytest.mark.parametrize(
    ("name", "parameters", "entries"),
    [
        ("resnet18", 11_689_512, 122),
        ("resnet34", 21_797_672, 218),
        ("resnet50", 25_557_032, 320),
        ("resnet101", 44_549_160, 626),
        ("resnet152", 60_192_808, 932),
        ("resnext50_32x4d", 25_028_904, 320),
        ("mobilenet_v2", 3_504_872, 314),
    ],
)
def test_sizes(name: str, parameters: int, entries: int) -> None:
    with torch.device("meta"):
        model = models.create(name)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(model.state_dict()) == entries


def test_keys() -> None:
    with torch.device("meta"):
        resnet = models.create("resnet50").state_dict()
        mobilenet = models.create("mobilenet_v2").state_dict()
    assert resnet["conv1.weight"].shape == (64, 3, 7, 7)
    assert resnet["layer1.0.conv1.weight"].shape == (64, 64, 1, 1)
    assert resnet["layer1.0.downsample.0.weight"].shape == (256, 64, 1, 1)
    assert resnet["layer1.0.downsample.1.running_mean"].shape == (256,)
    assert resnet["layer4.2.conv3.weight"].shape == (2048, 512, 1, 1)
    assert resnet["fc.weight"].shape == (1000, 2048)
    assert "layer1.1.downsample.0.weight" not in resnet
    assert mobilenet["features.0.0.weight"].shape == (32, 3, 3, 3)
    assert mobilenet["features.1.conv.0.0.weight"].shape == (32, 1, 3, 3)
    assert mobilenet["features.1.conv.1.weight"].shape == (16, 32, 1, 1)
    assert mobilenet["features.1.conv.2.running_var"].shape == (16,)
    assert mobilenet["features.2.conv.0.0.weight"].shape == (96, 16, 1, 1)
    assert mobilenet["features.2.conv.1.0.weight"].shape == (96, 1, 3, 3)
    assert mobilenet["features.2.conv.3.bias"].shape == (24,)
    assert mobilenet["features.18.0.weight"].shape == (1280, 320, 1, 1)
    assert mobilenet["classifier.1.weight"].shape == (1000, 1280)


@pytest.mark.parametrize(
    ("width", "last", "first", "second"), [(0.35, 1280, 16, 8), (0.5, 1280, 16, 8), (1.4, 1792, 48, 24)]
)
def test_mobilenet_v2_width(width: float, last: int, first: int, second: int) -> None:
    state = MobileNetV2(width=width, num_classes=2).state_dict()
    assert state["features.0.0.weight"].shape[0] == first  # 11.2 becomes 16: 8 is more than 10 % less
    assert state["classifier.1.weight"].shape == (2, last)
    assert state["features.1.conv.1.weight"].shape[0] == second


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_resnet_agrees_with_transformers(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    layers, depth = ((2, 1, 2, 1), 18 if kind == "basic" else 50)
    sizes = [w * (1 if kind == "basic" else 4) for w in (8, 16, 32, 64)]
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=sizes, depths=list(layers), layer_type=kind, num_labels=7
    )
    other = transformers.ResNetForImageClassification(config)
    ours = randomize(ResNet(depth, num_classes=7, width=8, layers=layers))

    def rename(key: str) -> str:
        key = re.sub(r"^conv1\.", "resnet.embedder.embedder.convolution.", key)
        key = re.sub(r"^bn1\.", "resnet.embedder.embedder.normalization.", key)
        key = re.sub(r"^fc\.", "classifier.1.", key)
        if match := re.match(r"layer(\d)\.(\d)\.(.*)", key):
            rest = re.sub(r"^downsample\.0", "shortcut.convolution", match[3])
            rest = re.sub(r"^downsample\.1", "shortcut.normalization", rest)
            rest = re.sub(r"^conv(\d)", lambda m: f"layer.{int(m[1]) - 1}.convolution", rest)
            rest = re.sub(r"^bn(\d)", lambda m: f"layer.{int(m[1]) - 1}.normalization", rest)
            return f"resnet.encoder.stages.{int(match[1]) - 1}.layers.{match[2]}.{rest}"
        return key

    other.load_state_dict({rename(key): value for key, value in ours.state_dict().items()})
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), other.eval()(x).logits, rtol=1e-5, atol=1e-5)


def test_mobilenet_v2_agrees_with_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.MobileNetV2Config(
        depth_multiplier=0.5, num_labels=7, tf_padding=False, layer_norm_eps=1e-5, first_layer_is_expansion=True
    )
    other = transformers.MobileNetV2ForImageClassification(config)
    ours = randomize(MobileNetV2(7, width=0.5))
    # Convolutions and norms come in the order in which they run, in both.
    mine, theirs = ours.state_dict(), other.state_dict()
    assert [tuple(v.shape) for v in mine.values()] == [tuple(v.shape) for v in theirs.values()]
    other.load_state_dict(dict(zip(theirs, mine.values())))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), other.eval()(x).logits, rtol=1e-5, atol=1e-5)


def test_same_seed_same_weights() -> None:
    def weights() -> dict[str, Tensor]:
        torch.manual_seed(7)
        return models.create("resnet18", width=8).state_dict()

    first, second = weights(), weights()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_proxyless_arguments_from_weights() -> None:
    blocks = [[3, 16, 8], *([[5, 24, 16]] + [[7, 32, 16]] * 3) * 5, [3, 32, 24]]
    blocks[4] = None  # type: ignore[call-overload]
    arguments: dict[str, Any] = dict(blocks=blocks, stem=16, features=40, num_classes=3, in_channels=2)
    model = ProxylessNAS(**arguments)
    assert arguments_of(model.state_dict()) == arguments
    assert model(torch.randn(2, 2, 64, 64)).shape == (2, 3)
    with pytest.raises(ValueError, match="not the state dict of a ProxylessNAS network: KeyError"):
        arguments_of({})
    with pytest.raises(ValueError, match=r"blocks\[5\] must not be None: it has stride 2"):
        ProxylessNAS([None if i == 5 else block for i, block in enumerate(blocks)])
    with pytest.raises(ValueError, match="blocks must describe 22 blocks, got 1"):
        ProxylessNAS(blocks[:1])
    with pytest.raises(ValueError, match=r"blocks\[0\] must be \(odd kernel, inner channels, out channels\)"):
        ProxylessNAS([[4, 16, 8], *blocks[1:]])


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet51", {}, r"got 'resnet51'; did you mean 'resnet50'"),
        ("mobilenetv2", {}, "did you mean 'mobilenet_v2'"),
        ("xyz", {}, "name must be one of resnet18, .*, got 'xyz'$"),
        ("resnet18", {"layer": 3}, "resnet18: .*unexpected keyword argument 'layer'"),
        ("resnet18", {"groups": 2}, "groups and group_width need bottleneck blocks"),
        ("resnet50", {"layers": (1, 2, 3)}, "layers must be the blocks of four stages"),
        ("resnet50", {"width": 0}, "must be at least 1"),
        ("mobilenet_v2", {"width": float("nan")}, "width above 0, got num_classes 1000, in_channels 3, width nan"),
    ],
)
def test_wrong_arguments(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models.create(name, **arguments)


def test_wrong_depth() -> None:
    with pytest.raises(ValueError, match="depth must be one of 18, 34, 50, 101, 152, got 20"):
        ResNet(20)
