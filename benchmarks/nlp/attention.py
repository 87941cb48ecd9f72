"""Attention alone on real lengths: queries, keys and values of MiniLM's third layer on 32 documents.

`attention` asks for the result, `importance` for the column sums of the attention probabilities, which tell the tokens
that the others look at.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.cases.common import OURS, inference
from benchmarks.harness import DTYPES, Competitor, Settings, Trial
from benchmarks.nlp import minilm
from benchmarks.nlp.texts import Corpus
from benchmarks.workloads import Unavailable

LAYER = 2
QUERIES = 32  # of the estimate
PADDED, LOOP, NESTED = "padded SDPA", "SDPA in a loop", "nested jagged SDPA"
EAGER, SWAPPED, ESTIMATE = "probabilities, summed", "swapped SDPA in a loop", f"trisparse, {QUERIES} queries"
_TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 4e-2}
_ESTIMATE_TOLERANCE = 1.0  # another quantity; its error is what is reported


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


def trials(corpus: Corpus, settings: Settings) -> Iterator[Trial]:
    """The result of attention, then its column sums; on the first 32 documents."""
    rows = real_rows(corpus, min(settings.documents or minilm.BATCH, minilm.BATCH))
    exact = Rows(rows.q.double(), rows.k.double(), rows.v.double(), rows.offsets)
    tokens, heads, size = rows.q.shape
    products = [shape for n in rows.lengths for shape in ((n, size, n), (n, n, size)) for _ in range(heads)]
    shape = f"{len(rows.lengths)} documents, {tokens} tokens, {heads} heads of {size}"
    for what, right, ways in (
        ("attention", functools.partial(_loop, exact), _ATTENTION),
        ("importance", functools.partial(_probabilities, exact), _IMPORTANCE),
    ):
        yield Trial(
            case="attention",
            workload=corpus.name,
            shape=f"{what}: {shape}",
            reference=lambda right=right: [right()().to(settings.device)],  # type: ignore[misc]
            competitors=[
                Competitor(
                    name,
                    dtype,
                    threads,
                    functools.partial(_build, build, rows, dtype, settings.device),
                    lambda out, name=name: [_unpadded(out, rows.lengths) if name == PADDED else out],  # type: ignore[misc]
                    _ESTIMATE_TOLERANCE if name == ESTIMATE else _TOLERANCE[dtype],
                )
                for threads in settings.threads
                for dtype in settings.dtypes
                for name, build in ways.items()
            ],
            products=products if what == "attention" else (),
        )


def real_rows(corpus: Corpus, count: int) -> Rows:
    """What the third layer of MiniLM attends with on the first `count` documents, each computed alone."""
    documents = minilm.tokenize(corpus, corpus.test.first(count))
    model = minilm.model()
    attention = model.encoder.layer[LAYER].attention.self
    parts = []
    with torch.no_grad():
        for ids in documents.ids:
            rows, mask = minilm.padded([ids])
            hidden = model(input_ids=rows, attention_mask=mask, output_hidden_states=True).hidden_states[LAYER][0]
            parts.append(torch.stack([part(hidden) for part in (attention.query, attention.key, attention.value)]))
    heads = model.config.num_attention_heads
    q, k, v = torch.cat(parts, 1).unflatten(-1, (heads, -1)).unbind(0)
    return Rows(q, k, v, torch.tensor([0, *documents.lengths]).cumsum(0))


def _build(build: Callable[[Rows], Callable[[], Tensor]], rows: Rows, dtype: str, device: str) -> Callable[[], Tensor]:
    return inference(build(rows.to(dtype, device)))


def _views(rows: Rows) -> Sequence[tuple[Tensor, Tensor, Tensor]]:
    """q, k, v of each document as [1, H, n, D] without a copy."""
    q, k, v = ([part.transpose(0, 1)[None] for part in x.split(rows.lengths)] for x in (rows.q, rows.k, rows.v))
    return list(zip(q, k, v))


def _loop(rows: Rows) -> Callable[[], Tensor]:
    def call() -> Tensor:
        return torch.cat([scaled_dot_product_attention(q, k, v)[0].transpose(0, 1) for q, k, v in _views(rows)])

    return call


def _padded(rows: Rows) -> Callable[[], Tensor]:
    """As a padded model does it: the padded tensors are there already, the mask is a boolean matrix."""
    lengths = torch.tensor(rows.lengths, device=rows.q.device)
    alive = torch.arange(int(lengths.max()), device=rows.q.device) < lengths[:, None]
    q, k, v = (_to_padded(x, rows.lengths) for x in (rows.q, rows.k, rows.v))
    mask = alive[:, None, None, :].expand(-1, 1, alive.shape[1], -1).contiguous()

    return lambda: scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _unpadded(out: Tensor, lengths: Sequence[int]) -> Tensor:
    """Only to be compared: what padded SDPA computes stays padded."""
    return torch.cat([one[:, :length].transpose(0, 1) for one, length in zip(out, lengths)])


def _to_padded(x: Tensor, lengths: Sequence[int]) -> Tensor:
    """[B, H, S, D], in the memory order that a model's projections give."""
    return torch.nn.utils.rnn.pad_sequence(list(x.split(list(lengths))), batch_first=True).transpose(1, 2)


