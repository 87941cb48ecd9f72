"""Turn after turn of a LiDAR that stands still while vehicles and people move."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from pointcloud.simulate.beams import Sensor
from pointcloud.simulate.classes import EXTENT, PERSON, VEHICLE
from pointcloud.simulate.scene import Scene, make_scene
from pointcloud.simulate.sweep import Sweep, simulate_sweep


def simulate_frames(
    seed: int,
    sensor: str | Sensor = "hdl32",
    *,
    frames: int,
    interval: float = 0.1,
    speed: float = 8.0,
    reach: float = 5.0,
    jitter: bool = False,
) -> Iterator[Sweep]:
    """Labelled sweeps of the scene of `seed` from one place, bit-equal for equal arguments.

    Vehicles within `reach` of the sensor's axis (x) drive along it, to the left of the sensor (y > 0) forwards and to
    the right backwards; people walk at a sixth of the speed. Who leaves the scene comes in again at its other end.

    Args:
        frames: number of sweeps.
        interval: seconds from one to the next.
        speed: of the vehicles, metres per second.
        reach: metres to either side; what stands farther away is parked.
        jitter: whether noise of ranges and intensities and lost echoes are drawn anew in each sweep, as by a real
            sensor. False: each beam errs in the same way in each sweep, so that what does not move stays the same.

    Raises:
        ValueError: a bad seed, an unknown sensor, a negative number of frames.
    """
    if frames < 0:
        raise ValueError(f"frames must be at least 0, got {frames}")
    scene = make_scene(seed)
    for frame in range(frames):
        yield simulate_sweep(
            seed, sensor, scene=_after(scene, frame * interval, speed, reach), noise=frame if jitter else 0
        )


def _after(scene: Scene, seconds: float, speed: float, reach: float) -> Scene:
    primitives = scene.primitives.copy()
    label = primitives[:, 16].astype(np.int64)
    drives = (label == VEHICLE) & (abs(primitives[:, 2]) < reach)
    pace = np.where(drives, speed, np.where(label == PERSON, speed / 6, 0.0))
    way = np.where(primitives[:, 2] >= 0, 1.0, -1.0) * pace * seconds
    moving = pace != 0
    primitives[moving, 1] = (primitives[moving, 1] + way[moving] + EXTENT) % (2 * EXTENT) - EXTENT
    return replace(scene, primitives=primitives)
