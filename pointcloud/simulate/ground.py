"""Ground of a scene: roads in road coordinates, and the raster of height, label and reflectivity made from them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from pointcloud.simulate.classes import EXTENT, ROAD, SIDEWALK, VEGETATION

CELL = 0.25
REFLECTIVITY = {ROAD: 0.22, SIDEWALK: 0.33, VEGETATION: 0.40}


@dataclass(frozen=True)
class Parcel:
    """A stretch [start, end] metres of one side of a road and what lies there."""

    start: float
    end: float
    kind: str
    label: int


@dataclass(frozen=True)
class Side:
    """What follows the carriageway on one side, from the kerb outwards. Lengths in metres."""

    verge: float
    sidewalk: float
    parking: bool
    bank_start: float
    bank_slope: float
    bank_rise: float
    parcels: tuple[Parcel, ...]

    @property
    def width(self) -> float:
        return self.verge + self.sidewalk


@dataclass(frozen=True)
class Road:
    """A carriageway along an arc. (s, d): metres along it and to the left of its centre line."""

    x: float
    y: float
    heading: float
    curvature: float
    half_width: float
    lanes: int
    strip: float  # width of the parking strip beside the lanes, 0 for none
    median: float  # half width of a raised strip in the middle, 0 for none
    s_min: float
    s_max: float
    left: Side
    right: Side

    def locate(self, x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """(s, d) of points."""
        cos, sin = math.cos(self.heading), math.sin(self.heading)
        east, north = np.asarray(x) - self.x, np.asarray(y) - self.y
        along, across = east * cos + north * sin, north * cos - east * sin
        if self.curvature == 0.0:
            return along, across
        radius = 1.0 / self.curvature
        sign = math.copysign(1.0, radius)
        d = radius - sign * np.hypot(along, across - radius)
        s = radius * np.arctan2(sign * along, sign * (radius - across))
        return s, d

    def place(self, s: float, d: float) -> tuple[float, float, float]:
        """(x, y, heading) of the point (s, d)."""
        heading = self.heading + self.curvature * s
        if self.curvature == 0.0:
            along, across = s, d
        else:
            radius = 1.0 / self.curvature
            along = (radius - d) * math.sin(self.curvature * s)
            across = radius - (radius - d) * math.cos(self.curvature * s)
        cos, sin = math.cos(self.heading), math.sin(self.heading)
        return self.x + along * cos - across * sin, self.y + along * sin + across * cos, heading

    @property
    def lane_width(self) -> float:
        return 2 * (self.half_width - self.strip) / self.lanes

    def lane_centre(self, lane: int) -> float:
        """d of the middle of a lane, counted from the right."""
        return (lane + 0.5) * self.lane_width - (self.half_width - self.strip)

    def side(self, left: bool) -> Side:
        return self.left if left else self.right


@dataclass(frozen=True)
class Ground:
    """Rasters [rows = y, columns = x]; cell (0, 0) is centred at (-EXTENT, -EXTENT).

    height [n, n] float32 metres, label [n, n] uint8, reflectivity [n, n] float32, carriageway [n, n] bool,
    slope: upper bound of the terrain's slope without kerbs.
    """

    height: np.ndarray
    label: np.ndarray
    reflectivity: np.ndarray
    carriageway: np.ndarray
    slope: float

    def cells(self, x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Row and column of the nearest cell; points outside get the border's."""
        last = self.height.shape[0] - 1
        row = np.clip(np.rint((np.asarray(y) + EXTENT) / CELL), 0, last).astype(np.int64)
        column = np.clip(np.rint((np.asarray(x) + EXTENT) / CELL), 0, last).astype(np.int64)
        return row, column

    def z(self, x: float, y: float) -> float:
        """Height of the nearest cell."""
        row, column = self.cells(np.float64(x), np.float64(y))
        return float(self.height[row, column])


