"""Clouds, and writers of the formats that are independent of the readers."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
import torch

from pointcloud.io import read_points
from pointcloud.points import PointCloud

N = 137


def street(n: int = N, seed: int = 0) -> dict[str, np.ndarray]:
    """Columns of a cloud with the value ranges of a LiDAR sweep."""
    rng = np.random.default_rng(seed)
    return {
        "x": rng.normal(0, 20, n).astype(np.float32),
        "y": rng.normal(5, 20, n).astype(np.float32),
        "z": rng.normal(-1, 1, n).astype(np.float32),
        "intensity": rng.integers(0, 256, n).astype(np.float32),
        "ring": rng.integers(0, 32, n).astype(np.uint16),
        "label": rng.integers(0, 20, n).astype(np.uint32),
    }


def xyz_of(columns: dict[str, np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack([columns[a] for a in "xyz"], axis=1).astype(np.float32))


def lzf_compress(data: bytes) -> bytes:
    """A plain LZF encoder: greedy matches of 3 to 264 bytes up to 8192 back."""
    out, literals, seen, i = bytearray(), bytearray(), {}, 0

    def flush() -> None:
        for start in range(0, len(literals), 32):
            run = literals[start : start + 32]
            out.append(len(run) - 1)
            out.extend(run)
        literals.clear()

    while i < len(data):
        key = data[i : i + 3]
        back = seen.get(key)
        if len(key) == 3:
            seen[key] = i
        if back is None or len(key) < 3 or i - back > 8192:
            literals.append(data[i])
            i += 1
            continue
        length = 3
        while length < 264 and i + length < len(data) and data[back + length] == data[i + length]:
            length += 1
        flush()
        offset, short = i - back - 1, length - 2
        out.append((min(short, 7) << 5) | (offset >> 8))
        if short >= 7:
            out.append(short - 7)
        out.append(offset & 255)
        i += length
    flush()
    return bytes(out)


def pcd_header(columns: dict[str, np.ndarray], data: str, points: int | None = None) -> bytes:
    n = len(columns["x"]) if points is None else points
    kinds = {"f": "F", "i": "I", "u": "U"}
    lines = [
        "# .PCD v0.7 - Point Cloud Data file format",
        "VERSION 0.7",
        "FIELDS " + " ".join(columns),
        "SIZE " + " ".join(str(c.dtype.itemsize) for c in columns.values()),
        "TYPE " + " ".join(kinds[c.dtype.kind] for c in columns.values()),
        "COUNT " + " ".join("1" if c.ndim == 1 else str(c.shape[1]) for c in columns.values()),
        f"WIDTH {n}",
        "HEIGHT 1",
        "VIEWPOINT 0 0 0 1 0 0 0",
        f"POINTS {n}",
        f"DATA {data}",
    ]
    return ("\n".join(lines) + "\n").encode()


def as_rows(columns: dict[str, np.ndarray], order: str = "<") -> np.ndarray:
    rows = np.empty(
        len(columns["x"]), dtype=[(name, c.dtype.newbyteorder(order), c.shape[1:]) for name, c in columns.items()]
    )
    for name, column in columns.items():
        rows[name] = column
    return rows


def ascii_rows(columns: dict[str, np.ndarray]) -> bytes:
    # repr of a float32 is the shortest text that reads back to it.
    lines = []
    for i in range(len(columns["x"])):
        lines.append(" ".join(str(v) for c in columns.values() for v in np.atleast_1d(c[i])))
    return ("\n".join(lines) + "\n").encode()


def pcd_bytes(columns: dict[str, np.ndarray], data: str) -> bytes:
    if data == "ascii":
        return pcd_header(columns, data) + ascii_rows(columns)
    if data == "binary":
        return pcd_header(columns, data) + as_rows(columns).tobytes()
    flat = b"".join(np.ascontiguousarray(c).tobytes() for c in columns.values())
    packed = lzf_compress(flat)
    return pcd_header(columns, data) + struct.pack("<II", len(packed), len(flat)) + packed


def ply_bytes(
    columns: dict[str, np.ndarray], order: str, before: str = "", payload: bytes = b"", after: str = ""
) -> bytes:
    names = {"f4": "float", "f8": "double", "u1": "uchar", "u2": "ushort", "u4": "uint", "i4": "int", "i2": "int16"}
    lines = [
        "ply",
        f"format {order} 1.0",
        "comment a test",
        *before.splitlines(),
        f"element vertex {len(columns['x'])}",
    ]
    lines += [f"property {names[c.dtype.str[1:]]} {name}" for name, c in columns.items()] + after.splitlines()
    body = ascii_rows(columns) if order == "ascii" else as_rows(columns, ">" if "big" in order else "<").tobytes()
    return ("\n".join([*lines, "end_header"]) + "\n").encode() + payload + body


SAMPLES = {
    **{
        f"{data}.pcd": lambda data=data: pcd_bytes(street(40), data)
        for data in ("ascii", "binary", "binary_compressed")
    },
    **{
        f"{order}.ply": lambda order=order: ply_bytes(street(40), order)
        for order in ("ascii", "binary_little_endian", "binary_big_endian")
    },
}


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def read_or_none(path: Path) -> PointCloud | None:
    """The cloud, or None where the reader refused the file or warned about its end."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return read_points(path)
        except (ValueError, UserWarning):
            return None
