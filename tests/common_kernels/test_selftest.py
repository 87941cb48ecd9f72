"""The self-test: no operator without a check, all pass here, and each sees that its operator is broken."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from common_kernels import selftest

ROOT = Path(selftest.__file__).parent
NAMES = [(folder, name) for folder, checks in selftest.CHECKS.items() for name in checks]


def test_every_operator_has_a_check() -> None:
    folders = {path.parent.name for path in ROOT.glob("*/reference.py")}
    assert len(folders) >= 15 and set(selftest.CHECKS) == folders
    assert all(selftest.CHECKS.values())
    names = [name for _, name in NAMES]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("folder", "name"), NAMES)
def test_passes_on_the_cpu(folder: str, name: str) -> None:
    finding, passed = selftest.CHECKS[folder][name]("cpu")
    assert passed, finding


def _wrong(right: Callable[..., Any]) -> Callable[..., Any]:
    """As `right`, but one number of the first result is another one."""

    def call(*args: Any, **kwargs: Any) -> Any:
        out = right(*args, **kwargs)
        first = out[0] if isinstance(out, tuple) else out
        value = first.flatten()[-1]
        first.view(-1)[-1] = ~value if first.dtype == torch.bool else value + 1
        return out

    return call


def _wrong_update(right: Callable[..., Any], at: int) -> Callable[..., Any]:
    """As `right`, which mutates argument `at`, but one number is left as it was."""

    def call(*args: Any, **kwargs: Any) -> Any:
        moved = right(*args, **kwargs)
        args[at].view(-1)[-1] += 1
        return moved

    return call


OPERATORS = {
    "channel_shift": "channel_shift", "compact": "compact", "gather_gemm": "gather_gemm fp32",
    "gather_rows": "gather_rows", "scatter_add_rows": "scatter_add_rows", "pack": "pack", "unpack": "unpack",
    "ragged_topk": "ragged_topk", "reach": "reach", "segment_reduce": "segment_reduce", "shift_gemm": "shift_gemm",
    "varlen_attention": "attention fp32",
}  # fmt: skip


@pytest.mark.parametrize("operator", OPERATORS)
def test_sees_one_wrong_number(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, operator, _wrong(getattr(selftest, operator)))
    checks = {name: check for _, each in selftest.CHECKS.items() for name, check in each.items()}
    assert not checks[OPERATORS[operator]]("cpu")[1]


@pytest.mark.parametrize(
    ("operator", "at", "folder"), [("update_rows", 0, "row_update"), ("pool_update", 2, "pool_update")]
)
def test_sees_one_wrong_number_of_an_update(
    operator: str, at: int, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selftest, operator, _wrong_update(getattr(selftest, operator), at))
    assert not any(check("cpu")[1] for check in selftest.CHECKS[folder].values())


def test_nan_is_no_agreement() -> None:
    assert not selftest._close(torch.tensor([float("nan"), 1.0]), torch.ones(2), 1.0)[1]


def test_run_goes_on_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(device: str) -> tuple[str, bool]:
        raise RuntimeError("no\nkernel")

    monkeypatch.setattr(selftest, "CHECKS", {"a": {"one": broken}, "b": {"two": lambda device: ("equal", True)}})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    entered = []

    @contextmanager
    def around(what: str) -> Any:
        entered.append(what)
        yield

    assert list(selftest.run(around)) == [
        selftest.Result("one", "cpu", "RuntimeError: no kernel", False),
        selftest.Result("two", "cpu", "equal", True),
    ]
    assert entered == ["one for cpu", "two for cpu"]


def test_import_needs_no_compiler_of_gpus() -> None:
    code = "import sys, common_kernels.selftest; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, check=False).returncode == 0
