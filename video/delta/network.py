"""Any 2D network on live video, at the cost of what changes in it."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map, tree_unflatten

from common_kernels.checks import describe
from common_kernels.row_update import update_rows
from common_models import dtypes
from common_models.acceleration import Acceleration, check_not_accelerated
from common_models.modes import check_evaluating
from common_models.names import did_you_mean
from video.delta.capture import Ref
from video.delta.costs import Costs, measure
from video.delta.layers import count
from video.delta.plan import Plan
from video.delta.work import FRAME_SHARE, Policy, Work, WorkCounter
from video.state import StreamState
from video.stream import check_frames, shift_names

FRAME = "frame"
Threshold = float | Mapping[str, float]
_DTYPES = (torch.float32, torch.bfloat16, torch.float64)
# One thread at a time captures a network (torch.export holds global state) or measures it. One lock for all networks:
# a lock of its own could be neither copied nor pickled with a network.
_PREPARING = threading.RLock()


def accelerate(
    model: nn.Module,
    *,
    threshold: Threshold = 0.0,
    dtype: torch.dtype | str | None = None,
    example: Tensor | None = None,
    frame_threshold: float | None = None,
    adapt: bool = True,
) -> DeltaNetwork:
    """Make a network of single frames compute again only what changed since the frame before.

    Every layer keeps its output. Where the frame changed, the pixels of the first layer that see it are computed again
    from its current inputs and compared with the kept ones; those that moved by more than the threshold are what
    changed for the next layer, and so on (the mechanism of DeltaCNN, Parger et al., 2022, on values instead of
    differences). A layer's kept output is within its threshold of what it would give for its kept inputs, at any time:
    errors do not add up over frames, and with threshold 0 there are none but those of rounding.

    Args:
        model: any network that torch.export can capture, in evaluation mode, with "past" temporal shifts or none. Its
            output may be any structure of tensors. Weights are copied when frames of a new shape come.
        threshold: the largest move of any channel of a pixel that does not count, in units of the layer's typical size
            (the root mean square of its values). One number for all layers and the frame, or numbers by layer names as
            `DeltaNetwork.layer_names` gives them, "frame" for the frame, "" for those not named.
        dtype: of the computation: None for the model's own, "auto" for the fastest that its device computes, a name as
            "bf16", or a torch dtype: fp32, bf16 or fp64.
        example: frames [B, C, H, W] to capture the network for, and on which typical sizes are measured; else the first
            frames that come.
        frame_threshold: the frame's threshold, in the units of the frames instead: noise of the camera.
        adapt: whether to run a layer or frame as a whole where that is faster, on a CPU; from times that are measured
            once, when frames of a new shape come. False: answers depend on nothing but the frames, to the last bit.
            (On a GPU it is always so: nothing waits for the host.)

    Returns:
        The network with attribute `acceleration`; `restore` gives the original.

    Raises:
        TypeError: `model` is not a module, or `dtype` neither None, a name nor a torch dtype.
        ValueError: a threshold that is negative, NaN or for an unknown layer, an unknown dtype, or a network that reads
            the future, is in training mode, is accelerated already or cannot be captured.

    Example:
        >>> import torch, video
        >>> network = video.delta.accelerate(video.models.ResNet(18, num_classes=5).eval(), threshold=0.0)
        >>> frames = torch.rand(1, 3, 64, 64).expand(4, 3, 64, 64)  # a still scene
        >>> network(frames).shape, [work.mode for work in network.trace]
        (torch.Size([4, 5]), ['kept', 'still', 'still', 'still'])
    """
    network = DeltaNetwork(model, threshold, dtype, frame_threshold, adapt)
    if example is not None:
        network.prepare(example)
    return network


class DeltaNetwork(nn.Module):
    """What `accelerate` returns.

    One object serves any number of streams: what a stream remembers lies in the StreamState alone.

    Attributes:
        scales: the typical size of each layer's values, by layer name; empty until measured.
        last_work: the Work of the last frame that was run, by whichever stream.
        trace: the Work of each frame of the last `forward`.
    """

    def __init__(
        self,
        model: nn.Module,
        threshold: Threshold = 0.0,
        dtype: torch.dtype | str | None = None,
        frame_threshold: float | None = None,
        adapt: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        shift_names(model)
        check_evaluating(model)
        check_not_accelerated(model)
        if frame_threshold is not None:
            _check("frame_threshold", frame_threshold)
        self.model = model
        self.dtype = None if dtype is None else dtypes.resolve(dtype, model, _DTYPES)
        self.frame_threshold = frame_threshold
        self.adapt = adapt
        self.scales: dict[str, float] = {}
        self.last_work: Work | None = None
        self.trace: list[Work] = []
        self._plans: dict[tuple[Any, ...], tuple[Plan, WorkCounter]] = {}
        self._costs: dict[Plan, Costs] = {}
        self.threshold = threshold
        self.training = False

    @property
    def threshold(self) -> Threshold:
        """In units of typical sizes, see `accelerate`. It can be set at any time."""
        return self._threshold

    @threshold.setter
    def threshold(self, threshold: Threshold) -> None:
        if isinstance(threshold, Mapping):
            for name, value in threshold.items():
                _check(f"threshold[{name!r}]", value)
            for plan, _ in self._plans.values():
                _check_names(threshold, plan)
            threshold = dict(threshold)
        else:
            _check("threshold", threshold)
        self._threshold = threshold

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Of the layers in order, known once frames of any shape have come."""
        return next((counter.layers for _, counter in self._plans.values()), ())

    @property
    def acceleration(self) -> Acceleration:
        """What was done; the names of the layers are known once frames of any shape have come."""
        dtype = dtypes.own(self.model) if self.dtype is None else self.dtype
        return Acceleration(dtype=dtype, changed=list(self.layer_names), original=self.model)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plans": {}, "_costs": {}}  # a copy makes its own: packed weights cannot be copied

    def train(self, mode: bool = True) -> DeltaNetwork:
        """Inference only: mode must be False."""
        if mode:
            raise ValueError("a DeltaNetwork is for inference only: train the model it was made from")
        return self

    def prepare(self, frames: Tensor) -> None:
        """Capture the network for frames of this shape [B, C, H, W], and measure typical sizes on them."""
        check_frames(frames)
        plan, _ = self._plan(frames)
        with torch.inference_mode():
            x = self._pixels(frames, plan)
            self._measure(plan, x, {})
            if self.adapt and x.device.type == "cpu":
                self._costs_of(plan, x)

    def step(self, frames: Tensor, state: StreamState | None = None) -> tuple[Any, StreamState]:
        """The network's output on the next frame of every stream, and the state after it.

        Args:
            frames: [B, C, H, W], normalised as the network expects, one frame for each of B streams.
            state: the state after the frames before; None when all streams start. Used up: `clone` keeps one.

        Raises:
            ValueError: the frames or the state do not fit, or the network cannot be captured.
        """
        check_frames(frames)
        state = StreamState.fresh(len(frames)) if state is None else state
        if len(state) != len(frames):
            raise ValueError(f"state holds {len(state)} streams, frames are of {len(frames)}: {describe(frames)}")
        if not len(frames):
            output, _ = self.step(frames.new_zeros(1, *frames.shape[1:]))
            return tree_map(lambda leaf: leaf[:0] if isinstance(leaf, Tensor) else leaf, output), state
        plan, counter = self._plan(frames)
        with torch.inference_mode():
            leaves, tensors, self.last_work = self._run(plan, counter, self._pixels(frames, plan), state)
        output = tree_unflatten([_as(leaf, frames.dtype) for leaf in leaves], plan.output_spec)
        return output, StreamState(tensors, state.frames + 1)

    def forward(self, frames: Tensor) -> Any:
        """The outputs on frames [T, C, H, W] of one stream from its start, joined along their first axis."""
        check_frames(frames)
        if not len(frames):
            self.trace = []
            return self.step(frames)[0]
        state, outputs, trace = None, [], []
        for frame in frames.split(1):
            output, state = self.step(frame, state)
            outputs.append(output)
            trace.append(self.last_work)
        self.trace = [work for work in trace if work is not None]
        return tree_map(lambda *leaves: torch.cat(leaves) if isinstance(leaves[0], Tensor) else leaves[0], *outputs)

    def variant(self, threshold: Threshold, adapt: bool, frame_threshold: float | None = None) -> DeltaNetwork:
        """The network with another threshold and policy. Plans and typical sizes are shared, not made anew."""
        network = DeltaNetwork(self.model, threshold, self.dtype, frame_threshold, adapt)
        network.scales, network._plans, network._costs = self.scales, self._plans, self._costs
        return network

    def dense(self, frames: Tensor) -> Any:
        """The network as a whole on frames [B, C, H, W], each the first of its stream: dense, but folded."""
        check_frames(frames)
        plan, _ = self._plan(frames)
        with torch.inference_mode():
            values = plan.dense(self._pixels(frames, plan), self._slots(plan), keep=False)
        leaves = [values[leaf.index] if isinstance(leaf, Ref) else leaf for leaf in plan.graph.outputs]
        return tree_unflatten([_as(leaf, frames.dtype) for leaf in leaves], plan.output_spec)

    def _run(
        self, plan: Plan, counter: WorkCounter, x: Tensor, state: StreamState
    ) -> tuple[list[object], dict[str, Tensor], Work]:
        """Outputs of frames x [B, H, W, C], the tensors of the state after them, and what it cost."""
        fresh = (state.frames == 0).tolist()
        started = not all(fresh)
        tensors = self._started(plan, x, state) if started else self._slots(plan)
        counted = x.device.type == "cpu"
        if not started and not self.scales:
            self._measure(plan, x, tensors)  # typical sizes are those of the frames that come first
        if not (self.adapt and counted):
            if not started or "policy" in tensors:
                tensors |= plan.blank()
                fresh = [True] * len(x)
            return self._changes(plan, counter, x, tensors, fresh, None)
        policy = Policy(tensors.get("policy"), len(x))
        if not started:
            return self._whole(plan, counter, x, tensors, policy, 1.0, keep=True)
        _forget(tensors, fresh)
        if not plan.has_kept(tensors):
            keep = policy.tries() and _sampled_share(x, tensors[FRAME], self._frame_threshold()) <= FRAME_SHARE
            return self._whole(plan, counter, x, tensors, policy, None, keep)
        changed = update_rows(tensors[FRAME], x, threshold=self._frame_threshold())
        share = count(changed) / max(changed.numel(), 1)
        if share > FRAME_SHARE:
            return self._whole(plan, counter, x, tensors, policy, share, keep=False)
        return self._changes(plan, counter, x, tensors, fresh, policy, changed, share)

    def _started(self, plan: Plan, x: Tensor, state: StreamState) -> dict[str, Tensor]:
        """The tensors of a state that belongs to this network and these frames."""
        kept = state.tensors.get(FRAME)
        unknown = sorted(state.tensors.keys() ^ plan.names(state.tensors))
        if kept is None or unknown:
            raise ValueError(
                f"state is of another network: {'it lacks' if kept is None else 'unlike this one it has or lacks'} "
                f"{FRAME if kept is None else unknown[0]}"
            )
        if kept.shape != x.shape or kept.dtype != x.dtype or kept.device != x.device:
            raise ValueError(
                f"frames changed from {describe(kept.permute(0, 3, 1, 2))} on {kept.device} to "
                f"{describe(x.permute(0, 3, 1, 2))} on {x.device} (as computed): start with a fresh state"
            )
        return {name: tensor.contiguous() for name, tensor in state.tensors.items()}

    def _slots(self, plan: Plan) -> dict[str, Tensor]:
        """What shifts remember at the start of a stream."""
        tensors = {}
        for name, shape in plan.slot_shapes().items():
            tensors[f"shift.{name}"] = torch.zeros(shape, dtype=plan.dtype, device=plan.device)
            tensors[f"moved.{name}"] = torch.ones(shape[:3], dtype=torch.bool, device=plan.device)
        return tensors

    def _whole(
        self,
        plan: Plan,
        counter: WorkCounter,
        x: Tensor,
        tensors: dict[str, Tensor],
        policy: Policy,
        share: float | None,
        keep: bool,
    ) -> tuple[list[object], dict[str, Tensor], Work]:
        """Run the network as a whole."""
        values = plan.dense(x, tensors, keep)
        kept = plan.keep(values, x) if keep else {FRAME: x}
        for name, index in plan.graph.new_states.items():
            new = values[index]
            assert new is not None  # the graph needs it
            slot = torch.empty(plan.slot_shapes()[name], dtype=plan.dtype, device=plan.device)
            kept[f"shift.{name}"] = slot.copy_(new.permute(0, 2, 3, 1))
            kept[f"moved.{name}"] = torch.ones(slot.shape[:3], dtype=torch.bool, device=plan.device)
        if keep:
            policy.kept()
        kept["policy"] = policy.state()
        leaves = plan.outputs(lambda index: values[index])
        return leaves, kept, counter.work("kept" if keep else "dense", share)

    def _changes(
        self,
        plan: Plan,
        counter: WorkCounter,
        x: Tensor,
        tensors: dict[str, Tensor],
        fresh: list[bool],
        policy: Policy | None,
        changed: Tensor | None = None,
        share: float | None = None,
    ) -> tuple[list[object], dict[str, Tensor], Work]:
        """Compute only what changed; without a policy never anything as a whole."""
        counted = x.device.type == "cpu"
        if changed is None:
            _forget(tensors, fresh)
            changed = update_rows(tensors[FRAME], x, threshold=self._frame_threshold())
            share = count(changed) / max(changed.numel(), 1) if counted else None
        values = plan.values(tensors, fresh, counted)
        values.mark(plan.graph.frame, changed)
        for name, index in plan.graph.states.items():
            values.mark(index, tensors[f"moved.{name}"])
        still = counted and all(mask is None for mask in values.changed)
        computed = []
        if not still:
            shares: Iterable[bool | float] = repeat(False) if policy is None else self._costs_of(plan, x).dense_from
            computed = [
                layer.update(values, limit, dense)
                for layer, limit, dense in zip(plan.layers, self._thresholds(plan), shares)
            ]
        plan.remember(values, tensors)
        leaves = plan.outputs(values.get)
        work = counter.work("still" if still else "changed", share, computed if counted else ())
        if policy is not None:
            if not policy.goes_on(0.0 if still else self._costs_of(plan, x).effort(computed)):
                tensors = plan.without_kept(tensors)
            tensors["policy"] = policy.state()
        return leaves, tensors, work

    def _measure(self, plan: Plan, x: Tensor, slots: dict[str, Tensor]) -> None:
        values = plan.dense(x, slots or self._slots(plan), keep=True)
        sizes = {}
        for index, name in plan.kept.items():
            value = values[index]
            if value is not None and value.is_floating_point() and value.numel():
                size = value.double().square().mean().sqrt().item()
                sizes[name.removeprefix("kept.")] = size if math.isfinite(size) else 1.0
        self.scales.update(sizes)  # at once, for other threads

    def _frame_threshold(self) -> float:
        return self._limit(FRAME) if self.frame_threshold is None else self.frame_threshold

    def _limit(self, name: str) -> float:
        threshold = self._threshold
        if isinstance(threshold, Mapping):
            threshold = threshold.get(name, threshold.get("", 0.0))
        return threshold * self.scales.get(name, 1.0)

    def _thresholds(self, plan: Plan) -> list[float]:
        """Of each layer, in the units of its values; layers that only the output reads are exact, it costs nothing."""
        final = {leaf.index for leaf in plan.graph.outputs if isinstance(leaf, Ref)}
        return [0.0 if layer.output in final else self._limit(layer.name) for layer in plan.layers]

    def _pixels(self, frames: Tensor, plan: Plan) -> Tensor:
        """frames as contiguous [B, H, W, C] of the network's dtype, in memory of their own."""
        pixels = frames.detach().to(plan.dtype).permute(0, 2, 3, 1).contiguous()
        return pixels.clone() if pixels.data_ptr() == frames.data_ptr() else pixels

    def _plan(self, frames: Tensor) -> tuple[Plan, WorkCounter]:
        dtype = self._dtype(frames)
        key = (tuple(frames.shape), frames.device, dtype)
        if key not in self._plans:
            with _PREPARING:
                if key not in self._plans:  # another thread may have been first
                    plan = Plan(self.model, frames, dtype)
                    if isinstance(self._threshold, Mapping):
                        _check_names(self._threshold, plan)
                    self._plans[key] = (plan, WorkCounter(plan.layers))
        return self._plans[key]

    def _costs_of(self, plan: Plan, x: Tensor) -> Costs:
        with _PREPARING:
            if plan not in self._costs:
                self._costs[plan] = measure(plan, x, self._slots(plan))
            return self._costs[plan]

    def _dtype(self, frames: Tensor) -> torch.dtype:
        if self.dtype is not None:
            return self.dtype
        parameter = next((p for p in self.model.parameters() if p.is_floating_point()), frames)
        return parameter.dtype


