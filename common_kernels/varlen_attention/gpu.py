"""Attention within segments on a GPU, in Triton: launchers of the kernels in gpu_forward, gpu_backward, gpu_columns.

Nothing waits for the device: offsets stay there, and every program finds its tile in them (gpu_tiles.find_tile).
Outputs of a row do not depend on the other segments of the batch, bit for bit.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from common_kernels.gather_gemm import gpu as gather_gemm
from common_kernels.gather_gemm import launch as gather_gemm_launch
from common_kernels.varlen_attention import gpu_launch, reference
from common_kernels.varlen_attention.gpu_backward import key_grad_kernel, query_grad_kernel
from common_kernels.varlen_attention.gpu_columns import column_sums_kernel
from common_kernels.varlen_attention.gpu_forward import forward_kernel
from common_kernels.varlen_attention.gpu_launch import LaunchConfig

# Offsets that one step of the search for a segment reads: two steps reach 65 536 segments.
SEARCH_WIDTH = 256
# Programs of a launch are numbered in 31 bits.
_MOST_PROGRAMS = 2**31 - 1


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    offsets_k: Tensor | None,
    causal: bool,
    window: int | None,
    scale: float,
    bias: Tensor | None,
    *,
    max_length: int | None = None,
    config: LaunchConfig | None = None,
    out: Tensor | None = None,
    lse: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(out [T, H, D], log-sum-exp of each query's logits [H, T] fp32). A query that sees no key: zeros, and -inf.

    Args:
        q: [T, H, D]; k, v: [Tk, Hkv, D], any strides.
        offsets_k: the keys' segments, None for those of the queries. Queries and keys are aligned at their ends.
        max_length: length of the longest segment of queries, if known: saves programs where segments are about equal.
            Longer ones are computed too, only slower.
        config: None for `launch_config`'s.
        out: contiguous [T, H, D] to write to.
        lse: contiguous [H, T] to write to.
    """
    if q.dtype == torch.float64:
        return reference.varlen_attention(q, k, v, offsets, offsets_k, causal, window, scale, bias)
    out = q.new_empty(q.shape) if out is None else out
    lse = q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32) if lse is None else lse
    _launch_forward(out, lse, q, k, v, offsets, offsets_k, causal, window, scale, bias, None, max_length, config)
    return out, lse


def log_sums(
    q: Tensor,
    k: Tensor,
    offsets: Tensor,
    offsets_k: Tensor | None,
    causal: bool,
    window: int | None,
    scale: float,
    bias: Tensor | None,
    *,
    queries: int | None = None,
    max_length: int | None = None,
    config: LaunchConfig | None = None,
    lse: Tensor | None = None,
) -> Tensor:
    """The log-sum-exp [H, T] fp32 alone: half of `forward`. `queries`: only of those that `column_sums` looks at."""
    lse = q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32) if lse is None else lse
    if queries is not None:
        # As many tiles for each segment as its queries need.
        max_length = min(queries, q.shape[0])
    _launch_forward(None, lse, q, k, None, offsets, offsets_k, causal, window, scale, bias, queries, max_length, config)
    return lse


