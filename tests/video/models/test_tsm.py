"""TSM: the clip's logits are the mean of its frames', and frames see each other through the shifts alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.video.two_d_networks import TimmResNet
from video.models import TSM

T = 4


def tiny(**arguments: Any) -> TSM:
    defaults: dict[str, Any] = dict(num_classes=5, num_segments=T, backbone_arguments={"width": 16})
    return TSM("resnet18", **{**defaults, **arguments}).eval()


def spread(model: TSM) -> TSM:
    """With a head of which random weights of the network are seen."""
    nn.init.normal_(model.new_fc.weight)
    return model


@torch.no_grad()
def test_mean_over_the_clip() -> None:
    model = spread(tiny())
    x = torch.randn(3, T, 3, 32, 32)
    frames = model.frame_logits(x.flatten(0, 1))
    assert frames.shape == (3 * T, 5)
    expected = torch.stack([frames[i * T : (i + 1) * T].mean(0) for i in range(3)])
    torch.testing.assert_close(model(x), expected)
    assert torch.equal(model(x.flatten(0, 1)), model(x))
    alone = torch.cat([model(clip[None]) for clip in x])
    torch.testing.assert_close(model(x), alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_only_shifts_tell_the_order_of_frames() -> None:
    x = torch.randn(2, T, 3, 32, 32)
    plain, shifted = spread(tiny(shift=False)), spread(tiny())
    assert plain.insertion is None and not plain.shift and shifted.shift
    torch.testing.assert_close(plain(x), plain(x.flip(1)), rtol=1e-4, atol=1e-5)
    assert (shifted(x) - shifted(x.flip(1))).abs().max() > 1e-3
    assert shifted.insertion is not None and len(shifted.insertion.places) == 8
    # The same parameters, but for the names.
    assert {key.replace(".net.", ".") for key in shifted.state_dict()} == set(plain.state_dict())


def test_published_names() -> None:
    with torch.device("meta"):
        state = TSM("resnet50").state_dict()
    assert len(state) == 320
    assert state["new_fc.weight"].shape == (400, 2048)
    assert "base_model.layer3.5.conv1.net.weight" in state and "base_model.conv1.weight" in state
    assert not any(key.startswith("base_model.fc") for key in state)


@torch.no_grad()
def test_frames_of_a_clip_can_be_changed() -> None:
    model = spread(tiny())
    x = torch.randn(1, 2 * T, 3, 32, 32)
    model.num_segments = 2 * T
    other = spread(tiny(num_segments=2 * T))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(x), other(x)) and model.num_segments == 2 * T
    with pytest.raises(ValueError, match="num_segments must be at least 1, got 0"):
        model.num_segments = 0


def test_dropout_before_the_classifier_in_training_only() -> None:
    model = spread(tiny(dropout=0.9))
    x = torch.randn(1, T, 3, 32, 32)
    assert torch.equal(model(x), model(x))
    model.base_model.fc.train()
    assert not torch.equal(model(x), model(x))


def test_arguments_rebuild_it() -> None:
    model = tiny(direction="past", fold_div=4, place="block", dropout=0.25)
    again = TSM(**model.arguments)  # type: ignore[arg-type]
    assert again.arguments == model.arguments
    assert list(again.state_dict()) == list(model.state_dict())
    assert again.insertion == model.insertion


@torch.no_grad()
def test_any_network_can_be_the_backbone() -> None:
    network = TimmResNet().eval()
    model = TSM(network, num_classes=3, num_segments=T, dropout=0.0).eval()
    assert model.base_model is network and model.arguments is None
    assert isinstance(network.fc, nn.Dropout)
    assert model(torch.randn(2, T, 3, 32, 32)).shape == (2, 3)


@torch.no_grad()
@pytest.mark.parametrize("name", ["ResNet", "MobileNetV2"])
def test_transformers_backbones(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    sizes: dict[str, Any] = {
        "ResNet": dict(embedding_size=16, hidden_sizes=[16, 32, 32, 64], depths=[1, 1, 1, 1], layer_type="basic"),
        "MobileNetV2": dict(depth_multiplier=0.5),
    }
    config = getattr(transformers, f"{name}Config")(num_labels=9, **sizes[name])
    network = getattr(transformers, f"{name}ForImageClassification")(config)
    model = TSM(network, num_classes=3, num_segments=T).eval()
    assert model(torch.randn(2, T, 3, 64, 64)).shape == (2, 3)


@torch.no_grad()
def test_no_clips() -> None:
    assert tiny(shift=False)(torch.empty(0, T, 3, 32, 32)).shape == (0, 5)
    assert tiny()(torch.empty(0, T, 3, 32, 32)).shape == (0, 5)


def test_gradients_reach_every_parameter() -> None:
    model = spread(tiny()).train()
    model(torch.randn(2, T, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("shape", [(2, T + 1, 3, 32, 32), (T + 1, 3, 32, 32), (3, 32, 32)], ids=str)
def test_wrong_frames(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"x must be \[N, 4, C, H, W\] or \[N \* 4, C, H, W\].*got float32"):
        tiny()(torch.zeros(shape))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TSM("resnet51"), "did you mean 'resnet50'"),
        (lambda: TSM("resnet18", num_classes=0), "num_classes must be at least 1, got 0"),
        (lambda: TSM("resnet18", fold_div=1), "fold_div must be at least 2"),
        (lambda: TSM("resnet18", shift=False, direction="future"), "direction must be one of"),
        (lambda: TSM("resnet18", place="conv"), "place must be one of"),
        (lambda: TSM(3), "backbone must be a name or a torch.nn.Module, got int"),  # type: ignore[arg-type]
        (lambda: TSM(TimmResNet(), backbone_arguments={"width": 3}), "backbone_arguments must be left out"),
        (lambda: TSM(nn.Sequential(nn.Conv2d(3, 4, 3))), r"must return logits \[N, classes\].*got float32 \[1, 4"),
        (
            lambda: TSM(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 2, 1), nn.Flatten())),
            "backbone must end in a torch.nn.Linear, got Conv2d",
        ),
    ],
    ids=["name", "classes", "fold", "direction", "place", "type", "arguments", "no logits", "no linear"],
)
def test_wrong_arguments(build: Callable[[], TSM], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
