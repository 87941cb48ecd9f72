"""accelerate: what it folds, what it leaves alone, and that results stay what they were."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pointcloud
from common_models import dtypes
from common_models.dtypes import multiplies_bf16
from pointcloud.accelerate import Acceleration, accelerate
from pointcloud.agreement import compare
from pointcloud.conv import SparseConv3d, SparseInverseConv3d, SubMConv3d
from pointcloud.models import MinkUNet
from pointcloud.models.residual import FusedResidualBlock, ResidualBlock
from pointcloud.modules import Identity, SparseBatchNorm, SparseReLU, SparseSequential, SparseSyncBatchNorm
from pointcloud.tensor import SparseConvTensor
from pointcloud.voxels.voxelize import voxelize

# Networks this small lose more by a second thread than they gain, and much where its core is taken.
pytestmark = pytest.mark.usefixtures("one_thread")


def sphere(n: int = 800, channels: int = 4, size: float = 0.2, device: str = "cpu") -> SparseConvTensor:
    generator = torch.Generator().manual_seed(0)
    points = nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=1) * 2
    return voxelize(points, size, features=torch.randn(n, channels, generator=generator))[0].to(device)


def trained_like(model: nn.Module) -> nn.Module:
    """Batch norms as after training, and eval mode."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d) and module.running_mean is not None:
            shape = module.running_mean.shape
            module.running_mean.copy_(torch.randn(shape, generator=generator) * 0.3)
            module.running_var.copy_(torch.rand(shape, generator=generator) * 0.5 + 0.1)
            if module.weight is not None:
                # Negative scales too: a ReLU may not move past them.
                nn.init.uniform_(module.weight, -1.0, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.eval()


def assert_equal_outputs(model: nn.Module, fast: nn.Module, x: Any) -> None:
    agreement = compare(model, fast, x)
    assert agreement.rows > 0 and agreement.relative_difference < 1e-4, str(agreement)


def test_minkunet_is_folded_completely(device: str) -> None:
    model = trained_like(MinkUNet(num_classes=5, width=0.25)).to(device)
    before = copy.deepcopy(model.state_dict())
    fast = accelerate(model)
    # 49 convolutions; all ReLUs but none of the classifier's: 2 stem, 4 + 4 level changes, 2 for each of 16 blocks.
    done = fast.acceleration
    assert (done.batch_norms, done.activations, done.residuals, done.convolutions) == (49, 42, 16, 49)
    assert (done.batch_norms_left, done.left, done.dtype) == ((), {}, torch.float32)
    kinds = (SubMConv3d, SparseConv3d, SparseInverseConv3d, nn.BatchNorm1d, nn.ReLU, ResidualBlock)
    assert done.changed == [name for name, module in model.named_modules() if isinstance(module, kinds)]
    assert "49 sparse convolutions compute in fp32 and took over 49 batch norms" in str(done)
    assert not any(isinstance(m, (nn.BatchNorm1d, nn.ReLU, ResidualBlock)) for m in fast.modules())
    assert_equal_outputs(model, fast, sphere(device=device))
    assert not hasattr(model, "acceleration")
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(module.activation == "none" for module in model.modules() if isinstance(module, SubMConv3d))


@pytest.mark.parametrize("dtype", [None, "auto", "bf16", torch.bfloat16])
def test_minkunet_on_a_real_sweep(data_dir: Path, dtype: Any, device: str) -> None:
    raw = np.fromfile(data_dir / "pointcloud/nuscenes_lidar_top.pcd.bin", dtype=np.float32).reshape(-1, 5)
    points = torch.from_numpy(raw[:, :4] / np.float32([1, 1, 1, 255]))
    x, _ = voxelize(points.to(device), 0.2, [-25.6, -25.6, -5, 25.6, 25.6, 3])
    model = MinkUNet(width=0.5).to(device)
    with torch.no_grad():
        model(x)  # statistics of real activations
    model.eval()
    fast = accelerate(model, dtype=dtype)
    agreement = compare(model, fast, x)
    assert agreement.rows == len(x.features)
    if dtype == "auto":
        assert (fast.acceleration.dtype == torch.bfloat16) == multiplies_bf16(device)
    if fast.acceleration.dtype == torch.float32:
        assert agreement.relative_difference < 1e-4 and agreement.top1 >= 0.999, str(agreement)
    else:
        assert fast.acceleration.dtype == torch.bfloat16
        assert 1e-6 < agreement.relative_difference < 0.05 and agreement.top1 >= 0.995, str(agreement)
        with torch.no_grad():
            assert fast(x).dtype == torch.float32


class CustomForward(nn.Module):
    """Combines a convolution and its batch norm by hand, as detectors do; and shares one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = SubMConv3d(4, 8, 3, bias=False)
        self.norm = nn.BatchNorm1d(8)
        self.shared = SubMConv3d(8, 8, 3)
        self.a = SparseSequential(self.shared, nn.BatchNorm1d(8), nn.ReLU())
        self.b = SparseSequential(self.shared, nn.BatchNorm1d(8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: SparseConvTensor, scale: float = 1.0) -> dict[str, Any]:
        x = self.conv(x)
        x = x.replace_feature(torch.relu(self.norm(x.features)) * scale)
        x = self.a(x) + self.b(x)
        return {"voxels": x, "logits": self.head(x.features)}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_custom_forward_keeps_working(dtype: torch.dtype | None, device: str) -> None:
    model = trained_like(CustomForward()).to(device)
    fast = accelerate(model, dtype=dtype)
    assert (fast.acceleration.batch_norms, fast.acceleration.activations) == (0, 0)
    assert fast.acceleration.batch_norms_left == ("norm", "a.1", "b.1")
    shared = "the convolution before it is used in several places"
    assert fast.acceleration.left == {
        "norm": "no call has shown yet what it follows",
        "a.1": shared,
        "a.2": "the batch norm before it was left",
        "b.1": shared,
    }
    assert fast.acceleration.changed == ["conv", "shared"]
    assert fast.acceleration.dtype == (dtype or torch.float32)
    x = sphere(device=device)
    with torch.no_grad():
        expected, got = model(x, scale=2.0), fast(x, scale=2.0)
    done = fast.acceleration
    assert (done.batch_norms, done.activations, done.left, done.batch_norms_left) == (3, 2, {}, ())
    assert done.changed == ["conv", "norm", "shared", "a.1", "a.2", "b.1"]
    tolerance = 1e-5 if dtype is None else 0.05
    for a, b in ((expected["logits"], got["logits"]), (expected["voxels"].features, got["voxels"].features)):
        assert b.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(a.abs().max()))


PATTERNS = {
    "conv-bn-relu": (lambda: [SubMConv3d(4, 8, 3), nn.BatchNorm1d(8), nn.ReLU()], 1, 1),
    "bias-free": (lambda: [SubMConv3d(4, 8, 3, bias=False), nn.BatchNorm1d(8), nn.ReLU()], 1, 1),
    "conv-relu": (lambda: [SubMConv3d(4, 8, 3), nn.ReLU(inplace=True)], 0, 1),
    "conv-bn": (lambda: [SubMConv3d(4, 8, 3), nn.BatchNorm1d(8, affine=False)], 1, 0),
    "conv1x1": (lambda: [SubMConv3d(4, 8, 1), nn.BatchNorm1d(8), nn.ReLU()], 1, 1),
    "strided-inverse": (
        lambda: [
            SparseConv3d(4, 8, 2, 2, indice_key="d"), nn.BatchNorm1d(8, eps=1e-3), nn.ReLU(),
            SparseInverseConv3d(8, 6, 2, "d"), SparseBatchNorm(6), SparseReLU(),
        ], 2, 2,
    ),
    "groups": (lambda: [SubMConv3d(4, 8, 3, groups=2), nn.BatchNorm1d(8), nn.ReLU()], 1, 1),
    "depthwise": (lambda: [SubMConv3d(4, 8, 3, groups=4), nn.BatchNorm1d(8), nn.ReLU()], 1, 1),
    "bn-first": (lambda: [nn.BatchNorm1d(4), SubMConv3d(4, 8, 3), nn.Sigmoid(), nn.BatchNorm1d(8)], 0, 0),
    "relu-before-bn": (lambda: [SubMConv3d(4, 8, 3), nn.ReLU(), nn.BatchNorm1d(8)], 0, 1),
    "leaky": (lambda: [SubMConv3d(4, 8, 3), nn.BatchNorm1d(8), nn.LeakyReLU(0.1)], 1, 0),
    "two-norms": (lambda: [SubMConv3d(4, 8, 3), nn.BatchNorm1d(8), nn.BatchNorm1d(8), nn.ReLU()], 1, 0),
    "nested": (lambda: [SparseSequential(SubMConv3d(4, 8, 3), nn.BatchNorm1d(8)), nn.ReLU()], 1, 0),
    "equal-channels": (lambda: [SubMConv3d(4, 4, 3), nn.BatchNorm1d(4), ResidualBlock(4, 4)], 3, 2),
    "more-channels": (lambda: [ResidualBlock(4, 8)], 3, 2),
}  # fmt: skip


@pytest.mark.parametrize("name", PATTERNS)
def test_patterns(name: str, device: str) -> None:
    make, norms, activations = PATTERNS[name]
    model = trained_like(SparseSequential(*make())).to(device)
    fast = accelerate(model)
    assert (fast.acceleration.batch_norms, fast.acceleration.activations) == (norms, activations)
    assert len(fast) == len(model)  # positions stay
    assert_equal_outputs(model, fast, sphere(device=device))


def test_same_convolution_twice_is_left_alone() -> None:
    conv = SubMConv3d(4, 4, 3)
    model = trained_like(SparseSequential(conv, nn.BatchNorm1d(4), conv, nn.BatchNorm1d(4), nn.ReLU()))
    fast = accelerate(model)
    assert fast.acceleration.batch_norms == 0
    assert_equal_outputs(model, fast, sphere())


def test_what_others_observe_is_left_alone() -> None:
    """A hook sees what it saw before; a reparametrised weight stays the parametrisation's."""
    model = trained_like(
        SparseSequential(
            SubMConv3d(4, 8, 3),
            nn.BatchNorm1d(8),
            SubMConv3d(8, 8, 3),
            nn.BatchNorm1d(8),
            SubMConv3d(8, 8, 3),
            nn.ReLU(),
        )
    )
    nn.utils.parametrizations.spectral_norm(model[4])
    model.eval()
    seen: list[Tensor] = []
    model[0].register_forward_hook(lambda module, args, out: seen.append(out.features))
    fast = accelerate(model, dtype=torch.bfloat16)
    assert fast.acceleration.batch_norms == 1 and fast.acceleration.activations == 0
    assert fast.acceleration.changed == ["2", "3"]
    bound = "its weight is no parameter of its own (a parametrisation, or a tensor that other code sets)"
    assert fast.acceleration.left == {
        "0": "it carries hooks",
        "1": "the convolution before it is left: it carries hooks",
        "4": bound,
        "5": f"the convolution before it is left: {bound}",
    }
    x = sphere()
    with torch.no_grad():
        model(x), fast(x)
    torch.testing.assert_close(seen[0], seen[1])
    assert compare(model, fast, x).relative_difference < 0.05


class Subclass(SubMConv3d):
    def forward(self, input: SparseConvTensor) -> SparseConvTensor:  # type: ignore[override]
        return super().forward(input.replace_feature(input.features * 2))


class WholeSequential(SparseSequential):
    pass


class ReversedSequential(SparseSequential):
    def forward(self, input: Any) -> Any:
        for module in reversed(list(self.children())):
            input = module(input) if isinstance(module, SubMConv3d) else input.replace_feature(module(input.features))
        return input


def test_subclasses() -> None:
    """A container that runs its members in another way is left alone, one that only has another name is not."""
    own_conv = trained_like(SparseSequential(Subclass(4, 4, 3), nn.BatchNorm1d(4)))
    renamed = trained_like(WholeSequential(SubMConv3d(4, 4, 3), nn.BatchNorm1d(4)))
    backwards = trained_like(ReversedSequential(SubMConv3d(4, 4, 3), nn.BatchNorm1d(4)))
    reasons = {
        own_conv: {
            "0": "its class has a forward of its own, which may read the weight in another order",
            "1": "the convolution before it is a Subclass with a forward of its own",
        },
        renamed: {},
        backwards: {"1": "the forward of its container, a ReversedSequential, is its own"},
    }
    for model, norms in ((own_conv, 0), (renamed, 1), (backwards, 0)):
        fast = accelerate(model)
        assert fast.acceleration.batch_norms == norms
        assert fast.acceleration.left == reasons[model]
        assert_equal_outputs(model, fast, sphere())


def test_fold_false_and_weight_order(device: str) -> None:
    model = trained_like(SparseSequential(SubMConv3d(4, 8, 3), nn.BatchNorm1d(8), nn.ReLU())).to(device)
    fast = accelerate(model, fold=False)
    done = fast.acceleration
    assert (done.batch_norms, done.activations, done.residuals, done.convolutions) == (0, 0, 0, 1)
    assert (done.batch_norms_left, done.changed, done.dtype) == (("1",), ["0"], torch.float32)
    assert done.left == {"1": "fold=False", "2": "fold=False"}
    assert torch.equal(fast[0].weight, model[0].weight)
    assert fast[0].weight.flatten(1, -2).permute(1, 2, 0).is_contiguous()
    assert_equal_outputs(model, fast, sphere(device=device))


def test_copies_and_pickles(device: str) -> None:
    model = trained_like(MinkUNet(num_classes=3, width=0.125, depth=14)).to(device)
    fast = accelerate(model, dtype=torch.bfloat16)
    x = sphere(200, device=device)
    buffer = io.BytesIO()
    torch.save(fast, buffer)
    buffer.seek(0)
    again = torch.load(buffer, weights_only=False)
    with torch.no_grad():
        expected = fast(x)
        for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast)), again):
            assert torch.equal(other(x), expected) and other.acceleration == fast.acceleration


