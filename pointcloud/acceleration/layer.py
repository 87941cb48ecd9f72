"""One convolution of an accelerated network: its weights with each batch norm that followed it, and its epilogue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from common_kernels import KernelMap
from common_kernels.gather_gemm import ACTIVATIONS
from common_kernels.gather_gemm.packed import PackedTaps, can_pack, gather_gemm_packed, pack_taps
from common_kernels.onednn import PackedWeight
from common_models.folding import fold_scale
from common_models.modes import transforming
from pointcloud.acceleration import deferred
from pointcloud.acceleration.seen import Seen
from pointcloud.acceleration.steps import Epilogue, Known, Norm, Start, changes
from pointcloud.convolution import SparseConvolution

# Weights with other norms than the latest few are folded again when they are needed.
_KEPT = 4

Weights = tuple[Tensor, Tensor | None]


class DeferredLayer:
    """Puts off what a convolution computes until it is known what follows. `name` is the convolution's."""

    def __init__(self, name: str, seen: Seen) -> None:
        self.name = name
        self.seen = seen
        self._folded: PackedWeight[dict[Any, Any]] = PackedWeight()
        self._splits: set[tuple[int, int, bool]] = set()
        self._elsewhere: tuple[Tensor, int, dict[Any, Any]] | None = None  # the same for weights not on the CPU
        self._served = False  # whether anything was ever folded
        self._alone = False  # whether the first call showed that nothing is

    def takes(self, features: Tensor, residual: Tensor | None) -> bool:
        """Whether a call of the network is under way that computes, in evaluation, without autocast and gradients."""
        if torch.compiler.is_compiling() or transforming():
            return False
        call = deferred.current_call()
        if call is None or call.seen is not self.seen or deferred.autocasting():
            return False
        return not any(deferred.needs_grad(x) for x in (features, residual) if x is not None)

    def begin(
        self, conv: SparseConvolution, features: Tensor, map: KernelMap | None, residual: Tensor | None
    ) -> Tensor:
        """Features of the convolution [M, out_channels], computed when they are read."""
        if _needs_grad(conv) or conv.weight.dtype != features.dtype:
            return conv.convolve((features,), map, conv.output_first_weight, conv.bias, residual, conv.activation)
        if conv.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {conv.activation!r}")
        whole = conv.groups > 1
        if conv.activation != "none" or self._alone:  # nothing can follow
            sources = deferred.sources(features, whole, copied=False)
            residual = None if residual is None else deferred.computed(residual)
            self.seen.note_run(self.name, Epilogue(), len(sources))
            out = self.multiply(conv, sources, map, (), residual, conv.activation == "relu")
            return deferred.DeferredFeatures(Known(out))
        rows = len(features) if map is None else map.n_out
        counts = changes(conv.weight, conv.bias)
        sources = deferred.sources(features, whole)
        start = Start(self, conv, sources, map, rows, conv.out_channels, conv.weight, conv.bias, counts)
        return deferred.begin(start, residual)

    def run(self, start: Start, epilogue: Epilogue) -> Tensor:
        """Features [M, out_channels] in one pass, or one for each tensor that is read as part of a concatenation."""
        self._check_unchanged(start, epilogue)
        served = self.is_served(epilogue, len(start.sources))
        self._served = self._served or served
        self._alone = not self._served
        if served:
            self.seen.note_run(self.name, epilogue, len(start.sources))
        if not deferred.autocasting():
            return self._compute(start, epilogue)
        with torch.autocast(start.weight.device.type, enabled=False):
            return self._compute(start, epilogue)

    def _compute(self, start: Start, epilogue: Epilogue) -> Tensor:
        residual: Tensor | None = None
        for added in epilogue.added:
            residual = added if residual is None else residual + added
        return self.multiply(start.conv, start.sources, start.map, epilogue.norms, residual, epilogue.relu)

    def _check_unchanged(self, start: Start, epilogue: Epilogue) -> None:
        """Raise RuntimeError where a forward changes weights or statistics after it called the layer."""
        conv = start.conv
        same = conv.weight is start.weight and conv.bias is start.bias
        if not same or changes(conv.weight, conv.bias) != start.counts:
            raise RuntimeError(
                f"the weight or bias of {self.name!r} was changed within a call of the network, before the layer's "
                "output was read: accelerate(model, fold=False) computes each layer where it is called"
            )
        for norm in epilogue.norms:
            if changes(norm.mean, norm.var, norm.scale, norm.shift) != norm.counts:
                raise RuntimeError(
                    f"batch norm {norm.name!r} was changed within a call of the network, before its output was read: "
                    "accelerate(model, fold=False) computes each layer where it is called"
                )

    def multiply(
        self,
        conv: SparseConvolution,
        sources: tuple[Tensor, ...],
        map: KernelMap | None,
        norms: tuple[Norm, ...],
        residual: Tensor | None,
        relu: bool,
    ) -> Tensor:
        """Features [M, out_channels] of all that, in one pass for each source."""
        activation = "relu" if relu else "none"
        if map is None or conv.groups > 1 or not can_pack(conv.weight):
            weight, bias = self.kept(conv, norms, "plain", lambda: fold(conv.output_first_weight, conv.bias, norms))
            return conv.convolve(sources, map, weight, bias, residual, activation)
        channels = tuple(x.shape[1] for x in sources)
        parts, bias = self.kept(conv, norms, channels, lambda: _packed(conv, norms, channels))
        for index, (x, part) in enumerate(zip(sources, parts)):
            last = index == len(parts) - 1
            residual = gather_gemm_packed(x, map, part, bias, residual, activation if last else "none")
            bias = None
        assert residual is not None
        return residual

    def is_served(self, epilogue: Epilogue, sources: int) -> bool:
        """Whether it pays to wait for this epilogue, and to read so many tensors as one."""
        return epilogue != Epilogue() or sources > 1

    def is_split_at(self, epilogue: Epilogue) -> bool:
        """Whether the result of this epilogue was read beside a longer one's before."""
        return epilogue.form in self._splits

    def split_at(self, epilogue: Epilogue) -> None:
        """Compute the result of this epilogue first from now on, and what follows it from there."""
        self._splits.add(epilogue.form)

    def kept(self, conv: Any, norms: tuple[Norm, ...], form: Any, make: Callable[[], Any]) -> Any:
        """What was made of the weight, bias and norms of now, or is made of them."""
        weight = conv.weight
        kept = self._folded.get(weight, _none) if weight.device.type == "cpu" else self.on_device(weight)
        key = (form, *map(_content, (conv.bias, *(x for norm in norms for x in norm[2:]))))
        found = kept.get(key)
        if found is None:
            if len(kept) >= _KEPT:
                kept.pop(next(iter(kept)))
            found = kept[key] = make()
        return found

    def on_device(self, weight: Tensor) -> dict[Any, Any]:
        """What is kept for a weight that is not on the CPU, as long as torch counts no change of it."""
        kept, version = self._elsewhere, -1 if weight.is_inference() else weight._version
        if kept is None or not kept[0].is_set_to(weight) or kept[1] != version or version < 0:
            self._elsewhere = kept = (weight.detach(), version, {})
        return kept[2]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_folded": PackedWeight(), "_elsewhere": None}


