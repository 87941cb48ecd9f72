import numpy as np
import pytest
import torch

from common_kernels.gather_rows import gather_rows, reference, scatter_add_rows
from tests.common_kernels.aot import TARGETS, compile_kernel, pointer

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
ANY = [*FLOATS, torch.int64, torch.uint8, torch.bool, torch.complex64, torch.complex128]
TRAILING = [(), (1,), (3,), (64,), (2, 5), (0,)]


def rows(n, *trailing, dtype=torch.float32, device="cpu"):
    values = torch.randn(n, *trailing, device=device) * 10
    return values > 0 if dtype == torch.bool else values.abs().to(dtype)


def indices(m, n, dtype=torch.int64, device="cpu"):
    """Random rows, some repeated, some -1."""
    return torch.randint(-1, n, (m,), device=device).to(dtype)


def numpy_gather(src, index):
    """Oracle: a row of zeros behind the last row is where numpy finds index -1."""
    padded = np.concatenate([src.numpy(), np.zeros_like(src.numpy(), shape=(1, *src.shape[1:]))])
    return torch.from_numpy(padded[index.numpy()])


def float64_scatter(src, index, n_rows):
    out = torch.zeros(n_rows + 1, *src.shape[1:], dtype=torch.float64)
    return out.index_add_(0, index.cpu().long() % (n_rows + 1), src.cpu().double())[:n_rows]


@pytest.mark.parametrize("trailing", TRAILING, ids=str)
@pytest.mark.parametrize("dtype", [t for t in ANY if t != torch.bfloat16], ids=str)
def test_gather_equals_numpy(trailing, dtype, device):
    src = rows(37, *trailing, dtype=dtype)
    for index_dtype in (torch.int32, torch.int64):
        index = indices(1003, 37, index_dtype)
        out = gather_rows(src.to(device), index.to(device))
        assert out.dtype == dtype
        assert torch.equal(out.cpu(), numpy_gather(src, index))


