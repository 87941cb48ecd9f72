"""What a network's layers are reckoned to cost, and what follows from it."""

from __future__ import annotations

import pytest
import torch

from tests.video.delta_clips import Residual, classifier, conv, patch_clip
from video import delta
from video.delta.costs import NEVER, Costs, measure
from video.delta.network import DeltaNetwork
from video.delta.work import EARNED, GIVEN_UP, KEEPING, SAVED, Policy


def _network() -> DeltaNetwork:
    model = classifier(conv(3, 16, 3, 2), Residual(16, 16), Residual(16, 24, 2), channels=24)
    return delta.accelerate(model, example=patch_clip(1))


def _costs(network: DeltaNetwork) -> Costs:
    (costs,) = network._costs.values()
    return costs


def test_effort_adds_up_what_changed() -> None:
    costs = Costs(10.0, (1.0, 2.0, 4.0), (0.5, 0.1, 0.0), (NEVER, 0.5, NEVER), (10, 20, 1), 0.25, 1.5)
    assert costs.effort((0, 0, 0)) == pytest.approx(0.025)
    assert costs.effort((4, 0, 0)) == pytest.approx(0.025 + 0.15 * (1 + 2))
    # From half of its positions on the second layer is computed as a whole.
    assert costs.effort((0, 10, 0)) == pytest.approx(0.025 + 0.15 * (2 + 1))
    assert costs.effort((0, 20, 1)) == pytest.approx(0.025 + 0.15 * (2 + 1 + 4))


def test_measured_costs_are_plausible() -> None:
    fast = _network()
    costs, ((plan, counter),) = _costs(fast), fast._plans.values()
    assert len(costs.start) == len(costs.position) == len(costs.dense_from) == len(plan.layers)
    assert costs.positions == counter.positions
    assert costs.whole > 0 and costs.frame > 0 and 1 <= costs.scattered < 20
    assert all(start >= 0 and each >= 0 for start, each in zip(costs.start, costs.position))
    assert all(0 <= share < 1 or share == NEVER for share in costs.dense_from)
    assert 0 < costs.effort([1] * len(plan.layers)) <= costs.effort(counter.positions)


def test_measuring_leaves_the_frame_alone_and_the_answers_right() -> None:
    fast = _network()
    ((plan, _),) = fast._plans.values()
    clip = patch_clip(6)
    x = clip[:1].permute(0, 2, 3, 1).contiguous()
    before = x.clone()
    with torch.inference_mode():
        measure(plan, x, {})
    assert torch.equal(x, before)
    with torch.no_grad():
        torch.testing.assert_close(fast(clip), fast.model(clip), rtol=1e-5, atol=1e-5)


def test_costs_are_measured_once_for_a_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*arguments: object) -> Costs:
        calls.append(arguments)
        return measure(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("video.delta.network.measure", counted)
    fast = _network()
    assert len(calls) == 1
    fast(patch_clip(5))
    fast.variant(0.1, adapt=True)(patch_clip(5))
    assert len(calls) == 1
    fast(patch_clip(3, 56))
    assert len(calls) == 2
    delta.accelerate(fast.model, adapt=False)(patch_clip(3))
    assert len(calls) == 2  # nothing to decide


@pytest.mark.parametrize("cheap", [True, False])
def test_the_costs_decide(cheap: bool) -> None:
    """The same clip: where changes are cheap they are computed, where they are dear a try ends at once and pays off."""
    fast = _network()
    costs, (plan,) = _costs(fast), fast._costs
    price = costs.whole / len(costs.start) * (0.1 if cheap else 2.0)
    fast._costs[plan] = Costs(
        costs.whole, (price,) * len(costs.start), (0.0,) * len(costs.start), (NEVER,) * len(costs.start),
        costs.positions, 0.0,
    )  # fmt: skip
    fast(torch.cat([patch_clip(7, seed=seed)[:6] for seed in range(20)]))
    modes = [work.mode for work in fast.trace]
    if cheap:
        assert modes.count("changed") + modes.count("still") >= 75 and "dense" not in modes[1:6]
    else:
        assert modes[:2] == ["kept", "changed"] and modes[2] == "dense"
        # Keeping and one frame at 2.3 times the whole: it takes some 75 frames to earn the next try.
        assert modes.count("changed") <= 3 and modes.count("kept") <= 3


@pytest.mark.parametrize("share", [0.0, NEVER])
def test_layers_are_told_when_to_run_as_a_whole(share: float) -> None:
    fast = _network()
    costs, (plan,) = _costs(fast), fast._costs
    zeros = (0.0,) * len(costs.start)
    fast._costs[plan] = Costs(1.0, zeros, zeros, (share,) * len(zeros), costs.positions, 0.0)
    convolutions = [layer for layer in plan.layers if hasattr(layer, "kernel")]
    calls = []
    for layer in convolutions:
        library = layer.kernel.library

        def counted(*arguments: object, library=library) -> object:
            calls.append(1)
            return library(*arguments)

        layer.kernel._kernel._library = counted
    clip = patch_clip(5)
    with torch.no_grad():
        torch.testing.assert_close(fast(clip), fast.model(clip), rtol=1e-5, atol=1e-5)
    changed = sum(work.mode == "changed" for work in fast.trace)
    assert changed >= 3
    assert len(calls) == (changed * len(convolutions) if share == 0 else 0)


def test_the_policy_loses_little_on_tries_that_fail() -> None:
    """Whatever a failed try costs, tries, earnings and debts keep the loss of a thousand frames near one fiftieth."""
    state, lost = None, 0.0
    keeping = False
    for _ in range(1000):
        policy = Policy(state, 1)
        if keeping:
            keeping = policy.goes_on(1.6)
            lost += 0.6
        elif policy.tries():
            policy.kept()
            keeping = True
            lost += KEEPING / 1000
        state = policy.state()
    assert lost / 1000 < 0.03
    assert 0 < EARNED < KEEPING < GIVEN_UP < SAVED
