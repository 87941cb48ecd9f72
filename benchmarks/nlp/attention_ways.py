"""Everyone's attention on sequences of uneven length, its column sums, its gradients, and rows left out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as _sdpa

from benchmarks.competitors import OURS
from benchmarks.data import Unavailable
from benchmarks.harness import DTYPES
from benchmarks.nlp.minilm import need

QUERIES = 32  # of the estimate
PADDED, LOOP, NESTED = "padded SDPA", "SDPA in a loop", "nested jagged SDPA"
ON_A_GPU = TORCH_VARLEN, FLASH = "torch.nn.attention.varlen", "flash_attn"
EAGER, SWAPPED, ESTIMATE = "probabilities, summed", "swapped SDPA in a loop", f"trisparse, {QUERIES} queries"
BY_MASK, BY_SORTING = "boolean mask", "padded topk, sorted"


@dataclass(frozen=True)
class Rows:
    """Queries, keys and values of all documents one below the other, [T, H, D] fp32, and where each starts, [B + 1]."""

    q: Tensor
    k: Tensor
    v: Tensor
    offsets: Tensor

    @property
    def lengths(self) -> list[int]:
        return self.offsets.diff().tolist()

    def to(self, dtype: str, device: str) -> Rows:
        kind = DTYPES[dtype]
        q, k, v = (x.to(device, kind) for x in (self.q, self.k, self.v))
        return Rows(q, k, v, self.offsets.to(device))

    def exact(self) -> Rows:
        """In fp64."""
        return Rows(self.q.double(), self.k.double(), self.v.double(), self.offsets)


Call = Callable[[], Tensor]
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Attention(NamedTuple):
    """One way to attend: a function of q, k and v, and those in the layout that it takes."""

    attend: Attend
    inputs: tuple[Tensor, Tensor, Tensor]


def forward(way: Callable[[Rows], Attention]) -> Callable[[Rows], Call]:
    """The result alone."""

    def build(rows: Rows) -> Call:
        attend, inputs = way(rows)
        return lambda: attend(*inputs)

    return build


def backward(way: Callable[[Rows], Attention], slope: Tensor, padded: bool) -> Callable[[Rows], Callable[[], object]]:
    """The result and the gradients of q, k and v, given that of the result, [T, H, D]."""

    def build(rows: Rows) -> Callable[[], object]:
        attend, inputs = way(rows)
        inputs = tuple(x.detach().requires_grad_() for x in inputs)  # type: ignore[assignment]
        given = slope.to(rows.q.device, rows.q.dtype)
        if padded:
            given = to_padded(given, rows.lengths)

        def call() -> object:
            with torch.enable_grad():
                return torch.autograd.grad(attend(*inputs), inputs, given)

        return call

    return build


def _views(lengths: Sequence[int], *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Each document's part of the tensors as [1, H, n, D] without a copy."""
    return list(zip(*([part.transpose(0, 1)[None] for part in x.split(list(lengths))] for x in tensors)))


def loop(rows: Rows) -> Attention:
    lengths = rows.lengths

    def attend(*qkv: Tensor) -> Tensor:
        return torch.cat([_sdpa(q, k, v)[0].transpose(0, 1) for q, k, v in _views(lengths, *qkv)])

    return Attention(attend, (rows.q, rows.k, rows.v))


def padded(rows: Rows) -> Attention:
    """As a padded model does it: the padded tensors are there already, the mask is a boolean matrix."""
    lengths = torch.tensor(rows.lengths, device=rows.q.device)
    alive = torch.arange(int(lengths.max()), device=rows.q.device) < lengths[:, None]
    mask = alive[:, None, None, :].expand(-1, 1, alive.shape[1], -1).contiguous()
    q, k, v = (to_padded(x, rows.lengths) for x in (rows.q, rows.k, rows.v))
    return Attention(lambda q, k, v: _sdpa(q, k, v, attn_mask=mask), (q, k, v))


def unpadded(out: Tensor, lengths: Sequence[int]) -> Tensor:
    """Only to be compared: what padded SDPA computes stays padded."""
    return torch.cat([one[:, :length].transpose(0, 1) for one, length in zip(out, lengths)])


def to_padded(x: Tensor, lengths: Sequence[int]) -> Tensor:
    """[B, H, S, D], in the memory order that a model's projections give."""
    return torch.nn.utils.rnn.pad_sequence(list(x.split(list(lengths))), batch_first=True).transpose(1, 2)


def nested(rows: Rows) -> Attention:
    lengths = rows.offsets.diff()
    longest, shortest = int(lengths.max()), int(lengths.min())

    def attend(*qkv: Tensor) -> Tensor:
        jagged = [
            torch.nested.nested_tensor_from_jagged(x, rows.offsets, min_seqlen=shortest, max_seqlen=longest)
            for x in qkv
        ]
        q, k, v = (x.transpose(1, 2) for x in jagged)
        return _sdpa(q, k, v).transpose(1, 2).values()

    inputs = (rows.q, rows.k, rows.v)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nested tensors are a prototype; it is said once
        with torch.no_grad():
            attend(*inputs)
    return Attention(attend, inputs)


