"""spconv.pytorch.spatial."""

from pointcloud.modules import SparseModule
from pointcloud.tensor import SparseConvTensor


class RemoveDuplicate(SparseModule):
    """Keep the first row of each cell."""

    def forward(self, x: SparseConvTensor) -> SparseConvTensor:
        return x.coalesce("first")


__all__ = ["RemoveDuplicate", "SparseModule"]
