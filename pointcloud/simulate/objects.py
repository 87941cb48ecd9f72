"""Street furniture, vehicles, plants, buildings and people, assembled from the ray caster's primitives."""

from __future__ import annotations

import itertools
import math

import numpy as np

from pointcloud.simulate.classes import (
    BUILDING,
    CYLINDER,
    ELLIPSOID,
    FACADE,
    FENCE,
    FOLIAGE,
    FRUSTUM,
    GLASS,
    PERSON,
    POLE,
    SOLID,
    VEGETATION,
    VEHICLE,
)
from pointcloud.simulate.raycast import COLUMNS


class Builder:
    """Collects primitives. Objects are added in their own frame (x forward, z up) placed at (x, y, z, yaw)."""

    def __init__(self) -> None:
        self._rows: list[tuple[float, ...]] = []
        self.at(0.0, 0.0, 0.0, 0.0)

    def at(self, x: float, y: float, z: float, yaw: float) -> Builder:
        """Set the frame of the primitives that follow."""
        self._x, self._y, self._z, self._yaw = x, y, z, yaw
        self._cos, self._sin = math.cos(yaw), math.sin(yaw)
        return self

    def add(
        self,
        kind: int,
        centre: tuple[float, float, float],
        half: tuple[float, float, float],
        label: int,
        reflectivity: float,
        inset: tuple[float, float, float] = (0.0, 0.0, 0.0),
        surface: int = SOLID,
        parameters: tuple[float, float, float] = (0.0, 0.0, 0.0),
        turn: float = 0.0,
    ) -> None:
        """One primitive; inset: metres by which the top's front, rear and both sides draw in."""
        x = self._x + self._cos * centre[0] - self._sin * centre[1]
        y = self._y + self._sin * centre[0] + self._cos * centre[1]
        cos, sin = math.cos(self._yaw + turn), math.sin(self._yaw + turn)
        place = (float(kind), x, y, self._z + centre[2], *half, cos, sin)
        self._rows.append((*place, *inset, float(surface), *parameters, float(label), reflectivity))

    def box(self, x0: float, x1: float, width: float, z0: float, z1: float, label: int, reflectivity: float,
            inset: tuple[float, float, float] = (0.0, 0.0, 0.0), surface: int = SOLID,
            parameters: tuple[float, float, float] = (0.0, 0.0, 0.0), y: float = 0.0) -> None:  # fmt: skip
        """A box from x0 to x1 and z0 to z1, centred sideways on y."""
        centre = ((x0 + x1) / 2, y, (z0 + z1) / 2)
        self.add(FRUSTUM, centre, ((x1 - x0) / 2, width / 2, (z1 - z0) / 2), label, reflectivity, inset, surface,
                 parameters)  # fmt: skip

    def cylinder(self, radius: float, z0: float, z1: float, label: int, reflectivity: float,
                 x: float = 0.0, y: float = 0.0) -> None:  # fmt: skip
        half = (radius, radius, (z1 - z0) / 2)
        self.add(CYLINDER, (x, y, (z0 + z1) / 2), half, label, reflectivity)

    def array(self) -> np.ndarray:
        """Primitives [P, COLUMNS] float64."""
        return np.asarray(self._rows, dtype=np.float64).reshape(-1, COLUMNS)


# Length, width, height ranges in metres and how often each is met.
VEHICLES = {
    "sedan": ((4.3, 5.0), (1.75, 1.9), (1.40, 1.52), 0.30),
    "hatchback": ((3.6, 4.4), (1.65, 1.82), (1.42, 1.58), 0.26),
    "suv": ((4.4, 5.1), (1.8, 2.0), (1.62, 1.90), 0.18),
    "van": ((4.6, 6.2), (1.85, 2.1), (1.85, 2.6), 0.11),
    "pickup": ((5.1, 5.8), (1.85, 2.05), (1.75, 1.95), 0.05),
    "truck": ((6.5, 11.0), (2.3, 2.55), (2.9, 3.9), 0.05),
    "bus": ((9.5, 12.5), (2.45, 2.55), (2.9, 3.3), 0.05),
}


