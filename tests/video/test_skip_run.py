"""The pipeline on made-up readers: what is decoded and computed, what comes out, what is kept when a source fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.video.failing import fail_after_writing
from tests.video.skip_frames import PREPARE, FakeFrame, FakeReader, LevelNetwork, SumNetwork, vectors, video
from video.skip import (
    Confidence,
    EveryNth,
    KeyFrames,
    LumaDifference,
    MotionVectors,
    PacketSize,
    Policy,
    Trace,
    draw_timeline,
    run,
)
from video.skip.pipeline import best_class

LEVELS = [20, 20, 21, 90, 90, 150, 150, 150, 230, 20]


def actions(trace: Trace) -> str:
    return "".join(entry.action[0] for entry in trace)


@pytest.mark.parametrize(
    "policy", [EveryNth(1), LumaDifference(9, max_staleness=0)], ids=["planned", "sequential"]
)  # fmt: skip
def test_computing_always_equals_the_dense_network(policy: Policy) -> None:
    reader, network = video(LEVELS), LevelNetwork()
    results = list(run(reader, network, policy, PREPARE))
    assert [result.index for result in results] == list(range(10))
    for result, frame in zip(results, reader.content):
        assert torch.equal(result.output, network(PREPARE(frame.rgb()[None])[0]))
        assert (result.entry.action, result.entry.decoded, result.entry.converted) == ("compute", True, True)


def test_reused_answers_are_those_of_the_last_computed_frame() -> None:
    reader, network, trace = video(LEVELS), LevelNetwork(), Trace()
    results = list(run(reader, network, LumaDifference(5), PREPARE, trace=trace))
    assert actions(trace) == "crrcrcrrcc" and network.calls == 5
    assert [result.entry.answer for result in results] == [0, 0, 0, 1, 1, 2, 2, 2, 3, 0]
    assert [entry.staleness for entry in trace] == [0, 1, 2, 0, 1, 0, 1, 2, 0, 0]
    assert [frame.conversions for frame in reader.content] == [1, 0, 0, 1, 0, 1, 0, 0, 1, 1]
    assert trace.counts == dict(frames=10, decoded=10, converted=5, computed=5, reused=5, left=0)
    assert trace.worst_staleness == 2


def test_packet_policies_decode_only_what_is_computed() -> None:
    reader, trace = video([0] * 12, every=5), Trace()
    list(run(reader, LevelNetwork(), KeyFrames(), PREPARE, trace=trace))
    assert actions(trace) == "crrrrcrrrrcr"
    assert reader.decoded == [0, 5, 10]
    assert [entry.index for entry in trace if entry.decoded] == [0, 5, 10]


def test_frames_on_the_way_count_as_decoded() -> None:
    reader, trace = video([0] * 12, every=5), Trace()
    list(run(reader, LevelNetwork(), EveryNth(4), PREPARE, trace=trace))  # 0, 4, 8
    assert reader.decoded == [0, 4, 8]
    assert [entry.index for entry in trace if entry.decoded] == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert trace.counts["converted"] == 3


def test_nothing_is_decoded_before_its_turn() -> None:
    reader = video([0] * 12, every=4)
    results = run(reader, LevelNetwork(), KeyFrames(), PREPARE)
    for expected in ([0], [0], [0], [0], [0, 4]):
        next(results)
        assert reader.decoded == expected


def test_frames_that_the_decoder_leaves_out_reuse() -> None:
    reader, trace = video(LEVELS), Trace()
    reader.unreferenced = frozenset({1, 3, 8, 9})
    results = list(run(reader, LevelNetwork(), LumaDifference(5), PREPARE, skip="nonref", trace=trace))
    assert [result.index for result in results] == list(range(10))
    assert actions(trace) == "crrrccrrrr"
    assert [entry.answer for entry in trace] == [0, 0, 0, 0, 1, 2, 2, 2, 2, 2]
    assert [entry.index for entry in trace if not entry.decoded] == [1, 3, 8, 9]
    assert [entry.staleness for entry in trace] == [0, 1, 2, 3, 0, 0, 1, 2, 3, 4]
    assert trace.reasons["reuse: not decoded"] == 4


def test_motion_vectors_are_asked_for() -> None:
    reader, trace = video([0] * 5, motion_vectors=vectors(1)), Trace()
    list(run(reader, LevelNetwork(), MotionVectors(1.5), PREPARE, trace=trace))
    assert actions(trace) == "crcrc"


def test_confidence_stops_decoding() -> None:
    levels = [30] * 40
    reader, network, trace = video(levels, every=10), LevelNetwork(), Trace()
    results = list(run(reader, network, Confidence(0.9, frames=4), PREPARE, trace=trace))
    assert [result.entry.action for result in results] == ["compute", "exit"]
    assert len(reader.decoded) == network.calls == 1
    assert results[-1].entry.why == "sure" and results[-1].entry.answer == 0
    assert len(trace) == 40 and trace.counts["left"] == 39
    assert torch.equal(results[-1].output, results[0].output)


def test_confidence_visits_in_its_order_and_averages() -> None:
    reader, network = video([10, 60, 110, 160, 210, 250] * 5, every=10), LevelNetwork()
    policy = Confidence(1.0, frames=4)
    results = list(run(reader, network, policy, PREPARE))
    order = policy.order(30, [0, 10, 20])
    assert [result.index for result in results[:-1]] == order == reader.decoded
    assert results[-1].entry.why == "all visited"
    torch.testing.assert_close(results[-1].output, torch.stack([result.output for result in results[:-1]]).mean(0))


def test_confidence_on_a_video_of_one_frame() -> None:
    trace = Trace()
    results = list(run(video([200]), LevelNetwork(), Confidence(1.0), PREPARE, trace=trace))
    assert [result.entry.action for result in results] == ["compute", "exit"]
    assert results[1].entry.answer == 3 and len(trace) == 1


def test_a_network_with_memory_steps_over_computed_frames_and_begins_anew_at_a_cut() -> None:
    reader = video([10, 10, 20, 20, 200, 200, 215])
    results = list(run(reader, SumNetwork(), LumaDifference(5, scene_cut=50), PREPARE))
    assert [int(result.output[0, 0]) for result in results] == [10, 10, 30, 30, 200, 200, 415]
    assert [result.entry.reset for result in results] == [False] * 4 + [True, False, False]


def test_several_crops_are_averaged() -> None:
    def network(x: torch.Tensor) -> torch.Tensor:
        assert x.shape == (3, 3, 16, 16)
        return torch.arange(6.0).view(3, 2)

    from video.preprocess import Preprocess

    (result,) = run(video([1]), network, EveryNth(1), Preprocess(16, 16, crops=3))
    assert result.output.tolist() == [[2, 3]]


def test_other_outputs_pass_through() -> None:
    results = list(run(video([1, 1]), lambda x: {"boxes": 1}, EveryNth(2), PREPARE))
    assert [result.output for result in results] == [{"boxes": 1}] * 2
    assert results[0].entry.answer is None


@pytest.mark.parametrize("policy", [EveryNth(3), KeyFrames(), LumaDifference(5), Confidence(0.5)], ids=str)
def test_empty_and_one_frame(policy: Policy) -> None:
    assert list(run(FakeReader([]), LevelNetwork(), policy, PREPARE)) == []
    results = list(run(video([100]), LevelNetwork(), policy, PREPARE))
    assert results[0].entry.action == "compute" and results[-1].entry.answer == 1


@pytest.mark.parametrize("policy", [EveryNth(2), PacketSize(150), LumaDifference(5)], ids=str)
def test_a_live_source_answers_every_frame(policy: Policy) -> None:
    results = list(run(iter(video(LEVELS).content), LevelNetwork(), policy, PREPARE))
    assert [result.index for result in results] == list(range(10))


def test_a_live_source_that_fails_keeps_what_came_before() -> None:
    def source() -> Iterator[FakeFrame]:
        yield from video([20, 90, 90]).content
        raise OSError("unplugged")

    trace, answers = Trace(), []
    with pytest.raises(OSError, match="unplugged"):
        for result in run(source(), LevelNetwork(), LumaDifference(5), PREPARE, trace=trace):
            answers.append(result.entry.answer)
    assert answers == [0, 1, 1] and actions(trace) == "ccr"


def test_a_live_source_that_changes_resolution() -> None:
    frames = [FakeFrame(0, 90), FakeFrame(1, 90), FakeFrame(2, 90, size=(64, 40)), FakeFrame(3, 90, size=(64, 40))]
    results = list(run(frames, LevelNetwork(), LumaDifference(5), PREPARE))
    assert [result.entry.why for result in results] == ["first frame", "unchanged", "new resolution", "unchanged"]


def test_refusals() -> None:
    network = LevelNetwork()
    with pytest.raises(ValueError, match="in training mode"):
        run(video([1]), network.train(), EveryNth(1), PREPARE)
    network.eval()
    with pytest.raises(ValueError, match="skip must be one of none, nonref, nonkey, got 'nonreff'"):
        run(video([1]), network, LumaDifference(1), PREPARE, skip="nonreff")
    with pytest.raises(ValueError, match="order of its own, got a live source"):
        list(run(iter(()), network, Confidence(0.9), PREPARE))
    for source, policy in ((video([1]), EveryNth(1)), (iter(()), LumaDifference(1))):
        with pytest.raises(ValueError, match="is for files and for policies that decode every frame"):
            list(run(source, network, policy, PREPARE, skip="nonref"))


def test_best_class() -> None:
    assert best_class(torch.tensor([[0.0, 2.0, 1.0]])) == best_class(torch.tensor([0.0, 2.0])) == 1
    assert best_class(torch.zeros(2, 3)) is best_class("cat") is best_class(torch.zeros(1, 0)) is None


def test_trace_survives_json() -> None:
    trace = Trace()
    list(run(video(LEVELS), LevelNetwork(), LumaDifference(5, scene_cut=60), PREPARE, trace=trace))
    again = Trace.from_json(trace.to_json())
    assert again.entries == trace.entries and again.counts == trace.counts
    assert sum(trace.seconds.values()) > 0 and set(trace.seconds) == {
        "decode", "signals", "convert", "prepare", "network",
    }  # fmt: skip
    assert repr(trace).startswith("Trace(frames=10, decoded=10, converted=5, computed=5, reused=5, left=0, cpu")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "trisparse.Trace", "entries": [{"index": 1}]}'])
def test_trace_refuses_other_text(text: str) -> None:
    with pytest.raises(ValueError, match="text must be a trace in JSON"):
        Trace.from_json(text)


@pytest.mark.parametrize("policy", [EveryNth(3), LumaDifference(5, scene_cut=60), Confidence(0.9)], ids=str)
def test_timeline_is_drawn(tmp_path: Path, policy: Policy) -> None:
    pytest.importorskip("matplotlib")
    trace = Trace()
    list(run(video(LEVELS * 3, every=10), LevelNetwork(), policy, PREPARE, trace=trace))
    draw_timeline(trace, tmp_path / "line.png", title="a title", labels=["dark", "grey"])
    assert (tmp_path / "line.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["line.png"]
    with pytest.raises(ValueError, match="got an empty one"):
        draw_timeline(Trace(), tmp_path / "line.png")


def test_a_failing_write_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "line.png"
    path.write_bytes(b"old")
    trace = Trace()
    list(run(video(LEVELS), LevelNetwork(), EveryNth(3), PREPARE, trace=trace))
    fail_after_writing(monkeypatch, "matplotlib.figure.Figure.savefig", 1)
    with pytest.raises(OSError, match="disk full"):
        draw_timeline(trace, path)
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == b"old"
