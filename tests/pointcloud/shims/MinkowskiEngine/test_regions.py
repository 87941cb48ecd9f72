"""Cells of kernels, in MinkowskiEngine's order."""

from __future__ import annotations

import pytest

from pointcloud.shims import MinkowskiEngine as ME
from pointcloud.shims.MinkowskiEngine.regions import cross, cube, per_axis


def test_cubes() -> None:
    assert cube((3, 1)) == ((-1, 0), (0, 0), (1, 0))
    assert cube((2, 2)) == ((0, 0), (1, 0), (0, 1), (1, 1))  # the first axis fastest, from the output onwards


def test_crosses() -> None:
    assert cross((5, 1)) == ((0, 0), (1, 0), (2, 0), (-2, 0), (-1, 0))


def test_attributes() -> None:
    generator = ME.KernelGenerator(3, 2, 1, dimension=2)
    assert generator.kernel_volume == 9 and generator.requires_strided_coordinates
    assert not ME.KernelGenerator([3, 1], dimension=2).requires_strided_coordinates
    with pytest.raises(ValueError, match="kernel_size must be an int or 2 ints"):
        per_axis(0, 2, "kernel_size")
