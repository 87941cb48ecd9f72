"""The shape of the repository: imports point down only, imports stay light, exported names keep their promise."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOMAINS = ("pointcloud", "video", "nlp")
INSTALLED = ("common_kernels", "common_models", *DOMAINS, "trisparse")
OURS = {*INSTALLED, "benchmarks", "tests"}

# Which of our own packages each may import, besides itself.
MAY_IMPORT: dict[str, set[str]] = {
    "common_kernels": set(),
    "common_models": {"common_kernels"},
    **{domain: {"common_kernels", "common_models"} for domain in DOMAINS},
    "trisparse": {"common_kernels", "common_models", *DOMAINS},
    "benchmarks": set(INSTALLED),
}
KERNEL_LIBRARIES = {"torch", "numba", "llvmlite", "triton", "numpy"}
# Loaded where they are used, never by `import package`.
OPTIONAL = {
    "av", "ctranslate2", "cumm", "decord", "laspy", "lazrs", "matplotlib", "onnx", "onnxruntime", "onnxscript",
    "pyarrow", "ray", "sentence_transformers", "sklearn", "spconv", "tokenizers", "torchcodec", "transformers",
    "triton",
}  # fmt: skip
# Files of common_kernels that may import the compilers.
COMPILER_FILES = {
    "triton": ["gpu*.py"],
    "numba": ["cpu*.py", "simd.py", "threads.py"],
    "llvmlite": ["cpu*.py", "simd.py"],
}

# Packages whose `__all__` stands, name by name, in exported_names.json beside this file.
EXPORTS: dict[str, list[str]] = json.loads((Path(__file__).parent / "exported_names.json").read_text())
# Test files that are about no single source file.
TESTS_OF_THE_WHOLE = {
    "test_contract.py", "test_docs.py", "test_docs_docstrings.py", "test_examples.py", "test_structure.py",
}  # fmt: skip


def imported_modules(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Line and absolute module name of every import in `source`, a file of `package` (dotted), function bodies too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            yield node.lineno, ".".join([*parents, *([node.module] if node.module else [])])


def violations(source: str, package: str, filename: str) -> list[str]:
    """What the import rule forbids in one file of `package` (dotted)."""
    top = package.split(".")[0]
    found = []
    for line, module in imported_modules(source, package):
        target = module.split(".")[0]
        if target == top:
            continue
        if target in OURS:
            if target not in MAY_IMPORT[top]:
                found.append(f"{package}/{filename}:{line} imports {module}, which is not below {top}")
        elif top == "common_kernels":
            if target not in sys.stdlib_module_names and target not in KERNEL_LIBRARIES:
                found.append(f"{package}/{filename}:{line} imports {module}: common_kernels knows only its compilers")
            elif not any(fnmatch(filename, allowed) for allowed in COMPILER_FILES.get(target, ["*"])):
                found.append(f"{package}/{filename}:{line} imports {module} outside {COMPILER_FILES[target]}")
    return found


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_imports_point_down(package: str) -> None:
    found = []
    for path in sorted((ROOT / package).rglob("*.py")):
        dotted = ".".join(path.relative_to(ROOT).parent.parts)
        found += violations(path.read_text(), dotted, path.name)
    assert found == []


@pytest.mark.parametrize(
    ("package", "filename", "source", "expected"),
    [
        ("common_kernels.compact", "__init__.py", "import pointcloud", "not below"),
        ("common_kernels", "rows.py", "def f():\n    from scipy import sparse", "only its compilers"),
        ("common_kernels.compact", "cpu.py", "import triton.language as tl", "outside ['gpu*.py']"),
        ("common_kernels.compact", "reference.py", "import numba", "outside"),
        ("pointcloud.io", "__init__.py", "from video import VideoReader", "not below"),
        ("nlp", "x.py", "import trisparse.zoo", "not below"),
        ("trisparse", "demo.py", "from benchmarks.pointcloud.peers import spconv", "not below"),
    ],
)  # fmt: skip
def test_import_rule_sees_a_breach(package: str, filename: str, source: str, expected: str) -> None:
    found = violations(source, package, filename)
    assert len(found) == 1 and expected in found[0]


@pytest.mark.parametrize(
    ("package", "filename", "source"),
    [
        ("common_kernels.compact", "__init__.py", "import math\nfrom . import reference\nfrom ..threads import x"),
        ("common_kernels.compact", "gpu.py", "import triton"),
        ("pointcloud", "conv.py", "from common_kernels import gather_gemm\nimport numpy"),
        ("trisparse", "cli.py", "import pointcloud, video, nlp"),
    ],
)
def test_import_rule_allows_what_it_should(package: str, filename: str, source: str) -> None:
    assert violations(source, package, filename) == []


def private_imports(source: str, package: str) -> list[str]:
    """Names and modules with an underscore that a file of `package` (dotted) imports from another folder."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported = [(alias.name.rpartition(".")[0], alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*parents, *([node.module] if node.module else [])])
            is_folder = (ROOT / Path(*module.split("."))).is_dir()
            home = module if is_folder else module.rpartition(".")[0]
            imported = [(home, f"{module}.{alias.name}") for alias in node.names]
        else:
            continue
        for home, name in imported:
            parts = name.split(".")
            if parts[0] in OURS and home != package and any(re.match(r"_[^_]", part) for part in parts):
                found.append(f"line {node.lineno}: {name}")
    return found


