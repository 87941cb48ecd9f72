"""Stream: a network that is shown one frame at a time gives the answers of the whole clip, past only."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from video.accelerate import accelerate
from video.models import TSM
from video.shift import TemporalShift
from video.state import StreamState
from video.stream import LiveNetwork, RecentMean, Stream


class Block(nn.Module):
    """A residual block whose branch is shifted; C = 21 leaves folds that divide nothing."""

    def __init__(self, channels: int, direction: str, num_segments: int) -> None:
        super().__init__()
        conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv1 = TemporalShift(conv, num_segments, 8, direction)
        self.bn1 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.bn1(self.conv1(x))
        # In place: a memory that were a view of x would change with it.
        return x.relu_() + branch


def network(direction: str = "past", num_segments: int = 8, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    blocks = [Block(21, direction, num_segments) for _ in range(3)]
    layers = [nn.Conv2d(3, 21, 3, 2, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(21, 5)]
    return nn.Sequential(*layers).eval()


def tsm(backbone: str, width: float) -> TSM:
    """With a head that gives logits of about 1: the published initialisation would hide errors in nearly zero."""
    torch.manual_seed(0)
    model = TSM(backbone, 7, direction="past", backbone_arguments={"width": width}).eval()
    nn.init.normal_(model.new_fc.weight)
    with torch.no_grad():
        model.new_fc.weight /= model.frame_logits(clip(8, size=32, seed=9)[:, 0]).abs().max()
    return model


def clip(frames: int, streams: int = 1, size: int = 16, seed: int = 1) -> Tensor:
    """[frames, streams, 3, size, size] of variance 1, each frame like the one before."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(frames, streams, 3, size, size, generator=generator)
    for before, frame in itertools.pairwise(noise):
        frame.mul_(0.6).add_(before, alpha=0.8)
    return noise


def run(stream: Stream, frames: Tensor, state: StreamState | None = None) -> tuple[Tensor, StreamState | None]:
    outputs = []
    for frame in frames:
        output, state = stream.step(frame, state)
        outputs.append(output)
    return torch.stack(outputs), state


@contextmanager
def published_online_definition(model: nn.Module, buffers: dict[str, Tensor]) -> Iterator[None]:
    """The online shift as published, cat(buffer, x[:, f:]) keeping x[:, :f], before each convolution that is shifted.

    Runs on the convolutions within the shifts, to which a clip of one frame hands its input with zeros in front.
    """
    shifts = {name: m for name, m in model.named_modules() if isinstance(m, TemporalShift)}

    def hook(name: str, fold_div: int) -> Callable[[nn.Module, tuple[Tensor]], tuple[Tensor]]:
        def before(module: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
            (x,) = arguments
            fold = x.shape[1] // fold_div
            buffer = buffers.get(name, torch.zeros_like(x[:, :fold]))
            buffers[name] = x[:, :fold].clone()
            return (torch.cat([buffer, x[:, fold:]], 1),)

        return before

    # The shifts themselves do nothing here: their input reaches `net` through the hook alone.
    handles, forwards = [], {}
    for name, module in shifts.items():
        handles.append(module.net.register_forward_pre_hook(hook(name, module.fold_div)))  # type: ignore[arg-type]
        forwards[name] = module.forward
        module.forward = module.net.__call__
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module in shifts.values():
            del module.forward


def test_equals_the_published_online_definition() -> None:
    model, frames = network(), clip(12, streams=3)
    ours, state = run(Stream(model), frames)
    buffers: dict[str, Tensor] = {}
    with torch.no_grad(), published_online_definition(model, buffers):
        published = torch.stack([model(frame) for frame in frames])
    assert torch.equal(ours, published)
    assert state is not None
    assert state.tensors.keys() == buffers.keys()
    for name, buffer in buffers.items():
        assert torch.equal(state.tensors[name], buffer)


def test_equals_the_clip_over_300_frames() -> None:
    frames = clip(300)
    model = network(num_segments=300)
    with torch.no_grad():
        offline = model(frames[:, 0])
    live, state = run(Stream(model), frames)
    torch.testing.assert_close(live[:, 0], offline, rtol=0, atol=1e-5)
    assert state is not None
    assert state.frames.tolist() == [300]
    # The shift matters: without its memory the answers are others.
    fresh = torch.stack([Stream(model).step(frame)[0][0] for frame in frames[1:]])
    assert (fresh - offline[1:]).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("backbone", "width", "frames"), [("resnet18", 64, 300), ("mobilenet_v2", 1.0, 300), ("resnet50", 16, 100)]
)
def test_tsm_equals_its_clip(backbone: str, width: float, frames: int) -> None:
    model = tsm(backbone, width)
    shown = clip(frames, size=32)
    model.num_segments = frames
    with torch.no_grad():
        offline = model.frame_logits(shown[:, 0])
        mean = model(shown[:, 0])
    live, state = run(Stream(model), shown)
    torch.testing.assert_close(live[:, 0], offline, rtol=0, atol=1e-5)
    torch.testing.assert_close(live.mean(0), mean, rtol=0, atol=1e-5)
    assert offline.abs().max() > 0.5
    assert state is not None
    assert len(state.tensors) == {"resnet18": 8, "mobilenet_v2": 10, "resnet50": 16}[backbone]


