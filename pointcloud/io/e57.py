"""E57 files (ASTM E2807): XML and bit-packed columns in pages that carry a checksum. No library is needed."""

from __future__ import annotations

import struct
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np

from pointcloud.io.columns import Array, Columns
from pointcloud.io.files import check_file, first_bytes

_MAX_XML = 1 << 26
_MAX_CONSTANT = 1 << 24  # points of a scan whose columns are all constant, so that no byte of it is there
_CHUNK = 1 << 18
_AXES = ("cartesianX", "cartesianY", "cartesianZ")
_SPHERE = ("sphericalRange", "sphericalAzimuth", "sphericalElevation")
_NORMALS = ("normalX", "normalY", "normalZ")
_COLOURS = ("colorRed", "colorGreen", "colorBlue")


@dataclass(frozen=True)
class _Field:
    name: str
    kind: str  # Float, Integer, ScaledInteger, or another that is not read
    bits: int
    low: int = 0
    high: int = 0
    scale: float = 1.0
    offset: float = 0.0


def _crc_table() -> Array:
    """CRC-32C of each byte (Castagnoli, reflected)."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0x82F63B78), table >> 1).astype(np.uint32)
    return table


@numba.njit(nogil=True, cache=True)
def _first_bad_page(pages: Any, table: Any) -> int:
    """The first of the pages [P, S] whose last four bytes are not its checksum, or -1."""
    for page in range(pages.shape[0]):
        crc = np.uint32(0xFFFFFFFF)
        size = pages.shape[1] - 4
        for i in range(size):
            crc = table[(crc ^ pages[page, i]) & np.uint32(255)] ^ (crc >> np.uint32(8))
        crc ^= np.uint32(0xFFFFFFFF)
        for i in range(4):
            if (crc >> np.uint32(24 - 8 * i)) & np.uint32(255) != pages[page, size + i]:
                return page
    return -1


class _File:
    """The bytes of an E57 file without the checksums of its pages, and its XML."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        with open(path, "rb") as file:
            head = file.read(48)
        if head[:8] != b"ASTM-E57":
            raise ValueError(f"{path}: expected an E57 file (begins with 'ASTM-E57'), got {first_bytes(head)}")
        if len(head) < 48:
            raise ValueError(f"{path}: truncated: an E57 header has 48 bytes, got {len(head)}")
        major, _, length, xml_at, xml_size, page = struct.unpack_from("<IIQQQQ", head, 8)
        if major != 1 or page < 64 or page > 1 << 20:
            raise ValueError(
                f"{path}: expected E57 version 1 with pages of 1024 bytes, got version {major}, {page} bytes"
            )
        if length != size or size % page:
            raise ValueError(
                f"{path}: truncated: the header claims {length} bytes in pages of {page}, the file has {size}"
            )
        pages = np.fromfile(path, dtype=np.uint8).reshape(-1, page)
        bad = _first_bad_page(pages, _crc_table())
        if bad >= 0:
            raise ValueError(f"{path}: corrupt: the checksum of page {bad} (bytes from {bad * page} on) is wrong")
        self._page = page
        self._data = np.ascontiguousarray(pages[:, :-4]).reshape(-1)
        if xml_size > _MAX_XML:
            raise ValueError(f"{path}: expected at most {_MAX_XML} bytes of XML, the header claims {xml_size}")
        self.xml = self.read(self.logical(xml_at), xml_size, "the XML").tobytes()

    def logical(self, physical: int) -> int:
        """A place in the file as a place among the bytes without checksums."""
        return physical // self._page * (self._page - 4) + min(physical % self._page, self._page - 4)

    def read(self, start: int, size: int, what: str) -> Array:
        """uint8 [size] from a logical place on."""
        if start + size > len(self._data):
            raise ValueError(f"{self.path}: truncated: {what} ends at byte {start + size} of {len(self._data)}")
        return self._data[start : start + size]


