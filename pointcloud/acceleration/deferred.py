"""A tensor that stands for features which are computed when they are read.

To a network's code it is an ordinary tensor [N, C]. Batch norm with fixed statistics, sums, ReLU and concatenation of
channels are remembered rather than computed, until the next convolution or any other operation reads the features: then
one convolution computes them all. Whatever way a `forward` takes, and however it writes its sums, the values are those
of the operations that it really called; there is no trace that another input could leave.

* What is remembered never changes: an operation in place gives the tensor other features, and what read the former ones
  still has them. Tensors of the user's, which others may write to, are copied when they are remembered.
* Where an operation returns a view, whatever is yet to be computed from the same memory is computed first.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from pointcloud.acceleration.steps import Epilogue, Features, Joined, Known, Norm, Pending, Start, changes

_running = threading.local()


class Call:
    """One call of an accelerated network: what is alive in it, and which module runs.

    Attributes:
        seen: takes note of what became of a batch norm, by its name; of other modules likewise.
        module: name of the batch norm or ReLU that was entered last.
    """

    def __init__(self, seen: Any) -> None:
        self.seen = seen
        self.module = ""
        self._made: list[weakref.ref[DeferredFeatures]] = []

    def take_module(self) -> str:
        """The module that runs, once."""
        name, self.module = self.module, ""
        return name

    def add(self, made: DeferredFeatures) -> None:
        """Watch over features."""
        self._made.append(weakref.ref(made))

    def alive(self) -> Iterator[DeferredFeatures]:
        """The features that somebody still holds."""
        self._made = [each for each in self._made if each() is not None]
        return (made for each in list(self._made) if (made := each()) is not None)


def calls() -> list[Call]:
    """The calls of accelerated networks under way in this thread, the innermost last."""
    stack: list[Call] | None = getattr(_running, "calls", None)
    if stack is None:
        stack = _running.calls = []
    return stack


def current_call() -> Call | None:
    """The innermost call."""
    stack = calls()
    return stack[-1] if stack else None


class DeferredFeatures(Tensor):
    """Features [N, C] that may not be computed yet. Made within a `Call`."""

    node: Features
    call: Call | None
    linear: Any = None  # of a linear layer's input: the layer, and what puts its product off

    @staticmethod
    def __new__(cls, node: Features) -> DeferredFeatures:
        like = node.like
        made: DeferredFeatures = torch.Tensor._make_wrapper_subclass(
            cls, node.shape, dtype=like.dtype, device=like.device
        )
        return made

    def __init__(self, node: Features) -> None:
        self.node = node
        like = node.like
        self._size, self._dtype, self._device = torch.Size(node.shape), like.dtype, like.device
        self.call = current_call()
        if self.call is not None:
            self.call.add(self)

    # What is asked most, without the way through `__torch_function__`.
    ndim = 2

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        return self._size

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return self._dtype

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self._device

    def dim(self) -> int:
        return 2

    def __len__(self) -> int:
        return self._size[0]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _ABOUT:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        act = _ACTS.get(func)
        if act is not None and not autocasting():
            out = act(*args, **kwargs)
            if out is not NotImplemented:
                return out
        return _compute_and_call(func, args, kwargs, _written(func, args, kwargs))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        return _compute_and_call(func, args, kwargs, _written(func, args, kwargs))


def begin(start: Start, residual: Tensor | None) -> DeferredFeatures:
    """The features of a convolution."""
    added = () if residual is None else (remember(residual),)
    return DeferredFeatures(Pending(start, Epilogue(added=added)))


def autocasting() -> bool:
    """Whether autocast chooses dtypes on the CPU or a GPU."""
    return torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")


def computed(x: Tensor) -> Tensor:
    """An ordinary tensor."""
    return x.node.compute() if isinstance(x, DeferredFeatures) else x


def remember(x: Tensor) -> Tensor:
    """A tensor of the present value that nobody else writes to."""
    if isinstance(x, DeferredFeatures):
        value = x.node.compute()
        return value.clone() if x.node.exposed else value
    return x.clone()


def sources(x: Tensor, whole: bool, copied: bool = True) -> tuple[Tensor, ...]:
    """What a convolution reads: the parts of a concatenation that was not computed, unless they are wanted whole.

    `copied` as they are remembered; else they are read at once.
    """
    if isinstance(x, DeferredFeatures) and isinstance(x.node, Joined) and x.node.value is None and not whole:
        return x.node.parts
    return (remember(x) if copied else computed(x),)


def _norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    x, call = input, current_call()
    name = call.take_module() if call is not None else ""
    if training or running_mean is None or running_var is None or not isinstance(x, DeferredFeatures):
        return NotImplemented
    if len(running_mean) != x.node.shape[1]:
        return NotImplemented  # torch says what is wrong
    given = [each for each in (running_mean, running_var, weight, bias) if each is not None]
    if torch.is_grad_enabled() and any(each.requires_grad for each in given):
        return NotImplemented

    def step(value: Tensor) -> Tensor:
        return F.batch_norm(value, running_mean, running_var, weight, bias, False, momentum, eps)

    node = x.node
    why = _why_no_norm(node) if name else None
    if name and why is None and isinstance(node, Pending):
        norm = Norm(
            name, changes(running_mean, running_var, weight, bias), running_mean, running_var, weight, bias, eps
        )
        return DeferredFeatures(node.then(step, node.epilogue._replace(norms=(*node.epilogue.norms, norm))))
    if call is not None and why is not None:
        call.seen.leave(name, why)
    return DeferredFeatures(Known(step(node.compute())))


def _why_no_norm(node: Features) -> str | None:
    if isinstance(node, Joined):
        return "it follows a concatenation"
    if not isinstance(node, Pending):
        return "what it follows is no output of a sparse convolution"
    if node.epilogue.relu:
        return "it follows the ReLU after a sparse convolution"
    if node.epilogue.added:
        return "it follows a sum"
    if node.value is not None or node.start.layer.is_split_at(node.epilogue):
        return "the output of the convolution before it is used in several places"
    return None


def _relu(input: Tensor, inplace: bool = False, *, out: Any = None) -> Any:
    x = input
    call = current_call()
    name = call.take_module() if call is not None else ""
    if out is not None or not isinstance(x, DeferredFeatures) or (inplace and x.node.exposed):
        return NotImplemented
    node = x.node
    if isinstance(node, Pending) and not node.epilogue.relu:
        after = node.then(torch.relu, node.epilogue._replace(relu=True))
    else:
        after = Known(torch.relu(node.compute()))
    if name and call is not None:
        if isinstance(after, Pending):
            call.seen.take_activation(name)
        else:
            call.seen.leave(name, "what it follows is no output of a sparse convolution that it alone reads")
    return _result(x, after, inplace)


def _relu_(input: Tensor) -> Any:
    return _relu(input, inplace=True)


def _add(input: Any, other: Any, *rest: Any, **options: Any) -> Any:
    return NotImplemented if rest else _sum(input, other, inplace=False, **options)


def _add_(input: Any, other: Any, *rest: Any, **options: Any) -> Any:
    return NotImplemented if rest else _sum(input, other, inplace=True, **options)


def _sum(x: Any, y: Any, inplace: bool, alpha: Any = 1, out: Any = None) -> Any:
    if out is not None or alpha != 1 or not (isinstance(x, Tensor) and isinstance(y, Tensor)):
        return NotImplemented
    if x.shape != y.shape or x.dtype != y.dtype or x.device != y.device or needs_grad(x) or needs_grad(y):
        return NotImplemented
    if inplace and not (isinstance(x, DeferredFeatures) and not x.node.exposed):
        return NotImplemented
    base, other = _order(x, y)
    if base is None:
        return _result(x, Known(computed(x) + computed(y)), inplace)
    added = remember(other)
    epilogue = base.epilogue._replace(added=(*base.epilogue.added, added))
    return _result(x, base.then(lambda value: value + added, epilogue), inplace)


def _order(x: Tensor, y: Tensor) -> tuple[Pending | None, Tensor]:
    """The operand whose convolution adds the other, and the other."""
    open_x, open_y = _open(x), _open(y)
    # A plain product would add in another pass.
    if open_x is None or (open_x.start.map is None and open_y is not None and open_y.start.map is not None):
        return open_y, x
    return open_x, y


def _open(x: Tensor) -> Pending | None:
    """Features to which their convolution can still add."""
    node = x.node if isinstance(x, DeferredFeatures) else None
    if not isinstance(node, Pending) or node.value is not None or node.epilogue.relu:
        return None
    return None if node.start.layer.is_split_at(node.epilogue) else node


def _join(tensors: Any, dim: int = 0, *, out: Any = None) -> Any:
    if out is not None or dim not in (1, -1) or not isinstance(tensors, (list, tuple)) or len(tensors) < 2:
        return NotImplemented
    first = tensors[0]
    for each in tensors:
        if not isinstance(each, Tensor) or each.ndim != 2 or each.shape[0] != first.shape[0] or needs_grad(each):
            return NotImplemented
        if each.dtype != first.dtype or each.device != first.device:
            return NotImplemented
    parts: list[Tensor] = []
    for each in tensors:
        parts += sources(each, whole=False)
    return DeferredFeatures(Joined(tuple(parts)))


def _linear(input: Any, weight: Tensor, bias: Tensor | None = None) -> Any:
    waits = input.linear if isinstance(input, DeferredFeatures) else None
    if waits is None:
        return NotImplemented
    layer, module = waits
    if weight is not module.weight or bias is not module.bias:
        return NotImplemented
    return layer.start(module, computed(input))


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    return NotImplemented if training else input


def _same_dtype(dtype: torch.dtype) -> Callable[..., Any]:
    def act(x: Tensor, **options: Any) -> Any:
        return x if x.dtype == dtype and not options else NotImplemented

    return act


def _to(x: Any, *args: Any, **options: Any) -> Any:
    """The tensor itself where nothing changes."""
    if not isinstance(x, DeferredFeatures) or not set(options) <= {"dtype", "device"}:
        return NotImplemented
    for wanted in (*args, *options.values()):
        if isinstance(wanted, torch.dtype):
            same = wanted == x.dtype
        else:
            same = isinstance(wanted, (str, torch.device)) and torch.device(wanted) == x.device
        if not same:
            return NotImplemented
    return x


def _itself(x: Tensor, **options: Any) -> Any:
    return NotImplemented if options else x


def _clone(input: Tensor, **options: Any) -> Any:
    return NotImplemented if options else DeferredFeatures(Known(computed(input).clone()))


def _result(x: Tensor, after: Features, inplace: bool) -> Tensor:
    if inplace and isinstance(x, DeferredFeatures):
        x.node = after
        return x
    return DeferredFeatures(after)


def needs_grad(x: Tensor) -> bool:
    """Whether an operation on the tensor is to be differentiated."""
    value = x.node.value if isinstance(x, DeferredFeatures) else x
    return torch.is_grad_enabled() and value is not None and value.requires_grad


def _written(func: Any, args: Any, kwargs: dict[str, Any]) -> list[DeferredFeatures]:
    """The features that an operation changes in place."""
    schema = getattr(func, "_schema", None)
    name = getattr(func, "__name__", "")
    if schema is not None:
        named = {argument.name: value for argument, value in zip(schema.arguments, args)} | kwargs
        changed = [
            named.get(argument.name)
            for argument in schema.arguments
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
    else:
        changed = [kwargs.get("out")]
        in_place = name.endswith("_") and not name.endswith("__")
        dunder = name.startswith("__i") and name not in ("__index__", "__int__", "__invert__")
        functional = getattr(func, "__module__", None) == F.__name__
        asked = kwargs.get("inplace") or (functional and any(each is True for each in args[1:]))
        if in_place or dunder or asked or name in ("__setitem__", "__set__"):
            changed += args[:1]
        elif isinstance(func, torch._ops.OpOverloadPacket):
            changed += [*args, *kwargs.values()]  # which of its forms is meant is not known here
    found: list[DeferredFeatures] = []
    for each in changed:
        found += [x for x in (each if isinstance(each, (list, tuple)) else [each]) if isinstance(x, DeferredFeatures)]
    return found


def _compute_and_call(func: Any, args: Any, kwargs: dict[str, Any], written: list[DeferredFeatures]) -> Any:
    """Call an operation on ordinary tensors."""
    for x in written:
        if not x.node.exposed:  # others may have remembered the value
            x.node = Known(x.node.compute().clone())
    given: list[tuple[DeferredFeatures, Tensor]] = []

    def ordinary(x: Any) -> Any:
        if not isinstance(x, DeferredFeatures):
            return x
        value = x.node.settle()
        given.append((x, value))
        return value

    out = func(*_each(ordinary, args), **_each(ordinary, kwargs))
    if getattr(func, "__name__", "") in _MEMORY:
        for features, _ in given:
            _expose(features)
    for x in written:
        value = x.node.compute()
        if value.shape != x.shape or value.dtype != x.dtype or value.device != x.device:
            raise RuntimeError(
                f"features of an accelerated network cannot change their shape, dtype or device in place: "
                f"{getattr(func, '__name__', func)} would make {list(x.shape)} {list(value.shape)}; use replace_feature"
            )

    def back(x: Any) -> Any:
        if not isinstance(x, Tensor) or isinstance(x, DeferredFeatures):
            return x
        for features, value in given:
            if x is value:
                return features
            if _share_memory(x, value):
                _expose(features)
        return x

    return _each(back, out)


def _each(change: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    kind = type(value)
    if kind is tuple or kind is list:
        return kind(_each(change, x) for x in value)
    if kind is dict:
        return {key: _each(change, x) for key, x in value.items()}
    if isinstance(value, (tuple, list, dict)):
        return tree_map(lambda x: change(x) if isinstance(x, Tensor) else x, value)
    return value


def _share_memory(a: Tensor, b: Tensor) -> bool:
    if a.layout != torch.strided or a.device != b.device:
        return False
    return a.untyped_storage()._cdata == b.untyped_storage()._cdata


def _expose(x: DeferredFeatures) -> None:
    """A view of the features is in the user's hands: what is yet to read them reads them now."""
    x.node.exposed = True
    value = x.node.compute()
    for other in list(x.call.alive()) if x.call is not None else []:
        if other.node.reads(value):
            other.node.compute()


