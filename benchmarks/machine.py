"""The conditions of a run: what it ran on, with which versions, at which commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch

_TEXT_PEERS = ("transformers", "sentence-transformers", "onnxruntime", "ctranslate2", "scikit-learn")
_GPU_PEERS = ("spconv-cu118", "spconv-cu120", "spconv-cu121", "spconv-cu124", "spconv-cu126", "spconv-triton")


@dataclass(frozen=True)
class Conditions:
    """What stands beside each measured row."""

    device: str
    cpu: str
    versions: str
    commit: str


def conditions(device: str) -> Conditions:
    """The conditions of a run on `device`, "cpu" or "cuda"."""
    return Conditions(device_name(device), cpu_name(), versions(), commit())


def device_name(device: str) -> str:
    """The GPU's name, or the CPU's with its number of cores."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{cpu_name()} {os.cpu_count()} cores"


def cpu_name() -> str:
    """Model, and the widest vector units that the kernels may use."""
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    model = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    flags = set((re.search(r"^(?:flags|Features)\s*:\s*(.+)$", info, re.MULTILINE) or [""])[0].split())
    units = next((unit for unit in ("avx512_bf16", "avx512f", "avx2", "asimd") if unit in flags), "")
    return " ".join(part for part in (model[1].strip() if model else platform.machine(), units) if part)


def versions() -> str:
    """Python and the libraries that decide the numbers, as `name version; ...`."""
    found = [f"python {platform.python_version()}"]
    for name in ("torch", "triton", "numba", "numpy", "spconv", *_GPU_PEERS, *_TEXT_PEERS):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return "; ".join(found)


def commit() -> str:
    """Short hash of the checkout, with a + where tracked files differ from it."""
    root = Path(__file__).resolve().parents[1]
    try:
        command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def slug(text: str) -> str:
    """A name for a folder: small letters, digits and single dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
