"""Vectorised ray caster: one origin, many rays, a ground height field and analytic primitives.

Rays are culled by azimuth: every primitive is listed in the azimuth bins that it may cover, nearest first, so a ray
tests the few primitives of its bin and stops at the first that lies behind what it already hit.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from pointcloud.simulate.classes import ELLIPSOID, FACADE, FENCE, FOLIAGE, FRUSTUM, GLASS, SOLID

AZIMUTH_BINS = 1024
COLUMNS = 18  # kind, centre xyz, half xyz, cos, sin, inset front/rear/side, surface, a, b, c, label, reflectivity

# What a ray came back with, besides the index of a primitive.
GROUND, NOTHING = -1, -2


@njit(cache=True, nogil=True)
def _uniform(seed: int, ray: int, item: int, draw: int) -> float:
    """A uniform number in (0, 1) that depends on its arguments only (splitmix64): no state, any order of rays."""
    z = np.uint64(seed) + np.uint64(ray) * np.uint64(0x9E3779B97F4A7C15)
    z ^= np.uint64(item) * np.uint64(0xC2B2AE3D27D4EB4F) + np.uint64(draw) * np.uint64(0x165667B19E3779F9)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return (np.float64(z >> np.uint64(11)) + 0.5) / 9007199254740992.0


@njit(cache=True, nogil=True)
def _angular_extent(p: np.ndarray) -> tuple[float, float, float]:
    """Centre angle, half angle and nearest horizontal distance of a primitive, seen from the z axis."""
    x, y = p[1], p[2]
    centre = math.atan2(y, x)
    if p[0] == FRUSTUM:
        lx = -(p[7] * x + p[8] * y)
        ly = -(-p[8] * x + p[7] * y)
        ox = max(abs(lx) - p[4], 0.0)
        oy = max(abs(ly) - p[5], 0.0)
        near = math.hypot(ox, oy)
        if near == 0.0:
            return centre, math.pi, 0.0
        half = 0.0
        for i in range(4):
            sx = p[4] if i & 1 else -p[4]
            sy = p[5] if i & 2 else -p[5]
            angle = math.atan2(y + p[8] * sx + p[7] * sy, x + p[7] * sx - p[8] * sy) - centre
            angle = abs((angle + math.pi) % (2 * math.pi) - math.pi)
            half = max(half, angle)
        return centre, half, near
    radius = max(p[4], p[5])
    distance = math.hypot(x, y)
    if distance <= radius:
        return centre, math.pi, 0.0
    return centre, math.asin(radius / distance), distance - radius


@njit(cache=True, nogil=True)
def bin_primitives(primitives: np.ndarray, max_range: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """CSR lists of primitives per azimuth bin, nearest first: (starts [bins + 1], items [K], near [P])."""
    n = primitives.shape[0]
    first = np.zeros(n, dtype=np.int64)
    count = np.zeros(n, dtype=np.int64)
    near = np.zeros(n, dtype=np.float64)
    starts = np.zeros(AZIMUTH_BINS + 1, dtype=np.int64)
    width = 2 * math.pi / AZIMUTH_BINS
    for i in range(n):
        centre, half, near[i] = _angular_extent(primitives[i])
        if near[i] > max_range:
            continue
        low = math.floor((centre - half) / width) - 1
        high = math.floor((centre + half) / width) + 1
        first[i] = low
        count[i] = min(high - low + 1, AZIMUTH_BINS)
        for k in range(count[i]):
            starts[(low + k) % AZIMUTH_BINS + 1] += 1
    for b in range(AZIMUTH_BINS):
        starts[b + 1] += starts[b]
    items = np.empty(starts[AZIMUTH_BINS], dtype=np.int32)
    cursor = starts[:-1].copy()
    for i in np.argsort(near, kind="mergesort"):
        for k in range(count[i]):
            b = (first[i] + k) % AZIMUTH_BINS
            items[cursor[b]] = i
            cursor[b] += 1
    return starts, items, near


@njit(cache=True, nogil=True)
def _ground_height(height: np.ndarray, x0: float, cell: float, x: float, y: float) -> float:
    """Bilinear height; the border continues outside the field."""
    n = height.shape[0]
    u = min(max((x - x0) / cell, 0.0), n - 1.001)
    v = min(max((y - x0) / cell, 0.0), n - 1.001)
    i, j = int(v), int(u)
    fv, fu = v - i, u - j
    low = height[i, j] * (1 - fu) + height[i, j + 1] * fu
    high = height[i + 1, j] * (1 - fu) + height[i + 1, j + 1] * fu
    return low * (1 - fv) + high * fv


@njit(cache=True, nogil=True)
def _march_ground(
    height: np.ndarray, x0: float, cell: float, slope: float, top: float,
    oz: float, dx: float, dy: float, dz: float, limit: float,
) -> float:  # fmt: skip
    """Distance along the ray to the ground, or `limit`. `slope` bounds the terrain's slope, apart from kerbs."""
    flat = math.hypot(dx, dy)
    t = 0.0
    last_t, last_clear = 0.0, oz - _ground_height(height, x0, cell, 0.0, 0.0)
    while True:
        # Kerbs and roughness may add up to 0.3 m at once; above that the slope bound makes long steps safe.
        horizontal = max(0.5 * cell, (last_clear - 0.3) / (slope + max(-dz / flat, 0.0)))
        t = last_t + horizontal / flat
        z = oz + dz * t
        if t >= limit or (dz > 0 and z > top):
            return limit
        clear = z - _ground_height(height, x0, cell, dx * t, dy * t)
        if clear <= 0.0:
            return last_t + (t - last_t) * last_clear / (last_clear - clear)
        last_t, last_clear = t, clear


