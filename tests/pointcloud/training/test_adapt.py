"""Adaptation with little memory: what is trained, what is kept, and that it learns."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import pointcloud
from pointcloud.conv import SparseConv3d, SubMConv3d
from pointcloud.models import MinkUNet
from pointcloud.modules import SparseSequential
from pointcloud.pretrained import ModelCard, load_pretrained, save_pretrained
from pointcloud.simulate import CLASSES
from pointcloud.tensor import SparseConvTensor
from pointcloud.training import adapt
from tests.pointcloud.sweeps import small_sweep


def network() -> MinkUNet:
    torch.manual_seed(0)
    model = MinkUNet(6, len(CLASSES), width=0.5, depth=14).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean, 0, 0.2)
    arguments = {"in_channels": 6, "num_classes": len(CLASSES), "width": 0.5, "depth": 14}
    card = ModelCard(description="", architecture="MinkUNet", arguments=arguments, class_names=CLASSES, voxel_size=0.4)
    model.card = card  # type: ignore[assignment]
    return model


def cloud(seed: int = 0) -> pointcloud.PointCloud:
    return small_sweep(seed).to_cloud()


def test_it_learns_in_little_memory_and_saves(tmp_path: Path, one_thread: None) -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    done = adapt(model, [cloud(0), cloud(1)], steps=40, learning_rate=0.02)
    assert sum(done.losses[-4:]) < 0.9 * sum(done.losses[:4])
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))
    # A bit per ReLU and 8 of 16 to 192 channels per branch instead of inputs of norms and convolutions.
    assert 0 < done.activation_bytes < done.full_activation_bytes / 3
    assert "times less" in str(done)
    save_pretrained(done.model, tmp_path / "w.safetensors")
    assert load_pretrained(tmp_path / "w.safetensors").card.class_names == CLASSES  # type: ignore[union-attr]


def test_only_head_biases_and_centre_taps_change(one_thread: None) -> None:
    model = network()
    done = adapt(model, [cloud()], steps=3)
    heads = {name for name in done.trained if name.startswith("classifier.")}
    assert heads == {"classifier.weight", "classifier.bias"}
    after = dict(done.model.named_parameters())
    for name, p in model.named_parameters():
        layer = name.rpartition(".")[0]
        if name in done.trained:
            assert not torch.equal(p, after[name]), name
        elif layer in done.branches:
            difference = (after[name] - p).detach()
            others = difference.flatten(1, -2).clone()  # [Cout, K, Cin]
            centre = others[:, others.shape[1] // 2].clone()
            others[:, others.shape[1] // 2] = 0
            assert not others.any() and centre.any(), name
            # Of what rounding made of it, the rank is at most that of the branch.
            assert int((torch.linalg.svdvals(centre.double()) > 1e-5).sum()) <= 8
        else:
            assert torch.equal(p, after[name]), name
    assert all(p.requires_grad for p in done.model.parameters())
    buffers = zip(model.buffers(), done.model.buffers())
    assert all(torch.equal(a, b) for a, b in buffers)


def test_without_branches_the_first_step_is_that_of_the_plain_network(one_thread: None) -> None:
    """Gradients of biases and head against autograd through torch's own ReLU and batch norm."""
    from pointcloud.training.batches import collate
    from pointcloud.training.datasets import Scan
    from pointcloud.training.lean import LeanBackward

    sweep = small_sweep()
    batch = collate([Scan(sweep.xyz, sweep.labels, sweep.intensity)], len(CLASSES), 0.4, 1)
    plain, lean = network(), network()
    for model in (plain, lean):
        for name, p in model.named_parameters():
            p.requires_grad_(name.endswith("bias") or name.startswith("classifier"))
    plain(batch.voxels).square().mean().backward()
    with LeanBackward():
        lean(batch.voxels).square().mean().backward()
    for (name, a), b in zip(plain.named_parameters(), lean.parameters()):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(b.grad, a.grad, rtol=1e-3, atol=1e-6, msg=name)


class OfOnesOwn(nn.Module):
    """Inplace ReLUs, a strided layer, a convolution as head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = SparseSequential(
            SubMConv3d(12, 24, 3), nn.BatchNorm1d(24), nn.ReLU(inplace=True), SparseConv3d(24, 24, 2, 2, bias=False),
            nn.BatchNorm1d(24, affine=False), nn.ReLU(),
        )  # fmt: skip
        self.last = SubMConv3d(24, 3, 1)

    def forward(self, x: SparseConvTensor) -> SparseConvTensor:
        return self.last(self.body(x))


def test_a_network_of_ones_own(one_thread: None) -> None:
    torch.manual_seed(0)
    indices = torch.cat([torch.zeros(200, 1), torch.randperm(10**3)[:200, None] // torch.tensor([100, 10, 1]) % 10], 1)
    x = SparseConvTensor(torch.randn(200, 12), indices.int(), [10, 10, 10], 1)
    model = OfOnesOwn()
    labels = torch.randint(-1, 3, (len(model.eval()(x).features),))
    done = adapt(model, [(x, labels)], steps=40, rank=4, learning_rate=0.02)
    assert done.branches == ("body.0",) and done.losses[-1] < done.losses[0]
    # What was adapted is the network that comes back: its loss goes on where the last step left it.
    again = adapt(done.model, [(x, labels)], steps=1, rank=0)
    assert again.losses[0] == pytest.approx(done.losses[-1], rel=0.05)
    other = adapt(model, [(x, labels.clamp(max=1))], steps=2, class_names=("a", "b"))
    assert other.model(x).features.shape[1] == 2


def test_new_classes(tmp_path: Path, one_thread: None) -> None:
    sweep = cloud()
    ground = pointcloud.PointCloud(sweep.xyz, sweep.intensity, labels=(sweep.labels > 1).long())
    done = adapt(network(), [ground], steps=2, class_names=("ground", "other"))
    save_pretrained(done.model, tmp_path / "w.safetensors")
    segmenter = pointcloud.Segmenter.load(tmp_path / "w.safetensors")
    assert set(segmenter(sweep).counts()) <= {"ground", "other", "unlabelled"}


def test_bad_requests() -> None:
    model = network()
    bare = pointcloud.PointCloud(torch.zeros(4, 3))
    for labelled, error, message in (
        ([], ValueError, "at least one example"),
        ([3], TypeError, r"labelled\[0\] must be a PointCloud or a pair"),
        ([bare], ValueError, r"labelled\[0\] must have labels"),
    ):
        with pytest.raises(error, match=message):
            adapt(model, labelled)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="accelerated"):
        adapt(pointcloud.accelerate(model), [cloud()])
    with pytest.raises(ValueError, match="head must be the name of a layer"):
        adapt(model, [cloud()], head="last")
    with pytest.raises(ValueError, match="steps must be at least 1"):
        adapt(model, [cloud()], steps=0)
    with pytest.raises(ValueError, match="labels must be below the network's 2 classes, got"):
        adapt(model, [cloud()], class_names=("a", "b"), steps=1)
    del model.card
    with pytest.raises(ValueError, match="voxel_size must be given"):
        adapt(model, [cloud()])