def test_the_way_back() -> None:
    """The very object comes back; what is accelerated already is refused; a pickle leaves the original out."""
    model = trained_like(SparseSequential(SubMConv3d(4, 8, 3), nn.BatchNorm1d(8)))
    fast = accelerate(model)
    assert isinstance(fast.acceleration, Acceleration)
    assert pointcloud.restore(fast) is model and pointcloud.restore(model) is model
    assert pointcloud.restore(copy.deepcopy(fast)) is model
    with pytest.raises(ValueError, match=r"must not be accelerated already: restore\(model\) gives the original"):
        accelerate(fast, dtype="bf16")
    with pytest.raises(ValueError, match="pickled without"):
        pointcloud.restore(pickle.loads(pickle.dumps(fast)))


def test_every_reason_is_given() -> None:
    """What could have been folded, and was not, is named with its reason; what cannot be folded too."""
    hooked = SparseSequential(SubMConv3d(4, 4, 3), nn.BatchNorm1d(4))
    hooked.register_forward_hook(lambda *_: None)
    block = ResidualBlock(4, 4)
    block.register_forward_hook(lambda *_: None)
    partly = ResidualBlock(4, 4)
    partly.net[4].register_forward_hook(lambda *_: None)
    done = SubMConv3d(4, 4, 3)
    done.activation = "relu"
    layers = [
        hooked,
        block,
        partly,
        done,
        nn.BatchNorm1d(4),
        nn.LeakyReLU(),
        SubMConv3d(4, 4, 3),
        SparseSyncBatchNorm(4),
    ]
    model = trained_like(SparseSequential(*layers))
    fast = accelerate(model)
    assert fast.acceleration.left == {
        "0.1": "its container carries hooks",
        "1": "it carries hooks",
        "2": "one of its batch norms or its ReLU was left",
        "2.net.4": "it carries hooks",
        "4": "the convolution before it ends with an activation, relu",
        "5": "a sparse convolution computes no activation but ReLU",
        "7": "it is no BatchNorm1d but a SparseSyncBatchNorm",
    }
    assert_equal_outputs(model, fast, sphere())
    alone = accelerate(ResidualBlock(4, 4).eval())
    assert alone.acceleration.left == {"": "it is the model itself, not a part of it"}


