"""Points to cells, in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np


def sparse_quantize(
    coords: Any, voxel_size: Any = 1, *, return_index: bool = False, return_inverse: bool = False
) -> Any:
    """The occupied cells of points [N, 3], int32 [M, 3], sorted.

    Returns:
        The cells, then if asked the first point of each [M] and the cell of each point [N].
    """
    size = (voxel_size,) * 3 if isinstance(voxel_size, (int, float)) else tuple(voxel_size)
    if len(size) != 3:
        raise ValueError(f"voxel_size must be one number or three, got {voxel_size!r}")
    cells = np.floor(np.asarray(coords) / np.array(size)).astype(np.int32)
    _, first, inverse = np.unique(cells, axis=0, return_index=True, return_inverse=True)
    outputs = [cells[first]]
    outputs += [first] if return_index else []
    outputs += [inverse.reshape(-1)] if return_inverse else []
    return outputs[0] if len(outputs) == 1 else outputs