def _local(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _child(element: ElementTree.Element | None, name: str) -> ElementTree.Element | None:
    return None if element is None else next((child for child in element if _local(child) == name), None)


def _number(path: Path, element: ElementTree.Element | None, default: float) -> float:
    if element is None or not (element.text or "").strip():
        return default
    try:
        return float(element.text or "")
    except ValueError:
        raise ValueError(
            f"{path}: E57: {_local(element)} must be a number, got {(element.text or '')[:40]!r}"
        ) from None


def _attribute(path: Path, element: ElementTree.Element, name: str, default: float) -> Any:
    text = element.get(name)
    try:
        return default if text is None else type(default)(text)
    except (ValueError, OverflowError):
        raise ValueError(f"{path}: E57: {name} of {_local(element)} must be a number, got {text!r:.40}") from None


def _field(path: Path, element: ElementTree.Element) -> _Field:
    name, kind = _local(element), element.get("type", "")
    if kind == "Float":
        return _Field(name, kind, 32 if element.get("precision") == "single" else 64)
    if kind not in ("Integer", "ScaledInteger"):
        return _Field(name, kind, 0)
    low = _attribute(path, element, "minimum", -(2**63))
    high = _attribute(path, element, "maximum", 2**63 - 1)
    if not -(2**63) <= low <= high < 2**63:
        raise ValueError(f"{path}: E57: {name} must have minimum <= maximum in 64 bits, got {low} and {high}")
    scale, offset = _attribute(path, element, "scale", 1.0), _attribute(path, element, "offset", 0.0)
    return _Field(name, kind, (high - low).bit_length(), low, high, scale, offset)


def _streams(file: _File, start: int, n_fields: int) -> list[bytes]:
    """The bytes of each field of the compressed vector whose section begins at the logical place `start`."""
    head = file.read(start, 32, "a section of points").tobytes()
    length, data_at = struct.unpack_from("<QQ", head, 8)
    if head[0] != 1:
        raise ValueError(f"{file.path}: corrupt: expected a section of points, got a section of kind {head[0]}")
    at, end = file.logical(data_at), start + length
    file.read(start, length, "a section of points")
    parts: list[list[bytes]] = [[] for _ in range(n_fields)]
    while at < end:
        packet = file.read(at, 4, "a packet").tobytes()
        size = struct.unpack_from("<H", packet, 2)[0] + 1
        body = file.read(at, size, "a packet").tobytes()
        if packet[0] == 1:
            count = struct.unpack_from("<H", body, 4)[0] if size >= 6 else -1
            if count != n_fields or size < 6 + 2 * count:
                raise ValueError(f"{file.path}: corrupt: expected a packet of {n_fields} columns, got {count}")
            place = 6 + 2 * count
            for part, n in zip(parts, struct.unpack_from(f"<{count}H", body, 6), strict=True):
                if place + n > size:
                    raise ValueError(f"{file.path}: corrupt: a column ends outside its packet")
                part.append(body[place : place + n])
                place += n
        elif packet[0] not in (0, 2):
            raise ValueError(f"{file.path}: corrupt: expected a packet of kind 0, 1 or 2, got {packet[0]}")
        at += size
    return [b"".join(part) for part in parts]


def _unpack(data: bytes, n: int, bits: int) -> Array:
    """`n` whole numbers of `bits` bits each, least significant first, as uint64 [n]."""
    out = np.zeros(n, dtype=np.uint64)
    raw = np.frombuffer(data + bytes(16), dtype=np.uint8)
    mask = np.uint64(2**bits - 1)
    for start in range(0, n, _CHUNK):
        bit = np.arange(start, min(start + _CHUNK, n), dtype=np.int64) * bits
        window = raw[(bit >> 3)[:, None] + np.arange(9)]
        shift = (bit & 7).astype(np.uint64)
        value = np.ascontiguousarray(window[:, :8]).view("<u8").reshape(-1) >> shift
        if bits > 56:  # the ninth byte; a shift by 64 is not defined
            above = window[:, 8].astype(np.uint64) << (np.uint64(63) - shift) << np.uint64(1)
            value |= above
        out[start : start + len(bit)] = value & mask
    return out


def _decode(path: Path, field: _Field, data: bytes, n: int) -> Array | None:
    if field.kind == "Float":
        return np.frombuffer(data, dtype="<f4" if field.bits == 32 else "<f8", count=n)
    if field.kind not in ("Integer", "ScaledInteger"):
        return None
    # Modulo 2^64, as two's complement adds.
    whole = (_unpack(data, n, field.bits) + np.uint64(field.low % 2**64)).view(np.int64)
    if n and (int(whole.min()) < field.low or int(whole.max()) > field.high):
        raise ValueError(f"{path}: corrupt: {field.name} must be from {field.low} to {field.high}")
    return whole if field.kind == "Integer" else whole * field.scale + field.offset


def _read_scan(file: _File, scan: ElementTree.Element) -> Columns | None:
    """The columns of one scan in the coordinates of the file, or None where the scan has no points."""
    points = _child(scan, "points")
    prototype = _child(points, "prototype")
    if points is None or prototype is None:
        return None
    if len(_child(points, "codecs") or ()):
        raise ValueError(f"{file.path}: E57: the points need a codec that is no part of the standard")
    fields = [_field(file.path, element) for element in prototype]
    n = _attribute(file.path, points, "recordCount", 0)
    start = file.logical(_attribute(file.path, points, "fileOffset", 0))
    streams = _streams(file, start, len(fields)) if n else [b""] * len(fields)
    for field, data in zip(fields, streams, strict=True):
        if n < 0 or field.bits * n > 8 * len(data):
            raise ValueError(
                f"{file.path}: truncated: the header claims {n} points, "
                f"{len(data)} bytes of {field.name} cannot hold them"
            )
    if n > _MAX_CONSTANT and not any(field.bits for field in fields):
        raise ValueError(f"{file.path}: {n} points whose columns are all constant are no cloud")
    found: Columns = {}
    for field, data in zip(fields, streams, strict=True):
        column = _decode(file.path, field, data, n)
        if column is not None:
            found[field.name] = column
    _to_cartesian(file.path, found)
    _apply_pose(file.path, found, _child(scan, "pose"))
    _scale_colours(file.path, found, fields, _child(scan, "colorLimits"))
    return found


def _to_cartesian(path: Path, columns: Columns) -> None:
    """Put x, y and z, float64, in place of either kind of coordinates; NaN where a point is marked as invalid."""
    if all(name in columns for name in _AXES):
        axes = [np.array(columns.pop(name), dtype=np.float64) for name in _AXES]
        state = columns.pop("cartesianInvalidState", None)
    elif all(name in columns for name in _SPHERE):
        distance, azimuth, elevation = (columns.pop(name).astype(np.float64) for name in _SPHERE)
        flat = distance * np.cos(elevation)
        axes = [flat * np.cos(azimuth), flat * np.sin(azimuth), distance * np.sin(elevation)]
        state = columns.pop("sphericalInvalidState", None)
    else:
        raise ValueError(
            f"{path}: E57: expected cartesian or spherical coordinates, got {', '.join(columns) or 'none'}"
        )
    for name, axis in zip("xyz", axes, strict=True):
        if state is not None:
            axis[state != 0] = np.nan
        columns[name] = axis


def _apply_pose(path: Path, columns: Columns, pose: ElementTree.Element | None) -> None:
    """Turn and move a scan, and turn its normals, from the scanner's coordinates to those of the file."""
    turn, move = _child(pose, "rotation"), _child(pose, "translation")
    w, x, y, z = (_number(path, _child(turn, name), 1.0 if name == "w" else 0.0) for name in "wxyz")
    norm = float(np.sqrt(w * w + x * x + y * y + z * z))
    if not np.isfinite(norm) or norm < 1e-9:
        raise ValueError(f"{path}: E57: the rotation of a scan must be a quaternion, got {w} {x} {y} {z}")
    w, x, y, z = (part / norm for part in (w, x, y, z))
    matrix = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    for names, offset in (
        (tuple("xyz"), [_number(path, _child(move, name), 0.0) for name in "xyz"]),
        (_NORMALS, [0.0] * 3),
    ):
        if all(name in columns for name in names):
            before = [columns[name] for name in names]
            for i, name in enumerate(names):
                columns[name] = sum(matrix[i, k] * before[k] for k in range(3)) + offset[i]


def _scale_colours(path: Path, columns: Columns, fields: Sequence[_Field], limits: ElementTree.Element | None) -> None:
    """Put red, green and blue, uint8, in place of colours of any range."""
    by_name = {field.name: field for field in fields}
    if not all(name in columns for name in _COLOURS):
        return
    for name, short in zip(_COLOURS, ("red", "green", "blue"), strict=True):
        field, column = by_name[name], columns.pop(name)
        whole = field.kind == "Integer"
        low = _number(path, _child(limits, f"{name}Minimum"), float(field.low) if whole else 0.0)
        high = _number(path, _child(limits, f"{name}Maximum"), float(field.high) if whole else 1.0)
        if not low < high:
            raise ValueError(f"{path}: E57: the limits of {name} must differ, got {low} and {high}")
        share = (column.astype(np.float64) - low) / (high - low)
        if not bool(((share >= 0) & (share <= 1)).all()):
            raise ValueError(f"{path}: E57: {name} must be from {low} to {high}, got {column.min()} to {column.max()}")
        columns[short] = np.rint(share * 255).astype(np.uint8)


def read_e57(path: Path) -> Columns:
    """The points of all scans of an E57 file, each moved by its pose; `scan` counts them. x, y, z are float64, metres.

    Columns that not all scans have are left out. Points that a scan marks as invalid have NaN coordinates.
    """
    file = _File(path, check_file(path, "an E57 file"))
    if b"<!DOCTYPE" in file.xml or b"<!ENTITY" in file.xml:
        raise ValueError(f"{path}: E57: the XML must not define entities")
    try:
        root = ElementTree.fromstring(file.xml.rstrip(b"\0"))
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise ValueError(f"{path}: corrupt: the XML of the E57 file: {error}") from None
    scans = [columns for scan in _child(root, "data3D") or () if (columns := _read_scan(file, scan)) is not None]
    if not scans:
        raise ValueError(f"{path}: expected an E57 file with points, got one without a scan")
    for i, columns in enumerate(scans):
        columns["scan"] = np.full(len(columns["x"]), i, dtype=np.int32)
    common = [name for name in scans[0] if all(name in columns for columns in scans)]
    return {name: np.concatenate([columns[name] for columns in scans]) for name in common}