@pytest.mark.parametrize("package", sorted(OURS))
def test_what_begins_with_an_underscore_stays_in_its_folder(package: str) -> None:
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        breaches = private_imports(path.read_text(), ".".join(path.relative_to(ROOT).parent.parts))
        if breaches:
            found[str(path.relative_to(ROOT))] = breaches
    assert found == {}


@pytest.mark.parametrize(
    ("package", "source", "breaches"),
    [
        ("video", "from video.reader.picture import _scale", 1),
        ("nlp.texts", "def f():\n    from nlp._private import x, y", 2),
        ("common_kernels.reach", "from common_kernels.simd import _load, store", 1),
        ("video", "import video.reader._bits, os", 1),
        ("video.skip", "from ..reader.picture import _scale", 1),
        ("tests.video", "from video.shift import _plan", 1),
        ("video.reader", "from video.reader.picture import _scale", 0),
        ("video.reader", "from .picture import _scale\nfrom . import _bits", 0),
        ("trisparse", "from trisparse.version import __version__", 0),
        ("nlp", "from __future__ import annotations\nfrom torch._C import _x", 0),
    ],
)
def test_underscore_rule_sees_a_breach(package: str, source: str, breaches: int) -> None:
    assert len(private_imports(source, package)) == breaches


def source_of(test: Path) -> Path | None:
    """The file or folder that a test file bears the name of: test_<source>.py or test_<source>_<aspect>.py."""
    folder = ROOT / test.relative_to(ROOT / "tests").parent
    words = test.stem.removeprefix("test_").split("_")
    if words == ["main"]:
        return folder / "__main__.py"
    for n in range(len(words), 0, -1):
        name = "_".join(words[:n])
        for path in (folder / f"{name}.py", folder / name / "__init__.py"):
            if path.is_file():
                return path
    return None


def test_every_test_file_bears_the_name_of_its_source() -> None:
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    strays = [str(path.relative_to(ROOT)) for path in files if source_of(path) is None]
    assert [name for name in strays if name.removeprefix("tests/") not in TESTS_OF_THE_WHOLE] == []


@pytest.mark.parametrize("package", INSTALLED)
def test_import_loads_no_optional_library(package: str) -> None:
    code = f"import json, sys, {package}; print(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert OPTIONAL & set(json.loads(done.stdout)) == set()


@pytest.mark.parametrize("module", sorted(EXPORTS))
def test_exported_names(module: str) -> None:
    loaded = importlib.import_module(module)
    names = loaded.__all__
    assert sorted(names) == EXPORTS[module]
    assert [name for name in names if not hasattr(loaded, name)] == []
    assert [name for name in names if name.startswith("_") and name != "__version__"] == []


def test_every_package_that_exports_is_listed() -> None:
    found = {
        ".".join(path.relative_to(ROOT).parent.parts)
        for package in INSTALLED
        for path in (ROOT / package).rglob("__init__.py")
        if re.search(r"^__all__ = ", path.read_text(), re.MULTILINE)
    }
    assert found == set(EXPORTS)


@pytest.mark.parametrize("package", INSTALLED)
def test_package_is_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


def test_version_has_one_source() -> None:
    declared = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert declared is not None
    assert importlib.import_module("trisparse").__version__ == declared.group(1)


def test_benchmarks_and_tests_are_not_installed() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    listed = re.search(r"\[tool\.setuptools\.packages\.find\]\ninclude = \[(.*?)\]", text, re.DOTALL)
    assert listed is not None
    assert {name.split(".")[0] for name in re.findall(r'"([^"]+)"', listed.group(1))} == set(INSTALLED)
