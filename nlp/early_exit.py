"""Early exit for encoders: confident answers leave after few layers, the others go on together in full batches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common_kernels import segment_reduce
from common_models.modes import check_evaluating
from nlp.accelerate import Acceleration, accelerate
from nlp.packing.architectures import parts_of, positions
from nlp.packing.passes import RUNNING, Batch, Pass, batch_of
from nlp.pretrained.cards import position_limit
from nlp.texts.embedder import POOLING
from nlp.texts.logistic import class_name, logistic_regression
from nlp.texts.packer import Packer
from nlp.texts.tokens import Cutter, Window, check_vocabulary, length_limit, pad_token, padded

# Their layers take hidden states and a mask, nothing else, and nothing follows the last one.
SUPPORTED = ("bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta")


@dataclass(frozen=True)
class ExitHeads:
    """Logistic heads after some layers of one network; the last one follows its last layer.

    Attributes:
        layers: E ascending counts of layers, after which a sequence may leave; the last is that of all.
        weight: float32 [E, C, H].
        bias: float32 [E, C].
        labels: C names.
        pooling: what the heads read: "mean" over the tokens, "cls" (the first) or "last".
    """

    layers: tuple[int, ...]
    weight: Tensor
    bias: Tensor
    labels: tuple[str, ...]
    pooling: str


@dataclass(frozen=True)
class ExitAnswer:
    """What a text was classified as.

    Attributes:
        label: the most probable class.
        probabilities: float32 [C], in the order of the heads' labels.
        layer: layers that it went through.
        tokens: tokens that the network saw, special tokens included.
        truncated: tokens of the text that it did not see.
    """

    label: str
    probabilities: np.ndarray
    layer: int
    tokens: int
    truncated: int


@dataclass
class ExitTrace:
    """What a run computed.

    Attributes:
        exited: how many sequences left after each exit's count of layers.
        batches: how many batches went to each exit from the one before it.
        token_layers: tokens times the layers that they went through.
        full_token_layers: the same, had all gone through all layers.
    """

    exited: dict[int, int]
    batches: dict[int, int]
    token_layers: int = 0
    full_token_layers: int = 0

    @property
    def shares(self) -> dict[int, float]:
        """`exited` as shares of all sequences; zeros where there were none."""
        total = max(sum(self.exited.values()), 1)
        return {layer: count / total for layer, count in self.exited.items()}


class EarlyExit:
    """Classifies texts in as few layers as each one needs.

    After each exit's layers those sequences leave whose most probable class has at least the probability `confidence`
    (DeeBERT, Xin et al., 2020). The others wait in a pool and go on together when it is full or the input ends, so that
    few survivors of many batches fill one. An answer does not depend on its companions, up to rounding.

    Args:
        model: the network that the heads were fitted on, in evaluation mode; it is accelerated unless it is already.
        heads: what `fit_exits` made.
        confidence: 0 or more, best chosen on held-out texts; above 1 every sequence goes through all layers.
        max_tokens: tokens of a batch and of a pool; a sequence that is longer goes alone.
        tokenizer: the network's fast tokenizer, at whose limit or the model's texts are cut; None for token ids.

    Raises:
        TypeError: not a Hugging Face network; heads that are not ExitHeads.
        ValueError: a network that is not of `SUPPORTED`, trains, prunes, or does not fit the heads; an argument out of
            range.
    """

    def __init__(
        self,
        model: nn.Module,
        heads: ExitHeads,
        *,
        confidence: float = 0.9,
        max_tokens: int = 8192,
        tokenizer: Any = None,
    ) -> None:
        if not isinstance(heads, ExitHeads):
            raise TypeError(f"heads must be ExitHeads of fit_exits, got {type(heads).__name__}")
        if isinstance(confidence, bool) or not isinstance(confidence, (int, float)) or not confidence >= 0:
            raise ValueError(f"confidence must be a number of at least 0, got {confidence!r}")
        self._stages = _Stages(model, heads.layers, heads.pooling, max_tokens, tokenizer)
        exits, shape = self._stages.exits, [len(heads.layers), len(heads.labels), self._stages.width]
        got = [list(heads.weight.shape), list(heads.bias.shape)]
        if heads.layers != exits or got != [shape, shape[:2]]:
            raise ValueError(
                f"heads must follow layers {exits} with weight {shape} and bias {shape[:2]} for this model, "
                f"got {heads.layers}, {got[0]} and {got[1]}"
            )
        self.heads, self.confidence = heads, confidence
        self._weight, self._bias = (each.double().to(self._stages.device) for each in (heads.weight, heads.bias))

    def classify(self, texts: Iterable[Any]) -> tuple[list[ExitAnswer], ExitTrace]:
        """The answer for each text (token ids [S] without a tokenizer), in their order, and what was computed.

        Raises:
            TypeError: a text that is not a str, or token ids that are not int; the message names the position.
            ValueError: no token ids, too many, or some that the network does not know; likewise.
        """
        stages, heads = self._stages, self.heads
        answers: dict[int, ExitAnswer] = {}
        trace = ExitTrace(dict.fromkeys(heads.layers, 0), dict.fromkeys(heads.layers, 0))
        pools: list[list[tuple[Window, Tensor]]] = [[] for _ in heads.layers]

        def go(stage: int, group: list[Window], hidden: Tensor) -> None:
            layer, last = heads.layers[stage], stage == len(heads.layers) - 1
            hidden, pooled = stages.run(stage, hidden, _lengths(group))
            trace.batches[layer] += 1
            trace.token_layers += len(hidden) * len(stages.spans[stage])
            logits = pooled.double() @ self._weight[stage].T + self._bias[stage]
            rows = hidden.split(_lengths(group))
            for window, row, states in zip(group, logits.softmax(1).cpu().numpy(), rows):
                best = int(row.argmax())
                if last or row[best] >= self.confidence:
                    trace.exited[layer] += 1
                    answers[window.text] = ExitAnswer(
                        heads.labels[best], row.astype(np.float32), layer, len(window.ids), window.cut
                    )
                    continue
                if sum(len(each) for _, each in pools[stage + 1]) + len(states) > stages.max_tokens:
                    drain(stage + 1)
                pools[stage + 1].append((window, states.clone()))  # a view would hold the whole batch

        def drain(stage: int) -> None:
            waiting, pools[stage] = pools[stage], []
            if waiting:
                go(stage, [window for window, _ in waiting], torch.cat([rows for _, rows in waiting]))

        with torch.no_grad():
            for group in stages.batches(texts):
                trace.full_token_layers += sum(_lengths(group)) * len(stages.layers)
                go(0, group, stages.embed(group))
            for stage in range(len(pools)):
                drain(stage)
        return [answers[i] for i in range(len(answers))], trace


def fit_exits(
    model: nn.Module,
    texts: Iterable[Any],
    labels: Iterable[str | int],
    *,
    layers: Sequence[int],
    tokenizer: Any = None,
    pooling: str = "mean",
    max_tokens: int = 8192,
    regularization: float = 1.0,
) -> ExitHeads:
    """Train a logistic head after each of some layers and after the last, in one pass over the texts.

    Args:
        model, tokenizer, max_tokens: as `EarlyExit` takes them.
        texts: N texts, or token ids without a tokenizer.
        labels: their classes, N; names of the heads are their str, sorted.
        layers: after how many layers a sequence may leave, each from 1 to those of the network.
        pooling: what the heads read: "mean" over the tokens, "cls" (the first) or "last".
        regularization: weight λ of the penalty λ/2 ‖weight‖² beside the sum over all texts of the cross-entropy.

    Raises:
        TypeError, ValueError: as `EarlyExit` and `classify`; fewer than two classes, or not one for each text.
    """
    names = [class_name(i, label) for i, label in enumerate(labels)]
    classes = sorted({*names})
    if len(classes) < 2:
        raise ValueError(f"labels must name two classes or more, got {', '.join(classes) or 'none'}")
    if not regularization > 0:
        raise ValueError(f"regularization must be above 0, got {regularization}")
    stages = _Stages(model, layers, pooling, max_tokens, tokenizer)
    order: list[int] = []
    features: list[list[Tensor]] = [[] for _ in stages.exits]
    with torch.no_grad():
        for group in stages.batches(texts):
            order += [window.text for window in group]
            hidden = stages.embed(group)
            for stage, rows in enumerate(features):
                hidden, pooled = stages.run(stage, hidden, _lengths(group))
                rows.append(pooled.cpu())
    if len(order) != len(names):
        raise ValueError(f"labels must be one for each text, got {len(names)} for {len(order)} texts")
    target = torch.tensor([classes.index(names[i]) for i in order])
    heads = [logistic_regression(torch.cat(rows), target, len(classes), regularization) for rows in features]
    weight, bias = (torch.stack(each) for each in zip(*heads))
    return ExitHeads(stages.exits, weight, bias, tuple(classes), pooling)


class _Stages:
    """An accelerated network whose layers run by hand on packed rows, from one exit to the next."""

    def __init__(self, model: Any, exits: Sequence[int], pooling: str, max_tokens: int, tokenizer: Any) -> None:
        if pooling not in POOLING:
            raise ValueError(f"pooling must be one of {', '.join(POOLING)}, got {pooling!r}")
        self.packer, self.pooling, self.max_tokens = Packer(max_tokens), pooling, max_tokens
        kind = getattr(getattr(model, "config", None), "model_type", None)
        if isinstance(kind, str) and (kind not in SUPPORTED or getattr(model.config, "is_decoder", False)):
            what = f"{kind}{' as a decoder' * (kind in SUPPORTED)}"
            raise ValueError(f"model must be an encoder of model_type {', '.join(SUPPORTED)}, got {what}")
        if isinstance(kind, str):
            check_evaluating(model)
        made = getattr(model, "acceleration", None)
        if isinstance(made, Acceleration) and made.prune is not None:
            raise ValueError("model must keep all tokens, got one that prunes: nlp.restore(model) gives the original")
        self._model = model if isinstance(made, Acceleration) else accelerate(model)
        parts = parts_of(self._model)
        self._architecture, self._base, self.layers = parts.architecture, parts.base, parts.layers
        n = len(self.layers)
        if not all(type(each) is int and 1 <= each <= n for each in exits):
            raise ValueError(f"layers must be whole numbers from 1 to {n}, got {list(exits)}")
        self.exits = tuple(sorted({*exits, n}))
        self.spans = [range(a, b) for a, b in pairwise((0, *self.exits))]
        self.device, self.width = self._model.device, int(self._model.config.hidden_size)
        self._cutter, self._pad = None, int(self._model.config.pad_token_id or 0)
        if tokenizer is not None:
            self._cutter = Cutter(tokenizer, length_limit(self._model, tokenizer, None), "truncate")
            check_vocabulary(self._cutter, self._model)
            self._pad = pad_token(self._model, tokenizer)

    def batches(self, texts: Iterable[Any]) -> Iterator[list[Window]]:
        """The texts in batches of similar lengths."""
        if isinstance(texts, (str, bytes)):
            raise TypeError(f"texts must be an iterable of texts, got a {type(texts).__name__}: wrap it in a list")
        windows = self._of_ids(texts) if self._cutter is None else self._cutter.windows(texts)
        for batch in self.packer.batches(windows, length=lambda window: len(window.ids)):
            yield [window for _, window in batch]

    def _of_ids(self, texts: Iterable[Any]) -> Iterator[Window]:
        limit = position_limit(self._model.config) or math.inf
        rows = self._model.get_input_embeddings().weight.shape[0]
        for i, given in enumerate(texts):
            ids = given.tolist() if isinstance(given, (Tensor, np.ndarray)) else given
            if not isinstance(ids, (list, tuple)) or not all(type(each) is int for each in ids):
                what = "a str, which needs a tokenizer" if isinstance(ids, str) else type(given).__name__
                raise TypeError(f"texts[{i}] must be token ids, a sequence of int, without a tokenizer, got {what}")
            if not 1 <= len(ids) <= limit or not all(0 <= each < rows for each in ids):
                raise ValueError(f"texts[{i}] must be 1 to {limit} token ids below {rows}, got {len(ids)}: {ids[:8]}")
            yield Window(i, list(ids), 0, True)

    def embed(self, group: list[Window]) -> Tensor:
        """[T, H]: what the first layer reads."""
        ids, mask = padded(group, self._pad, self.device)
        batch = batch_of((ids.shape[0], ids.shape[1]), mask.bool(), ids.device)
        places = positions(self._architecture, self._base, ids, batch.shape, ids.device)
        assert places is not None  # every supported network has some
        base: Any = self._base
        hidden = base.embeddings(input_ids=batch.pack(ids), position_ids=batch.pack(places))
        # ELECTRA's embeddings may be narrower than its layers.
        return (base.embeddings_project(hidden) if hasattr(base, "embeddings_project") else hidden)[0]

    def run(self, stage: int, hidden: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor]:
        """Hidden states [T, H] after a stage's layers, and pooled, float32 [B, H]."""
        offsets = torch.tensor([0, *lengths], device=hidden.device).cumsum(0)
        # Attention finds the sequences' limits in the pass in flight. No padded batch comes of it.
        batch = Batch((len(lengths), max(lengths)), offsets[:0], offsets)
        before = RUNNING.set((*RUNNING.get(), Pass(self, batch)))
        try:
            for i in self.spans[stage]:
                hidden = self.layers[i](hidden[None], None)[0]
        finally:
            RUNNING.reset(before)
        if self.pooling == "mean":
            return hidden, segment_reduce(hidden.float(), offsets, "mean")
        return hidden, hidden.index_select(0, offsets[:-1] if self.pooling == "cls" else offsets[1:] - 1).float()


def _lengths(group: list[Window]) -> list[int]:
    return [len(window.ids) for window in group]
