"""One turn of a rotating LiDAR in a procedural scene."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from pointcloud.points import PointCloud
from pointcloud.simulate.beams import Sensor, get_sensor
from pointcloud.simulate.classes import EXTENT, VEHICLE
from pointcloud.simulate.ground import CELL
from pointcloud.simulate.objects import Builder
from pointcloud.simulate.raycast import GROUND, bin_primitives, cast
from pointcloud.simulate.scene import Scene, check_seed, make_scene


@dataclass(frozen=True)
class Sweep:
    """Points of one turn in the sensor's frame: x forward, y left, z up, metres; firing order, lowest ring first.

    xyz [N, 3] float32, intensity [N] float32 in 0..1, ring [N] int32, labels [N] int64 (index into CLASSES).
    """

    xyz: np.ndarray
    intensity: np.ndarray
    ring: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.xyz)

    def to_cloud(self) -> PointCloud:
        """The sweep as a PointCloud, with the ring as extra column."""
        xyz, intensity, ring, labels = (
            torch.from_numpy(a.copy()) for a in (self.xyz, self.intensity, self.ring, self.labels)
        )
        return PointCloud(xyz, intensity=intensity, labels=labels, extra={"ring": ring})


def _ego(sensor: Sensor, z: float) -> np.ndarray:
    """The car that carries the sensor, as far as beams can meet it: roof rack, windscreen and hood."""
    b = Builder()
    b.at(0.0, 0.0, z, 0.0)
    roof = sensor.height - 0.36
    b.box(-1.15, 0.55, 1.04, roof - 0.25, roof, VEHICLE, 0.5)
    b.box(-1.5, 1.95, 1.6, 0.5, sensor.height - 0.92, VEHICLE, 0.5, (0.1, 0.1, 0.1))
    return b.array()


def _directions(sensor: Sensor, phase: float) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors [R, 3] in firing order (clockwise, all rings of a column together) and ring [R]."""
    elevation = np.radians(np.asarray(sensor.elevations_deg))
    azimuth = phase - 2 * math.pi * np.arange(sensor.azimuth_steps) / sensor.azimuth_steps
    out = np.empty((sensor.azimuth_steps, sensor.rings, 3))
    out[..., 0] = np.cos(azimuth)[:, None] * np.cos(elevation)
    out[..., 1] = np.sin(azimuth)[:, None] * np.cos(elevation)
    out[..., 2] = np.sin(elevation)
    ring = np.tile(np.arange(sensor.rings, dtype=np.int32), sensor.azimuth_steps)
    return out.reshape(-1, 3), ring


def _tilt(pitch: float, roll: float) -> np.ndarray:
    """Rotation [3, 3] from the sensor's frame to the level frame."""
    cp, sp, cr, sr = math.cos(pitch), math.sin(pitch), math.cos(roll), math.sin(roll)
    return np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]]) @ np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])


def simulate_sweep(seed: int, sensor: str | Sensor = "hdl32", *, scene: Scene | None = None,
                   keep_ego: bool = False, noise: int = 0) -> Sweep:  # fmt: skip
    """A labelled sweep of the scene of `seed`, bit-equal for equal arguments.

    sensor: "hdl32" (as in nuScenes), "hdl64" (as in KITTI) or a Sensor of your own. scene: cast another scene than
    that of the seed (the seed still draws noise, tilt and height). keep_ego: keep the returns of the car that carries
    the sensor, labelled vehicle. Real nuScenes files hold them, and beams without a return as points within 1.2 m of
    the sensor: drop those from a file before comparing. noise: another draw of noise and lost echoes, from the same
    place. Raises ValueError for a bad seed or an unknown sensor.
    """
    device = get_sensor(sensor)
    check_seed(seed)
    check_seed(noise)
    scene = make_scene(seed) if scene is None else scene
    # Streams of their own: switching noise off must not change what else is drawn.
    more = [int(noise)] if noise else []
    pose, luck, errors = (np.random.default_rng([int(seed), k, *(more if k > 1 else [])]) for k in (1, 2, 3))
    ground = scene.ground
    floor = ground.z(0.0, 0.0)
    height = floor + device.height + float(np.clip(pose.normal(0.0, 0.04), -0.1, 0.1))
    pitch, roll = (float(v) for v in np.clip(pose.normal(0.0, math.radians(0.6), 2), -0.03, 0.03))
    rays, ring = _directions(device, float(pose.uniform(-math.pi, math.pi)))
    primitives = np.concatenate([scene.primitives, _ego(device, floor)])
    first_ego = len(scene.primitives)
    count = len(rays)
    distance, hit, cosine = np.empty(count), np.empty(count, dtype=np.int64), np.empty(count)
    reach = device.max_range
    level = np.ascontiguousarray(rays @ _tilt(pitch, roll).T)
    cast(level, height, primitives, *bin_primitives(primitives, reach), ground.height, -EXTENT, CELL, ground.slope,
         reach, int(seed), 0, count, distance, hit, cosine)  # fmt: skip

    on_ground, on_object = hit == GROUND, hit >= 0
    row, column = ground.cells(level[:, 0] * distance, level[:, 1] * distance)
    item = np.where(on_object, hit, 0)
    labels = np.where(on_object, primitives[item, 16].astype(np.int64), ground.label[row, column])
    reflectivity = np.where(on_object, primitives[item, 17], ground.reflectivity[row, column])

    # Echo strength over the detection threshold: falls with the square of the range and at grazing incidence.
    strength = reflectivity * np.sqrt(cosine) * (device.visibility / np.maximum(distance, 1.0)) ** 2
    seen = (1.0 - device.dropout) * strength**2 / (1.0 + strength**2)
    kept = (on_ground | on_object) & (luck.random(count) < seen)
    kept &= keep_ego | (hit < first_ego)
    measured = distance + device.range_noise * errors.standard_normal(count)
    kept &= (measured >= np.where(hit >= first_ego, 0.1, device.min_range)) & (measured <= device.max_range)
    bright = device.intensity_gain * reflectivity * np.sqrt(cosine) * np.exp(0.25 * errors.standard_normal(count))
    xyz = (rays[kept] * measured[kept, None]).astype(np.float32)
    intensity = np.clip(bright[kept], 0.0, 1.0).astype(np.float32)
    return Sweep(xyz, intensity, ring[kept], labels[kept])
