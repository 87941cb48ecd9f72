"""`trisparse doctor`: what is here, and whether the kernels compute what they should."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from common_kernels.channel_shift import channel_shift
from common_kernels.channel_shift import reference as channel_shift_reference
from common_kernels.compact import compact
from common_kernels.compact import reference as compact_reference
from common_kernels.conv_update import ConvUpdate
from common_kernels.coordinate_table import CoordinateTable
from common_kernels.gather_gemm import gather_gemm
from common_kernels.gather_gemm import reference as gather_gemm_reference
from common_kernels.gather_rows import gather_rows, scatter_add_rows
from common_kernels.gather_rows import reference as gather_rows_reference
from common_kernels.kernel_map import kernel_map
from common_kernels.kernel_map import reference as kernel_map_reference
from common_kernels.ragged_topk import ragged_topk
from common_kernels.ragged_topk import reference as ragged_topk_reference
from common_kernels.segment_reduce import reference as segment_reduce_reference
from common_kernels.segment_reduce import segment_reduce
from common_kernels.shift_gemm import reference as shift_gemm_reference
from common_kernels.shift_gemm import shift_gemm
from common_kernels.varlen_attention import reference as varlen_attention_reference
from common_kernels.varlen_attention import varlen_attention
from trisparse import machine, terminal
from trisparse.progress import compiling
from trisparse.zoo import list_pretrained


def examine() -> bool:
    """Print all findings; whether every check passed."""
    print("versions")
    print("\n".join(f"  {name:<12}{version}" for name, version in machine.versions().items()))
    print("\nmachine")
    print(f"  CPU         {machine.cpu()}")
    print(f"  features    {' '.join(machine.cpu_features()) or 'unknown'}")
    print(f"  kernels     {_vector_units()}")
    print(f"  threads     {torch.get_num_threads()}, OMP_WAIT_POLICY {os.environ.get('OMP_WAIT_POLICY', 'not set')}")
    print(f"  GPU         {machine.gpu() or 'none: everything runs on the CPU'}")
    print("\noptional packages")
    for name, version in machine.optional_packages().items():
        missing = f"missing: pip install 'trisparse[{machine.OPTIONAL[name]}]'"
        print(f"  {name:<22}{version or missing}")
    print(f"\npretrained\n  {', '.join(list_pretrained()) or 'none'}")

    print("\nkernels against their references")
    healthy = True
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for name, check in CHECKS.items():
            try:
                with compiling(f"{name} for {device}"):
                    finding, passed = check(device)
            # A broken compiler or driver may raise anything, and the other checks should still run.
            except Exception as error:
                finding, passed = f"{type(error).__name__}: {terminal.one_line(error)}", False
            healthy &= passed
            print(f"  {name:<18}{device:<6}{'ok' if passed else 'FAILED'}  {finding}", flush=True)

    folder = cache_folder()
    print("\ncache of compiled CPU kernels")
    if folder is None:
        print("  no folder that could be written to: kernels are compiled again by every process; set NUMBA_CACHE_DIR")
        healthy = False
    else:
        print(f"  {folder}")
    print(f"\n{'all well' if healthy else 'something is wrong, see above'}")
    return healthy


def _vector_units() -> str:
    from common_kernels import simd

    return f"vectors of {simd.LANES} floats, bf16 products {'in hardware' if simd.HAS_BF16_DOT else 'through fp32'}"


def _sample(device: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Cells of a bumpy surface [N, 4] int32 in a 24-cell grid, and features [N, 32]."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.meshgrid(torch.arange(24), torch.arange(24), indexing="ij")
    z = (8 + 4 * torch.sin(x / 3.0) + 3 * torch.cos(y / 4.0)).long()
    cells = torch.stack([torch.zeros_like(x), x, y, z], -1).reshape(-1, 4).int()
    return cells.to(device), torch.randn(len(cells), 32, generator=generator).to(device, dtype)


def _equal(found: Tensor, expected: Tensor) -> tuple[str, bool]:
    return "equal", torch.equal(found, expected)


def _close(found: Tensor, expected: Tensor, tolerance: float) -> tuple[str, bool]:
    worst = float((found.double() - expected.double()).abs().max() / expected.double().abs().max())
    return f"differs by {worst:.1e} of the largest value", worst <= tolerance


def _check_gather(device: str) -> tuple[str, bool]:
    _, x = _sample(device)
    index = torch.randint(-1, len(x), (700,), generator=torch.Generator().manual_seed(1)).to(device)
    return _equal(gather_rows(x, index), gather_rows_reference.gather_rows(x, index))


def _check_scatter(device: str) -> tuple[str, bool]:
    _, x = _sample(device)
    index = torch.randint(-1, 99, (len(x),), generator=torch.Generator().manual_seed(1)).to(device)
    expected = gather_rows_reference.scatter_add_rows(x.double(), index, 99)
    return _close(scatter_add_rows(x, index, 99), expected, 1e-6)


def _check_compact(device: str) -> tuple[str, bool]:
    mask = _sample(device)[1][:, 0] > 0
    return _equal(compact(mask), compact_reference.compact(mask))


def _check_reduce(device: str) -> tuple[str, bool]:
    _, x = _sample(device)
    offsets = torch.tensor([0, 5, 5, 130, len(x)], device=device)
    return _close(
        segment_reduce(x, offsets, "mean"), segment_reduce_reference.segment_reduce(x.double(), offsets, "mean"), 1e-6
    )


def _check_table(device: str) -> tuple[str, bool]:
    keys = torch.randperm(500, generator=torch.Generator().manual_seed(1)).to(device)
    rows = CoordinateTable(keys).lookup(torch.arange(510, device=device))
    expected = torch.full((510,), -1, dtype=torch.int32, device=device)
    expected[keys] = torch.arange(500, dtype=torch.int32, device=device)
    return _equal(rows, expected)


def _check_map(device: str) -> tuple[str, bool]:
    cells, _ = _sample(device)
    found = kernel_map(cells, [24] * 3, 3, batch_size=1)
    ones, zeros = [1] * 3, [0] * 3
    arguments = ([24] * 3, [24] * 3, [3] * 3, ones, zeros, ones, 1, "submanifold")
    _, expected = kernel_map_reference.kernel_map(cells.cpu(), *arguments)
    return _equal(found.table.cpu(), expected)


def _check_gemm(dtype: torch.dtype, tolerance: float) -> Callable[[str], tuple[str, bool]]:
    def check(device: str) -> tuple[str, bool]:
        cells, x = _sample(device, dtype)
        found = kernel_map(cells, [24] * 3, 3, batch_size=1)
        weight = torch.randn(27, 32, 64, generator=torch.Generator().manual_seed(2)).to(device, dtype)
        expected = gather_gemm_reference.gather_gemm(x.double(), found.table, weight.double(), None, None, "none")
        return _close(gather_gemm(x, found, weight), expected, tolerance)

    return check


_SHIFT = ((4, 1), (4, -1))


def _check_shift(device: str) -> tuple[str, bool]:
    x = _sample(device)[1][:576].reshape(8, 32, 72)
    return _equal(channel_shift(x, 4, _SHIFT), channel_shift_reference.channel_shift(x, 4, *zip(*_SHIFT)))


def _check_shift_gemm(device: str) -> tuple[str, bool]:
    x = _sample(device)[1]
    weight = torch.randn(32, 48, generator=torch.Generator().manual_seed(2)).to(device)
    channels, offsets = zip(*_SHIFT)
    expected = shift_gemm_reference.shift_gemm(
        x.double(), len(x), channels, offsets, weight.double(), None, None, "none"
    )
    return _close(shift_gemm(x, len(x), _SHIFT, weight), expected, 1e-5)


def _check_update(dtype: torch.dtype, tolerance: float) -> Callable[[str], tuple[str, bool]]:
    """An image of which one square changed, brought up to date, against the whole convolution."""

    def check(device: str) -> tuple[str, bool]:
        x = _sample(device, dtype)[1][:576].reshape(1, 24, 24, 32).contiguous()
        weight = torch.randn(64, 32, 3, 3, generator=torch.Generator().manual_seed(2)).to(device, dtype)
        layer = ConvUpdate(weight, padding=1)
        out = x.new_empty(layer.output_shape(x))
        layer(x, None, out)
        changed = torch.zeros(1, 24, 24, dtype=torch.bool, device=device)
        changed[:, 5:9, 7:12] = True
        x[changed] *= -2
        layer(x, changed, out)
        expected = torch.nn.functional.conv2d(x.double().permute(0, 3, 1, 2), weight.double(), padding=1)
        return _close(out, expected.permute(0, 2, 3, 1), tolerance)

    return check


def _segments(device: str) -> Tensor:
    return torch.tensor([0, 1, 1, 40, 173, 240], device=device)


def _check_topk(device: str) -> tuple[str, bool]:
    score = torch.rand(240, generator=torch.Generator().manual_seed(4)).to(device)
    offsets = _segments(device)
    keep = offsets.diff() // 2
    found, expected = ragged_topk(score, offsets, keep), ragged_topk_reference.ragged_topk(score, offsets, keep)
    return _equal(found[0], expected[0])


def _check_attention(dtype: torch.dtype, tolerance: float) -> Callable[[str], tuple[str, bool]]:
    def check(device: str) -> tuple[str, bool]:
        shape = (3, 240, 4, 32)
        q, k, v = torch.randn(shape, generator=torch.Generator().manual_seed(5)).to(device, dtype)
        offsets = _segments(device)
        expected, _ = varlen_attention_reference.varlen_attention(q.double(), k.double(), v.double(), offsets)
        out = varlen_attention(q, k, v, offsets)
        assert isinstance(out, Tensor)
        return _close(out, expected, tolerance)

    return check


CHECKS: dict[str, Callable[[str], tuple[str, bool]]] = {
    "gather_rows": _check_gather,
    "scatter_add_rows": _check_scatter,
    "compact": _check_compact,
    "segment_reduce": _check_reduce,
    "CoordinateTable": _check_table,
    "kernel_map": _check_map,
    "gather_gemm fp32": _check_gemm(torch.float32, 1e-5),
    "gather_gemm bf16": _check_gemm(torch.bfloat16, 1e-2),
    "channel_shift": _check_shift,
    "shift_gemm": _check_shift_gemm,
    "conv_update fp32": _check_update(torch.float32, 1e-5),
    "conv_update bf16": _check_update(torch.bfloat16, 1e-2),
    "ragged_topk": _check_topk,
    "attention fp32": _check_attention(torch.float32, 1e-5),
    "attention bf16": _check_attention(torch.bfloat16, 1e-2),
}


def cache_folder() -> Path | None:
    """Where Numba keeps the compiled kernels of this installation, None where it cannot."""
    from common_kernels.gather_rows import cpu

    kernels = (value for value in vars(cpu).values() if hasattr(value, "stats") and hasattr(value, "py_func"))
    path = next((kernel.stats.cache_path for kernel in kernels if kernel.stats.cache_path), None)
    if path is None:
        return None
    try:
        os.makedirs(path, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return Path(path)
    except OSError:
        return None
