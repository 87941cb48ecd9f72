"""Networks of single frames by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from common_models.names import did_you_mean
from video.models.efficientnet_lite import VARIANTS, EfficientNetLite
from video.models.mobilenet_v2 import MobileNetV2
from video.models.proxyless import ProxylessNAS
from video.models.resnet import DEPTHS, ResNet

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    **{f"resnet{depth}": partial(ResNet, depth) for depth in DEPTHS},
    "resnext50_32x4d": partial(ResNet, 50, groups=32, group_width=4),
    "mobilenet_v2": MobileNetV2,
    "proxylessnas": ProxylessNAS,
    **{f"efficientnet_{name}": partial(EfficientNetLite, width=w, depth=d) for name, (w, d, _) in VARIANTS.items()},
}


def create(name: str, **arguments: Any) -> nn.Module:
    """A network of single frames with random weights, as `create("resnet50", num_classes=10)`.

    Raises:
        ValueError: a name that is not one of NETWORKS (the message lists close ones), or a wrong argument.
    """
    if name not in NETWORKS:
        hint = did_you_mean(name, NETWORKS, cutoff=0.5)
        raise ValueError(f"name must be one of {', '.join(NETWORKS)}, got {name!r}{hint}")
    try:
        return NETWORKS[name](**arguments)
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from None
