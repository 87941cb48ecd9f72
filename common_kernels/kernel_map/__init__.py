"""Which input row each tap of a sparse convolution reads, for each output row."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from common_kernels.checks import INDEX_DTYPES, check_device, check_rows, describe
from common_kernels.kernel_map import reference
from common_kernels.operators import operator

KINDS = ("submanifold", "strided", "transposed")


@dataclass(frozen=True, eq=False)
class KernelMap:
    """The pairs of a sparse convolution: for tap k and output row m, the input row `table[k, m]`, or -1 for none.

    Taps are enumerated row-major over the kernel's axes. Nothing here changes after construction; what is derived from
    the table (schedule, transpose) is computed on first use and kept.

    Attributes:
        table: [K, M] int32.
        n_in: number of input rows N; every entry of the table is below it.
        coords: [M, 1 + D] integer coordinates of the output rows, batch index first.
        shape: extent of the output grid, one number per axis.
        symmetric: table[k, m] == n exactly when table[K - 1 - k, n] == m (odd submanifold kernels).
        inverse_of: the map that this one is the transpose of, whose tables serve both.
        source: any tensor with one row for each input row, such as their coordinates. Where a model is traced, its
            number of rows is asked for anew with each cloud; without it, a trace serves clouds of `n_in` rows alone.
    """

    table: Tensor
    n_in: int
    coords: Tensor
    shape: tuple[int, ...]
    symmetric: bool = False
    inverse_of: "KernelMap | None" = None
    source: Tensor | None = None

    @property
    def n_taps(self) -> int:
        return self.table.shape[0]

    @property
    def n_out(self) -> int:
        return self.table.shape[1]

    @cached_property
    def pairs_per_tap(self) -> Tensor:
        """Number of (input row, output row) pairs of each tap, [K] int64."""
        return (self.table >= 0).sum(1)

    @cached_property
    def schedule(self) -> list[Tensor]:
        """The pairs in the order in which the device's `gather_gemm` multiplies them.

        CPU: `source [P]`, `slot [P]`, `offsets [tiles * K + 1]`: for tile t and tap k the pairs
        `offsets[t * K + k] : offsets[t * K + k + 1]`, as input row and as row within the tile.
        GPU: see `Schedule` in `common_kernels/kernel_map/gpu_schedule.py`.
        """
        if self.inverse_of is not None:
            return self.inverse_of._transposed_schedule
        return torch.ops.trisparse.map_schedule(self.table)

    def transpose(self, coords: Tensor, shape: Sequence[int]) -> "KernelMap":
        """The same pairs with input and output exchanged, tap by tap: the map of the inverse convolution.

        Args:
            coords: [N, 1 + D] coordinates of this map's input rows, which become output rows.
            shape: extent of the grid they lie in.
        """
        if coords.shape[0] != self.n_in:
            raise ValueError(f"coords must have one row for each of the {self.n_in} input rows, got {coords.shape[0]}")
        return KernelMap(
            self._transposed_table, self.n_out, coords, tuple(shape), self.symmetric, self, source=self.table.t()
        )

    @cached_property
    def _transposed_table(self) -> Tensor:
        if self.symmetric:
            return self.table.flip(0)
        rows = self.table.new_empty(self.n_in, 0) if self.source is None else self.source
        return torch.ops.trisparse.transpose_table(self.table, rows)

    @cached_property
    def _transposed_schedule(self) -> list[Tensor]:
        return torch.ops.trisparse.map_schedule(self._transposed_table)

    @cached_property
    def backward_tables(self) -> tuple[Tensor, list[Tensor], bool]:
        """(table, schedule, mirrored) with which `gather_gemm` computes the input gradient.

        A symmetric map is its own transpose with the order of its taps reversed: `mirrored` says that the caller
        reverses the weights instead, so that table and schedule are shared.
        """
        if self.symmetric:
            return self.table, self.schedule, True
        if self.inverse_of is not None:
            return self.inverse_of.table, self.inverse_of.schedule, False
        return self._transposed_table, self._transposed_schedule, False


def kernel_map(
    coords: Tensor,
    shape: Sequence[int],
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    *,
    batch_size: int,
    kind: str = "submanifold",
    output_padding: int | Sequence[int] = 0,
) -> KernelMap:
    """Find the pairs of a sparse convolution over unique integer coordinates.

    With r the tap's index on an axis, k the kernel size, s stride, p padding and d dilation:

    * `submanifold`: outputs are the inputs, in the same order; `in = out + (r - k // 2) * d`. Stride must be 1 and
      padding 0.
    * `strided`: outputs are all cells of the output grid that some input reaches, sorted by batch and coordinates;
      `in = out * s - p + r * d`, grid `(n + 2p - d(k - 1) - 1) // s + 1`, as a dense convolution defines it.
    * `transposed`: `out = in * s - p + r * d`, grid `(n - 1)s - 2p + d(k - 1) + output_padding + 1`, sorted likewise.

    Args:
        coords: [N, 1 + D] int32 or int64, D from 1 to 4, batch index first, each row once.
        shape: extent of the input grid, D numbers.
        batch_size: number of samples; batch indices lie below it.

    Raises:
        ValueError: a coordinate outside the grid, a coordinate that occurs twice, or a grid beyond 64-bit keys.
    """
    if not isinstance(coords, Tensor):
        raise ValueError(f"coords must be an integer tensor [N, 1 + D], got {type(coords).__name__}")
    if coords.dtype not in (torch.int32, torch.int64) or coords.ndim != 2 or not 2 <= coords.shape[1] <= 5:
        raise ValueError(f"coords must be int32 or int64 [N, 1 + D] with D from 1 to 4, got {describe(coords)}")
    ndim = coords.shape[1] - 1
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    grid = per_axis(shape, ndim, "shape", minimum=1)
    kernel = per_axis(kernel_size, ndim, "kernel_size", minimum=1)
    steps = per_axis(stride, ndim, "stride", minimum=1)
    pad = per_axis(padding, ndim, "padding", minimum=0)
    spread = per_axis(dilation, ndim, "dilation", minimum=1)
    extra = per_axis(output_padding, ndim, "output_padding", minimum=0)
    for name, values in (("stride", steps), ("padding", pad), ("dilation", spread)):
        if max(values) >= 2**31:
            raise ValueError(f"{name} must stay below 2**31, got {values}")
    if kind == "submanifold" and (max(steps) > 1 or max(pad) > 0):
        raise ValueError(f"a submanifold map has stride 1 and padding 0, got stride {steps} and padding {pad}")
    if kind != "transposed" and max(extra) > 0:
        raise ValueError(f"output_padding belongs to a transposed map, got {extra} for a {kind} one")
    out_grid = output_shape(grid, kernel, steps, pad, spread, kind, extra)
    check_key_range(grid, batch_size)
    check_key_range(out_grid, batch_size)
    out_coords, table = torch.ops.trisparse.kernel_map(
        coords, grid, out_grid, kernel, steps, pad, spread, batch_size, kind
    )
    if kind == "submanifold":
        symmetric = all(k % 2 == 1 for k in kernel)
        return KernelMap(table, coords.shape[0], coords, out_grid, symmetric, source=coords)
    return KernelMap(table, coords.shape[0], out_coords, out_grid, source=coords)


def output_shape(
    shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    kind: str,
    output_padding: Sequence[int],
) -> tuple[int, ...]:
    """Extent of the output grid, as dense convolutions define it; raises ValueError where it has no cell."""
    plain = _plain_extents(shape, kernel, stride, padding, dilation, kind)
    out = tuple(n + extra for n, extra in zip(plain, output_padding, strict=True))
    if min(out) < 1:
        raise ValueError(
            f"the output grid would be {list(out)}: shape {list(shape)} is too small for kernel_size {list(kernel)}, "
            f"stride {list(stride)}, padding {list(padding)}, dilation {list(dilation)}"
        )
    return out


def _plain_extents(
    shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    kind: str,
) -> tuple[int, ...]:
    """Extent of the output grid without output_padding, which may be 0 or less."""
    if kind == "submanifold":
        return tuple(shape)
    axes = zip(shape, kernel, stride, padding, dilation, strict=True)
    if kind == "strided":
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes)
    return tuple((n - 1) * s - 2 * p + d * (k - 1) + 1 for n, k, s, p, d in axes)


def check_key_range(shape: Sequence[int], batch_size: int) -> None:
    """Raise where a cell's key, its position in the whole batch of grids, would not fit 63 bits."""
    cells = math.prod(shape) * batch_size
    if cells >= 2**63:
        reach = int((2**63 / batch_size) ** (1 / len(shape)))
        raise ValueError(
            f"shape {list(shape)} with batch_size {batch_size} has {cells:.2e} cells; keys reach 2**63 = 9.22e+18, "
            f"so each axis of such a {len(shape)}-D grid may reach about {reach}"
        )
    if max(shape) >= 2**31:
        raise ValueError(f"shape must stay below 2**31 on each axis, got {list(shape)}")


