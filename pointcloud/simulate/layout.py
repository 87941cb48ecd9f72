"""Where roads run and what lies beside them: the plan of a scene, before any object is built."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pointcloud.simulate.classes import ROAD, SIDEWALK, VEGETATION
from pointcloud.simulate.ground import Parcel, Road, Side


@dataclass(frozen=True)
class Style:
    """How one kind of district looks: ranges in metres, probabilities and mean counts."""

    share: float
    lanes: tuple[int, ...]
    lane_width: tuple[float, float]
    parking: float
    verge: float
    sidewalk: float
    kerb: bool
    median: float
    bank: float
    crossing: float
    parcels: dict[str, float]
    building_height: tuple[float, float]
    setback: tuple[float, float]
    traffic: float  # vehicles per 100 m of lane
    parked: float  # occupied share of the parking strip
    persons: float
    street_trees: float
    clutter: float  # scale of the number of poles, hedges and bushes


STYLES: dict[str, Style] = {
    "city": Style(
        0.28, (1, 2, 2, 3, 4), (3.0, 3.6), 0.6, 0.15, 1.0, True, 0.1, 0.03, 0.55,
        {"building": 0.66, "parking": 0.07, "square": 0.10, "park": 0.09, "wall": 0.08},
        (7.0, 28.0), (0.0, 3.5), 3.0, 0.6, 22.0, 0.5, 1.0,
    ),
    "residential": Style(
        0.26, (1, 2, 2), (2.7, 3.4), 0.65, 0.4, 0.85, True, 0.0, 0.15, 0.45,
        {"house": 0.66, "park": 0.10, "wall": 0.10, "woods": 0.06, "building": 0.05, "parking": 0.03},
        (3.2, 9.0), (2.0, 9.0), 1.0, 0.45, 12.0, 0.35, 1.3,
    ),
    "arterial": Style(
        0.20, (4, 4, 5, 6), (3.2, 3.8), 0.15, 0.6, 0.85, True, 0.6, 0.15, 0.5,
        {"building": 0.32, "parking": 0.20, "park": 0.16, "wall": 0.14, "woods": 0.10, "square": 0.08},
        (5.0, 25.0), (4.0, 18.0), 3.2, 0.3, 14.0, 0.5, 1.0,
    ),
    "rural": Style(
        0.12, (1, 2, 2), (2.7, 3.5), 0.05, 0.8, 0.0, False, 0.0, 0.6, 0.25,
        {"park": 0.36, "woods": 0.30, "house": 0.20, "wall": 0.09, "parking": 0.05},
        (3.0, 8.0), (4.0, 15.0), 1.0, 0.2, 5.0, 0.25, 0.9,
    ),
    "open": Style(
        0.14, (2, 2, 3), (3.0, 3.8), 0.3, 0.3, 0.7, True, 0.1, 0.1, 0.5,
        {"parking": 0.40, "square": 0.26, "building": 0.16, "park": 0.18},
        (5.0, 22.0), (4.0, 25.0), 1.8, 0.4, 18.0, 0.3, 0.9,
    ),
}  # fmt: skip

_GROUND = {
    "building": (SIDEWALK, SIDEWALK, SIDEWALK, VEGETATION),
    "house": (VEGETATION, VEGETATION, VEGETATION, SIDEWALK),
    "parking": (ROAD,),
    "square": (SIDEWALK,),
    "park": (VEGETATION,),
    "woods": (VEGETATION,),
    "wall": (VEGETATION, SIDEWALK),
}
_LENGTH = {"building": (12.0, 40.0), "house": (10.0, 22.0), "parking": (20.0, 45.0), "square": (15.0, 40.0),
           "park": (12.0, 45.0), "woods": (15.0, 60.0), "wall": (10.0, 40.0)}  # fmt: skip


def pick_style(rng: np.random.Generator) -> str:
    """Name of a random style."""
    names = list(STYLES)
    weights = np.array([STYLES[n].share for n in names])
    return names[int(rng.choice(len(names), p=weights / weights.sum()))]


def _parcels(rng: np.random.Generator, style: Style, reach: float) -> tuple[Parcel, ...]:
    kinds = list(style.parcels)
    weights = np.array([style.parcels[k] for k in kinds])
    weights = weights * rng.uniform(0.4, 1.6, len(kinds))  # streets of one style differ too
    parcels = []
    start = -reach
    while start < reach:
        kind = kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]
        end = start + float(rng.uniform(*_LENGTH[kind]))
        label = int(rng.choice(_GROUND[kind]))
        # Without kerbs nothing would tell pavement from road.
        label = VEGETATION if label == SIDEWALK and not style.kerb else label
        parcels.append(Parcel(start, end, kind, label))
        start = end
    return tuple(parcels)


def _side(rng: np.random.Generator, style: Style, parking: bool) -> Side:
    walk = float(rng.uniform(1.4, 4.5)) if rng.random() < style.sidewalk else 0.0
    verge = float(rng.uniform(0.7, 3.0)) if rng.random() < style.verge else 0.0
    bank = rng.random() < style.bank
    slope = float(rng.uniform(0.08, 0.4)) * (1.0 if rng.random() < 0.7 else -0.6) if bank else 0.05
    return Side(
        verge, walk, parking, float(rng.uniform(0.5, 5.0)), slope,
        float(rng.uniform(0.4, 3.0)) if bank else 0.0, _parcels(rng, style, 120.0),
    )  # fmt: skip


def _road(rng: np.random.Generator, style: Style, place: tuple[float, float, float], curvature: float,
          span: tuple[float, float]) -> Road:  # fmt: skip
    lanes = int(rng.choice(style.lanes))
    lane_width = float(rng.uniform(*style.lane_width)) * (1.25 if lanes == 1 else 1.0)
    parking = (rng.random() < style.parking, rng.random() < style.parking)
    strip = float(rng.uniform(2.1, 2.5)) if any(parking) else float(rng.uniform(0.1, 0.6))
    median = 0.0
    if lanes >= 4 and lanes % 2 == 0 and rng.random() < style.median:
        median = float(rng.uniform(0.4, 1.6))
    half = lanes * lane_width / 2 + strip + median
    return Road(
        *place, curvature, half, lanes, strip + median, median, *span,
        _side(rng, style, parking[0]), _side(rng, style, parking[1]),
    )  # fmt: skip


def plan_roads(rng: np.random.Generator, style: Style) -> tuple[Road, ...]:
    """The road that the sensor drives on, heading roughly along +x, and the roads that cross it."""
    curvature = 0.0 if rng.random() < 0.5 else float(rng.choice([-1, 1])) / float(rng.uniform(90.0, 400.0))
    heading = float(rng.normal(0.0, 0.03))
    main = _road(rng, style, (0.0, 0.0, heading), curvature, (-140.0, 140.0))
    lane = int(rng.integers((main.lanes + 1) // 2))
    d = main.lane_centre(lane) - main.median + float(rng.normal(0.0, 0.2))
    x, y = d * math.sin(heading), -d * math.cos(heading)
    main = Road(**{**main.__dict__, "x": x, "y": y})
    roads = [main]
    if rng.random() < style.crossing:
        s = float(rng.uniform(-35.0, 45.0))
        cx, cy, along = main.place(s, 0.0)
        turn = float(rng.choice([-1, 1])) * (math.pi / 2 + float(rng.normal(0.0, 0.15)))
        span = (0.0, 140.0) if rng.random() < 0.4 else (-140.0, 140.0)
        roads.append(_road(rng, style, (cx, cy, along + turn), 0.0, span))
    return tuple(roads)
