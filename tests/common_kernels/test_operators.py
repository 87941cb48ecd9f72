"""Operators are registered with torch: light at the first call, whole under compilation, strict about gradients."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from common_kernels.operators import operator

ROOT = Path(__file__).resolve().parents[2]


@operator("test_square_and_count")
def _square(x: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    squares = x * x
    return squares * factor, torch.tensor([x.shape[0]])


@_square.register_check
def _(x: Tensor, factor: int) -> None:
    if factor == 0:
        raise ValueError("factor must not be 0")


@_square.register_fake
def _(x, factor):  # type: ignore[no-untyped-def]
    return torch.empty_like(x), x.new_empty(1, dtype=torch.int64)


def _setup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, ctx.factor = inputs
    ctx.save_for_backward(x)


def _backward(ctx, grad, _):  # type: ignore[no-untyped-def]
    return 2 * ctx.factor * ctx.saved_tensors[0] * grad, None


_square.register_autograd(_backward, setup_context=_setup)


@operator("test_double")
def _double(x: Tensor) -> Tensor:
    """No kernel for the CPU and no backward."""
    doubled = x * 2
    return doubled + 0


@_double.register_fake
def _(x):  # type: ignore[no-untyped-def]
    return torch.empty_like(x)


@operator("test_device")
def _device(x: Tensor) -> Tensor:
    return torch.zeros_like(x)


@_device.register_kernel("cpu")
def _(x: Tensor) -> Tensor:
    return torch.ones_like(x)


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def run_alone(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments], capture_output=True, text=True, cwd=ROOT, timeout=300
    )


def test_a_layer_imports_no_compiler() -> None:
    """Forward and backward of convolutions and their inverse in a process that compiles nothing."""
    done = run_alone("""
        import sys
        import torch
        import pointcloud
        coords = torch.tensor([[0, z, y, x] for z in range(4) for y in range(3) for x in range(2)], dtype=torch.int32)
        x = pointcloud.SparseConvTensor(torch.rand(24, 4), coords, [4, 4, 4], 1)
        layers = pointcloud.SubMConv3d(4, 8, 3), pointcloud.SparseConv3d(8, 8, 2, 2, indice_key="down")
        for layer in (*layers, pointcloud.SparseInverseConv3d(8, 4, 2, indice_key="down")):
            x = layer(x)
        x.features.square().sum().backward()
        assert all(layer.weight.grad.abs().sum() > 0 for layer in layers)
        print([name for name in ("torch._dynamo", "sympy", "triton") if name in sys.modules])
    """)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_no_operator_imports_a_compiler() -> None:
    done = run_alone("""
        import sys
        import torch
        from common_kernels import *
        src, offsets, index = torch.rand(6, 4, requires_grad=True), torch.tensor([0, 2, 6]), torch.tensor([3, -1, 0])
        segment_reduce(src, offsets).sum().backward()
        gather_rows(src, index).sum().backward()
        scatter_add_rows(src[:3], index, 7).sum().backward()
        rows, where = pack(src.view(2, 3, 4), torch.ones(2, 3, dtype=torch.bool))[:2]
        unpack(rows, where, (2, 3)).sum().backward()
        channel_shift(src, 3, [(1, 1)]).sum().backward()
        shift_gemm(src, 3, [(1, 1)], torch.rand(4, 5)).sum().backward()
        compact(src[:, 0] > 0.5)
        ragged_topk(src[:, 0], offsets, torch.tensor([1, 2]))
        q = src.view(6, 1, 4)
        varlen_attention(q, q, q, offsets).sum().backward()
        attention_column_sums(q, q, offsets)
        CoordinateTable(index).lookup(index)
        print("torch._dynamo" in sys.modules)
    """)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"


TRACED = """
    import sys
    import warnings
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx
    import pointcloud
    from pointcloud.models import MinkUNet

    warnings.simplefilter("ignore")

    def cloud(n, batch=1):
        generator = torch.Generator().manual_seed(n)
        coords = torch.randint(0, 30, (n, 4), generator=generator)
        coords[:, 0] %= batch
        coords = torch.unique(coords, dim=0).int()
        return torch.rand(len(coords), 4, generator=generator), coords

    class Inverse(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.down = pointcloud.SparseConv3d(4, 8, 3, 2, 1, indice_key="down")
            self.up = pointcloud.SparseInverseConv3d(8, 4, 3, indice_key="down")

        def forward(self, features, coords):
            return self.up(self.down(pointcloud.SparseConvTensor(features, coords, [30] * 3, 1))).features

    class Segment(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = MinkUNet(4, 3, width=0.25, depth=14).eval()

        def forward(self, features, coords):
            return self.network(pointcloud.SparseConvTensor(features, coords, [32] * 3, 1))

    torch.manual_seed(0)
    model = {"inverse": Inverse, "minkunet": Segment}[sys.argv[1]]()
    example = cloud(200)
    graph = torch.jit.trace(model, example, check_trace=False) if sys.argv[2] == "jit" else make_fx(model)(*example)
    for n in (200, 60, 8_000):
        outs = [each(*cloud(n)) for each in (graph, model)]
        torch.testing.assert_close(*outs)
        grads = []
        for out in outs:
            model.zero_grad()
            out.square().sum().backward()
            grads.append([p.grad.clone() for p in model.parameters()])
        torch.testing.assert_close(*grads)
    try:
        graph(*cloud(300, batch=2))
        print("two samples were taken")
    except (RuntimeError, ValueError) as error:  # a script shows errors of operators as its own
        print("coords must lie in batch_size 1" in str(error))
"""


@pytest.mark.parametrize(
    ("model", "tracer"),
    [("inverse", "make_fx"), ("minkunet", "jit"), pytest.param("inverse", "jit", marks=pytest.mark.slow)],
)
def test_a_traced_network_serves_other_clouds(model: str, tracer: str) -> None:
    """In a process of its own: rows beyond a buffer end it."""
    done = run_alone(TRACED, model, tracer)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_values_and_gradient() -> None:
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    out, count = torch.ops.trisparse.test_square_and_count(x, 3)
    assert out.tolist() == [3.0, 12.0] and count.tolist() == [2]
    out.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [6.0, 12.0]


def test_keyword_arguments() -> None:
    out, _ = torch.ops.trisparse.test_square_and_count(factor=2, x=torch.tensor([3.0]))
    assert out.tolist() == [18.0]


def test_a_backward_without_a_formula_names_the_operator() -> None:
    out = torch.ops.trisparse.test_double(torch.ones(2, requires_grad=True))
    assert out.requires_grad
    with pytest.raises(RuntimeError, match="trisparse::test_double has no backward"):
        out.sum().backward()


def test_the_reference_serves_devices_without_a_kernel() -> None:
    x = torch.ones(2)
    assert torch.ops.trisparse.test_double(x).tolist() == [2.0, 2.0]
    assert torch.ops.trisparse.test_device(x).tolist() == [1.0, 1.0]


def test_checks_run_before_every_kernel() -> None:
    """Also before the fake one, unless a size stands for many."""
    with pytest.raises(ValueError, match="factor must not be 0"):
        torch.ops.trisparse.test_square_and_count(torch.ones(2), 0)
    with pytest.raises(ValueError, match="factor must not be 0"):
        torch.ops.trisparse.test_square_and_count(torch.ones(2, device="meta"), 0)


def test_opcheck() -> None:
    x = torch.rand(3, requires_grad=True)
    torch.library.opcheck(torch.ops.trisparse.test_square_and_count.default, (x, 3))
    torch.library.opcheck(torch.ops.trisparse.test_double.default, (torch.rand(3),))


def test_opcheck_sees_an_output_that_is_the_input() -> None:
    """`custom_op` looks for this at each call; here the tests must."""

    @operator("test_alias")
    def _alias(x: Tensor) -> Tensor:
        return x

    with pytest.raises(Exception, match="alias"):
        torch.library.opcheck(torch.ops.trisparse.test_alias.default, (torch.rand(3),), test_utils="test_schema")


def test_one_graph_under_compile_and_export(fresh_dynamo: None) -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ops.trisparse.test_double(torch.ops.trisparse.test_square_and_count(x, 3)[0])

    x = torch.tensor([1.0, 2.0], requires_grad=True)
    model = Model()
    assert torch.compile(model, fullgraph=True, backend="aot_eager")(x.detach()).tolist() == [6.0, 24.0]
    exported = torch.export.export(model, (x.detach(),))
    assert "trisparse.test_double" in str(exported.graph)
    assert exported.module()(torch.tensor([2.0, 1.0])).tolist() == [24.0, 6.0]


def test_dynamo_looks_into_no_kernel(fresh_dynamo: None) -> None:
    """Where a model falls apart into several graphs, the operators between them stay whole."""
    graphs = []

    def backend(graph, example_inputs):  # type: ignore[no-untyped-def]
        graphs.append(graph)
        return graph.forward

    def model(x: Tensor) -> Tensor:
        for _ in range(2):
            torch._dynamo.graph_break()
            x = torch.ops.trisparse.test_double(x)
        return x

    assert torch.compile(model, backend=backend)(torch.ones(2)).tolist() == [4.0, 4.0]
    assert not graphs


def test_autocast_leaves_the_dtype_alone() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.ops.trisparse.test_double(torch.ones(2)).dtype == torch.float32
