"""Run a Hugging Face network on rows without padding: pack its inputs, hook its layers, give back padded outputs.

The network's code stays as it is. Hooks on the base model replace a padded batch [B, S] by one row of all live tokens
[1, T] with their own positions; the attention registered in `nlp.attention` finds the sequences' limits in the `Batch`
in flight; a hook on the stack of layers gives its output back as [B, S, C], zeros at padding. Heads, poolers and losses
see what they always saw.
"""

from __future__ import annotations

import inspect
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from common_kernels import pack, unpack
from nlp.architectures import Parts, positions
from nlp.prune.policy import Policy
from nlp.prune.removal import Removal

_FIRST_TOKEN_HEADS = ("ForSequenceClassification", "ForMultipleChoice", "ForNextSentencePrediction")
# Inputs with one value per token of the batch, packed like the ids.
_PER_TOKEN = ("input_ids", "inputs_embeds", "token_type_ids", "position_ids")


@dataclass
class Batch:
    """One forward pass in flight.

    Attributes:
        shape: (B, S) of the padded input.
        index: [T] int64, place b * S + s of each token in it.
        offsets: [B + 1] int64, where each sequence begins among the live tokens.
        causal: a token sees no later one.
        removal: what pruning knows and did; None without a policy.
        position_bias: [1, H, S, S] bias by distance (T5), or None.
        cache: the key-value cache that the pass fills with packed rows, or None.
        as_tuple: the caller wants a tuple and no output class.
    """

    shape: tuple[int, int]
    index: Tensor
    offsets: Tensor
    causal: bool = False
    removal: Removal | None = None
    position_bias: Tensor | None = None
    cache: Any = None
    as_tuple: bool = False

    def live(self) -> Tensor:
        """[B + 1] int64: where each sequence begins among the tokens that live now."""
        return self.offsets if self.removal is None else self.removal.offsets


@dataclass(frozen=True)
class _Pass:
    """A forward pass of a hooked network: packed, or padded as usual where `batch` is None.

    Attributes:
        mask: [B, S] bool of a padded pass over whole sequences, else None.
    """

    owner: Packing
    batch: Batch | None
    mask: Tensor | None = None


# Of this thread or task, innermost.
_RUNNING: ContextVar[tuple[_Pass, ...]] = ContextVar("trisparse_nlp_passes", default=())


