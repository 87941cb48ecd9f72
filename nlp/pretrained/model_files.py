"""Networks from files that others wrote: safetensors only, classes of transformers only, nothing that runs code."""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from common_models.names import did_you_mean

MAX_JSON = 64 * 2**20  # bytes; tokenizers of 250,000 words take 17 MB
MAX_LAYERS = 1000  # where layers share their tensors; else no more than the file has tensors


def transformers() -> Any:
    """The package transformers, loaded when it is needed.

    Raises:
        ImportError: it is not installed, or of a version before 5.
    """
    try:
        import transformers as package
    except ImportError as error:
        raise ImportError("language models need transformers: pip install 'trisparse[nlp]'") from error
    if int(package.__version__.split(".")[0]) < 5:
        raise ImportError(
            f"language models need transformers 5 or later, got {package.__version__}: pip install 'trisparse[nlp]'"
        )
    return package


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: not UTF-8, not JSON, not an object, or more than 64 MB.
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    if size > MAX_JSON:
        raise ValueError(f"{path} must be JSON of at most {MAX_JSON} bytes, got {size}")
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def network_config(stated: dict[str, Any], where: str) -> Any:
    """The transformers config that a file states, without the entries that would fetch or run code.

    Raises:
        ValueError: a `model_type` transformers does not know, quantized weights, or values the config refuses.
    """
    transformers()
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_type = stated.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        hint = did_you_mean(str(model_type), CONFIG_MAPPING.keys(), 0.5)
        raise ValueError(f"{where}: model_type must be one that transformers knows, got {model_type!r}{hint}")
    if stated.get("quantization_config") is not None:
        raise ValueError(f"{where}: weights must be floating-point tensors, got a quantization_config")
    try:
        return CONFIG_MAPPING[model_type].from_dict(_harmless(stated))
    except Exception as error:  # configs raise whatever their authors chose
        raise ValueError(f"{where}: no {model_type} config can be made of it: {error}") from error


def network_class(name: object, config: Any, where: str) -> Any:
    """The class of transformers with this name.

    Raises:
        ValueError: no such class, or one that takes another config.
    """
    package = transformers()
    found: Any = getattr(package, name, None) if isinstance(name, str) and name.isidentifier() else None
    is_model = inspect.isclass(found) and issubclass(found, package.PreTrainedModel)
    if not is_model or found.config_class is None:
        alike = [each for each in dir(package) if each.startswith(type(config).__name__[:3])]
        hint = did_you_mean(str(name), alike, 0.5)
        raise ValueError(f"{where}: architecture must be a model class of transformers, got {name!r}{hint}")
    if not isinstance(config, found.config_class):
        raise ValueError(f"{where}: {name} takes a {found.config_class.__name__}, got a {type(config).__name__}")
    return found


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder.

    Raises:
        ValueError: there are none, or the index names files outside of the folder.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        others = sorted(
            path.name for pattern in ("*.bin", "*.pt", "*.h5", "*.msgpack") for path in folder.glob(pattern)
        )
        got = f"only {', '.join(others[:3])}, which may run code when read" if others else "neither"
        raise ValueError(f"{folder} must hold model.safetensors or model.safetensors.index.json, got {got}")
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()) or not names:
        raise ValueError(f"{index}: weight_map must name a file for each tensor")
    for name in sorted(set(names.values())):
        if Path(name).name != name or not name.endswith(".safetensors") or not (folder / name).is_file():
            raise ValueError(f"{index}: weight_map must name safetensors files of its folder, got {name!r}")
    return [folder / name for name in sorted(set(names.values()))]


def tensor_counts(files: list[Path]) -> tuple[int, int]:
    """Tensors and their elements in all the files, from the headers.

    Raises:
        ValueError: a file that is not a safetensors file.
    """
    tensors = elements = 0
    for path in files:
        try:
            with safe_open(path, "pt") as file:
                for key in file.keys():
                    size = 1
                    for n in file.get_slice(key).get_shape():
                        size *= n
                    tensors, elements = tensors + 1, elements + size
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is not a safetensors file: {error}") from error
    return tensors, elements


def load_network(
    found: Any,
    config: Any,
    where: str,
    counts: tuple[int, int],
    folder: Path | None = None,
    state: dict[str, Tensor] | None = None,
) -> Any:
    """The network with its weights from a folder or a state dict, in evaluation mode.

    Args:
        counts: tensors and elements that the files hold: a config that asks for far more is refused before memory is.

    Raises:
        ValueError: the tensors do not fit the config.
    """
    _check_size(found, config, where, counts)
    source: dict[str, Any] = {"config": config, "output_loading_info": True}
    if state is None:
        source.update(local_files_only=True, use_safetensors=True, trust_remote_code=False, weights_only=True)
    else:
        source.update(state_dict=state, dtype=torch.float32)
    location = None if folder is None else str(folder)
    try:
        with _quiet():
            model, info = found.from_pretrained(location, **source)
            lacking = info["missing_keys"]
            if lacking and all(key.startswith("pooler.") for key in lacking):
                # Without it rather than with a random one.
                model, info = found.from_pretrained(location, **source, add_pooling_layer=False)
    except Exception as error:  # whatever transformers raises, the file is what it is about
        raise ValueError(f"{where}: no {found.__name__} can be loaded from it: {error}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(f"{where} lacks {len(missing)} tensors of its config, {missing[0]!r} first")
    unknown = sorted(info["unexpected_keys"])
    if unknown and state is not None:
        raise ValueError(f"{where} has {len(unknown)} tensors unknown to its config, {unknown[0]!r} first")
    return model.eval()


def _harmless(stated: dict[str, Any]) -> dict[str, Any]:
    """Without `auto_map` (names Python files) and `..._implementation` (may name kernels on the hub)."""
    kept = {}
    for key, value in stated.items():
        if key != "auto_map" and not key.endswith("_implementation"):
            kept[key] = _harmless(value) if isinstance(value, dict) else value
    return kept


def _check_size(found: Any, config: Any, where: str, counts: tuple[int, int]) -> None:
    """Raise where the config asks for far more than the file holds: it would cost memory and time first."""
    tensors, elements = counts
    layers = getattr(config, "num_hidden_layers", 0)
    if not isinstance(layers, int) or layers > max(MAX_LAYERS, tensors):
        raise ValueError(f"{where}: num_hidden_layers must be at most its number of tensors, {tensors}, got {layers!r}")
    try:
        with torch.device("meta"):
            sizes = [parameter.numel() for parameter in found(config).parameters()]
    except Exception as error:  # whatever an impossible config makes of it
        raise ValueError(f"{where}: no {found.__name__} can be built from its config: {error}") from error
    # Tied weights are stored once, poolers and heads perhaps not at all.
    if sum(sizes) > 3 * elements + 1_000_000:
        raise ValueError(f"{where} holds {elements} numbers, but its config asks for {sum(sizes)}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bar and load report: what is wrong is raised instead."""
    logging = transformers().utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
