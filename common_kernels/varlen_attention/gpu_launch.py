"""Block sizes of the GPU's varlen attention, as pure functions, and how many programs cover ragged segments."""

from __future__ import annotations

from dataclasses import dataclass

# The accumulators of a wider head do not fit the registers.
WIDEST_HEAD = 256
PASSES = ("forward", "query_grad", "key_grad", "column_sums")


@dataclass(frozen=True)
class LaunchConfig:
    """A tile has `block_m` queries by `block_n` keys. Forward and query_grad own the queries, the others the keys."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def padded_head(head_dim: int) -> int:
    """The power of two to which the head's channels are padded; a matrix instruction takes at least 16."""
    return max(16, 1 << (head_dim - 1).bit_length())


def launch_config(kernel: str, head_dim: int, unit: str, family: str) -> LaunchConfig:
    """Blocks for one of PASSES. `unit` and `family` as of gather_gemm.launch: what multiplies, and where.

    Never by the lengths: then a segment has the same result in every batch. A tile of 64 rows of four warps fits what
    serving sees: text of some hundred tokens fills it, and Hopper's 64 Ki registers hold two to four such programs on a
    multiprocessor, of which one multiplies while the others exponentiate. Wider heads take eight warps or smaller
    blocks, so that the accumulators (two of them in key_grad) stay in registers: chosen by what the compiler reports
    for sm80, sm90, sm100 and gfx942, registers, spills and shared memory, not by timing.

    Without tensor cores ("fp32") a thread holds whole rows of both operands, which only small blocks allow.
    """
    width = padded_head(head_dim)
    if unit == "fp32":
        if width <= 64:
            return LaunchConfig(32, 32, 4, 2)
        if width <= 128:
            return LaunchConfig(16, 32, 4, 2)
        return LaunchConfig(16, 16, 8 if kernel == "query_grad" else 4, 1)
    row_bytes = width * (2 if unit == "16-bit" else 4)
    # Hopper's shared memory has room for a third buffer of keys, or of queries, for several programs.
    buffers = 3 if family == "hopper" else 2
    if kernel == "column_sums":
        return LaunchConfig(64, 64, 4, buffers if row_bytes <= 256 else 2)
    if kernel == "forward":
        if row_bytes <= 256:
            return LaunchConfig(64, 64, 4, buffers if row_bytes <= 128 else 2)
        return LaunchConfig(64, 32, 4 if family == "cdna" else 8, 2)
    if row_bytes <= 128:
        return LaunchConfig(64, 64, 4, 2)
    if row_bytes > 512:
        return LaunchConfig(32, 32, 8, 1) if kernel == "query_grad" else LaunchConfig(16, 32, 8, 1)
    if row_bytes > 256:
        # Up to 99 KiB of shared memory on the smaller Amperes, 64 on CDNA.
        block = 64 if family == "hopper" else 32
        warps = 4 if family == "cdna" else 8
        return LaunchConfig(block, 32, warps, 2) if kernel == "query_grad" else LaunchConfig(32, block, warps, 2)
    if kernel == "query_grad":
        return LaunchConfig(64, 32, 4, 2)
    if family == "hopper":
        return LaunchConfig(32, 128, 8, 2)
    return LaunchConfig(32, 64, 4 if family == "cdna" else 8, 2)


def n_tiles(n_rows: int, n_segments: int, block: int) -> int:
    """Tiles that cover any segments of `n_rows` rows altogether: known without reading the offsets back.

    Segment s starts at tile `offsets[s] // block + s`. It then has `offsets[s + 1] // block - offsets[s] // block + 1`
    tiles, never fewer than it needs and at most one more.
    """
    return n_rows // block + n_segments if n_rows else 0


def tiles(n_rows: int, n_segments: int, block: int, max_length: int | None) -> tuple[int, int]:
    """(tiles, tiles of each segment; 0: found by their offsets). `max_length` is used where it saves tiles."""
    ragged = n_tiles(n_rows, n_segments, block)
    if max_length is not None:
        each = max(1, -(-max_length // block))
        if each * n_segments <= ragged:
            return each * n_segments, each
    return ragged, 0
