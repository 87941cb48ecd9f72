"""`python -m video.training -o weights.safetensors`: train on moving digits with and without shift, measure, save.

Writes three files: the named one holds the past-only network, which also runs live; beside it `...-both` and
`...-no-shift` hold those that it is compared with. Interrupted (Ctrl-C), it goes on where it was when started again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from video.pretrained import ModelCard, round_like_saved, save_pretrained
from video.training.clips import CLASS_NAMES, PLACES
from video.training.recipe import VARIANTS, Recipe
from video.training.train import arguments, held_out_accuracy, live_accuracy, train

DESCRIPTION = (
    "A small demonstration network, trained on handwritten digits that circle, leap or swing: the motion shows in the "
    "order of the frames only."
)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m video.training", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="safetensors file to write")
    for field in fields(Recipe):
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(flag, type=type(field.default), default=field.default, help=f"default {field.default}")
    parsed = vars(parser.parse_args(argv))
    output = parsed.pop("output")
    if not output.parent.is_dir():
        parser.error(f"--output must lie in an existing folder, got {output}")
    recipe = replace(Recipe(), **parsed)
    print(json.dumps(asdict(recipe)))
    start = time.perf_counter()
    try:
        results = run(recipe, output)
    except KeyboardInterrupt:
        print(
            f"\nStopped. Run the same command again to continue (finished epochs are kept beside {output}).",
            file=sys.stderr,
        )
        return 130
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(results, indent=2))
    size = output.stat().st_size / 1e6
    print(f"{output}: {size:.2f} MB, {(time.perf_counter() - start) / 60:.1f} minutes in all")
    return 0


def run(recipe: Recipe, output: Path, progress: bool = True) -> dict[str, Any]:
    """Train, measure and save the three variants; checkpoints lie beside the output until all are saved."""
    models = {variant: train(recipe, variant, checkpoint(output, variant), progress) for variant in VARIANTS}
    for model in models.values():
        round_like_saved(model)
    results = {
        "accuracy": {variant: round(held_out_accuracy(model, recipe), 4) for variant, model in models.items()},
        "accuracy_live": round(live_accuracy(models["past"], recipe), 4),
        "chance": 1 / len(CLASS_NAMES),
    }
    for variant, model in models.items():
        card = ModelCard(
            description=DESCRIPTION,
            architecture="TSM",
            arguments=arguments(recipe, variant),
            class_names=CLASS_NAMES,
            size=recipe.size,
            num_segments=PLACES,
            recipe=asdict(recipe),
            results=results,
        )
        save_pretrained(model, file_of(output, variant), card)
    for variant in VARIANTS:
        checkpoint(output, variant).unlink(missing_ok=True)
    return results


def file_of(output: Path, variant: str) -> Path:
    """Where a variant's weights go: "past" into the output itself."""
    return output if variant == "past" else output.with_stem(f"{output.stem}-{variant}")


def checkpoint(output: Path, variant: str) -> Path:
    """Where a variant's training is kept while it is under way."""
    return output.with_name(f"{output.stem}-{variant}.checkpoint")


if __name__ == "__main__":
    sys.exit(main())
