"""The order in which the GPU's gather-GEMM multiplies the pairs of a map. Plain torch, on any device.

A GPU tile of `TILE` output rows multiplies each tap that at least one of its rows has, so rows with the same taps
should share a tile. Rows are sorted by their tap mask, read as a Gray code with the rarest tap as the highest bit:
neighbours in the order then differ in few taps, and a rare tap is met in one run of tiles only. The multiplied rows per
pair fall further if the taps are split into groups, each with an order of its own, whose results are added; that costs
a pass over the output per group. `choose_splits` in gather_gemm/launch.py weighs the two for a layer's channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TILE = 128
# With few taps the masks are few too, and one order leaves nothing to gain.
_FEW_TAPS = 8
_MAX_SPLITS = 3


@dataclass(frozen=True)
class Split:
    """The tiles of a map whose taps are split into S groups; tile t of group g owns entries
    `offsets[g, t] : offsets[g, t + 1]`, one for each tap that it multiplies.

    Attributes:
        order: [S, M] int32, each row a permutation of the output rows; tile t holds `order[g, t * TILE :][:TILE]`.
        offsets: [S, T + 1] int32, with T = ceil(M / TILE).
        taps: [W] int32, the tap of each entry.
        source: [W, TILE] int32, the input row of each entry and row of its tile, -1 for none.
    """

    order: Tensor
    offsets: Tensor
    taps: Tensor
    source: Tensor


@dataclass(frozen=True)
class Schedule:
    """The tensors of `map_schedule` by name.

    Attributes:
        order: [G, M] int32, `order` of all splits stacked: G = 1, or 1 + 2 + 3.
        offsets: [G, T + 1] int32, likewise.
        pairs: [2, P] int32, input row and output row of every pair, by tap, then by output row.
        pair_offsets: [K + 1] int64; tap k owns pairs `pair_offsets[k] : pair_offsets[k + 1]`.
        lists: `taps` and `source` of each split, one after the other.
    """

    order: Tensor
    offsets: Tensor
    pairs: Tensor
    pair_offsets: Tensor
    lists: tuple[Tensor, ...]

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> "Schedule":
        order, offsets, pairs, pair_offsets, *lists = tensors
        return cls(order, offsets, pairs, pair_offsets, tuple(lists))

    @property
    def work(self) -> list[int]:
        """For 1, 2, ... splits: how many products of a tile and a tap."""
        return [len(taps) for taps in self.lists[::2]]

    def split(self, n_groups: int) -> Split:
        """The tiles with the taps in `n_groups` groups, from 1 to `len(work)`."""
        if not 1 <= n_groups <= len(self.lists) // 2:
            raise ValueError(f"the schedule has 1 to {len(self.lists) // 2} splits, got {n_groups}")
        groups = slice(n_groups * (n_groups - 1) // 2, n_groups * (n_groups + 1) // 2)
        return Split(self.order[groups], self.offsets[groups], *self.lists[2 * n_groups - 2 : 2 * n_groups])


def max_splits(n_taps: int) -> int:
    """The largest number of groups that a schedule offers."""
    return 1 if n_taps <= _FEW_TAPS else _MAX_SPLITS


def map_schedule(table: Tensor, tile: int = TILE) -> list[Tensor]:
    """Sort the rows of table [K, M] into tiles, once for each number of splits up to `max_splits(K)`.

    Returns:
        The tensors of `Schedule`, in its order. Their number depends on K alone, and the sizes of `taps` tell the work
        of each split without a look at the device's memory.
    """
    valid = table >= 0
    counts = valid.sum(1)
    rank = torch.argsort(counts, stable=True)
    orders: list[Tensor] = []
    offsets: list[Tensor] = []
    lists: list[Tensor] = []
    for n_groups in range(1, max_splits(table.shape[0]) + 1):
        # Neighbours in rank are often mirror images; dealt out in turn they end up in different groups.
        groups = [rank[g::n_groups] for g in range(n_groups)]
        tiles = [_tiles(valid, taps, tile) for taps in groups]
        orders += [order for order, _ in tiles]
        offsets += _offsets([needed for _, needed in tiles])
        lists += _entries(table, groups, tiles, tile)
    tap, row = torch.nonzero(valid, as_tuple=True)
    pairs = torch.stack([table[tap, row], row.to(torch.int32)])
    pair_offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    return [torch.stack(orders).to(torch.int32), torch.stack(offsets), pairs, pair_offsets, *lists]


def fake_map_schedule(table: Tensor) -> list[Tensor]:
    """Tensors of the shapes and types of `map_schedule(table)`, for tracing."""
    n_taps, n_rows = table.shape
    splits = max_splits(n_taps)
    n_groups = splits * (splits + 1) // 2
    ctx = torch.library.get_ctx()
    lists = []
    for _ in range(splits):
        work = ctx.new_dynamic_size()
        lists += [table.new_empty(work), table.new_empty(work, TILE)]
    return [
        table.new_empty(n_groups, n_rows),
        table.new_empty(n_groups, (n_rows + TILE - 1) // TILE + 1),
        table.new_empty(2, ctx.new_dynamic_size()),
        table.new_empty(n_taps + 1, dtype=torch.int64),
        *lists,
    ]


def _tiles(valid: Tensor, taps: Tensor, tile: int) -> tuple[Tensor, Tensor]:
    """The order [M] of the rows by their mask over `taps` [n], rarest first, and which of them each tile has [T, n]."""
    bits = valid[taps]
    order = _gray_order(bits)
    sorted_bits = torch.nn.functional.pad(bits[:, order], (0, -len(order) % tile))
    return order, sorted_bits.view(len(taps), -1, tile).any(2).T


def _gray_order(bits: Tensor) -> Tensor:
    """Sort the columns of bits [n, M] as Gray codes, the first row the highest bit. Equal columns keep their order."""
    # A Gray code's value has, at each bit, the parity of the code's bits down to it; uint8 may wrap, parity does not.
    binary = bits.cumsum(0, dtype=torch.uint8) & 1
    order = torch.arange(bits.shape[1], device=bits.device)
    # Least significant word first: stable sorts then leave the most significant one in charge.
    for word in reversed(binary.split(63)):
        order = order[torch.sort(_integers(word)[order], stable=True).indices]
    return order


def _integers(binary: Tensor) -> Tensor:
    """The columns of binary [n, M], n up to 63, as integers of the narrowest type: a radix sort's time is its width."""
    n = binary.shape[0]
    dtype = torch.int16 if n < 16 else torch.int32 if n < 32 else torch.int64
    shifts = torch.arange(n - 1, -1, -1, dtype=dtype, device=binary.device)
    return (binary.to(dtype) << shifts[:, None]).sum(0, dtype=dtype)


