"""Networks that compute only what changed, against the networks themselves."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.video.delta_clips import (
    DenseBlock,
    Function,
    Residual,
    Shuffle,
    SqueezeExcite,
    classifier,
    conv,
    patch_clip,
    settle,
)
from video import delta
from video.shift.insert import add_temporal_shift
from video.state import StreamState
from video.stream import Stream

NETWORKS = {
    "residual": lambda: classifier(
        conv(3, 16, 3, 2), nn.MaxPool2d(3, 2, 1), Residual(16, 16), Residual(16, 24, 2), channels=24
    ),
    "mobile": lambda: classifier(
        conv(3, 16, 3, 2, act=nn.ReLU6()),
        conv(16, 48, 1, act=nn.Hardswish()),
        conv(48, 48, 5, 1, 48, act=nn.ReLU6()),
        SqueezeExcite(48),
        conv(48, 24, 1, act=nn.Identity()),
        channels=24,
    ),
    "grouped": lambda: classifier(
        conv(3, 16, 3, 2), Shuffle(), conv(16, 32, 3, 2, groups=4, act=nn.SiLU()), nn.AvgPool2d(2), channels=32
    ),
    "concat": lambda: classifier(conv(3, 12, 3, 2), DenseBlock(12), nn.PReLU(30), conv(30, 16, 1), channels=16),
}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> nn.Module:
    return NETWORKS[request.param]()


def exact(model: nn.Module, clip: Tensor) -> Tensor:
    """Each frame's logits in fp64."""
    with torch.no_grad():
        return copy.deepcopy(model).double()(clip.double())


@pytest.mark.parametrize("adapt", [True, False])
def test_threshold_zero_is_the_dense_network_for_hundreds_of_frames(network: nn.Module, adapt: bool) -> None:
    clip = patch_clip(210)
    fast = delta.accelerate(network, adapt=adapt)
    right = exact(network, clip)
    assert (fast(clip) - right).abs().max() <= 1e-5 * right.abs().max()
    modes = {work.mode for work in fast.trace}
    assert "changed" in modes
    if not adapt:
        assert modes <= {"changed", "still"}
        assert fast.trace[100].share < 0.9


def test_without_adapting_a_frame_gives_the_bits_of_a_fresh_state() -> None:
    # ReLU networks only: torch's vectorised exponentials depend on a value's place in the tensor.
    model = NETWORKS["residual"]()
    clip = patch_clip(60)
    fast = delta.accelerate(model, adapt=False)
    live = fast(clip)
    for t in range(0, 60, 7):
        assert torch.equal(live[t], fast.step(clip[t : t + 1])[0][0])


def test_the_error_at_a_threshold_is_bounded_and_does_not_drift(network: nn.Module) -> None:
    clip = patch_clip(302, noise=0.02)
    fast = delta.accelerate(network, threshold=0.05, adapt=False, example=clip[:1])
    right = exact(network, clip)
    error = (fast(clip) - right).abs().amax(1) / right.abs().max()
    assert error.max() > 1e-5  # the threshold does something
    assert error.max() < 0.5
    assert error[200:].mean() <= 1.5 * error[20:60].mean()
    assert error[295:].max() <= 1.5 * error[2:40].max()
    exact_work = delta.accelerate(network, threshold=0.0, adapt=False)
    exact_work(clip[:20])
    assert fast.trace[10].macs < exact_work.trace[10].macs


def test_each_layer_stays_within_its_threshold() -> None:
    """One convolution, whose kept output and kept input are in the state."""
    model = settle(nn.Conv2d(3, 8, 3, padding=1))
    clip = patch_clip(60, noise=0.05)
    fast = delta.accelerate(
        nn.Sequential(model, nn.Conv2d(8, 4, 1)).eval(), threshold={"": 0.1}, example=clip[:1], adapt=False
    )
    state = None
    for frame in clip.split(1):
        _, state = fast.step(frame, state)
    name = fast.layer_names[0]
    kept, frame = state.tensors[f"kept.{name}"].permute(0, 3, 1, 2), state.tensors["frame"].permute(0, 3, 1, 2)
    error = (kept.clone() - model(frame.clone())).abs().max().item()
    assert 0 < error <= 0.1 * fast.scales[name] * (1 + 1e-4)
    assert (frame.clone() - clip[-1:]).abs().max() <= 0.1 * fast.scales["frame"] * (1 + 1e-4)


