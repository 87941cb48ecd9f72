"""Checkpoints in exactly the published layouts: the same logits as the project's own network, and back key by key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.video.checkpoints.published import (
    MITMobileNetV2,
    MMBasic,
    MMMobileNetV2,
    MMResNet,
    OnlineMobileNetV2,
    T,
    TimmMobileNetV2,
    randomized,
)
from video.checkpoints import convert, load_checkpoint
from video.models import TSM, create

State = dict[str, Tensor]
MIT_NAME = "TSM_kinetics_RGB_resnet50_shift8_blockres_avg_segment{}_e50.pth"
MM_NAME = "tsm_imagenet-pretrained-r50_8xb16-1x1x{}-50e_kinetics400-rgb_20220831-{}.pth"


def same(a: State, b: State) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


def clips() -> Tensor:
    return torch.randn(2 * T, 3, 64, 64)


PUBLISHED: dict[str, tuple[Callable[[], nn.Module], str, int, str]] = {
    "mmaction2 R50": (lambda: MMResNet((3, 4, 6, 3)), "mmaction2", 16, "blockres"),
    "mmaction2 R101": (lambda: MMResNet((3, 4, 23, 3)), "mmaction2", 18, "blockres"),
    "mmaction2 R18": (lambda: MMResNet((2, 2, 2, 2), width=16, block=MMBasic), "mmaction2", 8, "blockres"),
    "mmaction2 R50 block": (lambda: MMResNet((3, 4, 6, 3), place="block"), "mmaction2", 16, "block"),
    "mmaction2 MobileNetV2": (MMMobileNetV2, "mmaction2", 10, "blockres"),
    "mit MobileNetV2": (MITMobileNetV2, "mit", 10, "blockres"),
}


@pytest.mark.parametrize("name", PUBLISHED)
@torch.no_grad()
def test_same_logits_and_back(name: str) -> None:
    build, layout, n_shifts, place = PUBLISHED[name]
    theirs = randomized(build())
    state = theirs.state_dict()
    model = load_checkpoint({"state_dict": state, "epoch": 50, "arch": "x"}, num_segments=T)
    assert not model.training and model.place == place and model.num_classes == 5
    assert model.insertion is not None and len(model.insertion.places) == n_shifts
    x = clips()
    torch.testing.assert_close(model(x), theirs(x), rtol=1e-4, atol=1e-4)
    same(convert(model.state_dict(), to=layout), state)
    same(convert(state, to=layout), state)


def mit_resnet(depth: int, classes: int = 400) -> State:
    """The keys of mit-han-lab's ResNet checkpoints, written out by rule."""
    with torch.device("meta"):
        plain = create(f"resnet{depth}", num_classes=classes).state_dict()
    deep = depth > 50
    state = {}
    for key, value in plain.items():
        parts = key.split(".")
        if parts[0] == "fc":
            key = f"new_fc.{parts[1]}"
        else:
            if parts[2:3] == ["conv1"] and not (deep and int(parts[1]) % 2):
                parts.insert(3, "net")
            key = "base_model." + ".".join(parts)
        shape = value.shape
        state[f"module.{key}"] = (
            torch.zeros((), dtype=torch.int64) if value.dtype == torch.int64 else torch.randn(shape)
        )
    return state


@pytest.mark.parametrize(("depth", "entries", "shifts"), [(50, 320, 16), (101, 626, 18)])
def test_mit_resnet_of_full_size(tmp_path: Path, depth: int, entries: int, shifts: int) -> None:
    state = mit_resnet(depth)
    assert len(state) == entries and sum(".net." in key for key in state) == shifts
    assert "module.base_model.layer1.0.conv1.net.weight" in state
    model = load_checkpoint({"state_dict": state}, num_segments=8)
    assert model.insertion is not None and len(model.insertion.places) == shifts
    same(convert(model.state_dict(), to="mit"), state)
    same(convert(convert(state, to="mmaction2"), to="mit"), state)


@torch.no_grad()
def test_the_live_network_of_the_gesture_demonstration(tmp_path: Path) -> None:
    theirs = randomized(OnlineMobileNetV2())
    state = theirs.state_dict()
    assert len(state) == 314 and not any(".net." in key for key in state)
    assert {"features.1.conv.0.weight", "features.2.conv.7.bias", "classifier.weight"} <= state.keys()
    torch.save(state, tmp_path / "mobilenetv2_jester_online.pth.tar")
    model = load_checkpoint(tmp_path / "mobilenetv2_jester_online.pth.tar", num_segments=6)
    assert (model.direction, model.num_classes, model.num_segments) == ("past", 27, 6)
    assert model.insertion is not None and len(model.insertion.places) == 10
    x = torch.randn(6, 3, 64, 64)
    torch.testing.assert_close(model.frame_logits(x), theirs(x), rtol=1e-4, atol=1e-4)
    same(convert(state, to="mit-online"), state)
    same(convert(model.state_dict(), to="mit-online"), state)
    same(convert(state, to="trisparse"), model.state_dict())
    with pytest.raises(ValueError, match=r"a live network \(past frames only\) cannot be loaded with direction='both'"):
        load_checkpoint(state, direction="both")
    for to in ("mit", "mmaction2"):
        with pytest.raises(ValueError, match="live networks take channels from the frame before"):
            convert(state, to=to)
    with pytest.raises(ValueError, match="live networks take channels from the frame before"):
        convert(MITMobileNetV2().state_dict(), to="mit-online")


