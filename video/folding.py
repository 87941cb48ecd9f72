"""Batch norms and activations that go into the convolution before them, as the exported graph proves."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from common_models.modes import is_hooked

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
ACTIVATIONS = {nn.ReLU: "relu", nn.ReLU6: "relu6", nn.Hardswish: "hardswish"}


@dataclass
class Findings:
    """Names of modules.

    Attributes:
        batch_norms: convolution of each batch norm that can be folded.
        activations: convolution of each activation module that follows one, or its folded batch norm, and nothing else.
        left: why, for each batch norm that stays.
    """

    batch_norms: dict[str, str] = field(default_factory=dict)
    activations: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)


def find(model: nn.Module, example: tuple[Any, ...]) -> Findings:
    """What can be folded, from the graph of the whole model; control flow that depends on values has no such graph."""
    found = Findings()
    names = [name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    try:
        program = torch.export.export(model, example, strict=False)
    except Exception as error:  # whatever stops the tracer in a user's own network
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        found.left = dict.fromkeys(names, f"torch.export cannot follow the model: {first[:200]}")
        return found
    graph = _Graph(model, program)
    for name in names:
        found.left[name] = "it did not run"
    for node in program.graph.nodes:
        if _operator(node) == "batch_norm":
            graph.batch_norm(node, found)
    for node in program.graph.nodes:
        graph.activation(node, found)
    return found


class _Graph:
    def __init__(self, model: nn.Module, program: Any) -> None:
        signature = program.graph_signature
        self.model = model
        self.inputs = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self.modules = dict(model.named_modules())
        everywhere = [module for _, module in model.named_modules(remove_duplicate=False)]
        self.places = Counter(id(module) for module in everywhere)
        self.owners = Counter(id(p) for module in self.modules.values() for p in module._parameters.values())
        self.ran = Counter(_module_of(node) for node in program.graph.nodes if node.op == "call_function")
        self.convolution_of: dict[Node, str] = {}

    def batch_norm(self, node: Node, found: Findings) -> None:
        name = self._owner(node.args[3]) or self._owner(node.args[1])
        if name not in found.left:
            return
        problem = self._problem(node, name)
        if problem:
            found.left[name] = problem
            return
        del found.left[name]
        source: Any = node.args[0]
        found.batch_norms[name] = self.convolution_of[node] = self._owner(source.args[1])

    def activation(self, node: Node, found: Findings) -> None:
        if node.op != "call_function" or not node.args or not isinstance(node.args[0], Node):
            return
        name, source = _module_of(node), node.args[0]
        module = self.modules.get(name)
        if type(module) not in ACTIVATIONS or not self._own(module) or self.ran[name] != 1 or len(source.users) != 1:
            return
        convolution = self.convolution_of.get(source)
        if convolution is None and _is_convolution(source) and not self._convolution_problem(source):
            convolution = self._owner(source.args[1])
        if convolution is not None:
            found.activations[name] = convolution

    def _problem(self, node: Node, name: str) -> str:
        """Why a batch norm cannot be folded, or nothing."""
        module, source, mean = self.modules[name], node.args[0], node.args[3]
        if type(module) not in BATCH_NORMS:
            return f"it is a {type(module).__name__}, which may do more than normalise"
        if module.running_mean is None or node.args[5]:
            return "it has no running statistics: what it computes depends on the whole batch"
        if not self._own(module) or not isinstance(mean, Node) or len(mean.users) != 1:
            return "it carries hooks or is used in several places"
        if not isinstance(source, Node) or not _is_convolution(source):
            return f"its input comes from {_operator(source) if isinstance(source, Node) else 'no'} operation"
        if len(source.users) != 1:
            return "the convolution before it is read elsewhere too"
        return self._convolution_problem(source)

    def _convolution_problem(self, node: Node) -> str:
        weight: Any = node.args[1]
        name = self._owner(weight)
        module: Any = self.modules.get(name)
        if type(module) not in CONVOLUTIONS or self.inputs[weight.name] != f"{name}.weight":
            return f"the convolution before it is computed by a {type(module).__name__}, not by a module of torch's own"
        shared = self.owners[id(module._parameters["weight"])] != 1 or len(weight.users) != 1
        if shared or not self._own(module):
            return "the convolution before it carries hooks, is parametrised or is used in several places"
        return ""

    def _own(self, module: nn.Module | None) -> bool:
        return (
            module is not None
            and self.places[id(module)] == 1
            and not is_hooked(module)
            and not nn.utils.parametrize.is_parametrized(module)
        )

    def _owner(self, node: Any) -> str:
        """Name of the module that holds the parameter or buffer of a graph's input."""
        return self.inputs.get(node.name, "").rpartition(".")[0] if isinstance(node, Node) else ""


def _operator(node: Node) -> str:
    return getattr(node.target, "__name__", str(node.target)).split(".")[0]


def _is_convolution(node: Node) -> bool:
    return node.op == "call_function" and _operator(node) in ("conv1d", "conv2d", "conv3d")


def _module_of(node: Node) -> str:
    """Name of the innermost module in which an operation ran."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return stack[-1][0].split("@")[0] if stack else ""
