"""Label every point of a LiDAR sweep: a simulated one, or a file: `python examples/segment_a_sweep.py scan.bin`."""

import sys
import time

import pointcloud
from pointcloud.simulate import CLASSES, simulate_sweep


def main() -> None:
    if len(sys.argv) > 1:
        cloud = pointcloud.read_points(sys.argv[1])  # sensor at the origin, z up, metres
    else:
        cloud = simulate_sweep(seed=7, sensor="hdl32").to_cloud()
    model = pointcloud.load_pretrained("minkunet14-streets")
    segmenter = pointcloud.Segmenter(pointcloud.accelerate(model, dtype="auto"))
    segmenter(cloud)  # the first call of a kernel on a machine compiles it

    start = time.perf_counter()
    result = segmenter(cloud)
    seconds = time.perf_counter() - start
    print(f"{len(cloud):,} points, {result.voxels:,} voxels, {1000 * seconds:.0f} ms")
    for name, points in sorted(result.counts().items(), key=lambda item: -item[1]):
        print(f"{points:8,} {name}")
    if cloud.labels is not None and result.class_names == CLASSES:
        seen = result.labels >= 0
        right = (result.labels == cloud.labels)[seen].float().mean()
        print(f"{right:.1%} of the points have the class that the simulator gave them")


if __name__ == "__main__":
    main()
