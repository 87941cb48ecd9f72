"""flash_attn's functions against torch's attention in float64, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pointcloud.shims import flash_attn

LENGTHS = [5, 0, 17, 1]


def oracle(
    q: Tensor, k: Tensor, v: Tensor, scale: float, window: tuple[int, int] = (-1, -1), slopes: Tensor | None = None
) -> Tensor:
    """Attention of q [S, H, D] to k [Sk, Hkv, D] in float64; query i stands at i + Sk - S."""
    q, k, v = (each.double().transpose(0, 1) for each in (q, k, v))
    k, v = (each.repeat_interleave(len(q) // len(each), 0) for each in (k, v))
    scores = q @ k.mT * scale
    position = torch.arange(q.shape[1])[:, None] + k.shape[1] - q.shape[1]
    ahead = torch.arange(k.shape[1])[None] - position
    if slopes is not None:
        scores = scores - slopes.double()[:, None, None] * ahead.abs()
    left, right = window
    hidden = ((ahead < -left) if left >= 0 else ahead > k.shape[1]) | ((ahead > right) if right >= 0 else False)
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1).nan_to_num()
    return (weights @ v).transpose(0, 1)


def packed(heads: int = 4, kv_heads: int = 2, dim: int = 8) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    n = sum(LENGTHS)
    q, k, v = torch.randn(n, heads, dim), torch.randn(n, kv_heads, dim), torch.randn(n, kv_heads, dim)
    return q, k, v, torch.tensor([0, *LENGTHS], dtype=torch.int32).cumsum(0, dtype=torch.int32)


@pytest.mark.parametrize(
    ("options", "window"),
    [
        ({}, (-1, -1)),
        ({"causal": True}, (-1, 0)),
        ({"window_size": (3, 3)}, (3, 3)),
        ({"window_size": (3, 0)}, (3, 0)),
        ({"causal": True, "window_size": (2, 5)}, (2, 0)),
        ({"softmax_scale": 0.2, "deterministic": True}, (-1, -1)),
    ],
)
def test_varlen(options: dict[str, Any], window: tuple[int, int]) -> None:
    q, k, v, offsets = packed()
    out = flash_attn.flash_attn_varlen_func(q, k, v, offsets, offsets.clone(), 17, 17, **options)
    kv = flash_attn.flash_attn_varlen_kvpacked_func(q, torch.stack([k, v], 1), offsets, offsets, 17, 17, **options)
    parts = [each.split(LENGTHS) for each in (q, k, v)]
    expected = [oracle(*each, options.get("softmax_scale", 8**-0.5), window) for each in zip(*parts)]
    torch.testing.assert_close(out.double(), torch.cat(expected), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(kv, out)


@pytest.mark.parametrize("per_sample", [False, True])
def test_alibi(per_sample: bool) -> None:
    q, k, v, offsets = packed()
    slopes = torch.rand(4, 4) if per_sample else torch.rand(4)
    out = flash_attn.flash_attn_varlen_func(q, k, v, offsets, offsets, 17, 17, causal=True, alibi_slopes=slopes)
    parts = zip(*[each.split(LENGTHS) for each in (q, k, v)], slopes.expand(4, 4))
    expected = [oracle(*each[:3], 8**-0.5, (-1, 0), each[3]) for each in parts]
    torch.testing.assert_close(out.double(), torch.cat(expected), atol=1e-5, rtol=1e-5)


def test_padded_forms_agree() -> None:
    torch.manual_seed(0)
    qkv = torch.randn(2, 7, 3, 4, 8, requires_grad=True)
    out = flash_attn.flash_attn_qkvpacked_func(qkv, causal=True)
    q, k, v = qkv.unbind(2)
    torch.testing.assert_close(flash_attn.flash_attn_func(q, k, v, causal=True), out)
    torch.testing.assert_close(flash_attn.flash_attn_kvpacked_func(q, torch.stack([k, v], 2), causal=True), out)
    rows = flash_attn.flash_attn_varlen_qkvpacked_func(qkv.flatten(0, 1), torch.tensor([0, 7, 14]), 7, causal=True)
    torch.testing.assert_close(rows.view_as(out), out)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *[each.double().transpose(1, 2) for each in (q, k, v)], is_causal=True
    ).transpose(1, 2)
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)
    upstream = torch.randn_like(out)
    (grad,) = torch.autograd.grad(out, qkv, upstream)
    (expected_grad,) = torch.autograd.grad(expected, qkv, upstream.double())
    torch.testing.assert_close(grad, expected_grad, atol=1e-5, rtol=1e-5)


def test_fewer_queries_than_keys_stand_at_the_end() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 2, 4, 8), torch.randn(1, 6, 4, 8), torch.randn(1, 6, 4, 8)
    out = flash_attn.flash_attn_func(q, k, v, causal=True)
    torch.testing.assert_close(out[0].double(), oracle(q[0], k[0], v[0], 8**-0.5, (-1, 0)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"dropout_p": 0.1}, "dropout_p must be 0.0"),
        ({"softcap": 30.0}, "softcap must be 0.0"),
        ({"return_attn_probs": True}, "return_attn_probs must be False"),
        ({"window_size": (1, 3)}, "window_size must be the same on both sides"),
        ({"alibi_slopes": torch.ones(4)}, "alibi_slopes need causal=True"),
        ({"block_table": torch.zeros(4, 1)}, "block_table must be None"),
    ],
)
def test_refusals_name_the_argument(options: dict[str, Any], text: str) -> None:
    q, k, v, offsets = packed()
    with pytest.raises(NotImplementedError, match=text):
        flash_attn.flash_attn_varlen_func(q, k, v, offsets, offsets, 17, 17, **options)


def test_wrong_values() -> None:
    q, k, v, offsets = packed()
    with pytest.raises(ValueError, match="max_seqlen_q must be at least the longest segment, 17, got 16"):
        flash_attn.flash_attn_varlen_func(q, k, v, offsets, offsets, 16, 17)
    with pytest.raises(ValueError, match=r"qkv must be \[T, 3, H, D\]"):
        flash_attn.flash_attn_varlen_qkvpacked_func(q, offsets, 17)
    with pytest.raises(ValueError, match=r"alibi_slopes must be \[4\] or \[4, 4\], got \[3\]"):
        flash_attn.flash_attn_varlen_func(q, k, v, offsets, offsets, 17, 17, causal=True, alibi_slopes=torch.ones(3))
