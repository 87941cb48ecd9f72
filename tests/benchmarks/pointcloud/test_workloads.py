"""The clouds that are measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import data
from benchmarks.pointcloud import workloads


def test_voxelize_by_hand() -> None:
    points = np.array([[0.1, 0.1, 0.1, 1.0], [0.3, 0.1, 0.1, 0.0], [7.9, 7.9, 7.9, 0.5], [8.1, 0, 0, 1]], np.float32)
    work = workloads.voxelize("hand", points, 0.5, (0, 0, 0), (8, 8, 8))
    assert work.shape == (16, 16, 16)
    assert work.coords.tolist() == [[0, 0, 0, 0], [0, 15, 15, 15]]
    torch.testing.assert_close(work.features, torch.tensor([[-0.1, -0.3, -0.3, 0.5], [0.3, 0.3, 0.3, 0.5]]))


def test_a_box_that_would_lose_border_cells_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"multiples of 16 cells on each axis, got \[10, 16, 16\]"):
        workloads.voxelize("odd", np.zeros((1, 3), np.float32), 1.0, (0, 0, 0), (10, 16, 16))


@pytest.mark.parametrize(("name", "rows"), [("benchmark-pc", 125_565), ("nuscenes", 17_885)])
def test_real_clouds(data_dir: Path, name: str, rows: int) -> None:
    work = workloads.WORKLOADS[name]()
    assert work.coords.shape == (rows, 4) and work.coords.dtype == torch.int32
    assert len(work.coords.unique(dim=0)) == rows
    assert ((work.coords >= 0) & (work.coords < torch.tensor([1, *work.shape]))).all()
    assert work.features.shape == (rows, 4) and work.features[:, :3].abs().max() <= 0.5
    assert 0 <= work.features[:, 3].min() and work.features[:, 3].max() <= 1


def test_a_missing_file_is_unavailable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRISPARSE_DATA", str(tmp_path))
    with pytest.raises(data.Unavailable, match=r"benchmark-pc\.npz \(TRISPARSE_DATA"):
        workloads.benchmark_pc()
