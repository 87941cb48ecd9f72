"""Procedural street scenes: a plan of roads and parcels, filled with buildings, plants, vehicles, poles and people."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pointcloud.simulate.classes import EXTENT, SIDEWALK, VEGETATION
from pointcloud.simulate.ground import Ground, Parcel, Road, build_ground
from pointcloud.simulate.layout import STYLES, Style, pick_style, plan_roads
from pointcloud.simulate.objects import (
    Builder,
    add_building,
    add_bush,
    add_hedge,
    add_person,
    add_pole,
    add_rider,
    add_tree,
    add_vehicle,
    add_wall,
    vehicle_size,
)


@dataclass(frozen=True)
class Scene:
    """A street scene around the sensor, which stands at x = y = 0 and drives along +x; y points left, z up.

    primitives: [P, COLUMNS] float64, see raycast.COLUMNS.
    """

    style: str
    ground: Ground
    primitives: np.ndarray
    roads: tuple[Road, ...]


class _Occupancy:
    """Which half-metre cells are taken, so that objects do not stand in each other."""

    CELL = 0.5

    def __init__(self) -> None:
        n = int(2 * EXTENT / self.CELL) + 1
        self.taken = np.zeros((n, n), dtype=bool)

    def cells(self, x: float, y: float, yaw: float, half: tuple[float, float]) -> tuple[np.ndarray, np.ndarray] | None:
        """Indices of the cells under an oriented rectangle, None where it leaves the scene."""
        reach = math.hypot(*half)
        if max(abs(x), abs(y)) + reach > EXTENT - 1:
            return None
        u = np.linspace(-half[0], half[0], max(2, int(half[0] / 0.2) + 1))
        v = np.linspace(-half[1], half[1], max(2, int(half[1] / 0.2) + 1))[:, None]
        px = x + math.cos(yaw) * u - math.sin(yaw) * v
        py = y + math.sin(yaw) * u + math.cos(yaw) * v
        return np.rint((py + EXTENT) / self.CELL).astype(int), np.rint((px + EXTENT) / self.CELL).astype(int)

    def take(self, x: float, y: float, yaw: float, half: tuple[float, float]) -> bool:
        """Take the rectangle if all of it is free; tells whether it was."""
        cells = self.cells(x, y, yaw, half)
        if cells is None or self.taken[cells].any():
            return False
        self.taken[cells] = True
        return True


class _Composer:
    """Fills the plan; every method draws from the one generator, in a fixed order."""

    def __init__(self, rng: np.random.Generator, style: Style, roads: tuple[Road, ...], ground: Ground) -> None:
        self.rng, self.style, self.roads, self.ground = rng, style, roads, ground
        self.builder = Builder()
        self.occupancy = _Occupancy()
        self.occupancy.take(0.0, 0.0, 0.0, (4.0, 1.6))

    def put(self, x: float, y: float, yaw: float, half: tuple[float, float], off_road: bool = True) -> bool:
        """Take the place and move the builder there; off_road refuses carriageways."""
        if off_road:
            cells = self.occupancy.cells(x, y, yaw, half)
            if cells is None:
                return False
            rows, columns = self.ground.cells(cells[1] * 0.5 - EXTENT, cells[0] * 0.5 - EXTENT)
            if self.ground.carriageway[rows, columns].any():
                return False
        if not self.occupancy.take(x, y, yaw, half):
            return False
        self.builder.at(x, y, self.ground.z(x, y), yaw)
        return True

    def tree(self, x: float, y: float, low: float = 4.0, high: float = 14.0) -> None:
        if self.put(x, y, 0.0, (0.5, 0.5)):
            add_tree(self.builder, self.rng, float(self.rng.uniform(low, high)))

    def bush(self, x: float, y: float) -> None:
        if self.put(x, y, 0.0, (0.5, 0.5)):
            add_bush(self.builder, self.rng)

    def vehicle(self, x: float, y: float, yaw: float, small: bool, off_road: bool) -> float:
        """A vehicle if there is room; its length either way."""
        size = vehicle_size(self.rng, small)
        if self.put(x, y, yaw, (size[1] / 2 + 0.2, size[2] / 2), off_road):
            add_vehicle(self.builder, self.rng, size)
        return size[1]

    def person(self, x: float, y: float, off_road: bool = True) -> None:
        if math.hypot(x, y) > 2.5 and self.put(x, y, float(self.rng.uniform(0, 6.3)), (0.2, 0.25), off_road):
            add_person(self.builder, self.rng)

    def buildings(self, road: Road, left: bool, parcel: Parcel, back: float, house: bool, height: float) -> None:
        """Buildings side by side along a parcel, `back` metres behind the sidewalk."""
        rng = self.rng
        sign = 1.0 if left else -1.0
        front = road.half_width + road.side(left).width + back
        s = parcel.start + (float(rng.uniform(0.5, 4.0)) if house else 0.0)
        while s < parcel.end - 5.0:
            length = min(float(rng.uniform(7.0, 14.0) if house else rng.uniform(10.0, 35.0)), parcel.end - s)
            depth = float(rng.uniform(7.0, 12.0) if house else rng.uniform(8.0, 22.0))
            x, y, yaw = road.place(s + length / 2, sign * front)
            # Seen from the street a building extends towards its own +y.
            yaw = yaw if left else yaw + math.pi
            cx, cy = x - math.sin(yaw) * depth / 2, y + math.cos(yaw) * depth / 2
            if self.put(cx, cy, yaw, (length / 2 - 0.3, depth / 2)):
                self.builder.at(x, y, self.ground.z(cx, cy), yaw)
                tall = height * float(rng.uniform(0.8, 1.25))
                add_building(self.builder, rng, length, depth, tall, house)
            s += length + (float(rng.uniform(1.5, 8.0)) if house or rng.random() < 0.35 else 0.05)

    def frontage(self, road: Road, left: bool, parcel: Parcel, back: float) -> None:
        """Hedge, wall or fence along the front of a parcel, with a gap for the entrance."""
        rng = self.rng
        sign = 1.0 if left else -1.0
        d = sign * (road.half_width + road.side(left).width + back)
        kind = rng.random()
        height = float(rng.uniform(0.6, 2.2))
        step = 6.0
        for s in np.arange(parcel.start + step / 2, parcel.end - step / 2, step):
            if rng.random() < 0.15:
                continue
            x, y, yaw = road.place(float(s), d)
            if self.put(x, y, yaw, (step / 2 - 0.1, 0.3)):
                if kind < 0.5:
                    add_hedge(self.builder, rng, step, height)
                else:
                    add_wall(self.builder, rng, step, height)

    def parcel(self, road: Road, left: bool, parcel: Parcel) -> None:
        rng, style = self.rng, self.style
        sign = 1.0 if left else -1.0
        edge = road.half_width + road.side(left).width
        length = parcel.end - parcel.start

        def spot(near: float, far: float) -> tuple[float, float]:
            s, d = float(rng.uniform(parcel.start, parcel.end)), edge + float(rng.uniform(near, far))
            return road.place(s, sign * d)[:2]

        tall = float(rng.uniform(*style.building_height))
        if parcel.kind in ("building", "house"):
            house = parcel.kind == "house"
            back = float(rng.uniform(*style.setback))
            self.buildings(road, left, parcel, back, house, min(tall, 7.0) if house else tall)
            if back > 2.0 and rng.random() < 0.6 * style.clutter:
                self.frontage(road, left, parcel, 0.5)
            for _ in range(int(rng.poisson(0.12 * length * style.clutter if back > 2.5 else 0.0))):
                self.bush(*spot(0.5, back))
            for _ in range(int(rng.poisson(0.05 * length if back > 4.0 else 0.0))):
                self.tree(*spot(1.5, back - 1.0), 3.0, 9.0)
            if house and back > 5.0 and rng.random() < 0.6:
                x, y, yaw = road.place(float(rng.uniform(parcel.start, parcel.end)), sign * (edge + 3.0))
                self.vehicle(x, y, yaw + math.pi / 2, True, True)
            for _ in range(int(rng.poisson(0.06 * length))):
                self.tree(*spot(back + 12.0, back + 35.0))
        elif parcel.kind == "parking":
            self.car_park(road, sign, edge, parcel)
        elif parcel.kind == "wall":
            self.frontage(road, left, parcel, float(rng.uniform(0.2, 3.0)))
            for _ in range(int(rng.poisson(0.15 * length))):
                self.tree(*spot(3.5, 20.0))
        else:
            crowded = {"park": 0.12, "woods": 0.5, "square": 0.04}[parcel.kind] * float(rng.uniform(0.4, 1.6))
            for _ in range(int(rng.poisson(crowded * length))):
                self.tree(*spot(1.5, 30.0), 3.5, 16.0)
            for _ in range(int(rng.poisson(crowded * length * (0.3 if parcel.kind == "square" else 1.0)))):
                self.bush(*spot(0.8, 20.0))
            for _ in range(int(rng.poisson({"square": 5.0, "park": 1.5, "woods": 0.2}[parcel.kind]))):
                self.person(*spot(0.5, 20.0))
            for _ in range(int(rng.poisson(2.0 if parcel.kind == "square" else 0.4))):
                x, y = spot(0.3, 18.0)
                if self.put(x, y, float(rng.uniform(0, 6.3)), (0.2, 0.2)):
                    add_pole(self.builder, rng, str(rng.choice(["lamp", "bollard", "sign"])))
        if parcel.kind not in ("building", "house", "woods") and rng.random() < 0.6:
            self.buildings(road, left, parcel, float(rng.uniform(18.0, 40.0)), False, tall)

    def car_park(self, road: Road, sign: float, edge: float, parcel: Parcel) -> None:
        rng = self.rng
        filled = float(rng.uniform(0.2, 0.95))
        row = 3.2
        while row < 30.0 and row < 10.0 + 0.6 * (parcel.end - parcel.start):
            for s in np.arange(parcel.start + 1.5, parcel.end - 1.5, 2.7):
                if rng.random() < filled:
                    x, y, yaw = road.place(float(s), sign * (edge + row + float(rng.normal(0.0, 0.2))))
                    turn = math.pi / 2 * (1.0 if rng.random() < 0.5 else -1.0) + float(rng.normal(0.0, 0.03))
                    self.vehicle(x, y, yaw + turn, True, True)
            row += 11.0 if rng.random() < 0.5 else 5.6
        for _ in range(int(rng.integers(0, 3))):
            s, d = float(rng.uniform(parcel.start, parcel.end)), edge + float(rng.uniform(6, 20))
            x, y, yaw = road.place(s, sign * d)
            if self.put(x, y, yaw, (0.3, 0.3)):
                add_pole(self.builder, rng, "lamp")

    def traffic(self, road: Road) -> None:
        """Moving vehicles in the lanes."""
        rng = self.rng
        left_hand = rng.random() < 0.3
        one_way = road.lanes == 1 or rng.random() < 0.15
        for lane in range(road.lanes):
            d = road.lane_centre(lane)
            if road.median > 0:
                d += road.median * (1.0 if lane >= road.lanes / 2 else -1.0) * 0.5
            forward = one_way or ((d < 0) != left_hand)
            s = max(road.s_min, -100.0) + float(rng.exponential(20.0))
            jam = rng.random() < 0.15
            while s < min(road.s_max, 100.0):
                x, y, yaw = road.place(s, d + float(rng.normal(0.0, 0.2)))
                turned = yaw + float(rng.normal(0.0, 0.02)) + (0.0 if forward else math.pi)
                if rng.random() < 0.04 and self.put(x, y, turned, (1.0, 0.4), False):
                    add_rider(self.builder, rng)
                    length = 2.0
                else:
                    length = self.vehicle(x, y, turned, False, False)
                gap = float(rng.uniform(1.5, 4.0)) if jam else 3.0 + float(rng.exponential(100.0 / self.style.traffic))
                s += length + gap

    def parked(self, road: Road, left: bool) -> None:
        rng = self.rng
        sign = 1.0 if left else -1.0
        share = self.style.parked * float(rng.uniform(0.4, 1.5))
        s = -100.0 + float(rng.uniform(0, 8))
        while s < 100.0:
            if rng.random() < share:
                x, y, yaw = road.place(s, sign * (road.half_width - 1.1 + float(rng.normal(0.0, 0.1))))
                if road.s_min < s < road.s_max:
                    turn = float(rng.normal(0, 0.02)) + (math.pi if rng.random() < 0.3 else 0.0)
                    self.vehicle(x, y, yaw + turn, True, False)
            s += float(rng.uniform(5.5, 7.0))

    def street_furniture(self, road: Road, left: bool) -> None:
        """Lamps, signs, bollards and trees along the kerb."""
        rng, style = self.rng, self.style
        sign = 1.0 if left else -1.0
        side = road.side(left)
        inwards = -math.pi / 2 if left else math.pi / 2
        kind = "utility" if style is STYLES["rural"] or rng.random() < 0.15 else "lamp"
        spacing = float(rng.uniform(18.0, 40.0))
        if rng.random() < 0.75:
            for s in np.arange(-100.0 + float(rng.uniform(0, spacing)), 100.0, spacing):
                x, y, yaw = road.place(float(s), sign * (road.half_width + float(rng.uniform(0.4, 0.9))))
                if self.put(x, y, yaw + inwards, (0.15, 0.15)):
                    add_pole(self.builder, rng, kind)
        for _ in range(int(rng.poisson(7.0 * style.clutter))):
            x, y, yaw = road.place(float(rng.uniform(-80, 80)), sign * (road.half_width + float(rng.uniform(0.3, 1.2))))
            facing = yaw + (math.pi if rng.random() < 0.5 else 0.0) + float(rng.normal(0.0, 0.2))
            if self.put(x, y, facing, (0.15, 0.15)):
                add_pole(self.builder, rng, "sign")
        if side.width > 1.5 and rng.random() < 0.2 * style.clutter:
            start = float(rng.uniform(-40, 30))
            for s in np.arange(start, start + float(rng.uniform(5, 40)), float(rng.uniform(1.4, 3.0))):
                x, y, yaw = road.place(float(s), sign * (road.half_width + 0.4))
                if self.put(x, y, yaw, (0.12, 0.12)):
                    add_pole(self.builder, rng, "bollard")
        if side.width > 1.2 and rng.random() < style.street_trees:
            spacing = float(rng.uniform(6.0, 18.0))
            low = float(rng.uniform(3.5, 9.0))
            for s in np.arange(-100.0 + float(rng.uniform(0, spacing)), 100.0, spacing):
                d = road.half_width + min(1.0, 0.4 * side.width)
                x, y, _ = road.place(float(s + rng.normal(0, 0.5)), sign * d)
                self.tree(x, y, low, low + 4.0)

    def pedestrians(self, road: Road) -> None:
        rng = self.rng
        for _ in range(int(rng.poisson(self.style.persons * float(rng.uniform(0.3, 1.4)) / 1.6))):
            left = rng.random() < 0.5
            side = road.side(left)
            s = float(rng.normal(0.0, 28.0))
            on_road = rng.random() < 0.1
            d = float(rng.uniform(0, road.half_width))
            if not on_road:
                d = road.half_width + float(rng.uniform(0.3, side.width + 1.5))
            x, y, _ = road.place(s, d if left else -d)
            for _ in range(1 if rng.random() < 0.6 else int(rng.integers(2, 6))):
                self.person(x, y, not on_road)
                x, y = x + float(rng.normal(0, 0.6)), y + float(rng.normal(0, 0.6))

    def median_strip(self, road: Road) -> None:
        rng = self.rng
        if road.median < 0.6:
            return
        if rng.random() < 0.5:
            spacing = float(rng.uniform(6.0, 15.0))
            for s in np.arange(-90.0, 90.0, spacing):
                x, y, _ = road.place(float(s), 0.0)
                self.tree(x, y, 4.0, 9.0)
        elif rng.random() < 0.5:
            for s in np.arange(-90.0, 90.0, 6.0):
                x, y, yaw = road.place(float(s), 0.0)
                if self.put(x, y, yaw, (2.8, 0.2)):
                    add_hedge(self.builder, rng, 6.0, 0.9)

    def signals(self) -> None:
        """Traffic lights at the corners of a crossing."""
        rng = self.rng
        if len(self.roads) < 2 or rng.random() < 0.4:
            return
        main, other = self.roads[0], self.roads[1]
        s0, _ = main.locate(np.float64(other.x), np.float64(other.y))
        for side in (-1.0, 1.0):
            for end in (-1.0, 1.0):
                x, y, yaw = main.place(float(s0) + end * (other.half_width + 1.6), side * (main.half_width + 1.2))
                if self.put(x, y, yaw + side * -math.pi / 2, (0.2, 0.2)):
                    add_pole(self.builder, rng, "signal")

    def compose(self) -> np.ndarray:
        for road in self.roads:
            self.traffic(road)
            for left in (True, False):
                if road.side(left).parking:
                    self.parked(road, left)
        self.signals()
        for road in self.roads:
            self.median_strip(road)
            for left in (True, False):
                self.street_furniture(road, left)
                for parcel in road.side(left).parcels:
                    if parcel.start < road.s_max and parcel.end > road.s_min:
                        self.parcel(road, left, parcel)
        for road in self.roads:
            self.pedestrians(road)
        return self.builder.array()


def check_seed(seed: int) -> None:
    """Raises ValueError unless the seed is an integer that fits a signed 64-bit one and is not negative."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**63:
        raise ValueError(f"seed must be an integer from 0 to 2**63 - 1, got {seed!r}")


def make_scene(seed: int) -> Scene:
    """The scene of a seed: the same seed always gives the same scene. Raises ValueError for a bad seed."""
    check_seed(seed)
    rng = np.random.default_rng([int(seed), 0])
    name = pick_style(rng)
    style = STYLES[name]
    roads = plan_roads(rng, style)
    kerb = float(rng.uniform(0.06, 0.2)) if style.kerb else 0.02
    yard = VEGETATION if not style.kerb or rng.random() < 0.6 else SIDEWALK
    ground = build_ground(rng, roads, kerb, yard, float(rng.uniform(0.03, 0.07)))
    return Scene(name, ground, _Composer(rng, style, roads, ground).compose(), roads)
