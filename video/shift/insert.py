"""Temporal shift for any 2D CNN with residual blocks: finds the blocks by what they compute, not by their names."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from common_models.tracing import Operation, trace
from video.shift import TemporalShift, check_shift

PLACES = ("blockres", "block")
# ResNet-101 and deeper: the published rule shifts only every other block of every stage.
DEEP_STAGE = 23


@dataclass(frozen=True)
class Insertion:
    """Where the shift went.

    Attributes:
        places: names of the modules whose input is shifted, as they were before, in the order in which they run.
        blocks: names of the residual blocks, those left out too.
        left_out: why, by block.
    """

    num_segments: int
    fold_div: int
    direction: str
    place: str
    places: tuple[str, ...]
    blocks: tuple[str, ...]
    left_out: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{len(self.places)} of {len(self.blocks)} residual blocks shifted ({self.place}, {self.direction})"]
        lines += [f"  {name}" for name in self.places]
        lines += [f"  left out: {name or '(the network)'}: {why}" for name, why in self.left_out.items()]
        return "\n".join(lines)


def add_temporal_shift(
    model2d: nn.Module, num_segments: int, fold_div: int = 8, direction: str = "both", place: str = "blockres"
) -> nn.Module:
    """Shift channels along time in the residual blocks of a network of single frames (Lin et al., TSM, 2019).

    Its input becomes [N * num_segments, C, H, W], the frames of each clip in order. Residual blocks are found from one
    run on a black frame: an addition whose inputs come from one value, one of them through more convolutions than the
    other. As published, networks whose third stage has 23 blocks or more are shifted in every other block of each
    stage ("blockres"), and blocks that begin with a depthwise convolution (no expansion) are left out where others do
    not.

    Args:
        model2d: changed in place.
        place: "blockres" shifts the input of the residual branch's first convolution, the shortcut stays; "block"
            shifts the input of the whole block.

    Returns:
        model2d, with attribute `insertion`, an Insertion.

    Raises:
        ValueError: a wrong argument, a network that is shifted already, or one without a residual block to shift.

    Example:
        >>> import video
        >>> model = video.add_temporal_shift(video.models.ResNet(18), num_segments=8, direction="past")
        >>> len(model.insertion.places)
        8
    """
    check_shift(num_segments, fold_div, direction)
    if place not in PLACES:
        raise ValueError(f"place must be one of {', '.join(PLACES)}, got {place!r}")
    if not isinstance(model2d, nn.Module):
        raise ValueError(f"model2d must be a torch.nn.Module, got {type(model2d).__name__}")
    shifted = [name for name, module in model2d.named_modules() if isinstance(module, TemporalShift)]
    if shifted:
        raise ValueError(f"model2d must not be shifted yet, but {len(shifted)} modules are, {shifted[0]!r} first")
    blocks, left_out = choose_blocks(model2d, fold_div, place)
    if not blocks:
        raise ValueError("model2d must have residual blocks (an addition of a value and convolutions of it), got none")
    places = tuple(block.target(place) for block in blocks if block.name not in left_out)
    if not places:
        reasons = "; ".join(f"{name or '(the network)'}: {why}" for name, why in left_out.items())
        raise ValueError(f"model2d has {len(blocks)} residual blocks, but none can be shifted: {reasons}")
    for name in places:
        parent_name, _, child = name.rpartition(".")
        net = model2d.get_submodule(name)
        shift = TemporalShift(net, num_segments, fold_div, direction)
        shift.training = net.training
        setattr(model2d.get_submodule(parent_name), child, shift)
    model2d.insertion = Insertion(  # type: ignore[assignment]
        num_segments, fold_div, direction, place, places, tuple(block.name for block in blocks), left_out
    )
    return model2d


@dataclass(frozen=True)
class ResidualBlock:
    """A residual block as it was seen to run.

    Attributes:
        name: of the innermost module in which both its first convolution and its addition ran; where that module has
            several, with the addition's number.
        module: the name without the number.
        first: its branch's first convolution.
        source: what both of its paths come from.
        problem: why it cannot be shifted, whatever the place; or empty.
    """

    name: str
    module: str
    first: Operation
    source: Operation
    problem: str

    @property
    def convolution(self) -> str:
        """Name of the first convolution's module."""
        return self.first.modules[-1]

    def target(self, place: str) -> str:
        """The module to be wrapped."""
        return self.convolution if place == "blockres" else self.module


