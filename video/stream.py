"""Live video: one network, any number of streams, one frame of each at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from common_kernels.checks import FLOATS, describe
from video.shift import TemporalShift, memory
from video.state import StreamState


class Stream:
    """A network with "past" temporal shifts, run frame by frame with the answers of its clip run from the start.

    One object serves any number of streams and threads: what a stream remembers lies in the StreamState alone. Of a
    network with `frame_logits` (models.TSM) the output is these, [B, classes]; of any other what its forward returns. A
    network without a shift runs too: its state only counts frames.

    Raises:
        ValueError: the network reads the future (direction "both").

    Example:
        >>> import torch, video
        >>> model = video.add_temporal_shift(video.models.ResNet(18, num_classes=5), 2, direction="past").eval()
        >>> stream, state = video.Stream(model), None
        >>> for frame in torch.rand(2, 1, 3, 32, 32):  # [B, 3, H, W], one frame of each of B cameras
        ...     output, state = stream.step(frame, state)
        >>> output.shape
        torch.Size([1, 5])
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.names = shift_names(model)
        self._run = per_frame(model)
        self._modules = list(model.modules())

    def step(self, frames: Tensor, state: StreamState | None = None) -> tuple[Any, StreamState]:
        """The network's output on the next frame of every stream, and the state after it.

        Args:
            frames: [B, C, H, W], normalised as the network expects, one frame for each of B streams.
            state: the state after the frames before; None when all streams start. Used up: `clone` keeps one.

        Raises:
            ValueError: the frames or the state do not fit, or the network is in training mode.
        """
        check_frames(frames)
        for module in self._modules:
            if module.training:
                raise ValueError(f"model must be in evaluation mode, got a {type(module).__name__} in training mode")
        state = StreamState.fresh(len(frames)) if state is None else state
        before = self._before(frames, state)
        with torch.inference_mode(), memory.running(memory.Memory(self.names, before)) as pass_:
            output = self._run(frames)
        return output, StreamState(pass_.after, state.frames + 1)

    def _before(self, frames: Tensor, state: StreamState) -> dict[str, Tensor]:
        if len(state) != len(frames):
            raise ValueError(f"state holds {len(state)} streams, frames are of {len(frames)}: {describe(frames)}")
        if state.is_fresh:
            return {}
        known = set(self.names.values())
        unknown = [name for name in state.tensors if name not in known]
        if unknown or (known and not state.tensors):
            held = f"it holds {unknown[0]}" if unknown else "it holds no tensors"
            raise ValueError(f"state is of another network: {held}, this one remembers {sorted(known)[:3]} ...")
        return state.tensors


class LiveNetwork(nn.Module):
    """A network of one frame in which the memory is spelled out: (frame, *states) -> (output, *new states).

    For export, graph capture and what else wants a function without hidden inputs; `Stream` is the comfortable form.
    States are [B, f, h, w], in the order of `state_names`; zeros start a stream.

    Raises:
        ValueError: the network reads the future (direction "both").
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.names = shift_names(model)
        self.state_names: tuple[str, ...] = tuple(self.names.values())
        self.training = model.training

    def forward(self, frame: Tensor, *states: Tensor) -> tuple[Any, ...]:
        """Run the next frame [B, C, H, W] of every stream."""
        if len(states) != len(self.state_names):
            raise ValueError(f"states must be {len(self.state_names)} tensors, got {len(states)}")
        before = dict(zip(self.state_names, states, strict=True))
        with memory.running(memory.Memory(self.names, before)) as pass_:
            output = per_frame(self.model)(frame)
        return (output, *self._in_order(pass_.after))

    def state_shapes(self, frame_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """The shapes [B, f, h, w] of the states for frames of `frame_shape` [B, C, H, W], by name; runs one frame."""
        parameter = next(self.model.parameters(), torch.zeros(()))
        frame = torch.zeros(frame_shape, dtype=parameter.dtype, device=parameter.device)
        check_frames(frame)
        with torch.inference_mode(), memory.running(memory.Memory(self.names, {})) as pass_:
            per_frame(self.model)(frame)
        states = self._in_order(pass_.after)
        return {name: tuple(state.shape) for name, state in zip(self.state_names, states, strict=True)}

    def _in_order(self, after: dict[str, Tensor]) -> list[Tensor]:
        idle = [name for name in self.state_names if name not in after]
        if idle:
            raise ValueError(f"the network did not run its shift {idle[0]}: it has no memory to return")
        return [after[name] for name in self.state_names]


class RecentMean:
    """The mean of the last `frames` outputs of every stream: steadier answers to show on a screen.

    The published live demonstration of TSM adds up 12.
    """

    def __init__(self, frames: int = 12) -> None:
        if frames < 1:
            raise ValueError(f"frames must be at least 1, got {frames}")
        self.frames = frames

    def step(self, output: Tensor, state: StreamState | None = None) -> tuple[Tensor, StreamState]:
        """The mean [B, K] of what each stream has given of its last `frames` outputs, and the state after it.

        Args:
            output: [B, K], the network's newest.
        """
        state = StreamState.fresh(len(output)) if state is None else state
        shape = (len(output), self.frames, *output.shape[1:])
        if len(state) != len(output):
            raise ValueError(f"state holds {len(state)} streams, output is of {len(output)}: {describe(output)}")
        recent = output.new_zeros(shape) if state.is_fresh else state.tensors.get("recent")
        if recent is None or recent.shape != shape:
            raise ValueError(f"state must hold recent {list(shape)}, got {state}")
        slot = (state.frames % self.frames).to(recent.device)
        recent = recent.clone()
        recent[torch.arange(len(output), device=recent.device), slot] = output
        seen = (state.frames + 1).clamp(max=self.frames).to(output.device, output.dtype)
        mean = recent.sum(1) / seen.view(-1, *[1] * (output.ndim - 1))
        return mean, StreamState({"recent": recent}, state.frames + 1)


def shift_names(model: nn.Module) -> dict[nn.Module, str]:
    """The temporal shifts of a network by the names of their places; raises where one reads the future."""
    names: dict[nn.Module, str] = {}
    for name, module in model.named_modules():
        if not isinstance(module, TemporalShift):
            continue
        names[module] = name = name or "shift"
        if module.direction != "past":
            raise ValueError(
                f"{name} shifts in direction {module.direction!r}: a live network cannot read the frame to come, and "
                "weights trained so give other answers without it. Train with direction='past'"
            )
    return names


def per_frame(model: nn.Module) -> Callable[[Tensor], Any]:
    """The network's answer to single frames [B, C, H, W]."""
    frame_logits: Callable[[Tensor], Any] | None = getattr(model, "frame_logits", None)
    return model if frame_logits is None else frame_logits


def check_frames(frames: Tensor) -> None:
    """Raise unless frames are floating [B, C, H, W]."""
    if frames.ndim != 4 or frames.dtype not in FLOATS:
        raise ValueError(f"frames must be normalised floating-point [B, C, H, W], got {describe(frames)}")
