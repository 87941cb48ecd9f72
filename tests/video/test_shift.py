"""Temporal shift: bits against the published definition, memory formats, gradients, export without our operators."""

import pytest
import torch
from torch import nn

from video.shift import TemporalShift, temporal_shift


def published(x, num_segments, fold_div, direction):
    """As in the paper's code: [0, f) from the next frame, [f, 2f) from the one before; live, [0, f) from before."""
    frames, fold = x.unflatten(0, (-1, num_segments)), x.shape[1] // fold_div
    out = torch.zeros_like(frames)
    if direction == "both":
        out[:, :-1, :fold] = frames[:, 1:, :fold]
        out[:, 1:, fold : 2 * fold] = frames[:, :-1, fold : 2 * fold]
        out[:, :, 2 * fold :] = frames[:, :, 2 * fold :]
    else:
        out[:, 1:, :fold] = frames[:, :-1, :fold]
        out[:, :, fold:] = frames[:, :, fold:]
    return out.flatten(0, 1)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("direction", ["both", "past"])
@pytest.mark.parametrize("num_segments", [1, 2, 8, 16])
@pytest.mark.parametrize("channels", [3, 24, 32, 96, 160])
def test_published_definition(channels, num_segments, direction, memory_format, device):
    x = torch.randn(2 * num_segments, channels, 7, 5, device=device).to(memory_format=memory_format).requires_grad_()
    out = temporal_shift(x, num_segments, 8, direction)
    assert torch.equal(out, published(x, num_segments, 8, direction))
    assert out.is_contiguous(memory_format=memory_format)
    upstream = torch.randn(out.shape, device=device)
    (ours,) = torch.autograd.grad(out, x, upstream)
    assert torch.equal(ours, torch.autograd.grad(published(x, num_segments, 8, direction), x, upstream)[0])


def test_no_clips(device):
    x = torch.zeros(0, 24, 4, 4, device=device, requires_grad=True)
    out = temporal_shift(x, 8)
    out.sum().backward()
    assert out.shape == x.shape == x.grad.shape


def _nodes(graph):
    """The nodes of a traced graph and of the blocks within them."""
    for node in graph.nodes():
        yield node
        for block in node.blocks():
            yield from _nodes(block)


@pytest.mark.parametrize("direction", ["both", "past"])
def test_exports_without_our_operators(direction):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = TemporalShift(nn.Conv2d(24, 8, 1), 4, direction=direction)

        def forward(self, x):
            return self.layer(x) + 1

    net, x = Net().eval(), torch.randn(8, 24, 5, 5)
    frames = torch.export.Dim("clips", min=1, max=16) * 4
    exported = torch.export.export(net, (x,), dynamic_shapes=({0: frames},))
    targets = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert not any("trisparse" in target for target in targets), targets
    assert not any("copy_" in target or "index_put" in target for target in targets), targets
    longer = torch.randn(12, 24, 5, 5)
    torch.testing.assert_close(exported.module()(longer), net(longer))
    with torch.no_grad():
        traced = torch.jit.trace(net, x)
    # By the kinds of the nodes: the graph's text holds the paths of the source files, wherever the checkout lies.
    kinds = {node.kind() for node in _nodes(traced.inlined_graph)}
    assert "aten::cat" in kinds and not any(kind.startswith("trisparse") for kind in kinds), kinds
    torch.testing.assert_close(traced(longer), net(longer))


def test_compiles_as_one_graph(device):
    x = torch.randn(8, 24, 3, 3, device=device)
    compiled = torch.compile(lambda x: temporal_shift(x, 4), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), temporal_shift(x, 4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "num_segments must be at least 1, got 0"),
        ((1.0,), "num_segments must be a whole number, got 1.0"),
        ((2, True), "fold_div must be a whole number, got True"),
        ((4, 1), "fold_div must be at least 2"),
        ((4, 0, "past"), "fold_div must be at least 2 .1 for direction 'past'., got 0"),
        ((4, 8, "future"), "direction must be one of both, past, got 'future'"),
        ((5,), r"x must be \[N \* 5, C, H, W\] .*, got float32 \[8, 24, 3, 3\]"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        temporal_shift(torch.zeros(8, 24, 3, 3), *arguments)


@pytest.fixture
def fusing(monkeypatch):
    """Every shifted 1×1 convolution that can be fused is, and each that was is counted."""
    from video.shift import fused

    calls = []
    plain = fused.shift_gemm
    monkeypatch.setattr(fused, "fused_pays", lambda *_: True)
    monkeypatch.setattr(fused, "shift_gemm", lambda *args: calls.append(args[-1]) or plain(*args))
    return calls


@pytest.mark.parametrize("direction", ["both", "past"])
@pytest.mark.parametrize(("channels", "fold_div"), [(24, 8), (96, 8), (3, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fused_into_the_convolution(dtype, channels, fold_div, direction, fusing):
    from video.packed_conv import PackedConv2d

    conv = nn.Conv2d(channels, 20, 1).to(dtype).requires_grad_(False)
    x = torch.randn(8, channels, 5, 6).to(dtype).to(memory_format=torch.channels_last)
    expected = conv.double()(published(x.double(), 4, fold_div, direction))
    conv.to(dtype)
    for net, activation in [(conv, "none"), (PackedConv2d.of(conv, "relu6"), "relu6")]:
        out = TemporalShift(net, 4, fold_div, direction)(x)
        assert fusing.pop() == activation and not fusing
        right = expected.clamp(0, 6) if activation == "relu6" else expected
        assert out.is_contiguous(memory_format=torch.channels_last) and out.dtype == dtype
        torch.testing.assert_close(out.double(), right, rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-2)


def test_not_fused_where_something_would_be_missed(fusing):
    x = torch.randn(4, 16, 5, 6).to(memory_format=torch.channels_last)
    conv = nn.Conv2d(16, 8, 1).requires_grad_(False)
    others = [
        nn.Conv2d(16, 8, 3, padding=1), nn.Conv2d(16, 8, 1, 2), nn.Conv2d(16, 8, 1, groups=2),
        nn.Conv2d(16, 8, 1, padding=1), nn.Sequential(conv), nn.Conv2d(16, 8, 1),
    ]  # fmt: skip
    for net in others[:-1]:
        net.requires_grad_(False)
    for net in others:
        torch.testing.assert_close(TemporalShift(net, 4)(x), net(published(x, 4, 8, "both")))
    TemporalShift(conv, 4)(x.contiguous())
    with torch.autocast("cpu", torch.bfloat16):
        assert TemporalShift(conv, 4)(x).dtype == torch.bfloat16
    seen = []
    handle = conv.register_forward_hook(lambda *_: seen.append(1))
    TemporalShift(conv, 4)(x)
    assert seen == [1]
    handle.remove()
    with pytest.raises(ValueError, match="num_segments=3"):
        TemporalShift(conv, 3)(x)
    assert not fusing
    TemporalShift(conv, 4)(x)
    assert len(fusing) == 1
