"""`python -m nlp.training -o weights.safetensors`: train the small language model, measure it, save it.

After an interruption (Ctrl-C) the same command continues the training from its checkpoint. `--evaluate
weights.safetensors` prints the held-out measurements of a file, with what is left of its perplexity once PrunedCache
has evicted.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nlp.pretrained import load_pretrained, load_tokenizer, save_pretrained
from nlp.training import measure
from nlp.training.recipe import Recipe
from nlp.training.text import digest, held_out_texts, training_texts
from nlp.training.train import tokens_of, train, train_tokenizer, windows

EVICTION_WINDOWS = 32
DESCRIPTION = (
    "A small Llama for tests and demonstrations, trained for minutes on the documentation of Python's standard library."
)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m nlp.training", description=(__doc__ or "").partition("\n")[0])
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("-o", "--output", type=Path, help="safetensors file to write")
    wanted.add_argument("--evaluate", type=Path, metavar="FILE", help="measure this file instead of training one")
    for field in fields(Recipe):
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(flag, type=type(field.default), help=f"default {field.default}")
    parsed = vars(parser.parse_args(argv))
    output, evaluated = parsed.pop("output"), parsed.pop("evaluate")
    changed = {name: value for name, value in parsed.items() if value is not None}
    if evaluated is not None and changed:
        parser.error(f"--evaluate measures a file as it is, got --{next(iter(changed)).replace('_', '-')} as well")
    if output is not None and not output.parent.is_dir():
        parser.error(f"--output must lie in an existing folder, got {output}")
    start = time.perf_counter()
    try:
        if evaluated is not None:
            print(json.dumps(evaluate(evaluated), indent=2))
            return 0
        recipe = replace(Recipe(), **changed)
        print(json.dumps(asdict(recipe)))
        run(recipe, output)
    except KeyboardInterrupt:
        print("\nStopped. Run the same command again to continue from the last checkpoint.", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    size = output.stat().st_size / 1e6
    print(f"{output}: {size:.2f} MB, {(time.perf_counter() - start) / 60:.1f} minutes in all")
    return 0


def run(recipe: Recipe, output: Path, progress: bool = True) -> None:
    """Train, measure and save; a checkpoint lies beside the output until it is saved."""
    texts, held_out = training_texts(), held_out_texts()
    tokenizer = train_tokenizer(recipe, texts)
    tokens = tokens_of(tokenizer, texts)
    checkpoint = output.with_name(f"{output.stem}.checkpoint")
    model = train(recipe, tokens, checkpoint, progress)
    for parameter in model.parameters():  # measured as it will be saved
        if parameter.ndim > 1:
            parameter.data = parameter.data.half().float()
    results = {
        "held_out_topics": len(held_out),
        "ngram_perplexity": measure.ngram_perplexities(tokens, tokens_of(tokenizer, held_out), recipe.vocabulary),
        **measurements(model, tokens_of(tokenizer, held_out), recipe.context, progress),
    }
    save_pretrained(
        model,
        output,
        description=DESCRIPTION,
        tokenizer=tokenizer,
        license="Apache-2.0",
        recipe={
            **asdict(recipe),
            "text": "Python's own documentation: pydoc_data.topics and the docstrings of the standard library",
            "text_sha256": digest(texts),
            "tokens": len(tokens),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        results=results,
    )
    checkpoint.unlink(missing_ok=True)
    print(json.dumps(results, indent=2))


def evaluate(path: Path, progress: bool = True) -> dict[str, Any]:
    """The held-out measurements of a file, on the texts of this Python."""
    model, tokenizer = load_pretrained(path), load_tokenizer(path)
    context = model.config.max_position_embeddings // 2
    return measurements(model, tokens_of(tokenizer, held_out_texts()), context, progress)


def measurements(model: Any, held_out: Tensor, context: int, progress: bool) -> dict[str, Any]:
    """Of held-out tokens, cut into windows of `context`, three quarters of which are in the cache when it evicts."""
    pieces = windows(held_out, context)
    prefill = context * 3 // 4
    return {
        "held_out_tokens": len(held_out),
        "perplexity": round(measure.perplexity(model, pieces), 3),
        "attention_on_first_token": measure.first_token_mass(model, pieces[:8], context // 8),
        "perplexity_four_hidden": measure.four_evicted(model, pieces, prefill),
        "perplexity_by_share_kept": measure.eviction_table(model, pieces[:EVICTION_WINDOWS], prefill, progress),
    }


if __name__ == "__main__":
    sys.exit(main())
