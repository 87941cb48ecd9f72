"""int8 weights for a language model, checked against the model itself on the caller's own text."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from common_models.modes import evaluating, owns_weight
from nlp.linear.optimize import is_conv1d
from nlp.linear.packed import PackedLinear, PackedMixin
from nlp.linear.quantized import QuantizedLinear

_WORST_SHOWN = 5


@dataclass(frozen=True)
class Quantized:
    """What `quantize` did, and how far the outputs moved on the sample."""

    layers: tuple[str, ...]  # quantised, worst first
    skipped: tuple[str, ...]  # left as they were: asked for, tied, hooked or given back to pass the gate
    errors: dict[str, float]  # |quantised output - output| / |output| of each quantised layer on its own input
    pooled_cosine: float  # the smallest over sequences, of the masked mean of the last hidden state
    token_cosine: float  # the smallest over tokens that are not padding, of the last hidden state
    bytes_before: int  # parameters and buffers of the model
    bytes_after: int


def quantize(
    model: nn.Module,
    sample: Mapping[str, torch.Tensor],
    *,
    min_cosine: float = 0.999,
    min_token_cosine: float | None = None,
    skip: Collection[str] = (),
    max_skipped: int = 0,
) -> nn.Module:
    """A copy of `model` whose linear layers hold int8 weights, one scale per output channel, and agree on `sample`.

    The weights become four times smaller than in float32. Everything that is not the weight of a linear layer, such as
    embeddings, is shared with `model`, which is not changed. Layers whose weight is tied to another module are left
    alone, and so are those with hooks or of an unknown subclass. The copy carries the report as `.quantized`. On a CPU
    this saves memory, and time only where torch's int8 kernel is fast: a few rows in bfloat16, as in decoding.

    Args:
        model: a Hugging Face model in the dtype it will run in, plain or through `nlp.linear.optimize.optimize`.
        sample: a tokenised batch of the caller's text: "input_ids" [B, S], "attention_mask" [B, S] and what else the
            model takes. Some tens of sequences of the usual length.
        min_cosine: the least cosine of the pooled output (masked mean of the last hidden state) of each sequence with
            that of `model`.
        min_token_cosine: the same for every single token; None measures it without a demand.
        skip: names of layers to leave alone.
        max_skipped: how many layers may be left alone beyond `skip` to pass, those with the largest error first.

    Raises:
        ValueError: the gate was not passed (the message holds the measured cosines and the worst layers), a bad
            argument, an unknown layer in `skip`, or weights that are not finite.
        TypeError: the model's output has no last hidden state.
    """
    _check(model, sample, min_cosine, min_token_cosine, max_skipped)
    plain = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) or is_conv1d(m)}
    unknown = sorted(set(skip) - set(plain))
    if unknown:
        raise ValueError(f"skip must name linear layers of the model, got {unknown[0]!r}; they are {_some(plain)}")
    shared = _tied(model)
    chosen = {name: m for name, m in plain.items() if name not in set(skip) and _can_quantize(m, shared)}
    layers = {}
    for name, module in chosen.items():
        try:
            layers[name] = _quantized(module)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    with torch.no_grad(), evaluating(model):
        errors, wanted = _layer_errors(model, chosen, layers, sample)
        order = sorted(layers, key=lambda name: (-errors[name], name))
        given_back: list[str] = []
        while True:
            result = _copy(model, {name: layers[name] for name in order[len(given_back) :]}, chosen)
            pooled, token = _cosines(wanted, _hidden(result, sample), _mask(sample))
            if pooled >= min_cosine and (min_token_cosine is None or token >= min_token_cosine):
                break
            if len(given_back) >= min(max_skipped, len(order)):
                raise ValueError(_refusal(pooled, token, min_cosine, min_token_cosine, order, errors, len(given_back)))
            given_back.append(order[len(given_back)])
    for module, mode in zip(result.modules(), [m.training for m in model.modules()]):
        module.training = mode
    kept = order[len(given_back) :]
    left = tuple(name for name in plain if name not in set(kept))
    result.quantized = Quantized(  # type: ignore[assignment]
        tuple(kept), left, {name: errors[name] for name in kept}, pooled, token, _bytes(model), _bytes(result)
    )
    return result


def _check(
    model: nn.Module,
    sample: Mapping[str, torch.Tensor],
    min_cosine: float,
    min_token_cosine: float | None,
    max_skipped: int,
) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    for name, value in (("min_cosine", min_cosine), ("min_token_cosine", min_token_cosine)):
        if value is not None and not -1 <= value <= 1:
            raise ValueError(f"{name} must be from -1 to 1, got {value}")
    if max_skipped < 0:
        raise ValueError(f"max_skipped must be at least 0, got {max_skipped}")
    ids = sample.get("input_ids") if isinstance(sample, Mapping) else None
    if not isinstance(ids, torch.Tensor) or ids.dim() != 2 or ids.numel() == 0:
        came = "none" if ids is None else f"{list(getattr(ids, 'shape', []))}"
        raise ValueError(f"sample must hold input_ids [B, S] with at least one token, got {came}")
    mask = sample.get("attention_mask")
    if mask is not None and mask.shape != ids.shape:
        raise ValueError(f"attention_mask of sample must be {list(ids.shape)}, got {list(mask.shape)}")
    if mask is not None and not bool((mask != 0).any(1).all()):
        raise ValueError("every sequence of sample must hold a token that is not padding, got one of padding alone")


def _tied(model: nn.Module) -> set[int]:
    """Parameters that more than one module holds under its own name."""
    holders: dict[int, set[int]] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                holders.setdefault(id(parameter), set()).add(id(module))
    return {parameter for parameter, modules in holders.items() if len(modules) > 1}


def _can_quantize(module: nn.Module, shared: set[int]) -> bool:
    weight = module._parameters.get("weight")
    known = type(module) in (nn.Linear, PackedLinear) or is_conv1d(module)
    return known and owns_weight(module) and id(weight) not in shared and weight is not None and weight.numel() > 0


def _quantized(module: nn.Module) -> QuantizedLinear:
    weight = module.get_parameter("weight")
    activation = module.activation if isinstance(module, PackedMixin) else "none"
    matrix = weight.t() if is_conv1d(module) else weight
    return QuantizedLinear(matrix, module._parameters["bias"], activation).train(module.training)


def _copy(model: nn.Module, layers: Mapping[str, nn.Module], chosen: Mapping[str, nn.Module]) -> nn.Module:
    """`model` with other `layers`, without ever copying a parameter."""
    memo: dict[int, Any] = {id(p): p for p in model.parameters()}
    memo.update({id(chosen[name]): layer for name, layer in layers.items()})
    return copy.deepcopy(model, memo)


def _layer_errors(
    model: nn.Module,
    chosen: Mapping[str, nn.Module],
    layers: Mapping[str, QuantizedLinear],
    sample: Mapping[str, torch.Tensor],
) -> tuple[dict[str, float], torch.Tensor]:
    """How much each layer alone changes its output on the model's own activations, and the last hidden state."""
    squares = {name: [0.0, 0.0] for name in chosen}

    def compare(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
            squares[name][0] += (layers[name](args[0]).float() - out.float()).square().sum().item()
            squares[name][1] += out.float().square().sum().item()

        return hook

    handles = [module.register_forward_hook(compare(name)) for name, module in chosen.items()]
    try:
        wanted = _hidden(model, sample)
    finally:
        for handle in handles:
            handle.remove()
    return {name: (error / total) ** 0.5 if total else 0.0 for name, (error, total) in squares.items()}, wanted


def _hidden(model: nn.Module, sample: Mapping[str, torch.Tensor]) -> torch.Tensor:
    out = model(**sample)
    hidden = getattr(out, "last_hidden_state", None)
    if hidden is None:
        out = model(**sample, output_hidden_states=True)
        states = getattr(out, "hidden_states", None)
        hidden = states[-1] if states else None
    if not isinstance(hidden, torch.Tensor) or hidden.dim() != 3:
        raise TypeError(f"the model must return a last hidden state [B, S, H], got {type(out).__name__} without one")
    return hidden.float()


def _mask(sample: Mapping[str, torch.Tensor]) -> torch.Tensor:
    mask = sample.get("attention_mask")
    return torch.ones_like(sample["input_ids"]) if mask is None else (mask != 0).long()


def _cosines(wanted: torch.Tensor, got: torch.Tensor, mask: torch.Tensor) -> tuple[float, float]:
    """The smallest cosine of a pooled sequence and of a single token; -1 where a result is not finite."""
    if wanted.shape != got.shape or not bool(torch.isfinite(got[mask.bool()]).all()):
        return -1.0, -1.0
    weights = (mask / mask.sum(1, keepdim=True)).unsqueeze(-1)
    # where: whatever stands at padding, even nan, must not count
    a, b = (torch.where(weights > 0, t.double() * weights, 0.0).sum(1) for t in (wanted, got))
    token = F.cosine_similarity(wanted[mask.bool()].double(), got[mask.bool()].double(), dim=-1)
    return F.cosine_similarity(a, b, dim=-1).min().item(), token.min().item()


def _refusal(
    pooled: float,
    token: float,
    min_cosine: float,
    min_token_cosine: float | None,
    order: list[str],
    errors: Mapping[str, float],
    n_given_back: int,
) -> str:
    worst = ", ".join(f"{name} ({errors[name]:.4f})" for name in order[n_given_back:][:_WORST_SHOWN])
    wanted = f"pooled outputs must keep a cosine of {min_cosine}"
    if min_token_cosine is not None:
        wanted += f" and tokens one of {min_token_cosine}"
    return (
        f"{wanted} with int8 weights, got {pooled:.7f} for the worst sequence and {token:.7f} for the worst token"
        f" with {n_given_back} layers given back; layers by relative error: {worst or 'none'}"
    )


def _bytes(model: nn.Module) -> int:
    """Bytes of the storages of all parameters and buffers, each counted once."""
    storages = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _some(names: Mapping[str, nn.Module]) -> str:
    shown = list(names)[:_WORST_SHOWN]
    return ", ".join(shown) + (", ..." if len(names) > len(shown) else "")
