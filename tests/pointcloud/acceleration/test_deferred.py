"""Features that wait: whatever way a forward takes, the values are those of the network as it was given."""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pointcloud
from pointcloud.acceleration.deferred import DeferredFeatures
from pointcloud.conv import SparseConv3d, SparseInverseConv3d, SubMConv3d
from pointcloud.modules import SparseBatchNorm, SparseReLU, SparseSequential
from pointcloud.tensor import SparseConvTensor

pytestmark = pytest.mark.usefixtures("one_thread")

C = 6


def cloud(n: int = 300, channels: int = C, seed: int = 0) -> SparseConvTensor:
    generator = torch.Generator().manual_seed(seed)
    points = F.normalize(torch.randn(n, 3, generator=generator), dim=1) * 2
    return pointcloud.voxelize(points, 0.4, features=torch.randn(n, channels, generator=generator))[0]


def trained_like(model: nn.Module) -> nn.Module:
    """Statistics and factors as after training, of both signs."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in (
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.2, 1.0),
                (module.weight.data, -1.0, 1.5),
                (module.bias.data, -0.5, 0.5),
            ):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    return model.eval()


class Net(nn.Module):
    """Layers by name, and a forward given as a function of the network and its input."""

    def __init__(self, forward: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.way = forward
        self.conv1, self.conv2, self.conv3 = (SubMConv3d(C, C, 3, bias=i > 0) for i in range(3))
        self.wide = SubMConv3d(2 * C, C, 3, bias=False)
        self.point = SubMConv3d(C, C, 1, bias=False)
        self.down = SparseConv3d(C, C, 2, 2, bias=False, indice_key="down")
        self.up = SparseInverseConv3d(C, C, 2, "down", bias=False)
        self.bn1, self.bn2, self.bn3 = (nn.BatchNorm1d(C) for _ in range(3))
        self.relu = nn.ReLU(inplace=True)
        self.linear = nn.Linear(C, C)

    def forward(self, x: Any) -> Any:
        return self.way(self, x)


def with_features(x: SparseConvTensor, change: Callable[[Tensor], Tensor]) -> SparseConvTensor:
    return x.replace_feature(change(x.features))


def basic_block(n: Any, x: SparseConvTensor) -> SparseConvTensor:
    """Norms, sum and ReLU by hand, as in a detector's backbone."""
    out = n.conv1(x)
    out = out.replace_feature(n.bn1(out.features))
    out = out.replace_feature(n.relu(out.features))
    out = n.conv2(out)
    out = out.replace_feature(n.bn2(out.features))
    out = out.replace_feature(out.features + x.features)
    return out.replace_feature(n.relu(out.features))


def projected(n: Any, x: SparseConvTensor) -> SparseConvTensor:
    """The shortcut is a convolution with its own norm; the sum is one of sparse tensors."""
    out = with_features(n.conv1(x), lambda f: F.relu(n.bn1(f)))
    out = with_features(n.conv2(out), n.bn2) + with_features(n.point(x), n.bn3)
    return with_features(out, torch.relu)


def in_place(n: Any, x: SparseConvTensor) -> Tensor:
    """Every operation that can be is in place, on names that others still hold."""
    first = with_features(n.conv1(x), n.bn1)
    kept = first.features
    F.relu(kept, inplace=True)
    second = with_features(n.conv2(first), n.bn2).features
    second += kept
    second.relu_()
    kept.mul_(2)
    kept[:3] = 1
    return second + kept


def decoder(n: Any, x: SparseConvTensor) -> SparseConvTensor:
    low = with_features(n.down(x), lambda f: n.bn1(f).relu())
    up = with_features(n.up(low), lambda f: torch.relu(n.bn2(f)))
    both = up.replace_feature(torch.cat([up.features, x.features], dim=1))
    return with_features(n.wide(both), n.bn3)


def two_readers(n: Any, x: SparseConvTensor) -> Tensor:
    out = n.conv1(x)
    a, b = n.bn1(out.features), n.bn2(out.features)
    return a + b.relu() + out.features


