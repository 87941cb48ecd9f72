"""One script of verbs for all domains: who has learnt them in one domain knows them in all three."""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import nlp
import pointcloud
import trisparse
import video
from common_models.acceleration import Acceleration
from common_models.agreement import Agreement
from common_models.calibration import Calibration
from common_models.cards import ModelCard
from common_models.dtypes import multiplies_bf16

VERBS = ("accelerate", "compare", "list_pretrained", "load_pretrained", "restore", "save_pretrained")


@dataclass(frozen=True)
class Domain:
    """What the script needs of a domain.

    Attributes:
        pretrained: a network that ships with it.
        data: one input of that network for `compare`.
        trains: whether an accelerated network may train.
    """

    package: Any
    pretrained: str
    data: Callable[[], Any]
    accelerate: Callable[..., Any]
    trains: bool = False


def sweep() -> pointcloud.SparseConvTensor:
    cells = torch.cartesian_prod(torch.arange(1), torch.arange(16), torch.arange(16), torch.arange(8)).int()
    cells = cells[torch.rand(len(cells), generator=torch.Generator().manual_seed(0)) < 0.3]
    features = torch.randn(len(cells), 6, generator=torch.Generator().manual_seed(1))
    return pointcloud.SparseConvTensor(features, cells, [16, 16, 16], 1)


def clip() -> torch.Tensor:
    return torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 500, (3, 24), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(24) < torch.tensor([[24], [7], [1]])).long()
    return {"input_ids": ids, "attention_mask": mask}


DOMAINS = {
    "pointcloud": Domain(pointcloud, "minkunet14-streets", sweep, pointcloud.accelerate),
    "video": Domain(video, "tsm-motion-digits", clip, video.accelerate),
    "nlp": Domain(nlp, "llama-python-docs", batch, nlp.accelerate, trains=True),
}


@pytest.fixture(params=DOMAINS)
def domain(request: pytest.FixtureRequest) -> Domain:
    if request.param == "nlp":
        pytest.importorskip("transformers")
    return DOMAINS[request.param]


@pytest.fixture
def model(domain: Domain) -> nn.Module:
    return domain.package.load_pretrained(domain.pretrained)


def test_the_verbs_are_there(domain: Domain) -> None:
    assert [verb for verb in VERBS if verb not in domain.package.__all__] == []


def test_the_script(domain: Domain, model: nn.Module, tmp_path: Path) -> None:
    assert domain.pretrained in domain.package.list_pretrained()
    assert isinstance(model.card, ModelCard) and isinstance(model.card, domain.package.ModelCard)
    before = {key: value.clone() for key, value in model.state_dict().items()}

    faster = domain.accelerate(model)
    made = faster.acceleration
    assert isinstance(made, Acceleration) and isinstance(made, domain.package.Acceleration)
    assert made.dtype == torch.float32 and made.changed and isinstance(made.left, dict) and str(made)
    assert domain.package.restore(faster) is model and domain.package.restore(model) is model

    agreement = domain.package.compare(model, faster, domain.data())
    assert isinstance(agreement, Agreement) and isinstance(agreement, domain.package.Agreement)
    assert agreement.rows and agreement.relative_difference < 1e-4 and agreement.top1 > 0.99 and str(agreement)

    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())

    path = tmp_path / "weights.safetensors"
    domain.package.save_pretrained(model, path)
    again = domain.package.load_pretrained(path, download=False)
    assert again.card.architecture == model.card.architecture and not again.training
    found = domain.package.compare(model, again, domain.data())
    assert found.relative_difference < 2e-2  # matrices were rounded to fp16, and those that ship are in it


