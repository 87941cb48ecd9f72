"""The key-value cache for `generate` that evicts unimportant tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache

from common_models.names import did_you_mean
from nlp.cache import interface
from nlp.cache.layer import REFUSED_CROP, PrunedLayer
from nlp.cache.policies import HEADS, POLICIES, Budget, Policy, SnapKV

SUPPORTED = ("gpt2", "llama", "mistral", "qwen2", "qwen3")


class PrunedCache(Cache):
    """A cache of transformers whose layers each keep the tokens that a policy finds important, and free the others.

        model.generate(**inputs, past_key_values=PrunedCache(model, SnapKV(), keep=0.25))

    Rows may be padded (pads are never stored, nor do they vote), and each row does as it would alone. Tokens keep their
    true positions. Eviction happens after the attention of every call that feeds several tokens (the prompt, each chunk
    of it, a further turn), and with `while_decoding` after every single token as well. With a budget that nothing
    exceeds the result is that of transformers' DynamicCache.

    The model's attention implementation is switched to one that also serves this cache and is the one before for all
    others; `model.set_attn_implementation("sdpa")` switches back. A cache belongs to one sequence of calls, as every
    cache; two caches never see each other. Beam search works; what takes tokens back (assisted decoding) is refused.

    Args:
        model: a causal language model of transformers: GPT-2, Llama, Mistral, Qwen2 or Qwen3, with sdpa or eager
            attention. A sliding window of the model's is honoured.
        policy: SnapKV, HeavyHitters, Recent, RandomTokens.
        keep: share of each row's tokens that stay, rounded up, at least sinks + recent.
        tokens: number of each row's tokens that stay, in place of `keep`.
        sinks: the first tokens of each row stay; models put attention there that belongs nowhere.
        recent: the latest tokens stay; by default 32, SnapKV's window, or what `tokens` leaves.
        heads: each head of keys keeps tokens of its "own", as many as the others; or the heads of a row share their
            budget in one "pooled" ranking, some keep more; or all keep the "shared" tokens of their summed scores.
        while_decoding: hold the budget while single tokens are fed, too.

    Raises:
        TypeError: a policy of another type.
        ValueError: a model that is not supported, a budget out of range; when the cache is used: dropout, masks of more
            than two axes, another batch than before.
        ImportError: transformers is not installed.
    """

    layers: list[PrunedLayer]

    def __init__(
        self,
        model: Any,
        policy: Policy,
        *,
        keep: float | None = None,
        tokens: int | None = None,
        sinks: int = 4,
        recent: int | None = None,
        heads: str = "own",
        while_decoding: bool = False,
    ) -> None:
        config = _check_model(model)
        if not isinstance(policy, POLICIES):
            names = ", ".join(each.__name__ for each in POLICIES)
            raise TypeError(f"policy must be one of {names}, got {type(policy).__name__}")
        if heads not in HEADS:
            hint = did_you_mean(str(heads), HEADS)
            raise ValueError(f"heads must be one of {', '.join(HEADS)}, got {heads!r}{hint}")
        least = 0
        if isinstance(policy, SnapKV):
            least = policy.window
            if while_decoding:
                raise ValueError("SnapKV votes on a prompt, not while decoding: use HeavyHitters() or Recent()")
        if recent is None:
            recent = least or 32
            if tokens is not None and not least and isinstance(tokens, int):
                recent = max(0, min(recent, tokens - sinks))
        if recent < least:
            raise ValueError(f"recent must be at least SnapKV's window of {least}, whose tokens stay, got {recent}")
        self.policy = policy
        self.budget = Budget(keep, tokens, sinks, recent)
        self.heads = heads
        n_layers = config.num_hidden_layers
        layers = [PrunedLayer(i, policy, self.budget, heads, while_decoding) for i in range(n_layers)]
        super().__init__(layers=layers)
        interface.register()
        before = config._attn_implementation
        if before in interface.IMPLEMENTATIONS:
            model.set_attn_implementation(interface.IMPLEMENTATIONS[before])

    @property
    def bytes(self) -> int:
        """Memory of the cache: keys, values, and what is known of each token."""
        return sum(layer.segments.nbytes for layer in self.layers if layer.segments is not None)

    @property
    def seen(self) -> list[int]:
        """Tokens that each row was fed, pads not counted."""
        return list(self.layers[0].seen)

    @property
    def kept(self) -> list[list[list[int]]]:
        """[layers][rows][heads]: tokens in the cache."""
        return [layer.kept() for layer in self.layers]

    @property
    def evicted(self) -> list[list[list[int]]]:
        """[layers][rows][heads]: tokens that were fed and are not kept."""
        return [
            [[seen - n for n in row] for seen, row in zip(layer.seen, layer.kept(), strict=True)]
            for layer in self.layers
        ]

    def kept_positions(self, layer: int, row: int, head: int) -> Tensor:
        """[n] int64, ascending: which tokens of a row a head of keys keeps in a layer; pads are not counted.

        Raises:
            ValueError: no such layer, row or head.
        """
        if not 0 <= layer < len(self.layers):
            raise ValueError(f"layer must lie in [0, {len(self.layers)}), got {layer}")
        return self.layers[layer].kept_positions(row, head)

    def activate_past_recording(self) -> None:
        """Refused: assisted decoding asks for it."""
        raise ValueError(REFUSED_CROP)

    def __repr__(self) -> str:
        return f"PrunedCache({self.policy}, {self.budget}, heads={self.heads!r}, bytes={self.bytes})"


def _check_model(model: Any) -> Any:
    """The model's config; raises where PrunedCache cannot serve it."""
    config: Any = getattr(model, "config", None)
    kind = getattr(config, "model_type", None)
    if kind not in SUPPORTED or getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"model must be a causal language model of {', '.join(SUPPORTED)}, got {type(model).__name__}"
            f"{f' ({kind})' if kind else ''}"
        )
    if getattr(config, "add_cross_attention", False):
        raise ValueError("model must have no cross-attention to be served by PrunedCache, got add_cross_attention=True")
    implementation = config._attn_implementation
    known = (*interface.IMPLEMENTATIONS, *interface.IMPLEMENTATIONS.values())
    if implementation not in known:
        raise ValueError(
            f"model's attention must be sdpa or eager, got {implementation!r}: call "
            "model.set_attn_implementation('sdpa') first"
        )
    if implementation == "eager" and getattr(config, "reorder_and_upcast_attn", False):
        raise ValueError("model must use sdpa attention, got eager with reorder_and_upcast_attn=True")
    return config
