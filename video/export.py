"""ONNX files of a network of clips, or of the live network with its memory as named inputs and outputs."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common_models.files import replace_atomically
from common_models.modes import check_evaluating
from video.preprocess import Preprocess
from video.shift import TemporalShift
from video.stream import LiveNetwork

TOLERANCE = 1e-4
SIZE = 224  # of frames, where nothing tells
LIVE_FRAMES = 4  # of the check: enough for every state to be fed back


@dataclass(frozen=True)
class Exported:
    """What `export_onnx` wrote.

    Attributes:
        inputs: names and shapes, "batch" where the number of clips or streams is free.
        outputs: the same.
        metadata: what the file says of itself.
        error: largest difference between onnxruntime and torch on random input, relative to the largest output where
            that is above 1; None where onnxruntime is not installed.
    """

    path: Path
    inputs: dict[str, tuple[int | str, ...]]
    outputs: dict[str, tuple[int | str, ...]]
    metadata: dict[str, str]
    error: float | None


def export_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    live: bool = False,
    batch: int | None = None,
    size: int | tuple[int, int] | None = None,
    in_channels: int = 3,
    class_names: Sequence[str] | None = None,
    preprocess: Preprocess | None = None,
) -> Exported:
    """Write a network as an ONNX file, and compare it with torch in onnxruntime where that is installed.

    Offline: `clip` [N, T, C, H, W] -> `logits` [N, K] for models.TSM, [N, T, ...] per frame for other shifted networks;
    a network without shift takes `frame` [N, C, H, W]. Live: `frame` [B, C, H, W] and `state.<place>` [B, f, H', W']
    -> `logits` and `next.<place>`, to be handed to the next frame; zeros start a stream. The file's metadata name
    classes, T, fold, direction, preprocessing and the pairs of states.

    Args:
        model: fp32, in evaluation mode; before any `accelerate`.
        path: appears whole, and only if the comparison succeeds.
        batch: clips or streams; None leaves their number free.
        size: height and width of the frames, in pixels; None takes them from `preprocess`, the model's card, or 224.
        class_names: meaning of the logits; None takes them from the model's card, if it has one.
        preprocess: what frames have to go through; None takes size, mean and standard deviation from the card.

    Raises:
        ValueError: a network or argument that cannot be exported.
        RuntimeError: onnxruntime gives other answers than torch.
        ImportError: the exporter's packages are not installed.
    """
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise ImportError(f"ONNX export needs {package}: pip install 'trisparse[onnx]'")
    stated = getattr(getattr(model, "card", None) if preprocess is None else preprocess, "size", None)
    size = (stated or SIZE) if size is None else size
    height, width = (size, size) if isinstance(size, int) else size
    if preprocess is not None and (height, width) != (preprocess.size, preprocess.size):
        raise ValueError(f"size must be that of preprocess, {preprocess.size}, or be left out, got {size}")
    if (batch is not None and batch < 1) or min(height, width, in_channels) < 1:
        raise ValueError(
            f"batch, size and in_channels must be at least 1, got batch={batch}, size={size}, in_channels={in_channels}"
        )
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"path must be a file to write, got the folder {path}")
    if not path.parent.is_dir():
        raise ValueError(f"path must lie in an existing folder, got {path}")
    _check_model(model)
    shape = (2 if batch is None else batch, in_channels, height, width)
    network = _live(model, shape) if live else _offline(model, shape)
    metadata = _metadata(model, network, live, class_names, preprocess)
    program = _export(network, free_batch=batch is None)
    classes, named = list(program.model.graph.outputs[0].shape)[-1], json.loads(metadata.get("class_names", "[]"))
    if named and isinstance(classes, int) and len(named) != classes:
        raise ValueError(f"class_names must name the {classes} classes of the network, got {len(named)}")
    program.model.metadata_props.update(metadata)
    with replace_atomically(path) as partial:
        program.save(os.fspath(partial), external_data=False)
        error = _compare(network, partial)
    return Exported(path, _shapes(program.model.graph.inputs), _shapes(program.model.graph.outputs), metadata, error)


@dataclass(frozen=True)
class _Network:
    """What is exported: a module, arguments like those it will get, and the names of inputs and outputs."""

    module: nn.Module
    arguments: tuple[Tensor, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class _Clips(nn.Module):
    """A network of frames whose input is clips, and whose output is per frame: [N, T, ...] -> [N, T, ...]."""

    def __init__(self, model: nn.Module, num_segments: int) -> None:
        super().__init__()
        self.model = model
        self.num_segments = num_segments

    def forward(self, clip: Tensor) -> Tensor:
        return _logits(self.model(clip.flatten(0, 1))).unflatten(0, (-1, self.num_segments))


class _Outputs(nn.Module):
    """A network whose first output is a tensor, whatever object it comes in."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, frame: Tensor, *states: Tensor) -> Any:
        output = self.model(frame, *states)
        if not isinstance(self.model, LiveNetwork):
            return _logits(output)
        return (_logits(output[0]), *output[1:])


def _logits(output: Any) -> Tensor:
    """What a network returns, or the `logits` of an object as those of transformers."""
    output = getattr(output, "logits", output)
    if not isinstance(output, Tensor):
        raise ValueError(f"model must return a tensor, or an object with .logits, to be exported, got {type(output)}")
    return output