def vehicle_size(rng: np.random.Generator, small: bool) -> tuple[str, float, float, float]:
    """(shape, length, width, height); small: none longer than a parking place."""
    names = [n for n in VEHICLES if not (small and n in ("truck", "bus"))]
    weight = np.array([VEHICLES[n][3] for n in names])
    name = names[int(rng.choice(len(names), p=weight / weight.sum()))]
    length, width, height, _ = VEHICLES[name]
    return name, float(rng.uniform(*length)), float(rng.uniform(*width)), float(rng.uniform(*height))


def add_vehicle(b: Builder, rng: np.random.Generator, size: tuple[str, float, float, float]) -> None:
    """A vehicle centred on the frame, its nose towards +x, wheels on z = 0."""
    name, length, width, height = size
    paint = float(rng.choice([0.08, 0.2, 0.35, 0.55, 0.8]))
    nose, tail = length / 2, -length / 2
    glass = (float(rng.uniform(0.25, 0.97)), float(rng.uniform(0.8, 1.4)), 0.0)
    gloss = (float(rng.uniform(0.1, 0.6)) if rng.random() < 0.4 else 0.0, 0.0, 0.0)
    wheel = 0.5 if name in ("truck", "bus") else 0.34
    for x in (nose - 0.19 * length, tail + 0.19 * length):
        b.box(x - wheel, x + wheel, width - 0.06, 0.0, 2 * wheel * 0.95, VEHICLE, 0.06, (0.12, 0.12, 0.0))
    floor = float(rng.uniform(0.18, 0.30))
    if name == "bus":
        b.box(tail, nose, width, floor, 0.42 * height, VEHICLE, paint, (0.03, 0.03, 0.0), SOLID, gloss)
        b.box(tail, nose, width, 0.42 * height, 0.8 * height, VEHICLE, paint, (0.1, 0.04, 0.02), GLASS, glass)
        b.box(tail + 0.05, nose - 0.12, width, 0.8 * height, height, VEHICLE, paint, (0.1, 0.05, 0.06))
        return
    if name == "truck":
        cab = float(rng.uniform(1.6, 2.2))
        top = min(height, float(rng.uniform(2.3, 2.9)))
        b.box(nose - cab, nose, width - 0.1, 0.45, 1.5, VEHICLE, paint)
        b.box(nose - cab, nose, width - 0.1, 1.5, top, VEHICLE, paint, (0.3, 0.0, 0.08), GLASS, glass)
        b.box(tail, nose - cab, width - 0.3, 0.55, 0.95, VEHICLE, 0.1)
        kind = rng.random()
        if kind < 0.7:
            b.box(tail, nose - cab - 0.15, width, 0.95, height, VEHICLE, float(rng.uniform(0.3, 0.8)))
        elif kind < 0.85:
            b.box(tail, nose - cab - 0.15, width, 0.95, 1.7, VEHICLE, 0.3)
        else:  # tank
            half = ((nose - cab - 0.15 - tail) / 2, width / 2, 0.85)
            b.add(ELLIPSOID, (tail + half[0], 0.0, 1.8), half, VEHICLE, 0.5)
        return
    if name == "van":
        belt = 0.55 * height
        hood = float(rng.uniform(0.35, 0.9))
        b.box(tail, nose, width, floor, min(belt, 1.1), VEHICLE, paint, (0.12, 0.03, 0.03), SOLID, gloss)
        b.box(tail, nose - hood, width, min(belt, 1.1), belt + 0.28 * height, VEHICLE, paint,
              (0.25, 0.04, 0.06), GLASS, (glass[0] * 0.7, glass[1], 0.0))  # fmt: skip
        b.box(tail + 0.04, nose - hood - 0.25, width - 0.1, belt + 0.28 * height, height, VEHICLE, paint,
              (0.25, 0.08, 0.12))  # fmt: skip
        return
    belt = float(rng.uniform(0.56, 0.63)) * height
    hood_height = belt - float(rng.uniform(0.02, 0.14))
    hood = float(rng.uniform(0.21, 0.28)) * length
    b.box(nose - hood, nose, width, floor, hood_height, VEHICLE, paint, (0.18, 0.0, 0.06), SOLID, gloss)
    b.box(tail, nose - hood, width, floor, belt, VEHICLE, paint, (0.0, 0.10, 0.05), SOLID, gloss)
    front, side = float(rng.uniform(0.45, 0.75)), float(rng.uniform(0.12, 0.2))
    if name == "sedan":
        rear, back = float(rng.uniform(0.4, 0.65)), tail + float(rng.uniform(0.35, 0.75))
    elif name == "pickup":
        rear, back = 0.12, tail + float(rng.uniform(1.5, 2.0))
    else:
        rear, back = float(rng.uniform(0.12, 0.4)), tail + 0.06
    b.box(back, nose - hood + 0.1, width - 0.08, belt, height, VEHICLE, paint, (front, rear, side), GLASS, glass)


