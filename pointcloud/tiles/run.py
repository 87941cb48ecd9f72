"""A label for every point of a cloud that does not fit into memory, as the network run on the whole would give it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common_kernels.gather_rows import gather_rows
from common_kernels.segment_reduce import segment_reduce
from common_models.files import replace_atomically
from common_models.modes import check_evaluating
from pointcloud.io.blocks import BlockReader, read_blocks
from pointcloud.io.columns import Array
from pointcloud.tensor import SparseConvTensor
from pointcloud.tiles.plan import Tile, split
from pointcloud.tiles.reach import Reach, check_local, find_reach, rows_of
from pointcloud.tiles.spool import Raster, Spool, bounding_grid, raster_of, voxels_of, write_spool
from pointcloud.voxels.grid import VoxelGrid
from pointcloud.voxels.grouping import group_points
from pointcloud.voxels.voxelize import VoxelCoordinates

_SQUARE = 16  # voxels, at least
_SAMPLE = 2048  # voxels on which the network is looked at


@dataclass(frozen=True)
class Chunked:
    """What `chunked` did.

    Attributes:
        points: number of points, each with a label.
        tiles: into which the cloud was divided.
        resumed: of these, those that an earlier call had finished.
        halo: voxels around a tile that were read with it, along x, y and z.
        read_share: points read for all tiles, over points.
    """

    points: int
    tiles: int
    resumed: int
    halo: tuple[int, ...]
    read_share: float


@torch.no_grad()
def chunked(
    model: nn.Module,
    source: str | os.PathLike[str] | Any,
    output: str | os.PathLike[str],
    *,
    voxel_size: float,
    features: Callable[[Tensor], Tensor] | None = None,
    columns: Sequence[str] | int | None = None,
    extra: Sequence[str] = (),
    max_points: int = 500_000,
    block: int = 1_000_000,
    folder: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Chunked:
    """Label the points of a cloud of any size, tile by tile, as the network run on the whole cloud would label them.

    The ground is divided into tiles. Each is run with all voxels around it that its answers depend on: the halo, which
    is found from kernel, stride, padding and dilation of the layers at every level. Voxels keep the coordinates that
    they have in the whole cloud, so that the grids of strided layers agree, and only the tile's own points get labels
    from it. Points are sorted by place on disk first: two and a half times the size of the cloud is needed there.

    Every finished tile is kept in `folder`. The same call after an interruption goes on with the first tile that is
    missing; when all are there the labels are written, and the folder is removed. A file is known again by its size and
    time of change, an array by a checksum.

    Args:
        model: in evaluation mode, from the voxels of `voxelize` to one row of logits for each; or that network after
            `accelerate`. Layers that look at the whole cloud are refused.
        source: `.npy`, `.bin`, `.las` or `.laz` file, or array [N, 3 + F], float32 or float64, as
            `pointcloud.io.blocks.read_blocks` takes it. LAS coordinates are float64.
        output: the `.npy` file to write: uint8 [N] (int32 where the network has more than 256 classes), the class of
            each point in the order of the source.
        voxel_size: metres; the grid begins at the least coordinates of the cloud.
        features: from points [n, 3 + F] to the features [n, C] of each, of which a voxel has the mean; by default all
            columns, as in `voxelize`. A point's features must depend on that point alone. An interrupted call is
            gone on with where the function's own code is the same.
        columns, extra: see `read_blocks`.
        max_points: points of one tile with its halo, which decides how much memory is needed. A tile no wider than its
            halo may hold more.
        block: points that are read at a time.
        folder: for the unfinished work; by default beside `output`, its name with `.tiles` appended.
        progress: called after each tile with the number of tiles done and that of all.

    Raises:
        TypeError: an array of other than floating numbers.
        ValueError: a model in training mode, that looks at the whole cloud or returns something else, a cloud that
            cannot be read or is not finite, a folder with the work of another call.
        OSError: a file that cannot be read or written.
    """
    check_evaluating(model)
    check_local(model)
    for name, number in (("max_points", max_points), ("block", block)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    target = Path(output)
    if target.suffix != ".npy":
        raise ValueError(f"output must be a .npy file, got {target}")
    cloud = read_blocks(source, columns=columns, extra=extra)
    work = Path(f"{target}.tiles") if folder is None else Path(folder)
    spool = _sorted(cloud, voxel_size, block, work, _identity(model, cloud, features, voxel_size, max_points))
    if not cloud.n_points:
        return _finish(target, work, [], cloud.n_points, np.dtype(np.uint8), Chunked(0, 0, 0, (0, 0, 0), 0.0))
    labeller = _Labeller(model, spool, features)
    reach, classes = labeller.look()
    squares = (-(-reach.halo[0] // spool.raster.cell), -(-reach.halo[1] // spool.raster.cell))
    counts = np.diff(spool.starts).reshape(spool.raster.shape)
    tiles = split(counts, squares, max_points)
    dtype = np.dtype(np.uint8 if classes <= 256 else np.int32)
    files, resumed = [work / f"tile-{number:06}.npz" for number in range(len(tiles))], 0
    for number, (tile, file) in enumerate(zip(tiles, files)):
        if file.exists():
            resumed += 1
        else:
            numbers, labels, n = labeller.label(tile, squares, reach)
            with replace_atomically(file) as partial:
                np.savez(partial, numbers=numbers, labels=labels.astype(dtype), read=n)
        if progress is not None:
            progress(number + 1, len(tiles))
    read = sum(int(_load(file)["read"]) for file in files)
    done = Chunked(cloud.n_points, len(tiles), resumed, reach.halo, read / cloud.n_points)
    return _finish(target, work, files, cloud.n_points, dtype, done)


class _Labeller:
    """Runs the network on parts of a sorted cloud."""

    def __init__(self, model: nn.Module, spool: Spool, features: Callable[[Tensor], Tensor] | None) -> None:
        self.model = model
        self.spool = spool
        self.features = features
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def look(self) -> tuple[Reach, int]:
        """How far the network looks, and its number of classes."""
        rows, _ = self.spool.read(0, min(int(self.spool.starts[-1]), 64 * _SAMPLE))
        x, _ = self.voxels(rows, voxels_of(self.spool.raster.grid, rows))
        if len(x.features) > _SAMPLE:
            x = x.select_by_index(torch.arange(_SAMPLE, device=self.device))
        reach = find_reach(self.model, x)
        return reach, rows_of(self.model(x), len(x.features)).shape[1]

    def label(self, tile: Tile, squares: tuple[int, int], reach: Reach) -> tuple[Array, Array, int]:
        """(numbers in the source, labels) of a tile's own points, and the number of points that were read."""
        raster = self.spool.raster
        rows, numbers = self.spool.rectangle(
            (tile.x0 - squares[0], tile.x1 + squares[0]), (tile.y0 - squares[1], tile.y1 + squares[1])
        )
        cells = voxels_of(raster.grid, rows)
        low = torch.tensor([tile.x0, tile.y0]) * raster.cell
        high = torch.tensor([tile.x1, tile.y1]) * raster.cell
        halo = torch.tensor(reach.halo[:2])
        near = ((cells[:, :2] >= low - halo) & (cells[:, :2] < high + halo)).all(1)
        rows, numbers, cells = rows[near.numpy()], numbers[near.numpy()], cells[near]
        own = ((cells[:, :2] >= low) & (cells[:, :2] < high)).all(1)
        x, of_point = self.voxels(rows, cells)
        logits = rows_of(self.model(x), len(x.features))
        labels = logits.argmax(1).cpu()[of_point[own]]
        return numbers[own.numpy()], labels.numpy(), len(rows)

    def voxels(self, rows: Array, cells: Tensor) -> tuple[SparseConvTensor, Tensor]:
        """The voxels of points in the cells [n, 3] of the whole cloud's grid, and the voxel of each point."""
        grid = self.spool.raster.grid
        points = torch.from_numpy(rows)
        values = points if self.features is None else self.features(points)
        if values.ndim != 2 or len(values) != len(points):
            raise ValueError(f"features must return [{len(points)}, C] for as many points, got {list(values.shape)}")
        key = (cells[:, 0] * grid.shape[1] + cells[:, 1]) * grid.shape[2] + cells[:, 2]
        group = group_points(key, grid.shape[0] * grid.shape[1] * grid.shape[2], None)
        first = group.order[group.offsets[:-1]]
        indices = torch.cat([first.new_zeros(len(first), 1), cells[first]], 1).int()
        mean = segment_reduce(gather_rows(values, group.order), group.offsets, "mean")
        where = VoxelCoordinates(indices, 1, grid).to(self.device)
        return SparseConvTensor.over(where, mean.to(self.device)), group.of_point


