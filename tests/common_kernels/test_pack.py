import math

import pytest
import torch

from common_kernels.pack import pack, reference, unpack

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
SHAPES = [(3, 7), (1, 1), (4, 130), (0, 5), (5, 0), (0, 0)]


def padded(shape, side="right"):
    """[B, S] bool: sequences of random length, empty ones among them, with the padding on one side or anywhere."""
    if side == "anywhere":
        return torch.rand(shape) < 0.6
    lengths = torch.randint(0, shape[1] + 1, (shape[0],))
    mask = torch.arange(shape[1]) < lengths[:, None]
    return mask.flip(1) if side == "left" else mask


def values(shape, dtype=torch.float32):
    if dtype.is_floating_point:
        return torch.randn(shape).to(dtype)
    return torch.randint(0, 2 if dtype == torch.bool else 100, shape).to(dtype)


@pytest.mark.parametrize("side", ["right", "left", "anywhere"])
@pytest.mark.parametrize("trailing", [(), (1,), (5,), (3, 2), (0,)], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_one_by_one(shape, trailing, side, device):
    """Against loops over the batch, not the reference."""
    x, mask = values((*shape, *trailing)), padded(shape, side)
    rows, index, offsets = pack(x.to(device), mask.to(device))
    places = [(b, s) for b in range(shape[0]) for s in range(shape[1]) if mask[b, s]]
    assert index.dtype == offsets.dtype == torch.int64
    assert index.tolist() == [b * shape[1] + s for b, s in places]
    assert offsets.tolist() == [sum(b < end for b, _ in places) for end in range(shape[0] + 1)]
    assert rows.shape == (len(places), *trailing)
    for row, (b, s) in zip(rows.cpu(), places):
        assert torch.equal(row, x[b, s])
    back = unpack(rows, index, shape, fill=7)
    assert torch.equal(back.cpu(), torch.where(mask.view(*shape, *[1] * len(trailing)), x, 7))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("trailing", [(), (6,)], ids=str)
def test_equals_reference(trailing, dtype, device):
    x, mask = values((9, 40, *trailing), dtype).to(device), padded((9, 40)).to(device)
    result = pack(x, mask)
    for got, expected in zip(result, reference.pack(x, mask)):
        assert got.dtype == expected.dtype and torch.equal(got, expected)
    order = torch.randperm(len(result[0]), device=device)
    rows, index = result[0][order], result[1][order].int()
    for fill in (0, 1):
        assert torch.equal(unpack(rows, index, (9, 40), fill), reference.unpack(rows, index, (9, 40), fill))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8], ids=str)
def test_integer_mask(dtype, device):
    mask = torch.tensor([[1, 1, 0], [0, 2, 0]], dtype=dtype, device=device)
    x = torch.arange(6, device=device).view(2, 3)
    assert pack(x, mask)[0].tolist() == [0, 1, 4]


@pytest.mark.parametrize("kept", [False, True])
def test_all_and_none(kept, device):
    x = torch.randn(4, 6, 3, device=device)
    rows, index, offsets = pack(x, torch.full((4, 6), kept, device=device))
    assert rows.shape == (24 * kept, 3) and offsets.tolist() == [6 * kept * b for b in range(5)]
    assert torch.equal(unpack(rows, index, (4, 6)), x if kept else torch.zeros_like(x))


def test_result_is_no_view(device):
    x = torch.randn(2, 3, 4, device=device)
    rows, index, _ = pack(x, torch.ones(2, 3, dtype=torch.bool, device=device))
    rows.zero_()
    assert bool((x != 0).all())
    unpack(rows, index, (2, 3)).fill_(1.0)
    assert bool((rows == 0).all())


def test_strided_inputs(device):
    x, mask = torch.randn(7, 5, 8, device=device).transpose(0, 1)[..., 1::2], padded((7, 5)).to(device).T
    for got, expected in zip(pack(x, mask), reference.pack(x, mask)):
        assert torch.equal(got, expected)
    rows, index, _ = pack(x, mask)
    assert torch.equal(unpack(rows[:, 1:3], index, (5, 7)), reference.unpack(rows, index, (5, 7))[..., 1:3])


def test_fill(device):
    rows, index = torch.tensor([2**62 + 1, 5], device=device), torch.tensor([3, 0], device=device)
    assert unpack(rows, index, (2, 2), fill=-(2**62) - 1).tolist() == [[5, -(2**62) - 1], [-(2**62) - 1, 2**62 + 1]]
    assert unpack(rows.bool(), index, (2, 2), fill=True).all()
    assert unpack(rows.float(), index, (2, 2), fill=-math.inf)[0, 1] == -math.inf
    assert unpack(rows.double(), index, (2, 2), fill=math.nan)[1, 0].isnan()