def add_person(b: Builder, rng: np.random.Generator) -> None:
    """A standing or walking person at the origin of the frame."""
    scale = float(np.clip(rng.normal(1.72, 0.12), 1.05, 1.98)) / 1.72
    cloth, trousers = (float(v) for v in rng.uniform(0.08, 0.7, 2))
    stride = float(rng.uniform(0.0, 0.28)) * scale
    hip = 0.82 * scale
    for sign in (-1.0, 1.0):
        b.cylinder(0.085 * scale, 0.0, hip, PERSON, trousers, sign * stride / 2, sign * 0.09 * scale)
        swing = sign * stride * 0.6
        half = (0.06 * scale, 0.06 * scale, 0.31 * scale)
        b.add(ELLIPSOID, (-swing, sign * 0.25 * scale, 1.12 * scale), half, PERSON, cloth)
    torso = (0.14 * scale, float(rng.uniform(0.19, 0.26)) * scale, 0.36 * scale)
    b.add(ELLIPSOID, (0.0, 0.0, 1.13 * scale), torso, PERSON, cloth)
    head = (0.105 * scale, 0.09 * scale, 0.13 * scale)
    b.add(ELLIPSOID, (0.0, 0.0, 1.59 * scale), head, PERSON, 0.35)


def add_rider(b: Builder, rng: np.random.Generator) -> None:
    """A person on a bicycle or a motorcycle (the two-wheeler counts as a vehicle)."""
    motor = rng.random() < 0.5
    half, top = (1.0, 0.85) if motor else (0.85, 0.75)
    b.box(-half, half, 0.28 if motor else 0.08, 0.05, top, VEHICLE, 0.2, (0.3, 0.3, 0.02), FENCE,
          (0.25 if motor else 0.6, 0.0, 0.0))  # fmt: skip
    cloth = float(rng.uniform(0.1, 0.6))
    b.add(ELLIPSOID, (0.05, 0.0, 1.2), (0.18, 0.22, 0.36), PERSON, cloth)
    b.add(ELLIPSOID, (0.18, 0.0, 1.64), (0.11, 0.1, 0.13), PERSON, 0.3)
    for sign in (-1.0, 1.0):
        b.add(ELLIPSOID, (0.05, sign * 0.13, 0.72), (0.12, 0.08, 0.35), PERSON, cloth)


def _foliage(rng: np.random.Generator) -> tuple[float, float, float]:
    return (float(rng.uniform(1.2, 5.0)), float(rng.uniform(0.05, 0.5)), float(rng.uniform(0.2, 0.6)))


