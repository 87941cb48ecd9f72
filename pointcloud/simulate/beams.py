"""Beam tables of the two rotating LiDARs that public driving data was recorded with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np

from common_models.names import did_you_mean
from pointcloud.simulate.classes import EXTENT


@dataclass(frozen=True)
class Sensor:
    """A rotating LiDAR: where its beams point and how it errs.

    `elevations_deg` ascends, so ring 0 is the lowest beam (as in nuScenes files). Lengths are metres.
    `visibility` is the range at which a white surface facing the sensor is still seen half of the time;
    darker and slanted surfaces vanish earlier. `intensity_gain` maps reflectivity to the recorded 0..1 intensity.
    """

    name: str
    elevations_deg: tuple[float, ...]
    azimuth_steps: int
    height: float
    max_range: float
    min_range: float
    range_noise: float
    dropout: float
    visibility: float
    intensity_gain: float

    def __post_init__(self) -> None:
        elevations = np.asarray(self.elevations_deg, dtype=np.float64)
        if elevations.ndim != 1 or elevations.size == 0 or not np.all(np.abs(elevations) < 90):
            raise ValueError(f"elevations_deg must be a non-empty list of angles in (-90, 90), got {elevations}")
        if np.any(np.diff(elevations) <= 0):
            raise ValueError("elevations_deg must ascend: ring 0 is the lowest beam")
        if not isinstance(self.azimuth_steps, int) or self.azimuth_steps < 1:
            raise ValueError(f"azimuth_steps must be an integer >= 1, got {self.azimuth_steps!r}")
        if not 0 <= self.min_range < self.max_range <= EXTENT:
            raise ValueError(
                f"need 0 <= min_range < max_range <= {EXTENT:g} m, where scenes end, "
                f"got {self.min_range} and {self.max_range}"
            )
        if not 1.5 <= self.height <= 4.0:
            raise ValueError(f"height must be 1.5 to 4 m, on the roof of a car, got {self.height}")
        for name in ("visibility", "intensity_gain"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not self.range_noise >= 0:
            raise ValueError(f"range_noise must not be negative, got {self.range_noise}")
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"dropout must be within 0..1, got {self.dropout}")

    @property
    def rings(self) -> int:
        """Number of beams."""
        return len(self.elevations_deg)


# HDL-32E: 32 beams, 4/3 degree apart, from -30.67 to +10.67. nuScenes: 20 turns per second, 1.84 m above ground.
_HDL32 = tuple(float(e) for e in np.linspace(-92 / 3, 32 / 3, 32))

# HDL-64E: a lower block of 32 beams 1/2 degree apart and an upper block 1/3 degree apart. KITTI: 1.73 m.
_HDL64 = tuple(float(e) for e in np.linspace(-24 - 1 / 3, -8 - 5 / 6, 32)) + tuple(
    float(e) for e in np.linspace(-8 - 1 / 3, 2.0, 32)
)

SENSORS: Final[Mapping[str, Sensor]] = MappingProxyType(
    {
        "hdl32": Sensor("hdl32", _HDL32, 1090, 1.84, 70.0, 1.0, 0.02, 0.02, 200.0, 0.28),
        "hdl64": Sensor("hdl64", _HDL64, 2083, 1.73, 120.0, 2.0, 0.02, 0.03, 240.0, 1.5),
    }
)


def get_sensor(sensor: str | Sensor) -> Sensor:
    """The sensor itself, or the one of that name.

    Raises:
        TypeError: neither a name nor a Sensor.
        ValueError: an unknown name; the message lists the close ones.
    """
    if isinstance(sensor, Sensor):
        return sensor
    if not isinstance(sensor, str):
        raise TypeError(f"sensor must be a name or a Sensor, got {type(sensor).__name__}")
    if sensor not in SENSORS:
        hint = did_you_mean(sensor.lower(), SENSORS, cutoff=0.4)
        raise ValueError(f"sensor must be one of {sorted(SENSORS)}, got {sensor!r}{hint}")
    return SENSORS[sensor]
