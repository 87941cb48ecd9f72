"""Sparse convolution as each library defines it: its own enumeration of offsets, weights as it stores them, in fp64.

Nothing here imports the product. Offsets are relative to the output's place (times the stride), in the axes' order.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

Offsets = list[tuple[int, ...]]
Convolve = Callable[[Tensor, int], Tensor]  # weight, tap -> matrix [Cin, Cout]


def torchsparse_offsets(size: Sequence[int]) -> Offsets:
    axes = [range(-(k - 1) // 2 if k % 2 else 0, (k + 1) // 2 if k % 2 else k) for k in size]
    if np.prod(size) % 2 == 1:
        return [tuple(reversed(o)) for o in itertools.product(*reversed(axes))]
    return list(itertools.product(*axes))


def minkowski_offsets(size: Sequence[int]) -> Offsets:
    """The index is decoded from the first axis on, by remainders."""
    offsets = []
    for index in range(int(np.prod(size))):
        offset = []
        for k in size:
            offset.append(index % k - (k // 2 if k % 2 else 0))
            index //= k
        offsets.append(tuple(offset))
    return offsets


def cross_offsets(size: Sequence[int]) -> Offsets:
    offsets = [(0,) * len(size)]
    for index in range(sum(k - 1 for k in size)):
        axis = 0
        while index >= size[axis] - 1:
            index -= size[axis] - 1
            axis += 1
        r = (size[axis] - 1) // 2
        offset = [0] * len(size)
        offset[axis] = index + 1 if index < r else index - 2 * r
        offsets.append(tuple(offset))
    return offsets


def row_major_offsets(size: Sequence[int]) -> Offsets:
    """WarpConvNet, ocnn, fVDB for odd kernels, spconv: the last axis fastest; even kernels begin at 0."""
    return list(itertools.product(*(range(-(k // 2) if k % 2 else 0, (k + 1) // 2 if k % 2 else k) for k in size)))


def by_tap(weight: Tensor, tap: int) -> Tensor:
    return weight if weight.ndim == 2 else weight[tap]


def grouped_by_tap(weight: Tensor, tap: int) -> Tensor:
    return torch.block_diag(*weight[tap])


def diagonal_by_tap(weight: Tensor, tap: int) -> Tensor:
    return torch.diag(weight[tap])


def fvdb_tap(weight: Tensor, tap: int) -> Tensor:
    return weight.T if weight.ndim == 2 else weight.flatten(2)[:, :, tap].T


def krsc_tap(weight: Tensor, tap: int) -> Tensor:
    if weight[0, ..., 0].numel() == 1:  # spconv's product
        return weight.reshape(weight.shape[-1], weight.shape[0])
    return weight.flatten(1, -2)[:, tap].T


def rskc_tap(weight: Tensor, tap: int) -> Tensor:
    cout, cin = weight.shape[-2:]
    return weight.reshape(cin, cout) if weight.numel() == cin * cout else weight.flatten(0, -3)[tap].T


def rsck_tap(weight: Tensor, tap: int) -> Tensor:
    return weight.flatten(0, -3)[tap]


def convolve(
    coordinates: Tensor, features: Tensor, outputs: Tensor, stride: int, offsets: Offsets, taps: Iterator[Tensor]
) -> Tensor:
    """[M, Cout]: the sum over taps of the features at `output * stride + offset`, where there are any, times it."""
    row = {tuple(c): i for i, c in enumerate(coordinates.tolist())}
    total: Tensor | None = None
    for offset, matrix in zip(offsets, taps, strict=True):
        gathered = features.new_zeros(len(outputs), features.shape[1])
        for m, (batch, *place) in enumerate(outputs.tolist()):
            i = row.get((batch, *(p * stride + o for p, o in zip(place, offset))))
            if i is not None:
                gathered[m] = features[i]
        part = gathered @ matrix
        total = part if total is None else total + part
    assert total is not None
    return total


def convolve_transposed(
    coordinates: Tensor, features: Tensor, outputs: Tensor, stride: int, offsets: Offsets, taps: Iterator[Tensor]
) -> Tensor:
    """[M, Cout]: the forward map backwards with the same taps: each coarse cell adds to `cell * stride + offset`."""
    row = {tuple(c): i for i, c in enumerate(outputs.tolist())}
    total: Tensor | None = None
    for offset, matrix in zip(offsets, taps, strict=True):
        products = features @ matrix
        if total is None:
            total = products.new_zeros(len(outputs), matrix.shape[1])
        for n, (batch, *place) in enumerate(coordinates.tolist()):
            m = row.get((batch, *(p * stride + o for p, o in zip(place, offset))))
            if m is not None:
                total[m] += products[n]
    assert total is not None
    return total
