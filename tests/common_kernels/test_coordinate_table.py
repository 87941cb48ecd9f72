import pytest
import torch

from common_kernels.coordinate_table import CoordinateTable, reference
from tests.common_kernels.aot import TARGETS, compile_kernel

EXTREMES = torch.tensor([0, -1, 1, -(2**63), 2**63 - 1, 2**31, -(2**31), 2**32])


def dictionary_lookup(keys, queries):
    """Oracle: a dict, filled from behind so that the first of equal keys stays."""
    rows = {key: row for row, key in reversed(list(enumerate(keys.tolist())))}
    return torch.tensor([rows.get(key, -1) for key in queries.tolist()], dtype=torch.int32)


def some_keys(kind, n):
    if kind == "dense":  # the keys of a grid's cells: consecutive runs
        return torch.randperm(2 * n + 1)[:n]
    if kind == "repeated":
        return torch.randint(0, n // 4 + 1, (n,))
    if kind == "multiples":  # all low bits equal
        return torch.randperm(n) << 20
    return torch.cat([torch.randint(-(2**63), 2**63 - 1, (n,)), EXTREMES])[-n:] if n else torch.zeros(0).long()


def some_queries(keys, n):
    present = keys[torch.randint(0, len(keys), (n,))] if len(keys) else torch.zeros(0).long()
    absent = torch.randint(-(2**63), 2**63 - 1, (n,))
    return torch.cat([present, absent, present + 1, EXTREMES])


@pytest.mark.parametrize("kind", ["dense", "repeated", "multiples", "any"])
@pytest.mark.parametrize("n", [0, 1, 2, 5, 1000, 30_011])
def test_equals_a_dictionary(kind, n, device):
    keys = some_keys(kind, n)
    queries = some_queries(keys, 20_000)
    expected = dictionary_lookup(keys, queries)
    table = CoordinateTable(keys.to(device))
    rows = table.lookup(queries.to(device))
    assert table.n_rows == n and rows.dtype == torch.int32 and rows.device.type == device
    assert torch.equal(rows.cpu(), expected)
    assert torch.equal(reference.lookup(reference.build(keys), keys, queries), expected)


def test_extreme_keys_are_ordinary_keys(device):
    keys = EXTREMES.to(device)
    assert CoordinateTable(keys).lookup(keys).tolist() == list(range(len(EXTREMES)))
    assert CoordinateTable(keys[:1]).lookup(keys).tolist() == [0, *[-1] * (len(EXTREMES) - 1)]


def test_equal_keys_only(device):
    table = CoordinateTable(torch.full((5000,), 42, device=device))
    assert table.lookup(torch.tensor([42, 41, 42], device=device)).tolist() == [0, -1, 0]


def test_no_queries(device):
    none = torch.zeros(0, dtype=torch.int64, device=device)
    assert CoordinateTable(torch.arange(5, device=device)).lookup(none).shape == (0,)
    assert CoordinateTable(none).lookup(none).shape == (0,)


def test_strided_keys_and_queries(device):
    pairs = torch.randperm(2000, device=device).view(1000, 2)
    rows = CoordinateTable(pairs[:, 0]).lookup(pairs[:, 0].flip(0).expand(2, -1).T[:, 1])
    assert torch.equal(rows, torch.arange(999, -1, -1, dtype=torch.int32, device=device))


def test_the_table_keeps_its_own_keys(device):
    keys = torch.arange(100, device=device)
    table = CoordinateTable(keys)
    keys.zero_()
    assert table.lookup(torch.tensor([7, 0], device=device)).tolist() == [7, 0]


def test_keys_made_to_collide_are_still_found():
    # The keys that begin their search in the last hundredth of the table: long probes, and the wrap at the end.
    from common_kernels.coordinate_table import cpu

    n = 300
    candidates = [key for key in range(60_000) if cpu._slot(key, 2 * n) >= 2 * n - 6][:n]
    assert len(candidates) == n
    keys = torch.tensor(candidates)
    queries = torch.arange(60_000)
    assert torch.equal(CoordinateTable(keys).lookup(queries), dictionary_lookup(keys, queries))


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r"keys must be int64 \[N\], got int32 \[3\]"):
        CoordinateTable(torch.zeros(3, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"keys must be int64 \[N\], got int64 \[3, 2\]"):
        CoordinateTable(torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"fewer than 2\*\*30"):
        CoordinateTable(torch.zeros(1, dtype=torch.int64).expand(2**30))
    table = CoordinateTable(torch.arange(3))
    with pytest.raises(ValueError, match=r"keys must be int64 \[N\], got float32 \[2\]"):
        table.lookup(torch.zeros(2))
    with pytest.raises(ValueError, match="keys must be on the device of the table, cpu, got meta"):
        table.lookup(torch.zeros(2, dtype=torch.int64, device="meta"))


@pytest.mark.parametrize("n", [0, 1, 9])
def test_opcheck(n, device):
    keys = torch.arange(n, device=device) * 3
    # On a GPU two runs may fill the slots differently, to the same lookups: the values are not compared.
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.trisparse.coordinate_table.default, (keys,), test_utils=checks)
    slots = torch.ops.trisparse.coordinate_table(keys)
    torch.library.opcheck(torch.ops.trisparse.coordinate_lookup.default, (slots, keys, keys + 3))


