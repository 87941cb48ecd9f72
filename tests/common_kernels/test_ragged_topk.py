import itertools
import math

import pytest
import torch

from common_kernels.ragged_topk import ragged_topk, reference
from tests.common_kernels.aot import TARGETS, compile_kernel, pointer

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
NAN, INF = math.nan, math.inf


def segments(lengths, share=None, dtype=torch.int64):
    """(offsets, keep) of segments with these lengths; keep at random, or the given share of each."""
    lengths = torch.tensor(lengths, dtype=dtype)
    share = torch.rand(len(lengths)) if share is None else torch.tensor(float(share))
    return torch.nn.functional.pad(lengths.cumsum(0, dtype=dtype), [1, 0]), (lengths * share).ceil().to(dtype)


def scores(n, kind="distinct", dtype=torch.float32):
    """Scores of one kind, in random order."""
    if kind == "distinct":
        return torch.randn(n).to(dtype)
    if kind == "ties":
        return torch.randint(-2, 3, (n,)).to(dtype)
    special = torch.tensor([NAN, -NAN, INF, -INF, 0.0, -0.0, 1.0, torch.finfo(dtype).tiny, -torch.finfo(dtype).max])
    return special[torch.randint(0, len(special), (n,))].to(dtype)


def best_rows(score, offsets, keep):
    """Oracle: Python's sort, segment by segment."""
    values, index = score.double().tolist(), []
    for (begin, end), k in zip(itertools.pairwise(offsets.tolist()), keep.tolist()):
        ranked = sorted(
            range(begin, end), key=lambda i: (math.isnan(values[i]), -values[i] if values[i] == values[i] else 0, i)
        )
        index += sorted(ranked[:k])
    return index


def check(result, score, offsets, keep):
    index, ends = result
    assert index.dtype == torch.int64 and ends.dtype == offsets.dtype
    assert index.tolist() == best_rows(score.cpu(), offsets.cpu(), keep.cpu())
    assert ends.tolist() == [0, *itertools.accumulate(keep.tolist())]


LENGTHS = {
    "none": [],
    "one empty": [0],
    "one": [1],
    "uneven": [0, 3, 1, 0, 200, 17, 128, 129, 0],
    "long": [5000, 2, 3000],
    "many": [i % 37 for i in range(1500)],
}


@pytest.mark.parametrize("kind", ["distinct", "ties", "special"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_equals_python_sort(lengths, dtype, kind, device):
    offsets, keep = segments(lengths)
    score = scores(sum(lengths), kind, dtype)
    check(ragged_topk(score.to(device), offsets.to(device), keep.to(device)), score, offsets, keep)
    check(ragged_topk(score.to(device), offsets.to(device), keep.to(device), int(keep.sum())), score, offsets, keep)
    check(reference.ragged_topk(score, offsets, keep), score, offsets, keep)


@pytest.mark.parametrize("share", [0, 1])
def test_none_and_all(share, device):
    offsets, keep = segments([4, 0, 7, 300], share)
    index, ends = ragged_topk(torch.randn(311, device=device), offsets.to(device), keep.to(device))
    assert index.tolist() == list(range(311 * share)) and ends.tolist() == (offsets * share).tolist()


def test_earlier_row_wins(device):
    score = torch.tensor([1.0, 2, 1, 1, 0.0, -0.0, 0.0, NAN, NAN, -INF], device=device)
    offsets, keep = torch.tensor([0, 4, 7, 10], device=device), torch.tensor([2, 2, 2], device=device)
    assert ragged_topk(score, offsets, keep)[0].tolist() == [0, 1, 4, 5, 7, 9]


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64], ids=str)
def test_strided_inputs(index_dtype, device):
    score = torch.randn(60, 3, device=device)[:, 1]
    offsets = torch.tensor([0, 9, 20, 9, 60, 9], dtype=index_dtype, device=device)[::2]
    keep = torch.tensor([5, 9, 11, 9], device=device)[::2]
    check(ragged_topk(score, offsets, keep), score, offsets, keep)