def ours(rows: Rows) -> Attention:
    from common_kernels import varlen_attention

    offsets = rows.offsets
    return Attention(lambda q, k, v: varlen_attention(q, k, v, offsets), (rows.q, rows.k, rows.v))  # type: ignore[arg-type,return-value]


def torch_varlen(rows: Rows) -> Attention:
    _no_fp32(rows)
    function = need("torch.nn.attention.varlen", "torch").varlen_attn
    return _by_limits(function, rows)


def flash(rows: Rows) -> Attention:
    _no_fp32(rows)
    return _by_limits(need("flash_attn").flash_attn_varlen_func, rows)


def _by_limits(function: Callable[..., Tensor], rows: Rows) -> Attention:
    limits, longest = rows.offsets.int(), max(rows.lengths)
    return Attention(lambda q, k, v: function(q, k, v, limits, limits, longest, longest), (rows.q, rows.k, rows.v))


def _no_fp32(rows: Rows) -> None:
    if rows.q.dtype == torch.float32:
        raise Unavailable("it takes fp16 and bf16")


ATTENTION: dict[str, Callable[[Rows], Attention]] = {
    PADDED: padded, LOOP: loop, NESTED: nested, TORCH_VARLEN: torch_varlen, FLASH: flash, OURS: ours,
}  # fmt: skip


# Column sums. Attention is part of each: whoever wants them wants the result too.


def probabilities(rows: Rows) -> Call:
    lengths = rows.lengths

    def call() -> Tensor:
        sums, results = [], []
        for q, k, v in _views(lengths, rows.q, rows.k, rows.v):
            shares = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
            sums.append(shares.sum((0, 1, 2)))
            results.append((shares @ v)[0].transpose(0, 1))
        torch.cat(results)
        return torch.cat(sums)

    return call


def swapped(rows: Rows) -> Call:
    """SDPA a second time with queries and keys exchanged; its log-sum-exp is the logarithm of the column sums."""
    if rows.q.device.type != "cpu":
        raise Unavailable("torch's fused attention gives the log-sum-exp for this on a CPU only")
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    lengths = rows.lengths

    def call() -> Tensor:
        sums, results = [], []
        for q, k, v in _views(lengths, rows.q, rows.k, rows.v):
            result, lse = attend(q, k, v)
            results.append(result[0].transpose(0, 1))
            sums.append(attend(k, q, q, attn_mask=-lse[:, :, None, :].float())[1].exp().sum((0, 1)))
        torch.cat(results)
        return torch.cat(sums)

    return call


def column_sums(rows: Rows) -> Call:
    from common_kernels import varlen_attention

    return lambda: varlen_attention(rows.q, rows.k, rows.v, rows.offsets, importance=True)[1]


def estimated(rows: Rows) -> Call:
    from common_kernels import varlen_attention

    return lambda: varlen_attention(rows.q, rows.k, rows.v, rows.offsets, importance=QUERIES)[1]


IMPORTANCE: dict[str, Callable[[Rows], Call]] = {
    EAGER: probabilities, SWAPPED: swapped, OURS: column_sums, ESTIMATE: estimated,
}  # fmt: skip


# The rows of the better half of each document's tokens, by a score: what stands between two layers of a pruned network.


def _half(rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Rows [T, H * D], a score [T] of all of them, and how many of each document go on, [B]."""
    hidden = rows.q.flatten(1)
    score = torch.randperm(len(hidden), generator=torch.Generator().manual_seed(1)).to(hidden.device, torch.float32)
    return hidden, score, (rows.offsets.diff() + 1) // 2


def by_mask(rows: Rows) -> Call:
    """Every document's own threshold, by sorting it; a boolean mask takes the rows."""
    hidden, score, keep = _half(rows)
    lengths, counts = rows.lengths, keep.tolist()

    def call() -> Tensor:
        parts = [part >= part.topk(n)[0][-1] for part, n in zip(score.split(lengths), counts)]
        return hidden[torch.cat(parts)]

    return call


def by_sorting(rows: Rows) -> Call:
    """One sort of all documents' scores, padded; the places go back in order by another."""
    hidden, score, keep = _half(rows)
    lengths = rows.offsets.diff()
    longest, most = int(lengths.max()), int(keep.max())
    place = torch.arange(longest, device=hidden.device)
    begin = rows.offsets[:-1, None]

    def call() -> Tensor:
        inside = place < lengths[:, None]
        wide = score.new_full(inside.shape, -torch.inf)
        wide[inside] = score
        best = wide.topk(most, dim=1)[1]
        alive = torch.arange(most, device=hidden.device) < keep[:, None]
        return hidden.index_select(0, (best + begin)[alive].sort()[0])

    return call


def by_ragged_topk(rows: Rows) -> Call:
    from common_kernels import ragged_topk

    hidden, score, keep = _half(rows)
    total = int(keep.sum())
    return lambda: hidden.index_select(0, ragged_topk(score, rows.offsets, keep, total)[0])


COMPACTION: dict[str, Callable[[Rows], Call]] = {BY_MASK: by_mask, BY_SORTING: by_sorting, OURS: by_ragged_topk}