@njit(cache=True, nogil=True)
def _clip_frustum(
    p: np.ndarray, ox: float, oy: float, oz: float, dx: float, dy: float, dz: float
) -> tuple[float, float, int, float]:
    """Entry, exit, entry face (0 +x, 1 -x, 2 +y, 3 -y, 4 top, 5 bottom) and incidence cosine; entry > exit: missed."""
    hx, hy, hz = p[4], p[5], p[6]
    enter, leave, face, cosine = -1e30, 1e30, -1, 0.0
    for k in range(6):
        nx, ny, nz, d = 0.0, 0.0, 0.0, 0.0
        if k < 2:
            tilt = (p[9] if k == 0 else p[10]) / (2 * hz)
            nx, nz, d = (1.0 if k == 0 else -1.0), tilt, hx - tilt * hz
        elif k < 4:
            tilt = p[11] / (2 * hz)
            ny, nz, d = (1.0 if k == 2 else -1.0), tilt, hy - tilt * hz
        else:
            nz, d = (1.0 if k == 4 else -1.0), hz
        along = nx * dx + ny * dy + nz * dz
        gap = d - (nx * ox + ny * oy + nz * oz)
        if along < -1e-12:
            t = gap / along
            if t > enter:
                enter, face = t, k
                cosine = -along / math.sqrt(nx * nx + ny * ny + nz * nz)
        elif along > 1e-12:
            leave = min(leave, gap / along)
        elif gap < 0:
            return 1.0, 0.0, -1, 0.0
        if enter > leave:
            return 1.0, 0.0, -1, 0.0
    return enter, leave, face, cosine


@njit(cache=True, nogil=True)
def _clip_ellipsoid(
    p: np.ndarray, ox: float, oy: float, oz: float, dx: float, dy: float, dz: float
) -> tuple[float, float, float]:
    ax, ay, az = ox / p[4], oy / p[5], oz / p[6]
    bx, by, bz = dx / p[4], dy / p[5], dz / p[6]
    a = bx * bx + by * by + bz * bz
    b = ax * bx + ay * by + az * bz
    disc = b * b - a * (ax * ax + ay * ay + az * az - 1.0)
    if disc <= 0:
        return 1.0, 0.0, 0.0
    root = math.sqrt(disc)
    t = (-b - root) / a
    nx, ny, nz = (ax + t * bx) / p[4], (ay + t * by) / p[5], (az + t * bz) / p[6]
    cosine = abs(nx * dx + ny * dy + nz * dz) / math.sqrt(nx * nx + ny * ny + nz * nz)
    return t, (-b + root) / a, cosine


