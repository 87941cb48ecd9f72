"""The GPU's varlen attention: values in the interpreter (or on a GPU) against dense float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from common_kernels.varlen_attention import gpu_launch
from common_kernels.varlen_attention.gpu_launch import LaunchConfig
from tests.common_kernels.interpreter import exact_bf16_products

# The interpreter rounds fp32 to bf16 towards zero, so the whole last bit may differ.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
LENGTHS = (7, 0, 33, 1, 40, 2)
# Other lengths of the keys: fewer and more than queries, none for some queries, some for no query.
LENGTHS_K = (3, 5, 50, 1, 34, 0)
SMALL = LaunchConfig(16, 16, 4, 2)


@pytest.fixture(autouse=True)
def bf16_products(monkeypatch: pytest.MonkeyPatch) -> None:
    exact_bf16_products(monkeypatch)


def to_offsets(lengths: Sequence[int], dtype: torch.dtype, device: str) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=dtype, device=device)


def padded_by_nan(*shape: int, dtype: torch.dtype, device: str) -> Tensor:
    """Random rows between rows of NaN: what a kernel reads outside of the tensor shows in its result."""
    buffer = torch.full((shape[0] + 160, *shape[1:]), torch.nan, device=device, dtype=dtype)
    buffer[80 : 80 + shape[0]] = torch.randn(shape).to(device, dtype)
    return buffer[80 : 80 + shape[0]]


@dataclass
class Problem:
    """Random operands, and the results of dense attention over the whole batch in float64."""

    heads: int = 1
    heads_k: int = 1
    head_dim: int = 16
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    causal: bool = False
    window: int | None = None
    with_bias: bool = False
    lengths: Sequence[int] = LENGTHS
    lengths_k: Sequence[int] | None = None
    scale: float = 0.3

    def __post_init__(self) -> None:
        options: dict[str, Any] = {"dtype": self.dtype, "device": self.device}
        n_rows = sum(self.lengths)
        n_keys = n_rows if self.lengths_k is None else sum(self.lengths_k)
        self.q = padded_by_nan(n_rows, self.heads, self.head_dim, **options)
        self.k = padded_by_nan(n_keys, self.heads_k, self.head_dim, **options)
        self.v = padded_by_nan(n_keys, self.heads_k, self.head_dim, **options)
        self.grad = padded_by_nan(n_rows, self.heads, self.head_dim, **options)
        self.bias = padded_by_nan(n_keys, dtype=torch.float32, device=self.device) if self.with_bias else None
        self.offsets = to_offsets(self.lengths, torch.int32, self.device)
        self.offsets_k = None if self.lengths_k is None else to_offsets(self.lengths_k, torch.int64, self.device)

    @property
    def options(self) -> tuple[Any, ...]:
        return self.offsets, self.offsets_k, self.causal, self.window, self.scale, self.bias

    def seen(self) -> Tensor:
        """Which query sees which key, [T, Tk] bool: from the segment and the place, counted from its end, of each."""

        def places(lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
            segment = [s for s, n in enumerate(lengths) for _ in range(n)]
            from_end = [i - n for n in lengths for i in range(n)]
            return torch.tensor(segment, dtype=torch.long), torch.tensor(from_end, dtype=torch.long)

        (segment, place), (segment_k, place_k) = (places(x) for x in (self.lengths, self.lengths_k or self.lengths))
        ahead = place_k[None, :] - place[:, None]
        seen = segment[:, None] == segment_k[None, :]
        if self.causal:
            seen &= ahead <= 0
        if self.window is not None:
            seen &= (-ahead < self.window) & (ahead < self.window)
        return seen

    def probabilities(self, q: Tensor, k: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """(probabilities [H, T, Tk], log-sum-exp [H, T])."""
        k = k.repeat_interleave(self.heads // self.heads_k, 1)
        logits = torch.einsum("ihd,jhd->hij", q, k) * self.scale
        logits = logits if bias is None else logits + bias
        seen = self.seen()
        if bias is not None:
            seen = seen & (bias > -torch.inf)
        lowest = torch.finfo(torch.float64).min
        exponents = torch.where(seen, logits, lowest)
        largest = exponents.amax(-1, keepdim=True).detach() if exponents.shape[-1] else exponents.sum(-1, keepdim=True)
        weights = torch.where(seen, (exponents - largest).exp(), 0.0)
        total = weights.sum(-1, keepdim=True)
        lse = torch.where(total > 0, largest + total.clamp(min=1e-300).log(), -torch.inf)
        return weights / total.clamp(min=1e-300), lse[..., 0]

    def expected(self) -> dict[str, Tensor]:
        leaves = [x.detach().cpu().double().requires_grad_() for x in (self.q, self.k, self.v)]
        bias = None if self.bias is None else self.bias.detach().cpu().double().requires_grad_()
        p, lse = self.probabilities(leaves[0], leaves[1], bias)
        out = torch.einsum("hij,jhd->ihd", p, leaves[2].repeat_interleave(self.heads // self.heads_k, 1))
        out.backward(self.grad.cpu().double())
        results = {"out": out, "lse": lse, "dq": leaves[0].grad, "dk": leaves[1].grad, "dv": leaves[2].grad}
        if bias is not None:
            results["dbias"] = bias.grad
        return {name: x.detach() for name, x in results.items() if x is not None}

    def expected_sums(self, queries: int | None = None) -> Tensor:
        """[Hkv, Tk]; of the rows ((r + 1) * length) // n - 1 with n = min(queries, length), times length / n."""
        weight = torch.zeros(sum(self.lengths), dtype=torch.float64)
        begin = 0
        for length in self.lengths:
            n = length if queries is None else min(queries, length)
            for r in range(n):
                weight[begin + ((r + 1) * length) // n - 1] = length / n
            begin += length
        bias = None if self.bias is None else self.bias.cpu().double()
        p, _ = self.probabilities(self.q.cpu().double(), self.k.cpu().double(), bias)
        return (p * weight[:, None]).sum(1).unflatten(0, (self.heads_k, -1)).sum(1)

    def run(
        self, config: LaunchConfig | None = None, max_length: int | None = None, **buffers: Tensor
    ) -> dict[str, Any]:
        from common_kernels.varlen_attention import gpu

        out, lse = gpu.forward(self.q, self.k, self.v, *self.options, config=config, max_length=max_length, **buffers)
        grads = gpu.backward(
            self.grad, self.q, self.k, self.v, out, lse, *self.options,
            configs=None if config is None else (config, config), max_length=max_length,
        )  # fmt: skip
        return {"out": out, "lse": lse, **dict(zip(("dq", "dk", "dv", "dbias"), grads))}

    def check(self, got: dict[str, Any]) -> None:
        expected = self.expected()
        for name, value in got.items():
            if name == "dbias" and self.bias is None:
                assert value is None
                continue
            narrow = name not in ("lse", "dbias")
            assert value.dtype == (self.dtype if narrow else torch.float32), name
            assert_close(value, expected[name], TOLERANCE[self.dtype], name)


def assert_close(got: Tensor, expected: Tensor, tolerance: float, name: str = "") -> None:
    """Errors against the size of the result; infinities in the same places."""
    got = got.cpu().double()
    assert got.shape == expected.shape, name
    assert not got.isnan().any(), f"{name}: an element was not written, or read from elsewhere"
    infinite = expected.isinf()
    assert torch.equal(got.isinf(), infinite), name
    finite = expected[~infinite]
    if finite.numel():
        scale = max(1.0, finite.abs().max().item())
        assert (got[~infinite] - finite).abs().max().item() <= tolerance * scale, name


CASES: dict[str, dict[str, Any]] = {
    "plain": {"heads": 2, "heads_k": 2},
    "causal": {"causal": True},
    "window": {"window": 9},
    "window of one": {"window": 1, "lengths": (5, 20)},
    "wide window": {"window": 1000, "causal": True},
    "causal window": {"causal": True, "window": 20, "heads": 2, "heads_k": 2},
    "bias": {"with_bias": True, "heads": 2, "heads_k": 2},
    "groups": {"heads": 4, "heads_k": 2, "causal": True, "with_bias": True},
    "one head of keys": {"heads": 3, "heads_k": 1, "window": 33},
    "other keys": {"lengths_k": LENGTHS_K, "with_bias": True},
    "other keys, causal": {"lengths_k": LENGTHS_K, "causal": True, "with_bias": True, "heads": 2},
    "other keys, window": {"lengths_k": LENGTHS_K, "window": 9},
    "other keys, causal window": {"lengths_k": LENGTHS_K, "causal": True, "window": 9},
    "negative scale": {"scale": -0.7, "causal": True},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("poisoned_memory")
def test_values(case: str, kernel_device: str, guarded_empty: Callable[..., Tensor]) -> None:
    """Many blocks: whole ones, and those at the edges of segment, triangle and window; tall and wide ones in turn."""
    problem = Problem(device=kernel_device, **CASES[case])
    n_rows = sum(problem.lengths)
    out = guarded_empty(n_rows, problem.heads, problem.head_dim, device=kernel_device)
    lse = guarded_empty(problem.heads, n_rows, device=kernel_device)
    config = (SMALL, replace(SMALL, block_m=32), replace(SMALL, block_n=32))[list(CASES).index(case) % 3]
    got = problem.run(config, out=out, lse=lse)
    assert got["out"] is out and got["lse"] is lse
    problem.check(got)


@pytest.mark.parametrize(
    ("head_dim", "dtype"),
    [(16, torch.bfloat16), (20, torch.float32), (32, torch.float16), (64, torch.float32), (64, torch.bfloat16),
     (80, torch.float16), (96, torch.bfloat16), (128, torch.float16), (256, torch.float32), (256, torch.bfloat16)],
    ids=str,
)  # fmt: skip
@pytest.mark.usefixtures("poisoned_memory")
def test_head_dims_and_dtypes(head_dim: int, dtype: torch.dtype, kernel_device: str) -> None:
    """With the blocks that `launch_config` chooses."""
    scale = head_dim**-0.5
    problem = Problem(
        heads=2,
        heads_k=1,
        head_dim=head_dim,
        dtype=dtype,
        device=kernel_device,
        causal=head_dim % 32 > 0,
        scale=scale,
        lengths=(70, 0, 5) if head_dim < 256 else (33, 2),
    )
    problem.check(problem.run())
    from common_kernels.varlen_attention import gpu

    _, lse = gpu.forward(problem.q, problem.k, problem.v, *problem.options)
    sums = gpu.column_sums(problem.q, problem.k, lse, *problem.options, True)
    assert_close(sums, problem.expected_sums(), TOLERANCE[dtype])


@pytest.mark.parametrize(
    "case", ["causal window", "window", "groups", "other keys", "other keys, causal", "other keys, window"]
)
@pytest.mark.usefixtures("poisoned_memory")
def test_column_sums(case: str, kernel_device: str, guarded_empty: Callable[..., Tensor]) -> None:
    from common_kernels.varlen_attention import gpu

    problem = Problem(device=kernel_device, **CASES[case])
    _, lse = gpu.forward(problem.q, problem.k, problem.v, *problem.options)
    for queries in (None, 1, 5):
        expected = problem.expected_sums(queries)
        out = guarded_empty(*expected.shape, device=kernel_device)
        rest: tuple[Any, ...] = (*problem.options, True, queries)
        assert gpu.column_sums(problem.q, problem.k, lse, *rest, config=SMALL, out=out) is out
        assert_close(out, expected, 1e-5)


@pytest.mark.parametrize("queries", [None, 4, 1000])
@pytest.mark.parametrize("case", ["causal", "other keys, causal"])
@pytest.mark.usefixtures("poisoned_memory")
def test_column_sums_without_a_forward_pass(case: str, queries: int | None, kernel_device: str) -> None:
    """The log-sum-exp is computed of the queries that count, and stays NaN elsewhere."""
    from common_kernels.varlen_attention import gpu

    problem = Problem(device=kernel_device, **CASES[case])
    sums = gpu.column_sums(problem.q, problem.k, None, *problem.options, queries=queries)
    assert_close(sums, problem.expected_sums(queries).sum(0), 1e-5)
    lse = gpu.log_sums(problem.q, problem.k, *problem.options, queries=queries)
    wanted = sum(min(n, n if queries is None else queries) for n in problem.lengths)
    assert (~lse.isnan()).sum(1).tolist() == [wanted] * problem.heads


def test_column_sums_count_every_query_once(kernel_device: str) -> None:
    """The probabilities of a query add up to one, so those of a segment add up to its queries."""
    from common_kernels.varlen_attention import gpu

    problem = Problem(device=kernel_device, causal=True, window=20, heads=2, heads_k=1)
    for queries in (None, 3):
        sums = gpu.column_sums(problem.q, problem.k, None, *problem.options, queries=queries)
        totals = [part.sum().item() for part in sums.split(list(problem.lengths))]
        assert totals == pytest.approx([n * problem.heads for n in problem.lengths], rel=1e-5)


@pytest.mark.parametrize("layout", ["packed", "heads first", "heads apart", "channels apart"])
@pytest.mark.usefixtures("poisoned_memory")
def test_strided_operands(layout: str, kernel_device: str) -> None:
    """q, k and v may be views of one projection; every operand has strides of its own."""
    from common_kernels.varlen_attention import gpu

    problem = Problem(device=kernel_device, causal=True, heads=2, heads_k=2, head_dim=20, lengths=(20, 0, 3))
    if layout == "packed":
        packed = torch.cat([problem.q, problem.k, problem.v], 1)
        problem.q, problem.k, problem.v = packed.split([2, 2, 2], 1)
        problem.grad = torch.randn(23, 20, device=kernel_device)[:, None].expand(-1, 2, -1)
    else:
        for number, name in enumerate(("q", "k", "v", "grad")):
            x = getattr(problem, name)
            if layout == "heads first":
                x = x.transpose(0, 1).contiguous().transpose(0, 1)
            elif layout == "heads apart":
                # No two operands have a stride in common.
                x = torch.nn.functional.pad(x, (0, 4 * number + 4, 0, number), value=torch.nan)[:, :2, :20]
            else:
                x = x.transpose(0, 2).contiguous().transpose(0, 2)
            setattr(problem, name, x)
        assert not problem.q.is_contiguous()
    got = problem.run(SMALL)
    problem.check(got)
    out = got["out"].transpose(0, 1).contiguous().transpose(0, 1)
    lse = got["lse"].T.contiguous().T
    again = gpu.backward(problem.grad, problem.q, problem.k, problem.v, out, lse, *problem.options)
    problem.check(dict(zip(("dq", "dk", "dv", "dbias"), again)))
    assert_close(gpu.column_sums(problem.q, problem.k, lse, *problem.options, True), problem.expected_sums(), 1e-5)


@pytest.mark.usefixtures("poisoned_memory")
def test_search_in_several_steps(kernel_device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step reads as many offsets as the search is wide; empty segments in a row, long ones, a single one."""
    from common_kernels.varlen_attention import gpu

    monkeypatch.setattr(gpu, "SEARCH_WIDTH", 2)
    for lengths in ([0, 0, 20, 16, 0, 1, 0, 17, 0, 0, 3, 0, 0, 0, 16], [40], [0, 0, 0, 9]):
        problem = Problem(device=kernel_device, lengths=lengths, with_bias=True)
        problem.check(problem.run(SMALL))


def test_tiles_cover_every_block() -> None:
    """The numbering that the kernels search: no two segments share a tile, all have enough, none lies beyond."""
    for lengths in itertools.product([0, 1, 15, 16, 17, 40], repeat=4):
        offsets = [0, *itertools.accumulate(lengths)]
        starts = [offset // 16 + s for s, offset in enumerate(offsets)]
        for length, start, following in zip(lengths, starts, starts[1:]):
            assert start + -(-length // 16) <= following
        assert starts[-1] <= gpu_launch.n_tiles(offsets[-1], 4, 16) or offsets[-1] == 0


def test_max_length_is_used_where_it_saves() -> None:
    assert gpu_launch.tiles(1000, 10, 64, None) == (25, 0)
    assert gpu_launch.tiles(1000, 10, 64, 100) == (20, 2)
    assert gpu_launch.tiles(1000, 10, 64, 500) == (25, 0), "ragged: most segments need fewer than eight tiles"
    assert gpu_launch.tiles(0, 3, 64, None) == (0, 0)
    assert gpu_launch.tiles(0, 3, 64, 0)[0] == 0


@pytest.mark.parametrize("max_length", [1, 40, 500])
@pytest.mark.usefixtures("poisoned_memory")
def test_max_length_does_not_change_a_bit(max_length: int, kernel_device: str) -> None:
    """Neither where it is right nor where segments are longer than it says."""
    problem = Problem(device=kernel_device, causal=True, with_bias=True, lengths=(33, 40, 0, 37))
    plain = problem.run(SMALL)
    for name, value in problem.run(SMALL, max_length).items():
        assert torch.equal(value, plain[name]), name


@pytest.mark.filterwarnings("ignore:All-NaN slice")
@pytest.mark.parametrize("causal", [False, True], ids=["whole", "causal"])
def test_a_segment_alone_has_the_same_bits(causal: bool, kernel_device: str) -> None:
    """Whatever else is in the batch, NaN included."""
    problem = Problem(device=kernel_device, causal=causal, window=30, with_bias=True)
    batch = problem.run(SMALL)
    begin, end = 41, 81
    rows = slice(begin, end)
    for name in ("q", "k", "v", "grad"):
        x = getattr(problem, name)
        x[:begin], x[end:] = torch.nan, torch.nan
    among_nan = problem.run(SMALL)
    alone = Problem(device=kernel_device, causal=causal, window=30, with_bias=True, lengths=(40,))
    for name in ("q", "k", "v", "grad", "bias"):
        setattr(alone, name, getattr(problem, name)[rows])
    for name, value in alone.run(SMALL).items():
        for other in (batch, among_nan):
            assert torch.equal(other[name][:, rows] if name == "lse" else other[name][rows], value), name


def test_repeated_runs_are_equal(kernel_device: str) -> None:
    problem = Problem(device=kernel_device, dtype=torch.float16, with_bias=True, heads=2)
    first, second = problem.run(), problem.run()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_keys_of_no_weight(kernel_device: str) -> None:
    """A bias of minus infinity hides a key; where all are hidden, the query sees none."""
    from common_kernels.varlen_attention import gpu

    problem = Problem(device=kernel_device, with_bias=True)
    assert problem.bias is not None
    problem.bias[10:30] = -torch.inf
    problem.bias[:7] = -torch.inf
    got = problem.run(SMALL)
    problem.check(got)
    assert (got["lse"][:, :7] == -torch.inf).all() and (got["out"][:7] == 0).all() and (got["dv"][10:30] == 0).all()
    sums = gpu.column_sums(problem.q, problem.k, got["lse"], *problem.options)
    assert_close(sums, problem.expected_sums().sum(0), 1e-5)
    assert (sums[10:30] == 0).all()


@pytest.mark.filterwarnings("ignore:All-NaN slice")
def test_nan_stays_in_its_query(kernel_device: str) -> None:
    problem = Problem(device=kernel_device)
    clean = problem.run(SMALL)
    problem.q[45] = torch.nan
    got = problem.run(SMALL)
    rows = torch.arange(sum(LENGTHS), device=kernel_device) != 45
    assert got["out"][45].isnan().all() and torch.equal(got["out"][rows], clean["out"][rows])
    assert got["dk"][41:81].isnan().all(), "every key of that segment sees the query"


@pytest.mark.parametrize(("lengths", "lengths_k"), [((), ()), ((0, 0), (0, 0)), ((0, 0), (3, 0)), ((3, 2), (0, 0))])
@pytest.mark.usefixtures("poisoned_memory")
def test_empty(lengths: tuple[int, ...], lengths_k: tuple[int, ...], kernel_device: str) -> None:
    """No segments, none with a row, keys without queries, queries without keys."""
    from common_kernels.varlen_attention import gpu

    problem = Problem(device=kernel_device, lengths=lengths, lengths_k=lengths_k, with_bias=True)
    problem.check(problem.run())
    for queries in (None, 2):
        sums = gpu.column_sums(problem.q, problem.k, None, *problem.options, queries=queries)
        assert torch.equal(sums.cpu(), torch.zeros(sum(lengths_k)))


def test_offsets_beyond_the_rows_are_cut_off(kernel_device: str, guarded_empty: Callable[..., Tensor]) -> None:
    """Checking would wait for the device, so wrong offsets must at least reach nothing outside."""
    from common_kernels.varlen_attention import gpu

    problem = Problem(device=kernel_device, lengths=(20, 30))
    wrong = torch.tensor([-5, 20, 90], device=kernel_device)
    out = guarded_empty(50, 1, 16, device=kernel_device)
    lse = guarded_empty(1, 50, device=kernel_device)
    gpu.forward(problem.q, problem.k, problem.v, wrong, None, False, None, 0.3, None, config=SMALL, out=out, lse=lse)
    assert_close(out, problem.expected()["out"], 1e-5)


def test_float64_runs_on_the_reference(kernel_device: str) -> None:
    from common_kernels.varlen_attention import gpu

    problem = Problem(device=kernel_device, dtype=torch.float64, causal=True, lengths=(5, 3), scale=0.25)
    expected = problem.expected()
    out, lse = gpu.forward(problem.q, problem.k, problem.v, *problem.options)
    grads = gpu.backward(problem.grad, problem.q, problem.k, problem.v, out, lse, *problem.options)
    for name, value in zip(("out", "lse", "dq", "dk", "dv"), (out, lse, *grads)):
        assert value.dtype == torch.float64
        assert_close(value, expected[name], 1e-12)
    assert_close(gpu.column_sums(problem.q, problem.k, lse, *problem.options), problem.expected_sums().sum(0), 1e-6)


def test_too_wide_heads_are_refused(kernel_device: str) -> None:
    problem = Problem(device=kernel_device, head_dim=272, lengths=(2,))
    with pytest.raises(ValueError, match=r"up to 256 channels, got q \[2, 1, 272\]"):
        problem.run()


def test_the_launch_waits_for_nothing(kernel_device: str) -> None:
    """No offset is read back. Only a GPU can tell."""
    if kernel_device != "cuda":
        pytest.skip("the interpreter always waits")
    from common_kernels.varlen_attention import gpu

    problem = Problem(device="cuda", causal=True)
    problem.run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = problem.run()
        gpu.column_sums(problem.q, problem.k, got["lse"], *problem.options)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_tf32_only_by_torchs_switch() -> None:
    pytest.importorskip("triton")
    from common_kernels.varlen_attention import gpu

    before = torch.get_float32_matmul_precision()
    try:
        for precision, expected in (("highest", "ieee"), ("high", "tf32")):
            torch.set_float32_matmul_precision(precision)
            assert gpu._options(False, None, torch.empty(1, 1, 16), SMALL)["INPUT_PRECISION"] == expected
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("family", ["hopper", "ampere", "cdna"])
@pytest.mark.parametrize("unit", ["16-bit", "tf32", "fp32"])
@pytest.mark.parametrize("kernel", gpu_launch.PASSES)
def test_launch_configs_are_legal(kernel: str, unit: str, family: str) -> None:
    for head_dim in (1, 16, 20, 32, 64, 80, 96, 128, 160, 256):
        config = gpu_launch.launch_config(kernel, head_dim, unit, family)
        for block in (config.block_m, config.block_n):
            assert block >= 16 and block & (block - 1) == 0
        assert config.num_warps in (4, 8) and 1 <= config.num_stages <= 3
        assert gpu_launch.padded_head(head_dim) >= max(16, head_dim)


def test_launch_config_examples() -> None:
    assert gpu_launch.padded_head(16) == 16 and gpu_launch.padded_head(80) == 128 and gpu_launch.padded_head(3) == 16
    assert gpu_launch.launch_config("forward", 64, "16-bit", "hopper") == LaunchConfig(64, 64, 4, 3)
    assert gpu_launch.launch_config("forward", 64, "16-bit", "ampere") == LaunchConfig(64, 64, 4, 2)
    assert gpu_launch.launch_config("key_grad", 128, "16-bit", "hopper") == LaunchConfig(32, 128, 8, 2)
    assert gpu_launch.launch_config("query_grad", 256, "16-bit", "ampere") == LaunchConfig(32, 32, 8, 2)
    assert gpu_launch.launch_config("forward", 256, "fp32", "hopper") == LaunchConfig(16, 16, 4, 1)
