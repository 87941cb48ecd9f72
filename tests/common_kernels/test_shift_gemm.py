"""The shifted matrix product against float64, its gradients, and the GPU's kernel in the interpreter and compiled."""

import re

import pytest
import torch

from common_kernels.gather_gemm import launch
from common_kernels.shift_gemm import fused_pays, reference, shift_gemm
from tests.common_kernels import aot
from tests.common_kernels.test_gather_gemm_gpu import FAMILY, MATRIX_INSTRUCTION, bf16_products  # noqa: F401

TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 8e-3}
DTYPES = list(TOLERANCE)
# (clips, frames, pixels, C, O, fold): the folds of MobileNetV2 and others that are no multiple of a block or even odd.
SHAPES = [
    (2, 8, 9, 24, 33, 3), (1, 4, 25, 32, 16, 4), (2, 2, 70, 64, 24, 8), (1, 8, 1, 96, 130, 12), (3, 1, 5, 160, 20, 20),
    (1, 2, 300, 5, 3, 2), (1, 8, 40, 256, 64, 32), (1, 3, 1, 16, 48, 8),
]  # fmt: skip


def definition(x, length, groups, weight, bias=None, residual=None, activation="none"):
    """In float64, row by row."""
    shifted = torch.zeros_like(x, dtype=torch.float64)
    begin = 0
    for n, offset in [*groups, (x.shape[1] - sum(n for n, _ in groups), 0)]:
        for row in range(x.shape[0]):
            if 0 <= row % length + offset < length:
                shifted[row, begin : begin + n] = x[row + offset, begin : begin + n].double()
        begin += n
    out = shifted @ weight.double()
    out = out if bias is None else out + bias.double()
    out = out if residual is None else out + residual.double()
    return out if activation == "none" else out.clamp(0, 6 if activation == "relu6" else None)


def operands(shape, dtype, device="cpu"):
    clips, frames, pixels, c_in, c_out, fold = shape
    rows = clips * frames * pixels
    groups = [(fold, pixels), (fold, -pixels)]
    tensors = [torch.randn(size) for size in [(rows, c_in), (c_in, c_out), (c_out,), (rows, c_out)]]
    tensors[1] *= 3 / c_in**0.5
    return frames * pixels, groups, [each.to(device, dtype) for each in tensors]


