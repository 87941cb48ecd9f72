"""What calls of an accelerated network have shown: what its convolutions took over, and what not, and why."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn

from common_models.modes import exporting
from pointcloud.acceleration.deferred import Call, DeferredFeatures, calls, current_call
from pointcloud.acceleration.steps import Epilogue
from pointcloud.tensor import SparseConvTensor


class Seen:
    """The record of one network.

    Attributes:
        batch_norms: names of those that a convolution computed.
        activations: names of the modules of ReLU that a convolution computed.
        left: why, for each batch norm or ReLU that was computed on its own in any call.
        relus, sums, joins: names of the convolutions that computed a ReLU, a sum, or read several tensors as if they
            were concatenated.
    """

    def __init__(self) -> None:
        self.batch_norms: set[str] = set()
        self.activations: set[str] = set()
        self.relus: set[str] = set()
        self.sums: set[str] = set()
        self.joins: set[str] = set()
        self.left: dict[str, str] = {}
        self.news = False

    def note_run(self, name: str, epilogue: Epilogue, sources: int) -> None:
        """A convolution computed an epilogue from so many tensors."""
        for norm in epilogue.norms:
            self._add(self.batch_norms, norm.name)
        for whom, happened in ((self.relus, epilogue.relu), (self.sums, epilogue.added), (self.joins, sources > 1)):
            if happened:
                self._add(whom, name)

    def take_activation(self, name: str) -> None:
        """A module's ReLU became part of a convolution's epilogue."""
        self._add(self.activations, name)

    def leave(self, name: str, why: str) -> None:
        """A batch norm or ReLU was computed on its own."""
        if name not in self.left:
            self.left[name] = why
            self.news = True

    def _add(self, names: set[str], name: str) -> None:
        if name not in names:
            names.add(name)
            self.news = True


class Enter:
    """Forward pre-hook of the network: a call begins."""

    def __init__(self, seen: Seen) -> None:
        self.seen = seen

    def __call__(self, module: nn.Module, args: Any) -> None:
        if not exporting():
            calls().append(Call(self.seen))


class Leave:
    """Forward hook of the network: features become ordinary tensors, and the report says what the call has shown."""

    def __init__(self, seen: Seen, report: Callable[[nn.Module, Seen], None]) -> None:
        self.seen = seen
        self.report = report

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if exporting():
            return output
        call = calls().pop()
        if output is None and sys.exc_info()[0] is not None:  # the call raised
            return output
        output = ordinary(output)
        ordinary((args, kwargs))  # what the forward wrote into a dict that it was given
        for features in call.alive():
            features.node.compute()
        if self.seen.news:
            self.seen.news = False
            self.report(module, self.seen)
        return output


class Name:
    """Forward pre-hook of a batch norm or ReLU: says which module runs."""

    def __init__(self, name: str, seen: Seen) -> None:
        self.name = name
        self.seen = seen

    def __call__(self, module: nn.Module, args: Any) -> None:
        call = current_call()
        if call is None or call.seen is not self.seen:
            return
        features = args[0].features if args and isinstance(args[0], SparseConvTensor) else args[0] if args else None
        if isinstance(features, DeferredFeatures):
            call.module = self.name
        elif features is not None:
            self.seen.leave(self.name, "what it follows is no output of a sparse convolution")


def ordinary(value: Any) -> Any:
    """The value with ordinary tensors in the place of deferred features, in any nesting; lists and dicts in place."""
    return _ordinary(value, set())


def _ordinary(value: Any, known: set[int]) -> Any:
    if isinstance(value, DeferredFeatures):
        value.node.exposed = True
        return value.node.settle()
    if isinstance(value, (str, bytes, int, float, Tensor, nn.Module)) or value is None or id(value) in known:
        return value
    known.add(id(value))
    if isinstance(value, SparseConvTensor):
        value._features = _ordinary(value.features, known)
    elif isinstance(value, dict):
        for key, each in value.items():
            new = _ordinary(each, known)
            if new is not each:
                value[key] = new
    elif isinstance(value, list):
        for index, each in enumerate(value):
            new = _ordinary(each, known)
            if new is not each:
                value[index] = new
    elif isinstance(value, tuple):
        items = [_ordinary(each, known) for each in value]
        if any(new is not old for new, old in zip(items, value)):
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    elif is_dataclass(value):
        for field in fields(value):
            each = getattr(value, field.name, None)
            new = _ordinary(each, known)
            if new is not each:
                object.__setattr__(value, field.name, new)
    return value
