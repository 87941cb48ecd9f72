"""A network on the clouds of a sensor that stands still, at the cost of what changes in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from common_kernels.checks import FLOATS
from common_kernels.onednn import PackedWeight
from common_models.modes import check_evaluating
from pointcloud.accelerate import accelerate
from pointcloud.acceleration.deferred import DeferredFeatures
from pointcloud.acceleration.layer import DeferredLayer
from pointcloud.acceleration.linear import DeferredLinear
from pointcloud.acceleration.steps import Known
from pointcloud.convolution import SparseConvolution
from pointcloud.coordinates import Coordinates, describe
from pointcloud.stream.followed import FollowedCoordinates, follow
from pointcloud.stream.layer import StreamLayer, StreamLinear, running
from pointcloud.stream.places import PlacedFeatures
from pointcloud.stream.rows import Rows
from pointcloud.stream.state import Kept, Scene, StreamState
from pointcloud.stream.work import Work, share_of
from pointcloud.tensor import SparseConvTensor

# Where a larger share of the voxels came and went, hardly a row sees no change, and the frame is run as a whole.
RENEWED = 0.2


class Stream:
    """A network of sparse convolutions, run on cloud after cloud of a sensor that stands still.

    Every convolution and linear layer keeps its output. Of each cloud the voxels are found that appeared, vanished or
    whose features changed; a layer computes the outputs again that read one of them or gained or lost an input, keeps
    the others, and compares: what came out as it was before is no change for the next layer. Kernel maps are brought
    up to date where voxels appeared and vanished. All other operations (pools, norms over rows, a forward's own
    functions) see whole, ordinary tensors and are computed as a whole.

    * At threshold 0 the answers are those of `accelerate(model, dtype=dtype)` on each cloud alone, bit for bit in
      convolutions with a kernel map. Linear layers and kernels of size 1 are products of a matrix library, whose
      rounding may depend on the number of rows: there they agree to some 1e-6 of the values.
    * Real sensors jitter: nearly every voxel's mean coordinates and intensity change a little with each turn. Without a
      threshold nothing is then saved. Features that say only whether a voxel is occupied stay the same.
    * A frame of which more than a fifth of the voxels came and went is run as a whole.
    * Voxels must lie in one grid for all frames: `voxelize(..., point_range=...)`.

    One object serves any number of streams: what a stream remembers lies in the StreamState alone. The network is
    copied; the output's sparse tensors carry no `indice_dict`.

    Args:
        model: in evaluation mode, on the CPU. It takes one sparse tensor.
        threshold: a voxel keeps the features it had where none of them moved by more than this, in units of the
            features: one number, or one for each channel. Kept features are always those of some earlier frame, at most
            `threshold` from the present ones: errors do not add up over frames.
        layer_threshold: likewise for the output rows of each layer, in units of the root mean square of the layer's
            output in the first frame.
        refresh: compute every frame whose number is a multiple of this as a whole; None for the first one alone.
        dtype: of the computation, as in `accelerate`.

    Attributes:
        last_work: the Work of the last frame that was run, by whichever stream.

    Raises:
        TypeError: a model that is no module, a dtype that is neither a name nor a torch dtype.
        ValueError: a model in training mode, accelerated already, or not on the CPU; a threshold that is negative or
            NaN, a refresh below 1.

    Example:
        >>> import torch, pointcloud
        >>> model = pointcloud.models.MinkUNet(in_channels=1, num_classes=5, width=0.25).eval()
        >>> stream, state = pointcloud.Stream(model), None
        >>> points = torch.linspace(0.1, 0.9, 100)[:, None].repeat(1, 3)
        >>> for frame in range(2):
        ...     points[0] = 0.05 + 0.9 * frame  # one point moves
        ...     voxels, _ = pointcloud.voxelize(points, 0.005, [0, 0, 0, 1, 1, 1], features=torch.ones(100, 1))
        ...     logits, state = stream.step(voxels, state)
        >>> logits.shape, stream.last_work.appeared, stream.last_work.vanished
        (torch.Size([100, 5]), 1, 1)
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        threshold: float | Sequence[float] = 0.0,
        layer_threshold: float = 0.0,
        refresh: int | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        values = threshold if isinstance(threshold, Sequence) else [threshold]
        self._per_channel = isinstance(threshold, Sequence)
        self.threshold = [_checked("threshold", value) for value in values]
        self.layer_threshold = _checked("layer_threshold", layer_threshold)
        if refresh is not None and (not isinstance(refresh, int) or refresh < 1):
            raise ValueError(f"refresh must be None or a number of frames of at least 1, got {refresh!r}")
        self.refresh = refresh
        self.model = model
        self._weights = dict(_tensors(model))
        for name, tensor in self._weights.items():
            if tensor.device.type != "cpu":
                raise ValueError(f"model must be on the CPU, got {name} on {tensor.device}")
        self._network = accelerate(model, dtype=dtype)
        _follow_layers(self._network)
        self._seen = {name: PackedWeight[bool]() for name in self._weights}
        for name, tensor in self._weights.items():
            self._seen[name].get(tensor, lambda _: True)
        self.last_work: Work | None = None

    def step(self, x: SparseConvTensor, state: StreamState | None = None) -> tuple[Any, StreamState]:
        """The network's output on the next cloud, and the state after it.

        Args:
            x: the voxels, in any order. The grid, the batch size, the number of features and their dtype are those of
                the frames before.
            state: the state after the frames before; None at the start. Used up: `clone` keeps one.

        Raises:
            TypeError: `x` is no SparseConvTensor.
            ValueError: `x` does not fit the frames before or lies outside of its grid, a state of another Stream or one
                that is used up, a model in training mode or whose weights were edited since.
        """
        self._check_model()
        self._check(x)
        state = StreamState() if state is None else state
        scene = state.check(self)
        self._check_same(x, scene)
        frame = state.frames
        whole = scene.rows is None or (self.refresh is not None and frame % self.refresh == 0)
        coordinates = x.coordinates
        if scene.rows is None:
            coordinates.check()
            rows = _started(coordinates)
        else:
            rows = scene.rows
            change = rows.meet(coordinates.indices)
            if len(change.gone) + len(change.new) > RENEWED * (change.before + len(rows)):
                rows, whole = _started(coordinates), True
        scene = state.take(self)
        scene.rows, scene.threshold = rows, self.layer_threshold
        scene.begin()
        if whole:
            scene.kept, scene.input = {}, None
        with torch.no_grad(), running(scene):
            features = self._features(x.features, rows, scene)
            given = follow(coordinates, rows, scene.clock)
            network_input = SparseConvTensor.over(given, DeferredFeatures(Known(features)), x.indice_dict)
            output = _released(self._network(network_input), given, coordinates, set())
        scene.forget()
        self.last_work = _work(scene, frame, whole, features)
        return output, StreamState.after(scene, frame + 1, self)

    def _features(self, features: Tensor, rows: Rows, scene: Scene) -> PlacedFeatures:
        """The input's features in the places of its rows: those of before where they moved too little."""
        order, kept, change = rows.order, scene.input, rows.change
        if kept is None or change is None or not kept.follow(rows, None, scene.frame):
            placed = torch.empty_like(features, memory_format=torch.contiguous_format)
            placed[order] = features
            scene.input = Kept(rows, placed, None, scene.frame)
            return PlacedFeatures.of(placed, rows, None)
        live = kept.buffer[: len(rows)]
        live[change.new] = torch.nan
        threshold = torch.tensor(self.threshold, dtype=features.dtype)
        moved = ~((features - live[order]).abs() <= threshold).all(1)  # NaN is no distance: it counts as moved
        changed = order[moved]
        live[changed] = features[moved]
        return PlacedFeatures.of(live, rows, changed)

    def _check(self, x: SparseConvTensor) -> None:
        if not isinstance(x, SparseConvTensor):
            raise TypeError(f"x must be a SparseConvTensor, got {type(x).__name__}")
        if x.features.device.type != "cpu" or x.features.dtype not in FLOATS:
            raise ValueError(
                f"x must have floating-point features on the CPU, got {describe(x.features)} on {x.features.device}"
            )
        if self._per_channel and len(self.threshold) != x.features.shape[1]:
            raise ValueError(
                f"threshold must be one number, or one for each of {x.features.shape[1]} features, got {self.threshold}"
            )

    def _check_same(self, x: SparseConvTensor, scene: Scene) -> None:
        """Raise where the input differs in form from those of the frames before."""
        if scene.rows is None or scene.input is None:
            return
        before = (list(scene.rows.shape), scene.rows.batch_size, scene.input.buffer.shape[1], scene.input.buffer.dtype)
        now = (x.spatial_shape, x.batch_size, x.features.shape[1], x.features.dtype)
        names = ("spatial_shape", "batch_size", "number of features", "dtype")
        for name, old, new in zip(names, before, now):
            if old != new:
                raise ValueError(
                    f"x must have the {name} of the frames before, {old}, got {new}: start with state None"
                )

    def _check_model(self) -> None:
        check_evaluating(self.model)
        for name, tensor in _tensors(self.model):
            if self._weights.get(name) is not tensor or self._seen[name].current(tensor) is None:
                raise ValueError(f"model was changed since this Stream was made ({name}): make a new Stream")


