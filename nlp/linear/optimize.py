"""Fast layers for inference on a CPU, put in place of the slow ones of a Hugging Face model."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from common_models.modes import evaluating, is_hooked, owns_weight
from nlp.linear.packed import ACTIVATIONS, FusedActivation, Fusion, PackedLinear, PackedMixin

# Where an activation directly follows a linear layer in the feed-forward modules of transformers, and nothing else
# reads the layer: (linear, activation, the method that runs them). What a module really does is tried by `_agrees`.
_FUSIBLE: tuple[tuple[str, str, str], ...] = (
    ("dense", "intermediate_act_fn", "forward"),  # BERT and its descendants
    ("lin1", "activation", "forward"),  # DistilBERT
    ("ffn", "activation", "ff_chunk"),  # ALBERT
    ("c_fc", "act", "forward"),  # GPT-2
    ("wi", "act", "forward"),  # T5
    ("wi_0", "act", "forward"),  # T5 with gates
    ("gate_proj", "act_fn", "forward"),  # Llama, Mistral, Qwen
)


@dataclass(frozen=True)
class Optimized:
    """What `optimize` did.

    Attributes:
        linears: names of the linear layers that were replaced.
        fused: names of those that now end in their activation.
        left: why, by name, for each linear layer that was left alone.
    """

    linears: tuple[str, ...]
    fused: tuple[str, ...]
    left: dict[str, str] = field(default_factory=dict)

    @property
    def skipped(self) -> tuple[str, ...]:
        """Names of the linear layers that were left alone."""
        return tuple(self.left)


def optimize(model: nn.Module) -> Optimized:
    """Replace, in place, the linear layers of `model` by ones that are faster on a CPU without gradients.

    Every plain `torch.nn.Linear` and GPT-2's `Conv1D` becomes a subclass of itself with the same Parameter objects
    under the same names: `state_dict`, tied weights, saving, training and moves to other devices and dtypes stay as
    they were, and another model that shares the parameters is not touched. An activation that directly follows a layer
    in a known feed-forward module is computed together with it, after a trial on random numbers has shown that the
    module still means the same, and for as long as nothing comes between the two: an adapter around the layer or a hook
    on it finds the plain product.

    Left alone, and listed in `left`: layers with hooks, subclasses and parametrised layers. A `model` that is itself
    a linear layer is left alone too. The first fast call in float32 or bfloat16 lays out a second copy of the weight,
    as large as the weight itself, which lives as long as the layer. Optimising twice changes nothing.

    Raises:
        TypeError: a model that is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    linears: list[str] = []
    left: dict[str, str] = {}
    made: dict[int, nn.Module] = {}
    for parent_name, parent in list(model.named_modules()):
        for name, child in list(parent._modules.items()):
            if not isinstance(child, nn.Linear) and not is_conv1d(child):
                continue
            path = f"{parent_name}.{name}" if parent_name else name
            if isinstance(child, PackedMixin):
                continue
            if id(child) not in made:
                replacement = _replacement(child)
                if isinstance(replacement, str):
                    left[path] = replacement
                    continue
                made[id(child)] = replacement
            parent._modules[name] = made[id(child)]
            linears.append(path)
    fused: list[str] = []
    agreed: dict[object, bool] = {}
    places = Counter(id(child) for module in model.modules() for child in module._modules.values())
    for name, module in model.named_modules():
        linear_name = _fuse(module, agreed, places)
        if linear_name is not None:
            fused.append(f"{name}.{linear_name}".lstrip("."))
    return Optimized(tuple(linears), tuple(fused), left)


def is_conv1d(module: nn.Module | None) -> bool:
    """Whether a module is GPT-2's linear layer."""
    # Only a process that has loaded transformers can hold one.
    loaded = sys.modules.get("transformers.pytorch_utils")
    return loaded is not None and isinstance(module, loaded.Conv1D)