def _forget(tensors: dict[str, Tensor], fresh: list[bool]) -> None:
    """Make the rows of fresh streams differ from whatever comes: NaN; what shifts remember starts with zeros."""
    rows = [row for row, is_fresh in enumerate(fresh) if is_fresh]
    if not rows:
        return
    for name, tensor in tensors.items():
        if name.startswith("shift."):
            value: float = 0.0
        elif name.startswith("moved."):
            value = 1
        elif tensor.is_floating_point():
            value = torch.nan
        else:
            continue
        for row in rows:
            tensor[row] = value


def _sampled_share(x: Tensor, kept: Tensor, threshold: float) -> float:
    """The share of x [B, H, W, C] that differs from `kept`, on every eighth pixel of every eighth row."""
    near = (x[:, ::8, ::8] - kept[:, ::8, ::8]).abs_() <= threshold
    return 1 - count(near.all(-1)) / max(near.numel() // max(x.shape[3], 1), 1)


def _as(leaf: object, dtype: torch.dtype) -> object:
    """Floating outputs in the dtype of the frames."""
    return leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def _check(name: str, threshold: float) -> None:
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0 <= threshold < math.inf:
        raise ValueError(f"{name} must be a finite number of at least 0, got {threshold!r}")


def _check_names(thresholds: Mapping[str, float], plan: Plan) -> None:
    known = {layer.name for layer in plan.layers} | {"", FRAME}
    for name in thresholds:
        if name not in known:
            raise ValueError(f"threshold names a layer {name!r} that is not there{did_you_mean(name, known)}")
