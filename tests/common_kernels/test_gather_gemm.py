"""gather_gemm: values, gradients and determinism of the operator; the GPU kernels have test_gather_gemm_gpu.py."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common_kernels import KernelMap, gather_gemm, kernel_map

ROOT = Path(__file__).resolve().parents[2]


def random_map(n_in: int, n_out: int, taps: int, density: float = 0.3, device: str = "cpu") -> KernelMap:
    """Any table is a legal map; an input row may serve a tap at most once, as in a convolution."""
    table = torch.full((taps, n_out), -1, dtype=torch.int32)
    for row in table:
        count = min(n_in, int(n_out * density))
        row[torch.randperm(n_out)[:count]] = torch.randperm(n_in)[:count].int()
    return KernelMap(table.to(device), n_in, torch.zeros(n_out, 4, dtype=torch.int32, device=device), (1, 1, 1))


def surface(n: int, seed: int = 0, device: str = "cpu") -> tuple[torch.Tensor, tuple[int, int, int]]:
    """Voxels of a wavy sheet in two samples, in random order: as many neighbours as a scanned surface has."""
    generator = torch.Generator().manual_seed(seed)
    xy = torch.randint(0, 40, (n, 2), generator=generator)
    z = ((xy[:, 0] / 5).sin() * 3 + xy[:, 1] / 8 + 5).long()
    batch = torch.randint(0, 2, (n,), generator=generator)
    coords = torch.unique(torch.stack([batch, xy[:, 0], xy[:, 1], z], 1), dim=0)
    return coords[torch.randperm(len(coords), generator=generator)].int().to(device), (40, 40, 16)


def definition(x, map, weight, bias=None, residual=None, activation="none"):
    """The defining equation in float64, with a row of zeros standing for -1."""
    padded = torch.cat([x.double(), x.new_zeros(1, x.shape[1], dtype=torch.float64)])
    out = torch.einsum("kmc,kcd->md", padded[map.table.long()], weight.double())
    out = out if bias is None else out + bias.double()
    out = out if residual is None else out + residual.double()
    return out.relu() if activation == "relu" else out


TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 8e-3}
GPU_TOLERANCE = TOLERANCE | {torch.float32: 1e-5}  # one accumulator per output, however many products


def assert_close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    scale = expected.abs().max().item() if expected.numel() else 0
    tolerance = (TOLERANCE if actual.device.type == "cpu" else GPU_TOLERANCE)[dtype]
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=tolerance * max(scale, 1e-3))


def randn(*shape: int, like: torch.dtype = torch.float32, device: str = "cpu") -> torch.Tensor:
    """The same numbers on every device."""
    return torch.randn(shape).to(device, like)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize(
    "c_in, c_out",
    [(1, 1), (3, 16), (4, 32), (5, 7), (16, 16), (17, 33), (32, 48), (20, 64), (33, 80), (64, 96), (24, 112), (8, 130)],
)
def test_values(dtype, c_in, c_out, device, poisoned_memory):
    map = random_map(500, 700, 9, device=device)
    shapes = [(500, c_in), (9, c_in, c_out), (c_out,), (700, c_out)]
    x, weight, bias, residual = (randn(*shape, like=dtype, device=device) for shape in shapes)
    assert_close(gather_gemm(x, map, weight), definition(x, map, weight), dtype)
    full = gather_gemm(x, map, weight, bias, residual, "relu")
    assert full.dtype == dtype and full.device == x.device
    assert_close(full, definition(x, map, weight, bias, residual, "relu"), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n_out", [0, 1, 11, 12, 13, 255, 256, 257, 1030])
@pytest.mark.parametrize("taps, density", [(1, 1.0), (8, 0.02), (27, 0.25), (125, 0.1)])
def test_row_counts(dtype, n_out, taps, density, device, poisoned_memory):
    map = random_map(max(n_out, 1), n_out, taps, density, device)
    x, weight = (randn(*shape, like=dtype, device=device) for shape in [(max(n_out, 1), 12), (taps, 12, 20)])
    assert_close(gather_gemm(x, map, weight), definition(x, map, weight), dtype)


@pytest.mark.parametrize("size", [(0, 0, 4, 4), (0, 5, 4, 4), (5, 0, 4, 4), (5, 6, 0, 4), (5, 6, 4, 0)])
def test_empty(size, device):
    n_in, n_out, c_in, c_out = size
    map = random_map(n_in, n_out, 3, density=0.0, device=device)
    x = torch.randn(n_in, c_in, device=device, requires_grad=True)
    weight = torch.randn(3, c_in, c_out, device=device, requires_grad=True)
    bias = torch.randn(c_out, device=device)
    out = gather_gemm(x, map, weight, bias)
    assert torch.equal(out, bias.expand(n_out, c_out))
    out.sum().backward()
    assert x.grad.shape == x.shape and weight.grad.shape == weight.shape
    assert not weight.grad.any() and not x.grad.any()


@pytest.mark.parametrize("kind", ["submanifold", "strided", "transposed", "inverse"])
@pytest.mark.parametrize("c_in, c_out", [(3, 16), (16, 20), (9, 33), (48, 64), (32, 80)])
def test_gradients(kind, c_in, c_out, device):
    coords, shape = surface(900, device=device)
    geometry = (3,) if kind == "submanifold" else (2, 2)
    map = kernel_map(coords, shape, *geometry, batch_size=2, kind="strided" if kind == "inverse" else kind)
    if kind == "inverse":
        map = map.transpose(coords, shape)
    shapes = [(map.n_in, c_in), (map.n_taps, c_in, c_out), (c_out,), (map.n_out, c_out)]
    tensors = [randn(*each, device=device) for each in shapes]
    upstream = randn(map.n_out, c_out, device=device)
    expected = [each.double().requires_grad_() for each in tensors]
    actual = [each.clone().requires_grad_() for each in tensors]
    definition(expected[0], map, *expected[1:], "relu").backward(upstream.double())
    gather_gemm(actual[0], map, *actual[1:], "relu").backward(upstream)
    for ours, truth in zip(actual, expected):
        assert_close(ours.grad, truth.grad, torch.float32)


@pytest.mark.parametrize("kernel_size", [3, 2])
def test_gradcheck(kernel_size, device):
    coords, shape = surface(40, device=device)
    map = kernel_map(coords, shape, kernel_size, batch_size=2)
    inputs = [
        torch.randn(size, dtype=torch.float64, device=device, requires_grad=True)
        for size in [(len(coords), 2), (map.n_taps, 2, 3), (3,), (len(coords), 3)]
    ]
    assert torch.autograd.gradcheck(lambda *each: gather_gemm(each[0], map, *each[1:], "relu"), inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *each: gather_gemm(each[0], map, *each[1:]), inputs, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bits_do_not_depend_on_run_or_threads(dtype, device):
    coords, shape = surface(3000, device=device)
    map = kernel_map(coords, shape, 3, batch_size=2)
    shapes = [(len(coords), 24), (27, 24, 40), (40,)]
    x, weight, bias = (randn(*each, like=dtype, device=device).requires_grad_() for each in shapes)
    results = []
    threads = torch.get_num_threads()
    try:
        for n in (1, 1, 2, 3) if device == "cpu" else (1, 1, 1):
            torch.set_num_threads(n)
            out = gather_gemm(x, map, weight, bias)
            results.append([out, *torch.autograd.grad(out.float().square().sum(), (x, weight, bias))])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


def test_strides_do_not_matter(device):
    map = random_map(300, 300, 5, device=device)
    x, weight = randn(12, 300, device=device).T, randn(5, 20, 12, device=device).transpose(1, 2)
    bias, residual = randn(40, device=device)[::2], randn(300, 40, device=device)[:, ::2]
    expected = gather_gemm(
        *(each.contiguous() if torch.is_tensor(each) else each for each in (x, map, weight, bias, residual))
    )
    assert_close(gather_gemm(x, map, weight, bias, residual), expected, torch.float32)
    if device == "cpu":
        assert torch.equal(gather_gemm(x, map, weight, bias, residual), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("n", [0, 300])
def test_opcheck(dtype, requires_grad, n, device):
    map = random_map(n, n, 4, device=device)
    x = randn(n, 6, like=dtype, device=device).requires_grad_(requires_grad)
    weight = randn(4, 6, 5, like=dtype, device=device).requires_grad_(requires_grad)
    table, schedule, mirrored = map.backward_tables
    arguments = (x, weight, None, None, "relu", map.table, map.schedule, table, schedule, mirrored)
    torch.library.opcheck(torch.ops.trisparse.gather_gemm, arguments)
    arguments = (x, randn(n, 5, like=dtype, device=device), map.table, map.schedule, table, schedule, mirrored)
    torch.library.opcheck(torch.ops.trisparse.gather_gemm_weight_grad, arguments)
    torch.library.opcheck(torch.ops.trisparse.map_schedule, (map.table,))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_to_one_graph(backend, device):
    if backend == "inductor" and not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        pytest.skip("torch's compiler needs a C++ compiler")
    coords, shape = surface(500, device=device)
    map = kernel_map(coords, shape, 3, batch_size=2)
    x, weight = (randn(*each, device=device).requires_grad_() for each in [(len(coords), 8), (27, 8, 16)])

    def twice(x, weight):
        return gather_gemm(x, map, weight, activation="relu") * 2

    compiled = torch.compile(twice, fullgraph=True, backend=backend)
    expected = twice(x, weight)
    torch.testing.assert_close(compiled(x, weight), expected)
    ours = torch.autograd.grad(compiled(x, weight).sum(), (x, weight))
    torch.testing.assert_close(ours, torch.autograd.grad(expected.sum(), (x, weight)))


CHECK = """
import torch
from common_kernels.simd import HAS_BF16_DOT, LANES
from tests.common_kernels.test_gather_gemm import assert_close, definition, random_map
from common_kernels import gather_gemm
torch.manual_seed(0)
map = random_map(300, 400, 5)
for dtype in (torch.float32, torch.bfloat16):
    for c_in, c_out in [(3, 5), (16, 16), (9, 24), (12, 40), (32, 64), (8, 100)]:
        x = torch.randn(300, c_in).to(dtype).requires_grad_()
        weight = torch.randn(5, c_in, c_out).to(dtype).requires_grad_()
        out = gather_gemm(x, map, weight)
        assert_close(out, definition(x, map, weight), dtype)
        truth = torch.autograd.grad(definition(x, map, weight).sum(), (x, weight))
        for a, b in zip(torch.autograd.grad(out.sum(), (x, weight)), truth):
            assert_close(a, b, dtype)
