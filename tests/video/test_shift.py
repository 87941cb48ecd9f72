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
    assert "trisparse" not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(longer), net(longer))


def test_compiles_as_one_graph(device):
    x = torch.randn(8, 24, 3, 3, device=device)
    compiled = torch.compile(lambda x: temporal_shift(x, 4), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), temporal_shift(x, 4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "num_segments must be at least 1, got 0"),
        ((4, 1), "fold_div must be at least 2"),
        ((4, 0, "past"), "fold_div must be at least 2 .1 for direction 'past'., got 0"),
        ((4, 8, "future"), "direction must be one of both, past, got 'future'"),
        ((5,), r"x must be \[N \* 5, C, H, W\] .*, got float32 \[8, 24, 3, 3\]"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        temporal_shift(torch.zeros(8, 24, 3, 3), *arguments)