def _offsets(needed: list[Tensor]) -> list[Tensor]:
    """Entries begin at `[T + 1]` for each group's [T, n]; the groups follow one another."""
    counts = torch.stack([group.sum(1) for group in needed])
    ends = counts.flatten().cumsum(0).view_as(counts)
    starts = (ends - counts)[:, :1] if counts.shape[1] else ends.new_zeros(len(needed), 1)
    return list(torch.cat([starts, ends], dim=1).to(torch.int32))


def _entries(
    table: Tensor, groups: list[Tensor], tiles: list[tuple[Tensor, Tensor]], tile: int
) -> tuple[Tensor, Tensor]:
    """`taps [W]` and `source [W, tile]` of all groups, by group, then by tile."""
    n_tiles = tiles[0][1].shape[0]
    width = max(len(taps) for taps in groups)
    padded = [torch.nn.functional.pad(needed, (0, width - needed.shape[1])) for _, needed in tiles]
    group, index, position = torch.nonzero(torch.stack(padded), as_tuple=True)
    taps = torch.stack([torch.nn.functional.pad(taps, (0, width - len(taps))) for taps in groups])[group, position]
    slots = torch.stack([order for order, _ in tiles])
    slots = torch.nn.functional.pad(slots, (0, -slots.shape[1] % tile), value=-1).view(len(groups), n_tiles, tile)
    rows = slots[group, index]
    source = torch.where(rows >= 0, table[taps[:, None], rows], -1)
    return taps.to(torch.int32), source
