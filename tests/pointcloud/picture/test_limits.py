"""What a picture shows: limits, steps of the scales, and which clouds are sweeps."""

from __future__ import annotations

import numpy as np
import pytest

from pointcloud.picture.limits import Directions, bev_limits, is_sweep, multiples, nice_step, range_limits, tick_label


def test_directions() -> None:
    found = Directions.of(np.array([[3.0, 0, 4], [0, 2, 0], [-1, 0, -1]]))
    np.testing.assert_allclose(found.azimuth, [0, 90, 180])
    np.testing.assert_allclose(found.elevation, [np.degrees(np.arcsin(0.8)), 0, -45])
    np.testing.assert_allclose(found.distance, [5, 2, np.sqrt(2)])


def test_the_view_from_above_has_one_scale_and_holds_the_points() -> None:
    xyz = np.random.default_rng(0).normal(size=(5000, 3)) * [20, 3, 1] + [5, -7, 0]
    x0, x1, y0, y1 = bev_limits(xyz, 1170, 500)
    assert (x1 - x0) / 1170 == pytest.approx((y1 - y0) / 500)
    inside = (xyz[:, 0] > x0) & (xyz[:, 0] < x1) & (xyz[:, 1] > y0) & (xyz[:, 1] < y1)
    assert inside.mean() > 0.98
    assert bev_limits(np.empty((0, 3)), 100, 100)[0] < 0


def test_a_sector_fills_the_range_view() -> None:
    angle = np.radians(np.linspace(-40, 40, 500))
    left, right, low, high = range_limits(Directions.of(np.stack([np.cos(angle), np.sin(angle), angle * 0], 1) * 9))
    assert -42 < left < -39 and 39 < right < 42 and low < 0 < high
    angle *= 4.4
    left, right, *_ = range_limits(Directions.of(np.stack([np.cos(angle), np.sin(angle), angle * 0], 1) * 9))
    assert (left, right) == (-180, 180)


def test_a_cloud_with_depth_behind_each_direction_is_no_sweep() -> None:
    angle = np.radians(np.arange(0, 360, 0.5))
    ring = np.stack([np.cos(angle), np.sin(angle), np.full(len(angle), -0.2)], 1)
    assert is_sweep(Directions.of(ring * 8))
    assert not is_sweep(Directions.of(np.concatenate([ring * 8, ring * 30])))
    assert not is_sweep(Directions.of(ring * [8, 8, -8]))  # nothing below the sensor
    assert not is_sweep(Directions.of(ring[:50] * 8))
    # Azimuth 180 and elevation 90 are the edges of the last cells.
    assert not is_sweep(Directions.of(np.array([[-5.0, 0.0, 0.0], [0, 0, 5]] * 100)))


@pytest.mark.parametrize("span", [1e-9, 0.3, 7, 80, 12345, 1e12])
def test_steps_are_round_and_some_five_to_a_span(span: float) -> None:
    step = nice_step(span)
    assert 2 < span / step < 12
    assert float(f"{step:.0e}") == pytest.approx(step) and f"{step:.0e}"[0] in "125"
    marks = multiples(step, -span, span)
    assert 0 in np.abs(marks) and marks.min() >= -span and marks.max() <= span


def test_labels_tell_neighbours_apart() -> None:
    assert [tick_label(value, 0.5) for value in (-1.0, 0.0, 0.5)] == ["−1.0", "0.0", "0.5"]
    assert tick_label(-20.0, 20) == "−20" and tick_label(500_000.0, 10) == "500,000"
    assert tick_label(0.003, 0.001) == "0.003"
    assert tick_label(-0.0, 20) == "0"
