"""`trisparse doctor`: what is here, and whether the kernels compute what they should."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch

from common_kernels import onednn, selftest
from trisparse import machine
from trisparse.progress import compiling
from trisparse.zoo import list_pretrained


def examine() -> bool:
    """Print all findings; whether every check passed."""
    print("versions")
    print("\n".join(f"  {name:<14}{version}" for name, version in machine.versions().items()))
    print("\nmachine")
    print(f"  CPU         {machine.cpu()}")
    print(f"  features    {' '.join(machine.cpu_features()) or 'unknown'}")
    print(f"  kernels     {_vector_units()}")
    print(f"  oneDNN      {_products_of_onednn()}")
    print(f"  threads     {torch.get_num_threads()}, OMP_WAIT_POLICY {os.environ.get('OMP_WAIT_POLICY', 'not set')}")
    print(f"  GPU         {machine.gpu() or 'none: everything runs on the CPU'}")
    print("\noptional packages")
    for name, version in machine.optional_packages().items():
        missing = f"missing: pip install 'trisparse[{machine.OPTIONAL[name]}]'"
        print(f"  {name:<22}{version or missing}")
    print(f"\npretrained\n  {', '.join(list_pretrained()) or 'none'}")

    print("\nkernels against their references")
    healthy = True
    for result in selftest.run(compiling):
        healthy &= result.passed
        verdict = "ok" if result.passed else "FAILED"
        print(f"  {result.name:<18}{result.device:<6}{verdict}  {result.finding}", flush=True)

    folder = cache_folder()
    print("\ncache of compiled CPU kernels")
    if folder is None:
        print("  no folder that could be written to: kernels are compiled again by every process; set NUMBA_CACHE_DIR")
        healthy = False
    else:
        print(f"  {folder}")
    print(f"\n{'all well' if healthy else 'something is wrong, see above'}")
    return healthy


def _vector_units() -> str:
    from common_kernels import simd

    return f"vectors of {simd.LANES} floats, bf16 products {'in hardware' if simd.HAS_BF16_DOT else 'through fp32'}"


def _products_of_onednn() -> str:
    found = [name for name, works in onednn.availability().items() if works]
    return f"on packed weights: {', '.join(found)}" if found else "none on packed weights: plain products instead"


def cache_folder() -> Path | None:
    """Where Numba keeps the compiled kernels of this installation, None where it cannot."""
    from common_kernels.gather_rows import cpu

    kernels = (value for value in vars(cpu).values() if hasattr(value, "stats") and hasattr(value, "py_func"))
    path = next((kernel.stats.cache_path for kernel in kernels if kernel.stats.cache_path), None)
    if path is None:
        return None
    try:
        os.makedirs(path, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return Path(path)
    except OSError:
        return None
