"""A module's forward in the hands of a packing, also where code calls `forward` itself and not the module."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

# Runs a forward: (the forward, its positional arguments, its keyword arguments) -> what the caller gets.
Run = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


@dataclass(eq=False)
class Forward:
    """Stands on a module in place of its forward, with the same signature; copied and pickled along with the module.

    Hooks would not do: sentence-transformers, and with it whoever calls `model.forward(...)`, passes them by.

    Attributes:
        module: whose forward it is.
        run: is handed each call.
        own: the forward that stood on the object before, as torch.compile leaves one; None for that of the class.
    """

    module: nn.Module
    run: Run
    own: Callable[..., Any] | None = None

    @property
    def plain(self) -> Callable[..., Any]:
        """The forward underneath."""
        return self.own if self.own is not None else type(self.module).forward.__get__(self.module)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.plain)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self.plain, args, kwargs)

    def remove(self) -> None:
        """Give the module its forward back."""
        if vars(self.module).get("forward") is self:
            del self.module.forward
            if self.own is not None:
                self.module.forward = self.own


def wrap(module: nn.Module, run: Run) -> Forward:
    """Put a `Forward` on a module."""
    forward = Forward(module, run, vars(module).get("forward"))
    module.forward = forward
    return forward


def wrapped_by(module: nn.Module) -> Run | None:
    """Who is handed a module's calls; None where it has its own forward."""
    forward = vars(module).get("forward")
    return forward.run if isinstance(forward, Forward) else None
