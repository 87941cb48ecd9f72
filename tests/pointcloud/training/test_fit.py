"""Training on data sets as a whole: short runs on made-up folders."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pointcloud.models import MinkUNet
from pointcloud.pretrained import load_pretrained, save_pretrained
from pointcloud.segment import Segmenter
from pointcloud.training.batches import Sampling, batches
from pointcloud.training.datasets import Dataset, Scan, open_dataset
from pointcloud.training.fit import Plan, batch_loss, fit, validate
from pointcloud.training.losses import lovasz_softmax
from tests.pointcloud.training import dataset_folders as folders
from tests.pointcloud.training.test_datasets import WRITTEN

fit_file = sys.modules["pointcloud.training.fit"]
ROOT = Path(__file__).resolve().parents[3]


def plan(**changes: object) -> Plan:
    small = Plan(width=0.125, depth=14, voxel_size=0.4, steps=3)
    return replace(small, **changes)  # type: ignore[arg-type]


def kitti(root: Path) -> tuple[Dataset, Dataset]:
    if not root.exists():
        folders.write_semantickitti(root, {"00": 3, "08": 1})
    return open_dataset("semantickitti", root, "train"), open_dataset("semantickitti", root, "val")


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("kind", WRITTEN)
def test_every_data_set_trains_and_its_file_is_read(kind: str, tmp_path: Path, one_thread: None) -> None:
    name, write, (low, _), *_ = WRITTEN[kind]
    root = write(tmp_path / "data")
    train, val = (open_dataset(name, root, split) for split in ("train", "val"))
    done = fit(train, val, plan(steps=2), progress=False)
    assert len(done.losses) == 2 and np.isfinite(done.losses).all()
    assert done.card.class_names == train.class_names and done.card.results["scans"] == 1
    assert "mean IoU" in str(done) and low in str(done)
    save_pretrained(done.model, tmp_path / "w.safetensors", done.card)
    loaded = load_pretrained(tmp_path / "w.safetensors")
    assert same(loaded, done.model) and loaded.card.class_names == train.class_names  # type: ignore[union-attr]
    assert validate(loaded, val, 0.4, progress=False) == done.card.results


def test_it_learns(tmp_path: Path, one_thread: None) -> None:
    train, val = kitti(tmp_path / "data")
    done = fit(train, val, plan(steps=60, augment=False), progress=False)
    assert np.mean(done.losses[-3:]) < 0.6 * np.mean(done.losses[:3])
    iou = done.card.results["iou"]
    assert iou["road"] > 0.5 and iou["building"] > 0.5 and iou["car"] is None


def test_validation_ignores_what_is_unlabelled(tmp_path: Path) -> None:
    _, val = kitti(tmp_path / "data")
    torch.manual_seed(1)
    model = MinkUNet(6, 19, width=0.125, depth=14).eval()
    found = validate(model, val, 0.4, progress=False)
    scan = val[0]
    cloud = fit_file.PointCloud(torch.from_numpy(scan.xyz), torch.from_numpy(scan.intensity))
    answer = Segmenter(model, voxel_size=0.4, class_names=val.class_names, min_range=0)(cloud).labels.numpy()
    known = scan.labels >= 0
    assert not known.all()
    for c, name in enumerate(val.class_names):
        t, a = scan.labels[known] == c, answer[known] == c
        expected = None if not (t | a).any() else round(float((t & a).sum() / (t | a).sum()), 4)
        assert found["iou"][name] == expected  # type: ignore[index]


def test_seeds_workers_and_stops_change_nothing_or_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    data = kitti(tmp_path / "data")
    whole = fit(*data, plan(steps=4, mix="polar"), progress=False)
    assert same(whole.model, fit(*data, plan(steps=4, mix="polar"), workers=3, progress=False).model)
    assert not same(whole.model, fit(*data, plan(steps=4, mix="polar", seed=1), progress=False).model)
    path = tmp_path / "run.pt"
    monkeypatch.setattr(fit_file, "CHECKPOINT_EVERY", 2)
    calls = itertools.count()

    def stopping(*arguments: object) -> torch.Tensor:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return batch_loss(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fit_file, "batch_loss", stopping)
        fit(*data, plan(steps=4, mix="polar"), checkpoint=path, progress=False)
    resumed = fit(*data, plan(steps=4, mix="polar"), checkpoint=path, progress=False)
    assert resumed.losses == whole.losses[2:]
    assert same(whole.model, resumed.model)
    with pytest.raises(ValueError, match=r"run\.pt is the checkpoint of another run: its plan is"):
        fit(*data, plan(steps=5), checkpoint=path, progress=False)


def test_recomputed_stages_give_the_same_network(tmp_path: Path, one_thread: None) -> None:
    data = kitti(tmp_path / "data")
    kept, again = (fit(*data, plan(recompute=flag), progress=False) for flag in (False, True))
    assert kept.losses == again.losses and same(kept.model, again.model)


def test_bf16(tmp_path: Path, one_thread: None) -> None:
    data = kitti(tmp_path / "data")
    exact, rounded = (fit(*data, plan(precision=name), progress=False) for name in ("fp32", "bf16"))
    assert exact.losses != rounded.losses
    np.testing.assert_allclose(exact.losses, rounded.losses, rtol=0.05)
    assert {p.dtype for p in rounded.model.parameters()} == {torch.float32}


def test_the_loss_is_its_definition(tmp_path: Path) -> None:
    train, _ = kitti(tmp_path / "data")
    batch = next(batches(train, Sampling(0, 2, 0.4), 0, 1))
    logits = torch.randn(len(batch.truth), 19)
    weights = torch.rand(19)
    found = batch_loss(lambda voxels: logits, batch, weights)  # type: ignore[arg-type]
    parts = []
    for scan in (0, 1):
        rows = (batch.voxels.indices[:, 0] == scan) & (batch.truth >= 0)
        parts.append(lovasz_softmax(logits[rows], batch.truth[rows]))
    expected = F.cross_entropy(logits, batch.truth, weights, ignore_index=-1) + sum(parts) / 2
    torch.testing.assert_close(found, expected)


PROGRAM = """
import sys, torch
from dataclasses import replace
from pointcloud.models import MinkUNet
from pointcloud.training.batches import Sampling, batches
from pointcloud.training.processes import joined, rank_and_world, shared_norms, sum_gradients
from pointcloud.training.fit import Plan, batch_loss, fit
from pointcloud.training.datasets import open_dataset
torch.set_num_threads(1)
data = [open_dataset("semantickitti", sys.argv[1], split) for split in ("train", "val")]
with joined():
    for size in (2, 1):
        plan = Plan(width=0.125, depth=14, voxel_size=0.4, steps=2, batch_size=size, recompute=size == 2)
        done = fit(*data, plan, progress=False)
        rank, world = rank_and_world()
        torch.save([done.losses, done.model.state_dict(), done.card.results], f"{sys.argv[2]}/{world}-{rank}-{size}.pt")
        torch.manual_seed(0)
        model = MinkUNet(6, 19, width=0.125, depth=14).double()
        batch = next(batches(data[0], Sampling(0, size, 0.4, rank=rank, world=world), 0, 1))
        batch = replace(batch, voxels=batch.voxels.replace_feature(batch.voxels.features.double()))
        with shared_norms(model):
            batch_loss(model, batch, torch.ones(19), "fp32").backward()
        sum_gradients(list(model.parameters()))
        grads = {name: p.grad for name, p in model.named_parameters()}
        torch.save([grads, dict(model.named_buffers())], f"{sys.argv[2]}/gradients-{world}-{rank}-{size}.pt")
