"""The tokenizer and the training loop, which can be stopped and continued."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common_models import checkpoints
from nlp.pretrained import model_files
from nlp.training.recipe import BEGIN, END, PAD, Recipe
from nlp.training.start import initialise
from nlp.training.text import digest

CHECKPOINT_STEPS = 50


def train_tokenizer(recipe: Recipe, texts: list[str]) -> Any:
    """A byte-level BPE tokenizer (transformers' fast kind) that opens every text with "begin"."""
    package = model_files.transformers()
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=recipe.vocabulary,
            special_tokens=[BEGIN, END, PAD],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    backend.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, 0)])
    return package.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=BEGIN, eos_token=END, pad_token=PAD, model_max_length=recipe.context
    )


def tokens_of(tokenizer: Any, texts: list[str]) -> Tensor:
    """[n] int64: the texts one after the other, "end" behind each, without "begin"."""
    encoded = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    return torch.tensor([token for each in encoded for token in (*each.ids, tokenizer.eos_token_id)])


def windows(tokens: Tensor, context: int, first: int = 0) -> Tensor:
    """[n, context]: the tokens from `first` on, cut into pieces, "begin" before each; the rest is left out."""
    pieces = tokens[first : first + (len(tokens) - first) // (context - 1) * (context - 1)].view(-1, context - 1)
    return torch.cat([pieces.new_zeros(len(pieces), 1), pieces], 1)


def build(recipe: Recipe) -> Any:
    """The network with the recipe's random weights, in training mode."""
    package = model_files.transformers()
    config = package.LlamaConfig(
        vocab_size=recipe.vocabulary,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.feed_forward,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.key_heads,
        max_position_embeddings=2 * recipe.context,
        tie_word_embeddings=True,
        initializer_range=recipe.hidden**-0.5,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        # At these sizes products and a softmax in bf16 train faster on a CPU than the fused attention.
        attn_implementation="eager",
    )
    torch.manual_seed(recipe.seed)
    model = package.LlamaForCausalLM(config)
    initialise(model)
    return model.train()


def train(recipe: Recipe, tokens: Tensor, checkpoint: Path | None = None, progress: bool = True) -> Any:
    """A network trained by the recipe on a stream of tokens [n], in evaluation mode.

    Args:
        checkpoint: written every 50 steps; where it exists, training continues from it, to the same end.

    Raises:
        ValueError: the checkpoint is of another recipe or text, or not a checkpoint; fewer tokens than two windows.
    """
    if len(tokens) < 2 * recipe.context:
        raise ValueError(f"the texts must have at least {2 * recipe.context} tokens, two windows, got {len(tokens)}")
    with torch.random.fork_rng(devices=[]):
        model = build(recipe)
        matrices = [p for p in model.parameters() if p.ndim > 1]
        vectors = [p for p in model.parameters() if p.ndim == 1]
        groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(
            groups, recipe.learning_rate, betas=(0.9, 0.95), weight_decay=recipe.weight_decay, fused=True
        )
        run = {**asdict(recipe), "text": digest([" ".join(map(str, tokens.tolist()))])}
        first = 0
        if checkpoint is not None and checkpoint.exists():
            first = checkpoints.resume(checkpoint, run, model, optimizer)
        steps = checkpoints.shown(range(first, recipe.steps), "training", recipe.steps, progress, first)
        for step in steps:
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * learning_rate(step, recipe)
            loss = _loss(model, batch_of(tokens, recipe, step), recipe.precision)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if progress and step % 10 == 0:
                steps.set_postfix(loss=f"{loss.item():.3f}")
            if checkpoint is not None and (step + 1) % CHECKPOINT_STEPS == 0:
                checkpoints.write(checkpoint, run, step + 1, model, optimizer)
    model.set_attn_implementation("sdpa")
    return model.eval()


def batch_of(tokens: Tensor, recipe: Recipe, step: int) -> Tensor:
    """[batch, context]: the windows of a step; every pass over the text cuts it anew and shows all of it, shuffled."""
    n = (len(tokens) - recipe.context) // (recipe.context - 1)  # windows in a pass, wherever the first one starts
    rows = []
    for i in range(step * recipe.batch, (step + 1) * recipe.batch):
        generator = _generator(recipe, i // n)
        first = int(torch.randint(recipe.context, (1,), generator=generator))
        at = first + int(torch.randperm(n, generator=generator)[i % n]) * (recipe.context - 1)
        window = tokens[at : at + recipe.context - 1]
        if i % recipe.repeats_every == 0:
            period = torch.randint(recipe.context // 8, recipe.context // 2, (1,), generator=_generator(recipe, i))
            window = window[torch.arange(len(window)) % period]
        rows.append(F.pad(window, (1, 0)))
    return torch.stack(rows)


def _generator(recipe: Recipe, i: int) -> torch.Generator:
    return torch.Generator().manual_seed(recipe.seed * 10_007 + i)


def learning_rate(step: int, recipe: Recipe) -> float:
    """Factor on the learning rate."""
    left = (recipe.steps - step) / max(1, recipe.steps - recipe.warm_up)
    return min(1.0, (step + 1) / max(1, recipe.warm_up), left)


def _loss(model: Any, batch: Tensor, precision: str) -> Tensor:
    context = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
    with context:
        logits = model(input_ids=batch, use_cache=False).logits
    return F.cross_entropy(logits[:, :-1].float().flatten(0, 1), batch[:, 1:].flatten())
