"""What an indice_key stands for, read as spconv's IndiceData."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import pointcloud as pc
from tests.pointcloud.dense_oracle import random_cloud

LAYERS = [
    lambda lib: lib.SubMConv3d(2, 2, 3, bias=False, indice_key="k"),
    lambda lib: lib.SubMConv3d(2, 2, (3, 1, 5), dilation=2, bias=False, indice_key="k"),
    lambda lib: lib.SparseConv3d(2, 2, 3, 2, 1, bias=False, indice_key="k"),
    lambda lib: lib.SparseConv3d(2, 2, 2, 2, bias=False, indice_key="k"),
    lambda lib: lib.SparseConvTranspose3d(2, 2, 3, 2, 1, bias=False, indice_key="k"),
    lambda lib: lib.SparseMaxPool3d(3, 2, 1, indice_key="k"),
]


def cells_of(data, tap: int) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Input and output coordinates of a tap's pairs, from indice_pairs."""
    source, target = data.indice_pairs[:, tap]
    n = int((source >= 0).sum())
    assert (source[n:] == -1).all() and (target[n:] == -1).all() and (target[:n] >= 0).all()
    return {
        (tuple(a), tuple(b))
        for a, b in zip(data.indices[source[:n].long()].tolist(), data.out_indices[target[:n].long()].tolist())
    }


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.usefixtures("one_thread")
def test_indice_data_is_that_of_spconv(layer) -> None:
    sp = pytest.importorskip("spconv.pytorch", reason="spconv is not installed")
    x = random_cloud((6, 7, 5), 2, dtype=torch.float32)
    with torch.no_grad():
        ours = layer(pc)(x).find_indice_pair("k")
        theirs = layer(sp)(sp.SparseConvTensor(x.features, x.indices, x.spatial_shape, x.batch_size)).find_indice_pair(
            "k"
        )
    for name in ("is_subm", "ksize", "stride", "padding", "dilation", "spatial_shape", "out_spatial_shape"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert torch.equal(ours.indices, theirs.indices)
    assert ours.indice_pairs.shape == theirs.indice_pairs.shape and ours.indice_pairs.dtype == torch.int32
    assert torch.equal(ours.indice_pair_num, theirs.indice_pair_num)
    for tap in range(ours.indice_pairs.shape[1]):
        assert cells_of(ours, tap) == cells_of(theirs, tap), tap


@pytest.mark.parametrize("layer", LAYERS)
def test_pair_tables_name_the_same_pairs(layer) -> None:
    data = layer(pc)(random_cloud((6, 7, 5), 2, dtype=torch.float32)).find_indice_pair("k")
    n, m = len(data.indices), len(data.out_indices)
    assert data.pair_fwd.shape[1] == m and data.pair_bwd.shape == (len(data.pair_fwd), n)

    def pairs(table: Tensor) -> set[tuple[int, ...]]:
        return {(t, o, int(table[t, o])) for t, o in (table >= 0).nonzero().tolist()}

    assert pairs(data.pair_fwd) == {(t, o, i) for t, i, o in pairs(data.pair_bwd)} != set()


def test_what_indice_data_lacks_is_named() -> None:
    data = LAYERS[0](pc)(random_cloud((6, 7, 5), 2, dtype=torch.float32)).find_indice_pair("k")
    assert data.voxel_num is None and not hasattr(data, "nothing")
    with pytest.raises(AttributeError, match="the masks of spconv's IndiceData .*do not exist here"):
        _ = data.pair_mask_fwd_splits


def test_indice_data_of_nothing() -> None:
    nothing = pc.SparseConvTensor(torch.zeros(0, 2), torch.zeros(0, 4, dtype=torch.int32), [6, 7, 5], 2)
    for layer in LAYERS:
        data = layer(pc)(nothing).find_indice_pair("k")
        assert data.indice_pairs.shape[::2] == (2, 0) and not data.indice_pair_num.any()
