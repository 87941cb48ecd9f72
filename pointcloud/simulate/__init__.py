"""LiDAR simulator: labelled sweeps of procedural street scenes, for training and tests without any data set.

sweep = simulate_sweep(seed=0, sensor="hdl32")
sweep.xyz, sweep.intensity, sweep.ring, sweep.labels      # [N, 3], [N], [N], [N]; labels index CLASSES
"""

from __future__ import annotations

from pointcloud.simulate.beams import SENSORS, Sensor
from pointcloud.simulate.classes import CLASSES
from pointcloud.simulate.frames import simulate_frames
from pointcloud.simulate.scene import Scene, make_scene
from pointcloud.simulate.sweep import Sweep, simulate_sweep

__all__ = ["CLASSES", "SENSORS", "Scene", "Sensor", "Sweep", "make_scene", "simulate_frames", "simulate_sweep"]
