"""Documents embedded by everyone, in turn, in one process: the same tokens in, normalised means over the tokens out.

The error of a row is 1 - cosine of its worst document with that document's embedding when the Hugging Face model
computes it alone in fp32. What prunes, or computes in int8, is another function: its loss is reported, not refused.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from benchmarks.harness import Competitor, Settings, Trial
from benchmarks.nlp import minilm
from benchmarks.nlp.minilm import Documents
from benchmarks.nlp.ours import ARRIVAL, OURS, PACKER, pruned, variants
from benchmarks.nlp.peers import HF_ARRIVAL, HF_SORTED, PEERS, Result, Way, alone
from benchmarks.nlp.texts import Corpus

# Largest 1 - cosine of a document.
TOLERANCE = {"fp32": 1e-4, "bf16": 1e-3, "int8": 0.5}
_PRUNED_TOLERANCE = 2.0
# The corpus with every way, and the ways that it measures on every number of threads. All else is measured on the
# first number of threads, and other corpora leave out what tells nothing new: a quarter of an hour is long enough.
FULL = "20ng"
MAIN = (HF_ARRIVAL, HF_SORTED, PACKER)


def trials(corpus: Corpus, settings: Settings) -> Iterator[Trial]:
    """One trial: the corpus's documents through every way that there is."""
    documents = minilm.tokenize(corpus, corpus.test.first(settings.documents or corpus.documents))
    right = functools.cache(lambda: alone(documents))
    timed = [one for one in variants(corpus.name, settings.documents) if one.timed and corpus.name == FULL]
    fewer = {f"trisparse {one.name}": pruned(one) for one in timed}
    ways = {**PEERS, **OURS, **fewer}
    threads_of = {name: settings.threads if name in MAIN else settings.threads[:1] for name in ways}
    in_bf16 = set(ways)
    if corpus.name != FULL:
        ways.pop(ARRIVAL, None)
        threads_of = dict.fromkeys(ways, settings.threads[:1])
        in_bf16 -= {HF_ARRIVAL}
    mean = documents.tokens / max(1, len(documents.ids))
    yield Trial(
        case="throughput",
        workload=corpus.name,
        shape=f"{len(documents.ids)} documents of {mean:.0f} tokens in the mean, up to {max(documents.lengths)}",
        reference=lambda: [torch.zeros(len(documents.ids), dtype=torch.float64)],
        competitors=[
            Competitor(
                name,
                dtype,
                threads,
                functools.partial(way.build, documents, dtype, threads, settings.device),
                lambda result: [1 - minilm.cosine(result.embeddings.cpu(), right())],
                _PRUNED_TOLERANCE if name in fewer else TOLERANCE[dtype],
                functools.partial(_columns, way, documents, right),
            )
            for name, way in ways.items()
            for threads in threads_of[name]
            for dtype in way.dtypes
            if dtype != "bf16" or name in in_bf16
            if name not in fewer or dtype == pruned_dtype(settings)
            # int8 is what runtimes offer beside fp32 where they have no bf16.
            if dtype in settings.dtypes or (dtype == "int8" and settings.device == "cpu")
        ],
        products=_products(documents) if corpus.length else (),
    )


def pruned_dtype(settings: Settings) -> str:
    """The dtype that pruned models are measured in: bf16 if it is asked for."""
    return "bf16" if "bf16" in settings.dtypes else settings.dtypes[0]


def _columns(way: Way, documents: Documents, right: Callable[[], Tensor], result: Result) -> Mapping[str, object]:
    found: dict[str, object] = {
        "tokens": documents.tokens,
        "cosine": minilm.cosine(result.embeddings.cpu(), right()).mean().item(),
        "kept": kept_text(result.kept),
    }
    if way.batches is not None:
        found["padding"] = minilm.padding(documents.lengths, way.batches(documents.lengths))
    return found


def kept_text(kept: Tensor | None) -> str:
    """Tokens alive before each layer and at the end, in percent of all; nothing where all are."""
    if kept is None or bool((kept == kept[0]).all()):
        return ""
    return " ".join(f"{share:.0f}" for share in (100 * kept / kept[0]).tolist())


def _products(documents: Documents) -> Sequence[tuple[int, int, int]]:
    """The matrix products of six layers' linear parts."""
    hidden, inner = 384, 1536
    layer = [(documents.tokens, hidden, hidden)] * 4
    return [*layer, (documents.tokens, hidden, inner), (documents.tokens, inner, hidden)] * 6
