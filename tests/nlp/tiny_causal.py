"""Small random causal language models and prompts of uneven lengths."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FAMILIES = ("llama", "qwen3", "qwen2", "mistral", "mistral-sliding", "gpt2")
LENGTHS = (17, 5, 33, 1)
PADDED = 2  # token of the padding
SHAPE: dict[str, Any] = dict(
    vocab_size=97,
    hidden_size=48,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=256,
    initializer_range=0.2,
)


def build(family: str) -> Any:
    """A model of three layers, six heads and two heads of keys (GPT-2: six), in evaluation mode."""
    import transformers as t

    torch.manual_seed(3)
    model: Any
    if family == "gpt2":
        config = t.GPT2Config(vocab_size=97, n_embd=48, n_layer=3, n_head=6, n_positions=256, initializer_range=0.2)
        model = t.GPT2LMHeadModel(config)
    elif family == "qwen3":
        model = t.Qwen3ForCausalLM(t.Qwen3Config(**SHAPE, head_dim=8))
    elif family == "qwen2":
        model = t.Qwen2ForCausalLM(t.Qwen2Config(**SHAPE))
    elif family.startswith("mistral"):
        window = 16 if family == "mistral-sliding" else None
        model = t.MistralForCausalLM(t.MistralConfig(**SHAPE, sliding_window=window))
    else:
        model = t.LlamaForCausalLM(t.LlamaConfig(**SHAPE))
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PADDED
    return model.eval()


def prompts(seed: int = 1, lengths: tuple[int, ...] = LENGTHS) -> tuple[Tensor, Tensor]:
    """Token ids [B, S], padded on the left, and the mask."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 97, (len(lengths), max(lengths)), generator=generator)
    mask = (torch.arange(max(lengths)) >= max(lengths) - torch.tensor(lengths)[:, None]).long()
    return ids.masked_fill(mask == 0, PADDED), mask


def generate(model: Any, ids: Tensor, mask: Tensor | None = None, **settings: Any) -> Any:
    """Eight tokens, greedily, with their logits."""
    return model.generate(
        ids,
        attention_mask=torch.ones_like(ids) if mask is None else mask,
        max_new_tokens=8,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        **settings,
    )
