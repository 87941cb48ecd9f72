"""Attention alone, on the lengths of real documents.

`attention` asks for the result, `importance` for the column sums of the attention probabilities, which tell the tokens
that the others look at. On 32 documents of a corpus they see the queries, keys and values of MiniLM's third layer.
`lengths` needs no model: it has the lengths of Python's help pages, random values, the heads of BERT-base, and adds
`gradients` and `compaction`, the rows of the better half of each document's tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.competitors import inference
from benchmarks.harness import Competitor, Settings, Trial
from benchmarks.nlp import attention_ways as ways
from benchmarks.nlp import minilm
from benchmarks.nlp.attention_ways import ATTENTION, COMPACTION, ESTIMATE, IMPORTANCE, PADDED, Rows
from benchmarks.nlp.texts import LENGTHS, Corpus

LAYER = 2
HEADS, HEAD_SIZE = 12, 64  # of made-up rows
_TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 4e-2}
_ESTIMATE_TOLERANCE = 1.0  # another quantity; its error is what is reported


def trials(corpus: Corpus, settings: Settings) -> Iterator[Trial]:
    """The result of attention and its column sums; on made-up rows gradients and compaction too."""
    made_up = corpus.name == LENGTHS
    count = min(settings.documents or corpus.documents, corpus.documents if made_up else minilm.BATCH)
    rows = made_up_rows(corpus, count) if made_up else real_rows(corpus, count)
    tokens, heads, size = rows.q.shape
    shape = f"{len(rows.lengths)} documents, {tokens} tokens, {heads} heads of {size}"
    products = [one for n in rows.lengths for one in ((n, size, n), (n, n, size)) for _ in range(heads)]
    trial = functools.partial(_trial, corpus, settings, rows, shape)
    attend = {name: ways.forward(way) for name, way in ATTENTION.items()}
    yield trial("attention", ways.forward(ways.loop), attend, products)
    yield trial("importance", ways.probabilities, IMPORTANCE)
    if made_up:
        slope = torch.randn(rows.q.shape, generator=torch.Generator().manual_seed(1))
        both = {name: ways.backward(way, slope, name == PADDED) for name, way in ATTENTION.items()}
        # Each product of the forward pass, the scores again, and two for the gradients of each.
        yield trial("gradients", ways.backward(ways.loop, slope, False), both, products * 3)
        yield trial("compaction", ways.by_mask, COMPACTION)


def _trial(
    corpus: Corpus,
    settings: Settings,
    rows: Rows,
    shape: str,
    what: str,
    right: Callable[[Rows], Callable[[], Any]],
    entrants: dict[str, Callable[[Rows], Callable[[], Any]]],
    products: Sequence[tuple[int, int, int]] = (),
) -> Trial:
    def compare(name: str, out: Any) -> list[Tensor]:
        parts = out if isinstance(out, tuple) else (out,)
        return [ways.unpadded(part, rows.lengths) if name == PADDED else part for part in parts]

    return Trial(
        case="attention",
        workload=corpus.name,
        shape=f"{what}: {shape}",
        reference=lambda: [part.to(settings.device) for part in compare("", right(rows.exact())())],
        competitors=[
            Competitor(
                name,
                dtype,
                threads,
                functools.partial(_build, build, rows, dtype, settings.device),
                functools.partial(compare, name),
                _ESTIMATE_TOLERANCE if name == ESTIMATE else _TOLERANCE[dtype],
            )
            for threads in settings.threads
            for dtype in settings.dtypes
            for name, build in entrants.items()
            if settings.device == "cuda" or name not in ways.ON_A_GPU
        ],
        products=products,
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


def made_up_rows(corpus: Corpus, count: int) -> Rows:
    """Normal values for as many tokens as each of the first `count` documents has words, at most 512."""
    lengths = [min(len(text.split()), minilm.LIMIT) for text in corpus.test.first(count).texts]
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, sum(lengths), HEADS, HEAD_SIZE, generator=generator).unbind(0)
    return Rows(q, k, v, torch.tensor([0, *lengths]).cumsum(0))


def _build(build: Callable[[Rows], Callable[[], Any]], rows: Rows, dtype: str, device: str) -> Callable[[], Any]:
    return inference(build(rows.to(dtype, device)))