def per_axis(value: int | Sequence[int], ndim: int, name: str, minimum: int) -> list[int]:
    """`value` as one int per axis."""
    values = [value] * ndim if isinstance(value, int) else list(value) if isinstance(value, Iterable) else []
    if len(values) != ndim or not all(isinstance(v, int) and v >= minimum for v in values):
        raise ValueError(f"{name} must be an int or {ndim} ints of at least {minimum}, got {value!r}")
    return values


@operator("kernel_map")
def _kernel_map(
    coords: Tensor,
    shape: Sequence[int],
    out_shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    batch_size: int,
    kind: str,
) -> tuple[Tensor, Tensor]:
    return reference.kernel_map(coords, shape, out_shape, kernel, stride, padding, dilation, batch_size, kind)


@_kernel_map.register_check
def _(coords, shape, out_shape, kernel, stride, padding, dilation, batch_size, kind):
    if coords.ndim != 2 or coords.dtype not in INDEX_DTYPES or coords.shape[1] != 1 + len(shape):
        raise ValueError(f"coords must be int32 or int64 [N, {1 + len(shape)}] in grid {shape}, got {describe(coords)}")
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    for name, values, least in (
        ("kernel", kernel, 1), ("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)
    ):  # fmt: skip
        per_axis(values, len(shape), name, least)
    expected = _plain_extents(shape, kernel, stride, padding, dilation, kind)
    grown = [n - least for n, least in zip(out_shape, expected)]  # by the output_padding of a transposed map
    wrong = len(out_shape) != len(shape) or min(grown) < 0 or (kind != "transposed" and max(grown) > 0)
    if wrong or min(out_shape) < 1:
        raise ValueError(f"out_shape must be {list(expected)} for grid {list(shape)}, got {list(out_shape)}")
    check_key_range(shape, batch_size)
    check_key_range(out_shape, batch_size)


@_kernel_map.register_kernel("cpu")
def _(coords, shape, out_shape, kernel, stride, padding, dilation, batch_size, kind):
    from common_kernels.kernel_map import cpu

    return cpu.kernel_map(coords, shape, out_shape, kernel, stride, padding, dilation, batch_size, kind)


@_kernel_map.register_kernel("cuda")
def _(coords, shape, out_shape, kernel, stride, padding, dilation, batch_size, kind):
    from common_kernels.kernel_map import gpu

    return gpu.kernel_map(coords, shape, out_shape, kernel, stride, padding, dilation, batch_size, kind)


@_kernel_map.register_fake
def _(coords, shape, out_shape, kernel, stride, padding, dilation, batch_size, kind):
    if kind == "submanifold":
        return coords.new_empty(0, coords.shape[1]), coords.new_empty(
            math.prod(kernel), coords.shape[0], dtype=torch.int32
        )
    n_out = torch.library.get_ctx().new_dynamic_size()
    return coords.new_empty(n_out, coords.shape[1]), coords.new_empty(math.prod(kernel), n_out, dtype=torch.int32)


def check_table(table: Tensor) -> None:
    """Raise unless a table is int32 [K, M]."""
    if table.ndim != 2 or table.dtype != torch.int32:
        raise ValueError(f"table must be int32 [K, M], got {describe(table)}")


@operator("transpose_table")
def _transpose_table(table: Tensor, rows: Tensor) -> Tensor:
    return reference.transpose_table(table, rows.shape[0])


@_transpose_table.register_check
def _(table, rows):
    check_table(table)
    check_rows("rows", rows)
    check_device("rows", rows, "table", table)


@_transpose_table.register_kernel("cpu")
def _(table, rows):
    from common_kernels.kernel_map import cpu

    return cpu.transpose_table(table, rows.shape[0])


@_transpose_table.register_kernel("cuda")
def _(table, rows):
    from common_kernels.kernel_map import gpu

    return gpu.transpose_table(table, rows.shape[0])


@_transpose_table.register_fake
def _(table, rows):
    return table.new_empty(table.shape[0], rows.shape[0])


@operator("map_schedule")
def _map_schedule(table: Tensor) -> list[Tensor]:
    return []  # a device without kernels of its own runs the reference, which reads the table


_map_schedule.register_check(check_table)


@_map_schedule.register_kernel("cpu")
def _(table):
    from common_kernels.kernel_map import cpu_schedule

    return cpu_schedule.map_schedule(table)


@_map_schedule.register_kernel("cuda")
def _(table):
    from common_kernels.kernel_map import gpu_schedule

    return gpu_schedule.map_schedule(table)


@_map_schedule.register_fake
def _(table):
    if table.device.type == "cuda":
        from common_kernels.kernel_map import gpu_schedule

        return gpu_schedule.fake_map_schedule(table)
    if table.device.type != "cpu":
        return []
    from common_kernels.kernel_map.cpu_schedule import TILE

    pairs = torch.library.get_ctx().new_dynamic_size()
    return [
        table.new_empty(pairs),
        table.new_empty(pairs, dtype=torch.int16),
        table.new_empty(-(-table.shape[1] // TILE) * table.shape[0] + 1, dtype=torch.int64),
    ]
