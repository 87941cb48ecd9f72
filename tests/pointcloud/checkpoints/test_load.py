"""Published checkpoints of a MinkUNet in every spelling give the same network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pointcloud as pc
from pointcloud.checkpoints import load_checkpoint
from pointcloud.models import MinkUNet
from tests.pointcloud.checkpoints.published import moving_loader, written
from tests.pointcloud.checkpoints.test_convert import written_by
from tests.pointcloud.dense_oracle import random_cloud

SPELLINGS = [("spvnas", "torchsparse"), *(("mmdetection3d", b) for b in ("torchsparse", "minkowski", "spconv", "mmcv"))]


def network(depth: int = 14, width: float = 0.25) -> MinkUNet:
    torch.manual_seed(depth)
    model = MinkUNet(4, 7, width, depth)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.05, 0.2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.eval()


def file_of(model: MinkUNet, project: str, backend: str) -> dict[str, Any]:
    state = written(model, project, backend)
    if project == "spvnas":
        return {"model": state, "epoch": 15}
    return {"state_dict": state, "meta": {"mmdet3d_version": "1.4.0", "dataset_meta": {"classes": ["car", "road"]}}}


@pytest.mark.parametrize(("project", "backend"), SPELLINGS, ids=str)
@pytest.mark.parametrize("depth", [14, 34])
def test_the_same_logits(project: str, backend: str, depth: int, tmp_path: Path) -> None:
    model = network(depth)
    torch.save(file_of(model, project, backend), tmp_path / "a.pth")
    found = load_checkpoint(tmp_path / "a.pth")
    assert not found.training and (found.depth, found.width, found.in_channels, found.num_classes) == (
        depth,
        0.25,
        4,
        7,
    )
    for (key, a), b in zip(model.state_dict().items(), found.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    if depth == 14:
        x = random_cloud((16, 16, 16), 4, dtype=torch.float32, share=0.1)
        with torch.no_grad():
            assert torch.equal(found(x), model(x))


@pytest.mark.parametrize("width", [0.5, 0.64, 1.0, 0.625])
def test_widths_of_published_networks(width: float) -> None:
    with torch.device("meta"):
        model = MinkUNet(4, 19, width, 18)
    state = written(model, "mmdetection3d", "spconv")
    found = load_checkpoint(state | {})  # without metadata
    assert (found.width, found.depth) == (width, 18)
    half = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    assert load_checkpoint(half).classifier.weight.dtype == torch.float32


def test_a_network_of_mmcv_without_metadata_is_recognised_by_its_shapes() -> None:
    model = network()
    state = dict(written(model, "mmdetection3d", "mmcv"))
    assert torch.equal(load_checkpoint({"state_dict": state}).stem[0].weight, model.stem[0].weight)


def test_what_is_no_such_network(tmp_path: Path) -> None:
    model = network()
    state = written(model, "spvnas", "torchsparse")
    trained = {**state, "point_transforms.0.1.running_mean": torch.ones(256)}
    more = {**state, "stage1.3.extra": torch.ones(1)}
    wrong = {**state, "classifier.0.weight": torch.ones(7, 5)}
    deep = {key.replace("stage1.1.", "stage1.2."): value for key, value in state.items()} | state
    wide = {**state, "stem.1.running_mean": torch.zeros(9)}
    lacking = {key: value for key, value in state.items() if key != "stem.3.kernel"}
    integers = {**state, "classifier.0.bias": torch.ones(7, dtype=torch.int64)}
    for content, message in (
        (trained, "it is an SPVCNN, whose point branch"), (more, "not those of a MinkUNet of spvnas|residual blocks"),
        (wrong, r"classifier.weight must be float32 \[7, 24\], got float32 \[7, 5\]"),
        (deep, r"residual blocks per stage must be .* got \[2, 1"), (wide, "channels must be .* times a width"),
        (lacking, "lacks 1 tensors of its MinkUNet, 'stem.3.weight' first"),
        (integers, "classifier.bias must be float32"),
        ({"backbone.x.weight": torch.ones(1)}, "must be of a MinkUNet of spvnas or mmdetection3d, got keys such as"),
        ({"epoch": 3}, r"must hold a state dict, itself or as state_dict or .*got \['epoch'\]"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            load_checkpoint(content)
    with pytest.raises(ValueError, match="sha256 must be left out"):
        load_checkpoint(state, sha256="01234567")
    torch.save(wrong, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="w.pth: classifier.weight"):
        load_checkpoint(tmp_path / "w.pth")


def test_the_layers_library_can_be_said() -> None:
    model = network()
    state = written(model, "mmdetection3d", "spconv")
    assert torch.equal(load_checkpoint(state, source="spconv").stem[0].weight, model.stem[0].weight)
    with pytest.raises(ValueError, match="as minkowski lays it out"):
        load_checkpoint(state, source="minkowski")


def test_code_that_replaces_the_loader_of_all_layers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """mmdetection3d does, in the process that also loads networks of this package."""
    model = network()
    state = written(model, "mmdetection3d", "mmcv")
    bundled = pc.load_pretrained("minkunet14-streets").state_dict()
    monkeypatch.setattr(pc.SparseModule, "_version", 2)
    monkeypatch.setattr(pc.SparseModule, "_load_from_state_dict", moving_loader)
    found = load_checkpoint(state)
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), model.parameters(), strict=True))
    again = pc.load_pretrained("minkunet14-streets").state_dict()
    assert all(torch.equal(again[key], bundled[key]) for key in bundled)
    layer, other = (pc.SparseSequential(pc.SubMConv3d(3, 5, 3), pc.SubMConv3d(5, 3, 1)) for _ in range(2))
    other.load_state_dict(pc.convert_state_dict(written_by("spconv-1", layer), other))
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), other.parameters(), strict=True))


def test_it_is_exported() -> None:
    assert pc.load_checkpoint is load_checkpoint
