"""The LiDAR simulator: determinism, geometry of the beams, plausible scenes, noise, and likeness to real sweeps."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from pointcloud.simulate import CLASSES, SENSORS, Scene, Sensor, Sweep, make_scene, simulate_frames, simulate_sweep
from pointcloud.simulate.classes import BUILDING, EXTENT, ROAD, SIDEWALK, VEGETATION, VEHICLE
from pointcloud.simulate.ground import CELL, Ground
from pointcloud.simulate.objects import Builder

SEEDS = range(10)


def flat_scene(builder: Builder) -> Scene:
    """The builder's objects on a flat road at z = 0."""
    n = round(2 * EXTENT / CELL) + 1
    ground = Ground(
        height=np.zeros((n, n), dtype=np.float32),
        label=np.full((n, n), ROAD, dtype=np.uint8),
        reflectivity=np.full((n, n), 0.5, dtype=np.float32),
        carriageway=np.ones((n, n), dtype=bool),
        slope=0.2,
    )
    return Scene("flat", ground, builder.array(), ())


def perfect(name: str, **changes: object) -> Sensor:
    """A sensor without noise and dropouts that sees everything."""
    ideal = {"range_noise": 0.0, "dropout": 0.0, "visibility": 1e9} | changes
    return dataclasses.replace(SENSORS[name], **ideal)  # type: ignore[arg-type]


def same(a: Sweep, b: Sweep) -> bool:
    return all(np.array_equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(Sweep))


@pytest.fixture(scope="module")
def sweeps() -> list[Sweep]:
    return [simulate_sweep(seed) for seed in SEEDS]


@pytest.mark.parametrize("sensor", sorted(SENSORS))
def test_same_seed_gives_the_same_bits(sensor: str) -> None:
    assert same(simulate_sweep(3, sensor), simulate_sweep(3, sensor))


def test_different_seeds_give_different_scenes(sweeps: list[Sweep]) -> None:
    shares = np.array([np.bincount(s.labels, minlength=len(CLASSES)) / len(s) for s in sweeps])
    # Not only other noise: the mix of classes and the things themselves differ.
    assert np.all(shares.std(axis=0)[[ROAD, BUILDING, VEHICLE, VEGETATION]] > 0.03)
    scenes = [make_scene(seed) for seed in SEEDS]
    assert len({scene.style for scene in scenes}) >= 4
    assert len({len(scene.primitives) for scene in scenes}) == len(SEEDS)


def test_a_given_scene_is_used_and_left_alone() -> None:
    scene = make_scene(4)
    before = scene.primitives.copy()
    assert same(simulate_sweep(4, scene=scene), simulate_sweep(4))
    other = simulate_sweep(5, scene=scene)
    assert not same(other, simulate_sweep(5))
    assert np.array_equal(scene.primitives, before)


def test_dtypes_and_shapes(sweeps: list[Sweep]) -> None:
    for sweep in sweeps:
        n = len(sweep)
        assert sweep.xyz.shape == (n, 3) and sweep.xyz.dtype == np.float32
        assert sweep.intensity.shape == (n,) and sweep.intensity.dtype == np.float32
        assert sweep.ring.shape == (n,) and sweep.ring.dtype == np.int32
        assert sweep.labels.shape == (n,) and sweep.labels.dtype == np.int64
        assert np.isfinite(sweep.xyz).all()
        assert 0 <= sweep.intensity.min() and sweep.intensity.max() <= 1
        assert 0 <= sweep.labels.min() and sweep.labels.max() < len(CLASSES)


def test_every_class_appears(sweeps: list[Sweep]) -> None:
    total = np.bincount(np.concatenate([s.labels for s in sweeps]), minlength=len(CLASSES))
    assert np.all(total > 500), dict(zip(CLASSES, total))


@pytest.mark.parametrize("sensor", sorted(SENSORS))
def test_rings_follow_the_beam_table(sensor: str) -> None:
    device = SENSORS[sensor]
    sweep = simulate_sweep(1, sensor)
    xyz = sweep.xyz.astype(np.float64)
    elevation = np.degrees(np.arctan2(xyz[:, 2], np.hypot(xyz[:, 0], xyz[:, 1])))
    assert np.abs(elevation - np.array(device.elevations_deg)[sweep.ring]).max() < 1e-4
    assert len(np.unique(sweep.ring)) == device.rings
    azimuth = np.degrees(np.arctan2(xyz[:, 1], xyz[:, 0]))
    step = (azimuth - azimuth[0]) / (360 / device.azimuth_steps)
    assert np.abs(step - np.rint(step)).max() < 1e-3
    assert np.bincount(sweep.ring).max() <= device.azimuth_steps


