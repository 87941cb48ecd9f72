"""spconv.pytorch.constants: the version of torch, and whether autocast is on."""

from __future__ import annotations

import re

import torch

PYTORCH_VERSION = [int(part) for part in re.findall(r"\d+", torch.__version__)[:3]]
TORCH_HAS_AMP = True
remove_plus = torch.__version__.find("+")
remove_dotdev = torch.__version__.find(".dev")


def is_amp_enabled() -> bool:
    """Whether autocast is on for the GPU or the CPU."""
    return torch.is_autocast_enabled("cuda") or torch.is_autocast_enabled("cpu")
