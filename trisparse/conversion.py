"""Checkpoints of other projects as weights files with a card."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from common_models import cards
from common_models.pretrained import numbered_classes, write_weights
from pointcloud.checkpoints import read_checkpoint
from pointcloud.checkpoints.load import minkunet_of
from pointcloud.checkpoints.networks import NotThisNetworkError, Spelling, spelling_of
from pointcloud.checkpoints.read import Checkpoint
from pointcloud.checkpoints.sources import MEANINGS, check_source
from pointcloud.checkpoints.standalone import convert_standalone, project_of
from pointcloud.pretrained import ModelCard
from trisparse.output.spool import check_new, named

if TYPE_CHECKING:
    from trisparse.commands.convert import ConvertOptions

DOMAIN = "pointcloud"
# All MinkUNets that spvnas and mmdetection3d published.
USUAL_VOXEL_SIZE = 0.05


@dataclass(frozen=True)
class Conversion:
    """What is to be written.

    Attributes:
        card: of the file.
        tensors: by key.
        found: what the checkpoint was, in words.
        notes: what was assumed.
    """

    card: cards.ModelCard
    tensors: dict[str, Tensor]
    found: str
    notes: list[str] = field(default_factory=list)


def check_places(file: Path, options: ConvertOptions) -> None:
    """Raise OSError for what can be known to go wrong before the work."""
    if not file.exists():
        raise FileNotFoundError(f"{file}: no such file")
    if file.is_dir():
        raise IsADirectoryError(f"{file}: a directory, but a checkpoint was expected")
    output = options.output
    if output.is_dir():
        raise IsADirectoryError(f"{output}: a directory, but a file to write was expected")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"{output}: its folder {output.parent} does not exist")
    if not os.access(output.parent, os.W_OK):
        raise PermissionError(f"{output}: its folder {output.parent} is not writable")
    if output.exists() and output.samefile(file):
        raise FileExistsError(f"{output}: the weights would overwrite the checkpoint they come from")
    if not options.overwrite:
        check_new([output])


def convert(file: Path, options: ConvertOptions) -> Conversion:
    """Read a checkpoint and convert its weights.

    Raises:
        ValueError: a file that is no checkpoint, names code, or does not tell enough; the message says what to decide.
        OSError: it cannot be read.
    """
    checkpoint = read_checkpoint(file, options.sha256)
    recipe = {"checkpoint": file.name, "sha256": _digest(file), "state_dict": checkpoint.within or "the whole file"}
    if checkpoint.evidence.writers:
        recipe["written_by"] = ", ".join(f"{name} {said}" for name, said in checkpoint.evidence.writers.items())
    spelling = spelling_of(checkpoint.tensors)
    if spelling is not None:
        try:
            return _minkunet(checkpoint, spelling, options, recipe)
        except NotThisNetworkError as error:
            return _other(checkpoint, options, recipe, [str(error)])
    return _other(checkpoint, options, recipe, [])


def _minkunet(
    checkpoint: Checkpoint, spelling: Spelling, options: ConvertOptions, recipe: dict[str, Any]
) -> Conversion:
    source = None if options.source is None else check_source(options.source)
    model, arguments = minkunet_of(checkpoint, spelling, source)
    notes = []
    n_classes = arguments["num_classes"]
    names = checkpoint.class_names
    if len(names) != n_classes:
        names = numbered_classes(n_classes)
        notes.append(f"the file does not name its {n_classes} classes: they are numbered")
    voxel_size = options.voxel_size
    if voxel_size is None:
        voxel_size = USUAL_VOXEL_SIZE
        notes.append(
            f"voxels of {voxel_size:g} m, as in all MinkUNets that {spelling.project} published; --voxel-size says "
            "otherwise"
        )
    card = ModelCard(
        description=f"MinkUNet-{arguments['depth']} of {spelling.project}, converted from {recipe['checkpoint']}.",
        architecture="MinkUNet",
        arguments=arguments,
        class_names=names,
        voxel_size=voxel_size,
        recipe={"converted": {**recipe, "project": spelling.project, "notes": notes}},
    )
    return Conversion(card, model.state_dict(), f"a MinkUNet-{arguments['depth']} of {spelling.project}", notes)


def _other(checkpoint: Checkpoint, options: ConvertOptions, recipe: dict[str, Any], notes: list[str]) -> Conversion:
    """A network that is not here: the card says so much as is known, `load_pretrained` that it cannot build it."""
    if options.voxel_size is not None:
        raise ValueError("--voxel-size goes into the card of a network of this package, got another network")
    converted = convert_standalone(checkpoint, options.source)
    project, network = project_of(checkpoint.tensors)
    known = f"{network} of {project}" if project != network else project
    what = "an unknown network" if project == "unknown" else known
    layers = "no sparse convolution" if converted.source is None else MEANINGS[converted.source]
    card = cards.ModelCard(
        description=f"Weights of {what}, converted from {recipe['checkpoint']}.",
        architecture=what,
        recipe={"converted": {**recipe, "project": project, "layers": layers}},
    )
    found = f"{what}; {converted.convolutions} sparse convolutions" + (
        f" of {layers}" if converted.source is not None else ": nothing to convert"
    )
    return Conversion(card, converted.tensors, found, notes)


def write(result: Conversion, options: ConvertOptions) -> None:
    """Write the file, whole or not at all.

    Raises:
        ValueError: a weight beyond the range of fp16, where it is asked for.
        OSError: it cannot be written.
    """
    with named(options.output):
        write_weights(options.output, _apart(result.tensors), asdict(result.card), DOMAIN, half=options.half)


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share no memory, which the format does not have."""
    seen: set[int] = set()
    apart = {}
    for key, value in tensors.items():
        place = value.untyped_storage().data_ptr()
        apart[key] = value.clone() if place in seen else value
        seen.add(place)
    return apart


def describe(result: Conversion, options: ConvertOptions) -> str:
    """What was found and written, for a terminal."""
    size = options.output.stat().st_size / 1e6
    numbers = sum(value.numel() for value in result.tensors.values())
    lines = [
        result.found,
        f"{options.output}: {len(result.tensors)} tensors, {numbers / 1e6:.2f} million numbers, {size:.2f} MB",
        *(f"note: {note}" for note in result.notes),
    ]
    return "\n".join(lines)


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
