"""Labels of a cloud's points against a network run by hand, and clouds that have little to label."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pointcloud
from pointcloud import PointCloud, SparseConvTensor
from pointcloud.pretrained import save_pretrained
from pointcloud.segment import N_FEATURES, Segmentation, Segmenter, brightness, sweep_voxels
from tests.pointcloud.sweeps import NAMES, street, tiny_card, tiny_network


class HeightBand(nn.Module):
    """Class by mean height of the voxel: below -1 m, below 1 m, above."""

    def forward(self, x: SparseConvTensor) -> Tensor:
        height = x.features[:, 0] / 2
        band = (height > -1).long() + (height > 1).long()
        return nn.functional.one_hot(band, 3).float()


def segmenter(model: nn.Module | None = None, **changes: object) -> Segmenter:
    model = HeightBand().eval() if model is None else model
    return Segmenter(model, **{"voxel_size": 0.4, "class_names": NAMES, **changes})  # type: ignore[arg-type]


def test_features_are_means_over_each_voxel() -> None:
    xyz = street(200).xyz
    bright = torch.rand(len(xyz)) * 2 - 1
    voxels, of_point = sweep_voxels(xyz, 0.5, bright)
    assert voxels.features.shape == (len(of_point.unique()), N_FEATURES)
    low = xyz.double().amin(0)
    for row in range(0, len(voxels.features), 7):
        mean = xyz[of_point == row].double().mean(0)
        centre = low + (voxels.indices[row, 1:].double() + 0.5) * 0.5
        seen = bright[of_point == row].double().mean().view(1)
        expected = torch.cat([mean[2:] / 0.5, mean[:2].norm().view(1) / 30, (mean - centre) / 0.5, seen])
        torch.testing.assert_close(voxels.features[row].double(), expected, rtol=1e-5, atol=1e-5)


def test_brightness_is_the_rank_whatever_the_scale() -> None:
    intensity = torch.tensor([3.0, 0.0, 255.0, 3.0])
    expected = torch.tensor([0.0, -0.75, 0.75, 0.0])  # the two equal ones share the ranks 2 and 3 of 4
    assert torch.equal(brightness(intensity), expected)
    assert torch.equal(brightness(intensity.sqrt() / 255), expected)
    assert brightness(torch.empty(0)).shape == (0,)


def test_brightness_counts_the_darker_points() -> None:
    generator = torch.Generator().manual_seed(0)
    odd = torch.tensor([0.0, -0.0, 1.0, -1.0, float("inf"), -float("inf"), 1e-42, -1e-42])
    for intensity in (torch.randn(200, generator=generator), torch.randint(-3, 9, (300,), generator=generator), odd):
        values = intensity.double()[:, None]
        darker, equal = (values.T < values).sum(1), (values.T == values).sum(1)
        expected = ((2 * darker + equal) / len(values) - 1).float()
        torch.testing.assert_close(brightness(intensity), expected)


def test_every_point_gets_the_label_of_its_voxel(device: str) -> None:
    cloud = street().to(device)
    found = segmenter()(cloud)
    voxels, of_point = sweep_voxels(cloud.xyz, 0.4)
    near = cloud.xyz.norm(dim=1) < 1.2
    assert not bool(near.any())
    expected = HeightBand()(voxels).argmax(1)[of_point]
    assert torch.equal(found.labels, expected)
    assert found.labels.dtype == torch.int64 and found.voxels == len(voxels.features)
    assert list(found.seconds) == ["voxels", "network", "labels"]
    assert found.counts() == {
        name: int((expected == i).sum()) for i, name in enumerate(NAMES) if bool((expected == i).any())
    }


@pytest.mark.parametrize("model", [HeightBand().eval(), tiny_network()], ids=["bands", "network"])
def test_order_of_points_does_not_matter(model: nn.Module, device: str) -> None:
    model = copy.deepcopy(model).to(device)
    cloud = street().to(device)
    order = torch.randperm(len(cloud)).to(device)
    labels = segmenter(model)(cloud).labels
    shuffled = segmenter(model)(PointCloud(cloud.xyz[order])).labels
    assert len(labels.unique()) > 1
    # Means are summed in the order of the points: a voxel on the edge between two classes may change sides.
    assert float((labels[order] == shuffled).double().mean()) > 0.99


def test_points_near_the_sensor_are_left_out(device: str) -> None:
    far, near = street().xyz.to(device), (torch.randn(50, 3) * 0.2).to(device)
    mixed = torch.cat([far[:100], near, far[100:]])
    found = segmenter()(PointCloud(mixed))
    is_near = torch.zeros(len(mixed), dtype=torch.bool, device=device)
    is_near[100:150] = True
    assert bool((found.labels[is_near] == -1).all())
    assert torch.equal(found.labels[~is_near], segmenter()(PointCloud(far)).labels)
    assert found.counts()["unlabelled"] == 50
    assert "unlabelled" not in segmenter(min_range=0.0)(PointCloud(mixed)).counts()


@pytest.mark.parametrize("accelerated", [False, True], ids=["plain", "accelerated"])
@pytest.mark.parametrize("n", [0, 1])
def test_hardly_any_points(n: int, accelerated: bool, device: str) -> None:
    model = tiny_network().to(device)
    model = pointcloud.accelerate(model) if accelerated else model
    found = segmenter(model)(PointCloud(street().xyz[:n].to(device)))
    assert found.labels.shape == (n,) and found.voxels == n
    assert bool((found.labels >= 0).all())


def test_all_points_near_the_sensor(device: str) -> None:
    found = segmenter(tiny_network().to(device))(PointCloud((torch.rand(20, 3) * 0.1).to(device)))
    assert found.counts() == {"unlabelled": 20} and found.voxels == 0


def test_same_labels_in_every_run(device: str) -> None:
    run, cloud = segmenter(pointcloud.accelerate(tiny_network().to(device))), street().to(device)
    assert torch.equal(run(cloud).labels, run(cloud).labels)


def test_card_gives_voxel_size_and_names() -> None:
    model = tiny_network()
    model.card = tiny_card()  # type: ignore[assignment]
    own = Segmenter(model)
    assert (own.voxel_size, own.class_names) == (0.4, NAMES)
    assert Segmenter(model, voxel_size=0.2, class_names=("a", "b", "c")).voxel_size == 0.2
    assert torch.equal(own(street()).labels, segmenter(model)(street()).labels)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_coordinates_that_are_not_finite(value: float) -> None:
    xyz = street().xyz.clone()
    xyz[7, 1] = value
    with pytest.raises(ValueError, match="finite coordinates, got .* in row 7"):
        segmenter()(PointCloud(xyz))


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="voxel_size and class_names must be given"):
        Segmenter(HeightBand())
    with pytest.raises(ValueError, match="min_range must be metres from 0 on, got -1"):
        segmenter(min_range=-1)
    with pytest.raises(ValueError, match="must name the network's 3 classes"):
        segmenter(class_names=("a", "b"))(street())
    with pytest.raises(ValueError, match="voxel_size"):
        segmenter(voxel_size=0.0)(street())


def test_counts_of_a_segmentation() -> None:
    found = Segmentation(torch.tensor([2, -1, 0, 2]), NAMES, 3)
    assert found.counts() == {"ground": 1, "thing": 2, "unlabelled": 1}
    assert replace(found, labels=torch.empty(0, dtype=torch.int64)).counts() == {}


def test_labels_can_be_trained_with() -> None:
    cloud = street(200)
    labels = segmenter()(cloud).labels
    logits = torch.zeros(len(labels), len(NAMES), requires_grad=True)
    nn.functional.cross_entropy(logits, labels, ignore_index=-1).backward()
    assert logits.grad is not None


def test_batch_norm_in_training_mode_is_refused() -> None:
    model = tiny_network().train()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="model must be in evaluation mode"):
        segmenter(model)(street(200))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_load_accelerates_the_network_of_a_file(tmp_path: Path) -> None:
    path, threads = tmp_path / "tiny.safetensors", torch.get_num_threads()
    save_pretrained(tiny_network(), path, tiny_card())
    plain = Segmenter(pointcloud.load_pretrained(path))
    own, narrow = Segmenter.load(path), Segmenter.load(path, dtype="bf16", min_range=2.0)
    assert torch.equal(own(street()).labels, plain(street()).labels)
    assert (own.voxel_size, own.class_names) == (0.4, NAMES)
    assert own.model.acceleration.dtype == torch.float32 and own.model.acceleration.batch_norms > 0
    assert narrow.model.acceleration.dtype == torch.bfloat16 and narrow.min_range == 2.0
    assert torch.get_num_threads() == threads
    try:
        Segmenter.load(path, threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    with pytest.raises(ValueError, match="threads must be a whole number of at least 1"):
        Segmenter.load(path, threads=0)
    with pytest.raises(ValueError, match="name_or_path must be a file or one of"):
        Segmenter.load("tiny")
    with pytest.raises(TypeError, match="positional"):
        Segmenter(tiny_network(), 0.4)  # type: ignore[misc]


def test_a_stream_gives_each_answer_before_the_next_cloud_is_read() -> None:
    read = []

    def clouds() -> Iterator[PointCloud]:
        for seed in range(3):
            read.append(seed)
            yield street(100, seed)

    run = segmenter(tiny_network())
    found = run.stream(clouds())
    assert not read
    for seed, result in enumerate(found):
        assert read == list(range(seed + 1))
        assert torch.equal(result.labels, run(street(100, seed)).labels)
    assert read == [0, 1, 2]
