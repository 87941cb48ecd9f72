"""Files of networks that are not here: converted by what the tensors tell, refused where they do not tell enough."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pointcloud as pc
from pointcloud.checkpoints.read import checkpoint_of
from pointcloud.checkpoints.standalone import convert_standalone, project_of
from tests.pointcloud.checkpoints.test_convert import written_by


def sub(cin: int, cout: int, size: Any = 3, norm: bool = True) -> nn.Module:
    layers: list[nn.Module] = [pc.SubMConv3d(cin, cout, size, bias=not norm)]
    return pc.SparseSequential(*layers, *([nn.BatchNorm1d(cout)] if norm else []), nn.ReLU())


def detector() -> nn.Module:
    """A backbone as OpenPCDet's, a dense part behind it."""
    net = nn.Module()
    net.backbone_3d = pc.SparseSequential(
        sub(4, 16), sub(16, 16), pc.SparseConv3d(16, 32, 3, 2, bias=False), nn.BatchNorm1d(32),
        pc.SparseConv3d(32, 32, (3, 1, 1), (2, 1, 1), bias=False), nn.BatchNorm1d(32), sub(32, 24, 1),
    )  # fmt: skip
    net.backbone_2d = nn.Sequential(nn.Conv2d(16, 16, 3), nn.ConvTranspose2d(16, 8, 2))
    return net


def unet(stem: int = 5) -> nn.Module:
    net = nn.Module()
    net.conv_input = sub(6, 32, stem)
    net.down = pc.SparseSequential(pc.SparseConv3d(32, 40, 2, 2, bias=False), nn.BatchNorm1d(40))
    net.up = pc.SparseInverseConv3d(40, 32, 2, "k", bias=False)
    net.final = pc.SubMConv3d(32, 20, 1)
    return net


def assert_loads(found: dict[str, Tensor], model: nn.Module, again: nn.Module) -> None:
    again.load_state_dict(found)
    for (key, a), b in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), key


@pytest.mark.parametrize("given", [True, False], ids=["given", "found"])
@pytest.mark.parametrize("source", ["spconv", "spconv-2.1", "spconv-2.0", "spconv-1", "torchsparse", "minkowski"])
@pytest.mark.parametrize("build", [detector, unet])
def test_networks_of_others(build: Any, source: str, given: bool) -> None:
    model, again = build(), build()
    state = written_by(source, model)
    ordered = {key: state[key] for key in sorted(state, key=lambda key: _place(key, model))}
    if build is detector and source in ("torchsparse", "minkowski"):
        ordered = {key: value for key, value in ordered.items() if "backbone_3d.4" not in key}  # (3, 1, 1) is no cube
    content = {"model_state": {f"module.{key}": value for key, value in ordered.items()}}
    found = convert_standalone(checkpoint_of(content), source if given else None)
    assert found.source == source or (source == "spconv-2.1" and build is detector and found.source == "spconv")
    if len(ordered) == len(state):
        assert_loads(found.tensors, model, again)
        assert list(found.tensors) == list(model.state_dict()) or source in ("torchsparse", "minkowski")
    else:
        again.load_state_dict(found.tensors, strict=False)
        assert torch.equal(again.backbone_3d[2].weight, model.backbone_3d[2].weight)
        with pytest.raises(
            ValueError, match="backbone_3d.4.kernel has 3 taps, which are no cube: .* takes the network"
        ):
            convert_standalone(checkpoint_of(state), source)


def _place(key: str, model: nn.Module) -> int:
    keys = list(model.state_dict())
    name, _, leaf = key.replace(".bn.", ".").rpartition(".")
    return keys.index(f"{name}.{'weight' if leaf == 'kernel' else leaf}")


def test_biases_and_norms_tell_the_outputs() -> None:
    model = nn.ModuleList([sub(16, 32, norm=False), sub(32, 32, norm=False)])
    for source in ("spconv-1", "spconv-2.0"):
        state = dict(written_by(source, model))
        assert convert_standalone(checkpoint_of(state)).source == source
        without = {key: value for key, value in state.items() if not key.endswith("bias")}
        with pytest.raises(ValueError, match=r"source must be given: .*which of 'spconv-1' \(.*'spconv-2.0' \("):
            convert_standalone(checkpoint_of(without))
        said = {"model_state": without, "version": "pcdet+0.3.0"}
        assert convert_standalone(checkpoint_of(said)).source == "spconv-1"


def test_dense_networks_stay_as_they_are() -> None:
    model = nn.Sequential(nn.Conv3d(16, 32, 3), nn.BatchNorm3d(32), nn.Conv1d(4, 5, 1), nn.Linear(3, 3))
    found = convert_standalone(checkpoint_of({"model": model.state_dict()}))
    assert found.source is None and found.convolutions == 0
    assert all(torch.equal(value, found.tensors[key]) for key, value in model.state_dict().items())
    with pytest.raises(ValueError, match=r"0.weight \[32, 16, 3, 3, 3\] has not the kernel's axes as spconv"):
        convert_standalone(checkpoint_of(model.state_dict()), "spconv")


def test_what_cannot_be_told() -> None:
    even = {"a.kernel": torch.zeros(8, 4, 5), "b.kernel": torch.zeros(27, 5, 5)}
    for content, source, message in (
        (even, None, "do not tell 'torchsparse' from 'minkowski', .* such as 'a.kernel'"),
        ({"a.kernel": torch.zeros(27, 4)}, None, r"a.kernel \[27, 4\] may be of a depthwise convolution"),
        (even, "spconv", "source must be 'torchsparse' or 'minkowski' for weights called 'kernel', got 'spconv'"),
        (even, "ocnn", "weights of ocnn do not tell .*convert_state_dict"),
        ({"a.weight": torch.zeros(3)}, "torchsparse", "are called 'kernel', got none"),
        ({"a.weight": torch.zeros(3)}, "spconv", "no tensor is a weight of a sparse convolution of spconv"),
        ({"a.weight": torch.zeros(5, 3, 3, 3, 4)}, None, "source must be given, one of spconv,.*at several axes"),
        ({"a.weight": torch.zeros(5, 3, 3, 3, 4)}, "spconv-2.1", "does not tell the kernel's axes as spconv-2.1"),
        (even, "torch", "source must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            convert_standalone(checkpoint_of(content), source)
    odd = convert_standalone(checkpoint_of({"b.kernel": torch.zeros(27, 5, 6), "c": torch.zeros(1)}))
    assert {key: tuple(value.shape) for key, value in odd.tensors.items()} == {"b.weight": (6, 3, 3, 3, 5), "c": (1,)}


@pytest.mark.parametrize(
    ("key", "project"),
    [
        ("conv0p1s1.kernel", ("Minkowski Engine", "MinkUNet")), ("stage1.1.net.0.kernel", ("spvnas", "SPVCNN")),
        ("backbone_3d.conv1.0.0.weight", ("OpenPCDet", "detector")), ("conv_input.0.weight", ("Pointcept", "SpUNet")),
        ("backbone.embedding.stem.conv.weight", ("Pointcept", "PTv3")), ("x.weight", ("unknown", "unknown")),
        ("point_features.0.voxel_layers.0.weight", ("PVCNN", "PVCNN")),
    ],
)  # fmt: skip
def test_projects(key: str, project: tuple[str, str]) -> None:
    assert project_of({key: torch.zeros(1)}) == project
