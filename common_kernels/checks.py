"""Argument checks and error texts that several operators share."""

import math

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INDEX_DTYPES = (torch.int32, torch.int64)


def dtype_name(x: Tensor) -> str:
    """`float32`, without the `torch.`"""
    return str(x.dtype).removeprefix("torch.")


def describe(x: Tensor) -> str:
    """`float32 [50, 3]`: how error texts show a tensor that came."""
    return f"{dtype_name(x)} {list(x.shape)}"


def check_fixed(name: str, *numbers: int) -> None:
    """Raise where a number is a size of a tensor that torch.jit.trace follows: the graph would keep today's value."""
    if any(isinstance(n, Tensor) for n in numbers):
        raise ValueError(
            f"{name} must be numbers that no input of a traced graph decides, got sizes of a traced tensor, which "
            "torch.jit.trace would keep as they are now: use torch.export, or trace with fixed numbers"
        )


def rows_of(x: Tensor, n_rows: int) -> Tensor:
    """A tensor of `n_rows` empty rows: an operator that counts them has no number that torch.jit.trace would freeze."""
    return x.new_empty(n_rows, 0)


def check_rows(name: str, x: Tensor, floats_only: bool = False) -> None:
    """Raise unless x has a first axis, and is one of the floating dtypes where these alone have a meaning."""
    if x.ndim < 1 or (floats_only and x.dtype not in FLOATS):
        dtypes = "fp32, fp64, fp16 or bf16 " if floats_only else ""
        raise ValueError(f"{name} must be {dtypes}[rows, ...], got {describe(x)}")


def check_index(name: str, x: Tensor, symbol: str) -> None:
    """Raise unless x is a one-dimensional tensor of int32 or int64."""
    if x.ndim != 1 or x.dtype not in INDEX_DTYPES:
        raise ValueError(f"{name} must be int32 or int64 [{symbol}], got {describe(x)}")


def check_device(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Raise unless x lies on the device of the other tensor."""
    if x.device != other.device:
        raise ValueError(f"{name} must be on the device of {other_name}, {other.device}, got {x.device}")


def as_rows(x: Tensor) -> Tensor:
    """x [N, ...] as a contiguous [N, C], also where N or C is zero."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:])).contiguous()


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums of `dtype` are accumulated: at least fp32."""
    return torch.promote_types(dtype, torch.float32)
