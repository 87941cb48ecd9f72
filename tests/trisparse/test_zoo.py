"""One loader over all domains, and what the package exports."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("safetensors")

import trisparse
from pointcloud import pretrained
from trisparse import zoo
from trisparse.version import __version__


@pytest.fixture
def named(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of pretrained networks that holds one named `tiny-streets`, and no others."""
    shutil.copy(model, tmp_path / "tiny-streets.safetensors")
    monkeypatch.setattr(pretrained, "WEIGHTS", tmp_path)
    monkeypatch.setattr(zoo, "DOMAINS", ("pointcloud",))
    return tmp_path


def test_exported_names() -> None:
    assert sorted(trisparse.__all__) == ["__version__", "list_pretrained", "load_pretrained"]
    assert all(hasattr(trisparse, name) for name in trisparse.__all__)


def test_version_is_that_of_the_project() -> None:
    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    assert f'\nversion = "{__version__}"\n' in project.read_text()
    assert trisparse.__version__ == __version__


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, trisparse, trisparse.cli; print([m for m in ('torch', 'numba', 'spconv') if m in sys.modules])"
    pytest.importorskip("typer")
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_names_of_all_domains(named: Path) -> None:
    assert trisparse.list_pretrained() == ["tiny-streets"] == pretrained.list_pretrained()
    assert zoo.weights_file("tiny-streets") == named / "tiny-streets.safetensors"
    by_name = trisparse.load_pretrained("tiny-streets")
    by_path = trisparse.load_pretrained(zoo.weights_file("tiny-streets"))
    assert all(torch.equal(a, b) for a, b in zip(by_name.state_dict().values(), by_path.state_dict().values()))


def test_each_domain_brings_its_networks() -> None:
    names = trisparse.list_pretrained()
    assert {"minkunet14-streets", "tsm-motion-digits"} <= set(names) and names == sorted(names)
    assert type(trisparse.load_pretrained("tsm-motion-digits")).__name__ == "TSM"
    with pytest.raises(ValueError, match="did you mean 'tsm-motion-digits'"):
        trisparse.load_pretrained("tsm-motion-digit")


@pytest.mark.parametrize("name", ["tiny-street", "tinystreets", "Tiny-Streets"])
def test_close_matches(named: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"one of tiny-streets, got '{name}'; did you mean 'tiny-streets'\?"):
        trisparse.load_pretrained(name)


def test_nothing_close(named: Path) -> None:
    with pytest.raises(ValueError, match=r"got 'zzz'$"):
        trisparse.load_pretrained("zzz")


def test_a_folder_is_no_network(named: Path) -> None:
    with pytest.raises(ValueError, match="must be a file or one of"):
        trisparse.load_pretrained(named)


def test_a_folder_of_a_language_model(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=20
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    model = trisparse.load_pretrained(tmp_path)
    assert type(model) is transformers.BertModel and not model.training
    assert model.card.architecture == "BertModel"


def test_foreign_file(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        trisparse.load_pretrained(tmp_path / "x.safetensors")


def test_a_name_in_two_domains(named: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "_domains", lambda: [pretrained, pretrained])
    with pytest.raises(RuntimeError, match="tiny-streets is pretrained in pointcloud.pretrained and in"):
        trisparse.list_pretrained()


def test_only_language_models_are_downloaded(named: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nlp.pretrained

    asked = []

    def load(name: str, *, download: bool = False) -> str:
        asked.append((name, download))
        if name == "nobody/nothing":
            raise ValueError("'nobody/nothing' cannot be fetched from the Hugging Face hub: no such model")
        return "a model"

    monkeypatch.setattr(nlp.pretrained, "load_pretrained", load)
    assert trisparse.load_pretrained("somebody/something", download=True) == "a model"
    with pytest.raises(ValueError, match=r"cannot be fetched .*; only language models can be downloaded$"):
        trisparse.load_pretrained("nobody/nothing", download=True)
    assert asked == [("somebody/something", True), ("nobody/nothing", True)]
    for path in ("weights.pth", named, named / "none.safetensors"):
        with pytest.raises(ValueError, match="download=True fetches a language model by its name .*, got the path"):
            trisparse.load_pretrained(path, download=True)
    with pytest.raises(ValueError, match="name_or_path must be a file or one of tiny-streets"):
        trisparse.load_pretrained("somebody/something")
    trisparse.load_pretrained("tiny-streets", download=True)  # is there already
    assert len(asked) == 2


def test_the_file_of_a_named_domain_is_read_by_that_domain_alone(
    named: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "x.safetensors"
    save_file({"weight": torch.zeros(1)}, path, metadata={"domain": "pointcloud"})
    monkeypatch.setattr(zoo, "DOMAINS", ("video", "pointcloud"))
    with pytest.raises(ValueError) as caught:
        trisparse.load_pretrained(path)
    assert ";" not in str(caught.value)
