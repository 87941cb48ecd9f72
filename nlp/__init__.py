"""Language models that skip padding and unimportant tokens: packed encoders, pruning that removes, a pruned cache."""

from typing import TYPE_CHECKING, Any

from nlp.accelerate import Acceleration, accelerate, packed, restore
from nlp.agreement import Agreement, compare
from nlp.cache import HeavyHitters, Recent, SnapKV
from nlp.early_exit import EarlyExit, ExitHeads, fit_exits
from nlp.heads import head_importance, prune_heads
from nlp.linear.quantize import Quantized, quantize
from nlp.picture import draw_survivors, survivors
from nlp.pretrained import list_pretrained, load_pretrained, load_tokenizer, save_pretrained
from nlp.pretrained.cards import ModelCard
from nlp.prune import Cascade, First, Mass, Merge, Random, Threshold, mean_pool
from nlp.texts.classifier import EmbeddingClassifier, TextAnswer, TextClassifier
from nlp.texts.embedder import Embedder, Embedding
from nlp.texts.packer import BatchError, Packer
from nlp.tuning import Calibration, Candidate, calibrate, finetune

if TYPE_CHECKING:
    from nlp.cache import PrunedCache

__all__ = [
    "Acceleration",
    "Agreement",
    "BatchError",
    "Calibration",
    "Candidate",
    "Cascade",
    "EarlyExit",
    "Embedder",
    "Embedding",
    "EmbeddingClassifier",
    "ExitHeads",
    "First",
    "HeavyHitters",
    "Mass",
    "Merge",
    "ModelCard",
    "Packer",
    "PrunedCache",
    "Quantized",
    "Random",
    "Recent",
    "SnapKV",
    "TextAnswer",
    "TextClassifier",
    "Threshold",
    "accelerate",
    "calibrate",
    "compare",
    "draw_survivors",
    "finetune",
    "fit_exits",
    "head_importance",
    "list_pretrained",
    "load_pretrained",
    "load_tokenizer",
    "mean_pool",
    "packed",
    "prune_heads",
    "quantize",
    "restore",
    "save_pretrained",
    "survivors",
]


def __getattr__(name: str) -> Any:
    # A subclass of transformers' Cache, which loads transformers.
    if name != "PrunedCache":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nlp import cache

    return cache.PrunedCache
