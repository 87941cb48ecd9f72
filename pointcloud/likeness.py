"""Whether a cloud is like the sweeps that the networks of this package learned from, and if not, why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pointcloud.picture.limits import Directions, share_of_depths
from pointcloud.points import PointCloud

# Read off real sweeps (HDL-32 and HDL-64, whole and as a sector) and simulated ones, with room on both sides.
_FEWEST_POINTS, _DENSEST = 4000, 8.0  # points beyond the sensor's car; of them per voxel of DENSITY_VOXEL
DENSITY_VOXEL = 0.15  # metres
_FARTHEST, _NARROWEST = 600.0, 25.0  # metres
_HIGHEST_GROUND, _LOWEST_GROUND = -0.9, -4.0  # metres from the sensor
_SAMPLE = 5_000
_NEAR, _LEAST_NEAR = (
    15.0,
    0.4,
)  # metres around the sensor, where its beams meet the ground, and the share of points there
_SEVERAL_DEPTHS = 0.25  # share of directions


Array = npt.NDArray[Any]


@dataclass(frozen=True)
class _Level:
    """Where along an axis most points within some metres lie: a slab of 0.4 m, and the share of points in it."""

    position: float
    share: float


def unlike_a_sweep(cloud: PointCloud, *, voxels: int | None = None, min_range: float = 1.2) -> list[str]:
    """Reasons to doubt the labels of a cloud: what parts it from one turn of a LiDAR on a car in a street.

    The scale of intensities is no reason: networks read their ranks.

    Args:
        voxels: of DENSITY_VOXEL that the points beyond `min_range` occupy; None leaves their density unjudged.
        min_range: metres; points nearer to the sensor are left out.

    Returns:
        Sentences without a full stop, the weightiest first; none for a sweep, and none for a cloud without points.
    """
    if not len(cloud):
        return []
    rows = (cloud.xyz.square().sum(1) >= min_range**2).nonzero().squeeze(1)
    n_kept = len(rows)
    if n_kept < 0.5 * len(cloud):
        share = 100 * (1 - n_kept / len(cloud))
        return [
            f"{share:.0f} % of the points lie within {min_range:g} m of the origin, where the sensor and its car are: "
            "coordinates must be in metres"
        ]
    xyz = cloud.xyz[rows[_sample(n_kept, _SAMPLE).to(rows.device)]].detach().cpu().numpy().astype(np.float64)
    reasons = _place(cloud, xyz)
    if n_kept < _FEWEST_POINTS:
        reasons.append(f"it has {n_kept:,} points beyond {min_range:g} m, a sweep has 15,000 to 150,000")
    if voxels and n_kept / voxels > _DENSEST:
        reasons.append(f"it has {n_kept / voxels:.1f} points per voxel, a sweep has 2 to 3: several sweeps in one?")
    return reasons + _intensity(cloud)


def _sample(n: int, wanted: int) -> Tensor:
    """Rows of n, `wanted` at most: one of each stretch, at a random place, since files repeat with their rings."""
    if n <= wanted:
        return torch.arange(n)
    start = torch.arange(wanted + 1) * n // wanted
    luck = torch.rand(wanted, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return start[:-1] + (luck * start.diff()).long()


def _place(cloud: PointCloud, xyz: Array) -> list[str]:
    """What is wrong with the coordinates; where they are in another unit or far away, only that."""
    ordered = np.sort(xyz.T.astype(np.float32))
    low, high = (ordered[:, int(share * (len(xyz) - 1))].astype(np.float64) for share in (0.01, 0.99))
    extent = high - low
    width = float(extent[:2].max())
    if width > 2 * _FARTHEST:
        return [f"it is {width:,.0f} wide: coordinates must be in metres (a sweep is 50 to 200 wide)"]
    if bool(cloud.origin.any()) or (low[:2] > _FARTHEST).any() or (high[:2] < -_FARTHEST).any():
        place = ", ".join(f"{value:,.0f}" for value in ((low + high) / 2 + cloud.origin.numpy())[:2])
        return [f"it lies around x, y = {place}: coordinates must be those of the sensor, which stands at the origin"]
    reasons = []
    if float(extent.max()) < _NARROWEST:
        reasons.append(f"it is {float(extent.max()):.1f} m wide, as a room: a sweep of a street is 50 to 200 m wide")
    return reasons + _ground(xyz, not reasons)


def _ground(xyz: Array, outdoors: bool) -> list[str]:
    """Where the ground is, if it is not a little below the sensor, and how many depths there are per direction."""
    directions = Directions.of(xyz)
    near = xyz[directions.distance < _NEAR]
    share = len(near) / max(len(xyz), 1)
    if share < _LEAST_NEAR:
        return [
            f"{100 * share:.0f} % of the points lie within {_NEAR:g} m of the origin, where the sensor must stand: "
            "of a sweep 60 to 80 %"
        ]
    x, y, z = (_level(near[:, axis]) for axis in range(3))
    flattest, name = max((x, "x"), (y, "y"), key=lambda item: item[0].share)
    if outdoors and flattest.share > 1.25 * z.share:
        return [f"the points are flattest along {name}, at {flattest.position:.1f} m: z must point up"]
    if z.position > -_HIGHEST_GROUND:
        return [f"most points lie {z.position:.1f} m above the sensor: z must point up, and the sensor stand at z = 0"]
    if not _LOWEST_GROUND < z.position < _HIGHEST_GROUND:
        return [
            f"the ground is at z = {z.position:.1f} m: it must be 1 to 4 m below the sensor, which is at the origin"
        ]
    share = share_of_depths(directions, 1.0)
    if share > _SEVERAL_DEPTHS:
        return [
            f"{100 * share:.0f} % of the directions from the origin meet points at several depths: the sensor must "
            "stand there, and the cloud be one turn"
        ]
    return []


def _level(values: Array) -> _Level:
    counts = np.bincount(((values + _NEAR) * 10).astype(np.int64), minlength=300)
    slabs = np.convolve(counts, np.ones(4), "valid")
    best = int(slabs.argmax())
    return _Level(-_NEAR + 0.1 * best + 0.2, float(slabs[best]) / len(values))


def _intensity(cloud: PointCloud) -> list[str]:
    if cloud.intensity is None:
        return ["it has no intensity, by which a sweep's network tells paint, signs and leaves"]
    if not bool(cloud.intensity.isfinite().all()):
        return ["some intensities are not finite"]
    values = cloud.intensity[_sample(len(cloud), 1000).to(cloud.device)].unique()
    if len(values) < 8 and len(cloud) > 100:
        what = "the same" if len(values) == 1 else f"one of {len(values)} values"
        return [f"the intensity of every point is {what}: a sweep has some hundred values"]
    return []
