"""A pool's update on a GPU: the sliding-window kernel of depthwise convolutions over the list of active pixels."""

from torch import Tensor

from common_kernels.conv_update.gpu import slide
from common_kernels.gather_gemm.gpu import on_device
from common_kernels.reach.gpu import list_active
from common_kernels.windows import Window


def pool_update(
    x: Tensor,
    changed: Tensor | None,
    out: Tensor,
    kind: str,
    window: Window,
    count_include_pad: bool,
    divisor: int | None,
    threshold: float,
) -> Tensor:
    with on_device(x.device):
        mask, rows, count = list_active(changed, None, window, (*x.shape[:3],), x.device)
        slide(
            x,
            out,
            mask,
            rows,
            count,
            None,
            None,
            None,
            window,
            kind,
            "none",
            threshold,
            count_include_pad,
            divisor or 0,
        )
    return mask