FUNCTIONS = {
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "gelu": F.gelu,
    "hardsigmoid, sub, mul": lambda x: F.hardsigmoid(x) * (x - 0.5) * 2,
    "channel vector": lambda x: x * torch.arange(1.0, 4.0).view(1, 3, 1, 1) + torch.ones(3, 1, 1),
    "position-wise constant": lambda x: x * torch.linspace(0, 1, 40),
    "leaky_relu, tanh": lambda x: torch.tanh(F.leaky_relu(x, 0.2)),
    "softmax over channels": lambda x: x.softmax(1),
    "softmax over pixels": lambda x: x.flatten(2).softmax(-1).view_as(x),
    "split": lambda x: torch.cat([part * i for i, part in enumerate(x.split([1, 2], 1), 1)], 1),
    "chunk": lambda x: torch.cat(x.chunk(3, 1)[::-1], 1),
    "slice of pixels": lambda x: x[:, :, 3:-2, 1::2],
    "max_pool ceil": lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
    "max_pool dilated": lambda x: F.max_pool2d(x, (2, 3), 2, 1, dilation=2),
    "avg_pool": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "avg_pool divisor": lambda x: F.avg_pool2d(x, [2, 4], divisor_override=5),
    "adaptive pools": lambda x: F.adaptive_avg_pool2d(x, 4) + F.adaptive_max_pool2d(x, 4),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "bilinear": lambda x: F.interpolate(x, size=(17, 50), mode="bilinear"),
    "group_norm": lambda x: F.group_norm(x, 3),
    "layer_norm over channels": lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (3,)).permute(0, 3, 1, 2),
    "gate of the frame": lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(),
    "gate of pixels": lambda x: x * x.mean(1, keepdim=True),
    "transposed convolution": lambda x: F.conv_transpose2d(
        x, torch.linspace(-1, 1, 3 * 5 * 9).view(3, 5, 3, 3), stride=2
    ),
    "same, even kernel": lambda x: F.conv2d(x, torch.linspace(-1, 1, 3 * 4 * 4).view(1, 3, 4, 4), padding="same"),
    "same, dilated": lambda x: F.conv2d(
        x, torch.linspace(-1, 1, 3 * 3 * 3).view(1, 3, 3, 3), padding="same", dilation=2
    ),
    "reflection pad": lambda x: F.pad(x, (1, 2, 0, 1), mode="reflect"),
    "argmax": lambda x: x.argmax(1),
    "batch folded": lambda x: F.avg_pool2d(x.flatten(0, 1)[:, None], 2).view(x.shape[0], 3, 20, 20),
    "transposed images": lambda x: x.transpose(2, 3) @ x,
    "fft": lambda x: torch.fft.rfft2(x).abs(),
    "cumsum": lambda x: x.cumsum(2),
    "scalar of all": lambda x: x - x.mean(),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("adapt", [True, False])
def test_every_operation_is_right_with_or_without_a_rule(name: str, adapt: bool) -> None:
    clip = patch_clip(12)
    function = FUNCTIONS[name]
    fast = delta.accelerate(Function(lambda x: function(x * 1.5)).eval(), adapt=adapt)
    streams = torch.stack([clip[:8], clip[4:]], 1)  # [T, 2, 3, H, W]
    state = None
    for frames in streams:
        got, state = fast.step(frames, state)
        assert got.shape == function(frames * 1.5).shape
        torch.testing.assert_close(got, function(frames * 1.5), rtol=1e-5, atol=1e-6)


def test_rules_leave_what_did_not_change() -> None:
    """A change in one corner costs a corner: no rule falls back to the whole frame."""
    model = classifier(
        conv(3, 8), nn.MaxPool2d(2), DenseBlock(8), nn.AvgPool2d(2), Residual(26, 16), nn.GELU(), channels=16
    )
    clip = patch_clip(1, 64).repeat(3, 1, 1, 1)
    clip[1, :, :4, :4] += 1
    fast = delta.accelerate(model, adapt=False)
    fast(clip)
    shares = fast.trace[1].layer_shares
    pixels = {name: share for name, share in shares.items() if not name.startswith(("adaptive", "view", "linear"))}
    assert all(0 < share < 0.25 for share in pixels.values()), pixels
    assert fast.trace[1].frame_share == 16 / 64**2
    assert fast.trace[2].macs > 0  # the corner changes back


