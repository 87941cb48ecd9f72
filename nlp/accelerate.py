"""A Hugging Face network, faster: no padding, fast layers, and where wanted fewer tokens."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from common_models.errors import ArgumentError
from nlp.linear.optimize import Optimized, optimize
from nlp.packing import Packing, attention, is_packed
from nlp.packing.architectures import Parts, parts_of
from nlp.prune.policy import Policy

Network = TypeVar("Network", bound=nn.Module)

TASKS = ("auto", "pool", "cls", "token")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Heads that read the state of every token.
_TOKEN_HEADS = (
    "ForTokenClassification", "ForQuestionAnswering", "ForMaskedLM", "ForPreTraining", "ForCausalLM", "LMHeadModel",
)  # fmt: skip
# Those that read the first one, or in causal networks the last.
_ONE_TOKEN_HEADS = ("ForSequenceClassification", "ForMultipleChoice", "ForNextSentencePrediction")


@dataclass(frozen=True)
class Acceleration:
    """What was done to a network; its attribute `acceleration`.

    Attributes:
        original: the network it was made from, untouched.
        dtype: of the parameters when it was made.
        prune: the policy that removes tokens, or None.
        task: what the outputs are for.
        layers: which linear layers were replaced and which activations were fused.
    """

    original: nn.Module
    dtype: torch.dtype
    prune: Policy | None
    task: str
    layers: Optimized
    packing: Packing


def accelerate(
    model: Network, prune: Policy | None = None, dtype: torch.dtype | str = "auto", task: str = "auto"
) -> Network:
    """The same network without padding: ordinary padded inputs in, its own output class out.

    Inputs are packed once, before the first layer, and the output of the last is given back padded, with zeros at
    padding, so that heads, poolers and losses work as before. Without `prune` and in the model's own dtype the answers
    are those of the padded network up to rounding; a sequence's answer does not depend on its batch. Outputs carry
    `kept` (int64 [layers + 1, B], tokens alive in each layer and at the end) and `token_index` (int64 [B, K], columns
    of those at the end, -1 filled).

    The result is another object of the same class which shares the parameters' memory where the dtype stays: training
    it trains the original. `restore` gives the original.

    Args:
        model: a Hugging Face network of one of `nlp.packing.architectures.ARCHITECTURES`, with any head.
        prune: which tokens go on from layer to layer (`Cascade`, `Threshold`, `Mass`, `Merge`); None for all.
        dtype: "auto" keeps the model's own; "fastest" is bf16 where the processor multiplies it; "fp32", "fp16",
            "bf16" or a torch dtype.
        task: with `prune`, what the outputs are for: "pool" (dropped tokens are zeros, to be left out of a mean; a
            pooler finds zeros where the policy drops the first token), "cls" (only the first, or last, token is read),
            "token" (every input token has an output: its state when it left) or "auto", by the model's head.

    Raises:
        TypeError: not a Hugging Face network, a policy that is none, a dtype that is none.
        ValueError: an unknown architecture, dtype or task; pruning where the architecture does not allow it, or a task
            that does not fit the model's head.
        ImportError: transformers is missing or older than 5.

    Passes that cannot be packed run padded as the original would: training with attention dropout or gradient
    checkpointing, what torch traces or exports, decoding steps on a filled cache, masks with holes or of four axes, and
    left padding where a pooler or head reads the first column. `output_attentions` is refused. What reads the states of
    padding finds zeros: in a causal loss on a batch that is padded on the left, leave out the label of each row's first
    token (-100).
    """
    attention.register()
    parts = _parts(model)
    if prune is not None and not isinstance(prune, Policy):
        raise TypeError(f"prune must be a policy such as nlp.Cascade, or None, got {type(prune).__name__}")
    if prune is not None and not parts.architecture.can_prune:
        raise ArgumentError(
            "prune", f"must be None for {type(model).__name__}: its attention depends on distances in rows"
        )
    task = _task(model, prune, task)
    faster = _sharing_copy(model, _dtype(dtype, model))
    layers = optimize(faster)
    _set_attention(faster, _attention_of(parts))
    packing = Packing(faster, parts_of(faster), prune, task == "token", task)
    chosen = next((p.dtype for p in faster.parameters()), torch.float32)
    faster.acceleration = Acceleration(model, chosen, prune, task, layers, packing)  # type: ignore[assignment]
    return faster


def restore(model: nn.Module) -> nn.Module:
    """The network that `accelerate` was given, the very object; any other network as it is."""
    made = getattr(model, "acceleration", None)
    return made.original if isinstance(made, Acceleration) else model


@contextmanager
def packed(model: Network) -> Iterator[Network]:
    """Run `model` itself without padding inside a `with` block, in its own dtype; afterwards it is as it was.

    Raises:
        TypeError, ValueError, ImportError: as `accelerate`.
    """
    attention.register()
    parts = _parts(model)
    before = _set_attention(model, _attention_of(parts))
    packing = Packing(model, parts)
    try:
        yield model
    finally:
        packing.remove()
        for config, name in before:
            config._attn_implementation_internal = name


def _parts(model: nn.Module) -> Parts:
    """The parts of a network that is not accelerated yet."""
    parts = parts_of(model)
    if is_packed(model):
        raise ValueError("model must not be accelerated or packed already: nlp.restore(model) gives the original")
    return parts


def _attention_of(parts: Parts) -> str:
    return attention.ADDITIVE if parts.architecture.own_attention else attention.NAME


def _task(model: nn.Module, prune: Policy | None, task: str) -> str:
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    name = type(model).__name__
    read = ""  # by the head
    if name.endswith(_TOKEN_HEADS) or (
        name.endswith(_ONE_TOKEN_HEADS) and getattr(model.config, "classifier_pooling", "cls") == "mean"
    ):
        read = "token"
    elif name.endswith(_ONE_TOKEN_HEADS):
        read = "cls"
    if task == "auto":
        return read or "pool"
    if prune is not None and task != "token" and read not in ("", task):
        tokens = "every token" if read == "token" else "one token"
        allowed = "'token'" if read == "token" else "'cls' or 'token'"
        raise ValueError(f"task must be {allowed} for {name}, whose head reads {tokens}, got {task!r}")
    return task


def _dtype(dtype: torch.dtype | str, model: nn.Module) -> torch.dtype | None:
    """The dtype to convert to; None to leave it."""
    if isinstance(dtype, str):
        if dtype == "auto":
            return None
        if dtype == "fastest":
            device = next((p.device for p in model.parameters()), torch.device("cpu"))
            return torch.bfloat16 if multiplies_bf16(device) else None
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be auto, fastest, {', '.join(DTYPES)} or a torch dtype, got {dtype!r}")
        dtype = DTYPES[dtype]
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a name or a torch dtype, got {type(dtype).__name__}")
    if dtype not in (*DTYPES.values(), torch.float64):
        raise ValueError(
            f"dtype must be float16, bfloat16, float32 or float64, got {str(dtype).removeprefix('torch.')}"
        )
    return dtype


def multiplies_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bf16 faster than fp32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # oneDNN alone does not tell: it counts CPUs that only convert bf16.
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return device.type == "cpu" and supported is not None and bool(supported())


def _sharing_copy(model: Network, dtype: torch.dtype | None) -> Network:
    """Another object of the same class whose parameters lie in the same memory, or are converted."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        data = parameter.detach() if dtype is None else parameter.detach().to(dtype)
        memo[id(parameter)] = nn.Parameter(data, requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer
    return copy.deepcopy(model, memo)


def _set_attention(model: nn.Module, name: str) -> list[tuple[Any, str]]:
    """Set the attention of every configuration in a network; what each one had."""
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    before = [
        (c, c._attn_implementation_internal) for c in configs.values() if hasattr(c, "_attn_implementation_internal")
    ]
    for config, _ in before:
        config._attn_implementation_internal = name
    return before
