"""Classify texts: the most probable classes of each."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from common_models import dtypes
from common_models.errors import ArgumentError
from common_models.files import replace_atomically
from common_models.modes import check_evaluating
from common_models.names import did_you_mean
from common_models.pretrained import read_card
from common_models.scores import ClassScore, best_classes
from common_models.threads import set_threads
from nlp.pretrained import DOMAIN, list_pretrained, load_pretrained, load_tokenizer
from nlp.texts.embedder import Embedder, accelerated, tokens_left
from nlp.texts.logistic import class_name, logistic_regression
from nlp.texts.tokens import Cutter, Window, check_vocabulary, length_limit, pad_token, padded, stream

# A head that meets another network than its own would answer nonsense: the embedding of this word tells. It is short,
# so that it fits wherever the longest input is set.
PROBE = "hello"
PROBE_COSINE = 0.98
HEAD = "LogisticHead"


@dataclass(frozen=True)
class TextAnswer:
    """What a text was classified as.

    Attributes:
        best: classes with their probabilities, the most probable first.
        tokens: tokens that the network saw, special tokens included.
        truncated: tokens of the text that it did not see, 0 unless overflow is "truncate".
        kept: tokens that were left at the end, fewer than `tokens` where the network prunes.
    """

    best: list[ClassScore]
    tokens: int
    truncated: int
    kept: int


class TextClassifier:
    """Classifies texts with a transformers model `...ForSequenceClassification`, accelerated or not.

    `TextClassifier.fit` trains a classifier on embeddings instead.

    Args:
        model: with `logits` [B, C] in its output.
        tokenizer: its fast tokenizer.
        labels: names of the classes; by default the `id2label` of the model's config.
        multi_label: whether classes do not exclude one another (sigmoid instead of softmax); by default what
            `problem_type` of the config says.
        max_length: tokens of the longest input; by default what card, tokenizer and positions of the model allow.
        overflow: longer texts are cut ("truncate", counted in `truncated`), or "split" into windows of `max_length`
            whose probabilities are averaged, weighted by their tokens; or an "error".
        max_tokens: tokens of a batch.

    Raises:
        ValueError: an argument outside of its range, a model that is not a classifier, another model's tokenizer.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        labels: Sequence[str] | None = None,
        multi_label: bool | None = None,
        max_length: int | None = None,
        overflow: str = "truncate",
        max_tokens: int = 8192,
    ) -> None:
        config = model.config
        if not any(str(base.__name__).endswith("ForSequenceClassification") for base in type(model).__mro__):
            raise ArgumentError(
                "model",
                f"must be a ...ForSequenceClassification of transformers, got {type(model).__name__}: "
                "TextClassifier.fit trains a classifier on embeddings",
            )
        if config.problem_type == "regression":
            raise ArgumentError("model", "must be a classifier, got one of problem_type regression")
        if config.pad_token_id is None:
            raise ValueError(
                "model.config.pad_token_id must be a token: networks find the end of a text by it, got None"
            )
        if multi_label is None:
            multi_label = config.problem_type == "multi_label_classification"
        if config.num_labels == 1 and not multi_label:
            raise ArgumentError("model", "must have two classes or more (one alone has probability 1), got 1")
        if labels is None:
            labels = [config.id2label[i] for i in range(config.num_labels)]
        self.labels = _names(labels, config.num_labels)
        self.multi_label = multi_label
        if type(max_tokens) is not int or max_tokens < 1:
            raise ValueError(f"max_tokens must be a whole number of at least 1, got {max_tokens!r}")
        self.model, self.tokenizer, self.max_tokens = model, tokenizer, max_tokens
        self._cutter = Cutter(tokenizer, length_limit(model, tokenizer, max_length), overflow)
        check_vocabulary(self._cutter, model)
        self._pad = pad_token(model, tokenizer)

    @property
    def dtype(self) -> torch.dtype:
        """In which the network computes."""
        return dtypes.own(self.model)

    @staticmethod
    def load(
        name_or_path: str | os.PathLike[str],
        *,
        dtype: torch.dtype | str | None = None,
        threads: int | None = None,
        prune: Any = None,
        embedder: Embedder | None = None,
        download: bool = False,
        **options: Any,
    ) -> TextClassifier:
        """A classifier from a model folder, or from a file that `save` of a fitted one wrote; accelerated.

        Args:
            dtype: see `nlp.accelerate`: None computes in the model's own, "auto" in the fastest.
            threads: that torch computes with, in the whole process; None leaves their number as it is.
            prune: a policy that removes tokens; None removes none.
            embedder: for a fitted classifier, instead of the one that its file names (then without dtype and prune).
            download: whether a model of the Hugging Face hub may be fetched.
            options: further arguments of `TextClassifier`; of `Embedder` for a fitted one.

        Raises:
            ValueError: no such file or folder, one of something else, or a head that does not fit the embedder.
        """
        set_threads(threads)
        if Path(name_or_path).is_file() and (card := _read_head(Path(name_or_path))) is not None:
            path = Path(name_or_path)
            if embedder is None:
                embedder = _embedder_of(path, card, dtype, prune, download, options)
            elif options or prune is not None or dtype is not None:
                raise ValueError("embedder comes with its own dtype, prune and options: give them to it")
            return _load_head(path, card, embedder)
        if embedder is not None:
            raise ValueError(f"embedder is for a classifier that was fitted on one, got {os.fspath(name_or_path)!r}")
        model = load_pretrained(name_or_path, download=download)
        tokenizer = load_tokenizer(name_or_path, download=download)
        # Refuses what is not a classifier before the network is worked on.
        classifier = TextClassifier(model, tokenizer, **options)
        classifier.model = accelerated(model, dtype, prune)
        return classifier

    @staticmethod
    def fit(
        embedder: Embedder,
        texts: Iterable[str],
        labels: Iterable[str | int],
        *,
        regularization: float = 1.0,
        max_steps: int = 500,
    ) -> EmbeddingClassifier:
        """Train multinomial logistic regression on embeddings of labelled texts.

        Args:
            texts: N texts.
            labels: their N classes; names of the result are their str, sorted.
            regularization: weight λ of the penalty in the sum over all texts of the cross-entropy + λ/2 ‖weight‖²
                (scikit-learn's C is 1/λ); the bias is free.
            max_steps: of L-BFGS; it stops before where the gradient vanishes.

        Raises:
            TypeError: a label that is neither a str nor an int.
            ValueError: another number of labels than of texts, or fewer than two classes.
        """
        named = [class_name(i, label) for i, label in enumerate(labels)]
        names = sorted(set(named))
        if len(names) < 2:
            raise ValueError(f"labels must name two classes or more, got {', '.join(names) or 'none'}")
        if not regularization > 0 or type(max_steps) is not int or max_steps < 1:
            raise ValueError(
                f"regularization must be above 0 and max_steps at least 1, got {regularization} and {max_steps!r}"
            )
        if isinstance(texts, Sized) and len(texts) != len(named):
            raise ValueError(f"labels must be one for each text, got {len(named)} for {len(texts)} texts")
        features = torch.from_numpy(embedder.embed(texts))
        if len(features) != len(named):
            raise ValueError(f"labels must be one for each text, got {len(named)} for {len(features)} texts")
        position = {name: i for i, name in enumerate(names)}
        target = torch.tensor([position[name] for name in named])
        weight, bias = logistic_regression(features, target, len(names), regularization, max_steps)
        return EmbeddingClassifier(embedder, weight, bias, names)

    def __call__(self, text: str, top: int = 5) -> TextAnswer:
        """The `top` most probable classes of one text.

        Raises:
            TypeError, ValueError: as `classify`.
        """
        return self.classify([text], top)[0]

    def classify(self, texts: Iterable[str], top: int = 5) -> list[TextAnswer]:
        """The `top` most probable classes of each text.

        Raises:
            TypeError: a text that is not a str; the message names its position.
            ValueError: a text that is not Unicode, or too long with overflow "error"; a `top` below 1.
        """
        return list(self.stream(texts, top))

    def stream(self, texts: Iterable[str], top: int = 5) -> Iterator[TextAnswer]:
        """The answer for each text, in order, while they are read; memory does not grow with their number.

        Raises:
            TypeError, ValueError: as `classify`, after the answers for all texts before the one at fault.
        """
        if type(top) is not int or top < 1:
            raise ValueError(f"top must be a whole number of at least 1, got {top!r}")
        return self._stream(texts, top)

    def _stream(self, texts: Iterable[str], top: int) -> Iterator[TextAnswer]:
        for probability, tokens, truncated, kept in self._probabilities(texts):
            yield TextAnswer(best_classes(torch.from_numpy(probability), self.labels, top), tokens, truncated, kept)

    def _probabilities(self, texts: Iterable[str]) -> Iterator[tuple[np.ndarray, int, int, int]]:
        """Probabilities [C], tokens seen, tokens cut, and tokens left at the end, of each text."""
        check_evaluating(self.model)  # dropout would change every answer
        for pieces in stream(self._cutter, texts, self._batch, self.max_tokens):
            made = [each for _, each in pieces if each is not None]
            if not made:  # a text without tokens: no class is more likely than another
                share = 0.5 if self.multi_label else 1 / len(self.labels)
                yield np.full(len(self.labels), share), 0, 0, 0
                continue
            counts = np.array([len(window.ids) for window, _ in pieces])
            probability = counts @ np.stack([found for found, _ in made]) / counts.sum()
            cut, kept = sum(window.cut for window, _ in pieces), sum(kept for _, kept in made)
            yield probability, int(counts.sum()), cut, kept

    @torch.no_grad()
    def _batch(self, windows: list[Window]) -> list[tuple[np.ndarray, int]]:
        """Probabilities [C] and tokens left, of each window of a batch."""
        ids, mask = padded(windows, self._pad, self.model.device)
        out = self.model(input_ids=ids, attention_mask=mask)
        logits = out.logits.double()
        probabilities = (logits.sigmoid() if self.multi_label else logits.softmax(1)).cpu().numpy()
        return list(zip(probabilities, tokens_left(out, mask).tolist()))


