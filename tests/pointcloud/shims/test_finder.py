"""Stand-ins are found where the originals are missing, and leave no trace."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pointcloud import shims

MISSING = [name for name in shims.stand_ins() if importlib.util.find_spec(name) is None]


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    shims.uninstall()


@pytest.mark.parametrize("name", MISSING)
def test_missing_package_is_the_stand_in(name: str) -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(name)
    assert name in shims.install()
    assert importlib.util.find_spec(name) is not None
    module = importlib.import_module(name)
    assert module is importlib.import_module(f"pointcloud.shims.{name}")
    assert importlib.metadata.version(name) == module.__version__
    assert importlib.metadata.version(name.replace("_", "-")).endswith("+trisparse")


def test_uninstall_takes_all_back() -> None:
    shims.install()
    importlib.import_module("torch_scatter.scatter")
    shims.uninstall()
    shims.uninstall()
    assert not [name for name in sys.modules if name.startswith("torch_scatter")]
    assert importlib.util.find_spec("torch_scatter") is None
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("torch_scatter")


def test_install_twice_is_one() -> None:
    before = len(sys.meta_path)
    assert shims.install(["torch_scatter"]) == ["torch_scatter"]
    shims.install(["flash_attn"])
    assert len(sys.meta_path) == before + 1
    assert importlib.import_module("torch_scatter").scatter is importlib.import_module("torch_scatter").scatter


def test_submodules_are_the_same_modules() -> None:
    shims.install()
    inner = importlib.import_module("torch_scatter.scatter")
    assert inner is sys.modules["pointcloud.shims.torch_scatter.scatter"]
    assert callable(importlib.import_module("torch_scatter").scatter)
    assert inner.__spec__ is not None and inner.__spec__.name == "pointcloud.shims.torch_scatter.scatter"


def test_what_is_not_there_is_named() -> None:
    shims.install()
    module = importlib.import_module("torch_scatter")
    assert not hasattr(module, "scatter_median")
    with pytest.raises(AttributeError, match=r"torch_scatter.scatter_median is not part of Trisparse's stand-in"):
        _ = module.scatter_median
    with pytest.raises(ImportError, match=r"flash_attn.losses is not part of Trisparse's stand-in for flash_attn"):
        importlib.import_module("flash_attn.losses")
    with pytest.raises(ImportError, match=r"flash_attn.flash_attn_with_kvcache is not part of Trisparse's stand-in"):
        exec("from flash_attn import flash_attn_with_kvcache")


def _original(folder: Path, name: str = "torch_scatter") -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("original = True\n")


def test_original_wins_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _original(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "torch_scatter" not in shims.install()
    original = importlib.import_module("torch_scatter")
    assert original.original
    assert "torch_scatter" in shims.install(replace=["torch_scatter"])
    assert importlib.import_module("torch_scatter").__version__.endswith("+trisparse")
    shims.uninstall()
    assert importlib.import_module("torch_scatter") is original
    del sys.modules["torch_scatter"]


def test_folder_without_init_is_no_original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch_scatter").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "torch_scatter" in shims.install()
    assert importlib.import_module("torch_scatter").__version__.endswith("+trisparse")


def test_names_are_checked() -> None:
    with pytest.raises(ValueError, match=r"names must be among .*, got 'torch_scater'; did you mean 'torch_scatter'"):
        shims.install(["torch_scater"])
    with pytest.raises(TypeError, match="names must be a list"):
        shims.install("torch_scatter")
    with pytest.raises(ValueError, match="replace must be among"):
        shims.install(replace=["numpy"])


def test_import_order_does_not_matter_in_a_fresh_process() -> None:
    code = (
        "import pointcloud.shims as s; s.install(); from torch_scatter import segment_csr\n"
        "import pickle, torch_scatter\n"
        "assert pickle.loads(pickle.dumps(segment_csr)) is torch_scatter.segment_csr"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
