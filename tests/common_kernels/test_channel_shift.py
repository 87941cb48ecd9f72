"""Channels read from another row: bits against the published definition, gradients, every layout, both machines."""

import pytest
import torch

from common_kernels.channel_shift import channel_shift, reference
from common_kernels.channel_shift.layout import Layout, layout_of
from tests.common_kernels.aot import TARGETS, compile_kernel, pointer

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
BOTH = lambda fold: [(fold, 1), (fold, -1)]  # noqa: E731


def published(x, num_segments, fold):
    """The temporal shift of the TSM paper, as it is written down: zeros, then three assignments."""
    frames = x.view(-1, num_segments, *x.shape[1:]) if x.is_contiguous() else x.unflatten(0, (-1, num_segments))
    out = torch.zeros_like(frames)
    out[:, :-1, :fold] = frames[:, 1:, :fold]
    out[:, 1:, fold : 2 * fold] = frames[:, :-1, fold : 2 * fold]
    out[:, :, 2 * fold :] = frames[:, :, 2 * fold :]
    return out.flatten(0, 1)


def by_rows(x, length, groups):
    """The defining equation, row by row and channel by channel."""
    out = torch.zeros_like(x)
    offsets = [offset for n, offset in groups for _ in range(n)]
    offsets += [0] * (x.shape[1] - len(offsets))
    for i in range(x.shape[0]):
        for c, offset in enumerate(offsets):
            if 0 <= i % length + offset < length:
                out[i, c] = x[i + offset, c]
    return out


def laid_out(x, layout):
    if layout == "channels_last":
        return x.to(memory_format=torch.channels_last)
    return x if layout == "nchw" else x.transpose(2, 3).contiguous().transpose(2, 3)


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "other"])
@pytest.mark.parametrize("length", [1, 2, 8])
@pytest.mark.parametrize("channels", [3, 24, 33, 96, 160])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_published_definition_bit_for_bit(dtype, channels, length, layout, device, poisoned_memory):
    x = laid_out(torch.randn(2 * length, channels, 5, 7).to(device, dtype), layout).requires_grad_()
    fold = channels // 8
    out = channel_shift(x, length, BOTH(fold))
    assert torch.equal(out, published(x, length, fold))
    if layout != "other":
        assert out.stride() == x.stride()
    upstream = laid_out(torch.randn(out.shape).to(device, dtype), layout)
    (ours,) = torch.autograd.grad(out, x, upstream)
    (theirs,) = torch.autograd.grad(published(x, length, fold), x, upstream)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int64, torch.uint8, torch.bool, torch.complex64], ids=str)
@pytest.mark.parametrize(
    "groups",
    [[], [(3, 1)], [(2, -2), (0, 5), (4, 3), (1, 0)], [(2, 100), (2, -100)], [(9, -1)], [(4, 1), (4, -1)]],
    ids=str,
)
def test_defining_equation(groups, dtype, device):
    for shape in [(12, 9), (12, 9, 3), (12, 9, 2, 1, 3)]:
        values = torch.randint(-90, 90, shape, device=device)
        x = values > 0 if dtype == torch.bool else values.to(dtype)
        expected = by_rows(x, 4, groups)
        for given in (x, x.movedim(1, -1).contiguous().movedim(-1, 1)):
            assert torch.equal(channel_shift(given, 4, groups), expected)
            assert torch.equal(reference.channel_shift(given, 4, *zip(*groups or [(0, 0)])), expected)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("shape", [(16, 40, 33, 35), (8, 256, 60, 60)], ids=str)
