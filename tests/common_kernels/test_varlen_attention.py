"""Attention within segments: every combination of its arguments against dense float64 attention."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from common_kernels.checks import FLOATS
from common_kernels.varlen_attention import attention_column_sums, cpu_kernels, reference, varlen_attention

LENGTHS = (0, 1, 2, 3, 7, 7, 33, 0, 200)
LENGTHS_K = (3, 1, 5, 0, 9, 9, 40, 2, 150)
CASES = [
    pytest.param(*case, id="-".join(name for name, on in zip(("causal", "window", "gqa", "bias", "other"), case) if on))
    for case in itertools.product((False, True), (None, 5), (False, True), (False, True), (False, True))
]


@pytest.fixture(params=["kernels", "library"])
def implementation(request, monkeypatch):
    """Both ways on a CPU: our kernels, where this processor has AVX-512, and torch's fused one."""
    if request.param == "library":
        monkeypatch.setattr(cpu_kernels, "AVAILABLE", False)
    elif not cpu_kernels.AVAILABLE:
        pytest.skip("the kernels are written for AVX-512")
    return request.param


def offsets_of(lengths, dtype=torch.int64):
    return torch.tensor([0, *lengths]).cumsum(0).to(dtype)


def inputs(lengths, lengths_k=None, heads=4, kv_heads=4, size=16, dtype=torch.float32):
    n, n_k = sum(lengths), sum(lengths if lengths_k is None else lengths_k)
    shapes = ((n, heads, size), (n_k, kv_heads, size), (n_k, kv_heads, size))
    return tuple(torch.randn(shape).to(dtype) for shape in shapes)


def dense(q, k, v, bias, offsets, offsets_k, causal, window, scale=None):
    """(out, sums per key head) of one dense float64 attention over all rows at once: only the mask knows segments."""
    segment, segment_k = (
        torch.repeat_interleave(torch.arange(len(o) - 1), o.diff().long()) for o in (offsets, offsets_k)
    )
    at = torch.arange(len(q)) - offsets[segment] + (offsets_k.diff() - offsets.diff())[segment]
    at_k = torch.arange(len(k)) - offsets_k[segment_k]
    mask = segment[:, None] == segment_k
    if causal:
        mask &= at_k <= at[:, None]
    if window is not None:
        mask &= (at[:, None] - at_k).abs() < window
    q, k, v = (x.double().transpose(0, 1) for x in (q, k, v))
    group = len(q) // len(k)
    k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
    s = (q @ k.mT) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        s = s + bias.double()
    p = s.masked_fill(~mask, -torch.inf).softmax(-1).nan_to_num(0.0)
    return (p @ v).transpose(0, 1), p.sum(1).unflatten(0, (-1, group)).sum(1)