def test_gather_bfloat16_moves_bits(device):
    src = rows(37, 5).to(torch.bfloat16)
    index = indices(99, 37)
    out = gather_rows(src.to(device), index.to(device)).cpu()
    assert torch.equal(out.view(torch.int16), numpy_gather(src.view(torch.int16), index))


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 5), (5, 0), (1, 1), (70_001, 90_001)])
def test_sizes(n, m, device):
    index = indices(m, n)
    src = rows(n, 3)
    gathered = gather_rows(src.to(device), index.to(device)).cpu()
    assert torch.equal(gathered, numpy_gather(src, index))
    values = rows(m, 3)
    summed = scatter_add_rows(values.to(device), index.to(device), n).cpu()
    torch.testing.assert_close(summed.double(), float64_scatter(values, index, n), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("trailing", TRAILING, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_scatter_equals_float64_sums(trailing, dtype, device):
    for index_dtype in (torch.int32, torch.int64):
        src = torch.randn(1003, *trailing).to(dtype)
        index = indices(1003, 37, index_dtype)
        out = scatter_add_rows(src.to(device), index.to(device), 37)
        assert out.dtype == dtype
        # The sum is exact to fp32 before it is rounded once: half precision costs no more than one rounding.
        expected = float64_scatter(src, index, 37)
        rtol = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, torch.finfo(dtype).eps / 2 * 1.01)
        atol = 1e-12 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(out.cpu().double(), expected, rtol=rtol, atol=atol)
        meaning = reference.scatter_add_rows(src, index, 37)
        torch.testing.assert_close(meaning.double(), expected, rtol=rtol, atol=atol)


def test_scatter_adds_in_ascending_order(device):
    # 1 is lost beside 1e8 in fp32, so the sum tells the order of its terms.
    src = torch.tensor([1e8, 1.0, -1e8, 1.0], device=device)
    index = torch.zeros(4, dtype=torch.int32, device=device)
    assert scatter_add_rows(src, index, 1).item() == 1.0


def test_scatter_is_equal_bit_for_bit_on_any_number_of_threads(device):
    src, index = torch.randn(60_000, 16, device=device), indices(60_000, 5000, device=device)
    before = torch.get_num_threads()
    try:
        results = []
        for n_threads in (1, 2, 3, 2):
            torch.set_num_threads(n_threads)
            results.append(scatter_add_rows(src, index, 5000))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_strided_and_unaligned_inputs(device):
    wide = rows(50, 12, device=device)
    index = indices(200, 50, device=device)
    expected = reference.gather_rows(wide[:, 3:7].contiguous(), index)
    assert torch.equal(gather_rows(wide[:, 3:7], index), expected)
    # Rows of 8 bytes that begin 4 bytes behind an 8-byte boundary, and an index of every other element.
    shifted = wide.flatten()[1:101].view(50, 2)
    every_other = torch.stack([index, index], 1)[:, 0]
    assert torch.equal(gather_rows(shifted, every_other), reference.gather_rows(shifted, index))
    # One row, and none, with a stride that is no multiple of the width.
    one, none = torch.as_strided(wide, (1, 2), (5, 1)), torch.as_strided(wide, (0, 2), (5, 1))
    assert torch.equal(gather_rows(one, torch.zeros(3, dtype=torch.int64, device=device)), one.expand(3, 2))
    assert not gather_rows(none, torch.full((3,), -1, device=device)).any()
    values = rows(200, 8, device=device).T.contiguous().T
    torch.testing.assert_close(scatter_add_rows(values, every_other, 50), reference.scatter_add_rows(values, index, 50))


@pytest.mark.parametrize("bad", [-2, 5, 2**31 - 1])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_index_outside_raises(bad, dtype):
    index = torch.tensor([0, -1, bad, 3], dtype=dtype)
    message = f"index must be -1 or below the 5 rows, got {bad} at position 2"
    with pytest.raises(IndexError, match=message):
        gather_rows(torch.zeros(5, 2), index)
    with pytest.raises(IndexError, match=message):
        scatter_add_rows(torch.zeros(4, 2), index, 5)


def test_index_outside_raises_where_nothing_is_moved():
    with pytest.raises(IndexError, match="below the 0 rows, got 0 at position 1"):
        gather_rows(torch.zeros(0, 2), torch.tensor([-1, 0]))
    with pytest.raises(IndexError, match="below the 0 rows, got 0 at position 1"):
        scatter_add_rows(torch.zeros(2, 2), torch.tensor([-1, 0]), 0)
    with pytest.raises(IndexError, match="below the 3 rows, got 3 at position 0"):
        gather_rows(torch.zeros(3, 0), torch.tensor([3]))


def test_arguments_are_checked():
    x, index = torch.zeros(5, 3), torch.zeros(5, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"index must be int32 or int64 \[M\], got float32 \[5, 3\]"):
        gather_rows(x, x)
    with pytest.raises(ValueError, match=r"src must be \[rows, ...\], got float32 \[\]"):
        gather_rows(torch.tensor(1.0), index)
    with pytest.raises(ValueError, match="index must be on the device of src, cpu, got meta"):
        gather_rows(x, index.to("meta"))
    with pytest.raises(ValueError, match=r"src must be fp32, fp64, fp16 or bf16 \[rows, ...\], got int64 \[5\]"):
        scatter_add_rows(index, index, 5)
    with pytest.raises(ValueError, match=r"one entry for each of the 5 rows, got int64 \[4\]"):
        scatter_add_rows(x, index[:4], 5)
    with pytest.raises(ValueError, match="n_rows must not be negative, got -1"):
        scatter_add_rows(x, index, -1)


@pytest.mark.parametrize("m", [0, 7])
@pytest.mark.parametrize("requires_grad", [False, True], ids=["plain", "grad"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_opcheck(dtype, requires_grad, m, device):
    index = indices(m, 5, device=device)
    src = torch.randn(5, 3, device=device).to(dtype).requires_grad_(requires_grad)
    torch.library.opcheck(torch.ops.trisparse.gather_rows.default, (src, index))
    src = torch.randn(m, 3, device=device).to(dtype).requires_grad_(requires_grad)
    torch.library.opcheck(torch.ops.trisparse.scatter_add_rows.default, (src, index, src.new_empty(5, 0)))


def test_gradients(device):
    index = torch.tensor([3, -1, 0, 3, 3, 4], device=device)
    src = torch.randn(5, 2, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: gather_rows(x, index), src)
    assert torch.autograd.gradgradcheck(lambda x: gather_rows(x, index), src)
    src = torch.randn(6, 2, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: scatter_add_rows(x, index, 5), src)
    assert torch.autograd.gradgradcheck(lambda x: scatter_add_rows(x, index, 5), src)


def test_compiles_as_one_graph(device):
    def both(src, index):
        return scatter_add_rows(gather_rows(src, index).relu(), index, src.shape[0])

    src = torch.randn(6, 3, device=device, requires_grad=True)
    index = indices(9, 6, device=device)
    out = torch.compile(both, fullgraph=True, backend="aot_eager")(src, index)
    out.sum().backward()
    grad, src.grad = src.grad, None
    expected = both(src, index)
    expected.sum().backward()
    assert torch.equal(out, expected) and torch.equal(grad, src.grad)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.bool, torch.complex128], ids=str)
@pytest.mark.parametrize("n_cols", [1, 5, 300])
def test_gpu_gather(dtype, n_cols, kernel_device, guarded_empty):
    from common_kernels.gather_rows import gpu

    src = rows(41, n_cols, dtype=dtype, device=kernel_device)
    index = indices(600, 41, torch.int32, kernel_device)
    out = guarded_empty(600, n_cols, dtype=dtype, device=kernel_device) if dtype in FLOATS else None
    out = gpu.gather_rows(src, index, out)
    assert torch.equal(out, reference.gather_rows(src, index))


def test_gpu_gather_reads_nothing_outside(kernel_device, guarded_empty):
    from common_kernels.gather_rows import gpu

    src = guarded_empty(5, 3, device=kernel_device).fill_(1.0)
    index = torch.tensor([0, 5, -2, 4, 6, -1], device=kernel_device)
    expected = torch.tensor([1.0, 0, 0, 1, 0, 0], device=kernel_device)[:, None].expand(6, 3)
    assert torch.equal(gpu.gather_rows(src, index), expected)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("m", "n_rows"), [(0, 5), (5, 0), (1, 1), (333, 90), (1200, 3)])