def backward(
    grad_out: Tensor,
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
    *,
    max_length: int | None = None,
    max_length_k: int | None = None,
    configs: tuple[LaunchConfig, LaunchConfig] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """(dq, dk, dv, dbias or None) from the results of `forward`; the same bits in every run.

    Args:
        configs: of query_grad and key_grad, None for `launch_config`'s.
    """
    if q.dtype == torch.float64:
        return reference.backward(grad_out, q, k, v, out, lse, offsets, offsets_k, causal, window, scale, bias)
    (n_rows, n_heads), (n_keys, n_heads_k) = q.shape[:2], k.shape[:2]
    grad_out, out, q, k, v = (_rows(x) for x in (grad_out, out, q, k, v))
    lse, bias = lse.contiguous(), None if bias is None else bias.contiguous()
    offsets, offsets_k, max_length_k = _segments(offsets, offsets_k, max_length, max_length_k)
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    delta = torch.empty_like(lse)
    dbias = None if bias is None else lse.new_empty(n_heads_k, n_keys)
    of_queries, of_keys = configs or (_config("query_grad", q), _config("key_grad", q))
    n_tiles, each = gpu_launch.tiles(n_rows, len(offsets) - 1, of_queries.block_m, max_length)
    n_tiles_k, each_k = gpu_launch.tiles(n_keys, len(offsets) - 1, of_keys.block_n, max_length_k)
    sizes = (n_rows, n_keys, len(offsets) - 1)
    with gather_gemm.on_device(q.device):
        if n_tiles:
            query_grad_kernel[_grid(n_tiles, n_heads)](
                dq,
                delta,
                grad_out,
                out,
                q,
                k,
                v,
                bias,
                lse,
                offsets,
                offsets_k,
                *sizes,
                n_heads,
                n_heads // n_heads_k,
                each,
                window or 0,
                scale,
                *(stride for x in (grad_out, out, q, k, v) for stride in x.stride()[:2]),
                **_options(causal, window, q, of_queries),
            )
        if n_tiles_k:
            key_grad_kernel[_grid(n_tiles_k, n_heads_k)](
                dk,
                dv,
                dbias,
                grad_out,
                q,
                k,
                v,
                bias,
                lse,
                delta,
                offsets,
                offsets_k,
                *sizes,
                n_heads_k,
                n_heads // n_heads_k,
                each_k,
                window or 0,
                scale,
                *(stride for x in (grad_out, q, k, v) for stride in x.stride()[:2]),
                **_options(causal, window, q, of_keys),
            )
    return dq, dk, dv, None if dbias is None else dbias.sum(0)


def column_sums(
    q: Tensor,
    k: Tensor,
    lse: Tensor | None,
    offsets: Tensor,
    offsets_k: Tensor | None,
    causal: bool,
    window: int | None,
    scale: float,
    bias: Tensor | None,
    per_head: bool = False,
    queries: int | None = None,
    *,
    max_length_k: int | None = None,
    config: LaunchConfig | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """What each key receives of all queries' attention probabilities, [Tk], or [Hkv, Tk] where `per_head`, fp32.

    Args:
        lse: [H, T] from `forward`; None: computed here, of the queries that count.
        queries: an estimate from so many evenly strided queries of each segment, scaled to all of them.
        out: contiguous [Hkv, Tk] fp32 for the sums of each head of keys.
    """
    if q.dtype == torch.float64:
        return reference.column_sums(q, k, offsets, offsets_k, causal, window, scale, bias, per_head, queries)
    if lse is None:
        lse = log_sums(q, k, offsets, offsets_k, causal, window, scale, bias, queries=queries)
    (n_rows, n_heads), (n_keys, n_heads_k) = q.shape[:2], k.shape[:2]
    q, k, lse, bias = _rows(q), _rows(k), lse.contiguous(), None if bias is None else bias.contiguous()
    offsets, offsets_k, max_length_k = _segments(offsets, offsets_k, None, max_length_k)
    out = lse.new_empty(n_heads_k, n_keys) if out is None else out
    config = config or _config("column_sums", q)
    n_tiles, each = gpu_launch.tiles(n_keys, len(offsets) - 1, config.block_n, max_length_k)
    if n_tiles:
        with gather_gemm.on_device(q.device):
            column_sums_kernel[_grid(n_tiles, n_heads_k)](
                out,
                q,
                k,
                bias,
                lse,
                offsets,
                offsets_k,
                n_rows,
                n_keys,
                len(offsets) - 1,
                n_heads_k,
                n_heads // n_heads_k,
                each,
                min(queries or 0, n_rows),
                window or 0,
                scale * math.log2(math.e),
                *q.stride()[:2],
                *k.stride()[:2],
                STRIDED=queries is not None,
                **_options(causal, window, q, config),
            )
    return out if per_head else out.sum(0)


def _launch_forward(
    out: Tensor | None,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    offsets: Tensor,
    offsets_k: Tensor | None,
    causal: bool,
    window: int | None,
    scale: float,
    bias: Tensor | None,
    queries: int | None,
    max_length: int | None,
    config: LaunchConfig | None,
) -> None:
    (n_rows, n_heads), (n_keys, n_heads_k) = q.shape[:2], k.shape[:2]
    config = config or _config("forward", q)
    n_tiles, each = gpu_launch.tiles(n_rows, len(offsets) - 1, config.block_m, max_length)
    if not n_tiles:
        return
    q, k, bias = _rows(q), _rows(k), None if bias is None else bias.contiguous()
    v = None if v is None else _rows(v)
    offsets, offsets_k, _ = _segments(offsets, offsets_k, max_length, None)
    with gather_gemm.on_device(q.device):
        forward_kernel[_grid(n_tiles, n_heads)](
            out,
            lse,
            q,
            k,
            v,
            bias,
            offsets,
            offsets_k,
            n_rows,
            n_keys,
            len(offsets) - 1,
            n_heads,
            n_heads // n_heads_k,
            each,
            min(queries or 0, n_rows),
            window or 0,
            scale * math.log2(math.e),
            *q.stride()[:2],
            *k.stride()[:2],
            *((0, 0) if v is None else v.stride()[:2]),
            STRIDED=queries is not None,
            **_options(causal, window, q, config),
        )


def _options(causal: bool, window: int | None, q: Tensor, config: LaunchConfig) -> dict[str, object]:
    """The constexprs and launch options that all kernels share."""
    return dict(
        CAUSAL=causal,
        WINDOW=window is not None,
        HEAD_DIM=q.shape[2],
        BLOCK_D=gpu_launch.padded_head(q.shape[2]),
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        SEARCH_WIDTH=SEARCH_WIDTH,
        INPUT_PRECISION="tf32" if gather_gemm.unit_of(q) == "tf32" else "ieee",
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        enable_fp_fusion=True,
    )


def _config(kernel: str, q: Tensor) -> LaunchConfig:
    if q.shape[2] > gpu_launch.WIDEST_HEAD:
        raise ValueError(f"heads on a GPU have up to {gpu_launch.WIDEST_HEAD} channels, got q {list(q.shape)}")
    family = gather_gemm_launch.device_family(q.device)
    return gpu_launch.launch_config(kernel, q.shape[2], gather_gemm.unit_of(q), family)


def _segments(
    offsets: Tensor, offsets_k: Tensor | None, max_length: int | None, max_length_k: int | None
) -> tuple[Tensor, Tensor, int | None]:
    """(offsets, offsets of the keys, longest segment of keys); the queries' where the keys have none of their own."""
    offsets = offsets.contiguous()
    if offsets_k is None:
        return offsets, offsets, max_length if max_length_k is None else max_length_k
    return offsets, offsets_k.contiguous(), max_length_k


def _rows(x: Tensor) -> Tensor:
    """The kernels take any strides of rows and heads, but channels side by side."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _grid(n_tiles: int, n_heads: int) -> tuple[int]:
    if n_tiles * n_heads > _MOST_PROGRAMS:
        raise ValueError(f"{n_tiles} tiles of {n_heads} heads are more than {_MOST_PROGRAMS} programs: split the batch")
    return (n_tiles * n_heads,)
