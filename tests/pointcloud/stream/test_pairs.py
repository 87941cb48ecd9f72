"""Pairs that follow the changes of their rows, against kernel maps that are found anew."""

from __future__ import annotations

import pytest
import torch

from common_kernels.kernel_map.reference import kernel_map
from pointcloud.coordinates import Geometry
from pointcloud.stream.pairs import Pairs
from pointcloud.stream.rows import Rows
from tests.pointcloud.stream.changing_clouds import GRID, changing

ONE, NONE = (1, 1, 1), (0, 0, 0)
GEOMETRIES = {
    "submanifold": Geometry("submanifold", (3, 3, 3), ONE, NONE, ONE, NONE),
    "even submanifold": Geometry("submanifold", (2, 4, 1), ONE, NONE, (2, 1, 1), NONE),
    "strided": Geometry("strided", (2, 2, 2), (2, 2, 2), NONE, ONE, NONE),
    "overlapping": Geometry("strided", (3, 3, 2), (2, 1, 3), (1, 1, 0), (1, 2, 1), NONE),
    "transposed": Geometry("transposed", (3, 2, 3), (2, 2, 1), (1, 0, 1), ONE, (1, 0, 0)),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_pairs_are_those_of_the_map_found_anew(name: str) -> None:
    geometry, rows, pairs, before = GEOMETRIES[name], None, None, None
    for frame, x in enumerate(changing(12, seed=5)):
        if rows is None:
            rows = Rows(x.indices.clone(), GRID, 2)
            rows.start()
            pairs = Pairs(rows, geometry, GRID, frame)
        else:
            rows.meet(x.indices)
            assert pairs is not None
            pairs.update(frame)
        assert torch.equal(rows.indices[rows.order], x.indices)
        shape = pairs.outputs.shape
        coords, table = kernel_map(x.indices, GRID, shape, *geometry[1:5], 2, geometry.kind)
        outputs = x.indices if geometry.kind == "submanifold" else coords
        assert torch.equal(pairs.outputs.indices[pairs.outputs.order], outputs)
        found = pairs.part(pairs.outputs.order, inverse=False).table
        place = torch.cat([rows.order.int(), torch.tensor([-1], dtype=torch.int32)])
        assert torch.equal(found, place[table.long()])
        back = pairs.part(None, inverse=True).table
        tap, row = torch.nonzero(back >= 0, as_tuple=True)
        forward = pairs.part(None, inverse=False).table
        assert torch.equal(forward[tap, back[tap, row].long()], row.int()) and len(row) == int((forward >= 0).sum())
        assert pairs.count == len(row)
        inputs = {
            tuple(cell): {tuple(x.indices[n].tolist()) for n in column[column >= 0].long()}
            for cell, column in zip(outputs.tolist(), table.t())
        }
        if before is not None:
            assert pairs.touched is not None
            told = {tuple(cell) for cell in pairs.outputs.indices[pairs.touched].tolist()}
            assert told >= {cell for cell, read in inputs.items() if before.get(cell, read) != read}
            new = set(inputs) - set(before)
            assert {tuple(c) for c in pairs.outputs.indices[pairs.outputs.change.new].tolist()} == new
        before = inputs


def test_part_is_the_map_of_some_rows() -> None:
    x = next(changing(1))
    rows = Rows(x.indices, GRID, 2)
    pairs = Pairs(rows, GEOMETRIES["strided"], GRID, 0)
    chosen = torch.tensor([5, 2, 9])
    part, whole = pairs.part(chosen, inverse=False), pairs.part(None, inverse=False)
    assert torch.equal(part.table, whole.table[:, chosen]) and part.n_in == len(rows)
