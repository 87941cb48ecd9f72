"""Bad arguments of `video.delta`, and its calibration."""

from __future__ import annotations

import copy
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from tests.video.delta_clips import Function, classifier, conv, patch_clip
from video import delta
from video.models import create
from video.shift.insert import add_temporal_shift


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return classifier(conv(3, 16, 3, 2), conv(16, 16), channels=16)


@pytest.mark.parametrize("threshold", [-1, math.nan, math.inf, True, "0.1", {"": -0.5}, {"frame": math.inf}])
def test_thresholds_are_finite_numbers_of_at_least_zero(model: nn.Module, threshold) -> None:
    with pytest.raises(ValueError, match="threshold.* must be a finite number of at least 0, got"):
        delta.accelerate(model, threshold=threshold)


def test_unknown_layers_and_dtypes(model: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"names a layer 'conv2d_7' that is not there; did you mean 'conv2d"):
        delta.accelerate(model, threshold={"conv2d_7": 0.1}, example=patch_clip(1))
    with pytest.raises(ValueError, match="dtype must be one that this network can compute in .* got int8"):
        delta.accelerate(model, dtype=torch.int8)
    with pytest.raises(ValueError, match="frame_threshold must be a finite number of at least 0, got nan"):
        delta.accelerate(model, frame_threshold=math.nan)


def test_networks_that_cannot_run(model: nn.Module) -> None:
    both = add_temporal_shift(create("resnet18", num_classes=4), 8, direction="both").eval()
    with pytest.raises(ValueError, match="cannot read the frame to come"):
        delta.accelerate(both)
    with pytest.raises(ValueError, match="must be in evaluation mode"):
        delta.accelerate(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    branches = Function(lambda x: x if x.sum() > 0 else -x).eval()
    with pytest.raises(ValueError, match=r"model \(Function\) cannot be captured by torch.export for frames"):
        delta.accelerate(branches, example=patch_clip(1))
    with pytest.raises(ValueError, match="for inference only"):
        delta.accelerate(model).train()


def test_frames_and_states_that_do_not_fit(model: nn.Module) -> None:
    fast = delta.accelerate(model)
    clip = patch_clip(4)
    with pytest.raises(ValueError, match=r"frames must be normalised floating-point \[B, C, H, W\], got uint8"):
        fast.step(torch.zeros(1, 3, 40, 40, dtype=torch.uint8))
    _, state = fast.step(clip[:2])
    with pytest.raises(ValueError, match="state holds 2 streams, frames are of 1"):
        fast.step(clip[:1], state)
    with pytest.raises(ValueError, match=r"frames changed from float32 \[2, 3, 40, 40\].* start with a fresh state"):
        fast.step(patch_clip(2, 44), state)
    with pytest.raises(ValueError, match="state is of another network"):
        delta.accelerate(classifier(conv(3, 8), channels=8)).step(clip[:2], state)


def test_first_frames_from_several_threads(model: nn.Module) -> None:
    """One of them captures the network, for which torch.export has no room for two."""
    clip = patch_clip(6)
    expected = delta.accelerate(model, adapt=False)(clip)
    fast = delta.accelerate(model, adapt=False)
    ready = threading.Barrier(6)

    def run(_: int) -> Tensor:
        ready.wait()
        return fast(clip)

    with ThreadPoolExecutor(6) as pool:
        outputs = list(pool.map(run, range(6)))
    assert all(torch.equal(output, expected) for output in outputs)
    assert torch.equal(copy.deepcopy(fast)(clip), expected)


def test_values_that_are_not_numbers_come_through(model: nn.Module) -> None:
    clip = patch_clip(4)
    clip[1, 0, 5, 5] = math.nan
    out = delta.accelerate(model, threshold=0.1, adapt=False)(clip)
    assert out[1].isnan().all()
    assert not out[[0, 2, 3]].isnan().any()


def test_calibration_finds_the_largest_harmless_threshold() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    clip = torch.cat([patch_clip(6, seed=seed, noise=0.03) for seed in range(10)])
    found = delta.calibrate(model, clip, max_drop=0.05, candidates=(0.001, 0.002, 0.1, 50))
    assert found.frames == 60 and found.flips <= 0.05
    assert found.network.threshold == found.threshold > 0
    right = model(clip).argmax(1)
    live = found.network.variant(found.threshold, adapt=False)(clip).argmax(1)
    assert (live != right).double().mean().item() == pytest.approx(found.flips)
    larger = [each for each in found.tried if each.threshold > found.threshold]
    assert larger and all(each.flips > 0.05 for each in larger)
    assert "answers changed" in str(found) and "held out" in str(found)


def test_calibration_estimates_on_held_out_halves() -> None:
    """A half in which nothing can go wrong lets the other half's answers flip, and the estimate says so."""
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    still = torch.zeros(12, 3, 8, 8)
    still[:, 0] = 1
    drift = still.clone()
    drift[:, 1] = torch.linspace(0.9, 1.5, 12)[:, None, None]  # class 1 soon, by small steps
    found = delta.calibrate(model, torch.cat([still, drift]), max_drop=0.0, candidates=(0.001, 40))
    assert found.threshold == 0.001 and found.flips == 0
    assert 0.3 < found.held_out <= 0.5
    alike = delta.calibrate(model, torch.cat([still, still]), max_drop=0.0, candidates=(0.001, 40))
    assert alike.threshold == 40 and alike.held_out == 0


def test_calibration_takes_frames_one_by_one(model: nn.Module) -> None:
    fast = delta.accelerate(model, threshold=0.3)
    found = delta.calibrate(fast, (frame for frame in patch_clip(10)), max_drop=1.0, candidates=(0.1, 0.2))
    assert fast.threshold == 0.3 and found.accelerate().threshold == 0.2 and found.gains and found.holds
    none = delta.calibrate(fast, patch_clip(10), max_drop=0.0, candidates=(1e6, 2e6), confidence=0.9)
    assert none.gains is (none.threshold > 0) and none.confidence == 0.9 and fast.threshold == 0.3
    assert delta.restore(found.accelerate()) is model


def test_calibration_refuses(model: nn.Module) -> None:
    clip = patch_clip(3)
    with pytest.raises(ValueError, match="max_drop must be a share from 0 to 1, got nan"):
        delta.calibrate(model, clip, max_drop=math.nan)
    with pytest.raises(ValueError, match="data must have frames, got none"):
        delta.calibrate(model, clip[:0])
    with pytest.raises(ValueError, match=r"frames \[C, H, W\], got str"):
        delta.calibrate(model, ["frame"])
    with pytest.raises(ValueError, match="candidates must be positive numbers, ascending"):
        delta.calibrate(model, clip, candidates=(0.2, 0.1))
    with pytest.raises(ValueError, match=r"must return logits \[B, classes\], got float32"):
        delta.calibrate(nn.Conv2d(3, 4, 3).eval(), clip)
