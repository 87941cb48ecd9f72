"""How cells become keys, so that one step of the kernel is one addition to a key."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Geometry:
    """Keys of the pairs of a kernel map: `key(fine) = key(coarse) + step(tap)` exactly for the pairs of a tap.

    The fine side is the input of a strided map, the output of a transposed one, and both of a submanifold one. Keys are
    ravelled coordinates in the fine grid, widened so far that no step leaves its line for another; keys are in the
    order of their cells, and a step reaches no cell's key unless it reaches the cell.

    Attributes:
        fine, coarse: [1 + D] what one along the batch and along each axis adds to a key.
        steps: [K / width] what the first of `width` taps adds to a key; the others, along the last axis, add one each.
        limit: keys lie below it.
    """

    fine: list[int]
    coarse: list[int]
    steps: list[int]
    width: int
    limit: int


def key_geometry(
    shape: Sequence[int],
    out_shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    batch_size: int,
    kind: str,
) -> Geometry | None:
    """The keys of a map, or None where the widened grid goes beyond 64 bits."""
    coarse, fine = (out_shape, shape) if kind == "strided" else (shape, out_shape)
    offset = [k // 2 * d for k, d in zip(kernel, dilation)] if kind == "submanifold" else padding
    extents = []
    for n_coarse, n_fine, k, s, p, d in zip(coarse, fine, kernel, stride, offset, dilation, strict=True):
        reach = (n_coarse - 1) * s - p + (k - 1) * d
        extents.append(p + max(n_fine, reach + 1))
    limit = batch_size * math.prod(extents)
    if limit >= 2**63:
        return None
    weights = [math.prod(extents[axis:]) for axis in range(len(extents) + 1)]
    width = kernel[-1] if dilation[-1] == 1 else 1
    walks = itertools.product(*[range(k) for k in kernel[:-1]], range(0, kernel[-1], width))
    steps = [sum((r * d - p) * w for r, d, p, w in zip(tap, dilation, offset, weights[1:])) for tap in walks]
    return Geometry(weights, [w * s for w, s in zip(weights, [1, *stride])], steps, width, limit)
