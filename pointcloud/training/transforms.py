"""Random changes of a labelled scan, and mixtures of two."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from pointcloud.training.datasets.scan import Array, Scan

MIXES = ("none", "polar", "laser")


def vary(scan: Scan, generator: np.random.Generator, indoor: bool = False) -> Scan:
    """A scan thinned out, turned about z, mirrored, scaled, lifted and jittered; a room is moved as well.

    Labels and intensities stay with their points; up to a fifth of the points goes.
    """
    kept = generator.random(len(scan.xyz)) > generator.uniform(0, 0.2)
    xyz = scan.xyz[kept].astype(np.float64)
    if indoor and len(xyz):  # where a room's origin lies means nothing
        xyz[:, :2] -= xyz[:, :2].mean(0) + generator.uniform(-8, 8, 2)
    angle = generator.uniform(-math.pi, math.pi)
    cos, sin = math.cos(angle), math.sin(angle)
    xyz[:, :2] = xyz[:, :2] @ np.array([[cos, sin], [-sin, cos]])
    xyz[:, :2] *= np.where(generator.random(2) < 0.5, -1, 1)
    xyz *= generator.uniform(0.95, 1.05)
    xyz[:, 2] += generator.normal(0, 0.1)
    xyz += np.clip(generator.normal(0, 0.01, xyz.shape), -0.05, 0.05)
    return _selected(scan, kept, xyz.astype(np.float32))


def mix(kind: str, a: Scan, b: Scan, generator: np.random.Generator) -> Scan:
    """Points of two sweeps in one, each part of the field of view from one of the two.

    Args:
        kind: "polar": a random sector of the azimuth is from b (Xiao et al., PolarMix, 2022, its scene-level half);
            "laser": bands of the inclination are from a and b in turn (Kong et al., LaserMix, 2023); "none": a itself.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in MIXES:
        raise ValueError(f"mix must be one of {', '.join(MIXES)}, got {kind!r}")
    if kind == "none":
        return a
    from_b = _sector(generator) if kind == "polar" else _bands(a, b, generator)
    parts = [_selected(a, ~from_b(a.xyz)), _selected(b, from_b(b.xyz))]
    both = all(part.intensity is not None for part in parts)
    intensity = np.concatenate([part.intensity for part in parts]) if both else None
    return Scan(np.concatenate([p.xyz for p in parts]), np.concatenate([p.labels for p in parts]), intensity)


def _sector(generator: np.random.Generator) -> Callable[[Array], Array]:
    start = generator.uniform(-math.pi, math.pi)
    width = generator.uniform(math.pi / 2, math.pi)
    return lambda xyz: (np.arctan2(xyz[:, 1], xyz[:, 0]) - start) % (2 * math.pi) < width


def _bands(a: Scan, b: Scan, generator: np.random.Generator) -> Callable[[Array], Array]:
    angles = np.concatenate([_inclination(a.xyz), _inclination(b.xyz)])
    low, high = (float(angles.min()), float(angles.max())) if len(angles) else (0.0, 1.0)
    edges = np.linspace(low, high, int(generator.integers(3, 7)) + 1)[1:-1]
    first = int(generator.integers(2))
    return lambda xyz: (np.searchsorted(edges, _inclination(xyz)) + first) % 2 == 1


def _inclination(xyz: Array) -> Array:
    return np.arctan2(xyz[:, 2], np.hypot(xyz[:, 0], xyz[:, 1]))


def _selected(scan: Scan, kept: Array, xyz: Array | None = None) -> Scan:
    intensity = None if scan.intensity is None else scan.intensity[kept]
    return Scan(scan.xyz[kept] if xyz is None else xyz, scan.labels[kept], intensity)
