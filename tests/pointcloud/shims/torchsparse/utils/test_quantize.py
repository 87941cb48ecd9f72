"""Points to cells."""

import numpy as np

from pointcloud.shims.torchsparse.utils.quantize import sparse_quantize


def test_cells_first_points_and_inverse() -> None:
    points = np.array([[0.1, 0.1, 0.1], [-0.1, 0.0, 0.0], [0.4, 0.2, 0.3], [1.2, 0.0, 0.0]])
    cells, first, inverse = sparse_quantize(points, 0.5, return_index=True, return_inverse=True)
    assert cells.tolist() == [[-1, 0, 0], [0, 0, 0], [2, 0, 0]] and cells.dtype == np.int32
    assert first.tolist() == [1, 0, 3] and (cells[inverse] == np.floor(points / 0.5)).all()
    assert (sparse_quantize(points, (0.5, 0.5, 0.5)) == cells).all()
