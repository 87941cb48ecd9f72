"""Random changes and mixtures of scans."""

from __future__ import annotations

import numpy as np
import pytest

from pointcloud.training.datasets import Scan
from pointcloud.training.transforms import mix, vary


def scan(seed: int, n: int = 2000) -> Scan:
    """The intensity is the number of the point, so that it can be traced."""
    generator = np.random.default_rng(seed)
    xyz = generator.normal(0, 10, (n, 3)).astype(np.float32)
    return Scan(xyz, generator.integers(-1, 5, n), np.arange(n, dtype=np.float32))


@pytest.mark.parametrize("indoor", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_varied_points_keep_labels_and_intensities(seed: int, indoor: bool) -> None:
    before = scan(seed)
    after = vary(before, np.random.default_rng(seed), indoor)
    assert after.intensity is not None and after.xyz.dtype == np.float32
    number = after.intensity.astype(int)
    assert 0.75 * 2000 < len(number) < 2000 and len(np.unique(number)) == len(number)
    np.testing.assert_array_equal(after.labels, before.labels[number])
    old, new = before.xyz[number].astype(np.float64), after.xyz.astype(np.float64)
    old, new = old - old.mean(0), new - new.mean(0)
    matrix = np.linalg.lstsq(old, new, rcond=None)[0]
    assert np.abs(old @ matrix - new).max() < 0.06  # the jitter
    scale = abs(np.linalg.det(matrix)) ** (1 / 3)
    assert 0.94 < scale < 1.06
    np.testing.assert_allclose(matrix @ matrix.T / scale**2, np.eye(3), atol=2e-3)
    np.testing.assert_allclose(np.abs(matrix[2]) / scale, [0, 0, 1], atol=2e-3)
    assert matrix[2, 2] > 0  # never upside down


def test_varied_twice_is_the_same_and_leaves_its_input() -> None:
    before = scan(0)
    copied = before.xyz.copy()
    one, two = (vary(before, np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(one.xyz, two.xyz) and np.array_equal(before.xyz, copied)


@pytest.mark.parametrize("kind", ["polar", "laser"])
@pytest.mark.parametrize("seed", range(5))
def test_mixtures_divide_the_view(kind: str, seed: int) -> None:
    a, b = scan(1), scan(2)
    mixed = mix(kind, a, b, np.random.default_rng(seed))
    rows = (
        {tuple(row): i for i, row in enumerate(a.xyz.tolist())},
        {tuple(row): i for i, row in enumerate(b.xyz.tolist())},
    )
    owner = np.array([tuple(row) in rows[1] for row in mixed.xyz.tolist()])
    assert 0 < owner.sum() < len(owner)
    for source, kept, found in ((a, ~owner, rows[0]), (b, owner, rows[1])):
        number = [found[tuple(row)] for row in mixed.xyz[kept].tolist()]
        np.testing.assert_array_equal(mixed.labels[kept], source.labels[number])
        np.testing.assert_array_equal(mixed.intensity[kept], source.intensity[number])  # type: ignore[index]
    # Along the angle that divides, the owner changes a few times only.
    x, y, z = mixed.xyz.T
    angle = np.arctan2(y, x) if kind == "polar" else np.arctan2(z, np.hypot(x, y))
    changes = np.count_nonzero(np.diff(owner[np.argsort(angle)]))
    assert 1 <= changes <= (2 if kind == "polar" else 5)


def test_nothing_to_mix() -> None:
    none = Scan(np.empty((0, 3), np.float32), np.empty(0, np.int64))
    generator = np.random.default_rng(0)
    for kind in ("polar", "laser"):
        assert len(mix(kind, none, none, generator).xyz) == 0
        assert mix(kind, scan(0), Scan(scan(1).xyz, scan(1).labels), generator).intensity is None
    assert len(vary(none, generator, True).xyz) == 0
    one = scan(0)
    assert mix("none", one, none, generator) is one
    with pytest.raises(ValueError, match="mix must be one of none, polar, laser"):
        mix("cut", one, none, generator)
