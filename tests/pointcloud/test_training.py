"""The parts of a training run against their definitions, and short runs as a whole."""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pointcloud.models import MinkUNet
from pointcloud.pretrained import load_pretrained, save_pretrained
from pointcloud.segment import MIN_RANGE, N_FEATURES, Segmenter, sweep_voxels
from pointcloud.simulate import CLASSES, beams, simulate_sweep
from pointcloud.training import Confusion, Recipe, evaluate, lovasz_softmax, train
from pointcloud.training import __main__ as train_command
from pointcloud.training.augment import augment
from pointcloud.training.train import class_weights, learning_rate, voxel_labels
from tests.pointcloud.sweeps import SENSOR, small_sweep

# The package exports the function of this name.
train_file = sys.modules[train.__module__]

C = len(CLASSES)


def recipe(**changes: object) -> Recipe:
    """Seconds instead of minutes. A sensor of its own stands in for the names of real ones."""
    small = Recipe(width=0.125, voxel_size=0.4, sensors=(SENSOR,), train_sweeps=2, test_sweeps=1, steps=3)  # type: ignore[arg-type]
    return replace(small, **changes)  # type: ignore[arg-type]


def rings(n: int, n_rings: int = 40) -> np.ndarray:
    return np.random.default_rng(1).integers(n_rings, size=n).astype(np.int32)


def test_class_weights() -> None:
    sweeps = [small_sweep(0), small_sweep(1)]
    weights = class_weights(sweeps)
    labels = np.concatenate([sweep.labels for sweep in sweeps])
    share = np.array([max((labels == c).sum(), 1) / len(labels) for c in range(C)])
    expected = share**-0.3 / (share**0.7).sum()
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-3)
    assert weights.dtype == torch.float32


def test_voxel_labels() -> None:
    labels, voxel = torch.randint(C, (500,)), torch.randint(60, (500,))
    voxel[:60] = torch.arange(60)
    found = voxel_labels(labels, voxel, 60)
    for m in range(60):
        inside = labels[voxel == m].tolist()
        assert int(found[m]) == min(range(C), key=lambda c: (-inside.count(c), c))


def test_voxel_labels_of_nothing() -> None:
    none = torch.empty(0, dtype=torch.int64)
    assert voxel_labels(none, none, 0).shape == (0,)


def brute_iou(truth: list[int], answer: list[int], n: int) -> list[float]:
    found = []
    for c in range(n):
        pairs = [(t == c, a == c) for t, a in zip(truth, answer) if t >= 0]
        union = sum(t or a for t, a in pairs)
        found.append(sum(t and a for t, a in pairs) / union if union else float("nan"))
    return found


def test_confusion() -> None:
    truth, answer = torch.randint(-1, 4, (300,)), torch.randint(-1, 4, (300,))
    confusion = Confusion(5)  # class 4 neither occurs nor is predicted
    confusion.add(truth[:100], answer[:100])
    confusion.add(truth[100:], answer[100:])
    expected = brute_iou(truth.tolist(), answer.tolist(), 5)
    np.testing.assert_allclose(confusion.iou().numpy(), expected, rtol=1e-12)
    assert confusion.mean_iou() == pytest.approx(np.nanmean(expected))
    assert int(confusion.counts.sum()) == int((truth >= 0).sum())
    for t, a in itertools.product(range(4), range(-1, 4)):
        assert int(confusion.counts[t, a if a >= 0 else 5]) == int(((truth == t) & (answer == a)).sum())


def test_confusion_at_its_ends() -> None:
    truth = torch.tensor([0, 1, 2, 2])
    right, wrong, absent = Confusion(3), Confusion(3), Confusion(3)
    right.add(truth, truth)
    wrong.add(truth, (truth + 1) % 3)
    absent.add(truth, torch.full((4,), -1))
    assert right.mean_iou() == 1.0 and wrong.mean_iou() == 0.0 and absent.mean_iou() == 0.0
    assert np.isnan(Confusion(3).mean_iou())


def lovasz_extension(errors: list[float], truth: list[bool]) -> float:
    """The definition: sum over sorted errors of error times the gain in Jaccard loss of having it wrong."""

    def jaccard_loss(wrong: set[int]) -> float:
        union = {i for i, t in enumerate(truth) if t} | wrong
        kept = {i for i, t in enumerate(truth) if t} - wrong
        return 1 - len(kept) / len(union) if union else 0.0

    order = sorted(range(len(errors)), key=lambda i: -errors[i])
    return sum(
        errors[i] * (jaccard_loss(set(order[: k + 1])) - jaccard_loss(set(order[:k]))) for k, i in enumerate(order)
    )