def test_a_still_frame_computes_nothing() -> None:
    clip = patch_clip(1).repeat(4, 1, 1, 1)
    for adapt in (True, False):
        fast = delta.accelerate(NETWORKS["mobile"](), adapt=adapt)
        out = fast(clip)
        assert [work.mode for work in fast.trace[1:]] == ["still"] * 3
        assert fast.trace[1].macs == 0
        assert torch.equal(out[0].expand_as(out), out)


def test_streams_of_a_batch_do_not_see_each_other(network: nn.Module) -> None:
    clips = [patch_clip(24, seed=seed) for seed in range(3)]
    fast = delta.accelerate(network, adapt=False)
    alone = [fast(clip) for clip in clips]
    state = None
    for t in range(24):
        if t == 9:
            state.reset(1)
            clips[1] = torch.cat([clips[1][:9], clips[1][:15]])
            alone[1] = torch.cat([alone[1][:9], alone[1][:15]])
        out, state = fast.step(torch.stack([clip[t] for clip in clips]), state)
        torch.testing.assert_close(out, torch.stack([each[t] for each in alone]), rtol=1e-5, atol=1e-6)
    assert state.frames.tolist() == [24, 15, 24]


@pytest.mark.parametrize("adapt", [True, False])
def test_single_resets_with_a_threshold(adapt: bool) -> None:
    """A stream that starts anew has exactly the answers of one that starts, whatever zeros a reset leaves behind."""
    model = NETWORKS["mobile"]()
    clip = patch_clip(10)
    fast = delta.accelerate(model, threshold=0.5, example=clip[:1], adapt=adapt)
    state = None
    for t in range(5):
        _, state = fast.step(torch.stack([clip[t], 0 * clip[t]]), state)
    state.reset(1)
    right = exact(model, clip[5:6])
    out, state = fast.step(torch.stack([clip[5], clip[5]]), state)
    torch.testing.assert_close(out[1:], right.float(), rtol=1e-5, atol=1e-5)


def test_states_are_cloned_saved_and_loaded(tmp_path, network: nn.Module) -> None:
    clip = patch_clip(30)
    fast = delta.accelerate(network)
    state = None
    for frame in clip[:20].split(1):
        _, state = fast.step(frame, state)
    state.save(tmp_path / "state.safetensors")
    loaded, kept = StreamState.load(tmp_path / "state.safetensors"), state.clone()
    for frame in clip[20:].split(1):
        outs = []
        out, state = fast.step(frame, state)
        outs.append(out)
        out, loaded = fast.step(frame, loaded)
        outs.append(out)
        assert torch.equal(*outs)
    out, _ = fast.step(clip[20:21], kept)
    torch.testing.assert_close(out, exact(network, clip[20:21]).float(), rtol=1e-5, atol=1e-5)


def test_outputs_and_frames_are_not_touched_later() -> None:
    clip = patch_clip(6).contiguous(memory_format=torch.channels_last)
    before = clip.clone()
    fast = delta.accelerate(settle(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())))
    first, state = fast.step(clip[:1])
    copy_ = first.clone()
    for frame in clip[1:].split(1):
        _, state = fast.step(frame, state)
    assert torch.equal(first, copy_)
    assert torch.equal(clip, before)


class _Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16, 3, 2)
        self.layer1 = nn.Sequential(Residual(16, 16), Residual(16, 16))
        self.layer2 = nn.Sequential(Residual(16, 32, 2), Residual(32, 32))
        self.fc = nn.Linear(32, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer2(self.layer1(self.stem(x))).mean((2, 3)))


@pytest.mark.parametrize("adapt", [True, False])
def test_a_shifted_network_runs_live(adapt: bool) -> None:
    torch.manual_seed(0)
    model = settle(add_temporal_shift(_Backbone(), 8, direction="past"))
    clips = [patch_clip(40, seed=seed) for seed in range(2)]
    fast, stream = delta.accelerate(model, adapt=adapt), Stream(model)
    state = reference = None
    for t in range(40):
        if t == 17:
            state.reset(0)
            reference.reset(0)
        frames = torch.stack([clip[t] for clip in clips])
        right, reference = stream.step(frames, reference)
        out, state = fast.step(frames, state)
        torch.testing.assert_close(out, right, rtol=1e-5, atol=1e-5)
    if not adapt:
        assert fast.last_work.share < 1