def add_tree(b: Builder, rng: np.random.Generator, height: float) -> None:
    """A trunk and an irregular crown of overlapping leaf volumes, or a conifer."""
    leaves = _foliage(rng)
    green = float(rng.uniform(0.3, 0.5))
    trunk = height * float(rng.uniform(0.014, 0.028))
    if rng.random() < 0.15:
        b.cylinder(trunk, 0.0, 0.4 * height, VEGETATION, 0.3)
        spread = height * float(rng.uniform(0.14, 0.24))
        low = height * float(rng.uniform(0.02, 0.15))
        for k in range(4):
            z = low + (height - low) * (k + 0.5) / 4.6
            r = spread * (1.0 - 0.2 * k)
            b.add(ELLIPSOID, (0.0, 0.0, z), (r, r, (height - low) / 5.5), VEGETATION, green, (0.0, 0.0, 0.0),
                  FOLIAGE, leaves)  # fmt: skip
        return
    base = min(max(height * float(rng.uniform(0.22, 0.42)), 1.6), 4.5)
    lean = rng.normal(0.0, 0.03, 2) * height
    b.cylinder(trunk, 0.0, base + 0.25 * (height - base), VEGETATION, 0.3)
    radius = min(height * float(rng.uniform(0.2, 0.36)), 5.5)
    middle, rise = (base + height) / 2, (height - base) / 2
    for _ in range(int(rng.integers(3, 8))):
        part = float(rng.uniform(0.4, 0.75))
        offset = rng.normal(0.0, 0.36, 3)
        centre = (lean[0] + offset[0] * radius, lean[1] + offset[1] * radius, middle + 0.6 * offset[2] * rise)
        half = (part * radius, part * radius * float(rng.uniform(0.7, 1.3)), part * rise)
        b.add(ELLIPSOID, centre, half, VEGETATION, green, (0.0, 0.0, 0.0), FOLIAGE, leaves, float(rng.uniform(0, 3)))


def add_bush(b: Builder, rng: np.random.Generator) -> None:
    """One to three low leaf volumes on the ground."""
    leaves = (float(rng.uniform(3.0, 9.0)), float(rng.uniform(0.05, 0.3)), 0.2)
    size = float(rng.uniform(0.4, 1.3))
    for _ in range(int(rng.integers(1, 4))):
        x, y = rng.normal(0.0, 0.6 * size, 2)
        half = (size * float(rng.uniform(0.6, 1.2)), size, size * float(rng.uniform(0.5, 1.1)))
        b.add(ELLIPSOID, (x, y, 0.7 * half[2]), half, VEGETATION, 0.4, (0.0, 0.0, 0.0), FOLIAGE, leaves)


def add_hedge(b: Builder, rng: np.random.Generator, length: float, height: float) -> None:
    """A clipped hedge along x, centred on the frame."""
    leaves = (float(rng.uniform(4.0, 12.0)), float(rng.uniform(0.0, 0.2)), 0.2)
    b.box(-length / 2, length / 2, float(rng.uniform(0.5, 1.2)), 0.0, height, VEGETATION, 0.4,
          (0.05, 0.05, 0.06), FOLIAGE, leaves)  # fmt: skip


def add_wall(b: Builder, rng: np.random.Generator, length: float, height: float) -> None:
    """A wall or a fence along x (label building)."""
    if rng.random() < 0.4:
        b.box(-length / 2, length / 2, 0.06, 0.0, height, BUILDING, 0.3, surface=FENCE,
              parameters=(float(rng.uniform(0.3, 0.75)), 0.0, 0.0))  # fmt: skip
    else:
        b.box(-length / 2, length / 2, float(rng.uniform(0.15, 0.4)), 0.0, height, BUILDING, 0.4)