def test_lovasz_is_its_definition() -> None:
    logits, labels = torch.randn(30, 4, dtype=torch.float64), torch.randint(3, (30,))  # class 3 does not occur
    p = logits.softmax(1)
    expected = []
    for c in range(3):
        truth = (labels == c).tolist()
        errors = [1 - float(q) if t else float(q) for t, q in zip(truth, p[:, c])]
        expected.append(lovasz_extension(errors, truth))
    found = float(lovasz_softmax(logits, labels))
    assert found == pytest.approx(np.mean(expected), rel=1e-12)
    assert 0 < found < 1


def test_lovasz_of_hard_predictions_is_one_minus_iou() -> None:
    labels, answer = torch.randint(4, (200,)), torch.randint(4, (200,))
    logits = F.one_hot(answer, 4).double() * 1000
    iou = brute_iou(labels.tolist(), answer.tolist(), 4)
    assert float(lovasz_softmax(logits, labels)) == pytest.approx(1 - np.mean(iou), rel=1e-12)
    assert float(lovasz_softmax(F.one_hot(labels, 4).double() * 1000, labels)) == pytest.approx(0, abs=1e-12)


def test_lovasz_gradient() -> None:
    logits = torch.randn(12, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(3, (12,))
    assert torch.autograd.gradcheck(lambda x: lovasz_softmax(x, labels), logits)


def test_lovasz_of_nothing() -> None:
    logits = torch.empty(0, 3, requires_grad=True)
    loss = lovasz_softmax(logits, torch.empty(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None


@pytest.mark.parametrize("seed", range(6))
def test_augmented_points_keep_their_labels(seed: int) -> None:
    """Each point that comes back can be traced to the one it was, and so to that one's label."""
    generator = np.random.default_rng(seed)
    xyz = generator.normal(0, 10, (4000, 3)).astype(np.float32)
    xyz[:20] *= 0.01  # returns of the carrier
    moved, kept = augment(xyz, rings(4000), generator)
    number = np.flatnonzero(kept)
    assert not kept[:20].any() and np.linalg.norm(xyz[kept], axis=1).min() >= MIN_RANGE
    assert moved.dtype == np.float32 and moved.shape == (len(number), 3)
    assert 0.2 * 4000 < len(number) < 4000 and len(np.unique(number)) == len(number)
    # All changes but the lift are one similarity: find it from the points and see that every point obeys it.
    before, after = xyz[number].astype(np.float64), moved.astype(np.float64)
    before, after = before - before.mean(0), after - after.mean(0)
    matrix = np.linalg.lstsq(before, after, rcond=None)[0]
    np.testing.assert_allclose(before @ matrix, after, atol=1e-4)
    scale = abs(np.linalg.det(matrix)) ** (1 / 3)
    assert 0.93 <= scale <= 1.07
    np.testing.assert_allclose(matrix @ matrix.T / scale**2, np.eye(3), atol=1e-5)


def test_augmentation_leaves_its_input_alone_and_repeats() -> None:
    sweep = small_sweep()
    before = sweep.xyz.copy()
    a, b = (augment(sweep.xyz, sweep.ring, np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(sweep.xyz, before)
    assert np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1])


def test_augmenting_nothing() -> None:
    xyz, kept = augment(np.empty((0, 3), np.float32), np.empty(0, np.int32), np.random.default_rng(0))
    assert xyz.shape == (0, 3) and kept.shape == (0,)


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 4000])
def test_learning_rate(steps: int) -> None:
    factors = [learning_rate(step, steps) for step in range(steps)]
    warm_up = max(1, steps // 10)
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[warm_up - 1] == 1.0
    assert factors[:warm_up] == sorted(factors[:warm_up])
    assert factors[warm_up:] == sorted(factors[warm_up:], reverse=True)
    assert learning_rate(steps, steps) == pytest.approx(0, abs=1e-12) or steps == 1
    if steps == 4000:
        assert factors[0] == 1 / 400 and factors[-1] < 1e-5


def test_training_repeats_bit_for_bit(one_thread: None) -> None:
    first, card = train(recipe(), progress=False)
    second, other = train(recipe(), progress=False)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))
    assert card == other and not first.training
    third, _ = train(recipe(seed=1, steps=1), progress=False)
    assert not torch.equal(first.classifier.weight, third.classifier.weight)
    torch.manual_seed(0)
    start = MinkUNet(N_FEATURES, C, width=0.125, depth=14)
    assert not torch.equal(first.classifier.weight, start.classifier.weight)


