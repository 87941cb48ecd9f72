"""Operators as traced graphs call them: what does not belong together is refused before an address is made of it.

The cases run in a process of their own, since a wrong address may end it.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from common_kernels import channel_shift, ragged_topk, shift_gemm, unpack
from common_kernels.checks import check_fixed

ROOT = Path(__file__).resolve().parents[2]

SETUP = """
    import torch
    from common_kernels import kernel_map
    ops = torch.ops.trisparse
    torch.manual_seed(0)
    FAR = 2**30
    def int32(*values): return torch.tensor(values, dtype=torch.int32)
    def surface(n): return torch.stack([torch.zeros(n), torch.arange(n) // 40, torch.arange(n) % 40], 1).int()
    def refused(call, words):
        try:
            call()
        except (ValueError, IndexError) as error:
            if words not in str(error):
                raise SystemExit(f"expected {words!r}, got {error}")
        else:
            raise SystemExit(f"not refused: {words}")
"""

CASES = {
    "transpose_table": """
        table = int32([0, FAR, -1], [2, -7, 1])
        refused(lambda: ops.transpose_table(table, torch.empty(3, 0)), f"below the 3 input rows, got row {FAR}")
        refused(lambda: ops.transpose_table(int32([0, 3, 1]), torch.empty(3, 0)), "below the 3 input rows, got row 3")
        refused(lambda: ops.transpose_table(table.long(), torch.empty(3, 0)), "table must be int32 [K, M]")
        refused(lambda: ops.transpose_table(table[0], torch.empty(3, 0)), "table must be int32 [K, M]")
        assert ops.transpose_table(int32([0, 2, -5]), torch.empty(4, 2)).tolist() == [[0, -1, 1, -1]]
    """,
    "map_schedule": """
        refused(lambda: ops.map_schedule(torch.zeros(3, 4, dtype=torch.int64)), "table must be int32 [K, M]")
    """,
    "gather_gemm": """
        made, other = (kernel_map(surface(n), [64, 64], 3, batch_size=1) for n in (900, 901))
        x, w, table, schedule = torch.rand(900, 4), torch.rand(9, 4, 8), made.table, made.schedule
        def gemm(x=x, w=w, bias=None, residual=None, activation="none", table=table, schedule=schedule):
            return ops.gather_gemm(x, w, bias, residual, activation, table, schedule, None, [], False)
        def grad(x=x, grad=torch.rand(900, 8), table=table, schedule=schedule):
            return ops.gather_gemm_weight_grad(x, grad, table, schedule, None, [], False)
        right, right_grad = gemm(), grad()
        for call in (gemm, grad):
            refused(lambda: call(x=x[:899]), "below the 899 rows of x, got row 899")
            refused(lambda: call(x=x[:0]), "below the 0 rows of x")
            refused(lambda: call(schedule=other.schedule), "schedule must be that of the table [9, 900]")
            refused(lambda: call(schedule=[]), "schedule must be")
            refused(lambda: call(schedule=[each.flip(0) for each in schedule]), "schedule must be")
            refused(lambda: call(table=table.flip(0).contiguous()), "schedule must be that of the table")
            refused(lambda: call(table=table.long()), "table must be int32 [K, M]")
            refused(lambda: call(x=x.int()), "x must be")
            for part, place, value in (
                (0, 5, FAR), (0, -1, -1), (1, 5, 256), (1, 700, -3), (1, -1, 200),
                (2, 3, FAR), (2, 3, -1), (2, 0, 1), (2, -1, 0), (2, -1, FAR),
            ):
                spoilt = [each.clone() for each in schedule]
                spoilt[part][place] = value
                refused(lambda: call(schedule=spoilt), "" if part == 0 and value == FAR else "schedule must be")
        # Written to after it was looked at: looked at again.
        copies = [each.clone() for each in schedule]
        assert torch.equal(gemm(schedule=copies), right)
        assert torch.equal(grad(schedule=copies), right_grad)
        copies[0][7] = FAR
        refused(lambda: gemm(schedule=copies), f"got row {FAR}")
        refused(lambda: gemm(w=w[:8]), "weight must be float32 [K, Cin, Cout] = [9, 4, Cout]")
        refused(lambda: gemm(w=w[:, :3]), "weight must be")
        refused(lambda: gemm(bias=torch.rand(7)), "bias must be float32 [8]")
        refused(lambda: gemm(residual=torch.rand(899, 8)), "residual must be float32 [900, 8]")
        refused(lambda: gemm(activation="tanh"), "activation must be one of none, relu")
        refused(lambda: grad(grad=torch.rand(899, 8)), "grad must be float32 [900, Cout]")
    """,
    "a table that a user wrote": """
        from common_kernels import gather_gemm
        from common_kernels.kernel_map import KernelMap
        made = KernelMap(int32([0, 4, -1], [FAR, 1, 2]), 5, torch.zeros(3, 2).int(), (9,))
        x, w = torch.rand(5, 4, requires_grad=True), torch.rand(2, 4, 4)
        refused(lambda: gather_gemm(x.detach(), made, w), f"below the 5 rows of x, got row {FAR}")
        refused(lambda: gather_gemm(x, made, w), f"below the 5 input rows, got row {FAR}")
    """,
    "kernel_map": """
        def find(coords=surface(50), shape=[64, 64], out=[32, 32], k=[2, 2], s=[2, 2], p=[0, 0], d=[1, 1], n=1,
                 kind="strided"):
            return ops.kernel_map(coords, shape, out, k, s, p, d, n, kind)
        find()
        refused(lambda: find(out=[31, 32]), "out_shape must be [32, 32] for grid [64, 64], got [31, 32]")
        refused(lambda: find(out=[33, 32]), "out_shape must be")
        refused(lambda: find(out=[32]), "out_shape must be")
        refused(lambda: find(coords=surface(50).short()), "coords must be int32 or int64 [N, 3]")
        refused(lambda: find(coords=surface(50)[:, :2]), "coords must be int32 or int64 [N, 3]")
        refused(lambda: find(shape=[1, 64], out=[1, 32], k=[1, 2], s=[1, 2]), "coords must lie in")
        refused(lambda: find(s=[0, 2]), "stride must be")
        refused(lambda: find(k=[2]), "kernel must be an int or 2 ints")
        refused(lambda: find(kind="dense"), "kind must be one of")
        refused(lambda: find(shape=[2**30] * 2, out=[2**29] * 2, n=9), "keys reach 2**63")
    """,
    "scatter_add_rows": """
        src, index = torch.rand(4, 3), torch.tensor([0, 1, 2, 0])
        refused(lambda: ops.scatter_add_rows(src, index.repeat(999), src), "one entry for each of the 4 rows")
        refused(lambda: ops.scatter_add_rows(src, index, src[:2]), "below the 2 rows, got 2 at position 2")
        refused(lambda: ops.scatter_add_rows(src, index.float(), src), "index must be int32 or int64 [M]")
    """,
    "gather_rows": """
        refused(lambda: ops.gather_rows(torch.rand(4, 3), torch.tensor([FAR])), "below the 4 rows, got 1073741824")
        refused(lambda: ops.gather_rows(torch.rand(4, 3), torch.tensor([0.5])), "index must be int32 or int64 [M]")
    """,
    "segment_reduce": """
        refused(lambda: ops.segment_reduce(torch.rand(4, 3), torch.tensor([0, 999, 4]), "sum"), "must not fall")
        refused(lambda: ops.segment_reduce(torch.rand(4, 3), torch.tensor([0, 5]), "max"), "end with the 4 rows")
        refused(lambda: ops.segment_reduce(torch.rand(4, 3), torch.tensor([0, 4]), "median"), "reduce must be one of")
        refused(lambda: ops.segment_reduce(torch.rand(4, 3), torch.tensor([]).long(), "sum"), "got none")
    """,
    "pack": """
        refused(lambda: ops.unpack_rows(torch.rand(4, 3), torch.tensor([0, 1, 2, 9]), torch.empty(9, 0), 0), "below 9")
        refused(lambda: ops.unpack_rows(torch.rand(4, 3), torch.tensor([0, 1]), torch.empty(9, 0), 0), "one entry for")
        refused(lambda: ops.pack_rows(torch.rand(4, 3), torch.tensor([FAR])), "")
    """,
    "varlen_attention": """
        q, offsets = torch.rand(6, 2, 8), torch.tensor([0, 2, 6])
        def attend(q=q, k=q, v=q, offsets=offsets, offsets_k=None, bias=None):
            return ops.varlen_attention(q, k, v, offsets, offsets_k, False, None, 1.0, bias, 0)
        refused(lambda: attend(v=q[:1]), "v must be float32 [6, 2, 8] like k")
        refused(lambda: attend(k=q[:1], v=q[:1]), "k must have the 6 rows of q")
        refused(lambda: attend(offsets=torch.tensor([0, 999, 6])), "must not fall")
        refused(lambda: attend(offsets_k=torch.tensor([0, 6])), "offsets_k must be [3]")
        refused(lambda: attend(k=q[:3], v=q[:3], offsets_k=offsets), "offsets_k must begin with 0 and end with the 3")
        refused(lambda: attend(bias=torch.rand(2)), "bias must be floating [6]")
        refused(lambda: attend(bias=torch.rand(6).double()), "bias must be of the scores' dtype")
        refused(lambda: ops.attention_column_sums(q, q[:1], offsets, None, False, None, 1.0, None, -1, False), "k must")
        out, lse, _ = attend()
        def back(grad=out, out=out, lse=lse):
            return ops.varlen_attention_backward(grad, q, q, q, out, lse, offsets, None, False, None, 1.0, None)
        refused(lambda: back(grad=out[:2]), "grad must be [6, 2, 8]")
        refused(lambda: back(out=out[:2]), "out must be [6, 2, 8]")
        refused(lambda: back(lse=lse[:, :2]), "lse must be [2, 6]")
    """,
    "ragged_topk": """
        score, offsets = torch.rand(6), torch.tensor([0, 2, 6])
        refused(lambda: ops.ragged_topk(score, offsets, torch.tensor([1, 5]), None), "between 0 and the 4 rows")
        refused(lambda: ops.ragged_topk(score, offsets, torch.tensor([1]), None), "one number more than keep")
        refused(lambda: ops.ragged_topk(score, offsets, torch.tensor([1, 1]), 3), "total must be the sum of keep, 2")
    """,
    "compact": """
        refused(lambda: ops.compact(torch.ones(5, dtype=torch.uint8)), "mask must be bool [N]")
        assert len(ops.compact(torch.full((70_000,), 255, dtype=torch.uint8).view(torch.bool))) in (0, 70_000)
    """,
    "shift": """
        x = torch.rand(7, 8)
        refused(lambda: ops.channel_shift(x, 4, [2], [1]), "N a multiple of length=4")
        refused(lambda: ops.channel_shift(x, 7, [2, 7], [1, 1]), "at most 8 channels")
        refused(lambda: ops.channel_shift(x, 7, [2, 2], [1]), "groups must be")
        def gemm(length=7, n=[2], w=torch.rand(8, 4), bias=None, residual=None):
            return ops.shift_gemm(x, length, n, [1], w, bias, residual, "none")
        refused(lambda: gemm(length=4), "N a multiple of length=4")
        refused(lambda: gemm(n=[9]), "at most 8 channels")
        refused(lambda: gemm(w=torch.rand(7, 4)), "weight must be float32 [8, O]")
        refused(lambda: gemm(bias=torch.rand(3)), "bias must be float32 [4]")
        refused(lambda: gemm(residual=torch.rand(6, 4)), "residual must be float32 [7, 4]")
    """,
    "coordinate_table": """
        keys, more = torch.arange(50), torch.arange(5000)
        slots = ops.coordinate_table(more)
        refused(lambda: ops.coordinate_lookup(slots, keys, keys), "slots must be int32 [100]")
        refused(lambda: ops.coordinate_lookup(slots[:100], keys, more), "slots must be those of a table of the 50 keys")
        refused(lambda: ops.coordinate_lookup(torch.zeros(100).int(), keys, more), "slots must be those of a table")
        refused(lambda: ops.coordinate_table(keys.int()), "keys must be int64 [N]")
        assert ops.coordinate_lookup(ops.coordinate_table(keys), keys, more).tolist() == [*range(50)] + [-1] * 4950
    """,
    "updates": """
        from common_kernels.row_update import update_rows
        out = torch.zeros(4, 3)
        refused(lambda: update_rows(out, torch.ones(1, 3), torch.tensor([4])), "index must lie in [0, 4), got 4 to 4")
        refused(lambda: update_rows(out, torch.ones(1, 3), torch.tensor([2**32 + 1])), "got 4294967297 to 4294967297")
        # Other bytes than 0 and 1 in a mask: each is one row.
        mask = torch.full((4096,), 255, dtype=torch.uint8).view(torch.bool)
        assert update_rows(torch.zeros(4096, 2), torch.ones(4096, 2), mask).all()
    """,
}


@pytest.fixture(scope="module")
def outcomes() -> str:
    """What a process that runs all cases, one after the other, has to say of them."""
    code = textwrap.dedent(SETUP)
    for name, case in CASES.items():
        body = textwrap.indent(textwrap.dedent(case), "    ")
        code += f"try:\n{body}\n    print({name!r}, 'refused', flush=True)\n"
        code += f"except BaseException as error:\n    print({name!r}, repr(error), flush=True)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=600)
    return f"{done.stdout}ended with {done.returncode}\n{done.stderr}"


@pytest.mark.parametrize("name", CASES)
def test_what_does_not_belong_together_is_refused(name: str, outcomes: str) -> None:
    assert f"{name} refused\n" in outcomes, outcomes


def test_sizes_of_traced_tensors_are_refused_where_a_graph_would_keep_them() -> None:
    check_fixed("length", 3)
    for call in (
        lambda x: channel_shift(x, x.shape[0], [(1, 1)]),
        lambda x: shift_gemm(x, x.shape[0], [(1, 1)], torch.rand(3, 2)),
        lambda x: ragged_topk(x[:, 0], torch.tensor([0, 4]), torch.tensor([4]), x.shape[0])[0],
    ):
        with pytest.raises(ValueError, match="sizes of a traced tensor, which torch.jit.trace would keep"):
            torch.jit.trace(call, torch.rand(4, 3))


def test_sizes_of_traced_tensors_are_followed_where_they_count_rows() -> None:
    def place(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return unpack(rows, torch.arange(2), (like.shape[0], like.shape[1]))

    traced = torch.jit.trace(place, (torch.ones(2, 1), torch.empty(2, 3)), check_trace=False)
    assert traced(torch.ones(2, 1), torch.empty(4, 5)).shape == (4, 5, 1)
