"""A check beside each operator: does it compute here, on this machine, what its reference does?

`CHECKS` is the one list. It names the checks of every folder of this package; `run` runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

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
from common_kernels.pack import pack, unpack
from common_kernels.pack import reference as pack_reference
from common_kernels.pool_update import pool_update
from common_kernels.pool_update import reference as pool_update_reference
from common_kernels.ragged_topk import ragged_topk
from common_kernels.ragged_topk import reference as ragged_topk_reference
from common_kernels.reach import reach
from common_kernels.reach import reference as reach_reference
from common_kernels.row_update import reference as row_update_reference
from common_kernels.row_update import update_rows
from common_kernels.segment_reduce import reference as segment_reduce_reference
from common_kernels.segment_reduce import segment_reduce
from common_kernels.shift_gemm import reference as shift_gemm_reference
from common_kernels.shift_gemm import shift_gemm
from common_kernels.varlen_attention import reference as varlen_attention_reference
from common_kernels.varlen_attention import varlen_attention
from common_kernels.windows import Window

Check = Callable[[str], tuple[str, bool]]


@dataclass(frozen=True)
class Result:
    """What one check found on one device: a few words for a person, and whether it passed."""

    name: str
    device: str
    finding: str
    passed: bool


def run(around: Callable[[str], AbstractContextManager[object]] = lambda what: nullcontext()) -> Iterator[Result]:
    """Run all checks on the CPU, and on a GPU where there is one, and yield each result as it comes.

    A check that raises has failed, and the others still run. `around` is entered with "the check's name for the device"
    for the time of each check: the first run compiles kernels.
    """
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for checks in CHECKS.values():
            for name, check in checks.items():
                try:
                    with around(f"{name} for {device}"):
                        finding, passed = check(device)
                # A broken compiler or driver may raise anything.
                except Exception as error:
                    finding, passed = f"{type(error).__name__}: {' '.join(str(error).split())}", False
                yield Result(name, device, finding, passed)


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


def _check_gemm(dtype: torch.dtype, tolerance: float) -> Check:
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


def _check_update(dtype: torch.dtype, tolerance: float) -> Check:
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


def _check_attention(dtype: torch.dtype, tolerance: float) -> Check:
    def check(device: str) -> tuple[str, bool]:
        shape = (3, 240, 4, 32)
        q, k, v = torch.randn(shape, generator=torch.Generator().manual_seed(5)).to(device, dtype)
        offsets = _segments(device)
        expected, _ = varlen_attention_reference.varlen_attention(q.double(), k.double(), v.double(), offsets)
        out = varlen_attention(q, k, v, offsets)
        assert isinstance(out, Tensor)
        return _close(out, expected, tolerance)

    return check


def _check_pack(device: str) -> tuple[str, bool]:
    x = _sample(device)[1][:120].reshape(6, 20, 32)
    found, expected = pack(x, x[:, :, 0] > 0), pack_reference.pack(x, x[:, :, 0] > 0)
    return "equal", all(torch.equal(a, b) for a, b in zip(found, expected))


def _check_unpack(device: str) -> tuple[str, bool]:
    x = _sample(device)[1][:120]
    index = (x[:, 0] > 0).nonzero().squeeze(1)
    return _equal(unpack(x[index], index, (6, 20), 7), pack_reference.unpack(x[index], index, (6, 20), 7))


def _check_reach(device: str) -> tuple[str, bool]:
    changed = _sample(device)[1][:576, 0].reshape(1, 24, 24) > 2
    window = Window.of((5, 3), (2, 1), (2, 1), (1, 2))
    return _equal(reach(changed, (5, 3), (2, 1), (2, 1), (1, 2)), reach_reference.reach(changed, window))


def _check_rows(device: str) -> tuple[str, bool]:
    """Rows of which every third moves, a few by less than the threshold, and one to NaN."""
    kept = _sample(device)[1]
    new = kept.clone()
    new[::3] += torch.linspace(0, 2, len(new[::3]), device=device)[:, None]
    new[7, 5] = float("nan")
    out, expected = kept.clone(), kept.clone()
    moved = update_rows(out, new, threshold=0.5)
    wanted = row_update_reference.update_rows(expected, new, None, 0.5)
    return "equal", torch.equal(moved, wanted) and torch.equal(out.nan_to_num(99.0), expected.nan_to_num(99.0))


def _check_pool(kind: str, tolerance: float) -> Check:
    """An image of which one square changed, brought up to date, against the whole pool."""

    def check(device: str) -> tuple[str, bool]:
        x = _sample(device)[1][:576].reshape(1, 24, 24, 32).contiguous()
        window = Window.of(3, 2, 1)
        out = x.new_empty(1, 12, 12, 32)
        pool_update(x, None, out, kind=kind, kernel_size=3, stride=2, padding=1)
        changed = torch.zeros(1, 24, 24, dtype=torch.bool, device=device)
        changed[:, 5:9, 7:12] = True
        x[changed] *= -2
        pool_update(x, changed, out, kind=kind, kernel_size=3, stride=2, padding=1)
        return _close(out, pool_update_reference.pool(x.double(), kind, window, True, None), tolerance)

    return check


# By folder of this package. A test sees to it that none is left out.
CHECKS: dict[str, dict[str, Check]] = {
    "channel_shift": {"channel_shift": _check_shift},
    "compact": {"compact": _check_compact},
    "conv_update": {
        "conv_update fp32": _check_update(torch.float32, 1e-5),
        "conv_update bf16": _check_update(torch.bfloat16, 1e-2),
    },
    "coordinate_table": {"CoordinateTable": _check_table},
    "gather_gemm": {
        "gather_gemm fp32": _check_gemm(torch.float32, 1e-5),
        "gather_gemm bf16": _check_gemm(torch.bfloat16, 1e-2),
    },
    "gather_rows": {"gather_rows": _check_gather, "scatter_add_rows": _check_scatter},
    "kernel_map": {"kernel_map": _check_map},
    "pack": {"pack": _check_pack, "unpack": _check_unpack},
    "pool_update": {"pool_update max": _check_pool("max", 0.0), "pool_update avg": _check_pool("avg", 1e-6)},
    "ragged_topk": {"ragged_topk": _check_topk},
    "reach": {"reach": _check_reach},
    "row_update": {"update_rows": _check_rows},
    "segment_reduce": {"segment_reduce": _check_reduce},
    "shift_gemm": {"shift_gemm": _check_shift_gemm},
    "varlen_attention": {
        "attention fp32": _check_attention(torch.float32, 1e-5),
        "attention bf16": _check_attention(torch.bfloat16, 1e-2),
    },
}
