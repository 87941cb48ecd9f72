"""Published checkpoints as networks of this package."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from common_kernels.checks import describe
from common_models.pretrained import give_tensors
from pointcloud.checkpoints.convert import convert_with
from pointcloud.checkpoints.networks import NotThisNetworkError, Spelling, minkunet_arguments, our_keys, spelling_of
from pointcloud.checkpoints.read import Checkpoint, checkpoint_of, read_checkpoint
from pointcloud.checkpoints.sources import Evidence
from pointcloud.models import MinkUNet


def load_checkpoint(
    checkpoint: str | os.PathLike[str] | Mapping[str, Any], *, source: str | None = None, sha256: str | None = None
) -> MinkUNet:
    """A MinkUNet from a checkpoint of spvnas or mmdetection3d (torchsparse, spconv, Minkowski Engine), for inference.

    Depth, width and numbers of channels and classes are those of the tensors. The network takes coordinates with the
    columns in the order in which the project gives them to its own, and the same features.

    Args:
        checkpoint: a file (see `read_checkpoint`), or what torch.load made of one.
        source: the library of the layers, as in `convert_state_dict`; by default what the file tells.
        sha256: the file's digest, eight digits at least.

    Raises:
        ValueError: a file that is no such checkpoint, or weights whose layout is not settled: the message says what to
            decide. For other networks see `convert_state_dict`.
        OSError: the file cannot be read.
    """
    if not isinstance(checkpoint, Mapping):
        found = read_checkpoint(checkpoint, sha256)
    elif sha256 is not None:
        raise ValueError("sha256 must be left out where checkpoint is no file")
    else:
        found = checkpoint_of(checkpoint)
    spelling = spelling_of(found.tensors)
    if spelling is None:
        raise ValueError(
            f"{found.name} must be of a MinkUNet of spvnas or mmdetection3d, got keys such as "
            f"{next(iter(found.tensors))!r}: convert_state_dict takes the network that they belong to"
        )
    return minkunet_of(found, spelling, source)[0]


def minkunet_of(
    checkpoint: Checkpoint, spelling: Spelling, source: str | None = None
) -> tuple[MinkUNet, dict[str, Any]]:
    """The network and the arguments that built it.

    Raises:
        ValueError: as `load_checkpoint`.
    """
    try:
        renamed = our_keys(checkpoint.tensors, spelling)
        ours = {renamed[key]: checkpoint.tensors[key] for key in renamed}
        arguments = minkunet_arguments(ours)
        with torch.device("meta"):  # without memory, until the shapes are known to fit
            model = MinkUNet(**arguments)
        modules = {key.rpartition(".")[0]: new.rpartition(".")[0] for key, new in renamed.items()}
        said = checkpoint.evidence
        versions = {modules[name]: version for name, version in said.layer_versions.items() if name in modules}
        evidence = Evidence(versions, said.writers, said.keys)
        state = convert_with(ours, model, source or spelling.source, evidence)
    except NotThisNetworkError as error:
        raise NotThisNetworkError(f"{checkpoint.name}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{checkpoint.name}: {error}") from None
    give_tensors(model, _fitting(checkpoint.name, state, model))
    return model.eval(), arguments


def _fitting(name: str, state: dict[str, Tensor], model: MinkUNet) -> dict[str, Tensor]:
    """The tensors in the network's dtypes and of their own memory, if they are its tensors."""
    expected = model.state_dict()
    # Old files were written before norms counted their batches.
    counters = {key: torch.zeros((), dtype=torch.int64) for key in expected if key.endswith(".num_batches_tracked")}
    state = {**counters, **state}
    for what, keys in (("lacks", expected.keys() - state.keys()), ("has unknown", state.keys() - expected.keys())):
        if keys:
            raise ValueError(f"{name} {what} {len(keys)} tensors of its MinkUNet, {min(keys)!r} first")
    for key, value in state.items():
        if value.shape != expected[key].shape or value.is_floating_point() != expected[key].is_floating_point():
            raise ValueError(f"{name}: {key} must be {describe(expected[key])}, got {describe(value)}")
    return {key: value.to(expected[key].dtype, copy=True) for key, value in state.items()}