def add_pole(b: Builder, rng: np.random.Generator, kind: str) -> None:
    """kind: lamp (arm towards +x), sign (plate faces x), signal, utility or bollard."""
    grey = float(rng.uniform(0.25, 0.6))
    if kind == "lamp":
        height = float(rng.uniform(4.5, 10.0))
        b.cylinder(float(rng.uniform(0.06, 0.13)), 0.0, height, POLE, grey)
        reach = float(rng.uniform(0.3, 2.4))
        b.box(0.0, reach, 0.12, height - 0.12, height, POLE, grey)
        b.box(reach - 0.3, reach + 0.3, 0.25, height - 0.2, height, POLE, grey)
    elif kind == "sign":
        top = float(rng.uniform(2.1, 3.2))
        b.cylinder(float(rng.uniform(0.03, 0.05)), 0.0, top, POLE, grey)
        width = float(rng.uniform(0.45, 0.9))
        b.box(-0.03, 0.03, width, top - float(rng.uniform(0.4, 1.0)), top, POLE, 0.95)
    elif kind == "signal":
        height = float(rng.uniform(3.2, 6.0))
        b.cylinder(float(rng.uniform(0.07, 0.12)), 0.0, height, POLE, grey)
        b.box(-0.15, 0.15, 0.32, height - 1.0, height, POLE, 0.15)
        if height > 4.5:
            b.box(0.0, float(rng.uniform(2.0, 5.0)), 0.14, height - 0.15, height, POLE, grey)
    elif kind == "utility":
        height = float(rng.uniform(7.0, 11.0))
        b.cylinder(float(rng.uniform(0.11, 0.18)), 0.0, height, POLE, 0.3)
        b.box(-0.08, 0.08, 1.8, height - 0.7, height - 0.55, POLE, 0.3)
    else:
        b.cylinder(float(rng.uniform(0.05, 0.11)), 0.0, float(rng.uniform(0.7, 1.1)), POLE, grey)


def add_building(b: Builder, rng: np.random.Generator, length: float, depth: float, height: float, house: bool) -> None:
    """A building whose front, length metres along x, is the line y = 0; it extends towards +y."""
    stone = float(rng.uniform(0.25, 0.65))
    windows = (float(rng.uniform(1.6, 4.0)), float(rng.uniform(2.8, 3.8)), float(rng.uniform(0.3, 0.75)))
    surface, parameters = (FACADE, windows) if rng.random() < 0.85 else (SOLID, (0.0, 0.0, 0.0))
    left = -length / 2
    pieces = 1 if house else int(rng.integers(1, 4))
    cuts = np.sort(rng.uniform(left + 0.2 * length, -left - 0.2 * length, pieces - 1))
    edges = np.concatenate([[left], cuts, [-left]])
    for x0, x1 in itertools.pairwise(edges):
        if x1 - x0 < 0.5:
            continue
        recess = 0.0 if rng.random() < 0.5 else float(rng.uniform(0.3, 2.5))
        tall = height * (1.0 if rng.random() < 0.6 else float(rng.uniform(0.6, 1.2)))
        middle = (recess + depth) / 2
        b.box(x0, x1, depth - recess, -0.6, tall, BUILDING, stone, surface=surface, parameters=parameters, y=middle)
        if house:
            rise = float(rng.uniform(1.5, 3.2))
            along = rng.random() < 0.6
            half = (depth - recess) / 2
            inset = (0.02, 0.02, half) if along else ((x1 - x0) / 2, (x1 - x0) / 2, 0.02)
            b.box(x0 - 0.3, x1 + 0.3, depth - recess + 0.6, tall, tall + rise, BUILDING, 0.3, inset, y=middle)
        storeys = int(tall / windows[1])
        if not house and storeys > 1 and rng.random() < 0.35:
            reach = float(rng.uniform(0.6, 1.5))
            for k in range(1, storeys):
                for x in np.arange(x0 + 1.5, x1 - 1.5, float(rng.uniform(4.0, 7.0))):
                    z = k * windows[1]
                    b.box(x - 1.2, x + 1.2, reach, z, z + 0.9, BUILDING, stone, y=recess - reach / 2)
        if rng.random() < 0.25:
            z = float(rng.uniform(2.4, 3.2))
            b.box(x0 + 0.5, x1 - 0.5, 1.2, z, z + 0.25, BUILDING, 0.4, y=recess - 0.6)
    if rng.random() < 0.2:  # pillars of an arcade
        for x in np.arange(left + 1.0, -left - 1.0, float(rng.uniform(3.0, 5.0))):
            b.box(x - 0.25, x + 0.25, 0.5, -0.6, 4.0, BUILDING, stone, y=-1.5)
        b.box(left, -left, 2.0, 4.0, 4.5, BUILDING, stone, y=-1.0)