def test_segments_do_not_see_each_other(device):
    score = scores(700, "ties").to(device)
    offsets, keep = segments([300, 150, 250], 0.3)
    together, ends = ragged_topk(score, offsets.to(device), keep.to(device))
    for b, (begin, end) in enumerate(itertools.pairwise(offsets.tolist())):
        alone, _ = ragged_topk(
            score[begin:end], torch.tensor([0, end - begin], device=device), keep[b : b + 1].to(device)
        )
        assert torch.equal(together[ends[b] : ends[b + 1]], alone + begin)


def test_same_on_any_number_of_threads():
    offsets, keep = segments([i % 400 for i in range(500)], 0.4)
    score = scores(int(offsets[-1]), "ties")
    before = torch.get_num_threads()
    try:
        results = []
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            results.append(ragged_topk(score, offsets, keep)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize(
    ("offsets", "keep", "total", "message"),
    [
        ([0, 3, 5], [1, 3], None, "keep must be between 0 and the 2 rows of segment 1, got 3"),
        ([0, 3, 5], [-1, 2], None, "keep must be between 0 and the 3 rows of segment 0, got -1"),
        ([0, 3, 5], [1, 2], 4, "total must be the sum of keep, 3, got 4"),
        ([0, 3, 5], [1, 2], -4, "total must not be negative, got -4"),
        ([1, 3, 5], [1, 2], None, "begin with 0 and end with the 5 scores, got 1 and 5"),
        ([0, 3, 9], [1, 2], None, "got 0 and 9"),
        ([0, 7, 5], [1, 0], None, "offsets must not fall, got 7 then 5 at segment 1"),
        ([0, 5], [1, 0], None, r"one number more than keep has segments, got int64 \[2\] and int64 \[2\]"),
        ([], [], None, r"one number more than keep has segments, got int64 \[0\] and int64 \[0\]"),
    ],
)
def test_values_are_checked(offsets, keep, total, message):
    as_index = {"dtype": torch.int64}
    with pytest.raises(ValueError, match=message):
        ragged_topk(torch.randn(5), torch.tensor(offsets, **as_index), torch.tensor(keep, **as_index), total)


def test_arguments_are_checked():
    score, offsets, keep = torch.randn(5), torch.tensor([0, 5]), torch.tensor([2])
    with pytest.raises(ValueError, match=r"score must be fp32, fp64, fp16 or bf16 \[T\], got int64 \[1\]"):
        ragged_topk(keep, offsets, keep)
    with pytest.raises(ValueError, match=r"score must be .*, got float32 \[1, 5\]"):
        ragged_topk(score[None], offsets, keep)
    with pytest.raises(ValueError, match=r"keep must be int32 or int64 \[B\], got float32 \[5\]"):
        ragged_topk(score, offsets, score)
    with pytest.raises(ValueError, match=r"offsets must be int32 or int64 \[B \+ 1\], got float32 \[5\]"):
        ragged_topk(score, score, keep)
    with pytest.raises(ValueError, match="keep must be on the device of score, cpu, got meta"):
        ragged_topk(score, offsets, keep.to("meta"))


@pytest.mark.parametrize("lengths", [[], [0, 0], [3, 0, 40]], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("known", [False, True], ids=["size unknown", "size known"])
def test_opcheck(known, dtype, lengths, device):
    offsets, keep = segments(lengths, 0.5)
    total = int(keep.sum()) if known else None
    arguments = torch.randn(sum(lengths)).to(device, dtype), offsets.to(device), keep.to(device), total
    torch.library.opcheck(torch.ops.trisparse.ragged_topk.default, arguments)


@pytest.mark.parametrize("known", [False, True], ids=["size unknown", "size known"])
def test_compiles_as_one_graph(known, device):
    offsets, keep = segments([9, 0, 30], 0.5)
    offsets, keep, total = offsets.to(device), keep.to(device), int(keep.sum()) if known else None

    def pruned(x):
        index, ends = ragged_topk(x.sum(1), offsets, keep, total)
        return x.index_select(0, index).relu(), ends

    x = torch.randn(39, 4, device=device, requires_grad=True)
    out, ends = torch.compile(pruned, fullgraph=True, backend="aot_eager")(x)
    out.sum().backward()
    grad, x.grad = x.grad, None
    expected = pruned(x)
    expected[0].sum().backward()
    assert torch.equal(out, expected[0]) and torch.equal(ends, expected[1]) and torch.equal(grad, x.grad)


@pytest.mark.parametrize("kind", ["distinct", "ties", "special"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("lengths", [[0], [1], [0, 3, 1, 0, 130, 17, 128, 0], [1, 700, 1, 1]], ids=str)
def test_gpu(lengths, dtype, kind, kernel_device, guarded_empty):
    from common_kernels.ragged_topk import gpu

    offsets, keep = segments(lengths, dtype=torch.int32)
    score, total = scores(sum(lengths), kind, dtype), int(keep.sum())
    index = guarded_empty(total, dtype=torch.int64, device=kernel_device)
    arguments = score.to(kernel_device), offsets.to(kernel_device), keep.to(kernel_device)
    check(gpu.ragged_topk(*arguments, total, index), score, offsets, keep)


def test_gpu_reads_the_size(kernel_device):
    from common_kernels.ragged_topk import gpu

    offsets, keep = segments([5, 0, 40], 0.5)
    score = torch.randn(45)
    check(
        gpu.ragged_topk(score.to(kernel_device), offsets.to(kernel_device), keep.to(kernel_device)),
        score,
        offsets,
        keep,
    )
    with pytest.raises(ValueError, match="between 0 and the length of its segment, got 41 at segment 2"):
        gpu.ragged_topk(score.to(kernel_device), offsets.to(kernel_device), torch.tensor([1, 0, 41]).to(kernel_device))
    with pytest.raises(ValueError, match="got -3 at segment 0"):
        gpu.ragged_topk(score.to(kernel_device), offsets.to(kernel_device), torch.tensor([-3, 0, 41]).to(kernel_device))
    empty = torch.zeros(0, dtype=torch.int64, device=kernel_device)
    index, ends = gpu.ragged_topk(score[:0].to(kernel_device), torch.zeros_like(empty).new_zeros(1), empty)
    assert index.shape == (0,) and ends.tolist() == [0]


@pytest.mark.parametrize(
    ("offsets", "keep", "total", "expected"),
    [
        ([0, 3, 6], [2, 2], 6, [1, 2, 4, 5, -1, -1]),  # more than there are: the rest is -1
        ([0, 3, 6], [2, 2], 3, [1, 2, 5]),  # fewer: the last segment gets what is left
        ([0, 3, 6], [-1, 9], 3, [3, 4, 5]),
        ([-4, 3, 60], [1, 1], 2, [2, 5]),
    ],
)
def test_gpu_stays_inside_whatever_comes(offsets, keep, total, expected, kernel_device, guarded_empty):
    from common_kernels.ragged_topk import gpu

    score = guarded_empty(6, device=kernel_device).copy_(torch.arange(6.0))
    index = guarded_empty(total, dtype=torch.int64, device=kernel_device)
    keep_, offsets_ = torch.tensor(keep, device=kernel_device), torch.tensor(offsets, device=kernel_device)
    gpu.ragged_topk(score, offsets_, keep_, total, index)
    assert index.tolist() == expected


def test_launch_config():
    gpu = pytest.importorskip("common_kernels.ragged_topk.gpu", exc_type=ImportError)
    assert gpu.launch_config(0, 0) == (128, 1)
    assert gpu.launch_config(32 * 200, 32) == (256, 1)
    assert gpu.launch_config(100_000, 1) == (4096, 8)


@pytest.mark.aot
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_compiles_for(dtype, target):
    from common_kernels.ragged_topk import gpu

    for offsets in ("*i32", "*i64"):
        signature = {"index_ptr": "*i64", "score_ptr": pointer(dtype), "offsets_ptr": offsets, "ends_ptr": offsets,
                     "n_rows": "i32", "total": "i32"}  # fmt: skip
        block, num_warps = gpu.launch_config(32 * 200, 32)
        constexprs = {"BITS": 64 if dtype == torch.float64 else 32, "BLOCK": block}
        compiled = compile_kernel(gpu.ragged_topk_kernel, target, signature, constexprs, num_warps=num_warps)
        assert "atom" not in compiled.asm  # the same rows in the same order each time
