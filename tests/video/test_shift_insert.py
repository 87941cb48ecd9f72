"""The shift goes where the published rule puts it, in any 2D network with residual blocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.video.two_d_networks import (
    ConvNeXtBlock,
    Functional,
    InOneForward,
    Parallel,
    PreActivation,
    Repeated,
    TimmResNet,
)
from video.models import ProxylessNAS, create
from video.pretrained import load_pretrained
from video.shift import TemporalShift
from video.shift.insert import add_temporal_shift

T = 4


def shifted(x: Tensor, direction: str) -> Tensor:
    """The definition, restated: [N * T, C, H, W]."""
    clips = x.reshape(-1, T, *x.shape[1:])
    f, out = x.shape[1] // 8, clips.clone()
    if direction == "both":
        out[:, :, : 2 * f] = 0
        out[:, :-1, :f] = clips[:, 1:, :f]
        out[:, 1:, f : 2 * f] = clips[:, :-1, f : 2 * f]
    else:
        out[:, :, :f] = 0
        out[:, 1:, :f] = clips[:, :-1, :f]
    return out.reshape(x.shape)


def hf_resnet(layer_type: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 32, 64], depths=[2, 2, 3, 1], layer_type=layer_type, num_labels=3
    )
    return transformers.ResNetForImageClassification(config)


def hf_mobilenet_v2() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.MobileNetV2Config(depth_multiplier=0.5, image_size=64, num_labels=3)
    return transformers.MobileNetV2ForImageClassification(config)


def proxyless() -> ProxylessNAS:
    blocks = [[3, 16, 8], *([[5, 24, 16]] + [[3, 32, 16]] * 3) * 5, [3, 32, 16]]
    blocks[2] = None  # only a shortcut
    return ProxylessNAS(blocks, stem=16, features=32, num_classes=5)  # type: ignore[arg-type]


RESNET18 = [f"layer{i}.{j}.conv1" for i in (1, 2, 3, 4) for j in (0, 1)]
HF_STAGES = [f"resnet.encoder.stages.{i}.layers.{j}" for i, n in enumerate((2, 2, 3, 1)) for j in range(n)]
NETWORKS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "resnet18": (lambda: create("resnet18", width=16), RESNET18),
    "resnext": (
        lambda: create("resnext50_32x4d", width=32, layers=(1, 2, 1, 1), groups=4),
        ["layer1.0.conv1", "layer2.0.conv1", "layer2.1.conv1", "layer3.0.conv1", "layer4.0.conv1"],
    ),
    "mobilenet_v2": (
        lambda: create("mobilenet_v2", width=0.5),
        [f"features.{i}.conv.0.0" for i in (3, 5, 6, 8, 9, 10, 12, 13, 15, 16)],
    ),
    "timm": (TimmResNet, [f"layer{i}.{j}.conv1" for i in (1, 2) for j in (0, 1)]),
    "timm grouped": (lambda: TimmResNet(groups=4), [f"layer{i}.{j}.conv1" for i in (1, 2) for j in (0, 1)]),
    "transformers basic": (lambda: hf_resnet("basic"), [f"{name}.layer.0.convolution" for name in HF_STAGES]),
    "transformers bottleneck": (
        lambda: hf_resnet("bottleneck"),
        [f"{name}.layer.0.convolution" for name in HF_STAGES],
    ),
    "transformers mobilenet_v2": (
        hf_mobilenet_v2,
        # its layers count from the one after features.1
        [f"mobilenet_v2.layer.{i - 2}.expand_1x1.convolution" for i in (3, 5, 6, 8, 9, 10, 12, 13, 15, 16)],
    ),
    "proxylessnas": (
        proxyless,
        [
            f"blocks.{i}.mobile_inverted_conv.inverted_bottleneck.conv"
            for i in range(3, 22)
            if i not in (5, 9, 17)  # strided
        ],
    ),
    "pre-activation": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), PreActivation(8, 8), PreActivation(8, 16)),
        ["1.conv1", "2.conv1"],
    ),
    "convnext": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 4, 4), ConvNeXtBlock(8), ConvNeXtBlock(8)),
        ["1.dwconv", "2.dwconv"],
    ),
    "in one forward": (InOneForward, ["a1", "b1"]),
}


def logits(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        out = model(x)
    return out if isinstance(out, Tensor) else out.logits


@pytest.mark.parametrize("direction", ["both", "past"])
@pytest.mark.parametrize("name", NETWORKS)
def test_places_and_meaning(name: str, direction: str) -> None:
    build, places = NETWORKS[name]
    model = build().eval()
    x = torch.randn(2 * T, 3, 64, 64)
    hooks = [
        model.get_submodule(place).register_forward_pre_hook(lambda _, args: (shifted(args[0], direction),))
        for place in places
    ]
    expected = logits(model, x)
    for hook in hooks:
        hook.remove()
    plain = logits(model, x)
    out = add_temporal_shift(model, T, direction=direction)
    assert out is model
    assert list(model.insertion.places) == places
    torch.testing.assert_close(logits(model, x), expected, rtol=0, atol=0)
    assert not torch.equal(plain, expected)


@pytest.mark.parametrize(
    ("depth", "n", "blocks"), [(18, 8, 8), (34, 16, 16), (50, 16, 16), (101, 18, 33), (152, 26, 50)]
)
def test_published_counts(depth: int, n: int, blocks: int) -> None:
    model = add_temporal_shift(create(f"resnet{depth}", width=8), 8)
    report = model.insertion
    assert (len(report.places), len(report.blocks)) == (n, blocks)
    assert len(report.left_out) == blocks - n
    if depth > 50:
        assert all(int(name.split(".")[1]) % 2 == 0 for name in report.places)
        assert all("every other block" in why for why in report.left_out.values())
    assert str(report).startswith(f"{n} of {blocks} residual blocks shifted")


def test_every_other_block_of_a_deep_transformers_resnet() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[32, 32, 32, 32], depths=[3, 4, 23, 3])
    assert len(add_temporal_shift(transformers.ResNetForImageClassification(config), 8).insertion.places) == 18


def test_whole_blocks() -> None:
    model = create("resnet101", width=8).eval()
    places = [f"layer{i + 1}.{j}" for i, n in enumerate((3, 4, 23, 3)) for j in range(n)]
    x = torch.randn(T, 3, 32, 32)
    for place in places:
        model.get_submodule(place).register_forward_pre_hook(lambda _, args: (shifted(args[0], "both"),))
    expected = logits(model, x)
    for place in places:
        model.get_submodule(place)._forward_pre_hooks.clear()
    add_temporal_shift(model, T, place="block")
    assert list(model.insertion.places) == places
    assert "layer1.0.net.conv1.weight" in model.state_dict()
    torch.testing.assert_close(logits(model, x), expected, rtol=0, atol=0)


def test_no_expansion_is_left_out_where_others_expand() -> None:
    blocks = [[3, 16, 8], *([[5, 24, 16]] + [[3, 32, 16]] * 3) * 5, [3, 32, 16]]
    blocks[3] = [3, 16, 16]  # depthwise first
    report = add_temporal_shift(ProxylessNAS(blocks, stem=16, features=32), T).insertion
    assert report.left_out == {"blocks.3": "it begins with a depthwise convolution (no expansion)"}


def test_too_few_channels_are_left_out() -> None:
    report = add_temporal_shift(TimmResNet(), T, fold_div=32).insertion
    assert report.places == ("layer2.1.conv1",)
    assert report.left_out["layer1.0"] == "16 channels, less than fold_div=32"


def test_the_network_is_otherwise_left_alone() -> None:
    model = create("resnet18", width=8).train()
    model.layer2[0].conv1.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    state = {key: value.clone() for key, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    add_temporal_shift(model, T)
    assert torch.equal(generator, torch.get_rng_state())
    assert {key.replace(".net.", "."): 0 for key in model.state_dict()} == dict.fromkeys(state, 0)
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key.replace(".net.", ".")])
    for name, module in model.named_modules():
        assert module.training == modes[name.replace(".net", "")]
        assert not module._forward_hooks and not module._forward_pre_hooks
    model(torch.randn(T, 3, 32, 32)).sum().backward()


def test_without_memory_and_in_bf16() -> None:
    with torch.device("meta"):
        model = create("resnet50")
    assert len(add_temporal_shift(model, 8).insertion.places) == 16
    assert len(add_temporal_shift(create("resnet18", width=8).bfloat16(), 8).insertion.places) == 8


def test_a_network_of_fixed_size() -> None:
    model = nn.Sequential(PreActivation(3, 8), PreActivation(8, 8), nn.Flatten(), nn.Linear(8 * 28 * 28, 5))
    assert add_temporal_shift(model, T).insertion.places == ("1.conv1",)


def test_the_real_network(data_dir: Path) -> None:
    model = load_pretrained(data_dir / "video" / "proxyless-w0.3-r176_imagenet.pth")
    numbers = (2, 6, 7, 8, 10, 11, 12, 14, 15, 16, 18, 19, 20)
    places = tuple(f"blocks.{i}.mobile_inverted_conv.inverted_bottleneck.conv" for i in numbers)
    assert add_temporal_shift(model, T, direction="past").insertion.places == places


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)), "must have residual blocks"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 2)), "must have residual blocks"),
        (Repeated, "conv runs 2 times for one frame"),
        (Parallel, "begins with 2 parallel convolutions.*both sides of its addition have 1 convolutions"),
        (Functional, r"\(the network\): its first convolution is not a module of its own"),
        (lambda: nn.Linear(4, 4), r"must accept frames \[N, 3, H, W\].*RuntimeError"),
        (lambda: add_temporal_shift(TimmResNet(), T), "must not be shifted yet, but 4 modules are, 'layer1.0.conv1'"),
        (lambda: "resnet50", "model2d must be a torch.nn.Module, got str"),
    ],
    ids=["plain", "linear", "repeated", "parallel", "functional", "no image", "shifted", "no module"],
)
def test_networks_that_cannot_be_shifted(model: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        add_temporal_shift(model(), T)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(num_segments=0), "num_segments must be at least 1"),
        (dict(fold_div=1), "fold_div must be at least 2"),
        (dict(direction="future"), "direction must be one of both, past, got 'future'"),
        (dict(place="conv2"), "place must be one of blockres, block, got 'conv2'"),
    ],
)
def test_wrong_arguments(arguments: dict[str, object], message: str) -> None:
    model = TimmResNet()
    with pytest.raises(ValueError, match=message):
        add_temporal_shift(model, **{"num_segments": T, **arguments})  # type: ignore[arg-type]
    assert not any(isinstance(module, TemporalShift) for module in model.modules())


def test_whole_blocks_that_are_no_modules() -> None:
    with pytest.raises(ValueError, match=r"#0: it is not a module of its own; #1: it is not"):
        add_temporal_shift(InOneForward(), T, place="block")
