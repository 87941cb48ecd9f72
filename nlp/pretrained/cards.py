"""Model cards: what is known of a network, and how a model folder says it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common_models import cards
from nlp.pretrained import model_files

POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
# Their table of positions starts after the padding index.
OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "roberta-prelayernorm", "xlm-roberta-xl", "xmod", "mpnet")


@dataclass(frozen=True, kw_only=True)
class ModelCard(cards.ModelCard):
    """What is known of a language model.

    Attributes:
        architecture: name of its class in transformers.
        name: as `load_pretrained` was called.
        pooling: how token outputs become one embedding ("mean", "cls", "last"), None where the files do not say.
        normalize: whether embeddings are divided by their length.
        max_tokens: longest input with special tokens, None where there is no limit.
        dimensions: numbers per token output.
        truncate_dim: how many of an embedding's numbers stay, None for all of them.
        source: file or folder of the weights.
        prompt: what every text is prefixed with.
        lowercase: whether texts are lower-cased before they are tokenised.
        steps: what a sentence-transformers folder does after the network and its pooling, but for normalising.
    """

    name: str = ""
    pooling: str | None = None
    normalize: bool = False
    max_tokens: int | None = None
    dimensions: int = 0
    truncate_dim: int | None = None
    source: str = ""
    prompt: str = ""
    lowercase: bool = False
    steps: tuple[str, ...] = ()


def position_limit(config: Any) -> int | None:
    """Longest input of a network, from its config; None where positions are relative."""
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:
        return None
    if config.model_type in OFFSET_POSITIONS:
        limit -= (1 if config.pad_token_id is None else config.pad_token_id) + 1
    return limit


def folder_card(name: str, path: Path, architecture: str, config: Any) -> ModelCard:
    """What a folder says of itself, in the files of transformers and of sentence-transformers."""
    card = ModelCard(
        name=name,
        description=f"{architecture} from {path.name}",
        architecture=architecture,
        max_tokens=position_limit(config),
        dimensions=int(getattr(config, "hidden_size", 0) or 0),
        license=_license(path),
        source=str(path),
    )
    modules = path / "modules.json"
    if not modules.is_file():
        return card
    try:
        listed = json.loads(modules.read_text("utf-8"))
        kinds = [(str(module["type"]).rsplit(".", 1)[-1], str(module["path"])) for module in listed]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{modules} must be a list of modules with type and path: {error!r}") from error
    known = ("Transformer", "Pooling", "Normalize")
    card = replace(
        card,
        normalize=any(kind == "Normalize" for kind, _ in kinds),
        steps=tuple(kind for kind, _ in kinds if kind not in known),
    )
    for kind, folder in kinds:
        if kind == "Pooling":
            if Path(folder).name != folder or folder == "..":
                raise ValueError(f"{modules}: path must be a folder beside it, got {folder!r}")
            card = replace(card, pooling=_pooling(path / folder / "config.json"))
    return _with_sentence_settings(card, path)


def _with_sentence_settings(card: ModelCard, path: Path) -> ModelCard:
    """Longest input, case, prompt and numbers that stay, as sentence-transformers keeps them."""
    settings = path / "sentence_bert_config.json"
    if settings.is_file():
        stated = model_files.read_json(settings)
        limit = stated.get("max_seq_length")
        if limit is not None:
            if type(limit) is not int or limit < 1:
                raise ValueError(f"{settings}: max_seq_length must be a whole number of at least 1, got {limit!r}")
            limit = limit if card.max_tokens is None else min(limit, card.max_tokens)
        card = replace(card, max_tokens=limit or card.max_tokens, lowercase=bool(stated.get("do_lower_case", False)))
    prompts = path / "config_sentence_transformers.json"
    if prompts.is_file():
        stated = model_files.read_json(prompts)
        first = stated.get("truncate_dim")
        if first is not None:
            if type(first) is not int or first < 1:
                raise ValueError(f"{prompts}: truncate_dim must be a whole number of at least 1, got {first!r}")
            card = replace(card, truncate_dim=first)
        default = stated.get("default_prompt_name")
        if default is not None:
            texts = stated.get("prompts")
            text = texts.get(default) if isinstance(texts, dict) else None
            if not isinstance(text, str):
                raise ValueError(f"{prompts}: prompts must hold the default prompt {default!r}, got {text!r}")
            card = replace(card, prompt=text)
    return card


def _pooling(path: Path) -> str:
    """How a sentence-transformers folder pools; several ways are joined by +."""
    stated = model_files.read_json(path)
    mode = stated.get("pooling_mode", [POOLINGS[key] for key in POOLINGS if stated.get(key)] or "mean")
    text = mode if isinstance(mode, str) else "+".join(map(str, mode))
    if stated.get("include_prompt", True) is not True:
        text += " without the prompt"
    return {"lasttoken": "last"}.get(text, text)


def _license(path: Path) -> str:
    """The license in the first lines of a model folder's README."""
    readme = path / "README.md"
    if readme.is_file():
        with readme.open(encoding="utf-8", errors="replace") as file:
            found = re.search(r"^license:\s*['\"]?([\w.+-]+)", file.read(4096), re.MULTILINE)
        if found:
            return found[1]
    return "unknown"
