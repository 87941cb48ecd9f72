"""Kernel maps of any small problem satisfy the defining equation."""

import math

import pytest
import torch

from common_kernels.kernel_map import KINDS, output_shape, reference
from tests.common_kernels.kernel_map_oracle import assert_defines, build

pytest.importorskip("hypothesis", reason="hypothesis is not installed")

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.fuzz import examples


@st.composite
def problems(draw, kinds=KINDS):
    """A small problem: (coords, out_shape, shape, kernel, stride, padding, dilation, batch_size, kind)."""
    kind = draw(st.sampled_from(kinds))
    n_axes = draw(st.integers(1, 4))
    longest = (24, 9, 5, 4)[n_axes - 1]

    def per_axis(low, high):
        return draw(st.lists(st.integers(low, high), min_size=n_axes, max_size=n_axes))

    shape, kernel, dilation = per_axis(1, longest), per_axis(1, 5), per_axis(1, 3)
    stride, padding, extra = [1] * n_axes, [0] * n_axes, [0] * n_axes
    if kind != "submanifold":
        stride, padding = per_axis(1, 4), per_axis(0, 4)
    if kind == "transposed":
        extra = per_axis(0, 2)
    batch_size = draw(st.integers(1, 3))
    try:
        out_shape = output_shape(shape, kernel, stride, padding, dilation, kind, extra)
    except ValueError:
        assume(False)
    cells = batch_size * math.prod(shape)
    n_rows = draw(st.integers(0, min(cells, 40)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    keys = torch.randperm(cells, generator=generator)[:n_rows]
    if draw(st.booleans()):
        keys = keys.sort().values
    coords = reference.unravel(keys, shape).to(draw(st.sampled_from([torch.int32, torch.int64])))
    return coords, out_shape, shape, kernel, stride, padding, dilation, batch_size, kind


def quick(max_examples):
    return settings(max_examples=examples(max_examples), deadline=None, suppress_health_check=list(HealthCheck))


@quick(150)
@given(problems())
@pytest.mark.parametrize("implementation", ["reference", "cpu"])
def test_satisfies_the_defining_equation(implementation, problem):
    assert_defines(problem[0], build(implementation, *problem), *problem[1:])


@quick(20)
@given(problems())
def test_gpu_satisfies_the_defining_equation(problem):
    assert_defines(problem[0], build("gpu", *problem), *problem[1:])