def norm_of_a_sum(n: Any, x: SparseConvTensor) -> Tensor:
    return n.bn1(n.conv1(x).features + n.conv2(x).features)


def sum_of_three(n: Any, x: SparseConvTensor) -> Tensor:
    total = n.bn1(n.conv1(x).features) + n.bn2(n.conv2(x).features)
    return F.relu(total + n.bn3(n.conv3(x).features))


def relu_before_sum(n: Any, x: SparseConvTensor) -> Tensor:
    return F.relu(n.bn1(n.conv1(x).features)) + F.relu(n.bn2(n.conv2(x).features))


def norm_after_relu(n: Any, x: SparseConvTensor) -> Tensor:
    return n.bn1(n.conv1(x).features.relu())


def two_norms(n: Any, x: SparseConvTensor) -> Tensor:
    return n.bn2(n.bn1(n.conv1(x).features)).relu()


def by_data(n: Any, x: SparseConvTensor) -> SparseConvTensor:
    """Which way is taken depends on values, and on how many rows there are."""
    out = with_features(n.conv1(x), n.bn1)
    if len(x.features) % 2 or float(out.features.sum()) > 0:
        out = with_features(out, torch.relu)
    return with_features(n.conv2(out), n.bn2 if len(x.features) > 100 else n.bn3)


def twice(n: Any, x: SparseConvTensor) -> Tensor:
    """One convolution with two norms, and one norm behind two convolutions."""
    a = with_features(n.conv1(x), n.bn1)
    b = with_features(n.conv1(a), n.bn2)
    return with_features(n.conv2(b), n.bn1).features


def views(n: Any, x: SparseConvTensor) -> Tensor:
    """A view of features that a waiting convolution reads is written to."""
    first = with_features(n.conv1(x), n.bn1)
    waiting = n.conv2(first)
    half = first.features[:, :3]
    half.zero_()
    first.features.view(-1)[5:9] = 7.0
    late = n.conv3(first)
    half.fill_(3.0)
    return n.bn2(waiting.features) + late.features + first.features


def input_changed(n: Any, x: SparseConvTensor) -> Tensor:
    """The user's own tensors change while a convolution waits."""
    own = x.features.clone()
    waiting = n.conv1(x.replace_feature(own))
    added = torch.ones_like(own)
    total = n.bn1(waiting.features) + added
    own.zero_()
    added.fill_(100.0)
    return total.relu()


def other_operations(n: Any, x: SparseConvTensor) -> Any:
    out = n.conv1(x)
    parts = out.features.split(2, dim=1)
    scaled = n.linear(out.features * 2 - 1) / 3
    same = out.features.float().contiguous().to(torch.float32).clone()
    stacked = torch.stack([same, scaled])
    nowhere = torch.add(out.features, out.features, alpha=2)
    written = torch.empty_like(same)
    torch.add(out.features, 1.0, out=written)
    wide = torch.cat([out.features, out.features], 0)
    return (
        parts[1],
        stacked,
        nowhere,
        written,
        wide,
        out.features.mean(0, True),
        F.dropout(same, 0.5, False),
        out.dense(),
    )


def from_containers(n: Any, x: SparseConvTensor) -> SparseConvTensor:
    return SparseSequential(n.conv1, n.bn1, n.relu, n.conv2)(x)


def kept_names(n: Any, x: SparseConvTensor) -> Tensor:
    """Names that are still bound do not hinder folding, nor does a late reader of one get something else."""
    convolved = n.conv1(x)
    normed = convolved.replace_feature(n.bn1(convolved.features))
    active = normed.replace_feature(normed.features.relu())
    out = n.conv2(active).features
    return out + normed.features + convolved.features


WAYS = [
    basic_block, projected, in_place, decoder, two_readers, norm_of_a_sum, sum_of_three, relu_before_sum,
    norm_after_relu, two_norms, by_data, twice, views, input_changed, other_operations, from_containers, kept_names,
]  # fmt: skip


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, SparseConvTensor):
        return [value.features]
    if isinstance(value, Tensor):
        return [value]
    return [each for item in value for each in tensors(item)]


