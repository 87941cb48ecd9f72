"""Data packets of Velodyne LiDARs whose beams are the same in every unit, by the geometry in the makers' manuals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pointcloud.io.columns import Array, Columns

PACKET_BYTES = 1206
_BLOCKS, _LASERS = 12, 32
# Points of one capture: beyond it a capture is cut into pieces, memory is not.
_MAX_POINTS = 1 << 26
_DUAL = 0x39
_VLP16 = (-15, 1, -13, 3, -11, 5, -9, 7, -7, 9, -5, 11, -3, 13, -1, 15)
_VLP16_HEIGHTS = (11.2, -0.7, 9.7, -2.2, 8.1, -3.7, 6.6, -5.1, 5.1, -6.6, 3.7, -8.1, 2.2, -9.7, 0.7, -11.2)
_VLP32C = (
    -25, -1, -1.667, -15.639, -11.31, 0, -0.667, -8.843, -7.254, 0.333, -0.333, -6.148, -5.333, 1.333, 0.667, -4,
    -4.667, 1.667, 1, -3.667, -3.333, 3.333, 2.333, -2.667, -3, 7, 4.667, -2.333, -2, 15, 10.333, -1.333,
)  # fmt: skip
_VLP32C_AZIMUTHS = (
    1.4, -4.2, 1.4, -1.4, 1.4, -1.4, 4.2, -1.4, 1.4, -4.2, 1.4, -1.4, 4.2, -1.4, 4.2, -1.4,
    1.4, -4.2, 1.4, -4.2, 4.2, -1.4, 1.4, -1.4, 1.4, -1.4, 1.4, -4.2, 4.2, -1.4, 1.4, -1.4,
)  # fmt: skip


@dataclass(frozen=True)
class _Sensor:
    name: str
    elevations: tuple[float, ...]  # degrees, by laser
    firing: float  # microseconds between lasers
    cycle: float  # microseconds of one firing of all lasers
    heights: tuple[float, ...] = (0.0,) * 32  # millimetres above the middle
    azimuths: tuple[float, ...] = (0.0,) * 32  # degrees
    unit: float = 0.002  # metres
    together: int = 1  # lasers that fire at once


_HDL32 = tuple(round(start + 4 / 3 * step, 2) for step in range(16) for start in (-30.67, -9.33))
_SENSORS = {
    0x21: _Sensor("HDL-32E", _HDL32, 1.152, 46.08),
    0x22: _Sensor("VLP-16", _VLP16, 2.304, 55.296, _VLP16_HEIGHTS),
    0x24: _Sensor(
        "Puck Hi-Res",
        tuple(round(e * 2 / 3, 3) for e in _VLP16),
        2.304,
        55.296,
        (7.4, -0.9, 6.5, -1.8, 5.5, -2.7, 4.6, -3.7, 3.7, -4.6, 2.7, -5.5, 1.8, -6.5, 0.9, -7.4),
    ),
    0x28: _Sensor("VLP-32C", _VLP32C, 2.304, 55.296, azimuths=_VLP32C_AZIMUTHS, unit=0.004, together=2),
}
_PACKET = np.dtype(
    {
        "names": ["blocks", "time", "mode", "sensor"],
        "formats": [
            (
                [("flag", "<u2"), ("azimuth", "<u2"), ("echo", [("distance", "<u2"), ("reflectivity", "u1")], _LASERS)],
                _BLOCKS,
            ),
            "<u4",
            "u1",
            "u1",
        ],
        "offsets": [0, 1200, 1204, 1205],
        "itemsize": PACKET_BYTES,
    }
)


def _sensor_of(packets: Array) -> _Sensor:
    if bool((packets["blocks"]["flag"] == 0xDDFF).any()):
        raise ValueError("packets of a Velodyne HDL-64E or VLS-128, whose beams each unit's calibration file tells")
    kinds = np.unique(packets["sensor"])
    if len(kinds) > 1:
        raise ValueError(
            f"expected packets of one sensor, got the product numbers {', '.join(map(hex, kinds.tolist()))}"
        )
    sensor = _SENSORS.get(int(kinds[0]))
    if sensor is None:
        known = ", ".join(known.name for known in _SENSORS.values())
        raise ValueError(f"packets of the Velodyne product {int(kinds[0]):#x}, expected {known}")
    return sensor


def decode_packets(payloads: Sequence[bytes]) -> Columns:
    """x y z (metres; forward, left, up), intensity, ring, time, turn of the packets of 1206 bytes of one sensor."""
    packets = np.frombuffer(b"".join(payloads), dtype=_PACKET)
    sensor = _sensor_of(packets)
    blocks = packets["blocks"]
    if not bool((blocks["flag"] == 0xEEFF).all()) or not bool((blocks["azimuth"] < 36000).all()):
        raise ValueError(
            "corrupt Velodyne packets: a block without its flag or with an azimuth of 360 degrees and more"
        )
    distance = blocks["echo"]["distance"]  # [packets, blocks, lasers]
    seen = distance > 0
    if int(seen.sum()) > _MAX_POINTS:
        raise ValueError(f"more than {_MAX_POINTS} points in one capture; cut it: editcap -c 100000 IN.pcap OUT.pcap")
    dual = bool((packets["mode"] == _DUAL).any())
    start = blocks["azimuth"].astype(np.float64) / 100
    # How far the head turns in a block: to the next block of other direction; the last goes on as the one before.
    step = 2 if dual else 1
    turned = np.diff(start[:, ::step], axis=1) % 360
    turned = np.repeat(np.concatenate([turned, turned[:, -1:]], axis=1), step, axis=1)

    n_lasers = len(sensor.elevations)
    laser, cycle = np.arange(_LASERS) % n_lasers, np.arange(_LASERS) // n_lasers
    after = cycle * sensor.cycle + laser // sensor.together * sensor.firing  # microseconds, [lasers]
    share = after / (sensor.cycle * (_LASERS // n_lasers))
    azimuth = start[..., None] + turned[..., None] * share + np.array(sensor.azimuths)[laser]
    offset = np.arange(_BLOCKS) // step * sensor.cycle * (_LASERS // n_lasers)
    time = packets["time"].astype(np.int64)[:, None, None] + np.rint(offset[:, None] + after).astype(np.int64)

    order = np.argsort(np.argsort(sensor.elevations))
    angle, elevation = np.radians(azimuth[seen]), np.radians(np.array(sensor.elevations))[laser]
    reach = distance[seen] * sensor.unit
    elevation = np.broadcast_to(elevation, seen.shape)[seen]
    flat = reach * np.cos(elevation)
    height = np.broadcast_to(np.array(sensor.heights)[laser] / 1000, seen.shape)[seen]
    # The sensor counts clockwise from its front.
    return {
        "x": (flat * np.cos(angle)).astype(np.float32),
        "y": (-flat * np.sin(angle)).astype(np.float32),
        "z": (reach * np.sin(elevation) + height).astype(np.float32),
        "intensity": blocks["echo"]["reflectivity"][seen].astype(np.float32),
        "ring": np.broadcast_to(order[laser], seen.shape)[seen].astype(np.int32),
        "time": time[seen],
        "turn": np.broadcast_to(_turns(start)[..., None], seen.shape)[seen],
    }


def _turns(azimuth: Array) -> Array:
    """int32 like `azimuth` [packets, blocks]: how often the head passed the front before the block."""
    flat = azimuth.reshape(-1)
    passed = np.concatenate([[False], np.diff(flat) < -180])
    return np.cumsum(passed).astype(np.int32).reshape(azimuth.shape)
