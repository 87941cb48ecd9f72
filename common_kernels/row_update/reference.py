"""The meaning of a row update, in plain torch, on any device."""

import torch
from torch import Tensor

from common_kernels.checks import wide


def differs(new: Tensor, old: Tensor, threshold: float) -> Tensor:
    """[...] bool for new and old [..., C]: whether some |new - old| is not <= threshold, which NaN never is."""
    kind = wide(old.dtype)
    # Equal infinities differ by NaN, yet are the same value.
    near = ((new.to(kind) - old.to(kind)).abs() <= threshold) | (new == old)
    return ~near.all(-1)


def update_rows(out: Tensor, rows: Tensor, index: Tensor | None, threshold: float) -> Tensor:
    """out [..., C] is overwritten where `rows` differ; returns where."""
    flat = out.view(-1, out.shape[-1])
    changed = torch.zeros(len(flat), dtype=torch.bool, device=out.device)
    rows = rows.reshape(-1, out.shape[-1])
    if index is None:
        index = torch.arange(len(flat), device=out.device)
    elif index.dtype == torch.bool:
        index = torch.nonzero(index.flatten()).squeeze(1)
        rows = rows[index]
    index = index.long()
    moved = differs(rows, flat[index], threshold)
    changed[index] = moved
    flat[index[moved]] = rows[moved]
    return changed.view(out.shape[:-1])