def test_published_beam_tables() -> None:
    low = np.array(SENSORS["hdl32"].elevations_deg)
    assert low.size == 32 and low[0] == pytest.approx(-30.67, abs=0.01) and low[-1] == pytest.approx(10.67, abs=0.01)
    assert np.allclose(np.diff(low), 4 / 3)
    high = np.array(SENSORS["hdl64"].elevations_deg)
    assert high.size == 64 and high[0] == pytest.approx(-24.33, abs=0.01) and high[-1] == 2.0
    assert np.allclose(np.diff(high)[:31], 0.5) and np.allclose(np.diff(high)[32:], 1 / 3)


@pytest.mark.parametrize("sensor", sorted(SENSORS))
def test_ranges_within_limits(sensor: str) -> None:
    device = SENSORS[sensor]
    distance = np.linalg.norm(simulate_sweep(2, sensor).xyz, axis=1)
    assert device.min_range - 1e-4 <= distance.min() and distance.max() <= device.max_range + 1e-4
    assert distance.max() > 0.6 * device.max_range
    short = dataclasses.replace(device, max_range=20.0)
    assert np.linalg.norm(simulate_sweep(2, short).xyz, axis=1).max() <= 20.0 + 1e-4


def test_flat_ground_lies_at_the_sensors_height() -> None:
    sweep = simulate_sweep(0, perfect("hdl32"), scene=flat_scene(Builder()))
    assert set(sweep.labels) == {ROAD}
    # A plane, tilted at most by the pitch and roll of the car.
    plane = np.linalg.lstsq(np.c_[sweep.xyz[:, :2], np.ones(len(sweep))], sweep.xyz[:, 2], rcond=None)[0]
    assert np.abs(plane[:2]).max() < 0.05
    assert plane[2] == pytest.approx(-1.84, abs=0.12)
    assert np.abs(sweep.xyz @ [-plane[0], -plane[1], 1.0] - plane[2]).max() < 5e-3


def test_ground_is_plausible(sweeps: list[Sweep]) -> None:
    for sweep in sweeps:
        distance = np.linalg.norm(sweep.xyz[:, :2], axis=1)
        lowest = sweep.ring < 3
        assert np.isin(sweep.labels[lowest], [ROAD, SIDEWALK, VEGETATION, VEHICLE]).mean() > 0.8
        road = (sweep.labels == ROAD) & (distance < 8)
        assert np.abs(sweep.xyz[road, 2] + 1.84).max() < 0.7
        near = (distance < 12) & (sweep.labels == SIDEWALK)
        assert near.sum() < 30 or np.abs(np.median(sweep.xyz[near, 2]) + 1.74) < 0.7


def test_sidewalks_lie_above_carriageways() -> None:
    steps = []
    for seed in SEEDS:
        scene = make_scene(seed)
        ground = scene.ground
        road, walk = ground.carriageway, ground.label == SIDEWALK
        border = road[:, :-2] & walk[:, 2:]
        if scene.style != "rural" and border.any():
            steps.append(float(np.median((ground.height[:, 2:] - ground.height[:, :-2])[border])))
    assert len(steps) >= 5
    assert all(0.03 < s < 0.25 for s in steps), steps


def test_a_box_is_hit_where_it_stands() -> None:
    builder = Builder().at(10.0, 2.0, 0.0, 0.4)
    builder.box(-2.0, 2.0, 1.8, 0.0, 2.5, VEHICLE, 0.5)
    sweep = simulate_sweep(0, perfect("hdl64", height=1.73), scene=flat_scene(builder))
    hits = sweep.xyz[sweep.labels == VEHICLE].astype(np.float64)
    assert len(hits) > 500
    # Tilt and height of this pose are known from the ground plane; undo them before comparing with the box.
    ground = sweep.xyz[sweep.labels == ROAD].astype(np.float64)
    a, b, c = np.linalg.lstsq(np.c_[ground[:, :2], np.ones(len(ground))], ground[:, 2], rcond=None)[0]
    up = np.array([-a, -b, 1.0]) / math.sqrt(a * a + b * b + 1)
    z = hits @ up - c * up[2]
    forward = np.array([1.0, 0.0, a])
    forward /= np.linalg.norm(forward)
    x, y = hits @ forward, hits @ np.cross(up, forward)
    lx = math.cos(0.4) * (x - 10) + math.sin(0.4) * (y - 2)
    ly = -math.sin(0.4) * (x - 10) + math.cos(0.4) * (y - 2)
    outside = np.maximum.reduce([np.abs(lx) - 2.0, np.abs(ly) - 0.9, z - 2.5])
    assert np.abs(outside).max() < 0.02
    # Nothing is seen in the shadow straight behind the box.
    behind = np.abs(np.arctan2(sweep.xyz[:, 1], sweep.xyz[:, 0]) - math.atan2(2, 10)) < 0.02
    behind &= (np.hypot(sweep.xyz[:, 0], sweep.xyz[:, 1]) > 14) & (sweep.xyz[:, 2] < 0)
    assert not behind.any()


