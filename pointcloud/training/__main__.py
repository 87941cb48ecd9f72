"""`python -m pointcloud.training -o weights.safetensors`: simulate, train, measure, save."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, fields, replace
from pathlib import Path

from pointcloud.pretrained import save_pretrained
from pointcloud.training.recipe import Recipe
from pointcloud.training.train import train


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pointcloud.training", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, help="safetensors file to write")
    for field in fields(Recipe):
        if not isinstance(field.default, tuple):
            flag = f"--{field.name.replace('_', '-')}"
            parser.add_argument(flag, type=type(field.default), default=field.default)
    arguments = vars(parser.parse_args())
    output = arguments.pop("output")
    if not output.parent.is_dir():
        parser.error(f"--output must lie in an existing folder, got {output}")
    recipe = replace(Recipe(), **arguments)
    print(json.dumps(asdict(recipe)))
    start = time.perf_counter()
    checkpoint = output.with_name(f"{output.stem}.checkpoint")
    try:
        model, card = train(recipe, checkpoint=checkpoint)
    except KeyboardInterrupt:
        if checkpoint.exists():
            print(f"\nStopped. Run the same command again to continue ({checkpoint} holds what is done).")
        raise SystemExit(130) from None
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    save_pretrained(model, output, card)
    checkpoint.unlink(missing_ok=True)
    print(json.dumps(card.results, indent=2))
    print(f"{output}: {output.stat().st_size / 1e6:.2f} MB, {(time.perf_counter() - start) / 60:.1f} minutes in all")


if __name__ == "__main__":
    main()