def _check_model(model: nn.Module) -> None:
    check_evaluating(model)
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise ValueError(f"model must be fp32, got {name} as {parameter.dtype}: export model.float()")


def _offline(model: nn.Module, shape: tuple[int, ...]) -> _Network:
    segments = {m.num_segments for m in model.modules() if isinstance(m, TemporalShift)}
    if len(segments) > 1:
        raise ValueError(f"model must have one num_segments for all its shifts, got {sorted(segments)}")
    of_clips = hasattr(model, "frame_logits")
    num_segments = getattr(model, "num_segments", None) if of_clips else next(iter(segments), None)
    if num_segments is None:
        return _Network(_Outputs(model).eval(), (_random(shape, model),), ("frame",), ("logits",))
    module = model if of_clips else _Clips(model, num_segments).eval()
    clip = _random((shape[0], num_segments, *shape[1:]), model)
    return _Network(module, (clip,), ("clip",), ("logits",))


def _live(model: nn.Module, shape: tuple[int, ...]) -> _Network:
    network = LiveNetwork(model)
    states = [_random(state, model, seed=i) for i, state in enumerate(network.state_shapes(shape).values())]
    inputs = ("frame", *(f"state.{name}" for name in network.state_names))
    outputs = ("logits", *(f"next.{name}" for name in network.state_names))
    return _Network(_Outputs(network).eval(), (_random(shape, model), *states), inputs, outputs)


def _random(shape: tuple[int, ...], model: nn.Module, seed: int = 0) -> Tensor:
    parameter = next(model.parameters(), torch.zeros(()))
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(parameter.device)


def _metadata(
    model: nn.Module,
    network: _Network,
    live: bool,
    class_names: Sequence[str] | None,
    preprocess: Preprocess | None,
) -> dict[str, str]:
    metadata = {"format": "trisparse.video", "kind": "live" if live else "offline"}
    shifts = [module for module in model.modules() if isinstance(module, TemporalShift)]
    if shifts:
        metadata["num_segments"] = str(shifts[0].num_segments)
        metadata["fold_div"] = str(shifts[0].fold_div)
        metadata["direction"] = shifts[0].direction
    card = getattr(model, "card", None)
    if class_names is None:
        class_names = getattr(card, "class_names", None)
    if class_names:
        metadata["class_names"] = json.dumps(list(class_names))
    source = card if preprocess is None else preprocess
    if source is not None:
        names = ("resize", "size", "mean", "std", "crops")
        stated = {name: getattr(source, name) for name in names if hasattr(source, name)}
        frame = list(network.arguments[0].shape[-2:])
        stated["size"] = frame[0] if frame[0] == frame[1] else frame
        metadata["preprocess"] = json.dumps({**stated, "colors": "RGB", "range": [0, 1]})
    if live:
        metadata["states"] = json.dumps(list(zip(network.inputs[1:], network.outputs[1:], strict=True)))
    return metadata


def _export(network: _Network, free_batch: bool) -> Any:
    shapes: Any = None
    if free_batch:
        free = {0: torch.export.Dim("batch")}
        first, *states = [free] * len(network.arguments)
        # *states is one argument to the exporter.
        shapes = (first, tuple(states)) if states else (first,)
    try:
        with _quiet(), torch.no_grad():
            return torch.onnx.export(
                network.module,
                network.arguments,
                dynamo=True,
                input_names=network.inputs,
                output_names=network.outputs,
                dynamic_shapes=shapes,
                verbose=False,
            )
    except (torch.onnx.OnnxExporterError, RuntimeError, TypeError) as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise ValueError(f"model cannot be exported: {reason}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's remarks on packages that it does not need and on names that it keeps are no news to users."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _compare(network: _Network, path: Path) -> float | None:
    """The largest difference between the file and the network, states fed back in the live one."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    ours = theirs = network.arguments
    worst = 0.0
    rounds = LIVE_FRAMES if len(network.inputs) > 1 else 1
    for i in range(rounds):
        with torch.inference_mode():
            expected = network.module(*ours)
        expected = expected if isinstance(expected, tuple) else (expected,)
        feeds = {name: value.cpu().numpy() for name, value in zip(network.inputs, theirs, strict=True)}
        got = [torch.from_numpy(value) for value in session.run(list(network.outputs), feeds)]
        for name, a, b in zip(network.outputs, got, expected, strict=True):
            error = _difference(a, b.cpu())
            if not error <= TOLERANCE:
                raise RuntimeError(f"{name} of onnxruntime differs from torch by {error:.3g}, more than {TOLERANCE:g}")
            worst = max(worst, error)
        frame = torch.randn(ours[0].shape, generator=torch.Generator().manual_seed(100 + i)).to(ours[0].device)
        ours, theirs = (frame, *expected[1:]), (frame, *got[1:])
    return worst


def _difference(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        return float("inf")
    if not b.numel():
        return 0.0
    return float((a - b).abs().max() / b.abs().max().clamp(min=1))


def _shapes(values: Sequence[Any]) -> dict[str, tuple[int | str, ...]]:
    return {v.name: tuple(d if isinstance(d, int) else "batch" for d in v.shape) for v in values}
