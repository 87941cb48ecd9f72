"""Pruned passes the slow way: one sequence, dense matrices, dead tokens masked and not removed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nlp.packing.architectures import parts_of

NAME = "dense_oracle"


@dataclass
class State:
    """One sequence between two layers: n tokens, of which some are dead.

    Attributes:
        group: [n], the living token that stands for each.
        attention: of each layer so far, [H, n, n], zero wherever a dead token takes part.
        keys: of the last layer, [n, D], mean over heads.
    """

    n: int
    causal: bool
    alive: Tensor
    group: Tensor
    attention: list[Tensor] = field(default_factory=list)
    keys: Tensor | None = None
    alive_in: list[int] = field(default_factory=list)
    last: Tensor | None = None  # [n, C], the last state of each token while it lived

    def received(self, accumulate: bool) -> Tensor:
        """[n] fp64: attention received from queries alive then."""
        layers = self.attention if accumulate else self.attention[-1:]
        return torch.stack([a.double().sum((0, 1)) for a in layers]).sum(0)

    @property
    def sizes(self) -> Tensor:
        return torch.bincount(self.group[self.group >= 0], minlength=self.n)


# From a state between layers (the next from 0) to the new groups [n]; a token of group -1 is dropped.
Choice = Callable[[int, State], Tensor]

_STATE: list[State] = []


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float | None = None,
    is_causal: bool | None = None, sliding_window: int | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    state = _STATE[-1]
    groups = query.shape[1] // key.shape[1]
    q, k, v = query[0], key[0].repeat_interleave(groups, 0), value[0].repeat_interleave(groups, 0)
    scores = q @ k.transpose(1, 2) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    # A window counts the tokens that are left.
    rank = state.alive.cumsum(0)
    distance = rank[:, None] - rank[None, :]
    seen = state.alive[None, :].expand(state.n, -1).clone()
    if getattr(module, "is_causal", state.causal) if is_causal is None else is_causal:
        seen &= distance >= 0
    if sliding_window is not None:
        seen &= distance.abs() < sliding_window
    scores = (scores + state.sizes.clamp(min=1).to(scores.dtype).log()).masked_fill(~seen, -math.inf)
    probabilities = torch.nan_to_num(scores.softmax(-1)) * state.alive[:, None]
    state.attention.append(probabilities)
    state.keys = key[0].mean(0)
    return (probabilities @ v).transpose(0, 1)[None], None


def pruned(model: Any, ids: Tensor, choose: Choice, positions: Tensor | None = None) -> tuple[Tensor, State]:
    """The last state [n, C] of a padded network on one sequence [n] at positions [n], pruned by `choose`.

    Of dead tokens the row means nothing; of merged ones it is not that of their group.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
    parts = parts_of(model)
    n = len(ids)
    state = State(n, parts.architecture.causal, torch.ones(n, dtype=torch.bool), torch.arange(n))

    def before(layer: nn.Module, args: Any) -> Any:
        number = len(state.attention)
        hidden = args[0]
        if number:
            state.last = hidden[0].clone() if state.last is None else hidden[0].where(state.alive[:, None], state.last)
            group = choose(number, state)
            old = state.sizes
            hidden = hidden.clone()
            for token in range(n):
                members = [i for i in range(n) if state.alive[i] and group[i] == token]
                if len(members) > 1:
                    weight = old[members].to(hidden.dtype)
                    hidden[0, token] = (args[0][0, members] * weight[:, None]).sum(0) / weight.sum()
            state.group = torch.where(state.group >= 0, group[state.group.clamp(min=0)], -1)
            state.alive = state.alive & (group == torch.arange(n))
        state.alive_in.append(int(state.alive.sum()))
        return (hidden, *args[1:])

    config_before = model.config._attn_implementation_internal
    handles = [layer.register_forward_pre_hook(before) for layer in parts.layers]
    model.config._attn_implementation_internal = NAME
    _STATE.append(state)
    try:
        with torch.no_grad():
            options: dict[str, Any] = {} if positions is None else {"position_ids": positions[None]}
            if state.causal:
                options["use_cache"] = False
            out = model(ids[None], **options)
    finally:
        model.config._attn_implementation_internal = config_before
        for handle in handles:
            handle.remove()
        _STATE.pop()
    return out.last_hidden_state[0], state


def _stay(state: State, stay: set[int]) -> Tensor:
    return torch.tensor([i if i in stay else -1 for i in range(state.n)], dtype=torch.int64)


def _protected(state: State) -> set[int]:
    if state.causal:
        return {i for i in range(state.n) if i < 4 or i >= state.n - 16}
    return {0}


def _ranked(state: State, score: Tensor) -> list[int]:
    """The living tokens, protected ones first, then by falling score."""
    protected = _protected(state)
    return sorted(
        (i for i in range(state.n) if state.alive[i]), key=lambda i: (i not in protected, -float(score[i]), i)
    )


def cascade(shares: list[float], accumulate: bool) -> Choice:
    """`Cascade` with exact scores."""

    def choose(layer: int, state: State) -> Tensor:
        wanted = max(math.ceil(round(shares[layer] * state.n, 6)), len(_protected(state)))
        return _stay(state, set(_ranked(state, state.received(accumulate))[:wanted]))

    return choose


def threshold(thetas: list[float]) -> Choice:
    """`Threshold` with exact scores."""

    def choose(layer: int, state: State) -> Tensor:
        score = state.received(False)
        mean = score.sum() / int(state.alive.sum())
        stay = {i for i in range(state.n) if state.alive[i] and score[i] > thetas[layer] * mean}
        if not thetas[layer]:
            stay = set(range(state.n))
        return _stay(state, (stay | _protected(state)) & set(_ranked(state, score)))

    return choose


def mass(p: float) -> Choice:
    """`Mass` with exact scores."""

    def choose(layer: int, state: State) -> Tensor:
        score = state.received(False)
        stay, held = set(), 0.0
        for i in _ranked(state, score):
            if held >= p * float(score.sum()) and i not in _protected(state):
                break
            stay.add(i)
            held += float(score[i])
        return _stay(state, stay)

    return choose


def merge(shares: list[float]) -> Choice:
    """`Merge`."""

    def choose(layer: int, state: State) -> Tensor:
        assert state.keys is not None
        free = [i for i in range(state.n) if state.alive[i] and i not in _protected(state)]
        receiving, offered = free[::2], free[1::2]
        wanted = max(math.ceil(round(shares[layer] * state.n, 6)), 1)
        merges = max(min(int(state.alive.sum()) - wanted, len(offered)), 0)
        group = torch.arange(state.n)
        pairs = []
        for i in offered:
            cosines = torch.cosine_similarity(state.keys[i][None].float(), state.keys[receiving].float())
            pairs.append((-float(cosines.max()), i, receiving[int(cosines.argmax())]))
        for _, i, j in sorted(pairs)[:merges]:
            group[i] = j
        return group

    return choose
