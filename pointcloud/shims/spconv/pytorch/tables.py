"""spconv.pytorch.tables: sums and concatenations of sparse tensors."""

from pointcloud.functional import sparse_add
from pointcloud.modules import AddTable, ConcatTable, JoinTable, SparseModule
from pointcloud.tensor import SparseConvTensor


class AddTableMisaligned(SparseModule):
    """Add sparse tensors of one grid with different coordinates: see `sparse_add`."""

    def forward(self, input: list[SparseConvTensor]) -> SparseConvTensor:
        return sparse_add(*input)


__all__ = ["AddTable", "AddTableMisaligned", "ConcatTable", "JoinTable", "SparseConvTensor", "SparseModule"]
