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
from torch.nn.functional import pad

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
    # One more tap that no row has, to fill up the groups.
    n_taps, padded = len(table), pad(valid, (0, 0, 0, 1))
    orders: list[Tensor] = []
    offsets: list[Tensor] = []
    lists: list[Tensor] = []
    for n_groups in range(1, max_splits(n_taps) + 1):
        # Neighbours in rank are often mirror images; dealt out in turn they end up in different groups.
        groups = pad(rank, (0, -n_taps % n_groups), value=n_taps).view(-1, n_groups).T
        bits = padded[groups]
        order = _gray_order(bits)
        needed = _any_in_tile(bits, order, tile)
        orders.append(order)
        offsets.append(_offsets(needed))
        lists += _entries(table, groups, order, needed, tile)
    tap, row = torch.nonzero(valid, as_tuple=True)
    pairs = torch.stack([table[tap, row], row.to(torch.int32)])
    return [torch.cat(orders).to(torch.int32), torch.cat(offsets), pairs, pad(counts.cumsum(0), (1, 0)), *lists]


def check_schedule(table: Tensor, tensors: Sequence[Tensor]) -> None:
    """Raise unless a schedule has the form of one of table [K, M]. What it holds is masked where it is used."""
    n_taps, n_rows = table.shape
    order, offsets, _, pair_offsets = tensors[:4] if len(tensors) == 4 + 2 * max_splits(n_taps) else (table,) * 4
    tiles = (n_rows + TILE - 1) // TILE
    if (order.shape[1], offsets.shape[1:], pair_offsets.shape) != (n_rows, (tiles + 1,), (n_taps + 1,)):
        shapes = [list(each.shape) for each in tensors]
        raise ValueError(f"schedule must be that of the table {list(table.shape)}, got tensors of shapes {shapes}")


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


def _gray_order(bits: Tensor) -> Tensor:
    """Sort the columns of each bits [S, n, M] as Gray codes, the first row the highest bit -> [S, M], stable."""
    # A Gray code's value has, at each bit, the parity of the code's bits down to it; uint8 may wrap, parity does not.
    binary = bits.cumsum(1, dtype=torch.uint8) & 1
    order = torch.arange(bits.shape[2], device=bits.device).expand(len(bits), -1)
    # Least significant word first: stable sorts then leave the most significant one in charge.
    for word in reversed(binary.split(63, dim=1)):
        keys = _integers(word).gather(1, order)
        order = order.gather(1, torch.sort(keys, dim=1, stable=True).indices)
    return order


def _integers(binary: Tensor) -> Tensor:
    """The columns of binary [S, n, M], n up to 63, as integers [S, M] of the narrowest type, whose sort is fastest."""
    n = binary.shape[1]
    dtype = torch.int16 if n < 16 else torch.int32 if n < 32 else torch.int64
    shifts = torch.arange(n - 1, -1, -1, dtype=dtype, device=binary.device)
    return (binary.to(dtype) << shifts[:, None]).sum(1, dtype=dtype)


def _any_in_tile(bits: Tensor, order: Tensor, tile: int) -> Tensor:
    """Which taps of each group some row of each tile has: [S, T, n], from bits [S, n, M] and order [S, M]."""
    n_groups, n_taps, n_rows = bits.shape
    in_order = bits.gather(2, order[:, None].expand_as(bits))
    return pad(in_order, (0, -n_rows % tile)).view(n_groups, n_taps, -1, tile).any(3).transpose(1, 2)


def _offsets(needed: Tensor) -> Tensor:
    """[S, T + 1]: where the entries of each group's tiles begin; the groups follow one another."""
    counts = needed.sum(2)
    ends = counts.flatten().cumsum(0).view_as(counts)
    starts = (ends - counts)[:, :1] if counts.shape[1] else ends.new_zeros(len(needed), 1)
    return torch.cat([starts, ends], dim=1).to(torch.int32)


def _entries(table: Tensor, groups: Tensor, order: Tensor, needed: Tensor, tile: int) -> tuple[Tensor, Tensor]:
    """`taps [W]` and `source [W, tile]` of all groups, by group, then by tile."""
    group, index, position = torch.nonzero(needed, as_tuple=True)
    taps = groups[group, position]
    n_groups, n_rows = order.shape
    slots = pad(order, (0, -n_rows % tile), value=-1).view(n_groups, -1, tile)
    rows = slots[group, index]
    return taps.to(torch.int32), torch.where(rows >= 0, table[taps[:, None], rows], -1)
