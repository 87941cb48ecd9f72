"""No kernel uses the address of an array that Numba has freed already.

Numba lets go of an array after the last mention of its name. An address taken before (`array.ctypes.data`) does not
keep it: a kernel that works on addresses alone would write to memory that another thread may be given.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from types import ModuleType

import numpy as np
import pytest
from numba import njit
from numba.core import compiler, ir, postproc
from numba.core.dispatcher import Dispatcher

import common_kernels
from common_kernels.simd import copy_row, keep

# Numbers that follow from an address by arithmetic within so many statements are the address, too.
_CHAIN = 12


def freed_too_early(function: Callable[..., object]) -> list[str]:
    """Local arrays whose address is used after the last mention of their name."""
    body = compiler.run_frontend(function)
    postproc.PostProcessor(body).run(emit_dels=True)
    statements = [(label, each) for label, block in sorted(body.blocks.items()) for each in block.body]
    views = {
        each.target.name
        for _, each in statements
        if isinstance(each, ir.Assign) and isinstance(each.value, ir.Expr) and "getitem" in each.value.op
    }
    found = []
    for at, (label, statement) in enumerate(statements):
        value = statement.value if isinstance(statement, ir.Assign) else None
        if not (isinstance(value, ir.Expr) and value.op == "getattr" and value.attr == "ctypes"):
            continue
        array = value.value.name
        # An argument is kept by the caller, and a row of an array by the array.
        if array.split(".")[0] in body.arg_names or array in views:
            continue
        addresses, last = {statement.target.name}, at
        for later in range(at + 1, len(statements)):
            other_label, other = statements[later]
            if isinstance(other, ir.Del) or not {name.name for name in other.list_vars()} & addresses:
                continue
            last = later
            if isinstance(other, ir.Assign) and other_label == label and later < at + _CHAIN:
                addresses.add(other.target.name)
        freed = [i for i, (_, other) in enumerate(statements) if isinstance(other, ir.Del) and other.value == array]
        if freed and min(freed) < last:
            found.append(f"{array}, line {statement.loc.line}")
    return found


def modules() -> Iterator[ModuleType]:
    for found in pkgutil.walk_packages(common_kernels.__path__, "common_kernels."):
        name = found.name.rsplit(".", 1)[-1]
        if name.startswith("cpu") or name in ("simd", "threads"):
            yield importlib.import_module(found.name)


KERNELS = {
    f"{module.__name__.removeprefix('common_kernels.')}.{name}": value.py_func
    for module in modules()
    for name, value in vars(module).items()
    if isinstance(value, Dispatcher) and value.py_func.__module__ == module.__name__
}


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_arrays_live_as_long_as_their_addresses(name: str) -> None:
    assert freed_too_early(KERNELS[name]) == []


def test_a_breach_is_seen() -> None:
    def forgets(n: int) -> float:
        sums = np.zeros(n, np.float32)
        base = np.int64(sums.ctypes.data)
        for _ in range(3):
            copy_row(base, base, n)
        return 0.0

    def keeps(n: int) -> float:
        sums = np.zeros(n, np.float32)
        base = np.int64(sums.ctypes.data)
        for _ in range(3):
            copy_row(base, base, n)
        keep(sums)
        return 0.0

    (breach,) = freed_too_early(forgets)
    assert breach.startswith("sums, line") and freed_too_early(keeps) == []
    assert njit(keeps)(8) == 0.0
    assert len(KERNELS) > 40
