import itertools

import pytest
import torch

from common_kernels.segment_reduce import REDUCTIONS, reference, segment_reduce
from tests.common_kernels.aot import TARGETS, compile_kernel, pointer

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def offsets_of(m, n_segments, dtype=torch.int64):
    """Offsets of segments of random length, empty ones among them."""
    inner = torch.randint(0, m + 1, (n_segments - 1,)).sort()[0]
    return torch.cat([torch.tensor([0]), inner, torch.tensor([m])]).to(dtype)


def float64_reduce(src, offsets, reduce):
    """Oracle: numpy's reductions, segment by segment, in float64."""
    values = src.cpu().double().numpy()
    out = []
    for begin, end in itertools.pairwise(offsets.tolist()):
        segment = values[begin:end]
        if begin == end:
            out.append(torch.full(src.shape[1:], -torch.inf if reduce == "max" else 0.0, dtype=torch.float64))
        else:
            out.append(torch.as_tensor(getattr(segment, reduce)(axis=0)))
    return torch.stack(out) if out else torch.zeros(0, *src.shape[1:], dtype=torch.float64)


def tolerance(dtype):
    # Accumulated in fp32 or fp64 and rounded once.
    rtol = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, torch.finfo(dtype).eps / 2 * 1.01)
    return {"rtol": rtol, "atol": 1e-12 if dtype == torch.float64 else 1e-5}


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("trailing", [(), (1,), (3,), (64,), (2, 5), (0,)], ids=str)
def test_equals_numpy(trailing, dtype, reduce, device):
    src = torch.randn(1003, *trailing).to(dtype)
    for index_dtype in (torch.int32, torch.int64):
        offsets = offsets_of(1003, 300, index_dtype)
        out = segment_reduce(src.to(device), offsets.to(device), reduce)
        assert out.dtype == dtype and out.shape == (300, *trailing)
        expected = float64_reduce(src, offsets, reduce)
        torch.testing.assert_close(out.cpu().double(), expected, **tolerance(dtype))
        meaning = reference.segment_reduce(src, offsets, reduce)
        torch.testing.assert_close(meaning.double(), expected, **tolerance(dtype))


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize(("m", "n_segments"), [(0, 1), (0, 7), (1, 1), (1, 4), (100_003, 3), (50_000, 20_000)])
def test_sizes(m, n_segments, reduce, device):
    src, offsets = torch.randn(m, 4), offsets_of(m, n_segments)
    out = segment_reduce(src.to(device), offsets.to(device), reduce)
    expected = float64_reduce(src, offsets, reduce)
    torch.testing.assert_close(out.cpu().double(), expected, rtol=1e-4, atol=1e-2 if m > 60_000 else 1e-4)


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_no_segments(reduce, device):
    out = segment_reduce(torch.zeros(0, 3, device=device), torch.zeros(1, dtype=torch.int64, device=device), reduce)
    assert out.shape == (0, 3)


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_nan_enters_its_segment_alone(reduce, device):
    nan, inf = float("nan"), float("inf")
    src = torch.tensor([1.0, nan, 3.0, 2.0, 2.0, -inf], device=device)
    out = segment_reduce(src, torch.tensor([0, 3, 5, 6], device=device), reduce)
    assert out[0].isnan() and not out[1].isnan() and out[2] == -inf


