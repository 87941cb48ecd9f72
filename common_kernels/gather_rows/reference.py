"""The meaning of gathering and scattering rows, in plain torch, on any device."""

import torch
from torch import Tensor

from common_kernels.checks import wide


def gather_rows(src: Tensor, index: Tensor) -> Tensor:
    """out[m] = src[index[m]], zeros where index[m] is -1."""
    out = src.new_zeros(index.shape[0], *src.shape[1:])
    hit = index != -1
    out[hit] = src[index[hit].long()]
    return out


def scatter_add_rows(src: Tensor, index: Tensor, n_rows: int) -> Tensor:
    """out[index[m]] += src[m] in ascending m, nothing where index[m] is -1; accumulated in at least fp32."""
    out = torch.zeros(n_rows, *src.shape[1:], dtype=wide(src.dtype), device=src.device)
    hit = index != -1
    # index_put_ with accumulation sorts on a GPU, so it is deterministic there; index_add_ is not.
    out.index_put_((index[hit].long(),), src[hit].to(out.dtype), accumulate=True)
    return out.to(src.dtype)