def tolerance(dtype):
    return {torch.float32: 2e-6, torch.float64: 1e-12, torch.float16: 3e-3, torch.bfloat16: 2e-2}[dtype]


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("causal", "window", "gqa", "bias", "other"), CASES)
def test_matches_dense_float64(causal, window, gqa, bias, other, dtype):
    offsets = offsets_of(LENGTHS)
    offsets_k = offsets_of(LENGTHS_K, torch.int32) if other else None
    q, k, v = inputs(LENGTHS, LENGTHS_K if other else None, kv_heads=2 if gqa else 4, dtype=dtype)
    bias = torch.randn(len(k)) if bias else None
    mine = dict(offsets_k=offsets_k, causal=causal, window=window, bias=bias)
    out, sums = varlen_attention(q, k, v, offsets, **mine, importance=True)
    expected, per_head = dense(q, k, v, bias, offsets, offsets if offsets_k is None else offsets_k, causal, window)
    assert out.dtype == dtype and sums.dtype == torch.float32
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=tolerance(dtype))
    close = dict(rtol=1e-5 if dtype in (torch.float32, torch.float64) else 1e-2, atol=1e-4)
    torch.testing.assert_close(sums.double(), per_head.sum(0), **close)
    alone = attention_column_sums(q, k, offsets, **mine, per_head=True)
    torch.testing.assert_close(alone.double(), per_head, **close)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("size", [8, 24, 32, 64, 80, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_head_sizes(size, dtype):
    lengths = (1, 5, 70, 300)
    q, k, v = inputs(lengths, size=size, heads=3, kv_heads=3, dtype=dtype)
    out, sums = varlen_attention(q, k, v, offsets_of(lengths), importance=True)
    expected, per_head = dense(q, k, v, None, offsets_of(lengths), offsets_of(lengths), False, None)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=tolerance(dtype))
    torch.testing.assert_close(sums.double(), per_head.sum(0), rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=0)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_matches_padded_library_attention(causal):
    lengths, size = (1, 2, 3, 7, 33, 200), 32
    q, k, v = inputs(lengths, size=size)
    padded = [torch.zeros(len(lengths), max(lengths), 4, size) for _ in range(3)]
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    for full, x in zip(padded, (q, k, v)):
        full[real] = x
    mask = real[:, None, None] & (torch.ones(200, 200, dtype=torch.bool).tril() if causal else torch.tensor(True))
    expected = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in padded), attn_mask=mask).transpose(1, 2)
    out = varlen_attention(q, k, v, offsets_of(lengths), causal=causal)
    torch.testing.assert_close(out, expected[real], rtol=0, atol=2e-6)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strided_views_as_models_hand_them(dtype):
    lengths = (5, 40, 7)
    total, heads, size = sum(lengths), 4, 32
    fused = torch.randn(1, total, 3 * heads * size).to(dtype)
    views = [x.view(1, total, heads, size).transpose(1, 2)[0].transpose(0, 1) for x in fused.chunk(3, -1)]
    assert not views[1].is_contiguous()
    out = varlen_attention(*views, offsets_of(lengths), importance=True)
    expected = varlen_attention(*(x.clone(memory_format=torch.contiguous_format) for x in views),
                                offsets_of(lengths), importance=True)  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(out, expected))
    by_head = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in views]
    assert torch.equal(varlen_attention(*by_head, offsets_of(lengths)), out[0])
    last_strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in views]
    assert last_strided[0].stride(-1) != 1
    assert torch.equal(varlen_attention(*last_strided, offsets_of(lengths)), out[0])


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_independent_of_batch_and_threads(dtype, causal):
    lengths = (3, 130, 17, 64, 64, 64, 1, 257, 64)
    q, k, v = inputs(lengths, size=32, dtype=dtype)
    offsets = offsets_of(lengths)
    before = torch.get_num_threads()
    try:
        results = []
        for n_threads in (1, 2, 3, 2):
            torch.set_num_threads(n_threads)
            results.append(varlen_attention(q, k, v, offsets, causal=causal, importance=True))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))
    for begin, end in itertools.pairwise(offsets.tolist()):
        here = slice(begin, end)
        alone = varlen_attention(q[here].clone(), k[here].clone(), v[here].clone(), torch.tensor([0, end - begin]),
                                 causal=causal, importance=True)  # fmt: skip
        assert torch.equal(alone[0], results[0][0][here]) and torch.equal(alone[1], results[0][1][here])


@pytest.mark.usefixtures("implementation")
def test_importance_sums_to_heads_times_queries():
    q, k, v = inputs(LENGTHS, size=32)
    bias = torch.randn(len(k))
    offsets = offsets_of(LENGTHS)
    for importance in (True, 1, 4, 1000):
        for causal in (False, True):
            _, sums = varlen_attention(q, k, v, offsets, causal=causal, bias=bias, importance=importance)
            totals = torch.stack([each.sum() for each in sums.split(list(LENGTHS))])
            torch.testing.assert_close(totals, 4.0 * torch.tensor(LENGTHS), rtol=2e-5, atol=0)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_estimate_is_the_scaled_sum_of_evenly_strided_queries(dtype):
    n, count = 50, 4
    q, k, v = inputs((20, n), size=32, dtype=dtype)
    offsets = offsets_of((20, n))
    chosen = torch.tensor([11, 24, 36, 49])  # ends with the last query
    _, sums = varlen_attention(q, k, v, offsets, importance=count)
    _, expected = dense(q[20:][chosen], k[20:], v[20:], None, *(torch.tensor([0, m]) for m in (count, n)), False, None)
    torch.testing.assert_close(sums[20:].double(), expected.sum(0) * n / count, rtol=1e-3, atol=1e-3)
    alone = attention_column_sums(q, k, offsets, importance=count)
    torch.testing.assert_close(alone, sums, rtol=1e-5 if dtype == torch.float32 else 1e-3, atol=0)