"""


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Also where a step has one scan only, so that the second process has no rows at all."""
    kitti(tmp_path / "data")
    (tmp_path / "program.py").write_text(PROGRAM)
    program = [str(tmp_path / "program.py"), str(tmp_path / "data"), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *program]
    for command in ([sys.executable, *program], two):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
    for size in (2, 1):
        one, first, second = (
            torch.load(tmp_path / f"{name}-{size}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1")
        )
        np.testing.assert_allclose(first[0], one[0], rtol=1e-4)
        assert first[0] == second[0] and first[2] == second[2]
        for key, value in one[1].items():
            assert torch.equal(first[1][key], second[1][key]), key
            # Adam takes the sign of a gradient that rounding decides, so a few weights may be steps apart.
            apart = (first[1][key].double() - value.double()).abs() > 1e-3
            assert apart.double().mean() < 0.03, key
        names = [f"gradients-{which}-{size}.pt" for which in ("1-0", "2-0", "2-1")]
        exact, *shared = (torch.load(tmp_path / name, weights_only=True) for name in names)
        for kept in shared:
            for alone, together in zip(exact, kept):
                for key, value in alone.items():
                    torch.testing.assert_close(together[key], value, rtol=1e-4, atol=1e-6, msg=key)


def test_bad_plans(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mix must be one of none, polar, laser, got 'cut'"):
        plan(mix="cut")
    with pytest.raises(ValueError, match="mix is part of the augmentation"):
        plan(mix="polar", augment=False)
    with pytest.raises(ValueError, match="precision must be fp32 or bf16, got 'fp16'"):
        plan(precision="fp16")
    with pytest.raises(ValueError, match="steps must be above 0, got 0"):
        plan(steps=0)


def test_nothing_to_learn_from() -> None:
    empty = Scan(np.zeros((5, 3), np.float32), np.full(5, -1))
    dataset = Dataset("none", ("a", "b"), ["x"], lambda i: empty)
    with pytest.raises(ValueError, match="no labelled point"):
        fit(dataset, dataset, plan(), progress=False)
    other = Dataset("other", ("a",), ["x"], lambda i: empty)
    with pytest.raises(ValueError, match="held_out must have the classes"):
        fit(dataset, other, plan(), progress=False)
