"""The GPU's order of rows and taps: complete, minimal, and as good on a real cloud as the method promises."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from common_kernels import kernel_map
from common_kernels.kernel_map import gpu_schedule
from common_kernels.kernel_map.gpu_schedule import Schedule


def random_table(n_taps: int, n_rows: int, n_in: int, density: float) -> torch.Tensor:
    rows = torch.randint(0, n_in, (n_taps, n_rows))
    return torch.where(torch.rand(n_taps, n_rows) < density, rows, -1).to(torch.int32)


TABLES = [
    pytest.param(taps, rows, density, id=f"taps{taps}-rows{rows}-density{density}")
    for taps, rows, density in [
        (1, 1, 1.0), (1, 300, 0.5), (8, 257, 0.4), (9, 128, 0.3), (27, 0, 0.3), (27, 1, 0.3), (27, 129, 0.0),
        (27, 400, 0.2), (27, 256, 1.0), (125, 300, 0.1), (200, 40, 0.5),
    ]
]  # fmt: skip


@pytest.mark.parametrize(("taps", "rows", "density"), TABLES)
@pytest.mark.parametrize("tile", [32, 128])
def test_entries_hold_the_table(taps: int, rows: int, density: float, tile: int, device: str) -> None:
    """Each split lists every valid pair once, in the tile of its row, and no tap that its tile does not need."""
    table = random_table(taps, rows, 500, density).to(device)
    schedule = Schedule.of(gpu_schedule.map_schedule(table, tile))
    assert len(schedule.work) == gpu_schedule.max_splits(taps)
    n_tiles = -(-rows // tile)
    for n_groups, work in enumerate(schedule.work, start=1):
        split = schedule.split(n_groups)
        assert len(split.taps) == work
        assert {t.dtype for t in (split.order, split.offsets, split.taps, split.source)} == {torch.int32}
        assert split.order.shape == (n_groups, rows)
        assert split.offsets.shape == (n_groups, n_tiles + 1)
        assert split.source.shape == (len(split.taps), tile)
        assert torch.equal(split.order.sort(1).values, torch.arange(rows, device=device).int().expand(n_groups, -1))
        assert (split.source >= 0).any(1).all(), "an entry that no row needs"
        rebuilt = torch.full_like(table, -1)
        groups_of_tap: dict[int, set[int]] = {}
        next_entry = 0
        for group in range(n_groups):
            for t in range(n_tiles):
                begin, end = split.offsets[group, t : t + 2].tolist()
                assert begin == next_entry
                next_entry = end
                listed = split.taps[begin:end].tolist()
                assert len(set(listed)) == len(listed)
                own = split.order[group, t * tile : (t + 1) * tile].long()
                for entry, tap in zip(range(begin, end), listed):
                    groups_of_tap.setdefault(tap, set()).add(group)
                    source = split.source[entry]
                    assert (source[len(own) :] == -1).all(), "rows behind the last one"
                    rebuilt[tap, own] = torch.maximum(rebuilt[tap, own], source[: len(own)])
        assert next_entry == len(split.taps)
        assert torch.equal(rebuilt, table)
        assert all(len(groups) == 1 for groups in groups_of_tap.values())


@pytest.mark.parametrize(("taps", "rows", "density"), TABLES)
def test_pairs_by_tap(taps: int, rows: int, density: float, device: str) -> None:
    table = random_table(taps, rows, 500, density).to(device)
    schedule = Schedule.of(gpu_schedule.map_schedule(table))
    assert schedule.pairs.dtype == torch.int32 and schedule.pair_offsets.dtype == torch.int64
    offsets = schedule.pair_offsets.tolist()
    assert offsets[0] == 0 and offsets[-1] == schedule.pairs.shape[1]
    for tap, (begin, end) in enumerate(itertools.pairwise(offsets)):
        source, target = schedule.pairs[:, begin:end]
        assert torch.equal(target, (table[tap] >= 0).nonzero()[:, 0].int())
        assert torch.equal(source, table[tap, target.long()])


def test_gray_order_changes_one_tap_at_a_time() -> None:
    """The defining property of a Gray code, on all masks of five taps; the highest bit changes once."""
    masks = torch.randperm(32)
    bits = (masks >> torch.arange(4, -1, -1)[:, None]) & 1 == 1
    changes = bits[:, gpu_schedule._gray_order(bits[None])[0]].int().diff(dim=1).abs()
    assert (changes.sum(0) == 1).all()
    assert changes[0].sum() == 1


@pytest.mark.parametrize("n", [15, 16, 31, 32, 63, 64, 130])
def test_gray_order_of_many_taps(n: int) -> None:
    """Against the definition in Python's integers; equal masks stay in order."""
    distinct = torch.rand(n, 60) < 0.3
    bits = distinct[:, torch.randint(0, 60, (200,))]
    values = []
    for column in bits.T.tolist():
        value, code = 0, int("".join("01"[b] for b in column), 2)
        while code:
            value, code = value ^ code, code >> 1
        values.append(value)
    expected = sorted(range(200), key=values.__getitem__)
    assert gpu_schedule._gray_order(bits[None])[0].tolist() == expected


def test_rows_with_equal_taps_share_tiles() -> None:
    """Four kinds of rows in turn become four runs: each tile of one kind multiplies that kind's taps only."""
    kinds = torch.rand(27, 4) < 0.5
    table = torch.where(kinds[:, torch.arange(1024) % 4], 7, -1).to(torch.int32)
    assert Schedule.of(gpu_schedule.map_schedule(table)).work[0] == 2 * int(kinds.sum())


def test_work_on_a_real_cloud(data_dir: Path) -> None:
    """Multiplied rows per pair of a 3x3x3 map, for tiles of 32 and 128 rows and 1, 2, 3 splits."""
    points = np.load(data_dir / "pointcloud" / "benchmark-pc.npz")["pc"]
    voxels = np.unique(np.floor((points - points.min(0)) / 0.1).astype(np.int64), axis=0)
    coords = torch.from_numpy(np.pad(voxels, ((0, 0), (1, 0))))
    table = kernel_map(coords, (voxels.max(0) + 1).tolist(), 3, batch_size=1).table
    n_pairs = int((table >= 0).sum())
    for tile, expected in ((32, [1.68, 1.15, 1.03]), (128, [1.93, 1.32, 1.09])):
        ratios = [work * tile / n_pairs for work in Schedule.of(gpu_schedule.map_schedule(table, tile)).work]
        assert ratios == pytest.approx(expected, rel=0.03)


def test_unknown_split_is_rejected() -> None:
    schedule = Schedule.of(gpu_schedule.map_schedule(random_table(8, 10, 10, 0.5)))
    for n_groups in (0, 2):
        with pytest.raises(ValueError, match="has 1 to 1 splits"):
            schedule.split(n_groups)


@pytest.mark.parametrize("taps", [1, 8, 27])
def test_fake_has_the_real_shapes(taps: int) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    real = gpu_schedule.map_schedule(random_table(taps, 300, 50, 0.3))
    with FakeTensorMode(shape_env=ShapeEnv()):
        fake = torch.ops.trisparse.map_schedule(torch.empty(taps, 300, dtype=torch.int32, device="cuda"))
    assert [t.dtype for t in fake] == [t.dtype for t in real]
    assert [t.ndim for t in fake] == [t.ndim for t in real]
    for made, expected in zip(fake, real):
        assert all(a == b for a, b in zip(made.shape, expected.shape) if isinstance(a, int))
