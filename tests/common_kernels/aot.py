"""Ahead-of-time compilation of Triton kernels for every GPU family that we support. Needs no GPU.

    compiled = compile_all(kernel, {"out_ptr": "*fp16", "n_rows": "i32"}, {"BLOCK": 64}, num_warps=8)
    assert "wgmma" in compiled["sm90"].asm

Tests that use it carry the marker `aot`: they run in a process without TRITON_INTERPRET.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

# Name -> backend, architecture, threads of a warp, shared memory that one block may use in bytes.
_TARGETS = {
    "sm80": ("cuda", 80, 32, 163 * 1024),
    "sm90": ("cuda", 90, 32, 227 * 1024),
    "sm100": ("cuda", 100, 32, 227 * 1024),
    "gfx942": ("hip", "gfx942", 64, 64 * 1024),
}
TARGETS = tuple(_TARGETS)

_TYPE_NAMES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "i1",
}


def pointer(dtype: torch.dtype) -> str:
    """Triton's name of a pointer to elements of a torch dtype: ``*fp32``."""
    return "*" + _TYPE_NAMES[dtype]


@dataclass(frozen=True)
class Compiled:
    """One kernel as compiled for one target."""

    target: str
    asm: str  # PTX or AMD assembly
    shared_bytes: int
    num_warps: int


def compile_kernel(
    kernel: Any,
    target: str,
    signature: Mapping[str, str],
    constexprs: Mapping[str, Any],
    *,
    unaligned: Sequence[str] = (),
    **options: Any,
) -> Compiled:
    """Compile a @triton.jit function for one of TARGETS and check that its shared memory fits there.

    `signature` names the type of each run-time argument ("*fp32", "i32"), `constexprs` the value of each constexpr one;
    together they must cover the kernel's arguments. Pointers count as 16-byte aligned, as torch allocates them, unless
    named in `unaligned`. `options` are launch options: num_warps, num_stages, enable_fp_fusion.
    """
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if not isinstance(kernel, triton.runtime.JITFunction):
        pytest.skip("ahead-of-time compilation needs a process without TRITON_INTERPRET")
    names = list(kernel.arg_names)
    given = set(signature) | set(constexprs)
    if given != set(names) or set(signature) & set(constexprs):
        raise ValueError(f"{kernel.__name__} takes {names}, got {list(signature)} and constexprs {list(constexprs)}")
    types = {name: "constexpr" if name in constexprs else signature[name] for name in names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if types[name].startswith("*") and name not in unaligned
    }
    backend, arch, warp_size, shared_limit = _TARGETS[target]
    source = ASTSource(kernel, types, dict(constexprs), aligned)
    compiled = triton.compile(source, target=GPUTarget(backend, arch, warp_size), options=options)
    asm = compiled.asm["ptx" if backend == "cuda" else "amdgcn"]
    assert asm.strip(), f"{kernel.__name__} compiled to nothing for {target}"
    shared = compiled.metadata.shared
    assert shared <= shared_limit, (
        f"{kernel.__name__} needs {shared} bytes of shared memory; {target} has {shared_limit}"
    )
    return Compiled(target, asm, shared, compiled.metadata.num_warps)


def compile_all(
    kernel: Any,
    signature: Mapping[str, str],
    constexprs: Mapping[str, Any],
    *,
    targets: Sequence[str] = TARGETS,
    unaligned: Sequence[str] = (),
    **options: Any,
) -> dict[str, Compiled]:
    """`compile_kernel` for each of `targets`: {"sm80": Compiled, "sm90": ..., "sm100": ..., "gfx942": ...}."""
    return {
        target: compile_kernel(kernel, target, signature, constexprs, unaligned=unaligned, **options)
        for target in targets
    }