def test_nothing_but_rounding_separates_tsm_from_its_clip() -> None:
    model, shown = tsm("mobilenet_v2", 0.5).double(), clip(50, size=32).double()
    model.num_segments = 50
    with torch.no_grad():
        offline = model.frame_logits(shown[:, 0])
    torch.testing.assert_close(run(Stream(model), shown)[0][:, 0], offline, rtol=0, atol=1e-12)


def test_tsm_streams_that_reset_in_the_middle() -> None:
    model = tsm("resnet18", 16)
    stream, shown = Stream(model), clip(24, streams=3, size=33)
    _, state = run(stream, shown[:5])
    assert state is not None
    live, state = run(stream, shown[5:13], state.reset([0, 2]))
    assert state is not None
    later, _ = run(stream, shown[13:], state.reset(2))
    for row, start in ((0, 5), (1, 0), (2, 13)):
        model.num_segments = 24 - start
        with torch.no_grad():
            offline = model.frame_logits(shown[start:, row])
        together = torch.cat([live, later])[-len(offline) :, row]
        torch.testing.assert_close(together, offline[-len(together) :], rtol=0, atol=1e-5)


def test_the_published_states_of_mobilenet() -> None:
    shapes = list(LiveNetwork(tsm("mobilenet_v2", 1.0)).state_shapes((1, 3, 224, 224)).values())
    assert shapes == [
        (1, 3, 56, 56),
        *[(1, 4, 28, 28)] * 2,
        *[(1, 8, 14, 14)] * 3,
        *[(1, 12, 14, 14)] * 2,
        *[(1, 20, 7, 7)] * 2,
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_accelerated_network_streams_as_its_clip(dtype: torch.dtype) -> None:
    model, shown = tsm("mobilenet_v2", 0.5), clip(20, size=32)
    expected, _ = run(Stream(model), shown)
    fast = accelerate(model, dtype=dtype)
    live, state = run(Stream(fast), shown)
    fast.num_segments = 20
    with torch.no_grad():
        torch.testing.assert_close(live[:, 0], fast.frame_logits(shown[:, 0]), rtol=0, atol=1e-5)
    torch.testing.assert_close(live, expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.1)
    assert state is not None
    assert {tensor.dtype for tensor in state.tensors.values()} == {dtype}


def test_channels_last_equals_contiguous(tmp_path: Path) -> None:
    frames = clip(6, streams=2)
    plain, _ = run(Stream(network()), frames)
    stream = Stream(network().to(memory_format=torch.channels_last))
    frames = torch.stack([f.contiguous(memory_format=torch.channels_last) for f in frames])
    first, state = run(stream, frames[:3])
    assert state is not None
    # A file keeps values, not memory formats; what the layers get does not change by it.
    kept = state.clone()
    state.save(tmp_path / "state")
    formats = []
    hook = stream.model[1].conv1.net.register_forward_pre_hook(  # type: ignore[index,union-attr]
        lambda _, x: formats.append(x[0].is_contiguous(memory_format=torch.channels_last))
    )
    second, _ = run(stream, frames[3:], StreamState.load(tmp_path / "state"))
    hook.remove()
    assert formats == [True] * 3
    third, _ = run(stream, frames[3:], kept)
    torch.testing.assert_close(torch.cat([first, second]), plain, rtol=0, atol=1e-5)
    assert torch.equal(second, third)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_dtypes(dtype: torch.dtype) -> None:
    model, frames = network(num_segments=20).to(dtype), clip(20).to(dtype)
    with torch.no_grad():
        offline = model(frames[:, 0])
    live, state = run(Stream(model), frames)
    assert state is not None
    assert {t.dtype for t in state.tensors.values()} == {dtype}
    tolerance = 1e-12 if dtype == torch.float64 else 0.05
    torch.testing.assert_close(live[:, 0], offline, rtol=tolerance, atol=tolerance)


def test_reset_equals_a_fresh_start_bit_for_bit() -> None:
    stream, frames = Stream(network()), clip(10, streams=3)
    _, state = run(stream, frames[:4])
    assert state is not None
    other = state.clone()
    after, state = run(stream, frames[4:], state.reset([1]))
    untouched, _ = run(stream, frames[4:], other)
    fresh, _ = run(stream, frames[4:])
    assert torch.equal(after[:, 1], fresh[:, 1])
    assert torch.equal(after[:, [0, 2]], untouched[:, [0, 2]])
    assert not torch.equal(after[:, 1], untouched[:, 1])
    assert state is not None
    assert state.frames.tolist() == [10, 6, 10]


def test_streams_of_a_batch_do_not_see_each_other() -> None:
    stream, frames = Stream(network()), clip(5, streams=3)
    together, _ = run(stream, frames)
    for i in range(3):
        alone, _ = run(stream, frames[:, i : i + 1])
        torch.testing.assert_close(together[:, i : i + 1], alone, rtol=0, atol=1e-5)


def test_a_state_survives_its_successors() -> None:
    stream, frames = Stream(network()), clip(4)
    _, state = run(stream, frames[:2])
    assert state is not None
    kept = state.clone()
    once, _ = run(stream, frames[2:], state)
    again, _ = run(stream, frames[2:], kept)
    assert torch.equal(once, again)


def test_two_threads_on_one_model() -> None:
    stream, frames = Stream(network()), clip(40, streams=2)
    expected = [run(stream, frames[:, i : i + 1])[0] for i in range(2)]
    results: dict[int, Tensor] = {}
    start = threading.Barrier(2)

    def work(i: int) -> None:
        start.wait()
        results[i] = run(stream, frames[:, i : i + 1])[0]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(2):
        torch.testing.assert_close(results[i], expected[i], rtol=0, atol=1e-6)


def test_a_live_step_leaves_clips_as_they_are() -> None:
    model, frames = network(num_segments=4), clip(4)
    with torch.no_grad():
        before = model(frames[:, 0])
        Stream(model).step(frames[0])
        assert torch.equal(model(frames[:, 0]), before)


def test_no_streams() -> None:
    stream = Stream(network())
    output, state = stream.step(torch.zeros(0, 3, 16, 16))
    assert output.shape == (0, 5)
    output, state = stream.step(torch.zeros(0, 3, 16, 16), state)
    assert len(state) == 0


def test_network_without_shift_counts_frames() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    frames = clip(3, streams=2)
    outputs, state = run(Stream(model), frames)
    assert state is not None
    assert state.tensors == {}
    assert state.frames.tolist() == [3, 3]
    with torch.no_grad():
        assert torch.equal(outputs[2], model(frames[2]))


def test_a_shift_of_fewer_channels_than_its_divisor_moves_nothing() -> None:
    model = nn.Sequential(TemporalShift(nn.Conv2d(3, 4, 1), 8, 8, "past")).eval()
    frames = clip(3)
    outputs, state = run(Stream(model), frames)
    assert state is not None
    assert state.tensors["0"].shape == (1, 0, 16, 16)
    with torch.no_grad():
        assert torch.equal(outputs[2], model[0].net(frames[2]))


def test_the_future_is_refused() -> None:
    for make in (Stream, LiveNetwork):
        with pytest.raises(ValueError, match=r"1\.conv1 shifts in direction 'both': a live network cannot read"):
            make(network("both"))


def test_training_mode_is_refused() -> None:
    model = network()
    stream = Stream(model)
    model[1].bn1.train()
    with pytest.raises(ValueError, match="model must be in evaluation mode, got a BatchNorm2d in training mode"):
        stream.step(clip(1)[0])


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.zeros(3, 16, 16), r"frames must be normalised floating-point \[B, C, H, W\], got float32 \[3, 16, 16\]"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), r"got uint8 \[1, 3, 16, 16\]"),
        (torch.zeros(4, 3, 16, 16), "state holds 3 streams, frames are of 4"),
        (
            torch.zeros(3, 3, 24, 16),
            r"state holds float32 \[3, 2, 8, 8\] for 1.conv1, this frame needs \[3, 2, 12, 8\]",
        ),
        (torch.zeros(3, 3, 24, 16), r"frames change size must be reset\(\)"),
    ],
    ids=["no batch", "uint8", "streams", "size", "size advice"],
)
def test_frames_that_do_not_fit(frames: Tensor, message: str) -> None:
    stream = Stream(network())
    _, state = stream.step(clip(1, streams=3)[0])
    with pytest.raises(ValueError, match=message):
        stream.step(frames, state)


