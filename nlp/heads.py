"""Cut attention heads that do little out of the weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from nlp.accelerate import restore
from nlp.packing.architectures import parts_of

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class _Names:
    """Where a layer keeps its attention.

    Attributes:
        module: below the layer.
        inputs: its projections to queries, keys and values.
        output: the projection of the heads' outputs, below the layer.
        counts: attributes of `module` that count the heads that are cut together.
        widths: attributes of `module` that count the channels of all query heads.
        size: attribute of `module` with the channels of a head.
    """

    module: str
    inputs: tuple[str, str, str]
    output: str
    counts: tuple[str, ...]
    widths: tuple[str, ...]
    size: str


_BERT = _Names(
    "attention.self", ("query", "key", "value"), "attention.output.dense", ("num_attention_heads",),
    ("all_head_size",), "attention_head_size",
)  # fmt: skip
_LLAMA = _Names("self_attn", ("q_proj", "k_proj", "v_proj"), "self_attn.o_proj", (), (), "head_dim")
_NAMES = {
    "bert": _BERT,
    "camembert": _BERT,
    "distilbert": _Names(
        "attention", ("q_lin", "k_lin", "v_lin"), "attention.out_lin", ("n_heads",), ("dim",), "attention_head_size"
    ),
    "electra": _BERT,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen3": _LLAMA,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
}


@torch.no_grad()
def head_importance(model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> Tensor:
    """How much each head contributes: the sum of the magnitudes of its output, mean over tokens, fp64 [layers, heads].

    Where several query heads share a head of keys (Llama), they count as one, for they can only be cut together.

    Args:
        model: a network of one of the architectures that `prune_heads` takes.
        batches: tokenised inputs, input_ids [B, S] and attention_mask [B, S].

    Raises:
        TypeError, ValueError: another network; no token in the batches.

    Source: SpAtten (Wang et al., 2021).
    """
    model = restore(model)
    names, layers = _layers(model)
    sums: list[Tensor | int] = [0] * len(layers)
    mask: Tensor | None = None
    n_tokens = 0

    def count(layer: int) -> object:
        units = _units(layers[layer], names)

        def before(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            said = args[0].double().abs()
            said = said if mask is None else said * mask.bool()[..., None]
            sums[layer] = sums[layer] + said.flatten(0, -2).sum(0).unflatten(0, (units, -1)).sum(1)

        return before

    handles = [
        layer.get_submodule(names.output).register_forward_pre_hook(count(i))  # type: ignore[arg-type]
        for i, layer in enumerate(layers)
    ]
    try:
        for batch in batches:
            mask = batch.get("attention_mask")
            n_tokens += int(batch["input_ids"].numel() if mask is None else mask.bool().sum())
            model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    if not n_tokens:
        raise ValueError("batches must hold at least one token, got none")
    return torch.stack([one for one in sums if isinstance(one, Tensor)]) / n_tokens


def prune_heads(
    model: Network,
    heads: Mapping[int, Sequence[int]] | None = None,
    *,
    importance: Tensor | None = None,
    keep: float | None = None,
) -> Network:
    """A copy of a network without some of its heads: their rows and columns are cut out of the projections.

    It equals the network with those heads' outputs set to zero, and is smaller. Its attribute `pruned_heads` says
    which are gone, by layer; its weights are loaded again into a network that was cut alike.

    Args:
        model: BERT, RoBERTa, XLM-R, CamemBERT, ELECTRA, DistilBERT, Llama, Mistral or Qwen3, with any head on top.
        heads: the numbers of the heads to cut, from 0, by layer, from 0. In grouped-query attention a number is that of
            a head of keys with all query heads that share it.
        importance: instead, [layers, heads] as from `head_importance`, and
        keep: the share of every layer's heads that stay, in (0, 1]: the most important ones.

    Raises:
        TypeError: not a Hugging Face network.
        ValueError: another architecture; a layer or head that is not there, or a layer that would lose all its heads;
            not exactly one of `heads` and `importance` with `keep`.
    """
    model = restore(model)  # type: ignore[assignment]
    names, layers = _layers(model)
    units = [_units(layer, names) for layer in layers]
    if (heads is None) == (importance is None) or (importance is None) != (keep is None):
        raise ValueError("either heads, or importance and keep, must be given")
    if importance is not None and keep is not None:
        heads = _least(importance, keep, units)
    assert heads is not None
    for layer, gone in heads.items():
        if layer not in range(len(layers)):
            raise ValueError(f"heads must name layers from 0 to {len(layers) - 1}, got {layer!r}")
        if len(set(gone)) != len(gone) or any(head not in range(units[layer]) for head in gone):
            raise ValueError(f"heads of layer {layer} must be different numbers below {units[layer]}, got {list(gone)}")
        if len(gone) == units[layer]:
            raise ValueError(f"heads must leave one to layer {layer}, got all {units[layer]}")
    pruned = copy.deepcopy(model)
    _, layers = _layers(pruned)
    for number, gone in heads.items():
        if gone:
            _cut(layers[number], names, [i for i in range(units[number]) if i not in gone], units[number])
    before = getattr(model, "pruned_heads", None)
    if before:
        raise ValueError(f"model must have all its heads, got one without {before}")
    pruned.pruned_heads = {layer: sorted(gone) for layer, gone in heads.items() if gone}  # type: ignore[assignment]
    return pruned


def _layers(model: nn.Module) -> tuple[_Names, tuple[nn.Module, ...]]:
    parts = parts_of(model)
    model_type = str(model.config.model_type)  # type: ignore[union-attr]
    if model_type not in _NAMES:
        raise ValueError(f"heads can be cut out of {', '.join(_NAMES)}, got {model_type!r}")
    return _NAMES[model_type], parts.layers


def _units(layer: nn.Module, names: _Names) -> int:
    """Heads of keys."""
    module = layer.get_submodule(names.module)
    return int(module.get_submodule(names.inputs[1]).out_features // getattr(module, names.size))


def _least(importance: Tensor, keep: float, units: list[int]) -> dict[int, list[int]]:
    if isinstance(keep, bool) or not isinstance(keep, (int, float)) or not 0 < keep <= 1:
        raise ValueError(f"keep must lie above 0 and be at most 1, got {keep!r}")
    shape = [len(units), units[0]]
    if list(importance.shape) != shape or len(set(units)) != 1:
        raise ValueError(f"importance must be {shape} [layers, heads], got {list(importance.shape)}")
    n_gone = units[0] - math.ceil(keep * units[0] - 1e-9)
    order = importance.argsort(dim=1, stable=True)
    return {layer: sorted(order[layer, :n_gone].tolist()) for layer in range(len(units))}


def _cut(layer: nn.Module, names: _Names, stay: list[int], units: int) -> None:
    module = layer.get_submodule(names.module)
    output = layer.get_submodule(names.output)
    for name in names.inputs:
        projection = module.get_submodule(name)
        assert isinstance(projection, nn.Linear)
        setattr(module, name, _part(projection, _channels(stay, units, projection.out_features), 0))
    assert isinstance(output, nn.Linear)
    index = _channels(stay, units, output.in_features)
    parent, _, leaf = names.output.rpartition(".")
    setattr(layer.get_submodule(parent), leaf, _part(output, index, 1))
    for name in names.counts:
        setattr(module, name, len(stay))
    for name in names.widths:
        setattr(module, name, len(index))


def _channels(stay: list[int], units: int, width: int) -> Tensor:
    """The channels of the heads that stay, of `width` in `units` heads."""
    return torch.arange(width).unflatten(0, (units, -1))[torch.tensor(stay)].flatten()


def _part(linear: nn.Linear, index: Tensor, axis: int) -> nn.Linear:
    """A linear layer with some of the outputs (axis 0) or inputs (axis 1)."""
    weight = linear.weight.detach()
    index = index.to(weight.device)
    part = nn.Linear(1, 1, bias=linear.bias is not None, device=weight.device, dtype=weight.dtype)
    part.weight = nn.Parameter(weight.index_select(axis, index), requires_grad=linear.weight.requires_grad)
    part.out_features, part.in_features = part.weight.shape
    if linear.bias is not None:
        bias = linear.bias.detach()
        part.bias = nn.Parameter(
            bias.index_select(0, index) if axis == 0 else bias.clone(), requires_grad=linear.bias.requires_grad
        )
    return part.train(linear.training)
