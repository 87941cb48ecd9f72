"""`read_points`: one function for every format."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from pointcloud.io.columns import Columns, build_cloud, parse_columns
from pointcloud.io.e57 import read_e57
from pointcloud.io.files import check_file, check_pointer
from pointcloud.io.gz import inner_name, is_gzip, unpacked
from pointcloud.io.las import read_las
from pointcloud.io.mesh_text import read_obj, read_off
from pointcloud.io.numpy_files import read_npy, read_npz
from pointcloud.io.pcap import read_pcap
from pointcloud.io.pcd import read_pcd
from pointcloud.io.ply import read_ply
from pointcloud.io.raw import PRESETS, check_values, read_labels, read_raw
from pointcloud.io.text import read_text
from pointcloud.points import PointCloud

# Endings of file names that tell the format, the longer ones first.
SUFFIXES = {
    ".pcd.bin": "nuscenes", ".bin": "bin", ".pcd": "pcd", ".ply": "ply", ".las": "las", ".laz": "las",
    ".npy": "npy", ".npz": "npz", ".txt": "text", ".xyz": "text", ".csv": "text", ".pts": "text",
    ".obj": "obj", ".off": "off", ".e57": "e57", ".pcap": "pcap",
}  # fmt: skip
FORMATS = (*PRESETS, "bin", "pcd", "ply", "las", "npy", "npz", "text", "obj", "off", "e57", "pcap")

_Names = Sequence[str] | None
_RAW = (*PRESETS, "bin")
_UNNAMED: dict[str, Callable[[Path, _Names], Columns]] = {
    "npy": read_npy,
    "npz": read_npz,
    "text": read_text,
}
_NAMED: dict[str, Callable[[Path], Columns]] = {
    "pcd": read_pcd, "ply": read_ply, "las": read_las, "obj": read_obj, "off": read_off,
    "e57": read_e57, "pcap": read_pcap,
}  # fmt: skip


def _format_of(path: Path) -> str:
    inside = inner_name(path)
    for suffix, name in SUFFIXES.items():
        if inside.lower().endswith(suffix):
            return name
    raise ValueError(
        f"{path}: unknown suffix {Path(inside).suffix!r}; expected one of {' '.join(SUFFIXES)}, also with .gz, "
        f"or pass format= ({', '.join(FORMATS)})"
    )


def read_points(
    path: str | os.PathLike[str],
    format: str | None = None,
    columns: str | Sequence[str] | None = None,
    *,
    dtype: str | None = None,
    byte_order: str | None = None,
    labels: str | os.PathLike[str] | None = None,
    invalid: str = "error",
) -> PointCloud:
    """Read a cloud: .bin (KITTI, nuScenes, other rows), .pcd, .ply, .las, .laz, .npy, .npz, .txt, .xyz, .csv, .pts.

    Also .e57, the vertices of .obj and .off, the packets of a Velodyne in .pcap, and each of these packed as .gz.
    format: overrides the suffix, one of FORMATS; `bin` looks at the numbers to tell x y z intensity, x y z intensity
    ring and x y z r g b apart, and refuses to guess. `kitti`, `nuscenes`, `waymo` (x y z intensity elongation aux) and
    `sunrgbd` (x y z r g b) are rows without a header too. Numbers that cannot be coordinates are refused.
    columns: names of the columns where the file carries none (`"x y z r g b"`; `_` skips one).
    dtype, byte_order: numbers of a file without a header: float16, float32 (the default), float64, int16 or int32;
    "little" (the default) or "big".
    labels: a SemanticKITTI `.label` or nuScenes lidarseg `.bin` file with one label per point.
    invalid: what to do with points whose coordinates or intensity are NaN or infinite: "error", or "drop" them.

    Columns are found by their names; those without a place of their own are in `extra`. The intensity keeps its scale.
    Coordinates with a median beyond 4096 m are kept relative to `origin`.
    Raises FileNotFoundError, IsADirectoryError, or ValueError naming the file, what was expected and what came.

    Example:
        >>> import pointcloud
        >>> cloud = pointcloud.read_points("scan.ply")
        >>> cloud.xyz.shape, cloud.intensity.shape
        (torch.Size([3, 3]), torch.Size([3]))
    """
    path = Path(path)
    if invalid not in ("error", "drop"):
        raise ValueError(f"invalid must be 'error' or 'drop', got {invalid!r}")
    if format is not None and format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    check_file(path, "a point cloud")
    check_pointer(path)
    names = parse_columns(columns)
    kind = format or _format_of(path)
    if is_gzip(path):
        with unpacked(path) as inner:
            check_pointer(inner)
            found = _read(inner, kind, names, dtype, byte_order)
    else:
        found = _read(path, kind, names, dtype, byte_order)
    if labels is not None:
        found = _add_labels(path, found, Path(labels))
    return build_cloud(path, found, invalid)


def _read(path: Path, kind: str, names: _Names, dtype: str | None, byte_order: str | None) -> Columns:
    values = check_values(dtype, byte_order)
    if kind in _RAW:
        return read_raw(path, names, kind if kind in PRESETS else None, values)
    if dtype is not None or byte_order is not None:
        argument = "dtype" if dtype is not None else "byte_order"
        raise ValueError(f"{argument} does not apply to {path}: a {kind} file says itself what its numbers are")
    if kind in _UNNAMED:
        return _UNNAMED[kind](path, names)
    if names is not None:
        raise ValueError(f"columns does not apply to {path}: a {kind} file names its own columns")
    return _NAMED[kind](path)


def _add_labels(path: Path, columns: Columns, labels: Path) -> Columns:
    taken = {"label", "instance"} & {name.lower() for name in columns}
    if taken:
        raise ValueError(
            f"{path}: labels= cannot be added, the cloud has the column {', '.join(sorted(taken))} already"
        )
    lower = {name.lower(): column for name, column in columns.items()}
    if "x" not in lower:
        raise ValueError(f"{path}: a cloud has columns x, y and z, this file has {', '.join(columns)}")
    check_file(labels, "a label file")
    check_pointer(labels)
    classes, instances = read_labels(labels, len(lower["x"]))
    # First among the columns: it wins over a column that only may hold labels.
    return {"label": classes, **columns} | ({} if instances is None else {"instance": instances})
