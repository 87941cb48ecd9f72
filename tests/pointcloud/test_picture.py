"""Pictures of labelled clouds: what is where, which views, bad input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pointcloud.io import read_points
from pointcloud.picture import CLASS_NAMES, PALETTE, class_colors, draw_labels
from pointcloud.points import PointCloud

pytest.importorskip("PIL")

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def sweep(n_azimuth: int = 360, n_beams: int = 16) -> torch.Tensor:
    """Ground 1.8 m below a sensor at the origin and walls 20 m away: one depth per direction."""
    azimuth, elevation = np.meshgrid(
        np.radians(np.arange(n_azimuth) * 360 / n_azimuth), np.radians(np.linspace(-20, 10, n_beams))
    )
    distance = np.minimum(
        20 / np.cos(elevation), np.where(elevation < -0.01, 1.8 / np.maximum(-np.sin(elevation), 1e-3), 99)
    )
    xyz = np.stack(
        [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)], axis=-1
    )
    return torch.from_numpy((xyz * distance[..., None]).reshape(-1, 3).astype(np.float32))


def where(image: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """Pixels of about that colour left of the legend, [M, 2] as row and column."""
    return np.argwhere((np.abs(image[:, :1260].astype(int) - color) < 40).all(axis=2))


def test_picture_is_written_as_png(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    xyz = sweep()
    labels = torch.arange(len(xyz)) % len(CLASS_NAMES)
    drawn = draw_labels(xyz, labels, path=tmp_path / "a.png", title="A $street_1 with a strange title^{")
    assert drawn.shape == (1000, 1600, 3) and drawn.dtype == np.uint8
    assert np.array_equal(np.asarray(image.open(tmp_path / "a.png")), drawn)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert np.array_equal(draw_labels(xyz, labels, title="A $street_1 with a strange title^{"), drawn)


def test_bev_has_x_to_the_right_and_y_up_in_equal_scale() -> None:
    corners = torch.tensor([[10.0, 0, 0], [0, 10, 0], [-10, 0, 0], [0, -10, 0]])
    xyz = corners.repeat_interleave(200, dim=0)
    labels = torch.arange(4).repeat_interleave(200)
    colors = [RED, GREEN, BLUE, (255, 0, 255)]
    image = draw_labels(xyz, labels, ["a", "b", "c", "d"], colors, views=["bev"])
    right, top, left, bottom = (where(image, color).mean(axis=0) for color in colors)
    assert right[1] > left[1] + 200 and bottom[0] > top[0] + 200
    assert right[1] - left[1] == pytest.approx(bottom[0] - top[0], abs=2)


def test_range_view_has_left_on_the_left_and_up_above() -> None:
    xyz = sweep()
    labels = torch.full((len(xyz),), -1)
    labels[(xyz[:, 1] > 0) & (xyz[:, 2] > 1)] = 0
    labels[(xyz[:, 1] < 0) & (xyz[:, 2] > 1)] = 1
    labels[(xyz[:, 0] > 0) & (xyz[:, 2] < -1)] = 2
    image = draw_labels(xyz, labels, ["left", "right", "low"], [RED, GREEN, BLUE], views=("range",))
    # Distant points are darker: compare hues.
    hue = image[:655].astype(int)  # above the legend
    left, right, low = (
        np.argwhere((hue[..., i] > 110) & (hue.sum(axis=2) - hue[..., i] < 60)).mean(axis=0) for i in range(3)
    )
    assert left[1] < right[1] and low[0] > left[0] and abs(left[0] - right[0]) < 5


def test_the_higher_point_lies_on_top() -> None:
    low, high = torch.tensor([[0.0, 0, 0], [4, 4, 0]]), torch.tensor([[0.0, 0, 2], [4, 4, 2]])
    for order in ((0, 1), (1, 0)):
        xyz = torch.cat([(low, high)[i] for i in order]).repeat(50, 1)
        labels = torch.tensor([i for i in order for _ in range(2)]).repeat(50)
        image = draw_labels(xyz, labels, ["low", "high"], [RED, GREEN])
        assert len(where(image, GREEN)) and not len(where(image, RED))


def test_views_are_chosen_by_the_cloud(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pointcloud.picture as picture

    seen: list[str] = []
    monkeypatch.setattr(picture, "draw_range", lambda *_: seen.append("range"))
    for name, expected in (
        ("nuscenes_lidar_top.pcd.bin", ["range"]),
        ("kitti_000008.bin", ["range"]),
        ("scannet_scene0000_00.bin", []),
    ):
        cloud = read_points(data_dir / "pointcloud" / name)
        draw_labels(cloud, torch.zeros(len(cloud), dtype=torch.int64))
        assert seen == expected, name
        seen.clear()


@pytest.mark.parametrize("n", [0, 1, 2])
@pytest.mark.parametrize("views", [None, ("bev",), ("range",), ("range", "bev")])
def test_tiny_clouds(n: int, views: tuple[str, ...] | None) -> None:
    cloud = PointCloud(torch.ones(n, 3), labels=torch.zeros(n, dtype=torch.int64))
    assert draw_labels(cloud, views=views).shape == (1000, 1600, 3)


def test_many_classes_and_unlabelled_points_fit_the_legend() -> None:
    names = [f"class {i} with a very long name indeed" for i in range(40)]
    xyz = sweep()
    labels = torch.arange(len(xyz)) % 41 - 1
    assert draw_labels(xyz, labels, names).shape == (1000, 1600, 3)
    assert len({tuple(c) for c in class_colors(names).tolist()}) == 40


def test_palette() -> None:
    colors = class_colors(["Road", "person", "lamp"])
    assert tuple(colors[0]) == PALETTE["road"] and tuple(colors[1]) == PALETTE["person"]
    assert tuple(colors[2]) not in PALETTE.values()
    assert set(CLASS_NAMES) == set(PALETTE)


def test_bad_input(tmp_path: Path) -> None:
    xyz, labels = torch.zeros(5, 3), torch.zeros(5, dtype=torch.int64)
    with pytest.raises(ValueError, match="labels must be given"):
        draw_labels(PointCloud(xyz))
    with pytest.raises(TypeError, match="labels must be a tensor or an array, got list"):
        draw_labels(xyz, [0] * 5)  # type: ignore[arg-type]
    for bad in (labels[:4], labels.float(), labels[:, None]):
        with pytest.raises(ValueError, match=r"labels must be integers \[N\] with N = 5"):
            draw_labels(xyz, bad)
    with pytest.raises(ValueError, match="labels must be below the number of class_names, 2, got 2"):
        draw_labels(xyz, labels + 2, ["a", "b"])
    for bad_xyz in (torch.zeros(5, 2), torch.full((5, 3), float("nan")), torch.zeros(5, 3, dtype=torch.int32)):
        with pytest.raises(ValueError, match="cloud must be a PointCloud or finite float"):
            draw_labels(bad_xyz, labels)
    with pytest.raises(ValueError, match=r"colors must be integers \[C, 3\] with C = 1"):
        draw_labels(xyz, labels, ["a"], [RED, GREEN])
    with pytest.raises(ValueError, match="colors must lie in 0 to 255"):
        draw_labels(xyz, labels, ["a"], [(0, 0, 256)])
    for views in ((), ("top",), "bev"):
        with pytest.raises(ValueError, match="views must hold"):
            draw_labels(xyz, labels, views=views)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        draw_labels(xyz, labels, path=tmp_path / "none" / "a.png")


def test_rows_that_are_not_finite_are_named() -> None:
    xyz = sweep()
    xyz[7, 1] = float("inf")
    with pytest.raises(ValueError, match=r"finite float \[N, 3\], got \[.*, inf, .*\] in row 7"):
        draw_labels(xyz, torch.zeros(len(xyz), dtype=torch.int64))


@pytest.mark.parametrize("offset", [1e3, 1e6, 1e15, 1e30])
@pytest.mark.parametrize("views", [None, ("range", "bev")])
def test_clouds_far_from_the_origin(offset: float, views: tuple[str, ...] | None) -> None:
    xyz = sweep().double() + offset
    image = draw_labels(xyz, torch.zeros(len(xyz), dtype=torch.int64), ["a"], [RED], views=views)
    assert len(where(image, RED))


@pytest.mark.parametrize("extent", [1e-6, 1e-2, 1e4, 1e8])
def test_clouds_of_any_size(extent: float) -> None:
    xyz = torch.rand(1000, 3, dtype=torch.float64) * extent
    image = draw_labels(xyz, torch.zeros(1000, dtype=torch.int64), ["a"], [RED])
    assert len(where(image, RED))


def test_legend_counts_and_colours() -> None:
    labels = torch.tensor([0] * 30 + [1] * 10)
    image = draw_labels(torch.rand(40, 3), labels, ["a", "b"], [RED, GREEN])
    legend = image[:, 1280:]
    assert all((legend == color).all(axis=2).sum() > 100 for color in (RED, GREEN))
    # Bars are as long as the classes are large.
    bars = [
        int((np.abs(legend.astype(int) - [c * 0.8 for c in color]).max(axis=2) < 12).any(0).sum())
        for color in (RED, GREEN)
    ]
    assert bars[0] == pytest.approx(3 * bars[1], rel=0.05)


def test_matplotlib_is_not_imported() -> None:
    import subprocess
    import sys

    code = (
        "import sys, torch; from pointcloud.picture import draw_labels;"
        "draw_labels(torch.rand(9, 3), torch.zeros(9, dtype=torch.int64), title='ü');"
        "sys.exit('matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_pillow_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"trisparse\[pointcloud\]"):
        draw_labels(torch.zeros(1, 3), torch.zeros(1, dtype=torch.int64))