def test_equal_bit_for_bit_on_any_number_of_threads(device):
    src, offsets = torch.randn(60_000, 16, device=device), offsets_of(60_000, 5000).to(device)
    before = torch.get_num_threads()
    try:
        results = []
        for n_threads in (1, 2, 3, 2):
            torch.set_num_threads(n_threads)
            results.append(segment_reduce(src, offsets, "mean"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_strided_inputs(device):
    src = torch.randn(30, 8, device=device)
    offsets = torch.tensor([0, 0, 10, 0, 30, 0], device=device)[::2]
    assert torch.equal(segment_reduce(src[:, 2:5], offsets), segment_reduce(src[:, 2:5].clone(), offsets.clone()))


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([1, 5], "begin with 0 and end with the 5 rows of src, got 1 and 5"),
        ([0, 4], "got 0 and 4"),
        ([0, 9], "got 0 and 9"),
        ([0, 3, 2, 5], "offsets must not fall, got 3 then 2 at segment 1"),
        ([0, -1, 5], "got 0 then -1 at segment 0"),
        ([0, 2**40, 5], "at segment 1"),
        ([], "one number more than there are segments, got none"),
    ],
)
def test_offsets_are_checked(offsets, message):
    with pytest.raises(ValueError, match=message):
        segment_reduce(torch.zeros(5, 2), torch.tensor(offsets, dtype=torch.int64))


def test_arguments_are_checked():
    x, offsets = torch.zeros(5, 3), torch.tensor([0, 5])
    with pytest.raises(ValueError, match=r"offsets must be int32 or int64 \[S \+ 1\], got float32 \[5, 3\]"):
        segment_reduce(x, x)
    with pytest.raises(ValueError, match=r"src must be fp32, fp64, fp16 or bf16 \[rows, ...\], got int32 \[5, 3\]"):
        segment_reduce(x.int(), offsets)
    with pytest.raises(ValueError, match="reduce must be one of sum, mean, max, got 'min'"):
        segment_reduce(x, offsets, "min")
    with pytest.raises(ValueError, match="offsets must be on the device of src, cpu, got meta"):
        segment_reduce(x, offsets.to("meta"))


