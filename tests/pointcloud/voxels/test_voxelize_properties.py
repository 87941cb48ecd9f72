"""voxelize on any points in any batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pointcloud.voxels.voxelize import voxelize
from tests.pointcloud.voxel_oracle import REDUCE, brute

pytest.importorskip("hypothesis", reason="hypothesis is not installed")

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import examples

coordinate = st.one_of(
    st.floats(-5, 5, width=32),
    st.integers(-50, 50).map(lambda i: float(np.float32(i * 0.1))),
    st.sampled_from([-2.0, 3.0]),
)


@settings(max_examples=examples(150), deadline=None)
@given(
    rows=st.lists(st.tuples(coordinate, coordinate, coordinate, st.integers(0, 2)), max_size=40),
    size=st.sampled_from([0.1, 0.3, 1.0, 7.5]),
    cropped=st.booleans(),
    reduce=st.sampled_from(sorted(REDUCE)),
)
def test_any_points_in_any_batch(rows: list[tuple], size: float, cropped: bool, reduce: str) -> None:
    points = torch.tensor([row[:3] for row in rows], dtype=torch.float32).reshape(-1, 3)
    batch = [row[3] for row in rows]
    features = torch.arange(2.0 * len(rows)).reshape(-1, 2)
    point_range = [-2.0, -2.0, -2.0, 3.0, 2.9, 3.1] if cropped else None
    voxels, of_point = voxelize(
        points, size, point_range, features=features, reduce=reduce,
        batch_index=torch.tensor(batch, dtype=torch.int32), batch_size=3,
    )  # fmt: skip
    low = point_range[:3] if point_range else (points.double().amin(0).tolist() if rows else [0.0] * 3)
    high = point_range[3:] if point_range else None
    cells, reduced, expected = brute(points, features, (size,) * 3, low, high, batch, "xyz", reduce)
    assert voxels.indices.tolist() == cells and of_point.tolist() == expected
    torch.testing.assert_close(voxels.features.double(), reduced, rtol=1e-5, atol=1e-5)
    shape = torch.tensor(voxels.spatial_shape)
    assert bool((voxels.indices[:, 1:] >= 0).all()) and bool((voxels.indices[:, 1:] < shape).all())
