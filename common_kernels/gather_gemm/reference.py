"""The meaning of gather-GEMM, in plain torch, on any device."""

import torch
from torch import Tensor


def gather_gemm(
    x: Tensor, table: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str
) -> Tensor:
    """out[m] = act(sum_k x[table[k, m]] @ weight[k] + bias + residual[m]), accumulated in at least fp32."""
    wide = torch.promote_types(x.dtype, torch.float32)
    out = torch.zeros(table.shape[1], weight.shape[2], dtype=wide, device=x.device)
    for rows, tap in zip(table, weight.to(wide)):
        hit = rows >= 0
        out[hit] += x[rows[hit].long()].to(wide) @ tap
    if bias is not None:
        out += bias
    if residual is not None:
        out += residual
    if activation == "relu":
        out = out.relu()
    return out.to(x.dtype)


def weight_grad(x: Tensor, grad: Tensor, table: Tensor) -> Tensor:
    """[K, Cin, Cout]: sum over the pairs of tap k of x[table[k, m]]ᵀ grad[m], in at least fp32."""
    wide = torch.promote_types(x.dtype, torch.float32)
    out = torch.zeros(table.shape[0], x.shape[1], grad.shape[1], dtype=wide, device=x.device)
    for rows, tap in zip(table, out):
        hit = rows >= 0
        tap.copy_(x[rows[hit].long()].to(wide).T @ grad[hit].to(wide))
    return out
