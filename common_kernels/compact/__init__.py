"""Stream compaction: the rows that a mask keeps."""

import torch
from torch import Tensor

from common_kernels.checks import describe
from common_kernels.compact import reference
from common_kernels.operators import operator


def compact(mask: Tensor) -> Tensor:
    """The rows where `mask` is true, ascending.

    The number of rows is known only after the mask has been read: on a GPU this waits for the device.

    Args:
        mask: [N] bool, N below 2**31.

    Returns:
        [M] int32, M the number of true entries.

    Raises:
        ValueError: a mask that is not bool [N], or too long for int32.
    """
    return torch.ops.trisparse.compact(mask)


@operator("compact")
def _compact(mask: Tensor) -> Tensor:
    return reference.compact(mask)


@_compact.register_check
def _(mask: Tensor) -> None:
    if mask.ndim != 1 or mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool [N], got {describe(mask)}")
    if mask.shape[0] >= 2**31:
        raise ValueError(f"mask must be shorter than 2**31, got {describe(mask)}")


@_compact.register_kernel("cpu")
def _(mask: Tensor) -> Tensor:
    from common_kernels.compact import cpu

    return cpu.compact(mask)


@_compact.register_kernel("cuda")
def _(mask: Tensor) -> Tensor:
    from common_kernels.compact import gpu

    return gpu.compact(mask)


@_compact.register_fake
def _(mask):  # type: ignore[no-untyped-def]
    return mask.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int32)
