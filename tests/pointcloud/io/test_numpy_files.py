"""Arrays whose numbers are no coordinates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pointcloud.io import read_points


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_bits_of_labels_are_no_cloud(tmp_path: Path, suffix: str) -> None:
    rows = np.random.default_rng(0).integers(0, 200, (500, 4)).astype(np.int32).view(np.float32)
    path = tmp_path / f"a.{suffix}"
    np.save(path, rows) if suffix == "npy" else np.savez(path, points=rows)
    with pytest.raises(ValueError, match=r"a\.np.: .*no cloud: .* absurdly small"):
        read_points(path)


def test_far_and_flat_arrays_are_clouds(tmp_path: Path) -> None:
    rows = np.random.default_rng(1).normal(0, 1, (500, 3)) * (1, 1, 0) + (4.5e5, 5.4e6, 0)
    np.save(tmp_path / "a.npy", rows)
    assert len(read_points(tmp_path / "a.npy")) == 500