def test_gpu_scatter(dtype, m, n_rows, kernel_device, poisoned_memory):
    from common_kernels.gather_rows import gpu

    src = torch.randn(m, 2, 3, device=kernel_device).to(dtype)
    index = indices(m, n_rows, torch.int32, kernel_device)
    out = gpu.scatter_add_rows(src, index, n_rows)
    assert out.dtype == dtype and out.shape == (n_rows, 2, 3)
    torch.testing.assert_close(out, reference.scatter_add_rows(src, index, n_rows), rtol=2e-2 if dtype.itemsize == 2
                               else 1e-5, atol=1e-5)  # fmt: skip


def test_gpu_scatter_skips_what_is_outside(kernel_device):
    from common_kernels.gather_rows import gpu

    index = torch.tensor([-1, 0, 2, 7, -5, 2], device=kernel_device)
    out = gpu.scatter_add_rows(torch.ones(6, 1, device=kernel_device), index, 3)
    assert out.flatten().tolist() == [1, 0, 2]


@pytest.mark.aot
@pytest.mark.parametrize("target", TARGETS)
def test_gather_compiles_for(target):
    from common_kernels.gather_rows import gpu

    for word in gpu.WORDS.values():
        for index in (torch.int32, torch.int64):
            block_rows, block_cols, num_warps = gpu.launch_config(64)
            signature = {
                "out_ptr": pointer(word), "src_ptr": pointer(word), "index_ptr": pointer(index),
                "n_out": "i32", "n_rows": "i32", "n_cols": "i32",
            }  # fmt: skip
            blocks = {"BLOCK_ROWS": block_rows, "BLOCK_COLS": block_cols}
            compile_kernel(gpu.gather_rows_kernel, target, signature, blocks, num_warps=num_warps)


@pytest.mark.parametrize("n_cols", [0, 1, 3, 64, 100, 256, 10_000])
def test_launch_config(n_cols):
    gpu = pytest.importorskip("common_kernels.gather_rows.gpu", exc_type=ImportError)
    block_rows, block_cols, num_warps = gpu.launch_config(n_cols)
    assert block_rows & (block_rows - 1) == 0 and block_cols & (block_cols - 1) == 0
    assert block_rows * block_cols <= 4096 and block_cols >= min(n_cols, 256) and num_warps in (1, 2, 4, 8)
