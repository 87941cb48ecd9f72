"""Whether decoding from a key frame on gives whole pictures at once; nothing is decoded to find out."""

from __future__ import annotations

from collections.abc import Iterator

# Bytes of a packet that hold what comes before its picture.
HEADER_BYTES = 8192
_SEI, _IDR = 6, 5
_RECOVERY_POINT = 6


def starts_clean(packet: bytes, extradata: bytes | None) -> bool:
    """Whether the H.264 key packet begins a stream whose every later shown picture is whole.

    True for an IDR picture and for a recovery point that is exact at once, as open groups of pictures have; False where
    the picture becomes whole only after some frames, as with intra refresh (H.264, D.2.8, recovery_frame_cnt > 0).
    A packet that says neither is taken at its word.
    """
    for unit in _units(packet, extradata):
        if not unit:
            continue
        kind = unit[0] & 31
        if kind == _IDR:
            return True
        if kind == _SEI:
            count = _recovery_frames(unit[1:])
            if count is not None:
                return count == 0
    return True


def _units(packet: bytes, extradata: bytes | None) -> Iterator[bytes]:
    """The NAL units of a packet, their lengths in front (MP4, Matroska) or start codes between them (MPEG-TS)."""
    if extradata and len(extradata) > 4 and extradata[0] == 1:
        width = (extradata[4] & 3) + 1
        at = 0
        while at + width <= len(packet):
            length = int.from_bytes(packet[at : at + width], "big")
            yield packet[at + width : at + width + length]
            at += width + length
    else:
        yield from packet.split(b"\0\0\1")[1:]


def _recovery_frames(payload: bytes) -> int | None:
    """recovery_frame_cnt of the recovery point among SEI messages, None where there is none."""
    at = 0
    while at + 2 <= len(payload) and payload[at] != 0x80:
        sizes = []
        for _ in range(2):  # type and size, each a sum of bytes that ends with the first below 255
            total = 0
            while at < len(payload) and payload[at] == 255:
                total, at = total + 255, at + 1
            if at >= len(payload):
                return None
            sizes.append(total + payload[at])
            at += 1
        kind, size = sizes
        if kind == _RECOVERY_POINT:
            return _exp_golomb(payload[at : at + size].replace(b"\0\0\3", b"\0\0"))
        at += size
    return None


def _exp_golomb(data: bytes) -> int | None:
    bits = "".join(f"{byte:08b}" for byte in data)
    zeros = len(bits) - len(bits.lstrip("0"))
    if 2 * zeros + 1 > len(bits):
        return None
    return int(bits[zeros : 2 * zeros + 1], 2) - 1
