"""Train a network to answer as before without the tokens that a policy removes."""

from __future__ import annotations

import copy
import hashlib
import math
import os
import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from common_models.acceleration import restore
from common_models.dtypes import multiplies_bf16
from nlp.accelerate import accelerate
from nlp.packing.architectures import parts_of
from nlp.prune.policy import Policy
from nlp.prune.threshold import Threshold
from nlp.texts.embedder import pool
from nlp.tuning import checkpoint as files
from nlp.tuning.gates import GatedThreshold, Gates, attach
from nlp.tuning.sample import Sample, classifies, pooling_of, read, task_of

_TIMED_STEPS = 3  # after which `minutes` becomes a number of steps
_CLIP = 1.0
_THETA_RATE = 0.02  # learning rate of thresholds: scores have mean 1
_BUDGET = 20.0  # weight of the squared, relative miss of `keep`


@dataclass(frozen=True)
class _Settings:
    learning_rate: float
    warmup: float
    weight_decay: float
    batch_tokens: int
    seed: int
    precision: str
    keep: float | None


def finetune(
    model: Any,
    texts: Iterable[str],
    policy: Policy,
    *,
    tokenizer: Any = None,
    steps: int | None = None,
    minutes: float | None = None,
    keep: float | None = None,
    pooling: str | None = None,
    learning_rate: float = 5e-5,
    warmup: float = 0.1,
    weight_decay: float = 0.01,
    batch_tokens: int = 4096,
    max_length: int | None = 256,
    precision: str = "auto",
    dtype: torch.dtype | str | None = None,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    save_every: int = 50,
    progress: bool = True,
) -> Any:
    """A copy of the network, trained on texts without labels to lose less by pruning, with the policy in place.

    Self-distillation: the copy prunes, with gradients through the packed rows of the tokens that are left; the network
    itself, without pruning, tells what the pooled embeddings should be (loss: 1 - cosine), or the logits of a sequence
    classifier (Kullback-Leibler divergence; squared error of a regression). AdamW, linear warm-up, then half a cosine
    to zero. No dropout. The token embeddings stay as they are: few of their rows occur.

    Thresholds are learned along with the weights where the policy is a `Threshold` and `keep` is given.

    Args:
        model: a network that `nlp.accelerate` takes, or one that it made; stays as it is.
        texts: of the kind that the network will see, a thousand or more. Those below the policy's `min_tokens` are
            left out, as nothing is removed from them.
        policy: which tokens go on from layer to layer.
        tokenizer: of the network; by default the one that came with a network of `nlp.load_pretrained`.
        steps: of the optimiser; 200 unless `minutes` is given.
        minutes: train about so long instead: the time of the first steps tells how many there will be.
        keep: of a `Threshold`: the mean share of tokens over all layers, the first included, that the thresholds are
            to leave; they are learned for the least loss at that budget.
        pooling: "mean", "cls" or "last"; by default as the network's card says, else "mean".
        learning_rate: of the weights, at its peak.
        warmup: share of the steps in which the learning rate rises.
        weight_decay: of matrices.
        batch_tokens: tokens of a step.
        max_length: cut texts at so many tokens; None for what the network takes.
        precision: of the products: "bf16" (the weights and sums stay fp32), "fp32", or "auto", bf16 where the
            processor multiplies it: 2.5 times as fast on a CPU that does.
        dtype: of the result, as `nlp.accelerate`; None is the model's own.
        seed: of the order of the texts. The same arguments on the same machine give the same result.
        checkpoint: a file that the run is written to, and continued from where it exists, to the same end.
        save_every: steps from one writing to the next.
        progress: show a bar.

    Returns:
        The trained copy as `nlp.accelerate(copy, prune=policy)` gives it: `.acceleration.prune` holds the policy, with
        learned thresholds those; `nlp.restore(result)` is the trained network itself, to be saved.

    Raises:
        ValueError: an argument out of its range, no texts, none as long as `min_tokens`, a checkpoint of another run.
        TypeError: not a policy, or a single text instead of several.
    """
    _check(steps, minutes, keep, policy, learning_rate, warmup, weight_decay, batch_tokens, precision, save_every)
    model = restore(model)
    pooling = pooling_of(model, pooling)
    if not classifies(model) and model.base_model is not model:
        raise ValueError(
            f"model must give embeddings (a base model) or be a sequence classifier, got {type(model).__name__}"
        )
    sample = _long_enough(read(model, texts, tokenizer, max_length), policy.min_tokens)
    bf16 = precision == "bf16" or (precision == "auto" and multiplies_bf16(next(model.parameters()).device))
    settings = _Settings(learning_rate, warmup, weight_decay, batch_tokens, seed, "bf16" if bf16 else "fp32", keep)
    run = _Run(model, sample, policy, pooling, settings)
    run.train(steps, minutes, None if checkpoint is None else Path(checkpoint), save_every, progress)
    tuned = run.network.to(next(model.parameters()).dtype).requires_grad_(False)
    for parameter, original in zip(tuned.parameters(), model.parameters()):
        parameter.requires_grad_(original.requires_grad)
    return accelerate(tuned, prune=run.policy, dtype=dtype, task=task_of(model, pooling))


