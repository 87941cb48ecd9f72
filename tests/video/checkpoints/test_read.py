"""Files from others: checked, bounded, and never executed."""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from video.checkpoints import load_checkpoint, read_state_dict
from video.models import create


class Evil:
    """Unpickled, it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


def test_reads_what_was_written(tmp_path: Path) -> None:
    state = {"a": torch.randn(3), "b": torch.arange(4)}
    for name, content in (
        ("plain.pth", state),
        ("in.pth", {"epoch": 3, "state_dict": state}),
        ("m.pt", {"model": state}),
    ):
        torch.save(content, tmp_path / name)
        found = read_state_dict(tmp_path / name)
        assert found.keys() == state.keys() and all(torch.equal(found[key], state[key]) for key in state)
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(read_state_dict(tmp_path / "old.pth")["a"], state["a"])
    save_file(state, tmp_path / "s.safetensors")
    assert torch.equal(read_state_dict(str(tmp_path / "s.safetensors"))["a"], state["a"])


def test_nothing_is_executed(tmp_path: Path) -> None:
    target = tmp_path / "written"
    for name, dump in (("zip.pth", lambda p: torch.save({"a": Evil(target)}, p)),
                       ("raw.pth", lambda p: p.write_bytes(pickle.dumps({"a": Evil(target)})))):  # fmt: skip
        dump(tmp_path / name)
        with pytest.raises(ValueError, match=f"{name} is no.*tensors"):
            read_state_dict(tmp_path / name)
    assert not target.exists()


def test_digest(tmp_path: Path) -> None:
    path = tmp_path / "some.pth"
    torch.save({"a": torch.zeros(1)}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    named = tmp_path / f"resnet50-{digest[:8]}.pth"
    named.write_bytes(path.read_bytes())
    for source, sha256 in ((path, None), (path, digest), (path, digest[:8].upper()), (named, None)):
        assert read_state_dict(source, sha256).keys() == {"a"}
    wrong = tmp_path / "tsm_r50_20220831-64d69186.pth"
    wrong.write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=f"its SHA-256 must begin with 64d69186, got {digest[:16]}"):
        read_state_dict(wrong)
    with pytest.raises(ValueError, match="must begin with 00000000"):
        read_state_dict(path, "0" * 8)
    for text in ("123", "x" * 8, "", "0" * 65):
        with pytest.raises(ValueError, match="sha256 must be 8 to 64 hexadecimal digits"):
            read_state_dict(path, text)


@pytest.mark.parametrize("name", ["a.pth", "a.pth.tar", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello", b"\xff" * 64, b"PK\x03\x04" + b"\0" * 60], ids=repr)
def test_no_checkpoint(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match="a.(pth|safetensors).* is no") as error:
        read_state_dict(path)
    assert "PyTorch 2.6" not in str(error.value)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_truncated(tmp_path: Path, share: float) -> None:
    path = tmp_path / "cut.pth"
    torch.save(create("resnet18", width=8).state_dict(), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match="cut.pth is no"):
        load_checkpoint(path)


def test_a_compressed_archive(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as stored,
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    with pytest.raises(ValueError, match="is compressed, torch.save stores"):
        read_state_dict(tmp_path / "b.pth")


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"a": 3}, {3: torch.zeros(1)}, torch.zeros(2), {}], ids=repr)
def test_other_content(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="a.pth.* must hold"):
        read_state_dict(tmp_path / "a.pth")


def test_missing(tmp_path: Path) -> None:
    for name in ("absent.pth", "absent.safetensors"):
        with pytest.raises(FileNotFoundError, match="absent"):
            read_state_dict(tmp_path / name)
    with pytest.raises(OSError):
        read_state_dict(tmp_path)
