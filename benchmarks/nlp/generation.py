"""Decoding with a pruned key-value cache, by the small language model that comes with nlp, on texts it never saw.

Each call continues eight prompts of 512 tokens, which the cache has seen and evicted from, by the 64 tokens that follow
in the text, one at a time: tokens per second are of decoding alone, the error is of the tokens' log-probabilities, and
for what evicts it is its finding, not a fault. The perplexity is over all windows of held-out text, and its change over
pairs: the same windows with the whole cache.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.data import Unavailable
from benchmarks.harness import DTYPES, Competitor, Settings, Trial
from benchmarks.nlp.minilm import need
from benchmarks.nlp.texts import Corpus

PROMPT, NEW, BATCH = 512, 64, 8
BUDGETS = (0.5, 0.25)
FULL, WHOLE = "DynamicCache", "trisparse PrunedCache, all kept"
_TOLERANCE = {"fp32": 1e-3, "fp16": 5e-2, "bf16": 2e-1}
_EVICTED_TOLERANCE = 1e3

MakeCache = Callable[[Any], Any]  # of the model


def language_model() -> tuple[Any, Any]:
    """The causal language model that nlp ships, in fp32, and its tokenizer."""
    import nlp

    need("transformers")
    for name in nlp.list_pretrained():
        model = nlp.load_pretrained(name)
        if type(model).__name__.endswith("ForCausalLM"):
            from nlp.pretrained import load_tokenizer

            return model.float(), load_tokenizer(name)
    raise Unavailable("nlp comes without a language model here")


def held_out() -> Tensor:
    """[n, PROMPT + NEW] int64: all whole windows of the texts that the model never saw."""
    from nlp.training.text import held_out_texts
    from nlp.training.train import tokens_of, windows

    return windows(tokens_of(language_model()[1], held_out_texts()), PROMPT + NEW)


def caches() -> dict[str, MakeCache]:
    """Every cache of the benchmark: the whole one, ours that keeps all, each policy at each budget."""
    from nlp import cache

    def full(model: Any) -> Any:
        return need("transformers").DynamicCache(config=model.config)

    found: dict[str, MakeCache] = {FULL: full, WHOLE: lambda model: cache.PrunedCache(model, cache.Recent(), keep=1.0)}
    policies = {
        "SnapKV": cache.SnapKV(window=16),
        "heavy hitters": cache.HeavyHitters(),
        "recent": cache.Recent(),
        "random": cache.RandomTokens(),
    }
    for name, policy in policies.items():
        for keep in BUDGETS:
            found[f"trisparse {name} {keep:g}"] = functools.partial(_pruned, policy, keep)
    return found


def _pruned(policy: Any, keep: float, model: Any) -> Any:
    from nlp.cache import PrunedCache

    return PrunedCache(model, policy, keep=keep, recent=16)


def trials(corpus: Corpus, settings: Settings) -> Iterator[Trial]:
    """One trial: decoding with each cache."""
    del corpus  # the model knows one kind of text only, and those that are held out of it
    model, _ = language_model()
    windows = held_out()
    if settings.documents:
        windows = windows[: settings.documents]
    first = windows[:BATCH]
    if not len(first):
        raise Unavailable(f"the held-out text has no window of {PROMPT + NEW} tokens")
    whole = functools.cache(lambda dtype: losses(_converted(model, dtype, settings.device), windows, caches()[FULL]))

    def right() -> list[Tensor]:
        with torch.inference_mode():
            return [_log_probabilities(model(input_ids=first).logits[:, PROMPT - 1 : -1], first[:, PROMPT:])]

    yield Trial(
        case="generation",
        workload="held-out help pages",
        shape=f"{len(first)} prompts of {PROMPT} tokens, {NEW} more; perplexity on {len(windows)} windows",
        reference=right,
        competitors=[
            Competitor(
                name,
                dtype,
                threads,
                functools.partial(_build, model, first, make, dtype, settings.device),
                lambda result: [result[0].cpu()],
                _TOLERANCE[dtype] if name in (FULL, WHOLE) else _EVICTED_TOLERANCE,
                functools.partial(_columns, model, windows, make, dtype, settings.device, whole),
            )
            for threads in settings.threads[:1]
            for dtype in settings.dtypes
            for name, make in caches().items()
        ],
    )


def _converted(model: Any, dtype: str, device: str) -> Any:
    # A copy: a PrunedCache switches the attention of the model that it is for.
    return copy.deepcopy(model).to(device, DTYPES[dtype])


def _build(model: Any, tokens: Tensor, make: MakeCache, dtype: str, device: str) -> Callable[[], tuple[Tensor, Any]]:
    network, tokens = _converted(model, dtype, device), tokens.to(device)
    with torch.inference_mode():
        cache = make(network)
        # The prompt's last token is the first that is fed alone.
        network(input_ids=tokens[:, : PROMPT - 1], past_key_values=cache)

    @torch.inference_mode()
    def call() -> tuple[Tensor, Any]:
        used = copy.deepcopy(cache)
        parts = []
        for i in range(PROMPT - 1, PROMPT + NEW - 1):
            logits = network(input_ids=tokens[:, i : i + 1], past_key_values=used).logits
            parts.append(_log_probabilities(logits, tokens[:, i + 1 : i + 2]))
        return torch.cat(parts, 1), used

    return call


def losses(network: Any, windows: Tensor, make: MakeCache) -> Tensor:
    """[n] fp64: mean negative log-probability of the tokens of each window that follow its prompt."""
    found = []
    device = next(network.parameters()).device
    with torch.inference_mode():
        for part in windows.to(device).split(BATCH):
            cache = make(network)
            network(input_ids=part[:, : PROMPT - 1], past_key_values=cache)
            # All at once: each sees what is left of the prompt and those before it, as when fed one by one.
            logits = network(input_ids=part[:, PROMPT - 1 : -1], past_key_values=cache).logits
            found.append(-_log_probabilities(logits, part[:, PROMPT:]).double().mean(1).cpu())
    return torch.cat(found)


def _columns(
    model: Any,
    windows: Tensor,
    make: MakeCache,
    dtype: str,
    device: str,
    whole: Callable[[str], Tensor],
    result: tuple[Tensor, Any],
) -> Mapping[str, object]:
    found = losses(_converted(model, dtype, device), windows, make)
    change = found - whole(dtype)
    return {
        "tokens": result[0].numel(),
        "cache_mib": cache_bytes(result[1]) / 2**20,
        "perplexity": math.exp(found.mean().item()),
        "change": 100 * change.mean().item(),
        "change_se": 100 * change.std().item() / len(change) ** 0.5 if len(change) > 1 else None,
    }


def cache_bytes(cache: Any) -> int:
    """Memory of a cache's keys and values, and of whatever else it knows of each token."""
    own = getattr(cache, "bytes", None)
    if own is not None:
        return int(own)
    return sum(part.numel() * part.element_size() for layer in cache.layers for part in (layer.keys, layer.values))


def _log_probabilities(logits: Tensor, tokens: Tensor) -> Tensor:
    """[B, n] fp32 of the tokens [B, n]."""
    return logits.float().log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
