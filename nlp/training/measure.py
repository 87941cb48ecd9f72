"""Measure the small language model on texts that were not trained on."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nlp.cache import HeavyHitters, Policy, PrunedCache, RandomTokens, Recent, SnapKV

BUDGETS = (0.5, 0.25, 0.125)
RECENT = 16
# Name, policy, and which heads share their choice, as measured.
POLICIES: tuple[tuple[str, Policy, str], ...] = (
    ("snapkv", SnapKV(window=RECENT), "own"),
    ("snapkv pooled", SnapKV(window=RECENT), "pooled"),
    ("snapkv shared", SnapKV(window=RECENT), "shared"),
    ("heavy hitters", HeavyHitters(), "own"),
    ("recent", Recent(), "shared"),
    ("random", RandomTokens(), "own"),
)


def ngram_perplexities(training: Tensor, held_out: Tensor, vocabulary: int) -> dict[str, float]:
    """Perplexity per token of single tokens and of pairs, counted in the training tokens [n].

    Single tokens are counted once more than they were seen; a pair's frequency is mixed with its second token's, as if
    each first token had been followed by 20 tokens drawn by chance (a weight near the best on held-out text).
    """
    single = torch.bincount(training, minlength=vocabulary).double() + 1
    single /= single.sum()
    pairs = torch.zeros(vocabulary, vocabulary, dtype=torch.float64)
    pairs.index_put_((training[:-1], training[1:]), torch.ones(len(training) - 1, dtype=torch.float64), accumulate=True)
    first, second = held_out[:-1], held_out[1:]
    weight = 20.0
    mixed = (pairs[first, second] + weight * single[second]) / (pairs.sum(1)[first] + weight)
    return {
        "unigram": round(float(torch.exp(-single[second].log().mean())), 2),
        "bigram": round(float(torch.exp(-mixed.log().mean())), 2),
    }


@torch.inference_mode()
def perplexity(model: Any, windows: Tensor, batch: int = 8) -> float:
    """Per token, of windows [n, context] that open with "begin"."""
    total = sum(float(token_losses(model(input_ids=part).logits, part).sum()) for part in windows.split(batch))
    return math.exp(total / (windows.shape[0] * (windows.shape[1] - 1)))


@torch.inference_mode()
def first_token_mass(model: Any, windows: Tensor, from_query: int = 64) -> list[float]:
    """For each layer, the share of the attention of the queries from `from_query` on that the first token receives."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        attentions = model(input_ids=windows, output_attentions=True).attentions
    finally:
        model.set_attn_implementation(before)
    return [round(float(probabilities[:, :, from_query:, 0].mean()), 4) for probabilities in attentions]


@torch.inference_mode()
def four_evicted(model: Any, windows: Tensor, prefill: int, draws: int = 4, batch: int = 8) -> dict[str, float]:
    """Perplexity of what follows `prefill` tokens that all see each other, of which four are then hidden.

    Returns:
        With none hidden, the first four, and four drawn by chance of the others (mean loss of `draws` draws).
    """
    length = windows.shape[1]
    generator = torch.Generator().manual_seed(0)
    drawn = [4 + torch.randperm(prefill - 4, generator=generator)[:4] for _ in range(draws)]
    hidden = {"none": [torch.arange(0)], "first four": [torch.arange(4)], "random four": drawn}
    results = {}
    for name, choices in hidden.items():
        total = 0.0
        for choice in choices:
            mask = torch.ones(length, length, dtype=torch.bool).tril()
            mask[prefill:, choice] = False
            for part in windows.split(batch):
                logits = model(input_ids=part, attention_mask=mask.expand(len(part), 1, -1, -1)).logits
                total += float(token_losses(logits, part)[:, prefill:].sum())
        results[name] = round(math.exp(total / (len(choices) * len(windows) * (length - 1 - prefill))), 3)
    return results


@torch.inference_mode()
def after_eviction(
    model: Any, windows: Tensor, prefill: int, policy: Policy, heads: str, keep: float, sinks: int, batch: int = 8
) -> tuple[float, float]:
    """Perplexity of what follows `prefill` tokens once PrunedCache has evicted, and the share of tokens left."""
    total, left, full = 0.0, 0, 0
    for part in windows.split(batch):
        cache = PrunedCache(model, policy, keep=keep, sinks=sinks, recent=RECENT, heads=heads)
        model(input_ids=part[:, :prefill], past_key_values=cache)
        left += sum(n for layer in cache.kept for row in layer for n in row)
        full += sum(n * len(row) for layer in cache.kept for n, row in zip(cache.seen, layer))
        logits = model(input_ids=part[:, prefill:], past_key_values=cache).logits
        total += float(token_losses(logits, part[:, prefill:]).sum())
    return math.exp(total / (len(windows) * (windows.shape[1] - prefill - 1))), left / full


def eviction_table(model: Any, windows: Tensor, prefill: int, progress: bool = False) -> dict[str, dict[str, float]]:
    """Perplexity for each policy, with the four first tokens protected and without, by the share kept."""
    whole = after_eviction(model, windows, prefill, Recent(), "shared", 1.0, 0)[0]
    table: dict[str, dict[str, float]] = {"nothing evicted": {"1": round(whole, 3)}}
    if progress:
        print(f"nothing evicted  {whole:8.3f}", flush=True)
    for name, policy, heads in POLICIES:
        for sinks in (4, 0):
            row = {}
            for keep in BUDGETS:
                row[f"{keep:g}"] = round(after_eviction(model, windows, prefill, policy, heads, keep, sinks)[0], 3)
            table[f"{name}, {'sinks protected' if sinks else 'no sinks'}"] = row
            if progress:
                print(
                    f"{name:14s} sinks {sinks}  " + "  ".join(f"{keep} {p:8.3f}" for keep, p in row.items()), flush=True
                )
    return table


def token_losses(logits: Tensor, tokens: Tensor) -> Tensor:
    """[n, length - 1]: the negative log-probability of each token after the first."""
    flat = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    return flat.view(len(tokens), -1)