@pytest.mark.parametrize("multiplies", [False, True])
def test_auto_asks_whether_bf16_is_multiplied(multiplies: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dtypes, "multiplies_bf16", lambda device: multiplies)
    model = trained_like(SparseSequential(SubMConv3d(4, 8, 3), nn.BatchNorm1d(8)))
    fast = accelerate(model, dtype="auto")
    expected = torch.bfloat16 if multiplies else torch.float32
    assert fast.acceleration.dtype == fast[0].weight.dtype == expected


def test_names_of_dtypes() -> None:
    model = trained_like(SparseSequential(SubMConv3d(4, 8, 3)))
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        assert accelerate(model, dtype=name)[0].weight.dtype == dtype
    narrow = accelerate(model.bfloat16(), dtype="fp32")
    assert narrow[0].weight.dtype == torch.float32
    x = sphere()
    with torch.no_grad():
        assert narrow(x.replace_feature(x.features.bfloat16())).features.dtype == torch.bfloat16


def test_double_precision(device: str) -> None:
    model = trained_like(MinkUNet(num_classes=3, width=0.125, depth=14)).double().to(device)
    x = sphere(300, device=device)
    x = x.replace_feature(x.features.double())
    fast = accelerate(model, dtype="auto")  # bf16 for fp32 models only
    assert fast.acceleration.dtype == torch.float64
    assert compare(model, fast, x).relative_difference < 1e-12


