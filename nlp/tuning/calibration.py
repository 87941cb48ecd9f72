"""Find the policy that is fast enough, or loses little enough, on the user's own texts."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from common_models.acceleration import restore
from common_models.calibration import check_confidence
from nlp.accelerate import accelerate
from nlp.packing.architectures import parts_of
from nlp.prune.policy import Policy
from nlp.tuning.families import Family, check_families, families
from nlp.tuning.losses import Accuracy, Answers, Cosine, Custom, Loss, Metric, mean_with_error
from nlp.tuning.report import Calibration, Candidate, number
from nlp.tuning.sample import Sample, classifies, pooling_of, read, task_of
from nlp.tuning.timing import in_turn

_MAX_TOKENS = 8192  # of a batch, padding included
_LEAST_TEXTS = 20
# With less of the tokens in texts that policies touch, removing half of those saves less than a sixth of the work.
_LEAST_SHARE = 1 / 3


def calibrate(
    model: Any,
    texts: Iterable[str],
    *,
    max_drop: float | None = None,
    target_speedup: float | None = None,
    tokenizer: Any = None,
    metric: Metric | None = None,
    labels: Sequence[int] | None = None,
    pooling: str | None = None,
    dtype: torch.dtype | str | None = None,
    policies: Iterable[Family] | None = None,
    min_tokens: int = 64,
    max_length: int | None = None,
    evaluations: int = 5,
    timed_tokens: int = 16384,
    repeats: int = 3,
    confidence: float = 0.95,
    seed: int = 0,
    progress: bool = True,
) -> Calibration:
    """Search pruning policies by measured time and measured loss, on one half of the texts; report on the other.

    Each family of policies is searched by halving its strength, as time and loss both follow it. Times are of this
    machine, this dtype and these texts: the packed network without pruning and with it run the same batches in turn.

    What is lost is, by default, 1 - the cosine of a text's pooled embedding and the one without pruning; of a
    sequence classifier, the share of texts whose answer changes.

    Where no policy does what was asked for, or the texts are too short for any to gain, the result says so (`gains` is
    False) and holds what was measured, the nearest policy included.

    Args:
        model: a network that `nlp.accelerate` takes, or one that it made.
        texts: some hundred of the kind that the network will see; half of them are held out.
        max_drop: largest mean loss. It must hold with `confidence`; the fastest policy that keeps it is chosen.
        target_speedup: over the packed network without pruning. The policy that loses least at this speed is chosen;
            with both, the fastest one that reaches the speed and keeps the loss.
        tokenizer: of the network; by default the one that came with a network of `nlp.load_pretrained`.
        metric: instead of the default loss, a function (output, attention_mask [B, S], positions of the texts) ->
            score [B] of each text, higher is better; the loss is how far it falls.
        labels: of a sequence classifier, the right class of each text: the loss is the accuracy lost.
        pooling: of the default loss, "mean", "cls" or "last"; by default as the network's card says, else "mean".
        dtype: as `nlp.accelerate`, of both networks.
        policies: families to search instead of the default ones.
        min_tokens: of the default families: shorter texts are left alone.
        max_length: cut texts at so many tokens.
        evaluations: policies measured per family.
        timed_tokens: how many tokens the time is taken on.
        repeats: of the timing, whose median counts.
        confidence: that the true loss does not exceed `max_drop`, one-sided, in [0.5, 1).
        seed: which texts are held out.

    Raises:
        ValueError: an argument out of its range; fewer than 20 texts.
        TypeError: a single text instead of several, policies that are not families.
    """
    _check(max_drop, target_speedup, evaluations, repeats, timed_tokens, confidence)
    model = restore(model)
    parts = parts_of(model)
    pooling = pooling_of(model, pooling)
    found = families(parts.n_calls, parts.architecture.causal, min_tokens) if policies is None else None
    searched = check_families(policies) if policies is not None else found or []
    sample = read(model, texts, tokenizer, max_length)
    if len(sample) < _LEAST_TEXTS:
        raise ValueError(
            f"texts must be at least {_LEAST_TEXTS}, half to search on and half held out, got {len(sample)}"
        )
    order = random.Random(seed).sample(range(len(sample)), len(sample))
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    loss = _loss(model, metric, labels, pooling, len(sample))
    task = task_of(model, pooling)
    asked: dict[str, Any] = dict(
        max_drop=max_drop,
        target_speedup=target_speedup,
        confidence=confidence,
        metric=loss.name,
        mean_tokens=sum(sample.lengths) / len(sample),
        percent=loss.share,
        model=model,
        dtype=dtype,
        task=task,
    )
    hopeless = _why_hopeless(sample, searched, parts.n_calls)
    if hopeless:
        return _nothing(hopeless, None, (), asked)
    dense = accelerate(model, dtype=dtype, task=task)

    def build(policy: Policy) -> Any:
        return accelerate(model, prune=policy, dtype=dtype, task=task)

    half = _Half(dense, build, sample, halves[0], loss, timed_tokens, repeats)
    tried: list[Candidate] = []
    with tqdm(total=len(searched) * evaluations, desc="calibrating", disable=not progress, unit="policy") as bar:
        for family in searched:
            low, high = 0.0, 1.0
            for _ in range(evaluations):
                strength = (low + high) / 2
                each = half.measure(family.name, family.make(strength))
                tried.append(each)
                bar.update()
                # By speed where one is asked for: enough of it, and no more. Else as strong as the loss allows.
                if target_speedup is not None:
                    stronger = each.speedup < target_speedup
                else:
                    assert max_drop is not None
                    stronger = each.at_most(confidence) <= max_drop
                low, high = (strength, high) if stronger else (low, strength)
    table = tuple(tried)
    best, why = choose(table, max_drop, target_speedup, confidence, loss.name, loss.share)
    if why:
        return _nothing(why, best, table, asked)
    other = _Half(dense, build, sample, halves[1], loss, timed_tokens, max(repeats, 5))
    held_out = other.measure(best.family, best.policy)
    return Calibration(
        estimate=held_out.loss,
        error=held_out.error,
        policy=best.policy,
        chosen=best,
        held_out=held_out,
        nearest=best,
        table=table,
        **asked,
    )


def _nothing(why: str, nearest: Candidate | None, table: tuple[Candidate, ...], asked: dict[str, Any]) -> Calibration:
    """The result where no policy is chosen: without pruning nothing is lost, and nothing is gained."""
    return Calibration(
        estimate=0.0,
        error=0.0,
        gains=False,
        policy=None,
        chosen=None,
        held_out=None,
        nearest=nearest,
        table=table,
        why=why,
        **asked,
    )


def choose(
    table: tuple[Candidate, ...],
    max_drop: float | None,
    target_speedup: float | None,
    confidence: float,
    metric: str,
    percent: bool = False,
) -> tuple[Candidate, str]:
    """The best of the candidates that do what was asked for, and an empty string; else the nearest, and what lacks."""
    fast = [each for each in table if each.speedup >= (target_speedup or 1.0)]
    small = [each for each in table if max_drop is None or each.at_most(confidence) <= max_drop]
    both = [each for each in fast if each in small]
    if both and max_drop is None:
        return min(both, key=lambda each: (each.loss, -each.speedup)), ""
    if both:
        return max(both, key=lambda each: each.speedup), ""
    wish = f"{target_speedup:.2f}x" if target_speedup is not None else "any gain"
    if max_drop is None or not fast:
        nearest = max(small or table, key=lambda each: each.speedup)
        why = f"no policy reaches {wish}"
    else:
        nearest = min(fast, key=lambda each: each.at_most(confidence))
        why = f"no policy reaches {wish} with a {metric} of at most {number(max_drop, percent)}"
    return nearest, (
        f"{why} ({confidence:.0%} confidence); the nearest is {nearest.policy}: {nearest.speedup:.2f}x, {metric} "
        f"{number(nearest.loss, percent)} ± {number(nearest.error, percent)}"
    )


@dataclass
class _Half:
    """Some of the texts, and what the network without pruning makes of them."""

    dense: Any
    build: Callable[[Policy], Any]
    sample: Sample
    positions: Sequence[int]
    loss: Loss
    timed_tokens: int
    repeats: int

    def __post_init__(self) -> None:
        self._device = next(self.dense.parameters()).device
        self._batches = self.sample.batches(self.positions, _MAX_TOKENS)
        self._timed = self._timing_batches()
        self._wanted, _ = self._observed(self.dense)

    def measure(self, family: str, policy: Policy) -> Candidate:
        """Time and loss of a policy."""
        network = self.build(policy)
        seen, kept = self._observed(network)
        mean, error = mean_with_error(self.loss.of(self._wanted, seen), self.loss.share)
        timed = [self.sample.padded(batch, self._device) for batch in self._timed]
        calls = [_caller(each, timed) for each in (self.dense, network)]
        with torch.inference_mode():
            dense, pruned = in_turn(calls, len(timed), self.repeats, self._device)
        return Candidate(family, policy, dense / pruned, pruned, mean, error, kept, len(self.positions))

    def _timing_batches(self) -> list[list[int]]:
        """Whole batches, evenly spread over the lengths, of about `timed_tokens` tokens."""
        sizes = [sum(len(self.sample.ids[i]) for i in batch) for batch in self._batches]
        wanted = max(1, round(len(sizes) * min(1.0, self.timed_tokens / sum(sizes))))
        return [self._batches[(2 * i + 1) * len(sizes) // (2 * wanted)] for i in range(wanted)]

    def _observed(self, network: Any) -> tuple[Tensor, tuple[float, ...]]:
        """What the loss compares, in the order of the positions, and the share of tokens alive in each layer."""
        where = {position: row for row, position in enumerate(self.positions)}
        rows: list[Tensor | None] = [None] * len(where)
        kept = torch.zeros(0)
        with torch.inference_mode():
            for batch in self._batches:
                ids, mask = self.sample.padded(batch, self._device)
                output = network(input_ids=ids, attention_mask=mask)
                for position, row in zip(batch, self.loss.observe(output, mask, batch)):
                    rows[where[position]] = row
                alive = output.kept.sum(1).double().cpu()
                kept = kept + alive if len(kept) else alive
        return torch.stack([row for row in rows if row is not None]), tuple((kept / kept[0]).tolist())


def _caller(network: Any, batches: list[tuple[Tensor, Tensor]]) -> Callable[[int], object]:
    def call(number: int) -> object:
        ids, mask = batches[number]
        return network(input_ids=ids, attention_mask=mask)

    return call


def _loss(model: Any, metric: Metric | None, labels: Sequence[int] | None, pooling: str, n_texts: int) -> Loss:
    if metric is not None:
        if labels is not None:
            raise ValueError("labels must be None where a metric is given: the metric sees the texts' positions")
        if not callable(metric):
            raise TypeError(f"metric must be a function, got {type(metric).__name__}")
        return Custom(metric)
    if classifies(model):
        if labels is None:
            return Answers()
        if len(labels) != n_texts:
            raise ValueError(f"labels must hold one class for each of the {n_texts} texts, got {len(labels)}")
        return Accuracy(labels)
    if labels is not None:
        raise ValueError(
            f"labels must be None for {type(model).__name__}, which is not a sequence classifier: see metric"
        )
    if model.base_model is not model:
        raise ValueError(f"metric must be given for {type(model).__name__}: there is no loss that fits every task")
    return Cosine(pooling)


def _check(
    max_drop: float | None,
    target_speedup: float | None,
    evaluations: int,
    repeats: int,
    timed_tokens: int,
    confidence: float,
) -> None:
    if max_drop is None and target_speedup is None:
        raise ValueError("max_drop or target_speedup must be given, or both")
    if max_drop is not None and not 0 < max_drop < float("inf"):
        raise ValueError(f"max_drop must be a number above 0, got {max_drop!r}")
    if target_speedup is not None and not 1 < target_speedup < float("inf"):
        raise ValueError(f"target_speedup must be a number above 1, got {target_speedup!r}")
    for name, value in (("evaluations", evaluations), ("repeats", repeats), ("timed_tokens", timed_tokens)):
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    check_confidence(confidence)


def _why_hopeless(sample: Sample, searched: Sequence[Family], n_layers: int) -> str:
    """Why no policy can gain on these texts; empty where one may."""
    if not searched:
        return f"tokens leave between layers, and the network has {n_layers}"
    min_tokens = min(family.make(0.5).min_tokens for family in searched)
    lengths = sample.lengths
    total = sum(lengths)
    touched = sum(length for length in lengths if length >= min_tokens) / total
    if touched >= _LEAST_SHARE:
        return ""
    return (
        f"the texts are too short: of {total / len(lengths):.0f} tokens in the mean, with {touched:.0%} of all tokens "
        f"in texts of at least min_tokens = {min_tokens}; removing half of those gives at most "
        f"{1 / (1 - touched / 2):.2f}x"
    )