@pytest.mark.parametrize("direction", ["past", "both"])
@torch.no_grad()
def test_2d_networks(direction: str) -> None:
    network = randomized(create("resnet50", num_classes=7, width=8))
    state = network.state_dict()
    x = clips()
    single = load_checkpoint(state)
    assert not single.shift and single.num_segments == 1
    torch.testing.assert_close(single(x), network(x), rtol=1e-5, atol=1e-5)
    averaged = load_checkpoint(state, num_segments=T)
    torch.testing.assert_close(averaged(x), network(x).reshape(2, T, 7).mean(1), rtol=1e-5, atol=1e-5)
    model = load_checkpoint(state, num_segments=T, shift=True, direction=direction, fold_div=4)
    assert model.insertion is not None and len(model.insertion.places) == 16
    assert (model.direction, model.fold_div) == (direction, 4)
    assert not torch.allclose(model(x), averaged(x), rtol=1e-2)
    same(convert(model.state_dict(), to="torchvision"), state)
    same(convert(model.state_dict(), to="timm"), state)


@torch.no_grad()
def test_2d_mobilenets() -> None:
    ours = randomized(create("mobilenet_v2", num_classes=7, width=0.5))
    x = clips()
    model = load_checkpoint(ours.state_dict())
    torch.testing.assert_close(model(x), ours(x), rtol=1e-5, atol=1e-5)
    same(convert(model.state_dict(), to="torchvision"), ours.state_dict())
    timm = randomized(TimmMobileNetV2())
    model = load_checkpoint(timm.state_dict())
    torch.testing.assert_close(model(x), timm(x), rtol=1e-4, atol=1e-4)
    same(convert(model.state_dict(), to="timm"), timm.state_dict())
    # ImageNet weights in the spelling of the live network are not taken for it.
    flat = convert(create("mobilenet_v2", width=0.5).state_dict(), to="mit-online")
    assert not load_checkpoint(flat).shift


def test_what_old_files_lack_and_half_precision() -> None:
    state = create("resnet18", num_classes=7, width=8).state_dict()
    old = {key: value.half() for key, value in state.items() if not key.endswith("num_batches_tracked")}
    model = load_checkpoint(old)
    assert model.base_model.bn1.num_batches_tracked == 0  # type: ignore[union-attr]
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert torch.equal(model.base_model.conv1.weight, state["conv1.weight"].half().float())  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "arguments",
    [dict(width=24), dict(width=8, layers=(1, 2, 3, 1)), dict(width=32, groups=4, group_width=8), dict(in_channels=10)],
    ids=str,
)
def test_other_resnets(arguments: dict[str, object]) -> None:
    depth = "resnet18" if arguments.get("in_channels") else "resnet50"
    model = TSM(depth, 3, T, backbone_arguments=arguments)
    again = load_checkpoint(model.state_dict(), num_segments=T)
    same(again.state_dict(), model.state_dict())
    assert again.arguments is not None and again.arguments["backbone"] == depth


def test_segments_and_fold_from_the_file_name(tmp_path: Path) -> None:
    state = {"state_dict": TSM("resnet50", 3, 8, backbone_arguments={"width": 8}).state_dict()}
    path = tmp_path / MIT_NAME.format(16)
    torch.save(state, path)
    assert load_checkpoint(path).num_segments == 16
    assert load_checkpoint(path, num_segments=4).num_segments == 4
    path = tmp_path / "TSM_something_RGB_resnet50_shift4_blockres_avg_segment8_e45.pth"
    torch.save(state, path)
    assert load_checkpoint(path).fold_div == 4
    assert load_checkpoint(path, fold_div=8).fold_div == 8
    torch.save(state, tmp_path / "mine.pth")
    with pytest.raises(ValueError, match=r"mine.pth: weights do not hold the number of frames.*give num_segments"):
        load_checkpoint(tmp_path / "mine.pth")