@pytest.mark.usefixtures("implementation")
def test_decode_step():
    """One query at the end of long keys sees all of them, or the last `window`."""
    lengths_k = (1, 17, 300)
    q, k, v = inputs((1, 1, 1), lengths_k, heads=8, kv_heads=2, size=64)
    offsets, offsets_k = offsets_of((1, 1, 1)), offsets_of(lengths_k)
    expected, _ = dense(q, k, v, None, offsets, offsets_k, False, None)
    out = varlen_attention(q, k, v, offsets, offsets_k=offsets_k, causal=True)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=2e-6)
    near = varlen_attention(q, k, v, offsets, offsets_k=offsets_k, causal=True, window=17)
    torch.testing.assert_close(near[:2], out[:2], rtol=0, atol=2e-6)
    assert not torch.allclose(near[2], out[2])


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_queries_that_see_no_key_give_zeros(dtype):
    q, k, v = inputs((4, 2), (2, 2), dtype=dtype)
    bias = torch.tensor([0.0, 0.0, -torch.inf, -torch.inf])
    out, sums = varlen_attention(q, k, v, offsets_of((4, 2)), offsets_k=offsets_of((2, 2)), causal=True, bias=bias,
                                 importance=True)  # fmt: skip
    assert not out[:2].any() and not out[4:].any() and bool(out[2:4].any())
    torch.testing.assert_close(sums, torch.tensor([float(sums[0]), 8 - float(sums[0]), 0, 0]))


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("lengths", [(), (0,), (0, 0)], ids=["no-segment", "empty", "two-empty"])
def test_no_rows(lengths, dtype):
    q, k, v = (x.requires_grad_() for x in inputs(lengths, dtype=dtype))
    out, sums = varlen_attention(q, k, v, offsets_of(lengths), importance=True)
    assert out.shape == (0, 4, 16) and out.dtype == dtype and sums.shape == (0,)
    out.sum().backward()
    assert q.grad.shape == (0, 4, 16)
    assert attention_column_sums(q, k, offsets_of(lengths), per_head=True).shape == (4, 0)


@pytest.mark.usefixtures("implementation")
def test_keys_without_queries_and_queries_without_keys():
    q, k, v = (x.requires_grad_() for x in inputs((0, 3), (5, 0)))
    out, sums = varlen_attention(q, k, v, offsets_of((0, 3)), offsets_k=offsets_of((5, 0)), importance=True)
    out.sum().backward()
    assert not out.any() and sums.tolist() == [0] * 5 and not k.grad.any() and not q.grad.any()