@njit(cache=True, nogil=True)
def _clip_cylinder(
    p: np.ndarray, ox: float, oy: float, oz: float, dx: float, dy: float, dz: float
) -> tuple[float, float, float]:
    """A vertical cylinder of radius p[4] with flat ends."""
    a = dx * dx + dy * dy
    b = ox * dx + oy * dy
    disc = b * b - a * (ox * ox + oy * oy - p[4] * p[4])
    if disc <= 0 or a == 0:
        return 1.0, 0.0, 0.0
    root = math.sqrt(disc)
    enter, leave = (-b - root) / a, (-b + root) / a
    cosine = root / p[4]
    if dz != 0.0:
        t0, t1 = (-p[6] - oz) / dz, (p[6] - oz) / dz
        if t0 > t1:
            t0, t1 = t1, t0
        if t0 > enter:
            enter, cosine = t0, abs(dz)
        leave = min(leave, t1)
    elif abs(oz) > p[6]:
        return 1.0, 0.0, 0.0
    return enter, leave, cosine


@njit(cache=True, nogil=True)
def _foliage_hit(
    p: np.ndarray, seed: int, ray: int, item: int, ox: float, oy: float, oz: float,
    dx: float, dy: float, dz: float, enter: float, leave: float,
) -> float:  # fmt: skip
    """Free-path sampling through leaves whose clumps (hashed cells) are partly empty; `leave` when it gets through.

    An ellipsoid thins out towards its surface, so that a crown has no smooth outline.
    """
    t = max(enter, 0.0)
    for draw in range(32):
        t -= math.log(_uniform(seed, ray, item, draw)) / p[13]
        if t >= leave:
            return leave
        x, y, z = ox + dx * t, oy + dy * t, oz + dz * t
        cell = (math.floor(x / p[15]) & 0xFFFF) | ((math.floor(y / p[15]) & 0xFFFF) << 16)
        cell |= (math.floor(z / p[15]) & 0xFFFF) << 32
        empty = p[14]
        if p[0] == ELLIPSOID:
            radius = math.sqrt((x / p[4]) ** 2 + (y / p[5]) ** 2 + (z / p[6]) ** 2)
            empty += (1.0 - empty) * max(0.0, radius - 0.5) / 0.5
        if _uniform(seed, cell, item, 777) >= empty:
            return t
    return leave


@njit(cache=True, nogil=True)
def _window(
    p: np.ndarray, seed: int, ray: int, item: int, face: int, lx: float, ly: float, lz: float, cosine: float
) -> float:
    """What a window does to a ray that reaches a facade: extra distance, or -1 for no return."""
    if face > 3:
        return 0.0
    along = ly + p[5] if face < 2 else lx + p[4]
    up = lz + p[6]
    column, storey = along / p[13], up / p[14]
    fraction = column - math.floor(column)
    level = storey - math.floor(storey)
    if abs(fraction - 0.5) > 0.5 * p[15] or level < 0.3 or level > 0.82 or 2 * p[6] - up < 0.4:
        return 0.0
    window = (math.floor(column) & 0xFFFF) | ((math.floor(storey) & 0xFFFF) << 16) | (face << 32)
    kind = _uniform(seed, window, item, 11)
    luck = _uniform(seed, ray, item, 13)
    if kind < 0.35 and luck < 0.8:
        return -1.0
    if kind < 0.55:  # through the pane, onto something in the room
        return -1.0 if luck < 0.4 else (0.4 + 3.0 * _uniform(seed, window, item, 12)) / max(cosine, 0.3)
    return 0.14 / max(cosine, 0.2)


@njit(cache=True, nogil=True)
def _mirrored(
    p: np.ndarray, seed: int, ray: int, item: int, face: int, lx: float, ly: float, lz: float, cosine: float
) -> bool:
    """Whether a pane or a polished patch of a vehicle sends nothing back."""
    along = ly + p[5] if face < 2 else lx + p[4]
    if p[12] == GLASS:
        level = 0.5 + 0.5 * lz / p[6]
        pillar = abs(along / p[14] - math.floor(along / p[14]) - 0.5) > 0.44
        return face < 4 and not pillar and 0.08 < level < 0.86 and _uniform(seed, ray, item, 7) < p[13]
    patch = (math.floor(along / 1.2) & 0xFFFF) | ((math.floor((lz + p[6]) / 0.15) & 0xFFFF) << 16) | (face << 32)
    return _uniform(seed, patch, item, 8) < p[13] * (1.3 - cosine) and _uniform(seed, ray, item, 9) < 0.9