def _replacement(layer: nn.Module) -> nn.Module | str:
    """The fast layer with the parameters of `layer`; where that could change what the layer does, why."""
    if not owns_weight(layer):
        return "has hooks or a forward of its own" if is_hooked(layer) else "its weight is computed from other tensors"
    if type(layer) is nn.Linear:
        return PackedLinear(layer)
    if is_conv1d(layer):
        from nlp.linear.packed_conv1d import Conv1D, PackedConv1D

        if type(layer) is Conv1D:
            return PackedConv1D(layer)
    return f"is of the subclass {type(layer).__name__}"


class _Method(nn.Module):
    """Runs one method of a module as its own forward, so that its parameters can be swapped for a trial."""

    def __init__(self, module: nn.Module, method: str) -> None:
        super().__init__()
        self.module = module
        self.method = method

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = getattr(self.module, self.method)(x)
        return result


def _fuse(module: nn.Module, agreed: dict[object, bool], places: Mapping[int, int]) -> str | None:
    """Move the activation of a known feed-forward module into a linear layer, and name that layer; None if left."""
    kind = type(module)
    if not kind.__module__.startswith("transformers.") or is_hooked(module):
        return None
    for linear_name, activation_name, method in _FUSIBLE:
        linear = getattr(module, linear_name, None)
        activation = getattr(module, activation_name, None)
        if not isinstance(linear, PackedMixin) or linear.activation != "none" or not callable(activation):
            continue
        if places[id(linear)] > 1:  # another module may use the layer without the activation
            continue
        if isinstance(activation, nn.Module) and (is_hooked(activation) or list(activation.parameters())):
            continue
        name = _activation_name(activation)
        if name is None or not hasattr(module, method):
            continue
        key = (kind, linear_name, type(activation), name)
        if key not in agreed:
            agreed[key] = _agrees(module, linear, activation_name, name, method)
        if agreed[key]:
            linear.activation = name
            linear.fusion = Fusion(module, linear_name, activation_name, linear, activation)
            setattr(module, activation_name, FusedActivation(linear.fusion).train(module.training))
            return linear_name
    return None


def _activation_name(activation: Callable[[torch.Tensor], torch.Tensor]) -> str | None:
    """The name in ACTIVATIONS whose values `activation` has, judged on numbers from -12 to 12; None if none has."""
    x = torch.cat([torch.linspace(-12, 12, 4801, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    for name, meaning in ACTIVATIONS.items():
        try:
            got = activation(x.clone())
        except (RuntimeError, TypeError, ValueError):
            return None
        if name != "none" and got.shape == x.shape and torch.allclose(got, meaning(x), rtol=1e-9, atol=1e-12):
            return name
    return None


def _agrees(module: nn.Module, linear: PackedMixin, activation_name: str, name: str, method: str) -> bool:
    """Whether `module` gives the same values, on random weights and input, once its activation has moved."""
    activation = getattr(module, activation_name)
    weight = linear.get_parameter("weight")
    width = weight.shape[0 if linear._transposed else 1]
    generator = torch.Generator().manual_seed(0)
    trial = _Method(module, method)
    weights = {
        key: torch.randn(p.shape, generator=generator, dtype=torch.float64) / max(1, p.shape[-1]) ** 0.5
        for key, p in trial.named_parameters()
    }
    x = torch.randn(1, 9, width, generator=generator, dtype=torch.float64)
    try:
        with torch.no_grad(), evaluating(module):
            before = torch.func.functional_call(trial, weights, (x,))
            linear.activation = name
            setattr(module, activation_name, nn.Identity())
            after = torch.func.functional_call(trial, weights, (x,))
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return False
    finally:
        linear.activation = "none"
        _restore(module, activation_name, activation)
    return before.shape == after.shape and torch.allclose(before, after, rtol=1e-9, atol=1e-9)


def _restore(module: nn.Module, name: str, value: object) -> None:
    if not isinstance(value, nn.Module):
        module._modules.pop(name, None)  # a function cannot take the place of a registered module
    setattr(module, name, value)
