"""Features before they are computed: a convolution and what followed it so far."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from common_kernels import KernelMap

Step = Callable[[Tensor], Tensor]


class Norm(NamedTuple):
    """A batch norm with fixed statistics, each [C]; `name` is its module's, `counts` as of `changes` of the tensors."""

    name: str
    counts: tuple[int, ...]
    mean: Tensor
    var: Tensor
    scale: Tensor | None
    shift: Tensor | None
    eps: float


def changes(*tensors: Tensor | None) -> tuple[int, ...]:
    """How often each tensor was changed in place, as torch counts."""
    return tuple(0 if x is None or x.is_inference() else x._version for x in tensors)


class Epilogue(NamedTuple):
    """What a convolution computes after its products, in this order."""

    norms: tuple[Norm, ...] = ()
    added: tuple[Tensor, ...] = ()
    relu: bool = False

    @property
    def form(self) -> tuple[int, int, bool]:
        """How much of each kind."""
        return len(self.norms), len(self.added), self.relu


class Layer(Protocol):
    """What computes a convolution with an epilogue: the `Deferral` of one convolution of a network."""

    def run(self, start: Start, epilogue: Epilogue) -> Tensor:
        """Features [M, C]."""

    def is_split_at(self, epilogue: Epilogue) -> bool:
        """Whether this epilogue's result was read beside a longer one's before, so that both would be computed."""

    def split_at(self, epilogue: Epilogue) -> None:
        """Take note of such a result."""


@dataclass
class Start:
    """One call of a convolution, or of a linear layer.

    Attributes:
        weight, bias: the layer's as it was called, changed so often (`counts`) until then.
        runs: how often the call was computed.
    """

    layer: Layer
    conv: Any
    sources: tuple[Tensor, ...]
    map: KernelMap | None
    rows: int
    channels: int
    weight: Tensor
    bias: Tensor | None
    counts: tuple[int, ...]
    runs: int = 0


class Features(ABC):
    """Features [rows, channels], computed or not; what they are never changes.

    Attributes:
        value: None until they are computed.
        exposed: whether a view of the value is in other hands, which may write to it.
    """

    value: Tensor | None
    exposed: bool

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """Rows and channels."""

    @property
    @abstractmethod
    def like(self) -> Tensor:
        """A tensor of the same dtype and device."""

    @abstractmethod
    def compute(self) -> Tensor:
        """The value."""

    def settle(self) -> Tensor:
        """The value as the network's code may see it: where it was computed in another order of rows, in the order of
        the coordinates."""
        value = self.compute()
        in_order: Callable[[], Tensor] | None = getattr(value, "in_order", None)
        if in_order is not None:
            self.value = value = in_order()
        return value

    @abstractmethod
    def reads(self, tensor: Tensor) -> bool:
        """Whether the value is yet to be computed from this tensor."""


@dataclass(eq=False)
class Known(Features):
    """Features that are computed already."""

    value: Tensor | None
    exposed: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        rows, channels = self.compute().shape
        return rows, channels

    @property
    def like(self) -> Tensor:
        return self.compute()

    def compute(self) -> Tensor:
        assert self.value is not None
        return self.value

    def reads(self, tensor: Tensor) -> bool:
        return False


@dataclass(eq=False)
class Joined(Features):
    """Channels of several tensors side by side."""

    parts: tuple[Tensor, ...]
    value: Tensor | None = None
    exposed: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        return self.parts[0].shape[0], sum(part.shape[1] for part in self.parts)

    @property
    def like(self) -> Tensor:
        return self.parts[0]

    def compute(self) -> Tensor:
        if self.value is None:
            self.value = torch.cat(self.parts, 1)
        return self.value

    def reads(self, tensor: Tensor) -> bool:
        return self.value is None and any(part is tensor for part in self.parts)


@dataclass(eq=False)
class Pending(Features):
    """The output of a convolution and of the steps that followed it.

    Attributes:
        parent: the features before the last step, None for the convolution alone.
        step: the last step as a plain operation.
    """

    start: Start
    epilogue: Epilogue
    parent: Pending | None = None
    step: Step | None = None
    value: Tensor | None = field(default=None, repr=False)
    exposed: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        return self.start.rows, self.start.channels

    @property
    def like(self) -> Tensor:
        return self.start.sources[0] if self.value is None else self.value

    def compute(self) -> Tensor:
        """The value, from the nearest computed features before it, else from the convolution in one pass."""
        if self.value is None:
            if self.parent is not None and self.step is not None and self.parent.is_within_reach():
                self.value = self.step(self.parent.compute())
            else:
                if self.start.runs:  # a longer epilogue was computed, and what it passed is now asked for as well
                    self.start.layer.split_at(self.epilogue)
                self.start.runs += 1
                self.value = self.start.layer.run(self.start, self.epilogue)
            # Whoever holds these features need not hold what they were computed from.
            self.start = replace(self.start, sources=())
            self.epilogue = self.epilogue._replace(added=())
            self.parent = self.step = None
        return self.value

    def is_within_reach(self) -> bool:
        """Whether these features or some before them are computed."""
        return self.value is not None or (self.parent is not None and self.parent.is_within_reach())

    def then(self, step: Step, epilogue: Epilogue) -> Features:
        """The features after one more step."""
        if self.value is not None or self.start.layer.is_split_at(self.epilogue):
            return Known(step(self.compute()))
        return Pending(self.start, epilogue, self, step)

    def reads(self, tensor: Tensor) -> bool:
        if self.value is not None:
            return False
        held: Sequence[Tensor] = (*self.start.sources, *self.epilogue.added)
        parent = self.parent
        return any(each is tensor for each in held) or (
            parent is not None and (parent.value is tensor or parent.reads(tensor))
        )