def test_the_zoo_reads_what_a_domain_wrote(domain: Domain, model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    domain.package.save_pretrained(model, path, model.card)
    assert type(trisparse.load_pretrained(path, download=False)) is type(model)
    assert type(trisparse.load_pretrained(domain.pretrained)) is type(model)


@pytest.mark.parametrize("dtype", ["bf16", torch.bfloat16])
def test_one_meaning_of_names(domain: Domain, model: nn.Module, dtype: Any) -> None:
    faster = domain.accelerate(model, dtype=dtype)
    assert faster.acceleration.dtype == torch.bfloat16 and "bf16" in str(faster.acceleration)
    assert domain.package.compare(model, faster, domain.data()).relative_difference < 0.25


@pytest.mark.parametrize("fast", [True, False])
def test_auto_is_what_the_machine_multiplies(
    domain: Domain, model: nn.Module, monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert multiplies_bf16("cpu") == fast
    expected = torch.bfloat16 if fast else torch.float32
    # Video measures, too, whether a small network gains by it: see its own tests.
    options = {"adapt": False} if domain.package is video else {}
    assert domain.accelerate(model, dtype="auto", **options).acceleration.dtype == expected
    assert domain.accelerate(model, dtype=None).acceleration.dtype == torch.float32


@pytest.mark.parametrize(
    ("dtype", "kind"), [("bf61", ValueError), ("int8", ValueError), (torch.int32, ValueError), (16, TypeError)]
)
def test_wrong_dtypes(domain: Domain, model: nn.Module, dtype: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="dtype must be"):
        domain.accelerate(model, dtype=dtype)


def test_refusals(domain: Domain, model: nn.Module, tmp_path: Path) -> None:
    faster = domain.accelerate(model)
    with pytest.raises(ValueError, match="must not be accelerated"):
        domain.accelerate(faster)
    with pytest.raises(ValueError, match=r"restore\(model\)"):
        domain.package.save_pretrained(faster, tmp_path / "weights.safetensors", model.card)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="did you mean"):
        domain.package.load_pretrained(domain.pretrained[:-1])
    if not domain.trains:
        with pytest.raises(ValueError, match="model must be in evaluation mode"):
            domain.accelerate(model.train())


def test_restore_survives_a_copy(domain: Domain, model: nn.Module) -> None:
    assert domain.package.restore(copy.deepcopy(domain.accelerate(model))) is model


def options(verb: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(verb).parameters)


@pytest.mark.parametrize("package", ["pointcloud", "video", "video.delta", "nlp"])
def test_options_of_accelerate_go_by_keyword(package: str) -> None:
    first, *others = options(importlib.import_module(package).accelerate).values()
    assert first.name == "model" and first.kind is first.POSITIONAL_OR_KEYWORD
    assert [each.name for each in others if each.kind is not each.KEYWORD_ONLY] == []
    assert next(each for each in others if each.name == "dtype").default is None


@pytest.mark.parametrize("package", ["pointcloud", "video", "nlp"])
def test_signatures_of_the_other_verbs(package: str) -> None:
    module = importlib.import_module(package)
    assert [name for name, each in options(module.compare).items() if each.default is each.empty] == [
        "model",
        *list(options(module.compare))[1:2],
        "data",
    ]
    saved = options(module.save_pretrained)
    assert list(saved)[:3] == ["model", "path", "card"] and saved["card"].default is None
    loaded = options(module.load_pretrained)
    assert list(loaded) == ["name_or_path", "download"]
    assert loaded["download"].kind is inspect.Parameter.KEYWORD_ONLY and loaded["download"].default is False
    assert {each.name for each in fields(ModelCard)} <= {each.name for each in fields(module.ModelCard)}


@pytest.mark.parametrize("package", ["video.delta", "video.skip", "nlp"])
def test_calibrate(package: str) -> None:
    module = importlib.import_module(package)
    assert issubclass(module.Calibration, Calibration)
    found = options(module.calibrate)
    assert next(iter(found)) == "model"
    for name in ("max_drop", "confidence", "progress"):
        assert found[name].kind is inspect.Parameter.KEYWORD_ONLY, name
    assert found["confidence"].default == 0.95


def test_delta_is_an_acceleration(tmp_path: Path) -> None:
    model = video.load_pretrained("tsm-motion-digits")
    faster = video.delta.accelerate(model, threshold=0.0)
    assert isinstance(faster.acceleration, Acceleration) and str(faster.acceleration)
    assert video.restore(faster) is model
    with pytest.raises(ValueError, match="must not be accelerated"):
        video.delta.accelerate(faster)
    with pytest.raises(ValueError, match=r"restore\(model\)"):
        video.save_pretrained(faster, tmp_path / "weights.safetensors")


@pytest.mark.parametrize("path", ["pointcloud.Segmenter", "video.Classifier", "nlp.Embedder", "nlp.TextClassifier"])
def test_high_level_classes(path: str) -> None:
    package, name = path.split(".")
    kind = getattr(importlib.import_module(package), name)
    load = options(kind.load)
    assert load["dtype"].default is None and load["threads"].default is None
    assert callable(kind.__call__) and callable(kind.stream)
