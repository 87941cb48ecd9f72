"""Attention within segments of packed rows: no padding, and what every token receives, without the matrix."""

import torch
from torch import Tensor

from common_kernels.checks import FLOATS, check_device, check_index, describe, wide
from common_kernels.operators import operator
from common_kernels.varlen_attention import reference


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    *,
    offsets_k: Tensor | None = None,
    causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
    bias: Tensor | None = None,
    importance: bool | int = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Exact softmax attention of each segment's queries to the keys of the same segment.

    Segment b owns the queries offsets[b] : offsets[b + 1] and the keys of the same range, or of offsets_k where that is
    given. Where a segment has other numbers of queries n and keys n_k, its last query stands at its last key: query i
    has position i + n_k - n, and sees the keys j with `j <= position` (causal) and `|position - j| < window`. A query
    that sees no key gives zeros. Empty segments are legal. fp16 and bf16 are accumulated in fp32.

    Differentiable once in q, k, v and bias, not in the importance. Inputs of any stride are read where they lie if
    their last axis is contiguous. A segment's result does not depend on what else is in the batch, and repeated runs
    are equal bit for bit.

    Args:
        q: [T, H, D] fp32, fp64, fp16 or bf16.
        k, v: [Tk, Hkv, D] of q's dtype; H / Hkv neighbouring query heads share a head of keys (grouped queries).
        offsets: [B + 1] int32 or int64, rising from 0 to T.
        offsets_k: [B + 1], rising from 0 to Tk; None where queries and keys have the same offsets.
        causal: a query sees no later key.
        window: number of keys that a query sees on each side, itself included.
        scale: factor of the products q · k; 1 / sqrt(D) if None.
        bias: [Tk] floating, added to the scores of a key for all heads, such as the log of a merged token's size.
        importance: True for the exact importance, n >= 1 for an estimate from n evenly strided queries of each segment
            (the last one included), scaled to all of them.

    Returns:
        [T, H, D] of q's dtype, and if `importance` also [Tk] fp32: the attention probability that a key receives,
        summed over query heads and queries.

    Raises:
        ValueError: wrong dtype, shape or device, a window or importance below 1; on the CPU also offsets that do not
            rise from 0 to the number of rows.

    Source: column sums from the log-sum-exp as in FlashAttention's backward (Dao et al., 2022); SpAtten's importance
    (Wang et al., 2021).
    """
    scale, bias = _scores(q, k, scale, bias)
    queries = _queries(importance)
    out, _, sums = torch.ops.trisparse.varlen_attention(
        q, k, v, offsets, offsets_k, causal, window, scale, bias, queries
    )
    return (out, sums.detach()) if queries else out


def attention_column_sums(
    q: Tensor,
    k: Tensor,
    offsets: Tensor,
    *,
    offsets_k: Tensor | None = None,
    causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
    bias: Tensor | None = None,
    importance: bool | int = True,
    per_head: bool = False,
) -> Tensor:
    """The importance of `varlen_attention` alone, whose arguments it takes: without values, without an output.

    Returns:
        [Tk] fp32, or if `per_head` [Hkv, Tk], summed over the query heads that share a head of keys. Not
        differentiable.

    Raises:
        ValueError: as varlen_attention; also an importance of False.
    """
    scale, bias = _scores(q, k, scale, bias)
    queries = _queries(importance)
    if not queries:
        raise ValueError(f"importance must be True or a number of queries of at least 1, got {importance!r}")
    return torch.ops.trisparse.attention_column_sums(
        q.detach(), k.detach(), offsets, offsets_k, causal, window, scale,
        None if bias is None else bias.detach(), queries, per_head,
    )  # fmt: skip


def _scores(q: Tensor, k: Tensor, scale: float | None, bias: Tensor | None) -> tuple[float, Tensor | None]:
    """The scale, and the bias in the dtype of the scores."""
    if bias is not None:
        _check_bias(k, bias)
        bias = bias.to(wide(q.dtype))
    if scale is None:
        scale = q.shape[-1] ** -0.5 if q.ndim and q.shape[-1] else 1.0
    return float(scale), bias


def _check_bias(k: Tensor, bias: Tensor) -> None:
    if bias.shape != k.shape[:1] or not bias.is_floating_point():
        raise ValueError(f"bias must be floating [{k.shape[0]}], one for each row of k, got {describe(bias)}")


def _check(
    q: Tensor,
    k: Tensor,
    offsets: Tensor,
    offsets_k: Tensor | None,
    window: int | None,
    scale: float,
    bias: Tensor | None,
) -> None:
    """Raise for all that an operator on q and k cannot honour."""
    if q.ndim != 3 or q.dtype not in FLOATS or 0 in q.shape[1:]:
        raise ValueError(f"q must be fp32, fp64, fp16 or bf16 [T, H, D], got {describe(q)}")
    if k.ndim != 3 or k.dtype != q.dtype or k.shape[2] != q.shape[2] or k.shape[1] == 0:
        raise ValueError(f"k must be of q's dtype and head size, {describe(q)}, as [Tk, Hkv, D], got {describe(k)}")
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"the {q.shape[1]} heads of q must be a multiple of the heads of k, got {k.shape[1]}")
    check_device("k", k, "q", q)
    check_index("offsets", offsets, "B + 1")
    check_device("offsets", offsets, "q", q)
    if offsets.shape[0] == 0:
        raise ValueError("offsets must hold one number more than there are segments, got none")
    if offsets_k is None:
        if k.shape[0] != q.shape[0]:
            raise ValueError(f"k must have the {q.shape[0]} rows of q where offsets_k is not given, got {describe(k)}")
    else:
        check_index("offsets_k", offsets_k, "B + 1")
        check_device("offsets_k", offsets_k, "q", q)
        if offsets_k.shape != offsets.shape:
            raise ValueError(f"offsets_k must be {list(offsets.shape)} like offsets, got {describe(offsets_k)}")
    if window is not None and (isinstance(window, bool) or window < 1):
        raise ValueError(f"window must be None or at least 1, got {window!r}")
    if bias is not None:
        _check_bias(k, bias)
        check_device("bias", bias, "q", q)
        if bias.dtype != wide(q.dtype):
            raise ValueError(f"bias must be of the scores' dtype, {wide(q.dtype)}, got {describe(bias)}")
    if not abs(scale) < float("inf"):
        raise ValueError(f"scale must be a finite number, got {scale}")


def _check_values(k: Tensor, v: Tensor) -> None:
    if v.shape != k.shape or v.dtype != k.dtype:
        raise ValueError(f"v must be {describe(k)} like k, got {describe(v)}")
    check_device("v", v, "k", k)


def _queries(importance: bool | int) -> int:
    """0 for no importance, -1 for the exact one, else the number of queries that estimate it."""
    if isinstance(importance, bool):
        return -1 if importance else 0
    if importance < 1:
        raise ValueError(f"importance must be False, True or a number of queries of at least 1, got {importance!r}")
    return importance


@operator("varlen_attention")
def _varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    offsets_k: Tensor | None,
    causal: bool,
    window: int | None,
    scale: float,
    bias: Tensor | None,
    queries: int,
) -> tuple[Tensor, Tensor, Tensor]:
    out, lse = reference.varlen_attention(q, k, v, offsets, offsets_k, causal, window, scale, bias)
    sums = q.new_empty(0, dtype=torch.float32)
    if queries:
        limit = None if queries < 0 else queries
        sums = reference.column_sums(q, k, offsets, offsets_k, causal, window, scale, bias, False, limit)
    return out, lse, sums


@_varlen_attention.register_check
def _(q, k, v, offsets, offsets_k, causal, window, scale, bias, queries):  # type: ignore[no-untyped-def]
    _check(q, k, offsets, offsets_k, window, scale, bias)
    _check_values(k, v)


@_varlen_attention.register_kernel("cpu")
def _(q, k, v, offsets, offsets_k, causal, window, scale, bias, queries):  # type: ignore[no-untyped-def]
    from common_kernels.varlen_attention import cpu

    return cpu.forward(q, k, v, offsets, offsets_k, causal, window, scale, bias, queries)


@_varlen_attention.register_kernel("cuda")
def _(q, k, v, offsets, offsets_k, causal, window, scale, bias, queries):  # type: ignore[no-untyped-def]
    from common_kernels.varlen_attention import gpu

    out, lse = gpu.forward(q, k, v, offsets, offsets_k, causal, window, scale, bias)
    sums = q.new_empty(0, dtype=torch.float32)
    if queries:
        limit = None if queries < 0 else queries
        sums = gpu.column_sums(q, k, lse, offsets, offsets_k, causal, window, scale, bias, False, limit)
    return out, lse, sums


@_varlen_attention.register_fake
def _(q, k, v, offsets, offsets_k, causal, window, scale, bias, queries):  # type: ignore[no-untyped-def]
    lse = q.new_empty(q.shape[1], q.shape[0], dtype=wide(q.dtype))
    return q.new_empty(q.shape), lse, q.new_empty(k.shape[0] if queries else 0, dtype=torch.float32)


@operator("varlen_attention_backward")
def _varlen_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    offsets: Tensor,
    offsets_k: Tensor | None,
    causal: bool,
    window: int | None,
    scale: float,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grads = reference.backward(grad, q, k, v, out, lse, offsets, offsets_k, causal, window, scale, bias)
    return *grads[:3], lse.new_empty(0) if grads[3] is None else grads[3]


@_varlen_attention_backward.register_check
def _(grad, q, k, v, out, lse, offsets, offsets_k, causal, window, scale, bias):  # type: ignore[no-untyped-def]
    _check(q, k, offsets, offsets_k, window, scale, bias)
    _check_values(k, v)
    for name, tensor, shape in (("grad", grad, q.shape), ("out", out, q.shape), ("lse", lse, q.shape[1::-1])):
        check_device(name, tensor, "q", q)
        if tensor.shape != shape:
            raise ValueError(f"{name} must be {list(shape)}, got {describe(tensor)}")


@_varlen_attention_backward.register_kernel("cuda")
def _(grad, q, k, v, out, lse, offsets, offsets_k, causal, window, scale, bias):  # type: ignore[no-untyped-def]
    from common_kernels.varlen_attention import gpu

    grads = gpu.backward(grad, q, k, v, out, lse, offsets, offsets_k, causal, window, scale, bias)
    return *grads[:3], lse.new_empty(0) if grads[3] is None else grads[3]


@_varlen_attention_backward.register_fake
def _(grad, q, k, v, out, lse, offsets, offsets_k, causal, window, scale, bias):  # type: ignore[no-untyped-def]
    return (*(x.new_empty(x.shape) for x in (q, k, v)), lse.new_empty(0 if bias is None else bias.shape[0]))


@operator("attention_column_sums")
def _attention_column_sums(
    q: Tensor,
    k: Tensor,
    offsets: Tensor,
    offsets_k: Tensor | None,
    causal: bool,
    window: int | None,
    scale: float,
    bias: Tensor | None,
    queries: int,
    per_head: bool,
) -> Tensor:
    limit = None if queries < 0 else queries
    return reference.column_sums(q, k, offsets, offsets_k, causal, window, scale, bias, per_head, limit)


@_attention_column_sums.register_check
def _(q, k, offsets, offsets_k, causal, window, scale, bias, queries, per_head):  # type: ignore[no-untyped-def]
    _check(q, k, offsets, offsets_k, window, scale, bias)


@_attention_column_sums.register_kernel("cpu")
def _(q, k, offsets, offsets_k, causal, window, scale, bias, queries, per_head):  # type: ignore[no-untyped-def]
    from common_kernels.varlen_attention import cpu

    return cpu.column_sums(q, k, offsets, offsets_k, causal, window, scale, bias, queries, per_head)


@_attention_column_sums.register_kernel("cuda")
def _(q, k, offsets, offsets_k, causal, window, scale, bias, queries, per_head):  # type: ignore[no-untyped-def]
    from common_kernels.varlen_attention import gpu

    limit = None if queries < 0 else queries
    return gpu.column_sums(q, k, None, offsets, offsets_k, causal, window, scale, bias, per_head, limit)


@_attention_column_sums.register_fake
def _(q, k, offsets, offsets_k, causal, window, scale, bias, queries, per_head):  # type: ignore[no-untyped-def]
    return q.new_empty((k.shape[1], k.shape[0]) if per_head else (k.shape[0],), dtype=torch.float32)


def _setup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    q, k, v, offsets, offsets_k, ctx.causal, ctx.window, ctx.scale, bias, _ = inputs
    ctx.save_for_backward(q, k, v, output[0], output[1], offsets, offsets_k, bias)


def _backward(ctx, grad, grad_lse, grad_sums):  # type: ignore[no-untyped-def]
    q, k, v, out, lse, offsets, offsets_k, bias = ctx.saved_tensors
    *grads, grad_bias = torch.ops.trisparse.varlen_attention_backward(
        grad, q, k, v, out, lse, offsets, offsets_k, ctx.causal, ctx.window, ctx.scale, bias
    )
    return *grads, None, None, None, None, None, None if bias is None else grad_bias, None


_varlen_attention.register_autograd(_backward, setup_context=_setup)
