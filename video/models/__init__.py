"""Networks on frames and clips."""

from video.models.efficientnet_lite import EfficientNetLite
from video.models.mobilenet_v2 import MobileNetV2
from video.models.proxyless import ProxylessNAS
from video.models.registry import NETWORKS, create
from video.models.resnet import ResNet
from video.models.tsm import TSM

__all__ = ["NETWORKS", "TSM", "EfficientNetLite", "MobileNetV2", "ProxylessNAS", "ResNet", "create"]
