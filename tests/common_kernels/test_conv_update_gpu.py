"""The GPU's updates: values in the interpreter (or on a GPU) against the references, machine code ahead of time."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from common_kernels.conv_update import reference
from common_kernels.pool_update import reference as pool_reference
from common_kernels.reach import reference as reach_reference
from common_kernels.row_update import reference as rows_reference
from common_kernels.windows import Window
from tests.common_kernels import aot
from tests.common_kernels.interpreter import exact_bf16_products
from tests.conftest import INTERPRETED

# The interpreter rounds fp32 to bf16 towards zero, so the whole last bit may differ.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
# (Cin, Cout, kernel, stride, padding, dilation, groups): blocks of channels, packed taps, depthwise, groups.
LAYERS = [
    (16, 24, 3, 1, 1, 1, 1), (3, 20, 3, 2, 1, 1, 1), (33, 140, 1, 1, 0, 1, 1), (20, 20, 3, 1, 1, 1, 20),
    (70, 70, 5, 2, 2, 1, 70), (12, 18, 3, 1, 2, 2, 3),
]  # fmt: skip


@pytest.fixture(autouse=True)
def bf16_products(monkeypatch: pytest.MonkeyPatch) -> None:
    exact_bf16_products(monkeypatch)


def close(got: Tensor, expected: Tensor) -> bool:
    difference = (got.double() - expected.double()).abs().max()
    return bool(difference <= TOLERANCE[got.dtype] * max(1.0, expected.abs().max().item()))


@pytest.mark.parametrize(
    ("dtype", "activation"), [(torch.float32, "silu"), (torch.float16, "hardswish"), (torch.bfloat16, "relu6")], ids=str
)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.usefixtures("poisoned_memory")
def test_convolution(layer: tuple, dtype: torch.dtype, activation: str, kernel_device: str) -> None:
    from common_kernels.conv_update import gpu

    c_in, c_out, kernel, stride, padding, dilation, groups = layer
    window = Window.of(kernel, stride, padding, dilation)

    def operand(*shape: int) -> Tensor:
        return torch.randn(shape).to(kernel_device, dtype)

    weight, bias = operand(c_out, c_in // groups, kernel, kernel) / (c_in // groups * kernel**2) ** 0.5, operand(c_out)
    x = operand(2, 6, 7, c_in)
    run = gpu.Layer(weight, bias, window, groups, activation)
    shape = (2, *window.output_size(6, 7), c_out)
    residual, out = operand(*shape), torch.full(shape, 77.0, dtype=dtype, device=kernel_device)

    def right() -> Tensor:
        given = (x.double(), weight.double(), bias.double(), window, groups, residual.double(), activation)
        return reference.convolve(*given)

    assert run(x, None, out, residual, None, 0.0, None).all()
    assert close(out, right())
    before = out.clone()
    changed = torch.zeros(2, 6, 7, dtype=torch.bool, device=kernel_device)
    changed[1, 2:4, 3:5] = True
    x[changed] += 1
    also = torch.zeros(shape[:3], dtype=torch.bool, device=kernel_device)
    also[0, 0, 1] = True
    residual[0, 0, 1] += 1
    moved = run(x, changed, out, residual, also, 0.0, None)
    assert close(out, right())
    assert torch.equal(moved, (out != before).any(-1))
    assert moved[1].any() and moved[0].sum() <= 1
    everything = torch.full_like(out, 77.0)
    run(x, None, everything, residual, None, 0.0, None)
    # NumPy's products of fp32, which the interpreter takes, depend on a row's place.
    same = close if INTERPRETED else torch.equal
    assert same(out, everything), "a pixel's result depends on which others are active"
    assert not run(x, None, everything, residual, None, 0.0, None).any()
    assert not run(x + 1e-3, None, out, residual, None, 1.0, None).any()


@pytest.mark.parametrize("density", [0.0, 0.03, 1.0])
@pytest.mark.parametrize("window", [(3, 2, 1, 1), ((1, 5), (1, 1), (0, 4), (1, 2))], ids=str)
def test_reach_and_list(window: tuple, density: float, kernel_device: str) -> None:
    from common_kernels.reach import gpu

    taps = Window.of(*window)
    changed = torch.rand(3, 40, 37).to(kernel_device) < density
    right = reach_reference.reach(changed, taps)
    assert torch.equal(gpu.reach(changed, taps), right)
    mask, rows, count = gpu.list_active(changed, None, taps, (3, 40, 37), changed.device)
    assert torch.equal(mask, right)
    assert torch.equal(rows[: int(count)].long(), right.flatten().nonzero().squeeze(1))


@pytest.mark.parametrize("form", ["all", "mask", "index"])
@pytest.mark.parametrize("dtype", [*TOLERANCE, torch.uint8], ids=str)
@pytest.mark.parametrize("channels", [3, 150])
def test_rows(channels: int, dtype: torch.dtype, form: str, kernel_device: str) -> None:
    from common_kernels.row_update import gpu

    old = torch.randint(20, 90, (7, 30, channels))
    new = (old + torch.tensor([0, 1, 5])[torch.randint(0, 3, (7, 30, 1))]).to(kernel_device, dtype)
    old = old.to(kernel_device, dtype)
    index = torch.rand(7, 30).to(kernel_device) < 0.4 if form != "all" else None
    if form == "index":
        index = index.flatten().nonzero().squeeze(1).flip(0)
        new = new.view(-1, channels)[index]
    got, right = old.clone(), old.clone()
    moved = gpu.update_rows(got, new, index, 2.0)
    assert torch.equal(moved, rows_reference.update_rows(right, new, index, 2.0))
    assert torch.equal(got, right)


@pytest.mark.parametrize(
    ("kind", "ceil_mode", "padded", "divisor"),
    [("max", False, True, None), ("max", True, True, None), ("avg", True, True, None), ("avg", True, False, None),
     ("avg", False, True, 5)],
)  # fmt: skip
@pytest.mark.parametrize("channels", [20, 70])
def test_pool(channels: int, kind: str, ceil_mode: bool, padded: bool, divisor: int | None, kernel_device: str) -> None:
    from common_kernels.pool_update import gpu

    window = Window.of(3, 2, 1, 1, ceil_mode)
    x = torch.randn(2, 10, 9, channels).to(kernel_device)
    x[0, 2, 2, 1] = float("nan")
    right = pool_reference.pool(x, kind, window, padded, divisor)
    out = torch.full_like(right, 77.0)
    assert gpu.pool_update(x, None, out, kind, window, padded, divisor, 0.0).all()
    assert torch.allclose(out, right, equal_nan=True, rtol=1e-5, atol=1e-6)
    changed = torch.zeros(2, 10, 9, dtype=torch.bool, device=kernel_device)
    changed[1, 4, 4] = True
    x[1, 4, 4] += 9
    moved = gpu.pool_update(x, changed, out, kind, window, padded, divisor, 0.0)
    assert torch.allclose(
        out, pool_reference.pool(x, kind, window, padded, divisor), equal_nan=True, rtol=1e-5, atol=1e-6
    )
    assert moved[1].any() and not moved[0].any()


_SIZES = "height width rows cols stride_y stride_x pad_y pad_x dilation_y dilation_x"
_GEOMETRY = dict.fromkeys(_SIZES.split(), "i32")
_MATRIX_INSTRUCTION = {"sm80": r"mma\.sync", "sm90": r"wgmma", "sm100": r"tcgen05\.mma", "gfx942": r"v_mfma"}


@pytest.mark.aot
@pytest.mark.parametrize("target", aot.TARGETS)
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((64, 64), torch.float32), ((64, 64), torch.bfloat16), ((128, 256), torch.float16), ((3, 32), torch.float16)],
    ids=str,
)
def test_convolution_compiles(shape: tuple[int, int], target: str, dtype: torch.dtype) -> None:
    from common_kernels.conv_update import gpu
    from common_kernels.gather_gemm import launch

    c_in, c_out = shape
    family = {"sm80": "ampere", "gfx942": "cdna"}.get(target, "hopper")
    # TF32 where NVIDIA's fp32 may use it; the exact fp32 has no tensor cores, on AMD neither.
    tensor_cores = dtype != torch.float32 or target != "gfx942"
    unit = launch.arithmetic(dtype, tensor_cores)
    config = gpu.launch_config(c_in, c_out, unit, family)
    fused, packed = c_out <= config.block_n, c_in <= launch.PACKED_CHANNELS
    data = aot.pointer(dtype)
    absent = {} if not fused else {"new_ptr": None}
    signature = {
        "out_ptr": data, "mask_ptr": "*i1", "x_ptr": data, "weight_ptr": data, "bias_ptr": data, "residual_ptr": data,
        "rows_ptr": "*i32", "count_ptr": "*i64", **_GEOMETRY, "c_in": "i32", "c_out": "i32", "threshold": "fp32",
        **({} if fused else {"new_ptr": data}),
    }  # fmt: skip
    constants = dict(
        GROUPS=1, TAPS=9, KERNEL_X=3, ACTIVATION=4, PACKED=packed, K_BLOCKS=-(-c_in // config.block_k),
        BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_K=config.block_k,
        INPUT_PRECISION="tf32" if unit == "tf32" else "ieee", **absent,
    )  # fmt: skip
    compiled = aot.compile_kernel(
        gpu.conv_update_kernel, target, signature, constants, num_warps=config.num_warps, num_stages=config.num_stages,
        enable_fp_fusion=True,
    )  # fmt: skip
    # Packed taps stay in registers, which Blackwell's tensor cores do not read: Triton takes the older ones there.
    if tensor_cores and not packed:
        assert re.search(_MATRIX_INSTRUCTION[target], compiled.asm)
    elif tensor_cores:
        assert re.search(r"mma|v_mfma", compiled.asm)


@pytest.mark.aot
@pytest.mark.parametrize(
    ("kind", "dtype"), [("depthwise", torch.bfloat16), ("max", torch.float16), ("avg", torch.float32)], ids=str
)
def test_slide_compiles(kind: str, dtype: torch.dtype) -> None:
    from common_kernels.conv_update import gpu

    data = aot.pointer(dtype)
    weighted = kind == "depthwise"
    optional = {"weight_ptr": data, "bias_ptr": data, "residual_ptr": data, "new_ptr": data}
    signature = {
        "out_ptr": data, "mask_ptr": "*i1", "x_ptr": data, "rows_ptr": "*i32", "count_ptr": "*i64", **_GEOMETRY,
        "channels": "i32", "divisor": "i32", "threshold": "fp32", **(optional if weighted else {}),
    }  # fmt: skip
    constants = dict(
        KIND=kind, PADDED=True, KERNEL_Y=3, KERNEL_X=3, ACTIVATION=3 if weighted else 0, BLOCK_M=32, BLOCK_C=64,
        **({} if weighted else dict.fromkeys(optional)),
    )  # fmt: skip
    aot.compile_all(gpu.slide_kernel, signature, constants, num_warps=4, enable_fp_fusion=True)


@pytest.mark.aot
@pytest.mark.parametrize(("listed", "dtype"), [(False, torch.uint8), (True, torch.bfloat16)], ids=str)
def test_settle_compiles(dtype: torch.dtype, listed: bool) -> None:
    from common_kernels.row_update import gpu

    data = aot.pointer(dtype)
    lists = {"index_ptr": "*i32", "count_ptr": "*i64"}
    signature = {
        "out_ptr": data, "changed_ptr": "*i1", "new_ptr": data, "limit": "i32", "n_rows": "i32",
        "channels": "i32", "threshold": "fp32", **(lists if listed else {}),
    }  # fmt: skip
    constants = dict(PICKED=listed, BLOCK_M=32, BLOCK_C=128, **({} if listed else dict.fromkeys(lists)))
    aot.compile_all(gpu.settle_kernel, signature, constants, num_warps=4, enable_fp_fusion=True)


@pytest.mark.aot
def test_reach_compiles() -> None:
    from common_kernels.reach import gpu

    signature = {
        "mask_ptr": "*i1", "counts_ptr": "*i64", "changed_ptr": "*i1", "also_ptr": "*i1", "n": "i32", **_GEOMETRY,
    }  # fmt: skip
    aot.compile_all(gpu.reach_kernel, signature, dict(KERNEL_Y=3, KERNEL_X=3, BLOCK=1024))
