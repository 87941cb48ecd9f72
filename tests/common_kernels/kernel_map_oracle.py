"""The defining equation of a kernel map, checked pair by pair, and the three implementations under one call."""

import itertools
import math
from contextlib import contextmanager

import pytest
import torch

from common_kernels.kernel_map import reference
from tests.conftest import DEVICES, INTERPRETED


@contextmanager
def small_chunks(n_threads=2):
    """The CPU implementation cuts even a few rows into chunks and blocks, as it cuts many."""
    from common_kernels.kernel_map import cpu, cpu_outputs

    before = torch.get_num_threads(), cpu._GRAIN, cpu_outputs._BLOCK, cpu_outputs._CANDIDATES
    torch.set_num_threads(n_threads)
    cpu._GRAIN, cpu_outputs._BLOCK, cpu_outputs._CANDIDATES = 3, 5, 40
    try:
        yield
    finally:
        cpu._GRAIN, cpu_outputs._BLOCK, cpu_outputs._CANDIDATES = before[1:]
        torch.set_num_threads(before[0])


def build(implementation, coords, out_shape, shape, kernel, stride, padding, dilation, batch_size, kind):
    """(output coordinates, table) of one implementation, on the CPU."""
    arguments = (list(shape), list(out_shape), kernel, stride, padding, dilation, batch_size, kind)
    if implementation == "gpu":
        if not (INTERPRETED or DEVICES):
            pytest.skip("GPU kernels need a GPU or TRITON_INTERPRET=1")
        from common_kernels.kernel_map import gpu

        made = gpu.kernel_map(coords.to("cpu" if INTERPRETED else "cuda"), *arguments)
        return [tensor.cpu() for tensor in made]
    if implementation == "cpu":
        from common_kernels.kernel_map import cpu

        with small_chunks():
            return cpu.kernel_map(coords, *arguments)
    return reference.kernel_map(coords, *arguments)


def tap_between(source, target, kernel, stride, padding, dilation, kind):
    """The tap that relates an input to an output cell by the equations of `kernel_map`'s docstring, or None."""
    if source[0] != target[0]:
        return None
    number = 0
    for i, o, k, s, p, d in zip(source[1:], target[1:], kernel, stride, padding, dilation):
        if kind == "submanifold":
            distance = i - o + k // 2 * d
        elif kind == "strided":
            distance = i - (o * s - p)
        else:
            distance = o - (i * s - p)
        r = distance // d
        if distance % d or not 0 <= r < k:
            return None
        number = number * k + r
    return number


def reached_cells(inputs, out_shape, kernel, stride, padding, dilation, batch_size, kind):
    """Every cell of the output grid for which some input and tap satisfy the equation, in order."""
    cells = itertools.product(range(batch_size), *map(range, out_shape))
    return [
        c for c in cells if any(tap_between(i, c, kernel, stride, padding, dilation, kind) is not None for i in inputs)
    ]


def assert_defines(coords, made, out_shape, shape, kernel, stride, padding, dilation, batch_size, kind):
    out_coords, table = made
    assert table.dtype == torch.int32 and out_coords.dtype == coords.dtype
    inputs = [tuple(row) for row in coords.tolist()]
    if kind == "submanifold":
        assert out_coords.shape == (0, coords.shape[1])
        outputs = inputs
    else:
        outputs = [tuple(row) for row in out_coords.tolist()]
        if math.prod(out_shape) * batch_size * len(inputs) < 20_000:
            assert outputs == reached_cells(inputs, out_shape, kernel, stride, padding, dilation, batch_size, kind)
    expected = torch.full((math.prod(kernel), len(outputs)), -1, dtype=torch.int32)
    for (row, source), (column, target) in itertools.product(enumerate(inputs), enumerate(outputs)):
        tap = tap_between(source, target, kernel, stride, padding, dilation, kind)
        if tap is not None:
            expected[tap, column] = row
    assert torch.equal(table, expected)