def _identity(
    model: nn.Module,
    cloud: BlockReader,
    features: Callable[[Tensor], Tensor] | None,
    voxel_size: float,
    max_points: int,
) -> dict[str, Any]:
    """What makes a call the same as an interrupted one."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return {
        "model": digest.hexdigest(),
        "source": cloud.identity,
        "columns": cloud.columns,
        "features": None if features is None else _code(features),
        "voxel_size": voxel_size,
        "max_points": max_points,
    }


def _code(function: Callable[..., Any]) -> str:
    """What tells a function from another one of the same name."""
    code = getattr(function, "__code__", None)
    if code is None:
        return getattr(function, "__qualname__", type(function).__qualname__)
    constants = [value for value in code.co_consts if isinstance(value, (int, float, str, tuple, type(None)))]
    content = repr((code.co_code.hex(), constants, code.co_names)).encode()
    return f"{function.__qualname__} {hashlib.sha256(content).hexdigest()}"


def _sorted(cloud: BlockReader, voxel_size: float, block: int, work: Path, identity: dict[str, Any]) -> Spool:
    """The cloud sorted by place, from an earlier call where that came so far."""
    mark = work / "cloud.json"
    if work.exists() and not (work / "call.json").exists() and any(work.iterdir()):
        raise ValueError(f"{work}: not a folder of unfinished tiles: give another folder=, or remove it")
    work.mkdir(parents=True, exist_ok=True)
    call = work / "call.json"
    if call.exists() and json.loads(call.read_text()) != identity:
        raise ValueError(
            f"{work}: holds the unfinished tiles of another model, source or option: remove it, or give another folder="
        )
    if not call.exists():
        with replace_atomically(call) as partial:
            partial.write_text(json.dumps(identity))
    if mark.exists():
        known = json.loads(mark.read_text())
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in known["grid"].items()}
        grid = VoxelGrid(**fields)
        starts = np.load(work / "starts.npy")
        raster = Raster(grid, known["cell"])
        return Spool(raster, starts, work / "points.bin", work / "numbers.bin", cloud.columns, cloud.dtype)
    raster = raster_of(bounding_grid(cloud, voxel_size, block), _SQUARE)
    spool = write_spool(cloud, raster, work, block)
    with replace_atomically(work / "starts.npy") as partial:
        np.save(partial, spool.starts)
    with replace_atomically(mark) as partial:
        partial.write_text(json.dumps({"grid": asdict(raster.grid), "cell": raster.cell}))
    return spool


def _finish(target: Path, work: Path, files: list[Path], n: int, dtype: np.dtype, done: Chunked) -> Chunked:
    """Put the tiles' labels together and remove the folder."""
    with replace_atomically(target) as partial:
        if n:
            labels = np.lib.format.open_memmap(partial, "w+", dtype, (n,))
            for file in files:
                tile = _load(file)
                labels[tile["numbers"]] = tile["labels"]
            labels.flush()
            del labels
        else:
            np.save(partial, np.zeros(0, dtype))
    shutil.rmtree(work)
    return done


def _load(file: Path) -> dict[str, Array]:
    with np.load(file) as tile:
        return dict(tile)
