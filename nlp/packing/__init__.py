"""Run a Hugging Face network on rows without padding: pack its inputs, hook its layers, give back padded outputs.

The network's code stays as it is, but for the few methods in `nlp.packing.replacements`. Calls of the base model are
handed a padded batch [B, S] as one row of all live tokens [1, T] with their own positions; the attention of
`nlp.packing.attention` finds the sequences' limits in the `Batch` in flight; a hook on the stack of layers gives its
output back as [B, S, C], zeros at padding. Heads, poolers and losses see what they always saw.
"""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from common_models.modes import exporting
from nlp.packing import attention
from nlp.packing.architectures import Parts, network_of, positions
from nlp.packing.forward import wrap, wrapped_by
from nlp.packing.passes import (
    RUNNING,
    Batch,
    Counts,
    Pass,
    batch_of,
    counts_of,
    fill_cache,
    in_flight,
    is_fresh,
    new_cache,
    padded_state,
    restarts,
    with_counts,
)
from nlp.packing.replacements import replace
from nlp.prune.policy import Policy
from nlp.prune.removal import Removal

_FIRST_TOKEN_HEADS = ("ForSequenceClassification", "ForMultipleChoice", "ForNextSentencePrediction")
# Norms that base models apply after their last layer.
_FINAL_NORMS = ("norm", "final_norm", "ln_f")
# Inputs with a value for each token of the batch, packed like the ids.
_PER_TOKEN = ("input_ids", "inputs_embeds", "token_type_ids", "position_ids", "bbox", "task_type_ids")
_PACKED = (*_PER_TOKEN, "attention_mask")
# Networks with a head that run now, innermost last. Of this thread or task.
_HEADS: ContextVar[tuple[_Head, ...]] = ContextVar("trisparse_nlp_heads", default=())


@dataclass(frozen=True)
class _Head:
    """A pass of a network with a head.

    Attributes:
        owner: whose hooks began it.
        last: how many of the last columns the head reads; 0 for all of them.
        counts: what the base model's pass in it told.
    """

    owner: Packing
    last: int = 0
    counts: Counts | None = None


