"""Policies on made-up signals whose right decisions are known by hand."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from tests.video.skip_frames import vectors
from video.skip import Confidence, EveryNth, KeyFrames, LumaDifference, MotionVectors, PacketSize, Policy, Signals
from video.skip.policies import coarse_to_fine
from video.skip.signals import luma_change, mean_motion, thumbnail

NAN = float("nan")


def plane(level: float, shape: tuple[int, int] = (32, 48)) -> np.ndarray:
    return np.full(shape, level, dtype=np.uint8)


def actions(policy: Policy, signals: Sequence[Signals]) -> str:
    """c(ompute), r(euse) or e(xit) for every frame."""
    state = policy.start()
    return "".join(policy.decide(one, state).action[0] for one in signals)


def lumas(levels: Sequence[float]) -> list[Signals]:
    return [Signals(i, luma=plane(level)) for i, level in enumerate(levels)]


def packets(sizes: Sequence[int], keys: Sequence[int] = (0,)) -> list[Signals]:
    return [Signals(i, packet_size=size, is_keyframe=i in keys) for i, size in enumerate(sizes)]


def test_every_nth() -> None:
    assert actions(EveryNth(3), packets([1] * 8)) == "crrcrrcr"
    assert actions(EveryNth(1), packets([1] * 3)) == "ccc"


def test_key_frames() -> None:
    assert actions(KeyFrames(), packets([1] * 7, keys=(0, 3, 4))) == "crrccrr"


def test_packet_size_adds_up_and_starts_again() -> None:
    assert actions(PacketSize(100), packets([900, 60, 30, 30, 60, 30, 200, 5])) == "crrcrrcr"
    assert actions(PacketSize(100), packets([900, 60, 800, 60, 40, 1], keys=(0, 2))) == "crcrrc"
    assert actions(PacketSize(100), packets([0, 0, 0])) == "ccc"


def test_luma_is_held_against_the_last_computed_frame() -> None:
    # One level a frame: the sum counts, not the step.
    assert actions(LumaDifference(2.5), lumas(range(8))) == "crrcrrcr"
    assert actions(LumaDifference(0), lumas([5, 5, 6, 6, 5])) == "crcrc"


def test_looks_at_fewer_frames_while_every_one_has_changed() -> None:
    looks: list[int] = []

    class Seen(Signals):
        @property
        def luma(self) -> np.ndarray:
            looks.append(self.index)
            return super().luma

    def run(policy: Policy, levels: Sequence[int]) -> tuple[str, list[int]]:
        looks.clear()
        done = actions(policy, [Seen(i, luma=plane(level)) for i, level in enumerate(levels)])
        return done, sorted(set(looks))

    moving = [i * 10 % 250 for i in range(60)]
    # Frames 0 to 7 are looked at; of the next 2, 4, 8, 8 only the last, which the frame after it is held against.
    expected = [*range(8), 9, 10, 14, 15, 23, 24, 32, 33, 41, 42, 50, 51, 59]
    assert run(LumaDifference(1), moving) == ("c" * 60, expected)
    assert run(LumaDifference(1, back_off=False), moving) == ("c" * 60, list(range(60)))
    assert run(LumaDifference(1, scene_cut=200), moving) == ("c" * 60, list(range(60)))
    # It comes to rest at frame 16: the look at 24 tells, from then on all are looked at.
    done, looked = run(LumaDifference(1), moving[:16] + [7] * 20)
    assert done == "c" * 24 + "r" * 12 and looked == [*range(8), 9, 10, 14, 15, 23, *range(24, 36)]
    # Frames that changed now and then do not make it look away.
    assert run(LumaDifference(1), [1, 9, 9] * 12)[1] == list(range(36))
    state = LumaDifference(1).start()
    for i in range(12):
        LumaDifference(1).decide(Signals(i, luma=plane(i * 9)), state)
    copy = state.clone()
    assert (copy.lively, copy.blind) == (state.lively, state.blind) != (0, 0)


def test_a_small_object_is_not_lost_in_the_mean() -> None:
    still, moving = plane(50), plane(50)
    moving[8:16, 8:16] = 90  # one of 24 blocks: mean 1.67, block 40
    signals = [Signals(0, luma=still), Signals(1, luma=moving)]
    assert actions(LumaDifference(3), signals) == "cc"
    assert actions(LumaDifference(3, local=0), signals) == "cr"
    assert actions(LumaDifference(6), signals) == "cr"


def test_hysteresis_keeps_computing_until_it_is_calm() -> None:
    levels = [0, 10, 16, 22, 24, 30]
    assert actions(LumaDifference(8), lumas(levels)) == "ccrcrr"
    assert actions(LumaDifference(8, hysteresis=0.5), lumas(levels)) == "ccccrr"


def test_a_clear_answer_tolerates_more_change() -> None:
    policy = LumaDifference(5, relative=True)
    for gap, action in ((2.0, "cr"), (1.0, "cr"), (0.9, "cc"), (0.0, "cc")):
        signals = lumas([0, 5])
        signals[1].scores = torch.tensor([[0.0, gap]])
        assert actions(policy, signals) == action, gap


def test_relative_needs_an_answer() -> None:
    with pytest.raises(ValueError, match="last output"):
        actions(LumaDifference(1, relative=True), lumas([0, 1]))


def test_motion_adds_up() -> None:
    signals = [Signals(i, motion=motion) for i, motion in enumerate([None, 1.0, 1.5, 1.0, None, 2.0, 0.6])]
    assert actions(MotionVectors(2), signals) == "crcrcrc"


def test_mean_motion() -> None:
    assert mean_motion(vectors(3, 4)) == 5
    mixed = np.concatenate([vectors(0, 0, 3), vectors(2, 0, 1)])
    assert mean_motion(mixed) == 0.5
    mixed["w"][3] = 48
    assert mean_motion(mixed) == 1.0
    assert mean_motion(None) is None and mean_motion(vectors(1, 1, 0)) is None


@pytest.mark.parametrize(
    "policy",
    [
        EveryNth(99, max_staleness=2), KeyFrames(max_staleness=2), PacketSize(1e9, max_staleness=2),
        LumaDifference(99, max_staleness=2), MotionVectors(99, max_staleness=2),
    ],
    ids=lambda policy: type(policy).__name__,
)  # fmt: skip
def test_no_answer_grows_older_than_allowed(policy: Policy) -> None:
    signals = [Signals(i, packet_size=1, luma=plane(0), motion=0.0) for i in range(8)]
    assert actions(policy, signals) == "crrcrrcr"


@pytest.mark.parametrize(
    "policy",
    [
        EveryNth(99, scene_cut=30), KeyFrames(scene_cut=30), PacketSize(1e9, scene_cut=30),
        LumaDifference(99, scene_cut=30), MotionVectors(99, scene_cut=30),
    ],
    ids=lambda policy: type(policy).__name__,
)  # fmt: skip
def test_a_scene_cut_is_computed_and_resets(policy: Policy) -> None:
    levels = [10, 20, 50, 55, 5]
    state = policy.start()
    decisions = [
        policy.decide(Signals(i, packet_size=1, luma=plane(v), motion=0.0), state) for i, v in enumerate(levels)
    ]
    assert [decision.action[0] for decision in decisions] == list("crcrc")
    assert [decision.reset for decision in decisions] == [False, False, True, False, True]
    assert decisions[2].why == "scene cut" and decisions[2].signal == 40
    assert policy.needs != "packets"


def test_a_new_resolution_is_a_new_scene() -> None:
    policy = LumaDifference(99)
    state = policy.start()
    policy.decide(Signals(0, luma=plane(1)), state)
    decision = policy.decide(Signals(1, luma=plane(1, (16, 16))), state)
    assert (decision.action, decision.why, decision.reset) == ("compute", "new resolution", True)
    assert policy.decide(Signals(2, luma=plane(1, (16, 16))), state).action == "reuse"


def test_states_are_separate() -> None:
    policy = EveryNth(2)
    first, second = policy.start(), policy.start()
    signals = packets([1, 1, 1])
    policy.decide(signals[0], first)
    copy = first.clone()
    assert [policy.decide(signals[1], state).action for state in (first, second, copy)] == ["reuse", "compute", "reuse"]


def test_packet_policies_read_no_luma() -> None:
    class Undecodable:
        def __call__(self) -> Any:
            raise AssertionError("decoded")

    signals = [Signals(i, packet_size=10, is_keyframe=i == 0, frame=Undecodable()) for i in range(4)]
    for policy in (EveryNth(2), KeyFrames(), PacketSize(15)):
        assert policy.needs == "packets"
        actions(policy, signals)
    with pytest.raises(AssertionError, match="decoded"):
        actions(LumaDifference(1), signals)


def test_confidence_exits_on_the_mean_of_the_logits() -> None:
    policy = Confidence(0.9)
    state = policy.start()
    outputs: list[torch.Tensor] = []
    assert policy.decide(Signals(0, outputs=outputs), state).action == "compute"
    outputs.append(torch.tensor([[2.0, 0.0]]))  # 0.88
    assert policy.decide(Signals(1, outputs=outputs), state).action == "compute"
    outputs.append(torch.tensor([[3.0, 0.0]]))  # mean 2.5: 0.92
    decision = policy.decide(Signals(2, outputs=outputs), state)
    assert decision.action == "exit" and decision.signal == pytest.approx(0.924, abs=1e-3)
    assert Confidence(0.9, min_frames=3).decide(Signals(2, outputs=outputs), state).action == "compute"


def test_confidence_refuses_what_is_no_logits() -> None:
    policy = Confidence(0.9)
    state = policy.start()
    policy.decide(Signals(0), state)
    with pytest.raises(ValueError, match=r"logits \[1, classes\] .* got \[2, 2\]"):
        policy.decide(Signals(1, outputs=[torch.zeros(2, 2)]), state)


def test_confidence_visits_key_frames_first() -> None:
    policy = Confidence(0.9, frames=5)
    # Places 10, 30, 50, 70, 90 from coarse to fine: 50, 10, 90, 30, 70. Key frames 0, 48, 96 are near three of them.
    assert policy.order(100, [0, 48, 96]) == [48, 0, 96, 30, 70]
    assert policy.order(100, []) == [10, 30, 50, 70, 90]
    assert policy.order(3, [0]) == [0, 1, 2]
    assert policy.order(1, [0]) == [0] and policy.order(0, []) == []
    for n, keys in ((901, list(range(0, 901, 90))), (7, [0, 3]), (250, [0, 30, 76, 137, 187, 242])):
        order = Confidence(0.9).order(n, keys)
        assert len(order) == len(set(order)) <= 10 and all(0 <= i < n for i in order)


def test_coarse_to_fine() -> None:
    assert coarse_to_fine(10)[:5] == [5, 0, 9, 2, 7]
    for count in range(20):
        assert sorted(coarse_to_fine(count)) == list(range(count))


def test_thumbnail_is_a_copy_of_the_strided_plane() -> None:
    luma = torch.arange(512 * 600).reshape(512, 600).to(torch.uint8)
    small = thumbnail(luma)
    assert np.array_equal(small, luma.numpy()[::4, ::4])
    luma.zero_()
    assert small.any()
    assert thumbnail(torch.zeros(10, 20, dtype=torch.uint8)).shape == (10, 20)


def test_luma_change_against_plain_arithmetic() -> None:
    a, b = np.random.default_rng(0).integers(0, 256, (2, 45, 70)).astype(np.uint8)
    b[20:28, 30:40] = 255 - (a[20:28, 30:40] > 127) * 255
    difference = np.abs(a.astype(int) - b.astype(int))
    inner = difference[2:42, 3:67]
    blocks = [inner[y : y + 8, x : x + 8].mean() for y in range(0, 40, 8) for x in range(0, 64, 8)]
    change = luma_change(a, b)
    assert change == pytest.approx((difference.mean(), max(blocks)))
    assert luma_change(a[:5], b[:5]) == pytest.approx((difference[:5].mean(), 0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EveryNth(0), "n must be at least 1, got 0"),
        (lambda: EveryNth(1.5), "n must be a whole number, got 1.5"),  # type: ignore[arg-type]
        (lambda: EveryNth(True), "n must be a whole number, got True"),
        (lambda: KeyFrames(max_staleness=1.5), "max_staleness must be a whole number, got 1.5"),  # type: ignore[arg-type]
        (lambda: PacketSize(NAN), "threshold must be at least 0, got nan"),
        (lambda: PacketSize(-1), "threshold must be at least 0, got -1"),
        (lambda: LumaDifference(NAN), "threshold must be at least 0, got nan"),
        (lambda: LumaDifference(1, hysteresis=1.5), "hysteresis must be from 0 to 1, got 1.5"),
        (lambda: LumaDifference(1, local=NAN), "local must be at least 0, got nan"),
        (lambda: LumaDifference(1, scene_cut=NAN), "scene_cut must be at least 0, got nan"),
        (lambda: LumaDifference(1, max_staleness=-1), "max_staleness must be at least 0, got -1"),
        (lambda: MotionVectors(NAN), "threshold must be at least 0, got nan"),
        (lambda: Confidence(1.1), "threshold must be from 0 to 1, got 1.1"),
        (lambda: Confidence(NAN), "threshold must be from 0 to 1, got nan"),
        (lambda: Confidence(0.9, frames=0), "min_frames must be from 1 to frames=0"),
        (lambda: Confidence(0.9, scene_cut=3), "are for policies that reuse answers"),
    ],
)  # fmt: skip
def test_refusals(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_the_count_of_lively_frames_stays_small_on_an_endless_stream() -> None:
    policy = LumaDifference(0.5)
    state = policy.start()
    seen, looks = set(), []
    for index in range(5000):
        luma = np.full((16, 16), 255 * (index % 2), dtype=np.uint8)
        blind = state.blind
        assert policy.decide(Signals(index, luma=luma), state).action == "compute"
        looks += [index] if not blind else []
        seen.add(state.lively)
    assert max(seen) < 16 and state.blind <= 8
    assert {b - a for a, b in pairwise(looks[100:])} == {9}  # still one look for eight frames unseen