@pytest.mark.parametrize("offsets", [[0, 0], [0, 3, 3, 7]], ids=["empty", "rows"])
@pytest.mark.parametrize("requires_grad", [False, True], ids=["plain", "grad"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_opcheck(reduce, dtype, requires_grad, offsets, device):
    src = torch.randn(offsets[-1], 3, device=device).to(dtype).requires_grad_(requires_grad)
    torch.library.opcheck(torch.ops.trisparse.segment_reduce.default, (src, torch.tensor(offsets).to(device), reduce))


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_gradients(reduce, device):
    offsets = torch.tensor([0, 3, 3, 4, 9], device=device)
    src = torch.randn(9, 2, 2, dtype=torch.float64, device=device, requires_grad=True)
    # An empty segment's maximum is -inf, of which finite differences make NaN.
    keep = torch.tensor([0, 2, 3], device=device)
    assert torch.autograd.gradcheck(lambda x: segment_reduce(x, offsets, reduce)[keep], src)
    assert torch.autograd.gradgradcheck(lambda x: segment_reduce(x, offsets, reduce)[keep], src)


def test_gradient_of_a_maximum_goes_to_its_first_row(device):
    nan = float("nan")
    src = torch.tensor([1.0, 5, 5, 2, 7, 7, nan, nan, 3], device=device, requires_grad=True)
    segment_reduce(src, torch.tensor([0, 4, 4, 6, 9], device=device), "max").backward(
        torch.tensor([1.0, 2, 3, 4], device=device)
    )
    assert src.grad.tolist() == [0, 1, 0, 0, 3, 0, 4, 0, 0]


def test_gradient_of_a_long_mean_in_half_precision(device):
    src = torch.ones(70_000, 1, dtype=torch.float16, device=device, requires_grad=True)
    segment_reduce(src, torch.tensor([0, 70_000], device=device), "mean").backward(
        torch.full((1, 1), 1000.0, dtype=torch.float16, device=device)
    )
    assert src.grad.float().unique().item() == pytest.approx(1000 / 70_000, rel=1e-3)


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_compiles_as_one_graph(reduce, device):
    def twice(x, offsets):
        return segment_reduce(x * 2, offsets, reduce).relu()

    offsets = torch.tensor([0, 2, 2, 7], device=device)
    src = torch.randn(7, 3, device=device, requires_grad=True)
    out = torch.compile(twice, fullgraph=True, backend="aot_eager")(src, offsets)
    out.sum().backward()
    grad, src.grad = src.grad, None
    expected = twice(src, offsets)
    expected.sum().backward()
    assert torch.equal(out, expected) and torch.equal(grad, src.grad)


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("m", "n_segments", "n_cols"), [(1, 1, 1), (300, 70, 5), (70, 40, 200), (9000, 2, 3)])
def test_gpu(m, n_segments, n_cols, dtype, reduce, kernel_device, guarded_empty, poisoned_memory):
    from common_kernels.segment_reduce import gpu

    src = torch.randn(m, n_cols, device=kernel_device).to(dtype)
    offsets = offsets_of(m, n_segments, torch.int32).to(kernel_device)
    out = guarded_empty(n_segments, n_cols, dtype=dtype, device=kernel_device)
    gpu.segment_reduce(src, offsets, reduce, out=out)
    expected = float64_reduce(src, offsets, reduce)
    close = tolerance(dtype) if m < 1000 else {"rtol": 1e-2, "atol": 1e-3}
    if dtype == torch.bfloat16:
        close["rtol"] = torch.finfo(dtype).eps  # the interpreter cuts fp32 off where a GPU rounds
    torch.testing.assert_close(out.cpu().double(), expected, **close)


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_gpu_nan_and_empty_segments(reduce, kernel_device):
    from common_kernels.segment_reduce import gpu

    src = torch.tensor([[1.0], [float("nan")], [3.0]], device=kernel_device)
    out = gpu.segment_reduce(src, torch.tensor([0, 0, 2, 3], device=kernel_device), reduce).flatten().tolist()
    assert out[0] == (-torch.inf if reduce == "max" else 0) and out[1] != out[1] and out[2] == 3


def test_gpu_reads_nothing_outside(kernel_device, guarded_empty):
    from common_kernels.segment_reduce import gpu

    src = guarded_empty(4, 1, device=kernel_device).fill_(1.0)
    out = gpu.segment_reduce(src, torch.tensor([-3, 2, 100], device=kernel_device), "sum")
    assert out.flatten().tolist() == [2, 2]


@pytest.mark.parametrize("pieces", [1, 2, 5])
def test_split_covers_every_segment(pieces):
    gpu = pytest.importorskip("common_kernels.segment_reduce.gpu", exc_type=ImportError)
    offsets = offsets_of(1000, 30)
    cuts = gpu.split(offsets, pieces)
    assert torch.equal(cuts[::pieces], offsets) and bool((cuts.diff() >= 0).all())
    lengths = cuts.diff().view(30, pieces)
    assert bool((lengths.amax(1) - lengths.amin(1) <= 1).all())


@pytest.mark.aot
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_compiles_for(dtype, target):
    import triton.language as tl

    from common_kernels.segment_reduce import gpu

    block_segments, block_cols, num_warps = gpu.launch_config(64)
    for reduce, has_rows in (("sum", True), ("mean", False), ("max", False)):
        signature = {
            "out_ptr": pointer(dtype), "src_ptr": pointer(dtype), "rows_ptr": "*i64", "offsets_ptr": "*i64",
            "counted_ptr": "*i64", "n_rows": "i32", "n_segments": "i32", "n_cols": "i32",
        }  # fmt: skip
        constexprs = {
            "REDUCE": reduce, "HAS_ROWS": has_rows, "ACC": tl.float64 if dtype == torch.float64 else tl.float32,
            "BLOCK_SEGMENTS": block_segments, "BLOCK_COLS": block_cols,
        }  # fmt: skip
        compiled = compile_kernel(gpu.segment_reduce_kernel, target, signature, constexprs, num_warps=num_warps,
                                  enable_fp_fusion=False)  # fmt: skip
        assert "atom" not in compiled.asm  # no atomics: the order of summation is fixed
        if reduce == "max" and target.startswith("sm") and dtype != torch.float64:
            assert "max.NaN" in compiled.asm  # the interpreter's maximum keeps NaN in any case
