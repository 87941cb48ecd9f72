"""Captured network packets (.pcap): the UDP payloads in them, and whose LiDAR sent them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pointcloud.io.columns import Columns
from pointcloud.io.files import check_file, first_bytes
from pointcloud.io.velodyne import PACKET_BYTES, decode_packets

_MAGIC = {b"\xd4\xc3\xb2\xa1": "<", b"\xa1\xb2\xc3\xd4": ">", b"\x4d\x3c\xb2\xa1": "<", b"\xa1\xb2\x3c\x4d": ">"}
_NEXT_GENERATION = b"\x0a\x0d\x0d\x0a"
_MAX_CAPTURED = 1 << 18  # bytes of one packet
# Bytes before the IP header, by the kind of link.
_LINKS = {0: 4, 1: 14, 101: 0, 113: 16, 228: 0}
_OUSTER_PORTS = {7502, 7503}
_LIVOX_PORTS = {55000, 56000, 57000, 56100, 56300}


def _packets(path: Path, file: BinaryIO, size: int) -> Iterator[tuple[int, bytes]]:
    """Destination port and payload of every whole UDP packet over IPv4."""
    head = file.read(24)
    if head[:4] == _NEXT_GENERATION:
        raise ValueError(f"{path}: a capture in pcapng; write it as pcap: editcap -F pcap IN.pcapng OUT.pcap")
    order = _MAGIC.get(head[:4])
    if order is None:
        raise ValueError(f"{path}: expected a pcap capture, got {first_bytes(head)}")
    if len(head) < 24:
        raise ValueError(f"{path}: truncated: a pcap header has 24 bytes, got {len(head)}")
    link = struct.unpack_from(order + "I", head, 20)[0] & 0xFFFF
    if link not in _LINKS:
        raise ValueError(
            f"{path}: expected packets of Ethernet, loopback, Linux cooked or raw IP, got link type {link}"
        )
    while record := file.read(16):
        if len(record) < 16:
            raise ValueError(f"{path}: truncated inside a packet's header")
        captured, whole = struct.unpack_from(order + "II", record, 8)
        if captured > min(_MAX_CAPTURED, size):
            raise ValueError(f"{path}: corrupt: a packet claims {captured} bytes")
        data = file.read(captured)
        if len(data) < captured:
            raise ValueError(f"{path}: truncated inside a packet: expected {captured} bytes, got {len(data)}")
        found = _udp(data, link) if captured == whole else None
        if found is not None:
            yield found


def _udp(data: bytes, link: int) -> tuple[int, bytes] | None:
    """Destination port and payload of an unfragmented UDP packet over IPv4, or None."""
    at = _LINKS[link]
    if link == 1:
        while data[at - 2 : at] in (b"\x81\x00", b"\x88\xa8"):  # tags of virtual networks
            at += 4
    if len(data) < at + 20 or data[at] >> 4 != 4 or data[at + 9] != 17:
        return None
    if struct.unpack_from(">H", data, at + 6)[0] & 0x3FFF:
        return None
    at += 4 * (data[at] & 15)
    if len(data) < at + 8:
        return None
    port, length = struct.unpack_from(">HH", data, at + 2)
    if length < 8 or len(data) < at + length:
        return None
    return port, data[at + 8 : at + length]


def _maker(port: int, payload: bytes) -> str | None:
    """Whose LiDAR sends such packets, of those that cannot be read here."""
    if payload[:2] == b"\xee\xff":
        return "Hesai"
    if port in _OUSTER_PORTS:
        return "Ouster"
    if port in _LIVOX_PORTS:
        return "Livox"
    if payload[:4] == b"\x55\xaa\x05\x0a" or payload[:4] == b"\x55\xaa\x05\x5a":
        return "RoboSense"
    return None


def read_pcap(path: Path) -> Columns:
    """The points of a capture of a Velodyne VLP-16, Puck Hi-Res, HDL-32E or VLP-32C.

    x forward, y left, z up, metres, sensor at the origin. All turns are read: `turn` counts them, `ring` the beams
    from below; `time` is the sensor's microseconds after the hour. Beams without an echo are left out.
    Raises ValueError for other sensors.
    """
    size = check_file(path, "a pcap capture")
    packets: list[bytes] = []
    others: dict[str, int] = {}
    with open(path, "rb") as file:
        for port, payload in _packets(path, file, size):
            if len(payload) == PACKET_BYTES and payload[:2] in (b"\xff\xee", b"\xff\xdd"):
                packets.append(payload)
            else:
                name = _maker(port, payload) or "unknown"
                others[name] = others.get(name, 0) + 1
    if packets:
        try:
            return decode_packets(packets)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    made_by = next((name for name in others if name != "unknown"), None)
    if made_by is not None:
        raise ValueError(
            f"{path}: packets of a LiDAR by {made_by}, whose geometry is not in the capture; write the cloud as .pcd "
            f"or .las with {made_by}'s own software first"
        )
    n = sum(others.values())
    raise ValueError(f"{path}: expected packets of a Velodyne LiDAR ({PACKET_BYTES} bytes), got {n} others")
