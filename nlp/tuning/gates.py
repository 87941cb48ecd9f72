"""Learn the thresholds of pruning by gradient while tokens are really removed.

A living token has a weight w: it counts w times in every softmax that looks at it (log w is added to its score) and
in the mean over the tokens. So w = 0 is a removed token and w = 1 an untouched one, exactly. A gate multiplies the
weight by sigmoid((score - theta) / temperature): that is the soft network. Trained is the hard one: what is not above
theta is removed, what stays has weight 1 in value and the soft gate's derivative (straight-through), so that theta
feels how much the loss needs the tokens near it, and a budget term pushes against that.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from nlp.packing import in_flight
from nlp.prune.cascade import queries
from nlp.prune.policy import Live, Plan, Policy
from nlp.prune.threshold import Threshold

TEMPERATURE = 0.1  # of scores whose mean is 1


class Gates(nn.Module):
    """The thresholds of a `Threshold` policy as parameters.

    Args:
        policy: where they begin.
        n_layers: of the network.
        temperature: of the gates; scores have mean 1.

    Attributes:
        theta: [n_layers - 1], those before each layer but the first.
    """

    def __init__(self, policy: Threshold, n_layers: int, temperature: float = TEMPERATURE) -> None:
        super().__init__()
        self.start = policy
        self.temperature = temperature
        self.theta = nn.Parameter(torch.tensor(policy.thetas(n_layers)[1:], dtype=torch.float32))

    def policy(self) -> Threshold:
        """The plain policy with the thresholds as they are now."""
        found = self.theta.detach().clamp(min=0).tolist()
        return dataclasses.replace(self.start, theta=(0.0, *found))

    @torch.no_grad()
    def clamp_(self) -> None:
        """Keep the thresholds where a policy may have them."""
        self.theta.clamp_(min=0)

    def gate(self, score: Tensor, layer: int) -> Tensor:
        """The soft gates [T] before a layer of tokens with scores [T]."""
        return torch.sigmoid((score - self.theta[layer - 1]) / self.temperature)


class GatedThreshold(Policy):
    """What `Threshold` does with the thresholds of `gates`, in one pass at a time, with a derivative.

    Its network's layers must have the hook of `attach`.

    Attributes:
        weight: [M], of the living tokens of the last pass: 1, with a derivative; None before the first gate.
        column, sequence: [M] where each living token is in the padded batch.
        shares: of the tokens, alive in each layer after the first: as counted, with the soft gates' derivative.
    """

    def __init__(self, gates: Gates) -> None:
        self.gates = gates
        self.min_tokens = gates.start.min_tokens
        self.protect = gates.start.protect
        self._begin()

    def _begin(self) -> None:
        self.weight: Tensor | None = None
        self.shares: list[Tensor] = []

    def importance(self, layer: int, n_layers: int) -> bool | int:
        return queries(self.gates.start.score) if layer + 1 < n_layers else False

    def plan(self, live: Live) -> Plan | None:
        if live.layer == 1:
            self._begin()
        assert live.importance is not None
        hard = Threshold.plan(self.gates.policy(), live)
        sequence = live.sequence()
        score = live.importance.double()
        total = score.new_zeros(len(live.original)).index_add(0, sequence, score)
        score = (score / (total / live.lengths.clamp(min=1)).index_select(0, sequence)).float()
        # Texts and tokens that no threshold can remove have no gate.
        free = ~live.protected & (live.original >= self.min_tokens).index_select(0, sequence)
        soft = torch.where(free, self.gates.gate(score, live.layer), torch.ones_like(score))
        index = torch.arange(len(score), device=score.device) if hard is None else hard.index
        before = torch.ones_like(soft) if self.weight is None else self.weight
        passed = before * soft
        alive = torch.zeros_like(soft)
        alive[index] = 1
        n = live.original.sum()
        self.shares.append(((alive * before.detach()).sum() + passed.sum() - passed.sum().detach()) / n)
        chosen, base = soft.index_select(0, index), before.index_select(0, index)
        self.weight = base * (1 + chosen - chosen.detach())
        self.sequence, self.column = sequence.index_select(0, index), live.column.index_select(0, index)
        return hard

    def share(self) -> Tensor:
        """Mean share of the tokens alive over the layers of the last pass, the first one's all included."""
        return (1 + torch.stack(self.shares).sum()) / (1 + len(self.shares))

    def pooled(self, hidden: Tensor) -> Tensor:
        """The mean [B, C] over the living tokens of hidden [B, S, C], by their weights."""
        assert self.weight is not None
        weights = hidden.new_zeros(hidden.shape[:2], dtype=torch.float32)
        weights = weights.index_put((self.sequence, self.column), self.weight)
        return torch.bmm(weights[:, None], hidden.float())[:, 0] / weights.sum(1, keepdim=True)


def attach(layers: tuple[nn.Module, ...], policy: GatedThreshold) -> None:
    """Let the attention of an accelerated network's layers see the weights of its tokens."""

    def weigh(layer: nn.Module, args: object) -> None:
        batch = in_flight()
        # Runs after the hook that removed tokens: the weights are those of the rows that the layer reads.
        if batch is not None and batch.removal is not None and batch.removal.layer > 0:
            batch.removal.sizes = policy.weight

    for layer in layers:
        layer.register_forward_pre_hook(weigh)