class Packing:
    """The hooks of one network.

    Args:
        parts: of the network.
        policy: which tokens go on from layer to layer; None for all.
        restore: where pruned, give every input token an output: its state when it left, or its group's.
        task: what the outputs are for, as `accelerate` takes it.
    """

    def __init__(
        self, model: nn.Module, parts: Parts, policy: Policy | None = None, restore: bool = False, task: str = "auto"
    ) -> None:
        self.parts = parts
        # Padded on the left, that head reads a padding token's state, which only a padded pass computes.
        causal = parts.architecture.causal or _is_decoder(parts.base)
        network = network_of(model)
        pooled = getattr(parts.base, "pooler", None) is not None
        pooled = pooled or type(network).__name__.endswith(_FIRST_TOKEN_HEADS)
        self.reads_first = not causal and (pooled if policy is None else task == "cls")
        if policy is not None:
            policy.check(parts.n_calls, causal)
        self.policy = policy
        self.restore = restore
        self.task = task
        self._signature = inspect.signature(parts.base.forward)
        self._forwards = [wrap(parts.base, self._run_base)]
        heads = {id(each): each for each in (network, model) if each is not parts.base}
        self._forwards += [wrap(each, self._run_head) for each in heads.values()]
        self._handles: list[RemovableHandle] = []
        if parts.stack is not parts.base:
            self._handles.append(parts.stack.register_forward_hook(self._give_back))
        elif isinstance(pooler := getattr(parts.base, "pooler", None), nn.Module):
            self._handles.append(pooler.register_forward_pre_hook(self._before_pooler))
        if policy is not None:
            self._handles += [
                layer.register_forward_pre_hook(self._between, with_kwargs=True) for layer in parts.layers
            ]
            if parts.architecture.needs_all_rows:
                norm = parts.base.get_submodule(parts.architecture.needs_all_rows)
                self._handles.append(norm.register_forward_hook(_all_rows))
        self._replaced = replace(parts)
        configs: list[Any] = [getattr(module, "config", None) for module in parts.base.modules()]
        self._configs = list({id(c): c for c in configs if hasattr(c, "_attn_implementation_internal")}.values())
        self._attention = attention.of(parts.architecture)
        self._warned: set[str] = set()
        self._n = parts.n_calls
        self._rest = next(
            (name for name, p in self._signature.parameters.items() if p.kind is inspect.Parameter.VAR_KEYWORD), None
        )

    def remove(self) -> None:
        """Take all hooks off the network."""
        for forward in self._forwards:
            forward.remove()
        for handle in self._handles:
            handle.remove()
        for module, name in self._replaced:
            delattr(module, name)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_signature"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._signature = inspect.signature(type(self.parts.base).forward.__get__(self.parts.base))
        attention.register()  # it may have come from another process

    # The base model: from padded inputs to packed rows, and back.

    def _run_base(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if torch.compiler.is_compiling():  # every number of tokens would be compiled again
            if self.policy is not None:
                raise ValueError("a network that prunes cannot be compiled: the tokens that it removes differ by input")
            return forward(*args, **kwargs)
        before = RUNNING.get()
        begun, call = self._packed(self.parts.base, args, kwargs)
        RUNNING.set((*before, begun))
        try:
            if begun.batch is None:
                output, told = forward(*args, **kwargs), self._padded_counts(begun)
            else:
                output, told = self._finished(begun.batch, forward(**call))
        finally:
            RUNNING.set(before)
        heads = _HEADS.get()
        if heads and heads[-1].owner is self:
            _HEADS.set((*heads[:-1], dataclasses.replace(heads[-1], counts=told)))
        return with_counts(output, told)

    def _packed(self, base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Pass, Any]:
        bound = self._signature.bind(*args, **kwargs)
        call = {**bound.arguments}
        if self._rest is not None:
            call.update(call.pop(self._rest, {}))
        ids, embeds, mask = call.get("input_ids"), call.get("inputs_embeds"), call.get("attention_mask")
        given = ids if ids is not None else embeds
        if given is None or given.ndim < 2:
            return Pass(self, None), None  # the network itself says what is wrong
        if exporting():  # the number of tokens would be this batch's for ever
            if self.policy is not None:
                raise ValueError(
                    "a network that prunes cannot be traced or exported: the tokens that it removes differ by input"
                )
            return Pass(self, None), None
        shape = (given.shape[0], given.shape[1])
        live = mask.to(given.device).bool() if isinstance(mask, Tensor) and mask.shape == shape else None
        batch = batch_of(shape, live, given.device) if live is not None or mask is None else None
        why_not = self._why_padded(base, call, batch, live)
        if why_not or batch is None:
            if self.policy is not None:
                raise ValueError(f"a network that prunes cannot run this pass: {why_not}")
            return Pass(self, None, live, attentions=_wanted(call, base, "output_attentions", False)), None
        architecture = self.parts.architecture
        batch.causal = architecture.causal or _is_decoder(base)
        batch.as_tuple = _wanted(call, base, "return_dict", True) is False
        if batch.as_tuple:
            call["return_dict"] = True
        cached = call.get("past_key_values") is not None or (batch.causal and _wanted(call, base, "use_cache", False))
        if call.get("position_ids") is None:
            call["position_ids"] = positions(architecture, base, ids, shape, given.device)
        elif architecture.causal and mask is None and not cached:
            # transformers' own rule: without mask and cache, positions that begin anew begin another sequence.
            batch.parts = restarts(call["position_ids"], shape)
            if batch.parts is not None and self.policy is not None:
                raise ValueError(
                    "a network that prunes cannot run this pass: position_ids begin anew within a row, which makes "
                    "several sequences of it; give each its own row"
                )
        for name in _PER_TOKEN:
            if call.get(name) is not None:
                call[name] = batch.pack(call[name].expand(*shape, *call[name].shape[2:]))
        if call["position_ids"] is None:
            del call["position_ids"]
        call["attention_mask"] = None
        if self.policy is not None:
            if not batch.empty:
                column = batch.index % shape[1]
                reads = () if self.task != "cls" else ("recent:1",) if batch.causal else ("cls",)
                final = next((norm for name in _FINAL_NORMS if (norm := getattr(base, name, None)) is not None), None)
                batch.removal = Removal(
                    self.policy, self.parts.n_calls, batch.causal, batch.offsets, column, self.restore, reads, final
                )
            if "use_cache" in self._signature.parameters:
                call["use_cache"] = False
        elif cached:
            call["past_key_values"] = new_cache(batch, call.get("past_key_values"), base.config)
        return Pass(self, batch), call

    def _why_padded(self, base: nn.Module, call: dict[str, Any], batch: Batch | None, live: Tensor | None) -> str:
        """Why a pass must run on padded rows; empty where it can be packed."""
        own = self._attention
        other = next((c._attn_implementation for c in self._configs if c._attn_implementation != own), own)
        if other != own:
            why = f"attention was set to {other!r}, which knows no packed rows"
            self._warn(f"{why}: model.set_attn_implementation({own!r}) sets it back")
            return why
        if _wanted(call, base, "output_attentions", False):
            why = "output_attentions asks for attention matrices, which packed rows never have"
            self._warn(why)
            return why
        if base.training and _has_attention_dropout(base):
            return "in training mode with attention dropout (model.eval(), or set its attention dropout to 0)"
        if base.training and any(getattr(each, "gradient_checkpointing", False) for each in base.modules()):
            return "with gradient checkpointing, which runs layers again outside of the pass"
        if call.get("encoder_hidden_states") is not None:
            return "encoder_hidden_states were given"
        if _wanted(call, base, "output_router_logits", False):
            return "output_router_logits asks for a row of every token, padding included"
        ids = call.get("input_ids")
        if getattr(base.config, "token_dropout", False) and ids is not None:
            if bool((ids == getattr(base.config, "mask_token_id", None)).any()):
                return "token_dropout scales the tokens of each row by its masks"
        given = ids if ids is not None else call["inputs_embeds"]
        for name, value in call.items():
            if name not in _PACKED and isinstance(value, Tensor) and value.shape[:2] == given.shape[:2]:
                return f"{name} has a value for each token, which is not known here"
        past = call.get("past_key_values")
        if past is not None and (self.policy is not None or not is_fresh(past)):
            return "a key-value cache was given (see nlp.PrunedCache for generation)"
        if batch is None:
            mask = call["attention_mask"]
            what = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
            return f"attention_mask is {what}, not [B, S]"
        if live is not None and not batch.whole:
            begins = live[:, 1:] & ~live[:, :-1]
            if bool(((begins.sum(1) + live[:, 0]) > 1).any()):
                return "attention_mask has holes between the tokens of a sequence"
            if self.reads_first and bool((live.any(1) & ~live[:, 0]).any()):
                return "a head reads the first column, which is padding in a batch padded on the left"
            heads = _HEADS.get()
            last = heads[-1].last if heads and heads[-1].owner is self else 0
            if last and bool((live.any(1) & ~live[:, -last:].all(1)).any()):
                return "logits of padding are read, in a batch padded on the right (pad prompts on the left)"
        return ""

    def _warn(self, why: str) -> None:
        """Say once for each reason that passes of a network run padded."""
        if self.policy is None and why not in self._warned:
            self._warned.add(why)
            warnings.warn(f"an accelerated network runs padded: {why}", UserWarning, stacklevel=2)

    def _padded_counts(self, begun: Pass) -> Counts | None:
        live = begun.mask
        return None if live is None else counts_of(batch_of((len(live), live.shape[1]), live, live.device), self._n)

    def _finished(self, batch: Batch, output: Any) -> tuple[Any, Counts]:
        """The output of a packed pass as the caller wants it, and what is told of it."""
        if self.parts.stack is self.parts.base:
            output = self._give_back(self.parts.base, (), output)
        if batch.cache is not None:
            output.past_key_values = fill_cache(batch)
        states = getattr(output, "hidden_states", None)
        if states is not None:
            output.hidden_states = tuple(
                None if state is None else padded_state(batch, i, state) for i, state in enumerate(states)
            )
        told = counts_of(batch, self._n)
        return (output.to_tuple() if batch.as_tuple else output), told

    def _give_back(self, stack: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        batch = None if torch.compiler.is_compiling() else in_flight()
        if batch is None:
            return None
        if isinstance(output, Tensor):
            return self._padded(batch, output)
        if isinstance(output, tuple):
            return (self._padded(batch, output[0]), *output[1:])
        output.last_hidden_state = self._padded(batch, output.last_hidden_state)
        return output

    def _before_pooler(self, pooler: nn.Module, args: tuple[Any, ...]) -> Any:
        batch = in_flight()
        return None if batch is None else (self._padded(batch, args[0]), *args[1:])

    def _padded(self, batch: Batch, rows: Tensor) -> Tensor:
        if batch.removal is None or rows.shape[1] == len(batch.index):
            return batch.padded(rows[0])
        return batch.padded(*batch.removal.finished(rows[0]))

    # The layers.

    def _between(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        batch = in_flight()
        if batch is None or batch.removal is None:
            return None
        hidden = batch.removal.before_layer(args[0][0])
        origin = batch.removal.origin
        if origin is not None:
            if kwargs.get("position_embeddings") is not None:
                cos, sin = kwargs["position_embeddings"]
                kwargs = {**kwargs, "position_embeddings": (cos.index_select(1, origin), sin.index_select(1, origin))}
            if kwargs.get("position_ids") is not None:
                kwargs = {**kwargs, "position_ids": kwargs["position_ids"].index_select(1, origin)}
        return (hidden[None], *args[1:]), kwargs

    # The whole network, whose output class is not the base model's.

    def _run_head(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if torch.compiler.is_compiling():
            return forward(*args, **kwargs)
        last = kwargs.get("logits_to_keep", 0)  # `generate` reads the last column, padding or not
        before = _HEADS.get()
        _HEADS.set((*before, _Head(self, last if isinstance(last, int) else 1)))
        try:
            output = forward(*args, **kwargs)
            counts = _HEADS.get()[-1].counts
        finally:
            _HEADS.set(before)
        if before and before[-1].owner is self:  # an adapter around the network
            _HEADS.set((*before[:-1], dataclasses.replace(before[-1], counts=counts)))
        return with_counts(output, counts)


def _all_rows(norm: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
    """The states [1, T, C] of all tokens, zeros for those that left."""
    batch = in_flight()
    # States of tokens that leave pass through the norm alone, [N, C].
    if batch is None or batch.removal is None or output.ndim != 3:
        return None
    rows, origin = batch.removal.finished(output[0])
    if origin is None:
        return rows[None]
    return rows.new_zeros(len(batch.index), rows.shape[1]).index_copy(0, origin, rows)[None]


def _wanted(call: dict[str, Any], base: nn.Module, name: str, default: bool) -> bool:
    """An option of a call, else of the configuration."""
    value = call.get(name)
    return bool(getattr(base.config, name, default) if value is None else value)


def _is_decoder(base: nn.Module) -> bool:
    return bool(getattr(base.config, "is_decoder", False))


def _has_attention_dropout(base: nn.Module) -> bool:
    names = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop", "dropout_rate")
    return any(getattr(base.config, name, 0.0) for name in names)


def is_packed(model: nn.Module) -> bool:
    """Whether a `Packing` runs a network, or the base model inside of it."""
    return any(isinstance(getattr(wrapped_by(module), "__self__", None), Packing) for module in model.modules())