class _Run:
    """Student, teacher, optimiser, and what they have done so far."""

    def __init__(self, model: Any, sample: Sample, policy: Policy, pooling: str, settings: _Settings) -> None:
        self.sample, self.settings, self.pooling = sample, settings, pooling
        self._policy = policy
        self.teacher = accelerate(model)
        self.network = copy.deepcopy(model).float().eval().requires_grad_(True)
        # Few rows of it occur in the texts: a step would change these alone.
        self.network.get_input_embeddings().requires_grad_(False)
        parts = parts_of(self.network)
        self.gates: Gates | None = None
        self.gated: GatedThreshold | None = None
        if settings.keep is not None:
            assert isinstance(policy, Threshold)
            self.gates = Gates(policy, parts.n_calls).to(self.device)
            self.gated = GatedThreshold(self.gates)
        self.student = accelerate(self.network, prune=self.gated or policy, task=task_of(model, pooling))
        if self.gated is not None:
            attach(parts_of(self.student).layers, self.gated)
        self.trained = [p for p in self.student.parameters() if p.requires_grad]
        matrices, vectors = [p for p in self.trained if p.ndim > 1], [p for p in self.trained if p.ndim < 2]
        groups: list[dict[str, Any]] = [
            dict(params=matrices, peak=settings.learning_rate, weight_decay=settings.weight_decay),
            dict(params=vectors, peak=settings.learning_rate, weight_decay=0.0),
        ]
        if self.gates is not None:
            groups.append(dict(params=[self.gates.theta], peak=_THETA_RATE, weight_decay=0.0))
        self.optimizer = torch.optim.AdamW(groups, lr=0.0)
        self.step = 0
        self.steps: int | None = None
        self._answers: Tensor | None = None  # [N, ...] of the teacher, as far as `_known` [N] says
        self._known = torch.zeros(len(sample), dtype=torch.bool)

    @property
    def device(self) -> torch.device:
        return next(self.teacher.parameters()).device

    @property
    def policy(self) -> Policy:
        """With the thresholds that were learned."""
        return self._policy if self.gates is None else self.gates.policy()

    def train(
        self, steps: int | None, minutes: float | None, path: Path | None, save_every: int, progress: bool
    ) -> None:
        self.steps = steps if minutes is not None or steps is not None else 200
        identity = self._identity(minutes)
        if path is not None:
            files.check_place(path)
            if (found := files.load(path, identity)) is not None:
                self._resume(*found)
        began, first = time.monotonic(), self.step
        batches = self._batches(self.step)
        with tqdm(total=self.steps, initial=self.step, desc="finetuning", disable=not progress, unit="step") as bar:
            while self.steps is None or self.step < self.steps:
                loss = self._train_step(next(batches))
                self.step += 1
                if self.steps is None and minutes is not None and self.step - first == _TIMED_STEPS:
                    each = (time.monotonic() - began) / _TIMED_STEPS
                    self.steps = max(self.step, round(60 * minutes / each))
                    bar.total = self.steps
                bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
                bar.update()
                done = self.step == self.steps
                if path is not None and self.steps is not None and (done or self.step % save_every == 0):
                    self._save(path, identity)

    def _train_step(self, positions: list[int]) -> float:
        wanted = self._teach(positions)
        ids, mask = self.sample.padded(positions, self.device)
        bf16 = self.settings.precision == "bf16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16):
            output = self.student(input_ids=ids, attention_mask=mask)
        loss = self._loss(output, mask, wanted)
        total = loss
        if self.gated is not None:
            keep = self.settings.keep
            assert keep is not None
            total = loss + _BUDGET * (self.gated.share() / keep - 1) ** 2
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate(self.step, self.steps, self.settings.warmup)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(self.trained, _CLIP)
        self.optimizer.step()
        if self.gates is not None:
            self.gates.clamp_()
        return float(loss.detach())

    def _loss(self, output: Any, mask: Tensor, wanted: Tensor) -> Tensor:
        if classifies(self.network):
            logits = output.logits.float()
            if logits.shape[1] == 1:
                return F.mse_loss(logits, wanted)
            return F.kl_div(logits.log_softmax(-1), wanted.log_softmax(-1), reduction="batchmean", log_target=True)
        if self.gated is not None and self.pooling == "mean":
            pooled = self.gated.pooled(output.last_hidden_state)
        else:
            pooled = pool(output, mask, self.pooling)[0]
        return (1 - torch.cosine_similarity(pooled, wanted)).mean()

    @torch.no_grad()
    def _teach(self, positions: list[int]) -> Tensor:
        """What the network answers without pruning, computed once for each text."""
        missing = [i for i in positions if not self._known[i]]
        if missing:
            ids, mask = self.sample.padded(missing, self.device)
            output = self.teacher(input_ids=ids, attention_mask=mask)
            found = output.logits.float() if classifies(self.network) else pool(output, mask, self.pooling)[0]
            if self._answers is None:
                self._answers = torch.zeros(len(self.sample), *found.shape[1:])
            self._answers[missing] = found.cpu()
            self._known[missing] = True
        assert self._answers is not None
        return self._answers[positions].to(self.device)

    def _batches(self, skip: int) -> Iterator[list[int]]:
        """The texts in another order in each epoch, in batches of about `batch_tokens`, from batch number `skip` on."""
        number = 0
        for epoch in range(1 << 62):
            # A string: sums of seed and epoch would give neighbouring seeds the same orders.
            order = random.Random(f"{self.settings.seed} {epoch}").sample(range(len(self.sample)), len(self.sample))
            batch: list[int] = []
            tokens = 0
            for i in order:
                if batch and tokens + len(self.sample.ids[i]) > self.settings.batch_tokens:
                    if number >= skip:
                        yield batch
                    number, batch, tokens = number + 1, [], 0
                batch.append(i)
                tokens += len(self.sample.ids[i])
            if number >= skip:
                yield batch
            number += 1

    def _identity(self, minutes: float | None) -> dict[str, Any]:
        """What a run must share with another one to continue it."""
        return {
            "model": type(self.network).__name__,
            "weights": _fingerprint(self.network),
            "texts": self.sample.digest(),
            "policy": repr(self._policy),
            "pooling": self.pooling,
            "steps": self.steps,
            "minutes": minutes,
            **vars(self.settings),
        }

    def _save(self, path: Path, identity: dict[str, Any]) -> None:
        tensors = {f"model.{i}": parameter for i, parameter in enumerate(self.trained)}
        tensors.update(files.optimizer_state(self.optimizer))
        if self.gates is not None:
            tensors["theta"] = self.gates.theta
        if self._answers is not None:
            tensors.update(answers=self._answers, known=self._known)
        files.write(path, identity, {"step": self.step, "steps": self.steps}, tensors)

    def _resume(self, progress: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.step, self.steps = progress["step"], progress["steps"]
        with torch.no_grad():
            for i, parameter in enumerate(self.trained):
                parameter.copy_(tensors[f"model.{i}"])
            if self.gates is not None:
                self.gates.theta.copy_(tensors["theta"])
        files.load_optimizer(self.optimizer, tensors)
        if "answers" in tensors:
            self._answers, self._known = tensors["answers"], tensors["known"]


def rate(step: int, steps: int | None, warmup: float) -> float:
    """Factor on the learning rate: linear warm-up, then half a cosine to zero; the first steps of an unknown number
    are as those of 200."""
    steps = steps or 200
    rising = max(1, round(warmup * steps))
    falling = max(0, step - rising) / max(1, steps - rising)
    return min((step + 1) / rising, 0.5 + 0.5 * math.cos(math.pi * min(1.0, falling)))


def _fingerprint(network: nn.Module) -> str:
    found = hashlib.sha256()
    for parameter in network.parameters():
        found.update(parameter.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _long_enough(sample: Sample, min_tokens: int) -> Sample:
    if not len(sample):
        raise ValueError("texts must not be empty")
    kept = [ids for ids in sample.ids if len(ids) >= min_tokens]
    if not kept:
        raise ValueError(
            f"texts must hold some of at least min_tokens = {min_tokens} tokens, for nothing is removed from shorter "
            f"ones, got {len(sample)} of at most {max(sample.lengths)}"
        )
    return Sample(kept, sample.pad)


def _check(
    steps: int | None,
    minutes: float | None,
    keep: float | None,
    policy: object,
    learning_rate: float,
    warmup: float,
    weight_decay: float,
    batch_tokens: int,
    precision: str,
    save_every: int,
) -> None:
    if not isinstance(policy, Policy):
        raise TypeError(f"policy must be a policy such as nlp.Merge, got {type(policy).__name__}")
    if steps is not None and minutes is not None:
        raise ValueError("steps and minutes must not both be given")
    if minutes is not None and not 0 < minutes < math.inf:
        raise ValueError(f"minutes must be a number above 0, got {minutes!r}")
    for name, value in (("steps", 1 if steps is None else steps), ("batch_tokens", batch_tokens),
                        ("save_every", save_every)):  # fmt: skip
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    if keep is not None and not isinstance(policy, Threshold):
        raise ValueError(f"keep must be None for {type(policy).__name__}: only the thresholds of Threshold are learned")
    if keep is not None and not 0 < keep < 1:
        raise ValueError(f"keep must lie between 0 and 1, got {keep!r}")
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate must be a number above 0, got {learning_rate!r}")
    if not 0 <= warmup <= 1:
        raise ValueError(f"warmup must lie in [0, 1], got {warmup!r}")
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay must be a number of at least 0, got {weight_decay!r}")
    if precision not in ("auto", "bf16", "fp32"):
        raise ValueError(f"precision must be auto, bf16 or fp32, got {precision!r}")
