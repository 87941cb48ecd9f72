"""Machine code of the GPU's varlen attention, compiled ahead of time for every family. Needs no GPU."""

from __future__ import annotations

import itertools
import re

import pytest
import torch

from common_kernels.gather_gemm import launch
from common_kernels.varlen_attention import gpu_launch
from tests.common_kernels import aot

FAMILY = {"sm80": "ampere", "sm90": "hopper", "sm100": "hopper", "gfx942": "cdna"}
MATRIX_INSTRUCTION = {"sm80": r"mma\.sync", "sm90": r"wgmma\.mma_async", "sm100": r"tcgen05\.mma", "gfx942": "v_mfma"}


# (channels of a head, dtype, variant)
Case = tuple[int, torch.dtype, dict[str, bool]]
EVERYWHERE: list[Case] = [
    (64, torch.bfloat16, {}),
    (32, torch.float16, {"causal": True, "with_bias": True}),
    (256, torch.bfloat16, {"window": True}),
    (64, torch.float32, {"with_bias": True}),
]
ON_HOPPER: list[Case] = [
    (80, torch.bfloat16, {"causal": True, "window": True}),
    (128, torch.bfloat16, {"causal": True, "with_bias": True}),
    (256, torch.float32, {"causal": True}),
    (64, torch.float32, {"tf32": True}),
    (256, torch.float32, {"tf32": True, "with_bias": True}),
]


def compile_pass(
    name: str,
    target: str,
    head_dim: int,
    dtype: torch.dtype,
    *,
    tf32: bool = False,
    causal: bool = False,
    window: bool = False,
    with_bias: bool = False,
    strided: bool = False,
    values: bool = True,
    ones: bool = False,
) -> aot.Compiled:
    """Compile one of gpu_launch.PASSES as `launch_config` wants it. `ones`: run-time sizes of 1 become constants."""
    from common_kernels.varlen_attention import gpu

    kernel = getattr(gpu, f"{name}_kernel")
    unit = launch.arithmetic(dtype, tf32)
    config = gpu_launch.launch_config(name, head_dim, unit, FAMILY[target])
    known = {
        "CAUSAL": causal,
        "WINDOW": window,
        "STRIDED": strided,
        "HEAD_DIM": head_dim,
        "BLOCK_D": gpu_launch.padded_head(head_dim),
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "SEARCH_WIDTH": gpu.SEARCH_WIDTH,
        "INPUT_PRECISION": "tf32" if tf32 else "ieee",
    }
    if not with_bias:
        known |= {"bias_ptr": None, "dbias_ptr": None}
    if not values:
        known |= {"out_ptr": None, "v_ptr": None}
    if ones:
        known |= dict.fromkeys(("n_heads", "n_heads_k", "group"), 1)
    in_fp32 = ("lse_ptr", "delta_ptr", "bias_ptr", "dbias_ptr", "sums_ptr")
    signature, constants = {}, {}
    for argument in kernel.arg_names:
        if argument in known:
            constants[argument] = known[argument]
        elif argument.startswith("offsets"):
            signature[argument] = "*i32" if argument == "offsets_ptr" else "*i64"
        elif argument.endswith("_ptr"):
            signature[argument] = "*fp32" if argument in in_fp32 else aot.pointer(dtype)
        elif "stride" in argument:
            # A constant, so that its alignment is known: eight heads of a packed projection.
            constants[argument] = head_dim if argument.endswith("head") else 24 * head_dim
        else:
            signature[argument] = "fp32" if argument.startswith("scale") else "i32"
    return aot.compile_kernel(
        kernel,
        target,
        signature,
        constants,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        enable_fp_fusion=True,
    )


@pytest.mark.aot
@pytest.mark.parametrize(
    ("target", "head_dim", "dtype", "options"),
    [(target, *case) for target in aot.TARGETS for case in EVERYWHERE]
    + [("sm90", *case) for case in ON_HOPPER]
    + [("sm80", *ON_HOPPER[-1])],
    ids=str,
)
@pytest.mark.parametrize("name", gpu_launch.PASSES)
def test_kernels_compile(target: str, name: str, head_dim: int, dtype: torch.dtype, options: dict[str, bool]) -> None:
    """For every family: shared memory that it has, matrix instructions, copies that run beside them."""
    compiled = compile_pass(name, target, head_dim, dtype, **options)
    on_tensor_cores = dtype != torch.float32 or bool(options.get("tf32"))
    wide_tf32_grad = name.endswith("grad") and bool(options.get("tf32")) and head_dim == 256
    if on_tensor_cores and target == "sm90" and wide_tf32_grad:
        # Blocks of fewer than the 64 rows that wgmma needs: more would not fit.
        assert "mma.sync" in compiled.asm
    elif on_tensor_cores:
        assert re.search(MATRIX_INSTRUCTION[target], compiled.asm)
    if FAMILY[target] == "ampere" and dtype != torch.float32:
        assert compiled.shared_bytes <= 99 * 1024, "the smaller Amperes have 99 KiB"
    if target != "gfx942" and dtype != torch.float32:
        # The pipeline: 16 bytes per copy, straight to shared memory, while the tensor cores work.
        assert re.search(r"cp\.async\.cg\.shared\.global [^;]*, 0x10|cp\.async\.cg[^;]*16", compiled.asm)
    # Deterministic: nothing is added atomically.
    assert not re.search(r"\b(atom|red)\.global|global_atomic|buffer_atomic", compiled.asm)


@pytest.mark.aot
@pytest.mark.parametrize("target", ["sm90", "gfx942"])
def test_variants_compile(target: str) -> None:
    """The estimate from some queries, the log-sum-exp alone, and sizes of one, another branch of the compiler."""
    for causal in (False, True):
        compile_pass("column_sums", target, 64, torch.bfloat16, strided=True, causal=causal, window=causal)
    compile_pass("forward", target, 64, torch.bfloat16, strided=True, values=False, causal=True)
    for name in gpu_launch.PASSES:
        compile_pass(name, target, 64, torch.float16, ones=True)


@pytest.mark.aot
def test_hopper_has_room_for_several_programs() -> None:
    """What `launch_config` counts on: two programs or more share a multiprocessor's 227 KiB up to 128 channels."""
    for name, head_dim in itertools.product(gpu_launch.PASSES, (32, 64, 128)):
        assert 2 * compile_pass(name, "sm90", head_dim, torch.bfloat16).shared_bytes <= 227 * 1024
