"""What leaving tokens out costs: a classifier trained on unpruned embeddings, given those of every pruned model.

The classifier is scikit-learn's logistic regression, the encoder is frozen, the corpus itself keeps apart the texts to
train on and to test on. Each row is one pass over the test documents; its time is that of the pass, not taken in turn
as in `throughput`. The change and its standard error are over pairs: the same documents, pruned or not.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Competitor, Settings, Trial
from benchmarks.nlp import minilm, ours, peers
from benchmarks.nlp.minilm import Documents
from benchmarks.nlp.peers import HF_SORTED, Result
from benchmarks.nlp.texts import Corpus, Texts
from benchmarks.nlp.throughput import TOLERANCE, kept_text, pruned_dtype

TRAIN, TEST = 2000, 800
_STRENGTH = 10.0  # inverse regularisation; embeddings have length 1
_PRUNED_TOLERANCE = 2.0


def trials(corpus: Corpus, settings: Settings) -> Iterator[Trial]:
    """One trial: the unpruned model of Hugging Face and ours, then every pruned one that `ours.variants` names."""
    train = corpus.train.first(2 * settings.documents or TRAIN)
    test = corpus.test.first(settings.documents or TEST)
    documents = minilm.tokenize(corpus, test)
    threads, device = max(settings.threads), settings.device
    # In time the first competitor's own call: the unpruned embeddings take minutes, and all others need them.
    right = functools.cache(lambda: peers.PEERS[HF_SORTED].build(documents, "fp32", threads, device)().embeddings.cpu())
    judge = functools.cache(lambda: Judge(corpus, train, test, right(), device))
    dtype = pruned_dtype(settings)
    ways = [(ours.PACKER, ours.OURS[ours.PACKER], one, TOLERANCE[one]) for one in settings.dtypes]
    for variant in ours.variants(corpus.name, settings.documents):
        ways.append((f"trisparse {variant.name}", ours.pruned(variant), dtype, _PRUNED_TOLERANCE))
    yield Trial(
        case="accuracy",
        workload=corpus.name,
        shape=f"{len(test)} documents, {documents.tokens} tokens; {len(train)} trained on",
        reference=lambda: [torch.zeros(len(test), dtype=torch.float64)],
        competitors=[
            _competitor(
                HF_SORTED, "fp32", threads, lambda: lambda: Result(right()), TOLERANCE["fp32"], documents, right, judge
            ),
            *(
                _competitor(
                    name,
                    dtype,
                    threads,
                    functools.partial(way.build, documents, dtype, threads, device),
                    tolerance,
                    documents,
                    right,
                    judge,
                )
                for name, way, dtype, tolerance in ways
            ),
        ],
        once=True,
    )


class Judge:
    """The classifier, and what it makes of the test documents when no token is left out."""

    def __init__(self, corpus: Corpus, train: Texts, test: Texts, unpruned: Tensor, device: str) -> None:
        linear_model = minilm.need("sklearn.linear_model", "scikit-learn")
        documents = minilm.tokenize(corpus, train)
        found = ours.OURS[ours.PACKER].build(documents, "fp32", torch.get_num_threads(), device)().embeddings
        self._classifier: Any = linear_model.LogisticRegression(C=_STRENGTH, max_iter=2000)
        self._classifier.fit(found.cpu().numpy(), list(train.labels))
        self._labels = test.labels
        self._unpruned = self.right(unpruned)

    def right(self, embeddings: Tensor) -> Tensor:
        """1 where the class is right and 0 where it is not, fp64 [N]."""
        named = self._classifier.predict(embeddings.cpu().numpy())
        pairs = zip(named, self._labels, strict=True)
        return torch.tensor([float(name == label) for name, label in pairs], dtype=torch.float64)

    def columns(self, embeddings: Tensor) -> dict[str, float]:
        """Accuracy in percent, its change in points from the unpruned one, and both standard errors."""
        right = self.right(embeddings)
        accuracy, accuracy_se = mean_with_error(right)
        change, change_se = mean_with_error(right - self._unpruned)
        return dict(accuracy=accuracy, accuracy_se=accuracy_se, change=change, change_se=change_se)


def mean_with_error(values: Tensor) -> tuple[float, float]:
    """The mean of values [N] and its standard error, both times 100; no error of fewer than two values."""
    error = values.std().item() / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return 100 * values.mean().item(), 100 * error


def _competitor(
    name: str,
    dtype: str,
    threads: int,
    build: Callable[[], Callable[[], Result]],
    tolerance: float,
    documents: Documents,
    right: Callable[[], Tensor],
    judge: Callable[[], Judge],
) -> Competitor:
    def columns(result: Result) -> Mapping[str, object]:
        return {
            "tokens": documents.tokens,
            "cosine": minilm.cosine(result.embeddings.cpu(), right()).mean().item(),
            "kept": kept_text(result.kept),
            **judge().columns(result.embeddings),
        }

    def compare(result: Result) -> list[Tensor]:
        return [1 - minilm.cosine(result.embeddings.cpu(), right())]

    return Competitor(name, dtype, threads, build, compare, tolerance, columns)
