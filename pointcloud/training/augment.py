"""Random changes that a sweep's labels survive."""

from __future__ import annotations

import math

import numpy as np

from pointcloud.segment import MIN_RANGE


def augment(xyz: np.ndarray, ring: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(xyz [M, 3] float32, kept [N] bool): the sweep thinned out, turned, mirrored, scaled, tilted and lifted."""
    kept = np.linalg.norm(xyz, axis=1) >= MIN_RANGE
    n_rings = int(ring.max(initial=0)) + 1
    if generator.random() < 0.25 and n_rings > 32:  # a 64-beam sweep as a sensor with half the beams sees it
        kept &= ring % 2 == generator.integers(2)
    if generator.random() < 0.5:
        kept &= generator.random(n_rings)[ring] > 0.1
    kept &= generator.random(len(xyz)) > generator.uniform(0, 0.2)

    yaw = generator.uniform(-math.pi, math.pi)
    pitch, roll = generator.normal(0, math.radians(0.5), 2)
    turned = xyz[kept] @ (_rotation(2, yaw) @ _rotation(1, pitch) @ _rotation(0, roll)).T
    if generator.random() < 0.5:
        turned[:, 1] *= -1
    turned *= generator.uniform(0.93, 1.07)
    turned[:, 2] += generator.normal(0, 0.12)
    return turned.astype(np.float32), kept


def _rotation(axis: int, angle: float) -> np.ndarray:
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    matrix = np.eye(3)
    matrix[[i, j], [i, j]] = math.cos(angle)
    matrix[i, j], matrix[j, i] = -math.sin(angle), math.sin(angle)
    return matrix