def _terrain(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    slope = np.clip(rng.normal(0.0, 0.012, 2), -0.04, 0.04)
    height = slope[0] * x + slope[1] * y
    for _ in range(5):
        length = rng.uniform(25.0, 110.0)
        angle, phase = rng.uniform(0, 2 * math.pi, 2)
        amplitude = min(rng.gamma(1.5, 0.05), 0.3) * length / 70.0
        turn = 2 * math.pi / length
        # separable: sin(a + b) from the sines of rows and columns, far cheaper than a sine per cell
        a, b = turn * math.cos(angle) * x, turn * math.sin(angle) * y + phase
        height = height + amplitude * (np.sin(a) * np.cos(b) + np.cos(a) * np.sin(b))
    return height.astype(np.float32)


def _markings(rng: np.random.Generator, road: Road, s: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Painted lines: dashed between lanes, solid at the edges of some roads."""
    width = road.lane_width
    shift = 0.5 * (road.lanes % 2)
    nearest = np.rint(d / width - shift) + shift
    dashed = (np.abs(d - nearest * width) < 0.13) & (np.mod(s, 9.0) < 4.0)
    if rng.random() < 0.5:
        dashed |= np.abs(np.abs(d) - road.half_width + 0.35) < 0.13
    return dashed & (np.abs(d) < road.half_width)


def build_ground(rng: np.random.Generator, roads: tuple[Road, ...], kerb: float, yard: int, rough: float) -> Ground:
    """Raster of the roads and what lies beside them.

    kerb: height in metres by which everything but carriageways is raised; yard: label far from every road;
    rough: standard deviation in metres of grass height.
    """
    n = round(2 * EXTENT / CELL) + 1
    axis = np.linspace(-EXTENT, EXTENT, n)
    x, y = axis[None, :], axis[:, None]
    height = _terrain(rng, x, y)
    label = np.full((n, n), yard, dtype=np.uint8)
    carriageway = np.zeros((n, n), dtype=bool)
    paint = np.zeros((n, n), dtype=bool)
    bank = np.zeros((n, n), dtype=np.float32)
    slope = 0.2
    outside = []
    located = []
    for order, road in enumerate(roads):
        s, d = (a.astype(np.float32) for a in np.broadcast_arrays(*road.locate(x, y)))
        located.append((s, d))
        inside = (s > road.s_min) & (s < road.s_max)
        for left in (True, False):
            side = road.side(left)
            out = (d if left else -d) - road.half_width
            beyond = (out > side.width) & inside
            if order == 0:
                table = np.array([p.label for p in side.parcels], dtype=np.uint8)
                breaks = np.array([p.end for p in side.parcels[:-1]], dtype=np.float32)
                label[beyond] = table[np.searchsorted(breaks, s[beyond])]
                rise = np.clip((out - side.width - side.bank_start) * abs(side.bank_slope), 0.0, side.bank_rise)
                bank += math.copysign(1.0, side.bank_slope) * rise
                slope = max(slope, 0.2 + 1.3 * abs(side.bank_slope))
    for road, (s, d) in zip(roads, located):
        inside = (s > road.s_min) & (s < road.s_max)
        for left in (True, False):
            side = road.side(left)
            out = (d if left else -d) - road.half_width
            label[inside & (out > 0) & (out <= side.width)] = SIDEWALK
            label[inside & (out > 0) & (out <= side.verge)] = VEGETATION
            if side.width == 0:  # an unpaved shoulder
                label[inside & (out > 0) & (out <= 0.8)] = VEGETATION
        outside.append(np.where(inside, np.abs(d) - road.half_width, np.float32(1e3)))
    # Car parks lie level with the carriageway, so that a kerb tells where vehicles and where people belong.
    level = label == ROAD
    for road, (s, d), out in zip(roads, located, outside):
        lane = out <= 0
        label[lane] = ROAD
        carriageway |= lane
        paint |= _markings(rng, road, s, d) & lane
        # A crowned road sheds water: 2 % down from the middle.
        height -= np.float32(0.02) * np.minimum(np.abs(d), np.float32(road.half_width)) * (len(roads) == 1)
    for i in range(len(outside)):
        for j in range(i):  # rounded corners, free of paint
            radius = np.float32(4.0)
            a, b = outside[i], outside[j]
            corner = (a > -1) & (b > -1) & (a < radius) & (b < radius) & (np.hypot(radius - a, radius - b) > radius)
            label[corner] = ROAD
            carriageway |= corner
            paint[(a <= 0) & (b <= 0)] = False
    median_label = SIDEWALK if rng.random() < 0.4 else VEGETATION
    for i, (road, (_, d)) in enumerate(zip(roads, located)):
        if road.median > 0:
            strip = (np.abs(d) < road.median) & (outside[i] <= 0)
            for j in range(len(outside)):
                if j != i:
                    strip &= outside[j] > 3.0
            label[strip] = median_label
            carriageway[strip] = False
            paint[strip] = False
    # Banks and ditches end where a crossing road runs through them.
    if len(roads) > 1:
        nearest = np.minimum.reduce(outside[1:])
        bank *= np.clip((nearest - 3.0) / 12.0, 0.0, 1.0)
    height += bank
    height[~(carriageway | level)] += np.float32(kerb)
    grass = label == VEGETATION
    height[grass] += (rough * np.abs(rng.standard_normal(int(grass.sum())))).astype(np.float32)
    table = np.zeros(VEGETATION + 1, dtype=np.float32)
    for key, value in REFLECTIVITY.items():
        table[key] = value * rng.uniform(0.75, 1.25)
    reflectivity = table[label]
    reflectivity[paint & (label == ROAD)] = 0.75
    return Ground(height, label, reflectivity, carriageway, slope)
