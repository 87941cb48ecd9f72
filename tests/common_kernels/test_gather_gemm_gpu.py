"""The GPU's gather-GEMM: values in the interpreter (or on a GPU), machine code ahead of time, launch parameters."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from common_kernels import KernelMap, gather_gemm, kernel_map
from common_kernels.gather_gemm import launch, reference
from common_kernels.gather_gemm.launch import LaunchConfig
from common_kernels.kernel_map import gpu_schedule
from tests.common_kernels import aot
from tests.common_kernels.interpreter import exact_bf16_products

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# The interpreter rounds fp32 to bf16 towards zero, so the whole last bit may differ.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
# (input rows, output rows, taps, Cin, Cout): one row, less than a tile, a tile, more tiles than run together; few
# channels, odd ones, several blocks of them.
SHAPES = [
    (1, 1, 1, 3, 16), (40, 129, 8, 4, 33), (90, 50, 125, 5, 20), (100, 150, 27, 16, 20), (70, 128, 9, 33, 64),
    (130, 257, 1, 64, 3), (50, 60, 27, 20, 5), (30, 40, 2, 150, 140),
    (50, 1100, 1, 16, 140),
]  # fmt: skip


@pytest.fixture(autouse=True)
def bf16_products(monkeypatch: pytest.MonkeyPatch) -> None:
    exact_bf16_products(monkeypatch)


def random_table(n_in: int, n_out: int, taps: int, density: float = 0.3) -> Tensor:
    rows = torch.randint(0, max(n_in, 1), (taps, n_out))
    return torch.where(torch.rand(taps, n_out) < (density if n_in else 0), rows, -1).to(torch.int32)


class Problem:
    """Random operands of one gather-GEMM, and its result in float64."""

    def __init__(
        self,
        n_in: int,
        n_out: int,
        taps: int,
        c_in: int,
        c_out: int,
        dtype: torch.dtype,
        device: str,
        density: float = 0.3,
    ) -> None:
        def operand(*shape: int) -> Tensor:
            return torch.randn(shape).to(device, dtype)

        self.table = random_table(n_in, n_out, taps, density).to(device)
        self.schedule = gpu_schedule.map_schedule(self.table)
        self.x, self.weight = operand(n_in, c_in), operand(taps, c_in, c_out)
        self.bias, self.residual, self.grad = operand(c_out), operand(n_out, c_out), operand(n_out, c_out)
        self.dtype = dtype

    def expected(self, bias: bool = True, residual: bool = True, activation: str = "relu") -> Tensor:
        return reference.gather_gemm(
            self.x.double(),
            self.table,
            self.weight.double(),
            self.bias.double() if bias else None,
            self.residual.double() if residual else None,
            activation,
        )

    def run(self, bias: bool = True, residual: bool = True, activation: str = "relu", **options: Any) -> Tensor:
        from common_kernels.gather_gemm import gpu

        return gpu.gather_gemm(
            self.x,
            self.weight,
            self.bias if bias else None,
            self.residual if residual else None,
            activation,
            self.table,
            self.schedule,
            **options,
        )


def assert_close(got: Tensor, expected: Tensor, tolerance: float) -> None:
    """Errors against the size of the result, since products of both signs cancel."""
    assert got.shape == expected.shape
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    assert not got.isnan().any(), "an element was not written"
    assert (got.double() - expected).abs().max().item() <= tolerance * scale if expected.numel() else True


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.usefixtures("poisoned_memory")
def test_values(
    shape: tuple[int, ...], dtype: torch.dtype, kernel_device: str, guarded_empty: Callable[..., Tensor]
) -> None:
    problem = Problem(*shape, dtype, kernel_device)
    out = guarded_empty(shape[1], shape[4], dtype=dtype, device=kernel_device)
    assert problem.run(out=out) is out
    assert_close(out, problem.expected(), TOLERANCE[dtype])


@pytest.mark.parametrize("n_splits", [1, 2, 3])
@pytest.mark.parametrize("c_in", [5, 20])
@pytest.mark.usefixtures("poisoned_memory")
def test_splits_agree(n_splits: int, c_in: int, kernel_device: str) -> None:
    problem = Problem(100, 200, 27, c_in, 40, torch.float32, kernel_device)
    for epilogue in ({}, {"bias": False, "residual": False, "activation": "none"}):
        assert_close(problem.run(n_splits=n_splits, **epilogue), problem.expected(**epilogue), 1e-5)


@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_epilogue(bias: bool, residual: bool, activation: str, kernel_device: str) -> None:
    problem = Problem(60, 70, 3, 16, 16, torch.float16, kernel_device)
    got = problem.run(bias, residual, activation)
    assert_close(got, problem.expected(bias, residual, activation), 1e-3)


@pytest.mark.parametrize("name", sorted({*launch.tuning_candidates(64, 128, "16-bit", "hopper")}))
def test_candidates_agree(name: str, kernel_device: str) -> None:
    problem = Problem(150, 200, 9, 32, 48, torch.float16, kernel_device)
    config = launch.tuning_candidates(32, 48, "16-bit", "ampere")[name]
    assert_close(problem.run(config=config), problem.expected(), 1e-3)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("n_splits", [1, 3])
def test_rows_without_taps(n_splits: int, kernel_device: str) -> None:
    """No pair at all leaves bias and residual; so it does for single rows."""
    problem = Problem(10, 140, 27, 16, 16, torch.float32, kernel_device, density=0.0)
    assert len(problem.schedule[1]) == 6
    assert_close(problem.run(n_splits=n_splits), (problem.bias + problem.residual).relu().double(), 1e-6)


def test_rows_that_nobody_reads_do_not_matter(kernel_device: str) -> None:
    problem = Problem(100, 150, 9, 16, 16, torch.float32, kernel_device)
    expected = problem.expected()
    used = torch.zeros(100, dtype=torch.bool, device=kernel_device)
    used[problem.table[problem.table >= 0].long()] = True
    problem.x = torch.cat([problem.x, torch.full_like(problem.x[:1], torch.nan)])
    problem.x[:-1][~used] = torch.nan
    assert_close(problem.run(), expected, 1e-5)


def test_nan_passes_the_activation(kernel_device: str) -> None:
    problem = Problem(20, 20, 1, 16, 16, torch.float32, kernel_device, density=1.0)
    problem.x[:] = torch.nan
    assert problem.run().isnan().all()


@pytest.mark.parametrize("c_in", [4, 36])
def test_strided_operands(c_in: int, kernel_device: str) -> None:
    """The input gradient's weights are a transposed view; nothing is contiguous."""
    problem = Problem(60, 70, 5, c_in, 20, torch.float32, kernel_device)
    expected = problem.expected()
    problem.weight = problem.weight.transpose(1, 2).contiguous().transpose(1, 2)
    problem.x = problem.x.T.contiguous().T
    problem.residual = problem.residual.T.contiguous().T
    assert not problem.weight.is_contiguous()
    assert_close(problem.run(), expected, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_input_gradient_of_a_symmetric_map(dtype: torch.dtype, kernel_device: str) -> None:
    """The forward kernel with the map's own table and schedule and the weights mirrored, as the operator calls it."""
    from common_kernels.gather_gemm import gpu

    coords = torch.nn.functional.pad(torch.nonzero(torch.rand(14, 15) < 0.7), (1, 0))
    neighbours = kernel_map(coords, (14, 15), 3, batch_size=1)
    table = neighbours.table.to(kernel_device)
    schedule = gpu_schedule.map_schedule(table)
    x = torch.randn(len(coords), 20, dtype=torch.float64, device=kernel_device, requires_grad=True)
    weight = torch.randn(9, 20, 16, device=kernel_device).to(dtype)
    grad = torch.randn(len(coords), 16, device=kernel_device).to(dtype)
    reference.gather_gemm(x, table, weight.double(), None, None, "none").backward(grad.double())
    assert neighbours.backward_tables[2], "mirrored"
    turned = weight.flip(0).transpose(1, 2)
    got = gpu.gather_gemm(grad, turned, None, None, "none", table, schedule)
    assert x.grad is not None
    assert_close(got, x.grad, TOLERANCE[dtype])


@pytest.mark.parametrize("c_in", [4, 32])
def test_rows_that_x_does_not_have_count_as_zeros(c_in: int, kernel_device: str) -> None:
    from common_kernels.gather_gemm import gpu

    problem = Problem(60, 70, 5, c_in, 16, torch.float32, kernel_device)
    weight, table, schedule = problem.weight, problem.table, problem.schedule
    shorter = torch.where(table < 40, table, -1)
    far = [each.clone() for each in schedule]
    far[-1][far[-1] >= 40] = 2**27  # a megabyte beyond, whatever lies there
    far[2][0][far[2][0] >= 40] = 2**27
    x = problem.x[:40].contiguous()
    expected = reference.gather_gemm(x.double(), shorter, weight.double(), None, None, "none")
    expected_grad = reference.weight_grad(x.double(), problem.grad.double(), shorter)
    for given in (schedule, far):
        assert_close(gpu.gather_gemm(x, weight, None, None, "none", table, given), expected, 1e-5)
        assert_close(gpu.weight_grad(x, problem.grad, table, given), expected_grad, 1e-5)


def test_a_schedule_of_another_form_is_refused(kernel_device: str) -> None:
    problem, other = (Problem(60, n, 5, 4, 16, torch.float32, kernel_device) for n in (200, 70))
    gpu_schedule.check_schedule(problem.table, problem.schedule)
    for table in (other.table, problem.table[:4]):
        with pytest.raises(ValueError, match=r"schedule must be that of the table \[\d, \d+\], got tensors of shapes"):
            gpu_schedule.check_schedule(table, problem.schedule)
    with pytest.raises(ValueError, match="schedule must be that of the table"):
        gpu_schedule.check_schedule(problem.table, problem.schedule[:-1])


@pytest.mark.parametrize(
    "shape", [(0, 5, 3, 4, 6), (5, 0, 3, 4, 6), (5, 6, 3, 0, 4), (5, 6, 3, 4, 0), (0, 0, 27, 4, 6)], ids=str
)
def test_empty(shape: tuple[int, ...], kernel_device: str) -> None:
    from common_kernels.gather_gemm import gpu

    problem = Problem(*shape, torch.float32, kernel_device)
    assert_close(problem.run(), problem.expected(), 1e-6)
    got = gpu.weight_grad(problem.x, problem.grad, problem.table, problem.schedule)
    assert torch.equal(got, torch.zeros(shape[2:], device=kernel_device))


def test_float64_runs_on_the_reference(kernel_device: str) -> None:
    from common_kernels.gather_gemm import gpu

    problem = Problem(20, 30, 5, 7, 6, torch.float64, kernel_device)
    assert_close(problem.run(), problem.expected(), 1e-14)
    assert gpu.weight_grad(problem.x, problem.grad, problem.table, problem.schedule).dtype == torch.float64


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 3, 16), (40, 129, 5, 4, 33), (90, 50, 30, 5, 20), (300, 700, 3, 20, 20), (30, 40, 2, 150, 140)],
    ids=str,
)
@pytest.mark.usefixtures("poisoned_memory")
def test_weight_grad(shape: tuple[int, ...], dtype: torch.dtype, kernel_device: str) -> None:
    from common_kernels.gather_gemm import gpu

    problem = Problem(*shape, dtype, kernel_device)
    got = gpu.weight_grad(problem.x, problem.grad, problem.table, problem.schedule)
    assert got.dtype == torch.float32
    assert_close(got, reference.weight_grad(problem.x.double(), problem.grad.double(), problem.table), 1e-5)


