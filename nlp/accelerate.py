"""A Hugging Face network, faster: no padding, fast layers, and where wanted fewer tokens."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn

from common_models import acceleration, dtypes
from common_models.acceleration import restore as restore
from common_models.dtypes import multiplies_bf16 as multiplies_bf16
from common_models.errors import ArgumentError
from nlp.linear.optimize import Optimized, optimize
from nlp.packing import Packing, attention, is_packed
from nlp.packing.architectures import Parts, network_of, parts_of
from nlp.prune.policy import Policy
from nlp.sentences import Handed, is_sentence_model, places_of, task_of

Network = TypeVar("Network", bound=nn.Module)

TASKS = ("auto", "pool", "cls", "token")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Heads that read the state of every token.
_TOKEN_HEADS = (
    "ForTokenClassification", "ForQuestionAnswering", "ForMaskedLM", "ForPreTraining", "ForCausalLM", "LMHeadModel",
)  # fmt: skip
# Those that read the first one, or in causal networks the last.
_ONE_TOKEN_HEADS = ("ForSequenceClassification", "ForMultipleChoice", "ForNextSentencePrediction")


@dataclass(frozen=True, kw_only=True)
class Acceleration(acceleration.Acceleration):
    """What was done to a network; its attribute `acceleration`.

    Attributes:
        changed: names of the linear layers that were replaced by faster ones.
        left: why, by name, for each linear layer that was not.
        prune: the policy that removes tokens, or None.
        task: what the outputs are for.
        layers: which linear layers were replaced and which activations were fused.
        packing: what runs the network without padding; in a model of sentence-transformers, its first network.
    """

    prune: Policy | None
    task: str
    layers: Optimized = field(repr=False)
    packing: Packing = field(repr=False, compare=False)

    def summary(self) -> str:
        """One line: what was done."""
        pruned = "keeps all tokens" if self.prune is None else f"{self.prune} removes tokens (task {self.task!r})"
        return (
            f"runs without padding in {dtypes.name_of(self.dtype)}; {len(self.changed)} linear layers changed, "
            f"{len(self.layers.fused)} of them with their activation; {pruned}"
        )


def accelerate(
    model: Network, *, prune: Policy | None = None, dtype: torch.dtype | str | None = None, task: str = "auto"
) -> Network:
    """The same network without padding: ordinary padded inputs in, its own output class out.

    Inputs are packed once, before the first layer, and the output of the last is given back padded, with zeros at
    padding, so that heads, poolers and losses work as before. Without `prune` and in the model's own dtype the answers
    are those of the padded network up to rounding; a sequence's answer does not depend on its batch. Outputs carry
    `kept` (int64 [layers + 1, B], tokens alive in each layer and at the end) and `token_index` (int64 [B, K], columns
    of those at the end, -1 filled).

    The result is another object of the same class which shares the parameters' memory where the dtype stays. A network
    in training mode is accepted: its result passes gradients on, and training it trains the original, whose memory it
    shares. `restore` gives the original.

    Args:
        model: a Hugging Face network of one of `nlp.packing.architectures.ARCHITECTURES`, with any head and adapters
            (peft); or a SentenceTransformer, CrossEncoder, SparseEncoder or MultiVectorEncoder of sentence-transformers
            around such networks, whose `encode`, `predict` and `rank` go on as they were.
        prune: which tokens go on from layer to layer (`Cascade`, `Threshold`, `Mass`, `Merge`); None for all.
        dtype: None keeps the model's own; "auto" is the fastest that the model's device computes (bf16 where it
            multiplies bf16); else "fp32", "fp16", "bf16", "fp64" or a torch dtype.
        task: with `prune`, what the outputs are for: "pool" (dropped tokens are zeros, to be left out of a mean; a
            pooler finds zeros where the policy drops the first token), "cls" (only the first, or last, token is read),
            "token" (every input token has an output: its state when it left) or "auto", by the model's head.

    Raises:
        TypeError: neither of the two; a prune that is not a policy; a dtype of another type.
        ValueError: a network that is accelerated already; an unknown architecture, dtype or task; pruning where the
            architecture does not allow it, or a task that does not fit the model's head.
        ImportError: transformers is missing or older than 5.

    Passes that cannot be packed run padded as the original would: training with attention dropout or gradient
    checkpointing, what torch traces, compiles or exports, decoding steps on a filled cache, masks with holes or of four
    axes, left padding where a pooler or head reads the first column, right padding where `generate` reads the last;
    and with a warning, once, `output_attentions` and a network whose attention was set to another
    (`set_attn_implementation`). Without mask and cache, `position_ids` that begin anew within a row begin another
    sequence, as in transformers. Adapters (peft) may be put on before or after. Copies and pickles are accelerated
    networks of their own. What reads the states of
    padding finds zeros: in a causal loss on a batch that is padded on the left, leave out the label of each row's first
    token (-100).

    Example:
        >>> import nlp
        >>> model = nlp.load_pretrained("all-minilm-l6-v2")
        >>> tokenizer = nlp.load_tokenizer("all-minilm-l6-v2")
        >>> batch = tokenizer(["one text", "and a longer text"], padding=True, return_tensors="pt")
        >>> nlp.accelerate(model)(**batch).kept[0]  # tokens of each text, padding not counted
        tensor([4, 6])
    """
    attention.register()
    if prune is not None and not isinstance(prune, Policy):
        raise TypeError(f"prune must be a policy such as nlp.Cascade, or None, got {type(prune).__name__}")
    if is_sentence_model(model):
        return _sentence_model(model, prune, dtype, task)
    parts = _parts(model)
    if prune is not None and not parts.architecture.can_prune:
        raise ArgumentError(
            "prune", f"must be None for {type(model).__name__}: its attention depends on distances in rows"
        )
    task = _task(model, prune, task)
    chosen = dtypes.resolve(dtype, model, DTYPES)
    faster = _sharing_copy(model, None if dtype is None else chosen)
    layers = optimize(faster)
    _set_attention(faster, attention.of(parts.architecture))
    packing = Packing(faster, parts_of(faster), prune, task == "token", task)
    faster.acceleration = Acceleration(  # type: ignore[assignment]
        dtype=chosen,
        changed=list(layers.linears),
        left=dict(layers.left),
        original=model,
        prune=prune,
        task=task,
        layers=layers,
        packing=packing,
    )
    return faster


def _sentence_model(model: Network, prune: Policy | None, dtype: torch.dtype | str | None, task: str) -> Network:
    """A model of sentence-transformers with its networks accelerated; its other steps keep their dtype."""
    acceleration.check_not_accelerated(model)
    places = places_of(model)
    own = dtypes.own(model)
    if prune is not None and task == "auto":
        task = task_of(model) or "auto"
    made = {place.full: accelerate(place.network, prune=prune, dtype=dtype, task=task) for place in places}
    faster = _sharing_copy(model, None, leave=[place.network for place in places])
    for place in places:
        network = made[place.full]
        step = faster.get_submodule(place.path) if place.path else faster
        setattr(step, place.name, network)
        done: Any = network.acceleration
        handed = Handed(own if done.dtype != own else None, prune is not None and done.task == "pool")
        if handed.dtype is not None or handed.dropped:
            step.register_forward_hook(handed)
    first: Any = made[places[0].full].acceleration
    each: list[tuple[str, Any]] = [(name, network.acceleration) for name, network in made.items()]
    layers = Optimized(
        tuple(f"{name}.{one}" for name, done in each for one in done.layers.linears),
        tuple(f"{name}.{one}" for name, done in each for one in done.layers.fused),
        {f"{name}.{one}": why for name, done in each for one, why in done.layers.left.items()},
    )
    faster.acceleration = dataclasses.replace(
        first, changed=list(layers.linears), left=dict(layers.left), layers=layers, original=model
    )
    return faster


@contextmanager
def packed(model: Network) -> Iterator[Network]:
    """Run `model` itself without padding inside a `with` block, in its own dtype; afterwards it is as it was.

    Raises:
        TypeError, ValueError, ImportError: as `accelerate`.
    """
    attention.register()
    parts = _parts(model)
    before = _set_attention(model, attention.of(parts.architecture))
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
    acceleration.check_not_accelerated(model)
    if is_packed(model):
        raise ValueError("model must not be accelerated already: a part of it is, or it runs within nlp.packed")
    return parts


def _task(model: nn.Module, prune: Policy | None, task: str) -> str:
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    name = type(network_of(model)).__name__
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


def _sharing_copy(model: Network, dtype: torch.dtype | None, leave: Sequence[nn.Module] = ()) -> Network:
    """Another object of the same class whose parameters lie in the same memory, or are converted.

    Args:
        leave: modules that the copy shares.
    """
    memo: dict[int, Any] = {id(module): module for module in leave}
    for parameter in model.parameters():
        converted = dtype is not None and parameter.is_floating_point()
        data = parameter.detach().to(dtype) if converted else parameter.detach()
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
