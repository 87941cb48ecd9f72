"""Whether numbers can be the coordinates of a cloud: files without a header say nothing about themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pointcloud.io.columns import Array

# Nobody measures atoms; counts and labels read as floats lie far below.
_TINY = 1e-20
# Below this a coordinate is rounding error around 0.
_ZERO = 1e-9
# Beyond these a number of 4 bytes resolves metres, one of 8 bytes still micrometres.
_HUGE_SINGLE, _HUGE_DOUBLE = 1e8, 1e12
_STRAY = 0.01  # share of numbers that may be absurd in a real file
# From the 10th to the 90th percentile real coordinates span a few powers of ten, bits of something else dozens.
_SPAN = 1e6
_SAMPLE = 1 << 13  # points that are looked at, or up to twice as many
_SMALL = 1e-3  # a cloud is larger than a millimetre
_ENOUGH = 16  # points from which on a statement about all of them is one


def implausible(axes: Sequence[Array], span: bool = True) -> str | None:
    """Why x, y and z, each [N], cannot be coordinates in metres, in words; None where they can.

    span: also refuse numbers that are spread over many powers of ten, as the bits of other types are.
    Few points say little: below 16 only the size of the numbers is looked at.
    """
    n = len(axes[0])
    if not n:
        return None
    single = all(axis.dtype.itemsize <= 4 for axis in axes)
    # Not every second or fourth one: neighbours alternate between beams.
    every = max(1, n // _SAMPLE) | 1
    axes = [axis[::every] for axis in axes]
    n = len(axes[0])
    sizes = [np.abs(axis.astype(np.float64)) for axis in axes]
    reason = _absurd(sizes, _HUGE_SINGLE if single else _HUGE_DOUBLE)
    if reason is not None or n < _ENOUGH or not span:
        return reason
    largest = max(float(np.quantile(size[np.isfinite(size)], 0.99)) for size in sizes if np.isfinite(size).any())
    if 0 < largest < _SMALL:
        return f"99% of the coordinates are below {largest:.1g}, within a millimetre"
    same = float(np.mean((axes[0] == axes[1]) & (axes[1] == axes[2])))
    if same > 0.5:
        return f"x, y and z are equal in {same:.0%} of {n} points"
    if not any(bool((axis != axis[0]).any()) for axis in axes):
        return f"all {n} points are in one place"
    for name, size in zip("xyz", sizes, strict=True):
        seen = size[np.isfinite(size) & (size > _ZERO)]
        if len(seen) >= _ENOUGH:
            low, high = np.quantile(seen, (0.1, 0.9))
            if high > _SPAN * low:
                return f"{name} is spread over many powers of ten, {low:.1g} to {high:.1g}"
    return None


def _absurd(sizes: Sequence[Array], huge: float) -> str | None:
    numbers = np.concatenate(sizes)
    seen = numbers[np.isfinite(numbers)]
    if not seen.size:
        return "no coordinate is a finite number"
    for which, example in (((seen > 0) & (seen < _TINY), "small"), (seen > huge, "large")):
        share = float(which.mean())
        if share > _STRAY:
            median = float(np.median(seen[which]))
            return f"{share:.0%} of the coordinates are absurdly {example}, such as {median:.1e}"
    return None