def _functions(*names: str) -> list[Any]:
    """The functions of these names in torch, torch.Tensor and torch.nn.functional."""
    found = [getattr(where, name, None) for where in (torch, Tensor, F, torch._C._nn) for name in names]
    return [function for function in found if callable(function)]


_ACTS: dict[Any, Callable[..., Any]] = {}
for _act, _names in (
    (_relu, ("relu",)),
    (_relu_, ("relu_",)),
    (_add, ("add", "__add__", "__radd__")),
    (_add_, ("add_", "__iadd__")),
    (_join, ("cat", "concat", "concatenate")),
    (_to, ("to",)),
    (_itself, ("contiguous", "detach")),
    (_clone, ("clone",)),
    (_same_dtype(torch.float32), ("float",)),
    (_same_dtype(torch.float64), ("double",)),
    (_same_dtype(torch.float16), ("half",)),
    (_same_dtype(torch.bfloat16), ("bfloat16",)),
):
    _ACTS.update((function, _act) for function in _functions(*_names))
_ACTS[F.batch_norm] = _norm
_ACTS[F.dropout] = _dropout
_ACTS[F.linear] = _linear

# What hands out memory in another form than a tensor.
_MEMORY = frozenset(
    ("numpy", "__array__", "data_ptr", "storage", "untyped_storage", "_typed_storage", "__dlpack__", "share_memory_")
)
# What a tensor tells without being computed.
_ABOUT = {
    getattr(Tensor, name).__get__
    for name in ("shape", "dtype", "device", "ndim", "layout", "is_cuda", "is_sparse", "is_quantized", "is_meta")
}
_ABOUT.update(
    _functions(
        "size", "dim", "ndimension", "numel", "nelement", "is_floating_point", "is_complex", "element_size",
        "get_device", "__len__", "__hash__", "is_contiguous", "stride",
    )
)  # fmt: skip