def test_after_a_reset_frames_may_have_another_size() -> None:
    stream = Stream(network())
    _, state = stream.step(clip(1)[0])
    larger = clip(2, size=20)
    outputs, _ = run(stream, larger, state.reset())
    assert torch.equal(outputs, run(stream, larger)[0])


def test_states_of_other_networks() -> None:
    frame = clip(1)[0]
    stream = Stream(network())
    _, state = stream.step(frame)
    _, other = Stream(nn.Sequential(network()).eval()).step(frame)
    with pytest.raises(ValueError, match=r"state is of another network: it holds 0\.1\.conv1"):
        stream.step(frame, other)
    with pytest.raises(ValueError, match="state is of another network: it holds no tensors"):
        stream.step(frame, StreamState({}, torch.ones(1, dtype=torch.int64)))
    part = StreamState({"1.conv1": state.tensors["1.conv1"]}, state.frames)
    with pytest.raises(ValueError, match=r"it holds nothing for 2\.conv1, only 1\.conv1"):
        stream.step(frame, part)
    with pytest.raises(ValueError, match=r"state holds float64 .* this frame needs float32 .*state\.to"):
        stream.step(frame, state.to(torch.float64))


def test_a_shift_that_runs_twice_is_refused() -> None:
    block = Block(21, "past", 8)
    model = nn.Sequential(nn.Conv2d(3, 21, 3), block, block).eval()
    with pytest.raises(ValueError, match=r"1\.conv1 ran twice for one frame"):
        Stream(model).step(clip(1)[0])


