"""Kernel maps against their reference and against the defining equation, checked pair by pair by brute force."""

import math

import numpy as np
import pytest
import torch

from common_kernels import kernel_map
from common_kernels.kernel_map import KINDS, KernelMap, output_shape, reference
from tests.common_kernels.aot import TARGETS, compile_kernel, pointer
from tests.common_kernels.kernel_map_oracle import assert_defines, build, small_chunks

CONVOLUTIONS = {
    "subm k3": dict(kernel_size=3),
    "subm k5": dict(kernel_size=5),
    "subm k(3,1,5)": dict(kernel_size=(3, 1, 5)),
    "subm k3 d2": dict(kernel_size=3, dilation=2),
    "subm k2": dict(kernel_size=2),
    "subm k4 d(1,2,3)": dict(kernel_size=4, dilation=(1, 2, 3)),
    "subm k1": dict(kernel_size=1),
    "k2s2": dict(kernel_size=2, stride=2, kind="strided"),
    "k3s2p1": dict(kernel_size=3, stride=2, padding=1, kind="strided"),
    "k3s1p1": dict(kernel_size=3, padding=1, kind="strided"),
    "k(3,1,2)s(2,1,3)p(0,0,1)": dict(kernel_size=(3, 1, 2), stride=(2, 1, 3), padding=(0, 0, 1), kind="strided"),
    "k3s2p2d2": dict(kernel_size=3, stride=2, padding=2, dilation=2, kind="strided"),
    "k3s2p1d3": dict(kernel_size=3, stride=2, padding=1, dilation=3, kind="strided"),
    "k2s3": dict(kernel_size=2, stride=3, kind="strided"),
    "transposed k2s2": dict(kernel_size=2, stride=2, kind="transposed"),
    "transposed k3s2p1": dict(kernel_size=3, stride=2, padding=1, output_padding=1, kind="transposed"),
    "transposed k3s2p2d2": dict(kernel_size=3, stride=2, padding=2, dilation=2, kind="transposed"),
}
SHAPE = (40, 50, 12)


def surface(n=6000, batch_size=2, dtype=torch.int32, shuffled=False):
    """Voxels of wavy sheets, sorted, or in random order."""
    across = torch.rand(n, 2) * torch.tensor([SHAPE[0], SHAPE[1]])
    height = 6 + 4 * torch.sin(across[:, 0] / 5) * torch.cos(across[:, 1] / 7) + torch.rand(n)
    batch = torch.randint(0, batch_size, (n, 1))
    coords = torch.cat([batch, across.long(), height.long().clamp(0, SHAPE[2] - 1)[:, None]], dim=1)
    coords = torch.unique(coords, dim=0).to(dtype)
    return coords[torch.randperm(len(coords))] if shuffled else coords


def assert_same(a: KernelMap, b: KernelMap):
    assert torch.equal(a.table.cpu(), b.table.cpu()) and torch.equal(a.coords.cpu(), b.coords.cpu())
    assert (a.n_in, a.shape, a.symmetric) == (b.n_in, b.shape, b.symmetric)


def reference_map(monkeypatch, coords, *args, **kwargs):
    from common_kernels.kernel_map import cpu

    with monkeypatch.context() as patch:
        patch.setattr(cpu, "kernel_map", reference.kernel_map)
        return kernel_map(coords.cpu(), *args, **kwargs)


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("shuffled", [False, True], ids=["sorted", "shuffled"])
def test_equals_reference(name, shuffled, device, monkeypatch, poisoned_memory):
    coords = surface(shuffled=shuffled).to(device)
    made = kernel_map(coords, SHAPE, batch_size=2, **CONVOLUTIONS[name])
    assert made.coords.device.type == made.table.device.type == device
    assert_same(made, reference_map(monkeypatch, coords, SHAPE, batch_size=2, **CONVOLUTIONS[name]))
    if device == "cpu":
        with small_chunks():
            assert_same(made, kernel_map(coords, SHAPE, batch_size=2, **CONVOLUTIONS[name]))
    wide = kernel_map(coords.long(), SHAPE, batch_size=2, **CONVOLUTIONS[name])
    assert wide.coords.dtype == torch.int64
    assert_same(made, wide)