def test_a_shifted_network_notices_a_change_one_frame_late() -> None:
    """After the frame stands still, what changed last is still on its way through the shifts."""
    torch.manual_seed(0)
    model = settle(add_temporal_shift(_Backbone(), 8, direction="past"))
    clip = patch_clip(2)[[0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1]]
    fast, stream = delta.accelerate(model, adapt=False), Stream(model)
    state = reference = None
    modes = []
    for frame in clip.split(1):
        right, reference = stream.step(frame, reference)
        out, state = fast.step(frame, state)
        modes.append(fast.last_work.mode)
        torch.testing.assert_close(out, right, rtol=1e-5, atol=1e-5)
    assert modes[9] == "changed"
    assert modes[-1] == "still"


def test_bf16() -> None:
    model = NETWORKS["residual"]()
    clip = patch_clip(30)
    fast = delta.accelerate(model, dtype=torch.bfloat16)
    out, right = fast(clip), exact(model, clip)
    assert out.dtype == torch.float32
    assert (out - right).abs().max() < 0.05 * right.abs().max()
    assert (out.argmax(1) == right.argmax(1)).float().mean() > 0.8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_grouped_convolution_with_a_sum_runs_as_a_whole(dtype: torch.dtype) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv(16, 16, groups=16, act=nn.Identity())

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.conv(x) + x)

    model = classifier(conv(3, 16), Block(), channels=16)
    clip = patch_clip(4)
    fast, right = delta.accelerate(model, dtype=dtype), exact(model, clip)
    limit = (1e-5 if dtype == torch.float32 else 0.03) * right.abs().max()
    assert (fast.dense(clip) - right).abs().max() <= limit
    assert (fast(clip) - right).abs().max() <= limit


def test_capturing_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        delta.accelerate(NETWORKS["residual"](), example=patch_clip(1))


def test_auto_dtype_and_fp64() -> None:
    model = NETWORKS["residual"]()
    assert delta.accelerate(model, dtype="auto")(patch_clip(2)).dtype == torch.float32
    clip = patch_clip(8).double()
    torch.testing.assert_close(delta.accelerate(copy.deepcopy(model).double())(clip), exact(model, clip))


def test_new_frame_shapes_are_captured_anew() -> None:
    model = NETWORKS["residual"]()
    fast = delta.accelerate(model, example=patch_clip(1))
    for clip in (patch_clip(5), patch_clip(5, 55)):
        torch.testing.assert_close(fast(clip), exact(model, clip).float(), rtol=1e-5, atol=1e-5)


def test_moving_video_runs_as_a_whole_most_of_the_time() -> None:
    clip = torch.randn(200, 3, 24, 24)
    fast = delta.accelerate(classifier(conv(3, 8, 3, 2), conv(8, 8), channels=8))
    fast(clip)
    modes = [work.mode for work in fast.trace]
    assert modes.count("dense") >= 190
    assert modes.count("kept") <= 1 + 200 // 7
    fast(torch.cat([clip[:40], clip[39:40].expand(20, -1, -1, -1)]))
    assert [work.mode for work in fast.trace[-3:]] == ["still"] * 3


def test_the_policy_depends_on_the_frames_alone() -> None:
    clip = torch.cat([torch.randn(9, 3, 40, 40), patch_clip(20)])
    fast = delta.accelerate(NETWORKS["mobile"](), example=clip[:1])
    first, modes = fast(clip), [work.mode for work in fast.trace]
    assert torch.equal(first, fast(clip))
    assert [work.mode for work in fast.trace] == modes


def test_no_frames_give_no_outputs() -> None:
    fast = delta.accelerate(NETWORKS["residual"]())
    assert fast(torch.empty(0, 3, 40, 40)).shape == (0, 10)
    out, state = fast.step(torch.empty(0, 3, 40, 40))
    assert out.shape == (0, 10) and len(state) == 0


def test_output_structures_are_kept() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    torch.manual_seed(0)
    model = settle(transformers.ResNetForImageClassification(config))
    clip = patch_clip(6)
    fast = delta.accelerate(model)
    out = fast(clip)
    assert type(out) is type(model(clip))
    torch.testing.assert_close(out.logits, model(clip).logits, rtol=1e-5, atol=1e-5)
    pair = delta.accelerate(Function(lambda x: {"a": x + 1, "b": [x.mean((1, 2, 3)), None]}).eval())(clip)
    torch.testing.assert_close(pair["b"][0], clip.mean((1, 2, 3)))
    assert pair["b"][1] is None