def test_results_are_those_of_the_file(one_thread: None, tmp_path: Path) -> None:
    """What is measured is what is shipped: the weights are rounded before they are measured."""
    plan = recipe(steps=2)
    model, card = train(plan, progress=False)
    save_pretrained(model, tmp_path / "w.safetensors", replace(card, recipe={}, results={}))
    loaded = load_pretrained(tmp_path / "w.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values()))
    assert evaluate(loaded, plan, progress=False) == card.results
    held_out = Confusion(C)
    cloud = simulate_sweep(plan.first_test_seed, SENSOR).to_cloud()
    held_out.add(cloud.labels, Segmenter(loaded, voxel_size=plan.voxel_size, class_names=CLASSES)(cloud).labels)
    assert card.results["mean_iou"] == round(held_out.mean_iou(), 4)


def test_recipe_survives_json() -> None:
    plan = Recipe(seed=3, steps=17)
    stated = json.loads(json.dumps(asdict(plan)))
    assert Recipe(**{**stated, "sensors": tuple(stated["sensors"])}) == plan


def test_loss_falls(one_thread: None) -> None:
    sweep = small_sweep()
    voxels, of_point = sweep_voxels(torch.from_numpy(sweep.xyz), 0.4)
    truth = voxel_labels(torch.from_numpy(sweep.labels), of_point, len(voxels.features))
    model = MinkUNet(N_FEATURES, C, width=0.125, depth=14)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    losses = []
    for _ in range(15):
        logits = model(voxels)
        loss = F.cross_entropy(logits, truth) + lovasz_softmax(logits, truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_bad_recipe() -> None:
    with pytest.raises(ValueError, match="sensor"):
        train(recipe(sensors=("hdl65",)), progress=False)


def stop_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Ctrl-C come in the step after so many."""
    calls = itertools.count()

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if next(calls) == steps:
            raise KeyboardInterrupt
        return lovasz_softmax(logits, labels)

    monkeypatch.setattr(train_file, "lovasz_softmax", loss)


def test_stopped_training_ends_in_the_same_network(
    one_thread: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, card = train(recipe(steps=4), progress=False)
    path = tmp_path / "run.pt"
    monkeypatch.setattr(train_file, "CHECKPOINT_EVERY", 2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(3, patch)
        train(recipe(steps=4), checkpoint=path, progress=False)
    assert torch.load(path, weights_only=True)["done"] == 2
    with monkeypatch.context() as patch:
        stop_after(2, patch)  # two steps are left: a third would be one too many
        again, other = train(recipe(steps=4), checkpoint=path, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values()))
    assert card == other
    with pytest.raises(ValueError, match=r"run\.pt is the checkpoint of another run: its recipe is"):
        train(recipe(steps=5), checkpoint=path, progress=False)


def test_the_command_continues_and_tidies_up(
    one_thread: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "w.safetensors"
    command = ["-o", str(output), "--steps", "2"]
    monkeypatch.setattr(beams, "SENSORS", {"small": SENSOR})
    monkeypatch.setattr(train_command, "Recipe", lambda: recipe(sensors=("small",)))
    monkeypatch.setattr(train_file, "CHECKPOINT_EVERY", 1)
    small = [f"--{name}={getattr(recipe(), name)}" for name in ("width", "train_sweeps", "test_sweeps", "voxel_size")]
    command += [argument.replace("_", "-") for argument in small]
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        assert train_command.main(command) == 130
    kept = train_command.checkpoint_of(output)
    assert f"Stopped. Run the same command again to continue (finished steps are kept in {kept})" in (
        capsys.readouterr().err
    )
    assert [path.name for path in tmp_path.iterdir()] == [kept.name]
    assert train_command.main([*command[:3], "3", *command[4:]]) == 1
    assert "checkpoint of another run: its recipe is" in capsys.readouterr().err
    assert train_command.main(command) == 0
    assert [path.name for path in tmp_path.iterdir()] == [output.name]
    assert load_pretrained(output).card.recipe["steps"] == 2