def in_flight() -> Batch | None:
    """The packed forward pass that the caller is part of; None where rows are padded as usual."""
    running = _RUNNING.get()
    return running[-1].batch if running else None


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
        pooled = getattr(parts.base, "pooler", None) is not None or type(model).__name__.endswith(_FIRST_TOKEN_HEADS)
        self.reads_first = not causal and (pooled if policy is None else task == "cls")
        self.policy = policy
        self.restore = restore
        self._signature = inspect.signature(parts.base.forward)
        self._handles: list[RemovableHandle] = [
            parts.base.register_forward_pre_hook(self._begin, with_kwargs=True),
            parts.base.register_forward_hook(self._end, always_call=True),
        ]
        if parts.stack is not parts.base:
            self._handles.append(parts.stack.register_forward_hook(self._give_back))
        if policy is not None or parts.architecture.relative_bias:
            self._handles += [
                layer.register_forward_pre_hook(self._between, with_kwargs=True) for layer in parts.layers
            ]
        if model is not parts.base:
            self._handles += [
                model.register_forward_pre_hook(self._forget),
                model.register_forward_hook(self._tell),
            ]
        self._told: ContextVar[tuple[Tensor, Tensor] | None] = ContextVar("trisparse_nlp_told", default=None)

    def remove(self) -> None:
        """Take all hooks off the network."""
        for handle in self._handles:
            handle.remove()

    # The base model: from padded inputs to packed rows, and back.

    def _begin(self, base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        begun, call = self._packed(base, args, kwargs)
        _RUNNING.set((*_RUNNING.get(), begun))
        return None if begun.batch is None else ((), call)

    def _packed(self, base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[_Pass, Any]:
        bound = self._signature.bind(*args, **kwargs)
        call = {**bound.arguments}
        for name, parameter in self._signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                call.update(call.pop(name, {}))
        if _wanted(call, base, "output_attentions", False):
            raise ValueError(
                "output_attentions must be False: a packed network never has the attention matrix; "
                "nlp.restore(model) gives the original, which has"
            )
        ids, embeds, mask = call.get("input_ids"), call.get("inputs_embeds"), call.get("attention_mask")
        given = ids if ids is not None else embeds
        if given is None or given.ndim < 2:
            return _Pass(self, None), None  # the network itself says what is wrong
        why_not = self._why_padded(base, call, given, mask)
        if why_not:
            if self.policy is not None:
                raise ValueError(f"a pruned network cannot run here: {why_not}")
            whole = mask is not None and mask.shape == given.shape[:2]
            return _Pass(self, None, mask.bool() if whole else None), None
        shape = (given.shape[0], given.shape[1])
        mask = (
            torch.ones(shape, dtype=torch.bool, device=given.device) if mask is None else mask.to(given.device).bool()
        )
        architecture = self.parts.architecture
        as_tuple = _wanted(call, base, "return_dict", True) is False
        if as_tuple:
            call["return_dict"] = True
        if call.get("position_ids") is None:
            if (where := positions(architecture, base, ids, mask)) is not None:
                call["position_ids"] = where
        elif call["position_ids"].shape[0] == 1:
            call["position_ids"] = call["position_ids"].expand(shape)
        _, index, offsets = pack(mask, mask)
        for name in _PER_TOKEN:
            if call.get(name) is not None:
                call[name] = call[name].expand(*shape, *call[name].shape[2:]).flatten(0, 1).index_select(0, index)[None]
        call["attention_mask"] = None
        batch = Batch(shape, index, offsets, architecture.causal or _is_decoder(base), as_tuple=as_tuple)
        if self.policy is not None:
            batch.removal = Removal(
                self.policy, self.parts.n_calls, batch.causal, offsets, index % shape[1], self.restore
            )
            if "use_cache" in self._signature.parameters:
                call["use_cache"] = False
        else:
            batch.cache = self._empty_cache(base, call)
        return _Pass(self, batch), call

    def _why_padded(self, base: nn.Module, call: dict[str, Any], given: Tensor, mask: Tensor | None) -> str:
        """Why a pass must run on padded rows; empty where it can be packed."""
        if base.training and _has_attention_dropout(base):
            return "in training mode with attention dropout (model.eval(), or set its attention dropout to 0)"
        if call.get("encoder_hidden_states") is not None:
            return "encoder_hidden_states were given"
        past = call.get("past_key_values")
        if past is not None and (self.policy is not None or not _is_fresh(past)):
            return "a key-value cache was given (see nlp.PrunedCache for generation)"
        if mask is not None:
            if mask.ndim != 2 or mask.shape != given.shape[:2]:
                return f"attention_mask is {list(mask.shape)}, not [B, S]"
            live = mask.bool()
            begins = live[:, 1:] & ~live[:, :-1]
            if bool(((begins.sum(1) + live[:, :1].sum(1)) > 1).any()):
                return "attention_mask has holes between the tokens of a sequence"
            if self.reads_first and bool((live.any(1) & ~live[:, 0]).any()):
                return "a head reads the first column, which is padding in a batch padded on the left"
        return ""

    def _empty_cache(self, base: nn.Module, call: dict[str, Any]) -> Any:
        """The cache that this pass fills, given or made here; None where the caller wants none."""
        if call.get("past_key_values") is not None:
            return call["past_key_values"]
        causal = self.parts.architecture.causal or _is_decoder(base)
        if not causal or not _wanted(call, base, "use_cache", False):
            return None
        from transformers import DynamicCache

        call["past_key_values"] = DynamicCache()
        return call["past_key_values"]

    def _end(self, base: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        running = _RUNNING.get()
        if not running or running[-1].owner is not self:
            return None  # `_begin` refused
        batch = running[-1].batch
        try:
            if output is None:  # the pass failed
                return None
            if batch is None:
                live = running[-1].mask
                told = None if live is None else _counts(Batch(live.shape, *pack(live, live)[1:]), self.parts.n_calls)
                self._told.set(told)
                return _with_counts(output, told)
            if self.parts.stack is base:
                output = self._give_back(base, args, output)
            if batch.cache is not None:
                _unpack_cache(batch)
            states = getattr(output, "hidden_states", None)
            if states is not None:
                output.hidden_states = tuple(_unpack_state(batch, i, state) for i, state in enumerate(states))
            self._told.set(_counts(batch, self.parts.n_calls))
            return _with_counts(output.to_tuple() if batch.as_tuple else output, self._told.get())
        finally:
            _RUNNING.set(running[:-1])

    def _give_back(self, stack: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        batch = in_flight()
        if batch is None:
            return None
        if isinstance(output, Tensor):
            return self._padded(batch, output)
        if isinstance(output, tuple):
            return (self._padded(batch, output[0]), *output[1:])
        output.last_hidden_state = self._padded(batch, output.last_hidden_state)
        return output

    def _padded(self, batch: Batch, rows: Tensor) -> Tensor:
        if batch.removal is None:
            return unpack(rows[0], batch.index, batch.shape)
        rows, origin = batch.removal.finished(rows[0])
        return unpack(rows, batch.index if origin is None else batch.index.index_select(0, origin), batch.shape)

    # The layers.

    def _between(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        batch = in_flight()
        if batch is None:
            return None
        if self.parts.architecture.relative_bias:
            if batch.position_bias is None:
                longest = int(batch.offsets.diff().max()) if batch.shape[0] else 0
                batch.position_bias = layer.layer[0].SelfAttention.compute_bias(longest, longest)  # type: ignore
            # The third argument; handed in, the layer does not compute it for the packed length.
            return (args[0], args[1], batch.position_bias, *args[3:]), kwargs
        assert batch.removal is not None
        hidden = batch.removal.before_layer(args[0][0])
        tables = kwargs.get("position_embeddings")
        if tables is not None and batch.removal.origin is not None:
            cos, sin = tables
            origin = batch.removal.origin
            kwargs = {**kwargs, "position_embeddings": (cos.index_select(1, origin), sin.index_select(1, origin))}
        if kwargs.get("position_ids") is not None and batch.removal.origin is not None:
            kwargs = {**kwargs, "position_ids": kwargs["position_ids"].index_select(1, batch.removal.origin)}
        return (hidden[None], *args[1:]), kwargs

    # The whole network, whose output class is not the base model's.

    def _forget(self, model: nn.Module, args: tuple[Any, ...]) -> None:
        self._told.set(None)

    def _tell(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        told = self._told.get()
        return None if told is None else _with_counts(output, told)


def _wanted(call: dict[str, Any], base: nn.Module, name: str, default: bool) -> bool:
    """An option of a call, else of the configuration."""
    value = call.get(name)
    return bool(getattr(base.config, name, default) if value is None else value)


def _is_decoder(base: nn.Module) -> bool:
    return bool(getattr(base.config, "is_decoder", False))


def _has_attention_dropout(base: nn.Module) -> bool:
    names = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop", "dropout_rate")
    return any(getattr(base.config, name, 0.0) for name in names)


def _is_fresh(cache: Any) -> bool:
    """Whether packed rows may be put into a cache: it is empty and keeps all that it is given."""
    from transformers import DynamicCache

    plain = type(cache) is DynamicCache and not any(getattr(cache, "is_sliding", ()))
    return plain and cache.get_seq_length() == 0


def _unpack_cache(batch: Batch) -> None:
    """Keys and values [1, H, T, D] of a cache as the padded pass leaves them, [B, H, S, D], zeros at padding."""
    for layer in batch.cache.layers:
        for name in ("keys", "values"):
            rows = getattr(layer, name)[0].transpose(0, 1)
            setattr(layer, name, unpack(rows, batch.index, batch.shape).transpose(1, 2))


def _unpack_state(batch: Batch, i: int, state: Tensor) -> Tensor:
    """Hidden state number i, [B, S, C]: the input of layer i, or of the last one its output."""
    if state.shape[:2] == batch.shape and (i > 0 or batch.shape[0] != 1):
        return state
    history = (
        [batch.index]
        if batch.removal is None
        else [
            batch.index if origin is None else batch.index.index_select(0, origin) for origin in batch.removal.history
        ]
    )
    fitting = [index for index in history[max(i - 1, 0) : i + 1] or history[-1:] if len(index) == state.shape[1]]
    return unpack(state[0], fitting[0], batch.shape)


Counts = tuple[Tensor, Tensor]


def _counts(batch: Batch, n_layers: int) -> Counts:
    """Tokens alive in each layer and at the end, [n_layers + 1, B]; columns of those at the end, [B, K], -1 filled."""
    if batch.removal is None:
        kept = batch.offsets.diff().expand(n_layers + 1, -1)
        column = batch.index % max(batch.shape[1], 1)
    else:
        kept, column = batch.removal.kept(), batch.removal.columns()
    lengths = kept[-1]
    longest = int(lengths.max()) if len(lengths) else 0
    place = torch.arange(longest, device=column.device)
    token_index = column.new_full((len(lengths), longest), -1)
    token_index[place < lengths[:, None]] = column
    return kept, token_index


def _with_counts(output: Any, counts: Counts | None) -> Any:
    """The output with attributes `kept` and `token_index`, where it is a class that has attributes."""
    if counts is not None and hasattr(output, "to_tuple"):
        object.__setattr__(output, "kept", counts[0])
        object.__setattr__(output, "token_index", counts[1])
    return output