@pytest.mark.usefixtures("poisoned_memory")
def test_weight_grad_adds_chunks(kernel_device: str) -> None:
    """Taps with no pair, less than a chunk, exactly one and several; x and grad not contiguous."""
    from common_kernels.gather_gemm import gpu

    problem = Problem(200, 1000, 5, 16, 20, torch.float32, kernel_device, density=1.0)
    for tap, pairs in enumerate([0, 100, 256, 1000, 0]):
        problem.table[tap, pairs:] = -1
    schedule = gpu_schedule.map_schedule(problem.table)
    config = replace(launch.weight_grad_config(16, 20, "fp32", "ampere"), block_k=16)
    chunk = launch.pairs_per_program(1356, 1, 16)
    assert chunk == 1360, "one program would take all pairs"
    assert launch.pairs_per_program(1356, 50, 16) == 256
    x, grad = problem.x.T.contiguous().T, problem.grad.T.contiguous().T
    expected = reference.weight_grad(problem.x.double(), problem.grad.double(), problem.table)
    for n_programs in (1, 50):
        got = gpu.weight_grad(x, grad, problem.table, schedule, config=config, n_programs=n_programs)
        assert_close(got, expected, 1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["submanifold", "strided"])
def test_public_function(kind: str, dtype: torch.dtype, device: str) -> None:
    """The registered operator and its gradients against float64, and the same bits in a second run."""
    coords = torch.nn.functional.pad(torch.nonzero(torch.rand(11, 12, 13) < 0.3), (1, 0))
    built = kernel_map(coords, (11, 12, 13), 3, 1 if kind == "submanifold" else 2, batch_size=1, kind=kind)
    pairs = KernelMap(built.table.to(device), built.n_in, built.coords.to(device), built.shape, built.symmetric)
    shapes = ((pairs.n_in, 32), (27, 32, 48), (48,), (pairs.n_out, 48))
    operands = [torch.randn(shape, dtype=torch.float64, device=device) for shape in shapes]
    upstream = torch.randn(pairs.n_out, 48, device=device)
    results = []
    for number in (torch.float64, dtype, dtype):
        # All runs start from values that the narrow type holds.
        leaves = [operand.to(dtype).to(number, copy=True).requires_grad_() for operand in operands]
        out = gather_gemm(leaves[0], pairs, *leaves[1:])
        out.backward(upstream.to(dtype).to(number))
        results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for expected, first, second in zip(*results):
        assert torch.equal(first, second)
        assert_close(first, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("family", ["hopper", "ampere", "cdna"])
@pytest.mark.parametrize("unit", ["16-bit", "tf32", "fp32"])
def test_launch_configs_are_legal(unit: str, family: str) -> None:
    for c_in, c_out in itertools.product([1, 4, 8, 9, 16, 32, 33, 64, 96, 512], [1, 16, 20, 32, 64, 96, 160, 512]):
        candidates = launch.tuning_candidates(c_in, c_out, unit, family)
        assert candidates["default"] == launch.launch_config(c_in, c_out, unit, family)
        for config in [*candidates.values(), launch.weight_grad_config(c_in, c_out, unit, family)]:
            for block in (config.block_m, config.block_n, config.block_k):
                assert block >= 16 and block & (block - 1) == 0
            assert gpu_schedule.TILE % config.block_m == 0
            assert config.block_n < 2 * max(c_out, 16)
            assert config.num_warps in (4, 8) and config.num_stages >= 2


def test_launch_config_examples() -> None:
    assert launch.launch_config(64, 64, "16-bit", "hopper") == LaunchConfig(128, 64, 64, 4, 6)
    assert launch.launch_config(128, 256, "16-bit", "hopper") == LaunchConfig(128, 128, 64, 8, 6)
    assert launch.launch_config(64, 64, "16-bit", "ampere") == LaunchConfig(128, 64, 32, 4, 8)
    assert launch.launch_config(96, 96, "16-bit", "hopper").block_k == 32, "64 would pad 96 channels to 128"
    assert launch.launch_config(32, 32, "fp32", "ampere") == LaunchConfig(64, 32, 32, 4, 5)
    assert launch.launch_config(4, 32, "16-bit", "hopper") == LaunchConfig(128, 32, 32, 4, 4)


@pytest.mark.parametrize(
    ("major", "hip", "family"),
    [(7, None, "ampere"), (8, None, "ampere"), (9, None, "hopper"), (10, None, "hopper"), (12, None, "ampere"),
     (9, "6.4", "cdna")],
)  # fmt: skip
def test_device_family(major: int, hip: str | None, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
    monkeypatch.setattr(torch.version, "hip", hip)
    assert launch.device_family(torch.device("cuda")) == family
    assert launch.device_family(torch.device("cpu")) == "ampere"


def test_arithmetic_follows_torchs_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from common_kernels.gather_gemm import gpu

    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        assert gpu.unit_of(torch.empty(0)) == "fp32"
        torch.set_float32_matmul_precision("high")
        assert gpu.unit_of(torch.empty(0)) == "tf32"
        assert gpu.unit_of(torch.empty(0, dtype=torch.bfloat16)) == "16-bit"
        monkeypatch.setattr(torch.version, "hip", "6.4")
        assert gpu.unit_of(torch.empty(0)) == "fp32"
    finally:
        torch.set_float32_matmul_precision(before)


def test_choose_splits_weighs_work_against_passes() -> None:
    """On the benchmark cloud (12.2, 8.1, 6.8 taps per row): slow arithmetic and wide layers pay for more passes."""
    rows = 125_655
    work = [round(taps * rows / gpu_schedule.TILE) for taps in (12.2, 8.1, 6.8)]
    assert launch.choose_splits(work, rows, 4, "fp32") == 1
    assert launch.choose_splits(work, rows, 32, "16-bit") == 1
    assert launch.choose_splits(work, rows, 256, "16-bit") == 2
    assert launch.choose_splits(work, rows, 1024, "16-bit") == 3
    assert launch.choose_splits(work, rows, 64, "fp32") == 3
    assert launch.choose_splits(work[:1], rows, 1024, "fp32") == 1
    dense = [27 * rows // gpu_schedule.TILE] * 3
    assert launch.choose_splits(dense, rows, 512, "fp32") == 1


def forward_arguments(
    dtype: torch.dtype, c_in: int, c_out: int, config: LaunchConfig, tf32: bool, group: str, transposed: bool
) -> tuple[dict[str, str], dict[str, Any]]:
    """Signature and constexprs of gather_gemm_kernel. Channels are constants here: then their alignment is known."""
    values = aot.pointer(dtype)
    signature = dict.fromkeys(("x_ptr", "weight_ptr"), values)
    signature |= dict.fromkeys(("order_ptr", "offsets_ptr", "taps_ptr", "source_ptr"), "*i32")
    signature |= dict.fromkeys(("n_rows", "n_in", "n_blocks_m"), "i32")
    constants: dict[str, Any] = {"c_in": c_in, "c_out": c_out, "weight_stride_tap": c_in * c_out}
    constants |= {"weight_stride_in": 1 if transposed else c_out, "weight_stride_out": c_in if transposed else 1}
    constants |= {"ADD_SUMS": group == "last", "RELU": group != "first", "PACKED": c_in <= launch.PACKED_CHANNELS}
    constants |= {"K_BLOCKS": -(-c_in // config.block_k), "EVEN_K": c_in % config.block_k == 0}
    constants |= {"TILE": gpu_schedule.TILE, "BLOCK_M": config.block_m, "BLOCK_N": config.block_n}
    constants |= {"BLOCK_K": config.block_k, "GROUP_M": 8, "INPUT_PRECISION": "tf32" if tf32 else "ieee"}
    for name in ("out_ptr", "bias_ptr", "residual_ptr"):
        if group == "first":
            constants[name] = None
        else:
            signature[name] = values
    if group == "only":
        constants["sums_ptr"] = None
    else:
        signature["sums_ptr"] = "*fp32"
    return signature, constants


FAMILY = {"sm80": "ampere", "sm90": "hopper", "sm100": "hopper", "gfx942": "cdna"}
MATRIX_INSTRUCTION = {"sm80": r"mma\.sync", "sm90": r"wgmma\.mma_async", "sm100": r"tcgen05\.mma", "gfx942": "v_mfma"}


@pytest.mark.aot
@pytest.mark.parametrize("target", aot.TARGETS)
@pytest.mark.parametrize(
    ("dtype", "tf32", "c_in", "c_out", "group", "transposed"),
    [
        (torch.float16, False, 64, 64, "only", False),
        (torch.float16, False, 128, 256, "only", True),
        (torch.float16, False, 33, 20, "last", False),
        (torch.float16, False, 4, 32, "only", False),
        (torch.bfloat16, False, 64, 64, "first", False),
        (torch.bfloat16, False, 5, 16, "only", True),
        (torch.float32, True, 128, 128, "last", False),
        (torch.float32, False, 64, 64, "only", False),
        (torch.float32, False, 3, 16, "only", False),
    ],
    ids=str,
)
def test_forward_compiles(
    target: str, dtype: torch.dtype, tf32: bool, c_in: int, c_out: int, group: str, transposed: bool
) -> None:
    from common_kernels.gather_gemm import gpu

    if tf32 and target == "gfx942":
        pytest.skip("TF32 is off on AMD")
    unit = launch.arithmetic(dtype, tf32)
    config = launch.launch_config(c_in, c_out, unit, FAMILY[target])
    signature, constants = forward_arguments(dtype, c_in, c_out, config, tf32, group, transposed)
    compiled = aot.compile_kernel(
        gpu.gather_gemm_kernel,
        target,
        signature,
        constants,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        enable_fp_fusion=True,
    )
    if unit != "fp32":
        assert re.search(MATRIX_INSTRUCTION[target], compiled.asm)
    if FAMILY[target] == "ampere":
        assert compiled.shared_bytes <= 99 * 1024, "the smaller Amperes have 99 KiB"
    if target != "gfx942" and c_in % 16 == 0:
        # The pipeline: 16 bytes per copy, straight to shared memory, while the tensor cores work.
        assert re.search(r"cp\.async\.cg\.shared\.global [^;]*, 0x10|cp\.async\.cg[^;]*16", compiled.asm)


@pytest.mark.aot
@pytest.mark.parametrize("target", aot.TARGETS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [(4, 32), (64, 64), (128, 128)], ids=str)
def test_weight_grad_compiles(target: str, dtype: torch.dtype, channels: tuple[int, int]) -> None:
    from common_kernels.gather_gemm import gpu

    unit = launch.arithmetic(dtype, allow_tf32=False)
    config = launch.weight_grad_config(*channels, unit, FAMILY[target])
    signature = dict.fromkeys(("x_ptr", "grad_ptr"), aot.pointer(dtype))
    signature |= {"partial_ptr": "*fp32", "pairs_ptr": "*i32", "offsets_ptr": "*i64", "chunk_ends_ptr": "*i32"}
    signature |= dict.fromkeys(("n_pairs", "n_in", "n_out", "n_taps", "chunk"), "i32")
    constants = {"c_in": channels[0], "c_out": channels[1], "TAPS": 32, "INPUT_PRECISION": "ieee"}
    constants |= {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "BLOCK_K": config.block_k}
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages, "enable_fp_fusion": True}
    compiled = aot.compile_kernel(gpu.weight_grad_kernel, target, signature, constants, **options)
    if unit != "fp32" and channels[0] >= 64:
        assert re.search(MATRIX_INSTRUCTION[target], compiled.asm)


@pytest.mark.aot
@pytest.mark.parametrize("target", ["sm80", "sm90"])
def test_widest_candidates_fit_shared_memory(target: str) -> None:
    from common_kernels.gather_gemm import gpu

    for config in launch.tuning_candidates(256, 256, "16-bit", FAMILY[target]).values():
        signature, constants = forward_arguments(torch.float16, 256, 256, config, False, "only", False)
        options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
        aot.compile_kernel(gpu.gather_gemm_kernel, target, signature, constants, **options)


@pytest.mark.aot
def test_kernels_compile_for_sizes_of_one() -> None:
    """At run time a size of 1 becomes a constant, another branch of the compiler."""
    from common_kernels.gather_gemm import gpu

    config = launch.launch_config(1, 1, "16-bit", "hopper")
    signature, constants = forward_arguments(torch.float16, 1, 1, config, False, "only", False)
    for name in ("n_rows", "n_in", "n_blocks_m"):
        del signature[name]
        constants[name] = 1
    aot.compile_kernel(gpu.gather_gemm_kernel, "sm90", signature, constants, num_warps=4, num_stages=4)
    constants = dict.fromkeys(("n_pairs", "n_in", "n_out", "n_taps", "c_in", "c_out", "TAPS"), 1)
    constants |= {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16}
    signature = {"partial_ptr": "*fp32", "x_ptr": "*fp16", "grad_ptr": "*fp16", "pairs_ptr": "*i32"}
    signature |= {"offsets_ptr": "*i64", "chunk_ends_ptr": "*i32", "chunk": "i32"}
    aot.compile_kernel(gpu.weight_grad_kernel, "sm90", signature, {**constants, "INPUT_PRECISION": "ieee"})
    signature = {"out_ptr": "*fp32", "partial_ptr": "*fp32", "chunk_ends_ptr": "*i32"}
    aot.compile_kernel(gpu.add_chunks_kernel, "sm90", signature, {"n_cells": 1, "BLOCK": 512})


@pytest.mark.aot
def test_chunk_kernels_compile() -> None:
    from common_kernels.gather_gemm import gpu

    aot.compile_all(
        gpu.plan_chunks_kernel,
        {"ends_ptr": "*i32", "offsets_ptr": "*i64", "n_taps": "i32", "chunk": "i32"},
        {"TAPS": 128},
        num_warps=4,
    )
    aot.compile_all(
        gpu.add_chunks_kernel,
        {"out_ptr": "*fp32", "partial_ptr": "*fp32", "chunk_ends_ptr": "*i32", "n_cells": "i32"},
        {"BLOCK": 512},
        num_warps=4,
    )
