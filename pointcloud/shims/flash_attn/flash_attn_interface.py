"""The argument lists of flash_attn 2; what cannot be honoured is refused by name.

`softmax_scale`, `causal`, grouped queries and `alibi_slopes` (with `causal`) are honoured; `window_size` where it is
the same on both sides or causal; `dropout_p`, `softcap` and `return_attn_probs` only at their defaults. Results are
always deterministic.
"""

from __future__ import annotations

import torch
from torch import Tensor

from common_kernels.varlen_attention import varlen_attention


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Tensor:
    """Attention of q [B, S, H, D] to k, v [B, Sk, Hkv, D]: [B, S, H, D]."""
    _refuse(dropout_p, softcap, return_attn_probs)
    if q.ndim != 4 or k.ndim != 4 or q.shape[0] != k.shape[0]:
        raise ValueError(
            f"q must be [B, S, H, D] and k [B, Sk, Hkv, D] of the same B, got {list(q.shape)} and {list(k.shape)}"
        )
    offsets_q, offsets_k = _regular(q), _regular(k)
    q_rows, k_rows, v_rows = (each.flatten(0, 1) for each in (q, k, v))
    out = _attend(q_rows, k_rows, v_rows, offsets_q, offsets_k, softmax_scale, causal, window_size, alibi_slopes)
    return out.view(*q.shape[:3], v.shape[-1])


def flash_attn_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Tensor:
    """`flash_attn_func` with kv [B, Sk, 2, Hkv, D]."""
    k, v = _unpack(kv, "kv", 2, 5)
    return flash_attn_func(
        q, k, v, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs
    )


def flash_attn_qkvpacked_func(
    qkv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Tensor:
    """`flash_attn_func` with qkv [B, S, 3, H, D]."""
    q, k, v = _unpack(qkv, "qkv", 3, 5)
    return flash_attn_func(
        q, k, v, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs
    )


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Tensor:
    """Attention within the segments that cu_seqlens [B + 1] bound, q [T, H, D], k and v [Tk, Hkv, D]: [T, H, D].

    Raises ValueError for a segment longer than max_seqlen_q or max_seqlen_k, which the original silently cuts.
    """
    _refuse(dropout_p, softcap, return_attn_probs, block_table)
    same = cu_seqlens_q is cu_seqlens_k
    for name, offsets, most in (("q", cu_seqlens_q, max_seqlen_q), ("k", cu_seqlens_k, max_seqlen_k)):
        if offsets.numel() > 1 and (name == "q" or not same) and int(offsets.diff().max()) > int(most):
            raise ValueError(
                f"max_seqlen_{name} must be at least the longest segment, {int(offsets.diff().max())}, got {most}"
            )
    offsets_k = None if same else cu_seqlens_k
    return _attend(q, k, v, cu_seqlens_q, offsets_k, softmax_scale, causal, window_size, alibi_slopes)


def flash_attn_varlen_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Tensor:
    """`flash_attn_varlen_func` with kv [Tk, 2, Hkv, D]."""
    k, v = _unpack(kv, "kv", 2, 4)
    return flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale, causal, window_size,
        softcap, alibi_slopes, deterministic, return_attn_probs,
    )  # fmt: skip


def flash_attn_varlen_qkvpacked_func(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Tensor:
    """`flash_attn_varlen_func` with qkv [T, 3, H, D]."""
    q, k, v = _unpack(qkv, "qkv", 3, 4)
    return flash_attn_varlen_func(
        q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, dropout_p, softmax_scale, causal, window_size,
        softcap, alibi_slopes, deterministic, return_attn_probs,
    )  # fmt: skip


def _refuse(dropout_p: float, softcap: float, return_attn_probs: bool, block_table: Tensor | None = None) -> None:
    asked = {"dropout_p": dropout_p, "softcap": softcap, "return_attn_probs": return_attn_probs}
    for name, value in asked.items():
        if value:
            raise NotImplementedError(
                f"{name} must be {type(value)()} with Trisparse's stand-in for flash_attn, got {value}"
            )
    if block_table is not None:
        raise NotImplementedError("block_table must be None with Trisparse's stand-in for flash_attn, got a tensor")


def _unpack(packed: Tensor, name: str, parts: int, ndim: int) -> tuple[Tensor, ...]:
    if packed.ndim != ndim or packed.shape[-3] != parts:
        wanted = "[B, S, " if ndim == 5 else "[T, "
        raise ValueError(f"{name} must be {wanted}{parts}, H, D], got {list(packed.shape)}")
    return packed.unbind(-3)


def _regular(x: Tensor) -> Tensor:
    """Offsets of B segments of the same length."""
    return torch.arange(x.shape[0] + 1, dtype=torch.int32, device=x.device) * x.shape[1]


def _window(window_size: tuple[int, int], causal: bool) -> tuple[bool, int | None]:
    """(causal, window) of `varlen_attention` for keys from `position - left` to `position + right`; -1 has no bound."""
    left, right = (int(each) for each in window_size)
    if causal or right == 0:
        return True, None if left < 0 else left + 1
    if left < 0 and right < 0:
        return False, None
    if left == right:
        return False, left + 1
    raise NotImplementedError(
        "window_size must be the same on both sides, or 0 on the right, with Trisparse's stand-in for flash_attn, "
        f"got {tuple(window_size)}"
    )


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    offsets_k: Tensor | None,
    scale: float | None,
    causal: bool,
    window_size: tuple[int, int],
    alibi_slopes: Tensor | None,
) -> Tensor:
    causal, window = _window(window_size, causal)
    options = {"offsets_k": offsets_k, "causal": causal, "window": window, "scale": scale}
    if alibi_slopes is None:
        return varlen_attention(q, k, v, offsets, **options)  # type: ignore[return-value, arg-type]
    if not causal:
        raise NotImplementedError("alibi_slopes need causal=True with Trisparse's stand-in for flash_attn")
    bounds = offsets if offsets_k is None else offsets_k
    heads, samples = q.shape[1], bounds.shape[0] - 1
    if tuple(alibi_slopes.shape) not in ((heads,), (samples, heads)):
        raise ValueError(f"alibi_slopes must be [{heads}] or [{samples}, {heads}], got {list(alibi_slopes.shape)}")
    # -slope * (position - j) is slope * j up to a number that all keys of a query share.
    lengths = bounds.diff().long()
    sample = torch.repeat_interleave(lengths, output_size=k.shape[0])
    from_end = torch.arange(k.shape[0], device=k.device) - (bounds[1:].long()[sample] - 1)
    slopes = alibi_slopes.expand(samples, heads)[sample]  # [Tk, H]
    bias = slopes * from_end[:, None]
    shared = heads // k.shape[1]
    parts = [
        varlen_attention(
            q[:, h : h + 1],
            k[:, h // shared : h // shared + 1],
            v[:, h // shared : h // shared + 1],
            offsets,
            bias=bias[:, h].contiguous(),
            **options,  # type: ignore[arg-type]
        )
        for h in range(heads)
    ]
    return torch.cat(parts, 1)  # type: ignore[arg-type]