@pytest.mark.parametrize("name", ["subm k3", "k3s2p1", "k3s2p2d2", "transposed k3s2p1"])
@pytest.mark.parametrize("shuffled", [pytest.param(False, marks=pytest.mark.slow), True], ids=["sorted", "shuffled"])
def test_gpu_kernels_equal_reference(name, shuffled, kernel_device, monkeypatch, poisoned_memory):
    from common_kernels.kernel_map import cpu, gpu

    coords = surface(n=700, shuffled=shuffled)
    expected = kernel_map(coords, SHAPE, batch_size=2, **CONVOLUTIONS[name])
    monkeypatch.setattr(cpu, "kernel_map", lambda rows, *rest: gpu.kernel_map(rows.to(kernel_device), *rest))
    assert_same(expected, kernel_map(coords, SHAPE, batch_size=2, **CONVOLUTIONS[name]))


@pytest.mark.parametrize("name", ["subm k3", "k2s2", "k3s2p1", "transposed k3s2p1"])
@pytest.mark.parametrize("shuffled", [False, True], ids=["sorted", "shuffled"])
def test_any_number_of_threads_gives_the_same(name, shuffled):
    coords = surface(n=60_000, batch_size=9, shuffled=shuffled)
    made = []
    before = torch.get_num_threads()
    for n_threads in (1, 2, 3):
        torch.set_num_threads(n_threads)
        made.append(kernel_map(coords, SHAPE, batch_size=9, **CONVOLUTIONS[name]))
    torch.set_num_threads(before)
    assert_same(made[0], made[1])
    assert_same(made[0], made[2])


@pytest.mark.parametrize("implementation", ["reference", "cpu", "gpu"])
@pytest.mark.parametrize("n_axes", [1, 2, 3, 4])
def test_borders(implementation, n_axes):
    """A full grid: a step over the edge of a line must not find the next line, nor the next sample."""
    shape = [3, 4, 2, 3][:n_axes]
    coords = reference.unravel(torch.arange(2 * math.prod(shape)), shape)
    for kind, kernel, stride, padding in (
        ("submanifold", 3, 1, 0),
        ("submanifold", 4, 1, 0),
        ("strided", 3, 2, 1),
        ("strided", 2, 1, 2),
        ("transposed", 3, 2, 1),
    ):
        axes = [[number] * n_axes for number in (kernel, stride, padding, 1)]
        out_shape = output_shape(shape, *axes, kind, [0] * n_axes)
        problem = (coords, out_shape, shape, *axes, 2, kind)
        assert_defines(coords, build(implementation, *problem), *problem[1:])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_axes", [1, 2, 3, 4])
@pytest.mark.parametrize("implementation", ["cpu", "gpu"])
def test_nothing_gives_nothing(kind, n_axes, implementation):
    coords = torch.zeros(0, 1 + n_axes, dtype=torch.int32)
    axes = [[number] * n_axes for number in (3, 1, 0, 1)]
    out_shape = output_shape([5] * n_axes, *axes, kind, [0] * n_axes)
    out_coords, table = build(implementation, coords, out_shape, [5] * n_axes, *axes, 1, kind)
    assert table.shape == (3**n_axes, 0) and out_coords.shape == (0, 1 + n_axes)


def test_empty_maps(device):
    coords = torch.zeros(0, 4, dtype=torch.int32, device=device)
    made = kernel_map(coords, (8, 8, 8), 2, 2, batch_size=0, kind="strided")
    assert made.n_out == made.n_in == 0 and made.shape == (4, 4, 4) and made.pairs_per_tap.tolist() == [0] * 8
    assert made.transpose(coords, (8, 8, 8)).table.shape == (8, 0)
    unreached = kernel_map(torch.tensor([[0, 4]], device=device), (5,), 2, 2, batch_size=1, kind="strided")
    assert unreached.table.shape == (2, 0)  # kernel 2 with stride 2 covers cells 0 to 3