def assert_same(expected: Any, got: Any, tolerance: float = 1e-5) -> None:
    pairs = list(zip(tensors(expected), tensors(got), strict=True))
    for a, b in pairs:
        assert type(b) is Tensor
        largest = max([1.0, *a.detach().abs().flatten().tolist()])
        torch.testing.assert_close(b, a, rtol=tolerance, atol=tolerance * largest, equal_nan=True)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_any_forward(way: Callable[[Any, Any], Any], mode: Any) -> None:
    """Several calls, on several clouds: what the first shows must not mislead the second."""
    model = trained_like(Net(way)).requires_grad_(False)
    fast = pointcloud.accelerate(model)
    for seed, n in ((0, 300), (1, 301), (0, 300), (2, 40), (3, 0)):
        x = cloud(n, seed=seed) if n else cloud().select_by_index(torch.zeros(len(cloud().features), dtype=torch.bool))
        with mode():
            assert_same(model(x), fast(x))


@pytest.mark.parametrize("way", [way for way in WAYS if way is not other_operations], ids=lambda way: way.__name__)
def test_in_bf16(way: Callable[[Any, Any], Any]) -> None:
    model = trained_like(Net(way))
    fast = pointcloud.accelerate(model, dtype="bf16")
    x = cloud()
    with torch.no_grad():
        for expected, got in zip(tensors(model(x)), tensors(fast(x)), strict=True):
            assert got.dtype == torch.float32
            assert float((expected - got).norm() / expected.norm()) < 0.03


FOLDED = {  # batch norms, ReLUs, sums, concatenations
    basic_block: (2, 2, 1, 0),
    projected: (3, 2, 1, 0),
    decoder: (3, 2, 0, 1),
    in_place: (2, 2, 1, 0),
    sum_of_three: (3, 1, 1, 0),
    relu_before_sum: (2, 2, 0, 0),
    two_norms: (2, 1, 0, 0),
    twice: (2, 0, 0, 0),
    norm_of_a_sum: (0, 0, 1, 0),
}


@pytest.mark.parametrize("way", FOLDED, ids=lambda way: way.__name__)
def test_what_is_folded(way: Callable[[Any, Any], Any]) -> None:
    done = pointcloud.accelerate(trained_like(Net(way)), example=cloud()).acceleration
    assert (done.batch_norms, done.activations, done.residuals, done.concatenations) == FOLDED[way]


def left(way: Callable[[Any, Any], Any], calls: int = 1) -> dict[str, str]:
    fast = pointcloud.accelerate(trained_like(Net(way)))
    with torch.no_grad():
        for _ in range(calls):
            fast(cloud())
    return fast.acceleration.left


def test_reasons() -> None:
    unseen = "no call has shown yet what it follows"
    none = "what it follows is no output of a sparse convolution"
    assert left(basic_block) == {"bn3": unseen}
    assert left(norm_of_a_sum)["bn1"] == "it follows a sum"
    assert left(norm_after_relu)["bn1"] == "it follows the ReLU after a sparse convolution"
    assert left(lambda n, x: n.bn1(x.features))["bn1"] == none
    assert left(lambda n, x: n.bn1(F.gelu(n.conv1(x).features)))["bn1"] == none
    assert left(lambda n, x: n.relu(x.features))["relu"] == none
    assert left(two_readers, calls=2)["bn1"].endswith("convolution before it is used in several places")
    double = lambda n, x: nn.BatchNorm1d(2 * C).eval()(torch.cat([x.features, n.conv1(x).features], 1))  # noqa: E731
    assert "bn1" in left(double)


