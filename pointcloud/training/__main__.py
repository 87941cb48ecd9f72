"""Train a network on labelled clouds, measure it on held-out ones, and save it for `trisparse segment --model FILE`.

Without --data, sweeps are simulated. Interrupted (Ctrl-C), the training continues from its last checkpoint when it is
started again with the same arguments. Several processes share each step: torchrun --nproc-per-node=N -m
pointcloud.training …
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from pointcloud.pretrained import ModelCard, save_pretrained
from pointcloud.training.datasets import DATASETS, open_dataset
from pointcloud.training.fit import Plan, fit
from pointcloud.training.processes import joined, rank_and_world
from pointcloud.training.recipe import Recipe
from pointcloud.training.train import train
from pointcloud.training.transforms import MIXES

_HELP = {
    "seed": "of weights, order and changes of the scans",
    "width": "factor on the network's channels",
    "depth": "of the network: 14, 18 or 34",
    "voxel_size": "metres",
    "train_sweeps": "simulated sweeps to train on",
    "test_sweeps": "simulated sweeps to measure on",
    "first_test_seed": "of the simulated sweeps to measure on",
    "steps": "of the optimiser",
    "batch_size": "scans per step, over all processes",
    "learning_rate": "largest, of AdamW",
    "weight_decay": "of AdamW",
    "mix": "make half of the scans mixtures of two sweeps: " + ", ".join(MIXES),
    "precision": "of the network's products: fp32, or bf16 by autocast",
}
_SIMULATED = {field.name: field.default for field in fields(Recipe)}
_OF_DATA = {field.name: field.default for field in fields(Plan)}
# Options of data sets only; None stands for "not given", so that none is accepted and not followed.
_OF_DATASETS = ("train_sequences", "val_sequences", "mix", "precision", "recompute", "no_augment", "workers")


def main(argv: list[str] | None = None) -> int:
    parser = _parser()
    given = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
    output: Path = given.pop("output")
    if not output.parent.is_dir():
        parser.error(f"--output must lie in an existing folder, got {output}")
    kept = checkpoint_of(output)
    data = given.pop("data", None)
    try:
        job = _simulated(parser, given, kept) if data is None else _of_dataset(parser, data, given, kept)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    start = time.perf_counter()
    try:
        with joined():
            model, card = job()
            first = rank_and_world()[0] == 0
            if first:
                save_pretrained(model, output, card)
    except KeyboardInterrupt:
        print(
            f"\nStopped. Run the same command again to continue (finished steps are kept in {kept}).", file=sys.stderr
        )
        return 130
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if first:
        kept.unlink(missing_ok=True)
        print(json.dumps(card.results, indent=2))
        minutes = (time.perf_counter() - start) / 60
        print(f"{output}: {output.stat().st_size / 1e6:.2f} MB, {minutes:.1f} minutes in all")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pointcloud.training",
        description=(__doc__ or "").partition("\n")[0],
        epilog=(__doc__ or "").partition("\n\n")[2],
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="safetensors file to write")
    parser.add_argument(
        "--data",
        nargs=2,
        metavar=("KIND", "FOLDER"),
        help=f"labelled data set in its published folders; KIND is one of {', '.join(DATASETS)}",
    )
    for split, what in (("train", "train on"), ("val", "measure on")):
        parser.add_argument(
            f"--{split}-sequences",
            metavar="A,B,…",
            help=f"sequences, scenes or areas to {what} instead of the official split's (with --data)",
        )
    _add_fields(parser)
    parser.add_argument(
        "--recompute", action="store_true", default=None,
        help="keep the inputs of the network's stages only and compute them again: less memory (with --data)",
    )  # fmt: skip
    parser.add_argument(
        "--no-augment", action="store_true", default=None, help="train on the scans as they are (with --data)"
    )
    parser.add_argument(
        "--workers", type=int, help="threads that read scans ahead; no result depends on them (default 1, with --data)"
    )
    return parser


def _add_fields(parser: argparse.ArgumentParser) -> None:
    for name in {**_SIMULATED, **_OF_DATA}:
        value = _SIMULATED.get(name, _OF_DATA.get(name))
        if isinstance(value, (tuple, bool)):
            continue
        tables = (("", _SIMULATED), ("with --data", _OF_DATA))
        defaults = {where: table[name] for where, table in tables if name in table}
        if len(set(defaults.values())) == 1 and len(defaults) == 2:
            defaults = {"": value}
        elif name not in _OF_DATA:
            defaults = {"without --data": value}
        stated = ", ".join(f"{default} {where}".strip() for where, default in defaults.items())
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), help=f"{_HELP[name]} (default {stated})")


def _simulated(
    parser: argparse.ArgumentParser, given: dict[str, Any], kept: Path
) -> Callable[[], tuple[nn.Module, ModelCard]]:
    for name in _OF_DATASETS:
        if name in given:
            parser.error(f"--{name.replace('_', '-')} applies to a data set only: add --data KIND FOLDER")
    recipe = replace(Recipe(), **given)
    print(json.dumps(asdict(recipe)))

    def job() -> tuple[nn.Module, ModelCard]:
        if rank_and_world()[1] > 1:
            raise ValueError("simulated sweeps are trained on in one process: start without torchrun, or add --data")
        return train(recipe, checkpoint=kept)

    return job


def _of_dataset(
    parser: argparse.ArgumentParser, data: list[str], given: dict[str, Any], kept: Path
) -> Callable[[], tuple[nn.Module, ModelCard]]:
    sequences = {split: given.pop(f"{split}_sequences", None) for split in ("train", "val")}
    workers = given.pop("workers", 1)
    if workers < 1:
        parser.error(f"--workers must be at least 1, got {workers}")
    if given.pop("no_augment", False):
        given["augment"] = False
    strange = sorted(set(given) - set(_OF_DATA))
    if strange:
        parser.error(f"--{strange[0].replace('_', '-')} applies to simulated sweeps only: leave out --data")
    train_set, held_out = (
        open_dataset(data[0], data[1], split, sequences=None if names is None else names.split(","))
        for split, names in sequences.items()
    )
    shared = sorted(set(train_set.scans) & set(held_out.scans))
    if shared:
        raise ValueError(f"{shared[0]} is in both splits: what is trained on cannot be held out")
    plan = Plan(**given)

    def job() -> tuple[nn.Module, ModelCard]:
        if rank_and_world()[0] == 0:
            print(json.dumps(asdict(plan) | {"train": len(train_set), "held_out": len(held_out)}))
        done = fit(train_set, held_out, plan, checkpoint=kept, workers=workers)
        return done.model, done.card

    return job


def checkpoint_of(output: Path) -> Path:
    """Where the training of a weights file keeps what is done until the file is written."""
    return output.with_name(f"{output.stem}.checkpoint.pt")


if __name__ == "__main__":
    sys.exit(main())
