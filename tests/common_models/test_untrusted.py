"""Files from others: nothing in them runs, what frameworks keep beside the weights does not hinder, code is named."""

from __future__ import annotations

import os
import pickle
import random
import sys
import tarfile
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from common_models.untrusted import Inert, check_digest, check_tensors, read_untrusted


class Evil:
    """Unpickled, it would run a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


@pytest.fixture
def framework(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A class of a framework that is installed where the file is written only."""
    module = types.ModuleType("mmengine.history")
    exec("class Buffer:\n    def __init__(self, log):\n        self.log = log\n", module.__dict__)
    module.Buffer.__module__ = "mmengine.history"
    monkeypatch.setitem(sys.modules, "mmengine", types.ModuleType("mmengine"))
    monkeypatch.setitem(sys.modules, "mmengine.history", module)
    return module.Buffer


@pytest.mark.parametrize("zipped", [True, False])
def test_what_frameworks_keep_is_not_read(tmp_path: Path, framework: Any, zipped: bool, monkeypatch) -> None:
    path = tmp_path / "epoch_3.pth"
    content = {
        "state_dict": {"a": torch.arange(4.0)}, "message_hub": {"loss": framework(np.arange(3))}, "lr": np.float64(0.5),
        "where": Path("x"),
    }  # fmt: skip
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    for name in ("mmengine", "mmengine.history"):
        monkeypatch.delitem(sys.modules, name)
    found: Any = read_untrusted(path)
    assert torch.equal(found["state_dict"]["a"], torch.arange(4.0))
    assert isinstance(found["message_hub"]["loss"], Inert) and isinstance(found["lr"], Inert)
    assert "mmengine" not in sys.modules
    with pytest.raises(ValueError, match="must hold tensors, got mmengine.history.Buffer for 'loss'"):
        check_tensors(found["message_hub"], "it")


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_refused_by_name(tmp_path: Path, zipped: bool) -> None:
    target, path = tmp_path / "written", tmp_path / "evil.pth"
    content = {"state_dict": {"a": torch.ones(1)}, "x": Evil(target), "y": print}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"evil.pth is no file of tensors alone.*: it names the code GLOBAL .*print"):
        read_untrusted(path)
    torch.save({"x": Evil(target)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="posix.system|nt.system"):
        read_untrusted(path)
    assert not target.exists()


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    for content in (b"", b"nothing of the kind", pickle.dumps([1, 2])[:5]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="a.pth is"):
            read_untrusted(path)
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, "storages")
    with pytest.raises(ValueError, match="a.pth is a tar archive"):
        read_untrusted(path)
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    with pytest.raises(ValueError, match="a.pth is a TorchScript archive"):
        read_untrusted(path)
    with pytest.raises(FileNotFoundError):
        read_untrusted(tmp_path / "none.pth")
    with pytest.raises(ValueError, match="none.safetensors|No such file"):
        (tmp_path / "none.safetensors").write_bytes(b"x")
        read_untrusted(tmp_path / "none.safetensors")


@pytest.mark.parametrize("kind", ["zip", "stream", "safetensors"])
def test_damaged_files_are_named(tmp_path: Path, kind: str) -> None:
    """Whatever the bytes are: read, or an error that names the file."""
    path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pth")
    state = {f"layer{i}.weight": torch.randn(4, 3) for i in range(3)}
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "meta": {"version": "1"}}, path, _use_new_zipfile_serialization=kind == "zip")
    whole, draw = path.read_bytes(), random.Random(0)
    refused = 0
    for i in range(150):
        damaged = bytearray(whole if i % 5 else whole[: draw.randrange(len(whole))])
        for _ in range(draw.choice([1, 2, 30])):
            if damaged:
                damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(bytes(damaged))
        try:
            read_untrusted(path)
        except ValueError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused > 50


def test_digest_and_claims(tmp_path: Path) -> None:
    path = tmp_path / "net-01234567.pth"
    path.write_bytes(b"x")
    with pytest.raises(ValueError, match="must begin with 01234567"):
        check_digest(path, None)
    check_digest(path, "2d711642b726b044")
    with pytest.raises(ValueError, match="8 to 64 hexadecimal digits"):
        check_digest(path, "xyz")
    with pytest.raises(ValueError, match="a claims .* more than is stored"):
        check_tensors({"a": torch.ones(1).expand(1000)}, "it")
    with pytest.raises(ValueError, match="must be a dense tensor"):
        check_tensors({"a": torch.eye(3).to_sparse()}, "it")
