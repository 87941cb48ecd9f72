"""The state of pruning in one forward pass: tokens alive, attention measured, places of those that left."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nlp.prune.policy import Live, Plan, Policy

# Who stays whatever a policy says. Without its first tokens, which gather attention that means nothing, a causal
# network falls apart (attention sinks: Xiao et al., 2023).
ENCODER_PROTECT = ("cls",)
CAUSAL_PROTECT = ("sinks:4", "recent:16")


class Removal:
    """The tokens of one packed forward pass while a policy removes them.

    Args:
        policy: chooses who goes on.
        n_layers: calls of layers in the pass.
        causal: a token sees no later one.
        offsets: [B + 1] int64, where each sequence begins among the T tokens.
        column: [T] int64, column of each token in the padded input.
        restore: keep the state of those that leave, so that everyone has an output in the end.
        reads: tokens that a head reads and that stay whatever the policy protects, named as in `Policy.protect`.
        finish: what the network does to states after its last layer, and must be done to those that leave, too.

    Attributes:
        offsets: as they are now.
        origin: [M] int64, which of the T tokens each living one was; None while all live.
        sizes: [M] fp32, tokens that each stands for; None while nothing was merged.
        history: origin as it was in each layer.
    """

    def __init__(
        self,
        policy: Policy,
        n_layers: int,
        causal: bool,
        offsets: Tensor,
        column: Tensor,
        restore: bool,
        reads: tuple[str, ...] = (),
        finish: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.policy = policy
        self.n_layers = n_layers
        self.causal = causal
        self.offsets = offsets
        self.origin: Tensor | None = None
        self.sizes: Tensor | None = None
        policy.check(n_layers, causal)
        self._original = offsets.diff()
        self._idle = not bool((self._original >= policy.min_tokens).any())
        self._column = column
        names = policy.protect
        if names is None:
            names = CAUSAL_PROTECT if causal else ENCODER_PROTECT
        self._protected = protected((*names, *reads), offsets)
        self._restore = restore
        self._finish = finish
        self._left: list[tuple[Tensor, Tensor]] = []  # tokens that left, of the T, and their last states
        self._target: Tensor | None = None  # [T], the living row that stands for each token
        self._kept: list[Tensor] = []
        self.history: list[Tensor | None] = []
        self._importance: Tensor | None = None
        self._accumulated: Tensor | None = None
        self._keys: Tensor | None = None

    @property
    def layer(self) -> int:
        """Number of the layer that runs now, from 0."""
        return len(self._kept) - 1

    @property
    def bias(self) -> Tensor | None:
        """[M] fp32: what attention adds to the score of each key, so that one that stands for n weighs as n."""
        return None if self.sizes is None else self.sizes.log()

    def wanted_importance(self) -> bool | int:
        """What the attention of the running layer must measure."""
        return False if self._idle else self.policy.importance(self.layer, self.n_layers)

    def wants_keys(self) -> bool:
        """Whether the running layer's keys are needed."""
        return not self._idle and self.policy.wants_keys(self.layer, self.n_layers)

    def record(self, importance: Tensor | None = None, keys: Tensor | None = None) -> None:
        """What the running layer's attention measured: importance [M] fp32, keys [M, D]."""
        self._keys = keys
        self._importance = importance
        if importance is not None:
            self._accumulated = importance if self._accumulated is None else self._accumulated + importance

    def before_layer(self, hidden: Tensor) -> Tensor:
        """The rows [M', C] that the next layer reads, of the [M, C] that the last one wrote."""
        if self._kept and not self._idle:
            live = Live(
                len(self._kept), self.n_layers, self.offsets, self._original, hidden, self._importance,
                self._accumulated, self._keys, self.sizes, self._protected, self.columns(), self.causal,
            )  # fmt: skip
            plan = self.policy.plan(live)
            if plan is not None and len(plan.index) < len(hidden):
                hidden = self._carry_out(plan, hidden)
        self._importance = self._keys = None
        self._kept.append(self.offsets.diff())
        self.history.append(self.origin)
        return hidden

    def finished(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """The final rows and which of the T tokens each one is; None for all of them in order.

        Where tokens were merged, or restoring is wanted, every token has a row.
        """
        if self.origin is None:
            return rows, None
        if self._target is not None:
            return rows.index_select(0, self._target), None
        if not self._restore:
            return rows, self.origin
        order, parts = [self.origin], [rows]
        for tokens, states in self._left:
            order.append(tokens)
            parts.append(states)
        return torch.cat(parts).index_select(0, torch.cat(order).argsort()), None

    def kept(self) -> Tensor:
        """[n_layers + 1, B] int64, tokens alive in each layer and at the end."""
        return torch.stack([*self._kept, self.offsets.diff()])

    def columns(self) -> Tensor:
        """[M] int64, column of the padded input of each living token."""
        return self._column if self.origin is None else self._column.index_select(0, self.origin)

    def _carry_out(self, plan: Plan, hidden: Tensor) -> Tensor:
        n, index = len(hidden), plan.index
        origin = torch.arange(n, device=index.device) if self.origin is None else self.origin
        if plan.target is None:
            if self._target is not None:
                raise RuntimeError("a policy that merged tokens must not drop others later, got a Plan without target")
            if self._restore:
                gone = torch.ones(n, dtype=torch.bool, device=index.device)
                gone[index] = False
                rows = gone.nonzero()[:, 0]
                states = hidden.index_select(0, rows)
                self._left.append((origin.index_select(0, rows), self._finish(states) if self._finish else states))
            hidden = hidden.index_select(0, index)
            if self._accumulated is not None:
                self._accumulated = self._accumulated.index_select(0, index)
        else:
            sizes = torch.ones(n, device=hidden.device) if self.sizes is None else self.sizes
            total = sizes.new_zeros(len(index)).index_add(0, plan.target, sizes)
            # Summed at least in fp32, whatever the rows are.
            share = (sizes / total.index_select(0, plan.target))[:, None]
            wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32)) * share
            hidden = wide.new_zeros(len(index), hidden.shape[1]).index_add(0, plan.target, wide).to(hidden.dtype)
            if self._accumulated is not None:
                self._accumulated = total.new_zeros(len(index)).index_add(0, plan.target, self._accumulated)
            self.sizes = total
            before = torch.arange(n, device=index.device) if self._target is None else self._target
            self._target = plan.target.index_select(0, before)
        self.origin = origin.index_select(0, index)
        self._protected = self._protected.index_select(0, index)
        self.offsets = plan.offsets
        return hidden


def protected(names: tuple[str, ...], offsets: Tensor) -> Tensor:
    """[T] bool: the tokens that a policy may not remove, by `Policy.protect`'s names."""
    n = int(offsets[-1]) if len(offsets) else 0
    lengths = offsets.diff()
    sequence = torch.repeat_interleave(torch.arange(len(lengths), device=offsets.device), lengths, output_size=n)
    place = torch.arange(n, device=offsets.device) - offsets[:-1].index_select(0, sequence)
    from_end = lengths.index_select(0, sequence) - 1 - place
    stay = torch.zeros(n, dtype=torch.bool, device=offsets.device)
    for name in names:
        kind, _, count = name.partition(":")
        if kind in ("cls", "sinks"):
            stay |= place < int(count or 1)
        else:
            stay |= from_end < int(count or 1)
    return stay