def _nested(rows: Rows) -> Callable[[], Tensor]:
    def call() -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in jagged)
        return scaled_dot_product_attention(q, k, v).transpose(1, 2).values()

    jagged = [torch.nested.nested_tensor_from_jagged(x, rows.offsets) for x in (rows.q, rows.k, rows.v)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nested tensors are a prototype; it is said once
        with torch.no_grad():
            call()
    return call


def _ours(rows: Rows) -> Callable[[], Tensor]:
    from common_kernels.varlen_attention import varlen_attention

    return lambda: varlen_attention(rows.q, rows.k, rows.v, rows.offsets)  # type: ignore[return-value]


def _probabilities(rows: Rows) -> Callable[[], Tensor]:
    def call() -> Tensor:
        sums, results = [], []
        for q, k, v in _views(rows):
            probabilities = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
            sums.append(probabilities.sum((0, 1, 2)))
            results.append((probabilities @ v)[0].transpose(0, 1))
        torch.cat(results)
        return torch.cat(sums)

    return call


def _swapped(rows: Rows) -> Callable[[], Tensor]:
    """SDPA a second time with queries and keys exchanged; its log-sum-exp is the logarithm of the column sums."""
    if rows.q.device.type != "cpu":
        raise Unavailable("torch's fused attention gives the log-sum-exp for this on a CPU only")
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def call() -> Tensor:
        sums, results = [], []
        for q, k, v in _views(rows):
            result, lse = attend(q, k, v)
            results.append(result[0].transpose(0, 1))
            sums.append(attend(k, q, q, attn_mask=-lse[:, :, None, :].float())[1].exp().sum((0, 1)))
        torch.cat(results)
        return torch.cat(sums)

    return call


def _column_sums(rows: Rows) -> Callable[[], Tensor]:
    from common_kernels.varlen_attention import varlen_attention

    return lambda: varlen_attention(rows.q, rows.k, rows.v, rows.offsets, importance=True)[1]


def _estimated(rows: Rows) -> Callable[[], Tensor]:
    from common_kernels.varlen_attention import varlen_attention

    return lambda: varlen_attention(rows.q, rows.k, rows.v, rows.offsets, importance=QUERIES)[1]


_ATTENTION = {PADDED: _padded, LOOP: _loop, NESTED: _nested, OURS: _ours}
# Attention is part of each: whoever wants the column sums wants the result too.
_IMPORTANCE = {EAGER: _probabilities, SWAPPED: _swapped, OURS: _column_sums, ESTIMATE: _estimated}
