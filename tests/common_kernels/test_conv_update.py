"""The convolution's update: against float64 conv2d, pixel by pixel against itself, over many frames, bad input."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from common_kernels.conv_update import ConvUpdate, conv_update, dense_pays
from common_kernels.reach import reach

# (Cin, Cout, kernel, stride, padding, dilation, groups): dense, first layers, odd channels, depthwise, grouped.
LAYERS = [
    (64, 64, 3, 1, 1, 1, 1), (3, 32, 3, 2, 1, 1, 1), (3, 64, 7, 2, 3, 1, 1), (8, 24, 3, 1, 1, 1, 1),
    (20, 33, 3, 1, 2, 2, 1), (3, 5, (1, 3), (2, 1), (0, 2), (1, 2), 1), (32, 96, 1, 1, 0, 1, 1), (5, 7, 1, 2, 0, 1, 1),
    (48, 48, 3, 1, 1, 1, 48), (24, 24, 5, 2, 2, 1, 24), (8, 8, 3, 1, 1, 1, 8), (40, 40, 7, 1, 6, 2, 40),
    (32, 48, 3, 1, 1, 1, 4), (30, 36, 3, 2, 1, 1, 6), (8, 16, 3, 1, 1, 1, 8),
]  # fmt: skip
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1.6e-2, torch.float16: 2e-3, torch.float64: 1e-12}
ACTIVATIONS = {"none": lambda x: x, "relu": F.relu, "relu6": F.relu6, "hardswish": F.hardswish, "silu": F.silu}


class Problem:
    """A layer, an input, and a second input that differs in two patches of pixels."""

    def __init__(self, layer: tuple, dtype: torch.dtype, activation: str = "relu6", size: tuple = (2, 19, 23)) -> None:
        c_in, c_out, kernel, *self.window, self.groups = layer
        kernel = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        fan = c_in // self.groups * kernel[0] * kernel[1]
        self.weight = (torch.randn(c_out, c_in // self.groups, *kernel) / fan**0.5).to(dtype)
        self.bias = torch.randn(c_out).to(dtype)
        stride, padding, dilation = self.window
        self.activation = activation
        self.layer = ConvUpdate(
            self.weight, self.bias, stride=stride, padding=padding, dilation=dilation, groups=self.groups,
            activation=activation,
        )  # fmt: skip
        self.x = torch.randn(*size, c_in).to(dtype)
        self.next = self.x.clone()
        self.next[0, 5:7, 4:9] += 1
        self.next[-1, -1, -1] -= 1
        self.changed = (self.next != self.x).any(-1)
        self.residual = torch.randn(self.layer.output_shape(self.x)).to(dtype)
        self.active = reach(self.changed, kernel, *self.window)

    def expected(self, x: Tensor, residual: bool = True) -> Tensor:
        planes = x.double().permute(0, 3, 1, 2)
        out = F.conv2d(planes, self.weight.double(), self.bias.double(), *self.window, self.groups)
        out = out.permute(0, 2, 3, 1) + (self.residual.double() if residual else 0)
        return ACTIVATIONS[self.activation](out)

    def full(self, x: Tensor, **options: object) -> Tensor:
        out = torch.full(self.residual.shape, float("nan"), dtype=x.dtype)
        assert self.layer(x, None, out, residual=self.residual, **options).all()
        return out


def close(got: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    return bool((got.double() - expected).abs().max() <= TOLERANCE[dtype] * max(1.0, expected.abs().max().item()))


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_update(layer: tuple, dtype: torch.dtype, threads: int) -> None:
    problem = Problem(layer, dtype)
    out = problem.full(problem.x, dense=False)
    assert close(out, problem.expected(problem.x), dtype)
    kept = out.clone()
    moved = problem.layer(problem.next, problem.changed, out, residual=problem.residual, dense=False)
    # Bit for bit what the same kernel computes with every pixel active.
    assert torch.equal(out, problem.full(problem.next, dense=False))
    assert torch.equal(moved, (out != kept).any(-1))
    assert moved.any() and not (moved & ~problem.active).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("dense", [False, True])
def test_epilogue(activation: str, dtype: torch.dtype, dense: bool) -> None:
    problem = Problem((16, 20, 3, 1, 1, 1, 1), dtype, activation)
    assert close(problem.full(problem.x, dense=dense), problem.expected(problem.x), dtype)
    out = torch.zeros_like(problem.residual)
    problem.layer(problem.x, None, out, dense=dense)
    assert close(out, problem.expected(problem.x, residual=False), dtype)


@pytest.mark.parametrize("dense", [False, True])
def test_only_active_pixels_are_touched(dense: bool) -> None:
    problem = Problem((16, 20, 3, 1, 1, 1, 1), torch.float32)
    out = torch.full_like(problem.residual, 77.0)
    moved = problem.layer(problem.next, problem.changed, out, dense=dense)
    assert torch.equal(moved, problem.active)
    assert (out[~moved] == 77).all() and not (out[moved] == 77).any()


def test_also_marks_further_pixels() -> None:
    problem = Problem((16, 20, 3, 1, 1, 1, 1), torch.float32)
    also = torch.zeros(problem.residual.shape[:3], dtype=torch.bool)
    also[1, 3, 3] = True
    out = torch.full_like(problem.residual, 77.0)
    moved = problem.layer(problem.next, torch.zeros_like(problem.changed), out, also=also)
    assert torch.equal(moved, also)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_threshold_keeps_whole_pixels(dtype: torch.dtype) -> None:
    problem = Problem((16, 20, 3, 1, 1, 1, 1), dtype, "none")
    new = problem.full(problem.x)
    near, far = new.clone(), new.clone()
    near[..., 0] += 0.25
    far[..., 0] += 1
    far[0, 0, 0] = float("nan")
    kept = near.clone()
    assert not problem.layer(problem.x, None, near, residual=problem.residual, threshold=0.5).any()
    assert torch.equal(near, kept)
    assert problem.layer(problem.x, None, far, residual=problem.residual, threshold=0.5).all()
    assert torch.equal(far, new)


def test_nan_counts_as_changed_and_spreads() -> None:
    problem = Problem((16, 20, 3, 1, 1, 1, 1), torch.float32, "relu6")
    out = problem.full(problem.x)
    problem.next[0, 5, 4] = float("nan")
    for _ in range(2):
        moved = problem.layer(problem.next, problem.changed, out, residual=problem.residual, dense=False)
        assert out[0, 4:7, 3:6].isnan().all() and moved[0, 4:7, 3:6].all()


def test_equal_infinities_stay() -> None:
    layer = ConvUpdate(torch.ones(1, 1, 1, 1))
    x = torch.full((1, 1, 3, 1), float("inf"))
    out = torch.tensor([float("inf"), 0.0, -float("inf")]).view(1, 1, 3, 1)
    assert layer(x, None, out).flatten().tolist() == [False, True, True]


def test_hundreds_of_frames_do_not_drift() -> None:
    """Two layers, a patch that wanders, choices between the library and ours: always near a fresh dense run."""
    first = Problem((3, 16, 3, 2, 1, 1, 1), torch.float32, "relu", (1, 24, 24))
    second = Problem((16, 16, 3, 1, 1, 1, 1), torch.float32, "none", (1, 12, 12))
    x, middle, out = first.x.clone(), torch.zeros(1, 12, 12, 16), torch.zeros(1, 12, 12, 16)
    changed: Tensor | None = None
    for frame in range(300):
        dense = (None, True, False)[frame % 3]
        moved = first.layer(x, changed, middle, dense=dense)
        second.layer(middle, moved, out, dense=dense)
        if frame % 20 == 0:
            assert close(out, second.expected(first.expected(x, residual=False), residual=False), torch.float32)
        y, z = frame * 7 % 20, frame * 5 % 20
        changed = torch.zeros(1, 24, 24, dtype=torch.bool)
        changed[:, y : y + 4, z : z + 4] = True
        x[changed] = torch.randn(int(changed.sum()), 3)


def test_calls_from_many_threads() -> None:
    problem = Problem((32, 48, 3, 1, 1, 1, 1), torch.float32)
    right = problem.full(problem.x)
    wrong = []

    def work() -> None:
        for _ in range(20):
            if not torch.equal(problem.full(problem.x), right):
                wrong.append(1)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_function_and_prepared_layer_agree() -> None:
    problem = Problem((16, 20, 3, 2, 1, 1, 1), torch.float32)
    out = torch.zeros_like(problem.residual)
    conv_update(problem.x, None, problem.weight, problem.bias, out, stride=2, padding=1, activation="relu6")
    assert close(out, problem.expected(problem.x, residual=False), torch.float32)


def test_weights_are_copied() -> None:
    problem = Problem((16, 20, 3, 1, 1, 1, 1), torch.float32)
    right = problem.expected(problem.x)
    problem.weight.zero_()
    for dense in (False, True):
        assert close(problem.full(problem.x, dense=dense), right, torch.float32)


def test_empty_batch_and_no_change() -> None:
    problem = Problem((16, 20, 3, 1, 1, 1, 1), torch.float32)
    assert problem.layer(torch.zeros(0, 8, 8, 16), None, torch.zeros(0, 8, 8, 20)).shape == (0, 8, 8)
    out = torch.full_like(problem.residual, 77.0)
    assert not problem.layer(problem.x, torch.zeros_like(problem.changed), out).any()
    assert (out == 77).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("layer", "activation"),
    [(layer, "relu") for layer in LAYERS] + [(LAYERS[4], each) for each in ACTIVATIONS],
    ids=str,
)
def test_library_convolution(layer: tuple, activation: str, dtype: torch.dtype) -> None:
    problem = Problem(layer, dtype, activation)
    for size in ((2, 19, 23), (1, 24, 9)):  # packed for the first size, used for others
        x = torch.randn(*size, layer[0]).to(dtype)
        residual = torch.randn(problem.layer.output_shape(x)).to(dtype)
        planes, added = x.permute(0, 3, 1, 2), residual.permute(0, 3, 1, 2)
        for other in (None, added, added.contiguous()):
            out = problem.layer.library(planes.contiguous(), other)
            problem.residual = residual if other is not None else torch.zeros_like(residual)
            # Sums after a grouped convolution are rounded twice.
            right = problem.expected(x)
            assert (out.permute(0, 2, 3, 1).double() - right).abs().max() <= 2 * TOLERANCE[dtype] * right.abs().max()
    assert torch.equal(added, residual.permute(0, 3, 1, 2))


def test_dense_as_a_share_switches_at_that_share() -> None:
    problem = Problem((16, 20, 3, 1, 1, 1, 1), torch.float32, size=(1, 20, 20))
    changed = torch.zeros(1, 20, 20, dtype=torch.bool)
    changed[:, :9] = True  # reaches ten of twenty rows
    calls = []
    library = problem.layer.library
    problem.layer._kernel._library = lambda *arguments: calls.append(1) or library(*arguments)
    outs = []
    for share in (0.51, 0.5):
        outs.append(torch.zeros(1, 20, 20, 20))
        moved = problem.layer(problem.x, changed, outs[-1], dense=share)
        assert moved[:, :10].all() and not moved[:, 10:].any()
    assert len(calls) == 1
    assert close(outs[0], outs[1].double(), torch.float32)


def test_dense_pays_only_above_some_share() -> None:
    for layer in ((3, 32, 9, 1), (128, 128, 9, 32), (64, 64, 9, 1), (96, 96, 9, 96)):
        choices = [dense_pays(*layer, torch.float32, share / 100) for share in range(101)]
        assert choices == sorted(choices) and not choices[5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 19, 23, 17)}, "x must be contiguous float32"),
        ({"x": torch.zeros(2, 19, 23, 16, dtype=torch.bfloat16)}, "x must be contiguous float32"),
        ({"x": torch.zeros(2, 16, 19, 23).permute(0, 2, 3, 1)}, "not contiguous"),
        ({"out": torch.zeros(2, 19, 23, 21)}, "out must be contiguous"),
        ({"changed": torch.zeros(2, 19, 22, dtype=torch.bool)}, "changed must be contiguous bool"),
        ({"changed": torch.zeros(2, 19, 23)}, "changed must be contiguous bool"),
        ({"also": torch.zeros(2, 19, 22, dtype=torch.bool)}, "also must be contiguous bool"),
        ({"residual": torch.zeros(2, 19, 23, 1)}, "residual must be contiguous"),
        ({"threshold": -1.0}, "threshold must be at least 0"),
        ({"threshold": float("nan")}, "threshold must be at least 0"),
        ({"dense": -0.5}, "dense must be True, False, None or a share of at least 0, got -0.5"),
        ({"dense": float("nan")}, "dense must be True, False, None or a share of at least 0, got nan"),
        ({"x": torch.zeros(2, 0, 23, 16)}, "x must be at least as large"),
    ],
    ids=str,
)
def test_bad_calls(change: dict, message: str) -> None:
    layer = ConvUpdate(torch.zeros(20, 16, 3, 3), padding=0 if "at least as" in message else 1)
    given = {"x": torch.zeros(2, 19, 23, 16), "changed": None, "out": torch.zeros(2, 19, 23, 20), **change}
    with pytest.raises(ValueError, match=message):
        layer(**given)


@pytest.mark.parametrize(
    ("weight", "options", "message"),
    [
        (torch.zeros(4, 3, 3), {}, "weight must be"),
        (torch.zeros(4, 3, 3, 3, dtype=torch.int32), {}, "weight must be"),
        (torch.zeros(4, 3, 3, 3), {"groups": 3}, "groups must divide"),
        (torch.zeros(4, 3, 3, 3), {"bias": torch.zeros(3)}, r"bias must be floating \[4\]"),
        (torch.zeros(4, 3, 3, 3), {"stride": 0}, "stride must be"),
        (torch.zeros(4, 3, 3, 3), {"padding": (1, 2, 3)}, "padding must be"),
        (torch.zeros(4, 3, 3, 3), {"activation": "relu7"}, "did you mean 'relu'|did you mean 'relu6'"),
    ],
)
def test_bad_layers(weight: Tensor, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConvUpdate(weight, **options)
