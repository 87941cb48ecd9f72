"""Networks on changing frames agree with the same networks on each frame."""

from __future__ import annotations

import pytest
import torch

from benchmarks.harness import Settings
from benchmarks.pointcloud import stream
from benchmarks.pointcloud.workloads import Workload


@pytest.mark.usefixtures("one_thread")
def test_frames_forth_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "VOXEL", 1.0)
    monkeypatch.setattr(stream, "FRAMES", 3)
    monkeypatch.setattr(stream, "SCENES", stream.SCENES[:1])
    work = Workload("frames", torch.zeros(0, 4), torch.zeros(0, 4), (16, 16, 16))
    trials = list(stream.trials(work, Settings(threads=(1,))))
    assert len(trials) == 4 and all("of the voxels change" in trial.shape for trial in trials)
    for trial in trials[:2]:
        (expected,) = trial.reference()
        for competitor in trial.competitors:
            call = competitor.build()
            for _ in range(2):
                error = float((call() - expected).abs().max() / expected.abs().max())
                assert error < competitor.tolerance
    assert list(stream.trials(work, Settings(device="cuda"))) == []
