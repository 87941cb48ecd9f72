"""Sparse networks in threads, in forked processes, at the edge of the keys, and on millions of voxels."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading

import pytest
import torch
from torch import nn

import pointcloud as pc

LARGE = """
import json, resource, torch, pointcloud as pc
axis = torch.arange(1000)
x, y = torch.meshgrid(axis, axis, indexing="ij")
z = ((x * 0.37).sin() * 8 + (y * 0.21).cos() * 9 + 24).long()
cells = torch.stack([torch.zeros_like(x), x, y, z], -1).view(-1, 4)
indices = torch.cat([cells + torch.tensor([0, 0, 0, k]) for k in range(4)]).int()
del x, y, z, cells
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
voxels = pc.SparseConvTensor(torch.ones(len(indices), 16), indices, [1000, 1000, 64], 1)
net = pc.SparseSequential(
    pc.SubMConv3d(16, 16, 3), pc.SparseConv3d(16, 32, 2, 2, indice_key="down"), pc.SubMConv3d(32, 32, 3),
    pc.SparseInverseConv3d(32, 16, 2, indice_key="down"),
)
with torch.no_grad():
    out = net(voxels)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([len(out.features), bool(out.features.isfinite().all()), (after - before) / 1024]))
"""


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return pc.SparseSequential(
        pc.SubMConv3d(8, 16, 3), nn.ReLU(), pc.SparseConv3d(16, 32, 3, 2, 1, indice_key="down"), nn.ReLU(),
        pc.SubMConv3d(32, 32, 3), pc.SparseInverseConv3d(32, 8, 3, indice_key="down"),
    ).eval()  # fmt: skip


def cloud(seed: int, shape: tuple[int, int, int] = (40, 40, 40), n: int = 5000) -> pc.SparseConvTensor:
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randperm(shape[0] * shape[1] * shape[2], generator=generator)[:n]
    cells = torch.stack([torch.zeros_like(keys), *torch.unravel_index(keys, shape)], 1)
    return pc.SparseConvTensor(torch.randn(n, 8, generator=generator), cells.int(), shape, 1)


def test_two_networks_at_once_in_many_threads() -> None:
    networks = [network(0), pc.accelerate(network(1))]
    clouds = [cloud(seed) for seed in range(4)]
    shared = cloud(9)
    with torch.no_grad():
        expected = [[net(x).features for x in [*clouds, shared]] for net in networks]
    wrong: list[str] = []

    def work(which: int) -> None:
        with torch.no_grad():
            for turn in range(6):
                for i, x in enumerate([*clouds, shared]):
                    # Fresh coordinates are searched again; the shared tensor's maps are found by all threads at once.
                    x = x if x is shared else pc.SparseConvTensor(x.features, x.indices, x.spatial_shape, 1)
                    if not torch.equal(networks[which](x).features, expected[which][i]):
                        wrong.append(f"network {which}, turn {turn}, cloud {i}")

    threads = [threading.Thread(target=work, args=(i % 2,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_computes_the_same() -> None:
    net, x = network(2), cloud(3)
    with torch.no_grad():
        expected = net(x).features
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)  # torch's pool of threads does not survive a fork; loaders' workers do the same
            signal.alarm(60)
            with torch.no_grad():
                again = pc.SparseConvTensor(x.features, x.indices, x.spatial_shape, 1)
                same = torch.equal(net(x).features, expected) and torch.equal(net(again).features, expected)
            os.write(writing, b"same" if same else b"other")
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    assert os.read(reading, 10) == b"same"
    os.close(reading)


def test_far_corners_of_the_largest_grid_do_not_meet() -> None:
    """2097151 cells on each of three axes: a key of 63 bits, all but used up."""
    side = 2**21 - 1
    low, high = [0, 0, 0], [side - 1] * 3
    cells = torch.tensor([[0, *low], [0, 0, 0, 1], [0, *high], [0, side - 1, side - 1, side - 2], [0, 0, 1, side - 1]])
    features = torch.eye(5, 8, dtype=torch.float64)
    layer = pc.SubMConv3d(8, 4, 3, bias=False, dtype=torch.float64)
    out = layer(pc.SparseConvTensor(features, cells.int(), [side] * 3, 1)).features
    tap = layer.weight[:, 1, 1]  # [Cout, 3, Cin]: along the last axis
    centre, before, after = tap[:, 1], tap[:, 0], tap[:, 2]
    expected = torch.stack(
        [
            centre[:, 0] + after[:, 1], centre[:, 1] + before[:, 0], centre[:, 2] + before[:, 3],
            centre[:, 3] + after[:, 2], centre[:, 4],
        ]
    )  # fmt: skip
    torch.testing.assert_close(out, expected)
    with pytest.raises(ValueError, match=r"keys reach 2\*\*63"):
        pc.SparseConvTensor(features, cells.int(), [2**21] * 3, 2)


@pytest.mark.slow
def test_four_million_voxels_in_bounded_memory() -> None:
    """Maps of 27 taps are 432 MB, those of 8 taps and of the coarse level as much again, features 256 MB a layer."""
    done = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, timeout=600, check=True)
    rows, finite, grown = json.loads(done.stdout.splitlines()[-1])
    assert rows == 4_000_000 and finite
    assert grown < 2200, f"{grown:.0f} MB"