def choose_blocks(model: nn.Module, fold_div: int, place: str) -> tuple[list[ResidualBlock], dict[str, str]]:
    """The residual blocks of a network in the order in which they run, and why some of them are not to be shifted."""
    run = trace(model)
    blocks = find_blocks(run.operations)
    left_out: dict[str, str] = {}
    for block in blocks:
        target = block.target(place)
        channels = (block.first.in_shapes[0] if place == "blockres" else block.source.shape)[1]
        if block.problem:
            left_out[block.name] = block.problem
        elif place == "blockres" and f"{block.module}.".startswith(f"{target}." if target else ""):
            left_out[block.name] = "its first convolution is not a module of its own"
        elif place == "block" and (not target or sum(other.module == target for other in blocks) > 1):
            left_out[block.name] = "it is not a module of its own"
        elif run.calls[target] > 1:
            left_out[block.name] = f"{target} runs {run.calls[target]} times for one frame"
        elif not run.unary[target]:
            left_out[block.name] = f"{target} takes more than one tensor"
        elif channels < fold_div:
            left_out[block.name] = f"{channels} channels, less than fold_div={fold_div}"
    _leave_out_depthwise(model, blocks, left_out)
    if place == "blockres":
        _leave_out_every_other(blocks, left_out)
    return blocks, left_out


def find_blocks(operations: list[Operation]) -> list[ResidualBlock]:
    """Residual blocks: additions of two [1, C, H, W] that come from one value through unequally many convolutions."""
    # Sets of operations as bits of an integer: these hold each operation and all that it was computed from.
    ancestors: list[int] = []
    for i, operation in enumerate(operations):
        mask = 1 << i
        for j in operation.inputs:
            mask |= ancestors[j]
        ancestors.append(mask)
    blocks: list[tuple[ResidualBlock, int]] = []
    for i, addition in enumerate(operations):
        if addition.name != "add" or len(addition.inputs) != 2 or len(addition.shape) != 4:
            continue
        sides = addition.inputs
        common = ancestors[sides[0]] & ancestors[sides[1]]
        if any(shape != addition.shape for shape in addition.in_shapes) or not common:
            continue
        source = common.bit_length() - 1
        paths = [[j for j in range(source + 1, side + 1) if _between(ancestors, source, j, side)] for side in sides]
        convolutions = [[j for j in path if operations[j].name == "convolution"] for path in paths]
        if not convolutions[0] and not convolutions[1]:
            continue
        branch = max((0, 1), key=lambda k: len(convolutions[k]))
        if any(j in path for _, j in blocks for path in paths):
            continue  # a skip over residual blocks, not one of its own
        first = operations[convolutions[branch][0]]
        within = sum(1 << j for j in convolutions[branch])
        parallel = sum(ancestors[j] & within == 1 << j for j in convolutions[branch])
        problem = ""
        if len(convolutions[0]) == len(convolutions[1]):
            problem = f"both sides of its addition have {len(convolutions[0])} convolutions: neither is a shortcut"
        elif parallel > 1:
            problem = f"its branch begins with {parallel} parallel convolutions"
        module = _innermost(first.modules, addition.modules)
        blocks.append((ResidualBlock(module, module, first, operations[source], problem), i))
    return _numbered([block for block, _ in blocks])


def _between(ancestors: list[int], source: int, j: int, side: int) -> bool:
    """Whether operation j lies on a path from the source to the side."""
    return bool(ancestors[j] >> source & 1) and bool(ancestors[side] >> j & 1)


def _innermost(first: tuple[str, ...], second: tuple[str, ...]) -> str:
    """The innermost module that both were running in."""
    return next((a for a in reversed(first) if a in second), "")


def _numbered(blocks: list[ResidualBlock]) -> list[ResidualBlock]:
    """Blocks whose module has several get a number, so that each has its own name."""
    modules = [block.module for block in blocks]
    seen: dict[str, int] = {}
    out = []
    for block in blocks:
        if modules.count(block.module) > 1:
            number = seen[block.module] = seen.get(block.module, -1) + 1
            block = ResidualBlock(f"{block.module}#{number}", block.module, block.first, block.source, block.problem)
        out.append(block)
    return out


def _leave_out_depthwise(model: nn.Module, blocks: list[ResidualBlock], left_out: dict[str, str]) -> None:
    """Blocks without expansion, unless all are of this kind (ConvNeXt)."""
    depthwise = []
    for block in blocks:
        if block.name not in left_out:
            module = model.get_submodule(block.convolution)
            if isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels:
                depthwise.append(block.name)
    if len(depthwise) < len(blocks) - len(left_out):
        left_out.update(dict.fromkeys(depthwise, "it begins with a depthwise convolution (no expansion)"))


def _leave_out_every_other(blocks: list[ResidualBlock], left_out: dict[str, str]) -> None:
    """As published: where the third stage is deep, only blocks 0, 2, 4... of each stage are shifted."""
    stages: dict[str, list[str]] = {}
    for block in blocks:
        stages.setdefault(block.module.rpartition(".")[0], []).append(block.name)
    sizes = [len(names) for names in stages.values()]
    if len(sizes) < 3 or sizes[2] < DEEP_STAGE:
        return
    for names in stages.values():
        for name in names[1::2]:
            left_out.setdefault(name, f"every other block: the third stage has {sizes[2]} blocks")