def _started(coordinates: Coordinates) -> Rows:
    """A level whose rows have the places in which they come."""
    rows = Rows(coordinates.indices.clone(), coordinates.spatial_shape, coordinates.batch_size)
    rows.start()
    return rows


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *((name, x) for name, x in model.named_buffers() if x.is_floating_point())]


def _checked(name: str, value: float) -> float:
    number = float(value)
    if not (number >= 0 and math.isfinite(number)):
        raise ValueError(f"{name} must be a number from 0 on, got {value!r}")
    return number


def _follow_layers(network: nn.Module) -> None:
    """Let the layers of an accelerated network compute what changed."""
    for module in network.modules():
        if isinstance(module, SparseConvolution) and isinstance(module.deferral, DeferredLayer):
            module.deferral = StreamLayer(module.deferral.name, module.deferral.seen)
        for key, hook in list(module._forward_pre_hooks.items()):
            if isinstance(hook, DeferredLinear):
                module._forward_pre_hooks[key] = StreamLinear(hook.name, hook.seen)


def _work(scene: Scene, frame: int, whole: bool, features: PlacedFeatures) -> Work:
    rows = scene.rows
    assert rows is not None
    change = rows.change
    n = len(rows)
    appeared = n if whole or change is None else len(change.new)
    vanished = 0 if change is None else len(change.gone)
    moved = 0 if whole or features.changed is None else len(features.changed) - appeared
    layers = {name: (rows, all_rows) for name, (rows, all_rows, _, _) in scene.work.items()}
    mode = "whole" if whole else "changed"
    return Work(frame, mode, n, appeared, vanished, moved, layers, share_of(scene.work))


def _released(value: Any, given: Coordinates, own: Coordinates, known: set[int]) -> Any:
    """The output with sparse tensors that know nothing of the stream, in any nesting; lists and dicts in place."""
    if isinstance(value, (str, bytes, int, float, Tensor, nn.Module)) or value is None or id(value) in known:
        return value
    known.add(id(value))
    if isinstance(value, SparseConvTensor):
        here = value.coordinates
        if here is given:
            return SparseConvTensor.over(own, value.features)
        if isinstance(here, FollowedCoordinates) or hasattr(here.indices, "followed"):
            here = Coordinates(here.indices.clone(), here.spatial_shape, here.batch_size)
        return SparseConvTensor.over(here, value.features)
    if isinstance(value, dict):
        for key, each in value.items():
            value[key] = _released(each, given, own, known)
    elif isinstance(value, list):
        value[:] = [_released(each, given, own, known) for each in value]
    elif isinstance(value, tuple):
        items = [_released(each, given, own, known) for each in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    elif is_dataclass(value):
        for field in fields(value):
            object.__setattr__(value, field.name, _released(getattr(value, field.name, None), given, own, known))
    return value
