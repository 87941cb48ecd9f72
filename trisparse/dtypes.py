"""What the choices of `--dtype` mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# The commands compute on the CPU, where fp16 would be slower than either.
DTYPES = ("auto", "fp32", "bf16")


def for_accelerate(name: str) -> str | torch.dtype | None:
    """The argument `dtype` of a domain's `accelerate` for a choice; pretrained networks are in fp32 themselves."""
    import torch

    return {"auto": "auto", "fp32": None, "bf16": torch.bfloat16}[name]


def computed(name: str) -> str:
    """fp32 or bf16: what a choice means on this machine."""
    if name != "auto":
        return name
    from common_models.dtypes import multiplies_bf16

    return "bf16" if multiplies_bf16("cpu") else "fp32"
