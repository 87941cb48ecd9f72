"""Intersection over union."""

from __future__ import annotations

import torch
from torch import Tensor


class Confusion:
    """Counts of (truth, prediction) pairs, [C, C + 1] int64; the last column counts points without a prediction."""

    def __init__(self, n_classes: int) -> None:
        self.counts = torch.zeros(n_classes, n_classes + 1, dtype=torch.int64)

    def add(self, truth: Tensor, prediction: Tensor) -> None:
        """Count labels [N]. A negative truth is left out; a negative prediction is no class and so an error."""
        rows, columns = self.counts.shape
        known = truth >= 0
        answer = torch.where(prediction < 0, rows, prediction)
        pairs = truth[known] * columns + answer[known]
        self.counts += torch.bincount(pairs, minlength=rows * columns).view(rows, columns)

    def iou(self) -> Tensor:
        """[C] float64, NaN for classes that neither occur nor are predicted."""
        hits = self.counts.diagonal()
        union = self.counts.sum(1) + self.counts[:, : len(hits)].sum(0) - hits
        return hits.double() / union

    def mean_iou(self) -> float:
        """Mean over the classes that occur or are predicted."""
        return float(self.iou().nanmean())
