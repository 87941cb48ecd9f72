from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")


from nlp.accelerate import accelerate
from nlp.packing.architectures import parts_of
from nlp.prune import Plan, Policy, Threshold
from nlp.texts.embedder import pool
from nlp.tuning.gates import GatedThreshold, Gates, attach
from tests.nlp import tiny_models

LENGTHS = (33, 9, 50, 4)
POLICY = Threshold((0.0, 0.7, 0.9), score="exact", min_tokens=8)


def network(gates: Gates | None = None, dtype: torch.dtype = torch.float64) -> tuple[Any, GatedThreshold | None]:
    model = tiny_models.network("bert").to(dtype)
    if gates is None:
        return accelerate(model, prune=POLICY), None
    gated = GatedThreshold(gates)
    found = accelerate(model, prune=gated)
    attach(parts_of(found).layers, gated)
    return found, gated


def test_the_forward_pass_is_that_of_the_plain_threshold() -> None:
    batch = tiny_models.padded(LENGTHS)
    plain, _ = network()
    hard, gated = network(Gates(POLICY, 3))
    assert gated is not None
    with torch.no_grad():
        want = plain(**batch)
    got = hard(**batch)
    assert torch.equal(got.kept, want.kept)
    assert int(want.kept[-1].sum()) < int(want.kept[0].sum())
    torch.testing.assert_close(got.last_hidden_state, want.last_hidden_state)
    torch.testing.assert_close(
        gated.pooled(got.last_hidden_state).float(), pool(want, batch["attention_mask"], "mean")[0]
    )
    share = want.kept[:-1].sum().item() / (3 * want.kept[0].sum().item())
    assert gated.share().item() == pytest.approx(share)


class Soft(GatedThreshold):
    """The soft network: as the hard one removes, but what stays weighs 1 + gate(theta) - gate(where theta began)."""

    def __init__(self, gates: Gates, begin: torch.Tensor) -> None:
        super().__init__(gates)
        self.begin = begin

    def plan(self, live: Any) -> Any:
        moved = self.gates.theta.detach().clone()
        before = self.weight if live.layer > 1 else None
        with torch.no_grad():
            self.gates.theta.copy_(self.begin)
            plan = super().plan(live)
            at_begin = self._gates_of(live, plan)
            self.gates.theta.copy_(moved)
            now = self._gates_of(live, plan)
        index = torch.arange(len(live.hidden)) if plan is None else plan.index
        base = torch.ones(len(live.hidden)) if before is None else before
        self.weight = base[index] * (1 + now - at_begin)
        return plan

    def _gates_of(self, live: Any, plan: Any) -> torch.Tensor:
        sequence = live.sequence()
        mean = torch.stack([part.double().mean() for part in live.importance.split(live.lengths.tolist())])
        soft = self.gates.gate((live.importance.double() / mean[sequence]).float(), live.layer)
        soft = torch.where(~live.protected & (live.original[sequence] >= 8), soft, 1.0)
        return soft if plan is None else soft[plan.index]


def test_the_gradient_of_thresholds_is_that_of_the_soft_network() -> None:
    batch = tiny_models.padded(LENGTHS)
    aim = torch.randn(len(LENGTHS), 32, generator=torch.Generator().manual_seed(0))

    def loss(net: Any, policy: GatedThreshold) -> torch.Tensor:
        out = net(**batch)
        return (policy.pooled(out.last_hidden_state) * aim).sum()

    gates = Gates(POLICY, 3, temperature=0.3)
    hard, gated = network(gates)
    assert gated is not None
    loss(hard, gated).backward()
    found = gates.theta.grad
    assert found is not None

    begin = gates.theta.detach().clone()
    other = Gates(POLICY, 3, temperature=0.3)
    policy = Soft(other, begin)
    soft = accelerate(tiny_models.network("bert").double(), prune=policy)
    attach(parts_of(soft).layers, policy)
    step = 0.02
    for i in range(2):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                other.theta.copy_(begin)
                other.theta[i] += sign * step
                values.append(loss(soft, policy).item())
        slope = (values[0] - values[1]) / (2 * step)
        assert abs(slope) > 0.01
        assert found[i].item() == pytest.approx(slope, rel=0.02)


def test_the_budget_pulls_thresholds_up() -> None:
    gates = Gates(POLICY, 3)
    hard, gated = network(gates, torch.float32)
    assert gated is not None
    hard(**tiny_models.padded(LENGTHS))
    gated.share().backward()
    assert gates.theta.grad is not None
    assert (gates.theta.grad < 0).all()


def test_the_policy_is_plain_and_keeps_the_other_settings() -> None:
    gates = Gates(POLICY, 3)
    with torch.no_grad():
        gates.theta.copy_(torch.tensor([0.5, -1.0]))
    gates.clamp_()
    assert gates.policy() == Threshold((0.0, 0.5, 0.0), score="exact", min_tokens=8)


class Fading(GatedThreshold):
    """Weighs every third token, from layer 1 on, by almost nothing instead of removing it."""

    def plan(self, live: Any) -> None:
        self.weight = torch.where(live.place() % 3 == 1, 1e-12, 1.0)
        self.sequence, self.column = live.sequence(), live.column


class Thinned(Policy):
    """Removes the tokens that `Fading` fades."""

    min_tokens, protect = 1, ()

    def plan(self, live: Any) -> Plan | None:
        if live.layer > 1:
            return None
        stays = live.place() % 3 != 1
        return Plan(stays.nonzero()[:, 0], torch.nn.functional.pad(live.count(stays).cumsum(0), (1, 0)))


def test_a_token_without_weight_is_a_removed_one() -> None:
    batch = tiny_models.padded(LENGTHS)
    fading = Fading(Gates(POLICY, 3))
    faded = accelerate(tiny_models.network("bert").double(), prune=fading)
    attach(parts_of(faded).layers, fading)
    removed = accelerate(tiny_models.network("bert").double(), prune=Thinned())
    with torch.no_grad():
        got = fading.pooled(faded(**batch).last_hidden_state)
        want = pool(removed(**batch), batch["attention_mask"], "mean")[0]
        whole = pool(accelerate(tiny_models.network("bert").double())(**batch), batch["attention_mask"], "mean")[0]
    torch.testing.assert_close(got.float(), want, atol=1e-5, rtol=0)
    assert float((whole - want).abs().max()) > 0.05