def assert_close(got, expected, dtype):
    assert got.dtype == dtype and got.shape == expected.shape
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    torch.testing.assert_close(got.cpu().double(), expected.cpu(), rtol=0, atol=TOLERANCE[dtype] * scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values(shape, dtype, device, poisoned_memory):
    length, groups, (x, weight, bias, residual) = operands(shape, dtype, device)
    assert_close(shift_gemm(x, length, groups, weight), definition(x, length, groups, weight), dtype)
    for activation in ("none", "relu", "relu6"):
        got = shift_gemm(x, length, groups, weight, bias, residual, activation)
        assert_close(got, definition(x, length, groups, weight, bias, residual, activation), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("groups", [[], [(4, 1), (2, -3), (6, 0), (4, 99)], [(16, -2)], [(8, 5), (8, -5)]], ids=str)
def test_any_groups(groups, dtype, device):
    x, weight = torch.randn(12, 16, device=device).to(dtype), torch.randn(16, 8, device=device).to(dtype)
    assert_close(shift_gemm(x, 6, groups, weight), definition(x, 6, groups, weight), dtype)


def test_rows_beyond_the_end_are_not_read(device):
    """An infinity in a neighbouring segment stays there."""
    length, groups, (x, weight, *_) = operands((2, 2, 3, 16, 8, 2), torch.bfloat16, device)
    x[6:] = torch.inf
    assert shift_gemm(x, length, groups, weight)[:6].isfinite().all()


def test_bits_do_not_depend_on_threads_or_strides():
    length, groups, (x, weight, bias, residual) = operands((2, 4, 90, 24, 40, 3), torch.float32)
    expected = shift_gemm(x, length, groups, weight, bias, residual)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            turned = weight.t().contiguous().t()
            got = shift_gemm(x.t().contiguous().t(), length, groups, turned, bias, residual.t().contiguous().t())
            assert torch.equal(got, expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(0, 8, 5), (6, 0, 5), (6, 8, 0)], ids=str)
def test_empty(shape, device):
    rows, c_in, c_out = shape
    x = torch.randn(rows, c_in, device=device, requires_grad=True)
    weight = torch.randn(c_in, c_out, device=device, requires_grad=True)
    bias = torch.randn(c_out, device=device)
    out = shift_gemm(x, 3, [(min(c_in, 2), 1)], weight, bias)
    assert torch.equal(out, bias.expand(rows, c_out)) or c_in
    out.sum().backward()
    assert x.grad.shape == x.shape and weight.grad.shape == weight.shape


@pytest.mark.parametrize("activation", ["none", "relu", "relu6"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients(dtype, activation, device):
    length, groups, leaves = operands((2, 4, 6, 24, 20, 4), dtype, device)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    truth = [leaf.detach().double().requires_grad_() for leaf in leaves]
    upstream = torch.randn(48, 20, device=device).to(dtype)
    shift_gemm(leaves[0], length, groups, *leaves[1:], activation).backward(upstream)
    expected = reference.shift_gemm(truth[0], length, *zip(*groups), *truth[1:], activation)
    expected.backward(upstream.double())
    for ours, right in zip(leaves, truth):
        gap = (ours.grad.double() - right.grad).abs()
        # A rounded result may lie on the other side of the activation's kink than the exact one.
        assert (gap > 5 * TOLERANCE[dtype] * right.grad.abs().max()).double().mean() < 0.01


def test_gradcheck(device):
    length, groups, leaves = operands((2, 2, 3, 8, 4, 2), torch.float64, device)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    assert torch.autograd.gradcheck(lambda *each: shift_gemm(each[0], length, groups, *each[1:], "relu6"), leaves)
    assert torch.autograd.gradgradcheck(lambda *each: shift_gemm(each[0], length, groups, *each[1:]), leaves)


@pytest.mark.parametrize("n", [0, 12])
@pytest.mark.parametrize("requires_grad", [False, True], ids=["plain", "grad"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_opcheck(dtype, requires_grad, n, device):
    x = torch.randn(n, 8, device=device).to(dtype).requires_grad_(requires_grad)
    weight = torch.randn(8, 5, device=device).to(dtype).requires_grad_(requires_grad)
    arguments = (x, 4, [2, 2], [1, -1], weight, None, None, "relu")
    torch.library.opcheck(torch.ops.trisparse.shift_gemm.default, arguments)


def test_compiles_as_one_graph(device):
    length, groups, (x, weight, *_) = operands((1, 4, 5, 16, 8, 2), torch.float32, device)
    x.requires_grad_()
    compiled = torch.compile(lambda x: shift_gemm(x * 2, length, groups, weight), fullgraph=True, backend="aot_eager")
    expected = shift_gemm(x * 2, length, groups, weight)
    out = compiled(x)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(
        torch.autograd.grad(out.square().sum(), x), torch.autograd.grad(expected.square().sum(), x)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 5}, "N a multiple of length=5"),
        (
            {"x": torch.zeros(6, 4, dtype=torch.int32)},
            r"x must be fp32, fp64, fp16 or bf16 \[R, C\], got int32 \[6, 4\]",
        ),
        ({"x": torch.zeros(6, 4, 2)}, r"\[R, C\], got float32 \[6, 4, 2\]"),
        ({"weight": torch.zeros(3, 5)}, r"weight must be float32 \[4, O\], got float32 \[3, 5\]"),
        ({"weight": torch.zeros(4, 5).half()}, "weight must be float32"),
        ({"bias": torch.zeros(4)}, r"bias must be float32 \[5\], got float32 \[4\]"),
        ({"residual": torch.zeros(6, 4)}, r"residual must be float32 \[6, 5\], got float32 \[6, 4\]"),
        ({"activation": "gelu"}, "activation must be one of none, relu, relu6, got 'gelu'"),
        ({"groups": [(5, 1)]}, "at most 4 channels"),
        ({"weight": torch.zeros(4, 5, device="meta")}, "weight must be on the device of x, cpu, got meta"),
    ],
)
def test_arguments_are_checked(change, message):
    arguments = {"x": torch.zeros(6, 4), "length": 3, "groups": [(1, 1)], "weight": torch.zeros(4, 5)} | change
    with pytest.raises(ValueError, match=message):
        shift_gemm(**arguments)


def test_fused_pays(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    cpu = torch.device("cpu")
    assert fused_pays(256, 64, 56 * 56, torch.float32, cpu) and fused_pays(256, 64, 56 * 56, torch.float32, cpu, True)
    assert fused_pays(160, 960, 49, torch.float32, cpu) and not fused_pays(160, 960, 49, torch.float32, cpu, True)
    assert not fused_pays(24, 144, 56 * 56, torch.float32, cpu)
    assert not fused_pays(256, 64, 56 * 56, torch.bfloat16, cpu)
    assert not fused_pays(256, 64, 56 * 56, torch.float32, torch.device("cuda"))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not fused_pays(256, 64, 56 * 56, torch.float32, cpu)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gpu_values(shape, dtype, kernel_device, guarded_empty):
    from common_kernels.shift_gemm import gpu

    length, groups, (x, weight, bias, residual) = operands(shape, dtype, kernel_device)
    channels, offsets = zip(*groups)
    out = guarded_empty(x.shape[0], weight.shape[1], dtype=dtype, device=kernel_device)
    for activation in ("relu6", "relu"):
        got = gpu.shift_gemm(x, length, channels, offsets, weight, bias, residual, activation, out=out)
        assert got is out
        # The interpreter rounds to bf16 towards zero.
        expected = definition(x, length, groups, weight, bias, residual, activation)
        assert_close(out, expected, dtype)
    turned = weight.t().contiguous().t()
    got = gpu.shift_gemm(x, length, channels, offsets, turned, None, None, "none")
    assert_close(got, definition(x, length, groups, weight), dtype)
    got = gpu.shift_gemm(x, length, [], [], weight, None, None, "none")
    assert_close(got, x.double() @ weight.double(), dtype)


def test_gpu_nan_passes_the_activation(kernel_device):
    from common_kernels.shift_gemm import gpu

    x, weight = torch.full((4, 16), torch.nan, device=kernel_device), torch.ones(16, 16, device=kernel_device)
    assert gpu.shift_gemm(x, 4, [], [], weight, None, None, "relu6").isnan().all()


@pytest.mark.aot
@pytest.mark.parametrize("target", aot.TARGETS)
@pytest.mark.parametrize(
    ("dtype", "tf32", "c_in", "c_out", "fold", "epilogue"),
    [
        (torch.float16, False, 256, 64, 32, False),
        (torch.bfloat16, False, 96, 576, 12, True),
        (torch.float16, False, 24, 144, 3, True),
        (torch.float32, True, 256, 128, 32, True),
        (torch.float32, False, 32, 192, 4, False),
    ],
    ids=str,
)
def test_compiles_for(target, dtype, tf32, c_in, c_out, fold, epilogue):
    from common_kernels.shift_gemm import gpu

    if tf32 and target == "gfx942":
        pytest.skip("TF32 is off on AMD")
    config = gpu.launch_config(c_in, c_out, launch.arithmetic(dtype, tf32), FAMILY[target])
    signature = dict.fromkeys(("out_ptr", "x_ptr", "weight_ptr"), aot.pointer(dtype))
    signature |= dict.fromkeys(("n_rows", "n_blocks_m", "length", "distance"), "i32")
    constants = {"c_in": c_in, "c_out": c_out, "weight_stride_in": 1, "weight_stride_out": c_in}
    constants |= {"ENDS": (fold, 2 * fold), "OFFSETS": (1, -1), "ACTIVATION": "relu6" if epilogue else "none"}
    constants |= {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "BLOCK_K": config.block_k, "GROUP_M": 8}
    constants |= {"INPUT_PRECISION": "tf32" if tf32 else "ieee"}
    for name in ("bias_ptr", "residual_ptr"):
        if epilogue:
            signature[name] = aot.pointer(dtype)
        else:
            constants[name] = None
    compiled = aot.compile_kernel(
        gpu.shift_gemm_kernel,
        target,
        signature,
        constants,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        enable_fp_fusion=True,
    )
    if dtype != torch.float32 or tf32:
        assert re.search(MATRIX_INSTRUCTION[target], compiled.asm)


@pytest.mark.parametrize("family", ["hopper", "ampere", "cdna"])
@pytest.mark.parametrize("unit", ["16-bit", "tf32", "fp32"])
def test_launch_config(unit, family):
    gpu = pytest.importorskip("common_kernels.shift_gemm.gpu", exc_type=ImportError)
    for c_in in (1, 3, 24, 160, 2048):
        for c_out in (1, 64, 960):
            config = gpu.launch_config(c_in, c_out, unit, family)
            assert all(b >= 16 and b & (b - 1) == 0 for b in (config.block_m, config.block_n, config.block_k))
            assert 2 <= config.num_stages <= 4 and config.num_warps in (4, 8)
