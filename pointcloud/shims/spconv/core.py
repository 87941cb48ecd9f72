"""spconv.core: names of algorithms, and the lists of compiled kernels, of which there are none."""

from __future__ import annotations

from enum import Enum
from typing import Any

from pointcloud.shims.spconv.constants import NDIM_DONT_CARE, SPCONV_INT8_DEBUG
from pointcloud.tensor import ConvAlgo


class AlgoHint(Enum):
    """What a kernel is chosen for. The spelling is spconv's."""

    NoHint = 0
    Fowrard = 1
    BackwardInput = 2
    BackwardWeight = 4


ConvFwdAndBwdInput: list[Any] = []
ConvBwdWeight: list[Any] = []
ALL_NATIVE_PARAMS: list[Any] = []
ALL_IMPGEMM_PARAMS: list[Any] = []
SHUFFLE_SIMT_PARAMS: list[Any] = []
SHUFFLE_VOLTA_PARAMS: list[Any] = []
SHUFFLE_TURING_PARAMS: list[Any] = []
SHUFFLE_AMPERE_PARAMS: list[Any] = []
IMPLGEMM_SIMT_PARAMS: list[Any] = []
IMPLGEMM_VOLTA_PARAMS: list[Any] = []
IMPLGEMM_TURING_PARAMS: list[Any] = []
IMPLGEMM_AMPERE_PARAMS: list[Any] = []

__all__ = ["NDIM_DONT_CARE", "SPCONV_INT8_DEBUG", "AlgoHint", "ConvAlgo"]
