"""A loss that follows intersection over union."""

from __future__ import annotations

import torch
from torch import Tensor


def lovasz_softmax(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the classes present of the Lovász extension of 1 - IoU (Berman et al., CVPR 2018).

    Args:
        logits: [N, C].
        labels: [N] int64 in 0..C-1.
    """
    losses = []
    probabilities = logits.softmax(1)
    for c in labels.unique().tolist():
        truth = (labels == c).to(probabilities.dtype)
        errors, order = (truth - probabilities[:, c]).abs().sort(descending=True)
        found = truth[order]
        total = found.sum()
        # Jaccard index after the first i errors; its increments are the weights of the sorted errors.
        jaccard = 1 - (total - found.cumsum(0)) / (total + (1 - found).cumsum(0))
        losses.append(errors @ torch.diff(jaccard, prepend=jaccard.new_zeros(1)))
    return torch.stack(losses).mean() if losses else logits.sum() * 0
