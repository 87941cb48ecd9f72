"""What all sparse convolutions have in common."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common_kernels import KernelMap, gather_gemm
from common_kernels.gather_gemm import ACTIVATIONS
from common_kernels.kernel_map import per_axis
from pointcloud.coordinates import Coordinates, Geometry, IndiceData, check_same_coordinates, describe
from pointcloud.functional import depthwise
from pointcloud.graphs import leaf_of_graphs
from pointcloud.modules import SparseModule
from pointcloud.spconv_weights import kernel_one_as_stored, kernel_one_in_krsc, layout_hint
from pointcloud.tensor import ConvAlgo, SparseConvTensor, check_algo

Size = int | Sequence[int]


class Deferral(Protocol):
    """What `pointcloud.accelerate` gives a convolution, so that it computes only when its features are read."""

    def takes(self, features: Tensor, residual: Tensor | None) -> bool:
        """Whether this call may be put off."""

    def begin(
        self, conv: SparseConvolution, features: Tensor, map: KernelMap | None, residual: Tensor | None
    ) -> Tensor:
        """Features that are computed when they are read, with what followed the layer."""


class SparseConvolution(SparseModule):
    """Base of all sparse convolutions: `y[o] = sum over taps r of x[in(o, r)] @ W[r] + bias`, cross-correlation.

    Weight `[out_channels, *kernel_size, in_channels // groups]`, bias `[out_channels]`. The weight of a kernel of size
    1 lies in memory as `[in_channels, out_channels]`, whatever its shape says, as spconv has it: state dicts, states of
    optimisers and code that reads the weight pass both ways. `output_first_weight` has the order of its shape.

    * SubMConv: outputs are the inputs, `in = out + (r - k // 2) * dilation`, for odd and even kernels. `padding` is
      accepted and has no meaning, as a submanifold convolution is padded by definition; stride must be 1.
    * SparseConv: outputs are the cells that some input reaches, `in = out * stride - padding + r * dilation`, in a grid
      of the size that a dense convolution gives; sorted by batch index and coordinates.
    * SparseConvTranspose: `out = in * stride - padding + r * dilation`, likewise.
    * SparseInverseConv: the map of the earlier layer with the same `indice_key`, backwards; its outputs are exactly the
      coordinates that entered that layer.

    A kernel of size 1 with stride 1 and no padding is a plain matrix product on the features: it needs no map and does
    not register its `indice_key`.

    Args:
        kernel_size, stride, padding, dilation, output_padding: an int, or one per axis.
        groups: input channels c // (in_channels // groups) reach output channels of the same group only.
        indice_key: name of the map for layers to come. Maps are cached without one; it is needed by SparseInverseConv.
        algo, large_kernel_fast_algo: accepted for spconv's sake; they cannot change a result.
        fp32_accum: None or True: products are always accumulated in fp32 (fp64 for fp64).
        record_voxel_count: keep the largest number of output rows in the buffer `max_num_voxels_during_training`.
        name: a name for the module, for whoever reads it.

    Attributes:
        activation: "none" or "relu", applied last. Set where batch norm and ReLU are folded into the layer.
        deferral: in an accelerated network, what puts the layer's computation off until its epilogue is known.
    """

    def __init__(
        self,
        ndim: int,
        in_channels: int,
        out_channels: int,
        kernel_size: Size = 3,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        subm: bool = False,
        output_padding: Size = 0,
        transposed: bool = False,
        inverse: bool = False,
        indice_key: str | None = None,
        algo: ConvAlgo | None = None,
        fp32_accum: bool | None = None,
        record_voxel_count: bool = False,
        *,
        large_kernel_fast_algo: bool = False,
        name: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(name=name)
        if subm + transposed + inverse > 1:
            raise ValueError("a convolution is one of subm, transposed and inverse, or none of them")
        for argument, number in (("in_channels", in_channels), ("out_channels", out_channels), ("groups", groups)):
            if not hasattr(number, "__index__"):
                raise ValueError(f"{argument} must be an integer, got {number!r}")
        if min(in_channels, out_channels, groups) < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"groups must divide in_channels and out_channels, got groups {groups}, in_channels {in_channels}, "
                f"out_channels {out_channels}"
            )
        check_algo(algo, "algo")
        if fp32_accum is False:
            raise ValueError("fp32_accum must be None or True: products are always accumulated in fp32, got False")
        if inverse and indice_key is None:
            raise ValueError("indice_key must name the layer that a SparseInverseConv inverts, got None")
        self.ndim = ndim
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = sizes(kernel_size, ndim, "kernel_size", 1)
        self.stride = sizes(stride, ndim, "stride", 1)
        self.padding = sizes(padding, ndim, "padding", 0)
        self.dilation = sizes(dilation, ndim, "dilation", 1)
        self.output_padding = sizes(output_padding, ndim, "output_padding", 0)
        if subm and max(self.stride) > 1:
            raise ValueError(f"stride of a submanifold convolution must be 1, got {self.stride}")
        if not transposed and max(self.output_padding) > 0:
            raise ValueError(f"output_padding belongs to SparseConvTranspose, got {self.output_padding}")
        self.groups = groups
        self.subm = subm
        self.transposed = transposed
        self.inverse = inverse
        self.indice_key = indice_key
        self.algo = algo
        self.fp32_accum = fp32_accum
        self.record_voxel_count = record_voxel_count
        self.large_kernel_fast_algo = large_kernel_fast_algo
        self.activation = "none"
        self.deferral: Deferral | None = None
        self.geometry = Geometry(
            "submanifold" if subm else "transposed" if transposed else "strided",
            tuple(self.kernel_size),
            tuple(self.stride),
            (0,) * ndim if subm else tuple(self.padding),
            tuple(self.dilation),
            tuple(self.output_padding),
        )
        self.conv1x1 = not inverse and self._is_plain_product()
        weight = torch.empty(out_channels, *self.kernel_size, in_channels // groups, device=device, dtype=dtype)
        self._kernel_one = max(self.kernel_size) == max(self.stride) == groups == 1
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        if record_voxel_count and not subm and not inverse:
            count = torch.zeros(1, dtype=torch.int32, device=device)
            self.register_buffer("max_num_voxels_during_training", count)
        self.reset_parameters()

    def _is_plain_product(self) -> bool:
        _, kernel, stride, padding, _, extra = self.geometry
        return max(kernel) == max(stride) == 1 and max(padding) == max(extra) == 0

    def reset_parameters(self) -> None:
        """Uniform in ±1 / sqrt(fan_in), fan_in = in_channels / groups times taps, as spconv and torch do."""
        bound = 1 / math.sqrt(self.weight[0].numel())
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    @property
    def output_first_weight(self) -> Tensor:
        """The weight in the order of its shape, `[out_channels, *kernel_size, in_channels // groups]`.

        Setting it makes a new parameter.
        """
        return kernel_one_in_krsc(self.weight) if self._kernel_one else self.weight

    @output_first_weight.setter
    def output_first_weight(self, weight: Tensor) -> None:
        weight = kernel_one_as_stored(weight.detach()) if self._kernel_one else weight.detach()
        self.weight = nn.Parameter(weight, requires_grad=self.weight.requires_grad)

    def get_max_num_voxels(self) -> Tensor | None:
        """The largest number of output rows so far, int32 [1]; None without `record_voxel_count`."""
        return getattr(self, "max_num_voxels_during_training", None)

    def is_inverseable(self) -> bool:
        """Whether a SparseInverseConv can invert this layer."""
        return self.indice_key is not None and not self.subm and not self.conv1x1

    @leaf_of_graphs
    def forward(
        self,
        input: SparseConvTensor,
        add_input: SparseConvTensor | None = None,
        *,
        residual: Tensor | None = None,
    ) -> SparseConvTensor:
        """Convolve.

        Args:
            input: features [N, in_channels] in the weight's dtype (any floating dtype under autocast).
            add_input: a sparse tensor added before the activation; its coordinates must be those of the output.
            residual: [M, out_channels], likewise, in the order of the output rows.

        Raises:
            TypeError: an input that is no SparseConvTensor.
            ValueError: a wrong dtype, channel count or dimension; an indice_key that is unknown or stands for
                another map; coordinates outside of the grid, or repeated ones.
        """
        self._check(input)
        if add_input is not None and residual is not None:
            raise ValueError("add_input and residual are two names of the same thing: give one of them")
        map, coordinates, keys = self._find(input)
        if add_input is not None:
            check_same_coordinates(coordinates, add_input.coordinates)
            residual = add_input.features
        if self.deferral is not None and self.deferral.takes(input.features, residual):
            out = self.deferral.begin(self, input.features, map, residual)
        else:
            out = self.convolve((input.features,), map, self.output_first_weight, self.bias, residual, self.activation)
        count = self.get_max_num_voxels()
        if count is not None:
            count.clamp_(min=len(out))
        return SparseConvTensor.over(coordinates, out, keys)

    def _check(self, input: Any) -> None:
        if not isinstance(input, SparseConvTensor):
            raise TypeError(f"input must be a SparseConvTensor, got {type(input).__name__}")
        if len(input.spatial_shape) != self.ndim:
            raise ValueError(f"input must have {self.ndim} axes, got spatial_shape {input.spatial_shape}")
        if input.features.shape[1] != self.in_channels:
            raise ValueError(f"input must have {self.in_channels} channels, got features {describe(input.features)}")

    def _find(self, input: SparseConvTensor) -> tuple[KernelMap | None, Coordinates, dict[str, IndiceData]]:
        """The map (None for a plain product), the output's coordinates, the output's keys."""
        if self.conv1x1:
            return None, input.coordinates, input.indice_dict
        if self.inverse:
            known = input.find_inverse(self.kernel_size, self.indice_key)
            return known.link.inverse(known.source), known.source, input.indice_dict
        found = input.find_map(self.geometry, self.indice_key)
        return found.link.map, found.target, input.with_key(self.indice_key, found)

    def convolve(
        self,
        sources: Sequence[Tensor],
        map: KernelMap | None,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        activation: str,
    ) -> Tensor:
        """Features [M, out_channels] of this layer with another weight, bias and activation.

        Args:
            sources: one tensor [N, in_channels], or several whose channels together are in_channels and which then are
                read where they lie, as if they were concatenated (with groups 1).
            map: None for a plain product.
            weight, bias: in the shapes of the layer's own, the weight in the order of its shape.
            residual: [M, out_channels], added before the activation.
        """
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        first, last = 0, len(sources) - 1
        for index, x in enumerate(sources):
            part = weight if last == 0 else weight[..., first : first + x.shape[1]]
            residual = self._convolve(x, map, part, bias, residual, activation if index == last else "none")
            first, bias = first + x.shape[1], None
        assert residual is not None
        return residual

    def _convolve(
        self,
        x: Tensor,
        map: KernelMap | None,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        activation: str,
    ) -> Tensor:
        x, weight, bias, residual = self._cast(x, weight, bias, residual)
        taps = weight.flatten(1, -2)  # [Cout, K, Cin / groups]
        if self.groups == self.in_channels > 1 and map is not None:
            repeats = self.out_channels // self.in_channels
            wide = x.repeat_interleave(repeats, 1) if repeats > 1 else x
            return _finish(depthwise(wide, map, taps.squeeze(2).T), bias, residual, activation)
        if self.groups == 1 and map is not None:
            return gather_gemm(x, map, taps.permute(1, 2, 0), bias, residual, activation)
        if self.groups == 1:
            return _finish(F.linear(x, taps.squeeze(1), bias), None, residual, activation)
        parts = []
        for part, group in zip(x.chunk(self.groups, 1), taps.chunk(self.groups)):
            if map is None:
                parts.append(F.linear(part, group.squeeze(1)))
            else:
                parts.append(gather_gemm(part.contiguous(), map, group.permute(1, 2, 0)))
        return _finish(torch.cat(parts, 1), bias, residual, activation)

    def _cast(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """The operands in autocast's dtype where it is on; fp64 stays, as everywhere under autocast."""
        device = x.device.type
        if x.is_floating_point() and x.dtype != torch.float64 and torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            x, weight = x.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
            residual = None if residual is None else residual.to(dtype)
        if x.dtype != weight.dtype or x.device != weight.device:
            raise ValueError(
                f"input must have the dtype and device of the weight, {describe(weight)} on {weight.device}, "
                f"got features {describe(x)} on {x.device}"
            )
        return x, weight, bias, residual

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        key = prefix + "weight"
        stored, n_errors = state_dict.get(key), len(error_msgs)
        count = self.get_max_num_voxels()
        if count is not None:  # checkpoints written without record_voxel_count have no count
            state_dict.setdefault(prefix + "max_num_voxels_during_training", torch.zeros_like(count))
        # Code of others replaces this method in SparseModule by one that knows older layouts (mmdetection3d does):
        # only what it could not load is an error.
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if stored is None or stored.shape == self.weight.shape:
            return
        if len(error_msgs) > n_errors:
            error_msgs.extend(layout_hint(key, stored, self.weight))
        elif self._kernel_one and stored.numel() == self.weight.numel():
            with torch.no_grad():  # their permutation gave it the right shape, but moved its memory
                self.weight.copy_(stored.reshape(self.weight.shape))

    def extra_repr(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"]
        if not self.inverse:
            parts.append(f"stride={self.stride}")
        plain = {"padding": 0, "dilation": 1, "output_padding": 0}
        parts += [f"{key}={getattr(self, key)}" for key, usual in plain.items() if set(getattr(self, key)) != {usual}]
        if self.groups != 1:
            parts.append(f"groups={self.groups}")
        if self.bias is None:
            parts.append("bias=False")
        if self.indice_key is not None:
            parts.append(f"indice_key={self.indice_key!r}")
        if self.activation != "none":
            parts.append(f"activation={self.activation}")
        return ", ".join(parts)


def _finish(out: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str) -> Tensor:
    """act(out + bias + residual); `out` is fresh and, where nothing is to be differentiated, changed in place."""
    if bias is not None:
        out = out + bias
    if residual is not None:
        if residual.shape != out.shape:
            raise ValueError(f"residual must be {describe(out)}, got {describe(residual)}")
        alone = torch.is_grad_enabled() or residual.dtype != out.dtype
        out = out + residual if alone else out.add_(residual)
    if activation == "relu":
        out = out.relu() if torch.is_grad_enabled() else out.relu_()
    return out


def sizes(value: Any, ndim: int, name: str, minimum: int) -> list[int]:
    """`value` as one int per axis; integers of numpy count as such."""
    numbers = [_integer(v) for v in value] if isinstance(value, Iterable) else _integer(value)
    if not isinstance(numbers, (int, list)):
        raise ValueError(f"{name} must be an int or {ndim} ints of at least {minimum}, got {value!r}")
    return per_axis(numbers, ndim, name, minimum)


def _integer(value: Any) -> Any:
    return int(value) if hasattr(value, "__index__") else value
