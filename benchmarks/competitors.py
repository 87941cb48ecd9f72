"""What the cases of all domains share: names of competitors, inputs, tolerances."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import DTYPES, Settings

TORCH, OURS = "plain torch", "trisparse"


def features(rows: int, channels: int, settings: Settings, dtype: str, seed: int = 0) -> Tensor:
    """Normal values, the same in each dtype up to its rounding."""
    values = torch.randn(rows, channels, generator=torch.Generator().manual_seed(seed))
    return values.to(settings.device, DTYPES[dtype])


def weights(cout: int, kernel: int, cin: int, settings: Settings, dtype: str, seed: int = 1) -> Tensor:
    """[Cout, k, k, k, Cin] with outputs near 1."""
    values = torch.randn(cout, kernel, kernel, kernel, cin, generator=torch.Generator().manual_seed(seed))
    return (values / (6 * cin) ** 0.5).to(settings.device, DTYPES[dtype])


def inference(call: Callable[[], Any]) -> Callable[[], Any]:
    """`call` without gradients."""

    def without_gradients() -> Any:
        with torch.no_grad():
            return call()

    return without_gradients


# Largest error of one layer, relative to its largest output: rounding of the inputs, and of sums in another order.
LAYER_TOLERANCE = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 4e-2}
# Of a whole network: some forty layers.
NETWORK_TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1.5e-1}
