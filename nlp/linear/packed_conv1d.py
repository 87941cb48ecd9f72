"""GPT-2's linear layer with its weight laid out once for the fast matrix product of a CPU.

Apart from `nlp.linear.packed`, because this one needs transformers.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from common_kernels import onednn
from nlp.linear.packed import PackedMixin


class PackedConv1D(PackedMixin, Conv1D):
    """A transformers `Conv1D` (weight [in, out]) with the same Parameter objects, fast on a CPU without gradients."""

    _transposed = True

    def __init__(self, layer: Conv1D, activation: str = "none") -> None:
        nn.Module.__init__(self)
        self.nf = layer.nf
        self.nx = layer.nx
        self.weight = layer.weight
        self.bias = layer.bias
        self.training = layer.training
        self.activation = activation
        self._packed = onednn.PackedWeight()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """act(x @ weight + bias) for x [..., in]: [..., out]."""
        return self._multiply(x)

    def _plain(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias, x.reshape(-1, self.nx), self.weight).view(*x.shape[:-1], self.nf)
