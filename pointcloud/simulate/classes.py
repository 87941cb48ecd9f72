"""What the modules of the simulator agree on: class names, kinds of primitives and surfaces, the size of a scene."""

from __future__ import annotations

from typing import Final

CLASSES: Final = ("road", "sidewalk", "building", "vehicle", "vegetation", "pole", "person")

ROAD, SIDEWALK, BUILDING, VEHICLE, VEGETATION, POLE, PERSON = range(len(CLASSES))

EXTENT: Final = 120.0  # metres from the sensor to the border of a scene, in x and in y

# Shape of a primitive.
FRUSTUM, ELLIPSOID, CYLINDER = 0, 1, 2

# How a ray interacts with a primitive; the three surface parameters a, b, c mean:
SOLID = 0  # a: share of patches so glossy that they mirror the beam away
FOLIAGE = 1  # a: hits per metre, b: share of empty clumps, c: clump size in metres
FACADE = 2  # a: window spacing in metres, b: storey height in metres, c: window share of the spacing
GLASS = 3  # a: share of rays lost in the panes of the sides, b: spacing of the pillars in metres (the top is solid)
FENCE = 4  # a: share of rays that pass