def test_live_network_spells_the_memory_out() -> None:
    model, frames = network(), clip(5, streams=2)
    live = LiveNetwork(model)
    assert live.state_names == ("1.conv1", "2.conv1", "3.conv1")
    assert not live.training
    shapes = live.state_shapes((2, 3, 16, 16))
    assert shapes == dict.fromkeys(live.state_names, (2, 2, 8, 8))
    states = [torch.zeros(shape) for shape in shapes.values()]
    outputs = []
    with torch.no_grad():
        for frame in frames:
            output, *states = live(frame, *states)
            outputs.append(output)
    assert torch.equal(torch.stack(outputs), run(Stream(model), frames)[0])
    with pytest.raises(ValueError, match="states must be 3 tensors, got 2"):
        live(frames[0], *states[:2])


def test_live_network_whose_shift_does_not_run() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = TemporalShift(nn.Conv2d(3, 4, 1), 8, 3, "past")
            self.auxiliary = TemporalShift(nn.Conv2d(3, 4, 1), 8, 3, "past")

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    model = Unused().eval()
    with pytest.raises(ValueError, match="the network did not run its shift auxiliary"):
        LiveNetwork(model).state_shapes((1, 3, 4, 4))
    _, state = run(Stream(model), clip(3))
    assert state is not None
    assert list(state.tensors) == ["used"]


def test_recent_mean() -> None:
    outputs = torch.randn(9, 2, 4, generator=torch.Generator().manual_seed(0))
    recent, state, means = RecentMean(3), None, []
    for i, output in enumerate(outputs):
        if i == 5 and state is not None:
            state.reset(1)
        mean, state = recent.step(output, state)
        means.append(mean)
    for i, mean in enumerate(means):
        torch.testing.assert_close(mean[0], outputs[max(0, i - 2) : i + 1, 0].mean(0))
        first = max(5 if i >= 5 else 0, i - 2)
        torch.testing.assert_close(mean[1], outputs[first : i + 1, 1].mean(0))
    with pytest.raises(ValueError, match="frames must be at least 1, got 0"):
        RecentMean(0)
    with pytest.raises(ValueError, match="state holds 2 streams, output is of 3"):
        recent.step(torch.zeros(3, 4), state)
    with pytest.raises(ValueError, match=r"state must hold recent \[2, 3, 6\]"):
        recent.step(torch.zeros(2, 6), state)