@pytest.mark.usefixtures("implementation")
def test_large_scores_and_scale():
    q, k, v = inputs((70,), size=32)
    out = varlen_attention(q * 300, k * 300, v, offsets_of((70,)), scale=0.5)
    expected, _ = dense(q * 300, k * 300, v, None, offsets_of((70,)), offsets_of((70,)), False, None, 0.5)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-3)
    assert torch.equal(varlen_attention(q, k, v, offsets_of((70,)), scale=32**-0.5),
                       varlen_attention(q, k, v, offsets_of((70,))))  # fmt: skip


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("scale", [-0.3, 0.0, 2.0])
def test_any_scale_with_a_mask(scale):
    lengths = (9, 70)
    offsets = offsets_of(lengths)
    q, k, v = inputs(lengths, size=32)
    out, sums = varlen_attention(q, k, v, offsets, scale=scale, causal=True, importance=True)
    expected, per_head = dense(q, k, v, None, offsets, offsets, True, None, scale)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=5e-6)
    torch.testing.assert_close(sums.double(), per_head.sum(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_nan_reaches_what_sees_it_and_nothing_else(dtype):
    if not cpu_kernels.AVAILABLE and dtype != torch.float64:
        pytest.skip("torch's fused kernel gives zeros for a NaN")
    lengths = (20, 60, 20)
    q, k, v = inputs(lengths, size=32, dtype=dtype)
    q[25, 1], k[85, 2, 3] = torch.nan, torch.nan
    out = varlen_attention(q, k, v, offsets_of(lengths)).isnan().all(-1)
    expected = torch.zeros(100, 4, dtype=torch.bool)
    expected[25, 1] = True
    expected[80:, 2] = True
    assert torch.equal(out, expected)


def test_kernels_write_all_of_their_output(poisoned_memory):
    q, k, v = inputs(LENGTHS, LENGTHS_K, size=48)
    bias = torch.zeros(len(k))
    out, sums = varlen_attention(q, k, v, offsets_of(LENGTHS), offsets_k=offsets_of(LENGTHS_K), causal=True, window=9,
                                 bias=bias, importance=True)  # fmt: skip
    assert bool(out.isfinite().all()) and bool(sums.isfinite().all())


@pytest.mark.parametrize(("causal", "window", "gqa", "bias", "other"), CASES)
def test_gradients(causal, window, gqa, bias, other):
    lengths, lengths_k = (4, 0, 5, 1), (3, 2, 7, 0)
    offsets, offsets_k = offsets_of(lengths), offsets_of(lengths_k) if other else None
    tensors = list(inputs(lengths, lengths_k if other else None, 2, 1 if gqa else 2, 3, torch.float64))
    if bias:
        tensors.append(torch.randn(len(tensors[1]), dtype=torch.float64))
    window = None if window is None else 3

    def call(q, k, v, bias=None):
        return varlen_attention(q, k, v, offsets, offsets_k=offsets_k, causal=causal, window=window, bias=bias)

    assert torch.autograd.gradcheck(call, [x.requires_grad_() for x in tensors], fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_gradients_match_dense(causal, dtype):
    lengths = (1, 40, 150)
    offsets = offsets_of(lengths)
    tensors = [*inputs(lengths, kv_heads=2, size=32, dtype=dtype), torch.randn(sum(lengths))]
    mine = [x.clone().requires_grad_() for x in tensors]
    theirs = [x.double().requires_grad_() for x in tensors]
    weight = torch.randn(sum(lengths), 4, 32).to(dtype)
    (varlen_attention(*mine[:3], offsets, bias=mine[3], causal=causal) * weight).sum().backward()
    (dense(*theirs, offsets, offsets, causal, None)[0] * weight).sum().backward()
    for x, y in zip(mine, theirs):
        atol = 2e-5 if dtype == torch.float32 else 2e-2 * float(y.grad.abs().max())
        torch.testing.assert_close(x.grad.double(), y.grad, rtol=0, atol=atol)


def test_importance_has_no_gradient():
    q, k, v = (x.requires_grad_() for x in inputs((5,)))
    out, sums = varlen_attention(q, k, v, offsets_of((5,)), importance=True)
    assert out.requires_grad and not sums.requires_grad
    assert not attention_column_sums(q, k, offsets_of((5,))).requires_grad


@pytest.mark.parametrize("queries", [0, -1, 3])
@pytest.mark.parametrize("requires_grad", [False, True], ids=["plain", "grad"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("lengths", [(0,), (3, 0, 6)], ids=["empty", "rows"])
def test_opcheck(lengths, dtype, requires_grad, queries):
    q, k, v = (x.requires_grad_(requires_grad) for x in inputs(lengths, kv_heads=2, dtype=dtype))
    bias = torch.zeros(len(k), dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    args = (q, k, v, offsets_of(lengths), None, True, 4, 0.25, bias, queries)
    torch.library.opcheck(torch.ops.trisparse.varlen_attention.default, args)
    if queries:
        args = (q.detach(), k.detach(), offsets_of(lengths), None, True, None, 0.25, None, queries, queries < 0)
        torch.library.opcheck(torch.ops.trisparse.attention_column_sums.default, args)


def test_compiles_as_one_graph():
    def twice(q, k, v, offsets, bias):
        out, sums = varlen_attention(q * 2, k, v, offsets, causal=True, bias=bias, importance=2)
        return out.relu(), sums, attention_column_sums(q, k, offsets, window=3)

    offsets = offsets_of((4, 0, 9))
    tensors = [x.requires_grad_() for x in (*inputs((4, 0, 9)), torch.randn(13))]
    results = []
    for function in (twice, torch.compile(twice, fullgraph=True, backend="aot_eager")):
        out = function(*tensors[:3], offsets, tensors[3])
        out[0].sum().backward()
        results.append([*out, *(x.grad for x in tensors)])
        for x in tensors:
            x.grad = None
    assert all(torch.equal(a, b) for a, b in zip(*results))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(q=torch.zeros(5, 4)), r"q must be fp32, fp64, fp16 or bf16 \[T, H, D\], got float32 \[5, 4\]"),
        (dict(q=torch.zeros(5, 4, 8).int()), r"q must be .*, got int32 \[5, 4, 8\]"),
        (dict(q=torch.zeros(5, 0, 8)), r"q must be .*, got float32 \[5, 0, 8\]"),
        (dict(k=torch.zeros(5, 4, 6)), r"k must be of q's dtype and head size.*got float32 \[5, 4, 6\]"),
        (dict(k=torch.zeros(5, 4, 8).half()), "k must be of q's dtype .* got float16"),
        (dict(k=torch.zeros(5, 3, 8)), "the 4 heads of q must be a multiple of the heads of k, got 3"),
        (dict(k=torch.zeros(6, 4, 8)), "k must have the 5 rows of q where offsets_k is not given"),
        (dict(v=torch.zeros(5, 2, 8)), r"v must be float32 \[5, 4, 8\] like k, got float32 \[5, 2, 8\]"),
        (dict(k=torch.zeros(5, 4, 8, device="meta")), "k must be on the device of q, cpu, got meta"),
        (dict(offsets=torch.zeros(2)), r"offsets must be int32 or int64 \[B \+ 1\], got float32 \[2\]"),
        (dict(offsets=torch.zeros(0).long()), "offsets must hold one number more than there are segments, got none"),
        (dict(offsets=torch.tensor([0, 4])), "offsets must begin with 0 and end with the 5 rows of q, got 0 and 4"),
        (dict(offsets=torch.tensor([0, 4, 3, 5])), "offsets must not fall, got 4 then 3 at segment 1"),
        (dict(offsets_k=torch.tensor([0, 2, 5])), r"offsets_k must be \[2\] like offsets, got int64 \[3\]"),
        (dict(offsets_k=torch.tensor([0, 6])), "offsets_k must begin with 0 and end with the 5 rows of k, got 0 and 6"),
        (dict(scale=float("nan")), "scale must be a finite number, got nan"),
        (dict(window=0), "window must be None or at least 1, got 0"),
        (dict(bias=torch.zeros(4)), r"bias must be floating \[5\], one for each row of k, got float32 \[4\]"),
        (dict(bias=torch.zeros(5).int()), r"bias must be floating \[5\]"),
        (dict(importance=0), "importance must be False, True or a number of queries of at least 1, got 0"),
    ],
)
def test_arguments_are_checked(change, message):
    x = torch.zeros(5, 4, 8)
    arguments = dict(q=x, k=x, v=x, offsets=torch.tensor([0, 5])) | change
    with pytest.raises(ValueError, match=message):
        varlen_attention(**arguments)


def test_column_sums_without_importance_are_refused():
    x = torch.zeros(5, 4, 8)
    with pytest.raises(ValueError, match="importance must be True or a number of queries of at least 1, got False"):
        attention_column_sums(x, x, torch.tensor([0, 5]), importance=False)


@pytest.mark.parametrize(("n", "queries"), [(1, 1), (10, 1), (10, 3), (512, 32), (33, 32), (5, 9)])
def test_strided_queries(n, queries):
    chosen = list(reference.strided_queries(n, queries))
    assert len(chosen) == min(n, queries) and chosen[-1] == n - 1 and chosen[0] >= 0
    steps = {b - a for a, b in itertools.pairwise(chosen)}
    assert not steps or (min(steps) >= 1 and max(steps) - min(steps) <= 1)
