"""cumm.tensorview: a tensor that is handed from numpy to voxel generators and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

__all__ = ["Tensor", "from_numpy"]


class Tensor:
    """A tensor in the memory of an array."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    @property
    def shape(self) -> list[int]:
        """Numbers along each axis."""
        return list(self._array.shape)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self._array.ndim

    @property
    def size(self) -> int:
        """Number of values."""
        return self._array.size

    def dim(self, axis: int) -> int:
        """Numbers along one axis."""
        return self._array.shape[axis]

    def numpy(self) -> np.ndarray:
        """A copy as an array."""
        return self._array.copy()

    def numpy_view(self) -> np.ndarray:
        """The array itself."""
        return self._array

    def clone(self) -> Tensor:
        """A copy."""
        return Tensor(self._array.copy())

    def cpu(self) -> Tensor:
        """The tensor itself, which is in the CPU's memory."""
        return self

    def __len__(self) -> int:
        return len(self._array)

    def __repr__(self) -> str:
        return f"Tensor(shape={self.shape}, dtype={self._array.dtype})"


def from_numpy(array: Any) -> Tensor:
    """A tensor in the memory of an array.

    Raises:
        TypeError: neither an array nor a tensor of torch on the CPU.
    """
    if isinstance(array, torch.Tensor):
        array = array.detach().numpy()
    if not isinstance(array, np.ndarray):
        raise TypeError(f"array must be an array of numpy, got {type(array).__name__}")
    return Tensor(array)
