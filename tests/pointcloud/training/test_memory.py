"""What is kept for the backward pass, counted, and stages that are computed again."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pointcloud.models import MinkUNet
from pointcloud.segment import sweep_voxels
from pointcloud.tensor import SparseConvTensor
from pointcloud.training.memory import SavedBytes, recomputed, stages_of
from tests.pointcloud.sweeps import small_sweep


def voxels() -> SparseConvTensor:
    return sweep_voxels(torch.from_numpy(small_sweep().xyz), 0.4)[0]


def test_bytes_of_known_layers() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4, bias=False))
    x = torch.randn(10, 8)
    with SavedBytes(model) as saved:
        model(x)
    # The input, and the ReLU's output, which the second layer needs too: once. Weights do not count.
    assert saved.total == 4 * (10 * 8 + 10 * 16)
    with SavedBytes(model.requires_grad_(False)) as saved:
        model(x)
    assert saved.total == 0


def test_recomputed_stages_keep_less_and_give_the_same() -> None:
    torch.manual_seed(0)
    model = MinkUNet(6, 5, width=0.25, depth=18).train()
    other = copy.deepcopy(model)
    assert stages_of(model) == [f"{part}.{i}" for part in ("stages", "ups") for i in range(4)]
    x = voxels()
    with SavedBytes(model) as plain:
        expected = model(x)
    expected.square().mean().backward()
    with recomputed(other) as names, SavedBytes(other) as lean:
        assert names == stages_of(other)
        found = other(x)
    with recomputed(other):
        pass  # the stages compute their gradients with what they were called with
    found.square().mean().backward()
    assert torch.equal(found, expected)
    assert 0 < lean.total < 0.5 * plain.total
    for (name, a), b in zip(model.named_parameters(), other.parameters()):
        assert torch.equal(a.grad, b.grad), name  # type: ignore[arg-type]
    for (name, a), b in zip(model.named_buffers(), other.buffers()):
        assert torch.equal(a, b), name
    assert all("forward" not in vars(module) for module in other.modules())


def test_evaluation_passes_through() -> None:
    model = MinkUNet(6, 5, width=0.125, depth=14).eval()
    x = voxels()
    with torch.no_grad():
        expected = model(x)
        with recomputed(model, ["stages.0"]):
            assert torch.equal(model(x), expected)


def test_unknown_stages() -> None:
    with pytest.raises(ValueError, match="stages must name modules of the network, got 'stages.9'"):
        recomputed(MinkUNet(6, 5, width=0.125, depth=14), ["stages.9"]).__enter__()
    with pytest.raises(ValueError, match="got none"):
        recomputed(nn.Linear(2, 2)).__enter__()
