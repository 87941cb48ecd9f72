"""The state of live video: what a network remembers between frames, one row for each stream."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from common_kernels.checks import describe
from common_models.files import replace_atomically

FRAMES = "frames"
FORMAT = "trisparse.StreamState"


class StreamState:
    """Tensors by name, each [B, ...] with one row for each of B streams, and the number of frames each stream has seen.

    A network takes a state and the next frame of every stream and returns the state after it; the state it was given is
    used up. `clone` keeps one. A stream that has seen no frame is fresh: its rows hold nothing that counts.
    """

    def __init__(self, tensors: Mapping[str, Tensor], frames: Tensor) -> None:
        if frames.ndim != 1 or frames.dtype != torch.int64:
            raise ValueError(f"frames must be int64 [B], got {describe(frames)}")
        for name, tensor in tensors.items():
            if tensor.ndim < 1 or tensor.shape[0] != len(frames):
                raise ValueError(f"{name} must have one row for each of {len(frames)} streams, got {describe(tensor)}")
            if name == FRAMES:
                raise ValueError(f"{FRAMES!r} counts the frames and cannot name a tensor")
        self.tensors = dict(tensors)
        self.frames = frames

    @classmethod
    def fresh(cls, streams: int) -> StreamState:
        """The state of streams that have seen no frame, for any network."""
        if streams < 0:
            raise ValueError(f"streams must be at least 0, got {streams}")
        return cls({}, torch.zeros(streams, dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.frames)

    def __repr__(self) -> str:
        return f"StreamState({len(self)} streams, frames={self.frames.tolist()}, {self.n_bytes:,} bytes)"

    @property
    def is_fresh(self) -> bool:
        """Whether no stream has seen a frame since its start or reset."""
        return not bool(self.frames.any())

    @property
    def n_bytes(self) -> int:
        """Memory of the tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    def reset(self, streams: int | Iterable[int] | None = None) -> StreamState:
        """Make these streams fresh (all of them by default), the others untouched; returns the state itself.

        Raises:
            IndexError: a stream that is not there.
        """
        rows = range(len(self)) if streams is None else [streams] if isinstance(streams, int) else list(streams)
        for row in rows:
            if not 0 <= row < len(self):
                raise IndexError(f"streams must be in 0 to {len(self) - 1}, got {row}")
        chosen = torch.tensor(list(rows), dtype=torch.int64, device=self.frames.device)
        # Out of place: a state of an earlier frame may share these tensors.
        self.frames = self.frames.index_fill(0, chosen, 0)
        for name, tensor in self.tensors.items():
            self.tensors[name] = tensor.index_fill(0, chosen.to(tensor.device), 0)
        return self

    def clone(self) -> StreamState:
        """A state of its own memory."""
        return StreamState({name: tensor.clone() for name, tensor in self.tensors.items()}, self.frames.clone())

    def to(
        self, device: torch.device | str | torch.dtype | None = None, dtype: torch.dtype | None = None
    ) -> StreamState:
        """The state on another device, of another floating dtype, or both; `state.to(torch.bfloat16)` works too.

        Integer and boolean tensors keep their dtype, and `frames` stays where it is counted.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        moved = {
            name: tensor.to(device, dtype if tensor.is_floating_point() else None)
            for name, tensor in self.tensors.items()
        }
        return StreamState(moved, self.frames)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file; it appears whole or not at all."""
        # Copies: safetensors refuses tensors that share memory.
        tensors = {name: tensor.detach().contiguous().clone() for name, tensor in self.tensors.items()}
        with replace_atomically(path) as partial:
            save_file({**tensors, FRAMES: self.frames.clone()}, partial, metadata={"format": FORMAT})

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> StreamState:
        """A state that `save` wrote.

        Raises:
            ValueError: not a saved StreamState.
            OSError: it cannot be read.
        """
        try:
            with safe_open(os.fspath(path), "pt", device=str(device)) as file:
                if (file.metadata() or {}).get("format") != FORMAT:
                    raise ValueError(f"{path}: not a saved StreamState")
                # Copies: a tensor that stays mapped would change, or kill the process, with the file.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
        except SafetensorError as error:
            raise ValueError(f"{path}: not a saved StreamState ({error})") from None
        frames = tensors.pop(FRAMES, None)
        if frames is None:
            raise ValueError(f"{path}: not a saved StreamState (it lacks {FRAMES})")
        try:
            return cls(tensors, frames.cpu())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