def test_empty_input(device: str) -> None:
    model = trained_like(MinkUNet(num_classes=3, width=0.125, depth=14)).to(device)
    empty = SparseConvTensor(torch.empty(0, 4), torch.empty(0, 4, dtype=torch.int32), [20, 20, 20], 1).to(device)
    for dtype in (None, torch.bfloat16):
        assert accelerate(model, dtype=dtype)(empty).shape == (0, 3)
    assert compare(model, accelerate(model), empty).rows == 0


def test_refusals() -> None:
    model = MinkUNet(num_classes=3, width=0.125, depth=14)
    with pytest.raises(ValueError, match=r"evaluation mode, but MinkUNet and \d+ more modules are in training mode"):
        accelerate(model)
    model.eval()
    model.stem[1].train()
    with pytest.raises(ValueError, match=r"stem\.1 is in training mode"):
        accelerate(model)
    model.eval()
    with pytest.raises(ValueError, match=r"can compute in \(fp32, bf16, fp16\), got int8"):
        accelerate(model, dtype=torch.int8)
    with pytest.raises(ValueError, match="dtype must be None, auto, .* got 'bf61'; did you mean 'bf16'"):
        accelerate(model, dtype="bf61")
    with pytest.raises(TypeError, match="dtype must be None, a name or a torch dtype, got int"):
        accelerate(model, dtype=16)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="positional"):
        accelerate(model, torch.bfloat16)  # type: ignore[misc]
    no_statistics = SparseSequential(SubMConv3d(4, 8, 3), nn.BatchNorm1d(8, track_running_stats=False)).eval()
    with pytest.raises(ValueError, match="batch norm '1' has no running statistics"):
        accelerate(no_statistics)
    assert accelerate(no_statistics, fold=False).acceleration.batch_norms_left == ("1",)