class EmbeddingClassifier(TextClassifier):
    """A logistic head on an embedder: what `TextClassifier.fit` trains and `TextClassifier.load` reads back.

    Args:
        weight: float32 [C, H].
        bias: float32 [C].
        labels: names of the C classes.

    Raises:
        ValueError: shapes that do not fit one another or the embedder.
    """

    def __init__(self, embedder: Embedder, weight: Tensor, bias: Tensor, labels: Sequence[str]) -> None:
        shape = (len(labels), embedder.dimensions)
        if weight.shape != shape or bias.shape != shape[:1]:
            got = f"{list(weight.shape)} and {list(bias.shape)}"
            raise ValueError(f"weight and bias must be {list(shape)} and {[shape[0]]}, got {got}")
        self.embedder, self.multi_label = embedder, False
        self.labels = _names(labels, len(weight))
        self.weight, self.bias = weight.float(), bias.float()

    @property
    def dtype(self) -> torch.dtype:
        return self.embedder.dtype

    def save(self, path: str | os.PathLike[str], results: dict[str, Any] | None = None) -> None:
        """Write head and card as a `.safetensors` file (not the network, which is named).

        Args:
            results: what was measured on held-out data, kept in the card.
        """
        card = self.embedder.card
        network = None
        if card is not None:
            network = card.name if card.name in list_pretrained() else str(Path(card.source).resolve())
        stated = {
            "architecture": HEAD,
            "labels": self.labels,
            "network": network,
            "settings": self.embedder.settings,
            "results": results or {},
        }
        probe = torch.from_numpy(self.embedder.embed([PROBE])[0])
        state = {"weight": self.weight.contiguous(), "bias": self.bias.contiguous(), "probe": probe}
        # Not as whole networks are written: a head is small, and is to answer the same when it is read back.
        with replace_atomically(path) as partial:
            save_file(state, partial, metadata={"card": json.dumps(stated), "domain": DOMAIN})

    def _probabilities(self, texts: Iterable[str]) -> Iterator[tuple[np.ndarray, int, int, int]]:
        weight, bias = self.weight.double().numpy(), self.bias.double().numpy()
        for found in self.embedder.stream(texts):
            logits = weight @ found.vector + bias
            exponential = np.exp(logits - logits.max())
            yield exponential / exponential.sum(), found.tokens, found.truncated, found.kept


