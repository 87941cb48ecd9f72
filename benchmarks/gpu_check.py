"""`make gpu-check`: every test on the GPU without the interpreter, then the benchmarks beside the GPU peers.

Runs under a Python that has torch, triton, numba, numpy and pytest; installs nothing and needs no network. Without a
GPU it says so, checks nothing and claims nothing.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("torch", "triton", "numba", "numpy", "pytest")
SETTINGS = ("--device", "cuda", "--dtype", "fp16,bf16,fp32", "--threads", "1", "--rounds", "15")
# Of video, what needs no decoder; of language, what needs no trained encoder.
BENCHMARKS = (
    ("pointcloud",),
    ("video", "--case", "shift,conv_update,networks"),
    ("nlp", "--case", "attention", "--workload", "lengths"),
)


def main() -> int:
    """0 where there is no GPU or everything passed, else 1."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if not _gpu_found("torch" in missing):
        print("gpu-check: no GPU found here; nothing was checked and nothing is claimed.")
        return 0
    if missing:
        print(f"gpu-check: there is a GPU, but {sys.executable} lacks {', '.join(missing)}.", file=sys.stderr)
        return 1
    import torch

    print(f"gpu-check: {torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    # TRITON_INTERPRET would move the kernels back to the CPU.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), environment.get("PYTHONPATH"))))
    tests = subprocess.run([sys.executable, "-m", "pytest", "tests", "-q", "-rs"], cwd=ROOT, env=environment)
    codes = {"tests": tests.returncode}
    for what in BENCHMARKS:
        command = [sys.executable, "-m", "benchmarks", *what, *SETTINGS]
        codes[f"benchmark {what[0]}"] = subprocess.run(command, cwd=ROOT, env=environment).returncode
    print("gpu-check: " + ", ".join(f"{what} {_verdict(code)}" for what, code in codes.items()))
    return int(any(codes.values()))


def _gpu_found(without_torch: bool) -> bool:
    if without_torch:
        return any(Path(path).exists() for path in ("/dev/nvidiactl", "/dev/kfd"))
    import torch

    return torch.cuda.is_available()


def _verdict(code: int) -> str:
    return "passed" if code == 0 else f"FAILED (exit status {code})"


if __name__ == "__main__":
    sys.exit(main())
