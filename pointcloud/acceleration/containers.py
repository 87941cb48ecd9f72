"""What a container's own `forward` proves before any call: batch norm and ReLU that directly follow a convolution."""

from __future__ import annotations

from collections import Counter

from torch import nn

from common_models.folding import fold_batch_norm
from common_models.modes import is_hooked, owns_weight
from pointcloud.convolution import SparseConvolution
from pointcloud.models.residual import FusedResidualBlock, ResidualBlock
from pointcloud.modules import Identity, SparseBatchNorm, SparseReLU, SparseSequential

BATCH_NORMS = (nn.BatchNorm1d, SparseBatchNorm)
RELUS = (nn.ReLU, SparseReLU)
# Activations that a person may expect to be folded like ReLU.
OTHER_ACTIVATIONS = (
    nn.ELU, nn.GELU, nn.Hardswish, nn.LeakyReLU, nn.Mish, nn.PReLU, nn.ReLU6, nn.SiLU, nn.Sigmoid, nn.Tanh,
)  # fmt: skip


class Report:
    """What became of each module of the model, by its name before anything was replaced."""

    def __init__(self, model: nn.Module) -> None:
        # The modules are kept: what is replaced must not be freed, its id would be given to another.
        self.modules = dict(model.named_modules())
        self.names = {id(module): name for name, module in self.modules.items()}
        self.counts: Counter[str] = Counter()
        self._changed: set[str] = set()
        self._left: dict[str, str] = {}

    def change(self, module: nn.Module, count: str | None = None) -> None:
        self._changed.add(self.names[id(module)])
        if count is not None:
            self.counts[count] += 1

    def leave(self, module: nn.Module, why: str) -> None:
        self._left.setdefault(self.names[id(module)], why)

    def leave_the_rest(self, model: nn.Module, fold: bool, waiting: bool) -> None:
        """Give a reason for every batch norm, activation and residual block that is still there without one."""
        for module in model.modules():
            if isinstance(module, OTHER_ACTIVATIONS):
                self.leave(module, "a sparse convolution computes no activation but ReLU")
            elif not isinstance(module, (nn.modules.batchnorm._BatchNorm, *RELUS, ResidualBlock)):
                continue
            elif not fold:
                self.leave(module, "fold=False")
            elif not isinstance(module, ResidualBlock):
                unseen = "no call has shown yet what it follows"
                self.leave(module, unseen if waiting else "there is no sparse convolution that could take it over")
            elif type(module) is ResidualBlock:
                self.leave(module, "it is the model itself, not a part of it")
            else:
                self.leave(module, f"its class, {type(module).__name__}, is derived from ResidualBlock")

    def changed(self) -> list[str]:
        return [name for name in self.modules if name in self._changed]

    def left(self) -> dict[str, str]:
        return {name: self._left[name] for name in self.modules if name in self._left}


class Folder:
    """Folds one model in place."""

    def __init__(self, model: nn.Module, report: Report) -> None:
        self.model = model
        self.report = report
        # A module in two places computes the same in both, so it cannot take over what follows in one of them.
        self.uses = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))

    def run(self) -> None:
        for module in list(self.model.modules()):
            if isinstance(module, (SparseSequential, nn.Sequential)):
                self._sequential(module)
        for parent in list(self.model.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is ResidualBlock:
                    self._residual(parent, name, child)

    def _sequential(self, container: nn.Module) -> None:
        """Fold conv - BN - ReLU, conv - BN and conv - ReLU. Identities keep names and positions of the others."""
        entries: list[tuple[str, nn.Module | None]] = list(container._modules.items())
        nothing: tuple[str, nn.Module | None] = ("", None)
        for (_, conv), follower, last in zip(entries, entries[1:], [*entries[2:], nothing]):
            if not isinstance(conv, SparseConvolution):
                continue
            name, module = follower
            why = self._why_not(container, conv)
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                if not self._takes(module, BATCH_NORMS, why):
                    self._leave_relu(last[1])
                    continue
                fold_batch_norm(conv, module)
                self._replace(container, name, conv, "batch_norms")
                name, module = last
            if isinstance(module, nn.ReLU) and self._takes(module, RELUS, why):
                conv.activation = "relu"
                self._replace(container, name, conv, "activations")

    def _takes(self, module: nn.Module, classes: tuple[type[nn.Module], ...], why: str | None) -> bool:
        """Whether the convolution before the module takes it over; the reason is noted where it does not."""
        if type(module) not in classes:
            why = f"it is no {classes[0].__name__} but a {type(module).__name__}"
        elif is_hooked(module):
            why = "it carries hooks"
        if why is not None:
            self.report.leave(module, why)
        return why is None

    def _leave_relu(self, module: nn.Module | None) -> None:
        if isinstance(module, nn.ReLU):
            self.report.leave(module, "the batch norm before it was left")

    def _why_not(self, container: nn.Module, conv: SparseConvolution) -> str | None:
        """Why nothing may become part of a convolution in this container, or None."""
        if type(container).forward not in (SparseSequential.forward, nn.Sequential.forward):
            return f"the forward of its container, a {type(container).__name__}, is its own"
        if is_hooked(container):
            return "its container carries hooks"
        if self.uses[id(conv)] > 1:
            return "the convolution before it is used in several places"
        if not owns_weight(conv):
            return f"the convolution before it is left: {why_bound(conv)}"
        if type(conv).forward is not SparseConvolution.forward:
            return f"the convolution before it is a {type(conv).__name__} with a forward of its own"
        if conv.activation != "none":
            return f"the convolution before it ends with an activation, {conv.activation}"
        return None

    def _residual(self, parent: nn.Module, name: str, block: ResidualBlock) -> None:
        """Replace a block whose batch norms were folded."""
        first, second = block.net[0], block.net[3]
        rest = [block.net[i] for i in (1, 2, 4)]
        if is_hooked(block) or is_hooked(block.net):
            self.report.leave(block, "it carries hooks")
            return
        if not all(type(module) is Identity for module in rest):
            self.report.leave(block, "one of its batch norms or its ReLU was left")
            return
        assert isinstance(first, SparseConvolution) and isinstance(second, SparseConvolution)
        shortcut: nn.Module | None = block.downsample
        if block.downsample is not None and type(block.downsample[1]) is Identity and not is_hooked(block.downsample):
            shortcut = block.downsample[0]
            assert isinstance(shortcut, SparseConvolution) and second.bias is not None and shortcut.bias is not None
            # Two biases are one: a pass over the shortcut less.
            second.bias = nn.Parameter(second.bias.detach() + shortcut.bias.detach(), requires_grad=False)
            shortcut.bias = None
        second.activation = "relu"
        fused = FusedResidualBlock(first, second, shortcut)  # type: ignore[arg-type]
        fused.train(block.training)
        parent.add_module(name, fused)
        self.report.change(block, "residuals")
        self.report.counts["activations"] += 1

    def _replace(self, container: nn.Module, name: str, conv: nn.Module, count: str) -> None:
        self.report.change(container._modules[name], count)  # type: ignore[arg-type]
        self.report.change(conv)
        container._modules[name] = Identity().eval()


def why_bound(conv: SparseConvolution) -> str:
    """Why a convolution's weight is not free to be replaced."""
    if is_hooked(conv):
        return "it carries hooks"
    return "its weight is no parameter of its own (a parametrisation, or a tensor that other code sets)"
