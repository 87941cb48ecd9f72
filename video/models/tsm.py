"""TSM: a network of single frames whose residual blocks see the neighbouring frames, and the mean over a clip."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from common_kernels.checks import describe
from common_models.tracing import trace
from video.models.registry import create
from video.shift import TemporalShift, check_shift
from video.shift.insert import Insertion, add_temporal_shift


class TSM(nn.Module):
    """Temporal shift network (Lin et al., TSM, 2019); without shift a segment network (Wang et al., TSN, 2016).

    Each frame of a clip goes through the network of single frames, the shifts carry channels between neighbours, and
    the clip's logits are the mean of its frames'. Modules are named as in the published weights: `base_model`,
    `new_fc`.

    Args:
        backbone: a name that `models.create` knows, or a network of single frames that ends in a linear layer, whose
            classifier is replaced and which is changed in place.
        num_classes: logits.
        num_segments: frames of a clip.
        fold_div: one of so many channels is taken from the next frame and one from the frame before.
        direction: "both", or "past" for networks that can run live (see `Stream`).
        place: "blockres" or "block", see `add_temporal_shift`.
        dropout: before the classifier.
        shift: False for the same network without shift.
        backbone_arguments: of `models.create`, where the backbone is a name.

    Attributes:
        arguments: those above, where the backbone is a name; otherwise None.
        insertion: where the shifts are; None without shift.
    """

    def __init__(
        self,
        backbone: str | nn.Module = "resnet50",
        num_classes: int = 400,
        num_segments: int = 8,
        fold_div: int = 8,
        direction: str = "both",
        place: str = "blockres",
        dropout: float = 0.5,
        shift: bool = True,
        backbone_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        check_shift(num_segments, fold_div, direction)
        self.arguments: dict[str, Any] | None = None
        if isinstance(backbone, str):
            self.arguments = dict(
                backbone=backbone,
                num_classes=num_classes,
                num_segments=num_segments,
                fold_div=fold_div,
                direction=direction,
                place=place,
                dropout=dropout,
                shift=shift,
                backbone_arguments=dict(backbone_arguments or {}),
            )
            backbone = create(backbone, **{"num_classes": 1, **(backbone_arguments or {})})
        elif not isinstance(backbone, nn.Module):
            raise ValueError(f"backbone must be a name or a torch.nn.Module, got {type(backbone).__name__}")
        elif backbone_arguments:
            raise ValueError("backbone_arguments must be left out where backbone is a network")
        self.num_classes = num_classes
        self.fold_div = fold_div
        self.direction = direction
        self.place = place
        self.insertion: Insertion | None = None
        self._num_segments = num_segments
        in_features = _replace_classifier(backbone, nn.Dropout(dropout))
        if shift:
            self.insertion = add_temporal_shift(backbone, num_segments, fold_div, direction, place).insertion  # type: ignore[assignment]
        self.base_model = backbone
        self.new_fc = nn.Linear(in_features, num_classes)
        nn.init.normal_(self.new_fc.weight, std=0.001)
        nn.init.zeros_(self.new_fc.bias)

    @property
    def shift(self) -> bool:
        """Whether there are shifts."""
        return self.insertion is not None

    @property
    def num_segments(self) -> int:
        """Frames of a clip. It can be set: a network runs on longer clips than it was trained on, at some loss."""
        return self._num_segments

    @num_segments.setter
    def num_segments(self, value: int) -> None:
        check_shift(value, self.fold_div, self.direction)
        self._num_segments = value
        for module in self.modules():
            if isinstance(module, TemporalShift):
                module.num_segments = value

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, num_classes] of clips [N, T, C, H, W], or of their frames in order, [N * T, C, H, W].

        Raises:
            ValueError: T is not num_segments.
        """
        n = self._num_segments
        if x.ndim == 5 and x.shape[1] == n:
            x = x.flatten(0, 1)
        elif x.ndim != 4 or x.shape[0] % n:
            raise ValueError(f"x must be [N, {n}, C, H, W] or [N * {n}, C, H, W] (num_segments={n}), got {describe(x)}")
        return self.frame_logits(x).unflatten(0, (x.shape[0] // n, n)).mean(1)

    def frame_logits(self, x: Tensor) -> Tensor:
        """Logits [B, num_classes] of each of the frames [B, C, H, W], which are whole clips unless run live."""
        features = self.base_model(x)
        return self.new_fc(features if isinstance(features, Tensor) else features.logits)


def _replace_classifier(model: nn.Module, replacement: nn.Module) -> int:
    """Put a module in place of the network's last linear layer; returns that layer's input features."""
    run = trace(model)
    logits = run.output if isinstance(run.output, Tensor) else getattr(run.output, "logits", None)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        came = describe(logits) if isinstance(logits, Tensor) else type(run.output).__name__
        raise ValueError(f"backbone must return logits [N, classes] (or an output with .logits), got {came}")
    name = run.operations[-1].modules[-1]
    layer = model.get_submodule(name)
    if not name or not isinstance(layer, nn.Linear):
        raise ValueError(f"backbone must end in a torch.nn.Linear, got {type(layer).__name__} as its last module")
    parent, _, child = name.rpartition(".")
    replacement.training = layer.training
    setattr(model.get_submodule(parent), child, replacement)
    return layer.in_features
