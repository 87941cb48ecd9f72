"""How a tensor lies in memory, as rows whose columns are read from other rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """x [N, C, ...] as a matrix of rows, in the order of memory.

    Attributes:
        n_rows: rows of the matrix.
        width: elements of a row.
        inner: elements of one channel within a row.
        step: rows of the matrix per row of x.
    """

    n_rows: int
    width: int
    inner: int
    step: int


def layout_of(x: Tensor) -> Layout | None:
    """The layout of x [N, C, ...]; None where its memory is in neither order."""
    n, c, pixels = x.shape[0], x.shape[1], math.prod(x.shape[2:])
    if x.is_contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x.movedim(1, -1).is_contiguous():
        return Layout(n * pixels, c, 1, pixels)
    if x.is_contiguous():
        return Layout(n, c * pixels, pixels, 1)
    return None


def word_bytes(x: Tensor, layout: Layout, channels: Sequence[int], widest: int) -> int:
    """Bytes of the largest word, up to `widest`, of which every group, every row and the address of x are multiples."""
    sizes = [layout.width, *(n * layout.inner for n in channels)]
    return math.gcd(*(size * x.element_size() for size in sizes), x.data_ptr(), widest)