def _needs_grad(conv: SparseConvolution) -> bool:
    return torch.is_grad_enabled() and any(p.requires_grad for p in conv.parameters(recurse=False))


def _none(weight: Tensor) -> dict[Any, Any]:
    return {}


def _content(value: Any) -> Any:
    """What tells a small tensor's values from others, whoever changed them. On a GPU that would be a transfer: there
    its place and torch's count of its changes must do."""
    if not isinstance(value, Tensor):
        return value
    if value.device.type != "cpu":
        return value.data_ptr(), 0 if value.is_inference() else value._version
    return value.detach().contiguous().view(torch.uint8).numpy().tobytes()


def fold(weight: Tensor, bias: Tensor | None, norms: tuple[Norm, ...]) -> Weights:
    """Weight and bias of the layer that computes the norms as well; in memory as the kernel reads them."""
    dtype = weight.dtype
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    if not norms:
        return weight, bias
    for norm in norms:
        weight, bias = fold_scale(weight, bias, norm.mean, norm.var, norm.eps, norm.scale, norm.shift)
    assert bias is not None
    weight = weight.to(dtype)
    return weight if weight.ndim == 2 else in_kernel_order(weight), bias.to(dtype)


def _packed(
    conv: SparseConvolution, norms: tuple[Norm, ...], channels: tuple[int, ...]
) -> tuple[list[PackedTaps], Tensor | None]:
    """A packed weight for each tensor of so many channels that is read, and the bias."""
    weight, bias = fold(conv.output_first_weight, conv.bias, norms)
    taps = weight.flatten(1, -2).permute(1, 2, 0)  # [K, Cin, Cout]
    return [pack_taps(part) for part in taps.split(channels, 1)], bias


def in_kernel_order(weight: Tensor) -> Tensor:
    """[Cout, *k, Cin / groups] that lies in memory as [*k, Cin / groups, Cout], which is what the kernel reads."""
    ndim = weight.ndim
    there, back = [*range(1, ndim), 0], [ndim - 1, *range(ndim - 1)]
    return weight.permute(there).contiguous().permute(back)
