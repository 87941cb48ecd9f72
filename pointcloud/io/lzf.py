"""Decoder of the LZF stream that binary_compressed PCD files hold (format: Lehmann, liblzf, 2000)."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

# A back reference of three bytes copies at most 264, so no stream grows by more than this.
MAX_EXPANSION = 88


@numba.njit(nogil=True, cache=True)
def _decode(source: Any, out: Any) -> int:
    """Bytes written, or -1 where the stream reads or writes outside its buffers."""
    read = 0
    written = 0
    while read < source.size:
        control = int(source[read])
        read += 1
        if control < 32:
            length = control + 1
            if read + length > source.size or written + length > out.size:
                return -1
            for i in range(length):
                out[written + i] = source[read + i]
            read += length
        else:
            length = control >> 5
            if length == 7:
                if read >= source.size:
                    return -1
                length += int(source[read])
                read += 1
            if read >= source.size:
                return -1
            start = written - ((control & 31) << 8) - int(source[read]) - 1
            read += 1
            length += 2
            if start < 0 or written + length > out.size:
                return -1
            # Byte by byte: source and target may overlap, which repeats a pattern.
            for i in range(length):
                out[written + i] = out[start + i]
        written += length
    return written


def lzf_decompress(data: bytes, size: int) -> npt.NDArray[np.uint8]:
    """`size` bytes, uint8 [size], from an LZF stream. Raises ValueError unless the stream gives exactly that many."""
    if size > MAX_EXPANSION * len(data):
        raise ValueError(f"{len(data)} compressed bytes cannot hold {size} bytes")
    out = np.empty(size, dtype=np.uint8)
    written = _decode(np.frombuffer(data, dtype=np.uint8), out)
    if written != size:
        raise ValueError(
            f"the LZF stream is corrupt: expected {size} bytes, got {'an overrun' if written < 0 else written}"
        )
    return out
