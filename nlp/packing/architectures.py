"""What packing must know of each Hugging Face architecture: where its layers are, and where its positions come from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common_models.names import did_you_mean


@dataclass(frozen=True)
class Architecture:
    """How a network of one `model_type` is laid out.

    Attributes:
        layers: path of the list of layers below the base model; "*" stands for every element of a list on the way.
        stack: module whose output is given back padded; "" for the base model itself. Poolers that follow it see
            padded rows, as their authors meant.
        positions: where token positions come from if the caller gives none: "columns" of the padded batch,
            "after_padding" (counted over tokens that are not padding, from padding_idx + 1, as in RoBERTa), or
            "none" where attention adds a bias by distance.
        causal: a token sees no later one.
        relative_bias: attention adds a learned bias by distance.
        own_attention: attention is written out in the network's own code, out of reach of transformers' interface.
        can_prune: dropping tokens between layers leaves the meaning of the others alone.
        needs_all_rows: the last norm, where the base model's code after it expects as many rows as it was given.
    """

    layers: str
    stack: str = ""
    positions: str = "columns"
    causal: bool = False
    relative_bias: bool = False
    own_attention: bool = False
    can_prune: bool = True
    needs_all_rows: str = ""


_BERT = Architecture("encoder.layer", stack="encoder")
_ROBERTA = Architecture("encoder.layer", stack="encoder", positions="after_padding")
_LLAMA = Architecture("layers", causal=True)

_MPNET = Architecture(
    "encoder.layer", stack="encoder", positions="after_padding", relative_bias=True, own_attention=True, can_prune=False
)

_ENCODER = Architecture("layers")

ARCHITECTURES: dict[str, Architecture] = {
    "albert": Architecture("encoder.albert_layer_groups.*.albert_layers.*", stack="encoder"),
    "arcee": _LLAMA,
    "bert": _BERT,
    "bert-generation": _BERT,
    "camembert": _ROBERTA,
    "cohere": _LLAMA,
    "data2vec-text": _ROBERTA,
    "distilbert": Architecture("transformer.layer", stack="transformer"),
    "electra": _BERT,
    "ernie": _BERT,
    "ernie4_5": _LLAMA,
    "esm": _ROBERTA,
    "eurobert": _ENCODER,
    "exaone4": _LLAMA,
    "gemma": _LLAMA,
    "gemma3_text": _LLAMA,
    "glm": _LLAMA,
    "glm4": _LLAMA,
    "gpt2": Architecture("h", causal=True, needs_all_rows="ln_f"),
    "gpt_neox": _LLAMA,
    "granite": _LLAMA,
    "gte": _ENCODER,
    "helium": _LLAMA,
    "hunyuan_v1_dense": _LLAMA,
    "jina_embeddings_v3": _ENCODER,
    "layoutlm": _BERT,
    "llama": _LLAMA,
    "ministral3": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": _LLAMA,
    "modernbert": _ENCODER,
    "modernbert-decoder": _LLAMA,
    "mpnet": _MPNET,
    "nomic_bert": _ENCODER,
    "olmo2": _LLAMA,
    "olmo3": _LLAMA,
    "phi": _LLAMA,
    "phi3": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "qwen3_moe": _LLAMA,
    "roberta": _ROBERTA,
    "roberta-prelayernorm": _ROBERTA,
    "smollm3": _LLAMA,
    "stablelm": _LLAMA,
    "starcoder2": _LLAMA,
    "t5": Architecture("block", positions="none", relative_bias=True, can_prune=False),
    "xlm-roberta": _ROBERTA,
    "xlm-roberta-xl": _ROBERTA,
}
# Their attention is written out in the model's own code and cannot be reached from outside.
OWN_ATTENTION = ("deberta", "deberta-v2")


@dataclass(frozen=True)
class Parts:
    """The modules of one network that packing hooks into.

    Attributes:
        base: takes ids and mask, pads nothing: its inputs are packed.
        stack: its output is given back padded.
        layers: in the order of their first call; ALBERT calls the same ones several times.
        n_calls: calls of layers in one forward pass.
    """

    architecture: Architecture
    base: nn.Module
    stack: nn.Module
    layers: tuple[nn.Module, ...]
    n_calls: int


def network_of(model: nn.Module) -> nn.Module:
    """The Hugging Face network within what adapters (peft) were put around; the model itself where there are none."""
    inner = getattr(model, "get_base_model", None)
    found = inner() if callable(inner) else model
    return found if isinstance(found, nn.Module) else model


def parts_of(model: nn.Module) -> Parts:
    """The parts of a Hugging Face network.

    Raises:
        TypeError: not a Hugging Face network.
        ValueError: an architecture whose attention or layers are not known here.
    """
    config = getattr(model, "config", None)
    model_type = getattr(config, "model_type", None)
    if not isinstance(model, nn.Module) or not isinstance(model_type, str):
        raise TypeError(f"model must be a Hugging Face network with a config, got {type(model).__name__}")
    architecture = ARCHITECTURES.get(model_type)
    if architecture is None:
        reason = did_you_mean(model_type, ARCHITECTURES)
        if model_type in OWN_ATTENTION:
            reason = ": its attention is written out in its own code, where packed rows cannot be handed in"
        raise ValueError(f"model_type must be one of {', '.join(ARCHITECTURES)}, got {model_type!r}{reason}")
    if getattr(config, "add_cross_attention", False):
        raise ValueError("model must not have cross-attention layers (config.add_cross_attention is set)")
    network = network_of(model)
    base = getattr(network, "base_model", network)
    if model_type == "t5" and hasattr(base, "encoder"):
        base = base.encoder
    if model_type == "t5" and getattr(base, "is_decoder", False):
        raise ValueError("model must have an encoder: packing serves T5's encoder, got a decoder alone")
    stack = base.get_submodule(architecture.stack) if architecture.stack else base
    layers = tuple(_elements(base, architecture.layers.split(".")))
    n_calls = int(getattr(config, "num_hidden_layers", len(layers)))
    inner = int(getattr(config, "inner_group_num", 1)) if model_type == "albert" else 1
    return Parts(architecture, base, stack, layers, n_calls * inner)


def _elements(module: nn.Module, path: list[str]) -> list[nn.Module]:
    if not path:
        return list(module) if isinstance(module, nn.ModuleList) else [module]
    if path[0] == "*":
        return [leaf for child in module.children() for leaf in _elements(child, path[1:])]
    return _elements(module.get_submodule(path[0]), path[1:])


def positions(
    architecture: Architecture, base: nn.Module, ids: Tensor | None, shape: tuple[int, int], device: torch.device
) -> Tensor | None:
    """The positions [B, S] that the base model itself would give its padded input; None where it has none.

    Args:
        ids: [B, S], or None for a model that is fed embeddings.
        shape: (B, S).
    """
    if architecture.positions == "none":
        return None
    columns = torch.arange(shape[1], device=device).expand(shape)
    if architecture.positions == "columns":
        return columns
    padding = int(base.get_submodule("embeddings").padding_idx)  # type: ignore[arg-type]
    if ids is None:
        return columns + padding + 1
    real = ids.ne(padding)
    return real.cumsum(1) * real + padding
