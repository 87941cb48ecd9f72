"""`write_ply`: labelled, coloured clouds for any viewer."""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import Tensor

from common_models.files import replace_atomically
from pointcloud.io.columns import Array
from pointcloud.points import PointCloud

_NAMES = {"<f4": "float", "<f8": "double", "<i4": "int", "|u1": "uchar"}


def _labels(labels: Tensor | Array, n: int) -> Array:
    values = torch.as_tensor(labels).detach().cpu()
    if values.ndim != 1 or len(values) != n or values.is_floating_point() or values.is_complex():
        raise ValueError(f"labels must be integers [N] with N = {n}, got {values.dtype} {list(values.shape)}")
    wide = values.to(torch.int64).numpy()
    limits = np.iinfo(np.int32)
    if n and (wide.min() < limits.min or wide.max() > limits.max):
        raise ValueError(f"labels must fit int32, got {wide.min()} to {wide.max()}")
    return wide.astype("<i4")


def _colors(colors: Tensor | Array, n: int) -> Array:
    values = torch.as_tensor(colors).detach().cpu()
    if values.dtype != torch.uint8 or tuple(values.shape) != (n, 3):
        raise ValueError(f"colors must be uint8 [N, 3] with N = {n}, got {values.dtype} {list(values.shape)}")
    return values.numpy()


def write_ply(
    path: str | os.PathLike[str],
    cloud: PointCloud,
    labels: Tensor | Array | None = None,
    colors: Tensor | Array | None = None,
) -> None:
    """Write x y z [intensity] [label] [red green blue] as binary little-endian PLY.

    labels: integers [N], instead of the cloud's own. colors: uint8 [N, 3], instead of the cloud's rgb.
    Coordinates are float, and world coordinates in double where the cloud has an origin. `extra` is not written.
    The file appears whole or not at all. Raises ValueError where labels or colors do not fit the cloud.
    """
    n = len(cloud)
    far = bool((cloud.origin != 0).any())
    xyz = (cloud.world() if far else cloud.xyz).detach().cpu().numpy()
    columns: dict[str, Array] = {axis: xyz[:, i].astype("<f8" if far else "<f4") for i, axis in enumerate("xyz")}
    if cloud.intensity is not None:
        columns["intensity"] = cloud.intensity.detach().cpu().numpy().astype("<f4")
    labels = cloud.labels if labels is None else labels
    if labels is not None:
        columns["label"] = _labels(labels, n)
    colors = cloud.rgb if colors is None else colors
    if colors is not None:
        rgb = _colors(colors, n)
        columns |= {name: rgb[:, i] for i, name in enumerate(("red", "green", "blue"))}

    rows = np.empty(n, dtype=[(name, column.dtype) for name, column in columns.items()])
    for name, column in columns.items():
        rows[name] = column
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {n}"]
    lines += [f"property {_NAMES[column.dtype.str]} {name}" for name, column in columns.items()]
    with replace_atomically(path) as partial, open(partial, "xb") as file:
        file.write(("\n".join([*lines, "end_header"]) + "\n").encode("ascii"))
        file.write(rows.tobytes())
