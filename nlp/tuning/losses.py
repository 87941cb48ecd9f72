"""What a pruned network loses on a text, against the same network that keeps all tokens."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from common_models.calibration import share_with_error
from nlp.texts.embedder import pool

#: A metric of the caller: (output of the network, attention_mask [B, S], positions of the texts) -> score [B] of each
#: text, higher is better.
Metric = Callable[[Any, Tensor, list[int]], Tensor]


class Loss(ABC):
    """One way to compare outputs, text by text."""

    #: What the numbers are.
    name: str
    #: Whether they are shares of texts, to be printed in percent points.
    share = False

    @abstractmethod
    def observe(self, output: Any, mask: Tensor, positions: list[int]) -> Tensor:
        """What is compared of each text of a batch, [B, ...]."""

    @abstractmethod
    def of(self, dense: Tensor, pruned: Tensor) -> Tensor:
        """The loss of each text, fp64 [N], of what was observed."""


class Cosine(Loss):
    """1 - the cosine of a text's pooled embedding and the dense one."""

    name = "1 - cosine"

    def __init__(self, pooling: str) -> None:
        self.pooling = pooling

    def observe(self, output: Any, mask: Tensor, positions: list[int]) -> Tensor:
        return pool(output, mask, self.pooling)[0].cpu()

    def of(self, dense: Tensor, pruned: Tensor) -> Tensor:
        return 1 - torch.cosine_similarity(dense.double(), pruned.double(), dim=-1)


class Answers(Loss):
    """1 where the most probable class is another one than the dense network's."""

    name = "changed answers"
    share = True

    def observe(self, output: Any, mask: Tensor, positions: list[int]) -> Tensor:
        return output.logits.argmax(-1).cpu()

    def of(self, dense: Tensor, pruned: Tensor) -> Tensor:
        return (dense != pruned).double()


class Accuracy(Loss):
    """1 for an answer that was right and is wrong, -1 for one that was wrong and is right."""

    name = "accuracy lost"
    share = True

    def __init__(self, labels: Sequence[int]) -> None:
        self.labels = torch.as_tensor(labels)

    def observe(self, output: Any, mask: Tensor, positions: list[int]) -> Tensor:
        return output.logits.argmax(-1).cpu() == self.labels[positions]

    def of(self, dense: Tensor, pruned: Tensor) -> Tensor:
        return dense.double() - pruned.double()


class Custom(Loss):
    """How far the caller's own score falls."""

    name = "score lost"

    def __init__(self, metric: Metric) -> None:
        self.metric = metric

    def observe(self, output: Any, mask: Tensor, positions: list[int]) -> Tensor:
        score = torch.as_tensor(self.metric(output, mask, positions))
        if score.shape != (len(positions),):
            raise ValueError(
                f"metric must return one score for each of the {len(positions)} texts, got {list(score.shape)}"
            )
        return score.double().cpu()

    def of(self, dense: Tensor, pruned: Tensor) -> Tensor:
        return dense - pruned


def mean_with_error(values: Tensor, share: bool = False) -> tuple[float, float]:
    """The mean of values [N] and its standard error.

    Args:
        share: the values are -1, 0 or 1: few texts without a changed answer do not prove that none changes.
    """
    n = len(values)
    error = float(values.std()) / math.sqrt(n) if n > 1 else math.inf
    if share:
        error = max(error, share_with_error(int(values.count_nonzero()), n)[1])
    return float(values.mean()), error
