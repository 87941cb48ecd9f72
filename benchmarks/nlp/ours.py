"""Ours: packed in arrival order, packed by `Packer`, and pruned by every policy at several budgets."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.harness import DTYPES
from benchmarks.nlp import minilm, texts
from benchmarks.nlp.minilm import Documents, padded
from benchmarks.nlp.peers import Batches, Result, Way, in_order

ARRIVAL, PACKER = "trisparse packed, arrival order", "trisparse packed, Packer"
MAX_TOKENS = 8192


LONG, SHORT = ("20ng", "r8"), ("movie", "sst2")


@dataclass(frozen=True)
class Variant:
    """A way to leave tokens out.

    Attributes:
        policy: makes the argument `prune` of `nlp.accelerate`, of the module.
        timed: whether the comparison of speeds has it too; accuracies have all.
        corpora: those it is tried on.
        minutes: how long the network learns to lose less by it beforehand, from newsgroups without their labels.
    """

    name: str
    policy: Callable[[Any], Any]
    timed: bool = False
    corpora: tuple[str, ...] = LONG
    minutes: float = 0.0


_AS_MERGE = (1, 2, 3)  # the layers after which Merge removes tokens of a network of six
# Every pruned model of the benchmark. Random and First of a budget keep as many tokens of each document as Cascade, or
# as Merge where the name says so. What is short is left alone by default, and for a reason.
VARIANTS: tuple[Variant, ...] = (
    Variant("Merge 0.6", lambda nlp: nlp.Merge(keep=0.6), timed=True),
    Variant("Merge 0.5", lambda nlp: nlp.Merge(keep=0.5), timed=True),
    Variant("Merge 0.4", lambda nlp: nlp.Merge(keep=0.4), timed=True),
    Variant("Cascade 0.7", lambda nlp: nlp.Cascade(keep=0.7, score="exact"), timed=True),
    Variant("Cascade 0.5", lambda nlp: nlp.Cascade(keep=0.5, score="exact")),
    Variant("Mass 0.97", lambda nlp: nlp.Mass(0.97, score="exact")),
    Variant("Mass 0.95", lambda nlp: nlp.Mass(0.95, score="exact"), timed=True),
    Variant("Threshold 0.4", lambda nlp: nlp.Threshold(0.4, score="exact")),
    Variant("Threshold 0.6", lambda nlp: nlp.Threshold(0.6, score="exact")),
    Variant("Random 0.7", lambda nlp: nlp.Random(keep=0.7)),
    Variant("Random 0.5", lambda nlp: nlp.Random(keep=0.5)),
    Variant("Random 0.5 as Merge", lambda nlp: nlp.Random(keep=0.5, layers=_AS_MERGE)),
    Variant("First 0.7", lambda nlp: nlp.First(keep=0.7)),
    Variant("First 0.5", lambda nlp: nlp.First(keep=0.5)),
    Variant("First 0.5 as Merge", lambda nlp: nlp.First(keep=0.5, layers=_AS_MERGE)),
    Variant("Merge 0.4, finetuned", lambda nlp: nlp.Merge(keep=0.4), timed=True, corpora=("20ng",), minutes=2),
    Variant("Merge 0.5, short texts too", lambda nlp: nlp.Merge(keep=0.5, min_tokens=1), corpora=SHORT),
    Variant("Cascade 0.5, short texts too", lambda nlp: nlp.Cascade(keep=0.5, min_tokens=1), corpora=SHORT),
    Variant("Random 0.5, short texts too", lambda nlp: nlp.Random(keep=0.5, min_tokens=1), corpora=SHORT),
)
_TAUGHT_WITH = 3000


def variants(corpus: str, documents: int) -> list[Variant]:
    """Those tried on a corpus; none that must learn where only so many documents are asked for (0: all)."""
    return [one for one in VARIANTS if corpus in one.corpora and not (documents and one.minutes)]


def model(dtype: str, device: str = "cpu", policy: Callable[[Any], Any] | None = None, minutes: float = 0.0) -> Any:
    """MiniLM as `nlp.accelerate` gives it back."""
    import nlp

    if policy is None:
        return nlp.accelerate(minilm.model(device=device), dtype=DTYPES[dtype])
    network = taught(policy, minutes, device) if minutes else minilm.model(device=device)
    return nlp.accelerate(network, prune=policy(nlp), dtype=DTYPES[dtype])


@functools.lru_cache(maxsize=1)
def taught(policy: Callable[[Any], Any], minutes: float, device: str) -> Any:
    """MiniLM after so long of self-distillation with the policy, on newsgroups to train on without their labels."""
    import nlp

    documents = texts.newsgroups().train.first(_TAUGHT_WITH)
    print(f"  finetune: {minutes:g} minutes", file=sys.stderr, flush=True)
    found = nlp.finetune(
        minilm.model(device=device), documents.texts, policy(nlp), tokenizer=minilm.tokenizer(), minutes=minutes,
        max_length=minilm.LIMIT, pooling="mean", progress=False,
    )  # fmt: skip
    return nlp.restore(found)


def by_packer(documents: Documents) -> Batches:
    """Positions in the batches that `Packer` makes."""
    from nlp.texts.packer import Packer

    batches = Packer(max_tokens=MAX_TOKENS).batches(documents.ids, length=len)
    return [[position for position, _ in batch] for batch in batches]


def in_arrival_order(documents: Documents) -> Batches:
    """Positions in batches of 32, as the documents come."""
    return minilm.arrival(documents.lengths)


def embed(accelerated: Any, documents: Documents, batches: Batches, device: str = "cpu") -> Result:
    """Embeddings of the documents, and how many tokens were alive in each layer.

    The mean is over the tokens that have an output: the survivors where tokens were dropped, all of them where they
    were merged, each with its group's state.
    """
    from nlp.prune import mean_pool

    parts, kept = [], None
    with torch.inference_mode():
        for batch in batches:
            ids, mask = padded([documents.ids[i] for i in batch], device)
            out = accelerated(input_ids=ids, attention_mask=mask)
            parts.append(torch.nn.functional.normalize(mean_pool(out, mask), dim=-1))
            alive = out.kept.sum(1).cpu()
            kept = alive if kept is None else kept + alive
    return Result(in_order(parts, batches), kept)


def way(order: Callable[[Documents], Batches], policy: Callable[[Any], Any] | None = None, minutes: float = 0.0) -> Way:
    """A competitor whose batches `order` makes, anew in each call: packing is part of its work."""
    return Way(functools.partial(_build, order, policy, minutes), ("fp32", "bf16"))


def _build(
    order: Callable[[Documents], Batches],
    policy: Callable[[Any], Any] | None,
    minutes: float,
    documents: Documents,
    dtype: str,
    threads: int,
    device: str,
) -> Callable[[], Result]:
    accelerated = model(dtype, device, policy, minutes)
    return lambda: embed(accelerated, documents, order(documents), device)


OURS: dict[str, Way] = {ARRIVAL: way(in_arrival_order), PACKER: way(by_packer)}


def pruned(variant: Variant) -> Way:
    """The competitor of a variant."""
    return way(by_packer, variant.policy, variant.minutes)