def test_a_result_that_several_read_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call finds out that the bare output is read beside the norms; from the second on it is kept."""
    from pointcloud.acceleration import layer

    runs = []
    original = layer.DeferredLayer.run
    monkeypatch.setattr(layer.DeferredLayer, "run", lambda self, *a: runs.append(self.name) or original(self, *a))
    fast = pointcloud.accelerate(trained_like(Net(two_readers)))
    with torch.no_grad():
        counts = [len(runs) for _ in range(3) if fast(cloud()) is not None]
    assert counts[2] - counts[1] == 1


def test_subclasses_and_functions_of_norm() -> None:
    """Any module that ends in torch's batch norm is folded; a norm that no module carries is computed as it is."""

    class Own(nn.BatchNorm1d):
        pass

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.act = SubMConv3d(C, C, 3), SparseBatchNorm(C), SparseReLU()
            self.conv2, self.own = SubMConv3d(C, C, 3), Own(C)
            self.register_buffer("mean", torch.zeros(C))
            self.register_buffer("var", torch.ones(C))

        def forward(self, x: SparseConvTensor) -> Tensor:
            x = self.act(self.norm(self.conv(x)))
            out = self.own(self.conv2(x).features)
            return F.batch_norm(out, self.mean, self.var)

    model = trained_like(Model())
    fast = pointcloud.accelerate(model, example=cloud())
    assert fast.acceleration.batch_norms == 2 and fast.acceleration.left == {}
    with torch.no_grad():
        assert_same(model(cloud()), fast(cloud()))


def test_results_follow_edits() -> None:
    """New weights and statistics, in whatever way they are set, are used in the next call."""
    model = trained_like(Net(basic_block))
    other = trained_like(Net(basic_block))
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.05)
    fast = pointcloud.accelerate(model)
    x = cloud()
    with torch.no_grad():
        fast(x)
        fast.load_state_dict(other.state_dict())
        assert_same(other(x), fast(x))
        for each in (other, fast):
            each.bn1.running_mean.data += 1
            each.bn2.weight.detach().numpy()[:] *= 2
            each.conv1.weight.data.mul_(0.5)
        assert_same(other(x), fast(x))
        for each in (other, fast):
            each.double()
        y = x.replace_feature(x.features.double())
        assert_same(other(y), fast(y), 1e-12)
        fast.float().train()
        other.float().train()
        assert_same(other(x), fast(x))  # statistics of the batch, which change the running ones
        assert torch.allclose(other.bn1.running_mean, fast.bn1.running_mean, atol=1e-6)


def test_copies_threads_and_hooks() -> None:
    model = trained_like(Net(projected))
    fast = pointcloud.accelerate(model)
    x = cloud()
    seen: list[Tensor] = []
    fast.bn1.register_forward_hook(lambda module, args, out: seen.append(out.clone()))
    with torch.no_grad():
        expected = model(x)
        assert_same(expected, fast(x))
        torch.testing.assert_close(seen[0] + 0, model.bn1(model.conv1(x).features), rtol=1e-4, atol=1e-5)
        assert_same(expected, copy.deepcopy(fast)(x))
    results: list[Any] = []

    def call() -> None:
        with torch.no_grad():
            for _ in range(5):
                results.append(fast(x))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 20
    for result in results:
        assert_same(expected, result)