@pytest.mark.parametrize("n", [0, 5])
@pytest.mark.parametrize(
    ("dtype", "requires_grad"),
    [(d, grad) for d in DTYPES for grad in (False, True)[: 1 + d.is_floating_point]],
    ids=str,
)
def test_opcheck(dtype, requires_grad, n, device):
    src = values((8, 3), dtype).to(device).requires_grad_(requires_grad)
    rows = values((n, 3), dtype).to(device).requires_grad_(requires_grad)
    index = torch.randperm(8, device=device)[:n]
    torch.library.opcheck(torch.ops.trisparse.pack_rows.default, (src, index))
    for fill in (0, 1):
        torch.library.opcheck(torch.ops.trisparse.unpack_rows.default, (rows, index, rows.new_empty(8, 0), fill))


def test_gradients(device):
    mask = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [0, 1, 1, 1]], device=device)
    x = torch.randn(3, 4, 2, dtype=torch.float64, device=device, requires_grad=True)
    rows, index, _ = pack(x.detach(), mask)
    rows.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: pack(x, mask)[0], x)
    assert torch.autograd.gradgradcheck(lambda x: pack(x, mask)[0] ** 2, x)
    assert torch.autograd.gradcheck(lambda rows: unpack(rows, index, (3, 4), 3.0), rows)
    assert torch.autograd.gradgradcheck(lambda rows: unpack(rows, index, (3, 4), 3.0) ** 2, rows)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_gradient_is_the_other(dtype, device):
    x, mask = values((5, 9, 4), dtype).to(device).requires_grad_(), padded((5, 9)).to(device)
    rows, index, _ = pack(x, mask)
    grad_rows = torch.randn_like(rows)
    rows.backward(grad_rows)
    assert torch.equal(x.grad, unpack(grad_rows, index, (5, 9)))
    rows = rows.detach().requires_grad_()
    grad = torch.randn_like(x)
    unpack(rows, index, (5, 9), fill=2).backward(grad)
    assert torch.equal(rows.grad, pack(grad, mask)[0])


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiles_as_one_graph(dynamic, device):
    def around(x, mask, weight):
        rows, index, offsets = pack(x, mask)
        return unpack((rows @ weight).relu(), index, mask.shape, fill=1), offsets

    compiled = torch.compile(around, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    weight = torch.randn(3, 4, device=device)
    for shape in [(4, 9), (2, 5)]:
        x, mask = torch.randn(*shape, 3, device=device, requires_grad=True), padded(shape).to(device)
        out, offsets = compiled(x, mask, weight)
        out.sum().backward()
        grad, x.grad = x.grad, None
        expected = around(x, mask, weight)
        expected[0].sum().backward()
        assert torch.equal(out, expected[0]) and torch.equal(offsets, expected[1]) and torch.equal(grad, x.grad)


def test_arguments_are_checked():
    x, mask = torch.zeros(2, 3, 4), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"x must be \[B, S, ...\], got float32 \[2\]"):
        pack(x[:, 0, 0], mask)
    with pytest.raises(ValueError, match=r"mask must be bool or integer \[2, 3\] .*, got float32 \[2, 3\]"):
        pack(x, mask.float())
    with pytest.raises(ValueError, match=r"mask must be bool or integer \[2, 3\] .*, got bool \[3, 2\]"):
        pack(x, mask.T)
    with pytest.raises(ValueError, match="mask must be on the device of x, cpu, got meta"):
        pack(x, mask.to("meta"))
    rows, index = x[0], torch.tensor([0, 1, 5])
    with pytest.raises(ValueError, match=r"index must be int32 or int64 \[T\], got float32 \[3\]"):
        unpack(rows, index.float(), (2, 3))
    with pytest.raises(ValueError, match=r"one entry for each of the 3 rows, got int64 \[2\]"):
        unpack(rows, index[:2], (2, 3))
    with pytest.raises(ValueError, match=r"shape must be \(B, S\), got \(2, -3\)"):
        unpack(rows, index, (2, -3))
    with pytest.raises(ValueError, match=r"shape must be \(B, S\), got \(2, 3, 4\)"):
        unpack(rows, index, (2, 3, 4))
    with pytest.raises(IndexError, match="index must be at least 0 and below 5, got 5 at position 2"):
        unpack(rows, index, (1, 5))
    with pytest.raises(IndexError, match="got -1 at position 0"):
        unpack(rows, torch.tensor([-1, 0, 1]), (2, 3))
    with pytest.raises(ValueError, match="index must name each place at most once, got 4 twice"):
        unpack(rows, torch.tensor([4, 0, 4]), (2, 3))


@pytest.mark.parametrize(
    ("dtype", "fill"), [(torch.int64, 0.5), (torch.int64, math.nan), (torch.uint8, -1), (torch.bool, 2)], ids=str
)
def test_fill_that_the_dtype_does_not_hold(dtype, fill):
    with pytest.raises(ValueError, match=f"fill must be a number that {str(dtype)[6:]} holds, got {fill}"):
        unpack(torch.zeros(1, dtype=dtype), torch.tensor([0]), (1, 2), fill)