def test_a_tsn_says_so(tmp_path: Path) -> None:
    state = MMResNet((3, 4, 6, 3), place=None).state_dict()
    with pytest.warns(UserWarning, match="no key is shifted: a TSN, whose frames do not see each other"):
        model = load_checkpoint(state)
    assert not model.shift
    assert not load_checkpoint(state, shift=False).shift
    with pytest.raises(ValueError, match=r"shift=True, but its weights are not shifted \(no key has '.net.'\): a TSN"):
        load_checkpoint(state, shift=True)
    torch.save(state, tmp_path / MIT_NAME.format(8))
    with pytest.raises(ValueError, match="its name says that it is shifted, but none of its keys is"):
        load_checkpoint(tmp_path / MIT_NAME.format(8))
    torch.save(MMResNet((3, 4, 6, 3)).state_dict(), tmp_path / "TSM_kinetics_RGB_resnet50_avg_segment5_e50.pth")
    with pytest.raises(ValueError, match="its name says that it is not shifted, but its keys are"):
        load_checkpoint(tmp_path / "TSM_kinetics_RGB_resnet50_avg_segment5_e50.pth")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(direction="past"), "an offline network.*cannot run live.*trained to come from the next one"),
        (dict(place="block"), "place is 'block' by the argument, but 'blockres' by its keys"),
        (dict(num_classes=6), "num_classes=6, but its classifier has 5 rows"),
        (dict(shift=False), "shift=False, but its weights are shifted"),
        (dict(fold_div=1), "fold_div must be at least 2"),
        (dict(fold_div=0), "fold_div must be at least 2"),
        (dict(sha256="0" * 8), "sha256 must be left out where source is no file"),
    ],
    ids=str,
)
def test_contradictions(arguments: dict[str, object], message: str) -> None:
    state = MMResNet((3, 4, 6, 3)).state_dict()
    with pytest.raises(ValueError, match=message):
        load_checkpoint(state, **{"num_segments": T, **arguments})  # type: ignore[arg-type]


def without(state: State, *parts: str) -> State:
    return {key: value for key, value in state.items() if not any(part in key for part in parts)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: {k.replace("layer3.2.conv1.conv.net", "layer3.2.conv1.conv"): v for k, v in s.items()},
            "15 of its modules are shifted, this network has 16 shifts: layer3.2.conv1 differ",
        ),
        (lambda s: without(s, "layer2.3.conv2"), "lacks 5 tensors, 'base_model.layer2.3.bn2.bias' first"),
        (lambda s: without(s, "layer2.1."), r"lacks blocks of layer2, it has \[0, 2, 3\]"),
        (lambda s: without(s, "layer4."), r"lacks blocks of layer4, it has \[\]"),
        (lambda s: without(s, "cls_head"), "lacks a classifier"),
        (lambda s: without(s, "backbone.conv1.conv"), "lacks 'base_model.conv1.weight'"),
        (lambda s: {**s, "backbone.layer1.0.conv1.extra": torch.zeros(1)}, "'backbone.layer1.0.conv1.extra' does not"),
        (lambda s: {**s, "cls_head.fc_cls.bias": torch.zeros(4)}, r"new_fc.bias must be \[5\], got \[4\]"),
        (
            lambda s: {**s, "backbone.layer2.0.non_local_block.g.weight": torch.zeros(1)},
            "non-local blocks are not supported: 1 keys, 'backbone.layer2.0.non_local_block.g.weight' first",
        ),
        (lambda s: {"stage0.conv.weight": torch.zeros(1)}, "got 1 keys like stage0.conv.weight"),
        (lambda s: {}, "must hold a state dict, got dict"),
        (lambda s: {**s, "epoch": 3}, "must hold tensors, got int for 'epoch'"),
        (lambda s: {**s, "backbone.conv1.conv.weight": torch.zeros(())}, r"must be \[out, in, kernel, .*, got \[\]"),
        (
            lambda s: {**s, "backbone.conv1.conv.weight": s["backbone.conv1.conv.weight"].to(torch.int8)},
            r"conv1.weight must be floating-point, got int8 \[",
        ),
        (
            lambda s: {**s, "cls_head.fc_cls.weight": torch.zeros(1).expand(10**9, 512)},
            r"claims float32 \[1000000000, 512\], more than is stored",
        ),
    ],
    ids=[
        "one shift less", "tensors", "block", "stage", "head", "stem", "unknown", "shape", "non-local", "other network",
        "empty", "number", "scalar", "integers", "expanded",
    ],
)  # fmt: skip
def test_wrong_tensors(change: Callable[[State], State], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_checkpoint(change(MMResNet((3, 4, 6, 3)).state_dict()), num_segments=T)


def test_non_local_keys_of_mit() -> None:
    state = {"module.base_model.layer2.0.nl.g.0.weight": torch.zeros(1)}
    with pytest.raises(
        ValueError, match="non-local blocks are not supported: 1 keys, 'base_model.layer2.0.nl.g.0.weight'"
    ):
        load_checkpoint(state)


def test_wrong_layouts() -> None:
    state = create("resnet18", width=8).state_dict()
    with pytest.raises(ValueError, match="to must be one of trisparse, mit, mit-online, .*, got 'caffe'"):
        convert(state, to="caffe")
    with pytest.raises(ValueError, match="a layout of MobileNetV2 only"):
        convert(state, to="mit-online")


def test_the_state_is_not_shared() -> None:
    state = create("resnet18", width=8).state_dict()
    model = load_checkpoint(state)
    state["conv1.weight"].zero_()
    assert model.base_model.conv1.weight.abs().max() > 0  # type: ignore[union-attr, operator]