def test_fused_block_stands_where_the_block_stood() -> None:
    model = trained_like(SparseSequential(ResidualBlock(4, 8), ResidualBlock(8, 8)))
    fast = accelerate(model)
    assert all(type(module) is FusedResidualBlock for module in fast.children())
    assert fast[0].downsample.bias is None and fast[1].downsample is None
    assert not any(isinstance(module, Identity) for module in fast.modules())


def test_compare_sees_differences() -> None:
    class Table(nn.Module):
        def __init__(self, rows: list[list[float]]) -> None:
            super().__init__()
            self.rows = torch.tensor(rows)

        def forward(self, x: Tensor) -> Tensor:
            return self.rows + x

    a, b = Table([[1.0, 2.0], [4.0, 3.0]]), Table([[1.0, 2.5], [2.0, 3.0]])
    got = compare(a, b, [torch.zeros(1), torch.zeros(1)])
    assert (got.max_difference, got.relative_difference, got.top1, got.rows) == (2.0, 0.5, 0.5, 4)
    assert "50.00% of 4 rows" in str(got)
    bad = Table([[1.0, float("nan")], [4.0, 3.0]])
    assert compare(a, bad, torch.zeros(1)).max_difference == float("inf")
    with pytest.raises(ValueError, match="one shape"):
        compare(a, Table([[1.0, 2.0]]), torch.zeros(1))
    with pytest.raises(TypeError, match="floating tensor or a SparseConvTensor"):
        compare(nn.Identity(), nn.Identity(), [("text",)])
    with pytest.raises(ValueError, match=r"floating tensor or a SparseConvTensor of \[N, C\], got int64 \[3, 2\]"):
        compare(nn.Identity(), nn.Identity(), torch.zeros(3, 2, dtype=torch.int64))
