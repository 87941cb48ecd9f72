"""Ours: packed in arrival order, packed by `Packer`, and pruned by every policy at several budgets."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.harness import DTYPES
from benchmarks.nlp import minilm
from benchmarks.nlp.minilm import Documents, padded
from benchmarks.nlp.peers import Batches, Result, Way, in_order

ARRIVAL, PACKER = "trisparse packed, arrival order", "trisparse packed, Packer"
MAX_TOKENS = 8192


@dataclass(frozen=True)
class Variant:
    """A way to leave tokens out.

    Attributes:
        policy: makes the argument `prune` of `nlp.accelerate`, of the module.
        timed: whether the comparison of speeds has it too; accuracies have all.
    """

    name: str
    policy: Callable[[Any], Any]
    timed: bool = False


# Every pruned model of the benchmark. Random and First keep as many tokens of each document as Cascade of that budget.
VARIANTS: tuple[Variant, ...] = (
    Variant("Cascade 0.8", lambda nlp: nlp.Cascade(keep=0.8), timed=True),
    Variant("Cascade 0.65", lambda nlp: nlp.Cascade(keep=0.65), timed=True),
    Variant("Cascade 0.5", lambda nlp: nlp.Cascade(keep=0.5), timed=True),
    Variant("Cascade 0.35", lambda nlp: nlp.Cascade(keep=0.35), timed=True),
    Variant("Cascade 0.5, 32 queries", lambda nlp: nlp.Cascade(keep=0.5, score="strided:32"), timed=True),
    Variant("Merge 0.8", lambda nlp: nlp.Merge(keep=0.8), timed=True),
    Variant("Merge 0.65", lambda nlp: nlp.Merge(keep=0.65), timed=True),
    Variant("Merge 0.5", lambda nlp: nlp.Merge(keep=0.5), timed=True),
    Variant("Merge 0.35", lambda nlp: nlp.Merge(keep=0.35), timed=True),
    Variant("Mass 0.95", lambda nlp: nlp.Mass(0.95)),
    Variant("Mass 0.9", lambda nlp: nlp.Mass(0.9)),
    Variant("Threshold 0.5", lambda nlp: nlp.Threshold(0.5)),
    Variant("Random 0.8", lambda nlp: nlp.Random(keep=0.8)),
    Variant("Random 0.65", lambda nlp: nlp.Random(keep=0.65)),
    Variant("Random 0.5", lambda nlp: nlp.Random(keep=0.5)),
    Variant("First 0.8", lambda nlp: nlp.First(keep=0.8)),
    Variant("First 0.65", lambda nlp: nlp.First(keep=0.65)),
    Variant("First 0.5", lambda nlp: nlp.First(keep=0.5)),
)


def model(dtype: str, device: str = "cpu", policy: Callable[[Any], Any] | None = None) -> Any:
    """MiniLM as `nlp.accelerate` gives it back."""
    import nlp
    from nlp.accelerate import accelerate

    prune = None if policy is None else policy(nlp)
    return accelerate(minilm.model(device=device), prune=prune, dtype=DTYPES[dtype])


def by_packer(documents: Documents) -> Batches:
    """Positions in the batches that `Packer` makes."""
    from nlp.packer import Packer

    batches = Packer(max_tokens=MAX_TOKENS).batches(documents.ids, length=len)
    return [[position for position, _ in batch] for batch in batches]


def in_arrival_order(documents: Documents) -> Batches:
    """Positions in batches of 32, as the documents come."""
    return minilm.arrival(documents.lengths)


def embed(accelerated: Any, documents: Documents, batches: Batches, device: str = "cpu") -> Result:
    """Embeddings of the documents, the tokens that survive pooled; and how many those were."""
    from nlp.embedder import pool

    parts, kept = [], None
    with torch.inference_mode():
        for batch in batches:
            ids, mask = padded([documents.ids[i] for i in batch], device)
            out = accelerated(input_ids=ids, attention_mask=mask)
            parts.append(torch.nn.functional.normalize(pool(out, mask, "mean")[0], dim=-1))
            alive = out.kept.sum(1).cpu()
            kept = alive if kept is None else kept + alive
    return Result(in_order(parts, batches), kept)


def way(order: Callable[[Documents], Batches], policy: Callable[[Any], Any] | None = None) -> Way:
    """A competitor whose batches `order` makes, anew in each call: packing is part of its work."""
    return Way(functools.partial(_build, order, policy), ("fp32", "bf16"))


def _build(
    order: Callable[[Documents], Batches],
    policy: Callable[[Any], Any] | None,
    documents: Documents,
    dtype: str,
    threads: int,
    device: str,
) -> Callable[[], Result]:
    accelerated = model(dtype, device, policy)
    return lambda: embed(accelerated, documents, order(documents), device)


OURS: dict[str, Way] = {ARRIVAL: way(in_arrival_order), PACKER: way(by_packer)}
PRUNED: dict[str, Way] = {
    f"trisparse {variant.name}": way(by_packer, variant.policy) for variant in VARIANTS if variant.timed
}