def test_many_rows_on_any_number_of_threads(shape, layout, device):
    """More than one chunk of rows, wide rows, and more than the caches hold."""
    x = laid_out(torch.randn(shape, device=device), layout)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(channel_shift(x, 8, BOTH(shape[1] // 8)), published(x, 8, shape[1] // 8))
    finally:
        torch.set_num_threads(before)


def test_unaligned_memory(device):
    """Rows of whole words that begin between two words."""
    x = torch.randn(8 * 8 * 9 + 1, device=device).bfloat16()[1:].view(8, 8, 9)
    assert torch.equal(channel_shift(x, 4, [(2, 1), (2, -1)]), by_rows(x, 4, [(2, 1), (2, -1)]))


@pytest.mark.parametrize("shape", [(0, 8, 2, 2), (4, 0, 2, 2), (4, 8, 0, 2), (0, 8)], ids=str)
def test_empty(shape, device):
    x = torch.randn(shape, device=device, requires_grad=True)
    groups = [(1, 1)] if shape[1] else []
    out = channel_shift(x, 4, groups)
    out.sum().backward()
    assert out.shape == x.shape and x.grad.shape == x.shape
    assert reference.channel_shift(x, 4, [n for n, _ in groups], [1] * len(groups)).shape == x.shape


def test_arguments_are_checked():
    x = torch.zeros(6, 4)
    with pytest.raises(ValueError, match="length must be at least 1, got 0"):
        channel_shift(x, 0, [])
    with pytest.raises(ValueError, match=r"N a multiple of length=4, got float32 \[6, 4\]"):
        channel_shift(x, 4, [])
    with pytest.raises(ValueError, match=r"x must be \[N, C, ...\] .*, got float32 \[6\]"):
        channel_shift(x[:, 0], 3, [])
    with pytest.raises(ValueError, match=r"at most 4 channels in all, got \[\(3, 1\), \(2, -1\)\]"):
        channel_shift(x, 3, [(3, 1), (2, -1)])
    with pytest.raises(ValueError, match="groups must be"):
        channel_shift(x, 3, [(-1, 1)])


@pytest.mark.parametrize("shape", [(6, 9), (6, 9, 2, 2), (0, 9, 2, 2)], ids=str)
@pytest.mark.parametrize("requires_grad", [False, True], ids=["plain", "grad"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_opcheck(dtype, requires_grad, shape, device):
    for layout in ["nchw", "channels_last"] if len(shape) == 4 else ["nchw"]:
        x = laid_out(torch.randn(shape).to(device, dtype), layout).requires_grad_(requires_grad)
        torch.library.opcheck(torch.ops.trisparse.channel_shift.default, (x, 3, [2, 3], [1, -2]))


def test_gradients(device):
    x = torch.randn(6, 5, 2, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: channel_shift(x, 3, [(2, 1), (1, -2)]), x)
    assert torch.autograd.gradgradcheck(lambda x: channel_shift(x, 3, [(2, 1), (1, -2)]), x)


def test_compiles_as_one_graph(device):
    def around(x):
        return channel_shift(x.relu(), 4, BOTH(3)) * 2

    x = torch.randn(8, 24, 3, 3, device=device).to(memory_format=torch.channels_last).requires_grad_()
    out = torch.compile(around, fullgraph=True, backend="aot_eager")(x)
    (ours,) = torch.autograd.grad(out.square().sum(), x)
    expected = around(x)
    assert torch.equal(out, expected)
    assert torch.equal(ours, torch.autograd.grad(expected.square().sum(), x)[0])


def test_layout():
    x = torch.empty(4, 6, 5, 3)
    assert layout_of(x) == Layout(4, 90, 15, 1)
    assert layout_of(x.to(memory_format=torch.channels_last)) == Layout(60, 6, 1, 15)
    assert layout_of(x.permute(0, 2, 3, 1)) is None
    assert layout_of(x.transpose(2, 3)) is None


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "other"])
@pytest.mark.parametrize(("n", "channels", "pixels"), [(8, 24, 9), (4, 3, 1), (16, 160, 4), (4, 640, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.uint8], ids=str)
def test_gpu_values(dtype, n, channels, pixels, layout, kernel_device, guarded_empty):
    from common_kernels.channel_shift import gpu

    x = laid_out((torch.randn(n, channels, pixels, 1) * 50).abs().to(kernel_device, dtype), layout)
    fold = max(channels // 8, 1)
    out = None
    if layout == "nchw" and dtype != torch.uint8:
        out = guarded_empty(n, channels, pixels, 1, dtype=dtype, device=kernel_device)
    got = gpu.channel_shift(x, 4, [fold, fold], [1, -1], out)
    assert torch.equal(got, published(x, 4, fold))
    got = gpu.channel_shift(x, 4, [fold, fold], [3, -7])
    assert torch.equal(got, by_rows(x, 4, [(fold, 3), (fold, -7)]))
    assert torch.equal(gpu.channel_shift(x, 4, [], []), x)


@pytest.mark.aot
@pytest.mark.parametrize("target", TARGETS)
def test_compiles_for(target):
    from common_kernels.channel_shift import gpu

    for word in gpu.WORDS.values():
        block_rows, block_cols, num_warps = gpu.launch_config(96)
        signature = {"out_ptr": pointer(word), "x_ptr": pointer(word)}
        signature |= dict.fromkeys(("n_rows", "width", "length", "step", "inner"), "i32")
        constants = {"ENDS": (12, 24), "OFFSETS": (1, -1), "BLOCK_ROWS": block_rows, "BLOCK_COLS": block_cols}
        compile_kernel(gpu.channel_shift_kernel, target, signature, constants, num_warps=num_warps)


@pytest.mark.parametrize("width", [0, 1, 3, 24, 96, 512, 100_000])
def test_launch_config(width):
    gpu = pytest.importorskip("common_kernels.channel_shift.gpu", exc_type=ImportError)
    block_rows, block_cols, num_warps = gpu.launch_config(width)
    assert block_rows & (block_rows - 1) == 0 and block_cols & (block_cols - 1) == 0
    assert block_rows * block_cols <= 2048 and block_cols >= min(width, 512) and num_warps == 4
