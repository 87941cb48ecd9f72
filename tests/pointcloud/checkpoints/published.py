"""State dicts of a MinkUNet as other projects publish them, written from their lists of layers and orders of taps."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import torch
from torch import Tensor

import pointcloud as pc
from pointcloud.models import MinkUNet
from tests.pointcloud.checkpoints import library_oracles as oracle

BACKENDS = ("torchsparse", "minkowski", "spconv", "mmcv")


def blocks(model: MinkUNet) -> Iterator[tuple[str, str, str]]:
    """Ours, spvnas' and mmdetection3d's name of each residual block."""
    for i in range(4):
        for j in range(len(model.stages[i].blocks)):
            yield f"stages.{i}.blocks.{j}", f"stage{i + 1}.{j + 1}", f"backbone.encoder.{i}.{j + 1}"
        for j in range(len(model.ups[i].blocks)):
            yield f"ups.{i}.blocks.{j}", f"up{i + 1}.1.{j}", f"backbone.decoder.{i}.1.{j}"


def pairs_of_names(model: MinkUNet, project: str, backend: str) -> Iterator[tuple[str, str, str]]:
    """Ours, theirs and the kind ("conv", "norm") of each layer."""
    net = "" if backend in ("spconv", "mmcv") else "net."
    spvnas = project == "spvnas"
    for n, kind in ((0, "conv"), (1, "norm"), (3, "conv"), (4, "norm")):
        yield f"stem.{n}", f"stem.{n}" if spvnas else f"backbone.conv_input.{n // 3}.{net}{n % 3}", kind
    for i in range(4):
        for n, kind in ((0, "conv"), (1, "norm")):
            yield (
                f"stages.{i}.down.{n}",
                f"stage{i + 1}.0.net.{n}" if spvnas else f"backbone.encoder.{i}.0.{net}{n}",
                kind,
            )
            yield f"ups.{i}.up.{n}", f"up{i + 1}.0.net.{n}" if spvnas else f"backbone.decoder.{i}.0.{net}{n}", kind
    if spvnas or backend == "torchsparse":
        inside = {"net.0": "net.0", "net.1": "net.1", "net.3": "net.3", "net.4": "net.4"}
    else:
        norm = "norm" if backend == "minkowski" else "bn"
        inside = {"net.0": "conv1", "net.1": f"{norm}1", "net.3": "conv2", "net.4": f"{norm}2"}
    shortcut = "downsample.net" if backend == "minkowski" else "downsample"
    for ours, of_spvnas, of_mmdet in blocks(model):
        theirs = of_spvnas if spvnas else of_mmdet
        for a, b in inside.items():
            yield f"{ours}.{a}", f"{theirs}.{b}", "norm" if a in ("net.1", "net.4") else "conv"
        if model.get_submodule(ours).downsample is not None:
            yield f"{ours}.downsample.0", f"{theirs}.{shortcut}.0", "conv"
            yield f"{ours}.downsample.1", f"{theirs}.{shortcut}.1", "norm"


def stored(layer: pc.SparseConvolution, backend: str) -> Tensor:
    """The weight, tap by tap in the order in which the library decodes its index."""
    weight = layer.output_first_weight.detach()
    size = tuple(weight.shape[1:-1])
    if backend == "spconv":
        return layer.weight.detach().clone()
    if size == (1, 1, 1):
        matrix = weight.flatten(1).T.contiguous()  # [Cin, Cout]
        return matrix.reshape(1, 1, 1, *matrix.shape) if backend == "mmcv" else matrix
    if backend == "mmcv":
        return weight.movedim(0, -1).contiguous()
    offsets = oracle.torchsparse_offsets(size) if backend == "torchsparse" else oracle.minkowski_offsets(size)
    first = [k // 2 if k % 2 else 0 for k in size]
    return torch.stack([weight[:, o[0] + first[0], o[1] + first[1], o[2] + first[2]].T for o in offsets])


def written(model: MinkUNet, project: str, backend: str) -> OrderedDict[str, Tensor]:
    """The network's state dict, with metadata as torch keeps it."""
    state: OrderedDict[str, Tensor] = OrderedDict()
    metadata = {}
    for ours, theirs, kind in pairs_of_names(model, project, backend):
        layer = model.get_submodule(ours)
        metadata[theirs] = {"version": 2 if kind == "norm" or backend == "spconv" else 1}
        if kind == "conv":
            leaf = "kernel" if backend in ("torchsparse", "minkowski") else "weight"
            state[f"{theirs}.{leaf}"] = stored(layer, backend)
        else:
            wrapper = ".bn" if backend == "minkowski" else ""
            state.update({f"{theirs}{wrapper}.{name}": value for name, value in layer.state_dict().items()})
    head = "classifier.0" if project == "spvnas" else "decode_head.conv_seg"
    state.update({f"{head}.{name}": value for name, value in model.classifier.state_dict().items()})
    if project == "spvnas":
        for i, (n_in, n_out) in enumerate(((32, 256), (256, 128), (128, 96))):
            branch = torch.nn.Sequential(torch.nn.Linear(n_in, n_out), torch.nn.BatchNorm1d(n_out))
            state.update({f"point_transforms.{i}.{name}": value for name, value in branch.state_dict().items()})
    state._metadata = metadata  # type: ignore[attr-defined]
    return state


def moving_loader(self, state, prefix, metadata, strict, missing, unexpected, errors) -> None:
    """What frameworks put in the place of SparseModule's: weights of an older layout get the axes of the newer one."""
    for name, parameter in self.named_parameters(recurse=False):
        stored = state[prefix + name]
        if stored.ndim > 1 and metadata.get("version") != 2:
            stored = stored.permute(stored.ndim - 1, *range(stored.ndim - 1))
        if stored.shape != parameter.shape:
            errors.append(f"size mismatch for {prefix + name}")
        else:
            parameter.data.copy_(stored)