def test_ellipsoids_and_cylinders_are_hit_where_they_stand() -> None:
    builder = Builder().at(8.0, 0.0, 0.0, 0.0)
    builder.cylinder(0.5, 0.0, 4.0, BUILDING, 0.5)
    builder.at(-8.0, 0.0, 0.0, 0.0)
    builder.add(1, (0.0, 0.0, 1.5), (1.0, 1.5, 1.0), VEHICLE, 0.5)
    sweep = simulate_sweep(0, perfect("hdl64"), scene=flat_scene(builder))
    pole = sweep.xyz[sweep.labels == BUILDING]
    # Pitch and roll (at most 0.03 rad) shift points 8 m away by some decimetres at most vertically.
    assert pole[:, 0].max() < 8.1  # the near half
    assert len(pole) > 200 and np.abs(np.hypot(pole[:, 0] - 8.0, pole[:, 1]) - 0.5).max() < 0.2
    ball = (sweep.xyz[sweep.labels == VEHICLE] - [-8.0, 0.0, 1.5 - 1.73]) / [1.0, 1.5, 1.0]
    assert len(ball) > 200 and np.abs(np.linalg.norm(ball, axis=1) - 1).max() < 0.35
    assert ball[:, 0].min() > -0.3  # only the side that faces the sensor


def test_range_noise_has_the_stated_spread() -> None:
    device = SENSORS["hdl32"]
    scene = flat_scene(Builder())
    quiet = simulate_sweep(7, dataclasses.replace(device, range_noise=0.0, max_range=60.0), scene=scene)
    noisy = simulate_sweep(7, dataclasses.replace(device, range_noise=0.05, max_range=60.0), scene=scene)
    assert len(quiet) == len(noisy)
    error = np.linalg.norm(noisy.xyz, axis=1) - np.linalg.norm(quiet.xyz, axis=1)
    assert abs(error.mean()) < 0.002
    assert error.std() == pytest.approx(0.05, rel=0.05)


def test_dropouts_grow_with_the_setting_and_the_range() -> None:
    scene = flat_scene(Builder())
    every = len(simulate_sweep(7, perfect("hdl32"), scene=scene))
    half = len(simulate_sweep(7, perfect("hdl32", dropout=0.5), scene=scene))
    assert half == pytest.approx(0.5 * every, rel=0.05)
    assert len(simulate_sweep(7, perfect("hdl32", dropout=1.0), scene=scene)) == 0
    all_seen = simulate_sweep(7, perfect("hdl32"), scene=scene)
    weak = simulate_sweep(7, perfect("hdl32", visibility=SENSORS["hdl32"].visibility), scene=scene)
    edges = [0, 10, 30, 70]
    before, after = (np.histogram(np.linalg.norm(s.xyz, axis=1), edges)[0] for s in (all_seen, weak))
    share = after / before
    assert share[0] > 0.99 and share[0] > share[1] > share[2] and share[2] < 0.85, share
    assert all_seen.ring.max() < 25  # the sky returns nothing


def test_the_carrying_car_hides_and_can_be_kept() -> None:
    scene = flat_scene(Builder())
    without, kept = (simulate_sweep(1, scene=scene, keep_ego=keep) for keep in (False, True))
    assert (without.labels == ROAD).all()
    own = kept.labels == VEHICLE
    assert own.sum() > 500 and np.linalg.norm(kept.xyz[own], axis=1).max() < 3.0
    assert np.array_equal(kept.xyz[~own], without.xyz)
    # Its shadow: the lowest ring is interrupted in front and behind, not at the sides.
    low = without.xyz[without.ring == 0]
    angle = np.abs(np.degrees(np.arctan2(low[:, 1], low[:, 0])))
    assert not (angle < 15).any() and ((angle > 80) & (angle < 100)).sum() > 80