def test_compiles_as_one_graph(device):
    def find(keys, queries):
        return CoordinateTable(keys).lookup(queries) + 1

    keys, queries = torch.randperm(50, device=device)[:20], torch.arange(60, device=device)
    compiled = torch.compile(find, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(keys, queries), find(keys, queries))


@pytest.mark.parametrize("kind", ["dense", "repeated", "multiples", "any"])
@pytest.mark.parametrize("n", [1, 2, 255, 700])
def test_gpu(kind, n, kernel_device, guarded_empty, poisoned_memory):
    from common_kernels.coordinate_table import gpu

    keys = some_keys(kind, n).to(kernel_device)
    queries = some_queries(keys.cpu(), 150).to(kernel_device)
    slots = gpu.build(keys, guarded_empty(2 * n, dtype=torch.int32, device=kernel_device))
    rows = guarded_empty(len(queries), dtype=torch.int32, device=kernel_device)
    gpu.lookup(slots, keys, queries, rows)
    assert torch.equal(rows.cpu(), dictionary_lookup(keys, queries))
    # Each distinct key holds one slot, by its first row.
    first = reference.lookup(reference.build(keys), keys, keys).unique()
    assert torch.equal(slots[slots >= 0].sort()[0], first)


def test_gpu_with_the_slots_of_another_table(kernel_device):
    """They name rows that the keys do not have: none is found, and nothing beyond the keys is read."""
    from common_kernels.coordinate_table import gpu

    keys = torch.arange(20, device=kernel_device)
    slots = torch.full((40,), 2**29, dtype=torch.int32, device=kernel_device)
    assert (gpu.lookup(slots, keys, keys) == -1).all()


def test_gpu_without_keys_or_queries(kernel_device, poisoned_memory):
    from common_kernels.coordinate_table import gpu

    none = torch.zeros(0, dtype=torch.int64, device=kernel_device)
    some = torch.arange(3, device=kernel_device)
    assert gpu.lookup(gpu.build(none), none, some).tolist() == [-1, -1, -1]
    assert gpu.lookup(gpu.build(some), some, none).shape == (0,)


@pytest.mark.aot
@pytest.mark.parametrize("target", TARGETS)
def test_compiles_for(target):
    from common_kernels.coordinate_table import gpu

    blocks = {"BLOCK": gpu.BLOCK}
    for capacity in ("i32", "i64"):
        signature = {"slots_ptr": "*i32", "keys_ptr": "*i64", "n_keys": "i32", "capacity": capacity}
        compile_kernel(gpu.insert_kernel, target, signature, blocks)
        signature = {
            "rows_ptr": "*i32", "slots_ptr": "*i32", "keys_ptr": "*i64", "queries_ptr": "*i64",
            "n_queries": "i32", "capacity": capacity,
        }  # fmt: skip
        compile_kernel(gpu.find_kernel, target, signature, blocks)