@pytest.mark.parametrize("kind", KINDS)
def test_one_row(kind, device):
    made = kernel_map(torch.tensor([[2, 3, 1]], device=device), (4, 5), 3, batch_size=3, kind=kind)
    if kind == "submanifold":
        assert made.table.flatten().tolist() == [-1, -1, -1, -1, 0, -1, -1, -1, -1]
    elif kind == "strided":  # the outputs are cells 0 and 1 by 0 to 2
        assert made.coords.tolist() == [[2, 1, 0], [2, 1, 1]]
        assert [column.nonzero().tolist() for column in made.table.T + 1] == [[[7]], [[6]]]
    else:
        assert made.coords.tolist() == [[2, 3 + i, 1 + j] for i in range(3) for j in range(3)]
        assert torch.equal(made.table.cpu(), torch.where(torch.eye(9) > 0, 0, -1).int())


@pytest.mark.parametrize("implementation", ["reference", "cpu", "gpu"])
@pytest.mark.parametrize("kind", KINDS)
def test_far_cells_stay_apart(implementation, kind):
    """2048**3 cells: in 32-bit keys, voxels 1024 apart on the slowest axis fall together."""
    shape = [2048] * 3
    coords = torch.tensor([[0, 0, 5, 5], [0, 1024, 5, 5], [0, 1025, 5, 5], [1, 1024, 5, 6]], dtype=torch.int32)
    axes = [[number] * 3 for number in (3, 1, 0 if kind == "submanifold" else 1, 1)]
    problem = (coords, output_shape(shape, *axes, kind, [0] * 3), shape, *axes, 2, kind)
    assert_defines(coords, build(implementation, *problem), *problem[1:])