def _names(labels: Sequence[str], n: int) -> list[str]:
    if isinstance(labels, str) or len(labels) != n or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"labels must be {n} names, one for each class, got {labels!r}")
    return list(labels)


def _read_head(path: Path) -> dict[str, Any] | None:
    """The card of a file of `EmbeddingClassifier.save`; None for the file of a whole network."""
    card = read_card(path, DOMAIN)
    if card is None or card.get("architecture") != HEAD:
        return None
    try:
        labels, settings, network = card["labels"], card["settings"], card["network"]
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise ValueError(f"labels are {labels!r}")
        if not isinstance(settings, dict) or not (network is None or isinstance(network, str)):
            raise ValueError("settings or network are of another type than they should be")
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path}: its classifier card cannot be read: {error!r}") from error
    return card


def _embedder_of(
    path: Path, card: dict[str, Any], dtype: Any, prune: Any, download: bool, options: dict[str, Any]
) -> Embedder:
    """The embedder that a head's file names."""
    network = card["network"]
    if network is None:
        raise ValueError(f"{path} does not name the network that it was fitted on: give embedder=")
    known = ("pooling", "normalize", "max_length", "overflow", "prompt", "lowercase", "truncate_dim")
    unknown = sorted(set(card["settings"]) - set(known))
    if unknown:
        hint = did_you_mean(unknown[0], known)
        raise ValueError(f"{path}: settings must be of {', '.join(known)}, got {unknown[0]!r}{hint}")
    try:
        return Embedder.load(network, dtype=dtype, prune=prune, download=download, **{**card["settings"], **options})
    except ValueError as error:
        if isinstance(error, ArgumentError) and error.argument in options:  # the caller's own, not the file's
            raise
        raise ValueError(f"{path} was fitted on {network!r}: {error}") from error


def _load_head(path: Path, card: dict[str, Any], embedder: Embedder) -> EmbeddingClassifier:
    """The head in a file, on an embedder that must be the one it was fitted on."""
    state = {}
    shapes = {
        "weight": [len(card["labels"]), embedder.dimensions],
        "bias": [len(card["labels"])],
        "probe": [embedder.dimensions],
    }
    with safe_open(path, "pt") as file:
        for key, shape in shapes.items():
            got = list(file.get_slice(key).get_shape()) if key in file.keys() else None
            if got != shape:
                raise ValueError(f"{path}: {key} must be {shape} for its embedder, got {got or 'none'}")
            state[key] = file.get_tensor(key).to(torch.float32, copy=True)
    cosine = torch.cosine_similarity(state["probe"], torch.from_numpy(embedder.embed([PROBE])[0]), dim=0)
    if not cosine >= PROBE_COSINE:
        raise ValueError(
            f"{path} was fitted on another embedder: the embeddings of a test word must have a cosine of at least "
            f"{PROBE_COSINE}, got {float(cosine):.3f}"
        )
    return EmbeddingClassifier(embedder, state["weight"], state["bias"], card["labels"])
