"""Registration of operators with torch, without the seconds that `torch.library.custom_op` takes at its first call."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

NAMESPACE = "trisparse"

_library = torch.library.Library(NAMESPACE, "FRAGMENT")

Function = Callable[..., Any]


class Operator:
    """One operator of torch, `torch.ops.trisparse.<name>`, made from its reference by `operator`.

    What `torch.library.custom_op` gives, but not what its wrapper costs: that imports the whole of `torch._dynamo` at
    the first call of any operator, also where nothing is ever compiled. Outputs never alias inputs; `opcheck` sees to
    it in the tests, where `custom_op` looks at every call.

    Args:
        name: without the namespace.
        reference: the meaning in plain torch, with annotations, from which the schema is derived. Serves each device
            that has no kernel of its own.
    """

    def __init__(self, name: str, reference: Function) -> None:
        self.name = name
        self.qualified_name = f"{NAMESPACE}::{name}"
        schema = torch.library.infer_schema(reference, mutates_args=())
        _library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        self._check: Function | None = None
        self._backward: Function = self._no_formula
        self._setup: Function | None = None
        self._implement(reference, "CompositeExplicitAutograd")
        torch.library.register_autograd(
            self.qualified_name, self._run_backward, setup_context=self._run_setup, lib=_library
        )

    def register_kernel(self, device: str) -> Callable[[Function], Function]:
        """Decorate what computes the operator on one type of device, "cpu" or "cuda"."""

        def register(kernel: Function) -> Function:
            self._implement(kernel, device.upper())
            return kernel

        return register

    def register_check(self, check: Function) -> Function:
        """Decorate what raises where arguments do not belong together; it runs before every kernel.

        A public function that checks its arguments is not enough: traced and exported graphs, and backward formulas,
        call the operator itself, with numbers that were right for other tensors.
        """
        self._check = check
        return check

    def register_fake(self, fake: Function) -> Function:
        """Decorate what tells shapes, strides and dtypes of the outputs from those of the inputs."""

        def checked(*args: Any) -> Any:
            if self._check is not None and not _has_symbols(args):
                self._check(*args)
            return fake(*args)

        torch.library.register_fake(self.qualified_name, checked, lib=_library)
        return fake

    def register_autograd(self, backward: Function, *, setup_context: Function) -> None:
        """Set the backward formula, as for `torch.library.register_autograd`. Without one, a backward raises."""
        self._backward, self._setup = backward, setup_context

    def _implement(self, kernel: Function, key: str) -> None:
        def checked(*args: Any) -> Any:
            if forward_ad._current_level >= 0 and _has_tangents(args):
                raise NotImplementedError(
                    f"{self.qualified_name} has no forward-mode derivative (jvp, jacfwd): backward gives the gradient"
                )
            if self._check is not None:
                self._check(*args)
            return kernel(*args)

        _library.impl(self.name, _unseen_by_dynamo(checked), key)

    def _run_setup(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        if self._setup is not None:
            self._setup(ctx, inputs, output)

    def _run_backward(self, ctx: Any, *grads: Any) -> Any:
        return self._backward(ctx, *grads)

    def _no_formula(self, ctx: Any, *grads: Any) -> None:
        raise RuntimeError(f"{self.qualified_name} has no backward: its results cannot be differentiated")


def operator(name: str) -> Callable[[Function], Operator]:
    """Decorate a reference in plain torch: it becomes the operator `torch.ops.trisparse.<name>`."""

    def register(reference: Function) -> Operator:
        return Operator(name, reference)

    return register


def _has_tangents(args: Any) -> bool:
    """Whether some tensor may carry a forward-mode derivative, which torch would drop without a word."""
    # Within torch.func.jvp the tensors that arrive here do not show theirs.
    transforms = sys.modules.get("torch._functorch.eager_transforms")
    hidden = getattr(transforms, "JVP_NESTING", 0) > 0
    for arg in args:
        if isinstance(arg, (list, tuple)):
            if _has_tangents(arg):
                return True
        elif isinstance(arg, torch.Tensor) and arg.is_floating_point():
            if hidden or forward_ad.unpack_dual(arg).tangent is not None:
                return True
    return False


def _has_symbols(args: tuple[Any, ...]) -> bool:
    """Whether a size of some tensor stands for many: a check would narrow the graph that is traced."""
    tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
    return any(not isinstance(n, int) for tensor in tensors for n in tensor.shape)


def _unseen_by_dynamo(kernel: Function) -> Function:
    """The kernel, never traced: between two graphs of a compiled model dynamo would look into any Python function."""
    disabled = torch._disable_dynamo(kernel)

    def call(*args: Any) -> Any:
        # Asked at each call: the wrapper of torch imports torch._dynamo, which a process that compiles nothing lacks.
        return (disabled if "torch._dynamo" in sys.modules else kernel)(*args)

    return call