def test_what_a_forward_keeps_or_writes_elsewhere() -> None:
    """Dicts that are given, lists and attributes: ordinary tensors where they are found, right ones anywhere."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = SubMConv3d(C, C, 3), nn.BatchNorm1d(C)
            self.kept: Any = None

        def forward(self, batch: dict[str, Any]) -> None:
            out = self.conv(batch["x"])
            out = out.replace_feature(self.norm(out.features))
            self.kept = out.features
            batch["out"] = [out, {"features": (out.features, 1)}]

    model = trained_like(Model())
    fast = pointcloud.accelerate(model)
    a, b = {"x": cloud()}, {"x": cloud()}
    with torch.no_grad():
        model(a), fast(b)
    assert type(b["out"][0].features) is Tensor and type(b["out"][1]["features"][0]) is Tensor
    assert_same(a["out"][0], b["out"][0])
    assert isinstance(fast.kept, DeferredFeatures)
    assert torch.allclose(fast.kept.detach() * 1, model.kept, atol=1e-5) and "tensor(" in repr(fast.kept)
    assert torch.allclose(torch.from_numpy(fast.kept.numpy()), model.kept, atol=1e-5)


def test_parts_on_their_own_gradients_and_errors() -> None:
    model = trained_like(Net(basic_block))
    fast = pointcloud.accelerate(model)
    x = cloud()
    part = fast.conv1(x)
    assert type(part.features) is Tensor
    assert_same(model.conv1(x), part)
    leaf = x.features.clone().requires_grad_()
    same = x.features.clone().requires_grad_()
    fast(x.replace_feature(leaf)).features.sum().backward()
    model(x.replace_feature(same)).features.sum().backward()
    torch.testing.assert_close(leaf.grad, same.grad, rtol=1e-4, atol=1e-4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert fast(x).features.dtype == model(x).features.dtype

    def fails(n: Any, x: SparseConvTensor) -> Any:
        n.conv1(x)
        raise RuntimeError("of the network's own")

    broken = pointcloud.accelerate(trained_like(Net(fails)))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="of the network's own"):
            broken(x)
    assert_same(model(x), fast(x))
    wrong = pointcloud.accelerate(trained_like(Net(lambda n, x: nn.BatchNorm1d(5).eval()(n.conv1(x).features))))
    with pytest.raises(RuntimeError, match="running_mean"):
        wrong(x)


def test_weights_that_change_within_a_call() -> None:
    """What waits cannot be computed from weights that are no more: an error, not other values."""

    def changes_weight(n: Any, x: SparseConvTensor) -> Any:
        out = n.conv1(x)
        n.conv1.weight.mul_(2)
        return out

    def changes_norm(n: Any, x: SparseConvTensor) -> Any:
        out = n.bn1(n.conv1(x).features)
        n.bn1.running_mean.add_(1)
        return out

    for way, who in ((changes_weight, "weight or bias of 'conv1'"), (changes_norm, "batch norm 'bn1'")):
        fast = pointcloud.accelerate(trained_like(Net(way)))
        with torch.no_grad(), pytest.raises(RuntimeError, match=f"{who} was changed within a call"):
            fast(cloud())


def test_features_that_change_their_shape_in_place() -> None:
    def turns(n: Any, x: SparseConvTensor) -> Any:
        return n.conv1(x).features.t_()

    with torch.no_grad(), pytest.raises(RuntimeError, match="cannot change their shape, dtype or device in place: t_"):
        pointcloud.accelerate(trained_like(Net(turns)))(cloud())


def test_what_was_computed_holds_no_inputs() -> None:
    """A skip keeps its own features alive, and not those that they were computed from."""
    kept: list[Any] = []

    def way(n: Any, x: SparseConvTensor) -> Any:
        first = with_features(n.conv1(x), lambda f: n.bn1(f).relu())
        kept.append(weakref.ref(first.features.node.compute()))
        second = basic_block(n, first)
        third = n.conv3(second)
        assert len(third.features.sum(0)) == C
        del first
        kept.append(kept[0]() is None)
        return second, third

    fast = pointcloud.accelerate(trained_like(Net(way)))
    with torch.no_grad():
        fast(cloud())
    assert kept[1]


def autocast_within(n: Any, x: SparseConvTensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        inner = n.bn1(n.conv1(x).features)
    waiting = n.point(x)
    with torch.autocast("cpu", torch.bfloat16):
        return n.bn2(waiting.features) + inner


def test_autocast_within_a_forward() -> None:
    model = trained_like(Net(autocast_within))
    fast = pointcloud.accelerate(model)
    with torch.no_grad():
        expected, got = model(cloud()), fast(cloud())
    assert expected.dtype == got.dtype
    torch.testing.assert_close(got, expected, rtol=0.02, atol=0.02)


def test_under_a_tracer() -> None:
    """torch.jit.trace and torch.compile see the plain operations."""
    model = trained_like(Net(basic_block))
    fast = pointcloud.accelerate(model)
    x = cloud()
    with torch.no_grad():
        compiled = torch.compile(fast, backend="eager")
        assert_same(model(x), compiled(x))
        assert_same(model(x), fast(x))