print(LANES, HAS_BF16_DOT)
"""


@pytest.mark.skipif("x86" not in os.uname().machine, reason="names of x86 features")
@pytest.mark.parametrize(
    "features, lanes", [("+avx,+avx2,+fma,+f16c", 8), ("+sse4.2,+fma,+avx", 4)], ids=["avx2", "narrow"]
)
def test_narrower_machines(features, lanes, tmp_path):
    """The same kernels with the vectors and tiles of a machine without AVX-512, in a process compiled for it."""
    environment = os.environ | {
        "NUMBA_CPU_NAME": "x86-64",
        "NUMBA_CPU_FEATURES": features,
        "NUMBA_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run([sys.executable, "-c", CHECK], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == [str(lanes), "False"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": torch.zeros(5, 3)}, r"x must have the map's 4 input rows, got float32 \[5, 3\]"),
        ({"x": torch.zeros(4, 3, dtype=torch.int32)}, r"x must be fp32, fp64, fp16 or bf16 \[N, Cin\], got int32"),
        ({"weight": torch.zeros(2, 4, 5)}, r"weight must be float32 .* = \[2, 3, Cout\], got float32 \[2, 4, 5\]"),
        ({"weight": torch.zeros(2, 3, 5).half()}, r"weight must be float32"),
        ({"bias": torch.zeros(4)}, r"bias must be float32 \[5\], got float32 \[4\]"),
        ({"residual": torch.zeros(4, 5)}, r"residual must be float32 \[6, 5\], got float32 \[4, 5\]"),
        ({"activation": "gelu"}, r"activation must be one of none, relu, got 'gelu'"),
        ({"weight": torch.zeros(2, 3, 5, device="meta")}, r"weight must be on the device of x, (cpu|cuda:0), got meta"),
    ],
)
def test_bad_arguments(change, message, device):
    map = random_map(4, 6, 2, device=device)
    operands = {"x": torch.zeros(4, 3), "weight": torch.zeros(2, 3, 5)} | change
    arguments = {
        name: each.to(device) if torch.is_tensor(each) and each.device.type == "cpu" else each
        for name, each in operands.items()
    }
    with pytest.raises(ValueError, match=message):
        gather_gemm(map=map, **arguments)