def test_to_cloud() -> None:
    sweep = simulate_sweep(0)
    cloud = sweep.to_cloud()
    assert len(cloud) == len(sweep)
    assert np.array_equal(cloud.xyz.numpy(), sweep.xyz)
    assert np.array_equal(cloud.labels.numpy(), sweep.labels)
    assert np.array_equal(cloud.intensity.numpy(), sweep.intensity)
    assert np.array_equal(cloud.extra["ring"].numpy(), sweep.ring)


@pytest.mark.parametrize("seed", [-1, 1.5, True, "3", None, 2**63])
def test_bad_seeds_are_rejected(seed: object) -> None:
    with pytest.raises(ValueError, match="seed must be an integer from 0"):
        simulate_sweep(seed)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seed must be an integer from 0"):
        simulate_sweep(seed, scene=flat_scene(Builder()))  # type: ignore[arg-type]


def test_an_unknown_sensor_lists_close_matches() -> None:
    with pytest.raises(ValueError, match=r"got 'hdl-64'; did you mean 'hdl64'"):
        simulate_sweep(0, "hdl-64")
    with pytest.raises(ValueError, match=r"\['hdl32', 'hdl64'\], got 'radar'"):
        simulate_sweep(0, "radar")
    with pytest.raises(TypeError, match="got int"):
        simulate_sweep(0, 64)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"elevations_deg": ()}, "non-empty"),
        ({"elevations_deg": (1.0, 0.0)}, "ascend"),
        ({"elevations_deg": (0.0, 95.0)}, "-90"),
        ({"elevations_deg": (0.0, math.nan)}, "-90"),
        ({"azimuth_steps": 0}, "azimuth_steps"),
        ({"azimuth_steps": 10.5}, "azimuth_steps"),
        ({"max_range": 121.0}, "where scenes end"),
        ({"max_range": 0.5}, "min_range"),
        ({"height": 0.0}, "height"),
        ({"range_noise": -0.1}, "range_noise"),
        ({"dropout": 1.5}, "dropout"),
        ({"visibility": math.nan}, "visibility"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_bad_sensors_are_rejected(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SENSORS["hdl32"], **change)  # type: ignore[arg-type]


def test_like_a_real_sweep(data_dir: Path, sweeps: list[Sweep]) -> None:
    """Returns, ranges and filled rings of a real nuScenes sweep lie within the spread of simulated ones."""
    path = data_dir / "pointcloud" / "nuscenes_lidar_top.pcd.bin"
    if not path.exists():
        pytest.skip(f"{path.name} is not there")
    real = np.fromfile(path, dtype=np.float32).reshape(-1, 5)
    distance = np.linalg.norm(real[:, :3], axis=1)
    real = real[(distance > 1.2) & (distance < 70)]
    count = np.array([len(s) for s in sweeps])
    assert 0.85 * count.min() < len(real) < 1.15 * count.max()
    edges = [3, 6, 12, 25, 50, 70]
    want = np.histogram(np.linalg.norm(real[:, :3], axis=1), edges)[0] / len(real)
    got = np.array([np.histogram(np.linalg.norm(s.xyz, axis=1), edges)[0] / len(s) for s in sweeps])
    assert np.all((want > 0.5 * got.min(axis=0)) & (want < 1.5 * got.max(axis=0))), (want, got)
    rings = np.bincount(real[:, 4].astype(int), minlength=32)
    simulated = np.median([np.bincount(s.ring, minlength=32) for s in sweeps], axis=0)
    assert np.corrcoef(rings, simulated)[0, 1] > 0.8


def test_frames_differ_where_something_moves() -> None:
    frames = list(simulate_frames(3, frames=3))
    assert same(frames[0], simulate_sweep(3)) and not same(frames[1], frames[2])
    assert all(same(a, b) for a, b in zip(frames, simulate_frames(3, frames=3)))
    points = [{tuple(p) for p in sweep.xyz.tolist()} for sweep in frames]
    assert 0.8 < len(points[0] & points[1]) / len(points[0]) < 1
    assert same(*simulate_frames(3, frames=2, speed=0.0))


def test_jitter_moves_every_point_of_the_same_scene() -> None:
    still, other = simulate_frames(3, frames=2, speed=0.0, jitter=True)
    assert len({tuple(p) for p in still.xyz.tolist()} & {tuple(p) for p in other.xyz.tolist()}) == 0
    assert abs(len(still) - len(other)) < 0.02 * len(still)
    assert np.bincount(still.labels) == pytest.approx(np.bincount(other.labels), rel=0.2, abs=30)


def test_number_of_frames_is_checked() -> None:
    with pytest.raises(ValueError, match="frames must be at least 0, got -1"):
        next(simulate_frames(3, frames=-1))