@pytest.mark.parametrize("implementation", ["reference", "cpu", "gpu"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shuffled", [False, True], ids=["sorted", "shuffled"])
@pytest.mark.parametrize(
    ("shape", "batch_size"),
    [
        ([46340] * 4, 1),  # 2**61.99 cells
        ([55108] * 4, 1),  # 0.9999 * 2**63 cells: the margins of keys fit no more
        ([2**31 - 8] * 2, 1),
        ([2**31 - 8], 2**32),
    ],
    ids=["4-D", "4-D full", "2-D", "1-D"],
)
def test_grids_near_64_bits(implementation, kind, shape, batch_size, shuffled):
    n_axes = len(shape)
    corner = torch.tensor([batch_size, *shape]) - 1
    steps = torch.tensor([[0] * n_axes, [1] * n_axes, [2] + [0] * (n_axes - 1), [0] * (n_axes - 1) + [1]])
    steps = torch.cat([torch.zeros(4, 1, dtype=torch.int64), steps], dim=1)
    coords = torch.unique(torch.cat([steps, corner - steps]), dim=0)
    coords = coords[torch.randperm(len(coords))] if shuffled else coords
    stride = 1 if kind != "strided" else 2
    axes = [[number] * n_axes for number in (3, stride, 0 if kind == "submanifold" else 1, 1)]
    problem = (coords, output_shape(shape, *axes, kind, [0] * n_axes), shape, *axes, batch_size, kind)
    assert_defines(coords, build(implementation, *problem), *problem[1:])


def test_grid_beyond_64_bits_names_the_limit():
    coords = torch.zeros(1, 5, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"each axis of such a 4-D grid may reach about 46340"):
        kernel_map(coords, [60_000] * 4, 3, batch_size=2)
    with pytest.raises(ValueError, match=r"keys reach 2\*\*63"):  # only the output grid is too large
        kernel_map(coords, [40_000] * 4, 2, 2, batch_size=1, kind="transposed")
    with pytest.raises(ValueError, match=r"below 2\*\*31"):
        kernel_map(coords[:, :2], [2**31], 3, batch_size=1)


def test_odd_submanifold_maps_are_symmetric(device):
    coords = surface(shuffled=True).to(device)
    for kernel, dilation in ((3, 1), ((5, 1, 3), (1, 2, 3))):
        made = kernel_map(coords, SHAPE, kernel, dilation=dilation, batch_size=2)
        assert made.symmetric
        transposed = torch.ops.trisparse.transpose_table(made.table, coords)
        assert torch.equal(transposed, made.table.flip(0))
        assert torch.equal(made.transpose(coords, SHAPE).table, transposed)
        assert torch.equal(made.table[made.n_taps // 2], torch.arange(len(coords), dtype=torch.int32, device=device))
    assert not kernel_map(coords, SHAPE, (3, 2, 3), batch_size=2).symmetric
    assert not kernel_map(coords, SHAPE, 3, padding=1, batch_size=2, kind="strided").symmetric


@pytest.mark.parametrize("name", ["k2s2", "k3s2p1", "transposed k3s2p1"])
def test_transpose_exchanges_the_pairs(name, device):
    coords = surface().to(device)
    made = kernel_map(coords, SHAPE, batch_size=2, **CONVOLUTIONS[name])
    back = made.transpose(coords, SHAPE)
    assert back.n_in == made.n_out and back.n_out == made.n_in and back.shape == SHAPE
    assert torch.equal(back.table, reference.transpose_table(made.table, made.n_in))
    assert torch.equal(back.transpose(made.coords, made.shape).table, made.table)
    assert torch.equal(back.pairs_per_tap, made.pairs_per_tap)
    with pytest.raises(ValueError, match=f"one row for each of the {made.n_in} input rows, got 3"):
        made.transpose(coords[:3], SHAPE)


@pytest.mark.parametrize("implementation", ["cpu", "gpu"])
@pytest.mark.parametrize(("n_taps", "n_out", "n_in"), [(1, 0, 4), (3, 5, 0), (0, 3, 2), (27, 700, 900), (2, 1, 1)])
def test_transpose_table_equals_reference(implementation, n_taps, n_out, n_in, kernel_device, poisoned_memory):
    from common_kernels.kernel_map import cpu, gpu

    table = torch.full((n_taps, n_out), -1, dtype=torch.int32)
    for line in table:
        count = min(n_in, n_out) // 2
        line[torch.randperm(n_out)[:count]] = torch.randperm(n_in)[:count].int()
    expected = reference.transpose_table(table, n_in)
    module, device = (gpu, kernel_device) if implementation == "gpu" else (cpu, "cpu")
    assert torch.equal(module.transpose_table(table.to(device), n_in).cpu(), expected)
    if implementation == "gpu" and n_taps and n_out:
        beyond = table.clone()
        beyond[:, 0] = 2**29  # no such input row: the pair is left out
        expected_without = reference.transpose_table(torch.where(beyond < n_in, beyond, -1), n_in)
        assert torch.equal(module.transpose_table(beyond.to(device), n_in).cpu(), expected_without)
    strided = torch.stack([table, table], dim=2)[:, :, 0].to(device)
    assert torch.equal(module.transpose_table(strided, n_in).cpu(), expected)


WRONG_ROWS = {
    "negative": ([[0, 1, 2], [0, -1, 2]], r"row 1 is \[0, -1, 2\] \(batch index first\), 1 of 2 rows lie outside"),
    "beyond the grid": ([[0, 1, 8], [1, 7, 2], [0, 8, 0]], r"shape \[8, 8\]: row 0 is \[0, 1, 8\].* 2 of 3 rows"),
    "negative batch index": ([[-1, 1, 2]], r"row 0 is \[-1, 1, 2\]"),
    "batch index beyond": ([[0, 0, 0], [2, 1, 2]], r"batch_size 2 and shape \[8, 8\]: row 1 is \[2, 1, 2\]"),
    "twice in a row": ([[0, 1, 2], [0, 1, 2], [0, 3, 2]], "row 1 repeats row 0, 1 of 3 rows repeat an earlier one"),
    "twice apart": ([[0, 1, 2], [1, 3, 2], [0, 1, 2]], "row 2 repeats row 0, 1 of 3 rows repeat an earlier one"),
    "three times": ([[0, 5, 5], [0, 1, 2], [0, 1, 2], [0, 1, 2]], "row 2 repeats row 1, 2 of 4 rows"),
}


@pytest.mark.parametrize("implementation", ["reference", "cpu", "gpu"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=["int32", "int64"])
@pytest.mark.parametrize("name", WRONG_ROWS)
def test_wrong_rows_raise(implementation, kind, dtype, name):
    rows, message = WRONG_ROWS[name]
    axes = [[number] * 2 for number in (3, 1, 0, 1)]
    problem = (torch.tensor(rows, dtype=dtype), output_shape([8, 8], *axes, kind, [0, 0]), [8, 8], *axes, 2, kind)
    with pytest.raises(ValueError, match=message):
        build(implementation, *problem)


@pytest.mark.parametrize("row", [[0, 2**40], [2**40, 0], [0, -(2**63)], [2**63 - 1, 2**63 - 1]], ids=str)
@pytest.mark.parametrize("implementation", ["cpu", "gpu"])
def test_values_whose_keys_wrap_raise(implementation, row):
    problem = (torch.tensor([[0, 1], row]), [2**24], [2**24], [3], [1], [0], [1], 2**24, "submanifold")
    with pytest.raises(ValueError, match="row 1 is"):
        build(implementation, *problem)


@pytest.mark.parametrize("position", [0, 4999, 30_000])
@pytest.mark.parametrize("shuffled", [False, True], ids=["sorted", "shuffled"])
def test_a_repeat_anywhere_is_found(position, shuffled):
    """Also where one chunk of rows ends and the next begins, every 5000 rows."""
    coords = reference.unravel(torch.arange(40_000), [200, 200]).int()
    coords[position + 1] = coords[position]
    coords = coords[torch.randperm(len(coords))] if shuffled else coords
    with small_chunks(), pytest.raises(ValueError, match="1 of 40000 rows repeat an earlier one"):
        kernel_map(coords, [200, 200], 3, batch_size=1)


def test_a_repeat_across_chunks_of_shuffled_rows_is_found():
    """Sorted, the equal rows are numbers 4999 and 5000."""
    coords = reference.unravel(torch.arange(40_000), [200, 200]).int()
    coords[5000] = coords[4999]
    with small_chunks(), pytest.raises(ValueError, match="1 of 40000 rows repeat an earlier one"):
        kernel_map(coords.flip(0), [200, 200], 3, batch_size=1)


@pytest.mark.parametrize("name", ["subm k3", "k2s2"])
def test_chunks_that_are_sorted_each_but_not_together(name, monkeypatch):
    coords = reference.unravel(torch.arange(0, 24_000), SHAPE).int().roll(12_000, 0)
    with small_chunks():
        made = kernel_map(coords, SHAPE, batch_size=1, **CONVOLUTIONS[name])
    assert_same(made, reference_map(monkeypatch, coords, SHAPE, batch_size=1, **CONVOLUTIONS[name]))


ROWS = torch.tensor([[0, 1, 2], [0, 3, 3]], dtype=torch.int32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(coords=ROWS.float()), r"coords must be int32 or int64 \[N, 1 \+ D\].*, got float32 \[2, 3\]"),
        (dict(coords=ROWS[:, 0]), r"got int32 \[2\]"),
        (dict(coords=torch.zeros(2, 6).int()), r"D from 1 to 4, got int32 \[2, 6\]"),
        (dict(kind="dense"), "kind must be one of submanifold, strided, transposed, got 'dense'"),
        (dict(shape=(8,)), r"shape must be an int or 2 ints of at least 1, got \(8,\)"),
        (dict(shape=(8, 0)), r"shape must be .* at least 1, got \(8, 0\)"),
        (dict(kernel_size=0), "kernel_size must be an int or 2 ints of at least 1, got 0"),
        (dict(kernel_size=(3, 3, 3)), "kernel_size must be"),
        (dict(stride=2), r"a submanifold map has stride 1 and padding 0, got stride \[2, 2\]"),
        (dict(padding=1), r"and padding \[1, 1\]"),
        (dict(padding=-1, kind="strided"), "padding must be an int or 2 ints of at least 0, got -1"),
        (dict(dilation=(1, 0)), "dilation must be"),
        (dict(output_padding=1), r"output_padding belongs to a transposed map, got \[1, 1\] for a submanifold one"),
        (dict(kernel_size=9, kind="strided"), r"the output grid would be \[0, 0\]: shape \[8, 8\] is too small"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_wrong_arguments_raise(change, message):
    arguments = dict(coords=ROWS, shape=(8, 8), kernel_size=3, batch_size=1) | change
    with pytest.raises(ValueError, match=message):
        kernel_map(**arguments)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_rows", [0, 2])
def test_opcheck(kind, n_rows, device):
    axes = [[number] * 2 for number in (3, 1, 0, 1)]
    out_shape = list(output_shape([8, 8], *axes, kind, [0, 0]))
    rows = ROWS[:n_rows].to(device)
    torch.library.opcheck(torch.ops.trisparse.kernel_map, (rows, [8, 8], out_shape, *axes, 1, kind))
    table = reference.kernel_map(rows, [8, 8], out_shape, *axes, 1, kind)[1]
    torch.library.opcheck(torch.ops.trisparse.transpose_table, (table, rows))


@pytest.mark.parametrize("name", ["subm k3", "k2s2", "transposed k2s2"])
def test_compiles_without_a_graph_break(name, device):
    def pairs(coords):
        made = kernel_map(coords, SHAPE, batch_size=2, **CONVOLUTIONS[name])
        return made.table, made.coords, made.table.ge(0).sum(1)

    coords = surface(n=300).to(device)
    got = torch.compile(pairs, fullgraph=True, backend="eager")(coords)
    assert all(torch.equal(a, b) for a, b in zip(got, pairs(coords)))


@pytest.fixture(scope="module")
def real_cloud(data_dir):
    """The cloud of spconv's benchmark in 0.1 m voxels, [125565, 4] sorted."""
    points = np.load(data_dir / "pointcloud" / "benchmark-pc.npz")["pc"][:, :3]
    cells = np.floor((points - [-80, -80, -2]) / 0.1).astype(np.int64)
    cells = np.unique(cells[((cells >= 0) & (cells < [1600, 1600, 80])).all(1)], axis=0)
    return torch.nn.functional.pad(torch.from_numpy(cells).int(), (1, 0))


REAL = [("subm k3", False), ("k2s2", False), ("k3s2p1", False), ("transposed k2s2", True)]


@pytest.mark.parametrize(("name", "transposed"), REAL)
def test_same_pairs_as_spconv_on_a_real_cloud(name, transposed, real_cloud, one_thread):
    """One thread: with more, spconv's own result varies."""
    ops = pytest.importorskip("spconv.pytorch.ops", reason="spconv is not installed")
    from spconv.core import ConvAlgo

    options = CONVOLUTIONS[name]
    shape = (1600, 1600, 80)
    k, s, p = ([options.get(key, default)] * 3 for key, default in (("kernel_size", 3), ("stride", 1), ("padding", 0)))
    subm = options.get("kind", "submanifold") == "submanifold"
    out, pairs, counts = ops.get_indice_pairs(
        real_cloud, 1, list(shape), ConvAlgo.Native, k, s, p, [1] * 3, [0] * 3, subm, transposed
    )
    made = kernel_map(real_cloud, shape, batch_size=1, **options)
    row_of = {key: row for row, key in enumerate(reference.ravel(made.coords, made.shape).tolist())}
    ours = torch.tensor(
        [row_of[key] for key in reference.ravel(out, made.shape).tolist()]
    )  # spconv's rows in our order
    expected = torch.full_like(made.table, -1)
    for tap, count in enumerate(counts.tolist()):
        source, target = pairs[:, tap, :count].long()
        expected[tap, ours[target]] = source.int()
        if subm:  # spconv lists the taps before the centre, and means their mirror images too
            expected[-1 - tap, source] = target.int()
    if subm:
        expected[made.n_taps // 2] = torch.arange(made.n_in)
        assert int(made.pairs_per_tap.sum()) == 788_961
    assert torch.equal(made.table, expected)


def kernels():
    from common_kernels.kernel_map import gpu

    for dtype in (torch.int32, torch.int64):
        rows = {"coords_ptr": pointer(dtype), "numbers_ptr": "*i64", "n_rows": "i32"}
        for n_columns in (2, 5):
            shape = {"N_COLUMNS": n_columns, "BLOCK": gpu.BLOCK}
            name = f"{dtype}-{n_columns}".removeprefix("torch.")
            yield f"ravel-{name}", gpu.ravel_kernel, {"keys_ptr": "*i64", "flags_ptr": "*i32", **rows}, shape
            for strided in (False, True):
                yield (
                    f"reach-{name}-{'strided' if strided else 'transposed'}",
                    gpu.reach_kernel,
                    {"found_ptr": "*i64", **rows},
                    {**shape, "STRIDED": strided},
                )
            unravel = {"coords_ptr": pointer(dtype), "keys_ptr": "*i64", "weights_ptr": "*i64", "n_rows": "i32"}
            yield f"unravel-{name}", gpu.unravel_kernel, unravel, shape
    sizes = dict.fromkeys(["n_queries", "n_keys", "n_halvings", "n_columns", "width"], "i32")
    for queries, keys, transposed in ((0, 0, 0), (1, 1, 0), (0, 1, 0), (1, 0, 1)):
        pointers = {"table_ptr": "*i32", "queries_ptr": "*i64", "keys_ptr": "*i64", "steps_ptr": "*i64"}
        pointers["query_rows_ptr"] = "*i32" if queries else "*i64"
        pointers["key_rows_ptr"] = "*i32" if keys else "*i64"
        flags = {"QUERIES_MOVED": bool(queries), "KEYS_MOVED": bool(keys), "TRANSPOSED": bool(transposed)}
        yield (
            f"search-{queries}{keys}{transposed}",
            gpu.search_kernel,
            {**pointers, **sizes},
            {**flags, "BLOCK": gpu.BLOCK},
        )
    tables = {"out_ptr": "*i32", "table_ptr": "*i32", "n_out": "i32", "n_in": "i32"}
    yield "transpose", gpu.transpose_kernel, tables, {"BLOCK": gpu.BLOCK}


@pytest.mark.aot
@pytest.mark.parametrize("target", TARGETS)
def test_kernels_compile(target):
    for name, kernel, signature, constexprs in kernels():
        compiled = compile_kernel(kernel, target, signature, constexprs)
        assert compiled.shared_bytes <= 4096, name


def test_a_grid_that_only_output_padding_makes() -> None:
    coords = torch.tensor([[0, 0, 0], [0, 1, 1]], dtype=torch.int32)
    found = kernel_map(coords, [2, 2], 1, 1, [0, 1], batch_size=1, kind="transposed", output_padding=[0, 1])
    assert found.shape == (2, 1) and found.coords.tolist() == [[0, 1, 0]] and found.table.tolist() == [[1]]
