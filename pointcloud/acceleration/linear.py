"""One linear layer of an accelerated network, whose batch norm is folded where one follows it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common_kernels import KernelMap
from pointcloud.acceleration import deferred
from pointcloud.acceleration.layer import DeferredLayer, fold
from pointcloud.acceleration.steps import Epilogue, Known, Norm, Start, changes


class DeferredLinear(DeferredLayer):
    """Forward pre-hook of an nn.Linear: puts its product off until it is known whether a batch norm follows.

    Where the first call shows that none does, the layer is left alone from then on.
    """

    def __call__(self, module: nn.Linear, args: Any) -> Any:
        x = args[0] if len(args) == 1 else None
        if not isinstance(x, Tensor) or self._alone or x.ndim != 2 or not self.takes(x, None):
            return None
        if x.shape[1] != module.in_features or x.dtype != module.weight.dtype or x.device != module.weight.device:
            return None
        if torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters(recurse=False)):
            return None
        # The layer's own product finds the call to put off in its input.
        given = deferred.DeferredFeatures(Known(deferred.remember(x)))
        given.linear = (self, module)
        return (given,)

    def start(self, module: nn.Linear, x: Tensor) -> deferred.DeferredFeatures:
        """Features [N, out_features], computed when they are read."""
        weight, bias = module.weight, module.bias
        counts = changes(weight, bias)
        return deferred.begin(
            Start(self, module, (x,), None, len(x), module.out_features, weight, bias, counts), residual=None
        )

    def is_served(self, epilogue: Epilogue, sources: int) -> bool:
        """A sum or ReLU alone is no gain here."""
        return bool(epilogue.norms)

    def multiply(
        self,
        conv: Any,
        sources: tuple[Tensor, ...],
        map: KernelMap | None,
        norms: tuple[Norm, ...],
        residual: Tensor | None,
        relu: bool,
    ) -> Tensor:
        """Features [N, out_features]."""
        weight, bias = self.kept(conv, norms, "linear", lambda: fold(conv.weight, conv.bias, norms))
        out = F.linear(sources[0], weight, bias)
        out = out if residual is None else out.add_(residual)
        return out.relu_() if relu else out
