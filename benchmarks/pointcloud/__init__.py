"""What is measured: each case turns a workload and the settings into trials."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks.harness import Settings, Trial
from benchmarks.pointcloud import detectors, folding, layers, maps, network, resample, stream, training
from benchmarks.pointcloud.workloads import Workload

CASES: dict[str, Callable[[Workload, Settings], Iterator[Trial]]] = {
    "maps": maps.trials,
    "layers": layers.trials,
    "resample": resample.trials,
    "network": network.trials,
    "detectors": detectors.trials,
    "folding": folding.trials,
    "stream": stream.trials,
    "training": training.trials,
}