@njit(cache=True, nogil=True)
def cast(
    directions: np.ndarray, oz: float, primitives: np.ndarray,
    starts: np.ndarray, items: np.ndarray, near: np.ndarray,
    height: np.ndarray, x0: float, cell: float, slope: float, max_range: float, seed: int,
    begin: int, end: int, distance: np.ndarray, hit: np.ndarray, cosine: np.ndarray,
) -> None:  # fmt: skip
    """Cast rays begin..end from (0, 0, oz); fills distance [R] metres, hit [R] and cosine [R] of the incidence.

    directions are unit vectors [R, 3]; hit is a primitive's row, GROUND or NOTHING.
    """
    top = height.max()
    width = 2 * math.pi / AZIMUTH_BINS
    for ray in range(begin, end):
        dx, dy, dz = directions[ray, 0], directions[ray, 1], directions[ray, 2]
        flat = max(math.hypot(dx, dy), 1e-9)
        best = _march_ground(height, x0, cell, slope, top, oz, dx, dy, dz, max_range)
        what = NOTHING if best >= max_range else GROUND
        angle = 0.0
        b = math.floor(math.atan2(dy, dx) / width) % AZIMUTH_BINS
        for k in range(starts[b], starts[b + 1]):
            item = items[k]
            if near[item] > best * flat:
                break
            p = primitives[item]
            ex, ey, lz = -p[1], -p[2], oz - p[3]
            ox, oy = p[7] * ex + p[8] * ey, -p[8] * ex + p[7] * ey
            lx, ly = p[7] * dx + p[8] * dy, -p[8] * dx + p[7] * dy
            face = 0
            if p[0] == FRUSTUM:
                enter, leave, face, facing = _clip_frustum(p, ox, oy, lz, lx, ly, dz)
            elif p[0] == ELLIPSOID:
                enter, leave, facing = _clip_ellipsoid(p, ox, oy, lz, lx, ly, dz)
            else:
                enter, leave, facing = _clip_cylinder(p, ox, oy, lz, lx, ly, dz)
            if enter > leave or leave <= 0.0 or enter >= best:
                continue
            surface = p[12]
            if surface == FOLIAGE:
                t = _foliage_hit(p, seed, ray, item, ox, oy, lz, lx, ly, dz, enter, min(leave, best))
                if t < min(leave, best):
                    best, what = t, item
                    angle = 0.3 + 0.7 * _uniform(seed, ray, item, 99)
                continue
            if enter <= 0.0:
                continue
            if surface == FENCE and _uniform(seed, ray, item, 5) < p[13]:
                continue
            t = enter
            lost = False
            if surface == GLASS or (surface == SOLID and p[13] > 0.0):
                lost = _mirrored(p, seed, ray, item, face, ox + lx * t, oy + ly * t, lz + dz * t, facing)
            if surface == FACADE:
                extra = _window(p, seed, ray, item, face, ox + lx * t, oy + ly * t, lz + dz * t, facing)
                if extra < 0:
                    lost = True
                else:
                    t += extra
            if t < best:
                best, angle = t, facing
                what = NOTHING if lost else item
        if what == GROUND:
            x, y = dx * best, dy * best
            gx = _ground_height(height, x0, cell, x + cell, y) - _ground_height(height, x0, cell, x - cell, y)
            gy = _ground_height(height, x0, cell, x, y + cell) - _ground_height(height, x0, cell, x, y - cell)
            gx, gy = gx / (2 * cell), gy / (2 * cell)
            angle = abs(gx * dx + gy * dy - dz) / math.sqrt(gx * gx + gy * gy + 1.0)
        distance[ray] = best
        hit[ray] = what
        cosine[ray] = angle
