"""`python -m pointcloud.training -o weights.safetensors`: simulate, train, measure, save.

Interrupted (Ctrl-C), the training continues from its last checkpoint when it is started again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, fields, replace
from pathlib import Path

from pointcloud.pretrained import save_pretrained
from pointcloud.training.recipe import Recipe
from pointcloud.training.train import train


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pointcloud.training", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="safetensors file to write")
    for field in fields(Recipe):
        if not isinstance(field.default, tuple):
            flag = f"--{field.name.replace('_', '-')}"
            parser.add_argument(flag, type=type(field.default), default=field.default, help=f"default {field.default}")
    arguments = vars(parser.parse_args(argv))
    output = arguments.pop("output")
    if not output.parent.is_dir():
        parser.error(f"--output must lie in an existing folder, got {output}")
    recipe = replace(Recipe(), **arguments)
    print(json.dumps(asdict(recipe)))
    start = time.perf_counter()
    kept = checkpoint_of(output)
    try:
        model, card = train(recipe, checkpoint=kept)
        save_pretrained(model, output, card)
    except KeyboardInterrupt:
        print(
            f"\nStopped. Run the same command again to continue (finished steps are kept in {kept}).", file=sys.stderr
        )
        return 130
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    kept.unlink(missing_ok=True)
    print(json.dumps(card.results, indent=2))
    print(f"{output}: {output.stat().st_size / 1e6:.2f} MB, {(time.perf_counter() - start) / 60:.1f} minutes in all")
    return 0


def checkpoint_of(output: Path) -> Path:
    """Where the training of a weights file keeps what is done until the file is written."""
    return output.with_name(f"{output.stem}.checkpoint.pt")


if __name__ == "__main__":
    sys.exit(main())
